"""F-19: Redis dies and comes back; connections, scripts, slots and masters change under load."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

from redis.exceptions import RedisError

from tests.chaos.harness.nemesis.base import Nemesis
from tests.chaos.harness.nemesis.kill import kill_in_turn
from tests.chaos.harness.places import OnCluster, OnRedis, OnSentinels, Place, redis
from tests.chaos.harness.proxies import Proxy, Switchboard
from tests.chaos.harness.stage import Plan, Stage
from tests.servers.cluster import Cluster
from tests.servers.redis import Redis
from tests.servers.sentinel import Sentinels

LASTS = 2.0  # s
KILLED = 5  # rounds a second in which connections are ended
PATIENCE_S = 20.0  # until a cluster has recovered


class RedisKill(Nemesis):
    """`kill -9` of the one server, and a start on the same files."""

    name = "redis-kill"
    planted = "optimist"
    stores = ("redis",)
    most_unknown = 0.3
    on: OnRedis

    @contextlib.contextmanager
    def store(self, folder: Path, plan: Plan) -> Iterator[Place]:
        with redis(plan) as self.on:
            yield self.on

    async def strike(self, stage: Stage) -> str:
        return await kill_redis(stage, self.on.server)


class RedisAll(RedisKill):
    """Redis and nodes in turn."""

    name = "redis-all"

    async def strike(self, stage: Stage) -> str:
        kill = kill_in_turn if stage.strikes % 2 else super().strike
        return await kill(stage)


class SentinelFailover(Nemesis):
    """The master is killed, and Sentinels promote its replica; it returns as the replica."""

    name = "redis-sentinel"
    stores = ("redis",)
    most_unknown = 0.5
    on: OnSentinels

    @contextlib.contextmanager
    def store(self, folder: Path, plan: Plan) -> Iterator[Place]:
        with Sentinels() as sentinels:
            self.on = OnSentinels(sentinels, safe=plan.safe)
            yield self.on

    async def strike(self, stage: Stage) -> str:
        sentinels = self.on.sentinels
        master = await asyncio.to_thread(sentinels.master)
        await asyncio.to_thread(master.kill)
        begin = time.monotonic()
        await asyncio.to_thread(sentinels.wait_for_another, master)
        took = time.monotonic() - begin
        # It would come back as the replica of nobody, until the Sentinels say otherwise.
        await asyncio.to_thread(master.start)
        await asyncio.to_thread(
            sentinels.wait_until, lambda: master.ask("ROLE")[0] == "slave", "the old one followed"
        )
        return f"{master.name} killed; replaced after {took:.1f} s"


class ClusterNemesis(Nemesis):
    """Knows the six, and stands between them and whoever connects to them."""

    stores = ("redis-cluster",)
    most_unknown = 0.5
    on: OnCluster

    @contextlib.contextmanager
    def store(self, folder: Path, plan: Plan) -> Iterator[Place]:
        with Cluster(node_timeout_ms=1000) as cluster, Switchboard(plan.seed) as switchboard:
            self._ways = ways_to(cluster, switchboard)
            hosts = ",".join(f"127.0.0.1:{way.port}" for way in self._ways.values())
            self.on = OnCluster(cluster, f"redis+cluster://{hosts}", safe=plan.safe)
            yield self.on

    async def fail_over(self, stage: Stage) -> str:
        """A master is killed, mostly with the way to its replica blocked, which takes over."""
        cluster = self.on.cluster
        masters = await asyncio.to_thread(cluster.masters)
        # The one with most to lose: the queues of a run may lie on two of three.
        master = max(masters, key=lambda node: int(node.ask("DBSIZE")))
        way = self._ways[master]
        blocked = stage.rng.choice((0.0, 0.3, 1.5)) if stage.plan.safe else 1.5
        if blocked:
            way.hold(lambda link: link.replicates)
            await asyncio.sleep(blocked)
        await asyncio.to_thread(master.kill)
        way.drop()
        begin = time.monotonic()
        await asyncio.to_thread(
            cluster.wait_until, lambda: len(cluster.masters()) == 3, "a replica took over"
        )
        took = time.monotonic() - begin
        await asyncio.to_thread(master.start)
        await asyncio.to_thread(cluster.wait_until_whole)
        return f"{master.name} blocked for {blocked} s and killed; replaced after {took:.1f} s"

    async def give_way(self, stage: Stage) -> str:
        """A replica takes over because it was told to."""
        cluster = self.on.cluster
        masters = await asyncio.to_thread(cluster.masters)
        master = max(masters, key=lambda node: int(node.ask("DBSIZE")))
        replica = await asyncio.to_thread(swap, cluster, master)
        return f"{master.name} gave way to {replica.name}"

    async def end_connections(self, stage: Stage) -> str:
        """CLIENT KILL."""
        ended = 0
        for _ in range(round(LASTS * KILLED)):
            server = stage.rng.choice(await asyncio.to_thread(self.on.cluster.masters))
            ended += await asyncio.to_thread(end_one_connection, server, stage.rng.random())
            await asyncio.sleep(stage.rng.expovariate(KILLED))
        return f"{ended} connections ended" if ended else ""

    async def move_slot(self, stage: Stage) -> str:
        """Resharding."""
        return await asyncio.to_thread(move_slot, self.on.cluster, stage.rng.random())

    async def forget_scripts(self, stage: Stage) -> str:
        """SCRIPT FLUSH."""
        for master in await asyncio.to_thread(self.on.cluster.masters):
            await asyncio.to_thread(master.ask, "SCRIPT", "FLUSH")
        return "scripts forgotten"


class Failover(ClusterNemesis):
    """Masters die."""

    name = "redis-failover"

    async def strike(self, stage: Stage) -> str:
        return await self.fail_over(stage)


class Operators(ClusterNemesis):
    """What operators do to a cluster at any time."""

    name = "redis-operators"

    def __init__(self) -> None:
        self._ways_of_theirs = itertools.cycle(
            (self.move_slot, self.end_connections, self.give_way, self.forget_scripts)
        )

    async def strike(self, stage: Stage) -> str:
        return await next(self._ways_of_theirs)(stage)


class ClusterAll(Operators):
    """Both, and nodes are killed."""

    name = "redis-cluster-all"

    def __init__(self) -> None:
        super().__init__()
        theirs = super().strike
        self._parts = itertools.cycle((theirs, self.fail_over, theirs, kill_in_turn, theirs))

    async def strike(self, stage: Stage) -> str:
        return await next(self._parts)(stage)


async def kill_redis(stage: Stage, server: Redis) -> str:
    """`kill -9`, and a start on the same files."""
    before = server.pid
    await asyncio.to_thread(server.kill)
    await asyncio.sleep(stage.rng.uniform(0.0, 1.5))
    await asyncio.to_thread(server.start)
    return f"Redis {before} killed, {server.pid} started"


def ways_to(cluster: Cluster, switchboard: Switchboard) -> dict[Redis, Proxy]:
    """Proxies to all nodes, which from now on name these to clients and to their replicas."""
    ways = {}
    for node in cluster.nodes:
        way = switchboard.open((node.host, node.port))
        node.settings["cluster-announce-port"] = str(way.port)
        node.ask("CONFIG", "SET", "cluster-announce-port", way.port)
        ways[node] = way
    ports = {way.port for way in ways.values()}
    cluster.wait_until(lambda: _follow_at(cluster, ports), "replicas came through the proxies")
    cluster.wait_until_whole()
    return ways


def _follow_at(cluster: Cluster, ports: set[int]) -> bool:
    """Whether all replicas follow a master at one of these ports, and all nodes know them all."""
    for node in cluster.nodes:
        role = node.ask("ROLE")
        if role[0] == "slave" and int(role[2]) not in ports:
            return False
        told = node.ask("CLUSTER", "SLOTS")
        if not {int(server[1]) for one in told for server in one[2:]} <= ports:
            return False
    return True


def swap(cluster: Cluster, master: Redis) -> Redis:
    """Let the replica of a master take its place, without a loss; return it."""
    name = str(master.ask("CLUSTER", "MYID"))
    followers = {str(line).split()[0] for line in master.ask("CLUSTER", "REPLICAS", name)}
    (replica,) = (
        node for node in cluster.running() if str(node.ask("CLUSTER", "MYID")) in followers
    )
    replica.ask("CLUSTER", "FAILOVER")
    cluster.wait_until(lambda: replica in cluster.masters(), f"{replica.name} took over")
    cluster.wait_until_whole()
    return replica


def end_one_connection(server: Redis, where: float) -> int:
    """End a connection of a node; how many there were to end."""
    with contextlib.suppress(RedisError), server.client() as client:
        mine = int(client.client_id())
        others = [
            one
            for one in client.client_list()
            if int(one["id"]) != mine and not set(one["flags"]) & {"M", "S"}
        ]
        if others:
            victim = others[int(where * len(others))]
            client.execute_command("CLIENT", "KILL", "ID", victim["id"])
            return 1
    return 0


def move_slot(cluster: Cluster, where: float) -> str:
    """Move a slot that holds something to another master, key by key."""
    source = max(cluster.masters(), key=lambda node: int(node.ask("DBSIZE")))
    target = next(node for node in cluster.masters() if node is not source)
    ids = {node: str(node.ask("CLUSTER", "MYID")) for node in cluster.running()}
    key = source.ask("RANDOMKEY")
    if key is None:
        return ""
    slot = int(source.ask("CLUSTER", "KEYSLOT", key))
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
    moved = 0
    end = time.monotonic() + PATIENCE_S
    while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1):
        if time.monotonic() > end:
            raise TimeoutError(f"slot {slot} of {source.name} is never empty")
        source.ask("MIGRATE", target.host, target.port, keys[0], 0, 5000)
        moved += 1
        time.sleep(0.005 + 0.02 * where)  # so that the service meets it in the midst
    for node in (target, source, *cluster.masters()):
        node.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
    return f"slot {slot} moved from {source.name} to {target.name}, {moved} keys" if moved else ""
