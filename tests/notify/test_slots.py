"""Who gets leave for an attempt, where several projects want the same."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from nusku.notify.slots import Slot, Slots, Standing
from tests.notify.test_faults import run
from tests.notify.test_notifier import made, slot, waiting

EACH = 4


async def in_turn(slots: Slots, first: Slot, tasks: dict[asyncio.Task[Slot], str]) -> list[str]:
    """Leave, and let each who then gets leave do so, too; whose turn it was."""
    order: list[str] = []
    slots.leave(first)
    while tasks:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            order.append(tasks.pop(task))
            slots.leave(task.result())
    return order


def test_at_an_endpoint_that_projects_share_each_has_its_turn() -> None:
    """However many of one project came before."""

    async def test() -> None:
        slots = Slots(100, EACH)
        first = await slot(slots, "maker", "shared")
        names = [*"aaaaaa", *"b", *"cc"]
        tasks = {await waiting(slots, name, "shared"): name for name in names}
        assert await in_turn(slots, first, tasks) == [*"abcacaaaa"]
        assert slots.in_flight == 0

    run(test())


def test_projects_take_turns_at_the_whole_as_well() -> None:
    async def test() -> None:
        slots = Slots(8, EACH)
        await made(slots, "good", *(f"{name}{n}" for name in "abcd" for n in range(4)))
        held = [await slot(slots, name, f"{name}{n}") for name in "ab" for n in range(4)]
        names = ["c0", "c1", "c2", "d0"]
        tasks = {await waiting(slots, name[0], name): name for name in names}
        order = await in_turn(slots, held.pop(), tasks)
        assert order == ["c0", "d0", "c1", "c2"]
        for one in held:
            slots.leave(one)
        assert slots.in_flight == 0

    run(test())


def test_who_no_longer_waits_is_passed_over() -> None:
    async def test() -> None:
        slots = Slots(100, EACH)
        first = await slot(slots, "maker", "shared")
        coming = [await waiting(slots, name, "shared") for name in "aabbc"]
        for task in coming[:3]:
            task.cancel()
        await asyncio.sleep(0)
        order = await in_turn(slots, first, {coming[3]: "b", coming[4]: "c"})
        assert sorted(order) == ["b", "c"]
        slots.leave(await slot(slots, "a", "shared"))
        assert slots._projects == {}

    run(test())


async def many_come_and_some_go(seed: int) -> None:
    rng = random.Random(seed)
    slots = Slots(rng.randint(1, 20), EACH)
    inside: Counter[str] = Counter()

    async def come() -> None:
        endpoint = f"e{rng.randrange(7)}"
        got = await slots.enter(f"p{rng.randrange(4)}", endpoint)
        standing: Standing | None = None
        inside[endpoint] += 1
        try:
            assert inside[endpoint] <= EACH
            await asyncio.sleep(rng.choice((0, 0, 0.001)))
            standing = rng.choice((None, "good", "bad", "new"))
        finally:
            inside[endpoint] -= 1
            slots.leave(got, standing)

    tasks = [asyncio.create_task(come()) for _ in range(300)]
    for task in rng.sample(tasks, 100):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [task.exception() for task in tasks if not task.cancelled() and task.exception()] == []
    assert slots.in_flight == 0
    assert slots._projects == {}
    assert not any(known.users or known.places.used for known in slots._endpoints.values())
    assert slots._all.bad.used == slots._all.not_good.used == 0


@pytest.mark.parametrize("seed", range(10))
def test_whoever_comes_and_goes_nothing_is_lost(seed: int) -> None:
    run(many_come_and_some_go(seed))
