"""F-01: whatever was answered with success survives `kill -9`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.conftest import run
from tests.chaos.harness.stage import Plan

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

KILLS = 5  # in each of the runs
FRESH = random.randrange(10**6)


@pytest.mark.parametrize("seed", [11, 12, 13, pytest.param(FRESH, id=f"fresh-{FRESH}")])
def test_nothing_acknowledged_is_lost_by_kills(seed: int, tmp_path: Path) -> None:
    plan = Plan(nemesis="kill", seed=seed, strikes=KILLS, pause=(0.1, 1.2))
    assert run(plan, tmp_path).passed
