"""Those who subscribe and leave again, and what they have to hear.

The subscribers of `tests.chaos` are there from some time on until the end; R10 is judged of them
there. Each stay of a guest has an endpoint of its own. Who stays to the end is judged like those;
of the others, here:

* A guest hears of no post that was answered before it subscribed, and of none that was begun after
  it had left, or after its subscription had ended.
* One whose subscription ended by itself hears, or finds among what was given up, every message whose
  post was acknowledged while it lived.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from tests.chaos.harness.generator import LONG_TTL, RETRY_POLICY, Cast, Script
from tests.chaos.harness.history import FAIL, OK, Op
from tests.chaos.harness.telling import MOMENT_S, Finding

GUEST = ".guest-"  # in the names of their endpoints
LATE_S = 40.0  # after which nobody hears who has left: longer than anything was held in its name


def guest(cast: Cast, who: str, queues: list[str], rng: random.Random) -> Script:
    """Subscribes, stays for a while, and leaves, or lets its subscription end."""
    stay = 0
    while True:
        yield rng.expovariate(3)
        q, stay = rng.choice(queues), stay + 1
        to = f"{q.replace('/', '.')}.{who}.{stay}.{rng.choice((0, 0, 1))}"
        ttl = rng.choice((LONG_TTL, LONG_TTL, 1, 2))
        options = json.dumps({"_retry_policy": RETRY_POLICY})
        done = yield Op("subscribe", q=q, to=to, ttl=ttl, note=options)
        if done.out != OK:
            continue
        leaves, until = rng.random() < 0.75, rng.choice((0.1, 0.5, 1.0))
        for _ in range(rng.randrange(5)):
            yield rng.expovariate(1 / until)
            f = rng.choice(("pause", "resume", "replay", "waiting", "failed"))
            yield Op(f, q=q, to=to, id=done.id, limit=20)
        yield rng.expovariate(1 / until)
        while leaves and ttl == LONG_TTL:
            left = yield Op("leave", q=q, to=to, id=done.id)
            leaves = left.out == FAIL


def look_back(q: str, to: str, id_: str) -> Script:
    """What was given up of a subscription that has ended; it can be seen as long as there is any."""
    marker = ""
    while True:
        page = yield Op("failed", q=q, to=to, id=id_, limit=20, marker=marker, final=True)
        if page.got:
            marker = page.got[-1][0]
        elif page.out == OK or page.status == 404:
            break
        else:
            yield 0.2
    while (seen := (yield Op("waiting", q=q, to=to, id=id_, final=True))).status != 404:
        if seen.out == OK and not seen.counts[0]:
            break
        yield 0.5


class Stay(NamedTuple):
    """One subscription of a guest, and what was done to end it."""

    subscribe: Op
    leaves: Sequence[Op]

    @property
    def lapses(self) -> bool:
        return self.subscribe.ttl != LONG_TTL

    @property
    def lasts(self) -> bool:
        """To the end of the run, certainly."""
        return self.subscribe.out == OK and not (self.lapses or self.leaves)


def stays(ops: Iterable[Op]) -> dict[str, Stay]:
    """All that may have come to be, by endpoint."""
    found: dict[str, Stay] = {}
    leaves: defaultdict[str, list[Op]] = defaultdict(list)
    for op in ops:
        if op.f == "subscribe" and GUEST in op.to and op.out != FAIL:
            found[op.to] = Stay(op, leaves[op.to])
        elif op.f == "leave" and op.out != FAIL:
            leaves[op.to].append(op)
    return found


def judge(slack_s: float, ops: Sequence[Op]) -> Iterator[Finding]:
    """What is wrong with what those were told who did not stay to the end."""
    passing = {to: stay for to, stay in stays(ops).items() if not stay.lasts}
    posts = {(op.p, op.n + i): op for op in ops if op.f == "post" for i in range(op.size)}
    heard: defaultdict[str, set[tuple[str, int]]] = defaultdict(set)
    ends: dict[str, Op] = {}
    for op in ops:
        stay = passing.get(op.to)
        if stay is None:
            continue
        if op.f == "hear":
            yield from _heard(slack_s, op, stay, posts.get((op.p, op.n)))
            if 200 <= op.status < 300:
                heard[op.to].add((op.p, op.n))
        elif op.f == "failed" and op.out == OK and op.final:
            heard[op.to] |= {(p, n) for _, p, n in op.got}
        elif op.f == "waiting" and op.final and (op.out == OK or op.status == 404):
            ends[op.to] = op
    for to, stay in passing.items():
        if stay.lapses and stay.subscribe.out == OK:
            yield from _told(slack_s, stay, ops, heard[to], ends.get(to))


def _heard(slack_s: float, op: Op, stay: Stay, post: Op | None) -> Iterator[Finding]:
    subscribe, name = stay.subscribe, f"{op.p} #{op.n}"
    if op.note:
        yield f"{op.to}: {op.note}", (op,)
    if post is None or post.q != subscribe.q or post.out == FAIL or op.t1 < post.t0:
        yield f"{op.to} was told of {name}, which was not posted there", (op,)
        return
    if post.out == OK and post.t1 < subscribe.t0 - MOMENT_S:
        yield f"{op.to} was told of {name}, posted before it subscribed", (post, subscribe, op)
    left_s = min((leave.t1 for leave in stay.leaves if leave.out == OK), default=float("inf"))
    if post.t0 > left_s:
        yield f"{op.to} was told of {name}, posted after it had left", (*stay.leaves, post, op)
    if op.t0 > left_s + LATE_S:
        yield f"{op.to} was told of {name} long after it had left", (*stay.leaves, op)
    if subscribe.out == OK and post.t0 > subscribe.t1 + subscribe.ttl + slack_s:
        yield f"{op.to} was told of {name}, posted after its end", (subscribe, post, op)


def _told(
    slack_s: float, stay: Stay, ops: Sequence[Op], heard: set[tuple[str, int]], end: Op | None
) -> Iterator[Finding]:
    """Of one that ended by itself: all that was posted while it lived."""
    subscribe = stay.subscribe
    if end is None:
        yield f"it is not known what is left for {subscribe.to}", (subscribe,)
        return
    if end.counts[0]:
        yield f"{end.counts[0]} deliveries to {subscribe.to} are still pending", (subscribe, end)
    ended_s = subscribe.t0 + subscribe.ttl - slack_s
    for post in ops:
        if post.f != "post" or post.q != subscribe.q or post.out != OK:
            continue
        if subscribe.t1 < post.t0 and post.t1 < ended_s:
            for n in range(post.n, post.n + post.size):
                if (post.p, n) not in heard:
                    yield f"{subscribe.to} was never told of {post.p} #{n}", (subscribe, post, end)
