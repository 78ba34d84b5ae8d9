"""What a project that asks ten times as often as it may costs another one, which asks as it should."""

import asyncio
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.generator import MakeScript, Run, Script
from benchmarks.report import FAIR, Result, Row
from benchmarks.rig import Rig
from benchmarks.server import ServerFailedError
from benchmarks.stores import Store
from benchmarks.turns import in_turns
from benchmarks.work_queue import WorkQueue, expect

RATE = 50
"""Requests/s that each project may make, but for the one that is measured: it would be too few to
tell anything of the slowest."""
GENTLE_RATE = 100
"""What that one makes."""
GENTLE, GREEDY = 4, 6
"""Connections of the one, and of the other for each time that it asks its rate: so many that it
asks that often although refusals come late.
"""
SPENT_S = 0.4
"""How long the other one takes to use up what may come at once."""
TIMES = {"quiet": 0, "rate1": 1, "rate10": 10}
"""By the name of the row: how many times its rate the other one asks."""


@dataclass(slots=True)
class Neighbours:
    """Posts of the one project at an even pace, beside those of the other one."""

    name: str
    rig: Rig
    gentle: WorkQueue
    greedy: WorkQueue
    times: int
    rates: list[float] = field(default_factory=list)
    run: Run = field(default_factory=Run)
    served: int = 0
    refused: int = 0
    _cpu_s: float = 0.0

    async def slice(self, seconds: float) -> None:
        """Run once."""
        greedy = GREEDY * self.times
        scripts: Sequence[MakeScript] = [self._gentle] * GENTLE + [self._greedy] * greedy
        if self.times > 1:
            # What may come at once was saved up meanwhile; this is about what comes then.
            before = self.served, self.refused
            await self.rig.drive(self._greedy, SPENT_S, self.rig.connections[:greedy])
            self.served, self.refused = before
        makers = iter(scripts)

        def script(run: Run) -> Script:
            return next(makers)(run)

        cpu_s, connections = self.rig.server_cpu_s(), self.rig.connections[: len(scripts)]
        run = await self.rig.drive(script, seconds, connections)
        self._cpu_s += self.rig.server_cpu_s() - cpu_s
        self.run.add(run)
        self.rates.append(run.messages / run.duration_s)

    def _gentle(self, run: Run) -> Script:
        for pause in _pauses(GENTLE / GENTLE_RATE):
            yield pause
            if run.over:
                return
            started = time.perf_counter()
            yield from self.gentle.post(1)
            run.done(started, 1)

    def _greedy(self, run: Run) -> Script:
        request = self.greedy.post_request(1)
        for pause in _pauses(GREEDY / RATE):
            yield pause
            if run.over:
                return
            status, body = yield request
            if status == 503:
                self.refused += 1
            else:
                expect(status, 201, "post", body)
                self.served += 1

    def reset(self) -> None:
        """Forget what was measured."""
        self.rates, self.run, self._cpu_s, self.served, self.refused = [], Run(), 0.0, 0, 0

    async def finish(self) -> None:
        """There is nothing to clean up."""

    def row(self) -> Row:
        """The figures of all slices: latencies of the one, requests of both."""
        return self.rig.row(self.name, self.run, self._cpu_s, [], [])


def _pauses(period_s: float) -> Iterator[float]:
    """For one request in each period; connections are not in step with one another."""
    due = time.perf_counter() + random.random() * period_s
    while True:
        yield max(due - time.perf_counter(), 0.0)
        due += period_s


async def fairness(rig: Rig) -> Result:
    """In turns: the other one silent, at its rate, at ten times its rate."""
    if rig.store is None or not rig.stores.private:
        return Result("fairness", skipped="needs stores of ours")
    result = Result("fairness")
    store = await rig.stores.new()
    await _limit(store, "gentle", requests="none")
    settings = {"quota_requests": str(RATE)}
    connections = GENTLE + GREEDY * max(TIMES.values())
    async with rig.another(store, settings=settings, connections=connections) as paced:
        gentle, greedy = [
            WorkQueue(replace(paced.target, project=name), "posts") for name in ("gentle", "greedy")
        ]
        sides = [Neighbours(name, paced, gentle, greedy, times) for name, times in TIMES.items()]
        result.rows = await in_turns(sides, paced.sizes)
        quiet, at_rate, above = result.rows
        result.facts[FAIR] = above.p99_ms / quiet.p99_ms
        result.facts["p99 beside a project at its rate, against quiet"] = (
            at_rate.p99_ms / quiet.p99_ms
        )
        last = sides[-1]
        result.facts["requests/s served of the other one"] = last.served / last.run.duration_s
        result.facts["requests/s refused of the other one"] = last.refused / last.run.duration_s
    return result


async def _limit(store: Store, project: str, *, requests: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nusku", "quota", "set", project, "--requests", requests),
        *("--store", store.uri),
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {f"NUSKU_{name.upper()}": store.settings[name] for name in store.settings},
    )
    _, err = await process.communicate()
    if process.returncode:
        raise ServerFailedError(f"no quota was set: {err.decode()}")
