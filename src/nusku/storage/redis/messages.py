"""Messages and claims in Redis. What is done to a lane is in ``lanes.lua``."""

import asyncio
import re
import secrets
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from nusku.errors import Unavailable
from nusku.model import (
    Claim,
    Claimed,
    Counts,
    Draft,
    Found,
    Holding,
    Kind,
    Occupied,
    QueueKey,
    QueueRef,
    Stored,
    Weight,
)
from nusku.storage import NO_BODIES, SERVED, Admitted, Apart, Removal, Removed
from nusku.storage.redis.busy import TOGETHER, Busy
from nusku.storage.redis.calls import LANES, REGISTER, unspeakable
from nusku.storage.redis.engine import Engine
from nusku.storage.redis.keys import Place, lane_name, text
from nusku.storage.redis.rows import drafted, dumped, loaded, messages, packed, terms

POSITIONS = 1 << 43
PLACES = 50_000  # lanes whose keys are kept in memory
REGISTRATIONS = 5  # attempts to register a lane, each of which only another node can undo
SCANNED = 1000  # keys looked at by one step in search of lanes
WEIGHED = 100  # what a step of weighing weighs itself

_REMOVED = tuple(Removed)
_CLAIM = re.compile(r"[0-9a-f]{32}")


class RedisMessages:
    """See :class:`nusku.storage.MessageStore`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._places: dict[QueueKey, Place] = {}
        self.busy = Busy(engine, self._place)

    def _place(self, key: QueueKey) -> Place:
        place = self._places.get(key)
        if place is None:
            if len(self._places) >= PLACES:
                self._places.clear()
            try:
                place = Place(lane_name(key), key.kind in SERVED)
            except UnicodeEncodeError as error:
                raise Unavailable("The storage could not do this.") from error
            self._places[key] = place
        return place

    def _run(
        self,
        key: QueueKey,
        what: Sequence[Any],
        weight: int = 1,
        *,
        writes: bool = True,
        more: bool = False,
    ) -> Awaitable[list[Any]]:
        place = self._place(key)
        if writes:
            self.busy.touched(place)
        return self._engine.run(LANES, (place,), what, weight, writes=writes, more=more)

    # Queues

    async def admit(self, ref: QueueRef) -> Admitted:
        what = ("admit", ref.generation, ref.version, _fresh())
        _, other, seal = await self._run(ref.key, what)
        return Admitted(other.decode() if other else None, str(seal or ""))

    async def open(self, ref: QueueRef, seal: str) -> None:
        if seal.isdecimal():
            await self._run(ref.key, ("open", ref.generation, ref.version, int(seal)))

    async def seal(self, ref: QueueRef) -> None:
        await self._run(ref.key, ("seal", ref.generation, ref.version, _fresh()))

    async def clear(self, ref: QueueRef) -> None:
        await self._run(ref.key, ("clear", ref.generation))

    async def drop(self, ref: QueueRef, *, empty: bool = False, unless_later: bool = False) -> None:
        await self._run(ref.key, ("drop", ref.generation, ref.version, empty, unless_later))

    # Storing

    async def add(self, posts: Sequence[tuple[QueueRef, Sequence[Draft]]]) -> list[list[int]]:
        places = [self._place(ref.key) for ref, _ in posts]
        if not places:
            return []
        if self._engine.clustered and any(place.tag != places[0].tag for place in places):
            raise Apart
        for place in places:
            self.busy.touched(place)
        try:
            drafts = [[part for one in some for part in drafted(one)] for _, some in posts]
        except (ValueError, OverflowError) as error:
            raise unspeakable(error) from error
        weight = sum(len(some) for _, some in posts)
        numbers = [0] * len(posts)  # no lane has that one
        for attempt in range(REGISTRATIONS):
            what = _posts(posts, drafts, numbers)
            answer = await self._engine.run(
                LANES, places, what, weight, adds=True, more=attempt > 0
            )
            if answer[0] != REGISTER:
                return [answer[1:]] if len(posts) == 1 else answer[1:]
            for post, number in zip(answer[1::2], answer[2::2], strict=True):
                numbers[post - 1] = number
                await self.busy.register(posts[post - 1][0].key, number)
        raise Unavailable("The storage could not do this.")

    # Reading

    async def page(
        self,
        ref: QueueRef,
        after: int,
        limit: int,
        *,
        held: bool = False,
        delayed: bool = False,
        without_client: str | None = None,
    ) -> Found:
        found: list[Any] = []
        position = _clamped(after)
        while True:
            left = limit - len(found)
            answer = await self._run(
                ref.key,
                ("page", ref.generation, position, left, held, delayed, without_client),
                min(left, 200),
                writes=False,
                more=position != _clamped(after),
            )
            found += messages(answer, 4)
            position = answer[3]
            if not position:
                return Found(found, answer[1], answer[2] or None)

    async def get(self, ref: QueueRef, positions: Sequence[int]) -> Found:
        what = ("get", ref.generation, _known(positions))
        answer = await self._run(ref.key, what, len(positions), writes=False)
        return Found(messages(answer, 2), answer[1])

    async def count(self, ref: QueueRef) -> Counts:
        answer = await self._run(ref.key, ("count", ref.generation), 4, writes=False)
        _, now, free, held, delayed, *rows = answer
        if not rows:
            return Counts(free, held, delayed, None, None, now)
        oldest, newest = messages(answer, 5)
        return Counts(free, held, delayed, oldest, newest, now)

    async def volume(self) -> Counts:
        return await self.busy.volume()

    async def occupied(self, kind: Kind) -> list[Occupied]:
        return await self.busy.occupied(kind)

    # Claims

    async def claim(
        self,
        ref: QueueRef,
        limit: int,
        ttl_s: int,
        grace_s: int,
        max_count: int | None = None,
    ) -> Claimed:
        claim = secrets.token_hex(16)
        answer = await self._run(
            ref.key,
            ("claim", ref.generation, ref.version, limit, ttl_s, grace_s, max_count, claim),
            2 + limit,
        )
        found = messages(answer, 4)
        return Claimed(claim if found else None, found, answer[3], answer[1], answer[2] or None)

    async def claimed(self, ref: QueueRef, claim: str) -> Claim | None:
        what = ("claimed", ref.generation, _claim(claim))
        answer = await self._run(ref.key, what, 20, writes=False)
        found = messages(answer, 2)
        if not found:
            return None
        started, ttl = max(terms(answer, 2))
        return Claim(claim, ttl, started, found, answer[1])

    async def renew(
        self,
        ref: QueueRef,
        claim: str,
        ttl_s: int,
        grace_s: int,
        positions: Sequence[int] | None = None,
    ) -> bool:
        some = None if positions is None else _known(positions)
        what = ("renew", ref.generation, _claim(claim), ttl_s, grace_s, some)
        _, done = await self._run(ref.key, what, 20)
        return bool(done)

    async def release(
        self,
        ref: QueueRef,
        claim: str,
        delay_s: int = 0,
        positions: Sequence[int] | None = None,
        attributes: Mapping[int, bytes] | None = None,
    ) -> bool:
        some = None if positions is None else _known(positions)
        what = ("release", ref.generation, _claim(claim), delay_s, some, _given(attributes or {}))
        _, done = await self._run(ref.key, what, 20)
        return bool(done)

    # Removing

    async def remove(
        self,
        ref: QueueRef,
        positions: Sequence[int],
        removal: Removal,
        claims: Sequence[str] = (),
        *,
        together: bool = False,
    ) -> list[Removed]:
        what = ("remove", ref.generation, _known(positions), removal.value,
                [_claim(claim) for claim in claims], together)  # fmt: skip
        answer = await self._run(ref.key, what, len(positions))
        return [_REMOVED[verdict] for verdict in answer[1:]]

    async def pop(self, ref: QueueRef, limit: int) -> Found:
        answer = await self._run(ref.key, ("pop", ref.generation, limit), 2 * limit)
        return Found(messages(answer, 3), answer[1], answer[2] or None)

    async def move(
        self,
        ref: QueueRef,
        positions: Sequence[int],
        target: QueueRef,
        ttl_s: int | None,
        attributes: Mapping[int, bytes],
        claim: str | None = None,
        bodies: Mapping[int, bytes] = NO_BODIES,
    ) -> list[int]:
        places = self._place(ref.key), self._place(target.key)
        if self._engine.clustered and places[0].tag != places[1].tag:
            raise Apart
        for place in places:
            self.busy.touched(place)
        number, anew = None, _packed(bodies)
        for attempt in range(REGISTRATIONS):
            what = ("move", ref.generation, _known(positions), target.generation, ttl_s,
                    _given(attributes), claim and _claim(claim), number, anew)  # fmt: skip
            answer = await self._engine.run(
                LANES, places, what, 2 * len(positions), more=attempt > 0
            )
            if answer[0] != REGISTER:
                return answer[1:]
            number = answer[2]
            await self.busy.register(target.key, number)
        raise Unavailable("The storage could not do this.")

    async def expire(self, limit: int) -> int:
        return await self.busy.expire(limit)

    # From one store to another

    async def queues(self, after: QueueKey | None, limit: int) -> list[Holding]:
        """Looks at all keys: there is no list of all lanes that could differ from what there is."""
        keys: set[QueueKey] = set()
        async for some in self._engine.lanes(SCANNED):
            keys.update(key for key in some if after is None or key > after)
        ordered = sorted(keys)
        holdings: list[Holding] = []
        for start in range(0, len(ordered), TOGETHER):
            if len(holdings) >= limit:
                break
            some = ordered[start : start + min(TOGETHER, limit - len(holdings))]
            holdings += [one for one in await asyncio.gather(*map(self._holding, some)) if one]
        return holdings

    async def holdings(self, project: str) -> list[Holding]:
        keys = await self.busy.of_project(project)
        found: list[Holding | None] = []
        for start in range(0, len(keys), TOGETHER):
            some = keys[start : start + TOGETHER]
            found += await asyncio.gather(*map(self._holding, some))
        return [one for one in found if one is not None and one.messages]

    async def weigh(self, ref: QueueRef, after: int, through: int) -> Weight:
        what = ("weigh", ref.generation, _clamped(after), _clamped(through))
        answer = await self._run(ref.key, what, WEIGHED, writes=False)
        return Weight(*answer[1:])

    async def _holding(self, key: QueueKey) -> Holding | None:
        answer = await self._run(key, ("head",), writes=False)
        if len(answer) == 1:
            return None
        _, now, generation, version, next_position, total, seal = answer
        ref = QueueRef(key, generation.decode(), version)
        return Holding(ref, next_position, total, bool(seal), now)

    async def dump(
        self, ref: QueueRef, after: int, limit: int, *, bodies: bool = True
    ) -> list[Stored]:
        found: list[Stored] = []
        position = _clamped(after)
        while True:
            left = limit - len(found)
            what = ("dump", ref.generation, position, left, bodies)
            answer = await self._run(
                ref.key, what, min(left, 200), writes=False, more=position != _clamped(after)
            )
            found += dumped(answer, 3, bodies)
            position = answer[2]
            if not position:
                return found

    async def load(
        self,
        ref: QueueRef,
        next_position: int,
        after: int,
        through: int,
        messages: Sequence[Stored],
    ) -> None:
        place = self._place(ref.key)
        self.busy.touched(place)
        try:
            rows = [loaded(one) for one in messages]
        except (ValueError, OverflowError) as error:
            raise unspeakable(error) from error
        fresh, number = _fresh(), None
        for attempt in range(REGISTRATIONS):
            what = ("load", ref.generation, ref.version, next_position, _clamped(after),
                    _clamped(through), rows, fresh, number)  # fmt: skip
            answer = await self._engine.run(
                LANES, (place,), what, len(rows) + 1, adds=True, more=attempt > 0
            )
            if answer[0] != REGISTER:
                return
            number = answer[2]
            await self.busy.register(ref.key, number)
        raise Unavailable("The storage could not do this.")


def _posts(
    posts: Sequence[tuple[QueueRef, Sequence[Draft]]],
    drafts: Sequence[Sequence[Any]],
    numbers: Sequence[int],
) -> Sequence[Any]:
    lists = [
        (ref.generation, ref.version, number, *some)
        for (ref, _), some, number in zip(posts, drafts, numbers, strict=True)
    ]
    return ("post", *lists[0]) if len(lists) == 1 else ("add", *lists)


def _fresh() -> int:
    """A number that nothing has had, for a seal or the registration of a new lane."""
    return secrets.randbelow(1 << 48) + 1


def _clamped(position: int) -> int:
    return min(max(position, 0), POSITIONS - 1)


def _known(positions: Sequence[int]) -> list[int]:
    """The same, with 0 for what is never given out."""
    return [position if 0 < position < POSITIONS else 0 for position in positions]


def _claim(claim: str) -> str:
    """The id, or an empty one, which no claim has, for what is none."""
    return claim if _CLAIM.fullmatch(claim) else ""


def _packed(bodies: Mapping[int, bytes]) -> list[Any]:
    return [
        part
        for position, body in bodies.items()
        if 0 < position < POSITIONS
        for part in (position, packed(body))
    ]


def _given(attributes: Mapping[int, bytes]) -> list[Any]:
    return [
        part
        for position, given in attributes.items()
        if 0 < position < POSITIONS
        for part in (position, text(given))
    ]
