"""What may be in a request body and how it may be sent (contract, 1.6)."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.live import (
    PATCH_TYPE,
    QUEUES,
    TOPICS,
    Api,
    Kind,
    LiveServer,
    RawConnection,
    chunked,
    expect,
    raw_exchange,
    raw_request,
)

pytestmark = pytest.mark.embedded  # about no store at all

INVALID_BODY = "Invalid request body"
BIG = 2**63

MALFORMED: dict[str, bytes] = {
    "only a brace": b"{",
    "only a bracket": b"[",
    "only a quote": b'"',
    "not JSON": b"nope",
    "a value missing": b'{"a":}',
    "a comma too many": b'{"a": 1,}',
    "a colon missing": b'{"a" 1}',
    "single quotes": b"{'a': 1}",
    "a key without quotes": b"{a: 1}",
    "a comment": b'{"a": 1} // one',
    "trailing garbage": b"{} x",
    "two documents": b"{}{}",
    "blanks": b"   ",
    "a line feed": b"\n",
    "a control character": b'{"a": "\x01"}',
    "a bad escape": b'{"a": "\\x41"}',
    "half an escape": b'{"a": "\\u12"}',
    "invalid UTF-8": b'{"a": "\xff"}',
    "invalid UTF-8 in a key": b'{"\xff": 1}',
    "an overlong NUL": b'{"a": "\xc0\x80"}',
    "an encoded surrogate": b'{"a": "\xed\xa0\x80"}',
    "a cut-off character": b'{"a": "\xe2\x82"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a leading zero": b'{"a": 01}',
    "a plus sign": b'{"a": +1}',
    "a dot without digits": b'{"a": 1.}',
    "hexadecimal": b'{"a": 0x10}',
    "capital true": b'{"a": True}',
}
SCALARS: dict[str, bytes] = {
    "a number": b"1",
    "a float": b"1.5",
    "a string": b'"messages"',
    "true": b"true",
    "null": b"null",
}
NUMBERS: dict[str, bytes] = {
    "NaN": b"NaN",
    "Infinity": b"Infinity",
    "minus Infinity": b"-Infinity",
    "an infinite float": b"1e999",
    "minus an infinite float": b"-1e999",
    "2^63": str(BIG).encode(),
    "-2^63-1": str(-BIG - 1).encode(),
    "2^64": str(2**64).encode(),
    "an integer of 5000 digits": b"9" * 5000,
}
STRINGS: dict[str, bytes] = {
    "a lone high surrogate": b'"\\ud800"',
    "a lone low surrogate": b'"\\udc00"',
    "surrogates the wrong way round": b'"\\udc00\\ud800"',
    "a high surrogate and a letter": b'"\\ud800x"',
}


def nested(depth: int) -> bytes:
    """An array of arrays, this deep."""
    return b"[" * depth + b"]" * depth


# The routes that take a body, and how a document gets into one of each: name → method, path below
# the queue, content type, what stands before and after a value.
Frame = tuple[str, str, str, bytes, bytes]
FRAMES: dict[str, Frame] = {
    "PUT queue": ("PUT", "", "application/json", b'{"a": ', b"}"),
    "PATCH queue": (
        "PATCH",
        "",
        PATCH_TYPE,
        b'[{"op": "add", "path": "/metadata/a", "value": ',
        b"}]",
    ),
    "POST messages": ("POST", "/messages", "application/json", b'{"messages": [{"body": ', b"}]}"),
    "POST claims": ("POST", "/claims", "application/json", b'{"a": ', b"}"),
    "PATCH claim": ("PATCH", "/claims/c", "application/json", b'{"ttl": 60, "a": ', b"}"),
    "POST purge": (
        "POST",
        "/purge",
        "application/json",
        b'{"resource_types": ["messages"], "a": ',
        b"}",
    ),
}
TOPIC_FRAMES = [name for name in FRAMES if "claim" not in name]
EVERYWHERE = [(QUEUES, name) for name in FRAMES] + [(TOPICS, name) for name in TOPIC_FRAMES]
everywhere = pytest.mark.parametrize(
    ("kind", "route"), EVERYWHERE, ids=[f"{kind.noun}-{name}" for kind, name in EVERYWHERE]
)


def send(api: Api, route: str, document: bytes) -> httpx.Response:
    method, rest, content_type, _, _ = FRAMES[route]
    return api.send(method, api.path("q") + rest, document, content_type)


def framed(route: str, value: bytes) -> bytes:
    *_, before, after = FRAMES[route]
    return before + value + after


@everywhere
def test_a_body_that_is_no_json_is_refused(kind: Kind, route: str, api: Api) -> None:
    for what, document in MALFORMED.items():
        answer = send(api.but(kind=kind), route, document)
        assert answer.status_code == 400, what
        assert answer.json()["title"] == INVALID_BODY, what
        assert "body could not be parsed" in answer.json()["description"], what


@everywhere
def test_a_body_that_is_neither_object_nor_array_is_refused(
    kind: Kind, route: str, api: Api
) -> None:
    for what, document in SCALARS.items():
        answer = send(api.but(kind=kind), route, document)
        assert answer.status_code == 400, what
        assert answer.json()["title"] == INVALID_BODY, what
        assert "body could not be parsed" in answer.json()["description"], what


@everywhere
def test_numbers_and_strings_that_cannot_be_kept_are_refused_anywhere_in_the_document(
    kind: Kind, route: str, api: Api
) -> None:
    for what, value in {**NUMBERS, **STRINGS}.items():
        for inner in (value, b"[[" + value + b"]]", b'{"x": ' + value + b"}"):
            answer = send(api.but(kind=kind), route, framed(route, inner))
            assert answer.status_code == 400, what
            assert answer.json()["title"] == INVALID_BODY, what


@everywhere
def test_a_lone_surrogate_in_a_key_is_refused(kind: Kind, route: str, api: Api) -> None:
    answer = send(api.but(kind=kind), route, framed(route, b'{"\\ud800": 1}'))
    expect(answer, 400, INVALID_BODY)


@everywhere
def test_nesting_over_the_limit_is_refused(kind: Kind, route: str, api: Api) -> None:
    before = FRAMES[route][3]
    around = sum(before.count(c) for c in (b"{", b"[")) - before.count(b"]")
    for depth in (65, 1000, 20000):
        answer = send(api.but(kind=kind), route, framed(route, nested(depth - around)))
        assert answer.status_code == 400, depth


@everywhere
def test_unclosed_nesting_is_refused(kind: Kind, route: str, api: Api) -> None:
    expect(send(api.but(kind=kind), route, b"[" * 30000), 400, INVALID_BODY)
    expect(send(api.but(kind=kind), route, b'{"a":' * 10000), 400, INVALID_BODY)


def test_nesting_up_to_the_limit_is_accepted_and_kept(either: Api) -> None:
    message = nested(64 - 3)
    expect(send(either, "POST messages", framed("POST messages", message)), 201)
    assert either.listed("q") == [json.loads(message)]
    metadata = nested(64 - 1)
    expect(send(either.but(), "PUT queue", framed("PUT queue", metadata)), 204)
    expect(either.drop("q"), 204)
    expect(send(either, "PUT queue", framed("PUT queue", metadata)), 201)
    assert expect(either.show("q"), 200)["a"] == json.loads(metadata)


@pytest.mark.parametrize("number", [BIG - 1, -BIG, 0, -1])
def test_64_bit_integers_are_kept_exactly(number: int, either: Api) -> None:
    expect(either.create("q", {"n": number}), 201)
    either.post_bodies("q", number, [number])
    assert expect(either.show("q"), 200)["n"] == number
    assert either.listed("q") == [number, [number]]


def test_of_duplicate_keys_the_last_one_wins(either: Api) -> None:
    expect(either.send("PUT", either.path("q"), '{"a": 1, "b": 0, "a": 2}'), 201)
    assert expect(either.show("q"), 200)["a"] == 2
    twice = '{"messages": [{"body": 1}], "messages": [{"body": 2, "ttl": 1, "ttl": 99, "body": 3}]}'
    expect(either.send("POST", either.path("q", "messages"), twice), 201)
    [message] = expect(either.list_messages("q", "?echo=true"), 200)["messages"]
    assert (message["body"], message["ttl"]) == (3, 99)


def test_unknown_fields_are_ignored(api: Api) -> None:
    document = {"messages": [{"body": 1, "colour": "red", "id": "x"}], "colour": "red"}
    expect(api.request("POST", api.path("q", "messages"), json=document), 201)
    claim = api.claimed("q", ttl=100, colour="red")
    expect(api.renew("q", claim.claim_id, ttl=100, colour="red"), 204)
    purge = {"resource_types": ["messages"], "colour": "red"}
    expect(api.request("POST", api.path("q", "purge"), json=purge), 204)


def test_a_refused_document_leaves_nothing_behind(either: Api) -> None:
    expect(send(either, "PUT queue", framed("PUT queue", b"NaN")), 400)
    assert either.names() == []
    expect(send(either, "POST messages", b'{"messages": [{"body": 1}, {"body": 1e999}]}'), 400)
    assert either.listed("q") == []


# -- JSON that comes back --------------------------------------------------------------------------

VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -7,
    1.5,
    1e100,
    -1e-7,
    0.1,
    "",
    "text",
    "\u0000",
    'quotes " and \\ backslashes',
    "line\nfeed\ttab",
    "é ü 漢字 \u2028 \u2029 \ufeff",
    "😀 beyond the first plane \U0010ffff",
    [],
    {},
    [None, [True, {"a": []}]],
    {"": "", " ": " ", "é": "é", "a.b": {"c/d": "~"}, "id": "x", "href": "y"},
    {"event": "x", "items": [{"n": n} for n in range(50)]},
    "N.",
    "x" * 10000,
]


def test_any_json_value_comes_back_as_it_was_sent(either: Api) -> None:
    ids = either.post_bodies("q", *VALUES)
    for message_id, value in zip(ids, VALUES, strict=True):
        got = expect(either.message("q", message_id), 200)["body"]
        assert got == value
        assert type(got) is type(value)
    listed = expect(either.messages("q", ids[:20]), 200)["messages"]
    assert [message["body"] for message in listed] == VALUES[:20]


def test_any_json_value_can_be_metadata(either: Api) -> None:
    metadata = {f"key{n}": value for n, value in enumerate(VALUES)}
    expect(either.create("q", metadata), 201)
    assert expect(either.show("q"), 200) == {**either.kind.defaults, **metadata}


def test_claimed_and_popped_bodies_come_back_as_they_were_sent(api: Api) -> None:
    api.post_bodies("q", *VALUES)
    claim = api.claimed("q", "?limit=20")
    assert claim.bodies == VALUES[:20]
    shown = expect(api.show_claim("q", claim.claim_id), 200)["messages"]
    assert [message["body"] for message in shown] == VALUES[:20]
    assert api.popped("q") == VALUES[20:]


def test_answers_are_utf8_and_not_escaped(either: Api) -> None:
    document = '{"messages": [{"body": "é漢😀"}]}'
    expect(either.send("POST", either.path("q", "messages"), document), 201)
    answer = either.list_messages("q", "?echo=true")
    assert answer.headers["Content-Type"].split(";")[0] == "application/json"
    assert "é漢😀".encode() in answer.content


@pytest.mark.parametrize(
    ("status", "path"),
    [(200, "/v2/queues"), (404, "/v2/queues/q/messages/m"), (404, "/nosuchpath")],
)
def test_answers_with_a_body_are_application_json(status: int, path: str, api: Api) -> None:
    answer = api.get(path)
    assert answer.status_code == status
    assert answer.headers["Content-Type"].split(";")[0] == "application/json"


def test_answers_without_content_have_neither_body_nor_type(api: Api) -> None:
    [message_id] = api.post_bodies("q", 1)
    for answer in (
        api.create("q"),
        api.delete_message("q", message_id),
        api.delete_messages("q", [message_id]),
        api.claim("q"),
        api.purge("q"),
        api.release("q", "nosuchclaim"),
        api.drop("q"),
        api.get("/v2/ping"),
    ):
        assert answer.status_code == 204, answer.request.url
        assert answer.content == b""
        assert "Content-Type" not in answer.headers


# -- how a body is sent ----------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["POST messages", "PATCH claim", "PATCH queue"])
def test_a_mandatory_body_without_a_length_is_refused(route: str, api: Api) -> None:
    method, rest, content_type, _, _ = FRAMES[route]
    headers = {**api.headers, "Content-Type": content_type}
    answer = raw_exchange(api.server, method, api.path("q") + rest, headers)
    assert (answer.status, answer.title()) == (400, INVALID_BODY)


@pytest.mark.parametrize("route", ["POST messages", "PATCH claim", "PATCH queue"])
def test_a_mandatory_body_of_no_bytes_is_refused(route: str, api: Api) -> None:
    expect(send(api, route, b""), 400, INVALID_BODY)


@pytest.mark.parametrize(("method", "rest"), [("PUT", ""), ("POST", "/claims"), ("POST", "/purge")])
@pytest.mark.parametrize("length", [None, "0"])
def test_an_optional_body_may_be_missing(
    length: str | None, method: str, rest: str, api: Api
) -> None:
    headers = dict(api.headers)
    if length is not None:
        headers["Content-Length"] = length
    answer = raw_exchange(api.server, method, api.path("q") + rest, headers)
    assert answer.status in {201, 204}


def test_a_chunked_body_is_accepted(either: Api) -> None:
    headers = {**either.headers, "Transfer-Encoding": "chunked"}
    body = chunked(b'{"messages"', b': [{"body": "in', b" pieces", b'"}]}')
    answer = raw_exchange(either.server, "POST", either.path("q", "messages"), headers, body)
    assert answer.status == 201
    assert either.listed("q") == ["in pieces"]


def test_a_chunked_body_of_no_bytes_is_an_empty_body(api: Api) -> None:
    headers = {**api.headers, "Transfer-Encoding": "chunked"}
    path = api.path("q", "messages")
    answer = raw_exchange(api.server, "POST", path, headers, chunked())
    assert (answer.status, answer.title()) == (400, INVALID_BODY)
    assert raw_exchange(api.server, "PUT", api.path("new"), headers, chunked()).status == 201


def test_a_chunked_body_is_counted_while_being_read(api: Api) -> None:
    headers = {**api.headers, "Transfer-Encoding": "chunked"}
    piece = b'{"messages": [{"body": "' + b"x" * 65000
    with RawConnection(api.server) as connection:
        connection.send(raw_request("POST", api.path("q", "messages"), headers))
        try:
            # Never ends: the answer has to come because of the limit.
            for _ in range(40):
                connection.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        except ConnectionError:
            pass  # the server answered and closed without reading on
        try:
            answer = connection.answer()
        except ConnectionError:
            pass  # the answer was lost with the connection, as TCP allows
        else:
            assert (answer.status, answer.title()) == (400, "Invalid API request")
    assert api.listed("q") == []


def test_a_chunked_body_one_byte_over_the_limit_is_refused(narrow: Api) -> None:
    headers = {**narrow.headers, "Transfer-Encoding": "chunked"}
    path = narrow.path("q", "messages")
    document = b'{"messages": [{"body": 1}]}'
    for size, status in ((256, 201), (257, 400)):
        padded = document.ljust(size)
        first, rest = chunked(padded[:100])[: -len(chunked())], chunked(padded[100:])
        with RawConnection(narrow.server) as connection:
            connection.send(raw_request("POST", path, headers, first))
            time.sleep(0.1)  # so that it is read in two pieces
            connection.send(rest)
            answer = connection.answer()
        assert answer.status == status
        if status == 400:
            assert answer.title() == "Invalid API request"
    assert narrow.listed("q") == [1]


@pytest.mark.parametrize(
    ("method", "rest"),
    [("PUT", ""), ("POST", "/messages"), ("POST", "/claims"), ("POST", "/purge")],
)
def test_an_absurd_length_is_refused_without_reading(method: str, rest: str, api: Api) -> None:
    headers = {
        **api.headers,
        "Content-Type": "application/json",
        "Content-Length": str(10 * 2**30),
    }
    answer = raw_exchange(api.server, method, api.path("q") + rest, headers, b'{"a": "')
    assert (answer.status, answer.title()) == (400, "Invalid API request")


@pytest.mark.parametrize(
    "broken", [b"zz\r\n{}\r\n0\r\n\r\n", b"-1\r\n{}\r\n", b"ffffffffffffffffff\r\n{}\r\n"]
)
def test_broken_chunks_are_refused(broken: bytes, api: Api) -> None:
    headers = {**api.headers, "Transfer-Encoding": "chunked"}
    with RawConnection(api.server) as connection:
        connection.send(raw_request("POST", api.path("q", "messages"), headers, broken))
        # Closing without a word is an answer too.
        with contextlib.suppress(ConnectionError):
            assert connection.answer().status == 400
    expect(api.get("/v2/ping"), 204)
    assert api.listed("q") == []


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "GZIP", "gzip, identity", "nosuch"])
@pytest.mark.parametrize("route", ["POST messages", "PUT queue"])
def test_a_compressed_body_is_refused(route: str, encoding: str, api: Api) -> None:
    method, rest, content_type, _, _ = FRAMES[route]
    document = framed(route, b"1")
    headers = {**api.headers, "Content-Type": content_type, "Content-Encoding": encoding}
    answer = api.request(method, api.path("q") + rest, headers=headers, content=document)
    expect(answer, 400)
    assert api.listed("q") == []


def test_a_body_encoded_as_identity_is_plain(api: Api) -> None:
    headers = {**api.headers, "Content-Encoding": "identity"}
    path = api.path("q", "messages")
    expect(api.request("POST", path, headers=headers, json={"messages": [{"body": 1}]}), 201)


def test_a_body_shorter_than_its_length_has_no_effect(api: Api) -> None:
    document = b'{"messages": [{"body": 1}]}'
    headers = {**api.headers, "Content-Length": str(len(document) + 10)}
    with RawConnection(api.server) as connection:
        connection.send(raw_request("POST", api.path("q", "messages"), headers, document))
    expect(api.get("/v2/ping"), 204)
    assert api.listed("q") == []


def test_several_requests_on_one_connection_are_answered_in_order(api: Api) -> None:
    def post(n: int) -> bytes:
        document = b'{"messages": [{"body": %d}]}' % n
        headers = {**api.headers, "Content-Length": str(len(document))}
        return raw_request("POST", api.path("q", "messages"), headers, document)

    with RawConnection(api.server) as connection:
        for n in range(5):
            connection.send(post(n))
            answer = connection.answer("POST")
            assert answer.status == 201
    assert api.listed("q") == list(range(5))


@pytest.mark.parametrize(
    "headers",
    [
        [("Content-Length", "5"), ("Content-Length", "6")],
        [("Content-Length", "5"), ("Transfer-Encoding", "chunked")],
        [("Content-Length", "-1")],
        [("Content-Length", "many")],
        [("Transfer-Encoding", "xchunked")],
    ],
)
def test_a_request_whose_end_is_unclear_is_never_taken_for_two(
    headers: list[tuple[str, str]], api: Api
) -> None:
    inner = raw_request("PUT", api.path("smuggled"), api.headers)
    fields = [*api.headers.items(), *headers]
    with RawConnection(api.server, timeout_s=3) as connection:
        connection.send(raw_request("PUT", api.path("q"), fields, b"0\r\n\r\n" + inner))
        try:
            answer = connection.answer()
            assert answer.status < 500 or answer.status == 501
        except OSError:
            pass  # no answer is fine
    expect(api.get("/v2/ping"), 204)
    assert "smuggled" not in api.names()


# -- absurd heads ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [40_000, 200_000])
def test_too_large_headers_are_refused(size: int, api: Api) -> None:
    headers = [*api.headers.items(), ("X-Padding", "x" * size)]
    with RawConnection(api.server) as connection:
        try:
            connection.send(raw_request("GET", "/v2/queues", headers))
            assert 400 <= connection.answer().status < 500
        except ConnectionError:
            pass
    expect(api.get("/v2/ping"), 204)


def test_too_many_headers_are_refused(api: Api) -> None:
    headers = [*api.headers.items(), *((f"X-Field-{n}", "x") for n in range(200))]
    with RawConnection(api.server) as connection:
        try:
            connection.send(raw_request("GET", "/v2/queues", headers))
            assert 400 <= connection.answer().status < 500
        except ConnectionError:
            pass
    expect(api.get("/v2/ping"), 204)


def test_a_too_long_url_is_refused(api: Api) -> None:
    with RawConnection(api.server) as connection:
        try:
            connection.send(raw_request("GET", "/v2/queues?marker=" + "x" * 9000, api.headers))
            assert 400 <= connection.answer().status < 500
        except ConnectionError:
            pass
    expect(api.get("/v2/ping"), 204)


@pytest.mark.parametrize(
    "noise",
    [b"\r\n\r\n", b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/9.9\r\n\r\n"],
)
def test_noise_instead_of_http_does_no_harm(noise: bytes, server: LiveServer) -> None:
    with RawConnection(server, timeout_s=2) as connection:
        connection.send(noise)
    expect(server.api().get("/v2/ping"), 204)


def test_limits_of_the_settings_are_honoured(shared_server: Callable[..., LiveServer]) -> None:
    api = shared_server(max_json_depth=5, min_length_client_id=10).api()
    assert api.post_bodies("q", json.loads(nested(2)))
    expect(api.post("q", {"body": json.loads(nested(3))}), 400)
