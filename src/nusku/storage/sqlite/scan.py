"""Finding messages, oldest first, without any statement running for long."""

from collections.abc import Iterable, Iterator
from zlib import crc32

from nusku.errors import Unavailable
from nusku.model import Message
from nusku.storage import POSITIONS_MAX
from nusku.storage.sqlite.connection import HEAVY, Again, Connection
from nusku.storage.sqlite.holds import Holds
from nusku.storage.sqlite.ledger import Lane

WINDOW = 4_000  # row ids looked at by one statement
BUDGET = 20_000  # row ids looked at before others get their turn
SPENT_MAX = 100  # messages claimed too often that one claim reports

COLUMNS = (
    "id, posted_ms, ttl_s, expires_ms, visible_ms, claim, count, client, crc, body, attributes"
)
Row = tuple[int, int, int, int, int, int, int, str, int, bytes, bytes | None]

GET = f"SELECT {COLUMNS} FROM messages WHERE id = ? AND expires_ms > ?"
FREE = (
    f"SELECT {COLUMNS} FROM messages INDEXED BY ready WHERE visible_ms = 0"
    " AND id >= ? AND id < ? AND expires_ms > ? ORDER BY id LIMIT ?"
)
NEXT_FREE = (
    "SELECT id FROM messages INDEXED BY ready WHERE visible_ms = 0"
    " AND id >= ? AND id < ? ORDER BY id LIMIT 1"
)
PAGE_FREE = (
    f"SELECT {COLUMNS} FROM messages INDEXED BY ready WHERE visible_ms = 0"
    " AND id >= ? AND id < ? AND expires_ms > ? AND client IS NOT ? ORDER BY id LIMIT ?"
)
PAGE_ALL = (
    f"SELECT {COLUMNS} FROM messages NOT INDEXED WHERE id >= ? AND id < ? AND expires_ms > ?"
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


def check(rows: Iterable[Row]) -> None:
    """Raise Unavailable when a body is not what was stored."""
    for row in rows:
        if crc32(row[9]) != row[8]:
            raise Unavailable("A stored message is damaged.")


class Scan:
    """Reads rows of lanes."""

    def __init__(self, connection: Connection, holds: Holds) -> None:
        self._connection = connection
        self._db = connection.db
        self._holds = holds

    def scan(
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

    def free(
        self, lane: Lane, limit: int, budget: int, max_count: int | None = None
    ) -> tuple[list[Row], list[int]] | None:
        """The oldest free rows, and apart the positions of those claimed too often."""
        want, filters = limit, (self._connection.now_ms,)
        while True:
            rows, lane.ready_low = self.scan(
                FREE, NEXT_FREE, lane, lane.ready_low, filters, want, budget
            )
            if rows is None or max_count is None:
                return None if rows is None else (rows, [])
            good = [row for row in rows if row[6] < max_count]
            spent = [row[0] - lane.first for row in rows if row[6] >= max_count]
            if len(good) >= limit or len(rows) < want or len(spent) >= SPENT_MAX:
                return good, spent
            want = limit + len(spent)

    def first_live(self, lane: Lane) -> int:
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

    def last_live(self, lane: Lane, budget: int) -> int | None:
        db, now, stop = self._db, self._connection.now_ms, lane.end
        while budget > 0:
            start = max(stop - WINDOW, lane.low)
            row = db.execute(LAST_LIVE, (start, stop, now)).fetchone()
            if row:
                return int(row[0])
            (last,) = db.execute(PREVIOUS, (lane.low, start)).fetchone()
            stop, budget = last + 1, budget - WINDOW
        return None

    def get(self, ids: Iterable[int]) -> Iterator[Message]:
        now = self._connection.now_ms
        for id_ in ids:
            row = self._db.execute(GET, (id_, now)).fetchone()
            if row:
                yield self.message(row)

    def message(self, row: Row) -> Message:
        check((row,))
        id_, posted, ttl, expires, visible, claim, count, client, _, body, attributes = row
        return Message(
            id_ & (POSITIONS_MAX - 1),
            posted,
            ttl,
            expires,
            count,
            client,
            body,
            self._holds.claim_id(claim)
            if claim > 0 and visible > self._connection.now_ms
            else None,
            attributes,
        )
