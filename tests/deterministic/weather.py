"""What goes wrong between a node and its store: at each call one thing, or nothing, by the seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

FINE = "fine"
SLOW = "slow"  # before, after, or both
UNSENT = "unsent"  # no effect, and the node is told so
UNHEARD = "unheard"  # it had its effect, and the node is told that it failed
LATE = "late"  # the node is told that it failed, and later it has its effect
CRASH_BEFORE = "crash before"
CRASH_DURING = "crash during"  # it is under way, and will have its effect
CRASH_AFTER = "crash after"

PAUSE_MAX_S = 2.5

FATES = (SLOW, UNSENT, UNHEARD, LATE, CRASH_BEFORE, CRASH_DURING, CRASH_AFTER)


@dataclass(frozen=True)
class Climate:
    """How often each of `FATES` strikes, in the same order; and the rest of what goes wrong."""

    shares: tuple[float, ...]
    cuts_s: float = 0.0  # s between two power cuts, on average; 0: none
    hints_lost: float = 0.0
    replies_lost: float = 0.0
    hang_ups: float = 0.0  # clients that hang up while they wait
    slow_commits: float = 0.3  # the share of commits that take their time
    faulty: float = 0.0  # of operations whose statements fail half-way


CALM = Climate((0.0,) * len(FATES))

CLIMATES = (
    Climate((0.10, 0.01, 0.01, 0.01, 0.002, 0.002, 0.002), 0, 0.1, 0.01, 0.02),
    Climate((0.30, 0.00, 0.00, 0.00, 0.000, 0.000, 0.000), 0, 0.5, 0.00, 0.02),
    Climate((0.05, 0.02, 0.03, 0.05, 0.000, 0.000, 0.000), 0, 0.1, 0.02, 0.00),
    Climate((0.10, 0.00, 0.00, 0.00, 0.005, 0.005, 0.005), 0, 0.1, 0.00, 0.02),
    Climate((0.10, 0.01, 0.01, 0.00, 0.001, 0.001, 0.001), 3.0, 0.1, 0.01, 0.00),
    Climate((0.02, 0.00, 0.00, 0.00, 0.000, 0.000, 0.000), 2.0, 0.1, 0.00, 0.05, 0.7, 0.01),
    Climate((0.00, 0.00, 0.00, 0.00, 0.000, 0.000, 0.000), 0, 0.0, 0.00, 0.05, 0.3, 0.03),
)


class Weather:
    """The climate, or none. ``slow_commits`` and ``faulty`` are for the store to ask."""

    def __init__(self, rng: random.Random, climate: Climate) -> None:
        self._rng = rng
        self._climate = climate
        self.rest()

    def rest(self) -> None:
        """From now on nothing goes wrong."""
        self.now, self._bad = CALM, 0.0

    def rage(self) -> None:
        self.now, self._bad = self._climate, sum(self._climate.shares)

    def fate(self) -> str:
        """Of one call of a store."""
        drawn = self._rng.random()
        if drawn >= self._bad:
            return FINE
        for fate, share in zip(FATES, self.now.shares, strict=True):
            if drawn < share:
                return fate
            drawn -= share
        return FINE

    def strikes(self, share: float) -> bool:
        return share > 0 and self._rng.random() < share

    def pause_s(self) -> float:
        """A delay: mostly none to speak of, now and then longer than claims live."""
        rng = self._rng
        drawn = rng.random()
        if drawn < 0.6:
            return rng.random() * 0.02
        return rng.random() * (0.5 if drawn < 0.95 else PAUSE_MAX_S)
