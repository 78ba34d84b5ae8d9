"""When failed deliveries are tried again."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from itertools import count, pairwise, takewhile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nusku.broker.retry import LONGEST_S, TRIES_MAX, Policy, choose, delays, longest
from nusku.broker.rules import RETRY_FUNCTIONS, retry_policy
from nusku.errors import Invalid

DEFAULTS = Policy()


def waits(policy: Policy | None, jitter: float = 0.5) -> list[float]:
    """All delays, in the order of the retries."""
    wait_s = delays(policy, lambda: jitter)
    found = [wait_s(number) for number in range(1, TRIES_MAX + 10)]
    given_up = found.index(None)
    assert set(found[given_up:]) == {None}
    return [wait for wait in found if wait is not None]


def backoff(least: int, most: int, function: str) -> list[float]:
    """The back-off phase alone."""
    return waits(
        Policy(
            retries_with_no_delay=0,
            minimum_delay_retries=0,
            minimum_delay=least,
            maximum_delay=most,
            maximum_delay_retries=0,
            retry_backoff_function=function,
        )
    )


@pytest.mark.parametrize(
    ("function", "least", "most", "values"),
    [
        ("linear", 5, 30, "5 10 15 20 25"),
        ("linear", 5, 31, "5 10 15 20 25 30"),
        ("linear", 0, 10, "0 5"),
        ("arithmetic", 30, 100, "30 30 32 34 37 41 46 51 57 64 72 80 90 100"),
        ("arithmetic", 5, 30, "5 7 12 20 30"),
        ("geometric", 20, 80, "20 22 25 29 33 37 42 48 54 62 70 80"),
        ("geometric", 5, 30, "5 7 12 19 30"),
        ("exponential", 10, 60, "10 12 14 18 22 27 33 40 49 60"),
        ("geometric", 0, 10, "1 10"),
        ("exponential", 0, 10, "1 10"),
    ],
)
def test_the_back_off_lists_are_those_of_the_contract(
    function: str, least: int, most: int, values: str
) -> None:
    assert backoff(least, most, function) == [float(value) for value in values.split()]


def test_the_defaults_retry_fourteen_times_over_three_minutes() -> None:
    assert waits(DEFAULTS) == [0, 0, 0, 5, 5, 5, 5, 10, 15, 20, 25, 30, 30, 30]
    assert sum(waits(DEFAULTS)) == 180


def test_each_phase_may_be_empty() -> None:
    policy = Policy.of({"retries_with_no_delay": 0, "maximum_delay_retries": 0})
    assert waits(policy) == [5, 5, 5, 5, 10, 15, 20, 25]


def test_the_delays_of_a_policy_are_exact() -> None:
    assert waits(DEFAULTS, 0.0) == waits(DEFAULTS, 1.0)


def test_a_delivery_is_tried_a_hundred_times_at_most() -> None:
    policy = Policy.of({"retries_with_no_delay": 60, "minimum_delay_retries": 60})
    assert len(waits(policy)) == TRIES_MAX - 1


@pytest.mark.parametrize("function", RETRY_FUNCTIONS)
def test_large_numbers_cost_nothing(function: str) -> None:
    policy = Policy(
        retries_with_no_delay=0,
        minimum_delay_retries=1,
        minimum_delay=1,
        maximum_delay=10**12,
        maximum_delay_retries=sys.maxsize,
        retry_backoff_function=function,
    )
    started = time.process_time()
    assert len(waits(policy)) == TRIES_MAX - 1
    assert time.process_time() - started < 0.5


# -- our own curve --------------------------------------------------------------------------------


def test_without_a_policy_retries_go_on_for_twenty_seven_hours() -> None:
    curve = waits(None)
    assert sum(curve) == 27 * 3600
    assert curve[0] == 5
    assert max(curve) == 6 * 3600
    # The last one is what was left.
    assert all(after == min(2 * before, 21_600) for before, after in pairwise(curve[:-1]))


@given(st.floats(0, 1))
def test_jitter_keeps_within_bounds(jitter: float) -> None:
    curve = waits(None, jitter)
    assert all(5 <= wait <= 21_600 for wait in curve)
    assert 24 * 3600 < sum(curve) < 29 * 3600


def test_jitter_spreads() -> None:
    assert waits(None, 0.0)[5] < waits(None, 0.5)[5] < waits(None, 1.0)[5]


def test_retry_after_is_followed_up_to_the_longest_delay() -> None:
    assert longest(None) == LONGEST_S
    assert longest(Policy(maximum_delay=90)) == 90


# -- which policy counts --------------------------------------------------------------------------

OF_SUBSCRIPTION, OF_QUEUE = {"minimum_delay": 7}, {"minimum_delay": 9}
OVERRIDE = {"ignore_subscription_override": True}


@pytest.mark.parametrize(
    ("subscription", "queue", "chosen"),
    [
        (None, None, None),
        ({}, None, None),
        (None, {}, DEFAULTS),
        ({}, {}, DEFAULTS),
        (None, OF_QUEUE, Policy(minimum_delay=9)),
        ({}, OF_QUEUE, Policy(minimum_delay=9)),
        (OF_SUBSCRIPTION, None, Policy(minimum_delay=7)),
        (OF_SUBSCRIPTION, {}, Policy(minimum_delay=7)),
        (OF_SUBSCRIPTION, OF_QUEUE, Policy(minimum_delay=7)),
        (OF_SUBSCRIPTION, OF_QUEUE | OVERRIDE, Policy(minimum_delay=9)),
        (OF_SUBSCRIPTION, OVERRIDE, DEFAULTS),
        (OF_SUBSCRIPTION | OVERRIDE, OF_QUEUE, Policy(minimum_delay=9)),
        (OF_SUBSCRIPTION | OVERRIDE, {}, DEFAULTS),
        (OF_SUBSCRIPTION | OVERRIDE, None, DEFAULTS),
        (OF_SUBSCRIPTION, OF_QUEUE | {"ignore_subscription_override": False}, Policy(minimum_delay=7)),
        (OF_SUBSCRIPTION, {"ignore_subscription_override": None}, Policy(minimum_delay=7)),
        # Metadata takes these for null.
        (None, [], None),
        (None, "", None),
        (None, 0, None),
        (False, False, None),
    ],
)  # fmt: skip
def test_which_policy_counts(subscription: Any, queue: Any, chosen: Policy | None) -> None:
    assert choose(subscription, queue) == chosen


def test_null_and_unknown_members_count_for_nothing() -> None:
    assert Policy.of({"minimum_delay": None, "pace": "slow"}) == DEFAULTS


# -- what a policy may say ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy",
    [
        {"retries_with_no_delay": -1},
        {"retries_with_no_delay": 10_001},
        {"minimum_delay_retries": 10**18},
        {"maximum_delay_retries": True},
        {"maximum_delay_retries": 1.0},
        {"maximum_delay_retries": "3"},
        {"maximum_delay_retries": ""},
        {"maximum_delay_retries": []},
        {"minimum_delay": 0},
        {"minimum_delay": 21},
        {"maximum_delay": 14},
        {"maximum_delay": 86_401},
        {"minimum_delay": 86_391, "maximum_delay": 86_400},
        {"retry_backoff_function": "cubic"},
        {"retry_backoff_function": ["linear"]},
        {"ignore_subscription_override": "true"},
    ],
)
def test_nonsense_is_refused(policy: Mapping[str, Any]) -> None:
    with pytest.raises(Invalid):
        retry_policy(policy)


numbers = st.integers(-5, 10_005) | st.integers(0, 60)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "retries_with_no_delay": numbers,
            "minimum_delay_retries": numbers,
            "minimum_delay": st.integers(-1, 86_405) | st.integers(1, 60),
            "maximum_delay": st.integers(-1, 86_405) | st.integers(10, 600),
            "maximum_delay_retries": numbers,
            "retry_backoff_function": st.sampled_from(RETRY_FUNCTIONS),
        },
    )
)
def test_what_passes_makes_sense_when_delivering(document: dict[str, Any]) -> None:
    try:
        retry_policy(document)
    except Invalid:
        return
    policy = Policy.of(document)
    wait_s = delays(policy, lambda: 0.5)
    found = list(takewhile(lambda wait: wait is not None, map(wait_s, count(1))))
    assert len(found) <= TRIES_MAX - 1
    for before, after in pairwise(found):
        assert before is not None
        assert after is not None
        assert 0 <= before <= after <= longest(policy)
