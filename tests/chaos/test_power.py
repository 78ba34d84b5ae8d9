"""F-03: whatever was answered with success survives a power cut, and the method would show a loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.conftest import insist, run
from tests.chaos.fresh import FRESH
from tests.chaos.harness.stage import Plan

pytestmark = [
    pytest.mark.slow,
    pytest.mark.chaos,
    pytest.mark.root,
    pytest.mark.usefixtures("loop_mounts"),
]

CUTS = 15  # in each of the runs


@pytest.mark.parametrize("seed", [21, FRESH])
def test_nothing_acknowledged_is_lost_by_power_cuts(seed: int, tmp_path: Path) -> None:
    plan = Plan(nemesis="power", seed=seed, strikes=CUTS, pause=(0.1, 0.9))
    insist(plan, tmp_path)


def test_the_same_run_loses_without_syncs(tmp_path: Path) -> None:
    """The control: were nothing lost here, the runs above would prove nothing."""
    settings = {"NUSKU_SQLITE_SYNCHRONOUS": "normal"}
    plan = Plan(nemesis="power", seed=21, strikes=3, pause=(0.3, 0.9), settings=settings)
    verdict = run(plan, tmp_path)
    assert verdict.strikes == 3
    assert verdict.lost
