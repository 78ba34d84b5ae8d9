"""A store that many nodes share: one PostgreSQL database."""

import asyncio
import contextlib
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from nusku.clock import Clock
from nusku.errors import StoreRefused, Unavailable
from nusku.metrics import Metrics
from nusku.storage import CAPABILITIES, SERVED, Store, StoreOptions
from nusku.storage.postgres import schema
from nusku.storage.postgres.address import Address, parse
from nusku.storage.postgres.connections import Connections
from nusku.storage.postgres.link import UNREACHABLE, check, connect_to_primary, reason
from nusku.storage.postgres.listening import Listening
from nusku.storage.postgres.messages import PostgresMessages
from nusku.storage.postgres.records import PostgresRecords
from nusku.storage.registry import RecordsRegistry

__all__ = ["inspect", "migrate", "open_store"]

T = TypeVar("T")

HEARING_LOOK_S = 2.0
DEAF_LOOK_S = 0.25  # behind a pooler without another way: nobody says that something has come

ALONE = (
    "An answered change is on the PostgreSQL server's disk, and outlives a crash of it; whether it"
    " outlives the loss of that machine depends on the server's replication."
)
WITH_STANDBY = (
    "An answered change is on the disks of the PostgreSQL primary and of a synchronous standby, and"
    " outlives the loss of either."
)


async def open_store(
    uri: str, clock: Clock | None, options: StoreOptions, metrics: Metrics
) -> Store:
    """See :func:`nusku.storage.open_store`."""
    address = parse(uri)
    connections = Connections(address, clock, options, metrics)
    link = await connections.open()
    listening: Listening | None = None
    try:
        await schema.prepare(link.connection, address)
        await schema.check_granted(link.connection, address)
        remembered_ms = await link.connection.fetchval(
            f"SELECT value FROM \"{address.schema}\".meta WHERE name = 'last_ms'"
        )
        connections.saw(remembered_ms)
        if options.listen_uri or not link.identity.pooled:
            way = parse(options.listen_uri) if options.listen_uri else address
            listening = Listening(way, address.schema, connections)
            await listening.open()
    except BaseException as error:
        await connections.close()
        if isinstance(error, UNREACHABLE):
            raise StoreRefused(f"store {address.shown} cannot be used: {reason(error)}") from None
        raise
    messages = PostgresMessages(connections, metrics, remembered_ms)

    async def close() -> None:
        with contextlib.suppress(Unavailable):
            await messages.close()
        await connections.close()
        if listening is not None:
            await listening.close()

    async def ping() -> None:
        await messages.ping()

    never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    records = PostgresRecords(connections)
    return Store(
        messages,
        records,
        RecordsRegistry(records),
        ping,
        close,
        never,
        WITH_STANDBY if options.synchronous_standby else ALONE,
        CAPABILITIES,
        shared=True,
        tell=listening.tell if listening else lambda key: None,  # noqa: ARG005 - nobody would hear
        hear=listening.hear if listening else lambda told: None,  # noqa: ARG005 - as above
        look_s=HEARING_LOOK_S if listening else DEAF_LOOK_S,
    )


def migrate(uri: str) -> str:
    """See :func:`nusku.storage.migrate_store`."""
    address = parse(uri)

    async def run() -> str:
        link = await connect_to_primary(address.servers)
        try:
            check(link.identity, address.shown, standby=False)
            before = await schema.prepare(link.connection, address)
        finally:
            await link.close()
        if before == schema.VERSION:
            return f"{address.shown}: schema {address.schema} is up to date, version {before}"
        if before == 0:
            return f"{address.shown}: schema {address.schema} created, version {schema.VERSION}"
        return (
            f"{address.shown}: schema {address.schema} migrated from version {before} to"
            f" {schema.VERSION}"
        )

    return _outside(address, run())


def inspect(uri: str) -> str:
    """See :func:`nusku.storage.inspect_store`."""
    address = parse(uri)

    async def run() -> str:
        link = await connect_to_primary(address.servers)
        try:
            check(link.identity, address.shown, standby=False)
            version = await schema.found(link.connection, address)
            major = link.identity.version // 10_000
            if version == 0:
                return (
                    f"{address.shown}: PostgreSQL {major}, no store there yet; `nusku serve` or"
                    " `nusku migrate` creates it"
                )
            await schema.check_granted(link.connection, address)
            [[queues, messages, size]] = await link.connection.fetch(
                f"""SELECT count(*), coalesce(sum(total), 0)::bigint, (
                    SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class
                    WHERE relnamespace = '"{address.schema}"'::regnamespace AND relkind = 'r')
                FROM "{address.schema}".queues WHERE kind = ANY ($1)""",
                SERVED,
            )
        finally:
            await link.close()
        return (
            f"{address.shown}: PostgreSQL {major} store, schema version {version}, {queues} queues"
            f" and topics, {messages} messages, {size / 2**20:.1f} MiB"
        )

    return _outside(address, run())


def _outside(address: Address, work: Coroutine[Any, Any, T]) -> T:
    """Run it on a loop of its own, whether or not one is running here."""
    try:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, work).result()
    except (*UNREACHABLE, ValueError) as error:
        raise StoreRefused(f"store {address.shown} cannot be used: {reason(error)}") from None
