"""`nusku serve --workers N` over one store: what more processes bring."""

from contextlib import AsyncExitStack

from benchmarks.loads import ONE_AT_A_TIME, Load, Mixing
from benchmarks.report import Result
from benchmarks.rig import Rig
from benchmarks.turns import Side, against, in_turns

LOADS: dict[str, type[Load]] = {**ONE_AT_A_TIME, "mix": Mixing}


async def workers(rig: Rig) -> Result:
    """Servers of 1, 2 and 4 processes on one store, in turns, a queue each."""
    if rig.store is None or not rig.stores.shared:
        return Result("workers", skipped="needs a server of ours on a store that many can share")
    result = Result("workers")
    async with AsyncExitStack() as started:
        rigs = {
            count: await started.enter_async_context(rig.another(settings={"workers": str(count)}))
            for count in rig.sizes.workers
        }
        for name, load in LOADS.items():
            sides = {
                count: Side(f"{name}-w{count}", load(other, [await other.new_queue()]))
                for count, other in rigs.items()
            }
            result.rows += await in_turns(list(sides.values()), rig.sizes)
            first, *more = sides.items()
            for count, side in more:
                what = f"{name}, {count} processes against {first[0]}, messages/s"
                result.ratios[what] = against(side, first[1])
    return result
