"""F-20, F-21: a store is hard to reach: replies and requests are lost, or nobody gets through."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from tests.chaos.harness.nemesis.base import Nemesis
from tests.chaos.harness.places import OnPostgres, OnRedis, Place, postgresql, redis
from tests.chaos.harness.proxies import Proxy, Switchboard
from tests.chaos.harness.report import Verdict
from tests.chaos.harness.stage import Plan, Stage

LASTS = 2.0  # s
LOSS = 0.03  # share of pieces that are lost while the way is bad


class CutNemesis(Nemesis):
    """A proxy in between cuts connections, loses requests and replies, or falls silent."""

    most_unknown = 0.3
    planted = "posts-again"
    proxies: Sequence[Proxy]

    def __init__(self) -> None:
        ways = (lose_replies, silence, cut, abandon, lose_requests, refuse)
        self._ways = itertools.cycle(ways)

    async def strike(self, stage: Stage) -> str:
        return await next(self._ways)(stage, stage.rng.choice(self.proxies))

    @classmethod
    def shown(cls, verdict: Verdict) -> bool:
        """Something was done twice."""
        return "R3" in verdict.violations


async def lose_replies(stage: Stage, proxy: Proxy) -> str:
    before, proxy.lose_reply = proxy.lost, LOSS
    await asyncio.sleep(LASTS)
    proxy.lose_reply = 0.0
    lost = proxy.lost - before
    return f"{lost} replies of the store lost" if lost else ""


async def lose_requests(stage: Stage, proxy: Proxy) -> str:
    before, proxy.lose_request = proxy.lost, LOSS
    await asyncio.sleep(LASTS)
    proxy.lose_request = 0.0
    lost = proxy.lost - before
    return f"{lost} requests to the store lost" if lost else ""


async def cut(stage: Stage, proxy: Proxy) -> str:
    for _ in range(5):
        proxy.cut(0.5)
        await asyncio.sleep(stage.rng.uniform(0.1, 0.6))
    return "connections cut"


async def refuse(stage: Stage, proxy: Proxy) -> str:
    proxy.refuse()
    await asyncio.sleep(LASTS)
    proxy.accept()
    return "nobody got through"


async def silence(stage: Stage, proxy: Proxy) -> str:
    proxy.silence(0.7)
    await asyncio.sleep(LASTS)
    proxy.hang_up()
    return "swallowed all that came, from both ends"


async def abandon(stage: Stage, proxy: Proxy) -> str:
    proxy.abandon(0.7)
    await asyncio.sleep(LASTS)
    proxy.hang_up()
    return "cut, but for the store's end"


class PostgresCut(CutNemesis):
    name = "pg-cut"
    stores = ("postgresql",)
    on: OnPostgres

    @contextlib.contextmanager
    def store(self, folder: Path, plan: Plan) -> Iterator[Place]:
        with postgresql(plan) as on, Switchboard(plan.seed) as switchboard:
            proxy = switchboard.open((on.server.host, on.server.port))
            self.proxies = [proxy]
            self.on = OnPostgres(on.server, moved(on.uri, proxy))
            yield self.on


class RedisCut(CutNemesis):
    name = "redis-cut"
    stores = ("redis",)

    @contextlib.contextmanager
    def store(self, folder: Path, plan: Plan) -> Iterator[Place]:
        with redis(plan) as on, Switchboard(plan.seed) as switchboard:
            proxy = switchboard.open((on.server.host, on.server.port))
            self.proxies = [proxy]
            yield OnRedis(on.server, moved(on.uri, proxy))


def moved(uri: str, proxy: Proxy) -> str:
    """The same store through a proxy."""
    host, port = proxy.address
    parts = urlsplit(uri)
    user = f"{parts.username}@" if parts.username else ""
    return parts._replace(netloc=f"{user}{host}:{port}").geturl()
