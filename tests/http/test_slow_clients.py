"""Clients that take too long, and too many of them (reliability, SEC-23)."""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Callable

import pytest

from tests.live import Api, LiveServer, RawConnection, expect, raw_request

DEADLINE_S = 1
PATIENCE_S = DEADLINE_S + 3.0
"""Until when a connection must be closed: the deadline and two seconds, and some for the machine."""

pytestmark = pytest.mark.slow


@pytest.fixture
def strict(shared_server: Callable[..., LiveServer]) -> Api:
    """A client of a server that is patient for a second only, and takes 40 connections."""
    server = shared_server(
        header_timeout=DEADLINE_S,
        body_timeout=DEADLINE_S,
        write_timeout=DEADLINE_S,
        keep_alive_timeout=DEADLINE_S,
        max_connections=40,
    )
    return server.api()


def end_of(connection: RawConnection) -> tuple[float, bytes]:
    """When the server hangs up, in seconds from now, and what it says before."""
    started, said = time.monotonic(), b""
    connection.socket.settimeout(PATIENCE_S)
    with contextlib.suppress(ConnectionError):
        while piece := connection.socket.recv(65536):
            said += piece
    return time.monotonic() - started, said


def test_headers_have_a_deadline_wherever_they_stop(strict: Api) -> None:
    starts = [
        b"",
        b"GET /v2/ping HT",
        b"GET /v2/ping HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n",
    ]
    started = time.monotonic()
    with contextlib.ExitStack() as slow:
        connections = [slow.enter_context(RawConnection(strict.server)) for _ in starts]
        for connection, start in zip(connections, starts, strict=True):
            connection.send(start)
        for connection in connections:
            _, said = end_of(connection)
            assert b"HTTP/1.1 2" not in said
            assert DEADLINE_S * 0.5 <= time.monotonic() - started < PATIENCE_S


def test_headers_that_drip_have_the_same_deadline(strict: Api) -> None:
    started = time.monotonic()
    with RawConnection(strict.server) as connection:
        connection.send(b"GET /v2/ping HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - started < PATIENCE_S:
                connection.send(b"X-A: b\r\n")
                time.sleep(0.1)
    assert time.monotonic() - started < PATIENCE_S


def test_a_body_has_a_deadline_and_no_effect(strict: Api) -> None:
    document = b'{"messages": [{"body": 1}]}'
    headers = {**strict.headers, "Content-Length": str(len(document) + 1)}
    with RawConnection(strict.server) as connection:
        connection.send(raw_request("POST", strict.path("q", "messages"), headers, document))
        seconds, said = end_of(connection)
    assert DEADLINE_S * 0.5 <= seconds < PATIENCE_S
    assert b"HTTP/1.1 2" not in said
    assert strict.stats("q")["total"] == 0


def test_an_idle_connection_is_closed_after_a_while(strict: Api) -> None:
    with RawConnection(strict.server) as connection:
        connection.send(raw_request("GET", "/v2/ping", strict.headers))
        assert connection.answer().status == 204
        seconds, said = end_of(connection)
    assert DEADLINE_S * 0.5 <= seconds < PATIENCE_S
    assert said == b""


def test_a_reader_that_stalls_is_hung_up_on(strict: Api) -> None:
    for n in range(10):
        strict.post_bodies("q", "x" * 100_000, f"{n}" * 100_000)
    path = strict.path("q", "messages") + "?echo=true&limit=20"
    request = raw_request("GET", path, strict.headers)
    with RawConnection(strict.server) as connection:
        started = time.monotonic()
        connection.socket.settimeout(0.5)
        # Asks for much and reads nothing, until the server has had enough.
        with contextlib.suppress(ConnectionError, TimeoutError):
            while time.monotonic() - started < PATIENCE_S + 1:
                connection.send(request)
                time.sleep(0.05)
        seconds, _ = end_of(connection)
    assert seconds < PATIENCE_S
    expect(strict.get("/v2/ping"), 204)


def test_a_waiting_request_is_not_taken_for_an_idle_one(strict: Api) -> None:
    started = time.monotonic()
    expect(strict.claim("q", "?wait=3"), 204)
    assert time.monotonic() - started > 2.5


def test_slow_clients_do_not_disturb_the_others(strict: Api) -> None:
    with contextlib.ExitStack() as slow:
        for _ in range(30):
            connection = slow.enter_context(RawConnection(strict.server))
            connection.send(b"POST /v2/queues/q/messages HTTP/1.1\r\nContent-Length: 9\r\n")
        for n in range(50):
            started = time.monotonic()
            strict.post_bodies("q", n)
            assert time.monotonic() - started < 1
    assert strict.stats("q")["total"] == 50


def test_too_many_connections_are_refused_and_room_comes_back(strict: Api) -> None:
    def ask(connection: RawConnection) -> int | None:
        """The status of a ping; None where the server hung up."""
        try:
            connection.send(raw_request("GET", "/v2/ping", strict.headers))
            return connection.answer().status
        except (ConnectionError, http.client.HTTPException):
            return None

    with contextlib.ExitStack() as crowd:
        answers = [ask(crowd.enter_context(RawConnection(strict.server))) for _ in range(50)]
        assert answers[0] == 204
        assert answers.count(204) <= 40
        assert set(answers[41:]) <= {503, None}
    with RawConnection(strict.server) as connection:
        assert ask(connection) == 204
