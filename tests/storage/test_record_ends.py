"""The ends of records: exact to the millisecond, and what is there of an ended one."""

import pytest
from msgspec.structs import replace

from nusku.model import Record
from tests.storage.harness import LONG_S, START_MS, House


async def insert(
    house: House, *keys: str, ttl_s: int | None = 60, project: str = "p1", kind: str = "sub"
) -> None:
    for key in keys:
        assert await house.records.insert(Record(kind, project, key, b"{}"), ttl_s)


async def read(house: House, key: str = "k", *, ended: bool = False) -> Record | None:
    return await house.records.get("sub", "p1", key, ended=ended)


async def ends_ms(house: House, key: str = "k") -> int | None:
    found = await read(house, key)
    assert found is not None
    return found.ends_ms


async def page(house: House, *, ended: bool = False, limit: int = 99) -> list[str]:
    found = await house.records.page("sub", "p1", "", limit, ended=ended)
    return [one.key for one in found]


async def over(house: House, after: tuple[int, str] = (0, ""), limit: int = 99) -> list[str]:
    """The keys of the ended ones."""
    return [one.key for one in await house.records.ended("sub", after, limit)]


# When


@pytest.mark.parametrize("offset_ms", [0, 1, 50, 999])
async def test_a_record_ends_after_its_ttl_to_the_millisecond(house: House, offset_ms: int) -> None:
    house.clock.now_ms += offset_ms
    await insert(house, "k", ttl_s=60)
    assert await ends_ms(house) == START_MS + offset_ms + 60_000
    house.clock.turn(59.999)
    found = await read(house)
    assert found is not None
    assert found.read_ms == START_MS + offset_ms + 59_999
    house.clock.turn(0.001)
    assert await read(house) is None


async def test_without_a_ttl_a_record_never_ends(house: House) -> None:
    await insert(house, "k", ttl_s=None)
    house.clock.turn(50 * 365 * 86400)
    assert await ends_ms(house) is None
    assert await over(house) == []


async def test_an_update_leaves_the_end_where_it_was(house: House) -> None:
    await insert(house, "k", ttl_s=60)
    house.clock.turn(30)
    assert await house.records.update(Record("sub", "p1", "k", b"two", 2))
    assert await ends_ms(house) == START_MS + 60_000
    house.clock.turn(30)
    assert await read(house) is None


@pytest.mark.parametrize("ttl_s", [10, 60, 9000])
async def test_an_update_with_a_ttl_starts_the_life_anew(house: House, ttl_s: int) -> None:
    await insert(house, "k", ttl_s=60)
    house.clock.turn(30.5)
    assert await house.records.update(Record("sub", "p1", "k", b"two", 2), ttl_s)
    assert await ends_ms(house) == START_MS + 30_500 + ttl_s * 1000
    house.clock.turn(ttl_s - 0.001)
    assert await read(house) is not None
    house.clock.turn(0.001)
    assert await read(house) is None


async def test_an_update_with_a_ttl_gives_an_end_to_a_record_that_had_none(house: House) -> None:
    await insert(house, "k", ttl_s=None)
    assert await house.records.update(Record("sub", "p1", "k", b"two", 2), 60)
    assert await ends_ms(house) == START_MS + 60_000


async def test_an_update_that_does_nothing_does_not_lengthen_the_life(house: House) -> None:
    await insert(house, "k", ttl_s=60)
    assert not await house.records.update(Record("sub", "p1", "k", b"wrong", 3), 9000)
    assert await ends_ms(house) == START_MS + 60_000


async def test_a_record_can_be_updated_in_its_last_millisecond(house: House) -> None:
    await insert(house, "k", ttl_s=60)
    house.clock.turn(59.999)
    assert await house.records.update(Record("sub", "p1", "k", b"two", 2), 60)
    house.clock.turn(0.001)
    assert await read(house) is not None


# What an ended one is to those who don't ask for it


async def test_an_ended_record_is_not_updated_nor_brought_back(house: House) -> None:
    await insert(house, "k", ttl_s=60)
    house.clock.turn(60)
    assert not await house.records.update(Record("sub", "p1", "k", b"two", 2))
    assert not await house.records.update(Record("sub", "p1", "k", b"two", 2), 600)
    found = await read(house, ended=True)
    assert found is not None
    assert (found.doc, found.version, found.ends_ms) == (b"{}", 1, START_MS + 60_000)


async def test_an_ended_record_is_on_no_page(house: House) -> None:
    await insert(house, "a", "c", ttl_s=60)
    await insert(house, "b", "d", ttl_s=61)
    house.clock.turn(60)
    assert await page(house) == ["b", "d"]


async def test_a_page_is_filled_past_the_ended_ones(house: House) -> None:
    await insert(house, *(f"{n:03}" for n in range(0, 500, 2)), ttl_s=60)
    await insert(house, *(f"{n:03}" for n in range(1, 500, 2)), ttl_s=None)
    house.clock.turn(60)
    assert await page(house, limit=3) == ["001", "003", "005"]
    filtered = await house.records.page("sub", "p1", "", 3, lambda one: one.key > "300")
    assert [one.key for one in filtered] == ["301", "303", "305"]


async def test_ended_records_are_not_counted(house: House) -> None:
    await insert(house, "a", "b", ttl_s=60)
    await insert(house, "c", ttl_s=None)
    house.clock.turn(59.999)
    assert await house.records.count("sub", "p1") == 3
    house.clock.turn(0.001)
    assert await house.records.count("sub", "p1") == 1


async def test_the_key_of_an_ended_record_is_free_only_when_it_was_deleted(house: House) -> None:
    await insert(house, "k", ttl_s=60)
    house.clock.turn(60)
    again = Record("sub", "p1", "k", b"again")
    assert not await house.records.insert(again)
    assert await house.records.delete("sub", "p1", "k")
    assert await house.records.insert(again)
    assert await read(house) == replace(
        again, created_ms=START_MS + 60_000, read_ms=START_MS + 60_000
    )


async def test_an_ended_record_can_be_deleted_once(house: House) -> None:
    await insert(house, "k", ttl_s=60)
    house.clock.turn(60)
    assert await house.records.delete("sub", "p1", "k")
    assert not await house.records.delete("sub", "p1", "k")
    assert await read(house, ended=True) is None
    assert await over(house) == []


# And to those who do


async def test_an_ended_record_is_shown_whole_to_those_who_ask(house: House) -> None:
    one = Record("sub", "p1", "k", b"doc", parent="orders")
    assert await house.records.insert(one, 60)
    house.clock.turn(100)
    expected = replace(
        one, created_ms=START_MS, ends_ms=START_MS + 60_000, read_ms=START_MS + 100_000
    )
    assert await read(house, ended=True) == expected
    assert await house.records.page("sub", "p1", "", 9, ended=True) == [expected]
    assert await house.records.ended("sub", (0, ""), 9) == [expected]


async def test_those_who_ask_for_ended_ones_are_shown_the_others_too(house: House) -> None:
    await insert(house, "a", ttl_s=None)
    await insert(house, "b", ttl_s=60)
    await insert(house, "c", ttl_s=90)
    house.clock.turn(60)
    assert await page(house, ended=True) == ["a", "b", "c"]
    for key in "abc":
        assert await read(house, key, ended=True) is not None
    assert await read(house, "d", ended=True) is None


async def test_ended_ones_are_listed_by_their_end_and_key(house: House) -> None:
    await insert(house, "b", "d", "a", ttl_s=90)
    await insert(house, "z", "c", ttl_s=60)
    house.clock.turn(90)
    assert await over(house) == ["c", "z", "a", "b", "d"]


async def test_only_what_has_ended_is_listed_as_ended(house: House) -> None:
    await insert(house, "a", ttl_s=60)
    await insert(house, "b", ttl_s=61)
    await insert(house, "c", ttl_s=None)
    house.clock.turn(59.999)
    assert await over(house) == []
    house.clock.turn(0.001)
    assert await over(house) == ["a"]
    house.clock.turn(1)
    assert await over(house) == ["a", "b"]


async def test_a_record_whose_life_started_anew_is_not_listed_as_ended(house: House) -> None:
    await insert(house, "a", "b", ttl_s=60)
    await house.records.update(Record("sub", "p1", "a", b"two", 2), 90)
    house.clock.turn(60)
    assert await over(house) == ["b"]
    house.clock.turn(30)
    assert await over(house) == ["b", "a"]


async def test_ended_ones_of_all_projects_but_of_one_kind_are_listed(house: House) -> None:
    await insert(house, "b", project="p2")
    await insert(house, "a", project="p1")
    await insert(house, "c", project="")
    await insert(house, "d", kind="other")
    house.clock.turn(60)
    found = await house.records.ended("sub", (0, ""), 9)
    assert [(one.project, one.key) for one in found] == [("p1", "a"), ("p2", "b"), ("", "c")]


async def test_ended_ones_are_listed_behind_the_marker_and_up_to_the_limit(house: House) -> None:
    await insert(house, "b", "d", ttl_s=60)
    await insert(house, "a", "c", ttl_s=90)
    house.clock.turn(90)
    first, second = START_MS + 60_000, START_MS + 90_000
    assert await over(house, limit=3) == ["b", "d", "a"]
    assert await over(house, (first, "b")) == ["d", "a", "c"]
    assert await over(house, (first, "c")) == ["d", "a", "c"]
    assert await over(house, (first, "d")) == ["a", "c"]
    assert await over(house, (first + 1, "")) == ["a", "c"]
    assert await over(house, (second, "a"), 1) == ["c"]
    assert await over(house, (second, "c")) == []


@pytest.mark.parametrize("limit", [1, 7, 100, 300])
async def test_pages_of_ended_ones_with_the_same_end_make_up_all(house: House, limit: int) -> None:
    keys = [f"{n:03}" for n in range(300)]
    await insert(house, *keys[100:], project="p2")
    await insert(house, *keys[:100])
    house.clock.turn(60)
    seen: list[str] = []
    marker = (0, "")
    while page := await house.records.ended("sub", marker, limit):
        seen += [one.key for one in page]
        assert page[-1].ends_ms == START_MS + 60_000
        marker = (START_MS + 60_000, page[-1].key)
    assert seen == keys


async def test_pages_of_ended_ones_go_on_while_those_before_are_deleted(house: House) -> None:
    keys = [f"{n:03}" for n in range(50)]
    await insert(house, *keys)
    house.clock.turn(60)
    seen: list[str] = []
    while page := await over(house, limit=7):
        seen += page
        for key in page:
            assert await house.records.delete("sub", "p1", key)
    assert seen == keys


# Other things that pass


async def test_housekeeping_of_messages_removes_no_record(house: House) -> None:
    await insert(house, "k", ttl_s=60)
    house.clock.turn(LONG_S)
    while await house.messages.expire(100):
        pass
    assert await over(house) == ["k"]


async def test_ends_survive_a_restart(house: House) -> None:
    await insert(house, "a", "b", ttl_s=60)
    await house.records.update(Record("sub", "p1", "b", b"two", 2), 90)
    await house.reopen()
    assert await ends_ms(house, "a") == START_MS + 60_000
    assert await ends_ms(house, "b") == START_MS + 90_000


async def test_an_end_that_passes_while_the_store_is_closed_takes_effect(house: House) -> None:
    await insert(house, "a", ttl_s=60)
    await insert(house, "b", ttl_s=90)
    await house.close()
    house.clock.turn(60)
    await house.open()
    assert await page(house) == ["b"]
    assert await over(house) == ["a"]


async def test_a_clock_that_goes_back_revives_no_record(house: House) -> None:
    await insert(house, "k", ttl_s=60)
    house.clock.turn(60)
    assert await read(house) is None
    house.clock.turn(-30)
    assert await read(house) is None
    await house.reopen()
    assert await read(house) is None
    assert await over(house) == ["k"]
