"""What a store forgot of what it had answered, where more failed than its set-up is meant for.

A nemesis that breaks two things at once writes down when, and since when an answer may be forgotten
(`broke`). A violation that says nothing but that such an answer was forgotten is then *forgiven*: it
is counted and dated. What is older, what was answered afterwards, and every other violation stays.

Two claims of one message are two owners, whatever failed, if the store had the first when it made
the second. If the first is one of the answers that were forgotten, the message is free in what is
left, and is handed out again like one whose claim has lapsed: that is a claim forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from statistics import median

import msgspec

from tests.chaos.harness.checker import Violation
from tests.chaos.harness.history import OK, Op

BROKE = "broke"  # who says so
ON_ITS_WAY_S = 0.1  # that long an answer travels from a store that has just broken
_ID = re.compile(r"\(([^)]+)\)")


class Forgotten(msgspec.Struct):
    """What came of one break-down: changes that had been answered, and are not there."""

    what: str
    messages: int = 0
    deletions: int = 0
    claims: int = 0  # whose messages were seen by others while they should have been live
    oldest: float = 0.0  # s before the break-down at which the first of them was answered

    @property
    def any(self) -> bool:
        return bool(self.messages or self.deletions or self.claims)

    def render(self) -> str:
        if not self.any:
            return f"nothing ({self.what})"
        return (
            f"{self.messages} messages, {self.deletions} deletions, {self.claims} claims,"
            f" answered up to {self.oldest:.2f} s before ({self.what})"
        )


def broke(what: str, since: float, at: float) -> Op:
    """The event: it broke at `at`, and may forget what was answered since; nothing if that is `at`."""
    return Op("fault", BROKE, t0=since, t1=at, out=OK, note=what)


def forgive(
    ops: Sequence[Op], violations: Iterable[Violation]
) -> tuple[list[Forgotten], list[Violation]]:
    """What was forgotten at each break-down, and the violations that this does not account for."""
    judge = _Judge(ops)
    rest = [violation for violation in violations if not judge.forgives(violation)]
    return judge.forgotten, [violation for violation in rest if not judge.follows(violation)]


def table(forgotten: Iterable[tuple[str, Forgotten]]) -> list[str]:
    """Lines of Markdown: least, median and most of each kind of break-down, in each set-up."""
    kinds: dict[tuple[str, str], list[Forgotten]] = {}
    for setup, one in forgotten:
        kinds.setdefault((setup, one.what), []).append(one)
    if not kinds:
        return []
    lines = [
        "| | what broke | times | with a loss | messages | deletions | claims | answered before, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind, them in sorted(kinds.items()):
        cells = [
            *kind,
            str(len(them)),
            str(sum(one.any for one in them)),
            _spread([one.messages for one in them]),
            _spread([one.deletions for one in them]),
            _spread([one.claims for one in them]),
            _spread([round(one.oldest, 2) for one in them]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _spread(numbers: Sequence[float]) -> str:
    return f"{min(numbers):g} / {median(numbers):g} / {max(numbers):g}"


class _Judge:
    def __init__(self, ops: Sequence[Op]) -> None:
        self._breaks = sorted(
            (op for op in ops if op.f == "fault" and op.who == BROKE), key=lambda op: op.t1
        )
        self.forgotten = [Forgotten(op.note) for op in self._breaks]
        self._messages: set[tuple[str, str]] = set()  # queue and id, of those counted
        self._deletions: set[tuple[str, str]] = set()
        self._claims: set[tuple[str, str]] = set()
        self._shrunk: set[str] = set()  # queues of which a deletion was forgotten
        self._renewals: dict[tuple[str, str], list[Op]] = {}  # by queue and claim
        self._claimed: dict[tuple[str, str], Op] = {}  # first claim, by queue and message
        for op in sorted(ops, key=lambda op: op.t1):
            if op.f == "renew" and op.out == OK:
                self._renewals.setdefault((op.q, op.cid), []).append(op)
            elif op.f == "claim" and op.out == OK:
                for name, _, _ in op.got:
                    self._claimed.setdefault((op.q, name), op)

    def forgives(self, violation: Violation) -> bool:
        """Whether it shows no more than that an answer was forgotten which may be; counts it."""
        match violation.rule:
            case "R1" | "R9":
                return self._lost(violation)
            case "R4":
                deletion, sighting = violation.ops
                at = self._when([deletion], sighting)
                if at is not None:
                    name = _named(violation)
                    self._shrunk.add(sighting.q)
                    if _first(self._deletions, sighting.q, name):
                        self.forgotten[at].deletions += 1
                return at is not None
            case "R5" | "R6":
                return self._unclaimed(violation)
        return False

    def follows(self, violation: Violation) -> bool:
        """Whether it is what a forgotten deletion makes of a queue's figures."""
        return violation.rule == "R12" and all(op.q in self._shrunk for op in violation.ops)

    def _lost(self, violation: Violation) -> bool:
        """A message that is not there, or was missing from a walk and never came."""
        post, *others = violation.ops
        if violation.rule == "R9" and len(others) > 1:
            return False  # it came later: so it was there
        name = _named(violation) or others[-1].id
        known = [post] if post.out == OK else [self._claimed.get((post.q, name), post)]
        at = self._when(known, others[-1])
        if at is not None and _first(self._messages, post.q, name):
            self.forgotten[at].messages += 1
        return at is not None

    def _unclaimed(self, violation: Violation) -> bool:
        """A message that somebody has while it is another's."""
        # The post stands in front where the rule is about one message.
        *_, held, evidence = violation.ops
        if held.f == "post":
            return False  # a delay, which is not forgotten without its message
        changes = [held, *self._renewals.get((held.q, held.cid), [])]
        at = self._when(changes, evidence)
        if at is not None and _first(self._claims, held.q, held.cid):
            self.forgotten[at].claims += 1
        return at is not None

    def _when(self, changes: Iterable[Op], evidence: Op) -> int | None:
        """At which break-down one of these may have been forgotten before `evidence`, if at any."""
        for at, broken in enumerate(self._breaks):
            if broken.t0 == broken.t1:
                continue  # nothing may
            seen_later = evidence.t0 > broken.t1 or evidence.t1 > broken.t1 + ON_ITS_WAY_S
            known = [op for op in changes if op.t0 <= broken.t1 and op.t1 >= broken.t0]
            if seen_later and known:
                first = min(op.t1 for op in known)
                found = self.forgotten[at]
                found.oldest = max(found.oldest, broken.t1 - first)
                return at
        return None


def _named(violation: Violation) -> str:
    """The id of the message that it is about; empty where its text has none."""
    found = _ID.search(violation.what)
    return found[1] if found else ""


def _first(counted: set[tuple[str, str]], q: str, name: str) -> bool:
    """Whether it was not yet counted; it is from now on."""
    if (q, name) in counted:
        return False
    counted.add((q, name))
    return True
