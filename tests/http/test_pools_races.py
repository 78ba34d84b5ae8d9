"""Pools come and go on one node while queues are made, used and emptied on another: no message that
was answered may be lost, doubled or reordered.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from nusku.broker import pools
from nusku.broker.codec import Codec
from nusku.broker.limits import Limits
from nusku.broker.moving import Moving
from nusku.broker.notices import make, notices_of
from nusku.broker.pools import Pools
from nusku.broker.queues import Change, Document, Queue, Queues, changed, document_of, ref_of
from nusku.broker.queues import Moving as Move
from nusku.broker.quotas import Quotas
from nusku.broker.usage import Usage
from nusku.config import Settings
from nusku.errors import Conflict, NuskuError, PoolInUse, Unavailable
from nusku.keyring import Ring
from nusku.metrics import Metrics
from nusku.model import Context, Draft, QueueKey, QueueRef, Record
from nusku.storage import Removal, Store, StoreOptions, open_store

pytestmark = [pytest.mark.embedded, pytest.mark.slow]  # the stores are files

CTX = Context("project", "client", frozenset({"admin"}))
LANES = range(4)
NAMES = ("a", "b", "c")
SECONDS = 1.5
PATIENCE_S = 30.0  # with a machine so busy that too little happens in that time


class Slow:
    """Lets others run before and after each operation of a store."""

    def __init__(self, inner: Any, rng: random.Random) -> None:
        self._inner = inner
        self._rng = rng

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._inner, name)

        async def slowly(*args: Any, **options: Any) -> Any:
            await self._pause()
            result = await operation(*args, **options)
            await self._pause()
            return result

        return slowly

    async def _pause(self) -> None:
        for _ in range(self._rng.choice((0, 0, 1, 5))):
            await asyncio.sleep(0)


class Stores:
    """Files that many may open, as many may connect to a database."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self._folder = folder
        self._rng = rng
        self._open: dict[str, Store] = {}

    async def open(self, uri: str, _: object = None) -> Store:
        if uri not in self._open:
            file = f"sqlite:///{self._folder / uri.rpartition('/')[2]}.db"
            self._open[uri] = await open_store(file, None, StoreOptions(), Metrics())
        store = self._open[uri]

        async def stay() -> None:
            pass

        return store._replace(
            messages=Slow(store.messages, self._rng),
            records=Slow(store.records, self._rng),
            close=stay,
            shared=True,
        )

    async def close(self) -> None:
        for store in self._open.values():
            await store.close()


class Node:
    """What of a node has to do with pools and queues."""

    def __init__(self, own: Store, stores: Stores, rng: random.Random) -> None:
        settings = Settings(store="postgresql://own/own")
        self.pools = Pools(own, stores.open, settings, rng)
        limits, measure = Limits(settings, None), Usage(self.pools, own.records).of
        quotas = Quotas(limits, own, measure, rng, Metrics(), flight_s=1)
        codec = Codec(Ring(), Metrics())
        self.queues = Queues(self.pools, own.records, codec, quotas, settings, rng)
        self.moving = moving = Moving(self.pools, own.records)
        self.queues.move, self.queues.rescue = moving.move, moving.rescue
        self.pools.unplace, self.pools.drain_step = moving.unplace, moving.drain_step


@asynccontextmanager
async def nodes(folder: Path, rng: random.Random, number: int) -> AsyncIterator[list[Node]]:
    async with AsyncExitStack() as stack:
        stores = Stores(folder, rng)
        stack.push_async_callback(stores.close)
        own = await stores.open("own://own")
        made = [Node(own, stores, rng) for _ in range(number)]
        for node in made:
            stack.push_async_callback(node.pools.close)
        yield made


class Ledger:
    """What was answered."""

    def __init__(self) -> None:
        self.posted: defaultdict[QueueKey, list[bytes]] = defaultdict(list)
        self.unsure: defaultdict[QueueKey, set[bytes]] = defaultdict(set)
        self.taken: defaultdict[QueueKey, list[bytes]] = defaultdict(list)
        self.did: Counter[str] = Counter()
        self.recent: defaultdict[int, deque[QueueKey]] = defaultdict(lambda: deque(maxlen=3))
        self.over = False

    def is_enough(self) -> bool:
        """Whether so much has happened that it proves something."""
        return sum(map(len, self.taken.values())) > 50 and bool(self.did["delete"])


async def produce(node: Node, lane: int, ledger: Ledger, rng: random.Random) -> None:
    """Post to one queue and then to the next, alone, so that the order is known."""
    n = 0
    key = QueueKey("queue", "project", f"{lane}-{n}")
    while not ledger.over:
        n += 1
        if not rng.randrange(15):
            key = key._replace(name=f"{lane}-{n}")
        ledger.recent[lane].append(key)
        body = f"{n:06}".encode()

        async def post(queue: Queue, body: bytes = body) -> None:
            await queue.store.messages.add([(queue.ref, [Draft(body, 3600)])])

        try:
            await node.queues.use(key, post, create=True)
            ledger.posted[key].append(body)
        except Unavailable:
            ledger.unsure[key].add(body)
        # Often the queues are empty, so that their pools may go.
        await asyncio.sleep(rng.choice((0, 0, 0.002, 0.02)))


async def consume(node: Node, lane: int, ledger: Ledger, rng: random.Random) -> None:
    """Take from the queues that were posted to last; nobody else does."""
    while not ledger.over:
        if ledger.recent[lane]:
            key = rng.choice(ledger.recent[lane])

            async def pop(queue: Queue, key: QueueKey = key) -> None:
                found = await queue.store.messages.pop(queue.ref, 20)
                ledger.taken[key] += [message.body for message in found.messages]

            try:
                await node.queues.use(key, pop)
            except Unavailable:
                ledger.did["not popped"] += 1
        await asyncio.sleep(rng.choice((0, 0, 0.001)))


async def operate(node: Node, ledger: Ledger, rng: random.Random) -> None:
    """Add pools, delete them, give them other stores, drain them."""
    while not ledger.over:
        name = rng.choice(NAMES)
        what = rng.choice(("put", "put", "delete", "delete", "delete", "uri", "drain"))
        try:
            match what:
                case "put":
                    await node.pools.put(CTX, name, f"redis://{name}/{name}", 1, None, {})
                case "delete":
                    await node.pools.delete(CTX, name)
                case "uri":
                    await node.pools.patch(
                        CTX, name, {"uri": f"redis://{name}/{name}{rng.randrange(3)}"}
                    )
                case "drain":
                    await node.pools.drain(CTX, name)
            ledger.did[what] += 1
        except (PoolInUse, Conflict, NuskuError) as refusal:
            ledger.did[f"{what}: {type(refusal).__name__}"] += 1
        await asyncio.sleep(0)


@pytest.mark.parametrize("seed", range(4))
def test_no_message_is_lost_while_pools_come_and_go(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "DRAIN_S", 0.05)
    rng = random.Random(seed)

    async def play() -> None:
        ledger = Ledger()
        async with nodes(tmp_path, rng, 3) as (one, two, three):
            for name in NAMES:
                await three.pools.put(CTX, name, f"redis://{name}/{name}", 1, None, {})
            players = [asyncio.create_task(operate(three, ledger, rng))]
            for lane in LANES:
                players.append(asyncio.create_task(produce(one, lane, ledger, rng)))
                players.append(asyncio.create_task(consume(two, lane, ledger, rng)))
            end_s, timeout_s = time.monotonic() + PATIENCE_S, SECONDS
            while time.monotonic() < end_s and not ledger.over:
                done, _ = await asyncio.wait(
                    players, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION
                )
                ledger.over, timeout_s = bool(done) or ledger.is_enough(), 0.1
            ledger.over = True
            await asyncio.gather(*players)
            for key in {*ledger.posted, *ledger.unsure}:
                await check(two, key, ledger)
        assert ledger.is_enough(), ledger.did

    asyncio.run(play())


async def check(node: Node, key: QueueKey, ledger: Ledger) -> None:
    async def rest(queue: Queue) -> list[bytes]:
        found = await queue.store.messages.page(queue.ref, 0, 1_000_000, held=True)
        return [message.body for message in found.messages]

    left: list[bytes] = []
    for _ in range(100):  # a step of draining may have left a move under way
        try:
            left = await node.queues.use(key, rest) or []
            break
        except Unavailable:
            await asyncio.sleep(0.05)
    else:
        raise AssertionError(f"{key} cannot be read")
    seen = ledger.taken[key] + left
    assert len(seen) == len(set(seen)), f"{key}: doubled"
    lost = set(ledger.posted[key]) - set(seen)
    assert not lost, f"{key}: {ledger.did}"
    assert set(seen) <= {*ledger.posted[key], *ledger.unsure[key]}, f"{key}: from nowhere"
    assert seen == sorted(seen), f"{key}: reordered"


class Gate:
    """Holds up one operation until it is told to go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def pass_(self) -> None:
        self.reached.set()
        await self.open.wait()


KEY = QueueKey("queue", "project", "q")


async def post(node: Node, body: bytes) -> None:
    async def add(queue: Queue) -> None:
        await queue.store.messages.add([(queue.ref, [Draft(body, 3600)])])

    await node.queues.use(KEY, add, create=True)


async def listed(node: Node) -> list[bytes]:
    async def page(queue: Queue) -> list[bytes]:
        return [m.body for m in (await queue.store.messages.page(queue.ref, 0, 10)).messages]

    return await node.queues.use(KEY, page) or []


@pytest.mark.parametrize("created_late", [True, False], ids=["after the end", "before the end"])
def test_a_queue_that_is_created_while_its_pool_is_deleted(
    created_late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its placement is noted, but not yet its record, when the deleter looks for queues."""

    async def play() -> None:
        async with nodes(tmp_path, random.Random(1), 2) as (one, two):
            await two.pools.put(CTX, "a", "redis://a/a", 1, None, {})
            making, deleting = Gate(), Gate()
            insert, write = one.queues._records.insert, two.pools._must_write

            async def insert_later(record: Record, *rest: Any) -> bool:
                if record.kind == "queue":
                    await making.pass_()
                return bool(await insert(record, *rest))

            async def write_later(name: str, record: Record | None, pool: Any) -> Record:
                if pool.state == "gone":
                    await deleting.pass_()
                return await write(name, record, pool)

            monkeypatch.setattr(one.queues._records, "insert", insert_later, raising=False)
            monkeypatch.setattr(two.pools, "_must_write", write_later)
            poster = asyncio.create_task(post(one, b"1"))
            await making.reached.wait()
            deleter = asyncio.ensure_future(two.pools.delete(CTX, "a"))
            await deleting.reached.wait()
            if created_late:
                deleting.open.set()
                await deleter
            making.open.set()
            try:
                await poster
                posted = [b"1"]
            except Unavailable:
                posted = []
            deleting.open.set()
            await deleter
            assert await listed(two) == posted
            assert await listed(one) == posted

    asyncio.run(play())


# A pool that is empty may get another store. A node may know for a second only the one that it had.


@pytest.fixture
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes look so seldom what pools there are that none does in a test, unless it has to know."""
    monkeypatch.setattr(pools, "LOOK_S", 60.0)


@asynccontextmanager
async def given_another_store(folder: Path) -> AsyncIterator[tuple[Node, Node]]:
    """The first node has given the pool ``a`` another store, has made a queue there and posted
    ``1``; the second knows of the pool, of the queue and of the old store only.
    """
    async with nodes(folder, random.Random(1), 2) as (one, two):
        await one.pools.put(CTX, "a", "redis://a/old", 1, None, {})
        await two.pools.all()
        await one.pools.patch(CTX, "a", {"uri": "redis://a/new"})
        await post(one, b"1")
        yield one, two


@pytest.mark.usefixtures("seldom")
def test_a_queue_is_not_opened_in_the_store_that_its_pool_had_before(tmp_path: Path) -> None:
    """It would stand open there when the pool gets that store back, for who knows the queue from
    then, while it has been brought elsewhere.
    """

    async def play() -> None:
        async with given_another_store(tmp_path) as (one, two):
            await post(two, b"2")
            assert await listed(one) == await listed(two) == [b"1", b"2"]
            await one.queues.clear(KEY)
            await one.pools.patch(CTX, "a", {"uri": "redis://a/old"})
            assert await two.pools.known("a")  # it knows the store again
            await post(two, b"3")
            one.queues.forget(KEY)
            assert await listed(one) == await listed(two) == [b"3"]

    asyncio.run(play())


@pytest.mark.usefixtures("seldom")
def test_a_queue_is_not_moved_from_the_store_that_its_pool_had_before(tmp_path: Path) -> None:
    async def play() -> None:
        async with given_another_store(tmp_path) as (one, two):
            await two.moving.move(KEY, None)
            assert await listed(one) == await listed(two) == [b"1"]

    asyncio.run(play())


@pytest.mark.usefixtures("seldom")
def test_a_queue_is_not_moved_to_the_store_that_a_pool_had_before(tmp_path: Path) -> None:
    async def play() -> None:
        async with nodes(tmp_path, random.Random(1), 2) as (one, two):
            await post(one, b"1")
            await one.pools.put(CTX, "a", "redis://a/old", 1, None, {})
            await two.pools.all()
            await one.pools.patch(CTX, "a", {"uri": "redis://a/new"})
            await two.moving.move(KEY, "a")
            assert await listed(one) == await listed(two) == [b"1"]

    asyncio.run(play())


@pytest.mark.usefixtures("seldom")
def test_a_queue_is_brought_back_to_the_store_that_its_pool_has_now(tmp_path: Path) -> None:
    """The node that undoes the move of one that died has not looked since."""

    async def play() -> None:
        async with given_another_store(tmp_path) as (one, two):
            record = await one.pools.own.records.get(*KEY)
            assert record is not None
            moving = replace(document_of(record), moving=Move(None, 0))
            marked = changed(record, moving)
            assert await one.pools.own.records.update(marked)
            await (await one.pools.store("a")).messages.seal(ref_of(marked, moving))
            assert await listed(two) == [b"1"]
            await post(two, b"2")
            assert await listed(one) == [b"1", b"2"]

    asyncio.run(play())


@pytest.mark.usefixtures("seldom")
def test_a_queue_is_deleted_from_the_store_that_its_pool_has_now(tmp_path: Path) -> None:
    """Else whoever knows it would go on posting to what nobody finds any more."""

    async def play() -> None:
        async with given_another_store(tmp_path) as (one, two):
            await two.queues.delete(CTX, KEY)
            await post(one, b"2")
            assert await listed(one) == await listed(two) == [b"2"]

    asyncio.run(play())


@pytest.mark.usefixtures("seldom")
def test_a_change_is_told_to_the_store_that_the_pool_has_now(tmp_path: Path) -> None:
    """Else who knows the queue would go on without what was changed: without subscribers, say."""

    async def play() -> None:
        async with given_another_store(tmp_path) as (one, two):
            version = one.queues._cache[KEY].ref.version
            await two.queues.update(CTX, KEY, [Change("add", "_default_message_ttl", 77)])
            await post(one, b"2")
            queue = one.queues._cache[KEY]
            assert (queue.ref.version, queue.message_ttl_s) == (version + 1, 77)

    asyncio.run(play())


@pytest.mark.usefixtures("seldom")
def test_a_look_that_began_before_a_change_is_not_taken_for_a_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        async with nodes(tmp_path, random.Random(1), 1) as (one,):
            await one.pools.put(CTX, "a", "redis://a/old", 1, None, {})
            gate, page = Gate(), one.pools.own.records.page

            async def page_late(kind: str, *rest: Any, **options: Any) -> Any:
                found = await page(kind, *rest, **options)
                if asyncio.current_task() is looking:
                    await gate.pass_()
                return found

            monkeypatch.setattr(one.pools.own.records, "page", page_late, raising=False)
            looking = asyncio.create_task(one.pools.described())
            await gate.reached.wait()
            await one.pools.patch(CTX, "a", {"uri": "redis://a/new"})
            store = one.pools.opened()["a"]
            gate.open.set()
            await looking
            assert await one.pools.store("a") is store

    asyncio.run(play())


def test_what_is_posted_after_a_store_was_given_up_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "LOOK_S", 0.3)

    async def play() -> None:
        async with nodes(tmp_path, random.Random(1), 2) as (one, two):
            await one.pools.put(CTX, "a", "redis://a/old", 1, None, {})
            await post(one, b"1")
            assert await listed(two) == [b"1"]
            assert await two.pools.known("a")
            await one.pools.patch(CTX, "a", {"uri": "redis://a/new"}, abandon=True)
            await post(two, b"2")
            assert await listed(one) == await listed(two) == [b"2"]

    asyncio.run(play())


def test_what_is_posted_when_a_store_that_was_given_up_has_come_back_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue has been moved since. A node knows it from before, and knows the store again."""
    monkeypatch.setattr(pools, "LOOK_S", 0.3)

    async def play() -> None:
        async with nodes(tmp_path, random.Random(1), 2) as (one, two):
            await one.pools.put(CTX, "a", "redis://a/old", 1, None, {})
            await post(one, b"1")
            assert await listed(two) == [b"1"]
            await one.pools.patch(CTX, "a", {"uri": "redis://a/new"}, abandon=True)
            assert await listed(one) == []
            await one.pools.patch(CTX, "a", {"uri": "redis://a/old"})
            assert await two.pools.known("a")
            await post(two, b"2")
            one.queues.forget(KEY)
            assert await listed(one) == await listed(two) == [b"2"]

    asyncio.run(play())


def test_a_queue_is_not_moved_to_a_store_that_was_another_pools_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who drained that pool has dropped the copy, which no record had to do with any more there."""

    async def play() -> None:
        async with nodes(tmp_path, random.Random(1), 2) as (one, two):
            await post(one, b"1")
            await two.pools.put(CTX, "a", "redis://a/shared", 1, None, {})
            await two.pools.put(CTX, "b", "redis://b/b", 1, None, {})
            gate, note = Gate(), one.moving._note

            async def note_late(*move: Any) -> None:
                await gate.pass_()
                await note(*move)

            monkeypatch.setattr(one.moving, "_note", note_late)
            moving = asyncio.create_task(one.moving.move(KEY, "a"))
            await gate.reached.wait()
            await two.pools.patch(CTX, "a", {"uri": "redis://a/a"})
            await two.pools.patch(CTX, "b", {"uri": "redis://a/shared"})
            await two.pools.drain(CTX, "b")
            await two.pools.patch(CTX, "b", {"uri": "redis://b/b"})
            await two.pools.patch(CTX, "a", {"uri": "redis://a/shared"})
            gate.open.set()
            with suppress(Unavailable):
                await moving
            assert await listed(one) == await listed(two) == [b"1"]

    asyncio.run(play())


def test_a_queue_that_is_created_while_its_pool_is_emptied_and_cannot_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who empties the pool has looked already, and the move is undone."""

    async def play() -> None:
        async with nodes(tmp_path, random.Random(1), 3) as (one, two, three):
            await two.pools.put(CTX, "a", "redis://a/old", 1, None, {})
            making, emptied = Gate(), Gate()
            note, write = one.queues._placements.note, two.pools._must_write

            async def note_late(pool: str, ref: QueueRef) -> None:
                await making.pass_()
                await note(pool, ref)

            async def write_late(name: str, record: Record | None, pool: Any) -> Record:
                if pool.uri == "redis://a/new":
                    await emptied.pass_()
                return await write(name, record, pool)

            async def fail(*_: Any) -> None:
                raise Unavailable("The store is away.")

            monkeypatch.setattr(one.queues._placements, "note", note_late)
            monkeypatch.setattr(two.pools, "_must_write", write_late)
            monkeypatch.setattr(three.moving, "_note", fail)
            making_task = asyncio.create_task(post(one, b"0"))
            await making.reached.wait()
            change = two.pools.patch(CTX, "a", {"uri": "redis://a/new"})
            changing = asyncio.ensure_future(change)
            await emptied.reached.wait()
            making.open.set()
            with pytest.raises(Unavailable):
                await making_task
            with pytest.raises(Unavailable):
                await three.moving.move(KEY, None)
            await post(three, b"1")
            emptied.open.set()
            with suppress(Unavailable):
                await changing
            assert await listed(two) == await listed(three) == [b"1"]
            assert (await two.pools.described())["a"].state == "open"

    asyncio.run(play())


def test_who_knows_which_store_a_pool_has_is_not_given_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one who has looked earlier asks for that, while a still older one is closed."""

    async def play() -> None:
        async with nodes(tmp_path, random.Random(1), 2) as (one, two):
            await two.pools.put(CTX, "a", "redis://a/oldest", 1, None, {})
            stores = one.pools._stores
            oldest = await one.pools.store("a")
            await two.pools.patch(CTX, "a", {"uri": "redis://a/old"})
            old = (await two.pools.described())["a"]
            await two.pools.patch(CTX, "a", {"uri": "redis://a/new"})
            new = (await two.pools.described())["a"]
            gate, close = Gate(), stores._close

            async def close_late(store: Store) -> None:
                if store is oldest:
                    await gate.pass_()
                await close(store)

            monkeypatch.setattr(stores, "_close", close_late)
            later = asyncio.create_task(stores.get("a", new))
            await gate.reached.wait()
            earlier = await stores.get("a", old)
            gate.open.set()
            assert await later is not earlier
            assert stores.opened()["a"] is await later

    asyncio.run(play())


# Other things that meet


@pytest.mark.parametrize("moved", [False, True], ids=["changed", "moved"])
def test_a_change_of_an_earlier_queue_of_that_name_comes_too_late(
    moved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would bring the earlier one back, in place of that which was made since."""

    async def play() -> None:
        async with nodes(tmp_path, random.Random(1), 2) as (one, two):
            await post(one, b"1")
            await one.pools.put(CTX, "a", "redis://a/a", 1, None, {})
            gate, update = Gate(), one.queues._records.update

            async def update_late(record: Record, *rest: Any) -> bool:
                if record.kind == "queue" and not gate.reached.is_set():
                    await gate.pass_()
                return bool(await update(record, *rest))

            monkeypatch.setattr(one.queues._records, "update", update_late, raising=False)
            change = one.moving.move(KEY, "a") if moved else one.queues.touch(KEY)
            changing = asyncio.ensure_future(change)
            await gate.reached.wait()
            await two.queues.delete(CTX, KEY)
            await post(two, b"2")
            gate.open.set()
            await changing
            await post(two, b"3")
            assert await listed(one) == await listed(two) == [b"2", b"3"]

    asyncio.run(play())


def test_a_queue_is_deleted_where_it_was_just_moved_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        async with nodes(tmp_path, random.Random(1), 2) as (one, two):
            await post(one, b"1")
            await one.pools.put(CTX, "a", "redis://a/a", 1, None, {})
            gate, update = Gate(), one.queues._records.update

            async def update_late(record: Record, *rest: Any) -> bool:
                if b"deleted" in record.doc and not gate.open.is_set():
                    await gate.pass_()
                return bool(await update(record, *rest))

            monkeypatch.setattr(one.queues._records, "update", update_late, raising=False)
            deleting = asyncio.ensure_future(one.queues.delete(CTX, KEY))
            await gate.reached.wait()
            await two.moving.move(KEY, "a")
            assert await listed(two) == [b"1"]  # from now on it knows the queue
            gate.open.set()
            await deleting
            await post(two, b"2")
            assert await listed(one) == await listed(two) == [b"2"]

    asyncio.run(play())


def test_a_queue_is_not_placed_anew_when_its_pool_has_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        async with nodes(tmp_path, random.Random(1), 2) as (one, two):
            lost = Record(*KEY, msgspec.json.encode(Document("1" * 16, {}, "a")))
            await one.pools.own.records.insert(lost)
            gate, place = Gate(), one.pools.place

            async def place_late(project: str, flavor: object) -> str | None:
                to = await place(project, flavor)
                await gate.pass_()
                return to

            monkeypatch.setattr(one.pools, "place", place_late)
            placing = asyncio.create_task(post(one, b"1"))
            await gate.reached.wait()
            await two.pools.put(CTX, "a", "redis://a/a", 1, None, {})
            await post(two, b"2")
            gate.open.set()
            with pytest.raises(Unavailable):
                await placing
            await post(one, b"3")
            assert await listed(one) == await listed(two) == [b"2", b"3"]

    asyncio.run(play())


def test_a_pool_that_is_drained_while_it_is_deleted_takes_queues_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        async with nodes(tmp_path, random.Random(1), 2) as (one, two):
            await one.pools.put(CTX, "a", "redis://a/a", 1, None, {})
            gate, write = Gate(), one.pools._must_write

            async def write_late(name: str, record: Record | None, pool: Any) -> Record:
                if pool.state == "gone":
                    await gate.pass_()
                return await write(name, record, pool)

            monkeypatch.setattr(one.pools, "_must_write", write_late)
            deleting = asyncio.ensure_future(one.pools.delete(CTX, "a"))
            await gate.reached.wait()
            await two.pools.drain(CTX, "a")
            gate.open.set()
            with pytest.raises(Unavailable):
                await deleting
            assert (await one.pools.described())["a"].state == "open"

    asyncio.run(play())


def hold_taking_out(node: Node, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Before the first queue."""
    gate, unplace = Gate(), node.moving.unplace

    async def unplace_late(*queue: Any) -> bool:
        await gate.pass_()
        return await unplace(*queue)

    monkeypatch.setattr(node.pools, "unplace", unplace_late)
    return gate


def test_a_pool_that_two_take_the_queues_out_of_takes_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither can, as one holds a message."""

    async def play() -> None:
        async with nodes(tmp_path, random.Random(1), 2) as (one, two):
            await one.pools.put(CTX, "a", "redis://a/a", 1, None, {})
            assert await one.queues.create(CTX, KEY, {})
            first, second = hold_taking_out(one, monkeypatch), hold_taking_out(two, monkeypatch)
            deleting = asyncio.ensure_future(one.pools.delete(CTX, "a"))
            await first.reached.wait()
            changing = asyncio.ensure_future(two.pools.patch(CTX, "a", {"uri": "redis://a/other"}))
            await second.reached.wait()
            await post(two, b"1")
            second.open.set()
            with pytest.raises(Conflict):
                await changing
            first.open.set()
            with pytest.raises(PoolInUse):
                await deleting
            assert (await one.pools.described())["a"].state == "open"
            assert await listed(one) == [b"1"]

    asyncio.run(play())


def test_a_pool_with_notices_stays_when_its_queues_have_gone(tmp_path: Path) -> None:
    """They are not moved with a queue, and subscribers are still to be told."""

    async def play() -> None:
        async with nodes(tmp_path, random.Random(1), 1) as (one,):
            await one.pools.put(CTX, "a", "redis://a/a", 1, None, {})
            messages, notices = (await one.pools.store("a")).messages, notices_of(KEY)
            await make(messages, notices)
            [[position]] = await messages.add([(notices, [Draft(b"", 3600)])])
            with pytest.raises(PoolInUse):
                await one.pools.delete(CTX, "a")
            with pytest.raises(Conflict):
                await one.pools.patch(CTX, "a", {"uri": "redis://a/other"})
            await messages.remove(notices, [position], Removal.ANY)
            await one.pools.delete(CTX, "a")

    asyncio.run(play())


def test_a_queue_is_out_of_a_pool_though_it_was_brought_back_during_an_earlier_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        async with nodes(tmp_path, random.Random(1), 2) as (one, two):
            await one.pools.put(CTX, "a", "redis://a/a", 1, None, {})
            assert await one.queues.create(CTX, KEY, {})
            await one.pools.put(CTX, "a", "redis://a/a", 0, None, {})
            await one.pools.put(CTX, "b", "redis://b/b", 1, None, {})
            gate, forget = Gate(), one.moving._forget

            async def forget_late(pool: str | None, key: QueueKey) -> None:
                if not gate.reached.is_set():
                    await gate.pass_()
                await forget(pool, key)

            monkeypatch.setattr(one.moving, "_forget", forget_late)
            earlier = asyncio.create_task(one.moving.unplace(*KEY, "a"))
            await gate.reached.wait()
            await two.moving.move(KEY, "a")
            joined, bring = asyncio.Event(), one.moving._bring

            async def bring_and_tell(*args: Any, **options: Any) -> int | None:
                joined.set()
                return await bring(*args, **options)

            monkeypatch.setattr(one.moving, "_bring", bring_and_tell)
            later = asyncio.create_task(one.moving.unplace(*KEY, "a"))
            await joined.wait()
            gate.open.set()
            assert await earlier
            assert await later
            record = await one.pools.own.records.get(*KEY)
            assert record is not None
            assert document_of(record).pool == "b"

    asyncio.run(play())


# A deletion that goes half-way, since its node dies or a store fails. It was not answered.


class Failing:
    """Lets one operation of a store fail once, after or before it is done."""

    def __init__(self, store: Any, name: str, *, done: bool, patch: pytest.MonkeyPatch) -> None:
        self._operation = getattr(store, name)
        self._done = done
        self._failed = False
        patch.setattr(store, name, self, raising=False)

    async def __call__(self, *args: Any, **options: Any) -> Any:
        if self._failed or (args[0] if isinstance(args[0], str) else "queue") != "queue":
            return await self._operation(*args, **options)
        self._failed = True
        if self._done:
            await self._operation(*args, **options)
        raise Unavailable("The store is away.")


half_way = pytest.mark.parametrize(
    ("store", "operation", "done"),
    [
        ("records", "update", True),
        ("messages", "drop", False),
        ("messages", "drop", True),
        ("records", "delete", False),
        ("records", "delete", True),
    ],
)


@asynccontextmanager
async def half_deleted(
    folder: Path, patch: pytest.MonkeyPatch, store: str, operation: str, *, done: bool
) -> AsyncIterator[list[Node]]:
    """Of three nodes the first has failed to delete a queue that holds ``1``; the second knows it,
    the third does not.
    """
    async with nodes(folder, random.Random(1), 3) as made:
        one, two, _ = made
        await post(one, b"1")
        assert await listed(two) == [b"1"]
        Failing(getattr(one.pools.own, store), operation, done=done, patch=patch)
        with pytest.raises(Unavailable):
            await one.queues.delete(CTX, KEY)
        yield made


@half_way
def test_a_queue_that_is_deleted_again_is_deleted_for_everybody(
    store: str, operation: str, done: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        async with half_deleted(tmp_path, monkeypatch, store, operation, done=done) as made:
            one, two, three = made
            await three.queues.delete(CTX, KEY)
            assert await listed(two) == []
            await post(two, b"2")
            await post(three, b"3")
            for node in (one, two, three):
                assert await listed(node) == [b"2", b"3"]

    asyncio.run(play())


@half_way
def test_a_queue_that_somebody_does_not_find_is_deleted_for_everybody(
    store: str, operation: str, done: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        async with half_deleted(tmp_path, monkeypatch, store, operation, done=done) as made:
            _, two, three = made
            assert await listed(three) == []
            assert await listed(two) == []
            assert await three.queues.page(CTX, "queue", "", 10) == []
            assert await three.queues.count(CTX, "queue") == 0

    asyncio.run(play())


def test_a_half_deleted_queue_is_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        async with half_deleted(tmp_path, monkeypatch, "messages", "drop", done=False) as made:
            three = made[2]
            assert await three.queues.page(CTX, "queue", "", 10) == []
            assert await three.queues.count(CTX, "queue") == 0

    asyncio.run(play())


def test_a_deletion_that_comes_late_spares_what_was_made_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        async with nodes(tmp_path, random.Random(1), 2) as (one, two):
            await post(one, b"1")
            gate, delete = Gate(), one.queues._records.delete

            async def delete_late(*place: Any, **options: Any) -> Record | None:
                if not gate.reached.is_set():
                    await gate.pass_()
                return await delete(*place, **options)

            monkeypatch.setattr(one.queues._records, "delete", delete_late, raising=False)
            deleting = asyncio.ensure_future(one.queues.delete(CTX, KEY))
            await gate.reached.wait()
            await two.queues.delete(CTX, KEY)
            await post(two, b"2")
            gate.open.set()
            await deleting
            assert await listed(one) == await listed(two) == [b"2"]

    asyncio.run(play())


def test_a_half_deleted_queue_keeps_no_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        async with nodes(tmp_path, random.Random(1), 2) as (one, two):
            await one.pools.put(CTX, "a", "redis://a/a", 1, None, {})
            await post(one, b"1")
            messages = (await one.pools.store("a")).messages
            Failing(messages, "drop", done=False, patch=monkeypatch)
            with pytest.raises(Unavailable):
                await one.queues.delete(CTX, KEY)
            await two.pools.drain(CTX, "a")
            await two.pools.delete(CTX, "a")
            assert await listed(one) == await listed(two) == []

    asyncio.run(play())


def test_a_queue_whose_pool_is_gone_can_be_deleted(tmp_path: Path) -> None:
    """Its pool was deleted just when it was made there."""

    async def play() -> None:
        async with nodes(tmp_path, random.Random(1), 1) as (one,):
            lost = Record(*KEY, msgspec.json.encode(Document("1" * 16, {}, "a")))
            await one.pools.own.records.insert(lost)
            await one.queues.delete(CTX, KEY)
            assert await one.pools.own.records.get(*KEY) is None

    asyncio.run(play())
