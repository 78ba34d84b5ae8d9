"""Requests that no well-behaved client sends, byte by byte over a socket.

What is too large, endless or ambiguous is answered with a 4xx or cut off, at the limit and not
after it; nothing hidden in it is ever carried out; and the server neither grows nor stumbles.
"""

from __future__ import annotations

import gzip
import itertools
import time
import zlib
from collections.abc import Callable, Iterator

import pytest

from tests.live import Api, LiveServer, expect
from tests.security.support import (
    CHUNK_BYTES,
    LAST_CHUNK,
    MIB,
    Exchange,
    Fields,
    chunk,
    connect,
    converse,
    fields_of,
    growth_watched,
    head,
    split_answers,
    still_serves,
)

GIB = 1 << 30
HEAD_MAX = 32_768
URL_MAX = 8_192
HEADERS_MAX = 100
GROWTH_MAX = 20 * MIB
SWALLOWED_MAX = 16 * MIB
"""What may be read of a request that is too large: the limit, what is drained out of courtesy, and
what the two kernels keep in their buffers."""

JSON_TYPE = (b"Content-Type", b"application/json")
CHUNKED = (b"Transfer-Encoding", b"chunked")
DOCUMENT = b'{"messages": [{"body": "hidden"}]}'

# The routes that take a body, and some that don't: a body sent to them is limited as well.
TAKING = [
    ("PUT", "/v2/queues/q"),
    ("PATCH", "/v2/queues/q"),
    ("POST", "/v2/queues/q/messages"),
    ("POST", "/v2/queues/q/claims"),
    ("PATCH", "/v2/queues/q/claims/0"),
    ("POST", "/v2/queues/q/purge"),
    ("PUT", "/v2/topics/q"),
    ("POST", "/v2/topics/q/messages"),
]
NOT_TAKING = [
    ("GET", "/v2/queues"),
    ("GET", "/v2/queues/q/messages"),
    ("DELETE", "/v2/queues/q"),
    ("GET", "/v2/ping"),
    ("GET", "/"),
    ("GET", "/livez"),
    ("POST", "/nosuchpath"),
    ("POST", "/v2/queues/q"),
    ("PUT", "/v2/queues/bad@name"),
]
any_route = pytest.mark.parametrize(("method", "target"), TAKING + NOT_TAKING)
taking_route = pytest.mark.parametrize(("method", "target"), TAKING)
not_taking_route = pytest.mark.parametrize(("method", "target"), NOT_TAKING)


def request(api: Api, method: str, target: str, *fields: tuple[bytes, bytes]) -> bytes:
    """The head of a request of this client."""
    own = [*fields_of(api), *fields]
    if method == "PATCH" and "/claims/" not in target:
        own.append((b"Content-Type", b"application/openstack-messaging-v2.0-json-patch"))
    return head(method.encode(), target.encode(), own)


def post(api: Api, body: bytes, *fields: tuple[bytes, bytes], queue: str = "q") -> bytes:
    """A whole, ordinary request that posts a document."""
    length = (b"Content-Length", b"%d" % len(body))
    return request(api, "POST", f"/v2/queues/{queue}/messages", length, *fields) + body


def forever(first: bytes, piece: bytes) -> Iterator[bytes]:
    """First this, then that without an end."""
    return itertools.chain([first], itertools.repeat(piece))


def no_success(exchange: Exchange) -> None:
    """Insist that nothing was answered, or that it was refused."""
    for answer in exchange.answers:
        told = f"{answer.status} {answer.body[:300]!r}"
        assert 400 <= answer.status < 500 or answer.status in {501, 505}, told


def cut_off(exchange: Exchange) -> None:
    """Insist that the server refused or said nothing, and in any case hung up."""
    no_success(exchange)
    assert exchange.closed, f"still open after {exchange.seconds:.1f} s: {exchange.statuses}"


# -- bodies over the limit -------------------------------------------------------------------------


@taking_route
def test_ten_gigabytes_announced_are_refused_at_once(method: str, target: str, api: Api) -> None:
    length = (b"Content-Length", b"%d" % (10 * GIB))
    exchange = converse(api.server, request(api, method, target, length) + b"{", finals=1)
    assert exchange.statuses == [400]
    assert exchange.answers[0].headers.get("connection") == "close"
    assert exchange.seconds < 1


@any_route
def test_ten_gigabytes_sent_are_cut_off(method: str, target: str, api: Api) -> None:
    length = (b"Content-Length", b"%d" % (10 * GIB))
    data = forever(request(api, method, target, length), b" " * CHUNK_BYTES)
    with growth_watched(api.server) as growth:
        exchange = converse(api.server, data, patience_s=1.5)
    assert exchange.closed
    assert exchange.sent_bytes < SWALLOWED_MAX
    assert growth.peak_bytes < GROWTH_MAX


@pytest.mark.parametrize(
    "length", [b"9" * 19, b"9" * 30, b"18446744073709551616", b"9223372036854775808"]
)
def test_a_length_that_no_number_holds_is_refused(length: bytes, api: Api) -> None:
    data = request(api, "POST", "/v2/queues/q/messages", (b"Content-Length", length)) + DOCUMENT
    cut_off(converse(api.server, data))


@any_route
def test_chunks_without_end_are_cut_off(method: str, target: str, api: Api) -> None:
    data = forever(request(api, method, target, CHUNKED), chunk(b" " * CHUNK_BYTES))
    with growth_watched(api.server) as growth:
        exchange = converse(api.server, data, patience_s=1.5)
    assert exchange.closed
    assert exchange.sent_bytes < SWALLOWED_MAX
    assert growth.peak_bytes < GROWTH_MAX


@taking_route
def test_chunks_of_one_byte_are_counted(method: str, target: str, api: Api) -> None:
    data = forever(request(api, method, target, CHUNKED), chunk(b" ") * 8_192)
    with growth_watched(api.server) as growth:
        exchange = converse(api.server, data, patience_s=1.5)
    cut_off(exchange)
    assert exchange.sent_bytes < SWALLOWED_MAX
    assert growth.peak_bytes < GROWTH_MAX


def test_chunks_of_one_byte_make_a_body_like_any_other(api: Api) -> None:
    pieces = b"".join(chunk(DOCUMENT[n : n + 1]) for n in range(len(DOCUMENT)))
    data = request(api, "POST", "/v2/queues/q/messages", CHUNKED) + pieces + LAST_CHUNK
    assert converse(api.server, data, finals=1).statuses == [201]
    assert api.listed("q") == ["hidden"]


def test_chunk_extensions_change_nothing(api: Api) -> None:
    body = chunk(DOCUMENT[:10], b';a=b;c="d"') + chunk(DOCUMENT[10:], b";x") + b"0;last\r\n\r\n"
    data = request(api, "POST", "/v2/queues/q/messages", CHUNKED) + body
    exchange = converse(api.server, data, finals=1)
    if exchange.statuses == [201]:  # refusing them is fine, too
        assert api.listed("q") == ["hidden"]
    else:
        no_success(exchange)
        assert api.listed("q") == []


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"5;", b"x" * CHUNK_BYTES),
        (b"5;x=", b"y" * CHUNK_BYTES),
        (b'5;x="', b"y" * CHUNK_BYTES),
        (b"", chunk(b" ", b";" + b"x" * 10_000)),
        (b"", b"0" * CHUNK_BYTES),
        (b"0\r\n", b"X-Trailer: y\r\n" * 4_000),
        (b"0\r\nX-Trailer: ", b"y" * CHUNK_BYTES),
        (b"0\r\nX-", b"y" * CHUNK_BYTES),
    ],
    ids=[
        "an extension's name",
        "an extension's value",
        "an extension in quotes",
        "large extensions of small chunks",
        "a size with zeros before it",
        "trailers",
        "one trailer's value",
        "one trailer's name",
    ],
)
def test_what_stands_round_chunks_is_limited(start: bytes, piece: bytes, api: Api) -> None:
    data = forever(request(api, "POST", "/v2/queues/q/messages", CHUNKED) + start, piece)
    with growth_watched(api.server) as growth:
        exchange = converse(api.server, data, patience_s=1.5)
    assert growth.peak_bytes < GROWTH_MAX, f"{exchange.sent_bytes / MIB:.0f} MiB sent"
    cut_off(exchange)
    assert exchange.sent_bytes < SWALLOWED_MAX


@pytest.mark.parametrize(
    "trailer", [b"X-Project-ID", b"Client-ID", b"X-Roles", b"Content-Length", b"Accept"]
)
def test_a_trailer_is_never_taken_for_a_header(trailer: bytes, api: Api) -> None:
    victim = api.stranger()
    value = {b"X-Project-ID": victim.project.encode(), b"X-Roles": b"admin"}.get(trailer, b"0")
    body = chunk(DOCUMENT) + b"0\r\n" + trailer + b": " + value + b"\r\n\r\n"
    data = request(api, "POST", "/v2/queues/q/messages", CHUNKED) + body
    exchange = converse(api.server, data, finals=1)
    assert victim.names() == []
    if exchange.statuses == [201]:
        assert api.listed("q", "?echo=true") == ["hidden"]
        assert api.listed("q", "?echo=false") == []
    else:
        # Refused is fine, but for being a trailer, not for what it says as a header.
        no_success(exchange)
        told = b"".join(answer.body for answer in exchange.answers).lower()
        assert b"uuid" not in told
        assert b"acceptable" not in told


def test_a_role_in_a_trailer_gives_no_rights(api: Api) -> None:
    data = request(api, "GET", "/v2/health", CHUNKED) + b"0\r\nX-Roles: admin\r\n\r\n"
    exchange = converse(api.server, data, finals=1)
    assert exchange.statuses in ([403], [400])


@pytest.mark.parametrize("encoding", [b"gzip", b"x-gzip", b"deflate", b"GZip", b"identity, gzip"])
def test_a_compressed_body_is_never_unpacked(encoding: bytes, api: Api) -> None:
    bomb = b'{"messages": [{"body": "' + b"x" * (200 * MIB // 8) + b'"}]}'
    packed = gzip.compress(bomb, 1) if b"zip" in encoding.lower() else zlib.compress(bomb, 1)
    assert len(packed) < 200_000
    with growth_watched(api.server) as growth:
        data = post(api, packed, (b"Content-Encoding", encoding))
        exchange = converse(api.server, data, finals=1)
    assert exchange.statuses == [400]
    assert growth.peak_bytes < GROWTH_MAX
    assert api.listed("q") == []


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_without_a_length_there_is_no_body(method: str, api: Api) -> None:
    target = "/v2/queues/q/messages" if method == "POST" else "/v2/queues/q"
    exchange = converse(api.server, request(api, method, target) + DOCUMENT, patience_s=0.5)
    # What looks like a body is the start of another request, and none that can be understood.
    assert exchange.statuses[:1] == [400]
    no_success(exchange)
    assert api.listed("q") == []


def test_a_body_of_an_old_client_without_a_length_is_not_read_until_the_end(api: Api) -> None:
    lines = [b"POST /v2/queues/q/messages HTTP/1.0", *(b": ".join(f) for f in fields_of(api))]
    exchange = converse(api.server, b"\r\n".join([*lines, b"", DOCUMENT]), patience_s=0.5)
    cut_off(exchange)
    assert api.listed("q") == []


# -- Expect ----------------------------------------------------------------------------------------


def test_a_client_that_asks_first_is_told_to_go_on(api: Api) -> None:
    length = (b"Content-Length", b"%d" % len(DOCUMENT))
    ask = request(api, "POST", "/v2/queues/q/messages", length, (b"Expect", b"100-continue"))
    with connect(api.server) as connection:
        connection.sendall(ask)
        assert connection.recv(CHUNK_BYTES) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(DOCUMENT)
        answers, _, rest = split_answers(connection.recv(CHUNK_BYTES))
    assert [answer.status for answer in answers] == [201]
    assert rest == b""


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("PUT", "/v2/queues/q"),
        ("POST", "/v2/queues/q/messages"),
        ("PUT", "/v2/queues/bad@name"),
        ("POST", "/nosuchpath"),
    ],
)
def test_a_client_that_asks_first_is_refused_before_it_sends(
    method: str, target: str, api: Api
) -> None:
    fields = [(b"Content-Length", b"%d" % (10 * GIB)), (b"Expect", b"100-continue")]
    exchange = converse(api.server, request(api, method, target, *fields), patience_s=0.5, finals=1)
    assert exchange.interim == []
    no_success(exchange)
    assert exchange.answers


@pytest.mark.parametrize("value", [b"200-ok", b"100-continue, x", b"\xff", b"x" * 1000])
def test_an_expectation_that_makes_no_sense_does_no_harm(value: bytes, api: Api) -> None:
    exchange = converse(api.server, post(api, DOCUMENT, (b"Expect", value)), finals=1)
    assert exchange.statuses in ([201], [417], [400])
    assert api.listed("q") == (["hidden"] if exchange.statuses == [201] else [])


# -- heads over the limit --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"", b"X" * CHUNK_BYTES),
        (b"GET /", b"x" * CHUNK_BYTES),
        (b"GET /?", b"%41" * 20_000),
        (b"GET / HTTP/1.1\r\n", b"X" * CHUNK_BYTES),
        (b"GET / HTTP/1.1\r\nX-A: ", b"x" * CHUNK_BYTES),
        (b"GET / HTTP/1.1\r\nX-A: ", b" " * CHUNK_BYTES),
        (b"GET / HTTP/1.1\r\n", b"X-A: b\r\n" * 8_000),
        (b"GET / HTTP/1.1\r\n", b"a:\r\n" * 16_000),
        (b"GET / HTTP/1.1\r\nX-A: b\r\n", b" more\r\n" * 8_000),
        (b"", b"\r\n" * 32_000),
        (b"", b"\n" * CHUNK_BYTES),
        (b"", b"\x00" * CHUNK_BYTES),
    ],
    ids=[
        "a method",
        "a path",
        "a query",
        "a name",
        "a value",
        "a value of blanks",
        "headers",
        "empty headers",
        "a folded header",
        "empty lines",
        "line feeds",
        "NULs",
    ],
)
def test_a_head_without_end_is_cut_off_at_the_limit(start: bytes, piece: bytes, api: Api) -> None:
    with growth_watched(api.server) as growth:
        exchange = converse(api.server, forever(start, piece), patience_s=1.5)
    assert growth.peak_bytes < GROWTH_MAX, f"{exchange.sent_bytes / MIB:.0f} MiB sent"
    cut_off(exchange)
    assert exchange.sent_bytes < SWALLOWED_MAX
    still_serves(api.server)


@pytest.mark.parametrize("again", [False, True], ids=["first request", "later request"])
@pytest.mark.parametrize("slices", [1, 7], ids=["in one piece", "in pieces"])
@pytest.mark.parametrize("size", [HEAD_MAX + 8, 60_000, 200_000])
def test_a_head_over_the_limit_is_refused(size: int, slices: int, again: bool, api: Api) -> None:
    before = request(api, "GET", "/v2/ping") if again else b""
    bare = request(api, "PUT", "/v2/queues/q", (b"X-Padding", b""))
    fields = (b"X-Padding", b"x" * (size - len(bare)))
    data = request(api, "PUT", "/v2/queues/q", fields)
    assert len(data) == size
    step = -(-len(data) // slices)
    pieces = [data[n : n + step] for n in range(0, len(data), step)]

    def sent() -> Iterator[bytes]:
        yield before
        for piece in pieces:
            time.sleep(0.02)
            yield piece

    exchange = converse(api.server, sent(), finals=1 + again)
    if again:
        assert exchange.statuses[:1] == [204]
        exchange.answers = exchange.answers[1:]
    no_success(exchange)
    assert api.names() == []


def test_a_head_just_under_the_limit_is_accepted(api: Api) -> None:
    bare = request(api, "PUT", "/v2/queues/q", (b"X-Padding", b""))
    padding = (b"X-Padding", b"x" * (HEAD_MAX - 1 - len(bare)))
    data = request(api, "PUT", "/v2/queues/q", padding)
    assert converse(api.server, data, finals=1).statuses == [201]


@pytest.mark.parametrize(("count", "status"), [(HEADERS_MAX, 201), (HEADERS_MAX + 1, 400)])
def test_the_number_of_headers_is_limited(count: int, status: int, api: Api) -> None:
    more = [(b"X-%d" % n, b"y") for n in range(count - 1 - len(fields_of(api)))]
    exchange = converse(api.server, request(api, "PUT", "/v2/queues/q", *more), finals=1)
    assert exchange.statuses == [status]
    assert api.names() == (["q"] if status == 201 else [])


@pytest.mark.parametrize("path", ["/v2/queues/", "/nosuchpath/", "/v2/queues/q/messages/", "/"])
@pytest.mark.parametrize("query", [False, True], ids=["path", "query"])
def test_a_url_over_the_limit_is_refused(path: str, query: bool, api: Api) -> None:
    target = path + ("?" if query else "") + "x" * (URL_MAX + 1)
    exchange = converse(api.server, request(api, "GET", target), finals=1)
    no_success(exchange)
    assert exchange.answers or exchange.closed


def test_a_url_of_just_the_limit_is_understood(api: Api) -> None:
    target = "/v2/queues?name="
    target += "x" * (URL_MAX - len(target))
    assert converse(api.server, request(api, "GET", target), finals=1).statuses == [200]


# -- bytes that have no place in a head ------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "/v2/queues/é".encode(),
        b"/v2/queues/\xff",
        b"/v2/queues?name=\xe9",
        "/v2/queues?naïve=1".encode(),
        b"/v2/queues/q\x00",
        b"/v2/queues/q\x00.txt",
        b"/v2/queues/q\x7f",
        b"/v2/queues/q\x1b[2J",
        b"/v2/queues/a b",
        b"/v2/queues/q\t",
        b"v2/queues/q",
        b"*",
        b"",
        b"http://",
        b"http:///v2/queues/q",
        b"http://[::1/v2/queues/q",
        b"//v2/queues/q",
        b"\\v2\\queues\\q",
        b"/v2/queues/q#fragment",
        b"/v2/queues/%",
        b"/v2/queues/%f",
        b"/v2/queues/%ff%fe",
        b"/v2/queues/%00",
        b"/v2/queues/q%0d%0aX-Roles:%20admin",
        b"/v2/queues?%00=%00",
        b"/v2/queues?marker=%ff",
        b"/v2/queues?%ff=%ff",
        b"/v2/queues?=&&=&=x",
        b"/v2/queues?limit",
        b"/v2/queues?" + b"a&" * 3_000,
        b"/v2/queues?" + b"a=1&" * 2_000,
    ],
    ids=ascii,
)
@pytest.mark.parametrize("method", [b"GET", b"PUT"], ids=["GET", "PUT"])
def test_a_strange_target_does_no_harm(method: bytes, target: bytes, api: Api) -> None:
    exchange = converse(api.server, head(method, target, fields_of(api)), patience_s=0.5, finals=1)
    assert len(exchange.answers) <= 1
    assert exchange.answers or exchange.closed
    for answer in exchange.answers:
        assert answer.status < 500 or answer.status == 501, answer.body
        assert "x-roles" not in answer.headers
    # A fragment is none of the server's business; it may be cut off or refused.
    assert api.names() in ([], ["q"] if b"#" in target or b"//" in target else [])


@pytest.mark.parametrize(
    "name", [b"Client-ID", b"X-Project-ID", b"Accept", b"Content-Type", b"X-Roles", b"EXTRA-SPEC"]
)
@pytest.mark.parametrize(
    "value",
    [
        b"\xff\xfe",
        "é".encode(),
        "漢".encode(),
        b"\x80" * 100,
        b"a\x00b",
        b"a\x1bb",
        b"a\rb",
        b"a\nb",
        b"a\x7fb",
        b"",
        b"\t",
        b",",
        b";",
        b'"',
        b"*/*;q=x",
        b"text/",
        b"a/b;c",
        b"application/json;q=99999999999",
        b"x" * 5_000,
    ],
    ids=lambda value: ascii(value[:20]),
)
def test_a_strange_header_does_no_harm(name: bytes, value: bytes, api: Api) -> None:
    own = [(n, v) for n, v in fields_of(api) if n.lower() != name.lower()]
    exchange = converse(
        api.server, head(b"GET", b"/v2/queues", [*own, (name, value)]), patience_s=0.5, finals=1
    )
    assert exchange.answers or exchange.closed
    for answer in exchange.answers:
        assert answer.status < 500, (answer.status, answer.body)


@pytest.mark.parametrize(
    "name",
    [b"X\x00Y", b"X Y", b"X\tY", b"X\xff", b"X(Y)", b"X\x7f", b"", b" X", b"X ", b"X\r", b"@"],
)
def test_a_header_name_that_is_none_is_refused(name: bytes, api: Api) -> None:
    data = head(b"PUT", b"/v2/queues/q", [*fields_of(api), (name, b"1")])
    cut_off(converse(api.server, data, patience_s=0.5))
    assert api.names() == []


@pytest.mark.parametrize(
    "line",
    [
        b"HELLO",
        b"GET",
        b"GET /",
        b"GET / HTTP",
        b"GET / HTTP/",
        b"GET / HTTP/1",
        b"GET / HTTP/1.1 x",
        b"GET / HTTP/2.0",
        b"GET / HTTP/9.9",
        b"GET / HTTP/1.10",
        b"GET / http/1.1",
        b"GET / FTP/1.1",
        b"GET  /  HTTP/1.1",
        b"\tGET / HTTP/1.1",
        b"get /v2/ping HTTP/1.1",
        b"NOSUCH /v2/queues/q HTTP/1.1",
        b"PRI * HTTP/2.0",
        b"CONNECT 127.0.0.1:80 HTTP/1.1",
        b"CONNECT /v2/ping HTTP/1.1",
        b"TRACE / HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"SOURCE / ICE/1.0",
        b"DESCRIBE rtsp://h/x RTSP/1.0",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x80\x2e\x01\x03\x01",
        b"SSH-2.0-OpenSSH_9.6",
        b"*1\r\n$4\r\nPING",
    ],
    ids=ascii,
)
def test_a_strange_request_line_does_no_harm(line: bytes, api: Api) -> None:
    fields = [b": ".join(field) for field in fields_of(api)]
    exchange = converse(
        api.server, b"\r\n".join([line, *fields, b"", b""]), patience_s=0.5, finals=1
    )
    assert exchange.answers or exchange.closed, "neither answered nor closed"
    for answer in exchange.answers:
        assert answer.status < 500 or answer.status in {501, 505}, (answer.status, answer.body)
    assert "x-trace" not in exchange.received.decode("latin-1").lower()
    expect(api.get("/v2/ping"), 204)


def test_a_method_is_not_echoed_back(api: Api) -> None:
    data = head(b"TRACE", b"/v2/queues", [*fields_of(api), (b"X-Auth-Token", b"tr4ced")])
    assert b"tr4ced" not in converse(api.server, data, patience_s=0.5, finals=1).received


# -- lines that end in the wrong way, and folded ones ----------------------------------------------


@pytest.mark.parametrize(
    "end", [b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n\x00", b"\x0b\x0c"], ids=ascii
)
def test_lines_that_end_in_the_wrong_way_hide_no_request(end: bytes, api: Api) -> None:
    hidden = request(api, "PUT", "/v2/queues/hidden")
    fields = [*fields_of(api), (b"X-A", b"b" + end + end + hidden)]
    exchange = converse(api.server, head(b"GET", b"/v2/ping", fields), patience_s=0.5)
    assert len(exchange.answers) <= 2
    assert "hidden" not in api.names()


def test_a_bare_line_feed_hides_no_header(api: Api) -> None:
    victim = api.stranger()
    hidden = b"b\nX-Project-ID: " + victim.project.encode()
    data = head(b"PUT", b"/v2/queues/q", [*fields_of(api), (b"X-A", hidden)])
    converse(api.server, data, patience_s=0.5, finals=1)
    assert victim.names() == []


@pytest.mark.parametrize("fold", [b"\r\n ", b"\r\n\t", b"\r\n  \t "], ids=ascii)
def test_a_folded_line_is_never_a_header_of_its_own(fold: bytes, api: Api) -> None:
    victim = api.stranger()
    hidden = b"b" + fold + b"X-Project-ID: " + victim.project.encode()
    data = head(b"PUT", b"/v2/queues/q", [*fields_of(api), (b"X-A", hidden)])
    exchange = converse(api.server, data, patience_s=0.5, finals=1)
    assert victim.names() == []
    assert exchange.statuses in ([201], [400], [])
    for name in (b"Content-Length", b"Transfer-Encoding"):
        folded = [*fields_of(api), (name, fold.strip(b" \t") + fold + b"34")]
        data = head(b"POST", b"/v2/queues/p/messages", folded) + DOCUMENT
        exchange = converse(api.server, data, patience_s=0.5)
        assert len(exchange.answers) <= 2
        assert api.listed("p") in ([], ["hidden"])


# -- two opinions on where a request ends ----------------------------------------------------------

AMBIGUOUS: dict[str, list[tuple[bytes, bytes]]] = {
    "two lengths": [(b"Content-Length", b"0"), (b"Content-Length", b"5")],
    "two lengths, the larger first": [(b"Content-Length", b"5"), (b"Content-Length", b"0")],
    "two lengths in one": [(b"Content-Length", b"0, 5")],
    "the same length twice in one": [(b"Content-Length", b"5, 5")],
    "a length with a sign": [(b"Content-Length", b"+5")],
    "a negative length": [(b"Content-Length", b"-5")],
    "a length in hexadecimal": [(b"Content-Length", b"0x5")],
    "a length with a fraction": [(b"Content-Length", b"5.0")],
    "a length of two words": [(b"Content-Length", b"0 5")],
    "an empty length": [(b"Content-Length", b"")],
    "a length and chunks": [(b"Content-Length", b"5"), CHUNKED],
    "chunks and a length": [CHUNKED, (b"Content-Length", b"5")],
    "chunks, and a blank before the colon": [
        (b"Content-Length", b"5"),
        (b"Transfer-Encoding ", b"chunked"),
    ],
    "a length, and a blank before the colon": [(b"Content-Length ", b"5")],
    "an unknown coding": [(b"Transfer-Encoding", b"xchunked")],
    "an unknown coding and a length": [
        (b"Transfer-Encoding", b"xchunked"),
        (b"Content-Length", b"5"),
    ],
    "chunks that are not last": [(b"Transfer-Encoding", b"chunked, identity")],
    "chunks after another coding": [
        (b"Transfer-Encoding", b"gzip, chunked"),
        (b"Content-Length", b"5"),
    ],
    "chunks twice": [(b"Transfer-Encoding", b"chunked, chunked")],
    "chunks in two headers": [CHUNKED, (b"Transfer-Encoding", b"identity")],
    "chunks in two headers, and a length": [
        (b"Transfer-Encoding", b"identity"),
        CHUNKED,
        (b"Content-Length", b"5"),
    ],
    "identity": [(b"Transfer-Encoding", b"identity"), (b"Content-Length", b"5")],
    "chunks in quotes": [(b"Transfer-Encoding", b'"chunked"'), (b"Content-Length", b"5")],
    "chunks behind a tab": [(b"Transfer-Encoding", b"\x0bchunked"), (b"Content-Length", b"5")],
    "chunks with a parameter": [(b"Transfer-Encoding", b"chunked;q=1"), (b"Content-Length", b"5")],
    "chunks in capitals": [(b"Transfer-Encoding", b"CHUNKED"), (b"Content-Length", b"5")],
    "chunks and a NUL": [(b"Transfer-Encoding", b"chunked\x00"), (b"Content-Length", b"5")],
}


def hidden_request(api: Api) -> bytes:
    return request(api, "PUT", "/v2/queues/hidden", (b"Content-Length", b"0"))


@pytest.mark.parametrize("fields", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_a_request_with_two_ends_never_hides_another(fields: Fields, api: Api) -> None:
    """Whichever end one believes in: what stands behind it is either the body or refused."""
    whole = head(b"PUT", b"/v2/queues/q", [*fields_of(api), *fields])
    inner = hidden_request(api)
    for body in (
        b"0\r\n\r\n" + inner,
        chunk(b"{}") + LAST_CHUNK + inner,
        b"{ }  " + inner,
        inner,
        b"%x\r\n" % len(inner) + inner + b"\r\n0\r\n\r\n",
    ):
        exchange = converse(api.server, whole + body, patience_s=0.1, finals=2)
        assert "hidden" not in api.names(), exchange.statuses
        for answer in exchange.answers:
            assert answer.status < 500 or answer.status == 501, answer.body
        api.drop("q")
        api.drop("hidden")


def test_a_name_with_an_underscore_is_another_name(api: Api) -> None:
    victim = api.stranger()
    fields = [(b"X_Project_ID", victim.project.encode()), (b"Transfer_Encoding", b"chunked")]
    exchange = converse(api.server, post(api, DOCUMENT, *fields), finals=1)
    assert victim.names() == []
    assert api.listed("q") == (["hidden"] if exchange.statuses == [201] else [])


@pytest.mark.parametrize(
    "body",
    [
        b"5\r\n{}   X0\r\n\r\n",
        b"5 \r\n{}   \r\n0\r\n\r\n",
        b" 5\r\n{}   \r\n0\r\n\r\n",
        b"+5\r\n{}   \r\n0\r\n\r\n",
        b"-5\r\n{}   \r\n0\r\n\r\n",
        b"0x5\r\n{}   \r\n0\r\n\r\n",
        b"5\n{}   \n0\n\n",
        b"5\r{}   \r0\r\r",
        b"5\r\n{}   \r\n0\r\n",
        b"\r\n5\r\n{}   \r\n0\r\n\r\n",
        b"ffffffffffffffff\r\n{}   \r\n0\r\n\r\n",
        b"10000000000000005\r\n{}   \r\n0\r\n\r\n",
        b"5;\n{}   \r\n0\r\n\r\n",
        b"5;a\rb\r\n{}   \r\n0\r\n\r\n",
        b"5;\x00\r\n{}   \r\n0\r\n\r\n",
        b"5\r\n{}   \n0\r\n\r\n",
        b"5\r\n{}   \r\n0\n\r\n",
        b"5\r\n{}   \r\n0\r\n\n",
        b"zz\r\n",
        b"\r\n\r\n",
    ],
    ids=ascii,
)
def test_chunks_that_are_out_of_order_hide_no_request(body: bytes, api: Api) -> None:
    whole = request(api, "PUT", "/v2/queues/q", CHUNKED)
    exchange = converse(api.server, whole + body + hidden_request(api), patience_s=0.1, finals=2)
    assert "hidden" not in api.names(), exchange.statuses
    for answer in exchange.answers:
        assert answer.status < 500, answer.body


# -- several requests at once ----------------------------------------------------------------------


def test_requests_sent_at_once_are_answered_in_order(api: Api) -> None:
    sent = [b'{"messages": [{"body": %d}]}' % n for n in range(50)]
    data = b"".join(post(api, document) for document in sent)
    data += request(api, "GET", "/v2/queues/q/messages?echo=true&limit=20")
    data += request(api, "GET", "/v2/queues/none@such") + request(api, "GET", "/v2/ping")
    exchange = converse(api.server, data, finals=53)
    assert exchange.statuses == [201] * 50 + [200, 400, 204]
    listed = exchange.answers[50].parsed()["messages"]
    assert [message["body"] for message in listed] == list(range(20))
    posted = [answer.parsed()["resources"][0] for answer in exchange.answers[:50]]
    assert [message["href"] for message in listed] == posted[:20]


def test_a_refused_body_does_not_run_into_the_next_request(api: Api) -> None:
    """A body that is refused unread must not be taken for the next request."""
    inside = post(api, DOCUMENT, queue="inside")
    padded = inside + b"x" * (262_145 - len(inside))
    data = post(api, padded, queue="large") + post(api, DOCUMENT, queue="behind")
    exchange = converse(api.server, data, finals=2)
    assert exchange.statuses[:1] == [400]
    assert "inside" not in api.names()


@pytest.mark.parametrize(("method", "target"), [("GET", "/v2/queues"), ("POST", "/nosuchpath")])
def test_a_body_that_nobody_reads_does_not_run_into_the_next_request(
    method: str, target: str, api: Api
) -> None:
    inside = post(api, DOCUMENT, queue="inside")
    length = (b"Content-Length", b"%d" % len(inside))
    data = request(api, method, target, length) + inside + post(api, DOCUMENT, queue="behind")
    exchange = converse(api.server, data, finals=2)
    assert "inside" not in api.names()
    assert exchange.statuses[1:] in ([201], [])


@pytest.mark.parametrize(
    "garbage",
    [b"\x00garbage\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /\xff HTTP/1.1\r\n\r\n"],
    ids=ascii,
)
def test_garbage_behind_a_request_is_not_answered_in_its_place(garbage: bytes, api: Api) -> None:
    """The first answer is the first request's: a 400 says that it had no effect."""
    exchange = converse(api.server, post(api, DOCUMENT) + garbage, patience_s=0.5)
    assert all(answer.status < 500 or answer.status == 505 for answer in exchange.answers)
    time.sleep(0.2)  # whatever was begun has been done by then
    if exchange.statuses[:1] == [201]:
        assert api.listed("q") == ["hidden"]
        assert len(exchange.answers) <= 2
    else:
        no_success(exchange)
        assert api.listed("q") == [], f"answered {exchange.statuses}, but posted all the same"


def test_a_head_over_the_limit_is_not_answered_in_place_of_the_request_before_it(api: Api) -> None:
    api.post_bodies("q", 1)
    expect(api.pop("q"), 200)

    def sent() -> Iterator[bytes]:
        yield request(api, "POST", "/v2/queues/q/claims?wait=2") + b"GET / HTTP/1.1\r\nX-A: "
        time.sleep(0.1)
        yield b"x" * (2 * HEAD_MAX)
        time.sleep(0.2)
        api.post_bodies("q", "wanted")

    exchange = converse(api.server, sent(), patience_s=0.5)
    if exchange.statuses[:1] != [201]:
        assert api.stats("q")["claimed"] == 0, f"answered {exchange.statuses}, but claimed"


@pytest.mark.parametrize("behind", [b"", head(b"GET", b"/livez")], ids=["alone", "and another"])
def test_a_client_that_left_while_it_waited_claims_nothing(behind: bytes, api: Api) -> None:
    """Also where another request waits behind the one that it waits for."""
    expect(api.create("q"), 201)
    with connect(api.server) as connection:
        connection.sendall(request(api, "POST", "/v2/queues/q/claims?wait=5") + behind)
        time.sleep(0.2)
    time.sleep(0.2)
    api.post_bodies("q", "for somebody else")
    time.sleep(0.2)
    assert api.stats("q")["claimed"] == 0


def test_a_client_that_leaves_amid_its_requests_is_no_failure(
    private_server: Callable[..., LiveServer],
) -> None:
    server = private_server()
    api = server.api()
    data = (post(api, DOCUMENT) + request(api, "GET", "/v2/queues/q/messages?echo=true")) * 30
    for kept_s in (0.0, 0.001, 0.01, 0.05):
        for _ in range(3):
            with connect(server) as connection:
                connection.sendall(data)
                time.sleep(kept_s)
    still_serves(server)
    time.sleep(0.5)
    log = server.log()
    server.kill()  # its own fixture would look for the same, and say it worse
    assert "Traceback" not in log, log[max(log.index("Traceback") - 300, 0) :][:3_000]
    assert '"level":"error"' not in log


@pytest.mark.parametrize("reading", [True, False], ids=["answers read", "answers not read"])
def test_requests_sent_at_once_without_end_do_not_pile_up(
    reading: bool, private_server: Callable[..., LiveServer]
) -> None:
    """What is not answered yet is not taken from the socket, beyond what one read brings."""
    server = private_server()
    api = server.api()
    data = head(b"GET", b"/livez") * 5_000
    converse(server, data[: len(data) // 5], patience_s=0.5)  # arenas and caches are there now
    with growth_watched(server) as growth, connect(server) as connection:
        connection.setblocking(False)
        deadline, sent_bytes = time.monotonic() + 1.5, 0
        while time.monotonic() < deadline:
            try:
                sent_bytes += connection.send(data)
            except BlockingIOError:
                time.sleep(0.001)
            except ConnectionError:
                break
            if reading:
                try:
                    while connection.recv(1 << 20):
                        pass
                except (BlockingIOError, ConnectionError):
                    pass
    assert growth.peak_bytes < GROWTH_MAX, f"{growth.peak_bytes / MIB:.0f} MiB more"
    expect(api.get("/v2/ping"), 204)


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c", b"TLS/1.2", b"nosuch"])
def test_an_upgrade_that_is_not_offered_is_passed_over(protocol: bytes, api: Api) -> None:
    fields = [(b"Connection", b"Upgrade"), (b"Upgrade", protocol)]
    data = post(api, DOCUMENT, *fields) + request(api, "GET", "/v2/ping")
    exchange = converse(api.server, data, patience_s=0.5, finals=2)
    # Ignored, as HTTP has it: some clients offer h2c with every first request.
    assert exchange.statuses[:1] == [201]
    assert api.listed("q") == ["hidden"]
    # The next request is answered, or the connection closed: its client must not wait in vain.
    assert exchange.statuses[1:] == [204] or exchange.closed


def test_bytes_after_a_refusal_are_not_served(api: Api) -> None:
    data = b"\x00\r\n\r\n" + post(api, DOCUMENT) * 10
    cut_off(converse(api.server, data, patience_s=0.5))
    assert api.listed("q") == []


def test_after_all_that_the_server_is_healthy(server: LiveServer) -> None:
    still_serves(server)
    assert server.process.poll() is None
    assert "Traceback (most recent call last)" not in server.log()
