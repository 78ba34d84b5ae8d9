"""Housekeeping: nothing depends on it but the size of the file."""

from nusku.metrics import Metrics
from nusku.storage import SERVED
from nusku.storage.sqlite.connection import Connection
from nusku.storage.sqlite.file import File
from nusku.storage.sqlite.holds import SETTLED_ROWS, Holds
from nusku.storage.sqlite.ledger import Ledger
from nusku.storage.sqlite.schema import POSITION_BITS

EXPIRED = (
    "SELECT id, claim, visible_ms, expires_ms FROM messages INDEXED BY expiring"
    " WHERE expires_ms <= ? ORDER BY expires_ms LIMIT ?"
)


class Sweep:
    """Removes dead rows in small steps."""

    def __init__(
        self, connection: Connection, ledger: Ledger, holds: Holds, file: File, metrics: Metrics
    ) -> None:
        self._connection = connection
        self._db = connection.db
        self._ledger = ledger
        self._holds = holds
        self._file = file
        self._metrics = metrics
        self._noted_changes = connection.db.total_changes
        self._foreign = 0  # the number of the claim of another store that was looked at last

    def step(self, limit: int) -> int:
        """Remove up to ``limit`` dead rows, or put back what lapsed; say how many there were."""
        now = self._connection.now_ms
        done = self._expire(now, limit)
        done += self._empty_doomed(limit - done)
        done += self._forget_foreign(limit - done)
        for lane in self._ledger.lanes_with_backlog(now, 1 + (limit - done) // SETTLED_ROWS):
            self._holds.settle(lane)
            done = limit
        if self._db.total_changes != self._noted_changes:
            self._file.remember(now)
            self._noted_changes = self._db.total_changes
        return done

    def _expire(self, now: int, limit: int) -> int:
        rows = self._db.execute(EXPIRED, (now, limit)).fetchall()
        self._db.executemany("DELETE FROM messages WHERE id = ?", [(row[0],) for row in rows])
        n = 0
        for id_, *state in rows:
            lane = self._ledger.lane_by_id(id_ >> POSITION_BITS)
            if lane is not None:
                self._ledger.gone(lane, *state)
                n += lane.key.kind in SERVED
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

    def _forget_foreign(self, limit: int) -> int:
        """Forget the ids of claims of another store that are over."""
        if limit <= 0:
            return 0
        numbers = self._db.execute(
            "SELECT number FROM foreign_claims WHERE number > ? ORDER BY number LIMIT ?",
            (self._foreign, limit),
        ).fetchall()
        self._foreign = numbers[-1][0] if len(numbers) == limit else 0
        return self._db.executemany(
            "DELETE FROM foreign_claims WHERE number = ?1"
            " AND NOT EXISTS (SELECT 1 FROM holds WHERE claim = ?1)",
            numbers,
        ).rowcount
