"""One seed: nodes, a cast and a climate; then calm, a drain, and the verdict."""

from __future__ import annotations

import asyncio
import gc
import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import structlog

from tests.chaos.harness.checker import Violation
from tests.chaos.harness.generator import IDLE, LONG_TTL, RETRY_POLICY, Script
from tests.chaos.harness.history import OK, Op, Run
from tests.deterministic import bugs
from tests.deterministic.clients import Bodies, Client
from tests.deterministic.judging import judge
from tests.deterministic.loop import Loop, now_ms, turned_clocks
from tests.deterministic.nodes import Cluster, Node
from tests.deterministic.receivers import Receivers
from tests.deterministic.scripts import SCENES, SECONDS, Company, Scene
from tests.deterministic.store import Disk, Ground
from tests.deterministic.weather import CLIMATES, Climate, Weather

SLACK_S = 0.2  # what the service rounds up, and a little
DOWN_S = 0.6  # that a node stays down, at most
SETTLE_S = 0.5  # between two looks whether everything has come to rest
LAPSE_S = 2.5  # after which no claim of the load is live
HELD_S = 60.0  # after which nothing is held by a node that died while it told subscribers
COLLECT = 40  # runs, after which the garbage of all is looked for
PATIENCE_S = 600.0  # with the end of a run


class Result(msgspec.Struct):
    """What came of a seed. ``complaints`` are faults that no history shows."""

    seed: int
    scene: str
    run: Run
    ops: list[Op]
    violations: list[Violation]
    complaints: list[str]
    struck: dict[str, int]
    deaths: int
    cuts: int
    steps: int
    slipped: bool

    @property
    def passed(self) -> bool:
        return not (self.violations or self.complaints)

    def history(self) -> bytes:
        """All that was recorded, to the byte."""
        return b"\n".join(map(msgspec.json.encode, self.ops))

    def render(self) -> str:
        lines = [f"seed {self.seed} ({self.scene}): {len(self.ops)} operations"]
        lines += [f"complaint: {text}" for text in self.complaints]
        lines += [violation.render(0.0) for violation in self.violations[:5]]
        lines.append(f"again: python -m tests.deterministic --seed {self.seed} --trace")
        return "\n".join(lines)


class Player:
    """Plays seeds, one after the other, on one disk."""

    def __init__(self) -> None:
        self._disk = Disk()
        self._played = 0

    def play(self, seed: int, bug: str = "", trace: Callable[[str], None] | None = None) -> Result:
        """The same seed gives the same history."""
        self._played += 1
        if self._played % COLLECT == 0:
            gc.collect()
        rng = random.Random(f"run {seed}")
        scene = bugs.scene(bug, seed) if bug else SCENES[seed % len(SCENES)]
        climate = bugs.climate(bug, seed) if bug else rng.choice(CLIMATES)
        loop = Loop(random.Random(f"loop {seed}"), rng.choice((0.0, 0.0, 0.5, 0.95)))
        return loop.run(_Play(self._disk, loop, seed, scene, climate, bug, trace).play())


@contextmanager
def stage() -> Iterator[Player]:
    """Where seeds may be played: clocks are turned, and logs go nowhere."""
    before = structlog.get_config()
    structlog.configure(processors=[_overheard], cache_logger_on_first_use=False)
    collected = gc.isenabled()
    gc.disable()
    try:
        with turned_clocks():
            yield Player()
    finally:
        if collected:
            gc.enable()
        structlog.configure(**before)


_LOGGED: list[str] = []
"""What the service logged as errors."""


def _overheard(logger: Any, method: str, event: Any) -> Any:
    if method in {"error", "critical", "exception"}:
        _LOGGED.append(f"{event.get('event')} {event.get('exc_info', '')!r}")
    raise structlog.DropEvent


class _Play:
    def __init__(
        self, disk: Disk, loop: Loop, seed: int, scene: Scene, climate: Climate, bug: str,
        trace: Callable[[str], None] | None,
    ) -> None:  # fmt: skip
        self.loop = loop
        self.seed = seed
        self.scene = scene
        self.climate = climate
        self.bug = bug
        self.trace = trace
        self.disk = disk
        self.cast = Company(scene, seed)
        self.ops: list[Op] = []
        self.complaints: list[str] = []
        self.cuts = 0
        self.seconds = random.Random(f"seconds {seed}").choice(SECONDS)
        self._resting = False
        self._calm: asyncio.Future[None]
        self.run = Run(
            seed=seed,
            profile=scene.name,
            nemesis=bug or "all",
            slack=SLACK_S,
            deadline=1.0,
            heal=1.0,
            nodes=scene.nodes,
            dead_letters=self.cast.dead_letters,
        )

    async def play(self) -> Result:
        rng = random.Random(f"play {self.seed}")
        loop = self.loop
        _LOGGED.clear()
        self.bodies = Bodies(self.seed)
        self.receivers = Receivers(loop, self.bodies, random.Random(f"receivers {self.seed}"))
        self.receivers.queues = dict(self.cast.endpoints)
        self.weather = Weather(random.Random(f"weather {self.seed}"), self.climate)
        self.disk.wipe(rng)
        senders = {"http": self.receivers} if self.cast.endpoints else {}
        ground = Ground(self.disk, now_ms, rng, self.weather)
        self.cluster = cluster = Cluster(loop, ground, self.weather, rng, senders, self.trace)
        planted = bugs.Planted(self.bug, random.Random(f"bug {self.seed}"))
        planted.in_(ground)
        ground.open()
        cluster.nodes += [Node(cluster, f"node-{number}") for number in range(self.scene.nodes)]
        for node in cluster.nodes:
            node.start()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._play(rng)
        except TimeoutError:
            self.complaints.append(f"it did not come to an end within {PATIENCE_S} s")
        finally:
            for node in cluster.nodes:
                if node.life is not None:
                    node.life.dead = True
        self.complaints += loop.errors + [text for text in _LOGGED if not _injected(text)]
        ops = self.ops + self.receivers.ops
        return Result(
            self.seed, self.scene.name, self.run, ops, judge(self.run, ops), self.complaints,
            cluster.struck, cluster.deaths, self.cuts, loop.steps, planted.slipped,
        )  # fmt: skip

    async def _play(self, rng: random.Random) -> None:
        cluster, cast = self.cluster, self.cast
        self.weather.rest()
        await self._prepare(rng)
        began_s = self.loop.tick()
        self.weather.rage()
        stop: list[None] = []
        self._calm = self.loop.create_future()
        readers = [self._drive(*one) for one in cast.readers().items()]
        load = [self._drive(*one, stop) for one in cast.load().items()]
        fates = [cluster.spawn(self._revive(node, rng)) for node in cluster.nodes]
        fates.append(cluster.spawn(self._cut(rng)))
        fates.append(cluster.spawn(self._subscribe(self.cast.late, rng)))
        await asyncio.sleep(self.seconds)
        stop.append(None)
        self._resting = True
        await asyncio.gather(*load)
        self.weather.rest()
        for fate in fates[:-1]:
            fate.cancel()
        await fates[-1]
        if rng.random() < 0.3:
            self._cut_now()
        for node in cluster.nodes:
            if node.life is None:
                node.start()
        await self._settle(began_s)
        cast.board.finishing = True
        self._resting = False
        self._calm.set_result(None)
        await asyncio.gather(*readers)
        for closers in cast.closers():
            await asyncio.gather(*(self._drive(*one) for one in closers.items()))
        if cast.endpoints:
            self.receivers.fine = True
            end_s = self.loop.time() + HELD_S
            await self._while(lambda: self.disk.unsettled() and self.loop.time() < end_s)
            await asyncio.gather(*(self._drive(*one) for one in self._last_looks().items()))

    def _last_looks(self) -> dict[str, Script]:
        """At those of which it is known that they have subscribed, and under which id."""
        known = {f"closer {to}" for to in self.cast.board.subscriptions}
        return {who: look for who, look in self.cast.last_looks().items() if who in known}

    async def _prepare(self, rng: random.Random) -> None:
        admin = self._client("admin")
        for source, (dead, most) in self.cast.dead_letters.items():
            options = {"_dead_letter_queue": dead.partition("/")[2], "_max_claim_count": most}
            await self._perform(admin, Op("make", q=source, note=json.dumps(options)))
        await self._subscribe(self.cast.early, rng, at_once=True)

    async def _subscribe(
        self, endpoints: Sequence[str], rng: random.Random, *, at_once: bool = False
    ) -> None:
        client = self._client("subscriber")
        options = json.dumps({"_retry_policy": RETRY_POLICY})
        for to in endpoints:
            if not at_once:
                await asyncio.sleep(rng.random() * self.seconds / 2)
            q = self.cast.endpoints[to]
            op = await self._perform(
                client, Op("subscribe", q=q, to=to, ttl=LONG_TTL, note=options)
            )
            if op.out == OK:
                self.cast.board.subscriptions[to] = op.id

    async def _revive(self, node: Node, rng: random.Random) -> None:
        """Start it again whenever it has died."""
        while True:
            await asyncio.sleep(rng.random() * DOWN_S)
            if node.life is None:
                node.start()

    async def _cut(self, rng: random.Random) -> None:
        """Cut the power, now and then."""
        while every_s := self.climate.cuts_s:
            await asyncio.sleep(rng.expovariate(1 / every_s))
            self._cut_now()

    def _cut_now(self) -> None:
        cluster = self.cluster
        cluster.say("the power is cut")
        self.cuts += 1
        for node in cluster.nodes:
            node.stop()
        for late in list(cluster.late):
            late.cancel()  # it was on its way to a process that is no more
        cluster.ground.cut()
        cluster.ground.open()

    async def _settle(self, began_s: float) -> None:
        """Until nothing that was asked for before can still happen, and no claim is live."""
        await self._while(lambda: self.cluster.under_way)
        await asyncio.sleep(SETTLE_S)
        now_s = self.loop.tick()
        self.ops.append(Op("fault", t0=began_s, t1=now_s, out=OK))
        self.ops.append(Op("dead", t0=now_s, t1=now_s, out=OK))
        await asyncio.sleep(LAPSE_S)

    async def _while(self, true: Callable[[], bool]) -> None:
        """To look again and again costs nothing here."""
        while true():  # noqa: ASYNC110 - what is looked at lies in the store
            await asyncio.sleep(SETTLE_S)

    def _client(self, who: str) -> Client:
        rng = random.Random(f"client {self.seed} {who}")
        return Client(self.cluster, who, self.bodies, rng)

    async def _perform(self, client: Client, op: Op) -> Op:
        try:
            return await client.perform(op)
        finally:
            self.ops.append(op)

    def _drive(
        self, who: str, script: Script, stop: Sequence[None] | None = None
    ) -> asyncio.Task[None]:
        return self.cluster.spawn(self._act(who, script, stop))

    async def _act(self, who: str, script: Script, stop: Sequence[None] | None) -> None:
        """Carry out a script, until it ends or has to stop."""
        client = self._client(who)
        with suppress(StopIteration):
            step = next(script)
            while not stop:
                if isinstance(step, Op):
                    done = await self._perform(client, step)
                else:
                    await asyncio.sleep(step)
                    done = IDLE
                if self._resting and stop is None:
                    await self._calm  # there is nothing new to be seen
                step = script.send(done)


def _injected(text: str) -> bool:
    """Whether a statement that failed on purpose was logged."""
    return "a statement failed" in text
