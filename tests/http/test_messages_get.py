"""Getting one message, or several by their ids (contract, 4.3, 4.4)."""

from __future__ import annotations

import pytest

from tests.live import Api, eventually, expect


def test_one_message_is_shown_to_anybody_in_the_project(either: Api) -> None:
    [message_id] = either.post_bodies("q", {"a": 1})
    own = expect(either.message("q", message_id), 200)
    assert own["body"] == {"a": 1}
    assert expect(either.somebody_else().message("q", message_id), 200) == own


def test_several_come_in_the_order_of_the_request_without_links(either: Api) -> None:
    a, b, c = either.post_bodies("q", 1, 2, 3)
    answer = expect(either.messages("q", [c, a, b]), 200)
    assert set(answer) == {"messages"}
    assert [message["id"] for message in answer["messages"]] == [c, a, b]
    for message in answer["messages"]:
        assert message == expect(either.get(message["href"]), 200)


def test_several_posts_are_found_together(either: Api) -> None:
    ids = [either.post_bodies("q", n)[0] for n in range(20)]
    found = expect(either.messages("q", ids), 200)["messages"]
    assert [message["body"] for message in found] == list(range(20))


def test_unknown_ids_are_skipped(either: Api) -> None:
    a, b = either.post_bodies("q", 1, 2)
    [foreign] = either.post_bodies("other", 3)
    found = expect(either.messages("q", ["x", b, foreign, "0" * 29, a]), 200)["messages"]
    assert [message["body"] for message in found] == [2, 1]


def test_the_other_parameters_do_not_matter(either: Api) -> None:
    ids = either.post_bodies("q", 1, 2, 3)
    query = "?ids=" + ",".join(ids) + "&echo=false&limit=1&marker=" + ids[2]
    assert len(expect(either.list_messages("q", query), 200)["messages"]) == 3


def test_claimed_and_delayed_messages_are_shown(api: Api) -> None:
    [held] = api.post_bodies("q", "held")
    claim = api.claimed("q")
    [delayed] = api.post_bodies("q", "delayed", delay=900)
    found = expect(api.messages("q", [held, delayed]), 200)["messages"]
    assert [message["body"] for message in found] == ["held", "delayed"]
    path = api.path("q", "messages")
    assert found[0]["href"] == f"{path}/{held}?claim_id={claim.claim_id}"
    assert found[1]["href"] == f"{path}/{delayed}"
    assert expect(api.message("q", held), 200) == found[0]
    assert expect(api.message("q", delayed), 200) == found[1]


def test_the_href_names_the_claim_only_while_it_lives(api: Api) -> None:
    [message_id] = api.post_bodies("q", 1)
    plain = api.path("q", "messages", message_id)
    assert expect(api.message("q", message_id), 200)["href"] == plain
    claim = api.claimed("q")
    href = expect(api.message("q", message_id), 200)["href"]
    assert href == f"{plain}?claim_id={claim.claim_id}"
    assert expect(api.get(href), 200)["href"] == href
    expect(api.release("q", claim.claim_id), 204)
    assert expect(api.message("q", message_id), 200)["href"] == plain
    assert api.listed("q") == [1]


@pytest.mark.parametrize("count", [1, 20])
def test_up_to_twenty_ids_are_accepted(count: int, either: Api) -> None:
    expect(either.messages("q", ["x"] * count), 404, "Not found")


@pytest.mark.parametrize("count", [21, 50])
def test_more_than_twenty_ids_are_refused_before_any_look_up(count: int, either: Api) -> None:
    [message_id] = either.post_bodies("q", 1)
    expect(either.messages("q", [message_id] * count), 400, "Invalid API request")
    expect(either.messages("missing", ["x"] * count), 400, "Invalid API request")


def test_the_largest_number_of_ids_is_a_setting(narrow: Api) -> None:
    ids = narrow.post_bodies("q", 1, 2, 3, 4, 5)
    assert len(expect(narrow.messages("q", ids), 200)["messages"]) == 5
    expect(narrow.messages("q", [*ids, "x"]), 400, "Invalid API request")


def test_none_found_is_404(either: Api) -> None:
    expect(either.messages("missing", ["a", "b"]), 404, "Not found")
    expect(either.create("q"), 201)
    expect(either.messages("q", ["a", "b"]), 404, "Not found")
    [gone] = either.post_bodies("q", 1)
    expect(either.delete_message("q", gone), 204)
    expect(either.messages("q", [gone]), 404, "Not found")


@pytest.mark.parametrize(
    "message_id", ["nosuchmessage", "x" * 200, "0", "0" * 29, "f" * 29, "%00", "%0A", "é", "-", "_"]
)
def test_an_unknown_or_malformed_id_is_404(message_id: str, either: Api) -> None:
    either.post_bodies("q", 1)
    expect(either.get(either.path("q", "messages", message_id)), 404, "Not found")
    expect(either.get(either.path("missing", "messages", message_id)), 404, "Not found")


def test_an_id_is_taken_literally(either: Api) -> None:
    [message_id] = either.post_bodies("q", 1)
    for altered in (message_id[:-1], message_id + "0", "0" + message_id, f" {message_id}"):
        expect(either.message("q", altered), 404, "Not found")


@pytest.mark.slow
def test_an_expired_message_is_404(brief: Api) -> None:
    [message_id] = brief.post_bodies("q", 1, ttl=1)
    [lasting] = brief.post_bodies("q", 2, ttl=600)
    eventually(lambda: brief.message("q", message_id).status_code == 404)
    expect(brief.messages("q", [message_id]), 404, "Not found")
    found = expect(brief.messages("q", [message_id, lasting]), 200)["messages"]
    assert [message["body"] for message in found] == [2]
