"""Queues go from pool to pool while they are used, whoever dies or sleeps at whatever moment.

Two nodes, brokers in one process, share the stores of a service and of its pools. Every call that
a node makes of a store passes by somebody who may let it fail, come late, or be the last one. Time
is a stub.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from nusku.addresses import Addresses
from nusku.broker import Broker, Change, ClaimTerms, NewMessage, Pools
from nusku.broker import moving as moving_module
from nusku.broker.queues import Document, document_of, ref_of
from nusku.broker.subscriptions import Trusts
from nusku.config import Settings
from nusku.errors import NuskuError, PoolInUse, Unavailable
from nusku.metrics import Metrics
from nusku.model import Context, QueueKey, QueueRef, Stored
from nusku.storage import Store, StoreOptions, open_store
from tests.notify.test_faults import EPOCH_S, Go, Timeless, _Part, run, timeless
from tests.servers.stores import KINDS, store_in

QUEUE = QueueKey("queue", "p", "q")
ANN = Context("p", "ann", frozenset())
ADMIN = Context("p", "admin", frozenset({"admin"}))
LEASE_S = moving_module.LEASE_MS / 1000
NAMES = ("own", "a", "b")


def seeds(few: int, many: int) -> list[Any]:
    """Numbers for random tests; those after the first few are for the whole suite only."""
    slow = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(few, many)]
    return [*range(few), *slow]


Meddle = Callable[[str, tuple[Any, ...], Go], Awaitable[Any]]


async def leave_alone(name: str, args: tuple[Any, ...], go: Go) -> Any:
    return await go()


def work() -> AbstractContextManager[None]:
    """While a store works, time goes on only in so far as it is real."""
    loop = asyncio.get_running_loop()
    return loop.work() if isinstance(loop, Timeless) else nullcontext()


class Node:
    """A broker, and what comes between it and the stores."""

    def __init__(
        self,
        stores: Mapping[str, Store],
        uris: Mapping[str, str],
        settings: Settings,
        rng: random.Random,
    ) -> None:
        self.meddle: Meddle = leave_alone
        parts = {uris[name]: self._meddled(store) for name, store in stores.items()}

        async def open_(uri: str, options: Mapping[str, Any]) -> Store:
            return parts[uri]

        self.pools = Pools(parts[uris["own"]], open_, settings, rng)
        self.broker = Broker(
            self.pools,
            settings,
            Metrics(),
            rng,
            signing_key="",
            trusts=cast("Trusts", None),
            addresses=Addresses(settings),
            now=lambda: EPOCH_S + timeless().time(),
        )
        self.moving = self.broker.moving

    def _meddled(self, store: Store) -> Store:
        part = cast("Any", self)

        async def leave_open() -> None:
            """The other nodes go on using it."""

        store = store._replace(close=leave_open, failed=asyncio.get_running_loop().create_future())
        if not isinstance(asyncio.get_running_loop(), Timeless):
            return store
        return store._replace(
            messages=cast("Any", _Part(store.messages, part)),
            records=cast("Any", _Part(store.records, part)),
        )

    async def post(self, *bodies: Any, ttl_s: int = 300_000, delay_s: int = 0) -> list[str]:
        async def read(most: int) -> list[NewMessage]:
            return [NewMessage(msgspec.json.encode(body), ttl_s, delay_s) for body in bodies]

        return await self.broker.messages.post(ANN, QUEUE, read)

    async def bodies(self, *, held: bool = True, delayed: bool = True) -> list[Any]:
        view = await self.broker.messages.page(
            ANN, QUEUE, "", 1000, echo=True, held=held, delayed=delayed
        )
        return [msgspec.json.decode(m.body) for m in view.messages] if view else []

    async def claim(
        self, limit: int = 20, ttl_s: int = 43_000
    ) -> tuple[str, list[tuple[str, Any]]]:
        got = await self.broker.claims.create(ANN, QUEUE, ClaimTerms(ttl_s, 60), limit)
        if got is None:
            return "", []
        claim, view = got
        return claim, [(view.id_of(m), msgspec.json.decode(m.body)) for m in view.messages]

    async def set(self, name: str, value: Any) -> None:
        await self.broker.queues.update(ANN, QUEUE, [Change("add", name, value)])


class Service:
    """Three stores, the service's own and two pools, and two nodes. Queues come to be in ``a``."""

    def __init__(
        self, folder: Path, rng: random.Random, uris: Mapping[str, str] | None = None
    ) -> None:
        self.rng = rng
        self.uris = uris or {name: f"sqlite:///{folder}/{name}.db" for name in NAMES}
        self.settings = Settings(
            store=self.uris["own"], enable_virtual_pool=True, max_message_delay=100_000
        )

    async def start(self) -> Service:
        loop = asyncio.get_running_loop()

        def now_ms() -> int:
            return EPOCH_S * 1000 + int(loop.time() * 1000)

        with work():
            clock = now_ms if isinstance(loop, Timeless) else None
            self.stores = {
                name: await open_store(uri, clock, StoreOptions("normal"), Metrics())
                for name, uri in self.uris.items()
            }
        self.mover, self.other = self.node(), self.node()
        for name, weight in (("a", 1), ("b", 0)):
            await self.other.pools.put(ADMIN, name, self.uris[name], weight, None, {})
        return self

    def node(self) -> Node:
        return Node(self.stores, self.uris, self.settings, self.rng)

    async def stop(self) -> None:
        for node in (self.mover, self.other):
            await node.moving.close()
            await node.pools.close()
        with work():
            for store in self.stores.values():
                await store.close()

    # As it is, whoever meddles

    async def read(self) -> tuple[Document, QueueRef] | None:
        with work():
            record = await self.stores["own"].records.get(*QUEUE)
        return (document_of(record), ref_of(record, document_of(record))) if record else None

    async def where(self) -> str:
        found = await self.read()
        assert found is not None
        return found[0].pool or "own"

    async def dump(self) -> list[Stored]:
        found = await self.read()
        assert found is not None
        with work():
            messages = self.stores[await self.where()].messages
            return await messages.dump(found[1], 0, 10_000)

    async def copies(self) -> dict[str, bool]:
        """The stores that have the queue, and whether it is sealed there."""
        with work():
            return {
                name: held.sealed
                for name, store in self.stores.items()
                for held in await store.messages.queues(None, 1000)
                if held.ref.key == QUEUE
            }

    async def placed(self) -> list[str]:
        return [pool for pool in ("a", "b") if await self.other.pools.placed(pool)]


def service(
    test: Callable[[Service], Coroutine[Any, Any, None]], folder: Path, seed: int = 1
) -> None:
    run(whole(test, Service(folder, random.Random(seed))))


async def whole(test: Callable[[Service], Coroutine[Any, Any, None]], it: Service) -> None:
    await it.start()
    try:
        await test(it)
    finally:
        for node in (it.mover, it.other):
            node.meddle = leave_alone
        await it.stop()


async def filled(it: Service) -> list[Stored]:
    """A queue with something of everything, in pool ``a``."""
    await it.other.post("held", "held too", "gone", "free")
    claim, got = await it.other.claim(3)
    await it.other.broker.messages.delete(ANN, QUEUE, got[2][0], claim)
    await it.other.post("delayed", delay_s=90_000)
    await it.other.post(*(f"{n}" for n in range(6)))
    assert await it.where() == "a"
    return await it.dump()


# Undisturbed


@pytest.mark.parametrize("short", [0, 1000])
def test_a_queue_is_moved_with_all_that_is_in_it(
    tmp_path: Path, short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving_module, "SHORT", short)

    async def test(it: Service) -> None:
        before = await filled(it)
        for to in ("b", None, "a", "b"):
            await it.mover.moving.move(QUEUE, to)
            assert await it.where() == (to or "own")
            assert await it.dump() == before
            assert await it.copies() == {to or "own": False}
            assert await it.placed() == ([to] if to else [])
        assert await it.other.bodies() == [msgspec.json.decode(m.body or b"") for m in before]
        ids = await it.other.post("after")
        assert (await it.mover.bodies())[-1] == "after"
        await it.mover.broker.messages.delete(ANN, QUEUE, ids[0], None)

    service(test, tmp_path)


def test_a_long_queue_is_copied_while_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving_module, "SHORT", 50)

    async def test(it: Service) -> None:
        for start in range(0, 400, 20):
            await it.other.post(*range(start, start + 20))
        still: list[int] = []  # messages that were loaded while it stood still

        async def meddle(name: str, args: tuple[Any, ...], go: Go) -> Any:
            found = await it.read()
            if name == "load" and found and found[0].moving:
                still.append(len(args[4]))
            elif name == "load":
                claim, got = await it.other.claim(1)
                await it.other.broker.messages.delete(ANN, QUEUE, got[0][0], claim)
                await it.other.post("more")
            return await go()

        it.mover.meddle = meddle
        await it.mover.moving.move(QUEUE, "b")
        assert 0 < sum(still) < 60
        bodies = await it.other.bodies()
        more = bodies.count("more")
        assert more > 3
        assert bodies == [*range(more, 400), *["more"] * more]

    service(test, tmp_path)


def test_a_queue_that_is_not_there_is_not_moved(tmp_path: Path) -> None:
    async def test(it: Service) -> None:
        await it.mover.moving.move(QUEUE, "b")
        assert await it.copies() == {}
        await it.other.post("x")
        await it.mover.moving.move(QUEUE, "a")
        assert await it.copies() == {"a": False}

    service(test, tmp_path)


def test_another_flavor_brings_a_queue_to_another_pool(tmp_path: Path) -> None:
    async def test(it: Service) -> None:
        before = await filled(it)
        await it.other.broker.flavors.put(ADMIN, "fast", ["b"])
        await it.other.pools.patch(ADMIN, "b", {"weight": 1})
        await it.mover.set("_flavor", "fast")
        assert await it.where() == "b"
        assert await it.dump() == before
        await it.mover.set("_flavor", "fast")
        assert await it.other.post("after")

    service(test, tmp_path)


def test_who_waits_for_a_message_gets_it_from_the_other_store(tmp_path: Path) -> None:
    async def test(it: Service) -> None:
        await it.other.post("x")
        await it.other.claim()
        claims = it.other.broker.claims
        waiting = asyncio.ensure_future(claims.create(ANN, QUEUE, ClaimTerms(60, 60), 1, 20))
        await asyncio.sleep(1)
        await it.mover.moving.move(QUEUE, "b")
        await asyncio.sleep(1)
        await it.other.post("y")
        got = await waiting
        assert got is not None
        assert [m.body for m in got[1].messages] == [b'"y"']

    service(test, tmp_path)


# With a fault at every call that the mover makes


class Fault:
    """What happens to the ``at``-th call of a node."""

    def __init__(self, how: str, at: int) -> None:
        self.how = how
        self.at = at
        self.calls = 0
        self.struck = asyncio.Event()
        self.go_on = asyncio.Event()
        self.late: list[Go] = []
        self.dead = False
        self.buried = asyncio.Event()

    async def __call__(self, name: str, args: tuple[Any, ...], go: Go) -> Any:
        if self.dead:
            await self.buried.wait()
            raise Unavailable("Dead.")
        self.calls += 1
        if self.calls != self.at:
            return await go()
        self.struck.set()
        match self.how:
            case "dies before":
                self.dead = True
                return await self(name, args, go)
            case "dies after":
                self.dead = True
                await go()
                return await self(name, args, go)
            case "fails":
                raise Unavailable("The store is away.")
            case "fails after all":
                await go()
                raise Unavailable("The outcome is unknown.")
            case "comes late":
                self.late.append(go)
                raise Unavailable("The outcome is unknown.")
            case "sleeps":
                await self.go_on.wait()
                return await go()
            case "nothing":
                return await go()
        raise AssertionError(self.how)

    async def comes(self) -> None:
        """What was to be late takes place now."""
        self.go_on.set()
        for go in self.late:
            with suppress(Exception):
                await go()


LATE = ("comes late", "sleeps")
HOW = ("dies before", "dies after", "fails", "fails after all", *LATE)


async def calls_of_a_move(it: Service) -> int:
    fault = it.mover.meddle = Fault("counts", 0)
    await it.mover.moving.move(QUEUE, "b")
    await it.mover.moving.move(QUEUE, "a")
    it.mover.meddle = leave_alone
    return fault.calls // 2


def is_claimed(one: Stored) -> bool:
    return one.claim is not None


@pytest.mark.parametrize("how", HOW)
def test_whatever_becomes_of_the_mover_the_queue_goes_on_as_it_was(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on(how, "", tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("how", "moved"),
    [
        pytest.param(how, moved, marks=() if how in LATE else pytest.mark.slow)
        for how in HOW
        for moved in ("back", "there")
    ],
)
def test_a_mover_that_goes_on_after_others_have_moved_the_queue_does_no_harm(
    how: str, moved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on(how, moved, tmp_path, monkeypatch)


def goes_on(how: str, moved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something happens to each call of the mover, then a client comes, others perhaps move the
    queue back or there, and then whatever was late takes place.
    """
    monkeypatch.setattr(moving_module, "SHORT", 3)

    async def test(it: Service) -> None:
        expected = await filled(it)
        arrived: Counter[str] = Counter()
        number = await calls_of_a_move(it)
        assert number > 20
        origin, to = "a", "b"
        for at in range(1, number + 4):
            node = it.mover = it.node()
            fault = node.meddle = Fault(how, at)
            move = asyncio.create_task(node.moving.move(QUEUE, to))
            done = asyncio.create_task(fault.struck.wait())
            await asyncio.wait({move, done}, return_when=asyncio.FIRST_COMPLETED)
            if how == "sleeps" and fault.struck.is_set():
                await asyncio.sleep(LEASE_S)
            elif not fault.dead:
                await asyncio.wait({move})
            await asyncio.sleep(LEASE_S)

            # A client comes, and then what was late.
            assert await it.other.post(f"after {at}")
            present = await it.dump()
            assert present[:-1] == expected, (how, at)
            assert msgspec.json.decode(present[-1].body or b"") == f"after {at}"
            expected = present
            if moved:
                for place in (to, origin) if moved == "back" else (origin, to):
                    await it.other.moving.move(QUEUE, place)
                assert await it.dump() == expected
            await fault.comes()
            await asyncio.sleep(LEASE_S)
            done.cancel()
            fault.buried.set()
            with suppress(NuskuError):
                await move
            await node.moving.close()
            await node.pools.close()
            assert await it.dump() == expected, (how, at)
            assert await it.other.post("and on")
            expected = await it.dump()
            assert len(expected) == len(present) + 1
            where = await it.where()
            arrived[where] += 1
            copies = await it.copies()
            assert [name for name, sealed in copies.items() if not sealed] == [where], (how, at)
            assert where in (*await it.placed(), "own")
            expected = await it.dump()
            origin, to = where, {"a": "b", "b": "a"}[where]
        assert arrived

    service(test, tmp_path)


# Beside other changes


@pytest.mark.parametrize("seed", seeds(4, 12))
def test_a_queue_may_be_deleted_and_made_anew_while_it_is_moved(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No post that follows a deletion goes with it, and none that came before it stays."""
    monkeypatch.setattr(moving_module, "SHORT", 2)

    async def test(it: Service) -> None:
        clients, now = Traffic(it), timeless().time
        posted: list[tuple[str, float, float]] = []
        deleted: list[tuple[float, float]] = []
        for node in clients.nodes:
            node.meddle = clients.slow

        async def producer(name: str) -> None:
            for n in range(60):
                start = now()
                with suppress(Unavailable):
                    await it.rng.choice(clients.nodes).post(f"{name} {n}")
                    posted.append((f"{name} {n}", start, now()))
                await clients.moment()

        async def deleter() -> None:
            for _ in range(12):
                await asyncio.sleep(it.rng.random() * 12)
                start = now()
                with suppress(Unavailable):
                    await it.rng.choice(clients.nodes).broker.queues.delete(ANN, QUEUE)
                    deleted.append((start, now()))

        moves = asyncio.create_task(clients.move(30, ["nothing", *HOW]))
        await asyncio.gather(*map(producer, "abc"), deleter())
        await clients.end(await moves)
        await it.other.post("last 0")
        there = await it.other.bodies()
        clients.ordered(there)
        assert there[-1] == "last 0"
        assert len(there) == len(set(there))
        for body, start, end in posted:
            if all(ended < start for _, ended in deleted):
                assert body in there
            elif any(end < started for started, _ in deleted):
                assert body not in there
        assert len(posted) > 100
        assert len(deleted) > 5
        copies = await it.copies()
        assert [name for name, sealed in copies.items() if not sealed] == [await it.where()]

    service(test, tmp_path, seed)


@pytest.mark.parametrize("seed", seeds(2, 6))
def test_a_queue_may_be_changed_while_it_is_moved(tmp_path: Path, seed: int) -> None:
    async def test(it: Service) -> None:
        clients = Traffic(it)
        await it.other.post("x")
        for node in clients.nodes:
            node.meddle = clients.slow
        written: dict[str, int] = {}

        async def changer(name: str) -> None:
            for n in range(15):
                with suppress(Unavailable):
                    await it.rng.choice(clients.nodes).set(name, n)
                    written[name] = n
                await clients.moment()

        moves = asyncio.create_task(clients.move(12, ["nothing"]))
        await asyncio.gather(changer("one"), changer("two"))
        await clients.end(await moves)
        found = await it.read()
        assert found is not None
        assert {name: found[0].metadata[name] for name in written} == written
        assert min(written.values()) > 9
        assert await it.other.bodies() == ["x"]

    service(test, tmp_path, seed)


def test_two_nodes_that_move_a_queue_at_once_bring_it_to_one_place(tmp_path: Path) -> None:
    async def test(it: Service) -> None:
        before = await filled(it)
        slow = Traffic(it).slow
        it.mover.meddle = it.other.meddle = slow
        for to in (("b", "b"), ("a", None), ("b", "a"), (None, "b")):
            moves = [
                node.moving.move(QUEUE, one)
                for node, one in zip((it.mover, it.other), to, strict=True)
            ]
            await asyncio.gather(*moves)
            assert await it.where() in {one or "own" for one in to}
            assert await it.dump() == before
            assert list((await it.copies()).values()) == [False]

    service(test, tmp_path)


def test_moves_of_one_node_to_the_same_place_are_one(tmp_path: Path) -> None:
    async def test(it: Service) -> None:
        before = await filled(it)
        fault = it.mover.meddle = Fault("counts", 0)
        await asyncio.gather(*(it.mover.moving.move(QUEUE, "b") for _ in range(5)))
        alone, fault.calls = fault.calls, 0
        await it.mover.moving.move(QUEUE, "a")
        assert alone < fault.calls + 10
        assert await it.dump() == before

    service(test, tmp_path)


def test_a_move_goes_on_when_nobody_waits_for_it_any_more(tmp_path: Path) -> None:
    async def test(it: Service) -> None:
        before = await filled(it)
        it.mover.meddle = Traffic(it).slow
        move = asyncio.create_task(it.mover.moving.move(QUEUE, "b"))
        await asyncio.sleep(2)
        move.cancel()
        await asyncio.sleep(60)
        assert await it.where() == "b"
        assert await it.dump() == before

    service(test, tmp_path)


def test_a_node_that_stops_undoes_its_moves(tmp_path: Path) -> None:
    async def test(it: Service) -> None:
        before = await filled(it)
        fault = it.mover.meddle = Fault("sleeps", await calls_of_a_move(it) - 12)
        move = asyncio.create_task(it.mover.moving.move(QUEUE, "b"))
        await fault.struck.wait()
        found = await it.read()
        assert found is not None
        assert found[0].moving is not None
        fault.go_on.set()
        await it.mover.moving.close()
        with suppress(asyncio.CancelledError):
            await move
        found = await it.read()
        assert found is not None
        assert found[0].moving is None
        assert await it.dump() == before
        assert list((await it.copies()).values()) == [False]

    service(test, tmp_path)


def test_a_long_stand_still_is_not_taken_for_death(tmp_path: Path) -> None:
    """The mark is renewed, however long it takes to copy what is left."""

    async def test(it: Service) -> None:
        for start in range(0, 900, 20):
            await it.other.post(*range(start, start + 20))

        async def meddle(name: str, args: tuple[Any, ...], go: Go) -> Any:
            if name in {"dump", "load"}:
                await asyncio.sleep(LEASE_S / 3)
            found = await it.read()
            if found and found[0].moving:
                record = await it.stores["own"].records.get(*QUEUE)
                assert record is not None
                await it.other.moving.rescue(record)
            return await go()

        it.mover.meddle = meddle
        await it.mover.moving.move(QUEUE, "b")
        assert await it.where() == "b"
        assert len(await it.other.bodies()) == 900

    service(test, tmp_path)


# Out of a pool


async def several(it: Service, number: int) -> None:
    """Queues in pool ``a``, each with a few messages; another one is empty."""
    for n in range(number):
        key = QueueKey("topic" if n % 3 == 2 else "queue", "p", f"q{n}")

        async def read(most: int, n: int = n) -> list[NewMessage]:
            return [NewMessage(b"%d" % i, 3600) for i in range(n)]

        if n:
            await it.other.broker.messages.post(ANN, key, read)
        else:
            await it.other.broker.queues.create(ANN, key, {})


async def drain(node: Node, pool: str) -> tuple[int, int]:
    queues = messages = 0
    for _ in range(100):
        step = await node.pools.drain(ADMIN, pool)
        queues += step.moved_queues
        messages += step.moved_messages
        if not step.queues_left and not step.messages_left:
            return queues, messages
    raise AssertionError("it takes for ever")


def test_a_pool_is_drained_and_can_be_deleted(tmp_path: Path) -> None:
    async def test(it: Service) -> None:
        await several(it, 30)
        assert len(await it.other.pools.placed("a")) == 30
        with pytest.raises(PoolInUse):
            await it.other.pools.delete(ADMIN, "a")
        await it.other.pools.patch(ADMIN, "b", {"weight": 1})
        assert await drain(it.mover, "a") == (30, sum(range(30)))
        assert len(await it.other.pools.placed("b")) == 30
        assert await it.other.pools.placed("a") == []
        with work():
            assert await it.stores["a"].messages.queues(None, 9) == []
        await it.other.pools.delete(ADMIN, "a")
        view = await it.other.broker.messages.page(
            ANN, QueueKey("queue", "p", "q10"), "", 100, echo=True
        )
        assert view is not None
        assert [m.body for m in view.messages] == [b"%d" % i for i in range(10)]

    service(test, tmp_path)


def test_a_pool_is_not_drained_to_nowhere(tmp_path: Path) -> None:
    async def test(it: Service) -> None:
        await it.other.post("x")
        it.mover.pools._settings = msgspec.structs.replace(it.settings, enable_virtual_pool=False)
        with pytest.raises(Unavailable, match="no pool"):
            await it.mover.pools.drain(ADMIN, "a")
        assert await it.other.bodies() == ["x"]
        assert await it.where() == "a"

    service(test, tmp_path)


def test_empty_queues_do_not_keep_a_pool(tmp_path: Path) -> None:
    async def test(it: Service) -> None:
        await it.other.post("x")
        claim, got = await it.other.claim()
        with pytest.raises(PoolInUse):
            await it.other.pools.delete(ADMIN, "a")
        assert await it.where() == "a"
        await it.other.broker.messages.delete(ANN, QUEUE, got[0][0], claim)
        await it.other.pools.delete(ADMIN, "a")
        assert await it.where() == "own"
        await it.other.post("y")
        assert await it.mover.bodies() == ["y"]

    service(test, tmp_path)


def test_a_step_of_draining_ends_in_time_and_the_next_goes_on(tmp_path: Path) -> None:
    async def test(it: Service) -> None:
        await several(it, 20)
        await it.other.pools.patch(ADMIN, "b", {"weight": 1})

        async def meddle(name: str, args: tuple[Any, ...], go: Go) -> Any:
            await asyncio.sleep(0.2)
            return await go()

        it.mover.meddle = meddle
        start = timeless().time()
        first = await it.mover.pools.drain(ADMIN, "a")
        assert timeless().time() - start < 10
        assert first.queues_left
        assert first.messages_left
        queues, messages = await drain(it.mover, "a")
        assert queues + first.moved_queues == 20
        assert messages + first.moved_messages == sum(range(20))

    service(test, tmp_path)


def test_what_dead_movers_left_is_cleared_away(tmp_path: Path) -> None:
    async def test(it: Service) -> None:
        before = await filled(it)
        number = await calls_of_a_move(it)
        for at in range(3, number, 3):
            node = it.node()
            fault = node.meddle = Fault("dies after", at)
            move = asyncio.create_task(node.moving.move(QUEUE, "b" if at % 2 else None))
            await asyncio.wait({move}, timeout=60)
            await it.other.post(f"{at}")
            fault.buried.set()
            with suppress(NuskuError):
                await move
            await node.moving.close()
            await node.pools.close()
        await it.other.moving.move(QUEUE, None)
        await it.other.pools.patch(ADMIN, "a", {"weight": 0})
        for pool in ("a", "b"):
            await drain(it.other, pool)
        assert await it.copies() == {"own": False}
        assert await it.placed() == []
        assert (await it.dump())[: len(before)] == before

    service(test, tmp_path)


# Under traffic


class Traffic:
    """Clients of all nodes, what they were answered, and what follows from it."""

    def __init__(self, it: Service) -> None:
        self.it = it
        self.rng = it.rng
        self.nodes = [it.mover, it.other]
        self.ids: dict[str, str] = {}
        self.posted: set[str] = set()
        self.unsure: set[str] = set()
        self.claimed: Counter[str] = Counter()
        self.removed: set[str] = set()
        self.perhaps_removed: set[str] = set()
        self.failures = 0

    async def moment(self) -> None:
        await asyncio.sleep(self.rng.random() ** 4)

    async def slow(self, name: str, args: tuple[Any, ...], go: Go) -> Any:
        """Calls of stores take their time, so that everything happens between everything."""
        await asyncio.sleep(self.rng.random() ** 3)
        result = await go()
        await asyncio.sleep(self.rng.random() ** 3)
        return result

    async def produce(self, name: str, number: int) -> None:
        for n in range(0, number, 2):
            bodies = [f"{name} {n}", f"{name} {n + 1}"]
            try:
                ids = await self.rng.choice(self.nodes).post(*bodies)
            except Unavailable:
                self.failures += 1
                self.unsure.update(bodies)
            else:
                self.posted.update(bodies)
                for body, id_ in zip(bodies, ids, strict=True):
                    self.sighted(id_, body)
            await self.moment()

    def sighted(self, id_: str, body: str) -> None:
        assert self.ids.setdefault(body, id_) == id_, f"{body} has two ids"

    def ordered(self, bodies: Sequence[str]) -> None:
        """Those of each producer are in its order."""
        last: dict[str, int] = {}
        for body in bodies:
            name, _, number = body.partition(" ")
            assert last.get(name, -1) < int(number), bodies
            last[name] = int(number)

    async def consume(self, rounds: int) -> None:
        for _ in range(rounds):
            await self.moment()
            node = self.rng.choice(self.nodes)
            try:
                claim, got = await node.claim(self.rng.randrange(1, 6))
            except Unavailable:
                self.failures += 1
                continue
            self.ordered([body for _, body in got])
            for id_, body in got:
                self.sighted(id_, body)
                self.claimed[body] += 1
                if self.rng.random() < 0.7:
                    await self.remove(id_, body, claim)

    async def remove(self, id_: str, body: str, claim: str) -> None:
        node = self.rng.choice(self.nodes)
        try:
            await node.broker.messages.delete(ANN, QUEUE, id_, claim)
        except Unavailable:
            self.failures += 1
            self.perhaps_removed.add(body)
        else:
            self.removed.add(body)

    async def look(self, rounds: int) -> None:
        for _ in range(rounds):
            await self.moment()
            with suppress(Unavailable):
                bodies = await self.rng.choice(self.nodes).bodies()
                self.ordered(bodies)
                assert len(bodies) == len(set(bodies))

    async def move(self, rounds: int, how: Sequence[str]) -> list[tuple[Node, Fault]]:
        """Moves, each by a node of its own to which something happens."""
        used = []
        for _ in range(rounds):
            await asyncio.sleep(3 * self.rng.random())
            node = self.it.node()
            fault = Fault(self.rng.choice(how), self.rng.randrange(1, 60))

            async def meddle(name: str, args: tuple[Any, ...], go: Go, fault: Fault = fault) -> Any:
                async def slowly() -> Any:
                    return await self.slow(name, args, go)

                return await fault(name, args, slowly)

            node.meddle = meddle
            used.append((node, fault))
            move = asyncio.create_task(
                node.moving.move(QUEUE, self.rng.choice(["a", "b", "b", None]))
            )
            await asyncio.wait({move}, timeout=self.rng.choice([2, 30]))
            move.add_done_callback(lambda one: one.exception())
            if self.rng.random() < 0.5:
                await fault.comes()
        for _, fault in used:
            await fault.comes()
        return used

    async def end(self, used: Sequence[tuple[Node, Fault]]) -> None:
        """Let everything come to its end."""
        for node, fault in used:
            fault.buried.set()
            await node.moving.close()
            await node.pools.close()
        for node in self.nodes:
            node.meddle = leave_alone
        await asyncio.sleep(LEASE_S)

    async def check(self) -> None:
        left = await self.it.other.bodies()
        self.ordered(left)
        there = Counter(left)
        assert set(there.values()) <= {1}
        assert set(self.claimed.values()) <= {1}, "claimed by two"
        lost = self.posted - there.keys() - self.removed - self.perhaps_removed
        assert not lost
        assert not self.removed & there.keys(), "it came back"
        assert there.keys() <= self.posted | self.unsure
        sealed = await self.it.copies()
        where = await self.it.where()
        assert [name for name, is_sealed in sealed.items() if not is_sealed] == [where]
        stats = await self.it.other.broker.queues.stats(ANN, QUEUE)
        assert stats is not None
        assert stats[1].total == len(left)


async def traffic(it: Service, how: Sequence[str], size: int) -> Traffic:
    """Let clients work while queues are moved."""
    clients = Traffic(it)
    await it.other.post("first 0")
    clients.posted.add("first 0")
    for node in clients.nodes:
        node.meddle = clients.slow
    moves = asyncio.create_task(clients.move(size // 2, how))
    await asyncio.gather(
        *(clients.produce(name, 4 * size) for name in "abc"),
        *(clients.consume(2 * size) for _ in range(3)),
        *(clients.look(size) for _ in range(2)),
    )
    await clients.end(await moves)
    await clients.check()
    return clients


@pytest.mark.parametrize("seed", seeds(3, 9))
def test_while_a_queue_is_moved_to_and_fro_clients_notice_nothing(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving_module, "SHORT", 4)

    async def test(it: Service) -> None:
        clients = await traffic(it, ["nothing"], 20)
        assert clients.failures == 0
        assert len(clients.posted) > 100

    service(test, tmp_path, seed)


@pytest.mark.parametrize("seed", seeds(6, 20))
def test_whatever_happens_to_movers_nothing_is_lost_doubled_or_out_of_order(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving_module, "SHORT", 4)

    async def test(it: Service) -> None:
        clients = await traffic(it, ["nothing", *HOW], 24)
        assert len(clients.posted) > 100

    service(test, tmp_path, seed)


# Stores of other kinds, in time as it is


def places(folder: Path, kinds: Sequence[str]) -> dict[str, str]:
    """Stores of these kinds for the service, and for its two pools, whose files are below it."""
    folders = {name: folder / name if name != "own" else folder for name in NAMES}
    for one in folders.values():
        one.mkdir(exist_ok=True)
    pairs = zip(folders.items(), kinds, strict=True)
    return {name: store_in(kind, one) for (name, one), kind in pairs}


MIXED = [
    ("sqlite", "postgresql", "redis"),
    ("sqlite", "redis-cluster", "sqlite"),
    ("postgresql", "redis", "redis-cluster"),
    ("redis", "postgresql", "postgresql"),
]


@pytest.mark.slow
@pytest.mark.only(*KINDS)
@pytest.mark.parametrize("kinds", MIXED, ids="-".join)
def test_queues_are_moved_between_stores_of_all_kinds(
    tmp_path: Path, kinds: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving_module, "SHORT", 3)

    async def test(it: Service) -> None:
        before = await filled(it)
        for to in ("b", None, "a", None, "b"):
            await it.mover.moving.move(QUEUE, to)
            assert await it.dump() == before
            assert await it.copies() == {to or "own": False}
        assert await it.other.bodies() == [msgspec.json.decode(m.body or b"") for m in before]
        await it.mover.broker.queues.delete(ANN, QUEUE)
        clients = await traffic(it, ["nothing"], 12)
        assert clients.failures == 0

    asyncio.run(whole(test, Service(tmp_path, random.Random(1), places(tmp_path, kinds))))
