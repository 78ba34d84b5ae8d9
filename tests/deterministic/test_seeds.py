"""Brokers under a seeded scheduler: every seed passes, and replays to the byte."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.harness.history import load
from tests.deterministic.bugs import BUGS
from tests.deterministic.judging import judge, translated
from tests.deterministic.play import Player, stage
from tests.deterministic.scripts import SCENES

pytestmark = pytest.mark.embedded

ROOT = Path(__file__).parents[2]
BLOCK = len(SCENES)
ENOUGH = 300  # seeds, within which every planted bug has to be caught
LARGE = {scene.name for scene in SCENES if scene.pools or scene.guests or scene.stills_s}
FRESH = random.SystemRandom().randrange(10**9)


@pytest.fixture(scope="module")
def player() -> Iterator[Player]:
    with stage() as player:
        yield player


def failures(player: Player, first: int, number: int) -> str:
    """What went wrong, and how to see it again; empty if nothing did."""
    results = (player.play(seed) for seed in range(first, first + number))
    return "\n".join(result.render() for result in results if not result.passed)


def test_a_few_seeds(player: Player) -> None:
    """One of each scene."""
    assert not failures(player, 0, len(SCENES))


@pytest.mark.slow
@pytest.mark.parametrize("first", [1_000, 100_000])
def test_seeds(player: Player, first: int) -> None:
    assert not failures(player, first, BLOCK)


@pytest.mark.slow
def test_seeds_that_nobody_chose(player: Player) -> None:
    print(f"seeds {FRESH} to {FRESH + BLOCK - 1}")
    assert not failures(player, FRESH, BLOCK)


@pytest.mark.parametrize(
    "bug",
    [
        pytest.param(name, marks=[pytest.mark.slow] if LARGE & {*bug.scenes} else [])
        for name, bug in BUGS.items()
    ],
)
def test_every_planted_bug_is_caught(player: Player, bug: str) -> None:
    for seed in range(ENOUGH):
        result = player.play(seed, bug)
        if {violation.rule for violation in result.violations} & BUGS[bug].rules:
            assert result.slipped
            return
    pytest.fail(f"{bug}: not caught by {ENOUGH} seeds")


def test_a_seed_replays_to_the_byte(player: Player) -> None:
    """Whatever was played in between."""
    seeds = range(len(SCENES))
    before = [player.play(seed).history() for seed in seeds]
    again = [player.play(seed).history() for seed in reversed(seeds)]
    assert before == again[::-1]
    assert len(set(before)) == len(seeds)


@pytest.mark.slow
@pytest.mark.parametrize("scene", ["webhooks", "sleepers"])
def test_a_seed_replays_to_the_byte_elsewhere(scene: str, player: Player, tmp_path: Path) -> None:
    """In another process, in which strings have other hashes."""
    seed = [one.name for one in SCENES].index(scene)
    command = (sys.executable, "-m", "tests.deterministic", "--seed", str(seed), "--keep", tmp_path)
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    result = player.play(seed)
    run, ops = load(tmp_path / f"seed-{seed}")
    assert run == result.run
    assert ops == translated(run, result.ops)
    assert judge(run, ops) == []
