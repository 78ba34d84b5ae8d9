"""Moving messages to the end of another queue."""

import asyncio

import pytest

from nusku.model import QueueRef
from nusku.storage import Stale
from tests.storage.harness import START_MS, House, bodies, positions


@pytest.fixture
def pair(house: House, runner: asyncio.Runner) -> tuple[QueueRef, QueueRef]:
    """A queue and the one to move to, of the same home."""

    async def make() -> tuple[QueueRef, QueueRef]:
        work = await house.queue("work")
        return work, await house.beside(work)

    return runner.run(make())


Pair = tuple[QueueRef, QueueRef]


async def test_moved_messages_are_at_the_end_of_the_other_queue(house: House, pair: Pair) -> None:
    work, dead = pair
    given = await house.post(work, "a", "b", "c")
    there = await house.post(dead, "z")
    moved = await house.messages.move(work, [given[0], given[2]], dead, None, {})
    assert await house.free(work) == ["b"]
    assert await house.free(dead) == ["z", "a", "c"]
    assert positions(await house.all(dead)) == there + moved


async def test_age_count_client_and_attributes_go_with_a_moved_message(
    house: House, pair: Pair
) -> None:
    work, dead = pair
    given = await house.post(work, "a", ttl_s=500, client="c1", attributes=b"old")
    for _ in range(3):
        got = await house.messages.claim(work, 1, 60, 60, 9)
        assert got.claim
        await house.messages.release(work, got.claim)
    house.clock.turn(100)
    await house.messages.move(work, given, dead, None, {})
    [message] = await house.all(dead)
    assert message.posted_ms == START_MS
    assert message.count == 3
    assert message.client == "c1"
    assert message.body == b"a"
    assert message.attributes == b"old"
    assert message.claim is None


async def test_a_moved_message_gets_the_attributes_given_for_it(house: House, pair: Pair) -> None:
    work, dead = pair
    given = await house.post(work, "a", "b", "c", attributes=b"old")
    await house.messages.move(work, given, dead, None, {given[0]: b"A", given[2]: b"C"})
    assert [message.attributes for message in await house.all(dead)] == [b"A", b"old", b"C"]


async def test_a_moved_message_gets_the_body_given_for_it(house: House, pair: Pair) -> None:
    work, dead = pair
    given = await house.post(work, "a", "b", "c")
    new = {given[0]: b"\x01\xff\x00" * 20_000, given[2]: b"C", 10**9: b"nobody's"}
    moved = await house.messages.move(work, given, dead, None, {given[1]: b"x"}, bodies=new)
    found = await house.messages.get(dead, moved)  # and it is not taken for a damaged one
    assert [message.body for message in found.messages] == [new[given[0]], b"b", b"C"]
    assert [message.attributes for message in found.messages] == [None, b"x", None]


async def test_without_a_ttl_a_moved_message_lives_as_long_as_it_had_left(
    house: House, pair: Pair
) -> None:
    work, dead = pair
    given = await house.post(work, "a", ttl_s=500)
    house.clock.turn(100)
    await house.messages.move(work, given, dead, None, {})
    [message] = await house.all(dead)
    assert message.ttl_s == 500
    assert message.expires_ms == START_MS + 500_000
    house.clock.turn(399)
    assert await house.free(dead) == ["a"]
    house.clock.turn(1)
    assert await house.free(dead) == []


@pytest.mark.parametrize("ttl_s", [60, 9000])
async def test_with_a_ttl_a_moved_message_lives_that_long_from_now(
    house: House, pair: Pair, ttl_s: int
) -> None:
    work, dead = pair
    given = await house.post(work, "a", ttl_s=500)
    house.clock.turn(100)
    await house.messages.move(work, given, dead, ttl_s, {})
    [message] = await house.all(dead)
    assert message.ttl_s == ttl_s
    assert message.posted_ms == START_MS
    assert message.expires_ms == START_MS + 100_000 + ttl_s * 1000
    house.clock.turn(ttl_s - 1)
    assert await house.numbers(dead) == (1, 0, 0)
    house.clock.turn(1)
    assert await house.numbers(dead) == (0, 0, 0)


async def test_only_free_messages_are_moved(house: House, pair: Pair) -> None:
    work, dead = pair
    given = await house.post(work, "held")
    await house.hold(work, ttl_s=600)
    given += await house.post(work, "delayed", delay_s=600)
    given += await house.post(work, "expired", ttl_s=60)
    given += await house.post(work, "free")
    house.clock.turn(60)
    moved = await house.messages.move(work, [*given, 10**9], dead, None, {})
    assert len(moved) == 1
    assert bodies(await house.all(dead)) == ["free"]
    assert bodies(await house.all(work)) == ["held", "delayed"]


async def test_what_lapsed_or_came_due_can_be_moved(house: House, pair: Pair) -> None:
    work, dead = pair
    given = await house.post(work, "held")
    await house.hold(work, ttl_s=60)
    given += await house.post(work, "delayed", delay_s=60)
    house.clock.turn(60)
    await house.messages.move(work, given, dead, None, {})
    assert await house.free(dead) == ["held", "delayed"]
    assert await house.numbers(work) == (0, 0, 0)
    assert await house.numbers(dead) == (2, 0, 0)


async def test_moving_nothing_does_nothing(house: House, pair: Pair) -> None:
    work, dead = pair
    await house.post(work, "a")
    assert await house.messages.move(work, [], dead, 60, {}) == []
    assert await house.numbers(work) == (1, 0, 0)


async def test_a_moved_message_can_be_claimed_and_moved_on(house: House, pair: Pair) -> None:
    work, dead = pair
    given = await house.post(work, "a", dedup="k")
    moved = await house.messages.move(work, given, dead, None, {})
    claim, held = await house.hold(dead)
    assert held == moved
    await house.messages.release(dead, claim)
    await house.messages.move(dead, moved, work, None, {})
    assert await house.free(work) == ["a"]
    assert await house.free(dead) == []


async def test_a_moved_message_leaves_its_dedup_key_free_behind_it(
    house: House, pair: Pair
) -> None:
    work, dead = pair
    given = await house.post(work, "a", dedup="k")
    await house.messages.move(work, given, dead, None, {})
    await house.post(work, "b", dedup="k")
    assert await house.free(work) == ["b"]


async def test_a_message_can_be_moved_beside_one_of_the_same_dedup_key(
    house: House, pair: Pair
) -> None:
    work, dead = pair
    await house.post(dead, "there", dedup="k")
    given = await house.post(work, "a", dedup="k")
    await house.messages.move(work, given, dead, None, {})
    assert await house.free(work) == []
    assert await house.free(dead) == ["there", "a"]


@pytest.mark.parametrize("recreated", [False, True])
async def test_move_is_stale_when_the_target_is_of_another_generation(
    house: House, pair: Pair, recreated: bool
) -> None:
    work, dead = pair
    given = await house.post(work, "a")
    await house.messages.drop(dead)
    dead_again = await house.beside(work) if recreated else None
    with pytest.raises(Stale):
        await house.messages.move(work, given, dead, None, {})
    assert await house.free(work) == ["a"]
    if dead_again:
        assert await house.free(dead_again) == []


@pytest.mark.parametrize("recreated", [False, True])
async def test_from_a_source_that_is_gone_nothing_is_moved(
    house: House, pair: Pair, recreated: bool
) -> None:
    work, dead = pair
    given = await house.post(work, "a")
    await house.messages.drop(work)
    work_again = await house.queue("work") if recreated else None
    if work_again:
        await house.post(work_again, "b")
    assert await house.messages.move(work, given, dead, None, {}) == []
    assert await house.free(dead) == []
    if work_again:
        assert await house.free(work_again) == ["b"]


async def test_a_moved_message_is_gone_from_its_old_position(house: House, pair: Pair) -> None:
    work, dead = pair
    given = await house.post(work, "a")
    await house.messages.move(work, given, dead, None, {})
    assert not (await house.messages.get(work, given)).messages
    assert await house.messages.move(work, given, dead, None, {}) == []
    assert await house.free(dead) == ["a"]
