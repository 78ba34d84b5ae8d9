"""Flavors: create, show, list, change, delete (contract, section 10)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.live import LiveServer, expect, next_link, pages
from tests.pooling import Admin

REFUSED = "Invalid API request"
INVALID = "Invalid request body"
PARAMETER = "Invalid parameter"
UNABLE = "Unable to create"
ALL = ["FIFO", "CLAIMS", "DURABILITY", "AOD", "HIGH_THROUGHPUT"]


@pytest.fixture(scope="module")
def pool_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def admin(pool_server: LiveServer) -> Iterator[Admin]:
    with Admin(pool_server) as admin:
        yield admin


# -- who may ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_flavors_are_changed_by_administrators(method: str, admin: Admin) -> None:
    answer = admin.user.request(method, "/v2/flavors/gold", content=b"not json")
    expect(answer, 403, "Not authorized")


def test_everybody_may_see_them(admin: Admin) -> None:
    admin.add("a")
    admin.flavor("gold", "a")
    assert expect(admin.user.get("/v2/flavors/gold"), 200) == admin.show_flavor("gold")
    (flavor,) = expect(admin.user.get("/v2/flavors"), 200)["flavors"]
    assert flavor["name"] == "gold"


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v2/flavors"), ("GET", "/v2/flavors/a"), ("PUT", "/v2/flavors/a")]
)
def test_client_and_project_are_needed_here_too(method: str, path: str, admin: Admin) -> None:
    for header, title in (
        ("Client-ID", "Missing header value"),
        ("X-Project-ID", "Project-Id Missing"),
    ):
        headers = {k: v for k, v in admin.api.headers.items() if k != header}
        expect(admin.api.request(method, path, headers=headers), 400, title)


@pytest.mark.parametrize(
    ("path", "methods"),
    [("/v2/flavors", {"GET"}), ("/v2/flavors/a", {"GET", "PUT", "PATCH", "DELETE"})],
)
def test_other_methods_are_refused(path: str, methods: set[str], admin: Admin) -> None:
    for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} - methods:
        answer = admin.api.request(method, path)
        assert answer.status_code == 405, method
        allowed = {each.strip() for each in answer.headers["Allow"].split(",")}
        assert allowed == methods | {"OPTIONS"}


def test_flavors_belong_to_a_project(admin: Admin) -> None:
    admin.add("a")
    admin.flavor("gold", "a")
    stranger = admin.api.stranger()
    expect(stranger.get("/v2/flavors/gold"), 404, "Not found")
    assert expect(stranger.get("/v2/flavors"), 200) == {"flavors": [], "links": []}
    expect(stranger.delete("/v2/flavors/gold"), 204)
    assert admin.show("a")["flavor"] == "gold"
    expect(stranger.create("q", {"_flavor": "gold"}), 400)


# -- create ----------------------------------------------------------------------------------------


def test_a_flavor_is_made_of_pools(admin: Admin) -> None:
    admin.add("b", "a", "c")
    answer = admin.put_flavor("gold", "b", "a")
    assert expect(answer, 201) is None
    assert answer.headers["Location"] == "/v2/flavors/gold"
    assert admin.show_flavor("gold") == {
        "name": "gold",
        "href": "/v2/flavors/gold",
        "pool_list": ["a", "b"],
        "capabilities": ALL,
    }
    assert [admin.show(name)["flavor"] for name in "abc"] == ["gold", "gold", None]


def test_capabilities_are_taken_and_ignored(admin: Admin) -> None:
    admin.add("a")
    body = {"pool_list": ["a"], "capabilities": {"FIFO": False}}
    expect(admin.api.put("/v2/flavors/gold", json=body), 201)
    assert admin.show_flavor("gold")["capabilities"] == ALL


def test_putting_it_again_makes_it_of_these(admin: Admin) -> None:
    """Those that are not listed any more lose the flavor."""
    admin.add("a", "b", "c")
    admin.flavor("gold", "a", "b")
    admin.flavor("gold", "b", "c")
    assert admin.show_flavor("gold")["pool_list"] == ["b", "c"]
    assert admin.show("a")["flavor"] is None


def test_a_pool_has_one_flavor(admin: Admin) -> None:
    admin.add("a", "b")
    admin.flavor("gold", "a", "b")
    admin.flavor("silver", "b")
    assert admin.show_flavor("gold")["pool_list"] == ["a"]
    assert admin.show_flavor("silver")["pool_list"] == ["b"]
    expect(admin.patch("a", flavor="silver"), 200)
    assert admin.show_flavor("silver")["pool_list"] == ["a", "b"]
    gold = admin.show_flavor("gold")
    assert (gold["pool_list"], gold["capabilities"]) == ([], [])


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"capabilities": {}},
        {"pool_list": None},
        {"pool_list": "a"},
        {"pool_list": {"a": 1}},
        {"pool_list": [1]},
        {"pool_list": ["a"], "capabilities": []},
        {"pool_list": ["a"], "capabilities": None},
        {"pool_list": ["a"], "capabilities": "FIFO"},
        {"pool_list": ["a"], "pool_group": "x"},
        {"pool_list": ["a"], "name": "gold"},
        [],
        ["a"],
    ],
    ids=json.dumps,
)
def test_bodies_that_are_refused(body: Any, admin: Admin) -> None:
    admin.add("a")
    answer = admin.api.put("/v2/flavors/gold", json=body)
    expect(answer, 400, INVALID)
    assert "Location" not in answer.headers
    expect(admin.api.get("/v2/flavors/gold"), 404)
    assert admin.show("a")["flavor"] is None


@pytest.mark.parametrize("body", ["", "{", "  ", "5", '"a"', "null"])
def test_bodies_that_are_none(body: str, admin: Admin) -> None:
    for method in ("PUT", "PATCH"):
        expect(admin.api.send(method, "/v2/flavors/gold", body), 400, INVALID)


def test_a_flavor_of_no_pools_is_refused(admin: Admin) -> None:
    expect(admin.put_flavor("gold"), 400, UNABLE)


def test_an_unknown_pool_is_refused_in_known_words(admin: Admin) -> None:
    admin.add("a")
    answer = admin.put_flavor("gold", "a", "missing")
    assert expect(answer, 400) == {
        "title": UNABLE,
        "description": "Flavor gold could not be created, error:Pool missing does not exist",
    }
    expect(admin.api.get("/v2/flavors/gold"), 404)
    assert admin.show("a")["flavor"] is None


@pytest.mark.parametrize("name", ["x" * 256, "new\nline"])
def test_names_that_cannot_be(name: str, admin: Admin) -> None:
    admin.add("a")
    expect(admin.put_flavor(name, "a"), 400, REFUSED)


@pytest.mark.parametrize("name", ["with space", "gold.1", "ölig", "{x}"])
def test_any_name_that_a_path_can_hold(name: str, admin: Admin) -> None:
    admin.add("a")
    answer = admin.put_flavor(name, "a")
    expect(answer, 201)
    assert expect(admin.api.get(answer.headers["Location"]), 200)["name"] == name
    assert admin.show("a")["flavor"] == name


# -- change ----------------------------------------------------------------------------------------


def test_a_flavor_is_changed(admin: Admin) -> None:
    admin.add("a", "b")
    admin.flavor("gold", "a")
    answer = admin.patch_flavor("gold", "b")
    assert expect(answer, 200) == {
        "name": "gold",
        "href": "/v2/flavors/gold",
        "pool_list": ["b"],
        "capabilities": ALL,
    }
    assert admin.show_flavor("gold") == answer.json()
    assert admin.show("a")["flavor"] is None


@pytest.mark.parametrize("capabilities", [None, [], "x", {}])
def test_a_change_ignores_all_but_the_pools(capabilities: Any, admin: Admin) -> None:
    admin.add("a")
    admin.flavor("gold", "a")
    body = {"pool_list": ["a"], "capabilities": capabilities, "unknown": 1}
    expect(admin.api.request("PATCH", "/v2/flavors/gold", json=body), 200)


@pytest.mark.parametrize(
    "body", [{}, {"capabilities": {}}, {"pool_list": "a"}, {"pool_list": None}, {"pool_list": []}]
)
def test_a_change_has_to_name_pools(body: Any, admin: Admin) -> None:
    admin.add("a")
    admin.flavor("gold", "a")
    expect(admin.api.request("PATCH", "/v2/flavors/gold", json=body), 400)
    expect(admin.api.request("PATCH", "/v2/flavors/unknown", json=body), 400)
    assert admin.show_flavor("gold")["pool_list"] == ["a"]


def test_there_has_to_be_a_flavor_to_change(admin: Admin) -> None:
    """This is looked at before the pools."""
    expect(admin.patch_flavor("gold", "missing"), 404, "Not found")


def test_a_change_to_an_unknown_pool_is_refused(admin: Admin) -> None:
    admin.add("a")
    admin.flavor("gold", "a")
    expect(admin.patch_flavor("gold", "a", "missing"), 400, "updatefail")
    assert admin.show_flavor("gold")["pool_list"] == ["a"]


# -- delete ----------------------------------------------------------------------------------------


def test_a_deleted_flavor_leaves_its_pools_without_one(admin: Admin) -> None:
    admin.add("a", "b")
    admin.flavor("gold", "a", "b")
    assert expect(admin.delete_flavor("gold"), 204) is None
    expect(admin.api.get("/v2/flavors/gold"), 404, "Not found")
    assert [pool["flavor"] for pool in admin.pools()] == [None, None]
    expect(admin.delete_flavor("gold"), 204)
    expect(admin.delete_flavor("never"), 204)


# -- list ------------------------------------------------------------------------------------------


def test_no_flavors(admin: Admin) -> None:
    assert expect(admin.api.get("/v2/flavors"), 200) == {"flavors": [], "links": []}


def test_flavors_are_listed_by_name(admin: Admin) -> None:
    admin.add("a", "b")
    admin.flavor("silver", "b")
    admin.flavor("gold", "a")
    page = expect(admin.api.get("/v2/flavors"), 200)
    assert page["flavors"] == [
        {"name": "gold", "href": "/v2/flavors/gold", "pool_list": ["a"]},
        {"name": "silver", "href": "/v2/flavors/silver", "pool_list": ["b"]},
    ]
    assert page["links"] == [{"rel": "next", "href": "/v2/flavors?marker=silver"}]


@pytest.mark.parametrize("detailed", ["true", "false"])
def test_capabilities_are_listed_if_asked_for(detailed: str, admin: Admin) -> None:
    admin.add("a")
    admin.flavor("gold", "a")
    page = expect(admin.api.get(f"/v2/flavors?limit=2&detailed={detailed}"), 200)
    (flavor,) = page["flavors"]
    shown = admin.show_flavor("gold")
    if detailed == "false":
        del shown["capabilities"]
    assert flavor == shown
    assert next_link(page) == f"/v2/flavors?limit=2&detailed={detailed}&marker=gold"


def test_pages_follow_one_another(admin: Admin) -> None:
    admin.add("a")
    names = [f"f{n:02}" for n in range(12)]
    for name in names:
        admin.flavor(name, "a")
    assert len(expect(admin.api.get("/v2/flavors"), 200)["flavors"]) == 10
    for limit in (5, 12):
        found = list(pages(admin.api, f"/v2/flavors?limit={limit}&detailed=true"))
        assert [one["name"] for page in found for one in page["flavors"]] == names
    assert expect(admin.api.get("/v2/flavors?marker=zzz"), 200)["flavors"] == []


@pytest.mark.parametrize("limit", ["0", "-1", "21"])
def test_limits_that_are_out_of_range(limit: str, admin: Admin) -> None:
    expect(admin.api.get(f"/v2/flavors?limit={limit}"), 400, REFUSED)


@pytest.mark.parametrize("query", ["limit=x", "detailed=TRUE"])
def test_parameters_that_make_no_sense(query: str, admin: Admin) -> None:
    expect(admin.api.get(f"/v2/flavors?{query}"), 400, PARAMETER)
