"""F-01: `kill -9` at a random moment."""

from __future__ import annotations

from tests.chaos.harness.nemesis.base import Nemesis
from tests.chaos.harness.stage import Stage


class Kill(Nemesis):
    name = "kill"

    async def strike(self, stage: Stage) -> str:
        before = stage.server.pid
        await stage.kill()
        await stage.start()
        return f"pid {before} killed, {stage.server.pid} started"
