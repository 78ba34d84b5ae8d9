"""What may be forgotten is counted, and nothing else is forgiven."""

from __future__ import annotations

import pytest

from tests.chaos.harness.checker import check
from tests.chaos.harness.forgotten import Forgotten, broke, forgive, table
from tests.chaos.harness.history import INFO, OK, Op, Run

BREAK = broke("both cut", since=8.0, at=10.0)
STRICT = broke("both cut", since=10.0, at=10.0)
LONG_AGO, JUST_BEFORE, AFTER = 2.0, 9.0, 12.0  # of the break-down


def post(at: float, out: str = OK, delay: int = 0) -> Op:
    """A message of a long life."""
    ids = ["id-0"] if out == OK else []
    return Op("post", "producer", "a/q", at, at + 0.1, out, p="p", ids=ids, ttl=600, delay=delay)


def seen(f: str, at: float, cid: str = "", ttl: int = 30) -> Op:
    """Somebody was shown it."""
    found = [("id-0", "p", 0)]
    return Op(f, f"who {cid}", "a/q", at, at + 0.1, OK, cid=cid, ttl=ttl, got=found)


def deleted(at: float) -> Op:
    return Op("delete", "worker", "a/q", at, at + 0.1, OK, id="id-0")


def renewed(at: float) -> Op:
    return Op("renew", "who c1", "a/q", at, at + 0.1, OK, cid="c1", ttl=30)


END = Op("claim", "closer", "a/q", 60.0, 60.1, OK, ttl=60, final=True)
COUNT = Op("stats", "closer", "a/q", 59.0, 59.1, OK, counts=(1, 0, 1), final=True)
LEFT = Op("claim", "closer", "a/q", 59.5, 59.6, OK, ttl=60, final=True, got=[("id-0", "p", 0)])


def judged(*ops: Op, broken: Op = BREAK) -> tuple[Forgotten, list[str]]:
    """What was forgotten, and the rules that are still broken."""
    history = [broken, *ops]
    run = Run(seed=1, profile="none", reads_ahead=True)
    (forgotten,), rest = forgive(history, check(run, history))
    return forgotten, [violation.rule for violation in rest]


def test_what_was_answered_just_before_may_be_lost() -> None:
    missed = Op("list", "reader", "a/q", 20.0, 20.1, OK, walk="w")
    asked = Op("get", "lister", "a/q", 21.0, 21.1, "fail", 404, id="id-0")
    forgotten, rest = judged(post(JUST_BEFORE), missed, asked, END)
    assert rest == []
    assert (forgotten.messages, forgotten.deletions, forgotten.claims) == (1, 0, 0)
    assert forgotten.oldest == pytest.approx(0.9)
    assert "1 messages" in forgotten.render()


@pytest.mark.parametrize("at", [LONG_AGO, AFTER])
def test_what_was_answered_earlier_or_later_may_not(at: float) -> None:
    forgotten, rest = judged(post(at), END)
    assert rest == ["R1"]
    assert not forgotten.any


def test_nothing_may_be_lost_where_nothing_may_be_forgotten() -> None:
    in_flight = post(9.95)  # answered when it had broken
    for lost in (post(JUST_BEFORE), in_flight):
        forgotten, rest = judged(lost, END, broken=STRICT)
        assert rest == ["R1"]
        assert not forgotten.any


def test_a_post_without_an_answer_counts_from_when_it_was_claimed() -> None:
    unknown = post(LONG_AGO, INFO)
    _, rest = judged(unknown, seen("claim", 3.0, "c1", ttl=1), END)
    assert rest == ["R1"]
    forgotten, rest = judged(unknown, seen("claim", JUST_BEFORE, "c1", ttl=1), END)
    assert rest == []
    assert forgotten.messages == 1


def test_a_message_that_came_late_in_a_walk_was_not_lost() -> None:
    missed = Op("list", "reader", "a/q", 20.0, 20.1, OK, walk="w")
    late = seen("list", 21.0)
    late.walk = "w"
    _, rest = judged(post(JUST_BEFORE), missed, late, LEFT, END)
    assert rest == ["R9"]


def test_a_deletion_may_be_forgotten_with_what_that_does_to_figures() -> None:
    forgotten, rest = judged(
        post(LONG_AGO), deleted(JUST_BEFORE), seen("list", AFTER), COUNT, LEFT, END
    )
    assert rest == []
    assert forgotten.deletions == 1


@pytest.mark.parametrize(
    ("deletion", "sighting"), [(LONG_AGO, AFTER), (AFTER, AFTER + 1), (8.5, 9.5)]
)
def test_a_deletion_that_had_to_be_kept_may_not(deletion: float, sighting: float) -> None:
    _, rest = judged(post(1.0), deleted(deletion), seen("list", sighting), COUNT, LEFT, END)
    assert "R4" in rest


@pytest.mark.parametrize("evidence", ["claim", "list"])
def test_a_claim_that_was_forgotten_makes_no_second_owner(evidence: str) -> None:
    first, second = seen("claim", JUST_BEFORE, "c1"), seen(evidence, AFTER, "c2")
    forgotten, rest = judged(post(LONG_AGO), first, second)
    assert rest == []
    assert forgotten.claims == 1


def test_nor_does_a_renewal() -> None:
    first, second = seen("claim", LONG_AGO, "c1", ttl=8), seen("claim", AFTER, "c2")
    forgotten, rest = judged(post(1.0), first, renewed(JUST_BEFORE), second)
    assert rest == []
    assert forgotten.claims == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (LONG_AGO, AFTER),  # it had been kept
        (8.5, JUST_BEFORE),  # both were made by what then broke
        (9.0, 9.89),
        (11.0, AFTER),  # both by what came after it
    ],
)
def test_two_owners_are_never_forgiven(first: float, second: float) -> None:
    forgotten, rest = judged(post(1.0), seen("claim", first, "c1"), seen("claim", second, "c2"))
    assert rest == ["R5", "R6"]
    assert not forgotten.any


def test_a_delay_is_not_forgotten_without_its_message() -> None:
    _, rest = judged(post(JUST_BEFORE, delay=30), seen("claim", AFTER, "c1"))
    assert rest == ["R5", "R6"]


def test_a_changed_or_doubled_message_is_never_forgiven() -> None:
    other = Op("list", "reader", "a/q", AFTER, AFTER + 0.1, OK, got=[("id-1", "p", 0)])
    changed = Op("list", "reader", "a/q", AFTER, AFTER + 0.1, OK, got=[("id-0", "", 0)])
    _, rest = judged(post(JUST_BEFORE), other, changed)
    assert rest == ["R3", "R2"]


def test_the_table_has_least_median_and_most() -> None:
    some = [Forgotten("cut", 0), Forgotten("cut", 4, 1, 0, 0.512), Forgotten("cut", 9)]
    lines = table([("b", one) for one in some] + [("a", Forgotten("cut"))])
    assert len(lines) == 4
    assert lines[-1] == "| b | cut | 3 | 2 | 0 / 4 / 9 | 0 / 0 / 1 | 0 / 0 / 0 | 0 / 0 / 0.51 |"
    assert table([]) == []
