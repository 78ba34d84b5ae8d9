"""F-08: every sync takes long. No answer may come before it."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from tests.chaos.harness import tracing
from tests.chaos.harness.history import OK
from tests.chaos.harness.nemesis.base import Nemesis
from tests.chaos.harness.report import Verdict
from tests.chaos.harness.stage import Stage

DELAY = 0.4  # s
LASTS = 2.0  # s


class SlowDisk(Nemesis):
    name = "slowdisk"

    @staticmethod
    def why_not() -> str:
        return tracing.why_not()

    @classmethod
    def shown(cls, verdict: Verdict) -> bool:
        """Somebody was told before the sync had ended."""
        return any("before its sync had ended" in text for text in verdict.complaints)

    async def strike(self, stage: Stage) -> str:
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "strace"
            fault = f"delay_exit={round(DELAY * 1e6)}"
            injection = tracing.Injection(
                stage.server.pid, tracing.SYNC, fault, report, stage.server.store
            )
            await asyncio.to_thread(injection.__enter__)
            begin = time.monotonic()
            await asyncio.sleep(LASTS)
            end = time.monotonic()
            await asyncio.to_thread(injection.__exit__)
            syncs = injection.count()
        await asyncio.sleep(DELAY)
        posts = [
            op
            for op in stage.history.ops
            if op.f == "post" and op.out == OK and begin < op.t0 and op.t1 < end
        ]
        for op in posts:
            if op.t1 - op.t0 < DELAY * 0.9:
                stage.complaints.append(
                    f"a post was acknowledged in {op.t1 - op.t0:.3f} s, before its sync had ended"
                )
                break
        # Without a post it has shown nothing, as on a machine that is slow itself.
        return f"{syncs} slow syncs, {len(posts)} posts" if posts else ""
