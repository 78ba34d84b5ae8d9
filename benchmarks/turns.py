"""Several set-ups under the same load in turns, so that they share the machine's moods: their ratios."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.generator import Run
from benchmarks.loads import Load
from benchmarks.report import Row
from benchmarks.rig import Sizes

WARM_RATE = 2000
"""Messages/s that may be taken in the warm-up."""


class Contender(Protocol):
    """One of those that are compared."""

    rates: list[float]
    """Messages/s of each slice."""

    async def slice(self, seconds: float) -> None:
        """Run once."""

    def reset(self) -> None:
        """Forget what was measured: that was the warm-up."""

    async def finish(self) -> None:
        """Check the work, and clean up."""

    def row(self) -> Row:
        """The figures of all slices."""


@dataclass(slots=True)
class Side:
    """A load on a rig. `connections` says how many of the rig's it uses; None for all."""

    name: str
    load: Load
    connections: int | None = None
    rates: list[float] = field(default_factory=list)
    _need: float = WARM_RATE
    """Messages that the next slice may take at most, for each second."""
    _run: Run = field(default_factory=Run)
    _cpu_s: float = 0.0
    _store_cpu_s: float = 0.0
    _pings: list[float] = field(default_factory=list)
    _against_ping: list[float] = field(default_factory=list)

    async def slice(self, seconds: float) -> None:
        """Run once, between two pings."""
        rig = self.load.rig
        spare = len(rig.connections) * self.load.batch
        await self.load.stock(int(self._need * seconds) + spare)
        before = await rig.ping_rate()
        cpu_s, store_cpu_s = rig.server_cpu_s(), rig.store_cpu_s()
        connections = rig.connections[: self.connections]
        run = await rig.drive(self.load.script, seconds, connections)
        self._cpu_s += rig.server_cpu_s() - cpu_s
        self._store_cpu_s += rig.store_cpu_s() - store_cpu_s
        self._run.add(run)
        self.rates.append(run.messages / run.duration_s)
        self._need = 2 * self.rates[-1]
        self._pings += [before, await rig.ping_rate()]
        rate = run.requests / run.duration_s
        self._against_ping.append(rate / statistics.mean(self._pings[-2:]))

    def reset(self) -> None:
        """Forget what was measured."""
        self.rates, self._pings, self._against_ping = [], [], []
        self._run, self._cpu_s, self._store_cpu_s = Run(), 0.0, 0.0
        for server in self.load.rig.servers:
            server.reset_peak_memory()

    async def finish(self) -> None:
        """Let the load check itself."""
        await self.load.finish()

    def row(self) -> Row:
        """The figures of all slices."""
        return self.load.rig.row(
            self.name, self._run, self._cpu_s, self._pings, self._against_ping, self._store_cpu_s
        )


async def in_turns(sides: Sequence[Contender], sizes: Sizes) -> list[Row]:
    """Give each side a timed run in slices, and let it check its work; the rows, in order."""
    seconds, turns = sizes.seconds, sizes.turns
    for side in sides:
        await side.slice(seconds / turns)
        side.reset()
    for turn in range(turns):
        first = turn % len(sides)  # each comes first, in the middle, and last equally often
        for side in [*sides[first:], *sides[:first]]:
            await side.slice(seconds / turns)
    for side in sides:
        await side.finish()
    return [side.row() for side in sides]


def against(side: Contender, other: Contender) -> list[float]:
    """Messages/s against the other's, turn by turn."""
    return [mine / theirs for mine, theirs in zip(side.rates, other.rates, strict=True)]
