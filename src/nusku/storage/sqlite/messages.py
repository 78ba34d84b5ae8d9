"""Messages and claims in SQLite. Each operation is one function run inside a transaction."""

from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from typing import Any
from zlib import crc32

from nusku.errors import StoreFull, Unavailable
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
from nusku.storage import NO_BODIES, POSITIONS_MAX, SERVED, TICK_MS, Admitted, Removal, Removed
from nusku.storage.sqlite.connection import ALONE, HEAVY, Again, Connection
from nusku.storage.sqlite.file import File
from nusku.storage.sqlite.holds import Holds
from nusku.storage.sqlite.ledger import Lane, Ledger
from nusku.storage.sqlite.scan import (
    BUDGET,
    COLUMNS,
    NEXT,
    NEXT_FREE,
    PAGE_ALL,
    PAGE_FREE,
    Row,
    Scan,
    check,
)
from nusku.storage.sqlite.schema import DUE, EXPIRY, LAPSE
from nusku.storage.sqlite.sweep import Sweep
from nusku.storage.sqlite.transfer import Transfer

INSERT = f"INSERT INTO messages ({COLUMNS}, dedup) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
HOLD = "UPDATE messages SET claim = ?, visible_ms = ?, count = ?, ttl_s = ?, expires_ms = ? WHERE id = ?"
REPLACE = "UPDATE messages SET body = ?, crc = ? WHERE id = ?"
DELETE = "DELETE FROM messages WHERE id = ?"
DELETE_ANY = f"{DELETE} RETURNING claim, visible_ms, expires_ms"
DELETE_UNCLAIMED = (
    "DELETE FROM messages WHERE id = ? AND (claim <= 0 OR visible_ms <= ?)"
    " RETURNING claim, visible_ms, expires_ms"
)
DELETE_HELD = (
    "DELETE FROM messages WHERE id = ? AND claim = ? AND visible_ms > ? AND expires_ms > ?"
    " RETURNING claim, visible_ms, expires_ms"
)
OCCUPIED = (
    "SELECT l.kind, l.project, l.name, l.total - coalesce((SELECT sum(n) FROM tallies"
    " WHERE lane = l.id AND kind = 0 AND at_ms <= ?1), 0), (SELECT posted_ms FROM messages"
    " WHERE id >= l.id << 43 AND id < (l.id + 1) << 43 AND expires_ms > ?1 ORDER BY id LIMIT 1)"
    " FROM lanes AS l WHERE l.doomed = 0 AND l.kind = ?2 AND l.total > 0"
)
STATE = "SELECT claim, visible_ms, expires_ms FROM messages WHERE id = ?"

WEIGHED = 100  # what a step of weighing weighs itself


def deadline_ms(now_ms: int, after_s: int) -> int:
    """The tick at or after ``after_s`` from now: few distinct ends keep the tallies short."""
    return -(-(now_ms + after_s * 1000) // TICK_MS) * TICK_MS


class SqliteMessages:
    """See :class:`nusku.storage.MessageStore`."""

    def __init__(
        self, connection: Connection, file: File, metrics: Metrics, watermark_bytes: int
    ) -> None:
        self._connection = connection
        self._run = connection.run
        self._db = connection.db
        self._file = file
        self._watermark_bytes = watermark_bytes
        self._ledger = Ledger(connection.db, lambda: self._holds.number())  # noqa: PLW0108 - made below
        connection.attach(self._ledger)
        self._holds = Holds(connection, self._ledger, file.key, file.boot)
        self._scan = Scan(connection, self._holds)
        self._sweep = Sweep(connection, self._ledger, self._holds, file, metrics)
        self._transfer = Transfer(connection, self._ledger, self._holds, self._scan)
        self._room = (0, True)

    # Queues

    def admit(self, ref: QueueRef) -> Awaitable[Admitted]:
        return self._run(partial(self._ledger.admit, ref))

    def open(self, ref: QueueRef, seal: str) -> Awaitable[None]:
        return self._run(partial(self._ledger.open, ref, seal))

    def seal(self, ref: QueueRef) -> Awaitable[None]:
        return self._run(partial(self._ledger.seal, ref))

    # Storing

    def add(self, posts: Sequence[tuple[QueueRef, Sequence[Draft]]]) -> Awaitable[list[list[int]]]:
        return self._run(partial(self._add, posts), sum(len(drafts) for _, drafts in posts))

    def _add(self, posts: Sequence[tuple[QueueRef, Sequence[Draft]]]) -> list[list[int]]:
        lanes = [self._ledger.lane(ref, fresh=True) for ref, _ in posts]
        self.check_room()
        return [self._append(lane, drafts) for lane, (_, drafts) in zip(lanes, posts, strict=True)]

    def _append(self, lane: Lane, drafts: Sequence[Draft]) -> list[int]:
        now, first = self._connection.now_ms, lane.first
        positions, rows = [], []
        known: dict[str, int] = {}
        delayed: dict[int, tuple[list[int], int]] = {}
        ends: dict[int, int] = {}  # by ttl: messages posted together mostly have the same
        lives: dict[int, int] = {}  # how many expire at which time
        if lane.next_position + len(drafts) > POSITIONS_MAX:
            raise Unavailable("The queue has used up its positions.")
        for draft in drafts:
            id_ = first + lane.next_position
            if draft.dedup is not None:
                present = known.get(draft.dedup) or self._present(lane, draft.dedup)
                known[draft.dedup] = present or id_
                if present:
                    positions.append(present - first)
                    continue
            lane.next_position += 1
            positions.append(id_ - first)
            ttl_s = draft.ttl_s
            expires = ends.get(ttl_s) or ends.setdefault(ttl_s, deadline_ms(now, ttl_s))
            lives[expires] = lives.get(expires, 0) + 1
            visible = claim = 0
            if draft.delay_s:
                visible = deadline_ms(now, draft.delay_s)
                ids, claim = delayed.setdefault(visible, ([], -self._holds.number()))
                ids.append(id_)
                lane.delayed += 1
                self._ledger.tally(lane, DUE, min(visible, expires), 1)
            body = draft.body
            rows.append(
                (id_, draft.posted_ms or now, ttl_s, expires, visible, claim, draft.count,
                 draft.client, crc32(body), body, draft.attributes, draft.dedup)
            )  # fmt: skip
        for expires, n in lives.items():
            self._ledger.added(lane, expires, n)
        if len(rows) == 1:
            self._db.execute(INSERT, rows[0])
        else:
            self._db.executemany(INSERT, rows)
        for visible, (ids, claim) in delayed.items():
            self._holds.hide(lane, claim, visible, 0, ids)
        return positions

    def _present(self, lane: Lane, dedup: str) -> int | None:
        """The row id of the live message with this key; a dead one makes room for the new."""
        row = self._db.execute(
            "SELECT id, claim, visible_ms, expires_ms FROM messages"
            " WHERE id >> 43 = ? AND dedup = ?",
            (lane.id, dedup),
        ).fetchone()
        if row and row[3] <= self._connection.now_ms:
            self._db.execute(DELETE, (row[0],))
            self._ledger.gone(lane, *row[1:])
            return None
        return row and int(row[0])

    def check_room(self) -> None:
        """Raise StoreFull when the disk has less room than the watermark."""
        now = self._connection.now_ms
        checked_ms, enough = self._room
        if now - checked_ms >= TICK_MS:
            enough = self._file.free_bytes() >= self._watermark_bytes
            self._room = (now, enough)
        if not enough:
            raise StoreFull("The disk is nearly full, so nothing new is stored.")

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
        budget = BUDGET

        def operation() -> Found:
            nonlocal budget
            lane = self._ledger.lane(ref)
            now = self._holds.settle(lane)
            start = lane.first + min(max(after, 0), POSITIONS_MAX - 1) + 1
            if start <= lane.low:
                start = self._scan.first_live(lane)
            if held or delayed or lane.due_ms <= now:
                page, next_ = PAGE_ALL, NEXT
                filters: tuple[object, ...] = (now, without_client, now, held, delayed)
            else:
                page, next_ = PAGE_FREE, NEXT_FREE
                filters = (now, without_client)
            rows, _ = self._scan.scan(page, next_, lane, start, filters, limit, budget)
            if rows is None:
                budget *= 2
                raise Again(HEAVY + 1)
            return Found([self._scan.message(row) for row in rows], now, lane.due())

        return self._run(operation, limit)

    def get(self, ref: QueueRef, positions: Sequence[int]) -> Awaitable[Found]:
        def operation() -> Found:
            lane = self._ledger.lane(ref)
            now = self._connection.now_ms
            return Found(list(self._scan.get(lane.ids(positions))), now)

        return self._run(operation, len(positions))

    def count(self, ref: QueueRef) -> Awaitable[Counts]:
        budget = BUDGET

        def operation() -> Counts:
            nonlocal budget
            lane = self._ledger.lane(ref)
            now = self._connection.now_ms
            expired, lapsed, due = self._ledger.passed(lane, now)
            live, held = lane.total - expired, lane.held - lapsed
            delayed = lane.delayed - due
            oldest = newest = None
            if live:
                first = self._scan.first_live(lane)
                last = self._scan.last_live(lane, budget)
                if last is None:
                    budget *= 2
                    raise Again(HEAVY + 1)
                oldest, newest = self._scan.get((first, last))
            return Counts(live - held - delayed, held, delayed, oldest, newest, now)

        return self._run(operation, 4)

    def volume(self) -> Awaitable[Counts]:
        def operation() -> Counts:
            self._ledger.flush()
            now = self._connection.now_ms
            total, held, delayed = self._db.execute(
                "SELECT coalesce(sum(total), 0), coalesce(sum(held), 0), coalesce(sum(delayed), 0)"
                f" FROM lanes WHERE doomed = 0 AND kind IN {SERVED}"
            ).fetchone()
            passed = dict(
                self._db.execute(
                    "SELECT t.kind, sum(t.n) FROM tallies AS t INDEXED BY tallies_by_time"
                    f" JOIN lanes ON lanes.id = t.lane AND lanes.doomed = 0 AND lanes.kind IN {SERVED}"
                    " WHERE t.kind IN (0, 1, 2) AND t.at_ms <= ? GROUP BY t.kind",
                    (now,),
                ).fetchall()
            )
            held -= passed.get(LAPSE, 0)
            delayed -= passed.get(DUE, 0)
            free = total - passed.get(EXPIRY, 0) - held - delayed
            return Counts(free, held, delayed, None, None, now)

        return self._run(operation, HEAVY + 1)

    def occupied(self, kind: Kind) -> Awaitable[list[Occupied]]:
        def operation() -> list[Occupied]:
            self._ledger.flush()
            rows = self._db.execute(OCCUPIED, (self._connection.now_ms, kind)).fetchall()
            return [Occupied(QueueKey(*row[:3]), *row[3:]) for row in rows if row[4] is not None]

        return self._run(operation, HEAVY + 1)

    def holdings(self, project: str) -> Awaitable[list[Holding]]:
        return self._run(partial(self._transfer.of_project, project), HEAVY + 1)

    def weigh(self, ref: QueueRef, after: int, through: int) -> Awaitable[Weight]:
        return self._run(partial(self._transfer.weigh, ref, after, through), WEIGHED)

    # Claims

    def claim(
        self,
        ref: QueueRef,
        limit: int,
        ttl_s: int,
        grace_s: int,
        max_count: int | None = None,
    ) -> Awaitable[Claimed]:
        budget = BUDGET

        def operation() -> Claimed:
            nonlocal budget
            lane = self._ledger.lane(ref, fresh=True)
            now = self._holds.settle(lane)
            found = self._scan.free(lane, limit, budget, max_count)
            if found is None:
                budget *= 2
                raise Again(HEAVY + 1)
            rows, spent = found
            if len(rows) < limit and lane.due_ms <= now:
                raise Again(HEAVY + 1)  # more has lapsed than one step puts back
            if not rows:
                return Claimed(None, (), spent, now, lane.due())
            return self._hold_rows(lane, rows, spent, ttl_s, grace_s, max_count is not None)

        return self._run(operation, 2 + limit)

    def _hold_rows(
        self,
        lane: Lane,
        rows: list[Row],
        spent: Sequence[int],
        ttl_s: int,
        grace_s: int,
        counted: bool,
    ) -> Claimed:
        now, ledger = self._connection.now_ms, self._ledger
        number, ends = self._holds.number(), deadline_ms(now, ttl_s)
        claim = self._holds.claim_id(number)
        extended_s, extended_ms = ttl_s + grace_s, deadline_ms(now, ttl_s + grace_s)
        updates, messages = [], []
        check(rows)
        for id_, posted, ttl, expires, _, _, count, client, _, body, attributes in rows:
            if expires < ends:
                ledger.tally(lane, EXPIRY, expires, -1)
                ledger.tally(lane, EXPIRY, extended_ms, 1)
                ttl, expires = extended_s, extended_ms  # noqa: PLW2901 - the message's new life
            count += counted  # noqa: PLW2901 - as above
            updates.append((number, ends, count, ttl, expires, id_))
            messages.append(
                Message(
                    id_ - lane.first, posted, ttl, expires, count, client, body, claim, attributes
                )
            )
        self._db.executemany(HOLD, updates)
        self._holds.hide(lane, number, ends, ttl_s, [row[0] for row in rows], new=True)
        lane.held += len(rows)
        ledger.tally(lane, LAPSE, ends, len(rows))
        ledger.changed(lane)
        return Claimed(claim, messages, spent, now, lane.due_ms)

    def claimed(self, ref: QueueRef, claim: str) -> Awaitable[Claim | None]:
        def operation() -> Claim | None:
            lane = self._ledger.lane(ref)
            now, number = self._connection.now_ms, self._holds.claim_number(claim)
            parts = self._holds.parts(lane, number)
            ids = sorted({id_ for part in parts for id_ in part.ids})
            messages = [m for m in self._scan.get(ids) if m.claim == claim]
            if not messages:
                return None
            latest = max(parts)
            return Claim(claim, latest.ttl_s, latest.started_ms, messages, now)

        return self._run(operation, 20)

    def renew(
        self,
        ref: QueueRef,
        claim: str,
        ttl_s: int,
        grace_s: int,
        positions: Sequence[int] | None = None,
    ) -> Awaitable[bool]:
        def operation() -> bool:
            lane = self._ledger.lane(ref)
            now, number = self._connection.now_ms, self._holds.claim_number(claim)
            ends, extended_s = deadline_ms(now, ttl_s), ttl_s + grace_s
            extended_ms = deadline_ms(now, extended_s)
            ids = self._holds.take(lane, number, positions)
            for id_ in ids:
                count, ttl, expires = self._db.execute(
                    "SELECT count, ttl_s, expires_ms FROM messages WHERE id = ?", (id_,)
                ).fetchone()
                if expires < ends:
                    self._ledger.tally(lane, EXPIRY, expires, -1)
                    self._ledger.tally(lane, EXPIRY, extended_ms, 1)
                    ttl, expires = extended_s, extended_ms
                self._db.execute(HOLD, (number, ends, count, ttl, expires, id_))
            if ids:
                lane.held += len(ids)
                self._ledger.tally(lane, LAPSE, ends, len(ids))
                self._holds.hide(lane, number, ends, ttl_s, ids)
            return bool(ids)

        return self._run(operation, 40)

    def release(
        self,
        ref: QueueRef,
        claim: str,
        delay_s: int = 0,
        positions: Sequence[int] | None = None,
        attributes: Mapping[int, bytes] | None = None,
    ) -> Awaitable[bool]:
        def operation() -> bool:
            lane = self._ledger.lane(ref)
            now = self._connection.now_ms
            ids = self._holds.take(lane, self._holds.claim_number(claim), positions)
            if attributes:
                self._db.executemany(
                    "UPDATE messages SET attributes = coalesce(?, attributes) WHERE id = ?",
                    [(attributes.get(id_ - lane.first), id_) for id_ in ids],
                )
            if ids and delay_s:
                number, visible = -self._holds.number(), deadline_ms(now, delay_s)
                for id_ in ids:
                    (expires,) = self._db.execute(
                        "UPDATE messages SET claim = ?, visible_ms = ? WHERE id = ?"
                        " RETURNING expires_ms",
                        (number, visible, id_),
                    ).fetchone()
                    self._ledger.tally(lane, DUE, min(visible, expires), 1)
                lane.delayed += len(ids)
                self._holds.hide(lane, number, visible, 0, ids)
            elif ids:
                lane.ready_low = min(lane.ready_low, *ids)
            return bool(ids)

        return self._run(operation, 40)

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
        def operation() -> list[Removed]:
            lane = self._ledger.lane(ref)
            numbers = [self._holds.claim_number(claim) for claim in claims]
            if together:
                return self._remove_together(lane, positions, numbers)
            # A claim ends with its last message, but it was live for all of this operation.
            live = len(positions) > 1 and self._holds.any_live(lane, numbers)
            return [
                self._remove(lane, position, removal, numbers, live=live) for position in positions
            ]

        return self._run(operation, len(positions))

    def _remove(
        self,
        lane: Lane,
        position: int,
        removal: Removal,
        numbers: Sequence[int],
        *,
        live: bool,
    ) -> Removed:
        if not 0 < position < lane.next_position:
            return Removed.GONE
        db, now, id_ = self._db, self._connection.now_ms, lane.first + position
        row: Any = None
        if removal is Removal.UNCLAIMED:
            row = db.execute(DELETE_UNCLAIMED, (id_, now)).fetchone()
        elif removal is Removal.HELD:
            for number in numbers:
                row = db.execute(DELETE_HELD, (id_, number, now, now)).fetchone()
                if row:
                    break
        else:
            row = db.execute(DELETE_ANY, (id_,)).fetchone()
        if row:
            self._ledger.gone(lane, *row)
            return Removed.GONE
        state = db.execute(STATE, (id_,)).fetchone()
        if state is None or state[2] <= now:
            return Removed.GONE
        if state[0] <= 0 or state[1] <= now:
            return Removed.UNCLAIMED
        if removal is Removal.UNCLAIMED or live or self._holds.any_live(lane, numbers):
            return Removed.HELD_BY_OTHER
        return Removed.CLAIM_UNKNOWN

    def _remove_together(
        self, lane: Lane, positions: Sequence[int], numbers: Sequence[int]
    ) -> list[Removed]:
        now = self._connection.now_ms
        states = {
            id_: state
            for id_ in lane.ids(positions)
            if (state := self._db.execute(STATE, (id_,)).fetchone()) and state[2] > now
        }
        holders = {claim for claim, visible, _ in states.values() if claim > 0 and visible > now}
        if states and holders != set(numbers):
            return [
                Removed.HELD_BY_OTHER if lane.first + p in states else Removed.GONE
                for p in positions
            ]
        for id_, state in states.items():
            self._db.execute(DELETE, (id_,))
            self._ledger.gone(lane, *state)
        return [Removed.GONE] * len(positions)

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
        def operation() -> list[int]:
            lane = self._ledger.lane(target)
            if self._ledger.find(ref) is None:
                return []
            source = self._ledger.lane(ref)
            now, moved = self._connection.now_ms, []
            holder = 0 if claim is None else self._holds.claim_number(claim)
            for id_ in source.ids(positions):
                row = self._db.execute(
                    "SELECT claim, visible_ms, expires_ms, ttl_s FROM messages"
                    " WHERE id = ? AND (visible_ms <= ? OR claim = ?) AND expires_ms > ?",
                    (id_, now, holder, now),
                ).fetchone()
                if row is None:
                    continue
                number, visible, old, ttl = row
                new = lane.next_position
                lane.next_position += 1
                ttl, expires = (ttl, old) if ttl_s is None else (ttl_s, deadline_ms(now, ttl_s))
                self._db.execute(
                    "UPDATE messages SET id = ?, ttl_s = ?, expires_ms = ?, claim = 0,"
                    " visible_ms = 0, attributes = coalesce(?, attributes), dedup = NULL"
                    " WHERE id = ?",
                    (lane.first + new, ttl, expires, attributes.get(id_ - source.first),
                     id_),
                )  # fmt: skip
                body = bodies.get(id_ - source.first)
                if body is not None:
                    self._db.execute(REPLACE, (body, crc32(body), lane.first + new))
                self._ledger.gone(source, number, visible, old)
                self._ledger.added(lane, expires)
                moved.append(new)
            return moved

        return self._run(operation, 2 * len(positions))

    def pop(self, ref: QueueRef, limit: int) -> Awaitable[Found]:
        budget = BUDGET

        def operation() -> Found:
            nonlocal budget
            lane = self._ledger.lane(ref)
            now = self._holds.settle(lane)
            found = self._scan.free(lane, limit, budget)
            if found is None:
                budget *= 2
                raise Again(HEAVY + 1)
            rows, _ = found
            if len(rows) < limit and lane.due_ms <= now:
                raise Again(HEAVY + 1)
            messages = [self._scan.message(row) for row in rows]
            self._db.executemany(DELETE, [(row[0],) for row in rows])
            for row in rows:
                self._ledger.gone(lane, 0, 0, row[3])
            return Found(messages, now, lane.due())

        return self._run(operation, 2 * limit)

    def clear(self, ref: QueueRef) -> Awaitable[None]:
        return self._run(lambda: self._ledger.replace(self._ledger.lane(ref)))

    def drop(
        self, ref: QueueRef, *, empty: bool = False, unless_later: bool = False
    ) -> Awaitable[None]:
        def operation() -> None:
            lane = self._ledger.find(ref)
            if lane is None or (unless_later and lane.version > ref.version):
                return
            if not empty or self._transfer.empty(lane):
                self._ledger.drop(lane)

        return self._run(operation)

    # From one store to another

    def queues(self, after: QueueKey | None, limit: int) -> Awaitable[list[Holding]]:
        return self._run(partial(self._transfer.queues, after, limit), limit)

    def dump(
        self, ref: QueueRef, after: int, limit: int, *, bodies: bool = True
    ) -> Awaitable[list[Stored]]:
        budget = BUDGET

        def operation() -> list[Stored]:
            nonlocal budget
            found = self._transfer.dump(ref, after, limit, budget, bodies=bodies)
            if found is None:
                budget *= 2
                raise Again(HEAVY + 1)
            return found

        return self._run(operation, limit)

    def load(
        self,
        ref: QueueRef,
        next_position: int,
        after: int,
        through: int,
        messages: Sequence[Stored],
    ) -> Awaitable[None]:
        done, last = max(after, 0), min(through, POSITIONS_MAX - 1)
        ordered = sorted(messages, key=lambda one: one.position)

        def operation() -> None:
            nonlocal done
            self.check_room()
            done = self._transfer.load(ref, next_position, done, last, ordered)
            if done < last:
                raise Again(ALONE)

        return self._run(operation, ALONE)  # lest it be done again with neighbours, but for a step

    # Housekeeping

    def expire(self, limit: int) -> Awaitable[int]:
        return self._run(partial(self._sweep.step, limit), HEAVY + 1)
