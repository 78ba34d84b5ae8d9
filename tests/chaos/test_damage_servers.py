"""F-07: a bit of PostgreSQL's or Redis' files is another one: right data or an error, no other body."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.harness.servers import PLANTED, Server
from tests.chaos.test_damage import BODIES, fill, is_right_or_refused, walk
from tests.servers.postgres import Postgres
from tests.servers.process import DidNotStart
from tests.servers.redis import Redis

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

SEEDS = 6  # half of them within a body, which only a checksum of ours can notice


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of a Redis that holds some messages and was stopped."""
    folder = tmp_path_factory.mktemp("redis")
    with Redis() as redis, Server(redis.uri, folder) as server:
        fill(server)
        server.stop()
        redis.stop()
        shutil.copytree(redis.folder / "appendonlydir", folder / "appendonlydir")
    return folder / "appendonlydir"


@pytest.fixture
def damaged(log: Path, request: pytest.FixtureRequest) -> Iterator[Redis]:
    """The same Redis with another bit; not started."""
    rng = random.Random(request.param)
    redis = Redis()
    try:
        folder = redis.folder / "appendonlydir"
        shutil.copytree(log, folder)
        (file,) = folder.glob("*.incr.aof")
        content = bytearray(file.read_bytes())
        if request.param % 2:
            at, bit = rng.choice([*places(bytes(content), BODIES)]), 1
        else:
            at, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
        content[at] ^= bit
        file.write_bytes(content)
        yield redis
    finally:
        redis.remove()


def places(content: bytes, text: bytes) -> Iterator[int]:
    """Where the digit behind each of these is."""
    at = content.find(text)
    while at >= 0:
        yield at + len(text) + 2
        at = content.find(text, at + 1)


@pytest.mark.parametrize("damaged", range(SEEDS), indirect=True)
def test_no_other_body_comes_from_a_damaged_log_of_redis(damaged: Redis, tmp_path: Path) -> None:
    try:
        damaged.start()
    except DidNotStart:
        return  # it has noticed
    is_right_or_refused(Server(damaged.uri, tmp_path), indexed=False)


@pytest.mark.parametrize("damaged", [1], indirect=True)
def test_without_a_checksum_another_body_would_be_seen(damaged: Redis, tmp_path: Path) -> None:
    damaged.start()
    with Server(damaged.uri, tmp_path, {PLANTED: "trusts-the-disk"}) as server:
        server.start()
        assert any(not p for op in walk(server) for _, p, _ in op.got)


def test_no_other_body_comes_from_a_damaged_table_of_postgresql(tmp_path: Path) -> None:
    with Postgres(durable=True) as postgres:
        uri = postgres.create()
        with Server(uri, tmp_path) as server:
            fill(server)
            server.stop()
        database = uri.rpartition("/")[2]
        asked = "SELECT pg_relation_filepath('nusku.messages')"
        file = postgres.data / postgres.execute(asked, database)[0][0]
        postgres.stop()
        content = bytearray(file.read_bytes())
        content[next(places(bytes(content), BODIES))] ^= 1
        file.write_bytes(content)
        postgres.start()
        answers = is_right_or_refused(Server(uri, tmp_path))
        assert any(op.status == 503 for op in answers), "nothing was noticed"
