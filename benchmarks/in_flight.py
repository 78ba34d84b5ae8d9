"""What a claim takes while none, many, and very many messages of the same queue are held by others."""

import statistics
import time

from benchmarks.generator import Run, Script
from benchmarks.messages import Message
from benchmarks.report import Result, Row, percentile_ms
from benchmarks.rig import LONG_TTL_S, Rig
from benchmarks.wire import WrongAnswerError
from benchmarks.work_queue import WorkQueue

CLAIM_TTL_S = 43_200
CLAIM_LIMIT = 20
ROUNDS = 8


async def claims(rig: Rig) -> Result:
    """p50 of a claim of 1 at each level of held messages, in turns with a queue where none is held.

    The queue holds equally many messages at all levels; only how many of them are claimed differs.
    The queue beside it shows how much of a difference between levels was the machine's mood.
    """
    result = Result("claims")
    queue = await rig.full_queue()
    beside = await rig.new_queue(LONG_TTL_S)
    await _sample(rig, queue)  # warm-up
    none_ms = 0.0
    for level in (0, *rig.sizes.in_flight):
        await _hold(rig, queue, level)
        row, against_beside = await _level(rig, queue, beside, f"claim-{level}")
        await rig.check_counts(queue, claimed=level)
        result.rows.append(row)
        if level == 0:
            none_ms = row.p50_ms
            continue
        against_none = row.p50_ms / none_ms
        result.facts[f"p50 with {level} in flight against none, earlier"] = against_none
        result.facts[f"p50 with {level} in flight against none, beside"] = against_beside
        result.facts["claim p50, all in flight against none"] = against_none
    await rig.check_counts(beside, claimed=0)
    await rig.do(beside.drop())
    await rig.do(queue.drop())
    return result


async def _hold(rig: Rig, queue: WorkQueue, level: int) -> None:
    """Bring the number of messages under live claims to `level`, a multiple of CLAIM_LIMIT."""
    missing = level - (queue.ledger.claimed - queue.ledger.deleted)
    free = queue.ledger.posted - queue.ledger.claimed
    await rig.fill([queue], max(missing - free, 0))
    request = queue.claim_request(CLAIM_LIMIT, ttl_s=CLAIM_TTL_S)
    left = missing

    def holder(run: Run) -> Script:
        nonlocal left
        while left > 0 and not run.over:
            left -= CLAIM_LIMIT
            messages = yield from queue.claim(request, CLAIM_LIMIT)
            if len(messages) != CLAIM_LIMIT:
                raise WrongAnswerError(f"claim: {len(messages)} messages instead of {CLAIM_LIMIT}")

    await rig.drive(holder)
    await rig.check_counts(queue, claimed=level)


async def _level(rig: Rig, queue: WorkQueue, beside: WorkQueue, name: str) -> tuple[Row, float]:
    """The row of one level, and its p50 against that of the queue beside: the median of the rounds."""
    held, cpu_s, store_cpu_s = Run(), 0.0, 0.0
    pings, ratios, against_beside = [await rig.ping_rate()], [], []
    if rig.server is not None:
        rig.server.reset_peak_memory()
    for _ in range(ROUNDS):
        part, part_cpu_s, part_store_cpu_s = await _sample(rig, queue)
        held.add(part)
        cpu_s += part_cpu_s
        store_cpu_s += part_store_cpu_s
        pings.append(await rig.ping_rate())
        ratios.append(part.requests / part.duration_s / statistics.mean(pings[-2:]))
        none, *_ = await _sample(rig, beside)
        against_beside.append(percentile_ms(part, 0.5) / percentile_ms(none, 0.5))
    row = rig.row(name, held, cpu_s, pings, ratios, store_cpu_s)
    return row, statistics.median(against_beside)


async def _sample(rig: Rig, queue: WorkQueue) -> tuple[Run, float, float]:
    """Time claims of 1 on extra messages, then delete these; also CPU seconds of server and store."""
    samples = rig.sizes.claim_samples
    await rig.fill([queue], samples)
    request = queue.claim_request(1, ttl_s=CLAIM_TTL_S)
    left = samples
    extra: list[Message] = []

    def claimer(run: Run) -> Script:
        nonlocal left
        while left > 0 and not run.over:
            left -= 1
            started = time.perf_counter()
            messages = yield from queue.claim(request, 1)
            if not messages:
                raise WrongAnswerError(
                    "claim: nothing to claim although extra messages were posted"
                )
            run.done(started, 1)
            extra.extend(messages)

    def cleaner(run: Run) -> Script:
        while extra and not run.over:
            yield from queue.delete([extra.pop()])

    cpu_s, store_cpu_s = rig.server_cpu_s(), rig.store_cpu_s()
    run = await rig.drive(claimer)
    cpu_s, store_cpu_s = rig.server_cpu_s() - cpu_s, rig.store_cpu_s() - store_cpu_s
    await rig.drive(cleaner)
    return run, cpu_s, store_cpu_s
