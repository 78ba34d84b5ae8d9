"""`nusku key`: what it says, and what it does."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from nusku.cli import main
from nusku.config import KEY_VARIABLE, load

Run = Callable[..., Result]

KEY = re.compile(r"nsk_([0-9a-z]{12})_[0-9A-Za-z]{40}\n")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run_(*arguments: str) -> Result:
        environ = {"NUSKU_STORE": f"sqlite:///{tmp_path}/my.db"}
        return CliRunner().invoke(main, ["key", *arguments], env=environ)

    return run_


def listed(run: Run, *arguments: str) -> list[dict[str, object]]:
    keys: list[dict[str, object]] = json.loads(run("list", "--json", *arguments).stdout)
    return keys


def test_a_key_is_printed_once_and_listed_ever_after(run: Run) -> None:
    made = run("create", "--project", "p1", "--roles", "member, admin", "--ttl", "90d",
               "--user", "ci", "--note", "the build")  # fmt: skip
    assert made.exit_code == 0
    key = KEY.fullmatch(made.stdout)  # and nothing else, so that a script can take it
    assert key is not None
    assert made.stderr.startswith(f"nusku: key {key[1]} for project p1 holds until 2")
    assert key[0].strip() not in made.stderr
    [one] = listed(run)
    created, expires = str(one.pop("created")), str(one.pop("expires"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", created)
    assert created < expires
    assert one == {
        "id": key[1],
        "project": "p1",
        "roles": ["member", "admin"],
        "user": "ci",
        "expired": False,
        "note": "the build",
    }
    table = run("list").stdout.splitlines()
    assert [line.split()[0] for line in table] == ["ID", key[1]]
    assert table[1].split()[1:] == ["p1", "member,admin", "ci", created, expires, "the", "build"]


def test_the_list_can_be_of_one_project(run: Run) -> None:
    for project in ("p1", "p2", "p1"):
        run("create", "--project", project)
    assert sorted(str(one["project"]) for one in listed(run)) == ["p1", "p1", "p2"]
    assert [one["project"] for one in listed(run, "--project", "p1")] == ["p1", "p1"]
    assert listed(run, "--project", "p3") == []
    assert run("list", "--project", "p3").stdout.split()[-1] == "NOTE"


def test_revoked_ones_are_gone(run: Run) -> None:
    keys = [KEY.fullmatch(run("create", "--project", "p").stdout) for _ in range(3)]
    first, second, third = (key for key in keys if key)
    assert run("revoke", first[1], second[0].strip()).exit_code == 0
    assert [one["id"] for one in listed(run)] == [third[1]]
    again = run("revoke", first[1], third[1], second[0].strip())
    assert again.exit_code == 2
    assert again.stderr == (
        "nusku: there are no such keys: number 1, 3 of those given; the others are revoked\n"
    )
    assert listed(run) == []


@pytest.mark.parametrize(
    "ttl", ["", "9", "d", "0d", "-1d", "1.5h", "3651d", "1w", "٣d", "9" * 50 + "s"]
)
def test_a_lifetime_has_a_unit_and_an_end(run: Run, ttl: str) -> None:
    refused = run("create", "--project", "p", "--ttl", ttl)
    assert refused.exit_code == 2
    assert "--ttl" in refused.stderr
    assert not listed(run)


@pytest.mark.parametrize("ttl", ["1s", "30m", "12h", "3650d"])
def test_lifetimes(run: Run, ttl: str) -> None:
    assert run("create", "--project", "p", "--ttl", ttl).exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("--project", ""),
        ("--project", "p\n"),
        ("--project", "p", "--user", "a,b"),
        ("--project", "p", "--note", "n" * 300),
    ],
)
def test_what_cannot_be_is_one_line(run: Run, arguments: tuple[str, ...]) -> None:
    refused = run("create", *arguments)
    assert refused.exit_code == 2
    assert refused.stdout == ""
    assert re.fullmatch(r"nusku: .*\n", refused.stderr)


def test_it_needs_a_project_and_a_store_that_can_be(run: Run, tmp_path: Path) -> None:
    assert run("create").exit_code == 2
    (tmp_path / "my.db.admin").write_text("no registry")
    for arguments in (("list",), ("create", "--project", "p"), ("revoke", "x")):
        refused = run(*arguments)
        assert refused.exit_code == 2
        assert re.fullmatch(r"nusku: .*my\.db\.admin.*\n", refused.stderr)


def test_the_audit_log_tells_what_was_done_without_the_key(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUSKU_AUDIT_LOG", str(tmp_path / "audit.log"))
    key = KEY.fullmatch(run("create", "--project", "p").stdout)
    assert key is not None
    run("revoke", key[0].strip(), "unknown")
    text = (tmp_path / "audit.log").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(one["operation"], one["target"]) for one in lines] == [
        ("keys:create", f"p/{key[1]}"),
        ("keys:revoke", key[1]),
    ]
    assert key[0].strip() not in text
    monkeypatch.setenv("NUSKU_AUDIT_LOG", str(tmp_path))
    assert run("create", "--project", "p").exit_code == 2
    assert listed(run) == []


def test_the_variable_for_commands_is_no_setting() -> None:
    assert load(None, {KEY_VARIABLE: "nsk_x"}, {}).port == 8888
