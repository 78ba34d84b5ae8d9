"""Posting messages (contract, 4.1)."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.live import Api, expect, ids_of

REFUSED = "Invalid API request"
INVALID = "Invalid request body"
ID = re.compile(r"[A-Za-z0-9_-]+")


def document_of(size: int) -> str:
    """A post of one message, exactly this many bytes long."""
    empty = json.dumps({"messages": [{"body": ""}]})
    return json.dumps({"messages": [{"body": "x" * (size - len(empty))}]})


def post_text(api: Api, text: str, queue: str = "q") -> Any:
    return api.send("POST", api.path(queue, "messages"), text)


# -- success ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bodies", [[{"a": 1}], [{"event": "x"}, [1, 2, 3], 42, "text", None]])
def test_location_and_resources_name_the_messages_in_order(bodies: list[Any], either: Api) -> None:
    answer = either.post("q", *({"body": body} for body in bodies))
    document = expect(answer, 201)
    assert set(document) == {"resources"}
    ids = ids_of(answer)
    assert document["resources"] == [either.path("q", "messages", one) for one in ids]
    assert answer.headers["Location"] == either.path("q", "messages") + "?ids=" + ",".join(ids)
    assert len(set(ids)) == len(bodies)
    assert all(ID.fullmatch(one) for one in ids)
    for one, body in zip(ids, bodies, strict=True):
        assert expect(either.message("q", one), 200)["body"] == body
    found = expect(either.get(answer.headers["Location"]), 200)["messages"]
    assert [message["id"] for message in found] == ids


def test_a_posted_message_shows_its_five_members(either: Api) -> None:
    [message_id] = either.post_bodies("q", {"event": "x"}, ttl=300)
    message = expect(either.message("q", message_id), 200)
    assert set(message) == {"id", "href", "ttl", "age", "body"}
    assert message["id"] == message_id
    assert message["href"] == either.path("q", "messages", message_id)
    assert message["ttl"] == 300
    assert isinstance(message["age"], int)
    assert 0 <= message["age"] < 60
    assert message["body"] == {"event": "x"}


def test_there_is_no_limit_on_the_number_of_messages(either: Api) -> None:
    ids = either.post_bodies("q", *range(1000))
    assert len(set(ids)) == 1000
    assert either.stats("q")["total"] == 1000
    assert either.listed("q", "?echo=true&limit=20") == list(range(20))
    assert expect(either.message("q", ids[999]), 200)["body"] == 999


def test_posting_the_same_again_posts_it_again(either: Api) -> None:
    either.post_bodies("q", 1)
    either.post_bodies("q", 1)
    assert either.listed("q") == [1, 1]


def test_posts_are_kept_in_order(either: Api) -> None:
    for n in range(0, 15, 3):
        either.post_bodies("q", n, n + 1, n + 2)
    assert either.listed("q", "?echo=true&limit=20") == list(range(15))


# -- ttl and delay ---------------------------------------------------------------------------------


def test_without_a_ttl_the_default_holds(either: Api) -> None:
    [message_id] = either.post_bodies("q", 1)
    assert expect(either.message("q", message_id), 200)["ttl"] == 3600


def test_the_queues_default_ttl_outranks_the_services_and_the_messages_own_both(
    either: Api,
) -> None:
    expect(either.create("q", {"_default_message_ttl": 90}), 201)
    [default] = either.post_bodies("q", 1)
    [own] = either.post_bodies("q", 2, ttl=120)
    assert expect(either.message("q", default), 200)["ttl"] == 90
    assert expect(either.message("q", own), 200)["ttl"] == 120


@pytest.mark.parametrize("ttl", [60, 1209600])
def test_a_ttl_at_the_ends_of_its_range_is_accepted(ttl: int, either: Api) -> None:
    [message_id] = either.post_bodies("q", 1, ttl=ttl)
    assert expect(either.message("q", message_id), 200)["ttl"] == ttl


@pytest.mark.parametrize("ttl", [59, 0, -1, 1209601, 2**62])
def test_a_ttl_out_of_range_is_refused(ttl: int, either: Api) -> None:
    expect(either.post("q", {"body": 1, "ttl": ttl}), 400, REFUSED)
    assert either.listed("q") == []


@pytest.mark.parametrize("ttl", [True, False])
def test_a_boolean_is_no_ttl(ttl: bool, either: Api) -> None:
    expect(either.post("q", {"body": 1, "ttl": ttl}), 400)
    assert either.listed("q") == []


@pytest.mark.parametrize("delay", [0, 1, 900])
def test_a_delay_at_the_ends_of_its_range_is_accepted(delay: int, either: Api) -> None:
    [message_id] = either.post_bodies("q", 1, delay=delay)
    expect(either.message("q", message_id), 200)


@pytest.mark.parametrize("delay", [-1, 901, 2**62])
def test_a_delay_out_of_range_is_refused(delay: int, either: Api) -> None:
    expect(either.post("q", {"body": 1, "delay": delay}), 400, REFUSED)
    assert either.stats("q")["total"] == 0


NO_INTEGERS: list[Any] = ["60", "", 60.0, 60.5, [], [60], {}]


@pytest.mark.parametrize(
    ("field", "value"),
    [("delay", None), *((field, value) for field in ("ttl", "delay") for value in NO_INTEGERS)],
    ids=str,
)
def test_a_ttl_or_delay_that_is_no_integer_is_refused(field: str, value: Any, either: Api) -> None:
    expect(either.post("q", {"body": 1, field: value}), 400, INVALID)
    assert either.stats("q")["total"] == 0


def test_the_ranges_follow_the_settings(narrow: Api) -> None:
    narrow.post_bodies("q", 1, ttl=7200, delay=30)
    expect(narrow.post("q", {"body": 1, "ttl": 7201}), 400, REFUSED)
    expect(narrow.post("q", {"body": 1, "delay": 31}), 400, REFUSED)


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", ["{}", "[]", '[{"body": 1}]', '{"message": [{"body": 1}]}'])
def test_a_document_without_messages_is_an_invalid_request(document: str, either: Api) -> None:
    expect(post_text(either, document), 400, REFUSED)


@pytest.mark.parametrize("messages", [{}, {"body": 1}, "x", 1, True, None])
def test_messages_must_be_a_list(messages: Any, either: Api) -> None:
    document = {"messages": messages}
    expect(either.request("POST", either.path("q", "messages"), json=document), 400, INVALID)


def test_no_messages_are_an_invalid_request(either: Api) -> None:
    expect(either.post("q"), 400, REFUSED)


@pytest.mark.parametrize("element", [1, "x", None, True, [], [{"body": 1}]])
def test_a_message_must_be_an_object(element: Any, either: Api) -> None:
    expect(either.post("q", {"body": 1}, element), 400, INVALID)
    assert either.listed("q") == []


@pytest.mark.parametrize("element", [{}, {"ttl": 60}, {"Body": 1}])
def test_a_message_must_have_a_body(element: dict[str, Any], either: Api) -> None:
    expect(either.post("q", element), 400, INVALID)


def test_a_post_is_stored_as_a_whole_or_not_at_all(either: Api) -> None:
    good = {"body": 1}
    for bad in ({"ttl": 60}, {"body": 1, "ttl": 59}, {"body": 1, "delay": "x"}, 5):
        expect(either.post("q", good, bad, good), 400)
        expect(either.post("q", good, good, bad), 400)
    assert either.stats("q")["total"] == 0


@pytest.mark.parametrize("document", ["{", '{"messages": []}', "{}", '{"messages": [{"ttl": 1}]}'])
def test_a_refused_post_may_have_created_the_empty_queue(document: str, either: Api) -> None:
    expect(post_text(either, document), 400)
    assert either.names() == ["q"]
    assert either.stats("q")["total"] == 0


# -- size ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "status"), [(262144, 201), (262145, 400), (600000, 400)])
def test_the_size_of_a_post_is_limited(size: int, status: int, either: Api) -> None:
    text = document_of(size)
    assert len(text) == size
    expect(post_text(either, text), status, REFUSED if status == 400 else None)
    assert len(either.listed("q")) == (1 if status == 201 else 0)


def test_blanks_count(either: Api) -> None:
    text = '{"messages": [{"body": 1}]}'
    expect(post_text(either, text.ljust(262144)), 201)
    expect(post_text(either, text.ljust(262145)), 400, REFUSED)
    expect(post_text(either, text.rjust(262145)), 400, REFUSED)


def test_bytes_are_counted_not_characters(either: Api) -> None:
    expect(either.create("q", {"_max_messages_post_size": 100}), 201)
    text = '{"messages": [{"body": "' + "é" * 40 + '"}]}'
    assert len(text) < 100 < len(text.encode())
    expect(post_text(either, text), 400, REFUSED)


def test_the_size_is_judged_before_the_json(either: Api) -> None:
    expect(post_text(either, "{" * 262145), 400, REFUSED)


def test_a_queue_may_have_a_limit_of_its_own(either: Api) -> None:
    expect(either.create("q", {"_max_messages_post_size": 300}), 201)
    expect(post_text(either, document_of(300)), 201)
    expect(post_text(either, document_of(301)), 400, REFUSED)
    expect(post_text(either, document_of(301), "other"), 201)
    operation = {"op": "replace", "path": "/metadata/_max_messages_post_size", "value": 301}
    expect(either.patch("q", [operation]), 200)
    expect(post_text(either, document_of(301)), 201)
    expect(post_text(either, document_of(302)), 400, REFUSED)


@pytest.mark.parametrize(("size", "status"), [(255, 201), (256, 201), (257, 400)])
def test_the_size_limit_is_a_setting(size: int, status: int, narrow: Api) -> None:
    expect(post_text(narrow, document_of(size)), status)
