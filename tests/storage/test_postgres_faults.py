"""What goes wrong with a PostgreSQL server is told honestly, and is over when it is over."""

import asyncio
import contextlib
import gc
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from nusku.errors import StoreFull, StoreRefused, Unavailable
from nusku.metrics import Metrics
from nusku.model import Draft, QueueKey, QueueRef
from nusku.storage import Store, StoreOptions, open_store
from nusku.storage.postgres import link
from nusku.storage.postgres.work import Work
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import Postgres
from tests.servers.standby import PrimaryAndStandby
from tests.storage.harness import bodies, positions

pytestmark = [pytest.mark.only("postgresql"), pytest.mark.timeout(180)]

KEY = QueueKey("queue", "p1", "orders")


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@asynccontextmanager
async def opened(uri: str, **options: Any) -> AsyncIterator[Store]:
    store = await open_store(uri, None, StoreOptions()._replace(**options), Metrics())
    try:
        yield store
    finally:
        await store.close()
        assert isinstance(store.failed, asyncio.Future)
        assert not store.failed.done()


async def queue(store: Store, key: QueueKey = KEY) -> QueueRef:
    ref = QueueRef(key, "1" * 16, 1)
    await store.messages.open(ref, (await store.messages.admit(ref)).seal)
    return ref


async def post(store: Store, ref: QueueRef, text: str = "x") -> int:
    [[position]] = await store.messages.add([(ref, [Draft(text.encode(), 600)])])
    return position


async def until_it_works(store: Store, ref: QueueRef, text: str = "works") -> None:
    while True:
        with contextlib.suppress(Unavailable):
            await post(store, ref, text)
            return
        await asyncio.sleep(0.02)


async def until_it_fails(store: Store, ref: QueueRef) -> int:
    """How many were posted before; a server may take its time to heed a setting."""
    for n in range(10_000):
        try:
            await post(store, ref, "unsure")
        except Unavailable:
            return n
    raise AssertionError("it never failed")


def name(uri: str) -> str:
    return uri.rsplit("/", 1)[1]


def signal_backends(server: Postgres, uri: str, how: str, where: str = "true") -> int:
    found = server.execute(
        f"SELECT pg_{how}_backend(pid) FROM pg_stat_activity WHERE datname = '{name(uri)}'"
        f" AND pid <> pg_backend_pid() AND {where}"
    )
    return len(found)


@contextlib.contextmanager
def waiting_for_nobody(server: Postgres) -> Iterator[None]:
    """Commits wait for a standby that is not there."""
    server.configure(synchronous_standby_names="nobody")
    try:
        yield
    finally:
        server.configure(synchronous_standby_names="")


# Connections


async def test_connections_that_are_cut_at_random_cost_their_batches_and_nothing_else(
    server: Postgres,
) -> None:
    uri = server.create()
    sure: list[str] = []
    unsure: list[str] = []
    async with opened(uri) as store:
        ref = await queue(store)

        async def produce(who: int) -> None:
            for n in range(2000):
                if n >= 60 and unsure:
                    return
                text = f"{who}-{n}"
                try:
                    await post(store, ref, text)
                except Unavailable:
                    unsure.append(text)
                else:
                    sure.append(text)

        async def cut(done: asyncio.Event) -> None:
            dice = random.Random(3)
            while not done.is_set():
                await asyncio.to_thread(signal_backends, server, uri, "terminate", "random() < 0.5")
                await asyncio.sleep(dice.uniform(0.01, 0.05))

        done = asyncio.Event()
        with capture_logs():
            cutting = asyncio.create_task(cut(done))
            await asyncio.gather(*map(produce, range(8)))
            done.set()
            await cutting
            await until_it_works(store, ref)
        there = bodies(await store.messages.page(ref, 0, 10_000))
        assert unsure, "no connection was cut at the right time"
        assert set(sure) <= set(there) <= {*sure, *unsure, "works"}
        assert len(there) == len(set(there))
        for who in range(8):
            mine = [text for text in there if text.startswith(f"{who}-")]
            assert mine == sorted(mine, key=lambda text: int(text.split("-")[1]))
        counts = await store.messages.count(ref)
        assert counts.free == len(there)


async def test_a_connection_that_was_cut_while_idle_costs_nothing(server: Postgres) -> None:
    uri = server.create()
    async with opened(uri) as store:
        ref = await queue(store)
        for n in range(5):
            with capture_logs():
                assert signal_backends(server, uri, "terminate") > 0
                await asyncio.sleep(0.05)  # until word of it has come
                assert await post(store, ref) == n + 1


@pytest.mark.parametrize("error", [asyncpg.InternalClientError, RuntimeError])
async def test_whatever_goes_wrong_at_connecting_everybody_is_answered(
    error: type[Exception], server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncpg has an internal error for a session that ends while it is made."""
    uri = server.create()
    refusals = 3

    async def connect_at_last(*arguments: Any) -> link.Link:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise error("cannot switch to state 11; another operation (2) is in progress")
        return await link.connect_to_primary(*arguments)

    async with opened(uri) as store:
        ref = await queue(store)
        where = "nusku.storage.postgres.connections.connect_to_primary"
        monkeypatch.setattr(where, connect_at_last)
        with capture_logs():
            assert signal_backends(server, uri, "terminate") > 0
            await asyncio.sleep(0.05)  # until word of it has come
            asked = [
                post(store, ref),
                store.messages.count(ref),
                store.records.count("queue", "p1"),
            ]
            answers = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5)
            assert {type(answer) for answer in answers} == {Unavailable}
            await until_it_works(store, ref)


async def test_no_failure_of_housekeeping_remains_unheard(server: Postgres) -> None:
    """asyncio complains of exceptions that nobody has looked at."""
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    uri = server.create()
    async with opened(uri, connections=1) as store:
        for name in "abc":
            ref = await queue(store, QueueKey("queue", "p1", name))
            await store.messages.add([(ref, [Draft(b"x", 1)])])
        await asyncio.sleep(1.2)
        with capture_logs():
            expiring = asyncio.ensure_future(store.messages.expire(10))
            work: Work = store.messages._work  # type: ignore[attr-defined]  # one of our own
            while not (work.ready or expiring.done()):  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0)
            work.refuse(Unavailable("away"))
            with pytest.raises(Unavailable):
                await expiring
    del expiring
    gc.collect()
    await asyncio.sleep(0)
    assert not unheard


async def test_while_the_server_is_away_there_is_503_and_afterwards_all_is_there() -> None:
    with Postgres(durable=True) as server:
        uri = server.create()
        async with opened(uri, timeout_s=1.0) as store:
            ref = await queue(store)
            await post(store, ref, "before")
            server.kill()
            with capture_logs():
                for _ in range(5):
                    with pytest.raises(Unavailable):
                        await asyncio.wait_for(store.messages.count(ref), 3)
                    with pytest.raises(Unavailable):
                        await asyncio.wait_for(post(store, ref, "lost"), 3)
                    with pytest.raises(Unavailable):
                        await asyncio.wait_for(store.records.count("queue", "p1"), 3)
                    with pytest.raises(Unavailable):
                        await asyncio.wait_for(store.ping(), 3)
                server.start()
                await until_it_works(store, ref, "after")
            assert bodies(await store.messages.page(ref, 0, 10)) == ["before", "after"]


async def test_a_server_that_stands_still_is_hung_up_on(server: Postgres) -> None:
    uri = server.create()
    async with opened(uri, timeout_s=0.5) as store:
        ref = await queue(store)
        await post(store, ref, "before")
        server.pause()
        try:
            with capture_logs(), pytest.raises(Unavailable):
                await asyncio.wait_for(post(store, ref, "unsure"), 5)
            with capture_logs(), pytest.raises(Unavailable):
                await asyncio.wait_for(store.messages.count(ref), 5)
        finally:
            server.resume()
        with capture_logs():
            await until_it_works(store, ref, "after")
        texts = bodies(await store.messages.page(ref, 0, 10))
        assert texts in (["before", "after"], ["before", "unsure", "after"])


async def test_with_no_connection_left_there_is_503_until_there_is_one(server: Postgres) -> None:
    uri = server.create()
    async with opened(uri) as store:
        ref = await queue(store)
        server.execute(f"ALTER DATABASE {name(uri)} CONNECTION LIMIT 0")
        server.execute("CREATE ROLE plain LOGIN")
        try:
            async with opened(server.create()) as other:
                await other.ping()  # a superuser is not counted
            with pytest.raises(StoreRefused, match="too many connections"):
                await open_store(uri.replace("nusku@", "plain@"), None, StoreOptions(), Metrics())
        finally:
            server.execute("DROP ROLE plain")
            server.execute(f"ALTER DATABASE {name(uri)} CONNECTION LIMIT -1")
        assert await post(store, ref) == 1


# Commits that wait for a standby


@pytest.mark.parametrize("how", ["cancel", "terminate"])
async def test_a_commit_whose_wait_for_the_standby_was_ended_is_no_success(
    server: Postgres, how: str
) -> None:
    uri = server.create()
    async with opened(uri) as store:
        ref = await queue(store)
        await post(store, ref, "before")
        with waiting_for_nobody(server), capture_logs() as logs:
            failing = asyncio.create_task(until_it_fails(store, ref))
            while not failing.done():
                await asyncio.to_thread(signal_backends, server, uri, how, "wait_event = 'SyncRep'")
            answered = await failing
        assert logs
        with capture_logs():
            await until_it_works(store, ref, "after")
        texts = bodies(await store.messages.page(ref, 0, 1000))
        assert texts == ["before", *["unsure"] * (answered + 1), "after"]


async def test_commits_that_do_not_return_are_given_up_by_hanging_up_while_reads_go_on(
    server: Postgres,
) -> None:
    uri = server.create()
    other = QueueKey("queue", "p1", "other")
    async with opened(uri, timeout_s=0.4) as store:
        ref, second = await queue(store), await queue(store, other)
        await post(store, ref, "before")
        with waiting_for_nobody(server), capture_logs():
            await until_it_fails(store, ref)
            writes = [asyncio.create_task(post(store, one)) for one in (ref, second) * 20]
            for _ in range(20):
                assert bodies(await store.messages.page(ref, 0, 1)) == ["before"]
            answers = await asyncio.wait_for(asyncio.gather(*writes, return_exceptions=True), 10)
            assert all(isinstance(answer, Unavailable) for answer in answers)
            stuck = signal_backends(server, uri, "cancel", "false or wait_event = 'SyncRep'")
            assert stuck <= 3, "as many as there are writing connections"
        with capture_logs():
            await asyncio.wait_for(until_it_works(store, ref, "after"), 10)
        assert bodies(await store.messages.page(ref, 0, 100))[-1] == "after"


async def test_a_role_that_does_not_wait_for_commits_is_made_to(server: Postgres) -> None:
    uri = server.create()
    for level in ("off", "local", "remote_write"):
        server.execute(f"ALTER DATABASE {name(uri)} SET synchronous_commit = {level}")
        async with opened(uri, timeout_s=0.3) as store:
            ref = await queue(store)
            with waiting_for_nobody(server), capture_logs():
                await until_it_fails(store, ref)
            signal_backends(server, uri, "terminate")


async def test_with_synchronous_standby_a_server_that_waits_for_none_is_refused(
    server: Postgres,
) -> None:
    uri = server.create()
    with pytest.raises(StoreRefused, match="synchronous_standby_names"):
        await open_store(uri, None, StoreOptions(synchronous_standby=True), Metrics())


# The transaction itself


async def test_who_waits_for_a_lock_for_too_long_is_told_and_the_connection_is_kept(
    server: Postgres,
) -> None:
    uri = server.create()
    async with opened(uri, timeout_s=0.5) as store, opened(uri) as other:
        ref = await queue(store)
        second = await queue(store, QueueKey("queue", "p1", "other"))
        async with lock(uri):
            with pytest.raises(Unavailable, match="busy"):
                await post(store, ref)
            await post(store, second)
            assert (await other.messages.count(ref)).total == 0
        assert await post(store, ref, "after") == 1
        assert await post(other, ref, "after") == 2


@asynccontextmanager
async def lock(uri: str) -> AsyncIterator[None]:
    """Hold a queue as a slow transaction would."""
    import asyncpg

    connection = await asyncpg.connect(uri)
    try:
        async with connection.transaction():
            await connection.execute("SELECT FROM nusku.queues WHERE name = 'orders' FOR UPDATE")
            yield
    finally:
        await connection.close()


def fail(server: Postgres, uri: str, code: str, when: str) -> None:
    """Let additions fail in this way."""
    server.execute(
        f"""DO $do$ BEGIN
        CREATE SEQUENCE IF NOT EXISTS nusku.trials;
        CREATE OR REPLACE FUNCTION nusku.fail() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF {when} THEN RAISE EXCEPTION 'on purpose' USING ERRCODE = '{code}'; END IF;
            RETURN NEW;
        END $$;
        CREATE OR REPLACE TRIGGER fail BEFORE INSERT ON nusku.messages
            FOR EACH ROW EXECUTE FUNCTION nusku.fail();
        END $do$""",
        name(uri),
    )


def mend(server: Postgres, uri: str) -> None:
    server.execute("DROP TRIGGER fail ON nusku.messages", name(uri))


@pytest.mark.parametrize("code", ["40001", "40P01"])
async def test_a_transaction_that_is_known_to_be_undone_is_done_again(
    server: Postgres, code: str
) -> None:
    uri = server.create()
    async with opened(uri) as store:
        ref = await queue(store)
        fail(server, uri, code, "nextval('nusku.trials') % 3 <> 0")
        given = await asyncio.gather(*(post(store, ref, f"{n}") for n in range(1)))
        assert given == [1]
        fail(server, uri, code, "true")
        with capture_logs(), pytest.raises(Unavailable):
            await post(store, ref)
        mend(server, uri)
        assert await post(store, ref) == 2


async def test_a_full_disk_refuses_what_is_new_and_nothing_else(server: Postgres) -> None:
    uri = server.create()
    async with opened(uri) as store:
        ref = await queue(store)
        await post(store, ref, "before")
        fail(server, uri, "53100", "true")
        with pytest.raises(StoreFull):
            await post(store, ref)
        got = await store.messages.claim(ref, 1, 60, 60)
        assert bodies(got) == ["before"]
        assert (await store.messages.pop(ref, 1)).messages == []
        mend(server, uri)
        await post(store, ref, "after")


async def test_one_that_cannot_be_stored_fails_alone(server: Postgres) -> None:
    uri = server.create()
    async with opened(uri) as store:
        ref = await queue(store)
        fail(server, uri, "22003", "NEW.body = '\\x626164'")  # "bad"
        texts = ["bad" if n % 5 == 0 else f"{n}" for n in range(20)]
        with capture_logs() as logs:
            answers = await asyncio.gather(
                *(post(store, ref, text) for text in texts), return_exceptions=True
            )
        assert [isinstance(answer, Unavailable) for answer in answers] == [
            text == "bad" for text in texts
        ]
        assert len(logs) == 4
        good = [text for text in texts if text != "bad"]
        assert bodies(await store.messages.page(ref, 0, 100)) == good


async def test_a_body_that_was_damaged_is_an_error_and_never_an_answer(server: Postgres) -> None:
    uri = server.create()
    async with opened(uri) as store:
        ref = await queue(store)
        await post(store, ref, "good")
        await post(store, ref, "hurt")
        server.execute("UPDATE nusku.messages SET body = '\\x00' WHERE position = 2", name(uri))
        for attempt in (
            lambda: store.messages.page(ref, 0, 10),
            lambda: store.messages.get(ref, [2]),
            lambda: store.messages.count(ref),
            lambda: store.messages.claim(ref, 2, 60, 60),
        ):
            with pytest.raises(Unavailable, match="damaged"):
                await attempt()
        assert bodies(await store.messages.get(ref, [1])) == ["good"]


async def test_more_than_can_wait_is_refused(
    server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nusku.storage.postgres.connections.BACKLOG", 50)
    uri = server.create()
    async with opened(uri) as store:
        ref = await queue(store)
        answers = await asyncio.gather(
            *(post(store, ref) for _ in range(80)), return_exceptions=True
        )
        refused = [answer for answer in answers if isinstance(answer, Unavailable)]
        assert len(refused) == 30
        assert (await store.messages.count(ref)).total == 50
        await post(store, ref)


# Behind a pooler


async def test_behind_a_pooler_everything_works_and_waiters_look_often(server: Postgres) -> None:
    uri = server.create()
    with PgBouncer(server, pool_size=2) as pooler:
        pooled = pooler.uri(name(uri))
        async with opened(pooled) as one, opened(pooled) as other:
            assert one.look_s == 0.25
            ref = await queue(one)
            one.tell(KEY)

            async def work(store: Store, n: int) -> list[int]:
                await post(store, ref, f"{n}")
                got = await store.messages.claim(ref, 1, 60, 60)
                assert (await store.records.get("queue", "p1", "none")) is None
                await store.messages.page(ref, 0, 5, held=True)
                return positions(got)

            held = await asyncio.gather(
                *(work(store, n) for n in range(30) for store in (one, other))
            )
            assert sorted(position for one_held in held for position in one_held) == list(
                range(1, 61)
            )
            assert (await one.messages.count(ref))[:3] == (0, 60, 0)
            pooler.restart()
            with capture_logs():
                await until_it_works(one, ref)


async def test_with_a_direct_way_to_listen_word_comes_past_the_pooler(server: Postgres) -> None:
    uri = server.create()
    with PgBouncer(server) as pooler:
        pooled = pooler.uri(name(uri))
        async with (
            opened(pooled, listen_uri=uri) as one,
            opened(pooled, listen_uri=uri) as other,
        ):
            assert one.look_s == 2.0
            heard: asyncio.Queue[QueueKey] = asyncio.Queue()
            other.hear(heard.put_nowait)
            one.tell(KEY)
            assert await asyncio.wait_for(heard.get(), 10) == KEY
        with pytest.raises(StoreRefused, match="LISTEN needs a direct way"):
            await open_store(pooled, None, StoreOptions(listen_uri=pooled), Metrics())


# Two servers


async def test_after_a_failover_the_new_primary_is_found_and_the_old_one_refused() -> None:
    with PrimaryAndStandby() as pair:
        uri = pair.primary.create()
        both = pair.uri(name(uri))
        pair.wait_for_standby()
        old = pair.primary
        only_old = old.uri(name(uri))
        with pytest.raises(StoreRefused, match="standby"):
            await open_store(pair.standby.uri(name(uri)), None, StoreOptions(), Metrics())
        async with (
            opened(both, timeout_s=2.0, synchronous_standby=True) as store,
            opened(both, timeout_s=2.0) as plain,
        ):
            assert "synchronous standby" in store.guarantee
            ref = await queue(store)
            for n in range(5):
                await post(store, ref, f"{n}")
            with capture_logs() as logs:
                old.kill()
                with pytest.raises(Unavailable):
                    await post(store, ref, "away")
                pair.promote()
                # The new one waits for no standby yet, so nothing is promised.
                while not any(log["event"].endswith("wait for a standby") for log in logs):
                    with pytest.raises(Unavailable):
                        await post(store, ref, "alone")
                    await asyncio.sleep(0.02)
                await until_it_works(plain, ref, "promoted")
                texts = bodies(await plain.messages.page(ref, 0, 10))
                assert texts == [*"01234", "promoted"]
                old.start()  # as it was: it takes itself for the primary
                pair.primary.kill()
                for _ in range(5):
                    with pytest.raises(Unavailable):
                        await post(plain, ref, "lost")
                    await asyncio.sleep(0.05)
                assert any("was the primary once" in log.get("why", "") for log in logs)
                old.kill()
                pair.primary.start()
                pair.rejoin()
                await until_it_works(store, ref, "both")
            assert bodies(await store.messages.page(ref, 0, 10)) == [*"01234", "promoted", "both"]
        assert only_old
