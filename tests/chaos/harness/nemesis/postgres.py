"""F-12, F-17, F-20, F-21: PostgreSQL dies and comes back, ends sessions, or is hard to reach."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from tests.chaos.harness.nemesis.base import Nemesis
from tests.chaos.harness.nemesis.kill import kill_in_turn
from tests.chaos.harness.places import OnBouncer, OnPostgres, Place, postgresql
from tests.chaos.harness.proxies import Proxy, Switchboard
from tests.chaos.harness.stage import Plan, Stage
from tests.servers.pgbouncer import PgBouncer

LASTS = 2.0  # s
TERMINATED = 5  # sessions a second
LOSS = 0.03  # share of pieces that are lost while the way is bad

TERMINATE = """
    WITH victim AS MATERIALIZED (
        SELECT pid FROM pg_stat_activity
        WHERE backend_type = 'client backend' AND datname LIKE 'store%'
        ORDER BY random() LIMIT 1
    )
    SELECT pg_terminate_backend(pid) FROM victim
"""


class PostgresNemesis(Nemesis):
    """Knows the one server of the run."""

    stores = ("postgresql",)
    most_unknown = 0.3
    on: OnPostgres

    @contextlib.contextmanager
    def store(self, folder: Path, plan: Plan) -> Iterator[Place]:
        with postgresql(plan) as self.on:
            yield self.on

    async def kill_server(self, stage: Stage) -> str:
        """`kill -9` of all its processes, and a start on the same files."""
        server = self.on.server
        before = server.pid
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(stage.rng.uniform(0.0, 1.5))
        await asyncio.to_thread(server.start)
        return f"PostgreSQL {before} killed, {server.pid} started"

    async def end_sessions(self, stage: Stage) -> str:
        """Sessions of nodes are ended, five a second."""
        admin = await asyncpg.connect(self.on.server.uri())
        ended = 0
        try:
            for _ in range(round(LASTS * TERMINATED)):
                ended += await admin.fetchval(TERMINATE) is True
                await asyncio.sleep(stage.rng.expovariate(TERMINATED))
        finally:
            await admin.close()
        return f"{ended} sessions ended" if ended else ""


class PostgresKill(PostgresNemesis):
    """It dies and comes back."""

    name = "pg-kill"

    async def strike(self, stage: Stage) -> str:
        return await self.kill_server(stage)


class PostgresTerminate(PostgresNemesis):
    """An administrator, or a failing server process, ends sessions."""

    name = "pg-terminate"

    async def strike(self, stage: Stage) -> str:
        return await self.end_sessions(stage)


class PostgresCut(PostgresNemesis):
    """A proxy in between cuts connections, loses requests and replies, or falls silent."""

    name = "pg-cut"
    proxy: Proxy

    def __init__(self) -> None:
        ways = (self.lose_replies, self.silence, self.cut, self.abandon, self.lose_requests)
        self._ways = itertools.cycle((*ways, self.refuse))

    @contextlib.contextmanager
    def store(self, folder: Path, plan: Plan) -> Iterator[Place]:
        with postgresql(plan) as on, Switchboard(plan.seed) as switchboard:
            self.proxy = switchboard.open((on.server.host, on.server.port))
            self.on = OnPostgres(on.server, moved(on.uri, self.proxy))
            yield self.on

    async def strike(self, stage: Stage) -> str:
        return await next(self._ways)(stage)

    async def lose_replies(self, stage: Stage) -> str:
        before, self.proxy.lose_reply = self.proxy.lost, LOSS
        await asyncio.sleep(LASTS)
        self.proxy.lose_reply = 0.0
        lost = self.proxy.lost - before
        return f"{lost} replies of PostgreSQL lost" if lost else ""

    async def lose_requests(self, stage: Stage) -> str:
        before, self.proxy.lose_request = self.proxy.lost, LOSS
        await asyncio.sleep(LASTS)
        self.proxy.lose_request = 0.0
        lost = self.proxy.lost - before
        return f"{lost} requests to PostgreSQL lost" if lost else ""

    async def cut(self, stage: Stage) -> str:
        for _ in range(5):
            self.proxy.cut(0.5)
            await asyncio.sleep(stage.rng.uniform(0.1, 0.6))
        return "connections cut"

    async def refuse(self, stage: Stage) -> str:
        self.proxy.refuse()
        await asyncio.sleep(LASTS)
        self.proxy.accept()
        return "nobody got through"

    async def silence(self, stage: Stage) -> str:
        self.proxy.silence(0.7)
        await asyncio.sleep(LASTS)
        self.proxy.hang_up()
        return "swallowed all that came, from both ends"

    async def abandon(self, stage: Stage) -> str:
        self.proxy.abandon(0.7)
        await asyncio.sleep(LASTS)
        self.proxy.hang_up()
        return "cut, but for PostgreSQL's end"


class PostgresAll(PostgresCut):
    """All of these, and nodes are killed, one after the other."""

    name = "pg-all"

    def __init__(self) -> None:
        super().__init__()
        cut = super().strike
        parts = (kill_in_turn, cut, self.kill_server, cut, self.end_sessions, cut)
        self._parts = itertools.cycle(parts)

    async def strike(self, stage: Stage) -> str:
        return await next(self._parts)(stage)


class BouncerKill(Nemesis):
    """PgBouncer, through which all nodes go, dies and comes back."""

    name = "pg-bouncer"
    stores = ("postgresql",)
    most_unknown = 0.3
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


def moved(uri: str, proxy: Proxy) -> str:
    """The same database through a proxy."""
    host, port = proxy.address
    parts = urlsplit(uri)
    return parts._replace(netloc=f"{parts.username}@{host}:{port}").geturl()
