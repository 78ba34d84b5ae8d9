"""F-10: clocks are set. Ours mean nothing; by the store's own the history is right."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from tests.chaos.conftest import control, insist
from tests.chaos.fresh import FRESH, SEED
from tests.chaos.harness import skewing
from tests.chaos.harness.checker import check
from tests.chaos.harness.history import load
from tests.chaos.harness.retold import StoreTime
from tests.chaos.harness.stage import Plan

FORWARD = SEED // 2 * 2  # with odd seeds the store's clock is set back


@pytest.fixture
def clocks() -> None:
    if reason := skewing.why_not():
        pytest.skip(reason)


def test_the_time_of_a_store_goes_with_its_clock() -> None:
    time = StoreTime([(10.0, 5.0), (20.0, 0.0), (40.0, 3600.0)])
    assert [time(at) for at in (1.0, 9.0, 10.0, 11.0, 19.0)] == [1.0, 9.0, 15.0, 16.0, 24.0]
    assert time(30.0) == pytest.approx(30.0)
    assert time(41.0) == pytest.approx(3641.0)


def test_the_time_of_a_store_stands_still_until_its_clock_is_there_again() -> None:
    time = StoreTime([(10.0, -5.0), (12.0, -6.0), (100.0, -6.0)])
    assert time(10.0) == 10.0
    assert time(13.0) == pytest.approx(10.0, abs=0.01)
    assert time(50.0) == pytest.approx(44.0, abs=0.01)
    assert time(101.0) == pytest.approx(95.0, abs=0.01)


@pytest.mark.parametrize("seed", range(50))
def test_what_was_later_is_later_by_the_clock_of_the_store(seed: int) -> None:
    rng = random.Random(seed)
    skews = sorted((rng.uniform(0, 60), float(rng.randint(-9, 9))) for _ in range(8))
    time = StoreTime(skews)
    told = [time(n / 100) for n in range(8000)]
    assert all(one < two for one, two in itertools.pairwise(told))
    assert told[-1] == pytest.approx(79.99 + skews[-1][1])


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.usefixtures("clocks")
@pytest.mark.parametrize("seed", [FRESH])
def test_no_promise_is_broken_by_the_clock_of_a_server(seed: int, tmp_path: Path) -> None:
    """It is also started with another time than before."""
    insist(Plan("clock", profile="brief", seed=seed, strikes=4, pause=(0.1, 0.3)), tmp_path)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.usefixtures("clocks")
def test_a_server_that_reads_times_off_the_wall_is_seen(tmp_path: Path) -> None:
    control(Plan("clock", profile="brief", seed=34, strikes=4, pause=(0.1, 0.3)), tmp_path)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.usefixtures("clocks")
@pytest.mark.parametrize("seed", [pytest.param(FORWARD, id=f"fresh-{FORWARD}")])
def test_no_promise_is_broken_by_the_clock_of_a_store(seed: int, tmp_path: Path) -> None:
    """Judged without knowing that it was set, the same history is wrong: the jumps did bite."""
    insist(Plan("clock", "redis", 1, "brief", seed, strikes=6, pause=(0.1, 0.3)), tmp_path)
    run, ops = load(tmp_path)
    assert check(run, [op for op in ops if op.f != "skew"])
