"""What is PostgreSQL's own: several nodes on one database, and what it takes to open one."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from nusku.clock import Clock
from nusku.errors import StoreRefused
from nusku.metrics import Metrics
from nusku.model import Draft, QueueKey, QueueRef, Record
from nusku.storage import (
    Removal,
    Removed,
    Stale,
    Store,
    StoreOptions,
    inspect_store,
    migrate_store,
    open_store,
)
from nusku.storage.postgres import schema
from nusku.storage.postgres.messages import PostgresMessages
from nusku.storage.postgres.work import Tidy
from tests.servers.postgres import Postgres
from tests.storage.harness import BACKENDS, START_MS, TurnedClock, bodies, positions

pytestmark = pytest.mark.only("postgresql")


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """An empty store."""
    return BACKENDS["postgresql"](tmp_path)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server of this module's own."""
    with Postgres() as server:
        yield server


@asynccontextmanager
async def node(uri: str, clock: Clock | None = None, **options: Any) -> AsyncIterator[Store]:
    """A store as one process opens it."""
    store = await open_store(uri, clock, StoreOptions()._replace(**options), Metrics())
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def nodes(uri: str, number: int, clock: Clock | None = None) -> AsyncIterator[list[Store]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(node(uri, clock)) for _ in range(number)]


async def queue(store: Store, name: str = "orders", generation: str = "1" * 16) -> QueueRef:
    """An open queue."""
    ref = QueueRef(QueueKey("queue", "p1", name), generation, 1)
    await store.messages.open(ref, (await store.messages.admit(ref)).seal)
    return ref


async def post(store: Store, ref: QueueRef, *texts: str) -> list[int]:
    [given] = await store.messages.add([(ref, [Draft(text.encode(), 600) for text in texts])])
    return given


# Several nodes on one database


async def test_a_reader_by_marker_misses_nothing_that_several_nodes_post(uri: str) -> None:
    async with nodes(uri, 4) as stores:
        ref = await queue(stores[0])
        given: list[int] = []
        seen: list[int] = []

        async def produce(store: Store, name: str) -> None:
            for n in range(40):
                given.extend(await post(store, ref, *[f"{name}{n}"] * (1 + n % 3)))

        async def read(until: asyncio.Event) -> None:
            while True:
                last = until.is_set()
                while page := positions(
                    await stores[3].messages.page(ref, seen[-1] if seen else 0, 7)
                ):
                    seen.extend(page)
                if last:
                    return

        done = asyncio.Event()
        reader = asyncio.create_task(read(done))
        await asyncio.gather(*(produce(store, f"{n}") for n in range(3) for store in stores[:3]))
        done.set()
        await reader
        assert seen == sorted(given)
        assert len(set(seen)) == len(seen)


async def test_no_message_is_held_by_two_of_many_who_claim_on_several_nodes(uri: str) -> None:
    async with nodes(uri, 3) as stores:
        ref = await queue(stores[0])
        await stores[0].messages.add([(ref, [Draft(b"x", 600)] * 300)])
        held: list[int] = []

        async def work(store: Store) -> None:
            while (got := await store.messages.claim(ref, 3, 60, 60)).claim is not None:
                held.extend(positions(got))

        await asyncio.gather(*(work(store) for store in stores for _ in range(4)))
        assert sorted(held) == list(range(1, 301))
        assert (await stores[1].messages.count(ref))[:3] == (0, 300, 0)


async def test_what_one_node_was_answered_every_other_sees(uri: str) -> None:
    async with nodes(uri, 2) as (one, other):
        ref = await queue(one)
        for n in range(20):
            [position] = await post(one, ref, f"{n}")
            assert bodies(await other.messages.get(ref, [position])) == [f"{n}"]
            got = await other.messages.claim(ref, 1, 60, 60)
            assert got.claim is not None
            assert await one.messages.claimed(ref, got.claim) is not None
            answers = await one.messages.remove(ref, [position], Removal.HELD, [got.claim])
            assert answers == [Removed.GONE]
            assert bodies(await other.messages.get(ref, [position])) == []


async def test_a_change_of_options_on_one_node_is_known_to_the_others_at_once(uri: str) -> None:
    async with nodes(uri, 2) as (one, other):
        ref = await queue(one)
        await post(other, ref, "before")
        newer = ref._replace(version=2)
        await one.messages.admit(newer)
        with pytest.raises(Stale):
            await post(other, ref, "stale")
        with pytest.raises(Stale):
            await other.messages.claim(ref, 1, 60, 60)
        await post(other, newer, "after")
        await one.messages.seal(newer._replace(version=3))
        with pytest.raises(Stale):
            await other.messages.page(newer, 0, 10)
        await one.messages.drop(newer)
        again = await queue(other, generation="2" * 16)
        assert bodies(await other.messages.page(again, 0, 10)) == []
        with pytest.raises(Stale):
            await one.messages.count(newer)


async def test_a_record_is_changed_by_one_of_two_nodes_that_read_it(uri: str) -> None:
    async with nodes(uri, 2) as stores:
        await stores[0].records.insert(Record("queue", "p1", "k", b"1"))
        for version in range(2, 30):
            done = await asyncio.gather(
                *(
                    store.records.update(Record("queue", "p1", "k", b"x", version))
                    for store in stores
                )
            )
            assert sorted(done) == [False, True]


async def test_names_are_unique_over_nodes(uri: str) -> None:
    async with nodes(uri, 3) as stores:
        for n in range(10):
            done = await asyncio.gather(
                *(
                    store.records.insert(Record("sub", "p1", f"{n}-{m}", b"", unique=f"{n}"))
                    for m, store in enumerate(stores)
                )
            )
            assert sum(done) == 1


async def test_what_waits_to_be_put_back_is_put_back_once_by_nodes_that_tidy_up_together(
    uri: str,
) -> None:
    clock = TurnedClock()
    async with nodes(uri, 3, clock) as stores:
        ref = await queue(stores[0])
        await stores[0].messages.add([(ref, [Draft(b"x", 600)] * 900 + [Draft(b"y", 30)] * 900)])
        for _ in range(30):
            await stores[0].messages.claim(ref, 20, 60, 0)
        dropped = await queue(stores[0], "dropped")
        await stores[0].messages.add([(dropped, [Draft(b"x", 600)] * 900)])
        await stores[0].messages.drop(dropped)
        clock.turn(60)

        async def tidy(store: Store) -> int:
            done = 0
            while step := await store.messages.expire(100):
                done += step
            return done

        done = await asyncio.gather(*map(tidy, stores))
        assert sum(done) >= 900 + 900
        assert (await stores[1].messages.count(ref))[:3] == (900, 0, 0)
        assert len((await stores[2].messages.pop(ref, 1000)).messages) == 900
        assert (await stores[0].messages.volume())[:3] == (0, 0, 0)


async def test_tidying_up_beside_a_post_in_one_batch_hides_nothing(uri: str) -> None:
    """The queue is empty by then but for what the same call is about to store."""
    clock = TurnedClock()
    async with node(uri, clock) as store:
        messages = cast("PostgresMessages", store.messages)
        ref = await queue(store)
        await messages.add([(ref, [Draft(b"ends", 60)])])
        clock.turn(61)
        adding = asyncio.ensure_future(post(store, ref, "a", "b"))
        await asyncio.sleep(0)  # it waits now, and nothing was sent yet
        await asyncio.gather(messages._work.put(Tidy(ref.key, 10)), adding)
        assert bodies(await messages.page(ref, 0, 10)) == ["a", "b"]
        assert bodies(await messages.claim(ref, 10, 60, 60)) == ["a", "b"]


async def test_nodes_go_by_the_servers_clock_whatever_their_own_says(uri: str) -> None:
    async with nodes(uri, 2) as (one, other):
        ref = await queue(one)
        await post(one, ref, "a")
        times = [(await store.messages.count(ref)).now_ms for store in (one, other, one, other)]
        assert times == sorted(times)
        assert times[0] > START_MS


# Word between nodes


async def test_a_node_hears_what_others_tell_and_not_itself(uri: str) -> None:
    async with nodes(uri, 2) as (one, other):
        heard: asyncio.Queue[QueueKey] = asyncio.Queue()
        own: asyncio.Queue[QueueKey] = asyncio.Queue()
        one.hear(own.put_nowait)
        other.hear(heard.put_nowait)
        assert one.look_s == 2.0
        keys = [QueueKey("queue", "p1", f"{n}".rjust(60, "x")) for n in range(300)]
        for key in keys:
            one.tell(key)
            one.tell(key)
        assert [await asyncio.wait_for(heard.get(), 10) for _ in keys] == keys
        other.tell(QueueKey("topic", "p2", "ß"))
        assert await asyncio.wait_for(own.get(), 10) == QueueKey("topic", "p2", "ß")
        assert own.empty()
        assert heard.empty()


async def test_a_node_that_lost_its_way_to_the_others_finds_it_again(server: Postgres) -> None:
    uri = server.create()
    async with nodes(uri, 2) as (one, other):
        heard: asyncio.Queue[QueueKey] = asyncio.Queue()
        other.hear(heard.put_nowait)
        hang_up(server, uri)
        key = QueueKey("queue", "p1", "a")
        while heard.empty():
            one.tell(key)
            await asyncio.sleep(0.02)
        assert await heard.get() == key


def hang_up(server: Postgres, uri: str) -> None:
    """Close all connections to a database."""
    server.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        f" WHERE datname = '{uri.rsplit('/', 1)[1]}'"
    )


# Opening


async def test_several_nodes_may_start_at_once_on_an_empty_database(server: Postgres) -> None:
    uri = server.create()

    async def start() -> Store:
        return await open_store(uri, None, StoreOptions(), Metrics())

    stores = await asyncio.gather(*(start() for _ in range(6)))
    ref = await queue(stores[0])
    await asyncio.gather(*(post(store, ref, "x") for store in stores))
    assert (await stores[3].messages.count(ref)).total == 6
    for store in stores:
        await store.close()


async def test_stores_in_several_schemas_of_one_database_are_apart(server: Postgres) -> None:
    uri = server.create()
    async with node(uri) as one, node(f"{uri}?schema=other") as other:
        ref = await queue(one)
        await post(one, ref, "a")
        with pytest.raises(Stale):
            await other.messages.count(ref)
        await queue(other)
        assert (await other.messages.count(ref)).total == 0
        heard: list[QueueKey] = []
        other.hear(heard.append)
        one.tell(ref.key)
        await asyncio.gather(one.ping(), other.ping())
        assert not heard


@pytest.mark.parametrize("name", ["", "Nusku", "a-b", 'x"; DROP', "1a", "a" * 50])
async def test_a_schema_has_a_plain_name(server: Postgres, name: str) -> None:
    with pytest.raises(StoreRefused, match="schema's name"):
        await open_store(f"{server.uri()}?schema={name}", None, StoreOptions(), Metrics())


async def test_a_newer_schema_is_refused(server: Postgres) -> None:
    uri = server.create()
    assert f"created, version {schema.VERSION}" in migrate_store(uri)
    assert "up to date" in migrate_store(uri)
    name = uri.rsplit("/", 1)[1]
    server.execute("UPDATE nusku.meta SET value = 99 WHERE name = 'version'", name)
    for attempt in (inspect_store, migrate_store):
        with pytest.raises(
            StoreRefused, match=f"has schema version 99; this nusku knows up to {schema.VERSION}"
        ):
            attempt(uri)
    with pytest.raises(StoreRefused, match="schema version 99"):
        await open_store(uri, None, StoreOptions(), Metrics())


async def test_functions_of_an_older_version_are_made_anew(server: Postgres) -> None:
    uri = server.create()
    migrate_store(uri)
    name = uri.rsplit("/", 1)[1]
    server.execute("DROP FUNCTION nusku.holdings", name)
    server.execute("UPDATE nusku.meta SET value = 1 WHERE name = 'version'", name)
    assert "from version 1" in migrate_store(uri)
    store = await open_store(uri, None, StoreOptions(), Metrics())
    assert not await store.messages.holdings("p")
    await store.close()


async def test_a_schema_of_another_program_is_refused_and_left_alone(server: Postgres) -> None:
    uri = server.create()
    name = uri.rsplit("/", 1)[1]
    server.execute("CREATE SCHEMA nusku", name)
    server.execute("CREATE TABLE nusku.meta (name text, value int)", name)
    with pytest.raises(StoreRefused, match="another program's"):
        await open_store(uri, None, StoreOptions(), Metrics())
    assert server.execute("SELECT count(*) FROM nusku.meta", name)[0][0] == 0


async def test_a_schema_that_was_made_for_us_is_used(server: Postgres) -> None:
    uri = server.create()
    server.execute("CREATE SCHEMA nusku", uri.rsplit("/", 1)[1])
    async with node(uri) as store:
        await store.ping()


async def test_a_database_of_another_encoding_is_refused(server: Postgres) -> None:
    server.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1'")
    with pytest.raises(StoreRefused, match="encoding is LATIN1; nusku needs UTF8"):
        await open_store(server.uri("latin"), None, StoreOptions(), Metrics())


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("default_transaction_isolation", "serializable", "needs 'read committed'"),
        ("default_transaction_read_only", "on", "read-only by default"),
    ],
)
async def test_transactions_of_another_kind_are_refused(
    server: Postgres, setting: str, value: str, words: str
) -> None:
    uri = server.create()
    server.execute(f"ALTER DATABASE {uri.rsplit('/', 1)[1]} SET {setting} = '{value}'")
    with pytest.raises(StoreRefused, match=words):
        await open_store(uri, None, StoreOptions(), Metrics())


async def test_what_cannot_be_reached_is_refused_without_its_password(server: Postgres) -> None:
    for uri in (
        f"postgresql://nusku:secret@127.0.0.1:{server.port}/nowhere",
        "postgresql://nusku:secret@127.0.0.1:1/x",
        "postgresql://nusku:secret@nowhere.invalid/x",
        "postgresql://nusku:secret@127.0.0.1:port/x",
    ):
        with pytest.raises(StoreRefused, match=r"postgresql://nusku:\*\*\*@") as refused:
            await open_store(uri, None, StoreOptions(), Metrics())
        assert "secret" not in str(refused.value)
        with pytest.raises(StoreRefused):
            inspect_store(uri)


async def test_a_role_that_may_not_create_is_told_what_to_do(server: Postgres) -> None:
    uri = server.create()
    name = uri.rsplit("/", 1)[1]
    server.execute("CREATE ROLE humble LOGIN")
    humble = uri.replace("nusku@", "humble@")
    with pytest.raises(StoreRefused, match="run `nusku migrate`"):
        await open_store(humble, None, StoreOptions(), Metrics())
    migrate_store(uri)
    with pytest.raises(StoreRefused, match="GRANT USAGE ON SCHEMA nusku"):
        await open_store(humble, None, StoreOptions(), Metrics())
    server.execute("GRANT USAGE ON SCHEMA nusku TO humble", name)
    with pytest.raises(StoreRefused, match="ON ALL TABLES IN SCHEMA nusku"):
        await open_store(humble, None, StoreOptions(), Metrics())
    server.execute(
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA nusku TO humble", name
    )
    server.execute("GRANT USAGE ON ALL SEQUENCES IN SCHEMA nusku TO humble", name)
    async with node(humble) as store:
        ref = await queue(store)
        assert await post(store, ref, "a") == [1]
        await store.messages.clear(ref)
        await store.messages.expire(10)
    server.execute("DROP OWNED BY humble", name)
    server.execute("DROP ROLE humble")


async def test_a_store_is_described_in_a_line(server: Postgres) -> None:
    uri = server.create()
    assert "no store there yet" in inspect_store(uri)
    async with node(uri) as store:
        ref = await queue(store)
        await post(store, ref, "a", "b")
        line = inspect_store(uri)
    assert f"schema version {schema.VERSION}, 1 queues and topics, 2 messages" in line
    assert line.startswith(f"{uri}: PostgreSQL ")
    assert "\n" not in line


async def test_a_store_says_what_it_is_worth(uri: str) -> None:
    async with node(uri) as store:
        assert store.shared
        assert store.capabilities == ("FIFO", "CLAIMS", "DURABILITY", "AOD", "HIGH_THROUGHPUT")
        assert "outlives a crash" in store.guarantee
