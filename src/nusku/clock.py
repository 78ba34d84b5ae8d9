"""The time, as the stores see it."""

import time
from collections.abc import Callable

Clock = Callable[[], int]
"""Milliseconds since the epoch. Never goes back while the process lives."""

# Unlike CLOCK_MONOTONIC it goes on while a laptop sleeps, so claims lapse meanwhile as they should.
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def steady_clock() -> Clock:
    """A clock that starts at the wall clock's time and then runs steadily.

    Somebody setting the wall clock while the server runs neither frees a live claim nor expires
    a message early: lifetimes are measured, not read off the wall.
    """
    base_ms = time.time_ns() // 1_000_000 - time.clock_gettime_ns(_STEADY) // 1_000_000

    def now_ms() -> int:
        return base_ms + time.clock_gettime_ns(_STEADY) // 1_000_000

    return now_ms


def not_before(clock: Clock, start_ms: int) -> Clock:
    """The same clock, so much ahead that it starts at `start_ms` if it would have been earlier.

    Where time had come further before a restart, because the wall clock was set back since, it goes
    on from there. If it stood still until the wall is there again, no claim would end meanwhile.
    """
    ahead_ms = start_ms - clock()
    if ahead_ms <= 0:
        return clock

    def now_ms() -> int:
        return clock() + ahead_ms

    return now_ms
