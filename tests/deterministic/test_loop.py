"""The loop of the deterministic tier."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from nusku.broker import fanout
from tests.deterministic.loop import EPOCH_S, OWNER, Loop, Stuck, context_of, turned_clocks

pytestmark = pytest.mark.embedded

DAY_S = 86_400


class Node:
    dead = still = False


def order(seed: int) -> list[int]:
    """In which order callbacks run that are ready at once."""
    ran: list[int] = []

    async def play() -> None:
        for n in range(20):
            asyncio.get_running_loop().call_soon(ran.append, n)
        await asyncio.sleep(1)

    Loop(random.Random(seed)).run(play())
    return ran


def test_the_seed_says_what_runs_next() -> None:
    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == list(range(20))


def test_time_leaps_to_what_is_due() -> None:
    async def play() -> float:
        await asyncio.sleep(DAY_S)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(DAY_S):
                await asyncio.get_running_loop().create_future()
        return asyncio.get_running_loop().time()

    began = time.monotonic()
    assert Loop(random.Random(0)).run(play()) == 2 * DAY_S
    assert time.monotonic() - began < 10


def test_clocks_of_the_service_are_the_loops() -> None:
    async def play() -> tuple[float, float]:
        await asyncio.sleep(7)
        return vars(fanout)["time"].time(), vars(fanout)["time"].monotonic()

    with turned_clocks():
        assert Loop(random.Random(0)).run(play()) == (EPOCH_S + 7, 7)
    assert vars(fanout)["time"] is time


def test_what_waits_for_nothing_is_told() -> None:
    async def play() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Stuck):
        Loop(random.Random(0)).run(play())


def test_the_dead_do_nothing_more() -> None:
    """Neither what was ready, nor what waits, nor what would be tidied up."""
    did: list[str] = []
    node = Node()

    async def work() -> None:
        try:
            did.append("began")
            await asyncio.sleep(1)
            did.append("went on")
        finally:
            if not node.dead:
                did.append("tidied up")

    async def play() -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(work(), context=context_of(node))
        loop.call_later(2, did.append, "a timer", context=context_of(node))
        await asyncio.sleep(0.5)
        node.dead = True
        await asyncio.sleep(DAY_S)
        assert OWNER.get(None) is None
        assert not task.done()

    Loop(random.Random(0)).run(play())
    assert did == ["began"]


def test_who_stands_still_goes_on_later_with_all_that_became_due() -> None:
    """The clock goes on meanwhile, and others do."""
    did: list[tuple[str, float]] = []
    node = Node()

    async def play() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)

        def note(what: str) -> None:
            did.append((what, loop.time()))

        for at_s in (1, 2, 5):
            loop.call_later(at_s, note, f"due at {at_s}", context=context_of(node))
        loop.call_later(2, note, "another's")
        node.still = True
        await asyncio.sleep(4)
        assert did == [("another's", 2)]
        loop.go_on(node)
        await asyncio.sleep(2)

    Loop(random.Random(0)).run(play())
    assert sorted(did[1:3]) == [("due at 1", 4), ("due at 2", 4)]
    assert did[3:] == [("due at 5", 5)]
