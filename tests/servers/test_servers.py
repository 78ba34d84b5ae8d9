"""The servers themselves: they are their starter's alone, and end with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.servers import programs
from tests.servers.cluster import Cluster
from tests.servers.guardian import alive
from tests.servers.postgres import Postgres
from tests.servers.redis import Redis

STARTER = """
import signal
from tests.servers.{module} import {kind}
server = {kind}().start()
{then}
print(server.pid, server.folder, flush=True)
signal.pause()
"""


@pytest.mark.slow
@pytest.mark.parametrize("then", ["", "server.pause()"], ids=["at work", "paused"])
@pytest.mark.parametrize(("module", "kind"), [("postgres", "Postgres"), ("redis", "Redis")])
def test_a_server_ends_with_its_starter_even_if_that_is_killed(
    module: str, kind: str, then: str
) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER.format(module=module, kind=kind, then=then)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert starter.stdout is not None
    with starter.stdout:
        pid, folder = starter.stdout.readline().split()
        assert alive(int(pid))
        assert Path(folder).is_dir()
        starter.kill()
        starter.wait()
    deadline = time.monotonic() + 20
    while alive(int(pid)) or Path(folder).exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Postgres, Redis])
def test_a_server_that_was_killed_is_started_again_on_its_port(
    kind: type[Postgres] | type[Redis],
) -> None:
    with kind() as server:
        port, pid = server.port, server.pid
        os.kill(pid, signal.SIGKILL)
        while server.running:
            time.sleep(0.01)
        server.start()
        assert server.port == port
        assert server.pid != pid


@pytest.mark.slow
def test_a_server_whose_port_is_taken_takes_another() -> None:
    with Redis() as first:
        second = Redis()
        second.port = first.port
        with second:
            assert second.port != first.port
            assert second.ask("PING") is True or second.ask("PING") == "PONG"


@pytest.mark.slow
def test_a_cluster_does_without_a_port_that_is_taken() -> None:
    with Redis() as first:
        cluster = Cluster()
        cluster.nodes[-1].port = first.port
        with cluster:
            assert cluster.nodes[-1].port != first.port
            assert len(cluster.masters()) == 3


def test_a_program_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    programs.redis_server.cache_clear()
    monkeypatch.setattr(programs, "_first", lambda *candidates: None)
    with pytest.raises(programs.Missing, match="redis-server"):
        programs.redis_server()
    programs.redis_server.cache_clear()
