"""Bringing a queue from one pool's store to another's while it is in use.

Who moves it, on whatever node, goes these steps; ``v`` is the version of the queue's record, and
every write to a store carries the version that it belongs to:

1. The target gets a sealed copy (version v). A long queue is copied while it is used, as often as
   it takes for the rest to be short.
2. The record is marked as moving (v + 1). From here on other nodes wait.
3. The source is sealed (v + 1), the copy is sealed anew under that version.
4. What differs is loaded. That may take long, so the mark is renewed meanwhile (v + 2, …).
5. A placement is noted, and the record names the new pool (v + n): **that write decides**.
6. The copy is opened (v + n), the source's is dropped, and so is its placement.

Which stores the two pools have is asked anew before 1 and before 5: the URI of a pool may be changed
while no queue is in it, and a node may not have seen that yet. Who undoes a move asks, too; if others
are just taking the queues out of the pool, they may have overlooked one that was created meanwhile, so
the pool takes queues again first, and what they were about fails.

What makes it safe, whoever dies, sleeps or is cut off at whatever place:

* *Records decide, by their versions.* The mark, its renewal, its end and its undoing are each a
  change from one version to the next, of which one wins.
* *A mover that does not renew its mark for 10 s is undone* by any node that meets it: the mark is
  removed (next version), and the source is opened under that version. If that write wins, step 5
  fails; if step 5 wins, the undoing does.
* *What comes too late changes nothing.* Stores refuse to seal or load under an older version than
  that which they know, do not open what has another version or another seal, and drop "unless
  later". So a mover that sleeps and wakes, a write whose outcome was unknown, or another mover of
  the same queue cannot touch what somebody else has begun since.
* *Nobody uses a copy before its time, or after it.* It is sealed from its first row on, and opened
  by who has admitted it and then seen that the record names its pool: by its own seal, so that a
  queue which was dropped and admitted again in between stays sealed.
* *No write of a client is lost.* All that was answered before the seal is in the source when what
  differs is read; after it the source answers nothing, and clients find the copy.

By crash point: before 2, an unused copy remains (A). Between 2 and 5, the queue stands still until
it is undone; a copy remains (A). Between 5 and 6, the first user finds the copy sealed and opens it,
as it does with a queue that was created just before a crash; the sealed original remains (A).

What else may happen meanwhile: the queue is *changed*, before 2: the mark fails, and all is done
again with the new version; after it, whoever changes waits. It is *deleted*: the next step finds that
its record is gone, or is of another generation, and both copies are dropped, which spares any queue
of that name made since. Two nodes *move* it: one of them marks it, the other waits and looks again.
A *store fails*: the mover undoes what it did, or whoever meets the mark does. An outcome is
*unknown*: the record is read again, and says it.

(A): a sealed copy that no record speaks of takes space, nothing else: the queue's name can be used, and
the queue come back. :meth:`Moving.drain_step` drops those that it finds. Notices are not moved: the
fan-out works off those of every store.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import structlog
from msgspec.structs import replace

from nusku.broker import queues
from nusku.broker.placements import Placed
from nusku.broker.pools import Pools, Progress
from nusku.broker.queues import Document, changed, document_of, ref_of
from nusku.errors import Invalid, NuskuError, Unavailable
from nusku.model import Kind, QueueKey, QueueRef, Record
from nusku.storage import MessageStore, RecordStore, Stale, Store
from nusku.storage.copying import Levelled, holding_of, level

log = structlog.get_logger("nusku.pools")

LEASE_MS = 10_000  # a mark that is older is that of a mover which is dead, or might as well be
RENEWED_S = 2.0  # how old a mover lets its mark become
SHORT = 1_000  # messages that may be copied while the queue stands still
PASSES = 5  # over a queue in use; then the rest is copied, however much it is
ATTEMPTS = 10  # times that a change by somebody else in the meantime is put up with
WAITS, PAUSE_S = 150, 0.1  # for another one who moves the queue: longer than the lease
AT_ONCE = 8  # queues of a pool that are moved at the same time
PAGE = 500  # placements, or queues of a store, that are read in one step
COUNTED_MAX = 10_000  # queues left in a pool; more are not counted


class _Overtaken(Exception):
    """The queue's record was changed by somebody else."""


class _Occupied(Exception):
    """The queue holds messages, and was to be moved only without."""


class _Move:
    """One attempt to bring a queue from one store to another.

    ``record`` is the queue's record as it was read or written last, ``tried`` what was to be
    written last, whether or not that came to pass.
    """

    def __init__(
        self, records: RecordStore, record: Record, source: Store, target: Store, to: str | None
    ) -> None:
        self.records = records
        self.record = self.tried = record
        self.source = source
        self.target = target
        self.to = to
        self.copied = 0
        self._written_s = 0.0

    @property
    def ref(self) -> QueueRef:
        return ref_of(self.record, document_of(self.record))

    async def copy(self) -> None:
        """Copy the queue while it is used, until little would be left to copy."""
        await self._seal(self.target.messages)
        for _ in range(PASSES):
            held = await holding_of(self.source.messages, self.ref.key)
            if held is None or held.messages <= SHORT:
                return
            if (await self._level(held.next_position)).loaded <= SHORT:
                return

    async def mark(self) -> None:
        """Say that the queue is on its way."""
        await self._write(self._marking)

    async def complete(self, *, only_empty: bool) -> int:
        """Seal the queue and complete the copy; return how many messages there are.

        Raises _Occupied, with ``only_empty``, if there are any.
        """
        for store in (self.source, self.target):
            await self._seal(store.messages)
        if only_empty and await self.source.messages.dump(self.ref, 0, 1, bodies=False):
            raise _Occupied
        held = await holding_of(self.source.messages, self.ref.key)
        if held is None:
            raise Stale
        return (await self._level(held.next_position)).messages

    async def arrive(self) -> None:
        """Say that the queue is in the other pool."""
        await self._write(
            lambda document, _: replace(document, pool=self.to, moving=None, moved=True)
        )

    async def finish(self) -> None:
        """Open the copy, and drop what it was made of."""
        ref = self.ref
        await _open(self.records, self.record, self.target.messages)
        await self.source.messages.drop(ref, unless_later=True)
        # Who waits for messages has to look at the other store from now on.
        self.source.tell(ref.key)
        self.target.tell(ref.key)

    async def _seal(self, messages: MessageStore) -> None:
        """See to it that the store has the queue, sealed under the version of its record.

        Raises Stale where it has a later version.
        """
        with suppress(Stale):
            await messages.seal(self.ref)
            return
        other, _ = await messages.admit(self.ref)
        if other is not None:
            await self._current()  # so the other generation was before this one, and has ended
            await messages.drop(self.ref._replace(generation=other))
            await messages.admit(self.ref)
        await messages.seal(self.ref)

    async def _level(self, next_position: int) -> Levelled:
        def reached(more: int) -> None:
            self.copied += more

        self.copied = 0
        return await level(
            self.source.messages, self.target.messages, next_position, self._hold, reached
        )

    async def _hold(self) -> QueueRef:
        """The queue under the version that is now the right one; renews the mark in time."""
        age_s = asyncio.get_running_loop().time() - self._written_s
        if document_of(self.record).moving is not None and age_s > RENEWED_S:
            await self._write(self._marking)
        return self.ref

    def _marking(self, document: Document, now_ms: int) -> Document:
        return replace(document, moving=queues.Moving(self.to, now_ms))

    async def _current(self) -> Record:
        """The record, read anew. Raises _Overtaken when it was changed."""
        record = await self.records.get(*self.ref.key)
        if record is None or record.version != self.record.version:
            raise _Overtaken
        return record

    async def _write(self, change: Callable[[Document, int], Document]) -> None:
        """Change the record, given what it says and the time. Raises _Overtaken."""
        record = await self._current()
        self.tried = changed(record, change(document_of(record), record.read_ms))
        if not await self.records.update(self.tried):
            raise _Overtaken
        self.record = self.tried
        self._written_s = asyncio.get_running_loop().time()


class _Running(NamedTuple):
    """A queue that is being moved here, where to, and the attempt that is under way."""

    to: str | None
    only_empty: bool
    attempts: list[_Move]
    task: "asyncio.Task[int | None]"


class Moving:
    """Brings queues from pool to pool, see above."""

    def __init__(self, pools: Pools, records: RecordStore) -> None:
        self._pools = pools
        self._records = records
        self._running: dict[QueueKey, _Running] = {}
        self._leaving: dict[str, dict[QueueKey, asyncio.Task[int | None]]] = {}  # by pool

    # For the rest of the broker

    async def move(self, key: QueueKey, to: str | None) -> None:
        """Bring a queue to a pool (None: the service's own store); nothing if there is no queue.

        It is brought there even when the caller is cancelled. Raises Unavailable, after which the
        queue is where it was, or will be in a moment.
        """
        await self._bring(key, to)

    async def rescue(self, record: Record) -> None:
        """Undo the move that a queue's record speaks of, if who moves it seems to be dead."""
        moving = document_of(record).moving
        if moving is not None and record.read_ms - moving.since_ms >= LEASE_MS:
            log.warning("a move is undone", queue=record.key, project=record.project)
            await self._undo(record)

    async def unplace(self, kind: Kind, project: str, name: str, pool: str) -> bool:
        """Take an empty queue out of a pool; False when it holds messages."""
        key = QueueKey(kind, project, name)
        for _ in range(ATTEMPTS):
            record = await self._at_rest(key)
            if record is None or document_of(record).pool != pool:
                await self._forget(pool, key)
                return True
            try:
                to = await self._place(key, document_of(record))
            except Unavailable:
                to = None  # it holds nothing, and has to be somewhere
            # It may be a move that had begun before, and after which it was brought back here. So
            # the record is read again.
            if await self._bring(key, to, only_empty=True) is None:
                return False
        raise Unavailable(f"The {kind} is being moved.")

    async def drain_step(self, pool: str, seconds: float) -> Progress:
        """Bring queues from a pool to others for about so long.

        Raises Unavailable when a queue cannot go anywhere, or a store is away, and nothing else
        could be moved.
        """
        loop = asyncio.get_running_loop()
        end_s = loop.time() + seconds
        leaving = self._leaving.setdefault(pool, {})
        moved: list[int] = []
        errors: list[NuskuError] = []

        def harvest() -> None:
            for key, task in list(leaving.items()):
                if task.done():
                    del leaving[key]
                    if isinstance(error := task.exception(), NuskuError):
                        errors.append(error)
                    elif (number := task.result()) is not None:
                        moved.append(number)

        harvest()
        after = ""
        while loop.time() < end_s and (page := await self._pools.placed(pool, after, AT_ONCE)):
            for one in page:
                if one.key not in leaving:
                    leaving[one.key] = task = asyncio.create_task(self._bring_away(pool, one))
                    # If no other step comes, nobody asks what became of it.
                    task.add_done_callback(lambda task: task.cancelled() or task.exception())
            # What is not done in time goes on, and is told of by the next step.
            await asyncio.wait(leaving.values(), timeout=max(end_s - loop.time(), 0))
            harvest()
            after = page[-1].id
        if errors and not moved and not leaving:
            raise errors[0]
        return await self._left(pool, len(moved), sum(moved))

    async def close(self) -> None:
        """Undo what is under way."""
        tasks: list[asyncio.Task[int | None]] = [one.task for one in self._running.values()]
        for leaving in self._leaving.values():
            tasks += leaving.values()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Moving

    async def _bring(
        self, key: QueueKey, to: str | None, *, only_empty: bool = False
    ) -> int | None:
        """Return how many messages were moved; None when it is ``only_empty``, and is not."""
        while (running := self._running.get(key)) is not None:
            if (running.to, running.only_empty) == (to, only_empty):
                return await asyncio.shield(running.task)
            await asyncio.wait({running.task})
        attempts: list[_Move] = []
        task = asyncio.create_task(self._go(key, to, attempts, only_empty=only_empty))
        self._running[key] = _Running(to, only_empty, attempts, task)
        task.add_done_callback(lambda _: self._running.pop(key))
        return await asyncio.shield(task)

    async def _go(
        self, key: QueueKey, to: str | None, attempts: list[_Move], *, only_empty: bool
    ) -> int | None:
        for _ in range(ATTEMPTS):
            record = await self._at_rest(key)
            if record is None or document_of(record).pool == to:
                return 0
            source = (await self._pools.present(document_of(record).pool)).store
            target = (await self._pools.present(to)).store
            move = _Move(self._records, record, source, target, to)
            attempts.append(move)
            try:
                return await self._attempt(move, document_of(record).pool, only_empty=only_empty)
            except (Stale, _Overtaken):
                continue  # with the copy as it is, if the queue was only changed
            except _Occupied:
                return None
        await self._settle(attempts[-1])
        raise Unavailable(f"The {key.kind} is being changed.")

    async def _attempt(self, move: _Move, from_: str | None, *, only_empty: bool) -> int:
        key, messages = move.ref.key, 0
        try:
            await move.copy()
            await move.mark()
            messages = await move.complete(only_empty=only_empty)
            await self._note(move, from_)
            await move.arrive()
        except BaseException as error:
            again = isinstance(error, Stale | _Overtaken)
            if not await self._settle(move, again=again):
                raise
        await move.finish()
        if from_ is not None:
            await self._forget(from_, key)
        return messages

    async def _note(self, move: _Move, from_: str | None) -> None:
        """Note that a queue is about to be in a pool, which from then on is not deleted, and keeps
        its store. Raises _Overtaken if it was not the store of its pool that the queue came from.
        """
        if move.to is not None:
            await self._pools.placements.note(move.to, move.ref)
        present = await self._pools.present(move.to)
        if not present.takes or present.store is not move.target:
            raise Unavailable(f"The pool {move.to} is being emptied, or was deleted.")
        if (await self._pools.present(from_)).store is not move.source:
            raise _Overtaken

    async def _at_rest(self, key: QueueKey) -> Record | None:
        """The record once nobody moves the queue; None if there is none."""
        for _ in range(WAITS):
            record = await self._records.get(*key)
            if record is not None and document_of(record).deleted:
                await queues.end(self._pools, self._records, record)
                return None
            if record is None or document_of(record).moving is None:
                return record
            await self.rescue(record)
            await asyncio.sleep(PAUSE_S)
        raise Unavailable(f"The {key.kind} is being moved.")

    # When something went wrong

    async def _settle(self, move: _Move, *, again: bool = False) -> bool:
        """Undo an attempt that failed; True if it arrived nevertheless.

        The copy is kept if it is tried ``again`` at once, or somebody else is making it. What
        cannot be undone now, because a store is away, is undone by whoever meets it.
        """
        with suppress(NuskuError, Stale):
            for _ in range(2):  # undoing and arriving may meet
                record = await self._records.get(*move.ref.key)
                if record is None or _is_gone(record, move.ref):
                    for store in (move.source, move.target):
                        await store.messages.drop(move.ref)
                    break
                if (record.version, record.doc) == (move.tried.version, move.tried.doc):
                    move.record = move.tried
                document = document_of(record)
                if record.version != move.record.version or document.moving is None:
                    if document.pool == move.to:
                        return record.version == move.record.version
                    if not again and move.to not in _places(document):
                        await move.target.messages.drop(move.ref, unless_later=True)
                    break
                if await self._undo(record):
                    return False
            await self._forget(move.to, move.ref.key)
        return False

    async def _undo(self, record: Record) -> bool:
        """Let a queue go on where it was; False when its record was changed meanwhile."""
        document = document_of(record)
        if document.moving is None:
            return False
        new = changed(record, replace(document, moving=None))
        if not await self._records.update(new):
            return False
        ref, to = ref_of(record, document), document.moving.to
        await _open(self._records, new, (await self._pools.taking(document.pool)).messages)
        with suppress(NuskuError):
            await (await self._pools.present(to)).store.messages.drop(ref, unless_later=True)
            await self._forget(to, ref.key)
        return True

    async def _forget(self, pool: str | None, key: QueueKey) -> None:
        """Forget that a queue was placed in a pool, unless it is there or on its way there.

        An entry may also be that of a queue which is being created: those are young.
        """
        if pool is None:
            return
        entries = await self._pools.placements.of(pool, key)
        record = await self._records.get(*key)
        document = document_of(record) if record else None
        generation = document.generation if document else None
        if document is None or pool not in _places(document):
            await self._pools.placements.forget(
                one for one in entries if one.generation == generation or one.age_ms > LEASE_MS
            )

    # Draining

    async def _bring_away(self, pool: str, placed: Placed) -> int | None:
        """Bring one queue to another pool; None when it is not there (any more)."""
        key = placed.key
        record = await self._records.get(*key)
        if record is None or pool not in _places(document_of(record)):
            await self._forget(pool, key)
            return None
        record = await self._at_rest(key)
        if record is None or document_of(record).pool != pool:
            return None
        return await self._bring(key, await self._place(key, document_of(record)))

    async def _place(self, key: QueueKey, document: Document) -> str | None:
        """Where a queue goes from its pool. Raises Unavailable where there is no other."""
        flavor = document.metadata.get("_flavor")
        try:
            to = await self._pools.place(key.project, flavor)
        except Invalid:  # the flavor was deleted since
            to = await self._pools.place(key.project, None)
        if to == document.pool:
            raise Unavailable(f"There is no other pool for the {key.kind} {key.name}.")
        return to

    async def _left(self, pool: str, queues_moved: int, messages_moved: int) -> Progress:
        left, after = 0, ""
        while left < COUNTED_MAX and (page := await self._pools.placed(pool, after, PAGE)):
            left, after = left + len(page), page[-1].id
        store = (await self._pools.present(pool)).store
        messages = sum(one.messages for one in await store.messages.occupied("notice"))
        if left:
            copied = sum(run.attempts[-1].copied for run in self._running.values() if run.attempts)
            messages += max((await store.messages.volume()).total - copied, 0)
        else:
            await self._drop_copies(pool, store)
        return Progress(left, messages, queues_moved, messages_moved)

    async def _drop_copies(self, pool: str, store: Store) -> None:
        """Drop sealed copies in a pool's store that no record speaks of any more.

        The record is read after the copy was seen under its version. A move to here that begins
        later raises that version before it relies on the copy. If the store is another pool's by
        now, there may be copies that somebody relies on.
        """
        after = None
        while page := await store.messages.queues(after, PAGE):
            if (await self._pools.present(pool)).store is not store:
                return
            for held in page:
                if held.sealed and held.ref.key.kind in ("queue", "topic"):
                    record = await self._records.get(*held.ref.key)
                    document = document_of(record) if record else None
                    if (
                        document is None
                        or document.generation != held.ref.generation
                        or pool not in _places(document)
                    ):
                        await store.messages.drop(held.ref, unless_later=True)
            after = page[-1].ref.key


async def _open(records: RecordStore, record: Record, messages: MessageStore) -> None:
    """Open a queue where its record, just written, says that it is, unless it was changed since.

    It may even have been moved on and its copy dropped, and then been admitted anew by this.
    """
    ref = ref_of(record, document_of(record))
    _, seal = await messages.admit(ref)
    now = await records.get(*ref.key)
    if now is None or _is_gone(now, ref):
        await messages.drop(ref)
    elif now.version == record.version:
        await messages.open(ref, seal)


def _is_gone(record: Record, ref: QueueRef) -> bool:
    """Whether the queue was deleted, as its record says, or that of another one."""
    document = document_of(record)
    return document.generation != ref.generation or document.deleted


def _places(document: Document) -> tuple[str | None, ...]:
    """The pool that a queue is in, and the one that it is on its way to."""
    return (document.pool, document.moving.to) if document.moving else (document.pool,)
