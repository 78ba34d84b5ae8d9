"""Who does what: agents written as scripts, each with its own seeded randomness.

A script yields an operation and is sent it back completed, or yields a number of seconds to wait.
It knows neither the network nor the clock, so the simulator runs the very same scripts.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.harness.history import FAIL, INFO, OK, Op

Script = Generator[Op | float, Op, None]

LONG_TTL = 3600  # s
IDLE = Op("idle", out=OK)  # sent back after a wait


@dataclass(frozen=True)
class Profile:
    """How many of each agent, and over what. Each project has the same queues by name."""

    projects: int = 3
    queues: tuple[str, ...] = ("jobs-0", "jobs-1", "jobs-2")
    producers: int = 3
    workers: int = 4
    readers: int = 2
    listers: int = 1
    poppers: int = 0  # each project gets a queue that is only popped
    retriers: int = 0  # each project gets a queue with dead letters
    subscribers: int = 0  # webhooks of each queue that is worked on
    keepers: int = 0  # look after subscriptions
    refused_share: float = 0.0  # of posts that ask for what there is not
    batch: int = 6  # messages a post, at most
    short_share: float = 0.25  # of posts whose messages soon expire
    short_ttl: tuple[int, int] = (4, 12)  # s
    delay_share: float = 0.05
    claim_ttl: tuple[int, int] = (2, 3)  # s
    backlog: int = 100  # messages a queue, at which its producers pause
    think: float = 0.003  # s, on average, between two operations of an agent


PROFILES: dict[str, Profile] = {
    "mixed": Profile(poppers=1, retriers=1),
    "brief": Profile(
        projects=1,
        queues=("jobs-0", "jobs-1"),
        producers=2,
        workers=3,
        readers=1,
        poppers=1,
        retriers=1,
        backlog=40,
        claim_ttl=(1, 2),
        think=0.02,
    ),
    "fifo": Profile(queues=("fifo-0",), workers=1, readers=4, short_share=0, batch=3),
    "claims": Profile(projects=1, queues=("jobs-0",), workers=8, readers=1, short_share=0.1),
    "held": Profile(
        projects=1, queues=("jobs-0",), workers=12, readers=1, short_share=0.1, claim_ttl=(6, 9)
    ),
    "fanout": Profile(queues=("feed",), producers=1, workers=0, readers=8, backlog=3000),
    "nodes": Profile(poppers=1, retriers=1, claim_ttl=(1, 2), think=0.01),
    "crowd": Profile(producers=120, workers=120, listers=20, think=0.05, backlog=500),
    "long": Profile(
        producers=40,
        workers=72,
        readers=2,
        listers=2,
        poppers=3,
        retriers=4,
        backlog=400,
        short_ttl=(2, 8),
        claim_ttl=(2, 5),
        think=0.004,
    ),
    "ttl": Profile(workers=2, short_share=0.9, short_ttl=(2, 4), batch=20, backlog=5000),
    "webhooks": Profile(
        projects=2,
        queues=("feed", "jobs"),
        workers=2,
        readers=1,
        subscribers=3,
        keepers=1,
        refused_share=0.02,
        think=0.02,
    ),
}

DEAD_AFTER = 2  # claims
PURGED = 0.05  # share of what is asked of queues that are popped
BAD_TTL = 10**9  # s, which no server grants
RETRY_POLICY: dict[str, Any] = {
    "retries_with_no_delay": 1,
    "minimum_delay": 1,
    "minimum_delay_retries": 60,
    "maximum_delay": 11,
    "maximum_delay_retries": 30,
}
"""Of all subscriptions: soon again, and for longer than a run."""
LOOKS = 200  # at what is pending in the end, half a second apart
RETRY_QUEUE, DEAD_QUEUE, POP_QUEUE = "retry", "retry.dead", "pop"


@dataclass
class Board:
    """What the agents know together: how full queues are, and ids worth asking for."""

    backlog: dict[str, int] = field(default_factory=dict)
    recent: list[tuple[str, str]] = field(default_factory=list)  # (queue, message id)
    finishing: bool = False  # readers: walk to the end and stop
    subscriptions: dict[str, str] = field(default_factory=dict)  # ids, by endpoint

    def posted(self, op: Op, rng: random.Random) -> None:
        self.backlog[op.q] = self.backlog.get(op.q, 0) + op.size
        self.recent.append((op.q, op.ids[0]))
        if len(self.recent) > 500:
            self.recent[rng.randrange(500)] = self.recent.pop()

    def gone(self, q: str, count: int = 1) -> None:
        self.backlog[q] = self.backlog.get(q, 0) - count


class Cast:
    """All agents of one run, by name."""

    def __init__(self, profile: Profile, seed: int) -> None:
        self.profile = profile
        self.board = Board()
        self._seed = seed
        projects = [f"project-{i}" for i in range(profile.projects)]
        self.work = [f"{project}/{name}" for project in projects for name in profile.queues]
        self.pop = [f"{project}/{POP_QUEUE}" for project in projects if profile.poppers]
        self.retry = [f"{project}/{RETRY_QUEUE}" for project in projects if profile.retriers]
        self.dead = [f"{project}/{DEAD_QUEUE}" for project in projects if profile.retriers]
        self.endpoints = {
            f"{q.replace('/', '.')}.{i}": q for q in self.work for i in range(profile.subscribers)
        }
        self.letters: set[str] = set()  # endpoints that are told by mail
        self.dead_letters = {
            source: (dead, DEAD_AFTER) for source, dead in zip(self.retry, self.dead, strict=True)
        }

    @property
    def queues(self) -> list[str]:
        return self.work + self.pop + self.retry + self.dead

    def load(self) -> dict[str, Script]:
        """The agents that make the load, without the readers."""
        everywhere = self.work + self.pop + self.retry
        scripts: dict[str, Script] = {}
        for role, count, script, queues in (
            ("producer", self.profile.producers, _producer, everywhere),
            ("worker", self.profile.workers, _worker, self.work),
            ("lister", self.profile.listers, _lister, everywhere),
            ("popper", self.profile.poppers, _popper, self.pop),
            ("retrier", self.profile.retriers, _retrier, self.retry),
            ("keeper", self.profile.keepers, _keeper, self.work),
        ):
            for i in range(count):
                who = f"{role}-{i}"
                scripts[who] = script(self, who, queues, random.Random(f"{self._seed}/{who}"))
        return scripts

    def readers(self) -> dict[str, Script]:
        """Marker walks over every queue; they end once `board.finishing` is set and all is seen."""
        queues = self.work + self.pop + self.retry + self.dead
        names = [f"reader-{i}" for i in range(self.profile.readers)]
        return {
            who: _reader(self, who, queues, random.Random(f"{self._seed}/{who}")) for who in names
        }

    def closers(self) -> list[dict[str, Script]]:
        """One script a queue: count, walk, and claim everything that is left.

        Claiming moves messages into the dead-letter queues, so those come last.
        """
        return [
            {f"closer {q}": _closer(q, q in self.retry) for q in self.queues if q not in self.dead},
            {f"closer {q}": _closer(q, retry=False) for q in self.dead},
        ]

    def last_looks(self, *, replay_all: bool = False) -> dict[str, Script]:
        """One script an endpoint: wait until nothing is pending, and see what was given up.

        Of all, or of every second one, what was given up is replayed first.
        """
        return {
            f"closer {to}": _last_look(self, to, replay=replay_all or number % 2 == 0)
            for number, to in enumerate(self.endpoints)
        }


def _pause(cast: Cast, rng: random.Random) -> float:
    return rng.expovariate(1 / cast.profile.think)


def _producer(cast: Cast, who: str, queues: list[str], rng: random.Random) -> Script:
    profile, board = cast.profile, cast.board
    epochs = dict.fromkeys(queues, 0)
    numbers = dict.fromkeys(queues, 0)
    while True:
        yield _pause(cast, rng)
        q = rng.choice(queues)
        if board.backlog.get(q, 0) > profile.backlog:
            continue
        size = 1 if rng.random() < 0.6 else rng.randint(1, profile.batch)
        short = rng.random() < profile.short_share
        # Dead-letter queues are left alone by expiry: that makes their rule decidable.
        ttl = rng.randint(*profile.short_ttl) if short and q not in cast.retry else LONG_TTL
        if rng.random() < profile.refused_share:
            ttl = BAD_TTL
        delay = rng.randint(2, 3) if rng.random() < profile.delay_share and ttl > 4 else 0
        p = f"{who}.{epochs[q]}.{q}"
        done = yield Op("post", q=q, p=p, n=numbers[q], size=size, ttl=ttl, delay=delay)
        numbers[q] += size
        if done.out == OK:
            board.posted(done, rng)
            if short:
                board.gone(q, size)  # it leaves by itself
        else:
            # A late write of this one must not disturb the order of those that follow.
            epochs[q] += 1
            numbers[q] = 0
            yield 0.05


def _worker(cast: Cast, who: str, queues: list[str], rng: random.Random) -> Script:
    profile, board = cast.profile, cast.board
    while True:
        yield _pause(cast, rng)
        q = rng.choice(queues)
        ttl, grace = rng.randint(*profile.claim_ttl), rng.randint(0, 2)
        limit = rng.choice((1, 1, 5, 10, 20))
        claim = yield Op("claim", q=q, ttl=ttl, grace=grace, limit=limit)
        if claim.out != OK or not claim.got:
            yield 0.05
            continue
        ids = [name for name, _, _ in claim.got]
        mood = rng.random()
        if mood < 0.04:
            continue  # dies: the claim lapses
        if mood < 0.10:
            yield Op("release", q=q, cid=claim.cid)
            continue
        if mood < 0.20:
            yield rng.uniform(0, ttl * 0.9)
            again = rng.randint(*profile.claim_ttl)
            yield Op("renew", q=q, cid=claim.cid, ttl=again, grace=grace)
            if rng.random() < 0.5:
                yield rng.uniform(0, again * 1.2)  # now and then too late
        if mood > 0.9:
            done = yield Op("bulk", q=q, ids=ids)
            if done.out == OK:
                board.gone(q, len(ids))
            continue
        for name in ids:
            done = yield Op("delete", q=q, id=name, cid=claim.cid)
            if done.out == OK:
                board.gone(q)
            if done.out == INFO:
                break
        if rng.random() < 0.1:
            yield Op("release", q=q, cid=claim.cid)


def _retrier(cast: Cast, who: str, queues: list[str], rng: random.Random) -> Script:
    """Fails at most jobs, so that they become dead letters."""
    while True:
        yield _pause(cast, rng)
        q = rng.choice(queues)
        claim = yield Op("claim", q=q, ttl=2, grace=0, limit=5)
        if claim.out != OK or not claim.got:
            yield 0.1
            continue
        for name, _, _ in claim.got:
            cast.board.gone(q)  # whichever way it goes
            if rng.random() < 0.3:
                yield Op("delete", q=q, id=name, cid=claim.cid)
        if rng.random() < 0.8:
            yield Op("release", q=q, cid=claim.cid)


def _popper(cast: Cast, who: str, queues: list[str], rng: random.Random) -> Script:
    while True:
        yield _pause(cast, rng)
        if rng.random() < PURGED:
            purge = yield Op("purge", q=rng.choice(queues))
            if purge.out == OK:
                cast.board.backlog[purge.q] = 0
            continue
        popped = yield Op("pop", q=rng.choice(queues), limit=rng.choice((1, 5, 20)))
        cast.board.gone(popped.q, len(popped.got))
        if not popped.got:
            yield 0.1


def _lister(cast: Cast, who: str, queues: list[str], rng: random.Random) -> Script:
    """Plain lists, single messages, statistics, and deletions without a claim."""
    recent = cast.board.recent
    while True:
        yield _pause(cast, rng)
        choice = rng.random()
        if choice < 0.5 or not recent:
            yield Op("list", q=rng.choice(queues), limit=rng.choice((5, 20)))
        elif choice < 0.8:
            q, name = rng.choice(recent)
            yield Op("get", q=q, id=name)
        elif choice < 0.9:
            yield Op("stats", q=rng.choice(queues))
        else:
            q, name = rng.choice(recent)
            if q not in cast.retry:
                yield Op("delete", q=q, id=name)


def _keeper(cast: Cast, who: str, queues: list[str], rng: random.Random) -> Script:
    """Looks at subscriptions, pauses and resumes them, and replays what was given up."""
    while True:
        yield rng.uniform(0.05, 0.5)
        to = rng.choice(sorted(cast.board.subscriptions))
        choice = rng.random()
        if choice < 0.4:
            yield _of_subscription(cast, "waiting", to)
        elif choice < 0.6:
            yield _of_subscription(cast, "failed", to, limit=20)
        elif choice < 0.8:
            yield _of_subscription(cast, "replay", to)
        else:
            yield _of_subscription(cast, "pause", to)
            yield rng.uniform(0, 1)
            yield _of_subscription(cast, "resume", to)


def _last_look(cast: Cast, to: str, *, replay: bool) -> Script:
    while (resumed := (yield _of_subscription(cast, "resume", to))).out != OK:
        if resumed.status == 404:
            break  # the looks that follow say so
        yield 0.2
    for _ in range(LOOKS):
        seen = yield _of_subscription(cast, "waiting", to, final=True)
        pending, failed, _ = seen.counts
        if seen.status == 404:
            return  # it was lost
        if seen.out == OK and not pending:
            if not (replay and failed):
                break
            yield _of_subscription(cast, "replay", to)
        yield 0.5
    marker = ""
    while True:
        page = yield _of_subscription(cast, "failed", to, limit=20, marker=marker, final=True)
        if page.got:
            marker = page.got[-1][0]
        elif page.out == OK:
            break
        else:
            yield 0.2


def _of_subscription(
    cast: Cast, f: str, to: str, limit: int = 0, marker: str = "", *, final: bool = False
) -> Op:
    """An operation on the subscription of an endpoint."""
    q, id_ = cast.endpoints[to], cast.board.subscriptions[to]
    return Op(f, q=q, to=to, id=id_, limit=limit, marker=marker, final=final)


def _reader(cast: Cast, who: str, queues: list[str], rng: random.Random) -> Script:
    markers = dict.fromkeys(queues, "")
    unfinished: set[str] | None = None
    while unfinished is None or unfinished:
        if cast.board.finishing and unfinished is None:
            unfinished = set(queues)
        q = rng.choice(sorted(unfinished or queues))
        page = yield _page(q, f"{who} {q}", markers[q], limit=rng.choice((5, 20)))
        if page.got:
            markers[q] = page.got[-1][0]
        elif page.out == OK:
            if unfinished is not None:
                unfinished.remove(q)
            yield 0.02 if unfinished is None else 0.0
        yield _pause(cast, rng) if page.out != FAIL else 0.1


def _closer(q: str, retry: bool) -> Script:
    while (yield Op("stats", q=q, final=True)).out != OK:
        yield 0.2
    marker = ""
    while True:
        page = yield _page(q, f"final {q}", marker, limit=20, final=True)
        if page.got:
            marker = page.got[-1][0]
        elif page.out == OK:
            break
        else:
            yield 0.2
    while True:
        claim = yield Op("claim", q=q, ttl=600, grace=0, limit=20, final=True)
        if claim.out != OK:
            yield 0.2
        elif not claim.got:
            if not retry:
                break
            # An empty answer may mean that a whole page has just become dead letters.
            stats = yield Op("stats", q=q)
            if stats.out == OK and stats.counts[2] == 0:
                break


def _page(q: str, walk: str, marker: str, limit: int, final: bool = False) -> Op:
    return Op("list", q=q, walk=walk, marker=marker, limit=limit, every=True, final=final)
