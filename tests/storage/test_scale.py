"""Large numbers: answers stay right, and no operation works through all there is."""

import asyncio
import re
import sqlite3
from contextlib import closing

import pytest

from nusku.model import QueueRef
from nusku.storage import Removal, sqlite_path
from tests.storage.harness import House, bodies, positions
from tests.storage.probe import SMALL, Probe

MANY = 200_000
STEP = 100_000  # instructions: what an operation that also tidies up may cost

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


async def hold_all(house: House, ref: QueueRef, ttl_s: int) -> None:
    """Claim everything that is free, twenty at a time as clients do."""
    claim = house.messages.claim
    while (await asyncio.gather(*(claim(ref, 20, ttl_s, 60) for _ in range(50))))[-1].claim:
        pass


async def tidy(house: House) -> None:
    while await house.messages.expire(2000):
        pass


async def test_with_many_in_flight_every_operation_costs_as_little_as_with_none(
    house: House, probe: Probe
) -> None:
    ref = await house.queue()
    await house.fill(ref, MANY)
    await hold_all(house, ref, ttl_s=600)
    given = await house.post(ref, *map(str, range(100)))
    store = house.messages

    async with probe.watch(SMALL):
        assert bodies(await store.page(ref, 0, 10)) == [str(n) for n in range(10)]
    async with probe.watch(SMALL):
        got = await store.claim(ref, 10, 60, 60)
    assert bodies(got) == [str(n) for n in range(10)]
    assert got.claim is not None
    async with probe.watch(SMALL):
        assert (await store.count(ref))[:3] == (90, MANY + 10, 0)
    async with probe.watch(SMALL):
        assert len((await store.page(ref, 0, 20, held=True)).messages) == 20
    async with probe.watch(SMALL):
        assert await store.claimed(ref, got.claim) is not None
    async with probe.watch(SMALL):
        await store.renew(ref, got.claim, 90, 60)
    async with probe.watch(SMALL):
        await store.remove(ref, given[:5], Removal.HELD, [got.claim])
    async with probe.watch(SMALL):
        await store.release(ref, got.claim)
    async with probe.watch(SMALL):
        assert bodies(await store.pop(ref, 10)) == [str(n) for n in range(5, 15)]
    async with probe.watch(SMALL):
        await store.get(ref, given)
    async with probe.watch(SMALL):
        assert (await store.volume())[:3] == (85, MANY, 0)
    async with probe.watch(STEP):
        assert await store.expire(1000) == 0
    check_plans(house, probe)


def check_plans(house: House, probe: Probe) -> None:
    """No statement that was seen walks over all messages, claims or tallies, or sorts."""
    path = sqlite_path(house.uri)
    seen = 0
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        for statement in probe.statements:
            if not re.match(r"(SELECT|UPDATE|DELETE|INSERT|REPLACE)\b", statement):
                continue
            for *_, step in db.execute(f"EXPLAIN QUERY PLAN {statement}"):
                assert not re.match(r"SCAN (messages|holds|tallies|m|t|h)\b", step), statement
                assert "TEMP B-TREE FOR ORDER BY" not in step, statement
                seen += 1
    assert seen > 10


async def test_with_many_free_behind_them_a_claim_costs_as_little_as_with_few(
    house: House, probe: Probe
) -> None:
    ref = await house.queue()
    await house.fill(ref, MANY)
    order = positions((await house.messages.page(ref, 0, 60)).messages)
    async with probe.watch(SMALL):
        assert positions(await house.messages.claim(ref, 20, 60, 60)) == order[:20]
    async with probe.watch(SMALL):
        assert positions(await house.messages.pop(ref, 20)) == order[20:40]
    async with probe.watch(SMALL):
        assert positions(await house.messages.page(ref, 0, 20)) == order[40:60]
    async with probe.watch(SMALL):
        assert await house.numbers(ref) == (MANY - 40, 20, 0)


async def test_when_many_claims_lapse_in_the_same_second_nothing_stalls(
    house: House, probe: Probe
) -> None:
    ref = await house.queue()
    await house.fill(ref, MANY)
    await hold_all(house, ref, ttl_s=60)
    assert await house.numbers(ref) == (0, MANY, 0)
    house.clock.turn(60)
    held: set[int] = set()
    async with probe.watch(SMALL):
        assert await house.numbers(ref) == (MANY, 0, 0)
    async with probe.watch(SMALL):
        assert (await house.messages.volume())[:3] == (MANY, 0, 0)
    for _ in range(20):
        async with probe.watch(STEP):
            page = positions(await house.messages.page(ref, 0, 20))
        assert len(page) == 20
        assert page == sorted(set(page) - held)
        async with probe.watch(STEP):
            taken = positions(await house.messages.claim(ref, 20, 600, 60))
        assert len(taken) == 20
        assert not held & set(taken)
        held.update(taken)
        async with probe.watch(SMALL):
            assert await house.numbers(ref) == (MANY - len(held), len(held), 0)
    await tidy(house)
    assert await house.numbers(ref) == (MANY - len(held), len(held), 0)
    async with probe.watch(SMALL):
        assert len((await house.messages.claim(ref, 20, 600, 60)).messages) == 20


async def test_when_many_delays_end_in_the_same_second_nothing_stalls(
    house: House, probe: Probe
) -> None:
    ref = await house.queue()
    await house.fill(ref, MANY, delay_s=60)
    assert await house.numbers(ref) == (0, 0, MANY)
    house.clock.turn(60)
    async with probe.watch(SMALL):
        assert await house.numbers(ref) == (MANY, 0, 0)
    async with probe.watch(STEP):
        assert len((await house.messages.claim(ref, 20, 600, 60)).messages) == 20
    async with probe.watch(STEP):
        assert len((await house.messages.pop(ref, 20)).messages) == 20
    async with probe.watch(SMALL):
        assert await house.numbers(ref) == (MANY - 40, 20, 0)


async def test_with_many_expired_at_the_head_what_is_behind_them_is_found(
    house: House, probe: Probe
) -> None:
    ref = await house.queue()
    await house.fill(ref, MANY, ttl_s=60)
    await house.post(ref, *map(str, range(50)))
    house.clock.turn(60)
    everything = 20 * MANY  # once each dead row may be passed over, in steps
    async with probe.watch(everything):
        counts = await house.messages.count(ref)
    assert counts[:3] == (50, 0, 0)
    assert counts.oldest is not None
    assert counts.newest is not None
    assert bodies([counts.oldest, counts.newest]) == ["0", "49"]
    async with probe.watch(everything):
        assert bodies(await house.messages.claim(ref, 2, 60, 60)) == ["0", "1"]
    async with probe.watch(everything):
        assert bodies(await house.messages.page(ref, 0, 2)) == ["2", "3"]
    async with probe.watch(everything):
        assert bodies(await house.messages.page(ref, 0, 2, held=True)) == ["0", "1"]
    for n in range(4, 10, 2):  # but not again and again
        async with probe.watch(SMALL):
            assert (await house.messages.count(ref))[:3] == (52 - n, n - 2, 0)
        async with probe.watch(SMALL):
            assert bodies(await house.messages.claim(ref, 2, 60, 60)) == [str(n - 2), str(n - 1)]
        async with probe.watch(SMALL):
            assert bodies(await house.messages.page(ref, 0, 2)) == [str(n), str(n + 1)]
    async with probe.watch(STEP):
        assert await house.messages.expire(1000) == 1000
    await tidy(house)
    assert await house.numbers(ref) == (42, 8, 0)
    assert (await house.messages.volume())[:3] == (42, 8, 0)


async def test_with_many_expired_at_the_end_the_newest_is_found(house: House, probe: Probe) -> None:
    ref = await house.queue()
    await house.post(ref, "a", "b")
    await house.fill(ref, MANY, ttl_s=60)
    house.clock.turn(60)
    async with probe.watch(20 * MANY):
        counts = await house.messages.count(ref)
    assert counts[:3] == (2, 0, 0)
    assert counts.newest is not None
    assert counts.newest.body == b"b"
    assert bodies(await house.messages.pop(ref, 9)) == ["a", "b"]
    assert (await house.messages.count(ref))[:5] == (0, 0, 0, None, None)


async def test_when_many_expire_as_their_claims_lapse_the_rest_is_found(house: House) -> None:
    ref = await house.queue()
    await house.fill(ref, MANY // 4, ttl_s=60)
    claim = house.messages.claim
    while (await asyncio.gather(*(claim(ref, 20, 60, 0) for _ in range(50))))[-1].claim:
        pass
    await house.post(ref, "alive")
    await house.hold(ref, ttl_s=60)
    house.clock.turn(60)
    assert await house.numbers(ref) == (1, 0, 0)
    assert await house.free(ref) == ["alive"]
    assert bodies(await house.messages.claim(ref, 5, 60, 60)) == ["alive"]


async def test_a_queue_of_many_is_cleared_and_dropped_at_once_and_emptied_in_steps(
    house: House, probe: Probe
) -> None:
    ref, other = await house.queue(), await house.queue("other")
    await house.fill(ref, MANY)
    await house.post(other, "stays")
    async with probe.watch(SMALL):
        await house.messages.clear(ref)
    assert await house.numbers(ref) == (0, 0, 0)
    [position] = await house.post(ref, "new")
    assert position > MANY
    async with probe.watch(SMALL):
        await house.messages.drop(ref)
    assert (await house.messages.volume())[:3] == (1, 0, 0)
    async with probe.watch(STEP):
        assert await house.messages.expire(1000) == 1000
    await tidy(house)
    assert await house.free(other) == ["stays"]
    assert await house.free(await house.queue()) == []


async def test_a_store_of_many_messages_opens_without_reading_them(
    house: House, probe: Probe
) -> None:
    ref = await house.queue()
    await house.fill(ref, MANY)
    await hold_all(house, ref, ttl_s=600)
    await house.fill(ref, 100)
    await house.reopen()
    async with probe.watch(SMALL):
        assert len((await house.messages.claim(ref, 1, 60, 60)).messages) == 1
    async with probe.watch(SMALL):
        assert (await house.messages.count(ref))[:3] == (99, MANY + 1, 0)


async def test_many_queues_cost_a_single_one_nothing(house: House, probe: Probe) -> None:
    refs = await asyncio.gather(*(house.queue(f"q{n}") for n in range(5000)))
    for start in range(0, 5000, 500):
        await asyncio.gather(*(house.post(ref, "x") for ref in refs[start : start + 500]))
    for ref in refs[::1000]:
        async with probe.watch(SMALL):
            assert (await house.messages.count(ref))[:3] == (1, 0, 0)
        async with probe.watch(SMALL):
            assert len((await house.messages.claim(ref, 9, 60, 60)).messages) == 1
