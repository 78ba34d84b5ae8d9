"""A tier and a long run count what was proven, do nothing twice, and tell of every failure."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.harness import long, tier
from tests.chaos.harness.forgotten import Forgotten
from tests.chaos.harness.history import OK, Op
from tests.chaos.harness.long import Long, play_long, seed_of
from tests.chaos.harness.nemesis import NEMESES
from tests.chaos.harness.places import STORES
from tests.chaos.harness.report import Verdict, too_little
from tests.chaos.harness.stage import Plan
from tests.chaos.harness.tier import IN_TURN, RUNS, SUMMARY, VOID, Part, Tier, parts

Playing = Callable[[Plan, Path], Verdict]


def came_to(plan: Plan, **changes: Any) -> Verdict:
    """A run that did what was planned, and found nothing."""
    told: dict[str, Any] = {
        "nemesis": plan.nemesis,
        "profile": plan.profile,
        "seed": plan.seed,
        "strikes": min(plan.strikes, 2),
        "seconds": 1.0,
        "operations": 1000,
        "outcomes": {"ok": 900, "fail": 100},
        "violations": {},
        "complaints": [],
        "invalid": [],
        "shown": [],
    }
    return Verdict(**told | changes)


class Plays:
    """In place of real runs."""

    def __init__(self, what: Callable[[Plan], Verdict]) -> None:
        self.plans: list[Plan] = []
        self._what = what

    def __call__(self, plan: Plan, folder: Path) -> Verdict:
        folder.mkdir(parents=True)
        self.plans.append(plan)
        return self._what(plan)


@pytest.fixture
def only_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tier of five kills, and their control."""
    monkeypatch.setattr(tier, "TIERS", {"sqlite": (Part("kill", 5, 2),)})
    monkeypatch.setattr(tier, "NEMESES", {"kill": NEMESES["kill"]})


def play_tier(state: Path, plays: Plays, monkeypatch: pytest.MonkeyPatch, seed: int = 1) -> Tier:
    monkeypatch.setattr(tier, "play", plays)
    played = Tier("sqlite", state, seed)
    played.play([], lambda standing, run: None)
    return played


def as_it_must(plan: Plan) -> Verdict:
    return came_to(plan) if plan.safe else came_to(plan, violations={"R1": 3})


@pytest.mark.usefixtures("only_kill")
def test_what_was_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plays = Plays(as_it_must)
    assert play_tier(tmp_path, plays, monkeypatch).passed
    assert [plan.strikes for plan in plays.plans] == [2, 2, 1, 6]
    assert [plan.safe for plan in plays.plans] == [True, True, True, False]
    assert len({plan.seed for plan in plays.plans}) == 4
    again = Plays(as_it_must)
    finished = play_tier(tmp_path, again, monkeypatch, seed=2)
    assert (finished.passed, finished.seed, again.plans) == (True, 1, [])
    lines = (tmp_path / RUNS).read_bytes().splitlines(keepends=True)
    (tmp_path / RUNS).write_bytes(b"".join(lines[:1]))  # ended after its first run
    play_tier(tmp_path, again, monkeypatch)
    assert again.plans == plays.plans[1:]


@pytest.mark.usefixtures("only_kill")
def test_a_violation_fails_the_tier_and_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Plays(lambda plan: came_to(plan, violations={"R1": 1}, complaints=["it smells"]))
    played = play_tier(tmp_path, failing, monkeypatch)
    assert not played.passed
    assert [run.counts for run in played.standings[0].runs] == [True] * 3
    kept = [Path(run.kept) for run in played.standings[0].runs]
    assert all((folder / "verdict.txt").read_text().startswith("FAILED") for folder in kept)
    summary = (tmp_path / SUMMARY).read_text()
    assert str(failing.plans[0].seed) in summary
    assert "**FAILED**" in summary
    assert "it smells" in summary


@pytest.mark.usefixtures("only_kill")
def test_a_control_that_does_not_fail_fails_the_tier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plays = Plays(came_to)
    played = play_tier(tmp_path, plays, monkeypatch)
    assert not played.passed
    assert [plan.safe for plan in plays.plans] == [True] * 3 + [False] * VOID
    assert played.standings[1].verdict == "**did not fail**"


@pytest.mark.usefixtures("only_kill")
def test_runs_that_prove_nothing_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plays = Plays(lambda plan: came_to(plan, invalid=["nothing succeeded"]))
    played = play_tier(tmp_path, plays, monkeypatch)
    assert not played.passed
    assert played.standings[0].done == 0
    assert len(plays.plans) == 2 * VOID  # with the control
    assert "nothing" in played.standings[0].verdict


@pytest.mark.usefixtures("only_kill")
def test_what_was_forgotten_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets(plan: Plan) -> Verdict:
        some = [Forgotten("both cut", messages=plan.strikes, oldest=0.5)]
        return came_to(plan, forgotten=some) if plan.safe else as_it_must(plan)

    assert play_tier(tmp_path, Plays(forgets), monkeypatch).passed
    summary = (tmp_path / SUMMARY).read_text()
    assert (
        "| kill | both cut | 3 | 3 | 1 / 2 / 2 | 0 / 0 / 0 | 0 / 0 / 0 | 0.5 / 0.5 / 0.5 |"
        in summary
    )


@pytest.mark.usefixtures("only_kill")
def test_a_run_that_breaks_off_is_played_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_breaks_off(plan: Plan) -> Verdict:
        if len(plays.plans) == 1:
            raise TimeoutError("nobody there")
        return as_it_must(plan)

    plays = Plays(first_breaks_off)
    played = play_tier(tmp_path, plays, monkeypatch)
    assert played.passed
    assert len(plays.plans) == 5
    assert "nobody there" in (tmp_path / SUMMARY).read_text()


@pytest.mark.parametrize("store", STORES)
def test_a_tier_has_every_nemesis_of_its_store(store: str) -> None:
    names = {part.nemesis for part in parts(store)} - {tier.IMAGES}
    possible = {name for name, nemesis in NEMESES.items() if store in nemesis.stores}
    assert names == possible - IN_TURN
    assert len({part.name for part in parts(store)}) == len(parts(store))


def play_all(
    state: Path, plays: Plays, operations: int, monkeypatch: pytest.MonkeyPatch
) -> long.Tally:
    monkeypatch.setattr(long, "play", plays)
    monkeypatch.setattr(long, "ProcessPoolExecutor", ThreadPoolExecutor)
    plan = Plan("kill", seed=7)
    return play_long(Long(plan, operations, struck_every=3), state, lambda tally: None)


def test_a_long_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plays = Plays(came_to)
    first = play_all(tmp_path, plays, 4000, monkeypatch)
    assert first.operations >= 4000
    assert first.outcomes == {"ok": 900 * first.passed, "fail": 100 * first.passed}
    second = play_all(tmp_path, plays, 8000, monkeypatch)
    assert second.operations >= 8000
    assert {plan.seed for plan in plays.plans} == {seed_of(7, n) for n in range(second.begun)}
    assert len(plays.plans) == second.begun
    struck = {plan.seed for plan in plays.plans if plan.nemesis == "kill"}
    assert struck == {seed_of(7, n) for n in range(2, second.begun, 3)}
    assert not list(tmp_path.glob("episode-*"))


def test_a_long_run_keeps_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fourth_fails(plan: Plan) -> Verdict:
        return came_to(plan, violations={"R4": 2} if plan.seed == seed_of(7, 3) else {})

    tally = play_all(tmp_path, Plays(fourth_fails), 6000, monkeypatch)
    assert tally.violations == {"R4": 2}
    assert tally.failed == [str(tmp_path / "episode-3")]
    assert (tmp_path / "episode-3").is_dir()


def test_a_long_run_does_not_count_what_proves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def two_are_void(plan: Plan) -> Verdict:
        if plan.seed == seed_of(7, 2):
            raise TimeoutError
        return came_to(plan, invalid=["too slow"] if plan.seed == seed_of(7, 1) else [])

    tally = play_all(tmp_path, Plays(two_are_void), 3000, monkeypatch)
    assert tally.void == 2
    assert tally.operations == 1000 * tally.passed


def test_a_long_run_gives_up_where_nothing_is_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plays = Plays(lambda plan: came_to(plan, invalid=["too slow"]))
    tally = play_all(tmp_path, plays, 3000, monkeypatch)
    assert tally.operations == 0
    assert tally.void >= long.GIVE_UP


@pytest.mark.parametrize(
    ("ok", "unknown", "lacks"),
    [
        (300, 0, ""),
        (299, 0, "only 299"),
        (1000, 251, "251 of 1251"),
        (1000, 250, ""),
    ],
)
def test_a_run_proves_something_by_what_succeeded_and_is_known(
    ok: int, unknown: int, lacks: str
) -> None:
    ops = [Op("list", out=OK) for _ in range(ok)] + [Op("post") for _ in range(unknown)]
    found = too_little(ops)
    assert bool(found) == bool(lacks)
    assert lacks in "".join(found)
