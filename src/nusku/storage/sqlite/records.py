"""Small documents in SQLite."""

from collections.abc import Callable

from nusku.model import Record
from nusku.storage.sqlite.connection import Connection

CHUNK = 200  # documents looked at by one transaction while filtering


class SqliteRecords:
    """See :class:`nusku.storage.RecordStore`."""

    def __init__(self, connection: Connection, check_room: Callable[[], None]) -> None:
        self._run = connection.run
        self._db = connection.db
        self._check_room = check_room

    async def insert(self, record: Record) -> bool:
        def operation() -> bool:
            self._check_room()
            return bool(
                self._db.execute(
                    "INSERT OR IGNORE INTO records (kind, project, key, version, doc)"
                    " VALUES (?, ?, ?, ?, ?)",
                    (record.kind, record.project, record.key, record.version, record.doc),
                ).rowcount
            )

        return await self._run(operation)

    async def update(self, record: Record) -> bool:
        def operation() -> bool:
            return bool(
                self._db.execute(
                    "UPDATE records SET version = ?1, doc = ?2"
                    " WHERE kind = ?3 AND project = ?4 AND key = ?5 AND version = ?1 - 1",
                    (record.version, record.doc, record.kind, record.project, record.key),
                ).rowcount
            )

        return await self._run(operation)

    async def get(self, kind: str, project: str, key: str) -> Record | None:
        def operation() -> Record | None:
            row = self._db.execute(
                "SELECT doc, version FROM records WHERE kind = ? AND project = ? AND key = ?",
                (kind, project, key),
            ).fetchone()
            return Record(kind, project, key, *row) if row else None

        return await self._run(operation)

    async def page(
        self,
        kind: str,
        project: str,
        after: str,
        limit: int,
        where: Callable[[Record], bool] | None = None,
    ) -> list[Record]:
        size = limit if where is None else CHUNK

        def operation() -> list[Record]:
            return [
                Record(kind, project, *row)
                for row in self._db.execute(
                    "SELECT key, doc, version FROM records"
                    " WHERE kind = ? AND project = ? AND key > ? ORDER BY key LIMIT ?",
                    (kind, project, after, size),
                )
            ]

        found: list[Record] = []
        while True:
            chunk = await self._run(operation, size)
            found += chunk if where is None else filter(where, chunk)
            if len(chunk) < size or len(found) >= limit:
                return found[:limit]
            after = chunk[-1].key

    async def count(self, kind: str, project: str) -> int:
        def operation() -> int:
            (n,) = self._db.execute(
                "SELECT count(*) FROM records WHERE kind = ? AND project = ?", (kind, project)
            ).fetchone()
            return int(n)

        return await self._run(operation)

    async def delete(self, kind: str, project: str, key: str) -> bool:
        def operation() -> bool:
            return bool(
                self._db.execute(
                    "DELETE FROM records WHERE kind = ? AND project = ? AND key = ?",
                    (kind, project, key),
                ).rowcount
            )

        return await self._run(operation)
