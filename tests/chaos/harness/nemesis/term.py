"""F-02: a clean stop while requests keep coming."""

from __future__ import annotations

import asyncio
import time

from tests.chaos.harness.history import INFO
from tests.chaos.harness.nemesis.base import Nemesis
from tests.chaos.harness.stage import Stage

# A request this young may not have been read yet when the signal came.
GRACE = 0.1  # s


class Term(Nemesis):
    name = "term"

    async def strike(self, stage: Stage) -> str:
        asked = time.monotonic()
        stage.server.terminate()
        code = await asyncio.to_thread(stage.server.wait, 12.0)
        took = time.monotonic() - asked
        if code is None:
            stage.complaints.append("still there 12 s after SIGTERM")
            await stage.kill()
        elif code != 0:
            stage.complaints.append(f"SIGTERM ended it with exit code {code}")
        await asyncio.sleep(0.05)
        for op in reversed(stage.history.ops):
            if op.t1 < asked:
                break
            if op.out == INFO and op.t0 < asked - GRACE:
                stage.complaints.append(f"a {op.f} got no answer at SIGTERM: {op.note}")
        stage.dead()
        await stage.start()
        return f"clean stop in {took:.2f} s"
