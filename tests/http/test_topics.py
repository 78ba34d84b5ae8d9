"""Where topics differ from queues, and that they share nothing with them (contract, 8).

What both have in common is tested under both nouns in the other files.
"""

from __future__ import annotations

import pytest

from tests.live import TOPICS, Api, expect, ids_of, next_link


@pytest.fixture
def topics(api: Api) -> Api:
    """A client that speaks of topics."""
    return api.but(kind=TOPICS)


def test_a_topic_shows_three_defaults(topics: Api) -> None:
    three = {
        "_max_messages_post_size": 262144,
        "_default_message_ttl": 3600,
        "_default_message_delay": 0,
    }
    assert expect(topics.show("t"), 200) == three
    expect(topics.create("t"), 201)
    assert expect(topics.show("t"), 200) == three
    [entry] = expect(topics.list_queues("?detailed=true"), 200)["topics"]
    assert entry == {"name": "t", "href": "/v2/topics/t", "metadata": three}
    assert expect(topics.patch("t", []), 200) == three


def test_everything_of_a_topic_lives_below_v2_topics(topics: Api) -> None:
    created = topics.create("t")
    assert created.headers["Location"] == "/v2/topics/t"
    posted = topics.post("t", {"body": 1})
    [message_id] = ids_of(posted)
    href = f"/v2/topics/t/messages/{message_id}"
    assert posted.headers["Location"] == f"/v2/topics/t/messages?ids={message_id}"
    assert expect(posted, 201)["resources"] == [href]
    page = expect(topics.list_messages("t", "?echo=true"), 200)
    assert page["messages"][0]["href"] == href
    link = next_link(page)
    assert link is not None
    assert link.startswith("/v2/topics/t/messages?")
    assert topics.stats("t")["oldest"]["href"] == href
    listing = next_link(expect(topics.list_queues(), 200))
    assert listing is not None
    assert listing.startswith("/v2/topics?")


@pytest.mark.parametrize(
    ("method", "rest"),
    [("POST", "claims"), ("GET", "claims/c"), ("PATCH", "claims/c"), ("POST", "share")],
)
def test_topics_have_no_claims_and_no_share(method: str, rest: str, topics: Api) -> None:
    expect(topics.create("t"), 201)
    answer = topics.request(method, topics.path("t", *rest.split("/")))
    assert expect(answer, 404) == {"title": "404 Not Found"}


def test_a_topic_and_a_queue_of_one_name_share_nothing(api: Api, topics: Api) -> None:
    expect(api.create("x", {"kind": "queue"}), 201)
    expect(topics.create("x", {"kind": "topic"}), 201)
    [in_queue] = api.post_bodies("x", "queue")
    [in_topic] = topics.post_bodies("x", "topic")
    assert expect(api.show("x"), 200)["kind"] == "queue"
    assert expect(topics.show("x"), 200)["kind"] == "topic"
    assert api.listed("x") == ["queue"]
    assert topics.listed("x") == ["topic"]
    expect(api.message("x", in_topic), 404)
    expect(topics.message("x", in_queue), 404)
    expect(topics.delete_messages("x", [in_queue]), 204)
    assert api.claimed("x").bodies == ["queue"]
    expect(topics.purge("x"), 204)
    assert topics.stats("x")["total"] == 0
    assert api.stats("x")["total"] == 1
    topics.post_bodies("x", "again")
    expect(api.drop("x"), 204)
    assert api.names() == []
    assert topics.names() == ["x"]
    assert topics.listed("x") == ["again"]


def test_posting_to_a_topic_creates_no_queue(api: Api, topics: Api) -> None:
    topics.post_bodies("t", 1)
    assert topics.names() == ["t"]
    assert api.names() == []


def test_keys_that_mean_something_on_queues_only_are_plain_metadata(topics: Api) -> None:
    expect(topics.create("t", {"_max_claim_count": 0, "_dead_letter_queue": "dead"}), 201)
    shown = expect(topics.show("t"), 200)
    assert shown["_max_claim_count"] == 0
    assert shown["_dead_letter_queue"] == "dead"
