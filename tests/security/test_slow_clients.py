"""Clients that take for ever: to say what they want, to send it, or to read the answer.

Each is hung up on when its time is over, whatever it does meanwhile, and the others notice nothing.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.live import Api, LiveServer, eventually, expect
from tests.security.support import (
    MIB,
    chunk,
    connect,
    cpu_seconds,
    fields_of,
    growth_watched,
    head,
    open_files,
    split_answers,
    still_serves,
)

pytestmark = pytest.mark.slow

DEADLINE_S = 2.0
GRACE_S = 2.0
CROWD = 500
DOCUMENT = b'{"messages": [{"body": "late"}]}'

Start = Callable[[socket.socket, Api], None]
Step = Callable[[socket.socket, int], None]


# -- kinds of slowness -----------------------------------------------------------------------------


def nothing(connection: socket.socket, turn: int) -> None:
    """Do nothing more."""


def say_nothing(connection: socket.socket, api: Api) -> None:
    """Connect only."""


def half_a_head(connection: socket.socket, api: Api) -> None:
    connection.send(b"GET /v2/queues HTTP/1.1\r\nHost: nusku\r\nX-A: b")


def drip_a_head(connection: socket.socket, turn: int) -> None:
    connection.send(b"\r\nX-%d: y" % turn)


def drip_empty_lines(connection: socket.socket, turn: int) -> None:
    connection.send(b"\r\n")


def post_head(api: Api, length: int, *more: tuple[bytes, bytes]) -> bytes:
    fields = [*fields_of(api), (b"Content-Length", b"%d" % length), *more]
    return head(b"POST", api.path("slow", "messages").encode(), fields)


def half_a_body(connection: socket.socket, api: Api) -> None:
    connection.send(post_head(api, 1_000) + DOCUMENT[:10])


def no_body(connection: socket.socket, api: Api) -> None:
    connection.send(post_head(api, 1_000))


def ask_and_send_nothing(connection: socket.socket, api: Api) -> None:
    connection.send(post_head(api, 1_000, (b"Expect", b"100-continue")))


def drip_a_body(connection: socket.socket, turn: int) -> None:
    connection.send(b" ")


def half_a_chunked_body(connection: socket.socket, api: Api) -> None:
    fields = [*fields_of(api), (b"Transfer-Encoding", b"chunked")]
    connection.send(head(b"POST", api.path("slow", "messages").encode(), fields) + chunk(b"{"))


def drip_chunks(connection: socket.socket, turn: int) -> None:
    connection.send(chunk(b" "))


def drip_an_extension(connection: socket.socket, turn: int) -> None:
    connection.send(b"5;x" if turn == 0 else b"x")


def drip_trailers(connection: socket.socket, turn: int) -> None:
    connection.send(b"0\r\n" if turn == 0 else b"X-%d: y\r\n" % turn)


def body_of_a_get(connection: socket.socket, api: Api) -> None:
    fields = [*fields_of(api), (b"Content-Length", b"1000")]
    connection.send(head(b"GET", b"/v2/queues", fields))


def refused_and_still_sending(connection: socket.socket, api: Api) -> None:
    connection.send(post_head(api, 300_000) + b"x")


def second_head(connection: socket.socket, api: Api) -> None:
    connection.send(head(b"GET", b"/livez") + b"GET /livez HTTP/1.1\r\nX-A: b")


def read_nothing(connection: socket.socket, api: Api) -> None:
    """Ask for large answers, and read none of them."""
    request = head(
        b"GET", api.path("big", "messages").encode() + b"?echo=true&limit=20", fields_of(api)
    )
    with contextlib.suppress(BlockingIOError):
        connection.send(request * 50)


def read_a_byte(connection: socket.socket, turn: int) -> None:
    connection.recv(1)


@dataclass(frozen=True)
class Kind:
    """A way to be slow: how it begins, and what it does every now and then."""

    name: str
    start: Start
    step: Step = nothing
    receive_buffer: int | None = None


HEADS = [
    Kind("says nothing", say_nothing),
    Kind("half a head", half_a_head),
    Kind("a dripping head", half_a_head, drip_a_head),
    Kind("dripping empty lines", say_nothing, drip_empty_lines),
    Kind("half a second head", second_head),
    Kind("a dripping second head", second_head, drip_a_head),
]
BODIES = [
    Kind("no body", no_body),
    Kind("half a body", half_a_body),
    Kind("a dripping body", half_a_body, drip_a_body),
    Kind("asks and sends nothing", ask_and_send_nothing),
    Kind("half a chunked body", half_a_chunked_body),
    Kind("dripping chunks", half_a_chunked_body, drip_chunks),
    Kind("a dripping chunk extension", half_a_chunked_body, drip_an_extension),
    Kind("dripping trailers", half_a_chunked_body, drip_trailers),
    Kind("a body that nobody asked for", body_of_a_get),
    Kind("a dripping body that nobody asked for", body_of_a_get, drip_a_body),
    Kind("refused and still sending", refused_and_still_sending, drip_a_body),
]
READERS = [
    Kind("reads nothing", read_nothing, receive_buffer=4_096),
    Kind("reads a byte at a time", read_nothing, read_a_byte, receive_buffer=4_096),
]
KINDS = HEADS + BODIES + READERS
every_kind = pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])


# -- watching --------------------------------------------------------------------------------------


@dataclass
class Crowd:
    """Slow connections of one kind, and when the server hung up on each.

    From one whose reader reads nothing no end is to be seen: it stands behind all that is unread.
    So of those, what counts is that the server has let go of their descriptors.
    """

    kind: Kind
    api: Api
    sockets: list[socket.socket] = field(default_factory=list)
    begun: list[float] = field(default_factory=list)
    ended: dict[int, float] = field(default_factory=dict)
    files_before: int = 0
    others: int = 0
    """Connections that others may open meanwhile."""

    def gather(self, count: int, pace_s: float = 0.0) -> None:
        self.files_before = open_files(self.api.server)
        for _ in range(count):
            connection = connect(self.api.server, receive_buffer=self.kind.receive_buffer)
            connection.setblocking(False)
            self.kind.start(connection, self.api)
            self.sockets.append(connection)
            self.begun.append(time.monotonic())
            time.sleep(pace_s)

    def watch(self, seconds: float, every_s: float = 0.25) -> None:
        """Be slow for so long, or until all were hung up on."""
        until, turn = time.monotonic() + seconds, 0
        while time.monotonic() < until and len(self.ended) < len(self.sockets):
            for n, connection in enumerate(self.sockets):
                if n in self.ended:
                    continue
                try:
                    self.kind.step(connection, turn)
                except BlockingIOError:
                    pass
                except OSError:
                    self.ended[n] = time.monotonic()
                    continue
                if self._hung_up(connection):
                    self.ended[n] = time.monotonic()
            turn += 1
            time.sleep(every_s)
            if self.kind in READERS and turn > 4:
                open_now = open_files(self.api.server) - self.files_before - self.others
                for n in range(len(self.sockets) - max(open_now, 0)):
                    self.ended.setdefault(n, time.monotonic())

    def _hung_up(self, connection: socket.socket) -> bool:
        """Whether the connection is at its end, without reading what a slow reader leaves unread."""
        poll = select.poll()
        poll.register(
            connection, select.POLLIN | select.POLLRDHUP | select.POLLHUP | select.POLLERR
        )
        for _, event in poll.poll(0):
            if event & (select.POLLHUP | select.POLLERR | select.POLLRDHUP):
                return True
        return False

    def insist_all_ended(self, deadline_s: float = DEADLINE_S) -> None:
        late = [n for n in range(len(self.sockets)) if n not in self.ended]
        assert not late, f"{len(late)} of {len(self.sockets)} were not hung up on"
        times = [self.ended[n] - begun for n, begun in enumerate(self.begun)]
        assert max(times) <= deadline_s + GRACE_S, f"{max(times):.1f} s"

    def disperse(self) -> None:
        for connection in self.sockets:
            connection.close()


@pytest.fixture
def crowd_of(impatient: LiveServer) -> Iterator[Callable[[Kind], Crowd]]:
    crowds: list[Crowd] = []

    def make(kind: Kind) -> Crowd:
        api = impatient.api()
        if kind in READERS:
            api.post_bodies("big", *["x" * 10_000] * 20)
        crowds.append(Crowd(kind, api))
        return crowds[-1]

    yield make
    for crowd in crowds:
        crowd.disperse()


class Normal:
    """Ordinary clients that go on working in the background, and count what went wrong."""

    def __init__(self, server: LiveServer, clients: int) -> None:
        self.done = 0
        self.slowest_s = 0.0
        self.wrong: list[str] = []
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(server.api(),), daemon=True)
            for _ in range(clients)
        ]

    def _work(self, api: Api) -> None:
        with httpx.Client(base_url=api.server.url, headers=api.headers, timeout=10) as client:
            n = 0
            while not self._over.is_set():
                n += 1
                started = time.monotonic()
                try:
                    posted = client.post("/v2/queues/q/messages", json={"messages": [{"body": n}]})
                    popped = client.delete("/v2/queues/q/messages?pop=1")
                    got = [message["body"] for message in popped.json()["messages"]]
                    if posted.status_code != 201 or got != [n]:
                        self.wrong.append(f"{posted.status_code} {popped.status_code} {got}")
                except (httpx.HTTPError, ValueError, KeyError) as error:
                    self.wrong.append(repr(error))
                self.slowest_s = max(self.slowest_s, time.monotonic() - started)
                self.done += 1
                time.sleep(0.05)

    def __enter__(self) -> Normal:
        for thread in self._threads:
            thread.start()
        return self

    def insist_undisturbed(self, within_s: float = 3) -> None:
        assert not self.wrong, self.wrong[:5]
        assert self.done > 50
        assert self.slowest_s < within_s, f"{self.slowest_s:.1f} s"

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


# -- one of each -----------------------------------------------------------------------------------


@every_kind
def test_a_slow_client_is_hung_up_on(kind: Kind, crowd_of: Callable[[Kind], Crowd]) -> None:
    crowd = crowd_of(kind)
    crowd.gather(2)
    crowd.watch(DEADLINE_S + GRACE_S + 1)
    crowd.insist_all_ended()
    expect(crowd.api.get("/v2/ping"), 204)
    assert "slow" not in crowd.api.names() or crowd.api.listed("slow") == []


def unsent_bytes(connection: socket.socket) -> int:
    """What the kernel holds of what the server has written to this client."""
    mine, theirs = connection.getsockname()[1], connection.getpeername()[1]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{theirs:04X}") and fields[2].endswith(f":{mine:04X}"):
            return int(fields[4].partition(":")[0], 16)
    return 0


def stall(connection: socket.socket, request: bytes, answer_bytes: int) -> None:
    """Ask, reading nothing, until the kernel takes no more from the server, and then no more.

    Less than one answer then waits in the server: too little for the loop to call the writer
    stalled, so nothing but the server's own care will ever end this connection.
    """
    connection.sendall(request * 60)
    time.sleep(0.5)
    before = unsent_bytes(connection)
    for _ in range(200):
        connection.sendall(request)
        time.sleep(0.02)
        now = unsent_bytes(connection)
        if now - before < answer_bytes // 2:
            return
        before = now
    raise AssertionError("the kernel takes everything")


@pytest.mark.parametrize(
    "ending", ["nothing more", "wants to close", "half a request", "half a body"]
)
def test_a_little_that_stays_unread_does_not_hold_the_connection_for_ever(
    ending: str, shared_server: Callable[..., LiveServer]
) -> None:
    server = shared_server(header_timeout=2, body_timeout=2, write_timeout=2, keep_alive_timeout=2)
    api = server.api()
    api.post_bodies("q", *["x" * 10_000] * 3)
    target = api.path("q", "messages").encode() + b"?echo=true"
    request = head(b"GET", target, fields_of(api))
    last = {
        "nothing more": b"",
        "wants to close": head(b"GET", b"/livez", [(b"Connection", b"close")]),
        "half a request": b"GET /livez HTTP/1.1\r\nX-A",
        "half a body": post_head(api, 1_000) + b"{",
    }[ending]
    baseline = open_files(server)
    connections = [connect(server, receive_buffer=2_048) for _ in range(3)]
    try:
        for connection in connections:
            # One that is hung up on before that is let go as well.
            with contextlib.suppress(OSError):
                stall(connection, request, answer_bytes=30_000)
                connection.sendall(last)
        deadline = time.monotonic() + 2 * DEADLINE_S + GRACE_S
        while (left := open_files(server) - baseline) > 0 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert left <= 0, f"{left} of {len(connections)} connections are still held"
    finally:
        for connection in connections:
            connection.close()


def test_a_connection_that_is_never_used_again_is_closed(
    shared_server: Callable[..., LiveServer],
) -> None:
    server = shared_server(keep_alive_timeout=1)
    with connect(server) as connection:
        connection.sendall(head(b"GET", b"/livez"))
        started, received = time.monotonic(), b""
        while got := connection.recv(65_536):
            received += got
        assert 0.5 < time.monotonic() - started < 1 + GRACE_S
    assert [answer.status for answer in split_answers(received)[0]] == [200]


def test_a_client_that_is_only_not_fast_is_served(impatient: LiveServer) -> None:
    """Somebody who takes a second for each part is within every deadline."""
    api = impatient.api()
    data = post_head(api, len(DOCUMENT)) + DOCUMENT
    middle = data.index(b"\r\n\r\n")
    with connect(impatient) as connection:
        for part in (data[:20], data[20:middle], data[middle : middle + 10], data[middle + 10 :]):
            connection.sendall(part)
            time.sleep(0.6)
        answers, _, _ = split_answers(connection.recv(65_536))
    assert [answer.status for answer in answers] == [201]
    assert api.listed("slow") == ["late"]


def test_a_client_that_waits_for_messages_is_not_slow(impatient: LiveServer) -> None:
    api = impatient.api()
    started = time.monotonic()
    expect(api.claim("q", "?wait=6"), 204)
    assert time.monotonic() - started > 5.5
    expect(api.list_messages("q", "?wait=5"), 200)


def test_a_waiting_client_that_sends_its_body_first_is_not_slow(impatient: LiveServer) -> None:
    api = impatient.api()
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(api.claim("q", "?wait=10", ttl=60)))
    thread.start()
    time.sleep(DEADLINE_S + 2)
    api.post_bodies("q", "at last")
    thread.join()
    assert [message["body"] for message in expect(answers[0], 201)["messages"]] == ["at last"]


def test_an_answer_that_is_read_slowly_but_steadily_in_parts_is_whole(
    impatient: LiveServer,
) -> None:
    """A reader that always takes enough to go on gets everything, past every deadline."""
    api = impatient.api()
    for _ in range(4):
        api.post_bodies("q", *["x" * 50_000] * 5)
    target = api.path("q", "messages").encode() + b"?echo=true&limit=20"
    received, started = b"", time.monotonic()
    with connect(impatient, receive_buffer=65_536) as connection:
        connection.sendall(head(b"GET", target, fields_of(api)) * 8)
        while time.monotonic() - started < 30:
            answers, _, _ = split_answers(received)
            if len(answers) == 8:
                break
            part = connection.recv(200_000)
            assert part, f"cut off after {len(received)} bytes"
            received += part
            time.sleep(0.05)
    assert [answer.status for answer in split_answers(received)[0]] == [200] * 8
    assert time.monotonic() - started > DEADLINE_S, "too fast to show anything"


# -- five hundred of each --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [HEADS[0], HEADS[2], BODIES[1], BODIES[5]], ids=lambda kind: kind.name
)
def test_five_hundred_slow_clients_disturb_nobody(
    kind: Kind, crowd_of: Callable[[Kind], Crowd], impatient: LiveServer
) -> None:
    crowd = crowd_of(kind)
    baseline = open_files(impatient)
    with Normal(impatient, 5) as normal, growth_watched(impatient) as growth:
        crowd.gather(CROWD)
        crowd.watch(DEADLINE_S + GRACE_S + 1)
    crowd.insist_all_ended()
    normal.insist_undisturbed()
    crowd.disperse()
    eventually(lambda: open_files(impatient) <= baseline + 5, within_s=5)
    assert growth.peak_bytes < 40 * MIB
    still_serves(impatient)


@pytest.mark.timeout(300)
def test_five_hundred_clients_that_read_nothing_disturb_nobody(
    private_server: Callable[..., LiveServer],
) -> None:
    # They come one after the other, and may stay until all are there: before it stalls, each has
    # two or three megabytes written to it, and that is work, not slowness.
    deadline_s, pace_s = 45.0, 0.03
    server = private_server(write_timeout=deadline_s)
    api = server.api()
    api.post_bodies("big", *["x" * 10_000] * 20)
    crowd = Crowd(READERS[0], api, others=5)
    baseline = open_files(server)
    try:
        with Normal(server, crowd.others) as normal, growth_watched(server) as growth:
            crowd.gather(CROWD, pace_s)
            eventually(lambda: open_files(server) - baseline > CROWD * 0.9, within_s=30)
            # How soon is for the tests of a few: to write more than a gigabyte to all of them takes
            # a busy machine its time, and none is slow before.
            crowd.watch(4 * deadline_s)
        assert len(crowd.ended) == CROWD, "all were hung up on"
        normal.insist_undisturbed(within_s=deadline_s / 3)  # nobody waits until the crowd has gone
        eventually(lambda: open_files(server) <= baseline + 5, within_s=5)
        assert growth.peak_bytes < CROWD * MIB, "for each its answer, in a few copies"
        still_serves(server)
    finally:
        crowd.disperse()


# -- too many connections --------------------------------------------------------------------------


@pytest.fixture
def small(private_server: Callable[..., LiveServer]) -> LiveServer:
    return private_server(max_connections=20)


def refused(connection: socket.socket) -> bool:
    """Whether a new connection was turned away: with a 503, or by closing it."""
    connection.settimeout(5)
    try:
        connection.sendall(head(b"GET", b"/livez"))
        received = b""
        while got := connection.recv(65_536):
            received += got
            answers, _, _ = split_answers(received)
            if answers:
                break
    except ConnectionError:
        return True
    answers, _, _ = split_answers(received)
    if not answers:
        return True
    if answers[0].status == 503:
        assert answers[0].headers.get("connection") == "close"
        assert answers[0].parsed()["description"].endswith("Please try again in a few seconds.")
        return True
    assert answers[0].status == 200
    return False


def test_connections_over_the_limit_are_turned_away(small: LiveServer) -> None:
    api = small.api()
    expect(api.get("/v2/ping"), 204)
    held = [connect(small) for _ in range(19)]
    try:
        eventually(lambda: "nusku_connections 20.0" in api.get("/metrics").text)
        for _ in range(50):
            with connect(small) as connection:
                assert refused(connection)
        # Those that were there before go on working.
        expect(api.create("q"), 201)
        held[0].sendall(head(b"GET", b"/livez"))
        assert split_answers(held[0].recv(65_536))[0][0].status == 200
    finally:
        for connection in held:
            connection.close()

    def let_in() -> bool:
        with connect(small) as connection:
            return not refused(connection)

    eventually(let_in, within_s=5)
    expect(api.get("/v2/ping"), 204)


def test_a_crowd_that_is_turned_away_and_stays_takes_no_room(small: LiveServer) -> None:
    """Whoever is turned away and doesn't hang up is hung up on, and no descriptor is lost."""
    api = small.api()
    expect(api.get("/v2/ping"), 204)
    baseline = open_files(small)
    held = [connect(small) for _ in range(200)]
    try:
        eventually(lambda: open_files(small) <= baseline + 25, within_s=5)
        expect(api.get("/v2/ping"), 204)
    finally:
        for connection in held:
            connection.close()
    eventually(lambda: open_files(small) <= baseline, within_s=5)
    still_serves(small)


def test_slow_clients_do_not_keep_a_server_from_stopping(tmp_path: Path) -> None:
    server = LiveServer(tmp_path, shutdown_timeout=2).start()
    api = server.api()
    api.post_bodies("big", *["x" * 10_000] * 20)
    crowds = [Crowd(kind, api) for kind in KINDS]
    for crowd in crowds:
        crowd.gather(3)
    time.sleep(0.5)
    started = time.monotonic()
    server.stop()
    assert time.monotonic() - started < 2 + 3
    for crowd in crowds:
        crowd.disperse()


def test_idle_connections_use_no_processor(server: LiveServer) -> None:
    """A thousand of them cost less than a tenth of a processor."""
    crowd = Crowd(HEADS[0], server.api())
    try:
        crowd.gather(1_000)
        time.sleep(1)
        before, started = cpu_seconds(server), time.monotonic()
        time.sleep(2)
        assert (cpu_seconds(server) - before) / (time.monotonic() - started) < 0.1
    finally:
        crowd.disperse()
