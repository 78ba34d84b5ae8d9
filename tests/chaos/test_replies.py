"""F-21: when replies are lost after the commit, nothing is done twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.conftest import run
from tests.chaos.harness.stage import Plan

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


def test_lost_replies_make_no_duplicates(tmp_path: Path) -> None:
    assert run(Plan(nemesis="replies", seed=51, strikes=3, pause=(0.2, 0.5)), tmp_path).passed
