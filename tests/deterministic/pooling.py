"""Administrators who add pools, give them other stores, drain and delete them, and move queues."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tests.chaos.harness.generator import Script
from tests.chaos.harness.history import Op

PAUSE_S = 0.25
STORES = 2  # that each pool may have


def uri_of(pool: str, number: int = 0) -> str:
    """One of the stores that only this pool ever has."""
    return f"redis://{pool}/{number}"


def administrator(queues: Sequence[str], pools: Sequence[str], rng: random.Random) -> Script:
    """Does one thing after the other to any pool or queue."""
    while True:
        yield rng.expovariate(1 / PAUSE_S)
        pool, choice = rng.choice(pools), rng.random()
        if choice < 0.25:
            yield Op("drain", to=pool)
        elif choice < 0.4:
            uri = uri_of(pool, rng.randrange(STORES))
            yield Op("pool", to=pool, note=uri, limit=rng.choice((1, 1, 3)))
        elif choice < 0.5:
            yield Op("weigh", to=pool, limit=rng.choice((0, 1, 3)))
        elif choice < 0.6:
            yield Op("unpool", to=pool)
        else:
            yield Op("move", q=rng.choice(queues), to=rng.choice((*pools, "")))
