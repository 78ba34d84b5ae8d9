"""How the stores of pools are opened, recognised and let go of, below HTTP."""

from __future__ import annotations

import asyncio
import inspect
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nusku.broker import poolstores
from nusku.broker.flavors import Flavors
from nusku.broker.pools import Pools
from nusku.config import Settings
from nusku.errors import (
    Conflict,
    Invalid,
    InvalidBody,
    InvalidFlavor,
    InvalidPool,
    StoreRefused,
    Unavailable,
)
from nusku.metrics import Metrics
from nusku.model import Context
from nusku.storage import Store, StoreOptions, open_store

CTX = Context("project", "client", frozenset({"admin"}))
URI = "postgresql://me:secret@db.example/nusku"
SHOWN = "postgresql://me:***@db.example/nusku"
ALL = ("FIFO", "CLAIMS", "DURABILITY", "AOD", "HIGH_THROUGHPUT")


class World:
    """Stores by URI: each is a file, whatever its URI says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, str] = {}
        """The file behind a URI; one of its own if it is not named here."""
        self.capabilities: dict[str, tuple[str, ...]] = {}
        self.openings: Counter[str] = Counter()
        self.told: dict[str, Mapping[str, Any]] = {}
        self.broken: dict[str, Exception] = {}
        self.gate = asyncio.Event()
        """While it is not set every opening hangs."""
        self.gate.set()
        self.open_now: Counter[str] = Counter()
        self.closed: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._stores: dict[str, Store] = {}
        self._users: Counter[str] = Counter()
        self.failing: dict[str, asyncio.Future[str]] = {}

    async def open(self, uri: str, options: Mapping[str, Any]) -> Store:
        self.openings[uri] += 1
        self.told[uri] = options
        await self.gate.wait()
        if uri in self.broken:
            raise self.broken[uri]
        store = await self._opened(self.files.get(uri, f"{abs(hash(uri))}.db"))
        self.open_now[uri] += 1

        async def close() -> None:
            self.open_now[uri] -= 1
            await store.close()
            self.closed[uri].set()

        capabilities = self.capabilities.get(uri, ALL)
        failed = self.failing[uri] = asyncio.get_running_loop().create_future()
        return store._replace(close=close, capabilities=capabilities, failed=failed)

    async def _opened(self, file: str) -> Store:
        """Like a database it can be opened many times."""
        if file not in self._stores:
            uri = f"sqlite:///{self.folder / file}"
            self._stores[file] = await open_store(uri, None, StoreOptions(), Metrics())
        self._users[file] += 1

        async def close() -> None:
            self._users[file] -= 1
            if not self._users[file]:
                await self._stores.pop(file).close()

        return self._stores[file]._replace(close=close)

    @asynccontextmanager
    async def own(self) -> AsyncIterator[Store]:
        store = await self._opened("own.db")
        try:
            yield store
        finally:
            await store.close()

    @asynccontextmanager
    async def node(self, own: Store, **settings: Any) -> AsyncIterator[Pools]:
        """One of the nodes of a service."""
        known = Settings(store="postgresql://own.example/nusku", **settings)
        pools = Pools(own._replace(shared=True), self.open, known, random.Random(5))
        try:
            yield pools
        finally:
            self.gate.set()
            await pools.close()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def on_a_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a coroutine as a test. One that asks for ``pools`` gets those of a node of its own."""
    signature = inspect.signature(test)
    names = [name for name in signature.parameters if name != "pools"]
    fixtures = [*names, *({"world"} - {*names})]

    def run(**given: Any) -> None:
        async def whole() -> None:
            asked = {name: given[name] for name in names}
            if "pools" not in signature.parameters:
                await test(**asked)
                return
            world: World = given["world"]
            async with world.own() as own, world.node(own) as pools:
                await test(pools=pools, **asked)

        asyncio.run(whole())

    parameter = inspect.Parameter
    run.__name__, run.__doc__ = test.__name__, test.__doc__
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what pytest looks at
        [parameter(name, parameter.KEYWORD_ONLY) for name in fixtures]
    )
    return run


async def put(pools: Pools, name: str, uri: str, flavor: str | None = None, **options: Any) -> None:
    await pools.put(CTX, name, uri, 1, flavor, options)


# -- passwords -------------------------------------------------------------------------------------


@on_a_loop
async def test_passwords_are_not_shown_and_not_lost(pools: Pools, world: World) -> None:
    secret: dict[str, Any] = {
        "listen_store": "postgresql://me:other@direct.example/nusku",
        "password": "third",
        "deep": {"api_token": "fourth", "plain": "x"},
    }
    await put(pools, "a", URI, **secret)
    shown = await pools.get(CTX, "a")
    assert shown.uri == SHOWN
    assert shown.options == {
        "listen_store": "postgresql://me:***@direct.example/nusku",
        "password": "***",
        "deep": {"api_token": "***", "plain": "x"},
    }
    for known in ("secret", "other", "third", "fourth"):
        assert known not in repr(shown)
    # What was shown may be sent back.
    await pools.put(CTX, "a", shown.uri, 3, None, shown.options)
    again = await pools.patch(CTX, "a", {"uri": shown.uri, "options": shown.options})
    assert again == await pools.get(CTX, "a")
    assert world.openings == {URI: 1}
    assert world.told[URI]["listen_store"] == secret["listen_store"]


@on_a_loop
async def test_stars_are_no_password(pools: Pools) -> None:
    await put(pools, "a", URI)
    for uri in (SHOWN.replace("db.example", "other.example"), "redis://:***@127.0.0.1"):
        with pytest.raises(InvalidBody, match="give it"):
            await pools.patch(CTX, "a", {"uri": uri})
    with pytest.raises(InvalidBody, match="give it"):
        await put(pools, "b", SHOWN)


@on_a_loop
async def test_refusals_do_not_tell_passwords(
    pools: Pools, world: World, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    for error in (
        StoreRefused(f"{URI}: no such database"),
        Unavailable("the server does not take 'secret' as a password"),
        ValueError(f"what is {URI}?"),
    ):
        world.broken[URI] = error
        with pytest.raises(Invalid) as refused:
            await put(pools, "a", URI)
        assert "secret" not in refused.value.detail
        assert SHOWN in refused.value.detail
    assert "secret" not in caplog.text + "".join(capsys.readouterr())


# -- options ---------------------------------------------------------------------------------------


@on_a_loop
async def test_a_store_is_told_what_concerns_it(pools: Pools, world: World) -> None:
    await put(pools, "a", URI, unreliable=True, store_timeout=2.5, mine=1)
    assert world.told[URI] == {"listen_store": "", "unreliable": True, "store_timeout": 2.5}
    await pools.patch(CTX, "a", {"options": {"mine": 2}})
    assert world.openings[URI] == 2
    assert world.told[URI] == {"listen_store": ""}
    assert world.open_now[URI] == 1
    await pools.patch(CTX, "a", {"options": {"mine": 3}})
    assert world.openings[URI] == 2


@on_a_loop
async def test_options_that_a_store_refuses_change_nothing(pools: Pools, world: World) -> None:
    await put(pools, "a", URI)
    store = await pools.store("a")
    world.broken[URI] = StoreRefused("there is no standby")
    with pytest.raises(Invalid, match="no standby"):
        await pools.patch(CTX, "a", {"options": {"synchronous_standby": True}})
    assert (await pools.get(CTX, "a")).options == {}
    assert await pools.store("a") is store


# -- opening ---------------------------------------------------------------------------------------


@on_a_loop
async def test_the_service_s_own_store_has_no_name(pools: Pools) -> None:
    assert await pools.store(None) is pools.own


@on_a_loop
async def test_a_store_is_opened_once_for_all_who_ask(world: World) -> None:
    async with world.own() as own:
        async with world.node(own) as first:
            await put(first, "a", URI)
        world.openings.clear()
        async with world.node(own) as node:
            opened: list[Store] = []
            node.on_open = opened.append
            assert node.opened() == {}
            stores = await asyncio.gather(*(node.store("a") for _ in range(20)))
            assert world.openings == {URI: 1}
            assert len({id(store) for store in stores}) == 1
            assert opened == [stores[0]]
            assert node.opened() == {"a": stores[0]}
            assert [name for name, _ in (await node.all()).stores] == [None, "a"]
        assert world.open_now[URI] == 0


@on_a_loop
async def test_what_cannot_be_opened_is_unavailable_and_costs_little(world: World) -> None:
    async with world.own() as own:
        async with world.node(own) as first:
            await put(first, "a", URI)
        world.openings.clear()
        world.broken[URI] = Unavailable("connection refused")
        async with world.node(own) as node:
            for _ in range(50):
                with pytest.raises(Unavailable, match="pool a cannot be reached"):
                    await node.store("a")
            assert world.openings[URI] == 1
            assert (await node.all()).away == ["a"]
            assert node.opened() == {}
            del world.broken[URI]
            await asyncio.sleep(poolstores.BACKOFF_S[0])
            await node.store("a")
            assert (await node.all()).away == []


@on_a_loop
async def test_what_hangs_holds_up_nobody_for_long(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poolstores, "PATIENCE_S", 0.2)
    async with world.own() as own:
        async with world.node(own) as first:
            await put(first, "a", URI)
        async with world.node(own) as node:
            world.gate.clear()
            with pytest.raises(Unavailable):
                await asyncio.wait_for(node.store("a"), 2)
            with pytest.raises(Unavailable):  # the first attempt still goes on
                await asyncio.wait_for(node.store("a"), 0.1)
            with pytest.raises(Invalid, match="did not answer"):
                await asyncio.wait_for(put(node, "b", "redis://hangs.example"), 2)
            world.gate.set()
            # What nobody waits for any more is closed.
            await asyncio.wait_for(world.closed["redis://hangs.example"].wait(), 5)
            assert await node.store("a")


@on_a_loop
async def test_an_unknown_pool_is_unavailable(pools: Pools) -> None:
    with pytest.raises(Unavailable, match="no pool x"):
        await pools.store("x")
    assert not await pools.known("x")


@on_a_loop
async def test_a_store_that_fails_is_opened_anew(world: World) -> None:
    async with world.own() as own, world.node(own) as node:
        await put(node, "a", URI)
        before = await node.store("a")
        world.failing[URI].set_result("the disk is gone")
        for _ in range(3):  # until that has been noticed
            await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await node.store("a")
        await asyncio.sleep(poolstores.BACKOFF_S[0])
        assert await node.store("a") is not before
        assert world.open_now[URI] == 1


# -- several nodes ---------------------------------------------------------------------------------


@on_a_loop
async def test_what_one_node_changes_the_others_notice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poolstores, "LINGER_S", 0.0)
    async with world.own() as own, world.node(own) as one, world.node(own) as other:
        await put(one, "a", URI)
        store = await other.store("a")
        assert world.open_now[URI] == 2
        await other.patch(CTX, "a", {"weight": 0})
        await put(one, "b", "redis://b.example")
        assert await one.place("project", None) == "b"  # at once: a has no weight any more
        await one.delete(CTX, "a")
        assert await other.place("project", None) == "b"
        with pytest.raises(Unavailable, match="no pool a"):
            await other.store("a")
        assert store not in other.opened().values()
        assert world.open_now[URI] == 0
        await put(other, "a", URI)
        assert await one.store("a")


# -- recognising -----------------------------------------------------------------------------------


@on_a_loop
async def test_another_store_at_the_same_place_is_not_taken(world: World) -> None:
    async with world.own() as own:
        async with world.node(own) as first:
            await put(first, "a", URI)
        world.files[URI] = "empty.db"
        async with world.node(own) as node:
            with pytest.raises(Unavailable):
                await node.store("a")
            with pytest.raises(Invalid, match="cannot be reached"):
                await node.patch(CTX, "a", {"uri": URI})
            with pytest.raises(Invalid, match="another store"):
                await node.patch(CTX, "a", {"options": {"store_timeout": 3}})


@on_a_loop
async def test_a_store_that_may_lose_everything_is_taken_as_it_is(world: World) -> None:
    uri = "redis://cache.example"
    world.capabilities[uri] = tuple(name for name in ALL if name != "DURABILITY")
    async with world.own() as own:
        async with world.node(own) as first:
            await put(first, "a", uri)
        world.files[uri] = "empty.db"
        async with world.node(own) as node:
            assert await node.store("a")
        async with world.node(own) as node:
            assert await node.store("a")


@on_a_loop
async def test_one_store_by_two_names_is_refused(pools: Pools, world: World) -> None:
    other = "postgresql://127.0.0.1/nusku"
    world.files = {URI: "one.db", other: "one.db"}
    await put(pools, "a", URI)
    with pytest.raises(Conflict, match="store of the pool a"):
        await put(pools, "b", other)
    assert world.open_now[other] == 0


@on_a_loop
async def test_the_own_store_by_another_name_is_refused(pools: Pools, world: World) -> None:
    world.files[URI] = "own.db"
    with pytest.raises(Conflict, match="own store"):
        await put(pools, "a", URI)
    assert world.open_now[URI] == 0


@on_a_loop
async def test_a_store_that_moved_is_recognised(pools: Pools, world: World) -> None:
    """Its queues stay, so that it may have messages."""
    moved = "postgresql://new.example/nusku"
    world.files = {URI: "one.db", moved: "one.db"}
    await put(pools, "a", URI)
    before = (await pools._get("a"))[1]
    await pools.patch(CTX, "a", {"uri": moved})
    after = (await pools._get("a"))[1]
    assert before is not None
    assert after is not None
    assert after.identity == before.identity
    assert (await pools.get(CTX, "a")).uri == moved


# -- capabilities ----------------------------------------------------------------------------------


@on_a_loop
async def test_pools_of_one_flavor_promise_the_same(pools: Pools, world: World) -> None:
    fast = "redis://cache.example"
    world.capabilities[fast] = ("CLAIMS", "FIFO", "AOD", "HIGH_THROUGHPUT")
    await put(pools, "a", URI, "gold")
    with pytest.raises(InvalidPool, match="capabilities"):
        await put(pools, "b", fast, "gold")
    await put(pools, "b", fast)
    with pytest.raises(InvalidPool):
        await pools.patch(CTX, "b", {"flavor": "gold"})
    flavors = Flavors(pools)
    with pytest.raises(InvalidFlavor, match="same capabilities"):
        await flavors.put(CTX, "mixed", ["a", "b"])
    await flavors.put(CTX, "fast", ["b"])
    shown = await flavors.get(CTX, "fast")
    assert shown.capabilities == ("FIFO", "CLAIMS", "AOD", "HIGH_THROUGHPUT")
    with pytest.raises(InvalidPool):  # the store is another one, and so are its promises
        await put(pools, "c", "postgresql://third.example/x", "fast")
    assert (await pools.get(CTX, "a")).flavor == "gold"


@on_a_loop
async def test_capabilities_are_known_while_the_store_is_away(world: World) -> None:
    async with world.own() as own:
        async with world.node(own) as first:
            await put(first, "a", URI)
            await Flavors(first).put(CTX, "gold", ["a"])
        world.broken[URI] = Unavailable("away")
        async with world.node(own) as node:
            (flavor,) = await Flavors(node).page(CTX, "", 10)
            assert flavor.capabilities == ALL


# -- placing ---------------------------------------------------------------------------------------


@on_a_loop
async def test_queues_are_placed_in_proportion_to_weight(pools: Pools) -> None:
    for name, weight in (("a", 1), ("b", 3), ("c", 0), ("d", 4)):
        await pools.put(CTX, name, f"redis://{name}.example", weight, None, {})
    placed = Counter([await pools.place("project", None) for _ in range(800)])
    assert set(placed) == {"a", "b", "d"}
    assert placed["a"] == pytest.approx(100, abs=30)
    assert placed["b"] == pytest.approx(300, abs=50)
    assert placed["d"] == pytest.approx(400, abs=50)


@on_a_loop
async def test_a_queue_stays_where_it_may_be(pools: Pools) -> None:
    for name in "abc":
        await pools.put(CTX, name, f"redis://{name}.example", 1, None, {})
    assert {await pools.place("project", None, "b") for _ in range(20)} == {"b"}
    await pools.patch(CTX, "b", {"weight": 0})
    assert await pools.place("project", None, "b") in {"a", "c"}


@on_a_loop
async def test_pools_that_are_away_are_passed_over(world: World) -> None:
    async with world.own() as own:
        async with world.node(own) as first:
            await put(first, "a", "redis://a.example")
            await put(first, "b", "redis://b.example")
        world.broken["redis://a.example"] = Unavailable("away")
        async with world.node(own) as node:
            assert (await node.all()).away == ["a"]
            assert {await node.place("project", None) for _ in range(20)} == {"b"}
