"""Looks at messages: a source of batches for ``read`` in read.sql."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from nusku.errors import Unavailable
from nusku.model import Message, QueueRef
from nusku.storage import Stale
from nusku.storage.postgres.connections import Batch, Connections
from nusku.storage.postgres.operations import Operation, Queue
from nusku.storage.postgres.work import Work, message_of

BATCH_WEIGHT = 1000
BUDGET = 10  # times that one operation goes on where there was nothing
HELD, DELAYED, ANYWAY = 1, 2, 4
PAGE, GET, CLAIMED, COUNT = 1, 2, 3, 4


class Look(Operation):
    """``read`` makes the answer of the time, what the server counted, and messages."""

    __slots__ = (
        "after",
        "budget",
        "claim",
        "flags",
        "limit",
        "positions",
        "read",
        "ref",
        "what",
        "without",
    )

    def __init__(
        self,
        what: int,
        ref: QueueRef,
        read: Callable[[int, Sequence[int], Sequence[Message]], Any],
        *,
        after: int = 0,
        limit: int = 0,
        flags: int = 0,
        without: str | None = None,
        claim: str | None = None,
        positions: Sequence[int] = (),
    ) -> None:
        super().__init__(limit or len(positions) or 4)
        self.what = what
        self.ref = ref
        self.read = read
        self.after = after
        self.limit = limit
        self.flags = flags
        self.without = without
        self.claim = claim
        self.positions = positions
        self.budget = BUDGET

    def columns(self) -> tuple[Any, ...]:
        ref = self.ref
        return (
            self.what, *ref.key, ref.generation, self.after, self.limit, self.flags, self.without,
            self.claim, self.budget,
        )  # fmt: skip


class Looks:
    """The source. What has to be put back before a look is an operation of ``work``."""

    writes = False

    def __init__(self, connections: Connections, statement: str, work: Work) -> None:
        self.statement = statement
        self.connections = connections
        self._work = work
        self._queue = Queue(connections)
        self.refuse = self._queue.refuse
        connections.attach(self)

    @property
    def ready(self) -> bool:
        return len(self._queue) > 0

    def put(self, look: Look) -> "asyncio.Future[Any]":
        if self._queue.put(look):
            self.connections.wake()
        return look.future

    def take(self) -> Batch | None:
        looks: list[Look] = []
        weight = 0
        while (look := self._queue.peek()) is not None:
            weight += look.weight
            if looks and weight > BATCH_WEIGHT:
                break
            looks.append(self._queue.pop())
        return LookBatch(self, looks) if looks else None

    def after_tidying(self, look: Look) -> None:
        """Look again when the queue has been tidied up."""

        def tidied(future: "asyncio.Future[Any]") -> None:
            error = future.exception() if not future.cancelled() else None
            if isinstance(error, Exception):
                look.fail(error)
            else:
                self.put(look)

        self._work.tidy(look.ref.key).add_done_callback(tidied)


class LookBatch:
    """See :class:`nusku.storage.postgres.connections.Batch`."""

    writes = False

    def __init__(self, looks: Looks, operations: Sequence[Look]) -> None:
        self._looks = looks
        self._operations = operations
        self.statement = looks.statement
        self.size = len(operations)

    def args(self, env: list[int]) -> Sequence[Any]:
        numbers: list[int] = []
        positions: list[int] = []
        for number, look in enumerate(self._operations, 1):
            numbers.extend([number] * len(look.positions))
            positions.extend(look.positions)
        columns = zip(*(look.columns() for look in self._operations), strict=True)
        return (env, *map(list, columns), numbers, positions)

    def done(self, rows: list[Any]) -> None:
        messages: dict[int, list[Message]] = {}
        damaged: set[int] = set()
        for row in rows:
            what, number = row[0], row[1]
            if what == 6:
                try:
                    messages.setdefault(number, []).append(message_of(row))
                except Unavailable:
                    damaged.add(number)
                continue
            if what == 1:
                self._looks.connections.saw(0, row[5])
                continue
            look = self._operations[number - 1]
            if what == 0:
                self._looks.connections.saw(row[2])
                if number in damaged:
                    look.fail(Unavailable("A stored message is damaged."))
                else:
                    look.answer(look.read(row[2], row[12], messages.get(number, [])))
            elif what == 2:
                look.fail(Stale())
            else:
                if what == 5:
                    look.budget *= 4
                look.flags |= ANYWAY
                self._looks.after_tidying(look)

    def fail(self, error: Exception) -> None:
        for look in self._operations:
            look.fail(error)

    def split(self) -> Sequence[Batch]:
        return [LookBatch(self._looks, (look,)) for look in self._operations]

    def over(self) -> None:
        pass
