"""The casts of runs: the agents of `tests.chaos`, few of them, and those whom no history there has.

Queues that are purged, deleted and made anew are worked on by agents of their own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from nusku.broker.messages import POP_S
from tests.chaos.harness.generator import Cast, Profile, Script, _pause, _producer, _worker
from tests.chaos.harness.history import FAIL, OK, Op
from tests.deterministic.guests import guest
from tests.deterministic.pooling import administrator

_BASE = Profile(
    projects=1,
    queues=("jobs",),
    producers=1,
    workers=2,
    readers=1,
    listers=1,
    batch=4,
    short_share=0.2,
    short_ttl=(2, 4),
    delay_share=0.1,
    claim_ttl=(1, 1),
    backlog=12,
    think=0.15,
)


SECONDS = (1.0, 1.5, 3.0)
LAPSE_S = 3.5  # longer than claims live, and messages are delayed
POPPED_S = POP_S + 2.0  # what is popped where it is encrypted is held first, lest it be lost
MOVED_S = 30.0  # a move whose mover died is undone after ten seconds, by somebody who then waits

ADMINISTRATORS = (0, 1, 3)  # of so many pools


@dataclass(frozen=True)
class Scene:
    """A cast, and what its members work on."""

    name: str
    profile: Profile
    nodes: int = 2
    churned: tuple[str, ...] = ()  # queues that are purged, deleted and made anew
    pools: tuple[str, ...] = ()  # that come, are drained and go
    holders: int = 0  # who keep what they claim for long
    guests: int = 0  # who subscribe and leave
    encrypted: bool = False  # all queues; and the keys change
    stills_s: tuple[float, ...] = ()  # for so long, roughly, a node stands still again and again
    seconds: tuple[float, ...] = SECONDS  # of load: a run has one of these
    lapse_s: float = LAPSE_S  # after which nothing is held that the load has left behind
    heal_s: float = 1.0  # until all is well again
    patience_s: float = 10.0  # of clients


_CLAIMS = Scene("claims", replace(_BASE, workers=4, listers=0, producers=2))
_MIXED = Scene("mixed", replace(_BASE, poppers=1), nodes=3)
_LETTERS = Scene("letters", replace(_BASE, queues=(), retriers=2, workers=0))
_CHURN = Scene("churn", replace(_BASE, queues=(), workers=1, readers=0), churned=("fickle",))
_FIFO = Scene("fifo", replace(_BASE, producers=3, readers=2, workers=1, short_share=0, batch=3))
_WEBHOOKS = Scene(
    "webhooks",
    replace(
        _BASE, queues=("feed",), workers=1, readers=0, listers=0, subscribers=2, keepers=1,
        refused_share=0.05, backlog=20,
    ),
)  # fmt: skip
_POOLS = Scene(
    "pools",
    replace(_BASE, retriers=1, listers=0, producers=2, think=0.1),
    nodes=3,
    churned=("fickle",),
    pools=("a", "b"),
    heal_s=MOVED_S,
)
_SLEEPERS = replace(
    _POOLS, name="sleepers", stills_s=(1.0, 12.0, 12.0), seconds=(15.0, 30.0),
    profile=replace(_POOLS.profile, think=0.5, workers=1),
)  # fmt: skip
_SECRETS = Scene(
    "secrets",
    replace(
        _BASE, queues=("jobs",), poppers=1, retriers=1, subscribers=1, listers=1, think=0.25,
    ),
    pools=("a",),
    encrypted=True,
    seconds=(3.0, 6.0),
    lapse_s=POPPED_S,
    heal_s=MOVED_S,
)  # fmt: skip
_GUESTS = Scene(
    "guests",
    replace(_BASE, queues=("feed",), workers=1, readers=0, listers=0, subscribers=1, keepers=1),
    guests=3,
    seconds=(2.0, 3.0, 4.0),
)
_STILL = Scene(
    "still",
    replace(
        _BASE, queues=("jobs",), producers=2, workers=2, poppers=1, retriers=1, subscribers=1,
        short_share=0.4, claim_ttl=(1, 2), think=0.35, listers=2,
    ),
    nodes=3,
    holders=2,
    stills_s=(1.5, 3.0, 18.0),
    seconds=(6.0, 12.0, 25.0),
)  # fmt: skip
_DOZERS = Scene(
    "dozers",
    replace(_BASE, queues=(), workers=0, listers=0, poppers=4, short_share=0, think=2.5),
    encrypted=True,
    stills_s=(POPPED_S, POPPED_S + 15),
    seconds=(100.0, 200.0),
    patience_s=100.0,
    lapse_s=POPPED_S,
)

SCENES = (
    *(_CLAIMS, _CHURN, _MIXED, _LETTERS, _CLAIMS, _FIFO, _LETTERS, _CHURN, _MIXED, _WEBHOOKS),
    *(_POOLS, _GUESTS, _SECRETS, _STILL, _SLEEPERS, _DOZERS),
)
"""Those of one seed after the other; those of the second line take the longest."""
BY_NAME = {scene.name: scene for scene in SCENES}


class Company(Cast):
    """All agents of one run, by name."""

    def __init__(self, scene: Scene, seed: int) -> None:
        super().__init__(scene.profile, seed)
        self.scene = scene
        self.churned = [f"project-0/{name}" for name in scene.churned]
        self.early = [to for to in self.endpoints if to.endswith(".0")]
        self.late = [to for to in self.endpoints if not to.endswith(".0")]

    @property
    def queues(self) -> list[str]:
        return super().queues + self.churned

    def load(self) -> dict[str, Script]:
        scripts = super().load()
        if not super().queues:
            scripts.clear()
        if self.churned:
            for who, script in (
                ("fickle-producer-0", _producer),
                ("fickle-producer-1", _producer),
                ("fickle-worker", _worker),
                ("fickle-lister", _looker),
                ("churner-0", _churner),
                ("churner-1", _churner),
            ):
                scripts[who] = script(self, who, self.churned, self._rng(who))
        for number in range(ADMINISTRATORS[len(self.scene.pools)]):
            who = f"administrator-{number}"
            scripts[who] = administrator(self.queues, self.scene.pools, self._rng(who))
        for number in range(self.scene.holders):
            who = f"holder-{number}"
            scripts[who] = _holder(self, who, self.work, self._rng(who))
        for number in range(self.scene.guests):
            who = f"guest-{number}"
            scripts[who] = guest(self, who, self.work, self._rng(who))
        return scripts

    def _rng(self, who: str) -> random.Random:
        return random.Random(f"{self._seed}/{who}")


def _looker(cast: Cast, who: str, queues: list[str], rng: random.Random) -> Script:
    """Lists from the beginning; a marker is of no use in a queue that is made anew."""
    while True:
        yield _pause(cast, rng)
        yield Op("list", q=rng.choice(queues), limit=20, every=rng.random() < 0.7)


def _holder(cast: Cast, who: str, queues: list[str], rng: random.Random) -> Script:
    """Renews its claims, in good time or hardly, until it is told that they are over, or is done."""
    while True:
        yield _pause(cast, rng)
        q, ttl = rng.choice(queues), rng.randint(*cast.profile.claim_ttl)
        claim = yield Op("claim", q=q, ttl=ttl, grace=5, limit=3)
        if claim.out != OK or not claim.got:
            continue
        for _ in range(rng.randint(1, 6)):
            yield ttl * rng.uniform(0.3, 1.05)
            renewed = yield Op("renew", q=q, cid=claim.cid, ttl=ttl, grace=5)
            if renewed.out == FAIL and renewed.status:
                break
        for name, _, _ in claim.got:
            done = yield Op("delete", q=q, id=name, cid=claim.cid)
            cast.board.gone(q, done.out == OK)


def _churner(cast: Cast, who: str, queues: list[str], rng: random.Random) -> Script:
    while True:
        yield _pause(cast, rng) * 4
        q, choice = rng.choice(queues), rng.random()
        if choice < 0.4:
            yield Op("purge", q=q)
        elif choice < 0.8:
            yield Op("drop", q=q)
        else:
            yield Op("make", q=q)
        cast.board.backlog[q] = 0
