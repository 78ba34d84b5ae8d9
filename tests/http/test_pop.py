"""Popping messages (contract, 4.7)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.live import Api, expect


def test_a_popped_message_has_a_shape_of_its_own(either: Api) -> None:
    [message_id] = either.post_bodies("q", {"a": 1}, ttl=300)
    answer = expect(either.pop("q"), 200)
    assert set(answer) == {"messages"}
    [message] = answer["messages"]
    assert set(message) == {"id", "age", "ttl", "body", "claim_id", "claim_count"}
    assert isinstance(message["age"], int)
    assert 0 <= message.pop("age") < 60
    assert message == {
        "id": message_id,
        "ttl": 300,
        "body": {"a": 1},
        "claim_id": None,
        "claim_count": 0,
    }


@pytest.mark.parametrize("count", [1, 2, 10, 20])
def test_as_many_as_there_are_can_be_popped_oldest_first(count: int, either: Api) -> None:
    ids = either.post_bodies("q", *range(count))
    popped = expect(either.pop("q", count), 200)["messages"]
    assert [message["id"] for message in popped] == ids
    expect(either.message("q", ids[0]), 404)
    expect(either.messages("q", ids), 404)
    assert either.stats("q")["total"] == 0


def test_the_rest_stays(either: Api) -> None:
    either.post_bodies("q", *range(5))
    assert either.popped("q", 1) == [0]
    assert either.listed("q") == [1, 2, 3, 4]
    assert either.popped("q", 20) == [1, 2, 3, 4]


def test_an_empty_or_missing_queue_gives_an_empty_list(either: Api) -> None:
    assert expect(either.pop("q"), 200) == {"messages": []}
    expect(either.create("q"), 201)
    assert expect(either.pop("q", 20), 200) == {"messages": []}


@pytest.mark.parametrize("count", [0, -1, 21, 100])
def test_a_number_out_of_range_is_refused(count: int, either: Api) -> None:
    either.post_bodies("q", 1)
    expect(either.pop("q", count), 400, "Invalid API request")
    assert either.listed("q") == [1]


def test_the_largest_number_is_a_setting(narrow: Api) -> None:
    for n in range(6):
        narrow.post_bodies("q", n)
    expect(narrow.pop("q", 6), 400, "Invalid API request")
    assert narrow.popped("q", 5) == [0, 1, 2, 3, 4]


def test_pop_and_ids_exclude_each_other(either: Api) -> None:
    [message_id] = either.post_bodies("q", 1)
    path = either.path("q", "messages")
    expect(either.delete(f"{path}?pop=1&ids={message_id}"), 400, "Invalid API request")
    assert either.listed("q") == [1]


def test_own_messages_are_popped_too(either: Api) -> None:
    either.post_bodies("q", "mine")
    either.somebody_else().post_bodies("q", "theirs")
    assert either.popped("q") == ["mine", "theirs"]


def test_claimed_messages_are_skipped(api: Api) -> None:
    api.post_bodies("q", 1, 2, 3)
    claim = api.claimed("q", "?limit=1")
    assert api.popped("q") == [2, 3]
    expect(api.release("q", claim.claim_id), 204)
    assert api.popped("q") == [1]


def test_delayed_messages_are_skipped(either: Api) -> None:
    either.post_bodies("q", "later", delay=900)
    either.post_bodies("q", "now")
    assert either.popped("q") == ["now"]
    assert either.stats("q")["total"] == 1


def test_the_claim_count_is_shown_as_kept(api: Api) -> None:
    expect(api.create("q", {"_max_claim_count": 5, "_dead_letter_queue": "dead"}), 201)
    api.post_bodies("q", 1)
    for _ in range(2):
        expect(api.release("q", api.claimed("q").claim_id), 204)
    [message] = expect(api.pop("q"), 200)["messages"]
    assert message["claim_count"] == 2
    assert message["claim_id"] is None


def test_nothing_is_popped_twice(either: Api) -> None:
    ids = either.post_bodies("q", *range(100))

    def pop(_: int) -> list[str]:
        return [message["id"] for message in expect(either.pop("q", 3), 200)["messages"]]

    with ThreadPoolExecutor(8) as threads:
        popped = [one for page in threads.map(pop, range(40)) for one in page]
    assert len(popped) == 100
    assert sorted(popped) == sorted(ids)
