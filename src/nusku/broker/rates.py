"""How many requests a second each project may make.

A bucket for each project and node holds what may be asked at once, a second's worth, and fills at the
project's rate. Taking from it is all that a request costs. On several nodes each project's rate is
shared out: a node where a project asks for much says so on the project's *board*, a record in the
service's own store, once a second, and gets the part of the rate that its demand is of that of all.
So the sum is near the rate, not exactly that: in the first second of a rush, or where requests are
spread so thinly over nodes that none says anything, it may be more.
"""

import asyncio
import math
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

import msgspec
import structlog

from nusku.broker.limits import Limits
from nusku.errors import RateExceeded, Unavailable
from nusku.metrics import Metrics
from nusku.model import Record
from nusku.storage import Store

log = structlog.get_logger("nusku.quotas")

BOARD, KEY = "lease", "requests"  # kind and key of the record, in its project
PERIOD_S = 1.0
NOTABLE = 8  # a node that is asked for one part of so many of a rate says so
LEAST = 16  # and gets no less than one part of so many
LIFE_MS = 3_500  # what was said counts that long
TOGETHER = 50
LOGGED_S = 10.0  # between two lines in the log about a project that is over its rate
PROJECTS_MAX = 100_000  # who sends other names of projects all the time finds the oldest forgotten


class Demand(msgspec.Struct, frozen=True, array_like=True):
    """How often a node is asked by a project, each second, which counts until a time."""

    asked: float
    until_ms: int


class _Board(msgspec.Struct, frozen=True, omit_defaults=True):
    nodes: dict[str, Demand] = {}


class _Bucket:
    """What a project may ask of this node.

    It fills by ``rate`` a second, the part of the project's ``whole`` rate that is ours. ``asked``
    counts since the last period began; ``told`` says that the board speaks of us.
    """

    __slots__ = ("asked", "at_s", "left", "rate", "silent_until_s", "told", "whole")

    def __init__(self, whole: int, now_s: float) -> None:
        self.whole = whole
        self.rate = float(whole)
        self.left = float(whole)
        self.at_s = now_s
        self.asked = 0
        self.told = False
        self.silent_until_s = -math.inf

    def take(self, now_s: float) -> float:
        """Take one; else say after how many seconds there will be one."""
        self.asked += 1
        full = max(self.rate, 1.0)
        left = self.left + (now_s - self.at_s) * self.rate
        self.at_s = now_s
        self.left = left = min(left, full)
        if left < 1.0:
            return (1.0 - left) / self.rate
        self.left = left - 1.0
        return 0.0


class Rates:
    """Whether a project may make another request now. ``limited`` says whether any rate is."""

    def __init__(
        self,
        limits: Limits,
        own: Store,
        rng: random.Random,
        metrics: Metrics,
        clock_s: Callable[[], float],
    ) -> None:
        self._limits = limits
        self._records = own.records
        self._shared = own.shared
        self._node = f"{rng.getrandbits(64):016x}"
        self._metrics = metrics
        self._clock_s = clock_s
        self._buckets: dict[str, _Bucket] = {}
        self.limited = limits.any_rate
        limits.on_change.append(self._changed)

    def take(self, project: str) -> None:
        """Count a request. Raises RateExceeded."""
        bucket = self._buckets.get(project)
        if bucket is None:
            rate = self._limits.rate(project)
            if not rate:
                return
            if len(self._buckets) >= PROJECTS_MAX:
                del self._buckets[next(iter(self._buckets))]
            bucket = self._buckets[project] = _Bucket(rate, self._clock_s())
        now_s = self._clock_s()
        wait_s = bucket.take(now_s)
        if wait_s:
            self._metrics.limited["rate"] += 1
            if now_s >= bucket.silent_until_s:
                bucket.silent_until_s = now_s + LOGGED_S
                log.warning("a project is over its rate", project=project, rate=bucket.whole)
            raise RateExceeded(
                f"The project may make {bucket.whole} requests a second.", math.ceil(wait_s)
            )

    def _changed(self) -> None:
        self.limited = self._limits.any_rate
        for project, bucket in list(self._buckets.items()):
            if bucket.whole != self._limits.rate(project):
                del self._buckets[project]

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Share out the rates with other nodes meanwhile."""
        sharing = asyncio.get_running_loop().create_task(self._keep())
        try:
            yield
        finally:
            sharing.cancel()
            await asyncio.gather(sharing, return_exceptions=True)

    async def _keep(self) -> None:
        began_s = self._clock_s()
        while True:
            await asyncio.sleep(PERIOD_S)
            now_s = self._clock_s()
            await self.share(now_s - began_s)
            began_s = now_s

    async def share(self, seconds: float) -> None:
        """Say what was asked for since this was done last, so many seconds ago, and hear of others."""
        busy: list[tuple[str, float]] = []
        for project, bucket in list(self._buckets.items()):
            asked, bucket.asked = bucket.asked / seconds, 0
            if self._shared and (bucket.told or asked * NOTABLE >= bucket.whole):
                busy.append((project, asked))
            elif not asked and not bucket.told:
                del self._buckets[project]  # it is full again, or will be when it is made anew
        for start in range(0, len(busy), TOGETHER):
            some = busy[start : start + TOGETHER]
            await asyncio.gather(*(self._share(*one) for one in some))

    async def _share(self, project: str, asked: float) -> None:
        bucket = self._buckets.get(project)
        if bucket is None:
            return
        with suppress(Unavailable):  # the parts stay as they are
            others = await self._tell(project, asked)
            bucket.told = asked > 0
            part = asked / (asked + others) if others else 1.0
            bucket.rate = bucket.whole * max(part, 1 / LEAST)

    async def _tell(self, project: str, asked: float) -> float:
        """Write our demand onto the project's board; return that of the others."""
        while True:
            record = await self._records.get(BOARD, project, KEY)
            if record is None:
                await self._records.insert(
                    Record(BOARD, project, KEY, msgspec.json.encode(_Board()))
                )
                continue
            nodes = self._live(record)
            others = sum(one.asked for one in nodes.values())
            if asked:
                nodes[self._node] = Demand(round(asked, 1), record.read_ms + LIFE_MS)
            doc = msgspec.json.encode(_Board(nodes))
            if await self._records.update(
                msgspec.structs.replace(record, doc=doc, version=record.version + 1)
            ):
                return others

    def _live(self, record: Record) -> dict[str, Demand]:
        nodes: Mapping[str, Demand] = msgspec.json.decode(record.doc, type=_Board).nodes
        return {
            name: one
            for name, one in nodes.items()
            if name != self._node and one.until_ms > record.read_ms
        }
