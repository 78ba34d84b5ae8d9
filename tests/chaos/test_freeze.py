"""F-09: who stood still for longer than claims live does not go by the time of before."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.conftest import control, insist
from tests.chaos.fresh import FRESH
from tests.chaos.harness.stage import Plan

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


@pytest.mark.parametrize("seed", [FRESH])
def test_no_promise_is_broken_by_a_server_that_stood_still(seed: int, tmp_path: Path) -> None:
    insist(Plan("freeze", profile="brief", seed=seed, strikes=2, pause=(0.2, 0.5)), tmp_path)


def test_a_server_that_goes_by_the_time_of_before_is_seen(tmp_path: Path) -> None:
    control(Plan("freeze", profile="brief", seed=33, strikes=1, pause=(0.2, 0.5)), tmp_path)
