"""Three servers on one store: the load spread over them, and words that go from one to another."""

import asyncio

from benchmarks.generator import drive, open_connections
from benchmarks.loads import ONE_AT_A_TIME
from benchmarks.report import Result
from benchmarks.rig import Rig
from benchmarks.turns import Side, against, in_turns
from benchmarks.wakeup import SETTLE_S, Feed, feed_all

NODES = 3
ALONE = "needs servers of ours on a store that many can share"


async def nodes(rig: Rig) -> Result:
    """One queue through three nodes in turns with one node."""
    if rig.store is None or not rig.stores.shared:
        return Result("nodes", skipped=ALONE)
    result = Result("nodes")
    async with rig.another(nodes=NODES) as three:
        for name, load in ONE_AT_A_TIME.items():
            sides = [
                Side(f"{name}-n1", load(rig, [await rig.new_queue()])),
                Side(f"{name}-n{NODES}", load(three, [await three.new_queue()])),
            ]
            result.rows += await in_turns(sides, rig.sizes)
            result.ratios[f"{name}, {NODES} nodes against 1, messages/s"] = against(*sides[::-1])
    return result


async def wake_across(rig: Rig) -> Result:
    """Claims wait on one node, messages are posted on another: from the post to the answer."""
    if rig.store is None or not rig.stores.shared:
        return Result("wake-across", skipped=ALONE)
    async with rig.another() as there:
        queue = await rig.new_queue()
        waiters = await open_connections(there.targets, max(rig.sizes.waiters // 10, 2))
        feed = Feed(queue, rig.sizes.wake_ups)
        waiting = asyncio.ensure_future(drive(waiters, feed.waiter))
        try:
            await asyncio.sleep(SETTLE_S)
            cpu_s = rig.server_cpu_s() + there.server_cpu_s()
            posted = await feed_all(rig, feed)
            cpu_s = rig.server_cpu_s() + there.server_cpu_s() - cpu_s
        finally:
            for connection in waiters:
                connection.close()
            run = await waiting
        rig.errors += run.errors
        feed.check()
        run.duration_s, run.generator_cpu_s = posted.duration_s, posted.generator_cpu_s
        run.requests += posted.requests
        row = rig.row("wake-across", run, cpu_s, [], [])
        await rig.do(queue.drop())
    return Result(
        "wake-across",
        [row],
        {"wake-up across nodes, p50, ms": row.p50_ms, "wake-up across nodes, p99, ms": row.p99_ms},
    )
