"""The registry: what operators say beside a running service, on every kind of store."""

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path

import pytest
import structlog

from nusku.errors import StoreRefused, Unavailable
from nusku.model import Record
from nusku.storage import Entry, Registry, StoreOptions, backup_store, sqlite_path
from nusku.storage.copying import copy
from nusku.storage.registry import LOOK_S, REREAD_S, Mirror, RecordsRegistry, replicate
from nusku.storage.sqlite.registry import SqliteRegistry, registry_file
from tests.storage.harness import BACKENDS, House

ODD = "ü/'%_\\ \U0001f600"


@pytest.fixture
def registry(house: House) -> Registry:
    return house.store.registry


@pytest.fixture
def other(house: House, tmp_path: Path, runner: asyncio.Runner) -> Iterator[House]:
    """An embedded store to copy to, by the same clock."""
    (tmp_path / "other").mkdir()
    other = House(BACKENDS["sqlite"](tmp_path / "other"), StoreOptions(synchronous="normal"))
    other.clock = house.clock
    runner.run(other.open())
    yield other
    runner.run(other.close())


# -- what it keeps ---------------------------------------------------------------------------------


async def test_what_was_never_written_is_not_there(registry: Registry) -> None:
    assert await registry.read("keys", "a") is None
    assert await registry.all("keys") == {}
    assert await registry.dump() == []
    assert await registry.revision() == ""


async def test_values_are_kept_as_they_were_written(house: House, registry: Registry) -> None:
    for table, name in (("keys", "a"), ("keys", "B"), ("quotas", "a"), (ODD, ODD)):
        await registry.write(table, name, f"{table}{name}".encode() + b"\x00\xff")
    await registry.write("keys", "a", b"")
    for _ in range(2):
        assert await registry.read("keys", "a") == b""
        assert await registry.all("keys") == {"a": b"", "B": b"keysB\x00\xff"}
        assert await registry.all("quotas") == {"a": b"quotasa\x00\xff"}
        assert await registry.read(ODD, ODD) == f"{ODD}{ODD}".encode() + b"\x00\xff"
        assert len(await registry.dump()) == 4
        await house.reopen()
        registry = house.store.registry


async def test_nothing_in_place_of_a_value_removes_it(registry: Registry) -> None:
    await registry.write("keys", "a", b"1")
    await registry.write("keys", "b", b"2")
    await registry.write("keys", "a", None)
    await registry.write("keys", "never there", None)
    assert await registry.read("keys", "a") is None
    assert await registry.dump() == [Entry("keys", "b", b"2")]


async def test_a_table_may_have_more_than_fits_a_page(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nusku.storage.registry.PAGE", 3)
    for n in range(7):
        await registry.write("keys", f"{n}", b"v")
    await registry.write("zzz", "last", b"v")
    assert sorted(await registry.all("keys")) == [f"{n}" for n in range(7)]
    assert len(await registry.dump()) == 8


async def test_every_write_is_another_revision(registry: Registry) -> None:
    seen = {await registry.revision()}
    for value in (b"1", b"1", b"2", None, None):
        await registry.write("keys", "a", value)
        seen.add(await registry.revision())
    assert len(seen) == 6


async def test_of_writes_at_the_same_time_none_is_lost(house: House, registry: Registry) -> None:
    async def write(n: int) -> None:
        await registry.write("keys", f"{n}", b"v")
        await registry.write("keys", "all", f"{n}".encode())

    await asyncio.gather(*map(write, range(8)))
    assert len(await registry.all("keys")) == 9


async def test_it_is_apart_from_the_records_of_the_service(
    house: House, registry: Registry
) -> None:
    await house.records.insert(Record("queue", "", "a", b"{}"))
    await house.records.insert(Record("z", "", "a", b"{}"))
    await registry.write("keys", "a", b"1")
    assert await registry.dump() == [Entry("keys", "a", b"1")]
    assert await house.records.count("queue", "") == 1


# -- how nodes notice ------------------------------------------------------------------------------


class Listener:
    """``again`` is set whenever it is told."""

    def __init__(self) -> None:
        self.told: list[dict[str, bytes]] = []
        self.again = asyncio.Event()

    def __call__(self, table: Mapping[str, bytes]) -> None:
        self.told.append(dict(table))
        self.again.set()


async def test_who_follows_a_table_is_told_what_is_in_it_and_what_becomes_of_it(
    registry: Registry,
) -> None:
    await registry.write("keys", "a", b"1")
    mirror, keys, also, quotas = Mirror(registry), Listener(), Listener(), Listener()
    mirror.follow("keys", keys)
    mirror.follow("keys", also)
    mirror.follow("quotas", quotas)
    await mirror.look()
    await mirror.look()
    assert keys.told == also.told == [{"a": b"1"}]
    assert quotas.told == [{}]
    await registry.write("keys", "b", b"2")
    await mirror.look()
    await registry.write("keys", "a", None)
    await mirror.look()
    await registry.write("other", "a", b"3")
    await mirror.look()
    assert keys.told == also.told == [{"a": b"1"}, {"a": b"1", "b": b"2"}, {"b": b"2"}]
    assert quotas.told == [{}]


async def test_a_write_whose_revision_got_lost_is_found_all_the_same(house: House) -> None:
    registry, now_s = RecordsRegistry(house.records), 1000.0
    mirror, keys = Mirror(registry, lambda: now_s), Listener()
    mirror.follow("keys", keys)
    await mirror.look()
    await house.records.insert(Record("registry/keys", "", "a", b"1"))
    now_s += REREAD_S - 0.1
    await mirror.look()
    assert keys.told == [{}]
    now_s += 0.1
    await mirror.look()
    assert keys.told == [{}, {"a": b"1"}]


class Broken:
    """A registry whose answers fail as long as `why` says so."""

    def __init__(self, registry: Registry) -> None:
        self.why: Exception | None = None
        self.asked = asyncio.Event()
        for name in ("read", "all", "write", "dump", "revision"):
            setattr(self, name, self._unless(getattr(registry, name)))

    def _unless(self, operation: Callable[..., Awaitable[object]]) -> Callable[..., object]:
        async def asked(*args: object) -> object:
            self.asked.set()
            if self.why is not None:
                raise self.why
            return await operation(*args)

        return asked


async def test_while_the_store_is_away_what_is_known_stays(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nusku.storage.registry.LOOK_S", 0.001)
    broken = Broken(registry)
    mirror, keys = Mirror(broken), Listener()  # type: ignore[arg-type]  # its methods are set later
    mirror.follow("keys", keys)
    await registry.write("keys", "a", b"1")
    with structlog.testing.capture_logs() as logs:
        async with mirror.kept():
            broken.why = Unavailable()
            await registry.write("keys", "b", b"2")
            for _ in range(3):
                broken.asked.clear()
                await broken.asked.wait()
            assert keys.told == [{"a": b"1"}]
            keys.again.clear()
            broken.why = None
            await keys.again.wait()
    assert keys.told == [{"a": b"1"}, {"a": b"1", "b": b"2"}]
    assert [one["event"] for one in logs] == ["the registry cannot be read"]


async def test_whoever_fails_at_what_they_are_told_is_told_again(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nusku.storage.registry.LOOK_S", 0.001)
    failures = [ValueError(), ValueError()]
    keys, quotas = Listener(), Listener()

    def fail_at_first(table: Mapping[str, bytes]) -> None:
        if table and failures:
            raise failures.pop()
        keys(table)

    mirror = Mirror(registry)
    mirror.follow("keys", fail_at_first)
    mirror.follow("quotas", quotas)
    with structlog.testing.capture_logs() as logs:
        async with mirror.kept():
            keys.again.clear()
            await registry.write("keys", "a", b"1")
            await keys.again.wait()
    assert keys.told == [{}, {"a": b"1"}]
    assert not failures
    assert [one["event"] for one in logs] == ["the registry cannot be taken over"]


async def test_nothing_starts_on_a_registry_that_cannot_be_read(registry: Registry) -> None:
    broken = Broken(registry)
    broken.why = Unavailable()
    with pytest.raises(StoreRefused):
        async with Mirror(broken).kept():  # type: ignore[arg-type]  # as above
            pytest.fail("it started")


def test_nodes_notice_within_two_seconds() -> None:
    assert LOOK_S <= 1


# -- where it goes ---------------------------------------------------------------------------------


async def test_a_registry_is_made_like_another(
    house: House, other: House, registry: Registry
) -> None:
    target = other.store.registry
    for name, value in (("same", b"1"), ("changed", b"2"), ("new", b"3")):
        await registry.write("keys", name, value)
    for name, value in (("same", b"1"), ("changed", b"0"), ("old", b"3")):
        await target.write("keys", name, value)
    assert await replicate(registry, target) == 3
    assert await target.all("keys") == await registry.all("keys")
    before = await target.revision()
    assert await replicate(registry, target) == 3
    assert await target.revision() == before


async def test_a_copy_takes_it_along_in_either_direction(house: House, other: House) -> None:
    await house.records.insert(Record("queue", "p1", "a", b"{}"))
    await house.store.registry.write("keys", "a", b"1")
    await house.store.registry.write("quotas", ODD, b"2")
    summary = await copy(house.store, other.store, lambda step: None)
    assert summary.records == 4  # the queue's, the identity of the store, and two here
    assert await other.store.registry.dump() == await house.store.registry.dump()
    kinds = {one.kind for one in await other.records.dump(("", "", ""), 100)}
    assert kinds == {"queue", "identity"}  # in a file of its own, they are not among the records


async def test_a_store_with_a_registry_is_not_empty(house: House, other: House) -> None:
    await house.records.insert(Record("queue", "p1", "a", b"{}"))
    await other.store.registry.write("keys", "a", b"1")
    with pytest.raises(StoreRefused, match="not empty"):
        await copy(house.store, other.store, lambda step: None)
    await other.store.registry.write("keys", "a", None)
    await copy(house.store, other.store, lambda step: None)
    assert await other.store.registry.dump() == []


# -- the file beside an embedded store -------------------------------------------------------------

embedded = pytest.mark.only("sqlite")


def run_program(program: str, path: Path) -> None:
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)


@pytest.fixture
def file(tmp_path: Path) -> SqliteRegistry:
    """Beside a store that is not there yet."""
    return SqliteRegistry(tmp_path / "my.db")


@embedded
async def test_looking_makes_no_file(file: SqliteRegistry, tmp_path: Path) -> None:
    await file.revision()
    await file.all("keys")
    await file.read("keys", "a")
    assert list(tmp_path.iterdir()) == []


@embedded
async def test_the_file_is_its_owners_only(file: SqliteRegistry, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        await file.write("keys", "a", b"1")
    finally:
        os.umask(before)
    (made,) = tmp_path.iterdir()
    assert made.name == "my.db.admin"
    assert stat.S_IMODE(made.stat().st_mode) == 0o600


@embedded
@pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
async def test_root_makes_it_for_whoever_has_the_store(
    file: SqliteRegistry, tmp_path: Path
) -> None:
    (tmp_path / "my.db").touch()
    os.chown(tmp_path / "my.db", 12345, 54321)
    await file.write("keys", "a", b"1")
    found = file.path.stat()
    assert (found.st_uid, found.st_gid) == (12345, 54321)


@embedded
async def test_it_is_beside_the_database_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "my.db").symlink_to(tmp_path / "real" / "a.db")
    assert SqliteRegistry(tmp_path / "my.db").path == tmp_path / "real" / "a.db.admin"


@embedded
async def test_another_process_may_write_while_the_store_is_open(
    house: House, registry: Registry
) -> None:
    mirror, keys = Mirror(registry), Listener()
    mirror.follow("keys", keys)
    await mirror.look()
    program = (
        "import asyncio, pathlib, sys\n"
        "from nusku.storage.sqlite.registry import SqliteRegistry\n"
        "registry = SqliteRegistry(pathlib.Path(sys.argv[1]))\n"
        "asyncio.run(registry.write('keys', 'a', b'1'))"
    )
    await asyncio.to_thread(run_program, program, sqlite_path(house.uri))
    await mirror.look()
    assert keys.told == [{}, {"a": b"1"}]


@embedded
async def test_what_a_crash_left_half_written_does_not_count(
    file: SqliteRegistry, tmp_path: Path
) -> None:
    await file.write("keys", "a", b"1")
    # The journal of a change that was not finished is a copy of what was there.
    program = (
        "import os, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('PRAGMA cache_size = 1')\n"
        "db.execute('BEGIN IMMEDIATE')\n"
        "for n in range(500):\n"
        "    db.execute('INSERT INTO entries VALUES (?, ?, ?)', ('keys', f'{n}', bytes(1000)))\n"
        "os._exit(0)"
    )
    await asyncio.to_thread(run_program, program, file.path)
    assert Path(f"{file.path}-journal").exists()
    assert await file.all("keys") == {"a": b"1"}


@embedded
async def test_an_empty_file_is_an_empty_registry(file: SqliteRegistry) -> None:
    file.path.touch(0o600)
    assert await file.all("keys") == {}
    assert await file.revision() == ""
    await file.write("keys", "a", b"1")
    assert await file.all("keys") == {"a": b"1"}


@embedded
async def test_a_file_of_another_program_is_refused(file: SqliteRegistry) -> None:
    db = sqlite3.connect(file.path)
    db.execute("CREATE TABLE entries (tbl, name, value)")
    db.close()
    with pytest.raises(StoreRefused, match="another program"):
        await file.all("keys")
    with pytest.raises(StoreRefused, match="another program"):
        await file.write("keys", "a", b"1")


@embedded
async def test_a_file_of_a_newer_version_is_refused(file: SqliteRegistry) -> None:
    await file.write("keys", "a", b"1")
    db = sqlite3.connect(file.path)
    db.execute("PRAGMA user_version = 2")
    db.close()
    with pytest.raises(StoreRefused, match="newer nusku"):
        await file.all("keys")


@embedded
@pytest.mark.parametrize("content", [b"no database, but text\n" * 100, b"\x00" * 5000])
async def test_a_damaged_file_is_said_to_be_unusable(file: SqliteRegistry, content: bytes) -> None:
    file.path.write_bytes(content)
    with pytest.raises((Unavailable, StoreRefused)):
        await file.write("keys", "a", b"1")
    assert file.path.read_bytes() == content


@embedded
async def test_a_backup_has_it_beside_it(
    house: House, registry: Registry, tmp_path: Path, runner: asyncio.Runner
) -> None:
    target = tmp_path / "backup.db"
    backup_store(house.uri, target)
    assert not registry_file(target).exists()
    await registry.write("keys", "a", b"1")
    backup_store(house.uri, tmp_path / "second.db")
    await registry.write("keys", "a", b"2")
    kept = SqliteRegistry(tmp_path / "second.db")
    assert await kept.dump() == [Entry("keys", "a", b"1")]
    assert stat.S_IMODE(kept.path.stat().st_mode) == 0o600
    assert not [one for one in tmp_path.iterdir() if one.name.endswith(".part")]


@embedded
async def test_what_a_backup_that_was_moved_away_left_there_is_replaced(
    house: House, registry: Registry, tmp_path: Path
) -> None:
    target = tmp_path / "backup.db"
    await registry.write("keys", "a", b"1")
    backup_store(house.uri, target)
    target.unlink()
    await registry.write("keys", "a", b"2")
    backup_store(house.uri, target)
    assert await SqliteRegistry(target).all("keys") == {"a": b"2"}
    target.unlink()
    registry_file(sqlite_path(house.uri)).unlink()
    backup_store(house.uri, target)
    assert not registry_file(target).exists()
