"""Small documents in Redis. What is done with them is in ``records.lua``."""

from collections.abc import Awaitable, Callable, Sequence
from struct import Struct
from typing import Any

from nusku.model import Record
from nusku.storage.redis.calls import RECORDS, speakable
from nusku.storage.redis.engine import Engine
from nusku.storage.redis.keys import RECORDS as NAME
from nusku.storage.redis.keys import Place, text

CHUNK = 200  # documents read by one call while filtering

MARK = b"\x00\x01"
BEHIND = b"\xff"  # greater than anything that a name begins with
NUMBERS = Struct(">QQQ")  # version, created, ends


def _escaped(name: str) -> bytes:
    return name.encode().replace(b"\x00", b"\x00\xff")


def _plain(escaped: bytes) -> str:
    return escaped.replace(b"\x00\xff", b"\x00").decode()


def _group(kind: str, project: str) -> bytes:
    return _escaped(kind) + MARK + _escaped(project) + MARK


def _name(unique: str | None) -> bytes | None:
    return None if unique is None else _escaped(unique)


def _told(value: Any) -> Any:
    """Bytes as the script takes them."""
    return text(value) if isinstance(value, bytes) else value


class RedisRecords:
    """See :class:`nusku.storage.RecordStore`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._places = (Place(NAME),)

    def _run(
        self, *what: Any, weight: int = 1, writes: bool = False, adds: bool = False
    ) -> Awaitable[list[Any]]:
        told = tuple(map(_told, what))
        return self._engine.run(RECORDS, self._places, told, weight, writes=writes, adds=adds)

    async def insert(self, record: Record, ttl_s: int | None = None) -> bool:
        with speakable():
            what = ("insert", _group(record.kind, record.project), _escaped(record.key),
                    _name(record.unique), _escaped(record.parent), record.version, record.doc,
                    ttl_s)  # fmt: skip
        _, done = await self._run(*what, writes=True, adds=True)
        return bool(done)

    async def update(self, record: Record, ttl_s: int | None = None) -> bool:
        with speakable():
            what = ("update", _group(record.kind, record.project), _escaped(record.key),
                    _name(record.unique), record.version, record.doc, ttl_s)  # fmt: skip
        _, done = await self._run(*what, writes=True)
        return bool(done)

    async def get(self, kind: str, project: str, key: str, *, ended: bool = False) -> Record | None:
        with speakable():
            what = ("get", _group(kind, project), _escaped(key), ended)
        return _one(*await self._asked(what))

    async def find(self, kind: str, project: str, unique: str) -> Record | None:
        with speakable():
            what = ("find", _group(kind, project), _escaped(unique))
        return _one(*await self._asked(what))

    async def delete(
        self, kind: str, project: str, key: str, *, doc: bytes | None = None
    ) -> Record | None:
        with speakable():
            what = (
                "delete",
                _group(kind, project),
                _escaped(key),
                *(() if doc is None else (doc,)),
            )
        return _one(*await self._asked(what, writes=True))

    async def count(self, kind: str, project: str) -> int:
        with speakable():
            what = ("count", _group(kind, project))
        _, number = await self._run(*what)
        return int(number)

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
        with speakable():
            group = _group(kind, project)
            prefix = b"r" + group if parent is None else b"p" + group + _escaped(parent) + MARK
            from_ = prefix + _escaped(after)
        if parent == "":
            return []
        found: list[Record] = []
        while True:
            size = limit - len(found) if where is None else CHUNK
            chunk, from_ = await self._asked(
                ("page", prefix, group, from_, size, ended), weight=min(size, 200)
            )
            found += chunk if where is None else filter(where, chunk)
            if len(found) >= limit:
                return found[:limit]
            if not from_:
                if len(chunk) < size:
                    return found
                from_ = prefix + _escaped(chunk[-1].key)

    async def ended(self, kind: str, after: tuple[int, str], limit: int) -> list[Record]:
        with speakable():
            prefix = b"e" + _escaped(kind) + MARK
            from_ = prefix + b"%015d" % after[0] + _escaped(after[1]) + MARK + BEHIND
        return await self._all("ended", from_, limit, prefix)

    # From one store to another

    async def dump(self, after: tuple[str, str, str], limit: int) -> list[Record]:
        kind, project, key = after
        with speakable():
            from_ = b"r" + _group(kind, project) + _escaped(key)
        return await self._all("dump", from_, limit)

    async def load(self, records: Sequence[Record]) -> None:
        with speakable():
            rows = [
                (_group(one.kind, one.project), _escaped(one.key), _name(one.unique),
                 _escaped(one.parent), one.version, one.doc, one.created_ms, one.ends_ms or 0)
                for one in records
            ]  # fmt: skip
        rows = [tuple(map(_told, row)) for row in rows]
        await self._run("load", rows, weight=len(rows), writes=True, adds=True)

    async def _all(self, name: str, from_: bytes, limit: int, *prefix: bytes) -> list[Record]:
        found: list[Record] = []
        while from_ and len(found) < limit:
            left = limit - len(found)
            some, from_ = await self._asked((name, *prefix, from_, left), weight=min(left, 200))
            found += some
        return found

    async def _asked(
        self, what: Sequence[Any], *, weight: int = 1, writes: bool = False
    ) -> tuple[list[Record], bytes]:
        """The records in the answer, and from where to go on if it broke off."""
        _, from_, *rows = await self._run(*what, weight=weight, writes=writes)
        now, *rows = rows
        return [_record(rows[at], rows[at + 1], now) for at in range(0, len(rows), 2)], from_


def _one(found: list[Record], _: bytes) -> Record | None:
    return found[0] if found else None


def _record(id_: bytes, blob: bytes, now: int) -> Record:
    kind, project, key = map(_plain, id_.split(MARK, 2))
    version, created, ends = NUMBERS.unpack_from(blob)
    at = 26 + int.from_bytes(blob[24:26])
    parent = _plain(blob[26:at])
    length = int.from_bytes(blob[at : at + 2])
    end = at + 2 + max(length - 1, 0)
    unique = _plain(blob[at + 2 : end]) if length else None
    return Record(
        kind, project, key, blob[end:], version, parent, unique, created, ends or None, now
    )
