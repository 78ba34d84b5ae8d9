"""`nusku import-zaqar`: from a Zaqar as it answers, and from nusku, which speaks its API."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

import nusku.zaqar
from nusku.broker import View
from nusku.broker.arrivals import Arriving
from nusku.broker.queues import Queue
from nusku.config import Settings
from nusku.errors import Unavailable
from nusku.model import Context, Kind, Message, QueueKey
from nusku.storage import Apart, Store, open_store, sqlite_path
from nusku.zaqar import Origin, Summary, ZaqarError, bring, forget, source
from tests.fake_zaqar import UNAVAILABLE, Answer, Driver, FakeQueue, FakeZaqar
from tests.live import TOPICS, Api, LiveServer, expect
from tests.servers.stores import release, store_in

DRIVERS: list[Driver] = ["redis", "mongo"]
CTX = Context("p", "c", frozenset({"admin"}))


def scenario(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A coroutine as a test, with its fixtures."""

    @wraps(test)
    def run(**fixtures: Any) -> None:
        async def main() -> None:
            await test(**fixtures)

        asyncio.run(main())

    return run


async def at_once(pause_s: float) -> None:
    """Instead of a pause: other tasks get their turn."""
    await asyncio.sleep(0)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return of_empty_store(tmp_path)


def of_empty_store(folder: Path) -> Settings:
    """Settings. No test cuts the power."""
    return Settings(store=store_in(LiveServer.kind, folder), sqlite_synchronous="normal")


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that there are many."""
    monkeypatch.setattr(source, "PAGE", 3)


async def brought(settings: Settings, zaqar: FakeZaqar, *projects: str, **origin: Any) -> Summary:
    return await bring(settings, Origin(zaqar.url, projects or ("p",), **origin), pause=at_once)


class Here(NamedTuple):
    """What is in a store, as the broker shows it."""

    metadata: dict[str, Any]
    messages: Sequence[Message]
    now_ms: int
    subscriptions: Sequence[Any]

    @property
    def bodies(self) -> list[Any]:
        return [msgspec.json.decode(m.body) for m in self.messages]


async def look(
    settings: Settings, name: str, kind: Kind = "queue", *, project: str = "p", delayed: bool = True
) -> Here:
    ctx = CTX if project == CTX.project else Context(project, CTX.client, CTX.roles)
    key = QueueKey(kind, project, name)
    async with nusku.zaqar._opened(settings) as here:
        broker = here.broker
        metadata = await broker.queues.get(ctx, key)
        view = await broker.messages.page(
            ctx, key, "", 10_000, echo=True, held=True, delayed=delayed
        )
        subscriptions = await broker.subscriptions.page(ctx, key, "", 1000)
        messages, now_ms = ((), 0) if view is None else (view.messages, view.now_ms)
        return Here(metadata, messages, now_ms, subscriptions)


async def taken(settings: Settings, name: str) -> list[Any]:
    """What a worker gets who pops all there is."""
    async with nusku.zaqar._opened(settings) as here:
        view: View | None = await here.broker.messages.pop(
            CTX, QueueKey("queue", "p", name), 10_000
        )
        return [msgspec.json.decode(m.body) for m in view.messages] if view else []


# What comes


@pytest.mark.parametrize("driver", DRIVERS)
@scenario
async def test_queues_come_with_their_metadata(settings: Settings, driver: Driver) -> None:
    async with FakeZaqar(driver) as zaqar:
        zaqar.queue("jobs", color="red", _default_message_ttl=120, nested={"a": [1, None]})
        zaqar.queue("plain")
        zaqar.post(zaqar.queue("plain"), 1)
        summary = await brought(settings, zaqar)
        assert summary.counts["queues"] == 2
        shown = (await look(settings, "jobs")).metadata
        assert shown["color"] == "red"
        assert shown["nested"] == {"a": [1, None]}
        assert shown["_default_message_ttl"] == 120
        # The defaults are those of the one who shows them, and may be set otherwise here.
        other = msgspec.structs.replace(settings, default_message_ttl=900)
        assert (await look(other, "plain")).metadata["_default_message_ttl"] == 900


@scenario
async def test_what_is_not_to_be_had_here_is_left_out_and_told(settings: Settings) -> None:
    async with FakeZaqar("mongo") as zaqar:
        zaqar.queue("q", _max_messages_post_size=1 << 30, _flavor="gold", a=1)
        summary = await brought(settings, zaqar)
        shown = (await look(settings, "q")).metadata
        assert shown["a"] == 1
        assert "_flavor" not in shown
        told = "\n".join(summary.notes)
        for name in ("_max_messages_post_size", "_flavor"):
            assert f"queue q of p: came without {name}: " in told


@pytest.mark.embedded
@scenario
async def test_encrypted_queues_come_encrypted(settings: Settings) -> None:
    """As they are shown there, in clear; nothing of that is to be found in the store."""
    async with FakeZaqar("mongo") as zaqar:
        queue = zaqar.queue("q", _enable_encrypt_messages=True)
        zaqar.post(queue, *(f"canary {n}" for n in range(4)))
        slow = zaqar.queue("slow", _enable_encrypt_messages=True, _default_message_delay=500)
        zaqar.post(slow, "canary delayed")
        await brought(settings, zaqar)
    here = await look(settings, "q")
    assert here.metadata["_enable_encrypt_messages"] is True
    assert here.bodies == [f"canary {n}" for n in range(4)]
    assert (await look(settings, "slow")).bodies == ["canary delayed"]
    file = sqlite_path(settings.store)
    for each in file.parent.glob(f"{file.name}*"):
        assert b"canary" not in each.read_bytes(), each


@pytest.mark.parametrize("driver", DRIVERS)
@scenario
async def test_messages_keep_order_age_and_the_rest_of_their_lives(
    settings: Settings, driver: Driver
) -> None:
    async with FakeZaqar(driver) as zaqar:
        queue = zaqar.queue("q")
        zaqar.post(queue, *range(30), ttl=3600, age=1800)
        zaqar.post(queue, {"é": [1.5, "x", None]}, None, "text", ttl=100, age=90)
        assert (await brought(settings, zaqar)).counts["messages"] == 33
        here = await look(settings, "q")
        assert here.bodies == [*range(30), {"é": [1.5, "x", None]}, None, "text"]
        for message, (ttl, age) in zip(
            here.messages, [(3600, 1800)] * 30 + [(100, 90)] * 3, strict=True
        ):
            if LiveServer.kind != "redis-cluster":  # there they are copied
                assert message.ttl_s == ttl
            assert abs(here.now_ms - message.posted_ms - age * 1000) < 5000
            assert abs(message.expires_ms - here.now_ms - (ttl - age) * 1000) < 5000


@pytest.mark.parametrize("driver", DRIVERS)
@scenario
async def test_claimed_ones_arrive_unclaimed_with_the_lives_that_claims_gave_them(
    settings: Settings, driver: Driver
) -> None:
    async with FakeZaqar(driver) as zaqar:
        queue = zaqar.queue("q")
        zaqar.claim(queue, *zaqar.post(queue, "prolonged", ttl=600, age=500), ttl=300, grace=100)
        zaqar.claim(queue, *zaqar.post(queue, "as it was", ttl=9000, age=1000))
        zaqar.now += 200
        assert (await brought(settings, zaqar)).notes == NOTES[driver]
        here = await look(settings, "q")
        assert here.bodies == ["prolonged", "as it was"]
        assert [m.claim for m in here.messages] == [None, None]
        lives_s = [(m.expires_ms - here.now_ms) / 1000 for m in here.messages]
        assert lives_s == [pytest.approx(200, abs=5), pytest.approx(7800, abs=5)]


NOTES: Mapping[Driver, list[str]] = {
    "redis": [
        "pools: not shown (GET /v2/pools?detailed=true&limit=20 answered 404: 404 Not Found)",
        "flavors of p: not shown (GET /v2/flavors?detailed=true&limit=20 answered 404: 404 Not Found)",
        "topics of p: not shown (GET /v2/topics?detailed=true&limit=20 answered 503: Please try again.)",
    ],
    "mongo": [
        "pools: not shown (GET /v2/pools?detailed=true&limit=20 answered 404: 404 Not Found)",
        "flavors of p: not shown (GET /v2/flavors?detailed=true&limit=20 answered 404: 404 Not Found)",
    ],
}
"""What is told in any case, of a Zaqar without pools."""


@scenario
async def test_one_that_is_older_than_its_ttl_lives_on(settings: Settings) -> None:
    """A claim that is over has prolonged it, and nothing shows for how long."""
    async with FakeZaqar("redis") as zaqar:
        queue = zaqar.queue("q")
        zaqar.claim(queue, *zaqar.post(queue, 1, ttl=60), ttl=100, grace=60)
        zaqar.now += 1
        queue.messages[0].posted -= 200
        queue.claims.clear()
        queue.messages[0].claim = ""
        summary = await brought(settings, zaqar)
        assert "1 messages were older than their ttl" in summary.notes[-1]
        here = await look(settings, "q")
        assert here.messages[0].expires_ms - here.now_ms == pytest.approx(160_000, abs=5000)


@scenario
async def test_delayed_ones_stay_hidden(settings: Settings) -> None:
    async with FakeZaqar("redis") as zaqar:
        queue = zaqar.queue("q", _default_message_delay=60)
        zaqar.post(queue, "due", age=100)
        zaqar.post(queue, "hidden", age=10)
        zaqar.claim(queue, *zaqar.post(queue, "claimed", age=20))
        await brought(settings, zaqar)
        assert (await look(settings, "q", delayed=False)).bodies == ["due", "claimed"]
        here = await look(settings, "q")
        assert sorted(here.bodies) == ["claimed", "due", "hidden"]
        hidden = here.messages[here.bodies.index("hidden")]
        assert here.now_ms - hidden.posted_ms == pytest.approx(10_000, abs=5000)
        assert hidden.expires_ms - here.now_ms == pytest.approx(3_590_000, abs=5000)


@pytest.mark.parametrize("driver", DRIVERS)
@scenario
async def test_subscriptions_come_with_age_and_the_rest_of_their_lives(
    settings: Settings, driver: Driver
) -> None:
    async with FakeZaqar(driver) as zaqar:
        queue = zaqar.queue("q", a=1)
        zaqar.subscribe(
            queue, "http://a.example/x", ttl=1000, age=400, options={"post_headers": {"a": "b"}}
        )
        zaqar.subscribe(queue, "mailto:a@b.example", ttl=100, age=300, confirmed=True)
        zaqar.subscribe(queue, "http://c.example/", options=None, confirmed=None)
        zaqar.subscribe(queue, "http://127.0.0.1:9/", confirmed=True)
        summary = await brought(settings, zaqar)
        assert summary.counts["subscriptions"] == 3
        assert "subscription of http://127.0.0.1:9/: " in summary.notes[-1]
        shown = {s.subscriber: s for s in (await look(settings, "q")).subscriptions}
        first = shown["http://a.example/x"]
        assert (first.ttl_s, first.options) == (1000, {"post_headers": {"a": "b"}})
        assert first.age_s == pytest.approx(400, abs=5)
        assert [s.confirmed for s in shown.values()].count(True) == 2
        assert not first.confirmed
        key = QueueKey("queue", "p", "q")
        async with nusku.zaqar._opened(settings) as here:
            for subscriber, left_s in (
                ("http://a.example/x", 600), ("mailto:a@b.example", 100), ("http://c.example/", 3600)
            ):  # fmt: skip
                record = await here.broker.subscriptions.record(key.project, shown[subscriber].id)
                assert record is not None
                assert record.ends_ms is not None
                assert record.ends_ms - record.read_ms == pytest.approx(left_s * 1000, abs=5000)
            # The queue knows of them: what is posted now is told.
            queue_ = await here.broker.queues.use(key, _same)
            assert queue_ is not None
            assert queue_.has_subscriptions


async def _same(queue: Queue) -> Queue:
    return queue


@scenario
async def test_topics_come_as_far_as_they_are_shown(settings: Settings) -> None:
    async with FakeZaqar("mongo") as zaqar:
        zaqar.topic("news", a=1)
        summary = await brought(settings, zaqar)
        assert summary.counts["topics"] == 1
        assert (await look(settings, "news", "topic")).metadata["a"] == 1
        told = "\n".join(summary.notes)
        assert "topic news of p: messages are not shown (GET /v2/topics/news/messages" in told
        assert "topic news of p: subscriptions are not shown" in told


@scenario
async def test_numbers_that_json_has_not_become_null(settings: Settings) -> None:
    async with FakeZaqar() as zaqar:
        zaqar.post(
            zaqar.queue("q"), {"a": [1, float("nan")]}, float("inf"), "half \ud83d", "\U0001f600"
        )
        summary = await brought(settings, zaqar)
        assert "3 messages held NaN" in summary.notes[-1]
        assert (await look(settings, "q")).bodies == [
            {"a": [1, None]}, None, "half \ufffd", "\U0001f600"
        ]  # fmt: skip


# How Zaqar answers


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("driver", DRIVERS)
@scenario
async def test_all_pages_are_read_whatever_their_number(settings: Settings, driver: Driver) -> None:
    async with FakeZaqar(driver) as zaqar:
        for number in (0, 1, 2, 3, 4, 6, 7, 40):
            queue = zaqar.queue(f"q{number:02}", n=number)
            if number:
                zaqar.post(queue, *range(number))
            for n in range(number):
                zaqar.subscribe(queue, f"http://{n}.example/")
        summary = await brought(settings, zaqar)
        assert summary.notes == [note.replace("=20", "=3") for note in NOTES[driver]]
        for number in (0, 1, 2, 3, 4, 6, 7, 40):
            here = await look(settings, f"q{number:02}")
            assert here.metadata["n"] == number
            assert here.bodies == list(range(number))
            assert len(here.subscriptions) == number


@pytest.mark.usefixtures("small_pages")
@scenario
async def test_messages_that_go_while_they_are_listed_lead_back_and_nothing_is_missed(
    settings: Settings,
) -> None:
    async with FakeZaqar("redis") as zaqar:
        queue = zaqar.queue("q")
        zaqar.post(queue, *range(30))
        gone: list[Any] = []

        async def work(path: str) -> Answer | None:
            """Somebody deletes what was listed last, so that the marker means nothing."""
            if "marker=" in path and len(gone) < 5 and "/messages" in path:
                ids = [m.id for m in queue.messages]
                marker = path.partition("marker=")[2].partition("&")[0]
                if marker in ids:
                    gone.append(queue.messages.pop(ids.index(marker)).body)
            return None

        zaqar.before = work
        await brought(settings, zaqar)
        assert (await look(settings, "q")).bodies == list(range(30))
        assert len(gone) == 5


@pytest.mark.usefixtures("small_pages")
@scenario
async def test_expired_ones_at_the_beginning_hide_nothing(settings: Settings) -> None:
    async with FakeZaqar("redis") as zaqar:
        queue = zaqar.queue("q")
        zaqar.post(queue, *"abcdefg", ttl=60, age=100)
        zaqar.post(queue, 1, 2)
        summary = await brought(settings, zaqar)
        assert (await look(settings, "q")).bodies == [1, 2]
        assert "its statistics count 7 messages more than it shows" in summary.notes[-1]


@pytest.mark.usefixtures("small_pages")
@scenario
async def test_names_that_are_cut_at_a_dot_are_told_and_others_found_behind_them(
    settings: Settings,
) -> None:
    async with FakeZaqar("redis") as zaqar:
        for name in ("a", "b", "b.c", "c.a", "d", "e", "f.x", "g"):
            zaqar.post(zaqar.queue(name, n=name), name)
        summary = await brought(settings, zaqar)
        for name in "abdeg":
            assert (await look(settings, name)).bodies == [name]
        told = "\n".join(summary.notes)
        assert "queue b of p: more than one queue is listed by this name" in told
        assert "queue c of p: not brought" in told
        assert "queue f of p: not brought" in told
        await brought(settings, zaqar, queues=("b.c", "c.a", "f.x"))
        for name in ("b.c", "c.a", "f.x"):
            here = await look(settings, name)
            assert (here.bodies, here.metadata["n"]) == ([name], name)


@scenario
async def test_statistics_that_fail_are_done_without(settings: Settings) -> None:
    async with FakeZaqar("redis") as zaqar:
        queue = zaqar.queue("q")
        zaqar.claim(queue, *zaqar.post(queue, 1, 2), ttl=60)
        zaqar.now += 61
        await brought(settings, zaqar)
        assert (await look(settings, "q")).bodies == [1, 2]


@scenario
async def test_reads_are_tried_again_when_it_is_away(settings: Settings) -> None:
    async with FakeZaqar("mongo") as zaqar:
        zaqar.post(zaqar.queue("q"), *range(5))
        answers = [0]

        async def hiccup(path: str) -> Answer | None:
            answers[0] += 1
            if answers[0] % 3:
                return UNAVAILABLE if answers[0] % 2 else (504, {})
            return None

        zaqar.before = hiccup
        await brought(settings, zaqar)
        assert (await look(settings, "q")).bodies == list(range(5))


# Errors


@scenario
async def test_what_is_no_zaqar_or_lets_nobody_in_is_told(settings: Settings) -> None:
    async with FakeZaqar() as zaqar:
        zaqar.token = "secret"
        with pytest.raises(ZaqarError, match=r"answered 401.*the token is missing"):
            await brought(settings, zaqar)
        assert (await brought(settings, zaqar, token="secret")).counts["queues"] == 0

        said: list[Answer] = []
        strange: list[Answer] = [(404, {"a": 1}), (200, {"a": 1}), (200, []), (403, {})]

        async def other(path: str) -> Answer | None:
            return said[0]

        zaqar.before = other
        for answer in strange:
            said[:] = [answer]
            with pytest.raises(ZaqarError, match="is not a Zaqar with the v2 API"):
                await brought(settings, zaqar)
        said[:] = [(302, {})]
        with pytest.raises(ZaqarError, match="answered 302"):
            await brought(settings, zaqar)
    with pytest.raises(ZaqarError, match="cannot be reached"):
        await brought(settings, zaqar)


@scenario
async def test_a_token_is_for_one_project(settings: Settings) -> None:
    with pytest.raises(ZaqarError, match="a token is for one project"):
        await bring(settings, Origin("http://127.0.0.1:9", ("a", "b"), token="x"))


# Twice


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("driver", DRIVERS)
@scenario
async def test_a_second_run_brings_what_is_new_and_nothing_twice(
    settings: Settings, driver: Driver
) -> None:
    async with FakeZaqar(driver) as zaqar:
        queue = zaqar.queue("q", a=1)
        zaqar.post(queue, *range(10))
        zaqar.subscribe(queue, "http://a.example/")
        await brought(settings, zaqar)
        assert await taken(settings, "q") == list(range(10))  # and none of them comes again
        zaqar.post(queue, 10, 11)
        zaqar.subscribe(queue, "http://b.example/")
        zaqar.post(zaqar.queue("r"), "r")
        counts = (await brought(settings, zaqar)).counts
        assert (counts["queues"], counts["messages"], counts["subscriptions"]) == (1, 3, 1)
        here = await look(settings, "q")
        assert here.bodies == [10, 11]
        assert len(here.subscriptions) == 2
        assert (await brought(settings, zaqar)).counts == dict.fromkeys(counts, 0)


@scenario
async def test_what_is_here_already_stays_as_it_is(settings: Settings) -> None:
    async with FakeZaqar() as zaqar:
        queue = zaqar.queue("q", a="there")
        zaqar.post(queue, 1)
        zaqar.subscribe(queue, "http://a.example/", options={"a": "there"})
        key = QueueKey("queue", "p", "q")
        async with nusku.zaqar._opened(settings) as here:
            await here.broker.queues.create(CTX, key, {"a": "here"})
            await here.broker.subscriptions.create(
                CTX, key, {"subscriber": "http://a.example/", "options": {"a": "here"}}
            )
        await brought(settings, zaqar)
        found = await look(settings, "q")
        assert found.metadata["a"] == "here"
        assert [s.options for s in found.subscriptions] == [{"a": "here"}]
        assert found.bodies == [1]


@scenario
async def test_what_was_deleted_here_does_not_come_back(settings: Settings) -> None:
    async with FakeZaqar() as zaqar:
        zaqar.subscribe(zaqar.queue("q", a=1), "http://a.example/")
        await brought(settings, zaqar)
        key = QueueKey("queue", "p", "q")
        async with nusku.zaqar._opened(settings) as here:
            await here.broker.subscriptions.clear(key)
        await brought(settings, zaqar)
        assert (await look(settings, "q")).subscriptions == []


@scenario
async def test_what_was_forgotten_comes_again(settings: Settings) -> None:
    async with FakeZaqar() as zaqar:
        zaqar.post(zaqar.queue("q"), 1, 2)
        zaqar.post(zaqar.queue("q", "other"), 3)
        await brought(settings, zaqar, "p", "other")
        assert await taken(settings, "q") == [1, 2]
        assert await forget(settings, ["p"]) == 2
        assert (await brought(settings, zaqar, "p", "other")).counts["messages"] == 2
        assert (await look(settings, "q")).bodies == [1, 2]
        assert (await look(settings, "q", project="other")).bodies == [3]


# Interrupted


class Crash(Exception):
    """The process ended here."""


def filled(zaqar: FakeZaqar) -> FakeQueue:
    queue = zaqar.queue("q", a=1)
    zaqar.post(queue, *range(5))
    zaqar.subscribe(queue, "http://a.example/")
    zaqar.subscribe(queue, "http://b.example/")
    other = zaqar.queue("r", _default_message_delay=60)
    zaqar.post(other, "due", age=90)
    zaqar.post(other, "hidden")
    return queue


async def check_all_came_once(settings: Settings, before: Sequence[Any] = ()) -> None:
    here = await look(settings, "q")
    assert [*before, *here.bodies] == list(range(5))
    assert len(here.subscriptions) == 2
    assert (await look(settings, "r")).bodies == ["due", "hidden"]


@pytest.mark.slow
@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("driver", DRIVERS)
@scenario
async def test_interrupted_at_any_request_it_goes_on(tmp_path: Path, driver: Driver) -> None:
    async with FakeZaqar(driver) as zaqar:
        filled(zaqar)
        left = [0]

        async def end(path: str) -> Answer | None:
            left[0] -= 1
            return None if left[0] >= 0 else (400, {"title": "the end"})

        zaqar.before = end
        for after in range(1 << 30):
            folder = tmp_path / str(after)
            folder.mkdir()
            settings = of_empty_store(folder)
            left[0] = after
            try:
                await brought(settings, zaqar)
            except ZaqarError:
                before = await taken(settings, "q")
                left[0] = 1 << 30
                await brought(settings, zaqar)
                await check_all_came_once(settings, before)
                release(folder)
            else:
                assert after > 15
                break


class Failing:
    """One half of a store. After so many of its operations the process ends, before the last of
    them is answered.
    """

    def __init__(self, inner: Any, left: list[int]) -> None:
        self._inner = inner
        self._left = left

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._inner, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            if self._left[0] <= 0:
                raise Crash
            result = await operation(*arguments, **options)
            self._left[0] -= 1
            if self._left[0] <= 0:
                raise Crash
            return result

        return call


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("small_pages")
@scenario
async def test_interrupted_at_any_operation_of_the_store_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And workers are busy in between."""
    left = [1 << 30]

    async def opened(*arguments: Any) -> Store:
        store = await open_store(*arguments)
        return store._replace(
            messages=Failing(store.messages, left), records=Failing(store.records, left)
        )

    monkeypatch.setattr(nusku.zaqar, "open_store", opened)
    async with FakeZaqar("mongo") as zaqar:
        filled(zaqar)
        for after in range(1 << 30):
            folder = tmp_path / str(after)
            folder.mkdir()
            settings = of_empty_store(folder)
            left[0] = after
            try:
                await brought(settings, zaqar)
            except Crash:
                left[0] = 1 << 30
                before = await taken(settings, "q")
                await brought(settings, zaqar)
                await check_all_came_once(settings, before)
                release(folder)
            else:
                assert after > 50
                break


@scenario
async def test_it_goes_on_by_itself_when_the_store_was_away(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [3]
    add = Arriving.add

    async def failing(self: Any, *arguments: Any) -> int:
        failures[0] -= 1
        if failures[0] >= 0:
            raise Unavailable
        return await add(self, *arguments)

    monkeypatch.setattr(Arriving, "add", failing)
    async with FakeZaqar() as zaqar:
        filled(zaqar)
        await brought(settings, zaqar)
        await check_all_came_once(settings)


@scenario
async def test_where_nothing_can_be_moved_it_is_copied(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a cluster, where queues are apart."""

    async def apart(*arguments: Any) -> list[int]:
        raise Apart

    async def opened(*arguments: Any) -> Store:
        store = await open_store(*arguments)
        monkeypatch.setattr(store.messages, "move", apart)
        return store

    monkeypatch.setattr(nusku.zaqar, "open_store", opened)
    async with FakeZaqar() as zaqar:
        queue = filled(zaqar)
        zaqar.post(queue, "old", ttl=200, age=150)
        await brought(settings, zaqar)
        here = await look(settings, "q")
        assert here.bodies == [*range(5), "old"]
        assert here.now_ms - here.messages[5].posted_ms == pytest.approx(150_000, abs=5000)
        assert here.messages[5].expires_ms - here.now_ms == pytest.approx(50_000, abs=5000)


# Pools and flavors


@pytest.mark.only("sqlite")
@scenario
async def test_pools_and_flavors_come_where_they_can_be_used(
    settings: Settings, tmp_path: Path
) -> None:
    async with FakeZaqar("mongo") as zaqar:
        uri = f"sqlite:///{tmp_path}/pools/one.db"
        (tmp_path / "pools").mkdir()
        zaqar.pools = [
            {
                "name": "hidden",
                "uri": "redis://:***@h/0",
                "weight": 1,
                "flavor": None,
                "options": {},
            },
            {
                "name": "mongo",
                "uri": "mongodb://h/",
                "weight": 10,
                "flavor": "silver",
                "options": {},
            },
            {"name": "one", "uri": uri, "weight": 10, "flavor": "gold", "options": {"x": 1}},
        ]
        zaqar.flavors = [
            {"name": "gold", "pool_list": ["one"], "capabilities": []},
            {"name": "silver", "pool_list": ["mongo"]},
        ]
        zaqar.post(zaqar.queue("q", _flavor="gold"), 1)
        zaqar.post(zaqar.queue("r", _flavor="silver"), 2)
        summary = await brought(settings, zaqar)
        assert (summary.counts["pools"], summary.counts["flavors"]) == (1, 1)
        told = "\n".join(summary.notes)
        for what in ("pool hidden: not brought", "pool mongo: not brought", "silver of p: not br"):
            assert what in told
        assert (await look(settings, "q")).bodies == [1]
        assert (await look(settings, "q")).metadata["_flavor"] == "gold"
        assert (await look(settings, "r")).bodies == [2]
        async with nusku.zaqar._opened(settings) as here:
            queue = await here.broker.queues.use(QueueKey("queue", "p", "q"), _same)
            assert queue is not None
            assert queue.pool == "one"
        assert (await brought(settings, zaqar)).counts == dict.fromkeys(summary.counts, 0)


@scenario
async def test_pools_can_be_left_alone(settings: Settings) -> None:
    async with FakeZaqar("mongo") as zaqar:
        zaqar.pools = [{"name": "one", "uri": "mongodb://h/", "weight": 10}]
        assert (await brought(settings, zaqar, pools=False)).notes == []


# From nusku


def test_what_nusku_shows_comes_over_whole(
    api: Api, settings: Settings, server: LiveServer
) -> None:
    """It speaks the API of Zaqar, and its topics work."""
    api.create("jobs", {"color": "red", "_default_message_ttl": 300})
    api.post_bodies("jobs", *range(45))
    claim = api.claimed("jobs", "?limit=5")
    api.request("POST", api.path("jobs", "subscriptions"), json={"subscriber": "http://a.example/"})
    topic = api.but(kind=TOPICS)
    topic.create("news", {"a": 1})
    topic.post_bodies("news", "hot")
    summary = asyncio.run(bring(settings, Origin(server.url, (api.project,))))
    assert summary.counts == {
        "queues": 1, "topics": 1, "messages": 46, "subscriptions": 1, "pools": 0, "flavors": 0
    }  # fmt: skip
    assert asyncio.run(taken(settings, "jobs")) == []  # it is of another project
    here = asyncio.run(look(settings, "jobs", project=api.project))
    assert here.bodies == list(range(45))
    assert here.metadata == expect(api.show("jobs"), 200)
    assert asyncio.run(look(settings, "news", "topic", project=api.project)).bodies == ["hot"]
    # And it was only looked at.
    assert expect(api.show_claim("jobs", claim.claim_id), 200)["messages"]
    assert api.stats("jobs")["total"] == 45
