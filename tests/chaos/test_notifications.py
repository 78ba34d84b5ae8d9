"""F-01, F-03, F-22 and F-23: whoever subscribed hears of every acknowledged post, whatever breaks.

Each receiver verifies the signature of each request, and rule R10 decides. `python -m tests.chaos
pending` does the same for longer.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.conftest import insist
from tests.chaos.fresh import FRESH
from tests.chaos.harness.pending import Wave, play_pending
from tests.chaos.harness.stage import Plan

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


@pytest.mark.parametrize("seed", [FRESH])
def test_pending_deliveries_all_arrive_after_kills(seed: int, tmp_path: Path) -> None:
    """Killed during the fan-out, retries, giving up, replay, and while receivers take fast.

    Among the receivers are slow ones, some that fail in every way, some that refuse, and a mail
    server that takes nobody at first.
    """
    verdict = play_pending(Plan(nemesis="kill", seed=seed), Wave(10_000), tmp_path)
    assert verdict.passed, verdict.render()
    assert verdict.strikes == 5
    assert verdict.notifications["told"] >= 10_000


@pytest.mark.root
@pytest.mark.usefixtures("loop_mounts")
@pytest.mark.parametrize("seed", [FRESH])
def test_subscribers_hear_of_acknowledged_posts_after_power_cuts(seed: int, tmp_path: Path) -> None:
    plan = Plan(nemesis="power", profile="webhooks", seed=seed, strikes=3, pause=(0.3, 1.0))
    verdict = insist(plan, tmp_path)
    assert verdict.notifications["told"] > 100
