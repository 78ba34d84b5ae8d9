"""`POST /v2/queues/{queue}/share`: what is answered, and what is refused."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.live import TOPICS, Api, LiveServer, expect

DAY_S = 86_400
REFUSED = "Invalid API request"


def share(api: Api, document: Any = None, queue: str = "q") -> dict[str, Any]:
    """What is answered to a good request."""
    path = api.path(queue, "share")
    answer = api.request("POST", path, json={} if document is None else document)
    shared: dict[str, Any] = expect(answer, 200)
    return shared


def signed(api: Api, shared: dict[str, Any]) -> dict[str, str]:
    """The headers of whoever was given this answer, and no others."""
    return {
        "Client-ID": api.client_id,
        "X-Project-ID": shared["project"],
        "URL-Signature": shared["signature"],
        "URL-Methods": ",".join(shared["methods"]),
        "URL-Paths": ",".join(shared["paths"]),
        "URL-Expires": shared["expires"],
    }


def in_s(ahead_s: float) -> str:
    return datetime.fromtimestamp(time.time() + ahead_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def test_the_answer_has_five_members(api: Api) -> None:
    answer = api.request("POST", api.path("q", "share"), json={})
    shared = expect(answer, 200)
    assert answer.headers["content-type"] == "application/json"
    assert set(shared) == {"paths", "methods", "project", "expires", "signature"}
    assert shared["paths"] == ["/v2/queues/q/messages"]
    assert shared["methods"] == ["GET"]
    assert shared["project"] == api.project
    assert re.fullmatch("[0-9a-f]{64}", shared["signature"])
    assert in_s(DAY_S - 60) < shared["expires"] <= in_s(DAY_S)


def test_paths_and_methods_are_sorted_and_absolute(api: Api) -> None:
    wanted = {
        "paths": ["subscriptions", "messages", "claims"],
        "methods": ["POST", "GET", "DELETE"],
    }
    shared = share(api, wanted, "a.b")
    assert shared["paths"] == [
        f"/v2/queues/a.b/{what}" for what in ("claims", "messages", "subscriptions")
    ]
    assert shared["methods"] == ["DELETE", "GET", "POST"]


@pytest.mark.parametrize("nothing", [[], None])
def test_an_empty_list_is_as_good_as_none(api: Api, nothing: object) -> None:
    shared = share(api, {"paths": nothing, "methods": nothing})
    assert (shared["paths"], shared["methods"]) == (["/v2/queues/q/messages"], ["GET"])


def test_the_queue_is_not_created_and_need_not_exist(api: Api) -> None:
    shared = share(api)
    assert api.names() == []
    # With what was shared it may come into existence.
    expect(api.create("q"), 201)
    assert share(api, {"expires": shared["expires"]}) == shared


def test_the_same_is_signed_alike_and_anything_else_otherwise(api: Api) -> None:
    expires = in_s(600)
    one = share(api, {"expires": expires})
    assert share(api, {"expires": expires, "methods": ["GET"], "paths": ["messages"]}) == one
    others = [
        share(api, {"expires": in_s(700)}),
        share(api, {"expires": expires, "methods": ["PUT"]}),
        share(api, {"expires": expires, "paths": ["claims"]}),
        share(api, {"expires": expires}, "other"),
        share(api.stranger(), {"expires": expires}),
    ]
    assert len({other["signature"] for other in [one, *others]}) == 6


@pytest.mark.parametrize(
    ("suffix", "shift_s"),
    [
        ("", 0),
        ("Z", 0),
        (".999999", 0),
        (".5Z", 0),
        ("+00:00", 0),
        ("+02:00", -7200),
        ("-0130", 5400),
    ],
)
def test_times_are_converted_to_utc(api: Api, suffix: str, shift_s: int) -> None:
    local = datetime.fromtimestamp(int(time.time()) + 20_000, UTC)
    shared = share(api, {"expires": local.strftime("%Y-%m-%dT%H:%M:%S") + suffix})
    wanted = datetime.fromtimestamp(local.timestamp() + shift_s, UTC)
    assert shared["expires"] == wanted.strftime("%Y-%m-%dT%H:%M:%S")


def test_a_date_is_its_midnight(api: Api) -> None:
    tomorrow = in_s(2 * DAY_S)[:10]
    assert share(api, {"expires": tomorrow})["expires"] == f"{tomorrow}T00:00:00"


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"expires": "tomorrow"}, "expires"),
        ({"expires": ""}, "expires"),
        ({"expires": "2020-01-01T00:00:00"}, "future"),
        ({"expires": 4_102_444_800}, "expires"),
        ({"expires": "4102444800"}, "expires"),
        ({"expires": "21000101"}, "expires"),
        ({"expires": ["2100-01-01T00:00:00"]}, "expires"),
        ({"expires": "2100-01-01T00:00:00"}, "max_signature_ttl"),
        ({"methods": "GET"}, "methods"),
        ({"methods": ["FETCH"]}, "methods"),
        ({"methods": ["get"]}, "methods"),
        ({"methods": [1]}, "methods"),
        ({"methods": {"GET": True}}, "methods"),
        ({"paths": "messages"}, "paths"),
        ({"paths": ["stats"]}, "paths"),
        ({"paths": ["messages", "purge"]}, "paths"),
        ({"paths": ["../other/messages"]}, "paths"),
        ({"paths": ["/v2/queues/q/messages"]}, "paths"),
        ({"paths": [["messages"]]}, "paths"),
        ({"paths": 1}, "paths"),
        ({"ttl": 60}, "paths, methods and expires"),
        ({"paths": ["messages"], "signature": "x"}, "paths, methods and expires"),
        ([], "object"),
        ([{"paths": ["messages"]}], "object"),
    ],
)
def test_what_is_refused(api: Api, document: Any, said: str) -> None:
    answer = api.request("POST", api.path("q", "share"), json=document)
    assert said in expect(answer, 400, REFUSED)["description"]


@pytest.mark.parametrize(
    "body", ["", " ", "{", "[", "x", "null", "1", '"messages"', "{'paths': []}"]
)
def test_a_body_that_is_no_object_is_refused(api: Api, body: str) -> None:
    expect(api.send("POST", api.path("q", "share"), body), 400, REFUSED)


def test_a_body_is_mandatory(api: Api) -> None:
    expect(api.request("POST", api.path("q", "share")), 400, REFUSED)


def test_a_large_body_is_refused(api: Api) -> None:
    expect(
        api.request("POST", api.path("q", "share"), json={"paths": ["x" * 70_000]}), 400, REFUSED
    )


def test_how_long_is_a_setting(shared_server: Callable[..., LiveServer]) -> None:
    api = shared_server(max_signature_ttl=600).api()
    assert in_s(590) < share(api)["expires"] <= in_s(600)
    share(api, {"expires": in_s(600)})
    answer = api.request("POST", api.path("q", "share"), json={"expires": in_s(602)})
    assert "600 seconds" in expect(answer, 400, REFUSED)["description"]


def test_the_usual_checks_come_first(api: Api) -> None:
    path = api.path("q", "share")
    expect(
        api.request("POST", path, headers={"X-Project-ID": "p"}, json={}),
        400,
        "Missing header value",
    )
    expect(
        api.request("POST", path, headers={**api.headers, "Accept": "text/html"}, json={}),
        406,
        "406 Not Acceptable",
    )
    expect(
        api.request("POST", api.path("q@", "share"), json={}), 400, "Invalid queue identification"
    )


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
def test_sharing_is_a_post(api: Api, method: str) -> None:
    answer = api.request(method, api.path("q", "share"))
    expect(answer, 405, "405 Method Not Allowed")
    assert set(answer.headers["allow"].split(", ")) == {"POST", "OPTIONS"}


def test_topics_are_not_shared(api: Api) -> None:
    topics = api.but(kind=TOPICS)
    expect(topics.request("POST", topics.path("t", "share"), json={}), 404, "404 Not Found")


# -- the key


@pytest.mark.embedded
@pytest.mark.slow
def test_what_was_shared_survives_a_restart(private_server: Callable[..., LiveServer]) -> None:
    server = private_server()
    api = server.api(project="mine")
    api.post_bodies("q", "hello")
    shared = share(api)
    key = server.database.with_name("nusku.db.key")
    before = key.read_bytes()
    server.kill()
    again = private_server()
    answer = again.api().get(f"{shared['paths'][0]}?echo=true", headers=signed(api, shared))
    assert [message["body"] for message in expect(answer, 200)["messages"]] == ["hello"]
    assert key.read_bytes() == before
    assert share(again.api(project="mine"), {"expires": shared["expires"]}) == shared


@pytest.mark.embedded
def test_another_server_has_another_key(api: Api, shared_server: Callable[..., LiveServer]) -> None:
    shared = share(api)
    expect(api.get(shared["paths"][0], headers=signed(api, shared)), 200)
    other = shared_server(max_signature_ttl=600).api()
    expect(other.get(shared["paths"][0], headers=signed(api, shared)), 404, "404 Not Found")
