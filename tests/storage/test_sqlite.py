"""What is special to the embedded store: its file, who may open it, and copies of it."""

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from nusku.errors import StoreFull, StoreRefused, Unavailable
from nusku.model import Draft, Message, Record, Stored
from nusku.storage import (
    CAPABILITIES,
    Removal,
    Removed,
    StoreOptions,
    backup_store,
    inspect_store,
    sqlite_path,
)
from nusku.storage.sqlite import schema
from tests.storage.harness import House, bodies, positions

pytestmark = pytest.mark.embedded


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store's file may be made; there is none yet."""
    return tmp_path / "nusku.db"


@pytest.fixture
def uri(path: Path) -> str:
    return f"sqlite:///{path}"


async def refusal(path: Path) -> str:
    """Why this file is not opened."""
    with pytest.raises(StoreRefused) as refused:
        await House(f"sqlite:///{path}").open()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def edit(path: Path, statement: str) -> None:
    """Change a file that nobody has open."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(statement)
    db.close()


# The URI


def test_three_slashes_are_relative_and_four_absolute() -> None:
    assert sqlite_path("sqlite:///nusku.db") == Path("nusku.db")
    assert sqlite_path("sqlite:///data/nusku.db") == Path("data/nusku.db")
    assert sqlite_path("sqlite:////var/lib/nusku.db") == Path("/var/lib/nusku.db")
    assert sqlite_path("sqlite:////var/with%20space.db") == Path("/var/with space.db")


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "nusku.db",
        "sqlite:",
        "sqlite://",
        "sqlite:///",
        "sqlite://nusku.db",
        "sqlite://host/nusku.db",
        "sqlite:///nusku.db?mode=memory",
        "mysql:///nusku.db",
    ],
)
def test_any_other_uri_is_refused_by_name(uri: str) -> None:
    with pytest.raises(StoreRefused, match=r"sqlite:///relative\.db") as refused:
        sqlite_path(uri)
    assert repr(uri) in str(refused.value)


@pytest.mark.parametrize("name", ["with space.db", "with'quote.db", "50%.db", "ünï.db", "a?b#c.db"])
async def test_a_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    quoted = name.replace("%", "%25").replace("?", "%3F").replace("#", "%23").replace(" ", "%20")
    house = House(f"sqlite:///{tmp_path}/{quoted}")
    await house.open()
    await house.close()
    assert (tmp_path / name).exists()


async def test_no_name_of_a_queue_or_key_reaches_the_sql(house: House) -> None:
    nasty = "x'; DROP TABLE messages; --"
    ref = await house.queue(nasty, nasty)
    await house.post(ref, nasty, client=nasty, dedup=nasty)
    await house.records.insert(Record(nasty, nasty, nasty, nasty.encode()))
    assert await house.free(ref) == [nasty]
    assert await house.messages.claimed(ref, nasty) is None
    assert await house.records.get(nasty, nasty, nasty) is not None


# Who may open it


async def test_a_second_opening_of_the_same_file_is_refused(house: House, path: Path) -> None:
    why = await refusal(path)
    assert str(path) in why
    assert "in use" in why
    assert str(os.getpid()) in why
    ref = await house.queue()
    await house.post(ref, "still alive")


OPEN = """
import asyncio, sys
from nusku.clock import steady_clock
from nusku.errors import StoreRefused
from nusku.metrics import Metrics
from nusku.storage import StoreOptions, open_store

async def main():
    store = await open_store(sys.argv[1], steady_clock(), StoreOptions(), Metrics())
    await store.close()

try:
    asyncio.run(main())
except StoreRefused as refused:
    sys.exit(str(refused))
"""


def in_another_process(uri: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", OPEN, uri], capture_output=True, text=True, timeout=60, check=False
    )


async def test_another_process_is_refused_while_the_store_is_open(
    house: House, uri: str, path: Path
) -> None:
    result = await asyncio.to_thread(in_another_process, uri)
    assert result.returncode == 1
    assert str(path) in result.stderr
    assert "in use" in result.stderr
    await house.close()
    result = await asyncio.to_thread(in_another_process, uri)
    assert (result.returncode, result.stderr) == (0, "")


async def test_a_refused_opening_leaves_the_file_free(path: Path) -> None:
    path.write_bytes(b"garbage" * 1000)
    await refusal(path)
    path.unlink()
    house = House(f"sqlite:///{path}")
    await house.open()
    await house.close()


async def test_another_path_to_the_same_file_is_the_same_file(
    house: House, path: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(path)
    why = await refusal(link)
    assert "in use" in why


async def test_an_empty_file_becomes_a_store(path: Path, uri: str) -> None:
    path.touch()
    house = House(uri)
    await house.open()
    await house.queue()
    await house.close()


@pytest.mark.parametrize("size", [1, 15, 16, 100, 4096, 100_000])
async def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path, size: int) -> None:
    content = bytes(n * 7 % 256 for n in range(size))
    path.write_bytes(content)
    assert str(path) in await refusal(path)
    assert path.read_bytes() == content


async def test_a_database_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    edit(path, "CREATE TABLE theirs (x)")
    content = path.read_bytes()
    why = await refusal(path)
    assert str(path) in why
    assert "another program" in why
    assert path.read_bytes() == content
    with pytest.raises(StoreRefused, match="another program"):
        inspect_store(f"sqlite:///{path}")


async def test_a_newer_schema_is_refused_and_left_alone(path: Path, uri: str) -> None:
    house = House(uri)
    await house.open()
    await house.close()
    edit(path, f"PRAGMA user_version = {schema.VERSION + 1}")
    content = path.read_bytes()
    why = await refusal(path)
    for word in (str(path), f"version {schema.VERSION + 1}", f"{schema.VERSION}"):
        assert word in why
    assert path.read_bytes() == content


async def test_every_older_schema_has_a_way_to_this_one() -> None:
    assert sorted(schema.MIGRATIONS) == list(range(1, schema.VERSION))


@pytest.mark.parametrize("name", ["missing/nusku.db", "file/nusku.db", "directory"])
async def test_a_place_where_no_file_can_be_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    why = await refusal(tmp_path / name)
    assert str(tmp_path / name) in why or str((tmp_path / name).parent) in why


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_read_only_directory_is_refused(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    why = await refusal(closed / "nusku.db")
    assert "Permission denied" in why
    assert str(closed) in why


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc here")
async def test_a_file_system_that_takes_no_files_is_refused() -> None:
    assert "/proc/nusku.db" in await refusal(Path("/proc/nusku.db"))


async def damaged(house: House, path: Path, copy: Path, table: str) -> None:
    """Fill a store, and make a copy as a crash would leave it, with one page destroyed."""
    await house.fill(await house.queue(), 2000)
    await house.reopen()
    shutil.copy(path, copy)
    shutil.copy(f"{path}-wal", f"{copy}-wal")
    await house.close()
    db = sqlite3.connect(path)
    (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    (size,) = db.execute("PRAGMA page_size").fetchone()
    db.close()
    content = bytearray(copy.read_bytes())
    content[(page - 1) * size : (page - 1) * size + 200] = b"\xa5" * 200
    copy.write_bytes(content)


@pytest.mark.parametrize("table", ["messages", "lanes", "ready"])
async def test_a_file_damaged_while_it_was_open_is_refused(
    house: House, path: Path, tmp_path: Path, table: str
) -> None:
    copy = tmp_path / "copy.db"
    await damaged(house, path, copy, table)
    assert str(copy) in await refusal(copy)


async def test_a_large_damaged_file_is_found_out_while_it_is_served(
    house: House, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nusku.storage.sqlite.file.CHECKED_AT_ONCE_BYTES", 0)
    copy = tmp_path / "copy.db"
    await damaged(house, path, copy, "ready")
    other = House(f"sqlite:///{copy}")
    await other.open()
    assert "damaged" in await other.store.failed
    with pytest.raises(Unavailable):
        await other.store.ping()
    await other.close()


async def test_a_large_file_that_a_crash_left_whole_is_served(
    house: House, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nusku.storage.sqlite.file.CHECKED_AT_ONCE_BYTES", 0)
    ref = await house.queue()
    await house.fill(ref, 2000)
    copy = tmp_path / "copy.db"
    shutil.copy(path, copy)
    shutil.copy(f"{path}-wal", f"{copy}-wal")
    other = House(f"sqlite:///{copy}")
    await other.open()
    assert (await other.messages.count(ref)).free == 2000
    await other.close()


# What is in the file


async def test_a_damaged_body_is_never_handed_out(house: House, path: Path) -> None:
    ref = await house.queue()
    await house.post(ref, "intact-before", "needle-in-the-file")
    await house.close()
    content = path.read_bytes()
    assert content.count(b"needle-in-the-file") == 1
    path.write_bytes(content.replace(b"needle-in-the-file", b"needle-in-the-fils"))
    await house.open()
    with pytest.raises(Unavailable, match="damaged"):
        await house.messages.page(ref, 0, 9)
    with pytest.raises(Unavailable, match="damaged"):
        await house.messages.claim(ref, 9, 60, 60)
    assert bodies(await house.messages.page(ref, 0, 1)) == ["intact-before"]


async def test_a_claim_that_meets_a_damaged_body_leaves_no_trace(house: House, path: Path) -> None:
    ref = await house.queue()
    await house.post(ref, "intact", ttl_s=60)
    await house.post(ref, "needle-in-the-file")
    await house.close()
    path.write_bytes(path.read_bytes().replace(b"needle-in-the-file", b"needle-in-the-fils"))
    await house.open()
    with pytest.raises(Unavailable, match="damaged"):
        await house.messages.claim(ref, 9, 600, 60)
    assert bodies(await house.messages.page(ref, 0, 1)) == ["intact"]
    house.clock.turn(60)
    assert (await house.messages.volume())[:3] == (1, 0, 0)


async def test_the_file_does_not_grow_when_messages_come_and_go(house: House, path: Path) -> None:
    ref = await house.queue()
    sizes = []
    for _ in range(6):
        await house.messages.add([(ref, [Draft(b"x" * 1000, 60)] * 2000)])
        house.clock.turn(60)
        while await house.messages.expire(500):
            pass
        await house.reopen()
        sizes.append(path.stat().st_size)
    assert max(sizes[1:]) <= sizes[0] * 1.5


# Without a clean end


CRASH = """
import asyncio, os, sys
from nusku.metrics import Metrics
from nusku.model import Draft, QueueKey, QueueRef
from nusku.storage import StoreOptions, open_store

async def main():
    store = await open_store(sys.argv[1], lambda: 1_700_000_000_000, StoreOptions(), Metrics())
    ref = QueueRef(QueueKey("queue", "p1", "orders"), "00000000000000ff", 1)
    await store.messages.open(ref, (await store.messages.admit(ref)).seal)
    await store.messages.add([(ref, [Draft(b"%d" % n, 600) for n in range(10)])])
    got = await store.messages.claim(ref, 2, 300, 60)
    await store.messages.pop(ref, 1)
    print(got.claim)
    sys.stdout.flush()
    os._exit(9)

asyncio.run(main())
"""


async def test_what_was_answered_is_there_after_a_process_died(path: Path, uri: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CRASH, uri, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 9
    claim = output.decode().strip()
    house = House(uri)
    await house.open()
    ref = (await house.queue("other"))._replace(generation="00000000000000ff")
    ref = ref._replace(key=ref.key._replace(name="orders"))
    found = await house.messages.claimed(ref, claim)
    assert found is not None
    assert bodies(found.messages) == ["0", "1"]
    assert await house.free(ref) == [str(n) for n in range(3, 10)]
    again, _ = await house.hold(ref)
    assert again != claim
    await house.close()


async def test_a_copy_without_the_log_of_an_open_store_is_detected(
    house: House, path: Path, tmp_path: Path
) -> None:
    ref = await house.queue()
    await house.post(ref, "acknowledged")
    copy = tmp_path / "copy.db"
    shutil.copy(path, copy)
    why = await refusal(copy)
    assert str(copy) in why
    assert "-wal" in why


async def test_a_copy_with_an_empty_log_of_an_open_store_is_detected(
    house: House, path: Path, tmp_path: Path
) -> None:
    ref = await house.queue()
    await house.post(ref, "acknowledged")
    copy = tmp_path / "copy.db"
    shutil.copy(path, copy)
    Path(f"{copy}-wal").touch()
    assert "-wal" in await refusal(copy)


async def test_a_copy_with_the_log_has_everything(house: House, path: Path, tmp_path: Path) -> None:
    ref = await house.queue()
    await house.post(ref, "acknowledged")
    copy = tmp_path / "copy.db"
    shutil.copy(path, copy)
    shutil.copy(f"{path}-wal", f"{copy}-wal")
    other = House(f"sqlite:///{copy}")
    await other.open()
    assert await other.free(ref) == ["acknowledged"]
    await other.close()


async def test_a_copy_of_a_closed_store_needs_no_log(
    house: House, path: Path, tmp_path: Path
) -> None:
    ref = await house.queue()
    await house.post(ref, "acknowledged")
    await house.close()
    copy = tmp_path / "copy.db"
    shutil.copy(path, copy)
    other = House(f"sqlite:///{copy}")
    await other.open()
    assert await other.free(ref) == ["acknowledged"]
    await other.close()


async def test_closing_leaves_no_log_behind(house: House, path: Path) -> None:
    await house.post(await house.queue(), "a")
    await house.close()
    wal = Path(f"{path}-wal")
    assert not wal.exists() or wal.stat().st_size == 0


# Copies that are made on purpose


def anonymous(messages: Sequence[Message]) -> list[Message]:
    """The messages without the names of the claims that hold them."""
    return [replace(m, claim=None if m.claim is None else "held") for m in messages]


async def test_a_backup_beside_an_open_store_is_equal_to_it(
    house: House, uri: str, tmp_path: Path
) -> None:
    ref, other = await house.queue("a"), await house.queue("b")
    await house.post(ref, *map(str, range(30)), dedup=None, attributes=b"x")
    claim, _ = await house.hold(ref, 5, ttl_s=600)
    await house.messages.release(ref, claim, 90, [1])
    await house.post(other, "b", delay_s=60, dedup="k")
    await house.records.insert(Record("queue", "p1", "a", b"{}"))
    target = tmp_path / "backup.db"
    posting = asyncio.create_task(house.post(other, *["later"] * 50))
    await asyncio.to_thread(backup_store, uri, target)
    await posting
    copy = House(f"sqlite:///{target}")
    copy.clock.now_ms = house.clock()
    await copy.open()
    assert anonymous(await copy.all(ref)) == anonymous(await house.all(ref))
    assert await copy.numbers(ref) == await house.numbers(ref) == (25, 4, 1)
    assert len(await copy.all(other)) in {1, 51}
    assert await copy.records.get("queue", "p1", "a") == await house.records.get("queue", "p1", "a")
    await copy.messages.pop(ref, 9)
    await house.post(ref, "both go on")
    await copy.close()


async def test_a_backup_keeps_messages_held_but_takes_no_claim_of_the_original_for_its_own(
    house: House, uri: str, tmp_path: Path
) -> None:
    ref = await house.queue()
    given = await house.post(ref, *"abcdef")
    before, _ = await house.hold(ref, 2, ttl_s=60)
    await asyncio.to_thread(backup_store, uri, tmp_path / "backup.db")
    copy = House(f"sqlite:///{tmp_path}/backup.db")
    await copy.open()
    await house.reopen()
    after, _ = await house.hold(ref, 2, ttl_s=60)
    theirs, _ = await copy.hold(ref, 2, ttl_s=60)
    assert theirs not in {before, after}
    for claim in (before, after):
        assert not await copy.messages.release(ref, claim)
        answers = await copy.messages.remove(ref, given[:4], Removal.HELD, [claim])
        assert answers == [Removed.CLAIM_UNKNOWN] * 4
    assert await copy.numbers(ref) == (2, 4, 0)
    copy.clock.turn(60)
    assert await copy.free(ref) == [*"abcdef"]
    await copy.close()


async def test_a_backup_holds_every_earlier_post_and_none_of_the_earlier_deleted(
    house: House, uri: str, tmp_path: Path
) -> None:
    ref = await house.queue()
    given = await house.post(ref, "a", "b", "c")
    await house.messages.remove(ref, given[1:2], Removal.ANY)
    await asyncio.to_thread(backup_store, uri, tmp_path / "backup.db")
    await house.post(ref, "after")
    copy = House(f"sqlite:///{tmp_path}/backup.db")
    await copy.open()
    assert await copy.free(ref) == ["a", "c"]
    await copy.close()


async def test_a_backup_of_a_closed_store_is_equal_to_it(
    house: House, uri: str, tmp_path: Path
) -> None:
    ref = await house.queue()
    await house.post(ref, "a")
    await house.close()
    backup_store(uri, tmp_path / "backup.db")
    copy = House(f"sqlite:///{tmp_path}/backup.db")
    await copy.open()
    assert await copy.free(ref) == ["a"]
    await copy.close()


async def test_a_backup_never_overwrites(house: House, uri: str, tmp_path: Path) -> None:
    target = tmp_path / "backup.db"
    target.write_text("precious")
    with pytest.raises(StoreRefused, match="exists") as refused:
        await asyncio.to_thread(backup_store, uri, target)
    assert str(target) in str(refused.value)
    assert target.read_text() == "precious"


async def test_a_backup_to_nowhere_is_refused_and_leaves_nothing(
    house: House, uri: str, tmp_path: Path
) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StoreRefused):
        await asyncio.to_thread(backup_store, uri, tmp_path / "missing" / "backup.db")
    assert sorted(tmp_path.iterdir()) == before


def test_a_backup_of_nothing_is_refused_and_makes_nothing(uri: str, tmp_path: Path) -> None:
    with pytest.raises(StoreRefused):
        backup_store(uri, tmp_path / "backup.db")
    assert list(tmp_path.iterdir()) == []


async def test_the_store_is_described_in_one_line_also_while_it_is_open(
    house: House, uri: str, path: Path
) -> None:
    ref = await house.queue()
    await house.post(ref, "a", "b", "c")
    await house.post(await house.queue(kind="notice"), "told to nobody")
    open_line = await asyncio.to_thread(inspect_store, uri)
    assert "\n" not in open_line
    for word in (str(path), f"version {schema.VERSION}", "1 queue", " 3 messages"):
        assert word in open_line
    await house.close()
    before = path.read_bytes()
    line = inspect_store(uri)
    assert "3 messages" in line
    assert path.read_bytes() == before


def test_describing_a_store_that_is_not_there_makes_none(uri: str, tmp_path: Path) -> None:
    assert "not there" in inspect_store(uri)
    assert list(tmp_path.iterdir()) == []


# A full disk


@pytest.fixture
def full(uri: str, house: House) -> House:
    """A second house on the same file, for when the disk has less room than the watermark."""
    return House(uri, StoreOptions(synchronous="normal", disk_watermark_bytes=1 << 62))


async def test_below_the_watermark_nothing_new_is_stored_and_all_else_goes_on(
    house: House, full: House
) -> None:
    ref = await house.queue()
    given = await house.post(ref, *"abcdef")
    await house.records.insert(Record("queue", "p1", "orders", b"1"))
    await house.close()
    await full.open()
    with pytest.raises(StoreFull):
        await full.post(ref, "new")
    with pytest.raises(StoreFull):
        await full.messages.add([(ref, [Draft(b"new", 60)])])
    with pytest.raises(StoreFull):
        await full.records.insert(Record("queue", "p1", "new", b""))
    with pytest.raises(StoreFull):
        await full.records.insert(Record("queue", "p1", "new", b"", unique="x"), 60)
    assert positions(await full.messages.page(ref, 0, 9)) == given
    claim, held = await full.hold(ref, 2)
    assert await full.messages.renew(ref, claim, 90, 60)
    await full.messages.remove(ref, held[:1], Removal.HELD, [claim])
    assert await full.messages.release(ref, claim)
    assert bodies(await full.messages.pop(ref, 1)) == ["b"]
    claim, held = await full.hold(ref, 1)
    assert await full.messages.move(ref, held, await full.queue("dead"), 60, {}, claim)
    assert await full.records.update(Record("queue", "p1", "orders", b"2", 2))
    assert await full.records.update(Record("queue", "p1", "orders", b"3", 3, unique="x"), 60)
    assert await full.records.delete("queue", "p1", "orders")
    assert await full.numbers(ref) == (3, 0, 0)
    await full.messages.clear(ref)
    full.clock.turn(100_000)
    await full.messages.expire(100)
    await full.messages.drop(ref)
    await full.close()


async def test_storing_goes_on_when_the_disk_has_room_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.close()
    house.options = StoreOptions(disk_watermark_bytes=1 << 20)
    room = [1 << 30]

    class Room:
        f_frsize = 1

        @property
        def f_bavail(self) -> int:
            return room[0]

    monkeypatch.setattr(os, "statvfs", lambda _: Room())
    await house.open()
    ref = await house.queue()
    await house.post(ref, "before")
    room[0] = (1 << 20) - 1
    house.clock.turn(1)
    with pytest.raises(StoreFull):
        await house.post(ref, "refused")
    room[0] = 1 << 20
    house.clock.turn(1)
    await house.post(ref, "after")
    assert await house.free(ref) == ["before", "after"]


# What it promises, and what it keeps of others


@pytest.mark.parametrize("synchronous", ["full", "normal"])
async def test_it_says_what_its_answers_are_worth(uri: str, synchronous: str) -> None:
    house = House(uri, StoreOptions(synchronous=synchronous))
    await house.open()
    store = house.store
    assert not store.shared
    assert "power cut" in store.guarantee
    assert store.guarantee.endswith(".")
    missing = set(CAPABILITIES) - set(store.capabilities)
    assert missing == (set() if synchronous == "full" else {"DURABILITY"})
    assert [one for one in CAPABILITIES if one not in missing] == list(store.capabilities)
    await house.close()


async def test_ids_of_claims_of_other_stores_are_forgotten_when_these_are_over(
    house: House, path: Path
) -> None:
    now, ref = house.clock(), await house.queue()
    held = [
        Stored(n, now, 999, now + 999_000, 0, "", b"x", None, None, now + 60_000 + 1000 * n,
               f"{n:032x}", 60 + n, now)
        for n in range(1, 301)
    ]  # fmt: skip
    await house.messages.load(ref, 400, 0, 399, held)
    assert await house.messages.claimed(ref, f"{7:032x}") is not None

    def known() -> int:
        db = sqlite3.connect(path)
        (number,) = db.execute("SELECT count(*) FROM foreign_claims").fetchone()
        db.close()
        return int(number)

    assert known() == 300
    await house.messages.release(ref, f"{7:032x}")
    await house.messages.remove(ref, [8], Removal.HELD, [f"{8:032x}"])
    for _ in range(8):
        await house.messages.expire(100)
    assert known() == 298
    house.clock.turn(200)
    while await house.messages.expire(50):
        pass
    for _ in range(8):
        await house.messages.expire(50)
    assert known() == 160
    assert await house.messages.claimed(ref, f"{150:032x}") is not None
    house.clock.turn(200)
    for _ in range(20):
        await house.messages.expire(100)
    assert known() == 0
    assert await house.numbers(ref) == (299, 0, 0)
