"""Deleting one message or several (contract, 4.5, 4.6; semantics, 3)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.live import Api, LiveServer, eventually, expect

UNABLE = "Unable to delete"
MALFORMED = ["nosuchclaim", "x", "x" * 300, "-1", "é", "a b", "'"]


def stays(api: Api, message_id: str, queue: str = "q") -> None:
    """Insist that a message is still there."""
    expect(api.message(queue, message_id), 200)


def is_gone(api: Api, message_id: str, queue: str = "q") -> None:
    expect(api.message(queue, message_id), 404, "Not found")


def released_claim(api: Api) -> str:
    """The id of a claim that lived once, on queue q."""
    claim = api.claimed("q")
    expect(api.release("q", claim.claim_id), 204)
    return claim.claim_id


# -- one message -----------------------------------------------------------------------------------


def test_deleting_an_unclaimed_message_works_and_can_be_repeated(either: Api) -> None:
    [message_id, other] = either.post_bodies("q", 1, 2)
    answer = either.delete_message("q", message_id)
    expect(answer, 204)
    assert answer.content == b""
    is_gone(either, message_id)
    stays(either, other)
    expect(either.delete_message("q", message_id), 204)


def test_anybody_in_the_project_may_delete(either: Api) -> None:
    [message_id] = either.post_bodies("q", 1)
    expect(either.somebody_else().delete_message("q", message_id), 204)
    is_gone(either, message_id)


def test_deleting_a_delayed_message_works(either: Api) -> None:
    [message_id] = either.post_bodies("q", 1, delay=900)
    expect(either.delete_message("q", message_id), 204)
    is_gone(either, message_id)


@pytest.mark.parametrize("claim_id", [None, *MALFORMED])
@pytest.mark.parametrize("queue", ["q", "missing"])
def test_deleting_what_is_not_there_is_204_whatever_the_claim_id(
    queue: str, claim_id: str | None, either: Api
) -> None:
    [gone, _] = either.post_bodies("q", 1, 2)
    expect(either.delete_message("q", gone), 204)
    for message_id in (gone, "nosuchmessage", "0" * 29):
        expect(either.delete_message(queue, message_id, claim_id), 204)


def test_deleting_what_is_not_there_is_204_with_a_live_or_an_old_claim_id(api: Api) -> None:
    [gone, _] = api.post_bodies("q", 1, 2)
    expect(api.delete_message("q", gone), 204)
    old = released_claim(api)
    live = api.claimed("q").claim_id
    for claim_id in (old, live):
        expect(api.delete_message("q", gone, claim_id), 204)
        expect(api.delete_message("q", "nosuchmessage", claim_id), 204)
        expect(api.delete_message("missing", gone, claim_id), 204)


def test_a_claimed_message_cannot_be_deleted_without_its_claim(api: Api) -> None:
    [message_id] = api.post_bodies("q", 1)
    claim = api.claimed("q")
    expect(api.delete_message("q", message_id), 403, UNABLE)
    expect(api.delete(api.path("q", "messages", message_id) + "?claim_id="), 403, UNABLE)
    stays(api, message_id)
    assert expect(api.show_claim("q", claim.claim_id), 200)["messages"][0]["id"] == message_id


def test_a_claimed_message_is_deleted_with_its_claim(api: Api) -> None:
    [message_id, other] = api.post_bodies("q", 1, 2)
    claim = api.claimed("q")
    expect(api.delete_message("q", message_id, claim.claim_id), 204)
    is_gone(api, message_id)
    is_gone(api.stranger(), message_id)
    expect(api.delete_message("q", message_id, claim.claim_id), 204)
    stays(api, other)


def test_the_href_of_a_claimed_message_deletes_it(api: Api) -> None:
    api.post_bodies("q", 1)
    [message] = api.claimed("q").messages
    expect(api.delete(message["href"]), 204)
    is_gone(api, message["id"])


@pytest.mark.parametrize("claim_id", MALFORMED)
def test_an_unclaimed_message_is_kept_if_a_malformed_claim_id_is_given(
    claim_id: str, either: Api
) -> None:
    [message_id] = either.post_bodies("q", 1)
    expect(either.delete_message("q", message_id, claim_id), 400, UNABLE)
    stays(either, message_id)


def test_an_unclaimed_message_is_kept_if_a_claim_id_is_given(api: Api) -> None:
    [first, second] = api.post_bodies("q", 1, 2)
    claim = api.claimed("q", "?limit=1")
    expect(api.delete_message("q", second, claim.claim_id), 400, UNABLE)
    stays(api, second)
    expect(api.release("q", claim.claim_id), 204)
    expect(api.delete_message("q", first, claim.claim_id), 400, UNABLE)
    stays(api, first)
    expect(api.delete_message("q", first), 204)


def test_a_delayed_message_is_kept_if_a_claim_id_is_given(api: Api) -> None:
    api.post_bodies("q", 1)
    claim = api.claimed("q")
    [delayed] = api.post_bodies("q", 2, delay=900)
    for claim_id in (claim.claim_id, "nosuchclaim"):
        expect(api.delete_message("q", delayed, claim_id), 400, UNABLE)
    stays(api, delayed)


def test_a_claimed_message_is_kept_if_the_claim_id_is_malformed(api: Api) -> None:
    [message_id] = api.post_bodies("q", 1)
    api.claimed("q")
    for claim_id in MALFORMED:
        expect(api.delete_message("q", message_id, claim_id), 400, UNABLE)
    stays(api, message_id)


def test_a_claimed_message_is_kept_if_another_live_claim_is_given(api: Api) -> None:
    [first, second] = api.post_bodies("q", 1, 2)
    one = api.claimed("q", "?limit=1")
    two = api.claimed("q", "?limit=1")
    expect(api.delete_message("q", first, two.claim_id), 403, UNABLE)
    expect(api.delete_message("q", second, one.claim_id), 403, UNABLE)
    stays(api, first)
    stays(api, second)


def test_a_claimed_message_is_kept_if_a_claim_of_the_past_is_given(api: Api) -> None:
    [message_id] = api.post_bodies("q", 1)
    old = released_claim(api)
    api.claimed("q")
    expect(api.delete_message("q", message_id, old), 400, UNABLE)
    stays(api, message_id)


def test_a_claim_of_another_queue_or_project_is_unknown(api: Api) -> None:
    [message_id] = api.post_bodies("q", 1)
    api.post_bodies("other", 1)
    elsewhere = api.claimed("other")
    stranger = api.stranger()
    stranger.post_bodies("q", 1)
    foreign = stranger.claimed("q")
    for claim_id in (elsewhere.claim_id, foreign.claim_id):
        expect(api.delete_message("q", message_id, claim_id), 400, UNABLE)
    api.claimed("q")
    for claim_id in (elsewhere.claim_id, foreign.claim_id):
        expect(api.delete_message("q", message_id, claim_id), 400, UNABLE)
    stays(api, message_id)


@pytest.mark.slow
def test_a_lapsed_claim_gives_no_right_to_delete(brief: Api) -> None:
    [message_id] = brief.post_bodies("q", 1)
    claim = brief.claimed("q", ttl=1, grace=0)
    eventually(lambda: brief.show_claim("q", claim.claim_id).status_code == 404)
    expect(brief.delete_message("q", message_id, claim.claim_id), 400, UNABLE)
    stays(brief, message_id)
    expect(brief.delete_message("q", message_id), 204)


@pytest.mark.slow
def test_an_expired_message_is_204_whatever_the_claim_id(brief: Api) -> None:
    [message_id] = brief.post_bodies("q", 1, ttl=1)
    eventually(lambda: brief.message("q", message_id).status_code == 404)
    for claim_id in (None, "nosuchclaim"):
        expect(brief.delete_message("q", message_id, claim_id), 204)


# -- several messages ------------------------------------------------------------------------------


def test_the_query_of_the_posts_location_deletes_what_was_posted(either: Api) -> None:
    answer = either.post("q", *({"body": n} for n in range(5)))
    location = answer.headers["Location"]
    expect(either.get(location), 200)
    expect(either.delete(location), 204)
    expect(either.get(location), 404)
    expect(either.delete(location), 204)
    expect(either.drop("q"), 204)
    expect(either.delete(location), 204)
    assert either.names() == []


def test_unknown_malformed_and_foreign_ids_are_ignored(either: Api) -> None:
    [first, second] = either.post_bodies("q", 1, 2)
    [elsewhere] = either.post_bodies("other", 3)
    stranger = either.stranger()
    [foreign] = stranger.post_bodies("q", 4)
    expect(either.delete_messages("q", ["x", elsewhere, first, foreign, "0" * 29, "é"]), 204)
    is_gone(either, first)
    stays(either, second)
    stays(either, elsewhere, "other")
    stays(stranger, foreign)
    expect(either.delete_messages("missing", [second, "x"]), 204)
    stays(either, second)


def test_claimed_and_delayed_messages_are_deleted_too(api: Api) -> None:
    [held, other] = api.post_bodies("q", 1, 2)
    claim = api.claimed("q")
    [delayed] = api.post_bodies("q", 3, delay=900)
    expect(api.delete_messages("q", [held, delayed]), 204)
    is_gone(api, held)
    is_gone(api, delayed)
    shown = expect(api.show_claim("q", claim.claim_id), 200)
    assert [message["id"] for message in shown["messages"]] == [other]
    expect(api.delete_messages("q", [other]), 204)
    expect(api.show_claim("q", claim.claim_id), 404)


def test_claim_ids_are_ignored_unless_the_setting_asks_for_them(api: Api) -> None:
    ids = api.post_bodies("q", 1, 2)
    api.claimed("q")
    query = f"?ids={','.join(ids)}&claim_ids=nosuchclaim"
    expect(api.delete(api.path("q", "messages") + query), 204)
    assert api.stats("q")["total"] == 0


@pytest.mark.parametrize(
    "query",
    ["", "?ids=", "?pop=", "?ids=&pop=", "?ids=a&pop=1", "?ids=,", "?colour=red", "?claim_ids=c"],
)
def test_exactly_one_of_ids_and_pop_must_be_given(query: str, either: Api) -> None:
    either.post_bodies("q", 1)
    expect(either.delete(either.path("q", "messages") + query), 400, "Invalid API request")
    assert either.listed("q") == [1]


@pytest.mark.parametrize(("count", "status"), [(1, 204), (20, 204), (21, 400), (40, 400)])
def test_up_to_twenty_ids_are_accepted(count: int, status: int, either: Api) -> None:
    ids = either.post_bodies("q", *range(count))
    answer = either.delete_messages("q", ids)
    expect(answer, status, "Invalid API request" if status == 400 else None)
    assert either.stats("q")["total"] == (0 if status == 204 else count)
    repeated = either.delete_messages("missing", ["x"] * count)
    assert repeated.status_code == status


# -- several messages, claims enforced (setting message_delete_with_claim_id) ----------------------


@pytest.fixture
def guarded(shared_server: Callable[..., LiveServer]) -> Api:
    """A client of a server that wants claim ids for bulk deletion."""
    return shared_server(message_delete_with_claim_id=True).api()


def bulk(api: Api, ids: list[str], claims: str | None) -> int:
    query = "?ids=" + ",".join(ids) + ("" if claims is None else f"&claim_ids={claims}")
    answer = api.delete(api.path("q", "messages") + query)
    if answer.status_code == 403:
        expect(answer, 403, UNABLE)
    elif answer.status_code == 400:
        expect(answer, 400, "Invalid API request")
    return answer.status_code


def test_enforced_the_claim_id_may_be_repeated_with_a_trailing_comma(guarded: Api) -> None:
    guarded.post_bodies("q", *range(4))
    claim = guarded.claimed("q")
    assert bulk(guarded, claim.ids, f"{claim.claim_id}," * 4) == 204
    assert guarded.stats("q")["total"] == 0


def test_enforced_the_claims_of_all_messages_may_be_given(guarded: Api) -> None:
    guarded.post_bodies("q", *range(4))
    one = guarded.claimed("q", "?limit=2")
    two = guarded.claimed("q", "?limit=2")
    claims = f"{one.claim_id},{two.claim_id}"
    assert bulk(guarded, one.ids + two.ids, claims) == 204
    assert guarded.stats("q")["total"] == 0


def test_enforced_without_claim_ids_nothing_is_deleted(guarded: Api) -> None:
    ids = guarded.post_bodies("q", 1, 2)
    for claims in (None, "", ",", ",,"):
        assert bulk(guarded, ids, claims) == 400
    assert guarded.stats("q")["total"] == 2


def test_enforced_pop_goes_without_claim_ids(guarded: Api) -> None:
    guarded.post_bodies("q", 1, 2)
    path = guarded.path("q", "messages")
    expect(guarded.delete(f"{path}?pop=1&claim_ids=c"), 400)
    assert guarded.popped("q", 1) == [1]
    expect(guarded.delete(f"{path}?pop=1&claim_ids="), 200)


def test_enforced_ids_and_pop_still_exclude_each_other(guarded: Api) -> None:
    path = guarded.path("q", "messages")
    expect(guarded.delete(f"{path}?ids=a&pop=1&claim_ids=c"), 400)
    expect(guarded.delete(path), 400)


@pytest.mark.parametrize("claims", ["nosuchclaim", "x,y", "0" * 32])
def test_enforced_an_unknown_claim_id_deletes_nothing(claims: str, guarded: Api) -> None:
    guarded.post_bodies("q", 1, 2)
    claim = guarded.claimed("q")
    assert bulk(guarded, claim.ids, claims) == 403
    assert bulk(guarded, claim.ids, f"{claim.claim_id},{claims}") == 403
    assert guarded.stats("q")["total"] == 2


def test_enforced_a_message_held_by_a_claim_not_given_protects_all(guarded: Api) -> None:
    guarded.post_bodies("q", 1, 2, 3)
    one = guarded.claimed("q", "?limit=1")
    two = guarded.claimed("q", "?limit=1")
    assert bulk(guarded, one.ids + two.ids, one.claim_id) == 403
    assert guarded.stats("q")["total"] == 3


def test_enforced_a_claim_that_holds_none_of_the_messages_protects_all(guarded: Api) -> None:
    guarded.post_bodies("q", 1, 2)
    one = guarded.claimed("q", "?limit=1")
    two = guarded.claimed("q", "?limit=1")
    assert bulk(guarded, one.ids, f"{one.claim_id},{two.claim_id}") == 403
    assert bulk(guarded, one.ids, two.claim_id) == 403
    assert guarded.stats("q")["total"] == 2


def test_enforced_a_released_claim_deletes_nothing(guarded: Api) -> None:
    ids = guarded.post_bodies("q", 1)
    old = guarded.claimed("q").claim_id
    expect(guarded.release("q", old), 204)
    assert bulk(guarded, ids, old) == 403
    assert guarded.stats("q")["total"] == 1


def test_enforced_unclaimed_messages_are_deleted_beside_claimed_ones(guarded: Api) -> None:
    ids = guarded.post_bodies("q", 1, 2)
    claim = guarded.claimed("q", "?limit=1")
    assert bulk(guarded, ids, claim.claim_id) == 204
    assert guarded.stats("q")["total"] == 0


def test_enforced_retries_are_204_when_no_message_is_left(guarded: Api) -> None:
    guarded.post_bodies("q", 1, 2)
    claim = guarded.claimed("q")
    for _ in range(2):
        assert bulk(guarded, claim.ids, claim.claim_id) == 204
    assert bulk(guarded, claim.ids, "nosuchclaim") == 204
    expect(guarded.drop("q"), 204)
    assert bulk(guarded, claim.ids, claim.claim_id) == 204


def test_enforced_single_deletes_are_as_ever(guarded: Api) -> None:
    [first, second] = guarded.post_bodies("q", 1, 2)
    claim = guarded.claimed("q", "?limit=1")
    expect(guarded.delete_message("q", first), 403, UNABLE)
    expect(guarded.delete_message("q", first, claim.claim_id), 204)
    expect(guarded.delete_message("q", second), 204)
