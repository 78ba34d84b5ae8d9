"""What is forked is what would have been started."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests import forking
from tests.live import LiveServer, eventually, settings_environment
from tests.servers import guardian

pytestmark = pytest.mark.embedded


def ended(folder: Path, *arguments: str, afresh: bool, **settings: str) -> tuple[int, bytes, bytes]:
    """The exit code, and what was printed where."""
    log = folder / f"stderr-{afresh}"
    with log.open("ab") as stderr:
        environment = settings_environment(settings)
        process = forking.start(arguments, environment, folder, stderr, afresh=afresh)
    assert isinstance(process, subprocess.Popen if afresh else forking.Forked)
    stdout, _ = process.communicate(timeout=30)
    assert process.returncode is not None
    return process.returncode, stdout, log.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--version"], 0),
        (["serve", "--help"], 0),
        (["check", "--store", "sqlite:///my.db"], 0),
        (["serve", "--store", "nonsense"], 2),
        (["no-such-command"], 2),
    ],
)
def test_it_says_and_returns_the_same(arguments: Sequence[str], code: int, tmp_path: Path) -> None:
    forked = ended(tmp_path, *arguments, afresh=False, max_wait="7")
    assert forked[0] == code
    assert forked == ended(tmp_path, *arguments, afresh=True, max_wait="7")


def state(server: LiveServer) -> list[object]:
    """What a process is given at its start, as the kernel sees it."""
    place = Path(f"/proc/{server.process.pid}")
    words = ("PPid", "Uid", "Groups", "SigBlk", "SigIgn", "SigCgt", "Threads", "Umask")
    status = dict(line.split(":\t", 1) for line in (place / "status").read_text().splitlines())
    return [
        [status[word] for word in words],
        (place / "cwd").readlink(),
        (place / "limits").read_text(),
        os.getpgid(server.process.pid),
        os.getsid(server.process.pid),
        len(list((place / "fd").iterdir())),
        (place / "fd/0").readlink(),
        (place / "fd/2").readlink() == server.log_file,
    ]


@pytest.fixture
def other_limits(tmp_path: Path) -> Iterator[None]:
    """Limits other than those under which what forks was started."""
    ended(tmp_path, "--version", afresh=False)
    before = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (4 << 20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_STACK, before)


def test_the_kernel_sees_the_same(tmp_path: Path, other_limits: None) -> None:
    seen = []
    for afresh in (True, False):
        server = LiveServer(tmp_path).start(afresh=afresh)
        try:
            seen.append(state(server))
        finally:
            server.stop()
    assert seen[0] == seen[1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_how_it_was_killed_is_told(number: signal.Signals, tmp_path: Path) -> None:
    server = LiveServer(tmp_path).start()
    assert server.process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        server.process.wait(0.01)
    server.process.send_signal(number)
    assert server.process.wait(20) == -number
    assert server.process.communicate() == (b"", None)
    assert server.process.poll() == -number


def test_in_another_environment_the_interpreter_is_a_new_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/dev/null")
    with LiveServer(tmp_path) as server:
        assert isinstance(server.process, subprocess.Popen)


KILLED = """
import os, pathlib, signal
from tests import forking
with open(os.devnull, "ab") as log:
    forking.start(["--version"], os.environ, pathlib.Path.cwd(), log).communicate()
print(forking._forker._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_forks_ends_when_who_asks_is_killed() -> None:
    root = Path(__file__).parents[1]
    asked = subprocess.run(
        [sys.executable, "-c", KILLED], cwd=root, stdout=subprocess.PIPE, timeout=60, check=False
    )
    assert asked.returncode == -signal.SIGKILL
    eventually(lambda: not guardian.alive(int(asked.stdout)))
