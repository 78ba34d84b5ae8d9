"""An event loop without a world: what runs next is a matter of the seed, and time a number.

There is no selector, no socket and no thread. Of all callbacks that are ready one is chosen at
random; when none is, time leaps to the next timer. So a seed fixes the order of everything.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
import sys
import time
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Protocol, TypeVar, TypeVarTuple, Unpack, cast

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

EPOCH_S = 1_800_000_000
"""What the clocks say when a loop begins."""
TICK_S = 1e-6  # between two moments that somebody wrote down
STEPS_MAX = 200_000  # of one loop; what takes more has gone astray


class Owner(Protocol):
    """Whose work it is. What belongs to a dead one is never run again; what belongs to one that
    stands still is run when it goes on.
    """

    dead: bool
    still: bool


class World:
    """Owns what belongs to no node."""

    dead = still = False


OWNER: contextvars.ContextVar[Owner] = contextvars.ContextVar("owner")
_WORLD = World()


def context_of(owner: Owner) -> contextvars.Context:
    """A new one, in which everything belongs to this owner."""
    context = contextvars.Context()
    context.run(OWNER.set, owner)
    return context


class Stuck(Exception):
    """Nothing is ready, nothing is due, and yet somebody waits."""


class _Handle(asyncio.Handle):
    __slots__ = ("owner",)

    owner: Owner


class _Timer(asyncio.TimerHandle):
    __slots__ = ("owner",)

    owner: Owner


class _Task(asyncio.Task[T]):
    """One that is hashed by its number, so that a set of them has the same order in every run: that
    is in which a group cancels its tasks.
    """

    def __init__(self, number: int, *args: Any, **options: Any) -> None:
        self._number = number
        super().__init__(*args, **options)

    def __hash__(self) -> int:
        return self._number


class Loop(asyncio.BaseEventLoop):
    """``steps``: callbacks run until now; ``fair``: the share of them that came first in line."""

    def __init__(self, rng: random.Random, fair: float = 0.0) -> None:
        super().__init__()
        self.now_s = 0.0
        self.steps = 0
        self.errors: list[str] = []
        self._tasks: list[asyncio.Task[Any]] = []
        self._tasks_made = 0
        self._random = rng.random
        self._fair = fair
        self._line: list[_Handle | _Timer] = []
        self._timers: list[tuple[float, int, _Timer]] = []
        self._dropped: list[_Handle | _Timer] = []
        self._standing: list[_Handle | _Timer] = []  # of owners that stand still
        self._timers_made = 0
        self._timers_cancelled = 0
        self._ending = False

    # What asyncio asks of a loop

    def time(self) -> float:
        return self.now_s

    def get_debug(self) -> bool:
        return False

    def call_soon(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        if context is None:
            context = contextvars.copy_context()
        handle = _Handle(callback, args, self, context)
        handle.owner = context.get(OWNER, _WORLD)
        self._line.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        if context is None:
            context = contextvars.copy_context()
        timer = _Timer(when, callback, args, self, context)
        timer.owner = context.get(OWNER, _WORLD)
        self._timers_made += 1
        heapq.heappush(self._timers, (when, self._timers_made, timer))
        return timer

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self._timers_cancelled += 1

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        self._tasks_made += 1
        told = str(name) if name else None
        task: asyncio.Task[T] = _Task(self._tasks_made, coro, loop=self, name=told, context=context)
        self._tasks.append(task)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What nobody caught is a fault of the program under test."""
        if not self._ending:
            self.errors.append(f"{context.get('message')}: {context.get('exception')!r}")

    # Running

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run until this is done, in a context of nobody's. Raises Stuck."""
        asyncio._set_running_loop(self)
        try:
            main = self.create_task(work, context=contextvars.Context())
            self._run(main)
            return main.result()
        finally:
            try:
                self._end()
            finally:
                asyncio._set_running_loop(None)
                self.close()

    def _run(self, main: asyncio.Task[Any]) -> None:
        line, rng, fair, done = self._line, self._random, self._fair, main.done
        while not done():
            if not line:
                self._leap()
                continue
            number = len(line)
            if number == 1:
                handle = line.pop()
            elif fair and rng() < fair:
                handle = line.pop(0)
            else:
                at = int(rng() * number)
                handle = line[at]
                line[at] = line[-1]
                line.pop()
            if handle._cancelled:
                continue
            owner = handle.owner
            if owner.dead or owner.still:
                (self._dropped if owner.dead else self._standing).append(handle)
                continue
            self.steps += 1
            handle._run()
            if self.steps > STEPS_MAX:
                raise Stuck(f"more than {STEPS_MAX} steps by {self.now_s:.6f} s; last {handle!r}")

    def _leap(self) -> None:
        """To the next moment at which something is due."""
        timers, line = self._timers, self._line
        if self._timers_cancelled * 2 > len(timers) > 100:
            timers[:] = [one for one in timers if not one[2]._cancelled]
            heapq.heapify(timers)
            self._timers_cancelled = 0
        while timers:
            when, _, timer = heapq.heappop(timers)
            if timer._cancelled or timer.owner.dead:
                continue
            self.now_s = max(self.now_s, when)
            line.append(timer)
            while timers and timers[0][0] <= self.now_s:
                timer = heapq.heappop(timers)[2]
                if not timer._cancelled:
                    line.append(timer)
            break
        else:
            raise Stuck("nothing is ready and nothing is due")

    def go_on(self, owner: Owner) -> None:
        """All that became due for this one while it stood still is ready now."""
        owner.still = False
        standing = self._standing
        self._line += [handle for handle in standing if handle.owner is owner]
        standing[:] = [handle for handle in standing if handle.owner is not owner]

    def tick(self) -> float:
        """A moment that no other event has."""
        self.now_s += TICK_S
        return self.now_s

    def _end(self) -> None:
        """Let every task that is left come to its end; none may have an effect any more."""
        self._ending = True
        line = self._line
        for _ in range(100):
            self._tasks = [task for task in self._tasks if not task.done()]
            if not self._tasks:
                return
            for task in self._tasks:
                task.cancel()
            for left in (self._dropped, self._standing):
                line += left
                left.clear()
            while line:
                waiting = line[:]
                line.clear()
                for handle in waiting:
                    if not handle._cancelled:
                        handle._run()
        raise Stuck(f"{self._tasks} do not end")


def running() -> Loop:
    """The loop that runs now."""
    return cast("Loop", asyncio.get_running_loop())


def now_ms() -> int:
    """The clock of stores."""
    return EPOCH_S * 1000 + int(running().now_s * 1000)


def _elapsed() -> float:
    return running().now_s


_TURNED = SimpleNamespace(
    **{name: value for name, value in vars(time).items() if not name.startswith("_")}
)
_TURNED.time = lambda: EPOCH_S + _elapsed()
_TURNED.monotonic = _TURNED.perf_counter = _TURNED.thread_time = _elapsed
_TURNED.sleep = None  # nobody may


@contextmanager
def turned_clocks() -> Iterator[None]:
    """Every module of the service reads its clocks from the running loop."""
    turned = [
        module
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] == "nusku" and vars(module).get("time") is time
    ]
    for module in turned:
        vars(module)["time"] = _TURNED
    try:
        yield
    finally:
        for module in turned:
            vars(module)["time"] = time
