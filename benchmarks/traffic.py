"""The scenarios of steady traffic: ping, post, claim and delete, list, and both sides at once."""

import itertools
import time

from benchmarks.generator import Run, Script
from benchmarks.report import Result
from benchmarks.rig import Rig
from benchmarks.wire import WrongAnswerError
from benchmarks.work_queue import WorkQueue, check_numbers

LIST_MESSAGES = 1000
PAGE = 10
BACKLOG_MAX = 2000
"""Producers of the mix pause while this many messages are unclaimed."""


async def ping(rig: Rig) -> Result:
    """`GET /v2/ping`: what the server does for a request that does nothing."""
    await rig.ping_rate()
    row, _ = await rig.measure("ping", rig.ping_script, rig.sizes.seconds)
    return Result("ping", [row])


async def post1(rig: Rig) -> Result:
    return await _post(rig, "post1", 1)


async def post10(rig: Rig) -> Result:
    return await _post(rig, "post10", 10)


async def _post(rig: Rig, name: str, batch: int) -> Result:
    """Every connection posts `batch` messages a request. At the end: the total, and each connection's last message."""
    queue = await rig.new_queue()
    last: dict[int, tuple[str, int]] = {}
    numbering = itertools.count()

    def producer(run: Run) -> Script:
        producer_number = next(numbering)
        while not run.over:
            started = time.perf_counter()
            numbers = queue.ledger.take(batch)
            hrefs = yield from queue.post(batch, numbers)
            run.done(started, batch)
            last[producer_number] = hrefs[-1], numbers[-1]

    await rig.drive(producer, rig.sizes.seconds / 5)
    row, _ = await rig.measure(name, producer, rig.sizes.seconds)
    await rig.check_counts(queue, claimed=0)
    for href, number in last.values():
        await rig.do(queue.check_kept(href, number))
    await rig.do(queue.drop())
    return Result(name, [row])


async def cycle1(rig: Rig) -> Result:
    return await _cycle(rig, "cycle1", 1)


async def cycle10(rig: Rig) -> Result:
    return await _cycle(rig, "cycle10", 10)


async def _cycle(rig: Rig, name: str, batch: int) -> Result:
    """Every connection claims `batch` messages and deletes them with their claim; a cycle is two requests.

    The messages stand ready, posted in the order of their numbers, so each connection must see rising numbers.
    """
    queue = await rig.new_queue()
    request = queue.claim_request(batch)

    def consumer(run: Run) -> Script:
        seen = 0
        while not run.over:
            started = time.perf_counter()
            messages = yield from queue.claim(request, batch, len(rig.connections))
            if not messages:
                run.stop()
                return
            if messages[0].body.number <= seen:
                raise WrongAnswerError(f"claim: message {messages[0].body.number} after {seen}")
            seen = messages[-1].body.number
            yield from queue.delete(messages)
            run.done(started, len(messages))

    seconds = rig.sizes.seconds
    await rig.fill(queue, batch * 2000)
    warm = await rig.drive(consumer, seconds / 5)
    stock = int(warm.messages / warm.duration_s * seconds * 2) + batch * len(rig.connections)
    await rig.fill(queue, max(stock - (queue.ledger.posted - queue.ledger.claimed), 1))
    row, run = await rig.measure(name, consumer, seconds)
    await rig.check_counts(queue, claimed=0)
    queue.ledger.check_no_gap()
    await rig.do(queue.drop())
    facts = (
        {"all was claimed early, after s": run.duration_s} if run.duration_s < seconds * 0.9 else {}
    )
    return Result(name, [row], facts)


async def list_pages(rig: Rig) -> Result:
    """Every connection walks through the queue along the links, a page of 10 at a time, again and again."""
    queue = await rig.new_queue()
    await rig.fill(queue, LIST_MESSAGES)

    def reader(run: Run) -> Script:
        path, expected = f"{queue.path}/messages?limit={PAGE}", queue.ledger.first
        while not run.over:
            started = time.perf_counter()
            page = yield from queue.page(path)
            expected = check_numbers(page, expected)
            if page.messages:
                if len(page.links) != 1 or page.links[0].rel != "next":
                    raise WrongAnswerError(f"list: links {page.links}")
                path = page.links[0].href
            elif expected != queue.ledger.end or page.links:
                raise WrongAnswerError(f"list: ended before message {expected}, links {page.links}")
            else:
                path, expected = f"{queue.path}/messages?limit={PAGE}", queue.ledger.first
            run.done(started, len(page.messages))

    await rig.drive(reader, rig.sizes.seconds / 5)
    row, _ = await rig.measure("list", reader, rig.sizes.seconds)
    await rig.check_counts(queue, claimed=0)
    await rig.do(queue.drop())
    return Result("list", [row])


async def mix(rig: Rig) -> Result:
    """Half the connections post one at a time, half claim and delete one; what is counted went the whole way."""
    queue = await rig.new_queue()
    queue.ordered = False
    request = queue.claim_request(1)

    producing = itertools.cycle((False, True))

    def party(run: Run) -> Script:
        if next(producing):
            return _producer(queue, run)
        return _consumer(queue, request, run, len(rig.connections))

    await rig.drive(party, rig.sizes.seconds / 5)
    row, _ = await rig.measure("mix", party, rig.sizes.seconds)
    await _drain(rig, queue)
    return Result("mix", [row])


def _producer(queue: WorkQueue, run: Run) -> Script:
    ledger = queue.ledger
    while not run.over:
        if ledger.posted - ledger.claimed > BACKLOG_MAX:
            yield 0.001
        else:
            yield from queue.post(1)


def _consumer(queue: WorkQueue, request: bytes, run: Run, rivals: int) -> Script:
    while not run.over:
        started = time.perf_counter()
        messages = yield from queue.claim(request, 1, rivals)
        if messages:
            yield from queue.delete(messages)
            run.done(started, 1)
        else:
            yield 0.002


async def _drain(rig: Rig, queue: WorkQueue) -> None:
    """Claim and delete what is left: every message that was posted must have come, and the queue must be empty."""
    request = queue.claim_request(20)
    while True:
        claimed = await rig.do(queue.claim(request, 20))
        if not claimed:
            break
        await rig.do(queue.delete(claimed))
    if queue.ledger.posted != queue.ledger.deleted:
        raise WrongAnswerError(
            f"{queue.ledger.posted} messages were posted, {queue.ledger.deleted} came back"
        )
    await rig.check_counts(queue, claimed=0)
    await rig.do(queue.drop())
