"""Tier T1 of one store: each fault as often as the tables below say, and each control once.

What was played is a line in `DIR/runs.jsonl`, and is not played again: who ends a tier and starts it
with the same folder goes on where it was. `DIR/summary.md` says what it came to. Histories are kept
of runs that failed.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from tests.chaos.harness import recording as recorder
from tests.chaos.harness.checker import RULES
from tests.chaos.harness.forgotten import Forgotten, table
from tests.chaos.harness.images import Keep, moments
from tests.chaos.harness.nemesis import NEMESES
from tests.chaos.harness.play import play
from tests.chaos.harness.recorded import STORE, first_mark, record, try_out
from tests.chaos.harness.stage import Plan
from tests.servers.programs import Missing

RUNS, SUMMARY = "runs.jsonl", "summary.md"
IMAGES = "images"  # in place of a nemesis
SECONDS = 900.0  # after which a run ends with less than it should do
VOID = 3  # runs in a row that prove nothing, after which a part is given up
LOST_SHARE = 0.1  # of the images of a control that must have lost something
QUICK, CALM = (0.05, 0.4), (0.5, 2.0)  # s between two faults


@dataclass(frozen=True)
class Part:
    """`times` faults in runs of at most `chunk`, or images made up from recordings."""

    nemesis: str
    times: int
    chunk: int = 10
    pause: tuple[float, float] = CALM
    profiles: tuple[str, ...] = ()  # in turn; none: what fits the store
    control: bool = False  # has to fail

    @property
    def name(self) -> str:
        words = [self.nemesis]
        if self.control:
            words.append("control")
        if len(self.profiles) == 1:
            words += self.profiles
        return " ".join(words)


_HARD = ("mixed", "fifo", "claims", "ttl")
_SIMPLE = ("held", "fifo")  # without dead letters, of which it is not known when they moved

TIERS: dict[str, tuple[Part, ...]] = {
    "sqlite": (
        Part("power", 500, 50, QUICK, _HARD),
        Part("kill", 300, 50, QUICK, _HARD),
        Part("ioerr", 300, 30, QUICK),
        Part(IMAGES, 20_000, 2000),
        Part("replies", 30),
        Part("kill", 20, 10, CALM, ("webhooks",)),
        Part("freeze", 40),
        Part("clock", 30),
        Part("both", 20),
        Part("term", 20),
        Part("diskfull", 10),
        Part("limits", 10),
        Part("slowdisk", 5),
    ),
    "postgresql": (
        Part("pg-failover", 40, 8),
        Part("pg-storm", 100, 50, QUICK),
        Part("pg-kill", 50, 25, QUICK),
        Part("kill", 60, 20, QUICK),
        Part("pg-cut", 30, 15),
        Part("pg-terminate", 20),
        Part("pg-waits", 20),
        Part("both", 20),
        Part("freeze", 40),
        Part("clock", 30),
        Part("pg-bouncer", 10),
        Part("term", 20),
    ),
    "redis": (
        Part("redis-kill", 40, 20, QUICK),
        Part("redis-sentinel", 40, 10),
        Part("kill", 60, 20, QUICK),
        Part("redis-cut", 30, 15),
        Part("both", 20),
        Part("freeze", 40),
        Part("clock", 30),
        Part("term", 20),
    ),
    "redis-cluster": (
        Part("redis-failover", 40, 10),
        Part("redis-operators", 40, 20),
        Part("redis-double", 42, 7, QUICK, ("nodes", *_SIMPLE)),
        Part("redis-double-everysec", 40, 8, QUICK, _SIMPLE),
        Part("redis-rejoined", 10, 5, QUICK, _SIMPLE),
        Part("kill", 60, 20, QUICK),
        Part("both", 20),
        Part("freeze", 40),
        Part("term", 20),
    ),
}
"""What each tier consists of, in this order. Nemeses that are not here are played a few times."""

FEW = 5  # faults of a nemesis without a line above
IN_TURN = {"pg-all", "pg-standby", "redis-all", "redis-cluster-all", "none"}
"""Nemeses that only do what others do."""
OWN_CONTROLS = {IMAGES, "power", "replies", "pg-failover", "redis-failover", "redis-double"}
"""What has a control without a planted fault."""
ON_SQLITE_ONLY = {"kill", "freeze"}
"""Their controls are servers with a fault that other stores do not have."""


class Ran(msgspec.Struct):
    """What came of one run. `done` are faults, or images."""

    part: str
    nemesis: str
    profile: str
    seed: int
    control: bool = False
    done: int = 0
    operations: int = 0
    seconds: float = 0.0
    outcomes: dict[str, int] = {}
    violations: dict[str, int] = {}
    complaints: list[str] = []
    invalid: list[str] = []
    forgotten: list[Forgotten] = []
    shown: bool = False  # of a control: it was seen to fail
    kept: str = ""  # where its history is

    @property
    def failed(self) -> bool:
        return not self.control and bool(self.violations or self.complaints)

    @property
    def counts(self) -> bool:
        """Whether it says something."""
        return self.shown if self.control else self.failed or not self.invalid


class Standing(msgspec.Struct):
    """How far a part has come."""

    part: Part
    runs: list[Ran]
    missing: str = ""  # why this machine cannot do it

    @property
    def done(self) -> int:
        return sum(run.done for run in self.runs if run.counts)

    @property
    def given_up(self) -> bool:
        return len(self.runs) >= VOID and not any(run.counts for run in self.runs[-VOID:])

    @property
    def open(self) -> bool:
        if self.missing or self.given_up:
            return False
        return not self.done if self.part.control else self.done < self.part.times

    @property
    def verdict(self) -> str:
        if self.missing:
            return f"skipped: {self.missing}"
        if any(run.failed for run in self.runs):
            return "**FAILED**"
        if self.given_up:
            return "**did not fail**" if self.part.control else "**proves nothing**"
        if self.open:
            return "to be done"
        return "failed, as it must" if self.part.control else "passed"


class Tier:
    """One tier, of which some may have been played already."""

    def __init__(self, store: str, state: Path, seed: int) -> None:
        self.store = store
        self.state = state
        state.mkdir(parents=True, exist_ok=True)
        first = state / "seed"
        if first.exists():
            seed = int(first.read_text())
        first.write_text(str(seed))
        self.seed = seed
        self.standings = [Standing(part, [], _why_not(part)) for part in parts(store)]
        self._look()

    def _look(self) -> None:
        """Read what was played; another process may be playing other parts."""
        told = self.state / RUNS
        lines = told.read_bytes().splitlines() if told.exists() else []
        ran = [msgspec.json.decode(line, type=Ran) for line in lines]
        for standing in self.standings:
            standing.runs = [run for run in ran if run.part == standing.part.name]

    @property
    def passed(self) -> bool:
        """Nothing failed, and nothing that this machine can do is left."""
        bad = (one.open or one.given_up or "FAILED" in one.verdict for one in self.standings)
        return not any(bad)

    def play(self, names: Sequence[str], tell: Callable[[Standing, Ran], None]) -> None:
        """Play what is open of these parts, or of all; `tell` hears of each run."""
        for standing in self.standings:
            while standing.open and (not names or standing.part.name in names):
                run = self._play(standing)
                with (self.state / RUNS).open("ab") as runs:
                    runs.write(msgspec.json.encode(run) + b"\n")
                self._look()
                (self.state / SUMMARY).write_text(self.summary())
                tell(standing, run)

    def _play(self, standing: Standing) -> Ran:
        part, turn = standing.part, len(standing.runs)
        seed = random.Random(f"{self.seed}/{part.name}/{turn}").randrange(10**9)
        number = min(part.chunk, part.times - standing.done)
        begin = time.monotonic()
        try:
            if part.nemesis == IMAGES:
                run = _try_images(part, seed, number)
            else:
                run = self._play_plan(part, _plan(part, self.store, seed, turn, number))
        except Missing:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, others can still be played
            run = Ran(part.name, part.nemesis, "", seed, part.control)
            run.invalid = [f"it could not be played: {error!r}"]
        run.seconds = round(time.monotonic() - begin, 1)
        return run

    def _play_plan(self, part: Part, plan: Plan) -> Ran:
        folder = self.state / f"{part.name.replace(' ', '-')}-{plan.seed}"
        shutil.rmtree(folder, ignore_errors=True)
        verdict = play(plan, folder)
        run = Ran(
            part.name,
            plan.nemesis,
            plan.profile,
            plan.seed,
            part.control,
            verdict.strikes,
            verdict.operations,
            outcomes=verdict.outcomes,
            violations=verdict.violations,
            complaints=verdict.complaints,
            invalid=verdict.invalid,
            forgotten=verdict.forgotten,
            shown=part.control and NEMESES[plan.nemesis].shown(verdict),
        )
        if run.failed or run.invalid:
            (folder / "verdict.txt").write_text(verdict.render())
            run.kept = str(folder)
        else:
            shutil.rmtree(folder)
        return run

    def summary(self) -> str:
        """A table in Markdown."""
        lines = [
            f"# Tier T1 on {self.store}, seed {self.seed}",
            "",
            "| part | faults | of | runs | operations | ok | refused | unknown | violations "
            "| minutes | verdict |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [_row(standing) for standing in self.standings]
        runs = [run for one in self.standings if not one.part.control for run in one.runs]
        if forgotten := table((run.part, one) for run in runs for one in run.forgotten):
            lines += ["", "Forgotten of what was answered (least / median / most):", "", *forgotten]
        failed = [run for run in runs if run.failed]
        for run in failed:
            lines += ["", f"FAILED: {run.part}, seed {run.seed}, kept in {run.kept}:"]
            lines += [
                f"* {rule}: {count} × {RULES[rule]}" for rule, count in run.violations.items()
            ]
            lines += [f"* {text}" for text in run.complaints]
        void = [run for one in self.standings for run in one.runs if not run.counts]
        lines += ["", f"Runs that proved nothing, and were repeated: {len(void)}."]
        lines += [f"* {run.part}, seed {run.seed}: {'; '.join(run.invalid)}" for run in void]
        lines.append("")
        return "\n".join(lines)


def parts(store: str) -> list[Part]:
    """All parts of the tier of a store, controls behind what they stand for."""
    listed = list(TIERS[store])
    known = {part.nemesis for part in listed} | IN_TURN
    listed += [
        Part(name, FEW)
        for name, nemesis in NEMESES.items()
        if store in nemesis.stores and name not in known
    ]
    return [*listed, *_controls(store, listed)]


def _controls(store: str, listed: Sequence[Part]) -> Iterator[Part]:
    """One control of each nemesis that has one."""
    seen = set()
    for part in listed:
        if part.nemesis in seen:
            continue
        seen.add(part.nemesis)
        nemesis = NEMESES.get(part.nemesis)
        own = part.nemesis in OWN_CONTROLS
        planted = bool(nemesis and nemesis.planted)
        if own or (planted and (store == "sqlite" or part.nemesis not in ON_SQLITE_ONLY)):
            times = 80 if part.nemesis == IMAGES else 6
            yield Part(part.nemesis, times, times, control=True)


def _why_not(part: Part) -> str:
    if part.nemesis == IMAGES:
        return recorder.why_not()
    return NEMESES[part.nemesis].why_not()


def _plan(part: Part, store: str, seed: int, turn: int, number: int) -> Plan:
    shared = store != "sqlite"
    profiles = part.profiles or (("nodes",) if shared else ("mixed",))
    plan = Plan(
        part.nemesis,
        store,
        3 if shared else 1,
        profiles[turn % len(profiles)],
        seed,
        seconds=SECONDS,
        strikes=number,
        pause=part.pause,
        safe=not part.control,
    )
    if part.control and part.nemesis == "power":
        return replace(plan, settings={"NUSKU_SQLITE_SYNCHRONOUS": "normal"})
    return plan


def _try_images(part: Part, seed: int, number: int) -> Ran:
    """Record a server, and try disks that cuts could have left of its work."""
    with tempfile.TemporaryDirectory(prefix="nusku-images-") as folder:
        library = recorder.build(Path(folder))
        recording = record(library, Path(folder), "normal" if part.control else "full")
        cuts = moments(recording, STORE, -(-number // len(Keep)), first_mark(recording), seed)
        tried = try_out(recording, cuts, seed)
    run = Ran(part.name, IMAGES, "", seed, part.control, tried.images)
    run.shown = part.control and tried.lost > tried.images * LOST_SHARE
    run.violations = {"R1": len(tried.bad)} if tried.bad else {}
    run.complaints = tried.bad[:10]
    return run


def _row(standing: Standing) -> str:
    part, runs = standing.part, standing.runs
    outcomes = sum((Counter(run.outcomes) for run in runs), Counter[str]())
    violations = sum((Counter(run.violations) for run in runs), Counter[str]())
    done = sum(run.done for run in runs) if part.control else standing.done
    cells = [
        part.name,
        f"{done:,}",
        f"{part.times:,}",
        len(runs),
        f"{sum(run.operations for run in runs):,}",
        f"{outcomes['ok']:,}",
        f"{outcomes['fail']:,}",
        f"{outcomes['info']:,}",
        ", ".join(f"{count} {rule}" for rule, count in sorted(violations.items())) or "0",
        f"{sum(run.seconds for run in runs) / 60:.1f}",
        standing.verdict,
    ]
    return "| " + " | ".join(map(str, cells)) + " |"
