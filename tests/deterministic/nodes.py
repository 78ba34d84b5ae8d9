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
from tests.deterministic.keyfile import KeyFile
from tests.deterministic.loop import EPOCH_S, Loop, World, context_of
from tests.deterministic.store import Disk, Ground
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
    """What the nodes have in common. ``new_ground`` makes the store behind the URI of a pool, which
    is there from then on; ``change`` is what is wrong with every broker, if anything is.
    """

    def __init__(
        self, loop: Loop, ground: Ground, new_ground: Callable[[str], Ground], weather: Weather,
        rng: random.Random, senders: Mapping[str, Sender], key_file: KeyFile,
        change: Callable[[Broker], None], trace: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        self.loop = loop
        self.ground = ground
        self.pools: dict[str, Ground] = {}  # by URI
        self._new_ground = new_ground
        self.key_file = key_file
        self.change = change
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

    def pool(self, uri: str) -> Ground:
        """The store behind the URI of a pool."""
        if uri not in self.pools:
            self.pools[uri] = self._new_ground(uri)
        return self.pools[uri]

    def disks(self) -> list[Disk]:
        """Those of all stores."""
        return [ground.disk for ground in (self.ground, *self.pools.values())]

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

    def stand_still(self) -> Callable[[], None]:
        """It does nothing, and does not notice; to be called when it goes on. It must not be down."""
        life, cluster = self.life, self.cluster
        assert life is not None
        life.still = True
        cluster.say(f"{self.name} stands still")

        def go_on() -> None:
            cluster.say(f"{self.name} goes on")
            cluster.loop.go_on(life)

        return go_on

    async def ask(self, work: Callable[[Broker], Awaitable[T]], patience_s: float | None) -> T:
        """Have it do something. Raises NodeDied, and TimeoutError when patience is at an end, after
        hanging up, which the node may notice later. It must not be down.
        """
        life = self.life
        assert life is not None
        loop = self.cluster.loop
        answer: asyncio.Future[T] = loop.create_future()
        task = loop.create_task(_done(work, life.broker), context=life.context.copy())
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

        def hang_up() -> None:
            if not answer.done():
                answer.set_exception(TimeoutError())
            loop.call_soon(task.cancel, context=life.context.copy())

        patience = None
        if patience_s is not None:
            patience = loop.call_later(patience_s, hang_up, context=self.cluster.context)
        try:
            return await answer
        finally:
            if patience is not None:
                patience.cancel()


async def _done(work: Callable[[Broker], Awaitable[T]], broker: Broker) -> T:
    return await work(broker)


class Life:
    """A node from its start to its death."""

    dead = still = False

    def __init__(self, node: Node) -> None:
        self.node = node
        self.cluster = node.cluster
        self.context = context_of(self)
        self.asked: dict[asyncio.Future[Any], None] = {}
        self.calls_left = 0  # of a store, until it is to stand still; 0: it is not
        self.counted: Callable[[Life], bool] = lambda life: True  # a call that is made now
        self.stand_still: Callable[[], None] = lambda: None
        self.heard: Hint = lambda key: None
        self.context.run(self._start)

    def _start(self) -> None:
        cluster, rng = self.cluster, random.Random(self.cluster.rng.random())
        store = self._reach(cluster.ground)
        skew_s = cluster.rng.uniform(-3, 3)
        metrics, ring = Metrics(), cluster.key_file.ring()
        self.broker = Broker(
            Pools(store, self._open, SETTINGS, rng),
            SETTINGS,
            metrics,
            rng,
            signing_key="",
            trusts=cast("Trusts", None),
            addresses=_ADDRESSES,
            ring=ring,
            now=lambda: EPOCH_S + skew_s + cluster.loop.now_s,
        )
        cluster.change(self.broker)
        if cluster.senders:
            notifier = Notifier(self.broker, cluster.senders, SETTINGS, metrics, IN_FLIGHT)
            notifier.rng = rng
            notifier.start()
        cluster.loop.create_task(_housekeeping(self.broker.pools))
        if cluster.key_file.keys:
            cluster.loop.create_task(cluster.key_file.watch(ring))

    def _reach(self, ground: Ground) -> Store:
        """A store, as this node has it."""
        messages, records = (cast("Any", _Part(self, ground, p)) for p in ("messages", "records"))
        return ground.of_node(messages, records, self._tell, self._hear)

    async def _open(self, uri: str, options: Mapping[str, Any]) -> Store:
        """That of a pool."""
        cluster = self.cluster
        await asyncio.sleep(cluster.rng.random() * 0.01)
        ground = cluster.pool(uri)
        if ground.away:
            raise Unavailable("The store of the pool is away.")
        return self._reach(ground)

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

    def count(self) -> None:
        """A call of a store begins."""
        if self.counted(self):
            self.calls_left -= 1
            if not self.calls_left:
                self.stand_still()

    def die(self) -> None:
        self.dead = True
        self.cluster.deaths += 1
        self.cluster.say(f"{self.node.name} dies")
        for answer in list(self.asked):
            if not answer.done():
                answer.set_exception(NodeDied())
        self.asked.clear()


class _Part:
    """The messages or records of a store, as a node reaches them; the store may be started anew."""

    def __init__(self, life: Life, ground: Ground, part: str) -> None:
        self._life = life
        self._ground = ground
        self._part = part

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        life, cluster, ground, part = self._life, self._life.cluster, self._ground, self._part
        run, fate_of = cluster.in_store, cluster.weather.fate

        def reach(*args: Any, **options: Any) -> Awaitable[Any]:
            if life.dead:
                raise asyncio.CancelledError  # the last tasks of a run are unwinding
            if life.calls_left:
                life.count()
            if ground.away:
                return _away()
            call = getattr(getattr(ground.store, part), name)
            fate = fate_of()
            if cluster.trace is not None:
                what = f"{ground.name}{name} {_brief(args, options)}"
                cluster.say(f"{life.node.name} {what}: {fate}")
            if fate is FINE:
                return run(call, args, options)
            cluster.struck[fate] = cluster.struck.get(fate, 0) + 1
            return _counted(life, fate, lambda: run(call, args, options))

        setattr(self, name, reach)
        return reach


async def _counted(life: Life, fate: str, call: Callable[[], Awaitable[Any]]) -> Any:
    meddled = life.cluster.meddled
    meddled[life] = meddled.get(life, 0) + 1
    try:
        return await _meddled(life, fate, call)
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


async def _housekeeping(pools: Pools) -> None:
    while True:
        for store in (pools.own, *pools.opened().values()):
            with suppress(NuskuError):
                await store.messages.expire(EXPIRED_AT_ONCE)
        await asyncio.sleep(REST_S)


async def _away() -> Any:
    raise Unavailable("The store is away.")


def _brief(args: tuple[Any, ...], options: Mapping[str, Any]) -> str:
    text = ", ".join([*map(repr, args), *(f"{k}={v!r}" for k, v in options.items())])
    return text if len(text) < 240 else f"{text[:240]}…"


_ADDRESSES = Addresses(SETTINGS)
