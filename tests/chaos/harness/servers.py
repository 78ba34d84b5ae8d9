"""Starts, freezes, kills and stops real `nusku serve` processes."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from tests import forking
from tests.canaries import BODY, SETTINGS, insist_absent
from tests.live import settings_environment

PLANTED = "PLANTED"
"""Among the settings of a server: which fault of `planted.py` it is to have."""

FAST = {
    "NUSKU_MIN_MESSAGE_TTL": "1",
    "NUSKU_MIN_CLAIM_TTL": "1",
    "NUSKU_MIN_CLAIM_GRACE": "0",
    "NUSKU_LOG_LEVEL": "warning",
}
"""Lifetimes short enough to see messages and claims end."""


class RefusedError(Exception):
    """The server ended instead of listening."""

    def __init__(self, code: int, stderr: str) -> None:
        super().__init__(f"exit code {code}: {stderr[-2000:]}")
        self.code = code
        self.stderr = stderr


class Server:
    """One server on one store, started as often as needed. Each start gets a port of its own.

    `store` is an SQLite file, or the URI of a store that several servers may share.
    """

    def __init__(
        self,
        store: Path | str,
        logs: Path,
        settings: Mapping[str, str] | None = None,
        name: str = "server",
    ) -> None:
        self.uri = store if isinstance(store, str) else f"sqlite:///{store.absolute()}"
        confided = {f"NUSKU_{name.upper()}": value for name, value in SETTINGS.items()}
        self.settings = FAST | confided | dict(settings or {})
        self.address: tuple[str, int] | None = None
        self.name = name
        self.log = logs / f"{name}.log"
        self._process: forking.Process | None = None

    @property
    def store(self) -> Path:
        """The file of an SQLite store."""
        return Path(self.uri.removeprefix("sqlite:///"))

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, timeout: float = 60.0) -> None:
        """Start it and wait for the line that says where it listens; RefusedError otherwise."""
        logged = self.log.stat().st_size if self.log.exists() else 0
        arguments = ["serve", "--port", "0", "--store", self.uri]
        environment = settings_environment({}) | self.settings
        fault = environment.pop(PLANTED, "")
        with self.log.open("ab") as log:
            self._process = forking.start(
                [fault, *arguments] if fault else arguments,
                environment,
                Path.cwd(),
                log,
                module="tests.chaos.harness.planted" if fault else "nusku",
            )
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout)
        line = self._process.stdout.readline().decode() if ready else ""
        if "http://" not in line:
            if not ready:
                self._process.kill()
            code = self._reap(timeout)
            text = self.log.read_bytes()[logged:].decode("utf-8", "replace")
            raise RefusedError(-1 if code is None else code, line + text)
        url = urlsplit(line.split()[-1])
        self.address = (url.hostname or "", url.port or 0)

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def freeze(self) -> None:
        """SIGSTOP, and wait until no thread of it is inside a system call any more."""
        stand_still(self.pid)

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL; returns when it is dead."""
        self.address = None
        if self._process is not None:
            self._process.kill()
            self._reap(10)

    def terminate(self) -> None:
        """SIGTERM; does not wait."""
        os.kill(self.pid, signal.SIGTERM)

    def wait(self, timeout: float) -> int | None:
        """Its exit code; None if it still runs after `timeout` seconds."""
        code = self._reap(timeout)
        if code is not None:
            self.address = None
        return code

    def stop(self, timeout: float = 15.0) -> int | None:
        """SIGTERM; its exit code, or None if it had to be killed."""
        if not self.running():
            return self.wait(0)
        self.terminate()
        code = self.wait(timeout)
        if code is None:
            self.kill()
        return code

    def memory(self) -> int:
        """Resident memory in bytes."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def said(self) -> str:
        """All that it ever wrote to stderr."""
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _reap(self, timeout: float) -> int | None:
        process = self._process
        if process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(timeout)
            if process.stdout:
                process.stdout.close()
            written = self.log.read_text(errors="replace") if self.log.exists() else ""
            insist_absent(written, (BODY, *SETTINGS.values()), "the log")
            return code
        return None


def stand_still(pid: int) -> None:
    """SIGSTOP, and wait until no thread of it is inside a system call any more."""
    os.kill(pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{pid}/task")
    end = time.monotonic() + 10
    while time.monotonic() < end:
        states = {_state(task) for task in tasks.iterdir()}
        if states <= {"T", "t"}:
            return
        time.sleep(0.002)
    raise TimeoutError("the server could not be frozen")


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "T"  # the thread has ended
