"""Creating, showing and deleting queues and topics, and their metadata (contract, 3.1, 3.3, 3.4, 3.6)."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.live import QUEUES, TOPICS, Api, LiveServer, expect, next_link

MAX_METADATA = 65536
CREATE_REFUSED = "Invalid API request"


# -- create ----------------------------------------------------------------------------------------


def test_creating_answers_201_with_the_path_as_location(either: Api) -> None:
    answer = either.create("q", {"colour": "red"})
    expect(answer, 201)
    assert answer.headers["Location"] == either.path("q")
    assert answer.content == b""


def test_creating_again_answers_204_with_the_same_location(either: Api) -> None:
    expect(either.create("q"), 201)
    answer = either.create("q")
    expect(answer, 204)
    assert answer.headers["Location"] == either.path("q")
    assert answer.content == b""


@pytest.mark.parametrize("again", [None, {}, {"colour": "blue"}, {"_default_message_ttl": 99}])
def test_creating_again_changes_nothing(again: dict[str, Any] | None, either: Api) -> None:
    metadata = {"colour": "red", "_default_message_ttl": 120}
    expect(either.create("q", metadata), 201)
    either.post_bodies("q", 1)
    before = expect(either.show("q"), 200)
    expect(either.create("q", again), 204)
    assert expect(either.show("q"), 200) == before == {**either.kind.defaults, **metadata}
    assert either.listed("q") == [1]


def test_creating_without_a_body_shows_the_defaults_only(either: Api) -> None:
    expect(either.create("q"), 201)
    assert expect(either.show("q"), 200) == either.kind.defaults


def test_nested_user_metadata_comes_back_beside_the_defaults(either: Api) -> None:
    metadata = {"a": [1, {"b": None, "c": {"d": [True, "é"]}}], "_ttl": 60, "name": "q", "": 0}
    expect(either.create("q", metadata), 201)
    assert expect(either.show("q"), 200) == {**either.kind.defaults, **metadata}


def test_a_body_is_checked_even_if_the_queue_exists(either: Api) -> None:
    expect(either.create("q"), 201)
    expect(either.create("q", {"_default_message_ttl": 1}), 400, CREATE_REFUSED)
    expect(either.send("PUT", either.path("q"), "{"), 400, "Invalid request body")


@pytest.mark.parametrize("document", ["[]", '[{"a": 1}]', "{", "   ", "nope", '"a"', "1", "null"])
def test_only_an_object_is_metadata(document: str, either: Api) -> None:
    expect(either.send("PUT", either.path("q"), document), 400, "Invalid request body")
    assert either.names() == []


@pytest.mark.parametrize(
    ("size", "status"), [(MAX_METADATA, 201), (MAX_METADATA + 1, 400), (3 * MAX_METADATA, 400)]
)
@pytest.mark.parametrize("blanks", [False, True])
def test_the_size_of_the_body_is_limited_blanks_included(
    blanks: bool, size: int, status: int, either: Api
) -> None:
    document = json.dumps({"a": ""})
    padding = size - len(document)
    document = document + " " * padding if blanks else json.dumps({"a": "x" * padding})
    assert len(document) == size
    answer = either.send("PUT", either.path("q"), document)
    expect(answer, status, CREATE_REFUSED if status == 400 else None)


def test_the_size_is_judged_before_the_json(either: Api) -> None:
    answer = either.send("PUT", either.path("q"), "{" * (MAX_METADATA + 1))
    expect(answer, 400, CREATE_REFUSED)


def test_the_size_limit_is_a_setting(narrow: Api) -> None:
    expect(narrow.send("PUT", narrow.path("q"), '{"a": 1}'.ljust(64)), 201)
    expect(narrow.send("PUT", narrow.path("p"), '{"a": 1}'.ljust(65)), 400, CREATE_REFUSED)


# -- reserved keys ---------------------------------------------------------------------------------

SIZE = "_max_messages_post_size"
TTL = "_default_message_ttl"
DELAY = "_default_message_delay"
DEAD = "_dead_letter_queue"
DEAD_TTL = "_dead_letter_queue_messages_ttl"
COUNT = "_max_claim_count"
ENCRYPT = "_enable_encrypt_messages"
RETRY = "_retry_policy"

ACCEPTED: list[tuple[str, Any]] = [
    (SIZE, 1),
    (SIZE, 262144),
    (TTL, 60),
    (TTL, 1209600),
    (DELAY, 0),
    (DELAY, 900),
    (DEAD, "dead"),
    (DEAD, "dead.letters-1_x"),
    (DEAD, "d" * 64),
    (DEAD_TTL, 60),
    (DEAD_TTL, 1209600),
    (COUNT, 1),
    (COUNT, 0),
    (COUNT, -5),
    (COUNT, 2**62),
    (ENCRYPT, False),
    (ENCRYPT, True),
    (RETRY, {}),
    (RETRY, {"unknown": "member"}),
    (RETRY, {"minimum_delay": 5, "maximum_delay": 15}),
    (RETRY, {"maximum_delay": 15}),
    (RETRY, {"minimum_delay": 20}),
    (RETRY, {"retries_with_no_delay": 3, "minimum_delay_retries": 3, "maximum_delay_retries": 3}),
    (RETRY, {"retry_backoff_function": "linear"}),
    (RETRY, {"retry_backoff_function": "arithmetic"}),
    (RETRY, {"retry_backoff_function": "geometric"}),
    (RETRY, {"retry_backoff_function": "exponential"}),
    (RETRY, {"ignore_subscription_override": True}),
]
ACCEPTED += [(key, None) for key in (SIZE, TTL, DELAY, DEAD, DEAD_TTL, COUNT, ENCRYPT, RETRY)]
ACCEPTED += [("_flavor", None)]

NO_INTEGERS: list[Any] = ["", [], {}, "60", "x", [60], {"a": 1}, 60.5, 60.0]
REFUSED: list[tuple[str, Any]] = [
    (SIZE, 0),
    (SIZE, -1),
    (SIZE, 262145),
    (TTL, 0),
    (TTL, 59),
    (TTL, -60),
    (TTL, 1209601),
    (TTL, True),
    (TTL, False),
    (DELAY, -1),
    (DELAY, 901),
    (DEAD, ""),
    (DEAD, "bad@name"),
    (DEAD, "d" * 65),
    (DEAD, "dead\n"),
    (DEAD, "."),
    (DEAD, ".."),
    (DEAD, 5),
    (DEAD, True),
    (DEAD, False),
    (DEAD, 0),
    (DEAD, []),
    (DEAD, {}),
    (DEAD, ["dead"]),
    (DEAD_TTL, 0),
    (DEAD_TTL, 59),
    (DEAD_TTL, 1209601),
    (DEAD_TTL, True),
    (ENCRYPT, "true"),
    (ENCRYPT, 1),
    (ENCRYPT, [1]),
    (ENCRYPT, {"a": 1}),
    (RETRY, "linear"),
    (RETRY, 5),
    (RETRY, True),
    (RETRY, [1]),
    (RETRY, {"minimum_delay": 21}),
    (RETRY, {"maximum_delay": 14}),
    (RETRY, {"minimum_delay": 30, "maximum_delay": 20}),
    (RETRY, {"minimum_delay": 10, "maximum_delay": 19}),
    (RETRY, {"minimum_delay": "5"}),
    (RETRY, {"maximum_delay": 60.5}),
    (RETRY, {"retries_with_no_delay": "3"}),
    (RETRY, {"minimum_delay_retries": [3]}),
    (RETRY, {"maximum_delay_retries": "x"}),
    (RETRY, {"retry_backoff_function": "cubic"}),
    (RETRY, {"retry_backoff_function": 5}),
    (RETRY, {"ignore_subscription_override": "yes"}),
]
REFUSED += [(key, value) for key in (SIZE, TTL, DELAY, DEAD_TTL, COUNT) for value in NO_INTEGERS]


@pytest.mark.parametrize(("key", "value"), ACCEPTED, ids=str)
def test_a_reserved_key_in_range_is_accepted_and_shown(key: str, value: Any, api: Api) -> None:
    expect(api.create("q", {key: value}), 201)
    shown = expect(api.show("q"), 200)
    assert shown.get(key) == (value or QUEUES.defaults.get(key, value))
    expect(api.create("p"), 201)
    patched = expect(
        api.patch("p", [{"op": "add", "path": f"/metadata/{key}", "value": value}]), 200
    )
    assert patched == shown


@pytest.mark.parametrize(("key", "value"), REFUSED, ids=str)
def test_a_reserved_key_out_of_range_is_refused(key: str, value: Any, api: Api) -> None:
    expect(api.create("q", {key: value, "colour": "red"}), 400, CREATE_REFUSED)
    assert api.names() == []
    expect(api.create("q"), 201)
    operations = [
        {"op": "add", "path": "/metadata/colour", "value": "red"},
        {"op": "add", "path": f"/metadata/{key}", "value": value},
    ]
    expect(api.patch("q", operations), 400, "Invalid request body")
    assert expect(api.show("q"), 200) == QUEUES.defaults


@pytest.mark.parametrize(
    ("key", "value"), [(k, v) for k, v in REFUSED if k in TOPICS.defaults], ids=str
)
def test_the_reserved_keys_of_topics_have_the_same_ranges(key: str, value: Any, api: Api) -> None:
    topics = api.but(kind=TOPICS)
    expect(topics.create("t", {key: value}), 400, CREATE_REFUSED)
    assert topics.names() == []


@pytest.mark.parametrize("key", [SIZE, DELAY, COUNT])
def test_true_is_taken_as_one(key: str, api: Api) -> None:
    expect(api.create("q", {key: True}), 201)
    assert expect(api.show("q"), 200)[key] == 1


@pytest.mark.parametrize(
    ("key", "good", "bad"), [(SIZE, 256, 257), (TTL, 7200, 7201), (DELAY, 30, 31)]
)
def test_the_ranges_follow_the_settings(key: str, good: int, bad: int, narrow: Api) -> None:
    expect(narrow.create("p", {key: bad}), 400, CREATE_REFUSED)
    expect(narrow.create("q", {key: good}), 201)
    assert expect(narrow.show("q"), 200)[key] == good


def test_the_shown_defaults_follow_the_settings(narrow: Api) -> None:
    assert expect(narrow.show("q"), 200) == {**QUEUES.defaults, SIZE: 256}


@pytest.mark.slow
def test_defaults_are_read_from_the_settings_and_never_stored(
    private_server: Callable[..., LiveServer],
) -> None:
    first = private_server()
    api = first.api()
    expect(api.create("q", {"colour": "red"}), 201)
    replace = {"op": "replace", "path": "/metadata/colour", "value": "blue"}
    expect(api.patch("q", [replace]), 200)
    first.stop()
    second = private_server(default_message_ttl=4000, default_message_delay=7)
    shown = expect(second.api(api.project, api.client_id).show("q"), 200)
    assert shown == {**QUEUES.defaults, "colour": "blue", TTL: 4000, DELAY: 7}


# -- show ------------------------------------------------------------------------------------------


def test_a_missing_queue_shows_the_defaults(either: Api) -> None:
    assert expect(either.show("q"), 200) == either.kind.defaults


@pytest.mark.parametrize("falsy", [0, None, "", False, [], {}])
def test_a_falsy_value_of_a_user_key_is_shown_as_it_is(falsy: Any, either: Api) -> None:
    expect(either.create("q", {"a": falsy}), 201)
    assert expect(either.show("q"), 200)["a"] == falsy


def test_a_stored_zero_or_null_of_a_reserved_key_is_shown_as_the_default(api: Api) -> None:
    expect(api.create("q", {COUNT: 0, TTL: None, SIZE: None, DEAD: None}), 201)
    assert expect(api.show("q"), 200) == QUEUES.defaults


# -- nothing but use creates -----------------------------------------------------------------------


def test_reading_never_creates(either: Api) -> None:
    expect(either.show("q"), 200)
    either.stats("q")
    expect(either.list_messages("q"), 200)
    expect(either.message("q", "m"), 404)
    expect(either.messages("q", ["m"]), 404)
    expect(either.pop("q"), 200)
    expect(either.delete_message("q", "m"), 204)
    expect(either.delete_messages("q", ["m"]), 204)
    expect(either.purge("q"), 204)
    expect(either.drop("q"), 204)
    expect(either.patch("q", []), 404)
    assert either.names() == []


def test_claiming_never_creates(api: Api) -> None:
    expect(api.claim("q"), 204)
    expect(api.show_claim("q", "c"), 404)
    expect(api.renew("q", "c", ttl=60), 404)
    expect(api.release("q", "c"), 204)
    assert api.names() == []


def test_posting_creates_a_missing_queue_with_empty_metadata(either: Api) -> None:
    either.post_bodies("q", 1)
    assert either.names() == ["q"]
    assert expect(either.show("q"), 200) == either.kind.defaults
    expect(either.create("q", {"colour": "red"}), 204)


# -- delete ----------------------------------------------------------------------------------------


def test_deleting_is_204_always(either: Api) -> None:
    expect(either.drop("q"), 204)
    expect(either.create("q"), 201)
    expect(either.drop("q"), 204)
    expect(either.drop("q"), 204)


def test_deleting_removes_metadata_and_messages(either: Api) -> None:
    expect(either.create("q", {"colour": "red"}), 201)
    [message_id] = either.post_bodies("q", 1)
    expect(either.drop("q"), 204)
    assert expect(either.show("q"), 200) == either.kind.defaults
    assert either.names() == []
    assert either.listed("q") == []
    expect(either.message("q", message_id), 404)
    assert either.stats("q")["total"] == 0


def test_deleting_removes_claims(api: Api) -> None:
    api.post_bodies("q", 1, 2)
    claim = api.claimed("q", "?limit=1")
    expect(api.drop("q"), 204)
    expect(api.show_claim("q", claim.claim_id), 404)
    expect(api.renew("q", claim.claim_id, ttl=60), 404)


def test_nothing_old_reappears_when_the_queue_is_created_again(api: Api) -> None:
    expect(api.create("q", {"colour": "red"}), 201)
    [message_id, *_] = api.post_bodies("q", 1, 2)
    claim = api.claimed("q", "?limit=1")
    link = next_link(expect(api.list_messages("q", "?echo=true&limit=1"), 200))
    assert link is not None
    expect(api.drop("q"), 204)
    expect(api.create("q"), 201)
    assert expect(api.show("q"), 200) == QUEUES.defaults
    assert api.listed("q", "?echo=true&include_claimed=true") == []
    expect(api.message("q", message_id), 404)
    expect(api.show_claim("q", claim.claim_id), 404)
    api.post_bodies("q", "new")
    assert api.listed("q") == ["new"]
    assert expect(api.get(link), 200) == {"messages": [], "links": []}


def test_who_looks_while_it_is_deleted_brings_nothing_back(either: Api) -> None:
    """Neither what it held before is shown, nor does it hide what is put there anew."""
    with ThreadPoolExecutor(3) as pool:
        for n in range(30):
            name = f"q{n}"
            expect(either.create(name, {"old": n}), 201)
            looks = [pool.submit(either.show, name) for _ in range(2)]
            expect(either.drop(name), 204)
            looks += [pool.submit(either.show, name)]
            for look in looks:
                expect(look.result(), 200)
            assert expect(either.show(name), 200) == either.kind.defaults
            expect(either.create(name, {"new": n}), 201)
            assert expect(either.show(name), 200) == {**either.kind.defaults, "new": n}
