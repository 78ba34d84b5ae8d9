"""The registry of an embedded store: a file of its own beside it.

The store's own file belongs to one process for as long as that runs. This one is opened for each
operation and closed again, under SQLite's own locks, so commands can use it beside a server.
"""

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote
from uuid import uuid4

from nusku.errors import StoreRefused, Unavailable
from nusku.storage import Entry

T = TypeVar("T")

APPLICATION_ID = 0x6E757361  # "nusa"
VERSION = 1
BUSY_S = 5  # for others who write; each does so for some milliseconds

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS entries (
    tbl TEXT NOT NULL, name TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (tbl, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS revision (text TEXT NOT NULL);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
COMMIT;
"""


class SqliteRegistry:
    """See :class:`nusku.storage.Registry`. The file comes to be with the first write.

    ``store`` is the path of the store.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self.path = registry_file(store)

    async def revision(self) -> str:
        def look(db: sqlite3.Connection) -> str:
            row = db.execute("SELECT text FROM revision").fetchone()
            return row[0] if row else ""

        return await self._look(look, "")

    async def read(self, table: str, name: str) -> bytes | None:
        def look(db: sqlite3.Connection) -> bytes | None:
            row = db.execute(
                "SELECT value FROM entries WHERE tbl = ? AND name = ?", (table, name)
            ).fetchone()
            return row[0] if row else None

        return await self._look(look, None)

    async def all(self, table: str) -> dict[str, bytes]:
        def look(db: sqlite3.Connection) -> dict[str, bytes]:
            return dict(db.execute("SELECT name, value FROM entries WHERE tbl = ?", (table,)))

        return await self._look(look, {})

    async def write(self, table: str, name: str, value: bytes | None) -> None:
        def change() -> None:
            with self._opened(make=True) as db:
                db.execute("BEGIN IMMEDIATE")
                if value is None:
                    db.execute("DELETE FROM entries WHERE tbl = ? AND name = ?", (table, name))
                else:
                    db.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)",
                               (table, name, value))  # fmt: skip
                db.execute("DELETE FROM revision")
                db.execute("INSERT INTO revision VALUES (?)", (uuid4().hex,))
                db.execute("COMMIT")

        await asyncio.to_thread(change)

    async def dump(self) -> list[Entry]:
        def look(db: sqlite3.Connection) -> list[Entry]:
            return [Entry(*row) for row in db.execute("SELECT tbl, name, value FROM entries")]

        return await self._look(look, [])

    async def _look(self, look: Callable[[sqlite3.Connection], T], nothing: T) -> T:
        """What the file says, and ``nothing`` where there is none."""

        def see() -> T:
            if not self.path.exists():
                return nothing
            with self._opened() as db:
                return look(db) if _laid_out(db, self.path) else nothing

        return await asyncio.to_thread(see)

    @contextmanager
    def _opened(self, *, make: bool = False) -> Iterator[sqlite3.Connection]:
        """The file, closed again afterwards. Raises Unavailable, and StoreRefused where it is not
        one of ours.
        """
        try:
            if make:
                _make(self.path, self._store)
            with closing(_connect(self.path)) as db:
                if make and not _laid_out(db, self.path):
                    db.executescript(_SCHEMA)
                yield db
        except (sqlite3.Error, UnicodeDecodeError, OSError) as error:
            raise Unavailable(f"The registry {self.path} cannot be used: {error}.") from None


def registry_file(store: Path) -> Path:
    """Where the registry of an embedded store is."""
    return Path(f"{store.resolve()}.admin")


def backup_registry(store: Path, target: Path) -> None:
    """Copy the registry of a store, if it has one, beside a new backup of that.

    What is there already belonged to a backup that has been moved away. Raises StoreRefused.
    """
    path, copy = registry_file(store), registry_file(target)
    unfinished = copy.with_name(f"{copy.name}.part")
    try:
        copy.unlink(missing_ok=True)
        if not path.exists():
            return
        unfinished.unlink(missing_ok=True)
        os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_RDWR, 0o600))
        with closing(_connect(path)) as db:
            if _laid_out(db, path):
                db.execute("VACUUM INTO ?", (str(unfinished),))
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
        unfinished.rename(copy)
    except (sqlite3.Error, UnicodeDecodeError, OSError) as error:
        unfinished.unlink(missing_ok=True)
        raise StoreRefused(
            f"the store is copied, but registry {path} could not be, to {copy}: {error}"
        ) from None


def _make(path: Path, store: Path) -> None:
    """Have an empty file there if there is none, for its owner only: it tells whom keys are for."""
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_RDWR, 0o600)
    except FileExistsError:
        return
    try:
        # A command that is run by root must not shut out the server, which is not.
        if os.geteuid() == 0 and store.exists():
            owner = store.stat()
            os.fchown(file, owner.st_uid, owner.st_gid)
    finally:
        os.close(file)


def _connect(path: Path) -> sqlite3.Connection:
    # Also to read: what a crash left half done has to be taken back first.
    db = sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw", uri=True, isolation_level=None, timeout=BUSY_S
    )
    # With a journal that is deleted, what was committed outlives a power cut only so.
    db.execute("PRAGMA synchronous = EXTRA")
    return db


def _laid_out(db: sqlite3.Connection, path: Path) -> bool:
    """Whether it has its tables, or somebody is just making them; refuses what is not ours."""
    db.execute("BEGIN")  # all three at one time
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    db.execute("COMMIT")
    if application != APPLICATION_ID and (tables or application):
        raise StoreRefused(f"registry {path} is an SQLite file of another program")
    if version > VERSION:
        raise StoreRefused(
            f"registry {path} has version {version}; this nusku knows up to {VERSION}. Use the"
            " newer nusku that wrote it"
        )
    return bool(tables)
