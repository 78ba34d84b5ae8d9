"""A Redis Cluster: three masters, each with a replica, as six processes."""

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from redis.exceptions import RedisError

from tests.servers.process import START_S, DidNotStart
from tests.servers.redis import Persistence, Redis

SLOTS = 16384
MASTERS = 3


class Cluster:
    """Six nodes; ``nodes[:3]`` start as the masters, and ``nodes[n + 3]`` as the replica of n.

    Which is which after a failover, :meth:`masters` and :meth:`replica_of` say.
    """

    def __init__(
        self,
        *,
        persistence: Persistence = "always",
        settings: Mapping[str, str] | None = None,
        node_timeout_ms: int = 2000,
        place: Path | None = None,
    ) -> None:
        told = {
            "cluster-enabled": "yes",
            "cluster-config-file": "nodes.conf",
            "cluster-node-timeout": str(node_timeout_ms),
            "cluster-replica-validity-factor": "0",
            **(settings or {}),
        }
        self.nodes = [
            Redis(persistence=persistence, settings=told, place=place, name=f"node{n}")
            for n in range(2 * MASTERS)
        ]

    @property
    def uri(self) -> str:
        return "redis+cluster://" + ",".join(f"{node.host}:{node.port}" for node in self.nodes)

    def start(self) -> Self:
        """Start six new nodes and make them a cluster."""
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            try:
                node.wait_until_it_answers()
            except DidNotStart:
                node.start()  # which takes another port where somebody has taken that
        self._join()
        return self

    def _join(self) -> None:
        share = -(-SLOTS // MASTERS)
        first, *others = self.nodes
        for number, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < MASTERS:
                slots = range(number * share, min((number + 1) * share, SLOTS))
                node.ask("CLUSTER", "ADDSLOTS", *slots)
        for node in others:
            first.ask("CLUSTER", "MEET", node.host, node.port)
        self.wait_until(self._everybody_is_known, "all nodes know one another")
        for master, replica in zip(self.nodes[:MASTERS], self.nodes[MASTERS:], strict=True):
            replica.ask("CLUSTER", "REPLICATE", master.ask("CLUSTER", "MYID"))
        self.wait_until_whole()

    def wait_until(self, holds: Callable[[], bool], what: str) -> None:
        """Look until it holds; what a node does not answer counts as no."""
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(RedisError, OSError):
                if holds():
                    return
            if time.monotonic() > deadline:
                raise DidNotStart(f"in vain waited until {what}: {self._views()}")
            time.sleep(0.02)  # there is no event to wait for

    def _views(self) -> str:
        """How the nodes see their cluster."""
        views = []
        for node in self.running():
            with contextlib.suppress(RedisError, OSError):
                views.append(str(node.ask("CLUSTER", "NODES")))
        return "\n".join(views)

    def _everybody_is_known(self) -> bool:
        return all(
            int(_says(node)["cluster_known_nodes"]) == len(self.nodes) for node in self.nodes
        )

    def running(self) -> list[Redis]:
        return [node for node in self.nodes if node.running]

    def wait_until_whole(self) -> None:
        """Wait until all nodes that run see all slots served, and their replicas are in step."""
        self.wait_until(self._is_whole, "the cluster was whole")

    def _is_whole(self) -> bool:
        roles = [node.ask("ROLE") for node in self.running()]
        return (
            all(_says(node)["cluster_state"] == "ok" for node in self.running())
            and all(role[3] == "connected" for role in roles if role[0] == "slave")
            and sum(role[0] == "master" for role in roles) == MASTERS
        )

    def masters(self) -> list[Redis]:
        """Those that run and hold slots, by what they say of themselves."""
        return [node for node, role in self._roles() if role[0] == "master"]

    def replica_of(self, master: Redis) -> Redis | None:
        """A node that runs and follows this one, which need not run."""
        for node, role in self._roles():
            if role[0] == "slave" and int(role[2]) == master.port:
                return node
        return None

    def _roles(self) -> list[tuple[Redis, list[str]]]:
        """What each node that answers says it is."""
        found = []
        for node in self.running():
            with contextlib.suppress(RedisError, OSError):
                found.append((node, node.ask("ROLE")))
        return found

    def failover(self, master: Redis) -> Redis:
        """Let the replica of a master that runs take its place, without a loss; return it."""
        replica = self.replica_of(master)
        assert replica is not None, "it has no replica"
        replica.ask("CLUSTER", "FAILOVER")
        self.wait_until(lambda: replica in self.masters(), "its replica was the master")
        return replica

    def flush(self) -> None:
        """Forget everything."""
        for node in self.masters():
            node.flush()

    def remove(self) -> None:
        """End all nodes and remove their files."""
        for node in self.nodes:
            node.remove()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.remove()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


def _says(node: Redis) -> dict[str, str]:
    """What a node says of the cluster."""
    return dict(line.split(":", 1) for line in node.ask("CLUSTER", "INFO").split())
