"""``auth = oidc``: which tokens are accepted, as whom, and how keys of the provider are followed."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from nusku.auth import Refused
from nusku.auth.jwks import BELIEVED_S, LOOK_AGAIN_S, REFRESH_S
from nusku.auth.oidc import Oidc
from nusku.config import ConfigError, Settings, load
from nusku.errors import Unavailable
from nusku.model import Caller
from tests.live import Api, LiveServer, expect
from tests.security.provider import AUDIENCE, Provider, Signer, forged, rsa_key


@pytest.fixture(scope="module", name="provider")
def provider_that_stays() -> Iterator[Provider]:
    """One that stays as it is."""
    with Provider(Signer("first"), Signer("rsa", "RS256")) as provider:
        yield provider


def settings_for(provider: Provider, **rest: Any) -> Settings:
    return Settings(auth=("oidc",), oidc_issuer=provider.issuer, oidc_audience=(AUDIENCE,), **rest)


class Desk:
    """The scheme as a node has it, and time to turn."""

    def __init__(self, settings: Settings) -> None:
        self.later_s = 0.0
        self.scheme = Oidc(
            settings,
            now_s=lambda: time.time() + self.later_s,
            steady_s=lambda: time.monotonic() + self.later_s,
        )

    async def accepted(self, token: str) -> Caller:
        caller = await self.scheme.caller(token)
        assert caller is not None
        assert self.scheme.known(token) is caller
        return caller

    async def refused(self, token: str) -> str:
        """Why."""
        with pytest.raises(Refused) as refused:
            await self.scheme.caller(token)
        assert self.scheme.known(token) is None
        return str(refused.value)


@asynccontextmanager
async def opened(provider: Provider, **rest: Any) -> AsyncIterator[Desk]:
    desk = Desk(settings_for(provider, **rest))
    try:
        yield desk
    finally:
        await desk.scheme.aclose()


def run(test: Callable[[Desk], Any], provider: Provider, **rest: Any) -> None:
    async def all_of_it() -> None:
        async with opened(provider, **rest) as desk:
            await test(desk)

    asyncio.run(all_of_it())


# -- whom a token names ----------------------------------------------------------------------------


def test_a_caller_is_what_the_claims_say(provider: Provider) -> None:
    async def test(desk: Desk) -> None:
        expires_s = int(time.time()) + 300
        for signer in provider.signers:
            token = provider.token(signer, exp=expires_s, preferred_username="bea")
            caller = await desk.accepted(token)
            assert (caller.project, caller.scheme) == ("p1", "oidc")
            assert (caller.user, caller.user_name, caller.expires_s) == ("user-1", "bea", expires_s)
            assert caller.roles == frozenset({"member"})

    run(test, provider)


@pytest.mark.parametrize(
    ("claims", "project", "roles"),
    [
        ({"project": "p"}, "p", {"member"}),
        ({"project": ["p"]}, "p", {"member"}),
        ({"project": ["p", "p"]}, "p", {"member"}),
        ({"project": None}, "", {"member"}),
        ({"project": 7}, "", {"member"}),
        ({"project": {}}, "", {"member"}),
        ({"roles": "a b"}, "p1", {"a", "b"}),
        ({"roles": ["a", 1, None, {}, ["b"], "c d"]}, "p1", {"a", "c d"}),
        ({"roles": ["a,b", "c\n", "", " "]}, "p1", set()),
        ({"roles": None}, "p1", set()),
        ({"roles": 7}, "p1", set()),
        ({"preferred_username": "a\nb"}, "p1", {"member"}),
    ],
)
def test_claims_may_be_lists_texts_or_nothing(
    provider: Provider, claims: dict[str, Any], project: str, roles: set[str]
) -> None:
    async def test(desk: Desk) -> None:
        caller = await desk.accepted(provider.token(**claims))
        assert caller.project == project
        assert caller.roles == frozenset(roles)
        assert caller.user_name == "user-1"

    run(test, provider)


@pytest.mark.parametrize(
    "claims",
    [
        {"project": ["p", "q"]},
        {"project": "p q"},
        {"project": ["p\n"]},
        {"project": ["p" * 257]},
        {"project": ["\u0100"]},
        {"sub": ""},
        {"sub": "a\nb"},
        {"sub": None},
        {"sub": 7},
    ],
)
def test_what_names_nobody_or_several_is_refused(
    provider: Provider, claims: dict[str, Any]
) -> None:
    async def test(desk: Desk) -> None:
        await desk.refused(provider.token(**claims))

    run(test, provider)


def test_claims_may_be_inside_others(provider: Provider) -> None:
    async def test(desk: Desk) -> None:
        claims: dict[str, Any] = {
            "realm_access": {"roles": ["a"]},
            "https://example.com/project": "p2",
            "roles": ["b"],
        }
        token = provider.token(**claims)
        caller = await desk.accepted(token)
        assert (caller.project, caller.roles) == ("p2", frozenset("a"))
        for odd in ({}, {"realm_access": "x"}, {"realm_access": {"roles": {"a": 1}}}):
            caller = await desk.accepted(provider.token(**odd))
            assert (caller.project, caller.roles) == ("", frozenset())

    run(
        test,
        provider,
        oidc_project_claim="https://example.com/project",
        oidc_roles_claim="realm_access.roles",
    )


def test_values_may_mean_something_of_ours_and_then_others_mean_nothing(
    provider: Provider,
) -> None:
    async def test(desk: Desk) -> None:
        caller = await desk.accepted(
            provider.token(groups=["/a=b", "/staff"], roles=["ops", "admin", "dev", "dev2"])
        )
        assert (caller.project, caller.roles) == ("blue", frozenset({"admin", "member"}))
        caller = await desk.accepted(provider.token(groups=["/staff"], roles=["admin"]))
        assert (caller.project, caller.roles) == ("", frozenset())
        assert "several" in await desk.refused(provider.token(groups=["/a=b", "/red"]))

    run(
        test,
        provider,
        oidc_project_claim="groups",
        oidc_projects=("/a=b=blue", "/red=red"),
        oidc_roles=("ops=admin", "dev=member", "dev2=member"),
    )


# -- which tokens are accepted ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "others"},
        {"aud": ["others", "more"]},
        {"aud": None},
        {"aud": 7},
        {"exp": None},
        {"exp": 0},
        {"exp": -1},
        {"exp": "soon"},
        {"exp": [9_999_999_999]},
        {"nbf": 9_999_999_999},
        {"nbf": "soon"},
        {"iat": 9_999_999_999},
    ],
)
def test_claims_that_do_not_hold_are_refused(provider: Provider, claims: dict[str, Any]) -> None:
    async def test(desk: Desk) -> None:
        await desk.refused(provider.token(**claims))

    run(test, provider)


def test_it_may_be_meant_for_others_too(provider: Provider) -> None:
    async def test(desk: Desk) -> None:
        await desk.accepted(provider.token(aud=["others", AUDIENCE]))

    run(test, provider)


def test_a_token_ends_when_it_says_and_not_later(provider: Provider) -> None:
    async def test(desk: Desk) -> None:
        now_s = int(time.time())
        token = provider.token(exp=now_s + 20)
        await desk.accepted(token)
        desk.later_s = now_s + 20 - time.time() - 0.5
        assert desk.scheme.known(token) is not None
        desk.later_s += 0.5
        assert desk.scheme.known(token) is None
        assert await desk.refused(token) == "expired"
        # The clocks of others may be a little off, but that does not make a token longer.
        await desk.refused(provider.token(exp=now_s - 1))
        desk.later_s = 0.0
        await desk.accepted(provider.token(nbf=now_s + 5, iat=now_s + 5))

    run(test, provider)


def test_other_services_tokens_are_left_to_others(provider: Provider) -> None:
    async def test(desk: Desk) -> None:
        signer = provider.signers[0]
        for token in (
            "",
            "nsk_abc",
            "gAAAAABk",
            "a.b",
            "a.b.c",
            "a.b.c.d",
            "...",
            "..",
            "é.é.é",
            signer.sign({"sub": "x"}),
            signer.sign(provider.claims(iss=f"{provider.issuer}/")),
            signer.sign(provider.claims(iss=provider.issuer.upper())),
            forged({"alg": "ES256"}, {"iss": [provider.issuer]}),
        ):
            assert await desk.scheme.caller(token) is None

    run(test, provider)


def test_signatures_that_are_not_the_providers_are_refused(provider: Provider) -> None:
    async def test(desk: Desk) -> None:
        claims, other = provider.claims(), Signer("first")
        good = provider.token()
        head, body, signature = good.split(".")
        flipped = ("B" if signature[5] != "B" else "C").join((signature[:5], signature[6:]))
        changed = forged({}, provider.claims(roles=["admin"])).split(".")[1]
        for token in (
            other.sign(claims),
            f"{head}.{body}.{flipped}",
            f"{head}.{body}.",
            f"{head}.{changed}.{signature}",
            Signer("unknown").sign(claims),
            provider.signers[0].sign(claims, kid="rsa"),
            forged({"alg": "none"}, claims, b""),
            forged({"alg": "None", "kid": "first"}, claims, b""),
            forged({"alg": "HS256", "kid": "first"}, claims),
            forged({"alg": "ES256", "kid": 7}, claims),
            forged({"alg": ["ES256"], "kid": "first"}, claims),
            forged({"kid": "first"}, claims),
            forged([], claims),  # type: ignore[arg-type]  # on purpose
            f"!!!.{body}.{signature}",
            f".{body}.{signature}",
            f"{base64.urlsafe_b64encode(b'[' * 6000).decode()}.{body}.{signature}",
        ):
            await desk.refused(token)
        await desk.accepted(good)

    run(test, provider)


def test_a_public_key_is_no_secret_to_sign_with(provider: Provider) -> None:
    """What the provider tells everybody, taken for a shared secret."""

    async def test(desk: Desk) -> None:
        public = provider.signers[1].key.public_key()
        for secret in (
            public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            json.dumps(provider.signers[1].jwk).encode(),
        ):
            token = forged({"alg": "HS256", "kid": "rsa"}, provider.claims())
            signed = token.rpartition(".")[0]
            mac = hmac.digest(secret, signed.encode(), hashlib.sha256)
            mac_text = base64.urlsafe_b64encode(mac).rstrip(b"=").decode()
            await desk.refused(f"{signed}.{mac_text}")

    run(test, provider)


def test_a_key_that_comes_with_the_token_is_not_looked_at(provider: Provider) -> None:
    async def test(desk: Desk) -> None:
        own = Signer("mine")
        before = len(provider.asked)
        for head in ({"jwk": own.jwk}, {"jku": f"{provider.issuer}/theirs"}, {"x5u": "http://x"}):
            await desk.refused(own.sign(provider.claims(), **head))
        await desk.refused(provider.signers[0].sign(provider.claims(), crit=["exp"]))
        assert not {path for path in provider.asked[before:] if "theirs" in path}

    run(test, provider)


def test_only_algorithms_that_are_set_are_taken(provider: Provider) -> None:
    async def test(desk: Desk) -> None:
        await desk.refused(provider.token(provider.signers[0]))
        claims = provider.claims()
        await desk.refused(provider.signers[1].sign(claims, alg="RS512"))
        await desk.refused(provider.signers[1].sign(claims, alg="PS256"))
        await desk.accepted(provider.token(provider.signers[1]))

    run(test, provider, oidc_algorithms=("RS256",))


@pytest.mark.parametrize(
    "algorithm", ["RS384", "RS512", "PS256", "PS384", "PS512", "ES384", "ES512", "EdDSA"]
)
def test_every_algorithm_that_can_be_set_works(algorithm: str) -> None:
    async def test(desk: Desk) -> None:
        await desk.accepted(provider.token())

    with Provider(Signer("k", algorithm)) as provider:
        run(test, provider, oidc_algorithms=(algorithm,))


@pytest.mark.parametrize(
    "change",
    [
        {"use": "enc"},
        {"key_ops": ["sign"]},
        {"key_ops": 7},
        {"crv": ["P-256"]},
        {"kty": None},
        {"alg": "RS256"},
        {"alg": 7},
        {"kty": "oct", "k": "c2VjcmV0"},
        {"crv": "P-384"},
        {"x": "AAAA"},
        {"x": 7},
        {"kid": 7},
    ],
)
def test_keys_for_something_else_are_not_used(change: dict[str, Any]) -> None:
    async def test(desk: Desk) -> None:
        await desk.refused(provider.token())

    with Provider() as provider:
        provider.signers[0].jwk |= change
        run(test, provider)


def test_short_rsa_keys_are_not_used() -> None:
    async def test(desk: Desk) -> None:
        await desk.refused(token)

    with Provider(Signer("short", "RS256", rsa_key(1024))) as provider:
        with pytest.warns(match="minimum recommended size"):
            token = provider.token()
        run(test, provider)


def test_without_a_key_id_all_that_fit_are_tried() -> None:
    async def test(desk: Desk) -> None:
        for signer in provider.signers:
            await desk.accepted(Signer(None, "ES256", signer.key).sign(provider.claims()))
        await desk.refused(Signer(None).sign(provider.claims()))

    with Provider(Signer("a"), Signer("b"), Signer(None)) as provider:
        run(test, provider)


# -- how the provider's keys are followed ----------------------------------------------------------


def test_a_new_key_is_found_when_a_token_comes_with_it() -> None:
    async def test(desk: Desk) -> None:
        await desk.accepted(provider.token())
        second = Signer("second")
        provider.signers.append(second)
        desk.later_s += LOOK_AGAIN_S
        await desk.accepted(provider.token(second))

    with Provider() as provider:
        run(test, provider)


def test_strangers_cannot_make_it_ask_all_the_time() -> None:
    async def test(desk: Desk) -> None:
        await desk.accepted(provider.token())
        asked = len(provider.asked)
        for n in range(20):
            await desk.refused(Signer(f"made up {n}").sign(provider.claims()))
        assert len(provider.asked) == asked
        desk.later_s += LOOK_AGAIN_S
        for n in range(20):
            await desk.refused(Signer(f"made up {n}").sign(provider.claims(jti=str(n))))
        assert len(provider.asked) == asked + 2

    with Provider() as provider:
        run(test, provider)


def test_those_who_come_at_the_same_time_ask_once() -> None:
    async def test(desk: Desk) -> None:
        tokens = [provider.token(jti=str(n)) for n in range(10)]
        await asyncio.gather(*map(desk.scheme.caller, tokens))
        assert len(provider.asked) == 2

    with Provider() as provider:
        run(test, provider)


def test_a_key_that_was_withdrawn_is_not_believed_for_long() -> None:
    async def test(desk: Desk) -> None:
        first, second = provider.signers
        token = provider.token(first)
        await desk.accepted(token)
        provider.signers.remove(first)
        desk.later_s += REFRESH_S
        # Asked for beside this request, which does not wait for it.
        asked = len(provider.asked)
        await desk.accepted(provider.token(second))
        await asyncio.to_thread(provider.wait_until_asked, asked + 2)
        await desk.scheme._keys._fetch()
        assert desk.scheme.known(token) is None
        await desk.refused(token)
        await desk.accepted(provider.token(second, jti="2"))

    with Provider(Signer("first"), Signer("second")) as provider:
        run(test, provider)


def test_while_the_provider_is_away_its_keys_are_believed_for_a_day() -> None:
    async def test(desk: Desk) -> None:
        await desk.accepted(provider.token())
        provider.status = 503
        desk.later_s += REFRESH_S
        await desk.accepted(provider.token(exp=int(time.time() + 10 * BELIEVED_S), jti="2"))
        await desk.scheme._keys._fetch()
        await desk.accepted(provider.token(exp=int(time.time() + 10 * BELIEVED_S), jti="3"))
        desk.later_s += BELIEVED_S
        with pytest.raises(Unavailable):
            await desk.scheme.caller(provider.token(exp=int(time.time() + 10 * BELIEVED_S)))
        provider.status = 200
        desk.later_s += LOOK_AGAIN_S
        await desk.accepted(provider.token(exp=int(time.time() + 10 * BELIEVED_S)))

    with Provider() as provider:
        run(test, provider)


@pytest.mark.parametrize(
    "broken",
    [
        {"status": 500},
        {"status": 404},
        {"status": 302},
        {"certs": b"no json"},
        {"certs": b"[" * 100_000},
        {"certs": {"keys": 7}},
        {"certs": []},
        {"certs": b'{"keys": []}' + b" " * 1_100_000},
        {"configuration": {"issuer": "http://127.0.0.1/other", "jwks_uri": "http://127.0.0.1/"}},
        {"configuration": {"jwks_uri": "http://127.0.0.1/"}},
        {"configuration": {"issuer": "ISSUER", "jwks_uri": "no url"}},
        {"configuration": {"issuer": "ISSUER", "jwks_uri": "file:///etc/passwd"}},
        {"configuration": {"issuer": "ISSUER", "jwks_uri": 7}},
    ],
)
def test_a_provider_that_gives_no_keys_makes_it_unavailable(broken: dict[str, Any]) -> None:
    async def test(desk: Desk) -> None:
        token = provider.token()
        with structlog.testing.capture_logs() as logs, pytest.raises(Unavailable):
            await desk.scheme.caller(token)
        assert [one["event"] for one in logs] == ["the provider's keys cannot be fetched"]
        # And is left alone for a moment.
        asked = len(provider.asked)
        with pytest.raises(Unavailable):
            await desk.scheme.caller(token)
        assert len(provider.asked) == asked

    with Provider() as provider:
        for name, value in broken.items():
            if name == "configuration" and value.get("issuer") == "ISSUER":
                value["issuer"] = provider.issuer
            setattr(provider, name, value)
        run(test, provider)


def test_a_provider_that_hangs_makes_it_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(desk: Desk) -> None:
        with pytest.raises(Unavailable):
            await desk.scheme.caller(provider.token())

    monkeypatch.setattr("nusku.auth.jwks.TIMEOUT_S", 0.2)
    with Provider() as provider:
        provider.answering.clear()
        run(test, provider)


def test_whoever_stops_waiting_for_a_provider_takes_nothing_from_others() -> None:
    async def test(desk: Desk) -> None:
        provider.answering.clear()
        first = asyncio.create_task(desk.scheme.caller(provider.token(jti="1")))
        second = asyncio.create_task(desk.scheme.caller(provider.token(jti="2")))
        await asyncio.to_thread(provider.wait_until_asked, 1)
        first.cancel()
        await asyncio.wait([first])
        provider.answering.set()
        assert await second

    with Provider() as provider:
        run(test, provider)


def test_the_address_of_the_keys_can_be_set() -> None:
    async def test(desk: Desk) -> None:
        await desk.accepted(provider.token())
        assert provider.asked == ["/realms/main/certs"]

    with Provider() as provider:
        run(test, provider, oidc_jwks_url=f"{provider.issuer}/certs")


# -- whatever a stranger sends ---------------------------------------------------------------------


def _encoded(document: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()


_part = st.one_of(
    st.binary(max_size=60).map(lambda raw: base64.urlsafe_b64encode(raw).rstrip(b"=").decode()),
    st.text(max_size=30),
)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["alg", "kid", "crit", "iss", "typ", "b64", "exp", "aud"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@examples(max_examples=200, suppress_health_check=list(HealthCheck), deadline=None)
@given(parts=st.tuples(*[st.none() | _part | _json.map(_encoded)] * 3))
def test_any_text_is_refused_or_left_to_others(
    provider: Provider, desk: tuple[asyncio.Runner, Desk], parts: tuple[str | None, ...]
) -> None:
    runner, node = desk
    good = provider.token().split(".")
    token = ".".join(good[n] if part is None else part for n, part in enumerate(parts))
    if parts == (None, None, None):
        assert runner.run(node.scheme.caller(token)) is not None
        return
    try:
        assert runner.run(node.scheme.caller(token)) is None
    except Refused:
        assert node.scheme.known(token) is None


@pytest.fixture
def desk(provider: Provider) -> Iterator[tuple[asyncio.Runner, Desk]]:
    """A node that lives through many examples."""
    with asyncio.Runner() as runner:
        desk = Desk(settings_for(provider))
        yield runner, desk
        runner.run(desk.scheme.aclose())


# -- settings --------------------------------------------------------------------------------------

USUAL = {
    "NUSKU_AUTH": "oidc",
    "NUSKU_OIDC_ISSUER": "https://login.example.com/",
    "NUSKU_OIDC_AUDIENCE": AUDIENCE,
}


def test_settings_that_are_needed() -> None:
    assert load(None, USUAL, {}).oidc_algorithms == ("RS256", "ES256")
    for name in ("NUSKU_OIDC_ISSUER", "NUSKU_OIDC_AUDIENCE"):
        with pytest.raises(ConfigError) as error:
            load(None, {k: v for k, v in USUAL.items() if k != name}, {})
        assert "while oidc is in auth" in error.value.problems[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("issuer", "http://login.example.com"),
        ("issuer", "http://10.0.0.1/"),
        ("issuer", "login.example.com"),
        ("issuer", "https://login.example.com/?a=b"),
        ("jwks_url", "http://login.example.com/certs"),
        ("algorithms", "none"),
        ("algorithms", "HS256"),
        ("algorithms", "RS256,hs256"),
        ("algorithms", " "),
        ("roles", "ops"),
        ("roles", "=admin"),
        ("roles", "ops="),
        ("projects", "blue"),
    ],
)
def test_settings_that_are_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(None, {**USUAL, f"NUSKU_OIDC_{name.upper()}": value}, {})
    assert f"setting oidc_{name} is " in error.value.problems[0]


def test_a_file_of_authorities_that_is_none_is_told() -> None:
    with pytest.raises(ConfigError, match="oidc_ca_file"):
        Oidc(Settings(oidc_issuer="https://x", oidc_ca_file="/nowhere.pem"))


# -- over HTTP -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(shared_server: Callable[..., LiveServer], provider: Provider) -> LiveServer:
    return shared_server(auth=("oidc", "key"), oidc_issuer=provider.issuer, oidc_audience=AUDIENCE)


def with_token(server: LiveServer, token: str) -> Api:
    return server.api().but(extra={"Authorization": f"Bearer {token}"})


def test_a_token_lets_in_over_http(server: LiveServer, provider: Provider) -> None:
    name = f"q-{uuid.uuid4().hex}"
    expect(with_token(server, provider.token(project="p1")).create(name), 201)
    for project, seen in (("p1", [name]), ("p2", [])):
        api = with_token(server, provider.token(project=project))
        assert api.names(f"?name={name}") == seen
    member, admin = (
        with_token(server, provider.token(roles=[role])) for role in ("member", "admin")
    )
    expect(member.get("/v2/pools"), 403)
    expect(admin.get("/v2/pools"), 200)
    expect(with_token(server, provider.token(project=None)).list_queues(), 400)


def test_others_are_kept_out(server: LiveServer, provider: Provider) -> None:
    for token in (
        Signer("first").sign(provider.claims()),
        provider.token(aud="others"),
        provider.token(exp=int(time.time()) - 60),
        provider.token(iss="https://elsewhere.example.com"),
        forged({"alg": "none"}, provider.claims(), b""),
        "a.b.c",
        "nsk_aaaaaaaaaaaa_b",
    ):
        answer = with_token(server, token).list_queues()
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="nusku"'
        assert answer.json()["error"]["title"] == "Unauthorized"
        assert token not in answer.text + server.log()


def test_while_the_provider_is_away_the_answer_is_503(
    private_server: Callable[..., LiveServer],
) -> None:
    with Provider() as provider:
        provider.status = 500
        server = private_server(auth="oidc", oidc_issuer=provider.issuer, oidc_audience=AUDIENCE)
        api = with_token(server, provider.token())
        answer = api.list_queues()
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]
        expect(with_token(server, "a.b.c").list_queues(), 401)
