"""Deadlines: nothing ends early, nothing ends more than a tick late; and housekeeping."""

import pytest

from nusku.storage import TICK_MS
from tests.storage.harness import House, bodies

OFFSETS_MS = [0, 1, 37, 99, 100, 101, 250, 999]


@pytest.fixture(params=OFFSETS_MS)
def offset(house: House, request: pytest.FixtureRequest) -> int:
    """The clock stands this far beside a whole second."""
    house.clock.now_ms += request.param
    return house.clock.now_ms


async def test_a_message_expires_at_its_end_never_early_and_at_most_a_tick_late(
    house: House, offset: int
) -> None:
    ref = await house.queue()
    given = await house.post(ref, "a", ttl_s=60)
    [message] = await house.all(ref)
    assert message.posted_ms == offset
    assert offset + 60_000 <= message.expires_ms <= offset + 60_000 + TICK_MS
    house.clock.now_ms = offset + 59_999
    assert await house.free(ref) == ["a"]
    assert await house.numbers(ref) == (1, 0, 0)
    house.clock.now_ms = message.expires_ms - 1
    assert await house.free(ref) == ["a"]
    house.clock.now_ms = message.expires_ms
    assert not await house.all(ref)
    assert not (await house.messages.get(ref, given)).messages
    assert await house.numbers(ref) == (0, 0, 0)
    assert (await house.messages.claim(ref, 1, 60, 60)).claim is None


@pytest.mark.parametrize("seconds", [60, 1])
async def test_a_claim_ends_never_early_and_at_most_a_tick_late(
    house: House, offset: int, seconds: int
) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    await house.hold(ref, ttl_s=seconds)
    due = (await house.messages.claim(ref, 1, 60, 60)).due_ms
    assert due is not None
    assert offset + seconds * 1000 <= due <= offset + seconds * 1000 + TICK_MS
    house.clock.now_ms = due - 1
    assert await house.numbers(ref) == (0, 1, 0)
    assert await house.free(ref) == []
    house.clock.now_ms = due
    assert await house.numbers(ref) == (1, 0, 0)
    assert bodies(await house.messages.claim(ref, 1, 60, 60)) == ["a"]


async def test_a_renewed_claim_ends_never_early_and_at_most_a_tick_late(
    house: House, offset: int
) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    claim, _ = await house.hold(ref, ttl_s=60)
    house.clock.now_ms = offset + 59_999
    assert await house.messages.renew(ref, claim, 60, 60)
    house.clock.now_ms = offset + 59_999 + 59_999
    assert await house.messages.claimed(ref, claim) is not None
    house.clock.now_ms = offset + 59_999 + 60_000 + TICK_MS
    assert await house.messages.claimed(ref, claim) is None


async def test_a_delay_ends_never_early_and_at_most_a_tick_late(house: House, offset: int) -> None:
    ref = await house.queue()
    await house.post(ref, "a", delay_s=30)
    due = (await house.messages.page(ref, 0, 1)).due_ms
    assert due is not None
    assert offset + 30_000 <= due <= offset + 30_000 + TICK_MS
    house.clock.now_ms = due - 1
    assert await house.numbers(ref) == (0, 0, 1)
    assert await house.free(ref) == []
    house.clock.now_ms = due
    assert await house.numbers(ref) == (1, 0, 0)
    assert await house.free(ref) == ["a"]


async def test_a_delay_after_release_ends_never_early_and_at_most_a_tick_late(
    house: House, offset: int
) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    claim, _ = await house.hold(ref)
    await house.messages.release(ref, claim, delay_s=7)
    due = (await house.messages.page(ref, 0, 1)).due_ms
    assert due is not None
    assert offset + 7000 <= due <= offset + 7000 + TICK_MS
    house.clock.now_ms = due - 1
    assert await house.free(ref) == []
    house.clock.now_ms = due
    assert await house.free(ref) == ["a"]


async def test_a_held_message_never_expires_before_its_claim_ends(
    house: House, offset: int
) -> None:
    ref = await house.queue()
    await house.post(ref, "a", ttl_s=60)
    await house.hold(ref, ttl_s=60, grace_s=0)
    house.clock.now_ms = offset + 59_999
    assert await house.numbers(ref) == (0, 1, 0)


async def test_the_start_of_a_claim_and_the_post_of_a_message_are_not_rounded(
    house: House, offset: int
) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    claim, _ = await house.hold(ref)
    found = await house.messages.claimed(ref, claim)
    assert found is not None
    assert found.started_ms == offset
    assert found.messages[0].posted_ms == offset


async def test_housekeeping_removes_dead_rows_in_bounded_steps(house: House) -> None:
    ref = await house.queue()
    await house.fill(ref, 25, ttl_s=60)
    await house.post(ref, "alive")
    house.clock.turn(60)
    steps = []
    while step := await house.messages.expire(10):
        steps.append(step)
    assert steps == [10, 10, 5]
    assert await house.free(ref) == ["alive"]


async def test_housekeeping_finds_nothing_where_nothing_died(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a", ttl_s=60)
    assert await house.messages.expire(10) == 0
    house.clock.turn(59)
    assert await house.messages.expire(10) == 0
    assert await house.free(ref) == ["a"]


async def test_housekeeping_changes_no_answer(house: House) -> None:
    ref = await house.queue()
    await house.fill(ref, 40, ttl_s=60)
    await house.post(ref, "held", "free")
    house.clock.turn(59)
    await house.hold(ref, 41, ttl_s=500, grace_s=0)
    await house.fill(ref, 40, ttl_s=60)
    await house.post(ref, "delayed", delay_s=500)
    house.clock.turn(60)
    everything, counts = await house.all(ref), await house.messages.count(ref)
    assert counts[:3] == (1, 41, 1)
    while await house.messages.expire(7):
        assert await house.all(ref) == everything
        assert await house.messages.count(ref) == counts


async def test_housekeeping_takes_what_expired_while_held_or_delayed(house: House) -> None:
    ref = await house.queue()
    await house.fill(ref, 5, ttl_s=60)
    await house.hold(ref, 5, ttl_s=60, grace_s=0)
    await house.fill(ref, 5, ttl_s=60, delay_s=300)
    house.clock.turn(60)
    while await house.messages.expire(3):
        pass
    assert await house.numbers(ref) == (0, 0, 0)
    await house.post(ref, "new")
    house.clock.turn(300)
    assert await house.numbers(ref) == (1, 0, 0)
    assert bodies(await house.messages.claim(ref, 9, 60, 60)) == ["new"]


async def test_housekeeping_empties_dropped_and_cleared_queues_unseen(house: House) -> None:
    dropped, cleared, other = [await house.queue(name) for name in "abc"]
    for ref in (dropped, cleared, other):
        await house.fill(ref, 30)
        await house.hold(ref, 10)
        await house.fill(ref, 10, delay_s=60)
    await house.messages.drop(dropped)
    await house.messages.clear(cleared)
    await house.post(cleared, "new")
    while await house.messages.expire(7):
        assert (await house.messages.volume())[:3] == (21, 10, 10)
    assert await house.free(cleared) == ["new"]
    assert await house.numbers(other) == (20, 10, 10)


async def test_a_clock_that_goes_back_frees_no_claim_and_revives_no_message(
    house: House,
) -> None:
    ref = await house.queue()
    await house.post(ref, "short", ttl_s=60)
    await house.post(ref, "long")
    house.clock.turn(60)
    await house.hold(ref, ttl_s=60)
    house.clock.turn(-30)
    assert bodies(await house.all(ref)) == ["long"]
    assert (await house.messages.claim(ref, 1, 60, 60)).claim is None
