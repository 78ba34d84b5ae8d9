"""Queues that are encrypted at rest: nothing of that is to be seen (semantics, 10.8; contract, 4.9)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.live import PATCH_TYPE, QUEUES, TOPICS, Api, LiveServer, expect

ENCRYPT = "_enable_encrypt_messages"
BODIES: list[Any] = [
    "",
    None,
    "N.",
    "cos\nsystem\n",
    0,
    -0.5,
    True,
    [],
    {},
    [[{"a": [None]}]],
    "é\0漢",
]


def ageless(message: dict[str, Any], queue: str) -> dict[str, Any]:
    """Without what two queues cannot have in common."""
    same = {k: v for k, v in message.items() if k not in {"id", "href", "age"}}
    assert "href" not in message or message["href"].startswith(f"/v2/queues/{queue}/messages/")
    return same


@pytest.fixture(scope="module", params=[False, True], ids=["", "checksums"])
def both(request: pytest.FixtureRequest, shared_server: Callable[..., LiveServer]) -> Api:
    """A client with two queues, of which one is encrypted."""
    extra = {"enable_checksum": True} if request.param else {}
    api: Api = shared_server(**extra).api()
    expect(api.create("sealed", {ENCRYPT: True}), 201)
    expect(api.create("clear"), 201)
    return api


def test_it_is_shown(api: Api) -> None:
    expect(api.create("q", {ENCRYPT: True, "a": 1}), 201)
    assert expect(api.show("q"), 200) == {**QUEUES.defaults, ENCRYPT: True, "a": 1}
    listed = expect(api.list_queues("?detailed=true"), 200)["queues"]
    assert listed[0]["metadata"][ENCRYPT] is True


def in_every_way(api: Api, queue: str, *bodies: Any) -> list[Any]:
    """Post these, and read them by all operations there are."""
    posted = api.post_bodies(queue, *bodies, ttl=500)
    shown: list[Any] = [
        expect(api.list_messages(queue, "?echo=true&limit=20"), 200)["messages"],
        expect(api.messages(queue, posted), 200)["messages"],
        [expect(api.message(queue, id_), 200) for id_ in posted],
    ]
    claim = api.claimed(queue, "?limit=20")
    shown += [claim.messages, expect(api.show_claim(queue, claim.claim_id), 200)["messages"]]
    held = expect(api.list_messages(queue, "?echo=true&include_claimed=true&limit=20"), 200)
    shown.append(held["messages"])
    expect(api.release(queue, claim.claim_id), 204)
    shown.append(expect(api.pop(queue, 20), 200)["messages"])
    for each in shown:
        # Claims are different; that they are named is not.
        for message in each:
            message.pop("href", None)
    return [[ageless(message, queue) for message in each] for each in shown]


def test_all_ways_of_reading_show_what_was_posted(both: Api) -> None:
    sealed = in_every_way(both, "sealed", *BODIES)
    assert sealed == in_every_way(both, "clear", *BODIES)
    for messages in sealed:
        assert [message["body"] for message in messages] == BODIES
        assert [type(message["body"]) for message in messages] == list(map(type, BODIES))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(JSON, min_size=1, max_size=8))
def test_any_json_comes_back_as_it_was(both: Api, bodies: list[Any]) -> None:
    both.post_bodies("sealed", *bodies)
    assert repr(both.popped("sealed")) == repr(bodies)


def test_topics_too(api: Api) -> None:
    topic = api.but(kind=TOPICS)
    expect(topic.create("t", {ENCRYPT: True}), 201)
    topic.post_bodies("t", *BODIES)
    assert topic.listed("t", "?echo=true&limit=20") == BODIES


def test_limits_are_those_of_the_body_in_clear(api: Api) -> None:
    for queue, more in (("sealed", {ENCRYPT: True}), ("clear", {})):
        expect(api.create(queue, {"_max_messages_post_size": 100, **more}), 201)
        body = b'{"messages": [{"body": "%b"}]}'
        path = api.path(queue, "messages")
        expect(api.send("POST", path, body % (b"x" * (100 - len(body) + 2))), 201)
        expect(api.send("POST", path, body % (b"x" * (100 - len(body) + 3))), 400)


def switch(api: Api, value: bool) -> None:
    operation = {"op": "replace", "path": f"/metadata/{ENCRYPT}", "value": value}
    expect(api.patch("q", [operation], PATCH_TYPE), 200)


def test_messages_of_before_and_after_stay_readable(api: Api) -> None:
    expect(api.create("q"), 201)
    api.post_bodies("q", "clear")
    switch(api, True)
    api.post_bodies("q", "sealed")
    assert api.listed("q") == ["clear", "sealed"]
    switch(api, False)
    api.post_bodies("q", "clear again")
    assert api.listed("q") == ["clear", "sealed", "clear again"]
    assert api.claimed("q", "?limit=2").bodies == ["clear", "sealed"]
    assert api.popped("q") == ["clear again"]


@pytest.mark.parametrize("target", [{}, {ENCRYPT: True}], ids=["clear", "encrypted"])
@pytest.mark.parametrize("source", [{}, {ENCRYPT: True}], ids=["clear", "encrypted"])
def test_dead_letters_come_as_they_were(
    source: dict[str, Any], target: dict[str, Any], both: Api
) -> None:
    api = both.stranger()
    options = {"_max_claim_count": 1, "_dead_letter_queue": "dead", **source}
    expect(api.create("q", options), 201)
    expect(api.create("dead", target), 201)
    before = api.post_bodies("q", *BODIES)
    was = expect(api.messages("q", before), 200)["messages"]
    expect(api.release("q", api.claimed("q", "?limit=20").claim_id), 204)
    expect(api.claim("q", "?limit=20"), 204)
    dead = expect(api.list_messages("dead", "?echo=true&limit=20"), 200)["messages"]
    assert [ageless(m, "dead") for m in dead] == [ageless(m, "q") for m in was]
    assert api.claimed("dead", "?limit=20").bodies == BODIES
