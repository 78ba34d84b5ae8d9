"""F-05: the disk fills up, then there is room again. The server is not restarted in between."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import ClassVar

from tests.chaos.harness.nemesis.base import VolumeNemesis
from tests.chaos.harness.stage import Stage
from tests.chaos.harness.volumes import Volume

MIB = 1 << 20
WATERMARK = 16 * MIB


class Ballast:
    """A file that takes up the room."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._file = volume.path / "ballast"

    def fill(self, leave: int) -> None:
        """Leave only so many bytes free."""
        with self._file.open("ab", buffering=0) as file:
            while (room := self._volume.free() - leave) > 0:
                try:
                    file.write(bytes(min(room, MIB)))
                except OSError:
                    break

    def relieve(self) -> None:
        self._file.unlink(missing_ok=True)


class DiskFull(VolumeNemesis):
    name = "diskfull"
    settings: ClassVar[Mapping[str, str]] = {"NUSKU_DISK_WATERMARK": str(WATERMARK)}
    most_unknown = 0.9  # 503 is one
    planted = "optimist"
    mib = 64

    async def strike(self, stage: Stage) -> str:
        pid = stage.server.pid
        full = stage.rng.random() < 0.5
        Ballast(self.volume).fill(0 if full else WATERMARK // 2)
        await asyncio.sleep(2.0)
        Ballast(self.volume).relieve()
        if not stage.server.running() or stage.server.pid != pid:
            stage.complaints.append("the server did not survive a full disk")
            stage.dead()
            await stage.start()
        return "full disk" if full else "below the watermark"

    async def end(self, stage: Stage) -> None:
        Ballast(self.volume).relieve()
