"""A WebSocket (RFC 6455): frames in and out, and what a connection may take.

Messages are read by aiohttp's parser, which bounds them and what waits to be worked off. There is a
task only while there is work; a sweep once a second (``http/protocol.py``) sees to deadlines.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, cast

import structlog
from aiohttp import WSMsgType
from aiohttp._websocket.reader import WebSocketDataQueue
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import WebSocketError, WebSocketReader

from nusku.websocket.frames import (
    EXPIRED,
    GOING_AWAY,
    INTERNAL,
    NORMAL,
    POLICY,
    TOO_BIG,
    TRY_AGAIN,
    UNAUTHENTICATED,
)
from nusku.websocket.session import TOGETHER_BYTES_MAX, TOGETHER_MAX, Line, Session, Todo

log = structlog.get_logger("nusku.websocket")

AHEAD_BYTES = 65_536  # of requests that wait; then nothing more is read
OUTBOUND_MAX = 1_048_576  # bytes that wait to be read by a slow client when a notification comes
CONTROL_MAX, CONTROL_S = 100, 1.0  # pings and pongs in so much time
PING_S = 30.0  # of silence, so that nobody on the way takes the connection for dead
CLOSE_PATIENCE_S = 2.0  # for the client to close, too

_TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x81, 0x82, 0x88, 0x89, 0x8A
_NEVER = float("inf")


class Limits(NamedTuple):
    """Seconds and bytes."""

    message_max: int
    authenticate_s: float
    idle_s: float
    write_s: float


class Connection(asyncio.Protocol):
    """What the event loop calls, from the end of the handshake on.

    ``place`` is the address that it counts for, ``left`` is called when it is over.
    """

    def __init__(
        self,
        limits: Limits,
        session: Callable[[Line], Session],
        place: str,
    ) -> None:
        self.place = place
        self.left: Callable[[], None] = lambda: None
        self.transport: asyncio.Transport
        self.session = session(self)
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._queue = WebSocketDataQueue(cast(BaseProtocol, self), AHEAD_BYTES, loop=self._loop)
        self._reader = WebSocketReader(
            self._queue, limits.message_max, compress=False, decode_text=False
        )
        self._reading_paused = False  # aiohttp's queue asks for it
        self._work: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._finishing: asyncio.Task[None] | None = None
        self.drained: asyncio.Future[None] | None = None
        self._opened_s = self._heard_s = self._spoke_s = self._loop.time()
        self.lost = False
        self.closing = False
        self._leaving = False  # when what is being worked off is answered
        self._close_due = self._write_due = _NEVER
        self._unsent = 0
        self._controls, self._controls_since_s = 0, 0.0

    # -- what the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._heard_s = self._loop.time()
        broken, _ = self._reader.feed_data(data)
        if broken:
            self._fail()
        elif self._queue._buffer and self._work is None:
            self._start(self._closed_too() if self.closing else self._serve())

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        self.closing = self.lost = True
        self.resume_writing()
        self._end_session()
        self._finishing = self._loop.create_task(self._finish())

    async def _finish(self) -> None:
        """What is under way is carried out to its end, though nobody hears of it any more."""
        await asyncio.wait([task for task in (self._work, self._ending) if task is not None])
        self.left()

    def pause_writing(self) -> None:
        if self.drained is None:
            self.drained = self._loop.create_future()

    def resume_writing(self) -> None:
        if self.drained is not None:
            if not self.drained.done():
                self.drained.set_result(None)
            self.drained = None

    # -- what aiohttp's queue calls

    def pause_reading(self) -> None:
        self._reading_paused = True
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        self._reading_paused = False
        if not self.transport.is_closing():
            self.transport.resume_reading()

    # -- what the server calls

    def leisure(self) -> float | None:
        """See ``http.crowd``."""
        reads = self._write_due is _NEVER  # one that does not may keep its work waiting for ever
        busy = reads and (self._work is not None or self.session.listens)
        return None if busy else self._heard_s

    def make_room(self) -> None:
        self.left()
        self.transport.abort()

    def shutdown(self) -> None:
        """The server stops: what is being worked off is answered, and nothing else."""
        self._leaving = True
        if self._work is None:
            self.close(GOING_AWAY, "The server stops.")

    def sweep(self, now: float) -> None:
        """See to deadlines."""
        if self.lost:
            return
        unsent = self.transport.get_write_buffer_size()
        if not unsent:
            self._write_due = _NEVER
        elif self._write_due is _NEVER or unsent < self._unsent:
            self._write_due = now + self._limits.write_s
        self._unsent = unsent
        session = self.session
        if now >= self._write_due or now >= self._close_due:
            self.transport.abort()
        elif self.closing:
            pass
        elif not session.trusted and now - self._opened_s >= self._limits.authenticate_s:
            self.close(UNAUTHENTICATED, "Authenticate first.")
        elif not session.look(now):
            self.close(EXPIRED, "Authentication expired.")
        elif now - self._heard_s >= self._limits.idle_s:
            self.close(NORMAL, "Nothing was sent for too long.")
        elif now - max(self._heard_s, self._spoke_s) >= PING_S:
            self._write(_PING, b"")

    # -- in

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = self._loop.create_task(work)

    async def _serve(self) -> None:
        """Work off what has come."""
        try:
            while self._queue._buffer and not self.closing:
                todos: list[Todo] = []
                size, end = 0, None
                while self._queue._buffer and len(todos) < TOGETHER_MAX and end is None:
                    kind, data, _ = await self._queue.read()
                    if kind is WSMsgType.TEXT or kind is WSMsgType.BINARY:
                        todos.append(self.session.read(data, binary=kind is WSMsgType.BINARY))
                        size += len(data)
                        if size > TOGETHER_BYTES_MAX:
                            break
                    else:
                        end = self._control(kind, data)
                if todos:
                    await self.session.answer(todos)
                if self._leaving:
                    self.close(GOING_AWAY, "The server stops.")
                elif end is not None:
                    self._answer_close(end)
                if self.drained is not None:
                    await self.drained
        except Exception as error:
            log.error("unexpected error", connection=self.session.id, exc_info=error)
            self.close(INTERNAL, "Internal error.")
        finally:
            self._work = None

    def _control(self, kind: WSMsgType, data: Any) -> int | None:
        """Answer a ping; return the code of a close frame, 0 for one without."""
        if kind is WSMsgType.CLOSE:
            return int(data)
        now = self._loop.time()
        if now - self._controls_since_s > CONTROL_S:
            self._controls, self._controls_since_s = 0, now
        self._controls += 1
        if self._controls > CONTROL_MAX:
            self.close(POLICY, "Too many pings.")
        elif kind is WSMsgType.PING:
            self._write(_PONG, data)
        return None

    async def _closed_too(self) -> None:
        """After our close frame nothing counts but the other one."""
        while self._queue._buffer:
            kind, _, _ = await self._queue.read()
            if kind is WSMsgType.CLOSE:
                self.transport.close()
        self._work = None

    def _answer_close(self, code: int) -> None:
        if not self.closing:
            self._write(_CLOSE, code.to_bytes(2, "big") if code else b"")
            self.closing = True
        self.transport.close()

    def _fail(self) -> None:
        """What comes is not WebSocket, or too much at once."""
        problem = self._queue.exception()
        if self.closing or not isinstance(problem, WebSocketError):
            return
        text = "The message is too big." if problem.code == TOO_BIG else "This is not WebSocket."
        self.close(int(problem.code), text)

    # -- out

    def reply(self, data: bytes, binary: bool) -> None:
        """Write what was asked for: who does not read it is not served until that is read."""
        if not self.closing:
            self._write(_BINARY if binary else _TEXT, data)

    def tell(self, data: bytes, binary: bool) -> bool:
        """Write what others have posted, which cannot be held back; False if no more is taken."""
        if self.closing:
            return False
        if self.transport.get_write_buffer_size() > OUTBOUND_MAX:
            patience_s = self._limits.write_s  # until the client comes to where this stands
            self.close(TRY_AGAIN, "What is sent is not read fast enough.", patience_s)
            return False
        self._write(_BINARY if binary else _TEXT, data)
        return True

    def _write(self, head: int, data: bytes) -> None:
        size = len(data)
        if size < 126:
            start = bytes((head, size))
        elif size < 65_536:
            start = bytes((head, 126)) + size.to_bytes(2, "big")
        else:
            start = bytes((head, 127)) + size.to_bytes(8, "big")
        self._spoke_s = self._loop.time()
        self.transport.write(start + data)

    def close(self, code: int, reason: str, patience_s: float = CLOSE_PATIENCE_S) -> None:
        """Say why, and give the client a moment to close, too."""
        if self.closing:
            return
        self._write(_CLOSE, code.to_bytes(2, "big") + reason.encode())
        self.closing = True
        self._close_due = self._loop.time() + patience_s
        self._end_session()

    def _end_session(self) -> None:
        if self._ending is None:
            self._ending = self._loop.create_task(self.session.close())
