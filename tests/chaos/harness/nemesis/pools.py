"""F-31: queues are spread over pools, of which one dies, or is drained while its queues are used."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tests.chaos.harness.client import Connection, NotSentError, UnknownError
from tests.chaos.harness.generator import PROFILES, Cast
from tests.chaos.harness.history import EVENTS, INFO, OK, Op
from tests.chaos.harness.nemesis.base import Nemesis
from tests.chaos.harness.places import STORES, OnPostgres, OnRedis, Place, embedded
from tests.chaos.harness.stage import Plan, Stage
from tests.servers.postgres import Postgres
from tests.servers.redis import Redis

AWAY_S = 3.0  # that a pool is dead
PATIENCE_S = 60.0  # with a request of an operator, which is repeated
WEIGHT = 100
SETTLED_S = 0.2  # after which an answer was not on its way before


class Pooled(Place):
    """A service's own store and the stores of its pools."""

    apart = True

    def __init__(self, own: Place, pools: Mapping[str, Place]) -> None:
        super().__init__(own.uri)
        self.own = own
        self.pools = pools
        self.settings |= own.settings

    def busy(self) -> int:
        return self.own.busy() + sum(pool.busy() for pool in self.pools.values())


class Operator:
    """Asks for what operators ask for, until it is granted."""

    def __init__(self, stage: Stage) -> None:
        self._way = stage.way("operator")
        self._connection = Connection(self._way, PATIENCE_S)

    async def ask(self, method: str, path: str, body: object = None, project: str = "-") -> Any:
        """The JSON of a 2xx answer; repeats what was answered with 5xx or not at all."""
        headers = {"Client-ID": str(uuid.uuid4()), "X-Project-ID": project, "X-Roles": "admin"}
        encoded = None if body is None else json.dumps(body).encode()
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                reply = await self._connection.request(method, path, headers, encoded)
                if reply.status < 300:
                    return json.loads(reply.body) if reply.body else None
                said = f"{reply.status} {reply.body[:500]!r}"
                if reply.status < 500:
                    end = 0.0
            except (NotSentError, UnknownError) as error:
                said = str(error)
                self._way.leave()
            if time.monotonic() > end:
                raise ValueError(f"{method} {path}: {said}")
            await asyncio.sleep(0.2)

    async def add_pools(self, pools: Mapping[str, Place]) -> None:
        for name, pool in pools.items():
            # None has a replica, although the service's own store may.
            body = {"uri": pool.uri, "weight": WEIGHT, "options": {"redis_replicas": 0}}
            await self.ask("PUT", f"/v2/pools/{name}", body)

    def close(self) -> None:
        self._connection.close()


class PoolNemesis(Nemesis):
    """Two pools beside the service's own store: a PostgreSQL server and a Redis."""

    stores: ClassVar[Collection[str]] = STORES[1:]
    servers: Mapping[str, Postgres | Redis]
    on: Pooled

    @contextlib.contextmanager
    def store(self, folder: Path, plan: Plan) -> Iterator[Place]:
        with (
            super().store(folder, plan) as own,
            Postgres(durable=True) as postgres,
            Redis() as redis,
        ):
            self.servers = {"a": postgres, "b": redis}
            pools = {"a": OnPostgres(postgres, postgres.create()), "b": OnRedis(redis, redis.uri)}
            self.on = Pooled(own, pools)
            yield self.on


class PoolKill(PoolNemesis):
    """A pool dies with `kill -9`, and comes back.

    A flavor for each pool says which queue is where. Those of the dead one answer 503, as they are
    nowhere else; nobody else notices.
    """

    name = "pool-kill"
    most_unknown = 0.5

    async def begin(self, stage: Stage) -> None:
        operator = Operator(stage)
        await operator.add_pools(self.on.pools)
        cast = Cast(PROFILES[stage.plan.profile], stage.plan.seed)
        queues = cast.work + cast.pop
        projects = sorted({q.partition("/")[0] for q in queues})
        for name in self.on.pools:
            for project in projects:
                body = {"pool_list": [name]}
                await operator.ask("PUT", f"/v2/flavors/in-{name}", body, project)
        self._queues: dict[str, list[str]] = {name: [] for name in self.on.pools}
        for number, q in enumerate(queues):
            pool = [*self.on.pools, None][number % (len(self.on.pools) + 1)]
            if pool is None:
                continue  # the service's own store
            self._queues[pool].append(q)
            project, _, queue = q.partition("/")
            metadata = {"_flavor": f"in-{pool}"}
            await operator.ask("PUT", f"/v2/queues/{queue}", metadata, project)
        operator.close()

    async def strike(self, stage: Stage) -> str:
        name = sorted(self.on.pools)[stage.strikes % len(self.on.pools)]
        server = self.servers[name]
        await asyncio.to_thread(server.kill)
        begin = time.monotonic() + SETTLED_S
        await asyncio.sleep(AWAY_S)
        end = time.monotonic()
        await asyncio.to_thread(server.start)
        await asyncio.sleep(SETTLED_S)
        during = _between(stage.history.ops, begin, end)
        its = [op for op in during if op.q in self._queues[name]]
        others = [op for op in during if op.q not in self._queues[name]]
        stage.complaints += _wrong(name, its, others)
        return f"pool {name} dead: {len(its)} requests for it, {len(others)} for others"


def _wrong(name: str, its: Sequence[Op], others: Sequence[Op]) -> Iterator[str]:
    """What was answered otherwise than with 503 by a dead pool, or with 503 by another."""
    if not its:
        yield f"nobody asked for queues in the dead pool {name}"
    for op in its:
        if op.out == OK or op.status == 404:
            yield f"the pool {name} is dead, and a {op.f} was answered: {op}"
            break
    disturbed = [op for op in others if op.out == INFO]
    if len(disturbed) > len(others) / 100:
        yield (
            f"while the pool {name} was dead, {len(disturbed)} of {len(others)} requests"
            f" for others had no answer: {disturbed[0]}"
        )


class PoolDrain(PoolNemesis):
    """A pool is drained while its queues are used; then the other one, back again.

    Every second time the node that does it is killed meanwhile, and another one goes on.
    """

    name = "pool-drain"
    stores = STORES

    @contextlib.contextmanager
    def store(self, folder: Path, plan: Plan) -> Iterator[Place]:
        """On SQLite the pools are files, too."""
        if plan.store == "sqlite":
            with self.place(folder) as data:
                for name in ("a", "b"):
                    (data / name).mkdir()
                pools = {name: embedded(data / name) for name in ("a", "b")}
                self.on = Pooled(embedded(data), pools)
                yield self.on
        else:
            with super().store(folder, plan) as on:
                yield on

    async def begin(self, stage: Stage) -> None:
        operator = Operator(stage)
        await operator.add_pools(self.on.pools)
        operator.close()

    async def strike(self, stage: Stage) -> str:
        operator = Operator(stage)
        name = sorted(self.on.pools)[stage.strikes % len(self.on.pools)]
        begin = time.monotonic()
        disturb = asyncio.create_task(self._disturb(stage)) if stage.strikes % 4 > 1 else None
        queues = messages = 0
        while True:
            step = await operator.ask("POST", f"/v2/pools/{name}/drain", {})
            queues += step["moved_queues"]
            messages += step["moved_messages"]
            if not (step["queues_left"] or step["messages_left"]):
                break
            if time.monotonic() > begin + PATIENCE_S:
                stage.complaints.append(f"the pool {name} cannot be drained: {step}")
                break
        end = time.monotonic()
        if disturb is not None:
            await disturb
        else:
            during = _between(stage.history.ops, begin, end)
            unanswered = [op for op in during if op.out == INFO]
            if len(unanswered) > max(2, len(during) / 100):
                stage.complaints.append(
                    f"while {name} was drained, {len(unanswered)} of {len(during)} requests had"
                    f" no answer: {unanswered[0]}"
                )
        await operator.ask("PATCH", f"/v2/pools/{name}", {"weight": WEIGHT})
        operator.close()
        took = end - begin
        killed = ", a node was killed meanwhile" if disturb else ""
        return f"{queues} queues, {messages} messages out of {name} in {took:.1f} s{killed}"

    async def _disturb(self, stage: Stage) -> None:
        """Kill a node soon, and start it again."""
        for node in stage.nodes:
            await asyncio.sleep(stage.rng.uniform(0.0, 0.3))
            await stage.kill(node)
            await stage.start(node)


def _between(ops: Sequence[Op], begin: float, end: float) -> list[Op]:
    return [op for op in ops if op.f not in EVENTS and begin < op.t0 and op.t1 < end]
