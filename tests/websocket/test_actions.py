"""What each action does and answers (contract websocket.md section 5), in both spellings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from nusku.websocket.actions import ACTIONS
from tests.live import LiveServer, expect
from tests.websocket.conftest import Connect
from tests.websocket.peer import BINARY, TEXT, Peer

NOWHERE = {"messages": {"claimed": 0, "free": 0, "total": 0}}


def stored(server: LiveServer, peer: Peer) -> Any:
    """The same project over HTTP."""
    return server.api(project=peer.project, client_id=peer.client_id)


# -- queues


def test_queues_are_created_listed_shown_and_deleted(peer: Peer) -> None:
    assert peer.done("queue_create", 201, queue_name="q", metadata={"a": 1}) == "Queue q created."
    assert peer.done("queue_create", 204, queue_name="q", metadata={"b": 2}) == "Queue q created."
    assert peer.done("queue_list", 200) == {"queues": [{"name": "q"}]}
    detailed = peer.done("queue_list", 200, detailed=True)
    assert detailed == {"queues": [{"name": "q", "metadata": {"a": 1}}]}
    assert peer.done("queue_get", 200, queue_name="q") == {"a": 1}
    assert peer.done("queue_get", 200, queue_name="none") == {}
    assert peer.done("queue_delete", 204, queue_name="q") == "Queue q removed."
    assert peer.done("queue_list", 200) == {"queues": []}


def test_a_list_of_queues_takes_no_body(peer: Peer) -> None:
    peer.send(peer.request("queue_list"))
    assert peer.reply().body == {"queues": []}


def test_queues_are_paged(peer: Peer) -> None:
    for name in "abc":
        peer.done("queue_create", 201, queue_name=name)
    first = peer.done("queue_list", 200, limit=2)["queues"]
    rest = peer.done("queue_list", 200, limit=2, marker=first[-1]["name"])["queues"]
    assert [queue["name"] for queue in [*first, *rest]] == ["a", "b", "c"]
    for limit in (0, 21, -1):
        assert peer.ask("queue_list", limit=limit).status == 400


@pytest.mark.parametrize("name", ["", "a b", "ä", "x" * 65, "..", "a/b", "a\0"])
def test_a_name_that_is_none_can_be_asked_for_but_not_created(peer: Peer, name: str) -> None:
    for action in ("queue_create", "subscription_create"):
        refused = peer.ask(action, queue_name=name)
        assert (refused.status, refused.body["error"]) == (400, None)
        assert refused.body["exception"]
    assert peer.ask("message_post", queue_name=name, messages=[{"body": 1}]).status == 400
    assert peer.done("queue_get", 200, queue_name=name) == {}
    assert peer.done("queue_get_stats", 404, queue_name=name) == NOWHERE
    assert peer.done("message_list", 200, queue_name=name) == {"messages": []}
    assert peer.done("queue_delete", 204, queue_name=name) == f"Queue {name} removed."


@pytest.mark.parametrize("key", ["_default_message_ttl", "_max_messages_post_size"])
def test_reserved_keys_are_checked(peer: Peer, key: str) -> None:
    refused = peer.ask("queue_create", queue_name="q", metadata={key: 1 << 40})
    assert (refused.status, refused.body["error"]) == (400, None)


def test_metadata_is_limited(peer: Peer) -> None:
    fits = {"a": "x" * (65_536 - len('{"a":""}'))}
    peer.done("queue_create", 201, queue_name="q", metadata=fits)
    peer.done("queue_create", 400, queue_name="r", metadata={"a": fits["a"] + "x"})


def test_statistics(peer: Peer) -> None:
    assert peer.done("queue_get_stats", 404, queue_name="q") == NOWHERE
    peer.done("queue_create", 201, queue_name="q")
    assert peer.done("queue_get_stats", 200, queue_name="q") == NOWHERE
    first, second = peer.post("q", 1, 2)
    peer.done("claim_create", 201, queue_name="q", limit=1)
    told = peer.done("queue_get_stats", 200, queue_name="q")["messages"]
    assert (told["claimed"], told["free"], told["total"]) == (1, 1, 2)
    assert (told["oldest"]["id"], told["newest"]["id"]) == (first, second)
    assert set(told["oldest"]) == {"id", "age", "created"}


def test_purging_takes_messages_subscriptions_or_both(peer: Peer) -> None:
    peer.post("q", 1)
    peer.done("subscription_create", 201, queue_name="q")
    assert peer.done("queue_purge", 204, queue_name="q", resource_types=["messages"]) == {}
    assert peer.done("message_list", 200, queue_name="q", echo=True) == {"messages": []}
    assert peer.done("subscription_list", 200, queue_name="q")["subscriptions"]
    assert peer.done("queue_purge", 204, queue_name="q") == {}
    assert peer.done("subscription_list", 200, queue_name="q") == {"subscriptions": []}
    peer.done("queue_purge", 400, queue_name="q", resource_types=["queues"])
    peer.done("queue_purge", 204, queue_name="none")


# -- messages


def test_messages_are_posted_listed_and_shown(peer: Peer, server: LiveServer) -> None:
    bodies: list[Any] = [{"a": [1, None, "ü"]}, "", None, 1.5, [], 2**62]
    ids = peer.post("q", *bodies, ttl=300)
    page = peer.done("message_list", 200, queue_name="q", echo=True)
    assert set(page) == {"messages"}
    assert [m["id"] for m in page["messages"]] == ids
    assert [m["body"] for m in page["messages"]] == bodies
    first = page["messages"][0]
    assert first == {"id": ids[0], "claim_id": None, "ttl": 300, "age": 0, "body": bodies[0]}
    assert peer.done("message_get", 200, queue_name="q", message_id=ids[0]) == {"messages": first}
    several = peer.done("message_get_many", 200, queue_name="q", message_ids=[ids[1], "x", ids[0]])
    assert [m["id"] for m in several["messages"]] == [ids[1], ids[0]]
    assert stored(server, peer).listed("q") == bodies


def test_what_is_not_there_is_not_found(peer: Peer) -> None:
    gone = peer.ask("message_get", queue_name="q", message_id="x")
    assert gone.status == 404
    assert gone.body["error"] == gone.body["exception"]
    none = peer.done("message_get_many", 200, queue_name="q", message_ids=["x"])
    assert none == {"messages": []}
    peer.done("message_get_many", 400, queue_name="q", message_ids=["x"] * 21)
    peer.done("message_get_many", 400, queue_name="q", message_ids=[1])


def test_a_list_hides_what_one_has_posted_what_is_claimed_and_what_is_delayed(
    peer: Peer, connect: Connect
) -> None:
    reader = connect(project=peer.project)
    peer.post("q", "claimed")
    peer.done("claim_create", 201, queue_name="q")
    peer.post("q", "free")
    peer.post("q", "delayed", delay=100)

    def bodies(who: Peer, **options: bool) -> list[Any]:
        page = who.done("message_list", 200, queue_name="q", **options)
        return [m["body"] for m in page["messages"]]

    assert bodies(peer) == []
    assert bodies(peer, echo=True) == ["free"]
    assert bodies(reader) == ["free"]
    assert bodies(reader, include_claimed=True) == ["claimed", "free"]
    assert bodies(reader, include_delayed=True) == ["free", "delayed"]


def test_markers_are_ids(peer: Peer) -> None:
    ids = peer.post("q", 1, 2, 3)
    page = peer.done("message_list", 200, queue_name="q", echo=True, marker=ids[0], limit=1)
    assert [m["id"] for m in page["messages"]] == [ids[1]]
    nothing = peer.done("message_list", 200, queue_name="q", echo=True, marker="nonsense")
    assert nothing == {"messages": []}


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({}, 'Bad request. Missing "body" field.'),
        ({"body": 1, "ttl": "60"}, 'Bad request. The value of the "ttl" field must be a int.'),
        ({"body": 1, "ttl": True}, 'Bad request. The value of the "ttl" field must be a int.'),
        ({"body": 1, "ttl": None}, 'Bad request. The value of the "ttl" field must be a int.'),
        ({"body": 1, "delay": 1.5}, 'Bad request. The value of the "delay" field must be a int.'),
        ("text", "Bad request. A message must be an object."),
    ],
)
def test_a_message_that_is_none_is_refused(peer: Peer, message: Any, text: str) -> None:
    refused = peer.ask("message_post", queue_name="q", messages=[{"body": 1}, message])
    assert (refused.status, refused.body) == (400, {"exception": text, "error": None})
    assert peer.done("message_list", 200, queue_name="q", echo=True) == {"messages": []}


def test_values_out_of_range_are_refused(peer: Peer) -> None:
    for fields in ({"ttl": 59}, {"ttl": 1_209_601}, {"delay": 901}, {"delay": -1}):
        refused = peer.ask("message_post", queue_name="q", messages=[{"body": 1, **fields}])
        assert (refused.status, refused.body["error"]) == (400, None)
    peer.done("message_post", 400, queue_name="q", messages=[])


def test_a_post_is_limited(peer: Peer) -> None:
    room = 262_144 - len('[{"body":""}]')
    peer.done("message_post", 201, queue_name="q", messages=[{"body": "x" * room}])
    peer.done("message_post", 400, queue_name="q", messages=[{"body": "x" * (room + 1)}])


def test_messages_are_deleted_as_over_http(peer: Peer) -> None:
    free, held = peer.post("q", 1, 2)
    peer.done("message_delete", 204, queue_name="q", message_id="unknown")
    claim = peer.done("claim_create", 201, queue_name="q")["claim_id"]
    refused = peer.ask("message_delete", queue_name="q", message_id=held)
    assert refused.status == 403
    assert refused.body["error"]
    refused = peer.ask("message_delete", queue_name="q", message_id=held, claim_id="other")
    assert refused.status == 400
    assert refused.body["error"]
    peer.done("message_delete", 204, queue_name="q", message_id=held, claim_id=claim)
    assert peer.done("message_delete_many", 204, queue_name="q", message_ids=[free, held]) == {}
    assert peer.done("queue_get_stats", 200, queue_name="q") == NOWHERE


def test_messages_are_popped(peer: Peer) -> None:
    ids = peer.post("q", "a", "b", ttl=100)
    popped = peer.done("message_delete_many", 200, queue_name="q", pop=1)["messages"]
    assert popped == [
        {"id": ids[0], "age": 0, "ttl": 100, "body": "a", "claim_id": None, "claim_count": 0}
    ]
    for body in ({}, {"pop": 0}, {"pop": 21}, {"pop": 1, "message_ids": ids}):
        peer.done("message_delete_many", 400, queue_name="q", **body)


def test_an_encrypted_queue_looks_like_any_other(peer: Peer, server: LiveServer) -> None:
    peer.done("queue_create", 201, queue_name="q", metadata={"_enable_encrypt_messages": True})
    peer.done("subscription_create", 201, queue_name="q")
    body = {"secret": ["canary in a socket", None]}
    (id_,) = peer.post("q", body)
    assert peer.told(1) == [body]
    listed = peer.done("message_list", 200, queue_name="q", echo=True)["messages"]
    got = peer.done("message_get", 200, queue_name="q", message_id=id_)["messages"]
    claimed = peer.done("claim_create", 201, queue_name="q")["messages"]
    assert [m["body"] for m in (*listed, got, *claimed)] == [body] * 3
    stored_there = b"".join(path.read_bytes() for path in server.folder.glob("nusku.db*"))
    assert b"canary in a socket" not in stored_there


# -- claims


def test_claims_are_made_shown_renewed_and_released(peer: Peer) -> None:
    assert peer.done("claim_create", 204, queue_name="q") == {"claim_id": None}
    ids = peer.post("q", 1, 2, ttl=300)
    made = peer.done("claim_create", 201, queue_name="q", ttl=100, grace=100, limit=1)
    claim = made["claim_id"]
    message = {"id": ids[0], "claim_id": claim, "ttl": 300, "age": 0, "body": 1}
    assert made == {"claim_id": claim, "messages": [message]}
    shown = peer.done("claim_get", 200, queue_name="q", claim_id=claim)
    assert shown == {"age": 0, "ttl": 100, "messages": [message]}
    text = peer.done("claim_update", 204, queue_name="q", claim_id=claim, ttl=200)
    assert text == f"Claim {claim} updated."
    assert peer.done("claim_get", 200, queue_name="q", claim_id=claim)["ttl"] == 200
    assert peer.done("claim_delete", 204, queue_name="q", claim_id=claim) == (
        f"Claim {claim} deleted."
    )
    for action in ("claim_get", "claim_update"):
        gone = peer.ask(action, queue_name="q", claim_id=claim)
        assert (gone.status, gone.body["error"]) == (404, f"Claim {claim} does not exist.")
    for fields in ({"ttl": 59}, {"grace": 43_201}, {"limit": 21}):
        peer.done("claim_create", 400, queue_name="q", **fields)


# -- subscriptions of others


def test_a_subscriber_elsewhere_is_subscribed_as_over_http(peer: Peer, server: LiveServer) -> None:
    hook = "http://hooks.example/orders"
    made = peer.done("subscription_create", 201, queue_name="q", subscriber=hook, ttl=600)
    assert made["message"] == "Subscription q created."
    again = peer.done("subscription_create", 409, queue_name="q", subscriber=hook)
    assert again == "Subscription q not created."
    id_ = made["subscription_id"]
    shown = peer.done("subscription_get", 200, queue_name="q", subscription_id=id_)
    listed = peer.done("subscription_list", 200, queue_name="q")
    assert listed == {"subscriptions": [shown]}
    over_http = expect(stored(server, peer).get(f"/v2/queues/q/subscriptions/{id_}"), 200)
    assert {**over_http, "age": shown["age"]} == shown
    assert peer.done("subscription_delete", 204, queue_name="q", subscription_id=id_) == (
        f"Subscription {id_} removed."
    )
    gone = peer.ask("subscription_get", queue_name="q", subscription_id=id_)
    text = f"Subscription {id_} for queue q does not exist."
    assert (gone.status, gone.body["error"]) == (404, text)


@pytest.mark.parametrize(
    "body",
    [
        {"subscriber": "ftp://hooks.example/"},
        {"subscriber": "http://127.0.0.1/"},
        {"subscriber": "http://hooks.example/", "ttl": 59},
        {"ttl": 59},
        {"options": {"_retry_policy": 1}},
        {"subscriber": "trust+http://hooks.example/"},
    ],
)
def test_what_cannot_be_subscribed_is_refused(peer: Peer, body: dict[str, Any]) -> None:
    refused = peer.ask("subscription_create", queue_name="q", **body)
    assert (refused.status, refused.body["error"]) == (400, None)


# -- for all of them


def test_the_documentation_tells_of_each_with_what_it_takes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "live.md").read_text()
    rows = re.finditer(r"^\| `(\w+_\w+)` \|(.*?)\|", page, re.MULTILINE)
    told = {row[1]: row[2] for row in rows}
    assert told.keys() == ACTIONS.keys()
    for name, action in ACTIONS.items():
        members = set(re.findall(r"`(\w+)`", told[name]))
        assert members == action.fields.keys() - {"queue_name"}, name


@pytest.mark.parametrize("action", ACTIONS)
def test_bodies_have_to_have_what_they_need_and_nothing_of_another_type(
    connect: Connect, action: str
) -> None:
    peer, told = connect(), ACTIONS[action]
    examples = {str: "x", int: 1, bool: True, list: [], dict: {}}
    good = {name: examples[kind] for name, kind in told.fields.items()}
    for name, kind in told.fields.items():
        for wrong in (None, *(value for of, value in examples.items() if of is not kind)):
            refused = peer.ask(action, **{**good, name: wrong})
            assert (refused.status, refused.body) == (400, {"error": "Schema validation failed."})
    for name in told.required:
        refused = peer.ask(action, **{k: v for k, v in good.items() if k != name})
        assert (refused.status, refused.body) == (400, {"error": "Schema validation failed."})


@pytest.mark.parametrize("action", ACTIONS)
def test_a_stranger_to_the_project_sees_and_changes_nothing(connect: Connect, action: str) -> None:
    owner, stranger = connect(), connect()
    (message,) = owner.post("q", "secret")
    owner.done("queue_create", 204, queue_name="q")
    hook = {"queue_name": "q", "subscriber": "http://hooks.example/"}
    subscription = owner.done("subscription_create", 201, **hook)["subscription_id"]
    claim = owner.done("claim_create", 201, queue_name="q", ttl=100)["claim_id"]
    before = [
        owner.done("claim_get", 200, queue_name="q", claim_id=claim)["messages"],
        owner.done("subscription_list", 200, queue_name="q"),
        owner.done("queue_list", 200, detailed=True),
    ]
    values = {
        "queue_name": "q",
        "message_id": message,
        "message_ids": [message],
        "claim_id": claim,
        "claim_ids": [claim],
        "subscription_id": subscription,
        "messages": [{"body": "mine"}],
        "ttl": 200,
    }
    fields = ACTIONS[action].fields
    reply = stranger.ask(action, **{k: v for k, v in values.items() if k in fields})
    assert "secret" not in str(reply.body)
    assert before == [
        owner.done("claim_get", 200, queue_name="q", claim_id=claim)["messages"],
        owner.done("subscription_list", 200, queue_name="q"),
        owner.done("queue_list", 200, detailed=True),
    ]


def test_replies_are_spelled_like_what_they_answer(connect: Connect) -> None:
    peer = connect()
    for binary in (False, True, False):
        peer.send(peer.request("queue_list"), binary=binary)
        assert peer.reply().opcode == (BINARY if binary else TEXT)
