"""Small documents in SQLite."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from nusku.model import Record
from nusku.storage import Taken
from nusku.storage.sqlite.connection import Connection

CHUNK = 200  # documents looked at by one transaction while filtering

COLUMNS = 'kind, project, key, doc, version, parent, "unique", created_ms, ends_ms'
SELECT = f"SELECT {COLUMNS} FROM records"
LIVE = "(ends_ms IS NULL OR ends_ms > ?)"
INSERT = f"INTO records ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"

_FURTHER = f"key > ? AND {LIVE} ORDER BY key LIMIT ?"
PAGE = f"{SELECT} WHERE kind = ? AND project = ? AND {_FURTHER}"
# Left alone, the planner would walk over the whole project in search of a parent.
PAGE_OF_PARENT = (
    f"{SELECT} INDEXED BY records_by_parent"
    f" WHERE kind = ? AND project = ? AND parent <> '' AND parent = ? AND {_FURTHER}"
)

ENDED = (
    f"{SELECT} WHERE kind = ? AND ends_ms <= ? AND (ends_ms, key) > (?, ?)"
    " ORDER BY ends_ms, key LIMIT ?"
)
GET = f"{SELECT} WHERE kind = ? AND project = ? AND key = ?"
DELETE = (
    "DELETE FROM records WHERE kind = ?1 AND project = ?2 AND key = ?3 AND (?4 IS NULL OR doc = ?4)"
    f" RETURNING {COLUMNS}"
)
DUMP = f"{SELECT} WHERE (kind, project, key) > (?, ?, ?) ORDER BY kind, project, key LIMIT ?"
LOSE_NAME = 'UPDATE records SET "unique" = NULL WHERE kind = ? AND project = ? AND "unique" = ?'
FIND = f'{SELECT} WHERE kind = ? AND project = ? AND "unique" = ?'


class SqliteRecords:
    """See :class:`nusku.storage.RecordStore`."""

    def __init__(self, connection: Connection, check_room: Callable[[], None]) -> None:
        self._connection = connection
        self._run = connection.run
        self._db = connection.db
        self._check_room = check_room

    def insert(self, record: Record, ttl_s: int | None = None) -> Awaitable[bool]:
        def operation() -> bool:
            self._check_room()
            self._free_name(record)
            now = self._connection.now_ms
            return bool(
                self._db.execute(
                    f"INSERT OR IGNORE {INSERT}",
                    (record.kind, record.project, record.key, record.doc, record.version,
                     record.parent, record.unique, now, _end(now, ttl_s)),
                ).rowcount
            )  # fmt: skip

        return self._run(operation)

    def update(self, record: Record, ttl_s: int | None = None) -> Awaitable[bool]:
        def operation() -> bool:
            now = self._connection.now_ms
            if (
                record.unique is not None
                and self._db.execute(
                    'SELECT 1 FROM records WHERE kind = ? AND project = ? AND "unique" = ?'
                    f" AND key <> ? AND {LIVE}",
                    (record.kind, record.project, record.unique, record.key, now),
                ).fetchone()
            ):
                raise Taken
            self._free_name(record)
            return bool(
                self._db.execute(
                    'UPDATE records SET version = ?1, doc = ?2, "unique" = ?3,'
                    " ends_ms = coalesce(?4, ends_ms)"
                    " WHERE kind = ?5 AND project = ?6 AND key = ?7 AND version = ?1 - 1"
                    " AND (ends_ms IS NULL OR ends_ms > ?8)",
                    (record.version, record.doc, record.unique, _end(now, ttl_s), record.kind,
                     record.project, record.key, now),
                ).rowcount
            )  # fmt: skip

        return self._run(operation)

    def _free_name(self, record: Record) -> None:
        """Take the unique name from a record that has ended."""
        if record.unique is not None:
            self._db.execute(
                'UPDATE records SET "unique" = NULL'
                ' WHERE kind = ? AND project = ? AND "unique" = ? AND ends_ms <= ?',
                (record.kind, record.project, record.unique, self._connection.now_ms),
            )

    def get(
        self, kind: str, project: str, key: str, *, ended: bool = False
    ) -> Awaitable[Record | None]:
        return self._one(GET, (kind, project, key), ended=ended)

    def find(self, kind: str, project: str, unique: str) -> Awaitable[Record | None]:
        return self._one(FIND, (kind, project, unique))

    def _one(
        self, select: str, values: tuple[str, ...], *, ended: bool = False
    ) -> Awaitable[Record | None]:
        def operation() -> Record | None:
            row = self._db.execute(select, values).fetchone()
            if row is None:
                return None
            record = self._record(row)
            gone = record.ends_ms is not None and record.ends_ms <= record.read_ms
            return None if gone and not ended else record

        return self._run(operation)

    def _record(self, row: tuple[Any, ...]) -> Record:
        return Record(*(*row, self._connection.now_ms))

    async def page(
        self,
        kind: str,
        project: str,
        after: str,
        limit: int,
        where: Callable[[Record], bool] | None = None,
        *,
        parent: str | None = None,
        ended: bool = False,
    ) -> list[Record]:
        size = limit if where is None else CHUNK
        statement, group = (PAGE, ()) if parent is None else (PAGE_OF_PARENT, (parent,))

        def operation() -> list[Record]:
            since = 0 if ended else self._connection.now_ms
            rows = self._db.execute(statement, (kind, project, *group, after, since, size))
            return [self._record(row) for row in rows]

        found: list[Record] = []
        while True:
            chunk = await self._run(operation, size)
            found += chunk if where is None else filter(where, chunk)
            if len(chunk) < size or len(found) >= limit:
                return found[:limit]
            after = chunk[-1].key

    def count(self, kind: str, project: str) -> Awaitable[int]:
        def operation() -> int:
            (n,) = self._db.execute(
                f"SELECT count(*) FROM records WHERE kind = ? AND project = ? AND {LIVE}",
                (kind, project, self._connection.now_ms),
            ).fetchone()
            return int(n)

        return self._run(operation)

    def delete(
        self, kind: str, project: str, key: str, *, doc: bytes | None = None
    ) -> Awaitable[Record | None]:
        def operation() -> Record | None:
            row = self._db.execute(DELETE, (kind, project, key, doc)).fetchone()
            return row and self._record(row)

        return self._run(operation)

    def ended(self, kind: str, after: tuple[int, str], limit: int) -> Awaitable[list[Record]]:
        def operation() -> list[Record]:
            rows = self._db.execute(
                ENDED,
                (kind, self._connection.now_ms, *after, limit),
            )
            return [self._record(row) for row in rows]

        return self._run(operation, limit)

    # From one store to another

    def dump(self, after: tuple[str, str, str], limit: int) -> Awaitable[list[Record]]:
        def operation() -> list[Record]:
            return [self._record(row) for row in self._db.execute(DUMP, (*after, limit))]

        return self._run(operation, limit)

    def load(self, records: Sequence[Record]) -> Awaitable[None]:
        def operation() -> None:
            self._check_room()
            for record in records:
                place = (record.kind, record.project, record.key)
                self._db.execute(DELETE, (*place, None)).fetchall()
                self._db.execute(
                    f"INSERT {INSERT}",
                    (*place, record.doc, record.version, record.parent, self._name_of(record),
                     record.created_ms, record.ends_ms),
                )  # fmt: skip

        return self._run(operation, len(records))

    def _name_of(self, record: Record) -> str | None:
        """Its unique name, which another record loses to it, unless it has ended itself."""
        if record.unique is not None:
            other = (record.kind, record.project, record.unique)
            ended = record.ends_ms is not None and record.ends_ms <= self._connection.now_ms
            if not ended:
                self._db.execute(LOSE_NAME, other)
            elif self._db.execute(FIND, other).fetchone():
                return None
        return record.unique


def _end(now_ms: int, ttl_s: int | None) -> int | None:
    return None if ttl_s is None else now_ms + ttl_s * 1000
