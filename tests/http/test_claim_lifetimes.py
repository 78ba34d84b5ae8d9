"""How long claims and claimed messages live (contract, 5.4; semantics, 3 to 5)."""

from __future__ import annotations

import pytest

from tests.live import Api, eventually, expect


def ttl_of(api: Api, message_id: str) -> int:
    ttl: int = expect(api.message("q", message_id), 200)["ttl"]
    return ttl


# -- the extension rule, as far as numbers show it -------------------------------------------------


@pytest.mark.parametrize(
    ("message_ttl", "claim_ttl", "grace", "shown"),
    [
        (60, 100, 200, 300),
        (100, 500, 60, 560),
        (100, 101, 60, 161),
        (100, 60, 60, 100),
        (100, 60, 43200, 100),
        (1209600, 43200, 43200, 1209600),
        (60, 43200, 43200, 86400),
    ],
)
def test_only_a_message_that_would_expire_before_its_claim_gets_a_new_lifetime(
    message_ttl: int, claim_ttl: int, grace: int, shown: int, api: Api
) -> None:
    [message_id] = api.post_bodies("q", 1, ttl=message_ttl)
    claim = api.claimed("q", ttl=claim_ttl, grace=grace)
    assert claim.messages[0]["ttl"] == shown
    assert ttl_of(api, message_id) == shown
    [listed] = expect(api.show_claim("q", claim.claim_id), 200)["messages"]
    assert listed["ttl"] == shown
    assert listed["age"] < 60


def test_each_message_of_a_claim_is_judged_by_itself(api: Api) -> None:
    short, long = (api.post_bodies("q", 1, ttl=ttl)[0] for ttl in (60, 3600))
    api.claimed("q", ttl=100, grace=200)
    assert ttl_of(api, short) == 300
    assert ttl_of(api, long) == 3600


def test_renewing_extends_again(api: Api) -> None:
    [message_id] = api.post_bodies("q", 1, ttl=60)
    claim = api.claimed("q", ttl=100, grace=200)
    assert ttl_of(api, message_id) == 300
    expect(api.renew("q", claim.claim_id, ttl=200, grace=60), 204)
    assert ttl_of(api, message_id) == 300
    expect(api.renew("q", claim.claim_id, ttl=600, grace=100), 204)
    assert ttl_of(api, message_id) == 700


def test_renewing_without_ttl_and_grace_extends_by_the_defaults(api: Api) -> None:
    [message_id] = api.post_bodies("q", 1, ttl=60)
    claim = api.claimed("q", ttl=60, grace=60)
    expect(api.renew("q", claim.claim_id), 204)
    assert ttl_of(api, message_id) == 360


def test_the_extension_is_not_undone_on_release(api: Api) -> None:
    [message_id] = api.post_bodies("q", 1, ttl=60)
    claim = api.claimed("q", ttl=100, grace=200)
    expect(api.release("q", claim.claim_id), 204)
    assert ttl_of(api, message_id) == 300
    assert expect(api.pop("q"), 200)["messages"][0]["ttl"] == 300


def test_a_grace_of_zero_may_be_allowed_by_the_settings(brief: Api) -> None:
    [message_id] = brief.post_bodies("q", 1, ttl=100)
    brief.claimed("q", ttl=500, grace=0)
    assert ttl_of(brief, message_id) == 500


# -- in real time ----------------------------------------------------------------------------------


def lapsed(api: Api, claim_id: str) -> bool:
    return api.show_claim("q", claim_id).status_code == 404


@pytest.mark.slow
def test_a_lapsed_claim_gives_its_messages_back(brief: Api) -> None:
    ids = brief.post_bodies("q", 1, 2, 3)
    claim = brief.claimed("q", "?limit=2", ttl=1, grace=0)
    assert brief.listed("q") == [3]
    eventually(lambda: lapsed(brief, claim.claim_id))
    assert brief.listed("q") == [1, 2, 3]
    assert brief.stats("q")["claimed"] == 0
    assert expect(brief.message("q", ids[0]), 200)["href"] == brief.path("q", "messages", ids[0])
    expect(brief.renew("q", claim.claim_id, ttl=60), 404)
    expect(brief.release("q", claim.claim_id), 204)
    assert brief.claimed("q").bodies == [1, 2, 3]


@pytest.mark.slow
def test_a_lapsed_claim_never_touches_its_successor(brief: Api) -> None:
    [message_id] = brief.post_bodies("q", 1)
    old = brief.claimed("q", ttl=1, grace=0)
    eventually(lambda: lapsed(brief, old.claim_id))
    new = brief.claimed("q", ttl=600)
    expect(brief.renew("q", old.claim_id, ttl=1), 404)
    expect(brief.release("q", old.claim_id), 204)
    expect(brief.delete_message("q", message_id, old.claim_id), 400, "Unable to delete")
    expect(brief.claim("q"), 204)
    shown = expect(brief.show_claim("q", new.claim_id), 200)
    assert [message["id"] for message in shown["messages"]] == [message_id]


@pytest.mark.slow
def test_age_counts_from_the_claim_and_from_each_renewal(brief: Api) -> None:
    brief.post_bodies("q", 1)
    claim = brief.claimed("q", ttl=60, grace=0)

    def age() -> int:
        shown: int = expect(brief.show_claim("q", claim.claim_id), 200)["age"]
        return shown

    assert age() == 0
    eventually(lambda: age() >= 1)
    expect(brief.renew("q", claim.claim_id, ttl=60), 204)
    assert age() == 0


@pytest.mark.slow
def test_a_renewed_claim_outlives_its_first_ttl(brief: Api) -> None:
    [message_id] = brief.post_bodies("q", 1)
    short = brief.claimed("q", "?limit=1", ttl=1, grace=0)
    expect(brief.renew("q", short.claim_id, ttl=600), 204)
    brief.post_bodies("clock", 1, ttl=2)
    eventually(lambda: brief.stats("clock")["total"] == 0)
    assert expect(brief.show_claim("q", short.claim_id), 200)["messages"][0]["id"] == message_id
    expect(brief.claim("q"), 204)


@pytest.mark.slow
def test_an_expired_message_is_gone_everywhere_at_once(brief: Api) -> None:
    [message_id] = brief.post_bodies("q", 1, ttl=1)
    eventually(lambda: brief.message("q", message_id).status_code == 404)
    everything = "?echo=true&include_claimed=true&include_delayed=true"
    assert brief.listed("q", everything) == []
    expect(brief.messages("q", [message_id]), 404)
    expect(brief.claim("q"), 204)
    assert brief.popped("q") == []
    assert brief.stats("q") == {"claimed": 0, "free": 0, "total": 0}


@pytest.mark.slow
def test_a_claim_keeps_its_messages_alive_through_the_grace(brief: Api) -> None:
    [message_id] = brief.post_bodies("q", 1, ttl=1)
    claim = brief.claimed("q", ttl=2, grace=60)
    assert claim.messages[0]["ttl"] == 62
    eventually(lambda: lapsed(brief, claim.claim_id))
    assert expect(brief.message("q", message_id), 200)["ttl"] == 62
    assert brief.listed("q") == [1]


@pytest.mark.slow
def test_the_age_goes_on_from_the_post_and_may_exceed_the_ttl(brief: Api) -> None:
    [message_id] = brief.post_bodies("q", 1, ttl=2)

    def message() -> dict[str, int]:
        shown: dict[str, int] = expect(brief.message("q", message_id), 200)
        return shown

    eventually(lambda: message()["age"] >= 1)
    # Each claim adds two seconds from now; none starts the age anew.
    claim = brief.claimed("q", ttl=2, grace=0)
    eventually(lambda: message()["age"] >= 2)
    expect(brief.renew("q", claim.claim_id, ttl=2, grace=0), 204)
    eventually(lambda: message()["age"] > message()["ttl"] == 2)


@pytest.mark.slow
def test_a_message_that_expires_under_a_claim_leaves_it(brief: Api) -> None:
    [passing] = brief.post_bodies("q", 1, ttl=2)
    [lasting] = brief.post_bodies("q", 2, ttl=600)
    claim = brief.claimed("q", ttl=1, grace=0)
    assert claim.ids == [passing, lasting]
    eventually(lambda: brief.message("q", passing).status_code == 404)
    assert brief.listed("q") == [2]
    stats = brief.stats("q")
    assert (stats["claimed"], stats["free"], stats["total"]) == (0, 1, 1)
