"""The whole suite, several pytest processes at a time: ``python -m tests``.

Most tests wait more than they compute, so there are more processes than cores. Each part of the
suite is one process; the longest come first. What a part has to say is printed when it has ended.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SHARED = ("postgresql", "redis", "redis-cluster")
OVER_HTTP = ("tests/http", "tests/clients")
ELSEWHERE = ("http", "notify", "security", "clients", "chaos", "storage")

NOTHING = 5  # pytest's exit code when there was no test to run

AT_ONCE = 2 * (os.cpu_count() or 2)


@dataclass(frozen=True)
class Part:
    """Some folders on some stores."""

    name: str
    arguments: Sequence[str]


PARTS = (
    Part("the rest", ["tests", *(f"--ignore=tests/{folder}" for folder in ELSEWHERE)]),
    Part("faults", ["tests/chaos"]),
    Part("security", ["tests/security"]),
    Part("HTTP and clients on sqlite", OVER_HTTP),
    Part("storage on postgresql", ["tests/storage", "--store=postgresql"]),
    # What is refused is so before it comes to a store: all variants of that are tried on SQLite only.
    # Those that start servers of their own again and again do so there, too.
    *(
        Part(
            f"HTTP and clients on {store}",
            (*OVER_HTTP, f"--store={store}", "--variants=2", "-m", "not slow"),
        )
        for store in SHARED
    ),
    Part("notifications", ["tests/notify"]),
    *(
        Part(f"storage on {store}", ["tests/storage", f"--store={store}"])
        for store in ("sqlite", "redis", "redis-cluster")
    ),
    Part("copying between stores", ["tests/storage/test_copying.py"]),
)


def run(part: Part, folder: Path, more: Sequence[str]) -> int:
    """Run one part, print what it said, and return how it ended."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    start = time.monotonic()
    process = subprocess.Popen(
        [*pytest, f"--basetemp={folder / part.name.replace(' ', '-')}", *part.arguments, *more],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "COLUMNS": "100"},
    )
    assert process.stdout is not None
    with process.stdout:
        lines = process.stdout.read().splitlines()
    _, status, used = os.wait4(process.pid, 0)  # with the time of all that it waited for
    process.returncode = os.waitstatus_to_exitcode(status)
    # Nothing was chosen by those who asked for a few tests only.
    good = process.returncode == 0 or (process.returncode == NOTHING and bool(more))
    spent_s, cpu_s = time.monotonic() - start, used.ru_utime + used.ru_stime
    end = "passed" if good else "FAILED"
    told = [f"== {part.name}: {end} after {spent_s:.0f} s, {cpu_s:.0f} s of CPU"]
    told += [line for line in lines if not line.endswith("%]")]
    print("\n".join(told), "\n", flush=True)
    return 0 if good else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests", description=__doc__)
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="processes at a time")
    parser.add_argument("--part", action="append", default=[], help="only parts with this name")
    options, more = parser.parse_known_args()
    os.chdir(Path(__file__).parents[1])
    parts = [
        part
        for part in PARTS
        if not options.part or any(wanted in part.name for wanted in options.part)
    ]
    start = time.monotonic()
    # A folder for each, as the processes tidy up behind one another otherwise.
    with (
        tempfile.TemporaryDirectory(prefix="nusku-tests-", ignore_cleanup_errors=True) as folder,
        ThreadPoolExecutor(options.at_once) as threads,
    ):
        ends = list(threads.map(lambda part: run(part, Path(folder), more), parts))
    failed = [part.name for part, end in zip(parts, ends, strict=True) if end]
    print(f"{len(parts)} parts in {time.monotonic() - start:.0f} s;", end=" ")
    print(f"FAILED: {', '.join(failed)}" if failed else "all passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
