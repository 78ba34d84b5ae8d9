"""One seed: nodes, a cast and a climate; then calm, a drain, and the verdict."""

from __future__ import annotations

import asyncio
import gc
import json
import random
from collections import ChainMap, Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import structlog

from nusku.broker.rules import ENCRYPT
from nusku.encryption import NOTICED_S
from tests.chaos.harness.checker import Violation
from tests.chaos.harness.generator import IDLE, LONG_TTL, RETRY_POLICY, Script
from tests.chaos.harness.history import OK, Op, Run
from tests.deterministic import bugs, leavings
from tests.deterministic.clients import Bodies, Client
from tests.deterministic.guests import GUEST, look_back, stays
from tests.deterministic.happenings import Happenings
from tests.deterministic.judging import judge
from tests.deterministic.keyfile import KeyFile
from tests.deterministic.loop import Loop, now_ms, turned_clocks
from tests.deterministic.nodes import Cluster, Node
from tests.deterministic.pooling import uri_of
from tests.deterministic.receivers import Receivers
from tests.deterministic.scripts import BY_NAME, SCENES, Company, Scene
from tests.deterministic.store import Disk, Ground, Shelf
from tests.deterministic.weather import CLIMATES, SLOW, Climate, Weather

SLACK_S = 0.2  # what the service rounds up, and a little
SETTLE_S = 0.5  # between two looks whether everything has come to rest
TIDY_S = 75.0  # after which who looks for what was left behind has looked twice
NOT_FOUND = 404
NO_BUG = "all"  # the name of what goes wrong where none is planted
UNREADABLE = "a message cannot be decrypted"  # as it is logged
EMPTIED = 60  # times that a pool is drained until it is empty
HELD_S = 60.0  # after which nothing is held by a node that died while it told subscribers
COLLECT = 40  # runs, after which the garbage of all is looked for
PATIENCE_S = 600.0  # with the end of a run


class Result(msgspec.Struct):
    """What came of a seed. ``complaints`` are faults that no history shows, ``events`` what the
    service logged, and how often.
    """

    seed: int
    scene: str
    run: Run
    ops: list[Op]
    violations: list[Violation]
    complaints: list[str]
    struck: dict[str, int]
    deaths: int
    cuts: int
    stills: int
    steps: int
    events: dict[str, int]
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
        bug = self.run.nemesis
        what = f"--scene {self.scene}" if bug == NO_BUG else f'--bug "{bug}"'
        again = f"--seed {self.seed} {what}"
        lines.append(f"again: python -m tests.deterministic {again} --trace")
        return "\n".join(lines)


class Player:
    """Plays seeds, one after the other, on the same disks."""

    def __init__(self) -> None:
        self._shelf = Shelf()
        self._played = 0

    def play(
        self, seed: int, bug: str = "", trace: Callable[[str], None] | None = None, scene: str = ""
    ) -> Result:
        """The same seed gives the same history, in the scene that is its own, or in this one."""
        self._played += 1
        if self._played % COLLECT == 0:
            gc.collect()
        rng = random.Random(f"run {seed}")
        if bug:
            played, climate = bugs.scene(bug, seed), bugs.climate(bug, seed)
        else:
            played = BY_NAME[scene] if scene else SCENES[seed % len(SCENES)]
            climate = rng.choice(CLIMATES)
        loop = Loop(random.Random(f"loop {seed}"), rng.choice((0.0, 0.0, 0.5, 0.95)))
        return loop.run(_Play(self._shelf, loop, seed, played, climate, bug, trace).play())


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
_EVENTS: Counter[str] = Counter()
"""How often it logged what."""


def _overheard(logger: Any, method: str, event: Any) -> Any:
    _EVENTS[str(event.get("event"))] += 1
    if method in {"error", "critical", "exception"}:
        _LOGGED.append(f"{event.get('event')} {event.get('exc_info', '')!r}")
    raise structlog.DropEvent


class _Play:
    def __init__(
        self, shelf: Shelf, loop: Loop, seed: int, scene: Scene, climate: Climate, bug: str,
        trace: Callable[[str], None] | None,
    ) -> None:  # fmt: skip
        self.loop = loop
        self.seed = seed
        self.scene = scene
        self.climate = climate
        self.bug = bug
        self.trace = trace
        self.shelf = shelf
        self.cast = Company(scene, seed)
        self.ops: list[Op] = []
        self.complaints: list[str] = []
        self.left_behind: list[Violation] = []
        self.guests: dict[str, str] = {}  # the queues of their endpoints
        self.seconds = random.Random(f"seconds {seed}").choice(scene.seconds)
        self._resting = self._moves_ended = False
        self._calm: asyncio.Future[None]
        self.run = Run(
            seed=seed,
            profile=scene.name,
            nemesis=bug or NO_BUG,
            slack=SLACK_S,
            deadline=1.0,
            heal=scene.heal_s,
            nodes=scene.nodes,
            apart=bool(scene.pools),
            dead_letters=self.cast.dead_letters,
            settings={ENCRYPT: "on"} if scene.encrypted else {},
        )

    async def play(self) -> Result:
        rng = random.Random(f"play {self.seed}")
        loop = self.loop
        _LOGGED.clear()
        _EVENTS.clear()
        self.bodies = Bodies(self.seed)
        self.receivers = Receivers(loop, self.bodies, random.Random(f"receivers {self.seed}"))
        self.receivers.queues = ChainMap(self.cast.endpoints, self.guests)
        self.weather = Weather(random.Random(f"weather {self.seed}"), self.climate)
        self.disk = self.shelf.take("", rng)
        senders = {"http": self.receivers} if self.cast.endpoints else {}
        planted = bugs.Planted(self.bug, random.Random(f"bug {self.seed}"))
        self.keys = KeyFile(loop, self.seed, 2 if self.scene.encrypted else 0)
        planted.in_keys(self.keys)

        def new_ground(uri: str) -> Ground:
            disk = self.shelf.take(uri, rng) if uri else self.disk
            ground = Ground(disk, now_ms, rng, self.weather, f"{uri} " if uri else "")
            planted.in_(ground)
            ground.open()
            return ground

        self.cluster = cluster = Cluster(
            loop, new_ground(""), new_ground, self.weather, rng, senders, self.keys,
            planted.in_broker, self.trace,
        )  # fmt: skip
        self.happenings = Happenings(cluster, self.scene, self.climate, self.seconds, rng)
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
        violations = judge(self.run, ops) + self.left_behind
        return Result(
            self.seed, self.scene.name, self.run, ops, violations, self.complaints,
            cluster.struck, cluster.deaths, self.happenings.cuts, self.happenings.stills,
            loop.steps, dict(_EVENTS), planted.slipped,
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
        happenings = self.happenings
        happenings.begin()
        subscribing = cluster.spawn(self._subscribe(self.cast.late, rng))
        await asyncio.sleep(self.seconds)
        stop.append(None)
        self._resting = True
        await asyncio.gather(*load)
        self.weather.rest()
        happenings.end()
        await subscribing
        if rng.random() < 0.3:
            happenings.cut()
        for node in cluster.nodes:
            if node.life is None:
                node.start()
        await self._settle(began_s)
        emptied = await self._empty_pools(rng)
        await self._retire_keys()
        self._stay_on()
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
        if self.scene.guests:
            await asyncio.sleep(TIDY_S)
        self._look_for_leavings(emptied)

    async def _empty_pools(self, rng: random.Random) -> dict[str, Disk]:
        """Drain and delete all pools, or all but one; return the stores that they had, by name."""
        admin, there = self._client("admin"), {}
        for name in self.scene.pools:
            # Who died while it took the queues out has left the pool closed; this opens it.
            op = await self._perform(admin, Op("weigh", to=name, limit=1))
            if op.out == OK:
                there[name] = self.cluster.pool(op.id).disk
            elif op.status != NOT_FOUND:
                what = f"the pool {name} cannot be changed"
                self.left_behind.append(Violation("D3", what, (op,)))
        if there and rng.random() < 0.5:
            await self._end_moves(admin)
        if there and rng.random() < 0.5:
            there.popitem()
        return {name: disk for name, disk in there.items() if await self._empty(admin, name)}

    async def _end_moves(self, admin: Client) -> None:
        """Use each queue, which undoes what a mover that died has left."""
        self._moves_ended = True
        for q in self.cast.queues:
            for _ in range(EMPTIED):
                if (await self._perform(admin, Op("stats", q=q))).out == OK:
                    break
                await asyncio.sleep(SETTLE_S)

    async def _empty(self, admin: Client, name: str) -> bool:
        for _ in range(EMPTIED):
            drained = await self._perform(admin, Op("drain", to=name))
            if drained.out == OK and not any(drained.counts):
                op = await self._perform(admin, Op("unpool", to=name))
                if op.out == OK:
                    return True
            await asyncio.sleep(SETTLE_S)
        self.left_behind.append(Violation("D3", f"the pool {name} cannot be emptied", ()))
        return False

    async def _retire_keys(self) -> None:
        """All that nobody needs any more."""
        if self.scene.encrypted:
            await asyncio.sleep(NOTICED_S)
            for _ in self.keys.keys:
                await self.keys.retire(self.cluster.disks())
                await asyncio.sleep(NOTICED_S)

    def _stay_on(self) -> None:
        """Guests that have not left by now are subscribers like others."""
        for to, stay in stays(self.ops).items():
            if stay.lasts:
                self.cast.endpoints[to] = self.guests[to]
            if stay.subscribe.out == OK and (stay.lasts or stay.lapses):
                self.guests[to] = stay.subscribe.q
                self.cast.board.subscriptions[to] = stay.subscribe.id

    @property
    def _nothing_failed(self) -> bool:
        """Whether calls were slow at worst."""
        cluster = self.cluster
        return not cluster.deaths and set(cluster.struck) <= {SLOW} and not self.climate.faulty

    def _look_for_leavings(self, emptied: Mapping[str, Disk]) -> None:
        found = self.left_behind
        if self.scene.encrypted:
            found += leavings.in_clear(self.cluster.disks())
            if number := _EVENTS[UNREADABLE]:
                found.append(Violation("D5", f"{number} times", ()))
        if self.scene.guests:
            found += leavings.of_subscriptions(self.disk, now_ms(), strictly=self._nothing_failed)
        for name, disk in emptied.items():
            found += leavings.of_pool(name, disk, copies=self._moves_ended)

    def _last_looks(self) -> dict[str, Script]:
        """At those of which it is known that they have subscribed, and under which id."""
        known = {f"closer {to}" for to in self.cast.board.subscriptions}
        looks = {who: look for who, look in self.cast.last_looks().items() if who in known}
        for to in self.guests:
            if to in self.cast.board.subscriptions and to not in self.cast.endpoints:
                looks[f"closer {to}"] = look_back(
                    self.guests[to], to, self.cast.board.subscriptions[to]
                )
        return looks

    async def _prepare(self, rng: random.Random) -> None:
        admin = self._client("admin")
        for name in self.scene.pools:
            await self._perform(admin, Op("pool", to=name, note=uri_of(name), limit=1))
        for q in self.cast.queues:
            options: dict[str, object] = {}
            if self.scene.encrypted and (q not in self.cast.dead or rng.random() < 0.5):
                options[ENCRYPT] = True  # dead letters are encrypted wherever they go
            if q in self.cast.dead_letters:
                dead, most = self.cast.dead_letters[q]
                options |= {"_dead_letter_queue": dead.partition("/")[2], "_max_claim_count": most}
            if options:
                await self._perform(admin, Op("make", q=q, note=json.dumps(options)))
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

    async def _settle(self, began_s: float) -> None:
        """Until nothing that was asked for before can still happen, and no claim is live."""
        await self._while(lambda: self.cluster.under_way)
        await asyncio.sleep(SETTLE_S)
        now_s = self.loop.tick()
        self.ops.append(Op("fault", t0=began_s, t1=now_s, out=OK))
        self.ops.append(Op("dead", t0=now_s, t1=now_s, out=OK))
        await asyncio.sleep(self.scene.lapse_s)

    async def _while(self, true: Callable[[], bool]) -> None:
        """To look again and again costs nothing here."""
        while true():  # noqa: ASYNC110 - what is looked at lies in the store
            await asyncio.sleep(SETTLE_S)

    def _client(self, who: str) -> Client:
        rng = random.Random(f"client {self.seed} {who}")
        return Client(self.cluster, who, self.bodies, rng, self.scene.patience_s)

    async def _perform(self, client: Client, op: Op) -> Op:
        if op.f == "subscribe" and GUEST in op.to:
            self.guests[op.to] = op.q
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
    """Whether a statement that failed on purpose was logged, or what D5 is about."""
    return "a statement failed" in text or UNREADABLE in text
