"""F-31: pools die, and are drained under load, with three nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.conftest import insist
from tests.chaos.fresh import FRESH
from tests.chaos.harness.stage import Plan

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(400)]

SEEDS = [FRESH]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_dead_pool_takes_nobody_along(seed: int, tmp_path: Path) -> None:
    """Its queues answer 503, as they are nowhere else; all others go on."""
    plan = Plan("pool-kill", "postgresql", 3, "nodes", seed, strikes=2, pause=(0.5, 1.0))
    insist(plan, tmp_path)


@pytest.mark.parametrize("seed", SEEDS)
def test_draining_loses_doubles_and_reorders_nothing(seed: int, tmp_path: Path) -> None:
    """There and back, while clients go on; once with nodes killed meanwhile."""
    plan = Plan("pool-drain", "postgresql", 3, "nodes", seed, strikes=3, pause=(0.5, 1.0))
    insist(plan, tmp_path)
