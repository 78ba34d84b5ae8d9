"""A server as a process: started, killed, paused and started again in the same folder."""

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers import guardian

START_S = 30.0
STOP_S = 20.0
ROOM = 2 << 30  # bytes that must be free in memory before files are kept there


class DidNotStart(Exception):
    """The process ended, or does not answer; the text has its last words."""


@cache
def fast_place() -> Path:
    """Where files of servers go by default: memory if there is much of it, so that an fsync costs
    nothing. What a killed process has written is safe there, as it would be on a disk.
    """
    memory = Path("/dev/shm")
    with contextlib.suppress(OSError):
        if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= ROOM:
            return memory
    return Path(tempfile.gettempdir())


def new_folder(name: str, place: Path | None = None) -> Path:
    """One that goes when this process does. Others may pass through it, but not list it."""
    folder = Path(tempfile.mkdtemp(prefix=f"nusku-{name}-", dir=place or fast_place()))
    guardian.guard_folder(folder)
    folder.chmod(0o711)
    return folder


def remove_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    guardian.forget_folder(folder)


def free_port(*offsets: int) -> int:
    """A TCP port of loopback that nobody has, nor those so far above it.

    It is below those that the kernel gives to connections, so that it is still free when a server
    that was killed is started again.
    """
    for _ in range(1000):
        port = random.SystemRandom().randrange(12_000, 22_000)
        try:
            for offset in (0, *offsets):
                with socket.socket() as attempt:
                    attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    attempt.bind(("127.0.0.1", port + offset))
        except OSError:
            continue
        return port
    raise DidNotStart("no free port was found")


def unprivileged() -> pwd.struct_passwd | None:
    """As whom to run a program that refuses to be run by root; None for whoever we are."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise DidNotStart("root has no user to run the server as")


class Process(ABC):
    """One server. A subclass says what to run and when it answers."""

    patience_s = START_S
    quick_end = signal.SIGTERM
    """Asks for an end that is clean enough for files that are thrown away."""

    def __init__(self, name: str, place: Path | None) -> None:
        self.name = name
        self.folder = new_folder(name, place)
        self.log_file = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """What to run."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it serves, and is the very process that was started."""

    def user(self) -> pwd.struct_passwd | None:
        """As whom it runs; None for whoever we are."""
        return None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} does not run"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start it, again if it ended, and wait until it serves. Raises DidNotStart."""
        self.launch()
        self.wait_until_it_answers()
        return self

    def launch(self) -> None:
        """Start it without waiting."""
        assert not self.running, f"{self.name} runs already"
        user = self.user()
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                list(map(str, self.command())),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "TZ": "UTC"},
                start_new_session=True,
                user=user.pw_uid if user else None,
                group=user.pw_gid if user else None,
                extra_groups=[] if user else None,
            )
        guardian.guard_process(self._process.pid, self.quick_end)

    def wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + self.patience_s
        while not self.answers():
            if not self.running or time.monotonic() > deadline:
                self.kill()
                raise DidNotStart(f"{self.name}: {self.log()[-2000:]}")
            time.sleep(0.01)  # there is no event to wait for

    def log(self) -> str:
        """What it has written."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def _end(self, number: signal.Signals, timeout_s: float = STOP_S) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        guardian.forget_process(process.pid)

    def stop(self) -> None:
        """Ask for a clean end and wait for it."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """``kill -9``."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Let it stand still as if the machine did: SIGSTOP."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Kill and start again."""
        self.kill()
        self.start()

    def remove(self) -> None:
        """End it, if it runs, and remove its files."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self.resume()
        self._end(self.quick_end)
        remove_folder(self.folder)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.remove()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()
