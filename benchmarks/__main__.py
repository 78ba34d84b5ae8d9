"""`python -m benchmarks`: run the scenarios, print the figures and the table of goals."""

import argparse
import gc
import json
import os
import platform
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import uvloop

from benchmarks import footprint, in_flight, subscribers, traffic, wakeup
from benchmarks.report import HEADING, Result, as_json, goal_lines, lines_of
from benchmarks.rig import FULL, QUICK, Rig, Sizes
from benchmarks.server import ServerFailedError, make_directory, remove_directory
from benchmarks.wire import Target, WrongAnswerError

Scenario = Callable[[Rig], Awaitable[Result]]

GROUPS: tuple[dict[str, Scenario], ...] = (
    {
        "ping": traffic.ping,
        "post1": traffic.post1,
        "post10": traffic.post10,
        "cycle1": traffic.cycle1,
        "cycle10": traffic.cycle10,
        "list": traffic.list_pages,
        "mix": traffic.mix,
        "wake-up": wakeup.wake_up,
    },
    {
        "notify": subscribers.notify,
        "subscribed": subscribers.subscribed,
        "latency": subscribers.latency,
        "healthy": subscribers.healthy,
    },
    {"memory": footprint.memory, "start": footprint.start, "claims": in_flight.claims},
)
"""The scenarios; those of one group share a server and its store."""

NAMES = [name for group in GROUPS for name in group]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--store",
        default="",
        metavar="URI",
        help="store of the server; default: SQLite in a new directory",
    )
    parser.add_argument(
        "--url", type=_target, help="a server that runs already, instead of starting one"
    )
    parser.add_argument(
        "--scenarios", type=_scenarios, default=NAMES, metavar="A,B", help=f"of {','.join(NAMES)}"
    )
    parser.add_argument("--seconds", type=float, metavar="N", help="length of one timed run")
    parser.add_argument("--connections", type=int, default=32, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a file too")
    parser.add_argument(
        "--quick", action="store_true", help="small counts and short runs, under a minute"
    )
    return parser.parse_args(arguments)


def _target(url: str) -> Target:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or parts.path.strip("/"):
        raise argparse.ArgumentTypeError("expected http://HOST:PORT")
    return Target(parts.hostname, parts.port or 80)


def _scenarios(names: str) -> list[str]:
    chosen = names.replace(",", " ").split()
    if unknown := set(chosen) - set(NAMES):
        raise argparse.ArgumentTypeError(
            f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}"
        )
    return chosen


def main(arguments: Sequence[str] | None = None, sizes: Sizes | None = None) -> int:
    """Exit status: 0, or 1 where any answer was wrong. `sizes` overrides the two known ones."""
    options = parse_arguments(arguments)
    sizes = sizes or (QUICK if options.quick else FULL)
    if options.seconds:
        sizes = replace(sizes, seconds=options.seconds)
    directory = make_directory()
    try:
        results = uvloop.run(_run(options, sizes, directory))
    finally:
        remove_directory(directory)
    scale = f"(at most {sizes.in_flight[-1]:,} in flight, {sizes.stored:,} stored, {sizes.waiters:,} waiters)"
    print("", *goal_lines(results, scale), sep="\n")
    if options.json:
        machine = {
            "python": platform.python_version(),
            "system": platform.platform(),
            "cores": os.cpu_count(),
        }
        options.json.write_text(json.dumps(as_json(results, machine), indent=2))
    wrong = sum(len(result.errors) for result in results)
    if wrong:
        print(f"\n{wrong} wrong answers", file=sys.stderr)
    return 1 if wrong else 0


async def _run(options: argparse.Namespace, sizes: Sizes, directory: Path) -> list[Result]:
    results: list[Result] = []
    print(HEADING, flush=True)
    for number, group in enumerate(GROUPS):
        chosen = {name: scenario for name, scenario in group.items() if name in options.scenarios}
        if not chosen:
            continue
        home = directory / str(number)
        home.mkdir()
        rig = Rig(sizes, options.connections, home, options.store, options.url)
        try:
            await rig.open()
            for name, scenario in chosen.items():
                result = await _one(rig, name, scenario)
                results.append(result)
                print(*lines_of(result), sep="\n", flush=True)
            await rig.close()
        except ServerFailedError as failure:
            results.append(Result(next(iter(chosen)), errors=[str(failure)]))
            print(*lines_of(results[-1]), sep="\n", flush=True)
        finally:
            rig.disconnect()
            if rig.server is not None:
                await rig.server.kill()
        remove_directory(home)  # a million messages need not wait for the end
    return results


async def _one(rig: Rig, name: str, scenario: Scenario) -> Result:
    """One scenario; whatever it found wrong becomes an error of its result."""
    rig.errors = []
    gc.collect()
    gc.freeze()  # what is here now need not be looked at again between the runs
    try:
        result = await scenario(rig)
    except (WrongAnswerError, msgspec.MsgspecError, OSError, TimeoutError) as error:
        result = Result(name, errors=[str(error) or type(error).__name__])
    finally:
        gc.unfreeze()
    result.errors += rig.errors
    return result


if __name__ == "__main__":
    sys.exit(main())
