"""What the store keeps of messages that have passed through: room taken, over time."""

import itertools
import time

from benchmarks import asking
from benchmarks.generator import MakeScript, Run, Script
from benchmarks.report import Result
from benchmarks.rig import Rig
from benchmarks.wire import WrongAnswerError
from benchmarks.work_queue import WorkQueue

STEPS = 10
PART = 100_000
"""Messages of a run, which has its time."""
POSTED = 10
"""Messages a post."""
CLAIMED = 20
"""Messages a claim; they are deleted with one request."""
BACKLOG_MAX = 2000


async def churn(rig: Rig) -> Result:
    """So many messages through one queue, by posts of 10, claims of 20 and deletes; ten looks at the store."""
    if rig.store is None:
        return Result("churn", skipped="the store is not ours to look at")
    result = Result("churn")
    queue = await rig.new_queue(room=rig.sizes.churned + POSTED * len(rig.connections))
    queue.ordered = False
    done, cpu_s, store_cpu_s = Run(), rig.server_cpu_s(), rig.store_cpu_s()
    for step in range(1, STEPS + 1):
        goal, look = rig.sizes.churned * step // STEPS, Run()
        while queue.ledger.posted < goal:
            look.add(await rig.drive(_party(rig, queue, min(queue.ledger.posted + PART, goal))))
        done.add(look)
        state = {
            "passed": float(queue.ledger.deleted),
            "messages/s": look.messages / look.duration_s,
        }
        result.states.append(state | await asking.space_of(rig.store.uri))
    cpu_s, store_cpu_s = rig.server_cpu_s() - cpu_s, rig.store_cpu_s() - store_cpu_s
    result.rows.append(rig.row("churn", done, cpu_s, [], [], store_cpu_s))
    if queue.ledger.deleted != queue.ledger.posted:
        raise WrongAnswerError(f"{queue.ledger.posted - queue.ledger.deleted} never came back")
    await rig.check_counts(queue, claimed=0)
    await rig.do(queue.drop())
    return result


def _party(rig: Rig, queue: WorkQueue, goal: int) -> MakeScript:
    """Half the connections post until `goal` were posted in all, half take until none is left."""
    numbering = itertools.count()
    return lambda run: (
        _consumer(rig, queue, run, goal) if next(numbering) % 2 else _producer(queue, run, goal)
    )


def _producer(queue: WorkQueue, run: Run, goal: int) -> Script:
    ledger = queue.ledger
    while not run.over and (left := goal - (ledger.end - ledger.first)) > 0:
        if ledger.posted - ledger.claimed > BACKLOG_MAX:
            yield 0.001
        else:
            yield from queue.post(min(left, POSTED))


def _consumer(rig: Rig, queue: WorkQueue, run: Run, goal: int) -> Script:
    request = queue.claim_request(CLAIMED)
    while not run.over and queue.ledger.claimed < goal:
        started = time.perf_counter()
        messages = yield from queue.claim(request, CLAIMED, len(rig.connections))
        if messages:
            yield from queue.delete(messages)
            run.done(started, len(messages))
        else:
            yield 0.005
