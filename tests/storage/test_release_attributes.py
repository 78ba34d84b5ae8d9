"""Attributes that a release leaves with messages: what is known of the attempt that failed."""

import asyncio

import pytest

from nusku.model import QueueRef
from tests.storage.harness import House


@pytest.fixture
def ref(house: House, runner: asyncio.Runner) -> QueueRef:
    return runner.run(house.queue(kind="delivery"))


async def attributes(house: House, ref: QueueRef) -> list[bytes | None]:
    return [message.attributes for message in await house.all(ref)]


async def test_released_messages_get_the_attributes_given_for_them(
    house: House, ref: QueueRef
) -> None:
    given = await house.post(ref, "a", "b", "c", attributes=b"old")
    claim, _ = await house.hold(ref)
    assert await house.messages.release(
        ref, claim, attributes={given[0]: b"A" * 5000, given[2]: b""}
    )
    assert await attributes(house, ref) == [b"A" * 5000, b"old", b""]
    assert await house.free(ref) == ["a", "b", "c"]


async def test_messages_that_had_no_attributes_get_them(house: House, ref: QueueRef) -> None:
    given = await house.post(ref, "a", "b")
    claim, _ = await house.hold(ref)
    await house.messages.release(ref, claim, attributes={given[1]: b"B"})
    assert await attributes(house, ref) == [None, b"B"]


async def test_without_attributes_a_release_leaves_them(house: House, ref: QueueRef) -> None:
    await house.post(ref, "a", attributes=b"old")
    claim, _ = await house.hold(ref)
    await house.messages.release(ref, claim)
    assert await attributes(house, ref) == [b"old"]
    claim, _ = await house.hold(ref)
    await house.messages.release(ref, claim, attributes={})
    assert await attributes(house, ref) == [b"old"]


async def test_delayed_ones_have_their_attributes_during_the_delay_and_after(
    house: House, ref: QueueRef
) -> None:
    given = await house.post(ref, "a")
    claim, _ = await house.hold(ref)
    await house.messages.release(ref, claim, 30, given, {given[0]: b"A"})
    assert await attributes(house, ref) == [b"A"]
    assert await house.numbers(ref) == (0, 0, 1)
    house.clock.turn(30)
    got = await house.messages.claim(ref, 1, 60, 60)
    assert [message.attributes for message in got.messages] == [b"A"]


async def test_only_what_is_released_gets_attributes(house: House, ref: QueueRef) -> None:
    given = await house.post(ref, "released", "kept", "held by another", attributes=b"old")
    given += await house.post(ref, "free", attributes=b"old")
    claim, _ = await house.hold(ref, 2)
    await house.hold(ref, 1)
    new = dict.fromkeys([*given, 10**9], b"new")
    assert await house.messages.release(ref, claim, 0, given[:1], new)
    assert await attributes(house, ref) == [b"new", b"old", b"old", b"old"]
    found = await house.messages.claimed(ref, claim)
    assert found is not None
    assert [message.body for message in found.messages] == [b"kept"]


async def test_a_release_of_nothing_gives_nothing(house: House, ref: QueueRef) -> None:
    given = await house.post(ref, "held", "free", attributes=b"old")
    claim, _ = await house.hold(ref, 1)
    new = dict.fromkeys(given, b"new")
    assert not await house.messages.release(ref, "deadbeef", 0, None, new)
    assert not await house.messages.release(ref, claim, 0, given[1:], new)
    assert not await house.messages.release(ref, claim, 0, [], new)
    assert await attributes(house, ref) == [b"old", b"old"]


async def test_a_claim_that_lapsed_gives_nothing(house: House, ref: QueueRef) -> None:
    given = await house.post(ref, "a", attributes=b"old")
    claim, _ = await house.hold(ref, ttl_s=60)
    house.clock.turn(60)
    assert not await house.messages.release(ref, claim, 0, None, {given[0]: b"new"})
    assert await attributes(house, ref) == [b"old"]
    await house.hold(ref, ttl_s=60)
    assert not await house.messages.release(ref, claim, 0, None, {given[0]: b"new"})
    assert await attributes(house, ref) == [b"old"]


async def test_all_else_of_a_message_stays_as_it_was(house: House, ref: QueueRef) -> None:
    given = await house.post(ref, "a", ttl_s=500, client="c1", dedup="k", attributes=b"old")
    [before] = await house.all(ref)
    got = await house.messages.claim(ref, 1, 60, 60, 9)
    assert got.claim
    await house.messages.release(ref, got.claim, 0, None, {given[0]: b"new"})
    [after] = await house.all(ref)
    assert (after.position, after.posted_ms, after.ttl_s, after.expires_ms) == (
        before.position,
        before.posted_ms,
        before.ttl_s,
        before.expires_ms,
    )
    assert (after.count, after.client, after.body, after.claim) == (1, "c1", b"a", None)
    assert await house.post(ref, "again", dedup="k") == given


async def test_each_attempt_may_say_more(house: House, ref: QueueRef) -> None:
    given = await house.post(ref, "a")
    for n in range(5):
        got = await house.messages.claim(ref, 1, 60, 60, 9)
        assert got.claim
        [message] = got.messages
        assert message.count == n + 1
        seen = message.attributes or b""
        await house.messages.release(ref, got.claim, 10, None, {given[0]: seen + b"%d" % n})
        house.clock.turn(10)
    assert await attributes(house, ref) == [b"01234"]


async def test_attributes_given_by_a_release_survive_a_restart(house: House, ref: QueueRef) -> None:
    given = await house.post(ref, "a", "b")
    claim, _ = await house.hold(ref)
    await house.messages.release(ref, claim, 30, None, {given[0]: b"A"})
    await house.reopen()
    assert await attributes(house, ref) == [b"A", None]
    house.clock.turn(30)
    assert await house.free(ref) == ["a", "b"]
