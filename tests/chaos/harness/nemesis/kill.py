"""F-01: `kill -9` at a random moment; of several nodes each in turn, while the others go on."""

from __future__ import annotations

import asyncio

from tests.chaos.harness.nemesis.base import Nemesis
from tests.chaos.harness.places import STORES
from tests.chaos.harness.stage import Stage


class Kill(Nemesis):
    """Of several nodes each in turn."""

    name = "kill"
    stores = STORES
    planted = "answers-early"  # on SQLite

    async def strike(self, stage: Stage) -> str:
        return await kill_in_turn(stage)


async def kill_in_turn(stage: Stage) -> str:
    """Kill a node and start it again."""
    node = stage.nodes[stage.strikes % len(stage.nodes)]
    before = node.pid
    await stage.kill(node)
    if len(stage.nodes) > 1:
        await asyncio.sleep(stage.rng.uniform(0.0, 1.0))
    await stage.start(node)
    return f"{node.name}: pid {before} killed, {node.pid} started"
