"""F-30: a store belongs to one server, for as long as that lives."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.harness.servers import RefusedError, Server

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


def test_a_second_server_on_the_same_store_is_refused(server: Server, tmp_path: Path) -> None:
    server.start()
    logs = tmp_path / "second"
    logs.mkdir()
    second = Server(server.store, logs)
    with pytest.raises(RefusedError) as refused:
        second.start()
    assert refused.value.code == 2
    (line,) = refused.value.stderr.splitlines()
    assert line.startswith("nusku: ")
    assert "nusku.db" in line
    assert server.running()
    server.kill()
    second.start()
    assert second.stop() == 0


def test_a_name_that_leads_to_the_same_store_is_refused_too(server: Server, tmp_path: Path) -> None:
    server.start()
    logs = tmp_path / "second"
    logs.mkdir()
    for name, link in (("soft.db", Path.symlink_to), ("hard.db", Path.hardlink_to)):
        link(tmp_path / name, server.store)
        with pytest.raises(RefusedError) as refused:
            Server(tmp_path / name, logs).start()
        assert refused.value.code == 2
