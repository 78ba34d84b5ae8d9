"""The part of the simulated service that tells subscribers, and the receivers that listen to it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.chaos.harness.history import FAIL, OK, Op

BUGS = {
    "untold": {"R10"},
    "refused post told": {"R10"},
    "pending lost at a crash": {"R10"},
    "not tried again": {"R10"},
    "given up and forgotten": {"R10"},
    "lost in replay": {"R10"},
    "told elsewhere": {"R10"},
    "redirect followed": {"R10"},
    "told with a wrong signature": {"R10"},
    "told what was changed": {"R10"},
    "another id at each attempt": {"R10"},
    "two with one id": {"R10"},
    "told of what was before": {"R10"},
    "stuck delivery": {"R10"},
    "more given up than shown": {"R10"},
    "subscription lost at a crash": {"R10"},
}
"""Each bug, and the rules of which at least one must speak up."""

TRY_AGAIN_S = 1.0
LATE_S = 4.0  # when every second endpoint subscribes


@dataclass(eq=False)
class _Delivery:
    post: Op
    n: int
    id: str
    turn: int = 0  # of attempts; what was planned for an earlier one is void


@dataclass
class _Subscription:
    op: Op
    pending: list[_Delivery] = field(default_factory=list)
    failed: list[_Delivery] = field(default_factory=list)
    delivered: int = 0
    paused: bool = False


class Teller:
    """What a right service does; with a bug, now and then not.

    `at(when, do)` plays something later; `slip(bug, share)` says whether a planted bug strikes.
    """

    def __init__(
        self,
        endpoints: Mapping[str, str],
        rng: random.Random,
        slip: Callable[[str, float], bool],
        at: Callable[[float, Callable[[float], None]], None],
    ) -> None:
        self.ops: list[Op] = []  # what was subscribed, and what was heard
        self.fine = False  # receivers take everything
        self._rng = rng
        self._slip = slip
        self._at = at
        self._up_from = 0.0
        self._ids = itertools.count(1)
        self._before: list[Op] = []
        self._subscriptions: dict[str, _Subscription] = {}  # by endpoint
        for number, (to, q) in enumerate(endpoints.items()):
            op = Op("subscribe", "admin", q, 0.0, 0.001, OK, ttl=3600, id=f"s-{to}", to=to)
            if number % 2:
                op.t0, op.t1 = LATE_S, LATE_S + 0.001
            at(op.t0, self._subscriber(op))

    def ids(self, endpoints: Mapping[str, str]) -> dict[str, str]:
        return {to: f"s-{to}" for to in endpoints}

    def _subscriber(self, op: Op) -> Callable[[float], None]:
        def subscribe(now: float) -> None:
            self.ops.append(op)
            subscription = self._subscriptions[op.to] = _Subscription(op)
            for post in self._before:
                if post.q == op.q and self._slip("told of what was before", 0.3):
                    self._queue(subscription, post, post.n, now)

        return subscribe

    def posted(self, post: Op, now: float) -> None:
        """To be called in the transaction of the post."""
        if now < LATE_S:
            self._before.append(post)
        for subscription in self._subscriptions.values():
            if subscription.op.q != post.q:
                continue
            for n in range(post.n, post.n + post.size):
                if not self._slip("untold", 0.02):
                    self._queue(subscription, post, n, now)

    def refused(self, post: Op, now: float) -> None:
        """A post that was answered with 400."""
        for subscription in self._subscriptions.values():
            if subscription.op.q == post.q and self._slip("refused post told", 0.5):
                self._queue(subscription, post, post.n, now)

    def _queue(self, subscription: _Subscription, post: Op, n: int, now: float) -> None:
        id_ = f"d{next(self._ids)}"
        if subscription.pending and self._slip("two with one id", 0.05):
            id_ = subscription.pending[-1].id
        delivery = _Delivery(post, n, id_)
        subscription.pending.append(delivery)
        self._plan(subscription, delivery, now + self._rng.expovariate(20))

    def _plan(self, subscription: _Subscription, delivery: _Delivery, when: float) -> None:
        delivery.turn += 1
        turn = delivery.turn
        if self._slip("stuck delivery", 0.01):
            return

        def attempt(now: float) -> None:
            current = delivery in subscription.pending and delivery.turn == turn
            if current and now >= self._up_from and not subscription.paused:
                self._attempt(subscription, delivery, now)

        self._at(when, attempt)

    def _attempt(self, subscription: _Subscription, delivery: _Delivery, now: float) -> None:
        op = self._hear(subscription, delivery, now)
        status = 200
        if not self.fine and self._rng.random() < 0.3:
            status = self._rng.choice((500, 503, 429, 307, 0, 0, 400, 410))
        op.status = status
        op.t1 = now + (2.0 if status == 0 else 0.002)
        self.ops.append(op)
        if status == 307 and self._slip("redirect followed", 0.5):
            self.ops.append(_heard_by(op, "canary"))
        if self._slip("told elsewhere", 0.02):
            others = [s.op.to for s in self._subscriptions.values() if s.op.q != op.q]
            if others:
                self.ops.append(_heard_by(op, self._rng.choice(others)))
        turn = delivery.turn

        def learn(later: float) -> None:
            # A service that died meanwhile has not heard the answer, and will ask again.
            if delivery.turn == turn and delivery in subscription.pending:
                self._learn(subscription, delivery, status, later)

        self._at(op.t1 + self._rng.expovariate(200), learn)

    def _hear(self, subscription: _Subscription, delivery: _Delivery, now: float) -> Op:
        post = delivery.post
        op = Op("hear", "receiver", post.q, now, out=OK, p=post.p, n=delivery.n)
        op.to, op.id = subscription.op.to, delivery.id
        if self._slip("told with a wrong signature", 0.02):
            op.note = "the signature is wrong"
        if self._slip("told what was changed", 0.02):
            op.p, op.n = "", 0
        if delivery.turn > 1 and self._slip("another id at each attempt", 0.5):
            op.id = f"d{next(self._ids)}"
        return op

    def _learn(
        self, subscription: _Subscription, delivery: _Delivery, status: int, now: float
    ) -> None:
        if 200 <= status < 300:
            subscription.pending.remove(delivery)
            subscription.delivered += 1
        elif status in {400, 410}:
            subscription.paused = subscription.paused or status == 410
            subscription.pending.remove(delivery)
            if not self._slip("given up and forgotten", 0.2):
                subscription.failed.append(delivery)
        elif self._slip("not tried again", 0.05):
            subscription.pending.remove(delivery)
        else:
            self._plan(subscription, delivery, now + TRY_AGAIN_S)

    def crash(self, now: float, up_from: float) -> None:
        """What is pending is on disk, so it is sent again; unless a bug is planted."""
        self._up_from = up_from
        for to, subscription in list(self._subscriptions.items()):
            if self._slip("subscription lost at a crash", 0.05):
                del self._subscriptions[to]
            for delivery in list(subscription.pending):
                if self._slip("pending lost at a crash", 0.2):
                    subscription.pending.remove(delivery)
                else:
                    self._plan(subscription, delivery, up_from + self._rng.random())

    def apply(self, op: Op, now: float) -> None:
        """An operation on a subscription."""
        subscription = self._subscriptions.get(op.to)
        if subscription is None:
            op.out, op.status = FAIL, 404
            return
        op.out, op.status = OK, 204
        match op.f:
            case "waiting":
                failed = len(subscription.failed)
                if op.final and failed and self._slip("more given up than shown", 1.0):
                    failed += 1
                op.counts = (len(subscription.pending), failed, subscription.delivered)
            case "failed":
                start = int(op.marker or 0)
                page = subscription.failed[start : start + op.limit]
                op.got = [(str(start + i + 1), d.post.p, d.n) for i, d in enumerate(page)]
            case "pause":
                subscription.paused = True
            case "resume":
                subscription.paused = False
                self._go_on(subscription, now)
            case "replay":
                for delivery in subscription.failed:
                    if not self._slip("lost in replay", 0.1):
                        subscription.pending.append(delivery)
                subscription.failed = []
                self._go_on(subscription, now)

    def _go_on(self, subscription: _Subscription, now: float) -> None:
        for delivery in subscription.pending:
            self._plan(subscription, delivery, now + self._rng.random() * 0.1)


def _heard_by(op: Op, to: str) -> Op:
    """The same, heard by another."""
    return Op("hear", op.who, op.q, op.t0, op.t1, OK, op.status, op.p, op.n, id=op.id, to=to)
