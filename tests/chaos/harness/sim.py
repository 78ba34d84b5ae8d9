"""A simulated queue service on a virtual clock, right or with one planted bug.

It is the permanent test of the checker: right histories, with requests that are lost, or carried
out late though nobody was told, must raise no alarm; each planted bug must raise one.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import msgspec

from tests.chaos.harness import sim_telling
from tests.chaos.harness.checker import check
from tests.chaos.harness.generator import BAD_TTL, IDLE, PROFILES, Cast, Profile, Script
from tests.chaos.harness.history import FAIL, INFO, OK, Op, Run
from tests.chaos.harness.sim_telling import Teller

BUGS = sim_telling.BUGS | {
    "lost after ack": {"R1", "R9"},
    "early expiry": {"R1", "R9"},
    "late expiry": {"R11"},
    "double claim": {"R5", "R6"},
    "resurrection": {"R4"},
    "order swap": {"R8"},
    "commit gap": {"R9"},
    "duplicate apply": {"R3"},
    "one id for two": {"R3"},
    "claimed listed": {"R6"},
    "ack before apply": {"R1", "R9"},
    "deleted redelivered": {"R4"},
    "renewal ignored": {"R5", "R6"},
    "failed post applied": {"R2"},
    "lost at a crash": {"R1", "R4", "R5", "R6", "R9"},
    "delay ignored": {"R6"},
    "foreign project": {"R14", "R2"},
    "counted wrong": {"R12"},
    "dies too late": {"R13"},
    "stuck claim": {"R7"},
    "another's claim deleted": {"R5"},
    "holder turned away": {"R5"},
    "claim forgotten": {"R5"},
    "purge leaves some": {"R4"},
    "not found by id": {"R1"},
    "body changed": {"R2"},
    "twice in an answer": {"R3"},
    "marker ignored": {"R9", "R8"},
    "dies too soon": {"R13"},
    "dead letter copied": {"R13", "R3"},
    "dead letter lost": {"R13"},
    "falls silent": {"R15"},
}
"""Each bug, and the rules of which at least one must speak up."""

At = Callable[[float, Callable[[float], None]], None]
"""Plays something at a time."""

DEADLINE = 5.0  # s that a client waits
UNKNOWN = "unknown"  # noted in operations whose clients get no answer


@dataclass
class _Stored:
    id: str
    position: int
    op: Op  # its post
    n: int
    expires: float
    visible: float
    cid: str = ""
    claims: int = 0
    shown_from: float = 0.0  # planted: committed later than acknowledged


@dataclass
class _Queue:
    messages: dict[str, _Stored] = field(default_factory=dict)
    claims: dict[str, tuple[float, list[str]]] = field(default_factory=dict)  # end, ids
    position: int = 0


class Service:
    """What a right service does, atomically, at a moment; with a bug, now and then not."""

    def __init__(self, cast: Cast, rng: random.Random, at: At, bug: str = "") -> None:
        self._rng = rng
        self._bug = bug
        self._queues = {q: _Queue() for q in cast.queues}
        self._dead = cast.dead_letters
        self._dead_queues = {dead for dead, _ in self._dead.values()}
        self._ids = itertools.count(1)
        self._trash: list[tuple[str, _Stored]] = []
        self.slipped = False  # the bug has struck
        self.teller = Teller(cast.endpoints, rng, self._slip, at)

    def _slip(self, bug: str, share: float = 0.02) -> bool:
        struck = self._bug == bug and self._rng.random() < share
        self.slipped = self.slipped or struck
        return struck

    def apply(self, op: Op, now: float) -> None:
        """Carry out the operation and fill in its answer."""
        if op.to:
            self.teller.apply(op, now)
            return
        q = op.q
        if op.f in {"list", "get"} and self._slip("foreign project", 0.01):
            q = self._rng.choice(sorted(self._queues))
        queue = self._queues[q]
        for name in [m.id for m in queue.messages.values() if m.expires <= now]:
            del queue.messages[name]
        op.out, op.status = OK, 200
        getattr(self, f"_{op.f}")(queue, op, now)
        if op.got:
            self._garble(op)
        if not op.final and self._slip("falls silent", 0.05):
            op.note = UNKNOWN

    def _garble(self, op: Op) -> None:
        if self._slip("body changed"):
            op.got[-1] = (op.got[-1][0], "", 0)
        if self._slip("twice in an answer"):
            op.got.append(op.got[0])

    def _post(self, queue: _Queue, op: Op, now: float) -> None:
        if op.ttl == BAD_TTL:
            op.out, op.status = FAIL, 400
            self.teller.refused(op, now)
            return
        self.teller.posted(op, now)
        numbers = list(range(op.n, op.n + op.size))
        if op.size > 1 and self._slip("order swap", 0.1):
            numbers.reverse()
        fresh = sorted((self._store(queue, op, n, now) for n in numbers), key=lambda m: m.n)
        op.ids = [message.id for message in fresh]
        if self._slip("lost after ack"):
            for message in fresh:
                del queue.messages[message.id]
        if self._slip("duplicate apply"):
            self._store(queue, op, op.n, now)
        if self._slip("ack before apply", 0.05):
            for message in fresh:
                message.shown_from = now + 1.0
        if self._slip("commit gap", 0.2):
            # The position was given now; others commit and are read before this one is.
            for message in fresh:
                message.shown_from = now + 0.5
            op.t1 = max(op.t1, now + 0.51)
        if self._slip("failed post applied"):
            op.out, op.status, op.ids = FAIL, 400, []

    def _store(self, queue: _Queue, op: Op, n: int, now: float) -> _Stored:
        queue.position += 1
        ttl = op.ttl
        if self._bug == "early expiry" and ttl > 100:
            self.slipped, ttl = True, 6
        if self._bug == "late expiry":
            self.slipped, ttl = True, ttl + 6
        delay = 0 if self._slip("delay ignored", 0.5) else op.delay
        message = _Stored(
            self._new_id(queue), queue.position, op, n, now + ttl, now + delay, shown_from=now
        )
        queue.messages[message.id] = message
        return message

    def _new_id(self, queue: _Queue) -> str:
        """An id that tells its position, so that it is a marker even when its message is gone."""
        if queue.messages and self._slip("one id for two"):
            return next(reversed(queue.messages))
        return f"{queue.position}.{next(self._ids)}"

    def _visible(self, queue: _Queue, now: float) -> list[_Stored]:
        """All that is there, in order; a planted bug may bring back what was deleted."""
        if self._bug == "deleted redelivered":
            for name, message in self._trash:
                if name in self._queues and self._queues[name] is queue and message.cid:
                    self.slipped = True
                    message.cid = ""
                    queue.messages[message.id] = message
            self._trash.clear()
        found = [m for m in queue.messages.values() if m.shown_from <= now]
        return sorted(found, key=lambda message: message.position)

    def _claim(self, queue: _Queue, op: Op, now: float) -> None:
        taken: list[_Stored] = []
        dead, allowed = self._dead.get(op.q, ("", 0))
        if self._bug == "dies too late":
            allowed += 1
        if self._bug == "dies too soon":
            allowed -= 1
        for message in self._visible(queue, now):
            free = message.visible <= now
            if not free and message.cid and self._slip("double claim", 0.05):
                free = True
            if not free:
                continue
            if dead and message.claims >= allowed:
                self.slipped = self.slipped or self._bug in {"dies too late", "dies too soon"}
                self._move(queue, self._queues[dead], message)
                continue
            taken.append(message)
            if len(taken) == op.limit:
                break
        if not taken:
            op.status = 204
            return
        op.cid, op.status = f"c{next(self._ids)}", 201
        for message in taken:
            message.cid, message.claims = op.cid, message.claims + 1
            self._hold(message, op, now)
        queue.claims[op.cid] = (now + op.ttl, [message.id for message in taken])
        op.got = [(message.id, message.op.p, message.n) for message in taken]

    def _hold(self, message: _Stored, op: Op, now: float) -> None:
        message.visible = now + op.ttl
        if self._slip("stuck claim"):
            message.visible = now + 10_000
        if message.expires < now + op.ttl:
            message.expires = now + op.ttl + op.grace

    def _move(self, queue: _Queue, dead: _Queue, message: _Stored) -> None:
        if self._slip("dead letter copied", 0.1):
            message = replace(message)
        else:
            del queue.messages[message.id]
        dead.position += 1
        message.id, message.position, message.cid = self._new_id(dead), dead.position, ""
        dead.messages[message.id] = message

    def _held(self, queue: _Queue, cid: str, now: float) -> list[_Stored]:
        if self._slip("claim forgotten", 0.3):
            return []
        end, ids = queue.claims.get(cid, (0.0, []))
        found = (queue.messages.get(name) for name in ids if end > now)
        return [message for message in found if message and message.cid == cid]

    def _renew(self, queue: _Queue, op: Op, now: float) -> None:
        held = self._held(queue, op.cid, now)
        op.out, op.status = (OK, 204) if held else (FAIL, 404)
        if not held or self._slip("renewal ignored", 0.5):
            return
        queue.claims[op.cid] = (now + op.ttl, [message.id for message in held])
        for message in held:
            self._hold(message, op, now)

    def _release(self, queue: _Queue, op: Op, now: float) -> None:
        for message in self._held(queue, op.cid, now):
            message.visible, message.cid = now, ""
        queue.claims.pop(op.cid, None)
        op.status = 204

    def _delete(self, queue: _Queue, op: Op, now: float) -> None:
        message = queue.messages.get(op.id)
        op.status = 204
        if message is None:
            return
        claimed = message.cid and message.visible > now
        if claimed and op.cid == message.cid and self._slip("holder turned away"):
            op.out, op.status = FAIL, 403
        elif claimed and op.cid != message.cid:
            if not op.cid and self._slip("another's claim deleted", 1.0):
                self._remove(queue, op.q, message, now)
                return
            op.out, op.status = FAIL, 403
        elif not claimed and op.cid:
            op.out, op.status = FAIL, 400
        else:
            self._remove(queue, op.q, message, now)

    def _bulk(self, queue: _Queue, op: Op, now: float) -> None:
        op.status = 204
        for name in op.ids:
            if name in queue.messages:
                self._remove(queue, op.q, queue.messages[name], now)

    def _remove(self, queue: _Queue, q: str, message: _Stored, now: float) -> None:
        if self._slip("resurrection"):
            message.shown_from, message.visible, message.cid = now + 1.0, now + 1.0, ""
            return
        del queue.messages[message.id]
        if self._bug == "deleted redelivered" and self._rng.random() < 0.05:
            self._trash.append((q, message))
            message.visible = now + 0.5

    def _pop(self, queue: _Queue, op: Op, now: float) -> None:
        taken = [m for m in self._visible(queue, now) if m.visible <= now][: op.limit]
        op.got = [(message.id, message.op.p, message.n) for message in taken]
        for message in taken:
            del queue.messages[message.id]

    def _purge(self, queue: _Queue, op: Op, now: float) -> None:
        op.status = 204
        for name in list(queue.messages):
            if not self._slip("purge leaves some", 0.5):
                del queue.messages[name]

    def _list(self, queue: _Queue, op: Op, now: float) -> None:
        start = int(op.marker.partition(".")[0] or 0)
        if start and self._slip("marker ignored", 0.01):
            start -= 1
        if op.q in self._dead_queues and self._slip("dead letter lost", 0.05):
            shown = [name for name, message in queue.messages.items() if message.position < start]
            for name in shown[:1]:
                del queue.messages[name]
        show_claimed = self._slip("claimed listed", 0.05)
        page = [
            message
            for message in self._visible(queue, now)
            if message.position > start and (op.every or message.visible <= now or show_claimed)
        ][: op.limit]
        op.got = [(message.id, message.op.p, message.n) for message in page]

    def _get(self, queue: _Queue, op: Op, now: float) -> None:
        message = queue.messages.get(op.id)
        if message is None or message.shown_from > now or self._slip("not found by id", 0.5):
            op.out, op.status = FAIL, 404
        else:
            op.got = [(message.id, message.op.p, message.n)]

    def _stats(self, queue: _Queue, op: Op, now: float) -> None:
        there = self._visible(queue, now)
        claimed = sum(1 for message in there if message.cid and message.visible > now)
        total = len(there) + (1 if op.final and self._slip("counted wrong", 1.0) else 0)
        op.counts = (total, claimed, total - claimed)

    def crash(self, now: float) -> None:
        """Everything answered is on disk, so nothing happens; unless a bug is planted."""
        if self._bug != "lost at a crash":
            return
        for queue in self._queues.values():
            for message in list(queue.messages.values()):
                if message.op.t1 > now - 1.0:
                    self.slipped = True
                    del queue.messages[message.id]


@dataclass(frozen=True)
class Weather:
    """What goes wrong around the service. Shares are of all requests."""

    unknown: float = 0.06  # get no answer: never carried out, or at once, or late
    late: float = 6.0  # s, on average, for those that are late
    crash_every: float = 0.0  # s, on average; 0: never
    restart_at_end: bool = True


class Simulation:
    """Runs a cast against a simulated service; deterministic by its seed."""

    def __init__(self, profile: Profile, seed: int, weather: Weather, bug: str = "") -> None:
        self._rng = random.Random(f"simulation {seed}")
        self._cast = Cast(profile, seed)
        self._weather = weather
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._count = itertools.count()
        self.service = Service(self._cast, self._rng, self._at, bug)
        self._cast.board.subscriptions = self.service.teller.ids(self._cast.endpoints)
        self.run = Run(
            seed=seed,
            profile="simulated",
            nemesis=bug or "none",
            deadline=DEADLINE,
            heal=1.0,
            dead_letters=self._cast.dead_letters,
        )
        self.ops: list[Op] = []
        self._crashed = -1.0
        self._up_from = 0.0
        self._stop = 0.0

    def play(self, seconds: float) -> list[Op]:
        """Load, then walk and drain; returns the history."""
        self._stop = seconds
        readers = self._cast.readers()
        for who, script in (self._cast.load() | readers).items():
            self._at(self._rng.random() * 0.1, self._starter(who, script, who in readers))
        if self._weather.crash_every:
            self._at(self._rng.expovariate(1 / self._weather.crash_every), self._crash)
        calm = seconds + DEADLINE
        if self._weather.restart_at_end:
            self._at(calm, self._crash)
        self._at(calm + 0.5, self._finish)
        now = self._play_out(calm) + self._cast.profile.claim_ttl[1] + 2.0
        for closers in self._cast.closers():
            for who, script in closers.items():
                self._at(now, self._starter(who, script, stays=True))
            now = self._play_out(now)
        self.service.teller.fine = True
        for who, script in self._cast.last_looks().items():
            self._at(now, self._starter(who, script, stays=True))
        self._play_out(now)
        return self.ops + self.service.teller.ops

    def _finish(self, now: float) -> None:
        self._cast.board.finishing = True

    def _at(self, when: float, do: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._count), do))

    def _play_out(self, now: float) -> float:
        """Play every event and what follows from it; returns the time of the last."""
        while self._events:
            now, _, do = heapq.heappop(self._events)
            do(now)
        return now

    def _starter(self, who: str, script: Script, stays: bool) -> Callable[[float], None]:
        return lambda now: self._step(who, script, stays, next(script), now)

    def _resume(self, who: str, script: Script, stays: bool, done: Op) -> Callable[[float], None]:
        def resume(now: float) -> None:
            if now > self._stop and not stays:
                return
            try:
                step = script.send(done)
            except StopIteration:
                return
            self._step(who, script, stays, step, now)

        return resume

    def _step(self, who: str, script: Script, stays: bool, step: Op | float, now: float) -> None:
        if not isinstance(step, Op):
            self._at(now + step, self._resume(who, script, stays, IDLE))
            return
        step.who, step.t0 = who, now
        self._at(
            self._carry_out(step, now), lambda end: self._answer(who, script, stays, step, end)
        )

    def _carry_out(self, op: Op, now: float) -> float:
        """Arrange for the operation to happen, or not; returns when its client knows."""
        rng = self._rng
        if now < self._up_from:
            op.out = FAIL
            return now + 0.001
        arrives = now + rng.expovariate(1 / 0.004)
        if rng.random() < self._weather.unknown and not op.final:
            fate = rng.random()
            if fate < 0.7:
                late = rng.expovariate(1 / self._weather.late) if fate < 0.3 else 0.0
                self._at(arrives + late, self._applier(msgspec.structs.replace(op), now))
            op.note = UNKNOWN
            return now + (DEADLINE if rng.random() < 0.3 else rng.random())
        self._at(arrives, self._applier(op, now))
        # The answer cannot overtake what a planted bug says of its time.
        return arrives + rng.expovariate(1 / 0.004) + 1e-6

    def _applier(self, op: Op, sent: float) -> Callable[[float], None]:
        def apply(now: float) -> None:
            if self._crashed < sent:
                self.service.apply(op, now)

        return apply

    def _answer(self, who: str, script: Script, stays: bool, op: Op, now: float) -> None:
        if op.t1 > now:
            self._at(op.t1, lambda end: self._answer(who, script, stays, op, end))
            return
        op.t1 = now
        if op.note == UNKNOWN or self._crashed >= op.t0:
            op.out, op.status, op.ids, op.cid, op.got = INFO, 0, _asked_ids(op), _asked_cid(op), []
        self.ops.append(op)
        self._resume(who, script, stays, op)(now)

    def _crash(self, now: float) -> None:
        self.service.crash(now)
        self._crashed = now
        self._up_from = now + 0.3
        self.service.teller.crash(now, self._up_from)
        self.ops.append(Op("dead", t0=now, t1=now, out=OK))
        self.ops.append(Op("fault", t0=now, t1=self._up_from, out=OK, note="crash"))
        if now < self._stop:
            self._at(now + self._rng.expovariate(1 / self._weather.crash_every), self._crash)


def _asked_ids(op: Op) -> list[str]:
    return op.ids if op.f == "bulk" else []


def _asked_cid(op: Op) -> str:
    return "" if op.f == "claim" else op.cid


CALM = Weather(unknown=0.0)
WEATHERS = (
    CALM,
    Weather(),
    Weather(unknown=0.02, restart_at_end=False),
    Weather(crash_every=5.0),
    Weather(unknown=0.03, late=1.0, crash_every=9.0, restart_at_end=False),
)
SECONDS = 25.0  # of load
CROWDED = {"crowd", "long"}  # profiles that are costly, and nothing new to the checker


def judge_right(seed: int) -> tuple[int, list[str]]:
    """Operations of a right history, in some profile and weather, and the false alarms over it."""
    names = sorted(PROFILES.keys() - CROWDED)
    profile = _slower(PROFILES[names[seed % len(names)]])
    simulation = Simulation(profile, seed, WEATHERS[seed // len(names) % len(WEATHERS)])
    ops = simulation.play(SECONDS)
    violations = check(simulation.run, ops)
    # R15 judges the weather, which is what it is.
    return len(ops), [violation.render(0.0) for violation in violations if violation.rule != "R15"]


def judge_planted(bug: str, seed: int) -> bool | None:
    """Whether the bug was caught; None if it did not strike in this history."""
    weather = Weather(unknown=0.02)
    if bug in {"late expiry", "falls silent"}:
        weather = CALM  # what a lost claim may have prolonged is no proof, and silence is R15's
    if bug == "lost at a crash":
        weather = Weather(crash_every=7.0)
    if bug in {"pending lost at a crash", "subscription lost at a crash"}:
        weather = Weather(crash_every=7.0)
    profile = PROFILES["webhooks" if bug in sim_telling.BUGS else "mixed"]
    simulation = Simulation(_slower(profile), seed, weather, bug)
    found = {violation.rule for violation in check(simulation.run, simulation.play(SECONDS))}
    return bool(found & BUGS[bug]) if simulation.service.slipped else None


def _slower(profile: Profile) -> Profile:
    """Simulated seconds cost nothing, operations do."""
    return replace(profile, think=0.05, short_ttl=(3, 8))
