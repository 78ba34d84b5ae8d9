"""The benchmarks run, print every scenario, and are hard to please. No timing is judged here."""

import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.__main__ import NAMES, main
from benchmarks.failover import longest_s
from benchmarks.messages import FIRST_NUMBER, Ledger, Message, decode_message, encode_post
from benchmarks.report import CYCLE1_ZAQAR, FAILOVER, POST1_ASYNCPG, POST1_SQLITE, POST1_ZAQAR
from benchmarks.rig import Sizes
from benchmarks.wire import WrongAnswerError, parse_answer
from tests.servers.programs import postgres_folder, redis_server

TINY = Sizes(
    seconds=0.1,
    turns=1,
    in_flight=(40, 200),
    claim_samples=10,
    waiters=20,
    wake_ups=30,
    idle_s=0.2,
    stored=2_000,
    notifications=100,
    subscribers=(1, 3),
    gentle_posts=5,
    hanging=10,
    workers=(1, 2),
    queues=(1, 5),
    churned=1_000,
    kills=1,
)


SHARING = {"workers", "nodes", "wake-across", "failover", "sqlite"}
"""They need a store that several servers can work on."""


@pytest.fixture(autouse=True)
def no_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading those of the system takes a fifth of each start, and nothing here speaks TLS."""
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)


def run(store: str, scenarios: set[str], folder: Path) -> dict[str, Any]:
    """The report of a run, which must not have found a fault."""
    report = folder / "report.json"
    chosen = ["--store", store, "--scenarios", ",".join(sorted(scenarios))]
    status = main(["--connections", "4", "--json", str(report), *chosen], TINY)
    told: dict[str, Any] = json.loads(report.read_text())
    results = told["results"]
    assert [error for result in results for error in result["errors"]] == []
    assert status == 0
    assert {result["scenario"] for result in results} == scenarios
    measured = [result for result in results if not result["skipped"]]
    assert all(result["rows"] or result["facts"] for result in measured)
    return told


def skipped(told: dict[str, Any]) -> set[str]:
    return {result["scenario"] for result in told["results"] if result["skipped"]}


def not_measured(told: dict[str, Any]) -> set[str]:
    return {goal["name"] for goal in told["goals"] if goal["measured"] is None}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_scenario_runs_and_every_answer_is_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = run("sqlite", set(NAMES), tmp_path)
    assert skipped(told) == {*SHARING, "asyncpg", "zaqar"}
    comparing = {POST1_ASYNCPG, POST1_SQLITE, POST1_ZAQAR, CYCLE1_ZAQAR}
    assert not_measured(told) == {FAILOVER, *comparing}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("on SQLite")
    assert all(any(line.startswith(name.removesuffix("s")) for line in lines) for name in NAMES)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_is_compared_on_postgresql(tmp_path: Path) -> None:
    postgres_folder()
    told = run("postgresql", {"asyncpg", "workers", "nodes", "churn"}, tmp_path)
    assert skipped(told) == set()
    assert "fsync=on" in told["machine"]["store"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_is_compared_on_redis(tmp_path: Path) -> None:
    redis_server()
    told = run("redis", {"slow-commit", "sqlite", "wake-across", "failover"}, tmp_path)
    assert skipped(told) == set()
    assert "appendfsync=always" in told["machine"]["store"]


@pytest.fixture
def always_200() -> Iterator[str]:
    """A server that answers everything with 200 and an empty object, and closes the connection."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def do_PUT(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_wrong_answers_fail_the_run(always_200: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", always_200, "--scenarios", "ping,post1", "--connections", "2"], TINY) == 1
    assert "status 200 instead of 204" in capsys.readouterr().out


def message(number: int) -> Message:
    """The wire form of a posted message."""
    body = json.loads(encode_post([number], 60))["messages"][0]["body"]
    parts = {"id": "a", "href": "/v2/queues/q/messages/a", "ttl": 60, "age": 0, "body": body}
    return decode_message(json.dumps(parts))


def test_ledger_refuses_what_was_never_posted_and_what_came_twice() -> None:
    ledger = Ledger()
    ledger.take(2)
    ledger.claim(message(FIRST_NUMBER))
    with pytest.raises(WrongAnswerError, match="twice"):
        ledger.claim(message(FIRST_NUMBER))
    with pytest.raises(WrongAnswerError, match="never posted"):
        ledger.claim(message(FIRST_NUMBER + 2))


def test_ledger_refuses_an_altered_body() -> None:
    ledger = Ledger()
    ledger.take(1)
    altered = message(FIRST_NUMBER)
    altered.body.pad = altered.body.pad[::-1]
    with pytest.raises(WrongAnswerError, match="altered"):
        ledger.claim(altered)


def test_a_message_with_unknown_keys_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_message(msgspec.json.encode({**msgspec.to_builtins(message(1)), "extra": 1}))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"HTTP/1.1 204 No Content\r\ndate: x\r\n\r\n", (204, b"", False)),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", (200, b"{}", False)),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
            (200, b"{}", True),
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
            (200, b"{}", False),
        ),
    ],
)
def test_answers_are_parsed_however_they_arrive(
    data: bytes, expected: tuple[int, bytes, bool]
) -> None:
    assert parse_answer(data) == expected
    assert all(parse_answer(data[:length]) is None for length in range(len(data)))


def test_bytes_behind_an_answer_are_refused() -> None:
    with pytest.raises(WrongAnswerError, match="behind"):
        parse_answer(b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1")


def test_ledger_notices_a_message_that_was_passed_over() -> None:
    ledger = Ledger()
    ledger.take(3)
    ledger.claim(message(FIRST_NUMBER))
    ledger.check_no_gap()
    ledger.claim(message(FIRST_NUMBER + 2))
    with pytest.raises(WrongAnswerError, match=f"{FIRST_NUMBER + 1} was passed over"):
        ledger.check_no_gap()


def test_a_time_without_an_answer_may_begin_before_the_look_and_outlast_it() -> None:
    answered = [1.0, 2.0, 2.5, 4.0, 9.0]
    assert longest_s(answered, 2.2, 3.9) == 1.5
    assert longest_s(answered, 4.5, 6.0) == 5.0
    assert longest_s(answered, 10.0, 12.0) == 3.0
