"""Play seeds: ``python -m tests.deterministic --seed 7 --trace``, or ``--seeds 1000 --seconds 60``."""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections import Counter
from pathlib import Path

from tests.chaos.harness.history import History
from tests.deterministic.bugs import BUGS
from tests.deterministic.judging import translated
from tests.deterministic.play import Player, Result, stage
from tests.deterministic.scripts import BY_NAME


def main() -> int:
    arguments = _parser().parse_args()
    with stage() as player:
        if arguments.seed is not None:
            trace = print if arguments.trace else None
            result = player.play(arguments.seed, arguments.bug, trace, arguments.scene)
            print(result.render())
            _keep(result, arguments.keep)
            return 0 if result.passed else 1
        return _many(player, arguments)


def _many(player: Player, arguments: argparse.Namespace) -> int:
    """As many seeds as there is time for; how many, and which of them failed."""
    first = random.randrange(10**9) if arguments.first is None else arguments.first
    began, spent = time.monotonic(), time.process_time()
    failed: list[int] = []
    totals: Counter[str] = Counter()
    scenes: Counter[str] = Counter()
    seed = first
    for seed in range(first, first + arguments.seeds):
        result = player.play(seed, arguments.bug, scene=arguments.scene)
        scenes[result.scene] += 1
        totals.update(result.struck)
        totals.update(
            {
                "operations": len(result.ops),
                "steps": result.steps,
                "deaths": result.deaths,
                "power cuts": result.cuts,
                "times that a node stood still": result.stills,
                "moves undone": result.events.get("a move is undone", 0),
            }
        )
        if not result.passed:
            failed.append(seed)
            print(result.render(), flush=True)
            _keep(result, arguments.keep)
        if (
            time.monotonic() - began > arguments.seconds
            or time.process_time() - spent > arguments.cpu_seconds
        ):
            break
    took, cpu = time.monotonic() - began, time.process_time() - spent
    played = seed - first + 1
    print(
        f"{played} seeds from {first} on in {took:.0f} s ({60 * played / took:.0f} a minute, "
        f"{60 * played / cpu:.0f} a minute of CPU)"
    )
    for counter in (scenes, totals):
        print(", ".join(f"{number} {what}" for what, number in sorted(counter.items())))
    print(f"FAILED: {', '.join(map(str, failed))}" if failed else "all passed")
    return 1 if failed else 0


def _keep(result: Result, folder: Path | None) -> None:
    """In the words that `python -m tests.chaos recheck` knows."""
    if folder is not None:
        with History(folder / f"seed-{result.seed}", result.run) as history:
            for op in translated(result.run, result.ops):
                history.add(op)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.deterministic", description=__doc__)
    parser.add_argument("--seed", type=int, help="play this one")
    parser.add_argument("--scene", choices=sorted(BY_NAME), default="", help="all in this one")
    parser.add_argument("--trace", action="store_true", help="print every call of the store")
    parser.add_argument("--seeds", type=int, default=1000, help="play so many")
    parser.add_argument("--seconds", type=float, default=60.0, help="or stop after so long")
    parser.add_argument("--cpu-seconds", type=float, default=math.inf, help="or of so much CPU")
    parser.add_argument("--first", type=int, help="the first of them; else one that nobody chose")
    parser.add_argument("--bug", choices=sorted(BUGS), default="", help="plant this one")
    parser.add_argument("--keep", type=Path, help="where to leave histories that failed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
