"""The one connection that writes, and group commit.

Operations that arrive while a transaction is under way share the next. Their SQL runs on the
event loop: a few microseconds each, too short to be worth a hand-over. The commit waits for the
disk in a thread of its own, and the loop goes on serving meanwhile. A batch with long work in it,
and writing the log back into the file, run in that thread as a whole. Answers leave after the
commit.
"""

import asyncio
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

import structlog

from nusku.clock import Clock
from nusku.errors import NuskuError, StoreFull, Unavailable
from nusku.metrics import Metrics
from nusku.storage import Stale, Taken

T = TypeVar("T")

log = structlog.get_logger("nusku.storage")

BATCH_WEIGHT = 512  # rows touched by one transaction, roughly; bounds how long the loop is held
HEAVY = 256  # an operation that weighs more runs in the thread
ALONE = BATCH_WEIGHT + 1  # an operation that weighs this much has a transaction of its own
CHECKPOINT_COMMITS = 500  # commits after which the log is written back
BACKLOG = 20_000  # operations that wait; more are refused, so that a stuck disk can't eat memory

# After these the file or the disk can't be trusted, so the store is given up: a failed fsync may
# have dropped pages that a second attempt would report as written.
_FATAL = {
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
}


class Again(Exception):
    """Raised by an operation that has not answered yet: run it once more, with this weight."""

    def __init__(self, weight: int) -> None:
        super().__init__()
        self.weight = weight


class Unit(Protocol):
    """What shares the transaction with the operations and keeps state in memory beside it."""

    def flush(self) -> None:
        """Write what was put off until the end of the transaction."""

    def forget(self) -> None:
        """The transaction was rolled back: read everything anew."""


class _Waiting:
    """An operation and the future of its caller."""

    __slots__ = ("error", "future", "operation", "result", "weight")

    def __init__(
        self, operation: Callable[[], Any], future: "asyncio.Future[Any]", weight: int
    ) -> None:
        self.operation = operation
        self.future = future
        self.weight = weight
        self.result: Any = None
        self.error: BaseException | None = None


class Connection:
    """Runs operations in order, many to a transaction.

    ``now_ms`` is the time of the transaction under way: read once, never back.
    """

    def __init__(
        self, db: sqlite3.Connection, clock: Clock, metrics: Metrics, last_ms: int
    ) -> None:
        self.db = db
        self.now_ms = last_ms
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._unit: Unit | None = None
        self._clock = clock
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Waiting] = deque()
        self._busy = False
        self._closed = False
        self._commits = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="nusku-sqlite", daemon=True)
        self._thread.start()

    def attach(self, unit: Unit) -> None:
        """Let a unit take part in every transaction."""
        self._unit = unit

    def run(self, operation: Callable[[], T], weight: int = 1) -> "asyncio.Future[T]":
        """Do it in the next transaction; the future resolves when that is durable.

        The operation may raise NuskuError, Stale or Taken before it writes. Anything else rolls the
        transaction back, and the others in it are done again without it.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        if self._closed or len(self._waiting) >= BACKLOG:
            future.set_exception(Unavailable("The storage is closed or overloaded."))
            return future
        self._waiting.append(_Waiting(operation, future, weight))
        if not self._busy:
            self._busy = True
            self._idle.clear()
            self._loop.call_soon(self._cycle)
        return future

    async def close(self) -> None:
        """Finish what waits, then stop the thread. The caller closes the database."""
        await self._idle.wait()
        self._closed = True
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    # One transaction after the other; _busy stays true from the first to the last.

    def _cycle(self) -> None:
        if self._commits >= CHECKPOINT_COMMITS:
            self._commits = 0
            self._jobs.put(self._checkpoint)
            return
        batch: list[_Waiting] = []
        weight, waiting = 0, self._waiting
        while waiting and (not batch or weight + waiting[0].weight <= BATCH_WEIGHT):
            one = waiting.popleft()
            if not one.future.cancelled():
                batch.append(one)
                weight += one.weight
        if not batch:
            self._rest()
        elif weight > BATCH_WEIGHT or any(one.weight > HEAVY for one in batch):
            self._jobs.put(lambda: self._whole(batch))
        elif self._execute(batch):
            self._jobs.put(lambda: self._finish(batch))
        else:
            self._answer(batch)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _whole(self, batch: list[_Waiting]) -> None:
        if self._execute(batch):
            self._commit(batch)
        self._loop.call_soon_threadsafe(self._answer, batch)

    def _finish(self, batch: list[_Waiting]) -> None:
        self._commit(batch)
        self._loop.call_soon_threadsafe(self._answer, batch)

    def _checkpoint(self) -> None:
        try:
            self.db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error as error:
            self._undo([], error)
        self._loop.call_soon_threadsafe(self._cycle)

    def _execute(self, batch: list[_Waiting]) -> bool:
        """Run the operations; True when a commit has to follow."""
        db = self.db
        try:
            before = db.total_changes
            db.execute("BEGIN")
            self.now_ms = max(self.now_ms, self._clock())
            for one in batch:
                try:
                    one.result = one.operation()
                except (NuskuError, Stale, Taken, Again) as error:
                    one.error = error
            if self._unit is not None:
                self._unit.flush()
            if db.total_changes != before:
                return True
            db.execute("COMMIT")
        except BaseException as error:  # noqa: BLE001 - whatever it was, callers must hear of it
            self._undo(batch, error)
        return False

    def _commit(self, batch: list[_Waiting]) -> None:
        started = time.perf_counter()
        try:
            self.db.execute("COMMIT")
        except BaseException as error:  # noqa: BLE001 - as above
            self._undo(batch, error)
        else:
            self._commits += 1
            self._metrics.commits.add(time.perf_counter() - started)
            self._metrics.batches.add(len(batch))

    def _undo(self, batch: list[_Waiting], error: BaseException) -> None:
        """Nobody in the batch gets a success; the healthy ones are done again, one by one."""
        try:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
        except sqlite3.Error as second:
            error = second if _fatal(second) else error
        if self._unit is not None:
            self._unit.forget()
        if _fatal(error):
            for one in batch:
                one.error = Unavailable("The storage failed.")
            self._loop.call_soon_threadsafe(self.fail, f"{type(error).__name__}: {error}")
        elif len(batch) != 1:
            for one in batch:
                one.error = None
                if self._execute([one]):
                    self._commit([one])
        else:
            batch[0].error = _told(error)

    def _answer(self, batch: list[_Waiting]) -> None:
        again = []
        for one in batch:
            if isinstance(one.error, Again):
                one.weight, one.error = one.error.weight, None
                again.append(one)
            elif one.future.cancelled():
                pass
            elif one.error is not None:
                one.future.set_exception(one.error)
            else:
                one.future.set_result(one.result)
        self._waiting.extend(again)
        if self._waiting:
            self._loop.call_soon(self._cycle)
        else:
            self._rest()

    def _rest(self) -> None:
        self._busy = False
        self._idle.set()

    def fail(self, why: str) -> None:
        """Give the store up: nothing that waits, or comes, is done any more."""
        self._closed = True
        while self._waiting:
            one = self._waiting.popleft()
            if not one.future.done():
                one.future.set_exception(Unavailable("The storage failed."))
        if not self.failed.done():
            self.failed.set_result(why)


def _code(error: BaseException) -> int | None:
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else int(code) & 0xFF


def _fatal(error: BaseException) -> bool:
    return _code(error) in _FATAL


def _told(error: BaseException) -> BaseException:
    if _code(error) == sqlite3.SQLITE_FULL:
        return StoreFull("The disk is full.")
    log.error("operation failed", exc_info=error)
    return Unavailable("The storage could not do this.")
