"""Runs under faults from the command line: `python -m tests.chaos --help`."""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from tests.chaos.harness import pending, report
from tests.chaos.harness.checker import check
from tests.chaos.harness.forgotten import forgive
from tests.chaos.harness.generator import PROFILES
from tests.chaos.harness.history import load
from tests.chaos.harness.long import Long, Tally, play_long
from tests.chaos.harness.nemesis import NEMESES
from tests.chaos.harness.pending import Wave, play_pending
from tests.chaos.harness.places import STORES
from tests.chaos.harness.play import play
from tests.chaos.harness.report import Verdict, judge, keep
from tests.chaos.harness.sim import BUGS, judge_planted, judge_right
from tests.chaos.harness.stage import NEVER, Plan
from tests.chaos.harness.tier import Ran, Standing, Tier
from tests.servers.programs import Missing

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

TRIED = 5  # histories with each planted bug; it does not strike in all


def main() -> int:
    """Exit code 0: every run passed; 1: one failed or proves nothing."""
    arguments = _parser().parse_args()
    return 0 if arguments.run(arguments) else 1


def _plan(arguments: argparse.Namespace, **more: Any) -> Plan:
    return Plan(
        nemesis=arguments.nemesis,
        store=arguments.store,
        nodes=arguments.nodes or (1 if arguments.store == "sqlite" else 3),
        profile=arguments.profile,
        seed=arguments.seed,
        seconds=arguments.seconds,
        **more,
    )


def _run(arguments: argparse.Namespace) -> bool:
    plan = _plan(
        arguments,
        strikes=arguments.strikes,
        pause=arguments.pause,
        settings={"NUSKU_SQLITE_SYNCHRONOUS": arguments.synchronous},
        safe=not arguments.control,
    )
    if plan.nodes > 1 and plan.store == "sqlite":
        sys.exit("one server owns an SQLite file")
    verdict = _play(plan, arguments.keep)
    if arguments.control:
        shown = NEMESES[plan.nemesis].shown(verdict)
        print(f"control: {'failed, as it must' if shown else 'PASSED'}")
        return shown
    return verdict.passed


def _tier(arguments: argparse.Namespace) -> bool:
    """Tier T1 of a store: what its table lists, and is not done yet."""
    state = arguments.state or Path("build") / "chaos" / arguments.store
    tier = Tier(arguments.store, state, arguments.seed)
    names = [standing.part.name for standing in tier.standings]
    if unknown := set(arguments.part) - set(names):
        sys.exit(f"no part {', '.join(unknown)}; there are {', '.join(names)}")
    print(f"tier T1 on {tier.store}, seed {tier.seed}, in {state}", flush=True)
    wanted = [
        one for one in tier.standings if not arguments.part or one.part.name in arguments.part
    ]
    bar: ProgressBar[str | None]
    with click.progressbar(length=1000 * len(wanted), item_show_func=_named) as bar:

        def tell(standing: Standing, run: Ran) -> None:
            done = sum(1.0 if not one.open else one.done / one.part.times for one in wanted)
            bar.update(int(1000 * done) - bar.pos, standing.part.name)
            if not sys.stdout.isatty() or not run.counts:
                print(f"{time.strftime('%H:%M:%S')} {_line(standing, run)}", flush=True)

        try:
            tier.play(arguments.part, tell)
        except Missing as missing:
            sys.exit(str(missing))
    print(tier.summary())
    return tier.passed


def _named(part: str | None) -> str:
    return part or ""


def _line(standing: Standing, run: Ran) -> str:
    word = "FAILED" if run.failed else "passed" if run.counts else "proves nothing"
    if run.control:
        word = "failed, as it must" if run.shown else "control did NOT fail"
    wrong = [*run.violations, *run.complaints[:3], *run.invalid]
    return (
        f"{run.part}: {run.done} in {run.seconds} s, {run.operations} operations, seed {run.seed}: "
        f"{word} {wrong or ''} ({standing.done} of {standing.part.times})"
    )


def _pending(arguments: argparse.Namespace) -> bool:
    """Deliveries pending while the server dies, again and again with other seeds."""
    passed = True
    for seed in range(arguments.seed, arguments.seed + arguments.runs):
        settings = {"NUSKU_SQLITE_SYNCHRONOUS": arguments.synchronous}
        plan = Plan(nemesis=arguments.nemesis, seed=seed, settings=settings)
        wave = Wave(arguments.deliveries, arguments.strikes)
        passed &= _play(plan, arguments.keep, wave).passed
    return passed


def _long(arguments: argparse.Namespace) -> bool:
    """Many operations in many episodes."""
    plan = _plan(arguments, pause=(2.0, 6.0))
    state = arguments.state or Path("build") / "chaos" / f"long-{arguments.store}"
    print(f"seed {plan.seed}, state in {state}", flush=True)
    long = Long(plan, arguments.operations, arguments.struck_every)
    with click.progressbar(length=long.operations, label="operations", show_pos=True) as bar:

        def tell(tally: Tally) -> None:
            bar.update(tally.operations - bar.pos)
            if not sys.stdout.isatty():
                rate = tally.operations / max(tally.seconds, 1)
                wrong = f"{len(tally.failed)} failed, {tally.void} void"
                text = f"{tally.passed} episodes, {tally.operations} operations, {rate:.0f}/s"
                print(f"{time.strftime('%H:%M:%S')} {text}, {wrong}", flush=True)

        tally = play_long(long, state, tell)
    print(msgspec.json.format(msgspec.json.encode(tally), indent=2).decode())
    return not tally.failed and tally.operations >= long.operations


def _recheck(arguments: argparse.Namespace) -> bool:
    run, ops = load(arguments.folder)
    begin = time.monotonic()
    forgotten, violations = forgive(ops, check(run, ops))
    took = time.monotonic() - begin
    faults = sum(1 for op in ops if op.f == "fault" and op.who == run.nemesis)
    most_unknown = NEMESES[run.nemesis].most_unknown if run.nemesis in NEMESES else 1.0
    least = pending.LEAST if run.profile == "pending" else report.LEAST
    verdict = judge(run, ops, violations, faults, most_unknown=most_unknown, least=least)
    verdict.forgotten = forgotten
    keep(arguments.folder, verdict)
    print(verdict.render())
    print(f"{len(ops)} operations judged in {took:.1f} s")
    return verdict.passed


def _selftest(arguments: argparse.Namespace) -> bool:
    total, alarms = 0, 0
    seeds = range(arguments.seed, arguments.seed + arguments.histories)
    begin = time.process_time()
    with click.progressbar(seeds, label="right histories") as bar:
        for seed in bar:
            operations, false = judge_right(seed)
            total, alarms = total + operations, alarms + len(false)
            for alarm in false:
                print(f"seed {seed}: false alarm: {alarm}", flush=True)
    took = time.process_time() - begin
    print(f"{len(seeds)} right histories from seed {arguments.seed} on, {total} operations", end="")
    print(f" in {took:.0f} s of processor time: {alarms} false alarms", flush=True)
    missed = []
    for bug in BUGS:
        tried = range(arguments.seed, arguments.seed + TRIED)
        struck = [caught for seed in tried if (caught := judge_planted(bug, seed)) is not None]
        print(f"{bug}: caught in {sum(struck)} of {len(struck)}", flush=True)
        if not any(struck):
            missed.append(bug)
    print(f"{len(BUGS) - len(missed)} of {len(BUGS)} planted bugs caught")
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
    run.add_argument("--pause", type=_span, default=(2.0, 8.0), help="s between faults, as 2,8")
    run.add_argument("--store", type=_store, default="sqlite", help=", ".join(STORES))
    run.add_argument("--nodes", type=int, help="servers on it; 3 if it can be shared")
    run.add_argument("--control", action="store_true", help="unsafe: has to be seen to lose")
    run.set_defaults(run=_run)

    tier = commands.add_parser("tier", help="all faults of a store, about an hour; resumable")
    tier.add_argument("--store", type=_store, default="sqlite", help=", ".join(STORES))
    tier.add_argument("--state", type=Path, help="what is done; build/chaos/STORE")
    tier.add_argument("--part", action="append", default=[], help="only this one; repeatable")
    tier.set_defaults(run=_tier)

    pending = commands.add_parser("pending", help="deliveries pending while the server dies")
    pending.add_argument("--nemesis", choices=("kill", "power"), default="kill")
    pending.add_argument("--deliveries", type=int, default=10_000, help="pending at once")
    pending.add_argument("--strikes", type=int, default=3, help="in each of the five parts")
    pending.add_argument("--runs", type=int, default=5, help="each with a seed of its own")
    pending.set_defaults(run=_pending)

    long = commands.add_parser("long", help="millions of operations, hardly any faults; resumable")
    long.add_argument("--store", type=_store, default="sqlite", help=", ".join(STORES))
    long.add_argument("--nodes", type=int, help="servers on it; 3 if it can be shared")
    long.add_argument("--operations", type=int, default=10_000_000)
    long.add_argument("--state", type=Path, help="what is done; build/chaos/long-STORE")
    long.add_argument("--profile", choices=sorted(PROFILES), default="long")
    long.add_argument("--seconds", type=float, default=60.0, help="of load in each episode")
    long.add_argument("--nemesis", choices=sorted(NEMESES), default="kill")
    long.add_argument("--struck-every", type=int, default=10, help="episodes without faults")
    long.set_defaults(run=_long)

    recheck = commands.add_parser("recheck", help="judge a kept history by today's rules")
    recheck.add_argument("folder", type=Path)
    recheck.set_defaults(run=_recheck)

    selftest = commands.add_parser("selftest", help="simulated services, right and wrong")
    selftest.add_argument("--histories", type=int, default=300)
    selftest.set_defaults(run=_selftest)

    for command in (run, pending):
        command.add_argument("--synchronous", choices=("full", "normal"), default="full")
    for command in (run, pending):
        command.add_argument("--keep", type=Path, help="where to leave histories and logs")
    for command in (run, tier, pending, long, selftest):
        command.add_argument("--seed", type=int, default=random.randrange(10**6))
    return parser


def _span(text: str) -> tuple[float, float]:
    """Two numbers."""
    shortest, _, longest = text.partition(",")
    return float(shortest), float(longest or shortest)


def _store(text: str) -> str:
    """The kind of a store, from its name or from the beginning of a URI."""
    kind = text.partition(":")[0].replace("+", "-")
    if kind not in STORES:
        raise argparse.ArgumentTypeError(f"not one of {', '.join(STORES)}")
    return kind


if __name__ == "__main__":
    sys.exit(main())
