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

from benchmarks import (
    asking,
    asyncpg_rows,
    churn,
    credentials,
    encryption,
    failover,
    fairness,
    footprint,
    in_flight,
    nodes,
    others,
    pools,
    sockets,
    spread,
    subscribers,
    traffic,
    wakeup,
    workers,
)
from benchmarks.report import HEADING, Result, as_json, goal_lines, lines_of
from benchmarks.rig import FULL, QUICK, Rig, Sizes
from benchmarks.server import ServerFailedError, make_directory, remove_directory
from benchmarks.stores import KINDS, Stores
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
        "sockets": sockets.sockets,
        "watchers": sockets.watchers,
    },
    {
        "notify": subscribers.notify,
        "subscribed": subscribers.subscribed,
        "latency": subscribers.latency,
        "healthy": subscribers.healthy,
    },
    {"memory": footprint.memory, "start": footprint.start, "claims": in_flight.claims},
    {
        "credentials": credentials.credentials,
        "encrypted": encryption.encrypted,
        "fairness": fairness.fairness,
        "queues": spread.queues,
        "workers": workers.workers,
        "nodes": nodes.nodes,
        "wake-across": nodes.wake_across,
        "failover": failover.failover,
    },
    {"pools": pools.pools, "slow-commit": pools.slow_commit},
    {"asyncpg": asyncpg_rows.rows, "sqlite": others.sqlite, "zaqar": others.zaqar},
    {"churn": churn.churn},
)
"""The scenarios; those of one group share a server and its store."""

NAMES = [name for group in GROUPS for name in group]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--store",
        type=_store,
        default="sqlite",
        metavar="STORE",
        help=f"a URI, or a kind of which a private one is started: {', '.join(KINDS)}",
    )
    parser.add_argument(
        "--url", type=_target, help="a server that runs already, instead of starting one"
    )
    parser.add_argument(
        "--scenarios", type=_scenarios, default=NAMES, metavar="A,B", help=f"of {','.join(NAMES)}"
    )
    parser.add_argument("--seconds", type=float, metavar="N", help="length of one timed run")
    parser.add_argument("--connections", type=int, default=32, metavar="N")
    parser.add_argument(
        "--zaqar",
        type=_target,
        default=os.environ.get("ZAQAR") or None,
        metavar="URL",
        help="a Zaqar that runs, to be compared with; default: ZAQAR of the environment",
    )
    parser.add_argument(
        "--set",
        type=_setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of servers on a store named by its URI, such as redis_replicas=1",
    )
    parser.add_argument(
        "--stored", type=int, metavar="N", help="messages stored, and in flight at most"
    )
    parser.add_argument("--churned", type=int, metavar="N", help="messages that churn lets pass")
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


def _store(name: str) -> str:
    if name not in KINDS and "://" not in name:
        raise argparse.ArgumentTypeError(f"expected a URI or one of {', '.join(KINDS)}")
    return name


def _setting(text: str) -> tuple[str, str]:
    name, given, value = text.partition("=")
    if not given:
        raise argparse.ArgumentTypeError("expected NAME=VALUE")
    return name, value


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
    if options.stored:
        in_flight_sizes = (options.stored // 10, options.stored)
        sizes = replace(sizes, stored=options.stored, in_flight=in_flight_sizes)
    if options.churned:
        sizes = replace(sizes, churned=options.churned)
    directory = make_directory()
    modes: list[str] = []
    try:
        results = uvloop.run(_run(options, sizes, directory, modes))
    finally:
        remove_directory(directory)
    on = modes[0] if modes else "nothing"
    scale = f"(at most {sizes.in_flight[-1]:,} in flight, {sizes.stored:,} stored, {sizes.waiters:,} waiters)"
    kind = "" if options.url else Stores(options.store, directory).kind
    print(f"\non {on}", *goal_lines(results, scale, kind), sep="\n")
    if options.json:
        machine = {
            "python": platform.python_version(),
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "store": on,
        }
        options.json.write_text(json.dumps(as_json(results, machine), indent=2))
    wrong = sum(len(result.errors) for result in results)
    if wrong:
        print(f"\n{wrong} wrong answers", file=sys.stderr)
    return 1 if wrong else 0


async def _run(
    options: argparse.Namespace, sizes: Sizes, directory: Path, modes: list[str]
) -> list[Result]:
    results: list[Result] = []
    for number, group in enumerate(GROUPS):
        chosen = {name: scenario for name, scenario in group.items() if name in options.scenarios}
        if not chosen:
            continue
        home = directory / str(number)
        home.mkdir()
        home.chmod(0o711)  # a store's server may run as another user
        stores = Stores("" if options.url else options.store, home, dict(options.set))
        rig = None
        try:
            store = None if options.url else await stores.new()
            rig = Rig(
                sizes, options.connections, home, stores, store,
                url=options.url, zaqar=options.zaqar,
            )  # fmt: skip
            if not modes:
                known = store and await asking.mode_of(store.uri, store.settings)
                modes.append(known or f"a server at {options.url.host}:{options.url.port}")
                print(f"on {modes[0]}\n{HEADING}", flush=True)
            await rig.open()
            for name, scenario in chosen.items():
                result = await _one(rig, name, scenario)
                results.append(result)
                print(*lines_of(result), sep="\n", flush=True)
            await rig.close()
        except (ServerFailedError, OSError) as failure:
            results.append(Result(next(iter(chosen)), errors=[str(failure)]))
            print(*lines_of(results[-1]), sep="\n", flush=True)
        finally:
            if rig is not None:
                await rig.kill()
            stores.close()
        remove_directory(home)  # a million messages need not wait for the end
    return results


async def _one(rig: Rig, name: str, scenario: Scenario) -> Result:
    """One scenario; whatever it found wrong becomes an error of its result."""
    rig.errors = []
    gc.collect()
    gc.freeze()  # what is here now need not be looked at again between the runs
    try:
        result = await scenario(rig)
    except (
        WrongAnswerError,
        ServerFailedError,
        msgspec.MsgspecError,
        OSError,
        TimeoutError,
    ) as error:
        result = Result(name, errors=[str(error) or type(error).__name__])
    finally:
        gc.unfreeze()
    result.errors += rig.errors
    return result


if __name__ == "__main__":
    sys.exit(main())
