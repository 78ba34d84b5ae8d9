"""Names of queues and topics (contract, 1.5; dots alone are refused: reliability, SEC-26)."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from tests.live import QUEUES, TOPICS, Api, Kind, expect, raw_exchange

GOOD = [
    "a",
    "Z",
    "0",
    "_",
    "-",
    "queue",
    "my_queue-1",
    "svc.main",
    ".hidden",
    "...",
    "q" * 64,
    "A.b-C_9",
]
BAD = [
    "q" * 65,
    "q" * 500,
    "a@b",
    "a b",
    " a",
    "é",
    "漢字",
    "q\n",
    "\nq",
    "q\r",
    "q\x00",
    "a,b",
    "a:b",
    "a;b",
    "a=b",
    "a~b",
    "a%b",
    "a+b",
    "a*b",
    "ª",
    "٣",
    "\u200bq",
]
# method and what follows the name, for every route that has a name in its path
ROUTES = [
    ("PUT", ""),
    ("GET", ""),
    ("PATCH", ""),
    ("DELETE", ""),
    ("GET", "/stats"),
    ("POST", "/purge"),
    ("GET", "/messages"),
    ("POST", "/messages"),
    ("DELETE", "/messages?pop=1"),
    ("GET", "/messages/m"),
    ("DELETE", "/messages/m"),
]
CLAIM_ROUTES = [
    ("POST", "/claims"),
    ("GET", "/claims/c"),
    ("PATCH", "/claims/c"),
    ("DELETE", "/claims/c"),
]
ALL_ROUTES = [(QUEUES, *route) for route in ROUTES + CLAIM_ROUTES] + [
    (TOPICS, *route) for route in ROUTES
]


@pytest.mark.parametrize("name", GOOD)
def test_a_good_name_works_for_a_whole_life(name: str, either: Api) -> None:
    created = either.create(name)
    expect(created, 201)
    assert created.headers["Location"] == f"/v2/{either.kind.noun}/{name}"
    ids = either.post_bodies(name, 1)
    expect(either.message(name, ids[0]), 200)
    assert either.names() == [name]
    expect(either.drop(name), 204)
    assert either.names() == []


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_a_bad_name_is_refused(name: str, either: Api) -> None:
    for method, rest in (("PUT", ""), ("DELETE", ""), ("POST", "/messages"), ("GET", "/stats")):
        answer = either.request(method, f"/v2/{either.kind.noun}/{quote(name, safe='')}{rest}")
        expect(answer, 400, either.kind.bad_name_title)


@pytest.mark.parametrize(("kind", "method", "rest"), ALL_ROUTES)
def test_names_are_checked_on_every_route(kind: Kind, method: str, rest: str, api: Api) -> None:
    expect(api.request(method, f"/v2/{kind.noun}/bad@name{rest}"), 400, kind.bad_name_title)


@pytest.mark.parametrize("segment", [".", "..", "%2E", "%2e%2e", ".%2E"])
@pytest.mark.parametrize("rest", ["", "/messages"])
def test_dots_alone_are_no_name(segment: str, rest: str, either: Api) -> None:
    target = f"/v2/{either.kind.noun}/{segment}{rest}"
    for method in ("GET", "PUT") if not rest else ("GET",):
        answer = raw_exchange(either.server, method, target, either.headers)
        assert (answer.status, answer.title()) == (400, either.kind.bad_name_title)
    assert either.names() == []


def test_an_encoded_slash_never_reaches_another_queue(either: Api) -> None:
    either.post_bodies("a", 1)
    answer = either.put(f"/v2/{either.kind.noun}/a%2Fb")
    assert answer.status_code in {400, 404}
    answer = either.delete(f"/v2/{either.kind.noun}/b%2F..%2Fa")
    assert answer.status_code in {400, 404}
    assert either.names() == ["a"]
    assert either.listed("a") == [1]


def test_names_are_told_apart_by_letter_case(either: Api) -> None:
    expect(either.create("name", {"n": 1}), 201)
    expect(either.create("NAME", {"n": 2}), 201)
    assert expect(either.show("name"), 200)["n"] == 1
    assert expect(either.show("NAME"), 200)["n"] == 2


def test_a_bad_percent_sign_does_no_harm(either: Api) -> None:
    answer = raw_exchange(either.server, "PUT", f"/v2/{either.kind.noun}/a%zz", either.headers)
    assert (answer.status, answer.title()) == (400, either.kind.bad_name_title)
