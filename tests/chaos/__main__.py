"""Runs under faults from the command line: `python -m tests.chaos --help`."""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.harness.checker import check
from tests.chaos.harness.generator import PROFILES
from tests.chaos.harness.history import load
from tests.chaos.harness.nemesis import NEMESES
from tests.chaos.harness.pending import LEAST_A_MINUTE, Wave, play_pending
from tests.chaos.harness.places import STORES
from tests.chaos.harness.play import play
from tests.chaos.harness.report import Verdict, judge, keep
from tests.chaos.harness.sim import BUGS, judge_planted, judge_right
from tests.chaos.harness.stage import NEVER, Plan
from tests.servers.programs import Missing

STRETCH = 50  # faults in one run of `crash`; each run has a seed of its own


def main() -> int:
    """Exit code 0: every run passed; 1: one failed or proves nothing."""
    arguments = _parser().parse_args()
    return 0 if arguments.run(arguments) else 1


def _run(arguments: argparse.Namespace) -> bool:
    plan = Plan(
        nemesis=arguments.nemesis,
        store=arguments.store,
        nodes=arguments.nodes or (1 if arguments.store == "sqlite" else 3),
        profile=arguments.profile,
        seed=arguments.seed,
        seconds=arguments.seconds,
        strikes=arguments.strikes,
        settings={"NUSKU_SQLITE_SYNCHRONOUS": arguments.synchronous},
        safe=not arguments.control,
    )
    if plan.nodes > 1 and plan.store == "sqlite":
        sys.exit("one server owns an SQLite file")
    verdict = _play(plan, arguments.keep)
    if arguments.control:
        print(f"control: {'lost, as it must' if verdict.lost else 'KEPT'}")
        return verdict.lost
    return verdict.passed


def _crash(arguments: argparse.Namespace) -> bool:
    """Many kills, then many power cuts, then the control that must lose."""
    end = time.monotonic() + arguments.seconds
    passed = True
    for nemesis, wanted in (("kill", arguments.kills), ("power", arguments.cuts)):
        reason = NEMESES[nemesis].why_not()
        if reason:
            print(f"{nemesis} skipped: {reason}")
            continue
        done = 0
        while done < wanted and (left := end - time.monotonic()) > 0:
            strikes = min(STRETCH, wanted - done)
            plan = Plan(
                nemesis=nemesis,
                seed=arguments.seed + done,
                seconds=left,
                strikes=strikes,
                pause=(0.1, 1.5),
            )
            verdict = _play(plan, arguments.keep)
            passed &= verdict.passed or (verdict.strikes < strikes and not verdict.violations)
            done += strikes
    if arguments.cuts and not NEMESES["power"].why_not():
        settings = {"NUSKU_SQLITE_SYNCHRONOUS": "normal"}
        plan = Plan("power", seed=arguments.seed, strikes=10, pause=(0.3, 1.0), settings=settings)
        control = _play(plan, arguments.keep)
        print(f"control with synchronous=normal: {'lost, as it must' if control.lost else 'KEPT'}")
        passed &= control.lost
    return passed


def _pending(arguments: argparse.Namespace) -> bool:
    """Deliveries pending while the server dies, again and again with other seeds."""
    passed = True
    for seed in range(arguments.seed, arguments.seed + arguments.runs):
        settings = {"NUSKU_SQLITE_SYNCHRONOUS": arguments.synchronous}
        plan = Plan(nemesis=arguments.nemesis, seed=seed, settings=settings)
        wave = Wave(arguments.deliveries, arguments.strikes)
        passed &= _play(plan, arguments.keep, wave).passed
    return passed


def _recheck(arguments: argparse.Namespace) -> bool:
    run, ops = load(arguments.folder)
    begin = time.monotonic()
    violations = check(run, ops)
    took = time.monotonic() - begin
    faults = sum(1 for op in ops if op.f == "fault")
    most_unknown = NEMESES[run.nemesis].most_unknown if run.nemesis in NEMESES else 1.0
    least = LEAST_A_MINUTE if run.profile == "pending" else 1000
    verdict = judge(run, ops, violations, faults, most_unknown=most_unknown, least_a_minute=least)
    keep(arguments.folder, verdict)
    print(verdict.render())
    print(f"{len(ops)} operations judged in {took:.1f} s")
    return verdict.passed


def _selftest(arguments: argparse.Namespace) -> bool:
    total, alarms = 0, 0
    seeds = range(arguments.seed, arguments.seed + arguments.histories)
    for seed in seeds:
        operations, false = judge_right(seed)
        total, alarms = total + operations, alarms + len(false)
        for alarm in false:
            print(f"seed {seed}: false alarm: {alarm}")
    print(f"{len(seeds)} right histories, {total} operations: {alarms} false alarms")
    missed = []
    for bug in BUGS:
        struck = [caught for seed in seeds[:10] if (caught := judge_planted(bug, seed)) is not None]
        print(f"{bug}: caught in {sum(struck)} of {len(struck)}")
        if not any(struck):
            missed.append(bug)
    return not alarms and not missed


def _play(plan: Plan, kept: Path | None, wave: Wave | None = None) -> Verdict:
    nemesis = NEMESES[plan.nemesis]
    if plan.store not in nemesis.stores:
        sys.exit(f"nemesis {plan.nemesis} is for {', '.join(nemesis.stores)}")
    reason = nemesis.why_not()
    if reason:
        sys.exit(f"nemesis {plan.nemesis}: {reason}")
    name = f"{plan.nemesis}-{plan.store}-{plan.seed}-{time.strftime('%H%M%S')}"
    folder = (kept or Path(tempfile.mkdtemp(prefix="nusku-chaos-"))) / name
    print(f"{dataclasses.asdict(plan)}\nin {folder}", flush=True)
    try:
        verdict = play(plan, folder) if wave is None else play_pending(plan, wave, folder)
    except Missing as missing:
        sys.exit(str(missing))
    print(verdict.render(), flush=True)
    return verdict


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    commands = parser.add_subparsers(required=True)

    run = commands.add_parser("run", help="one run under one nemesis")
    run.add_argument("--nemesis", choices=sorted(NEMESES), default="kill")
    run.add_argument("--profile", choices=sorted(PROFILES), default="mixed")
    run.add_argument("--seconds", type=float, default=60.0)
    run.add_argument("--strikes", type=int, default=NEVER, help="stop after so many faults")
    run.add_argument("--store", type=_store, default="sqlite", help=", ".join(STORES))
    run.add_argument("--nodes", type=int, help="servers on it; 3 if it can be shared")
    run.add_argument("--control", action="store_true", help="unsafe: has to be seen to lose")
    run.set_defaults(run=_run)

    crash = commands.add_parser("crash", help="many kills and power cuts, and the control")
    crash.add_argument("--kills", type=int, default=300)
    crash.add_argument("--cuts", type=int, default=500)
    crash.add_argument("--seconds", type=float, default=4 * 3600.0, help="stop after so long")
    crash.set_defaults(run=_crash)

    pending = commands.add_parser("pending", help="deliveries pending while the server dies")
    pending.add_argument("--nemesis", choices=("kill", "power"), default="kill")
    pending.add_argument("--deliveries", type=int, default=10_000, help="pending at once")
    pending.add_argument("--strikes", type=int, default=3, help="in each of the five parts")
    pending.add_argument("--runs", type=int, default=5, help="each with a seed of its own")
    pending.set_defaults(run=_pending)

    recheck = commands.add_parser("recheck", help="judge a kept history by today's rules")
    recheck.add_argument("folder", type=Path)
    recheck.set_defaults(run=_recheck)

    selftest = commands.add_parser("selftest", help="simulated services, right and wrong")
    selftest.add_argument("--histories", type=int, default=300)
    selftest.set_defaults(run=_selftest)

    for command in (run, pending):
        command.add_argument("--synchronous", choices=("full", "normal"), default="full")
    for command in (run, crash, pending):
        command.add_argument("--keep", type=Path, help="where to leave histories and logs")
    for command in (run, crash, pending, selftest):
        command.add_argument("--seed", type=int, default=random.randrange(10**6))
    return parser


def _store(text: str) -> str:
    """The kind of a store, from its name or from the beginning of a URI."""
    kind = text.partition(":")[0].replace("+", "-")
    if kind not in STORES:
        raise argparse.ArgumentTypeError(f"not one of {', '.join(STORES)}")
    return kind


if __name__ == "__main__":
    sys.exit(main())
