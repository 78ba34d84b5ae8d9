"""`python -m benchmarks.soak`: a steady load for hours; memory, room, times and open files meanwhile."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from benchmarks.server import make_directory, remove_directory
from benchmarks.soak import report
from benchmarks.soak.load import Plan
from benchmarks.soak.run import Soak
from benchmarks.stores import KINDS


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 if a message is not accounted for or an answer was wrong or missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument(
        "--store",
        default="sqlite",
        help=f"a URI, or a kind of which one is started: {', '.join(KINDS)}",
    )
    parser.add_argument("--seconds", type=float, default=Plan().seconds, metavar="N")
    parser.add_argument("--rate", type=float, default=Plan().rate, metavar="N", help="posts/s")
    parser.add_argument(
        "--sample", type=float, default=Plan().sample_s, metavar="N", help="seconds"
    )
    parser.add_argument(
        "--keep", type=Path, default=Path("benchmarks/results/soak"), metavar="DIR",
        help="where samples, report and plot go",
    )  # fmt: skip
    parser.add_argument("--report", action="store_true", help="run nothing, report what DIR has")
    options = parser.parse_args(arguments)
    keep: Path = options.keep
    keep.mkdir(parents=True, exist_ok=True)
    if not options.report:
        plan = Plan(seconds=options.seconds, rate=options.rate, sample_s=options.sample)
        _run(plan, options.store, keep / report.SAMPLES)
    record = report.read(keep / report.SAMPLES)
    lines = [*report.summary(record), "", *report.table(record)]
    print(*lines, sep="\n")
    (keep / "report.md").write_text("\n".join(lines) + "\n")
    _draw(record, keep / "plot.png")
    return 0 if record.end is not None and not record.end["faults"] else 1


def _run(plan: Plan, store: str, file: Path) -> None:
    home = make_directory()
    try:
        with file.open("w") as lines:
            uvloop.run(Soak(plan, store, home, lines).run())
    finally:
        remove_directory(home)


def _draw(record: report.Record, file: Path) -> None:
    try:
        from benchmarks.soak import plot
    except ImportError:
        print("no plot: matplotlib is not installed; make soak does it", file=sys.stderr)
        return
    plot.draw(record, file)


if __name__ == "__main__":
    sys.exit(main())
