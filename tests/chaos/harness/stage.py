"""What a run consists of, as its nemesis sees it."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field

from tests.chaos.harness.client import Target
from tests.chaos.harness.history import OK, History, Op
from tests.chaos.harness.servers import Server

NEVER = 10**9  # strikes


@dataclass(frozen=True)
class Plan:
    """What to play. Faults end after `strikes` of them or `seconds`, whichever is first."""

    nemesis: str = "none"
    profile: str = "mixed"
    seed: int = 1
    seconds: float = 600.0
    strikes: int = NEVER
    pause: tuple[float, float] = (2.0, 8.0)  # s between two faults
    quiet: float = 1.0  # s of load after the last fault
    deadline: float = 10.0  # s that a client waits
    settings: dict[str, str] = field(default_factory=dict)  # NUSKU_*, for the server


class Stage:
    """A server under load whose history is being written."""

    def __init__(self, plan: Plan, server: Server, history: History) -> None:
        self.plan = plan
        self.server = server
        self.history = history
        self.rng = random.Random(f"{plan.seed}/nemesis")
        self.target: Target = server  # where the clients connect
        self.complaints: list[str] = []  # what was wrong and no history shows
        self.strikes = 0  # faults that really happened
        self.phases: dict[str, float] = {}  # s that each part of the run took
        self._phase_began = time.monotonic()

    @property
    def address(self) -> tuple[str, int] | None:
        """For clients, who ask at every connection."""
        return self.target.address

    def phase(self, name: str) -> None:
        """A part of the run has ended."""
        now = time.monotonic()
        self.phases[name] = round(now - self._phase_began, 1)
        self._phase_began = now

    async def kill(self) -> None:
        """SIGKILL, and note that nothing sent until now can take effect any more."""
        await asyncio.to_thread(self.server.kill)
        self.dead()

    def dead(self) -> None:
        now = time.monotonic()
        self.history.add(Op("dead", t0=now, t1=now, out=OK))

    async def start(self) -> None:
        """Start the server again; it must come up."""
        begin = time.monotonic()
        await asyncio.to_thread(self.server.start)
        took = time.monotonic() - begin
        if took > 5:
            self.complaints.append(f"a start took {took:.1f} s")

    async def restart(self) -> None:
        """A clean stop and a start."""
        code = await asyncio.to_thread(self.server.stop)
        self.dead()
        if code != 0:
            self.complaints.append(f"a clean stop ended with {code}")
        await self.start()
