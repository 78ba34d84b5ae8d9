"""Nodes: brokers and notifiers over one store, each of which may die at any call of the store."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar, cast

from nusku.addresses import Addresses
from nusku.broker import Broker, Pools
from nusku.broker.subscriptions import Trusts
from nusku.config import Settings
from nusku.errors import NuskuError, Unavailable
from nusku.metrics import Metrics
from nusku.model import QueueKey
from nusku.notify import Notifier, Sender
from nusku.storage import Hint, Store
from tests.deterministic.loop import EPOCH_S, Loop, World, context_of
from tests.deterministic.store import Ground
from tests.deterministic.weather import (
    CRASH_AFTER,
    CRASH_BEFORE,
    CRASH_DURING,
    FINE,
    LATE,
    SLOW,
    UNHEARD,
    UNSENT,
    Weather,
)

T = TypeVar("T")

EXPIRED_AT_ONCE = 200
REST_S = 1.5  # between two steps of housekeeping
IN_FLIGHT = 20  # notifications

SETTINGS = Settings(
    store="sqlite:///memory",
    subscriber_allow=("127.0.0.0/8",),
    min_subscription_ttl=1,
    min_message_ttl=1,
    min_claim_ttl=1,
    min_claim_grace=0,
    delivery_connect_timeout=1,
    delivery_timeout=2,
)


class NodeDied(Exception):
    """The node that was asked is no more; what it did is not known."""


class Cluster:
    """What the nodes have in common."""

    def __init__(
        self, loop: Loop, ground: Ground, weather: Weather, rng: random.Random,
        senders: Mapping[str, Sender], trace: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        self.loop = loop
        self.ground = ground
        self.weather = weather
        self.rng = rng
        self.senders = senders
        self.trace = trace
        self.context = context_of(World())
        self.late: dict[asyncio.Task[None], None] = {}  # calls that will have their effect yet
        self.meddled: dict[Life, int] = {}  # calls of living nodes that do not go as they should
        self.nodes: list[Node] = []
        self.deaths = 0
        self.struck: dict[str, int] = {}

    @property
    def under_way(self) -> bool:
        """Whether something may still happen of what was asked for while all was not well."""
        return bool(self.late) or any(n for life, n in self.meddled.items() if not life.dead)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Something that no node does."""
        return self.loop.create_task(work, context=self.context.copy())

    def in_store(
        self, call: Callable[..., Awaitable[Any]], args: tuple[Any, ...], options: dict[str, Any]
    ) -> Awaitable[Any]:
        """Have the store do something, which goes on whoever asked for it dies."""
        work = self.context.run(call, *args, **options)
        return self.spawn(work) if asyncio.iscoroutine(work) else work

    def say(self, text: str) -> None:
        if self.trace is not None:
            self.trace(f"{self.loop.now_s:10.6f} {text}")


class Node:
    """One node, in all its lives."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.life: Life | None = None

    @property
    def broker(self) -> Broker | None:
        """None while it is down."""
        return self.life.broker if self.life is not None else None

    def start(self) -> None:
        self.life = Life(self)

    def stop(self) -> None:
        """Without a word: whatever it was doing is not gone on with."""
        life, self.life = self.life, None
        if life is not None:
            life.die()

    async def ask(self, work: Callable[[Broker], Awaitable[T]], patience_s: float | None) -> T:
        """Have it do something. Raises NodeDied, and TimeoutError when patience is at an end, after
        hanging up. It must not be down.
        """
        life = self.life
        assert life is not None
        loop = self.cluster.loop
        answer: asyncio.Future[T] = loop.create_future()
        task = loop.create_task(_awaited(work(life.broker)), context=life.context.copy())
        life.asked[answer] = None

        def hear(done: asyncio.Task[T]) -> None:
            life.asked.pop(answer, None)
            if answer.done() or life.dead:
                return
            if done.cancelled():
                answer.set_exception(TimeoutError())
            elif (error := done.exception()) is not None:
                answer.set_exception(error)
            else:
                answer.set_result(done.result())

        task.add_done_callback(hear, context=self.cluster.context)
        hang_up = None
        if patience_s is not None:
            hang_up = loop.call_later(patience_s, task.cancel, context=life.context.copy())
        try:
            return await answer
        finally:
            if hang_up is not None:
                hang_up.cancel()


async def _awaited(work: Awaitable[T]) -> T:
    return await work


class Life:
    """A node from its start to its death."""

    dead = False

    def __init__(self, node: Node) -> None:
        self.node = node
        self.cluster = node.cluster
        self.context = context_of(self)
        self.asked: dict[asyncio.Future[Any], None] = {}
        self.heard: Hint = lambda key: None
        self.context.run(self._start)

    def _start(self) -> None:
        cluster, rng = self.cluster, random.Random(self.cluster.rng.random())
        messages, records = (
            cast("Any", _Part(self, part))
            for part in (cluster.ground.store.messages, cluster.ground.store.records)
        )
        store = cluster.ground.of_node(messages, records, self._tell, self._hear)
        skew_s = cluster.rng.uniform(-3, 3)
        metrics = Metrics()
        self.broker = Broker(
            Pools(store, _no_pools, SETTINGS, rng),
            SETTINGS,
            metrics,
            rng,
            signing_key="",
            trusts=cast("Trusts", None),
            addresses=_ADDRESSES,
            now=lambda: EPOCH_S + skew_s + cluster.loop.now_s,
        )
        if cluster.senders:
            notifier = Notifier(self.broker, cluster.senders, SETTINGS, metrics, IN_FLIGHT)
            notifier.rng = rng
            notifier.start()
        cluster.loop.create_task(_housekeeping(store))

    def _tell(self, key: QueueKey) -> None:
        """Word for the other nodes, which may get lost."""
        cluster = self.cluster
        if self.dead:
            return
        for node in cluster.nodes:
            life = node.life
            if (
                life is None
                or life is self
                or cluster.weather.strikes(cluster.weather.now.hints_lost)
            ):
                continue
            cluster.loop.call_later(
                cluster.rng.random() * 0.01, life.heard, key, context=life.context.copy()
            )

    def _hear(self, told: Hint) -> None:
        self.heard = told

    def die(self) -> None:
        self.dead = True
        self.cluster.deaths += 1
        self.cluster.say(f"{self.node.name} dies")
        for answer in list(self.asked):
            if not answer.done():
                answer.set_exception(NodeDied())
        self.asked.clear()


class _Part:
    """The messages or records of a store, as a node reaches them."""

    def __init__(self, life: Life, part: Any) -> None:
        self._life = life
        self._part = part

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        life, cluster, call = self._life, self._life.cluster, getattr(self._part, name)
        run, fate_of = cluster.in_store, cluster.weather.fate

        def reach(*args: Any, **options: Any) -> Awaitable[Any]:
            if life.dead:
                raise asyncio.CancelledError  # the last tasks of a run are unwinding
            fate = fate_of()
            if cluster.trace is not None:
                cluster.say(f"{life.node.name} {name} {_brief(args, options)}: {fate}")
            if fate is FINE:
                return run(call, args, options)
            cluster.struck[fate] = cluster.struck.get(fate, 0) + 1
            return _counted(life, _meddled(life, fate, lambda: run(call, args, options)))

        setattr(self, name, reach)
        return reach


async def _counted(life: Life, work: Awaitable[T]) -> T:
    meddled = life.cluster.meddled
    meddled[life] = meddled.get(life, 0) + 1
    try:
        return await work
    finally:
        meddled[life] -= 1


async def _meddled(life: Life, fate: str, call: Callable[[], Awaitable[Any]]) -> Any:
    """One call that does not go as it should."""
    cluster = life.cluster
    pause_s = cluster.weather.pause_s
    if fate == SLOW:
        await asyncio.sleep(pause_s())
        try:
            return await call()
        finally:
            await asyncio.sleep(pause_s())
    if fate == UNSENT:
        await asyncio.sleep(pause_s())
    elif fate == UNHEARD:
        await _let_be(call())
    elif fate == LATE:
        task = cluster.spawn(_later(pause_s() + pause_s(), call))
        cluster.late[task] = None
        task.add_done_callback(lambda done: cluster.late.pop(done, None), context=cluster.context)
        await asyncio.sleep(pause_s())
    elif fate == CRASH_BEFORE:
        await _die(life)
    elif fate == CRASH_DURING:
        cluster.spawn(_let_be(call()))
        await _die(life)
    elif fate == CRASH_AFTER:
        await _let_be(call())
        await _die(life)
    raise Unavailable(f"The call was {fate}.")


async def _die(life: Life) -> None:
    if life.node.life is life:
        life.node.stop()
    await asyncio.get_running_loop().create_future()


async def _later(pause_s: float, call: Callable[[], Awaitable[Any]]) -> None:
    await asyncio.sleep(pause_s)
    await _let_be(call())


async def _let_be(work: Awaitable[Any]) -> None:
    """Nobody hears how it went."""
    await asyncio.gather(work, return_exceptions=True)


async def _housekeeping(store: Store) -> None:
    while True:
        with suppress(NuskuError):
            await store.messages.expire(EXPIRED_AT_ONCE)
        await asyncio.sleep(REST_S)


async def _no_pools(uri: str, options: Mapping[str, Any]) -> Store:
    raise AssertionError(f"nobody added a pool at {uri}")


def _brief(args: tuple[Any, ...], options: Mapping[str, Any]) -> str:
    text = ", ".join([*map(repr, args), *(f"{k}={v!r}" for k, v in options.items())])
    return text if len(text) < 240 else f"{text[:240]}…"


_ADDRESSES = Addresses(SETTINGS)
