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
from nusku.storage.sqlite import schema
from tests.storage.fixtures import make
from tests.storage.harness import LONG_S, START_MS, House, bodies

VERSIONS = range(1, schema.VERSION + 1)

STEP = "ALTER TABLE messages ADD COLUMN priority INTEGER NOT NULL DEFAULT 7;"
"""A step to the next version, such as one may come."""

HALF = "UPDATE messages SET ttl_s = 1; DELETE FROM records;"
"""What a step that ends too early must not leave behind."""

ORDERS = QueueRef(QueueKey("queue", "p1", "orders"), f"{1:016x}", 1)
DEAD = QueueRef(QueueKey("queue", "p1", "dead"), f"{2:016x}", 1)
NEWS = QueueRef(QueueKey("topic", "p2", "news"), f"{3:016x}", 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of version 1."""
    return restored(1, tmp_path)


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


async def keeps_everything(path: Path) -> None:
    """Open the store and compare it with what `make.fill` put in."""
    house = House(f"sqlite:///{path}")
    await house.open()
    try:
        await _keeps_everything(house)
    finally:
        await house.close()


async def _keeps_everything(house: House) -> None:
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
        "queue", "p1", "orders", b"\x00\xfe", 2
    )

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


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_store_of_every_version_opens_with_all_its_content(
    version: int, tmp_path: Path
) -> None:
    path = restored(version, tmp_path)
    await keeps_everything(path)
    assert version_of(path) == schema.VERSION


async def test_the_schema_does_not_change_without_a_new_version(path: Path, tmp_path: Path) -> None:
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
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Taken twice, it would fail: there can be only one column of that name.
    version = next_version(monkeypatch, STEP)
    for _ in range(3):
        await opens(path)
        assert version_of(path) == version
    assert "priority" in columns_of(path)
    assert ask(path, "SELECT DISTINCT priority FROM messages") == [(7,)]
    await keeps_everything(path)


async def test_several_steps_are_taken_in_order(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = next_version(monkeypatch, STEP, "UPDATE messages SET priority = priority + 1;")
    await keeps_everything(path)
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
first = schema.VERSION
schema.MIGRATIONS.update({first + n: step for n, step in enumerate(sys.argv[2:])})
schema.VERSION = first + len(sys.argv[2:])
try:
    asyncio.run(House(sys.argv[1]).open())
except StoreRefused as refused:
    sys.exit(str(refused))
"""

Result = subprocess.CompletedProcess[str]


async def elsewhere(path: Path, *steps: str) -> Result:
    """Migrate in another process, which has the SQL function ``die()``."""

    def run() -> Result:
        command = [sys.executable, "-c", ELSEWHERE, f"sqlite:///{path}", *steps]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    return await asyncio.to_thread(run)


ENDS = {
    "fails": ("INSERT INTO no_such_table VALUES (1);", 1, "no_such_table"),
    "is killed": ("SELECT die();", -signal.SIGKILL, ""),
}
"""How a step ends early: what it does, the process's exit code and what it says."""


@pytest.mark.parametrize("end", ENDS)
async def test_a_step_that_ends_half_way_leaves_the_older_version_usable(
    path: Path, end: str
) -> None:
    last, code, says = ENDS[end]
    result = await elsewhere(path, f"{STEP} {HALF} {last}")
    assert result.returncode == code, result.stderr
    assert says in result.stderr
    assert version_of(path) == schema.VERSION
    assert "priority" not in columns_of(path)
    await keeps_everything(path)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("whole", [0, 1])
async def test_what_was_begun_is_finished_by_the_next_process(
    path: Path, end: str, whole: int, monkeypatch: pytest.MonkeyPatch
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
    await keeps_everything(path)
