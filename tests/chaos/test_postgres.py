"""F-01, F-12 to F-17, F-20 and F-21, with three nodes on PostgreSQL.

`python -m tests.chaos run --store postgresql --nemesis NAME` does each of these for longer.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.chaos.conftest import insist, run
from tests.chaos.fresh import FRESH
from tests.chaos.harness.stage import Plan

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(400)]

SEEDS = [FRESH]


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_by_nodes_sessions_connections_and_a_server_that_end(
    seed: int, tmp_path: Path
) -> None:
    """Nodes are killed, PostgreSQL is, sessions are ended, a proxy cuts and loses and is silent."""
    plan = Plan("pg-all", "postgresql", 3, "nodes", seed, strikes=12, pause=(0.1, 0.5))
    insist(plan, tmp_path)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_by_storms(seed: int, tmp_path: Path) -> None:
    """All sessions end at once, deadlocks are lost, and there is no room for a connection."""
    insist(Plan("pg-storm", "postgresql", 2, "brief", seed, strikes=4, pause=(0.1, 0.4)), tmp_path)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_when_a_synchronous_standby_takes_over(seed: int, tmp_path: Path) -> None:
    """Also: waits for the standby end by cancelling, and nobody believes the old primary."""
    plan = Plan("pg-standby", "postgresql", 3, "nodes", seed, strikes=3, pause=(0.3, 0.8))
    insist(plan, tmp_path)


def test_the_same_loses_where_commits_do_not_wait(tmp_path: Path) -> None:
    """The control: were nothing lost here, the failovers above would prove nothing."""
    plan = Plan("pg-failover", "postgresql", 3, "nodes", 71, strikes=1, pause=(0.5, 0.8))
    plan = dataclasses.replace(plan, safe=False)
    verdict = run(plan, tmp_path)
    assert verdict.strikes == 1
    assert verdict.lost
