"""A few connections to the server that take requests in turns, each timed from when it was due."""

import asyncio

from benchmarks.generator import Connection, open_connections
from benchmarks.soak.timings import Timings
from benchmarks.wire import Answer, Target, WrongAnswerError


class NoAnswerError(Exception):
    """The request may have been carried out, or not."""


class Door:
    """Requests beyond the number of connections wait their turn, and that is part of their time."""

    def __init__(self, timings: Timings) -> None:
        self._timings = timings
        self._free: asyncio.Queue[Connection] = asyncio.Queue()
        self._all: list[Connection] = []

    async def open(self, target: Target, connections: int) -> None:
        """Connect. Raises OSError."""
        self._all = await open_connections([target], connections)
        for connection in self._all:
            self._free.put_nowait(connection)

    def close(self) -> None:
        """Cut all connections."""
        for connection in self._all:
            connection.close()

    async def ask(self, kind: str, request: bytes, due: float | None = None) -> Answer:
        """The answer; with `due` its time is noted. Raises NoAnswerError, also for a 5xx."""
        connection = await self._free.get()
        try:
            answer = await connection.ask(request)
        except (OSError, TimeoutError, WrongAnswerError) as error:
            connection.close()  # the next request reopens it
            raise NoAnswerError(f"{kind}: {type(error).__name__} {error}") from None
        finally:
            self._free.put_nowait(connection)
        if due is not None:
            self._timings.note(kind, due)
        status, body = answer
        if status >= 500:
            raise NoAnswerError(f"{kind}: status {status}: {body[:200]!r}")
        return answer
