"""What a run came to. The rules are those of `tests.chaos`; what these do not know is put for them.

To purge or to delete a queue is to them the deletion of every message that was posted by then, and
of those on the way perhaps. To pop what is encrypted is to claim it for a while, first. Of guests who did not stay they hear nothing: see `guests.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import msgspec

from nusku.broker.messages import POP_S
from nusku.broker.rules import ENCRYPT
from tests.chaos.harness.checker import Violation, check
from tests.chaos.harness.history import FAIL, INFO, OK, Op, Run
from tests.deterministic import guests

RULES = {
    "D1": "what is encrypted lies in no store in clear",
    "D2": "nothing is left behind of a subscription that is no more",
    "D3": "a pool that was emptied holds nothing, and can be deleted",
    "D4": "a message is popped once, by one",
    "D5": "nothing is unreadable whose key is in the file",
}
"""Of this tier alone. No history shows the first three, which are about stores (`leavings.py`), and the
last, of which the service's log tells.
"""

EMPTYING = frozenset({"purge", "drop"})
UNKNOWN = EMPTYING | {"leave", "pool", "unpool", "weigh", "drain", "move"}


def judge(run: Run, ops: Sequence[Op]) -> list[Violation]:
    """Every violation that the history proves."""
    passing = [Violation("R10", *one) for one in guests.judge(run.slack, ops)]
    return check(run, translated(run, ops)) + passing + list(_popped(ops))


def _popped(ops: Sequence[Op]) -> Iterator[Violation]:
    """D4."""
    first: dict[tuple[str, str], Op] = {}
    for op in ops:
        for name, p, n in op.got if op.f == "pop" else ():
            other = first.setdefault((op.q, name), op)
            if other is not op:
                yield Violation("D4", f"{p} #{n} ({name}) was popped twice", (other, op))


def translated(run: Run, ops: Sequence[Op]) -> list[Op]:
    """The history in the words that the rules know."""
    passing = {to for to, stay in guests.stays(ops).items() if not stay.lasts}
    result = [op for op in ops if op.f not in UNKNOWN and op.to not in passing]
    if ENCRYPT in run.settings:
        result += [
            msgspec.structs.replace(op, f="claim", ttl=POP_S)
            for op in ops if op.f == "pop" and op.out == INFO
        ]  # fmt: skip
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
