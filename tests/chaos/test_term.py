"""F-02: SIGTERM under load: what was accepted is answered, waiters end, the exit code is 0."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

import pytest

from tests.chaos.conftest import control, insist
from tests.chaos.harness.client import Connection
from tests.chaos.harness.servers import Server
from tests.chaos.harness.stage import Plan

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

HEADERS = {
    "Client-ID": "9f8c1e52-7a0b-4d8e-9b57-1d3a5a0c4a11",
    "X-Project-ID": "project",
}


def test_a_clean_stop_drops_no_request(tmp_path: Path) -> None:
    insist(Plan(nemesis="term", seed=41, strikes=3, pause=(0.2, 1.2)), tmp_path)


def test_a_clean_stop_of_a_node_drops_no_request(tmp_path: Path) -> None:
    insist(Plan("term", "redis", 2, "brief", 42, strikes=2, pause=(0.2, 0.6)), tmp_path)


def test_a_stop_that_drops_requests_is_seen(tmp_path: Path) -> None:
    control(Plan("term", profile="brief", seed=43, strikes=1, pause=(0.2, 0.6)), tmp_path)


def test_a_clean_stop_answers_those_who_wait(server: Server) -> None:
    async def wait_for_a_message() -> tuple[int, float]:
        waiting = Connection(server, deadline=30)
        claim = asyncio.create_task(
            waiting.request("POST", "/v2/queues/empty/claims?wait=20", HEADERS, b"{}")
        )
        await asyncio.sleep(0.5)
        begin = time.monotonic()
        server.terminate()
        reply = await claim
        waiting.close()
        return reply.status, time.monotonic() - begin

    server.start()
    status, took = asyncio.run(wait_for_a_message())
    assert status == 204
    assert took < 2
    assert server.wait(10) == 0


def test_a_clean_stop_leaves_one_complete_file(server: Server, tmp_path: Path) -> None:
    server.start()
    assert server.stop() == 0
    assert not Path(f"{server.store}-wal").exists()
    copy = tmp_path / "copy" / "nusku.db"
    copy.parent.mkdir()
    shutil.copy(server.store, copy)
    with Server(copy, tmp_path) as other:
        other.start()
        assert other.stop() == 0
