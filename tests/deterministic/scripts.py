"""The casts of runs: the agents of `tests.chaos`, few of them, and those whom no history there has.

Queues that are purged, deleted and made anew are worked on by agents of their own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from tests.chaos.harness.generator import Cast, Profile, Script, _pause, _producer, _worker
from tests.chaos.harness.history import Op

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


@dataclass(frozen=True)
class Scene:
    """A cast, and what its members work on."""

    name: str
    profile: Profile
    nodes: int = 2
    churned: tuple[str, ...] = ()  # queues that are purged, deleted and made anew


SECONDS = (1.0, 1.5, 3.0)  # of load: a run has one of these

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

SCENES = (_CLAIMS, _CHURN, _MIXED, _LETTERS, _CLAIMS, _FIFO, _LETTERS, _CHURN, _MIXED, _WEBHOOKS)
"""Those of one seed after the other; notifications take the longest."""


class Company(Cast):
    """All agents of one run, by name."""

    def __init__(self, scene: Scene, seed: int) -> None:
        super().__init__(scene.profile, seed)
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
                scripts[who] = script(self, who, self.churned, random.Random(f"{self._seed}/{who}"))
        return scripts


def _looker(cast: Cast, who: str, queues: list[str], rng: random.Random) -> Script:
    """Lists from the beginning; a marker is of no use in a queue that is made anew."""
    while True:
        yield _pause(cast, rng)
        yield Op("list", q=rng.choice(queues), limit=20, every=rng.random() < 0.7)


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
