"""Signatures of URLs: what is signed to the letter, and that they allow nothing else."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nusku import signing
from nusku.auth import Authentication, Signatures
from nusku.broker.shares import Shares
from nusku.config import Settings
from nusku.errors import Invalid
from nusku.model import Context, QueueKey

SECRET = "0123456789abcdef0123456789abcdef"
MESSAGES = "/v2/queues/q/messages"
EXPIRES = "2030-01-01T00:00:00"
EXPIRES_S = 1_893_456_000
NOW_S = EXPIRES_S - 100

VECTOR = "21a967117a23b73acbb1db4239390c192d8c4ce77a771ca3b1c2b2b4e8056a3a"


def raw(secret: str, signed: str) -> str:
    """A signature as anybody makes it who has the key."""
    return hmac.new(secret.encode(), signed.encode(), hashlib.sha256).hexdigest()


def refused(action: Callable[..., object], *given: Any, **more: Any) -> bool:
    """Whether these are arguments with a wrong value."""
    try:
        action(*given, **more)
    except ValueError:
        return True
    return False


def holds(
    method: str = "GET",
    path: str = MESSAGES,
    *,
    paths: Sequence[str] = (MESSAGES,),
    methods: Sequence[str] = ("GET",),
    project: str = "p",
    expires: str = EXPIRES,
    signature: str | None = None,
    secret: str = SECRET,
    now_s: float = NOW_S,
) -> bool:
    """Whether a request is allowed by a signature that somebody made of these very fields."""
    if signature is None:
        signed = r"\n".join((",".join(sorted(paths)), ",".join(sorted(methods)), project, expires))
        signature = raw(SECRET, signed)
    return signing.verify(secret, method, path, project, signature, methods, paths, expires, now_s)


# -- what is signed


def test_the_known_text_has_the_known_signature() -> None:
    fields = ([MESSAGES], ["GET"], "p", EXPIRES)
    assert signing.text(*fields) == rf"{MESSAGES}\nGET\np\n2030-01-01T00:00:00"
    assert signing.sign("test", *fields) == VECTOR
    assert holds(signature=VECTOR, secret="test")


def test_paths_and_methods_are_sorted() -> None:
    paths, methods = [MESSAGES, "/v2/queues/q/claims"], ["POST", "DELETE", "GET"]
    text = signing.text(paths, methods, "p", EXPIRES)
    assert text.startswith(rf"/v2/queues/q/claims,{MESSAGES}\nDELETE,GET,POST\n")
    for given_paths in (paths, paths[::-1]):
        for given_methods in (methods, methods[::-1], ["GET", "POST", "DELETE"]):
            assert signing.text(given_paths, given_methods, "p", EXPIRES) == text
            assert holds(paths=given_paths, methods=given_methods)


@pytest.mark.parametrize("project", ["a b", "Ã¤", "ä", r"a\nGET\nb", "None", ",", "\\", "p" * 300])
def test_a_project_may_be_called_anything(project: str) -> None:
    assert holds(project=project)
    assert not holds(
        project=project, signature=signing.sign(SECRET, [MESSAGES], ["GET"], "p", EXPIRES)
    )


@pytest.mark.parametrize("secret", ["k", "ä", "with\r\nlines", "\0", "x" * 1000])
def test_a_key_may_be_any_text(secret: str) -> None:
    signature = signing.sign(secret, [MESSAGES], ["GET"], "p", EXPIRES)
    assert signature == raw(secret, rf"{MESSAGES}\nGET\np\n{EXPIRES}")
    assert holds(secret=secret, signature=signature)
    assert not holds(secret=secret + "x", signature=signature)


BAD_FIELDS: list[dict[str, Any]] = [
    {"secret": ""},
    {"project": ""},
    {"project": "\ud800"},
    *(
        {"paths": paths}
        for paths in (
            [],
            [""],
            ["/"],
            ["/v2"],
            ["/v2/"],
            ["/v2/queues"],
            ["/v2/queues/"],
            ["/v2/ping"],
            ["/v2/pools/x"],
            ["/v1/queues/q/messages"],
            ["v2/queues/q/messages"],
            ["//v2/queues/q/messages"],
            ["/v2//queues/q/messages"],
            ["/v2/queues//messages"],
            [f"{MESSAGES}/"],
            ["/v2/queues/q/../messages"],
            ["/v2/queues/q/./messages"],
            ["/v2/queues/.."],
            [f"{MESSAGES}/."],
            ["/v2/queues/q/%6dessages"],
            ["/v2/queues/q/messages?limit=1"],
            ["/v2/queues/.*"],
            ["/v2/queues/q[12]/messages"],
            ["^/v2/queues/q/messages$"],
            [r"/v2/queues/q\n/messages"],
            ["/v2/queues/q/messages\n"],
            ["/v2/queues/q/messages "],
            [" /v2/queues/q/messages"],
            ["/v2/queues/ä/messages"],
            ["/v2/queues/q/messages,/v2/queues/r/messages"],
            ["/V2/queues/q/messages"],
            ["http://host/v2/queues/q/messages"],
            [MESSAGES, MESSAGES],
            [MESSAGES, ""],
            [MESSAGES, "/v2/queues/(((((a+)+)+)+)+)$"],
        )
    ),
    *(
        {"methods": methods}
        for methods in (
            [],
            [""],
            ["get"],
            ["GET "],
            [" GET"],
            ["GET,POST"],
            ["GET\n"],
            [r"GET\nx"],
            ["GET", "GET"],
            ["GET", ""],
            ["TRACE"],
            ["*"],
            ["."],
        )
    ),
    *(
        {"expires": expires}
        for expires in (
            "",
            "never",
            "2030-01-01",
            "2030-01-01 00:00:00",
            "2030-01-01T00:00:00Z",
            "2030-01-01T00:00:00+00:00",
            "2030-01-01T00:00:00.000000",
            "2030-01-01T00:00",
            "20300101T000000",
            "2030-1-1T0:0:0",
            " 2030-01-01T00:00:00",
            "2030-01-01T00:00:00 ",
            "2030-01-01T00:00:00\n",
            "2030-02-30T00:00:00",
            "2030-01-01T24:00:00",
            "2030-01-01T23:59:60",
            "2030-13-01T00:00:00",
            "0000-01-01T00:00:00",
            "٢٠٣٠-٠١-٠١T٠٠:٠٠:٠٠",
            "1893456000",
            "99999-01-01T00:00:00",
            "-2030-01-01T00:00:00",
        )
    ),
]


@pytest.mark.parametrize("fields", BAD_FIELDS, ids=repr)
def test_what_is_not_of_its_form_is_neither_signed_nor_verified(fields: dict[str, Any]) -> None:
    good = {"secret": SECRET, "paths": [MESSAGES], "methods": ["GET"], "project": "p"}
    whole = {**good, "expires": EXPIRES, **fields}
    assert refused(signing.sign, **whole)
    if whole["project"] == "\ud800":
        whole["signature"] = "0" * 64  # nobody can sign that
    for path in (MESSAGES, *whole["paths"]):
        assert not holds(path=path, now_s=0, **whole)


# -- what it allows


@pytest.mark.parametrize(
    ("signed", "asked"),
    [
        (MESSAGES, MESSAGES),
        (MESSAGES, f"{MESSAGES}/5f3c"),
        (MESSAGES, f"{MESSAGES}/a,b"),
        ("/v2/queues/a.b-c_D/claims", "/v2/queues/a.b-c_D/claims/1"),
        (
            "/v2/queues/q/subscriptions",
            "/v2/queues/q/subscriptions/57692ab13990b48c644bb7e6/confirm",
        ),
        *2 * (("/v2/queues/q/subscriptions/57692ab13990b48c644bb7e6/confirm",) * 2,),
        *2 * (("/v2/topics/t/subscriptions/57692ab13990b48c644bb7e6/confirm",) * 2,),
        ("/v2/topics/t/messages", "/v2/topics/t/messages/1"),
        ("/v2/queues/q", "/v2/queues/q/stats"),
        ("/v2/queues/...", "/v2/queues/.../messages"),
    ],
)
def test_a_path_and_what_is_below_it(signed: str, asked: str) -> None:
    assert holds(path=asked, paths=[signed])
    assert holds(path=asked, paths=["/v2/queues/another/claims", signed])


@pytest.mark.parametrize(
    "asked",
    [
        "",
        "/",
        "/v2/queues/q",
        "/v2/queues/q/",
        "/v2/queues/q/stats",
        "/v2/queues/q/claims",
        "/v2/queues/q/messagesx",
        "/v2/queues/q/messages2/1",
        "/v2/queues/q/messages-old",
        "/v2/queues/q/messages.",
        "/v2/queues/q/message",
        "/v2/queues/q/Messages",
        "/v2/queues/Q/messages",
        "/V2/queues/q/messages",
        "/v2/queues/qq/messages",
        "/v2/queues/x/q/messages",
        "/v2/topics/q/messages",
        "/v1/queues/q/messages",
        f"{MESSAGES}/",
        f"{MESSAGES}//",
        f"{MESSAGES}//1",
        f"/{MESSAGES}",
        f"{MESSAGES}/.",
        f"{MESSAGES}/..",
        f"{MESSAGES}/../claims",
        f"{MESSAGES}/1/../../claims",
        f"/v2/queues/other/..{MESSAGES}",
        f"/x{MESSAGES}",
        f"{MESSAGES}%2F1",
        f"{MESSAGES};x/1",
        f"{MESSAGES}\\1",
        f"{MESSAGES}?x",
        f"{MESSAGES}\n",
        f" {MESSAGES}",
        "/v2/queues/q%2Fmessages",
    ],
)
def test_nothing_beside_it(asked: str) -> None:
    assert not holds(path=asked)


def test_a_dot_is_a_dot() -> None:
    dot = "/v2/queues/a.c/messages"
    assert holds(path=dot, paths=[dot])
    assert not holds(path="/v2/queues/abc/messages", paths=[dot])


@pytest.mark.parametrize(
    "method", ["POST", "DELETE", "HEAD", "OPTIONS", "get", "GE", "GETT", "", "GET,POST"]
)
def test_methods_that_are_not_among_them(method: str) -> None:
    assert not holds(method)
    assert not holds(method, methods=["GET", "PUT"])


def test_every_method_can_be_allowed() -> None:
    for method in signing.METHODS:
        assert holds(method, methods=signing.METHODS)
        assert holds(method, methods=[method])


@pytest.mark.parametrize(
    ("now_s", "fresh"),
    [
        (0, True),
        (EXPIRES_S - 0.001, True),
        (EXPIRES_S, False),
        (EXPIRES_S + 1, False),
        (1e12, False),
    ],
)
def test_it_ends_at_the_second(now_s: float, fresh: bool) -> None:
    assert holds(now_s=now_s) is fresh


@pytest.mark.parametrize(
    "signature",
    [
        "",
        "0" * 64,
        VECTOR,
        "x",
        "ä" * 64,
        "\ud800",
        "0" * 100_000,
        raw(SECRET, f"{MESSAGES}\nGET\np\n{EXPIRES}"),
        raw(SECRET, rf"{MESSAGES}\nGET\np\n"),
        raw("", rf"{MESSAGES}\nGET\np\n{EXPIRES}"),
        raw(SECRET, rf"{MESSAGES}\nGET\np\n{EXPIRES}").upper(),
        raw(SECRET, rf"{MESSAGES}\nGET\np\n{EXPIRES}")[:-1],
        raw(SECRET, rf"{MESSAGES}\nGET\np\n{EXPIRES}") + " ",
    ],
)
def test_other_signatures(signature: str) -> None:
    assert not holds(signature=signature)


def test_signatures_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(one: str, other: str) -> bool:
        compared.append(other)
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert not holds(signature="f" * 64)
    assert compared == ["f" * 64]


# -- no two grants have one signature

names = st.text("abAB.-_", min_size=1, max_size=4).filter(lambda name: name not in (".", ".."))
some_paths = st.builds("/v2/{}/{}/{}".format, st.sampled_from(["queues", "topics"]), names, names)
# Forms that other fields have, so that a project may pretend to be a border between fields.
projects = st.one_of(
    st.text(min_size=1, max_size=8),
    st.lists(
        st.sampled_from([r"\n", "GET", "PUT", ",", MESSAGES, EXPIRES, "p", "\\", "n", "None"]),
        min_size=1,
        max_size=6,
    ).map("".join),
)
grants = st.tuples(
    st.lists(some_paths, min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from(signing.METHODS), min_size=1, unique=True),
    projects,
    st.integers(0, 253_402_300_799).map(signing.expiry_text),
)


@settings(deadline=None)
@given(grants, grants)
def test_two_grants_never_share_a_text(
    one: tuple[list[str], list[str], str, str], other: tuple[list[str], list[str], str, str]
) -> None:
    same = all(
        (sorted(a) if isinstance(a, list) else a) == (sorted(b) if isinstance(b, list) else b)
        for a, b in zip(one, other, strict=True)
    )
    assert (signing.text(*one) == signing.text(*other)) is same


@settings(deadline=None)
@given(grants)
def test_a_text_can_be_taken_apart_in_one_way_only(
    grant: tuple[list[str], list[str], str, str],
) -> None:
    """The proof: whoever reads a text finds the fields that it was made of."""
    paths, methods, project, expires = grant
    read = re.fullmatch(r"([^\\]*)\\n([^\\]*)\\n(.*)\\n(.{19})", signing.text(*grant), re.DOTALL)
    assert read is not None
    assert read.groups() == (",".join(sorted(paths)), ",".join(sorted(methods)), project, expires)


@settings(deadline=None)
@given(grants, st.lists(projects, min_size=1, max_size=2))
def test_fields_cut_at_other_borders_do_not_verify(
    grant: tuple[list[str], list[str], str, str], more: list[str]
) -> None:
    """Any other way to cut the same text into four is refused, whatever is asked for."""
    paths, methods, project, expires = grant
    text = signing.text(paths, methods, r"\n".join((project, *more)), expires)
    parts = text.split(r"\n")
    for first, second, third in combinations(range(1, len(parts)), 3):
        if (first, second, third) == (1, 2, len(parts) - 1):
            continue  # where it was put together
        cut = (parts[:first], parts[first:second], parts[second:third], parts[third:])
        paths_, methods_, project_, expires_ = (r"\n".join(part) for part in cut)
        for method in methods_.split(","):
            for path in paths_.split(","):
                assert not signing.verify(
                    SECRET, method, path, project_, raw(SECRET, text),
                    methods_.split(","), paths_.split(","), expires_, 0,
                )  # fmt: skip


@settings(deadline=None)
@given(
    st.text(), st.text(), st.text(), st.text(), st.lists(st.text()), st.lists(st.text()), st.text()
)
def test_nothing_that_is_sent_makes_it_fail(
    method: str,
    path: str,
    project: str,
    signature: str,
    methods: list[str],
    paths: list[str],
    expires: str,
) -> None:
    assert not signing.verify(
        SECRET, method, path, project, signature, methods, paths, expires, NOW_S
    )


def test_huge_fields_are_judged_at_once() -> None:
    started = time.process_time()
    for paths in (
        ["/v2/queues/" + "a" * 100_000],
        ["/v2/queues/" + "a/" * 100_000],
        ["/v2/queues" + "/." * 100_000],
        [f"/v2/queues/q{n}/messages" for n in range(10_000)],
    ):
        holds(paths=paths)
        holds(path="/" * 100_000, paths=paths)
    assert time.process_time() - started < 2


# -- times


@pytest.mark.parametrize(
    ("iso", "text"),
    [
        ("2030-01-01", "2030-01-01T00:00:00"),
        ("2030-01-01T12:34", "2030-01-01T12:34:00"),
        ("2030-01-01T12:34:56", "2030-01-01T12:34:56"),
        ("2030-01-01 12:34:56", "2030-01-01T12:34:56"),
        ("2030-01-01T12:34:56.999999", "2030-01-01T12:34:56"),
        ("2030-01-01T12:34:56,5", "2030-01-01T12:34:56"),
        ("2030-01-01T12:34:56.123456789Z", "2030-01-01T12:34:56"),
        ("2030-01-01T12:34:56Z", "2030-01-01T12:34:56"),
        ("2030-01-01T12:34:56+00:00", "2030-01-01T12:34:56"),
        ("2030-01-01T00:34:56+02:00", "2029-12-31T22:34:56"),
        ("2030-01-01T12:34:56-0530", "2030-01-01T18:04:56"),
        ("2030-01-01T12:34:56+01", "2030-01-01T11:34:56"),
        ("20300101T123456Z", "2030-01-01T12:34:56"),
    ],
)
def test_times_are_read_as_utc(iso: str, text: str) -> None:
    assert signing.expiry_text(signing.expiry_s(iso)) == text


@pytest.mark.parametrize(
    "iso",
    ["", " ", "now", "20300101", "2030", "1893456000", "2030-01-01T", "2030-01-01Tnoon", "2030-02-29",
     "2030-01-01T25:00:00", "2030-01-01T00:00:00X", "2030-01-01T00:00:00+99:00", "2030-W01-1",
     "2030-01-01T00:00:00Z\n", "٢٠٣٠-01-01", "2030-01-01T00:00:00+00:00Z", "\ud800"],
)  # fmt: skip
def test_other_times_are_refused(iso: str) -> None:
    assert refused(signing.expiry_s, iso)


@pytest.mark.parametrize("at_s", [253_402_300_800, 10**18, 10**30, -(10**18)])
def test_times_of_no_calendar_are_refused(at_s: int) -> None:
    assert refused(signing.expiry_text, at_s)


@settings(deadline=None)
@given(st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31)))  # noqa: DTZ001 - made UTC below
def test_a_written_time_is_read_again(moment: datetime) -> None:
    moment = moment.replace(microsecond=0)
    at_s = int(moment.replace(tzinfo=UTC).timestamp())
    assert signing.expiry_text(at_s) == moment.isoformat()
    assert signing.expiry_s(moment.isoformat()) == at_s


# -- requests


def headers(**changed: str | None) -> dict[bytes, bytes]:
    """Those of a request that is allowed to GET the messages, with something changed."""
    fields: dict[str, str | None] = {
        "url-signature": signing.sign(SECRET, [MESSAGES], ["GET"], "p", EXPIRES),
        "url-methods": "GET",
        "url-paths": MESSAGES,
        "url-expires": EXPIRES,
        "x-project-id": "p",
        "client-id": "3381af92-2b9e-11e3-b191-71861300734c",
        "x-roles": "admin",
    }
    fields |= {name.replace("_", "-"): value for name, value in changed.items()}
    return {k.encode(): v.encode("latin-1") for k, v in fields.items() if v is not None}


def allowed(secret: str = SECRET, now_s: float = NOW_S, **changed: str | None) -> bool:
    return Signatures(secret, lambda: now_s).allow("GET", MESSAGES, headers(**changed))


def test_a_signed_request_is_allowed() -> None:
    assert allowed()


@pytest.mark.parametrize(
    "name", ["url_signature", "url_methods", "url_paths", "url_expires", "x_project_id"]
)
@pytest.mark.parametrize("value", [None, "", "x", "\xff", ",", "None"])
def test_a_request_that_lacks_something_is_not(name: str, value: str | None) -> None:
    changed: dict[str, Any] = {name: value}
    assert not allowed(**changed)


def test_nobody_is_allowed_anything_without_a_key() -> None:
    assert not allowed(secret="")
    assert not allowed(secret="", url_signature=raw("", rf"{MESSAGES}\nGET\np\n{EXPIRES}"))


@pytest.mark.parametrize(
    ("expires", "right"),
    [
        ("2030-01-01T00:00:00Z", True),
        ("2030-01-01T00:00:00.750000", True),
        ("2030-01-01T02:00:00+02:00", True),
        ("2030-01-01", True),
        ("2030-01-01T00:00:01", False),
        ("2031-01-01T00:00:00Z", False),
        ("20300101", False),
        ("9999-12-31T23:59:59-23:00", False),
    ],
)
def test_the_time_may_be_spelt_otherwise_but_not_be_another(expires: str, right: bool) -> None:
    assert allowed(url_expires=expires) is right


def test_the_project_that_was_signed_is_the_one_that_is_served() -> None:
    """Whichever header names it: the first that is there, as for everybody."""
    assert allowed(x_project_id=None, x_tenant_id="p", x_tenant="other")
    assert not allowed(x_project_id="", x_tenant_id="p")
    assert not allowed(x_project_id="other", x_tenant_id="p")
    assert allowed(x_tenant_id="other")
    for changed in ({}, {"x_project_id": None, "x_tenant_id": "p", "x_tenant": "other"}):
        caller = Authentication(Settings(), SECRET, now_s=lambda: NOW_S).signed(
            "GET", MESSAGES, headers(**changed)
        )
        assert caller is not None
        assert caller.project == "p"


def test_who_comes_with_a_signature_has_no_roles_and_is_no_user() -> None:
    authentication = Authentication(Settings(), SECRET, now_s=lambda: NOW_S)
    sent = headers(x_user_id="me", x_auth_token="t")
    caller = authentication.signed("GET", MESSAGES, sent)
    assert caller is not None
    signed = authentication.context(sent, caller)
    assert (signed.roles, signed.user, signed.token) == (frozenset(), "", "")
    believed = authentication.context(sent, None)
    assert (sorted(believed.roles), believed.user, believed.token) == (["admin"], "me", "t")
    assert (signed.project, signed.client) == (believed.project, believed.client)


# -- sharing


CTX = Context("p", "c", frozenset())
KEY = QueueKey("queue", "p", "q")


def share(document: object, *, secret: str = SECRET, **told: Any) -> dict[str, Any]:
    """What a server answers whose clock stands still."""
    shares = Shares(secret, Settings(**told), lambda: NOW_S + 0.5)

    async def answer() -> dict[str, Any]:
        return await shares.share(CTX, KEY, document)

    return asyncio.run(answer())


def test_what_is_shared_verifies() -> None:
    shared = share(
        {"paths": ["messages", "claims"], "methods": ["POST", "GET"], "expires": EXPIRES}
    )
    assert list(shared) == ["paths", "methods", "project", "expires", "signature"]
    assert shared["paths"] == ["/v2/queues/q/claims", MESSAGES]
    assert shared["methods"] == ["GET", "POST"]
    assert (shared["project"], shared["expires"]) == ("p", EXPIRES)
    signature = str(shared["signature"])
    assert re.fullmatch("[0-9a-f]{64}", signature)
    assert holds(
        "POST",
        f"{MESSAGES}/1",
        paths=["/v2/queues/q/claims", MESSAGES],
        methods=["GET", "POST"],
        signature=signature,
    )


@pytest.mark.parametrize(
    "document",
    [{}, {"paths": [], "methods": []}, {"paths": None, "methods": None, "expires": None}],
)
def test_what_is_shared_when_nothing_is_said(document: dict[str, object]) -> None:
    shared = share(document)
    assert shared["paths"] == [MESSAGES]
    assert shared["methods"] == ["GET"]
    assert shared["expires"] == signing.expiry_text(NOW_S + 86_400)
    assert share(document, max_signature_ttl=600)["expires"] == signing.expiry_text(NOW_S + 600)


def test_naming_something_twice_is_naming_it() -> None:
    shared = share({"paths": ["messages", "messages"], "methods": ["GET", "GET"]})
    assert (shared["paths"], shared["methods"]) == ([MESSAGES], ["GET"])


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "must be a JSON object"),
        ({"path": ["messages"]}, "paths, methods and expires"),
        ({"key": "x"}, "paths, methods and expires"),
        ({"paths": "messages"}, "paths must be a list with some of claims, messages, subscriptions"),
        ({"paths": {"messages": 1}}, "paths must be a list"),
        ({"paths": ["share"]}, "paths must be a list"),
        ({"paths": ["/v2/queues/q/messages"]}, "paths must be a list"),
        ({"paths": ["messages/.."]}, "paths must be a list"),
        ({"paths": ["messages", 1]}, "paths must be a list"),
        ({"paths": [["messages"]]}, "paths must be a list"),
        ({"paths": [{}]}, "paths must be a list"),
        ({"paths": ""}, "paths must be a list"),
        ({"paths": 0}, "paths must be a list"),
        ({"methods": "GET"}, "methods must be a list with some of DELETE, GET"),
        ({"methods": ["get"]}, "methods must be a list"),
        ({"methods": ["TRACE"]}, "methods must be a list"),
        ({"methods": [r"GET\nx"]}, "methods must be a list"),
        ({"methods": ["GET,POST"]}, "methods must be a list"),
        ({"methods": [None]}, "methods must be a list"),
        ({"methods": [["GET"]]}, "methods must be a list"),
        ({"methods": False}, "methods must be a list"),
        ({"expires": ""}, "expires must be an ISO 8601 date or time"),
        ({"expires": "soon"}, "expires must be an ISO 8601"),
        ({"expires": "20300101"}, "expires must be an ISO 8601"),
        ({"expires": EXPIRES_S}, "expires must be an ISO 8601"),
        ({"expires": str(EXPIRES_S)}, "expires must be an ISO 8601"),
        ({"expires": 1.5}, "expires must be an ISO 8601"),
        ({"expires": True}, "expires must be an ISO 8601"),
        ({"expires": []}, "expires must be an ISO 8601"),
        ({"expires": "2020-01-01T00:00:00"}, "expires must be in the future"),
        ({"expires": "0001-01-01T00:00:00+14:00"}, "expires must be in the future"),
        ({"expires": signing.expiry_text(NOW_S)}, "expires must be in the future"),
        ({"expires": signing.expiry_text(NOW_S) + ".9"}, "expires must be in the future"),
        ({"expires": signing.expiry_text(NOW_S + 604_801)}, "at most 604800 seconds from now (max_"),
        ({"expires": "9999-12-31T23:59:59-23:00"}, "expires must be at most 604800 seconds"),
    ],
)  # fmt: skip
def test_what_cannot_be_shared(document: object, said: str) -> None:
    with pytest.raises(Invalid) as told:
        share(document)
    assert said in told.value.detail


@pytest.mark.parametrize("ahead_s", [1, 604_800])
def test_the_ends_of_what_can_be_asked_for(ahead_s: int) -> None:
    expires = signing.expiry_text(NOW_S + ahead_s)
    assert share({"expires": expires})["expires"] == expires


def test_without_a_key_the_answer_says_what_to_set() -> None:
    with pytest.raises(Invalid, match="secret_key must be set"):
        share({}, secret="")
