"""Reading: pages, markers, what is hidden from them, and single messages."""

import random
from collections.abc import Sequence

import pytest

from nusku.model import Message, QueueRef
from nusku.storage import Removal, Removed
from tests.storage.harness import START_MS, House, bodies, positions


async def test_a_page_is_oldest_first_and_no_longer_than_its_limit(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a", "b", "c")
    assert bodies(await house.messages.page(ref, 0, 2)) == ["a", "b"]


async def test_a_page_tells_the_time_it_was_taken(house: House) -> None:
    ref = await house.queue()
    house.clock.turn(7)
    assert (await house.messages.page(ref, 0, 1)).now_ms == START_MS + 7000


async def test_a_page_starts_behind_the_marker(house: House) -> None:
    ref = await house.queue()
    a, b, c = await house.post(ref, "a", "b", "c")
    assert bodies(await house.messages.page(ref, a, 10)) == ["b", "c"]
    assert bodies(await house.messages.page(ref, b, 10)) == ["c"]
    assert bodies(await house.messages.page(ref, c, 10)) == []


async def test_a_marker_beyond_the_end_gives_an_empty_page(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    assert bodies(await house.messages.page(ref, 10**12, 10)) == []


async def test_a_marker_stays_valid_when_its_message_is_gone(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    [marker] = await house.post(ref, "b", ttl_s=60)
    await house.post(ref, "c")
    house.clock.turn(60)
    assert bodies(await house.messages.page(ref, marker, 10)) == ["c"]


async def test_held_and_delayed_messages_are_listed_only_when_asked_for(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "held")
    claim, _ = await house.hold(ref)
    await house.post(ref, "free")
    await house.post(ref, "delayed", delay_s=30)
    page = house.messages.page
    assert bodies(await page(ref, 0, 10)) == ["free"]
    assert bodies(await page(ref, 0, 10, held=True)) == ["held", "free"]
    assert bodies(await page(ref, 0, 10, delayed=True)) == ["free", "delayed"]
    both = await page(ref, 0, 10, held=True, delayed=True)
    assert bodies(both) == ["held", "free", "delayed"]
    assert [message.claim for message in both.messages] == [claim, None, None]


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("delayed", [False, True])
async def test_a_page_is_filled_past_what_it_hides(house: House, held: bool, delayed: bool) -> None:
    ref = await house.queue()
    await house.post(ref, *["held"] * 10)
    await house.hold(ref, 10)
    await house.post(ref, *["delayed"] * 10, delay_s=30)
    await house.post(ref, *["mine"] * 10, client="me")
    await house.post(ref, "a", "b", "c", client="you")
    found = await house.messages.page(ref, 0, 23, held=held, delayed=delayed, without_client="me")
    expected = ["held"] * 10 * held + ["delayed"] * 10 * delayed + ["a", "b", "c"]
    assert bodies(found) == expected


async def test_messages_of_one_client_can_be_left_out(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "mine", client="me")
    await house.post(ref, "yours", client="you")
    await house.post(ref, "nobody's")
    page = house.messages.page
    assert bodies(await page(ref, 0, 10, without_client="me")) == ["yours", "nobody's"]
    assert bodies(await page(ref, 0, 10, without_client="stranger")) == [
        "mine",
        "yours",
        "nobody's",
    ]


async def test_own_messages_stay_hidden_when_held_or_delayed_ones_are_shown(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "mine", "mine", client="me")
    await house.hold(ref, 1)
    await house.post(ref, "mine", client="me", delay_s=10)
    found = await house.messages.page(ref, 0, 10, held=True, delayed=True, without_client="me")
    assert bodies(found) == []


async def test_a_lapsed_claim_puts_its_messages_back_in_their_place(house: House) -> None:
    ref = await house.queue()
    given = await house.post(ref, "a", "b", "c")
    await house.hold(ref, 2, ttl_s=60)
    assert await house.free(ref) == ["c"]
    house.clock.turn(60)
    found = await house.messages.page(ref, 0, 10)
    assert bodies(found) == ["a", "b", "c"]
    assert positions(found) == given
    assert [message.claim for message in found.messages] == [None, None, None]


async def test_a_delay_that_ended_shows_the_message_in_its_place(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "late", delay_s=30)
    await house.post(ref, "early")
    assert await house.free(ref) == ["early"]
    house.clock.turn(30)
    assert await house.free(ref) == ["late", "early"]


async def test_expired_messages_are_on_no_page(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "short", ttl_s=60)
    await house.post(ref, "delayed", ttl_s=60, delay_s=60)
    await house.post(ref, "long", ttl_s=61)
    house.clock.turn(60)
    assert bodies(await house.all(ref)) == ["long"]


async def read_through(house: House, ref: QueueRef, limit: int) -> Sequence[Message]:
    seen: list[Message] = []
    while found := (
        await house.messages.page(
            ref, seen[-1].position if seen else 0, limit, held=True, delayed=True
        )
    ).messages:
        seen += found
    return seen


@pytest.mark.parametrize("limit", [1, 3, 20, 1000])
async def test_pages_of_any_length_make_up_the_whole_queue(house: House, limit: int) -> None:
    ref = await house.queue()
    await house.post(ref, *map(str, range(30)))
    await house.hold(ref, 7)
    await house.post(ref, *map(str, range(30, 45)), delay_s=9)
    assert bodies(await read_through(house, ref, limit)) == [str(n) for n in range(45)]


@pytest.mark.parametrize("seed", range(5))
async def test_a_reader_sees_every_message_once_while_others_add_and_delete(
    house: House, seed: int
) -> None:
    ref = await house.queue()
    dice = random.Random(seed)
    added: list[int] = []
    gone: set[int] = set()
    seen: list[int] = []
    for _ in range(60):
        added += await house.post(ref, *["x"] * dice.randrange(4))
        if added and dice.random() < 0.5:
            victim = dice.choice(added)
            await house.messages.remove(ref, [victim], Removal.ANY)
            gone.add(victim)
        marker = seen[-1] if seen else 0
        seen += positions(await house.messages.page(ref, marker, dice.randrange(1, 5)))
    while more := positions(await house.messages.page(ref, seen[-1], 3)):
        seen += more
    assert seen == sorted(set(seen))
    assert set(added) - gone <= set(seen) <= set(added)


async def test_get_returns_those_alive_in_the_order_asked_for(house: House) -> None:
    ref = await house.queue()
    a, b, c = await house.post(ref, "a", "b", "c")
    [short] = await house.post(ref, "short", ttl_s=60)
    house.clock.turn(60)
    found = await house.messages.get(ref, [c, short, a, 10**9, b])
    assert bodies(found) == ["c", "a", "b"]
    assert found.now_ms == house.clock()


async def test_get_of_nothing_is_nothing(house: House) -> None:
    ref = await house.queue()
    assert not (await house.messages.get(ref, [])).messages


async def test_get_shows_held_and_delayed_messages_and_says_who_holds_them(house: House) -> None:
    ref = await house.queue()
    given = await house.post(ref, "held")
    claim, _ = await house.hold(ref, ttl_s=60)
    given += await house.post(ref, "delayed", delay_s=10)
    found = await house.messages.get(ref, given)
    assert bodies(found) == ["held", "delayed"]
    assert [message.claim for message in found.messages] == [claim, None]
    house.clock.turn(60)
    found = await house.messages.get(ref, given)
    assert [message.claim for message in found.messages] == [None, None]


async def test_positions_of_another_queue_are_unknown(house: House) -> None:
    a, b = await house.queue("a"), await house.queue("b")
    await house.post(a, "a1", "a2", "a3")
    await house.post(b, "b1")
    found = await house.messages.get(b, positions(await house.all(a)))
    assert set(bodies(found)) <= {"b1"}


@pytest.mark.parametrize(
    "position", [-(2**63), -1, 0, 2**31, 2**43 - 1, 2**43, 2**43 + 1, 2**52 - 1, 2**63 - 1, 2**70]
)
async def test_positions_that_were_never_given_are_passed_over_by_every_operation(
    house: House, position: int
) -> None:
    ref = await house.queue("a")
    other = await house.beside(ref)
    await house.post(ref, "a", "b")
    await house.post(other, "c")
    claim, _ = await house.hold(ref, 1)
    store = house.messages
    assert bodies(await store.get(ref, [position])) == []
    assert await store.remove(ref, [position], Removal.ANY) == [Removed.GONE]
    assert await store.remove(ref, [position], Removal.UNCLAIMED) == [Removed.GONE]
    assert await store.remove(ref, [position], Removal.HELD, [claim]) == [Removed.GONE]
    assert await store.remove(ref, [position], Removal.HELD, [], together=True) == [Removed.GONE]
    assert await store.move(ref, [position], other, None, {}) == []
    assert not await store.renew(ref, claim, 60, 60, [position])
    assert not await store.release(ref, claim, 0, [position])
    shown = bodies(await store.page(ref, position, 9, held=True))
    assert shown == (["a", "b"] if position <= 0 else [])
    assert bodies(await house.all(ref)) == ["a", "b"]
    assert bodies(await house.all(other)) == ["c"]


async def test_an_empty_page_says_when_a_claim_lapses(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a", "b")
    await house.hold(ref, 1, ttl_s=90)
    await house.hold(ref, 1, ttl_s=60)
    found = await house.messages.page(ref, 0, 10)
    assert not found.messages
    assert found.due_ms == START_MS + 60_000


async def test_an_empty_page_says_when_a_delay_ends(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a", delay_s=40)
    await house.post(ref, "b", delay_s=30)
    assert (await house.messages.page(ref, 0, 10)).due_ms == START_MS + 30_000


async def test_an_empty_page_says_when_a_released_message_comes_back(house: House) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    claim, _ = await house.hold(ref, ttl_s=60)
    await house.messages.release(ref, claim, delay_s=5)
    assert (await house.messages.page(ref, 0, 10)).due_ms == START_MS + 5000


async def test_an_empty_page_of_a_queue_with_nothing_hidden_is_never_due(house: House) -> None:
    ref = await house.queue()
    assert (await house.messages.page(ref, 0, 10)).due_ms is None
