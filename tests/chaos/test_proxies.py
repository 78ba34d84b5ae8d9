"""The proxies do to a connection what they say, and nothing else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.chaos.harness.proxies import Proxy, Switchboard
from tests.live import eventually


class _Echo:
    """Sends everything back, and knows what it was sent and how many are connected."""

    def __init__(self) -> None:
        self.heard = b""
        self.open = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.open += 1
            threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(4096):
                    self.heard += data
                    connection.sendall(data)
            except OSError:
                pass
        self.open -= 1


@pytest.fixture
def echo() -> Iterator[_Echo]:
    echo = _Echo()
    yield echo
    echo.close()


@pytest.fixture
def proxy(echo: _Echo) -> Iterator[Proxy]:
    with Switchboard() as switchboard:
        yield switchboard.open(echo.address)


@pytest.fixture
def near(proxy: Proxy) -> Iterator[socket.socket]:
    """A connection through the proxy that has been used."""
    with socket.create_connection(proxy.address, timeout=5) as near:
        assert _say(near, b"first") == b"first"
        yield near


def _say(near: socket.socket, data: bytes) -> bytes:
    near.sendall(data)
    return near.recv(4096)


def _nothing_comes(near: socket.socket) -> bool:
    near.settimeout(0.2)
    try:
        near.recv(1)
    except TimeoutError:
        return True
    finally:
        near.settimeout(5)
    return False


def test_what_is_cut_is_cut_at_both_ends(echo: _Echo, proxy: Proxy, near: socket.socket) -> None:
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        near.recv(1)
    eventually(lambda: echo.open == 0)
    eventually(lambda: proxy.links() == 0)
    with socket.create_connection(proxy.address, timeout=5) as again:
        assert _say(again, b"again") == b"again"


def test_a_lost_reply_was_asked_for(echo: _Echo, proxy: Proxy, near: socket.socket) -> None:
    proxy.lose_reply = 1.0
    near.sendall(b"second")
    with pytest.raises(ConnectionResetError):
        near.recv(1)
    assert echo.heard == b"firstsecond"
    assert proxy.lost == 1


def test_a_lost_request_never_arrives(echo: _Echo, proxy: Proxy, near: socket.socket) -> None:
    proxy.lose_request = 1.0
    near.sendall(b"second")
    with pytest.raises(ConnectionResetError):
        near.recv(1)
    assert echo.heard == b"first"


def test_a_silent_link_looks_open_from_both_ends(
    echo: _Echo, proxy: Proxy, near: socket.socket
) -> None:
    proxy.silence()
    near.sendall(b"second")
    assert _nothing_comes(near)
    assert (echo.heard, echo.open) == (b"first", 1)
    proxy.hang_up()
    with pytest.raises(ConnectionResetError):
        near.recv(1)
    eventually(lambda: echo.open == 0)


def test_an_abandoned_target_is_told_nothing(
    echo: _Echo, proxy: Proxy, near: socket.socket
) -> None:
    proxy.abandon()
    with pytest.raises(ConnectionResetError):
        near.recv(1)
    assert echo.open == 1
    proxy.hang_up()
    eventually(lambda: echo.open == 0)
    eventually(lambda: proxy.links() == 0)


def test_what_was_held_back_flows_again_in_order(proxy: Proxy, near: socket.socket) -> None:
    proxy.hold()
    near.sendall(b"one")
    assert _nothing_comes(near)
    near.sendall(b"two")
    proxy.flow()
    received = b""
    while len(received) < 6:
        received += near.recv(4096)
    assert received == b"onetwo"


def test_what_was_held_back_can_be_lost(echo: _Echo, proxy: Proxy, near: socket.socket) -> None:
    proxy.hold()
    near.sendall(b"one")
    assert _nothing_comes(near)
    proxy.drop()
    with pytest.raises(ConnectionResetError):
        near.recv(1)
    assert echo.heard == b"firstone"


def test_only_replicas_are_held_back(proxy: Proxy, near: socket.socket) -> None:
    proxy.hold(lambda link: link.replicates)
    assert _say(near, b"second") == b"second"
    near.sendall(b"PSYNC ? -1")
    assert _nothing_comes(near)


def test_nobody_gets_through_a_proxy_that_refuses(proxy: Proxy, near: socket.socket) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionResetError):
        near.recv(1)
    with (
        pytest.raises(ConnectionResetError),
        socket.create_connection(proxy.address, timeout=5) as other,
    ):
        other.recv(1)
    proxy.accept()
    with socket.create_connection(proxy.address, timeout=5) as again:
        assert _say(again, b"again") == b"again"
