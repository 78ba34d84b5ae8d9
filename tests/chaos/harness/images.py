"""What a power cut could have left on the disk, worked out from a recording, and its trial.

The replayer keeps two things of each file: what is durable, because a sync followed it, and the
writes and truncations that are still pending. The same goes for the folder's entries. A cut at any
moment leaves what is durable plus any part of what is pending; `Keep` names the parts tried here.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from nusku.clock import steady_clock
from nusku.errors import NuskuError, StoreRefused
from nusku.metrics import Metrics
from nusku.model import QueueKey, QueueRef
from nusku.storage import Stale, StoreOptions, open_store
from tests.chaos.harness.history import read_encoded
from tests.chaos.harness.recording import Done, Kind

SECTOR = 512  # bytes that a disk writes all or nothing

ACKNOWLEDGED, LEAVING, GONE = "posted", "leaving", "gone"
"""Marks: the message's post was answered; its deletion is about to be sent; was answered."""


class Keep(Enum):
    """Which part of what is pending reached the disk."""

    NOTHING = "nothing"
    WRITES = "some writes"  # each with probability 1/2
    SECTORS = "some sectors"  # each sector of each write with probability 1/2
    EVERYTHING = "everything"


class Promise(NamedTuple):
    """What an image has to contain, and what it must not, as bodies name themselves."""

    there: frozenset[str]
    gone: frozenset[str]


@dataclass
class File:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[Done] = field(default_factory=list)

    def sync(self) -> None:
        for done in self.pending:
            _apply(self.durable, done)
        self.pending.clear()

    def image(self, keep: Keep, rng: random.Random) -> bytearray:
        content = self.durable.copy()
        for done in self.pending:
            if done.kind is Kind.WRITE and keep is Keep.SECTORS:
                for part in _sectors(done):
                    if rng.random() < 0.5:
                        _apply(content, part)
            elif _kept(keep, rng):
                _apply(content, done)
        return content


class Folder:
    """The files of one folder, as far as they have been recorded."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}  # what the running process sees
        self._durable: dict[str, File] = {}
        self._pending: list[tuple[Done, File]] = []  # changes of entries

    def do(self, done: Done) -> None:
        match done.kind:
            case Kind.WRITE | Kind.TRUNCATE:
                self.files[done.name].pending.append(done)
            case Kind.SYNC:
                self.files[done.name].sync()
            case Kind.SYNC_FOLDER:
                for change, file in self._pending:
                    _enter(self._durable, change, file)
                self._pending.clear()
            case Kind.CREATE:
                self._change(done, File())
            case Kind.RENAME | Kind.UNLINK:
                self._change(done, self.files[done.name])
            case Kind.MARK:
                pass

    def _change(self, done: Done, file: File) -> None:
        _enter(self.files, done, file)
        self._pending.append((done, file))

    def loose(self, name: str) -> bool:
        """Whether a cut now could leave different contents of this file, or different entries."""
        return bool(self._pending) or (name in self.files and bool(self.files[name].pending))

    def write(self, target: Path, keep: Keep, rng: random.Random) -> None:
        """Make an image in a folder; files of an earlier one are written over, which is cheaper."""
        entries = dict(self._durable)
        for change, file in self._pending:
            if _kept(keep, rng):
                _enter(entries, change, file)
        for old in target.iterdir():
            if old.name not in entries:
                old.unlink()
        for name, file in entries.items():
            fd = os.open(target / name, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                content = file.image(keep, rng)
                os.ftruncate(fd, len(content))
                os.write(fd, content)
            finally:
                os.close(fd)


class Image(NamedTuple):
    """One possible disk, for the caller to look at before the next is asked for."""

    at: int  # records before the cut
    keep: Keep
    promise: Promise


def moments(recording: Sequence[Done], store: str, number: int, after: int, seed: int) -> set[int]:
    """Some places in the recording behind `after`, to cut at.

    Half of them are such that more than the end of SQLite's log is at stake: the database file
    itself, or the folder's entries.
    """
    rng = random.Random(seed)
    folder = Folder()
    risky: list[int] = []
    for at, done in enumerate(recording):
        folder.do(done)
        if at > after and folder.loose(store):
            risky.append(at)
    some = rng.sample(range(after + 1, len(recording)), number - number // 2)
    return {*some, *rng.sample(risky, min(number // 2, len(risky)))}


def images(
    recording: Sequence[Done], cuts: Collection[int], seed: int, target: Path
) -> Iterator[Image]:
    """Every `Keep` for each cut, one after the other in the folder `target`."""
    rng = random.Random(seed)
    folder = Folder()
    marked: dict[str, set[str]] = {what: set() for what in (ACKNOWLEDGED, LEAVING, GONE)}
    for at, done in enumerate(recording):
        folder.do(done)
        if done.kind is Kind.MARK:
            what, _, message = done.name.partition(" ")
            marked[what].add(message)
        if at not in cuts:
            continue
        there = frozenset(marked[ACKNOWLEDGED] - marked[LEAVING])
        promise = Promise(there, frozenset(marked[GONE]))
        for keep in Keep:
            folder.write(target, keep, rng)
            yield Image(at, keep, promise)


def replayed(recording: Sequence[Done]) -> Folder:
    """The folder after all of it."""
    folder = Folder()
    for done in recording:
        folder.do(done)
    return folder


class Trial:
    """Looks at images of one run. Most bodies are in many of them, so names are remembered."""

    def __init__(self, run: int) -> None:
        self._run = run
        self._names: dict[bytes, str] = {}

    def fault(self, store: Path, promise: Promise, *, serve: bool) -> str:
        """What is wrong with an image; empty if nothing is. With `serve`, nusku opens it first."""
        try:
            if serve:
                seen = asyncio.run(_served(store))
                if wrong := self._broken(seen, promise):
                    return f"nusku: {wrong}"
            return self._broken(_read(store), promise)
        except (sqlite3.Error, NuskuError, StoreRefused) as error:
            return f"{type(error).__name__}: {error}"

    def _broken(self, bodies: Sequence[bytes], promise: Promise) -> str:
        names = self._names
        for body in bodies:
            if body not in names:
                names[body] = named(*read_encoded(self._run, body))
        seen = {names[body] for body in bodies}
        if len(seen) != len(bodies):
            return f"{len(bodies) - len(seen)} are there twice"
        if lost := promise.there - seen:
            return f"{len(lost)} of {len(promise.there)} acknowledged are lost"
        if back := promise.gone & seen:
            return f"{len(back)} of {len(promise.gone)} deleted are back"
        return ""


def _read(store: Path) -> list[bytes]:
    """All bodies, by SQLite alone, after it has found the database to be intact."""
    if not store.exists():
        return []
    # Who only reads does not write the log back in the end.
    with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True, isolation_level=None)) as db:
        (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'messages'").fetchone():
            return []
        return [body for (body,) in db.execute("SELECT body FROM messages")]


async def _served(store: Path) -> list[bytes]:
    """All bodies, by nusku."""
    options = StoreOptions(synchronous="normal")
    opened = await open_store(f"sqlite:///{store}", steady_clock(), options, Metrics())
    try:
        with closing(sqlite3.connect(store)) as db:
            lanes = db.execute(
                "SELECT kind, project, name, generation, version FROM lanes"
            ).fetchall()
        seen = []
        for kind, project, name, generation, version in lanes:
            ref = QueueRef(QueueKey(kind, project, name), generation, version)
            with suppress(Stale):  # one that was not opened yet holds nothing
                found = await opened.messages.page(ref, 0, 1 << 30, held=True, delayed=True)
                seen += [message.body for message in found.messages]
        return seen
    finally:
        await opened.close()


def named(p: str, n: int) -> str:
    """How marks name a message."""
    return f"{p}#{n}"


def _kept(keep: Keep, rng: random.Random) -> bool:
    return keep is Keep.EVERYTHING or (keep is not Keep.NOTHING and rng.random() < 0.5)


def _apply(content: bytearray, done: Done) -> None:
    end = done.number + len(done.data)
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    if done.kind is Kind.TRUNCATE:
        del content[done.number :]
    else:
        content[done.number : end] = done.data


def _sectors(done: Done) -> Iterator[Done]:
    start, end = done.number, done.number + len(done.data)
    while start < end:
        stop = min(end, (start // SECTOR + 1) * SECTOR)
        data = done.data[start - done.number : stop - done.number]
        yield done._replace(number=start, data=data)
        start = stop


def _enter(entries: dict[str, File], change: Done, file: File) -> None:
    """Apply a change of entries; what another change should have put there may be missing."""
    if change.kind is Kind.CREATE:
        entries[change.name] = file
    else:
        entries.pop(change.name, None)
        if change.kind is Kind.RENAME:
            entries[change.data.decode()] = file
