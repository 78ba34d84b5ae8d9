"""Queues that are on their way to another store: sealed, opened, and who comes too late."""

from collections.abc import Awaitable, Callable

import pytest

from nusku.model import Draft, Kind, QueueKey, QueueRef, Stored
from nusku.storage import MessageStore, Stale
from tests.storage.harness import LONG_S, START_MS, House, bodies
from tests.storage.test_queues import OPERATIONS

Operation = Callable[[MessageStore, QueueRef], Awaitable[object]]

EVERY = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)


def later(ref: QueueRef, by: int = 1) -> QueueRef:
    return ref._replace(version=ref.version + by)


async def texts(house: House, ref: QueueRef) -> list[bytes | None]:
    """What is there, sealed or not."""
    return [one.body for one in await house.messages.dump(ref, 0, 1000)]


# Admitting and opening


@EVERY
async def test_a_queue_that_comes_to_be_is_sealed_until_it_is_opened(
    house: House, operation: Operation
) -> None:
    ref = QueueRef(QueueKey("queue", "p1", "new"), house.generation(), 3)
    other, seal = await house.messages.admit(ref)
    assert other is None
    assert seal
    with pytest.raises(Stale):
        await operation(house.messages, ref)
    await house.messages.open(ref, seal)
    assert await house.messages.admit(ref) == (None, "")
    await house.post(ref, "a")
    assert await house.free(ref) == ["a"]


@pytest.mark.parametrize("by", [-1, 1])
async def test_only_who_knows_seal_and_version_opens(house: House, by: int) -> None:
    ref = QueueRef(QueueKey("queue", "p1", "new"), house.generation(), 3)
    _, seal = await house.messages.admit(ref)
    await house.messages.open(later(ref, by), seal)
    await house.messages.open(ref._replace(generation=house.generation()), seal)
    await house.messages.open(ref, "")
    await house.messages.open(ref, "1")
    with pytest.raises(Stale):
        await house.all(ref)
    await house.reopen()
    with pytest.raises(Stale):
        await house.all(ref)
    assert await house.messages.admit(ref) == (None, seal)
    await house.messages.open(ref, seal)
    assert await house.all(ref) == []


async def test_each_seal_is_another(house: House) -> None:
    ref = await house.queue()
    seals: set[str] = set()
    for _ in range(3):
        await house.messages.seal(ref)
        _, seal = await house.messages.admit(ref)
        for old in seals:
            await house.messages.open(ref, old)
        with pytest.raises(Stale):
            await house.all(ref)
        seals.add(seal)
        await house.reopen()
    await house.messages.drop(ref)
    _, seal = await house.messages.admit(ref)
    for old in seals:
        await house.messages.open(ref, old)
    with pytest.raises(Stale):
        await house.all(ref)
    assert len(seals | {seal}) == 4
    await house.messages.open(ref, seal)
    assert await house.all(ref) == []


async def test_opening_what_is_open_or_not_there_changes_nothing(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    for seal in ("", "0", "1"):
        await house.messages.open(ref, seal)
        await house.messages.open(ref._replace(key=QueueKey("queue", "p1", "other")), seal)
    assert await house.free(ref) == ["a"]
    assert len(await house.messages.queues(None, 9)) == 1


async def test_an_older_version_is_not_admitted(house: House) -> None:
    ref = await house.queue()
    assert await house.messages.admit(later(ref, 4)) == (None, "")
    assert await house.messages.admit(later(ref, 2)) == (None, "")
    with pytest.raises(Stale):
        await house.post(later(ref, 2), "x")
    await house.post(later(ref, 4), "y")
    await house.reopen()
    assert await house.messages.admit(ref) == (None, "")
    with pytest.raises(Stale):
        await house.post(ref, "x")
    assert await house.free(later(ref, 4)) == ["y"]


async def test_another_generation_is_named_and_left_alone(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    other = QueueRef(ref.key, house.generation(), 9)
    assert (await house.messages.admit(other)).other == ref.generation
    with pytest.raises(Stale):
        await house.all(other)
    assert await house.free(ref) == ["a"]


async def test_admitting_leaves_the_seal_as_it_is(house: House) -> None:
    ref = await house.queue()
    await house.messages.seal(later(ref))
    seals = set()
    for by in (0, 1, 2):
        seals.add((await house.messages.admit(later(ref, by))).seal)
        with pytest.raises(Stale):
            await house.all(later(ref, by))
    [seal] = seals
    await house.messages.open(later(ref), seal)
    with pytest.raises(Stale):
        await house.all(ref)
    await house.messages.open(later(ref, 2), seal)
    assert await house.all(ref) == []


# Sealing


@EVERY
@pytest.mark.parametrize("restarted", [False, True])
async def test_every_operation_is_stale_for_a_sealed_queue(
    house: House, operation: Operation, restarted: bool
) -> None:
    ref = await house.queue()
    given = await house.post(ref, "a", "b")
    claim, _ = await house.hold(ref, 1)
    await house.messages.seal(later(ref))
    if restarted:
        await house.reopen()
    for each in (ref, later(ref)):
        with pytest.raises(Stale):
            await operation(house.messages, each)
    await house.unseal(later(ref))
    assert bodies(await house.all(ref)) == ["a", "b"]
    found = await house.messages.claimed(ref, claim)
    assert found is not None
    assert [message.position for message in found.messages] == given[:1]


async def test_sealing_concerns_one_queue(house: House) -> None:
    ref, other = await house.queue(), await house.queue("other")
    topic = await house.queue(kind="topic")
    await house.messages.seal(later(ref))
    for each in (other, topic):
        await house.post(each, "a")
        assert await house.free(each) == ["a"]


async def test_of_several_posts_at_once_none_is_taken_when_one_queue_is_sealed(
    house: House,
) -> None:
    ref = await house.queue()
    notices = await house.queue("queue/orders", kind="notice")
    await house.messages.seal(later(ref))
    posts = [(notices, [Draft(b"n", 60)]), (later(ref), [Draft(b"m", 60)])]
    with pytest.raises(Stale):
        await house.messages.add(posts)
    assert await house.all(notices) == []


@pytest.mark.parametrize("side", ["source", "target"])
async def test_nothing_is_moved_from_or_to_a_sealed_queue(house: House, side: str) -> None:
    work, failed = await house.queue("s", kind="delivery"), await house.queue("s", kind="failed")
    given = await house.post(work, "a")
    claim, held = await house.hold(work)
    await house.messages.seal(later(work if side == "source" else failed))
    with pytest.raises(Stale):
        await house.messages.move(work, held, failed, None, {}, claim)
    with pytest.raises(Stale):
        await house.messages.move(work, given, failed, None, {})
    assert await texts(house, work) == [b"a"]
    assert await texts(house, failed) == []


async def test_who_was_overtaken_cannot_seal(house: House) -> None:
    ref = await house.queue()
    await house.messages.admit(later(ref, 2))
    with pytest.raises(Stale):
        await house.messages.seal(later(ref))
    await house.post(later(ref, 2), "a")
    with pytest.raises(Stale):
        await house.messages.seal(ref._replace(generation=house.generation(), version=9))
    with pytest.raises(Stale):
        await house.messages.seal(ref._replace(key=QueueKey("queue", "p1", "other")))
    assert await house.free(ref) == ["a"]


async def test_sealing_raises_the_version_and_may_be_done_again(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    await house.messages.seal(later(ref, 3))
    await house.messages.seal(later(ref, 3))
    [holding] = await house.messages.queues(None, 9)
    assert (holding.ref, holding.sealed, holding.messages) == (later(ref, 3), True, 1)
    await house.unseal(later(ref, 3))
    assert await house.free(ref) == ["a"]


async def test_time_goes_on_in_a_sealed_queue(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "short", ttl_s=60)
    await house.post(ref, "held", "delayed")
    await house.messages.release(ref, (await house.hold(ref, 3, ttl_s=30))[0])
    claim, held = await house.hold(ref, 3, ttl_s=90, grace_s=0)
    await house.messages.release(ref, claim, 60, held[2:])
    await house.messages.seal(later(ref))
    house.clock.turn(60)
    while await house.messages.expire(100):
        pass
    assert await texts(house, ref) == [b"short", b"held", b"delayed"]  # the claim prolonged it
    house.clock.turn(30)
    while await house.messages.expire(100):
        pass
    assert [one.hidden_ms for one in await house.messages.dump(ref, 0, 9)] == [0, 0]
    await house.unseal(later(ref))
    assert await house.free(ref) == ["held", "delayed"]
    assert await house.numbers(ref) == (2, 0, 0)


async def test_figures_of_the_store_count_sealed_queues(house: House) -> None:
    ref, work = await house.queue(), await house.queue("s", kind="delivery")
    await house.post(ref, "a", "b")
    await house.post(work, "c")
    await house.messages.seal(later(ref))
    await house.messages.seal(later(work))
    assert (await house.messages.volume())[:3] == (2, 0, 0)
    [found] = await house.messages.occupied("delivery")
    assert (found.key, found.messages) == (work.key, 1)


# Dropping


async def test_a_sealed_queue_can_be_dropped(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    await house.messages.seal(later(ref))
    await house.messages.drop(ref)
    assert await house.messages.queues(None, 9) == []
    assert (await house.messages.volume()).total == 0


async def test_only_the_generation_that_is_named_is_dropped(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    await house.messages.drop(ref._replace(generation=house.generation()))
    assert await house.free(ref) == ["a"]
    await house.messages.drop(ref._replace(version=99))
    assert await house.messages.queues(None, 9) == []


async def test_dropping_unless_later_spares_what_has_a_later_version(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    await house.messages.admit(later(ref))
    await house.messages.drop(ref, unless_later=True)
    assert await house.free(ref) == ["a"]
    await house.messages.drop(later(ref), unless_later=True)
    assert await house.messages.queues(None, 9) == []


async def test_dropping_if_empty_spares_what_holds_messages(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "free", ttl_s=60)
    await house.messages.drop(ref, empty=True)
    assert await house.free(ref) == ["free"]
    await house.hold(ref, ttl_s=30)
    await house.messages.drop(ref, empty=True)
    assert await house.numbers(ref) == (0, 1, 0)
    house.clock.turn(60)
    await house.messages.drop(ref, empty=True)
    with pytest.raises(Stale):
        await house.all(ref)
    again = await house.queue()
    await house.post(again, "delayed", delay_s=60)
    await house.messages.drop(again, empty=True)
    assert await house.numbers(again) == (0, 0, 1)
    await house.messages.clear(again)
    await house.messages.drop(again, empty=True)
    assert await house.messages.queues(None, 9) == []


# Listing


KINDS: tuple[Kind, ...] = ("delivery", "failed", "notice", "queue", "topic")


async def test_queues_are_listed_by_key_in_pages_over_all_kinds_and_projects(
    house: House,
) -> None:
    refs = [
        await house.queue(name, project, kind)
        for kind in KINDS
        for project in ("", "P", "p", "p1", "ü")
        for name in ("A", "a", "a b", "b", "é", "z" * 64)
    ]
    expected = sorted(ref.key for ref in refs)
    for limit in (1, 7, 1000):
        found: list[QueueKey] = []
        while page := await house.messages.queues(found[-1] if found else None, limit):
            assert len(page) <= limit
            found += [holding.ref.key for holding in page]
        assert found == expected


async def test_a_listed_queue_shows_how_it_stands(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "free", "held", "removed")
    await house.post(ref, "short", ttl_s=60)
    await house.post(ref, "delayed", delay_s=90)
    await house.hold(ref, 1, ttl_s=300)
    given = await house.post(ref, "last")
    await house.messages.pop(ref, 1)
    empty = await house.queue("empty", "p0")
    await house.messages.admit(later(empty, 4))
    house.clock.turn(60)
    listed = await house.messages.queues(None, 9)
    assert [(one.ref, one.messages, one.sealed) for one in listed] == [
        (later(empty, 4), 0, False),
        (ref, 4, False),
    ]
    assert listed[1].next_position == given[0] + 1
    assert {one.now_ms for one in listed} == {START_MS + 60_000}


async def test_dropped_and_cleared_queues_are_listed_as_they_are(house: House) -> None:
    cleared, dropped = await house.queue("cleared"), await house.queue("dropped")
    for ref in (cleared, dropped):
        await house.post(ref, "a", "b")
    await house.messages.clear(cleared)
    await house.messages.drop(dropped)
    [one] = await house.messages.queues(None, 9)
    assert (one.ref, one.messages) == (cleared, 0)
    [position] = await house.post(cleared, "c")
    assert position >= one.next_position


# Overtaken loads


def message(position: int, body: bytes = b"x") -> Stored:
    return Stored(position, START_MS, LONG_S, START_MS + LONG_S * 1000, 0, "", body)


async def test_what_comes_from_a_mover_that_was_overtaken_is_refused(house: House) -> None:
    ref = QueueRef(QueueKey("queue", "p1", "new"), house.generation(), 3)
    await house.messages.load(ref, 5, 0, 4, [message(1)])
    await house.messages.load(later(ref), 5, 0, 4, [message(2)])
    with pytest.raises(Stale):
        await house.messages.load(ref, 9, 0, 8, [message(3)])
    assert [one.position for one in await house.messages.dump(ref, 0, 9)] == [2]
    await house.messages.admit(later(ref, 2))
    await house.unseal(later(ref, 2))
    with pytest.raises(Stale):
        await house.messages.load(later(ref), 9, 0, 8, [message(3)])
    assert await house.post(later(ref, 2), "next") == [5]


async def test_a_queue_of_another_generation_is_not_overwritten(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    other = QueueRef(ref.key, house.generation(), 9)
    with pytest.raises(Stale):
        await house.messages.load(other, 9, 0, 8, [message(3)])
    with pytest.raises(Stale):
        await house.messages.dump(other, 0, 9)
    assert await house.free(ref) == ["a"]


async def test_loading_leaves_the_seal_as_it_is(house: House) -> None:
    ref = QueueRef(QueueKey("queue", "p1", "new"), house.generation(), 3)
    await house.messages.load(ref, 5, 0, 4, [message(1)])
    with pytest.raises(Stale):
        await house.all(ref)
    await house.unseal(ref)
    await house.messages.load(ref, 5, 0, 4, [message(2)])
    assert [one.position for one in await house.all(ref)] == [2]
    await house.messages.seal(later(ref))
    await house.messages.load(later(ref), 5, 0, 4, [message(3)])
    with pytest.raises(Stale):
        await house.all(ref)


async def test_a_seal_is_broken_only_by_who_has_seen_it(house: House) -> None:
    """A queue that was admitted, dropped, and admitted again by somebody else is another one."""
    ref = QueueRef(QueueKey("queue", "p1", "orders"), house.generation(), 1)
    first = (await house.messages.admit(ref)).seal
    assert (await house.messages.admit(ref)).seal == first
    await house.messages.drop(ref)
    second = (await house.messages.admit(ref)).seal
    assert "" not in (first, second)
    assert first != second
    await house.messages.open(ref, first)
    with pytest.raises(Stale):
        await house.all(ref)
    await house.reopen()
    await house.messages.open(ref, "")
    with pytest.raises(Stale):
        await house.all(ref)
    await house.messages.open(ref, second)
    assert await house.all(ref) == []
    assert await house.messages.admit(ref) == (None, "")


async def test_each_sealing_makes_another_seal(house: House) -> None:
    ref = await house.queue()
    await house.messages.seal(later(ref))
    first = (await house.messages.admit(ref)).seal
    await house.messages.seal(later(ref))
    await house.messages.open(later(ref), first)
    with pytest.raises(Stale):
        await house.all(ref)
    await house.messages.open(later(ref), (await house.messages.admit(ref)).seal)
    assert await house.all(ref) == []
