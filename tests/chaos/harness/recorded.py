"""Records a server at work, and tries out the disks that a power cut could have left behind it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.harness.client import Client
from tests.chaos.harness.history import OK, Op
from tests.chaos.harness.images import ACKNOWLEDGED, GONE, LEAVING, Trial, images, named
from tests.chaos.harness.recording import Done, Kind, Recording
from tests.chaos.harness.servers import Server

Q = "project/jobs"
RUN = 1
STORE = "nusku.db"
PRODUCERS = 2
POSTS = 300  # of each producer in each of two sessions; the log is written back on the way
SERVED = 7  # every so many images are opened by nusku too, not by SQLite alone
MEMORY = Path("/dev/shm")  # where images need no disk


@dataclass
class Tried:
    """What came of some images."""

    images: int = 0
    bad: list[str] = field(default_factory=list)
    lost: int = 0  # of the bad: those without something acknowledged


def record(library: Path, folder: Path, synchronous: str) -> list[Done]:
    """Let a server work, stop it cleanly, start it again, let it work and kill it."""
    data = folder / "data"
    data.mkdir(parents=True)
    with Recording(data, folder / "recording") as recording:
        settings = recording.settings(library) | {"NUSKU_SQLITE_SYNCHRONOUS": synchronous}
        with Server(data / STORE, folder, settings) as server:
            for session in ("first", "second"):
                server.start()
                asyncio.run(load(server, recording, session))
                if session == "first" and (code := server.stop()) != 0:
                    raise ValueError(f"a clean stop ended with {code}")
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


def first_mark(recording: Sequence[Done]) -> int:
    """Where the first promise is."""
    return next(at for at, done in enumerate(recording) if done.kind is Kind.MARK)


def try_out(
    recording: Sequence[Done], cuts: Collection[int], seed: int, served: int = SERVED
) -> Tried:
    """Make all images of these cuts, one at a time, and look at each."""
    tried = Tried()
    trial = Trial(RUN)
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        for image in images(recording, cuts, seed, Path(folder)):
            tried.images += 1
            serve = tried.images % served == 0
            if wrong := trial.fault(Path(folder) / STORE, image.promise, serve=serve):
                tried.bad.append(f"cut after {image.at} records, {image.keep.value} kept: {wrong}")
                tried.lost += "acknowledged are lost" in wrong
    return tried
