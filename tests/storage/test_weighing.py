"""What a project holds: its queues, their messages, and the bytes of these."""

from __future__ import annotations

import pytest

from nusku.model import QueueRef
from nusku.storage import Stale
from tests.storage.harness import House


async def weight(
    house: House, ref: QueueRef, after: int = 0, through: int = 1 << 40
) -> tuple[int, int]:
    """How many messages, and how many bytes, in as many steps as it takes."""
    messages = size = 0
    while after < through:
        step = await house.messages.weigh(ref, after, through)
        assert after < step.through <= through
        messages, size, after = messages + step.messages, size + step.bytes, step.through
    return messages, size


async def held(house: House, project: str = "p1") -> dict[str, int]:
    """The project's queues that hold messages, and how many."""
    return {one.ref.key.name: one.messages for one in await house.messages.holdings(project)}


async def test_a_project_holds_the_messages_of_its_queues_and_topics(house: House) -> None:
    orders, topic = await house.queue(), await house.queue("news", kind="topic")
    await house.queue("empty")
    await house.post(await house.queue("orders", "p2"), "other")
    await house.post(await house.beside(orders), "a notice")
    await house.post(orders, "a", "b", delay_s=10)
    await house.post(topic, "c", ttl_s=60)
    assert await held(house) == {"orders": 2, "news": 1}
    house.clock.turn(60)
    assert await held(house) == {"orders": 2}
    assert not await held(house, "p3")


@pytest.mark.parametrize("project", ["p", "p:orders", "a b", "é%", "", "*"])
async def test_only_what_a_project_holds_itself_is_told(house: House, project: str) -> None:
    await house.post(await house.queue("orders", project), "mine")
    for other in (f"{project}p", f"p{project}x", f"{project}:orders"):
        await house.post(await house.queue("orders", other), "a", "b")
    assert await held(house, project) == {"orders": 1}


async def test_what_is_held_is_told_with_its_place(house: House) -> None:
    ref = await house.queue()
    *_, last = await house.post(ref, "a", "b", "c")
    await house.messages.pop(ref, 2)
    await house.messages.seal(ref)
    (one,) = await house.messages.holdings("p1")
    assert (one.ref, one.next_position, one.messages, one.sealed) == (ref, last + 1, 1, True)


async def test_weight_is_that_of_live_bodies(house: House) -> None:
    ref = await house.queue()
    assert await weight(house, ref) == (0, 0)
    first, _ = await house.post(ref, "a", "bcd", ttl_s=60, attributes=b"not counted")
    await house.post(ref, "é", delay_s=10)
    await house.hold(ref, 1, ttl_s=61)
    assert await weight(house, ref) == (3, 6)
    assert await weight(house, ref, after=first) == (2, 5)
    assert await weight(house, ref, through=first) == (1, 1)
    house.clock.turn(60)
    assert await weight(house, ref) == (2, 3)  # the claim has prolonged the first one's life
    house.clock.turn(61)
    assert await weight(house, ref) == (1, 2)
    await house.messages.pop(ref, 1)
    assert await weight(house, ref) == (0, 0)


async def test_many_messages_are_weighed_in_several_steps(house: House) -> None:
    ref = await house.queue()
    await house.fill(ref, 4500, ttl_s=60)
    last = (await house.post(ref, "the last one"))[0]
    assert (await house.messages.weigh(ref, 0, last)).through < last
    assert await weight(house, ref) == (4501, 4512)
    house.clock.turn(60)
    assert await weight(house, ref) == (1, 12)
    await house.messages.expire(100_000)
    assert await weight(house, ref) == (1, 12)


async def test_sealed_queues_are_weighed_and_other_generations_are_not(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "abc")
    await house.messages.seal(ref)
    assert await weight(house, ref) == (1, 3)
    with pytest.raises(Stale):
        await house.messages.weigh(ref._replace(generation="f" * 16), 0, 10)
    await house.messages.drop(ref)
    with pytest.raises(Stale):
        await house.messages.weigh(ref, 0, 10)
