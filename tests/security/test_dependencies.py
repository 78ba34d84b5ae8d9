"""What the service is made of beside itself: little, fixed to the byte, and no more than is said (SEC-34)."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
MOST = 12
BEHIND = {"aiodns": "aiohttp resolves names by it", "httptools": "uvicorn parses HTTP by it"}
SPOKEN = {"aiohttp": {"yarl", "multidict"}}
"""Packages that others take and give objects of: who has the one has these."""


def project() -> dict[str, Any]:
    parsed: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return parsed


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def named(requirement: str) -> str:
    """The package that a requirement is about."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return normal(found[0])


def locked(path: Path) -> dict[str, str]:
    """The packages of a lock file, with all that it says of each."""
    entries = path.read_text().replace("\\\n", " ").splitlines()
    return {named(entry): entry for entry in entries if entry and entry[0] not in "#-"}


def test_the_base_install_needs_little() -> None:
    assert len(project()["dependencies"]) <= MOST


def test_every_dependency_is_locked() -> None:
    asked = [*project()["dependencies"]]
    for extra in project()["optional-dependencies"].values():
        asked += extra
    assert {named(one) for one in asked} <= set(locked(ROOT / "requirements/run.txt"))


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_a_lock_fixes_each_package_to_the_byte(path: Path) -> None:
    assert locked(path)
    for name, entry in locked(path).items():
        assert re.match(r"[A-Za-z0-9._-]+(\[[a-z0-9,]+\])?==\S+ ", entry), f"{name} is not pinned"
        assert "--hash=sha256:" in entry, f"{name} has no hash"
    text = path.read_text()
    # Where packages come from is for each machine to know.
    for word in (
        "://",
        "--index-url",
        "--extra-index-url",
        "--find-links",
        "--trusted-host",
        " @ ",
    ):
        assert word not in text


def imported() -> Iterator[tuple[str, str]]:
    """Packages that the source imports, and where."""
    for path in sorted((ROOT / "src/nusku").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import(names=aliases):
                    modules = [alias.name for alias in aliases]
                case ast.ImportFrom(module=str(module), level=0):
                    modules = [module]
                case _:
                    continue
            for module in modules:
                yield module.partition(".")[0], str(path.relative_to(ROOT))


def test_what_is_imported_is_what_is_asked_for() -> None:
    """Nothing comes along by accident, as a dependency of a dependency; and nothing in vain."""
    asked = {named(one) for one in project()["dependencies"]}
    for extra in project()["optional-dependencies"].values():
        asked |= {named(one) for one in extra}
    allowed = asked | {one for by, several in SPOKEN.items() if by in asked for one in several}
    distributions = packages_distributions()
    used: set[str] = set()
    for module, path in imported():
        if module == "nusku" or module in sys.stdlib_module_names:
            continue
        of = {normal(name) for name in distributions.get(module, ())}
        assert of & allowed, f"{path} imports {module}, of {of or 'nothing that is installed'}"
        used |= of & asked
    assert asked - used == set(BEHIND)
