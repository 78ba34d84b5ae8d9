"""Checksums of bodies (contract, 4.8)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.live import TOPICS, Api, LiveServer, expect

VECTORS: list[tuple[Any, str]] = [
    ({"event": "x"}, "a8b8e614767ada136e158f48b517e2e6"),
    ("abc", "ebd9f4c7b06cb0aaf5d13d80e49d8b90"),
    (5, "e4da3b7fbbce2345d7772b0674a318d5"),
    ([1, {"b": 2, "a": "é"}], "3e7772240dff3c55a82733f9e4494b6e"),
    (True, "b326b5062b2f0e69046810717534cb09"),
    ({}, "99914b932bd37a50b983c5e7c90ae93b"),
]
# What the text of a body looks like on the wire does not matter, what it means does.
SPELLINGS = [
    '{"event":"x"}',
    '{ "event" :\n"x" }',
    '"\\u00e9\\u6f22"',
    '"é漢"',
    '"\\ud83d\\ude00"',
    '"😀"',
    '"\\/ \\u002f \\u007f \\u2028 \\t \\b \\f"',
    '"\\u0000\\u001f"',
    "1.0",
    "1e2",
    "1E+2",
    "0.1",
    "-0.0",
    "1e-7",
    "1e16",
    "123456789012345678",
    "1.7976931348623157e308",
    "[]",
    "[1,2 , 3]",
    '{"b":1,"a":2}',
    '{"z":{"y":[{"x":null}]}}',
    "false",
    '""',
]


@pytest.fixture
def summed(shared_server: Callable[..., LiveServer]) -> Api:
    """A client of a server that adds checksums."""
    return shared_server(enable_checksum=True).api()


@pytest.mark.parametrize(("body", "digest"), VECTORS, ids=str)
def test_the_vectors_of_the_contract(body: Any, digest: str, summed: Api) -> None:
    [message_id] = summed.post_bodies("q", body)
    message = expect(summed.message("q", message_id), 200)
    assert message["checksum"] == f"MD5:{digest}"
    assert set(message) == {"id", "href", "ttl", "age", "body", "checksum"}


@pytest.mark.parametrize("text", SPELLINGS)
def test_a_checksum_is_of_what_a_body_means(text: str, summed: Api) -> None:
    document = '{"messages": [{"body": ' + text + "}]}"
    expect(summed.send("POST", summed.path("q", "messages"), document), 201)
    [message] = expect(summed.list_messages("q", "?echo=true"), 200)["messages"]
    canonical = json.dumps(json.loads(text))
    assert message["checksum"] == "MD5:" + hashlib.md5(canonical.encode()).hexdigest()
    # A client computes it from what it received.
    assert json.dumps(message["body"]) == canonical


def test_every_way_to_a_message_shows_it(summed: Api) -> None:
    body, digest = VECTORS[0]
    checksum = f"MD5:{digest}"
    [message_id] = summed.post_bodies("q", body)

    def of(answer: Any) -> Any:
        return answer["messages"][0]["checksum"]

    assert of(expect(summed.list_messages("q", "?echo=true"), 200)) == checksum
    assert of(expect(summed.messages("q", [message_id]), 200)) == checksum
    claim = summed.claimed("q")
    assert claim.messages[0]["checksum"] == checksum
    assert of(expect(summed.show_claim("q", claim.claim_id), 200)) == checksum
    expect(summed.release("q", claim.claim_id), 204)
    popped = expect(summed.pop("q"), 200)
    assert of(popped) == checksum
    assert set(popped["messages"][0]) == {
        "id",
        "age",
        "ttl",
        "body",
        "claim_id",
        "claim_count",
        "checksum",
    }


def test_a_null_body_has_no_checksum(summed: Api) -> None:
    [message_id] = summed.post_bodies("q", None)
    assert "checksum" not in expect(summed.message("q", message_id), 200)


def test_topics_have_checksums_too(summed: Api) -> None:
    body, digest = VECTORS[3]
    topics = summed.but(kind=TOPICS)
    [message_id] = topics.post_bodies("t", body)
    assert expect(topics.message("t", message_id), 200)["checksum"] == f"MD5:{digest}"


def test_dead_letters_keep_their_checksum(summed: Api) -> None:
    body, digest = VECTORS[0]
    expect(summed.create("q", {"_max_claim_count": 0, "_dead_letter_queue": "dead"}), 201)
    summed.post_bodies("q", body)
    expect(summed.claim("q"), 204)
    [message] = expect(summed.list_messages("dead", "?echo=true"), 200)["messages"]
    assert message["checksum"] == f"MD5:{digest}"


@pytest.mark.slow
def test_a_message_posted_without_a_checksum_gets_none_later(
    private_server: Callable[..., LiveServer],
) -> None:
    first = private_server()
    api = first.api()
    api.post_bodies("q", "before")
    first.stop()
    second = private_server(enable_checksum=True)
    later = second.api(api.project, api.client_id)
    later.post_bodies("q", "after")
    before, after = expect(later.list_messages("q", "?echo=true"), 200)["messages"]
    assert "checksum" not in before
    assert "checksum" in after
