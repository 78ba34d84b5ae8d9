"""What a run consists of, as its nemesis sees it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.chaos.harness.client import Target
from tests.chaos.harness.history import OK, History, Op
from tests.chaos.harness.places import Place
from tests.chaos.harness.servers import RefusedError, Server

NEVER = 10**9  # strikes
START_S = 30.0  # on a machine that is busy
STOP_S = 8.0  # in which nodes stop; they give up what is stuck a little later
PATIENCE_S = 20.0  # with a node whose start is refused
HOP = 0.05  # share of operations before which a client goes to another node


@dataclass(frozen=True)
class Plan:
    """What to play. Faults end after `strikes` of them or `seconds`, whichever is first."""

    nemesis: str = "none"
    store: str = "sqlite"  # of `places.STORES`
    nodes: int = 1  # servers on the one store
    profile: str = "mixed"
    seed: int = 1
    seconds: float = 600.0
    strikes: int = NEVER
    pause: tuple[float, float] = (2.0, 8.0)  # s between two faults
    quiet: float = 1.0  # s of load after the last fault
    deadline: float = 10.0  # s that a client waits
    settings: dict[str, str] = field(default_factory=dict)  # NUSKU_*, for the servers
    safe: bool = True  # False: set up so that a fault has to be seen to lose, as a control


class Stage:
    """Servers under load whose history is being written."""

    def __init__(self, plan: Plan, nodes: Sequence[Server], place: Place, history: History) -> None:
        self.plan = plan
        self.nodes = nodes
        self.place = place
        self.history = history
        self.rng = random.Random(f"{plan.seed}/nemesis")
        self.target: Target | None = None  # where the clients connect, if not to the nodes
        self.complaints: list[str] = []  # what was wrong and no history shows
        self.insists = False  # a start that was refused is tried again: its store may be away
        self.strikes = 0  # faults that really happened
        self.phases: dict[str, float] = {}  # s that each part of the run took
        self._phase_began = time.monotonic()

    @property
    def server(self) -> Server:
        """The only one, or the first of several."""
        return self.nodes[0]

    def way(self, who: str) -> Way:
        """How a client gets to the service."""
        return Way(self, random.Random(f"{self.plan.seed}/{who}/way"))

    def phase(self, name: str) -> None:
        """A part of the run has ended."""
        now = time.monotonic()
        self.phases[name] = round(now - self._phase_began, 1)
        self._phase_began = now

    async def kill(self, node: Server | None = None) -> None:
        """SIGKILL. Of an only server: note that nothing sent until now can take effect any more."""
        await asyncio.to_thread((node or self.server).kill)
        if len(self.nodes) == 1:
            await self.place.still()
            self.dead()

    def dead(self) -> None:
        now = time.monotonic()
        self.history.add(Op("dead", t0=now, t1=now, out=OK))

    async def start(self, node: Server | None = None) -> None:
        """Start the server again; it must come up."""
        begin = time.monotonic()
        while True:
            try:
                await asyncio.to_thread((node or self.server).start)
                break
            except RefusedError:
                if not self.insists or time.monotonic() > begin + PATIENCE_S:
                    raise
                await asyncio.sleep(0.1)
        took = time.monotonic() - begin
        if took > START_S:
            self.complaints.append(f"a start took {took:.1f} s")

    async def restart(self) -> None:
        """A clean stop and a start, of all."""
        begin = time.monotonic()
        codes = await asyncio.gather(*(asyncio.to_thread(node.stop) for node in self.nodes))
        if (took := time.monotonic() - begin) > STOP_S:
            self.complaints.append(f"a clean stop took {took:.1f} s: a request was stuck")
        await self.place.still()
        self.dead()
        for node, code in zip(self.nodes, codes, strict=True):
            if code != 0:
                self.complaints.append(f"a clean stop of {node.name} ended with {code}")
        await asyncio.gather(*(self.start(node) for node in self.nodes))


class Way:
    """A client's way to the service. It keeps to one node, and now and then tries another."""

    def __init__(self, stage: Stage, rng: random.Random) -> None:
        self._stage = stage
        self._rng = rng
        self._at = rng.randrange(len(stage.nodes))

    @property
    def address(self) -> tuple[str, int] | None:
        """Of a node that is not known to be down; asked for once in each operation."""
        if self._stage.target is not None:
            return self._stage.target.address
        if self._rng.random() < HOP:
            self.leave()
        for _ in self._stage.nodes:
            if address := self._stage.nodes[self._at].address:
                return address
            self.leave()
        return None

    @property
    def node(self) -> str:
        """The name of the node that `address` was of; empty where there is only one."""
        return self._stage.nodes[self._at].name if len(self._stage.nodes) > 1 else ""

    def leave(self) -> None:
        """Go to the next node for the next operation."""
        self._at = (self._at + 1) % len(self._stage.nodes)
