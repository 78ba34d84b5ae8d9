"""F-05, F-19: a PostgreSQL and a Redis that have no room: refused, nothing lost, and well again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.conftest import control, insist
from tests.chaos.fresh import FRESH
from tests.chaos.harness.stage import Plan

pytestmark = [
    pytest.mark.slow,
    pytest.mark.chaos,
    pytest.mark.root,
    pytest.mark.usefixtures("loop_mounts"),
    pytest.mark.timeout(400),
]

STORES = {"pg-full": "postgresql", "redis-full": "redis"}


@pytest.mark.parametrize("nemesis", STORES)
@pytest.mark.parametrize("seed", [FRESH])
def test_what_does_not_fit_is_not_acknowledged(nemesis: str, seed: int, tmp_path: Path) -> None:
    plan = Plan(nemesis, STORES[nemesis], 1, "brief", seed, strikes=2, pause=(0.1, 0.4))
    insist(plan, tmp_path)


def test_a_server_that_acknowledges_it_is_seen(tmp_path: Path) -> None:
    control(Plan("redis-full", "redis", 1, "brief", 37, strikes=1, pause=(0.1, 0.4)), tmp_path)
