"""Connections: how long a client may take, and how much it may send before it says what it wants.

One sweep a second looks at all connections; nothing is armed for each request.
"""

import asyncio
import re
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from nusku.config import Settings
from nusku.http.request import DRAINED_BYTES_MAX

PIPELINED_MAX = 1000  # requests sent ahead on one connection

_IDLE = float("inf")
_VERSIONS = ("1.1", "1.0")


class Joined:
    """A transport that sends what is written in one go with one system call.

    uvicorn writes the head of an answer and its body apart, and uvloop would send each at once.
    The head waits here for the body; that of an answer in chunks does not wait, since its body
    may take its time.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._parts or (
            data.startswith((b"HTTP/1.1 2", b"HTTP/1.1 4", b"HTTP/1.1 5"))
            and b"transfer-encoding: chunked" not in data
        ):
            self._parts.append(data)
        elif data and not self._transport.is_closing():
            self._transport.write(data)

    def flush(self) -> None:
        if self._parts:
            if not self._transport.is_closing():
                self._transport.write(b"".join(self._parts))
            self._parts.clear()

    def close(self) -> None:
        self.flush()
        self._transport.close()


class _Dropped(list[tuple[bytes, bytes]]):
    """Where the fields behind a chunked body go: nothing that comes late may pass for a header."""

    def append(self, field: tuple[bytes, bytes]) -> None:
        """Forget it."""


async def _ask_late(app: Any, scope: Any, receive: Any, send: Any) -> None:
    """Falcon takes the first event of a request before it looks at it, and that would tell a
    client that asked first (Expect: 100-continue) to send a body which may yet be refused.
    """
    events = [{"type": "http.request", "body": b"", "more_body": True}]

    async def receive_late() -> Any:
        return events.pop() if events else await receive()

    await app(scope, receive_late, send)


_NO_HEADERS = _Dropped()
# Asking for another protocol makes the parser stop at the head; we speak this one only.
_UPGRADE = re.compile(rb"(\r\n)upgrade[ \t]*:", re.IGNORECASE)


def protocol(settings: Settings) -> type[HttpToolsProtocol]:
    """uvicorn's HTTP/1.1 protocol with the limits of these settings."""
    header_timeout, body_timeout = settings.header_timeout, settings.body_timeout
    write_timeout, head_max = settings.write_timeout, settings.max_header_size
    connections_max, keep_alive_timeout = settings.max_connections, settings.keep_alive_timeout
    # A chunk of one byte takes six on the wire.
    body_max = DRAINED_BYTES_MAX + 6 * max(
        settings.max_messages_post_size, settings.max_queue_metadata
    )

    class Protocol(HttpToolsProtocol):
        """``head_due`` and the like are when patience ends, by the loop's clock."""

        head_due = body_due = write_due = _IDLE
        head_bytes = body_bytes = unsent_bytes = 0
        running: RequestResponseCycle | None = None
        hopeless = False  # what comes is not HTTP; hang up when all that came before is answered

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            self.joined = Joined(transport)
            super().connection_made(self.joined)  # type: ignore[arg-type] # it has all they use
            if len(self.connections) > connections_max:
                transport.write(_BUSY)
                transport.close()
            self.head_due = self.loop.time() + header_timeout

        def connection_lost(self, exc: Exception | None) -> None:
            for cycle in (self.running, *(queued for queued, _ in self.pipeline)):
                if cycle is not None and not cycle.response_complete:
                    cycle.disconnected = True
                    cycle.message_event.set()
            self.pipeline.clear()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.hopeless:
                return
            if self.body_due is _IDLE:
                self.head_bytes += len(data)
                if self.head_bytes > head_max and self.head_too_large(data):
                    self.refuse(f"The request line and headers are limited to {head_max} bytes.")
                    return
                if b"pgrade" in data or b"PGRADE" in data:
                    head, end, rest = data.partition(b"\r\n\r\n")
                    data = _UPGRADE.sub(rb"\1x-upgrade:", head) + end + rest
            else:
                self.body_bytes += len(data)
                if self.body_bytes > body_max:
                    self.transport.abort()
                    return
            super().data_received(data)

        def head_too_large(self, data: bytes) -> bool:
            """What came may hold a body, too, or further requests: look where the head ends."""
            end = data.find(b"\r\n\r\n")
            return end < 0 or self.head_bytes - len(data) + end > head_max

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self.head_due = self.loop.time() + header_timeout

        def on_headers_complete(self) -> None:
            # The parser answers 400 to what is raised here.
            if not self.url.isascii():
                raise ValueError("the URL must be ASCII")
            if self.parser.get_http_version() not in _VERSIONS:
                raise ValueError("only HTTP/1.0 and 1.1 are spoken")
            if len(self.pipeline) >= PIPELINED_MAX:
                raise ValueError("too many requests were sent ahead")
            self.head_due, self.head_bytes, self.body_bytes = _IDLE, 0, 0
            self.body_due = self.loop.time() + body_timeout
            super().on_headers_complete()
            self.headers = _NO_HEADERS

        def on_message_complete(self) -> None:
            self.body_due = _IDLE
            super().on_message_complete()

        def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
            self.running = cycle
            if cycle.waiting_for_100_continue:
                app = partial(_ask_late, app)
            super()._start_asgi_task(cycle, app)

        def on_response_complete(self) -> None:
            # As uvicorn does it, but without a timer for each answer: the sweep sees to those
            # who keep a connection and don't use it.
            self.joined.flush()
            self.server_state.total_requests += 1
            if self.transport.is_closing():
                return
            self.flow.resume_reading()
            if self.pipeline:
                self._start_asgi_task(*self.pipeline.pop())
            elif self.hopeless:
                self.joined.close()
            elif self.head_due is _IDLE and self.body_due is _IDLE:
                self.head_due = self.loop.time() + keep_alive_timeout

        def send_400_response(self, msg: str) -> None:
            """Say that it is not HTTP; but what came before it is answered first, and alone."""
            broken_body = self.body_due is not _IDLE and not self.pipeline
            if broken_body and self.cycle is not None:
                self.cycle.disconnected = True  # it can't be served any more
                self.cycle.message_event.set()
            if not broken_body and self.running and not self.running.response_complete:
                self.hopeless = True
            elif not self.transport.is_closing():
                self.joined.write(_REFUSED % (len(msg) + 44, msg.encode()))
                self.joined.close()

        refuse = send_400_response

        def sweep(self, now: float) -> None:
            """Hang up on a client that takes too long, to send or to read."""
            unsent = self.transport.get_write_buffer_size()
            if not unsent:
                self.write_due = _IDLE
            elif self.write_due is _IDLE or unsent < self.unsent_bytes:
                self.write_due = now + write_timeout
            self.unsent_bytes = unsent
            if now >= self.write_due:
                self.transport.abort()
            elif now >= self.head_due or now >= self.body_due:
                self.joined.close()

    return Protocol


async def sweep_for_ever(connections: set[Any]) -> None:
    """Look after the connections of a server until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(1.0)
        now = loop.time()
        for connection in list(connections):
            connection.sweep(now)


_REFUSED = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b'content-length: %d\r\n\r\n{"title":"400 Bad Request","description":"%b"}'
)
_BUSY_BODY = (
    b'{"title":"Service temporarily unavailable","description":"There are too many connections.'
    b' Please try again in a few seconds."}'
)
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
    b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(_BUSY_BODY), _BUSY_BODY)
)
