"""Judges a history: which promise was broken, shown by the few operations that prove it.

Everything is decided from the history alone, conservatively: what an operation of unknown outcome
may have done is never held against the service. O(n log n) in the number of sightings.

Two notions carry most rules. A message is *certainly there* from `there` to `until`; a claim is
*certainly live* from its answer until the earliest moment at which it may have ended.
"""

from __future__ import annotations

import gc
import itertools
import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from tests.chaos.harness import telling
from tests.chaos.harness.history import EVENTS, FAIL, INFO, OK, Op, Run
from tests.chaos.harness.retold import by_store_clock

INF = math.inf

RULES = {
    "R1": "an acknowledged message is there until deleted or expired",
    "R2": "nothing is seen that was not posted there, unchanged",
    "R3": "an accepted message has one id, its own, and is once in an answer",
    "R4": "deleted stays deleted",
    "R5": "one live claim a message, and its holder has it",
    "R6": "claimed and delayed messages are hidden",
    "R7": "what a claim gave back can be claimed again",
    "R8": "messages of one producer are seen in its order",
    "R9": "a walk by markers sees all, once",
    "R10": "subscribers are told of every acknowledged post, and of nothing else",
    "R11": "expired messages are not seen",
    "R12": "statistics at rest are exact",
    "R13": "dead letters: so many claims, then once in the other queue",
    "R14": "projects do not see each other's messages",
    "R15": "without a fault, requests are answered",
}


class Violation(NamedTuple):
    rule: str
    what: str
    ops: tuple[Op, ...]

    def render(self, since: float) -> str:
        """The violation and its operations, with times relative to `since`."""
        return "\n".join([f"{self.rule} {self.what}", *(f"  {show(op, since)}" for op in self.ops)])


def show(op: Op, since: float) -> str:
    """One operation on one line."""
    fields = msgspec.to_builtins(op)
    for name in ("f", "who", "q", "t0", "t1", "out"):
        fields.pop(name, None)
    rest = " ".join(f"{key}={value}" for key, value in fields.items())
    times = f"[{op.t0 - since:.3f}, {op.t1 - since:.3f}]"
    return f"{times} {op.who} {op.f} {op.q} {op.out} {rest[:300]}"


class _Message:
    """One message in one queue. A dead letter is another one, with the same post."""

    __slots__ = (
        "attempt",
        "deleted",
        "deleted_by",
        "grants",
        "id",
        "moved",
        "n",
        "post",
        "q",
        "second",
        "seen",
        "there",
        "until",
    )

    def __init__(self, post: Op, n: int, q: str) -> None:
        self.post = post
        self.n = n
        self.q = q
        self.id = ""
        self.there = INF  # certainly stored from here: the post's answer or the first sighting
        self.attempt = INF  # the first attempt that may have removed it
        self.second = INF  # the next one
        self.deleted = INF  # answer of the first removal that certainly worked
        self.deleted_by: Op | None = None
        self.until = -INF  # certainly there until here
        self.seen: list[Op] = []
        self.grants: list[_Claim] = []
        self.moved: _Message | None = None


class _Claim:
    """One claim that was answered, and everything its holder did with it."""

    __slots__ = ("changes", "end", "grants", "last_end", "op")

    def __init__(self, op: Op) -> None:
        self.op = op
        self.changes: list[Op] = []  # renewals and releases
        self.grants: list[_Message] = []
        self.end = -INF  # certainly live until here, as long as nobody deletes its messages
        self.last_end = INF  # certainly over after this

    def settle(self, run: Run, barriers: _Barriers) -> None:
        op = self.op
        end, last_end = op.t0 + op.ttl - run.slack, op.t1 + op.ttl
        shortest = cut = INF
        for change in sorted(self.changes, key=lambda change: change.t0):
            if change.f == "release":
                cut = min(cut, change.t0)
                if change.out == OK:
                    last_end = min(last_end, change.t1)
            elif change.out == OK:
                # It worked, so the claim had been live all the time until then. Renewals of
                # unknown outcome may still come in after it, each with its own ttl.
                end = change.t0 + max(0.0, min(change.ttl, shortest) - run.slack)
                last_end = max(last_end, change.t1 + change.ttl)
            else:
                shortest = min(shortest, change.ttl)
                end = min(end, change.t0 + change.ttl - run.slack)
                last_end = max(last_end, barriers.after(change.t0) + change.ttl)
        self.end, self.last_end = min(end, cut), last_end


class _Barriers:
    """When the server was known to be dead: what was sent before cannot happen later."""

    def __init__(self, ops: Iterable[Op]) -> None:
        self._times = sorted(op.t1 for op in ops if op.f == "dead")

    def after(self, t0: float) -> float:
        """The latest time at which something sent at `t0` can take effect."""
        at = bisect_left(self._times, t0)
        return self._times[at] if at < len(self._times) else INF


class _Ghosts:
    """Operations of unknown outcome on one queue: they may have happened within [t0, latest]."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float, Op]] = []
        self._latest: list[float] = []

    def add(self, op: Op, latest: float) -> None:
        self.spans.append((op.t0, latest, op))

    def settle(self) -> None:
        self.spans.sort(key=lambda span: span[0])
        self._latest = list(itertools.accumulate((span[1] for span in self.spans), max))

    def within(self, start: float, end: float) -> bool:
        """Whether one of them may have happened between start and end."""
        at = bisect_right(self.spans, end, key=lambda span: span[0])
        return at > 0 and self._latest[at - 1] >= start

    def first(self, start: float) -> float:
        """The earliest time, not before `start`, at which one may have happened; or infinity."""
        for t0, latest, _ in self.spans:
            if latest >= start:
                return max(t0, start)
        return INF

    def count(self, start: float, end: float) -> int:
        return sum(1 for t0, latest, _ in self.spans if t0 <= end and latest >= start)


class _Walk:
    """A walk by markers over everything in a queue."""

    def __init__(self) -> None:
        self.seen: dict[int, Op] = {}  # by identity of the message
        self.numbers: dict[str, tuple[int, Op]] = {}  # by producer
        self.empty: list[tuple[float, Op]] = []


class _Queue:
    """What belongs to one queue."""

    def __init__(self) -> None:
        self.messages: list[_Message] = []
        self.claims = _Ghosts()
        self.pops = _Ghosts()
        self.walks: dict[str, _Walk] = defaultdict(_Walk)
        self.final: list[Op] = []
        self.drained: Op | None = None  # the claim that found nothing left
        self.stats: list[Op] = []


def check(run: Run, ops: Iterable[Op]) -> list[Violation]:
    """Every violation that the history proves."""
    # Millions of small objects that all stay: looking for garbage among them takes half the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        told = list(ops)
        return list(_Checker(*by_store_clock(run, told), told).judge())
    finally:
        if collecting:
            gc.enable()


class _Checker:
    def __init__(self, run: Run, ops: Sequence[Op], told: Sequence[Op]) -> None:
        self.run = run
        self.ops = sorted(ops, key=lambda op: op.t0)
        self.told = sorted(told, key=lambda op: op.t0)  # by true time, by which clients wait
        self.barriers = _Barriers(self.ops)
        self.values: dict[tuple[str, int], _Message] = {}
        self.ids: dict[tuple[str, str], _Message] = {}  # by queue and id
        self.claims: dict[tuple[str, str], _Claim] = {}  # by queue and id
        self.queues: dict[str, _Queue] = defaultdict(_Queue)
        self.dead = {dead: source for source, (dead, _) in run.dead_letters.items()}

    def judge(self) -> Iterator[Violation]:
        for op in self.ops:
            if op.f == "post":
                yield from self._post(op)
            elif op.f == "claim":
                self._claim(op)
        for op in self.ops:
            if op.f in {"waiting", "failed"}:
                continue  # of subscriptions, see R10
            if op.got:
                yield from self._sightings(op)
            elif op.f == "list" and op.walk and op.out == OK:
                self.queues[op.q].walks[op.walk].empty.append((op.t0, op))
            if op.final:
                self._final(op)
        for op in self.ops:
            self._changes(op)
        for queue in self.queues.values():
            queue.claims.settle()
            queue.pops.settle()
        for claim in self.claims.values():
            claim.settle(self.run, self.barriers)
        for q, queue in self.queues.items():
            for message in queue.messages:
                self._settle(q, message)
        for q, queue in self.queues.items():
            for message in queue.messages:
                yield from self._message(message)
            yield from self._walks(q, queue)
            yield from self._end(q, queue)
        for op in self.ops:
            yield from self._entitled(op)
        for what, proof in telling.judge(self.ops):
            yield Violation("R10", what, proof)
        yield from self._answered()

    # ------------------------------------------------------------------ reading the history

    def _post(self, op: Op) -> Iterator[Violation]:
        for i in range(op.size):
            message = _Message(op, op.n + i, op.q)
            self.values[op.p, op.n + i] = message
            self.queues[op.q].messages.append(message)
            if op.out == OK:
                message.there = op.t1
                yield from self._named(message, op.ids[i], op)

    def _named(self, message: _Message, name: str, op: Op) -> Iterator[Violation]:
        """The message has this id, as `op` shows; R3 if another one had it before."""
        message.id = name
        other = self.ids.setdefault((op.q, name), message)
        if other is not message:
            what = f"{name} is {other.post.p} #{other.n}, and {message.post.p} #{message.n} too"
            yield Violation("R3", what, (other.post, *other.seen[:1], message.post, op))

    def _claim(self, op: Op) -> None:
        if op.cid and op.out == OK:
            self.claims[op.q, op.cid] = _Claim(op)
        elif op.out == INFO:
            self.queues[op.q].claims.add(op, self.barriers.after(op.t0))

    def _sightings(self, op: Op) -> Iterator[Violation]:
        """R2, R3, R8 and R14 within the answer, R8 and R9 along its walk; notes who was seen."""
        once: set[str] = set()
        numbers: dict[str, int] = {}
        claim = self.claims.get((op.q, op.cid)) if op.f == "claim" else None
        walk = self.queues[op.q].walks[op.walk] if op.walk else None
        for name, p, n in op.got:
            if not p:
                yield Violation("R2", f"{name}: its body was changed, or is not ours", (op,))
                continue
            if name in once:
                yield Violation("R3", f"{name} twice in one answer", (op,))
            once.add(name)
            message = self.values.get((p, n))
            if message is None:
                yield Violation("R2", f"{p} #{n} was never posted", (op,))
                continue
            post = message.post
            if post.out == FAIL:
                yield Violation("R2", f"{p} #{n}: its post had been refused", (post, op))
            if op.t1 < post.t0:
                yield Violation("R2", f"{p} #{n} was seen before it was posted", (op, post))
            if op.q != post.q:
                if self.dead.get(op.q) != post.q:
                    foreign = op.q.partition("/")[0] != post.q.partition("/")[0]
                    rule = "R14" if foreign else "R2"
                    yield Violation(rule, f"{p} #{n} in a foreign queue", (post, op))
                    continue
                message = self._moved(message, op.q)
            if not message.id:
                yield from self._named(message, name, op)
            elif message.id != name:
                other = message.seen[0] if message.seen else post
                yield Violation(
                    "R3", f"{p} #{n} is there as {message.id} and as {name}", (post, other, op)
                )
                continue
            message.seen.append(op)
            if self._proves(op):
                message.there = min(message.there, op.t1)
            if claim is not None:
                message.grants.append(claim)
                claim.grants.append(message)
            # Dead letters stand in the order in which they died.
            if op.q not in self.dead and op.f != "get":
                if numbers.get(p, -1) >= n:
                    yield Violation("R8", f"{p} #{n} after #{numbers[p]}", (op,))
                numbers[p] = n
                if walk is not None:
                    before = walk.numbers.get(p)
                    if before and before[0] > n:
                        yield Violation("R8", f"{p} #{n} after #{before[0]}", (before[1], op))
                    walk.numbers[p] = (n, op)
            if walk is not None:
                earlier = walk.seen.setdefault(id(message), op)
                if earlier is not op:
                    yield Violation("R9", f"{p} #{n} came twice in a walk", (earlier, op))

    def _proves(self, op: Op) -> bool:
        """Whether what was seen was also safe. A claim is a write, and is answered as one."""
        return not self.run.reads_ahead or op.f in {"claim", "pop"}

    def _moved(self, message: _Message, dead: str) -> _Message:
        if message.moved is None:
            message.moved = _Message(message.post, message.n, dead)
            self.queues[dead].messages.append(message.moved)
        return message.moved

    def _final(self, op: Op) -> None:
        queue = self.queues[op.q]
        queue.final.append(op)
        if op.f == "claim" and op.out == OK and not op.got:
            queue.drained = op
        if op.f == "stats" and op.out == OK:
            queue.stats.append(op)

    def _changes(self, op: Op) -> None:
        """Removals, renewals and releases."""
        if op.out == FAIL:
            return
        match op.f:
            case "renew" | "release":
                if claim := self.claims.get((op.q, op.cid)):
                    claim.changes.append(op)
            case "delete":
                self._removal(op, op.id)
            case "bulk":
                for name in op.ids:
                    self._removal(op, name)
            case "pop" if op.out == OK:
                for name, _, _ in op.got:
                    self._removal(op, name)
            case "pop":
                self.queues[op.q].pops.add(op, self.barriers.after(op.t0))
            case "purge":
                self._purge(op)

    def _purge(self, op: Op) -> None:
        """What was there is gone; what comes meanwhile may be, too."""
        latest = op.t1 if op.out == OK else self.barriers.after(op.t0)
        for message in self.queues[op.q].messages:
            post = message.post
            if post.t0 > latest:
                continue
            message.attempt = min(message.attempt, op.t0)
            if post.out == OK and op.out == OK and post.t1 < op.t0 and op.t1 < message.deleted:
                message.deleted, message.deleted_by = op.t1, op

    def _removal(self, op: Op, name: str) -> None:
        message = self.ids.get((op.q, name))
        if message is None:
            return
        if op.t0 < message.attempt:
            message.attempt, message.second = op.t0, message.attempt
        else:
            message.second = min(message.second, op.t0)
        if op.out == OK and op.t1 < message.deleted:
            message.deleted, message.deleted_by = op.t1, op

    # ------------------------------------------------------------------------- the rules

    def _settle(self, q: str, message: _Message) -> None:
        """How long it is certainly there."""
        if message.post.out == FAIL or message.there == INF:
            return
        until = min(message.attempt, message.post.t0 + message.post.ttl - self.run.slack)
        if message.moved is not None or q in self.run.dead_letters:
            # It may become a dead letter in any claim: the end of the run tells.
            until = -INF
        pops = self.queues[q].pops
        if pops.spans:
            until = min(until, pops.first(message.post.t0))
        message.until = until

    def _message(self, message: _Message) -> Iterator[Violation]:
        """R4, R5, R6, R11 and R13 of one message."""
        name = f"{message.post.p} #{message.n} ({message.id})"
        if message.deleted < INF:
            for sighting in message.seen:
                if sighting.t0 > message.deleted and message.deleted_by is not None:
                    ops = (message.deleted_by, sighting)
                    yield Violation("R4", f"{name} was seen after it had been deleted", ops)
        yield from self._hidden(message, name)
        yield from self._expiry(message, name)
        if message.moved is not None or message.q in self.run.dead_letters:
            yield from self._dead_letter(message, name)

    def _hidden(self, message: _Message, name: str) -> Iterator[Violation]:
        """R5 and R6: certainly live claims, and a certain delay, against each other and sightings."""
        post = message.post
        spans: list[tuple[float, float, Op]] = []
        for claim in message.grants:
            end = min(claim.end, message.attempt)
            if end > claim.op.t1:
                spans.append((claim.op.t1, end, claim.op))
        delayed = post.t0 + post.delay - self.run.slack  # which its answer may be later than
        if post.out == OK and message.q == post.q and delayed > post.t1:
            spans.append((post.t1, delayed, post))
        if not spans:
            return
        spans.sort(key=lambda span: span[0])
        for one, two in itertools.pairwise(spans):
            if two[0] < one[1]:
                yield Violation("R5", f"{name} under two live claims", (post, one[2], two[2]))
        starts = [span[0] for span in spans]
        for sighting in message.seen:
            if sighting.every or sighting.f == "get":
                continue
            at = bisect_right(starts, sighting.t0) - 1
            if at >= 0 and sighting.t1 < spans[at][1] and spans[at][2] is not sighting:
                yield Violation("R6", f"{name} was not hidden", (post, spans[at][2], sighting))

    def _expiry(self, message: _Message, name: str) -> Iterator[Violation]:
        """R11: not seen by an operation that began when it had certainly expired."""
        if not message.seen:
            return
        last = max(message.seen, key=lambda sighting: sighting.t0)
        gone = self._last_moment(message)
        if last.t0 > gone + self.run.slack:
            ops = (message.post, *(claim.op for claim in message.grants[-2:]), last)
            yield Violation("R11", f"{name} was seen {last.t0 - gone:.2f} s after its end", ops)

    def _last_moment(self, message: _Message) -> float:
        """When it has certainly expired; infinity if a claim of unknown outcome may have kept it."""
        post = message.post
        gone = (post.t1 if post.out == OK else self.barriers.after(post.t0)) + post.ttl
        if message.q in self.dead:
            return INF  # the dead-letter queue may give it another life
        # A release ends the claim, not the life that it gave.
        for claim in message.grants:
            gone = max(gone, claim.op.t1 + claim.op.ttl + claim.op.grace)
            for change in claim.changes:
                if change.f == "renew":
                    at = change.t1 if change.out == OK else self.barriers.after(change.t0)
                    gone = max(gone, at + change.ttl + change.grace)
        if self.queues[message.q].claims.within(post.t0, gone):
            return INF
        return gone

    def _dead_letter(self, message: _Message, name: str) -> Iterator[Violation]:
        """R13, of a message of a queue with dead letters."""
        _, allowed = self.run.dead_letters[message.q]
        claims = [claim.op for claim in message.grants]
        if len(claims) > allowed:
            yield Violation("R13", f"{name}: claimed more than {allowed} times", tuple(claims))
        there = [op for op in message.moved.seen if self._proves(op)] if message.moved else []
        if not there:
            return
        first = min(there, key=lambda sighting: sighting.t1)
        ghosts = self.queues[message.q].claims.count(message.post.t0, first.t1)
        if len(claims) + ghosts < allowed:
            yield Violation("R13", f"{name}: dead before {allowed} claims", (*claims, first))
        for sighting in message.seen:
            # Where it takes two steps, it may be listed in both queues in between.
            if sighting.t0 > first.t1 and (sighting.f == "claim" or not self.run.apart):
                yield Violation("R13", f"{name} is in both queues", (first, sighting))

    def _walks(self, q: str, queue: _Queue) -> Iterator[Violation]:
        """R9: an empty page says that the walk has seen all there is."""
        for walk in queue.walks.values():
            if not walk.empty:
                continue
            starts = [start for start, _ in walk.empty]
            for message in queue.messages:
                if message.until <= message.there:
                    continue
                at = bisect_left(starts, message.there)
                if at == len(starts):
                    continue
                page = walk.empty[at][1]
                sighting = walk.seen.get(id(message))
                if page.t1 < message.until and (sighting is None or sighting.t0 > page.t0):
                    ops = (message.post, page) + ((sighting,) if sighting else ())
                    name = f"{message.post.p} #{message.n} ({message.id})"
                    yield Violation("R9", f"{name} was missing from a walk of {q}", ops)

    def _end(self, q: str, queue: _Queue) -> Iterator[Violation]:
        """R1, R7 and R12: what is left at the end."""
        end = queue.drained
        if end is None:
            if queue.final:
                yield Violation("R15", f"{q} could not be emptied at the end", ())
            return
        claimed: set[int] = set()
        present: set[int] = set()
        for op in queue.final:
            for _, p, n in op.got:
                message = self.values.get((p, n))
                if message is not None and message.q != q:
                    message = message.moved
                if message is not None:
                    present.add(id(message))
                    if op.f == "claim":
                        claimed.add(id(message))
        start = min(op.t0 for op in queue.final)
        may_lack = sum(op.limit for _, _, op in queue.pops.spans)
        for message in queue.messages:
            if not self._outlives(message, end.t1):
                continue
            name = f"{message.post.p} #{message.n} ({message.id})"
            if id(message) not in present:
                if message.moved is not None:
                    continue  # the one in the dead-letter queue is judged there
                if message.q in self.dead:
                    ops = (message.post, *message.seen[-2:], end)
                    yield Violation("R13", f"{name}, a dead letter, is lost", ops)
                    continue
                may_lack -= 1
                if may_lack < 0:
                    ops = (message.post, *message.seen[-2:], end)
                    yield Violation("R1", f"{name} is lost", ops)
            elif id(message) not in claimed and q not in self.run.dead_letters:
                free = all(claim.last_end + self.run.slack < start for claim in message.grants)
                if free and not self._haunted(queue, start) and not queue.pops.spans:
                    ops = (message.post, *(claim.op for claim in message.grants[-2:]), end)
                    yield Violation("R7", f"{name} cannot be claimed again", ops)
        yield from self._stats(q, queue, claimed | present)

    def _outlives(self, message: _Message, end: float) -> bool:
        return (
            message.there < INF
            and message.post.out != FAIL
            and message.attempt == INF
            and message.post.t0 + message.post.ttl - self.run.slack > end
        )

    def _haunted(self, queue: _Queue, start: float) -> bool:
        """Whether a claim of unknown outcome may be live at `start`."""
        return any(
            latest + op.ttl + self.run.slack >= start for _, latest, op in queue.claims.spans
        )

    def _stats(self, q: str, queue: _Queue, left: set[int]) -> Iterator[Violation]:
        """R12: between what was certainly and what was possibly there."""
        if q in self.run.dead_letters or q in self.dead:
            return
        for op in queue.stats:
            total, claimed, free = op.counts
            if total != claimed + free:
                yield Violation("R12", f"{q}: total is not claimed plus free", (op,))
            least = most = 0
            for message in queue.messages:
                if message.post.out == FAIL or message.deleted < op.t0:
                    continue
                if self._last_moment(message) + self.run.slack > op.t0:
                    most += 1
                least += message.there <= op.t0 and id(message) in left
            if not least <= total <= most:
                yield Violation("R12", f"{q}: total should be {least} to {most}", (op,))
            grants = (claim for message in queue.messages for claim in message.grants)
            over = all(
                claim.op.final or claim.last_end + self.run.slack < op.t0 for claim in grants
            )
            if claimed and over and not self._haunted(queue, op.t0):
                yield Violation("R12", f"{q}: nothing is claimed", (op,))

    def _entitled(self, op: Op) -> Iterator[Violation]:
        """R1, R5: a 4xx that says a message or claim is not there, while it certainly is.

        And none, where somebody without its claim deletes a message that is certainly claimed.
        """
        if op.f == "delete" and op.out == OK and not op.cid:
            message = self.ids.get((op.q, op.id))
            # Nobody else can have removed it before.
            alone = message is not None and message.attempt == op.t0 and message.second > op.t1
            for held in message.grants if message and alone else ():
                if held.op.t1 < op.t0 and op.t1 < held.end:
                    what = f"{op.id} was deleted by another than its holder"
                    yield Violation("R5", what, (held.op, op))
        if op.out != FAIL or not op.status:
            return
        if op.f == "get" and op.status == 404:
            message = self.ids.get((op.q, op.id))
            if message and message.there < op.t0 and op.t1 < message.until:
                yield Violation("R1", f"{op.id} was not found", (message.post, op))
        elif op.f == "renew" and op.status == 404:
            claim = self.claims.get((op.q, op.cid))
            if claim and op.t1 < claim.end and any(m.attempt > op.t1 for m in claim.grants):
                yield Violation("R5", f"the holder lost claim {op.cid}", (claim.op, op))
        elif op.f == "delete" and op.cid:
            claim = self.claims.get((op.q, op.cid))
            message = self.ids.get((op.q, op.id))
            if claim and message in claim.grants and op.t1 < min(claim.end, message.attempt):
                yield Violation("R5", f"the holder lost {op.id}", (claim.op, op))

    def _answered(self) -> Iterator[Violation]:
        """R15: away from faults at most one request in a hundred stays without an answer."""
        faults = [
            (op.t0 - self.run.deadline, op.t1 + self.run.heal)
            for op in self.told
            if op.f in {"fault", "dead"}
        ]
        faults.sort()
        starts = [start for start, _ in faults]
        ends = list(itertools.accumulate((end for _, end in faults), max))
        calm = [
            op
            for op in self.told
            if op.f not in EVENTS
            and ((at := bisect_right(starts, op.t0)) == 0 or ends[at - 1] < op.t0)
        ]
        lost = [op for op in calm if op.out == INFO]
        if len(lost) > max(1, len(calm) / 100):
            what = f"{len(lost)} of {len(calm)} requests away from faults had no answer"
            yield Violation("R15", what, tuple(lost[:5]))
