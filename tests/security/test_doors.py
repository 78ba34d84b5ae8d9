"""Every door, with every key that does not fit: what is asked is done for nobody else.

The doors are those of the table of routes, so that a new one is tried on its first day. What each
takes by default is what the contract says (semantics.md section 8).
"""

from __future__ import annotations

import hmac
import inspect
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple
from unittest.mock import Mock

import httpx
import pytest

from nusku import signing
from nusku.broker import OPERATIONS
from nusku.http import app
from tests.fake_keystone import Keystone
from tests.live import PATCH_TYPE, SHARED_KEY, LiveServer, SettingValue, expect, ids_of

CANARY = "canary-of-the-victim"
NAME = "door"
CLIENT = "3381af92-2b9e-11e3-b191-71861300734c"
OPEN = {"/", "/livez", "/readyz", "/metrics", "/openapi.json", "/docs"}
ADMIN = {
    *(f"pools:{verb}" for verb in ("get_all", "create", "get", "update", "delete")),
    *(f"flavors:{verb}" for verb in ("create", "update", "delete")),
    "health:get",
}
NOT_FOUND = {"title": "404 Not Found"}

TYPES = ["messages", "subscriptions"]
BODIES: dict[str, Any] = {
    "messages:create": {"messages": [{"body": "forged", "ttl": 60}]},
    "queues:update": [{"op": "add", "path": "/metadata/note", "value": "forged"}],
    "topics:update": [{"op": "add", "path": "/metadata/note", "value": "forged"}],
    "queues:purge": {"resource_types": TYPES},
    "topics:purge": {"resource_types": TYPES},
    "claims:create": {"ttl": 60, "grace": 60},
    "claims:update": {"ttl": 60, "grace": 60},
    "subscription:create": {"subscriber": "http://hooks.example/forged", "ttl": 600},
    "subscription:update": {"ttl": 600},
    "subscription:confirm": {"confirmed": False},
}
"""What would do most harm, by operation; others get an empty object."""
QUERIES = {"messages:delete_all": "?pop=1"}


class Door(NamedTuple):
    method: str
    template: str
    operation: str
    signable: bool

    def __str__(self) -> str:
        return f"{self.method} {self.template}"


def doors() -> list[Door]:
    """All there are, by the very table that the service is built from."""
    arguments: dict[str, Any] = {name: Mock() for name in inspect.signature(app.routes).parameters}
    arguments["queues"] = {kinds: (Mock(), Mock(), Mock()) for kinds in ("queues", "topics")}
    return [
        Door(method, route.template, operation, route.signable)
        for route in app.routes(**arguments)
        for method, (operation, _) in route.methods.items()
    ]


DOORS = doors()
CLOSED = [door for door in DOORS if door.template not in OPEN]


class Victim:
    """A project with something of everything, and what a request needs to name it."""

    def __init__(self, server: LiveServer, headers: Mapping[str, str]) -> None:
        self._client = server.client
        self._headers = {"Client-ID": CLIENT, **headers}
        self.ids: dict[str, dict[str, str]] = {}
        for kinds in ("queues", "topics"):
            queue = f"/v2/{kinds}/{NAME}"
            self._do("PUT", queue, {"note": CANARY})
            posted = self._do(
                "POST", f"{queue}/messages", {"messages": [{"body": CANARY, "ttl": 3600}] * 2}
            )
            subscription = self._do(
                "POST",
                f"{queue}/subscriptions",
                {"subscriber": f"http://hooks.example/{CANARY}", "ttl": 3600},
            )
            self.ids[kinds] = {
                "messages": ids_of(posted)[0],
                "subscriptions": subscription.json()["subscription_id"],
            }
        claimed = self._do("POST", f"/v2/queues/{NAME}/claims?limit=1", {"ttl": 3600})
        self.ids["queues"]["claims"] = claimed.headers["Location"].rpartition("/")[2]

    def _do(self, method: str, path: str, body: Any = None) -> httpx.Response:
        answer = self._client.request(method, path, headers=self._headers, json=body)
        assert answer.is_success, (path, answer.text)
        return answer

    def path(self, door: Door, queue: str = NAME) -> str:
        """That of the door, with names and ids of things that are there."""
        parts = door.template.split("/")
        kind = self.ids.get(parts[2] if len(parts) > 2 else "", {})
        id_ = kind.get(parts[4], "") if len(parts) > 4 else ""
        return door.template.format(name=queue, id_=id_, pool=NAME, flavor=NAME)

    def state(self) -> Any:
        """All there is to see of it, without what time alone changes."""
        paths = [f"/v2/queues/{NAME}/claims/{self.ids['queues']['claims']}"]
        for kinds in ("queues", "topics"):
            queue = f"/v2/{kinds}/{NAME}"
            paths += (
                f"/v2/{kinds}?detailed=true&limit=20",
                f"{queue}/messages?echo=true&include_claimed=true&limit=20",
                f"{queue}/subscriptions",
            )
        found = [self._do("GET", path).json() for path in paths]
        return json.loads(json.dumps(found), object_hook=_without_age)


def _without_age(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if name != "age"}


class World:
    """A server with `auth = keystone`: Ann is a member of the victim's project, Root its admin;
    Eve is a member of another, Mallory an admin of that.
    """

    def __init__(self, keystone: Keystone, server: LiveServer) -> None:
        self.keystone, self.server = keystone, server
        people = {
            "ann": ("p", "member"),
            "root": ("p", "admin"),
            "eve": ("q", "member"),
            "mallory": ("q", "admin"),
        }
        self.tokens = {
            name: keystone.token_of(keystone.user(name, "x", **{project: [role]}), project)
            for name, (project, role) in people.items()
        }
        expired = keystone.token_of(next(iter(keystone.users.values())), "p")
        keystone.tokens[expired].expires_s = time.time() - 1
        self.tokens["expired"] = expired
        self.victim = Victim(server, {"X-Auth-Token": self.tokens["ann"]})

    def knock(
        self, door: Door, headers: Mapping[str, str], path: str | None = None
    ) -> httpx.Response:
        return knock(self.server, door, path or self.victim.path(door), headers)


def knock(server: LiveServer, door: Door, path: str, headers: Mapping[str, str]) -> httpx.Response:
    """A request that would be served, if only its sender might."""
    given: dict[str, Any] = {}
    if door.method in {"POST", "PUT", "PATCH"}:
        given["json"] = BODIES.get(door.operation, {})
    sent = {"Client-ID": CLIENT, **headers}
    if isinstance(given.get("json"), list):
        sent["Content-Type"] = PATCH_TYPE
    query = QUERIES.get(door.operation, "")
    return server.client.request(door.method, path + query, headers=sent, **given)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with Keystone() as keystone:
        keystone.user("nusku", "secret", service=["service"])
        settings: dict[str, SettingValue] = {
            "auth": "keystone",
            "keystone_url": keystone.url,
            "keystone_user_name": "nusku",
            "keystone_user_password": "secret",
            "secret_key": SHARED_KEY,
        }
        with LiveServer(tmp_path_factory.mktemp("doors"), **settings) as server:
            yield World(keystone, server)


@pytest.fixture
def untouched(world: World) -> Iterator[None]:
    """What was refused has changed nothing."""
    before = world.victim.state()
    yield
    assert world.victim.state() == before


SPOOFED = {
    "X-Project-ID": "p",
    "X-Tenant-ID": "p",
    "X-Roles": "admin",
    "X-User-ID": "root",
    "X-Identity-Status": "Confirmed",
    "X-Is-Admin-Project": "True",
    "X-Domain-ID": "default",
    "X-Service-Roles": "admin,service",
    "X-Service-Identity-Status": "Confirmed",
    "OpenStack-System-Scope": "all",
    "X_Project_ID": "p",
    "X_Roles": "admin",
    "HTTP_X_ROLES": "admin",
}
STRANGERS: dict[str, Callable[[World], Mapping[str, str]]] = {
    "nothing": lambda _: {},
    "an empty token": lambda _: {"X-Auth-Token": ""},
    "a wrong token": lambda _: {"X-Auth-Token": "wrong"},
    "a wrong bearer": lambda _: {"Authorization": "Bearer wrong"},
    "a token that was cut": lambda world: {"X-Auth-Token": world.tokens["root"][:-1]},
    "a token in capitals": lambda world: {"X-Auth-Token": world.tokens["root"].upper()},
    "an expired token": lambda world: {"X-Auth-Token": world.tokens["expired"]},
    "a service token": lambda world: {"X-Service-Token": world.tokens["root"]},
    "a token as a cookie": lambda world: {"Cookie": f"X-Auth-Token={world.tokens['root']}"},
    "a password": lambda _: {"Authorization": "Basic cm9vdDp4"},
    "an empty signature": lambda _: {"URL-Signature": ""},
    "a second factor": lambda _: {"EXTRA-SPEC": "messagecode:123456"},
    "both": lambda _: {"URL-Signature": "", "EXTRA-SPEC": "messagecode:123456"},
}


# -- the table


def test_the_open_doors_are_these() -> None:
    unchecked = {door.template for door in DOORS if not door.template.startswith("/v2/")}
    assert unchecked == OPEN


def test_every_operation_has_a_door_and_a_rule() -> None:
    ruled = {door.operation for door in CLOSED} - {"home:get"}
    assert ruled == set(OPERATIONS)
    assert {name for name, role in OPERATIONS.items() if role} == ADMIN


# -- those who are not let in


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_stranger_finds_them_closed(world: World, stranger: str) -> None:
    wrong = []
    for door in CLOSED:
        answer = world.knock(door, {**SPOOFED, **STRANGERS[stranger](world)})
        if answer.status_code != 401 or CANARY in answer.text or CANARY in str(answer.headers):
            wrong.append((str(door), answer.status_code, answer.text))
    assert wrong == []


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("who", ["eve", "mallory"])
def test_somebody_of_another_project_finds_nothing(world: World, who: str) -> None:
    """Whatever they name is looked for in their own project, where it is not."""
    wrong = []
    token = {"X-Auth-Token": world.tokens[who]}
    for door in CLOSED:
        answer = world.knock(door, {**SPOOFED, **token})
        if door.operation in ADMIN and who == "eve":
            fine = answer.status_code == 403
        else:
            fine = answer.status_code < 500 and answer.status_code != 401
        if not fine or CANARY in answer.text or CANARY in str(answer.headers):
            wrong.append((str(door), answer.status_code, answer.text))
    assert wrong == []


@pytest.mark.usefixtures("untouched")
def test_a_member_is_no_admin(world: World) -> None:
    token = {"X-Auth-Token": world.tokens["ann"]}
    for door in CLOSED:
        if door.operation in ADMIN:
            for more in ({}, SPOOFED):
                answer = world.knock(door, {**more, **token})
                expect(answer, 403, "Not authorized")


# -- signatures that do not fit


def sign(
    door: Door,
    path: str,
    *,
    method: str = "",
    project: str = "p",
    expires: str = "2030-01-01T00:00:00",
    key: str = SHARED_KEY,
) -> dict[str, str]:
    """One for this path, with something changed."""
    method = method or (door.method if door.method in signing.METHODS else "GET")
    try:
        signature = signing.sign(key, [path], [method], project, expires)
    except ValueError:  # nobody makes one for such a path; so somebody who has the key would
        text = rf"{path}\n{method}\n{project}\n{expires}"
        signature = hmac.digest(key.encode(), text.encode(), "sha256").hex()
    return {
        "URL-Signature": signature,
        "URL-Methods": method,
        "URL-Paths": path,
        "URL-Expires": expires,
        "X-Project-ID": project,
    }


def another(method: str) -> str:
    return "GET" if method != "GET" else "DELETE"


MISFITS: dict[str, Callable[[World, Door, str], Mapping[str, str]]] = {
    "another path": lambda _, door, path: sign(door, f"{path}x"),
    "a longer path": lambda _, door, path: sign(door, f"{path}/x"),
    "another method": lambda _, door, path: sign(door, path, method=another(door.method)),
    "another queue": lambda _, door, path: sign(door, path.replace(NAME, "other") + "/x"),
    "another project": lambda _, door, path: {**sign(door, path, project="q"), "X-Project-ID": "p"},
    "another time": lambda _, door, path: sign(door, path, expires="2026-01-01T00:00:00"),
    "another key": lambda _, door, path: sign(door, path, key="1" * 64),
    "a changed signature": lambda _, door, path: {**sign(door, path), "URL-Signature": "0" * 64},
    "more methods": lambda _, door, path: {
        **sign(door, path, method=another(door.method)),
        "URL-Methods": ",".join(sorted({door.method, another(door.method)})),
    },
    "more paths": lambda _, door, path: {
        **sign(door, "/v2/queues/mine/messages"),
        "URL-Paths": f"/v2/queues/mine/messages,{path}",
    },
    "a pattern": lambda _, door, path: {**sign(door, "/v2/queues/.*"), "URL-Paths": "/v2/.*"},
    "no time": lambda _, door, path: {**sign(door, path), "URL-Expires": ""},
    "a token of an admin beside it": lambda world, door, path: {
        **sign(door, f"{path}x"),
        "X-Auth-Token": world.tokens["root"],
        "X-Roles": "admin",
    },
}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("misfit", MISFITS)
def test_a_signature_that_does_not_fit_opens_none(world: World, misfit: str) -> None:
    wrong = []
    for door in CLOSED:
        path = world.victim.path(door)
        answer = world.knock(door, MISFITS[misfit](world, door, path), path)
        body = answer.json() if answer.content else NOT_FOUND
        if answer.status_code != 404 or body != NOT_FOUND:
            wrong.append((str(door), answer.status_code, answer.text))
    assert wrong == []


def test_with_no_authentication_either(shared_server: Callable[..., LiveServer]) -> None:
    """There signatures are checked, too."""
    server = shared_server(secret_key=SHARED_KEY)
    victim = Victim(server, {"X-Project-ID": f"doors-{uuid.uuid4().hex}"})
    before = victim.state()
    for door in CLOSED:
        path = victim.path(door)
        for headers in (sign(door, f"{path}x"), sign(door, path, key="1" * 64)):
            answer = knock(server, door, path, {**headers, "X-Roles": "admin"})
            assert answer.status_code == 404, str(door)
    assert victim.state() == before


@pytest.mark.usefixtures("untouched")
def test_nobody_has_a_signature_for_these(world: World) -> None:
    """What is not below a queue or topic, and what a signature for a queue was not meant for."""
    for door in CLOSED:
        path = world.victim.path(door)
        if not (door.signable and "{name}" in door.template):
            answer = world.knock(door, sign(door, path), path)
            assert answer.status_code == 404, str(door)
            assert not answer.content or answer.json() == NOT_FOUND


# -- and those who are let in. These come last, since they change things.


def test_a_signature_that_fits_opens_its_door(world: World) -> None:
    for door in CLOSED:
        if door.signable and "{name}/" in door.template and door.method != "DELETE":
            path = world.victim.path(door, queue="signed")
            answer = world.knock(door, sign(door, path), path)
            assert answer.status_code not in {401, 403, 500}, str(door)
            assert not answer.content or answer.json() != NOT_FOUND, str(door)


def test_a_member_and_an_admin_are_let_in(world: World) -> None:
    for door in CLOSED:
        who = "root" if door.operation in ADMIN else "ann"
        for name, value in (
            ("X-Auth-Token", world.tokens[who]),
            ("Authorization", f"Bearer {world.tokens[who]}"),
        ):
            path = world.victim.path(door, queue="own")
            answer = world.knock(door, {name: value}, path)
            assert answer.status_code not in {401, 403, 500, 503}, str(door)
            assert not answer.content or answer.json() != NOT_FOUND, str(door)
