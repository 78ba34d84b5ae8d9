"""F-01: whatever was answered with success survives `kill -9`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.conftest import control, insist
from tests.chaos.fresh import FRESH
from tests.chaos.harness.stage import Plan

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

KILLS = 5  # in each of the runs


@pytest.mark.parametrize("seed", [11, 12, 13, FRESH])
def test_nothing_acknowledged_is_lost_by_kills(seed: int, tmp_path: Path) -> None:
    plan = Plan(nemesis="kill", seed=seed, strikes=KILLS, pause=(0.1, 1.2))
    insist(plan, tmp_path)


def test_a_server_that_answers_before_the_commit_is_seen(tmp_path: Path) -> None:
    """The control: were nothing lost here, the runs above would prove nothing."""
    control(Plan(nemesis="kill", seed=14, strikes=KILLS, pause=(0.3, 0.8)), tmp_path)
