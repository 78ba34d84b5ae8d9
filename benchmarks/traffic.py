"""The scenarios of steady traffic: ping, post, claim and delete, list, and both sides at once."""

import time

from benchmarks.generator import Run, Script
from benchmarks.loads import Cycling, Load, Mixing, Posting
from benchmarks.report import Result
from benchmarks.rig import Rig
from benchmarks.wire import WrongAnswerError
from benchmarks.work_queue import check_numbers

LIST_MESSAGES = 1000
PAGE = 10
WARM_BATCHES = 2000
"""That stand ready for the warm-up."""


async def ping(rig: Rig) -> Result:
    """`GET /v2/ping`: what the server does for a request that does nothing."""
    await rig.ping_rate()
    row, _ = await rig.measure("ping", rig.ping_script, rig.sizes.seconds)
    return Result("ping", [row])


async def post1(rig: Rig) -> Result:
    return await _steady("post1", Posting(rig, [await rig.new_queue()]))


async def post10(rig: Rig) -> Result:
    return await _steady("post10", Posting(rig, [await rig.new_queue()], 10))


async def cycle1(rig: Rig) -> Result:
    return await _steady("cycle1", Cycling(rig, [await rig.new_queue()]))


async def cycle10(rig: Rig) -> Result:
    return await _steady("cycle10", Cycling(rig, [await rig.new_queue()], 10))


async def mix(rig: Rig) -> Result:
    return await _steady("mix", Mixing(rig, [await rig.new_queue()]))


async def _steady(name: str, load: Load) -> Result:
    """A warm-up of a fifth of the time, and the timed run."""
    rig, seconds = load.rig, load.rig.sizes.seconds
    await load.stock(load.batch * WARM_BATCHES)
    warm = await rig.drive(load.script, seconds / 5)
    rate = warm.messages / warm.duration_s
    await load.stock(int(rate * seconds * 2) + load.batch * len(rig.connections))
    row, run = await rig.measure(name, load.script, seconds)
    await load.finish()
    early = run.duration_s < seconds * 0.9
    return Result(name, [row], {"all was claimed early, after s": run.duration_s} if early else {})


async def list_pages(rig: Rig) -> Result:
    """Every connection walks through the queue along the links, a page of 10 at a time, again and again."""
    queue = await rig.new_queue()
    await rig.fill([queue], LIST_MESSAGES)

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
