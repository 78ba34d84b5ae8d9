"""Deliveries through the ends and starts of servers, and what tests over HTTP cannot reach."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from standardwebhooks.webhooks import Webhook

from nusku.addresses import Addresses
from nusku.broker import Broker, NewMessage, Pools
from nusku.broker.journal import Attempt, Journal
from nusku.broker.subscriptions import Trusts
from nusku.clock import steady_clock
from nusku.config import Settings
from nusku.errors import Unavailable
from nusku.metrics import Metrics
from nusku.model import Context, QueueKey, Record
from nusku.notify.pace import TURN_S, Pace
from nusku.notify.slots import Slot, Slots, Standing
from nusku.storage import RecordStore, StoreOptions, open_store
from tests.live import Api, LiveServer, eventually
from tests.notify import receivers
from tests.notify.live import GENTLE, OPEN, count, subscribe, told
from tests.notify.receivers import Exchange, Farm
from tests.notify.test_faults import no_pools

SETTINGS = {**OPEN, "delivery_timeout": 1.0, "shutdown_timeout": 2}
CLAIMED_S = 16 + 15
"""The longest that something may be held by a server that was killed, and some time to spare."""


class Moody:
    """A receiver that may be told to behave otherwise."""

    def __init__(self, farm: Farm, path: str, behaviour: receivers.Behaviour) -> None:
        self.behaviour = behaviour
        self.url = farm.url(path)
        farm.on(path, self)

    async def __call__(self, to: Exchange) -> None:
        await self.behaviour(to)


async def fails(to: Exchange) -> None:
    to.answer(500)


async def refuses(to: Exchange) -> None:
    to.answer(418)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


# -- two lives of a server -------------------------------------------------------------------------

Story = Callable[[Api, Farm, bool], Generator[None, LiveServer, None]]
"""What happens before and after the `yield`, where one server ends and another starts.

The last argument says whether the end is a clean one.
"""

STORIES: dict[str, Story] = {}
Lives = dict[str, Future[dict[str, Exception | None]]]


def story(function: Story) -> Story:
    """List a story; all are lived through together, because some have to wait."""
    STORIES[function.__name__] = function
    return function


def live_through(folder: Path, *, clean: bool) -> dict[str, Exception | None]:
    """Live through all stories; what went wrong in each of them."""
    running: dict[str, Generator[None, LiveServer, None]] = {}
    with Farm() as farm:
        with LiveServer(folder, **SETTINGS) as server:
            for name, tell in STORIES.items():
                running[name] = tell(server.api(), farm, clean)
                next(running[name])
            if not clean:
                server.kill()
        with LiveServer(folder, **SETTINGS) as server, ThreadPoolExecutor(len(STORIES)) as pool:

            def end(rest: Generator[None, LiveServer, None]) -> Exception | None:
                try:
                    rest.send(server)
                except StopIteration:
                    return None
                except Exception as failure:  # noqa: BLE001 - it is the outcome, its test raises it
                    return failure
                raise AssertionError("a story has one yield")

            return dict(zip(running, pool.map(end, running.values()), strict=True))


@pytest.fixture(scope="module")
def lives(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Lives]:
    """What will have gone wrong in each story, by how the server ended: they go on by themselves."""
    with ThreadPoolExecutor(2) as pool:
        yield {
            end: pool.submit(live_through, tmp_path_factory.mktemp(end), clean=end == "stop")
            for end in ("stop", "kill")
        }


@story
def what_waits_for_its_next_try_is_tried_then(
    api: Api, farm: Farm, clean: bool
) -> Generator[None, LiveServer, None]:
    async def refuses_the_fourth(to: Exchange) -> None:
        to.answer(500 if len(farm.to("/waits")) < 4 else 418)

    receiver = Moody(farm, "/waits", refuses_the_fourth)
    policy = {**GENTLE, "retries_with_no_delay": 1, "minimum_delay_retries": 9, "minimum_delay": 4}
    policy["maximum_delay"] = 20
    one = subscribe(api, "q", receiver.url, _retry_policy=policy)
    api.post_bodies("q", 1)
    farm.wait_for(2, path="/waits")
    one.until(pending=1)
    server = yield
    farm.wait_for(4, path="/waits", timeout=CLAIMED_S)
    _, second, third, fourth, *rest = farm.to("/waits")
    assert rest == []
    assert third.time - second.time > 3.9
    assert fourth.time - third.time > 3.9
    one.through(server).until(failed=1, pending=0)
    assert [entry["attempts"] for entry in one.through(server).failed()] == [4]


@story
def a_pause_holds(api: Api, farm: Farm, clean: bool) -> Generator[None, LiveServer, None]:
    one = subscribe(api, "q", farm.url("/ok/paused"))
    one.do("pause")
    api.post_bodies("q", *range(5))
    one.until(pending=5)
    server = yield
    one = one.through(server)
    status = one.status()
    assert (status["state"], status["reason"]) == ("paused", "requested")
    assert status["pending"] == 5
    assert farm.to("/ok/paused") == []
    one.do("resume")
    one.until(pending=0, delivered=5)
    assert sorted(told(farm.to("/ok/paused"))) == list(range(5))


@story
def what_was_given_up_can_be_replayed(
    api: Api, farm: Farm, clean: bool
) -> Generator[None, LiveServer, None]:
    receiver = Moody(farm, "/given-up", refuses)
    one = subscribe(api, "q", receiver.url)
    for n in range(3):
        api.post_bodies("q", n)
        one.until(failed=n + 1, pending=0)
    before = one.failed()
    server = yield
    one = one.through(server)
    after = one.failed()
    assert [{**entry, "age": 0} for entry in after] == [{**entry, "age": 0} for entry in before]
    receiver.behaviour = receivers.ok
    assert one.replay([before[1]["id"]]) == 1
    one.until(failed=2, pending=0)
    assert one.replay() == 2
    one.until(failed=0, pending=0, delivered=3)
    assert told(farm.to("/given-up")[3:4]) == [1]


@story
def attempts_and_counts_are_known(
    api: Api, farm: Farm, clean: bool
) -> Generator[None, LiveServer, None]:
    one = subscribe(api, "q", farm.url("/ok/history"))
    api.post_bodies("q", *range(25))
    before = one.until(delivered=25, pending=0)
    if not clean:
        time.sleep(1.5)  # a crash may take the last second of it
    server = yield
    after = one.through(server).status()
    assert after == before
    assert len(after["attempts"]) == 20
    api = one.through(server).api
    api.post_bodies("q", "x")
    again = one.through(server).until(delivered=26, pending=0)
    assert again["attempts"][1:] == before["attempts"][:-1]


@story
def a_backlog_arrives_whole(api: Api, farm: Farm, clean: bool) -> Generator[None, LiveServer, None]:
    """Once each when the end is clean; after a crash some may come twice."""
    receiver = Moody(farm, "/backlog", receivers.ok)
    one = subscribe(api, "q", receiver.url, _signing=True)
    for start in range(0, 1000, 500):
        api.post_bodies("q", *range(start, start + 500))
    farm.wait_for(50, path="/backlog")
    server = yield
    one.through(server).until(pending=0, within_s=CLAIMED_S)
    times = Counter(told(farm.to("/backlog")))
    assert sorted(times) == list(range(1000))
    if clean:
        assert set(times.values()) == {1}
    assert sum(times.values()) < 1200
    for request in farm.to("/backlog")[::50]:
        Webhook(one.secret).verify(request.body, dict(request.headers))


@story
def what_was_acknowledged_is_told(
    api: Api, farm: Farm, clean: bool
) -> Generator[None, LiveServer, None]:
    """Also where the end comes at once, before anything was made of the post."""
    one = subscribe(api, "q", farm.url("/ok/at-once"))
    for n in range(40):
        api.post_bodies("q", *(f"{n}-{m}" for m in range(20)))
    server = yield
    farm.wait_for(800, timeout=CLAIMED_S, path="/ok/at-once")
    one.through(server).until(pending=0, within_s=CLAIMED_S)
    assert len(set(told(farm.to("/ok/at-once")))) == 800


@story
def figures_are_there_from_the_start(
    api: Api, farm: Farm, clean: bool
) -> Generator[None, LiveServer, None]:
    one = subscribe(api, "q", farm.url("/ok/figures"))
    one.do("pause")
    api.post_bodies("q", 1, 2)
    one.until(pending=2)
    server = yield
    eventually(lambda: count(server, "nusku_deliveries_pending") >= 2)
    assert count(server, "nusku_deliveries_oldest_seconds") > 0


@story
def what_was_being_tried_is_tried_again(
    api: Api, farm: Farm, clean: bool
) -> Generator[None, LiveServer, None]:
    receiver = Moody(farm, "/hanging", receivers.hang)
    one = subscribe(api, "q", receiver.url)
    api.post_bodies("q", *range(3))
    farm.wait_for(1, path="/hanging")
    server = yield
    receiver.behaviour = receivers.ok
    began = time.monotonic()
    one.through(server).until(pending=0, delivered=3, within_s=CLAIMED_S)
    assert not clean or time.monotonic() - began < 15  # what a killed one holds lapses at 16


@story
def a_fan_out_is_finished(api: Api, farm: Farm, clean: bool) -> Generator[None, LiveServer, None]:
    """It takes a second or more, and the end comes when it has begun, and something more has been
    posted at the last moment: no story may follow this one.
    """
    subscribers = [subscribe(api, "q", farm.url(f"/ok/fan-out/{n}")) for n in range(40)]
    for one in subscribers:
        one.do("pause")
    for _ in range(2):
        api.post_bodies("q", *range(1000))
    subscribers[0].until(pending=2000)
    api.post_bodies("q", "more")
    server = yield
    for one in subscribers:
        one.through(server).until(pending=2001, within_s=CLAIMED_S)


@pytest.mark.slow
@pytest.mark.usefixtures("lives")  # they begin, and the last tests here look how they ended
def test_a_stop_does_not_wait_for_those_who_hang(
    private_server: Callable[..., LiveServer], farm: Farm
) -> None:
    """It does for those who answer in time, and the others are asked again."""
    settings = {**OPEN, "shutdown_timeout": 2}
    server = private_server(**settings)
    api = server.api()
    hanging = [Moody(farm, f"/hang/{n}", receivers.hang) for n in range(30)]
    subscribers = [subscribe(api, "q", receiver.url) for receiver in hanging]
    slow = subscribe(api, "q", farm.url("/slow/1"))
    api.post_bodies("q", 1, 2)
    farm.wait_for(31)
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 8  # two for the attempts, and these had fifteen
    for receiver in hanging:
        receiver.behaviour = receivers.ok
    server = private_server(**settings)
    began = time.monotonic()
    for one in [*subscribers, slow]:
        one.through(server).until(pending=0, delivered=2, failed=0)
    assert time.monotonic() - began < 10
    assert sorted(told(farm.to("/slow/1"))) == [1, 2]


def test_what_happens_is_counted(shared_server: Callable[..., LiveServer], farm: Farm) -> None:
    server = shared_server(**OPEN)
    api = server.api()

    def figures() -> dict[str, float]:
        events = {
            event: count(server, f'nusku_deliveries_total{{event="{event}"}}')
            for event in ("queued", "delivered", "retried", "given_up")
        }
        attempts = {
            outcome: count(
                server, f'nusku_delivery_attempts_total{{outcome="{outcome}",reason="{reason}"}}'
            )
            for outcome, reason in (("delivered", ""), ("failed", "status"), ("refused", "status"))
        }
        return {**events, **{f"attempts {k}": v for k, v in attempts.items()}}

    before = figures()
    good = subscribe(api, "q", farm.url("/ok"))
    once = subscribe(api, "q", farm.url("/fail/1"), _retry_policy=GENTLE)
    never = subscribe(api, "q", farm.url("/status/400"))
    api.post_bodies("q", 1)
    for one, expected in (
        (good, {"delivered": 1}),
        (once, {"delivered": 1}),
        (never, {"failed": 1}),
    ):
        one.until(pending=0, **expected)
    after = figures()
    assert {name: after[name] - before[name] for name in after} == {
        "queued": 3,
        "delivered": 2,
        "retried": 1,
        "given_up": 1,
        "attempts delivered": 2,
        "attempts failed": 1,
        "attempts refused": 1,
    }
    eventually(lambda: count(server, "nusku_deliveries_in_flight") == 0)


# -- the fan-out -----------------------------------------------------------------------------------


@pytest.mark.embedded
@pytest.mark.slow
def test_a_fan_out_may_take_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds its notices until it is done, or else it would begin anew, and never end."""
    monkeypatch.setattr("nusku.broker.notices.HELD_S", 1)
    monkeypatch.setattr("nusku.broker.fanout.HOLD_AGAIN_S", 0.3)
    monkeypatch.setattr("nusku.broker.fanout.SUBSCRIPTIONS_AT_ONCE", 1)

    async def test() -> None:
        settings, metrics = Settings(), Metrics()
        uri = f"sqlite:///{tmp_path / 'nusku.db'}"
        store = await open_store(uri, steady_clock(), StoreOptions(), metrics)
        rng = random.Random()
        broker = Broker(
            Pools(store, no_pools, settings, rng), settings, metrics, rng, signing_key="", trusts=cast("Trusts", None),
            addresses=Addresses(settings),
        )  # fmt: skip
        ctx, key = Context("p", "c", frozenset({"admin"})), QueueKey("queue", "p", "q")
        made = [
            await broker.subscriptions.create(ctx, key, {"subscriber": f"http://example.com/{n}"})
            for n in range(5)
        ]

        async def read(most: int) -> list[NewMessage]:
            return [NewMessage(b"1")]

        await broker.messages.post(ctx, key, read)
        add = broker.deliveries.add

        async def slow(posts: Any) -> None:
            await asyncio.sleep(0.4)
            await add(posts)

        monkeypatch.setattr(broker.deliveries, "add", slow)
        assert await broker.fanout.spread(10) == (1, 5)
        await asyncio.sleep(1.1)
        assert await broker.fanout.spread(10) == (0, 0)
        for one in made:
            assert (await broker.subscriptions.status(ctx, key, one.id)).pending == 1
        await store.close()

    run(test())


# -- slots -----------------------------------------------------------------------------------------


async def entered(slots: Slots, project: str, endpoint: str) -> Slot | asyncio.Task[Slot]:
    """The slot, or the task that waits for it."""
    task = asyncio.create_task(slots.enter(project, endpoint))
    for _ in range(5):
        await asyncio.sleep(0)
    return task.result() if task.done() else task


async def slot(slots: Slots, project: str, endpoint: str) -> Slot:
    got = await entered(slots, project, endpoint)
    assert isinstance(got, Slot)
    return got


async def waiting(slots: Slots, project: str, endpoint: str) -> asyncio.Task[Slot]:
    got = await entered(slots, project, endpoint)
    assert not isinstance(got, Slot)
    return got


async def made(slots: Slots, standing: Standing, *endpoints: str) -> None:
    """Let these endpoints stand so."""
    for endpoint in endpoints:
        slots.leave(await slot(slots, "maker", endpoint), standing)


def test_a_new_endpoint_is_tried_one_at_a_time_and_a_good_one_four() -> None:
    async def test() -> None:
        slots = Slots(100, 4)
        assert slots.places("e") == 1
        first = await slot(slots, "p", "e")
        second = await waiting(slots, "p", "e")
        slots.leave(first, "good")
        assert slots.places("e") == 4
        held = [await second] + [await slot(slots, "p", "e") for _ in range(3)]
        fifth = await waiting(slots, "another", "e")
        assert slots.in_flight == 4
        slots.leave(held.pop(), "bad")
        assert slots.places("e") == 1
        await asyncio.sleep(0)
        assert not fifth.done()
        for one in held:
            slots.leave(one, "bad")
        slots.leave(await fifth, "good")
        assert slots.in_flight == 0

    run(test())


def test_bad_endpoints_share_a_quarter_and_leave_the_rest() -> None:
    async def test() -> None:
        slots = Slots(40, 4)
        await made(slots, "bad", *(f"bad-{n}" for n in range(40)))
        await made(slots, "good", *(f"good-{n}" for n in range(40)))
        got = [await entered(slots, f"p{n % 10}", f"bad-{n}") for n in range(40)]
        assert sum(isinstance(one, Slot) for one in got) == 10
        new = [await entered(slots, f"p{n % 10}", f"new-{n}") for n in range(40)]
        assert sum(isinstance(one, Slot) for one in new) == 20
        for n in range(10):
            await slot(slots, f"p{n % 10}", f"good-{n}")
        assert slots.in_flight == 40
        await waiting(slots, "p", "good-10")

    run(test())


def test_a_project_gets_three_fifths_and_keeps_something_for_its_good_ones() -> None:
    async def test() -> None:
        slots = Slots(100, 4)
        await made(slots, "bad", *(f"bad-{n}" for n in range(100)))
        await made(slots, "good", *(f"good-{n}" for n in range(100)))
        bad = [await entered(slots, "p", f"bad-{n}") for n in range(100)]
        assert sum(isinstance(one, Slot) for one in bad) == 15
        new = [await entered(slots, "p", f"new-{n}") for n in range(100)]
        assert sum(isinstance(one, Slot) for one in new) == 60 - 3 - 15
        good = [await entered(slots, "p", f"good-{n}") for n in range(100)]
        assert sum(isinstance(one, Slot) for one in good) == 3
        # The bad ones of another project have their share yet, and so have all others.
        other = [await entered(slots, "q", f"others-{n}") for n in range(10)]
        assert all(isinstance(one, Slot) for one in other)
        await made(slots, "bad", "bad-of-q")
        await slot(slots, "q", "bad-of-q")

    run(test())


def test_all_that_was_taken_is_given_back() -> None:
    """Also by those who stop waiting, at whatever they wait."""

    async def test() -> None:
        slots = Slots(8, 4)
        await made(slots, "bad", "b1", "b2", "b3")
        for _ in range(50):
            got = [
                await entered(slots, project, endpoint)
                for project in ("p", "q", "r")
                for endpoint in ("b1", "b2", "b3", "n1", "n2", "n3", "n4", "n4")
            ]
            for one in got[::-1]:
                if not isinstance(one, Slot):
                    one.cancel()
            for one in got:
                if isinstance(one, Slot):
                    slots.leave(one)
            await asyncio.sleep(0)
            # Some may have been let in before they were cancelled.
            for one in got:
                if not isinstance(one, Slot) and one.done() and not one.cancelled():
                    slots.leave(one.result())
            await asyncio.sleep(0)
        assert slots.in_flight == 0
        assert slots._projects == {}
        assert all(not known.users for known in slots._endpoints.values())
        await made(slots, "good", "g1", "g2")
        for n in range(4):
            await slot(slots, "p", "g1")
            await slot(slots, "q", "g2")
            assert slots.in_flight == 2 * (n + 1)

    run(test())


def test_turns_are_given_in_order() -> None:
    async def test() -> None:
        slots = Slots(4, 1)
        order: list[int] = []

        async def enter(n: int) -> None:
            got = await slots.enter("p", "e")
            order.append(n)
            await asyncio.sleep(0)
            slots.leave(got, "good")

        await asyncio.gather(*(enter(n) for n in range(20)))
        assert order == list(range(20))

    run(test())


def test_endpoints_are_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nusku.notify.slots.REMEMBERED", 10)

    async def test() -> None:
        slots = Slots(100, 4)
        held = await slot(slots, "p", "held")
        for n in range(100):
            await made(slots, "good", f"e{n}")
        assert len(slots._endpoints) <= 12
        await waiting(slots, "p", "held")  # it is the same endpoint yet
        slots.leave(held)

    run(test())


# -- pace ------------------------------------------------------------------------------------------


class Load:
    """A clock, and what passes by it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.busy = self.seconds = 0.0
        self.requests = 0
        monkeypatch.setattr("nusku.notify.pace.time.perf_counter", lambda: self.now)
        monkeypatch.setattr("nusku.notify.pace.time.thread_time", lambda: self.busy)

    def served(self) -> tuple[int, float]:
        return self.requests, self.seconds

    def passes(self, share: float, requests: int, at_a_time: float = 1.0) -> None:
        """A second passes, so much of it busy, with so many requests, and at a time so many."""
        self.now += 1
        self.busy += share
        self.requests += requests
        self.seconds += at_a_time


@pytest.mark.parametrize(
    ("share", "requests", "at_a_time", "crowded"),
    [
        (0.95, 3000, 1.0, True),
        (0.5, 3000, 50.0, True),
        (0.95, 500, 1.0, False),
        (0.5, 500, 50.0, True),  # few, because they wait for one another
        (0.5, 3000, 1.0, False),
        (0.0, 0, 0.0, False),
    ],
)
def test_only_requests_that_fill_the_loop_crowd_it(
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    requests: int,
    at_a_time: float,
    crowded: bool,
) -> None:
    async def test() -> None:
        load = Load(monkeypatch)
        pace = Pace(load.served)
        load.passes(share, requests, at_a_time)
        turn = asyncio.create_task(pace.turn())
        await asyncio.sleep(0)
        assert pace.crowded is crowded
        assert turn.done() is not crowded
        await turn  # it comes all the same

    run(test())


def test_turns_come_seldom_while_it_is_crowded_and_at_once_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        load = Load(monkeypatch)
        pace = Pace(load.served)
        load.passes(1, 5000)
        done: list[int] = []

        async def turn(n: int) -> None:
            await pace.turn()
            done.append(n)

        tasks = [asyncio.create_task(turn(n)) for n in range(30)]
        await asyncio.sleep(TURN_S * 3)
        assert 0 < len(done) < 15
        tasks[20].cancel()
        load.passes(0.1, 0)
        await asyncio.wait(tasks)
        assert done == [n for n in range(30) if n != 20]
        await pace.turn()

    run(test())


# -- the journal -----------------------------------------------------------------------------------


class Records:
    """As much of a record store as a journal needs; it may be told to fail, or to wait."""

    def __init__(self) -> None:
        self.rows: dict[str, Record] = {}
        self.broken = False
        self.before_write: Callable[[], Awaitable[None]] | None = None

    async def get(self, kind: str, project: str, key: str, *, ended: bool = False) -> Record | None:
        return self.rows.get(key)

    async def _write(self, record: Record) -> bool:
        if self.before_write is not None:
            await self.before_write()
        if self.broken:
            raise Unavailable("out of order")
        self.rows[record.key] = record
        return True

    async def insert(self, record: Record, ttl_s: int | None = None) -> bool:
        return record.key not in self.rows and await self._write(record)

    async def update(self, record: Record, ttl_s: int | None = None) -> bool:
        there = self.rows.get(record.key)
        return there is not None and await self._write(record)

    async def delete(self, kind: str, project: str, key: str) -> None:
        self.rows.pop(key, None)


def test_the_journal_loses_nothing_to_a_store_that_fails() -> None:
    async def test() -> None:
        records = Records()
        journal = Journal(cast("RecordStore", records))

        def note(n: int) -> None:
            for key in ("a", "b", "c"):
                journal.note("p", key, Attempt(n, "delivered"), counts=True)

        note(1)
        records.broken = True
        for n in (2, 3):
            with pytest.raises(Unavailable):
                await journal.write()
            note(n)
        records.broken = False
        await journal.write()
        for key in ("a", "b", "c"):
            history = await journal.read("p", key)
            assert history.delivered == 3
            assert [attempt.time_ms for attempt in history.attempts] == [3, 2, 1]
        again = Journal(cast("RecordStore", records))
        assert await again.read("p", "a") == await journal.read("p", "a")

    run(test())


def test_what_is_noted_while_the_journal_writes_is_written_next() -> None:
    async def test() -> None:
        records = Records()
        journal = Journal(cast("RecordStore", records))

        async def meanwhile() -> None:
            records.before_write = None
            journal.note("p", "a", Attempt(2, "delivered"), counts=True)

        journal.note("p", "a", Attempt(1, "delivered"), counts=True)
        records.before_write = meanwhile
        await journal.write()
        await journal.write()
        history = await Journal(cast("RecordStore", records)).read("p", "a")
        assert [attempt.time_ms for attempt in history.attempts] == [2, 1]
        assert history.delivered == 2

    run(test())


def test_a_journal_that_writes_does_not_bring_back_what_is_forgotten() -> None:
    async def test() -> None:
        records = Records()
        journal = Journal(cast("RecordStore", records))
        forgetting: list[asyncio.Task[None]] = []

        async def meanwhile() -> None:
            records.before_write = None
            forgetting.append(asyncio.create_task(journal.forget("p", "a")))
            await asyncio.sleep(0.01)

        journal.note("p", "a", Attempt(1, "delivered"), counts=True)
        records.before_write = meanwhile
        await journal.write()
        await asyncio.gather(*forgetting)
        await journal.write()
        assert records.rows == {}
        assert (await journal.read("p", "a")).attempts == []

    run(test())


def test_a_history_is_as_long_as_it_may_be() -> None:
    async def test() -> None:
        records = Records()
        journal = Journal(cast("RecordStore", records))
        for n in range(100):
            journal.note("p", "a", Attempt(n, "failed"), counts=True)
            if n % 7 == 0:
                await journal.write()
            history = await journal.read("p", "a")
            expected = list(range(n, max(n - 20, -1), -1))
            assert [attempt.time_ms for attempt in history.attempts] == expected
        assert (await journal.read("p", "a")).delivered == 0
        await journal.write()
        assert len(msgspec.json.decode(records.rows["a"].doc)["attempts"]) == 20

    run(test())


# -- the end of the stories ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest.mark.parametrize("name", STORIES)
def test_through_an_end_and_a_start(lives: Lives, name: str, end: str) -> None:
    failure = lives[end].result()[name]
    if failure is not None:
        raise failure
