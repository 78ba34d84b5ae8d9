"""Stores of older schema versions: all that is in them is kept, whatever happens on the way."""

import asyncio
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from nusku.errors import StoreRefused
from nusku.model import QueueKey, QueueRef, Record
from nusku.storage import Stale
from nusku.storage.sqlite import schema
from tests.storage.fixtures import make
from tests.storage.harness import LONG_S, START_MS, House, bodies

pytestmark = pytest.mark.embedded

VERSIONS = range(1, schema.VERSION + 1)

STEP = "ALTER TABLE messages ADD COLUMN priority INTEGER NOT NULL DEFAULT 7;"
"""A step to the next version, such as one may come."""

HALF = "UPDATE messages SET ttl_s = 1; DELETE FROM records;"
"""What a step that ends too early must not leave behind."""

ORDERS = QueueRef(QueueKey("queue", "p1", "orders"), f"{1:016x}", 1)
DEAD = QueueRef(QueueKey("queue", "p1", "dead"), f"{2:016x}", 1)
NEWS = QueueRef(QueueKey("topic", "p2", "news"), f"{3:016x}", 1)


ALL = QueueRef(QueueKey("notice", "", "all"), f"{4:016x}", 1)
WORK = QueueRef(QueueKey("delivery", "p1", "s1"), f"{5:016x}", 1)
FAILED = QueueRef(QueueKey("failed", "p1", "s1"), f"{6:016x}", 1)

MOVED = QueueRef(QueueKey("queue", "p4", "moved"), f"{7:016x}", 5)
LEAVING = QueueRef(QueueKey("queue", "p4", "leaving"), f"{8:016x}", 1)


@pytest.fixture(params=VERSIONS)
def first(request: pytest.FixtureRequest) -> int:
    """The version that the store was made with."""
    version: int = request.param
    return version


@pytest.fixture
def path(first: int, tmp_path: Path) -> Path:
    """A store of that version."""
    return restored(first, tmp_path)


def restored(version: int, folder: Path) -> Path:
    """A store as that version left it."""
    path = folder / "nusku.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript((make.FOLDER / f"v{version}.sql").read_text())
    return path


def next_version(patch: pytest.MonkeyPatch, *steps: str) -> int:
    """Let the program be so many versions ahead of itself."""
    migrations = dict(schema.MIGRATIONS)
    migrations.update({schema.VERSION + n: step for n, step in enumerate(steps)})
    patch.setattr(schema, "MIGRATIONS", migrations)
    patch.setattr(schema, "VERSION", schema.VERSION + len(steps))
    return schema.VERSION


def ask(path: Path, statement: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(statement).fetchall()


def version_of(path: Path) -> int:
    [(version,)] = ask(path, "PRAGMA user_version")
    assert isinstance(version, int)
    return version


def columns_of(path: Path) -> set[object]:
    return {row[1] for row in ask(path, "PRAGMA table_info(messages)")}


async def opens(path: Path) -> None:
    house = House(f"sqlite:///{path}")
    await house.open()
    await house.close()


async def refusal(path: Path) -> str:
    with pytest.raises(StoreRefused) as refused:
        await opens(path)
    return str(refused.value)


async def keeps_everything(path: Path, first: int) -> None:
    """Open the store and compare it with what `make.fill` put in when it was made."""
    house = House(f"sqlite:///{path}")
    await house.open()
    try:
        if first >= 2:
            await keeps_records_and_internal_queues(house)
        if first >= 3:
            await keeps_what_is_on_its_way(house)
        await keeps_queues(house, created_ms=START_MS if first >= 2 else 0)
        await takes_what_is_new(house)
    finally:
        await house.close()


async def keeps_records_and_internal_queues(house: House) -> None:
    records = await house.records.page("sub", "p1", "", 9)
    assert [(one.key, one.parent, one.unique, one.doc, one.version) for one in records] == [
        ("s1", "orders", "one", b"{}", 1),
        ("s2", "orders", None, b"{}", 1),
        ("s3", "news", "drei", b"[]", 2),
        ("s4", "", "four", b"{}", 1),
    ]
    ends = [one.ends_ms and (one.ends_ms - START_MS) // 1000 for one in records]
    assert ends == [None, 600, 400, 60]
    assert {one.created_ms for one in records} == {START_MS}
    assert await house.records.page("sub", "p1", "", 9, parent="orders") == records[:2]
    assert await house.records.find("sub", "p1", "drei") == records[2]
    assert await house.records.find("sub", "p1", "three") is None

    assert await house.free(ALL) == ["tell"]
    work = await house.all(WORK)
    assert [(m.body, m.attributes) for m in work] == [(b"again", b"500"), (b"held", None)]
    assert await house.numbers(WORK) == (0, 1, 1)
    [failed] = await house.all(FAILED)
    assert (failed.body, failed.attributes, failed.ttl_s) == (b"given up", b"why", 9000)
    assert [one.messages for one in await house.messages.occupied("delivery")] == [2]


async def keeps_what_is_on_its_way(house: House) -> None:
    claim = await house.messages.claimed(MOVED, make.FOREIGN)
    assert claim is not None
    assert (claim.ttl_s, bodies(claim.messages)) == (600, ["held"])
    assert bodies(await house.all(MOVED)) == ["free", "held"]
    assert await house.post(MOVED, "next") == [20]
    with pytest.raises(Stale):
        await house.all(LEAVING)
    assert [one.body for one in await house.messages.dump(LEAVING, 0, 9)] == [b"sealed"]
    await house.unseal(LEAVING)
    with pytest.raises(Stale):
        await house.all(LEAVING)
    await house.unseal(LEAVING._replace(version=2))
    assert await house.free(LEAVING) == ["sealed"]


async def takes_what_is_new(house: House) -> None:
    """A store of any version is as good as a new one."""
    await house.messages.seal(DEAD)
    with pytest.raises(Stale):
        await house.all(DEAD)
    await house.unseal(DEAD)
    copy = DEAD._replace(key=QueueKey("queue", "p3", "copy"))
    await house.messages.load(copy, 9, 0, 8, await house.messages.dump(DEAD, 0, 9))
    assert await house.messages.dump(copy, 0, 9) == await house.messages.dump(DEAD, 0, 9)
    one = Record("sub", "p3", "k", b"{}", parent="q", unique="name")
    assert await house.records.insert(one, 60)
    found = await house.records.find("sub", "p3", "name")
    assert found is not None
    assert found.ends_ms == house.clock() + 60_000
    assert await house.records.page("sub", "p3", "", 9, parent="q") == [found]
    assert not await house.records.insert(Record("sub", "p3", "l", b"{}", unique="name"))
    house.clock.turn(60)
    assert await house.records.insert(Record("sub", "p3", "l", b"{}", unique="name"))
    assert "k" in [ended.key for ended in await house.records.ended("sub", (0, ""), 9)]
    assert await house.records.delete("sub", "p3", "k")
    assert await house.records.delete("sub", "p3", "l")


async def keeps_queues(house: House, created_ms: int) -> None:
    found = {message.body.decode(): message for message in await house.all(ORDERS)}
    assert list(found) == ["held 1", "held 2", "let go", "free", "freé 2", "once", "later"]
    assert await house.free(ORDERS) == ["let go", "free", "freé 2", "once"]
    assert await house.numbers(ORDERS) == (4, 2, 1)
    assert {message.ttl_s for message in found.values()} == {LONG_S}
    assert {message.posted_ms for message in found.values()} == {START_MS}
    assert found["free"].client == "c2"

    record = await house.records.get("claim", "p1", "orders")
    assert record is not None
    claim = await house.messages.claimed(ORDERS, record.doc.decode())
    assert claim is not None
    assert (claim.ttl_s, bodies(claim.messages)) == (600, ["held 1", "held 2"])
    assert await house.records.get("queue", "p1", "orders") == Record(
        "queue", "p1", "orders", b"\x00\xfe", 2, created_ms=created_ms, read_ms=START_MS
    )
    assert await house.records.count("queue", "p1") == 1

    [spent] = await house.all(DEAD)
    assert (spent.body, spent.count, spent.client) == (b"spent", 2, "c1")
    assert (spent.ttl_s, spent.attributes) == (9000, b"why")
    assert await house.free(NEWS) == ["news"]

    # It goes on from there, not only with reading.
    once = await house.post(ORDERS, "once, again", dedup="key")
    assert once == [found["once"].position]
    house.clock.turn(301)
    assert await house.free(ORDERS) == ["let go", "free", "freé 2", "once", "later"]
    house.clock.turn(300)
    assert await house.numbers(ORDERS) == (7, 0, 0)
    [last] = await house.post(ORDERS, "new")
    assert last > max(message.position for message in found.values())


async def test_a_store_of_every_version_opens_with_all_its_content(path: Path, first: int) -> None:
    for _ in range(2):
        await opens(path)
        assert version_of(path) == schema.VERSION
    await keeps_everything(path, first)


async def test_a_migrated_store_has_the_tables_and_indices_of_a_new_one(
    path: Path, tmp_path: Path
) -> None:
    (tmp_path / "new").mkdir()
    new = tmp_path / "new" / "nusku.db"
    await opens(new)
    await opens(path)
    tables = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"
    assert ask(path, tables) == ask(new, tables)
    for (table,) in ask(new, tables):
        columns = f"SELECT * FROM pragma_table_xinfo('{table}')"
        assert ask(path, columns) == ask(new, columns)
    indices = "SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'index' ORDER BY name"
    assert ask(path, indices) == ask(new, indices)


async def test_the_schema_does_not_change_without_a_new_version(tmp_path: Path) -> None:
    """A new store has the tables of the one kept; `make.py` keeps one of the next version."""
    (tmp_path / "new").mkdir()
    new = tmp_path / "new" / "nusku.db"
    await opens(new)
    (tmp_path / "kept").mkdir()
    kept = restored(schema.VERSION, tmp_path / "kept")
    tables = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"
    assert ask(kept, tables) == ask(new, tables)
    [(application,)] = ask(kept, "PRAGMA application_id")
    assert application == schema.APPLICATION_ID


async def test_a_step_is_taken_once_and_keeps_all(
    path: Path, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Taken twice, it would fail: there can be only one column of that name.
    version = next_version(monkeypatch, STEP)
    for _ in range(3):
        await opens(path)
        assert version_of(path) == version
    assert "priority" in columns_of(path)
    assert ask(path, "SELECT DISTINCT priority FROM messages") == [(7,)]
    await keeps_everything(path, first)


async def test_several_steps_are_taken_in_order(
    path: Path, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = next_version(monkeypatch, STEP, "UPDATE messages SET priority = priority + 1;")
    await keeps_everything(path, first)
    assert version_of(path) == version
    assert (8,) in ask(path, "SELECT DISTINCT priority FROM messages")


async def test_the_older_program_refuses_a_migrated_store(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        version = next_version(patch, STEP)
        await opens(path)
    assert f"version {version}" in await refusal(path)
    assert version_of(path) == version


ELSEWHERE = """
import asyncio, os, signal, sqlite3, sys
from nusku.errors import StoreRefused
from nusku.storage.sqlite import schema
from tests.storage.harness import House

real = schema.migrate

def migrate(db: sqlite3.Connection, found: int) -> None:
    db.create_function("die", 0, lambda: os.kill(os.getpid(), signal.SIGKILL))
    db.execute("PRAGMA cache_size = 1")  # so that much of it is in the log when it dies
    real(db, found)

schema.migrate = migrate
own, addition = int(sys.argv[2]), sys.argv[3]
if own:
    schema.MIGRATIONS[own] += addition
latest = schema.VERSION
schema.MIGRATIONS.update({latest + n: step for n, step in enumerate(sys.argv[4:])})
schema.VERSION = latest + len(sys.argv[4:])
try:
    asyncio.run(House(sys.argv[1]).open())
except StoreRefused as refused:
    sys.exit(str(refused))
"""

Result = subprocess.CompletedProcess[str]


async def elsewhere(path: Path, *steps: str, own: tuple[int, str] = (0, "")) -> Result:
    """Migrate in another process, which has the SQL function ``die()``.

    It has so many steps more, and at the end of one of its own does something besides.
    """

    def run() -> Result:
        command = [sys.executable, "-c", ELSEWHERE, f"sqlite:///{path}", *map(str, own), *steps]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    return await asyncio.to_thread(run)


ENDS = {
    "fails": ("INSERT INTO no_such_table VALUES (1);", 1, "no_such_table"),
    "is killed": ("SELECT die();", -signal.SIGKILL, ""),
}
"""How a step ends early: what it does, the process's exit code and what it says."""


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("step", range(1, schema.VERSION))
async def test_a_real_step_that_ends_too_early_is_taken_again(
    step: int, tmp_path: Path, end: str
) -> None:
    path = restored(step, tmp_path)
    before = ask(path, "SELECT * FROM records")
    last, code, says = ENDS[end]
    result = await elsewhere(path, own=(step, f"{HALF} {last}"))
    assert result.returncode == code, result.stderr
    assert says in result.stderr
    assert version_of(path) == step
    assert ask(path, "SELECT * FROM records") == before
    await keeps_everything(path, step)
    assert version_of(path) == schema.VERSION


@pytest.mark.parametrize("end", ENDS)
async def test_a_step_that_ends_half_way_leaves_the_older_version_usable(
    path: Path, first: int, end: str
) -> None:
    last, code, says = ENDS[end]
    result = await elsewhere(path, f"{STEP} {HALF} {last}")
    assert result.returncode == code, result.stderr
    assert says in result.stderr
    assert version_of(path) == schema.VERSION
    assert "priority" not in columns_of(path)
    await keeps_everything(path, first)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("whole", [0, 1])
async def test_what_was_begun_is_finished_by_the_next_process(
    path: Path, first: int, end: str, whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [STEP, "UPDATE messages SET priority = priority + 1;"]
    last, code, _ = ENDS[end]
    broken = [*steps[:whole], f"{steps[whole]} {HALF} {last}", *steps[whole + 1 :]]
    assert (await elsewhere(path, *broken)).returncode == code
    assert version_of(path) == schema.VERSION + whole
    version = next_version(monkeypatch, *steps)
    await opens(path)
    assert version_of(path) == version
    assert ask(path, "SELECT DISTINCT priority FROM messages") == [(8,)]
    await keeps_everything(path, first)
