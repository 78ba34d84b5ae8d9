"""What a connection may take, and how it ends when it takes more."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable

import pytest

from tests.conftest import SharedServers
from tests.live import LiveServer, eventually
from tests.websocket.conftest import Connect
from tests.websocket.peer import BINARY, CLOSE, PING, TEXT, Peer, frame_bytes


def test_a_message_that_is_too_big_ends_the_connection(connect: Connect) -> None:
    peer = connect()
    peer.socket.sendall(frame_bytes(TEXT, b"x" * 700_000)[:100])  # its size is enough
    closed = peer.end()
    assert (closed.code, closed.reason) == (1009, "The message is too big.")


def test_fragments_are_bounded_together(connect: Connect) -> None:
    peer = connect()
    peer.socket.sendall(frame_bytes(TEXT, b"x" * 300_000, fin=False))
    peer.socket.sendall(frame_bytes(0x0, b"x" * 300_000, fin=False))
    assert peer.end().code == 1009


@pytest.mark.parametrize(
    "sent",
    [
        b"\xf1\x80\x00\x00\x00\x00",  # reserved bits
        b"\x83\x80\x00\x00\x00\x00",  # an opcode that there is not
        b"\x80\x80\x00\x00\x00\x00",  # goes on with nothing
        b"\x09\x80\x00\x00\x00\x00",  # a ping in fragments
        b"\x89\xfe\x00\x7e" + bytes(130),  # a ping that is too long
        b"\x88\x81\x00\x00\x00\x00\x01",  # a close with half a code
        b"\xc1\x80\x00\x00\x00\x00",  # compressed, which was not agreed upon
    ],
)
def test_what_is_not_websocket_ends_the_connection(connect: Connect, sent: bytes) -> None:
    peer = connect()
    peer.socket.sendall(sent)
    assert peer.end().code == 1002


def test_a_flood_of_pings_ends_the_connection(connect: Connect) -> None:
    peer = connect()
    peer.socket.sendall(frame_bytes(PING, b"x") * 150)
    assert peer.end().code == 1008


def test_closing_is_answered(connect: Connect) -> None:
    for payload, code in ((b"", 0), (b"\x03\xe8bye", 1000), (b"\x0f\xa0", 4000)):
        peer = connect()
        peer.write(CLOSE, payload)
        frame = peer.frame()
        assert (frame.opcode, int.from_bytes(frame.payload[:2], "big")) == (CLOSE, code)
        assert peer.socket.recv(10) == b""


def test_who_sends_and_does_not_read_is_not_read_from(connect: Connect) -> None:
    """What waits is bounded on both sides, so that at last the client cannot send any more."""
    peer = connect(timeout_s=1.0)
    peer.post("q", "x" * 200_000)
    request = frame_bytes(
        TEXT, json.dumps(peer.request("message_list", {"queue_name": "q", "echo": True})).encode()
    )
    with pytest.raises(TimeoutError):
        peer.socket.sendall(request * 200_000)


def test_who_listens_and_does_not_read_is_cut_off(connect: Connect, server: LiveServer) -> None:
    peer, other = connect(timeout_s=30.0), connect()
    peer.done("subscription_create", 201, queue_name="q")
    api = server.api(project=peer.project)
    reader = connect(project=peer.project)
    reader.done("subscription_create", 201, queue_name="q")
    gone = "/v2/queues/q/subscriptions"
    posted = 0

    def cut_off() -> bool:
        nonlocal posted
        api.post_bodies("q", "x" * 250_000)
        posted += 1
        # Somebody who does read hears it all.
        assert len(reader.told(1)) == 1
        return len(api.get(gone).json()["subscriptions"]) < 2

    eventually(cut_off, within_s=30, every_s=0.0)
    closed = peer.end()
    assert (closed.code, closed.reason) == (1013, "What is sent is not read fast enough.")
    assert other.ask("queue_list").status == 200


def test_empty_fragments_take_no_room(connect: Connect) -> None:
    peer = connect()
    text = json.dumps(peer.request("queue_list")).encode()
    peer.socket.sendall(frame_bytes(TEXT, b"", fin=False))
    peer.socket.sendall(frame_bytes(0x0, b"", fin=False) * 10_000)
    peer.socket.sendall(frame_bytes(0x0, text))
    assert peer.reply().status == 200


def test_rates_and_quotas_count_for_requests_as_over_http(shared_server: SharedServers) -> None:
    server = shared_server(quota_requests=5, quota_queues=2)
    with Peer(server) as peer:
        statuses = []
        for number in range(8):
            reply = peer.ask("queue_create", queue_name=f"q{number}")
            statuses.append(reply.status)
            if reply.status in {403, 503}:
                assert reply.body["error"]
                assert reply.body["error"] != "Not authentified."
        assert statuses[:3] == [201, 201, 403]
        assert 503 in statuses
        peer.project = "another"
        assert peer.ask("queue_list").status == 200


def test_a_connection_that_stays_silent_is_closed(shared_server: SharedServers) -> None:
    server = shared_server(websocket_idle_timeout=1, header_timeout=1.0)
    with Peer(server) as peer:
        peer.done("queue_create", 201, queue_name="q")
        started = time.monotonic()
        closed = peer.end()
        assert (closed.code, closed.reason) == (1000, "Nothing was sent for too long.")
        assert 0.5 < time.monotonic() - started < 5


def test_a_server_that_stops_says_so(private_server: Callable[..., LiveServer]) -> None:
    server = private_server()
    with Peer(server) as idle, Peer(server) as busy:
        busy.done("subscription_create", 201, queue_name="q")
        for number in range(50):
            messages = [{"body": number}]
            busy.send(busy.request("message_post", {"queue_name": "q", "messages": messages}))
        server.terminate()
        assert idle.end().code == 1001
        ended = busy.end()
        assert (ended.code, ended.reason) == (1001, "The server stops.")
        server.wait_until_ended()


def test_a_server_does_not_wait_for_who_does_not_close(
    private_server: Callable[..., LiveServer],
) -> None:
    server = private_server()
    with Peer(server) as peer:
        peer.done("subscription_create", 201, queue_name="q")
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 6
    # It was deleted with the connection, before the store was closed.
    again = private_server()
    assert again.api(project=peer.project).get("/v2/queues/q/subscriptions").json() == {
        "subscriptions": [],
        "links": [],
    }


def test_connections_are_counted_and_forgotten(connect: Connect, server: LiveServer) -> None:
    def open_connections() -> int:
        lines = server.client.get("/metrics").text.splitlines()
        return int(float(next(x for x in lines if x.startswith("nusku_websockets ")).split()[1]))

    before = open_connections()
    peers = [connect() for _ in range(5)]
    for peer in peers:
        peer.ask("queue_list")
    assert open_connections() == before + 5
    peers[0].write(CLOSE, b"")
    peers[1].socket.shutdown(socket.SHUT_RDWR)
    for peer in peers[2:]:
        peer.close()
    eventually(lambda: open_connections() == before)


def test_requests_are_logged_and_counted_like_those_of_http(
    connect: Connect, server: LiveServer
) -> None:
    peer = connect()
    peer.post("q", "secret body")
    peer.write(BINARY, b"\xc1")
    peer.reply()

    def lines() -> list[dict[str, object]]:
        found = [json.loads(line) for line in server.log().splitlines() if line.startswith("{")]
        return [one for one in found if str(one.get("request_id", "")).startswith("ws-")]

    mine = eventually(lambda: [one for one in lines() if one["project"] == peer.project])
    assert mine[0]["operation"] == "messages:create"
    assert mine[0]["status"] == 201
    assert "secret body" not in server.log()
