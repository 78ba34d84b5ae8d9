"""Redis Cluster: slots that move, masters that are replaced, and what is not kept together."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import pytest

from nusku.errors import StoreRefused, Unavailable
from nusku.metrics import Metrics
from nusku.model import Draft, QueueKey, QueueRef
from nusku.storage import Apart, StoreOptions, inspect_store, open_store
from nusku.storage.redis.keys import Place, lane_name
from tests.servers.cluster import Cluster
from tests.servers.redis import Redis
from tests.storage.harness import House, bodies

pytestmark = [pytest.mark.only("redis-cluster"), pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@asynccontextmanager
async def node(cluster: Cluster, **options: object) -> AsyncIterator[House]:
    """One that goes by the servers' clocks."""
    house = House(cluster.uri, StoreOptions(**options))  # type: ignore[arg-type] # they are what the test says
    house._store = await open_store(house.uri, None, house.options, house.metrics)
    try:
        yield house
    finally:
        await house.close()


def holder(cluster: Cluster, ref: QueueRef) -> tuple[Redis, int]:
    """The master that has a queue, and its slot."""
    slot = Place(lane_name(ref.key)).slot
    for first, last, (_, port, *_), *_ in cluster.masters()[0].ask("CLUSTER", "SLOTS"):
        if first <= slot <= last:
            return next(one for one in cluster.nodes if one.port == port), slot
    raise AssertionError("nobody has it")


class Move:
    """The move of a slot from one master to another, a step at a time."""

    def __init__(self, cluster: Cluster, ref: QueueRef) -> None:
        self.cluster = cluster
        self.source, self.slot = holder(cluster, ref)
        self.target = next(one for one in cluster.masters() if one is not self.source)
        self.keys = [f"{lane_name(ref.key)}:{part}" for part in "hz"]
        ids = [one.ask("CLUSTER", "MYID") for one in (self.source, self.target)]
        self.target.ask("CLUSTER", "SETSLOT", self.slot, "IMPORTING", ids[0])
        self.source.ask("CLUSTER", "SETSLOT", self.slot, "MIGRATING", ids[1])
        self._id = ids[1]

    def carry(self, *keys: str) -> None:
        self.source.ask("MIGRATE", self.target.host, self.target.port, "", 0, 5000, "KEYS", *keys)

    def finish(self) -> None:
        rest = self.source.ask("CLUSTER", "GETKEYSINSLOT", self.slot, 100)
        if rest:
            self.carry(*rest)
        for one in (self.target, self.source, *self.cluster.masters()):
            one.ask("CLUSTER", "SETSLOT", self.slot, "NODE", self._id)


async def test_a_queue_is_used_while_its_slot_moves(cluster: Cluster) -> None:
    async with node(cluster) as house:
        ref = await house.queue("moving")
        await house.post(ref, "before")
        move = Move(cluster, ref)
        await house.post(ref, "announced")
        move.carry(move.keys[0])
        # Its keys are apart now, so this waits until they are together again.
        between = asyncio.create_task(house.post(ref, "between"))
        await asyncio.sleep(0.2)
        assert not between.done()
        move.carry(move.keys[1])
        await between
        await house.post(ref, "arrived")
        assert await house.free(ref) == ["before", "announced", "between", "arrived"]
        move.finish()
        await house.post(ref, "after")
        assert (await house.free(ref))[-1] == "after"
        assert await house.numbers(ref) == (5, 0, 0)


async def test_new_queues_come_to_be_while_their_slot_moves(cluster: Cluster) -> None:
    async with node(cluster) as house:
        ref = QueueRef(QueueKey("queue", "p1", "new"), "1", 1)
        move = Move(cluster, ref)
        admitting = asyncio.create_task(house.queue("new"))
        await asyncio.sleep(0.1)
        move.finish()
        await house.post(await admitting, "x")


async def test_slots_move_to_and_fro_under_load_and_nothing_is_lost_or_doubled(
    cluster: Cluster,
) -> None:
    async with node(cluster) as house:
        refs = [await house.queue(f"load{n}") for n in range(4)]
        given: dict[int, list[int]] = {n: [] for n in range(4)}
        done = asyncio.Event()

        async def produce(n: int) -> None:
            while not done.is_set():
                given[n] += await house.post(refs[n], str(len(given[n])))

        async def carry() -> None:
            for n in range(8):
                move = await asyncio.to_thread(Move, cluster, refs[n % 4])
                await asyncio.to_thread(move.finish)
            done.set()

        await asyncio.gather(carry(), *(produce(n) for n in range(4)))
        for n, ref in enumerate(refs):
            assert [m.position for m in await house.all(ref)] == given[n]
            assert await house.free(ref) == [str(i) for i in range(len(given[n]))]


async def test_what_is_not_of_one_home_is_apart(cluster: Cluster) -> None:
    async with node(cluster) as house:
        a, b = await house.queue("a"), await house.queue("b")
        given = await house.post(a, "x")
        with pytest.raises(Apart):
            await house.messages.move(a, given, b, None, {})
        with pytest.raises(Apart):
            await house.messages.add([(a, [Draft(b"y", 60)]), (b, [Draft(b"z", 60)])])
        assert await house.free(a) == ["x"]
        beside = await house.beside(a)
        await house.messages.add([(a, [Draft(b"y", 60)]), (beside, [Draft(b"z", 60)])])
        assert await house.free(beside) == ["z"]


async def test_a_planned_failover_takes_no_more_than_moments(cluster: Cluster) -> None:
    async with node(cluster, replicas=1, timeout_s=5.0) as house:
        ref = await house.queue("planned")
        given = await house.post(ref, "a")
        claim, _ = await house.hold(ref)
        master, _ = holder(cluster, ref)
        await asyncio.to_thread(cluster.failover, master)
        await until_it_works(house, ref, within_s=2.0)
        assert (await house.messages.get(ref, given)).messages[0].claim == claim
        await asyncio.to_thread(cluster.wait_until_whole)


async def until_it_works(house: House, ref: QueueRef, within_s: float) -> None:
    started = time.monotonic()
    while True:
        with suppress(Unavailable):
            await house.post(ref, "after")
            return
        assert time.monotonic() - started < within_s
        await asyncio.sleep(0.02)


async def test_a_master_that_is_killed_under_load_loses_nothing_that_was_answered(
    cluster: Cluster,
) -> None:
    async with (
        node(cluster, replicas=1, timeout_s=5.0) as house,
        node(cluster, replicas=1) as other,
    ):
        ref = await house.queue("killed")
        master, _ = holder(cluster, ref)
        answered: list[int] = []
        held: list[int] = []
        done = asyncio.Event()
        went_on_s = 60.0

        async def produce() -> None:
            while not done.is_set():
                with suppress(Unavailable):
                    answered.extend(await house.post(ref, "x"))
                await asyncio.sleep(0)

        async def work() -> None:
            while not done.is_set():
                with suppress(Unavailable):
                    got = await other.messages.claim(ref, 2, 600, 60)
                    held.extend(m.position for m in got.messages)
                await asyncio.sleep(0)

        async def kill() -> None:
            nonlocal went_on_s
            await asyncio.sleep(0.5)
            replica = cluster.replica_of(master)
            assert replica is not None
            await asyncio.to_thread(master.kill)
            await asyncio.to_thread(
                cluster.wait_until, lambda: replica in cluster.masters(), "the replica took over"
            )
            since = time.monotonic()
            while went_on_s == 60:
                with suppress(Unavailable):
                    await house.messages.count(ref)
                    went_on_s = time.monotonic() - since
            # Nothing is answered with success until the new master has a replica in its turn.
            before = len(answered)
            await asyncio.to_thread(master.start)
            await until_it_works(house, ref, within_s=30)
            assert len(answered) > before
            done.set()

        try:
            await asyncio.gather(
                kill(), *(produce() for _ in range(8)), *(work() for _ in range(4))
            )
            kept = {message.position for message in await house.all(ref)}
            assert set(answered) <= kept
            assert len(held) == len(set(held))
            assert went_on_s < 2
        finally:
            if not master.running:
                await asyncio.to_thread(master.start)
            await asyncio.to_thread(cluster.wait_until_whole)


async def test_a_master_that_hangs_is_left_when_another_has_taken_its_place(
    cluster: Cluster,
) -> None:
    async with node(cluster, timeout_s=30.0) as house:
        ref = await house.queue("hangs")
        await house.post(ref, "a")
        master, _ = holder(cluster, ref)
        replica = cluster.replica_of(master)
        assert replica is not None
        master.pause()
        try:
            started = time.monotonic()
            with pytest.raises(Unavailable):
                await house.post(ref, "b")
            assert time.monotonic() - started < 20  # and not only after the timeout
            await until_it_works(house, ref, within_s=5)
        finally:
            master.resume()
        await asyncio.to_thread(cluster.wait_until_whole)
        await until_it_works(house, ref, within_s=5)


async def test_queues_of_all_masters_are_listed_and_counted(cluster: Cluster) -> None:
    cluster.flush()
    async with node(cluster) as house:
        refs = [await house.queue(f"{n:02}") for n in range(30)]
        for ref in refs:
            await house.post(ref, "x")
        assert len({holder(cluster, ref)[0].port for ref in refs}) == 3
        listed = await house.messages.queues(None, 100)
        assert [one.ref for one in listed] == refs
        assert (await house.messages.volume()).total == 30
        await house.store.ping()
    line = await asyncio.to_thread(inspect_store, cluster.uri)
    assert line.endswith("30 messages, 3 master(s), single")


async def test_words_are_heard_whatever_node_they_were_told_to(cluster: Cluster) -> None:
    async with node(cluster) as one, node(cluster) as two:
        came = asyncio.Event()
        two.store.hear(lambda _: came.set())
        async with asyncio.timeout(10):
            while not came.is_set():
                one.store.tell(QueueKey("queue", "p", "q"))
                with suppress(TimeoutError):
                    await asyncio.wait_for(came.wait(), 0.05)


async def test_a_node_of_a_cluster_is_no_store_by_itself(cluster: Cluster) -> None:
    with pytest.raises(StoreRefused, match=r"use redis\+cluster://"):
        await open_store(cluster.nodes[0].uri, None, StoreOptions(), Metrics())


async def test_a_server_by_itself_is_no_cluster() -> None:
    with Redis() as server:
        uri = server.uri.replace("redis://", "redis+cluster://")
        with pytest.raises(StoreRefused, match="cluster"):
            await open_store(uri, None, StoreOptions(), Metrics())


async def test_claims_and_pages_are_batched_over_queues_and_masters(cluster: Cluster) -> None:
    async with node(cluster) as house:
        refs = [await house.queue(f"many{n}") for n in range(50)]
        await asyncio.gather(*(house.post(ref, ref.key.name) for ref in refs))
        pages = await asyncio.gather(*(house.messages.page(ref, 0, 5) for ref in refs))
        assert [bodies(page) for page in pages] == [[ref.key.name] for ref in refs]
        claims = await asyncio.gather(*(house.messages.claim(ref, 5, 60, 60) for ref in refs))
        assert [bodies(got) for got in claims] == [[ref.key.name] for ref in refs]
