"""Many requests on their way at once: each is answered, in the order in which they were sent."""

from __future__ import annotations

import json
from typing import Any

from tests.live import LiveServer
from tests.websocket.conftest import Connect
from tests.websocket.peer import CLOSE, PING, PONG, Closed, Frame, Peer, frame_bytes

NUMBER = 100


def ahead(peer: Peer, *requests: tuple[str, dict[str, Any]]) -> list[Any]:
    """Send all of these in one go, then read the replies."""
    documents = [peer.request(action, body) for action, body in requests]
    peer.socket.sendall(b"".join(frame_bytes(0x1, json.dumps(d).encode()) for d in documents))
    replies = [peer.reply() for _ in documents]
    assert [reply.request["action"] for reply in replies] == [action for action, _ in requests]
    assert [reply.request["body"] for reply in replies] == [body for _, body in requests]
    return replies


def post(queue: str, *bodies: Any, **fields: Any) -> tuple[str, dict[str, Any]]:
    messages = [{"body": body, **fields} for body in bodies]
    return "message_post", {"queue_name": queue, "messages": messages}


def test_posts_stay_in_order(connect: Connect, server: LiveServer) -> None:
    peer = connect()
    replies = ahead(peer, *(post("q", n) for n in range(NUMBER)))
    assert {reply.status for reply in replies} == {201}
    ids = [id_ for reply in replies for id_ in reply.body["message_ids"]]
    assert len(set(ids)) == NUMBER
    assert ids == sorted(ids)
    api, found, marker = server.api(project=peer.project), [], ""
    while page := api.list_messages("q", f"?limit=20&marker={marker}").json()["messages"]:
        found += page
        marker = page[-1]["id"]
    assert [(m["id"], m["body"]) for m in found] == list(zip(ids, range(NUMBER), strict=True))


def test_each_post_is_answered_with_its_own_ids(connect: Connect) -> None:
    peer = connect()
    sizes = [1, 3, 2, 5, 1]
    replies = ahead(peer, *(post("q", *range(size)) for size in sizes))
    assert [len(reply.body["message_ids"]) for reply in replies] == sizes


def test_a_post_that_is_refused_does_not_take_others_with_it(connect: Connect) -> None:
    peer = connect()
    bad = ("message_post", {"queue_name": "q", "messages": [{"ttl": 60}]})
    short = post("q", 1, ttl=1)
    empty = ("message_post", {"queue_name": "q", "messages": []})
    wrong = ("message_post", {"queue_name": "q", "messages": {}})
    replies = ahead(peer, post("q", 1), bad, post("q", 2), short, empty, wrong, post("q", 3))
    assert [reply.status for reply in replies] == [201, 400, 201, 400, 400, 400, 201]
    page = peer.done("message_list", 200, queue_name="q", echo=True)
    assert [m["body"] for m in page["messages"]] == [1, 2, 3]


def test_what_depends_on_what_came_before_sees_it(connect: Connect) -> None:
    peer = connect()
    of = {"queue_name": "q"}
    replies = ahead(
        peer,
        ("queue_create", {**of, "metadata": {"a": 1}}),
        ("queue_get", of),
        post("q", "first"),
        ("message_list", {**of, "echo": True}),
        post("r", "elsewhere"),
        post("q", "second"),
        ("message_delete_many", {**of, "pop": 20}),
        ("queue_get_stats", of),
        ("queue_delete", of),
        ("queue_get_stats", of),
    )
    assert [r.status for r in replies] == [201, 200, 201, 200, 201, 201, 200, 200, 204, 404]
    assert replies[1].body == {"a": 1}
    assert [m["body"] for m in replies[3].body["messages"]] == ["first"]
    assert [m["body"] for m in replies[6].body["messages"]] == ["first", "second"]
    assert replies[7].body["messages"]["total"] == 0


def test_claims_and_deletions_ahead(connect: Connect) -> None:
    peer = connect()
    ids = peer.post("q", *range(40))
    claims = ahead(peer, *[("claim_create", {"queue_name": "q", "limit": 1})] * 40)
    held = {c.body["messages"][0]["id"]: c.body["claim_id"] for c in claims}
    assert sorted(held) == ids
    deletions = [
        ("message_delete", {"queue_name": "q", "message_id": id_, "claim_id": claim})
        for id_, claim in held.items()
    ]
    assert {reply.status for reply in ahead(peer, *deletions)} == {204}
    assert peer.done("queue_get_stats", 200, queue_name="q")["messages"]["total"] == 0


def test_posts_of_several_queues_projects_and_clients_are_kept_apart(connect: Connect) -> None:
    peer, other = connect(), connect()
    documents = []
    for number in range(30):
        document = peer.request(*post(f"q{number % 2}", number))
        if number % 3 == 0:
            document["headers"]["X-Project-ID"] = other.project
        elif number % 3 == 1:
            document["headers"]["Client-ID"] = other.client_id
        documents.append(document)
    for document in documents:
        peer.send(document)
    assert {peer.reply().status for _ in documents} == {201}

    def bodies(who: Peer, queue: str) -> list[int]:
        page = who.done("message_list", 200, queue_name=queue, limit=20, echo=False)
        return [m["body"] for m in page["messages"]]

    for queue in (0, 1):
        expected = [n for n in range(30) if n % 2 == queue]
        # Own messages are not listed: those of this client in this project.
        assert bodies(peer, f"q{queue}") == [n for n in expected if n % 3 == 1]
        assert bodies(other, f"q{queue}") == [n for n in expected if n % 3 == 0]


def test_requests_before_a_close_frame_are_answered(connect: Connect) -> None:
    peer = connect()
    for number in range(20):
        peer.send(peer.request(*post("q", number)))
    peer.write(CLOSE, (1000).to_bytes(2, "big") + b"bye")
    assert [peer.reply().status for _ in range(20)] == [201] * 20
    closed = peer.end()
    assert isinstance(closed, Closed)
    assert closed.code == 1000


def test_pings_are_answered_in_between(connect: Connect) -> None:
    peer = connect()
    peer.write(PING, b"one")
    assert peer.frame() == Frame(PONG, b"one")
    peer.write(PONG, b"nobody asked")
    peer.write(PING, b"")
    assert peer.frame() == Frame(PONG, b"")


def test_messages_may_come_in_fragments(connect: Connect) -> None:
    peer = connect()
    text = json.dumps(peer.request("queue_list")).encode()
    peer.socket.sendall(frame_bytes(0x1, text[:5], fin=False))
    peer.socket.sendall(frame_bytes(PING, b"between"))
    peer.socket.sendall(frame_bytes(0x0, text[5:9], fin=False))
    peer.socket.sendall(frame_bytes(0x0, text[9:]))
    assert peer.frame() == Frame(PONG, b"between")
    assert peer.reply().status == 200
