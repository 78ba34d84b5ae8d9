"""Policy, grants and audit log over WebSocket: the same as over HTTP."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from nusku.broker.grants import RIGHTS
from nusku.websocket.actions import ACTIONS
from tests.governed import Governed
from tests.live import LiveServer, expect
from tests.websocket.peer import Peer

NEEDED = {
    "queue_name": "q",
    "message_id": "x",
    "message_ids": ["x"],
    "messages": [{"body": 1}],
    "claim_id": "x",
    "subscription_id": "x",
}


def forbidden(peer: Peer, action: str, **body: Any) -> bool:
    needed = {name: NEEDED[name] for name in ACTIONS[action].required}
    reply = peer.ask(action, **{**needed, **body})
    assert reply.status < 500
    return reply.status == 403


@pytest.mark.parametrize("may", [[], *([right] for right in RIGHTS), [*RIGHTS]])
@pytest.mark.parametrize("binary", [False, True])
def test_a_right_opens_its_actions_and_no_others(
    may: list[str], binary: bool, server: LiveServer
) -> None:
    owner = server.api()
    opened = {operation for right in may for operation in RIGHTS[right]}  # type: ignore[index]  # of the names above
    with Peer(server, binary=binary) as guest:
        guest.extra["Queue-Project-ID"] = owner.project
        grants = [{"project": guest.project, "may": may}] if may else []
        expect(owner.create("q", {"_grants": grants}), 201)
        wrong = [
            name
            for name, action in ACTIONS.items()
            if forbidden(guest, name) is (action.operation in opened)
        ]
        assert wrong == []
        assert forbidden(guest, "message_post", queue_name="other")


def test_a_frame_is_for_the_project_that_it_names(server: LiveServer) -> None:
    """One with the header, one without, over one connection."""
    owner = server.api()
    with Peer(server) as guest:
        grants = [{"project": guest.project, "may": ["post", "read"]}]
        expect(owner.create("q", {"_grants": grants}), 201)
        for header, body in (({"Queue-Project-ID": owner.project}, "theirs"), ({}, "own")):
            guest.extra = header
            guest.done("message_post", 201, queue_name="q", messages=[{"body": body}])
        assert owner.listed("q") == ["theirs"]
        own = guest.done("message_list", 200, queue_name="q", echo=True)["messages"]
        assert [message["body"] for message in own] == ["own"]


def test_the_policy_file_counts(governed: Governed) -> None:
    with Peer(governed.server) as peer:
        assert forbidden(peer, "message_post")
        assert forbidden(peer, "claim_create")
        assert not forbidden(peer, "message_list")
        peer.extra["X-Roles"] = "writer"
        assert not forbidden(peer, "message_post")
        assert forbidden(peer, "claim_create")


def test_changes_and_refusals_are_noted(governed: Governed) -> None:
    name = uuid.uuid4().hex
    with Peer(governed.server) as peer:
        peer.extra["X-Roles"] = "member"
        peer.done("queue_create", 201, queue_name=name)
        assert forbidden(peer, "message_post", queue_name=name)
        lines = governed.noted(peer.project)
    assert [
        (line["operation"], line["target"], line["outcome"], line["roles"]) for line in lines
    ] == [
        ("queues:create", f"/v2/queues/{name}", "done", ["member"]),
        ("messages:create", f"/v2/queues/{name}", "refused", ["member"]),
    ]
