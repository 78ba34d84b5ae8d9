"""F-08: on a slow disk no answer comes before its sync, and one sync serves many."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.chaos.conftest import run
from tests.chaos.harness import tracing
from tests.chaos.harness.client import Client
from tests.chaos.harness.history import OK, Op
from tests.chaos.harness.servers import Server
from tests.chaos.harness.stage import Plan

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.usefixtures("strace")]

DELAY = 0.4  # s, added to each sync
POSTERS = 32
EACH = 5  # posts of each
MIB = 1 << 20


def test_no_promise_is_broken_while_the_disk_is_slow(tmp_path: Path) -> None:
    assert run(Plan(nemesis="slowdisk", seed=81, strikes=1, pause=(0.5, 1.0)), tmp_path).passed


def test_many_posts_share_a_slow_sync(server: Server, tmp_path: Path) -> None:
    async def post(i: int, count: int) -> list[Op]:
        client = Client(server, f"producer-{i}", run=1)
        ops = [Op("post", q="project/jobs", p=f"producer-{i}", n=n, ttl=3600) for n in range(count)]
        done = [await client.perform(op) for op in ops]
        client.close()
        return done

    async def load(count: int) -> list[Op]:
        results = await asyncio.gather(*(post(i, count) for i in range(POSTERS)))
        return [op for done in results for op in done]

    server.start()
    asyncio.run(load(1))  # the queue is there
    before = server.memory()
    fault = f"delay_exit={round(DELAY * 1e6)}"
    with tracing.Injection(
        server.pid, tracing.SYNC, fault, tmp_path / "strace", server.store
    ) as injection:
        posts = asyncio.run(load(EACH))
        grown = server.memory() - before
        syncs = injection.count()
    assert {op.out for op in posts} == {OK}
    assert min(op.t1 - op.t0 for op in posts) >= DELAY * 0.95
    assert syncs >= EACH, "a client's posts follow one another"
    # How many share one depends on the machine: those that come while the one before is under way.
    assert len(posts) >= syncs * POSTERS / 8
    assert grown < 64 * MIB
