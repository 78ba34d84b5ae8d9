"""Tokens of a Keystone that is slow, down, wrong or attacked: what is believed, and for how long."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import pytest
import structlog
import uvloop

from nusku.auth import cache as cache_module
from nusku.auth import check
from nusku.auth.keystone import FAILURES_MAX, THREADS, Keystone
from nusku.auth.scheme import Refused
from nusku.config import ConfigError, Settings, load
from nusku.errors import Unavailable
from nusku.model import Caller
from tests.fake_keystone import Keystone as FakeKeystone
from tests.fake_keystone import User

T = TypeVar("T")

PASSWORD = "canary-of-the-service-password"
LOGIN = "POST /v3/auth/tokens?nocatalog"
SHOW = "GET /v3/auth/tokens?nocatalog"
TIMEOUT_S = 0.3


class World:
    """A Keystone with the service's user, Ann (a member of p) and Root (an admin of p)."""

    def __init__(self, keystone: FakeKeystone) -> None:
        self.keystone = keystone
        self.service = keystone.user("nusku", PASSWORD, service=["service"])
        self.ann = keystone.user("ann", "x", p=["member", "reader"])
        self.now_s = time.time()

    def settings(self, **others: Any) -> Settings:
        given: dict[str, Any] = {
            "auth": ("keystone",),
            "keystone_url": self.keystone.url,
            "keystone_user_name": "nusku",
            "keystone_user_password": PASSWORD,
            "keystone_timeout": TIMEOUT_S,
            **others,
        }
        return Settings(**given)

    def token(self, user: User | None = None, project: str | None = "p", **scope: Any) -> str:
        token = self.keystone.token_of(user or self.ann, project)
        self.keystone.tokens[token].scope = scope
        return token

    def do(self, action: Callable[[Keystone], Awaitable[T]], **settings: Any) -> T:
        async def run() -> T:
            async with aclosing(Keystone(self.settings(**settings), lambda: self.now_s)) as scheme:
                return await action(scheme)

        return uvloop.run(run())

    def whose(self, token: str, **settings: Any) -> Caller:
        async def ask(scheme: Keystone) -> Caller:
            caller = await scheme.caller(token)
            assert caller is not None
            return caller

        return self.do(ask, **settings)

    def unavailable(self, token: str, **settings: Any) -> list[Any]:
        """The lines of the log, which have to hold no secret; nor has the answer."""
        with structlog.testing.capture_logs() as lines, pytest.raises(Unavailable) as raised:
            self.whose(token, **settings)
        assert raised.value.detail.startswith("Whether the token is valid cannot be found out.")
        assert "canary" not in f"{raised.value!r} {lines}"
        assert lines
        return [line["reason"] for line in lines]


@pytest.fixture
def world() -> Iterator[World]:
    with FakeKeystone() as keystone:
        yield World(keystone)
        assert keystone.complaints == []


# -- whose token it is


def test_whose_it_is(world: World) -> None:
    caller = world.whose(world.token())
    assert caller.scheme == "keystone"
    assert (caller.project, caller.project_name, caller.project_domain) == ("p", "p", "default")
    assert (caller.user, caller.user_name, caller.user_domain) == (world.ann.id, "ann", "default")
    assert caller.roles == {"member", "reader"}
    assert caller.expires_s == pytest.approx(world.now_s + 3600, abs=5)
    assert world.keystone.asked == [LOGIN, SHOW]


def test_a_url_without_the_version_will_do(world: World) -> None:
    assert world.whose(world.token(), keystone_url=world.keystone.url.removesuffix("/v3")).project


@pytest.mark.parametrize(
    ("scope", "shown"),
    [
        ({}, ("", "", False)),
        ({"domain": {"id": "d", "name": "D"}}, ("d", "", False)),
        ({"system": {"all": True}}, ("", "all", False)),
        ({"is_admin_project": True}, ("", "", True)),
    ],
)
def test_a_token_may_be_for_no_project(
    world: World, scope: Mapping[str, Any], shown: tuple[str, str, bool]
) -> None:
    caller = world.whose(world.token(project=None, **scope))
    assert caller.project == ""
    assert (caller.domain, caller.system, caller.is_admin_project) == shown


@pytest.mark.parametrize("token", ["", "unknown", "a b", "tökén", "a\r\nX-Auth-Token: b"])
def test_another_token_is_refused(world: World, token: str) -> None:
    with pytest.raises(Refused):
        world.whose(token)


def test_what_cannot_be_a_token_is_not_shown_to_keystone(world: World) -> None:
    with pytest.raises(Refused):
        world.whose("a\r\nX-Auth-Token: b")
    assert world.keystone.asked == []


# -- what is kept


def test_it_is_asked_once_and_known_then(world: World) -> None:
    token = world.token()

    async def several(scheme: Keystone) -> None:
        assert scheme.known(token) is None
        callers = await asyncio.gather(*(scheme.caller(token) for _ in range(20)))
        assert len(set(map(id, callers))) == 1
        assert scheme.known(token) is callers[0]
        assert scheme.known(token[:-1]) is None

    world.do(several)
    assert world.keystone.count(SHOW) == 1


def test_who_asked_first_may_go_while_others_wait(world: World) -> None:
    token = world.token()
    world.keystone.go_on.clear()

    async def run(scheme: Keystone) -> Caller | None:
        first, second = (asyncio.ensure_future(scheme.caller(token)) for _ in range(2))
        await asyncio.to_thread(world.keystone.arrived.wait)
        first.cancel()
        world.keystone.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        return await second

    caller = world.do(run, keystone_timeout=10.0)
    assert caller is not None
    assert caller.project == "p"


def test_a_revoked_token_works_for_as_long_as_it_is_kept(world: World) -> None:
    token, start_s = world.token(), world.now_s

    async def run(scheme: Keystone) -> None:
        await scheme.caller(token)
        del world.keystone.tokens[token]
        world.now_s = start_s + 59.9
        assert scheme.known(token) is not None
        world.now_s = start_s + 60
        assert scheme.known(token) is None
        with pytest.raises(Refused, match="revoked"):
            await scheme.caller(token)

    world.do(run)


def test_nothing_needs_to_be_kept(world: World) -> None:
    token = world.token()

    async def run(scheme: Keystone) -> None:
        for _ in range(3):
            assert await scheme.caller(token)
            assert scheme.known(token) is None

    world.do(run, keystone_cache=0)
    assert world.keystone.count(SHOW) == 3


def test_it_ends_at_the_very_time_that_it_names(world: World) -> None:
    world.keystone.lifetime_s = 30.0
    token = world.token()

    async def run(scheme: Keystone) -> None:
        caller = await scheme.caller(token)
        assert caller is not None
        world.now_s = caller.expires_s - 0.001
        assert scheme.known(token) is caller
        world.now_s = caller.expires_s
        assert scheme.known(token) is None
        with pytest.raises(Refused, match="expired"):  # whatever Keystone says
            await scheme.caller(token)

    world.do(run)


@pytest.mark.parametrize("skew_s", [-300.0, 300.0])
def test_clocks_may_differ(world: World, skew_s: float) -> None:
    """A token that has expired by either clock is void."""
    world.keystone.skew_s = skew_s
    assert world.whose(world.token()).project == "p"
    world.keystone.lifetime_s = 299.0
    token = world.token()
    if skew_s < 0:
        with pytest.raises(Refused, match="expired"):
            world.whose(token)
    else:
        assert world.whose(token).project == "p"


def test_a_clock_that_is_set_back_makes_it_ask_again(world: World) -> None:
    token, start_s = world.token(), world.now_s

    async def run(scheme: Keystone) -> None:
        await scheme.caller(token)
        world.now_s = start_s - 3600
        assert scheme.known(token) is None
        assert await scheme.caller(token)

    world.do(run)
    assert world.keystone.count(SHOW) == 2


def test_a_refusal_is_kept_for_some_seconds(world: World) -> None:
    async def run(scheme: Keystone) -> None:
        for _ in range(5):
            with pytest.raises(Refused):
                await scheme.caller("unknown")
        assert world.keystone.count(SHOW) == 1
        world.now_s += cache_module.REFUSED_S
        with pytest.raises(Refused):
            await scheme.caller("unknown")
        assert world.keystone.count(SHOW) == 2

    world.do(run)


def test_what_is_kept_has_a_bound(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "KEPT_MAX", 3)
    tokens = [world.token() for _ in range(5)]

    async def run(scheme: Keystone) -> list[bool]:
        for token in tokens:
            await scheme.caller(token)
        return [scheme.known(token) is not None for token in tokens]

    assert world.do(run) == [False, False, True, True, True]


def test_many_wrong_tokens_do_not_drive_out_those_that_are_right(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "KEPT_MAX", 3)
    token = world.token()

    async def run(scheme: Keystone) -> None:
        await scheme.caller(token)
        for number in range(10):
            with pytest.raises(Refused):
                await scheme.caller(f"wrong-{number}")
        assert scheme.known(token) is not None

    world.do(run)


def test_too_many_questions_are_turned_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "PENDING_MAX", 2)
    tokens = [world.token() for _ in range(3)]
    world.keystone.go_on.clear()

    async def run(scheme: Keystone) -> None:
        two = [asyncio.ensure_future(scheme.caller(token)) for token in tokens[:2]]
        await asyncio.to_thread(world.keystone.arrived.wait)
        with pytest.raises(Unavailable, match="Too many"):
            await scheme.caller(tokens[2])
        world.keystone.go_on.set()
        assert all(await asyncio.gather(*two))

    world.do(run, keystone_timeout=10.0)


def test_strangers_do_not_keep_out_those_who_were_seen_before(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "PENDING_MAX", THREADS + 1)
    token, show, go_on = world.token(), world.keystone.show_token, threading.Event()

    def show_slowly(headers: Any) -> dict[str, Any]:
        if headers["X-Subject-Token"].startswith("stranger"):
            go_on.wait()
        return show(headers)

    monkeypatch.setattr(world.keystone, "show_token", show_slowly)

    async def run(scheme: Keystone) -> None:
        await scheme.caller(token)
        strangers = [
            asyncio.ensure_future(scheme.caller(f"stranger-{number}"))
            for number in range(THREADS + 1)
        ]
        await asyncio.sleep(0)
        world.now_s += 60
        assert scheme.known(token) is None
        assert await scheme.caller(token)
        go_on.set()
        for stranger in strangers:
            with pytest.raises(Refused):
                await stranger

    world.do(run, keystone_timeout=10.0)


def test_to_wait_for_ones_turn_is_no_failure_of_keystone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = world.keystone.show_token

    def show_slowly(headers: Any) -> dict[str, Any]:
        time.sleep(0.4)
        return show(headers)

    async def run(scheme: Keystone) -> None:
        await scheme.caller(world.token())  # it is logged in
        monkeypatch.setattr(world.keystone, "show_token", show_slowly)
        tokens = [world.token() for _ in range(10 * THREADS)]
        answers = await asyncio.gather(*map(scheme.caller, tokens), return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, BaseException)]
        assert len(refused) > FAILURES_MAX
        assert all("Too many" in str(answer) for answer in refused), refused
        assert await scheme.caller(world.token())

    with structlog.testing.capture_logs() as lines:
        world.do(run, keystone_timeout=1.0)
    assert lines == []


# -- when Keystone fails


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (500, b"canary", "Keystone answers 500."),
        (503, b"", "Keystone answers 503."),
        (429, b"", "Keystone answers 429."),
        (403, b"canary", "Keystone does not let keystone_user_name look at tokens (403)."),
        (302, b"", "Keystone answers 302."),
        (200, b"canary", "not what the Identity API says"),
        (200, b'{"token": {"user": {"id": "canary"}}}', "not what the Identity API says"),
        (204, b"", "Keystone answers 204."),
    ],
)
def test_an_answer_of_no_use(world: World, status: int, body: bytes, reason: str) -> None:
    token = world.token()

    async def run(scheme: Keystone) -> None:
        await scheme.caller(world.token())  # it is logged in
        world.keystone.answer = (status, {"Location": world.keystone.url}, body)
        await scheme.caller(token)

    with structlog.testing.capture_logs() as lines, pytest.raises(Unavailable) as raised:
        world.do(run)
    assert "canary" not in f"{raised.value!r} {lines}"
    assert [line["reason"] for line in lines if reason in line["reason"]] == [
        line["reason"] for line in lines
    ]


def test_a_user_who_may_not_look_at_tokens(world: World) -> None:
    world.service.roles["service"] = ["reader"]
    (reason,) = world.unavailable(world.token())
    assert reason == "Keystone does not let keystone_user_name look at tokens (403)."


def test_a_wrong_password_of_the_service(world: World) -> None:
    (reason,) = world.unavailable(world.token(), keystone_user_password="canary-wrong")
    assert reason == "Keystone cannot be asked (Unauthorized)."


def test_a_keystone_that_is_not_there(world: World) -> None:
    (reason,) = world.unavailable(world.token(), keystone_url="http://127.0.0.1:1/v3")
    assert reason == "Keystone cannot be asked (ConnectFailure)."


def test_a_keystone_that_does_not_answer(world: World) -> None:
    token = world.token()
    world.keystone.go_on.clear()
    (reason,) = world.unavailable(token)
    world.keystone.go_on.set()
    assert "Keystone" in reason


def test_those_who_are_known_go_on_while_it_is_down(world: World) -> None:
    known, other = world.token(), world.token()

    async def run(scheme: Keystone) -> None:
        await scheme.caller(known)
        world.keystone.answer = (500, {}, b"")
        with pytest.raises(Unavailable):
            await scheme.caller(other)
        assert scheme.known(known) is not None
        world.keystone.answer = None
        assert await scheme.caller(other)  # a failure is not kept

    world.do(run)


def test_it_is_left_alone_for_a_while_when_it_fails_again_and_again(world: World) -> None:
    tokens = [world.token() for _ in range(FAILURES_MAX + 5)]

    async def run(scheme: Keystone) -> None:
        await scheme.caller(world.token())
        world.keystone.answer = (500, {}, b"")
        for token in tokens:
            with pytest.raises(Unavailable):
                await scheme.caller(token)
        assert world.keystone.count(SHOW) == 1 + FAILURES_MAX
        world.keystone.answer = None
        with pytest.raises(Unavailable):
            await scheme.caller(tokens[0])

    world.do(run)


def test_the_service_logs_in_again_when_its_token_is_void(world: World) -> None:
    async def run(scheme: Keystone) -> None:
        await scheme.caller(world.token())
        world.keystone.tokens.clear()
        assert await scheme.caller(world.token())

    world.do(run)
    assert world.keystone.count(LOGIN) == 2


def test_what_is_under_way_ends_when_the_server_does(world: World) -> None:
    token = world.token()
    world.keystone.go_on.clear()

    async def run(scheme: Keystone) -> None:
        asking = asyncio.ensure_future(scheme.caller(token))
        await asyncio.to_thread(world.keystone.arrived.wait)
        await scheme.aclose()
        with pytest.raises(Unavailable, match="stopping"):
            await asking
        world.keystone.go_on.set()

    world.do(run)


def test_a_password_of_another_program_is_not_used(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert world.whose(world.token()).project == "p"


def test_the_answer_is_what_keystone_documents(world: World) -> None:
    """Members that we do not know are passed over."""
    token = world.token(catalog=[], application_credential={"id": "x"}, audit_ids=["a", "b"])
    assert json.dumps(world.keystone.tokens[token].scope)
    assert world.whose(token).project == "p"


# -- the start


@pytest.mark.parametrize("name", ["keystone_url", "keystone_user_name", "keystone_user_password"])
def test_a_start_needs_to_know_keystone(name: str) -> None:
    known = {
        "keystone_url": "https://keystone.example.com/v3",
        "keystone_user_name": "nusku",
        "keystone_user_password": "x",
    }
    given = {key: value for key, value in known.items() if key != name}
    with pytest.raises(ConfigError) as refused:
        load(None, {}, {"auth": "keystone", "host": "0.0.0.0", **given})
    (problem,) = refused.value.problems
    assert problem.startswith(f"setting {name} is ")
    assert "not empty while keystone is in auth" in problem
    assert load(None, {}, {"auth": "key, keystone", **known}).auth == ("key", "keystone")


def test_a_start_needs_authorities_that_can_be_read(world: World, tmp_path: Path) -> None:
    for file in (tmp_path / "absent.pem", tmp_path):
        with pytest.raises(ConfigError, match=r"keystone_ca_file .* cannot be used"):
            check(world.settings(keystone_ca_file=str(file)))
    check(world.settings())


def test_a_start_says_what_to_install(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keystoneauth1", None)
    monkeypatch.delitem(sys.modules, "nusku.auth.keystone")
    with pytest.raises(ConfigError, match=r"keystone in auth needs .*: install nusku\[keystone\]"):
        check(world.settings())
