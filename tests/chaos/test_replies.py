"""F-21: when replies are lost after the commit, nothing is done twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.conftest import control, insist
from tests.chaos.harness.stage import Plan

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


def test_lost_replies_make_no_duplicates(tmp_path: Path) -> None:
    insist(Plan(nemesis="replies", seed=51, strikes=3, pause=(0.2, 0.5)), tmp_path)


def test_who_asks_again_is_seen(tmp_path: Path) -> None:
    control(Plan("replies", profile="brief", seed=52, strikes=1, pause=(0.2, 0.5)), tmp_path)
