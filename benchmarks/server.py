"""The server under load as a process: start, stop, kill, and what it costs."""

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks import process
from benchmarks.wire import Target
from tests.servers import guardian

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
ENCRYPTION_KEY = secrets.token_hex(32)
"""For all servers of a run: several may share a store."""
_LISTENING = re.compile(r"nusku listening on http://(.+):(\d+)\s*$")


class ServerFailedError(Exception):
    """The server did not start, or did not stop as promised."""


class Server:
    """`nusku serve` on a free port, default settings but for the store, and subscribers on loopback.

    `settings` are further settings by their names, `environment` is more for the process.
    """

    def __init__(
        self,
        store: str,
        log: Path,
        settings: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._store = store
        self._log = log
        self._settings = {
            "subscriber_allow": "127.0.0.0/8",
            "websocket_port": "0",  # the usual one may be another server's
            **(settings or {}),
        }
        self._environment = environment or {}
        self._process: asyncio.subprocess.Process | None = None
        self.started = 0.0
        """When the process was started (perf_counter seconds)."""

    async def start(self) -> Target:
        """Start the process and return its address once it listens."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("NUSKU_")
        }
        environment |= {"NUSKU_ENCRYPTION_KEYS": ENCRYPTION_KEY, **self._environment}
        environment |= {f"NUSKU_{name.upper()}": self._settings[name] for name in self._settings}
        command = [sys.executable, "-m", "nusku", "serve", "--port", "0", "--store", self._store]
        with self._log.open("ab") as log:
            self.started = time.perf_counter()
            self._process = await asyncio.create_subprocess_exec(
                *command,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        guardian.guard_process(self._process.pid, signal.SIGTERM)
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), START_TIMEOUT_S)
        except TimeoutError:
            line = b""
        found = _LISTENING.match(line.decode())
        if found is None:
            await self.kill()
            raise ServerFailedError(f"the server did not start: {line!r}\n{self._log_tail()}")
        return Target(found[1].strip("[]"), int(found[2]))

    async def stop(self) -> None:
        """SIGTERM, and wait; anything but exit status 0 is an error."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            status = await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            await self.kill()
            raise ServerFailedError(
                f"the server did not stop within {STOP_TIMEOUT_S} s\n{self._log_tail()}"
            ) from None
        self._forget()
        if status != 0:
            raise ServerFailedError(f"the server ended with status {status}\n{self._log_tail()}")

    async def kill(self) -> None:
        """SIGKILL, and wait."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        await self._process.wait()
        self._forget()

    def _forget(self) -> None:
        assert self._process is not None
        guardian.forget_process(self._process.pid)
        self._process = None

    def cpu_s(self) -> float:
        """User and system time of all its processes so far."""
        return process.cpu_s(self.pids())

    def memory_mib(self) -> float:
        """Resident memory now."""
        return process.memory_mib(self.pids())

    def peak_memory_mib(self) -> float:
        """The most resident memory since the start or the last reset."""
        return process.peak_memory_mib(self.pids())

    def reset_peak_memory(self) -> None:
        """Begin a new peak."""
        process.reset_peak_memory(self.pids())

    def pids(self) -> list[int]:
        """All its processes; none when it has ended."""
        return process.family(self._process.pid) if self._process is not None else []

    def _log_tail(self) -> str:
        return self._log.read_text(errors="replace")[-2000:] if self._log.exists() else ""


def make_directory() -> Path:
    """A new temporary directory on a disk: a store in memory would make every fsync free."""
    in_memory = _mounts_in_memory()
    for parent in (Path(tempfile.gettempdir()), Path("/var/tmp"), Path.cwd()):
        if parent.is_dir() and _mount_of(parent) not in in_memory:
            directory = Path(tempfile.mkdtemp(prefix="nusku-bench-", dir=parent))
            directory.chmod(0o711)  # a store's server may run as another user
            guardian.guard_folder(directory)
            return directory
    raise ServerFailedError("no directory on a disk: set TMPDIR to one")


def remove_directory(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    guardian.forget_folder(directory)


def _mounts_in_memory() -> set[str]:
    try:
        lines = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return set()
    return {fields[1] for fields in map(str.split, lines) if fields[2] in ("tmpfs", "ramfs")}


def _mount_of(path: Path) -> str:
    path = path.resolve()
    while not path.is_mount():
        path = path.parent
    return str(path)
