"""Large numbers of records: a page, a name and an end are found without looking at the others."""

import asyncio
import sqlite3
from contextlib import closing

import pytest

from nusku.model import Draft, Record
from nusku.storage import Taken, sqlite_path
from tests.storage.harness import START_MS, House
from tests.storage.probe import LONGEST, SMALL, Probe

MANY = 100_000

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


async def subscribe(house: House, parent: str, number: int, ttl_s: int | None = None) -> None:
    """So many subscriptions of one queue; their keys lie among those of the others."""
    insert = house.records.insert
    for start in range(0, number, 1000):
        done = await asyncio.gather(
            *(
                insert(
                    Record("sub", "p1", f"{n:06}{parent}", b"{}" * 50, 1, parent, f"{parent}/{n}"),
                    ttl_s,
                )
                for n in range(start, start + 1000)
            )
        )
        assert all(done)


async def test_with_many_subscriptions_of_one_queue_those_of_another_cost_as_little_as_alone(
    house: House, probe: Probe
) -> None:
    await subscribe(house, "crowd", MANY)
    store = house.records
    for n in (0, MANY // 2, MANY - 1):
        await store.insert(Record("sub", "p1", f"{n:06}few", b"{}", 1, "few", f"few/{n}"))

    async with probe.watch(SMALL):
        page = await store.page("sub", "p1", "", 10, parent="few")
    assert [one.unique for one in page] == ["few/0", f"few/{MANY // 2}", f"few/{MANY - 1}"]
    async with probe.watch(SMALL):
        assert await store.page("sub", "p1", page[0].key, 1, parent="few") == page[1:2]
    async with probe.watch(SMALL):
        assert await store.page("sub", "p1", "", 10, parent="few", ended=True) == page
    async with probe.watch(SMALL):
        assert await store.page("sub", "p1", "", 10, lambda _: True, parent="few") == page
    async with probe.watch(SMALL):
        assert await store.page("sub", "p1", "", 10, parent="none") == []

    async with probe.watch(SMALL):
        page = await store.page("sub", "p1", f"{MANY // 2:06}", 20, parent="crowd")
    assert [one.unique for one in page] == [f"crowd/{MANY // 2 + n}" for n in range(20)]
    async with probe.watch(SMALL):
        assert len(await store.page("sub", "p1", f"{MANY // 2:06}", 20)) == 20
    check_plans(house, probe)


async def test_with_many_subscriptions_one_is_found_made_changed_and_deleted_at_no_cost(
    house: House, probe: Probe
) -> None:
    await subscribe(house, "crowd", MANY)
    store = house.records
    async with probe.watch(SMALL):
        found = await store.find("sub", "p1", f"crowd/{MANY // 2}")
    assert found is not None
    async with probe.watch(SMALL):
        assert await store.find("sub", "p1", "nobody") is None
    async with probe.watch(SMALL):
        assert not await store.insert(Record("sub", "p1", "new", b"", unique=found.unique))
    async with probe.watch(SMALL):
        assert await store.insert(Record("sub", "p1", "new", b"", 1, "crowd", "mine"), 60)
    async with probe.watch(SMALL):
        assert await store.update(Record("sub", "p1", "new", b"", 2, unique="my own"), 90)
    async with probe.watch(SMALL):
        with pytest.raises(Taken):
            await store.update(Record("sub", "p1", "new", b"", 3, unique=found.unique))
    async with probe.watch(SMALL):
        assert await store.ended("sub", (0, ""), 100) == []
    async with probe.watch(SMALL):
        assert await store.delete("sub", "p1", "new")
    check_plans(house, probe)


async def test_when_many_records_end_in_the_same_second_they_are_listed_in_cheap_steps(
    house: House, probe: Probe
) -> None:
    await subscribe(house, "crowd", MANY // 2, ttl_s=60)
    await subscribe(house, "stay", MANY // 2)
    house.clock.turn(60)
    store, end = house.records, START_MS + 60_000
    for marker in ((0, ""), (end, f"{MANY // 4:06}"), (end, f"{MANY // 2 - 100:06}")):
        async with probe.watch(SMALL):
            found = await store.ended("sub", marker, 100)
        assert len(found) == 100
        assert found[0].key >= marker[1]
    async with probe.watch(SMALL):
        assert await store.ended("sub", (end, "x"), 100) == []
    async with probe.watch(SMALL):
        assert await store.insert(Record("sub", "p1", "new", b"", unique="crowd/5"))
    async with probe.watch(SMALL):
        assert len(await store.page("sub", "p1", "", 20, parent="stay")) == 20
    check_plans(house, probe)


async def test_what_is_occupied_costs_a_little_for_each_queue_and_nothing_for_its_messages(
    house: House, probe: Probe
) -> None:
    full = await house.queue("full", kind="delivery")
    await house.fill(full, MANY // 2)
    await house.fill(await house.queue("other"), MANY // 2)
    async with probe.watch(SMALL):
        [one] = await house.messages.occupied("delivery")
    assert one == (full.key, MANY // 2, START_MS)
    refs = await asyncio.gather(*(house.queue(f"{n}", kind="delivery") for n in range(5000)))
    for start in range(0, 5000, 250):
        await house.messages.add(
            [(ref, [Draft(b"x", 60)] * 3) for ref in refs[start : start + 250]]
        )
    async with probe.watch(5000 * 100, longest=5000 * 100):
        assert len(await house.messages.occupied("delivery")) == 5001
    async with probe.watch(SMALL):
        assert await house.messages.occupied("failed") == []


async def test_what_is_occupied_is_right_with_many_expired_at_the_head(
    house: House, probe: Probe
) -> None:
    ref = await house.queue("s", kind="delivery")
    await house.fill(ref, MANY // 2, ttl_s=60)
    house.clock.turn(30)
    await house.post(ref, "alive")
    house.clock.turn(30)
    async with probe.watch(20 * MANY // 2, longest=20 * MANY // 2):
        [one] = await house.messages.occupied("delivery")
    assert one == (ref.key, 1, START_MS + 30_000)


def check_plans(house: House, probe: Probe) -> None:
    """Every statement about records that was seen searches by as much as it knows, and sorts
    nothing.
    """
    seen = 0
    with closing(sqlite3.connect(f"file:{sqlite_path(house.uri)}?mode=ro", uri=True)) as db:
        for statement in probe.statements:
            if "records" not in statement or statement.startswith("INSERT"):
                continue
            for *_, step in db.execute(f"EXPLAIN QUERY PLAN {statement}"):
                assert step.startswith("SEARCH records USING "), (step, statement)
                if "AND parent = " in statement:
                    assert "parent=? AND key>?" in step, (step, statement)
                seen += 1
    assert seen > 3
    assert probe.longest <= LONGEST
