"""Listing messages: pages, markers, whose and which are shown (contract, 4.2; semantics, 2, 3)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.live import Api, expect, next_link, pages

NOTHING: dict[str, Any] = {"messages": [], "links": []}


def link_after(api: Api, query: str, queue: str = "q") -> str:
    """The next link of a page that is not empty."""
    link = next_link(expect(api.list_messages(queue, query), 200))
    assert link is not None
    return link


def bodies(api: Api, link: str) -> list[Any]:
    return [message["body"] for message in expect(api.get(link), 200)["messages"]]


# -- pages -----------------------------------------------------------------------------------------


def test_a_missing_or_empty_queue_has_an_empty_page(either: Api) -> None:
    assert expect(either.list_messages("q"), 200) == NOTHING
    expect(either.create("q"), 201)
    assert expect(either.list_messages("q"), 200) == NOTHING
    assert expect(either.list_messages("q", "?echo=true&limit=20"), 200) == NOTHING


def test_listed_messages_show_their_five_members_oldest_first(either: Api) -> None:
    ids = either.post_bodies("q", *range(5), ttl=300)
    page = expect(either.list_messages("q", "?echo=true"), 200)
    assert set(page) == {"messages", "links"}
    assert [message["id"] for message in page["messages"]] == ids
    for message, body in zip(page["messages"], range(5), strict=True):
        assert set(message) == {"id", "href", "ttl", "age", "body"}
        assert message["href"] == either.path("q", "messages", message["id"])
        assert message["ttl"] == 300
        assert message["body"] == body


def test_ten_messages_by_three_are_four_pages_and_an_empty_one(either: Api) -> None:
    either.post_bodies("q", *range(10))
    path = either.path("q", "messages")
    walked = list(pages(either, path + "?limit=3&echo=true"))
    assert [len(page["messages"]) for page in walked] == [3, 3, 3, 1, 0]
    assert walked[-1] == NOTHING
    messages = [message for page in walked for message in page["messages"]]
    assert [message["body"] for message in messages] == list(range(10))
    for message in messages:
        assert message["href"].count("/messages") == 1
        assert expect(either.get(message["href"]), 200) == message


@pytest.mark.parametrize("limit", [1, 4, 10, 20])
def test_pages_joined_are_the_whole_queue(limit: int, either: Api) -> None:
    either.post_bodies("q", *range(33))
    path = either.path("q", "messages") + f"?echo=true&limit={limit}"
    found = [message["body"] for page in pages(either, path) for message in page["messages"]]
    assert found == list(range(33))


def test_a_page_holds_ten_unless_told_otherwise(either: Api) -> None:
    either.post_bodies("q", *range(25))
    assert either.listed("q") == list(range(10))
    assert either.listed("q", "?echo=true&limit=20") == list(range(20))


@pytest.mark.parametrize("limit", [-1, 0, 21])
def test_a_limit_out_of_range_is_refused(limit: int, either: Api) -> None:
    expect(either.list_messages("q", f"?limit={limit}"), 400, "Invalid API request")


def test_the_largest_page_is_a_setting(narrow: Api) -> None:
    for n in range(7):
        narrow.post_bodies("q", n)
    assert len(narrow.listed("q", "?echo=true&limit=5")) == 5
    expect(narrow.list_messages("q", "?limit=6"), 400, "Invalid API request")


def test_the_link_repeats_what_was_asked_for(either: Api) -> None:
    either.post_bodies("q", 1, 2, 3)
    asked = "?limit=2&echo=True&include_claimed=yes&include_delayed=0"
    parts = urlsplit(link_after(either, asked))
    query = parse_qs(parts.query)
    assert parts.path == either.path("q", "messages")
    assert len(query.pop("marker")) == 1
    assert query == {
        "limit": ["2"],
        "echo": ["true"],
        "include_claimed": ["true"],
        "include_delayed": ["false"],
    }
    plain = parse_qs(urlsplit(link_after(either.somebody_else(), "")).query)
    assert set(plain) - {"include_delayed"} == {"marker"}


# -- markers ---------------------------------------------------------------------------------------


def test_an_id_of_a_message_is_a_marker(either: Api) -> None:
    ids = either.post_bodies("q", *range(6))
    for n, message_id in enumerate(ids):
        assert either.listed("q", f"?echo=true&marker={message_id}") == list(range(n + 1, 6))


def test_paging_by_the_last_id_seen_finds_everything(either: Api) -> None:
    either.post_bodies("q", *range(10))
    found: list[Any] = []
    marker = ""
    while True:
        page = expect(either.list_messages("q", f"?echo=true&limit=3&marker={marker}"), 200)
        if not page["messages"]:
            break
        found += [message["body"] for message in page["messages"]]
        marker = page["messages"][-1]["id"]
    assert found == list(range(10))


@pytest.mark.parametrize("gone", ["deleted", "popped", "bulk", "purged"])
def test_a_marker_stays_valid_when_its_message_is_gone(gone: str, either: Api) -> None:
    ids = either.post_bodies("q", 1, 2, 3)
    link = link_after(either, "?echo=true&limit=2")
    match gone:
        case "deleted":
            expect(either.delete_message("q", ids[1]), 204)
        case "popped":
            assert either.popped("q", 2) == [1, 2]
        case "bulk":
            expect(either.delete_messages("q", ids[:2]), 204)
        case _:
            expect(either.purge("q"), 204)
    either.post_bodies("q", 4)
    rest = [4] if gone == "purged" else [3, 4]
    assert bodies(either, link) == rest
    assert either.listed("q", f"?echo=true&marker={ids[1]}") == rest


def test_a_marker_stays_valid_when_its_message_is_claimed(api: Api) -> None:
    ids = api.post_bodies("q", 1, 2, 3)
    link = link_after(api, "?echo=true&limit=2")
    claim = api.claimed("q", "?limit=2")
    assert bodies(api, link) == [3]
    assert api.listed("q", f"?echo=true&marker={ids[0]}") == [3]
    expect(api.release("q", claim.claim_id), 204)
    assert api.listed("q", f"?echo=true&marker={ids[0]}") == [2, 3]


def test_an_old_link_shows_what_has_come_since(either: Api) -> None:
    either.post_bodies("q", 1)
    link = link_after(either, "?echo=true")
    assert bodies(either, link) == []
    either.post_bodies("q", 2)
    assert bodies(either, link) == [2]
    assert bodies(either, link) == [2]


@pytest.mark.parametrize(
    "marker",
    [
        "nosuchmarker7",
        "0",
        "1",
        "-1",
        "999999999999999999999999",
        "%00",
        "%27",
        "%25",
        "é",
        "..",
        "0" * 29,
        "f" * 29,
        "%F0%9F%98%80",
        "x" * 5000,
    ],
)
def test_an_unknown_marker_is_an_empty_page(marker: str, either: Api) -> None:
    either.post_bodies("q", 1, 2)
    assert expect(either.list_messages("q", f"?echo=true&marker={marker}"), 200) == NOTHING


def test_a_foreign_marker_is_an_empty_page(either: Api) -> None:
    either.post_bodies("q", 1, 2)
    [other_queue] = either.post_bodies("other", 3)
    [other_project] = either.stranger().post_bodies("q", 4)
    for marker in (other_queue, other_project):
        assert expect(either.list_messages("q", f"?echo=true&marker={marker}"), 200) == NOTHING


def test_a_marker_of_a_deleted_queue_is_unknown_to_its_successor(either: Api) -> None:
    ids = either.post_bodies("q", 1, 2)
    link = link_after(either, "?echo=true&limit=1")
    expect(either.drop("q"), 204)
    either.post_bodies("q", *range(5))
    assert bodies(either, link) == []
    assert either.listed("q", f"?echo=true&marker={ids[0]}") == []


def test_a_marker_altered_by_a_character_does_no_harm(either: Api) -> None:
    [message_id] = either.post_bodies("q", 1)
    for marker in (message_id[:-1], message_id + "0", message_id.upper(), "0" + message_id):
        expect(either.list_messages("q", f"?echo=true&marker={marker}"), 200)


# -- whose and which -------------------------------------------------------------------------------


def test_own_messages_are_hidden_unless_echo_is_asked_for(either: Api) -> None:
    other = either.somebody_else()
    either.post_bodies("q", "mine")
    other.post_bodies("q", "theirs")
    assert either.listed("q", "") == ["theirs"]
    assert either.listed("q", "?echo=false") == ["theirs"]
    assert either.listed("q", "?echo=true") == ["mine", "theirs"]
    assert other.listed("q", "") == ["mine"]


def test_somebody_else_sees_ten_by_default(either: Api) -> None:
    either.post_bodies("q", *range(12))
    other = either.somebody_else()
    assert other.listed("q", "") == list(range(10))
    assert other.listed("q", "?echo=false") == list(range(10))


def test_hidden_messages_do_not_shorten_a_page(either: Api) -> None:
    other = either.somebody_else()
    for n in range(6):
        either.post_bodies("q", *["mine"] * 3)
        other.post_bodies("q", n)
    assert either.listed("q", "?limit=4") == [0, 1, 2, 3]
    link = link_after(either, "?limit=4")
    assert bodies(either, link) == [4, 5]


def test_a_reader_with_everything_hidden_gets_an_empty_page(either: Api) -> None:
    either.post_bodies("q", *range(50))
    assert expect(either.list_messages("q", "?limit=1"), 200) == NOTHING


def test_claimed_messages_are_hidden_unless_asked_for(api: Api) -> None:
    other = api.somebody_else()
    ids = api.post_bodies("q", *range(4))
    claim = api.claimed("q", "?limit=2")
    assert api.listed("q", "?echo=true") == [2, 3]
    assert other.listed("q", "") == [2, 3]
    assert api.listed("q", "?echo=false&include_claimed=true") == []
    assert other.listed("q", "?include_claimed=true") == [0, 1, 2, 3]
    page = expect(api.list_messages("q", "?echo=true&include_claimed=true"), 200)
    plain = [api.path("q", "messages", message_id) for message_id in ids]
    held = f"?claim_id={claim.claim_id}"
    assert [m["href"] for m in page["messages"]] == [plain[0] + held, plain[1] + held, *plain[2:]]


def test_delayed_messages_are_hidden_unless_asked_for(either: Api) -> None:
    other = either.somebody_else()
    either.post_bodies("q", "now")
    either.post_bodies("q", "later", delay=900)
    assert either.listed("q", "?echo=true") == ["now"]
    assert other.listed("q", "") == ["now"]
    assert either.listed("q", "?echo=true&include_delayed=true") == ["now", "later"]
    assert either.listed("q", "?include_delayed=true") == []
    assert other.listed("q", "?include_delayed=true") == ["now", "later"]
    assert other.listed("q", "?include_delayed=true&include_claimed=true") == ["now", "later"]


def test_include_claimed_does_not_include_delayed_nor_the_other_way_round(api: Api) -> None:
    api.post_bodies("q", "claimed")
    api.claimed("q")
    api.post_bodies("q", "delayed", delay=900)
    assert api.listed("q", "?echo=true&include_claimed=true") == ["claimed"]
    assert api.listed("q", "?echo=true&include_delayed=true") == ["delayed"]


# -- under concurrency -----------------------------------------------------------------------------


def test_a_reader_by_links_sees_everything_once_while_others_post_and_delete(either: Api) -> None:
    rounds, producers = 20, 4
    reader = either.somebody_else()
    expect(either.create("q"), 201)

    def produce(producer: int) -> None:
        for n in range(rounds):
            either.post_bodies("q", *([producer, n, part] for part in range(3)))

    seen: list[list[int]] = []
    with ThreadPoolExecutor(producers) as threads:
        working = [threads.submit(produce, producer) for producer in range(producers)]
        link = reader.path("q", "messages") + "?limit=7"
        while len(seen) < rounds * producers * 3:
            done = all(work.done() for work in working)
            page = expect(reader.get(link), 200)
            if page["messages"]:
                seen += [message["body"] for message in page["messages"]]
                expect(reader.delete_message("q", page["messages"][0]["id"]), 204)
                link = next_link(page) or link
            elif done:
                break
        for work in working:
            work.result()
    assert len(seen) == rounds * producers * 3
    for producer in range(producers):
        own = [body for body in seen if body[0] == producer]
        assert own == [[producer, n, part] for n in range(rounds) for part in range(3)]
