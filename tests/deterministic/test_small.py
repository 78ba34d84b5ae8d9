"""The small model: no state of it breaks a rule, wrong ones do, and the store agrees with it."""

from __future__ import annotations

import random
from functools import cache

import pytest

from tests.deterministic.replaying import Walker
from tests.deterministic.small import VARIANTS, Bounds, Model, Search

pytestmark = [pytest.mark.embedded, pytest.mark.timeout(600)]

FEW = Bounds(operations=2, ticks=2, crashes=0)
MANY = Bounds()
WALKED = 600
QUICK = ("answers before the commit", "claims without a second look", "time read outside")


@cache
def visited(bounds: Bounds) -> Search:
    """All states within these bounds, none of which breaks a rule."""
    search = Search(Model(bounds))
    broken = search.run()
    assert broken is None, broken
    return search


@pytest.mark.parametrize(
    ("bounds", "states"),
    [
        (FEW, 15_000),
        pytest.param(Bounds(operations=1, crashes=1, deaths=1), 15_000, marks=pytest.mark.slow),
        pytest.param(MANY, 100_000, marks=pytest.mark.slow),
    ],
)
def test_no_state_breaks_a_rule(bounds: Bounds, states: int) -> None:
    assert visited(bounds).states > states


@pytest.mark.parametrize(
    "variant",
    [*QUICK, *(pytest.param(one, marks=pytest.mark.slow) for one in VARIANTS if one not in QUICK)],
)
def test_a_wrong_store_breaks_one(variant: str) -> None:
    broken = Search(Model(VARIANTS[variant], variant)).run()
    assert broken is not None
    assert broken.rule in {"R1", "R4", "R5"}


@pytest.mark.parametrize("bounds", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_the_store_answers_as_the_model_does(bounds: Bounds) -> None:
    """Ways to states chosen at random, those that take the most steps among them."""
    search, rng = visited(bounds), random.Random(1)
    last = range(search.states - WALKED // 4, search.states)
    numbers = [*last, *rng.sample(range(search.states), WALKED)]
    told = Walker(bounds.claim_ttl).disagreements(map(search.way, numbers))
    assert told == []


@pytest.mark.parametrize("variant", ["time read outside"])
def test_the_store_does_not_answer_as_a_wrong_model_does(variant: str) -> None:
    """Which is to say that the comparison can fail."""
    search = Search(Model(FEW, variant), go_on=True)
    search.run()
    numbers = random.Random(1).sample(range(search.states), WALKED)
    assert Walker(FEW.claim_ttl).disagreements(map(search.way, numbers))
