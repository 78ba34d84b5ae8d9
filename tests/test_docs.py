"""The documentation is true: what it says to type is typed, what it shows is compared.

In README.md and the pages of docs/ a fence says what a block is:

- ```` ```bash ````: commands, run in one shell from the first block of a page to the last. What they
  print is shown in the block behind: ```` ```http ```` or ```` ```json ```` for answers of the
  server, ```` ```text ```` for anything else. A block that prints nothing has none.
- ```` ```sh ````: what cannot be run here as it stands. `make serve` starts a server with the settings
  before it; of anything else make must know the target.

In answers `…` stands for anything, within a string for any part of it. Of the headers those are
compared that are shown. White space in JSON does not count, nor does how old messages are.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from nusku.broker import OPERATIONS
from nusku.config.settings import FIELDS
from nusku.storage import MessageStore, RecordStore, Registry
from tests.live import LiveServer, SettingValue, settings_environment

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WALKED = [
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{name}.md"
        for name in (
            "api-keys",
            "audit",
            "backup",
            "encryption",
            "getting-started",
            "importing",
            "live",
            "notifications",
            "policy",
            "pools",
            "quotas",
            "running",
        )
    ),
]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
DOCUMENTED_URL = "http://127.0.0.1:8888"
SHELL_PATIENCE_S = 60.0

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANSWERS = {"http", "json", "text"}


class Block(NamedTuple):
    language: str
    text: str
    place: str
    """Page and line, for messages."""


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    found = FENCE.finditer(text)
    return [
        Block(f[1], f[2], f"{page.name}:{text.count(chr(10), 0, f.start()) + 1}") for f in found
    ]


def steps_of(page: Path) -> Iterator[tuple[Block, Block | None]]:
    """The blocks to carry out, each with what it has to print."""
    blocks = blocks_of(page)
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if block.language == "sh":
            yield block, None
        elif block.language == "bash":
            shown = following is not None and following.language in ANSWERS
            yield block, following if shown else None


# -- comparing -------------------------------------------------------------------------------------

_AGE = re.compile(r'"age":\d+')  # on a slow machine it may be a second more
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|…|\s+|.', re.DOTALL)


def json_pattern(shown: str) -> str:
    """A regular expression for JSON without white space, from how it is shown."""
    parts = []
    for token in _TOKEN.findall(shown):
        if token == "…":
            parts.append(".*?")
        elif token[0] == '"':
            parts.append(re.escape(token).replace("…", '[^"]*'))
        elif not token.isspace():
            parts.append(re.escape(token))
    return _AGE.sub(r'"age":\\d+', "".join(parts))


def same_json(shown: str, real: str) -> bool:
    if not real.strip():
        return not shown.strip()
    compact = json.dumps(json.loads(real), separators=(",", ":"), ensure_ascii=False)
    return re.fullmatch(json_pattern(shown), compact, re.DOTALL) is not None


def same_line(shown: str, real: str) -> bool:
    return re.fullmatch(re.escape(shown).replace("…", ".*"), real) is not None


def answers_in(text: str) -> list[tuple[list[str], str]]:
    """The head and the body of each answer in what `curl -i` printed, or in what is shown of it."""
    answers = []
    for part in re.split(r"^(?=HTTP/1\.1 )", text.replace("\r", ""), flags=re.MULTILINE):
        if part.strip():
            head, _, body = part.partition("\n\n")
            answers.append((head.strip().split("\n"), body))
    return answers


def same_answer(shown: tuple[list[str], str], real: tuple[list[str], str]) -> bool:
    (status, *headers), body = shown
    (real_status, *real_headers), real_body = real
    return (
        status == real_status
        and all(any(same_line(h, r) for r in real_headers) for h in headers)
        and same_json(body, real_body)
    )


def same_text(shown: str, real: str) -> bool:
    """Line by line; a line `…` stands for any number of them."""
    pattern = ""
    for line in shown.strip().split("\n"):
        pattern += "(.*\n)*?" if line == "…" else re.escape(line).replace("…", ".*") + "\n"
    return re.fullmatch(pattern, real.strip() + "\n") is not None


def check(command: Block, shown: Block | None, real: str) -> None:
    """Raise AssertionError unless a command printed what is shown."""
    told = f"{command.place}:\n{command.text}\nprinted\n\n{real}"
    if shown is None:
        assert not real.strip(), told
    elif shown.language == "http":
        want, got = answers_in(shown.text), answers_in(real)
        assert len(want) == len(got), told
        for one, other in zip(want, got, strict=True):
            assert same_answer(one, other), f"{told}\nwhere this is shown:\n\n{one}"
    else:
        same = same_json if shown.language == "json" else same_text
        assert same(shown.text, real), f"{told}\nwhere this is shown:\n\n{shown.text}"


@pytest.mark.parametrize(
    ("shown", "real", "same"),
    [
        ('{"a": 1}', '{"a":1}', True),
        ('{"a": 1}', '{"a":2}', False),
        ('{"a": …}', '{"a":[1,{"b":2}]}', True),
        ('{"id": "x…"}', '{"id":"xyz"}', True),
        ('{"id": "x…"}', '{"id":"xyz","b":"z"}', False),
        ('[{…, "b": 2}]', '[{"a":1,"b":2}]', True),
        ('[{…, "b": 2}]', '[{"a":1,"b":3}]', False),
        ('{"age": 0}', '{"age":1}', True),
        ("", '{"a":1}', False),
        ('{"a": 1}', "", False),
        ("", "\n", True),
    ],
)
def test_json_is_compared_but_for_the_dots(shown: str, real: str, same: bool) -> None:
    assert same_json(shown, real) is same


@pytest.mark.parametrize(
    ("shown", "same"),
    [
        ("HTTP/1.1 201 Created\nlocation: /v2/…\n\n{}", True),
        ("HTTP/1.1 201 Created\n\n{}", True),
        ("HTTP/1.1 200 OK\n\n{}", False),
        ("HTTP/1.1 201 Created\nlocation: /v3/…\n\n{}", False),
        ("HTTP/1.1 201 Created\nlocation: /v2/…\n", False),
    ],
)
def test_answers_are_compared_in_status_headers_and_body(shown: str, same: bool) -> None:
    real = answers_in("HTTP/1.1 201 Created\r\ndate: now\r\nlocation: /v2/queues/q\r\n\r\n{}\n")
    assert same_answer(answers_in(shown)[0], real[0]) is same


# -- running ---------------------------------------------------------------------------------------


class Shell:
    """One `bash -e` that is told one block after the other, in the folder of the server.

    `examples` is there as it is in a clone.
    """

    def __init__(self, folder: Path) -> None:
        (folder / "examples").symlink_to(ROOT / "examples")
        environment = settings_environment({})
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        environment["TMPDIR"] = str(folder)
        self._stderr = folder / "shell.log"
        with self._stderr.open("wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-e"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
                env=environment,
                text=True,
                start_new_session=True,
            )

    def run(self, text: str, place: str) -> str:
        """What a block prints. Raises AssertionError when one of its commands fails."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        watchdog = threading.Timer(SHELL_PATIENCE_S, self._kill)
        watchdog.start()
        stdin.write(f"{text}\nprintf '\\n\\001\\n'\n")
        stdin.flush()
        printed = ""
        for line in stdout:
            if line == "\x01\n":
                break
            printed += line
        else:
            raise AssertionError(f"{place} failed:\n{text}\n{printed}\n{self._stderr.read_text()}")
        watchdog.cancel()
        return printed

    def _kill(self) -> None:
        """With what a page has started in the background and did not come to end."""
        os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        self._kill()
        self._process.communicate()


MAKE = re.compile(r"^((?:NUSKU_[A-Z_]+=\S+ )*)make (\w+)", re.MULTILINE)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


class Walk:
    """A newcomer: one shell, and a server that is started again when a page says so."""

    def __init__(self, folder: Path, start: Callable[..., LiveServer]) -> None:
        self._logs = folder
        self._start = start
        self._server = start()
        self._shell = Shell(folder)

    def follow(self, page: Path) -> None:
        for block, shown in steps_of(page):
            if block.language == "bash":
                text = block.text.replace(DOCUMENTED_URL, self._server.url)
                check(block, shown, self._shell.run(text, block.place))
            else:
                self._make(block)

    def _make(self, block: Block) -> None:
        for variables, target in MAKE.findall(block.text):
            assert target in TARGETS, f"{block.place}: make {target} is unknown"
            if variables:
                pairs = (variable.split("=", 1) for variable in variables.split())
                settings = {name.removeprefix("NUSKU_").lower(): value for name, value in pairs}
                self._restart(**settings)

    def _restart(self, **settings: SettingValue) -> None:
        self._server.stop()
        self._server = self._start(**settings)
        self._shell.run(f"export NUSKU={self._server.url}", "the new address")

    def succeeded(self) -> set[str]:
        """The operations that were answered with success so far."""
        self._server.stop()
        logs = [log.read_text().splitlines() for log in self._logs.glob("stderr-*.log")]
        entries = [json.loads(line) for lines in logs for line in lines]
        requests = [entry for entry in entries if entry["event"] == "request"]
        return {entry["operation"] for entry in requests if entry["status"] < 400}

    def end(self) -> None:
        self._shell.end()


@pytest.fixture
def walk(tmp_path: Path, private_server: Callable[..., LiveServer]) -> Iterator[Walk]:
    newcomer = Walk(tmp_path, private_server)
    yield newcomer
    newcomer.end()


SYSTEM = {
    f"{name}:get" for name in ("versions", "home", "live", "ready", "metrics", "openapi", "docs")
}
TELLING = {
    name for name in OPERATIONS if name.startswith("subscription:") or name == "queues:share"
}
POOLING = {name for name in OPERATIONS if name.startswith(("pools:", "flavors:"))}
SHOWN_BY = {
    "getting-started": {*OPERATIONS, *SYSTEM} - TELLING - POOLING,
    "notifications": TELLING,
    "pools": {"pools:get_all", "pools:create", "pools:update", "pools:delete"}
    | {"flavors:get", "flavors:create"},
}


@pytest.mark.slow
@pytest.mark.parametrize("page", WALKED, ids=lambda page: page.stem)
def test_a_page_can_be_followed_word_by_word(page: Path, walk: Walk) -> None:
    walk.follow(page)
    assert SHOWN_BY.get(page.stem, set()) <= walk.succeeded()


# -- examples --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hurried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server whose claims may be so short that a test can wait for their end."""
    with LiveServer(tmp_path_factory.mktemp("examples"), min_claim_ttl=1) as server:
        yield server


def run_example(server: LiveServer, name: str, *arguments: str) -> list[str]:
    """The lines that an example prints."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name, *arguments],
        env={**os.environ, "NUSKU": server.url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def said_by(name: str, lines: list[str]) -> list[str]:
    return [line.removeprefix(f"{name}: ") for line in lines if line.startswith(f"{name}: ")]


@pytest.mark.slow
def test_tasks_are_all_done_although_a_worker_dies(hurried: LiveServer) -> None:
    lines = run_example(hurried, "tasks.py", "--ttl", "2")
    assert lines[:4] == [
        "producer: posted 6 jobs",
        "ann: did job 1",
        "ann: died over job 2",
        "(what ann held is free again after 2 seconds)",
    ]
    by_others = said_by("bob", lines) + said_by("cleo", lines)
    assert sorted(by_others) == [f"did job {n}" for n in range(2, 7)]


def test_every_observer_of_a_broadcast_sees_all_of_it_in_order(hurried: LiveServer) -> None:
    lines = run_example(hurried, "broadcast.py")
    events = ["doors open", "first band", "second band", "fire alarm", "doors close"]
    assert len(lines) == 3 * len(events)
    for observer in ("early", "late", "patient"):
        assert said_by(observer, lines) == events


def test_both_ends_of_a_dialogue_hear_each_other(hurried: LiveServer) -> None:
    assert run_example(hurried, "dialogue.py") == ["1 + 2 = 3", "3 + 4 + 5 = 12", "6 = 6"]


def test_examples_leave_no_queues_behind(hurried: LiveServer) -> None:
    run_example(hurried, "dialogue.py")
    assert hurried.api(project="examples").names() == []


def test_examples_are_short_and_need_nothing_but_python() -> None:
    assert len(EXAMPLES) > 3
    for example in EXAMPLES:
        text = example.read_text()
        assert text.count("\n") < 80, example.name
        imported = set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE))
        assert imported <= {*sys.stdlib_module_names, "client"}, example.name


# -- what pages refer to ---------------------------------------------------------------------------


def anchors_of(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = page if not path else (page.parent / path).resolve()
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors_of(linked), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_pages_name_settings_and_targets_that_exist(page: Path) -> None:
    text = page.read_text()
    variables = set(re.findall(r"\bNUSKU_[A-Z_]*[A-Z]", text)) - {
        "NUSKU_CONFIG",
        "NUSKU_KEY",
        "TEST_STORES",
    }
    assert {v.removeprefix("NUSKU_").lower() for v in variables} <= set(FIELDS)
    assert set(re.findall(r"(?:^|`|\$ )make ([a-z-]+)", text, re.MULTILINE)) <= TARGETS


def test_each_promise_names_the_tests_that_hold_it() -> None:
    """What stands behind an arrow, or in the last column: links whose text is the name of a test."""
    page = ROOT / "docs/guarantees.md"
    bullets = re.findall(r"^- (?:.|\n(?!\n|- |#))*", page.read_text(), re.MULTILINE)
    promises = [bullet.partition("→")[2] for bullet in bullets]
    rows = re.findall(r"^\|(?!---).*$", page.read_text(), re.MULTILINE)[1:]
    promises += [row.rstrip("| ").rpartition("|")[2] for row in rows]
    assert len(promises) > 50
    for promise, text in zip(promises, [*bullets, *rows], strict=True):
        named = re.findall(r"\[([^]]+)\]\(\.\./(tests/[\w/]+\.py)\)", promise)
        assert named, f"held by no test: {text}"
        for name, file in named:
            assert f"def test_{name.replace(' ', '_')}(" in (ROOT / file).read_text(), (
                f"{file}: {name}"
            )


def test_running_lists_every_metric(server: LiveServer) -> None:
    page = (ROOT / "docs/running.md").read_text()
    listed = set(re.findall(r"^\| `((?:nusku|process)_\w+)`", page, re.MULTILINE))
    answer = server.client.get("/metrics")
    assert listed == set(re.findall(r"^# HELP (\w+)", answer.text, re.MULTILINE))


def test_architecture_names_every_file() -> None:
    """The doors, `__init__.py`, are spoken for by their folders."""
    source, page = ROOT / "src/nusku", ROOT / "docs/architecture.md"
    tree = next(b.text for b in blocks_of(page) if b.text.startswith("src/nusku/"))
    named: set[str] = set()
    folders: list[str] = []
    for indent, name in re.findall(r"^([│├└─ ]+)([\w/.]+)", tree, re.MULTILINE):
        del folders[len(indent) // 3 - 1 :]
        if name.endswith("/"):
            folders.append(name)
        else:
            named.add("".join(folders) + name)
    real = {str(path.relative_to(source)) for path in source.rglob("*.py")}
    assert named == {path for path in real if not path.endswith("__init__.py")}


@pytest.mark.parametrize(
    "interface", [MessageStore, RecordStore, Registry], ids=lambda i: i.__name__
)
def test_architecture_explains_every_operation_of_a_store(interface: type) -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    operations = {
        name for name, value in vars(interface).items() if callable(value) and name[0] != "_"
    }
    listed = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert operations <= listed
