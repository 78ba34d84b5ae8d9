"""From one store to another: a single queue while it is in use, or everything there is.

All steps may be done again: what is the same on both sides is only compared, without bodies.
"""

import asyncio
import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar
from uuid import uuid4

import msgspec

from nusku.errors import StoreRefused
from nusku.model import Holding, QueueKey, QueueRef, Record, Stored
from nusku.storage import POSITIONS_MAX, MessageStore, RecordStore, Stale, Store
from nusku.storage.identity import IDENTITY, identity_of
from nusku.storage.registry import REVISION, of_registry, replicate

T = TypeVar("T")

COMPARED = 2_000  # messages compared in one step
LOADED = 1_000  # messages loaded in one step, at most
LOADED_BYTES = 4 << 20  # of bodies, roughly: what is known of the sizes is what came before
GAP = 16  # positions between two that differ that are loaded together
RANGES_AT_ONCE = 4
QUEUES_AT_ONCE = 8
PAGE = 500  # queues and records looked at in one step
CLOCKS_APART_MS = 2_000
VERIFIED_TIMES = 5  # messages may expire while they are counted

# The kind and the key of the record that tells an unfinished copy, with the source's identity in it.
COPY = "copy"


class Levelled(NamedTuple):
    """How many messages the queue has in the source, and how many were loaded for it."""

    messages: int
    loaded: int


class Progress(NamedTuple):
    """How many messages and records of how many are done."""

    done: int
    whole: int


class Summary(NamedTuple):
    """What was copied, and in what time."""

    records: int
    queues: int
    messages: int
    seconds: float

    def __str__(self) -> str:
        rate = self.messages / max(self.seconds, 0.001)
        return (
            f"copied {self.records} records and {self.queues} queues with {self.messages} messages"
            f" in {self.seconds:.1f} s ({rate:.0f} messages/s)"
        )


class _Range(NamedTuple):
    """Positions between ``after`` (exclusive) and ``through``, in which the source has so many."""

    after: int
    through: int
    messages: int


# One queue


async def holding_of(store: MessageStore, key: QueueKey) -> Holding | None:
    """The queue as the store holds it, sealed or not."""
    # Behind everything that sorts before it: no name ends in this character.
    before = key._replace(name=f"{key.name[:-1]}{chr(ord(key.name[-1]) - 1)}\x7f")
    after: QueueKey | None = before if key.name else QueueKey(key.kind, key.project, "")
    while page := await store.queues(after, 10):
        for holding in page:
            if holding.ref.key == key:
                return holding
        after = page[-1].ref.key
        if after > key:
            break
    return None


async def level(
    source: MessageStore,
    target: MessageStore,
    next_position: int,
    hold: Callable[[], Awaitable[QueueRef]],
    reached: Callable[[int], None] = lambda more: None,  # noqa: ARG005
) -> Levelled:
    """Let the target hold what the source does.

    ``hold`` is asked before each step as which version to go on, ``reached`` is told of so many
    messages more. While the source is in use, what the target has afterwards was true of each range
    at some time; once it is sealed, of all. Raises Stale for another generation or a later version.
    """
    messages = loaded = 0
    at_once = max(LOADED // 10, 1)  # until something is known of the sizes
    await target.load(await hold(), next_position, 0, 0, ())
    async for theirs, ours in _side_by_side(source, target, hold):
        ranges = list(_differing(theirs, ours, at_once))
        while ranges:
            ref, some = await hold(), ranges[:RANGES_AT_ONCE]
            del ranges[:RANGES_AT_ONCE]
            sizes = await together(
                *(_load(source, target, ref, next_position, one) for one in some)
            )
            loaded += sum(one.messages for one in some)
            number, size = sum(one.messages for one in some), sum(sizes)
            if number:
                wanted = number * LOADED_BYTES // (RANGES_AT_ONCE * max(size, 1))
                at_once = max(1, min(wanted, 2 * at_once, LOADED))
            ranges = [half for one in ranges for half in _split(one, theirs, at_once)]
        messages += len(theirs)
        reached(len(theirs))
    return Levelled(messages, loaded)


async def _side_by_side(
    source: MessageStore, target: MessageStore, hold: Callable[[], Awaitable[QueueRef]]
) -> AsyncIterator[tuple[Sequence[Stored], Sequence[Stored]]]:
    """What both have in one range after the other, without bodies."""
    after = 0
    while after < POSITIONS_MAX - 1:
        ref = await hold()
        theirs, ours = await together(
            source.dump(ref, after, COMPARED, bodies=False),
            target.dump(ref, after, COMPARED, bodies=False),
        )
        after = min(_end(theirs), _end(ours))
        yield _until(theirs, after), _until(ours, after)


async def _load(
    source: MessageStore, target: MessageStore, ref: QueueRef, next_position: int, one: _Range
) -> int:
    """Load a range; return the size of the bodies in it."""
    some: Sequence[Stored] = ()
    if one.messages:
        some = _until(await source.dump(ref, one.after, one.messages), one.through)
    await target.load(ref, next_position, one.after, one.through, some)
    return sum(len(message.body or b"") for message in some)


def _end(page: Sequence[Stored]) -> int:
    """Up to where a page says everything."""
    return page[-1].position if len(page) >= COMPARED else POSITIONS_MAX - 1


def _until(page: Sequence[Stored], through: int) -> Sequence[Stored]:
    return page[: bisect_right(page, through, key=lambda one: one.position)]


def _differing(theirs: Sequence[Stored], ours: Sequence[Stored], at_once: int) -> Iterable[_Range]:
    """Where the two differ, in ranges of up to so many messages."""
    places, start = [one.position for one in _unequal(theirs, ours)], 0
    for n, place in enumerate(places, 1):
        if n == len(places) or places[n] - place > GAP:
            whole = _range(places[start] - 1, place, theirs)
            yield from _split(whole, theirs, at_once)
            start = n


def _unequal(theirs: Sequence[Stored], ours: Sequence[Stored]) -> list[Stored]:
    """Those that only one side has, or has otherwise; one for each position, in order."""
    if theirs == ours:  # mostly so, and much faster than what follows
        return []
    before, after = ({one.position: one for one in page} for page in (ours, theirs))
    found = (before | after).items()
    return [one for _, one in sorted(found) if before.get(one.position) != after.get(one.position)]


def _range(after: int, through: int, theirs: Sequence[Stored]) -> _Range:
    first, end = (bisect_right(theirs, p, key=lambda one: one.position) for p in (after, through))
    return _Range(after, through, end - first)


def _split(one: _Range, theirs: Sequence[Stored], at_once: int) -> Iterable[_Range]:
    """The range in parts of up to so many messages."""
    after = one.after
    first = bisect_right(theirs, after, key=lambda one: one.position)
    for n in range(first + at_once, first + one.messages, at_once):
        middle = theirs[n - 1].position
        yield _Range(after, middle, at_once)
        after = middle
    yield _range(after, one.through, theirs)


async def together(*operations: Awaitable[T]) -> list[T]:
    """Do these at the same time, each of them to its end, then raise what the first raised.

    None is cancelled: what a store does then is not known.
    """
    answers = await asyncio.gather(*operations, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return [answer for answer in answers if not isinstance(answer, BaseException)]


# Everything


async def refuse_unfinished(store: Store) -> None:
    """Raise StoreRefused for the target of a copy that did not come to its end."""
    if await store.records.get(COPY, "", COPY) is not None:
        raise StoreRefused(
            "this store is an unfinished copy of another: run `nusku copy` again, or take an empty one"
        )


async def copy(source: Store, target: Store, progress: Callable[[Progress], None]) -> Summary:
    """Copy all records, and all queues with their messages and claims, to an empty store.

    No server may use either meanwhile. Begun again after an interruption it goes on where it was;
    what was copied is compared. Raises StoreRefused where that cannot be done, and with it, where
    the copy turns out not to be equal.
    """
    return await _Copy(source, target, progress).run()


class _Copy:
    def __init__(self, source: Store, target: Store, progress: Callable[[Progress], None]) -> None:
        self._source = source
        self._target = target
        self._tell = progress
        self._whole = self._done = 0

    async def run(self) -> Summary:
        started_s = time.monotonic()
        await self._begin()
        await self._compare_clocks()
        queues = [one async for one in _queues(self._source.messages)]
        records = [one async for one in _records(self._source.records) if _kept(one)]
        self._whole = sum(one.messages for one in queues) + len(records)
        await self._drop_others(queues)
        await self._copy_queues(queues)
        await self._copy_records()
        entries = await replicate(self._source.registry, self._target.registry)
        messages = await self._verify()
        await self._target.records.delete(COPY, "", COPY)
        seconds = time.monotonic() - started_s
        return Summary(len(records) + entries, len(queues), messages, seconds)

    async def _begin(self) -> None:
        """Mark the target as an unfinished copy of the source."""
        source, target = self._source.records, self._target.records
        if await source.get(COPY, "", COPY):
            raise StoreRefused("the store to copy is itself an unfinished copy of another")
        if await _is_empty(self._source):
            raise StoreRefused("the store to copy is empty; is its URI right?")
        identity = await identity_of(source, uuid4().hex)
        mark = await target.get(COPY, "", COPY)
        if mark is None:
            if not await _is_empty(self._target):
                raise StoreRefused(
                    "the store to copy to is not empty, and no unfinished copy of this one"
                )
            await target.insert(Record(COPY, "", COPY, msgspec.json.encode(identity)))
        elif msgspec.json.decode(mark.doc, type=str) != identity:
            raise StoreRefused("the store to copy to has an unfinished copy of another store")

    async def _compare_clocks(self) -> None:
        """Claims and messages end by the clock of the store that they are in."""
        source, target = self._source.records, self._target.records
        first, here, second = [
            await one.get(kind, "", kind)
            for one, kind in ((source, IDENTITY), (target, COPY), (source, IDENTITY))
        ]
        if first is None or here is None or second is None:
            raise StoreRefused("one of the two stores is in use")
        early, late = first.read_ms - here.read_ms, here.read_ms - second.read_ms
        apart_ms = max(early, late)
        if apart_ms > CLOCKS_APART_MS:
            raise StoreRefused(
                f"the clocks of the two stores are {apart_ms / 1000:.1f} s apart, so messages and"
                " claims would end too early or too late; set them right first"
            )

    async def _drop_others(self, queues: Sequence[Holding]) -> None:
        """Remove queues that the source has no longer, since an earlier attempt."""
        wanted = {one.ref.key: one.ref.generation for one in queues}
        there = [one async for one in _queues(self._target.messages)]
        for one in there:
            if wanted.get(one.ref.key) != one.ref.generation:
                await self._target.messages.drop(one.ref)

    async def _copy_queues(self, queues: Sequence[Holding]) -> None:
        for n in range(0, len(queues), QUEUES_AT_ONCE):
            await together(*map(self._copy_queue, queues[n : n + QUEUES_AT_ONCE]))

    async def _copy_queue(self, holding: Holding) -> None:
        target, ref = self._target.messages, holding.ref
        try:
            _, seal = await target.admit(ref)
            await level(
                self._source.messages, target, holding.next_position, _always(ref), self._reach
            )
            if holding.sealed:
                await target.seal(ref)
            else:
                await target.open(ref, seal)
        except Stale:
            raise StoreRefused("one of the two stores is in use") from None

    async def _copy_records(self) -> None:
        """Load those that differ, delete those that the source has no longer."""
        source, target = self._source.records, self._target.records
        after = ("", "", "")
        while True:
            theirs = await source.dump(after, PAGE)
            ours = await target.dump(after, PAGE)
            ends = [_place(page[-1]) for page in (theirs, ours) if len(page) == PAGE]
            through = min(ends) if ends else None
            before, wanted = (
                {
                    _place(one): one
                    for one in page
                    if _kept(one) and (through is None or _place(one) <= through)
                }
                for page in (ours, theirs)
            )
            for place in before.keys() - wanted.keys() - {(COPY, "", COPY)}:
                await target.delete(*place)
            different = [
                one
                for place, one in wanted.items()
                if place not in before or _plain(one) != _plain(before[place])
            ]
            if different:
                await target.load(different)
            self._reach(len(wanted))
            if through is None:
                return
            after = through

    async def _verify(self) -> int:
        """Compare numbers; return how many messages there are."""
        source, target = self._source.messages, self._target.messages
        wrong: list[Holding] = []
        for _ in range(VERIFIED_TIMES):
            before = {one.ref.key: one async for one in _queues(source)}
            there = {one.ref.key: one async for one in _queues(target)}
            after = {one.ref.key: one async for one in _queues(source)}
            if not before.keys() == there.keys() == after.keys():
                raise StoreRefused("a store was in use while it was copied; start again")
            wrong = []
            for key, one in there.items():
                fits = before[key].messages >= one.messages >= after[key].messages
                if _state(one) != _state(before[key]) or not (
                    fits or await self._same_but_for_time(one)
                ):
                    wrong.append(before[key])
            if not wrong:
                return sum(one.messages for one in there.values())
            await self._copy_queues(wrong)
        names = ", ".join(sorted(one.ref.key.name for one in wrong)[:3])
        raise StoreRefused(f"queues differ from what was copied ({names}); start again")

    async def _same_but_for_time(self, there: Holding) -> bool:
        """Whether both sides differ at most in messages that end about now."""
        soon_ms = there.now_ms + 2 * CLOCKS_APART_MS
        async for pages in _side_by_side(
            self._source.messages, self._target.messages, _always(there.ref)
        ):
            if any(one.expires_ms > soon_ms for one in _unequal(*pages)):
                return False
        return True

    def _reach(self, more: int) -> None:
        self._done += more
        self._tell(Progress(min(self._done, self._whole), self._whole))


def _always(ref: QueueRef) -> Callable[[], Awaitable[QueueRef]]:
    async def hold() -> QueueRef:
        return ref

    return hold


async def _is_empty(store: Store) -> bool:
    """Whether it holds nothing but an identity, which it may have got by being looked at, and a
    registry in which there is nothing any more.
    """
    records = await store.records.dump(("", "", ""), 3)
    others = [one for one in records if one.kind not in {IDENTITY, REVISION}]
    queues = await store.messages.queues(None, 1)
    return not (others or queues or await store.registry.dump())


async def _queues(store: MessageStore) -> AsyncIterator[Holding]:
    after = None
    while page := await store.queues(after, PAGE):
        for one in page:
            yield one
        after = page[-1].ref.key


async def _records(store: RecordStore) -> AsyncIterator[Record]:
    after = ("", "", "")
    while page := await store.dump(after, PAGE):
        for one in page:
            yield one
        after = _place(page[-1])


def _place(record: Record) -> tuple[str, str, str]:
    return record.kind, record.project, record.key


def _kept(record: Record) -> bool:
    """Whether it is copied as a record; where the registry is depends on the kind of store."""
    return not of_registry(record.kind)


def _plain(record: Record) -> Record:
    """Without what depends on when it was read."""
    return msgspec.structs.replace(record, read_ms=0)


def _state(holding: Holding) -> tuple[QueueRef, int, bool]:
    return holding.ref, holding.next_position, holding.sealed
