"""The checker is believed only because it is silent over right histories and catches wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.harness.checker import check
from tests.chaos.harness.history import INFO, OK, History, Op, Run, load, make_body, read_body
from tests.chaos.harness.sim import BUGS, judge_planted, judge_right


@pytest.mark.parametrize("seed", range(25))
def test_a_right_history_raises_no_alarm(seed: int) -> None:
    operations, alarms = judge_right(seed)
    assert operations > 500
    assert alarms == []


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug: str) -> None:
    struck = [caught for seed in range(4) if (caught := judge_planted(bug, seed)) is not None]
    assert struck, "the bug did not strike"
    assert any(struck)


def test_a_violation_is_shown_by_the_operations_that_prove_it() -> None:
    post = Op("post", "producer", "a/q", 1.0, 1.1, OK, p="p", ids=["id-0"], ttl=60)
    delete = Op("delete", "worker", "a/q", 2.0, 2.1, OK, id="id-0")
    seen = Op("list", "reader", "a/q", 3.0, 3.1, OK, got=[("id-0", "p", 0)])
    (violation,) = check(Run(seed=1, profile="none"), [post, delete, seen])
    assert violation.rule == "R4"
    assert violation.ops == (delete, seen)
    assert "worker delete a/q ok" in violation.render(0.0)


def test_a_deletion_of_unknown_outcome_proves_nothing() -> None:
    post = Op("post", "producer", "a/q", 1.0, 1.1, OK, p="p", ids=["id-0"], ttl=60)
    delete = Op("delete", "worker", "a/q", 2.0, 2.1, INFO, id="id-0")
    seen = Op("list", "reader", "a/q", 3.0, 3.1, OK, got=[("id-0", "p", 0)])
    assert check(Run(seed=1, profile="none"), [post, delete, seen]) == []


def test_silence_without_a_fault_is_noticed() -> None:
    asked = [Op("stats", "lister", "a/q", float(i), i + 10.0, INFO) for i in range(9)]
    fault = Op("fault", "kill", t0=0.0, t1=20.0, out=OK)
    run = Run(seed=1, profile="none")
    assert {violation.rule for violation in check(run, asked)} == {"R15"}
    assert check(run, [*asked, fault]) == []


def test_a_history_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    run = Run(seed=7, profile="mixed", dead_letters={"a/q": ("a/q.dead", 2)})
    op = Op("claim", "w", "a/q", 1.25, 1.5, OK, cid="c", got=[("id", "p", 3)], limit=5)
    with History(tmp_path, run) as history:
        history.add(op)
    assert load(tmp_path) == (run, [op])


def test_a_changed_body_is_recognised() -> None:
    body = make_body(7, "a/q", "p", 3)
    assert read_body(7, body) == ("p", 3)
    assert read_body(8, body) == ("", 0)
    assert read_body(7, body | {"n": 4}) == ("", 0)
    assert read_body(7, body | {"pad": "é"}) == ("", 0)
    assert read_body(7, None) == ("", 0)
