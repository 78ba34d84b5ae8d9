"""Large numbers in PostgreSQL: what an operation touches does not grow with the queue.

Work is counted in pages that the server looks at (``EXPLAIN (ANALYZE, BUFFERS)``), with
statistics as a new table has them, that is none.
"""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from nusku.model import Draft, QueueRef, Record
from nusku.storage import Removal
from nusku.storage.postgres.link import Link
from tests.storage.harness import BACKENDS, House, bodies, positions

MANY = 100_000
SMALL = 400  # pages: what an operation may touch whatever the size of the queue
STEP = 15_000  # that with some hundreds of messages put back, or removed
ATTEMPTS = 20  # half a second apart, as long as others are there

OTHERS = """
    SELECT (SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()
                AND (backend_xmin IS NOT NULL OR backend_type = 'autovacuum worker')),
        (SELECT sum(vacuum_count + autovacuum_count + autoanalyze_count)
            FROM pg_stat_all_tables)
"""

pytestmark = [
    pytest.mark.only("postgresql"),
    pytest.mark.slow,
    pytest.mark.timeout(300),
]


class Pages:
    """Counts the pages that calls of our functions touch, by having them explained as they run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = 0
        self.exceeded: list[tuple[int, str]] = []
        call = Link.call

        async def explained(link: Link, statement: str, args: Any, timeout_s: float) -> list[Any]:
            if self.most and ".enter(" not in statement:
                touched = 0
                for attempt in range(ATTEMPTS):
                    before = await _others(link.connection)
                    async with transaction(link.connection):
                        [[plan]] = await link.connection.fetch(
                            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", *args
                        )
                    [found] = json.loads(plan)
                    plan = found["Plan"]
                    touched = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
                    # The first time it also reads what the functions are. And as long as anybody
                    # else, such as autovacuum, looks at the tables, dead rows are kept, and met.
                    after = await _others(link.connection)
                    disturbed = before[0] or after[0] or before[1] != after[1]
                    if attempt and (touched <= self.most or not disturbed):
                        break
                    if disturbed:
                        await asyncio.sleep(0.5)
                if touched > self.most:
                    self.exceeded.append((touched, statement.split("(", maxsplit=1)[0]))
            return await call(link, statement, args, timeout_s)

        monkeypatch.setattr(Link, "call", explained)


async def _others(connection: "asyncpg.Connection[Any]") -> tuple[int, int]:
    """How many others look at the tables, and how often they have been tidied up."""
    found = await connection.fetchrow(OTHERS)
    assert found is not None
    return found[0], found[1]


class transaction:  # noqa: N801 - used like a function
    """One that is rolled back."""

    def __init__(self, connection: "asyncpg.Connection[Any]") -> None:
        self._transaction = connection.transaction()

    async def __aenter__(self) -> None:
        await self._transaction.start()

    async def __aexit__(self, *error: object) -> None:
        await self._transaction.rollback()


@pytest.fixture
def backend() -> str:
    return "postgresql"


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pages]:
    pages = Pages(monkeypatch)
    yield pages
    pages.most = 0
    assert not pages.exceeded


async def hold_all(house: House, ref: QueueRef, ttl_s: int) -> None:
    claim = house.messages.claim
    while (await asyncio.gather(*(claim(ref, 100, ttl_s, 60) for _ in range(6))))[-1].claim:
        pass


async def test_with_many_in_flight_every_operation_touches_as_little_as_with_none(
    house: House, pages: Pages
) -> None:
    ref, other = await house.queue(), await house.queue("other")
    await house.fill(ref, MANY)
    await hold_all(house, ref, ttl_s=600)
    given = await house.post(ref, *map(str, range(100)))
    store = house.messages
    pages.most = SMALL
    assert bodies(await store.page(ref, 0, 10)) == [str(n) for n in range(10)]
    got = await store.claim(ref, 10, 60, 60)
    assert bodies(got) == [str(n) for n in range(10)]
    assert got.claim is not None
    assert (await store.count(ref))[:3] == (90, MANY + 10, 0)
    assert len((await store.page(ref, 0, 20, held=True)).messages) == 20
    assert await store.claimed(ref, got.claim) is not None
    assert await store.renew(ref, got.claim, 90, 60)
    await store.remove(ref, given[:5], Removal.HELD, [got.claim])
    await store.remove(ref, given[50:55], Removal.ANY)
    assert await store.release(ref, got.claim)
    assert bodies(await store.pop(ref, 10)) == [str(n) for n in range(5, 15)]
    await store.get(ref, given)
    assert (await store.claim(ref, 10, 60, 60, 3)).claim is not None
    assert len(await store.move(ref, given[60:65], other, None, {})) == 5
    await house.post(ref, "again", dedup="k")
    await house.post(ref, "again", dedup="k")
    assert (await store.volume())[:3] == (71, MANY + 10, 0)
    assert len(await store.dump(ref, 0, 50)) == 50
    assert len(await store.queues(None, 10)) == 2
    assert await store.expire(1000) == 0


async def test_with_many_free_behind_them_a_claim_touches_as_little_as_with_few(
    house: House, pages: Pages
) -> None:
    ref = await house.queue()
    await house.fill(ref, MANY)
    pages.most = SMALL
    assert positions(await house.messages.claim(ref, 20, 60, 60)) == list(range(1, 21))
    assert positions(await house.messages.pop(ref, 20)) == list(range(21, 41))
    assert positions(await house.messages.page(ref, 0, 20)) == list(range(41, 61))
    assert await house.numbers(ref) == (MANY - 40, 20, 0)


async def test_what_has_passed_through_a_queue_is_not_walked_over_again(
    house: House, pages: Pages
) -> None:
    """As if vacuum never came."""
    ref = await house.queue()
    await house.fill(ref, 50)
    for _ in range(100):
        await house.fill(ref, 500)
        got = await asyncio.gather(*(house.messages.claim(ref, 100, 600, 60) for _ in range(5)))
        await asyncio.gather(
            *(
                house.messages.remove(ref, positions(one), Removal.HELD, [one.claim or ""])
                for one in got
            )
        )
    pages.most = SMALL
    got_one = await house.messages.claim(ref, 10, 60, 60)
    assert len(got_one.messages) == 10
    assert (await house.messages.count(ref))[:3] == (40, 10, 0)
    assert len((await house.messages.page(ref, 0, 10)).messages) == 10
    assert len((await house.messages.page(ref, 0, 50, held=True)).messages) == 50
    assert len((await house.messages.pop(ref, 10)).messages) == 10
    await house.post(ref, "more")
    assert await house.messages.expire(100) == 0


async def test_when_many_claims_lapse_in_the_same_second_nothing_stalls(
    house: House, pages: Pages
) -> None:
    ref = await house.queue()
    await house.fill(ref, MANY)
    await hold_all(house, ref, ttl_s=60)
    assert await house.numbers(ref) == (0, MANY, 0)
    house.clock.turn(60)
    pages.most = SMALL
    assert await house.numbers(ref) == (MANY, 0, 0)
    assert (await house.messages.volume())[:3] == (MANY, 0, 0)
    held: set[int] = set()
    pages.most = STEP
    for _ in range(5):
        page = positions(await house.messages.page(ref, 0, 20))
        assert len(page) == 20
        assert page == sorted(set(page) - held)
        taken = positions(await house.messages.claim(ref, 20, 600, 60))
        assert len(taken) == 20
        assert not held & set(taken)
        held.update(taken)
        assert await house.numbers(ref) == (MANY - len(held), len(held), 0)


async def test_with_many_expired_at_the_head_what_is_behind_them_is_found(
    house: House, pages: Pages
) -> None:
    ref = await house.queue()
    await house.fill(ref, MANY, ttl_s=60)
    await house.post(ref, *map(str, range(50)))
    house.clock.turn(60)
    counts = await house.messages.count(ref)
    assert counts[:3] == (50, 0, 0)
    assert counts.oldest is not None
    assert counts.newest is not None
    assert bodies([counts.oldest, counts.newest]) == ["0", "49"]
    assert bodies(await house.messages.claim(ref, 2, 60, 60)) == ["0", "1"]
    assert bodies(await house.messages.page(ref, 0, 2)) == ["2", "3"]
    assert bodies(await house.messages.page(ref, 0, 2, held=True)) == ["0", "1"]
    pages.most = 2 * SMALL  # not all that is dead has been walked over yet
    for n in range(4, 10, 2):
        assert (await house.messages.count(ref))[:3] == (52 - n, n - 2, 0)
        assert bodies(await house.messages.claim(ref, 2, 60, 60)) == [str(n - 2), str(n - 1)]
        assert bodies(await house.messages.page(ref, 0, 2)) == [str(n), str(n + 1)]
    pages.most = STEP
    assert await house.messages.expire(1000) == 1000


async def test_a_queue_of_many_is_cleared_and_dropped_at_once_and_emptied_in_steps(
    house: House, pages: Pages
) -> None:
    ref, other = await house.queue(), await house.queue("other")
    await house.fill(ref, MANY)
    await house.post(other, "stays")
    pages.most = SMALL
    await house.messages.clear(ref)
    assert await house.numbers(ref) == (0, 0, 0)
    [position] = await house.post(ref, "new")
    assert position > MANY
    await house.messages.drop(ref)
    assert (await house.messages.volume())[:3] == (1, 0, 0)
    pages.most = STEP
    assert await house.messages.expire(1000) == 1000
    pages.most = 0
    while await house.messages.expire(20_000):
        pass
    assert await house.free(other) == ["stays"]


async def test_many_queues_cost_a_single_one_nothing(house: House, pages: Pages) -> None:
    refs = await asyncio.gather(*(house.queue(f"q{n}") for n in range(2000)))
    await asyncio.gather(*(house.post(ref, "x") for ref in refs))
    pages.most = SMALL
    for ref in refs[::400]:
        assert (await house.messages.count(ref))[:3] == (1, 0, 0)
        await house.post(ref, "y")
        assert len((await house.messages.claim(ref, 9, 60, 60)).messages) == 2
    pages.most = 2000 * 12
    assert len(await house.messages.occupied("queue")) == 2000


async def test_with_many_records_one_is_found_made_changed_and_deleted_at_no_cost(
    house: House, pages: Pages
) -> None:
    store = house.records
    for start in range(0, 20_000, 2000):
        await store.load(
            [
                Record("sub", "p1", f"{n:06}", b"{}" * 50, 1, "crowd", f"crowd/{n}")
                for n in range(start, start + 2000)
            ]
        )
    for n in (0, 10_000, 19_999):
        await store.insert(Record("sub", "p1", f"{n:06}few", b"{}", 1, "few", f"few/{n}"))
    pages.most = SMALL
    page = await store.page("sub", "p1", "", 10, parent="few")
    assert [one.unique for one in page] == ["few/0", "few/10000", "few/19999"]
    assert await store.page("sub", "p1", page[0].key, 1, parent="few") == page[1:2]
    assert len(await store.page("sub", "p1", "010000", 20, parent="crowd")) == 20
    assert len(await store.page("sub", "p1", "010000", 20)) == 20
    assert await store.find("sub", "p1", "crowd/10000") is not None
    assert await store.find("sub", "p1", "nobody") is None
    assert await store.insert(Record("sub", "p1", "new", b"", 1, "crowd", "mine"), 60)
    assert await store.update(Record("sub", "p1", "new", b"", 2, unique="my own"), 90)
    assert await store.ended("sub", (0, ""), 100) == []
    assert len(await store.dump(("sub", "p1", "010000"), 50)) == 50
    assert await store.delete("sub", "p1", "new")


async def test_a_body_that_is_large_is_not_written_again_by_a_claim(tmp_path: Path) -> None:
    uri = BACKENDS["postgresql"](tmp_path)
    house = House(uri)
    await house.open()
    ref = await house.queue()
    await house.messages.add([(ref, [Draft(b"x" * 100_000, 600)] * 10)])
    connection = await asyncpg.connect(uri)
    before = await connection.fetchval("SELECT pg_current_wal_insert_lsn()")
    await house.hold(ref, 10)
    written = await connection.fetchval("SELECT pg_current_wal_insert_lsn() - $1::pg_lsn", before)
    await connection.close()
    await house.close()
    assert written < 200_000
