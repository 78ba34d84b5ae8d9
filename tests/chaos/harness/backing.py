"""Backups that are taken under load, and what the history says must be in them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from tests.chaos.harness.checker import Violation, check
from tests.chaos.harness.generator import PROFILES, Cast
from tests.chaos.harness.history import INFO, OK, History, Op, Run
from tests.chaos.harness.places import Place
from tests.chaos.harness.play import drain, drive, prepare
from tests.chaos.harness.servers import Server
from tests.chaos.harness.stage import Plan, Stage

BEFORE_S, AFTER_S = 2.5, 1.0  # of load, around the backup


class Rehearsal:
    """Load, a backup meanwhile, and the judgement of what was restored."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan = plan
        self._folder = folder
        self._cast = Cast(PROFILES[plan.profile], plan.seed)
        self._run = Run(seed=plan.seed, profile=plan.profile, dead_letters=self._cast.dead_letters)
        self._told: list[Op] = []
        self._drained: list[Op] = []
        self._taken = (0.0, 0.0)

    def load(self, place: Place, take: Callable[[], object]) -> None:
        """Let clients work on a server there, and take the backup in their midst."""
        with (
            History(self._folder / "before", self._run) as history,
            Server(place.uri, self._folder, place.settings) as server,
        ):
            server.start()
            asyncio.run(self._load(Stage(self._plan, [server], place, history), take))
            assert server.stop() == 0
            self._told = history.ops

    async def _load(self, stage: Stage, take: Callable[[], object]) -> None:
        await prepare(stage, self._cast)
        stop = asyncio.Event()
        agents = self._cast.load().items()
        load = [asyncio.create_task(drive(stage, *agent, stop)) for agent in agents]
        await asyncio.sleep(BEFORE_S)
        begin = time.monotonic()
        await asyncio.to_thread(take)
        self._taken = begin, time.monotonic()
        await asyncio.sleep(AFTER_S)
        stop.set()
        await asyncio.gather(*load)

    def restore(self, place: Place) -> None:
        """Drain what was restored there, once all claims have lapsed."""
        with (
            History(self._folder / "restored", self._run) as history,
            Server(place.uri, self._folder, place.settings, "restored") as server,
        ):
            server.start()
            time.sleep(self._cast.profile.claim_ttl[1] + self._run.slack)
            asyncio.run(drain(Stage(self._plan, [server], place, history), self._cast))
            assert server.stop() == 0
            self._drained = history.ops

    def answered(self) -> int:
        """Operations that had succeeded before the backup began."""
        return sum(op.out == OK and op.t1 < self._taken[0] for op in self._told)

    def violations(self) -> list[Violation]:
        """Judged by what was known when it began; what happened meanwhile may be in it or not."""
        return check(self._run, [*as_of(self._told, *self._taken), *self._drained])

    def violations_as_if_later(self) -> list[Violation]:
        """Judged as if it had been taken when the load ended, which has to be noticed."""
        end = max(op.t1 for op in self._told)
        return check(self._run, [*as_of(self._told, end, end), *self._drained])


def as_of(ops: Sequence[Op], begin: float, end: float) -> list[Op]:
    """The history that a copy must fit which was taken between these times."""
    known = [op for op in ops if op.t1 < begin]
    unknown = [
        msgspec.structs.replace(
            op, out=INFO, got=[], cid="" if op.f == "claim" else op.cid, t1=op.t0 + Plan.deadline
        )
        for op in ops
        if op.t0 < end and op.t1 >= begin
    ]
    # No client waited for an answer from the copy, so this is no time of calm.
    events = [Op("fault", "backup", t0=begin, t1=end, out=OK), Op("dead", t0=end, t1=end, out=OK)]
    return [*known, *unknown, *events]
