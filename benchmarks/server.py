"""The server under load as a process: start, stop, kill, and what it costs."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.wire import Target

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")
_LISTENING = re.compile(r"nusku listening on http://(.+):(\d+)\s*$")


class ServerFailedError(Exception):
    """The server did not start, or did not stop as promised."""


class Server:
    """`nusku serve` on a free port, default settings but for the store, and subscribers on loopback."""

    def __init__(self, store: str, log: Path) -> None:
        self._store = store
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self.started = 0.0
        """When the process was started (perf_counter seconds)."""

    async def start(self) -> Target:
        """Start the process and return its address once it listens."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("NUSKU_")
        }
        environment["NUSKU_SUBSCRIBER_ALLOW"] = "127.0.0.0/8"
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
        self._process = None
        if status != 0:
            raise ServerFailedError(f"the server ended with status {status}\n{self._log_tail()}")

    async def kill(self) -> None:
        """SIGKILL, and wait."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        await self._process.wait()
        self._process = None

    def cpu_s(self) -> float:
        """User and system time of all threads so far; counted in ticks of usually 10 ms."""
        fields = self._proc("stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def memory_mib(self) -> float:
        """Resident memory now."""
        return self._status_mib("VmRSS")

    def peak_memory_mib(self) -> float:
        """The most resident memory since the start or the last reset."""
        return self._status_mib("VmHWM")

    def reset_peak_memory(self) -> None:
        """Begin a new peak; where that is not allowed the peak counts from the start of the process."""
        with contextlib.suppress(OSError):
            self._proc("clear_refs").write_text("5")

    def _proc(self, name: str) -> Path:
        assert self._process is not None
        return Path(f"/proc/{self._process.pid}/{name}")

    def _status_mib(self, name: str) -> float:
        found = re.search(rf"^{name}:\s+(\d+) kB", self._proc("status").read_text(), re.MULTILINE)
        return int(found[1]) / 1024 if found else 0.0

    def _log_tail(self) -> str:
        return self._log.read_text(errors="replace")[-2000:] if self._log.exists() else ""


def make_directory() -> Path:
    """A new temporary directory on a disk: a store in memory would make every fsync free."""
    in_memory = _mounts_in_memory()
    for parent in (Path(tempfile.gettempdir()), Path("/var/tmp"), Path.cwd()):
        if parent.is_dir() and _mount_of(parent) not in in_memory:
            return Path(tempfile.mkdtemp(prefix="nusku-bench-", dir=parent))
    raise ServerFailedError("no directory on a disk: set TMPDIR to one")


def remove_directory(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)


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
