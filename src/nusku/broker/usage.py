"""How much a project has now: counted by the stores, whatever put it there.

Messages are counted exactly at no cost that grows with them. Their bytes are not: somebody has to
look at every message. So it is remembered what was weighed in each queue, and for which messages: as
positions only grow, a queue that is to give out the same next position and holds as many messages
holds the same ones. Of a queue where some are gone, what they weighed before is an upper bound, which
mostly does; it is weighed anew only for who asks for the exact number.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from nusku.broker.amounts import NO_LIMIT, Amounts, Measured
from nusku.broker.pools import Pools
from nusku.broker.queues import SUBSCRIPTION, Document, document_of
from nusku.errors import Unavailable
from nusku.model import Holding, QueueKey, Record
from nusku.storage import SERVED, MessageStore, RecordStore, Stale, Store

KNOWN_MAX = 50_000  # queues of which it is remembered what they weigh
TOGETHER = 8  # queues weighed at the same time
ATTEMPTS = 10  # times that queues which arrive elsewhere meanwhile are put up with


class _Weighed(NamedTuple):
    """What messages below a position weigh. ``messages`` is how many there were, -1 if some are gone."""

    generation: str
    next_position: int
    messages: int
    bytes: int


class _Held(NamedTuple):
    """A queue that holds messages, in the store of a pool."""

    pool: str | None
    store: Store
    holding: Holding


class Usage:
    """Counts what projects have."""

    def __init__(self, pools: Pools, records: RecordStore) -> None:
        self._pools = pools
        self._records = records
        self._weighed: dict[tuple[str | None, QueueKey], _Weighed] = {}

    async def of(self, project: str, limits: Amounts, *, exact: bool) -> Measured:
        """Count what is limited. Raises Unavailable."""
        queues = await self._count(project, SERVED) if limits.queues < NO_LIMIT else 0
        subscriptions = (
            await self._count(project, (SUBSCRIPTION,)) if limits.subscriptions < NO_LIMIT else 0
        )
        messages, size, sure = 0, 0, True
        if limits.messages < NO_LIMIT or limits.bytes < NO_LIMIT:
            weighing = limits.bytes < NO_LIMIT
            messages, size, sure = await self._held(project, weighing=weighing, exact=exact)
        return Measured(Amounts(queues, messages, size, subscriptions), sure)

    async def _count(self, project: str, kinds: Sequence[str]) -> int:
        return sum([await self._records.count(kind, project) for kind in kinds])

    async def _held(self, project: str, *, weighing: bool, exact: bool) -> tuple[int, int, bool]:
        found = await self._survey(project)
        limit = asyncio.Semaphore(TOGETHER)

        async def weigh(one: _Held) -> tuple[int, bool]:
            async with limit:
                return await self._weigh(one, exact=exact)

        messages = sum(one.holding.messages for one in found)
        if not weighing:
            return messages, 0, True
        weights = await asyncio.gather(*map(weigh, found))
        return messages, sum(size for size, _ in weights), all(sure for _, sure in weights)

    async def _survey(self, project: str) -> Sequence[_Held]:
        """The queues that hold messages of the project, each where it is at home.

        Raises Unavailable where one is in a pool that does not answer, or does not stop moving.
        """
        survey = await self._pools.all()
        stores, away = dict(survey.stores), set(survey.away)
        records: Mapping[QueueKey, Record | None] = {}
        doubtful: set[QueueKey] | None = None  # the first time each may be
        settled: list[_Held] = []
        for _ in range(ATTEMPTS):
            places: dict[QueueKey, list[_Held]] = {}
            for (_, key), one in (await self._look_twice(project, stores, away)).items():
                if doubtful is None or key in doubtful:
                    places.setdefault(key, []).append(one)
            doubtful = {key for key, held in places.items() if len(held) > 1 or _is_sealed(held)}
            settled += [held[0] for key, held in places.items() if key not in doubtful]
            # On its way to another pool: its record says which one counts. If that does not change
            # while all stores are asked, it was the right one all the time.
            before, records = records, {key: await self._records.get(*key) for key in doubtful}
            for key in [one for one in doubtful if one in before]:
                if _same(before[key], records[key]):
                    doubtful.remove(key)
                    home = _document(records[key])
                    settled += [one for one in places[key] if _is_at(home, one)]
            if not doubtful:
                return settled
        raise Unavailable("Queues of the project are on their way to other pools.")

    async def _look_twice(
        self, project: str, stores: dict[str | None, Store], away: set[str]
    ) -> dict[tuple[str | None, QueueKey], _Held]:
        """What moved from a store that was not asked yet to one that had been is seen as well."""
        found = await self._look(project, stores, away)
        while len(stores) > 1 or away:
            asked = len(away)
            await self._has_nothing_in(away, project)
            again = await self._look(project, stores, away)
            found |= {
                where: one
                for where, one in again.items()
                if where not in found or one.holding.messages > found[where].holding.messages
            }
            if len(away) == asked:
                break
        return found

    async def _has_nothing_in(self, away: Collection[str], project: str) -> None:
        """Raise Unavailable if the project has a queue in one of these pools: messages may have
        arrived there since anybody looked.
        """
        for kind in SERVED if away else ():
            if await self._records.page(
                kind, project, "", 1, lambda record: document_of(record).pool in away
            ):
                raise Unavailable("A pool where the project has queues is away.")

    async def _look(
        self, project: str, stores: dict[str | None, Store], away: set[str]
    ) -> dict[tuple[str | None, QueueKey], _Held]:
        """What the stores hold. Pools that do not answer go from ``stores`` to those ``away``."""
        asked = list(stores.items())
        answers = await asyncio.gather(
            *(store.messages.holdings(project) for _, store in asked), return_exceptions=True
        )
        found: dict[tuple[str | None, QueueKey], _Held] = {}
        for (pool, store), holdings in zip(asked, answers, strict=True):
            if isinstance(holdings, Unavailable) and pool is not None:
                del stores[pool]
                away.add(pool)
            elif isinstance(holdings, BaseException):
                raise holdings
            else:
                found |= {(pool, one.ref.key): _Held(pool, store, one) for one in holdings}
        return found

    async def _weigh(self, one: _Held, *, exact: bool) -> tuple[int, bool]:
        """What a queue weighs, and whether it is not less than that."""
        held = one.holding
        where = one.pool, held.ref.key
        known = self._weighed.get(where)
        if known is None or known.generation != held.ref.generation or held.sealed:
            known = _Weighed(held.ref.generation, 1, 0, 0)
        messages = one.store.messages
        if known.next_position < held.next_position:
            more, size = await _weigh(messages, held, known.next_position - 1)
            left = known.messages + more if known.messages + more == held.messages else -1
            known = known._replace(
                next_position=held.next_position, messages=left, bytes=known.bytes + size
            )
        sure = known.messages == held.messages
        if not sure and exact:
            _, size = await _weigh(messages, held, 0)
            known = known._replace(messages=held.messages, bytes=size)
            sure = True
        if len(self._weighed) >= KNOWN_MAX:
            self._weighed.clear()
        self._weighed[where] = known
        return known.bytes, sure


async def _weigh(messages: MessageStore, held: Holding, after: int) -> tuple[int, int]:
    """How many messages there are behind a position, and their bytes, of those that were there
    when the queue was looked at.
    """
    number = size = 0
    try:
        while after < held.next_position - 1:
            step = await messages.weigh(held.ref, after, held.next_position - 1)
            number, size, after = number + step.messages, size + step.bytes, step.through
    except Stale:
        pass  # deleted meanwhile
    return number, size


def _same(one: Record | None, other: Record | None) -> bool:
    return (one and (one.version, one.created_ms)) == (other and (other.version, other.created_ms))


def _document(record: Record | None) -> Document | None:
    return None if record is None else document_of(record)


def _is_sealed(held: Sequence[_Held]) -> bool:
    return any(one.holding.sealed for one in held)


def _is_at(home: Document | None, one: _Held) -> bool:
    generation = one.holding.ref.generation
    return home is not None and (home.generation, home.pool) == (generation, one.pool)
