"""Requests with a signature: what they may do, and that everything else looks alike."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from nusku import signing
from tests.http.test_share import in_s, share, signed
from tests.live import Api, LiveServer, RawAnswer, eventually, expect, raw_exchange

SECRET = "a key that only tests have, of 42 characters"
MESSAGES = "/v2/queues/q/messages"
FAR = "2999-12-31T23:59:59"


@pytest.fixture
def mine(shared_server: Callable[..., LiveServer]) -> Api:
    """A client of a server whose key is known."""
    return shared_server(secret_key=SECRET).api()


def headers(
    api: Api,
    *,
    paths: tuple[str, ...] = (MESSAGES,),
    methods: tuple[str, ...] = ("GET",),
    expires: str = FAR,
    **changed: str | None,
) -> dict[str, str]:
    """Those of a request that is allowed, with something changed afterwards, or left out."""
    fields: dict[str, str | None] = {
        "Client-ID": api.client_id,
        "X-Project-ID": api.project,
        "URL-Signature": signing.sign(SECRET, paths, methods, api.project, expires),
        "URL-Methods": ",".join(methods),
        "URL-Paths": ",".join(paths),
        "URL-Expires": expires,
    }
    names = {name.lower().replace("-", "_"): name for name in fields}
    fields |= {names.get(name, name.replace("_", "-")): value for name, value in changed.items()}
    return {name: value for name, value in fields.items() if value is not None}


def refused(answer: Any) -> None:
    """Insist on the one answer that there is to a signature which does not allow the request."""
    assert answer.status_code == 404, answer.text
    assert answer.content == b'{"title":"404 Not Found"}'
    assert answer.headers["vary"] == "Accept"
    seen = {name.lower() for name in answer.headers}
    assert seen <= {"content-type", "content-length", "vary", "x-openstack-request-id", "date"}


def status(api: Api, path: str, sent: dict[str, str], method: str = "GET") -> RawAnswer:
    """The answer to a path that is sent as it stands."""
    return raw_exchange(api.server, method, path, sent)


# -- what is allowed


def test_a_signed_get(mine: Api) -> None:
    ids = mine.post_bodies("q", "hello")
    answer = mine.get(f"{MESSAGES}?echo=true", headers=headers(mine))
    assert [message["body"] for message in expect(answer, 200)["messages"]] == ["hello"]
    below = mine.get(f"{MESSAGES}/{ids[0]}", headers=headers(mine))
    assert expect(below, 200)["body"] == "hello"


def test_everything_can_be_done_that_was_shared(mine: Api) -> None:
    paths = tuple(f"/v2/queues/q/{what}" for what in ("messages", "claims", "subscriptions"))
    sent = headers(mine, paths=paths, methods=signing.METHODS)
    posted = mine.request("POST", MESSAGES, headers=sent, json={"messages": [{"body": 1}]})
    (path,) = expect(posted, 201)["resources"]
    claim = mine.request("POST", "/v2/queues/q/claims", headers=sent, json={"ttl": 60, "grace": 60})
    (message,) = expect(claim, 201)["messages"]
    assert message["href"].startswith(path)
    renewed = mine.request("PATCH", claim.headers["location"], headers=sent, json={"ttl": 100})
    expect(renewed, 204)
    expect(mine.delete(message["href"], headers=sent), 204)
    expect(mine.get(path, headers=sent), 404, "Not found")
    listed = mine.get("/v2/queues/q/subscriptions", headers=sent)
    assert expect(listed, 200)["subscriptions"] == []


def test_a_signature_made_by_anybody_who_has_the_key(mine: Api) -> None:
    """Fields as they stand in section 7, joined by hand; sent in any order, and with a Z."""
    text = (
        rf"/v2/queues/q/claims,/v2/queues/q/messages\nDELETE,GET,POST\n{mine.project}\n"
        "2999-12-31T23:59:59"
    )
    signature = hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).hexdigest()
    for paths in itertools.permutations(("/v2/queues/q/claims", "/v2/queues/q/messages")):
        for methods in itertools.permutations(("DELETE", "GET", "POST")):
            for expires in (FAR, f"{FAR}Z", f"{FAR}.123+00:00"):
                sent = {
                    "url-expires": expires,
                    "URL-PATHS": ",".join(paths),
                    "Url-Signature": signature,
                    "x-project-id": mine.project,
                    "URL-methods": ",".join(methods),
                    "Client-ID": mine.client_id,
                }
                expect(mine.get(MESSAGES, headers=sent), 200)


@pytest.mark.parametrize("kind", ["queues", "topics"])
def test_a_subscription_is_confirmed_by_a_signed_put(mine: Api, kind: str) -> None:
    collection = f"/v2/{kind}/q/subscriptions"
    made = mine.request("POST", collection, json={"subscriber": "http://nobody.invalid/hook"})
    one = f"{collection}/{expect(made, 201)['subscription_id']}"
    sent = headers(mine, paths=(f"{one}/confirm",), methods=("PUT",))
    for confirmed in (True, False, True):
        answer = mine.put(f"{one}/confirm", headers=sent, json={"confirmed": confirmed})
        expect(answer, 204)
        assert expect(mine.get(one), 200)["confirmed"] is confirmed
    # And nothing else.
    refused(mine.get(one, headers=sent))
    refused(mine.delete(one, headers=sent))
    refused(mine.put(one, headers=sent))
    refused(mine.get(f"{one}/confirm", headers=sent))
    refused(mine.put(f"{collection}/{uuid.uuid4().hex[:24]}/confirm", headers=sent, json={}))


BELOW = [
    ("GET", "status"),
    ("GET", "failed"),
    ("POST", "pause"),
    ("POST", "resume"),
    ("POST", "replay"),
    ("POST", "ping"),
    ("POST", "secret"),
]
"""What is below a subscription, and is not meant by who shares `subscriptions`."""


@pytest.mark.parametrize("kind", ["queues", "topics"])
def test_subscriptions_that_were_shared(mine: Api, kind: str) -> None:
    collection = f"/v2/{kind}/q/subscriptions"
    sent = headers(mine, paths=(collection,), methods=signing.METHODS)
    document = {"subscriber": "http://nobody.invalid/hook"}
    made = mine.request("POST", collection, headers=sent, json=document)
    one = f"{collection}/{expect(made, 201)['subscription_id']}"
    (listed,) = expect(mine.get(collection, headers=sent), 200)["subscriptions"]
    assert listed["subscriber"] == document["subscriber"]
    expect(mine.request("PATCH", one, headers=sent, json={"ttl": 600}), 204)
    assert expect(mine.get(one, headers=sent), 200)["ttl"] == 600
    expect(mine.put(f"{one}/confirm", headers=sent, json={"confirmed": True}), 204)

    # Neither is more than that, whoever made the signature for whichever path.
    for paths in ((collection,), (one,), *((f"{one}/{name}",) for _, name in BELOW)):
        wider = headers(mine, paths=paths, methods=signing.METHODS)
        for method, name in BELOW:
            refused(mine.request(method, f"{one}/{name}", headers=wider))
    for spelling in ("/%73tatus", "%2Fstatus", "/status?x=1", "/status/"):
        assert status(mine, f"{one}{spelling}", sent).status == 404
    seen = expect(mine.get(f"{one}/status"), 200)
    assert (seen["state"], seen["attempts"]) == ("active", [])
    assert "_signing" not in expect(mine.get(one), 200)["options"]

    expect(mine.delete(one, headers=sent), 204)
    expect(mine.get(one, headers=sent), 404, "Not found")


def test_topics(mine: Api) -> None:
    sent = headers(mine, paths=("/v2/topics/t/messages",), methods=("GET", "POST"))
    posted = mine.request(
        "POST", "/v2/topics/t/messages", headers=sent, json={"messages": [{"body": 1}]}
    )
    expect(posted, 201)
    expect(mine.get("/v2/topics/t/messages", headers=sent), 200)
    refused(mine.get("/v2/queues/t/messages", headers=sent))


def test_what_was_shared_is_what_is_allowed(api: Api) -> None:
    """On a server that made its key itself."""
    shared = share(api, {"paths": ["messages", "claims"], "methods": ["GET", "POST"]})
    sent = signed(api, shared)
    ids = api.post_bodies("q", 1)
    expect(api.get(MESSAGES, headers=sent), 200)
    expect(api.get(f"{MESSAGES}/{ids[0]}", headers=sent), 200)
    expect(api.request("POST", "/v2/queues/q/claims", headers=sent), 201)
    for method, path in (
        ("DELETE", MESSAGES),
        ("GET", "/v2/queues/q"),
        ("GET", "/v2/queues/q/stats"),
        ("GET", "/v2/queues/q/subscriptions"),
        ("POST", "/v2/queues/q/share"),
        ("POST", "/v2/queues/q/purge"),
        ("GET", "/v2/queues/other/messages"),
        ("GET", "/v2/queues"),
        ("GET", "/v2/topics/q/messages"),
        ("GET", "/v2/ping"),
        ("GET", "/v2/"),
        ("GET", "/v2/health"),
        ("GET", "/"),
    ):
        refused(api.request(method, path, headers=sent))


def test_roles_and_users_are_not_believed(mine: Api) -> None:
    sent = headers(mine, x_roles="admin", x_user_id="somebody", x_auth_token="t")
    expect(mine.get(MESSAGES, headers=sent), 200)
    expect(mine.get("/v2/health", headers={**mine.headers, "X-Roles": "admin"}), 200)
    refused(mine.get("/v2/health", headers=sent))


def test_a_signature_counts_for_its_project_only(mine: Api) -> None:
    mine.post_bodies("q", "secret")
    stranger = mine.stranger()
    refused(mine.get(MESSAGES, headers=headers(mine, x_project_id=stranger.project)))
    sent = headers(mine, x_project_id=None, x_tenant_id=mine.project)
    assert expect(mine.get(f"{MESSAGES}?echo=true", headers=sent), 200)["messages"]
    other = headers(mine, x_project_id=None, x_tenant_id=stranger.project)
    refused(mine.get(MESSAGES, headers=other))
    refused(mine.get(MESSAGES, headers={**sent, "X-Project-ID": stranger.project}))
    refused(mine.get(MESSAGES, headers={**sent, "X-Project-ID": ""}))
    # A second header of the name does not separate what is verified from what is served.
    twice = [*headers(mine).items(), ("X-Project-ID", stranger.project)]
    assert raw_exchange(mine.server, "GET", MESSAGES, twice).status == 400


# -- what is not


@pytest.mark.parametrize(
    "name", ["url_signature", "url_methods", "url_paths", "url_expires", "x_project_id"]
)
@pytest.mark.parametrize("value", [None, "", "x", ",", "None", "ÿ", "%00"])
def test_each_field_is_needed_and_has_to_be_right(mine: Api, name: str, value: str | None) -> None:
    sent = headers(mine, **{name: value})  # type: ignore[arg-type] # names of headers
    encoded = {key.encode(): text.encode("latin-1") for key, text in sent.items()}
    answer = mine.server.client.get(MESSAGES, headers=encoded)
    if name == "url_signature" and not value:
        expect(answer, 200)  # it is an ordinary request
    else:
        refused(answer)


@pytest.mark.parametrize(
    "changed",
    [
        {"url_signature": "0" * 64},
        {"url_signature": "0" * 20_000},
        {"url_methods": "GET,POST"},
        {"url_methods": "get"},
        {"url_methods": "GET, GET"},
        {"url_methods": "*"},
        {"url_paths": "/v2/queues"},
        {"url_paths": "/v2/queues/q"},
        {"url_paths": f"{MESSAGES},"},
        {"url_paths": f"{MESSAGES},{MESSAGES}"},
        {"url_paths": f"{MESSAGES} , {MESSAGES}"},
        {"url_paths": "/v2/queues/.*/messages"},
        {"url_paths": "["},
        {"url_paths": "(" * 10_000},
        {"url_paths": "(a+)+$,/v2/queues/" + "a" * 5000},
        {"url_paths": ",".join([MESSAGES] * 1000)},
        {"url_paths": "/v2/queues/" + "x/" * 10_000},
        {"url_expires": "2999-12-31T23:59:58"},
        {"url_expires": "2020-01-01T00:00:00"},
        {"url_expires": "tomorrow"},
        {"url_expires": "32503679999"},
        {"url_expires": "9" * 20_000},
    ],
    ids=lambda changed: str(changed)[:60],
)
def test_a_signature_of_something_else(mine: Api, changed: dict[str, str]) -> None:
    started = time.monotonic()
    refused(mine.get(MESSAGES, headers=headers(mine, **changed)))  # type: ignore[arg-type] # headers
    assert time.monotonic() - started < 10


def unchecked(api: Api, paths: str, methods: str = "GET", expires: str = FAR) -> dict[str, str]:
    """Headers with fields that nobody should have signed, though they are signed well."""
    text = rf"{paths}\n{methods}\n{api.project}\n{expires}"
    signature = hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).hexdigest()
    return headers(
        api, url_paths=paths, url_methods=methods, url_expires=expires, url_signature=signature
    )


@pytest.mark.parametrize(
    ("paths", "methods", "expires"),
    [
        ("/v2/queues/.*", "GET", FAR),
        ("/v2/queues/q.messages", "GET", FAR),
        ("queues/q/messages", "GET", FAR),
        ("/", "GET", FAR),
        ("/v2", "GET", FAR),
        ("/v2/queues", "GET", FAR),
        (f"{MESSAGES}/", "GET", FAR),
        ("/v2/queues/q/./messages", "GET", FAR),
        (f"{MESSAGES}?echo=true", "GET", FAR),
        ("", "GET", FAR),
        (MESSAGES, "", FAR),
        (MESSAGES, "GET,get", FAR),
        (MESSAGES, "GET,TRACE", FAR),
        (MESSAGES, "GET", ""),
        (MESSAGES, "GET", "None"),
        (MESSAGES, "GET", "2020-01-01T00:00:00"),
        (MESSAGES, "GET", "9999-12-31T23:59:60"),
    ],
)
def test_good_signatures_of_bad_fields(mine: Api, paths: str, methods: str, expires: str) -> None:
    expect(mine.get(MESSAGES, headers=unchecked(mine, MESSAGES)), 200)
    refused(mine.get(MESSAGES, headers=unchecked(mine, paths, methods, expires)))


def test_fields_cannot_be_shifted_into_one_another(mine: Api) -> None:
    r"""A project called like the end of a text does not become a grant of another project."""
    victim = mine.project
    text = rf"{MESSAGES}\nGET\n{victim}\n{FAR}"
    signature = hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).hexdigest()
    good = headers(mine, url_signature=signature)
    expect(mine.get(MESSAGES, headers=good), 200)
    for paths, methods, project in (
        (MESSAGES, "GET", rf"{victim}\n{FAR}"),
        (MESSAGES, rf"GET\n{victim}", FAR),
        (rf"{MESSAGES}\nGET", victim, FAR),
        (rf"{MESSAGES}\nGET", "GET", victim),
    ):
        shifted = {**good, "URL-Paths": paths, "URL-Methods": methods, "X-Project-ID": project}
        refused(mine.get(MESSAGES, headers=shifted))


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "PATCH", "TRACE"])
def test_other_methods(mine: Api, method: str) -> None:
    refused(mine.request(method, MESSAGES, headers=headers(mine)))


def test_head_is_not_get(mine: Api) -> None:
    answer = mine.request("HEAD", MESSAGES, headers=headers(mine))
    assert (answer.status_code, answer.content) == (404, b"")
    allowed = mine.request("HEAD", MESSAGES, headers=headers(mine, methods=("HEAD",)))
    assert allowed.status_code == 405


@pytest.mark.parametrize(
    "path",
    [
        "/v2/queues/q",
        "/v2/queues/q/",
        "/v2/queues/q/messages/",
        "/v2/queues/q/messages%2F",
        "/v2/queues/q/messages//",
        "/v2/queues/q//messages",
        "//v2/queues/q/messages",
        "/v2//queues/q/messages",
        "/./v2/queues/q/messages",
        "/v2/queues/q/messages/..",
        "/v2/queues/q/messages/%2e%2e",
        "/v2/queues/q/messages/.",
        "/v2/queues/q/messages/../stats",
        "/v2/queues/q/messages/..%2Fstats",
        "/v2/queues/q/messages%2F..%2Fstats",
        "/v2/queues/other/../q/messages",
        "/v2/queues/q/messages/../../other/messages",
        "/v2/queues/q/messagesx",
        "/v2/queues/q/messages;x",
        "/v2/queues/q/messages%00",
        "/v2/queues/q/messages%20",
        "/v2/queues/q/messages%0A",
        "/v2/queues/q/messages%3Fx",
        "/v2/queues/q/Messages",
        "/v2/queues/Q/messages",
        "/V2/queues/q/messages",
        "/v2/Queues/q/messages",
        "/v2/topics/q/messages",
        "/v2/queues/q%2e/messages",
        "/v2/queues/q%5Cmessages",
        "/v2/queues/%71%252Fmessages",
        "/v2/queues/other/messages?x=/v2/queues/q/messages",
        "/v2/queues/other/messages/v2/queues/q/messages",
        "/v2/queues/q/stats?/messages",
        "/v2/queues/q/messages/1/2",
    ],
)
def test_paths_that_look_like_it(mine: Api, path: str) -> None:
    answer = status(mine, path, headers(mine))
    assert answer.status == 404
    assert answer.body == b'{"title":"404 Not Found"}'


@pytest.mark.parametrize(
    "path",
    [
        "/v2/queues/q/messages?echo=true",
        "/v2/queues/%71/messages",
        "/v2/queues/q/%6Dessages",
        "/v2%2Fqueues/q/messages",
        "/v2/queues/q%2Fmessages",
    ],
)
def test_the_path_that_is_served_is_the_one_that_is_verified(mine: Api, path: str) -> None:
    """Other spellings of one path are one path, as they are without a signature."""
    assert status(mine, path, headers(mine)).status == 200
    assert status(mine, path, mine.headers).status == 200
    assert status(mine, path, headers(mine, paths=("/v2/queues/p/messages",))).status == 404


@pytest.mark.slow
def test_it_ends_when_it_expires(api: Api) -> None:
    until = time.time() + 5
    shared = share(api, {"expires": in_s(5)})
    sent = signed(api, shared)
    expect(api.get(MESSAGES, headers=sent), 200)
    eventually(lambda: api.get(MESSAGES, headers=sent).status_code == 404)
    assert time.time() > until - 1
    refused(api.get(MESSAGES, headers=sent))


def test_nothing_tells_what_was_wrong(mine: Api) -> None:
    """Whatever part failed, the answers are the same to the byte, but for the request's id."""

    def told(**changed: str | None) -> tuple[int, list[tuple[str, str]], bytes]:
        answer = mine.get(MESSAGES, headers=headers(mine, **changed))  # type: ignore[arg-type] # headers
        kept = [
            (k, v) for k, v in answer.headers.items() if k not in ("x-openstack-request-id", "date")
        ]
        return answer.status_code, kept, answer.content

    unrouted = mine.get("/v2/nothing", headers=headers(mine))
    usual = told(url_signature="0" * 64)
    assert usual[0] == unrouted.status_code
    assert usual[2] == unrouted.content
    for changed in (
        {"url_expires": "x"},
        {"url_expires": None},
        {"url_methods": "POST"},
        {"url_paths": "("},
        {"x_project_id": "other"},
        {"x_project_id": None},
        {"client_id": None, "url_paths": None},
    ):
        assert told(**changed) == usual


# -- the order of checks


def test_the_signature_is_checked_first(mine: Api) -> None:
    bad = headers(mine, methods=("POST",), url_signature="0" * 64)
    for more in (
        {"Accept": "text/html"},
        {"Client-ID": "x"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"EXTRA-SPEC": "nosuch:x"},
    ):
        refused(mine.request("POST", MESSAGES, headers={**bad, **more}, content=b"{}"))
    refused(mine.request("POST", "/v2/queues/b@d/messages", headers=bad, content=b"{}"))
    # Not even a method that the path does not take is told.
    refused(mine.request("PUT", MESSAGES, headers=bad))


def test_then_come_the_others(mine: Api) -> None:
    good = headers(mine, methods=("POST", "PUT"))

    def post(more: dict[str, str], **left_out: None) -> Any:
        sent = {**headers(mine, methods=("POST", "PUT"), **left_out), **more}  # type: ignore[arg-type] # headers
        return mine.request("POST", MESSAGES, headers=sent, content=b"{}")

    expect(post({"Accept": "text/html"}), 406, "406 Not Acceptable")
    expect(post({}, client_id=None), 400, "Missing header value")
    expect(post({"Client-ID": "x"}), 400, "Wrong UUID value")
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    expect(post(form), 400, "Invalid Content-Type")
    expect(post({"EXTRA-SPEC": "nosuch:x"}), 400, "Invalid API request")
    expect(post({}), 400, "Invalid API request")
    expect(mine.put(MESSAGES, headers=good), 405, "405 Method Not Allowed")


def test_options_is_always_fine(mine: Api) -> None:
    for sent in (headers(mine), headers(mine, url_signature="0" * 64)):
        assert mine.request("OPTIONS", MESSAGES, headers=sent).status_code == 200


def test_what_everybody_may_read_is_read_without_a_look_at_it(mine: Api) -> None:
    for path in ("/livez", "/readyz", "/openapi.json", "/docs"):
        assert mine.get(path, headers={"URL-Signature": "x"}).status_code == 200


def test_too_many_or_too_large_headers(mine: Api) -> None:
    sent = headers(mine)
    many = {f"X-{n}": "1" for n in range(200)}
    expect(mine.get(MESSAGES, headers={**sent, **many}), 400)
    answer = status(mine, MESSAGES, {**sent, "URL-Paths": "/v2/queues/q" * 10_000})
    assert answer.status == 400
