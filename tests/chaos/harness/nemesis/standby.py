"""F-13 to F-16: a primary and its synchronous standby, and all that goes wrong between them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.harness.history import OK, Op
from tests.chaos.harness.nemesis.base import Nemesis
from tests.chaos.harness.places import TIMEOUT, Place, backends
from tests.chaos.harness.proxies import Proxy, Switchboard
from tests.chaos.harness.stage import Plan, Stage
from tests.servers.postgres import USER, Postgres
from tests.servers.standby import PrimaryAndStandby

ENDED = {"cancel": "pg_cancel_backend", "terminate": "pg_terminate_backend"}
WAITERS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE wait_event = 'SyncRep' AND backend_type = 'client backend'
"""
END_WAITERS = """
    SELECT count({function}(pid)) FROM pg_stat_activity
    WHERE wait_event = 'SyncRep' AND backend_type = 'client backend'
"""
WAITS_S = 4.0  # longer than a node waits for its store
KEPT = frozenset({"post", "renew", "bulk"})
"""Operations whose success means that something was written."""


class Pair(Place):
    """Both behind proxies, whose addresses stay while servers take each other's places."""

    def __init__(self, pair: PrimaryAndStandby, switchboard: Switchboard, *, safe: bool) -> None:
        self.pair = pair
        self._ways = {
            server: switchboard.open((server.host, server.port))
            for server in (pair.primary, pair.standby)
        }
        self.replication = switchboard.open((pair.primary.host, pair.primary.port))
        pair.upstream = self.replication.address
        pair.heal()
        pair.wait_for_standby()
        if not safe:
            pair.primary.configure(synchronous_standby_names="")
        database = pair.primary.create().rpartition("/")[2]
        hosts = ",".join(f"127.0.0.1:{way.port}" for way in self._ways.values())
        uri = f"postgresql://{USER}@{hosts}/{database}?target_session_attrs=read-write"
        super().__init__(uri)
        self.settings |= TIMEOUT | {"NUSKU_SYNCHRONOUS_STANDBY": "true" if safe else "false"}

    def busy(self) -> int:
        return backends(self.pair.primary)

    def way_to(self, server: Postgres) -> Proxy:
        """How nodes reach this server."""
        return self._ways[server]

    def promote(self) -> Postgres:
        """The primary is dead: its standby becomes primary; return the old one, as it is."""
        self.pair.promote()
        self.replication.target = (self.pair.primary.host, self.pair.primary.port)
        return self.pair.standby

    def new_standby(self) -> None:
        """Another server, not yet reachable for nodes, follows the primary."""
        self.pair.standby = Postgres(durable=True, settings=self.pair.primary.settings)
        self.pair.rejoin()

    def replace(self, old: Postgres) -> None:
        """The standby takes the place of a server that is no longer needed."""
        way = self._ways.pop(old)
        old.remove()
        way.target = (self.pair.standby.host, self.pair.standby.port)
        way.cut()
        self._ways[self.pair.standby] = way


class StandbyNemesis(Nemesis):
    """Knows the two servers of the run."""

    stores = ("postgresql",)
    most_unknown = 0.6  # while there is no standby every write is
    on: Pair

    @contextlib.contextmanager
    def store(self, folder: Path, plan: Plan) -> Iterator[Place]:
        # What the server says of commits must not matter: nodes ask for what they need.
        with (
            PrimaryAndStandby(synchronous_commit="local") as pair,
            Switchboard(plan.seed) as switchboard,
        ):
            self.on = Pair(pair, switchboard, safe=plan.safe)
            yield self.on

    async def fail_over(self, stage: Stage) -> str:
        """The primary is killed with replication held back, its standby promoted; it returns.

        It comes back as it was, still believing to be the primary, beside the new one. Nodes, one
        of them new, must not believe it, not even while it is the only one that they can reach.
        """
        on = self.on
        blocked = stage.rng.choice((0.0, 0.5, 1.5)) if stage.plan.safe else 1.5
        if blocked:
            on.replication.hold()
            await asyncio.sleep(blocked)
        await asyncio.to_thread(on.pair.primary.kill)
        on.replication.drop()
        old = await asyncio.to_thread(on.promote)
        way = on.way_to(old)
        before = way.passed
        await asyncio.to_thread(old.start)
        await asyncio.to_thread(on.new_standby)
        node = stage.nodes[stage.strikes % len(stage.nodes)]
        await stage.kill(node)
        await stage.start(node)
        await asyncio.sleep(1.0)  # all have met the new one
        on.way_to(on.pair.primary).refuse()
        await asyncio.sleep(1.0)
        on.way_to(on.pair.primary).accept()
        await asyncio.sleep(0.5)
        asked = way.passed - before
        await asyncio.to_thread(on.replace, old)
        if stage.plan.safe and not asked:
            stage.complaints.append("nobody tried the old primary: nothing was fenced")
        return f"blocked for {blocked} s, failed over; {asked} connections to the old primary"

    async def wait(self, stage: Stage, way: str) -> str:
        """Commits wait for a standby that does not answer, or is gone; waits are ended.

        Nothing that was sent meanwhile may be answered with success, and reads go on.
        """
        pair = self.on.pair
        if way == "gone":
            await asyncio.to_thread(pair.standby.kill)
        else:
            self.on.replication.hold()
        await _until_some_wait(pair.primary)
        begin = time.monotonic()
        ended = 0
        while time.monotonic() < begin + WAITS_S:
            if function := ENDED.get(way):
                statement = END_WAITERS.format(function=function)
                ended += (await asyncio.to_thread(pair.primary.execute, statement))[0][0]
            await asyncio.sleep(0.05)
        end = time.monotonic()
        if way == "gone":
            await asyncio.to_thread(pair.standby.start)
        else:
            self.on.replication.flow()
        await asyncio.to_thread(pair.wait_for_standby)
        await asyncio.sleep(0.1)
        during = [op for op in stage.history.ops if op.t0 > begin and op.t1 < end]
        for op in during:
            if op.out == OK and _kept(op):
                stage.complaints.append(f"{way}: a {op.f} succeeded without a standby: {op}")
                break
        reads = sum(op.out == OK and op.f in {"list", "get", "stats"} for op in during)
        if not reads:
            stage.complaints.append(f"{way}: nothing could be read without a standby")
        what = "the standby was gone" if way == "gone" else f"{ended} waits ended by {way}"
        return f"{what}; {reads} reads" if ended or way == "gone" else ""


class Failover(StandbyNemesis):
    """The standby takes over, and the old primary returns."""

    name = "pg-failover"

    async def strike(self, stage: Stage) -> str:
        return await self.fail_over(stage)


class Waits(StandbyNemesis):
    """Commits have nobody to wait for."""

    name = "pg-waits"

    def __init__(self) -> None:
        self._ways = itertools.cycle((*ENDED, "gone"))

    async def strike(self, stage: Stage) -> str:
        return await self.wait(stage, next(self._ways))


class StandbyAll(Waits):
    """Both in turn."""

    name = "pg-standby"

    async def strike(self, stage: Stage) -> str:
        turn = stage.strikes % (len(ENDED) + 2)
        return await (self.fail_over(stage) if turn == 1 else super().strike(stage))


async def _until_some_wait(primary: Postgres) -> None:
    """Return once commits wait for the standby."""
    end = time.monotonic() + 5
    while not (await asyncio.to_thread(primary.execute, WAITERS))[0][0]:
        if time.monotonic() > end:
            raise TimeoutError("no commit waits for the standby")
        await asyncio.sleep(0.01)


def _kept(op: Op) -> bool:
    return op.f in KEPT or (op.f in {"claim", "pop"} and bool(op.got))
