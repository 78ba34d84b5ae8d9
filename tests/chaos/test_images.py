"""F-04: whatever part of its unsynced writes a power cut leaves, nothing acknowledged is lost.

A server is recorded while it works; then disks are made up from the recording as cuts at many
moments could have left them: without the pending writes, with some, with torn ones, with all.
"""

from __future__ import annotations

import asyncio
import collections
import random
from collections.abc import Collection
from pathlib import Path

import pytest

from tests.chaos.harness import recording as recorder
from tests.chaos.harness.client import Client
from tests.chaos.harness.history import OK, Op
from tests.chaos.harness.images import (
    ACKNOWLEDGED,
    GONE,
    LEAVING,
    Keep,
    fault,
    images,
    moments,
    named,
    replayed,
)
from tests.chaos.harness.recording import Done, Kind, Recording
from tests.chaos.harness.servers import Server

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

Q = "project/jobs"
RUN = 1
STORE = "nusku.db"
PRODUCERS = 2
POSTS = 300  # of each producer in each of two sessions; the log is written back on the way
CUTS = 50  # at each, all four of `Keep` are tried
SERVED = 7  # every so many images are opened by nusku too, not by SQLite alone
FRESH = random.randrange(10**6)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reason := recorder.why_not():
        pytest.skip(reason)
    return recorder.build(tmp_path_factory.mktemp("recorder"))


@pytest.fixture(scope="module")
def recorded(library: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Done], Path]:
    """What a server did that syncs every commit, and the folder that it left."""
    folder = tmp_path_factory.mktemp("full")
    return record(library, folder, "full"), folder / "data"


def record(library: Path, folder: Path, synchronous: str) -> list[Done]:
    """Let a server work, stop it cleanly, start it again, let it work and kill it."""
    data = folder / "data"
    data.mkdir()
    with Recording(data, folder / "recording") as recording:
        settings = recording.settings(library) | {"NUSKU_SQLITE_SYNCHRONOUS": synchronous}
        with Server(data / STORE, folder, settings) as server:
            for session in ("first", "second"):
                server.start()
                asyncio.run(load(server, recording, session))
                if session == "first":
                    assert server.stop() == 0
            server.kill()
        return recording.read()


async def load(server: Server, recording: Recording, session: str) -> None:
    """Producers post, and a worker claims and deletes; each marks what it was promised."""

    async def produce(p: str) -> None:
        client = Client(server, p, RUN)
        for i in range(POSTS):
            op = await client.perform(Op("post", q=Q, p=p, n=2 * i, size=1 + i % 2, ttl=3600))
            assert op.out == OK
            for n in range(op.n, op.n + op.size):
                recording.mark(f"{ACKNOWLEDGED} {named(p, n)}")
        client.close()

    async def work() -> None:
        client = Client(server, f"worker-{session}", RUN)
        while not done.is_set():
            claim = await client.perform(Op("claim", q=Q, ttl=300, grace=60, limit=5))
            for id_, p, n in claim.got:
                recording.mark(f"{LEAVING} {named(p, n)}")
                op = Op("delete", q=Q, id=id_, cid=claim.cid)
                assert (await client.perform(op)).out == OK
                recording.mark(f"{GONE} {named(p, n)}")
            await asyncio.sleep(0.05)
        client.close()

    done = asyncio.Event()
    worker = asyncio.create_task(work())
    await asyncio.gather(*(produce(f"{session}-{i}") for i in range(PRODUCERS)))
    done.set()
    await worker


def first_mark(recording: list[Done]) -> int:
    return next(at for at, done in enumerate(recording) if done.kind is Kind.MARK)


def try_out(
    recording: list[Done], cuts: Collection[int], seed: int, target: Path, served: int
) -> tuple[int, list[str]]:
    """How many images were tried, and what was wrong with the bad ones."""
    target.mkdir()
    number, bad = 0, []
    for image in images(recording, cuts, seed, target):
        number += 1
        if wrong := fault(target / STORE, image.promise, RUN, serve=number % served == 0):
            bad.append(f"cut after {image.at} records, {image.keep.value} kept: {wrong}")
    return number, bad


def test_the_recording_is_complete(recorded: tuple[list[Done], Path]) -> None:
    """Replayed, it gives what is on the disk; and it has seen all that a store does."""
    recording, data = recorded
    folder = replayed(recording)
    kept = {path.name for path in data.iterdir() if path.suffix not in {".lock", ".key", ".db-shm"}}
    assert set(folder.files) == kept == {STORE, f"{STORE}-wal"}
    for name, file in folder.files.items():
        assert file.image(Keep.EVERYTHING, random.Random(1)) == (data / name).read_bytes()
    seen = collections.Counter((done.kind, done.name) for done in recording)
    assert seen[Kind.SYNC, f"{STORE}-wal"] > POSTS, f"posts were not synced: {seen}"
    assert seen[Kind.SYNC, STORE] > 4, "the log was not written back while posts came in"
    assert seen[Kind.SYNC_FOLDER, ""] >= 2
    assert seen[Kind.UNLINK, f"{STORE}-wal"] == 1


def test_a_cut_while_the_store_is_made_leaves_one_that_can_be_opened(
    recorded: tuple[list[Done], Path], tmp_path: Path
) -> None:
    recording, _ = recorded
    cuts = range(first_mark(recording))
    number, bad = try_out(recording, cuts, 40, tmp_path / "image", served=1)
    assert not bad, "\n".join([f"{len(bad)} of {number} images are bad", *bad[:10]])


@pytest.mark.parametrize("seed", [41, pytest.param(FRESH, id=f"fresh-{FRESH}")])
def test_no_cut_loses_what_was_acknowledged(
    seed: int, recorded: tuple[list[Done], Path], tmp_path: Path
) -> None:
    recording, _ = recorded
    cuts = moments(recording, STORE, CUTS, first_mark(recording), seed)
    number, bad = try_out(recording, cuts, seed, tmp_path / "image", SERVED)
    assert number >= CUTS * len(Keep) * 0.8
    assert not bad, "\n".join([f"{len(bad)} of {number} images are bad", *bad[:10]])


def test_without_syncs_the_same_load_is_lost(library: Path, tmp_path: Path) -> None:
    """The control: were no image bad here, the good ones above would prove nothing."""
    recording = record(library, tmp_path, "normal")
    cuts = moments(recording, STORE, 20, first_mark(recording), 41)
    number, bad = try_out(recording, cuts, 41, tmp_path / "image", SERVED)
    assert len(bad) >= number / 10, f"{len(bad)} of {number} images are bad"
    assert any("acknowledged are lost" in wrong for wrong in bad)
