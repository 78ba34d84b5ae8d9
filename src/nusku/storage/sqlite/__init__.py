"""The embedded store: one SQLite file, owned by one process."""

import asyncio
from pathlib import Path

from nusku.clock import Clock
from nusku.metrics import Metrics
from nusku.storage import Store, StoreOptions
from nusku.storage.sqlite.connection import Connection
from nusku.storage.sqlite.file import File, backup, inspect
from nusku.storage.sqlite.messages import SqliteMessages
from nusku.storage.sqlite.records import SqliteRecords

__all__ = ["backup", "inspect", "open_store"]


async def open_store(path: Path, clock: Clock, options: StoreOptions, metrics: Metrics) -> Store:
    """See :func:`nusku.storage.open_store`."""
    file = await asyncio.to_thread(File, path, options.synchronous)
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

    return Store(messages, records, ping, close, connection.failed)
