"""F-29: a hot backup has everything that was acknowledged before it began; a wrong copy is noticed.

Each is made and restored as docs/backup.md says.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.harness.backing import Rehearsal
from tests.chaos.harness.places import OnPostgres, OnRedis, embedded
from tests.chaos.harness.servers import RefusedError, Server
from tests.chaos.harness.stage import Plan
from tests.servers.postgres import USER, Postgres
from tests.servers.redis import Redis

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(300)]

PLAN = Plan(profile="brief", seed=101)
PATIENCE_S = 30.0


@pytest.fixture
def rehearsal(tmp_path: Path) -> Iterator[Rehearsal]:
    """What was restored has to be all that was acknowledged, and one of later is told apart."""
    rehearsal = Rehearsal(PLAN, tmp_path)
    yield rehearsal
    assert rehearsal.answered() > 50
    assert not (found := rehearsal.violations()), found[0].render(0.0)
    assert rehearsal.violations_as_if_later(), "a backup that is too old would not be noticed"


def test_a_hot_backup_of_sqlite_is_complete(rehearsal: Rehearsal, tmp_path: Path) -> None:
    place = embedded(tmp_path)
    copy = tmp_path / "copy" / "nusku.db"
    copy.parent.mkdir()
    command = [sys.executable, "-m", "nusku", "backup", "--store", place.uri, str(copy)]
    rehearsal.load(place, lambda: subprocess.run(command, check=True))
    rehearsal.restore(embedded(copy.parent))


def test_a_dump_of_postgresql_is_complete(rehearsal: Rehearsal) -> None:
    with Postgres(durable=True) as server:
        uri, dump = server.create(), server.folder / "nusku.dump"
        to = ("--host", server.host, "--port", str(server.port), "--username", USER)

        def take() -> None:
            what = ("--format=custom", "--schema=nusku", f"--file={dump}")
            server.run("pg_dump", *to, *what, uri.rpartition("/")[2])

        rehearsal.load(OnPostgres(server, uri), take)
        other = server.create()
        into = f"--dbname={other.rpartition('/')[2]}"
        server.run("pg_restore", *to, into, "--exit-on-error", dump)
        rehearsal.restore(OnPostgres(server, other))


def test_a_base_backup_of_postgresql_is_complete(rehearsal: Rehearsal) -> None:
    with Postgres(durable=True) as server:
        uri, base = server.create(), server.folder / "base"

        def take() -> None:
            to = ("--host", server.host, "--port", str(server.port), "--username", USER)
            how = ("--wal-method=stream", "--checkpoint=fast")
            server.run("pg_basebackup", *to, "--pgdata", base, *how)

        rehearsal.load(OnPostgres(server, uri), take)
        server.run("pg_verifybackup", base)
        server.kill()
        server.data = base
        server.start()
        rehearsal.restore(OnPostgres(server, server.uri(uri.rpartition("/")[2])))


def test_a_picture_of_redis_is_complete(rehearsal: Rehearsal) -> None:
    with Redis() as server, Redis() as restored:

        def take() -> None:
            before = server.ask("LASTSAVE")
            time.sleep(1.0)  # it counts whole seconds
            server.ask("BGSAVE")
            until(lambda: server.ask("LASTSAVE") != before)

        rehearsal.load(OnRedis(server, server.uri), take)
        restored.stop()
        shutil.rmtree(restored.folder / "appendonlydir")
        shutil.copy(server.folder / "dump.rdb", restored.folder)
        restored.settings["appendonly"] = "no"
        restored.start()
        restored.ask("CONFIG", "SET", "appendonly", "yes")
        until(lambda: _is_idle(restored))
        restored.stop()
        restored.settings["appendonly"] = "yes"
        restored.start()
        rehearsal.restore(OnRedis(restored, restored.uri))


def test_a_copy_of_the_log_of_redis_is_complete(rehearsal: Rehearsal) -> None:
    with Redis() as server, Redis() as restored:
        copy = restored.folder / "copy"

        def take() -> None:
            server.ask("CONFIG", "SET", "auto-aof-rewrite-percentage", 0)
            until(lambda: _is_idle(server))
            shutil.copytree(server.folder / "appendonlydir", copy)
            server.ask("CONFIG", "SET", "auto-aof-rewrite-percentage", 100)

        rehearsal.load(OnRedis(server, server.uri), take)
        restored.stop()
        shutil.rmtree(restored.folder / "appendonlydir")
        copy.rename(restored.folder / "appendonlydir")
        restored.start()
        rehearsal.restore(OnRedis(restored, restored.uri))


def test_a_copy_without_its_log_is_refused(tmp_path: Path) -> None:
    with Server(tmp_path / "nusku.db", tmp_path) as server:
        server.start()
        server.kill()
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "nusku.db", tmp_path / "copy")
    with pytest.raises(RefusedError) as refused:
        Server(tmp_path / "copy" / "nusku.db", tmp_path).start()
    assert refused.value.code == 2
    assert "-wal" in refused.value.stderr


def _is_idle(server: Redis) -> bool:
    """Whether its log is not being written anew."""
    with server.client() as client:
        found = client.info("persistence")
    return not (found["aof_rewrite_in_progress"] or found["aof_rewrite_scheduled"])


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)  # there is no event to wait for
