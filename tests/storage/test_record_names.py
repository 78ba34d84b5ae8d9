"""Unique names of records: one live record of a kind and project has each."""

import asyncio
from collections.abc import Awaitable

import pytest
from structlog.testing import capture_logs

from nusku.model import Record
from nusku.storage import Taken
from tests.storage.harness import House


def record(key: str, unique: str | None, version: int = 1, doc: bytes = b"{}") -> Record:
    return Record("sub", "p1", key, doc, version, unique=unique)


async def named(house: House, unique: str) -> str | None:
    """The key of the record that has the name."""
    found = await house.records.find("sub", "p1", unique)
    return None if found is None else found.key


async def test_a_record_is_found_by_its_name_as_by_its_key(house: House) -> None:
    await house.records.insert(Record("sub", "p1", "k", b"doc", parent="q", unique="name"), 60)
    found = await house.records.find("sub", "p1", "name")
    assert found is not None
    assert (found.key, found.doc, found.parent, found.unique) == ("k", b"doc", "q", "name")
    assert found == await house.records.get("sub", "p1", "k")


@pytest.mark.parametrize("unique", ["", "NAME", "nam", "name ", "k"])
async def test_a_name_that_nobody_has_is_not_found(house: House, unique: str) -> None:
    await house.records.insert(record("k", "name"))
    await house.records.insert(record("l", None))
    assert await named(house, unique) is None


@pytest.mark.parametrize("unique", ["", "a\nb", "ß\x00😀", "x" * 3000, "'; DROP TABLE records; --"])
async def test_a_name_is_any_text(house: House, unique: str) -> None:
    await house.records.insert(record("k", unique))
    assert await named(house, unique) == "k"


async def test_a_name_is_inserted_once(house: House) -> None:
    assert await house.records.insert(record("a", "name"))
    assert not await house.records.insert(record("b", "name"))
    assert await house.records.get("sub", "p1", "b", ended=True) is None
    assert await named(house, "name") == "a"


async def test_any_number_of_records_have_no_name(house: House) -> None:
    for key in "abc":
        assert await house.records.insert(record(key, None))
    assert await house.records.count("sub", "p1") == 3


async def test_names_of_kinds_and_projects_are_apart(house: House) -> None:
    records = [
        Record("sub", "p1", "1", b"", unique="name"),
        Record("other", "p1", "2", b"", unique="name"),
        Record("sub", "p2", "3", b"", unique="name"),
        Record("sub", "", "4", b"", unique="name"),
    ]
    for one in records:
        assert await house.records.insert(one)
    for one in records:
        found = await house.records.find(one.kind, one.project, "name")
        assert found is not None
        assert found.key == one.key


async def test_the_name_of_a_deleted_record_is_free(house: House) -> None:
    await house.records.insert(record("a", "name"))
    await house.records.delete("sub", "p1", "a")
    assert await named(house, "name") is None
    assert await house.records.insert(record("b", "name"))
    assert await named(house, "name") == "b"


# Ended ones


async def test_an_ended_record_is_not_found_by_its_name(house: House) -> None:
    await house.records.insert(record("a", "name"), 60)
    house.clock.turn(59.999)
    assert await named(house, "name") == "a"
    house.clock.turn(0.001)
    assert await named(house, "name") is None


async def test_the_name_of_an_ended_record_is_free_and_not_before(house: House) -> None:
    await house.records.insert(record("a", "name"), 60)
    house.clock.turn(59.999)
    assert not await house.records.insert(record("b", "name"))
    house.clock.turn(0.001)
    assert await house.records.insert(record("b", "name"))
    assert await named(house, "name") == "b"


async def test_an_ended_record_stays_to_be_tidied_up_when_its_name_was_taken(
    house: House,
) -> None:
    await house.records.insert(record("a", "name", doc=b"old"), 60)
    house.clock.turn(60)
    await house.records.insert(record("b", "name"))
    found = await house.records.get("sub", "p1", "a", ended=True)
    assert found is not None
    assert found.doc == b"old"
    assert [one.key for one in await house.records.ended("sub", (0, ""), 9)] == ["a"]
    assert await house.records.delete("sub", "p1", "a")
    assert await named(house, "name") == "b"


async def test_one_name_passes_through_many_ended_records(house: House) -> None:
    for n in range(20):
        assert await house.records.insert(record(f"{n:02}", "name"), 60)
        house.clock.turn(60)
    assert len(await house.records.ended("sub", (0, ""), 99)) == 20
    assert await named(house, "name") is None


async def test_with_the_key_of_an_ended_record_its_name_is_not_to_be_had(house: House) -> None:
    await house.records.insert(record("a", "name"), 60)
    house.clock.turn(60)
    assert not await house.records.insert(record("a", "name"))
    assert await named(house, "name") is None


# Updates


async def test_an_update_gives_the_record_its_new_name_and_frees_the_old(house: House) -> None:
    await house.records.insert(record("a", "old"))
    assert await house.records.update(record("a", "new", 2))
    assert await named(house, "new") == "a"
    assert await named(house, "old") is None
    assert await house.records.insert(record("b", "old"))


async def test_an_update_may_keep_the_name(house: House) -> None:
    await house.records.insert(record("a", "name"))
    assert await house.records.update(record("a", "name", 2, b"two"))
    found = await house.records.find("sub", "p1", "name")
    assert found is not None
    assert (found.key, found.doc) == ("a", b"two")


async def test_an_update_without_a_name_frees_it(house: House) -> None:
    await house.records.insert(record("a", "name"))
    assert await house.records.update(record("a", None, 2))
    assert await named(house, "name") is None
    assert await house.records.insert(record("b", "name"))


async def test_an_update_to_the_name_of_another_is_refused_and_changes_nothing(
    house: House,
) -> None:
    await house.records.insert(record("a", "one"))
    await house.records.insert(record("b", "two"), 60)
    before = await house.records.page("sub", "p1", "", 9)
    with pytest.raises(Taken):
        await house.records.update(record("b", "one", 2, b"new"), 600)
    assert await house.records.page("sub", "p1", "", 9) == before
    assert await named(house, "one") == "a"
    assert await named(house, "two") == "b"


async def test_an_update_may_take_the_name_of_an_ended_record_and_not_before(
    house: House,
) -> None:
    await house.records.insert(record("a", "name"), 60)
    await house.records.insert(record("b", "other"))
    house.clock.turn(59.999)
    with pytest.raises(Taken):
        await house.records.update(record("b", "name", 2))
    house.clock.turn(0.001)
    assert await house.records.update(record("b", "name", 2))
    assert await named(house, "name") == "b"
    assert await named(house, "other") is None
    assert [one.key for one in await house.records.ended("sub", (0, ""), 9)] == ["a"]


async def test_an_update_of_another_version_takes_no_name(house: House) -> None:
    await house.records.insert(record("a", "old"))
    assert not await house.records.update(record("a", "new", 3))
    assert await named(house, "new") is None
    assert await named(house, "old") == "a"


async def test_names_of_other_kinds_and_projects_are_not_taken(house: House) -> None:
    await house.records.insert(record("a", "old"))
    await house.records.insert(Record("other", "p1", "b", b"", unique="new"))
    await house.records.insert(Record("sub", "p2", "b", b"", unique="new"))
    assert await house.records.update(record("a", "new", 2))


# At once


async def test_of_concurrent_inserts_of_a_name_one_wins(house: House) -> None:
    won = await asyncio.gather(
        *(house.records.insert(record(f"{n:02}", "name")) for n in range(20))
    )
    assert sum(won) == 1
    assert await named(house, "name") == f"{won.index(True):02}"
    assert await house.records.count("sub", "p1") == 1


async def test_of_concurrent_updates_to_a_name_one_wins_and_the_others_hear_of_it(
    house: House,
) -> None:
    for n in range(20):
        await house.records.insert(record(f"{n:02}", None))
    answers = await asyncio.gather(
        *(house.records.update(record(f"{n:02}", "name", 2)) for n in range(20)),
        return_exceptions=True,
    )
    assert [isinstance(answer, Taken) for answer in answers].count(False) == 1
    assert answers.count(True) == 1
    assert await named(house, "name") == f"{answers.index(True):02}"
    versions = [one.version for one in await house.records.page("sub", "p1", "", 99)]
    assert sorted(versions) == [1] * 19 + [2]


async def test_a_name_that_is_taken_disturbs_no_other_operation(house: House) -> None:
    await house.records.insert(record("a", "name"))
    await house.records.insert(record("b", None))
    ref = await house.queue()
    work: list[Awaitable[object]] = [
        house.post(ref, "before"),
        house.records.update(record("b", "name", 2)),
        house.post(ref, "after"),
        house.records.insert(record("c", "other")),
    ]
    with capture_logs() as logs:
        answers = await asyncio.gather(*work, return_exceptions=True)
    assert [type(answer) for answer in answers] == [list, Taken, list, bool]
    assert not logs, "that a name is taken is no fault of the store"
    assert await house.free(ref) == ["before", "after"]
    assert await named(house, "other") == "c"


async def test_names_survive_a_restart(house: House) -> None:
    await house.records.insert(record("a", "one"))
    await house.records.update(record("a", "two", 2))
    await house.records.insert(record("b", "three"), 60)
    await house.reopen()
    assert await named(house, "one") is None
    assert await named(house, "two") == "a"
    assert not await house.records.insert(record("c", "two"))
    house.clock.turn(60)
    assert await house.records.insert(record("c", "three"))
