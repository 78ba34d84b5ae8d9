"""The same load on one queue, on ten, on very many: what a queue costs, and what it serialises."""

from benchmarks.loads import ONE_AT_A_TIME
from benchmarks.report import Result
from benchmarks.rig import QUEUE_NUMBERS, Rig
from benchmarks.turns import Side, against, in_turns


async def queues(rig: Rig) -> Result:
    """Connections go from queue to queue; those of all sides hold about equally much together."""
    result = Result("queues")
    for name, load in ONE_AT_A_TIME.items():
        sides: dict[int, Side] = {}
        for count in rig.sizes.queues:
            made = [await rig.new_queue(room=QUEUE_NUMBERS // count) for _ in range(count)]
            sides[count] = Side(f"{name}-q{count}", load(rig, made))
        result.rows += await in_turns(list(sides.values()), rig.sizes)
        first, *more = sides.items()
        for count, side in more:
            what = f"{name}, {count:,} queues against {first[0]}, messages/s"
            result.ratios[what] = against(side, first[1])
    return result
