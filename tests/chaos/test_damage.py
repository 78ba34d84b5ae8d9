"""F-07: a damaged, foreign or read-only file is refused, or its right data served, or an error.

Never a changed body with 200.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.harness.client import Client
from tests.chaos.harness.history import OK, Op
from tests.chaos.harness.servers import RefusedError, Server
from tests.chaos.harness.volumes import Volume

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

Q = "project/jobs"
STORED = 400  # messages
BODIES = b'"sum":'  # what is in each, and followed by digits


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a server that stored some messages and was stopped; all is in one file."""
    folder = tmp_path_factory.mktemp("stopped")
    with Server(folder / "nusku.db", folder) as server:
        fill(server)
        assert server.stop() == 0
    assert not (folder / "nusku.db-wal").exists(), "a clean stop left a write-ahead log"
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a server that was killed; the newest is in the write-ahead log only."""
    folder = tmp_path_factory.mktemp("killed")
    with Server(folder / "nusku.db", folder) as server:
        fill(server)
        server.kill()
    assert (folder / "nusku.db-wal").stat().st_size
    return folder


def fill(server: Server) -> None:
    server.start()
    posts = [Op("post", q=Q, p="producer", n=n, size=20, ttl=3600) for n in range(0, STORED, 20)]
    assert {op.out for op in _do(server, *posts)} == {OK}


def _bit(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def _body(file: Path, rng: random.Random) -> None:
    """A digit in the middle of a body: what only a checksum can notice."""
    content = bytearray(file.read_bytes())
    places = [i for i in range(len(content)) if content.startswith(BODIES, i)]
    content[rng.choice(places) + len(BODIES) + 2] ^= 1
    file.write_bytes(content)


def _schema(file: Path, rng: random.Random) -> None:
    """A letter of a table's definition that is no letter any more."""
    content = bytearray(file.read_bytes())
    at = content.index(b"CREATE TABLE") + rng.randrange(60)
    content[at] ^= 0x80
    file.write_bytes(content)


def _many_bits(file: Path, rng: random.Random) -> None:
    for _ in range(50):
        _bit(file, rng)


def _cut_off(file: Path, rng: random.Random) -> None:
    os.truncate(file, rng.randrange(1, file.stat().st_size))


def _cut_at_a_page(file: Path, rng: random.Random) -> None:
    os.truncate(file, rng.randrange(1, file.stat().st_size // 4096) * 4096)


def _zeroed_page(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    at = rng.randrange(1, len(content) // 4096) * 4096
    content[at : at + 4096] = bytes(4096)
    file.write_bytes(content)


DAMAGES: list[Callable[[Path, random.Random], None]] = [
    _bit,
    _body,
    _schema,
    _many_bits,
    _cut_off,
    _cut_at_a_page,
    _zeroed_page,
]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_never_yields_a_changed_body(
    damage: Callable[[Path, random.Random], None], seed: int, stopped: Path, tmp_path: Path
) -> None:
    shutil.copytree(stopped, tmp_path / "copy")
    damage(tmp_path / "copy" / "nusku.db", random.Random(seed))
    is_right_or_refused(Server(tmp_path / "copy" / "nusku.db", tmp_path))


@pytest.mark.parametrize("damage", [_body, _many_bits, _cut_off])
def test_a_damaged_log_never_yields_a_changed_body(
    damage: Callable[[Path, random.Random], None], killed: Path, tmp_path: Path
) -> None:
    shutil.copytree(killed, tmp_path / "copy")
    damage(tmp_path / "copy" / "nusku.db-wal", random.Random(3))
    is_right_or_refused(Server(tmp_path / "copy" / "nusku.db", tmp_path))


def test_a_foreign_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "text.db"
    text.write_text("This is no database.\n" * 500)
    other = tmp_path / "other.db"
    database = sqlite3.connect(other)
    database.execute("CREATE TABLE invoices (number INTEGER)")
    database.commit()
    database.close()
    for file in (text, other):
        before = file.read_bytes()
        with pytest.raises(RefusedError) as refused:
            Server(file, tmp_path).start()
        _is_clear(refused.value)
        assert file.read_bytes() == before


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(RefusedError) as refused:
        Server(tmp_path / "folder", tmp_path).start()
    _is_clear(refused.value)


@pytest.mark.root
def test_a_read_only_disk_is_refused(stopped: Path, volume: Volume, tmp_path: Path) -> None:
    shutil.copy(stopped / "nusku.db", volume.path / "nusku.db")
    volume.unmount()
    volume.mount("ro")
    with pytest.raises(RefusedError) as refused:
        Server(volume.path / "nusku.db", tmp_path).start()
    _is_clear(refused.value)


def is_right_or_refused(server: Server, *, indexed: bool = True) -> list[Op]:
    """Start it on what was damaged; what it was asked, if it was not refused.

    Not `indexed`: the store has no checksum over what says where a message is.
    """
    with server:
        try:
            server.start()
        except RefusedError as refused:
            _is_clear(refused)
            return []
        done = walk(server)
        for op in done:
            assert all(p for _, p, _ in op.got), f"a changed body was served: {op}"
            numbers = [n for _, _, n in op.got]
            assert not indexed or numbers == sorted(set(numbers))
            # Damage that is met while running is an error of the server's, not the client's.
            assert op.out == OK or op.status >= 500 or not op.status, op
        return done


def _is_clear(refused: RefusedError) -> None:
    assert refused.code == 2
    lines = refused.stderr.splitlines()
    assert len(lines) == 1, refused.stderr
    assert lines[0].startswith("nusku: ")


def walk(server: Server) -> list[Op]:
    """Page through everything, then claim it: two ways to every body."""

    async def walk() -> list[Op]:
        client = Client(server, "reader", run=1, deadline=5)
        done: list[Op] = []
        marker = ""
        for _ in range(STORED // 10):
            page = await client.perform(
                Op("list", q=Q, limit=20, marker=marker, every=True, walk="w")
            )
            done.append(page)
            if not page.got:
                break
            marker = page.got[-1][0]
        for _ in range(STORED // 10):
            claim = await client.perform(Op("claim", q=Q, ttl=60, grace=0, limit=20))
            done.append(claim)
            if not claim.got:
                break
        client.close()
        return done

    return asyncio.run(walk())


def _do(server: Server, *ops: Op) -> list[Op]:
    async def work() -> list[Op]:
        client = Client(server, "tester", run=1)
        done = [await client.perform(op) for op in ops]
        client.close()
        return done

    return asyncio.run(work())
