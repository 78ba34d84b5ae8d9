"""What every request must carry, and in which order it is looked at (contract, 1.1 to 1.5, 1.10)."""

from __future__ import annotations

import itertools
import json
import re
import uuid
from collections.abc import Callable

import httpx
import pytest

from tests.live import QUEUES, TOPICS, Api, Kind, LiveServer, expect, raw_exchange

pytestmark = pytest.mark.embedded  # about no store at all

GOOD_ID = "3381af92-2b9e-11e3-b191-71861300734c"
REQUEST_ID = re.compile(r"req-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
FORM = "application/x-www-form-urlencoded"

# Checks 2 to 9 in the contract's order. Each stage: what may be wrong with it → what the answer is.
STAGES: list[dict[str, tuple[int, str | None] | None]] = [
    {"": None, "form": (400, "Invalid Content-Type")},
    {"": None, "accept": (406, "406 Not Acceptable")},
    {
        "": None,
        "no-client": (400, "Missing header value"),
        "bad-client": (400, "Wrong UUID value"),
    },
    {
        "": None,
        "no-project": (400, "Project-Id Missing"),
        "empty-project": (400, "Empty project header not allowed"),
        "long-project": (400, "identification"),
    },
    {"": None, "bad-name": (400, "identification")},
    {"": None, "extra-spec": (400, None)},
    {"": None, "bad-method": (405, "405 Method Not Allowed")},
]
COMBINATIONS = list(itertools.product(*STAGES))


def faulty(kind: Kind, faults: tuple[str, ...]) -> tuple[str, str, dict[str, str]]:
    """Method, path and header fields of a request with these faults."""
    headers = {
        "Content-Type": FORM if "form" in faults else "application/json",
        "Accept": "application/xml" if "accept" in faults else "application/json",
    }
    if "no-client" not in faults:
        headers["Client-ID"] = "whoever" if "bad-client" in faults else GOOD_ID
    if "empty-project" in faults:
        headers["X-Project-ID"] = ""
    elif "long-project" in faults:
        headers["X-Project-ID"] = "p" * 257
    elif "no-project" not in faults:
        headers["X-Project-ID"] = "order-of-checks"
    if "extra-spec" in faults:
        headers["EXTRA-SPEC"] = "nosuchscheme:1"
    name = "bad@name" if "bad-name" in faults else "q"
    method = "POST" if "bad-method" in faults else "PUT"
    return method, f"/v2/{kind.noun}/{name}", headers


def outcome(kind: Kind, faults: tuple[str, ...]) -> tuple[int, str | None] | None:
    """Status and title that the first of these faults leads to; None without a fault."""
    for stage, fault in zip(STAGES, faults, strict=True):
        decided = stage[fault]
        if decided is not None:
            status, title = decided
            return status, kind.bad_name_title if title == "identification" else title
    return None


@pytest.mark.parametrize("kind", [QUEUES, TOPICS], ids=lambda kind: kind.noun)
@pytest.mark.parametrize("client", STAGES[2], ids=lambda fault: fault or "good-client")
@pytest.mark.parametrize("project", STAGES[3], ids=lambda fault: fault or "good-project")
def test_the_first_failing_check_decides_the_answer(
    project: str, client: str, kind: Kind, api: Api
) -> None:
    for faults in COMBINATIONS:
        if faults[2:4] != (client, project):
            continue
        method, path, headers = faulty(kind, faults)
        content = b"{}" if method == "PUT" else b""
        answer = api.request(method, path, headers=headers, content=content)
        decided = outcome(kind, faults)
        if decided is None:
            assert answer.status_code in {201, 204}
        else:
            status, title = decided
            found = (answer.status_code, answer.json()["title"] if title else None)
            assert found == (status, title), faults


# -- content type and accept -----------------------------------------------------------------------


def test_a_form_without_a_body_or_length_may_create_a_queue(api: Api) -> None:
    headers = {**api.headers, "Content-Type": FORM}
    assert raw_exchange(api.server, "PUT", "/v2/queues/q", headers).status == 201


def test_a_form_with_a_length_of_zero_is_refused(api: Api) -> None:
    headers = {**api.headers, "Content-Type": FORM, "Content-Length": "0"}
    answer = raw_exchange(api.server, "PUT", "/v2/queues/q", headers)
    assert (answer.status, answer.title()) == (400, "Invalid Content-Type")


@pytest.mark.parametrize("content_type", [FORM, FORM.upper()])
def test_a_posted_form_is_refused_in_any_letter_case(content_type: str, api: Api) -> None:
    answer = api.send("POST", api.path("q", "messages"), '{"messages": []}', content_type)
    expect(answer, 400, "Invalid Content-Type")


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; charset=utf-8", "text/plain", f"{FORM}; charset=utf-8"],
)
def test_any_other_content_type_passes(content_type: str, api: Api) -> None:
    document = '{"messages": [{"body": 1}]}'
    expect(api.send("POST", api.path("q", "messages"), document, content_type), 201)


def test_no_content_type_passes(api: Api) -> None:
    document = b'{"messages": [{"body": 1}]}'
    headers = {**api.headers, "Content-Length": str(len(document))}
    assert (
        raw_exchange(api.server, "POST", "/v2/queues/q/messages", headers, document).status == 201
    )


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "application/*",
        "application/json",
        "application/json;q=0.9",
        "text/html, application/json",
        "text/html,application/xhtml+xml,*/*;q=0.8",
        "application/xml;q=0.5, application/*;q=0.1",
    ],
)
def test_these_accept_values_admit_json(accept: str, api: Api) -> None:
    expect(api.get("/v2/queues", headers={**api.headers, "Accept": accept}), 200)


def test_a_request_without_accept_admits_json(api: Api) -> None:
    assert raw_exchange(api.server, "GET", "/v2/queues", api.headers).status == 200


@pytest.mark.parametrize(
    "accept",
    ["application/xml", "text/html", "application/vnd.openstack.messaging-v2+json", "text/*"],
)
def test_these_accept_values_do_not_admit_json(accept: str, api: Api) -> None:
    error = expect(
        api.get("/v2/queues", headers={**api.headers, "Accept": accept}), 406, "406 Not Acceptable"
    )
    assert set(error) <= {"title", "description", "link"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/queues"),
        ("GET", "/v2/queues/q/stats"),
        ("POST", "/v2/queues/q/messages"),
        ("GET", "/v2/queues/q/messages"),
        ("POST", "/v2/queues/q/claims"),
        ("GET", "/v2/health"),
        ("GET", "/v2/ping"),
        ("DELETE", "/v2/queues/q"),
    ],
)
def test_an_unacceptable_accept_comes_before_the_missing_project(
    method: str, path: str, api: Api
) -> None:
    headers = {"Client-ID": api.client_id, "Accept": "text/html"}
    expect(api.request(method, path, headers=headers), 406, "406 Not Acceptable")


# -- Client-ID -------------------------------------------------------------------------------------


def spellings(canonical: str) -> list[str]:
    """Ways to write one UUID that are all accepted."""
    plain = canonical.replace("-", "")
    return [
        canonical,
        canonical.upper(),
        plain,
        plain.upper(),
        f"{{{canonical}}}",
        f"{{{plain}}}",
        f"urn:uuid:{canonical}",
    ]


@pytest.mark.parametrize("client_id", spellings(GOOD_ID))
def test_any_spelling_of_a_uuid_is_a_client(client_id: str, api: Api) -> None:
    api.but(client_id=GOOD_ID).post_bodies("q", "mine")
    assert api.but(client_id=client_id).listed("q", "?echo=false") == []
    assert api.somebody_else().listed("q", "?echo=false") == ["mine"]


@pytest.mark.parametrize(
    "client_id",
    [
        "",
        "whoever",
        "0x3381af922b9e11e3b19171861300734c",
        GOOD_ID[:-1],
        GOOD_ID + "0",
        GOOD_ID.replace("a", "g"),
        "1234567890",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_anything_but_a_uuid_is_refused(method: str, client_id: str, api: Api) -> None:
    headers = {**api.headers, "Client-ID": client_id}
    answer = api.request(method, "/v2/queues/q/messages", headers=headers)
    expect(answer, 400, "Wrong UUID value" if client_id else None)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_missing_client_id_is_named_in_the_answer(method: str, api: Api) -> None:
    headers = {"X-Project-ID": api.project}
    error = expect(
        api.request(method, "/v2/queues/q/messages", headers=headers), 400, "Missing header value"
    )
    assert "Client-Id" in error["description"]


@pytest.mark.parametrize(
    "path", ["/v2/", "/v2/ping", "/v2/health", "/v2/queues", "/v2/topics", "/v2/queues/q"]
)
def test_everything_below_v2_needs_client_id_and_project(path: str, api: Api) -> None:
    without_client = {"X-Project-ID": api.project, "X-Roles": "admin"}
    expect(api.get(path, headers=without_client), 400, "Missing header value")
    without_project = {"Client-ID": api.client_id, "X-Roles": "admin"}
    expect(api.get(path, headers=without_project), 400, "Project-Id Missing")


@pytest.fixture
def lenient(shared_server: Callable[..., LiveServer]) -> Api:
    """A client of a server that takes any string as client id."""
    return shared_server(client_id_uuid_safe="off").api()


@pytest.mark.parametrize("client_id", ["c" * 10, "any text, really", "c" * 35, "c" * 36])
def test_where_uuids_are_not_asked_for_any_string_works_for_a_whole_life(
    client_id: str, lenient: Api
) -> None:
    own = lenient.but(client_id=client_id)
    other = lenient.but(client_id=str(uuid.uuid4()))
    expect(own.create("q"), 201)
    [message_id] = own.post_bodies("q", "mine")
    assert own.listed("q", "?echo=false") == []
    assert own.listed("q", "?echo=true") == ["mine"]
    assert other.listed("q", "?echo=false") == ["mine"]
    claim = own.claimed("q")
    expect(own.delete_message("q", message_id, claim.claim_id), 204)
    assert own.stats("q")["total"] == 0
    expect(own.drop("q"), 204)


@pytest.mark.parametrize("client_id", ["c" * 9, "c" * 37, "c"])
def test_where_uuids_are_not_asked_for_the_length_still_counts(
    client_id: str, lenient: Api
) -> None:
    expect(lenient.but(client_id=client_id).list_queues(), 400, "Wrong UUID value")


def test_where_uuids_are_not_asked_for_strings_are_not_normalised(lenient: Api) -> None:
    lenient.but(client_id="client-number-one").post_bodies("q", "mine")
    assert lenient.but(client_id="CLIENT-NUMBER-ONE").listed("q", "?echo=false") == ["mine"]


def test_where_uuids_are_not_asked_for_a_client_id_must_still_be_there(lenient: Api) -> None:
    headers = {"X-Project-ID": lenient.project}
    expect(lenient.get("/v2/queues", headers=headers), 400, "Missing header value")


# -- project ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_a_missing_project_is_refused(method: str, api: Api) -> None:
    headers = {"Client-ID": api.client_id}
    expect(api.request(method, "/v2/queues/q", headers=headers), 400, "Project-Id Missing")


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_an_empty_project_is_refused(method: str, api: Api) -> None:
    headers = {"Client-ID": api.client_id, "X-Project-ID": ""}
    answer = api.request(method, "/v2/queues/q", headers=headers)
    expect(answer, 400, "Empty project header not allowed")


@pytest.mark.parametrize("name", ["X-Project-ID", "X-Tenant-ID", "X-Tenant", "x-project-id"])
def test_the_project_may_come_in_any_of_three_headers(name: str, api: Api) -> None:
    expect(api.create("q"), 201)
    headers = {"Client-ID": api.client_id, name: api.project}
    assert [q["name"] for q in expect(api.get("/v2/queues", headers=headers), 200)["queues"]] == [
        "q"
    ]


def test_the_first_project_header_present_wins(api: Api) -> None:
    expect(api.create("q"), 201)
    headers = {
        "Client-ID": api.client_id,
        "X-Tenant": f"{api.project}-3",
        "X-Tenant-ID": f"{api.project}-2",
        "X-Project-ID": api.project,
    }
    assert len(expect(api.get("/v2/queues", headers=headers), 200)["queues"]) == 1
    del headers["X-Project-ID"]
    assert len(expect(api.get("/v2/queues", headers=headers), 200)["queues"]) == 0


def test_an_empty_first_project_header_hides_the_others(api: Api) -> None:
    headers = {"Client-ID": api.client_id, "X-Project-ID": "", "X-Tenant-ID": api.project}
    expect(api.get("/v2/queues", headers=headers), 400, "Empty project header not allowed")


@pytest.mark.parametrize(
    "project",
    ["with blanks inside", "p" * 256, "a/b", "..", "%00", "*", "'; --", "ümläut", "{p}"],
)
def test_a_project_may_be_called_anything(project: str, api: Api) -> None:
    headers = {"Client-ID": api.client_id, "X-Project-ID": project}
    queue = f"q-{uuid.uuid4().hex}"
    assert raw_exchange(api.server, "PUT", f"/v2/queues/{queue}", headers).status == 201
    assert raw_exchange(api.server, "PUT", f"/v2/queues/{queue}", headers).status == 204
    listing = raw_exchange(api.server, "GET", f"/v2/queues?name={queue}", headers)
    assert [entry["name"] for entry in json.loads(listing.body)["queues"]] == [queue]


@pytest.mark.parametrize("kind", [QUEUES, TOPICS], ids=lambda kind: kind.noun)
@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
def test_a_project_of_257_characters_is_refused_where_a_name_is_in_the_path(
    method: str, kind: Kind, api: Api
) -> None:
    long = api.but(project="p" * 257, kind=kind)
    expect(long.request(method, long.path("q")), 400, kind.bad_name_title)


@pytest.mark.parametrize("path", ["/v2/queues", "/v2/topics", "/v2/"])
def test_a_project_of_257_characters_passes_where_no_name_is_in_the_path(
    path: str, api: Api
) -> None:
    expect(api.but(project="p" * 257).get(path), 200)


# -- EXTRA-SPEC ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", ":rest", "messagecode:123456", "messagecode:"])
def test_a_harmless_extra_spec_changes_nothing(value: str, api: Api) -> None:
    with_spec = api.but(extra={"EXTRA-SPEC": value})
    expect(with_spec.create("q"), 201)
    assert with_spec.post_bodies("q", 1)
    expect(with_spec.list_messages("q"), 200)


@pytest.mark.parametrize("value", ["nosuchscheme:1", "nosuchscheme"])
def test_an_unknown_extra_spec_scheme_is_refused(value: str, api: Api) -> None:
    expect(api.but(extra={"EXTRA-SPEC": value}).create("q"), 400)
    assert api.names() == []


@pytest.mark.parametrize("value", ["", "messagecode:1"])
def test_an_extra_spec_does_not_stand_in_for_other_headers(value: str, api: Api) -> None:
    headers = {"Client-ID": api.client_id, "EXTRA-SPEC": value}
    expect(api.get("/v2/queues", headers=headers), 400, "Project-Id Missing")


# -- pre-signed requests ---------------------------------------------------------------------------


def test_a_signature_that_does_not_verify_is_404(api: Api) -> None:
    signed = api.but(
        extra={
            "URL-Signature": "0" * 64,
            "URL-Expires": "2099-01-01T00:00:00",
            "URL-Methods": "GET",
            "URL-Paths": "/v2/queues/q/messages",
        }
    )
    assert expect(signed.list_messages("q"), 404) == {"title": "404 Not Found"}


def test_a_signature_is_looked_at_before_all_else(api: Api) -> None:
    headers = {"URL-Signature": "0" * 64, "Accept": "text/html"}
    assert expect(api.get("/v2/queues/bad@name", headers=headers), 404) == {
        "title": "404 Not Found"
    }


def test_an_empty_signature_is_no_signature(api: Api) -> None:
    expect(api.but(extra={"URL-Signature": ""}).list_messages("q"), 200)


# -- routing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/v2",
        "/nosuchpath",
        "/v1",
        "/v1/queues",
        "/v1.1/queues",
        "/v2/nosuchpath",
        "/v2/ping/",
        "/v2/queues/q/",
        "/v2/queues/q/nosuchpath",
        "/v2/queues/q/messages/m/more",
        "/v2/queues/q/claims/c/more",
        "/v2/topics/t/claims",
        "/v2/topics/t/share",
        "//v2/queues",
    ],
)
def test_an_unrouted_path_is_404_before_any_check(path: str, server: LiveServer) -> None:
    answer = raw_exchange(server, "GET", path, {"Accept": "text/html"})
    assert answer.status == 404
    assert httpx.Response(404, content=answer.body).json() == {"title": "404 Not Found"}


@pytest.mark.parametrize("kind", [QUEUES, TOPICS], ids=lambda kind: kind.noun)
def test_a_trailing_slash_on_the_collection_is_the_empty_name(kind: Kind, api: Api) -> None:
    expect(api.get(f"/v2/{kind.noun}/"), 400, kind.bad_name_title)


def test_a_trailing_slash_on_messages_is_the_empty_id(api: Api) -> None:
    expect(api.get("/v2/queues/q/messages/"), 404, "Not found")


def test_path_segments_are_decoded_before_matching(api: Api) -> None:
    expect(api.put("/v2/queues/my%2Dqueue"), 201)
    expect(api.get("/v2/%71ueues"), 200)
    assert api.names() == ["my-queue"]


ROUTES = [
    ("/v2/", {"GET"}),
    ("/v2/ping", {"GET", "HEAD"}),
    ("/v2/health", {"GET"}),
    ("/v2/queues", {"GET"}),
    ("/v2/queues/q", {"GET", "PUT", "PATCH", "DELETE"}),
    ("/v2/queues/q/stats", {"GET"}),
    ("/v2/queues/q/purge", {"POST"}),
    ("/v2/queues/q/messages", {"GET", "POST", "DELETE"}),
    ("/v2/queues/q/messages/m", {"GET", "DELETE"}),
    ("/v2/queues/q/claims", {"POST"}),
    ("/v2/queues/q/claims/c", {"GET", "PATCH", "DELETE"}),
    ("/v2/topics", {"GET"}),
    ("/v2/topics/t", {"GET", "PUT", "PATCH", "DELETE"}),
    ("/v2/topics/t/stats", {"GET"}),
    ("/v2/topics/t/purge", {"POST"}),
    ("/v2/topics/t/messages", {"GET", "POST", "DELETE"}),
    ("/v2/topics/t/messages/m", {"GET", "DELETE"}),
    ("/v2/queues/q/share", {"POST"}),
    ("/v2/pools", {"GET"}),
    ("/v2/pools/p", {"GET", "PUT", "PATCH", "DELETE"}),
    ("/v2/pools/p/drain", {"POST"}),
    ("/v2/flavors", {"GET"}),
    ("/v2/flavors/f", {"GET", "PUT", "PATCH", "DELETE"}),
    *[
        (f"{one}/subscriptions{below}", methods)
        for one in ("/v2/queues/q", "/v2/topics/t")
        for below, methods in (
            ("", {"GET", "POST"}),
            ("/s", {"GET", "PATCH", "DELETE"}),
            ("/s/confirm", {"PUT"}),
            ("/s/status", {"GET"}),
            ("/s/failed", {"GET"}),
            ("/s/pause", {"POST"}),
            ("/s/resume", {"POST"}),
            ("/s/replay", {"POST"}),
            ("/s/ping", {"POST"}),
            ("/s/secret", {"POST"}),
        )
    ],
]
ALL_METHODS = {"GET", "PUT", "POST", "PATCH", "DELETE", "HEAD"}


def allowed(answer: httpx.Response) -> set[str]:
    return {method.strip() for method in answer.headers["Allow"].split(",")}


@pytest.mark.parametrize(("path", "methods"), ROUTES, ids=[path for path, _ in ROUTES])
def test_an_unsupported_method_is_405_and_tells_the_supported_ones(
    path: str, methods: set[str], api: Api
) -> None:
    for method in sorted(ALL_METHODS - methods):
        answer = api.request(method, path)
        assert answer.status_code == 405, method
        assert allowed(answer) == methods | {"OPTIONS"}, method
        if method == "HEAD":
            assert answer.content == b""
        else:
            assert answer.json() == {"title": "405 Method Not Allowed"}


@pytest.mark.parametrize(("path", "methods"), ROUTES, ids=[path for path, _ in ROUTES])
def test_405_waits_for_the_headers(path: str, methods: set[str], api: Api) -> None:
    method = min({"PUT", "POST"} - methods)
    answer = api.request(method, path, headers={"X-Project-ID": api.project})
    expect(answer, 400, "Missing header value")


@pytest.mark.parametrize(
    ("path", "methods"), [("/", {"GET"}), *ROUTES], ids=["/", *[path for path, _ in ROUTES]]
)
def test_options_is_200_without_a_body_and_tells_the_methods(
    path: str, methods: set[str], api: Api
) -> None:
    answer = api.request("OPTIONS", path)
    assert answer.status_code == 200
    assert answer.content == b""
    assert allowed(answer) - {"OPTIONS"} == methods


@pytest.mark.parametrize("path", ["/", "/v2/queues", "/v2/queues/bad@name", "/nosuchpath", "/v2"])
def test_options_is_200_for_every_path_even_without_headers(path: str, server: LiveServer) -> None:
    answer = raw_exchange(server, "OPTIONS", path)
    assert (answer.status, answer.body) == (200, b"")
    if path != "/":
        assert "allow" not in answer.headers


def test_a_method_nobody_knows_does_no_harm(api: Api) -> None:
    assert api.request("BREW", "/v2/queues").status_code in {400, 405, 501}


# -- request ids -----------------------------------------------------------------------------------


def test_every_answer_carries_a_request_id_of_its_own(api: Api) -> None:
    answers = [
        api.get("/", headers={}),
        api.get("/nosuchpath"),
        api.get("/v2/queues"),
        api.get("/v2/queues", headers={}),
        api.get("/v2/queues", headers={**api.headers, "Accept": "text/html"}),
        api.request("POST", "/v2/queues"),
        api.request("OPTIONS", "/v2/queues"),
        api.create("q"),
        api.post("q", {"no": "body"}),
        api.get("/v2/ping"),
        api.request("HEAD", "/v2/ping"),
    ]
    ids = [answer.headers["x-openstack-request-id"] for answer in answers]
    assert all(REQUEST_ID.fullmatch(one) for one in ids), ids
    assert len(set(ids)) == len(ids)


# -- roles -----------------------------------------------------------------------------------------


def test_roles_are_believed_as_sent(api: Api) -> None:
    expect(api.get("/v2/health"), 403, "Not authorized")
    expect(api.but(extra={"X-Roles": "member"}).get("/v2/health"), 403, "Not authorized")
    expect(api.but(extra={"X-Roles": "admin"}).get("/v2/health"), 200)
    expect(api.but(extra={"X-Roles": "member, admin"}).get("/v2/health"), 200)
    expect(api.but(extra={"X-Roles": "member,admin"}).get("/v2/health"), 200)
