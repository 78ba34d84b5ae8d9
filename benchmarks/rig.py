"""What every scenario stands on: a server, open connections to it, and the measuring between two pings."""

import asyncio
import itertools
import os
import statistics
import time
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from benchmarks.generator import (
    Connection,
    MakeScript,
    Run,
    Script,
    drive,
    observed,
    open_connections,
)
from benchmarks.messages import FIRST_NUMBER
from benchmarks.report import Row, row_of
from benchmarks.server import Server
from benchmarks.stores import Store, Stores
from benchmarks.wire import Answer, Target, WrongAnswerError
from benchmarks.work_queue import WorkQueue, expect

T = TypeVar("T")

LONG_TTL_S = 86_400
"""For messages that must outlive any claim and any run."""
SLICES = 6
"""Parts of a timed run."""
PING_SHARE = 0.08
"""Length of one run of ping, as a part of a timed run."""
QUEUE_NUMBERS = 20_000_000
"""Numbers that one queue may use, unless told otherwise."""
LAST_NUMBER = 1_000_000_000
FILL_BATCH = 400
"""Messages a post while filling: some 90 KB, well below the limit of 256 KiB."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    seconds: float
    """Length of one timed run."""
    turns: int
    """Slices of a timed run where several set-ups are compared."""
    in_flight: tuple[int, ...]
    claim_samples: int
    waiters: int
    wake_ups: int
    idle_s: float
    stored: int
    notifications: int
    """Deliveries that wait before the clock runs."""
    subscribers: tuple[int, ...]
    """Of one queue; 0 is measured as well."""
    gentle_posts: int
    """By one client, one after the other, for each number of subscribers."""
    hanging: int
    """Endpoints that never answer."""
    workers: tuple[int, ...]
    """Processes of one server; the first is what the others are compared with."""
    queues: tuple[int, ...]
    """Under one load, as before."""
    churned: int
    """Messages that pass through one queue."""
    kills: int
    """Of one of three nodes."""


FULL = Sizes(
    seconds=4.0,
    turns=8,
    in_flight=(100_000, 1_000_000),
    claim_samples=800,
    waiters=1_000,
    wake_ups=1_000,
    idle_s=5.0,
    stored=1_000_000,
    notifications=10_000,
    subscribers=(1, 10, 100),
    gentle_posts=200,
    hanging=1_000,
    workers=(1, 2, 4),
    queues=(1, 10, 1_000),
    churned=300_000,
    kills=20,
)
QUICK = Sizes(
    seconds=0.8,
    turns=4,
    in_flight=(2_000, 20_000),
    claim_samples=100,
    waiters=100,
    wake_ups=200,
    idle_s=1.0,
    stored=20_000,
    notifications=2_000,
    subscribers=(1, 10),
    gentle_posts=40,
    hanging=100,
    workers=(1, 2),
    queues=(1, 10, 100),
    churned=20_000,
    kills=3,
)


_names = itertools.count()


class Rig:
    """A server under load, or several on one store.

    They are started on `store` with further `settings`; `url` names one that runs already.
    """

    def __init__(
        self,
        sizes: Sizes,
        connections: int,
        directory: Path,
        stores: Stores,
        store: Store | None = None,
        *,
        url: Target | None = None,
        nodes: int = 1,
        settings: Mapping[str, str] | None = None,
        token: str = "",
        zaqar: Target | None = None,
    ):
        self.sizes = sizes
        self.errors: list[str] = []
        """Wrong answers beyond the one that ended the scenario."""
        self.stores = stores
        self.store = store
        self.pools: list[Store] = []
        """Further stores that the servers use."""
        self.zaqar = zaqar
        """A Zaqar to compare with."""
        self.servers: list[Server] = []
        self.targets: list[Target] = []
        self.connections: list[Connection] = []
        """To the servers in turns."""
        self._directory = directory
        self._full: WorkQueue | None = None
        self._count = connections
        self._url = url
        self._token = token
        self._first = FIRST_NUMBER
        if store is not None:
            for _ in range(nodes):
                self.servers.append(
                    Server(
                        store.uri,
                        directory / f"server-{next(_names)}.log",
                        {**store.settings, **(settings or {})},
                        store.environment,
                    )
                )

    @property
    def server(self) -> Server | None:
        """The (first) server; None where it is not ours."""
        return self.servers[0] if self.servers else None

    @property
    def target(self) -> Target:
        """Where the (first) server is."""
        return self.targets[0]

    # ---- life

    async def open(self) -> None:
        """Start the servers, unless one runs already, and connect."""
        if self._url is not None:
            self.targets = [await observed(self._url)]
        else:
            targets = await asyncio.gather(*(server.start() for server in self.servers))
            self.targets = [replace(target, token=self._token) for target in targets]
        await self.connect()

    async def connect(self) -> None:
        """Open the connections."""
        self.connections = await open_connections(self.targets, self._count)

    async def close(self) -> None:
        """Disconnect, and stop the servers that were started here."""
        self.disconnect()
        await asyncio.gather(*(server.stop() for server in self.servers))

    async def kill(self) -> None:
        """The same without ceremony, in whatever state this is."""
        self.disconnect()
        await asyncio.gather(*(server.kill() for server in self.servers))

    def disconnect(self) -> None:
        """Cut all connections."""
        for connection in self.connections:
            connection.close()
        self.connections = []

    @asynccontextmanager
    async def another(
        self,
        store: Store | None = None,
        *,
        url: Target | None = None,
        nodes: int = 1,
        settings: Mapping[str, str] | None = None,
        token: str = "",
        connections: int | None = None,
    ) -> "AsyncIterator[Rig]":
        """A rig beside this one: other servers on this store or another, by default with as many
        connections.
        """
        if url is None:
            store = store or self.store
        rig = Rig(
            self.sizes, connections or self._count, self._directory, self.stores, store,
            url=url, nodes=nodes, settings=settings, token=token,
        )  # fmt: skip
        rig.errors = self.errors
        try:
            await rig.open()
            yield rig
            await rig.close()
        finally:
            await rig.kill()

    # ---- single requests

    async def do(self, step: Generator[bytes, Answer, T]) -> T:
        """One operation of a queue outside a timed run, on the first connection."""
        request = next(step)
        while True:
            answer = await self.connections[0].ask(request)
            try:
                request = step.send(answer)
            except StopIteration as end:
                result: T = end.value
                return result

    async def new_queue(
        self, ttl_s: int = 3600, *, room: int = QUEUE_NUMBERS, metadata: bytes = b"{}"
    ) -> WorkQueue:
        """A fresh queue; its messages carry up to `room` numbers that no other queue's do."""
        name = f"bench-{os.getpid()}-{time.time_ns() // 1_000_000}-{next(_names)}"
        if self._first + room > LAST_NUMBER:
            self._first = FIRST_NUMBER  # those queues are long gone
        queue = WorkQueue(self.target, name, first=self._first, ttl_s=ttl_s)
        self._first += room
        await self.do(queue.create(metadata))
        return queue

    async def fill(self, queues: Sequence[WorkQueue], count: int) -> None:
        """Post `count` messages to each, by one connection: they lie in the order of their numbers."""
        waiting = iter(queues)

        def filler(run: Run) -> Script:
            for queue in waiting:
                left = count
                while left > 0 and not run.over:
                    batch = min(left, FILL_BATCH)
                    left -= batch
                    yield from queue.post(batch)

        await self.drive(filler, connections=self.connections[: len(queues)])

    async def full_queue(self) -> WorkQueue:
        """The queue with `sizes.stored` messages, filled at the first call; its users keep its size."""
        if self._full is None:
            queue = await self.new_queue(LONG_TTL_S)
            await self.fill([queue], self.sizes.stored)
            await self.check_counts(queue, claimed=0)
            self._full = queue
        return self._full

    async def check_counts(self, queue: WorkQueue, *, claimed: int) -> None:
        """The queue's stats must say that nothing is lost and that `claimed` are under claims."""
        total = queue.ledger.posted - queue.ledger.deleted
        counts = await self.do(queue.counts())
        if (counts.total, counts.claimed, counts.free) != (total, claimed, total - claimed):
            raise WrongAnswerError(
                f"stats: {counts}, but there are {total}, of them {claimed} claimed"
            )

    # ---- timed runs

    async def drive(
        self,
        make_script: MakeScript,
        seconds: float | None = None,
        connections: list[Connection] | None = None,
    ) -> Run:
        """A run on all connections (or on these); raises the first of its wrong answers."""
        run = await drive(
            self.connections if connections is None else connections, make_script, seconds
        )
        if run.errors:
            self.errors += run.errors[1:]
            raise WrongAnswerError(run.errors[0])
        return run

    async def ping_rate(self) -> float:
        """`GET /v2/ping` requests/s over all connections."""
        run = await self.drive(self.ping_script, self.sizes.seconds * PING_SHARE)
        return run.requests / run.duration_s

    def ping_script(self, run: Run) -> Script:
        """Ping until the run is over."""
        request = self.target.request("GET", "/v2/ping")
        while not run.over:
            started = time.perf_counter()
            status, body = yield request
            expect(status, 204, "ping", body)
            run.done(started)

    async def measure(self, name: str, make_script: MakeScript, seconds: float) -> tuple[Row, Run]:
        """A timed run in slices with ping between them, and what it cost the server.

        The machine's speed changes within seconds; a slice and the pings around it share it.
        """
        run, pings, cpu_s, store_cpu_s = Run(), [await self.ping_rate()], 0.0, 0.0
        ratios: list[float] = []
        for server in self.servers:
            server.reset_peak_memory()
        for _ in range(SLICES):
            cpu_before, store_cpu_before = self.server_cpu_s(), self.store_cpu_s()
            part = await self.drive(make_script, seconds / SLICES)
            cpu_s += self.server_cpu_s() - cpu_before
            store_cpu_s += self.store_cpu_s() - store_cpu_before
            run.add(part)
            pings.append(await self.ping_rate())
            ratios.append(part.requests / part.duration_s / statistics.mean(pings[-2:]))
            if part.duration_s < seconds / SLICES * 0.9:
                break  # it ran out of messages
        return self.row(name, run, cpu_s, pings, ratios, store_cpu_s), run

    def row(
        self,
        name: str,
        run: Run,
        cpu_s: float,
        pings: list[float],
        ratios: list[float],
        store_cpu_s: float | None = None,
    ) -> Row:
        """The row of a run during which the servers spent `cpu_s`, and the store's `store_cpu_s`."""
        row = row_of(name, run)
        row.pings, row.ratios = pings, ratios
        requests = max(run.requests, 1)
        if self.servers:
            row.server_cpu_us = cpu_s / requests * 1e6
            row.server_peak_mib = sum(server.peak_memory_mib() for server in self.servers)
        if store_cpu_s is not None and self.store is not None and self.store.pids:
            row.store_cpu_us = store_cpu_s / requests * 1e6
        return row

    def server_cpu_s(self) -> float:
        """CPU seconds of the servers so far; 0 where their processes are not ours."""
        return sum(server.cpu_s() for server in self.servers)

    def store_cpu_s(self) -> float:
        """CPU seconds of the stores' own servers so far; 0 where there are none of ours."""
        return sum(store.cpu_s() for store in (self.store, *self.pools) if store is not None)
