"""Pages of the records of one parent."""

import pytest

from nusku.model import Record
from tests.storage.harness import House


async def insert(
    house: House,
    *keys: str,
    parent: str = "orders",
    ttl_s: int | None = None,
    project: str = "p1",
    kind: str = "sub",
) -> None:
    for key in keys:
        assert await house.records.insert(Record(kind, project, key, b"{}", parent=parent), ttl_s)


async def page(
    house: House, parent: str | None, after: str = "", limit: int = 99, *, ended: bool = False
) -> list[str]:
    found = await house.records.page("sub", "p1", after, limit, parent=parent, ended=ended)
    return [one.key for one in found]


async def test_a_record_tells_its_parent(house: House) -> None:
    await insert(house, "a", parent="orders")
    await insert(house, "b", parent="")
    found = await house.records.page("sub", "p1", "", 9)
    assert [one.parent for one in found] == ["orders", ""]


async def test_a_page_of_a_parent_has_its_records_only(house: House) -> None:
    await insert(house, "a", "c", "e", parent="orders")
    await insert(house, "b", "d", parent="news")
    await insert(house, "f", parent="")
    assert await page(house, "orders") == ["a", "c", "e"]
    assert await page(house, "news") == ["b", "d"]
    assert await page(house, "other") == []


async def test_a_page_without_a_parent_has_the_records_of_all(house: House) -> None:
    await insert(house, "a", "c", parent="orders")
    await insert(house, "b", parent="news")
    await insert(house, "d", parent="")
    assert await page(house, None) == ["a", "b", "c", "d"]


async def test_parents_of_kinds_and_projects_are_apart(house: House) -> None:
    await insert(house, "a")
    await insert(house, "b", kind="other")
    await insert(house, "c", project="p2")
    await insert(house, "d", project="")
    assert await page(house, "orders") == ["a"]


@pytest.mark.parametrize("parent", ["Orders", "order", "orders ", "ORDERS", "orders/"])
async def test_parents_are_kept_apart_to_the_letter(house: House, parent: str) -> None:
    await insert(house, "a")
    await insert(house, "b", parent=parent)
    assert await page(house, "orders") == ["a"]
    assert await page(house, parent) == ["b"]


async def test_a_page_of_a_parent_is_by_key_behind_the_marker_and_up_to_its_limit(
    house: House,
) -> None:
    await insert(house, "b", "a", "d", "c")
    await insert(house, "bb", "cc", parent="news")
    assert await page(house, "orders") == ["a", "b", "c", "d"]
    assert await page(house, "orders", limit=2) == ["a", "b"]
    assert await page(house, "orders", "b", 2) == ["c", "d"]
    assert await page(house, "orders", "bb", 1) == ["c"]
    assert await page(house, "orders", "d") == []


@pytest.mark.parametrize("limit", [1, 7, 100])
async def test_pages_of_a_parent_make_up_all_its_records(house: House, limit: int) -> None:
    await insert(house, *(f"{n:03}" for n in range(0, 200, 2)))
    await insert(house, *(f"{n:03}" for n in range(1, 200, 2)), parent="news")
    seen: list[str] = []
    while found := await page(house, "orders", seen[-1] if seen else "", limit):
        seen += found
    assert seen == [f"{n:03}" for n in range(0, 200, 2)]


async def test_a_page_of_a_parent_is_filled_with_those_the_filter_lets_through(
    house: House,
) -> None:
    await insert(house, *(f"{n:03}" for n in range(300)))
    await insert(house, *(f"{n:03}x" for n in range(300)), parent="news")
    found = await house.records.page(
        "sub", "p1", "060", 3, lambda one: int(one.key) % 50 == 49, parent="orders"
    )
    assert [one.key for one in found] == ["099", "149", "199"]


async def test_a_page_of_a_parent_has_ended_ones_only_where_asked(house: House) -> None:
    await insert(house, "a", "c", ttl_s=60)
    await insert(house, "b", "d")
    await insert(house, "e", parent="news", ttl_s=60)
    house.clock.turn(60)
    assert await page(house, "orders") == ["b", "d"]
    assert await page(house, "orders", limit=1) == ["b"]
    assert await page(house, "orders", ended=True) == ["a", "b", "c", "d"]
    assert await page(house, "news") == []
    assert await page(house, "news", ended=True) == ["e"]


async def test_a_deleted_record_leaves_its_parent(house: House) -> None:
    await insert(house, "a", "b")
    await house.records.delete("sub", "p1", "a")
    assert await page(house, "orders") == ["b"]


async def test_an_update_leaves_a_record_with_its_parent(house: House) -> None:
    await insert(house, "a")
    assert await house.records.update(Record("sub", "p1", "a", b"two", 2))
    [found] = await house.records.page("sub", "p1", "", 9, parent="orders")
    assert (found.doc, found.parent) == (b"two", "orders")


async def test_parents_survive_a_restart(house: House) -> None:
    await insert(house, "a", "b")
    await insert(house, "c", parent="news")
    await house.reopen()
    assert await page(house, "orders") == ["a", "b"]
    assert await page(house, "news") == ["c"]
