"""The receiver farm: HTTP servers that take notifications, well or badly, and remember them all.

    with Farm() as farm:
        url = farm.url("/fail/2")            # 500 twice, then 200
        url = farm.url("/ok", door="tls")    # with a certificate of farm.ca_file
        ...
        first, second, third = farm.wait_for(3)

What happens is chosen by the path. What stands behind the words below is up to the test, and has a
count and a record of its own: `/fail/2/a` and `/fail/2/b` fail twice each.

    /ok                    200                      /status/418          that status
    /fail/3                3 × 500, then 200        /fail/3/429          3 × 429, then 200
    /hang                  no answer, until farm.release()
    /slow/0.2              200 after that many seconds
    /drip                  the head of an answer, one byte every 50 ms, without end
    /drip-body             200, and then so the body
    /huge                  200 and a body without end, as fast as it goes
    /large/100000          200 and a body of that many bytes
    /endless-headers       a head without end
    /continue              100 Continue without end
    /chatter               200, and then further answers, unasked and without end
    /reset                 RST when the request has been read
    /half                  half of a head, then the connection is closed
    /cut                   200, a part of the body, then the connection is closed
    /close                 200 with Connection: close
    /stale                 200 and the promise to keep the connection; the next request on it gets no
                           answer, it is closed
    /early                 413 as soon as the head is there; the body is not read
    /redirect/307?to=URL   that redirect
    /retry-after/503?value=120    that status, with this Retry-After
    /cookie                200 with Set-Cookie
    /gzip                  200 with a body that says it is compressed and is not
    /garbage               something that is not HTTP

Doors are listeners of their own; each is opened when its first URL is asked for:

    plain                            HTTP
    tls                              a good certificate, for 127.0.0.1, ::1 and localhost
    wrong-host, expired              certificates of the same CA, for another host and for last year
    self-signed                      of no CA
    reset                            RST as soon as somebody has connected
    deaf                             accepts and never reads

Anything else: `farm.on("/mine", behaviour)`, an async function that is given an `Exchange`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import parse_qs, urlencode, urlsplit

from tests.notify.certificates import Certificates

T = TypeVar("T")

DRIP_S = 0.05
CHATTER_PAUSE_S = 0.1
PATIENCE_S = 20.0
HEAD_BYTES_MAX = 262_144
TLS_HELLO = b"\x16"


@dataclass(frozen=True)
class Received:
    """A request, as it came. Names of headers are in lower case."""

    time: float
    """Wall clock, in seconds."""
    door: str
    connection: int
    """The number of the connection, counted over all doors from 1."""
    method: str
    path: str
    """With its query."""
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Accepted:
    """A connection."""

    time: float
    door: str
    number: int
    peer: str


@dataclass
class Exchange:
    """One request on one connection, in the hands of a behaviour."""

    farm: Farm
    request: Received
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    arguments: list[str]
    """The rest of the path, split at slashes."""
    seen: int
    """How many requests came for this very path before."""
    earlier: int
    """How many came on this connection before."""
    keep: bool = field(default=True)
    """Whether the connection goes on."""

    @property
    def query(self) -> dict[str, str]:
        return {k: v[0] for k, v in parse_qs(urlsplit(self.request.path).query).items()}

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def answer(self, status: int = 200, body: bytes = b"ok", **headers: str) -> None:
        """A whole answer; underscores in names of headers become hyphens."""
        if status in {204, 304}:
            body = b""
        self.send(head(status, len(body), headers) + body)

    async def endlessly(self, piece: bytes, pause_s: float = 0.0) -> None:
        """Send this until the other end has had enough."""
        self.keep = False
        while not self.farm.closing.is_set():
            self.send(piece)
            await self.writer.drain()  # raises when the other end is gone
            if pause_s:
                await asyncio.sleep(pause_s)

    def reset(self) -> None:
        """Hang up in the rudest way."""
        self.keep = False
        reset(self.writer)


Behaviour = Callable[[Exchange], Awaitable[None]]


def head(status: int, length: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {length}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def reset(writer: asyncio.StreamWriter) -> None:
    connected = writer.get_extra_info("socket")
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


# -- behaviours ------------------------------------------------------------------------------------


async def ok(to: Exchange) -> None:
    to.answer()


async def status(to: Exchange) -> None:
    to.answer(int(to.arguments[0]))


async def fail(to: Exchange) -> None:
    times, *rest = to.arguments
    wrong = int(rest[0]) if rest and rest[0].isdigit() else 500
    to.answer(wrong if to.seen < int(times) else 200)


async def hang(to: Exchange) -> None:
    gone = asyncio.ensure_future(to.reader.read(1))
    freed = asyncio.ensure_future(to.farm.freed.wait())
    try:
        await asyncio.wait([gone, freed], return_when=asyncio.FIRST_COMPLETED)
        if freed.done():
            to.answer()
        to.keep = False
    finally:
        for task in (gone, freed):
            task.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await task


async def slow(to: Exchange) -> None:
    await asyncio.sleep(float(to.arguments[0]))
    to.answer()


async def drip(to: Exchange) -> None:
    for byte in b"HTTP/1.1 200 OK\r\n":
        to.send(bytes([byte]))
        await asyncio.sleep(DRIP_S)
    await to.endlessly(b"X", DRIP_S)


async def drip_body(to: Exchange) -> None:
    to.send(head(200, 1_000_000, {}))
    await to.endlessly(b".", DRIP_S)


async def huge(to: Exchange) -> None:
    to.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    await to.endlessly(b"10000\r\n" + b"." * 0x10000 + b"\r\n")


async def large(to: Exchange) -> None:
    to.answer(200, b"." * int(to.arguments[0]))


async def endless_headers(to: Exchange) -> None:
    to.send(b"HTTP/1.1 200 OK\r\n")
    await to.endlessly(b"X-Header: %b\r\n" % (b"x" * 1000))


async def continues(to: Exchange) -> None:
    await to.endlessly(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


async def chatter(to: Exchange) -> None:
    to.answer()
    await asyncio.sleep(CHATTER_PAUSE_S)  # the connection is idle by then
    await to.endlessly(head(200, 0, {}) * 100)


async def reset_after(to: Exchange) -> None:
    to.reset()


async def half(to: Exchange) -> None:
    to.send(b"HTTP/1.1 200 OK\r\nContent-Le")
    to.keep = False


async def cut(to: Exchange) -> None:
    to.send(head(200, 1000, {}) + b"only this")
    to.keep = False


async def close(to: Exchange) -> None:
    to.answer(Connection="close")
    to.keep = False


async def stale(to: Exchange) -> None:
    if to.earlier:
        to.keep = False
    else:
        to.answer()


async def redirect(to: Exchange) -> None:
    to.answer(int(to.arguments[0]), Location=to.query["to"])


async def retry_after(to: Exchange) -> None:
    to.answer(int(to.arguments[0]), Retry_After=to.query["value"])


async def cookie(to: Exchange) -> None:
    to.answer(Set_Cookie="session=1; Path=/")


async def gzip(to: Exchange) -> None:
    to.answer(body=b"this is not compressed", Content_Encoding="gzip")


async def garbage(to: Exchange) -> None:
    to.send(b"\x00\x01 220 mail.example.com ESMTP\r\n\r\n")
    to.keep = False


BEHAVIOURS: dict[str, Behaviour] = {
    "ok": ok,
    "status": status,
    "fail": fail,
    "hang": hang,
    "slow": slow,
    "drip": drip,
    "drip-body": drip_body,
    "huge": huge,
    "large": large,
    "endless-headers": endless_headers,
    "continue": continues,
    "chatter": chatter,
    "reset": reset_after,
    "half": half,
    "cut": cut,
    "close": close,
    "stale": stale,
    "early": ok,  # answered before there is an exchange
    "redirect": redirect,
    "retry-after": retry_after,
    "cookie": cookie,
    "gzip": gzip,
    "garbage": garbage,
}


# -- the farm --------------------------------------------------------------------------------------


@cache
def certificates() -> Certificates:
    """One CA for the whole run: keys take a moment to make."""
    return Certificates()


class Farm:
    """A loop in a thread of its own, with a listener for each door in use.

    All methods are for the test's thread. `host`: the address to listen on, `127.0.0.1` or `::1` or
    any other of this machine; `port`: that of the plain door, 0 for a free one.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.host = host
        self._port = port
        self._changed = threading.Condition()
        self._requests: list[Received] = []
        self._connections: list[Accepted] = []
        self._open = 0
        self._counts: Counter[str] = Counter()
        self._own: dict[str, Behaviour] = {}
        self._doors: dict[str, asyncio.Server] = {}
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="farm", daemon=True)
        self.freed = asyncio.Event()
        self.closing = asyncio.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        self._door("plain")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    # What tests ask for

    @property
    def port(self) -> int:
        """That of the plain door."""
        return self._door("plain")

    @property
    def ca_file(self) -> Path:
        """The CA that the TLS doors' certificates are of: for SSL_CERT_FILE."""
        return certificates().ca_file

    def url(self, path: str = "/ok", *, door: str = "plain", host: str = "", **query: str) -> str:
        """Where to send to. `host` replaces the address, by a name that means it."""
        scheme = "http" if door in {"plain", "reset", "deaf"} else "https"
        shown = host or (f"[{self.host}]" if ":" in self.host else self.host)
        asked = f"?{urlencode(query)}" if query else ""
        return f"{scheme}://{shown}:{self._door(door)}{path}{asked}"

    def on(self, path: str, behaviour: Behaviour) -> None:
        """Behave so at this path (without a query) from now on; `receivers.ok` is one, too."""
        with self._changed:
            self._own[path] = behaviour

    def release(self) -> None:
        """Let all who hang have their answer, from now on at once."""
        self._loop.call_soon_threadsafe(self.freed.set)

    @property
    def requests(self) -> list[Received]:
        """All that came until now, in order."""
        with self._changed:
            return list(self._requests)

    @property
    def connections(self) -> list[Accepted]:
        """All that were accepted until now."""
        with self._changed:
            return list(self._connections)

    @property
    def open(self) -> int:
        """How many connections are open."""
        with self._changed:
            return self._open

    def to(self, path: str) -> list[Received]:
        """The requests that came for a path that starts so."""
        return [request for request in self.requests if request.path.startswith(path)]

    def wait_for(self, n: int, timeout: float = PATIENCE_S, path: str = "/") -> list[Received]:
        """Wait until there are so many requests (for a path that starts so); return all of them.

        Raises AssertionError when there are not so many in time.
        """
        self.wait_until(lambda: len(self.to(path)) >= n, timeout, f"{n} requests for {path}")
        return self.to(path)

    def wait_until(
        self, condition: Callable[[], bool], timeout: float = PATIENCE_S, what: str = ""
    ) -> None:
        """Wait for something that requests and connections coming and going can make true."""
        with self._changed:
            came = self._changed.wait_for(condition, timeout)
        assert came, (
            f"no {what or 'such thing'} within {timeout} s; {len(self._requests)} requests,"
            f" {len(self._connections)} connections, the last: {self._requests[-3:]}"
        )

    def forget(self) -> None:
        """Start with no requests and no connections behind; counts start anew, too."""
        with self._changed:
            self._requests.clear()
            self._connections.clear()
            self._counts.clear()

    def hang_up(self) -> None:
        """Close all connections; new ones are taken as before."""
        self._call(self._hang_up())
        self.wait_until(lambda: self.open == 0, what="end of all connections")

    # In the loop's thread

    def _door(self, door: str) -> int:
        with self._changed:
            server = self._doors.get(door)
        if server is None:
            server = self._call(self._listen(door))
            with self._changed:
                self._doors[door] = server
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def _listen(self, door: str) -> asyncio.Server:
        context: ssl.SSLContext | None = None
        if door not in {"plain", "reset", "deaf"}:
            context = certificates().context(door)

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._connection(door, reader, writer)

        return await asyncio.start_server(
            connected,
            self.host,
            self._port if door == "plain" else 0,
            ssl=context,
            limit=HEAD_BYTES_MAX,
            backlog=4096,
        )

    async def _close(self) -> None:
        self.closing.set()
        self.freed.set()
        for server in self._doors.values():
            server.close()
        for _ in range(3):  # who was let in just now gets a transport first, which can be closed
            await asyncio.sleep(0)
        await self._hang_up()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _hang_up(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _connection(
        self, door: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        peer = str(writer.get_extra_info("peername")[0])
        with self._changed:
            number = len(self._connections) + 1
            self._connections.append(Accepted(time.time(), door, number, peer))
            self._open += 1
            self._changed.notify_all()
        self._writers.add(writer)
        try:
            if door == "reset":
                reset(writer)
            elif door == "deaf":
                writer.transport.pause_reading()  # type: ignore[attr-defined]  # it is a _SelectorTransport
                await self.closing.wait()
            else:
                await self._serve(door, number, reader, writer)
        except (OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # the other end is gone, or never spoke HTTP, or the farm is closing
        finally:
            self._writers.discard(writer)
            writer.close()
            with suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()
            with self._changed:
                self._open -= 1
                self._changed.notify_all()

    async def _serve(
        self,
        door: str,
        number: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        earlier = 0
        keep = True
        while keep:
            start = await reader.readexactly(1)
            if start == TLS_HELLO:
                writer.write(head(400, 0, {}))
                return
            first, headers = parsed(start + await reader.readuntil(b"\r\n\r\n"))
            method, path, _ = first.split(" ", 2)
            early = path.startswith("/early")
            if early:
                writer.write(head(413, 0, {}))
                await writer.drain()
            body = b"" if early else await reader.readexactly(int(headers["content-length"]))
            request = Received(time.time(), door, number, method, path, headers, body)
            bare = urlsplit(path).path
            with self._changed:
                self._requests.append(request)
                seen = self._counts[path]
                self._counts[path] += 1
                own = self._own.get(bare)
                self._changed.notify_all()
            if early:
                return
            word, *arguments = bare.strip("/").split("/")
            exchange = Exchange(self, request, reader, writer, arguments, seen, earlier)
            await (own or BEHAVIOURS.get(word, not_found))(exchange)
            await writer.drain()
            earlier += 1
            keep = exchange.keep


async def not_found(to: Exchange) -> None:
    to.answer(404)


def parsed(text: bytes) -> tuple[str, dict[str, str]]:
    """The first line, and the headers, of a head."""
    first, *lines = text.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return first, {name.lower(): value.strip() for name, _, value in pairs}
