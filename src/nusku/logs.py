"""Logs: one line each on stderr, for people on a terminal and as JSON elsewhere.

Three things write here: our own code (``structlog.get_logger()``), libraries (``logging``), and
:class:`RequestLog`, which is cheap enough for every request. Lines hold names, ids, numbers; never
bodies, tokens, keys or headers. Whatever happens to stderr, nobody who logs ever waits or fails:
what cannot be written is kept, up to a bound, then dropped and counted.
"""

import asyncio
import logging
import os
import select
import stat
import sys
import threading
import time
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from io import UnsupportedOperation
from typing import Any, TextIO

import msgspec
import structlog

BACKLOG_BYTES_MAX = 1_048_576
FLUSH_INTERVAL_S = 0.2
# As much as a pipe that is ready for writing takes without blocking.
CHUNK_BYTES = select.PIPE_BUF
CLOSE_PATIENCE_MS = 500

_Event = MutableMapping[str, Any]
# Made once: a new encoder for each line would cost as much as the line.
_encode = msgspec.json.Encoder().encode


class Sink:
    """Writes lines to a stream without ever blocking or raising.

    A blocked pipe must not stop the server, and setting O_NONBLOCK would change the stream for
    every process that shares it (the user's shell, for one). So it asks before each write whether
    the stream is ready, and writes no more at a time than a ready one is sure to take.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._backlog = bytearray()
        self._dropped = 0
        self._fd = _descriptor(stream)
        # A file is always ready.
        self._whole = self._fd is not None and stat.S_ISREG(os.fstat(self._fd).st_mode)

    @property
    def backlog_bytes(self) -> int:
        """How much still waits to be written."""
        return len(self._backlog)

    @property
    def dropped(self) -> int:
        """Lines dropped since the last time that this was told in the log."""
        return self._dropped

    def put(self, lines: bytes) -> None:
        """Write complete lines, each with its end, or keep them until there is room."""
        with self._lock:
            self._flush(0)
            if self._dropped and not self._backlog:
                self._backlog += _dropped_line(self._dropped)
                self._dropped = 0
            self._backlog += lines
            self._flush(0)
            if len(self._backlog) > BACKLOG_BYTES_MAX:
                # The newest go, whole: the first line may be half written already.
                end = self._backlog.rfind(b"\n", 0, BACKLOG_BYTES_MAX) + 1
                self._dropped += self._backlog.count(b"\n", end)
                del self._backlog[end:]

    def flush(self, patience_ms: int = 0) -> None:
        """Write what can be written; wait so long for a stream that is not ready."""
        with self._lock:
            self._flush(patience_ms)

    def _flush(self, patience_ms: int) -> None:
        backlog = self._backlog
        try:
            if self._fd is None:
                text, self._backlog = backlog.decode(errors="replace"), bytearray()
                self._stream.write(text)
                self._stream.flush()
                return
            while backlog and (self._whole or self._ready(patience_ms)):
                chunk = backlog if self._whole else backlog[:CHUNK_BYTES]
                written = os.write(self._fd, chunk)
                del backlog[:written]
        except BlockingIOError:
            pass
        except (OSError, ValueError):
            # Closed, hung up, or on a full disk.
            self._dropped += backlog.count(b"\n")
            self._backlog = bytearray()

    def _ready(self, patience_ms: int) -> bool:
        poll = select.poll()
        poll.register(self._fd or 0, select.POLLOUT)
        return bool(poll.poll(patience_ms))


class _Line(msgspec.Struct, gc=False):
    """One request, as it is logged in JSON."""

    time: str
    level: str
    event: str
    request_id: str
    project: str
    operation: str
    status: int
    duration_ms: float


class RequestLog:
    """One line for each request answered; on the path of every request, so it costs little.

    Lines gather while the event loop is busy and are written together, at the latest after
    ``FLUSH_INTERVAL_S``; a failed request (5xx) at once. To be used from the loop's thread. Into
    ``sink`` others may write whole lines too.
    """

    def __init__(
        self, sink: Sink, *, json: bool, level: str, now: Callable[[], float] = time.time
    ) -> None:
        self.sink = sink
        self._now = now
        self._second = -1
        self._second_text = ""
        self._lines: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._encode = _json_line if json else _text_line
        self._successes = _number(level) <= logging.INFO

    def line(
        self,
        request_id: str,
        project: str,
        operation: str,
        status: int,
        duration_ms: float,
        **extra: str | float | bool | None,
    ) -> None:
        """Log a request that was answered with ``status`` after ``duration_ms``."""
        failed = status >= 500
        if not (failed or self._successes):
            return
        now = self._now()
        second = int(now)
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
        stamp = f"{self._second_text}{int((now - second) * 1000):03d}Z"
        level = "error" if failed else "info"
        line = _Line(
            stamp,
            level,
            "request",
            request_id,
            project,
            operation,
            status,
            int(duration_ms * 1000) / 1000,
        )
        self._lines.append(self._encode(line, extra))
        if failed:
            self.flush()
        elif self._timer is None:
            self._schedule()

    def flush(self) -> None:
        """Write what has gathered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._lines:
            self._lines.append(b"")
            self.sink.put(b"\n".join(self._lines))
            self._lines.clear()
        else:
            self.sink.flush()
        if self.sink.backlog_bytes:
            self._schedule()

    def close(self) -> None:
        """Write the last lines, with a little patience for a slow reader."""
        self.flush()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.sink.flush(CLOSE_PATIENCE_MS)

    def _schedule(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            if self._lines:
                self.flush()
        else:
            self._timer = loop.call_later(FLUSH_INTERVAL_S, self.flush)


def configure(level: str, log_format: str, stream: TextIO | None = None) -> RequestLog:
    """Set up logging for the process, and return the log for its requests.

    Args:
        level: the least severe that is logged: debug, info, warning or error.
        log_format: text, json, or auto: text on a terminal, else JSON.
        stream: where lines go; stderr if not given.
    """
    stream = stream or sys.stderr
    json = log_format == "json" or (log_format == "auto" and not stream.isatty())
    sink = Sink(stream)
    common: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _stamp,
    ]
    rendering: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, _render_json]
        if json
        else [
            _escape,
            # Not its own choice where `rich` is there: that one prints local variables.
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(),
                exception_formatter=structlog.dev.plain_traceback,
                sort_keys=False,
                timestamp_key="time",
            ),
        ]
    )
    structlog.configure(
        processors=[*common, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(_number(level)),
        logger_factory=lambda *_: _SinkLogger(sink),
        cache_logger_on_first_use=False,
    )
    handler = _SinkHandler(sink)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*common, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(handlers=[handler], level=_number(level), force=True)
    return RequestLog(sink, json=json, level=level)


class _SinkLogger:
    """What structlog calls with a rendered line."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def msg(self, line: str) -> None:
        self._sink.put(_encoded(line))

    debug = info = warning = error = critical = msg


class _SinkHandler(logging.Handler):
    """What ``logging`` calls with a record of a library."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - a library's bad arguments are not our failure
            line = f"a log line of {record.name} could not be formatted: {type(error).__name__}"
        self._sink.put(_encoded(line))


def _descriptor(stream: TextIO) -> int | None:
    """The stream's file descriptor; None if it has none, as in tests, or is closed."""
    try:
        fd = stream.fileno()
        os.fstat(fd)
    except (OSError, ValueError, UnsupportedOperation):
        return None
    return fd


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


def _encoded(line: str) -> bytes:
    return line.encode(errors="backslashreplace") + b"\n"


def _dropped_line(count: int) -> bytes:
    line = {"time": _time(), "level": "warning", "event": "log lines dropped", "count": count}
    return msgspec.json.encode(line) + b"\n"


def _time() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _stamp(_logger: object, _method: str, event: _Event) -> _Event:
    return {"time": _time(), "level": event.pop("level"), "event": event.pop("event"), **event}


def _escape(_logger: object, _method: str, event: _Event) -> _Event:
    """Text from outside must not be able to move the cursor or fake a line."""
    for key, value in event.items():
        if isinstance(value, str) and key != "exception":
            event[key] = _printable(value)
    return event


def _printable(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _render_json(_logger: object, _method: str, event: _Event) -> str:
    try:
        return msgspec.json.encode(event, enc_hook=repr).decode()
    except (UnicodeEncodeError, TypeError, ValueError, RecursionError):
        return msgspec.json.encode(
            {k: _printable(v if isinstance(v, str) else repr(v)) for k, v in event.items()}
        ).decode()


def _json_line(line: _Line, extra: dict[str, Any]) -> bytes:
    try:
        text = _encode(line)
        if extra:
            text = b"%b,%b" % (text[:-1], _encode(extra)[1:])
    except UnicodeEncodeError:
        # A lone surrogate, which JSON cannot hold.
        line.project = _printable(line.project)
        line.request_id = _printable(line.request_id)
        line.operation = _printable(line.operation)
        return _encode(line)
    return text


def _text_line(line: _Line, extra: dict[str, Any]) -> bytes:
    more = "".join(f" {key}={_printable(str(value))}" for key, value in extra.items())
    text = (
        f"{line.time} [{line.level:<9}] {line.status} {line.operation:<18}"
        f" {line.duration_ms:9.3f} ms  project={_printable(line.project)}"
        f" request_id={_printable(line.request_id)}{more}"
    )
    return text.encode(errors="backslashreplace")
