"""JSON that is broken, absurd or made to hurt, to every route that takes a body.

Whatever is sent, the answer is a 2xx or a 4xx, it comes soon, a refusal leaves no trace, and the
server is no bigger afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.live import QUEUES, TOPICS, Api, ClaimAnswer, Kind, expect
from tests.security.support import (
    MIB,
    ROUTES,
    TOPIC_ROUTES,
    Route,
    cpu_seconds,
    growth_watched,
    memory_bytes,
    still_serves,
)

INVALID_BODY = "Invalid request body"
DEPTH_MAX = 64
CPU_MAX_S = 0.25  # for one request, on a slow machine
METADATA_MAX = 65_536
POST_MAX = 262_144

# Values that no route may take, wherever in a document they stand.
BAD_VALUES: dict[str, bytes] = {
    "NaN": b"NaN",
    "minus NaN": b"-NaN",
    "nan": b"nan",
    "Infinity": b"Infinity",
    "minus Infinity": b"-Infinity",
    "inf": b"inf",
    "1e999": b"1e999",
    "minus 1e999": b"-1e999",
    "1e309": b"1e309",
    "an exponent of 400 digits": b"1e" + b"9" * 400,
    "2^63": b"9223372036854775808",
    "minus 2^63 minus 1": b"-9223372036854775809",
    "2^64": b"18446744073709551616",
    "20 digits that are less than 2^64": b"10000000000000000000",
    "400 digits": b"1" * 400,
    "5,000 digits": b"1" * 5_000,
    "60,000 digits": b"1" * 60_000,
    "minus 60,000 digits": b"-" + b"9" * 60_000,
    "a leading zero": b"007",
    "a lone minus": b"-",
    "a dot without digits": b"1.",
    "an exponent without digits": b"1e",
    "a hexadecimal number": b"0x10",
    "underscores": b"1_000",
    "Arabic digits": "٣".encode(),
    "a lone high surrogate": b'"\\ud800"',
    "a lone low surrogate": b'"\\udfff"',
    "a high surrogate twice": b'"\\ud83d\\ud83d"',
    "surrogates the wrong way round": b'"\\ude00\\ud83d"',
    "a high surrogate and a newline": b'"\\ud83d\\n"',
    "a high surrogate at the end of a long text": b'"' + b"x" * 5_000 + b'\\ud83d"',
    "a lone surrogate as a key": b'{"\\udc00": 1}',
    "a stray byte": b'"\x80"',
    "Latin-1": b'"caf\xe9"',
    "a truncated character": b'"\xf0\x9f\x98"',
    "an overlong slash": b'"\xc0\xaf"',
    "an overlong NUL": b'"\xe0\x80\x80"',
    "a surrogate in UTF-8": b'"\xed\xa0\xbd\xed\xb8\x80"',
    "beyond Unicode": b'"\xf4\x90\x80\x80"',
    "invalid UTF-8 in a key": b'{"\xff": 1}',
    "invalid UTF-8 outside a string": b"[\xff]",
    "a NUL in a string": b'"a\x00b"',
    "a newline in a string": b'"a\nb"',
    "a tab in a string": b'"a\tb"',
    "an escape character in a string": b'"\x1b[2J"',
    "a control character in a key": b'{"a\x01b": 1}',
    "a NUL outside a string": b"1\x00",
    "a form feed as blank": b"\x0c1",
    "a no-break space as blank": b"\xc2\xa01",
    "an unknown escape": b'"\\x41"',
    "half an escape": b'"\\u12"',
    "a quoted quote that does not end": b'"\\"',
    "single quotes": b"'a'",
    "a key without quotes": b"{a: 1}",
    "a number as a key": b"{1: 1}",
    "null as a key": b"{null: 1}",
    "a comma at the end": b"[1,]",
    "a comma at the start": b"[,1]",
    "a comma at the end of an object": b'{"a": 1,}',
    "two commas": b"[1,,2]",
    "no comma": b"[1 2]",
    "no colon": b'{"a" 1}',
    "a comment": b"1 /* one */",
    "the wrong bracket": b"[1}",
    "a bracket too many": b"[1]]",
    "undefined": b"undefined",
    "True": b"True",
    "nothing": b"",
    "a byte order mark": b"\xef\xbb\xbf1",
}
# Values that are fine JSON, though they may look dangerous.
GOOD_VALUES: dict[str, bytes] = {
    "2^63 minus 1": b"9223372036854775807",
    "minus 2^63": b"-9223372036854775808",
    "minus zero": b"-0",
    "a float of minus zero": b"-0.0",
    "the largest float": b"1.7976931348623157e308",
    "a float too small": b"1e-999",
    "an exponent of minus 400 digits": b"1e-" + b"9" * 400,
    "a fraction of 20,000 digits": b"0." + b"1" * 20_000,
    "a float of 300 digits": b"1" * 300 + b".0",
    "an escaped NUL": b'"\\u0000"',
    "DEL": b'"\x7f"',
    "line separators": '"\u2028\u2029"'.encode(),
    "noncharacters": '"\ufffe\uffff\U0010ffff"'.encode(),
    "a byte order mark in a string": '"\ufeff"'.encode(),
    "escaped surrogates that belong together": b'"\\ud83d\\ude00"',
    "brackets in a string": b'"' + b"[{" * 10_000 + b'"',
    "closing brackets in a string": b'"' + b"]}" * 10_000 + b'"',
    "brackets behind escaped quotes": b'"' + b'\\"[' * 10_000 + b'"',
    "brackets behind backslashes": b'["' + b"\\\\" * 9_999 + b'", "' + b"[" * 100 + b'"]',
    "brackets in a key": b'{"' + b"[" * 10_000 + b'": 1}',
    "brackets in many strings": b"[" + b'"[[",' * 5_000 + b"1]",
    "many arrays beside each other": b"[" + b"[]," * 10_000 + b"[]]",
    "many objects beside each other": b"[" + b"{}," * 10_000 + b"{}]",
    "a key 5,000 times": b"{" + b'"a": 1, ' * 5_000 + b'"a": 2}',
    "5,000 keys": b"{" + b"".join(b'"%d":1,' % n for n in range(5_000)) + b'"a": 2}',
    "an empty key": b'{"": {"": {"": null}}}',
    "a prototype": b'{"__proto__": {"__class__": 1}, "constructor": 2}',
    "blanks": b" \t\r\n" * 1_000 + b"1",
    "30,000 zeros": b"[" + b"0," * 30_000 + b"0]",
}
# Whole documents. None: it depends on the route what is made of it, within 2xx and 4xx.
DOCUMENTS: dict[str, tuple[bytes, bool | None]] = {
    "blanks only": (b" \r\n\t ", False),
    "NULs": (b"\x00" * 100, False),
    "a NUL behind it": (b"{}\x00", False),
    "a number": (b"1", False),
    "a text": (b'"messages"', False),
    "null": (b"null", False),
    "false": (b"false", False),
    "two documents": (b"{}{}", False),
    "a document and a bracket": (b'{"messages": [{"body": 1}]}]', False),
    "a byte order mark before it": (b'\xef\xbb\xbf{"messages": [{"body": 1}]}', None),
    "a byte order mark only": (b"\xef\xbb\xbf", False),
    "UTF-16": ('{"messages": [{"body": 1}]}'.encode("utf-16"), False),
    "UTF-32": ('{"messages": [{"body": 1}]}'.encode("utf-32"), False),
    "pickle": (b"\x80\x04N.", False),
    "MessagePack": (b"\x81\xa8messages\x90", False),
    "XML": (b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY y "z">]><x>&y;</x>', False),
    "YAML": (b"messages:\n- body: !!python/object/apply:os.system [id]\n", False),
    "a form": (b"messages=1&body=2", False),
    "gzip": (
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xab\xae\x05\x00C\xbf\xa6\xa3\x02\x00",
        False,
    ),
    "60,000 opening brackets": (b"[" * 60_000, False),
    "60,000 opening braces": (b"{" * 60_000, False),
    "objects without end": (b'{"a":' * 12_000, False),
    "objects in arrays without end": (b'[{"a":' * 10_000, False),
    "60,000 closing brackets": (b"]" * 60_000, False),
    "60,000 quotes": (b'"' * 60_000, False),
    "60,000 backslashes": (b"\\" * 60_000, False),
    "60,000 commas": (b"[" + b"," * 60_000, False),
    "brackets in a string that does not end": (b'["' + b"[" * 60_000, False),
    "100 arrays in 100 arrays": (b"[" * 100 + b"1" + b"]" * 100, False),
    "as deep as goes under the limit of bytes": (b"[" * 30_000 + b"]" * 30_000, False),
    "an empty object": (b"{}", None),
    "an empty array": (b"[]", None),
    "arrays side by side": (b"[" + b"[],[]," * 9_000 + b"[]]", None),
    "20,000 empty keys": (b"{" + b'"":0,' * 12_000 + b'"":0}', None),
    "a long key": (b'{"' + b"k" * 65_000 + b'": 1}', None),
}

every_route = pytest.mark.parametrize(
    ("kind", "route"),
    [pytest.param(QUEUES, route, id=f"queues-{route.name}") for route in ROUTES]
    + [
        pytest.param(TOPICS, route, id=f"topics-{route.name}", marks=pytest.mark.slow)
        for route in TOPIC_ROUTES
    ],
)


def send(
    api: Api, method: str, path: str, document: bytes, content_type: str = "application/json"
) -> httpx.Response:
    """Send a document, and insist that it does not keep the server busy."""
    before = cpu_seconds(api.server)
    answer = api.send(method, path, document, content_type)
    spent_s = cpu_seconds(api.server) - before
    assert spent_s < CPU_MAX_S, f"{method} {path} {document[:80]!r}…: {spent_s:.3f} s"
    return answer


@dataclass
class Scene:
    """A queue (or topic) `q` with something of everything, that a refused request must not change."""

    api: Api
    claim: ClaimAnswer | None

    @classmethod
    def set(cls, api: Api) -> Scene:
        expect(api.create("q", {"kept": "as it was"}), 201)
        api.post_bodies("q", 1, 2, 3, 4)
        claim = None
        if api.kind is QUEUES:
            claim = api.claimed("q", "?limit=2", ttl=1000, grace=1000)
        return cls(api, claim)

    def send(self, route: Route, document: bytes) -> httpx.Response:
        """Send a document; PUT goes to a queue that is not there, the others to `q`."""
        queue = "new" if route.name == "put" else "q"
        below = route.below.format(claim=self.claim.claim_id if self.claim else "")
        return send(
            self.api, route.method, self.api.path(queue) + below, document, route.content_type
        )

    def seen(self) -> Mapping[str, Any]:
        """All that a client can see of it, ages left out."""
        api = self.api
        every = "?echo=true&include_claimed=true&include_delayed=true&limit=20"
        seen = {
            "names": api.names(),
            "metadata": expect(api.show("q"), 200),
            "messages": [
                (message["id"], message["ttl"], message["href"], message["body"])
                for message in expect(api.list_messages("q", every), 200)["messages"]
            ],
            "counts": {k: v for k, v in api.stats("q").items() if isinstance(v, int)},
        }
        if self.claim:
            claim = expect(api.show_claim("q", self.claim.claim_id), 200)
            seen["claim"] = (claim["ttl"], [message["id"] for message in claim["messages"]])
        return seen


def insist(answer: httpx.Response, what: str, *, accepted: bool | None) -> None:
    """Insist on a 2xx or a 4xx, whichever it should be; None: either."""
    told = f"{what}: {answer.status_code} {answer.text[:300]}"
    assert 200 <= answer.status_code < 300 or 400 <= answer.status_code < 500, told
    if accepted is not None:
        assert (answer.status_code < 300) is accepted, told
    if answer.status_code >= 400:
        parsed = answer.json()
        assert set(parsed) == {"title", "description"}, told
        assert parsed["description"], told


@every_route
def test_a_document_that_is_refused_leaves_no_trace(kind: Kind, route: Route, api: Api) -> None:
    scene = Scene.set(api.but(kind=kind))
    before = scene.seen()
    for what, value in BAD_VALUES.items():
        answer = scene.send(route, route.framed(value))
        insist(answer, what, accepted=False)
        assert answer.json()["title"] == INVALID_BODY, what
    for what, (document, accepted) in DOCUMENTS.items():
        if accepted is False:
            insist(scene.send(route, document), what, accepted=False)
    assert scene.seen() == before


@every_route
def test_a_document_that_only_looks_dangerous_is_taken(kind: Kind, route: Route, api: Api) -> None:
    scene = Scene.set(api.but(kind=kind))
    for what, value in GOOD_VALUES.items():
        document = route.framed(value)
        if route.name in {"put", "patch", "purge"} and len(document) > METADATA_MAX:
            continue
        insist(scene.send(route, document), what, accepted=True)
        if route.name == "put":
            expect(scene.api.drop("new"), 204)
        if route.name == "patch":
            expect(scene.api.patch("q", [{"op": "remove", "path": "/metadata/fuzz"}]), 200)
        if route.name == "post":
            [body] = scene.api.popped("q", 20)[-1:]
            assert body == json.loads(value), what


@every_route
def test_any_other_document_gets_a_clear_answer(kind: Kind, route: Route, api: Api) -> None:
    scene = Scene.set(api.but(kind=kind))
    for what, (document, accepted) in DOCUMENTS.items():
        if accepted is None:
            insist(scene.send(route, document), what, accepted=None)
            scene.api.drop("new")


@every_route
def test_the_depth_limit_counts_brackets_outside_strings_only(
    kind: Kind, route: Route, api: Api
) -> None:
    scene = Scene.set(api.but(kind=kind))
    room = DEPTH_MAX - route.depth

    def arrays(depth: int, inside: bytes = b"") -> bytes:
        return b"[" * depth + inside + b"]" * depth

    def objects(depth: int, inside: bytes = b"1") -> bytes:
        return b'{"a":' * depth + inside + b"}" * depth

    brackets = b'"' + b"[" * 100 + b'"'
    closing = b'"' + b"]" * 100 + b'"'
    refused = {
        "an array too deep": arrays(room + 1),
        "an object too deep": objects(room + 1),
        "both too deep": objects(room // 2, arrays(room - room // 2 + 1)),
        "too deep beside a shallow one": b"[[]," + arrays(room) + b"]",
        "too deep, with closing brackets in a string": b"[" + closing + b"," + arrays(room) + b"]",
        "too deep behind an escaped quote": b'["\\"",' + arrays(room) + b"]",
        "too deep behind an escaped backslash": b'["\\\\",' + arrays(room) + b"]",
        "too deep in a key's value": b'{"]]]]]]]]]]]]]]]]]]]]": ' + arrays(room) + b"}",
        "too deep among blanks": b"[ " * (room + 1) + b"] " * (room + 1),
        "one too deep among many": b"[" + b"[]," * 5_000 + arrays(room) + b"]",
    }
    for what, value in refused.items():
        insist(scene.send(route, route.framed(value)), what, accepted=False)
    taken = {
        "an array as deep as may be": arrays(room),
        "an object as deep as may be": objects(room),
        "as deep as may be with brackets in a string": arrays(room, brackets),
        "as deep as may be, many times": b"[" + b",".join([arrays(room - 1)] * 50) + b"]",
        "brackets in a string alone": brackets,
    }
    for what, value in taken.items():
        insist(scene.send(route, route.framed(value)), what, accepted=True)
        scene.api.drop("new")


@pytest.mark.parametrize(
    "piece",
    [
        b"[",
        b"]",
        b"1",
        b'"',
        b'\\"',
        b"\\\\",
        b'"a":{',
        b"1.1e1,",
        b" ",
        b"\\u0041",
        b'"",',
        b"[],",
    ],
    ids=ascii,
)
def test_the_time_to_refuse_a_document_grows_no_faster_than_the_document(
    piece: bytes, api: Api
) -> None:
    # The last of these has brackets enough for their depth to be looked at. 20 kB tell quadratic
    # from linear, and are little enough for the next test to get its turn.
    for before in (
        b"",
        b'{"messages": [{"body": ',
        b'{"messages": [{"body": "',
        b"[[],[" * 30 + b'"',
    ):
        document = before + piece * (20_000 // len(piece))
        answer = send(api, "POST", api.path("q", "messages"), document)
        insist(answer, f"{before!r}{piece!r}…", accepted=False)


@every_route
def test_a_document_cut_off_anywhere_is_refused(kind: Kind, route: Route, api: Api) -> None:
    scene = Scene.set(api.but(kind=kind))
    before = scene.seen()
    whole = route.framed('{"k": ["a\\"é", -1.5e3, true, null, {"x": "\\ud83d\\ude00"}]}'.encode())
    for length in range(1, len(whole)):
        insist(scene.send(route, whole[:length]), f"{length} bytes", accepted=False)
    assert scene.seen() == before


def test_of_duplicate_keys_the_last_one_wins(either: Api) -> None:
    put = b'{"_default_message_ttl": 1, "_default_message_ttl": 100, "a": 1, "a": {"b": 1, "b": 2}}'
    expect(either.send("PUT", either.path("q"), put), 201)
    shown = expect(either.show("q"), 200)
    assert (shown["_default_message_ttl"], shown["a"]) == (100, {"b": 2})
    post = b'{"messages": [], "messages": [{"ttl": 1, "ttl": 99, "body": 1, "body": {"c": 1, "c": 2}}]}'
    expect(either.send("POST", either.path("q", "messages"), post), 201)
    [message] = expect(either.list_messages("q", "?echo=true"), 200)["messages"]
    assert (message["ttl"], message["body"]) == (99, {"c": 2})


@pytest.mark.parametrize(
    "document",
    [
        b'{"messages": 7, "messages": [{"body": 1}]}',
        b'{"messages": [{"body": 1, "ttl": "x", "ttl": 99}]}',
        b'{"messages": [{"body": 1, "ttl": null, "delay": [], "ttl": 99, "delay": 0}]}',
    ],
)
def test_of_duplicate_keys_the_last_one_wins_whatever_type_the_others_have(
    document: bytes, either: Api
) -> None:
    expect(either.send("POST", either.path("q", "messages"), document), 201)


def test_of_duplicate_keys_the_last_one_is_the_one_that_is_checked(either: Api) -> None:
    for document in (
        b'{"messages": [{"body": 1, "ttl": 60, "ttl": 1}]}',
        b'{"messages": [{"body": 1}], "messages": []}',
        b'{"messages": [{"body": 1}], "messages": null}',
    ):
        expect(either.send("POST", either.path("q", "messages"), document), 400)
    expect(
        either.send("PUT", either.path("p"), b'{"_max_claim_count": 1, "_max_claim_count": "x"}'),
        400,
    )
    assert either.listed("q") == []


def test_a_batch_with_one_bad_message_posts_none(either: Api) -> None:
    for bad in (
        b'{"body": NaN}',
        b'{"body": 1, "ttl": 1}',
        b'{"body": 1, "ttl": 9223372036854775807}',
        b'{"body": 1, "delay": -1}',
        b'{"body": 1, "ttl": "60"}',
        b'{"body": 1, "ttl": 60.0}',
        b'{"body": 1, "ttl": true}',
        b'{"ttl": 60}',
        b"null",
        b"[]",
        b'"body"',
    ):
        document = b'{"messages": [' + b'{"body": 1},' * 5 + bad + b"]}"
        answer = either.send("POST", either.path("q", "messages"), document)
        assert answer.status_code == 400, (bad, answer.text)
    assert either.listed("q", "?echo=true&include_delayed=true") == []
    assert either.stats("q")["total"] == 0


def test_documents_that_hurt_do_not_make_the_server_grow(api: Api) -> None:
    expensive = [
        b"[" * 250_000,
        b'{"a":' * 50_000,
        b'{"messages": [' + b"[]," * 80_000 + b"1]}",
        b'{"messages": [' + b'{"body":1,"ttl":1},' * 13_000 + b"1]}",
        b'{"messages": "' + b"\\u0041" * 40_000,
        b'{"messages": ' + b"1" * 250_000 + b"}",
        b'{"messages": [' + b"1e999," * 40_000 + b"1]}",
        b"{" + b",".join(b'"%d":[{}]' % n for n in range(18_000)) + b"}",
    ]
    scene = Scene.set(api)
    routes = [route for route in ROUTES if route.name in {"post", "renew"}]

    def send_all() -> None:
        for route in routes:
            for document in expensive:
                assert len(document) <= POST_MAX
                answer = scene.send(route, document)
                assert answer.status_code < 500, (route.name, document[:50], answer.text)

    send_all()  # what stays for good, such as the allocator's arenas, is there now
    before = memory_bytes(api.server)
    with growth_watched(api.server) as growth:
        send_all()
    assert memory_bytes(api.server) - before < 10 * MIB
    assert growth.peak_bytes < 20 * MIB
    still_serves(api.server)


# -- whatever comes to mind ------------------------------------------------------------------------

_whole = st.integers(min_value=-(2**63), max_value=2**63 - 1)
_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_any_json = st.recursive(
    st.none() | st.booleans() | _whole | st.floats(allow_nan=False, allow_infinity=False) | _text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_text, inner, max_size=4),
    max_leaves=10,
)
_interesting = st.sampled_from([0, 1, 60, 100, 1000, 2**31, 2**63 - 1, -1, "", "q", "60", [], {}])
_value = _interesting | _any_json
_reserved = st.sampled_from(
    [
        "_max_messages_post_size",
        "_default_message_ttl",
        "_default_message_delay",
        "_dead_letter_queue",
        "_dead_letter_queue_messages_ttl",
        "_max_claim_count",
        "_enable_encrypt_messages",
        "_flavor",
        "_retry_policy",
    ]
)
_policy = st.dictionaries(
    st.sampled_from(
        [
            "retries_with_no_delay",
            "minimum_delay_retries",
            "minimum_delay",
            "maximum_delay",
            "maximum_delay_retries",
            "retry_backoff_function",
            "ignore_subscription_override",
        ]
    ),
    _value,
)
_metadata = st.dictionaries(
    _reserved | _text, _value | st.fixed_dictionaries({"x": _value}) | _policy, max_size=4
)
_operation = st.dictionaries(
    st.sampled_from(["op", "path", "value"]),
    _value
    | st.sampled_from(["add", "remove", "replace"])
    | st.builds(lambda key: f"/metadata/{key}", _reserved | _text),
)
_message = st.dictionaries(st.sampled_from(["body", "ttl", "delay", "x"]), _value)
_fuzzed = {
    "put": _metadata | _value,
    "patch": st.lists(_operation | _value, max_size=3) | _value,
    "post": st.fixed_dictionaries({"messages": st.lists(_message | _value, max_size=3) | _value})
    | _value,
    "claim": st.dictionaries(st.sampled_from(["ttl", "grace", "limit", "x"]), _value) | _value,
    "renew": st.dictionaries(st.sampled_from(["ttl", "grace", "limit", "x"]), _value) | _value,
    "purge": st.fixed_dictionaries({"resource_types": st.lists(_value, max_size=2) | _value})
    | _value,
}
relaxed = settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("route", ROUTES, ids=[route.name for route in ROUTES])
@relaxed
@given(data=st.data())
def test_values_of_any_type_at_any_place_never_break_it(
    route: Route, data: st.DataObject, api: Api
) -> None:
    document = json.dumps(data.draw(_fuzzed[route.name])).encode()
    path = api.path("fuzzed") + route.below.format(claim="0")
    answer = api.send(route.method, path, document, route.content_type)
    assert answer.status_code < 500, (document, answer.text)


@relaxed
@given(metadata=_metadata)
def test_metadata_that_was_taken_never_breaks_what_follows(
    metadata: dict[str, Any], api: Api
) -> None:
    created = api.create("odd", metadata)
    assert created.status_code in {201, 400}, (metadata, created.text)
    if created.status_code == 201:
        answers = [
            api.show("odd"),
            api.list_queues("?detailed=true"),
            api.post("odd", {"body": 1}, {"body": 2, "delay": 0}),
            api.list_messages("odd", "?echo=true"),
            api.claim("odd"),
            api.claim("odd"),
            api.pop("odd"),
            api.get(api.path("odd", "stats")),
            api.patch("odd", [{"op": "add", "path": "/metadata/more", "value": 1}]),
            api.purge("odd"),
        ]
        for answer in answers:
            assert answer.status_code < 500, (metadata, answer.request.url, answer.text)
    expect(api.drop("odd"), 204)


@pytest.mark.parametrize("route", ROUTES, ids=[route.name for route in ROUTES])
@relaxed
@given(
    noise=st.binary(max_size=200) | st.text(alphabet='[]{}",:\\ue+-.0123nrtfals ').map(str.encode)
)
def test_noise_never_breaks_it(route: Route, noise: bytes, api: Api) -> None:
    path = api.path("fuzzed") + route.below.format(claim="0")
    for document in (noise, route.framed(noise)):
        answer = api.send(route.method, path, document, route.content_type)
        assert answer.status_code < 500, (document, answer.text)
