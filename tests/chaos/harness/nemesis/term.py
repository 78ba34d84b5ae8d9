"""F-02: a clean stop while requests keep coming; of several nodes each in turn."""

from __future__ import annotations

import asyncio
import time

from tests.chaos.harness.client import Connection, NotSentError, UnknownError
from tests.chaos.harness.history import INFO
from tests.chaos.harness.nemesis.base import Nemesis
from tests.chaos.harness.places import STORES
from tests.chaos.harness.report import Verdict
from tests.chaos.harness.servers import Server
from tests.chaos.harness.stage import Stage

WAITERS = 3  # for messages that do not come
HEADERS = {"Client-ID": "9f8c1e52-7a0b-4d8e-9b57-1d3a5a0c4a11", "X-Project-ID": "nobody"}

# A request this young may not have been read yet when the signal came.
GRACE = 0.1  # s


class Term(Nemesis):
    name = "term"
    stores = STORES
    planted = "ends-abruptly"

    async def strike(self, stage: Stage) -> str:
        return await stop_in_turn(stage)

    @classmethod
    def shown(cls, verdict: Verdict) -> bool:
        """Somebody waited in vain for an answer."""
        return any("got no answer at SIGTERM" in text for text in verdict.complaints)


async def stop_in_turn(stage: Stage) -> str:
    """Stop a node and start it again."""
    node = stage.nodes[stage.strikes % len(stage.nodes)]
    waiters = [asyncio.create_task(_wait(stage, node)) for _ in range(WAITERS)]
    await asyncio.sleep(2 * GRACE)
    lost = _lost_on_the_way(stage)
    asked = time.monotonic()
    node.terminate()
    code = await asyncio.to_thread(node.wait, 12.0)
    took = time.monotonic() - asked
    if code is None:
        stage.complaints.append(f"{node.name} was still there 12 s after SIGTERM")
        await stage.kill(node)
    elif code != 0:
        stage.complaints.append(f"SIGTERM ended {node.name} with exit code {code}")
    await asyncio.gather(*waiters)
    for op in reversed(stage.history.ops):
        if op.t1 < asked:
            break
        if _lost_on_the_way(stage) != lost:
            break  # somebody else may have had the answers
        its = op.node in {"", node.name}
        if its and op.out == INFO and not op.status and op.t0 < asked - GRACE:
            stage.complaints.append(f"a {op.f} got no answer at SIGTERM: {op.note}")
    if len(stage.nodes) == 1:
        stage.dead()
    await stage.start(node)
    return f"{node.name}: clean stop in {took:.2f} s"


async def _wait(stage: Stage, node: Server) -> None:
    """Wait for a message; a stop ends that with an answer."""
    connection = Connection(node, stage.plan.deadline)
    try:
        await connection.request("POST", "/v2/queues/empty/claims?wait=20", HEADERS, b"{}")
    except NotSentError:
        pass
    except UnknownError as error:
        stage.complaints.append(f"who waited got no answer at SIGTERM: {error}")
    finally:
        connection.close()


def _lost_on_the_way(stage: Stage) -> int:
    """Replies that a proxy in front of the node has dropped."""
    return getattr(stage.target, "lost", 0)
