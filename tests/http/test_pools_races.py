"""Pools come and go on one node while queues are made, used and emptied on another: no message that
was answered may be lost, doubled or reordered.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nusku.broker import pools
from nusku.broker.codec import Codec
from nusku.broker.limits import Limits
from nusku.broker.moving import Moving
from nusku.broker.pools import Pools
from nusku.broker.queues import Queue, Queues
from nusku.broker.quotas import Quotas
from nusku.broker.usage import Usage
from nusku.config import Settings
from nusku.errors import Conflict, NuskuError, PoolInUse, Unavailable
from nusku.keyring import Ring
from nusku.metrics import Metrics
from nusku.model import Context, Draft, QueueKey, Record
from nusku.storage import Store, StoreOptions, open_store

CTX = Context("project", "client", frozenset({"admin"}))
LANES = range(4)
NAMES = ("a", "b", "c")
SECONDS = 1.5


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
        moving = Moving(self.pools, own.records)
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
            await asyncio.wait(players, timeout=SECONDS, return_when=asyncio.FIRST_EXCEPTION)
            ledger.over = True
            await asyncio.gather(*players)
            for key in {*ledger.posted, *ledger.unsure}:
                await check(two, key, ledger)
        assert sum(map(len, ledger.taken.values())) > 50, ledger.did
        assert ledger.did["delete"], ledger.did

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


@pytest.mark.parametrize("created_late", [True, False], ids=["after the end", "before the end"])
def test_a_queue_that_is_created_while_its_pool_is_deleted(
    created_late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its placement is noted, but not yet its record, when the deleter looks for queues."""
    key = QueueKey("queue", "project", "q")

    async def post(queue: Queue) -> None:
        await queue.store.messages.add([(queue.ref, [Draft(b"1", 3600)])])

    async def listed(queue: Queue) -> list[bytes]:
        return [m.body for m in (await queue.store.messages.page(queue.ref, 0, 10)).messages]

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
            poster = asyncio.create_task(one.queues.use(key, post, create=True))
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
            assert await two.queues.use(key, listed) == posted
            assert await one.queues.use(key, listed) == posted

    asyncio.run(play())
