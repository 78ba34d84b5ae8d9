"""Connections: how long a client may take, and how much it may send before it says what it wants.

One sweep a second looks at all connections; nothing is armed for each request.
"""

import asyncio
import re
import typing
from collections.abc import Mapping
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from nusku.config import Settings
from nusku.http.crowd import Crowd, place
from nusku.http.pacing import REFUSED_AFTER_S, Pacing, Refusal
from nusku.http.request import DRAINED_BYTES_MAX

WEBSOCKET_PATH = b"/v2/websocket"
PIPELINED_MAX = 1000  # requests sent ahead on one connection

_IDLE = float("inf")
_AFTER_THE_IDLE_S = 1e6
_VERSIONS = ("1.1", "1.0")


class Joined:
    """A transport that sends what is written in one go with one system call.

    uvicorn writes the head of an answer and its body apart, and uvloop would send each at once.
    The head waits here for the body; that of an answer in chunks does not wait, since its body
    may take its time.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)

    def write(self, data: bytes) -> None:
        if self._parts or (
            data.startswith((b"HTTP/1.1 2", b"HTTP/1.1 4", b"HTTP/1.1 5"))
            and b"transfer-encoding: chunked" not in data
        ):
            self._parts.append(data)
        elif data and not self.transport.is_closing():
            self.transport.write(data)

    def flush(self) -> None:
        if self._parts:
            if not self.transport.is_closing():
                self.transport.write(b"".join(self._parts))
            self._parts.clear()

    def close(self) -> None:
        self.flush()
        self.transport.close()


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
# Asking for another protocol makes the parser stop at the head; there is one other that we speak.
_UPGRADE = re.compile(rb"(\r\n)upgrade[ \t]*:", re.IGNORECASE)
# A whole line: a head may come in pieces.
_TO_ANOTHER = re.compile(
    rb"\r\nupgrade[ \t]*:[ \t]*+(?!websocket[ \t]*\r\n)[^\r\n]*\r\n", re.IGNORECASE
)


class Upgrades(typing.Protocol):
    """Who takes connections over that are to speak WebSocket."""

    def open(
        self, head: Mapping[bytes, bytes], address: str, place: str
    ) -> tuple[bytes, Any | None]:
        """What is answered, and the protocol that goes on, unless it is refused.

        That has what uvicorn, ``sweep_for_ever`` and the crowd ask of a connection, and calls ``left``
        when it is over.
        """
        ...


def protocol(
    settings: Settings, pacing: Pacing, upgrades: Upgrades | None = None
) -> type[HttpToolsProtocol]:
    """uvicorn's HTTP/1.1 protocol with the limits of these settings."""
    rates = pacing.rates
    header_timeout, body_timeout = settings.header_timeout, settings.body_timeout
    write_timeout, head_max = settings.write_timeout, settings.max_header_size
    keep_alive_timeout = settings.keep_alive_timeout
    crowd = Crowd(settings.max_connections, settings.max_connections_per_address)
    # A chunk of one byte takes six on the wire.
    body_max = DRAINED_BYTES_MAX + 6 * max(
        settings.max_messages_post_size, settings.max_queue_metadata
    )

    class Protocol(HttpToolsProtocol):
        """``head_due`` and the like are when patience ends, by the loop's clock."""

        head_due = body_due = write_due = _IDLE
        head_bytes = body_bytes = unsent_bytes = 0
        running: RequestResponseCycle | None = None
        place = ""
        hopeless = False  # what comes is not HTTP; hang up when all that came before is answered
        switching = False  # the head asks for WebSocket
        refusing = False  # the refusal of a request is due soon

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            self.joined = Joined(transport)
            super().connection_made(self.joined)  # type: ignore[arg-type] # it has all they use
            self.place = place(self.client[0]) if self.client else ""
            if not crowd.enter(self):
                crowd.leave(self)  # at once: nobody shall have to make room for it any more
                transport.write(_BUSY)
                transport.close()
            self.head_due = self.loop.time() + header_timeout

        def connection_lost(self, exc: Exception | None) -> None:
            crowd.leave(self)
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
                    if not self.may_be_handshake(head, data) or _TO_ANOTHER.search(head + end[:2]):
                        data = _UPGRADE.sub(rb"\1x-upgrade:", head) + end + rest
            else:
                self.body_bytes += len(data)
                if self.body_bytes > body_max:
                    self.transport.abort()
                    return
            super().data_received(data)
            if self.switching:
                self.switch(data.partition(b"\r\n\r\n")[2])

        def may_be_handshake(self, head: bytes, data: bytes) -> bool:
            """Whether a piece of a head, with a header "upgrade" in it, can belong to one."""
            if self.head_bytes == len(data):
                return self.is_for_websocket(head.partition(b" ")[2].partition(b" ")[0])
            # The target may end in this piece.
            return self.is_for_websocket(self.url) or WEBSOCKET_PATH.startswith(self.url)

        def is_for_websocket(self, url: bytes) -> bool:
            """Whether WebSocket is spoken there: at its path, and anywhere on a port of its own."""
            if self.server is not None and self.server[1] == settings.websocket_port:
                return True
            return url.partition(b"?")[0] == WEBSOCKET_PATH

        def is_handshake(self) -> bool:
            """Whether the head is one, and nothing else is under way."""
            return (
                upgrades is not None
                and self._get_upgrade() == b"websocket"
                and self.parser.get_method() == b"GET"
                and self.is_for_websocket(self.url)
                and not self.pipeline
                and (self.running is None or self.running.response_complete)
                and not any(
                    name in {b"content-length", b"transfer-encoding"} for name, _ in self.headers
                )
            )

        def _should_upgrade(self) -> bool:
            return self.switching

        def handle_websocket_upgrade(self) -> None:
            """Nothing: ``data_received`` does, which has what came behind the head."""

        def switch(self, rest: bytes) -> None:
            """Let another protocol have the connection."""
            assert upgrades is not None  # noqa: S101 - is_handshake has seen to it
            client = self.client[0] if self.client else ""
            answer, connection = upgrades.open(dict(self.headers), client, self.place)
            transport = self.joined.transport
            transport.write(answer)
            if connection is None:
                transport.close()
                return
            connections = self.connections

            def left() -> None:
                crowd.leave(connection)
                connections.discard(connection)

            crowd.leave(self)
            connections.discard(self)
            crowd.enter(connection)
            connections.add(connection)
            connection.left = left
            connection.connection_made(transport)
            transport.set_protocol(connection)
            if rest:
                connection.data_received(rest)

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
            if self.parser.should_upgrade() and self.is_handshake():
                self.switching = True
                return
            self.body_due = self.loop.time() + body_timeout
            super().on_headers_complete()
            self.headers = _NO_HEADERS

        def on_message_complete(self) -> None:
            self.body_due = _IDLE
            if self.switching:
                return
            super().on_message_complete()

        def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
            self.running = cycle
            if rates.limited and (refusal := pacing.refusal(cycle.scope)) is not None:
                # What comes meanwhile waits in the socket, and takes no room here.
                self.flow.pause_reading()
                self.refusing = True
                self.loop.call_later(REFUSED_AFTER_S, self.turn_away, cycle, refusal)
                return
            if cycle.waiting_for_100_continue:
                app = partial(_ask_late, app)
            super()._start_asgi_task(cycle, app)

        def turn_away(self, cycle: RequestResponseCycle, refusal: Refusal) -> None:
            """Answer a request as uvicorn would, without a task."""
            self.refusing = False
            if cycle.disconnected:
                return
            cycle.response_started = cycle.response_complete = True
            cycle.body.clear()
            headers = self.server_state.default_headers
            end = b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n"
            body = b"" if cycle.scope["method"] == "HEAD" else refusal.body
            lines = [b"%b: %b\r\n" % header for header in headers]
            self.joined.write(b"".join((refusal.head, *lines, end, body)))
            if not cycle.keep_alive:
                self.joined.close()
            self.on_response_complete()

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

        def leisure(self) -> float | None:
            if self.write_due is not _IDLE:
                # It does not read. An answer may be lost, so these go last.
                return self.write_due + 2 * _AFTER_THE_IDLE_S
            if self.refusing:
                return self.loop.time() + _AFTER_THE_IDLE_S  # nothing is done for it
            unanswered = self.running is not None and not self.running.response_complete
            if self.pipeline or (unanswered and self.body_due is _IDLE):
                return None
            # With half a body nothing has been done yet, but those who do nothing go first.
            return min(self.head_due, self.body_due + _AFTER_THE_IDLE_S)

        def make_room(self) -> None:
            crowd.leave(self)
            self.transport.abort()

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
            elif now >= self.head_due or now >= self.body_due or self.transport.is_closing():
                self.hang_up()

        def hang_up(self) -> None:
            """Close the connection when all is sent; a client is not waited for to agree with that,
            as it would be with TLS.
            """
            self.joined.close()
            encryption = self.transport.get_extra_info("uvloop.sslproto")
            below = encryption.connection if encryption else self.transport
            if not (self.transport.get_write_buffer_size() or below.get_write_buffer_size()):
                self.transport.abort()

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
