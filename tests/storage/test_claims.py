"""Claims: what they get, how they lengthen lives, and how they end."""

import pytest

from nusku.model import QueueRef
from nusku.storage import Removal, Stale
from tests.storage.harness import START_MS, House, bodies, positions


async def test_a_claim_holds_the_oldest_free_messages(house: House) -> None:
    ref = await house.queue()
    given = await house.post(ref, "a", "b", "c")
    got = await house.messages.claim(ref, 2, 60, 60)
    assert got.claim
    assert bodies(got) == ["a", "b"]
    assert positions(got) == given[:2]
    assert not got.spent
    assert got.now_ms == START_MS
    assert await house.free(ref) == ["c"]


async def test_a_claimed_message_names_its_claim(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    got = await house.messages.claim(ref, 1, 60, 60)
    assert [message.claim for message in got.messages] == [got.claim]
    assert await house.all(ref) == got.messages


async def test_a_claim_gets_as_many_as_there_are_up_to_its_limit(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, *map(str, range(30)))
    sizes = [len((await house.messages.claim(ref, 12, 60, 60)).messages) for _ in range(4)]
    assert sizes == [12, 12, 6, 0]


async def test_a_claim_that_gets_nothing_has_no_id(house: House) -> None:
    ref = await house.queue()
    got = await house.messages.claim(ref, 5, 60, 60)
    assert got.claim is None
    assert not got.messages
    assert not got.spent
    assert got.due_ms is None


async def test_claim_ids_differ(house: House) -> None:
    a, b = await house.queue("a"), await house.queue("b")
    await house.post(a, "x", "x")
    await house.post(b, "x")
    ids = {(await house.hold(ref, 1))[0] for ref in (a, a, b)}
    assert len(ids) == 3


async def test_held_delayed_and_expired_messages_are_not_claimed(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "held")
    await house.hold(ref, ttl_s=600)
    await house.post(ref, "delayed", delay_s=600)
    await house.post(ref, "expired", ttl_s=60)
    await house.post(ref, "free")
    house.clock.turn(60)
    assert bodies(await house.messages.claim(ref, 9, 60, 60)) == ["free"]


async def test_expired_messages_at_the_head_are_passed_over(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, *["old"] * 50, ttl_s=60)
    await house.post(ref, "new")
    house.clock.turn(60)
    assert bodies(await house.messages.claim(ref, 1, 60, 60)) == ["new"]


async def test_own_messages_are_claimed_like_others(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "mine", client="me")
    assert bodies(await house.messages.claim(ref, 1, 60, 60)) == ["mine"]


async def test_no_message_is_in_two_live_claims(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, *map(str, range(10)))
    first = await house.messages.claim(ref, 4, 60, 60)
    second = await house.messages.claim(ref, 20, 60, 60)
    assert bodies(first) == ["0", "1", "2", "3"]
    assert bodies(second) == ["4", "5", "6", "7", "8", "9"]


async def test_only_what_is_free_between_held_messages_is_claimed(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a", "b", "c", "d")
    claims = [(await house.hold(ref, 1))[0] for _ in range(4)]
    await house.messages.release(ref, claims[0])
    await house.messages.release(ref, claims[2])
    assert bodies(await house.messages.claim(ref, 9, 60, 60)) == ["a", "c"]


async def test_a_delayed_message_behind_a_free_one_is_not_claimed(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    await house.post(ref, "b", delay_s=30)
    await house.post(ref, "c")
    assert bodies(await house.messages.claim(ref, 9, 60, 60)) == ["a", "c"]


async def test_a_claim_lapses_at_its_end_and_not_before(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    claim, _ = await house.hold(ref, ttl_s=60)
    house.clock.turn(59.999)
    assert (await house.messages.claim(ref, 1, 60, 60)).claim is None
    assert await house.messages.claimed(ref, claim) is not None
    house.clock.turn(0.001)
    assert await house.messages.claimed(ref, claim) is None
    again = await house.messages.claim(ref, 1, 60, 60)
    assert bodies(again) == ["a"]
    assert again.claim != claim


async def test_lapsed_messages_are_claimed_again_in_queue_order(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, *"abcdef")
    await house.hold(ref, 2, ttl_s=90)
    await house.hold(ref, 2, ttl_s=60)
    house.clock.turn(60)
    assert bodies(await house.messages.claim(ref, 3, 60, 60)) == ["c", "d", "e"]
    house.clock.turn(30)
    assert bodies(await house.messages.claim(ref, 9, 60, 60)) == ["a", "b", "f"]


async def test_claim_is_stale_after_the_options_changed(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "x")
    changed = ref._replace(version=2)
    await house.messages.admit(changed)
    with pytest.raises(Stale):
        await house.messages.claim(ref, 1, 60, 60)
    assert await house.numbers(changed) == (1, 0, 0)
    assert bodies(await house.messages.claim(changed, 1, 60, 60)) == ["x"]


async def test_an_empty_claim_says_when_something_comes_free(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    await house.hold(ref, ttl_s=90)
    assert (await house.messages.claim(ref, 1, 60, 60)).due_ms == START_MS + 90_000
    await house.post(ref, "b", delay_s=30)
    assert (await house.messages.claim(ref, 1, 60, 60)).due_ms == START_MS + 30_000


async def wait(house: House, ref: QueueRef) -> tuple[int, int]:
    """Turn the clock to what is due until a claim gets something.

    Returns how many milliseconds passed and how many looks in vain there were.
    """
    start_ms, looks = house.clock(), 0
    while (got := await house.messages.claim(ref, 9, 60, 60)).claim is None:
        assert got.due_ms is not None, "a hidden message would be missed"
        assert got.due_ms > house.clock(), "a waiter would spin"
        house.clock.now_ms = got.due_ms
        looks += 1
    return house.clock() - start_ms, looks


async def test_who_waits_for_what_is_due_gets_it_in_time_after_a_renewal(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    claim, _ = await house.hold(ref, ttl_s=60)
    await house.messages.renew(ref, claim, 500, 60)
    passed_ms, looks = await wait(house, ref)
    assert passed_ms == 500_000
    assert looks <= 2


async def test_who_waits_for_what_is_due_gets_it_in_time_after_a_shorter_renewal(
    house: House,
) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    claim, _ = await house.hold(ref, ttl_s=500)
    await house.messages.renew(ref, claim, 20, 60)
    assert await wait(house, ref) == (20_000, 1)


async def test_who_waits_for_what_is_due_gets_it_in_time_after_a_release(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    claim, _ = await house.hold(ref, ttl_s=500)
    await house.messages.release(ref, claim, delay_s=7)
    assert await wait(house, ref) == (7000, 1)


async def test_what_is_due_is_forgotten_when_the_hidden_messages_were_removed(
    house: House,
) -> None:
    ref = await house.queue()
    given = await house.post(ref, "a", "b")
    await house.hold(ref, 1)
    given += await house.post(ref, "c", delay_s=60)
    await house.messages.remove(ref, given, Removal.ANY)
    due_ms = (await house.messages.claim(ref, 1, 60, 60)).due_ms
    if due_ms is not None:  # it may have been kept, but only until then
        house.clock.now_ms = due_ms
        assert (await house.messages.claim(ref, 1, 60, 60)).due_ms is None


@pytest.mark.parametrize("limit", [1, 20, 300])
async def test_a_claim_after_several_lapses_gets_the_oldest_messages(
    house: House, limit: int
) -> None:
    ref = await house.queue()
    await house.fill(ref, 600)
    oldest = positions(await house.all(ref))[:limit]
    await house.messages.claim(ref, 150, 120, 60)
    await house.messages.claim(ref, 100, 60, 60)
    claim, _ = await house.hold(ref, 100, ttl_s=60)
    await house.messages.claim(ref, 100, 90, 60)
    await house.messages.release(ref, claim)
    house.clock.turn(120)
    assert positions(await house.messages.claim(ref, limit, 60, 60)) == oldest


@pytest.mark.parametrize("limit", [1, 20, 700, 2500])
async def test_a_claim_after_a_mass_lapse_gets_as_many_as_there_are_up_to_its_limit(
    house: House, limit: int
) -> None:
    ref = await house.queue()
    await house.fill(ref, 2000)
    await house.messages.claim(ref, 1500, 120, 60)
    await house.messages.claim(ref, 500, 60, 60)
    house.clock.turn(120)
    assert len((await house.messages.claim(ref, limit, 60, 60)).messages) == min(limit, 2000)


async def test_claims_by_many_that_lapse_together_are_claimed_again_oldest_first(
    house: House,
) -> None:
    ref = await house.queue()
    await house.fill(ref, 2000)
    order = positions(await house.all(ref))
    while (await house.messages.claim(ref, 7, 60, 60)).claim:
        pass
    house.clock.turn(60)
    again: list[int] = []
    while taken := positions(await house.messages.claim(ref, 50, 600, 60)):
        again += taken
    assert again == order


async def test_a_claim_looks_behind_many_that_expired_as_they_lapsed(house: House) -> None:
    ref = await house.queue()
    await house.fill(ref, 1500, ttl_s=60)
    while (await house.messages.claim(ref, 20, 60, 0)).claim:
        pass
    await house.post(ref, "alive")
    await house.hold(ref, ttl_s=60)
    house.clock.turn(60)
    assert bodies(await house.messages.claim(ref, 1, 60, 60)) == ["alive"]


# Extension of lifetimes: a message that would expire before the claim ends lives ttl + grace from
# now; others are left alone. A message of ttl 100:
EXTENSIONS = [
    pytest.param(500, 60, 560, id="far-beyond"),
    pytest.param(101, 60, 161, id="just-beyond"),
    pytest.param(100, 60, 100, id="at-the-same-time"),
    pytest.param(60, 60, 100, id="ends-earlier-though-grace-reaches-beyond"),
    pytest.param(500, 0, 500, id="no-grace"),
    pytest.param(101, 0, 101, id="no-grace-just-beyond"),
]


@pytest.mark.parametrize(("ttl_s", "grace_s", "expected_s"), EXTENSIONS)
async def test_a_claim_lengthens_lives_that_end_before_it(
    house: House, ttl_s: int, grace_s: int, expected_s: int
) -> None:
    ref = await house.queue()
    await house.post(ref, "a", ttl_s=100)
    got = await house.messages.claim(ref, 1, ttl_s, grace_s)
    [message] = got.messages
    assert message.ttl_s == expected_s
    assert message.expires_ms == START_MS + expected_s * 1000
    assert message.posted_ms == START_MS
    assert await house.all(ref) == [message]
    house.clock.turn(expected_s - 1)
    assert bodies(await house.all(ref)) == ["a"]
    house.clock.turn(1)
    assert not await house.all(ref)


@pytest.mark.parametrize(("ttl_s", "grace_s", "expected_s"), EXTENSIONS)
async def test_a_renewal_lengthens_lives_by_the_same_rule(
    house: House, ttl_s: int, grace_s: int, expected_s: int
) -> None:
    ref = await house.queue()
    await house.post(ref, "a", ttl_s=100)
    claim, _ = await house.hold(ref, 1, ttl_s=10, grace_s=0)
    assert await house.messages.renew(ref, claim, ttl_s, grace_s)
    [message] = await house.all(ref)
    assert message.ttl_s == expected_s
    assert message.expires_ms == START_MS + expected_s * 1000


async def test_lives_are_lengthened_from_the_time_of_the_claim(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a", ttl_s=100)
    house.clock.turn(30)
    [message] = (await house.messages.claim(ref, 1, 80, 5)).messages
    assert message.ttl_s == 85
    assert message.expires_ms == START_MS + 30_000 + 85_000


async def test_each_message_of_a_claim_is_judged_by_itself(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "short", ttl_s=60)
    await house.post(ref, "long", ttl_s=1000)
    got = await house.messages.claim(ref, 2, 200, 10)
    assert [message.ttl_s for message in got.messages] == [210, 1000]


async def test_a_longer_life_is_not_taken_back_by_a_release(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a", ttl_s=60)
    claim, _ = await house.hold(ref, ttl_s=500, grace_s=60)
    await house.messages.release(ref, claim)
    house.clock.turn(559)
    assert await house.free(ref) == ["a"]
    house.clock.turn(1)
    assert await house.free(ref) == []


async def test_without_grace_a_lengthened_message_ends_with_its_claim(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a", ttl_s=60)
    claim, _ = await house.hold(ref, ttl_s=500, grace_s=0)
    house.clock.turn(500)
    assert await house.messages.claimed(ref, claim) is None
    assert (await house.messages.claim(ref, 1, 60, 60)).claim is None
    assert await house.numbers(ref) == (0, 0, 0)


async def test_claims_are_counted_only_where_asked(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    counts = []
    for max_count in (None, 5, 5, None, 5):
        got = await house.messages.claim(ref, 1, 60, 60, max_count)
        counts.append(got.messages[0].count)
        house.clock.turn(60)
    assert counts == [0, 1, 2, 2, 3]


async def test_the_count_survives_release_renewal_and_lapse(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    got = await house.messages.claim(ref, 1, 60, 60, 9)
    assert got.claim
    await house.messages.renew(ref, got.claim, 60, 60)
    await house.messages.release(ref, got.claim)
    [message] = await house.all(ref)
    assert message.count == 1
    await house.messages.claim(ref, 1, 60, 60, 9)
    house.clock.turn(60)
    [message] = await house.all(ref)
    assert message.count == 2


async def claim_often(house: House, ref: QueueRef, times: int, limit: int = 20) -> None:
    for _ in range(times):
        got = await house.messages.claim(ref, limit, 60, 60, 1000)
        assert got.claim
        await house.messages.release(ref, got.claim)


async def test_messages_claimed_often_enough_are_reported_and_left_free(house: House) -> None:
    ref = await house.queue()
    given = await house.post(ref, "a", "b")
    await claim_often(house, ref, 2)
    [fresh] = await house.post(ref, "c")
    got = await house.messages.claim(ref, 5, 60, 60, 2)
    assert got.spent == given
    assert positions(got) == [fresh]
    assert await house.free(ref) == ["a", "b"]
    assert [message.count for message in await house.all(ref)] == [2, 2, 1]


async def test_a_message_one_claim_short_of_the_limit_is_still_held(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    await claim_often(house, ref, 1)
    got = await house.messages.claim(ref, 5, 60, 60, 2)
    assert not got.spent
    assert [message.count for message in got.messages] == [2]


async def test_when_all_is_spent_the_claim_has_no_id(house: House) -> None:
    ref = await house.queue()
    given = await house.post(ref, "a", "b")
    await claim_often(house, ref, 1)
    got = await house.messages.claim(ref, 5, 60, 60, 1)
    assert got.claim is None
    assert not got.messages
    assert got.spent == given


async def test_spent_messages_are_held_as_before_where_claims_are_not_counted(
    house: House,
) -> None:
    ref = await house.queue()
    given = await house.post(ref, "a")
    await claim_often(house, ref, 5)
    assert positions(await house.messages.claim(ref, 5, 60, 60)) == given


async def test_a_live_claim_tells_what_it_holds(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a", "b", "c")
    house.clock.turn(3)
    got = await house.messages.claim(ref, 2, 60, 60)
    assert got.claim
    house.clock.turn(5)
    claim = await house.messages.claimed(ref, got.claim)
    assert claim is not None
    assert claim.id == got.claim
    assert claim.ttl_s == 60
    assert claim.started_ms == START_MS + 3000
    assert claim.now_ms == START_MS + 8000
    assert claim.messages == got.messages


async def test_a_claim_shrinks_as_its_messages_are_removed_and_ends_with_the_last(
    house: House,
) -> None:
    ref = await house.queue()
    a, b = await house.post(ref, "a", "b")
    claim, _ = await house.hold(ref)
    await house.messages.remove(ref, [a], Removal.HELD, [claim])
    found = await house.messages.claimed(ref, claim)
    assert found is not None
    assert bodies(found.messages) == ["b"]
    await house.messages.remove(ref, [b], Removal.ANY)
    assert await house.messages.claimed(ref, claim) is None
    assert not await house.messages.renew(ref, claim, 60, 60)
    assert not await house.messages.release(ref, claim)


@pytest.mark.parametrize("claim", ["", "0", "1", "deadbeef", "ff" * 20, "not a claim", "-1", "é"])
async def test_a_claim_that_never_was_is_unknown_to_every_operation(
    house: House, claim: str
) -> None:
    ref = await house.queue()
    given = await house.post(ref, "a", "b")
    await house.hold(ref, 1)
    await house.post(ref, "c", delay_s=60)
    before = await house.all(ref)
    assert await house.messages.claimed(ref, claim) is None
    assert not await house.messages.renew(ref, claim, 60, 60)
    assert not await house.messages.renew(ref, claim, 60, 60, given)
    assert not await house.messages.release(ref, claim)
    assert not await house.messages.release(ref, claim, 5, given)
    assert await house.all(ref) == before


async def test_a_claim_of_another_queue_is_unknown(house: House) -> None:
    a, b = await house.queue("a"), await house.queue("b")
    await house.post(a, "a")
    await house.post(b, "b")
    claim, held = await house.hold(a)
    await house.hold(b)
    assert await house.messages.claimed(b, claim) is None
    assert not await house.messages.renew(b, claim, 900, 60)
    assert not await house.messages.release(b, claim)
    assert not await house.messages.release(b, claim, 0, held)
    assert await house.numbers(a) == (0, 1, 0)
    assert await house.numbers(b) == (0, 1, 0)


async def test_a_claim_of_an_earlier_generation_is_unknown(house: House) -> None:
    old = await house.queue()
    await house.post(old, "a")
    claim, _ = await house.hold(old)
    await house.messages.drop(old)
    new = await house.queue()
    await house.post(new, "b")
    await house.hold(new)
    assert await house.messages.claimed(new, claim) is None
    assert not await house.messages.release(new, claim)
    assert await house.numbers(new) == (0, 1, 0)


async def test_a_renewal_restarts_the_claim_with_the_new_ttl(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a", "b")
    claim, held = await house.hold(ref, ttl_s=60)
    house.clock.turn(50)
    assert await house.messages.renew(ref, claim, 90, 60)
    found = await house.messages.claimed(ref, claim)
    assert found is not None
    assert (found.id, found.ttl_s, found.started_ms) == (claim, 90, START_MS + 50_000)
    assert positions(found.messages) == held
    house.clock.turn(89)
    assert await house.numbers(ref) == (0, 2, 0)
    house.clock.turn(1)
    assert await house.messages.claimed(ref, claim) is None
    assert await house.numbers(ref) == (2, 0, 0)


async def test_a_renewal_may_shorten_a_claim(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    claim, _ = await house.hold(ref, ttl_s=500)
    assert await house.messages.renew(ref, claim, 10, 0)
    house.clock.turn(10)
    assert await house.free(ref) == ["a"]


async def test_a_claim_can_be_renewed_again_and_again(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a", ttl_s=60)
    claim, _ = await house.hold(ref, ttl_s=60)
    for _ in range(10):
        house.clock.turn(59)
        assert await house.messages.renew(ref, claim, 60, 60)
    assert await house.numbers(ref) == (0, 1, 0)


async def test_a_lapsed_claim_cannot_be_renewed(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    claim, _ = await house.hold(ref, ttl_s=60)
    house.clock.turn(60)
    assert not await house.messages.renew(ref, claim, 60, 60)
    assert await house.free(ref) == ["a"]


async def test_a_renewal_of_some_leaves_the_others_their_end(house: House) -> None:
    ref = await house.queue()
    a, b, c = await house.post(ref, "a", "b", "c")
    claim, _ = await house.hold(ref, ttl_s=60)
    house.clock.turn(30)
    assert await house.messages.renew(ref, claim, 60, 60, [b, 10**9])
    assert await house.numbers(ref) == (0, 3, 0)
    house.clock.turn(30)
    assert await house.free(ref) == ["a", "c"]
    found = await house.messages.claimed(ref, claim)
    assert found is not None
    assert positions(found.messages) == [b]
    assert found.id == claim
    assert (await house.messages.get(ref, [a, b, c])).messages[1].claim == claim
    house.clock.turn(30)
    assert await house.messages.claimed(ref, claim) is None
    assert await house.free(ref) == ["a", "b", "c"]


async def test_a_renewal_of_all_catches_up_with_a_renewal_of_some(house: House) -> None:
    ref = await house.queue()
    _, b, _ = await house.post(ref, "a", "b", "c")
    claim, held = await house.hold(ref, ttl_s=60)
    assert await house.messages.renew(ref, claim, 90, 60, [b])
    assert await house.messages.renew(ref, claim, 70, 60)
    house.clock.turn(69)
    found = await house.messages.claimed(ref, claim)
    assert found is not None
    assert positions(found.messages) == held
    house.clock.turn(1)
    assert await house.numbers(ref) == (3, 0, 0)


async def test_a_renewal_of_messages_that_the_claim_does_not_hold_does_nothing(
    house: House,
) -> None:
    ref = await house.queue()
    a, b, c = await house.post(ref, "a", "b", "c")
    mine, _ = await house.hold(ref, 1, ttl_s=60)
    await house.hold(ref, 1, ttl_s=60)
    assert not await house.messages.renew(ref, mine, 500, 60, [b, c])
    assert not await house.messages.renew(ref, mine, 500, 60, [])
    house.clock.turn(60)
    assert positions(await house.all(ref)) == [a, b, c]
    assert await house.numbers(ref) == (3, 0, 0)


async def test_release_frees_all_that_the_claim_holds_at_once(house: House) -> None:
    ref = await house.queue()
    given = await house.post(ref, "a", "b", "c")
    before = await house.all(ref)
    claim, _ = await house.hold(ref, 2)
    assert await house.messages.release(ref, claim)
    assert await house.messages.claimed(ref, claim) is None
    assert await house.all(ref) == before
    assert positions(await house.messages.claim(ref, 9, 60, 60)) == given


async def test_release_with_a_delay_hides_the_messages_until_it_ends(house: House) -> None:
    ref = await house.queue()
    given = await house.post(ref, "a", "b")
    claim, _ = await house.hold(ref)
    assert await house.messages.release(ref, claim, delay_s=30)
    assert await house.messages.claimed(ref, claim) is None
    assert await house.numbers(ref) == (0, 0, 2)
    assert [message.claim for message in await house.all(ref)] == [None, None]
    house.clock.turn(29)
    assert (await house.messages.claim(ref, 9, 60, 60)).claim is None
    house.clock.turn(1)
    assert positions(await house.messages.claim(ref, 9, 60, 60)) == given


async def test_a_delay_after_release_may_be_longer_than_the_claim_was(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    claim, _ = await house.hold(ref, ttl_s=60)
    await house.messages.release(ref, claim, delay_s=600)
    house.clock.turn(599)
    assert await house.numbers(ref) == (0, 0, 1)
    house.clock.turn(1)
    assert await house.numbers(ref) == (1, 0, 0)


async def test_release_of_some_leaves_the_others_held(house: House) -> None:
    ref = await house.queue()
    a, b, c = await house.post(ref, "a", "b", "c")
    claim, _ = await house.hold(ref)
    assert await house.messages.release(ref, claim, 0, [b, 10**9])
    assert await house.free(ref) == ["b"]
    found = await house.messages.claimed(ref, claim)
    assert found is not None
    assert positions(found.messages) == [a, c]
    assert await house.messages.release(ref, claim, 20, [a])
    assert await house.numbers(ref) == (1, 1, 1)
    assert await house.messages.release(ref, claim, 0, [c])
    assert await house.messages.claimed(ref, claim) is None
    assert not await house.messages.release(ref, claim)


async def test_release_of_messages_that_the_claim_does_not_hold_does_nothing(
    house: House,
) -> None:
    ref = await house.queue()
    _, b, c = await house.post(ref, "a", "b", "c")
    mine, _ = await house.hold(ref, 1)
    await house.hold(ref, 1)
    assert not await house.messages.release(ref, mine, 0, [b, c])
    assert not await house.messages.release(ref, mine, 50, [c])
    assert not await house.messages.release(ref, mine, 0, [])
    assert await house.numbers(ref) == (1, 2, 0)


async def test_a_lapsed_claim_cannot_be_released(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    claim, _ = await house.hold(ref, ttl_s=60)
    house.clock.turn(60)
    assert not await house.messages.release(ref, claim, delay_s=100)
    assert await house.numbers(ref) == (1, 0, 0)


async def test_release_renewal_and_lapse_of_an_old_claim_never_touch_a_newer_one(
    house: House,
) -> None:
    ref = await house.queue()
    given = await house.post(ref, "a", "b")
    old, _ = await house.hold(ref, ttl_s=60)
    house.clock.turn(60)
    new, held = await house.hold(ref, ttl_s=60)
    assert held == given
    before = await house.all(ref)
    assert not await house.messages.release(ref, old)
    assert not await house.messages.release(ref, old, 30, given)
    assert not await house.messages.renew(ref, old, 900, 60)
    assert not await house.messages.renew(ref, old, 900, 60, given)
    assert await house.messages.claimed(ref, old) is None
    assert await house.all(ref) == before
    house.clock.turn(59)
    found = await house.messages.claimed(ref, new)
    assert found is not None
    assert positions(found.messages) == given


async def test_a_partly_released_claim_does_not_reach_what_another_took_meanwhile(
    house: House,
) -> None:
    ref = await house.queue()
    a, b = await house.post(ref, "a", "b")
    first, _ = await house.hold(ref, ttl_s=60)
    await house.messages.release(ref, first, 0, [a])
    second, _ = await house.hold(ref, ttl_s=90)
    assert not await house.messages.renew(ref, first, 500, 60, [a])
    assert await house.messages.renew(ref, first, 70, 60)
    assert await house.messages.release(ref, first)
    found = await house.messages.claimed(ref, second)
    assert found is not None
    assert positions(found.messages) == [a]
    assert await house.free(ref) == ["b"]
    house.clock.turn(90)
    assert positions(await house.messages.page(ref, 0, 9)) == [a, b]
