"""F-12, F-17: PostgreSQL dies and comes back, ends sessions, has no room, or locks what is wanted."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import asyncpg

from tests.chaos.harness.nemesis.base import Nemesis
from tests.chaos.harness.nemesis.cut import PostgresCut
from tests.chaos.harness.nemesis.kill import kill_in_turn
from tests.chaos.harness.places import OnBouncer, OnPostgres, Place, postgresql
from tests.chaos.harness.stage import Plan, Stage
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import Postgres

LASTS = 2.0  # s
TERMINATED = 5  # sessions a second

TERMINATE = """
    WITH victim AS MATERIALIZED (
        SELECT pid FROM pg_stat_activity
        WHERE backend_type = 'client backend' AND datname LIKE 'store%'
        ORDER BY random() LIMIT 1
    )
    SELECT pg_terminate_backend(pid) FROM victim
"""
TERMINATE_ALL = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND datname LIKE 'store%' AND pid <> pg_backend_pid()
"""
LOCK_SOME = """
    SELECT FROM nusku.queues WHERE name = $1 FOR UPDATE
"""

STORM_S = 0.5
ROOM = 40  # connections that there can be where they are to run out
LOCKERS = 3


class PostgresNemesis(Nemesis):
    """Knows the one server of the run."""

    stores = ("postgresql",)
    most_unknown = 0.3
    on: OnPostgres

    @contextlib.contextmanager
    def store(self, folder: Path, plan: Plan) -> Iterator[Place]:
        with postgresql(plan) as self.on:
            yield self.on


class PostgresKill(PostgresNemesis):
    """It dies and comes back."""

    name = "pg-kill"
    planted = "optimist"

    async def strike(self, stage: Stage) -> str:
        return await kill_server(stage, self.on.server)


class PostgresTerminate(PostgresNemesis):
    """An administrator, or a failing server process, ends sessions."""

    name = "pg-terminate"
    planted = "optimist"

    async def strike(self, stage: Stage) -> str:
        return await end_sessions(stage, self.on.server)


class Storm(Nemesis):
    """All connections end at once, or there is no room for any, or deadlocks; half a second each."""

    name = "pg-storm"
    stores = ("postgresql",)
    most_unknown = 0.5
    planted = "optimist"

    def __init__(self) -> None:
        ways = (self._end_all, self._lock, self._end_some, self._take_all)
        self._ways = itertools.cycle(ways)

    @contextlib.contextmanager
    def store(self, folder: Path, plan: Plan) -> Iterator[Place]:
        settings = {"max_connections": str(ROOM), "deadlock_timeout": "30ms"}
        with Postgres(durable=True, settings=settings) as self._server:
            self._uri = self._server.create()
            yield OnPostgres(self._server, self._uri)

    async def strike(self, stage: Stage) -> str:
        return await next(self._ways)(stage)

    async def _end_all(self, stage: Stage) -> str:
        admin = await asyncpg.connect(self._server.uri())
        ended = 0
        try:
            for _ in range(5):
                ended += await admin.fetchval(TERMINATE_ALL)
                await asyncio.sleep(STORM_S / 5)
        finally:
            await admin.close()
        return f"all {ended} sessions ended" if ended else ""

    async def _end_some(self, stage: Stage) -> str:
        return await end_sessions(stage, self._server, STORM_S, 8 * TERMINATED)

    async def _take_all(self, stage: Stage) -> str:
        """Sessions end, and others take their room."""
        taken: list[asyncpg.Connection] = []
        admin = await asyncpg.connect(self._server.uri())
        try:
            await admin.fetchval(TERMINATE_ALL)
            with contextlib.suppress(asyncpg.TooManyConnectionsError):
                while True:
                    taken.append(await asyncpg.connect(self._server.uri()))
            await asyncio.sleep(STORM_S)
        finally:
            await asyncio.gather(*(one.close() for one in (*taken, admin)))
        return f"no room for {STORM_S} s, {len(taken)} connections of others"

    async def _lock(self, stage: Stage) -> str:
        """Strangers lock queues in an order of their own."""
        names = [row["name"] for row in await self._ask("SELECT DISTINCT name FROM nusku.queues")]
        if not names:
            return ""
        orders = [stage.rng.sample(names, len(names)) for _ in range(LOCKERS)]
        lost = await asyncio.gather(*(self._lock_in(names) for names in orders))
        return f"{LOCKERS} strangers locked all; {sum(lost)} of them lost a deadlock"

    async def _lock_in(self, names: list[str]) -> int:
        lost = 0
        session = await asyncpg.connect(self._uri)
        try:
            for _ in range(2):
                with contextlib.suppress(asyncpg.DeadlockDetectedError):
                    async with session.transaction():
                        lost += 1
                        for name in names:
                            await session.execute(LOCK_SOME, name)
                            await asyncio.sleep(STORM_S / 2 / len(names))
                        lost -= 1
        finally:
            await session.close()
        return lost

    async def _ask(self, statement: str) -> list[asyncpg.Record]:
        session = await asyncpg.connect(self._uri)
        try:
            return list(await session.fetch(statement))
        finally:
            await session.close()


class PostgresAll(PostgresCut):
    """All of these, and nodes are killed, one after the other."""

    name = "pg-all"

    def __init__(self) -> None:
        super().__init__()
        cut = super().strike
        parts = (kill_in_turn, cut, self._kill_server, cut, self._end_sessions, cut)
        self._parts = itertools.cycle(parts)

    async def strike(self, stage: Stage) -> str:
        return await next(self._parts)(stage)

    async def _kill_server(self, stage: Stage) -> str:
        return await kill_server(stage, self.on.server)

    async def _end_sessions(self, stage: Stage) -> str:
        return await end_sessions(stage, self.on.server)


class BouncerKill(Nemesis):
    """PgBouncer, through which all nodes go, dies and comes back."""

    name = "pg-bouncer"
    stores = ("postgresql",)
    most_unknown = 0.3
    planted = "optimist"
    on: OnBouncer

    @contextlib.contextmanager
    def store(self, folder: Path, plan: Plan) -> Iterator[Place]:
        with postgresql(plan) as on, PgBouncer(on.server) as bouncer:
            self.on = OnBouncer(on.server, bouncer, on.uri)
            yield self.on

    async def strike(self, stage: Stage) -> str:
        bouncer = self.on.bouncer
        before = bouncer.pid
        await asyncio.to_thread(bouncer.kill)
        await asyncio.sleep(stage.rng.uniform(0.0, 1.0))
        await asyncio.to_thread(bouncer.start)
        return f"PgBouncer {before} killed, {bouncer.pid} started"


async def kill_server(stage: Stage, server: Postgres) -> str:
    """`kill -9` of all its processes, and a start on the same files."""
    before = server.pid
    await asyncio.to_thread(server.kill)
    await asyncio.sleep(stage.rng.uniform(0.0, 1.5))
    await asyncio.to_thread(server.start)
    return f"PostgreSQL {before} killed, {server.pid} started"


async def end_sessions(
    stage: Stage, server: Postgres, lasts_s: float = LASTS, rate: float = TERMINATED
) -> str:
    """Sessions of nodes are ended, so many a second."""
    admin = await asyncpg.connect(server.uri())
    ended = 0
    try:
        for _ in range(round(lasts_s * rate)):
            ended += await admin.fetchval(TERMINATE) is True
            await asyncio.sleep(stage.rng.expovariate(rate))
    finally:
        await admin.close()
    return f"{ended} sessions ended" if ended else ""
