"""Requests go first: deliveries take what is left of the event loop.

Both run on one loop. While requests alone could fill it, deliveries are let through one at a
time and seldom, and catch up afterwards; what waits is on disk.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 0.02  # over which the load is measured
AT_A_TIME = 8  # requests under way, on average: more have to wait for one another. Or else
BUSY_SHARE, REQUESTS_PER_S = 0.8, 1000  # so much of the loop's time, and that not for deliveries
TURN_S = 0.015  # between two turns while it is crowded
AT_ONCE = 64  # turns given at once when it no longer is


class Pace:
    """Gives turns. ``served`` says how many requests were answered until now, and the seconds
    that they took, added up.
    """

    def __init__(self, served: Callable[[], tuple[int, float]]) -> None:
        self._served = served
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._crowded = False
        self._ticking = False
        self._then = (time.perf_counter(), time.thread_time(), *served())

    async def turn(self) -> None:
        """Wait until a piece of work may be done; at once unless it is crowded."""
        self._measure()
        if not (self._crowded or self._waiting):
            return
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        if not self._ticking:
            self._ticking = True
            loop.call_later(TURN_S, self._tick)
        await turn

    @property
    def crowded(self) -> bool:
        """Whether requests take all there is."""
        return self._crowded

    def _tick(self) -> None:
        self._measure()
        left = 1 if self._crowded else AT_ONCE
        while self._waiting and left:
            turn = self._waiting.popleft()
            if not turn.done():  # who waited for it may have been cancelled
                turn.set_result(None)
                left -= 1
        self._ticking = bool(self._waiting)
        if self._ticking:
            asyncio.get_running_loop().call_later(TURN_S, self._tick)

    def _measure(self) -> None:
        """Look at the time since the last look, if that is long enough."""
        now = time.perf_counter()
        then, cpu_then, requests_then, seconds_then = self._then
        if (passed := now - then) < WINDOW_S:
            return
        self._then = (_, cpu, requests, seconds) = (now, time.thread_time(), *self._served())
        self._crowded = (seconds - seconds_then) / passed > AT_A_TIME or (
            (requests - requests_then) / passed > REQUESTS_PER_S
            and (cpu - cpu_then) / passed > BUSY_SHARE
        )
