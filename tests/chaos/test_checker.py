"""The checker is believed only because it is silent over right histories and catches wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.chaos.harness import telling
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
    verdicts = []
    for seed in range(4):
        verdicts.append(judge_planted(bug, seed))
        if verdicts[-1]:
            return
    assert any(verdict is not None for verdict in verdicts), "the bug did not strike"
    pytest.fail("it was not caught")


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


def test_what_a_store_shows_before_it_is_safe_may_vanish() -> None:
    post = Op("post", "producer", "a/q", 1.0, 1.1, INFO, p="p", ttl=60)
    seen = Op("list", "reader", "a/q", 2.0, 2.1, OK, got=[("id-0", "p", 0)])
    claimed = Op("claim", "worker", "a/q", 2.5, 2.6, OK, cid="c", ttl=1, got=[("id-0", "p", 0)])
    left = Op("claim", "closer", "a/q", 9.0, 9.1, OK, ttl=60, final=True)
    safe, ahead = Run(seed=1, profile="none"), Run(seed=1, profile="none", reads_ahead=True)
    assert [violation.rule for violation in check(safe, [post, seen, left])] == ["R1"]
    assert check(ahead, [post, seen, left]) == []
    assert [violation.rule for violation in check(ahead, [post, seen, claimed, left])] == ["R1"]


def test_an_id_is_not_given_to_a_second_message() -> None:
    lost = Op("post", "producer", "a/q", 1.0, 1.1, INFO, p="p", ttl=60)
    seen = Op("list", "reader", "a/q", 2.0, 2.1, OK, got=[("id-0", "p", 0)])
    post = Op("post", "producer", "a/q", 3.0, 3.1, OK, p="p2", ids=["id-0"], ttl=60)
    run = Run(seed=1, profile="none", reads_ahead=True)
    assert [violation.rule for violation in check(run, [lost, seen, post])] == ["R3"]


TOLD = Op("subscribe", "admin", "a/q", 0.0, 0.1, OK, id="s", to="ear", ttl=60)
POST = Op("post", "producer", "a/q", 1.0, 1.1, OK, p="p", ids=["id-0"], ttl=60)
END = Op("waiting", "closer", "a/q", 9.0, 9.1, OK, id="s", to="ear", final=True)


def hear(status: int = 200, **changes: Any) -> Op:
    """An attempt at the notification of POST."""
    op = Op("hear", "receiver", "a/q", 2.0, 2.1, OK, status, p="p", id="d", to="ear")
    return msgspec.structs.replace(op, **changes)


def r10(*ops: Op) -> list[str]:
    found = check(Run(seed=1, profile="none"), [TOLD, END, *ops])
    return [violation.what for violation in found if violation.rule == "R10"]


def test_to_be_told_twice_is_allowed_and_counted() -> None:
    ops = [hear(500), hear(), hear(0), hear()]
    assert r10(POST, *ops) == []
    assert telling.count(ops) == {"attempts": 4, "told": 1, "told again": 1}


def test_an_attempt_that_was_not_taken_tells_nobody() -> None:
    assert r10(POST, hear(500), hear(0), hear(404)) == ["ear was never told of p #0"]


def test_a_post_of_unknown_outcome_may_be_told_or_not() -> None:
    unknown = msgspec.structs.replace(POST, out=INFO, ids=[])
    assert r10(unknown) == r10(unknown, hear()) == []


def test_what_was_given_up_has_to_be_shown() -> None:
    end = msgspec.structs.replace(END, t0=9.5, t1=9.6, counts=(0, 1, 0))
    shown = Op("failed", "closer", "a/q", 9.7, 9.8, OK, id="s", to="ear", final=True)
    assert r10(POST, hear(400), end) == [
        "1 deliveries to ear were given up, 0 are shown",
        "ear was never told of p #0",
    ]
    shown.got = [("1", "p", 0)]
    assert r10(POST, hear(400), end, shown) == []


def test_what_is_pending_in_the_end_is_not_called_lost() -> None:
    end = msgspec.structs.replace(END, t0=9.5, t1=9.6, counts=(1, 0, 0))
    assert r10(POST, end) == ["1 deliveries to ear are still pending"]


@pytest.mark.parametrize(
    ("heard", "said"),
    [
        (hear(to="canary"), "had not subscribed"),
        (hear(note="the signature is wrong"), "the signature is wrong"),
        (hear(p="", n=0), "not ours"),
        (hear(n=7), "never posted"),
        (hear(t0=0.5, t1=0.6), "before it was posted"),
        (hear(id="other"), "two ids"),
    ],
)
def test_what_must_not_be_heard(heard: Op, said: str) -> None:
    found = r10(POST, hear(t0=1.9), heard)
    assert any(said in what for what in found), found


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
