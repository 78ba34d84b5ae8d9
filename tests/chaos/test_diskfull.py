"""F-05: below the watermark posts are refused; everything else goes on, and posts come back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.conftest import run
from tests.chaos.harness.client import Client
from tests.chaos.harness.history import OK, Op
from tests.chaos.harness.nemesis.diskfull import WATERMARK, Ballast
from tests.chaos.harness.servers import Server
from tests.chaos.harness.stage import Plan
from tests.chaos.harness.volumes import Volume

pytestmark = [
    pytest.mark.slow,
    pytest.mark.chaos,
    pytest.mark.root,
    pytest.mark.usefixtures("loop_mounts"),
]

Q = "project/jobs"
STORED = 40  # messages, before the disk fills


@pytest.fixture
def tight(volume: Volume, tmp_path: Path) -> Iterator[Server]:
    """On a small disk, with some messages."""
    settings = {"NUSKU_DISK_WATERMARK": str(WATERMARK)}
    with Server(volume.path / "nusku.db", tmp_path, settings) as server:
        server.start()
        done = _do(server, *(_post(n, size=20) for n in range(0, STORED, 20)))
        assert [op.out for op in done] == [OK] * len(done)
        yield server


def test_below_the_watermark_only_posts_are_refused(tight: Server, volume: Volume) -> None:
    ballast = Ballast(volume)
    ballast.fill(leave=WATERMARK // 2)
    pid = tight.pid
    # The room is looked at now and then: one more may have been accepted.
    stored = STORED + _post_until(tight, 503)

    (stats, listed) = _do(tight, Op("stats", q=Q), Op("list", q=Q, limit=20))
    assert stats.counts == (stored, 0, stored), "a refused post had an effect"
    assert len(listed.got) == 20
    (claim,) = _do(tight, Op("claim", q=Q, ttl=60, grace=0, limit=5))
    assert len(claim.got) == 5
    ids = [name for name, _, _ in claim.got]
    changes = _do(
        tight,
        Op("renew", q=Q, cid=claim.cid, ttl=60),
        Op("delete", q=Q, id=ids[0], cid=claim.cid),
        Op("bulk", q=Q, ids=ids[1:3]),
        Op("release", q=Q, cid=claim.cid),
        Op("pop", q=Q, limit=1),
        Op("get", q=Q, id=ids[4]),
    )
    assert [(op.f, op.out) for op in changes] == [(op.f, OK) for op in changes]

    ballast.relieve()
    assert _post_until(tight, 201) == 1
    assert tight.pid == pid
    (stats,) = _do(tight, Op("stats", q=Q))
    assert stats.counts[0] == stored - 4 + 1


def test_a_disk_without_a_byte_left_stops_no_reader(tight: Server, volume: Volume) -> None:
    ballast = Ballast(volume)
    ballast.fill(leave=0)
    pid = tight.pid
    stored = STORED + _post_until(tight, 503)
    for _ in range(20):
        (listed,) = _do(tight, Op("list", q=Q, limit=20))
        assert len(listed.got) == 20
    ballast.relieve()
    stored += _post_until(tight, 201)
    assert tight.running()
    assert tight.pid == pid
    assert tight.stop() == 0
    tight.start()
    (stats,) = _do(tight, Op("stats", q=Q))
    assert stats.counts == (stored, 0, stored)


def test_no_promise_is_broken_while_the_disk_fills_and_empties(tmp_path: Path) -> None:
    assert run(Plan(nemesis="diskfull", seed=71, strikes=2, pause=(0.2, 0.8)), tmp_path).passed


def _post(n: int, size: int = 1) -> Op:
    return Op("post", q=Q, p="producer", n=n, size=size, ttl=3600)


def _post_until(server: Server, status: int) -> int:
    """Post until it is answered so, for at most 5 s; returns how many posts were accepted."""
    accepted = 0
    end = time.monotonic() + 5
    while time.monotonic() < end:
        (post,) = _do(server, _post(10_000 + accepted))
        accepted += post.out == OK
        if post.status == status:
            return accepted
        time.sleep(0.1)
    raise AssertionError(f"posts were not answered with {status} within 5 s")


def _do(server: Server, *ops: Op) -> list[Op]:
    async def work() -> list[Op]:
        client = Client(server, "tester", run=1)
        done = [await client.perform(op) for op in ops]
        client.close()
        return done

    return asyncio.run(work())
