"""What seeds found, in the service and in the checker, one test each."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from nusku.notify.worker import _Pump
from tests.chaos.harness.checker import check
from tests.chaos.harness.history import OK, Op, Run

pytestmark = pytest.mark.embedded


def test_a_pump_ends_whose_removal_was_cancelled_before_it_began() -> None:
    """It waited for that again and again, and never came to its end."""

    class Pump(_Pump):
        def __init__(self) -> None:
            self._removing: Any = None

        async def _look_up(self) -> bool:
            return True

        async def _send_all(self) -> None:
            self._removing = asyncio.create_task(self._remove())
            self._removing.cancel()

        async def _put_back(self) -> None:
            await asyncio.sleep(0)

    async def run() -> None:
        pump = cast("Any", Pump())
        ended = asyncio.create_task(pump.run())
        for _ in range(10):
            await asyncio.sleep(0)
        assert ended.done()

    asyncio.run(run())


def test_a_delay_that_ended_before_its_post_was_answered_hides_nothing() -> None:
    """Seed 6001676: the checker took it for a claim that was live when the first one came."""
    post = Op("post", "ann", "p/q", 1.0, 4.0, OK, p="ann.0.p/q", ttl=3600, delay=2, ids=["1"])
    claim = Op("claim", "bob", "p/q", 3.5, 3.6, OK, 201, ttl=2, cid="c")
    claim.got = [("1", "ann.0.p/q", 0)]
    assert check(Run(1, "claims"), [post, claim]) == []
    post.delay = 5
    assert {violation.rule for violation in check(Run(1, "claims"), [post, claim])} == {"R5"}
