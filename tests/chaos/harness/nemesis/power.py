"""F-03: the power goes; what the disk had not been made to keep is lost."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import tempfile
from pathlib import Path

from tests.chaos.harness.nemesis.base import VolumeNemesis
from tests.chaos.harness.places import Place
from tests.chaos.harness.stage import Stage


class Power(VolumeNemesis):
    name = "power"

    async def strike(self, stage: Stage) -> str:
        # Stopped first: an fsync that succeeds during the cut would look like a loss.
        await asyncio.to_thread(stage.server.freeze)
        self.volume.cut()
        await stage.kill()
        await asyncio.to_thread(self._power_on)
        stage.complaints += await asyncio.to_thread(self.inspect, stage.place)
        await stage.start()
        return "power cut"

    def _power_on(self) -> None:
        self.volume.unmount()
        self.volume.mount()

    def inspect(self, place: Place) -> list[str]:
        """Check a copy, so that the server finds the files as the cut left them."""
        with tempfile.TemporaryDirectory() as folder:
            for file in self.volume.path.glob("nusku.db*"):
                if not file.name.endswith("-shm"):
                    shutil.copy(file, folder)
            copy = sqlite3.connect(Path(folder) / "nusku.db")
            try:
                found = str(copy.execute("PRAGMA integrity_check").fetchone()[0])
            except sqlite3.DatabaseError as error:
                found = str(error)
            finally:
                copy.close()
        return [] if found == "ok" else [f"the file was damaged by a cut: {found}"]
