"""Clocks that can be set: of a server of ours, or of the one that keeps its store.

`skew.c` adds an offset to the wall clock of a process, and of nothing else. What is measured by
steady clocks, time-outs for one, stays right.
"""

from __future__ import annotations

import functools
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.servers.postgres import Postgres
from tests.servers.process import new_folder
from tests.servers.redis import Redis

_SOURCE = Path(__file__).with_name("skew.c")
_NS = 10**9
_NUMBER = struct.Struct("=q")


class Clock:
    """The wall clock of whoever is started with `settings`."""

    def __init__(self, name: str) -> None:
        self._file = library().parent / f"{name}.offset"
        self.set(0)

    @property
    def settings(self) -> dict[str, str]:
        """The environment of a process that is to go by it."""
        return {"LD_PRELOAD": str(library()), "SKEW_FILE": str(self._file)}

    def set(self, seconds: float) -> None:
        """From now on it is so far ahead of the machine's; behind, if negative."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(_NUMBER.pack(round(seconds * _NS)))
        self._file.chmod(0o644)  # PostgreSQL does not run as root

    def command(self, words: Sequence[str | Path]) -> list[str | Path]:
        """The same command for a process that goes by it."""
        return ["env", *(f"{name}={value}" for name, value in self.settings.items()), *words]


class SkewedPostgres(Postgres):
    """Has a clock that can be set."""

    def __init__(self) -> None:
        super().__init__(durable=True)
        self.clock = Clock(f"postgres-{self.port}")

    def command(self) -> Sequence[str | Path]:
        return self.clock.command(super().command())


class SkewedRedis(Redis):
    """Has a clock that can be set."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock(f"redis-{self.port}")

    def command(self) -> Sequence[str | Path]:
        return self.clock.command(super().command())


@functools.cache
def library() -> Path:
    """The shim, compiled, in a folder that goes when this process does."""
    built = new_folder("skew") / "skew.so"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["gcc", *flags, "-o", built, _SOURCE, "-ldl"], check=True)
    return built


def why_not() -> str:
    """Why no clock can be set here; empty if it can."""
    return "" if shutil.which("gcc") else "needs gcc, to build the shim that sets clocks"
