"""What each node may add for a project without asking anybody: exact quotas on many nodes.

A node that adds something takes it out of its *lease*, which says how much it may add, and needs no
look at the store for that. How much all of them have is on the project's *board*, a record in the
service's own store which changes from version to version. Who wants more reads the board, counts what
the project has (``usage.py``), and writes its new lease only if

    what there is + the leases of the others + its own  <=  the quota

and nobody has changed the board meanwhile. Why that is never too much:

* A lease covers whatever its node has under way, and whatever it may still begin: all that can come
  to be there after somebody has counted. So whatever is counted, now or later, is at most what was
  counted plus all leases.
* A node makes its lease smaller only by what it has not spent, or what has arrived, so that it is
  counted from then on.
* A lease lapses, so that a node which dies gives it back; but later than whatever was begun under it
  can arrive. A node begins nothing when less is left of its lease than an operation of a store may
  take; and what it does not know the outcome of counts as under way for as long as that.

Why nobody is refused while there is room: the answer is no only if what is counted after the request
came leaves no room. If only the leases of others stand in the way, the board says that somebody is
*short*; then all nodes give back what they do not need at the moment, and put nothing aside for a
while. Who got nothing by then is told to come again (503).

A node asks for a quarter of what is left, so those who stay below their quotas ask rarely. Where the
store is this process's alone there is no board: nobody else has a lease.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple, Protocol

import msgspec

from nusku.broker.amounts import NO_LIMIT, NOTHING, Amounts, Measured
from nusku.errors import NuskuError, QuotaExceeded, Unavailable
from nusku.model import Record
from nusku.storage import RecordStore

BOARD, KEY = "lease", "quotas"  # kind and key of the record, in its project

SHARE = 4  # a node puts aside one part of so many of what is left
PATIENCE_S = 2.0  # how long one waits for what others have put aside
PAUSE_S, PAUSE_MAX_S = 0.02, 0.2  # between two looks whether they have given it back
EASE = 4  # who was refused costs one part of counting in so many of rest
EASE_MAX_S = 0.5

TEND_S = 0.5  # between two looks at the boards on which we have a lease
SPENDING_S = 5.0  # how long a lease is good for beginning something
RENEWED_S = 2.5  # less than this is left of that when it is renewed
IDLE_S = 3.0  # a lease that is not used is given back after that
SHORT_MS = 3_000  # how long nothing is put aside after somebody was short
TENDED_TOGETHER = 50


class Lease(msgspec.Struct, frozen=True, array_like=True):
    """What a node may add to a project, until a time on the store's clock."""

    amounts: Amounts
    until_ms: int


class Board(msgspec.Struct, frozen=True, omit_defaults=True):
    """The leases of a project by node, and when somebody was short of what others had put aside."""

    leases: dict[str, Lease] = {}
    short_ms: int = 0


class Measure(Protocol):
    """Counts what of a project is limited. Raises Unavailable."""

    def __call__(self, project: str, limits: Amounts, *, exact: bool) -> Awaitable[Measured]: ...


class _Seen(msgspec.Struct, frozen=True):
    """A board as it was read; no record where the store is ours alone."""

    record: Record | None = None
    board: Board = Board()
    now_ms: int = 0

    def others(self, node: str) -> dict[str, Lease]:
        """The leases of the others that have not lapsed."""
        leases = self.board.leases.items()
        return {name: one for name, one in leases if name != node and one.until_ms > self.now_ms}

    @property
    def tight(self) -> bool:
        """Whether somebody was short lately."""
        return self.now_ms - self.board.short_ms < SHORT_MS


class _Waiter:
    """Somebody who wants to add something, until a time on the loop's clock."""

    __slots__ = ("amounts", "due_s", "future")

    def __init__(self, amounts: Amounts, due_s: float, future: "asyncio.Future[None]") -> None:
        self.amounts = amounts
        self.due_s = due_s
        self.future = future

    def fail(self, error: NuskuError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class _Account:
    """A project as this node deals with it.

    ``left`` may be spent until ``until_s`` on the loop's clock; ``flying`` was spent, and has not
    arrived yet as far as is known. ``told`` is the lease that the board shows.
    """

    def __init__(self, project: str) -> None:
        self.project = project
        self.left = self.flying = self.told = NOTHING
        self.until_s = self.used_s = 0.0
        self.tight = False  # somebody was short when the board was read last
        self.waiting: list[_Waiter] = []
        self.asking = False
        self.lock = asyncio.Lock()  # of the lease: one change at a time
        self.landed = asyncio.Event()


class Leases:
    """The leases of this node.

    ``flight_s`` is the longest that an operation of a store takes to come to an end.
    """

    def __init__(
        self,
        records: RecordStore,
        measure: Measure,
        limits: Callable[[str], Amounts | None],
        rng: random.Random,
        *,
        shared: bool,
        flight_s: float,
    ) -> None:
        self._records = records
        self._measure = measure
        self._limits = limits
        self._rng = rng
        self._shared = shared
        self._flight_s = flight_s
        self._life_ms = int((SPENDING_S + 2 * flight_s + 1) * 1000)
        self._node = f"{rng.getrandbits(64):016x}"
        self._accounts: dict[str, _Account] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # For who adds something

    def take(self, project: str, amounts: Amounts) -> bool:
        """Take what is to be added out of the lease; False where that is not possible at once."""
        account = self._accounts.get(project)
        if account is None or account.waiting:
            return False
        now_s = asyncio.get_running_loop().time()
        if now_s >= account.until_s or not account.left.covers(amounts):
            return False
        account.left = account.left.minus(amounts)
        account.flying = account.flying.plus(amounts)
        account.used_s = now_s
        return True

    async def obtain(self, project: str, amounts: Amounts) -> None:
        """The same with a new lease. Raises QuotaExceeded, Unavailable."""
        loop = asyncio.get_running_loop()
        account = self._accounts.get(project)
        if account is None:
            account = self._accounts[project] = _Account(project)
        account.used_s = loop.time()
        waiter = _Waiter(amounts, loop.time() + PATIENCE_S, loop.create_future())
        account.waiting.append(waiter)
        if not account.asking:
            account.asking = True
            self._start(self._ask(account))
        try:
            await waiter.future
        except asyncio.CancelledError:
            future = waiter.future
            if not future.cancelled() and future.done() and future.exception() is None:
                self.failed(project, amounts)  # it was granted, and nobody is there to use it
            raise

    def arrived(self, project: str, amounts: Amounts) -> None:
        """What was taken is there, so it is counted from now on."""
        account = self._accounts[project]
        account.flying = account.flying.minus(amounts)
        account.landed.set()
        if account.tight and not account.waiting and account.flying == NOTHING:
            self._start(self._tend(account))  # others wait for it

    def failed(self, project: str, amounts: Amounts) -> None:
        """What was taken will not be there."""
        account = self._accounts[project]
        account.left = account.left.plus(amounts)
        self.arrived(project, amounts)

    def doubtful(self, project: str, amounts: Amounts) -> None:
        """It is not known whether what was taken is there, or will be."""
        loop = asyncio.get_running_loop()
        loop.call_later(self._flight_s, self.arrived, project, amounts)

    def changed(self) -> None:
        """Limits have changed: begin nothing more under the old ones."""
        for account in self._accounts.values():
            account.left = NOTHING

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Renew leases meanwhile, and give back at the end what they have left."""
        keeping = self._start(self._keep())
        try:
            yield
        finally:
            keeping.cancel()
            for account in self._accounts.values():
                account.used_s = -IDLE_S
            await self._tend_all()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Asking for more

    async def _ask(self, account: _Account) -> None:
        """Ask until nobody waits any more."""
        loop = asyncio.get_running_loop()
        pause_s = PAUSE_S
        try:
            while account.waiting:
                began_s, before = loop.time(), len(account.waiting)
                account.landed.clear()
                async with account.lock:
                    refused = await self._round(account)
                if refused:
                    await asyncio.sleep(min(EASE * (loop.time() - began_s), EASE_MAX_S))
                if len(account.waiting) < before:
                    pause_s = PAUSE_S
                elif not self._give_up(account, loop.time()):
                    with suppress(TimeoutError):
                        await asyncio.wait_for(account.landed.wait(), pause_s * self._rng.random())
                    pause_s = min(2 * pause_s, PAUSE_MAX_S)
        except NuskuError as error:
            for waiter in account.waiting:
                waiter.fail(error)
            account.waiting.clear()
        finally:
            account.asking = False
            for waiter in account.waiting:  # the server stops
                waiter.future.cancel()

    @staticmethod
    def _give_up(account: _Account, now_s: float) -> bool:
        """Send away who has waited long enough; say whether there is one."""
        late = [waiter for waiter in account.waiting if waiter.due_s <= now_s]
        for waiter in late:
            account.waiting.remove(waiter)
            waiter.fail(Unavailable("Others are about to use what is left of the quota."))
        return bool(late)

    async def _round(self, account: _Account) -> bool:
        """Count, and give those who wait what there is for them; say whether one was refused."""
        limits = self._limits(account.project)
        asked = list(account.waiting)  # who comes later has to be counted for anew
        if limits is None:
            for waiter in asked:
                _grant(account, waiter)
            return False
        now_s = asyncio.get_running_loop().time()
        if now_s >= account.until_s:
            account.left = NOTHING
        seen = await self._read(account.project)
        lent = _sum(seen.others(self._node).values())
        # What is under way may be counted or not. Nothing is begun as long as somebody waits.
        flying = account.flying

        async def share(*, exact: bool) -> tuple[Measured, _Shares]:
            measured = await self._measure(account.project, limits, exact=exact)
            taken = _sum_of(measured.amounts, lent, flying)
            return measured, _shared_out(asked, limits.minus(taken))

        measured, (granted, short, free) = await share(exact=False)
        if short and not measured.exact:
            measured, (granted, short, free) = await share(exact=True)
        room = limits.minus(measured.amounts)
        refused = [waiter for waiter in short if not room.covers(waiter.amounts)]
        for waiter in refused:
            account.waiting.remove(waiter)
            waiter.fail(_exceeded(limits, measured.amounts, waiter.amounts))
        waits = len(refused) < len(short) and lent != NOTHING
        account.tight = self._shared and (waits or seen.tight)
        aside = NOTHING if account.tight else _aside(free, account.left)
        account.left = before = account.left.least(aside)
        lease = _sum_of(flying, aside, *(waiter.amounts for waiter in granted))
        if await self._write(account, seen, _limited(lease, limits), short=waits):
            account.left = account.left.plus(aside.minus(before))
            account.until_s = now_s + SPENDING_S if self._shared else float("inf")
            for waiter in granted:
                _grant(account, waiter)
            if self._limits(account.project) != limits:
                account.left = NOTHING
        return bool(refused)

    # The board

    async def _read(self, project: str) -> _Seen:
        if not self._shared:
            return _Seen()
        while (record := await self._records.get(BOARD, project, KEY)) is None:
            await self._records.insert(Record(BOARD, project, KEY, msgspec.json.encode(Board())))
        return _Seen(record, msgspec.json.decode(record.doc, type=Board), record.read_ms)

    async def _write(self, account: _Account, seen: _Seen, lease: Amounts, *, short: bool) -> bool:
        """Tell our lease; False if somebody has changed the board since it was read."""
        if seen.record is None:
            return True
        leases, board = seen.others(self._node), seen.board
        if lease != NOTHING:
            leases[self._node] = Lease(lease, seen.now_ms + self._life_ms)
        elif self._node not in board.leases and (not short or seen.tight):
            account.told = NOTHING
            return True  # there is nothing to tell
        new = Board(leases, seen.now_ms if short else board.short_ms)
        record = msgspec.structs.replace(
            seen.record, doc=msgspec.json.encode(new), version=seen.record.version + 1
        )
        # If it is not known whether this was written, the lease is at least what it was, or this.
        written = await self._records.update(record)
        if written:
            account.told = lease
        return written

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(TEND_S)
            await self._tend_all()

    async def _tend_all(self) -> None:
        held = [one for one in self._accounts.values() if one.told != NOTHING]
        for start in range(0, len(held), TENDED_TOGETHER):
            await asyncio.gather(*map(self._tend, held[start : start + TENDED_TOGETHER]))
        now_s = asyncio.get_running_loop().time()
        for account in list(self._accounts.values()):
            idle = not (account.asking or account.lock.locked()) and account.flying == NOTHING
            if idle and account.told == NOTHING and account.used_s + IDLE_S <= now_s:
                del self._accounts[account.project]

    async def _tend(self, account: _Account) -> None:
        """Renew the lease, or give back what is not needed of it."""
        async with account.lock:
            with suppress(Unavailable):  # the next one will, or the lease lapses
                await self._renew(account)

    async def _renew(self, account: _Account) -> None:
        now_s = asyncio.get_running_loop().time()
        seen = await self._read(account.project)
        account.tight = seen.tight
        idle = account.used_s + IDLE_S <= now_s
        if seen.tight or idle or now_s >= account.until_s:
            account.left = NOTHING
        limits = self._limits(account.project)
        lease = _limited(account.flying.plus(account.left), limits) if limits else NOTHING
        if lease == account.told and now_s < account.until_s - RENEWED_S:
            return
        if await self._write(account, seen, lease, short=False):
            account.until_s = now_s + SPENDING_S


def _grant(account: _Account, waiter: _Waiter) -> None:
    account.waiting.remove(waiter)
    if not waiter.future.done():  # else who asked has gone
        account.flying = account.flying.plus(waiter.amounts)
        waiter.future.set_result(None)


class _Shares(NamedTuple):
    """Who gets what they want, who does not, and what is left."""

    granted: list[_Waiter]
    short: list[_Waiter]
    free: Amounts


def _shared_out(asked: Sequence[_Waiter], free: Amounts) -> _Shares:
    granted, short = [], []
    for waiter in asked:
        if free.covers(waiter.amounts):
            free = free.minus(waiter.amounts)
            granted.append(waiter)
        else:
            short.append(waiter)
    return _Shares(granted, short, free)


def _aside(free: Amounts, left: Amounts) -> Amounts:
    """What to put aside for later: a part of what is free, or what was put aside before."""
    return NOTHING.most(free.least(left.most(Amounts(*(n // SHARE for n in free)))))


def _limited(lease: Amounts, limits: Amounts) -> Amounts:
    """The part of a lease that others have to know of."""
    return Amounts(*(n if most < NO_LIMIT else 0 for n, most in zip(lease, limits, strict=True)))


def _sum(leases: Iterable[Lease]) -> Amounts:
    return _sum_of(*(lease.amounts for lease in leases))


def _sum_of(*amounts: Amounts) -> Amounts:
    return Amounts(*map(sum, zip(NOTHING, *amounts, strict=True)))


def _exceeded(limits: Amounts, used: Amounts, wanted: Amounts) -> QuotaExceeded:
    """Names the first thing of which there would be too much."""
    for name, most, there, more in zip(Amounts._fields, limits, used, wanted, strict=True):
        if more and there + more > most:
            what = "bytes of messages" if name == "bytes" else name
            return QuotaExceeded(
                f"The project may have {most} {what}. It has {there}, and this would be {more} more."
            )
    raise AssertionError("it fits")
