"""Over a socket encrypted queues cannot be told from others (semantics, 10.8)."""

from __future__ import annotations

from typing import Any

from tests.live import LiveServer
from tests.websocket.peer import Peer

BODIES: list[Any] = ["", None, "N.", 0, [], {"a": [None, "é"]}]


def test_all_actions_show_what_was_posted(peer: Peer, server: LiveServer) -> None:
    peer.done("queue_create", 201, queue_name="q", metadata={"_enable_encrypt_messages": True})
    peer.done("subscription_create", 201, queue_name="q")
    ids = peer.post("q", *BODIES)
    assert peer.told(len(BODIES)) == BODIES
    listed = peer.done("message_list", 200, queue_name="q", echo=True)["messages"]
    several = peer.done("message_get_many", 200, queue_name="q", message_ids=ids)["messages"]
    one = peer.done("message_get", 200, queue_name="q", message_id=ids[-1])["messages"]
    claim = peer.done("claim_create", 201, queue_name="q", ttl=100, grace=100)
    held = peer.done("claim_get", 200, queue_name="q", claim_id=claim["claim_id"])
    for messages in (listed, several, claim["messages"], held["messages"]):
        assert [message["body"] for message in messages] == BODIES
    assert one["body"] == BODIES[-1]
    assert server.api(project=peer.project).listed("q", "?echo=true&include_claimed=true") == BODIES
    peer.done("claim_delete", 204, queue_name="q", claim_id=claim["claim_id"])
    popped = peer.done("message_delete_many", 200, queue_name="q", pop=20)["messages"]
    assert [message["body"] for message in popped] == BODIES
