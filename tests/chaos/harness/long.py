"""A long checked run: episode after episode, each judged and then thrown away unless it failed.

Two episodes are under way at once, each with a server of its own: while one waits for its claims
to lapse, or is judged, the other one works. What is done is written into a state file after each,
so that a run that was ended goes on where it was.
"""

from __future__ import annotations

import itertools
import multiprocessing
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from tests.chaos.harness.play import play
from tests.chaos.harness.report import Verdict
from tests.chaos.harness.stage import Plan
from tests.servers.programs import Missing

AT_ONCE = 2  # episodes
GIVE_UP = 6  # episodes in a row that prove nothing
STATE = "state.json"
QUIET = "none"  # the nemesis of an episode without faults


@dataclass(frozen=True)
class Long:
    """What to do. Every so many episodes, `plan.nemesis` strikes; the others have no faults."""

    plan: Plan  # of each episode, but for its seed
    operations: int = 10_000_000  # in all
    struck_every: int = 10


class Tally(msgspec.Struct):
    """What has been done so far, as it is written down."""

    seed: int
    begun: int = 0  # episodes; each has its number, and by it its seed
    passed: int = 0
    operations: int = 0  # in episodes that passed, judged by all rules
    outcomes: dict[str, int] = {}
    strikes: int = 0
    seconds: float = 0.0  # of work, whoever else used the machine
    violations: dict[str, int] = {}  # by rule
    failed: list[str] = []  # where histories are kept
    void: int = 0  # episodes that prove nothing, and do not count
    void_in_a_row: int = 0


class Episode(msgspec.Struct):
    """What is asked of a process of ours."""

    number: int
    plan: Plan
    folder: Path


def play_long(long: Long, state: Path, tell: Callable[[Tally], None]) -> Tally:
    """Go on until so many operations were judged; `tell` hears of each episode that has ended."""
    state.mkdir(parents=True, exist_ok=True)
    tally = _read(state, long.plan.seed)
    before, begin = tally.seconds, time.monotonic()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(AT_ONCE, spawn) as pool:
        episodes = _episodes(long, tally, state)
        running: dict[Future[Verdict], Episode] = {}
        while tally.operations < long.operations and tally.void_in_a_row < GIVE_UP:
            while len(running) < AT_ONCE:
                episode = next(episodes)
                running[pool.submit(_play, episode)] = episode
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                _count(tally, running.pop(future), future)
            tally.seconds = before + time.monotonic() - begin
            _write(state, tally)
            tell(tally)
    for episode in running.values():
        shutil.rmtree(episode.folder, ignore_errors=True)
    return tally


def seed_of(seed: int, number: int) -> int:
    """The seed of an episode."""
    return random.Random(f"{seed}/{number}").randrange(10**9)


def _episodes(long: Long, tally: Tally, state: Path) -> Iterator[Episode]:
    for number in itertools.count(tally.begun):
        tally.begun = number + 1
        struck = number % long.struck_every == long.struck_every - 1
        plan = replace(
            long.plan,
            seed=seed_of(tally.seed, number),
            nemesis=long.plan.nemesis if struck else QUIET,
        )
        yield Episode(number, plan, state / f"episode-{number}")


def _play(episode: Episode) -> Verdict:
    shutil.rmtree(episode.folder, ignore_errors=True)  # of one that was ended
    verdict = play(episode.plan, episode.folder)
    if not (verdict.violations or verdict.complaints):
        shutil.rmtree(episode.folder)
    return verdict


def _count(tally: Tally, episode: Episode, future: Future[Verdict]) -> None:
    error = future.exception()
    if isinstance(error, Missing):
        raise error
    verdict = None if error else future.result()
    if verdict is None or (verdict.invalid and not verdict.violations and not verdict.complaints):
        tally.void += 1
        tally.void_in_a_row += 1
        return
    tally.void_in_a_row = 0
    if verdict.violations or verdict.complaints:
        tally.violations = dict(Counter(tally.violations) + Counter(verdict.violations))
        tally.failed.append(str(episode.folder))
        return
    tally.passed += 1
    tally.operations += verdict.operations
    tally.outcomes = dict(Counter(tally.outcomes) + Counter(verdict.outcomes))
    tally.strikes += verdict.strikes


def _read(state: Path, seed: int) -> Tally:
    file = state / STATE
    return msgspec.json.decode(file.read_bytes(), type=Tally) if file.exists() else Tally(seed)


def _write(state: Path, tally: Tally) -> None:
    fresh = state / f"{STATE}.new"
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode(tally), indent=2))
    fresh.replace(state / STATE)
