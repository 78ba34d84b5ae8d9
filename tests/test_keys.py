"""The key that nobody configured: made once, kept, and nobody else's."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from nusku import keys
from nusku.config import Settings
from nusku.errors import StoreRefused


def settings(folder: Path, secret_key: str = "") -> Settings:
    return Settings(store=f"sqlite:///{folder}/my.db", secret_key=secret_key)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def test_it_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    with umask(0):
        key = keys.signing_key(settings(tmp_path))
    assert re.fullmatch("[0-9a-f]{64}", key)
    (file,) = tmp_path.iterdir()
    assert file.name == "my.db.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.stat().st_nlink == 1
    assert file.read_text() == f"signing = {key}\n"
    assert keys.signing_key(settings(tmp_path)) == key
    assert list(tmp_path.iterdir()) == [file]


def test_each_store_has_its_own(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert keys.signing_key(settings(tmp_path)) != keys.signing_key(settings(other))


def test_it_is_beside_the_database_also_through_a_link(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "a.db").touch()
    (tmp_path / "my.db").symlink_to(real / "a.db")
    key = keys.signing_key(settings(tmp_path))
    assert key in (real / "a.db.key").read_text()
    assert not (tmp_path / "my.db.key").exists()


def test_a_key_that_is_configured_makes_no_file(tmp_path: Path) -> None:
    assert keys.signing_key(settings(tmp_path, "s" * 32)) == "s" * 32
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "my.db.key").write_text("not read")
    assert keys.signing_key(settings(tmp_path, "s" * 32)) == "s" * 32


@pytest.mark.parametrize("store", ["redis://127.0.0.1/0", "postgresql://host/db"])
def test_a_shared_store_has_none(store: str) -> None:
    assert keys.signing_key(Settings(store=store)) == ""
    assert keys.signing_key(Settings(store=store, secret_key="k" * 40)) == "k" * 40
    keys.check_key(Settings(store=store))


@pytest.mark.parametrize(("length", "warned"), [(1, True), (31, True), (32, False), (64, False)])
def test_a_short_one_is_used_but_warned_of(length: int, warned: bool, tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        assert keys.signing_key(settings(tmp_path, "s" * length)) == "s" * length
    assert [entry["log_level"] for entry in logs] == (["warning"] if warned else [])
    assert "sss" not in json.dumps(logs)


def test_what_is_logged_is_not_the_key(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        key = keys.signing_key(settings(tmp_path))
    (entry,) = logs
    assert entry["file"].endswith("my.db.key")
    assert key not in json.dumps(logs)


@pytest.mark.parametrize(
    "mode", [0o644, 0o640, 0o620, 0o604, 0o602, 0o601, 0o610, 0o660, 0o666, 0o777]
)
def test_a_file_that_others_can_use_is_refused(mode: int, tmp_path: Path) -> None:
    keys.signing_key(settings(tmp_path))
    file = tmp_path / "my.db.key"
    content = file.read_text()
    file.chmod(mode)
    for asked in (keys.signing_key, keys.check_key):
        with pytest.raises(StoreRefused, match=r"my\.db\.key can be used by others") as refused:
            asked(settings(tmp_path))
        assert "chmod 600" in str(refused.value)
        assert content[-20:-1] not in str(refused.value)
    file.chmod(0o400)
    assert keys.signing_key(settings(tmp_path)) in content


K = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\n",
        "signing = ",
        "signing = \n",
        f"signing = {K[:-1]}\n",
        f"signing = {K}",  # the end is missing, so it may have been longer
        f"signing = {K}0\n",
        f"signing = {K.upper()}\n",
        f"signing = {K}\nsigning = {K}\n",
        f" signing = {K}\n",
        f"signing={K}\n",
        f"{K}\n",
        "\0" * 75,
        "\xff\xfe",
        "x" * 1_000_000,
    ],
    ids=lambda content: ascii(content[:30]),
)
def test_a_file_without_a_key_is_refused_and_kept(content: str, tmp_path: Path) -> None:
    file = tmp_path / "my.db.key"
    file.write_text(content, encoding="latin-1")
    file.chmod(0o600)
    for asked in (keys.signing_key, keys.check_key):
        with pytest.raises(StoreRefused, match=r"my\.db\.key holds no key; restore it") as refused:
            asked(settings(tmp_path))
        assert K[:10] not in str(refused.value)
    assert file.read_text(encoding="latin-1") == content
    assert list(tmp_path.iterdir()) == [file]


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "my.db.key"
    os.mkfifo(path, 0o600)
    with pytest.raises(StoreRefused, match="holds no key"):
        keys.signing_key(settings(tmp_path))
    path.unlink()
    path.mkdir(0o700)
    with pytest.raises(StoreRefused, match="holds no key"):
        keys.signing_key(settings(tmp_path))
    path.rmdir()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreRefused, match="a link to nothing"):
        keys.signing_key(settings(tmp_path))
    assert list(tmp_path.iterdir()) == [path]
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(StoreRefused, match=r"my\.db\.key cannot be read"):
        keys.signing_key(settings(tmp_path))


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match=r"cannot be made: .*; or set secret_key"):
        keys.signing_key(settings(tmp_path / "absent"))


def test_looking_makes_nothing(tmp_path: Path) -> None:
    keys.check_key(settings(tmp_path))
    assert list(tmp_path.iterdir()) == []


# -- what may happen meanwhile


@pytest.mark.parametrize("step", ["write", "fsync", "link", "unlink"])
def test_a_crash_half_way_leaves_all_or_nothing(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever the process dies, the next start has a key, and keeps it."""

    class Died(BaseException):
        pass

    def die(*given: object, **more: object) -> None:
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr(os, step, die)
        patched.setattr(Path, "unlink", die)  # a dead process does not tidy up
        with pytest.raises(Died):
            keys.signing_key(settings(tmp_path))
    path = tmp_path / "my.db.key"
    assert path.exists() is (step == "unlink")
    before = path.read_text() if path.exists() else None
    key = keys.signing_key(settings(tmp_path))
    assert before in {None, path.read_text()}
    assert keys.signing_key(settings(tmp_path)) == key


def test_one_who_was_faster_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else puts a key there after we looked and before we do."""
    real = os.link
    path = tmp_path / "my.db.key"

    def late(*given: Any, **more: Any) -> None:
        path.write_text(f"signing = {K}\n")
        path.chmod(0o600)
        real(*given, **more)

    monkeypatch.setattr(os, "link", late)
    assert keys.signing_key(settings(tmp_path)) == K
    assert list(tmp_path.iterdir()) == [path]


def test_many_starts_at_once_agree(tmp_path: Path) -> None:
    code = (
        "import sys; from nusku import keys; from nusku.config import Settings;"
        "sys.stdin.read(); print(keys.signing_key(Settings(store=sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path}/my.db"]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    said = {process.communicate(timeout=60)[0].splitlines()[-1] for process in started}
    assert len(said) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["my.db.key"]
