"""What every scenario stands on: a server, open connections to it, and the measuring between two pings."""

import itertools
import os
import statistics
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks.generator import Connection, MakeScript, Run, Script, drive, open_connections
from benchmarks.messages import FIRST_NUMBER
from benchmarks.report import Row, row_of
from benchmarks.server import Server
from benchmarks.wire import Answer, Target, WrongAnswerError
from benchmarks.work_queue import WorkQueue, expect

T = TypeVar("T")

LONG_TTL_S = 86_400
"""For messages that must outlive any claim and any run."""
SLICES = 6
"""Parts of a timed run."""
PING_SHARE = 0.08
"""Length of one run of ping, as a part of a timed run."""
FILL_BATCH = 400
"""Messages a post while filling: some 90 KB, well below the limit of 256 KiB."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    seconds: float
    """Length of one timed run."""
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


FULL = Sizes(
    seconds=4.0,
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
)
QUICK = Sizes(
    seconds=0.8,
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
)


class Rig:
    """One server under load. `url` names a server that runs already, else one is started on `store`."""

    def __init__(
        self,
        sizes: Sizes,
        connections: int,
        directory: Path,
        store: str = "",
        url: Target | None = None,
    ):
        self.sizes = sizes
        self.errors: list[str] = []
        """Wrong answers beyond the one that ended the scenario."""
        self.server: Server | None = None
        self.connections: list[Connection] = []
        self._full: WorkQueue | None = None
        self._count = connections
        self._url = url
        self._names = itertools.count()
        self._first = FIRST_NUMBER
        if url is None:
            self.server = Server(
                store or f"sqlite:///{directory}/nusku.db", directory / "server.log"
            )

    # ---- life

    async def open(self) -> None:
        """Start the server, unless it runs already, and connect."""
        self.target = self._url or await self._started()
        self.connections = await open_connections(self.target, self._count)

    async def _started(self) -> Target:
        assert self.server is not None
        return await self.server.start()

    async def close(self) -> None:
        """Disconnect, and stop the server that was started here."""
        self.disconnect()
        if self.server is not None:
            await self.server.stop()

    def disconnect(self) -> None:
        """Cut all connections."""
        for connection in self.connections:
            connection.close()
        self.connections = []

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

    async def new_queue(self, ttl_s: int = 3600) -> WorkQueue:
        """A fresh queue; its messages carry numbers that no other queue's do."""
        name = f"bench-{os.getpid()}-{time.time_ns() // 1_000_000}-{next(self._names)}"
        queue = WorkQueue(self.target, name, first=self._first, ttl_s=ttl_s)
        self._first += 20_000_000
        await self.do(queue.create())
        return queue

    async def fill(self, queue: WorkQueue, count: int) -> None:
        """Post `count` messages, over one connection: they lie in the order of their numbers."""

        def filler(run: Run) -> Script:
            left = count
            while left > 0 and not run.over:
                batch = min(left, FILL_BATCH)
                left -= batch
                yield from queue.post(batch)

        await self.drive(filler, connections=self.connections[:1])

    async def full_queue(self) -> WorkQueue:
        """The queue with `sizes.stored` messages, filled at the first call; its users keep its size."""
        if self._full is None:
            queue = await self.new_queue(LONG_TTL_S)
            await self.fill(queue, self.sizes.stored)
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
        run, pings, cpu_s = Run(), [await self.ping_rate()], 0.0
        ratios: list[float] = []
        if self.server is not None:
            self.server.reset_peak_memory()
        for _ in range(SLICES):
            cpu_before = self.server_cpu_s()
            part = await self.drive(make_script, seconds / SLICES)
            cpu_s += self.server_cpu_s() - cpu_before
            run.add(part)
            pings.append(await self.ping_rate())
            ratios.append(part.requests / part.duration_s / statistics.mean(pings[-2:]))
            if part.duration_s < seconds / SLICES * 0.9:
                break  # it ran out of messages
        return self.row(name, run, cpu_s, pings, ratios), run

    def row(
        self, name: str, run: Run, cpu_s: float, pings: list[float], ratios: list[float]
    ) -> Row:
        """The row of a run during which the server spent `cpu_s`."""
        row = row_of(name, run)
        row.pings, row.ratios = pings, ratios
        if self.server is not None:
            row.server_cpu_us = cpu_s / max(run.requests, 1) * 1e6
            row.server_peak_mib = self.server.peak_memory_mib()
        return row

    def server_cpu_s(self) -> float:
        """CPU seconds of the server so far; 0 where its process is not ours."""
        return self.server.cpu_s() if self.server is not None else 0.0
