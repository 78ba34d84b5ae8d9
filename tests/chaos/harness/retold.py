"""A history retold by the clock of the store, where that was set while it was written.

A shared store goes by the wall clock of its server. When that is set forward, lives and claims end
sooner by so much; when it is set back, the store's time stands still until the clock is there again,
as it never goes back. `skew` events say when the clock was set, and how far ahead of true time it was
from then on. By the store's time every rule holds as it stands, whatever was done to the clock.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec

from tests.chaos.harness.history import Op, Run

CREEPS = 1e-4
"""How fast time goes while it stands still: so that what happened later remains later."""


IDLE_S = 3.0
"""Set back, the time of a queue stands still where it was last looked at; so long ago at most."""


class StoreTime:
    """From true time to the store's, in s; what was later is later in both."""

    def __init__(self, skews: Iterable[tuple[float, float]]) -> None:
        """When the clock was set, and how far ahead it is since then."""
        self._starts: list[float] = []
        self._parts: list[tuple[float, float]] = []  # the store's time then, and its rate
        self._add(float("-inf"), 0.0, 1.0)
        ahead = 0.0
        for at, to in sorted(skews):
            reached = self(at)
            ahead = to
            if (behind := reached - (at + ahead)) <= 0:
                self._add(at, at + ahead, 1.0)
            else:
                self._add(at, reached, CREEPS)
                again = at + behind / (1 - CREEPS)
                self._add(again, again + ahead, 1.0)

    def _add(self, start: float, reached: float, rate: float) -> None:
        while self._starts and self._starts[-1] >= start:
            self._starts.pop()
            self._parts.pop()
        self._starts.append(start)
        self._parts.append((reached, rate))

    def __call__(self, at: float) -> float:
        number = bisect_right(self._starts, at) - 1
        reached, rate = self._parts[number]
        start = self._starts[number] if number else 0.0
        return reached + (at - start) * rate


def by_store_clock(run: Run, ops: Sequence[Op]) -> tuple[Run, Sequence[Op]]:
    """How to judge them, and the same operations; copies, if the clock was ever set."""
    skews = sorted((op.t0, float(op.ttl)) for op in ops if op.f == "skew")
    if not skews:
        return run, ops
    offsets = [0.0, *(ahead for _, ahead in skews)]
    if any(later < sooner for sooner, later in pairwise(offsets)):
        run = msgspec.structs.replace(run, slack=run.slack + IDLE_S)
    time = StoreTime(skews)
    return run, [msgspec.structs.replace(op, t0=time(op.t0), t1=time(op.t1)) for op in ops]
