"""F-25: thousands of messages expire while others are posted, claimed and read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.conftest import run
from tests.chaos.harness.history import load
from tests.chaos.harness.stage import Plan

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


def test_expiry_under_load_is_exact_and_stalls_nobody(tmp_path: Path) -> None:
    verdict = run(Plan(profile="ttl", seed=61, seconds=8), tmp_path)
    assert verdict.passed
    _, ops = load(tmp_path)
    posted = sum(op.size for op in ops if op.f == "post" and op.out == "ok" and op.ttl < 60)
    assert posted > 2000
    assert max(op.t1 - op.t0 for op in ops) < 2.0
