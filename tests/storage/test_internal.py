"""Internal kinds of queues: apart from the others, and which of them hold messages."""

import asyncio
from typing import get_args

import pytest

from nusku.model import Draft, Kind, Occupied, QueueKey, QueueRef
from nusku.storage import Removal, Stale
from tests.storage.harness import START_MS, House

KINDS: tuple[Kind, ...] = get_args(Kind)
INTERNAL: tuple[Kind, ...] = ("notice", "delivery", "failed")


async def occupied(house: House, kind: Kind = "delivery") -> dict[str, tuple[int, int]]:
    """By name: how many messages, and how many seconds after the start the oldest was posted."""
    found = await house.messages.occupied(kind)
    assert len({one.key for one in found}) == len(found)
    assert all(one.key.kind == kind for one in found)
    return {one.key.name: (one.messages, (one.oldest_ms - START_MS) // 1000) for one in found}


async def test_each_kind_is_a_namespace_of_its_own(house: House) -> None:
    refs = [await house.queue("x", "p1", kind) for kind in KINDS]
    for ref in refs:
        await house.post(ref, ref.key.kind)
    for ref in refs:
        assert await house.free(ref) == [ref.key.kind]
    await house.messages.drop(refs[-1])
    for ref in refs[:-1]:
        assert await house.free(ref) == [ref.key.kind]


# Written together with the messages that they tell of


async def of_one_home(house: House, kind: Kind) -> tuple[QueueRef, QueueRef]:
    """A queue and an internal one of that kind that is written together with it."""
    if kind == "notice":
        ref = await house.queue("a")
        return ref, await house.beside(ref)
    return await house.queue("a", kind="delivery"), await house.queue("a", kind=kind)


@pytest.mark.parametrize("kind", ["notice", "failed"])
async def test_queues_and_internal_ones_take_messages_in_one_step(house: House, kind: Kind) -> None:
    ref, internal = await of_one_home(house, kind)
    given = await house.messages.add(
        [(ref, [Draft(b"1", 60), Draft(b"2", 60)]), (internal, [Draft(b"tell of 1 and 2", 60)])]
    )
    assert [len(batch) for batch in given] == [2, 1]
    assert await house.free(ref) == ["1", "2"]
    assert await house.free(internal) == ["tell of 1 and 2"]


@pytest.mark.parametrize("kind", ["notice", "failed"])
@pytest.mark.parametrize("stale", ["queue", "internal"])
@pytest.mark.parametrize("how", ["dropped", "recreated", "changed"])
@pytest.mark.parametrize("internal_first", [False, True])
async def test_when_either_is_stale_neither_takes_anything(
    house: House, kind: Kind, stale: str, how: str, internal_first: bool
) -> None:
    ref, internal = await of_one_home(house, kind)
    old = ref if stale == "queue" else internal
    await house.post(ref, "before")
    await house.post(internal, "before")
    if how == "changed":
        await house.messages.admit(old._replace(version=2))
    else:
        await house.messages.drop(old)
    if how == "recreated":
        await house.admit(old._replace(generation=house.generation()))
    before = (await house.messages.volume(), await occupied(house, kind))
    posts = [(ref, [Draft(b"message", 60)]), (internal, [Draft(b"notice", 60)])]
    with pytest.raises(Stale):
        await house.messages.add(posts[::-1] if internal_first else posts)
    assert (await house.messages.volume(), await occupied(house, kind)) == before
    await house.reopen()
    assert (await house.messages.volume(), await occupied(house, kind)) == before


@pytest.mark.parametrize("stale", [False, True])
async def test_a_post_and_its_notice_are_both_there_or_both_not_after_a_restart(
    house: House, stale: bool
) -> None:
    ref = await house.queue("a")
    notices = await house.beside(ref)
    if stale:
        await house.messages.admit(ref._replace(version=2))
    try:
        await house.messages.add([(ref, [Draft(b"m", 60)]), (notices, [Draft(b"n", 60)])])
    except Stale:
        assert stale
    await house.reopen()
    assert await house.free(ref) == ([] if stale else ["m"])
    assert await house.free(notices) == ([] if stale else ["n"])


# Volume


@pytest.mark.parametrize("kind", INTERNAL)
async def test_internal_queues_are_not_in_the_volume(house: House, kind: Kind) -> None:
    ref, internal = await house.queue("a"), await house.queue("a", "p1", kind)
    await house.post(ref, "free", "held")
    await house.hold(ref, 1, ttl_s=600)
    await house.post(internal, *"abcde", ttl_s=90)
    await house.hold(internal, 2, ttl_s=60)
    await house.post(internal, *"fgh", delay_s=60)
    assert (await house.messages.volume())[:3] == (1, 1, 0)
    for _ in range(3):
        house.clock.turn(60)
        assert (await house.messages.volume())[:3] == (1, 1, 0)
    await house.messages.expire(100)
    assert (await house.messages.volume())[:3] == (1, 1, 0)


async def test_what_is_moved_between_kinds_enters_and_leaves_the_volume(house: House) -> None:
    ref = await house.queue("dead")
    internal = await house.beside(ref)
    given = await house.post(internal, "a")
    claim, _ = await house.hold(internal)
    assert (await house.messages.volume()).total == 0
    moved = await house.messages.move(internal, given, ref, None, {}, claim)
    assert (await house.messages.volume())[:3] == (1, 0, 0)
    await house.messages.move(ref, moved, internal, None, {})
    assert (await house.messages.volume()).total == 0


async def test_messages_that_expire_in_internal_queues_are_not_told_as_expired_messages(
    house: House,
) -> None:
    ref, internal = await house.queue("a"), await house.queue("a", kind="delivery")
    await house.post(ref, *"abc", ttl_s=60)
    await house.post(internal, *"abcde", ttl_s=60)
    house.clock.turn(60)
    while await house.messages.expire(3):
        pass
    assert house.metrics.messages["expired"] == 3


# Occupied


async def test_where_nothing_is_nothing_is_occupied(house: House) -> None:
    assert await house.messages.occupied("delivery") == []
    await house.queue("empty", kind="delivery")
    assert await house.messages.occupied("delivery") == []


async def test_an_occupied_queue_tells_its_key_number_and_the_age_of_its_oldest(
    house: House,
) -> None:
    ref = await house.queue("s", "p1", "delivery")
    house.clock.turn(5)
    await house.post(ref, "a", "b")
    house.clock.turn(5)
    await house.post(ref, "c")
    assert await house.messages.occupied("delivery") == [
        Occupied(QueueKey("delivery", "p1", "s"), 3, START_MS + 5000)
    ]


@pytest.mark.parametrize("kind", INTERNAL)
async def test_queues_of_one_kind_in_all_projects_are_told(house: House, kind: Kind) -> None:
    for each in KINDS:
        await house.post(await house.queue("a", "p1", each), "x")
        await house.post(await house.queue("a", "p2", each), "x", "x")
        await house.post(await house.queue("b", "", each), "x", "x", "x")
        await house.queue("c", "p1", each)
    found = await house.messages.occupied(kind)
    assert {(*one.key, one.messages) for one in found} == {
        (kind, "p1", "a", 1),
        (kind, "p2", "a", 2),
        (kind, "", "b", 3),
    }


async def test_held_and_delayed_messages_occupy_a_queue_too(house: House) -> None:
    free, held, delayed = [await house.queue(name, kind="delivery") for name in "fhd"]
    await house.post(free, "x")
    await house.post(held, "x", "x")
    await house.hold(held, 1, ttl_s=60)
    await house.post(delayed, "x", delay_s=60)
    expected = {"f": (1, 0), "h": (2, 0), "d": (1, 0)}
    assert await occupied(house) == expected
    house.clock.turn(60)
    assert await occupied(house) == expected


async def test_numbers_are_exact_after_every_removal(house: House) -> None:
    ref = await house.queue("s", kind="delivery")
    given = []
    for _ in range(8):
        given += await house.post(ref, "x")
        house.clock.turn(1)
    assert await occupied(house) == {"s": (8, 0)}
    await house.messages.remove(ref, given[1:2], Removal.ANY)
    assert await occupied(house) == {"s": (7, 0)}
    await house.messages.remove(ref, given[:1], Removal.ANY)
    assert await occupied(house) == {"s": (6, 2)}
    await house.messages.pop(ref, 2)
    assert await occupied(house) == {"s": (4, 4)}
    claim, held = await house.hold(ref, 2)
    assert await occupied(house) == {"s": (4, 4)}
    await house.messages.remove(ref, held[:1], Removal.HELD, [claim])
    assert await occupied(house) == {"s": (3, 5)}
    await house.messages.release(ref, claim, 60)
    assert await occupied(house) == {"s": (3, 5)}
    await house.messages.remove(ref, given, Removal.ANY)
    assert await occupied(house) == {}


async def test_the_oldest_is_the_first_in_the_queue_as_counted(house: House) -> None:
    work, failed = await house.queue("s", kind="delivery"), await house.queue("s", kind="failed")
    first = await house.post(work, "first")
    house.clock.turn(10)
    await house.post(work, "second")
    house.clock.turn(10)
    await house.post(failed, "given up")
    assert await occupied(house) == {"s": (2, 0)}
    assert await occupied(house, "failed") == {"s": (1, 20)}
    await house.messages.move(work, first, failed, None, {})
    assert await occupied(house) == {"s": (1, 10)}
    assert await occupied(house, "failed") == {"s": (2, 20)}
    counts = await house.messages.count(failed)
    assert counts.oldest is not None
    assert counts.oldest.posted_ms == START_MS + 20_000


async def test_expired_messages_occupy_nothing_whether_swept_or_not(house: House) -> None:
    some, all_ = (
        await house.queue("some", kind="delivery"),
        await house.queue("all", kind="delivery"),
    )
    await house.post(some, "x", "x", ttl_s=60)
    await house.post(all_, "x", ttl_s=60)
    await house.post(all_, "x", ttl_s=60, delay_s=600)
    house.clock.turn(59)
    await house.post(some, "y")
    assert await occupied(house) == {"some": (3, 0), "all": (2, 0)}
    house.clock.turn(0.999)
    assert await occupied(house) == {"some": (3, 0), "all": (2, 0)}
    house.clock.turn(0.001)
    assert await occupied(house) == {"some": (1, 59)}
    while await house.messages.expire(1):
        assert await occupied(house) == {"some": (1, 59)}


async def test_messages_that_expire_while_held_occupy_nothing(house: House) -> None:
    ref = await house.queue("s", kind="delivery")
    await house.post(ref, "x", ttl_s=60)
    await house.hold(ref, ttl_s=90, grace_s=0)
    house.clock.turn(60)
    assert await occupied(house) == {"s": (1, 0)}
    house.clock.turn(30)
    assert await occupied(house) == {}


@pytest.mark.parametrize("restarted", [False, True])
async def test_dropped_purged_and_recreated_queues_do_not_show_what_they_held(
    house: House, restarted: bool
) -> None:
    names = ("dropped", "purged", "refilled", "recreated", "kept")
    refs = {name: await house.queue(name, kind="delivery") for name in names}
    for ref in refs.values():
        await house.post(ref, *"xyz")
        await house.hold(ref, 1)
    house.clock.turn(5)
    await house.messages.drop(refs["dropped"])
    await house.messages.clear(refs["purged"])
    await house.messages.clear(refs["refilled"])
    await house.post(refs["refilled"], "x")
    await house.post(await house.queue("recreated", kind="delivery"), "x", "x")
    expected = {"refilled": (1, 5), "recreated": (2, 5), "kept": (3, 0)}
    if restarted:
        await house.reopen()
    assert await occupied(house) == expected
    while await house.messages.expire(1):
        assert await occupied(house) == expected


async def test_what_is_occupied_survives_a_restart(house: House) -> None:
    ref = await house.queue("s", kind="delivery")
    await house.post(ref, "free")
    await house.post(ref, "delayed", delay_s=600)
    await house.hold(ref, 1, ttl_s=600)
    await house.reopen()
    assert await occupied(house) == {"s": (2, 0)}


async def test_thousands_of_queues_may_be_occupied(house: House) -> None:
    for start in range(0, 2000, 500):
        refs = [await house.queue(f"{n}", kind="delivery") for n in range(start, start + 500)]
        await asyncio.gather(*(house.post(ref, "x", ttl_s=60) for ref in refs[::2]))
    assert await occupied(house) == {f"{n}": (1, 0) for n in range(0, 2000, 2)}
