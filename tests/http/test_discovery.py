"""Where a client finds out what there is: `/` and `/v2/` (contract, section 2)."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urljoin

import pytest

from tests.live import Api, LiveServer, expect, raw_exchange

pytestmark = pytest.mark.embedded  # about no store at all

QUEUE = "/v2/queues/{queue_name}"
MESSAGES = f"{QUEUE}/messages"
CLAIMS = f"{QUEUE}/claims"
NAME = {"queue_name": "param/queue_name"}
MESSAGE = {**NAME, "message_id": "param/message_id"}
CLAIM = {**NAME, "claim_id": "param/claim_id"}
SUBSCRIPTIONS = f"{QUEUE}/subscriptions"
SUBSCRIPTION = {**NAME, "subscriptions_id": "param/subscriptions_id"}

# name: (template, allow, variables, answers to a POST-like body are described)
RESOURCES: dict[str, tuple[str, set[str], dict[str, str], bool]] = {
    "queues": (
        "/v2/queues{?marker,limit,detailed}",
        {"GET"},
        {"marker": "param/marker", "limit": "param/queue_limit", "detailed": "param/detailed"},
        False,
    ),
    "queue": (QUEUE, {"GET", "PUT", "DELETE", "PATCH"}, NAME, False),
    "queue_stats": (f"{QUEUE}/stats", {"GET"}, NAME, False),
    "queue_share": (f"{QUEUE}/share", {"POST"}, NAME, True),
    "queue_purge": (f"{QUEUE}/purge", {"POST"}, NAME, True),
    "messages": (
        MESSAGES + "{?marker,limit,echo,include_claimed}",
        {"GET"},
        {
            **NAME,
            "marker": "param/marker",
            "limit": "param/messages_limit",
            "echo": "param/echo",
            "include_claimed": "param/include_claimed",
        },
        False,
    ),
    "post_messages": (MESSAGES, {"POST"}, NAME, True),
    "messages_delete": (
        MESSAGES + "{?ids,pop}",
        {"DELETE"},
        {**NAME, "ids": "param/ids", "pop": "param/pop"},
        False,
    ),
    "message_delete": (
        MESSAGES + "/{message_id}{?claim}",
        {"DELETE"},
        {**MESSAGE, "claim": "param/claim_id"},
        False,
    ),
    "message_get": (MESSAGES + "/{message_id}", {"GET"}, MESSAGE, False),
    "claim": (CLAIMS + "/{claim_id}", {"GET"}, CLAIM, False),
    "post_claim": (CLAIMS + "{?limit}", {"POST"}, {**NAME, "limit": "param/claim_limit"}, True),
    "patch_claim": (CLAIMS + "/{claim_id}", {"PATCH"}, CLAIM, True),
    "delete_claim": (CLAIMS + "/{claim_id}", {"DELETE"}, CLAIM, False),
    "subscriptions_get": (
        SUBSCRIPTIONS + "{?marker,limit}",
        {"GET"},
        {**NAME, "marker": "param/marker", "limit": "param/subscription_limit"},
        False,
    ),
    "subscriptions_post": (
        SUBSCRIPTIONS,
        {"POST"},
        {**NAME, "limit": "param/subscription_limit"},
        True,
    ),
    "subscription": (
        SUBSCRIPTIONS + "/{subscriptions_id}",
        {"GET", "DELETE"},
        SUBSCRIPTION,
        False,
    ),
    "subscription_patch": (
        SUBSCRIPTIONS + "/{subscriptions_id}",
        {"PATCH"},
        SUBSCRIPTION,
        True,
    ),
    "ping": ("/v2/ping", {"GET"}, {}, False),
}


@pytest.fixture
def resources(api: Api) -> dict[str, Any]:
    """The home document: relation name to entry."""
    home = expect(api.get("/v2/"), 200)
    assert set(home) == {"resources"}
    return {name.removeprefix("rel/"): entry for name, entry in home["resources"].items()}


def test_the_root_lists_one_version_without_any_header(server: LiveServer) -> None:
    answer = raw_exchange(server, "GET", "/")
    assert answer.status == 300
    assert answer.headers["content-type"].startswith("application/json")


def test_the_versions_document_is_exactly_the_contracts(api: Api) -> None:
    assert expect(api.get("/", headers={}), 300) == {
        "versions": [
            {
                "id": "2",
                "status": "CURRENT",
                "updated": "2014-9-24T04:06:47Z",
                "media-types": [
                    {
                        "base": "application/json",
                        "type": "application/vnd.openstack.messaging-v2+json",
                    }
                ],
                "links": [{"href": "/v2/", "rel": "self"}],
            }
        ]
    }


def test_the_root_still_checks_accept(api: Api) -> None:
    expect(api.get("/", headers={"Accept": "text/html"}), 406, "406 Not Acceptable")


def test_the_root_cannot_be_posted_to(api: Api) -> None:
    expect(api.request("POST", "/", headers={}), 405)


def test_the_home_document_is_json_home_and_may_be_cached(api: Api) -> None:
    answer = api.get("/v2/")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json-home"
    assert answer.headers["Cache-Control"] == "max-age=86400"


def test_the_home_document_needs_client_id_and_project(api: Api) -> None:
    expect(api.get("/v2/", headers={"X-Project-ID": "p"}), 400, "Missing header value")
    expect(api.get("/v2/", headers={"Client-ID": api.client_id}), 400, "Project-Id Missing")


@pytest.mark.parametrize("name", RESOURCES)
def test_a_resource_is_described_as_the_contract_says(name: str, resources: dict[str, Any]) -> None:
    template, allow, variables, accepts_post = RESOURCES[name]
    entry = resources[name]
    assert entry["href-template"] == template
    assert set(entry["hints"]["allow"]) == allow
    assert len(entry["hints"]["allow"]) == len(allow)
    assert entry["hints"]["formats"] == {"application/json": {}}
    assert entry["hints"].get("accept-post") == (["application/json"] if accepts_post else None)
    assert entry.get("href-vars", {}) == variables


def test_health_is_listed_by_a_plain_href(resources: dict[str, Any]) -> None:
    health = resources["health"]
    assert health["href"] == "/v2/health"
    assert "href-template" not in health
    assert health["hints"]["allow"] == ["GET"]


def test_every_template_resolves_against_the_root_of_the_service(
    resources: dict[str, Any],
) -> None:
    for entry in resources.values():
        target = entry.get("href-template") or entry["href"]
        assert target.startswith("/v2")
        for base in ("https://host/v2", "https://host/v2/"):
            assert urljoin(base, target) == f"https://host{target}"


def test_only_what_is_routed_is_listed(api: Api, resources: dict[str, Any]) -> None:
    for name, entry in resources.items():
        target = entry.get("href-template") or entry["href"]
        path = re.sub(r"\{\?[^}]*\}", "", target)
        path = re.sub(r"\{[^}]*\}", "x", path)
        # OPTIONS tells what is routed without doing anything.
        assert "Allow" in api.request("OPTIONS", path).headers, name
