"""Group commit over a few connections, and what is said when one of them fails.

What waits is taken from *sources* in *batches*: a batch is one call of a function of ours, which
is one transaction and one round trip. While it is under way others gather. Nobody else waits while
a connection is lost, and nobody is told success whose commit was not seen.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from typing import Any, Protocol

import asyncpg
import structlog

from nusku.clock import Clock
from nusku.errors import NuskuError, StoreFull, StoreRefused, Unavailable
from nusku.metrics import Metrics
from nusku.storage import StoreOptions
from nusku.storage.postgres.address import Address
from nusku.storage.postgres.link import (
    CONNECT_S,
    UNREACHABLE,
    Link,
    Warned,
    check,
    connect_to_primary,
    reason,
)

log = structlog.get_logger("nusku.storage")

BACKLOG = 20_000  # operations that wait; more are refused, so that a stuck server can't eat memory
ATTEMPTS = 5  # at a transaction that is known to have been rolled back for others' sake
RECONNECT_S, RECONNECT_MAX_S = 0.05, 1.0
STUCK_S, STUCK_MAX_S = 1.0, 30.0  # without writes after a commit that did not return
LOOK_AROUND_S = 10.0

ROLLED_BACK = frozenset({"40001", "40P01"})
MOVED_ON = frozenset({"NK001", "25006"})  # it is a standby, or was the primary once
# The server or its operator is the reason, not what was asked.
TROUBLE = frozenset({"08", "25", "28", "3D", "3F", "53", "55", "57", "58", "F0", "XX"})
UNSENT = (asyncpg.DataError, OverflowError, UnicodeEncodeError)  # arguments that nothing can carry
SCHEMA_LOST = frozenset({"0A000", "42501", "42883", "42P01"})


class Batch(Protocol):
    """One call, for one or several operations."""

    statement: str
    writes: bool
    size: int

    def args(self, env: list[int]) -> Sequence[Any]:
        """What it is called with."""

    def done(self, rows: list[Any]) -> None:
        """Answer the operations."""

    def fail(self, error: Exception) -> None:
        """Answer all of them with this."""

    def split(self) -> "Sequence[Batch]":
        """A batch for each operation."""

    def over(self) -> None:
        """It has come to an end, whichever."""


class Source(Protocol):
    """Where batches come from. ``ready``: there is one to be taken."""

    writes: bool

    @property
    def ready(self) -> bool: ...

    def take(self) -> Batch | None: ...

    def refuse(self, error: Exception) -> None:
        """Answer all that waits, also what is not yet to be taken, with this."""


class Connections:
    """Some connections to the primary, made when needed."""

    def __init__(
        self, address: Address, clock: Clock | None, options: StoreOptions, metrics: Metrics
    ) -> None:
        self.address = address
        self.floor_ms = 0  # the latest time that was seen
        self.timeline = 0
        self.waiting = 0
        self._clock = clock
        self._options = options
        self._metrics = metrics
        self.loop = asyncio.get_running_loop()
        self._sources: list[Source] = []
        self._turn = 0
        self._spare: list[Link] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: list[asyncio.Future[None]] = []
        self._woken = False
        self._writing = 0
        self._closing = False
        self._closed = False
        self._pause_s = 0.0  # between attempts to connect
        self._stuck_s = 0.0  # since commits do not return: how long nothing is written
        self._write_again = 0.0
        self._watch: asyncio.Task[None] | None = None

    # Opening and closing

    async def open(self) -> Link:
        """Connect for the first time. Raises StoreRefused."""
        shown = self.address.shown
        try:
            link = await self._connect()
        except (*UNREACHABLE, ValueError) as error:
            raise StoreRefused(f"store {shown} cannot be reached: {reason(error)}") from None
        try:
            check(link.identity, shown, standby=self._options.synchronous_standby)
        except BaseException:
            await link.close()
            raise
        self._spare.append(link)
        if len(self.address.servers) > 1:
            self._watch = asyncio.create_task(self._look_around())
        return link

    async def close(self) -> None:
        """Answer what waits, then hang up."""
        self._closing = True
        while self._tasks:
            for one in self._idle:
                _resolve(one)
            await asyncio.wait(self._tasks)
        self._closed = True
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        for link in self._spare:
            await link.close()

    def accepts(self) -> NuskuError | None:
        """Why nothing more is taken on, if so."""
        if self._closed:
            return Unavailable("The storage is closed.")
        if self.waiting >= BACKLOG:
            return Unavailable("The storage is overloaded.")
        return None

    def too_old(self, since: float) -> bool:
        """Whether what waits since then, by the loop's clock, has waited for too long."""
        return self.loop.time() - since > self._options.timeout_s

    def attach(self, source: Source) -> None:
        """Take batches from there, too."""
        self._sources.append(source)

    def saw(self, now_ms: int, timeline: int = 0) -> None:
        """The server's time, and its timeline, as an answer said."""
        self.floor_ms = max(self.floor_ms, now_ms)
        self.timeline = max(self.timeline, timeline)

    def env(self) -> list[int]:
        """What every function is told: see ``enter`` in common.sql."""
        return [
            self.floor_ms,
            -1 if self._clock is None else self._clock(),
            self.timeline,
            int(self._options.synchronous_standby),
            # Whoever waits for a lock gives up by himself, and the connection stays usable.
            max(int(self._options.timeout_s * 800), 50),
        ]

    # Taking batches

    def wake(self) -> None:
        """Something is ready: let a connection take it, a new one if all are busy.

        Who has been woken takes all it can, and wakes another one if that was not all.
        """
        if self._woken:
            return
        while self._idle:
            one = self._idle.pop()
            if not one.done():
                self._woken = True
                one.set_result(None)
                return
        if len(self._tasks) < self._options.connections:
            self._woken = True
            task = self.loop.create_task(self._serve())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self) -> None:
        """Do one batch after the other on one connection, for as long as there are any."""
        link: Link | None = None
        try:
            while (batch := await self._next()) is not None:
                writes = batch.writes
                self._writing += writes
                try:
                    link = await self._ready_link(link)
                    await self._do(link, batch)
                except Exception as error:  # noqa: BLE001 - whatever it was, callers must hear of it
                    batch.fail(Unavailable("The storage cannot be reached."))
                    await self._unreachable(error)
                finally:
                    self._writing -= writes
                    batch.over()
        finally:
            if link is not None:
                self._spare.append(link)

    async def _next(self) -> Batch | None:
        """The next batch; None when the store is closed and nothing is left."""
        while True:
            self._woken = False
            batch = self._take()
            if batch is not None:
                if any(source.ready for source in self._sources):
                    self.wake()
                return batch
            if self._closing:
                return None
            idle = self.loop.create_future()
            self._idle.append(idle)
            await idle

    def _take(self) -> Batch | None:
        sources = self._sources
        self._turn += 1
        for n in range(len(sources)):
            source = sources[(self._turn + n) % len(sources)]
            if not source.ready or (source.writes and not self._may_write(source)):
                continue
            batch = source.take()
            if batch is not None:
                return batch
        return None

    def _may_write(self, source: Source) -> bool:
        """Reads have one connection for themselves; and commits that do not return are not tried
        again by everybody.
        """
        if self._stuck_s and self.loop.time() < self._write_again:
            source.refuse(Unavailable("The storage does not confirm what is written."))
            return False
        most = 1 if self._stuck_s else max(self._options.connections - 1, 1)
        return self._writing < most

    async def _ready_link(self, link: Link | None) -> Link:
        while link is None or not link.open:
            link = self._spare.pop() if self._spare else await self._connect()
        return link

    # Doing them

    async def _do(self, link: Link, batch: Batch) -> None:
        started = time.perf_counter()
        for attempt in range(ATTEMPTS):
            try:
                rows = await link.call(
                    batch.statement, batch.args(self.env()), self._options.timeout_s
                )
            except Warned as warning:
                log.error("a commit was not confirmed", why=str(warning))
                link.cut()
                batch.fail(Unavailable("The storage did not confirm the change."))
            except Exception as error:  # noqa: BLE001 - whatever it was, callers must hear of it
                if _code(error) in ROLLED_BACK and attempt + 1 < ATTEMPTS:
                    continue
                await self._failed(link, batch, error)
            else:
                self._stuck_s = self._stuck_s if not batch.writes else 0.0
                self._metrics.batches.add(batch.size)
                if batch.writes:
                    self._metrics.commits.add(time.perf_counter() - started)
                _answer(batch, rows)
            return

    async def _failed(self, link: Link, batch: Batch, error: Exception) -> None:
        code = _code(error)
        if link.timed_out:
            log.error("the storage did not answer", after_s=self._options.timeout_s)
            if batch.writes:
                self._stuck_s = min(max(2 * self._stuck_s, STUCK_S), STUCK_MAX_S)
                self._write_again = self.loop.time() + self._stuck_s
                self.loop.call_later(self._stuck_s, self._try_again)
            batch.fail(Unavailable("The storage did not answer in time."))
        elif isinstance(error, UNSENT) and link.open:
            await self._one_by_one(link, batch, error)
        elif code is None or getattr(error, "severity_en", None) != "ERROR":
            link.cut()
            unexpected = None if isinstance(error, UNREACHABLE) else error
            log.warning(
                "a connection to the storage was lost", why=reason(error), exc_info=unexpected
            )
            batch.fail(Unavailable("The connection to the storage was lost."))
        elif code == "53100":
            batch.fail(StoreFull("The storage's disk is full."))
        elif code in MOVED_ON:
            link.cut()
            log.warning("the storage is no primary", why=reason(error))
            batch.fail(Unavailable("The storage may not be written to."))
        elif code == "NK002":
            log.error(
                "the storage does not wait for a standby", setting="synchronous_standby_names"
            )
            batch.fail(Unavailable("The storage does not wait for a standby."))
        elif code == "55P03":
            batch.fail(Unavailable("The storage is busy with the queue."))
        elif code in SCHEMA_LOST or code in ROLLED_BACK or code[:2] in TROUBLE or code == "NK003":
            link.cut()  # whatever it was, a new one may know better
            log.error("the storage could not do this", why=reason(error), code=code)
            batch.fail(Unavailable("The storage could not do this."))
        else:
            await self._one_by_one(link, batch, error)

    async def _one_by_one(self, link: Link, batch: Batch, error: Exception) -> None:
        """It was rolled back for what one of them asked: do the others without that one."""
        if batch.size == 1:
            if _code(error) == "NK004":
                batch.fail(Unavailable("The queue has used up its positions."))
                return
            log.error("operation failed", exc_info=error)
            batch.fail(Unavailable("The storage could not do this."))
            return
        for part in batch.split():
            if link.open:
                await self._do(link, part)
            else:
                part.fail(Unavailable("The connection to the storage was lost."))

    def _try_again(self) -> None:
        if any(source.ready for source in self._sources):
            self.wake()

    # Connecting

    async def _connect(self) -> Link:
        link = await connect_to_primary(
            self.address.servers, self.timeline, min(CONNECT_S, self._options.timeout_s)
        )
        self.timeline = max(self.timeline, link.identity.timeline or 0)
        self._pause_s = 0.0
        return link

    async def _unreachable(self, error: BaseException) -> None:
        """Tell those who wait, and let some time pass before the next attempt."""
        unexpected = None if isinstance(error, (*UNREACHABLE, ValueError)) else error
        log.warning("the storage cannot be reached", why=reason(error), exc_info=unexpected)
        if not any(link.open for link in self._spare):
            for source in self._sources:
                source.refuse(Unavailable("The storage cannot be reached."))
        self._pause_s = min(max(2 * self._pause_s, RECONNECT_S), RECONNECT_MAX_S)
        await asyncio.sleep(self._pause_s * random.uniform(0.5, 1))  # noqa: S311 - only to spread

    async def _look_around(self) -> None:
        """Learn of a new primary while the old one still answers us."""
        while True:
            await asyncio.sleep(LOOK_AROUND_S)
            with contextlib.suppress(*UNREACHABLE, ValueError):
                link = await connect_to_primary(self.address.servers, self.timeline)
                self.timeline = max(self.timeline, link.identity.timeline or 0)
                await link.close()


def _answer(batch: Batch, rows: list[Any]) -> None:
    try:
        batch.done(rows)
    except Exception as error:
        log.error("an answer of the storage was not understood", exc_info=error)
        batch.fail(Unavailable("The storage gave a strange answer."))


def _code(error: BaseException) -> str | None:
    """The SQLSTATE that the server answered with, if it did."""
    code = getattr(error, "sqlstate", None)
    return code if isinstance(code, str) and not isinstance(error, asyncpg.InterfaceError) else None


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
