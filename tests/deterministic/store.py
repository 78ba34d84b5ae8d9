"""The embedded store in memory: its own tables, statements and group commit, without a thread.

What stands between the engine and its disk is replaced, and nothing else: the file by a database in
memory, the thread that waits for the disk by a moment on the loop. Power may be cut: what was not
committed is gone, and the engine starts anew on what is there.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar, cast

from nusku.clock import Clock
from nusku.errors import Unavailable
from nusku.metrics import Metrics
from nusku.storage import CAPABILITIES, Hint, Store
from nusku.storage.sqlite import connection as connection_module
from nusku.storage.sqlite import schema
from nusku.storage.sqlite.connection import Connection, _Waiting
from nusku.storage.sqlite.file import File, _begin
from nusku.storage.sqlite.messages import SqliteMessages
from nusku.storage.sqlite.records import SqliteRecords
from tests.deterministic.weather import Weather

T = TypeVar("T")

LOOK_S = 2.0  # after which those who wait look again, since hints get lost
COMMITS_S = 0.02  # that a commit takes, at most


class Lane(NamedTuple):
    """A queue on a disk; ``total`` counts what has expired and is not tidied up, too."""

    name: str
    total: int
    sealed: bool


class Disk:
    """Stands for :class:`nusku.storage.sqlite.file.File`. One is used for many runs: `wipe` first.

    What lies on it may be looked at from outside, which changes nothing.
    """

    remember = File.remember

    def __init__(self) -> None:
        self.db = sqlite3.connect(":memory:", isolation_level=None, cached_statements=512)
        schema.create(self.db)
        rows = self.db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        self._tables = [name for (name,) in rows]
        self.key, self.boot, self.last_ms = b"", 0, 0

    def wipe(self, rng: random.Random) -> None:
        """As a new file."""
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")
        for name in self._tables:
            self.db.execute(f"DELETE FROM {name}")
        self.db.execute("INSERT INTO meta VALUES ('key', ?)", (rng.randbytes(32),))

    def open(self) -> None:
        """As a server's start does it."""
        self.key, self.boot, self.last_ms = _begin(self.db)

    def unsettled(self) -> bool:
        """Whether there are notices, or deliveries that are not given up."""
        found = self.db.execute(
            "SELECT 1 FROM lanes WHERE kind IN ('notice', 'delivery') AND total > 0 LIMIT 1"
        )
        return found.fetchone() is not None

    def lanes(self, *kinds: str) -> list[Lane]:
        """The queues of these kinds."""
        rows = self.db.execute(
            "SELECT name, total, sealed FROM lanes WHERE doomed = 0"
            f" AND kind IN ({','.join('?' * len(kinds))}) ORDER BY kind, project, name",
            kinds,
        )
        return [Lane(name, total, bool(sealed)) for name, total, sealed in rows]

    def bodies(self) -> list[bytes]:
        """All bodies that lie there, and what is kept beside them; also of what is gone by now."""
        rows = self.db.execute("SELECT body, attributes FROM messages").fetchall()
        return [bytes(part) for row in rows for part in row if part is not None]

    def documents(self, kind: str) -> list[tuple[str, bytes, int | None]]:
        """The records of a kind: key, document, and when they end."""
        return self.db.execute(
            "SELECT key, doc, ends_ms FROM records WHERE kind = ? ORDER BY project, key", (kind,)
        ).fetchall()

    def free_bytes(self) -> int:
        return 1 << 40


class Shelf:
    """Disks by name, which one run after the other uses."""

    def __init__(self) -> None:
        self._disks: dict[str, Disk] = {}

    def take(self, name: str, rng: random.Random) -> Disk:
        """One with nothing on it."""
        disk = self._disks.get(name)
        if disk is None:
            disk = self._disks[name] = Disk()
        disk.wipe(rng)
        return disk


class _Jobs:
    """What the thread would do, it does after a while."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def put(self, job: Callable[[], None] | None) -> None:
        if job is None:
            return
        engine, rng, loop = self._engine, self._engine.rng, asyncio.get_running_loop()
        if rng.random() < engine.weather.now.slow_commits:
            loop.call_later(rng.random() * COMMITS_S, engine.unless_cut, job)
        else:
            loop.call_soon(engine.unless_cut, job)


class _NoThread:
    """In place of the thread."""

    def __init__(self, **options: Any) -> None:
        pass

    def start(self) -> None:
        pass

    def join(self) -> None:
        pass


class Engine(Connection):
    """The engine's connection, on which commits may be slow and statements may fail."""

    def __init__(
        self, db: sqlite3.Connection, clock: Clock, metrics: Metrics, last_ms: int,
        rng: random.Random, weather: Weather,
    ) -> None:  # fmt: skip
        module = vars(connection_module)
        threading, module["threading"] = module["threading"], SimpleNamespace(Thread=_NoThread)
        try:
            super().__init__(db, clock, metrics, last_ms)
        finally:
            module["threading"] = threading
        self.rng = rng
        self.weather = weather
        self._jobs = cast("Any", _Jobs(self))
        self._under_way: list[_Waiting] = []
        self._cut = False

    def run(self, operation: Callable[[], T], weight: int = 1) -> asyncio.Future[T]:
        if self.weather.strikes(self.weather.now.faulty):
            return super().run(lambda: _failing(operation), weight)
        return super().run(operation, weight)

    def unless_cut(self, job: Callable[[], None]) -> None:
        if not self._cut:
            job()

    def _cycle(self) -> None:
        if not self._cut:
            super()._cycle()

    def _execute(self, batch: list[_Waiting]) -> bool:
        self._under_way = batch
        return super()._execute(batch)

    def _answer(self, batch: list[_Waiting]) -> None:
        if not self._cut:
            super()._answer(batch)

    def cut(self) -> None:
        """The power is cut: nothing that is not committed stays, and nobody is answered."""
        self._cut = True
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")
        for one in self._under_way:
            if not one.future.done():
                one.future.set_exception(Unavailable("The power was cut."))
        self.fail("the power was cut")


def _failing(operation: Callable[[], T]) -> T:
    """It does its work, and the database reports that it did not."""
    operation()
    raise sqlite3.OperationalError("a statement failed")


class Ground:
    """One store of a run, as it is now. ``engine``: the class of its connections; ``messages`` and
    ``records``: what comes between those and the nodes. While it is ``away`` nobody reaches it.
    """

    def __init__(
        self, disk: Disk, clock: Clock, rng: random.Random, weather: Weather, name: str = ""
    ) -> None:
        self.engine: type[Engine] = Engine
        self.messages: Callable[[Any], Any] = lambda real: real
        self.records: Callable[[Any], Any] = lambda real: real
        self.name = name  # as it is printed before what is asked of it
        self.disk = disk
        self.away = False
        self.store: Store
        self._connection: Engine
        self._clock = clock
        self._rng = rng
        self._weather = weather
        self._failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def open(self) -> None:
        """Begin, on a disk that is empty or not."""
        disk, metrics = self.disk, _METRICS
        disk.open()
        engine = self.engine(disk.db, self._clock, metrics, disk.last_ms, self._rng, self._weather)
        self._connection = engine
        messages = SqliteMessages(engine, cast("File", disk), metrics, 0)
        records = SqliteRecords(engine, messages.check_room)

        async def ping() -> None:
            await engine.run(lambda: None)

        async def leave_open() -> None:
            """The other nodes go on using it."""

        self.store = Store(
            self.messages(messages), self.records(records), cast("Any", None), ping, leave_open, self._failed,
            "memory", CAPABILITIES, shared=True, look_s=LOOK_S,
        )  # fmt: skip

    def of_node(
        self, messages: Any, records: Any, tell: Hint, hear: Callable[[Hint], None]
    ) -> Store:
        """As one node sees it."""
        return self.store._replace(messages=messages, records=records, tell=tell, hear=hear)

    def cut(self) -> None:
        """See :meth:`Engine.cut`; `open` starts anew."""
        self._connection.cut()


_METRICS = Metrics()
"""Nobody reads them."""
