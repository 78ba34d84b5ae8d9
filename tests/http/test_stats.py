"""Statistics of a queue (contract, 3.7; semantics, 10)."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.live import QUEUES, TOPICS, Api, Kind, eventually, expect, pages

ZERO = {"claimed": 0, "free": 0, "total": 0}


def counts(api: Api, queue: str = "q") -> tuple[int, int, int]:
    """claimed, free, total."""
    stats = api.stats(queue)
    return stats["claimed"], stats["free"], stats["total"]


def test_the_statistics_of_a_missing_empty_or_deleted_queue_are_zeros(api: Api) -> None:
    assert expect(api.get(api.path("q", "stats")), 200) == {"messages": ZERO}
    expect(api.create("q"), 201)
    assert api.stats("q") == ZERO
    api.post_bodies("q", 1)
    expect(api.drop("q"), 204)
    assert api.stats("q") == ZERO


def test_the_statistics_of_a_missing_empty_or_deleted_topic_have_a_total_of_zero(api: Api) -> None:
    topics = api.but(kind=TOPICS)
    assert topics.stats("t") == ZERO
    expect(topics.create("t"), 201)
    assert topics.stats("t")["total"] == 0
    topics.post_bodies("t", 1)
    assert topics.stats("t")["total"] == 1
    expect(topics.drop("t"), 204)
    assert topics.stats("t") == ZERO


def test_free_claimed_and_delayed_messages_are_counted(api: Api) -> None:
    api.post_bodies("q", 1, 2, 3, 4)
    api.post_bodies("q", 5, delay=900)
    assert counts(api) == (0, 5, 5)
    claim = api.claimed("q", "?limit=3")
    assert counts(api) == (3, 2, 5)
    expect(api.delete_message("q", claim.ids[0], claim.claim_id), 204)
    assert counts(api) == (2, 2, 4)
    expect(api.delete_messages("q", [claim.ids[1]]), 204)
    assert counts(api) == (1, 2, 3)
    expect(api.release("q", claim.claim_id), 204)
    assert counts(api) == (0, 3, 3)
    assert len(api.popped("q")) == 2
    assert counts(api) == (0, 1, 1)
    expect(api.purge("q"), 204)
    assert counts(api) == (0, 0, 0)


def test_oldest_and_newest_are_there_only_if_there_are_messages(either: Api) -> None:
    expect(either.create("q"), 201)
    assert not {"oldest", "newest"} & set(either.stats("q"))
    either.post_bodies("q", 1)
    assert {"oldest", "newest"} <= set(either.stats("q"))
    either.popped("q")
    assert not {"oldest", "newest"} & set(either.stats("q"))


def test_oldest_and_newest_have_exactly_age_created_and_href(either: Api) -> None:
    either.post_bodies("q", *range(3))
    stats = either.stats("q")
    for entry in (stats["oldest"], stats["newest"]):
        assert set(entry) == {"age", "created", "href"}
        assert isinstance(entry["age"], int)
        assert 0 <= entry["age"] < 60
        created = datetime.strptime(entry["created"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        assert abs((datetime.now(UTC) - created).total_seconds()) < 60


def test_oldest_and_newest_go_by_position_and_can_be_fetched(either: Api) -> None:
    ids = either.post_bodies("q", *range(5))

    def ends() -> tuple[str, str]:
        stats = either.stats("q")
        return stats["oldest"]["href"], stats["newest"]["href"]

    def paths(first: int, last: int) -> tuple[str, str]:
        return either.path("q", "messages", ids[first]), either.path("q", "messages", ids[last])

    assert ends() == paths(0, 4)
    for href in ends():
        expect(either.get(href), 200)
    expect(either.delete_messages("q", [ids[0], ids[4]]), 204)
    assert ends() == paths(1, 3)
    expect(either.delete_messages("q", [ids[1], ids[2]]), 204)
    assert ends() == paths(3, 3)


def test_claimed_messages_can_be_oldest_and_newest(api: Api) -> None:
    ids = api.post_bodies("q", 1, 2, 3)
    api.claimed("q", "?limit=1")
    stats = api.stats("q")
    assert ids[0] in stats["oldest"]["href"]
    assert expect(api.get(stats["oldest"]["href"]), 200)["id"] == ids[0]
    api.claimed("q")
    stats = api.stats("q")
    assert expect(api.get(stats["newest"]["href"]), 200)["id"] == ids[2]


def test_a_queue_of_delayed_messages_only_has_statistics(api: Api) -> None:
    ids = api.post_bodies("q", 1, 2, delay=900)
    stats = api.stats("q")
    assert (stats["claimed"], stats["free"], stats["total"]) == (0, 2, 2)
    assert stats["oldest"]["href"] == api.path("q", "messages", ids[0])
    assert stats["newest"]["href"] == api.path("q", "messages", ids[1])


def test_statistics_need_no_more_than_the_usual_headers(api: Api) -> None:
    expect(api.get(api.path("q", "stats"), headers={}), 400, "Missing header value")


@pytest.mark.parametrize("kind", [QUEUES, TOPICS], ids=lambda kind: kind.noun)
def test_the_total_is_what_paging_over_everything_finds(kind: Kind, api: Api) -> None:
    client = api.but(kind=kind)
    client.post_bodies("q", *range(12))
    client.post_bodies("q", *range(4), delay=900)
    if kind is QUEUES:
        client.claimed("q", "?limit=5")
    path = client.path("q", "messages")
    everything = "?echo=true&include_claimed=true&include_delayed=true&limit=7"
    ids = [m["id"] for page in pages(client, path + everything) for m in page["messages"]]
    assert len(set(ids)) == len(ids) == client.stats("q")["total"] == 16


@pytest.mark.slow
def test_expired_messages_are_not_counted(brief: Api) -> None:
    brief.post_bodies("q", 1, 2, ttl=1)
    [lasting] = brief.post_bodies("q", 3, ttl=600)
    assert counts(brief) == (0, 3, 3)
    eventually(lambda: counts(brief) == (0, 1, 1))
    href = brief.path("q", "messages", lasting)
    stats = brief.stats("q")
    assert stats["oldest"]["href"] == stats["newest"]["href"] == href
