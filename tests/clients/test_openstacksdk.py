"""openstacksdk's `conn.message`, unmodified, against a live server (contract, clients.md 2)."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from keystoneauth1 import discover, noauth, session
from openstack import connection, exceptions
from openstack.config import cloud_region
from openstack.message.v2 import claim as sdk_claim

from tests.conftest import SharedServers
from tests.live import Api, LiveServer, expect
from tests.subscribing import HOOK, LOCAL, Subscriptions, receiver

pytestmark = [
    pytest.mark.clients,
    # What the library and those below it do is not ours to mend.
    pytest.mark.filterwarnings("ignore"),
]


class ProjectWithoutKeystone(noauth.NoAuth):
    """No token, and the project that a token would otherwise tell."""

    def __init__(self, endpoint: str, project: str) -> None:
        super().__init__(endpoint=endpoint)
        self.project = project

    def get_project_id(self, *_: Any, **__: Any) -> str:
        return self.project


@pytest.fixture
def project() -> str:
    return f"project-{uuid.uuid4().hex}"


@pytest.fixture
def api(server: LiveServer, project: str) -> Api:
    """Plain requests to the same project."""
    return server.api(project)


Connect = Callable[[LiveServer], Any]


@pytest.fixture
def connected(project: str) -> Iterator[Connect]:
    """Call it for `conn.message` with the endpoint given and its version found out by discovery."""
    opened = []

    def connect(server: LiveServer) -> Any:
        auth = ProjectWithoutKeystone(server.url, project)
        region = cloud_region.from_session(
            session.Session(auth=auth), app_name="tests", region_name="here"
        )
        region.config["message_endpoint_override"] = server.url
        opened.append(connection.Connection(config=region))
        return opened[-1].message

    yield connect
    for conn in opened:
        conn.close()


@pytest.fixture
def message(connected: Connect, server: LiveServer) -> Any:
    return connected(server)


def bodies(messages: Any) -> list[Any]:
    return [one.body for one in messages]


def claim_messages(message: Any, queue: str, **attributes: Any) -> Any:
    """Claim by the library's own resource.

    `conn.message.create_claim` of this version stumbles over its own `location` once a claim was
    made, whatever the server answers: the resource alone does not.
    """
    return sdk_claim.Claim(queue_name=queue, **attributes).create(message)


def test_the_endpoint_is_discovered(server: LiveServer, message: Any) -> None:
    assert message.get_endpoint() == f"{server.url}/v2/"
    plain = session.Session(auth=noauth.NoAuth(endpoint=server.url))
    assert discover.Discover(plain, server.url).url_for("2") == f"{server.url}/v2/"


# -- queues ----------------------------------------------------------------------------------------


def test_a_queue_is_created_shown_and_deleted(message: Any, api: Api) -> None:
    created = message.create_queue(
        name="q", description="what for", default_message_ttl=90, max_messages_post_size=1000
    )
    assert created.name == "q"
    shown = message.get_queue("q")
    assert shown.description == "what for"
    assert shown.default_message_ttl == 90
    assert shown.max_messages_post_size == 1000
    assert expect(api.show("q"), 200)["name"] == "q"
    message.create_queue(name="q")
    assert message.get_queue("q").description == "what for"
    message.delete_queue("q")
    assert list(message.queues()) == []
    message.delete_queue("q")


def test_queues_are_listed_over_several_pages(message: Any) -> None:
    names = [f"q{n:02}" for n in range(25)]
    assert list(message.queues()) == []
    for name in names:
        message.create_queue(name=name)
    assert [queue.name for queue in message.queues()] == names
    assert [queue.name for queue in message.queues(limit=7)] == names
    assert [queue.name for queue in message.queues(marker="q20")] == names[21:]


# -- messages --------------------------------------------------------------------------------------


def test_messages_are_posted_and_listed_over_several_pages(message: Any) -> None:
    message.create_queue(name="q")
    assert list(message.messages("q")) == []
    resources = message.post_message("q", [{"body": {"n": n}, "ttl": 90} for n in range(33)])
    assert len(resources) == 33
    expected = [{"n": n} for n in range(33)]
    assert bodies(message.messages("q")) == expected
    assert bodies(message.messages("q", limit=5)) == expected
    assert bodies(message.messages("q", limit=20, echo=True)) == expected


def test_paging_goes_on_though_the_last_message_was_deleted(message: Any) -> None:
    message.post_message("q", [{"body": n} for n in range(9)])
    seen = []
    for one in message.messages("q", limit=3):
        seen.append(one.body)
        message.delete_message("q", one)
    assert seen == list(range(9))


def test_echo_hides_nothing_for_each_request_is_a_client_of_its_own(message: Any) -> None:
    message.post_message("q", [{"body": 1}])
    assert bodies(message.messages("q", echo=False)) == [1]
    assert bodies(message.messages("q", echo=True)) == [1]


def test_claimed_messages_are_listed_on_request(message: Any, api: Api) -> None:
    message.post_message("q", [{"body": 1}, {"body": 2}])
    api.claimed("q", "?limit=1")
    assert bodies(message.messages("q")) == [2]
    assert bodies(message.messages("q", include_claimed=True)) == [1, 2]
    assert bodies(message.messages("q", include_claimed=False)) == [2]


def test_a_message_is_fetched_and_deleted(message: Any) -> None:
    [href] = message.post_message("q", [{"body": {"a": 1}, "ttl": 120}])
    message_id = href.rsplit("/", 1)[1]
    fetched = message.get_message("q", message_id)
    assert (fetched.id, fetched.ttl, fetched.body) == (message_id, 120, {"a": 1})
    assert fetched.href == f"/v2/queues/q/messages/{message_id}"
    assert fetched.age >= 0
    message.delete_message("q", message_id)
    with pytest.raises(exceptions.NotFoundException):
        message.get_message("q", message_id)
    message.delete_message("q", message_id)


# -- claims ----------------------------------------------------------------------------------------


def test_the_life_of_a_claim(message: Any, api: Api) -> None:
    message.post_message("q", [{"body": n} for n in range(5)])
    claim = claim_messages(message, "q", ttl=100, grace=60, limit=3)
    assert [one["body"] for one in claim.messages] == [0, 1, 2]
    shown = message.get_claim("q", claim.id)
    assert shown.ttl == 100
    assert shown.age >= 0
    assert [one["id"] for one in shown.messages] == [one["id"] for one in claim.messages]
    message.update_claim("q", claim.id, ttl=200, grace=60)
    assert message.get_claim("q", claim.id).ttl == 200
    message.delete_message("q", claim.messages[0]["id"], claim=claim.id)
    assert [one["body"] for one in message.get_claim("q", claim.id).messages] == [1, 2]
    message.delete_claim("q", claim.id)
    with pytest.raises(exceptions.NotFoundException):
        message.get_claim("q", claim.id)
    assert api.listed("q") == [1, 2, 3, 4]


def test_the_limit_of_a_claim_is_honoured(message: Any, api: Api) -> None:
    message.post_message("q", [{"body": n} for n in range(30)])
    assert len(claim_messages(message, "q", ttl=60, grace=60, limit=1).messages) == 1
    assert len(claim_messages(message, "q", ttl=60, grace=60, limit=20).messages) == 20
    assert api.stats("q")["claimed"] == 21


def test_a_claim_of_nothing_is_no_error(message: Any) -> None:
    message.create_queue(name="q")
    claim = message.create_claim("q", ttl=60, grace=60, limit=1)
    assert claim.id is None
    assert not claim.messages


def test_deleting_a_claimed_message_without_the_claim_is_forbidden(message: Any) -> None:
    message.post_message("q", [{"body": 1}])
    claim = claim_messages(message, "q", ttl=60, grace=60)
    with pytest.raises(exceptions.ForbiddenException):
        message.delete_message("q", claim.messages[0]["id"])


# -- subscriptions ---------------------------------------------------------------------------------


def test_the_life_of_a_subscription(message: Any, api: Api) -> None:
    made = message.create_subscription(
        "q", subscriber=HOOK, ttl=90, options={"subject": "news", "from": "shop@hooks.example"}
    )
    assert made.subscription_id == made.id
    shown = message.get_subscription("q", made.id)
    assert (shown.id, shown.source, shown.subscriber, shown.ttl) == (made.id, "q", HOOK, 90)
    assert shown.options == {"subject": "news", "from": "shop@hooks.example"}
    assert shown.age >= 0
    assert message.create_subscription("q", subscriber=HOOK).id == made.id
    assert Subscriptions(api).ids() == [made.id]
    message.delete_subscription("q", made.id)
    with pytest.raises(exceptions.NotFoundException):
        message.get_subscription("q", made.id)
    message.delete_subscription("q", made.id)


def test_subscriptions_are_listed_over_several_pages(message: Any) -> None:
    assert list(message.subscriptions("q")) == []
    made = [message.create_subscription("q", subscriber=f"{HOOK}/{n}").id for n in range(13)]
    assert [one.id for one in message.subscriptions("q")] == made
    assert [one.id for one in message.subscriptions("q", limit=5)] == made
    assert [one.id for one in message.subscriptions("q", marker=made[9])] == made[10:]
    assert [one.subscriber for one in message.subscriptions("q", limit=20)][12] == f"{HOOK}/12"


def test_a_subscriber_is_told_what_the_library_posts(
    connected: Connect, shared_server: SharedServers
) -> None:
    message = connected(shared_server(subscriber_allow=LOCAL))
    with receiver() as hook:
        message.create_subscription("q", subscriber=hook.url)
        message.post_message("q", [{"body": {"n": 1}, "ttl": 120}])
        [heard] = hook.wait_for(1)
    assert (heard.document["body"], heard.document["ttl"]) == ({"n": 1}, 120)


def test_errors_come_as_the_librarys_exceptions(message: Any) -> None:
    with pytest.raises(exceptions.BadRequestException):
        message.create_queue(name="bad@name")
    with pytest.raises(exceptions.BadRequestException):
        message.create_queue(name="q", default_message_ttl=1)
    with pytest.raises(exceptions.NotFoundException):
        message.get_message("q", "nosuchmessage")
    with pytest.raises(exceptions.BadRequestException):
        message.create_subscription("q", subscriber="fake")
    with pytest.raises(exceptions.BadRequestException):
        message.create_subscription("q", subscriber=HOOK, ttl=59)
