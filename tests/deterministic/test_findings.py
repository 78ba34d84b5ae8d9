"""What seeds found, in the service and in the checker, one test each."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from nusku.broker import Broker, ClaimTerms, NewMessage
from nusku.broker.deliveries import Progress, delivery_key, draft, failed_key
from nusku.broker.messages import POP_S
from nusku.broker.notices import internal
from nusku.broker.rules import ENCRYPT
from nusku.encryption import NOTICED_S
from nusku.errors import Unavailable
from nusku.keyring import key_id, key_id_of
from nusku.model import Context, QueueKey
from nusku.notify.worker import _Pump
from tests.chaos.harness.checker import check
from tests.chaos.harness.history import OK, Op, Run
from tests.deterministic.clients import ADMIN
from tests.deterministic.keyfile import KeyFile
from tests.deterministic.loop import Loop, now_ms, turned_clocks
from tests.deterministic.nodes import Cluster, Node
from tests.deterministic.pooling import uri_of
from tests.deterministic.store import Ground, Shelf
from tests.deterministic.weather import CALM, Weather

pytestmark = pytest.mark.embedded


def test_a_pump_ends_whose_removal_was_cancelled_before_it_began() -> None:
    """It waited for that again and again, and never came to its end."""

    class Pump(_Pump):
        def __init__(self) -> None:
            self._removing: Any = None

        async def _look_up(self) -> bool:
            return True

        async def _send_all(self) -> None:
            self._removing = asyncio.create_task(self._remove())
            self._removing.cancel()

        async def _put_back(self) -> None:
            await asyncio.sleep(0)

    async def run() -> None:
        pump = cast("Any", Pump())
        ended = asyncio.create_task(pump.run())
        for _ in range(10):
            await asyncio.sleep(0)
        assert ended.done()

    asyncio.run(run())


def test_a_delay_that_ended_before_its_post_was_answered_hides_nothing() -> None:
    """Seed 6001676: the checker took it for a claim that was live when the first one came."""
    post = Op("post", "ann", "p/q", 1.0, 4.0, OK, p="ann.0.p/q", ttl=3600, delay=2, ids=["1"])
    claim = Op("claim", "bob", "p/q", 3.5, 3.6, OK, 201, ttl=2, cid="c")
    claim.got = [("1", "ann.0.p/q", 0)]
    assert check(Run(1, "claims"), [post, claim]) == []
    post.delay = 5
    assert {violation.rule for violation in check(Run(1, "claims"), [post, claim])} == {"R5"}


CTX = Context("project", "client", frozenset())


def together(
    play: Callable[[list[Node]], Awaitable[None]], number: int = 1, *, keys: int = 0
) -> None:
    """Have nodes over one store do something, in calm weather."""
    rng = random.Random(0)
    loop, shelf, weather = Loop(rng), Shelf(), Weather(rng, CALM)

    def new_ground(uri: str) -> Ground:
        ground = Ground(shelf.take(uri, rng), now_ms, rng, weather)
        ground.open()
        return ground

    async def run() -> None:
        cluster = Cluster(
            loop, new_ground(""), new_ground, weather, rng, {}, KeyFile(loop, 0, keys),
            lambda broker: None,
        )  # fmt: skip
        cluster.nodes += [Node(cluster, f"node-{n}") for n in range(number)]
        for node in cluster.nodes:
            node.start()
        try:
            await play(cluster.nodes)
        finally:
            for node in cluster.nodes:
                node.stop()

    with turned_clocks():
        loop.run(run())


async def bodies_of(broker: Broker, key: QueueKey) -> list[bytes]:
    view = await broker.messages.page(CTX, key, "", 20, echo=True, held=True)
    return [bytes(message.body) for message in view.messages] if view else []


def test_a_dead_letter_that_was_copied_between_pools_is_not_moved_as_well() -> None:
    """Seed 552094446 of the scene `pools`: it had been copied, but not removed, while its queue was
    in a pool. Back in one store, it was moved in one step, which knows nothing of the copy.
    """
    key, dead = (QueueKey("queue", "project", name) for name in ("jobs", "jobs.dead"))

    async def read(bytes_max: int) -> list[NewMessage]:
        return [NewMessage(b"1", 600)]

    async def play(broker: Broker) -> None:
        await broker.pools.put(ADMIN, "a", uri_of("a"), 1, None, {})
        options = {"_dead_letter_queue": dead.name, "_max_claim_count": 1}
        await broker.queues.create(CTX, key, options)
        await broker.messages.post(CTX, key, read)
        assert await broker.claims.create(CTX, key, ClaimTerms(1, 1), 1) is not None
        await asyncio.sleep(2)

        async def fail(*args: Any) -> None:
            raise Unavailable("The store is away.")

        claims = cast("Any", broker.claims)
        claims._remove = fail
        with pytest.raises(Unavailable):
            await broker.claims.create(CTX, key, ClaimTerms(1, 1), 1)
        del claims._remove
        assert await bodies_of(broker, key) == await bodies_of(broker, dead) == [b"1"]
        for one in (key, dead):
            await broker.moving.move(one, None)
        assert await broker.claims.create(CTX, key, ClaimTerms(1, 1), 1) is None
        assert await bodies_of(broker, key) == []
        assert await bodies_of(broker, dead) == [b"1"]

    async def alone(nodes: list[Node]) -> None:
        await nodes[0].ask(play, None)

    together(alone)


def test_what_was_popped_by_another_meanwhile_is_not_answered() -> None:
    """A pop of what is encrypted holds it first. Who stands still for longer than that, before it is
    removed, is told that it is gone; but somebody else has got it.
    """
    key = QueueKey("queue", "project", "secrets")

    async def read(bytes_max: int) -> list[NewMessage]:
        return [NewMessage(b"1", 600)]

    async def post(broker: Broker) -> None:
        await broker.queues.create(CTX, key, {ENCRYPT: True})
        await broker.messages.post(CTX, key, read)

    async def pop(broker: Broker) -> list[bytes]:
        view = await broker.messages.pop(CTX, key, 1)
        return [bytes(message.body) for message in view.messages] if view else []

    async def play(nodes: list[Node]) -> None:
        sleeper, other = nodes
        await sleeper.ask(post, None)
        assert sleeper.broker is not None
        messages, go_on = cast("Any", sleeper.broker.pools.own.messages), []
        claim = messages.claim

        async def claim_and_sleep(*args: Any) -> Any:
            held = await claim(*args)
            go_on.append(sleeper.stand_still())
            await asyncio.sleep(0)
            return held

        messages.claim = claim_and_sleep
        popping = asyncio.ensure_future(sleeper.ask(pop, None))
        await asyncio.sleep(1)
        assert len(go_on) == 1
        assert await other.ask(pop, None) == []
        await asyncio.sleep(POP_S)
        assert await other.ask(pop, None) == [b"1"]
        go_on[0]()
        with pytest.raises(Unavailable):
            await popping

    together(play, 2, keys=1)


def test_a_delivery_that_is_given_up_while_its_subscription_is_deleted_leaves_nothing() -> None:
    """Seeds 496049681 and 496049774 of the scene `guests`: it failed, or left an empty queue."""
    key = delivery_key("project", "subscription")
    progress = Progress("1", 0)

    async def play(broker: Broker) -> None:
        deliveries = broker.deliveries
        messages = cast("Any", broker.pools.own.messages)
        move = messages.move

        async def claimed() -> str:
            await deliveries.add({key: [draft(b"{}", progress)]})
            claim = (await deliveries.claim(key, 1, 60)).claim
            assert claim is not None
            return claim

        claim = await claimed()
        await deliveries.forget("project", "subscription")
        await deliveries.give_up(key, claim, 1, 60, progress)
        assert await messages.queues(None, 10) == []

        claim, moves = await claimed(), 0

        async def move_late(*args: Any) -> Any:
            nonlocal moves
            moves += 1
            if moves == 2:  # just after its target was made
                await messages.drop(internal(failed_key("project", "subscription")))
            return await move(*args)

        messages.move = move_late
        await deliveries.give_up(key, claim, 1, 60, progress)
        assert moves == 3
        assert await deliveries.counts("project", "subscription") == (0, 1, None)

    async def alone(nodes: list[Node]) -> None:
        await nodes[0].ask(play, None)

    together(alone)


def test_who_stood_still_encrypts_with_the_key_of_now() -> None:
    """The one of before may have been taken away meanwhile, since everybody else had noticed."""
    key = QueueKey("queue", "project", "secrets")

    async def play(nodes: list[Node]) -> None:
        (node,) = nodes
        assert node.broker is not None
        keys, codec = node.cluster.key_file, node.broker.codec
        (old,) = keys.keys
        assert key_id_of(codec.encrypt(key, b"1")) == key_id(old)
        go_on = node.stand_still()
        keys.rotate()
        await asyncio.sleep(NOTICED_S)
        assert await keys.retire(node.cluster.disks())
        assert old not in keys.keys
        go_on()  # and before it looks by itself
        assert key_id_of(codec.encrypt(key, b"1")) == key_id(keys.keys[0])

    together(play, keys=1)
