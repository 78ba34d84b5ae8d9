"""F-01, F-19 to F-21, with some nodes on a Redis and on a Redis Cluster.

`python -m tests.chaos run --store redis-cluster --nemesis NAME` does each of these for longer.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.chaos.conftest import control, insist, run
from tests.chaos.fresh import FRESH, SEED
from tests.chaos.harness.stage import Plan

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(400)]

SEEDS = [FRESH]


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_by_a_redis_or_nodes_that_are_killed(seed: int, tmp_path: Path) -> None:
    plan = Plan("redis-all", "redis", 3, "nodes", seed, strikes=4, pause=(0.1, 0.5))
    insist(plan, tmp_path)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_done_twice_when_redis_is_hard_to_reach(seed: int, tmp_path: Path) -> None:
    """Replies and requests are lost, connections cut, and all is silent."""
    insist(Plan("redis-cut", "redis", 2, "brief", seed, strikes=4, pause=(0.1, 0.4)), tmp_path)


def test_a_node_that_posts_again_is_seen(tmp_path: Path) -> None:
    control(Plan("redis-cut", "redis", 1, "brief", 73, strikes=1, pause=(0.3, 0.6)), tmp_path)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_by_one_fault_of_a_cluster(seed: int, tmp_path: Path) -> None:
    """A master is killed while its replica hears nothing; slots, masters and scripts change."""
    plan = Plan("redis-cluster-all", "redis-cluster", 3, "nodes", seed, strikes=5, pause=(0.1, 0.5))
    insist(plan, tmp_path)


def test_the_same_loses_where_no_replica_is_waited_for(tmp_path: Path) -> None:
    """The control: were nothing lost here, the failovers above would prove nothing."""
    plan = Plan("redis-failover", "redis-cluster", 3, "nodes", 72, strikes=1, pause=(0.5, 0.8))
    plan = dataclasses.replace(plan, safe=False)
    verdict = run(plan, tmp_path)
    assert verdict.strikes == 1
    assert verdict.lost


@pytest.mark.usefixtures("loop_mounts")
@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_by_two_faults_at_once_where_all_logs_are_synced_at_each_change(
    seed: int, tmp_path: Path
) -> None:
    """A master and its replica are killed, lose power, or one of them its disk."""
    plan = Plan("redis-double", "redis-cluster", 3, "nodes", seed, strikes=3, pause=(0.1, 0.2))
    verdict = insist(plan, tmp_path)
    assert len(verdict.forgotten) == 3


@pytest.mark.usefixtures("loop_mounts", "strace")
def test_two_faults_at_once_cost_the_last_seconds_where_logs_are_synced_every_second(
    tmp_path: Path,
) -> None:
    """Also the control of the above: the very same is seen to lose."""
    # Begins with the master lost while its replica loses power, then both lose power.
    seed = SEED - SEED % 8
    name = "redis-double-everysec"
    plan = Plan(name, "redis-cluster", 3, "held", seed, strikes=2, pause=(0.1, 0.2))
    verdict = insist(plan, tmp_path)
    assert any(one.any for one in verdict.forgotten), verdict.render()
