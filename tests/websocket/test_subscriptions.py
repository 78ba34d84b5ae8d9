"""A connection that subscribes is told itself (contract websocket.md section 6)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.live import LiveServer, eventually, expect
from tests.websocket.conftest import Connect
from tests.websocket.peer import BINARY, TEXT, Peer

URL = re.compile(r"http://[^/]+/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def subscribe(peer: Peer, queue: str = "q", **fields: Any) -> str:
    made = peer.done("subscription_create", 201, queue_name=queue, **fields)
    assert made["message"] == f"Subscription {queue} created."
    id_: str = made["subscription_id"]
    return id_


def test_it_is_told_of_what_anybody_posts(peer: Peer, server: LiveServer) -> None:
    api = server.api(project=peer.project)
    api.post_bodies("q", "before")
    subscribe(peer)
    api.post_bodies("q", {"status": "x"}, ttl=60)
    assert peer.notification() == {
        "body": {"status": "x"},
        "ttl": 60,
        "queue_name": "q",
        "Message_Type": "Notification",
    }
    peer.post("q", "mine")
    api.post_bodies("q", *range(50), delay=100)
    api.post_bodies("other", "elsewhere")
    assert peer.told(51) == ["mine", *range(50)]
    assert peer.quiet()


def test_the_subscription_can_be_seen(peer: Peer, server: LiveServer) -> None:
    id_ = subscribe(peer, ttl=600, options={"a": 1})
    (shown,) = peer.done("subscription_list", 200, queue_name="q")["subscriptions"]
    assert URL.fullmatch(shown["subscriber"])
    assert shown["id"] == id_
    assert (shown["ttl"], shown["options"], shown["confirmed"]) == (600, {"a": 1}, True)
    api = server.api(project=peer.project)
    assert expect(api.get(f"/v2/queues/q/subscriptions/{id_}"), 200)["id"] == id_
    again = peer.ask("subscription_create", queue_name="q")
    assert (again.status, again.body) == (409, "Subscription q not created.")


def test_each_queue_that_it_subscribes_to(peer: Peer) -> None:
    for name in "abc":
        subscribe(peer, name)
        peer.post(name, name)
    assert sorted(peer.told(3)) == ["a", "b", "c"]


def test_many_connections_are_told_of_one_post(connect: Connect, server: LiveServer) -> None:
    first = connect()
    peers = [first, *(connect(project=first.project) for _ in range(19))]
    for peer in peers:
        subscribe(peer)
    first.post("q", "for all")
    assert [peer.told(1) for peer in peers] == [["for all"]] * 20


def test_notifications_are_spelled_like_the_last_subscription(connect: Connect) -> None:
    peer = connect()
    peer.send(peer.request("subscription_create", {"queue_name": "a"}), binary=True)
    assert peer.reply().status == 201
    peer.post("a", 1)
    _, opcode = peer.receive() if not peer.notifications else (None, BINARY)
    assert opcode == BINARY
    peer.send(peer.request("subscription_create", {"queue_name": "a"}), binary=False)
    assert peer.reply().status == 409  # not a successful one
    peer.post("a", 2)
    assert peer.notification()["body"] == 2
    peer.send(peer.request("subscription_create", {"queue_name": "b"}), binary=False)
    assert peer.reply().status == 201
    peer.send(
        peer.request("message_post", {"queue_name": "b", "messages": [{"body": 3}]}), binary=True
    )
    kinds = {}
    for _ in range(2):
        document, opcode = peer.receive()
        kinds["Message_Type" in document] = opcode
    assert kinds == {True: TEXT, False: BINARY}


def ended(server: LiveServer, peer: Peer, queue: str = "q") -> Callable[[], bool]:
    api = server.api(project=peer.project)
    path = f"/v2/queues/{queue}/subscriptions"
    return lambda: expect(api.get(path), 200)["subscriptions"] == []


def test_it_ends_with_the_connection(peer: Peer, server: LiveServer) -> None:
    subscribe(peer)
    hook = peer.done("subscription_create", 201, queue_name="r", subscriber="http://hooks.example/")
    assert hook
    peer.close()
    eventually(ended(server, peer))
    assert not ended(server, peer, "r")()


def test_others_can_end_it(peer: Peer, server: LiveServer) -> None:
    id_ = subscribe(peer)
    peer.post("q", 1)
    assert peer.told(1) == [1]
    api = server.api(project=peer.project)
    expect(api.delete(f"/v2/queues/q/subscriptions/{id_}"), 204)
    peer.post("q", 2)
    assert peer.quiet()
    subscribe(peer)
    expect(api.purge("q", "subscriptions"), 204)
    peer.post("q", 3)
    assert peer.quiet()


def test_it_can_be_paused(peer: Peer, server: LiveServer) -> None:
    id_ = subscribe(peer)
    api = server.api(project=peer.project)
    expect(api.request("POST", f"/v2/queues/q/subscriptions/{id_}/pause"), 204)
    peer.post("q", 1)
    assert peer.quiet()
    expect(api.request("POST", f"/v2/queues/q/subscriptions/{id_}/resume"), 204)
    assert peer.told(1) == [1]


def test_it_ends_at_its_time(private_server: Callable[..., LiveServer], connect: Connect) -> None:
    server = private_server(min_subscription_ttl=1)
    peer = connect(server)
    subscribe(peer, ttl=1)
    eventually(ended(server, peer))
    peer.post("q", 1)
    assert peer.quiet()


def test_another_subscriber_takes_its_place(peer: Peer, server: LiveServer) -> None:
    id_ = subscribe(peer)
    api = server.api(project=peer.project)
    path = f"/v2/queues/q/subscriptions/{id_}"
    expect(api.request("PATCH", path, json={"subscriber": "http://hooks.example/"}), 204)
    peer.post("q", 1)
    assert peer.quiet()
    eventually(lambda: expect(api.get(f"{path}/status"), 200)["pending"] == 1)


def test_a_queue_that_is_made_anew_goes_on_to_be_told_of(peer: Peer) -> None:
    subscribe(peer)
    peer.post("q", 1)
    assert peer.told(1) == [1]
    peer.done("queue_delete", 204, queue_name="q")
    peer.post("q", 2)
    assert peer.told(1) == [2]
    peer.done("queue_purge", 204, queue_name="q", resource_types=["messages"])
    peer.post("q", 3)
    assert peer.told(1) == [3]


def test_nothing_is_kept_for_a_connection_that_has_gone(peer: Peer, server: LiveServer) -> None:
    id_ = subscribe(peer)
    api = server.api(project=peer.project)
    api.post_bodies("q", 1)
    assert peer.told(1) == [1]
    status = expect(api.get(f"/v2/queues/q/subscriptions/{id_}/status"), 200)
    assert (status["pending"], status["failed"], status["delivered"]) == (0, 0, 0)


def test_confirmation_is_for_others(
    private_server: Callable[..., LiveServer], connect: Connect
) -> None:
    peer = connect(private_server(require_confirmation=True))
    subscribe(peer)
    peer.post("q", 1)
    assert peer.told(1) == [1]
    hook = {"queue_name": "q", "subscriber": "http://hooks.example/"}
    made = peer.done("subscription_create", 201, **hook)
    told = peer.done(
        "subscription_get", 200, queue_name="q", subscription_id=made["subscription_id"]
    )
    assert told["confirmed"] is False
    assert peer.ask("subscription_create", **hook).status == 409


def test_a_node_that_dies_leaves_subscriptions_until_they_end(
    private_server: Callable[..., LiveServer], connect: Connect
) -> None:
    server = private_server(min_subscription_ttl=1)
    peer = connect(server)
    subscribe(peer, ttl=3)
    started = time.monotonic()
    server.kill()
    again = private_server(min_subscription_ttl=1)
    api = again.api(project=peer.project)
    api.post_bodies("q", 1)
    if time.monotonic() - started < 2:
        assert not ended(again, peer)()
    eventually(ended(again, peer))


@pytest.mark.only("postgresql", "redis", "redis-cluster")
def test_posts_on_another_node_are_told_of(
    private_server: Callable[..., LiveServer], connect: Connect
) -> None:
    here, there = private_server(), private_server()
    peer, other = connect(here), connect(there)
    subscribe(peer)
    api = there.api(project=peer.project)
    for number in range(20):
        api.post_bodies("q", number)
    assert peer.told(20) == list(range(20))
    (shown,) = expect(api.get("/v2/queues/q/subscriptions"), 200)["subscriptions"]
    expect(api.delete(f"/v2/queues/q/subscriptions/{shown['id']}"), 204)
    assert other.ask("queue_list").status == 200

    def silent() -> bool:
        api.post_bodies("q", "after the end")
        return peer.quiet() if not peer.notifications else False

    eventually(silent)
