"""Rates of projects on several nodes: near what was said, whoever is asked."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Any, cast

import pytest

from nusku.broker.limits import Limits
from nusku.broker.rates import Rates
from nusku.errors import RateExceeded
from nusku.metrics import Metrics
from nusku.storage import Store
from tests.notify.test_faults import run, timeless
from tests.test_leases import Records, World

pytestmark = pytest.mark.embedded


class Nodes:
    """Nodes that share a store, and a rate for each project."""

    def __init__(self, number: int, rate: int, *, shared: bool = True) -> None:
        self.rate = rate
        self.limits = Limits(cast("Any", None), None)
        self.limits.rate = lambda project: self.rate  # type: ignore[method-assign]
        store = cast("Any", Store)._make([None] * len(Store._fields))
        records = cast("Any", Records(World(random.Random(0), 0)))
        store = store._replace(records=records, shared=shared)
        self.nodes = [
            Rates(self.limits, store, random.Random(n), Metrics(), timeless().time)
            for n in range(number)
        ]

    async def served(self, seconds: int, *asked: int) -> list[int]:
        """How many requests each node serves that is asked so often a second."""
        got = [0] * len(asked)

        async def ask(n: int) -> None:
            for _ in range(asked[n] * seconds):
                with suppress(RateExceeded):
                    self.nodes[n].take("p")
                    got[n] += 1
                await asyncio.sleep(1 / asked[n])

        await asyncio.gather(*(ask(n) for n in range(len(asked)) if asked[n]))
        return got

    async def keep(self) -> None:
        self.stack = [node.kept() for node in self.nodes]
        for one in self.stack:
            await one.__aenter__()

    async def stop(self) -> None:
        for one in self.stack:
            await one.__aexit__(None, None, None)


def near(number: float, wanted: float, tolerance: float = 0.1) -> bool:
    return abs(number - wanted) <= tolerance * wanted


@pytest.mark.parametrize("shared", [True, False])
def test_one_node_serves_the_rate(shared: bool) -> None:
    async def test() -> None:
        nodes = Nodes(1, 100, shared=shared)
        await nodes.keep()
        assert await nodes.served(3, 50) == [150]
        assert near((await nodes.served(10, 1000))[0], 1000)
        await nodes.stop()

    run(test())


@pytest.mark.parametrize("asked", [(300, 300), (1000, 100), (500, 20), (90, 90, 90, 90)])
def test_several_nodes_share_it_by_what_they_are_asked(asked: tuple[int, ...]) -> None:
    async def test() -> None:
        nodes = Nodes(len(asked), 100)
        await nodes.keep()
        await nodes.served(4, *asked)  # until they have heard of one another
        got = await nodes.served(10, *asked)
        assert near(sum(got), 1000, 0.15), got
        assert got[0] >= max(got) * 0.9
        await nodes.stop()

    run(test())


def test_who_asks_less_than_the_rate_on_all_nodes_is_not_refused() -> None:
    async def test() -> None:
        nodes = Nodes(3, 100)
        await nodes.keep()
        await nodes.served(4, 30, 20, 40)
        assert await nodes.served(20, 30, 20, 40) == [600, 400, 800]
        await nodes.stop()

    run(test())


def test_the_share_of_a_node_that_is_asked_no_more_goes_to_the_others() -> None:
    async def test() -> None:
        nodes = Nodes(2, 100)
        await nodes.keep()
        await nodes.served(5, 500, 500)
        await nodes.served(6, 500, 0)
        assert near((await nodes.served(10, 500, 0))[0], 1000)
        await nodes.stop()

    run(test())


def test_nothing_is_kept_of_projects_that_ask_no_more() -> None:
    async def test() -> None:
        nodes = Nodes(1, 100)
        await nodes.keep()
        for n in range(1000):
            nodes.nodes[0].take(f"p{n}")
        await asyncio.sleep(10)
        assert not nodes.nodes[0]._buckets
        await nodes.stop()

    run(test())
