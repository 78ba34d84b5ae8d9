"""Small documents in PostgreSQL."""

from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha256
from typing import Any

from nusku.model import Record
from nusku.storage import Taken
from nusku.storage.postgres.connections import Connections
from nusku.storage.postgres.operations import Many
from nusku.storage.postgres.schema import calling

CHUNK = 200  # documents looked at by one call while filtering


class PostgresRecords:
    """See :class:`nusku.storage.RecordStore`."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        schema = connections.address.schema
        self._looks: Many[list[Record]] = Many(
            connections, calling(schema, "look", 10), self._found, writes=False
        )
        self._changes: Many[Any] = Many(
            connections, calling(schema, "keep", 13), self._kept, writes=True
        )

    def _found(self, rows: list[Any], n: int) -> list[list[Record]]:
        found: list[list[Record]] = [[] for _ in range(n)]
        now = rows[0][5]
        self._connections.saw(now, rows[0][8])
        for op, kind, project, key, doc, version, parent, unique, created, ends in rows[1:]:
            name = None if unique is None else unique.decode(errors="surrogatepass")
            found[op - 1].append(
                Record(kind, project, key, doc, version, parent, name, created, ends, now)
            )
        return found

    def _kept(self, rows: list[Any], _: int) -> list[Any]:
        self._connections.saw(rows[0][3])
        return rows

    # Changing

    def _change(
        self,
        what: str,
        record: Record,
        read: Callable[[Any], Any],
        ttl_s: int | None = None,
    ) -> Any:
        columns = (
            what, record.kind, record.project, record.key, record.version, record.doc,
            record.parent, _encoded(record.unique), _name(record.kind, record.project, record.unique), ttl_s, record.created_ms, record.ends_ms,
        )  # fmt: skip
        return self._changes.call(columns, read)

    def insert(self, record: Record, ttl_s: int | None = None) -> Awaitable[bool]:
        answer: Awaitable[bool] = self._change("insert", record, _done, ttl_s)
        return answer

    def update(self, record: Record, ttl_s: int | None = None) -> Awaitable[bool]:
        answer: Awaitable[bool] = self._change("update", record, _done, ttl_s)
        return answer

    async def delete(
        self, kind: str, project: str, key: str, *, doc: bytes | None = None
    ) -> Record | None:
        if "\0" in key:
            return None

        def read(row: Any) -> Record | None:
            _, done, _, now, said, version, parent, unique, created, ends = row
            if not done:
                return None
            name = None if unique is None else unique.decode(errors="surrogatepass")
            return Record(kind, project, key, said, version, parent, name, created, ends, now)

        what = "delete" if doc is None else "delete this"
        gone: Record | None = await self._change(what, Record(kind, project, key, doc or b""), read)
        return gone

    # Reading

    def _look(
        self,
        what: str,
        kind: str,
        project: str,
        key: str,
        read: Callable[[list[Record]], Any],
        *,
        unique: str | None = None,
        parent: str | None = None,
        since_ms: int = 0,
        limit: int = 1,
        ended: bool = False,
    ) -> Any:
        columns = (
            what, kind, project, key, _name(kind, project, unique), parent, since_ms, limit, ended,
        )  # fmt: skip
        return self._looks.call(columns, read, limit)

    async def get(self, kind: str, project: str, key: str, *, ended: bool = False) -> Record | None:
        if "\0" in key:  # no text here may hold one, so no key does
            return None
        found: Record | None = await self._look("get", kind, project, key, _first, ended=ended)
        return found

    def find(self, kind: str, project: str, unique: str) -> Awaitable[Record | None]:
        answer: Awaitable[Record | None] = self._look(
            "find", kind, project, "", _first, unique=unique
        )
        return answer

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
        # No key has a NUL in it, so the same keys are behind what is before it.
        after = after.partition("\0")[0]
        size = limit if where is None else CHUNK
        found: list[Record] = []
        while True:
            chunk: list[Record] = await self._look(
                "page", kind, project, after, list, parent=parent, limit=size, ended=ended
            )
            found += chunk if where is None else filter(where, chunk)
            if len(chunk) < size or len(found) >= limit:
                return found[:limit]
            after = chunk[-1].key

    def count(self, kind: str, project: str) -> Awaitable[int]:
        answer: Awaitable[int] = self._look(
            "count", kind, project, "", lambda found: found[0].version
        )
        return answer

    def ended(self, kind: str, after: tuple[int, str], limit: int) -> Awaitable[list[Record]]:
        since_ms, key = after
        answer: Awaitable[list[Record]] = self._look(
            "ended", kind, "", key, list, since_ms=since_ms, limit=limit
        )
        return answer

    # From one store to another

    def dump(self, after: tuple[str, str, str], limit: int) -> Awaitable[list[Record]]:
        answer: Awaitable[list[Record]] = self._look("dump", *after, list, limit=limit)
        return answer

    async def load(self, records: Sequence[Record]) -> None:
        for start in range(0, len(records), CHUNK):
            kept = [
                self._change("load", record, lambda _: None)
                for record in records[start : start + CHUNK]
            ]
            for one in kept:
                await one


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else text.encode(errors="surrogatepass")


def _name(kind: str, project: str, unique: str | None) -> bytes | None:
    """What is indexed in place of a unique name, which may be of any length."""
    encoded = _encoded(unique)
    if encoded is None:
        return None
    return sha256(b"\0".join((kind.encode(), project.encode(), encoded))).digest()


def _done(row: Any) -> bool:
    _, done, taken, *_ = row
    if taken:
        raise Taken
    return bool(done)


def _first(found: list[Record]) -> Record | None:
    return found[0] if found else None
