"""Counting: exact at the moment of reading, without any housekeeping."""

import pytest

from nusku.model import QueueRef
from nusku.storage import Removal
from tests.storage.harness import START_MS, House, bodies


async def test_an_empty_queue_counts_nothing(house: House) -> None:
    ref = await house.queue()
    counts = await house.messages.count(ref)
    assert counts.total == 0
    assert counts == (0, 0, 0, None, None, START_MS)


async def test_free_held_and_delayed_messages_are_counted_apart(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, *"hhh")
    await house.hold(ref)
    await house.post(ref, *"ff")
    await house.post(ref, *"dddd", delay_s=60)
    counts = await house.messages.count(ref)
    assert (counts.free, counts.held, counts.delayed, counts.total) == (2, 3, 4, 9)


async def test_oldest_and_newest_are_those_of_all_messages(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "held", client="c1")
    await house.hold(ref, ttl_s=600)
    house.clock.turn(1)
    await house.post(ref, "free")
    house.clock.turn(1)
    await house.post(ref, "delayed", delay_s=60)
    counts = await house.messages.count(ref)
    everything = await house.all(ref)
    assert counts.oldest == everything[0]
    assert counts.newest == everything[2]
    assert counts.now_ms == START_MS + 2000


async def test_a_single_message_is_the_oldest_and_the_newest(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "only", delay_s=5)
    counts = await house.messages.count(ref)
    [message] = await house.all(ref)
    assert counts.oldest == counts.newest == message


async def test_expired_messages_are_neither_oldest_nor_newest(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "old", ttl_s=60)
    await house.post(ref, "a", "b")
    await house.post(ref, "new", ttl_s=60)
    house.clock.turn(60)
    counts = await house.messages.count(ref)
    assert counts.oldest is not None
    assert counts.newest is not None
    assert bodies([counts.oldest, counts.newest]) == ["a", "b"]


async def check(house: House, ref: QueueRef) -> tuple[int, int, int]:
    """The counts, compared with what the pages show."""
    counts = await house.messages.count(ref)
    everything = await house.all(ref)
    free = len((await house.messages.page(ref, 0, 1_000_000)).messages)
    held = sum(message.claim is not None for message in everything)
    assert (counts.free, counts.held, counts.total) == (free, held, len(everything))
    assert counts.oldest == (everything[0] if everything else None)
    assert counts.newest == (everything[-1] if everything else None)
    return counts.free, counts.held, counts.delayed


async def test_counts_follow_every_change_of_state(house: House) -> None:
    ref = await house.queue()
    given = await house.post(ref, *map(str, range(10)))
    assert await check(house, ref) == (10, 0, 0)
    claim, _ = await house.hold(ref, 6)
    assert await check(house, ref) == (4, 6, 0)
    await house.messages.release(ref, claim, 0, given[:1])
    assert await check(house, ref) == (5, 5, 0)
    await house.messages.release(ref, claim, 30, given[1:3])
    assert await check(house, ref) == (5, 3, 2)
    await house.messages.remove(ref, [given[1], given[3], given[9]], Removal.ANY)
    assert await check(house, ref) == (4, 2, 1)
    await house.messages.renew(ref, claim, 200, 60)
    assert await check(house, ref) == (4, 2, 1)
    house.clock.turn(30)
    assert await check(house, ref) == (5, 2, 0)
    await house.messages.pop(ref, 2)
    assert await check(house, ref) == (3, 2, 0)
    house.clock.turn(170)
    assert await check(house, ref) == (5, 0, 0)
    await house.messages.clear(ref)
    assert await check(house, ref) == (0, 0, 0)


async def test_messages_that_expire_while_held_or_delayed_leave_the_counts(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "lengthened", ttl_s=60)
    await house.hold(ref, ttl_s=100, grace_s=0)
    await house.post(ref, "delayed", ttl_s=60, delay_s=500)
    assert await check(house, ref) == (0, 1, 1)
    house.clock.turn(60)
    assert await check(house, ref) == (0, 1, 0)
    house.clock.turn(40)
    assert await check(house, ref) == (0, 0, 0)


async def test_a_message_that_expires_when_its_delay_ends_is_never_free(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a", ttl_s=60, delay_s=60)
    house.clock.turn(59)
    assert await check(house, ref) == (0, 0, 1)
    house.clock.turn(1)
    assert await check(house, ref) == (0, 0, 0)
    assert (await house.messages.claim(ref, 1, 60, 60)).claim is None


async def test_a_lapsed_message_that_has_expired_since_is_not_free(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a", ttl_s=100)
    await house.hold(ref, ttl_s=60)
    house.clock.turn(100)
    assert await check(house, ref) == (0, 0, 0)


async def test_a_released_message_that_expires_during_its_delay_is_never_free(
    house: House,
) -> None:
    ref = await house.queue()
    await house.post(ref, "a", ttl_s=100)
    claim, _ = await house.hold(ref, ttl_s=60)
    await house.messages.release(ref, claim, delay_s=300)
    assert await check(house, ref) == (0, 0, 1)
    house.clock.turn(100)
    assert await check(house, ref) == (0, 0, 0)
    house.clock.turn(200)
    assert await check(house, ref) == (0, 0, 0)


@pytest.mark.parametrize("number", [1, 999, 1000, 1001, 5000])
async def test_counts_are_exact_when_many_messages_expire_in_the_same_second(
    house: House, number: int
) -> None:
    ref = await house.queue()
    await house.fill(ref, number, ttl_s=60)
    await house.post(ref, "stays")
    house.clock.turn(59)
    assert await house.numbers(ref) == (number + 1, 0, 0)
    house.clock.turn(1)
    assert await house.numbers(ref) == (1, 0, 0)
    assert bodies(await house.messages.pop(ref, 2)) == ["stays"]
    assert await house.numbers(ref) == (0, 0, 0)


@pytest.mark.parametrize("number", [1, 999, 1000, 1001, 5000])
async def test_counts_are_exact_when_many_claims_lapse_in_the_same_second(
    house: House, number: int
) -> None:
    ref = await house.queue()
    await house.fill(ref, number)
    while (await house.messages.claim(ref, 20, 60, 60)).claim:
        pass
    assert await house.numbers(ref) == (0, number, 0)
    house.clock.turn(60)
    assert await house.numbers(ref) == (number, 0, 0)
    got = await house.messages.claim(ref, 20, 60, 60)
    taken = min(20, number)
    assert len(got.messages) == taken
    assert await house.numbers(ref) == (number - taken, taken, 0)


@pytest.mark.parametrize("number", [1, 999, 1000, 1001, 5000])
async def test_counts_are_exact_when_many_delays_end_in_the_same_second(
    house: House, number: int
) -> None:
    ref = await house.queue()
    await house.fill(ref, number, delay_s=60)
    assert await house.numbers(ref) == (0, 0, number)
    house.clock.turn(60)
    assert await house.numbers(ref) == (number, 0, 0)
    assert len((await house.messages.pop(ref, 20)).messages) == min(20, number)
    assert await house.numbers(ref) == (max(0, number - 20), 0, 0)


async def test_counts_are_exact_when_half_of_each_claim_expires_as_it_lapses(
    house: House,
) -> None:
    ref = await house.queue()
    for _ in range(30):
        await house.post(ref, *["short"] * 5, ttl_s=60)
        await house.post(ref, *["long"] * 5)
        await house.hold(ref, 10, ttl_s=60)
    house.clock.turn(60)
    assert await house.numbers(ref) == (150, 0, 0)
    assert set(await house.free(ref)) == {"long"}


async def test_volume_counts_all_queues_of_the_store(house: House) -> None:
    a, b = await house.queue("a"), await house.queue("b", "p2", "topic")
    await house.post(a, *"xyz")
    await house.hold(a, 1, ttl_s=90)
    await house.post(b, *"xy", delay_s=60)
    await house.post(b, "x", ttl_s=60)
    assert await house.messages.volume() == (3, 1, 2, None, None, START_MS)
    house.clock.turn(60)
    assert await house.messages.volume() == (4, 1, 0, None, None, START_MS + 60_000)
    house.clock.turn(30)
    await house.messages.clear(b)
    assert (await house.messages.volume())[:3] == (3, 0, 0)
    await house.messages.drop(a)
    assert (await house.messages.volume())[:3] == (0, 0, 0)
