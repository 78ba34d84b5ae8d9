"""F-26: far more clients than the machine can serve: shed or slow, but right, and soon well again."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.chaos.conftest import run
from tests.chaos.harness.client import Connection, NotSentError, UnknownError
from tests.chaos.harness.servers import Server
from tests.chaos.harness.stage import Plan

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

HEADERS = {
    "Client-ID": "9f8c1e52-7a0b-4d8e-9b57-1d3a5a0c4a11",
    "X-Project-ID": "project",
}
MIB = 1 << 20


def test_a_crowd_breaks_no_promise(tmp_path: Path) -> None:
    assert run(Plan(profile="crowd", seed=91, seconds=3), tmp_path).passed


def test_connections_over_the_cap_are_shed_and_the_rest_recovers(
    server: Server, tmp_path: Path
) -> None:
    capped = Server(server.store, tmp_path, {"NUSKU_MAX_CONNECTIONS": "100"})
    with capped:
        capped.start()
        answered, shed = asyncio.run(_crowd(capped, clients=500, lasts=3.0))
        assert answered > 100
        assert shed > 0, "nobody was shed"
        assert capped.memory() < 400 * MIB
        assert asyncio.run(_recovers(capped, within=5.0))
        assert capped.stop() == 0


async def _crowd(server: Server, clients: int, lasts: float) -> tuple[int, int]:
    """Requests answered with 201, and those that were turned away."""
    end = time.monotonic() + lasts
    answered = shed = 0

    async def insist() -> None:
        nonlocal answered, shed
        connection = Connection(server, deadline=5)
        while time.monotonic() < end:
            try:
                reply = await connection.request(
                    "POST",
                    "/v2/queues/crowd/messages",
                    HEADERS,
                    b'{"messages": [{"body": 1, "ttl": 60}]}',
                )
            except (NotSentError, UnknownError):
                shed += 1
                await asyncio.sleep(0.2)
                continue
            answered += reply.status == 201
            if reply.status == 503:
                shed += 1
                assert "retry-after" in reply.headers
                await asyncio.sleep(0.2)
            else:
                assert reply.status == 201
        connection.close()

    await asyncio.gather(*(insist() for _ in range(clients)))
    return answered, shed


async def _recovers(server: Server, within: float) -> bool:
    end = time.monotonic() + within
    while time.monotonic() < end:
        connection = Connection(server, deadline=1)
        try:
            reply = await connection.request("GET", "/v2/ping", HEADERS)
        except (NotSentError, UnknownError):
            await asyncio.sleep(0.1)
            continue
        finally:
            connection.close()
        if reply.status == 204:
            return True
    return False
