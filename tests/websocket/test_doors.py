"""Which doors stay shut over WebSocket: every action by every kind of caller, for all of them are
generated from the table of actions.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Self

import pytest

from nusku import signing
from nusku.websocket.actions import ACTIONS
from tests.conftest import SharedServers
from tests.live import LiveServer, eventually
from tests.security.test_api_keys import Keys
from tests.websocket.peer import Peer, Reply

SECRET = "a key that signs, and is long enough for it"
SHUT = (403, {"error": "Not authentified."})


@pytest.fixture(scope="module")
def locked(shared_server: SharedServers) -> LiveServer:
    return shared_server(auth="key", secret_key=SECRET, header_timeout=2.0)


@pytest.fixture(scope="module")
def keys(locked: LiveServer) -> Keys:
    return Keys(locked)


@pytest.fixture(scope="module")
def key_of(keys: Keys) -> Mapping[str, str]:
    """A key for each project, known to the server."""
    projects = [
        *("room-of-its-owner", "elsewhere", "first", "second", "mine"),
        *(f"opens-{action}" for action in ACTIONS),
        *(f"opens-signed-{action}" for action in ACTIONS),
    ]
    made = {project: keys.make(project).text for project in projects}
    last = {"X-Auth-Token": made[projects[-1]], "Client-ID": str(uuid.uuid4())}
    client = keys.server.client
    eventually(lambda: client.get("/v2/queues", headers=last).status_code == 200)
    return made


def let_in(peer: Peer, key: str) -> bool:
    """Authenticate by a key that was just made."""
    return bool(eventually(lambda: peer.authenticate(key).status == 200))


@pytest.fixture
def peer(locked: LiveServer) -> Iterator[Peer]:
    with Peer(locked) as one:
        yield one


class Room:
    """A project with a queue `q` that holds something of every kind, and how it can be seen."""

    def __init__(self, locked: LiveServer, project: str, key: str) -> None:
        self.project = project
        self.key = key
        self.peer = Peer(locked, project=project)
        assert self.peer.authenticate(self.key).status == 200
        held = self.peer.post("q", "secret one", "secret two")[1]
        claim = self.peer.done("claim_create", 201, queue_name="q", ttl=1000, limit=1)
        hook = {"queue_name": "q", "subscriber": f"http://hooks.example/{project}"}
        made = self.peer.done("subscription_create", 201, **hook)
        self.values: dict[str, Any] = {
            "queue_name": "q",
            "message_id": held,
            "message_ids": [held],
            "claim_id": claim["claim_id"],
            "subscription_id": made["subscription_id"],
            "messages": [{"body": "an intruder's"}],
            "subscriber": "http://hooks.example/intruder",
            "ttl": 500,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.peer.close()

    def ask(self, peer: Peer, action: str, **headers: Any) -> Reply:
        """What the action does with what is in here, in the name of somebody else."""
        fields = ACTIONS[action].fields
        body = {name: value for name, value in self.values.items() if name in fields}
        peer.send(peer.request(action, body, **headers))
        return peer.reply()

    def seen(self) -> list[Any]:
        of = {"queue_name": "q"}
        claim = self.peer.done("claim_get", 200, **of, claim_id=self.values["claim_id"])
        messages = self.peer.done(
            "message_list", 200, **of, echo=True, include_claimed=True, include_delayed=True
        )["messages"]
        subscriptions = self.peer.done("subscription_list", 200, **of)["subscriptions"]
        for one in (*messages, *subscriptions, *claim["messages"]):
            del one["age"]
        queues = self.peer.done("queue_list", 200, detailed=True)
        return [claim["ttl"], claim["messages"], messages, subscriptions, queues]


@pytest.fixture(scope="module")
def room(locked: LiveServer, key_of: Mapping[str, str]) -> Iterator[Room]:
    with Room(locked, "room-of-its-owner", key_of["room-of-its-owner"]) as one:
        yield one


def shut(reply: Reply) -> bool:
    assert "secret" not in str(reply.body)
    return (reply.status, reply.body) == SHUT


@pytest.fixture(autouse=True)
def nothing_changes(room: Room, request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever is tried, the room stays as it is."""
    if "opens" in request.node.name:
        yield
        return
    before = room.seen()
    yield
    assert room.seen() == before


SPOOFED: dict[str, Any] = {
    "X-Roles": "admin",
    "X-User-Id": "root",
    "X-Identity-Status": "Confirmed",
    "X-Is-Admin-Project": "True",
    "X-Tenant-Id": "room-of-its-owner",
    "X-Auth-Token": "nsk_nonsense",
    "Extra-Spec": "messagecode:123",
}


@pytest.mark.parametrize("action", ACTIONS)
def test_without_credentials(peer: Peer, room: Room, action: str) -> None:
    peer.project = room.project
    assert shut(room.ask(peer, action))
    assert shut(room.ask(peer, action, **SPOOFED))
    assert shut(room.ask(peer, action, **{"X-Auth-Token": room.key}))  # not how it is done


@pytest.mark.parametrize("action", ACTIONS)
def test_with_credentials_that_are_none(peer: Peer, room: Room, keys: Keys, action: str) -> None:
    peer.project = room.project
    expired = keys.make(room.project, age_s=100, ttl_s=50).text
    for token in ("", "x", "nsk_nonsense", room.key[:-1], room.key + "x", expired, "ü\0"):
        refused = peer.authenticate(token)
        assert (refused.status, refused.body) == (401, {"error": "Authentication failed."})
        assert shut(room.ask(peer, action))


@pytest.mark.parametrize("action", ACTIONS)
def test_with_those_for_another_project(
    locked: LiveServer, room: Room, key_of: Mapping[str, str], action: str
) -> None:
    with Peer(locked, project="elsewhere") as peer:
        assert peer.authenticate(key_of["elsewhere"]).status == 200
        peer.project = room.project
        assert shut(room.ask(peer, action))
        assert shut(room.ask(peer, action, **SPOOFED))
        # One's own project is open, and what belongs to others is not in there.
        peer.project = "elsewhere"
        reply = room.ask(peer, action, **SPOOFED)
        assert reply.status < 500
        assert "secret" not in str(reply.body)


@pytest.mark.parametrize("action", ACTIONS)
def test_with_those_of_a_member_the_door_opens(
    locked: LiveServer, key_of: Mapping[str, str], action: str
) -> None:
    project = f"opens-{action}"
    with Room(locked, project, key_of[project]) as own, Peer(locked, project=project) as peer:
        assert peer.authenticate(own.key).status == 200
        reply = own.ask(peer, action)
        assert (reply.status, reply.body) != SHUT
        assert reply.status < 500


def signed(
    project: str,
    queue: str = "q",
    *,
    methods: list[str] | None = None,
    in_s: int = 60,
    below: str = "messages",
    secret: str = SECRET,
) -> dict[str, Any]:
    """The headers of a pre-signed request."""
    methods = methods or ["DELETE", "GET", "POST"]
    paths = [f"/v2/queues/{queue}/{below}"]
    expires = signing.expiry_text(int(time.time()) + in_s)
    return {
        "URL-Signature": signing.sign(secret, paths, methods, project, expires),
        "URL-Expires": expires,
        "URL-Methods": methods,
        "URL-Paths": paths,
    }


@pytest.mark.parametrize("action", ACTIONS)
def test_a_signature_opens_what_it_is_for(
    peer: Peer, locked: LiveServer, key_of: Mapping[str, str], action: str
) -> None:
    project = peer.project = f"opens-signed-{action}"
    with Room(locked, project, key_of[project]) as own:
        reply = own.ask(peer, action, **signed(project))
        assert ((reply.status, reply.body) == SHUT) is not bool(ACTIONS[action].method)
        assert reply.status < 500
        # It is for one request, not for the connection.
        assert shut(own.ask(peer, action))


@pytest.mark.parametrize("action", ACTIONS)
def test_a_signature_opens_nothing_else(peer: Peer, room: Room, action: str) -> None:
    peer.project = room.project
    method = ACTIONS[action].method
    others = [name for name in ("DELETE", "GET", "POST") if name != method]
    good = signed(room.project)
    for headers in (
        signed(room.project, "r"),
        signed(room.project, below="claims"),
        signed(room.project, "q/messages"),
        signed("elsewhere"),
        signed(room.project, methods=others),
        signed(room.project, in_s=-1),
        signed(room.project, secret="another key, which is as long as the first"),
        *({k: v for k, v in good.items() if k != name} for name in good if name != "URL-Signature"),
        {**good, "URL-Methods": "GET,POST,DELETE"},
        {**good, "URL-Paths": "/v2/queues/q/messages"},
        {**good, "URL-Paths": ["/v2/queues/q/messages,/v2/queues/r/messages"]},
        {**good, "URL-Methods": [1]},
        {**good, "URL-Expires": 5},
        {**good, "URL-Signature": "x"},
        {**good, "URL-Signature": ["x"]},
        {**good, "URL-Signature": good["URL-Signature"].upper()},
        {**good, "X-Project-ID": "elsewhere"},
    ):
        reply = room.ask(peer, action, **headers)
        assert shut(reply), headers


# -- over time


def test_who_does_not_authenticate_is_closed(locked: LiveServer) -> None:
    with Peer(locked) as peer:
        closed = peer.end()
        assert (closed.code, closed.reason) == (4401, "Authenticate first.")


def test_a_key_that_expires_ends_the_connection(locked: LiveServer, keys: Keys) -> None:
    with Peer(locked, project="p") as peer:
        assert let_in(peer, keys.make("p", ttl_s=4).text)
        closed = peer.end()
        assert (closed.code, closed.reason) == (4003, "Authentication expired.")


def test_a_key_that_is_revoked_ends_the_connection(locked: LiveServer, keys: Keys) -> None:
    with Peer(locked, project="p") as peer:
        made = keys.make("p")
        assert let_in(peer, made.text)
        peer.done("queue_list", 200)
        keys.revoke(made.id)
        assert peer.end().code == 4003


def test_another_key_takes_the_place_of_the_first(
    locked: LiveServer, key_of: Mapping[str, str]
) -> None:
    with Peer(locked, project="first") as peer, Peer(locked, project="first") as poster:
        key = key_of["first"]
        assert peer.authenticate(key).status == 200
        assert poster.authenticate(key).status == 200
        peer.done("subscription_create", 201, queue_name="q")
        refused = peer.authenticate("nsk_nonsense")
        assert refused.status == 401
        peer.done("queue_get", 200, queue_name="q")  # the first still counts
        peer.project = "second"
        assert peer.authenticate(key_of["second"]).status == 200
        peer.done("queue_get", 200, queue_name="q")
        peer.project = "first"
        assert peer.ask("queue_get", queue_name="q").status == 403
        # What belongs to the first is not told any more.
        ended = {"queue_name": "q"}
        eventually(lambda: poster.done("subscription_list", 200, **ended)["subscriptions"] == [])
        poster.post("q", "not for the second")
        assert peer.quiet()


def test_the_project_has_to_be_that_of_the_key(
    locked: LiveServer, key_of: Mapping[str, str]
) -> None:
    with Peer(locked, project="mine") as peer:
        refused = peer.authenticate(key_of["mine"], **{"X-Project-ID": "other"})
        assert (refused.status, refused.body) == (403, {"error": "Authentication failed."})
        assert shut(peer.ask("queue_list"))


@pytest.mark.parametrize(
    "headers", [{}, {"X-Auth-Token": "t"}, {"X-Auth-Token": 1, "X-Project-ID": "p"}]
)
def test_authenticating_takes_token_and_project(peer: Peer, headers: dict[str, Any]) -> None:
    peer.send({"action": "authenticate", "headers": headers})
    reply = peer.reply()
    assert (reply.status, reply.body) == (400, {"error": "Schema validation failed."})
