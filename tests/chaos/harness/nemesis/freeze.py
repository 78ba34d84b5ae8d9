"""F-09: a server, or its store, stands still for longer than claims live, and goes on.

Whoever wakes must not go by the time at which it fell asleep. What was sent to it shortly before it
wakes shows that: a message that expired meanwhile is asked for, and what is claimed then is its
holder's for as long as was asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.chaos.harness.client import Client, Target
from tests.chaos.harness.generator import PROFILES, Cast
from tests.chaos.harness.history import OK, Op
from tests.chaos.harness.nemesis.base import Nemesis
from tests.chaos.harness.places import STORES, OnCluster, OnPostgres, OnRedis
from tests.chaos.harness.report import Verdict
from tests.chaos.harness.servers import Server
from tests.chaos.harness.stage import Stage

BEFORE_S = 0.3  # that is asked before it wakes
SHORT_S = 1  # life of the message that is asked for
HELD_S = 3  # life of the claims that are asked for


class Freeze(Nemesis):
    """Of several nodes each in turn, and every third time the store's server."""

    name = "freeze"
    stores = STORES
    most_unknown = 0.3
    planted = "stale-clock"

    async def strike(self, stage: Stage) -> str:
        if len(stage.nodes) > 1 and stage.strikes % 3 == 2:
            return await freeze_store(stage)
        return await freeze_in_turn(stage)

    @classmethod
    def shown(cls, verdict: Verdict) -> bool:
        """Seen after its end, or given away while somebody had it."""
        return bool(verdict.violations.keys() & {"R5", "R6", "R11"})


async def freeze_in_turn(stage: Stage) -> str:
    """SIGSTOP a node, SIGCONT."""
    node = stage.nodes[stage.strikes % len(stage.nodes)]
    took = await _freeze(stage, node.name, node, node.freeze, node.thaw)
    return f"{node.name} stood still for {took:.1f} s" if took else ""


async def freeze_store(stage: Stage) -> str:
    """The same with PostgreSQL, with Redis, or with the master of a cluster that has most."""
    place, way = stage.place, stage.way("warden")
    if isinstance(place, OnPostgres | OnRedis):
        server = place.server
        took = await _freeze(stage, server.name, way, server.pause, server.resume)
    elif isinstance(place, OnCluster):
        masters = await asyncio.to_thread(place.cluster.masters)
        server = max(masters, key=lambda node: int(node.ask("DBSIZE")))
        took = await _freeze(stage, server.name, way, server.pause, server.resume)
        await asyncio.to_thread(place.cluster.wait_until_whole)
    else:
        return ""
    return f"{server.name} stood still for {took:.1f} s" if took else ""


async def _freeze(
    stage: Stage, name: str, asked: Target, stop: Callable[[], None], go_on: Callable[[], None]
) -> float:
    """Stop it, `name`, and ask `asked`. For how long, in s; 0 if there was nothing to ask for."""
    profile = PROFILES[stage.plan.profile]
    lasts = profile.claim_ttl[1] + stage.rng.uniform(0.5, 1.5)
    q = stage.rng.choice(Cast(profile, stage.plan.seed).work)
    own = f"{q.partition('/')[0]}/warden"  # where no claim lengthens a life
    short = Op("post", q=own, p=f"warden.{stage.strikes}.{name}", ttl=SHORT_S)
    await _ask(stage, asked, short)
    await asyncio.to_thread(stop)
    try:
        await asyncio.sleep(lasts - BEFORE_S)
        late = [Op("get", q=own, id=short.ids[0])] if short.out == OK else []
        late += [Op("claim", q=q, ttl=HELD_S, limit=5) for _ in range(3)]
        answers = [asyncio.create_task(_ask(stage, asked, op)) for op in late]
        await asyncio.sleep(BEFORE_S)
    finally:
        go_on()
    await asyncio.gather(*answers)
    return lasts if short.out == OK else 0.0


async def _ask(stage: Stage, asked: Target, op: Op) -> None:
    client = Client(asked, "warden", stage.plan.seed, stage.plan.deadline)
    done = await client.perform(op)
    done.node = asked.name if isinstance(asked, Server) else ""
    stage.history.add(done)
    client.close()
