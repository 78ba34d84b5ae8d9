"""Who is told of what, and in which words (contract notifications.md, sections 1 to 3 and 8)."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.live import QUEUES, TOPICS, Api, Kind, LiveServer, eventually, expect, ids_of
from tests.notify import receivers
from tests.notify.live import GENTLE, OPEN, Subscribed, count, subscribe, told
from tests.notify.receivers import Exchange, Farm
from tests.notify.smtp import SmtpServer

HTML_LIKE = '</script>&\u2028"\\ß€😀'


@pytest.fixture
def server(shared_server: Callable[..., LiveServer]) -> LiveServer:
    return shared_server(**OPEN)


@pytest.fixture
def api(server: LiveServer) -> Api:
    return server.api()


@pytest.fixture(params=[QUEUES, TOPICS], ids=lambda kind: kind.noun)
def either(request: pytest.FixtureRequest, api: Api) -> Api:
    """A client that speaks of queues, then one that speaks of topics."""
    kind: Kind = request.param
    return api.but(kind=kind)


def all_told(api: Api, farm: Farm, queue: str) -> None:
    """Wait until everything that was posted to the queue until now has been told.

    Somebody subscribes and is told of one more message. Notices are worked off in order, and
    oldest subscriptions first, so then whatever is still to be told is pending.
    """
    last = subscribe(api, queue, farm.url("/ok/last"))
    api.post_bodies(queue, "the last one")
    farm.wait_for(1, path="/ok/last")
    page = expect(api.get(api.path(queue, "subscriptions") + "?limit=1000"), 200)
    for one in page["subscriptions"]:
        Subscribed(api, queue, one["id"]).until(pending=0)
    last.delete()


# -- the documents ---------------------------------------------------------------------------------


def test_two_messages_and_three_webhooks_make_six_posts(either: Api, farm: Farm) -> None:
    for name in "abc":
        subscribe(either, "q", farm.url(f"/ok/{name}"))
    expect(either.post("q", {"body": {"event": "x"}, "ttl": 300}, {"body": [1, None]}), 201)
    requests = farm.wait_for(6)
    all_told(either, farm, "q")
    assert len(farm.requests) == 6 + 4
    documents = [
        {"ttl": 300, "body": {"event": "x"}, "queue_name": "q", "Message_Type": "Notification"},
        {"ttl": 3600, "body": [1, None], "queue_name": "q", "Message_Type": "Notification"},
    ]
    for name in "abc":
        mine = [one for one in requests if one.path == f"/ok/{name}"]
        assert sorted((one.json() for one in mine), key=str) == sorted(documents, key=str)
    for one in requests:
        assert one.method == "POST"
        assert one.headers["content-type"] == "application/json"
        assert "webhook-signature" not in one.headers


def test_a_template_is_filled(either: Api, farm: Farm) -> None:
    template = '{"fixed": [1, "two"], "message": "$zaqar_message$", "again": "$zaqar_message$"}'
    subscribe(either, "q", farm.url(), post_data=template, post_headers={"X-Mine": "yes"})
    expect(either.post("q", {"body": {"event": "$zaqar_message$"}, "ttl": 300}), 201)
    (request,) = farm.wait_for(1)
    document = {
        "ttl": 300,
        "body": {"event": "$zaqar_message$"},
        "queue_name": "q",
        "Message_Type": "Notification",
    }
    assert request.json() == {"fixed": [1, "two"], "message": document, "again": document}
    assert request.headers["x-mine"] == "yes"
    assert request.headers["content-type"] == "application/json"


def test_a_template_can_post_into_another_queue(either: Api, server: LiveServer) -> None:
    """The example of the document: with a template and headers, the subscriber is a queue."""
    other = either.stranger()
    subscribe(
        either,
        "q",
        f"{server.url}{other.path('other', 'messages')}",
        post_data='{"messages": [{"body": "$zaqar_message$", "ttl": 60}]}',
        post_headers=other.headers,
    )
    either.post_bodies("q", {"event": "x"}, ttl=300)
    (body,) = eventually(lambda: other.listed("other"))
    assert body == {
        "ttl": 300,
        "body": {"event": "x"},
        "queue_name": "q",
        "Message_Type": "Notification",
    }


@pytest.mark.parametrize(
    "body",
    [
        "text",
        HTML_LIKE,
        None,
        True,
        0,
        -1.5e300,
        2**63 - 1,
        [],
        {},
        {"a": [{"b": {"c": [HTML_LIKE, 1, 2.5, None, False]}}]},
        {"": "", "Message_Type": "mine", "queue_name": "mine"},
    ],
    ids=repr,
)
def test_any_body_arrives_as_it_was_posted(api: Api, farm: Farm, body: Any) -> None:
    subscribe(api, "q", farm.url())
    api.post_bodies("q", body)
    (request,) = farm.wait_for(1)
    assert request.json()["body"] == body


def test_a_name_with_all_that_names_may_have(either: Api, farm: Farm) -> None:
    name = "-A.b_9" * 10 + ".x_Y"
    subscribe(either, name, farm.url())
    either.post_bodies(name, 1)
    assert farm.wait_for(1)[0].json()["queue_name"] == name


def test_a_large_message_arrives_whole(api: Api, farm: Farm) -> None:
    subscribe(api, "q", farm.url())
    body = "ä" * 80_000
    api.post_bodies("q", body)
    (request,) = farm.wait_for(1)
    assert request.json()["body"] == body
    assert request.headers["content-length"] == str(len(request.body))


def test_a_delayed_message_is_told_at_once(either: Api, farm: Farm) -> None:
    subscribe(either, "q", farm.url())
    either.post_bodies("q", 1, delay=600)
    (request,) = farm.wait_for(1)
    assert request.json() == {
        "ttl": 3600,
        "delay": 600,
        "body": 1,
        "queue_name": "q",
        "Message_Type": "Notification",
    }
    assert either.listed("q") == []


def test_the_defaults_of_the_queue_are_filled_in(either: Api, farm: Farm) -> None:
    defaults = {"_default_message_ttl": 90, "_default_message_delay": 600}
    expect(either.create("q", defaults), 201)
    subscribe(either, "q", farm.url())
    expect(either.post("q", {"body": 1}, {"body": 2, "ttl": 70, "delay": 0}), 201)
    documents = sorted((one.json() for one in farm.wait_for(2)), key=lambda one: one["body"])
    rest = {"queue_name": "q", "Message_Type": "Notification"}
    assert documents == [
        {"ttl": 90, "delay": 600, "body": 1, **rest},
        {"ttl": 70, "delay": 0, "body": 2, **rest},
    ]


def test_mail_subscribers_get_one_mail_a_message(private_server: Callable[..., LiveServer]) -> None:
    with SmtpServer() as mails:
        server = private_server(
            **OPEN, smtp_host="127.0.0.1", smtp_port=mails.port, smtp_security="none"
        )
        api = server.api()
        sender: dict[str, Any] = {"from": "q@example.com"}
        subscribe(api, "q", "mailto:one@example.com?subject=Hello", **sender)
        subscribe(api, "q", "mailto:two@example.com", subject="Other", **sender)
        expect(api.post("q", {"body": {"n": 1}, "ttl": 300}, {"body": {"n": 2}, "ttl": 300}), 201)
        came = mails.wait(4)
        eventually(lambda: count(server, "nusku_deliveries_in_flight") == 0)
    assert len(mails.mails) == 4
    for to, subject in (("one@example.com", "Hello"), ("two@example.com", "Other")):
        texts = sorted(one.content.decode() for one in came if one.recipients == [to])
        assert len(texts) == 2
        for n, text in enumerate(texts, 1):
            head, _, body = text.partition("\r\n\r\n")
            lines = {line.lower() for line in head.split("\r\n")}
            assert {
                f"to: {to}",
                "from: q@example.com",
                f"subject: {subject.lower()}",
                'content-type: text/plain; charset="us-ascii"',
                "mime-version: 1.0",
                "content-transfer-encoding: 7bit",
            } <= lines
            assert body.count("\r\n") == body.endswith("\r\n")
            assert json.loads(body) == {
                "ttl": 300,
                "body": {"n": n},
                "queue_name": "q",
                "Message_Type": "Notification",
            }


# -- who is told -----------------------------------------------------------------------------------


def test_without_subscribers_there_is_no_request(either: Api, farm: Farm) -> None:
    subscribe(either, "other", farm.url("/ok/other"))
    subscribe(either.stranger(), "q", farm.url("/ok/stranger"))
    other_kind = either.but(kind=QUEUES if either.kind is TOPICS else TOPICS)
    subscribe(other_kind, "q", farm.url("/ok/kind"))
    either.post_bodies("q", 1)
    all_told(either, farm, "q")
    assert {one.path for one in farm.requests} == {"/ok/last"}


@pytest.mark.slow
def test_subscribers_on_several_pages_are_all_told(api: Api, farm: Farm) -> None:
    paths = [f"/ok/{n:03}" for n in range(250)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: subscribe(api, "q", farm.url(path)), paths))
    api.post_bodies("q", "hello")
    farm.wait_for(250)
    all_told(api, farm, "q")
    assert sorted(one.path for one in farm.requests if one.json()["body"] == "hello") == paths


def test_a_large_batch_is_told_once_each(api: Api, farm: Farm) -> None:
    for name in "ab":
        subscribe(api, "q", farm.url(f"/ok/{name}"))
    bodies = list(range(900))
    api.post_bodies("q", *bodies)
    requests = farm.wait_for(1800)
    all_told(api, farm, "q")
    for name in "ab":
        assert sorted(told(farm.to(f"/ok/{name}"))[:900]) == bodies
    assert len(farm.requests) == 1800 + 3
    assert len(requests) == 1800


def test_who_subscribes_after_the_post_is_not_told(either: Api, farm: Farm) -> None:
    early = subscribe(either, "q", farm.url("/ok/early"))
    either.post_bodies("q", "first")
    subscribe(either, "q", farm.url("/ok/late"))
    either.post_bodies("q", "second")
    farm.wait_for(2, path="/ok/early")
    farm.wait_for(1, path="/ok/late")
    all_told(either, farm, "q")
    assert told(farm.to("/ok/late"))[0] == "second"
    assert "first" not in told(farm.to("/ok/late"))
    early.until(delivered=3)


def test_who_subscribes_to_a_queue_in_use_is_told_of_the_next(either: Api, farm: Farm) -> None:
    """The queue was posted to while nobody listened, and that must not be remembered."""
    for n in range(3):
        either.post_bodies("q", n)
        one = subscribe(either, "q", farm.url(f"/ok/{n}"))
        either.post_bodies("q", f"to {n}")
        farm.wait_for(1, path=f"/ok/{n}")
        one.delete()
    assert told(farm.requests) == ["to 0", "to 1", "to 2"]


def test_a_subscription_that_ended_is_told_of_what_came_before(api: Api, farm: Farm) -> None:
    """Its first attempt fails, and the second comes when the subscription is no more."""
    policy = {**GENTLE, "retries_with_no_delay": 0}
    one = subscribe(api, "q", farm.url("/fail/1"), ttl=1, _retry_policy=policy)
    api.post_bodies("q", "before")
    eventually(lambda: api.get(one.path()).status_code == 404)
    api.post_bodies("q", "after")
    farm.wait_for(2, path="/fail")
    all_told(api, farm, "q")
    assert told(farm.to("/fail")) == ["before", "before"]


def test_who_unsubscribes_hears_nothing_more(either: Api, farm: Farm) -> None:
    """What waits is dropped, and what was already taken to be sent is not sent: at most four are."""
    one = subscribe(either, "q", farm.url("/slow/0.05", to="one"))
    either.post_bodies("q", *range(100))
    farm.wait_for(10)
    one.delete()
    heard = len(farm.requests)
    # At the same place, where its turn comes only after those who were there before.
    subscribe(either, "q", farm.url("/slow/0.05", to="two"))
    either.post_bodies("q", "a", "b", "c", "d", "e")
    farm.wait_for(5, path="/slow/0.05?to=two")
    expect(either.get(one.path("status")), 404)
    assert len(farm.to("/slow/0.05?to=one")) <= heard + 4


def test_purged_subscriptions_hear_nothing_more(either: Api, farm: Farm) -> None:
    gone = [subscribe(either, "q", farm.url(f"/ok/{n}")) for n in range(120)]
    waiting = subscribe(either, "q", farm.url("/hang"))
    either.post_bodies("q", "heard")
    farm.wait_for(121)
    expect(either.purge("q", "subscriptions"), 204)
    for one in (gone[0], waiting):
        expect(either.get(one.path()), 404)
    either.post_bodies("q", "not heard")
    farm.release()
    all_told(either, farm, "q")
    # Of other tests somebody may still be tried again.
    heard = [body for body in told(farm.requests) if isinstance(body, str)]
    assert Counter(heard) == {"heard": 121, "the last one": 1}


def test_a_purge_of_messages_leaves_subscriptions(either: Api, farm: Farm) -> None:
    subscribe(either, "q", farm.url())
    either.post_bodies("q", 1)
    expect(either.purge("q", "messages"), 204)
    either.post_bodies("q", 2)
    farm.wait_for(2)
    assert sorted(told(farm.requests)) == [1, 2]


def test_a_queue_made_anew_keeps_its_subscriptions(either: Api, farm: Farm) -> None:
    one = subscribe(either, "q", farm.url())
    either.post_bodies("q", 1)
    expect(either.drop("q"), 204)
    assert one.show()["subscriber"] == farm.url()
    either.post_bodies("q", 2)
    expect(either.drop("q"), 204)
    expect(either.create("q", {"mine": 1}), 201)
    either.post_bodies("q", 3)
    farm.wait_for(3)
    assert sorted(told(farm.requests)) == [1, 2, 3]


def test_what_becomes_of_a_message_makes_no_difference(api: Api, farm: Farm) -> None:
    """It is told also when it was deleted, or has expired, before its turn came."""
    one = subscribe(api, "q", farm.url())
    one.do("pause")
    (deleted,) = api.post_bodies("q", "deleted")
    (expired,) = api.post_bodies("q", "expired", ttl=1)
    expect(api.delete_message("q", deleted), 204)
    eventually(lambda: api.message("q", expired).status_code == 404)
    one.do("resume")
    farm.wait_for(2)
    assert sorted(told(farm.requests)) == ["deleted", "expired"]


def test_each_subscription_to_one_endpoint_is_told(either: Api, farm: Farm) -> None:
    for queue in ("q", "r"):
        subscribe(either, queue, farm.url())
    other = either.stranger()
    subscribe(other, "q", farm.url())
    either.post_bodies("q", "q")
    either.post_bodies("r", "r")
    other.post_bodies("q", "other")
    assert sorted(told(farm.wait_for(3))) == ["other", "q", "r"]


def test_subscribing_twice_is_told_once(api: Api, farm: Farm) -> None:
    first = subscribe(api, "q", farm.url())
    assert subscribe(api, "q", farm.url()).id == first.id
    api.post_bodies("q", 1)
    farm.wait_for(1)
    all_told(api, farm, "q")
    assert told(one for one in farm.requests if one.path == "/ok") == [1, "the last one"]


# -- what does not tell ----------------------------------------------------------------------------


def test_only_posts_tell(api: Api, farm: Farm) -> None:
    """Not claims, nor their end, nor pops, nor moves to the dead-letter queue."""
    subscribe(api, "dead", farm.url("/ok/dead"))
    expect(api.create("q", {"_dead_letter_queue": "dead", "_max_claim_count": 1}), 201)
    subscribe(api, "q", farm.url("/ok/q"))
    posted = ids_of(api.post("q", {"body": "dies"}, {"body": "popped"}, {"body": "deleted"}))
    farm.wait_for(3)
    expect(api.pop("q", 1), 200)
    expect(api.delete_message("q", posted[1]), 204)
    claim = api.claimed("q", ttl=60, grace=0)
    expect(api.renew("q", claim.claim_id, ttl=90), 204)
    expect(api.release("q", claim.claim_id), 204)
    assert api.claim("q").status_code == 204
    assert len(api.listed("dead")) == 1
    all_told(api, farm, "q")
    all_told(api, farm, "dead")
    assert sorted(told(farm.to("/ok/q"))) == ["deleted", "dies", "popped", "the last one"]
    assert told(farm.to("/ok/dead")) == ["the last one"]


def test_a_refused_post_tells_nothing(either: Api, farm: Farm) -> None:
    subscribe(either, "q", farm.url())
    assert either.post("q", {"body": 1}, {"body": 2, "ttl": -1}).status_code == 400
    assert either.post("q", {"body": 1}, {"ttl": 60}).status_code == 400
    either.post_bodies("q", 3)
    farm.wait_for(1)
    all_told(either, farm, "q")
    assert told(one for one in farm.requests if one.path == "/ok") == [3, "the last one"]


# -- the poster ------------------------------------------------------------------------------------


def test_posters_wait_for_no_subscriber(api: Api, farm: Farm) -> None:
    hanging = [subscribe(api, "q", farm.url(f"/hang/{n}")) for n in range(20)]
    api.post_bodies("q", 0)
    farm.wait_for(20)
    began = time.monotonic()
    for n in range(10):
        api.post_bodies("q", n)
    assert time.monotonic() - began < 5  # each attempt has fifteen seconds
    hanging[0].until(pending=11)
    assert all(one.path.startswith("/hang") for one in farm.requests)
    assert len(farm.requests) == 20
    farm.release()
    for one in hanging:
        one.until(pending=0, delivered=11)


def test_the_answer_says_nothing_of_subscribers(api: Api, farm: Farm) -> None:
    plain = api.post("plain", {"body": 1})
    subscribe(api, "q", farm.url("/status/500"))
    subscribe(api, "q", farm.url("/garbage"))
    answer = api.post("q", {"body": 1})
    assert answer.status_code == plain.status_code == 201
    assert list(answer.json()) == list(plain.json())
    assert set(answer.headers) == set(plain.headers)


def test_messages_of_a_subscription_overtake_a_failing_one(api: Api, farm: Farm) -> None:
    """A delivery that is put off holds up no other of its subscription."""

    async def fail_once(to: Exchange) -> None:
        bad = to.request.json()["body"] == "bad" and not to.seen
        await (receivers.garbage if bad else receivers.ok)(to)

    farm.on("/mine", fail_once)
    one: Subscribed = subscribe(
        api, "q", farm.url("/mine"), _retry_policy={**GENTLE, "retries_with_no_delay": 0}
    )
    api.post_bodies("q", "bad", *range(10))
    requests = farm.wait_for(12)
    assert told(requests)[0] == told(requests)[-1] == "bad"
    assert sorted(told(requests)[1:-1]) == list(range(10))
    one.until(delivered=11, pending=0, failed=0)
