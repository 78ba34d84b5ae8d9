"""Two nodes on one store: what one of them answers is true on the other.

Both are brokers in one process, with a store that makes every call wait for a random moment before
and after its effect, so that everything happens between everything else. Time is a stub.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from nusku.addresses import Addresses
from nusku.broker import Broker, Change, ClaimTerms, NewMessage, Pools
from nusku.broker.subscriptions import Trusts
from nusku.config import Settings
from nusku.errors import NotFound, Unavailable
from nusku.metrics import Metrics
from nusku.model import Context, QueueKey
from nusku.storage import StoreOptions, open_store
from nusku.storage.registry import Mirror
from tests.notify.test_faults import EPOCH_S, Go, _Part, no_pools, run, timeless

QUEUE = QueueKey("queue", "p", "q")
ANN = Context("p", "ann", frozenset())
SEEDS = range(15)


class Nodes:
    """Brokers that share a store."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self._rng = rng
        self._settings = Settings(
            store=f"sqlite:///{folder / 'nusku.db'}", subscriber_allow=("127.0.0.0/8",)
        )

    async def meddle(self, name: str, args: tuple[Any, ...], go: Go) -> Any:
        await asyncio.sleep(self._rng.random() ** 3)
        result = await go()
        await asyncio.sleep(self._rng.random() ** 3)
        return result

    async def start(self, number: int) -> list[Broker]:
        loop = timeless()

        def now_ms() -> int:
            return EPOCH_S * 1000 + int(loop.time() * 1000)

        with loop.work():
            self._store = await open_store(
                self._settings.store, now_ms, StoreOptions("normal"), Metrics()
            )
        return [self._node() for _ in range(number)]

    def _node(self) -> Broker:
        part = cast("Any", self)
        store = self._store._replace(
            messages=cast("Any", _Part(self._store.messages, part)),
            records=cast("Any", _Part(self._store.records, part)),
            shared=True,
        )
        return Broker(
            Pools(store, no_pools, self._settings, self._rng),
            self._settings,
            Metrics(),
            self._rng,
            signing_key="",
            trusts=cast("Trusts", None),
            addresses=Addresses(self._settings),
            registry=Mirror(store.registry),
            now=lambda: EPOCH_S + timeless().time(),
        )

    async def stop(self) -> None:
        with timeless().work():
            await self._store.close()


async def post(node: Broker, body: Any) -> None:
    async def read(most: int) -> list[NewMessage]:
        return [NewMessage(msgspec.json.encode(body))]

    await node.messages.post(ANN, QUEUE, read)


async def bodies(node: Broker) -> list[Any]:
    view = await node.messages.page(ANN, QUEUE, "", 1000, echo=True, held=True, delayed=True)
    return [msgspec.json.decode(m.body) for m in view.messages] if view else []


@pytest.mark.parametrize("seed", SEEDS)
def test_posts_beside_deletions_are_there_or_deleted(tmp_path: Path, seed: int) -> None:
    """Whatever the two nodes have read before: no post that follows a deletion goes with it, and
    none that came before it stays.
    """

    async def test() -> None:
        rng = random.Random(seed)
        nodes = Nodes(tmp_path, rng)
        brokers = await nodes.start(3)
        now = timeless().time
        posted: list[tuple[str, float, float]] = []
        deleted: list[tuple[float, float]] = []

        async def producer(name: str) -> None:
            for n in range(40):
                started = now()
                with suppress(Unavailable):  # too much at once; then it may be there, or not
                    await post(rng.choice(brokers), f"{name}{n}")
                    posted.append((f"{name}{n}", started, now()))
                await asyncio.sleep(rng.random() ** 4)

        async def disturber() -> None:
            for _ in range(25):
                await asyncio.sleep(rng.random() * 2)
                node = rng.choice(brokers)
                match rng.randrange(4):
                    case 0:
                        await node.queues.create(ANN, QUEUE, {})
                    case 1:
                        change = Change("add", "_default_message_ttl", rng.randrange(60, 9000))
                        with suppress(NotFound, Unavailable):
                            await node.queues.update(ANN, QUEUE, [change])
                    case _:
                        started = now()
                        await node.queues.delete(ANN, QUEUE)
                        deleted.append((started, now()))

        await asyncio.gather(*map(producer, "abc"), disturber(), disturber())
        await post(brokers[1], "last")
        assert len(posted) > 60
        there = set(await bodies(brokers[0]))
        assert "last" in there
        assert there == set(await bodies(brokers[-1]))
        for body, start, end in posted:
            if all(ended < start for _, ended in deleted):
                assert body in there, f"{body} was lost"
            if any(end < began for began, _ in deleted):
                assert body not in there, f"{body} came back"
        await nodes.stop()

    run(test())


@pytest.mark.parametrize("seed", SEEDS)
def test_options_that_were_changed_count_on_every_node_at_once(tmp_path: Path, seed: int) -> None:
    async def test() -> None:
        rng = random.Random(seed)
        nodes = Nodes(tmp_path, rng)
        one, other = await nodes.start(2)
        for node in (one, other):
            await post(node, "before")  # both know it now
        for ttl_s in (100, 200, 300, 400):
            change = Change("add", "_default_message_ttl", ttl_s)
            await rng.choice((one, other)).queues.update(ANN, QUEUE, [change])
            for node in (one, other):
                assert (await node.queues.get(ANN, QUEUE))["_default_message_ttl"] == ttl_s
                await post(node, "x")
                view = await node.messages.page(ANN, QUEUE, "", 1000, echo=True)
                assert view is not None
                assert view.messages[-1].ttl_s == ttl_s
        await nodes.stop()

    run(test())


def test_a_subscription_counts_on_every_node_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        nodes = Nodes(tmp_path, random.Random(0))
        one, other = await nodes.start(2)
        await post(other, "before")
        made = await one.subscriptions.create(
            ANN, QUEUE, {"subscriber": "http://127.0.0.1:9/x", "ttl": 3600}
        )
        await post(other, "after")
        await one.notices.survey()  # the other one died right after
        assert await one.fanout.spread(10) == (1, 1)
        assert (await other.subscriptions.status(ANN, QUEUE, made.id)).pending == 1
        await nodes.stop()

    run(test())


@pytest.mark.parametrize("seed", range(10))
def test_no_message_has_two_owners(tmp_path: Path, seed: int) -> None:
    async def test() -> None:
        rng = random.Random(seed)
        nodes = Nodes(tmp_path, rng)
        brokers = await nodes.start(3)
        owners: list[Any] = []

        async def worker(node: Broker) -> None:
            for _ in range(6):
                try:
                    got = await node.claims.create(ANN, QUEUE, ClaimTerms(3600), 3)
                except Unavailable:
                    continue
                owners.extend(m.position for m in got[1].messages) if got else None

        async def producer(node: Broker) -> None:
            for n in range(10):
                await post(node, n)

        await asyncio.gather(*map(producer, brokers), *map(worker, brokers), *map(worker, brokers))
        assert len(owners) == len(set(owners))
        await nodes.stop()

    run(test())
