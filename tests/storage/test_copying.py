"""Everything goes from one store to another, of the same kind or not, however often interrupted."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from nusku.errors import StoreRefused, Unavailable
from nusku.model import QueueRef, Record, Stored
from nusku.storage import Removal, Store, StoreOptions, copying
from nusku.storage.copying import Progress, Summary, copy, holding_of, level
from tests.storage.harness import BACKENDS, LONG_S, House

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(params=sorted(BACKENDS))
def goal(request: pytest.FixtureRequest) -> str:
    """What kind of store is copied to."""
    kind: str = request.param
    chosen = request.config.getoption("--store")
    if chosen and kind not in chosen.split(","):
        pytest.skip("this kind of store was not asked for")
    return kind


@pytest.fixture
def other(house: House, goal: str, tmp_path: Path, runner: asyncio.Runner) -> Iterator[House]:
    """The store to copy to, by the same clock."""
    other = second(house, goal, tmp_path)
    runner.run(other.open())
    yield other
    runner.run(other.close())


@pytest.fixture
def twin(house: House, backend: str, tmp_path: Path, runner: asyncio.Runner) -> Iterator[House]:
    """The store to copy to, of the same kind."""
    twin = second(house, backend, tmp_path)
    runner.run(twin.open())
    yield twin
    runner.run(twin.close())


def second(house: House, kind: str, folder: Path) -> House:
    (folder / "other").mkdir()
    other = House(BACKENDS[kind](folder / "other"), StoreOptions(synchronous="normal"))
    other.clock = house.clock
    return other


async def furnish(house: House) -> None:
    """Queues and records of all kinds, in all states."""
    orders = await house.queue("orders")
    await house.post(orders, *(f"order {n}" for n in range(30)), client="c1")
    claim, held = await house.hold(orders, 8, ttl_s=600)
    await house.messages.renew(orders, claim, 900, 60, held[:3])
    await house.messages.release(orders, claim, 120, held[6:])
    await house.post(orders, "once", dedup="k")
    await house.post(orders, "later", delay_s=300, attributes=b"\x00\xff")
    await house.post(orders, "short", ttl_s=60)
    counted = await house.messages.claim(orders, 1, 5, 60, max_count=3)
    assert counted.claim is not None
    await house.messages.pop(orders, 2)
    emptied = await house.queue("emptied", "p2")
    await house.post(emptied, *"abc")
    await house.messages.clear(emptied)
    for n in range(20):
        await house.post(await house.queue(f"q{n}", "P2"), f"{n}", "ü" * n)
    await house.post(await house.queue("news", "p3", "topic"), "news")
    await house.post(await house.queue("topic/news", "p3", "notice"), "tell")
    work, failed = await house.queue("s", "p3", "delivery"), await house.queue("s", "p3", "failed")
    await house.post(work, "given up", "again")
    claim, held = await house.hold(work, 1)
    await house.messages.move(work, held, failed, 9000, {held[0]: b"why"}, claim)
    leaving = await house.queue("leaving")
    await house.post(leaving, "on its way")
    await house.messages.seal(leaving._replace(version=4))
    for kind, project, key, parent, unique, ttl_s in (
        ("queue", "p1", "orders", "", None, None),
        ("pool", "", "fast", "", "sqlite:///x", None),
        ("flavor", "p1", "fast", "", None, None),
        ("subscription", "p3", "s", "topic/news", "http://a", 600),
        ("subscription", "p3", "over", "topic/news", "http://b", 1),
        ("placement", "", "fast/queue/q/p1", "fast", None, None),
        ("ü", "ü", "ü", "ü", "ü", None),
    ):
        record = Record(kind, project, key, b"\x00\xff", parent=parent, unique=unique)
        assert await house.records.insert(record, ttl_s)
    record = Record("queue", "p1", "orders", b"{}", 2)
    assert await house.records.update(record)
    house.clock.turn(2)


async def content(house: House) -> tuple[list[Any], list[Any]]:
    """All that a store holds: queues with what is in them, and records."""
    queues = []
    for holding in await house.messages.queues(None, 1000):
        messages = await house.messages.dump(holding.ref, 0, 100_000)
        queues.append((holding._replace(now_ms=0), messages))
    records = await house.records.dump(("", "", ""), 1000)
    return queues, [replace(one, read_ms=0, unique=named(house, one)) for one in records]


def named(house: House, record: Record) -> str | None:
    """An ended record keeps its name or not."""
    ended = record.ends_ms is not None and record.ends_ms <= house.clock()
    return None if ended else record.unique


def quietly(progress: Progress) -> None:
    """Nobody looks."""


async def test_a_copy_has_everything(house: House, other: House) -> None:
    await furnish(house)
    seen: list[Progress] = []
    summary = await copy(house.store, other.store, seen.append)
    before, after = await content(house), await content(other)
    assert after == before
    assert len(before[0]) == 27
    assert (summary.queues, summary.records) == (27, 8)
    assert summary.messages == sum(len(messages) for _, messages in before[0])
    assert seen[-1].done == seen[-1].whole == summary.messages + summary.records
    assert [one.done for one in seen] == sorted(one.done for one in seen)
    await other.reopen()
    assert await content(other) == before


async def test_a_copy_goes_on_as_the_original_would(house: House, other: House) -> None:
    await furnish(house)
    await copy(house.store, other.store, quietly)
    refs = [one.ref for one in await house.messages.queues(None, 1000) if not one.sealed]
    for seconds in (3, 57, 60, 180, 300, 300):
        house.clock.turn(seconds)
        for ref in refs:
            assert await other.all(ref) == await house.all(ref)
            assert await other.messages.count(ref) == await house.messages.count(ref)
        assert await other.messages.volume() == await house.messages.volume()
    for ref in refs:
        assert await other.post(ref, "new") == await house.post(ref, "new")
        got, expected = [await one.messages.claim(ref, 100, 60, 60, 9) for one in (other, house)]
        assert [m.body for m in got.messages] == [m.body for m in expected.messages]
        assert [m.count for m in got.messages] == [m.count for m in expected.messages]
    found = await other.records.find("ü", "ü", "ü")
    assert found is not None
    assert await other.records.page("subscription", "p3", "", 9, parent="topic/news") == []


# Interrupted


class Broken(Exception):
    """The copying process is no more."""


class _Part:
    """The messages or records of a store, of which one call is the last."""

    def __init__(self, part: Any, before: Callable[[], None], after: Callable[[], None]) -> None:
        self._part = part
        self._before = before
        self._after = after

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        call = getattr(self._part, name)

        async def counted(*args: Any, **options: Any) -> Any:
            self._before()
            result = await call(*args, **options)
            self._after()
            return result

        return counted


def breaking(store: Store, before: Callable[[], None], after: Callable[[], None]) -> Store:
    return store._replace(
        messages=cast("Any", _Part(store.messages, before, after)),
        records=cast("Any", _Part(store.records, before, after)),
    )


async def interrupted(house: House, other: House, at: int, *, done: bool) -> Summary | None:
    """Copy, but die before or after the call of that number; None if it came to that."""
    calls = 0

    def strike() -> None:
        nonlocal calls
        calls += 1
        if calls >= at:
            raise Broken

    def nothing() -> None:
        """This time it works."""

    before, after = (nothing, strike) if done else (strike, nothing)
    source, target = (breaking(one.store, before, after) for one in (house, other))
    try:
        return await copy(source, target, quietly)
    except Broken:
        return None


@pytest.mark.parametrize("done", [False, True])
async def test_an_interrupted_copy_is_gone_on_with(
    house: House, twin: House, done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await goes_on(house, twin, done, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("done", [False, True])
async def test_an_interrupted_copy_to_a_store_of_any_kind_is_gone_on_with(
    house: House, other: House, done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await goes_on(house, other, done, monkeypatch)


async def goes_on(house: House, other: House, done: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets a few calls further each time, and never further than that."""
    monkeypatch.setattr(copying, "QUEUES_AT_ONCE", 3)
    monkeypatch.setattr(copying, "LOADED", 8)
    await furnish(house)
    at = 1
    while await interrupted(house, other, at, done=done) is None:
        at += 1 if at < 25 else 7
    assert await content(other) == await content(house)
    assert at > 50


async def test_what_changed_between_two_attempts_is_changed_in_the_copy(
    house: House, twin: House
) -> None:
    """A server may have been running again in between."""
    await furnish(house)
    await interrupted(house, twin, 150, done=True)
    refs = {one.ref.key.name: one.ref for one in await house.messages.queues(None, 1000)}
    await house.messages.pop(refs["orders"], 5)
    await house.post(refs["orders"], "more")
    await house.hold(refs["orders"], 2)
    await house.messages.drop(refs["q3"])
    await house.post(await house.queue("q4", "P2"), "anew")
    await house.post(await house.queue("another"), "x")
    await house.records.delete("flavor", "p1", "fast")
    await house.records.update(Record("queue", "p1", "orders", b"changed", 3))
    await house.records.delete("ü", "ü", "ü")
    assert await house.records.insert(Record("ü", "ü", "a", b"", unique="ü"))
    await copy(house.store, twin.store, quietly)
    assert await content(twin) == await content(house)


async def test_a_store_that_fails_is_copied_later(house: House, twin: House) -> None:
    await furnish(house)

    def away() -> None:
        raise Unavailable("The store is away.")

    def nothing() -> None:
        """This one works."""

    for source, target in (
        (breaking(house.store, away, nothing), twin.store),
        (house.store, breaking(twin.store, away, nothing)),
    ):
        with pytest.raises(Unavailable):
            await copy(source, target, quietly)
    await copy(house.store, twin.store, quietly)
    assert await content(twin) == await content(house)


# Refused


@pytest.mark.parametrize("what", ["queue", "record"])
async def test_a_store_that_holds_something_is_not_overwritten(
    house: House, twin: House, what: str
) -> None:
    await furnish(house)
    if what == "queue":
        await twin.post(await twin.queue("mine"), "x")
    else:
        await twin.records.insert(Record("queue", "p", "mine", b""))
    before = await content(twin)
    with pytest.raises(StoreRefused, match="not empty"):
        await copy(house.store, twin.store, quietly)
    assert await content(twin) == before


async def test_a_store_that_holds_nothing_is_not_copied(house: House, twin: House) -> None:
    """Its URI is rather a mistake."""
    for _ in range(2):
        with pytest.raises(StoreRefused, match="is empty"):
            await copy(house.store, twin.store, quietly)
        await house.records.insert(Record("identity", "", "identity", b'"me"'))
    assert await content(twin) == ([], [])


async def test_a_finished_copy_is_not_overwritten(house: House, twin: House) -> None:
    await furnish(house)
    await copy(house.store, twin.store, quietly)
    with pytest.raises(StoreRefused, match="not empty"):
        await copy(house.store, twin.store, quietly)


async def test_an_unfinished_copy_is_of_one_store(
    house: House, twin: House, backend: str, tmp_path: Path
) -> None:
    await furnish(house)
    await interrupted(house, twin, 100, done=True)
    with pytest.raises(StoreRefused, match="itself"):
        await copy(twin.store, house.store, quietly)
    (tmp_path / "third").mkdir()
    third = House(BACKENDS[backend](tmp_path / "third"), StoreOptions(synchronous="normal"))
    third.clock = house.clock
    await third.open()
    try:
        await third.queue()
        with pytest.raises(StoreRefused, match="another store"):
            await copy(third.store, twin.store, quietly)
    finally:
        await third.close()
    await copy(house.store, twin.store, quietly)


@pytest.mark.parametrize("seconds", [-3, 3])
async def test_clocks_have_to_agree(house: House, twin: House, seconds: int) -> None:
    await furnish(house)
    clock = twin.clock
    twin.clock = type(clock)(clock() + 1000 * seconds)
    await twin.reopen()
    with pytest.raises(StoreRefused, match=r"3\.0 s apart"):
        await copy(house.store, twin.store, quietly)
    twin.clock.turn(-seconds + 1)
    if seconds < 0:
        await copy(house.store, twin.store, quietly)


# Of a single queue


async def test_a_queue_is_found_among_those_of_similar_names(house: House) -> None:
    names = ("a", "aa", "ab", "b", "b-", "B", "_", ".a", "0", "00", "z" * 64)
    refs = [await house.queue(name) for name in names]
    await house.queue("a", "p0")
    await house.queue("a", kind="topic")
    for ref in refs:
        found = await holding_of(house.messages, ref.key)
        assert found is not None
        assert found.ref == ref
    for name in ("c", "a-", "aaa", "~", "z" * 63):
        assert await holding_of(house.messages, refs[0].key._replace(name=name)) is None


@pytest.mark.parametrize("size", [1, 50_000])
async def test_levelling_loads_what_differs_and_that_only(
    house: House, twin: House, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "COMPARED", 50)
    monkeypatch.setattr(copying, "LOADED", 20)
    monkeypatch.setattr(copying, "LOADED_BYTES", 500_000)
    ref = await house.queue()

    async def hold() -> QueueRef:
        return ref

    async def equal() -> int:
        done = await level(house.messages, twin.messages, 1000, hold)
        assert await dump(twin, ref) == await dump(house, ref)
        assert done.messages == len(await dump(house, ref))
        return done.loaded

    given = await house.post(ref, *("x" * size for _ in range(130)))
    assert await equal() == 130
    assert await equal() == 0
    await house.hold(ref, 3)
    assert 3 <= await equal() <= 4
    changed = [given[10], given[60], given[61], given[129]]
    await house.messages.remove(ref, changed, Removal.ANY)
    assert await equal() <= 4
    await house.messages.pop(ref, 40)
    await house.post(ref, *("y" * size for _ in range(7)))
    assert 7 <= await equal() < 40
    await house.messages.clear(ref)
    assert await equal() == 0
    await house.post(ref, "z")
    assert await equal() == 1


async def dump(house: House, ref: QueueRef) -> list[Stored]:
    return await house.messages.dump(ref, 0, 100_000)


async def test_many_messages_of_many_queues_are_copied(house: House, other: House) -> None:
    refs = [await house.queue(f"q{n}") for n in range(30)]
    for n, ref in enumerate(refs):
        await house.fill(ref, 150 if n else 3000, ttl_s=LONG_S)
    summary = await copy(house.store, other.store, quietly)
    assert summary.messages == 3000 + 29 * 150
    assert await content(other) == await content(house)
