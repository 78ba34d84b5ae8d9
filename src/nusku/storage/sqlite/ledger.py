"""Lanes and their figures: kept in memory while in use, written once a transaction."""

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable

from nusku.errors import Unavailable
from nusku.model import QueueKey, QueueRef
from nusku.storage import Admitted, Stale
from nusku.storage.sqlite.schema import DUE, EXPIRY, LANES_MAX, LAPSE, POSITION_BITS

FAR_MS = 1 << 62
LANES_CACHED = 10_000


class Lane:
    """One generation of a queue.

    ``total``, ``held`` and ``delayed`` count rows as they stand in the table; what has expired,
    lapsed or become due since is in the tallies. Row ids below ``low`` are dead for good, and no
    live row below ``ready_low`` is in the index of free ones. ``due_ms`` is no later than the end
    of anything that hides a message. A ``sealed`` one is only for
    those who copy it; each seal is a number of its own.
    """

    __slots__ = (
        "delayed",
        "due_ms",
        "first",
        "generation",
        "held",
        "id",
        "key",
        "low",
        "next_position",
        "ready_low",
        "sealed",
        "total",
        "version",
    )

    def __init__(
        self,
        id_: int,
        key: QueueKey,
        columns: tuple[str, int, int, int, int, int, int],
        due_ms: int = FAR_MS,
    ) -> None:
        self.id = id_
        self.key = key
        self.generation, self.version, self.next_position, *figures = columns
        self.total, self.held, self.delayed, self.sealed = figures
        self.due_ms = due_ms
        self.first = self.low = self.ready_low = id_ << POSITION_BITS

    @property
    def end(self) -> int:
        """The row id behind the last."""
        return self.first + self.next_position

    def ids(self, positions: Iterable[int]) -> list[int]:
        """The row ids of those positions that were ever given out."""
        return [self.first + p for p in positions if 0 < p < self.next_position]

    def due(self) -> int | None:
        """When something hidden next becomes visible, if anything is hidden."""
        return None if self.due_ms >= FAR_MS else self.due_ms


class Ledger:
    """All lanes in use. Part of every transaction: see ``connection.Unit``."""

    def __init__(self, db: sqlite3.Connection, new_seal: Callable[[], int]) -> None:
        self._db = db
        self.new_seal = new_seal
        self._lanes: dict[QueueKey, Lane] = {}
        self._by_id: dict[int, Lane] = {}
        self._changed: set[Lane] = set()
        self._tallies: defaultdict[tuple[int, int, int], int] = defaultdict(int)
        self._taken: defaultdict[tuple[int, int], int] = defaultdict(int)

    def lane(self, ref: QueueRef, *, fresh: bool = False) -> Lane:
        """The lane of a queue; Stale when it is sealed or of another generation (``fresh``: or
        version).
        """
        lane = self._lanes.get(ref.key) or self._load(ref.key)
        if (
            lane is None
            or lane.generation != ref.generation
            or (fresh and lane.version != ref.version)
            or lane.sealed
        ):
            raise Stale
        return lane

    def find(self, ref: QueueRef) -> Lane | None:
        """The lane of a queue, sealed or not; None when it is gone or of another generation."""
        lane = self._lanes.get(ref.key) or self._load(ref.key)
        return lane if lane is not None and lane.generation == ref.generation else None

    def lane_by_id(self, id_: int) -> Lane | None:
        """The lane with this number, unless it is doomed."""
        lane = self._by_id.get(id_)
        if lane is None:
            row = self._db.execute(
                "SELECT kind, project, name FROM lanes WHERE id = ? AND doomed = 0", (id_,)
            ).fetchone()
            lane = self._load(QueueKey(*row)) if row else None
        return lane

    def _load(self, key: QueueKey) -> Lane | None:
        row = self._db.execute(
            "SELECT id, generation, version, next_position, total, held, delayed, sealed"
            " FROM lanes WHERE kind = ? AND project = ? AND name = ? AND doomed = 0",
            key,
        ).fetchone()
        if row is None:
            return None
        return self._keep(Lane(row[0], key, row[1:], self.next_due(row[0])))

    def _keep(self, lane: Lane) -> Lane:
        self._lanes[lane.key] = self._by_id[lane.id] = lane
        return lane

    def next_due(self, lane_id: int) -> int:
        """When the first of what hides messages of a lane ends."""
        (due_ms,) = self._db.execute(
            "SELECT min(ends_ms) FROM holds WHERE lane = ?", (lane_id,)
        ).fetchone()
        return FAR_MS if due_ms is None else int(due_ms)

    def admit(self, ref: QueueRef) -> Admitted:
        """Let a version be the current one; see :meth:`nusku.storage.MessageStore.admit`."""
        lane = self._lanes.get(ref.key) or self._load(ref.key)
        if lane is None:
            lane = self._create(ref, 1, self.new_seal())
        elif lane.generation != ref.generation:
            return Admitted(lane.generation, "")
        elif lane.version < ref.version:
            self._set(lane, ref.version, lane.sealed)
        return Admitted(None, str(lane.sealed or ""))

    def open(self, ref: QueueRef, seal: str) -> None:
        """Break the seal, if it and the version are these."""
        lane = self.find(ref)
        if lane is not None and lane.version == ref.version and str(lane.sealed) == seal:
            self._set(lane, lane.version, 0)

    def seal(self, ref: QueueRef) -> None:
        self._set(self._unless_overtaken(ref), ref.version, self.new_seal())

    def arrive(self, ref: QueueRef) -> Lane:
        """The lane for what comes from another store."""
        if (self._lanes.get(ref.key) or self._load(ref.key)) is None:
            return self._create(ref, 1, self.new_seal())
        lane = self._unless_overtaken(ref)
        self._set(lane, ref.version, lane.sealed)
        return lane

    def _unless_overtaken(self, ref: QueueRef) -> Lane:
        lane = self.find(ref)
        if lane is None or lane.version > ref.version:
            raise Stale
        return lane

    def _set(self, lane: Lane, version: int, sealed: int) -> None:
        if (lane.version, lane.sealed) != (version, sealed):
            lane.version, lane.sealed = version, sealed
            self._db.execute(
                "UPDATE lanes SET version = ?, sealed = ? WHERE id = ?", (version, sealed, lane.id)
            )

    def replace(self, lane: Lane) -> None:
        """Give the queue an empty lane that goes on with the positions."""
        self.drop(lane)
        self._create(
            QueueRef(lane.key, lane.generation, lane.version), lane.next_position, lane.sealed
        )

    def drop(self, lane: Lane) -> None:
        """Doom a lane; its rows are removed in the background."""
        del self._lanes[lane.key], self._by_id[lane.id]
        self._changed.discard(lane)
        self._db.execute("UPDATE lanes SET doomed = 1 WHERE id = ?", (lane.id,))

    def _create(self, ref: QueueRef, position: int, sealed: int) -> Lane:
        (last,) = self._db.execute("SELECT coalesce(max(id), 0) FROM lanes").fetchone()
        if last + 1 < LANES_MAX:
            id_ = last + 1
        else:
            row = self._db.execute(
                "SELECT id + 1 FROM lanes AS l WHERE id + 1 < ? AND NOT EXISTS"
                " (SELECT 1 FROM lanes WHERE id = l.id + 1) LIMIT 1",
                (LANES_MAX,),
            ).fetchone()
            if row is None:
                raise Unavailable("The store has as many queues as it can hold.")
            id_ = row[0]
        self._db.execute(
            "INSERT INTO lanes (id, kind, project, name, generation, version, next_position,"
            " sealed) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (id_, *ref.key, ref.generation, ref.version, position, sealed),
        )
        columns = (ref.generation, ref.version, position, 0, 0, 0, sealed)
        return self._keep(Lane(id_, ref.key, columns))

    def tally(self, lane: Lane, kind: int, at_ms: int, n: int) -> None:
        """So many more (or fewer) messages of the lane end in this way at this time."""
        self._tallies[lane.id, kind, at_ms] += n

    def changed(self, lane: Lane) -> None:
        """The lane's own figures were changed."""
        self._changed.add(lane)

    def added(self, lane: Lane, expires_ms: int, n: int = 1) -> None:
        """So many messages joined the lane."""
        lane.total += n
        self._tallies[lane.id, EXPIRY, expires_ms] += n
        self._changed.add(lane)

    def gone(self, lane: Lane, claim: int, visible_ms: int, expires_ms: int) -> None:
        """A message with these columns left the lane."""
        lane.total -= 1
        self._tallies[lane.id, EXPIRY, expires_ms] -= 1
        self._changed.add(lane)
        if visible_ms:
            self._taken[claim, visible_ms] += 1
            if claim > 0:
                lane.held -= 1
                self._tallies[lane.id, LAPSE, visible_ms] -= 1
            else:
                lane.delayed -= 1
                self._tallies[lane.id, DUE, min(visible_ms, expires_ms)] -= 1

    def passed(self, lane: Lane, now_ms: int) -> tuple[int, int, int]:
        """How many rows of the lane have expired, lapsed and become due, but not been tidied up."""
        self._write()
        found = dict(
            self._db.execute(
                "SELECT kind, sum(n) FROM tallies WHERE lane = ?1 AND kind IN (0, 1, 2)"
                " AND at_ms <= ?2 GROUP BY kind",
                (lane.id, now_ms),
            ).fetchall()
        )
        return found.get(EXPIRY, 0), found.get(LAPSE, 0), found.get(DUE, 0)

    def flush(self) -> None:
        self._write()
        if len(self._lanes) > LANES_CACHED:
            self.forget()

    def _write(self) -> None:
        db = self._db
        if self._changed:
            db.executemany(
                "UPDATE lanes SET next_position = ?, total = ?, held = ?, delayed = ? WHERE id = ?",
                [(x.next_position, x.total, x.held, x.delayed, x.id) for x in self._changed],
            )
            self._changed.clear()
        if self._tallies:
            changes = [(*key, n) for key, n in self._tallies.items() if n]
            self._tallies.clear()
            db.executemany(
                "INSERT INTO tallies VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET n = n + excluded.n",
                changes,
            )
            fewer = [(lane, kind, at_ms) for lane, kind, at_ms, n in changes if n < 0]
            if fewer:
                db.executemany(
                    "DELETE FROM tallies WHERE lane = ? AND kind = ? AND at_ms = ? AND n = 0",
                    fewer,
                )
        self.flush_holds()

    def flush_holds(self) -> None:
        """Write how many messages the holds have left; those with none are over."""
        if self._taken:
            for (claim, ends_ms), n in self._taken.items():
                done = self._db.execute(
                    "DELETE FROM holds WHERE claim = ? AND ends_ms = ? AND remaining <= ?",
                    (claim, ends_ms, n),
                )
                if not done.rowcount:
                    self._db.execute(
                        "UPDATE holds SET remaining = remaining - ? WHERE claim = ? AND ends_ms = ?",
                        (n, claim, ends_ms),
                    )
            self._taken.clear()

    def forget(self) -> None:
        for pending in (self._lanes, self._by_id, self._changed, self._tallies, self._taken):
            pending.clear()

    def lanes_with_backlog(self, now_ms: int, limit: int) -> Iterable[Lane]:
        """Lanes in which something lapsed or became due, and still waits to be put back."""
        for (id_,) in self._db.execute(
            "SELECT DISTINCT lane FROM tallies INDEXED BY tallies_by_time"
            " WHERE kind IN (1, 2) AND at_ms <= ? LIMIT ?",
            (now_ms, limit),
        ).fetchall():
            lane = self.lane_by_id(id_)
            if lane is not None:
                yield lane
