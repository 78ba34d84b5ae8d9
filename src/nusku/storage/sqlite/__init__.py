"""The embedded store: one SQLite file, owned by one process."""

import asyncio
from pathlib import Path

from nusku.clock import Clock, not_before, steady_clock
from nusku.metrics import Metrics
from nusku.storage import CAPABILITIES, Store, StoreOptions, sqlite_path
from nusku.storage.sqlite.connection import Connection
from nusku.storage.sqlite.file import File, census
from nusku.storage.sqlite.file import backup as backup_file
from nusku.storage.sqlite.file import inspect as inspect_file
from nusku.storage.sqlite.messages import SqliteMessages
from nusku.storage.sqlite.records import SqliteRecords
from nusku.storage.sqlite.registry import SqliteRegistry, backup_registry

__all__ = ["backup", "census", "inspect", "migrate", "open_store"]

# What a success answer is worth, and the capabilities that follow from it.
_STRICT = (
    "An answered change is on this machine's disk, and outlives a crash and a power cut.",
    CAPABILITIES,
)
_LAX = (
    "An answered change outlives a crash of the server; a power cut may take back the last moments.",
    tuple(one for one in CAPABILITIES if one != "DURABILITY"),
)


async def open_store(
    uri: str, clock: Clock | None, options: StoreOptions, metrics: Metrics
) -> Store:
    """See :func:`nusku.storage.open_store`."""
    path = sqlite_path(uri)
    file = await asyncio.to_thread(File, path, options.synchronous)
    clock = not_before(clock or steady_clock(), file.last_ms)
    connection = Connection(file.db, clock, metrics, file.last_ms)
    messages = SqliteMessages(connection, file, metrics, options.disk_watermark_bytes)
    metrics.gauge("nusku_store_bytes", "Size of the store's file.", file.bytes)
    metrics.gauge("nusku_store_free_bytes", "Room left on the store's disk.", file.free_bytes)
    records = SqliteRecords(connection, messages.check_room)

    async def look_over() -> None:
        damage = await asyncio.to_thread(file.look_over)
        if damage:
            connection.fail(f"{path} is damaged ({damage}); restore a backup")

    looking = asyncio.ensure_future(look_over()) if file.suspect else None

    async def ping() -> None:
        await connection.run(lambda: None)

    async def close() -> None:
        if looking is not None:
            file.stop_looking()
            await looking
        await connection.close()
        if connection.failed.done():
            file.abandon()
        else:
            await asyncio.to_thread(file.close, connection.now_ms)

    guarantee, capabilities = _LAX if options.synchronous == "normal" else _STRICT
    registry = SqliteRegistry(path)
    return Store(
        messages, records, registry, ping, close, connection.failed, guarantee, capabilities
    )


def backup(path: Path, target: Path) -> None:
    """A consistent copy of the store, and one of its registry beside that; each of its own moment."""
    backup_file(path, target)
    backup_registry(path, target)


def inspect(uri: str) -> str:
    """See :func:`nusku.storage.inspect_store`."""
    return inspect_file(sqlite_path(uri))


def migrate(uri: str) -> str:
    """Make the file, or bring it up to date, as a server does at its start; say what it is then."""

    async def run() -> None:
        store = await open_store(uri, None, StoreOptions(), Metrics())
        await store.close()

    asyncio.run(run())
    return inspect(uri)
