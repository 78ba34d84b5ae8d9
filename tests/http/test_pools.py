"""Pools: add, show, list, change, delete (contract, section 9)."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.live import Api, LiveServer, expect, next_link, pages
from tests.pooling import Admin

REFUSED = "Invalid API request"
INVALID = "Invalid request body"
PARAMETER = "Invalid parameter"
CONFLICT = "Resource conflict"
IN_USE = "Unable to delete"


@pytest.fixture(scope="module")
def pool_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def admin(pool_server: LiveServer) -> Iterator[Admin]:
    with Admin(pool_server) as admin:
        yield admin


# -- who may ---------------------------------------------------------------------------------------

EVERYTHING = [
    ("GET", "/v2/pools"),
    ("GET", "/v2/pools/a"),
    ("PUT", "/v2/pools/a"),
    ("PATCH", "/v2/pools/a"),
    ("DELETE", "/v2/pools/a"),
    ("POST", "/v2/pools/a/drain"),
]


@pytest.mark.parametrize(("method", "path"), EVERYTHING)
@pytest.mark.parametrize("roles", [None, "", "member", "administrator,user"])
def test_pools_are_for_administrators(
    method: str, path: str, roles: str | None, admin: Admin
) -> None:
    api = admin.user if roles is None else admin.user.but(extra={"X-Roles": roles})
    expect(api.request(method, path, content=b"not json"), 403, "Not authorized")


@pytest.mark.parametrize(("method", "path"), EVERYTHING)
def test_client_and_project_are_needed_here_too(method: str, path: str, admin: Admin) -> None:
    headers = {**admin.api.headers}
    without = {k: v for k, v in headers.items() if k != "Client-ID"}
    answer = admin.api.request(method, path, headers=without)
    assert "Client-Id" in expect(answer, 400, "Missing header value")["description"]
    wrong = headers | {"Client-ID": "me"}
    expect(admin.api.request(method, path, headers=wrong), 400, "Wrong UUID value")
    without = {k: v for k, v in headers.items() if k != "X-Project-ID"}
    expect(admin.api.request(method, path, headers=without), 400, "Project-Id Missing")
    xml = headers | {"Accept": "application/xml"}
    expect(admin.api.request(method, path, headers=xml), 406, "406 Not Acceptable")


def test_any_project_will_do(admin: Admin) -> None:
    admin.add("a")
    elsewhere = admin.api.stranger()
    assert expect(elsewhere.get("/v2/pools/a"), 200)["name"] == "a"
    long = admin.api.but(project="p" * 300)  # its length matters where a queue is named only
    assert expect(long.get("/v2/pools/a"), 200)["name"] == "a"


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v2/pools", {"GET"}),
        ("/v2/pools/a", {"GET", "PUT", "PATCH", "DELETE"}),
        ("/v2/pools/a/drain", {"POST"}),
    ],
)
def test_other_methods_are_refused(path: str, methods: set[str], admin: Admin) -> None:
    for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} - methods:
        answer = admin.api.request(method, path)
        assert answer.status_code == 405, method
        allowed = {each.strip() for each in answer.headers["Allow"].split(",")}
        assert allowed == methods | {"OPTIONS"}
    assert admin.api.request("OPTIONS", path).status_code == 200


# -- add -------------------------------------------------------------------------------------------


def test_a_pool_is_added_and_shown(admin: Admin) -> None:
    answer = admin.put("a", weight=7)
    assert expect(answer, 201) is None
    assert answer.headers["Location"] == "/v2/pools/a"
    shown = {
        "name": "a",
        "href": "/v2/pools/a",
        "weight": 7,
        "uri": admin.uri("a"),
        "flavor": None,
    }
    assert admin.show("a") == shown
    assert admin.show("a", "?detailed=false") == shown
    assert admin.show("a", "?detailed=true") == {**shown, "options": {}}


def test_options_and_flavor_are_kept(admin: Admin) -> None:
    options = {"store_timeout": 5, "mine": {"deep": [1, None, "x"]}, "unreliable": False}
    admin.add("a", flavor="gold", options=options)
    shown = admin.show("a", "?detailed=1")
    assert (shown["flavor"], shown["options"]) == ("gold", options)


def test_an_empty_flavor_is_none(admin: Admin) -> None:
    admin.add("a", flavor="")
    assert admin.show("a")["flavor"] is None


def test_adding_again_describes_it_anew(admin: Admin) -> None:
    admin.add("a", weight=7, flavor="gold", options={"x": 1})
    answer = admin.put("a", weight=8)
    expect(answer, 201)
    assert answer.headers["Location"] == "/v2/pools/a"
    shown = admin.show("a", "?detailed=true")
    assert (shown["weight"], shown["flavor"], shown["options"]) == (8, None, {})


@pytest.mark.parametrize("weight", [0, 1, 2**32 - 1, True])
def test_weights_that_are_fine(weight: int, admin: Admin) -> None:
    admin.add("a", weight=weight)
    assert admin.show("a")["weight"] == int(weight)


BAD_FIELDS: list[dict[str, Any]] = [
    {"weight": -1},
    {"weight": 2**32},
    {"weight": "1"},
    {"weight": 1.5},
    {"weight": None},
    {"uri": 1},
    {"uri": None},
    {"uri": ""},
    {"uri": "sqlite:///" + "x" * 300},
    {"uri": "localhost:27017"},
    {"uri": "mongodb://127.0.0.1:27017"},
    {"uri": "nonsense://x"},
    {"uri": "http://[::1"},
    {"uri": "redis://127.0.0.1:99999"},
    {"uri": "redis://127.0.0.1:6379\n"},
    {"flavor": None},
    {"flavor": 1},
    {"flavor": "x" * 256},
    {"options": None},
    {"options": []},
    {"options": "x"},
    {"options": {"unreliable": 1}},
    {"options": {"unreliable": "true"}},
    {"options": {"redis_replicas": -1}},
    {"options": {"redis_replicas": "1"}},
    {"options": {"store_connections": 0}},
    {"options": {"store_timeout": 0}},
    {"options": {"store_timeout": None}},
    {"options": {"sqlite_synchronous": "off"}},
    {"options": {"synchronous_standby": 1}},
    {"options": {"listen_store": "redis://127.0.0.1"}},
    {"options": {"listen_store": 5}},
]


@pytest.mark.parametrize("fields", BAD_FIELDS, ids=json.dumps)
def test_what_cannot_be_is_refused(fields: dict[str, Any], admin: Admin) -> None:
    answer = admin.put("a", **fields)
    error = expect(answer, 400)
    assert error["title"] in {INVALID, REFUSED}
    assert "Location" not in answer.headers
    expect(admin.api.get("/v2/pools/a"), 404, "Not found")
    admin.add("a", weight=3)
    expect(admin.patch("a", **fields), 400)
    assert admin.show("a")["weight"] == 3


@pytest.mark.parametrize(
    "body", ["", "{", "   ", "[]", '"x"', "5", "null", '{"weight": 1e}', "\xff", '[{"weight": 1}]']
)
def test_bodies_that_are_none(body: str, admin: Admin) -> None:
    for method in ("PUT", "PATCH"):
        answer = admin.api.send(method, "/v2/pools/a", body.encode("latin-1"))
        expect(answer, 400, INVALID)


@pytest.mark.parametrize("missing", ["uri", "weight"])
def test_members_that_have_to_be_given(missing: str, admin: Admin) -> None:
    body = {"uri": admin.uri("a"), "weight": 1}
    del body[missing]
    expect(admin.api.put("/v2/pools/a", json=body), 400, INVALID)


@pytest.mark.parametrize("name", ["wieght", "name", "href", "group", ""])
def test_unknown_members_are_refused_when_adding(name: str, admin: Admin) -> None:
    expect(admin.put("a", **{name: "x"}), 400, INVALID)
    expect(admin.api.get("/v2/pools/a"), 404)


def test_a_body_that_is_too_large_is_refused(admin: Admin) -> None:
    expect(admin.put("a", options={"x": "y" * 70_000}), 400, REFUSED)


@pytest.mark.parametrize("name", ["x" * 256, "tab\there", "null\0"])
def test_names_that_cannot_be(name: str, admin: Admin) -> None:
    expect(admin.put(name, uri=admin.uri("a")), 400, REFUSED)


def test_the_empty_name_is_no_pool(admin: Admin) -> None:
    expect(admin.api.get("/v2/pools/"), 404)
    expect(admin.api.put("/v2/pools/", json={"uri": admin.uri("a"), "weight": 1}), 400)
    assert admin.pools() == []


@pytest.mark.parametrize("name", ["with space", "äöü", "a.b", "q?x=1&y", "100%", "{braces}", "@,;"])
def test_any_name_that_a_path_can_hold(name: str, admin: Admin) -> None:
    answer = admin.put(name, uri=admin.uri("a"))
    expect(answer, 201)
    location = answer.headers["Location"]
    assert "{" not in location
    assert expect(admin.api.get(location), 200)["name"] == name
    (item,) = admin.pools()
    assert (item["name"], item["href"]) == (name, location)
    expect(admin.api.delete(location), 204)
    assert admin.pools() == []


# -- stores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgresql", "redis"])
def test_a_store_that_cannot_be_connected_to_is_refused(scheme: str, admin: Admin) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        uri = f"{scheme}://me:secret@127.0.0.1:{taken.getsockname()[1]}/0"
        answer = admin.put("a", uri=uri)
    error = expect(answer, 400, REFUSED)
    assert "secret" not in answer.text
    assert "me:***@127.0.0.1" in error["description"]
    assert "me:secret" not in admin.server.log()
    expect(admin.api.get("/v2/pools/a"), 404)


@pytest.mark.parametrize("scheme", ["postgresql", "redis"])
def test_a_store_that_never_answers_is_refused_soon(scheme: str, admin: Admin) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/0"
        started = time.monotonic()
        expect(admin.put("a", uri=uri), 400, REFUSED)
        assert time.monotonic() - started < 9
        expect(admin.user.get("/v2/ping"), 204)


def test_no_two_pools_have_one_uri(admin: Admin) -> None:
    admin.add("a", "b")
    uri = admin.uri("a")
    answer = admin.put("c", uri=uri)
    expect(answer, 409, CONFLICT)
    assert "Location" not in answer.headers
    expect(admin.patch("b", uri=uri), 409, CONFLICT)
    assert [pool["name"] for pool in admin.pools()] == ["a", "b"]
    expect(admin.put("a", uri=uri, weight=3), 201)  # its own
    expect(admin.delete("a"), 204)
    expect(admin.put("c", uri=uri), 201)  # it is free again


def test_the_own_store_is_no_pool(admin: Admin) -> None:
    expect(admin.put("a", uri=admin.server.store), 409, CONFLICT)
    admin.add("b")
    expect(admin.patch("b", uri=admin.server.store), 409, CONFLICT)


@pytest.mark.embedded
def test_files_outside_of_the_folder_of_the_own_store_are_refused(admin: Admin) -> None:
    """Whoever may add pools must not write wherever the server may."""
    folder = admin.server.folder
    outside = folder.parent / "outside.db"
    for uri in (
        f"sqlite:///{outside}",
        f"sqlite:///{folder}/../outside.db",
        f"sqlite:///{folder}/x/%2e%2e/../../outside.db",
        "sqlite:///../outside.db",
        "sqlite:////etc/nusku.db",
    ):
        expect(admin.put("a", uri=uri), 400, INVALID)
    assert not outside.exists()
    expect(admin.put("a", uri="sqlite:///beside.db"), 201)  # where the server was started
    assert (folder / "beside.db").exists()


@pytest.mark.embedded
def test_files_that_are_no_stores_are_refused(admin: Admin) -> None:
    folder = admin.server.folder
    (folder / "text.db").write_text("Dear diary, " * 100)
    for name in ("text.db", "nowhere/at.db", "nusku.db.lock"):
        expect(admin.put("a", uri=f"sqlite:///{folder}/{name}"), 400, REFUSED)
    assert (folder / "text.db").read_text() == "Dear diary, " * 100


@pytest.mark.embedded
def test_one_file_by_two_names_is_refused(admin: Admin) -> None:
    admin.add("a")
    (admin.server.folder / "link.db").unlink(missing_ok=True)
    (admin.server.folder / "link.db").symlink_to(admin.uri("a").removeprefix("sqlite:///"))
    expect(admin.put("b", uri="sqlite:///link.db"), 400, REFUSED)
    (admin.server.folder / "link.db").unlink()


# -- change ----------------------------------------------------------------------------------------


def test_every_member_can_be_changed(admin: Admin) -> None:
    admin.add("a", weight=1)
    changes: dict[str, Any] = {
        "weight": 9,
        "uri": admin.uri("a2"),
        "flavor": "gold",
        "options": {"store_timeout": 9.5, "x": "y"},
    }
    told = expect(admin.patch("a", **changes, unknown=1, name="z"), 200)
    assert told == {
        "name": "a",
        "href": "/v2/pools/a",
        "weight": 9,
        "uri": admin.uri("a2"),
        "flavor": "gold",
    }
    assert admin.show("a", "?detailed=true") == {**told, "options": changes["options"]}


@pytest.mark.parametrize(
    "change",
    [{"weight": 5}, {"flavor": "gold"}, {"options": {"a": 1}}, {"options": {"store_timeout": 3}}],
)
def test_one_member_is_enough(change: dict[str, Any], admin: Admin) -> None:
    admin.add("a", options={"x": 1})
    before = admin.show("a", "?detailed=true")
    expect(admin.patch("a", **change), 200)
    assert admin.show("a", "?detailed=true") == before | change


def test_an_empty_flavor_takes_it_away(admin: Admin) -> None:
    admin.add("a", flavor="gold")
    assert expect(admin.patch("a", flavor=""), 200)["flavor"] is None
    assert admin.show("a")["flavor"] is None


@pytest.mark.parametrize("body", [{}, {"unknown": 1}, {"name": "b", "href": "/v2/pools/b"}])
def test_a_change_has_to_say_what(body: dict[str, Any], admin: Admin) -> None:
    admin.add("a")
    expect(admin.patch("a", **body), 400)
    expect(admin.patch("unknown", **body), 400)  # before it is looked for


def test_there_has_to_be_a_pool_to_change(admin: Admin) -> None:
    expect(admin.patch("a", weight=1), 404, "Not found")
    expect(admin.patch("a", uri=admin.uri("a")), 404, "Not found")
    expect(admin.patch("a", weight=-1), 400)


# -- delete ----------------------------------------------------------------------------------------


def test_a_pool_is_deleted(admin: Admin) -> None:
    admin.add("a", "b")
    assert expect(admin.delete("a"), 204) is None
    expect(admin.api.get("/v2/pools/a"), 404, "Not found")
    expect(admin.patch("a", weight=1), 404)
    expect(admin.delete("a"), 204)
    expect(admin.delete("never"), 204)
    assert [pool["name"] for pool in admin.pools()] == ["b"]
    admin.add("a")
    assert [pool["name"] for pool in admin.pools()] == ["a", "b"]


def test_the_last_pool_of_a_flavor_stays(admin: Admin) -> None:
    admin.add("a", "b", flavor="gold")
    expect(admin.delete("a"), 204)
    expect(admin.delete("b"), 403, IN_USE)
    assert admin.show("b")["flavor"] == "gold"
    expect(admin.patch("b", flavor=""), 200)
    expect(admin.delete("b"), 204)


def test_a_flavor_that_is_deleted_lets_its_last_pool_go(admin: Admin) -> None:
    admin.add("a")
    admin.flavor("gold", "a")
    expect(admin.delete("a"), 403, IN_USE)
    expect(admin.delete_flavor("gold"), 204)
    expect(admin.delete("a"), 204)


# -- list ------------------------------------------------------------------------------------------


def test_no_pools(admin: Admin) -> None:
    answer = admin.api.get("/v2/pools")
    assert expect(answer, 200) == {"pools": [], "links": []}
    assert answer.headers["Content-Location"] == "/v2/pools"


def test_pools_are_listed_by_name(admin: Admin) -> None:
    admin.add("b", "c", "a", options={"x": 1})
    answer = admin.api.get("/v2/pools")
    page = expect(answer, 200)
    assert [pool["name"] for pool in page["pools"]] == ["a", "b", "c"]
    assert page["pools"][0] == admin.show("a")
    assert page["links"] == [{"rel": "next", "href": "/v2/pools?marker=c"}]
    assert expect(admin.api.get("/v2/pools?marker=c"), 200) == {"pools": [], "links": []}


@pytest.mark.parametrize(
    ("given", "told"), [("true", "true"), ("True", "true"), ("0", "false"), ("no", "false")]
)
def test_options_are_listed_if_asked_for(given: str, told: str, admin: Admin) -> None:
    admin.add("a", "b", options={"x": 1})
    answer = admin.api.get(f"/v2/pools?limit=1&detailed={given}")
    assert answer.headers["Content-Location"] == f"/v2/pools?limit=1&detailed={given}"
    page = expect(answer, 200)
    (pool,) = page["pools"]
    assert pool == admin.show("a", f"?detailed={given}")
    assert ("options" in pool) is (told == "true")
    assert next_link(page) == f"/v2/pools?limit=1&detailed={told}&marker=a"


def test_pages_follow_one_another(admin: Admin) -> None:
    names = [f"p{n:02}" for n in range(12)]
    admin.add(*names)
    assert [pool["name"] for pool in admin.pools()] == names[:10]
    for limit in (1, 5, 12, 20):
        found = list(pages(admin.api, f"/v2/pools?limit={limit}"))
        assert [pool["name"] for page in found for pool in page["pools"]] == names
        assert all(len(page["pools"]) <= limit for page in found)
    assert [pool["name"] for pool in admin.pools("?marker=p02x&limit=2")] == ["p03", "p04"]
    assert admin.pools("?marker=zzz") == []


@pytest.mark.parametrize("limit", ["0", "-1", "21", "99999999999"])
def test_limits_that_are_out_of_range(limit: str, admin: Admin) -> None:
    expect(admin.api.get(f"/v2/pools?limit={limit}"), 400, REFUSED)


@pytest.mark.parametrize("query", ["limit=x", "detailed=TRUE", "detailed=2"])
def test_parameters_that_make_no_sense(query: str, admin: Admin) -> None:
    expect(admin.api.get(f"/v2/pools?{query}"), 400, PARAMETER)


def test_an_unknown_pool_is_not_found(admin: Admin) -> None:
    expect(admin.api.get("/v2/pools/unknown"), 404, "Not found")


# -- home ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", ["pool", "flavor"])
def test_the_home_document_tells_of_them(one: str, api: Api) -> None:
    resources = expect(api.get("/v2/"), 200)["resources"]
    formats: dict[str, Any] = {"application/json": {}}
    assert resources[f"rel/{one}s"] == {
        "href-template": f"/v2/{one}s{{?detailed,limit,marker}}",
        "href-vars": {
            "detailed": "param/detailed",
            "limit": f"param/{one}_limit",
            "marker": "param/marker",
        },
        "hints": {"allow": ["GET"], "formats": formats},
    }
    assert resources[f"rel/{one}"] == {
        "href-template": f"/v2/{one}s/{{{one}_name}}",
        "href-vars": {f"{one}_name": f"param/{one}_name"},
        "hints": {"allow": ["GET", "PUT", "PATCH", "DELETE"], "formats": formats},
    }
