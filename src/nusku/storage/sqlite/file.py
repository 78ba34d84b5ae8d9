"""The database file: opening it safely, looking at it, copying it."""

import fcntl
import os
import secrets
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import structlog

from nusku.errors import StoreRefused
from nusku.model import QueueKey
from nusku.storage import SERVED
from nusku.storage.census import Beginning, Census
from nusku.storage.sqlite import schema

log = structlog.get_logger("nusku.storage")

WAL_PAGES = 16_000  # 64 MiB; at the latest at this size the log is written back into the file
CHECKED_AT_ONCE_BYTES = 64 << 20  # larger files are looked over while the server already serves

# A damaged schema may hold what is not even text.
_UNUSABLE = (sqlite3.Error, UnicodeDecodeError)
_OLDEST_SQLITE = (3, 35, 0)  # RETURNING


class File:
    """An open, locked database: ``db`` is the one connection that writes and checkpoints.

    ``boot`` is a number that no earlier opening had, ``key`` the file's own secret, ``last_ms``
    a time that the store's clock had already reached.
    """

    def __init__(self, path: Path, synchronous: str) -> None:
        self.path = path = path.resolve()
        self._looking: sqlite3.Connection | None = None
        self._lock = _lock(path)
        try:
            self.db, self.suspect = _open(path, synchronous)
            self.key, self.boot, self.last_ms = _begin(self.db)
        except BaseException:
            self._unlock()
            raise

    def bytes(self) -> int:
        """Size of the file, without its log."""
        return self.path.stat().st_size

    def free_bytes(self) -> int:
        """Room on the disk for everybody but root."""
        found = os.statvfs(self.path.parent)
        return found.f_bavail * found.f_frsize

    def look_over(self) -> str:
        """What a crash did to the file; empty when it is whole. Takes long for a large one."""
        log.info("the store was not closed properly; looking it over", store=str(self.path))
        with closing(_connect(self.path, "ro")) as reader:
            self._looking = reader
            try:
                return _damage(reader)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
                    return ""
                return str(error)
            except sqlite3.DatabaseError as error:
                return str(error)
            finally:
                self._looking = None

    def stop_looking(self) -> None:
        """Let :meth:`look_over` return at once."""
        if self._looking is not None:
            self._looking.interrupt()

    def remember(self, now_ms: int) -> None:
        """Note in the transaction under way how far the clock has come."""
        self.db.execute(
            "UPDATE meta SET value = ? WHERE name = 'last_ms' AND value < ?", (now_ms, now_ms)
        )

    def close(self, now_ms: int) -> None:
        """Write the log back, mark the file as closed and let go of it."""
        self.remember(now_ms)
        self.db.execute("UPDATE meta SET value = 0 WHERE name = 'open'")
        self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self.db.close()
        self._unlock()

    def abandon(self) -> None:
        """Let go of a file that failed, without touching it again."""
        self._unlock()

    def _unlock(self) -> None:
        os.close(self._lock)


def _lock(path: Path) -> int:
    """Hold ``<file>.lock`` for as long as the process lives."""
    try:
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreRefused(f"store {path}: {_reason(path, error)}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.read(descriptor, 20).decode(errors="replace").strip()
        os.close(descriptor)
        raise StoreRefused(
            f"store {path} is in use by another nusku server (process {owner or 'unknown'});"
            " one process owns an SQLite store"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _reason(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"the directory {path.parent} does not exist"
    return f"{error.strerror}: {error.filename}"


def _open(path: Path, synchronous: str) -> tuple[sqlite3.Connection, bool]:
    """The database, and whether it has yet to be looked over."""
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise StoreRefused(f"SQLite {sqlite3.sqlite_version} is too old: nusku needs 3.35 or newer")
    fresh = not path.exists() or path.stat().st_size == 0
    has_log = _nonempty(Path(f"{path}-wal"))
    db = None
    try:
        if fresh:
            os.close(os.open(path, os.O_CREAT | os.O_CLOEXEC, 0o600))  # it holds bodies and a key
        db = _connect(path, "rw")
        suspect = _prepare(db, path, synchronous, has_log=has_log)
        if fresh:
            _sync_directory(path.parent)
    except BaseException as error:
        if db is not None:
            db.close()
        if isinstance(error, (*_UNUSABLE, OSError)):
            raise StoreRefused(f"store {path} cannot be used: {error}") from None
        raise
    return db, suspect


def _prepare(db: sqlite3.Connection, path: Path, synchronous: str, *, has_log: bool) -> bool:
    """Lay out or migrate a file, or refuse it; say whether it has yet to be looked over."""
    fresh = _blank(db, path)
    found = _recognise(db, path, fresh)
    _set_up(db, synchronous)
    crashed = not fresh and bool(_meta(db, "open"))
    if crashed and not has_log:
        raise StoreRefused(
            f"store {path} was copied without its -wal file while a server had it open, so"
            " what was acknowledged last is missing; copy a live store with `nusku backup`."
            " To use the file in spite of that: "
            f"sqlite3 {path} \"UPDATE meta SET value = 0 WHERE name = 'open'\""
        )
    suspect = crashed and path.stat().st_size > CHECKED_AT_ONCE_BYTES
    if crashed and not suspect and (damage := _damage(db)):
        raise StoreRefused(f"store {path} is damaged ({damage}); restore a backup")
    if fresh:
        schema.create(db)
    elif found < schema.VERSION:
        schema.migrate(db, found)
    return suspect


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
        timeout=5,
    )


def _connect_to_read(path: Path) -> sqlite3.Connection:
    """Beside a server, or of a file at rest; leaves nothing behind in either case."""
    at_rest = not Path(f"{path}-wal").exists()
    return _connect(path, "ro&immutable=1" if at_rest else "ro")


def _recognise(db: sqlite3.Connection, path: Path, fresh: bool) -> int:
    """The schema's version; refuses what is not ours or not yet known."""
    application = int(db.execute("PRAGMA application_id").fetchone()[0])
    found = int(db.execute("PRAGMA user_version").fetchone()[0])
    if not fresh and application != schema.APPLICATION_ID:
        raise StoreRefused(f"store {path} is an SQLite file of another program")
    if found > schema.VERSION:
        raise StoreRefused(
            f"store {path} has schema version {found}; this nusku knows up to"
            f" {schema.VERSION}. Use the newer nusku that wrote it"
        )
    return found


def _blank(db: sqlite3.Connection, path: Path) -> bool:
    """Whether the file is new, or a crash came between its first page and its tables."""
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    # SQLite takes a file of a single byte for an empty database; it is not one of ours.
    return not tables and not application and path.stat().st_size % 512 == 0


def _set_up(db: sqlite3.Connection, synchronous: str) -> None:
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreRefused(f"the file system does not allow SQLite's WAL mode (got {mode})")
    db.execute(
        "PRAGMA synchronous = NORMAL" if synchronous == "normal" else "PRAGMA synchronous = FULL"
    )
    db.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
    db.execute("PRAGMA journal_size_limit = 67108864")
    db.execute("PRAGMA cache_size = -32768")
    db.execute("PRAGMA temp_store = MEMORY")


def _begin(db: sqlite3.Connection) -> tuple[bytes, int, int]:
    """Mark the file as open in the file itself, not only in the log."""
    db.execute("BEGIN IMMEDIATE")
    for name, value in (("key", secrets.token_bytes(32)), ("boot", 0), ("last_ms", 0), ("open", 0)):
        db.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (name, value))
    db.execute("UPDATE meta SET value = value + 1 WHERE name = 'boot'")
    db.execute("UPDATE meta SET value = 1 WHERE name = 'open'")
    (latest,) = db.execute("SELECT max(started_ms) FROM holds").fetchone()
    db.execute("COMMIT")
    db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    return _meta(db, "key"), _meta(db, "boot"), max(_meta(db, "last_ms"), latest or 0)


def _damage(db: sqlite3.Connection) -> str:
    """What is wrong with the file; empty when it is whole."""
    (first,) = db.execute("PRAGMA quick_check(1)").fetchone()
    return "" if first == "ok" else " ".join(str(first).split())


def _meta(db: sqlite3.Connection, name: str) -> Any:
    row = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return row[0] if row else None


def _nonempty(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def inspect(path: Path) -> str:
    """What is in the file, read only. Raises StoreRefused when no server could use it."""
    if not path.exists():
        return f"{path}: not there yet; `nusku serve` creates it"
    try:
        db = _connect_to_read(path)
        try:
            found = _recognise(db, path, fresh=False)
            (queues, messages) = db.execute(
                "SELECT count(*), coalesce(sum(total), 0) FROM lanes"
                f" WHERE doomed = 0 AND kind IN {SERVED}"
            ).fetchone()
        finally:
            db.close()
    except _UNUSABLE as error:
        raise StoreRefused(f"store {path} cannot be used: {error}") from None
    size = path.stat().st_size
    return (
        f"{path}: SQLite store, schema version {found}, {queues} queues and topics,"
        f" {messages} messages, {size / 2**20:.1f} MiB"
    )


def backup(path: Path, target: Path) -> None:
    """A consistent copy, made in one read transaction; the server goes on meanwhile."""
    if target.exists():
        raise StoreRefused(f"{target} exists already; a backup is written to a new file")
    if not path.exists():
        raise StoreRefused(f"store {path} does not exist")
    unfinished = target.with_name(target.name + ".part")
    try:
        unfinished.unlink(missing_ok=True)
        db = _connect_to_read(path)
        try:
            _recognise(db, path, fresh=False)
            db.execute("VACUUM INTO ?", (str(unfinished),))
        finally:
            db.close()
        copy = _connect(unfinished, "rw")
        try:
            copy.execute("UPDATE meta SET value = 0 WHERE name = 'open'")
            # The original goes on to give out claim ids that the copy will use for others: with
            # a key of its own the copy takes none of them for its own.
            copy.execute("UPDATE meta SET value = randomblob(32) WHERE name = 'key'")
        finally:
            copy.close()
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
        unfinished.rename(target)
        _sync_directory(target.parent)
    except (*_UNUSABLE, OSError) as error:
        unfinished.unlink(missing_ok=True)
        raise StoreRefused(f"store {path} could not be copied to {target}: {error}") from None


def census(path: Path, length: int, kinds: Sequence[str]) -> Census:
    """See :func:`nusku.storage.census.census`; in one read transaction, whoever has the file open."""
    if not path.exists():
        return Census([], {})
    try:
        with closing(_connect_to_read(path)) as db:
            _recognise(db, path, fresh=False)
            db.execute("BEGIN")
            beginnings = db.execute(
                "SELECT l.kind, l.project, l.name, substr(m.body, 1, ?), count(*)"
                " FROM messages AS m NOT INDEXED JOIN lanes AS l ON l.id = m.id >> 43"
                " WHERE l.doomed = 0 GROUP BY 1, 2, 3, 4",
                (length,),
            ).fetchall()
            records = [
                row
                for kind in kinds
                for row in db.execute(
                    "SELECT kind, project, key, doc FROM records WHERE kind = ?", (kind,)
                )
            ]
    except _UNUSABLE as error:
        raise StoreRefused(f"store {path} cannot be used: {error}") from None
    return Census(
        [Beginning(QueueKey(*row[:3]), bytes(row[3]), row[4]) for row in beginnings],
        {(kind, project, key): doc for kind, project, key, doc in records},
    )
