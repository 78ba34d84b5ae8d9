"""The audit log: who changed what by which request, and who was refused, one line of JSON each.

Lines hold names, ids and paths; never tokens, keys, signatures, headers, queries or bodies. They
are written at once, by the one who answers, before the answer.
"""

import getpass
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path

import msgspec
import structlog

from nusku.config import ConfigError, Settings
from nusku.logs import Sink
from nusku.model import Caller, Context

log = structlog.get_logger("nusku.audit")

STDERR = "stderr"  # what the setting says for lines among those of the log
TARGET_MAX = 512  # characters of a path
_CHANGES = ("create", "update", "delete", "purge", "share", "confirm")

# What is noted whoever does it. The rest is the traffic itself, which is noted where it is refused.
MANAGEMENT = frozenset(
    f"{noun}:{verb}"
    for noun in ("queues", "topics", "subscription", "pools", "flavors")
    for verb in _CHANGES
)

_encode = msgspec.json.Encoder().encode


class _Entry(msgspec.Struct, omit_defaults=True):
    """A line. What nobody knows of a caller is left out."""

    time: str
    event: str
    operation: str
    target: str
    outcome: str
    method: str = ""
    status: int = 0
    reason: str = ""
    scheme: str = ""
    project: str = ""
    owner: str = ""
    user: str = ""
    user_name: str = ""
    roles: tuple[str, ...] = ()
    address: str = ""
    request_id: str = ""


class _File:
    """A file that lines are appended to, and that others may move away to begin a new one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open()

    def _open(self) -> None:
        descriptor = _appending(self._path)
        self._stream = TextIOWrapper(os.fdopen(descriptor, "ab", buffering=0))
        self._inode = os.fstat(descriptor).st_ino
        self._sink = Sink(self._stream)

    def put(self, line: bytes) -> None:
        try:
            moved = self._path.stat().st_ino != self._inode
        except OSError:
            moved = True
        if moved:
            old = self._stream
            try:
                self._open()
            except OSError as error:  # lines go on to where the old file is now
                log.error("the audit log cannot be opened anew", reason=error.strerror)
            else:
                old.close()
        dropped = self._sink.dropped
        self._sink.put(line)
        if self._sink.dropped > dropped:
            log.error("a line of the audit log could not be written")

    def close(self) -> None:
        self._stream.close()


def _appending(path: Path) -> int:
    """Open it, so that several processes can write to it at a time; a new one is its owner's only."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, flags, 0o600)
    # A command that is run by root must not shut out the server, which is not.
    if os.geteuid() == 0:
        folder = path.parent.stat()
        os.fchown(descriptor, folder.st_uid, folder.st_gid)
    return descriptor


class Audit:
    """Where audit lines go. To be used from one thread. ``now_s`` is the wall clock."""

    def __init__(self, out: "_File | Sink", now_s: Callable[[], float] = time.time) -> None:
        self._out = out
        self._now_s = now_s

    def request(
        self,
        operation: str,
        target: str,
        status: int,
        *,
        refusal: str = "",
        ctx: Context | None = None,
        caller: Caller | None = None,
        method: str = "",
        address: str = "",
        request_id: str = "",
    ) -> None:
        """Note a request.

        Args:
            operation: its name, or what is known of it.
            target: the path, without the query.
            status: of the answer.
            refusal: why it was refused for what the caller is; empty if it was not.
            ctx: what it was served as; None if it did not come to that.
            caller: who it was proved to be; None if nobody had to prove it, or was able to.
            method: of HTTP.
            address: of the client, as this server sees it.
            request_id: as in the answer and the log.
        """
        outcome = "refused" if refusal else "done" if status < 400 else "failed"
        entry = self._entry(operation, target, outcome)
        entry.status, entry.reason = status, _plain(refusal)
        entry.method, entry.address, entry.request_id = method, address, request_id
        if caller is not None:
            entry.scheme, entry.user_name = caller.scheme, _plain(caller.user_name)
            entry.project, entry.user = _plain(caller.project), _plain(caller.user)
            entry.roles = tuple(_plain(role) for role in sorted(caller.roles))
        elif ctx is not None:
            entry.scheme = "none"
            entry.project, entry.user = _plain(ctx.project), _plain(ctx.user)
            entry.roles = tuple(_plain(role) for role in sorted(ctx.roles))
        if ctx is not None and ctx.grant is not None:
            entry.project, entry.owner = _plain(ctx.grant.project), _plain(ctx.project)
        self._put(entry)

    def command(self, operation: str, target: str) -> None:
        """Note what somebody did by a command on this machine."""
        entry = self._entry(operation, target, "done")
        entry.scheme, entry.user = "command", getpass.getuser()
        self._put(entry)

    def _entry(self, operation: str, target: str, outcome: str) -> _Entry:
        now_s = self._now_s()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s))
        moment = f"{stamp}.{int(now_s * 1000) % 1000:03d}Z"
        return _Entry(moment, "audit", operation, _plain(target[:TARGET_MAX]), outcome)

    def _put(self, entry: _Entry) -> None:
        self._out.put(_encode(entry) + b"\n")


@contextmanager
def opened(settings: Settings, log_sink: Sink | None = None) -> Iterator[Audit | None]:
    """The audit log that is set (``audit_log``); None if none is.

    ``log_sink`` is where the log goes. Commands have none, and then lines for stderr are not
    written, where they would be among answers for people. Raises ConfigError.
    """
    name = settings.audit_log
    if not name or name == STDERR:
        yield Audit(log_sink) if name and log_sink else None
        return
    try:
        file = _File(Path(name))
    except OSError as error:
        raise ConfigError([f"audit log {name} cannot be written: {error.strerror}"]) from None
    try:
        yield Audit(file)
    finally:
        file.close()


def _plain(text: str) -> str:
    """Without lone surrogates, which JSON cannot hold."""
    return text.encode(errors="backslashreplace").decode()
