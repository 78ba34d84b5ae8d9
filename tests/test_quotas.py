"""Quotas of whole nodes: whatever they and their clients do at the same time, never is there too much.

Nodes share a real store in which every call waits for a random moment before and after its effect;
time is a stub (`Timeless`).
"""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from nusku.broker import Broker, Change, ClaimTerms, NewMessage
from nusku.config import Settings
from nusku.errors import Conflict, NotFound, QuotaExceeded, Unavailable
from nusku.model import Context, QueueKey
from nusku.storage import Stale
from tests.notify.test_faults import Go, run
from tests.test_nodes import Nodes

pytestmark = pytest.mark.embedded

ANN = Context("p", "ann", frozenset())
NAMES = ("a", "b", "c", "d", "e")
QUEUES, MESSAGES, BYTES, SUBSCRIPTIONS = 3, 20, 300, 3


class Bounded(Nodes):
    """Nodes where each project may have little; what there is is counted behind each change."""

    def __init__(self, folder: Path, rng: random.Random, longest_s: float) -> None:
        super().__init__(folder, rng)
        self._longest_s = longest_s
        self._settings = Settings(
            store=self._settings.store,
            subscriber_allow=self._settings.subscriber_allow,
            quota_queues=QUEUES,
            quota_messages=MESSAGES,
            quota_bytes=BYTES,
            quota_subscriptions=SUBSCRIPTIONS,
        )
        self._kept = AsyncExitStack()

    async def meddle(self, name: str, args: tuple[Any, ...], go: Go) -> Any:
        await asyncio.sleep(self._rng.random() ** 3 * self._longest_s)
        result = await go()
        if name in {"add", "insert"}:
            await self.count()
        await asyncio.sleep(self._rng.random() ** 3 * self._longest_s)
        return result

    async def start(self, number: int) -> list[Broker]:
        brokers = await super().start(number)
        for broker in brokers:
            await self._kept.enter_async_context(broker.quotas.kept())
        return brokers

    async def count(self) -> tuple[int, int, int, int]:
        """What the project has; never too much."""
        messages, records = self._store.messages, self._store.records
        held = await messages.holdings("p")
        number = sum(one.messages for one in held)
        size = 0
        for one in held:
            with suppress(Stale):  # deleted since
                size += (await messages.weigh(one.ref, 0, 1 << 40)).bytes
        queues = sum([await records.count(kind, "p") for kind in ("queue", "topic")])
        subscriptions = await records.count("subscription", "p")
        assert number <= MESSAGES
        assert size <= BYTES
        assert queues <= QUEUES
        assert subscriptions <= SUBSCRIPTIONS
        return queues, number, size, subscriptions

    async def stop(self) -> None:
        self._longest_s = 0
        await self._kept.aclose()
        await super().stop()


async def post(node: Broker, name: str, *bodies: bytes) -> None:
    async def read(_: int) -> list[NewMessage]:
        return [NewMessage(body) for body in bodies]

    await node.messages.post(ANN, QueueKey("queue", "p", name), read)


@pytest.mark.parametrize("seed", range(12))
def test_there_is_never_too_much_of_anything(tmp_path: Path, seed: int) -> None:
    async def test() -> None:
        rng = random.Random(seed)
        nodes = Bounded(tmp_path, rng, rng.choice((0.05, 0.3)))
        brokers = await nodes.start(3)
        done: list[str] = []
        refused: list[str] = []

        async def act() -> str:
            node, name = rng.choice(brokers), rng.choice(NAMES)
            key = QueueKey(rng.choice(("queue", "topic")), "p", name)
            queue = key._replace(kind="queue")
            match rng.randrange(9):
                case 0:
                    await node.queues.create(ANN, key, {})
                    return "create"
                case 1:
                    await node.queues.delete(ANN, key)
                    return "delete"
                case 2:
                    document = {"subscriber": f"http://127.0.0.1:9/{rng.randrange(9)}", "ttl": 60}
                    await node.subscriptions.create(ANN, key, document)
                    return "subscribe"
                case 3:
                    await node.purge(ANN, key, ("messages", "subscriptions"))
                    return "purge"
                case 4:
                    await node.messages.pop(ANN, queue, rng.randint(1, 5))
                    return "pop"
                case 5:
                    # What was claimed once is a dead letter the next time.
                    names = {"_dead_letter_queue": rng.choice(NAMES), "_max_claim_count": 1}
                    changes = [Change("add", *item) for item in names.items()]
                    await node.queues.update(ANN, queue, changes)
                    return "update"
                case 6:
                    got = await node.claims.create(ANN, queue, ClaimTerms(60, 60), 5)
                    if got:
                        await node.claims.release(ANN, queue, got[0])
                    return "claim"
                case _:
                    bodies = [b"1" * rng.randint(1, 40) for _ in range(rng.randint(1, 5))]
                    await post(node, name, *bodies)
                    return "post"

        async def client() -> None:
            for _ in range(40):
                try:
                    done.append(await act())
                except QuotaExceeded as error:
                    refused.append(error.detail)
                except (Unavailable, NotFound, Conflict):
                    pass
                await asyncio.sleep(rng.random() ** 3)

        await asyncio.gather(*(client() for _ in range(6)))
        assert len(refused) > 5
        assert len(set(done)) >= 7
        await nodes.stop()

    run(test())


@pytest.mark.parametrize("seed", range(4))
def test_whatever_was_done_what_there_is_room_for_can_be_posted(tmp_path: Path, seed: int) -> None:
    async def test() -> None:
        rng = random.Random(seed)
        nodes = Bounded(tmp_path, rng, 0.03)
        brokers = await nodes.start(3)

        async def client() -> None:
            for _ in range(10):
                with suppress(QuotaExceeded, Unavailable):
                    await post(rng.choice(brokers), rng.choice(NAMES[:3]), b"1" * 7)
                if rng.random() < 0.3:
                    key = QueueKey("queue", "p", rng.choice(NAMES[:3]))
                    await rng.choice(brokers).messages.pop(ANN, key, 2)

        await asyncio.gather(*(client() for _ in range(5)))
        _, number, size, _ = await nodes.count()
        while number > MESSAGES - 2:  # the queue that will be deleted may have none of them
            await brokers[0].messages.pop(ANN, QueueKey("queue", "p", rng.choice(NAMES[:3])), 2)
            _, number, size, _ = await nodes.count()
        for _ in range(MESSAGES - number):
            await post(rng.choice(brokers), "a", b"1")
        with pytest.raises(QuotaExceeded, match="may have 20 messages"):
            await post(rng.choice(brokers), "a", b"1")
        await rng.choice(brokers).queues.delete(ANN, QueueKey("queue", "p", "a"))
        _, number, size, _ = await nodes.count()
        await post(rng.choice(brokers), "a", b"1" * (BYTES - size))
        with pytest.raises(QuotaExceeded, match="may have 300 bytes"):
            await post(rng.choice(brokers), "b", b"1")
        assert number <= MESSAGES - 2
        await nodes.stop()

    run(test())
