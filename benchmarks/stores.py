"""The stores under the servers: one that exists, or private ones of a kind, started for the run.

Private ones are durable as their kind promises, and keep their files on a disk.
"""

import asyncio
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from benchmarks import process
from benchmarks.server import ServerFailedError
from nusku.storage import sqlite_path

if TYPE_CHECKING:
    from tests.servers.redis import Redis

FOLLOWS_WITHIN_S = 30.0
SLOW_SYNC = Path(__file__).with_name("slow_sync.c")
POSTGRESQL_SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "autovacuum": "on",
    "autovacuum_naptime": "60s",
    "shared_buffers": "256MB",
    "max_wal_size": "1GB",
    "max_connections": "200",
}


@dataclass(slots=True)
class Store:
    """One store that servers may be started on."""

    uri: str
    settings: dict[str, str] = field(default_factory=dict)
    """What those servers must be told besides."""
    environment: dict[str, str] = field(default_factory=dict)
    """Of those servers' processes."""
    pids: list[int] = field(default_factory=list)
    """The first process of each of its own servers; none where they are not ours."""

    def cpu_s(self) -> float:
        """CPU of its servers so far."""
        return process.cpu_s(member for pid in self.pids for member in process.family(pid))


class Stores:
    """Where the stores of a run come from. `store` is a URI, or one of KINDS.

    `settings` are for servers on one that exists.
    """

    def __init__(
        self, store: str, directory: Path, settings: Mapping[str, str] | None = None
    ) -> None:
        self.private = store in KINDS
        """Whether new ones can be had."""
        self.kind = store if self.private else urlsplit(store).scheme
        self._uri = store
        self._settings = settings or {}
        self._directory = directory
        self._started = ExitStack()
        self._count = 0

    @property
    def shared(self) -> bool:
        """Whether several servers can work on one store."""
        return self.kind != "sqlite"

    @property
    def is_postgresql(self) -> bool:
        return self.kind.startswith("postgres")

    async def new(self, kind: str = "", *, slow_ms: int = 0, pool_of: Store | None = None) -> Store:
        """Another, empty one, of this kind or another; or the only one that there is.

        With `slow_ms` every flush of its disk takes so much longer. With `pool_of` it may become
        a pool of a service that is on that store.
        """
        if not (self.private or kind):
            return Store(self._uri, dict(self._settings))
        kind = kind or self.kind
        self._count += 1
        place = self._directory
        if pool_of is not None and kind == "sqlite":
            place = sqlite_path(pool_of.uri).parent
        home = place / f"store-{self._count}"
        home.mkdir()
        # PostgreSQL does not run as root, and has to get there.
        home.chmod(0o711)
        slowness = _slowness(home, slow_ms) if slow_ms else {}
        return await asyncio.to_thread(_start, kind, home, slowness, self._started)

    def close(self) -> None:
        """End what was started."""
        self._started.close()


Environment = dict[str, str]
Start = Callable[[Path, Environment, ExitStack], Store]


def _slowness(home: Path, slow_ms: int) -> Environment:
    """The environment of a process whose flushes take longer. Raises ServerFailedError."""
    library = home / "slow_sync.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise ServerFailedError("a slow disk needs a C compiler")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O2", "-o", library, SLOW_SYNC, "-ldl"], check=True
    )
    return {"LD_PRELOAD": str(library), "SLOW_SYNC_US": str(slow_ms * 1000)}


def _start(kind: str, home: Path, slowness: Environment, started: ExitStack) -> Store:
    from tests.servers.process import DidNotStart
    from tests.servers.programs import Missing

    try:
        return KINDS[kind](home, slowness, started)
    except (Missing, DidNotStart) as error:
        raise ServerFailedError(str(error)) from None


def _sqlite(home: Path, slowness: Environment, _: ExitStack) -> Store:
    return Store(f"sqlite:///{home}/nusku.db", environment=slowness)


def _postgresql(home: Path, slowness: Environment, started: ExitStack) -> Store:
    from tests.servers.postgres import Postgres

    class Server(Postgres):
        def command(self) -> Sequence[str | Path]:
            return [*_prefix(slowness), *super().command()]

    server = started.enter_context(Server(durable=True, settings=POSTGRESQL_SETTINGS, place=home))
    return Store(server.create(), pids=[server.pid])


def _redis(home: Path, slowness: Environment, started: ExitStack) -> Store:
    server = _redis_server(home, slowness, started)
    return Store(server.uri, pids=[server.pid])


def _redis_unreliable(home: Path, slowness: Environment, started: ExitStack) -> Store:
    server = _redis_server(home, slowness, started, persistence="no")
    return Store(server.uri, {"unreliable": "true"}, pids=[server.pid])


def _redis_replica(home: Path, slowness: Environment, started: ExitStack) -> Store:
    """A server and one that follows it."""
    server, replica = (_redis_server(home, slowness, started) for _ in range(2))
    with replica.client() as client:
        client.replicaof(server.host, server.port)
        deadline = time.monotonic() + FOLLOWS_WITHIN_S
        while client.info("replication")["master_link_status"] != "up":
            if time.monotonic() > deadline:
                raise ServerFailedError("the replica does not follow")
            time.sleep(0.02)  # there is no event to wait for
    return Store(server.uri, {"redis_replicas": "1"}, pids=[server.pid, replica.pid])


def _redis_cluster(home: Path, slowness: Environment, started: ExitStack) -> Store:
    """Three masters with a replica each."""
    from tests.servers.cluster import Cluster

    cluster = Cluster(place=home)
    for node in cluster.nodes:
        node.program = _program(home, slowness, node.program)
    started.enter_context(cluster)
    pids = [node.pid for node in cluster.nodes]
    return Store(cluster.uri, {"redis_replicas": "1"}, pids=pids)


def _redis_server(
    home: Path,
    slowness: Environment,
    started: ExitStack,
    persistence: Literal["always", "no"] = "always",
) -> "Redis":
    from tests.servers.redis import Redis

    server = Redis(persistence=persistence, place=home)
    server.program = _program(home, slowness, server.program)
    return started.enter_context(server)


def _prefix(environment: Environment) -> list[str]:
    """What runs a command in more of an environment."""
    return ["/usr/bin/env", *(f"{name}={environment[name]}" for name in environment)]


def _program(home: Path, environment: Environment, program: Path) -> Path:
    """A program that runs this one in more of an environment."""
    if not environment:
        return program
    script = home / program.name
    script.write_text(f'#!/bin/sh\nexec {shlex.join([*_prefix(environment), str(program)])} "$@"\n')
    script.chmod(0o755)
    return script


KINDS: dict[str, Start] = {
    "sqlite": _sqlite,
    "postgresql": _postgresql,
    "redis": _redis,
    "redis-replica": _redis_replica,
    "redis-cluster": _redis_cluster,
    "redis-unreliable": _redis_unreliable,
}
"""The kinds of which a private one can be started."""
