"""Records taken from one store to another, as they are."""

import pytest
from msgspec.structs import replace

from nusku.model import Record
from nusku.storage import Taken
from tests.storage.harness import START_MS, House

FIRST = ("", "", "")


def record(key: str, **fields: object) -> Record:
    base = Record("k", "p", key, b"doc", 3, created_ms=START_MS - 5000)
    return replace(base, **fields)


async def all_of(house: House) -> list[Record]:
    return [replace(one, read_ms=0) for one in await house.records.dump(FIRST, 1000)]


async def test_records_of_all_kinds_are_dumped_by_place_in_pages(house: House) -> None:
    places = [
        (kind, project, key)
        for kind in ("a", "b-c", "ü")
        for project in ("", "P", "p", "é")
        for key in ("", "/", "A", "a", "aa", "z" * 60)
    ]
    for place in reversed(places):
        await house.records.insert(Record(*place, b"x"))
    for limit in (1, 7, 1000):
        found: list[tuple[str, str, str]] = []
        while page := await house.records.dump(found[-1] if found else FIRST, limit):
            assert len(page) <= limit
            found += [(one.kind, one.project, one.key) for one in page]
        assert found == sorted(places)


async def test_a_dump_shows_ended_ones_and_when_it_was_read(house: House) -> None:
    await house.records.insert(Record("k", "p", "a", b"1", parent="q", unique="n"), 5)
    await house.records.insert(Record("k", "p", "b", b"2"))
    house.clock.turn(5)
    ended, live = await house.records.dump(FIRST, 9)
    assert (ended.key, ended.ends_ms, ended.parent) == ("a", START_MS + 5000, "q")
    assert live == Record("k", "p", "b", b"2", created_ms=START_MS, read_ms=START_MS + 5000)


async def test_loaded_records_are_as_they_were(house: House) -> None:
    records = [
        record("a"),
        record("b", parent="q", unique="n", ends_ms=START_MS + 5000),
        record("c", version=77, doc=b"\x00\xff", created_ms=0),
        record("d", ends_ms=START_MS - 1000, parent="q"),
    ]
    await house.records.load(records)
    await house.records.load([])
    for _ in range(2):
        assert await all_of(house) == records
        await house.reopen()
    found = await house.records.find("k", "p", "n")
    assert found is not None
    assert found.key == "b"
    assert [one.key for one in await house.records.page("k", "p", "", 9, parent="q")] == ["b"]
    assert await house.records.count("k", "p") == 3
    assert [one.key for one in await house.records.ended("k", (0, ""), 9)] == ["d"]
    house.clock.turn(5)
    assert await house.records.get("k", "p", "b") is None
    assert await house.records.update(record("c", version=78))
    assert not await house.records.update(record("c", version=78))


async def test_loading_replaces_what_has_the_same_place(house: House) -> None:
    await house.records.insert(Record("k", "p", "a", b"old", parent="q", unique="n"), 60)
    await house.records.insert(Record("k", "p", "b", b"stays"))
    await house.records.load([record("a", doc=b"new", parent="r")])
    a, b = await house.records.dump(FIRST, 9)
    assert (a.doc, a.version, a.parent, a.unique, a.ends_ms) == (b"new", 3, "r", None, None)
    assert b.doc == b"stays"
    assert await house.records.page("k", "p", "", 9, parent="q") == []
    assert await house.records.find("k", "p", "n") is None
    assert await house.records.insert(Record("k", "p", "c", b"", unique="n"))


async def test_a_loaded_record_takes_its_name_from_who_has_it(house: House) -> None:
    await house.records.insert(Record("k", "p", "a", b"1", unique="n"))
    await house.records.load([record("b", unique="n")])
    found = await house.records.find("k", "p", "n")
    assert found is not None
    assert found.key == "b"
    a = await house.records.get("k", "p", "a")
    assert a is not None
    assert a.unique is None
    with pytest.raises(Taken):
        await house.records.update(Record("k", "p", "a", b"2", 2, unique="n"))
    await house.records.load([record("a", unique="n"), record("b", unique="m")])
    assert [one.unique for one in await all_of(house)] == ["n", "m"]


async def test_an_ended_record_takes_no_name(house: House) -> None:
    await house.records.insert(Record("k", "p", "a", b"1", unique="n"))
    await house.records.load([record("b", unique="n", ends_ms=START_MS)])
    found = await house.records.find("k", "p", "n")
    assert found is not None
    assert found.key == "a"
    assert len(await house.records.dump(FIRST, 9)) == 2


async def test_many_records_are_loaded_at_once(house: House) -> None:
    records = [record(f"{n:04}", unique=f"n{n}", parent="q") for n in range(1000)]
    await house.records.load(records)
    assert await all_of(house) == records
    assert await house.records.count("k", "p") == 1000
