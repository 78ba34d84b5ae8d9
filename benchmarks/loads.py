"""What all connections do in a run, on one queue or on many: post, claim and delete, or both at once."""

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

from benchmarks.generator import Run, Script
from benchmarks.rig import Rig
from benchmarks.wire import WrongAnswerError
from benchmarks.work_queue import WorkQueue

BACKLOG_MAX = 2000
"""Producers of the mix pause while this many messages are unclaimed."""


class Load(ABC):
    """Connections go from queue to queue, each beginning at another one."""

    def __init__(self, rig: Rig, queues: Sequence[WorkQueue], batch: int = 1) -> None:
        self.rig = rig
        self.queues = queues
        self.batch = batch
        self._numbering = itertools.count()

    async def stock(self, messages: int) -> None:  # noqa: B027 - those who post need none
        """Let at least so many messages be there to be claimed."""

    @abstractmethod
    def script(self, run: Run) -> Script:
        """That of one connection."""

    async def finish(self) -> None:
        """Check that nothing is lost, and delete the queues."""
        await self._check()
        for queue in self.queues:
            await self.rig.do(queue.drop())

    async def _check(self) -> None:
        for queue in self.queues:
            await self.rig.check_counts(queue, claimed=0)


class Posting(Load):
    """Every connection posts `batch` messages a request; at the end its last one is looked up."""

    def __init__(self, rig: Rig, queues: Sequence[WorkQueue], batch: int = 1) -> None:
        super().__init__(rig, queues, batch)
        self._last: dict[int, tuple[WorkQueue, str, int]] = {}

    def script(self, run: Run) -> Script:
        number = next(self._numbering)
        at = number
        batch, queues = self.batch, self.queues
        while not run.over:
            queue = queues[at % len(queues)]
            at += 1
            started = time.perf_counter()
            numbers = queue.ledger.take(batch)
            hrefs = yield from queue.post(batch, numbers)
            run.done(started, batch)
            self._last[number] = queue, hrefs[-1], numbers[-1]

    async def _check(self) -> None:
        await super()._check()
        for queue, href, number in self._last.values():
            await self.rig.do(queue.check_kept(href, number))


class Cycling(Load):
    """Every connection claims `batch` messages and deletes them with their claim; a cycle is two requests.

    The messages stand ready, posted in the order of their numbers, so each connection must see
    rising numbers in each queue. A run ends early when nothing is left to be claimed.
    """

    async def stock(self, messages: int) -> None:
        ready = sum(queue.ledger.posted - queue.ledger.claimed for queue in self.queues)
        if ready < messages:
            each = -((ready - messages) // len(self.queues))
            await self.rig.fill(self.queues, each)

    def script(self, run: Run) -> Script:
        at = next(self._numbering)
        batch, queues, rivals = self.batch, self.queues, len(self.rig.connections)
        request = [queue.claim_request(batch) for queue in queues]
        seen = [0] * len(queues)
        empty = 0
        while not run.over:
            at = (at + 1) % len(queues)
            queue = queues[at]
            started = time.perf_counter()
            messages = yield from queue.claim(request[at], batch, rivals)
            if not messages:
                empty += 1
                if empty == len(queues):
                    run.stop()
                continue
            empty = 0
            if messages[0].body.number <= seen[at]:
                raise WrongAnswerError(f"claim: message {messages[0].body.number} after {seen[at]}")
            seen[at] = messages[-1].body.number
            yield from queue.delete(messages)
            run.done(started, len(messages))

    async def _check(self) -> None:
        await super()._check()
        for queue in self.queues:
            queue.ledger.check_no_gap()


class Mixing(Load):
    """Half the connections post one at a time, half claim and delete one; counted is what went the whole way."""

    def __init__(self, rig: Rig, queues: Sequence[WorkQueue], batch: int = 1) -> None:
        super().__init__(rig, queues, batch)
        for queue in queues:
            queue.ordered = False

    def script(self, run: Run) -> Script:
        number = next(self._numbering)
        queue = self.queues[number // 2 % len(self.queues)]
        return self._consumer(queue, run) if number % 2 else self._producer(queue, run)

    def _producer(self, queue: WorkQueue, run: Run) -> Script:
        ledger = queue.ledger
        while not run.over:
            if ledger.posted - ledger.claimed > BACKLOG_MAX:
                yield 0.001
            else:
                yield from queue.post(self.batch)

    def _consumer(self, queue: WorkQueue, run: Run) -> Script:
        request, rivals = queue.claim_request(self.batch), len(self.rig.connections)
        while not run.over:
            started = time.perf_counter()
            messages = yield from queue.claim(request, self.batch, rivals)
            if messages:
                yield from queue.delete(messages)
                run.done(started, len(messages))
            else:
                yield 0.002

    async def _check(self) -> None:
        """Claim and delete what is left: every message that was posted must have come."""
        for queue in self.queues:
            request = queue.claim_request(20)
            while claimed := await self.rig.do(queue.claim(request, 20)):
                await self.rig.do(queue.delete(claimed))
            ledger = queue.ledger
            if ledger.posted != ledger.deleted:
                raise WrongAnswerError(
                    f"{ledger.posted} messages were posted, {ledger.deleted} came back"
                )
        await super()._check()


ONE_AT_A_TIME: dict[str, type[Load]] = {"post1": Posting, "cycle1": Cycling}
"""What set-ups are compared by."""
