"""python-zaqarclient, unmodified, against a live server (contract, clients.md 1)."""

from __future__ import annotations

import uuid
from typing import Any

import httpx
import pytest
from zaqarclient.queues import client as client_module
from zaqarclient.queues.v2 import client as v2
from zaqarclient.transport import errors

from tests.conftest import SharedServers
from tests.live import PATCH_TYPE, LiveServer, expect
from tests.subscribing import HOOK, LOCAL, receiver

pytestmark = [
    pytest.mark.clients,
    # What the library and those below it do is not ours to mend.
    pytest.mark.filterwarnings("ignore"),
]


SIGNED = ("URL-Signature", "URL-Methods", "URL-Paths", "URL-Expires")


def connect(server: LiveServer, project: str | None = None, client_uuid: str | None = None) -> Any:
    """A client as its documentation makes one, in a project of its own."""
    options = {"os_project_id": project or f"project-{uuid.uuid4().hex}"}
    conf: dict[str, Any] = {"auth_opts": {"backend": "noauth", "options": options}}
    if client_uuid:
        conf["client_uuid"] = client_uuid
    return client_module.Client(server.url, version=2, conf=conf)


def project_of(client: Any) -> str:
    project: str = client.auth_opts["options"]["os_project_id"]
    return project


@pytest.fixture
def client(server: LiveServer) -> Any:
    return connect(server)


@pytest.fixture
def queue(client: Any) -> Any:
    """The queue `work`, created."""
    return client.queue("work", force_create=True)


def bodies(messages: Any) -> list[Any]:
    return [message.body for message in messages]


# -- service ---------------------------------------------------------------------------------------


def test_ping_and_home_document(client: Any) -> None:
    assert client.ping() is True
    assert "rel/queues" in client.homedoc()["resources"]


def test_health_is_refused_to_others_and_shown_to_an_admin(client: Any, server: LiveServer) -> None:
    with pytest.raises(errors.ForbiddenError):
        client.health()

    class AdminClient(v2.Client):  # type: ignore[misc]  # the library has no types
        """Sends the role that a token would bring along."""

        def _request_and_transport(self) -> Any:
            request, transport = super()._request_and_transport()
            request.headers["X-Roles"] = "admin"
            return request, transport

    admin = AdminClient(server.url, version=2, conf=client.conf)
    health = admin.health()
    assert health


def test_a_client_without_a_project_uses_its_own_default(server: LiveServer) -> None:
    conf = {"auth_opts": {"backend": "noauth"}}
    client = client_module.Client(server.url, version=2, conf=conf)
    name = f"q-{uuid.uuid4().hex}"
    client.queue(name, force_create=True)
    api = server.api(project="fake_project_id_for_noauth")
    assert api.names(f"?name={name}") == [name]
    client.queue(name).delete()


# -- queues ----------------------------------------------------------------------------------------


def test_queues_are_created_lazily_or_by_force(client: Any, server: LiveServer) -> None:
    api = server.api(project_of(client))
    client.queue("lazy")
    assert api.names() == []
    queue = client.queue("forced", force_create=True)
    assert api.names() == ["forced"]
    assert queue.exists()


def test_creating_an_existing_queue_alters_nothing(client: Any) -> None:
    queue = client.queue("q", force_create=True)
    queue.metadata(new_meta={"colour": "red"})
    queue.post({"body": 1})
    again = client.queue("q", force_create=True)
    assert again.metadata(force_reload=True)["colour"] == "red"
    assert bodies(again.messages(echo=True)) == [1]


def test_metadata_is_read_replaced_and_cleared(client: Any) -> None:
    queue = client.queue("q", force_create=True)
    defaults = queue.metadata()
    queue.metadata(new_meta={"colour": "red", "_default_message_ttl": 90})
    assert queue.metadata(force_reload=True) == {
        **defaults,
        "colour": "red",
        "_default_message_ttl": 90,
    }
    queue.metadata(new_meta={"size": 5, "colour": "blue"})
    assert queue.metadata(force_reload=True) == {**defaults, "size": 5, "colour": "blue"}
    queue.metadata(new_meta={})
    assert queue.metadata(force_reload=True) == defaults


def test_metadata_of_a_missing_queue_cannot_be_set(client: Any) -> None:
    with pytest.raises(errors.ResourceNotFound):
        client.queue("missing").metadata(new_meta={"a": 1})


def test_queues_are_listed_with_detail_and_count(client: Any) -> None:
    for n in range(3):
        client.queue(f"q{n}", force_create=True)
    client.queue("q1").metadata(new_meta={"colour": "red"})
    listed, count = client.queues(limit=2, detailed=True, with_count=True)
    found = list(listed)
    assert [queue.name for queue in found] == ["q0", "q1"]
    assert count == 3
    assert found[1].metadata()["colour"] == "red"
    listed, count = client.queues(marker="q1")
    assert [queue.name for queue in listed] == ["q2"]
    assert count is None


def test_all_queues_are_streamed_over_several_pages(client: Any) -> None:
    names = [f"q{n:02}" for n in range(25)]
    for name in names:
        client.queue(name, force_create=True)
    listed, _ = client.queues(limit=7)
    assert [queue.name for queue in listed.stream()] == names


def test_statistics_and_deletion(client: Any) -> None:
    queue = client.queue("q", force_create=True)
    assert queue.stats["messages"]["total"] == 0
    queue.post([{"body": 1}, {"body": 2}])
    stats = queue.stats["messages"]
    assert (stats["free"], stats["claimed"], stats["total"]) == (2, 0, 2)
    assert set(stats["oldest"]) == {"age", "created", "href"}
    queue.delete()
    assert queue.stats["messages"]["total"] == 0
    queue.delete()


@pytest.mark.parametrize("resource_types", [None, ["messages"], ["messages", "subscriptions"]])
def test_a_queue_is_purged(resource_types: list[str] | None, queue: Any) -> None:
    queue.post([{"body": n} for n in range(15)])
    queue.claim(ttl=60, grace=60)
    queue.purge(resource_types=resource_types)
    assert queue.stats["messages"]["total"] == 0


# -- messages --------------------------------------------------------------------------------------


def test_messages_are_posted_one_or_several_at_a_time(queue: Any) -> None:
    single = queue.post({"body": "one", "ttl": 60})
    several = queue.post([{"body": {"n": 2}}, {"body": [3], "delay": 0}])
    assert len(single["resources"]) == 1
    assert len(several["resources"]) == 2
    assert bodies(queue.messages(echo=True)) == ["one", {"n": 2}, [3]]


def test_a_message_is_fetched_and_deleted(queue: Any) -> None:
    message_id = queue.post({"body": {"a": 1}, "ttl": 120})["resources"][0].rsplit("/", 1)[1]
    message = queue.message(message_id)
    assert (message.id, message.ttl, message.body) == (message_id, 120, {"a": 1})
    assert message.age >= 0
    assert message.claim_id is None
    message.delete()
    with pytest.raises(errors.ResourceNotFound):
        queue.message(message_id)


def test_several_messages_are_fetched_and_deleted_by_their_ids(queue: Any) -> None:
    resources = queue.post([{"body": n} for n in range(5)])["resources"]
    ids = [resource.rsplit("/", 1)[1] for resource in resources]
    assert sorted(bodies(queue.messages(*ids))) == [0, 1, 2, 3, 4]
    queue.delete_messages(*ids[:3])
    assert bodies(queue.messages(echo=True)) == [3, 4]


def test_own_messages_are_hidden_unless_echo_is_asked_for(server: LiveServer) -> None:
    own = connect(server)
    other = connect(server, project_of(own))
    own.queue("q").post({"body": "mine"})
    assert bodies(own.queue("q").messages()) == []
    assert bodies(own.queue("q").messages(echo=False)) == []
    assert bodies(own.queue("q").messages(echo=True)) == ["mine"]
    assert bodies(other.queue("q").messages()) == ["mine"]


def test_a_client_id_may_be_given(server: LiveServer) -> None:
    first = connect(server, client_uuid=str(uuid.uuid4()))
    second = connect(server, project_of(first), client_uuid=first.client_uuid.replace("-", ""))
    first.queue("q").post({"body": "mine"})
    assert bodies(second.queue("q").messages(echo=False)) == []


def test_all_messages_are_streamed_over_several_pages(queue: Any) -> None:
    queue.post([{"body": n} for n in range(33)])
    assert bodies(queue.messages(limit=5, echo=True).stream()) == list(range(33))
    assert bodies(queue.messages(limit=5, echo=True)) == list(range(5))


def test_claimed_and_delayed_messages_are_listed_on_request(queue: Any) -> None:
    queue.post({"body": "held"})
    queue.claim(ttl=60, grace=60)
    queue.post([{"body": "later", "delay": 900}, {"body": "now"}])
    assert bodies(queue.messages(echo=True)) == ["now"]
    assert bodies(queue.messages(echo=True, include_claimed=True)) == ["held", "now"]
    assert bodies(queue.messages(echo=True, include_delayed=True)) == ["later", "now"]


def test_messages_are_popped(queue: Any) -> None:
    queue.post([{"body": n} for n in range(4)])
    assert bodies(queue.pop()) == [0]
    popped = list(queue.pop(10))
    assert bodies(popped) == [1, 2, 3]
    assert popped[0].claim_count == 0
    assert bodies(queue.pop(1)) == []


# -- claims ----------------------------------------------------------------------------------------


def test_the_life_of_a_claim(queue: Any) -> None:
    queue.post([{"body": n} for n in range(3)])
    claim = queue.claim(ttl=100, grace=60, limit=2)
    messages = list(claim)
    assert bodies(messages) == [0, 1]
    assert all(message.claim_id == claim.id for message in messages)
    assert claim.ttl == 100
    assert claim.age >= 0
    messages[0].delete()
    claim.update(ttl=200, grace=100)
    again = queue.claim(id=claim.id)
    assert bodies(again) == [1]
    assert again.ttl == 200
    claim.delete()
    with pytest.raises(errors.ResourceNotFound):
        list(queue.claim(id=claim.id))
    assert bodies(queue.messages(echo=True)) == [1, 2]


def test_a_claim_without_ttl_and_grace_has_the_defaults(queue: Any) -> None:
    queue.post({"body": 1})
    claim = queue.claim()
    assert queue.claim(id=claim.id).ttl == 300
    claim.update()
    assert queue.claim(id=claim.id).ttl == 300


def test_a_claim_of_nothing_is_empty(queue: Any) -> None:
    claim = queue.claim(ttl=60, grace=60)
    assert claim.id is None
    assert list(claim) == []


def test_a_worker_takes_all_there_is(queue: Any) -> None:
    queue.post([{"body": n} for n in range(25)])
    done = []
    while True:
        messages = list(queue.claim(ttl=60, grace=60, limit=10))
        if not messages:
            break
        for message in messages:
            done.append(message.body)
            message.delete()
    assert done == list(range(25))
    assert queue.stats["messages"]["total"] == 0


def test_dead_letters_arrive(client: Any, server: LiveServer) -> None:
    """The library cannot set these keys itself (clients.md, 1.4), so they are patched directly."""
    queue = client.queue("work", force_create=True)
    api = server.api(project_of(client))
    wanted = {"_max_claim_count": 2, "_dead_letter_queue": "dead"}
    operations = [
        {"op": "add", "path": f"/metadata/{key}", "value": value} for key, value in wanted.items()
    ]
    expect(api.patch("work", operations, PATCH_TYPE), 200)
    queue.post({"body": "poison"})
    for _ in range(2):
        queue.claim(ttl=60, grace=60).delete()
    assert list(queue.claim(ttl=60, grace=60)) == []
    assert bodies(client.queue("dead").messages(echo=True)) == ["poison"]


# -- subscriptions ---------------------------------------------------------------------------------


def test_the_life_of_a_subscription(client: Any) -> None:
    made = client.subscription("work", subscriber=HOOK, ttl=90, options={"subject": "news"})
    assert (made.subscriber, made.ttl, made.options) == (HOOK, 90, {"subject": "news"})
    assert made.age >= 0
    assert made.confirmed is False
    again = client.subscription("work", id=made.id)
    assert (again.subscriber, again.ttl, again.options) == (HOOK, 90, {"subject": "news"})
    again.update({"ttl": 120, "options": {"a": 1}})
    assert client.subscription("work", id=made.id).ttl == 120
    again.delete()
    with pytest.raises(errors.ResourceNotFound):
        client.subscription("work", id=made.id)
    again.delete()


def test_a_subscription_without_options_lives_for_the_librarys_minute(client: Any) -> None:
    made = client.subscription("work", subscriber=HOOK)
    assert (made.ttl, made.options) == (60, {})
    assert client.subscription("work", subscriber=HOOK, ttl=90).id == made.id


def test_subscriptions_are_listed_and_streamed(client: Any, queue: Any) -> None:
    assert list(client.subscriptions("work")) == []
    made = [client.subscription("work", subscriber=f"{HOOK}/{n}").id for n in range(13)]
    assert [one.id for one in client.subscriptions("work")] == made[:10]
    assert [one.id for one in client.subscriptions("work", limit=3).stream()] == made
    assert [one.id for one in client.subscriptions("work", marker=made[9])] == made[10:]
    listed = list(queue.subscriptions())
    assert [one.id for one in listed] == made
    assert {one.queue_name for one in listed} == {"work"}
    assert (listed[3].subscriber, listed[3].ttl, listed[3].confirmed) == (f"{HOOK}/3", 60, False)
    queue.purge(resource_types=["subscriptions"])
    assert list(queue.subscriptions()) == []


def test_an_update_as_the_command_line_sends_it(client: Any) -> None:
    """All three members, null where not given (clients.md, 1.5)."""
    made = client.subscription("work", subscriber=HOOK, ttl=90, options={"a": 1})
    made.update({"subscriber": None, "ttl": 120, "options": {}})
    shown = client.subscription("work", id=made.id)
    assert (shown.subscriber, shown.ttl, shown.options) == (HOOK, 120, {})


def test_bad_subscriptions_are_refused(client: Any) -> None:
    for options in ({"ttl": 59}, {"subscriber": "fake"}, {"options": [1]}):
        with pytest.raises(errors.MalformedRequest, match="Invalid API request"):
            client.subscription("work", **{"subscriber": HOOK, **options})
    made = client.subscription("work", subscriber=HOOK)
    with pytest.raises(errors.MalformedRequest):
        made.update({"ttl": 0})
    client.subscription("work", subscriber=f"{HOOK}/2")
    with pytest.raises(errors.ConflictError):
        made.update({"subscriber": f"{HOOK}/2"})


def test_a_subscriber_is_told_what_the_library_posts(shared_server: SharedServers) -> None:
    client = connect(shared_server(subscriber_allow=LOCAL))
    with receiver() as hook:
        client.subscription("work", subscriber=hook.url)
        client.queue("work").post([{"body": {"n": 1}, "ttl": 120}])
        [heard] = hook.wait_for(1)
    assert heard.document == {
        "body": {"n": 1},
        "ttl": 120,
        "queue_name": "work",
        "Message_Type": "Notification",
    }


def test_a_subscriber_confirms_with_what_it_was_sent(shared_server: SharedServers) -> None:
    server = shared_server(subscriber_allow=LOCAL, require_confirmation=True)
    client = connect(server)
    with receiver() as hook:
        made = client.subscription("work", subscriber=hook.url)
        client.queue("work").post({"body": "too early"})
        question = hook.wait_for(1)[0].document
        assert question["Message_Type"] == "SubscriptionConfirmation"
        signed = {name: question[name] for name in (*SIGNED, "X-Project-ID")}
        headers = {**signed, "Client-ID": str(uuid.uuid4()), "Content-Type": "application/json"}
        for confirmed in (True, False, True):
            answer = httpx.put(
                server.url + question["URL-Paths"], headers=headers, json={"confirmed": confirmed}
            )
            assert answer.status_code == 204
            assert client.subscription("work", id=made.id).confirmed is confirmed
        client.queue("work").post({"body": "in time"})
        heard = [each.document for each in hook.wait_for(3)[1:]]
    told = {document["Message_Type"]: document for document in heard}
    assert set(told) == {"UnsubscribeConfirmation", "Notification"}
    assert told["Notification"]["body"] == "in time"


def test_who_has_a_signed_url_needs_nothing_else(client: Any, server: LiveServer) -> None:
    queue = client.queue("work")
    queue.post({"body": 1})
    signed = queue.signed_url(paths=["messages"], ttl_seconds=600, methods=["GET", "POST"])
    options = {**signed, "os_project_id": signed["project"]}
    conf = {"auth_opts": {"backend": "signed-url", "options": options}}
    guest = client_module.Client(server.url, version=2, conf=conf)
    assert bodies(guest.queue("work").messages()) == [1]
    guest.queue("work").post({"body": 2})
    assert bodies(queue.messages(echo=True)) == [1, 2]
    with pytest.raises(errors.ResourceNotFound):
        guest.queue("other").post({"body": 3})
    with pytest.raises(errors.ResourceNotFound):
        guest.queue("work").pop()
    assert queue.signed_url()["methods"] == ["GET"]


# -- errors ----------------------------------------------------------------------------------------


def test_errors_come_with_title_and_description(queue: Any) -> None:
    with pytest.raises(errors.MalformedRequest, match=r"Invalid API request\..+"):
        queue.post({"body": 1, "ttl": 1})
    with pytest.raises(errors.MalformedRequest):
        queue.claim(ttl=1, grace=60)
    with pytest.raises(errors.MalformedRequest):
        queue.messages(limit=21)
    with pytest.raises(errors.MalformedRequest):
        queue.pop(21)
    with pytest.raises(errors.ResourceNotFound):
        queue.message("nosuchmessage")


def test_a_claimed_message_cannot_be_deleted_by_others(queue: Any) -> None:
    message_id = queue.post({"body": 1})["resources"][0].rsplit("/", 1)[1]
    free = queue.message(message_id)
    queue.claim(ttl=60, grace=60)
    with pytest.raises(errors.ForbiddenError):
        free.delete()
    queue.message(message_id).delete()
    assert queue.stats["messages"]["total"] == 0
