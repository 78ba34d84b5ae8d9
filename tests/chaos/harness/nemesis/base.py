"""What every nemesis is: something that goes wrong, again and again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from tests.chaos.harness import volumes
from tests.chaos.harness.stage import Stage


class Nemesis:
    """Does nothing by itself: the run without faults."""

    name: ClassVar[str] = "none"
    settings: ClassVar[Mapping[str, str]] = {}  # NUSKU_*
    most_unknown: ClassVar[float] = 0.2  # share of outcomes, beyond which a run proves nothing

    @staticmethod
    def why_not() -> str:
        """Why this machine cannot do it; empty if it can."""
        return ""

    @contextlib.contextmanager
    def place(self, folder: Path) -> Iterator[Path]:
        """Where the server keeps its data."""
        data = folder / "data"
        data.mkdir()
        yield data

    async def begin(self, stage: Stage) -> None:
        """Before the load."""

    async def strike(self, stage: Stage) -> str:
        """Do it once; says what was done, or nothing if it did not come about."""
        return ""

    async def end(self, stage: Stage) -> None:
        """Undo what is still in force."""

    def inspect(self, data: Path) -> list[str]:
        """Complaints about the data, once the server has ended."""
        return []


class VolumeNemesis(Nemesis):
    """Keeps the data on a file system of its own."""

    mib: ClassVar[int] = 128
    volume: volumes.Volume

    @staticmethod
    def why_not() -> str:
        return volumes.why_not()

    @contextlib.contextmanager
    def place(self, folder: Path) -> Iterator[Path]:
        with volumes.Volume(folder, self.mib) as self.volume:
            yield self.volume.path
