"""What is Redis's own: nodes beside one another, lost connections, memory, and what scripts cost."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from redis import Redis as Client

from nusku.errors import StoreFull, StoreRefused, Unavailable
from nusku.metrics import Metrics
from nusku.model import Draft, QueueKey, QueueRef
from nusku.storage import Removal, StoreOptions, inspect_store, migrate_store, open_store
from nusku.storage.redis.calls import LANES
from nusku.storage.redis.keys import key_of, lane_name
from nusku.storage.redis.messages import RedisMessages
from nusku.storage.redis.scripts import lanes
from tests.servers.process import free_port
from tests.servers.redis import Redis
from tests.storage.harness import LONG_S, House, bodies, positions
from tests.storage.test_model import play

pytestmark = pytest.mark.only("redis")


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    with Redis() as server:
        yield server


@asynccontextmanager
async def node(server: Redis, **options: object) -> AsyncIterator[House]:
    """One that goes by the server's clock."""
    house = House(server.uri, StoreOptions(**options))  # type: ignore[arg-type] # they are what the test says
    store = await open_store(house.uri, None, house.options, house.metrics)
    house._store = store
    try:
        yield house
    finally:
        await house.close()


@asynccontextmanager
async def fresh(server: Redis, **options: object) -> AsyncIterator[House]:
    server.flush()
    async with node(server, **options) as house:
        yield house


# Projects


async def test_what_others_have_is_not_looked_at_for_the_quota_of_one(
    server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []

    def look(name: str) -> QueueKey | None:
        looked.append(name)
        return key_of(name)

    async with fresh(server) as house:
        await house.post(await house.queue("mine", "p1"), "a")
        for n in range(30):
            await house.post(await house.queue("theirs", f"p1{n}"), "a")
        monkeypatch.setattr("nusku.storage.redis.busy.key_of", look)
        (held,) = await house.messages.holdings("p1")
    assert held.ref.key.name == "mine"
    assert looked == [lane_name(held.ref.key)]


# Nodes


async def test_two_nodes_see_the_same(server: Redis) -> None:
    async with fresh(server) as one, node(server) as two:
        ref = await one.queue()
        await one.post(ref, "a", "b", "c")
        got = await two.messages.claim(ref, 2, 60, 60)
        assert bodies(got) == ["a", "b"]
        assert got.claim is not None
        assert bodies(await one.messages.claim(ref, 5, 60, 60)) == ["c"]
        claimed = await one.messages.claimed(ref, got.claim)
        assert claimed is not None
        assert [m.body for m in claimed.messages] == [b"a", b"b"]
        assert await one.messages.release(ref, got.claim)
        assert await two.free(ref) == ["a", "b"]
        assert await two.numbers(ref) == (2, 1, 0)


async def test_claims_of_many_nodes_share_no_message(server: Redis) -> None:
    async with fresh(server) as one, node(server) as two, node(server) as three:
        ref = await one.queue()
        await one.fill(ref, 600)
        got = await asyncio.gather(
            *(
                house.messages.claim(ref, 7, 60, 60)
                for _ in range(30)
                for house in (one, two, three)
            )
        )
        taken = [position for claim in got for position in positions(claim)]
        assert len(taken) == len(set(taken)) == 600


async def test_what_is_told_is_heard_by_the_others_only(server: Redis) -> None:
    async with fresh(server) as one, node(server) as two:
        heard: dict[str, list[QueueKey]] = {"one": [], "two": []}
        came = asyncio.Event()

        def hear(key: QueueKey) -> None:
            heard["two"].append(key)
            came.set()

        one.store.hear(heard["one"].append)
        two.store.hear(hear)
        keys = [QueueKey("queue", "p", f"é{n}") for n in range(3)]
        async with asyncio.timeout(10):
            while not came.is_set():  # words are lost until both have begun to listen
                one.store.tell(keys[0])
                with suppress(TimeoutError):
                    await asyncio.wait_for(came.wait(), 0.05)
            heard["two"].clear()
            for _ in range(5):
                for key in keys:
                    one.store.tell(key)
            while not set(keys) <= set(heard["two"]):
                came.clear()
                await came.wait()
        assert heard["one"] == []
        assert len(heard["two"]) <= 2 * len(keys)


async def test_listening_goes_on_after_the_connection_was_lost(server: Redis) -> None:
    async with fresh(server) as one, node(server) as two:
        came = asyncio.Event()
        two.store.hear(lambda _: came.set())
        for _ in range(2):
            came.clear()
            async with asyncio.timeout(10):
                while not came.is_set():
                    one.store.tell(QueueKey("queue", "p", "q"))
                    with suppress(TimeoutError):
                        await asyncio.wait_for(came.wait(), 0.05)
            server.ask("CLIENT", "KILL", "TYPE", "pubsub")


# Registration of lanes that hold messages


async def test_what_is_occupied_is_known_to_all_nodes_and_after_the_one_that_posted_is_gone(
    server: Redis,
) -> None:
    async with fresh(server) as two:
        async with node(server) as one:
            ref = await one.queue("s", kind="delivery")
            await one.post(ref, "a", "b")
        [found] = await two.messages.occupied("delivery")
        assert found[:2] == (ref.key, 2)


async def test_an_entry_that_a_crash_left_behind_is_never_taken_for_a_lane_and_goes(
    server: Redis,
) -> None:
    async with fresh(server) as house:
        ref = await house.queue("s", kind="delivery")
        server.ask("SADD", "nusku:{busy}:delivery", "12 nusku:{p1:subscription/s}:delivery/s")
        server.ask("SADD", "nusku:{busy}:delivery", "12 nusku:{p1:subscription/x}:delivery/x")
        assert await house.messages.occupied("delivery") == []
        assert server.ask("SCARD", "nusku:{busy}:delivery") == 0
        await house.post(ref, "a")
        assert len(await house.messages.occupied("delivery")) == 1


async def test_lanes_that_are_empty_for_a_while_are_looked_at_no_more_until_they_hold_something(
    server: Redis,
) -> None:
    server.flush()
    house = House(server.uri)
    await house.open()
    try:
        refs = [await house.queue(f"{n}", kind="delivery") for n in range(20)]
        for ref in refs:
            await house.post(ref, "x")
            await house.messages.pop(ref, 1)
        assert server.ask("SCARD", "nusku:{busy}:delivery") == 20
        house.clock.turn(11)
        assert await house.messages.occupied("delivery") == []
        assert server.ask("SCARD", "nusku:{busy}:delivery") == 0
        await house.post(refs[3], "y")
        assert [one.key for one in await house.messages.occupied("delivery")] == [refs[3].key]
    finally:
        await house.close()


@pytest.mark.parametrize("seed", range(3))
async def test_no_lane_is_lost_from_the_list_while_others_take_it_off(
    server: Redis, seed: int
) -> None:
    """One that posts and one that tidies up, whose clock is always late enough to do so."""
    server.flush()
    poster, tidier = House(server.uri), House(server.uri)
    await poster.open()
    await tidier.open()
    try:
        ref = await poster.queue("s", kind="delivery")
        for turn in range(30):
            poster.clock.turn(11)
            tidier.clock.now_ms = poster.clock.now_ms + 11_000
            _, posted = await asyncio.gather(
                tidier.messages.occupied("delivery"), poster.post(ref, f"{turn}")
            )
            if (turn + seed) % 3 == 0:
                await tidier.messages.occupied("delivery")
            [one] = await poster.messages.occupied("delivery")
            assert one.messages == 1
            await poster.messages.remove(ref, posted, Removal.ANY)
    finally:
        await poster.close()
        await tidier.close()


async def test_lanes_that_the_list_has_forgotten_are_put_back(server: Redis) -> None:
    async with fresh(server) as house:
        refs = [await house.queue(f"{n}", kind="delivery") for n in range(10)]
        for ref in refs[:5]:
            await house.post(ref, "x")
        server.ask("DEL", "nusku:{busy}:delivery")
        assert await house.messages.occupied("delivery") == []
        assert isinstance(house.messages, RedisMessages)
        assert await house.messages.busy.compare() == 5
        assert len(await house.messages.occupied("delivery")) == 5
        assert await house.messages.busy.compare() == 0


# Connections


async def test_a_lost_connection_fails_what_was_sent_and_the_next_goes_on(server: Redis) -> None:
    async with fresh(server) as house:
        ref = await house.queue()
        await house.post(ref, "first")
        server.ask("CLIENT", "PAUSE", "10000", "WRITE")
        sent = [asyncio.create_task(house.post(ref, str(n))) for n in range(5)]
        await asyncio.sleep(0.1)
        server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        server.ask("CLIENT", "UNPAUSE")
        for answer in await asyncio.gather(*sent, return_exceptions=True):
            assert isinstance(answer, Unavailable)
        await house.post(ref, "last")
        assert (await house.free(ref))[-1] == "last"
        assert not house.store.failed.done()  # type: ignore[attr-defined] # it is a future


async def test_a_server_that_does_not_answer_is_given_up_in_time(server: Redis) -> None:
    async with fresh(server, timeout_s=0.5) as house:
        ref = await house.queue()
        await house.post(ref, "a")
        server.pause()
        try:
            started = time.monotonic()
            with pytest.raises(Unavailable):
                await house.post(ref, "b")
            assert 0.4 < time.monotonic() - started < 2
        finally:
            server.resume()
        await until_it_works(house, ref)
        assert (await house.free(ref))[0] == "a"


async def until_it_works(house: House, ref: QueueRef, within_s: float = 15) -> float:
    """Post until it is answered; how long that took."""
    started = time.monotonic()
    while True:
        with suppress(Unavailable):
            await house.post(ref, "after")
            return time.monotonic() - started
        assert time.monotonic() - started < within_s
        await asyncio.sleep(0.02)


async def test_a_server_that_is_started_again_is_gone_on_with_and_has_everything(
    server: Redis,
) -> None:
    async with fresh(server) as house:
        ref = await house.queue()
        given = await house.post(ref, "a", "b")
        claim, _ = await house.hold(ref, 1)
        server.kill()
        with pytest.raises(Unavailable):
            await house.post(ref, "c")
        with pytest.raises(Unavailable):
            await house.store.ping()
        server.start()
        await until_it_works(house, ref)
        await house.store.ping()
        assert positions(await house.all(ref))[:2] == given
        assert await house.messages.claimed(ref, claim) is not None
        # What was seen of positions that were lost is not given to others.
        assert positions(await house.all(ref))[-1] > given[-1] + 1000


async def test_a_message_whose_body_is_gone_is_an_error_and_never_an_answer(server: Redis) -> None:
    """The checksum of nothing is that of an empty body."""
    async with fresh(server) as house:
        ref = await house.queue()
        [position] = await house.post(ref, "a")
        field = f"b{position:013d}"
        [lane] = [
            key
            for key in server.ask("KEYS", "*")
            if server.ask("TYPE", key) == "hash" and server.ask("HEXISTS", key, field)
        ]
        server.ask("HDEL", lane, field)
        with pytest.raises(Unavailable):
            await house.all(ref)
        with pytest.raises(Unavailable):
            await house.messages.get(ref, [position])
        with pytest.raises(Unavailable):
            await house.messages.claim(ref, 1, 60, 60)


async def test_a_damaged_state_of_a_message_is_an_error_of_the_store(server: Redis) -> None:
    async with fresh(server) as house:
        ref = await house.queue()
        [position] = await house.post(ref, "a", client="someone")
        field = f"{position:013d}"
        with Client(host=server.host, port=server.port) as client:
            [lane] = [
                key
                for key in client.scan_iter()
                if client.type(key) == b"hash" and client.hexists(key, field)
            ]
            state = client.hget(lane, field)
            client.hset(lane, field, state.replace(b"someone", b"some\xffne"))
        with pytest.raises(Unavailable):
            await house.messages.get(ref, [position])


async def test_scripts_that_the_server_forgot_are_loaded_again(server: Redis) -> None:
    async with fresh(server) as house:
        ref = await house.queue()
        for n in range(3):
            server.ask("SCRIPT", "FLUSH")
            await asyncio.gather(*(house.post(ref, f"{n}{i}") for i in range(20)))
        assert (await house.messages.count(ref)).free == 60
        assert len(set(await house.free(ref))) == 60


async def test_no_memory_left_refuses_what_is_new_only(server: Redis) -> None:
    async with fresh(server) as house:
        ref = await house.queue()
        await house.post(ref, *["x" * 1000] * 200)
        used = server.ask("INFO", "memory")["used_memory"]
        server.ask("CONFIG", "SET", "maxmemory", used - 50_000)
        try:
            for _ in range(2):
                with pytest.raises(StoreFull):
                    await house.post(ref, "y")
            assert (await house.messages.count(ref)).free == 200
            claim, held = await house.hold(ref, 20)
            assert await house.messages.renew(ref, claim, 90, 60)
            assert await house.messages.release(ref, claim, 0, held[:5])
            await house.messages.remove(ref, held[5:], Removal.HELD, [claim])
            await house.messages.admit(ref._replace(version=2))
            assert await house.messages.claimed(ref, claim) is None
            ref = ref._replace(version=2)
            for _ in range(9):
                await house.messages.pop(ref, 20)
            await house.messages.clear(ref)
        finally:
            server.ask("CONFIG", "SET", "maxmemory", 0)
        await house.post(ref, "z")
        assert await house.free(ref) == ["z"]


# What servers keep


def wait_for_replica(master: Redis) -> bool:
    """Whether one acknowledges changes: not before it has its own log, some time after it came."""
    with master.client() as client:
        while not client.exists("x") or not client.execute_command("WAIT", 1, 100):
            client.set("x", 1)
        return True


async def test_a_store_that_would_lose_answers_is_refused_unless_that_is_wanted() -> None:
    with Redis(persistence="everysec") as server:
        with pytest.raises(StoreRefused, match="appendfsync always"):
            await open_store(server.uri, None, StoreOptions(), Metrics())
        async with node(server, unreliable=True) as house:
            assert house.store.guarantee.startswith("Unreliable")
            assert "DURABILITY" not in house.store.capabilities
            assert house.store.shared


async def test_a_server_that_keeps_its_promise_no_more_takes_no_changes(server: Redis) -> None:
    async with fresh(server) as house:
        ref = await house.queue()
        await house.post(ref, "a")
        server.ask("CONFIG", "SET", "appendfsync", "everysec")
        try:
            server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await asyncio.sleep(0)
            with suppress(Unavailable):
                await house.free(ref)  # a new connection looks
            with pytest.raises(Unavailable, match="appendfsync everysec"):
                await house.post(ref, "b")
            assert await house.free(ref) == ["a"]
        finally:
            server.ask("CONFIG", "SET", "appendfsync", "always")
        server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        with suppress(Unavailable):
            await house.free(ref)
        await house.post(ref, "b")


async def test_without_enough_replicas_nothing_that_changes_is_answered_with_success() -> None:
    with Redis() as master, Redis() as replica:
        replica.ask("REPLICAOF", master.host, master.port)
        assert wait_for_replica(master)
        async with node(master, replicas=1, timeout_s=1.0) as house:
            assert house.store.guarantee.startswith("Replicated")
            ref = await house.queue("q")
            await until_it_works(house, ref)
            replica.pause()
            try:
                for _ in range(2):
                    with pytest.raises(Unavailable, match="replicas"):
                        await house.post(ref, "unknown")
                    assert await house.free(ref)  # reading goes on
                with pytest.raises(Unavailable):
                    await house.messages.claim(ref, 1, 60, 60)
            finally:
                replica.resume()
            await until_it_works(house, ref)


async def test_two_servers_that_go_on_from_one_state_give_different_positions(
    tmp_path: Path,
) -> None:
    """The second never had what the first did; whoever has seen that misses nothing of the second."""
    with Redis() as server:
        async with node(server) as house:
            ref = await house.queue("q")
            await house.post(ref, "before")
        server.stop()
        shutil.copytree(server.folder, tmp_path / "state")
        given = []
        for taker in ("first", "second"):
            for part in server.folder.iterdir():
                shutil.rmtree(part) if part.is_dir() else part.unlink()
            shutil.copytree(tmp_path / "state", server.folder, dirs_exist_ok=True)
            server.start()
            async with node(server) as house:
                ref = await house.queue("q")
                await house.messages.claim(
                    ref, 1, 60, 60
                )  # changes the lane, and takes no position
                await house.post(ref, *[f"{taker} {i}" for i in range(20)])
                page = await house.messages.page(ref, 0, 100, held=True, delayed=True)
                given.append([message.position for message in page.messages])
            server.kill()
        (before, *first), (again, *second) = given
        assert before == again
        assert before < first[0]
        assert first[-1] < second[0]


async def test_a_replica_is_no_store() -> None:
    with Redis() as master, Redis() as replica:
        replica.ask("REPLICAOF", master.host, master.port)
        with pytest.raises(StoreRefused, match="no master but a replica"):
            await open_store(replica.uri, None, StoreOptions(), Metrics())


async def test_another_layout_is_refused(server: Redis) -> None:
    server.flush()
    server.ask("SET", "nusku:schema", 99)
    with pytest.raises(StoreRefused, match="99"):
        await open_store(server.uri, None, StoreOptions(), Metrics())
    server.flush()


def test_inspecting_tells_and_changes_nothing_and_migrating_marks(server: Redis) -> None:
    server.flush()
    assert inspect_store(server.uri) == f"{server.uri}: new, 1 master(s), single"
    assert server.ask("DBSIZE") == 0
    assert "ready" in migrate_store(server.uri)
    assert "up to date" in migrate_store(server.uri)
    assert inspect_store(server.uri).endswith("version 1, 0 messages, 1 master(s), single")


async def test_a_wrong_password_is_refused_and_not_shown() -> None:
    with Redis() as server:
        server.ask("CONFIG", "SET", "requirepass", "right")
        for login, sentence in ((":s3cret@", "login"), ("", "NOAUTH")):
            uri = server.uri.replace("://", f"://{login}")
            with pytest.raises(StoreRefused, match=sentence) as refused:
                await open_store(uri, None, StoreOptions(), Metrics())
            assert "s3cret" not in str(refused.value)
        store = await open_store(
            server.uri.replace("://", "://:right@"), None, StoreOptions(), Metrics()
        )
        await store.ping()
        await store.close()


async def test_tls_is_spoken_and_the_certificate_looked_at(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = await asyncio.create_subprocess_exec(
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
        *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
        *("-keyout", str(key), "-out", str(cert)),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await made.wait() == 0
    port = free_port()
    settings = {
        "tls-port": str(port),
        "tls-cert-file": str(cert),
        "tls-key-file": str(key),
        "tls-auth-clients": "no",
    }
    with Redis(settings=settings):
        good = f"rediss://localhost:{port}?ca={cert}"
        house = House(good)
        await house.open()
        try:
            ref = await house.queue()
            await house.post(ref, "x" * 1_000_000)
            assert len((await house.free(ref))[0]) == 1_000_000
        finally:
            await house.close()
        for uri in (
            f"rediss://localhost:{port}",
            f"rediss://127.0.0.1:{port}?ca={cert}",
            f"redis://localhost:{port}",
        ):
            with pytest.raises(StoreRefused):
                await open_store(uri, None, StoreOptions(timeout_s=2.0), Metrics())
        house = House(f"rediss://127.0.0.1:{port}?ca={cert}&hostname=off")
        await house.open()
        await house.store.ping()
        await house.close()


# Time


async def test_it_goes_by_the_servers_clock_which_never_goes_back(server: Redis) -> None:
    async with fresh(server) as house:
        ref = await house.queue()
        await house.post(ref, "a")
        seconds, micros = server.ask("TIME")
        [message] = await house.all(ref)
        assert abs(message.posted_ms - (int(seconds) * 1000 + int(micros) // 1000)) < 5000
    ahead = House(server.uri)
    ahead.clock.now_ms = (int(seconds) + 3600) * 1000
    await ahead.open()
    try:
        await ahead.post(ref, "b")
    finally:
        await ahead.close()
    async with node(server) as house:
        found = await house.messages.page(ref, 0, 10)
        assert found.now_ms == ahead.clock.now_ms


# Cost


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_answers_do_not_depend_on_the_size_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    small = lanes(STEP="2", BYTES="10")
    assert small.sha != LANES.sha
    monkeypatch.setattr(LANES, "load", small.load)
    monkeypatch.setattr(LANES, "sha", small.sha)
    play("redis", examples=15, steps=30)


MANY = 200_000
SLOWEST_US = 150_000
"""Of one call, on a machine that may be busy: much less than work on all of them would take."""


class Cost:
    """How long calls of scripts took."""

    def __init__(self, server: Redis) -> None:
        self._server = server
        server.ask("CONFIG", "SET", "slowlog-max-len", 1000)
        server.ask("CONFIG", "SET", "slowlog-log-slower-than", 0)
        server.ask("SLOWLOG", "RESET")

    def slowest_us(self) -> int:
        with Client(port=self._server.port) as client:
            entries = client.execute_command("SLOWLOG", "GET", 1000)
        return max(int(took) for _, _, took, words, *_ in entries if words[0] == b"EVALSHA")


def commands(server: Redis) -> int:
    return sum(one["calls"] for one in server.ask("INFO", "commandstats").values())


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_no_operation_works_through_all_there_is() -> None:
    """Counted in commands, those within scripts among them, whatever the machine does else."""
    with Redis(persistence="no") as server:
        house = House(server.uri, StoreOptions(unreliable=True))
        await house.open()
        try:
            await check_costs(server, house)
        finally:
            await house.close()


async def check_costs(server: Redis, house: House) -> None:
    ref = await house.queue()
    await house.fill(ref, MANY)
    claim = house.messages.claim
    while (await asyncio.gather(*(claim(ref, 100, 60, 60) for _ in range(50))))[-1].claim:
        pass
    given = await house.post(ref, *map(str, range(100)))
    store = house.messages

    async def cheap(operation: object, at_most: int = 60) -> object:
        before = commands(server)
        answer = await operation  # type: ignore[misc] # an awaitable of anything
        assert commands(server) - before <= at_most
        return answer

    await cheap(store.page(ref, 0, 10))
    got = await store.claim(ref, 10, 600, 60)
    assert bodies(got) == [str(n) for n in range(10)]
    assert got.claim is not None
    assert (await store.count(ref))[:3] == (90, MANY + 10, 0)
    await cheap(store.claim(ref, 10, 600, 60))
    await cheap(store.count(ref))
    await cheap(store.page(ref, 0, 20, held=True))
    await cheap(store.claimed(ref, got.claim))
    await cheap(store.renew(ref, got.claim, 600, 60))
    await cheap(store.remove(ref, given[:5], Removal.HELD, [got.claim]))
    await cheap(store.release(ref, got.claim))
    await cheap(store.pop(ref, 10))
    await cheap(store.volume())
    await cheap(store.expire(1000))

    house.clock.turn(60)  # all of these claims lapse
    held = MANY + 100 - 5 - 10
    numbers = await house.numbers(ref)
    assert (sum(numbers), numbers[1:]) == (held, (10, 0))
    for _ in range(10):
        await cheap(store.claim(ref, 20, 600, 60), 80)
        await cheap(store.page(ref, 0, 20), 80)
        await cheap(store.count(ref), 80)
    cost = Cost(server)
    while await store.expire(1000):
        pass
    assert cost.slowest_us() < SLOWEST_US
    await cheap(store.clear(ref))
    assert await house.numbers(ref) == (0, 0, 0)


@pytest.mark.slow
async def test_many_empty_lanes_cost_those_who_look_for_work_nothing() -> None:
    with Redis(persistence="no") as server:
        house = House(server.uri, StoreOptions(unreliable=True))
        await house.open()
        try:
            refs = [await house.queue(f"{n}", kind="delivery") for n in range(1000)]
            before = commands(server)
            assert await house.messages.occupied("delivery") == []
            assert commands(server) - before < 10
            await house.messages.add([(ref, [Draft(b"x", LONG_S)]) for ref in refs[:10]])
            before = commands(server)
            assert len(await house.messages.occupied("delivery")) == 10
            assert commands(server) - before < 200
        finally:
            await house.close()
