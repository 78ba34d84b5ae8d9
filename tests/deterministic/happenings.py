"""What happens to nodes, stores and keys while there is load, besides what calls of a store meet."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial

from tests.deterministic.nodes import Cluster, Life, Node
from tests.deterministic.scripts import Scene
from tests.deterministic.weather import Climate

DOWN_S = 0.6  # that a node stays down, at most
AWAY_S = 2.0  # that the store of a pool is away, at most
MOVE_CALLS = 30  # of stores, that a move takes, about
CALLS = 4  # the same, of what clients ask for
LOOKS, LOOK_S = 50, 0.05  # whether one has stood still
PAUSE_S = 1.5  # on average, between two times that something stands still
TOGETHER = 0.5  # the share of times that all nodes stand still
TOGETHER_MOVING = 0.15  # the same, where it is about movers that do alone


class Happenings:
    """``cuts``: power cuts; ``stills``: times that a node stood still."""

    def __init__(
        self, cluster: Cluster, scene: Scene, climate: Climate, seconds: float, rng: random.Random
    ) -> None:
        self.cuts = self.stills = 0
        self._cluster = cluster
        self._scene = scene
        self._climate = climate
        self._seconds = seconds
        self._rng = rng
        self._tasks: list[asyncio.Task[None]] = []
        self._standing: dict[Node, Callable[[], None]] = {}

    def begin(self) -> None:
        """To be called once."""
        spawn, cluster = self._cluster.spawn, self._cluster
        self._tasks = [spawn(self._revive(node)) for node in cluster.nodes]
        if self._climate.cuts_s:
            # Seldom enough that somebody is there who has stood still for long.
            every_s = self._climate.cuts_s * (8 if self._scene.stills_s else 1)
            self._tasks.append(spawn(self._cut(every_s)))
        if self._scene.stills_s:
            self._tasks.append(spawn(self._stand_still(self._scene.stills_s)))
        if self._scene.pools and self._rng.random() < 0.5:
            self._tasks.append(spawn(self._lose_pools()))
        if self._scene.encrypted:
            self._tasks.append(spawn(self._change_keys()))

    def end(self) -> None:
        """Nothing happens from now on. Nodes that stand still go on, those that are down stay so."""
        for task in self._tasks:
            task.cancel()
        for node in list(self._standing):
            self._go_on(node)
        for ground in self._cluster.pools.values():
            ground.away = False

    def cut(self) -> None:
        """The power is cut, everywhere."""
        cluster = self._cluster
        cluster.say("the power is cut")
        self.cuts += 1
        for node in cluster.nodes:
            node.stop()
        for late in list(cluster.late):
            late.cancel()  # it was on its way to a process that is no more
        for ground in (cluster.ground, *cluster.pools.values()):
            ground.cut()
            ground.open()

    async def _revive(self, node: Node) -> None:
        """Start it again whenever it has died."""
        while True:
            await asyncio.sleep(self._rng.random() * DOWN_S)
            if node.life is None:
                node.start()

    async def _cut(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(self._rng.expovariate(1 / every_s))
            self.cut()

    async def _stand_still(self, lengths_s: tuple[float, ...]) -> None:
        """One node, or all, again and again."""
        rng, nodes = self._rng, self._cluster.nodes
        together = TOGETHER_MOVING if self._scene.pools else TOGETHER
        while True:
            length_s = rng.choice(lengths_s) * rng.uniform(0.85, 1.2)
            await asyncio.sleep(rng.expovariate(1 / PAUSE_S))
            if rng.random() < together:
                for node in nodes:
                    self._stop(node)
            else:
                await self._stop_at_work()
            await asyncio.sleep(length_s)
            for node in list(self._standing):
                self._go_on(node)

    def _stop(self, node: Node) -> None:
        if node.life is not None and node not in self._standing:
            self._standing[node] = node.stand_still()
            self.stills += 1

    async def _stop_at_work(self) -> None:
        """One in the midst of a move where there are pools, else of what it was asked for; if any
        begins something before long.
        """
        lives = [node.life for node in self._cluster.nodes if node.life is not None]

        def stop(node: Node) -> None:
            for life in lives:
                life.calls_left = 0
            self._stop(node)

        for life in lives:
            life.counted = _moves if self._scene.pools else _is_asked
            life.stand_still = partial(stop, life.node)
            life.calls_left = self._rng.randint(1, MOVE_CALLS if self._scene.pools else CALLS)
        try:
            for _ in range(LOOKS):
                if self._standing:
                    break
                await asyncio.sleep(LOOK_S)
        finally:
            for life in lives:
                life.calls_left = 0

    def _go_on(self, node: Node) -> None:
        self._standing.pop(node)()

    async def _lose_pools(self) -> None:
        """The store of a pool is away for a while; or its server dies, and is started again."""
        rng, pools = self._rng, self._cluster.pools
        while True:
            await asyncio.sleep(rng.expovariate(1.5 / self._seconds))
            ground = pools[rng.choice(sorted(pools))]
            ground.away = True
            self._cluster.say(f"{ground.name}is away")
            if rng.random() < 0.5:
                ground.cut()
                ground.open()
            await asyncio.sleep(rng.random() * AWAY_S)
            ground.away = False

    async def _change_keys(self) -> None:
        """Somebody has a new one made, or an old one taken away."""
        rng, cluster = self._rng, self._cluster
        while True:
            await asyncio.sleep(rng.expovariate(5 / self._seconds))
            # Who stands still for long between encrypting and storing does not get along with those
            # who take keys away.
            if self._scene.stills_s or rng.random() < 0.6:
                cluster.say("another key encrypts")
                cluster.key_file.rotate()
            else:
                await cluster.key_file.retire(cluster.disks())


def _moves(life: Life) -> bool:
    """Whether the node brings queues from pool to pool."""
    return bool(life.broker.moving._running)


def _is_asked(life: Life) -> bool:
    """Whether a client waits for it."""
    return bool(life.asked)
