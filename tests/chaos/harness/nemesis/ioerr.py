"""F-06: from some moment on, the disk answers every sync or write with an error.

Nobody in that batch may be told of success, the process must end by itself with a code other than
0, and the next start must find everything acknowledged: where volumes can be mounted the power is
cut before it, so that what was never synced is really gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.harness import tracing, volumes
from tests.chaos.harness.history import OK
from tests.chaos.harness.nemesis.base import Nemesis
from tests.chaos.harness.report import Verdict
from tests.chaos.harness.stage import Stage

FAULTS = (
    (tracing.SYNC, "EIO"),
    (tracing.SYNC, "ENOSPC"),
    (tracing.WRITE, "EIO"),
)
WRITES = {"post", "renew", "delete", "bulk"}  # an answer of success means that something was kept


class IOErrors(Nemesis):
    name = "ioerr"
    planted = "answers-early"
    volume: volumes.Volume | None = None

    @staticmethod
    def why_not() -> str:
        return tracing.why_not()

    @contextlib.contextmanager
    def place(self, folder: Path) -> Iterator[Path]:
        if volumes.why_not():
            with super().place(folder) as data:
                yield data
        else:
            with volumes.Volume(folder) as self.volume:
                yield self.volume.path

    @classmethod
    def shown(cls, verdict: Verdict) -> bool:
        """Told of success that did not come, or lost."""
        told = any("after the first error" in text for text in verdict.complaints)
        return told or verdict.lost

    async def strike(self, stage: Stage) -> str:
        calls, error = FAULTS[stage.strikes % len(FAULTS)]
        nth = stage.rng.randint(1, 20)
        server = stage.server
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "strace"
            fault = f"error={error}:when={nth}+"
            injection = tracing.Injection(server.pid, calls, fault, report, server.store)
            await asyncio.to_thread(injection.__enter__)
            code = await asyncio.to_thread(server.wait, 10.0)
            await asyncio.to_thread(injection.__exit__)
            await asyncio.sleep(0.05)
            first = injection.first()
        what = f"{error} from {calls} number {nth} on"
        if code is None:
            await stage.kill()
            stage.complaints.append(f"{what}: the server went on for 10 s")
        else:
            stage.dead()
        if code not in {None, 1}:
            stage.complaints.append(f"{what}: the server ended with exit code {code}")
        if first is not None:
            for op in stage.history.ops[-5000:]:
                if op.f in WRITES and op.out == OK and op.t0 > first:
                    stage.complaints.append(f"{what}: {op.f} succeeded after the first error")
                    break
        if self.volume is not None:
            self.volume.cut()
            await asyncio.to_thread(self.volume.unmount)
            await asyncio.to_thread(self.volume.mount)
        await stage.start()
        return what if first is not None else ""
