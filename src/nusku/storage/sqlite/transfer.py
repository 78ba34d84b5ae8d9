"""Going from one store to another: what is there, as it is, and putting it there."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from typing import cast
from zlib import crc32

from msgspec.structs import replace

from nusku.errors import Unavailable
from nusku.model import Holding, QueueKey, QueueRef, Stored, Weight
from nusku.storage import POSITIONS_MAX, SERVED, Stale
from nusku.storage.sqlite.connection import Connection
from nusku.storage.sqlite.holds import Holds
from nusku.storage.sqlite.ledger import Lane, Ledger
from nusku.storage.sqlite.scan import NEXT, Scan
from nusku.storage.sqlite.schema import DUE, LAPSE

STEP = 1_000  # rows that a load compares, or row ids that are weighed, before others get their turn

_HOLDING = (
    "SELECT l.kind, l.project, l.name, l.generation, l.version, l.next_position, l.total"
    " - coalesce((SELECT sum(n) FROM tallies WHERE lane = l.id AND kind = 0 AND at_ms <= ?), 0),"
    " l.sealed FROM lanes AS l INDEXED BY lane_by_name"
)
QUEUES = (
    f"{_HOLDING} WHERE l.doomed = 0 AND (l.kind, l.project, l.name) > (?, ?, ?)"
    " ORDER BY l.kind, l.project, l.name LIMIT ?"
)
HOLDINGS = f"{_HOLDING} WHERE l.doomed = 0 AND l.kind = ? AND l.project = ? AND l.total > 0"

COLUMNS = "id, posted_ms, ttl_s, expires_ms, count, client, attributes, dedup, visible_ms, claim, body, crc"
Row = tuple[int, int, int, int, int, str, bytes | None, str | None, int, int, bytes | None, int]

_LIVE = "FROM messages NOT INDEXED WHERE id >= ? AND id < ? AND expires_ms > ? ORDER BY id LIMIT ?"
_WITHOUT_BODY = COLUMNS.replace("body", "NULL")
DUMP = f"SELECT {COLUMNS} {_LIVE}"
DUMP_WITHOUT_BODY = f"SELECT {_WITHOUT_BODY} {_LIVE}"
PRESENT = (
    f"SELECT {_WITHOUT_BODY} FROM messages NOT INDEXED WHERE id > ? AND id <= ? ORDER BY id LIMIT ?"
)
WEIGH = (
    "SELECT count(*), coalesce(sum(length(body)), 0) FROM messages NOT INDEXED"
    " WHERE id >= ? AND id < ? AND expires_ms > ?"
)
INSERT = f"INSERT INTO messages ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
DELETE = "DELETE FROM messages WHERE id = ?"
LOSE_KEY = "UPDATE messages SET dedup = NULL WHERE id >> 43 = ? AND dedup = ?"
TERM = "SELECT ttl_s, started_ms FROM holds WHERE claim = ? AND ends_ms = ?"


class Transfer:
    """Reads and writes lanes whether or not they are sealed."""

    def __init__(self, connection: Connection, ledger: Ledger, holds: Holds, scan: Scan) -> None:
        self._connection = connection
        self._db = connection.db
        self._ledger = ledger
        self._holds = holds
        self._scan = scan

    def queues(self, after: QueueKey | None, limit: int) -> list[Holding]:
        return self._holdings(QUEUES, *(after or ("", "", "")), limit)

    def of_project(self, project: str) -> list[Holding]:
        return [
            held
            for kind in SERVED
            for held in self._holdings(HOLDINGS, kind, project)
            if held.messages
        ]

    def _holdings(self, sql: str, *parameters: object) -> list[Holding]:
        self._ledger.flush()
        now = self._connection.now_ms
        return [
            Holding(QueueRef(QueueKey(*row[:3]), *row[3:5]), row[5], row[6], bool(row[7]), now)
            for row in self._db.execute(sql, (now, *parameters))
        ]

    def weigh(self, ref: QueueRef, after: int, through: int) -> Weight:
        lane = self._ledger.find(ref)
        if lane is None:
            raise Stale
        start = max(lane.first + max(after, 0) + 1, lane.low)
        end = min(lane.first + through + 1, lane.end)
        stop = min(start + STEP, end)
        messages = size = 0
        if start < end:
            now = self._connection.now_ms
            messages, size = self._db.execute(WEIGH, (start, stop, now)).fetchone()
            following = self._db.execute(NEXT, (stop, end)).fetchone()
            stop = following[0] if following else end
        return Weight(messages, size, through if stop >= end else stop - lane.first - 1)

    def empty(self, lane: Lane) -> bool:
        """Whether no live message is in it."""
        expired, _, _ = self._ledger.passed(lane, self._connection.now_ms)
        return lane.total <= expired

    def dump(
        self, ref: QueueRef, after: int, limit: int, budget: int, *, bodies: bool
    ) -> list[Stored] | None:
        """None when the budget of row ids did not suffice."""
        lane = self._ledger.find(ref)
        if lane is None:
            raise Stale
        rows, _ = self._scan.scan(
            DUMP if bodies else DUMP_WITHOUT_BODY,
            NEXT,
            lane,
            max(lane.first + min(max(after, 0), POSITIONS_MAX - 1) + 1, lane.low),
            (self._connection.now_ms,),
            limit,
            budget,
        )
        return None if rows is None else self._stored(lane, cast("list[Row]", rows))

    def _stored(self, lane: Lane, rows: Sequence[Row]) -> list[Stored]:
        now, first, found = self._connection.now_ms, lane.first, []
        terms: dict[tuple[int, int], tuple[str, int, int]] = {}
        # A queue stands still while all of its messages are looked at, so nothing is done twice here.
        for row in rows:
            (
                id_,
                posted,
                ttl,
                expires,
                count,
                client,
                attributes,
                dedup,
                visible,
                claim,
                body,
                crc,
            ) = row
            if body is not None and crc32(body) != crc:
                raise Unavailable("A stored message is damaged.")
            position = id_ - first
            if visible <= now:
                found.append(
                    Stored(position, posted, ttl, expires, count, client, body, attributes, dedup)
                )
                continue
            term: tuple[str | None, int, int] = (None, 0, 0)
            if claim > 0:
                held = claim, visible
                term = terms.get(held) or terms.setdefault(held, self._term(claim, visible))
            found.append(
                Stored(
                    position, posted, ttl, expires, count, client, body, attributes, dedup,
                    visible, *term,
                )
            )  # fmt: skip
        return found

    def _term(self, number: int, ends_ms: int) -> tuple[str, int, int]:
        ttl_s, started_ms = self._db.execute(TERM, (number, ends_ms)).fetchone()
        return self._holds.claim_id(number), ttl_s, started_ms

    def load(
        self,
        ref: QueueRef,
        next_position: int,
        after: int,
        through: int,
        messages: Sequence[Stored],
    ) -> int:
        """Do the first part of the range; return the position up to which it is done.

        ``messages`` are in the order of their positions.
        """
        lane = self._ledger.arrive(ref)
        if next_position > POSITIONS_MAX:
            raise Unavailable("The queue has used up its positions.")
        rows: list[Row] = self._db.execute(
            PRESENT, (lane.first + after, lane.first + through, STEP)
        ).fetchall()
        if len(rows) == STEP:
            through = rows[-1][0] - lane.first
        first, end = (
            bisect_right(messages, position, key=lambda one: one.position)
            for position in (after, through)
        )
        coming = {one.position: _held_in_life(one) for one in messages[first:end]}
        if next_position > lane.next_position:
            lane.next_position = next_position
            self._ledger.changed(lane)
        for row, present in zip(rows, self._stored(lane, rows), strict=True):
            one = coming.get(present.position)
            if one is not None and replace(one, body=None) == present:
                del coming[present.position]
            else:
                self._db.execute(DELETE, (row[0],))
                self._ledger.gone(lane, row[9], row[8], row[3])
        self._ledger.flush_holds()
        self._insert(lane, list(coming.values()))
        return through

    def _insert(self, lane: Lane, messages: Sequence[Stored]) -> None:
        now, ledger = self._connection.now_ms, self._ledger
        numbers: dict[tuple[str | None, int], int] = {}
        hidden: defaultdict[tuple[int, int, int, int], list[int]] = defaultdict(list)
        rows = []
        for one in messages:
            body, id_, expires = one.body, lane.first + one.position, one.expires_ms
            if body is None:
                raise ValueError("a message comes without its body")
            if expires <= now:
                continue
            visible = number = 0
            if one.hidden_ms > now:
                visible = one.hidden_ms
                what = (one.claim, 0 if one.claim else visible)
                number = numbers.get(what) or numbers.setdefault(what, self._number(lane, one))
                hidden[number, visible, one.claim_ttl_s, one.claim_started_ms].append(id_)
                if number > 0:
                    lane.held += 1
                    ledger.tally(lane, LAPSE, visible, 1)
                else:
                    lane.delayed += 1
                    ledger.tally(lane, DUE, min(visible, expires), 1)
            else:
                lane.ready_low = min(lane.ready_low, id_)
            if one.dedup is not None:
                self._db.execute(LOSE_KEY, (lane.id, one.dedup))
            ledger.added(lane, expires)
            rows.append(
                (id_, one.posted_ms, one.ttl_s, expires, one.count, one.client, one.attributes,
                 one.dedup, visible, number, body, crc32(body))
            )  # fmt: skip
        if rows:
            lane.low = min(lane.low, rows[0][0])
            lane.next_position = max(lane.next_position, rows[-1][0] - lane.first + 1)
            self._db.executemany(INSERT, rows)
        for (number, visible, ttl_s, started_ms), ids in hidden.items():
            self._holds.hide(lane, number, visible, ttl_s, ids, started_ms=started_ms)

    def _number(self, lane: Lane, one: Stored) -> int:
        if one.claim is None:
            return -self._holds.number()
        return self._holds.arrive(lane, one.claim)


def _held_in_life(one: Stored) -> Stored:
    """A claim extends the lives of what it holds. Where rounding made an end of the other store a
    little later than that of the message, the message's counts.
    """
    if one.claim is None or one.hidden_ms <= one.expires_ms:
        return one
    return replace(one, hidden_ms=one.expires_ms)
