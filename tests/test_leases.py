"""Quotas on several nodes, at every speed, through crashes and failures: never more than may be, and
nobody is refused while there is room.

Nodes, the store and the world are stubs that wait for a random moment before and after everything
they do, so that everything happens between everything else; and so is time (`Timeless`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nusku.broker.amounts import NO_LIMIT, Amounts, Measured
from nusku.broker.limits import Limits
from nusku.broker.quotas import Quotas
from nusku.errors import QuotaExceeded, StoreFull, Unavailable
from nusku.metrics import Metrics
from nusku.model import Record
from nusku.storage import RecordStore, Stale, Store
from tests.notify.test_faults import EPOCH_S, run, timeless

pytestmark = pytest.mark.embedded

FLIGHT_S = 4.0  # longest that the outcome of something is unknown


class World:
    """What one project has. ``most`` is the quota; ``peaks`` is by when there was how much."""

    def __init__(
        self, rng: random.Random, most: int, *, faults: float = 0.0, slowness: float = 1.0
    ) -> None:
        self.rng = rng
        self.slowness = slowness
        self.most = most
        self.faults = faults
        self.there = 0
        self.history: list[tuple[float, int]] = [(0.0, 0)]
        self.measured = 0
        self.exceeded: list[int] = []
        self.lost_s: float | None = None
        """After so long the next addition is there, and nobody is told."""
        self.slow_s: float | None = None
        """So long the next one takes."""
        self.held: asyncio.Event | None = None
        """What was counted exactly is told when this is set."""
        self.late: set[asyncio.Task[None]] = set()

    def change(self, more: int) -> None:
        """Add or remove."""
        self.there += more
        if self.there > self.most:
            self.exceeded.append(self.there)  # nobody may be waiting for this
        self.history.append((timeless().time(), self.there))

    def most_since(self, time_s: float) -> int:
        """How much there was at most from a time on."""
        before = [n for at_s, n in self.history if at_s <= time_s][-1:]
        return max([*before, *(n for at_s, n in self.history if at_s > time_s)])

    async def pause(self, longest_s: float = 0.5) -> None:
        await asyncio.sleep(self.rng.random() ** 4 * longest_s * self.slowness)

    async def add(self, amounts: Amounts) -> None:
        """As a store does it: perhaps it fails, or nobody hears what became of it."""
        if self.lost_s is not None:
            late_s, self.lost_s = self.lost_s, None
            asyncio.get_running_loop().call_later(late_s, self.change, amounts.messages)
            raise Unavailable
        if self.slow_s is not None:
            slow_s, self.slow_s = self.slow_s, None
            await asyncio.sleep(slow_s)
        await self.pause(3.0)
        if self.rng.random() < self.faults:
            match self.rng.randrange(4):
                case 0:
                    raise StoreFull("full")
                case 1:
                    raise Stale
                case 2:
                    # Lost on the way: it comes about later, or never does.
                    self.late.add(task := asyncio.ensure_future(self.add_late(amounts)))
                    task.add_done_callback(self.late.discard)
                    raise Unavailable
        self.change(amounts.messages)
        await self.pause()
        if self.rng.random() < self.faults:
            raise Unavailable

    async def add_late(self, amounts: Amounts) -> None:
        await asyncio.sleep(self.rng.random() * (FLIGHT_S - 1))
        if self.rng.random() < 0.5:
            self.change(amounts.messages)

    async def measure(self, project: str, limits: Amounts, *, exact: bool) -> Measured:
        self.measured += 1
        await self.pause()
        if self.rng.random() < self.faults / 2:
            raise Unavailable
        there = self.there
        await self.pause()
        if exact and self.held is not None:
            await self.held.wait()
        if exact:
            return Measured(Amounts(messages=there), exact=True)
        return Measured(Amounts(messages=there + self.rng.randrange(3)), exact=False)


class Records:
    """The part of a store of records that leases use, with a clock of its own."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.board: Record | None = None

    async def go(self, action: Callable[[], Any]) -> Any:
        await self.world.pause(0.2)
        if self.world.rng.random() < self.world.faults / 4:
            raise Unavailable
        result = action()
        await self.world.pause(0.2)
        if self.world.rng.random() < self.world.faults / 4:
            raise Unavailable
        return result

    async def get(self, kind: str, project: str, key: str) -> Record | None:
        def get() -> Record | None:
            now_ms = int((EPOCH_S + timeless().time()) * 1000)
            return self.board and msgspec.structs.replace(self.board, read_ms=now_ms)

        return cast("Record | None", await self.go(get))

    async def insert(self, record: Record) -> bool:
        def insert() -> bool:
            if self.board is None:
                self.board = record
            return self.board is record

        return cast("bool", await self.go(insert))

    async def update(self, record: Record) -> bool:
        def update() -> bool:
            assert self.board is not None
            fits = record.version == self.board.version + 1
            if fits:
                self.board = record
            return fits

        return cast("bool", await self.go(update))


class Nodes:
    """Nodes that share a store; any of them may be killed."""

    def __init__(self, world: World, *, shared: bool = True) -> None:
        self.world = world
        self.limits = Amounts(NO_LIMIT, world.most, NO_LIMIT, NO_LIMIT)
        self._store = cast("Store", _Own(cast("RecordStore", Records(world)), shared))
        self.living: list[Node] = []
        self._dead: list[Node] = []

    async def start(self) -> Node:
        node = Node(self.world, self._store, lambda _: self.limits)
        await node.keep()
        self.living.append(node)
        return node

    def limit(self, most: int) -> None:
        """Another quota from now on."""
        self.world.most = most
        self.limits = self.limits._replace(messages=most)
        for node in self.living:
            node.quotas._leases.changed()

    def kill(self) -> None:
        dead = self.living.pop(self.world.rng.randrange(len(self.living)))
        dead.kill()
        self._dead.append(dead)  # were it collected, it would tidy up after all

    async def stop(self) -> None:
        self.world.faults = 0.0
        for node in self.living:
            await node.stop()
        assert not self.world.exceeded, f"there was more than {self.world.most}"


class _Own:
    def __init__(self, records: RecordStore, shared: bool) -> None:
        self.records, self.shared = records, shared


class Node:
    """One of them."""

    def __init__(self, world: World, store: Store, quota: Callable[[str], Amounts | None]) -> None:
        limits = Limits(cast("Any", None), None)
        limits.quota = quota  # type: ignore[assignment,method-assign]
        self.world = world
        self.metrics = Metrics()
        self.quotas = Quotas(
            limits, store, world.measure, world.rng, self.metrics, flight_s=FLIGHT_S
        )
        self._stack = AsyncExitStack()
        self._asking: set[asyncio.Task[bool | None]] = set()

    async def keep(self) -> None:
        await self._stack.enter_async_context(self.quotas.kept())

    async def stop(self) -> None:
        await self._stack.aclose()

    def kill(self) -> None:
        """It does nothing any more; but what it has sent off may still arrive."""
        for task in [*self._asking, *self.quotas._leases._tasks]:
            task.cancel()

    async def post(self, number: int) -> bool | None:
        """Add so much: whether that was done, None where it is not known or was put off."""
        task = asyncio.ensure_future(self._post(number))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        with suppress(asyncio.CancelledError):
            return await task
        return None

    async def _post(self, number: int) -> bool | None:
        began_s = timeless().time()
        amounts = Amounts(messages=number)

        def begin() -> Awaitable[None]:
            # Whoever dies, a store goes on with what it was sent.
            return asyncio.shield(asyncio.ensure_future(self.world.add(amounts)))

        try:
            await self.quotas.within("p", amounts, begin)
        except QuotaExceeded:
            assert self.world.most_since(began_s) + number > self.world.most, "there was room"
            return False
        except (Unavailable, Stale):
            return None
        return True


@given(
    seed=st.integers(0, 1 << 32),
    most=st.sampled_from((0, 1, 5, 30, 500)),
    number=st.integers(1, 4),
    faults=st.sampled_from((0.0, 0.1, 0.4)),
    kills=st.integers(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_never_too_much_and_never_refused_while_there_is_room(
    seed: int, most: int, number: int, faults: float, kills: int
) -> None:
    async def test() -> None:
        rng = random.Random(seed)
        world = World(rng, most, faults=faults)
        nodes = Nodes(world)
        for _ in range(number):
            await nodes.start()

        async def producer() -> None:
            for _ in range(20):
                await rng.choice(nodes.living).post(rng.randint(1, max(1, most // 4)))
                await world.pause(1.0)

        async def consumer() -> None:
            for _ in range(40):
                await world.pause(2.0)
                if world.there:
                    world.change(-rng.randint(1, world.there))

        async def killer() -> None:
            for _ in range(kills):
                await world.pause(20.0)
                await nodes.start()
                nodes.kill()

        await asyncio.gather(*(producer() for _ in range(8)), consumer(), killer())
        while world.late:
            await asyncio.wait(world.late)
        await nodes.stop()

    run(test())


@given(seed=st.integers(0, 1 << 32), number=st.integers(1, 4), leave=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_what_there_is_room_for_finds_it(seed: int, number: int, leave: int) -> None:
    """Whoever has put something aside gives it back in time, down to the last one."""

    async def test() -> None:
        rng = random.Random(seed)
        world = World(rng, 40, slowness=0.1)
        nodes = Nodes(world)
        for _ in range(number):
            await nodes.start()
        while left := world.most - leave - world.there:
            assert await rng.choice(nodes.living).post(rng.randint(1, left)), world.there
            await world.pause()
        assert await rng.choice(nodes.living).post(leave + 1) is False
        if leave:
            assert await rng.choice(nodes.living).post(leave)
        assert await rng.choice(nodes.living).post(1) is False
        await nodes.stop()

    run(test())


@pytest.mark.parametrize("seed", range(10))
def test_what_a_dead_node_had_put_aside_is_free_again(seed: int) -> None:
    async def test() -> None:
        world = World(random.Random(seed), 100)
        nodes = Nodes(world)
        await nodes.start()
        assert await nodes.living[0].post(1)
        nodes.kill()
        heir = await nodes.start()
        assert await heir.post(99) is None  # not refused: it is not known yet
        await asyncio.sleep(20)
        assert await heir.post(99)
        await nodes.stop()

    run(test())


async def fill(node: Node) -> None:
    """Post all that there is room for, as soon as that is known."""
    for _ in range(60):
        if await node.post(node.world.most - node.world.there):
            return
        await asyncio.sleep(0.5)
    raise AssertionError("there is room, but nobody gets it")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("waited_s", [0.1, 1.0, 2.4])
def test_what_a_dead_node_has_sent_off_may_arrive_late(seed: int, waited_s: float) -> None:
    async def test() -> None:
        world = World(random.Random(seed), 100, slowness=0.01)
        nodes = Nodes(world)
        doomed, heir = await nodes.start(), await nodes.start()
        assert await doomed.post(1)
        await asyncio.sleep(waited_s)
        world.slow_s = FLIGHT_S - 0.1
        last = asyncio.ensure_future(doomed.post(1))
        await asyncio.sleep(0.05)
        nodes.living.remove(doomed)
        doomed.kill()
        await fill(heir)
        await asyncio.sleep(FLIGHT_S)
        assert await last is None
        await nodes.stop()

    run(test())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shared", [True, False])
def test_what_nobody_knows_the_outcome_of_keeps_its_room(seed: int, shared: bool) -> None:
    async def test() -> None:
        world = World(random.Random(seed), 100, slowness=0.01)
        nodes = Nodes(world, shared=shared)
        node = await nodes.start()
        other = await nodes.start() if shared else node
        assert await node.post(1)
        world.lost_s = FLIGHT_S - 0.1
        assert await node.post(1) is None
        assert await other.post(99) is None
        await fill(other)
        assert world.there == 100
        await nodes.stop()

    run(test())


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_begun_under_a_lease_that_has_lapsed(seed: int) -> None:
    async def test() -> None:
        world = World(random.Random(seed), 100, slowness=0.01)
        nodes = Nodes(world)
        node, other = await nodes.start(), await nodes.start()
        assert await node.post(1)
        for task in node.quotas._leases._tasks:
            task.cancel()  # as if the board could not be reached any more
        await fill(other)
        assert await node.post(1) is False
        await nodes.stop()

    run(test())


def test_nobody_is_refused_for_what_was_counted_before_they_came() -> None:
    async def test() -> None:
        world = World(random.Random(0), 1, slowness=0.01)
        nodes = Nodes(world, shared=False)
        node = await nodes.start()
        assert await node.post(1)
        world.held = asyncio.Event()
        early = asyncio.ensure_future(node.post(1))
        await asyncio.sleep(1)
        world.change(-1)
        late = asyncio.ensure_future(node.post(1))
        await asyncio.sleep(0.1)
        world.held.set()
        assert await early is False
        assert await late is True
        await nodes.stop()

    run(test())


@pytest.mark.parametrize("seed", range(10))
def test_a_new_limit_counts_from_the_next_addition_on(seed: int) -> None:
    async def test() -> None:
        world = World(random.Random(seed), 100)
        nodes = Nodes(world)
        node = await nodes.start()
        assert await node.post(1)
        nodes.limit(3)
        assert await node.post(3) is False
        assert await node.post(2)
        assert await node.post(1) is False
        nodes.limit(4)
        assert await node.post(1)
        await nodes.stop()

    run(test())


def test_a_node_that_stops_gives_back_what_it_had_put_aside() -> None:
    async def test() -> None:
        world = World(random.Random(0), 100)
        nodes = Nodes(world)
        await nodes.start()
        assert await nodes.living[0].post(1)
        await nodes.living.pop().stop()
        assert await (await nodes.start()).post(99)
        await nodes.stop()

    run(test())


@pytest.mark.parametrize("shared", [True, False])
def test_far_from_the_quota_few_additions_ask(shared: bool) -> None:
    async def test() -> None:
        world = World(random.Random(0), 100_000)
        nodes = Nodes(world, shared=shared)
        node = await nodes.start()
        for _ in range(500):
            assert await node.post(10)
        assert world.measured < 5
        await nodes.stop()

    run(test())
