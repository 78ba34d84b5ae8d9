"""F-11: a server without descriptors goes on; without memory or room it ends, and loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.conftest import control, insist
from tests.chaos.fresh import FRESH
from tests.chaos.harness.stage import Plan

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.root]


@pytest.mark.parametrize("seed", [FRESH])
def test_no_promise_is_broken_by_limits(seed: int, tmp_path: Path) -> None:
    insist(Plan("limits", profile="brief", seed=seed, strikes=2, pause=(0.1, 0.4)), tmp_path)


def test_a_server_that_listens_no_more_is_seen(tmp_path: Path) -> None:
    control(Plan("limits", profile="brief", seed=35, strikes=1, pause=(0.1, 0.4)), tmp_path)
