"""Below a subscription: how its deliveries go, and what can be done about it. These paths are ours."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from tests.live import (
    QUEUES,
    TOPICS,
    Api,
    Kind,
    LiveServer,
    RawConnection,
    eventually,
    expect,
    next_link,
    pages,
    raw_request,
)
from tests.subscribing import LOCAL, Heard, Receiver, Subscriptions, receiver

REFUSED = "Invalid API request"
INVALID = "Invalid request body"
UNKNOWN = "57692ab13990b48c644bb7e6"
MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z")
OUTCOME = {"outcome", "reason", "status", "duration_ms", "detail"}
FRESH = {
    "state": "active",
    "reason": "",
    "pending": 0,
    "failed": 0,
    "delivered": 0,
    "oldest_pending_age": None,
    "attempts": [],
}


@pytest.fixture(params=[QUEUES, TOPICS], ids=lambda kind: kind.noun)
def subscriptions(
    request: pytest.FixtureRequest, shared_server: Callable[..., LiveServer]
) -> Subscriptions:
    """On a server that may tell this machine."""
    kind: Kind = request.param
    return Subscriptions(shared_server(subscriber_allow=LOCAL).api().but(kind=kind))


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as one:
        yield one


def bodies(heard: Any) -> list[Any]:
    return [each.document["body"] for each in heard]


def refused(subscriptions: Subscriptions, hook: Receiver, *messages: Any) -> str:
    """The id of a subscription whose subscriber has refused these messages for good."""
    id_ = subscriptions.made(hook.url)
    hook.status = 400
    given_up = 0

    def next_one_is() -> bool:
        return bool(subscriptions.status(id_)["failed"] > given_up)

    for message in messages:  # one after the other, so that their order is known
        subscriptions.api.post_bodies("q", message)
        eventually(next_one_is)
        given_up += 1
    hook.status = 200
    return id_


def failed(subscriptions: Subscriptions, id_: str, query: str = "") -> dict[str, Any]:
    page: dict[str, Any] = expect(
        subscriptions.api.get(subscriptions.path(id_, "failed") + query), 200
    )
    return page


# -- status ----------------------------------------------------------------------------------------


def test_of_a_new_subscription_there_is_nothing_to_tell(subscriptions: Subscriptions) -> None:
    assert subscriptions.status(subscriptions.made()) == FRESH


def test_what_was_delivered_is_counted_and_shown(
    subscriptions: Subscriptions, hook: Receiver
) -> None:
    id_ = subscriptions.made(hook.url)
    subscriptions.api.post_bodies("q", 1, 2, 3)
    hook.wait_for(3)
    status = eventually(
        lambda: (now := subscriptions.status(id_))["delivered"] == 3 and now["pending"] == 0 and now
    )
    assert {**status, "attempts": []} == {**FRESH, "delivered": 3}
    assert len(status["attempts"]) == 3
    for attempt in status["attempts"]:
        assert set(attempt) == {"time", *OUTCOME}
        assert MOMENT.fullmatch(attempt["time"])
        assert 0 < attempt["duration_ms"] < 15_000
        assert (attempt["outcome"], attempt["reason"], attempt["status"]) == ("delivered", "", 200)
    times = [attempt["time"] for attempt in status["attempts"]]
    assert times == sorted(times, reverse=True)


def test_what_fails_waits_and_is_tried_again(subscriptions: Subscriptions, hook: Receiver) -> None:
    hook.status = 503
    id_ = subscriptions.made(hook.url)
    subscriptions.api.post_bodies("q", 1)
    status = eventually(
        lambda: (now := subscriptions.status(id_))["attempts"] and now["pending"] and now
    )
    assert (status["state"], status["pending"], status["failed"]) == ("active", 1, 0)
    assert status["oldest_pending_age"] in range(30)
    attempt = status["attempts"][0]
    assert (attempt["outcome"], attempt["reason"], attempt["status"]) == ("failed", "status", 503)


def test_no_more_than_twenty_attempts_are_kept(
    subscriptions: Subscriptions, hook: Receiver
) -> None:
    id_ = subscriptions.made(hook.url)
    subscriptions.api.post_bodies("q", *range(25))
    eventually(lambda: subscriptions.status(id_)["delivered"] == 25)
    assert len(subscriptions.status(id_)["attempts"]) == 20


def test_status_tells_no_secrets(subscriptions: Subscriptions, hook: Receiver) -> None:
    hook.status = 400
    id_ = subscriptions.made(hook.url, options={"post_headers": {"X-Word": "hush-hush"}})
    subscriptions.api.post_bodies("q", 1)
    assert eventually(lambda: subscriptions.status(id_)["failed"])
    assert hook.heard[0].headers["x-word"] == "hush-hush"
    assert "hush" not in subscriptions.get(id_, "status").text


# -- pause and resume ------------------------------------------------------------------------------


def test_a_paused_subscription_collects_and_a_resumed_one_sends(
    subscriptions: Subscriptions, hook: Receiver
) -> None:
    id_ = subscriptions.made(hook.url)
    for _ in range(2):
        answer = subscriptions.act(id_, "pause")
        expect(answer, 204)
        assert answer.content == b""
    assert subscriptions.status(id_) == {**FRESH, "state": "paused", "reason": "requested"}
    subscriptions.api.post_bodies("q", 1, 2)
    eventually(lambda: subscriptions.status(id_)["pending"] == 2)
    with receiver() as other:  # by the time that another one is told, this one would have been
        subscriptions.made(other.url)
        subscriptions.api.post_bodies("q", 3)
        other.wait_for(1)
    assert hook.heard == []
    for _ in range(2):
        expect(subscriptions.act(id_, "resume"), 204)
    assert sorted(bodies(hook.wait_for(3))) == [1, 2, 3]
    assert subscriptions.status(id_)["state"] == "active"


def test_a_subscriber_that_is_gone_is_paused(subscriptions: Subscriptions, hook: Receiver) -> None:
    hook.status = 410
    id_ = subscriptions.made(hook.url)
    subscriptions.api.post_bodies("q", 1)
    eventually(lambda: subscriptions.status(id_)["state"] == "paused")
    status = eventually(lambda: (now := subscriptions.status(id_))["failed"] == 1 and now)
    assert status["reason"] == "gone"
    assert status["attempts"][0]["status"] == 410
    hook.status = 200
    expect(subscriptions.act(id_, "resume"), 204)
    subscriptions.api.post_bodies("q", 2)
    assert bodies(hook.wait_for(2)) == [1, 2]


def test_a_pause_survives_a_restart(
    private_server: Callable[..., LiveServer], hook: Receiver
) -> None:
    server = private_server(subscriber_allow=LOCAL)
    api = server.api()
    subscriptions = Subscriptions(api)
    id_ = subscriptions.made(hook.url)
    expect(subscriptions.act(id_, "pause"), 204)
    api.post_bodies("q", 1)
    eventually(lambda: subscriptions.status(id_)["pending"] == 1)
    server.stop()
    again = Subscriptions(private_server(subscriber_allow=LOCAL).api(api.project))
    status = again.status(id_)
    assert (status["state"], status["pending"]) == ("paused", 1)
    assert hook.heard == []
    expect(again.act(id_, "resume"), 204)
    assert bodies(hook.wait_for(1)) == [1]


# -- failed and replay -----------------------------------------------------------------------------


def test_what_was_given_up_is_listed_with_what_was_sent(
    subscriptions: Subscriptions, hook: Receiver
) -> None:
    id_ = refused(subscriptions, hook, {"n": 1})
    page = failed(subscriptions, id_)
    assert set(page) == {"failed", "links"}
    [one] = page["failed"]
    assert set(one) == {"id", "age", "attempts", "reason", "body"}
    assert re.fullmatch(r"[A-Za-z0-9_-]+", one["id"])
    assert one["age"] in range(60)
    assert one["attempts"] == 1
    assert "400" in one["reason"]
    assert one["body"] == hook.heard[0].document
    assert one["body"] == {
        "body": {"n": 1},
        "ttl": 3600,
        "queue_name": "q",
        "Message_Type": "Notification",
    }


def test_all_that_was_given_up_is_listed_along_the_links(
    subscriptions: Subscriptions, hook: Receiver
) -> None:
    id_ = refused(subscriptions, hook, *range(5))
    path = subscriptions.path(id_, "failed")
    seen = [page["failed"] for page in pages(subscriptions.api, f"{path}?limit=2")]
    assert [len(page) for page in seen] == [2, 2, 1, 0]
    listed = [one for page in seen for one in page]
    assert [one["body"]["body"] for one in listed] == list(range(5))
    link = next_link(failed(subscriptions, id_, "?limit=2"))
    assert link == f"{path}?limit=2&marker={listed[1]['id']}"
    assert failed(subscriptions, id_, "?marker=nosuchid") == {"failed": [], "links": []}


def test_where_nothing_was_given_up_the_list_is_empty(subscriptions: Subscriptions) -> None:
    id_ = subscriptions.made()
    assert failed(subscriptions, id_) == {"failed": [], "links": []}
    for limit in (0, -1, 21):
        path = f"{subscriptions.path(id_, 'failed')}?limit={limit}"
        expect(subscriptions.api.get(path), 400, REFUSED)


def test_all_that_was_given_up_is_sent_again(subscriptions: Subscriptions, hook: Receiver) -> None:
    id_ = refused(subscriptions, hook, 1, 2)
    assert expect(subscriptions.act(id_, "replay"), 200) == {"replayed": 2}
    assert sorted(bodies(hook.wait_for(4)[2:])) == [1, 2]
    assert failed(subscriptions, id_)["failed"] == []
    status = eventually(lambda: (now := subscriptions.status(id_))["delivered"] == 2 and now)
    assert status["failed"] == 0
    assert expect(subscriptions.act(id_, "replay"), 200) == {"replayed": 0}


def test_some_of_what_was_given_up_is_sent_again(
    subscriptions: Subscriptions, hook: Receiver
) -> None:
    id_ = refused(subscriptions, hook, 1, 2, 3)
    ids = [one["id"] for one in failed(subscriptions, id_)["failed"]]
    wanted = {"ids": [ids[1], "nosuchid", ids[1]]}
    assert expect(subscriptions.act(id_, "replay", json=wanted), 200) == {"replayed": 1}
    assert bodies(hook.wait_for(4)[3:]) == [2]
    assert [one["id"] for one in failed(subscriptions, id_)["failed"]] == [ids[0], ids[2]]
    assert expect(subscriptions.act(id_, "replay", json=wanted), 200) == {"replayed": 0}
    assert expect(subscriptions.act(id_, "replay", json={"ids": []}), 200) == {"replayed": 0}


def test_what_is_refused_again_is_given_up_again(
    subscriptions: Subscriptions, hook: Receiver
) -> None:
    id_ = refused(subscriptions, hook, 1)
    hook.status = 404
    assert expect(subscriptions.act(id_, "replay"), 200) == {"replayed": 1}
    hook.wait_for(2)
    eventually(lambda: subscriptions.status(id_)["failed"] == 1)
    [one] = failed(subscriptions, id_)["failed"]
    assert one["attempts"] == 1


@pytest.mark.parametrize(
    "document", ["{}", "[]", "{", "1", '{"ids": null}', '{"ids": "a"}', '{"ids": [1]}', "   "]
)
def test_what_to_send_again_is_a_list_of_ids(document: str, subscriptions: Subscriptions) -> None:
    path = subscriptions.path(subscriptions.made(), "replay")
    expect(subscriptions.api.send("POST", path, document), 400, INVALID)


def test_no_more_ids_than_a_page_has_are_taken(subscriptions: Subscriptions) -> None:
    id_ = subscriptions.made()
    expect(subscriptions.act(id_, "replay", json={"ids": ["1"] * 20}), 200)
    expect(subscriptions.act(id_, "replay", json={"ids": ["1"] * 21}), 400, REFUSED)


def test_what_was_given_up_survives_a_restart(
    private_server: Callable[..., LiveServer], hook: Receiver
) -> None:
    server = private_server(subscriber_allow=LOCAL)
    api = server.api()
    subscriptions = Subscriptions(api)
    id_ = refused(subscriptions, hook, 1, 2)
    before = [one["id"] for one in failed(subscriptions, id_)["failed"]]
    server.stop()
    again = Subscriptions(private_server(subscriber_allow=LOCAL).api(api.project))
    assert [one["id"] for one in failed(again, id_)["failed"]] == before
    assert expect(again.act(id_, "replay"), 200) == {"replayed": 2}
    assert sorted(bodies(hook.wait_for(4)[2:])) == [1, 2]


def test_unsubscribing_drops_what_waits_and_what_was_given_up(
    subscriptions: Subscriptions, hook: Receiver
) -> None:
    id_ = refused(subscriptions, hook, 1)
    expect(subscriptions.act(id_, "pause"), 204)
    subscriptions.api.post_bodies("q", 2)
    eventually(lambda: subscriptions.status(id_)["pending"] == 1)
    expect(subscriptions.delete(id_), 204)
    new = subscriptions.made(hook.url)
    assert subscriptions.status(new) == FRESH
    subscriptions.api.post_bodies("q", 3)
    assert bodies(hook.wait_for(2)) == [1, 3]


# -- ping ------------------------------------------------------------------------------------------


def test_a_ping_is_sent_at_once_and_its_outcome_told(
    subscriptions: Subscriptions, hook: Receiver
) -> None:
    id_ = subscriptions.made(hook.url, options={"post_headers": {"X-Shop": "berlin"}})
    outcome = expect(subscriptions.act(id_, "ping"), 200)
    assert set(outcome) == OUTCOME
    assert (outcome["outcome"], outcome["reason"], outcome["status"]) == ("delivered", "", 200)
    assert outcome["duration_ms"] > 0
    [heard] = hook.heard
    assert heard.headers["x-shop"] == "berlin"
    assert {"body", "ttl", "queue_name", "Message_Type"} == set(heard.document)
    status = subscriptions.status(id_)
    assert (status["delivered"], status["pending"], status["failed"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("status", "outcome"), [(500, "failed"), (404, "refused"), (302, "failed")]
)
def test_a_ping_that_fails_is_not_tried_again(
    status: int, outcome: str, subscriptions: Subscriptions, hook: Receiver
) -> None:
    hook.status = status
    id_ = subscriptions.made(hook.url)
    told = expect(subscriptions.act(id_, "ping"), 200)
    assert (told["outcome"], told["status"]) == (outcome, status)
    assert told["reason"]
    assert subscriptions.status(id_)["pending"] == 0
    assert len(hook.heard) == 1


def test_a_ping_tells_that_nobody_listens(subscriptions: Subscriptions) -> None:
    with receiver() as closed:
        url = closed.url
    told = expect(subscriptions.act(subscriptions.made(url), "ping"), 200)
    assert (told["outcome"], told["reason"], told["status"]) == ("failed", "connection", None)


def test_a_ping_reaches_a_paused_subscriber(subscriptions: Subscriptions, hook: Receiver) -> None:
    id_ = subscriptions.made(hook.url)
    expect(subscriptions.act(id_, "pause"), 204)
    assert expect(subscriptions.act(id_, "ping"), 200)["outcome"] == "delivered"
    assert subscriptions.status(id_)["state"] == "paused"


def test_a_ping_ends_with_who_asked_for_it(subscriptions: Subscriptions) -> None:
    """The subscriber takes the connection and says nothing; the client does not wait for that."""
    server = subscriptions.api.server
    with socket.create_server(("127.0.0.1", 0)) as silent:
        id_ = subscriptions.made(f"http://127.0.0.1:{silent.getsockname()[1]}/")
        with RawConnection(server) as client:
            client.send(
                raw_request("POST", subscriptions.path(id_, "ping"), subscriptions.api.headers)
            )
            taken, _ = silent.accept()
        with taken:
            taken.settimeout(10)
            while taken.recv(65_536):  # to the end, which comes long before its time is up
                pass
    assert subscriptions.status(id_)["pending"] == 0
    project = subscriptions.api.project
    eventually(lambda: re.search(rf'"{project}".*"status":499', server.log()))


def test_who_has_not_confirmed_is_not_pinged(
    shared_server: Callable[..., LiveServer], hook: Receiver
) -> None:
    server = shared_server(subscriber_allow=LOCAL, require_confirmation=True)
    subscriptions = Subscriptions(server.api())
    id_ = subscriptions.made(hook.url)
    hook.wait_for(1)  # the question
    expect(subscriptions.act(id_, "ping"), 409, "Resource conflict")
    expect(subscriptions.confirm(id_), 204)
    assert expect(subscriptions.act(id_, "ping"), 200)["outcome"] == "delivered"


# -- secret ----------------------------------------------------------------------------------------


def verified(secret: str, heard: Heard) -> bool:
    try:
        Webhook(secret).verify(heard.body, dict(heard.headers))
    except WebhookVerificationError:
        return False
    return True


def test_a_new_secret_counts_beside_the_one_before(
    subscriptions: Subscriptions, hook: Receiver
) -> None:
    created = expect(subscriptions.create(hook.url, options={"_signing": True}), 201)
    id_, secrets = created["subscription_id"], [created["signing_secret"]]
    for _ in range(2):
        answer = expect(subscriptions.act(id_, "secret"), 200)
        assert set(answer) == {"signing_secret"}
        secrets.append(answer["signing_secret"])
    assert len(set(secrets)) == 3
    assert subscriptions.shown(id_)["options"] == {"_signing": True}
    subscriptions.api.post_bodies("q", 1)
    [heard] = hook.wait_for(1)
    assert [verified(secret, heard) for secret in secrets] == [False, True, True]
    expect(subscriptions.patch(id_, {"options": {"_signing": True}}), 204)
    subscriptions.api.post_bodies("q", 2)
    heard = hook.wait_for(2)[1]
    assert [verified(secret, heard) for secret in secrets] == [False, True, True]
    expect(subscriptions.patch(id_, {"options": {}}), 204)
    subscriptions.api.post_bodies("q", 3)
    assert "webhook-signature" not in hook.wait_for(3)[2].headers


def test_what_was_not_signed_is_from_now_on(subscriptions: Subscriptions, hook: Receiver) -> None:
    id_ = subscriptions.made(hook.url)
    secret = expect(subscriptions.act(id_, "secret"), 200)["signing_secret"]
    assert subscriptions.shown(id_)["options"] == {"_signing": True}
    expect(subscriptions.act(id_, "ping"), 200)
    assert verified(secret, hook.heard[0])


# -- whose they are --------------------------------------------------------------------------------

ACTIONS = [
    ("GET", "status"),
    ("GET", "failed"),
    *(("POST", action) for action in ("pause", "resume", "replay", "ping", "secret")),
]


@pytest.mark.parametrize(("method", "action"), ACTIONS, ids=lambda action: action)
def test_nothing_of_others_or_unknown_is_reached(
    method: str, action: str, subscriptions: Subscriptions
) -> None:
    id_ = subscriptions.made()
    api = subscriptions.api
    other_kind = api.but(kind=TOPICS if api.kind is QUEUES else QUEUES)
    for other, path in [
        (api, subscriptions.path(UNKNOWN, action)),
        (api, subscriptions.path("nosuchid", action)),
        (api, Subscriptions(api, "other").path(id_, action)),
        (api.stranger(), subscriptions.path(id_, action)),
        (other_kind, Subscriptions(other_kind).path(id_, action)),
    ]:
        expect(other.request(method, path), 404, "Not found")
    assert subscriptions.status(id_) == FRESH
    assert subscriptions.shown(id_)["options"] == {}


def test_numbers_are_json_numbers(subscriptions: Subscriptions, hook: Receiver) -> None:
    told = json.loads(subscriptions.act(subscriptions.made(hook.url), "ping").text)
    assert isinstance(told["duration_ms"], float | int)


def test_no_operation_of_ours_shows_in_the_home_document(api: Api) -> None:
    """Clients know what to do with what is there, and nothing more."""
    home = json.dumps(expect(api.get("/v2/"), 200))
    assert "/status" not in home
    assert "/replay" not in home
