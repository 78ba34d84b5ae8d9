"""The layer that decides who asks, over HTTP: nothing goes round it but a signature that is right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import httpx
import pytest

from nusku import signing
from tests.fake_keystone import Keystone, User
from tests.live import SHARED_KEY, LiveServer, SettingValue, expect, ids_of, raw_exchange

BODY = {
    "error": {
        "code": 401,
        "title": "Unauthorized",
        "message": "The request you have made requires authentication.",
    }
}
CLIENT = "3381af92-2b9e-11e3-b191-71861300734c"


class World:
    """A server and its Keystone, where Ann is a member of `p`, Bob of `q`, and Root an admin."""

    def __init__(self, keystone: Keystone, server: LiveServer) -> None:
        self.keystone, self.server = keystone, server
        self.ann = keystone.user("ann", "x", p=["member"])
        self.bob = keystone.user("bob", "x", q=["member"])
        self.root = keystone.user("root", "x", p=["admin"])

    def token(self, user: User | None = None, project: str | None = None) -> str:
        user = user or self.ann
        return self.keystone.token_of(user, project or next(iter(user.roles)))

    def request(
        self, method: str, path: str, headers: Mapping[str, str | None], **more: object
    ) -> httpx.Response:
        sent = {"Client-ID": CLIENT, **headers}
        shown = {name: value for name, value in sent.items() if value is not None}
        return self.server.client.request(method, path, headers=shown, **more)  # type: ignore[arg-type] # httpx's

    def get(self, path: str, **headers: str | None) -> httpx.Response:
        return self.request("GET", path, {k.replace("_", "-"): v for k, v in headers.items()})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with Keystone() as keystone:
        keystone.user("nusku", "secret", service=["service"])
        settings: dict[str, SettingValue] = {
            "auth": "keystone",
            "keystone_url": keystone.url,
            "keystone_public_url": "https://keystone.example.com:5000",
            "keystone_user_name": "nusku",
            "keystone_user_password": "secret",
            "keystone_timeout": 1,
            "secret_key": SHARED_KEY,
        }
        with LiveServer(tmp_path_factory.mktemp("keystone"), **settings) as server:
            yield World(keystone, server)
        assert keystone.complaints == []


@pytest.fixture(autouse=True)
def keystone_answers(world: World) -> Iterator[None]:
    yield
    world.keystone.answer = None


def unauthorized(answer: httpx.Response) -> None:
    assert expect(answer, 401) == BODY
    assert answer.headers["WWW-Authenticate"] == 'Keystone uri="https://keystone.example.com:5000"'
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Openstack-Request-Id"].startswith("req-")


def test_a_token_says_who_asks(world: World) -> None:
    token = world.token()
    answer = world.request("PUT", "/v2/queues/mine", {"X-Auth-Token": token})
    expect(answer, 201)
    assert expect(world.get("/v2/queues", X_Auth_Token=token), 200)["queues"]


def test_a_token_may_come_as_a_bearer(world: World) -> None:
    for kind in ("Bearer", "bearer", "BEARER"):
        expect(world.get("/v2/ping", Authorization=f"{kind} {world.token()}"), 204)


def test_of_two_credentials_the_token_counts(world: World) -> None:
    unauthorized(
        world.get("/v2/ping", X_Auth_Token="wrong", Authorization=f"Bearer {world.token()}")
    )
    expect(world.get("/v2/ping", X_Auth_Token=world.token(), Authorization="Bearer wrong"), 204)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Auth-Token": ""},
        {"X-Auth-Token": "wrong"},
        {"X-Auth-Token": "nsk_not-a-key-of-this-service"},
        {"X-Auth-Token": "eyJhbGciOiJub25lIn0.eyJzdWIiOiJyb290In0."},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic cm9vdDp4"},
        {"URL-Signature": ""},
        {"EXTRA-SPEC": "messagecode:123456"},
        {"EXTRA-SPEC": ""},
        {"URL-Signature": "", "EXTRA-SPEC": "messagecode:1"},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "path", ["/v2/", "/v2/ping", "/v2/queues", "/v2/queues/q/nowhere", "/nowhere", "/%2F", "/v2"]
)
def test_without_credentials_every_path_is_closed(
    world: World, path: str, headers: Mapping[str, str]
) -> None:
    spoofed = {
        "X-Project-ID": "p",
        "X-Roles": "admin",
        "X-User-ID": world.root.id,
        "X-Identity-Status": "Confirmed",
        "X-Is-Admin-Project": "True",
        "X-Service-Roles": "admin",
    }
    unauthorized(world.request("GET", path, {**spoofed, **headers}))


@pytest.mark.parametrize("path", ["/", "/livez", "/readyz", "/metrics", "/openapi.json", "/docs"])
def test_some_paths_are_open(world: World, path: str) -> None:
    answer = world.server.client.get(path)
    assert answer.status_code == (300 if path == "/" else 200)


@pytest.mark.parametrize("path", ["/livez/", "/livez/x", "/Livez", "//livez", "/v2/../livez"])
def test_but_no_others_that_look_like_them(world: World, path: str) -> None:
    assert raw_exchange(world.server, "GET", path).status == 401


def test_who_is_unknown_is_told_so_before_anything_else(world: World) -> None:
    """Neither the missing client nor the form nor the method comes first."""
    unauthorized(world.request("GET", "/v2/queues", {"Client-ID": None}))
    unauthorized(world.request("PATCH", "/v2/ping", {"Accept": "text/html"}))
    unauthorized(world.request("POST", "/v2/queues/q/messages", {}, content=b"x" * 1_000_000))
    assert raw_exchange(world.server, "HEAD", "/v2/ping").status == 401


def test_options_are_told_to_everybody(world: World) -> None:
    answer = world.request("OPTIONS", "/v2/queues", {"Client-ID": None})
    assert (answer.status_code, answer.content) == (200, b"")
    assert "Allow" not in answer.headers


# -- what headers say of who asks means nothing


@pytest.mark.parametrize("name", ["X-Project-ID", "X-Tenant-ID", "X-Tenant", "X_Project_ID"])
def test_the_project_is_that_of_the_token(world: World, name: str) -> None:
    world.request("PUT", "/v2/queues/of-q", {"X-Auth-Token": world.token(world.bob)})
    seen = world.request("GET", "/v2/queues", {"X-Auth-Token": world.token(), name: "q"})
    assert "of-q" not in [queue["name"] for queue in expect(seen, 200)["queues"]]


@pytest.mark.parametrize(
    "name", ["X-Roles", "X_Roles", "X-Role", "x-roles", "X-Service-Roles", "X-User-Roles"]
)
def test_roles_are_those_of_the_token(world: World, name: str) -> None:
    answer = world.request("GET", "/v2/pools", {"X-Auth-Token": world.token(), name: "admin"})
    expect(answer, 403, "Not authorized")
    expect(world.get("/v2/pools", X_Auth_Token=world.token(world.root), X_Roles=""), 200)


@pytest.mark.parametrize(
    "name",
    ["X-Auth-Token", "Authorization", "X-Project-ID", "X-Roles", "URL-Signature", "Client-ID"],
)
def test_of_two_that_differ_neither_is_taken(world: World, name: str) -> None:
    fields = [("X-Auth-Token", world.token()), ("Client-ID", CLIENT), (name, "a"), (name, "b")]
    assert raw_exchange(world.server, "GET", "/v2/ping", fields).status == 400


def test_a_token_for_no_project(world: World) -> None:
    token = world.token()
    world.keystone.tokens[token].project = None
    answer = world.get("/v2/queues", X_Auth_Token=token, X_Project_ID="p")
    expect(answer, 400, "Project-Id Missing")


def test_the_client_is_checked_first_then(world: World) -> None:
    token = world.token()
    answer = world.request("GET", "/v2/queues", {"X-Auth-Token": token, "Client-ID": None})
    expect(answer, 400, "Missing header value")
    expect(world.get("/v2/nowhere", X_Auth_Token=token, Client_ID=None), 404)


# -- signatures


def signed(path: str, methods: str = "GET", project: str = "p", **changed: str) -> dict[str, str]:
    expires = "2030-01-01T00:00:00"
    signature = signing.sign(SHARED_KEY, [path], methods.split(","), project, expires)
    fields = {
        "URL-Signature": signature,
        "URL-Methods": methods,
        "URL-Paths": path,
        "URL-Expires": expires,
        "X-Project-ID": project,
    }
    return {**fields, **changed}


def test_a_signature_needs_no_token(world: World) -> None:
    path = "/v2/queues/shared/messages"
    posted = world.request(
        "POST",
        path,
        {"X-Auth-Token": world.token()},
        json={"messages": [{"body": "hello", "ttl": 60}]},
    )
    (id_,) = ids_of(posted)
    page = expect(world.request("GET", f"{path}?echo=true", signed(path)), 200)
    assert page["messages"][0]["body"] == "hello"
    expect(world.request("GET", f"{path}/{id_}", signed(path)), 200)


@pytest.mark.parametrize("token", [False, True])
def test_one_that_is_wrong_is_not_helped_by_a_token(world: World, token: bool) -> None:
    path = "/v2/queues/shared/messages"
    extra = {"X-Auth-Token": world.token()} if token else {}
    for headers in (
        signed(path, **{"X-Project-ID": "q"}),
        signed(path, **{"URL-Signature": "0" * 64}),
        signed(path, **{"URL-Methods": "GET,DELETE"}),
        signed("/v2/queues/other/messages"),
        signed(path, "POST"),
        {"URL-Signature": "x"},
    ):
        answer = world.request("GET", path, {**headers, **extra})
        assert expect(answer, 404) == {"title": "404 Not Found"}


def test_a_signature_gives_no_roles(world: World) -> None:
    """Nor those of a token that comes with it."""
    root = {"X-Auth-Token": world.token(world.root), "X-Roles": "admin"}
    path = "/v2/queues/shared/messages"
    expect(world.request("GET", path, {**signed(path), **root}), 200)
    for closed in ("/v2/pools", "/v2/queues", "/v2/health", "/nowhere", "/v2/"):
        answer = world.request("GET", closed, {**signed(path), **root})
        assert expect(answer, 404) == {"title": "404 Not Found"}


def test_open_paths_take_no_notice_of_signatures(world: World) -> None:
    expect(world.request("GET", "/livez", {"URL-Signature": "x"}), 200)


# -- Keystone


def test_while_keystone_is_down_the_unknown_are_asked_to_come_again(world: World) -> None:
    known, unknown = world.token(), world.token()
    expect(world.get("/v2/ping", X_Auth_Token=known), 204)
    world.keystone.answer = (500, {}, b"canary")
    answer = world.get("/v2/ping", X_Auth_Token=unknown)
    description = expect(answer, 503, "Service temporarily unavailable")["description"]
    assert "Please try again in a few seconds." in description
    assert int(answer.headers["Retry-After"]) >= 1
    expect(world.get("/v2/ping", X_Auth_Token=known), 204)
    path = "/v2/queues/shared/messages"
    expect(world.request("GET", path, signed(path)), 200)
    world.keystone.answer = None
    expect(world.get("/v2/ping", X_Auth_Token=unknown), 204)


def test_no_token_comes_into_the_log(world: World) -> None:
    expect(world.get("/v2/ping", X_Auth_Token="canary-token-wrong"), 401)
    assert "canary-token" not in world.server.log()
