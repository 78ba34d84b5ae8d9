"""Messages and claims in PostgreSQL."""

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from nusku.errors import Unavailable
from nusku.metrics import Metrics
from nusku.model import (
    Claim,
    Claimed,
    Counts,
    Draft,
    Found,
    Holding,
    Kind,
    Message,
    Occupied,
    QueueKey,
    QueueRef,
    Stored,
    Weight,
)
from nusku.storage import NO_BODIES, POSITIONS_MAX, SERVED, Admitted, Removal, Removed, Stale
from nusku.storage.postgres.connections import Connections
from nusku.storage.postgres.looks import CLAIMED, COUNT, DELAYED, GET, HELD, PAGE, Look, Looks
from nusku.storage.postgres.operations import Many, Singles
from nusku.storage.postgres.schema import calling
from nusku.storage.postgres.work import (
    ANY,
    Add,
    Remove,
    Take,
    Tidy,
    Turn,
    Work,
    claim_id,
    crc,
    due,
)

T = TypeVar("T")

TIDIED_AT_ONCE = 100  # queues that one step of housekeeping goes through
REMEMBERED_MS = 10_000  # how often it is noted how far the clock has come

_MODES = {Removal.UNCLAIMED: 0, Removal.HELD: 1, Removal.ANY: 2}
_REMOVED = tuple(Removed)


class PostgresMessages:
    """See :class:`nusku.storage.MessageStore`."""

    def __init__(self, connections: Connections, metrics: Metrics, remembered_ms: int) -> None:
        schema = connections.address.schema
        self._connections = connections
        self._metrics = metrics
        self._remembered_ms = remembered_ms
        self._call = {
            name: calling(schema, name, n)
            for name, n in {
                "volume": 1, "occupied": 2, "backlog": 2, "sweep": 2, "remember": 1, "move": 13,
                "remove_held": 8, "list_queues": 5, "holdings": 2, "weigh": 7, "dump": 8, "load": 23, "ping": 1,
            }.items()
        }  # fmt: skip
        self._work = Work(connections, calling(schema, "work", 44), calling(schema, "post", 18))
        self._looks = Looks(connections, calling(schema, "read", 14), self._work)
        self._rules: Many[tuple[str | None, str | None]] = Many(
            connections,
            calling(schema, "rule", 9),
            lambda rows, _: list(zip(*rows[0], strict=True)),
            writes=True,
        )
        self._writes = Singles(connections, writes=True)
        self._reads = Singles(connections, writes=False)

    # Queues

    def _rule(self, what: str, ref: QueueRef, flags: int = 0, seal: str = "") -> Awaitable[None]:
        columns = (what, *ref.key, ref.generation, ref.version, flags, seal)
        answer: Awaitable[None] = self._rules.call(columns, _or_stale)
        return answer

    def admit(self, ref: QueueRef) -> Awaitable[Admitted]:
        columns = ("admit", *ref.key, ref.generation, ref.version, 0, "")
        answer: Awaitable[Admitted] = self._rules.call(
            columns, lambda found: Admitted(found[0], found[1] or "")
        )
        return answer

    def open(self, ref: QueueRef, seal: str) -> Awaitable[None]:
        return self._rule("open", ref, seal=seal)

    def seal(self, ref: QueueRef) -> Awaitable[None]:
        return self._rule("seal", ref)

    def clear(self, ref: QueueRef) -> Awaitable[None]:
        return self._rule("clear", ref)

    def drop(
        self, ref: QueueRef, *, empty: bool = False, unless_later: bool = False
    ) -> Awaitable[None]:
        return self._rule("drop", ref, empty + 2 * unless_later)

    # Storing

    def add(self, posts: Sequence[tuple[QueueRef, Sequence[Draft]]]) -> Awaitable[list[list[int]]]:
        if not posts:
            return self._answered([])
        return self._work.put(Add(posts))

    def _answered(self, result: T) -> "asyncio.Future[T]":
        future: asyncio.Future[T] = self._connections.loop.create_future()
        future.set_result(result)
        return future

    # Reading

    def page(
        self,
        ref: QueueRef,
        after: int,
        limit: int,
        *,
        held: bool = False,
        delayed: bool = False,
        without_client: str | None = None,
    ) -> Awaitable[Found]:
        return self._looks.put(
            Look(
                PAGE,
                ref,
                lambda now, numbers, messages: Found(messages, now, due(numbers[0])),
                after=min(max(after, 0), POSITIONS_MAX),
                limit=limit,
                flags=HELD * held + DELAYED * delayed,
                without=without_client,
            )
        )

    def get(self, ref: QueueRef, positions: Sequence[int]) -> Awaitable[Found]:
        def read(now: int, _: Sequence[int], messages: Sequence[Message]) -> Found:
            found = {message.position: message for message in messages}
            return Found([found[p] for p in positions if p in found], now)

        return self._looks.put(Look(GET, ref, read, positions=_possible(positions)))

    def count(self, ref: QueueRef) -> Awaitable[Counts]:
        def read(now: int, numbers: Sequence[int], messages: Sequence[Message]) -> Counts:
            _, free, held, delayed = numbers
            oldest = min(messages, key=lambda one: one.position, default=None)
            newest = max(messages, key=lambda one: one.position, default=None)
            return Counts(free, held, delayed, oldest, newest, now)

        return self._looks.put(Look(COUNT, ref, read))

    def volume(self) -> Awaitable[Counts]:
        def read(rows: list[Any]) -> Counts:
            free, held, delayed, now = rows[0][0]
            self._connections.saw(now)
            return Counts(free, held, delayed, None, None, now)

        return self._reads.call(self._call["volume"], (), read)

    def occupied(self, kind: Kind) -> Awaitable[list[Occupied]]:
        def read(rows: list[Any]) -> list[Occupied]:
            return [
                Occupied(QueueKey(kind, project, name), messages, oldest)
                for project, name, messages, oldest in rows
            ]

        return self._reads.call(self._call["occupied"], (kind,), read)

    # Claims

    def claim(
        self,
        ref: QueueRef,
        limit: int,
        ttl_s: int,
        grace_s: int,
        max_count: int | None = None,
    ) -> Awaitable[Claimed]:
        return self._work.put(Take(ref, limit, ttl_s, grace_s, max_count))

    def claimed(self, ref: QueueRef, claim: str) -> Awaitable[Claim | None]:
        def read(now: int, numbers: Sequence[int], messages: Sequence[Message]) -> Claim | None:
            if not messages:
                return None
            _, ttl_s, started_ms = numbers
            inside = sorted(messages, key=lambda one: one.position)
            return Claim(claim, ttl_s, started_ms, inside, now)

        return self._looks.put(Look(CLAIMED, ref, read, claim=claim_id(claim)))

    def renew(
        self,
        ref: QueueRef,
        claim: str,
        ttl_s: int,
        grace_s: int,
        positions: Sequence[int] | None = None,
    ) -> Awaitable[bool]:
        turn = Turn(
            ref,
            claim_id(claim),
            renew=True,
            seconds=ttl_s,
            grace_s=grace_s,
            positions=_some(positions),
        )
        return self._work.put(turn)

    def release(
        self,
        ref: QueueRef,
        claim: str,
        delay_s: int = 0,
        positions: Sequence[int] | None = None,
        attributes: Mapping[int, bytes] | None = None,
    ) -> Awaitable[bool]:
        turn = Turn(
            ref,
            claim_id(claim),
            renew=False,
            seconds=delay_s,
            positions=_some(positions),
            attributes=attributes,
        )
        return self._work.put(turn)

    # Removing

    def remove(
        self,
        ref: QueueRef,
        positions: Sequence[int],
        removal: Removal,
        claims: Sequence[str] = (),
        *,
        together: bool = False,
    ) -> Awaitable[list[Removed]]:
        names = [claim_id(claim) for claim in claims]
        if together or len(names) > 1:
            return self._remove_held(ref, positions, removal, names, together=together)
        mode = _MODES[removal]
        return self._work.put(
            Remove(ref, _or_none(positions), mode, names[0] if names else claim_id(""))
        )

    def _remove_held(
        self,
        ref: QueueRef,
        positions: Sequence[int],
        removal: Removal,
        claims: Sequence[str],
        *,
        together: bool,
    ) -> Awaitable[list[Removed]]:
        if removal is not Removal.HELD or not positions:
            return self._work.put(Remove(ref, _or_none(positions), _MODES[removal], claim_id("")))

        def read(rows: list[Any]) -> list[Removed]:
            answers = rows[0][0]
            if answers is None:
                raise Stale
            return [_REMOVED[answer] for answer in answers]

        arguments = (*ref.key, ref.generation, _or_none(positions), claims, together)
        return self._writes.call(self._call["remove_held"], arguments, read)

    def move(
        self,
        ref: QueueRef,
        positions: Sequence[int],
        target: QueueRef,
        ttl_s: int | None,
        attributes: Mapping[int, bytes],
        claim: str | None = None,
        bodies: Mapping[int, bytes] = NO_BODIES,
    ) -> Awaitable[list[int]]:
        def read(rows: list[Any]) -> list[int]:
            if rows[0][0] is None:
                raise Stale
            given: list[int] = rows[0][0]
            return given

        arguments = (
            *map(list, zip(ref.key, target.key, strict=True)),
            [ref.generation, target.generation],
            _possible(positions),
            ttl_s,
            claim_id(claim or ""),
            _or_none(attributes),
            list(attributes.values()),
            _or_none(bodies),
            list(map(crc, bodies.values())),
            list(bodies.values()),
        )
        return self._writes.call(self._call["move"], arguments, read)

    def pop(self, ref: QueueRef, limit: int) -> Awaitable[Found]:
        return self._work.put(Take(ref, limit, ANY, 0, None))

    # Housekeeping

    async def expire(self, limit: int) -> int:
        """Other nodes do it too; who comes second to a queue finds nothing."""
        await self._remember()
        backlog = await self._reads.call(
            self._call["backlog"], (TIDIED_AT_ONCE,), lambda rows: [tuple(row) for row in rows]
        )
        left, steps, doomed = limit, [], False
        for kind, project, name, expired in backlog:
            if kind is None:
                doomed = True
                continue
            share = min(left, expired)
            left -= share
            steps.append((kind, self._work.put(Tidy(QueueKey(kind, project, name), share))))
        done = 0
        if steps:
            await asyncio.wait([step for _, step in steps])
        # All are looked at, so that none of several that failed remains unheard.
        failures = [error for _, step in steps if (error := step.exception()) is not None]
        if failures:
            raise failures[0]
        for kind, step in steps:
            removed, back = step.result()
            done += removed + back
            if kind in SERVED:
                self._metrics.messages["expired"] += removed
        if doomed and left > 0:
            done += await self._writes.call(
                self._call["sweep"], (left,), lambda rows: int(rows[0][0])
            )
        return min(done, limit)

    async def _remember(self, interval_ms: int = REMEMBERED_MS) -> None:
        now = self._connections.floor_ms
        if now >= self._remembered_ms + interval_ms:
            self._remembered_ms = now
            await self._writes.call(self._call["remember"], (), lambda _: None)

    async def ping(self) -> None:
        """Ask the server whether it could write."""
        await self._reads.call(self._call["ping"], (), lambda _: None)

    async def close(self) -> None:
        """Note how far the clock has come."""
        await self._remember(1)

    # From one store to another

    def queues(self, after: QueueKey | None, limit: int) -> Awaitable[list[Holding]]:
        arguments = (*(after or ("", "", "")), limit)
        return self._reads.call(self._call["list_queues"], arguments, _holdings)

    def holdings(self, project: str) -> Awaitable[list[Holding]]:
        return self._reads.call(self._call["holdings"], (project,), _holdings)

    async def weigh(self, ref: QueueRef, after: int, through: int) -> Weight:
        after, through = (min(max(position, 0), POSITIONS_MAX) for position in (after, through))
        arguments = (*ref.key, ref.generation, after, through)
        rows = await self._reads.call(self._call["weigh"], arguments, list)
        if not rows:
            raise Stale
        return Weight(*rows[0])

    async def dump(
        self, ref: QueueRef, after: int, limit: int, *, bodies: bool = True
    ) -> list[Stored]:
        after = min(max(after, 0), POSITIONS_MAX)
        found: list[Stored] = []
        while True:
            arguments = (*ref.key, ref.generation, after, limit - len(found), bodies)
            rows = await self._reads.call(self._call["dump"], arguments, list)
            if not rows:
                raise Stale
            *messages, end = rows
            found += map(_stored, messages)
            if end[1] is None:
                return found
            after = end[1]

    async def load(
        self,
        ref: QueueRef,
        next_position: int,
        after: int,
        through: int,
        messages: Sequence[Stored],
    ) -> None:
        if any(one.body is None for one in messages):
            raise ValueError("a message comes without its body")
        done: int | None = max(after, 0)
        while done is not None:
            coming = [_loaded(one) for one in messages if done < one.position <= through]
            columns = map(list, zip(*coming, strict=True)) if coming else [[] for _ in range(14)]
            arguments = (*ref.key, ref.generation, ref.version, next_position, done, through)
            done = await self._writes.call(
                self._call["load"], (*arguments, *columns), lambda rows: rows[0][0]
            )
            if done == -1:
                raise Stale


def _holdings(rows: list[Any]) -> list[Holding]:
    return [Holding(QueueRef(QueueKey(*row[:3]), row[3], row[4]), *row[5:9]) for row in rows]


def _possible(positions: Iterable[int]) -> list[int]:
    """Those that a message can have, each once."""
    return [p for p in dict.fromkeys(positions) if 0 < p < POSITIONS_MAX]


def _some(positions: Sequence[int] | None) -> list[int] | None:
    return None if positions is None else _possible(positions)


def _or_none(positions: Iterable[int]) -> list[int]:
    """All of them, with 0, which no message has, for those that none can have."""
    return [p if 0 < p < POSITIONS_MAX else 0 for p in positions]


def _or_stale(found: tuple[str | None, str | None]) -> None:
    if found[0] is not None:
        raise Stale


def _stored(row: Any) -> Stored:
    position, posted, ttl, expires, count, client, sum_, body, *rest = row
    if body is not None and crc(body) != sum_:
        raise Unavailable("A stored message is damaged.")
    attributes, dedup, hidden, claim, *term = rest
    return Stored(
        position, posted, ttl, expires, count, client, body, attributes, dedup, hidden,
        claim and claim.hex, *term,
    )  # fmt: skip


def _loaded(one: Stored) -> tuple[Any, ...]:
    return (
        one.position, one.posted_ms, one.ttl_s, one.expires_ms, one.count, one.client,
        crc(one.body or b""), one.body, one.attributes, one.dedup, one.hidden_ms,
        claim_id(one.claim) if one.claim else None, one.claim_ttl_s, one.claim_started_ms,
    )  # fmt: skip
