"""Empty stores of every kind, in milliseconds, for suites that need thousands of them.

:func:`store_in` names one by a folder. The servers behind it are started when first needed and
serve the whole run; a store whose folder is gone, or that was :func:`released <release>`, is
emptied and given out again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import asyncpg

from nusku.metrics import Metrics
from nusku.storage import StoreOptions, open_store
from tests.servers.cluster import Cluster
from tests.servers.postgres import Postgres, background
from tests.servers.redis import Redis


class Lent(ABC):
    """A store outside of its user's folder."""

    uri: str

    @abstractmethod
    def empty(self) -> None:
        """Make it as new."""

    @abstractmethod
    def remove(self) -> None:
        """Nobody needs it any more."""


class Database(Lent):
    """A copy of a database that the store has been opened on once."""

    server: Postgres | None = None
    template = ""
    outline = ""

    def __init__(self) -> None:
        if Database.server is None:
            server = Postgres().start()
            Database.server = server
            Database.template = server.create()
            background.run(_open_once(Database.template))
            name = Database.template.rsplit("/", 1)[1]
            server.execute(REMEMBER, name)
            Database.outline = str(server.execute(OUTLINE, name)[0][0])
        self._server = Database.server
        self._connection: asyncpg.Connection | None = None
        self._clone()

    def _clone(self) -> None:
        self.uri = self._server.create(Database.template.rsplit("/", 1)[1])

    def empty(self) -> None:
        """Truncate what has rows: ten times as fast as another copy."""
        if not background.run(self._truncate()):
            self.remove()
            self._clone()

    async def _truncate(self) -> bool:
        """False if its tables are not those of the template."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await asyncpg.connect(self.uri)
        await self._connection.execute(HANG_UP)
        if await self._connection.fetchval(OUTLINE) != Database.outline:
            return False
        await self._connection.execute(EMPTY)
        return True

    def remove(self) -> None:
        async def close() -> None:
            if self._connection is not None:
                await self._connection.close()
                self._connection = None

        background.run(close())
        self._server.drop(self.uri)


async def _open_once(uri: str) -> None:
    """Let the store make its tables, at a time before that of any clock in a test."""
    store = await open_store(uri, lambda: 0, StoreOptions(), Metrics())
    await store.close()


TABLES = """
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
"""
HANG_UP = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
        AND backend_type = 'client backend'
"""
OUTLINE = f"""
    SELECT string_agg(concat(n.nspname, '.', c.relname, ' ', c.relkind), ',' ORDER BY c.oid)
    {TABLES}
"""
REMEMBER = f"""
    DO $$
    DECLARE name record;
    BEGIN
        CREATE SCHEMA remembered;
        FOR name IN SELECT n.nspname AS place, c.relname AS table {TABLES}
            AND c.relkind = 'r' AND n.nspname <> 'remembered'
        LOOP
            EXECUTE format(
                'CREATE TABLE remembered.%I AS TABLE %I.%I', name.table, name.place, name.table
            );
        END LOOP;
    END $$
"""
EMPTY = f"""
    DO $$
    DECLARE
        name record;
        rows boolean;
    BEGIN
        FOR name IN SELECT n.nspname AS place, c.relname AS table {TABLES}
            AND c.relkind = 'r' AND n.nspname <> 'remembered'
        LOOP
            EXECUTE format('SELECT EXISTS (SELECT FROM %I.%I)', name.place, name.table) INTO rows;
            IF rows THEN
                EXECUTE format('TRUNCATE %I.%I RESTART IDENTITY CASCADE', name.place, name.table);
            END IF;
        END LOOP;
        SET LOCAL session_replication_role = replica;
        FOR name IN SELECT n.nspname AS place, c.relname AS table {TABLES}
            AND c.relkind = 'r' AND n.nspname <> 'remembered'
        LOOP
            EXECUTE format(
                'INSERT INTO %I.%I OVERRIDING SYSTEM VALUE TABLE remembered.%I',
                name.place, name.table, name.table
            );
        END LOOP;
        FOR name IN SELECT schemaname AS place, sequencename AS sequence, start_value
            FROM pg_sequences WHERE last_value IS NOT NULL
        LOOP
            PERFORM setval(
                format('%I.%I', name.place, name.sequence)::regclass, name.start_value, false
            );
        END LOOP;
    END $$
"""


class Single(Lent):
    """A Redis of its own. Every write is on disk before it is answered, as the store demands."""

    def __init__(self) -> None:
        self._server = Redis().start()
        self._client = self._server.client()
        self.uri = self._server.uri

    def empty(self) -> None:
        self._client.flushall(asynchronous=True)

    def remove(self) -> None:
        self._client.close()
        self._server.remove()


class Six(Lent):
    """A Redis Cluster of its own."""

    def __init__(self) -> None:
        # Nobody fails here; many clusters that watch themselves closely would keep a core busy.
        self._cluster = Cluster(node_timeout_ms=30_000).start()
        for node in self._cluster.nodes:
            node.ask("CONFIG", "SET", "hz", "1")
        self._clients = [master.client() for master in self._cluster.masters()]
        self.uri = self._cluster.uri

    def empty(self) -> None:
        for client in self._clients:
            client.flushall(asynchronous=True)

    def remove(self) -> None:
        for client in self._clients:
            client.close()
        self._cluster.remove()


_SHARED: dict[str, tuple[str, Callable[[], Lent]]] = {
    "postgresql": ("nusku.storage.postgres", Database),
    "redis": ("nusku.storage.redis", Single),
    "redis-cluster": ("nusku.storage.redis", Six),
}


def _exists(package: str) -> bool:
    found = find_spec(package)
    return found is not None and found.origin is not None


KINDS = ("sqlite", *(kind for kind, (package, _) in _SHARED.items() if _exists(package)))
"""The kinds of stores that there are, whether or not their servers can be started here."""

_lent: dict[Path, tuple[str, Lent]] = {}
_free: defaultdict[str, list[Lent]] = defaultdict(list)


def store_in(kind: str, folder: Path) -> str:
    """The URI of the store of this folder: an empty one when asked for first, then always that.

    Raises :class:`tests.servers.programs.Missing`.
    """
    if kind == "sqlite":
        return f"sqlite:///{folder / 'nusku.db'}"
    if folder not in _lent:
        folder.mkdir(exist_ok=True)
        for gone in [place for place in _lent if not place.exists()]:
            _take_back(gone)
        if _free[kind]:
            lent = _free[kind].pop()
            lent.empty()
        else:
            lent = _SHARED[kind][1]()
        _lent[folder] = kind, lent
    found, lent = _lent[folder]
    assert found == kind, f"{folder} has a store of another kind"
    return lent.uri


def release(folder: Path) -> None:
    """Nobody uses the stores of this folder, and of those in it, any more."""
    for place in [place for place in _lent if place.is_relative_to(folder)]:
        _take_back(place)


def _take_back(folder: Path) -> None:
    kind, lent = _lent.pop(folder)
    _free[kind].append(lent)


def end() -> None:
    """Stop all servers. What was lent is lost."""
    for folder in list(_lent):
        _take_back(folder)
    for lent in (one for kind in _free.values() for one in kind):
        lent.remove()
    _free.clear()
    background.close()
    if Database.server is not None:
        Database.server.remove()
        Database.server = None
