"""F-32: two faults at once, by the seed: `python -m tests.chaos run --nemesis both`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.conftest import insist
from tests.chaos.fresh import FRESH
from tests.chaos.harness.stage import Plan

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(400)]


@pytest.mark.parametrize("store", ["sqlite", "postgresql", "redis"])
@pytest.mark.parametrize("seed", [FRESH])
def test_no_promise_is_broken_by_two_faults_at_once(store: str, seed: int, tmp_path: Path) -> None:
    nodes = 1 if store == "sqlite" else 2
    insist(Plan("both", store, nodes, "brief", seed, strikes=2, pause=(0.1, 0.4)), tmp_path)
