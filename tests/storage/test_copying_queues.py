"""Queues taken from one store to another: what is there is there again, as it was."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from nusku.model import QueueKey, QueueRef, Stored
from nusku.storage import Removal, Removed, StoreOptions
from tests.storage.harness import BACKENDS, LONG_S, START_MS, House, bodies, positions

FOREIGN = "0123456789abcdef" * 2
LAST = (1 << 43) - 1


@pytest.fixture
def other(house: House, backend: str, tmp_path: Path, runner: asyncio.Runner) -> Iterator[House]:
    """A second store of the same kind, by the same clock."""
    (tmp_path / "other").mkdir()
    other = House(BACKENDS[backend](tmp_path / "other"), StoreOptions(synchronous="normal"))
    other.clock = house.clock
    runner.run(other.open())
    yield other
    runner.run(other.close())


async def dump(house: House, ref: QueueRef, *, bodies: bool = True) -> list[Stored]:
    return await house.messages.dump(ref, 0, 100_000, bodies=bodies)


async def holding(house: House, ref: QueueRef) -> tuple[int, int]:
    [found] = [h for h in await house.messages.queues(None, 1000) if h.ref.key == ref.key]
    return found.next_position, found.messages


async def carry(source: House, target: House, ref: QueueRef, step: int = 3) -> None:
    """Copy a queue, so many messages at a time, and open it."""
    next_position, _ = await holding(source, ref)
    after = 0
    while after < LAST:
        some = await source.messages.dump(ref, after, step)
        through = some[-1].position if len(some) == step else LAST
        await target.messages.load(ref, next_position, after, through, some)
        after = through
    await target.unseal(ref)


async def filled(house: House) -> tuple[QueueRef, dict[str, list[int]], str]:
    """A queue with one of everything; its positions by what they are, and a claim."""
    ref = await house.queue()
    given: dict[str, list[int]] = {}
    given["spent"] = await house.post(ref, "spent", attributes=b"a", client="c1")
    for _ in range(2):
        got = await house.messages.claim(ref, 1, 60, 60, 9)
        assert got.claim is not None
        await house.messages.release(ref, got.claim)
    house.clock.turn(1)
    given["held"] = await house.post(ref, "held", "held too", "renewed")
    given["gone"] = await house.post(ref, "gone")
    given["short"] = await house.post(ref, "short", ttl_s=200)
    await house.messages.remove(ref, given["spent"] + given["gone"], Removal.ANY)
    claim, held = await house.hold(ref, 4, ttl_s=300, grace_s=100)
    given["prolonged"] = held[3:]
    house.clock.turn(2)
    await house.messages.renew(ref, claim, 600, 60, held[2:3])
    given["once"] = await house.post(ref, "once", dedup="k", client="ü")
    given["delayed"] = await house.post(ref, "delayed", "delayed too", delay_s=90, dedup=None)
    given["counted"] = await house.post(ref, "counted", attributes=b"")
    counted = await house.messages.claim(ref, 9, 60, 60, 9)
    assert counted.claim is not None
    await house.messages.release(ref, counted.claim)
    given["free"] = await house.post(ref, "free")
    return ref, given, claim


# The same again


async def test_a_copy_is_equal_in_everything(house: House, other: House) -> None:
    ref, _, claim = await filled(house)
    await carry(house, other, ref)
    assert await dump(other, ref) == await dump(house, ref)
    assert await dump(other, ref, bodies=False) == await dump(house, ref, bodies=False)
    assert await holding(other, ref) == await holding(house, ref)
    assert await other.messages.count(ref) == await house.messages.count(ref)
    assert await other.all(ref) == await house.all(ref)
    assert await other.free(ref) == await house.free(ref)
    assert await other.messages.claimed(ref, claim) == await house.messages.claimed(ref, claim)
    assert await other.messages.volume() == await house.messages.volume()
    await other.reopen()
    assert await dump(other, ref) == await dump(house, ref)
    assert await other.messages.count(ref) == await house.messages.count(ref)
    assert await other.messages.claimed(ref, claim) == await house.messages.claimed(ref, claim)


async def test_a_dump_says_what_there_is(house: House) -> None:
    ref, given, claim = await filled(house)
    now, found = house.clock(), {one.body: one for one in await dump(house, ref)}
    held, renewed = found[b"held"], found[b"renewed"]
    assert (held.claim, held.claim_ttl_s, held.claim_started_ms) == (claim, 300, now - 2000)
    assert held.hidden_ms == now - 2000 + 300_000
    assert (renewed.claim, renewed.claim_ttl_s, renewed.claim_started_ms) == (claim, 600, now)
    assert (found[b"short"].ttl_s, found[b"short"].expires_ms) == (400, now - 2000 + 400_000)
    assert found[b"once"].dedup == "k"
    delayed = found[b"delayed"]
    assert (delayed.hidden_ms, delayed.claim, delayed.claim_ttl_s) == (now + 90_000, None, 0)
    assert (found[b"counted"].count, found[b"counted"].attributes) == (1, b"")
    free = found[b"free"]
    assert free == Stored(given["free"][0], now, LONG_S, now + LONG_S * 1000, 0, "", b"free")
    assert [one.position for one in found.values()] == sorted(
        one.position for one in found.values()
    )
    plain = await dump(house, ref, bodies=False)
    assert plain == [replace(one, body=None) for one in found.values()]


async def test_a_dump_goes_in_pages(house: House) -> None:
    ref, _, _ = await filled(house)
    whole = await dump(house, ref)
    for limit in (1, 2, 5):
        found: list[Stored] = []
        while page := await house.messages.dump(ref, found[-1].position if found else 0, limit):
            assert len(page) <= limit
            found += page
        assert found == whole
    assert await house.messages.dump(ref, whole[-1].position, 9) == []
    assert await house.messages.dump(ref, LAST, 9) == []


async def test_what_has_ended_is_not_dumped_and_what_lapsed_is_free(house: House) -> None:
    ref, given, _ = await filled(house)
    house.clock.turn(90)
    assert {one.position for one in await dump(house, ref) if one.hidden_ms} == {
        *given["held"], *given["prolonged"]
    }  # fmt: skip
    house.clock.turn(208)
    found = {one.position: one for one in await dump(house, ref)}
    assert {p for p, one in found.items() if one.hidden_ms} == {given["held"][2]}
    assert found[given["held"][0]].claim is None
    assert (found[given["held"][0]].claim_ttl_s, found[given["held"][0]].claim_started_ms) == (0, 0)
    house.clock.turn(100)
    assert given["prolonged"][0] not in {one.position for one in await dump(house, ref)}
    while await house.messages.expire(100):
        pass
    assert len(await dump(house, ref)) == 8


async def test_what_a_copy_does_is_what_the_original_would_do(house: House, other: House) -> None:
    ref, given, _ = await filled(house)
    await carry(house, other, ref)
    assert await other.post(ref, "again", dedup="k") == given["once"]
    assert await other.post(ref, "new") == await house.post(ref, "new")
    for step in range(12):
        house.clock.turn(61)
        if step % 3 == 0:
            await other.messages.expire(3)
        assert await other.all(ref) == await house.all(ref)
        assert await other.messages.count(ref) == await house.messages.count(ref)
        assert await dump(other, ref) == await dump(house, ref)
    both = [await each.messages.claim(ref, 100, 60, 60, 2) for each in (house, other)]
    assert [bodies(got) for got in both] == [bodies(both[0])] * 2
    assert [got.spent for got in both] == [both[0].spent] * 2


# Claims under their ids


async def test_a_copied_claim_is_renewed_released_and_lapses(house: House, other: House) -> None:
    ref, given, claim = await filled(house)
    await carry(house, other, ref)
    assert await other.messages.renew(ref, claim, 900, 60, given["held"][:1])
    found = await other.messages.claimed(ref, claim)
    assert found is not None
    assert positions(found.messages) == [*given["held"], *given["prolonged"]]
    assert await other.messages.release(ref, claim, 0, given["held"][1:2])
    assert "held too" in await other.free(ref)
    house.clock.turn(600)
    found = await other.messages.claimed(ref, claim)
    assert found is not None
    assert positions(found.messages) == given["held"][:1]
    house.clock.turn(299)
    assert await other.messages.claimed(ref, claim) is not None
    house.clock.turn(1)
    assert await other.messages.claimed(ref, claim) is None
    assert not await other.messages.renew(ref, claim, 60, 60)
    assert await other.numbers(ref) == (8, 0, 0)


async def test_messages_are_removed_under_a_copied_claim(house: House, other: House) -> None:
    ref, given, claim = await filled(house)
    await carry(house, other, ref)
    mine = given["held"] + given["prolonged"]
    remove = other.messages.remove
    assert await remove(ref, mine[:1], Removal.UNCLAIMED) == [Removed.HELD_BY_OTHER]
    assert await remove(ref, mine[:1], Removal.HELD, [FOREIGN]) == [Removed.CLAIM_UNKNOWN]
    assert await remove(ref, mine[:1], Removal.HELD, [claim]) == [Removed.GONE]
    assert await remove(ref, mine[1:], Removal.HELD, [claim], together=True) == [Removed.GONE] * 3
    assert await other.messages.claimed(ref, claim) is None
    assert await other.numbers(ref) == (3, 0, 2)


async def test_a_claim_that_was_given_out_elsewhere_survives_restarts(house: House) -> None:
    ref = QueueRef(QueueKey("queue", "p1", "new"), house.generation(), 1)
    now, end = START_MS, START_MS + LONG_S * 1000
    held = [
        Stored(p, now, LONG_S, end, 1, "", b"h", None, None, now + 60_000, FOREIGN, 60, now)
        for p in (3, 4)
    ]
    await house.messages.load(ref, 9, 0, 8, held)
    await house.unseal(ref)
    await house.reopen()
    assert await house.messages.renew(ref, FOREIGN, 120, 60, [3])
    await house.reopen()
    house.clock.turn(60)
    while await house.messages.expire(100):
        pass
    found = await house.messages.claimed(ref, FOREIGN)
    assert found is not None
    assert (positions(found.messages), found.ttl_s) == ([3], 120)
    [dumped] = [one for one in await dump(house, ref) if one.claim]
    assert dumped.claim == FOREIGN
    house.clock.turn(60)
    for _ in range(3):
        await house.messages.expire(100)
    assert await house.messages.claimed(ref, FOREIGN) is None
    assert await house.numbers(ref) == (2, 0, 0)
    await house.messages.load(ref, 9, 0, 8, held)  # what it held has lapsed
    assert await house.numbers(ref) == (2, 0, 0)


async def test_a_claim_that_comes_home_is_the_same_claim(house: House, other: House) -> None:
    ref, _, claim = await filled(house)
    for dropped in (True, False):
        before = await dump(house, ref)
        await carry(house, other, ref)
        if dropped:
            await house.messages.drop(ref)
        await carry(other, house, ref)
        assert await dump(house, ref) == before
        found = await house.messages.claimed(ref, claim)
        assert found is not None
        assert len(found.messages) == 4
        while await house.messages.expire(100):
            pass
        assert await house.messages.claimed(ref, claim) == found
        assert await house.messages.renew(ref, claim, 600, 60)
    assert await house.messages.release(ref, claim)
    assert await house.numbers(ref) == (7, 0, 2)


async def test_new_claims_do_not_get_ids_of_copied_ones(house: House, other: House) -> None:
    ref = await house.queue()
    await house.post(ref, *map(str, range(40)))
    ids = {(await house.hold(ref, 1))[0] for _ in range(20)}
    await carry(house, other, ref)
    ids |= {(await other.hold(ref, 1))[0] for _ in range(20)}
    assert len(ids) == 40
    assert {len(each) for each in ids} == {32}


# Ranges


def plain(position: int, body: bytes = b"x", **changes: Any) -> Stored:
    one = Stored(position, START_MS, LONG_S, START_MS + LONG_S * 1000, 0, "", body)
    return replace(one, **changes)


async def fresh(house: House, messages: Sequence[Stored], next_position: int = 100) -> QueueRef:
    ref = QueueRef(QueueKey("queue", "p1", "new"), house.generation(), 1)
    await house.messages.load(ref, next_position, 0, 99, messages)
    await house.unseal(ref)
    return ref


async def test_loading_replaces_the_range_and_nothing_else(house: House) -> None:
    ref = await fresh(house, [plain(p) for p in range(10, 20)])
    await house.messages.load(ref, 100, 12, 15, [plain(13), plain(15, client="c")])
    assert positions(await house.all(ref)) == [10, 11, 12, 13, 15, 16, 17, 18, 19]
    assert [one.client for one in await house.all(ref)].count("c") == 1
    await house.messages.load(ref, 100, 15, 17, [])
    await house.messages.load(ref, 100, 0, 9, [plain(2), plain(1)])
    assert positions(await house.all(ref)) == [1, 2, 10, 11, 12, 13, 15, 18, 19]
    assert await house.numbers(ref) == (9, 0, 0)
    await house.messages.load(ref, 100, 0, LAST, [plain(11)])
    assert await house.numbers(ref) == (1, 0, 0)
    assert positions(await house.messages.claim(ref, 9, 60, 60)) == [11]


async def test_loading_twice_is_loading_once(house: House, other: House) -> None:
    ref, _, _ = await filled(house)
    for _ in range(3):
        await carry(house, other, ref, 2)
        assert await dump(other, ref) == await dump(house, ref)
        assert await other.messages.count(ref) == await house.messages.count(ref)
    house.clock.turn(600)
    while await other.messages.expire(100):
        pass
    assert await other.messages.count(ref) == await house.messages.count(ref)


async def test_loading_changes_the_state_of_what_is_there(house: House) -> None:
    now = START_MS
    held: dict[str, Any] = {
        "hidden_ms": now + 60_000,
        "claim": FOREIGN,
        "claim_ttl_s": 60,
        "claim_started_ms": now,
    }
    delayed: dict[str, Any] = {"hidden_ms": now + 30_000}
    states: list[dict[str, Any]] = [{}, held, delayed, {"expires_ms": now + 50_000, "ttl_s": 50}]
    ref = await fresh(house, [])
    for before in states:
        for after in states:
            first, second = (plain(5, b"m", **each) for each in (before, after))
            for one in (first, second):
                await house.messages.load(ref, 100, 0, 99, [one])
                assert await dump(house, ref) == [one]
            expected = {None: 0, FOREIGN: 1}[second.claim], int(second.hidden_ms == now + 30_000)
            assert await house.numbers(ref) == (1 - sum(expected), *expected)
            found = await house.messages.claimed(ref, FOREIGN)
            assert (found is not None) == (second.claim == FOREIGN)
    house.clock.turn(50)
    assert await house.numbers(ref) == (0, 0, 0)


async def test_a_queue_goes_on_with_the_position_that_it_is_told_or_further(house: House) -> None:
    ref = await fresh(house, [], next_position=50)
    assert await house.post(ref, "a") == [50]
    await house.messages.load(ref, 20, 0, 40, [plain(3)])
    assert await house.post(ref, "b") == [51]
    await house.messages.load(ref, 60, 51, 59, [plain(58)])
    await house.reopen()
    assert await house.post(ref, "c") == [60]
    assert positions(await house.all(ref)) == [3, 50, 51, 58, 60]
    await house.messages.clear(ref)
    assert await house.post(ref, "d") == [61]


async def test_what_has_ended_meanwhile_is_not_loaded(house: House) -> None:
    house.clock.turn(10)
    now = house.clock()
    over: dict[str, Any] = {"claim": FOREIGN, "claim_ttl_s": 10, "claim_started_ms": now - 10_000}
    ref = await fresh(
        house,
        [
            plain(1, expires_ms=now),
            plain(2, expires_ms=now - 1),
            plain(3, hidden_ms=now, **over),
            plain(4, hidden_ms=now - 1),
        ],
    )
    assert positions(await house.all(ref)) == [3, 4]
    assert await house.numbers(ref) == (2, 0, 0)
    assert await house.messages.claimed(ref, FOREIGN) is None
    await house.messages.load(ref, 100, 0, 99, [plain(3), plain(4, expires_ms=now)])
    assert await house.numbers(ref) == (1, 0, 0)


async def test_a_dedup_key_goes_with_the_message_that_was_loaded_last(house: House) -> None:
    ref = await fresh(house, [plain(1, b"old", dedup="k"), plain(2, b"stays", dedup="l")])
    await house.messages.load(ref, 100, 5, 9, [plain(6, b"new", dedup="k")])
    assert await house.post(ref, "again", dedup="k") == [6]
    assert await house.post(ref, "again", dedup="l") == [2]
    assert [one.dedup for one in await dump(house, ref)] == [None, "l", "k"]
    await house.messages.load(ref, 100, 0, 9, [plain(1, b"old"), plain(6, b"new", dedup="k")])
    assert await house.numbers(ref) == (2, 0, 0)
    assert await house.post(ref, "free again", dedup="l") == [100]


async def test_keys_may_change_places_within_a_range(house: House) -> None:
    ref = await fresh(house, [plain(1, dedup="k"), plain(2, dedup="l"), plain(3)])
    swapped = [plain(1, dedup="l"), plain(2), plain(3, dedup="k")]
    await house.messages.load(ref, 100, 0, 99, swapped)
    assert await dump(house, ref) == swapped
    assert await house.post(ref, "again", "more", dedup="k") == [3, 3]


async def test_a_key_of_a_message_that_has_ended_is_no_hindrance(house: House) -> None:
    ref = await fresh(house, [plain(1, dedup="k", expires_ms=START_MS + 5000)])
    house.clock.turn(5)
    await house.messages.load(ref, 100, 1, 99, [plain(7, dedup="k")])
    assert await house.post(ref, "again", dedup="k") == [7]
    while await house.messages.expire(10):
        pass
    assert await house.numbers(ref) == (1, 0, 0)


async def test_gaps_and_great_positions_are_kept(house: House) -> None:
    far = (1 << 40) + 5
    ref = await fresh(house, [])
    await house.messages.load(ref, far + 1, 0, LAST, [plain(1), plain(1 << 20), plain(far)])
    assert await house.post(ref, "next") == [far + 1]
    assert positions(await house.messages.claim(ref, 9, 60, 60)) == [1, 1 << 20, far, far + 1]
    assert await house.numbers(ref) == (0, 4, 0)


# In bounded steps


async def test_many_are_copied_and_replaced(house: House, other: House) -> None:
    ref = await house.queue()
    await house.fill(ref, 4000)
    await house.fill(ref, 500, delay_s=60)
    for _ in range(20):
        await house.hold(ref, 20, ttl_s=60)
    await carry(house, other, ref, 1000)
    assert await dump(other, ref) == await dump(house, ref)
    assert await other.numbers(ref) == (3600, 400, 500)
    house.clock.turn(60)
    assert await other.numbers(ref) == (4500, 0, 0)
    assert positions(await other.messages.claim(ref, 20, 60, 60)) == positions(
        await house.messages.claim(ref, 20, 60, 60)
    )
    next_position, _ = await holding(house, ref)
    some = (await dump(house, ref))[::3]
    await other.messages.load(ref, next_position, 0, LAST, some)
    assert [one.position for one in await dump(other, ref)] == [one.position for one in some]
    await other.messages.load(ref, next_position, 0, LAST, [])
    assert await other.messages.volume() == (0, 0, 0, None, None, house.clock())
