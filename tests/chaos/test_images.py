"""F-04: whatever part of its unsynced writes a power cut leaves, nothing acknowledged is lost.

A server is recorded while it works; then disks are made up from the recording as cuts at many
moments could have left them: without the pending writes, with some, with torn ones, with all.
"""

from __future__ import annotations

import collections
import random
from pathlib import Path

import pytest

from tests.chaos.fresh import FRESH
from tests.chaos.harness import recording as recorder
from tests.chaos.harness.images import Keep, moments, replayed
from tests.chaos.harness.recorded import POSTS, STORE, Tried, first_mark, record, try_out
from tests.chaos.harness.recording import Done, Kind

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

CUTS = 50  # at each, all four of `Keep` are tried


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


def named_bad(tried: Tried) -> str:
    return "\n".join([f"{len(tried.bad)} of {tried.images} images are bad", *tried.bad[:10]])


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
    recorded: tuple[list[Done], Path],
) -> None:
    recording, _ = recorded
    tried = try_out(recording, range(first_mark(recording)), 40, served=1)
    assert not tried.bad, named_bad(tried)


@pytest.mark.parametrize("seed", [41, FRESH])
def test_no_cut_loses_what_was_acknowledged(seed: int, recorded: tuple[list[Done], Path]) -> None:
    recording, _ = recorded
    cuts = moments(recording, STORE, CUTS, first_mark(recording), seed)
    tried = try_out(recording, cuts, seed)
    assert tried.images >= CUTS * len(Keep) * 0.8
    assert not tried.bad, named_bad(tried)


def test_without_syncs_the_same_load_is_lost(library: Path, tmp_path: Path) -> None:
    """The control: were no image bad here, the good ones above would prove nothing."""
    recording = record(library, tmp_path, "normal")
    cuts = moments(recording, STORE, 20, first_mark(recording), 41)
    tried = try_out(recording, cuts, 41)
    assert len(tried.bad) >= tried.images / 10, named_bad(tried)
    assert tried.lost
