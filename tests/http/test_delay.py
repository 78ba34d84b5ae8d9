"""Delayed messages (contract, 4.1, 5.1; README, choice 3; semantics, 3, 4)."""

from __future__ import annotations

import pytest

from tests.live import Api, eventually, expect


def test_a_messages_delay_is_honoured_on_every_queue(api: Api) -> None:
    [message_id] = api.post_bodies("q", "later", delay=900)
    api.post_bodies("q", "now")
    assert api.listed("q") == ["now"]
    assert api.listed("q", "?echo=true&include_delayed=true") == ["later", "now"]
    assert api.claimed("q").bodies == ["now"]
    expect(api.claim("q"), 204)
    assert api.popped("q") == []
    message = expect(api.message("q", message_id), 200)
    assert set(message) == {"id", "href", "ttl", "age", "body"}


def test_a_queues_delay_holds_for_messages_without_one(either: Api) -> None:
    expect(either.create("q", {"_default_message_delay": 900}), 201)
    either.post_bodies("q", "later")
    either.post_bodies("q", "now", delay=0)
    assert either.listed("q") == ["now"]
    assert either.stats("q")["total"] == 2


def test_changing_a_queues_delay_changes_nothing_posted_before(either: Api) -> None:
    expect(either.create("q", {"_default_message_delay": 900}), 201)
    either.post_bodies("q", "later")
    expect(either.patch("q", [{"op": "remove", "path": "/metadata/_default_message_delay"}]), 200)
    assert either.listed("q") == []
    either.post_bodies("q", "now")
    assert either.listed("q") == ["now"]


def test_the_services_delay_holds_where_nothing_else_is_said(narrow: Api) -> None:
    narrow.post_bodies("q", 1)
    assert narrow.listed("q") == [1]


def test_delays_of_one_post_are_judged_one_by_one(either: Api) -> None:
    answer = either.post("q", {"body": 1}, {"body": 2, "delay": 900}, {"body": 3})
    expect(answer, 201)
    assert either.listed("q") == [1, 3]
    assert either.listed("q", "?echo=true&include_delayed=true") == [1, 2, 3]


def test_deleting_and_counting_delayed_messages(either: Api) -> None:
    ids = either.post_bodies("q", 1, 2, delay=900)
    assert either.stats("q")["total"] == 2
    expect(either.delete_message("q", ids[0]), 204)
    expect(either.delete_message("q", ids[1], "nosuchclaim"), 400)
    assert either.stats("q")["total"] == 1
    expect(either.delete_messages("q", ids), 204)
    assert either.stats("q")["total"] == 0


@pytest.mark.slow
def test_a_message_whose_delay_has_passed_is_free_in_its_old_place(brief: Api) -> None:
    brief.post_bodies("q", "delayed", delay=1)
    brief.post_bodies("q", "after")
    assert brief.listed("q") == ["after"]
    eventually(lambda: brief.listed("q") == ["delayed", "after"])
    assert brief.claimed("q").bodies == ["delayed", "after"]


@pytest.mark.slow
def test_the_ttl_runs_during_the_delay(brief: Api) -> None:
    [message_id] = brief.post_bodies("q", 1, ttl=1, delay=30)
    eventually(lambda: brief.message("q", message_id).status_code == 404)
    assert brief.listed("q", "?echo=true&include_delayed=true") == []
    assert brief.stats("q")["total"] == 0
