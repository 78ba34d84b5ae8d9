"""F-19, F-32: two servers of a Redis Cluster fail at once, more than `redis_replicas = 1` is for.

Each server has a disk of its own, whose power can be cut: what its log had not been made to keep is
gone. (`kill -9` alone loses nothing that was written: the kernel has it.) With `appendfsync always` on
all of them a replica tells that it has a change when that is on its disk, so nothing that was answered
may be lost. With `everysec` the last moments may; how much, `forgotten` counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from tests.chaos.harness import tracing, volumes
from tests.chaos.harness.forgotten import broke
from tests.chaos.harness.nemesis.base import Nemesis
from tests.chaos.harness.places import OnCluster, Place
from tests.chaos.harness.servers import stand_still
from tests.chaos.harness.stage import Plan, Stage
from tests.servers.cluster import Cluster
from tests.servers.redis import Persistence, Redis

MIB = 64  # of each disk
NODE_TIMEOUT_MS = 1000
EVERYSEC_S = 2.0
"""What `everysec` may keep waiting: a second, and another when a sync is slow (as Redis has it)."""
SLOW_S = 0.8  # that a sync takes longer where disks are slow
AGAIN_S = 3.0  # of load on a cluster that is whole, before it is broken: longer than that


class Pair(NamedTuple):
    """A master and its only replica."""

    master: Redis
    replica: Redis


class DoubleFault(Nemesis):
    """Both are killed; one is lost with its disk while the other loses power; two takeovers."""

    name = "redis-double"
    stores = ("redis-cluster",)
    most_unknown = 0.6
    persistence: ClassVar[Persistence] = "always"
    more: ClassVar[Mapping[str, str]] = {}  # settings of Redis
    on: OnCluster
    _cluster: Cluster

    def __init__(self) -> None:
        self._disks: dict[Redis, volumes.Volume] = {}
        self._whole_since = time.monotonic()

    @staticmethod
    def why_not() -> str:
        return volumes.why_not()

    @contextlib.contextmanager
    def store(self, folder: Path, plan: Plan) -> Iterator[Place]:
        # Nothing but that makes the control lose.
        persistence: Persistence = self.persistence if plan.safe else "everysec"
        with contextlib.ExitStack() as stack:
            self._cluster = Cluster(
                persistence=persistence, settings=self.more, node_timeout_ms=NODE_TIMEOUT_MS
            )
            for node in self._cluster.nodes:
                disk = stack.enter_context(volumes.Volume(folder / node.name, MIB))
                node.settings["dir"] = str(disk.path)
                self._disks[node] = disk
            stack.enter_context(self._cluster)
            self.on = OnCluster(self._cluster, self._cluster.uri)
            yield self.on

    def ways(self) -> Sequence[Callable[[Stage], Awaitable[str]]]:
        """What is done in turn; the seed says where to begin."""
        return (
            self.lose_and_cut,
            self.cut_both,
            self.cut_then_lose,
            self.kill_both,
            self.take_over_twice,
            self.lose_then_cut,
            self.cut_master,
        )

    async def begin(self, stage: Stage) -> None:
        await asyncio.to_thread(self.settle)
        self._whole_since = time.monotonic()

    async def strike(self, stage: Stage) -> str:
        # A loss then is of this strike, and not of the one before.
        await asyncio.sleep(self._whole_since + AGAIN_S - time.monotonic())
        ways = self.ways()
        note = await ways[(stage.plan.seed + stage.strikes) % len(ways)](stage)
        await asyncio.to_thread(self.settle)
        self._whole_since = time.monotonic()
        return note

    # ------------------------------------------------------------------------- what is done

    async def kill_both(self, stage: Stage) -> str:
        """`kill -9` of both at once; they are started again on their files, in any order."""
        return await self.killed(stage, await asyncio.to_thread(self.pair), "both killed")

    async def killed(self, stage: Stage, pair: Pair, what: str) -> str:
        """`kill -9`, and a start."""
        for one in stage.rng.sample(pair, 2):
            os.kill(one.pid, signal.SIGKILL)
        self.broken(stage, what)
        for one in pair:
            await asyncio.to_thread(one.kill)
        return await self.bring_back(stage, pair)

    async def cut_both(self, stage: Stage) -> str:
        """Both lose power at once; they are started again on what their disks have, in any order."""
        pair = await asyncio.to_thread(self.pair)
        for one in pair:
            await asyncio.to_thread(stand_still, one.pid)
        self.broken(stage, "both cut")
        for one in pair:
            await asyncio.to_thread(self.cut, one)
        return await self.bring_back(stage, pair)

    async def bring_back(self, stage: Stage, pair: Pair) -> str:
        """Start both on their files; says in which order."""
        order = stage.rng.choice(("master first", "replica takes over", "together"))
        first, second = reversed(pair) if order == "replica takes over" else pair
        await asyncio.to_thread(first.launch)
        if order == "replica takes over":
            await self.until_master(pair.replica)
        elif order == "master first":
            await asyncio.to_thread(first.wait_until_it_answers)
        await asyncio.to_thread(second.launch)
        return f"{pair.master.name} and {pair.replica.name} back: {order}"

    async def lose_and_cut(self, stage: Stage) -> str:
        """The master is lost with its disk in the moment in which its replica loses power."""
        pair = await asyncio.to_thread(self.pair)
        for one in pair:
            await asyncio.to_thread(stand_still, one.pid)
        self.broken(stage, "master lost, replica cut")
        await asyncio.to_thread(self.cut, pair.replica)
        lost = await asyncio.to_thread(self.lose, pair.master)
        await asyncio.to_thread(pair.replica.launch)
        await self.until_master(pair.replica)
        await asyncio.to_thread(self.join, pair.master, lost, pair.replica)
        return f"{pair.master.name} lost while {pair.replica.name} lost power"

    async def cut_then_lose(self, stage: Stage) -> str:
        """The replica loses power, and its master is lost when it is just coming back."""
        pair = await asyncio.to_thread(self.pair)
        what = "replica cut, then master lost"
        await asyncio.to_thread(stand_still, pair.replica.pid)
        self.broken(stage, what)
        await asyncio.to_thread(self.cut, pair.replica)
        await asyncio.to_thread(pair.replica.launch)
        await asyncio.sleep(apart := stage.rng.uniform(0.0, 0.6))
        lost = await asyncio.to_thread(self.lose, pair.master)
        await self.until_master(pair.replica)
        await asyncio.to_thread(self.join, pair.master, lost, pair.replica)
        return f"{pair.replica.name} lost power, {apart:.1f} s later {pair.master.name} was lost"

    async def lose_then_cut(self, stage: Stage) -> str:
        """The master is lost, and its replica loses power before or after it has taken over."""
        pair = await asyncio.to_thread(self.pair)
        what = "master lost, then replica cut"
        os.kill(pair.master.pid, signal.SIGKILL)
        self.broken(stage, what)
        lost = await asyncio.to_thread(self.lose, pair.master)
        await asyncio.sleep(apart := stage.rng.uniform(0.0, 2.0))
        await asyncio.to_thread(stand_still, pair.replica.pid)
        await asyncio.to_thread(self.cut, pair.replica)
        await asyncio.to_thread(pair.replica.launch)
        await self.until_master(pair.replica)
        await asyncio.to_thread(self.join, pair.master, lost, pair.replica)
        return f"{pair.master.name} lost, {apart:.1f} s later {pair.replica.name} lost power"

    async def take_over_twice(self, stage: Stage) -> str:
        """A master is killed, and who took over is lost before the first is back, which then does."""
        pair = await asyncio.to_thread(self.pair)
        os.kill(pair.master.pid, signal.SIGKILL)
        self.broken(stage, "two takeovers")
        await asyncio.to_thread(pair.master.kill)
        await self.until_master(pair.replica)
        await asyncio.sleep(alone := stage.rng.uniform(0.0, 1.0))
        lost = await asyncio.to_thread(self.lose, pair.replica)
        await asyncio.to_thread(pair.master.launch)
        await self.until_master(pair.master)
        await asyncio.to_thread(self.join, pair.replica, lost, pair.master)
        return (
            f"{pair.master.name} killed, {pair.replica.name} lost after {alone:.1f} s as the master"
        )

    async def cut_master(self, stage: Stage) -> str:
        """One fault: a master loses power, and is back before its replica would take its place."""
        pair = await asyncio.to_thread(self.pair)
        await asyncio.to_thread(stand_still, pair.master.pid)
        self.broken(stage, "master cut, back at once")
        await asyncio.to_thread(self.cut, pair.master)
        await asyncio.to_thread(pair.master.start)
        return f"{pair.master.name} lost power, and was back at once"

    # ---------------------------------------------------------------------- what it is done with

    def broken(self, stage: Stage, what: str, since: float | None = None) -> None:
        """Write down that it breaks now, and since when an answer may be forgotten."""
        now = time.monotonic()
        if since is None:
            since = now - EVERYSEC_S if self.persistence == "everysec" else now
        stage.history.add(broke(what, since, now))

    def settle(self) -> None:
        """Wait until all is well, and let the nodes keep it: who has just been told whom to follow
        does not know it any more after a power cut, and then nobody takes over."""
        self._cluster.wait_until_whole()
        for node in self._cluster.nodes:
            node.ask("CLUSTER", "SAVECONFIG")

    def pair(self) -> Pair:
        """The master with most to lose: the queues of a run may lie on two of three."""
        master = max(self._cluster.masters(), key=lambda node: int(node.ask("DBSIZE")))
        replica = self._cluster.replica_of(master)
        assert replica is not None, f"{master.name} has no replica"
        return Pair(master, replica)

    def cut(self, node: Redis) -> None:
        """Its machine loses power. Let it stand still first: no sync succeeds during the cut."""
        disk = self._disks[node]
        disk.cut()
        node.kill()
        disk.unmount()
        disk.mount()

    def lose(self, node: Redis) -> str:
        """Its machine is lost, and with it what was on its disk; returns its name in the cluster."""
        node.kill()
        name = _own_name(self._disks[node].path / "nodes.conf")
        for entry in self._disks[node].path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        return name

    def join(self, node: Redis, lost: str, master: Redis) -> None:
        """A new machine in place of one that was lost, as the replica of this master."""
        cluster = self._cluster
        for other in cluster.running():
            other.ask("CLUSTER", "FORGET", lost)
        node.launch()
        node.wait_until_it_answers()
        node.ask("CLUSTER", "MEET", master.host, master.port)
        owner = str(master.ask("CLUSTER", "MYID"))
        own = str(node.ask("CLUSTER", "MYID"))

        def known() -> bool:
            everywhere = [str(other.ask("CLUSTER", "NODES")) for other in cluster.running()]
            return all(own in told and owner in told for told in everywhere)

        cluster.wait_until(known, f"{node.name} was known anew")
        node.ask("CLUSTER", "REPLICATE", owner)

    async def until_in_step(self, node: Redis) -> None:
        """Wait until it gets what its master does, as it does."""

        def holds() -> bool:
            role = node.ask("ROLE")
            return bool(role[0] == "slave" and role[3] == "connected")

        await asyncio.to_thread(self._cluster.wait_until, holds, f"{node.name} followed")

    async def until_master(self, node: Redis) -> None:
        """Wait until all see that it serves. A replica that was started is called master at first."""

        def holds() -> bool:
            return all(_serves(node, other) for other in self._cluster.running())

        await asyncio.to_thread(self._cluster.wait_until, holds, f"{node.name} took over")


class Everysec(DoubleFault):
    """The same where the logs are synced every second: how much that costs is counted."""

    name = "redis-double-everysec"
    persistence = "everysec"

    @staticmethod
    def why_not() -> str:
        return volumes.why_not() or tracing.why_not()

    def ways(self) -> Sequence[Callable[[Stage], Awaitable[str]]]:
        return (*super().ways(), self.kill_both_while_slow)

    async def kill_both_while_slow(self, stage: Stage) -> str:
        """While a sync takes long, Redis keeps what comes to itself: `kill -9` loses that."""
        pair = await asyncio.to_thread(self.pair)
        fault = f"delay_enter={round(SLOW_S * 1e6)}"
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as slow:
            for one in pair:
                report = Path(folder) / one.name
                injection = tracing.Injection(one.pid, tracing.SYNC, fault, report, None)
                await asyncio.to_thread(slow.enter_context, injection)
            await asyncio.sleep(stage.rng.uniform(1.0, 3.0))
            note = await self.killed(stage, pair, "both killed, slow disks")
        return f"{note}; a sync took {SLOW_S} s"


class Rejoined(DoubleFault):
    """A master and the replica that has just joined it: one is lost, and the other loses power.

    After it has got everything anew, a replica writes its log anew. Until that is done what is on its
    disk is of before it joined, although it says that it has what comes.
    """

    name = "redis-rejoined"
    # Microseconds for each key that is written anew: as if there were as many as there are elsewhere.
    more: ClassVar[Mapping[str, str]] = {"rdb-key-save-delay": "100000"}

    def ways(self) -> Sequence[Callable[[Stage], Awaitable[str]]]:
        return (self.lose_and_cut_when_rejoined,)

    async def lose_and_cut_when_rejoined(self, stage: Stage) -> str:
        first = await asyncio.to_thread(self.pair)
        await asyncio.to_thread(first.master.kill)
        await self.until_master(first.replica)
        master, replica = first.replica, first.master
        joins = time.monotonic()
        await asyncio.to_thread(replica.launch)
        await self.until_in_step(replica)
        await asyncio.sleep(stage.rng.choice((0.1, 0.3, 1.0, 2.0, 6.0)))
        writes = await asyncio.to_thread(_writes_its_log_anew, replica)
        for one in (master, replica):
            await asyncio.to_thread(stand_still, one.pid)
        state = "writing its log" if writes else "in step"
        since = joins if writes else None
        self.broken(stage, f"master lost, replica that rejoined and is {state} cut", since)
        await asyncio.to_thread(self.cut, replica)
        lost = await asyncio.to_thread(self.lose, master)
        await asyncio.to_thread(replica.launch)
        await self.until_master(replica)
        await asyncio.to_thread(self.join, master, lost, replica)
        return f"{master.name} lost while {replica.name}, {state}, lost power"


def _serves(node: Redis, other: Redis) -> bool:
    """Whether this node has slots, as the other sees it."""
    return any(int(one[2][1]) == node.port for one in other.ask("CLUSTER", "SLOTS"))


def _writes_its_log_anew(node: Redis) -> bool:
    """Whether a log is being written that is not yet the one that it would start with."""
    with node.client() as client:
        says = client.info("persistence")
    return bool(says["aof_rewrite_in_progress"] or says["aof_rewrite_scheduled"])


def _own_name(file: Path) -> str:
    """What a node of a cluster is called in it, from its file."""
    for line in file.read_text().splitlines():
        name, _, flags, *_ = line.split()
        if "myself" in flags.split(","):
            return name
    raise ValueError(f"{file} does not name its own node")
