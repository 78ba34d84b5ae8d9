"""Records: small documents by kind, project and key."""

import asyncio

import pytest
from msgspec.structs import replace

from nusku.model import Record
from tests.storage.harness import START_MS, House


def record(key: str = "k", doc: bytes = b"{}", version: int = 1, project: str = "p1") -> Record:
    return Record("queue", project, key, doc, version)


def kept(record: Record) -> Record:
    """What is read of it while the clock stands still."""
    return replace(record, created_ms=START_MS, read_ms=START_MS)


async def fill(house: House, *keys: str, project: str = "p1") -> None:
    for key in keys:
        assert await house.records.insert(record(key, project=project))


async def test_a_record_is_returned_as_it_was_inserted(house: House) -> None:
    one = record(doc=b'{"_default": 1}\x00\xff')
    assert await house.records.insert(one)
    assert await house.records.get("queue", "p1", "k") == kept(one)


async def test_the_times_of_a_record_are_the_stores_to_say(house: House) -> None:
    await house.records.insert(Record("queue", "p1", "k", b"", created_ms=1, ends_ms=2, read_ms=3))
    house.clock.turn(0.001)
    found = await house.records.get("queue", "p1", "k")
    assert found is not None
    assert (found.created_ms, found.ends_ms, found.read_ms) == (START_MS, None, START_MS + 1)


async def test_an_update_leaves_the_time_of_creation(house: House) -> None:
    await house.records.insert(record())
    house.clock.turn(5)
    await house.records.update(record(doc=b"two", version=2))
    assert await house.records.get("queue", "p1", "k") == replace(
        record(doc=b"two", version=2), created_ms=START_MS, read_ms=START_MS + 5000
    )


async def test_a_key_is_inserted_once(house: House) -> None:
    assert await house.records.insert(record(doc=b"first"))
    assert not await house.records.insert(record(doc=b"second"))
    assert await house.records.get("queue", "p1", "k") == kept(record(doc=b"first"))


async def test_a_record_that_is_not_there_is_none(house: House) -> None:
    await fill(house, "k")
    assert await house.records.get("queue", "p1", "K") is None
    assert await house.records.get("queue", "p2", "k") is None
    assert await house.records.get("topic", "p1", "k") is None


async def test_kinds_and_projects_are_apart(house: House) -> None:
    records = [
        Record("queue", "p1", "k", b"1"),
        Record("topic", "p1", "k", b"2"),
        Record("queue", "p2", "k", b"3"),
        Record("queue", "", "k", b"4"),
    ]
    for one in records:
        assert await house.records.insert(one)
    for one in records:
        assert await house.records.get(one.kind, one.project, one.key) == kept(one)


async def test_an_update_replaces_the_version_before_it(house: House) -> None:
    await house.records.insert(record())
    assert await house.records.update(record(doc=b"two", version=2))
    assert await house.records.update(record(doc=b"three", version=3))
    assert await house.records.get("queue", "p1", "k") == kept(record(doc=b"three", version=3))


@pytest.mark.parametrize("version", [1, 2, 4])
async def test_an_update_of_any_other_version_does_nothing(house: House, version: int) -> None:
    await house.records.insert(record())
    await house.records.update(record(doc=b"two", version=2))
    assert not await house.records.update(record(doc=b"wrong", version=version))
    assert await house.records.get("queue", "p1", "k") == kept(record(doc=b"two", version=2))


async def test_an_update_of_nothing_does_nothing(house: House) -> None:
    assert not await house.records.update(record(version=2))
    assert await house.records.get("queue", "p1", "k") is None


async def test_of_concurrent_updates_one_wins(house: House) -> None:
    await house.records.insert(record())
    won = await asyncio.gather(
        *(house.records.update(record(doc=b"%d" % n, version=2)) for n in range(20))
    )
    assert sum(won) == 1
    assert await house.records.get("queue", "p1", "k") == kept(
        record(doc=b"%d" % won.index(True), version=2)
    )


async def test_of_concurrent_inserts_one_wins(house: House) -> None:
    won = await asyncio.gather(*(house.records.insert(record(doc=b"%d" % n)) for n in range(20)))
    assert sum(won) == 1
    assert await house.records.get("queue", "p1", "k") == kept(record(doc=b"%d" % won.index(True)))


async def test_a_deleted_record_is_gone_and_its_key_free(house: House) -> None:
    await house.records.insert(record())
    assert await house.records.delete("queue", "p1", "k")
    assert await house.records.get("queue", "p1", "k") is None
    assert not await house.records.delete("queue", "p1", "k")
    assert await house.records.insert(record(doc=b"again"))


@pytest.mark.parametrize("doc", [b"", b"{}", b"{} "], ids=["empty", "older", "longer"])
async def test_what_says_something_else_is_not_deleted(doc: bytes, house: House) -> None:
    await fill(house, "k")
    await house.records.update(record(doc=b"\x00new", version=2))
    assert await house.records.delete("queue", "p1", "k", doc=doc) is None
    assert await house.records.get("queue", "p1", "k") == kept(record(doc=b"\x00new", version=2))


async def test_what_says_just_that_is_deleted(house: House) -> None:
    await fill(house, "k", "other")
    gone = await house.records.delete("queue", "p1", "k", doc=b"{}")
    assert gone == kept(record())
    assert await house.records.get("queue", "p1", "k") is None
    assert await house.records.get("queue", "p1", "other") is not None


async def test_deleting_spares_other_kinds_projects_and_keys(house: House) -> None:
    await fill(house, "k", "k2")
    await house.records.insert(Record("topic", "p1", "k", b""))
    await house.records.insert(Record("queue", "p2", "k", b""))
    await house.records.delete("queue", "p1", "k")
    assert await house.records.count("queue", "p1") == 1
    assert await house.records.count("topic", "p1") == 1
    assert await house.records.count("queue", "p2") == 1


async def keys(house: House, after: str, limit: int) -> list[str]:
    return [one.key for one in await house.records.page("queue", "p1", after, limit)]


@pytest.mark.parametrize("key", ["", "\0", "a\0", "\0a", "é", "a" * 5000])
async def test_what_is_no_key_is_not_there(house: House, key: str) -> None:
    await house.records.insert(Record("queue", "p1", "a", b""))
    assert await house.records.get("queue", "p1", key) is None
    assert not await house.records.delete("queue", "p1", key)
    assert await keys(house, "", 9) == ["a"]


@pytest.mark.parametrize(
    ("after", "behind"),
    [
        ("\0", ["a", "b"]),
        ("a\0", ["b"]),
        ("a\0b", ["b"]),
        ("~", []),
        ("é", []),
        ("a" * 5000, ["b"]),
    ],
)
async def test_a_page_may_begin_behind_what_is_no_key(
    house: House, after: str, behind: list[str]
) -> None:
    for key in "ab":
        await house.records.insert(Record("queue", "p1", key, b""))
    assert await keys(house, after, 9) == behind


async def test_a_page_is_by_key_behind_the_marker_and_up_to_its_limit(house: House) -> None:
    await fill(house, "b", "a", "d", "c")
    await fill(house, "x", project="p2")
    assert await keys(house, "", 9) == ["a", "b", "c", "d"]
    assert await keys(house, "", 2) == ["a", "b"]
    assert await keys(house, "b", 2) == ["c", "d"]
    assert await keys(house, "bb", 1) == ["c"]
    assert await keys(house, "d", 9) == []


async def test_keys_are_ordered_by_their_characters(house: House) -> None:
    await fill(house, "a", "Z", "_", "10", "9", "a-b", "a.b", "A")
    assert await keys(house, "", 99) == sorted(["a", "Z", "_", "10", "9", "a-b", "a.b", "A"])


async def test_a_page_is_filled_with_those_the_filter_lets_through(house: House) -> None:
    for n in range(300):
        await house.records.insert(record(f"{n:03}", b"yes" if n % 50 == 49 else b"no"))
    found = await house.records.page("queue", "p1", "060", 3, lambda one: one.doc == b"yes")
    assert [one.key for one in found] == ["099", "149", "199"]
    found = await house.records.page("queue", "p1", "199", 3, lambda one: one.doc == b"yes")
    assert [one.key for one in found] == ["249", "299"]
    assert await house.records.page("queue", "p1", "", 3, lambda one: one.doc == b"maybe") == []


async def test_pages_make_up_the_whole_project(house: House) -> None:
    await fill(house, *(f"{n:04}" for n in range(500)))
    seen: list[str] = []
    while page := await keys(house, seen[-1] if seen else "", 7):
        seen += page
    assert seen == [f"{n:04}" for n in range(500)]


async def test_counts_are_those_of_one_kind_in_one_project(house: House) -> None:
    await fill(house, "a", "b", "c")
    await fill(house, "a", project="p2")
    assert await house.records.count("queue", "p1") == 3
    assert await house.records.count("queue", "p2") == 1
    assert await house.records.count("topic", "p1") == 0


async def test_records_survive_a_restart(house: House) -> None:
    await fill(house, "a", "b")
    await house.records.update(record("a", b"new", 2))
    await house.records.delete("queue", "p1", "b")
    await house.reopen()
    assert list(await house.records.page("queue", "p1", "", 9)) == [kept(record("a", b"new", 2))]
