"""Claiming, showing, renewing and releasing (contract, 5.1 to 5.3, 5.5; semantics, 5)."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.live import Api, expect

REFUSED = "Invalid API request"
INVALID = "Invalid request body"
ID = re.compile(r"[A-Za-z0-9_-]+")
NO_INTEGERS: list[Any] = ["60", "", 60.0, 60.5, [], [60], {}]


# -- claim -----------------------------------------------------------------------------------------


def test_a_claim_answers_with_its_location_and_the_messages(api: Api) -> None:
    ids = api.post_bodies("q", *range(3), ttl=300)
    answer = api.claim("q", ttl=100, grace=60)
    document = expect(answer, 201)
    assert set(document) == {"messages"}
    location = answer.headers["Location"]
    claim_id = location.removeprefix(api.path("q", "claims") + "/")
    assert ID.fullmatch(claim_id)
    assert [message["id"] for message in document["messages"]] == ids
    for message, body in zip(document["messages"], range(3), strict=True):
        assert set(message) == {"id", "href", "ttl", "age", "body"}
        path = api.path("q", "messages", message["id"])
        assert message["href"] == f"{path}?claim_id={claim_id}"
        assert message["ttl"] == 300
        assert message["body"] == body


def test_the_whole_life_of_a_claim(api: Api) -> None:
    api.post_bodies("q", *range(10), ttl=300)
    claim = api.claimed("q", ttl=100, grace=60)
    assert len(claim.ids) == 10
    assert all(m["href"].endswith(f"?claim_id={claim.claim_id}") for m in claim.messages)
    expect(api.claim("q"), 204)
    for echo in ("true", "false"):
        assert api.listed("q", f"?echo={echo}") == []
    assert len(api.listed("q", "?echo=true&include_claimed=true")) == 10
    assert api.listed("q", "?echo=false&include_claimed=true") == []
    shown = expect(api.show_claim("q", claim.claim_id), 200)
    assert shown["ttl"] == 100
    assert shown["age"] >= 0
    expect(api.delete_message("q", claim.ids[0]), 403)
    expect(api.delete_message("q", claim.ids[0], claim.claim_id), 204)
    expect(api.message("q", claim.ids[0]), 404)
    expect(api.stranger().message("q", claim.ids[1]), 404)
    expect(api.renew("q", claim.claim_id, ttl=60, grace=60), 204)
    shown = expect(api.show_claim("q", claim.claim_id), 200)
    assert shown["ttl"] == 60
    assert shown["age"] <= 1
    expect(api.release("q", claim.claim_id), 204)
    expect(api.delete_message("q", claim.ids[1], claim.claim_id), 400)
    expect(api.message("q", claim.ids[1]), 200)
    expect(api.show_claim("q", claim.claim_id), 404)
    expect(api.renew("q", claim.claim_id, ttl=60), 404)
    assert api.listed("q") == list(range(1, 10))


def test_ten_messages_are_claimed_unless_told_otherwise(api: Api) -> None:
    api.post_bodies("q", *range(45))
    assert api.claimed("q").bodies == list(range(10))
    assert api.claimed("q", "?limit=20").bodies == list(range(10, 30))
    assert api.claimed("q", "?limit=1").bodies == [30]
    assert api.claimed("q", "?limit=20").bodies == list(range(31, 45))
    expect(api.claim("q"), 204)


@pytest.mark.parametrize("limit", [0, -1, 21, 1000])
def test_a_limit_out_of_range_is_refused(limit: int, api: Api) -> None:
    api.post_bodies("q", 1)
    expect(api.claim("q", f"?limit={limit}"), 400, REFUSED)
    assert api.listed("q") == [1]


def test_the_largest_claim_is_a_setting(narrow: Api) -> None:
    for n in range(6):
        narrow.post_bodies("q", n)
    expect(narrow.claim("q", "?limit=6"), 400, REFUSED)
    assert len(narrow.claimed("q", "?limit=5").ids) == 5


def test_a_limit_in_the_body_holds_if_the_query_has_none(api: Api) -> None:
    api.post_bodies("q", *range(30))
    assert len(api.claimed("q", ttl=60, grace=60, limit=3).ids) == 3
    assert len(api.claimed("q", "?limit=2", ttl=60, limit=5).ids) == 2


@pytest.mark.parametrize("limit", [0, -1, 21, 1000])
def test_a_limit_in_the_body_that_is_out_of_range_is_ignored(limit: int, api: Api) -> None:
    api.post_bodies("q", *range(12))
    assert len(api.claimed("q", limit=limit).ids) == 10


@pytest.mark.parametrize("document", [None, "{}", '{"ttl": null, "grace": null}'])
def test_without_ttl_and_grace_the_defaults_hold(document: str | None, api: Api) -> None:
    api.post_bodies("q", 1, ttl=60)
    path = api.path("q", "claims")
    answer = api.request("POST", path) if document is None else api.send("POST", path, document)
    [message] = expect(answer, 201)["messages"]
    assert message["ttl"] == 360
    shown = expect(api.get(answer.headers["Location"]), 200)
    assert shown["ttl"] == 300


@pytest.mark.parametrize("queue", ["missing", "empty"])
def test_nothing_to_claim_is_204_without_location(queue: str, api: Api) -> None:
    expect(api.create("empty"), 201)
    answer = api.claim(queue, ttl=60, grace=60)
    expect(answer, 204)
    assert "Location" not in answer.headers
    assert answer.content == b""


def test_own_messages_may_be_claimed(api: Api) -> None:
    api.post_bodies("q", "mine")
    assert api.claimed("q").bodies == ["mine"]


def test_a_message_is_never_claimed_twice(api: Api) -> None:
    ids = api.post_bodies("q", *range(200))

    def claim(_: int) -> list[str]:
        answer = api.claim("q", "?limit=3")
        if answer.status_code == 204:
            return []
        return [message["id"] for message in expect(answer, 201)["messages"]]

    with ThreadPoolExecutor(8) as threads:
        claimed = [one for page in threads.map(claim, range(75)) for one in page]
    assert len(claimed) == 200
    assert sorted(claimed) == sorted(ids)


@pytest.mark.parametrize(("ttl", "grace"), [(60, 60), (43200, 43200)])
def test_ttl_and_grace_at_the_ends_of_their_ranges_are_accepted(
    ttl: int, grace: int, api: Api
) -> None:
    api.post_bodies("q", 1, ttl=60)
    claim = api.claimed("q", ttl=ttl, grace=grace)
    assert expect(api.show_claim("q", claim.claim_id), 200)["ttl"] == ttl
    expect(api.renew("q", claim.claim_id, ttl=ttl, grace=grace), 204)


@pytest.mark.parametrize("value", [59, 0, -1, 43201, 2**62])
@pytest.mark.parametrize("field", ["ttl", "grace"])
def test_ttl_and_grace_out_of_range_are_refused(field: str, value: int, api: Api) -> None:
    api.post_bodies("q", 1)
    expect(api.request("POST", api.path("q", "claims"), json={field: value}), 400, REFUSED)
    assert api.listed("q") == [1]


@pytest.mark.parametrize("value", NO_INTEGERS, ids=str)
@pytest.mark.parametrize("field", ["ttl", "grace"])
def test_ttl_and_grace_that_are_no_integers_are_refused(field: str, value: Any, api: Api) -> None:
    api.post_bodies("q", 1)
    expect(api.request("POST", api.path("q", "claims"), json={field: value}), 400, INVALID)
    assert api.listed("q") == [1]


def test_the_ranges_follow_the_settings(narrow: Api) -> None:
    narrow.post_bodies("q", 1)
    expect(narrow.claim("q", ttl=601, grace=60), 400, REFUSED)
    expect(narrow.claim("q", ttl=60, grace=701), 400, REFUSED)
    narrow.claimed("q", ttl=600, grace=700)


@pytest.mark.parametrize("field", ["ttl", "grace"])
def test_a_boolean_is_neither_ttl_nor_grace(field: str, api: Api) -> None:
    api.post_bodies("q", 1)
    for value in (True, False):
        expect(api.request("POST", api.path("q", "claims"), json={field: value}), 400)
    assert api.listed("q") == [1]


@pytest.mark.parametrize("document", ["{", "[]", "[60]", '"60"', "60", "null", "  ", "nope"])
def test_only_an_object_is_a_claim(document: str, api: Api) -> None:
    api.post_bodies("q", 1, 2)
    expect(api.send("POST", api.path("q", "claims"), document), 400, INVALID)
    assert api.listed("q") == [1, 2]
    claim = api.claimed("q", "?limit=1")
    path = api.path("q", "claims", claim.claim_id)
    expect(api.send("PATCH", path, document), 400, INVALID)


# -- show ------------------------------------------------------------------------------------------


def test_a_shown_claim_has_age_ttl_href_and_messages(api: Api) -> None:
    api.post_bodies("q", 1, 2)
    claim = api.claimed("q", ttl=100, grace=60)
    shown = expect(api.show_claim("q", claim.claim_id), 200)
    assert set(shown) == {"age", "ttl", "href", "messages"}
    assert isinstance(shown["age"], int)
    assert 0 <= shown["age"] < 60
    assert shown["ttl"] == 100
    assert shown["href"] == claim.location == api.path("q", "claims", claim.claim_id)

    def ageless(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in message.items() if k != "age"} for message in messages]

    assert ageless(shown["messages"]) == ageless(claim.messages)


def test_anybody_in_the_project_may_look_after_a_claim(api: Api) -> None:
    api.post_bodies("q", 1)
    claim = api.claimed("q")
    other = api.somebody_else()
    expect(other.show_claim("q", claim.claim_id), 200)
    expect(other.renew("q", claim.claim_id, ttl=60), 204)
    expect(other.release("q", claim.claim_id), 204)


def test_a_shown_claim_holds_what_is_left(api: Api) -> None:
    api.post_bodies("q", 1, 2, 3)
    claim = api.claimed("q")
    expect(api.delete_message("q", claim.ids[1], claim.claim_id), 204)
    shown = expect(api.show_claim("q", claim.claim_id), 200)
    assert [message["body"] for message in shown["messages"]] == [1, 3]


def test_a_claim_ends_with_its_last_message(api: Api) -> None:
    api.post_bodies("q", 1, 2)
    claim = api.claimed("q")
    for message_id in claim.ids:
        expect(api.delete_message("q", message_id, claim.claim_id), 204)
    expect(api.show_claim("q", claim.claim_id), 404, "Not found")
    expect(api.renew("q", claim.claim_id, ttl=60), 404, "Not found")
    expect(api.release("q", claim.claim_id), 204)


UNKNOWN = ["nosuchclaim", "x" * 300, "0", "0" * 16, "0" * 32, "%00", "é", "-1"]


@pytest.mark.parametrize("claim_id", UNKNOWN)
def test_an_unknown_claim_is_404_to_show_and_renew_and_204_to_release(
    claim_id: str, api: Api
) -> None:
    api.post_bodies("q", 1)
    for queue in ("q", "missing"):
        path = api.path(queue, "claims", claim_id)
        expect(api.get(path), 404, "Not found")
        expect(api.request("PATCH", path, json={"ttl": 60}), 404, "Not found")
        expect(api.delete(path), 204)


# -- renew -----------------------------------------------------------------------------------------


def test_renewing_keeps_id_and_messages(api: Api) -> None:
    api.post_bodies("q", 1, 2)
    claim = api.claimed("q", ttl=100, grace=60)
    answer = api.renew("q", claim.claim_id, ttl=200, grace=60)
    expect(answer, 204)
    assert answer.content == b""
    shown = expect(api.show_claim("q", claim.claim_id), 200)
    assert shown["ttl"] == 200
    assert [message["id"] for message in shown["messages"]] == claim.ids
    expect(api.delete_message("q", claim.ids[0], claim.claim_id), 204)


@pytest.mark.parametrize("document", ["{}", '{"ttl": null}', '{"grace": 60}', '{"grace": null}'])
def test_renewing_without_a_ttl_sets_the_default(document: str, api: Api) -> None:
    api.post_bodies("q", 1)
    claim = api.claimed("q", ttl=100, grace=60)
    expect(api.send("PATCH", api.path("q", "claims", claim.claim_id), document), 204)
    assert expect(api.show_claim("q", claim.claim_id), 200)["ttl"] == 300


@pytest.mark.parametrize("ttl", [59, 0, -1, 43201])
def test_renewing_with_a_ttl_out_of_range_is_refused_even_for_an_unknown_claim(
    ttl: int, api: Api
) -> None:
    api.post_bodies("q", 1)
    claim = api.claimed("q", ttl=100, grace=60)
    for claim_id in (claim.claim_id, "nosuchclaim"):
        expect(api.renew("q", claim_id, ttl=ttl), 400, REFUSED)
    assert expect(api.show_claim("q", claim.claim_id), 200)["ttl"] == 100


@pytest.mark.parametrize("value", NO_INTEGERS, ids=str)
@pytest.mark.parametrize("field", ["ttl", "grace"])
def test_renewing_with_no_integer_is_refused_even_for_an_unknown_claim(
    field: str, value: Any, api: Api
) -> None:
    api.post_bodies("q", 1)
    claim = api.claimed("q", ttl=100, grace=60)
    for claim_id in (claim.claim_id, "nosuchclaim"):
        expect(api.renew("q", claim_id, **{field: value}), 400, INVALID)
    assert expect(api.show_claim("q", claim.claim_id), 200)["ttl"] == 100


def test_renewing_without_a_body_is_refused_even_for_an_unknown_claim(api: Api) -> None:
    api.post_bodies("q", 1)
    claim = api.claimed("q")
    for claim_id in (claim.claim_id, "nosuchclaim"):
        expect(api.request("PATCH", api.path("q", "claims", claim_id)), 400, INVALID)


# -- release ---------------------------------------------------------------------------------------


def test_released_messages_are_free_at_once_in_their_old_order(api: Api) -> None:
    api.post_bodies("q", *range(5))
    claim = api.claimed("q", "?limit=3")
    expect(api.delete_message("q", claim.ids[1], claim.claim_id), 204)
    answer = api.release("q", claim.claim_id)
    expect(answer, 204)
    assert answer.content == b""
    assert api.listed("q") == [0, 2, 3, 4]
    again = api.claimed("q")
    assert again.bodies == [0, 2, 3, 4]
    assert again.claim_id != claim.claim_id


def test_releasing_is_204_again_and_again(api: Api) -> None:
    api.post_bodies("q", 1)
    claim = api.claimed("q")
    for _ in range(3):
        expect(api.release("q", claim.claim_id), 204)


def test_after_a_release_the_old_claim_id_deletes_nothing(api: Api) -> None:
    [message_id] = api.post_bodies("q", 1)
    claim = api.claimed("q")
    expect(api.release("q", claim.claim_id), 204)
    expect(api.delete_message("q", message_id, claim.claim_id), 400, "Unable to delete")
    expect(api.delete_message("q", message_id), 204)


def test_an_old_claim_never_touches_what_a_newer_one_holds(api: Api) -> None:
    api.post_bodies("q", 1, 2)
    old = api.claimed("q")
    expect(api.release("q", old.claim_id), 204)
    new = api.claimed("q", "?limit=1")
    expect(api.release("q", old.claim_id), 204)
    expect(api.renew("q", old.claim_id, ttl=60), 404)
    expect(api.delete_message("q", new.ids[0], old.claim_id), 400)
    shown = expect(api.show_claim("q", new.claim_id), 200)
    assert [message["id"] for message in shown["messages"]] == new.ids
    assert api.claimed("q").bodies == [2]


def test_releasing_one_claim_keeps_the_messages_of_the_others(api: Api) -> None:
    """A claim that follows a release gets the free messages, and none that another one holds."""
    api.post_bodies("q", 1, 2, 3)
    a = api.claimed("q", "?limit=1")
    b = api.claimed("q", "?limit=1")
    expect(api.release("q", a.claim_id), 204)
    assert api.claimed("q").bodies == [1, 3]
    assert expect(api.show_claim("q", b.claim_id), 200)["messages"][0]["body"] == 2
