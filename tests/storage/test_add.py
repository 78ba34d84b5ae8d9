"""Adding messages: order, batches, several queues at once, dedup keys."""

import pytest

from nusku.model import Draft
from nusku.storage import Stale
from tests.storage.harness import START_MS, House, bodies, positions


async def test_a_message_is_returned_as_it_was_added(house: House) -> None:
    ref = await house.queue()
    [position] = await house.post(
        ref, "hello", ttl_s=60, client="c1", attributes=b'{"origin": "x"}'
    )
    [message] = (await house.messages.page(ref, 0, 10)).messages
    assert message.position == position
    assert message.body == b"hello"
    assert message.client == "c1"
    assert message.attributes == b'{"origin": "x"}'
    assert message.ttl_s == 60
    assert message.posted_ms == START_MS
    assert message.expires_ms == START_MS + 60_000
    assert message.count == 0
    assert message.claim is None


@pytest.mark.parametrize("body", [b"", b"\x00", b"\xff\xfe\x00binary", b"x" * 300_000])
async def test_a_body_is_any_bytes(house: House, body: bytes) -> None:
    ref = await house.queue()
    await house.messages.add([(ref, [Draft(body, 60)])])
    [message] = await house.all(ref)
    assert message.body == body


async def test_attributes_that_were_not_given_are_none_and_empty_ones_stay_empty(
    house: House,
) -> None:
    ref = await house.queue()
    await house.post(ref, "without")
    await house.post(ref, "empty", attributes=b"")
    assert [m.attributes for m in await house.all(ref)] == [None, b""]


async def test_a_batch_keeps_its_order(house: House) -> None:
    ref = await house.queue()
    texts = [f"m{n}" for n in range(50)]
    given = await house.post(ref, *texts)
    assert given == sorted(set(given))
    found = await house.messages.page(ref, 0, 100)
    assert bodies(found) == texts
    assert positions(found) == given


async def test_later_batches_come_behind_earlier_ones(house: House) -> None:
    ref = await house.queue()
    given = [await house.post(ref, f"{n}a", f"{n}b") for n in range(5)]
    flat = [position for batch in given for position in batch]
    assert flat == sorted(set(flat))
    assert await house.free(ref) == [f"{n}{x}" for n in range(5) for x in "ab"]


async def test_positions_are_greater_than_zero(house: House) -> None:
    ref = await house.queue()
    [first] = await house.post(ref, "first")
    assert first > 0


async def test_an_empty_batch_adds_nothing(house: House) -> None:
    ref = await house.queue()
    assert await house.messages.add([(ref, [])]) == [[]]
    assert not await house.all(ref)


async def test_several_queues_take_messages_in_one_step(house: House) -> None:
    a = await house.queue("a")
    b = await house.beside(a)
    given = await house.messages.add(
        [(a, [Draft(b"a1", 60), Draft(b"a2", 60)]), (b, [Draft(b"b1", 60)])]
    )
    assert [len(batch) for batch in given] == [2, 1]
    assert positions(await house.all(a)) == given[0]
    assert positions(await house.all(b)) == given[1]
    assert await house.free(a) == ["a1", "a2"]
    assert await house.free(b) == ["b1"]


@pytest.mark.parametrize("stale_first", [True, False])
async def test_when_one_of_several_queues_is_stale_none_takes_anything(
    house: House, stale_first: bool
) -> None:
    fresh = await house.queue("a")
    changed = await house.beside(fresh)
    await house.messages.admit(changed._replace(version=2))
    posts = [(fresh, [Draft(b"f", 60)]), (changed, [Draft(b"s", 60)])]
    with pytest.raises(Stale):
        await house.messages.add(posts[::-1] if stale_first else posts)
    assert not await house.all(fresh)
    assert not await house.all(changed._replace(version=2))


async def test_add_is_stale_after_the_options_changed(house: House) -> None:
    ref = await house.queue()
    await house.messages.admit(ref._replace(version=2))
    with pytest.raises(Stale):
        await house.post(ref, "x")
    await house.post(ref._replace(version=2), "y")
    assert await house.free(ref._replace(version=2)) == ["y"]


async def test_add_is_stale_with_a_version_that_the_store_does_not_know_yet(house: House) -> None:
    ref = await house.queue()
    with pytest.raises(Stale):
        await house.post(ref._replace(version=2), "x")


async def test_queues_of_the_same_name_are_apart_by_project_and_kind(house: House) -> None:
    refs = [
        await house.queue("x", "p1"),
        await house.queue("x", "p2"),
        await house.queue("x", "p1", "topic"),
    ]
    for n, ref in enumerate(refs):
        await house.post(ref, f"m{n}")
    for n, ref in enumerate(refs):
        assert await house.free(ref) == [f"m{n}"]


async def test_a_dedup_key_that_is_present_returns_the_message_already_there(house: House) -> None:
    ref = await house.queue()
    first = await house.post(ref, "one", dedup="k")
    assert await house.post(ref, "two", dedup="k") == first
    assert await house.free(ref) == ["one"]


async def test_a_dedup_key_twice_in_one_batch_adds_one_message(house: House) -> None:
    ref = await house.queue()
    drafts = [Draft(b"one", 60, dedup="k"), Draft(b"other", 60), Draft(b"again", 60, dedup="k")]
    [[one, other, again]] = await house.messages.add([(ref, drafts)])
    assert one == again
    assert one < other
    assert await house.free(ref) == ["one", "other"]


async def test_messages_without_a_dedup_key_are_never_the_same(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "x", "x")
    assert await house.free(ref) == ["x", "x"]


async def test_a_dedup_key_counts_in_its_own_queue_only(house: House) -> None:
    a, b = await house.queue("a"), await house.queue("b")
    await house.post(a, "x", dedup="k")
    await house.post(b, "y", dedup="k")
    assert await house.free(b) == ["y"]


async def test_a_dedup_key_counts_while_its_message_is_held_or_delayed(house: House) -> None:
    ref = await house.queue()
    held = await house.post(ref, "held", dedup="h")
    await house.hold(ref)
    delayed = await house.post(ref, "delayed", dedup="d", delay_s=10)
    assert await house.post(ref, "x", dedup="h") == held
    assert await house.post(ref, "x", dedup="d") == delayed
    assert len(await house.all(ref)) == 2


async def test_a_dedup_key_is_free_again_when_its_message_was_popped(house: House) -> None:
    ref = await house.queue()
    first = await house.post(ref, "one", dedup="k")
    await house.messages.pop(ref, 1)
    second = await house.post(ref, "two", dedup="k")
    assert second > first
    assert await house.free(ref) == ["two"]


async def test_a_dedup_key_is_free_again_when_its_message_expired(house: House) -> None:
    ref = await house.queue()
    first = await house.post(ref, "one", dedup="k", ttl_s=60)
    house.clock.turn(60)
    second = await house.post(ref, "two", dedup="k")
    assert second > first
    assert await house.free(ref) == ["two"]
    assert await house.numbers(ref) == (1, 0, 0)


async def test_a_dedup_key_is_free_again_after_clear(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "one", dedup="k")
    await house.messages.clear(ref)
    await house.post(ref, "two", dedup="k")
    assert await house.free(ref) == ["two"]


async def test_a_dedup_key_is_free_again_in_a_new_generation(house: House) -> None:
    old = await house.queue()
    await house.post(old, "one", dedup="k")
    await house.messages.drop(old)
    new = await house.queue()
    await house.post(new, "two", dedup="k")
    assert await house.free(new) == ["two"]


async def test_what_was_posted_elsewhere_keeps_its_age_and_its_count(house: House) -> None:
    ref = await house.queue()
    house.clock.turn(100)
    old = START_MS - 60_000
    drafts = [
        Draft(b"a", 60, posted_ms=old, count=3),
        Draft(b"b", 60, delay_s=10, posted_ms=old),
        Draft(b"c", 60),
    ]
    await house.messages.add([(ref, drafts)])
    found = await house.all(ref)
    now = START_MS + 100_000
    assert [(m.posted_ms, m.count, m.ttl_s) for m in found] == [
        (old, 3, 60),
        (old, 0, 60),
        (now, 0, 60),
    ]
    assert {m.expires_ms for m in found} == {now + 60_000}
    got = await house.messages.claim(ref, 9, 60, 60, max_count=3)
    assert [m.body for m in got.messages] == [b"c"]
    assert len(got.spent) == 1
    house.clock.turn(10)
    assert await house.free(ref) == ["a", "b"]
