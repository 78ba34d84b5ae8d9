"""Many callers at once: nobody gets what another got, and order stays order."""

import asyncio
import random
from collections.abc import Awaitable, Callable

from structlog.testing import capture_logs

from nusku.errors import Unavailable
from nusku.model import Draft, QueueKey, QueueRef
from nusku.storage import Removal, Removed, Stale
from tests.storage.harness import House, bodies, positions


async def test_concurrent_claims_share_no_message_and_leave_none(house: House) -> None:
    ref = await house.queue()
    given = [p for n in range(10) for p in await house.post(ref, *map(str, range(n, n + 20)))]
    got = await asyncio.gather(*(house.messages.claim(ref, 3, 60, 60) for _ in range(100)))
    taken = [position for one in got for position in positions(one)]
    assert sorted(taken) == given
    assert len({one.claim for one in got if one.claim}) == 67
    assert await house.numbers(ref) == (0, 200, 0)


async def test_concurrent_pops_share_no_message_and_leave_none(house: House) -> None:
    ref = await house.queue()
    given = await house.post(ref, *map(str, range(100)))
    got = await asyncio.gather(*(house.messages.pop(ref, 3) for _ in range(50)))
    assert sorted(position for one in got for position in positions(one)) == given
    assert await house.numbers(ref) == (0, 0, 0)


async def test_pops_and_claims_at_once_share_no_message(house: House) -> None:
    ref = await house.queue()
    given = await house.post(ref, *map(str, range(100)))
    claims, pops = await asyncio.gather(
        asyncio.gather(*(house.messages.claim(ref, 2, 60, 60) for _ in range(30))),
        asyncio.gather(*(house.messages.pop(ref, 2) for _ in range(30))),
    )
    taken = [p for one in claims for p in positions(one)]
    taken += [p for one in pops for p in positions(one)]
    assert sorted(taken) == given


async def test_batches_of_concurrent_producers_stay_together(house: House) -> None:
    ref = await house.queue()
    given = await asyncio.gather(
        *(house.post(ref, *(f"{n}-{i}" for i in range(5))) for n in range(40))
    )
    for batch in given:
        assert batch == sorted(batch)
    texts = await house.free(ref)
    starts = [text.split("-")[0] for text in texts[::5]]
    assert texts == [f"{start}-{i}" for start in starts for i in range(5)]
    assert sorted(map(int, starts)) == list(range(40))


async def test_a_reader_skips_nothing_while_many_producers_post(house: House) -> None:
    ref = await house.queue()
    seen: list[int] = []
    given: list[int] = []

    async def produce(n: int) -> None:
        for i in range(15):
            given.extend(await house.post(ref, *[f"{n}-{i}"] * (1 + i % 3)))

    async def read(until: asyncio.Event) -> None:
        while True:
            last = until.is_set()
            while page := positions(await house.messages.page(ref, seen[-1] if seen else 0, 7)):
                seen.extend(page)
            if last:
                return
            await asyncio.sleep(0)

    done = asyncio.Event()
    reader = asyncio.create_task(read(done))
    await asyncio.gather(*(produce(n) for n in range(16)))
    done.set()
    await reader
    assert seen == sorted(given)


async def test_one_producers_posts_are_in_the_order_it_issued_them(house: House) -> None:
    ref = await house.queue()

    async def produce(name: str) -> None:
        for n in range(20):
            await house.post(ref, f"{name}{n}")

    await asyncio.gather(*(produce(name) for name in "abcdefgh"))
    texts = await house.free(ref)
    for name in "abcdefgh":
        assert [t for t in texts if t[0] == name] == [f"{name}{n}" for n in range(20)]


async def test_what_was_answered_is_seen_by_every_later_call(house: House) -> None:
    ref = await house.queue()

    async def cycle(n: int) -> None:
        [position] = await house.post(ref, f"{n}")
        assert bodies(await house.messages.get(ref, [position])) == [f"{n}"]
        assert await house.messages.remove(ref, [position], Removal.ANY) == [Removed.GONE]
        assert bodies(await house.messages.get(ref, [position])) == []

    await asyncio.gather(*(cycle(n) for n in range(60)))
    assert await house.numbers(ref) == (0, 0, 0)


async def test_a_stale_write_among_others_fails_alone(house: House) -> None:
    good, bad = await house.queue("good"), await house.queue("bad")
    await house.messages.admit(bad._replace(version=2))
    answers = await asyncio.gather(
        *(house.post(bad if n % 3 == 0 else good, str(n)) for n in range(30)),
        return_exceptions=True,
    )
    assert [isinstance(answer, Stale) for answer in answers] == [n % 3 == 0 for n in range(30)]
    assert await house.free(good) == [str(n) for n in range(30) if n % 3]


async def test_an_operation_that_cannot_be_done_fails_alone_and_leaves_no_trace(
    house: House,
) -> None:
    ref = await house.queue("a")
    other = await house.beside(ref)
    await house.fill(ref, 20)
    await house.hold(ref, 10)
    unspeakable = "\ud800"  # half of a surrogate pair: no store can encode it

    async def attempt(n: int) -> object:
        match n % 4:
            case 0:
                drafts = [Draft(b"a", 600), Draft(b"b", 600, client=unspeakable)]
                return await house.messages.add([(other, [Draft(b"c", 600)]), (ref, drafts)])
            case 1:
                return await house.post(ref, str(n))
            case 2:
                return await house.messages.claim(ref, 1, 60, 60)
            case _:
                return await house.messages.pop(ref, 1)

    with capture_logs() as logs:
        answers = await asyncio.gather(*(attempt(n) for n in range(40)), return_exceptions=True)
    assert len(logs) == 10
    failed = [n for n, answer in enumerate(answers) if isinstance(answer, BaseException)]
    assert failed == list(range(0, 40, 4))
    assert all(isinstance(answers[n], Unavailable) for n in failed)
    assert await house.numbers(ref) == (20 - 10 + 10 - 10 - 10, 10 + 10, 0)
    assert not await house.all(other)
    everything = positions(await house.all(ref))
    assert everything == sorted(set(everything))
    await house.reopen()
    assert positions(await house.all(ref)) == everything
    assert await house.numbers(ref) == (0, 20, 0)
    [position] = await house.post(ref, "after")
    assert position > everything[-1]


async def test_a_caller_that_goes_away_disturbs_no_other(house: House) -> None:
    ref = await house.queue()
    tasks = [asyncio.create_task(house.post(ref, str(n))) for n in range(40)]
    await asyncio.sleep(0)
    for task in tasks[::4]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    stayed = [n for n in range(40) if n % 4]
    given = [answers[n] for n in stayed]
    assert not [answer for answer in given if isinstance(answer, BaseException)]
    texts = await house.free(ref)
    assert set(map(str, stayed)) <= set(texts)
    assert len(texts) == len(set(texts)) == (await house.messages.count(ref)).total
    await house.post(ref, "after")
    assert (await house.free(ref))[-1] == "after"


async def test_claims_whose_callers_went_away_are_whole_or_not_there(house: House) -> None:
    ref = await house.queue()
    await house.fill(ref, 100)
    tasks = [asyncio.ensure_future(house.messages.claim(ref, 5, 60, 60)) for _ in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    held = [message for message in await house.all(ref) if message.claim is not None]
    by_claim = [sum(m.claim == claim for m in held) for claim in {m.claim for m in held}]
    assert set(by_claim) == {5}
    assert len(held) >= 50
    house.clock.turn(60)
    assert await house.numbers(ref) == (100, 0, 0)


async def worker(house: House, ref: QueueRef, dice: random.Random, done: list[str]) -> None:
    for _ in range(25):
        got = await house.messages.claim(ref, dice.randrange(1, 4), 60, 60)
        if got.claim is None:
            await asyncio.sleep(0)
        elif dice.random() < 0.3:
            assert await house.messages.release(ref, got.claim)
        else:
            answers = await house.messages.remove(ref, positions(got), Removal.HELD, [got.claim])
            assert answers == [Removed.GONE] * len(got.messages)
            done.extend(bodies(got))


async def test_workers_that_claim_release_and_delete_do_each_job_once(house: House) -> None:
    ref = await house.queue()
    done: list[str] = []
    dice = random.Random(7)
    jobs = [str(n) for n in range(100)]

    async def produce() -> None:
        for n in range(0, 100, 5):
            await house.messages.add([(ref, [Draft(job.encode(), 600) for job in jobs[n : n + 5]])])

    await asyncio.gather(produce(), *(worker(house, ref, dice, done) for _ in range(8)))
    while (got := await house.messages.claim(ref, 20, 60, 60)).claim:
        await house.messages.remove(ref, positions(got), Removal.HELD, [got.claim])
        done.extend(bodies(got))
    assert sorted(done, key=int) == jobs
    assert await house.numbers(ref) == (0, 0, 0)


async def test_moves_at_once_with_claims_and_pops_lose_and_double_nothing(house: House) -> None:
    work = await house.queue("work")
    dead = await house.beside(work)
    given = await house.post(work, *map(str, range(60)))
    await asyncio.gather(
        *(house.messages.move(work, given[n : n + 6], dead, None, {}) for n in range(0, 60, 3)),
        *(house.messages.claim(work, 2, 600, 0) for _ in range(5)),
    )
    texts = bodies(await house.all(work)) + bodies(await house.all(dead))
    assert sorted(texts, key=int) == [str(n) for n in range(60)]


async def test_a_queue_dropped_among_posts_keeps_nothing_from_before(house: House) -> None:
    old = await house.queue()
    posts = [asyncio.create_task(house.post(old, str(n))) for n in range(20)]
    drop = asyncio.ensure_future(house.messages.drop(old))
    late = [asyncio.create_task(house.post(old, str(n))) for n in range(20)]
    await asyncio.gather(*posts, drop, *late, return_exceptions=True)
    new = await house.queue()
    assert not await house.all(new)


async def test_what_is_stale_costs_nothing_to_what_it_shares_a_batch_with(house: House) -> None:
    """Nobody is told of positions at which nothing is."""
    ref = await house.queue()
    gone = QueueRef(QueueKey("queue", "p1", "gone"), house.generation(), 1)
    store = house.messages
    wrong: list[Callable[[], Awaitable[object]]] = [
        lambda: store.claim(gone, 1, 60, 60),
        lambda: store.pop(gone, 1),
        lambda: store.remove(gone, [1], Removal.ANY),
        lambda: store.release(gone, "0" * 32),
        lambda: store.renew(gone, "0" * 32, 60, 60),
        lambda: house.post(gone, "nobody's"),
    ]
    busy = await busy_queues(house)
    given: list[int] = []
    for operation in wrong:
        keeping = [asyncio.ensure_future(house.post(each, "x")) for each in busy]
        answers = await asyncio.gather(
            house.post(ref, "a", "b"), operation(), house.post(ref, "c"), return_exceptions=True
        )
        await asyncio.gather(*keeping)
        assert isinstance(answers[1], Stale)
        for answer in (answers[0], answers[2]):
            assert isinstance(answer, list)
            given += answer
    assert positions(await house.all(ref)) == sorted(given)
    assert len(given) == 3 * len(wrong)
    assert [len(await house.all(each)) for each in busy] == [len(wrong)] * len(busy)


async def busy_queues(house: House) -> list[QueueRef]:
    """Posts to these keep every connection of the store busy, so that what follows goes together."""
    return [await house.queue(f"busy-{n}") for n in range(8)]
