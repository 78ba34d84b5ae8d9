"""How values in the query are read (contract, 1.7)."""

from __future__ import annotations

import pytest

from tests.live import Api, expect, raw_exchange

pytestmark = pytest.mark.embedded  # about no store at all

INVALID = "Invalid parameter"
TRUE = ["true", "True", "t", "yes", "y", "1", "on"]
FALSE = ["false", "False", "f", "no", "n", "0", "off"]
NEITHER = ["TRUE", "FALSE", "2", "-1", "None", "null", "Yes", "T", "ON", "tru", "true%20", "%C3%A9"]
NO_INTEGER = [
    "abc",
    "1.5",
    "1e1",
    "0x10",
    "1_0",
    "--1",
    "+-1",
    "%201",
    "1%20",
    "None",
    "true",
    "%00",
]


@pytest.fixture
def five(api: Api) -> Api:
    """A client whose queue q holds five of its own messages, beside queues q1 to q4."""
    api.post_bodies("q", 1, 2, 3, 4, 5)
    for n in range(1, 5):
        expect(api.create(f"q{n}"), 201)
    return api


# -- integers --------------------------------------------------------------------------------------

LIMITED = [
    ("GET", "/v2/queues?limit={}"),
    ("GET", "/v2/topics?limit={}"),
    ("GET", "/v2/queues/q/messages?limit={}"),
    ("POST", "/v2/queues/q/claims?limit={}"),
    ("DELETE", "/v2/queues/q/messages?pop={}"),
    ("GET", "/v2/topics/t/messages?limit={}"),
    ("DELETE", "/v2/topics/t/messages?pop={}"),
]


limited = pytest.mark.parametrize(("method", "path"), LIMITED)


@limited
def test_anything_but_digits_is_no_integer(method: str, path: str, api: Api) -> None:
    for value in NO_INTEGER:
        expect(api.request(method, path.format(value)), 400, INVALID)


@limited
def test_an_integer_out_of_range_is_refused(method: str, path: str, api: Api) -> None:
    for value in ("0", "-1", "21", "1000", "-0"):
        expect(api.request(method, path.format(value)), 400, "Invalid API request")


@limited
def test_an_absurd_integer_is_refused(method: str, path: str, api: Api) -> None:
    for value in ("9" * 30, "-" + "9" * 30, "9" * 5000):
        expect(api.request(method, path.format(value)), 400)


@limited
def test_an_integer_in_range_is_accepted(method: str, path: str, api: Api) -> None:
    for value in ("1", "20", "%2B5", "005"):
        assert api.request(method, path.format(value)).status_code in {200, 204}


def test_an_empty_integer_is_absent(five: Api) -> None:
    assert len(five.names("?limit=")) == 5
    assert len(five.listed("q", "?limit=&echo=true")) == 5
    assert len(five.claimed("q", "?limit=").ids) == 5


def test_of_repeated_integers_the_last_wins(five: Api) -> None:
    assert len(five.names("?limit=4&limit=2")) == 2
    assert five.listed("q", "?limit=4&echo=true&limit=1") == [1]


# -- booleans --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", TRUE)
def test_these_spellings_are_true(value: str, five: Api) -> None:
    assert len(five.listed("q", f"?echo={value}")) == 5
    detailed = expect(five.list_queues(f"?detailed={value}&with_count={value}"), 200)
    assert "metadata" in detailed["queues"][0]
    assert detailed["count"] == 5
    five.claimed("q", "?limit=2")
    assert len(five.listed("q", f"?echo={value}&include_claimed={value}")) == 5


@pytest.mark.parametrize("value", FALSE)
def test_these_spellings_are_false(value: str, five: Api) -> None:
    assert five.listed("q", f"?echo={value}") == []
    plain = expect(five.list_queues(f"?detailed={value}&with_count={value}"), 200)
    assert "metadata" not in plain["queues"][0]
    assert "count" not in plain
    five.claimed("q", "?limit=2")
    assert len(five.listed("q", f"?echo=true&include_claimed={value}")) == 3


@pytest.mark.parametrize(
    "path",
    [
        "/v2/queues?detailed={}",
        "/v2/queues?with_count={}",
        "/v2/topics?detailed={}",
        "/v2/queues/q/messages?echo={}",
        "/v2/queues/q/messages?include_claimed={}",
        "/v2/queues/q/messages?include_delayed={}",
        "/v2/topics/t/messages?echo={}",
    ],
)
def test_any_other_spelling_is_no_boolean(path: str, api: Api) -> None:
    for value in NEITHER:
        expect(api.get(path.format(value)), 400, INVALID)


def test_an_empty_boolean_is_absent(five: Api) -> None:
    assert five.listed("q", "?echo=") == []
    assert "metadata" not in expect(five.list_queues("?detailed="), 200)["queues"][0]


# -- lists and strings -----------------------------------------------------------------------------


def test_lists_are_separated_by_commas_or_repeated_or_both(five: Api) -> None:
    a, b, c, d, _ = [
        m["id"] for m in expect(five.list_messages("q", "?echo=true"), 200)["messages"]
    ]
    for query in (
        f"ids={a},{b},{c},{d}",
        f"ids={a},{b}&ids={c}&ids={d}",
        f"ids={a},,{b},{c},&ids={d}",
    ):
        found = expect(five.get(five.path("q", "messages") + "?" + query), 200)["messages"]
        assert [message["id"] for message in found] == [a, b, c, d]


def test_an_encoded_comma_separates_too(five: Api) -> None:
    ids = [m["id"] for m in expect(five.list_messages("q", "?echo=true"), 200)["messages"]]
    found = expect(five.get(five.path("q", "messages") + f"?ids={ids[0]}%2C{ids[1]}"), 200)
    assert [message["id"] for message in found["messages"]] == ids[:2]


def test_an_empty_list_of_ids_is_absent(five: Api) -> None:
    assert len(five.listed("q", "?ids=&echo=true")) == 5


@pytest.mark.parametrize("query", ["?marker=zzz&marker=q2", "?marker=zzz,q2"])
def test_of_a_repeated_string_the_last_element_counts(query: str, five: Api) -> None:
    assert five.names(query) == ["q3", "q4"]


def test_an_empty_marker_is_absent(five: Api) -> None:
    assert len(five.names("?marker=")) == 5
    assert len(five.listed("q", "?marker=&echo=true")) == 5


def test_unknown_parameters_are_ignored(five: Api) -> None:
    assert len(five.listed("q", "?echo=true&colour=red&limits=0")) == 5
    expect(five.get("/v2/ping?colour=red"), 204)
    expect(five.get(five.path("q") + "?colour=red"), 200)
    expect(five.get(five.path("q", "stats") + "?limit=abc"), 200)
    expect(five.claim("q", "?colour=red&echo=nonsense"), 201)
    expect(five.create("new"), 201)
    expect(five.put(five.path("q") + "?a=b"), 204)


@pytest.mark.parametrize(
    "query",
    ["%zz=1", "limit=%zz", "a=%ff", "&&&", "=", "=x", "a=b=c", "%00=%00", "marker=%ff%fe", "?"],
)
def test_broken_queries_do_no_harm(query: str, api: Api) -> None:
    for path in ("/v2/queues", "/v2/queues/q/messages", "/v2/topics"):
        assert raw_exchange(api.server, "GET", f"{path}?{query}", api.headers).status in {200, 400}
