"""F-06: after a failed write or sync nobody is told of success, and the process ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.conftest import insist
from tests.chaos.harness.stage import Plan

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.usefixtures("strace")]


@pytest.mark.parametrize("seed", [31, 32])
def test_a_failing_disk_ends_the_server_and_loses_nothing(seed: int, tmp_path: Path) -> None:
    plan = Plan(nemesis="ioerr", seed=seed, strikes=5, pause=(0.2, 0.6))
    insist(plan, tmp_path)
    assert "the store failed" in (tmp_path / "server.log").read_text()
