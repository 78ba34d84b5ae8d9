"""R10, from the history: subscribers hear of every acknowledged post at least once, and of no other.

What receivers wrote down (`hear`) is held against the posts. A post that was acknowledged after the
subscription was is heard and answered with success, or is in the end among those given up. A post
of unknown outcome may be heard or not. To be heard twice is allowed, and counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from tests.chaos.harness.history import FAIL, OK, Op

MOMENT_S = 0.001
"""The service tells milliseconds apart. Who subscribes in that of a post may be told of it."""

Finding = tuple[str, tuple[Op, ...]]
"""What is wrong, and the operations that prove it."""
Told = tuple[str, str, int]
"""Endpoint, producer and number."""


def judge(ops: Iterable[Op]) -> Iterator[Finding]:
    """Everything that is wrong with what was told."""
    telling = _Telling(ops)
    if not telling.subscriptions:
        return
    for op in telling.hears:
        yield from telling.heard(op)
    for op in telling.listings:
        yield from telling.listed(op)
    for subscription in telling.subscriptions.values():
        if subscription.out == OK:
            yield from telling.all_heard(subscription)


def count(ops: Iterable[Op]) -> dict[str, int]:
    """How much was heard: all attempts, what was answered with success, and what of that again."""
    hears = [op for op in ops if op.f == "hear"]
    if not hears:
        return {}
    taken = [(op.to, op.p, op.n) for op in hears if _taken(op)]
    told = len(set(taken))
    return {"attempts": len(hears), "told": told, "told again": len(taken) - told}


def _taken(op: Op) -> bool:
    return 200 <= op.status < 300


class _Telling:
    def __init__(self, ops: Iterable[Op]) -> None:
        self.subscriptions: dict[str, Op] = {}  # by endpoint
        self.hears: list[Op] = []
        self.listings: list[Op] = []  # of given-up deliveries
        self.posts: dict[tuple[str, int], Op] = {}  # of each message, by producer and number
        self._by_queue: defaultdict[str, list[Op]] = defaultdict(list)
        self._attempts: defaultdict[Told, list[Op]] = defaultdict(list)
        self._taken: set[Told] = set()
        self._given_up: set[Told] = set()
        self._shown: defaultdict[str, set[str]] = defaultdict(set)  # what was given up, by its ids
        self._gone: dict[str, Op] = {}  # who was last told that there is none
        self._ends: dict[str, Op] = {}  # the last that was asked of each subscription
        self._ids: dict[Told, Op] = {}
        self._told_by: dict[tuple[str, str], Op] = {}
        for op in ops:
            if op.f == "post":
                self._by_queue[op.q].append(op)
                for n in range(op.n, op.n + op.size):
                    self.posts[op.p, n] = op
            elif op.f == "subscribe":
                self.subscriptions[op.to] = op
            elif op.f == "hear":
                self.hears.append(op)
                self._attempts[op.to, op.p, op.n].append(op)
                if _taken(op):
                    self._taken.add((op.to, op.p, op.n))
            elif op.f == "failed" and op.out == OK:
                self.listings.append(op)
                if op.final:
                    self._given_up |= {(op.to, p, n) for _, p, n in op.got}
                    self._shown[op.to] |= {name for name, _, _ in op.got}
            elif op.f == "waiting" and op.out == OK and op.final:
                self._ends[op.to] = op
            elif op.f == "waiting" and op.status == 404:
                self._gone[op.to] = op

    def heard(self, op: Op) -> Iterator[Finding]:
        """One attempt: to whom, of what, when, under which name, and signed."""
        subscription = self.subscriptions.get(op.to)
        if subscription is None or subscription.out == FAIL:
            yield f"{op.to} was told of something and had not subscribed", (op,)
            return
        if op.note:
            yield f"{op.to}: {op.note}", (op,)
        yield from self._about(op, op.p, op.n, subscription)
        if not op.id:
            return
        told = (op.to, op.p, op.n)
        first = self._ids.setdefault(told, op)
        if first.id != op.id:
            yield f"{op.p} #{op.n} has two ids at {op.to}", (first, op)
        first = self._told_by.setdefault((op.to, op.id), op)
        if (first.p, first.n) != (op.p, op.n):
            yield f"{op.to}: two messages have the id {op.id}", (first, op)

    def listed(self, op: Op) -> Iterator[Finding]:
        """Given-up deliveries that were listed."""
        subscription = self.subscriptions.get(op.to)
        for _, p, n in op.got:
            if subscription is not None:
                yield from self._about(op, p, n, subscription)

    def _about(self, op: Op, p: str, n: int, subscription: Op) -> Iterator[Finding]:
        """Whether there was such a post, and whether this subscriber was to be told of it."""
        if not p:
            yield f"{op.to} was told something that is not ours, or was changed", (op,)
            return
        post = self.posts.get((p, n))
        name = f"{p} #{n}"
        if post is None:
            yield f"{name} was never posted, and {op.to} was told of it", (op,)
        elif post.q != subscription.q:
            yield f"{name} is of a queue that {op.to} has not subscribed to", (post, op)
        elif post.out == FAIL:
            yield f"{name}: its post had been refused, and {op.to} was told of it", (post, op)
        elif op.t1 < post.t0:
            yield f"{op.to} was told of {name} before it was posted", (op, post)
        elif post.out == OK and post.t1 < subscription.t0 - MOMENT_S:
            what = f"{op.to} was told of {name}, which had been posted before it subscribed"
            yield what, (post, subscription, op)

    def all_heard(self, subscription: Op) -> Iterator[Finding]:
        """Nothing is pending in the end, and all that had to be told was."""
        to = subscription.to
        gone = self._gone.get(to)
        if gone is not None and gone.t0 > subscription.t1:
            yield f"the subscription of {to} is gone", (subscription, gone)
            return
        end = self._ends.get(to)
        if end is None:
            yield f"it is not known what is left for {to}", (subscription,)
            return
        left, failed, _ = end.counts
        if left:
            yield f"{left} deliveries to {to} are still pending", (subscription, end)
        listed = len(self._shown[to])
        if failed != listed:
            yield f"{failed} deliveries to {to} were given up, {listed} are shown", (end,)
        missing = [
            (post, n)
            for post in self._by_queue[subscription.q]
            if post.out == OK and post.t0 > subscription.t1
            for n in range(post.n, post.n + post.size)
            if (told := (to, post.p, n)) not in self._taken and told not in self._given_up
        ]
        # Which of them is pending cannot be seen; so many may be.
        for post, n in missing[: max(len(missing) - left, 0)]:
            tried = self._attempts[to, post.p, n][-3:]
            yield f"{to} was never told of {post.p} #{n}", (post, *tried, end)
