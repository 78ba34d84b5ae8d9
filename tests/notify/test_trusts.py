"""Keystone trusts, against a Keystone that insists on the Identity API as it is documented."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeVar

import pytest
import structlog
import uvloop

from nusku.auth import trusts as module
from nusku.auth.trusts import Trusts
from nusku.config import Settings
from nusku.errors import TrustFailed
from tests.fake_keystone import Keystone, User, parsed
from tests.live import LiveServer
from tests.notify.live import OPEN, subscribe
from tests.notify.receivers import Farm

T = TypeVar("T")

PASSWORD = "canary-of-the-trustee-password"
LOGIN = "POST /v3/auth/tokens?nocatalog"
CREATE = "POST /v3/OS-TRUST/trusts"


class World:
    """A Keystone with the service's user, and Ann, who is a member of project p."""

    def __init__(self, keystone: Keystone) -> None:
        self.keystone = keystone
        self.service = keystone.user("nusku", PASSWORD)
        self.ann = keystone.user("ann", "x", p=["member", "reader"])
        self.bob = keystone.user("bob", "y", p=["member"])

    def settings(self, **others: Any) -> Settings:
        given: dict[str, Any] = {
            "trustee_auth_url": self.keystone.url,
            "trustee_user_name": "nusku",
            "trustee_user_password": PASSWORD,
            **others,
        }
        return Settings(**given)

    def token(self, user: User) -> str:
        return self.keystone.token_of(user, "p")

    def trust(self, trustor: User | None = None, trustee: User | None = None) -> str:
        return self.keystone.trust(trustor or self.ann, trustee or self.service, "p", ["member"])

    def do(
        self,
        action: Callable[[Trusts], Awaitable[T]],
        *,
        now: Callable[[], float] = time.time,
        **settings: Any,
    ) -> T:
        async def run() -> T:
            trusts = Trusts(self.settings(**settings), now=now)
            try:
                return await action(trusts)
            finally:
                await trusts.close()

        return uvloop.run(run())

    def failure(self, action: Callable[[Trusts], Awaitable[Any]], **settings: Any) -> str:
        """The sentence of the failure, which has to hold no secret."""
        with structlog.testing.capture_logs() as lines, pytest.raises(TrustFailed) as raised:
            self.do(action, **settings)
        error = raised.value
        assert error.__suppress_context__ or error.__context__ is None
        assert "canary" not in f"{error!r} {error} {error.detail} {lines}"
        return error.detail


@pytest.fixture
def world() -> Iterator[World]:
    with Keystone() as keystone:
        yield World(keystone)
        assert keystone.complaints == []


def create(world: World, **others: Any) -> Callable[[Trusts], Awaitable[str]]:
    given: dict[str, Any] = {
        "token": world.token(world.ann),
        "user_id": world.ann.id,
        "project_id": "p",
        "roles": ["member", "reader"],
        "expires_in_s": 600,
        **others,
    }
    return lambda trusts: trusts.create(**given)


# Make


def test_create(world: World) -> None:
    before = time.time()
    trust_id = world.do(create(world))
    trust = world.keystone.trusts[trust_id]
    assert trust["trustor_user_id"] == world.ann.id
    assert trust["trustee_user_id"] == world.service.id
    assert trust["project_id"] == "p"
    assert trust["impersonation"] is True
    assert trust["roles"] == [{"name": "member"}, {"name": "reader"}]
    assert before + 599 <= parsed(trust["expires_at"]) <= time.time() + 601
    assert world.keystone.asked == [LOGIN, CREATE]


def test_the_service_logs_in_once(world: World) -> None:
    async def three(trusts: Trusts) -> list[str]:
        return list(await asyncio.gather(*(create(world)(trusts) for _ in range(3))))

    assert len(set(world.do(three))) == 3
    assert world.keystone.count(LOGIN) == 1


def test_roles_are_given_once_and_without_blanks(world: World) -> None:
    trust_id = world.do(create(world, roles=["member", " reader ", "", "member"]))
    assert world.keystone.trusts[trust_id]["roles"] == [{"name": "member"}, {"name": "reader"}]


@pytest.mark.parametrize(
    "others",
    [
        {"token": ""},
        {"token": "a\r\nX-Auth-Token: b"},
        {"token": "tökén"},
        {"user_id": ""},
        {"project_id": ""},
        {"roles": []},
        {"roles": [" "]},
    ],
)
def test_a_trust_needs_a_user(world: World, others: Mapping[str, Any]) -> None:
    assert "needs a user" in world.failure(create(world, **others))
    assert world.keystone.asked == []


def test_a_token_of_somebody_else_makes_no_trust(world: World) -> None:
    assert "(403)" in world.failure(create(world, token=world.token(world.bob)))
    assert world.keystone.trusts == {}


def test_a_token_that_is_unknown_makes_no_trust(world: World) -> None:
    assert "(401)" in world.failure(create(world, token="canary-made-up"))


def test_a_role_that_the_user_has_not_makes_no_trust(world: World) -> None:
    assert "(404)" in world.failure(create(world, roles=["admin"]))


def test_a_trust_may_be_wanted_for_very_long(world: World) -> None:
    trust_id = world.do(create(world, expires_in_s=10**15))
    assert parsed(world.keystone.trusts[trust_id]["expires_at"]) > time.time() + 3_000_000_000


@pytest.mark.parametrize("tail", ["", "/", "/v3/"])
def test_the_version_need_not_be_named(world: World, tail: str) -> None:
    url = world.keystone.url.removesuffix("/v3") + tail
    assert world.do(create(world), trustee_auth_url=url)


# Check


def check(world: World, trust_id: str, **others: str) -> bool:
    user = others.get("user", world.ann.id)
    project = others.get("project", "p")
    return world.do(lambda trusts: trusts.check(trust_id, user, project))


def test_check(world: World) -> None:
    assert check(world, world.trust())


def test_what_was_made_can_be_checked(world: World) -> None:
    async def both(trusts: Trusts) -> bool:
        return await trusts.check(await create(world)(trusts), world.ann.id, "p")

    assert world.do(both)
    assert world.keystone.count(LOGIN) == 1


@pytest.mark.parametrize(
    "others", [{"user": "bob"}, {"user": ""}, {"project": "q"}, {"project": ""}]
)
def test_a_trust_of_another_user_or_project_is_not_taken(
    world: World, others: dict[str, str]
) -> None:
    assert not check(world, world.trust(), **others)


def test_a_trust_given_to_somebody_else_is_not_taken(world: World) -> None:
    assert not check(world, world.trust(trustee=world.bob))


def test_a_trust_that_the_service_gave_is_not_taken(world: World) -> None:
    """It can be looked at, but there is no token for it."""
    trust_id = world.trust(trustor=world.service, trustee=world.bob)
    assert not check(world, trust_id, user=world.service.id)


def test_an_unknown_trust(world: World) -> None:
    assert not check(world, "0" * 32)


def test_a_trust_without_a_project_fits_none(world: World) -> None:
    trust_id = world.trust()
    world.keystone.trusts[trust_id]["project_id"] = None
    assert not check(world, trust_id, project="None")
    assert not check(world, trust_id, project="")


BAD_IDS = ["", ".", "..", "../users", "a/b", "a%2Fb", "a?b", "a#b", "a b", "a\n", "é", "x" * 65]


@pytest.mark.parametrize("trust_id", BAD_IDS)
def test_what_is_no_id_is_not_asked_for(world: World, trust_id: str) -> None:
    assert not check(world, trust_id)
    assert "not the id" in world.failure(lambda trusts: trusts.token(trust_id))
    assert world.keystone.asked == []


def test_a_login_that_was_revoked_is_made_anew_once(world: World) -> None:
    trust_id = world.trust()

    async def run(trusts: Trusts) -> tuple[bool, bool]:
        first = await trusts.check(trust_id, world.ann.id, "p")
        world.keystone.tokens.clear()
        return first, await trusts.check(trust_id, world.ann.id, "p")

    assert world.do(run) == (True, True)
    assert world.keystone.count(LOGIN) == 2
    assert world.keystone.count(f"GET /v3/OS-TRUST/trusts/{trust_id}") == 3


def test_a_login_that_never_holds_is_not_tried_for_ever(world: World) -> None:
    world.keystone.lifetime_s = -1
    assert "(401)" in world.failure(lambda trusts: trusts.check(world.trust(), world.ann.id, "p"))
    assert world.keystone.count(LOGIN) == 2


# Tokens


def test_token(world: World) -> None:
    trust_id = world.trust()
    token = world.do(lambda trusts: trusts.token(trust_id))
    issued = world.keystone.tokens[token]
    assert (issued.user, issued.project, issued.trust) == (world.ann.id, "p", trust_id)


class Clock:
    def __init__(self) -> None:
        self.now_s = time.time()

    def __call__(self) -> float:
        return self.now_s


def test_a_token_is_kept_until_shortly_before_it_expires(world: World) -> None:
    trust_id, clock = world.trust(), Clock()

    async def run(trusts: Trusts) -> list[str]:
        tokens = [await trusts.token(trust_id)]
        for later_s in (3530, 20, 3500):
            clock.now_s += later_s
            world.keystone.lifetime_s = 7200
            tokens.append(await trusts.token(trust_id))
        return tokens

    first, kept, renewed, still = world.do(run, now=clock)
    assert first == kept != renewed == still
    assert world.keystone.count(LOGIN) == 2


def test_a_token_that_is_about_to_expire_is_used_but_not_kept(world: World) -> None:
    trust_id = world.trust()
    world.keystone.lifetime_s = 30

    async def run(trusts: Trusts) -> set[str]:
        return {await trusts.token(trust_id), await trusts.token(trust_id)}

    assert len(world.do(run)) == 2


def test_a_token_can_be_given_up(world: World) -> None:
    trust_id = world.trust()

    async def run(trusts: Trusts) -> set[str]:
        first = await trusts.token(trust_id)
        trusts.forget(trust_id)
        trusts.forget("unknown")
        return {first, await trusts.token(trust_id)}

    assert len(world.do(run)) == 2


def test_many_who_want_the_same_token_ask_once(world: World) -> None:
    trust_id = world.trust()

    async def run(trusts: Trusts) -> set[str]:
        return set(await asyncio.gather(*(trusts.token(trust_id) for _ in range(20))))

    assert len(world.do(run)) == 1
    assert world.keystone.count(LOGIN) == 1


def test_who_asked_first_may_go_away(world: World) -> None:
    trust_id = world.trust()
    world.keystone.go_on.clear()

    async def run(trusts: Trusts) -> str:
        first = asyncio.create_task(trusts.token(trust_id))
        second = asyncio.create_task(trusts.token(trust_id))
        await asyncio.to_thread(world.keystone.arrived.wait)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        world.keystone.go_on.set()
        return await second

    assert world.do(run) in world.keystone.tokens
    assert world.keystone.count(LOGIN) == 1


def test_different_trusts_have_different_tokens(world: World) -> None:
    trust_ids = [world.trust() for _ in range(3)]

    async def run(trusts: Trusts) -> list[str]:
        return [await trusts.token(trust_id) for trust_id in trust_ids * 2]

    tokens = world.do(run)
    assert len(set(tokens)) == 3
    assert tokens[:3] == tokens[3:]


def test_the_number_of_kept_tokens_is_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOKENS_MAX", 2)
    one, two, three = (world.trust() for _ in range(3))

    async def run(trusts: Trusts) -> None:
        for trust_id in (one, two, one, three, one):
            await trusts.token(trust_id)
        assert world.keystone.count(LOGIN) == 3
        await trusts.token(two)

    world.do(run)
    assert world.keystone.count(LOGIN) == 4


def test_a_trust_that_ended_gives_no_token(world: World) -> None:
    trust_id = world.trust()
    world.keystone.trusts[trust_id]["expires_at"] = "2020-01-01T00:00:00.000000Z"
    assert "(401)" in world.failure(lambda trusts: trusts.token(trust_id))


def test_a_trust_of_another_trustee_gives_no_token(world: World) -> None:
    trust_id = world.trust(trustee=world.bob)
    assert "(403)" in world.failure(lambda trusts: trusts.token(trust_id))


# When Keystone is not as it should be

Ask = Callable[[World, Trusts], Awaitable[Any]]
ASKS: dict[str, Ask] = {
    "create": lambda world, trusts: create(world)(trusts),
    "check": lambda world, trusts: trusts.check(world.trust(), world.ann.id, "p"),
    "token": lambda world, trusts: trusts.token(world.trust()),
}
asks = pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS.keys())


@asks
def test_wrong_password(world: World, ask: Ask) -> None:
    detail = world.failure(lambda trusts: ask(world, trusts), trustee_user_password="canary-wrong")
    assert "(401)" in detail


@asks
def test_without_settings(world: World, ask: Ask) -> None:
    detail = world.failure(lambda trusts: ask(world, trusts), trustee_auth_url="")
    assert "trustee_auth_url" in detail
    assert world.keystone.asked == []


@asks
@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_keystone_is_out_of_order(world: World, ask: Ask, status: int) -> None:
    world.keystone.answer = (status, {}, b"canary")
    assert f"now ({status})" in world.failure(lambda trusts: ask(world, trusts))


@asks
def test_keystone_recovers(world: World, ask: Ask) -> None:
    async def run(trusts: Trusts) -> None:
        world.keystone.answer = (503, {}, b"")
        with pytest.raises(TrustFailed):
            await ask(world, trusts)
        world.keystone.answer = None
        assert await ask(world, trusts)

    world.do(run)


@asks
def test_keystone_hangs(world: World, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.3)
    world.keystone.go_on.clear()
    assert "within 0.3 s" in world.failure(lambda trusts: ask(world, trusts))


@asks
def test_keystone_is_not_there(world: World, ask: Ask) -> None:
    with Keystone() as gone:
        url = gone.url
    assert "cannot be reached" in world.failure(
        lambda trusts: ask(world, trusts), trustee_auth_url=url
    )


@asks
def test_redirects_are_not_followed(world: World, ask: Ask) -> None:
    with Keystone() as other:
        world.keystone.answer = (307, {"Location": f"{other.url}/auth/tokens"}, b"")
        assert "redirects (307)" in world.failure(lambda trusts: ask(world, trusts))
        assert other.asked == []


TOKEN = b'{"token": {"user": {"id": "u"}, "expires_at": "2999-01-01T00:00:00.000000Z"}}'


@asks
@pytest.mark.parametrize(
    ("status", "headers", "content"),
    [
        (201, {"X-Subject-Token": "t"}, b""),
        (201, {"X-Subject-Token": "t"}, b"canary"),
        (201, {"X-Subject-Token": "t"}, b"\xff"),
        (201, {"X-Subject-Token": "t"}, b"[]"),
        (201, {"X-Subject-Token": "t"}, b'{"token": {"user": {"id": 5}}}'),
        (201, {}, TOKEN),
        (201, {"X-Subject-Token": ""}, TOKEN),
        (201, {"X-Subject-Token": "a b"}, TOKEN),
        (200, {"X-Subject-Token": "t"}, TOKEN),
        (204, {}, b""),
        (201, {"X-Subject-Token": "t"}, b" " * 2_000_000),
    ],
)
def test_answers_that_are_none(
    world: World, ask: Ask, status: int, headers: dict[str, str], content: bytes
) -> None:
    world.keystone.answer = (status, headers, content)
    assert world.failure(lambda trusts: ask(world, trusts))


def test_an_expiry_that_is_none_is_now(world: World) -> None:
    world.keystone.answer = (201, {"X-Subject-Token": "t"}, TOKEN.replace(b"2999", b"soon"))

    async def run(trusts: Trusts) -> None:
        assert await trusts.token("a") == await trusts.token("a") == "t"

    world.do(run)
    assert world.keystone.count(LOGIN) == 2


def test_an_id_that_is_none_is_not_stored(world: World) -> None:
    async def run(trusts: Trusts) -> None:
        await trusts.token(world.trust())
        await trusts.check(world.trust(), world.ann.id, "p")  # logs the service in
        world.keystone.answer = (
            201,
            {},
            b'{"trust": {"id": "../x", "trustor_user_id": "u", "trustee_user_id": "u"}}',
        )
        await create(world)(trusts)

    assert "id that cannot be used" in world.failure(run)


@pytest.mark.parametrize("url", ["keystone", "http://", "ftp://127.0.0.1/v3", "http://[::1", "://"])
def test_what_is_no_url(world: World, url: str) -> None:
    assert world.failure(create(world), trustee_auth_url=url)


def test_closing_ends_what_is_under_way(world: World) -> None:
    trust_id = world.trust()
    world.keystone.go_on.clear()

    async def run() -> str:
        trusts = Trusts(world.settings())
        asking = asyncio.create_task(trusts.token(trust_id))
        await asyncio.to_thread(world.keystone.arrived.wait)
        await trusts.close()
        with pytest.raises(TrustFailed) as raised:
            await asking
        await trusts.close()
        with pytest.raises(TrustFailed):
            await trusts.token(trust_id)
        return raised.value.detail

    assert "stopping" in uvloop.run(run())


def test_nothing_shows_a_token(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    trust_id = world.trust()

    async def run(trusts: Trusts) -> str:
        loop = asyncio.get_running_loop()
        loop.set_debug(True)
        await create(world)(trusts)
        await trusts.check(trust_id, world.ann.id, "p")
        token = await trusts.token(trust_id)
        assert token.startswith("canary")
        return f"{trusts!r} {trusts._logins!r} {trusts._pending!r}"

    with structlog.testing.capture_logs() as lines:
        shown = world.do(run)
    assert "canary" not in shown + repr(lines) + caplog.text


# The whole way


def test_a_subscriber_behind_a_trust(
    private_server: Callable[..., LiveServer], farm: Farm, world: World
) -> None:
    server = private_server(
        **OPEN,
        trustee_auth_url=world.keystone.url,
        trustee_user_name="nusku",
        trustee_user_password=PASSWORD,
    )
    ann, bob = (
        server.api("p").but(
            extra={
                "X-User-ID": user.id,
                "X-Auth-Token": world.token(user),
                "X-Roles": "member, reader" if user is world.ann else "member",
            }
        )
        for user in (world.ann, world.bob)
    )
    url = f"trust+{farm.url('/ok/trusted')}"
    one = subscribe(ann, "q", url, ttl=600)
    trust_id = one.show()["options"]["trust_id"]
    trust = world.keystone.trusts[trust_id]
    assert trust["trustor_user_id"] == world.ann.id
    assert {role["name"] for role in trust["roles"]} == {"member", "reader"}

    ann.post_bodies("q", 1, 2)
    requests = farm.wait_for(2, path="/ok/trusted")
    (token,) = {request.headers["x-auth-token"] for request in requests}
    issued = world.keystone.tokens[token]
    assert (issued.user, issued.project, issued.trust) == (world.ann.id, "p", trust_id)

    # Whoever learns the id of somebody's trust can do nothing with it.
    stolen = {"subscriber": f"{url}/stolen", "options": {"trust_id": trust_id}}
    assert bob.request("POST", bob.path("q", "subscriptions"), json=stolen).status_code == 400
    assert bob.request("PATCH", one.path(), json={"subscriber": f"{url}/2"}).status_code == 400

    world.keystone.answer = (503, {}, b"canary")
    another = {"subscriber": f"{url}/another"}
    assert ann.request("POST", ann.path("q", "subscriptions"), json=another).status_code == 503
    world.keystone.answer = None
    assert "canary" not in server.log()
    assert ann.extra["X-Auth-Token"] not in server.log()
