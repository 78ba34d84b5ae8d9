"""What operators say beside a running service, such as API keys and quotas: kept, and noticed.

A registry is kept where its store is: in the records of a shared one, in a file beside an embedded
one, which no other process may open (:mod:`nusku.storage.sqlite.registry`). So commands can write
into it with a server running or without.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from uuid import uuid4

import structlog

from nusku.config import Settings
from nusku.errors import StoreRefused, Unavailable
from nusku.metrics import Metrics
from nusku.model import Record
from nusku.storage import (
    SHARED,
    Entry,
    RecordStore,
    Registry,
    StoreOptions,
    open_store,
    sqlite_path,
)
from nusku.storage.uri import split

log = structlog.get_logger("nusku.storage")

LOOK_S = 1.0
# A write whose outcome is unknown may be there without a new revision.
REREAD_S = 60.0
PAGE = 500

REVISION = "registry"  # the kind and the key of the record
_TABLE = "registry/"  # what the kind of an entry's record begins with

Told = Callable[[Mapping[str, bytes]], None]
_NOTHING: Mapping[str, bytes] = MappingProxyType({})


def of_registry(kind: str) -> bool:
    """Whether records of this kind are a registry's."""
    return kind == REVISION or kind.startswith(_TABLE)


class RecordsRegistry:
    """The registry of a shared store. See :class:`nusku.storage.Registry`."""

    def __init__(self, records: RecordStore) -> None:
        self._records = records

    async def revision(self) -> str:
        record = await self._records.get(REVISION, "", REVISION)
        return "" if record is None else record.doc.decode()

    async def read(self, table: str, name: str) -> bytes | None:
        record = await self._records.get(f"{_TABLE}{table}", "", name)
        return None if record is None else record.doc

    async def all(self, table: str) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        after = ""
        while page := await self._records.page(f"{_TABLE}{table}", "", after, PAGE):
            found |= {record.key: record.doc for record in page}
            after = page[-1].key
        return found

    async def write(self, table: str, name: str, value: bytes | None) -> None:
        if value is None:
            await self._records.delete(f"{_TABLE}{table}", "", name)
        else:
            await self._put(f"{_TABLE}{table}", name, value)
        # Last: whoever has seen it reads what was written before.
        await self._put(REVISION, REVISION, uuid4().hex.encode())

    async def dump(self) -> list[Entry]:
        found: list[Entry] = []
        after = (_TABLE, "", "")
        while page := await self._records.dump(after, PAGE):
            ours = [one for one in page if one.kind.startswith(_TABLE)]
            found += [Entry(one.kind.removeprefix(_TABLE), one.key, one.doc) for one in ours]
            if len(ours) < len(page):
                break
            after = (page[-1].kind, page[-1].project, page[-1].key)
        return found

    async def _put(self, kind: str, key: str, doc: bytes) -> None:
        """Store it whatever is there; of two at a time the last one counts."""
        done = False
        while not done:
            record = await self._records.get(kind, "", key)
            if record is None:
                done = await self._records.insert(Record(kind, "", key, doc))
            else:
                done = await self._records.update(Record(kind, "", key, doc, record.version + 1))


class Mirror:
    """Tables of a registry in memory, behind it by ``LOOK_S`` and what a look takes.

    While the store does not answer they stay as they were.
    """

    def __init__(self, registry: Registry, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._registry = registry
        self._clock_s = clock_s
        self._followers: list[tuple[str, Told]] = []
        self._tables: dict[str, Mapping[str, bytes]] = {}
        self._revision: str | None = None
        self._read_s = 0.0

    def follow(self, table: str, told: Told) -> None:
        """``told`` is given the whole table by the first :meth:`look`, and whenever it changed."""
        self._followers.append((table, told))
        self._tables[table] = _NOTHING

    async def look(self) -> None:
        """Look for changes, and tell of them. Raises what the registry does."""
        revision = await self._registry.revision()
        first, now_s = self._revision is None, self._clock_s()
        if revision == self._revision and now_s - self._read_s < REREAD_S:
            return
        tables = {table: await self._registry.all(table) for table in self._tables}
        for name, told in self._followers:
            if first or tables[name] != self._tables[name]:
                told(tables[name])
        # Last: if one of them fails, all are told again by the next look.
        self._tables |= tables
        self._revision, self._read_s = revision, now_s

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Look now, and again and again meanwhile. Raises StoreRefused if it cannot be read now."""
        try:
            await self.look()
        except Unavailable as error:
            raise StoreRefused(error.detail) from None
        keeping = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def _keep(self) -> None:
        """Look for ever, whatever happens: who no longer looked would let in those whose keys were
        revoked. Of several failures in a row one is logged.
        """
        failing = False
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except (Unavailable, StoreRefused) as error:
                if not failing:
                    log.warning("the registry cannot be read", reason=str(error))
                failing = True
            except Exception as error:
                if not failing:
                    log.error("the registry cannot be taken over", exc_info=error)
                failing = True
            else:
                failing = False


async def replicate(source: Registry, target: Registry) -> int:
    """Let the target hold what the source does; return how many entries that is."""
    wanted, there = set(await source.dump()), set(await target.dump())
    for table, name in {entry[:2] for entry in there} - {entry[:2] for entry in wanted}:
        await target.write(table, name, None)
    for entry in wanted - there:
        await target.write(*entry)
    return len(wanted)


@asynccontextmanager
async def opened_registry(settings: Settings) -> AsyncIterator[Registry]:
    """The registry of the store that the settings name, for a command. Raises StoreRefused."""
    if split(settings.store).scheme not in SHARED:
        from nusku.storage.sqlite.registry import SqliteRegistry

        yield SqliteRegistry(sqlite_path(settings.store))
        return
    store = await open_store(settings.store, None, StoreOptions.of(settings), Metrics())
    try:
        yield store.registry
    finally:
        await store.close()
