"""Generations and versions of queues: admitting and dropping them."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from nusku.model import Draft, QueueKey, QueueRef
from nusku.storage import MessageStore, Removal, Stale
from tests.storage.harness import House, bodies


async def test_a_new_version_keeps_the_messages_and_their_claims(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "held", "free")
    claim, held = await house.hold(ref, 1)
    newer = ref._replace(version=2)
    await house.messages.admit(newer)
    assert bodies(await house.all(newer)) == ["held", "free"]
    found = await house.messages.claimed(newer, claim)
    assert found is not None
    assert [message.position for message in found.messages] == held
    assert await house.numbers(newer) == (1, 1, 0)


async def test_positions_go_on_in_a_new_version(house: House) -> None:
    ref = await house.queue()
    [first] = await house.post(ref, "a")
    newer = ref._replace(version=2)
    await house.messages.admit(newer)
    [second] = await house.post(newer, "b")
    assert second > first


async def test_admitting_the_same_again_changes_nothing(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    await house.messages.admit(ref)
    assert await house.free(ref) == ["a"]
    await house.post(ref, "b")
    assert await house.free(ref) == ["a", "b"]


async def test_a_new_generation_starts_empty(house: House) -> None:
    old = await house.queue()
    await house.post(old, "a", "b")
    claim, _ = await house.hold(old, 1)
    await house.post(old, "c", delay_s=5)
    new = old._replace(generation=house.generation())
    await house.admit(new)
    assert not await house.all(new)
    assert await house.numbers(new) == (0, 0, 0)
    assert await house.messages.claimed(new, claim) is None
    house.clock.turn(1000)
    assert (await house.messages.claim(new, 9, 60, 60)).claim is None


async def test_old_messages_do_not_come_back_after_drop_and_recreation(house: House) -> None:
    for n in range(3):
        ref = await house.queue()
        assert not await house.all(ref)
        await house.post(ref, f"{n}", ttl_s=60)
        assert await house.free(ref) == [f"{n}"]
        await house.messages.drop(ref)
    house.clock.turn(30)
    ref = await house.queue()
    assert not await house.all(ref)
    assert await house.numbers(ref) == (0, 0, 0)


OPERATIONS: dict[str, Callable[[MessageStore, QueueRef], Awaitable[object]]] = {
    "add": lambda store, ref: store.add([(ref, [Draft(b"x", 60)])]),
    "add nothing": lambda store, ref: store.add([(ref, [])]),
    "page": lambda store, ref: store.page(ref, 0, 9),
    "get": lambda store, ref: store.get(ref, [1, 2]),
    "claim": lambda store, ref: store.claim(ref, 9, 60, 60),
    "claimed": lambda store, ref: store.claimed(ref, "1"),
    "renew": lambda store, ref: store.renew(ref, "1", 60, 60),
    "release": lambda store, ref: store.release(ref, "1"),
    "release with attributes": lambda store, ref: store.release(ref, "1", 0, [1], {1: b"x"}),
    "remove": lambda store, ref: store.remove(ref, [1, 2], Removal.ANY),
    "move": lambda store, ref: store.move(ref, [1], ref, None, {}),
    "move what is held": lambda store, ref: store.move(ref, [1], ref, None, {}, "1"),
    "pop": lambda store, ref: store.pop(ref, 9),
    "count": lambda store, ref: store.count(ref),
    "clear": lambda store, ref: store.clear(ref),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
async def test_every_operation_is_stale_for_a_queue_that_was_never_admitted(
    house: House, operation: Callable[[MessageStore, QueueRef], Awaitable[object]]
) -> None:
    ref = QueueRef(QueueKey("queue", "p1", "new"), house.generation(), 1)
    with pytest.raises(Stale):
        await operation(house.messages, ref)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize("how", ["dropped", "recreated", "replaced", "dropped and restarted"])
async def test_every_operation_is_stale_for_an_earlier_generation(
    house: House, operation: Callable[[MessageStore, QueueRef], Awaitable[object]], how: str
) -> None:
    old = await house.queue()
    await house.post(old, "old", "old")
    if how != "replaced":
        await house.messages.drop(old)
    if how == "dropped and restarted":
        await house.reopen()
    new = None
    if how in {"recreated", "replaced"}:
        new = await house.queue()
        await house.post(new, "new", "new")
    with pytest.raises(Stale):
        await operation(house.messages, old)
    if new is not None:
        assert await house.free(new) == ["new", "new"]


async def test_dropping_a_queue_that_is_not_there_does_nothing(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    for key in (("queue", "p1", "other"), ("topic", "p1", "orders"), ("queue", "p2", "orders")):
        await house.messages.drop(ref._replace(key=QueueKey(*key)))
    assert await house.free(ref) == ["a"]


async def test_dropping_twice_is_dropping_once(house: House) -> None:
    ref = await house.queue()
    await house.messages.drop(ref)
    await house.messages.drop(ref)
    assert not await house.all(await house.queue())


async def test_dropping_one_queue_spares_the_others(house: House) -> None:
    refs = [await house.queue(name) for name in "abc"]
    for ref in refs:
        await house.post(ref, ref.key.name)
    await house.messages.drop(refs[1])
    assert await house.free(refs[0]) == ["a"]
    assert await house.free(refs[2]) == ["c"]


@pytest.mark.parametrize("name", ["a" * 64, "-._", "A", "a", "ß", "0"])
async def test_names_are_kept_apart_to_the_letter(house: House, name: str) -> None:
    refs = [await house.queue(each) for each in (name, name + "x", name.swapcase() + "-")]
    for n, ref in enumerate(refs):
        await house.post(ref, str(n))
    assert [await house.free(ref) for ref in refs] == [["0"], ["1"], ["2"]]


async def test_thousands_of_queues_fit_into_one_store(house: House) -> None:
    refs = await asyncio.gather(*(house.queue(f"q{n}") for n in range(3000)))
    for ref in (refs[0], refs[999], refs[2999]):
        await house.post(ref, ref.key.name)
    assert await house.free(refs[999]) == ["q999"]
    assert (await house.messages.volume()).total == 3


async def test_a_queue_that_was_recreated_many_times_holds_its_last_messages_only(
    house: House,
) -> None:
    for _ in range(200):
        ref = await house.queue()
        await house.post(ref, "x")
        await house.messages.drop(ref)
    ref = await house.queue()
    await house.post(ref, "last")
    while await house.messages.expire(500):
        pass
    assert await house.free(ref) == ["last"]
    assert (await house.messages.volume()).total == 1
