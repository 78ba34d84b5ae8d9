"""The rules of the house that can be read from its files: what is documented, who imports whom,
what is never used."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from nusku import errors
from nusku.broker import OPERATIONS
from nusku.broker.operation import ADMIN, ANYONE
from nusku.config import Settings
from nusku.http import document
from tests.conftest import _spread

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


# Errors


def classes_of_errors() -> list[type[errors.NuskuError]]:
    return [
        value
        for value in vars(errors).values()
        if isinstance(value, type)
        and issubclass(value, errors.NuskuError)
        and value is not errors.NuskuError
    ]


def test_errors_page_is_what_the_code_says() -> None:
    """After a change: `python -m nusku.errors > docs/errors.md`."""
    assert (ROOT / "docs/errors.md").read_text() == errors.catalogue()


@pytest.mark.parametrize("error", classes_of_errors(), ids=lambda error: error.__name__)
def test_every_error_is_in_the_catalogue(error: type[errors.NuskuError]) -> None:
    meaning = " ".join((error.__doc__ or "").split())
    assert meaning, "the docstring is the entry in the catalogue"
    assert f"| {error.status} | `{error.title}` | {meaning} |" in errors.catalogue()


def test_the_catalogue_can_be_printed() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "nusku.errors"], capture_output=True, text=True, check=True
    )
    assert printed.stdout == errors.catalogue()


def test_what_a_client_can_be_told_is_a_4xx_or_503() -> None:
    """500 is for what nobody foresaw: nothing is raised for it."""
    assert {error.status for error in classes_of_errors()} == {
        400,
        401,
        403,
        404,
        406,
        409,
        415,
        503,
    }


# Operations


def operation_ids() -> set[str]:
    paths = cast("dict[str, dict[str, Any]]", document(Settings(), "0")["paths"])
    return {
        node["operationId"]
        for item in paths.values()
        for method, node in item.items()
        if method != "parameters"
    }


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_has_a_rule_and_is_described(operation: str) -> None:
    assert OPERATIONS[operation] in {ANYONE, ADMIN}
    assert operation in operation_ids()


def test_every_operation_is_guarded() -> None:
    """Each is named where the broker's methods are, behind @operation."""
    guarded = set(
        re.findall(
            r'@operation\("(.+?)"\)',
            "".join(path.read_text() for path in SOURCES if "broker" in path.parts),
        )
    )
    for kind in ("queues", "topics"):
        guarded |= {name.replace("*", kind) for name in guarded}
    assert {name for name in guarded if "*" not in name} == set(OPERATIONS)


# Imports


def test_imports_point_down() -> None:
    """The contracts in pyproject.toml, as `make check` looks at them."""
    told = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stdout


def test_every_module_is_in_a_layer() -> None:
    """A module that no contract names could import what it likes."""
    tops = {path.name.removesuffix(".py") for path in (ROOT / "src/nusku").iterdir()}
    tops -= {"__init__", "__main__", "__pycache__", "py.typed"}
    layers = (ROOT / "pyproject.toml").read_text().partition("[tool.importlinter]")[2]
    assert {top for top in tops if f"nusku.{top}" not in layers} == set()


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in SOURCES:
        yield path, ast.parse(path.read_text(), str(path))


DANGEROUS = {"pickle", "cPickle", "marshal", "shelve", "dill", "yaml", "jsonpickle", "code"}
DANGEROUS_CALLS = {"eval", "exec", "compile", "__import__"}


def test_nothing_received_or_stored_can_become_code() -> None:
    found = []
    for path, tree in trees():
        for node in ast.walk(tree):
            match node:
                case ast.Import():
                    names = {alias.name.partition(".")[0] for alias in node.names} & DANGEROUS
                case ast.ImportFrom(module=str(module)):
                    names = {module.partition(".")[0]} & DANGEROUS
                case ast.Call(func=ast.Name(id=name)):
                    names = {name} & DANGEROUS_CALLS
                case _:
                    continue
            found += [f"{name_of(path)}:{node.lineno}: {name}" for name in names]
    assert found == []


# SQL

SQL = re.compile(
    r"\s*(SELECT|INSERT|UPDATE|DELETE|REPLACE|WITH|PRAGMA|BEGIN|CREATE|ALTER|DROP|VACUUM|ATTACH)\b"
)
CONSTANT = re.compile(r"_?[A-Z][A-Z0-9_]*")
EXECUTE = {"execute", "executemany", "executescript"}

# What cannot be a parameter: a number that a loop over known versions counts; names of schemas and
# channels, of which a URI may only have letters, digits and underscores; files of our own.
POSTGRES = "src/nusku/storage/postgres"
COUNTED = {
    "src/nusku/storage/sqlite/schema.py": ("{version + 1}",),
    f"{POSTGRES}/__init__.py": ("{address.schema}",),
    f"{POSTGRES}/listening.py": ("{self._channel}",),
    f"{POSTGRES}/schema.py": ("schema", "{name}", "{meta}", "range(parameters)", "_sql("),
}


def is_fixed(node: ast.expr) -> bool:
    """Whether this is the same in every process: literals and constants of modules."""
    match node:
        case ast.Constant():
            return True
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return CONSTANT.fullmatch(name) is not None
        case ast.Subscript(value=value):
            return is_fixed(value)  # one of several
        case ast.BinOp(left=one, right=other) | ast.IfExp(body=one, orelse=other):
            return is_fixed(one) and is_fixed(other)
        case ast.JoinedStr(values=values):
            return all(is_fixed(value) for value in values)
        case ast.FormattedValue(value=value):
            return is_fixed(value)
    return False


def loose_parts(node: ast.AST) -> Iterator[ast.expr]:
    """What is put into SQL text and is not fixed."""
    match node:
        case ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]) if SQL.match(text):
            yield from (value for value in node.values if not is_fixed(value))
        case ast.BinOp(left=ast.Constant(value=str(text)), right=right) if SQL.match(text):
            yield from [] if is_fixed(right) else [right]
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(text)), attr="format")):
            yield from node.args if SQL.match(text) else []
        case ast.Call(func=ast.Attribute(attr=method), args=[text, *_]) if method in EXECUTE:
            # A plain name may be handed down; where its text was made is looked at as well.
            if not isinstance(text, ast.Name) and not is_fixed(text):
                yield text


def loose_sql(name: str, source: str) -> list[str]:
    return [
        f"{name}:{part.lineno}: {ast.unparse(part)}"
        for node in ast.walk(ast.parse(source))
        for part in loose_parts(node)
        if not any(counted in ast.unparse(part) for counted in COUNTED.get(name, ()))
    ]


def test_values_reach_sql_as_parameters_only() -> None:
    stores = [path for path in SOURCES if "storage" in path.parts]
    assert stores
    found = [each for path in stores for each in loose_sql(name_of(path), path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    ("source", "loose"),
    [
        ('db.execute("SELECT 1")', False),
        ("db.execute(INSERT, (name,))", False),
        ('db.execute("PRAGMA a = 1" if fast else "PRAGMA a = 2")', False),
        ('GET = f"SELECT {_COLUMNS} FROM messages"', False),
        ("db.execute(f\"SELECT * FROM queues WHERE name = '{name}'\")", True),
        ('sql = f"SELECT * FROM {table}"', True),
        ('db.execute("SELECT * FROM " + table)', True),
        ('db.execute("SELECT %s" % name)', True),
        ('db.execute("SELECT {}".format(name))', True),
        ("db.execute(queries[0])", True),
        ("db.execute(sql_for(name))", True),
        ('db.execute(f"{start} WHERE id = 1")', True),
    ],
)
def test_the_rule_on_sql_finds_what_it_should(source: str, loose: bool) -> None:
    assert bool(loose_sql("example.py", source)) is loose


# The repository


def test_ci_can_be_run() -> None:
    ci = ROOT / ".ci/run"
    assert os.access(ci, os.X_OK)
    assert ci.read_text().startswith("#!")


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", ".ci/run"])
def test_commands_named_exist(page: str) -> None:
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", (ROOT / page).read_text(), re.MULTILINE))
    assert named
    assert named <= make_targets()


def test_makefile_has_what_others_rely_on() -> None:
    assert {"serve", "test", "quick", "check", "bench", "chaos"} <= make_targets()


class NamedItem(pytest.Item):
    """A test that is never run."""

    def runtest(self) -> None:
        raise NotImplementedError


def test_a_few_variants_are_the_first_the_last_and_some_between(
    request: pytest.FixtureRequest,
) -> None:
    def spread(names: list[str], number: int) -> list[str]:
        items = [NamedItem.from_parent(request.session, name=name) for name in names]
        return [item.name for item in _spread(items, number)]

    names = [f"test_many[{n}]" for n in range(9)]
    assert spread([*names, "test_one"], 3) == [names[0], names[4], names[8], "test_one"]
    assert spread(names, 2) == [names[0], names[8]]
    assert spread(names, 1) == names[:1]
    assert spread(names, 9) == names
