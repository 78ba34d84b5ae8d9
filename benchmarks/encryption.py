"""The same load on a queue that is encrypted at rest and on one that is not."""

from benchmarks.loads import ONE_AT_A_TIME
from benchmarks.report import ENCRYPTED, Result
from benchmarks.rig import Rig
from benchmarks.turns import Side, against, in_turns

METADATA = {"clear": b"{}", "encrypted": b'{"_enable_encrypt_messages": true}'}


async def encrypted(rig: Rig) -> Result:
    """All connections on one queue each time."""
    result = Result("encrypted")
    for name, load in ONE_AT_A_TIME.items():
        clear, encrypted = [
            Side(f"{name}-{how}", load(rig, [await rig.new_queue(metadata=metadata)]))
            for how, metadata in METADATA.items()
        ]
        result.rows += await in_turns([clear, encrypted], rig.sizes)
        result.ratios[f"{name}, {ENCRYPTED}"] = against(encrypted, clear)
    return result
