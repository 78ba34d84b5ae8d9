"""Logs: the form of lines, what they must not hold, and a stderr that is slow, full or gone."""

import asyncio
import io
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import pytest
import structlog

from nusku import logs

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@pytest.fixture(autouse=True)
def unconfigured_again() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    yield
    structlog.reset_defaults()
    root.handlers, root.level = handlers, level


@pytest.fixture
def file(tmp_path: Path) -> Iterator[TextIO]:
    with (tmp_path / "log").open("w+") as opened:
        yield opened


def lines(file: TextIO) -> list[str]:
    file.seek(0)
    return file.read().split("\n")[:-1]


def documents(file: TextIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines(file)]


# -- the form


def test_a_request_in_json(file: TextIO) -> None:
    log = logs.configure("info", "json", file)
    log.line("req-1", "p1", "messages:create", 201, 1.23456, messages=10, queue=None)
    (line,) = lines(file)
    assert re.fullmatch(
        rf'{{"time":"{STAMP}","level":"info","event":"request","request_id":"req-1",'
        r'"project":"p1","operation":"messages:create","status":201,"duration_ms":1.234,'
        r'"messages":10,"queue":null}',
        line,
    )


def test_a_request_in_text(file: TextIO) -> None:
    log = logs.configure("info", "text", file)
    log.line("req-1", "p1", "messages:create", 201, 1.23456, messages=10)
    (line,) = lines(file)
    assert re.fullmatch(
        rf"{STAMP} \[info +\] 201 messages:create +1\.234 ms"
        r"  project=p1 request_id=req-1 messages=10",
        line,
    )


@pytest.mark.parametrize(("log_format", "is_json"), [("auto", True), ("json", True)])
def test_a_file_gets_json(file: TextIO, log_format: str, is_json: bool) -> None:
    logs.configure("info", log_format, file)
    structlog.get_logger().info("started")
    (line,) = lines(file)
    assert line.startswith("{") is is_json


def test_a_terminal_gets_text() -> None:
    outside, inside = os.openpty()
    with os.fdopen(inside, "w") as terminal:
        logs.configure("info", "auto", terminal)
        structlog.get_logger().info("started", store="sqlite:///a.db")
        seen = re.sub(r"\x1b\[[0-9;]*m", "", os.read(outside, 4096).decode())
    os.close(outside)
    assert re.fullmatch(rf"{STAMP} \[info +\] started +store=sqlite:///a\.db\r\n", seen)


def test_our_own_lines_and_those_of_libraries_have_one_form(file: TextIO) -> None:
    logs.configure("info", "json", file)
    structlog.get_logger().warning("disk low", free_bytes=7)
    logging.getLogger("uvicorn.error").warning("started %s", "it")
    ours, theirs = documents(file)
    assert re.fullmatch(STAMP, ours.pop("time"))
    assert ours == {"level": "warning", "event": "disk low", "free_bytes": 7}
    assert re.fullmatch(STAMP, theirs.pop("time"))
    assert theirs == {"level": "warning", "event": "started it", "logger": "uvicorn.error"}


@pytest.mark.parametrize(
    ("level", "events"),
    [
        ("debug", ["debug", "info", "warning", "error", "200", "500"]),
        ("info", ["info", "warning", "error", "200", "500"]),
        ("warning", ["warning", "error", "500"]),
        ("error", ["error", "500"]),
    ],
)
def test_less_severe_lines_are_left_out(file: TextIO, level: str, events: list[str]) -> None:
    log = logs.configure(level, "json", file)
    ours, theirs = structlog.get_logger(), logging.getLogger("library")
    for name in ("debug", "info", "warning", "error"):
        getattr(ours, name)(name)
        getattr(theirs, name)(name)
    log.line("r", "p", "200", 200, 1.0)
    log.line("r", "p", "500", 500, 1.0)
    seen = [line.get("operation", line["event"]) for line in documents(file)]
    assert list(dict.fromkeys(seen)) == events


def test_a_failed_request_is_an_error(file: TextIO) -> None:
    log = logs.configure("info", "json", file)
    for status in (200, 404, 499, 500, 503):
        log.line("r", "p", "o", status, 1.0)
    assert [line["level"] for line in documents(file)] == ["info"] * 3 + ["error"] * 2


@pytest.mark.parametrize("log_format", ["json", "text"])
@pytest.mark.parametrize("project", ["a\nb", "a\x1b[2Jb", "a\u2028b", 'a"b\\', "a\udc80b", "ä"])
def test_text_from_outside_stays_on_its_line(file: TextIO, log_format: str, project: str) -> None:
    log = logs.configure("info", log_format, file)
    log.line("r", project, "o", 200, 1.0)
    structlog.get_logger().info("seen", project=project)
    logging.getLogger("library").warning("seen %s", project)
    text = "\n".join(lines(file))
    assert len(lines(file)) == 3
    assert "\x1b" not in re.sub(r"\x1b\[\d+m", "", text)
    if log_format == "json":
        assert {"a", project[0]} >= {line.get("project", "a")[0] for line in documents(file)}


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_an_exception_is_told_without_the_values_of_variables(
    file: TextIO, log_format: str
) -> None:
    logs.configure("info", log_format, file)
    body = "canary-" + "body"
    for log in (structlog.get_logger(), logging.getLogger("library")):
        try:
            len(body) / 0
        except ZeroDivisionError:
            log.exception("failed")
    text = "\n".join(lines(file))
    assert text.count("ZeroDivisionError: division by zero") == 2
    assert "canary-body" not in text


def test_what_json_cannot_hold_is_logged_all_the_same(file: TextIO) -> None:
    logs.configure("info", "json", file)
    structlog.get_logger().info("odd", path=Path("/x"), keys={1: object}, huge=1 << 200)
    (line,) = documents(file)
    assert line["event"] == "odd"


def test_a_library_that_formats_badly_does_no_harm(file: TextIO) -> None:
    logs.configure("info", "json", file)
    logging.getLogger("library").warning("%d", "x")
    assert "library could not be formatted" in lines(file)[0]


# -- when lines are written


def test_lines_are_written_together_a_little_later(file: TextIO) -> None:
    async def scenario() -> None:
        log = logs.configure("info", "json", file)
        for number in range(3):
            log.line(f"r{number}", "p", "o", 200, 1.0)
        assert lines(file) == []
        await asyncio.sleep(logs.FLUSH_INTERVAL_S * 2)
        assert [line["request_id"] for line in documents(file)] == ["r0", "r1", "r2"]
        await asyncio.sleep(0)
        # Only this task is left: with nothing to write, nothing wakes the loop.
        assert not asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined] # no public way to ask

    asyncio.run(scenario())


def test_a_failure_is_written_at_once_with_what_led_to_it(file: TextIO) -> None:
    async def scenario() -> None:
        log = logs.configure("info", "json", file)
        log.line("r0", "p", "o", 200, 1.0)
        log.line("r1", "p", "o", 503, 1.0)
        assert [line["request_id"] for line in documents(file)] == ["r0", "r1"]

    asyncio.run(scenario())


def test_closing_writes_the_rest(file: TextIO) -> None:
    async def scenario() -> None:
        log = logs.configure("info", "json", file)
        log.line("r0", "p", "o", 200, 1.0)
        log.close()
        assert len(lines(file)) == 1

    asyncio.run(scenario())


# -- a stderr that is slow, full or gone


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        yield reading, stream
    with suppress(OSError):  # some tests close it themselves
        os.close(reading)


def read_all(fd: int) -> str:
    os.set_blocking(fd, False)
    parts = []
    while True:
        try:
            parts.append(os.read(fd, 65_536))
        except BlockingIOError:
            return b"".join(parts).decode()


def test_nobody_waits_for_a_reader_who_sleeps(pipe: tuple[int, TextIO]) -> None:
    reading, stream = pipe
    log = logs.configure("info", "json", stream)
    started = time.monotonic()
    for number in range(20_000):
        log.line(f"r{number}", "p", "o", 200, 1.0)
        if number % 1000 == 0:
            structlog.get_logger().info("still here", number=number)
    assert time.monotonic() - started < 20
    # The reader wakes up: whole lines, in order, then how many are missing.
    seen = ""
    for _ in range(1000):
        seen += read_all(reading)
        log.flush()
        if not (more := read_all(reading)):
            break
        seen += more
    structlog.get_logger().info("awake")
    seen += read_all(reading)
    found = [json.loads(line) for line in seen.splitlines()]
    numbers = [int(line["request_id"][1:]) for line in found if "request_id" in line]
    assert numbers == list(range(len(numbers)))
    (missing,) = (line["count"] for line in found if line["event"] == "log lines dropped")
    others = sum(line["event"] == "still here" for line in found)
    assert len(numbers) + others + missing == 20_020
    assert found[-1]["event"] == "awake"


def test_what_waits_is_bounded(pipe: tuple[int, TextIO]) -> None:
    sink = logs.Sink(pipe[1])
    for _ in range(100):
        sink.put(b"x" * 99_999 + b"\n")
    assert sink.backlog_bytes <= logs.BACKLOG_BYTES_MAX
    assert sink.dropped >= 80


def test_a_reader_who_is_gone_does_no_harm(pipe: tuple[int, TextIO]) -> None:
    reading, stream = pipe
    log = logs.configure("info", "json", stream)
    os.close(reading)
    for _ in range(10):
        log.line("r", "p", "o", 500, 1.0)
        structlog.get_logger().error("still here")
        logging.getLogger("library").error("still here")
    log.close()


def test_a_closed_stream_does_no_harm(tmp_path: Path) -> None:
    stream = (tmp_path / "log").open("w")
    log = logs.configure("info", "json", stream)
    stream.close()
    log.line("r", "p", "o", 500, 1.0)
    structlog.get_logger().error("still here")
    log.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_does_no_harm() -> None:
    with Path("/dev/full").open("w") as stream:
        log = logs.configure("info", "json", stream)
        log.line("r", "p", "o", 500, 1.0)
        structlog.get_logger().error("still here")
        log.close()


def test_a_stream_without_a_descriptor_is_written_to() -> None:
    stream = io.StringIO()
    log = logs.configure("info", "json", stream)
    log.line("r", "p", "o", 200, 1.0)
    structlog.get_logger().info("still here")
    assert len(stream.getvalue().splitlines()) == 2


def test_the_default_is_the_stderr_of_now(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    structlog.get_logger().info("here")
    assert '"event":"here"' in capsys.readouterr().err


# -- what it costs


def test_a_line_costs_little(file: TextIO) -> None:
    """The goal is 4 µs; the bound here only finds a blunder on a busy machine."""

    async def cost_us() -> float:
        log = logs.configure("info", "json", file)
        best = float("inf")
        for _ in range(20):
            started = time.process_time()
            for _ in range(500):
                log.line(
                    "req-0123456789abcdef", "0123456789abcdef" * 2, "messages:create", 201, 1.2
                )
            best = min(best, time.process_time() - started)
            log.flush()
        return best / 500 * 1e6

    assert asyncio.run(cost_us()) < (20 if sys.gettrace() is None else 400)
