"""Requests and replies (contract websocket.md sections 2 and 3)."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nusku.websocket.frames import Frames, Undecodable, queue_name, reply
from tests.websocket.conftest import Connect
from tests.websocket.peer import BINARY, TEXT, Peer

NOTHING: dict[str, Any] = {"action": None, "body": {}, "headers": {}, "api": "v2"}
INVALID = {"error": "Schema validation failed."}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b'{"a":}',
        b"\xff\xfe",
        b'{"a":"\xff"}',
        b'{"a":NaN}',
        b'{"a":99999999999999999999}',
        b'{"a":1e999}',
        b"[" * 100_000,
        b'{"a":' * 70 + b"1" + b"}" * 70,
    ],
)
def test_text_that_is_no_json_is_refused(connect: Connect, text: bytes) -> None:
    peer = connect()
    peer.write(TEXT, text)
    answer = peer.reply()
    assert (answer.status, answer.request) == (400, NOTHING)
    assert answer.body["error"].startswith("Can't decode text (JSON) request. ")
    assert peer.ask("queue_list").status == 200


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\xc1",
        b"\x81",
        b"\x81\x01\x01",  # a key that is no string
        b"\x81\xa1a\xc4\x01x",  # bytes
        b"\x81\xa1a\xcf\xff\xff\xff\xff\xff\xff\xff\xff",  # 2^64 - 1
        b"\x81\xa1a\xa1\xff",  # no UTF-8
        b"\x91" * 100_000,
        b"\x81\xa1a" * 70 + b"\xc0",
        msgspec.msgpack.encode({"a": math.nan}),
        msgspec.msgpack.encode({"a": math.inf}),
        msgspec.msgpack.encode({"a": datetime(2026, 1, 1, tzinfo=UTC)}),
        msgspec.msgpack.encode({"a": msgspec.msgpack.Ext(1, b"x")}),
    ],
)
def test_binary_that_is_no_messagepack_or_could_not_be_json_is_refused(
    connect: Connect, packed: bytes
) -> None:
    peer = connect(binary=True)
    peer.write(BINARY, packed)
    answer = peer.reply()
    assert (answer.status, answer.request, answer.opcode) == (400, NOTHING, BINARY)
    assert answer.body["error"].startswith("Can't decode binary (MessagePack) request. ")
    assert peer.ask("queue_list").status == 200


@pytest.mark.parametrize("document", [[], 1, "text", None, True])
def test_a_request_is_an_object(peer: Peer, document: Any) -> None:
    peer.send(document)
    answer = peer.reply()
    assert (answer.status, answer.request) == (400, NOTHING)
    assert answer.body["error"].startswith("Unexpected body type. Expected dict")


@pytest.mark.parametrize(
    "action",
    ["queue_update", "get_home_doc", "check_node_health", "ping_node", "pool_create", "pool_list",
     "flavor_get", "", None, 1, ["queue_list"], {"a": 1}],
)  # fmt: skip
def test_an_action_that_there_is_not_is_told(peer: Peer, action: Any) -> None:
    answer = peer.ask(action)
    assert (answer.status, answer.body) == (400, {"error": f"{action} is not a valid action"})


@pytest.mark.parametrize(
    "headers",
    [
        None,
        [],
        "text",
        {},
        {"Client-ID": "355186cd-d1e8-4108-a3ac-a2183697232a"},
        {"X-Project-ID": "p"},
        {"Client-ID": 1, "X-Project-ID": "p"},
        {"client-id": "355186cd-d1e8-4108-a3ac-a2183697232a", "X-Project-ID": "p"},
    ],
)
def test_client_and_project_are_required(peer: Peer, headers: Any) -> None:
    peer.send({"action": "queue_list", "headers": headers})
    answer = peer.reply()
    assert (answer.status, answer.body) == (400, INVALID)


@pytest.mark.parametrize("body", [[], "text", 1, True])
def test_a_body_is_an_object(peer: Peer, body: Any) -> None:
    peer.send(peer.request("queue_list", body))
    answer = peer.reply()
    assert (answer.status, answer.body) == (400, INVALID)
    assert answer.request["body"] == body


@pytest.mark.parametrize(
    "headers",
    [
        {"Client-ID": "no uuid"},
        {"X-Project-ID": ""},
        {"X-Project-ID": "a\nb"},
        {"Client-ID": "355186cd-d1e8-4108-a3ac-a2183697232a\0"},
    ],
)
def test_values_of_headers_are_those_of_http(peer: Peer, headers: dict[str, str]) -> None:
    peer.send(peer.request("queue_list", **headers))
    answer = peer.reply()
    assert (answer.status, answer.body["error"]) == (400, None)


def test_a_request_is_echoed_without_its_secrets(peer: Peer) -> None:
    more = {"X-Auth-Token": "token", "X-Other": [1], "URL-Paths": ["/v2"]}
    peer.send({**peer.request("queue_get", {"queue_name": "q", "other": 1}, **more), "id": 5})
    shown = {**peer.request("queue_get", None, **more)["headers"]}
    del shown["X-Auth-Token"]
    assert peer.reply().request == {
        "action": "queue_get",
        "body": {"queue_name": "q", "other": 1},
        "headers": shown,
        "api": "v2",
    }
    peer.send(peer.request("queue_get", {"queue_name": "q"}, **{"URL-Signature": "x"}))
    assert "URL-Signature" not in peer.reply().request["headers"]


def test_who_authenticates_where_nobody_has_to_is_told_so(peer: Peer) -> None:
    for headers in ({"X-Auth-Token": "t", "X-Project-ID": "p"}, {"X-Auth-Token": None}, {}):
        peer.send({"action": "authenticate", "headers": headers})
        answer = peer.reply()
        assert (answer.status, answer.body) == (200, {"message": "Authentified."})
        assert answer.request == {**NOTHING, "action": "authenticate"}


# -- by themselves

_frames = Frames(64)
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(st.dictionaries(st.text(), _json, max_size=4), _json)
def test_both_spellings_say_the_same(headers: Any, body: Any) -> None:
    document = {"action": "x", "headers": headers, "body": body}
    texts = [
        _frames.read(json.dumps(document).encode(), binary=False),
        _frames.read(msgspec.msgpack.encode(document), binary=True),
    ]
    assert [(one.action, one.headers, one.body) for one in texts] == [("x", headers, body)] * 2
    text, packed = (reply(one, 200, {"of": body}) for one in texts)
    assert msgspec.msgpack.decode(packed) == json.loads(text)


@settings(max_examples=30)
@given(st.dictionaries(st.text(), _json, max_size=4), _json, st.booleans())
def test_a_large_one_says_the_same_in_two_steps(headers: Any, body: Any, binary: bool) -> None:
    about = {"queue_name": "q", "padding": "x" * 70_000, "is": body}
    document = {"headers": headers, "other": 5, "body": about, "action": "x"}
    encode = msgspec.msgpack.encode if binary else msgspec.json.encode
    request = _frames.read(encode(document), binary=binary)
    assert isinstance(request.body, msgspec.Raw)
    assert queue_name(request) == "q"
    assert _frames.body(request) == about
    assert (request.action, request.headers) == ("x", headers)


@given(data=st.binary(max_size=200), binary=st.booleans())
def test_nothing_that_is_sent_breaks_the_reader(data: bytes, *, binary: bool) -> None:
    with suppress(Undecodable):
        assert _frames.read(data, binary=binary).size == len(data)
