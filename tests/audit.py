"""Whether there is word of weaknesses in the packages that are locked: ``python -m tests.audit``.

The versions and hashes come from the lock files; the word comes from the package index, which has to be
reachable. Exit codes: 0 nothing is known, 1 something is, 2 nobody could be asked. With ``--offline
pass`` the last is 0, too: a check that cannot be made here is made elsewhere.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REQUIREMENTS = Path(__file__).parents[1] / "requirements"
FIRST = "idna"
"""A package that every index has: asked for alone, before all others are."""
TIMEOUT_S = 10


class Unanswered(Exception):
    """Nobody could say anything."""


def known(requirements: Path) -> Sequence[Any]:
    """What is known of each package. Raises Unanswered."""
    asked = subprocess.run(
        [
            *(sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"),
            *("--disable-pip", "--no-deps", "--timeout", str(TIMEOUT_S)),
            *("--requirement", str(requirements)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        told: Sequence[Any] = json.loads(asked.stdout)["dependencies"]
    except (ValueError, KeyError):
        raise Unanswered(asked.stderr.strip().rpartition("\n")[2]) from None
    if skipped := [one for one in told if "skip_reason" in one]:
        raise Unanswered(skipped[0]["skip_reason"])
    return told


def probe() -> None:
    """Ask for one package. Raises Unanswered."""
    locked = (REQUIREMENTS / "run.txt").read_text()
    [line] = [one for one in locked.splitlines() if one.startswith(f"{FIRST}==")]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as only:
        only.write(line.partition(" ")[0] + "\n")
        only.flush()
        known(Path(only.name))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.audit", description=__doc__)
    parser.add_argument("--offline", choices=["pass", "fail"], default="fail")
    offline = parser.parse_args().offline
    weak = 0
    try:
        probe()
        for path in sorted(REQUIREMENTS.glob("*.txt")):
            for package in known(path):
                for one in package["vulns"]:
                    weak += 1
                    fixed = ", ".join(one["fix_versions"]) or "no version"
                    print(
                        f"{path.name}: {package['name']} {package['version']}: {one['id']},"
                        f" fixed in {fixed}"
                    )
    except Unanswered as why:
        print(f"weaknesses of packages were not looked up: {why}", file=sys.stderr)
        return 0 if offline == "pass" else 2
    return 1 if weak else 0


if __name__ == "__main__":
    sys.exit(main())
