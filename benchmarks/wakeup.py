"""How soon a waiting claim answers after a post, and what the waiters cost while nothing happens."""

import asyncio
import contextlib
import resource
import time

from benchmarks.generator import Run, Script, drive, open_connections
from benchmarks.report import Result
from benchmarks.rig import Rig
from benchmarks.wire import WrongAnswerError
from benchmarks.work_queue import WorkQueue

WAIT_S = 20
INTERVAL_S = 0.005
"""Between two posts."""
POSTERS = 8
"""Connections that take turns, so that a slow answer to one post does not hold up the next."""
SETTLE_S = 1.5
LATE_S = 10.0


class Feed:
    """Messages posted one by one to a queue on which many wait."""

    def __init__(self, queue: WorkQueue, count: int) -> None:
        self.sent_at: dict[int, float] = {}
        """When each message under way was posted, by its number."""
        self.all_woken = asyncio.Event()
        self._queue = queue
        self._count = count
        self._left = count
        self._next_at = 0.0
        self._request = queue.claim_request(1, wait_s=WAIT_S)

    def waiter(self, run: Run) -> Script:
        """Wait for a message, note how long it was under way, delete it, and wait again."""
        while not run.over:
            began = time.perf_counter()
            status, body = yield self._request
            arrived = time.perf_counter()
            if status == 204:
                if arrived - began < WAIT_S - 1:
                    raise WrongAnswerError(
                        f"a claim with wait={WAIT_S} came back empty after {arrived - began:.2f} s"
                    )
                continue
            messages = self._queue.claimed(status, body, 1)
            run.latencies_s.append(arrived - self.sent_at.pop(messages[0].body.number))
            run.messages += 1
            yield from self._queue.delete(messages)
            if run.messages == self._count:
                self.all_woken.set()

    def poster(self, run: Run) -> Script:
        """Post at fixed moments, whatever the answers do.

        A post that had to wait for a free connection counts from its planned moment.
        """
        while self._left > 0 and not run.over:
            self._left -= 1
            self._next_at = max(self._next_at, time.perf_counter() - 1) + INTERVAL_S
            planned = self._next_at
            pause_s = planned - time.perf_counter()
            if pause_s > 0:
                yield pause_s
            numbers = self._queue.ledger.take(1)
            self.sent_at[numbers[0]] = time.perf_counter() if pause_s > 0 else planned
            yield from self._queue.post(1, numbers)

    def begin(self) -> None:
        """The first post is due now."""
        self._next_at = time.perf_counter()

    def check(self) -> None:
        """Every message must have reached a waiter."""
        if self.sent_at:
            raise WrongAnswerError(f"{len(self.sent_at)} messages reached no waiter in {LATE_S} s")


async def feed_all(rig: Rig, feed: Feed) -> Run:
    """Post all there are over connections of the rig, and give the last one time to arrive."""
    feed.begin()
    posted = await rig.drive(feed.poster, connections=rig.connections[:POSTERS])
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(feed.all_woken.wait(), LATE_S)
    return posted


async def wake_up(rig: Rig) -> Result:
    """Waiting claims on one queue, first left alone, then fed one message at a time."""
    result = Result("wake-up")
    queue = await rig.new_queue()
    if not await _waits(rig, queue):
        result.skipped = "this server does not hold back a claim with wait="
        return result
    _raise_file_limit(rig.sizes.waiters + 200)
    waiters = await open_connections(rig.targets, rig.sizes.waiters)
    feed = Feed(queue, rig.sizes.wake_ups)
    waiting = asyncio.ensure_future(drive(waiters, feed.waiter))
    try:
        await asyncio.sleep(SETTLE_S)
        if rig.server is not None:
            idle_ms = await _idle_cpu_ms(rig)
            name = f"server CPU in {rig.sizes.idle_s:g} idle s, {rig.sizes.waiters} waiters, ms"
            result.facts[name] = idle_ms
            rig.server.reset_peak_memory()
        cpu_s = rig.server_cpu_s()
        posted = await feed_all(rig, feed)
        cpu_s = rig.server_cpu_s() - cpu_s
    finally:
        for connection in waiters:
            connection.close()  # in the middle of its wait
        run = await waiting
    rig.errors += run.errors
    feed.check()
    run.duration_s, run.generator_cpu_s = posted.duration_s, posted.generator_cpu_s
    run.requests += posted.requests
    row = rig.row("wake-up", run, cpu_s, [], [])
    result.rows.append(row)
    result.facts["wake-up p99"] = row.p99_ms
    await _nobody_left(rig, queue)
    await rig.do(queue.drop())
    return result


async def _waits(rig: Rig, queue: WorkQueue) -> bool:
    started = time.perf_counter()
    await rig.do(queue.claim(queue.claim_request(1, wait_s=1), 1))
    return time.perf_counter() - started > 0.8


async def _idle_cpu_ms(rig: Rig) -> float:
    cpu_s = rig.server_cpu_s()
    await asyncio.sleep(rig.sizes.idle_s)
    return (rig.server_cpu_s() - cpu_s) * 1000


async def _nobody_left(rig: Rig, queue: WorkQueue) -> None:
    """Waiters that hung up must claim nothing: what is posted now is all there to be claimed."""
    await asyncio.sleep(0.5)
    await rig.do(queue.post(20))
    messages = await rig.do(queue.claim(queue.claim_request(20), 20))
    if len(messages) != 20:
        raise WrongAnswerError(f"{20 - len(messages)} of 20 messages went to those who hung up")


def _raise_file_limit(needed: int) -> None:
    """Allow ourselves that many open files; the server has its own limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
