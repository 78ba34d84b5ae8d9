"""The shape, titles and fragments of errors (contract, 1.8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.live import PATCH_TYPE, QUEUES, Api, expect

pytestmark = pytest.mark.embedded  # about no store at all

Cause = Callable[[Api], httpx.Response]

CAUSES: dict[str, tuple[int, str, Cause]] = {
    "a limit out of range": (400, "Invalid API request", lambda a: a.list_queues("?limit=0")),
    "a ttl out of range": (
        400,
        "Invalid API request",
        lambda a: a.post("q", {"body": 1, "ttl": 59}),
    ),
    "a missing key": (
        400,
        "Invalid API request",
        lambda a: a.send("POST", a.path("q", "messages"), "{}"),
    ),
    "reserved metadata at creation": (
        400,
        "Invalid API request",
        lambda a: a.create("q", {"_default_message_ttl": 1}),
    ),
    "malformed JSON": (400, "Invalid request body", lambda a: a.send("PUT", a.path("q"), "{")),
    "a wrong type": (
        400,
        "Invalid request body",
        lambda a: a.post("q", {"body": 1, "ttl": "60"}),
    ),
    "a bad patch": (400, "Invalid request body", lambda a: a.patch("there", [{"op": "brew"}])),
    "an unparsable integer": (400, "Invalid parameter", lambda a: a.list_queues("?limit=x")),
    "an unparsable boolean": (400, "Invalid parameter", lambda a: a.list_queues("?detailed=x")),
    "a claim id for an unclaimed message": (
        400,
        "Unable to delete",
        lambda a: a.delete_message("there", a.post_bodies("there", 1)[0], "nosuchclaim"),
    ),
    "a bad queue name": (400, "Invalid queue identification", lambda a: a.show("bad@name")),
    "no admin": (403, "Not authorized", lambda a: a.get("/v2/health")),
    "an unknown message": (404, "Not found", lambda a: a.message("q", "nosuchmessage")),
    "unknown messages": (404, "Not found", lambda a: a.messages("q", ["a", "b"])),
    "an unknown claim": (404, "Not found", lambda a: a.show_claim("q", "nosuchclaim")),
    "renewing an unknown claim": (404, "Not found", lambda a: a.renew("q", "c", ttl=60)),
    "patching a missing queue": (404, "Not found", lambda a: a.patch("q", [])),
    "an unacceptable Accept": (
        406,
        "406 Not Acceptable",
        lambda a: a.get("/v2/queues", headers={**a.headers, "Accept": "text/html"}),
    ),
    "replacing what is not there": (
        409,
        "Resource conflict",
        lambda a: a.patch("there", [{"op": "replace", "path": "/metadata/x", "value": 1}]),
    ),
    "a patch of another type": (
        415,
        "415 Unsupported Media Type",
        lambda a: a.patch("there", [], "application/json"),
    ),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_an_error_has_a_title_and_a_description_and_nothing_else(cause: str, api: Api) -> None:
    expect(api.create("there"), 201)
    status, title, ask = CAUSES[cause]
    answer = ask(api)
    error = expect(answer, status, title)
    assert {"title", "description"} <= set(error) <= {"title", "description", "link"}
    if status == 406:
        assert set(error["link"]) == {"text", "href", "rel"}
        assert error["link"]["rel"] == "help"
    else:
        assert "link" not in error
    assert isinstance(error["description"], str)
    assert error["description"]
    assert answer.headers["Content-Type"].split(";")[0] == "application/json"
    assert "accept" in answer.headers["Vary"].lower()


def test_a_claimed_message_is_an_error_called_unable_to_delete(api: Api) -> None:
    [message_id] = api.post_bodies("q", 1)
    api.claimed("q")
    expect(api.delete_message("q", message_id), 403, "Unable to delete")


def test_routed_away_errors_have_only_a_title(api: Api) -> None:
    assert expect(api.get("/v2/nosuchpath"), 404) == {"title": "404 Not Found"}
    assert expect(api.request("POST", "/v2/queues"), 405) == {"title": "405 Method Not Allowed"}


def test_the_415_names_the_accepted_type(api: Api) -> None:
    expect(api.create("q"), 201)
    error = expect(api.patch("q", [], "application/json"), 415)
    assert PATCH_TYPE in error["description"]


def test_unparsable_json_is_called_so(api: Api) -> None:
    error = expect(api.send("PUT", api.path("q"), "{nope"), 400)
    assert "body could not be parsed" in error["description"]


def test_an_error_never_shows_the_insides(api: Api) -> None:
    for _, _, ask in CAUSES.values():
        text = ask(api).text.lower()
        for inside in ("traceback", "sqlite", "msgspec", "falcon", ".py"):
            assert inside not in text


NASTY: list[Any] = [
    None,
    True,
    0,
    -1,
    2**63 - 1,
    1.5,
    "",
    "x",
    "\u0000",
    [],
    [None],
    [[]],
    {},
    {"": None},
    {"a": {"a": {}}},
]


@pytest.mark.parametrize(
    ("method", "rest", "key"),
    [
        *(("PUT", "", key) for key in QUEUES.defaults),
        ("PUT", "", "_flavor"),
        ("PUT", "", "_retry_policy"),
        ("POST", "/messages", "messages"),
        ("POST", "/claims", "ttl"),
        ("POST", "/claims", "grace"),
        ("POST", "/claims", "limit"),
        ("PATCH", "/claims/c", "ttl"),
        ("PATCH", "/claims/c", "grace"),
        ("POST", "/purge", "resource_types"),
    ],
)
def test_no_value_of_any_field_ends_in_a_server_error(
    method: str, rest: str, key: str, api: Api
) -> None:
    expect(api.create("q"), 201)
    for value in NASTY:
        answer = api.request(method, api.path("q") + rest, json={key: value})
        assert answer.status_code < 500, (key, value, answer.text)


@pytest.mark.parametrize("rest", ["", "/messages", "/claims", "/claims/c", "/purge"])
def test_no_document_ends_in_a_server_error(rest: str, api: Api) -> None:
    expect(api.create("q"), 201)
    method = {"": "PUT", "/claims/c": "PATCH"}.get(rest, "POST")
    for value in NASTY:
        answer = api.request(method, api.path("q") + rest, json=value)
        assert answer.status_code < 500, (value, answer.text)


@pytest.mark.parametrize("member", ["op", "path", "value"])
def test_no_member_of_a_patch_ends_in_a_server_error(member: str, api: Api) -> None:
    expect(api.create("q"), 201)
    for value in NASTY:
        for op in ("add", "replace", "remove"):
            operation = {"op": op, "path": "/metadata/a", "value": 1, member: value}
            answer = api.patch("q", [operation])
            assert answer.status_code < 500, (operation, answer.text)


@pytest.mark.parametrize("field", ["body", "ttl", "delay"])
def test_no_field_of_a_message_ends_in_a_server_error(field: str, api: Api) -> None:
    for value in NASTY:
        answer = api.post("q", {"body": 1, field: value})
        assert answer.status_code < 500, (value, answer.text)


@pytest.mark.parametrize(
    "text",
    [
        "x" * 500,
        "%00",
        "%0A",
        "%FF",
        "%F0%9F%98%80",
        "..",
        "%27%3B--",
        "%25",
        "9" * 40,
        "-1",
        "%20",
        "a%2Fb",
        "0" * 29,
        "f" * 29,
        "zzzz",
    ],
)
def test_no_id_ends_in_a_server_error(text: str, api: Api) -> None:
    api.post_bodies("q", 1)
    encoded = text.replace("..", "%2E%2E")
    for method, path in (
        ("GET", f"/v2/queues/q/messages/{encoded}"),
        ("DELETE", f"/v2/queues/q/messages/{encoded}"),
        ("DELETE", f"/v2/queues/q/messages/{encoded}?claim_id={encoded}"),
        ("GET", f"/v2/queues/q/messages?ids={encoded}"),
        ("DELETE", f"/v2/queues/q/messages?ids={encoded}"),
        ("GET", f"/v2/queues/q/messages?marker={encoded}"),
        ("GET", f"/v2/queues/q/claims/{encoded}"),
        ("DELETE", f"/v2/queues/q/claims/{encoded}"),
        ("PATCH", f"/v2/queues/q/claims/{encoded}"),
        ("GET", f"/v2/queues?marker={encoded}"),
        ("GET", f"/v2/queues?name={encoded}"),
        ("GET", f"/v2/queues?{encoded}={encoded}"),
    ):
        answer = api.request(method, path)
        assert answer.status_code < 500, (method, path, answer.text)
    assert api.listed("q") == [1]
