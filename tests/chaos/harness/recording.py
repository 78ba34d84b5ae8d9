"""Records what a server does to its files: builds `recorder.c`, marks and reads its log."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple, Self

_HEAD = struct.Struct("=IIQQ")
_SOURCE = Path(__file__).with_name("recorder.c")


class Kind(IntEnum):
    """What was done. All but MARK are written by the recorder, which has the same numbers."""

    WRITE = 1
    TRUNCATE = 2
    SYNC = 3
    SYNC_FOLDER = 4
    CREATE = 5
    RENAME = 6
    UNLINK = 7
    MARK = 8


class Done(NamedTuple):
    """One record: `number` is an offset or a size, `data` what was written, or the new name."""

    kind: Kind
    name: str
    number: int
    data: bytes


class Recording:
    """The log of what happens in a folder. Use as a context manager while marks are made."""

    def __init__(self, folder: Path, log: Path) -> None:
        self._folder = folder.resolve()
        self._log = log
        self._fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def settings(self, library: Path) -> dict[str, str]:
        """The environment of a process that is to be recorded."""
        return {
            "LD_PRELOAD": str(library),
            "RECORDER_FOLDER": str(self._folder),
            "RECORDER_LOG": str(self._log),
        }

    def mark(self, text: str) -> None:
        """Note it behind everything that has taken effect so far."""
        name = text.encode()
        os.write(self._fd, _HEAD.pack(Kind.MARK, len(name), 0, 0) + name)

    def read(self) -> list[Done]:
        return list(_records(self._log.read_bytes()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _records(log: bytes) -> Iterator[Done]:
    at = 0
    while at < len(log):
        kind, name_length, number, length = _HEAD.unpack_from(log, at)
        at += _HEAD.size
        name = log[at : at + name_length].decode()
        at += name_length
        yield Done(Kind(kind), name, number, log[at : at + length])
        at += length


def build(folder: Path) -> Path:
    """Compile the recorder into the folder."""
    library = folder / "recorder.so"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["gcc", *flags, "-o", library, _SOURCE, "-ldl", "-pthread"], check=True)
    return library


def why_not() -> str:
    """Why nothing can be recorded here; empty if it can."""
    return "" if shutil.which("gcc") else "needs gcc, to build the recorder"
