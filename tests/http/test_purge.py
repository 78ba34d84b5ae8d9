"""Emptying a queue (contract, 3.8)."""

from __future__ import annotations

import pytest

from tests.live import QUEUES, Api, expect, next_link

REFUSED = "Invalid API request"


def filled(api: Api) -> list[str]:
    """Post free and delayed messages (and claim some, where claims exist); return all ids."""
    ids = api.post_bodies("q", *range(30))
    ids += api.post_bodies("q", *range(5), delay=900)
    if api.kind is QUEUES:
        api.claimed("q", "?limit=20")
    return ids


@pytest.mark.parametrize(
    "document",
    [
        None,
        '{"resource_types": ["messages", "subscriptions"]}',
        '{"resource_types": ["messages"]}',
        '{"resource_types": ["subscriptions", "messages"]}',
        '{"resource_types": ["messages", "messages"]}',
        '{"resource_types": ["messages"], "more": 1}',
    ],
)
def test_all_messages_go_free_claimed_or_delayed(document: str | None, either: Api) -> None:
    expect(either.create("q", {"colour": "red"}), 201)
    ids = filled(either)
    path = either.path("q", "purge")
    if document is None:
        answer = either.request("POST", path)
    else:
        answer = either.send("POST", path, document)
    expect(answer, 204)
    assert either.stats("q")["total"] == 0
    everything = "?echo=true&include_claimed=true&include_delayed=true"
    assert either.listed("q", everything) == []
    for message_id in (ids[0], ids[-1]):
        expect(either.message("q", message_id), 404)
    assert expect(either.show("q"), 200)["colour"] == "red"
    assert either.names() == ["q"]


@pytest.mark.parametrize(
    "document", ['{"resource_types": []}', '{"resource_types": ["subscriptions"]}']
)
def test_messages_stay_unless_they_are_named(document: str, either: Api) -> None:
    filled(either)
    expect(either.send("POST", either.path("q", "purge"), document), 204)
    assert either.stats("q")["total"] == 35


def test_a_purged_claim_is_gone(api: Api) -> None:
    api.post_bodies("q", 1, 2)
    claim = api.claimed("q")
    expect(api.purge("q", "messages"), 204)
    expect(api.show_claim("q", claim.claim_id), 404)
    expect(api.renew("q", claim.claim_id, ttl=60), 404)
    expect(api.release("q", claim.claim_id), 204)
    expect(api.delete_message("q", claim.ids[0], claim.claim_id), 204)


@pytest.mark.parametrize(
    "document",
    [
        "{}",
        "[]",
        '["messages"]',
        '{"types": ["messages"]}',
        '{"resource_types": null}',
        '{"resource_types": "messages"}',
        '{"resource_types": {"messages": true}}',
        '{"resource_types": 1}',
        '{"resource_types": true}',
        '{"resource_types": ["message"]}',
        '{"resource_types": ["messages", "claims"]}',
        '{"resource_types": ["messages", null]}',
        '{"resource_types": ["messages", 1]}',
        '{"resource_types": [["messages"]]}',
        '{"resource_types": [{}]}',
        '{"resource_types": [""]}',
        '{"resource_types": ["MESSAGES"]}',
    ],
)
def test_anything_but_the_two_types_is_refused(document: str, either: Api) -> None:
    filled(either)
    expect(either.send("POST", either.path("q", "purge"), document), 400)
    assert either.stats("q")["total"] == 35


@pytest.mark.parametrize("document", ["{}", "[]", '{"resource_types": ["nosuchtype"]}'])
def test_a_missing_key_or_an_unknown_type_is_an_invalid_request(document: str, api: Api) -> None:
    expect(api.send("POST", api.path("q", "purge"), document), 400, REFUSED)


@pytest.mark.parametrize("types", [(), ("messages",), ("subscriptions",)])
def test_purging_a_missing_queue_is_204(types: tuple[str, ...], either: Api) -> None:
    expect(either.purge("q", *types), 204)
    assert either.names() == []


def test_positions_go_on_after_a_purge(either: Api) -> None:
    ids = either.post_bodies("q", 1, 2, 3)
    link = next_link(expect(either.list_messages("q", "?echo=true"), 200))
    assert link is not None
    expect(either.purge("q"), 204)
    assert expect(either.get(link), 200)["messages"] == []
    new = either.post_bodies("q", 4, 5)
    assert not set(ids) & set(new)
    assert [m["body"] for m in expect(either.get(link), 200)["messages"]] == [4, 5]
    assert either.listed("q", f"?echo=true&marker={ids[0]}") == [4, 5]


def test_a_purge_touches_no_other_queue_or_project(either: Api) -> None:
    either.post_bodies("q", 1)
    either.post_bodies("other", 2)
    stranger = either.stranger()
    stranger.post_bodies("q", 3)
    expect(either.purge("q"), 204)
    assert either.listed("other") == [2]
    assert stranger.listed("q") == [3]
