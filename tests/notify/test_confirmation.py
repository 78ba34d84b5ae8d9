"""Asking subscribers whether they agree (contract notifications.md, section 7)."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from nusku import signing
from tests.live import QUEUES, TOPICS, Api, Kind, LiveServer, SettingValue, eventually, expect
from tests.notify.live import GENTLE, OPEN, Subscribed, subscribe, told
from tests.notify.receivers import Farm

KEY = "0123456789abcdef0123456789abcdef"
ASKING: dict[str, SettingValue] = {
    **OPEN,
    "require_confirmation": True,
    "secret_key": KEY,
    "public_url": "https://queues.example.com/here/",
    "default_subscription_ttl": 5000,
}
MEMBERS = {
    "Message_Type",
    "Message",
    "queue_name",
    "URL-Signature",
    "URL-Methods",
    "URL-Paths",
    "URL-Expires",
    "X-Project-ID",
    "SubscribeBody",
    "UnsubscribeBody",
    "WSGISubscribeURL",
}


@pytest.fixture
def server(shared_server: Callable[..., LiveServer]) -> LiveServer:
    return shared_server(**ASKING)


@pytest.fixture(params=[QUEUES, TOPICS], ids=lambda kind: kind.noun)
def api(request: pytest.FixtureRequest, server: LiveServer) -> Api:
    """A client that speaks of queues, then one that speaks of topics."""
    kind: Kind = request.param
    return server.api().but(kind=kind)


def asked(farm: Farm, n: int = 1, path: str = "/") -> dict[str, Any]:
    """The n-th question that came for this path."""
    document: dict[str, Any] = farm.wait_for(n, path=path)[n - 1].json()
    assert document["Message_Type"] in {"SubscriptionConfirmation", "UnsubscribeConfirmation"}
    return document


def signed_put(
    server: LiveServer, document: Mapping[str, Any], body: Mapping[str, Any], **changed: str
) -> int:
    """What a receiver does with a question, with nothing but what it was told; the status.

    `changed`: headers that are different, their hyphens written as underscores.
    """
    headers = {
        "Client-ID": str(uuid.uuid4()),
        "Content-Type": "application/json",
        **{
            name: document[name]
            for name in (
                "X-Project-ID",
                "URL-Signature",
                "URL-Methods",
                "URL-Paths",
                "URL-Expires",
            )
        },
    }
    headers |= {name.replace("_", "-"): value for name, value in changed.items()}
    path = document["WSGISubscribeURL"].removeprefix("https://queues.example.com/here")
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode(), headers, method="PUT"
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def until_s(document: Mapping[str, Any]) -> float:
    """When the signature of a question ends, in seconds since the epoch."""
    text = document["URL-Expires"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", text)
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def quiet(api: Api, farm: Farm, one: Subscribed) -> None:
    """Wait until all that was posted to the queue has been told to all who are to be told."""
    other = subscribe(api, one.queue, farm.url("/ok/other"))
    other.confirm(True)
    api.post_bodies(one.queue, "last")
    eventually(lambda: "last" in [r.json().get("body") for r in farm.to("/ok/other")])
    one.until(pending=0)
    other.delete()


# -- not required ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [QUEUES, TOPICS], ids=lambda kind: kind.noun)
def test_nobody_is_asked_unless_required(
    shared_server: Callable[..., LiveServer], farm: Farm, kind: Kind
) -> None:
    server = shared_server(**OPEN)
    api = server.api().but(kind=kind)
    one = subscribe(api, "q", farm.url())
    subscribe(api, "q", farm.url())
    assert one.show()["confirmed"] is False
    api.post_bodies("q", 1)
    farm.wait_for(1)
    one.confirm(False)
    api.post_bodies("q", 2)
    assert sorted(told(farm.wait_for(2))) == [1, 2]
    one.until(pending=0, delivered=2)
    assert len(farm.requests) == 2


# -- the question ----------------------------------------------------------------------------------


def test_one_question_is_sent_on_creation(api: Api, farm: Farm) -> None:
    began = int(time.time())
    one = subscribe(
        api,
        "q",
        farm.url(),
        ttl=200,
        post_headers={"X-Mine": "yes"},
        post_data="not for questions",
        _signing=True,
    )
    document = asked(farm)
    ended = int(time.time()) + 1
    one.until(pending=0)
    (request,) = farm.requests
    assert request.headers["content-type"] == "application/json"
    assert request.headers["x-mine"] == "yes"
    noun = api.kind.noun
    path = f"/v2/{noun}/q/subscriptions/{one.id}/confirm"
    assert set(document) == MEMBERS
    expires = document["URL-Expires"]
    assert began + 200 <= until_s(document) <= ended + 200
    assert document.pop("Message") == f"You have chosen to subscribe to the {noun[:-1]}: q"
    assert document == {
        "Message_Type": "SubscriptionConfirmation",
        "queue_name": "q",
        "URL-Signature": signing.sign(KEY, [path], ["PUT"], api.project, expires),
        "URL-Methods": "PUT",
        "URL-Paths": path,
        "URL-Expires": expires,
        "X-Project-ID": api.project,
        "SubscribeBody": {"confirmed": True},
        "UnsubscribeBody": {"confirmed": False},
        "WSGISubscribeURL": f"https://queues.example.com/here{path}",
    }
    status = one.status()
    assert (status["delivered"], len(status["attempts"])) == (0, 1)


def test_without_a_public_url_none_is_named(
    private_server: Callable[..., LiveServer], farm: Farm
) -> None:
    """Nor is a key needed: the embedded store has one of its own."""
    server = private_server(**OPEN, require_confirmation=True)
    one = subscribe(server.api(), "q", farm.url())
    document = asked(farm)
    assert set(document) == MEMBERS - {"WSGISubscribeURL"}
    document["WSGISubscribeURL"] = document["URL-Paths"]
    assert signed_put(server, document, document["SubscribeBody"]) == 204
    assert one.show()["confirmed"] is True


def test_a_question_is_tried_again(api: Api, farm: Farm) -> None:
    """By the default policy, whatever the subscription's own is."""
    policy = {**GENTLE, "minimum_delay": 600, "maximum_delay": 1000, "retries_with_no_delay": 0}
    one = subscribe(api, "q", farm.url("/fail/3"), _retry_policy=policy)
    asked(farm, 4)
    one.until(pending=0)
    assert len({request.body for request in farm.requests}) == 1
    assert len(farm.requests) == 4


# -- the whole story -------------------------------------------------------------------------------


def test_from_the_question_to_the_answer_and_back(api: Api, farm: Farm) -> None:
    server = api.server
    one = subscribe(api, "q", farm.url("/ok/one"))
    document = asked(farm, path="/ok/one")
    assert one.show()["confirmed"] is False

    # Not confirmed: skipped, and a line says so.
    api.post_bodies("q", "before")
    lines = eventually(
        lambda: [
            json.loads(line)
            for line in server.log().splitlines()
            if "not confirmed" in line and one.id in line
        ]
    )
    assert {line["level"] for line in lines} == {"info"}
    expect(api.request("POST", one.path("ping")), 409)

    # Confirmed with what came, by somebody who has nothing else.
    assert signed_put(server, document, document["SubscribeBody"]) == 204
    assert one.show()["confirmed"] is True
    api.post_bodies("q", "after")
    farm.wait_for(2, path="/ok/one")
    quiet(api, farm, one)
    assert [r.json().get("body") for r in farm.to("/ok/one")] == [None, "after", "last"]

    # Not any more. The same signature will do, and the notice has a fresh one.
    assert signed_put(server, document, document["UnsubscribeBody"]) == 204
    assert one.show()["confirmed"] is False
    notice = asked(farm, 4, path="/ok/one")
    assert notice["Message_Type"] == "UnsubscribeConfirmation"
    assert set(notice) == MEMBERS
    assert notice["queue_name"] == "q"
    assert "q" in notice["Message"]
    assert "confirmed = True" in notice["Message"]
    assert notice["URL-Paths"] == document["URL-Paths"]
    assert time.time() + 4000 < until_s(notice) <= time.time() + 5001
    assert notice["URL-Signature"] == signing.sign(
        KEY, [notice["URL-Paths"]], ["PUT"], api.project, notice["URL-Expires"]
    )
    api.post_bodies("q", "in between")
    quiet(api, farm, one)
    assert len(farm.to("/ok/one")) == 4

    # And back again.
    assert signed_put(server, notice, notice["SubscribeBody"]) == 204
    api.post_bodies("q", "again")
    quiet(api, farm, one)
    assert told(farm.to("/ok/one")[4:]) == ["again", "last"]


def test_the_signature_is_for_this_alone(api: Api, farm: Farm) -> None:
    server = api.server
    one = subscribe(api, "q", farm.url("/ok/one"))
    other = subscribe(api, "q", farm.url("/ok/other"))
    document = asked(farm, path="/ok/one")
    body = document["SubscribeBody"]
    stranger = f"project-{uuid.uuid4().hex}"
    later = datetime.fromtimestamp(until_s(document) + 60, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    path = document["URL-Paths"]
    assert signed_put(server, document, body, URL_Signature="0" * 64) == 404
    assert signed_put(server, document, body, X_Project_ID=stranger) == 404
    assert signed_put(server, document, body, URL_Expires=later) == 404
    assert signed_put(server, document, body, URL_Methods="GET,PUT") == 404
    moved = document["WSGISubscribeURL"].replace(one.id, other.id)
    assert signed_put(server, {**document, "WSGISubscribeURL": moved}, body) == 404
    moved_path = path.replace(one.id, other.id)
    assert (
        signed_put(server, {**document, "WSGISubscribeURL": moved}, body, URL_Paths=moved_path)
        == 404
    )
    assert signed_put(server, document, {"confirmed": "yes"}) == 400
    assert one.show()["confirmed"] is other.show()["confirmed"] is False
    assert signed_put(server, document, body) == 204
    assert signed_put(server, document, body) == 204
    one.delete()
    assert signed_put(server, document, body) == 404


def test_confirming_does_not_lengthen_a_life(api: Api, farm: Farm) -> None:
    one = subscribe(api, "q", farm.url(), ttl=1)
    one.confirm(True)
    assert one.show()["ttl"] == 1
    eventually(lambda: api.get(one.path()).status_code == 404)
    assert signed_put(api.server, asked(farm), {"confirmed": True}) == 404


def test_posts_before_the_agreement_are_not_told(api: Api, farm: Farm) -> None:
    one = subscribe(api, "q", farm.url("/ok/one"))
    for n in range(5):
        api.post_bodies("q", f"before {n}")
    one.confirm(True)
    for n in range(5):
        api.post_bodies("q", f"after {n}")
    quiet(api, farm, one)
    heard = [r.json() for r in farm.to("/ok/one")]
    bodies = sorted(d["body"] for d in heard if d["Message_Type"] == "Notification")
    assert bodies == [*(f"after {n}" for n in range(5)), "last"]


def test_who_confirms_twice_misses_nothing(api: Api, farm: Farm) -> None:
    """Agreeing anew does not make what was posted before count as posted too early."""
    one = subscribe(api, "q", farm.url("/ok/one"))
    one.confirm(True)
    one.do("pause")
    for n in range(5):
        api.post_bodies("q", n)
        one.confirm(True)
    one.do("resume")
    quiet(api, farm, one)
    assert sorted(told(farm.to("/ok/one")[1:]), key=str) == [0, 1, 2, 3, 4, "last"]


# -- asked again -----------------------------------------------------------------------------------


def test_subscribing_again_asks_again_until_confirmed(api: Api, farm: Farm) -> None:
    one = subscribe(api, "q", farm.url(), ttl=300)
    first = asked(farm)
    again = subscribe(api, "q", farm.url(), ttl=600, post_headers={"X-Mine": "no"})
    assert again.id == one.id
    second = asked(farm, 2)
    assert second["URL-Paths"] == first["URL-Paths"]
    assert 290 < until_s(second) - until_s(first) < 320
    assert one.show()["ttl"] == 300
    assert "x-mine" not in farm.requests[1].headers
    one.confirm(True)
    answer = api.request("POST", api.path("q", "subscriptions"), json={"subscriber": farm.url()})
    expect(answer, 409)
    one.until(pending=0)
    assert len(farm.requests) == 2


def test_another_subscriber_has_to_agree_for_itself(api: Api, farm: Farm) -> None:
    one = subscribe(api, "q", farm.url("/ok/old"))
    asked(farm, path="/ok/old")
    one.confirm(True)
    one.patch(subscriber=farm.url("/ok/new"))
    assert one.show()["confirmed"] is False
    document = asked(farm, path="/ok/new")
    api.post_bodies("q", 1)
    quiet(api, farm, one)
    assert len(farm.to("/ok/new")) == 1
    assert signed_put(api.server, document, {"confirmed": True}) == 204
    api.post_bodies("q", 2)
    farm.wait_for(2, path="/ok/new")
    assert told(farm.to("/ok/new")[1:]) == [2]
    assert len(farm.to("/ok/old")) == 1
    # Other changes ask nobody.
    one.patch(ttl=4000, options={"mine": 1})
    assert one.show()["confirmed"] is True
    quiet(api, farm, one)
    farm.wait_for(3, path="/ok/new")
    assert told(farm.to("/ok/new")[2:]) == ["last"]


def test_a_backlog_does_not_go_to_who_has_not_agreed(api: Api, farm: Farm) -> None:
    """It would be a way to make us send to anybody. It is kept, and can be replayed."""
    policy = {**GENTLE, "retries_with_no_delay": 0}
    one = subscribe(api, "q", farm.url("/fail/1/old"), _retry_policy=policy)
    asked(farm, path="/fail/1/old")
    one.until(pending=0, within_s=20)
    farm.forget()
    one.confirm(True)
    one.do("pause")
    api.post_bodies("q", 1, 2)
    one.until(pending=2)
    one.patch(subscriber=farm.url("/ok/new"))
    document = asked(farm, path="/ok/new")
    status = one.until(pending=0)
    assert status["failed"] == 2
    assert [entry["body"]["body"] for entry in one.failed()] == [1, 2]
    assert all("confirmed" in entry["reason"] for entry in one.failed())
    assert len(farm.to("/ok/new")) == 1
    assert one.replay() == 2
    one.until(pending=0, failed=2)
    assert len(farm.to("/ok/new")) == 1
    assert signed_put(api.server, document, {"confirmed": True}) == 204
    assert one.replay() == 2
    one.until(pending=0, failed=0, delivered=2)
    assert sorted(told(farm.to("/ok/new")[1:])) == [1, 2]


def test_a_backlog_does_not_go_to_who_has_left(api: Api, farm: Farm) -> None:
    one = subscribe(api, "q", farm.url("/ok/one"))
    document = asked(farm, path="/ok/one")
    one.confirm(True)
    one.do("pause")
    api.post_bodies("q", 1)
    one.until(pending=1)
    assert signed_put(api.server, document, {"confirmed": False}) == 204
    one.do("resume")
    asked(farm, 2, path="/ok/one")
    assert one.until(pending=0)["failed"] == 1
    assert len(farm.to("/ok/one")) == 2


@pytest.mark.slow
def test_agreement_survives_a_restart(
    private_server: Callable[..., LiveServer], farm: Farm
) -> None:
    server = private_server(**ASKING)
    yes = subscribe(server.api(), "q", farm.url("/ok/yes"))
    no = subscribe(yes.api, "q", farm.url("/ok/no"))
    document = asked(farm, path="/ok/no")
    yes.confirm(True)
    server.kill()
    server = private_server(**ASKING)
    yes, no = yes.through(server), no.through(server)
    assert (yes.show()["confirmed"], no.show()["confirmed"]) == (True, False)
    yes.api.post_bodies("q", 1)
    eventually(lambda: told(r for r in farm.to("/ok/yes") if b'"body"' in r.body) == [1])
    assert signed_put(server, document, document["SubscribeBody"]) == 204
    yes.api.post_bodies("q", 2)
    eventually(lambda: told(r for r in farm.to("/ok/no") if b'"body"' in r.body) == [2])
