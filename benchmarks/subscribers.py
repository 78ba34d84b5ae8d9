"""What telling subscribers costs and takes: notifications/s, what a post feels of it, and who waits for whom."""

import asyncio
import statistics
import time
from dataclasses import dataclass, field

from benchmarks.generator import Connection, MakeScript, Run, Script
from benchmarks.listener import HANG, Listener
from benchmarks.report import Result, Row
from benchmarks.rig import Rig
from benchmarks.wire import WrongAnswerError
from benchmarks.work_queue import WorkQueue

LATE_S = 60.0
"""The time that notifications have to be heard when nobody posts any more."""
ROUNDS = 3
PAIRS = 12
"""Slices of a run with and without a subscriber: many short ones, as the machine's speed changes."""
HEALTHY = 20
HEALTHY_INTERVAL_S = 0.5
"""Between two posts to a queue with healthy and hanging endpoints."""
GENTLE_INTERVAL_S = 0.02
GENTLE_DELIVERIES_PER_S = 1000
"""What one client's posts cause at most; fewer posts where there are many subscribers."""
HEALTHY_STRETCH = 5
"""How much longer than another timed run: few posts, and attempts that hang take 15 s."""
HANGING_AFTER_S = 2.0
"""After the first post to hanging endpoints."""
QUIET_SHARE = 0.05
"""Of a core: a server that takes less has nothing left to do."""
QUIET_WITHIN_S = 60.0
REFUSED = "the server refuses subscribers on loopback"


async def notify(rig: Rig) -> Result:
    """How fast waiting deliveries reach one receiver: the clock runs from the first that it hears to the last."""
    async with Listener() as listener:
        queue = await rig.new_queue()
        subscription = await rig.do(queue.subscribe(listener.url("notify")))
        if subscription is None or not await rig.do(queue.pause(subscription)):
            return Result("notify", skipped=f"{REFUSED}, or cannot pause them")
        await _waiting(rig, queue, subscription, listener, rig.sizes.notifications // 10)
        run, cpu_s, pings, ratios = Run(), 0.0, [await rig.ping_rate()], []
        rates: list[float] = []
        for _ in range(ROUNDS):
            await rig.do(queue.pause(subscription))
            part, part_cpu_s = await _waiting(
                rig, queue, subscription, listener, rig.sizes.notifications
            )
            run.add(part)
            cpu_s += part_cpu_s
            pings.append(await rig.ping_rate())
            rates.append(part.requests / part.duration_s)
            ratios.append(rates[-1] / statistics.mean(pings[-2:]))
        await rig.do(queue.unsubscribe(subscription))
        await rig.do(queue.drop())
    row = rig.row("notify", run, cpu_s, pings, ratios)
    facts = {
        "receiver's CPU, part of a core": run.generator_cpu_s / run.duration_s,
        "notifications/s to one fast receiver": statistics.median(rates),
    }
    return Result("notify", [row], facts)


async def _waiting(
    rig: Rig, queue: WorkQueue, subscription: str, listener: Listener, count: int
) -> tuple[Run, float]:
    """Post so many for a paused subscription, resume it when all wait; what happened, and CPU of the server."""
    await rig.fill([queue], count)
    deadline = time.perf_counter() + LATE_S
    while True:
        pending = await rig.do(queue.pending(subscription))
        if pending == count:
            break
        if time.perf_counter() > deadline:
            raise WrongAnswerError(f"{pending} of {count} deliveries are pending")
        await asyncio.sleep(0.02)
    await _quiet(rig)
    listener_cpu_s = (await listener.wait("notify", 0, 0)).cpu_s
    cpu_s = rig.server_cpu_s()
    await rig.do(queue.resume(subscription))
    reply = await listener.wait("notify", count, LATE_S)
    cpu_s = rig.server_cpu_s() - cpu_s
    if reply.count < count:
        pending = await rig.do(queue.pending(subscription))
        raise WrongAnswerError(
            f"{reply.count} of {count} notifications within {LATE_S:g} s; {pending} are pending"
        )
    heard = await listener.take("notify", count, 0)
    if len(heard) > count:
        raise WrongAnswerError(f"{len(heard) - count} notifications came twice without a fault")
    run = Run(requests=count, messages=count, duration_s=heard[-1][2] - heard[0][2])
    run.generator_cpu_s = reply.cpu_s - listener_cpu_s
    return run, cpu_s


@dataclass(slots=True)
class _Side:
    """One of two queues that are posted to in turns."""

    queue: WorkQueue
    subscriptions: int
    run: Run = field(default_factory=Run)
    cpu_s: float = 0.0
    against_ping: list[float] = field(default_factory=list)
    heard_at_once: int = 0

    async def slice(self, rig: Rig, listener: Listener, seconds: float) -> float:
        """Post from all connections; requests/s. It ends when the subscriber has heard of all."""
        cpu_s = rig.server_cpu_s()
        part = await rig.drive(_posts(self.queue), seconds)
        self.cpu_s += rig.server_cpu_s() - cpu_s
        self.run.add(part)
        self.heard_at_once += (await listener.wait("subscribed", 0, 0)).count
        await listener.take("subscribed", part.messages * self.subscriptions, LATE_S)
        await _quiet(rig)
        return part.requests / part.duration_s


async def subscribed(rig: Rig) -> Result:
    """Posts of one message to a queue with a subscriber and to one without, in turns."""
    async with Listener() as listener:
        plain, told = _Side(await rig.new_queue(), 0), _Side(await rig.new_queue(), 1)
        subscriptions = await _subscribe(rig, told.queue, [listener.url("subscribed")])
        if subscriptions is None:
            return Result("subscribed", skipped=REFUSED)
        seconds = rig.sizes.seconds / 8
        for side in (plain, told):
            await side.slice(rig, listener, seconds)
            side.run, side.cpu_s, side.heard_at_once = Run(), 0.0, 0  # that was the warm-up
        pings, ratios = [await rig.ping_rate()], []
        for turn in range(PAIRS):
            rates = {}
            for side in (plain, told) if turn % 2 else (told, plain):
                rates[side.subscriptions] = await side.slice(rig, listener, seconds)
                pings.append(await rig.ping_rate())
                side.against_ping.append(rates[side.subscriptions] / statistics.mean(pings[-2:]))
            ratios.append(rates[1] / rates[0])
        result = Result("subscribed")
        for side in (plain, told):
            await rig.check_counts(side.queue, claimed=0)
            name = f"subscribed-{side.subscriptions}"
            result.rows.append(rig.row(name, side.run, side.cpu_s, pings, side.against_ping))
        await _leave(rig, told.queue, subscriptions)
        await _leave(rig, plain.queue, [])
    quarters = statistics.quantiles(ratios)
    result.facts = {
        "with 1 against none, lower quartile of pairs": quarters[0],
        "with 1 against none, upper quartile of pairs": quarters[2],
        "part heard while posts went on": told.heard_at_once / max(told.run.messages, 1),
        "post1 with 1 subscription against none, requests/s": statistics.median(ratios),
    }
    return result


def _posts(queue: WorkQueue) -> MakeScript:
    def producer(run: Run) -> Script:
        while not run.over:
            started = time.perf_counter()
            yield from queue.post(1)
            run.done(started, 1)

    return producer


async def latency(rig: Rig) -> Result:
    """What a post takes with 0, 1, … subscribers: from one client that takes its time, and from all connections."""
    result = Result("latency")
    p50s_ms: dict[str, float] = {}
    async with Listener() as listener:
        for count in (0, *rig.sizes.subscribers):
            queue = await rig.new_queue()
            subscriptions = await _subscribe(
                rig, queue, [listener.url("latency", n) for n in range(count)]
            )
            if subscriptions is None:
                return Result("latency", skipped=REFUSED)
            gentle = await _timed(
                rig, f"latency-{count}", _gentle(rig, queue, count), rig.connections[:1]
            )
            await listener.take("latency", count * rig.sizes.gentle_posts, LATE_S)
            busy = await _timed(
                rig,
                f"latency-{count} ×{len(rig.connections)}",
                _posts(queue),
                rig.connections,
                rig.sizes.seconds / 2,
            )
            result.rows += [gentle, busy]
            # What is still to be told would take minutes.
            await _leave(rig, queue, subscriptions)
            await listener.take("latency", 0, 0)
            for who, row in (("one client", gentle), ("all connections", busy)):
                if count:
                    result.facts[f"p50 with {count} more than with none, {who}, ms"] = (
                        row.p50_ms - p50s_ms[who]
                    )
                else:
                    p50s_ms[who] = row.p50_ms
    return result


def _gentle(rig: Rig, queue: WorkQueue, subscribers: int) -> MakeScript:
    interval_s = max(GENTLE_INTERVAL_S, subscribers / GENTLE_DELIVERIES_PER_S)

    def client(run: Run) -> Script:
        for _ in range(rig.sizes.gentle_posts):
            started = time.perf_counter()
            yield from queue.post(1)
            run.done(started, 1)
            yield interval_s

    return client


async def healthy(rig: Rig) -> Result:
    """How soon healthy endpoints hear of a post, by themselves and beside others of their queue that hang.

    The hanging ones subscribed first, so their deliveries are queued before those of the healthy.
    """
    result = Result("healthy")
    p99s_ms: list[float] = []
    async with Listener() as listener:
        for hanging in (0, rig.sizes.hanging):
            queue = await rig.new_queue()
            urls = [listener.url(HANG, n) for n in range(hanging)]
            urls += [listener.url("healthy", n) for n in range(HEALTHY)]
            subscriptions = await _subscribe(rig, queue, urls)
            if subscriptions is None:
                return Result("healthy", skipped=REFUSED)
            await rig.do(queue.post(1))
            await listener.take("healthy", HEALTHY, LATE_S)
            if hanging:
                await asyncio.sleep(HANGING_AFTER_S)
            row = await _heard(rig, queue, listener, f"healthy-{hanging}")
            result.rows.append(row)
            p99s_ms.append(row.p99_ms)
            await _leave(rig, queue, subscriptions)
    result.facts["p99 delivery beside hanging endpoints, more"] = (p99s_ms[1] - p99s_ms[0]) / 1000
    return result


async def _heard(rig: Rig, queue: WorkQueue, listener: Listener, name: str) -> Row:
    """Post now and then, whatever was heard until then; latencies are from post to receiver."""
    sent_at: dict[int, float] = {}

    def client(run: Run) -> Script:
        while not run.over:
            numbers = queue.ledger.take(1)
            sent_at[numbers[0]] = time.perf_counter()
            yield from queue.post(1, numbers)
            run.messages += HEALTHY
            yield HEALTHY_INTERVAL_S

    cpu_s = rig.server_cpu_s()
    run = await rig.drive(client, rig.sizes.seconds * HEALTHY_STRETCH, rig.connections[:1])
    cpu_s = rig.server_cpu_s() - cpu_s
    for _, number, moment in await listener.take("healthy", run.messages, LATE_S):
        run.latencies_s.append(moment - sent_at[number])
    return rig.row(name, run, cpu_s, [], [])


async def _timed(
    rig: Rig,
    name: str,
    script: MakeScript,
    connections: list[Connection],
    seconds: float | None = None,
) -> Row:
    """A run when the server has nothing else to do."""
    await _quiet(rig)
    cpu_s = rig.server_cpu_s()
    run = await rig.drive(script, seconds, connections)
    return rig.row(name, run, rig.server_cpu_s() - cpu_s, [], [])


async def _subscribe(rig: Rig, queue: WorkQueue, urls: list[str]) -> list[str] | None:
    """The paths of the subscriptions; None where the server refuses them."""
    subscriptions = []
    for url in urls:
        subscription = await rig.do(queue.subscribe(url))
        if subscription is None:
            return None
        subscriptions.append(subscription)
    return subscriptions


async def _leave(rig: Rig, queue: WorkQueue, subscriptions: list[str]) -> None:
    """End the subscriptions, and with them what is still to be told; then the queue."""
    for subscription in subscriptions:
        await rig.do(queue.unsubscribe(subscription))
    await rig.do(queue.drop())
    await _quiet(rig)


async def _quiet(rig: Rig) -> None:
    """Wait until the server has nothing left to do, where its process is ours."""
    if rig.server is None:
        return
    deadline = time.perf_counter() + QUIET_WITHIN_S
    while time.perf_counter() < deadline:
        cpu_s = rig.server_cpu_s()
        await asyncio.sleep(0.2)
        if rig.server_cpu_s() - cpu_s <= 0.2 * QUIET_SHARE:
            return
