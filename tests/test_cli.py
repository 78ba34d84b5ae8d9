"""The `nusku` command: what it prints, and how it ends."""

import os
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from nusku import __version__
from nusku.config.settings import SECRETS
from tests.live import LiveServer

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run_(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("NUSKU_")}
        return subprocess.run(
            [sys.executable, "-m", "nusku", *arguments],
            cwd=tmp_path,
            env=clean | environ,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    return run_


def test_version_is_the_one_of_the_package(run: Run) -> None:
    ended = run("--version")
    assert (ended.returncode, ended.stdout) == (0, f"nusku {__version__}\n")
    root = Path(__file__).parent.parent
    assert tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"] == __version__


def test_the_console_script_is_the_same_command() -> None:
    script = Path(sys.executable).with_name("nusku")
    ended = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert ended.stdout == f"nusku {__version__}\n"


def test_help_names_every_command(run: Run) -> None:
    ended = run("--help")
    assert ended.returncode == 0
    for command in ("serve", "check", "backup"):
        assert f"\n  {command}" in ended.stdout


@pytest.mark.parametrize("arguments", [("serve", "--nonsense"), ("nonsense",), ("serve", "extra")])
def test_wrong_usage_ends_with_2(run: Run, arguments: tuple[str, ...]) -> None:
    ended = run(*arguments)
    assert ended.returncode == 2
    assert "nonsense" in ended.stderr or "extra" in ended.stderr


@pytest.mark.parametrize("command", ["serve", "check"])
def test_every_problem_of_the_settings_is_one_line(run: Run, command: str) -> None:
    ended = run(command, "--port", "99999", "--log-level", "loud", NUSKU_MAX_WAIT="x")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert [line.split(" is ")[0] for line in ended.stderr.splitlines()] == [
        "nusku: setting max_wait",
        "nusku: setting port",
        "nusku: setting log_level",
    ]


def test_the_file_can_be_named_by_option_and_by_variable(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("max_wait = 999")
    for ended in (run("check", "--config", "a.toml"), run("check", NUSKU_CONFIG="a.toml")):
        assert ended.returncode == 2
        assert ended.stderr.startswith("nusku: setting max_wait is 999 (a.toml); allowed: ")


# -- check and backup


def test_check_prints_the_settings_in_force_and_a_line_about_the_store(run: Run) -> None:
    ended = run("check", "--store", "sqlite:///my.db", NUSKU_MAX_WAIT="7")
    assert (ended.returncode, ended.stderr) == (0, "")
    shown = tomllib.loads(ended.stdout)
    assert (shown["store"], shown["max_wait"], shown["port"]) == ("sqlite:///my.db", 7, 8888)
    last = ended.stdout.splitlines()[-1]
    assert last.startswith("# my.db: ")


def test_check_creates_nothing(run: Run, tmp_path: Path) -> None:
    assert run("check").returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_check_shows_no_secret_and_says_that_it_is_set(run: Run) -> None:
    secrets = {f"NUSKU_{name.upper()}": f"canary-{name}".ljust(40, "x") for name in SECRETS}
    ended = run("check", **secrets)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "canary" not in ended.stdout
    for name in SECRETS:
        assert f"# {name} is set, and not shown" in ended.stdout.splitlines()
    assert SECRETS.isdisjoint(tomllib.loads(ended.stdout))
    assert 'secret_key = ""' in run("check").stdout.splitlines()


@pytest.mark.parametrize("command", [("check",), ("serve", "--port", "0")])
def test_broken_mail_templates_are_refused(
    run: Run, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "texts.toml").write_text("[subscription]\ntopic = 3\n[other]\n")
    ended = run(*command, NUSKU_MAIL_TEMPLATES="texts.toml")
    assert ended.returncode == 2
    *_, first, second = ended.stderr.splitlines()
    assert first.startswith("nusku: setting mail_templates: file texts.toml: [other] is unknown")
    assert second.startswith("nusku: setting mail_templates: file texts.toml: [subscription]")


def test_check_looks_at_the_key_file_and_does_not_make_one(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "nusku.db.key"
    file.write_text("signing = " + "0" * 64 + "\n")
    file.chmod(0o600)
    ended = run("check")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "0" * 64 not in ended.stdout
    file.chmod(0o644)
    ended = run("check")
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"nusku: key file {file} can be used by others")
    both = {"NUSKU_SECRET_KEY": "k" * 32, "NUSKU_ENCRYPTION_KEYS": "e" * 32}
    assert run("check", **both).returncode == 0, "it is not needed"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["serve", "check", "backup"])
@pytest.mark.parametrize("uri", ["mysql://me:hunter2@127.0.0.1:1/0", "sqlite://host/my.db"])
def test_a_store_that_is_not_known_is_refused_without_its_password(
    run: Run, command: str, uri: str
) -> None:
    ended = run(command, "--store", uri, *(["copy.db"] if command == "backup" else []))
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("nusku: ")
    assert "sqlite:///" in line
    assert "hunter2" not in ended.stdout + line


@pytest.mark.slow
@pytest.mark.parametrize("command", ["serve", "check", "backup", "migrate"])
@pytest.mark.parametrize("scheme", ["postgresql", "redis", "redis+sentinel", "redis+cluster"])
def test_a_shared_store_that_is_away_is_named_without_its_password(
    run: Run, command: str, scheme: str
) -> None:
    uri = f"{scheme}://me:hunter2@127.0.0.1:1/0"
    ended = run(command, "--store", uri, *(["copy.db"] if command == "backup" else []))
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("nusku: ")
    assert "hunter2" not in ended.stdout + line
    assert ("docs/backup.md" if command == "backup" else "127.0.0.1:1") in line


@pytest.mark.slow
@pytest.mark.parametrize("command", ["serve", "check", "backup"])
def test_a_file_that_is_no_store_is_refused_and_left_alone(
    run: Run, command: str, tmp_path: Path
) -> None:
    file = tmp_path / "letter.db"
    file.write_bytes(b"Dear Sir or Madam,\n" * 1000)
    arguments = [command, "--store", "sqlite:///letter.db"]
    ended = run(*arguments, *(["copy.db"] if command == "backup" else []), NUSKU_PORT="0")
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("nusku: ")
    assert "letter.db" in line
    assert file.read_bytes() == b"Dear Sir or Madam,\n" * 1000
    assert not (tmp_path / "copy.db").exists()


@pytest.mark.slow
def test_check_and_backup_beside_a_running_server(
    run: Run, private_server: Callable[[], LiveServer], tmp_path: Path
) -> None:
    server = private_server()
    api = server.api()
    api.post_bodies("orders", 1, 2, 3)
    checked = run("check", "--store", f"sqlite:///{server.database}")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "3 messages" in checked.stdout.splitlines()[-1]
    copied = run("backup", "--store", f"sqlite:///{server.database}", "copy.db")
    assert (copied.returncode, copied.stderr) == (0, "")
    api.post_bodies("orders", 4)
    checked = run("check", "--store", "sqlite:///copy.db")
    assert "3 messages" in checked.stdout.splitlines()[-1]


def test_a_backup_does_not_overwrite(run: Run, tmp_path: Path) -> None:
    (tmp_path / "copy.db").write_text("mine")
    ended = run("backup", "copy.db")
    assert ended.returncode == 2
    assert ended.stderr.startswith("nusku: copy.db exists already")
    assert (tmp_path / "copy.db").read_text() == "mine"


# -- serve


@pytest.mark.slow
def test_a_second_server_on_the_same_file_is_refused(
    run: Run, private_server: Callable[[], LiveServer]
) -> None:
    server = private_server()
    ended = run("serve", "--port", "0", "--store", f"sqlite:///{server.database}")
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("nusku: ")
    assert str(server.database) in line
    assert str(server.process.pid) in line


def test_a_port_that_is_taken_is_refused(run: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = run("serve", "--port", str(port), "--log-format", "json")
    assert (ended.returncode, ended.stdout) == (2, "")
    line = ended.stderr.splitlines()[-1]
    assert line.startswith("nusku: ")
    assert str(port) in line


def test_a_setting_of_a_later_version_is_told_to_have_no_effect(tmp_path: Path) -> None:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("NUSKU_")}
    checked = subprocess.run(
        [sys.executable, "-m", "nusku", "check", "--store", "sqlite:///x.db"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environ | {"NUSKU_TRUSTED_PROXIES": "x"},
        timeout=30,
        check=True,
    )
    assert checked.stderr.splitlines() == [
        "nusku: setting trusted_proxies has no effect in this version (NUSKU_TRUSTED_PROXIES)",
    ]
