"""What lies in stores and should not: rules D1 to D3, which no history shows, as no client sees it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.canaries import BODY
from tests.chaos.harness.checker import Violation
from tests.deterministic.store import Disk


def in_clear(disks: Iterable[Disk]) -> Iterator[Violation]:
    """D1, where all queues are encrypted."""
    for disk in disks:
        if any(BODY.encode() in part for part in disk.bodies()):
            yield Violation("D1", "a body lies in the store in clear", ())
            return


def of_subscriptions(disk: Disk, now_ms: int, *, strictly: bool) -> Iterator[Violation]:
    """D2, after everybody who looks for what was left has looked. An empty queue may be left where a
    node died, or a call failed, just after it had made that; if nothing did, none may.
    """
    there = {key: ends_ms for key, _, ends_ms in disk.documents("subscription")}
    lanes = disk.lanes("delivery", "failed")
    for lane in lanes:
        if lane.name not in there and (lane.total or strictly):
            what = f"a queue of {lane.name} with {lane.total} messages is left"
            yield Violation("D2", what, ())
    waiting = {lane.name for lane in lanes if lane.total}
    for name, ends_ms in there.items():
        if ends_ms is not None and ends_ms < now_ms and name not in waiting:
            yield Violation("D2", f"the subscription {name} has ended, and is there", ())


def of_pool(name: str, disk: Disk, *, copies: bool) -> Iterator[Violation]:
    """D3, of the store of one that was drained and deleted. A copy is left where the pool was
    deleted before it was known that its mover had died; nobody uses it.
    """
    held = [
        one.name
        for one in disk.lanes("queue", "topic", "notice")
        if one.total and (copies or not one.sealed)
    ]
    if held:
        yield Violation("D3", f"the pool {name} is gone and holds {', '.join(held)}", ())
