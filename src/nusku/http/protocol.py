"""Connections: how long a client may take, and how much it may send before it says what it wants.

One sweep a second looks at all connections; nothing is armed for each request.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nusku.config import Settings

_IDLE = float("inf")


class Joined:
    """A transport that sends what is written in one go with one system call.

    uvicorn writes the head of an answer and its body apart, and uvloop would send each at once.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self.flush)
        if data:
            self._parts.append(data)

    def flush(self) -> None:
        if self._parts:
            self._transport.write(b"".join(self._parts))
            self._parts.clear()

    def close(self) -> None:
        self.flush()
        self._transport.close()


def protocol(settings: Settings) -> type[HttpToolsProtocol]:
    """Uvicorn's HTTP/1.1 protocol with the limits of these settings."""
    header_timeout, body_timeout = settings.header_timeout, settings.body_timeout
    write_timeout, head_max = settings.write_timeout, settings.max_header_size
    connections_max = settings.max_connections

    class Protocol(HttpToolsProtocol):
        """``head_due`` and the like are when patience ends, by the loop's clock."""

        head_due = body_due = write_due = _IDLE
        head_bytes = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            self.joined = Joined(transport, self.loop)
            super().connection_made(self.joined)  # type: ignore[arg-type] # it has all they use
            if len(self.connections) > connections_max:
                transport.write(_BUSY)
                transport.close()
            self.head_due = self.loop.time() + header_timeout

        def data_received(self, data: bytes) -> None:
            if self.body_due is _IDLE:
                self.head_bytes += len(data)
                if self.head_bytes > head_max and self.head_too_large(data):
                    self.refuse(f"The request line and headers are limited to {head_max} bytes.")
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
            if not self.url.isascii():
                raise ValueError("the URL must be ASCII")  # the parser answers 400
            self.head_due, self.head_bytes = _IDLE, 0
            self.body_due = self.loop.time() + body_timeout
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self.body_due = _IDLE
            super().on_message_complete()

        def on_response_complete(self) -> None:
            self.joined.flush()
            super().on_response_complete()

        def pause_writing(self) -> None:
            self.write_due = self.loop.time() + write_timeout
            super().pause_writing()

        def resume_writing(self) -> None:
            self.write_due = _IDLE
            super().resume_writing()

        def refuse(self, why: str) -> None:
            """Answer a request that cannot be understood, and hang up."""
            if not self.transport.is_closing():
                self.send_400_response(why)

        def sweep(self, now: float) -> None:
            """Hang up on a client that takes too long."""
            if now >= self.write_due:
                self.transport.abort()
            elif now >= self.head_due or now >= self.body_due:
                self.transport.close()

    return Protocol


async def sweep_for_ever(connections: set[Any]) -> None:
    """Look after the connections of a server until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(1.0)
        now = loop.time()
        for connection in list(connections):
            connection.sweep(now)


_BUSY_BODY = (
    b'{"title":"Service temporarily unavailable","description":"There are too many connections.'
    b' Please try again in a few seconds."}'
)
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
    b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(_BUSY_BODY), _BUSY_BODY)
)
