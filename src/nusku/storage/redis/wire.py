"""One connection: bytes out, replies in. It is closed at the first thing that goes wrong.

Nothing is ever sent a second time here, and nothing waits for longer than it is allowed to: an
answer that does not come in time closes the connection, so whoever asked knows that the outcome
is unknown, and no late answer is taken for another.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from hiredis import ProtocolError, Reader, ReplyError

__all__ = ["Lost", "ReplyError", "Wire"]

Done = Callable[[list[Any] | None], None]
"""Called with the replies, or with None when the connection was lost before all had come."""

_NOTHING = object()


class Lost(Exception):
    """The connection failed, or could not be made. The text says why."""


class Wire(asyncio.Protocol):
    """A connection to one server, which speaks RESP2.

    ``closed`` says why, as soon as it is of no use any more; ``gone`` is set when the socket is.
    """

    def __init__(self, push: Callable[[Any], None] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = Reader(notEnoughData=_NOTHING)
        self._asked: deque[tuple[int, Done, asyncio.TimerHandle]] = deque()
        self._replies: list[Any] = []
        self._push = push
        self.address = ("", 0)
        self.closed: asyncio.Future[str] = self._loop.create_future()
        self.gone = asyncio.Event()

    @classmethod
    async def connect(
        cls,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        timeout_s: float,
        push: Callable[[Any], None] | None = None,
    ) -> "Wire":
        """Raises Lost. With ``push`` all that comes unasked is given to it."""
        try:
            async with asyncio.timeout(timeout_s):
                _, wire = await asyncio.get_running_loop().create_connection(
                    lambda: cls(push), host, port, ssl=tls
                )
        except TimeoutError:
            raise Lost("no answer") from None
        except (OSError, ssl.SSLError) as error:
            raise Lost(error.strerror or type(error).__name__) from error
        wire.address = (host, port)
        return wire

    def send(self, data: bytes, replies: int, timeout_s: float, done: Done) -> None:
        """Send commands that have so many replies."""
        if self._transport is None or self.closed.done():
            self._loop.call_soon(done, None)
            return
        late = self._loop.call_later(timeout_s, self.close, "no answer in time")
        self._asked.append((replies, done, late))
        self._transport.write(data)

    async def ask(self, *commands: bytes, timeout_s: float) -> list[Any]:
        """The replies to these commands, errors among them. Raises Lost."""
        answer: asyncio.Future[list[Any] | None] = self._loop.create_future()

        def done(replies: list[Any] | None) -> None:
            if not answer.done():
                answer.set_result(replies)

        self.send(b"".join(commands), len(commands), timeout_s, done)
        replies = await answer
        if replies is None:
            raise Lost(self.closed.result())
        return replies

    def close(self, why: str = "closed") -> None:
        """Give it up: whoever waits is told at once."""
        if self.closed.done():
            return
        self.closed.set_result(why)
        if self._transport is not None:
            self._transport.abort()
        asked, self._asked = self._asked, deque()
        for _, done, late in asked:
            late.cancel()
            done(None)

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are no subclasses of it.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(str(exc) if exc else "closed by the server")
        self.gone.set()

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not _NOTHING and not self.closed.done():
                if self._asked:
                    self._received(reply)
                elif self._push is not None:
                    self._push(reply)
                else:
                    self.close("an answer that nobody asked for")
        except ProtocolError as error:
            self.close(f"answers in a strange language ({error})")

    def _received(self, reply: Any) -> None:
        replies = self._replies
        replies.append(reply)
        number, done, late = self._asked[0]
        if len(replies) == number:
            self._asked.popleft()
            self._replies = []
            late.cancel()
            done(replies)
