"""Messages and claims in SQLite. Each operation is one function run inside a transaction."""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple
from zlib import crc32

from nusku.errors import StoreFull, Unavailable
from nusku.metrics import Metrics
from nusku.model import Claim, Claimed, Counts, Draft, Found, Message, QueueKey, QueueRef
from nusku.storage import TICK_MS, Removal, Removed, Stale
from nusku.storage.sqlite.connection import HEAVY, Again, Connection
from nusku.storage.sqlite.file import File
from nusku.storage.sqlite.ledger import FAR_MS, Lane, Ledger
from nusku.storage.sqlite.schema import DUE, EXPIRY, LAPSE, POSITION_BITS, POSITIONS_MAX

WINDOW = 4_000  # row ids looked at by one statement: no statement runs for long
BUDGET = 20_000  # row ids looked at before others get their turn
SETTLED_ROWS = 500  # lapsed messages that one operation puts back on its way
SPENT_MAX = 100  # messages claimed too often that one claim reports

_COLUMNS = (
    "id, posted_ms, ttl_s, expires_ms, visible_ms, claim, count, client, crc, body, attributes"
)
INSERT = f"INSERT INTO messages ({_COLUMNS}, dedup) VALUES (?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?)"
GET = f"SELECT {_COLUMNS} FROM messages WHERE id = ? AND expires_ms > ?"
FREE = (
    f"SELECT {_COLUMNS} FROM messages INDEXED BY ready WHERE visible_ms = 0"
    " AND id >= ? AND id < ? AND expires_ms > ? ORDER BY id LIMIT ?"
)
NEXT_FREE = (
    "SELECT id FROM messages INDEXED BY ready WHERE visible_ms = 0"
    " AND id >= ? AND id < ? ORDER BY id LIMIT 1"
)
PAGE_FREE = (
    f"SELECT {_COLUMNS} FROM messages INDEXED BY ready WHERE visible_ms = 0"
    " AND id >= ? AND id < ? AND expires_ms > ? AND client IS NOT ? ORDER BY id LIMIT ?"
)
PAGE_ALL = (
    f"SELECT {_COLUMNS} FROM messages NOT INDEXED WHERE id >= ? AND id < ? AND expires_ms > ?"
    " AND client IS NOT ? AND (visible_ms <= ? OR (claim > 0 AND ?) OR (claim < 0 AND ?))"
    " ORDER BY id LIMIT ?"
)
NEXT = "SELECT id FROM messages NOT INDEXED WHERE id >= ? AND id < ? ORDER BY id LIMIT 1"
PREVIOUS = "SELECT id FROM messages NOT INDEXED WHERE id >= ? AND id < ? ORDER BY id DESC LIMIT 1"
FIRST_LIVE = (
    "SELECT id FROM messages NOT INDEXED WHERE id >= ? AND id < ? AND expires_ms > ?"
    " ORDER BY id LIMIT 1"
)
LAST_LIVE = (
    "SELECT id FROM messages NOT INDEXED WHERE id >= ? AND id < ? AND expires_ms > ?"
    " ORDER BY id DESC LIMIT 1"
)
HOLD = "UPDATE messages SET claim = ?, visible_ms = ?, count = ?, ttl_s = ?, expires_ms = ? WHERE id = ?"
PUT_BACK = (
    "UPDATE messages SET claim = 0, visible_ms = 0 WHERE id = ? AND claim = ? AND visible_ms = ?"
)
PUT_BACK_LAPSED = f"{PUT_BACK} RETURNING expires_ms"
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
STATE = "SELECT claim, visible_ms, expires_ms FROM messages WHERE id = ?"
LAPSED = (
    "SELECT claim, ends_ms, positions FROM holds INDEXED BY holds_by_end"
    " WHERE lane = ? AND ends_ms <= ? ORDER BY ends_ms LIMIT 100"
)
EXPIRED = (
    "SELECT id, claim, visible_ms, expires_ms FROM messages INDEXED BY expiring"
    " WHERE expires_ms <= ? ORDER BY expires_ms LIMIT ?"
)

Row = tuple[int, int, int, int, int, int, int, str, int, bytes, bytes | None]


class _Part(NamedTuple):
    """Messages of one claim that have the same end: a row of ``holds``."""

    ends_ms: int
    ttl_s: int
    started_ms: int
    ids: Sequence[int]


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
        self._metrics = metrics
        self._watermark_bytes = watermark_bytes
        self._ledger = Ledger(connection.db)
        connection.attach(self._ledger)
        # Numbers of claims are never used twice, not even after a crash.
        self._last_claim = file.boot << 40
        self._room = (0, True)
        self._noted_changes = connection.db.total_changes

    # Storing

    async def admit(self, ref: QueueRef) -> None:
        await self._run(partial(self._ledger.admit, ref))

    async def add(self, posts: Sequence[tuple[QueueRef, Sequence[Draft]]]) -> list[list[int]]:
        return await self._run(partial(self._add, posts), sum(len(drafts) for _, drafts in posts))

    def _add(self, posts: Sequence[tuple[QueueRef, Sequence[Draft]]]) -> list[list[int]]:
        lanes = [self._ledger.lane(ref, fresh=True) for ref, _ in posts]
        self.check_room()
        return [self._append(lane, drafts) for lane, (_, drafts) in zip(lanes, posts, strict=True)]

    def _append(self, lane: Lane, drafts: Sequence[Draft]) -> list[int]:
        now, first = self._connection.now_ms, lane.first
        positions, rows = [], []
        known: dict[str, int] = {}
        delayed: dict[int, tuple[list[int], int]] = {}
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
            expires = deadline_ms(now, draft.ttl_s)
            visible = claim = 0
            if draft.delay_s:
                visible = deadline_ms(now, draft.delay_s)
                ids, claim = delayed.setdefault(visible, ([], -self._number()))
                ids.append(id_)
                lane.delayed += 1
                self._ledger.tally(lane, DUE, min(visible, expires), 1)
            body = draft.body
            rows.append(
                (id_, now, draft.ttl_s, expires, visible, claim, draft.client, crc32(body), body,
                 draft.attributes, draft.dedup)
            )  # fmt: skip
            self._ledger.added(lane, expires)
        if len(rows) == 1:
            self._db.execute(INSERT, rows[0])
        else:
            self._db.executemany(INSERT, rows)
        for visible, (ids, claim) in delayed.items():
            self._hide(lane, claim, visible, 0, ids)
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
        budget = BUDGET

        def operation() -> Found:
            nonlocal budget
            lane = self._ledger.lane(ref)
            now = self._settle(lane)
            start = lane.first + min(max(after, 0), POSITIONS_MAX - 1) + 1
            if start <= lane.low:
                start = self._first_live(lane)
            if held or delayed or lane.due_ms <= now:
                page, next_ = PAGE_ALL, NEXT
                filters: tuple[object, ...] = (now, without_client, now, held, delayed)
            else:
                page, next_ = PAGE_FREE, NEXT_FREE
                filters = (now, without_client)
            rows, _ = self._scan(page, next_, lane, start, filters, limit, budget)
            if rows is None:
                budget *= 2
                raise Again(HEAVY + 1)
            return Found([self._message(row) for row in rows], now, self._due(lane))

        return await self._run(operation, limit)

    def _scan(
        self,
        sql: str,
        next_sql: str,
        lane: Lane,
        start: int,
        filters: tuple[object, ...],
        limit: int,
        budget: int,
    ) -> tuple[list[Row] | None, int]:
        """Rows from ``start`` on, a window at a time; None when the budget did not suffice.

        Also says from where to look next time: all before that is of no use to anybody.
        """
        db, end = self._db, lane.end
        rows: list[Row] = []
        while start < end:
            stop = min(start + WINDOW, end)
            rows += db.execute(sql, (start, stop, *filters, limit - len(rows))).fetchall()
            if len(rows) >= limit or stop == end:
                break
            budget -= WINDOW
            if budget <= 0:
                return None, rows[0][0] if rows else stop
            following = db.execute(next_sql, (stop, end)).fetchone()
            if following is None:
                break
            start = following[0]
        return rows, rows[0][0] if rows else end

    def _first_live(self, lane: Lane) -> int:
        """The row id of the oldest live message (or the lane's end); goes on where it left off."""
        db, now, end, budget = self._db, self._connection.now_ms, lane.end, BUDGET
        while lane.low < end:
            stop = min(lane.low + WINDOW, end)
            row = db.execute(FIRST_LIVE, (lane.low, stop, now)).fetchone()
            row, found = (row, True) if row else (db.execute(NEXT, (stop, end)).fetchone(), False)
            lane.low = row[0] if row else end
            if found:
                break
            budget -= WINDOW
            if budget <= 0:
                raise Again(HEAVY + 1)
        return lane.low

    async def get(self, ref: QueueRef, positions: Sequence[int]) -> Found:
        def operation() -> Found:
            lane = self._ledger.lane(ref)
            now = self._connection.now_ms
            return Found(list(self._get(self._ids(lane, positions))), now)

        return await self._run(operation, len(positions))

    def _get(self, ids: Iterable[int]) -> Iterator[Message]:
        now = self._connection.now_ms
        for id_ in ids:
            row = self._db.execute(GET, (id_, now)).fetchone()
            if row:
                yield self._message(row)

    def _ids(self, lane: Lane, positions: Iterable[int]) -> list[int]:
        return [lane.first + p for p in positions if 0 < p < lane.next_position]

    def _message(self, row: Row) -> Message:
        id_, posted, ttl, expires, visible, claim, count, client, crc, body, attributes = row
        if crc32(body) != crc:
            raise Unavailable("A stored message is damaged.")
        return Message(
            id_ & (POSITIONS_MAX - 1),
            posted,
            ttl,
            expires,
            count,
            client,
            body,
            self._claim_id(claim) if claim > 0 and visible > self._connection.now_ms else None,
            attributes,
        )

    async def count(self, ref: QueueRef) -> Counts:
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
                first = self._first_live(lane)
                last = self._last_live(lane, budget)
                if last is None:
                    budget *= 2
                    raise Again(HEAVY + 1)
                oldest, newest = self._get((first, last))
            return Counts(live - held - delayed, held, delayed, oldest, newest, now)

        return await self._run(operation, 4)

    def _last_live(self, lane: Lane, budget: int) -> int | None:
        db, now, stop = self._db, self._connection.now_ms, lane.end
        while budget > 0:
            start = max(stop - WINDOW, lane.low)
            row = db.execute(LAST_LIVE, (start, stop, now)).fetchone()
            if row:
                return int(row[0])
            (last,) = db.execute(PREVIOUS, (lane.low, start)).fetchone()
            stop, budget = last + 1, budget - WINDOW
        return None

    async def volume(self) -> Counts:
        def operation() -> Counts:
            self._ledger.flush()
            now = self._connection.now_ms
            total, held, delayed = self._db.execute(
                "SELECT coalesce(sum(total), 0), coalesce(sum(held), 0), coalesce(sum(delayed), 0)"
                " FROM lanes WHERE doomed = 0"
            ).fetchone()
            passed = dict(
                self._db.execute(
                    "SELECT t.kind, sum(t.n) FROM tallies AS t INDEXED BY tallies_by_time"
                    " JOIN lanes ON lanes.id = t.lane AND lanes.doomed = 0"
                    " WHERE t.kind IN (0, 1, 2) AND t.at_ms <= ? GROUP BY t.kind",
                    (now,),
                ).fetchall()
            )
            held -= passed.get(LAPSE, 0)
            delayed -= passed.get(DUE, 0)
            free = total - passed.get(EXPIRY, 0) - held - delayed
            return Counts(free, held, delayed, None, None, now)

        return await self._run(operation, HEAVY + 1)

    # Claims

    async def claim(
        self,
        ref: QueueRef,
        limit: int,
        ttl_s: int,
        grace_s: int,
        max_count: int | None = None,
    ) -> Claimed:
        budget = BUDGET

        def operation() -> Claimed:
            nonlocal budget
            lane = self._ledger.lane(ref, fresh=True)
            now = self._settle(lane)
            found = self._free(lane, limit, budget, max_count)
            if found is None:
                budget *= 2
                raise Again(HEAVY + 1)
            rows, spent = found
            if len(rows) < limit and lane.due_ms <= now:
                raise Again(HEAVY + 1)  # more has lapsed than one step puts back
            if not rows:
                return Claimed(None, (), spent, now, self._due(lane))
            return self._claim(lane, rows, spent, ttl_s, grace_s, max_count is not None)

        return await self._run(operation, 2 + limit)

    def _free(
        self, lane: Lane, limit: int, budget: int, max_count: int | None = None
    ) -> tuple[list[Row], list[int]] | None:
        """The oldest free rows, and apart the positions of those claimed too often."""
        want, filters = limit, (self._connection.now_ms,)
        while True:
            rows, lane.ready_low = self._scan(
                FREE, NEXT_FREE, lane, lane.ready_low, filters, want, budget
            )
            if rows is None or max_count is None:
                return None if rows is None else (rows, [])
            good = [row for row in rows if row[6] < max_count]
            spent = [row[0] - lane.first for row in rows if row[6] >= max_count]
            if len(good) >= limit or len(rows) < want or len(spent) >= SPENT_MAX:
                return good, spent
            want = limit + len(spent)

    def _claim(
        self,
        lane: Lane,
        rows: list[Row],
        spent: Sequence[int],
        ttl_s: int,
        grace_s: int,
        counted: bool,
    ) -> Claimed:
        now, ledger = self._connection.now_ms, self._ledger
        number, ends = self._number(), deadline_ms(now, ttl_s)
        claim = self._claim_id(number)
        extended_s, extended_ms = ttl_s + grace_s, deadline_ms(now, ttl_s + grace_s)
        updates, messages = [], []
        for id_, posted, ttl, expires, _, _, count, client, crc, body, attributes in rows:
            if crc32(body) != crc:
                raise Unavailable("A stored message is damaged.")
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
        self._hide(lane, number, ends, ttl_s, [row[0] for row in rows])
        lane.held += len(rows)
        ledger.tally(lane, LAPSE, ends, len(rows))
        ledger.changed(lane)
        return Claimed(claim, messages, spent, now, lane.due_ms)

    async def claimed(self, ref: QueueRef, claim: str) -> Claim | None:
        def operation() -> Claim | None:
            lane = self._ledger.lane(ref)
            now, number = self._connection.now_ms, self._claim_number(claim)
            parts = self._parts(lane, number)
            ids = sorted({id_ for part in parts for id_ in part.ids})
            messages = [m for m in self._get(ids) if m.claim == claim]
            if not messages:
                return None
            latest = max(parts)
            return Claim(claim, latest.ttl_s, latest.started_ms, messages, now)

        return await self._run(operation, 20)

    async def renew(
        self,
        ref: QueueRef,
        claim: str,
        ttl_s: int,
        grace_s: int,
        positions: Sequence[int] | None = None,
    ) -> bool:
        def operation() -> bool:
            lane = self._ledger.lane(ref)
            now, number = self._connection.now_ms, self._claim_number(claim)
            ends, extended_s = deadline_ms(now, ttl_s), ttl_s + grace_s
            extended_ms = deadline_ms(now, extended_s)
            ids = self._take(lane, number, positions)
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
                self._hide(lane, number, ends, ttl_s, ids)
            return bool(ids)

        return await self._run(operation, 40)

    async def release(
        self, ref: QueueRef, claim: str, delay_s: int = 0, positions: Sequence[int] | None = None
    ) -> bool:
        def operation() -> bool:
            lane = self._ledger.lane(ref)
            now = self._connection.now_ms
            ids = self._take(lane, self._claim_number(claim), positions)
            if ids and delay_s:
                number, visible = -self._number(), deadline_ms(now, delay_s)
                for id_ in ids:
                    (expires,) = self._db.execute(
                        "UPDATE messages SET claim = ?, visible_ms = ? WHERE id = ?"
                        " RETURNING expires_ms",
                        (number, visible, id_),
                    ).fetchone()
                    self._ledger.tally(lane, DUE, min(visible, expires), 1)
                lane.delayed += len(ids)
                self._hide(lane, number, visible, 0, ids)
            elif ids:
                lane.ready_low = min(lane.ready_low, *ids)
            return bool(ids)

        return await self._run(operation, 40)

    def _take(self, lane: Lane, number: int, positions: Sequence[int] | None) -> list[int]:
        """Free what a live claim holds (or some of it); return the row ids, oldest first."""
        db = self._db
        wanted = None if positions is None else set(self._ids(lane, positions))
        taken = []
        for part in self._parts(lane, number):
            freed = [
                id_
                for id_ in part.ids
                if (wanted is None or id_ in wanted)
                and db.execute(PUT_BACK, (id_, number, part.ends_ms)).rowcount
            ]
            lane.held -= len(freed)
            self._ledger.tally(lane, LAPSE, part.ends_ms, -len(freed))
            db.execute(
                "UPDATE holds SET remaining = remaining - ? WHERE claim = ? AND ends_ms = ?",
                (len(freed), number, part.ends_ms),
            )
            db.execute(
                "DELETE FROM holds WHERE claim = ? AND ends_ms = ? AND remaining <= 0",
                (number, part.ends_ms),
            )
            taken += freed
        if taken:
            self._ledger.changed(lane)
        return sorted(taken)

    def _parts(self, lane: Lane, number: int) -> list[_Part]:
        """What is left of a live claim."""
        self._ledger.flush_holds()
        return [
            _Part(ends, ttl, started, array("q", positions))
            for ends, ttl, started, positions in self._db.execute(
                "SELECT ends_ms, ttl_s, started_ms, positions FROM holds"
                " WHERE claim = ? AND lane = ? AND ends_ms > ?",
                (number, lane.id, self._connection.now_ms),
            ).fetchall()
        ]

    def _hide(self, lane: Lane, number: int, ends_ms: int, ttl_s: int, ids: Sequence[int]) -> None:
        """Note what hides these messages, so that they are found when it ends."""
        known = self._db.execute(
            "SELECT remaining, positions FROM holds WHERE claim = ? AND ends_ms = ?",
            (number, ends_ms),
        ).fetchone() or (0, b"")
        self._db.execute(
            "REPLACE INTO holds VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                number,
                ends_ms,
                lane.id,
                ttl_s,
                self._connection.now_ms,
                known[0] + len(ids),
                known[1] + array("q", ids).tobytes(),
            ),
        )
        lane.due_ms = min(lane.due_ms, ends_ms)
        self._ledger.changed(lane)

    def _settle(self, lane: Lane) -> int:
        """Put back what lapsed or became due, up to a bound; return the time."""
        now = self._connection.now_ms
        if lane.due_ms > now:
            return now
        ledger, db, left = self._ledger, self._db, SETTLED_ROWS
        ledger.flush_holds()
        for number, ends, positions in db.execute(LAPSED, (lane.id, now)).fetchall():
            if left <= 0:
                break
            ids = array("q", positions)
            ids, rest = ids[:left], ids[left:]
            left -= len(ids)
            freed = 0
            for id_ in ids:
                row = db.execute(PUT_BACK_LAPSED, (id_, number, ends)).fetchone()
                if row:
                    freed += 1
                    lane.ready_low = min(lane.ready_low, id_)
                    if number < 0:
                        ledger.tally(lane, DUE, min(ends, row[0]), -1)
            if number < 0:
                lane.delayed -= freed
            else:
                lane.held -= freed
                ledger.tally(lane, LAPSE, ends, -freed)
            if rest:
                db.execute(
                    "UPDATE holds SET remaining = ?, positions = ? WHERE claim = ? AND ends_ms = ?",
                    (len(rest), rest.tobytes(), number, ends),
                )
            else:
                db.execute("DELETE FROM holds WHERE claim = ? AND ends_ms = ?", (number, ends))
            ledger.changed(lane)
        lane.due_ms = ledger.next_due(lane.id)
        return now

    def _due(self, lane: Lane) -> int | None:
        return None if lane.due_ms >= FAR_MS else lane.due_ms

    def _number(self) -> int:
        self._last_claim += 1
        return self._last_claim

    def _claim_id(self, number: int) -> str:
        """The number, sealed with the file's key: an id that was not given out is told apart
        without looking it up.
        """
        seal = blake2b(number.to_bytes(8), key=self._file.key, digest_size=8).hexdigest()
        return f"{number:016x}{seal}"

    def _claim_number(self, claim: str) -> int:
        """The number in an id; 0, which no claim has, for one that we did not make."""
        try:
            number = int(claim[:16], 16)
        except ValueError:
            return 0
        return number if 0 < number < 1 << 63 and self._claim_id(number) == claim else 0

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
        def operation() -> list[Removed]:
            lane = self._ledger.lane(ref)
            numbers = [self._claim_number(claim) for claim in claims]
            if together:
                return self._remove_together(lane, positions, numbers)
            # A claim ends with its last message, but it was live for all of this operation.
            live = len(positions) > 1 and self._any_live(lane, numbers)
            return [
                self._remove(lane, position, removal, numbers, live=live) for position in positions
            ]

        return await self._run(operation, len(positions))

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
        if removal is Removal.UNCLAIMED or live or self._any_live(lane, numbers):
            return Removed.HELD_BY_OTHER
        return Removed.CLAIM_UNKNOWN

    def _any_live(self, lane: Lane, numbers: Sequence[int]) -> bool:
        return any(self._parts(lane, number) for number in numbers)

    def _remove_together(
        self, lane: Lane, positions: Sequence[int], numbers: Sequence[int]
    ) -> list[Removed]:
        now = self._connection.now_ms
        states = {
            id_: state
            for id_ in self._ids(lane, positions)
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

    async def move(
        self,
        ref: QueueRef,
        positions: Sequence[int],
        target: QueueRef,
        ttl_s: int | None,
        attributes: Mapping[int, bytes],
    ) -> list[int]:
        def operation() -> list[int]:
            lane = self._ledger.lane(target)
            try:
                source = self._ledger.lane(ref)
            except Stale:
                return []
            now, moved = self._connection.now_ms, []
            for position in positions:
                row = self._db.execute(
                    "SELECT claim, visible_ms, expires_ms, ttl_s FROM messages"
                    " WHERE id = ? AND visible_ms <= ? AND expires_ms > ?",
                    (source.first + position, now, now),
                ).fetchone()
                if row is None:
                    continue
                claim, visible, old, ttl = row
                new = lane.next_position
                lane.next_position += 1
                ttl, expires = (ttl, old) if ttl_s is None else (ttl_s, deadline_ms(now, ttl_s))
                self._db.execute(
                    "UPDATE messages SET id = ?, ttl_s = ?, expires_ms = ?, claim = 0,"
                    " visible_ms = 0, attributes = coalesce(?, attributes), dedup = NULL"
                    " WHERE id = ?",
                    (lane.first + new, ttl, expires, attributes.get(position),
                     source.first + position),
                )  # fmt: skip
                self._ledger.gone(source, claim, visible, old)
                self._ledger.added(lane, expires)
                moved.append(new)
            return moved

        return await self._run(operation, 2 * len(positions))

    async def pop(self, ref: QueueRef, limit: int) -> Found:
        budget = BUDGET

        def operation() -> Found:
            nonlocal budget
            lane = self._ledger.lane(ref)
            now = self._settle(lane)
            found = self._free(lane, limit, budget)
            if found is None:
                budget *= 2
                raise Again(HEAVY + 1)
            rows, _ = found
            if len(rows) < limit and lane.due_ms <= now:
                raise Again(HEAVY + 1)
            messages = [self._message(row) for row in rows]
            self._db.executemany(DELETE, [(row[0],) for row in rows])
            for row in rows:
                self._ledger.gone(lane, 0, 0, row[3])
            return Found(messages, now, self._due(lane))

        return await self._run(operation, 2 * limit)

    async def clear(self, ref: QueueRef) -> None:
        await self._run(lambda: self._ledger.replace(self._ledger.lane(ref)))

    async def drop(self, key: QueueKey) -> None:
        await self._run(partial(self._ledger.drop, key))

    # Housekeeping

    async def expire(self, limit: int) -> int:
        def operation() -> int:
            now = self._connection.now_ms
            done = self._expire(now, limit)
            done += self._empty_doomed(limit - done)
            for lane in self._ledger.lanes_with_backlog(now, 1 + (limit - done) // SETTLED_ROWS):
                self._settle(lane)
                done = limit
            if self._db.total_changes != self._noted_changes:
                self._file.remember(now)
                self._noted_changes = self._db.total_changes
            return done

        return await self._run(operation, HEAVY + 1)

    def _expire(self, now: int, limit: int) -> int:
        rows = self._db.execute(EXPIRED, (now, limit)).fetchall()
        self._db.executemany(DELETE, [(row[0],) for row in rows])
        n = 0
        for id_, *state in rows:
            lane = self._ledger.lane_by_id(id_ >> POSITION_BITS)
            if lane is not None:
                self._ledger.gone(lane, *state)
                n += 1
        self._metrics.messages["expired"] += n
        return len(rows)

    def _empty_doomed(self, limit: int) -> int:
        """Remove what purged and deleted queues left behind."""
        row = self._db.execute(
            "SELECT id FROM lanes INDEXED BY doomed_lanes WHERE doomed = 1 LIMIT 1"
        ).fetchone()
        if row is None or limit <= 0:
            return 0
        (lane,) = row
        done = 0
        for sql in (
            "DELETE FROM messages WHERE id IN (SELECT id FROM messages"
            " WHERE id >= ?1 << 43 AND id < (?1 + 1) << 43 LIMIT ?2)",
            "DELETE FROM holds WHERE (claim, ends_ms) IN"
            " (SELECT claim, ends_ms FROM holds WHERE lane = ?1 LIMIT ?2)",
            "DELETE FROM tallies WHERE (lane, kind, at_ms) IN"
            " (SELECT lane, kind, at_ms FROM tallies WHERE lane = ?1 LIMIT ?2)",
        ):
            if done < limit:
                done += self._db.execute(sql, (lane, limit - done)).rowcount
        if done < limit:
            self._db.execute("DELETE FROM lanes WHERE id = ?", (lane,))
        return max(done, 1)
