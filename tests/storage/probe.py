"""Counting what SQLite does.

Work is counted in instructions of its virtual machine, not in seconds: one row that is looked at
costs ten or more of them.
"""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

SMALL = 40_000  # instructions: what an operation may cost whatever the size of the queue
LONGEST = 150_000  # what one statement may cost: about 10 ms, in which nothing else runs


class Probe:
    """Counts what SQLite does while it is told to watch."""

    GRAIN = 100

    def __init__(self) -> None:
        self.connections: list[sqlite3.Connection] = []
        self.statements: dict[str, None] = {}
        self.work = 0
        self.longest = 0
        self._current = 0

    def tick(self) -> int:
        self.work += self.GRAIN
        self._current += self.GRAIN
        self.longest = max(self.longest, self._current)
        return 0

    def begins(self, statement: str) -> None:
        self.work += self.GRAIN // 10
        self._current = 0
        self.statements[statement] = None

    @asynccontextmanager
    async def watch(self, at_most: int, longest: int = LONGEST) -> AsyncIterator[None]:
        """The operation inside costs at most so many instructions, all its statements together,
        and none of them more than ``longest``.
        """
        self.work = self.longest = 0
        for connection in self.connections:
            connection.set_progress_handler(self.tick, self.GRAIN)
            connection.set_trace_callback(self.begins)
        try:
            yield
        finally:
            for connection in self.connections:
                connection.set_progress_handler(None, 0)
                connection.set_trace_callback(None)
        assert self.work > 0, "nothing was watched"
        assert self.work <= at_most
        assert self.longest <= longest
