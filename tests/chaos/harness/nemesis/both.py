"""F-32: two faults at once, chosen by the seed among all that can meet on a store.

A part takes a second or some; the other one begins while it is under way. Parts of one kind exclude
each other: what is dead cannot be frozen.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from tests.chaos.harness import skewing, volumes
from tests.chaos.harness.nemesis import cut, redis
from tests.chaos.harness.nemesis.base import Nemesis
from tests.chaos.harness.nemesis.clock import SECONDS, set_store_clock
from tests.chaos.harness.nemesis.cut import moved
from tests.chaos.harness.nemesis.diskfull import WATERMARK, Ballast
from tests.chaos.harness.nemesis.freeze import freeze_in_turn, freeze_store
from tests.chaos.harness.nemesis.kill import kill_in_turn
from tests.chaos.harness.nemesis.limits import no_descriptors
from tests.chaos.harness.nemesis.postgres import end_sessions, kill_server
from tests.chaos.harness.nemesis.redis import ClusterNemesis, kill_redis
from tests.chaos.harness.nemesis.replies import Replies
from tests.chaos.harness.nemesis.term import stop_in_turn
from tests.chaos.harness.places import STORES, OnPostgres, OnRedis, Place, embedded
from tests.chaos.harness.proxies import Proxy, Switchboard
from tests.chaos.harness.skewing import Clock, SkewedPostgres, SkewedRedis
from tests.chaos.harness.stage import Plan, Stage

Thing = TypeVar("Thing")

APART_S = (0.0, 0.8)  # between the beginnings of the two


class Part(NamedTuple):
    """One of the two; `kind` says of what it is a fault."""

    name: str
    kind: str
    do: Callable[[Stage], Awaitable[str]]


class Both(Nemesis):
    """On SQLite, PostgreSQL, Redis and Redis Cluster."""

    name = "both"
    stores = STORES
    most_unknown = 0.5
    planted = "optimist"

    def __init__(self) -> None:
        self._replies = Replies()
        self._parts: list[Part] = []
        self._ahead = itertools.count(SECONDS, SECONDS)  # s, of the store's clock

    @staticmethod
    def why_not() -> str:
        return skewing.why_not()

    @contextlib.contextmanager
    def store(self, folder: Path, plan: Plan) -> Iterator[Place]:
        self._parts = [
            Part("kill", "node", kill_in_turn),
            Part("freeze", "node", freeze_in_turn),
            Part("term", "node", stop_in_turn),
        ]
        with contextlib.ExitStack() as stack:
            yield getattr(self, f"_on_{plan.store.replace('-', '_')}")(folder, plan, stack)

    def _on_sqlite(self, folder: Path, plan: Plan, stack: contextlib.ExitStack) -> Place:
        self._parts += [
            Part("replies", "way", self._replies.strike),
            Part("descriptors", "node", lambda stage: no_descriptors(stage, stage.server)),
        ]
        if volumes.why_not():
            return embedded(stack.enter_context(self.place(folder)))
        volume = stack.enter_context(volumes.Volume(folder, mib=64))
        self._parts.append(Part("disk full", "disk", _bound(_fill, Ballast(volume))))
        place = embedded(volume.path)
        place.settings["NUSKU_DISK_WATERMARK"] = str(WATERMARK)
        return place

    def _on_postgresql(self, folder: Path, plan: Plan, stack: contextlib.ExitStack) -> Place:
        server = stack.enter_context(SkewedPostgres())
        proxy = self._way_to(server.host, server.port, plan, stack)
        self._parts += [
            Part("store killed", "store", lambda stage: kill_server(stage, server)),
            Part("store frozen", "store", freeze_store),
            Part("sessions ended", "store", lambda stage: end_sessions(stage, server)),
            Part("store's clock", "clock", lambda stage: self._forward(stage, server.clock)),
        ]
        return OnPostgres(server, moved(server.create(), proxy))

    def _on_redis(self, folder: Path, plan: Plan, stack: contextlib.ExitStack) -> Place:
        server = stack.enter_context(SkewedRedis())
        proxy = self._way_to(server.host, server.port, plan, stack)
        self._parts += [
            Part("store killed", "store", lambda stage: kill_redis(stage, server)),
            Part("store frozen", "store", freeze_store),
            Part("store's clock", "clock", lambda stage: self._forward(stage, server.clock)),
        ]
        return OnRedis(server, moved(server.uri, proxy))

    def _on_redis_cluster(self, folder: Path, plan: Plan, stack: contextlib.ExitStack) -> Place:
        cluster = redis.Operators()
        place = stack.enter_context(ClusterNemesis.store(cluster, folder, plan))
        self._parts += [
            Part("failover", "store", cluster.fail_over),
            Part("master frozen", "store", freeze_store),
            Part("connections ended", "store", cluster.end_connections),
            Part("scripts forgotten", "store", cluster.forget_scripts),
        ]
        return place

    def _way_to(self, host: str, port: int, plan: Plan, stack: contextlib.ExitStack) -> Proxy:
        """A proxy to the store, and what can happen on that way."""
        proxy = stack.enter_context(Switchboard(plan.seed)).open((host, port))
        for way in (cut.lose_replies, cut.silence, cut.cut, cut.refuse):
            self._parts.append(Part(way.__name__, "way", _bound(way, proxy)))
        return proxy

    async def _forward(self, stage: Stage, clock: Clock) -> str:
        to = next(self._ahead)
        set_store_clock(stage, clock, to)
        await asyncio.sleep(stage.rng.uniform(0.2, 1.0))
        return f"the store's clock: {to:+d} s"

    async def begin(self, stage: Stage) -> None:
        stage.insists = True
        if stage.plan.store == "sqlite":
            await self._replies.begin(stage)

    async def strike(self, stage: Stage) -> str:
        one = stage.rng.choice(self._parts)
        others = [part for part in self._parts if part.kind != one.kind]
        other = stage.rng.choice(others)
        notes = await asyncio.gather(one.do(stage), _later(stage, other))
        return " + ".join(notes) if all(notes) else ""

    async def end(self, stage: Stage) -> None:
        if stage.plan.store == "sqlite":
            await self._replies.end(stage)


async def _later(stage: Stage, part: Part) -> str:
    await asyncio.sleep(stage.rng.uniform(*APART_S))
    return await part.do(stage)


def _bound(
    do: Callable[[Stage, Thing], Awaitable[str]], thing: Thing
) -> Callable[[Stage], Awaitable[str]]:
    return lambda stage: do(stage, thing)


async def _fill(stage: Stage, ballast: Ballast) -> str:
    """Posts are refused for a moment."""
    await asyncio.to_thread(ballast.fill, WATERMARK // 2)
    await asyncio.sleep(stage.rng.uniform(0.5, 1.5))
    ballast.relieve()
    return "disk full to the watermark"
