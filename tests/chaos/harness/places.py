"""Where a run keeps its messages: an SQLite file, or servers started for the run."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tests.servers.cluster import Cluster
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import Postgres
from tests.servers.redis import Redis
from tests.servers.sentinel import Sentinels

if TYPE_CHECKING:
    from tests.chaos.harness.stage import Plan

STORES = ("sqlite", "postgresql", "redis", "redis-cluster")
TIMEOUT = {"NUSKU_STORE_TIMEOUT": "3"}
"""Of shared stores; well below what a client waits."""
STILL_S = 20.0  # until a store has done all that was asked of it


class Place:
    """What nodes are told of their store. A subclass knows its servers."""

    reads_ahead: ClassVar[bool] = False  # it shows what it may still lose
    apart: ClassVar[bool] = False  # it cannot move a message between two queues in one step

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.settings: dict[str, str] = {}  # NUSKU_*

    async def still(self) -> None:
        """Return when nothing that nodes asked for, who have all ended, can happen any more."""
        end = time.monotonic() + STILL_S
        while left := await asyncio.to_thread(self.busy):
            if time.monotonic() > end:
                raise TimeoutError(f"the store is still at work for nodes that are gone: {left}")
            await asyncio.sleep(0.05)

    def busy(self) -> int:
        """How many connections of nodes the servers still serve."""
        return 0


class OnPostgres(Place):
    """One server that keeps what it has acknowledged when it is killed."""

    def __init__(self, server: Postgres, uri: str) -> None:
        super().__init__(uri)
        self.server = server
        self.settings |= TIMEOUT

    def busy(self) -> int:
        return backends(self.server)


class OnBouncer(OnPostgres):
    """One server behind PgBouncer, in transaction mode; what tells of posts goes round it."""

    def __init__(self, server: Postgres, bouncer: PgBouncer, uri: str) -> None:
        super().__init__(server, bouncer.uri(uri.rpartition("/")[2]))
        self.bouncer = bouncer
        self.settings["NUSKU_LISTEN_STORE"] = uri

    def busy(self) -> int:
        # Its own connections stay.
        return backends(self.server, "count(*) FILTER (WHERE state <> 'idle')")


def backends(server: Postgres, what: str = "count(*)") -> int:
    """Something about the backends that serve nodes."""
    (row,) = server.execute(
        f"SELECT {what} FROM pg_stat_activity WHERE backend_type = 'client backend'"
        " AND datname LIKE 'store%'"
    )
    return int(row[0])


class OnRedis(Place):
    """One server, with AOF at each command: safe against a crash."""

    def __init__(self, server: Redis, uri: str) -> None:
        super().__init__(uri)
        self.server = server
        self.settings |= TIMEOUT

    def busy(self) -> int:
        return clients(self.server)


class OnSentinels(Place):
    """A master and its replica, and three that watch them."""

    reads_ahead = True

    def __init__(self, sentinels: Sentinels, *, safe: bool = True) -> None:
        super().__init__(sentinels.uri)
        self.sentinels = sentinels
        self.settings |= TIMEOUT | _mode(safe=safe)

    def busy(self) -> int:
        return sum(clients(node) for node in self.sentinels.nodes if node.running)


class OnCluster(Place):
    """Three masters with a replica each."""

    reads_ahead = True
    apart = True

    def __init__(self, cluster: Cluster, uri: str, *, safe: bool = True) -> None:
        super().__init__(uri)
        self.cluster = cluster
        self.settings |= TIMEOUT | _mode(safe=safe)

    def busy(self) -> int:
        return sum(map(clients, self.cluster.running()))


def _mode(*, safe: bool) -> dict[str, str]:
    """With a replica of each master to wait for, or not."""
    return {"NUSKU_REDIS_REPLICAS": "1"} if safe else {"NUSKU_UNRELIABLE": "true"}


def clients(server: Redis) -> int:
    """How many connections nodes have to it."""
    with server.client() as client:
        mine = client.client_id()
        listed = client.client_list()
    return sum(
        1
        for one in listed
        if int(one["id"]) != int(mine)
        and not set(one["flags"]) & {"M", "S"}  # replication
        and not one["name"].startswith("sentinel-")
    )


def embedded(data: Path) -> Place:
    """An SQLite file in this folder."""
    return Place(f"sqlite:///{(data / 'nusku.db').absolute()}")


@contextlib.contextmanager
def postgresql(plan: Plan) -> Iterator[OnPostgres]:
    with Postgres(durable=True) as server:
        yield OnPostgres(server, server.create())


@contextlib.contextmanager
def redis(plan: Plan) -> Iterator[OnRedis]:
    with Redis() as server:
        yield OnRedis(server, server.uri)


@contextlib.contextmanager
def redis_cluster(plan: Plan) -> Iterator[OnCluster]:
    with Cluster() as cluster:
        yield OnCluster(cluster, cluster.uri, safe=plan.safe)


PLACES: Mapping[str, Callable[[Plan], contextlib.AbstractContextManager[Place]]] = {
    "postgresql": postgresql,
    "redis": redis,
    "redis-cluster": redis_cluster,
}
