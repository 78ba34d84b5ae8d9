"""What hides messages: claims, and delays, which are claims that nobody holds."""

from array import array
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

from nusku.storage.sqlite.connection import Connection
from nusku.storage.sqlite.ledger import Lane, Ledger
from nusku.storage.sqlite.schema import DUE, LAPSE

SETTLED_ROWS = 500  # lapsed messages that one operation puts back on its way
FOREIGN = 1 << 62  # numbers from here on are of claims that another store made

PUT_BACK = (
    "UPDATE messages SET claim = 0, visible_ms = 0 WHERE id = ? AND claim = ? AND visible_ms = ?"
)
PUT_BACK_LAPSED = f"{PUT_BACK} RETURNING expires_ms"
LAPSED = (
    "SELECT claim, ends_ms, positions FROM holds INDEXED BY holds_by_end"
    " WHERE lane = ? AND ends_ms <= ? ORDER BY ends_ms LIMIT 100"
)


class Part(NamedTuple):
    """Messages of one claim that have the same end: a row of ``holds``."""

    ends_ms: int
    ttl_s: int
    started_ms: int
    ids: Sequence[int]


class Holds:
    """The rows of ``holds``, and the ids of claims."""

    def __init__(self, connection: Connection, ledger: Ledger, key: bytes, boot: int) -> None:
        self._connection = connection
        self._db = connection.db
        self._ledger = ledger
        self._key = key
        # Numbers of claims are never used twice, not even after a crash.
        self._last_claim = boot << 40
        # Most claims are seen again soon, when their messages are deleted.
        self.claim_id = lru_cache(maxsize=4096)(self._claim_id)

    def hide(
        self,
        lane: Lane,
        number: int,
        ends_ms: int,
        ttl_s: int,
        ids: Sequence[int],
        *,
        new: bool = False,
        started_ms: int | None = None,
    ) -> None:
        """Note what hides these messages, so that they are found when it ends.

        ``new``: nothing is hidden under this number yet. ``started_ms``: not now.
        """
        known = (0, b"")
        if not new:
            known = (
                self._db.execute(
                    "SELECT remaining, positions FROM holds WHERE claim = ? AND ends_ms = ?",
                    (number, ends_ms),
                ).fetchone()
                or known
            )
        self._db.execute(
            "REPLACE INTO holds VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                number,
                ends_ms,
                lane.id,
                ttl_s,
                self._connection.now_ms if started_ms is None else started_ms,
                known[0] + len(ids),
                known[1] + array("q", ids).tobytes(),
            ),
        )
        lane.due_ms = min(lane.due_ms, ends_ms)
        self._ledger.changed(lane)

    def settle(self, lane: Lane) -> int:
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

    def take(self, lane: Lane, number: int, positions: Sequence[int] | None) -> list[int]:
        """Free what a live claim holds (or some of it); return the row ids, oldest first."""
        db = self._db
        wanted = None if positions is None else set(lane.ids(positions))
        taken = []
        for part in self.parts(lane, number):
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

    def parts(self, lane: Lane, number: int) -> list[Part]:
        """What is left of a live claim."""
        self._ledger.flush_holds()
        return [
            Part(ends, ttl, started, array("q", positions))
            for ends, ttl, started, positions in self._db.execute(
                "SELECT ends_ms, ttl_s, started_ms, positions FROM holds"
                " WHERE claim = ? AND lane = ? AND ends_ms > ?",
                (number, lane.id, self._connection.now_ms),
            ).fetchall()
        ]

    def any_live(self, lane: Lane, numbers: Sequence[int]) -> bool:
        return any(self.parts(lane, number) for number in numbers)

    def number(self) -> int:
        self._last_claim += 1
        return self._last_claim

    def _claim_id(self, number: int) -> str:
        """The number, sealed with the file's key: an id that was not given out is told apart
        without looking it up.
        """
        if number >= FOREIGN:
            (claim,) = self._db.execute(
                "SELECT id FROM foreign_claims WHERE number = ?", (number,)
            ).fetchone()
            return str(claim)
        seal = blake2b(number.to_bytes(8), key=self._key, digest_size=8).hexdigest()
        return f"{number:016x}{seal}"

    def claim_number(self, claim: str) -> int:
        """The number of a claim; 0, which none has, for an id that is not known here."""
        number = self._own(claim)
        if number:
            return number
        row = self._db.execute(
            "SELECT number FROM foreign_claims WHERE id = ?", (claim,)
        ).fetchone()
        return int(row[0]) if row else 0

    def _own(self, claim: str) -> int:
        """The number in an id that was made here, else 0."""
        try:
            number = int(claim[:16], 16)
        except ValueError:
            return 0
        return number if 0 < number < FOREIGN and self.claim_id(number) == claim else 0

    def arrive(self, lane: Lane, claim: str) -> int:
        """The number for a claim that comes from another store, which may have had it from here."""
        number = self.claim_number(claim)
        if number:
            # What the queue left behind when it went is of no use to anybody.
            self._db.execute(
                "DELETE FROM holds WHERE claim = ? AND lane <> ? AND lane IN"
                " (SELECT id FROM lanes WHERE doomed = 1)",
                (number, lane.id),
            )
            return number
        number = FOREIGN + self.number()
        self._db.execute("INSERT INTO foreign_claims VALUES (?, ?)", (number, claim))
        return number
