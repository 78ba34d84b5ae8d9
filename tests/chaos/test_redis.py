"""F-01 and F-19, with three nodes on a Redis and on a Redis Cluster.

`python -m tests.chaos run --store redis-cluster --nemesis NAME` does each of these for longer.
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest

from tests.chaos.conftest import run
from tests.chaos.harness.stage import Plan

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(400)]

FRESH = random.randrange(10**6)
SEEDS = [pytest.param(FRESH, id=f"fresh-{FRESH}")]


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_by_a_redis_or_nodes_that_are_killed(seed: int, tmp_path: Path) -> None:
    plan = Plan("redis-all", "redis", 3, "nodes", seed, strikes=4, pause=(0.1, 0.5))
    assert run(plan, tmp_path).passed


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_by_one_fault_of_a_cluster(seed: int, tmp_path: Path) -> None:
    """A master is killed while its replica hears nothing; slots, masters and scripts change."""
    plan = Plan("redis-cluster-all", "redis-cluster", 3, "nodes", seed, strikes=5, pause=(0.1, 0.5))
    assert run(plan, tmp_path).passed


def test_the_same_loses_where_no_replica_is_waited_for(tmp_path: Path) -> None:
    """The control: were nothing lost here, the failovers above would prove nothing."""
    plan = Plan("redis-failover", "redis-cluster", 3, "nodes", 72, strikes=1, pause=(0.5, 0.8))
    plan = dataclasses.replace(plan, safe=False)
    verdict = run(plan, tmp_path)
    assert verdict.strikes == 1
    assert verdict.lost
