"""Everything that parses what strangers send: what to try on it, and what has to hold.

Each target is a Hypothesis strategy and a check. `test_fuzz.py` runs a few examples of each with the
suite; `python -m tests.fuzz` lets a coverage-guided fuzzer make the examples, for as long as one
likes.
"""

from __future__ import annotations

import asyncio
import json
import math
import string
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_address
from typing import Any

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm

from nusku import addresses, signing
from nusku.addresses import Addresses
from nusku.auth import Signatures
from nusku.auth.oidc import Oidc
from nusku.auth.scheme import Refused
from nusku.broker import retry, rules, subscribers
from nusku.broker.ids import Point
from nusku.config import Settings
from nusku.errors import Invalid, NuskuError
from nusku.http.crowd import place
from nusku.keyring import Ring, Undecryptable
from nusku.model import QueueKey
from nusku.notify.webhook import RETRY_AFTER_MAX_S, retry_after
from nusku.shapes import Documents
from nusku.websocket.frames import Frames, Undecodable
from tests.fuzz.line import Line
from tests.live import PATCH_TYPE

Check = Callable[[Any, Line], None]
SECRET = "0123456789abcdef" * 4
NOW_S = 1_893_456_000.0


@dataclass(frozen=True)
class Target:
    """One parser. `check` raises AssertionError, or whatever the parser should not have let out."""

    name: str
    tries: st.SearchStrategy[Any]
    check: Check
    over_http: bool = False


# -- what to try -----------------------------------------------------------------------------------

anything = st.text(max_size=60)
plain = st.text(string.ascii_letters + string.digits + "-_.~/:@%?&=,;*'\" ", max_size=60)
names = st.sampled_from(["q", "Q-1.x_", "..", "", "a" * 64, "a" * 65, "q/../x", "%2e", "é"]) | plain
numbers = (
    st.integers()
    | st.sampled_from([0, -1, 1, 59, 60, 61, 2**31, 2**63 - 1, 2**63, -(2**63), 10**30])
    | st.floats()
)
values = st.recursive(
    st.none() | st.booleans() | numbers | anything,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


def documents(legal: Any) -> st.SearchStrategy[Any]:
    """Like this one, but for some members."""
    if isinstance(legal, dict):
        members = {name: documents(value) for name, value in legal.items()}
        some = st.fixed_dictionaries({}, optional=members)
        return (
            some | st.builds(dict.__or__, some, st.dictionaries(names, values, max_size=2)) | values
        )
    if isinstance(legal, list):
        return st.lists(st.one_of(values, *map(documents, legal)), max_size=4) | values
    return st.just(legal) | values


def spelled(document: Any) -> bytes:
    """As JSON, also where it is none: NaN, numbers beyond all bounds, lone surrogates."""
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")


RETRY_POLICY = {
    "retries_with_no_delay": 2,
    "minimum_delay_retries": 2,
    "minimum_delay": 3,
    "maximum_delay": 100,
    "maximum_delay_retries": 2,
    "retry_backoff_function": "exponential",
    "ignore_subscription_override": False,
}
SUBSCRIPTION = {
    "subscriber": "http://example.com:8080/hook?a=b",
    "ttl": 300,
    "options": {
        "post_data": '{"id": "$zaqar_message$"}',
        "post_headers": {"X-Custom": "value", "Content-Type": "application/json"},
        "_retry_policy": RETRY_POLICY,
        "_dead_letter_queue": "dead",
        "from": "Me <me@example.com>",
        "subject": "hello",
        "trust_id": "abc",
    },
}
METADATA = {
    "_max_messages_post_size": 1000,
    "_default_message_ttl": 300,
    "_default_message_delay": 1,
    "_dead_letter_queue": "dead",
    "_dead_letter_queue_messages_ttl": 300,
    "_max_claim_count": 3,
    "_enable_encrypt_messages": True,
    "_flavor": "gold",
    "_retry_policy": RETRY_POLICY,
    "_grants": [{"project": "p", "user": "u", "role": "r", "may": ["post", "claim", "read"]}],
    "note": {"any": ["thing"]},
}
PATCH = [
    {"op": "add", "path": "/metadata/note", "value": {"any": 1}},
    {"op": "replace", "path": "/metadata/_default_message_ttl", "value": 300},
    {"op": "remove", "path": "/metadata/note/any~1~0"},
]


# -- parsers of their own --------------------------------------------------------------------------


def check_signature(fields: Sequence[str], line: Line) -> None:
    """A right one is right for what it was made for, and what was made up is never right."""
    method, path, project, signature, methods, paths, expires = fields
    allow = Signatures(SECRET, lambda: NOW_S).allow
    sent = {
        b"x-project-id": project,
        b"url-signature": signature,
        b"url-methods": methods,
        b"url-paths": paths,
        b"url-expires": expires,
    }
    head = {name: text.encode("utf-8", "replace") for name, text in sent.items()}
    assert not allow(method, path, head)
    try:
        right = signing.sign(SECRET, paths.split(","), methods.split(","), project, expires)
    except ValueError:
        return
    head[b"url-signature"] = right.encode()
    if allow(method, path, head):
        assert method in methods.split(",")
        assert any(path == each or path.startswith(f"{each}/") for each in paths.split(","))
        assert signing.expiry_s(expires) > NOW_S


signature_fields = st.tuples(
    st.sampled_from(["GET", "POST", "DELETE", "get"]) | plain,
    st.builds("/v2/queues/{}/messages".format, names) | plain,
    st.sampled_from(["p", "None", ""]) | anything,
    st.sampled_from(["", "0" * 64])
    | st.text("0123456789abcdef", min_size=64, max_size=64)
    | anything,
    st.sampled_from(["GET", "GET,POST", "GET,GET", ""]) | plain,
    st.builds("/v2/queues/{}/messages".format, names) | plain,
    st.sampled_from(["2030-01-02T00:00:00", "2030-01-01T00:00:00", "9999-12-31T23:59:59"])
    | st.datetimes().map(lambda at: at.isoformat())
    | anything,
)


@cache
def settings() -> Settings:
    return Settings(
        oidc_issuer="https://issuer.example.com",
        oidc_audience=("nusku",),
        require_confirmation=False,
    )


@cache
def guard() -> Addresses:
    return Addresses(settings(), [("127.0.0.1", 8888)], lambda _: False)


def check_subscription(document: Any, line: Line) -> None:
    """It is refused in words, or what it says can be used."""
    if not isinstance(document, dict):
        return
    try:
        wanted = subscribers.parse(document, settings(), guard())
        subscribers.changes(document, settings(), guard())
    except Invalid:
        return
    assert wanted.ttl_s >= 60
    if subscribers.scheme(wanted.subscriber) == "mailto":
        mail = subscribers.mail(wanted.subscriber, wanted.options)
        assert mail.address.count("@") == 1
        for text in (mail.address, mail.subject, mail.sender):
            assert not {"\r", "\n", "\0"}.intersection(text)
    else:
        target = subscribers.target(wanted.subscriber)
        literal = addresses.literal(target.host)
        assert literal is None or guard().refusal(literal, target.port) is None
    policy = retry.choose(wanted.options.get("_retry_policy"), None)
    check_delays(policy)


def check_retry_policy(document: Any, line: Line) -> None:
    if not isinstance(document, dict):
        return
    try:
        rules.retry_policy(document)
    except NuskuError:
        return
    check_delays(retry.choose(document, None))
    check_delays(retry.choose(None, document))


def check_delays(policy: retry.Policy | None) -> None:
    """There is an end to them, and each is a time one can wait for."""
    wait_s = retry.delays(policy, lambda: 0.5)
    waits = [wait_s(number) for number in range(1, 200)]
    assert waits[-1] is None
    assert all(wait is None or 0 <= wait <= max(retry.longest(policy), 86_400) for wait in waits)


uris = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["http://", "https://", "trust+http://", "mailto:", "HTTP://", "", "ftp://"]),
    st.sampled_from(["example.com", "127.1", "0x7f.1", "[::1]", "a@b.cc", "u:p@h", "①.②.③.④"])
    | plain,
    st.sampled_from(["", ":80", ":0", ":99999", ":8888"]),
    plain | anything,
)
subscriptions = documents(SUBSCRIPTION) | st.builds(
    lambda uri, more: {**(more if isinstance(more, dict) else {}), "subscriber": uri},
    uris,
    documents(SUBSCRIPTION),
)


def check_marker(marker: str, line: Line) -> None:
    try:
        point = Point.behind(marker)
    except Invalid:
        return
    assert point.position >= 0


def check_retry_after(text: str, line: Line) -> None:
    seconds = retry_after(text, NOW_S)
    assert seconds is None or 0 <= seconds <= RETRY_AFTER_MAX_S


def check_json(data: bytes, line: Line) -> None:
    """What is taken for JSON is what everybody takes for it, and can be written again."""
    try:
        document = Documents(64).decode(data)
    except ValueError:
        return
    assert same(document, json.loads(data))
    assert same(msgspec.json.decode(msgspec.json.encode(document)), document)


def same(one: Any, other: Any) -> bool:
    """Equal and of the same kind, all the way down."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=1e-15)
    return type(one) is type(other) and bool(one == other)


json_bytes = st.binary(max_size=80) | values.map(spelled)


def check_frame(frame: tuple[bytes, bool], line: Line) -> None:
    """Whatever comes over a socket, what is made of it is something that JSON could say."""
    data, binary = frame
    try:
        request = Frames(64).read(data, binary=binary)
    except Undecodable as error:
        str(error).encode()
        return
    document = [request.action, request.headers, request.body]
    assert same(msgspec.json.decode(msgspec.json.encode(document)), document)


requests = documents(
    {
        "action": "message_post",
        "headers": {"Client-ID": str(uuid.UUID(int=1)), "X-Project-ID": "p"},
        "body": {"queue_name": "q", "messages": [{"body": 1, "ttl": 60}]},
    }
)


def packed(document: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(document)
    except (OverflowError, UnicodeEncodeError):
        return spelled(document)


frames = st.tuples(
    st.binary(max_size=80) | requests.map(spelled) | requests.map(packed), st.booleans()
)


@cache
def provider() -> tuple[Oidc, ec.EllipticCurvePrivateKey, asyncio.AbstractEventLoop]:
    """Trust in one provider, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = jwt.PyJWK({**json.loads(ECAlgorithm.to_jwk(key.public_key())), "alg": "ES256"})

    async def find(algorithm: str, key_id: str | None) -> list[jwt.PyJWK]:
        return [public] if algorithm == "ES256" else []

    oidc = Oidc(settings())
    oidc._keys.find = find  # type: ignore[method-assign] # nothing is asked of anybody
    return oidc, key, asyncio.new_event_loop()


def check_token(parts: tuple[Any, Any, bool], line: Line) -> None:
    """It is somebody else's, refused, or of one whose name can be used; with any claims."""
    oidc, key, loop = provider()
    head, claims, signed = parts
    first = ".".join(jwt.utils.base64url_encode(spelled(part)).decode() for part in (head, claims))
    signature = key.sign(first.encode(), ec.ECDSA(SHA256())) if signed else b""
    if signed:
        signature = jwt.utils.der_to_raw_signature(signature, key.curve)
    token = f"{first}.{jwt.utils.base64url_encode(signature).decode()}"
    try:
        caller = loop.run_until_complete(oidc.caller(token))
    except Refused:
        return
    if caller is not None:
        assert signed
        assert claims["iss"] == settings().oidc_issuer
        assert caller.user
        assert caller.expires_s is not None
        assert caller.expires_s > time.time() - 120
        for text in (caller.user, caller.user_name, caller.project, *caller.roles):
            assert text.isprintable()


tokens = st.tuples(
    documents({"alg": "ES256", "kid": "k", "typ": "JWT"}) | st.just({"alg": "ES256"}),
    documents(
        {
            "iss": "https://issuer.example.com",
            "aud": ["nusku"],
            "sub": "user",
            "exp": 4_000_000_000,
            "nbf": 1,
            "iat": 1,
            "preferred_username": "name",
            "project": "p",
            "roles": ["member"],
        }
    ),
    st.booleans(),
)


def check_encrypted(stored: bytes, line: Line) -> None:
    ring = Ring([SECRET])
    queue = QueueKey("queue", "p", "q")
    try:
        opened = ring.decrypt(queue, stored)
    except Undecryptable:
        opened = b""
    assert not opened, "nobody has the key"
    encrypted = ring.encrypt(queue, stored)
    assert ring.decrypt(queue, encrypted) == stored
    for broken in (
        encrypted[:-1],
        encrypted + b"0",
        encrypted[1:],
        bytes([encrypted[0] ^ 1]) + encrypted[1:],
    ):
        try:
            ring.decrypt(queue, broken)
        except Undecryptable:
            continue
        raise AssertionError("opened although it was changed")


def check_host(host: str, line: Line) -> None:
    """Whatever a host is written as: an address that is allowed is one of the internet."""
    literal = addresses.literal(host)
    if literal is not None:
        if guard().refusal(literal, 80) is None:
            address = ip_address(literal)
            # Tunnels lead to the addresses of the older protocol that are in these.
            inside = getattr(address, "teredo", None) or [getattr(address, "sixtofour", None)]
            for each in filter(None, [*inside] if any(inside) else [address]):
                assert each.is_global
                assert not each.is_multicast
        if "%" not in literal:
            assert place(literal)


hosts = (
    st.ip_addresses().map(str)
    | st.builds("[{}]".format, st.ip_addresses(v=6).map(str))
    | st.integers(0, 2**33).map(str)
    | st.integers(0, 2**33).map(hex)
    | st.text("0123456789abcdefx.:%[]①②⑦。 ", max_size=40)
    | anything
)


# -- requests --------------------------------------------------------------------------------------

FINE = {200, 201, 204, 300, 400, 401, 403, 404, 405, 406, 409, 415}

header_names = st.sampled_from(
    [
        "Client-ID",
        "X-Project-ID",
        "X-Tenant-ID",
        "X-Roles",
        "X-Auth-Token",
        "Authorization",
        "URL-Signature",
        "URL-Methods",
        "URL-Paths",
        "URL-Expires",
        "Content-Type",
        "Content-Encoding",
        "Accept",
        "Expect",
        "Origin",
        "Access-Control-Request-Method",
        "EXTRA-SPEC",
        "Connection",
        "Upgrade",
        "X_Project_ID",
    ]
) | st.text(string.ascii_letters + "-_!#", min_size=1, max_size=12)
header_values = (
    anything | plain | st.sampled_from(["application/json", "100-continue", "websocket"])
)
paths = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(
        ["/v2/queues", "/v2/topics", "/v2/pools", "/v2/flavors", "/v2/", "/", "//", "*"]
    ),
    st.sampled_from(["", "/q", "/q/"]),
    st.sampled_from(
        ["", "/messages", "/claims", "/claims/x", "/subscriptions", "/share", "/stats", "/purge"]
    ),
    st.just("")
    | plain
    | st.builds(
        "?{}={}".format,
        st.sampled_from(
            ["limit", "marker", "ids", "pop", "claim_id", "wait", "echo", "detailed", "name"]
        ),
        plain,
    ),
)
methods = st.sampled_from(["GET", "PUT", "POST", "PATCH", "DELETE", "HEAD", "OPTIONS"])
bodies = (
    st.just(b"")
    | st.binary(max_size=60)
    | documents({"messages": [{"body": 1, "ttl": 60, "delay": 0}]}).map(spelled)
    | documents({"ttl": 60, "grace": 60}).map(spelled)
)


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """A request as some client might write it, good or bad."""
    method, path = draw(methods | plain), draw(paths)
    body = draw(bodies)
    fields = draw(st.lists(st.tuples(header_names, header_values), max_size=5))
    if draw(st.booleans()):
        fields += [("Client-ID", str(uuid.UUID(int=7))), ("X-Project-ID", "fuzz")]
    length = draw(st.just(str(len(body))) | st.sampled_from(["", "-1", "0", "+1", "1e3", "1, 2"]))
    if body or draw(st.booleans()):
        fields.append(("Content-Length", length))
    end = draw(st.sampled_from(["\r\n", "\r\n", "\r\n", "\n", "\r\n "]))
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: x",
        *(f"{name}: {value}" for name, value in fields),
    ]
    text = end.join(lines) + "\r\n\r\n"
    return text.encode("utf-8", "surrogatepass") + body


def check_bytes(data: bytes, line: Line) -> None:
    """Whatever comes over a connection, what goes back is HTTP, and no failure."""
    for answer in line.exchange(data):
        assert answer.status in FINE, (answer.status, answer.body)


@dataclass(frozen=True)
class Route:
    """A route with a legal document."""

    method: str
    path: str
    document: Any = field(repr=False)
    content_type: str = "application/json"


ROUTES = (
    Route("PUT", "/v2/queues/q", METADATA),
    Route("PATCH", "/v2/queues/q", PATCH, PATCH_TYPE),
    Route("PATCH", "/v2/topics/t", PATCH, PATCH_TYPE),
    Route("PUT", "/v2/topics/t", METADATA),
    Route("POST", "/v2/queues/q/messages", {"messages": [{"body": {}, "ttl": 60, "delay": 0}]}),
    Route("POST", "/v2/topics/t/messages", {"messages": [{"body": {}, "ttl": 60, "delay": 0}]}),
    Route("POST", "/v2/queues/q/claims", {"ttl": 60, "grace": 60, "limit": 3}),
    Route("PATCH", "/v2/queues/q/claims/0", {"ttl": 60, "grace": 60}),
    Route("POST", "/v2/queues/q/purge", {"resource_types": ["messages", "subscriptions"]}),
    Route(
        "POST",
        "/v2/queues/q/share",
        {"paths": ["messages"], "methods": ["GET"], "expires": "2030-01-01T00:00:00"},
    ),
    Route("POST", "/v2/queues/q/subscriptions", SUBSCRIPTION),
    Route("PATCH", "/v2/queues/q/subscriptions/0", SUBSCRIPTION),
    Route("PUT", "/v2/queues/q/subscriptions/0/confirm", {"confirmed": True}),
    Route("PUT", "/v2/pools/p", {"uri": "sqlite:///x", "weight": 1, "flavor": "f", "options": {}}),
    Route("PATCH", "/v2/pools/p", {"uri": "sqlite:///x", "weight": 1, "flavor": "", "options": {}}),
    Route("PUT", "/v2/flavors/f", {"pool_list": ["p"], "capabilities": []}),
    Route("PATCH", "/v2/flavors/f", {"pool_list": ["p"]}),
)
requests_with_bodies = st.sampled_from(ROUTES).flatmap(
    lambda route: st.tuples(st.just(route), documents(route.document).map(spelled))
)


def check_document(request: tuple[Route, bytes], line: Line) -> None:
    route, body = request
    headers: Mapping[str, str] = {"Content-Type": route.content_type, "X-Roles": "admin"}
    status, told = line.ask(route.method, route.path, headers, body)
    assert status in FINE, (status, told)


TARGETS = (
    Target("signature", signature_fields, check_signature),
    Target("subscription", subscriptions, check_subscription),
    Target("retry-policy", documents(RETRY_POLICY), check_retry_policy),
    Target("marker", st.text("0123456789abcdef-", max_size=50) | anything, check_marker),
    Target(
        "retry-after",
        st.text("0123456789 :,GMTonFriaSu+-", max_size=40) | anything,
        check_retry_after,
    ),
    Target("json", json_bytes, check_json),
    Target("frame", frames, check_frame),
    Target("token", tokens, check_token),
    Target("encrypted", st.binary(max_size=120), check_encrypted),
    Target("host", hosts, check_host),
    Target("bytes", st.binary(max_size=120) | heads(), check_bytes, over_http=True),
    Target("document", requests_with_bodies, check_document, over_http=True),
)
