"""Messages claimed too often (contract, 5.6; README, choice 7; semantics, 5)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.live import Api, eventually, expect


def arrange(api: Api, count: Any = 2, dead: Any = "dead", **more: Any) -> None:
    """Create q with the feature on."""
    expect(api.create("q", {"_max_claim_count": count, "_dead_letter_queue": dead, **more}), 201)


def claim_and_release(api: Api, times: int) -> None:
    for _ in range(times):
        expect(api.release("q", api.claimed("q", "?limit=20").claim_id), 204)


def test_the_attempt_after_the_last_allowed_claim_moves_the_message(api: Api) -> None:
    arrange(api, count=2)
    [message_id] = api.post_bodies("q", {"event": "x"}, ttl=1200)
    claim_and_release(api, 2)
    assert api.listed("q") == [{"event": "x"}]
    answer = api.claim("q")
    expect(answer, 204)
    assert "Location" not in answer.headers
    assert api.stats("q")["total"] == 0
    expect(api.message("q", message_id), 404)
    [moved] = expect(api.list_messages("dead", "?echo=true"), 200)["messages"]
    assert set(moved) == {"id", "href", "ttl", "age", "body"}
    assert moved["body"] == {"event": "x"}
    assert moved["ttl"] == 1200
    assert moved["id"] != message_id
    assert moved["href"] == api.path("dead", "messages", moved["id"])
    assert expect(api.get(moved["href"]), 200) == moved


def test_the_dead_letter_queue_is_created_when_needed(api: Api) -> None:
    arrange(api, count=1, dead="letters.dead-1")
    api.post_bodies("q", 1)
    claim_and_release(api, 1)
    assert api.names() == ["q"]
    expect(api.claim("q"), 204)
    assert api.names() == ["letters.dead-1", "q"]
    assert api.listed("letters.dead-1") == [1]


def test_an_existing_dead_letter_queue_keeps_its_metadata_and_messages(api: Api) -> None:
    expect(api.create("dead", {"colour": "black"}), 201)
    api.post_bodies("dead", "before")
    arrange(api, count=1)
    api.post_bodies("q", 1)
    claim_and_release(api, 1)
    expect(api.claim("q"), 204)
    assert api.listed("dead") == ["before", 1]
    assert expect(api.show("dead"), 200)["colour"] == "black"


def test_a_moved_message_is_free_at_once(api: Api) -> None:
    arrange(api, count=1)
    api.post_bodies("q", 1)
    claim_and_release(api, 1)
    expect(api.claim("q"), 204)
    stats = api.stats("dead")
    assert (stats["claimed"], stats["free"], stats["total"]) == (0, 1, 1)
    claim = api.claimed("dead")
    assert claim.bodies == [1]
    expect(api.delete_message("dead", claim.ids[0], claim.claim_id), 204)


def test_the_others_are_claimed_while_the_worn_out_ones_are_moved(api: Api) -> None:
    arrange(api, count=1)
    api.post_bodies("q", "old", "older")
    claim_and_release(api, 1)
    api.post_bodies("q", "new")
    claim = api.claimed("q")
    assert claim.bodies == ["new"]
    assert api.listed("dead") == ["old", "older"]
    assert api.stats("q")["total"] == 1


def test_a_marker_reader_of_the_dead_letter_queue_finds_what_arrives(api: Api) -> None:
    arrange(api, count=0)
    [marker] = api.post_bodies("dead", "seen")
    api.post_bodies("q", 1, 2)
    expect(api.claim("q"), 204)
    api.post_bodies("q", 3)
    expect(api.claim("q"), 204)
    assert api.listed("dead", f"?echo=true&marker={marker}") == [1, 2, 3]


@pytest.mark.parametrize("end", ["release", "renew and release"])
def test_neither_release_nor_renewal_resets_the_counter(end: str, api: Api) -> None:
    arrange(api, count=3)
    api.post_bodies("q", 1)
    for _ in range(3):
        claim = api.claimed("q")
        if end != "release":
            expect(api.renew("q", claim.claim_id, ttl=60), 204)
            expect(api.renew("q", claim.claim_id, ttl=60), 204)
        expect(api.release("q", claim.claim_id), 204)
    expect(api.claim("q"), 204)
    assert api.listed("dead") == [1]


def test_a_message_that_is_deleted_in_time_is_never_moved(api: Api) -> None:
    arrange(api, count=1)
    api.post_bodies("q", 1)
    claim = api.claimed("q")
    expect(api.claim("q"), 204)
    assert api.listed("dead") == []
    expect(api.delete_message("q", claim.ids[0], claim.claim_id), 204)
    expect(api.claim("q"), 204)
    assert api.listed("dead") == []


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_of_zero_or_less_moves_everything_at_the_first_attempt(
    count: int, api: Api
) -> None:
    arrange(api, count=count)
    api.post_bodies("q", 1, 2)
    expect(api.claim("q"), 204)
    assert api.listed("dead") == [1, 2]
    assert api.listed("q") == []


@pytest.mark.parametrize(
    "metadata",
    [
        {"_max_claim_count": 1},
        {"_dead_letter_queue": "dead"},
        {"_max_claim_count": None, "_dead_letter_queue": "dead"},
        {"_max_claim_count": 1, "_dead_letter_queue": None},
        {"_max_claim_count": None, "_dead_letter_queue": None},
    ],
    ids=str,
)
def test_both_keys_must_be_set_and_not_null(metadata: dict[str, Any], api: Api) -> None:
    expect(api.create("q", metadata), 201)
    api.post_bodies("q", 1)
    claim_and_release(api, 4)
    assert api.listed("q") == [1]
    assert api.names() == ["q"]


def test_claims_count_only_while_the_feature_is_on(api: Api) -> None:
    expect(api.create("q"), 201)
    api.post_bodies("q", 1)
    claim_and_release(api, 3)
    operations = [
        {"op": "add", "path": "/metadata/_max_claim_count", "value": 1},
        {"op": "add", "path": "/metadata/_dead_letter_queue", "value": "dead"},
    ]
    expect(api.patch("q", operations), 200)
    claim_and_release(api, 1)
    expect(api.patch("q", [{"op": "remove", "path": "/metadata/_dead_letter_queue"}]), 200)
    claim_and_release(api, 2)
    expect(api.patch("q", operations), 200)
    expect(api.claim("q"), 204)
    assert api.listed("dead") == [1]


def test_the_counter_goes_along(api: Api) -> None:
    arrange(api, count=2)
    api.post_bodies("q", 1)
    claim_and_release(api, 2)
    expect(api.claim("q"), 204)
    [popped] = expect(api.pop("dead"), 200)["messages"]
    assert popped["claim_count"] == 2
    assert popped["claim_id"] is None


def test_the_rules_of_the_dead_letter_queue_do_not_chain_at_the_move(api: Api) -> None:
    expect(api.create("dead", {"_max_claim_count": 0, "_dead_letter_queue": "deader"}), 201)
    arrange(api, count=0)
    api.post_bodies("q", 1)
    expect(api.claim("q"), 204)
    assert api.listed("dead") == [1]
    assert api.listed("deader") == []
    expect(api.claim("dead"), 204)
    assert api.listed("dead") == []
    assert api.listed("deader") == [1]


def test_a_queue_that_is_its_own_dead_letter_queue_loses_nothing(api: Api) -> None:
    arrange(api, count=0, dead="q")
    api.post_bodies("q", 1, 2)
    expect(api.claim("q"), 204)
    assert sorted(api.listed("q")) == [1, 2]


def test_own_dead_letters_stay_own(api: Api) -> None:
    arrange(api, count=0)
    api.post_bodies("q", 1)
    expect(api.claim("q"), 204)
    assert api.listed("dead", "?echo=false") == []
    assert api.somebody_else().listed("dead", "?echo=false") == [1]


def test_dead_letters_stay_in_their_project(api: Api) -> None:
    arrange(api, count=0)
    stranger = api.stranger()
    stranger.post_bodies("dead", "theirs")
    api.post_bodies("q", "mine")
    expect(api.claim("q"), 204)
    assert stranger.listed("dead") == ["theirs"]


def test_pop_neither_counts_nor_moves(api: Api) -> None:
    arrange(api, count=0)
    api.post_bodies("q", 1)
    assert api.popped("q") == [1]
    assert api.listed("dead") == []


def test_a_dead_letter_may_get_a_ttl_of_its_own(api: Api) -> None:
    arrange(api, count=0, _dead_letter_queue_messages_ttl=120)
    api.post_bodies("q", 1, ttl=3600)
    expect(api.claim("q"), 204)
    [moved] = expect(api.list_messages("dead", "?echo=true"), 200)["messages"]
    assert moved["ttl"] == 120


def test_many_worn_out_messages_are_all_moved(api: Api) -> None:
    arrange(api, count=0)
    for start in range(0, 60, 20):
        api.post_bodies("q", *range(start, start + 20))
    eventually(lambda: api.claim("q", "?limit=20").status_code == 204 and not api.listed("q"))
    assert api.stats("dead")["total"] == 60


@pytest.mark.slow
def test_a_lapsed_claim_counts(brief: Api) -> None:
    arrange(brief, count=1)
    brief.post_bodies("q", 1)
    claim = brief.claimed("q", ttl=1, grace=0)
    eventually(lambda: brief.show_claim("q", claim.claim_id).status_code == 404)
    expect(brief.claim("q"), 204)
    assert brief.listed("dead") == [1]


@pytest.mark.slow
def test_age_goes_along_and_the_own_ttl_counts_from_the_move(brief: Api) -> None:
    arrange(brief, count=0, _dead_letter_queue_messages_ttl=1)
    [message_id] = brief.post_bodies("q", 1, ttl=600)
    eventually(lambda: expect(brief.message("q", message_id), 200)["age"] >= 1)
    expect(brief.claim("q"), 204)
    [moved] = expect(brief.list_messages("dead", "?echo=true"), 200)["messages"]
    assert moved["ttl"] == 1
    assert moved["age"] >= 1
    eventually(lambda: brief.stats("dead")["total"] == 0)


@pytest.mark.slow
def test_without_a_ttl_of_its_own_a_dead_letter_keeps_its_expiry(brief: Api) -> None:
    arrange(brief, count=0)
    brief.post_bodies("q", 1, ttl=1)
    expect(brief.claim("q"), 204)
    assert brief.listed("dead") == [1]
    eventually(lambda: brief.stats("dead")["total"] == 0)
