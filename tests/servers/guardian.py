"""Ends what a process has started, and removes its folders, when that process is gone.

It cannot be left to the process itself, which may be killed, nor to a signal that the kernel sends
to children (``PR_SET_PDEATHSIG``), which comes as soon as the *thread* is gone that started them.
So one small program listens on a pipe that closes when its other end dies.
"""

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Lock

GRACE_S = 5.0

_lock = Lock()
_guardian: subprocess.Popen[bytes] | None = None
_owner = 0


def _tell(line: str) -> None:
    global _guardian, _owner  # noqa: PLW0603 - one for each process, started when first needed
    with _lock:
        if _guardian is None or _owner != os.getpid():
            _owner = os.getpid()
            _guardian = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__],
                stdin=subprocess.PIPE,
                start_new_session=True,
                cwd="/",
            )
            atexit.register(_dismiss, _guardian)
        assert _guardian.stdin is not None
        _guardian.stdin.write(f"{line}\n".encode())
        _guardian.stdin.flush()


def _dismiss(guardian: subprocess.Popen[bytes]) -> None:
    """The end of the pipe is what it waits for; what was not stopped until now, it ends."""
    if _owner == os.getpid():
        assert guardian.stdin is not None
        guardian.stdin.close()
        guardian.wait()


def guard_process(pid: int, number: int) -> None:
    """Send it the signal of this number when this process is gone."""
    _tell(f"process {pid} {int(number)}")


def forget_process(pid: int) -> None:
    """It has ended; its number may be another's now."""
    _tell(f"ended {pid}")


def guard_folder(folder: Path) -> None:
    """Remove it when this process is gone."""
    _tell(f"folder {folder}")


def forget_folder(folder: Path) -> None:
    _tell(f"removed {folder}")


def children(parent: int) -> list[int]:
    """The processes that this one has started and that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, ppid = stat.read_text().rsplit(")", 1)[1].split()[:2]
            if int(ppid) == parent and state != "Z":
                found.append(int(stat.parent.name))
    return found


def alive(pid: int) -> bool:
    """Whether it has not ended. Who inherited it may take its time to notice."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, number)


def _main() -> None:
    processes: dict[int, int] = {}
    folders: dict[str, None] = {}
    for line in sys.stdin:
        word, rest = line.rstrip("\n").split(" ", 1)
        if word == "process":
            pid, number = map(int, rest.split())
            processes[pid] = number
        elif word == "ended":
            processes.pop(int(rest), None)
        elif word == "folder":
            folders[rest] = None
        else:
            folders.pop(rest, None)
    started = [*processes, *(child for pid in processes for child in children(pid))]
    for pid, number in processes.items():
        _send(pid, number)
    for pid in started:  # what was paused has to hear it
        _send(pid, signal.SIGCONT)
    deadline = time.monotonic() + GRACE_S
    while (started := [pid for pid in started if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in started:
        _send(pid, signal.SIGKILL)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _main()
