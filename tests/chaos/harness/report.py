"""What a run came to: counts, verdict, and the few operations that show what was broken."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec

from tests.chaos.harness import telling
from tests.chaos.harness.checker import RULES, Violation
from tests.chaos.harness.forgotten import Forgotten
from tests.chaos.harness.history import EVENTS, FAIL, INFO, OK, Op, Run

UNSENT = "unsent"  # failed, as nobody was there
LEAST = 300  # operations that have to succeed
SHOWN = 3  # violations of a rule that are printed in full


class Verdict(msgspec.Struct):
    """Written to `DIR/verdict.json`. `passed` needs a valid run without violation or complaint."""

    nemesis: str
    profile: str
    seed: int
    strikes: int
    seconds: float
    operations: int  # that were sent
    outcomes: dict[str, int]  # of all: those of `history`, and UNSENT
    violations: dict[str, int]  # by rule
    complaints: list[str]  # faults that no history shows
    invalid: list[str]  # reasons why the run proves nothing
    shown: list[str]
    phases: dict[str, float] = {}  # s that each part of the run took
    notifications: dict[str, int] = {}  # attempts, told, told again
    forgotten: list[Forgotten] = []  # at break-downs after which something may be

    @property
    def passed(self) -> bool:
        return not (self.violations or self.complaints or self.invalid)

    @property
    def lost(self) -> bool:
        """Whether acknowledged changes were lost: what a control run must show."""
        return bool(self.violations.keys() & {"R1", "R4", "R5", "R6", "R9", "R10"})

    def render(self) -> str:
        counts = ", ".join(f"{count} {out}" for out, count in sorted(self.outcomes.items()))
        head = (
            f"{'passed' if self.passed else 'FAILED'}: nemesis {self.nemesis}, profile "
            f"{self.profile}, seed {self.seed}: {self.strikes} faults, {self.operations} "
            f"operations in {self.seconds:.0f} s ({counts})"
        )
        lines = [head]
        if self.phases:
            lines.append(", ".join(f"{name} {took} s" for name, took in self.phases.items()))
        if self.notifications:
            told = ", ".join(f"{number} {what}" for what, number in self.notifications.items())
            lines.append(f"notifications: {told}")
        lines += [f"forgotten: {one.render()}" for one in self.forgotten]
        lines += [f"{rule}: {count} × {RULES[rule]}" for rule, count in self.violations.items()]
        lines += [f"complaint: {text}" for text in self.complaints]
        lines += [f"proves nothing: {text}" for text in self.invalid]
        return "\n".join([*lines, *self.shown])


def judge(
    run: Run,
    ops: list[Op],
    violations: list[Violation],
    strikes: int = 0,
    complaints: list[str] | None = None,
    most_unknown: float = 0.2,
    least: int = LEAST,
) -> Verdict:
    """Sum up. A run that hardly did anything, or hardly learned anything, is invalid."""
    done = [op for op in ops if op.f not in EVENTS]
    outcomes = Counter(UNSENT if op.out == FAIL and not op.status else op.out for op in done)
    since, seconds = _span(done)
    invalid = too_little(ops, most_unknown, least)
    notifications = telling.count(ops)
    counts = Counter(violation.rule for violation in violations)
    shown: list[str] = []
    for rule in sorted(counts):
        some = [violation for violation in violations if violation.rule == rule][:SHOWN]
        shown += [violation.render(since) for violation in some]
    return Verdict(
        nemesis=run.nemesis,
        profile=run.profile,
        seed=run.seed,
        strikes=strikes,
        seconds=round(seconds, 1),
        operations=len(done) - outcomes[UNSENT],
        outcomes={out: count for out, count in outcomes.items() if count},
        violations=dict(sorted(counts.items())),
        complaints=complaints or [],
        invalid=invalid,
        shown=shown,
        notifications=notifications,
    )


def too_little(ops: list[Op], most_unknown: float = 0.2, least: int = LEAST) -> list[str]:
    """Why a history proves nothing: what it lacks. How long it took does not matter."""
    done = [op for op in ops if op.f not in EVENTS]
    outcomes = Counter(op.out for op in done)
    lacking = []
    if outcomes[OK] < least:
        lacking.append(f"only {outcomes[OK]} operations succeeded")
    if outcomes[INFO] > most_unknown * len(done):
        lacking.append(f"{outcomes[INFO]} of {len(done)} outcomes are unknown")
    return lacking


def _span(done: list[Op]) -> tuple[float, float]:
    """When the first was sent, and how many seconds later the last was answered."""
    since = min((op.t0 for op in done), default=0.0)
    return since, max((op.t1 for op in done), default=0.0) - since


def keep(folder: Path, verdict: Verdict) -> None:
    encoded = msgspec.json.encode(verdict)
    (folder / "verdict.json").write_bytes(msgspec.json.format(encoded, indent=2))
