"""What a run came to. The rules are those of `tests.chaos`; what these do not know is put for them.

To purge or to delete a queue is to them the deletion of every message that was posted by then, and
of those on the way perhaps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec

from tests.chaos.harness.checker import Violation, check
from tests.chaos.harness.history import FAIL, INFO, OK, Op, Run

EMPTYING = frozenset({"purge", "drop"})


def judge(run: Run, ops: Sequence[Op]) -> list[Violation]:
    """Every violation that the history proves."""
    return check(run, translated(ops))


def translated(ops: Sequence[Op]) -> list[Op]:
    """The history in the words that the rules know."""
    result = [op for op in ops if op.f not in EMPTYING]
    emptying = [op for op in ops if op.f in EMPTYING and op.out != FAIL]
    if not emptying:
        return result
    dead = sorted(op.t1 for op in ops if op.f == "dead")
    named = _named(ops)
    for op in emptying:
        latest = op.t1
        if op.out == INFO:
            latest = next((t1 for t1 in dead if t1 >= op.t0), float("inf"))
        posts = [one for one in named[op.q].items() if one[1].t0 <= latest]
        certain = [
            name for name, post in posts
            if op.out == OK and post.out == OK and post.t1 < op.t0
        ]  # fmt: skip
        known = set(certain)
        perhaps = [name for name, _ in posts if name not in known]
        for ids, out in ((certain, OK), (perhaps, INFO)):
            if ids:
                result.append(msgspec.structs.replace(op, f="bulk", ids=ids, out=out))
    return result


def _named(ops: Sequence[Op]) -> dict[str, dict[str, Op]]:
    """The post of each message by its id, by queue: as the post was answered, or as it was seen."""
    named: dict[str, dict[str, Op]] = defaultdict(dict)
    posts: dict[tuple[str, int], Op] = {}
    for op in ops:
        if op.f == "post":
            for i in range(op.size):
                posts[op.p, op.n + i] = op
            for name in op.ids:
                named[op.q][name] = op
    for op in ops:
        if op.f in {"waiting", "failed"}:
            continue
        for name, p, n in op.got:
            post = posts.get((p, n))
            if post is not None and post.q == op.q:
                named[op.q].setdefault(name, post)
    return named
