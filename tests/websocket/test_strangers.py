"""What is taken of whoever has not proved who they are, and how many may come of one project."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from nusku import signing
from tests.conftest import SharedServers
from tests.live import LiveServer, eventually
from tests.security.test_api_keys import Keys
from tests.websocket.peer import BINARY, TEXT, Peer

SECRET = "a key that signs, and is long enough for it"
LARGE = "x" * 100_000
SHUT = (403, {"error": "Not authentified."})


@pytest.fixture(scope="module")
def locked(shared_server: SharedServers) -> LiveServer:
    return shared_server(auth="key", secret_key=SECRET, max_websockets_per_project=3)


@pytest.fixture(scope="module")
def keys(locked: LiveServer) -> Keys:
    return Keys(locked)


@pytest.fixture(params=["json", "messagepack"])
def stranger(locked: LiveServer, request: pytest.FixtureRequest) -> Iterator[Peer]:
    with Peer(locked, binary=request.param == "messagepack") as one:
        yield one


def key_for(keys: Keys, project: str) -> str:
    """A key that the server knows."""
    key: str = keys.make(project).text
    headers = {"X-Auth-Token": key, "Client-ID": str(uuid.uuid4())}
    eventually(lambda: keys.server.client.get("/v2/queues", headers=headers).status_code == 200)
    return key


def signature(project: str) -> dict[str, Any]:
    paths, methods = ["/v2/queues/q/messages"], ["GET", "POST"]
    expires = signing.expiry_text(int(time.time()) + 600)
    return {
        "URL-Signature": signing.sign(SECRET, paths, methods, project, expires),
        "URL-Methods": methods,
        "URL-Paths": paths,
        "URL-Expires": expires,
    }


def posting(body: Any, queue: str = "q") -> dict[str, Any]:
    return {"queue_name": queue, "messages": [{"body": body}]}


def test_a_large_frame_is_not_taken_of_a_stranger(stranger: Peer) -> None:
    stranger.send(stranger.request("message_post", posting(LARGE)))
    closed = stranger.end()
    assert (closed.code, closed.reason) == (
        1009,
        "The message is too big for who is not authenticated.",
    )


@pytest.mark.parametrize(("opcode", "data"), [(TEXT, b"[" * 100_000), (BINARY, b"\x91" * 100_000)])
def test_nor_one_that_is_no_request(locked: LiveServer, opcode: int, data: bytes) -> None:
    with Peer(locked) as peer:
        peer.write(opcode, data)
        assert peer.end().code == 1009


def test_a_large_frame_with_a_wrong_signature_is_not_looked_into(stranger: Peer) -> None:
    wrong = {**signature(stranger.project), "URL-Signature": "x"}
    stranger.send(stranger.request("message_post", posting([LARGE, [[]] * 100]), **wrong))
    reply = stranger.reply()
    assert (reply.status, reply.body) == SHUT
    assert reply.request["body"] == {}


def test_a_large_frame_is_taken_with_a_signature(stranger: Peer) -> None:
    signed = signature(stranger.project)
    stranger.send(stranger.request("message_post", posting(LARGE), **signed))
    reply = stranger.reply()
    assert reply.status == 201
    assert reply.request["body"] == posting(LARGE)
    stranger.send(stranger.request("message_post", posting(LARGE, "other"), **signed))
    assert stranger.reply().status == 403


def test_a_name_that_is_spelled_otherwise_is_the_name_that_is_signed(locked: LiveServer) -> None:
    with Peer(locked) as peer:
        sent = peer.request("message_post", posting(LARGE), **signature(peer.project))
        text = json.dumps(sent)
        for more in ('"queue\\u005fname": "r"', '"queue_name": "r"'):
            for twice in (
                text.replace('"queue_name": "q"', f'"queue_name": "q", {more}'),
                text.replace('"queue_name": "q"', f'{more}, "queue_name": "q"'),
            ):
                peer.write(TEXT, twice.encode())
                reply = peer.reply()
                if reply.status == 201:
                    assert reply.request["body"]["queue_name"] == "q"
                else:
                    assert reply.status in {400, 403}


def test_who_is_refused_a_hundred_times_is_hung_up_on(stranger: Peer) -> None:
    for _ in range(100):
        stranger.send(stranger.request("queue_list"))
    for _ in range(100):
        assert stranger.reply().status == 403
    closed = stranger.end()
    assert (closed.code, closed.reason) == (1008, "Too many requests were refused.")


def test_a_large_frame_is_taken_of_who_is_known(keys: Keys, stranger: Peer) -> None:
    assert stranger.authenticate(key_for(keys, stranger.project)).status == 200
    stranger.send(stranger.request("message_post", posting(LARGE)))
    assert stranger.reply().status == 201
    deep: Any = LARGE
    for _ in range(70):
        deep = [deep]
    for body in (posting(deep), {**posting(LARGE), "queue_name": 5}, [LARGE], LARGE):
        stranger.send(stranger.request("message_post", body))
        assert stranger.reply().status == 400
    headers = {"X-Other": LARGE}
    stranger.send(stranger.request("queue_list", {}, **headers))
    reply = stranger.reply()
    assert (reply.status, reply.body["error"]) == (
        400,
        "All but the body is limited to 65536 bytes.",
    )
    assert stranger.ask("queue_get", queue_name="q").status == 200


def test_a_project_has_room_for_so_many(locked: LiveServer, keys: Keys) -> None:
    project = f"crowded-{uuid.uuid4().hex}"
    key, other = key_for(keys, project), key_for(keys, "another")
    peers = [Peer(locked, project=project) for _ in range(4)]
    try:
        first, *_, last = peers
        assert [peer.authenticate(key).status for peer in peers] == [200, 200, 200, 503]
        assert last.authenticate(key).body == {
            "error": "There are too many WebSockets of the project."
        }
        last.send(last.request("message_list", {"queue_name": "q"}, **signature(project)))
        assert last.reply().status == 503
        assert last.ask("queue_list").status == 403
        assert first.authenticate(key).status == 200  # it counts once
        first.project = "another"
        assert first.authenticate(other).status == 200
        assert last.authenticate(key).status == 200  # in its place
        peers[1].close()
        first.project = project
        eventually(lambda: first.authenticate(key).status == 200)
    finally:
        for peer in peers:
            peer.close()
