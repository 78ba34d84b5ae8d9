"""Moving messages that a claim holds: what was tried in vain goes on elsewhere."""

import asyncio

import pytest

from nusku.model import QueueRef
from nusku.storage import Removal, Removed, Stale
from tests.storage.harness import START_MS, House, bodies, positions


@pytest.fixture
def pair(house: House, runner: asyncio.Runner) -> tuple[QueueRef, QueueRef]:
    """A queue of deliveries and the one to move to."""

    async def make() -> tuple[QueueRef, QueueRef]:
        return await house.queue("s", kind="delivery"), await house.queue("s", kind="failed")

    return runner.run(make())


Pair = tuple[QueueRef, QueueRef]


async def test_what_the_claim_holds_is_moved_and_free_at_its_new_place(
    house: House, pair: Pair
) -> None:
    work, dead = pair
    given = await house.post(work, "a", "b", "c")
    there = await house.post(dead, "z")
    claim, _ = await house.hold(work)
    moved = await house.messages.move(work, [given[0], given[2]], dead, None, {}, claim)
    assert bodies(await house.all(work)) == ["b"]
    assert await house.free(dead) == ["z", "a", "c"]
    assert positions(await house.all(dead)) == there + moved
    assert {message.claim for message in await house.all(dead)} == {None}


async def test_counts_are_exact_after_each_move_of_held_messages(house: House, pair: Pair) -> None:
    work, dead = pair
    given = await house.post(work, "a", "b", "c")
    claim, _ = await house.hold(work, 2)
    assert await house.numbers(work) == (1, 2, 0)
    for n, position in enumerate(given[:2], 1):
        await house.messages.move(work, [position], dead, None, {}, claim)
        assert await house.numbers(work) == (1, 2 - n, 0)
        assert await house.numbers(dead) == (n, 0, 0)
    house.clock.turn(60)
    assert await house.numbers(work) == (1, 0, 0)
    assert await house.numbers(dead) == (2, 0, 0)
    await house.reopen()
    assert await house.numbers(work) == (1, 0, 0)
    assert await house.numbers(dead) == (2, 0, 0)


async def test_the_claim_holds_what_is_left_and_ends_with_the_last(
    house: House, pair: Pair
) -> None:
    work, dead = pair
    given = await house.post(work, "a", "b", "c")
    claim, _ = await house.hold(work)
    await house.messages.move(work, given[:1], dead, None, {}, claim)
    found = await house.messages.claimed(work, claim)
    assert found is not None
    assert bodies(found.messages) == ["b", "c"]
    assert await house.messages.renew(work, claim, 90, 60)
    await house.messages.move(work, given[1:2], dead, None, {}, claim)
    assert await house.messages.release(work, claim)
    assert await house.free(work) == ["c"]
    claim, _ = await house.hold(work)
    await house.messages.move(work, given, dead, None, {}, claim)
    assert await house.messages.claimed(work, claim) is None
    assert not await house.messages.renew(work, claim, 90, 60)
    assert not await house.messages.release(work, claim)


async def test_after_the_last_was_moved_nothing_is_due(house: House, pair: Pair) -> None:
    work, dead = pair
    given = await house.post(work, "a", "b")
    claim, _ = await house.hold(work, ttl_s=60)
    await house.messages.move(work, given, dead, None, {}, claim)
    await house.messages.claim(work, 1, 60, 60)
    house.clock.turn(60)
    got = await house.messages.claim(work, 1, 60, 60)
    assert (got.claim, got.due_ms) == (None, None)
    while await house.messages.expire(10):
        pass
    assert await house.numbers(work) == (0, 0, 0)
    assert await house.free(dead) == ["a", "b"]


async def test_the_old_claim_does_not_reach_what_was_moved(house: House, pair: Pair) -> None:
    work, dead = pair
    given = await house.post(work, "a", "b")
    claim, _ = await house.hold(work)
    moved = await house.messages.move(work, given[:1], dead, None, {}, claim)
    assert await house.messages.claimed(dead, claim) is None
    assert not await house.messages.release(dead, claim)
    answers = await house.messages.remove(dead, moved, Removal.HELD, [claim])
    assert answers == [Removed.UNCLAIMED]
    assert await house.free(dead) == ["a"]


async def test_what_another_claim_holds_stays_with_it(house: House, pair: Pair) -> None:
    work, dead = pair
    given = await house.post(work, "mine", "theirs")
    mine, _ = await house.hold(work, 1)
    theirs, _ = await house.hold(work, 1)
    moved = await house.messages.move(work, given, dead, None, {}, mine)
    assert len(moved) == 1
    assert await house.free(dead) == ["mine"]
    found = await house.messages.claimed(work, theirs)
    assert found is not None
    assert bodies(found.messages) == ["theirs"]
    assert await house.numbers(work) == (0, 1, 0)


async def test_free_ones_are_moved_too_and_delayed_and_expired_ones_are_not(
    house: House, pair: Pair
) -> None:
    work, dead = pair
    given = await house.post(work, "expired", ttl_s=30)
    given += await house.post(work, "held")
    house.clock.turn(30)
    claim, _ = await house.hold(work, 1, ttl_s=600)
    given += await house.post(work, "free")
    given += await house.post(work, "delayed", delay_s=600)
    await house.messages.move(work, [*given, 10**9], dead, None, {}, claim)
    assert await house.free(dead) == ["held", "free"]
    assert bodies(await house.all(work)) == ["delayed"]
    assert await house.numbers(work) == (0, 0, 1)


@pytest.mark.parametrize("claim", ["", "0", "deadbeef", "0" * 32, "x" * 32])
async def test_with_a_claim_that_never_was_only_free_ones_are_moved(
    house: House, pair: Pair, claim: str
) -> None:
    work, dead = pair
    given = await house.post(work, "held", "free")
    given += await house.post(work, "delayed", delay_s=600)
    await house.hold(work, 1)
    await house.messages.move(work, given, dead, None, {}, claim)
    assert await house.free(dead) == ["free"]
    assert await house.numbers(work) == (0, 1, 1)


async def test_a_claim_of_another_queue_moves_nothing_held(house: House, pair: Pair) -> None:
    work, dead = pair
    given = await house.post(work, "a")
    await house.hold(work)
    await house.post(dead, "z")
    other, _ = await house.hold(dead)
    assert await house.messages.move(work, given, dead, None, {}, other) == []
    assert await house.numbers(work) == (0, 1, 0)


async def test_a_claim_that_lapsed_moves_what_is_free_again(house: House, pair: Pair) -> None:
    work, dead = pair
    given = await house.post(work, "a", "b")
    claim, _ = await house.hold(work, ttl_s=60)
    house.clock.turn(59.999)
    await house.messages.move(work, given[:1], dead, None, {}, claim)
    house.clock.turn(0.001)
    await house.messages.move(work, given[1:], dead, None, {}, claim)
    assert await house.free(dead) == ["a", "b"]
    assert await house.numbers(work) == (0, 0, 0)
    assert await house.numbers(dead) == (2, 0, 0)


async def test_a_claim_that_lapsed_moves_nothing_that_another_holds_since(
    house: House, pair: Pair
) -> None:
    work, dead = pair
    given = await house.post(work, "a", "b")
    first, _ = await house.hold(work, ttl_s=60)
    house.clock.turn(60)
    second, _ = await house.hold(work, 1, ttl_s=60)
    await house.messages.move(work, given, dead, None, {}, first)
    assert await house.free(dead) == ["b"]
    found = await house.messages.claimed(work, second)
    assert found is not None
    assert bodies(found.messages) == ["a"]


async def test_a_claim_that_was_released_moves_nothing_that_is_delayed_since(
    house: House, pair: Pair
) -> None:
    work, dead = pair
    given = await house.post(work, "a")
    claim, _ = await house.hold(work)
    await house.messages.release(work, claim, 30)
    assert await house.messages.move(work, given, dead, None, {}, claim) == []
    assert await house.numbers(work) == (0, 0, 1)


async def test_a_partly_renewed_claim_moves_what_it_still_holds(house: House, pair: Pair) -> None:
    work, dead = pair
    given = await house.post(work, "a", "b", "c")
    claim, _ = await house.hold(work, ttl_s=60)
    await house.messages.renew(work, claim, 120, 60, given[:1])
    await house.messages.move(work, given[:2], dead, None, {}, claim)
    assert await house.free(dead) == ["a", "b"]
    assert await house.numbers(work) == (0, 1, 0)
    house.clock.turn(60)
    assert await house.free(work) == ["c"]
    house.clock.turn(60)
    assert await house.numbers(work) == (1, 0, 0)


async def test_age_count_and_attributes_go_with_a_held_message(house: House, pair: Pair) -> None:
    work, dead = pair
    given = await house.post(work, "a", "b", ttl_s=500, client="c1", attributes=b"old")
    for _ in range(3):
        got = await house.messages.claim(work, 2, 60, 60, 9)
        assert got.claim
        await house.messages.release(work, got.claim)
    house.clock.turn(100)
    got = await house.messages.claim(work, 2, 60, 60, 9)
    await house.messages.move(work, given, dead, 9000, {given[1]: b"why"}, got.claim)
    messages = await house.all(dead)
    assert [message.attributes for message in messages] == [b"old", b"why"]
    for message in messages:
        assert (message.posted_ms, message.count, message.client) == (START_MS, 4, "c1")
        assert (message.ttl_s, message.expires_ms) == (9000, START_MS + 9_100_000)


async def test_without_a_ttl_a_held_message_lives_as_long_as_its_claim_made_it(
    house: House, pair: Pair
) -> None:
    work, dead = pair
    given = await house.post(work, "a", ttl_s=30)
    claim, _ = await house.hold(work, ttl_s=60, grace_s=40)
    await house.messages.move(work, given, dead, None, {}, claim)
    house.clock.turn(99.999)
    assert await house.numbers(dead) == (1, 0, 0)
    house.clock.turn(0.001)
    assert await house.numbers(dead) == (0, 0, 0)
    assert await house.numbers(work) == (0, 0, 0)


@pytest.mark.parametrize("recreated", [False, True])
async def test_when_the_target_is_gone_the_claim_keeps_what_it_holds(
    house: House, pair: Pair, recreated: bool
) -> None:
    work, dead = pair
    given = await house.post(work, "a")
    claim, _ = await house.hold(work)
    await house.messages.drop(dead)
    if recreated:
        await house.queue("s", kind="failed")
    with pytest.raises(Stale):
        await house.messages.move(work, given, dead, None, {}, claim)
    found = await house.messages.claimed(work, claim)
    assert found is not None
    assert bodies(found.messages) == ["a"]
    assert await house.numbers(work) == (0, 1, 0)


async def test_from_a_source_that_is_gone_nothing_held_is_moved(house: House, pair: Pair) -> None:
    work, dead = pair
    given = await house.post(work, "a")
    claim, _ = await house.hold(work)
    await house.messages.drop(work)
    again = await house.queue("s", kind="delivery")
    await house.post(again, "b")
    assert await house.messages.move(work, given, dead, None, {}, claim) == []
    assert await house.free(dead) == []
    assert await house.free(again) == ["b"]


async def test_a_move_with_a_claim_survives_a_restart(house: House, pair: Pair) -> None:
    work, dead = pair
    given = await house.post(work, "a", "b")
    claim, _ = await house.hold(work, ttl_s=60)
    await house.messages.move(work, given[:1], dead, 9000, {given[0]: b"why"}, claim)
    before = await house.all(dead)
    await house.reopen()
    assert await house.all(dead) == before
    assert await house.free(dead) == ["a"]
    found = await house.messages.claimed(work, claim)
    assert found is not None
    assert bodies(found.messages) == ["b"]


async def test_what_was_moved_can_be_moved_back_and_held_again(house: House, pair: Pair) -> None:
    work, dead = pair
    given = await house.post(work, "a", attributes=b"1")
    for n in range(5):
        claim, _ = await house.hold(work)
        moved = await house.messages.move(work, given, dead, None, {given[0]: b"%d" % n}, claim)
        given = await house.messages.move(dead, moved, work, None, {})
    [message] = await house.all(work)
    assert (message.body, message.attributes) == (b"a", b"4")
    assert await house.numbers(work) == (1, 0, 0)
    assert await house.numbers(dead) == (0, 0, 0)
    house.clock.turn(1000)
    assert await house.numbers(work) == (1, 0, 0)
