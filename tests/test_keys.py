"""Keys: those that nobody configured are made once, kept, and nobody else's; and they can change."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from nusku import keys
from nusku.config import Settings
from nusku.errors import StoreRefused
from nusku.keyring import key_id


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
    assert re.fullmatch(f"signing = {key}\nencryption = [0-9a-f]{{64}}\n", file.read_text())
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
    keys.check_keys(Settings(store=store))


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
    for asked in (keys.signing_key, keys.check_keys):
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
        f"encryption = {K}\n",
        f"encryption = {K}\nsigning = {K}\n",
        f"signing = {K}\nencryption = {K}",
        f"signing = {K}\nencryption = {K[:-1]}\n",
        f"signing = {K}\n\nencryption = {K}\n",
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
    for asked in (keys.signing_key, keys.check_keys):
        with pytest.raises(
            StoreRefused, match=r"my\.db\.key .*restore it from a backup"
        ) as refused:
            asked(settings(tmp_path))
        # What may have a key in it is not to be thrown away.
        assert ("remove it" in str(refused.value)) is (
            "signing" not in content and "encryption" not in content
        )
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
    keys.check_keys(settings(tmp_path))
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


# -- those that encrypt


def lines(folder: Path) -> list[str]:
    return (folder / "my.db.key").read_text().splitlines()


def test_there_is_one_that_encrypts(tmp_path: Path) -> None:
    first = keys.ring(settings(tmp_path))
    assert not first.refusal
    assert keys.ring(settings(tmp_path)).ids == first.ids == keys.known(settings(tmp_path))
    key = lines(tmp_path)[1].removeprefix("encryption = ")
    assert first.ids == (key_id(key),)
    assert keys.signing_key(settings(tmp_path)) != key


def test_a_file_of_before_gets_one(tmp_path: Path) -> None:
    file = tmp_path / "my.db.key"
    file.write_text(f"signing = {K}\n")
    file.chmod(0o600)
    assert keys.known(settings(tmp_path)) == ()
    assert len(keys.ring(settings(tmp_path)).ids) == 1
    assert len(lines(tmp_path)) == 2
    assert keys.signing_key(settings(tmp_path)) == K
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_those_that_are_set_make_no_file(tmp_path: Path) -> None:
    given = ("a" * 32, "b" * 64)
    told = Settings(store=f"sqlite:///{tmp_path}/my.db", encryption_keys=given)
    assert keys.ring(told).ids == tuple(map(key_id, given)) == keys.known(told)
    assert list(tmp_path.iterdir()) == []


def test_a_shared_store_has_those_that_are_set_or_in_a_file(tmp_path: Path) -> None:
    shared = Settings(store="redis://127.0.0.1/0")
    assert "set encryption_keys or key_file" in keys.ring(shared).refusal
    file = tmp_path / "keys"
    named = Settings(store="redis://127.0.0.1/0", key_file=str(file))
    for asked in (keys.ring, keys.signing_key, keys.check_keys):
        with pytest.raises(StoreRefused, match=r"keys is not there; .* `nusku encryption rotate`"):
            asked(named)
    assert list(tmp_path.iterdir()) == []
    id_ = keys.rotate(file)
    assert keys.ring(named).ids == (id_,)
    assert len(keys.signing_key(named)) == 64
    keys.check_keys(named)


def test_two_of_one_id_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nusku.keys.key_id", lambda key: "00000000")
    file = tmp_path / "my.db.key"
    file.write_text(f"signing = {K}\nencryption = {K}\nencryption = {K[::-1]}\n")
    file.chmod(0o600)
    with pytest.raises(StoreRefused, match="has a key twice"):
        keys.ring(settings(tmp_path))
    monkeypatch.setattr("nusku.keyring.key_id", lambda key: "00000000")
    with pytest.raises(StoreRefused, match="have one id"):
        keys.ring(Settings(encryption_keys=("a" * 32, "b" * 32)))


def test_another_one_goes_first_and_the_others_stay(tmp_path: Path) -> None:
    ring = keys.ring(settings(tmp_path))
    signing, old = lines(tmp_path)
    id_ = keys.rotate(tmp_path / "my.db.key")
    first, new, last = lines(tmp_path)
    assert (first, last) == (signing, old)
    assert key_id(new.removeprefix("encryption = ")) == id_
    assert stat.S_IMODE((tmp_path / "my.db.key").stat().st_mode) == 0o600
    assert len(list(tmp_path.iterdir())) == 1
    with structlog.testing.capture_logs() as logs:
        before = ring.ids
        ring.refresh()
        assert ring.ids == (id_, *before)
        ring.refresh()
    assert [entry["event"] for entry in logs] == ["the keys that encrypt were changed"]
    assert new[-64:] not in json.dumps(logs)


def test_a_file_that_cannot_be_used_leaves_the_keys_as_they_were(tmp_path: Path) -> None:
    ring = keys.ring(settings(tmp_path))
    before, file = ring.ids, tmp_path / "my.db.key"
    content = file.read_text()
    for bad, why in [
        ("nonsense", "holds no key"),
        (f"signing = {K}\n", "has none that encrypts"),
        (None, "has none that encrypts"),
    ]:
        with structlog.testing.capture_logs() as logs:
            if bad is None:
                file.unlink()
            else:
                file.write_text(bad)
            for _ in range(2):
                ring.refresh()
        [entry] = logs
        assert entry["event"] == "the keys stay as they were"
        assert why in entry["reason"]
        assert ring.ids == before
    file.write_text(content)
    file.chmod(0o600)
    ring.refresh()
    assert ring.ids == before


def test_a_file_that_could_not_be_read_for_a_while_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = keys.ring(settings(tmp_path))
    before, file = ring.ids, tmp_path / "my.db.key"
    id_ = keys.rotate(file)
    file.chmod(0o644)
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            ring.refresh()
    assert [entry["event"] for entry in logs] == ["the keys stay as they were"]
    assert ring.ids == before
    file.chmod(0o600)
    ring.refresh()
    assert ring.ids == (id_, *before)
    newest = keys.rotate(file)

    def fail(*given: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", fail)
        ring.refresh()
    ring.refresh()
    assert ring.ids == (newest, id_, *before)


def test_a_change_during_the_start_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "my.db.key"
    old = keys.rotate(file)
    made: list[str] = []  # the id of the other one
    real = os.open

    def meanwhile(*given: Any, **more: Any) -> int:
        descriptor = real(*given, **more)
        if not made:
            made.append("")
            made[0] = keys.rotate(file)  # when the old file is open, and about to be read
        return descriptor

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", meanwhile)
        ring = keys.ring(settings(tmp_path))
    assert list(ring.ids) == [old]
    ring.refresh()
    assert list(ring.ids) == [made[0], old]


@pytest.mark.parametrize("store", ["redis://127.0.0.1/0", "sqlite:///my.db"])
def test_none_is_made_in_a_file_that_is_set(store: str, tmp_path: Path) -> None:
    """Each node would have another one; and the file may be mounted read-only."""
    file = tmp_path / "keys"
    file.write_text(f"signing = {K}\n")
    file.chmod(0o400)
    named = Settings(store=store, key_file=str(file))
    ring = keys.ring(named)
    assert "run `nusku encryption rotate`" in ring.refusal
    assert file.read_text() == f"signing = {K}\n"
    assert keys.signing_key(named) == K
    id_ = keys.rotate(file)
    ring.refresh()
    assert (ring.refusal, ring.ids) == ("", (id_,))


def test_a_file_of_before_gets_one_only(tmp_path: Path) -> None:
    file = tmp_path / "my.db.key"
    file.write_text(f"signing = {K}\n")
    file.chmod(0o600)
    with ThreadPoolExecutor(8) as pool:
        rings = list(pool.map(lambda _: keys.ring(settings(tmp_path)), range(8)))
    assert len({ring.ids for ring in rings}) == 1
    assert len(lines(tmp_path)) == 2


def test_a_link_that_leads_to_another_file_is_followed(tmp_path: Path) -> None:
    """Files are mounted so, and changed by changing the link."""
    ids = [keys.rotate(tmp_path / name) for name in ("one", "other")]
    link = tmp_path / "keys"
    link.symlink_to("one")
    ring = keys.ring(Settings(store="redis://127.0.0.1/0", key_file=str(link)))
    assert list(ring.ids) == ids[:1]
    link.unlink()
    link.symlink_to("other")
    (tmp_path / "one").unlink()
    ring.refresh()
    assert list(ring.ids) == ids[1:]


def test_no_more_are_made_than_the_file_can_hold(tmp_path: Path) -> None:
    file = tmp_path / "my.db.key"
    made = [keys.rotate(file) for _ in range(keys.KEPT_MAX)]
    content = file.read_text()
    with pytest.raises(StoreRefused, match="retire some first"):
        keys.rotate(file)
    assert file.read_text() == content
    assert keys.known(settings(tmp_path)) == tuple(reversed(made))
    file.write_text(content + f"encryption = {K}\n")  # by hand
    with pytest.raises(StoreRefused, match="up to 40 lines") as refused:
        keys.ring(settings(tmp_path))
    assert "remove" not in str(refused.value)
    file.write_text(content)
    assert keys.retire(file, made[0])
    keys.rotate(file)


def test_one_that_is_not_in_use_can_be_removed(tmp_path: Path) -> None:
    file = tmp_path / "my.db.key"
    oldest = keys.rotate(file)
    middle = keys.rotate(file)
    newest = keys.rotate(file)
    assert not keys.retire(file, newest)
    assert not keys.retire(file, "12345678")
    assert keys.retire(file, middle)
    assert keys.known(settings(tmp_path)) == (newest, oldest)


def test_a_crash_while_they_are_changed_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(BaseException):
        pass

    def die(*given: object, **more: object) -> None:
        raise Died

    file = tmp_path / "my.db.key"
    keys.rotate(file)
    before = file.read_text()
    for place, step in ((os, "write"), (os, "fsync"), (Path, "replace")):
        with monkeypatch.context() as patched:
            patched.setattr(place, step, die)
            patched.setattr(Path, "unlink", die)
            with pytest.raises(Died):
                keys.rotate(file)
        assert file.read_text() == before
    keys.rotate(file)
    assert file.read_text().endswith(before.partition("\n")[2])


def test_many_changes_at_once_are_all_made(tmp_path: Path) -> None:
    file = tmp_path / "my.db.key"
    keys.rotate(file)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: keys.rotate(file), range(16)))
    assert set(made) < set(keys.known(settings(tmp_path)))
    assert len(keys.known(settings(tmp_path))) == 17
    assert list(tmp_path.iterdir()) == [file]
