"""What every nemesis is, and the one that does nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from tests.chaos.harness import volumes
from tests.chaos.harness.places import PLACES, STORES, Place, embedded
from tests.chaos.harness.report import Verdict
from tests.chaos.harness.servers import PLANTED
from tests.chaos.harness.stage import Plan, Stage


class Nemesis:
    """Something that goes wrong, again and again."""

    name: ClassVar[str]
    stores: ClassVar[Collection[str]] = ("sqlite",)  # of which it can be a nemesis
    settings: ClassVar[Mapping[str, str]] = {}  # NUSKU_*
    most_unknown: ClassVar[float] = 0.2  # share of outcomes, beyond which a run proves nothing
    planted: ClassVar[str] = ""  # the fault of `planted.py` that servers of its control have

    @staticmethod
    def why_not() -> str:
        """Why this machine cannot do it; empty if it can."""
        return ""

    @contextlib.contextmanager
    def place(self, folder: Path) -> Iterator[Path]:
        """Where an SQLite file is kept."""
        data = folder / "data"
        data.mkdir()
        yield data

    @contextlib.contextmanager
    def store(self, folder: Path, plan: Plan) -> Iterator[Place]:
        """The store of a run, there for as long as the run is."""
        if plan.store == "sqlite":
            with self.place(folder) as data:
                yield embedded(data)
        else:
            with PLACES[plan.store](plan) as place:
                yield place

    def plant(self, plan: Plan, place: Place) -> None:
        """Give the servers of a control their fault."""
        if self.planted and not plan.safe:
            place.settings[PLANTED] = self.planted

    @classmethod
    def shown(cls, verdict: Verdict) -> bool:
        """Whether a control has failed as it must."""
        return verdict.lost

    async def begin(self, stage: Stage) -> None:
        """Before the load."""

    async def strike(self, stage: Stage) -> str:
        """Do it once; says what was done, or nothing if it did not come about."""
        return ""

    async def end(self, stage: Stage) -> None:
        """Undo what is still in force."""

    def inspect(self, place: Place) -> list[str]:
        """Complaints about the store, once the servers have ended."""
        return []


class Nothing(Nemesis):
    """The run without faults."""

    name = "none"
    stores = STORES


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
