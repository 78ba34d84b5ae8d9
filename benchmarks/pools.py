"""Queues on one pool against queues on several, as stores are, and behind slow commits."""

from collections.abc import Sequence
from dataclasses import replace

from benchmarks import asking, placing
from benchmarks.loads import ONE_AT_A_TIME, Posting
from benchmarks.report import TWO_POOLS, Result
from benchmarks.rig import Rig
from benchmarks.turns import Side, against, in_turns
from benchmarks.work_queue import WorkQueue

POOLS = 3
QUEUES = 12
SLOW_MS = 5
CLIENTS_SHARE = 4
"""Behind slow commits each pool has this part of all connections as its clients."""
NOT_OURS = "needs a server of ours on a kind of store that can be started"


async def pools(rig: Rig) -> Result:
    """The same connections on the same number of queues, on one pool and on three."""
    if rig.store is None or not rig.stores.private:
        return Result("pools", skipped=NOT_OURS)
    if not await placing.possible(rig):
        return Result("pools", skipped=placing.IMPOSSIBLE)
    result = Result("pools")
    stores = [await rig.stores.new(pool_of=rig.store) for _ in range(POOLS)]
    async with placing.pools(rig, stores) as flavors:
        for name, load in ONE_AT_A_TIME.items():
            one, three = [
                Side(f"{name}-p{count}", load(rig, await _queues(rig, flavors[:count])))
                for count in (1, POOLS)
            ]
            result.rows += await in_turns([one, three], rig.sizes)
            result.ratios[f"{name}, {POOLS} pools against 1, messages/s"] = against(three, one)
    return result


async def slow_commit(rig: Rig) -> Result:
    """Posts to pools whose every flush takes 5 ms longer.

    All that waits for a store shares its next commit. So clients that each wait for their answer
    get as much from one pool as from two, as long as they are as many: adding a pool does not make
    a commit shorter. What it must bring is that the clients of a second pool don't wait for the
    commits of the first: twice the clients on two pools, against one pool with its own. Clients are few, so
    that the commits are what bounds them, and not the processor.
    """
    if rig.store is None or not rig.stores.private:
        return Result("slow-commit", skipped=NOT_OURS)
    if not await placing.possible(rig):
        return Result("slow-commit", skipped=placing.IMPOSSIBLE)
    own = await rig.stores.new()
    stores = [await rig.stores.new(slow_ms=SLOW_MS, pool_of=own) for _ in range(2)]
    # An embedded store is slowed down in the server itself.
    own = replace(own, environment=stores[0].environment)
    clients = max(len(rig.connections) // CLIENTS_SHARE, 1)
    async with rig.another(own) as slow, placing.pools(slow, stores) as flavors:
        one, crowded, two = [
            Side(
                f"slow-p{count}-c{connections}",
                Posting(slow, await _queues(slow, flavors[:count])),
                connections,
            )
            for count, connections in ((1, clients), (1, 2 * clients), (2, 2 * clients))
        ]
        result = Result("slow-commit", await in_turns([one, crowded, two], rig.sizes))
    mode = await asking.mode_of(stores[0].uri, stores[0].settings)
    result.modes["pools"] = f"{mode}, and each flush of the disk takes {SLOW_MS} ms longer"
    result.ratios = {
        TWO_POOLS: against(two, one),
        f"2 pools against 1, the same {2 * clients} clients, messages/s": against(two, crowded),
    }
    return result


async def _queues(rig: Rig, flavors: Sequence[str]) -> list[WorkQueue]:
    """On the flavors in turns."""
    return [
        await placing.new_queue(rig, flavors[number % len(flavors)]) for number in range(QUEUES)
    ]
