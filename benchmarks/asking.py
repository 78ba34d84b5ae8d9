"""What a store says of itself: how durable it is set to be, and what room it takes."""

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from nusku.storage import sqlite_path

if TYPE_CHECKING:
    import asyncpg
    import redis.asyncio

MIB = 1 << 20

_POSTGRESQL_MODE = """
SELECT name, setting FROM pg_settings
WHERE name IN ('server_version', 'fsync', 'full_page_writes', 'synchronous_commit',
               'synchronous_standby_names') AND setting <> ''
ORDER BY name <> 'server_version', name
"""
_POSTGRESQL_SPACE = """
SELECT sum(pg_table_size(relid)) AS tables, sum(pg_indexes_size(relid)) AS indexes,
       pg_database_size(current_database()) AS whole, sum(n_dead_tup) AS dead, sum(n_live_tup) AS live, sum(autovacuum_count) AS vacuums
FROM pg_stat_user_tables
"""


async def mode_of(uri: str, settings: dict[str, str]) -> str:
    """One line: the engine, and what makes an answer durable, asked of the store that runs.

    `settings` are those that servers on it are given besides.
    """
    match urlsplit(uri).scheme:
        case "postgresql" | "postgres":
            connection = await _postgresql(uri)
            try:
                rows = await connection.fetch(_POSTGRESQL_MODE)
            finally:
                await connection.close()
            said = [f"{row['name']}={row['setting']}" for row in rows]
            engine = f"PostgreSQL {said[0].partition('=')[2].split()[0]}"
            parts = said[1:]
        case "sqlite":
            import sqlite3

            engine = f"SQLite {sqlite3.sqlite_version}"
            parts = ["WAL", "synchronous=full"]
        case scheme:
            client = _redis(uri)
            try:
                info = await client.info()
                config = await client.config_get("append*")
            finally:
                await client.aclose()
            cluster = ", cluster" if info.get("cluster_enabled") else ""
            engine = f"Redis {info['redis_version']}{cluster} ({scheme}://)"
            parts = [f"{name}={config[name]}" for name in ("appendonly", "appendfsync")]
            if config["appendonly"] != "yes":
                parts.append("UNRELIABLE: a crash loses what was answered")
    parts += [f"{name}={settings[name]}" for name in sorted(settings)]
    return f"{engine}: {', '.join(parts)}"


async def space_of(uri: str) -> dict[str, float]:
    """Figures of the room that the store takes, name and unit to value."""
    match urlsplit(uri).scheme:
        case "postgresql" | "postgres":
            connection = await _postgresql(uri)
            try:
                row = await connection.fetchrow(_POSTGRESQL_SPACE)
            finally:
                await connection.close()
            assert row is not None
            return {
                "tables, MiB": float(row["tables"] or 0) / MIB,
                "indexes, MiB": float(row["indexes"] or 0) / MIB,
                "database, MiB": float(row["whole"]) / MIB,
                "dead rows": float(row["dead"] or 0),
                "live rows": float(row["live"] or 0),
                "autovacuums": float(row["vacuums"] or 0),
            }
        case "sqlite":
            file = sqlite_path(uri)
            sizes = {"file": file, "log": file.with_name(f"{file.name}-wal")}
            return {
                f"{name}, MiB": path.stat().st_size / MIB
                for name, path in sizes.items()
                if path.exists()
            }
        case _:
            client = _redis(uri)
            try:
                info = await client.info()
            finally:
                await client.aclose()
            return {
                "memory, MiB": info["used_memory"] / MIB,
                "append-only file, MiB": info.get("aof_current_size", 0) / MIB,
            }


async def _postgresql(uri: str) -> "asyncpg.Connection[asyncpg.Record]":
    import asyncpg

    return await asyncpg.connect(uri)


def _redis(uri: str) -> "redis.asyncio.Redis":
    """The (first) server that the URI names, on its own."""
    import redis.asyncio

    plain = re.sub(r"^redis\+\w+://", "redis://", uri)
    scheme, _, rest = plain.partition("://")
    hosts, slash, path = rest.partition("/")
    credentials, at, hosts = hosts.rpartition("@")
    first = hosts.split(",")[0]
    return redis.asyncio.Redis.from_url(
        f"{scheme}://{credentials}{at}{first}{slash}{path.partition('?')[0]}",
        decode_responses=True,
    )
