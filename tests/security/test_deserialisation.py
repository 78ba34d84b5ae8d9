"""Nothing that was sent is ever taken for code or for objects, and everything comes back as it was.

The source holds no way to make objects of bytes but JSON; the running server is watched at it; and
any JSON value returns equal and of the same type, by whichever way it is read.
"""

from __future__ import annotations

import ast
import json
import math
import os
import pickle
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import nusku
from tests.live import Api, LiveServer, expect

SOURCES = Path(nusku.__file__).parent

# Modules that make objects or code of bytes or text, or that run commands.
FORBIDDEN_MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "pickletools",
    "cloudpickle",
    "dill",
    "joblib",
    "jsonpickle",
    "marshal",
    "shelve",
    "dbm",
    "yaml",
    "ruamel",
    "xml",
    "lxml",
    "plistlib",
    "multiprocessing",
    "subprocess",
    "code",
    "codeop",
    "runpy",
    "ctypes",
    "cffi",
    "jinja2",
    "mako",
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "globals", "input", "breakpoint"}
FORBIDDEN_FUNCTIONS = {"os.system", "posix.system"}  # others may have members of that name
FORBIDDEN_ATTRIBUTES = {
    "popen",
    "execv",
    "execve",
    "spawnl",
    "spawnv",
    "import_module",
    "exec_module",
    "find_class",
    "loads_pickle",
    "enable_load_extension",
    "load_extension",
    "create_function",
    "set_trace",
}


# -- the source ------------------------------------------------------------------------------------


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SOURCES.rglob("*.py")):
        yield str(path.relative_to(SOURCES)), ast.parse(path.read_text(), str(path))


def imported(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module, node.lineno


def test_the_source_imports_nothing_that_makes_objects_or_code_of_bytes() -> None:
    looked_at = 0
    for name, tree in trees():
        looked_at += 1
        for module, line in imported(tree):
            parts = set(module.split("."))
            assert not parts & FORBIDDEN_MODULES, f"{name}:{line} imports {module}"
    assert looked_at > 20


def test_the_source_calls_nothing_that_makes_code_of_text() -> None:
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in FORBIDDEN_CALLS, f"{name}:{node.lineno}"
            if isinstance(node, ast.Attribute):
                assert node.attr not in FORBIDDEN_ATTRIBUTES, f"{name}:{node.lineno}"
                assert ast.unparse(node) not in FORBIDDEN_FUNCTIONS, f"{name}:{node.lineno}"


def test_only_named_types_are_decoded_from_the_store() -> None:
    """No type is ever chosen by what is decoded: a decoder gets a type written in the source."""
    for name, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr not in {"decode", "Decoder"}:
                continue
            for keyword in node.keywords:
                where = f"{name}:{node.lineno}: {ast.unparse(node)}"
                assert keyword.arg not in {"dec_hook", "ext_hook", "object_hook"}, where
                if keyword.arg == "type":
                    assert isinstance(keyword.value, ast.Name | ast.Attribute), where


# -- the running server ----------------------------------------------------------------------------

WATCHER = """
    import os, sys

    def watch(event, arguments):
        if event in ("pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "ctypes.dlopen"):
            with open(os.environ["SEEN"], "a") as seen:
                print(event, arguments, file=seen)

    sys.addaudithook(watch)

    import pickle, _pickle
    def refused(*arguments, **more):
        with open(os.environ["SEEN"], "a") as seen:
            print("pickle", file=seen)
        raise AssertionError("pickle was called")
    for module in (pickle, _pickle):
        module.load = module.loads = module.dump = module.dumps = refused
"""


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[LiveServer, Path]]:
    """A server in which pickle fails and tells, and which notes every command that is run."""
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "sitecustomize.py").write_text(textwrap.dedent(WATCHER))
    seen = tmp_path / "seen.txt"
    monkeypatch.setenv("SEEN", str(seen))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path / "hooks"), os.environ.get("PYTHONPATH", "")])
    )
    (tmp_path / "policy.yaml").write_text('"queues:purge": "role:admin"\n')
    policy = str(tmp_path / "policy.yaml")
    with LiveServer(tmp_path, enable_checksum=True, policy_file=policy) as server:
        yield server, seen


class Bomb:
    """Would make a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_no_pickle_is_made_or_opened_by_a_running_server(
    watched: tuple[LiveServer, Path], tmp_path: Path
) -> None:
    server, seen = watched
    api, target = server.api(), tmp_path / "made-by-a-pickle"
    bombs = [
        pickle.dumps(Bomb(target), protocol=0).decode(),
        pickle.dumps(Bomb(target), protocol=2).decode("latin-1"),
        "cos\nmkdir\n(S'" + str(target) + "'\ntR.",
        "!!python/object/apply:os.mkdir ['" + str(target) + "']",
        "__import__('os').mkdir('" + str(target) + "')",
        "N.",
        "",
    ]
    nested = [{"py/object": "os.mkdir", "py/reduce": [bombs[0]]}, {"__class__": "os.mkdir"}]
    values = [*bombs, *nested]
    expect(api.create("q", {"values": values, "_flavor": bombs[0]}), 400)  # there is no such one
    expect(api.create("q", {"values": values}), 201)
    ids = api.post_bodies("q", *values)
    assert expect(api.show("q"), 200)["values"] == values
    assert api.listed("q", "?echo=true&limit=20") == values
    assert [expect(api.message("q", id_), 200)["body"] for id_ in ids] == values
    claim = api.claimed("q", "?limit=4")
    assert claim.bodies == values[:4]
    expect(api.show_claim("q", claim.claim_id), 200)
    assert api.popped("q") == values[4:]
    expect(api.create("locked", {"_enable_encrypt_messages": True, "values": values}), 201)
    api.post_bodies("locked", *values)
    assert api.claimed("locked", "?limit=4").bodies == values[:4]
    assert api.popped("locked") == values[4:]
    expect(api.purge("locked"), 403)
    for raw in (pickle.dumps(Bomb(target)), bombs[0].encode()):
        for content_type in ("application/json", "application/x-python-pickle"):
            expect(api.send("POST", api.path("q", "messages"), raw, content_type), 400)
        expect(api.get("/v2/queues/q/messages", headers={**api.headers, "Cookie": str(raw)}), 200)
    assert api.get("/metrics").status_code == 200
    expect(api.get("/v2/health", headers={**api.headers, "X-Roles": "admin"}), 200)
    assert not target.exists()
    assert not seen.exists(), seen.read_text()


def test_the_watcher_works(watched: tuple[LiveServer, Path]) -> None:
    """A check of the check: pickle, called where the watcher is, is refused and told of."""
    import subprocess
    import sys

    _, seen = watched
    done = subprocess.run(
        [sys.executable, "-c", "import pickle; pickle.loads(b'N.')"],
        capture_output=True,
        check=False,
    )
    assert done.returncode != 0
    assert "pickle" in seen.read_text()


# -- what comes back -------------------------------------------------------------------------------

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
_scalars = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-(2**63), max_value=2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _text
    | st.sampled_from(
        ["N.", "null", "true", "1", "1.0", "", "\x00", "\u2028", "😀", "\ufeff", "\x7f", "\\u0041"]
    )
)
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(_text, inner, max_size=5),
    max_leaves=20,
)


def same(one: Any, other: Any) -> bool:
    """Equal and of the same type, all the way down: 1, 1.0 and true are three different things."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return bool(one == other)


def insist_same(got: Any, sent: Any) -> None:
    assert same(got, sent), f"sent {sent!r}, got {got!r}"


roundtrip = settings(
    deadline=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@roundtrip
@given(values=st.lists(_values, min_size=1, max_size=5), escaped=st.booleans())
@example(values=[0, 0.0, -0.0, False, None, "", [], {}, 1, 1.0, True, "1"], escaped=True)
@example(values=[2**63 - 1, -(2**63), 2**53 + 1, 1e308, 5e-324, 1e22, 1e21, 0.1], escaped=False)
@example(values=[{"b": 1, "a": 2, "": 3, " ": 4, "é": 5, "\x00": 6}], escaped=True)
def test_any_body_comes_back_equal_and_of_the_same_type(
    values: list[Any], escaped: bool, either: Api
) -> None:
    document = json.dumps({"messages": [{"body": v} for v in values]}, ensure_ascii=escaped)
    answer = either.send("POST", either.path("q", "messages"), document)
    ids = [path.rsplit("/", 1)[1] for path in expect(answer, 201)["resources"]]
    for body, value in zip(either.listed("q", "?echo=true&limit=20"), values, strict=True):
        insist_same(body, value)
    insist_same(expect(either.message("q", ids[0]), 200)["body"], values[0])
    several = expect(either.messages("q", ids), 200)["messages"]
    for message, value in zip(several, values, strict=True):
        insist_same(message["body"], value)
    if either.kind.noun == "queues":
        claim = either.claimed("q", "?limit=20")
        shown = expect(either.show_claim("q", claim.claim_id), 200)["messages"]
        for n, value in enumerate(values):
            insist_same(claim.bodies[n], value)
            insist_same(shown[n]["body"], value)
        expect(either.release("q", claim.claim_id), 204)
    for body, value in zip(either.popped("q"), values, strict=True):
        insist_same(body, value)


@roundtrip
@given(value=_values, key=_text.filter(str.strip))
@example(value={"n": [1, 1.0, True, -0.0, 2**63 - 1, None]}, key="_unknown")
@example(value="x", key="a/b~c~0~1")
def test_any_metadata_comes_back_equal_and_of_the_same_type(
    value: Any, key: str, either: Api
) -> None:
    name = f"k{key}"
    expect(either.create("q", {name: value, "other": [value]}), 201)
    shown = expect(either.show("q"), 200)
    insist_same(shown[name], value)
    insist_same(shown["other"], [value])
    path = "/metadata/k" + key.replace("~", "~0").replace("/", "~1")
    patch = [{"op": "replace", "path": "/metadata/other", "value": value}]
    if name == name.strip():  # blanks round a key are trimmed in a path
        patch.append({"op": "replace", "path": path, "value": [value]})
    patched = expect(either.patch("q", patch), 200)
    insist_same(patched["other"], value)
    if len(patch) > 1:
        insist_same(patched[name], [value])
    insist_same(expect(either.show("q"), 200), patched)
    [listed] = expect(either.list_queues("?detailed=true"), 200)[either.kind.noun]
    insist_same(listed["metadata"], patched)
    expect(either.drop("q"), 204)


@settings(roundtrip, max_examples=15)
@given(values=st.lists(_values, min_size=1, max_size=5))
def test_bodies_come_back_from_a_dead_letter_queue_as_they_were(
    values: list[Any], api: Api
) -> None:
    api.drop("q")
    expect(api.create("q", {"_max_claim_count": 0, "_dead_letter_queue": "dead"}), 201)
    api.post_bodies("q", *values)
    expect(api.claim("q", "?limit=20"), 204)
    for body, value in zip(api.popped("dead"), values, strict=True):
        insist_same(body, value)


@pytest.mark.slow
def test_bodies_come_back_after_a_restart_as_they_were(tmp_path: Path) -> None:
    values: list[Any] = [
        None,
        True,
        1,
        1.0,
        -0.0,
        "N.",
        "\x00😀",
        {"b": {}, "a": []},
        2**63 - 1,
        5e-324,
    ]
    with LiveServer(tmp_path) as server:
        first = server.api()
        first.post_bodies("q", *values)
        expect(first.create("m", {"values": values}), 201)
    with LiveServer(tmp_path) as server:
        api = server.api(project=first.project)
        insist_same(api.listed("q", "?echo=true&limit=20"), values)
        insist_same(expect(api.show("m"), 200)["values"], values)


def test_numbers_keep_their_spelling_where_json_leaves_a_choice(either: Api) -> None:
    """What reads as a float stays one, however it was written."""
    for text in ("1.0", "1e2", "1E+2", "100.00", "-0.0", "1e-7", "0.1e1", "123456789012345678.0"):
        expect(
            either.send(
                "POST", either.path("q", "messages"), f'{{"messages":[{{"body":{text}}}]}}'
            ),
            201,
        )
        [body] = either.popped("q")
        insist_same(body, json.loads(text))
        expect(either.send("PUT", either.path("m"), f'{{"n":{text}}}'), 201)
        insist_same(expect(either.show("m"), 200)["n"], json.loads(text))
        expect(either.drop("m"), 204)
