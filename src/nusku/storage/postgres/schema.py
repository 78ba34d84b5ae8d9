"""The tables and functions, and how a database comes to have them.

They are in a schema of their own. ``meta`` holds the version; whoever creates or migrates holds an
advisory lock meanwhile, so that several servers may start at once.

Why the tables bear a day of churn, and vacuum keeps up with them:

* Nothing ever walks over what is dead again and again: each queue remembers below which position
  nothing is alive (``low``), below which nothing is free (``ready_low``), and up to which end what
  was hidden has been put back (``settled_…``), and every search starts there.
* A message is written when it is posted and when it is claimed, and removed; no index entry
  changes in between. Entries are added at the right end of each index and die at the left, so
  whole pages become empty, and are used again.
* The rows that change most, ``queues`` and ``tallies``, have room on their pages and no index on
  what changes: old versions go without a vacuum.
* Autovacuum is told to come early, to these tables, and not to pause. It removes what is older than
  the oldest transaction: ours last milliseconds, but a forgotten one of somebody else makes
  everything grow.
* Purging and deleting a queue writes a row; its messages go in small steps.
* Plans don't depend on statistics: functions forbid what could be slow, and free messages can be
  found in their order by one index only.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import asyncpg

from nusku.errors import StoreRefused
from nusku.storage.postgres.address import Address

VERSION = 3
FUNCTIONS = ("common", "work", "post", "read", "queues", "records")

# What leads from version n to n + 1: MIGRATIONS[n]. Functions are made anew each time.
MIGRATIONS: Mapping[int, str] = {1: "SELECT 'functions only'", 2: "SELECT 'functions only'"}

DROP_FUNCTIONS = """
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN
        SELECT p.oid::regprocedure::text FROM pg_proc p WHERE p.pronamespace = '{schema}'::regnamespace
    LOOP
        EXECUTE 'DROP FUNCTION ' || name || ' CASCADE';
    END LOOP;
END $$
"""


def calling(schema: str, name: str, parameters: int) -> str:
    """The statement that calls one of our functions."""
    return f'SELECT * FROM "{schema}".{name}({", ".join(f"${n + 1}" for n in range(parameters))})'


def _sql(name: str) -> str:
    return Path(__file__).with_name(f"{name}.sql").read_text()


async def found(connection: "asyncpg.Connection[Any]", address: Address) -> int:
    """The version of the tables; 0 when there are none. Raises StoreRefused for a newer one."""
    meta = f'"{address.schema}".meta'
    try:
        # Not to_regclass: it may go by a cache that is older than a lock we waited for.
        if not await connection.fetchval(
            "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = $1 AND c.relname = 'meta')",
            address.schema,
        ):
            return 0
        version = await connection.fetchval(f"SELECT value FROM {meta} WHERE name = 'version'")
    except asyncpg.InsufficientPrivilegeError:
        raise StoreRefused(_not_granted(address)) from None
    if version is None:
        raise StoreRefused(
            f"store {address.shown}: the schema {address.schema} is another program's; name another"
            " one in the URI (?schema=…)"
        )
    if version > VERSION:
        raise StoreRefused(
            f"store {address.shown} has schema version {version}; this nusku knows up to {VERSION}."
            " Use the newer nusku that wrote it"
        )
    return int(version)


async def prepare(connection: "asyncpg.Connection[Any]", address: Address) -> int:
    """Create or migrate what is not there yet; return the version that was found (0: none)."""
    before = await found(connection, address)
    if before == VERSION:
        return before
    try:
        async with connection.transaction():
            await connection.execute(
                f"SELECT pg_advisory_xact_lock({crc32(f'nusku {address.schema}'.encode())})"
            )
            before = await found(connection, address)
            if before < VERSION:
                await _make(connection, address.schema, before)
    except asyncpg.InsufficientPrivilegeError as error:
        what = "created" if before == 0 else "migrated"
        raise StoreRefused(
            f"store {address.shown} has yet to be {what}, and this role may not do it ({error}):"
            " run `nusku migrate` with the URI of a role that owns the database"
        ) from None
    return before


async def _make(connection: "asyncpg.Connection[Any]", schema: str, before: int) -> None:
    if before == 0 and not await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", schema
    ):
        await connection.execute(f'CREATE SCHEMA "{schema}"')
    await connection.execute(f'SET LOCAL search_path = "{schema}", pg_temp')
    if before == 0:
        await connection.execute(_sql("tables"))
        await connection.execute("INSERT INTO meta VALUES ('version', 0), ('last_ms', 0)")
    else:
        for version in range(before, VERSION):
            await connection.execute(MIGRATIONS[version])
    await connection.execute(DROP_FUNCTIONS.format(schema=schema))
    for name in FUNCTIONS:
        await connection.execute(_sql(name))
    await connection.execute(f"UPDATE meta SET value = {VERSION} WHERE name = 'version'")


async def check_granted(connection: "asyncpg.Connection[Any]", address: Address) -> None:
    """Raise StoreRefused if the role may not work with the tables."""
    schema = address.schema
    granted = await connection.fetchval(
        f"""SELECT bool_and(has_table_privilege(c.oid, 'SELECT')
            AND has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE')
            AND has_table_privilege(c.oid, 'DELETE'))
        FROM pg_class c WHERE c.relnamespace = '"{schema}"'::regnamespace AND c.relkind = 'r'"""
    )
    if not granted:
        raise StoreRefused(_not_granted(address))


def _not_granted(address: Address) -> str:
    schema = address.schema
    return (
        f"store {address.shown}: this role may not use the schema {schema}; its owner grants it by"
        f" GRANT USAGE ON SCHEMA {schema} TO …;"
        f" GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO …;"
        f" GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO …"
    )
