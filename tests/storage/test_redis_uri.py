"""URIs of Redis stores, and what servers have to be set up to keep."""

from pathlib import Path

import pytest

from nusku.errors import StoreRefused
from nusku.storage import CAPABILITIES, StoreOptions, inspect_store
from nusku.storage.redis.promise import Broken, Facts, promise
from nusku.storage.redis.uri import Login, parse

pytestmark = pytest.mark.only("redis")


@pytest.mark.parametrize(
    ("uri", "form", "hosts", "login", "database", "service"),
    [
        ("redis://h", "single", [("h", 6379)], ("", ""), 0, ""),
        ("redis://h:7/3", "single", [("h", 7)], ("", ""), 3, ""),
        ("redis://u:p%40%2F@h:7/0", "single", [("h", 7)], ("u", "p@/"), 0, ""),
        ("redis://:p@[::1]:7", "single", [("::1", 7)], ("", "p"), 0, ""),
        ("redis+sentinel://a,b:9/m", "sentinel", [("a", 26379), ("b", 9)], ("", ""), 0, "m"),
        ("redis+sentinel://u:p@a:1/m/2", "sentinel", [("a", 1)], ("u", "p"), 2, "m"),
        ("redis+cluster://a:1,b,[::1]:3", "cluster", [("a", 1), ("b", 6379), ("::1", 3)], ("", ""), 0, ""),
        ("redis+cluster://a:1/0", "cluster", [("a", 1)], ("", ""), 0, ""),
    ],
)  # fmt: skip
def test_a_uri_names_servers(
    uri: str,
    form: str,
    hosts: list[tuple[str, int]],
    login: tuple[str, str],
    database: int,
    service: str,
) -> None:
    target = parse(uri)
    assert target.form == form
    assert list(target.hosts) == hosts
    assert target.login == login
    assert target.database == database
    assert target.service == service
    assert target.tls is None


@pytest.mark.parametrize(
    "uri",
    [
        "redis://",
        "redis://a,b",
        "redis://u:s3cret@a:port",
        "redis://u:s3cret@a:99999",
        "redis://u:s3cret@a/one",
        "redis://u:s3cret@a/1/2",
        "redis://u:s3cret@a?timeout=3",
        "redis://u:s3cret@a?ca=/nowhere",
        "rediss://u:s3cret@a?ca=/nowhere",
        "redis+sentinel://u:s3cret@a",
        "redis+cluster://u:s3cret@a/1",
        "redis+sentinel://a/m?sentinel_password=s3cret&x=y",
    ],
)
def test_a_uri_that_makes_no_sense_is_refused_without_its_password(uri: str) -> None:
    with pytest.raises(StoreRefused) as refused:
        parse(uri)
    assert "s3cret" not in str(refused.value)


def test_nothing_that_is_printed_has_a_password() -> None:
    target = parse("redis+sentinel://u:s3cret@a/m?sentinel_password=s3cret")
    assert target.sentinel_login == Login("", "s3cret")
    assert "s3cret" not in f"{target!r} {target.login!r} {target.sentinel_login}"


def test_options_ask_for_tls(tmp_path: Path) -> None:
    assert parse("rediss://h").tls is not None
    target = parse("redis+cluster://h?tls=true&hostname=off")
    assert target.tls is not None
    assert not target.tls.check_hostname
    with pytest.raises(StoreRefused, match="certificates"):
        parse(f"rediss://h?ca={tmp_path}/no.pem")


def test_a_server_that_is_not_there_is_refused_in_a_sentence() -> None:
    with pytest.raises(StoreRefused, match=r"redis://u:\*\*\*@127.0.0.1:1: "):
        inspect_store("redis://u:s3cret@127.0.0.1:1")


GOOD = Facts((7, 0), "master", b"", False, False, True, "always", "noeviction", 0)


@pytest.mark.parametrize(
    ("found", "options", "mode"),
    [
        (GOOD, StoreOptions(), "single"),
        (GOOD, StoreOptions(unreliable=True), "single"),
        (GOOD, StoreOptions(replicas=1), "replicated"),
        (GOOD._replace(fsync="everysec"), StoreOptions(replicas=2), "replicated"),
        (GOOD._replace(fsync=""), StoreOptions(replicas=1), "replicated"),
        (GOOD._replace(fsync="everysec"), StoreOptions(unreliable=True), "unreliable"),
        (GOOD._replace(appendonly=False), StoreOptions(unreliable=True, replicas=1), "unreliable"),
        (GOOD._replace(policy="allkeys-lru"), StoreOptions(unreliable=True), "unreliable"),
    ],
)
def test_what_a_server_keeps_is_said(found: Facts, options: StoreOptions, mode: str) -> None:
    got = promise(found, options)
    assert got.mode == mode
    assert got.guarantee.lower().startswith(mode)
    assert ("DURABILITY" in got.capabilities) == (mode != "unreliable")
    assert set(CAPABILITIES) - set(got.capabilities) <= {"DURABILITY"}


def test_what_a_failover_may_lose_is_no_durability() -> None:
    got = promise(GOOD._replace(replicas=1), StoreOptions())
    assert got.mode == "single"
    assert "set `redis_replicas`" in got.guarantee
    assert "DURABILITY" not in got.capabilities


@pytest.mark.parametrize(
    ("found", "replicas", "sentence"),
    [
        (GOOD._replace(appendonly=False), 0, "set it, and `appendfsync always`"),
        (GOOD._replace(appendonly=False), 1, "set it, or `unreliable = true`"),
        (GOOD._replace(fsync="everysec"), 0, "set `appendfsync always`, or have replicas"),
        (GOOD._replace(fsync="no"), 0, "with `appendfsync no`"),
        (GOOD._replace(fsync=""), 0, "CONFIG GET is forbidden"),
        (GOOD._replace(policy="volatile-ttl"), 1, "set `maxmemory-policy noeviction`"),
        (GOOD._replace(version=(6, 0)), 1, "6.2 or newer"),
    ],
)
def test_what_a_server_does_not_keep_is_refused_and_what_to_set_is_said(
    found: Facts, replicas: int, sentence: str
) -> None:
    with pytest.raises(Broken, match=sentence.replace("(", r"\(")):
        promise(found, StoreOptions(replicas=replicas))
