"""What a message store must answer, in memory and without regard to cost.

The store chooses positions and claim ids, so the model is told them; it decides everything else.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nusku.model import (
    Counts,
    Draft,
    Holding,
    Kind,
    Message,
    Occupied,
    QueueKey,
    QueueRef,
    Stored,
)
from nusku.storage import Removal, Removed, Stale
from tests.storage.harness import TurnedClock


@dataclass(slots=True)
class Row:
    """A message; ``claim`` is what hides it until ``visible_ms``, if a claim does."""

    position: int
    posted_ms: int
    ttl_s: int
    expires_ms: int
    visible_ms: int
    client: str
    body: bytes
    attributes: bytes | None
    dedup: str | None
    claim: str | None = None
    term: tuple[int, int] = (0, 0)
    """When that claim was made or last renewed for this message, and its ttl."""
    count: int = 0

    def holder(self, now_ms: int) -> str | None:
        return self.claim if self.visible_ms > now_ms else None

    def delayed(self, now_ms: int) -> bool:
        return self.visible_ms > now_ms and self.claim is None

    def message(self, now_ms: int) -> Message:
        return Message(
            self.position,
            self.posted_ms,
            self.ttl_s,
            self.expires_ms,
            self.count,
            self.client,
            self.body,
            self.holder(now_ms),
            self.attributes,
        )

    def stored(self, now_ms: int, *, body: bool) -> Stored:
        hidden, holder = self.visible_ms > now_ms, self.holder(now_ms)
        started_ms, ttl_s = self.term if holder else (0, 0)
        return Stored(
            self.position,
            self.posted_ms,
            self.ttl_s,
            self.expires_ms,
            self.count,
            self.client,
            self.body if body else None,
            self.attributes,
            self.dedup,
            self.visible_ms if hidden else 0,
            holder,
            ttl_s,
            started_ms,
        )

    @classmethod
    def of(cls, one: Stored) -> "Row":
        assert one.body is not None
        return cls(
            one.position,
            one.posted_ms,
            one.ttl_s,
            one.expires_ms,
            one.hidden_ms,
            one.client,
            one.body,
            one.attributes,
            one.dedup,
            one.claim,
            (one.claim_started_ms, one.claim_ttl_s),
            one.count,
        )


@dataclass(slots=True)
class Lane:
    """A queue in its current generation."""

    ref: QueueRef
    rows: list[Row] = field(default_factory=list)
    top: int = 0
    sealed: bool = True


class Model:
    """All queues of a store."""

    def __init__(self, clock: TurnedClock) -> None:
        self.clock = clock
        self.lanes: dict[QueueKey, Lane] = {}

    # Finding rows

    def lane(self, ref: QueueRef, *, fresh: bool = False) -> Lane:
        lane = self.any_lane(ref)
        if lane is None or lane.sealed or (fresh and lane.ref != ref):
            raise Stale
        return lane

    def any_lane(self, ref: QueueRef) -> Lane | None:
        """The queue, sealed or not, if it is of this generation."""
        lane = self.lanes.get(ref.key)
        if lane is None or lane.ref.generation != ref.generation:
            return None
        self._live(lane)
        return lane

    def _live(self, lane: Lane) -> list[Row]:
        lane.rows = [row for row in lane.rows if row.expires_ms > self.clock()]
        return lane.rows

    def alive(self, ref: QueueRef) -> list[Row]:
        return self.lane(ref).rows

    def free(self, ref: QueueRef) -> list[Row]:
        return [row for row in self.alive(ref) if row.visible_ms <= self.clock()]

    def held(self, ref: QueueRef, claim: str, positions: Sequence[int] | None = None) -> list[Row]:
        return [
            row
            for row in self.alive(ref)
            if row.holder(self.clock()) == claim
            and (positions is None or row.position in positions)
        ]

    def messages(self, rows: Iterable[Row]) -> list[Message]:
        return [row.message(self.clock()) for row in rows]

    def due_ms(self, ref: QueueRef) -> int | None:
        """When the first of what is hidden comes free, unless it expires before."""
        return min(
            (
                row.visible_ms
                for row in self.alive(ref)
                if self.clock() < row.visible_ms < row.expires_ms
            ),
            default=None,
        )

    # The operations

    def admit(self, ref: QueueRef) -> str | None:
        lane = self.lanes.setdefault(ref.key, Lane(ref))
        if lane.ref.generation != ref.generation:
            return lane.ref.generation
        lane.ref = max(lane.ref, ref, key=lambda one: one.version)
        return None

    def open(self, ref: QueueRef) -> None:
        lane = self.any_lane(ref)
        if lane is not None and lane.ref == ref:
            lane.sealed = False

    def seal(self, ref: QueueRef) -> None:
        lane = self.unless_overtaken(ref)
        lane.ref, lane.sealed = ref, True

    def unless_overtaken(self, ref: QueueRef) -> Lane:
        lane = self.any_lane(ref)
        if lane is None or lane.ref.version > ref.version:
            raise Stale
        return lane

    def drop(self, ref: QueueRef, *, empty: bool = False, unless_later: bool = False) -> None:
        lane = self.any_lane(ref)
        if (
            lane is not None
            and not (empty and lane.rows)
            and not (unless_later and lane.ref.version > ref.version)
        ):
            del self.lanes[ref.key]

    def holdings(self) -> list[Holding]:
        return [
            Holding(lane.ref, lane.top + 1, len(self._live(lane)), lane.sealed, self.clock())
            for _, lane in sorted(self.lanes.items())
        ]

    def dump(self, ref: QueueRef, after: int, limit: int, *, bodies: bool) -> list[Stored]:
        lane = self.any_lane(ref)
        if lane is None:
            raise Stale
        rows = [row for row in lane.rows if row.position > after]
        return [row.stored(self.clock(), body=bodies) for row in rows[:limit]]

    def load(
        self,
        ref: QueueRef,
        next_position: int,
        after: int,
        through: int,
        messages: Sequence[Stored],
    ) -> None:
        if ref.key not in self.lanes:
            self.lanes[ref.key] = Lane(ref)
        lane = self.unless_overtaken(ref)
        lane.ref = ref
        new = {one.position: Row.of(one) for one in messages if one.expires_ms > self.clock()}
        old = {r.position: r for r in lane.rows if not after < r.position <= through}
        keys = {row.dedup for row in new.values()}
        for row in old.values():
            row.dedup = None if row.dedup in keys else row.dedup
        lane.rows = [row for _, row in sorted((old | new).items())]
        lane.top = max([lane.top, next_position - 1, *new])

    def clear(self, ref: QueueRef) -> None:
        self.lane(ref).rows.clear()

    def add(
        self, posts: Sequence[tuple[QueueRef, Sequence[Draft]]], given: list[list[int]]
    ) -> None:
        """Check the positions that were given, and append."""
        now = self.clock()
        lanes = [self.lane(ref, fresh=True) for ref, _ in posts]
        for lane, (_, drafts), positions in zip(lanes, posts, given, strict=True):
            for draft, position in zip(drafts, positions, strict=True):
                known = {row.dedup: row.position for row in lane.rows if row.dedup is not None}
                if draft.dedup is not None and draft.dedup in known:
                    assert position == known[draft.dedup]
                    continue
                assert position > lane.top, "positions restarted"
                lane.top = position
                lane.rows.append(
                    Row(
                        position,
                        draft.posted_ms or now,
                        draft.ttl_s,
                        now + draft.ttl_s * 1000,
                        now + draft.delay_s * 1000,
                        draft.client,
                        draft.body,
                        draft.attributes,
                        draft.dedup,
                        count=draft.count,
                    )
                )

    def page(
        self,
        ref: QueueRef,
        after: int,
        limit: int,
        *,
        held: bool,
        delayed: bool,
        without_client: str | None,
    ) -> list[Message]:
        now = self.clock()
        rows = [
            row
            for row in self.alive(ref)
            if row.position > after
            and (held or row.holder(now) is None)
            and (delayed or not row.delayed(now))
            and (without_client is None or row.client != without_client)
        ]
        return self.messages(rows[:limit])

    def get(self, ref: QueueRef, positions: Sequence[int]) -> list[Message]:
        by_position = {row.position: row for row in self.alive(ref)}
        return self.messages(by_position[p] for p in positions if p in by_position)

    def claim(
        self,
        ref: QueueRef,
        limit: int,
        ttl_s: int,
        grace_s: int,
        max_count: int | None,
        claim: str | None,
    ) -> tuple[list[Message], list[int]]:
        """What a claim of this id gets, and the positions that are spent."""
        self.lane(ref, fresh=True)
        taken: list[Row] = []
        spent: list[int] = []
        for row in self.free(ref):
            if len(taken) == limit:
                break
            if max_count is not None and row.count >= max_count:
                spent.append(row.position)
                continue
            taken.append(row)
        assert (claim is not None) == bool(taken)
        if claim is not None:
            self._hold(taken, claim, ttl_s, grace_s)
        for row in taken:
            row.count += max_count is not None
        return self.messages(taken), spent

    def _hold(self, rows: Sequence[Row], claim: str, ttl_s: int, grace_s: int) -> None:
        now = self.clock()
        for row in rows:
            row.claim, row.visible_ms, row.term = claim, now + ttl_s * 1000, (now, ttl_s)
            if row.expires_ms < row.visible_ms:
                row.ttl_s = ttl_s + grace_s
                row.expires_ms = now + row.ttl_s * 1000

    def claimed(self, ref: QueueRef, claim: str) -> tuple[list[Message], set[tuple[int, int]]]:
        """What a claim holds, and its terms: several when it was renewed for some only."""
        rows = self.held(ref, claim)
        return self.messages(rows), {row.term for row in rows}

    def renew(
        self,
        ref: QueueRef,
        claim: str,
        ttl_s: int,
        grace_s: int,
        positions: Sequence[int] | None,
    ) -> bool:
        rows = self.held(ref, claim, positions)
        if rows:
            self._hold(rows, claim, ttl_s, grace_s)
        return bool(rows)

    def release(
        self,
        ref: QueueRef,
        claim: str,
        delay_s: int,
        positions: Sequence[int] | None,
        attributes: Mapping[int, bytes] | None,
    ) -> bool:
        rows = self.held(ref, claim, positions)
        for row in rows:
            row.claim, row.visible_ms = None, self.clock() + delay_s * 1000
            row.attributes = (attributes or {}).get(row.position, row.attributes)
        return bool(rows)

    def remove(
        self,
        ref: QueueRef,
        positions: Sequence[int],
        removal: Removal,
        claims: Sequence[str],
        *,
        together: bool,
    ) -> list[Removed]:
        lane, now = self.lane(ref), self.clock()
        holders = {row.position: row.holder(now) for row in lane.rows}
        live = {claim for claim in claims if self.held(ref, claim)}

        def judge(position: int) -> Removed:
            holder = holders.get(position)
            if position not in holders or removal is Removal.ANY:
                return Removed.GONE
            if removal is Removal.UNCLAIMED:
                return Removed.GONE if holder is None else Removed.HELD_BY_OTHER
            if holder is None:
                return Removed.GONE if together else Removed.UNCLAIMED
            if holder in claims:
                return Removed.GONE
            return Removed.HELD_BY_OTHER if live or together else Removed.CLAIM_UNKNOWN

        answers = [judge(position) for position in positions]
        touched = {holders[p] for p in positions if p in holders}
        if together and touched and touched - {None} != set(claims):
            return [Removed.HELD_BY_OTHER if p in holders else Removed.GONE for p in positions]
        gone = {p for p, answer in zip(positions, answers, strict=True) if answer is Removed.GONE}
        lane.rows = [row for row in lane.rows if row.position not in gone]
        return answers

    def move(
        self,
        ref: QueueRef,
        positions: Sequence[int],
        target: QueueRef,
        ttl_s: int | None,
        attributes: Mapping[int, bytes],
        claim: str | None,
        given: list[int],
        bodies: Mapping[int, bytes],
    ) -> None:
        """Check the new positions that were given, and move."""
        goal = self.lane(target)
        if self.any_lane(ref) is None:
            assert not given
            return
        source = self.lane(ref)
        held = [] if claim is None else self.held(ref, claim)
        movable = {row.position: row for row in self.free(ref) + held}
        moved = [movable[p] for p in positions if p in movable]
        for row, position in zip(moved, given, strict=True):
            source.rows.remove(row)
            assert position > goal.top
            goal.top = position
            new = replace(row, position=position, dedup=None, claim=None, visible_ms=0)
            new.attributes = attributes.get(row.position, row.attributes)
            new.body = bodies.get(row.position, row.body)
            if ttl_s is not None:
                new.ttl_s, new.expires_ms = ttl_s, self.clock() + ttl_s * 1000
            goal.rows.append(new)

    def pop(self, ref: QueueRef, limit: int) -> list[Message]:
        taken = self.free(ref)[:limit]
        lane = self.lane(ref)
        lane.rows = [row for row in lane.rows if row not in taken]
        return self.messages(taken)

    def count(self, ref: QueueRef) -> Counts:
        return self._count(self.lane(ref))

    def _count(self, lane: Lane) -> Counts:
        now, rows = self.clock(), self._live(lane)
        held = sum(row.holder(now) is not None for row in rows)
        delayed = sum(row.delayed(now) for row in rows)
        oldest, newest = self.messages([rows[0], rows[-1]]) if rows else (None, None)
        return Counts(len(rows) - held - delayed, held, delayed, oldest, newest, now)

    def occupied(self, kind: Kind) -> set[Occupied]:
        lanes = [lane for lane in self.lanes.values() if lane.ref.key.kind == kind]
        return {
            Occupied(lane.ref.key, len(rows), rows[0].posted_ms)
            for lane in lanes
            if (rows := self._live(lane))
        }

    def volume(self) -> Counts:
        each = [
            self._count(lane)
            for lane in self.lanes.values()
            if lane.ref.key.kind in {"queue", "topic"}
        ]

        def total(read: Callable[[Counts], int]) -> int:
            return sum(map(read, each))

        return Counts(
            total(lambda c: c.free),
            total(lambda c: c.held),
            total(lambda c: c.delayed),
            None,
            None,
            self.clock(),
        )
