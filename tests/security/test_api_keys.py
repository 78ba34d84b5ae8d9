"""``auth = key``: whom a key lets in, to what, and how long."""

from __future__ import annotations

import asyncio
import math
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import structlog
from click.testing import CliRunner

from nusku.auth import Refused, api_keys
from nusku.auth.api_keys import ApiKeys, KeyRecord, NewKey
from nusku.cli import main
from nusku.config import Settings
from nusku.errors import Invalid
from nusku.storage import Registry
from nusku.storage.registry import Mirror, opened_registry
from nusku.storage.sqlite.registry import SqliteRegistry
from tests.live import Api, LiveServer, eventually, expect

EFFECTIVE_S = 2.0
SLOW_S = 2.0  # what a busy machine may take beside

UNAUTHORIZED = {
    "error": {
        "code": 401,
        "title": "Unauthorized",
        "message": "The request you have made requires authentication.",
    }
}


# -- over HTTP -------------------------------------------------------------------------------------


class Keys:
    """What operators do beside one server."""

    def __init__(self, server: LiveServer) -> None:
        self.server = server
        self._settings = Settings(
            store=server.store, redis_replicas=cast(int, server.settings.get("redis_replicas", 0))
        )

    def make(self, project: str, *roles: str, age_s: float = 0, **rest: Any) -> NewKey:
        async def run() -> NewKey:
            async with opened_registry(self._settings) as registry:
                return await api_keys.create(
                    registry, project, roles, now_s=lambda: time.time() - age_s, **rest
                )

        return asyncio.run(run())

    def revoke(self, key: str) -> str:
        async def run() -> str:
            async with opened_registry(self._settings) as registry:
                return await api_keys.revoke(registry, key)

        return asyncio.run(run())

    def api(self, key: str) -> Api:
        """Somebody with this key, who also says to be of another project."""
        return self.server.api().but(extra={"X-Auth-Token": key})


@pytest.fixture(scope="module")
def keys(shared_server: Callable[..., LiveServer]) -> Keys:
    return Keys(shared_server(auth="key"))


def status(server: LiveServer, headers: dict[str, str], path: str = "/v2/queues") -> int:
    sent = {"Client-ID": str(uuid.uuid4()), **headers}
    return server.client.get(path, headers=sent).status_code


@pytest.fixture(scope="module")
def made(keys: Keys) -> dict[str, NewKey]:
    """Keys that the server knows: each of a project of its own but for ``again``, which is ``a``'s."""
    found = {
        "a": keys.make("project-a", "member"),
        "again": keys.make("project-a"),
        "b": keys.make("project-b", user="bea", note="for b"),
        "admin": keys.make("project-admin", "member", "admin"),
        "expired": keys.make("project-a", "admin", age_s=100, ttl_s=99),
        "long": keys.make("project-a", ttl_s=1000),
    }
    last = {"X-Auth-Token": found["long"].text}
    eventually(lambda: status(keys.server, last) == 200)
    return found


@pytest.mark.parametrize(
    "spelled",
    [
        {"X-Auth-Token": "{}"},
        {"Authorization": "Bearer {}"},
        {"authorization": "bearer   {}"},
        {"X-Auth-Token": "{}", "Authorization": "Basic bm9ib2R5Om5vYm9keQ=="},
    ],
)
def test_a_key_lets_in(keys: Keys, made: dict[str, NewKey], spelled: dict[str, str]) -> None:
    headers = {name: text.format(made["a"].text) for name, text in spelled.items()}
    assert status(keys.server, headers) == 200


def test_it_lets_in_to_its_own_project_whatever_is_sent(
    keys: Keys, made: dict[str, NewKey]
) -> None:
    name = f"q-{uuid.uuid4().hex}"
    expect(keys.api(made["a"].text).create(name), 201)
    for spelled in ("X-Project-ID", "X-Tenant-ID", "X-Tenant", "x_project_id", "x-project-id"):
        for key, seen in (("again", True), ("b", False)):
            extra = {"X-Auth-Token": made[key].text, spelled: "project-a"}
            api = keys.server.api("")
            headers = {"Client-ID": api.client_id, **extra}
            listed = expect(api.request("GET", f"/v2/queues?name={name}", headers=headers), 200)
            assert bool(listed["queues"]) == seen, spelled


def test_roles_are_those_of_the_key(keys: Keys, made: dict[str, NewKey]) -> None:
    for name, expected in (("admin", 200), ("a", 403), ("b", 403)):
        headers = {
            "X-Auth-Token": made[name].text,
            "X-Roles": "admin",
            "X-Identity-Status": "Confirmed",
        }
        assert status(keys.server, headers, "/v2/pools") == expected


def wrong(key: NewKey) -> list[str]:
    text = key.text
    return [
        "",
        "nsk_",
        f"nsk_{key.id}",
        f"nsk_{key.id}_",
        key.id,
        text[:-1],
        f"{text}x",
        f"{text[:-1]}{'a' if text[-1] != 'a' else 'b'}",
        text.upper(),
        text.removeprefix("nsk_"),
        f"nsk_{'z' * 12}_{text[-40:]}",
        f"NSK_{text[4:]}",
        f"{text},{text}",
        f"Bearer {text}",
        key.record.digest,
        f"nsk_{key.id}_{key.record.digest}",
        "a.b.c",
        "x" * 10_000,
        "\xff\xfe",
    ]


def test_what_is_no_key_does_not(keys: Keys, made: dict[str, NewKey]) -> None:
    for text in wrong(made["admin"]):
        for name, value in (("X-Auth-Token", text), ("Authorization", f"Bearer {text}".strip())):
            headers = {"Client-ID": str(uuid.uuid4()), "X-Project-ID": "project-admin"}
            raw = [(k.encode(), v.encode("latin-1")) for k, v in [*headers.items(), (name, value)]]
            answer = keys.server.client.get("/v2/queues", headers=raw)
            assert answer.status_code == 401, (name, text)
            assert answer.json() == UNAUTHORIZED
            assert answer.headers["WWW-Authenticate"] == 'Bearer realm="nusku"'


def test_nobody_comes_in_without(keys: Keys, made: dict[str, NewKey]) -> None:
    identity = {"X-Project-ID": "project-a", "X-Roles": "admin", "X-User-ID": "u"}
    assert status(keys.server, identity) == 401
    assert status(keys.server, identity, "/v2/nowhere") == 401
    assert status(keys.server, {"X-Auth-Token": made["a"].text}, "/v2/nowhere") == 404
    for path in ("/livez", "/readyz", "/openapi.json"):
        assert status(keys.server, {}, path) == 200


def test_an_expired_one_does_not_let_in(keys: Keys, made: dict[str, NewKey]) -> None:
    assert status(keys.server, {"X-Auth-Token": made["expired"].text}) == 401


def test_a_revoked_one_lets_nobody_in_within_two_seconds(
    keys: Keys, made: dict[str, NewKey]
) -> None:
    key = keys.make("project-c")
    headers = {"X-Auth-Token": key.text}
    eventually(lambda: status(keys.server, headers) == 200, EFFECTIVE_S + SLOW_S)
    assert keys.revoke(key.id)
    eventually(lambda: status(keys.server, headers) == 401, EFFECTIVE_S + SLOW_S)
    assert status(keys.server, {"X-Auth-Token": made["a"].text}) == 200
    assert not keys.revoke(key.id)


def test_pre_signed_urls_take_no_key(keys: Keys, made: dict[str, NewKey]) -> None:
    api = keys.api(made["a"].text)
    name = f"q-{uuid.uuid4().hex}"
    expect(api.create(name), 201)
    shared = expect(api.request("POST", api.path(name, "share"), json={"methods": ["GET"]}), 200)
    headers = {
        "X-Project-ID": shared["project"],
        "URL-Signature": shared["signature"],
        "URL-Methods": ",".join(shared["methods"]),
        "URL-Paths": ",".join(shared["paths"]),
        "URL-Expires": shared["expires"],
    }
    assert shared["project"] == "project-a"
    assert status(keys.server, headers, api.path(name, "messages")) == 200
    assert status(keys.server, headers, api.path(name)) == 404
    # A key that came along opens nothing more.
    headers["X-Auth-Token"] = made["admin"].text
    assert status(keys.server, headers, "/v2/pools") == 404


def test_our_own_commands_come_in_with_a_key(keys: Keys, made: dict[str, NewKey]) -> None:
    name, pool = f"pool-{uuid.uuid4().hex}", f"sqlite:///{keys.server.folder}/pool.db"
    expect(
        keys.api(made["admin"].text).put(f"/v2/pools/{name}", json={"uri": pool, "weight": 1}), 201
    )
    for key, exit_code in (("a", 2), ("admin", 0)):
        done = CliRunner().invoke(
            main,
            ["pool", "drain", name, "--url", keys.server.url],
            env={"NUSKU_KEY": made[key].text},
        )
        assert done.exit_code == exit_code, done.output
        assert made[key].text not in done.output
    expect(keys.api(made["admin"].text).delete(f"/v2/pools/{name}"), 204)


def test_no_key_is_in_a_log_or_in_the_store(keys: Keys, made: dict[str, NewKey]) -> None:
    for text in wrong(made["b"])[5:]:
        status(keys.server, {"Authorization": f"Bearer {text}".encode("latin-1")})  # type: ignore[dict-item]  # as bytes, since some are no ASCII
    secrets_ = [key.text.rpartition("_")[2] for key in made.values()]
    files = [one for one in keys.server.folder.iterdir() if one.is_file()]
    assert any(one.name.endswith(".log") for one in files)
    for file in files:
        content = file.read_bytes()
        assert not [one for one in secrets_ if one.encode() in content], file


# -- the scheme itself -----------------------------------------------------------------------------


class Desk:
    """A registry in a folder, and the scheme as a node has it; time is turned."""

    def __init__(self, folder: Path) -> None:
        self.now_s = 1_000_000.0
        self.registry: Registry = SqliteRegistry(folder / "my.db")
        self.mirror = Mirror(self.registry)
        self.scheme = ApiKeys(self.mirror, lambda: self.now_s)

    async def make(self, project: str = "p", roles: Sequence[str] = (), **rest: Any) -> NewKey:
        made = await api_keys.create(
            self.registry, project, roles, now_s=lambda: self.now_s, **rest
        )
        await self.mirror.look()
        return made


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def test_a_caller_is_what_the_key_says(tmp_path: Path, runner: asyncio.Runner) -> None:
    async def run() -> None:
        desk = Desk(tmp_path)
        plain = await desk.make("p", ("a", "b", "a"))
        named = await desk.make("q", user="bea", ttl_s=60)
        caller = desk.scheme.known(plain.text)
        assert caller is not None
        assert (caller.project, caller.scheme) == ("p", "key")
        assert caller.roles == frozenset("ab")
        assert (caller.user, caller.user_name, caller.expires_s) == (plain.id, plain.id, math.inf)
        assert caller is desk.scheme.known(plain.text)
        assert await desk.scheme.caller(plain.text) is caller
        caller = desk.scheme.known(named.text)
        assert caller is not None
        assert (caller.user, caller.user_name, caller.expires_s) == ("bea", "bea", 1_000_060)

    runner.run(run())


def test_it_ends_at_its_time_to_the_moment(tmp_path: Path, runner: asyncio.Runner) -> None:
    async def run() -> None:
        desk = Desk(tmp_path)
        key = await desk.make(ttl_s=60)
        desk.now_s += 59.999
        assert desk.scheme.known(key.text) is not None
        desk.now_s = 1_000_060.0
        assert desk.scheme.known(key.text) is None
        with pytest.raises(Refused, match=f"{key.id} has expired"):
            await desk.scheme.caller(key.text)
        # Not to those who know no more than the id, which is no secret.
        with pytest.raises(Refused, match="unknown key"):
            await desk.scheme.caller(f"nsk_{key.id}_wrong")

    runner.run(run())


def test_what_is_no_key_is_left_to_others(tmp_path: Path, runner: asyncio.Runner) -> None:
    async def run() -> None:
        desk = Desk(tmp_path)
        for token in ("", "gAAAAABk", "a.b.c", "NSK_x"):
            assert await desk.scheme.caller(token) is None
        with pytest.raises(Refused):
            await desk.scheme.caller("nsk_")

    runner.run(run())


def test_a_stored_key_that_cannot_be_read_lets_nobody_in_and_does_no_harm(
    tmp_path: Path, runner: asyncio.Runner
) -> None:
    async def run() -> None:
        desk = Desk(tmp_path)
        key = await desk.make()
        record = msgspec.json.encode(key.record)
        for n, value in enumerate(
            (b"", b"{}", b"\xff", record.replace(b'"digest":"', b'"digest":"z'))
        ):
            await desk.registry.write(api_keys.TABLE, f"broken{n}", value)
        with structlog.testing.capture_logs() as logs:
            await desk.mirror.look()
        assert len(logs) == 4
        assert desk.scheme.known(key.text) is not None
        assert list(await api_keys.page(desk.registry)) == [key.id]

    runner.run(run())


def test_fields_that_a_later_version_adds_do_no_harm(
    tmp_path: Path, runner: asyncio.Runner
) -> None:
    async def run() -> None:
        desk = Desk(tmp_path)
        key = await desk.make()
        document = msgspec.json.decode(msgspec.json.encode(key.record))
        value = msgspec.json.encode({**document, "networks": ["10.0.0.0/8"]})
        await desk.registry.write(api_keys.TABLE, key.id, value)
        await desk.mirror.look()
        assert desk.scheme.known(key.text) is not None

    runner.run(run())


def test_without_any_key_it_is_said_that_nobody_comes_in(
    tmp_path: Path, runner: asyncio.Runner
) -> None:
    desk = Desk(tmp_path)
    with structlog.testing.capture_logs() as logs:
        runner.run(desk.mirror.look())
    assert "nusku key create" in logs[0]["event"]


def test_keys_cannot_be_guessed(tmp_path: Path, runner: asyncio.Runner) -> None:
    async def run() -> None:
        desk = Desk(tmp_path)
        keys = [await desk.make() for _ in range(20)]
        form = re.compile(r"nsk_[0-9a-z]{12}_[0-9A-Za-z]{40}")
        assert all(form.fullmatch(one.text) for one in keys)
        assert len({one.id for one in keys} | {one.text[17:] for one in keys}) == 40
        assert desk.registry.path.read_bytes().count(keys[0].id.encode()) > 0  # type: ignore[attr-defined]  # it is SQLite's
        assert all(one.text[17:].encode() not in desk.registry.path.read_bytes() for one in keys)  # type: ignore[attr-defined]  # as above

    runner.run(run())


@pytest.mark.parametrize(
    ("project", "rest"),
    [
        ("", {}),
        (" ", {}),
        ("p ", {}),
        ("p\n", {}),
        ("p\u0100", {}),
        ("p" * 257, {}),
        ("p", {"roles": [""]}),
        ("p", {"roles": ["a,b"]}),
        ("p", {"roles": ["a\x00"]}),
        ("p", {"user": "a\nb"}),
        ("p", {"user": "u" * 257}),
        ("p", {"note": "a\nb"}),
        ("p", {"note": "n" * 257}),
    ],
)
def test_names_that_cannot_be_are_refused(
    tmp_path: Path, runner: asyncio.Runner, project: str, rest: dict[str, Any]
) -> None:
    desk = Desk(tmp_path)
    with pytest.raises(Invalid):
        runner.run(desk.make(project, **rest))
    assert not list(tmp_path.iterdir())


def test_a_key_can_be_revoked_by_its_id_or_by_itself(
    tmp_path: Path, runner: asyncio.Runner
) -> None:
    async def run() -> None:
        desk = Desk(tmp_path)
        first, second, third = [await desk.make() for _ in range(3)]
        assert await api_keys.revoke(desk.registry, first.id) == first.id
        assert await api_keys.revoke(desk.registry, second.text) == second.id
        assert not await api_keys.revoke(desk.registry, "nsk_")
        assert not await api_keys.revoke(desk.registry, "")
        assert list(await api_keys.page(desk.registry)) == [third.id]
        await desk.mirror.look()
        assert [desk.scheme.known(one.text) is None for one in (first, second, third)] == [
            True,
            True,
            False,
        ]

    runner.run(run())


def test_a_record_shows_no_more_than_the_hash() -> None:
    assert set(KeyRecord.__struct_fields__) == {
        "digest",
        "project",
        "roles",
        "user",
        "note",
        "created_s",
        "expires_s",
    }
