"""What the tests of this folder share: skipping where the machine cannot, and servers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.harness import tracing, volumes
from tests.chaos.harness.nemesis import NEMESES
from tests.chaos.harness.play import play
from tests.chaos.harness.report import Verdict
from tests.chaos.harness.servers import Server
from tests.chaos.harness.stage import Plan


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Not yet started; on a store of its own."""
    with Server(tmp_path / "nusku.db", tmp_path) as server:
        yield server


@pytest.fixture
def loop_mounts() -> None:
    if reason := volumes.why_not():
        pytest.skip(reason)


@pytest.fixture
def volume(loop_mounts: None, tmp_path: Path) -> Iterator[volumes.Volume]:
    with volumes.Volume(tmp_path / "disk", mib=64) as volume:
        yield volume


@pytest.fixture
def strace() -> None:
    if reason := tracing.why_not():
        pytest.skip(reason)


def run(plan: Plan, folder: Path) -> Verdict:
    """Play it, and print the verdict, which pytest shows if the test fails."""
    verdict = play(plan, folder)
    print(verdict.render())
    return verdict


def insist(plan: Plan, folder: Path) -> Verdict:
    """Play it; it has to pass, and the failure says why it did not."""
    verdict = play(plan, folder)
    assert verdict.passed, verdict.render()
    return verdict


def control(plan: Plan, folder: Path) -> None:
    """Play it with what makes it fail: were that not seen, the other runs would prove nothing."""
    verdict = play(dataclasses.replace(plan, safe=False), folder)
    assert verdict.strikes, verdict.render()
    assert NEMESES[plan.nemesis].shown(verdict), verdict.render()
