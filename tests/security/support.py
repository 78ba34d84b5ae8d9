"""What the security tests share: bytes on a socket, what came back, and what the server spends.

Everything here is written to be pointed at a server that misbehaves: nothing waits for ever, and
a connection that the server closes in the middle of a write is an outcome like any other.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.live import PATCH_TYPE, Api, LiveServer

MIB = 1 << 20
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
CHUNK_BYTES = 65_536


# -- what the server spends ------------------------------------------------------------------------


def memory_bytes(server: LiveServer) -> int:
    """What the process holds in memory now."""
    fields = Path(f"/proc/{server.process.pid}/statm").read_text().split()
    return int(fields[1]) * PAGE_BYTES


def cpu_seconds(server: LiveServer) -> float:
    """The processor time that the process has used. Unlike time on the clock, it does not depend
    on what else the machine does.
    """
    tasks = Path(f"/proc/{server.process.pid}/task")
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9


def open_files(server: LiveServer) -> int:
    """How many file descriptors the process has open."""
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


@dataclass
class Growth:
    """How much the process grew between the ends of a block, at its worst."""

    peak_bytes: int = 0


@contextlib.contextmanager
def growth_watched(server: LiveServer) -> Iterator[Growth]:
    """Watch the memory of the process while the block runs; the figure is there afterwards.

    The kernel's own high-water mark is reset and read, so that no peak is missed.
    """
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")
    before, growth = memory_bytes(server), Growth()
    yield growth
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    peak_kib = next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]
    growth.peak_bytes = int(peak_kib) * 1024 - before


# -- bytes on a socket -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """One final answer on the wire; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def parsed(self) -> Any:
        return json.loads(self.body)


@dataclass
class Exchange:
    """What became of a connection: all that came back, and how it ended."""

    received: bytes = b""
    sent_bytes: int = 0
    closed: bool = False
    """Whether the server ended it, in whatever way, before our patience did."""
    seconds: float = 0.0
    answers: list[Answer] = field(default_factory=list)
    interim: list[int] = field(default_factory=list)
    """Statuses of the 1xx answers."""
    rest: bytes = b""
    """What came and is no complete answer."""

    @property
    def statuses(self) -> list[int]:
        return [answer.status for answer in self.answers]


def address_of(server: LiveServer) -> tuple[str, int]:
    parts = urlsplit(server.url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def connect(server: LiveServer, *, receive_buffer: int | None = None) -> socket.socket:
    """A blocking socket; with a small receive buffer the server's writes stall early."""
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(10)
    connection.connect(address_of(server))
    return connection


def converse(
    server: LiveServer,
    data: bytes | Iterable[bytes],
    *,
    patience_s: float = 3.0,
    finals: int | None = None,
) -> Exchange:
    """Send, reading at the same time, until the server closes, or has given ``finals`` answers.

    ``data`` may be endless: sending stops when the server closes or ``patience_s`` is over. Once
    everything is sent, as much patience again is left for what comes back.
    """
    exchange, started = Exchange(), time.monotonic()
    pieces = iter([data] if isinstance(data, bytes) else data)
    with connect(server) as connection:
        connection.setblocking(False)
        waiting: bytes | None = b""
        deadline = started + patience_s
        while (left := deadline - time.monotonic()) > 0:
            while waiting == b"":
                waiting = next(pieces, None)
                if waiting is None:
                    deadline = time.monotonic() + patience_s
            readable, writable, _ = select.select(
                [connection], [connection] if waiting else [], [], left
            )
            try:
                if readable:
                    got = connection.recv(CHUNK_BYTES)
                    if not got:
                        exchange.closed = True
                        break
                    exchange.received += got
                    if finals is not None and _finals(exchange.received) >= finals:
                        break
                if writable and waiting:
                    sent = connection.send(waiting)
                    exchange.sent_bytes += sent
                    waiting = waiting[sent:]
            except ConnectionError:
                exchange.closed = True
                break
    exchange.seconds = time.monotonic() - started
    exchange.answers, exchange.interim, exchange.rest = split_answers(exchange.received)
    return exchange


def _finals(received: bytes) -> int:
    return len(split_answers(received)[0])


def split_answers(
    data: bytes, *, heads_only: bool = False
) -> tuple[list[Answer], list[int], bytes]:
    """The complete final answers in these bytes, the statuses of the interim ones, and the rest.

    With ``heads_only`` an answer may have none of the bytes that it tells of, as those to HEAD do.
    """
    answers: list[Answer] = []
    interim: list[int] = []
    while data:
        head, end, rest = data.partition(b"\r\n\r\n")
        if not end:
            break
        first, *lines = head.split(b"\r\n")
        version, _, status_text = first.partition(b" ")
        assert version == b"HTTP/1.1", f"this is no answer: {data[:200]!r}"
        status = int(status_text[:3])
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(b":")
            headers[name.decode("latin-1").lower()] = value.strip().decode("latin-1")
        if status < 200:
            interim.append(status)
            data = rest
            continue
        bodiless = heads_only and (not rest or rest.startswith(b"HTTP/1.1 "))
        if status in {204, 304} or bodiless:
            body, data = b"", rest
        elif headers.get("transfer-encoding") == "chunked":
            unchunked = _unchunked(rest)
            if unchunked is None:
                break
            body, data = unchunked
        else:
            length = int(headers.get("content-length", "0"))
            if len(rest) < length:
                break
            body, data = rest[:length], rest[length:]
        answers.append(Answer(status, headers, body))
    return answers, interim, data


def _unchunked(data: bytes) -> tuple[bytes, bytes] | None:
    body = b""
    while True:
        size_text, end, data = data.partition(b"\r\n")
        if not end:
            return None
        size = int(size_text, 16)
        if len(data) < size + 2:
            return None
        body, data = body + data[:size], data[size + 2 :]
        if size == 0:
            return body, data


Fields = Sequence[tuple[bytes, bytes]]


def fields_of(api: Api) -> list[tuple[bytes, bytes]]:
    """The header fields that make a request this client's."""
    return [(name.encode(), value.encode()) for name, value in api.headers.items()]


def head(method: bytes, target: bytes, fields: Fields = ()) -> bytes:
    """The head of a request with exactly these fields, beside Host."""
    lines = [method + b" " + target + b" HTTP/1.1", b"Host: nusku"]
    lines += [name + b": " + value for name, value in fields]
    return b"\r\n".join([*lines, b"", b""])


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    """One chunk of a chunked body."""
    return b"%x%b\r\n%b\r\n" % (len(data), extension, data)


LAST_CHUNK = b"0\r\n\r\n"


def still_serves(server: LiveServer) -> None:
    """Insist that an ordinary client is served, and soon."""
    started = time.monotonic()
    api = server.api()
    assert api.get("/v2/ping").status_code == 204
    assert api.post("health", {"body": "x"}).status_code == 201
    assert api.popped("health") == ["x"]
    assert time.monotonic() - started < 5


# -- the routes that take a body -------------------------------------------------------------------


@dataclass(frozen=True)
class Route:
    """A route that takes a body, and how any JSON value gets into a legal document for it."""

    name: str
    method: str
    below: str
    """What follows the path of the queue; ``{claim}`` stands for a claim's id."""
    before: bytes
    after: bytes
    content_type: str = "application/json"

    def framed(self, value: bytes) -> bytes:
        """A document that is legal here if the value is legal JSON."""
        return self.before + value + self.after

    @property
    def depth(self) -> int:
        """How deep in such a document the value is."""
        return sum(self.before.count(c) for c in (b"{", b"[")) - sum(
            self.before.count(c) for c in (b"}", b"]")
        )


ROUTES = [
    Route("put", "PUT", "", b'{"fuzz": ', b"}"),
    Route(
        "patch",
        "PATCH",
        "",
        b'[{"op": "add", "path": "/metadata/fuzz", "value": ',
        b"}]",
        PATCH_TYPE,
    ),
    Route("post", "POST", "/messages", b'{"messages": [{"body": ', b"}]}"),
    Route("claim", "POST", "/claims", b'{"ttl": 60, "fuzz": ', b"}"),
    Route("renew", "PATCH", "/claims/{claim}", b'{"ttl": 60, "fuzz": ', b"}"),
    Route("purge", "POST", "/purge", b'{"resource_types": ["messages"], "fuzz": ', b"}"),
]
TOPIC_ROUTES = [route for route in ROUTES if "claims" not in route.below]
