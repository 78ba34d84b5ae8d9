"""python-zaqarclient's WebSocket transport, unmodified (contract, clients.md 1.6)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from zaqarclient import transport
from zaqarclient.transport import errors, request

from tests.cloud import Cloud
from tests.live import LiveServer, expect

pytestmark = [
    pytest.mark.clients,
    # What the library and those below it do is not ours to mend.
    pytest.mark.filterwarnings("ignore"),
]


class Client:
    """The transport as its documentation shows it."""

    def __init__(self, server: LiveServer, project: str, token: str) -> None:
        self._endpoint = f"{server.url.replace('http', 'ws', 1)}/v2/websocket"
        options = {"os_auth_token": token, "os_project_id": project}
        conf = {"auth_opts": {"backend": "keystone", "options": options}}
        self._transport = transport.get_transport_for(self._endpoint, options=conf)

    def ask(self, operation: str, **body: Any) -> Any:
        asked = request.Request(self._endpoint, operation, content=json.dumps(body))
        return self._transport.send(asked).deserialized_content

    def told(self) -> Any:
        """The next frame, which nobody asked for."""
        return self._transport.recv()

    def close(self) -> None:
        self._transport.cleanup()


Connect = Callable[..., Client]


@pytest.fixture
def connect() -> Iterator[Connect]:
    made: list[Client] = []

    def one(server: LiveServer, project: str, token: str = "unused") -> Client:
        made.append(Client(server, project, token))
        return made[-1]

    yield one
    for client in made:
        client.close()


def walk(client: Client, listener: Client, queue: str) -> None:
    """Queues, messages, claims and subscriptions."""
    assert client.ask("queue_create", queue_name=queue) == f"Queue {queue} created."
    subscribed = listener.ask("subscription_create", queue_name=queue)
    posted = client.ask("message_post", queue_name=queue, messages=[{"body": {"a": 1}, "ttl": 60}])
    assert listener.told()["body"] == {"a": 1}
    (found,) = client.ask("message_list", queue_name=queue, echo=True)["messages"]
    assert [found["id"]] == posted["message_ids"]
    claim = client.ask("claim_create", queue_name=queue, ttl=60, grace=60)
    assert [m["body"] for m in claim["messages"]] == [{"a": 1}]
    with pytest.raises(errors.ForbiddenError, match="claimed"):
        client.ask("message_delete", queue_name=queue, message_id=found["id"])
    client.ask(
        "message_delete", queue_name=queue, message_id=found["id"], claim_id=claim["claim_id"]
    )
    assert client.ask("queue_get_stats", queue_name=queue)["messages"]["total"] == 0
    id_ = subscribed["subscription_id"]
    client.ask("subscription_delete", queue_name=queue, subscription_id=id_)
    assert client.ask("subscription_list", queue_name=queue) == {"subscriptions": []}
    assert client.ask("queue_delete", queue_name=queue) == f"Queue {queue} removed."


def test_it_walks_through_everything(server: LiveServer, connect: Connect) -> None:
    project = f"project-{uuid.uuid4().hex}"
    walk(connect(server, project), connect(server, project), "work")


def test_errors_are_its_own(server: LiveServer, connect: Connect) -> None:
    client = connect(server, f"project-{uuid.uuid4().hex}")
    with pytest.raises(errors.MalformedRequest, match="Schema validation failed"):
        client.ask("queue_create")
    with pytest.raises(errors.MalformedRequest):
        client.ask("message_post", queue_name="q", messages=[{}])
    with pytest.raises(errors.ResourceNotFound):
        client.ask("message_get", queue_name="q", message_id="x")


@pytest.mark.slow
def test_it_walks_with_tokens_of_a_keystone(cloud: Cloud, connect: Connect) -> None:
    token, project = cloud.token("ann"), cloud.projects["alpha"]
    client = connect(cloud.server, project, token)
    walk(client, connect(cloud.server, project, cloud.token("ann")), f"q-{uuid.uuid4().hex[:8]}")
    stranger = connect(cloud.server, cloud.projects["beta"], cloud.token("bob"))
    client.ask("message_post", queue_name="work", messages=[{"body": "of ann"}])
    assert stranger.ask("message_list", queue_name="work", echo=True) == {"messages": []}
    # Somebody's own token opens nobody else's project.
    with pytest.raises(errors.ForbiddenError):
        connect(cloud.server, project, cloud.token("bob")).ask("queue_list")
    with pytest.raises(errors.UnauthorizedError):
        connect(cloud.server, project, "no-token-of-anybody").ask("queue_list")


@pytest.mark.slow
def test_a_socket_makes_a_trust_in_the_name_of_its_user(cloud: Cloud, connect: Connect) -> None:
    token, project = cloud.token("ann"), cloud.projects["alpha"]
    client = connect(cloud.server, project, token)
    made = client.ask(
        "subscription_create",
        queue_name="trusting",
        subscriber=f"trust+{cloud.server.url}/v2/queues/x/messages",
    )
    api = cloud.api("ann").but(project=project)
    path = f"/v2/queues/trusting/subscriptions/{made['subscription_id']}"
    assert expect(api.get(path), 200)["options"]["trust_id"]
