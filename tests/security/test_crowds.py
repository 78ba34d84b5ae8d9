"""Who is connected: one address does not take the room of the others (SEC-23)."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nusku.http.crowd import Crowd, place
from tests.live import LiveServer, eventually, raw_request
from tests.security.support import address_of, open_files
from tests.websocket.peer import TEXT, frame_bytes

# -- among sockets ---------------------------------------------------------------------------------

ROOM, EACH = 12, 10


@pytest.fixture
def small(shared_server: Callable[..., LiveServer]) -> LiveServer:
    return shared_server(
        max_connections=ROOM, max_connections_per_address=EACH, host="0.0.0.0", allow_open=True
    )


@dataclass
class Clients:
    """Clients of one address of this machine, each with a connection."""

    server: LiveServer
    address: str
    open: list[socket.socket] = field(default_factory=list)

    def connect(self) -> socket.socket:
        port = address_of(self.server)[1]
        connection = socket.create_connection(
            ("127.0.0.1", port), timeout=10, source_address=(self.address, 0)
        )
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.open.append(connection)
        return connection

    def ping(self, connection: socket.socket) -> bytes:
        """The status line that it gets; empty when it is closed."""
        try:
            connection.sendall(raw_request("GET", "/livez"))
            return connection.recv(10_000).partition(b"\r\n")[0]
        except ConnectionError:
            return b""

    def served(self) -> int:
        """How many get an answer; the others are forgotten."""
        answered, before = [], self.open
        for each in before:
            if self.ping(each).endswith(b" 200 OK"):
                answered.append(each)
            else:
                each.close()
        self.open = answered
        return len(answered)

    def close(self) -> None:
        for each in self.open:
            each.close()


@pytest.fixture
def clients(small: LiveServer) -> Iterator[Callable[[str], Clients]]:
    """Clients of an address; the server is empty before and after."""
    files = open_files(small)
    with ExitStack() as open_ones:

        def of(address: str) -> Clients:
            some = Clients(small, address)
            open_ones.callback(some.close)
            return some

        yield of
    eventually(lambda: open_files(small) <= files)


def test_one_address_gets_so_many_and_no_more(clients: Callable[[str], Clients]) -> None:
    many, other = clients("127.0.0.2"), clients("127.0.0.3")
    for _ in range(EACH):
        many.connect()
    assert many.served() == EACH
    assert b" 503 " in many.connect().recv(1000)
    assert other.ping(other.connect()).endswith(b" 200 OK")
    assert many.served() == EACH, "there was room for both"


def test_whoever_has_the_most_gives_one_to_those_who_have_fewer(
    clients: Callable[[str], Clients],
) -> None:
    many, few, late = clients("127.0.0.2"), clients("127.0.0.3"), clients("127.0.0.4")
    for _ in range(EACH):
        many.connect()
    for _ in range(ROOM - EACH):
        few.connect()
    assert (many.served(), few.served()) == (EACH, ROOM - EACH)
    for _ in range(3):
        assert late.ping(late.connect()).endswith(b" 200 OK")
    assert few.served() == ROOM - EACH
    assert late.served() == 3
    assert many.served() == EACH - 3


def test_what_is_being_answered_is_not_given_away(clients: Callable[[str], Clients]) -> None:
    many, late = clients("127.0.0.2"), clients("127.0.0.4")
    api = many.server.api()
    waiting = raw_request("GET", "/v2/queues/q/messages?wait=20&echo=true", api.headers)
    for _ in range(EACH):
        many.connect().sendall(waiting)
    others = clients("127.0.0.5")
    for _ in range(ROOM - EACH):
        assert others.ping(others.connect()).endswith(b" 200 OK")
    assert b" 503 " in late.connect().recv(1000), "all of theirs wait for an answer"
    poster = others.open[0]
    body = b'{"messages": [{"body": 1}]}'
    fields = {**api.headers, "Content-Length": str(len(body))}
    poster.sendall(raw_request("POST", "/v2/queues/q/messages", fields, body))
    assert b" 201 " in poster.recv(10_000)
    assert all(b" 200 OK" in each.recv(10_000) for each in many.open)
    assert late.ping(late.connect()).endswith(b" 200 OK")


def slow_reader(clients: Clients) -> None:
    """Somebody who asks for more than fits into buffers, and reads nothing."""
    clients.connect().sendall(raw_request("GET", "/openapi.json") * 200)


def listener(clients: Clients) -> None:
    """Somebody who does the same over a socket."""
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg==",
    }
    connection = clients.connect()
    connection.sendall(raw_request("GET", "/v2/websocket", upgrade))
    assert connection.recv(1000).startswith(b"HTTP/1.1 101 ")
    headers = clients.server.api().headers

    def asked(action: str, **body: object) -> bytes:
        request = {"action": action, "headers": headers, "body": {"queue_name": "q", **body}}
        return frame_bytes(TEXT, json.dumps(request).encode())

    connection.sendall(asked("message_post", messages=[{"body": 200_000 * "x"}]))
    connection.sendall(asked("message_list", echo=True) * 60)


@pytest.mark.parametrize("greedy", [slow_reader, listener])
def test_who_does_not_read_the_answers_keeps_nobody_out(
    clients: Callable[[str], Clients], greedy: Callable[[Clients], None]
) -> None:
    many, others, late = clients("127.0.0.2"), clients("127.0.0.3"), clients("127.0.0.4")
    for _ in range(EACH):
        greedy(many)
    for _ in range(ROOM - EACH):
        others.connect()
    assert others.served() == ROOM - EACH
    eventually(lambda: late.ping(late.connect()).endswith(b" 200 OK"))
    assert others.served() == ROOM - EACH


# -- in numbers ------------------------------------------------------------------------------------


class Seat:
    """A connection that is idle, or not."""

    def __init__(self, crowd: Crowd, where: str, leisure: float | None) -> None:
        self.place, self._leisure, self._crowd = where, leisure, crowd
        self.gone = False

    def leisure(self) -> float | None:
        return self._leisure

    def make_room(self) -> None:
        assert self._leisure is not None
        self._crowd.leave(self)
        self.gone = True


arrivals = st.lists(
    st.tuples(st.sampled_from("abcde"), st.none() | st.floats(0, 10), st.booleans()), max_size=60
)


def test_who_waits_to_be_refused_gives_way(shared_server: Callable[..., LiveServer]) -> None:
    server = shared_server(max_connections=4, host="0.0.0.0", allow_open=True, quota_requests=1)
    asked = raw_request("GET", "/v2/queues", {"X-Project-ID": "p", "Client-ID": str(uuid4())})
    many, one = Clients(server, "127.0.0.2"), Clients(server, "127.0.0.3")
    with closing(many), closing(one):
        for _ in range(4):
            connection = many.connect()
            connection.sendall(asked * 100)
            assert connection.recv(10_000)  # and it is to be told the same 99 times
        one.connect()
        assert one.served() == 1


@given(arrivals=arrivals, most=st.integers(1, 8), most_each=st.integers(0, 4))
def test_there_are_never_too_many_and_nobody_is_driven_out_by_one_who_has_more(
    arrivals: list[tuple[str, float | None, bool]], most: int, most_each: int
) -> None:
    crowd = Crowd(most, most_each)
    seats: list[Seat] = []

    def there(where: str) -> int:
        return sum(seat.place == where for seat in seats)

    for where, leisure, leaves in arrivals:
        if leaves and seats:
            crowd.leave(seats.pop(0))
            continue
        before = list(seats)
        seat = Seat(crowd, where, leisure)
        entered = crowd.enter(seat)
        driven_out = [each for each in before if each.gone]
        seats = [each for each in before if not each.gone]
        if entered:
            seats.append(seat)
        else:
            crowd.leave(seat)
        assert len(seats) <= most
        assert there(where) <= (most_each or most)
        assert len(driven_out) <= (entered and len(before) == most)
        for loser in driven_out:
            assert there(loser.place) + 1 > there(where)
            idle = [each.leisure() for each in before if each.place == loser.place]
            assert loser.leisure() == min(each for each in idle if each is not None)
        if not entered and there(where) < (most_each or most):
            assert len(seats) == most
            fewer = sum(each.place == where for each in seats) + 1
            places = len({*(each.place for each in seats), where})
            busy = [e.leisure() is None for e in seats if there(e.place) * places > most + 1]
            assert all(busy) or fewer * places > most


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%lo", "fe80::2%lo", True),
    ],
)
def test_what_counts_as_one_client(one: str, other: str, same: bool) -> None:
    assert (place(one) == place(other)) is same
