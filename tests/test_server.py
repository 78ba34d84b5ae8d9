"""How the process starts and stops, seen from outside."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live import LiveServer


def test_a_clean_stop_writes_the_log_back_and_marks_the_file_closed(
    tmp_path: Path,
) -> None:
    server = LiveServer(tmp_path).start(afresh=True)
    server.api().post_bodies("q", "kept")
    server.stop()
    (file,) = tmp_path.glob("*.db")
    assert sorted(path.name for path in tmp_path.glob(f"{file.name}*")) == [
        file.name,
        f"{file.name}.key",
        f"{file.name}.lock",
    ]
    with sqlite3.connect(file) as db:
        assert db.execute("SELECT value FROM meta WHERE name = 'open'").fetchone() == (0,)
        assert db.execute("SELECT count(*) FROM messages").fetchone() == (1,)


@pytest.mark.parametrize("store", ["postgresql://u:canary@localhost/db", "sqlite://u:canary@x/y"])
def test_a_refused_store_is_named_without_its_password(store: str, tmp_path: Path) -> None:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("NUSKU_")}
    refused = subprocess.run(
        [sys.executable, "-m", "nusku", "serve", "--port", "0", "--store", store],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environ,
        timeout=30,
        check=False,
    )
    assert refused.returncode == 2
    assert "canary" not in refused.stdout + refused.stderr
    assert refused.stderr.startswith("nusku: ")
    assert len(refused.stderr.splitlines()) == 1


def test_a_port_that_is_taken_is_named(server: LiveServer, tmp_path: Path) -> None:
    port = server.url.rpartition(":")[2]
    refused = subprocess.run(
        [sys.executable, "-m", "nusku", "serve", "--port", port, "--store", "sqlite:///x.db"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=30,
        check=False,
    )
    assert refused.returncode == 2
    assert port in refused.stderr
    assert not (tmp_path / "x.db").exists()


def test_health_still_tells_the_operations_apart_when_the_disk_is_nearly_full(
    private_server: Callable[..., LiveServer],
) -> None:
    server = private_server(disk_watermark=1 << 50)
    api = server.api().but(extra={"X-Roles": "admin"})
    report = api.get("/v2/health").json()["default"]
    failed = {name for name, one in report["operation_status"].items() if not one["succeeded"]}
    assert failed == {"create_queue", "post_messages"}


def test_looking_at_a_store_at_rest_leaves_nothing_behind(tmp_path: Path) -> None:
    server = LiveServer(tmp_path).start(afresh=True)
    server.api().post_bodies("q", "kept")
    server.stop()
    (file,) = tmp_path.glob("*.db")
    before = sorted(tmp_path.glob(f"{file.name}*"))
    looked = subprocess.run(
        [sys.executable, "-m", "nusku", "check", "--store", f"sqlite:///{file}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "1 messages" in looked.stdout
    assert sorted(tmp_path.glob(f"{file.name}*")) == before
