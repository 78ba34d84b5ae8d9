"""Listing queues and topics: pages, filters, count (contract, 1.11, 3.2)."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from tests.live import QUEUES, TOPICS, Api, expect, next_link, pages

EMPTY_LINKS: list[Any] = []


def create_all(api: Api, *names: str) -> None:
    for name in names:
        expect(api.create(name), 201)


def walk(api: Api, query: str = "") -> list[list[str]]:
    """The names on each page, following the links, the first empty page included."""
    noun = api.kind.noun
    return [[entry["name"] for entry in page[noun]] for page in pages(api, f"/v2/{noun}{query}")]


def query_of(api: Api, query: str) -> dict[str, list[str]]:
    """The query of the next link."""
    link = next_link(expect(api.list_queues(query), 200))
    assert link is not None
    parts = urlsplit(link)
    assert parts.path == f"/v2/{api.kind.noun}"
    return parse_qs(parts.query)


# -- pages -----------------------------------------------------------------------------------------


def test_without_queues_both_lists_are_empty(either: Api) -> None:
    noun = either.kind.noun
    assert expect(either.list_queues(), 200) == {noun: [], "links": []}


def test_an_entry_is_name_and_href(either: Api) -> None:
    create_all(either, "q")
    page = expect(either.list_queues(), 200)
    assert set(page) == {either.kind.noun, "links"}
    assert page[either.kind.noun] == [{"name": "q", "href": either.path("q")}]


def test_entries_come_in_ascending_order(either: Api) -> None:
    create_all(either, "c", "a", "d1", "b", "d")
    assert either.names() == ["a", "b", "c", "d", "d1"]


def test_a_page_holds_ten_unless_told_otherwise(either: Api) -> None:
    create_all(either, *(f"q{n:02}" for n in range(25)))
    assert [len(page) for page in walk(either)] == [10, 10, 5, 0]
    assert [len(page) for page in walk(either, "?limit=20")] == [20, 5, 0]


@pytest.mark.parametrize("limit", [1, 3, 7, 20])
def test_pages_joined_are_the_whole_list(limit: int, either: Api) -> None:
    names = ["B", "a", "A", "a.b", "a-b", "a_b", "b", "Z9", "0", "aa", "a0", "_"]
    create_all(either, *names)
    walked = walk(either, f"?limit={limit}")
    assert all(len(page) <= limit for page in walked)
    assert walked[-1] == []
    joined = [name for page in walked for name in page]
    assert len(joined) == len(names)
    assert set(joined) == set(names)


@pytest.mark.parametrize("limit", [-1, 0, 21, 1000])
def test_a_limit_out_of_range_is_refused(limit: int, either: Api) -> None:
    expect(either.list_queues(f"?limit={limit}"), 400, "Invalid API request")


def test_the_largest_page_is_a_setting(narrow: Api) -> None:
    create_all(narrow, *(f"q{n}" for n in range(7)))
    assert len(narrow.names("?limit=5")) == 5
    expect(narrow.list_queues("?limit=6"), 400, "Invalid API request")


def test_even_the_last_page_has_a_link(either: Api) -> None:
    create_all(either, "a", "b")
    link = next_link(expect(either.list_queues(), 200))
    assert link is not None
    assert expect(either.get(link), 200) == {either.kind.noun: [], "links": []}


def test_a_marker_positions_by_name_whether_or_not_it_exists(either: Api) -> None:
    create_all(either, "a", "c", "e")
    assert either.names("?marker=a") == ["c", "e"]
    assert either.names("?marker=b") == ["c", "e"]
    assert either.names("?marker=zzz") == []
    expect(either.drop("c"), 204)
    assert either.names("?marker=c") == ["e"]
    assert either.names("?marker=0") == ["a", "e"]


@pytest.mark.parametrize("marker", ["%00", "%25", "%27", "é", "x" * 2000, "%F0%9F%98%80"])
def test_a_strange_marker_does_no_harm(marker: str, either: Api) -> None:
    create_all(either, "a")
    expect(either.list_queues(f"?marker={marker}"), 200)


def test_the_link_repeats_what_was_asked_for(either: Api) -> None:
    create_all(either, "q1", "q2", "q3")
    assert query_of(either, "") == {"marker": ["q3"]}
    asked = query_of(either, "?limit=2&detailed=True&name=q")
    assert asked == {"limit": ["2"], "detailed": ["true"], "name": ["q"], "marker": ["q2"]}
    assert query_of(either, "?detailed=no")["detailed"] == ["false"]


def test_a_foreign_project_sees_nothing(either: Api) -> None:
    create_all(either, "a")
    stranger = either.stranger()
    assert stranger.names() == []
    create_all(stranger, "b")
    assert either.names() == ["a"]
    assert stranger.names() == ["b"]


# -- detailed --------------------------------------------------------------------------------------


def test_the_metadata_of_a_detailed_entry_is_what_its_href_shows(either: Api) -> None:
    expect(either.create("a", {"colour": "red", "_default_message_ttl": 99}), 201)
    expect(either.create("b"), 201)
    entries = expect(either.list_queues("?detailed=true"), 200)[either.kind.noun]
    assert [set(entry) for entry in entries] == [{"name", "href", "metadata"}] * 2
    for entry in entries:
        assert entry["metadata"] == expect(either.get(entry["href"]), 200)
    assert entries[1]["metadata"] == either.kind.defaults


def test_detail_goes_on_along_the_links(either: Api) -> None:
    create_all(either, "a", "b")
    first, second, _ = pages(either, f"/v2/{either.kind.noun}?limit=1&detailed=true")
    assert "metadata" in first[either.kind.noun][0]
    assert "metadata" in second[either.kind.noun][0]


# -- count -----------------------------------------------------------------------------------------


def test_the_count_is_of_the_whole_project(api: Api) -> None:
    create_all(api, *(f"q{n:02}" for n in range(13)))
    create_all(api.stranger(), "other")
    for query in ("", "&limit=1", "&marker=q05", "&marker=zzz", "&name=q01", "&colour=red"):
        assert expect(api.list_queues(f"?with_count=true{query}"), 200)["count"] == 13, query


def test_there_is_no_count_unless_asked_for(api: Api) -> None:
    create_all(api, "q")
    assert "count" not in expect(api.list_queues(), 200)
    assert "count" not in expect(api.list_queues("?with_count=false"), 200)


def test_a_count_of_nothing_is_left_out(api: Api) -> None:
    assert expect(api.list_queues("?with_count=true"), 200) == {"queues": [], "links": []}


def test_the_count_is_asked_for_again_by_the_link(api: Api) -> None:
    create_all(api, "a", "b")
    assert query_of(api, "?limit=1&with_count=True")["with_count"] == ["true"]
    assert all(page["count"] == 2 for page in pages(api, "/v2/queues?limit=1&with_count=true"))


def test_the_count_follows_creation_and_deletion(api: Api) -> None:
    create_all(api, "a", "b")
    expect(api.create("a"), 204)
    api.post_bodies("c", 1)
    assert expect(api.list_queues("?with_count=true"), 200)["count"] == 3
    expect(api.drop("a"), 204)
    expect(api.drop("a"), 204)
    assert expect(api.list_queues("?with_count=true"), 200)["count"] == 2


def test_topics_know_no_count_it_is_a_filter_there(api: Api) -> None:
    topics = api.but(kind=TOPICS)
    create_all(topics, "a")
    expect(topics.create("b", {"with_count": "true"}), 201)
    page = expect(topics.list_queues("?with_count=true"), 200)
    assert "count" not in page
    assert [entry["name"] for entry in page["topics"]] == ["b"]


# -- filters ---------------------------------------------------------------------------------------


@pytest.fixture
def coloured(either: Api) -> Api:
    """A client with three queues (or topics) of different metadata."""
    expect(either.create("first", {"colour": "red", "size": 5, "_default_message_ttl": 99}), 201)
    expect(either.create("second", {"colour": "red", "size": "5", "nested": {"a": 1}}), 201)
    expect(either.create("third", {"colour": "blue", "size": 7, "nested.a": 1, "é": "ü"}), 201)
    return either


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("name=ir", ["first", "third"]),
        ("name=second", ["second"]),
        ("name=nosuch", []),
        ("name=FIRST", []),
        ("colour=red", ["first", "second"]),
        ("colour=blue", ["third"]),
        ("colour=green", []),
        ("colour=re", []),
        ("shape=round", []),
        ("size=5", ["first"]),
        ("size=%2B5", ["first"]),
        ("size=7", ["third"]),
        ("size=seven", []),
        ("_default_message_ttl=99", ["first"]),
        ("colour=red&size=5", ["first"]),
        ("colour=blue&size=5", []),
        ("name=ir&size=5", ["first"]),
        ("name=th&colour=blue", ["third"]),
        ("nested.a=1", ["third"]),
        ("nested=1", []),
        ("%C3%A9=%C3%BC", ["third"]),
        ("colour=", ["first", "second", "third"]),
        ("name=", ["first", "second", "third"]),
        ("colour=blue&colour=red", ["first", "second"]),
        ("size=7&size=5", ["first"]),
    ],
)
def test_filters_keep_what_matches(query: str, names: list[str], coloured: Api) -> None:
    assert coloured.names("?" + query) == names


def test_a_stored_default_can_be_filtered_on(api: Api) -> None:
    expect(api.create("a", {"_default_message_ttl": 3600}), 201)
    expect(api.create("b"), 201)
    assert "a" in api.names("?_default_message_ttl=3600")


def test_filters_and_pages_go_together(api: Api) -> None:
    for n in range(12):
        expect(api.create(f"q{n:02}", {"even": n % 2}), 201)
    walked = walk(api, "?even=1&name=q&limit=2")
    assert walked == [["q01", "q03"], ["q05", "q07"], ["q09", "q11"], []]


def test_the_link_repeats_the_filters(either: Api) -> None:
    expect(either.create("a", {"colour": "red & blue", "size": 5}), 201)
    query = "?colour=red%20%26%20blue&size=5&limit=1"
    assert query_of(either, query) == {
        "colour": ["red & blue"],
        "size": ["5"],
        "limit": ["1"],
        "marker": ["a"],
    }


@pytest.mark.parametrize(
    ("fragment", "names"),
    [
        (".", ["a.b"]),
        ("_", ["a_b"]),
        ("-", ["a-b"]),
        ("a.b", ["a.b"]),
        ("%25", []),
        ("d(", []),
        ("(a+)+$", []),
        (".*", []),
        ("^a", []),
        ("[a]", []),
        ("*", []),
        ("?", []),
        ("%5C", []),
        ("%27", []),
        ("%22", []),
        ("|", []),
        ("%00", []),
        ("%F0%9F%98%80", []),
    ],
)
def test_the_name_filter_is_literal_text(fragment: str, names: list[str], either: Api) -> None:
    create_all(either, "a.b", "a_b", "a-b", "axb")
    assert either.names(f"?name={fragment}") == names


@pytest.mark.parametrize(
    "key",
    ['a"b', "a'b", "$", "$.x", "a]b", "a[0]", "a b", "a\\b", "'; --", "%", "*", "\u00e9", "#"],
)
def test_a_filter_key_is_literal_text(key: str, either: Api) -> None:
    expect(either.create("hit", {key: "v"}), 201)
    expect(either.create("miss", {"x": "v", "a": {"b": "v"}}), 201)
    assert either.names(f"?{quote(key, safe='')}=v") == ["hit"]


@pytest.mark.parametrize(
    "value", ["' OR 1=1", '"', "\\", "%", "null", "true", "1.5", "1_0", " 5", "[]", "{}"]
)
def test_a_filter_value_is_literal_text(value: str, either: Api) -> None:
    expect(either.create("hit", {"k": value}), 201)
    expect(either.create("miss", {"k": [None, True, 1.5, [], {}]}), 201)
    expect(either.create("null", {"k": None}), 201)
    expect(either.create("true", {"k": True}), 201)
    assert either.names(f"?k={quote(value, safe='')}") == ["hit"]


def test_a_number_as_filter_does_not_mean_a_boolean(either: Api) -> None:
    expect(either.create("boolean", {"yes": True, "no": False}), 201)
    expect(either.create("number", {"yes": 1, "no": 0}), 201)
    assert either.names("?yes=1") == ["number"]
    assert either.names("?no=0") == ["number"]


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63), 2**63, 10**30])
def test_a_huge_number_as_filter_does_no_harm(number: int, either: Api) -> None:
    if -(2**63) <= number < 2**63:
        expect(either.create("hit", {"k": number}), 201)
        assert either.names(f"?k={number}") == ["hit"]
    else:
        assert either.names(f"?k={number}") == []


def test_queues_and_topics_are_listed_apart(api: Api) -> None:
    topics = api.but(kind=TOPICS)
    create_all(api, "q")
    create_all(topics, "t")
    assert api.names() == ["q"]
    assert topics.names() == ["t"]
    assert expect(api.list_queues("?with_count=true"), 200)["count"] == 1
    assert expect(topics.show("q"), 200) == TOPICS.defaults
    assert expect(api.show("t"), 200) == QUEUES.defaults
