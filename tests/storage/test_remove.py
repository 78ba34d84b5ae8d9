"""Removing: by id in three ways, together, by pop and by clear."""

import pytest

from nusku.model import QueueRef
from nusku.storage import Removal, Removed
from tests.storage.harness import START_MS, House, bodies, positions


async def one_of_each(house: House, ref: QueueRef) -> tuple[list[int], str]:
    """A held, a free, a delayed and an expired message, in this order; and the claim's id."""
    given = await house.post(ref, "held")
    claim, _ = await house.hold(ref, ttl_s=600)
    given += await house.post(ref, "free")
    given += await house.post(ref, "delayed", delay_s=600)
    given += await house.post(ref, "expired", ttl_s=60)
    house.clock.turn(60)
    return given, claim


async def test_removing_unclaimed_ones_spares_what_is_held(house: House) -> None:
    ref = await house.queue()
    given, _ = await one_of_each(house, ref)
    assert await house.messages.remove(ref, [*given, 10**9], Removal.UNCLAIMED) == [
        Removed.HELD_BY_OTHER,
        Removed.GONE,
        Removed.GONE,
        Removed.GONE,
        Removed.GONE,
    ]
    assert bodies(await house.all(ref)) == ["held"]


async def test_removing_held_ones_spares_what_is_unclaimed(house: House) -> None:
    ref = await house.queue()
    given, claim = await one_of_each(house, ref)
    assert await house.messages.remove(ref, [*given, 10**9], Removal.HELD, [claim]) == [
        Removed.GONE,
        Removed.UNCLAIMED,
        Removed.UNCLAIMED,
        Removed.GONE,
        Removed.GONE,
    ]
    assert bodies(await house.all(ref)) == ["free", "delayed"]


async def test_removing_any_spares_nothing(house: House) -> None:
    ref = await house.queue()
    given, _ = await one_of_each(house, ref)
    answers = await house.messages.remove(ref, [*given, 10**9], Removal.ANY)
    assert answers == [Removed.GONE] * 5
    assert not await house.all(ref)


async def test_answers_are_in_the_order_of_the_positions(house: House) -> None:
    ref = await house.queue()
    free, held = (await house.post(ref, "a"))[0], (await house.post(ref, "b"))[0]
    claim, _ = await house.hold(ref)
    await house.messages.release(ref, claim, 0, [free])
    answers = await house.messages.remove(ref, [held, free], Removal.HELD, [claim])
    assert answers == [Removed.GONE, Removed.UNCLAIMED]


async def test_removing_twice_is_removing_once(house: House) -> None:
    ref = await house.queue()
    given = await house.post(ref, "a", "b")
    for _ in range(2):
        assert await house.messages.remove(ref, given[:1], Removal.UNCLAIMED) == [Removed.GONE]
    assert await house.free(ref) == ["b"]
    assert await house.numbers(ref) == (1, 0, 0)


async def test_a_position_named_twice_is_removed_once(house: House) -> None:
    ref = await house.queue()
    a, _ = await house.post(ref, "a", "b")
    assert await house.messages.remove(ref, [a, a], Removal.ANY) == [Removed.GONE, Removed.GONE]
    assert await house.numbers(ref) == (1, 0, 0)


async def test_removing_nothing_is_answered_with_nothing(house: House) -> None:
    ref = await house.queue()
    assert await house.messages.remove(ref, [], Removal.ANY) == []


async def test_a_message_held_by_a_claim_not_named_is_held_by_another(house: House) -> None:
    ref = await house.queue()
    a, b = await house.post(ref, "a", "b")
    mine, _ = await house.hold(ref, 1)
    await house.hold(ref, 1)
    answers = await house.messages.remove(ref, [a, b], Removal.HELD, [mine])
    assert answers == [Removed.GONE, Removed.HELD_BY_OTHER]
    assert bodies(await house.all(ref)) == ["b"]


@pytest.mark.parametrize("claim", ["deadbeef", "", "no claim", "1"])
async def test_a_claim_that_is_not_live_is_told_apart(house: House, claim: str) -> None:
    ref = await house.queue()
    held, free = await house.post(ref, "held", "free")
    await house.hold(ref, 1)
    answers = await house.messages.remove(ref, [held, free], Removal.HELD, [claim])
    assert answers == [Removed.CLAIM_UNKNOWN, Removed.UNCLAIMED]
    assert len(await house.all(ref)) == 2


async def test_a_lapsed_claim_no_longer_removes_what_it_held(house: House) -> None:
    ref = await house.queue()
    given = await house.post(ref, "a")
    old, _ = await house.hold(ref, ttl_s=60)
    house.clock.turn(60)
    assert await house.messages.remove(ref, given, Removal.HELD, [old]) == [Removed.UNCLAIMED]
    await house.hold(ref, ttl_s=60)
    answers = await house.messages.remove(ref, given, Removal.HELD, [old])
    assert answers == [Removed.CLAIM_UNKNOWN]
    assert await house.numbers(ref) == (0, 1, 0)


@pytest.mark.parametrize("removal", [Removal.UNCLAIMED, Removal.ANY])
async def test_what_lapsed_came_due_or_expired_is_removed_without_a_look_before(
    house: House, removal: Removal
) -> None:
    ref = await house.queue()
    given = await house.post(ref, "held")
    await house.hold(ref, ttl_s=60)
    given += await house.post(ref, "delayed", delay_s=60)
    given += await house.post(ref, "expired", ttl_s=60)
    house.clock.turn(60)
    assert await house.messages.remove(ref, given, removal) == [Removed.GONE] * 3
    assert await house.numbers(ref) == (0, 0, 0)
    assert not await house.all(ref)


async def test_a_released_claim_no_longer_removes_what_it_held(house: House) -> None:
    ref = await house.queue()
    given = await house.post(ref, "a")
    claim, _ = await house.hold(ref)
    await house.messages.release(ref, claim)
    assert await house.messages.remove(ref, given, Removal.HELD, [claim]) == [Removed.UNCLAIMED]
    assert await house.free(ref) == ["a"]


async def test_a_claim_of_another_queue_removes_nothing(house: House) -> None:
    a, b = await house.queue("a"), await house.queue("b")
    await house.post(a, "a")
    given = await house.post(b, "b")
    foreign, _ = await house.hold(a)
    await house.hold(b)
    answers = await house.messages.remove(b, given, Removal.HELD, [foreign])
    assert answers == [Removed.CLAIM_UNKNOWN]
    assert await house.numbers(b) == (0, 1, 0)


async def test_several_claims_may_be_named(house: House) -> None:
    ref = await house.queue()
    given = await house.post(ref, "a", "b", "c")
    claims = [(await house.hold(ref, 1))[0] for _ in range(3)]
    answers = await house.messages.remove(ref, given, Removal.HELD, claims[:2])
    assert answers == [Removed.GONE, Removed.GONE, Removed.HELD_BY_OTHER]
    assert bodies(await house.all(ref)) == ["c"]


async def test_together_removes_held_and_unclaimed_ones(house: House) -> None:
    ref = await house.queue()
    given, claim = await one_of_each(house, ref)
    answers = await house.messages.remove(
        ref, [*given, 10**9], Removal.HELD, [claim], together=True
    )
    assert answers == [Removed.GONE] * 5
    assert not await house.all(ref)


async def test_together_without_claims_removes_what_nobody_holds(house: House) -> None:
    ref = await house.queue()
    given = await house.post(ref, "a", "b")
    answers = await house.messages.remove(ref, given, Removal.HELD, [], together=True)
    assert answers == [Removed.GONE] * 2
    assert not await house.all(ref)


async def test_together_removes_nothing_when_another_holds_one_of_them(house: House) -> None:
    ref = await house.queue()
    given = await house.post(ref, "mine", "theirs", "free")
    mine, _ = await house.hold(ref, 1)
    await house.hold(ref, 1)
    answers = await house.messages.remove(ref, [*given, 10**9], Removal.HELD, [mine], together=True)
    assert answers == [Removed.HELD_BY_OTHER] * 3 + [Removed.GONE]
    assert bodies(await house.all(ref)) == ["mine", "theirs", "free"]
    assert await house.numbers(ref) == (1, 2, 0)


async def test_together_removes_nothing_when_a_named_claim_holds_none_of_them(
    house: House,
) -> None:
    ref = await house.queue()
    a, b, c = await house.post(ref, "a", "b", "c")
    first, _ = await house.hold(ref, 1)
    second, _ = await house.hold(ref, 1)
    for claims in ([first, second], ["deadbeef"], [first, "deadbeef"]):
        answers = await house.messages.remove(ref, [a, c], Removal.HELD, claims, together=True)
        assert answers == [Removed.HELD_BY_OTHER] * 2
    assert positions(await house.all(ref)) == [a, b, c]
    answers = await house.messages.remove(ref, [a, b], Removal.HELD, [first, second], together=True)
    assert answers == [Removed.GONE] * 2


async def test_together_a_claim_that_lapsed_counts_as_holding_nothing(house: House) -> None:
    ref = await house.queue()
    given = await house.post(ref, "a")
    claim, _ = await house.hold(ref, ttl_s=60)
    house.clock.turn(60)
    answers = await house.messages.remove(ref, given, Removal.HELD, [claim], together=True)
    assert answers == [Removed.HELD_BY_OTHER]
    assert await house.free(ref) == ["a"]


async def test_pop_takes_the_oldest_free_messages_for_good(house: House) -> None:
    ref = await house.queue()
    given = await house.post(ref, "a", "b", "c", client="c1")
    before = await house.all(ref)
    found = await house.messages.pop(ref, 2)
    assert found.messages == before[:2]
    assert found.now_ms == START_MS
    assert await house.free(ref) == ["c"]
    assert not (await house.messages.get(ref, given[:2])).messages
    assert bodies(await house.messages.pop(ref, 2)) == ["c"]
    assert bodies(await house.messages.pop(ref, 2)) == []


async def test_pop_passes_over_what_is_not_free(house: House) -> None:
    ref = await house.queue()
    await one_of_each(house, ref)
    assert bodies(await house.messages.pop(ref, 9)) == ["free"]
    assert bodies(await house.all(ref)) == ["held", "delayed"]


async def test_pop_takes_what_lapsed_or_came_due(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "held")
    await house.hold(ref, ttl_s=60)
    await house.post(ref, "delayed", delay_s=60)
    await house.post(ref, "free")
    house.clock.turn(60)
    assert bodies(await house.messages.pop(ref, 9)) == ["held", "delayed", "free"]
    assert await house.numbers(ref) == (0, 0, 0)


async def test_posting_then_popping_returns_exactly_what_was_posted(house: House) -> None:
    ref = await house.queue()
    given = [(await house.post(ref, str(n)))[0] for n in range(25)]
    taken: list[int] = []
    while popped := positions(await house.messages.pop(ref, 4)):
        taken += popped
    assert taken == given


async def test_clear_removes_every_message(house: House) -> None:
    ref = await house.queue()
    given, claim = await one_of_each(house, ref)
    await house.messages.clear(ref)
    assert not await house.all(ref)
    assert not (await house.messages.get(ref, given)).messages
    assert await house.messages.claimed(ref, claim) is None
    assert await house.numbers(ref) == (0, 0, 0)
    assert (await house.messages.claim(ref, 1, 60, 60)).due_ms is None


async def test_clear_spares_other_queues(house: House) -> None:
    a, b = await house.queue("a"), await house.queue("b")
    await house.post(a, "a")
    await house.post(b, "b")
    await house.messages.clear(a)
    assert await house.free(b) == ["b"]


async def test_a_cleared_queue_takes_messages_again(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    await house.messages.clear(ref)
    await house.post(ref, "b")
    assert await house.free(ref) == ["b"]
    assert bodies(await house.messages.claim(ref, 9, 60, 60)) == ["b"]


async def test_claims_from_before_clear_stay_dead(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    old, _ = await house.hold(ref)
    await house.messages.clear(ref)
    given = await house.post(ref, "b")
    await house.hold(ref)
    assert not await house.messages.release(ref, old)
    assert not await house.messages.renew(ref, old, 60, 60)
    answers = await house.messages.remove(ref, given, Removal.HELD, [old])
    assert answers == [Removed.CLAIM_UNKNOWN]
    assert await house.numbers(ref) == (0, 1, 0)


async def test_positions_go_on_after_clear_and_after_the_last_message_is_gone(
    house: House,
) -> None:
    ref = await house.queue()
    [first] = await house.post(ref, "a")
    await house.messages.clear(ref)
    [second] = await house.post(ref, "b")
    await house.messages.pop(ref, 1)
    [third] = await house.post(ref, "c")
    await house.messages.remove(ref, [third], Removal.ANY)
    await house.messages.clear(ref)
    await house.messages.clear(ref)
    [fourth] = await house.post(ref, "d", ttl_s=60)
    house.clock.turn(60)
    await house.messages.expire(1000)
    [fifth] = await house.post(ref, "e")
    assert first < second < third < fourth < fifth
    assert positions(await house.messages.page(ref, fourth, 9)) == [fifth]
