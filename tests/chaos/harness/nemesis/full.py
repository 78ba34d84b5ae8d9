"""F-05, F-19: PostgreSQL or Redis has no room left, on its disk or in its memory; then it has again.

Neither can be made to leave any room in time, so all that is asked: what is not stored is not
answered with success, nothing is lost, and all is well again without a restart of a node.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
from redis.exceptions import RedisError

from tests.chaos.harness.history import OK
from tests.chaos.harness.nemesis.base import VolumeNemesis
from tests.chaos.harness.nemesis.diskfull import Ballast
from tests.chaos.harness.places import OnPostgres, OnRedis, Place
from tests.chaos.harness.stage import Plan, Stage
from tests.chaos.harness.volumes import Volume
from tests.servers.postgres import Postgres
from tests.servers.process import new_folder, remove_folder
from tests.servers.redis import Redis

LASTS_S = 1.5
LEFT = (0, 64 << 10)  # bytes


class FullNemesis(VolumeNemesis):
    """A server of a store that keeps its files on a small disk."""

    most_unknown = 0.9  # 503 is one
    planted = "optimist"
    server: Postgres | Redis

    @contextlib.contextmanager
    def volume_of(self) -> Iterator[Path]:
        folder = new_folder("full")  # PostgreSQL's user may pass through it
        try:
            with Volume(folder, self.mib) as self.volume:
                yield self.volume.path
        finally:
            remove_folder(folder)

    async def fill(self, stage: Stage) -> str:
        """No room for some time; a server that has died of it is started again."""
        ballast = Ballast(self.volume)
        left = stage.rng.choice(LEFT)
        await asyncio.to_thread(ballast.fill, left)
        await self.press()
        begin = time.monotonic()
        await asyncio.sleep(LASTS_S)
        end = time.monotonic()
        ballast.relieve()
        await asyncio.sleep(0.2)
        died = not self.server.running
        if died:
            await asyncio.to_thread(self.server.kill)
            await asyncio.to_thread(self.server.start)
        posts = [op for op in stage.history.ops if op.f == "post" and begin < op.t0 and op.t1 < end]
        refused = sum(op.out != OK for op in posts)
        what = f"{left} bytes left on the disk, {refused} of {len(posts)} posts refused"
        # A server that answers with success whatever happens refuses nothing.
        return (
            f"{what}; the server died" if died else what if refused or not stage.plan.safe else ""
        )

    async def press(self) -> None:
        """Make it need room."""

    async def end(self, stage: Stage) -> None:
        Ballast(self.volume).relieve()


class PostgresFull(FullNemesis):
    name = "pg-full"
    stores = ("postgresql",)
    mib = 160
    server: Postgres

    def __init__(self) -> None:
        self._strikes = itertools.count()

    @contextlib.contextmanager
    def store(self, folder: Path, plan: Plan) -> Iterator[Place]:
        with (
            self.volume_of() as place,
            Postgres(durable=True, place=place, settings={"max_wal_size": "48MB"}) as self.server,
        ):
            yield OnPostgres(self.server, self.server.create())

    async def strike(self, stage: Stage) -> str:
        return await self.fill(stage)

    async def press(self) -> None:
        """Every second time the log needs a new file. Without one PostgreSQL does not live."""
        if next(self._strikes) % 2:
            with contextlib.suppress(OSError, asyncpg.PostgresError):
                await asyncio.to_thread(self.server.execute, "SELECT pg_switch_wal()")


class RedisFull(FullNemesis):
    """Its disk, of which it dies, and its memory, in turn."""

    name = "redis-full"
    stores = ("redis",)
    mib = 64
    server: Redis

    def __init__(self) -> None:
        self._ways = itertools.cycle((self.fill, self.no_memory))

    @contextlib.contextmanager
    def store(self, folder: Path, plan: Plan) -> Iterator[Place]:
        with self.volume_of() as place, Redis(place=place) as self.server:
            yield OnRedis(self.server, self.server.uri)

    async def strike(self, stage: Stage) -> str:
        return await next(self._ways)(stage)

    async def no_memory(self, stage: Stage) -> str:
        """Posts are refused, and what makes room is done."""
        await asyncio.to_thread(self.server.ask, "CONFIG", "SET", "maxmemory", 1)
        begin = time.monotonic()
        await asyncio.sleep(LASTS_S)
        end = time.monotonic()
        with contextlib.suppress(RedisError):
            await asyncio.to_thread(self.server.ask, "CONFIG", "SET", "maxmemory", 0)
        during = [op for op in stage.history.ops if begin + 0.1 < op.t0 and op.t1 < end]
        posts = [op for op in during if op.f == "post"]
        if any(op.out == OK for op in posts):
            stage.complaints.append("a post succeeded without any memory")
        deletes = [op for op in during if op.f in {"delete", "bulk"}]
        if deletes and not any(op.out == OK for op in deletes):
            stage.complaints.append(f"nothing could be deleted without memory: {deletes[0]}")
        return f"no memory: {len(posts)} posts refused, {len(deletes)} deletions" if posts else ""
