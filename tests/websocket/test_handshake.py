"""How connections begin: where, and for whom."""

from __future__ import annotations

import base64
import contextlib
import re
import socket
from collections.abc import Callable

import pytest

from tests.conftest import SharedServers
from tests.live import LiveServer, RawConnection, raw_exchange, raw_request
from tests.websocket.conftest import Connect
from tests.websocket.peer import PATH, Refused

KEY = base64.b64encode(b"0123456789abcdef").decode()
HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "keep-alive, Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\n"


def head_of(connection: RawConnection) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.socket.recv(4096)
        assert more, data
        data += more
    return data


@pytest.mark.parametrize("path", [PATH, f"{PATH}?a=b"])
def test_it_is_spoken_at_its_path(connect: Connect, path: str) -> None:
    assert connect(path=path).ask("queue_list").status == 200


@pytest.mark.parametrize("path", ["/", "/v2/websocket/", "/v2/websockets", "/v2/queues", "/x"])
def test_it_is_not_spoken_elsewhere(connect: Connect, path: str) -> None:
    with pytest.raises(Refused) as refused:
        connect(path=path)
    assert refused.value.status in {300, 400, 404}


@pytest.fixture(scope="session")
def with_port(shared_server: SharedServers) -> tuple[LiveServer, int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return shared_server(websocket_port=port), port


@pytest.mark.parametrize("path", ["/", "/anything?x=1", PATH])
def test_on_a_port_of_its_own_any_path_will_do(
    connect: Connect, with_port: tuple[LiveServer, int], path: str
) -> None:
    server, port = with_port
    peer = connect(server, port=port, path=path)
    assert peer.post("q", 1)
    assert server.api(project=peer.project).listed("q") == [1]


@pytest.mark.only("postgresql", "redis", "redis-cluster")
def test_workers_share_that_port(
    private_server: Callable[..., LiveServer], connect: Connect
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = private_server(websocket_port=port, workers=2)
    first = connect(server, port=port, path="/")
    peers = [first, *(connect(server, port=port, project=first.project) for _ in range(7))]
    for peer in peers:
        peer.done("subscription_create", 201, queue_name="q")
    first.post("q", "for all")
    assert [peer.told(1) for peer in peers] == [["for all"]] * 8


def test_a_server_does_not_start_without_that_port(
    private_server: Callable[..., LiveServer], with_port: tuple[LiveServer, int]
) -> None:
    with pytest.raises(Exception, match=f"cannot listen on 127.0.0.1:{with_port[1]}"):
        private_server(websocket_port=with_port[1])


def test_the_default_port_may_be_taken(
    private_server: Callable[..., LiveServer], connect: Connect
) -> None:
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # somebody has it already: so much the better
            stack.enter_context(socket.create_server(("127.0.0.1", 9000)))
        server = private_server(websocket_port=9000)
        assert "websocket_port is taken" in server.log()
        assert connect(server).post("q", 1)


def test_headers_are_read_in_any_spelling(server: LiveServer) -> None:
    spelled = {
        "UPGRADE": "WebSocket",
        "connection": "upgrade",
        "sec-websocket-KEY": KEY,
        "SEC-WEBSOCKET-VERSION": "13",
        "Sec-WebSocket-Protocol": "mqtt, soap",
        "Sec-WebSocket-Extensions": "permessage-deflate",
    }
    with RawConnection(server) as connection:
        connection.send(raw_request("GET", PATH, spelled))
        head = head_of(connection)
    assert head.startswith(SWITCHED)
    # Neither a protocol nor an extension is agreed upon.
    assert b"protocol:" not in head.lower()
    assert b"extensions" not in head.lower()


def test_a_connection_may_have_spoken_http_before(server: LiveServer) -> None:
    with RawConnection(server) as connection:
        for _ in range(2):
            connection.send(raw_request("GET", "/livez"))
            assert connection.answer().status == 200
        connection.send(raw_request("GET", PATH, HANDSHAKE))
        assert head_of(connection).startswith(SWITCHED)


@pytest.mark.parametrize("size", [1, 7, 10, 13, 40])
def test_the_head_may_come_in_pieces(server: LiveServer, size: int) -> None:
    head = raw_request("GET", PATH, HANDSHAKE)
    with RawConnection(server) as connection:
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(head), size):
            connection.send(head[at : at + size])
        assert head_of(connection).startswith(SWITCHED)


def test_what_comes_behind_the_head_is_not_lost(server: LiveServer, connect: Connect) -> None:
    peer = connect()
    with RawConnection(server) as connection:
        ping = b"\x89\x80\x00\x00\x00\x00"
        connection.send(raw_request("GET", PATH, HANDSHAKE) + ping)
        data = head_of(connection).partition(b"\r\n\r\n")[2] or connection.socket.recv(100)
    assert data == b"\x8a\x00"
    assert peer.ask("queue_list").status == 200


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"Sec-WebSocket-Version": "8"}, 426),
        ({"Sec-WebSocket-Version": ""}, 426),
        ({"Sec-WebSocket-Key": ""}, 400),
        ({"Sec-WebSocket-Key": "c2hvcnQ="}, 400),
        ({"Sec-WebSocket-Key": "no base64 at all!!!!!!!!"}, 400),
        ({"Upgrade": "h2c"}, 404),
        ({"Connection": "close"}, 404),
        ({"Content-Length": "0"}, 404),
    ],
)
def test_a_handshake_that_is_none_is_refused(
    server: LiveServer, change: dict[str, str], status: int
) -> None:
    headers = {name: value for name, value in {**HANDSHAKE, **change}.items() if value}
    assert raw_exchange(server, "GET", PATH, headers).status == status


@pytest.mark.parametrize("method", ["POST", "PUT", "HEAD"])
def test_a_handshake_is_a_get(server: LiveServer, method: str) -> None:
    assert raw_exchange(server, method, PATH, HANDSHAKE).status == 404


def test_without_a_handshake_there_is_nothing(server: LiveServer) -> None:
    assert raw_exchange(server, "GET", PATH).status == 404


def test_a_handshake_behind_another_request_is_answered_as_http(server: LiveServer) -> None:
    with RawConnection(server) as connection:
        connection.send(raw_request("GET", "/livez") + raw_request("GET", PATH, HANDSHAKE))
        data = b""
        while len(statuses := re.findall(rb"HTTP/1\.1 (\d+)", data)) < 2:
            data += connection.socket.recv(4096)
    assert statuses == [b"200", b"404"]


# -- origins: browsers open connections for whatever page they show


def status_of(server: LiveServer, headers: dict[str, str]) -> int:
    with RawConnection(server) as connection:
        connection.send(raw_request("GET", PATH, {**HANDSHAKE, **headers}))
        return int(head_of(connection).split()[1])


@pytest.mark.parametrize(
    ("host", "origin", "welcome"),
    [
        (None, "http://{host}", True),
        (None, "https://{host}", True),
        ("localhost:8888", "http://localhost:8888", True),
        ("[::1]:8888", "http://[::1]:8888", True),
        (None, "http://evil.example", False),
        (None, "http://127.0.0.1", False),
        (None, "null", False),
        # A page may lead its own name to this machine.
        ("evil.example", "http://evil.example", False),
        ("127.0.0.1.evil.example:8888", "http://127.0.0.1.evil.example:8888", False),
    ],
)
def test_pages_from_elsewhere_are_not_let_in(
    server: LiveServer, host: str | None, origin: str, *, welcome: bool
) -> None:
    own = server.url.removeprefix("http://")
    headers = {"Origin": origin.format(host=host or own)}
    request = raw_request("GET", PATH, {**HANDSHAKE, **headers})
    with RawConnection(server) as connection:
        connection.send(request.replace(b"Host: nusku", f"Host: {host or own}".encode()))
        assert head_of(connection).startswith(SWITCHED) is welcome


def test_origins_that_are_allowed_are_let_in(shared_server: SharedServers) -> None:
    server = shared_server(cors_origins=("https://console.example",))
    assert status_of(server, {"Origin": "https://console.example"}) == 101
    assert status_of(server, {"Origin": "https://evil.example"}) == 403
