"""What survives when a store is closed and opened again: everything."""

import asyncio

import pytest

from nusku.errors import Unavailable
from nusku.storage import Removal, Removed, Stale
from tests.storage.harness import House, bodies, positions


async def test_messages_survive_with_all_their_fields(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a", client="c1", attributes=b"x", ttl_s=60)
    await house.post(ref, "b", delay_s=30, dedup="k")
    before, counts = await house.all(ref), await house.messages.count(ref)
    await house.reopen()
    assert await house.all(ref) == before
    assert await house.messages.count(ref) == counts


async def test_claims_survive(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a", "b", "c")
    got = await house.messages.claim(ref, 2, 60, 60, 9)
    assert got.claim
    before = await house.messages.claimed(ref, got.claim)
    await house.reopen()
    assert await house.messages.claimed(ref, got.claim) == before
    assert await house.numbers(ref) == (1, 2, 0)
    assert bodies(await house.messages.claim(ref, 9, 60, 60)) == ["c"]
    assert await house.messages.remove(ref, positions(got)[:1], Removal.HELD, [got.claim]) == [
        Removed.GONE
    ]
    assert await house.messages.renew(ref, got.claim, 90, 60)
    await house.reopen()
    house.clock.turn(89)
    assert await house.messages.claimed(ref, got.claim) is not None
    await house.reopen()
    house.clock.turn(1)
    assert await house.messages.claimed(ref, got.claim) is None


async def test_partly_renewed_and_partly_released_claims_survive(house: House) -> None:
    ref = await house.queue()
    given = await house.post(ref, *"abcd")
    claim, _ = await house.hold(ref, ttl_s=60)
    await house.messages.renew(ref, claim, 120, 60, given[:2])
    await house.messages.release(ref, claim, 90, given[1:3])
    await house.reopen()
    assert await house.numbers(ref) == (0, 2, 2)
    house.clock.turn(60)
    assert await house.free(ref) == ["d"]
    await house.reopen()
    house.clock.turn(30)
    assert await house.free(ref) == ["b", "c", "d"]
    house.clock.turn(30)
    assert await house.free(ref) == ["a", "b", "c", "d"]


async def test_claim_ids_do_not_come_back_after_a_restart(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, *"abcdef")
    ids = set()
    for _ in range(6):
        claim, _ = await house.hold(ref, 1)
        ids.add(claim)
        await house.reopen()
    assert len(ids) == 6


async def test_counts_of_claims_survive(house: House) -> None:
    ref = await house.queue()
    given = await house.post(ref, "a")
    for _ in range(3):
        assert (await house.messages.claim(ref, 1, 60, 60, 3)).claim
        house.clock.turn(60)
        await house.reopen()
    assert (await house.messages.claim(ref, 1, 60, 60, 3)).spent == given


async def test_positions_go_on_after_a_restart_even_of_an_emptied_queue(house: House) -> None:
    ref = await house.queue()
    [first] = await house.post(ref, "a")
    await house.messages.clear(ref)
    await house.reopen()
    [second] = await house.post(ref, "b")
    await house.messages.pop(ref, 1)
    await house.reopen()
    [third] = await house.post(ref, "c")
    assert first < second < third


async def test_what_was_removed_does_not_come_back(house: House) -> None:
    ref = await house.queue()
    given = await house.post(ref, *"abcd")
    await house.messages.remove(ref, given[:1], Removal.ANY)
    await house.messages.pop(ref, 1)
    claim, held = await house.hold(ref, 1)
    await house.messages.remove(ref, held, Removal.HELD, [claim])
    await house.reopen()
    assert bodies(await house.all(ref)) == ["d"]
    await house.messages.clear(ref)
    await house.reopen()
    assert not await house.all(ref)
    assert await house.numbers(ref) == (0, 0, 0)


async def test_deadlines_that_pass_while_the_store_is_closed_take_effect(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "held")
    await house.hold(ref, ttl_s=60)
    await house.post(ref, "expired", ttl_s=60)
    await house.post(ref, "delayed", delay_s=60)
    await house.close()
    house.clock.turn(60)
    await house.open()
    assert await house.numbers(ref) == (2, 0, 0)
    assert await house.free(ref) == ["held", "delayed"]


async def test_generations_and_versions_survive(house: House) -> None:
    old = await house.queue()
    newer = old._replace(version=2)
    await house.messages.admit(newer)
    dropped = await house.queue("dropped")
    await house.messages.drop(dropped)
    await house.reopen()
    with pytest.raises(Stale):
        await house.post(old, "x")
    with pytest.raises(Stale):
        await house.post(dropped, "x")
    await house.post(newer, "x")


async def test_dedup_keys_survive(house: House) -> None:
    ref = await house.queue()
    given = await house.post(ref, "a", dedup="k")
    await house.reopen()
    assert await house.post(ref, "b", dedup="k") == given


async def test_a_clock_that_starts_earlier_than_before_frees_no_claim(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    claim, _ = await house.hold(ref, ttl_s=60)
    await house.close()
    house.clock.turn(-3600)
    await house.open()
    assert await house.messages.claimed(ref, claim) is not None
    assert (await house.messages.claim(ref, 1, 60, 60)).claim is None


async def test_what_had_ended_does_not_come_back_when_the_clock_starts_earlier(
    house: House,
) -> None:
    ref = await house.queue()
    given = await house.post(ref, "held")
    claim, _ = await house.hold(ref, ttl_s=60)
    given += await house.post(ref, "expired", ttl_s=60)
    house.clock.turn(60)
    assert await house.numbers(ref) == (1, 0, 0)
    await house.close()
    house.clock.turn(-30)
    await house.open()
    assert await house.numbers(ref) == (1, 0, 0)
    assert await house.messages.claimed(ref, claim) is None
    answers = await house.messages.remove(ref, given[:1], Removal.HELD, [claim])
    assert answers == [Removed.UNCLAIMED]
    assert bodies(await house.all(ref)) == ["held"]


async def test_a_closed_store_says_that_it_is_unavailable(house: House) -> None:
    ref = await house.queue()
    messages, records = house.messages, house.records
    await house.close()
    with pytest.raises(Unavailable):
        await messages.count(ref)
    with pytest.raises(Unavailable):
        await messages.claim(ref, 1, 60, 60)
    with pytest.raises(Unavailable):
        await records.get("queue", "p1", "k")
    with pytest.raises(Unavailable):
        await records.find("queue", "p1", "name")
    with pytest.raises(Unavailable):
        await records.ended("queue", (0, ""), 1)
    with pytest.raises(Unavailable):
        await messages.occupied("delivery")


async def test_closing_answers_what_was_asked_before(house: House) -> None:
    ref = await house.queue()
    tasks = [asyncio.create_task(house.post(ref, str(n))) for n in range(50)]
    await asyncio.sleep(0)
    await house.close()
    given = await asyncio.gather(*tasks)
    await house.open()
    assert positions(await house.all(ref)) == sorted(position for [position] in given)


async def test_an_open_store_answers_a_ping_and_has_not_failed(house: House) -> None:
    await house.store.ping()
    assert isinstance(house.store.failed, asyncio.Future)
    assert not house.store.failed.done()


async def test_time_goes_on_when_the_clock_starts_earlier(house: House) -> None:
    if not house.uri.startswith("sqlite"):
        pytest.skip("elsewhere the clock is the server's, and stands still until it is there again")
    ref = await house.queue()
    await house.post(ref, "held")
    claim, _ = await house.hold(ref, ttl_s=60)
    await house.post(ref, "expires", ttl_s=60)
    await house.post(ref, "delayed", delay_s=60)
    await house.close()
    house.clock.turn(-3600)
    await house.open()
    house.clock.turn(59)
    assert await house.messages.claimed(ref, claim) is not None
    assert await house.numbers(ref) == (1, 1, 1)
    house.clock.turn(1)
    assert await house.numbers(ref) == (2, 0, 0)
    assert await house.free(ref) == ["held", "delayed"]
