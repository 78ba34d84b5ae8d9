"""Failing and slow system calls, injected into a running process by strace."""

from __future__ import annotations

import functools
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

SYNC = "fdatasync,fsync"
WRITE = "pwrite64,write"


class Injection:
    """A context manager: the fault is in force inside. `fault` is as in `strace -e inject`."""

    def __init__(self, pid: int, calls: str, fault: str, report: Path, only: Path | None) -> None:
        self._command = ["strace", "-f", "-q", "-ttt", "-o", str(report), "-p", str(pid)]
        self._command += ["-e", f"trace={calls}", "-e", f"inject={calls}:{fault}"]
        if only is not None:
            # Logs and sockets are written to as well.
            for suffix in ("", "-wal", "-journal"):
                self._command += ["-P", f"{only}{suffix}"]
        self._report = report
        self._strace: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._report.unlink(missing_ok=True)
        self._strace = subprocess.Popen(self._command, stderr=subprocess.DEVNULL)
        time.sleep(0.3)  # it says nothing once it is attached
        if self._strace.poll():  # it ends with 0 when the process has ended
            raise RuntimeError("strace could not attach")
        return self

    def __exit__(self, *_: object) -> None:
        if self._strace is not None and self._strace.poll() is None:
            self._strace.send_signal(signal.SIGINT)
            self._strace.wait(10)

    def first(self) -> float | None:
        """When the first call was hit, by the monotonic clock; None if none was."""
        offset = time.time() - time.monotonic()
        for line in self._report.read_text("utf-8", "replace").splitlines():
            if found := re.search(r"^\d+ +(\d+\.\d+) .*\((?:INJECTED|DELAYED)\)", line):
                return float(found[1]) - offset
        return None

    def count(self) -> int:
        """How many calls were hit."""
        text = self._report.read_text("utf-8", "replace")
        return len(re.findall(r"\((?:INJECTED|DELAYED)\)", text))


@functools.cache
def why_not() -> str:
    """Why system calls cannot be made to fail here; empty if they can."""
    if shutil.which("strace") is None:
        return "needs strace"
    sleeper = [sys.executable, "-c", "import os, time\nwhile 1: time.sleep(0.01); os.getpgid(0)"]
    with subprocess.Popen(sleeper, stderr=subprocess.DEVNULL) as process:
        report = Path(f"/tmp/nusku-strace-{process.pid}")
        try:
            with Injection(process.pid, "getpgid", "error=EIO", report, only=None):
                time.sleep(0.3)
            struck = process.wait(5) != 0
        except (OSError, RuntimeError, subprocess.TimeoutExpired):
            struck = False
        finally:
            process.kill()
            report.unlink(missing_ok=True)
    return "" if struck else "strace cannot attach to processes here"
