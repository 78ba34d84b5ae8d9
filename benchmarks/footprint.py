"""What a full store costs: memory while serving it, and time until a new server answers from it."""

import asyncio
import time

from benchmarks.report import Result
from benchmarks.rig import FILL_BATCH, Rig
from benchmarks.wire import WrongAnswerError
from benchmarks.work_queue import WorkQueue, check_numbers, expect

SETTLE_S = 1.0
WARM_MESSAGES = 5 * FILL_BATCH
WALK_PAGES = 50
BURST_BATCHES = 20
"""Posts just before the kill, so that the next start finds work in the log."""


async def memory(rig: Rig) -> Result:
    """Resident memory with many messages stored, less that of the same process when it stored none."""
    if rig.server is None:
        return Result("memory", skipped="the process is not ours")
    scratch = await rig.new_queue()
    await rig.fill([scratch], WARM_MESSAGES)
    await _touch(rig, scratch)
    await rig.do(scratch.drop())
    await asyncio.sleep(SETTLE_S)
    rig.server.reset_peak_memory()
    empty_mib = rig.server.memory_mib()
    queue = await rig.full_queue()
    await _touch(rig, queue)
    await asyncio.sleep(SETTLE_S)
    now_mib, peak_mib = rig.server.memory_mib(), rig.server.peak_memory_mib()
    facts = {
        "messages stored": float(queue.ledger.posted - queue.ledger.deleted),
        "resident with an empty store, MiB": empty_mib,
        "resident with the messages, MiB": now_mib,
        "peak, MiB": peak_mib,
        "more now, MiB": now_mib - empty_mib,
        "memory, stored messages against an empty store": peak_mib - empty_mib,
    }
    return Result("memory", facts=facts)


async def start(rig: Rig) -> Result:
    """Time from exec to the first answer about stored messages: after a clean stop, and after a kill.

    Beside it an empty store, for what a start takes that has nothing to do with messages.
    """
    if rig.server is None:
        return Result("start", skipped="the process is not ours")
    queue = await rig.full_queue()
    result = Result("start")
    started = time.perf_counter()
    rig.disconnect()
    await rig.server.stop()
    result.facts["clean stop took, s"] = time.perf_counter() - started
    await _first_answers(rig, queue, "after a clean stop", result)
    for _ in range(BURST_BATCHES):
        await rig.do(queue.post(FILL_BATCH))
    await rig.server.kill()
    rig.disconnect()
    await _first_answers(rig, queue, "after kill -9", result)
    if rig.stores.private:
        await _first_answer_of_an_empty_one(rig, result)
    result.facts["first answer, stored messages"] = max(
        value for name, value in result.facts.items() if name.startswith("first ")
    )
    return result


async def _touch(rig: Rig, queue: WorkQueue) -> None:
    """A little of everything that reads."""
    path, expected = f"{queue.path}/messages?limit=20", queue.ledger.first + queue.ledger.deleted
    for _ in range(WALK_PAGES):
        page = await rig.do(queue.page(path))
        expected = check_numbers(page, expected)
        path = page.links[0].href
    request = queue.claim_request(10)
    for _ in range(WALK_PAGES):
        messages = await rig.do(queue.claim(request, 10))
        await rig.do(queue.delete(messages))


async def _first_answers(rig: Rig, queue: WorkQueue, when: str, result: Result) -> None:
    """Start the server, list and claim at once; then the store must hold exactly what was acknowledged."""
    assert rig.server is not None
    await rig.open()
    queue.aim_at(rig.target)
    page = await rig.do(queue.page(f"{queue.path}/messages?limit=10"))
    result.facts[f"first list {when}, s"] = time.perf_counter() - rig.server.started
    result.facts[f"CPU until then {when}, s"] = rig.server.cpu_s()
    check_numbers(page, queue.ledger.first + queue.ledger.deleted)
    messages = await rig.do(queue.claim(queue.claim_request(10), 10))
    result.facts[f"first claim {when}, s"] = time.perf_counter() - rig.server.started
    if len(page.messages) != 10 or [m.id for m in messages] != [m.id for m in page.messages]:
        raise WrongAnswerError(f"start {when}: the oldest messages are not the first to come")
    await rig.do(queue.delete(messages))
    await rig.check_counts(queue, claimed=0)


async def _first_answer_of_an_empty_one(rig: Rig, result: Result) -> None:
    async with rig.another(await rig.stores.new(), connections=1) as empty:
        assert empty.server is not None
        status, body = await empty.connections[0].ask(empty.target.request("GET", "/v2/queues"))
        result.facts["on an empty store, s"] = time.perf_counter() - empty.server.started
        result.facts["CPU until then on an empty store, s"] = empty.server.cpu_s()
        expect(status, 200, "list queues", body)
