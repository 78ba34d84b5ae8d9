"""Starts `nusku` without importing it each time: a small process that has done so forks.

Most of what a start costs is imports, and a run of the tests has hundreds of starts. What comes of
a fork is a server like any other: a process of its own, a child of the one that asked, with the
environment, folder, files and limits that it would have been given. Only what Python and libraries
read once, at their start, is that of the process that forked; so with another environment, but for
the settings, a new interpreter is started instead.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import IO, Any

MODULES = (
    "nusku.cli",
    "nusku.server",
    "nusku.storage.postgres",
    "nusku.storage.redis",
    "nusku.storage.sqlite",
)
LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
VARYING = ("PYTEST_CURRENT_TEST", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
"""Of the environment; read by nothing that could tell servers apart."""

REQUEST_BYTES, ANSWER_BYTES = 1 << 20, 100
YOURS = b"yours"
PR_SET_CHILD_SUBREAPER = 36


class Forked:
    """A child of this process, with that part of ``subprocess.Popen`` that the tests use."""

    def __init__(self, pid: int, stdout: IO[bytes]) -> None:
        self.pid = pid
        self.stdout: IO[bytes] | None = stdout
        self.returncode: int | None = None
        self._lock = Lock()

    def poll(self) -> int | None:
        with self._lock:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        if self.poll() is None:
            ended = os.pidfd_open(self.pid)
            try:
                self._until_readable(ended, timeout)
            finally:
                os.close(ended)
        with self._lock:
            if (
                self.returncode is None
            ):  # it has ended, but whoever traces it is to hear of it first
                _, status = os.waitpid(self.pid, 0)
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[bytes, None]:
        """Read to the end of stdout, then wait. Raises subprocess.TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        said = []
        if self.stdout is not None and not self.stdout.closed:
            while True:
                left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
                self._until_readable(self.stdout.fileno(), left)
                if not (chunk := os.read(self.stdout.fileno(), 1 << 16)):
                    break
                said.append(chunk)
            self.stdout.close()
        self.wait(None if deadline is None else max(deadline - time.monotonic(), 0.0))
        return b"".join(said), None

    def _until_readable(self, file: int, timeout: float | None) -> None:
        look = select.poll()  # unlike select(), for numbers of any size
        look.register(file, select.POLLIN)
        if not look.poll(None if timeout is None else timeout * 1000):
            raise subprocess.TimeoutExpired("nusku", timeout or 0.0)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Process = subprocess.Popen[bytes] | Forked


def start(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    stderr: IO[bytes],
    *,
    afresh: bool = False,
    module: str = "nusku",
) -> Process:
    """Start `nusku` with these arguments there; what it prints can be read from ``stdout``.

    ``afresh`` is for tests that judge what it is to start: the interpreter is a new one then.
    ``module`` is for those that start it with something changed.
    """
    if not afresh and _fixed(environment) == _FIXED:
        return _forked(module, arguments, environment, folder, stderr)
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        cwd=folder,
        env=environment,
    )


def _fixed(environment: Mapping[str, str]) -> dict[str, str]:
    """That part of it which Python and libraries may read at their start."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith("NUSKU_") and name not in VARYING
    }


_FIXED = _fixed(os.environ)


# -- asking ----------------------------------------------------------------------------------------


class _Forker:
    """The process that forks. It ends when our end of the socket is closed, whoever closes it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._owner = os.getpid()
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment,
            )
        atexit.register(self.end)

    def ours(self) -> bool:
        """Not so after a fork of our own."""
        return self._owner == os.getpid()

    def fork(self, request: bytes, files: Sequence[int]) -> int:
        """Return the number of the new process, which is a child of this one."""
        _adopt(True)
        try:
            socket.send_fds(self._ours, [request], files)
            pid = int(self._ours.recv(ANSWER_BYTES))
            assert self._ours.recv(ANSWER_BYTES) == YOURS
        finally:
            _adopt(False)
        return pid

    def end(self) -> None:
        if self.ours():
            atexit.unregister(self.end)
            self._ours.close()
            self._process.wait()


_lock = Lock()
_forker: _Forker | None = None


def _forked(
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    stderr: IO[bytes],
) -> Forked:
    request = {
        "module": module,
        "arguments": arguments,
        "environment": dict(environment),
        "folder": str(folder),
        "limits": [(one, resource.getrlimit(one)) for one in LIMITS],
    }
    ours, theirs = os.pipe()
    stdout = os.fdopen(ours, "rb", buffering=0)
    try:
        return Forked(_ask(json.dumps(request).encode(), environment, theirs, stderr), stdout)
    except BaseException:
        stdout.close()
        raise
    finally:
        os.close(theirs)


def _ask(request: bytes, environment: Mapping[str, str], stdout: int, stderr: IO[bytes]) -> int:
    global _forker  # noqa: PLW0603 - one for each process, started when first needed
    with _lock:
        if _forker is None or not _forker.ours():
            _forker = _Forker(environment)
        try:
            return _forker.fork(request, [stdout, stderr.fileno()])
        except BaseException:
            # There may be an answer that nobody has read.
            _forker.end()
            _forker = None
            raise


def _adopt(orphans: bool) -> None:
    """Whether this process becomes the parent of what its descendants leave behind."""
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(orphans), 0, 0, 0):
        raise OSError("nobody can be adopted here")


# -- forking ---------------------------------------------------------------------------------------


def _main(number: int) -> str:
    """Fork on request; in each child this returns, and there is a module to be run."""
    del sys.path[0]  # the folder of this file, where no module of a server is
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which is for the servers
    asked = socket.socket(fileno=number)
    for module in MODULES:
        importlib.import_module(module)
    threads, files = (os.listdir(f"/proc/self/{what}") for what in ("task", "fd"))  # noqa: PTH208
    # Neither would be in a child what it is here. One more is open to list them.
    assert len(threads) == 1, "importing a server starts threads"
    assert len(files) == 5, "importing a server opens files"
    gc.collect()
    gc.freeze()
    while True:
        request, received, _, _ = socket.recv_fds(asked, REQUEST_BYTES, 2)
        if not request:
            os._exit(0)
        # Who asked adopts the child as soon as the process between us has ended.
        between = os.fork()
        if not between:
            child = os.fork()
            if not child:
                asked.close()
                signal.signal(signal.SIGINT, interrupted)
                asked_for = json.loads(request)
                _become(asked_for, *received)
                return str(asked_for["module"])
            asked.send(str(child).encode())
            os._exit(0)
        for file in received:
            os.close(file)
        os.waitpid(between, 0)
        asked.send(YOURS)


def _become(request: dict[str, Any], stdout: int, stderr: int) -> None:
    """Be as if just started like that."""
    for file, its in ((stdout, 1), (stderr, 2)):
        os.dup2(file, its)
        os.close(file)
    for one, (soft, hard) in request["limits"]:
        if resource.getrlimit(one) != (soft, hard):
            resource.setrlimit(one, (soft, hard))
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path.insert(0, request["folder"])
    sys.argv[1:] = request["arguments"]


if __name__ == "__main__":
    runpy.run_module(_main(int(sys.argv[1])), run_name="__main__", alter_sys=True)
