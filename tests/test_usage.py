"""What a project has, over several stores and while its queues move between them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nusku.broker.amounts import NO_LIMIT, Amounts
from nusku.broker.usage import Usage
from nusku.errors import NuskuError, Unavailable
from nusku.model import QueueKey
from tests.notify.test_faults import Go
from tests.test_moving import ANN, QUEUE, Node, Service, leave_alone, service

LIMITS = Amounts(queues=99, messages=99, bytes=9999)


async def measured(node: Node, *, exact: bool = True) -> Amounts:
    usage = Usage(node.pools, node.pools.own.records)
    return (await usage.of(ANN.project, LIMITS, exact=exact)).amounts


def unrest(it: Service) -> None:
    """Every call of a store takes its time."""

    async def wait(name: str, args: tuple[Any, ...], go: Go) -> Any:
        await asyncio.sleep(it.rng.random() ** 3)
        result = await go()
        await asyncio.sleep(it.rng.random() ** 3)
        return result

    it.mover.meddle = it.other.meddle = wait


@pytest.mark.parametrize("seed", range(12))
def test_a_queue_that_moves_is_counted_once(tmp_path: Path, seed: int) -> None:
    async def test(it: Service) -> None:
        await it.mover.post(*range(7))
        there = await measured(it.other)
        assert there[:2] == (1, 7)
        unrest(it)
        for to in ("b", "a", None, "b"):
            moving = asyncio.ensure_future(it.mover.moving.move(QUEUE, to))
            while not moving.done():
                assert (await measured(it.other))[1] == 7
            await moving
            assert await measured(it.other) == there

    service(test, tmp_path, seed)


def test_a_queue_that_has_moved_between_two_looks_is_counted_once(tmp_path: Path) -> None:
    async def test(it: Service) -> None:
        await it.mover.post(*range(7))
        await it.mover.moving.move(QUEUE, "a")
        there = await measured(it.other)
        asked: list[str] = []
        moved = asyncio.Event()

        async def move(name: str, args: tuple[Any, ...], go: Go) -> Any:
            if name == "holdings":
                asked.append(name)
                if len(asked) == 4:  # the first look was at the own store and both pools
                    await it.mover.moving.move(QUEUE, "b")
                    moved.set()
                elif len(asked) > 4:
                    await moved.wait()
            return await go()

        it.other.meddle = move
        assert await measured(it.other) == there

    service(test, tmp_path)


@pytest.mark.parametrize("seed", range(12))
def test_what_a_dead_mover_has_left_behind_does_not_count(tmp_path: Path, seed: int) -> None:
    async def test(it: Service) -> None:
        await it.mover.post(*range(7))
        there = await measured(it.other)
        calls = it.rng.randrange(40)

        async def die(name: str, args: tuple[Any, ...], go: Go) -> Any:
            nonlocal calls
            calls -= 1
            if calls < 0:
                await asyncio.Event().wait()
            return await go()

        it.mover.meddle = die
        with suppress(TimeoutError, NuskuError):
            await asyncio.wait_for(it.mover.moving.move(QUEUE, "b"), 60)
        assert await measured(it.other) == there
        it.mover.meddle = leave_alone
        assert sorted(await it.other.bodies()) == list(range(7))
        assert await measured(it.other) == there

    service(test, tmp_path, seed)


@pytest.mark.parametrize("look", [0, 1])
def test_nobody_knows_what_is_in_a_pool_that_is_away(tmp_path: Path, look: int) -> None:
    async def test(it: Service) -> None:
        await it.mover.post(*range(7))
        usage = Usage(it.other.pools, it.other.pools.own.records)
        there = await usage.of(ANN.project, LIMITS, exact=True)
        asked: list[str] = []

        async def away(name: str, args: tuple[Any, ...], go: Go) -> Any:
            if name == "holdings":
                asked.append(name)
                if len(asked) == 3 * look + 2:  # of the own store and the pools a and b
                    raise Unavailable
            return await go()

        it.other.meddle = away
        # Others may have posted since it was counted.
        with pytest.raises(Unavailable, match="away"):
            await usage.of(ANN.project, LIMITS, exact=True)
        asked.clear()
        assert (await usage.of("another", LIMITS, exact=True)).amounts == Amounts()
        it.other.meddle = leave_alone
        assert await usage.of(ANN.project, LIMITS, exact=True) == there

    service(test, tmp_path)


def test_bytes_are_exact_or_no_less(tmp_path: Path) -> None:
    async def test(it: Service) -> None:
        weighed: list[str] = []

        async def count(name: str, args: tuple[Any, ...], go: Go) -> Any:
            weighed.append(name)
            return await go()

        node = it.other
        usage = Usage(node.pools, node.pools.own.records)
        node.meddle = count
        size = 0

        async def sees(least: int, most: int, *, exact: bool) -> None:
            amounts, sure = await usage.of(ANN.project, LIMITS, exact=exact)
            assert least <= amounts.bytes <= most
            assert sure is (least == most)

        for n in range(10):
            await node.post("x" * n)
            size += n + 2
            await sees(size, size, exact=False)
        weighed.clear()
        await sees(size, size, exact=True)
        assert "weigh" not in weighed  # nothing has changed
        await node.broker.messages.pop(ANN, QUEUE, 3)
        await sees(size - 9, size, exact=False)
        await node.post("y")
        size += 3
        await sees(size - 9, size, exact=False)
        size -= 9
        await sees(size, size, exact=True)
        await sees(size, size, exact=False)
        await node.broker.queues.delete(ANN, QUEUE)
        await sees(0, 0, exact=False)
        await node.post("z")
        await sees(3, 3, exact=False)

    service(test, tmp_path)


def test_only_what_is_limited_is_counted(tmp_path: Path) -> None:
    async def test(it: Service) -> None:
        await it.other.post("x")
        key = QueueKey("topic", ANN.project, "t")
        await it.other.broker.queues.create(ANN, key, {})
        usage = Usage(it.other.pools, it.other.pools.own.records)
        unlimited = Amounts(*[NO_LIMIT] * 4)
        for name, number in (("queues", 2), ("messages", 1), ("bytes", 3), ("subscriptions", 0)):
            limits = unlimited._replace(**{name: 5})
            there, sure = await usage.of(ANN.project, limits, exact=False)
            assert (getattr(there, name), sure) == (number, True)

    service(test, tmp_path)
