"""F-10: clocks are set, by seconds, an hour and a day, and to and fro.

The clock of a server of ours is to mean nothing: on SQLite it goes by a steady one, and elsewhere by
that of the store. Only when an SQLite store is opened is the wall clock looked at, and then time
has not gone back. The clock of PostgreSQL or Redis is what lives and claims go by: the history is
judged by that (`retold.py`). As a control that is left out: the jumps have to be seen then.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.harness import skewing
from tests.chaos.harness.history import OK, Op
from tests.chaos.harness.nemesis.base import Nemesis
from tests.chaos.harness.places import OnPostgres, OnRedis, Place
from tests.chaos.harness.report import Verdict
from tests.chaos.harness.skewing import Clock, SkewedPostgres, SkewedRedis
from tests.chaos.harness.stage import Plan, Stage

SECONDS, HOUR, DAY = 5, 3600, 86400
JUMPS = (SECONDS, -SECONDS, 2 * SECONDS, HOUR, -HOUR, DAY, 0)  # s ahead of true time
FORWARD = (SECONDS, 2 * SECONDS, 3 * SECONDS)
STROBES, STROBE_S = 20, 0.05
LASTS_S = (0.5, 1.5)


class ClockNemesis(Nemesis):
    """Knows the clocks: one for all servers of ours, and where it can be set the store's."""

    stores = ("sqlite", "postgresql", "redis")
    most_unknown = 0.3
    planted = "wall-clock"
    ours: Clock
    theirs: Clock | None = None

    @staticmethod
    def why_not() -> str:
        return skewing.why_not()

    @contextlib.contextmanager
    def store(self, folder: Path, plan: Plan) -> Iterator[Place]:
        self.ours = Clock("nodes")
        with contextlib.ExitStack() as stack:
            place: Place
            if plan.store == "postgresql":
                postgres = stack.enter_context(SkewedPostgres())
                self.theirs = postgres.clock
                place = OnPostgres(postgres, postgres.create())
            elif plan.store == "redis":
                redis = stack.enter_context(SkewedRedis())
                self.theirs = redis.clock
                place = OnRedis(redis, redis.uri)
            else:
                place = stack.enter_context(super().store(folder, plan))
            place.settings |= self.ours.settings
            yield place

    @classmethod
    def shown(cls, verdict: Verdict) -> bool:
        """Lost, freed too early, or seen for too long."""
        return bool(verdict.violations.keys() & {"R1", "R5", "R6", "R9", "R11"})


class SetClock(ClockNemesis):
    """Ours and the store's in turn. On SQLite every third time the server is killed and started."""

    name = "clock"

    def __init__(self) -> None:
        self._ours = itertools.cycle(JUMPS)
        self._theirs: Iterator[int] = iter(())
        self._reached = 0  # s that an SQLite store's time has come ahead

    async def begin(self, stage: Stage) -> None:
        back = stage.plan.seed % 2 and stage.plan.safe  # which is hardly to be seen
        self._theirs = _of_store(back=bool(back))

    async def strike(self, stage: Stage) -> str:
        turn = stage.strikes % 4
        if turn == 3:
            return await strobe(stage, self.ours)
        if turn == 1 and self.theirs is not None:
            to = next(self._theirs)
            set_store_clock(stage, self.theirs, to)
            await asyncio.sleep(stage.rng.uniform(*LASTS_S))
            return f"the store's clock: {to:+d} s"
        to = next(self._ours)
        self.ours.set(to)
        if turn == 1 and stage.plan.safe:
            return await self._restart(stage, to)
        await asyncio.sleep(stage.rng.uniform(*LASTS_S))
        return f"clock of the servers: {to:+d} s"

    async def _restart(self, stage: Stage, to: int) -> str:
        """An SQLite store is opened at another time.

        If that is earlier than where it was, it goes on from there, as if it had never been down.
        """
        begin = time.monotonic()
        await stage.kill()
        await stage.start()
        down = math.ceil(time.monotonic() - begin)
        self._reached = max(to, self._reached - down)
        skew(stage, self._reached, begin)
        return f"started with the clock at {to:+d} s"

    async def end(self, stage: Stage) -> None:
        self.ours.set(self._reached)  # of a store that goes on from there, no time is lost


def set_store_clock(stage: Stage, clock: Clock, to: int) -> None:
    """Set it, and note that for the judgement."""
    clock.set(to)
    skew(stage, to)


def skew(stage: Stage, to: int, at: float = 0.0) -> None:
    """For a control it is not noted: then the history must look wrong."""
    at = at or time.monotonic()
    if stage.plan.safe:
        stage.history.add(Op("skew", ttl=to, t0=at, t1=at, out=OK))


def _of_store(*, back: bool) -> Iterator[int]:
    """Forward only, up to days, or back only: by seconds, as time stands still for as long."""
    if back:
        return itertools.count(-SECONDS, -SECONDS)
    return (day * DAY + ahead for day in itertools.count() for ahead in (*FORWARD, HOUR, DAY))


async def strobe(stage: Stage, clock: Clock) -> str:
    """To and fro, faster than anything is done."""
    for turn in range(STROBES):
        clock.set(SECONDS if turn % 2 else -SECONDS)
        await asyncio.sleep(STROBE_S)
    clock.set(0)
    return f"clock of the servers: {STROBES} times to and fro"
