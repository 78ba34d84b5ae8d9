"""Operations that wait for their turn, and the plainer ways of putting them together."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from nusku.errors import Unavailable
from nusku.storage.postgres.connections import Batch, Connections

T = TypeVar("T")


class Operation:
    """Something that somebody waits for; ``weight`` is about the rows that it touches."""

    __slots__ = ("future", "since", "weight")

    future: "asyncio.Future[Any]"

    def __init__(self, weight: int = 1) -> None:
        self.weight = weight
        self.since = 0.0

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Somebody waits from now on; or goes on to do so, when it is put back."""
        if not self.since:
            self.future = loop.create_future()
            self.since = loop.time()

    def answer(self, result: Any) -> None:
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Queue:
    """Operations in the order in which they came. What is not wanted any more, or has waited for
    longer than a server may take to answer, is left out before it is sent.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._waiting: deque[Any] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, operation: Operation) -> bool:
        """False, and answered, if it is not taken on."""
        operation.begin(self._connections.loop)
        error = self._connections.accepts()
        if error is not None:
            operation.fail(error)
            return False
        self._connections.waiting += 1
        self._waiting.append(operation)
        return True

    def peek(self) -> Any:
        """The next one; None when there is none."""
        while self._waiting:
            first = self._waiting[0]
            if first.future.done():
                self.pop()
            elif self._connections.too_old(first.since):
                self.pop().fail(Unavailable("The storage did not answer in time."))
            else:
                return first
        return None

    def pop(self) -> Any:
        self._connections.waiting -= 1
        return self._waiting.popleft()

    def refuse(self, error: Exception) -> None:
        while self._waiting:
            self.pop().fail(error)


class Single(Operation):
    """One call for itself; ``read`` makes the answer of its rows, or raises what it is."""

    __slots__ = ("arguments", "read", "statement")

    def __init__(
        self, statement: str, arguments: Sequence[Any], read: Callable[[list[Any]], Any]
    ) -> None:
        super().__init__()
        self.statement = statement
        self.arguments = arguments
        self.read = read


class _SingleBatch:
    """See :class:`nusku.storage.postgres.connections.Batch`."""

    size = 1

    def __init__(self, operation: Single, *, writes: bool) -> None:
        self._operation = operation
        self.statement = operation.statement
        self.writes = writes

    def args(self, env: list[int]) -> Sequence[Any]:
        return (env, *self._operation.arguments)

    def done(self, rows: list[Any]) -> None:
        try:
            self._operation.answer(self._operation.read(rows))
        except Exception as error:  # noqa: BLE001 - what it raises is the answer
            self._operation.fail(error)

    def fail(self, error: Exception) -> None:
        self._operation.fail(error)

    def split(self) -> Sequence[Batch]:
        return (self,)

    def over(self) -> None:
        pass


class Singles:
    """A source of operations that are done one at a time."""

    def __init__(self, connections: Connections, *, writes: bool) -> None:
        self.writes = writes
        self._connections = connections
        self._queue = Queue(connections)
        self.refuse = self._queue.refuse
        connections.attach(self)

    @property
    def ready(self) -> bool:
        return len(self._queue) > 0

    def take(self) -> Batch | None:
        if self._queue.peek() is None:
            return None
        return _SingleBatch(self._queue.pop(), writes=self.writes)

    def call(
        self,
        statement: str,
        arguments: Sequence[Any],
        read: Callable[[list[Any]], T],
    ) -> "asyncio.Future[T]":
        operation = Single(statement, arguments, read)
        if self._queue.put(operation):
            self._connections.wake()
        return operation.future


class Row(Operation):
    """One of many that are done by one call: its columns of the arguments."""

    __slots__ = ("columns", "read")

    def __init__(self, columns: Sequence[Any], read: Callable[[Any], Any], weight: int) -> None:
        super().__init__(weight)
        self.columns = columns
        self.read = read


class _ManyBatch:
    """See :class:`nusku.storage.postgres.connections.Batch`."""

    def __init__(self, source: "Many[Any]", rows: Sequence[Row]) -> None:
        self._source = source
        self._rows = rows
        self.statement = source.statement
        self.writes = source.writes
        self.size = len(rows)

    def args(self, env: list[int]) -> Sequence[Any]:
        return (env, *map(list, zip(*(row.columns for row in self._rows), strict=True)))

    def done(self, rows: list[Any]) -> None:
        answers = self._source.spread(rows, len(self._rows))
        for row, answer in zip(self._rows, answers, strict=True):
            try:
                row.answer(row.read(answer))
            except Exception as error:  # noqa: BLE001 - what it raises is the answer
                row.fail(error)

    def fail(self, error: Exception) -> None:
        for row in self._rows:
            row.fail(error)

    def split(self) -> Sequence[Batch]:
        return [_ManyBatch(self._source, (row,)) for row in self._rows]

    def over(self) -> None:
        pass


class Many(Generic[T]):
    """A source of operations of which one call does many; ``spread`` makes of its rows what each
    of so many operations is answered.
    """

    WEIGHT = 500

    def __init__(
        self,
        connections: Connections,
        statement: str,
        spread: Callable[[list[Any], int], Sequence[T]],
        *,
        writes: bool,
    ) -> None:
        self.statement = statement
        self.spread = spread
        self.writes = writes
        self._connections = connections
        self._queue = Queue(connections)
        self.refuse = self._queue.refuse
        connections.attach(self)

    @property
    def ready(self) -> bool:
        return len(self._queue) > 0

    def take(self) -> Batch | None:
        rows: list[Row] = []
        weight = 0
        while (row := self._queue.peek()) is not None:
            weight += row.weight
            if rows and weight > self.WEIGHT:
                break
            rows.append(self._queue.pop())
        return _ManyBatch(self, rows) if rows else None

    def call(self, columns: Sequence[Any], read: Callable[[T], Any], weight: int = 1) -> Any:
        """A future of what ``read`` makes of the answer."""
        row = Row(columns, read, weight)
        if self._queue.put(row):
            self._connections.wake()
        return row.future
