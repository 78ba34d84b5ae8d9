"""Waiting for messages: `wait` on claim and list (contract, README, choice 14).

The pause before whatever wakes a waiter only makes it likely that it waits already: the tests hold
whichever comes first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import pytest

from tests.live import TOPICS, Api, LiveServer, RawConnection, eventually, expect, raw_request

LONG_S = 15
AT_ONCE_S = 5.0
"""Far above what an answer takes, far below LONG_S."""


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads to wait in."""
    with ThreadPoolExecutor(32) as pool:
        yield pool


def waiting(
    threads: ThreadPoolExecutor, request: Callable[..., httpx.Response], *args: Any, **more: Any
) -> Future[httpx.Response]:
    """Send a request that waits, and give it the time to arrive."""
    answer = threads.submit(request, *args, **more)
    time.sleep(0.1)
    return answer


def soon(answer: Future[httpx.Response], status: int) -> Any:
    return expect(answer.result(timeout=AT_ONCE_S), status)


def took(request: Callable[[], httpx.Response]) -> tuple[float, httpx.Response]:
    started = time.monotonic()
    answer = request()
    return time.monotonic() - started, answer


# -- the value -------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [-1, 21, 1000])
def test_a_wait_out_of_range_is_refused(wait: int, either: Api) -> None:
    either.post_bodies("q", 1)
    expect(either.list_messages("q", f"?echo=true&wait={wait}"), 400)
    assert either.listed("q") == [1]


@pytest.mark.parametrize("wait", [-1, 21])
def test_a_wait_out_of_range_claims_nothing(wait: int, api: Api) -> None:
    api.post_bodies("q", 1)
    expect(api.claim("q", f"?wait={wait}"), 400)
    assert api.listed("q") == [1]


@pytest.mark.parametrize("wait", ["x", "1.5", "true"])
def test_a_wait_that_is_no_integer_is_refused(wait: str, api: Api) -> None:
    expect(api.list_messages("q", f"?wait={wait}"), 400)
    expect(api.claim("q", f"?wait={wait}"), 400)


@pytest.mark.parametrize("wait", [0, 1, 20])
def test_a_wait_in_range_does_not_hold_up_what_is_there(wait: int, api: Api) -> None:
    api.post_bodies("q", 1)
    seconds, answer = took(lambda: api.list_messages("q", f"?echo=true&wait={wait}"))
    assert len(expect(answer, 200)["messages"]) == 1
    assert seconds < AT_ONCE_S
    seconds, answer = took(lambda: api.claim("q", f"?wait={wait}"))
    expect(answer, 201)
    assert seconds < AT_ONCE_S


def test_a_wait_of_nothing_is_no_wait(api: Api) -> None:
    for wait in ("0", ""):
        seconds, answer = took(partial(api.claim, "q", f"?wait={wait}"))
        expect(answer, 204)
        assert seconds < AT_ONCE_S


def test_the_longest_wait_is_a_setting(narrow: Api) -> None:
    narrow.post_bodies("q", 1)
    expect(narrow.list_messages("q", "?wait=4&echo=true"), 400)
    expect(narrow.list_messages("q", "?wait=3&echo=true"), 200)


@pytest.mark.slow
def test_when_the_time_is_over_the_answer_is_as_without_waiting(
    api: Api, threads: ThreadPoolExecutor
) -> None:
    topics = api.but(kind=TOPICS)
    claimer = threads.submit(took, lambda: api.claim("q", "?wait=1"))
    listers = [
        threads.submit(took, partial(client.list_messages, "q", "?wait=1"))
        for client in (api, topics)
    ]
    seconds, answer = claimer.result()
    expect(answer, 204)
    assert "Location" not in answer.headers
    assert 0.9 <= seconds < 1 + AT_ONCE_S
    for lister in listers:
        seconds, answer = lister.result()
        assert expect(answer, 200) == {"messages": [], "links": []}
        assert 0.9 <= seconds < 1 + AT_ONCE_S
    assert api.names() == topics.names() == []


def test_bad_requests_do_not_wait(api: Api) -> None:
    for request in (
        lambda: api.claim("q", f"?wait={LONG_S}", ttl=1),
        lambda: api.claim("q", f"?wait={LONG_S}&limit=0"),
        lambda: api.list_messages("q", f"?wait={LONG_S}&limit=0"),
        lambda: api.list_messages("q", f"?wait={LONG_S}&echo=maybe"),
        lambda: api.claim("bad@name", f"?wait={LONG_S}"),
    ):
        seconds, answer = took(request)
        expect(answer, 400)
        assert seconds < AT_ONCE_S


def test_getting_by_ids_does_not_wait(api: Api) -> None:
    seconds, answer = took(lambda: api.list_messages("q", f"?ids=a&wait={LONG_S}"))
    expect(answer, 404)
    assert seconds < AT_ONCE_S


# -- what wakes a waiter ---------------------------------------------------------------------------


def test_a_post_answers_a_waiting_claim(api: Api, threads: ThreadPoolExecutor) -> None:
    expect(api.create("q"), 201)
    answer = waiting(threads, api.claim, "q", f"?wait={LONG_S}", ttl=100, grace=60)
    [message_id] = api.post_bodies("q", 1)
    assert [message["id"] for message in soon(answer, 201)["messages"]] == [message_id]
    claim_id = answer.result().headers["Location"].rsplit("/", 1)[1]
    assert expect(api.show_claim("q", claim_id), 200)["ttl"] == 100


def test_a_post_answers_a_waiting_list(either: Api, threads: ThreadPoolExecutor) -> None:
    expect(either.create("q"), 201)
    other = either.somebody_else()
    answer = waiting(threads, other.list_messages, "q", f"?wait={LONG_S}")
    either.post_bodies("q", 1, 2)
    page = soon(answer, 200)
    assert [message["body"] for message in page["messages"]] == [1, 2]
    assert len(page["links"]) == 1


def test_a_post_that_creates_the_queue_answers_who_waits_for_it(
    api: Api, threads: ThreadPoolExecutor
) -> None:
    lister = waiting(threads, api.list_messages, "q", f"?wait={LONG_S}&echo=true")
    api.post_bodies("q", 1)
    assert len(soon(lister, 200)["messages"]) == 1
    claimer = waiting(threads, api.claim, "p", f"?wait={LONG_S}")
    api.post_bodies("p", 1)
    soon(claimer, 201)


def test_a_queue_created_anew_answers_who_waits_for_it(
    api: Api, threads: ThreadPoolExecutor
) -> None:
    expect(api.create("q"), 201)
    claimer = waiting(threads, api.claim, "q", f"?wait={LONG_S}")
    expect(api.drop("q"), 204)
    api.post_bodies("q", 1)
    soon(claimer, 201)


def test_a_waiting_list_goes_on_from_its_marker(either: Api, threads: ThreadPoolExecutor) -> None:
    [marker] = either.post_bodies("q", "old")
    answer = waiting(
        threads, either.list_messages, "q", f"?wait={LONG_S}&echo=true&marker={marker}"
    )
    either.post_bodies("q", "new")
    assert [message["body"] for message in soon(answer, 200)["messages"]] == ["new"]


def test_a_waiting_list_does_not_answer_with_what_is_hidden(
    either: Api, threads: ThreadPoolExecutor
) -> None:
    answer = waiting(threads, either.list_messages, "q", f"?wait={LONG_S}")
    either.post_bodies("q", "mine")
    either.post_bodies("other", "elsewhere")
    either.stranger().post_bodies("q", "foreign")
    time.sleep(0.1)
    assert not answer.done()
    either.somebody_else().post_bodies("q", "theirs")
    assert [message["body"] for message in soon(answer, 200)["messages"]] == ["theirs"]


def test_a_release_answers_a_waiting_claim(api: Api, threads: ThreadPoolExecutor) -> None:
    api.post_bodies("q", 1, 2)
    claim = api.claimed("q")
    answer = waiting(threads, api.claim, "q", f"?wait={LONG_S}")
    expect(api.release("q", claim.claim_id), 204)
    assert [message["body"] for message in soon(answer, 201)["messages"]] == [1, 2]


def test_a_release_answers_a_waiting_list(api: Api, threads: ThreadPoolExecutor) -> None:
    api.post_bodies("q", 1)
    claim = api.claimed("q")
    answer = waiting(threads, api.list_messages, "q", f"?wait={LONG_S}&echo=true")
    expect(api.release("q", claim.claim_id), 204)
    assert [message["body"] for message in soon(answer, 200)["messages"]] == [1]


@pytest.mark.slow
def test_a_lapsed_claim_answers_who_waits_to_claim_or_to_list(
    brief: Api, threads: ThreadPoolExecutor
) -> None:
    for queue in ("claimed", "listed"):
        brief.post_bodies(queue, queue)
        brief.claimed(queue, ttl=1, grace=0)
    claimer = waiting(threads, brief.claim, "claimed", f"?wait={LONG_S}")
    lister = waiting(threads, brief.list_messages, "listed", f"?wait={LONG_S}&echo=true")
    assert [message["body"] for message in soon(claimer, 201)["messages"]] == ["claimed"]
    assert [message["body"] for message in soon(lister, 200)["messages"]] == ["listed"]


@pytest.mark.slow
def test_a_claim_lapses_for_a_waiter_that_came_before_it(
    brief: Api, threads: ThreadPoolExecutor
) -> None:
    """The waiter is there first; the claim that has to lapse is made by another waiter."""
    first = waiting(threads, brief.claim, "q", f"?wait={LONG_S}", ttl=1, grace=0)
    second = waiting(threads, brief.claim, "q", f"?wait={LONG_S}", ttl=1, grace=0)
    brief.post_bodies("q", 1)
    soon(first, 201)
    soon(second, 201)


@pytest.mark.slow
def test_a_renewal_puts_the_wake_up_off(brief: Api, threads: ThreadPoolExecutor) -> None:
    brief.post_bodies("q", 1)
    claim = brief.claimed("q", ttl=1, grace=0)
    answer = waiting(threads, brief.claim, "q", "?wait=2")
    expect(brief.renew("q", claim.claim_id, ttl=600), 204)
    soon(answer, 204)


@pytest.mark.slow
def test_a_renewal_for_a_shorter_time_brings_the_wake_up_forward(
    brief: Api, threads: ThreadPoolExecutor
) -> None:
    brief.post_bodies("q", 1)
    claim = brief.claimed("q", ttl=600, grace=0)
    claimer = waiting(threads, brief.claim, "q", f"?wait={LONG_S}")
    lister = waiting(threads, brief.list_messages, "p", f"?wait={LONG_S}&echo=true")
    expect(brief.renew("q", claim.claim_id, ttl=1, grace=0), 204)
    assert [message["body"] for message in soon(claimer, 201)["messages"]] == [1]
    brief.post_bodies("p", 2)
    soon(lister, 200)


@pytest.mark.slow
def test_what_becomes_free_at_one_moment_is_shared_among_those_who_wait(
    brief: Api, threads: ThreadPoolExecutor
) -> None:
    brief.post_bodies("q", 1, 2)
    brief.claimed("q", ttl=1, grace=0)
    brief.post_bodies("q", 3, 4, delay=1)
    claims = [threads.submit(brief.claim, "q", f"?wait={LONG_S}&limit=1") for _ in range(4)]
    got = [message["body"] for claim in claims for message in soon(claim, 201)["messages"]]
    assert sorted(got) == [1, 2, 3, 4]


def test_who_asks_for_delayed_messages_is_answered_by_one(
    either: Api, threads: ThreadPoolExecutor
) -> None:
    query = f"?wait={LONG_S}&echo=true&include_delayed=true"
    answer = waiting(threads, either.list_messages, "q", query)
    either.post_bodies("q", "later", delay=900)
    assert [message["body"] for message in soon(answer, 200)["messages"]] == ["later"]


@pytest.mark.slow
def test_a_delay_that_ends_answers_who_waits_to_claim_or_to_list(
    api: Api, threads: ThreadPoolExecutor
) -> None:
    topics = api.but(kind=TOPICS)
    claimer = waiting(threads, api.claim, "claimed", f"?wait={LONG_S}")
    api.post_bodies("claimed", 1, delay=1)
    for client in (api, topics):
        client.post_bodies("listed", 1, delay=1)
    listers = [
        threads.submit(client.list_messages, "listed", f"?wait={LONG_S}&echo=true")
        for client in (api, topics)
    ]
    assert [message["body"] for message in soon(claimer, 201)["messages"]] == [1]
    for lister in listers:
        assert [message["body"] for message in soon(lister, 200)["messages"]] == [1]


@pytest.mark.slow
def test_the_nearest_delay_wakes_first(brief: Api, threads: ThreadPoolExecutor) -> None:
    brief.post_bodies("q", "far", delay=600)
    answer = waiting(threads, brief.claim, "q", f"?wait={LONG_S}")
    brief.post_bodies("q", "near", delay=1)
    assert [message["body"] for message in soon(answer, 201)["messages"]] == ["near"]


def test_a_dead_letter_answers_who_waits_for_it(api: Api, threads: ThreadPoolExecutor) -> None:
    expect(api.create("q", {"_max_claim_count": 0, "_dead_letter_queue": "dead"}), 201)
    api.post_bodies("q", 1)
    answer = waiting(threads, api.claim, "dead", f"?wait={LONG_S}")
    expect(api.claim("q"), 204)
    assert [message["body"] for message in soon(answer, 201)["messages"]] == [1]


# -- many waiters ----------------------------------------------------------------------------------


def test_many_waiters_on_one_queue_get_one_message_each(
    api: Api, threads: ThreadPoolExecutor
) -> None:
    expect(api.create("q"), 201)
    claims = [threads.submit(api.claim, "q", f"?wait={LONG_S}&limit=1") for _ in range(20)]
    time.sleep(0.2)
    ids = api.post_bodies("q", *range(10))
    ids += [api.post_bodies("q", n)[0] for n in range(10)]
    got = [message["id"] for claim in claims for message in soon(claim, 201)["messages"]]
    assert sorted(got) == sorted(ids)


def test_one_message_answers_one_waiter_and_the_next_the_next(
    api: Api, threads: ThreadPoolExecutor
) -> None:
    expect(api.create("q"), 201)
    claims = [threads.submit(api.claim, "q", f"?wait={LONG_S}") for _ in range(5)]
    time.sleep(0.1)

    def answered(number: int) -> bool:
        return sum(claim.done() for claim in claims) == number

    for n in range(1, 6):
        api.post_bodies("q", n)
        eventually(partial(answered, n))
    bodies = sorted(soon(claim, 201)["messages"][0]["body"] for claim in claims)
    assert bodies == [1, 2, 3, 4, 5]


def test_all_readers_of_one_queue_are_answered(either: Api, threads: ThreadPoolExecutor) -> None:
    readers = [
        threads.submit(either.list_messages, "q", f"?wait={LONG_S}&echo=true") for _ in range(10)
    ]
    time.sleep(0.1)
    either.post_bodies("q", 1)
    for reader in readers:
        assert len(soon(reader, 200)["messages"]) == 1


def test_waiters_do_not_hold_up_other_requests(api: Api, threads: ThreadPoolExecutor) -> None:
    claims = [threads.submit(api.claim, "q", "?wait=2") for _ in range(20)]
    time.sleep(0.1)
    seconds, answer = took(lambda: api.get("/v2/ping"))
    expect(answer, 204)
    assert seconds < 1
    api.post_bodies("q", *range(200))
    for claim in claims:
        soon(claim, 201)


# -- clients that go away --------------------------------------------------------------------------


def test_a_client_that_has_gone_away_claims_nothing(api: Api) -> None:
    expect(api.create("q"), 201)
    for _ in range(5):
        with RawConnection(api.server) as connection:
            path = api.path("q", "claims") + f"?wait={LONG_S}"
            connection.send(raw_request("POST", path, api.headers))
            time.sleep(0.1)
    time.sleep(0.1)
    api.post_bodies("q", 1)
    stats = api.stats("q")
    assert (stats["claimed"], stats["free"]) == (0, 1)
    assert api.claimed("q").bodies == [1]


def test_one_gone_client_does_not_take_the_turn_of_the_others(
    api: Api, threads: ThreadPoolExecutor
) -> None:
    expect(api.create("q"), 201)
    path = api.path("q", "claims") + f"?wait={LONG_S}&limit=1"
    with RawConnection(api.server) as connection:
        connection.send(raw_request("POST", path, api.headers))
        time.sleep(0.1)
        answer = waiting(threads, api.claim, "q", f"?wait={LONG_S}&limit=1")
    time.sleep(0.1)
    api.post_bodies("q", 1)
    assert [message["body"] for message in soon(answer, 201)["messages"]] == [1]


# -- shutdown --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_stop_ends_waiters_properly(
    private_server: Callable[..., LiveServer], threads: ThreadPoolExecutor
) -> None:
    server = private_server()
    api = server.api()
    claims = [threads.submit(api.claim, "q", f"?wait={LONG_S}") for _ in range(5)]
    lists = [threads.submit(api.list_messages, "q", f"?wait={LONG_S}") for _ in range(5)]
    time.sleep(0.5)
    started = time.monotonic()
    server.terminate()
    for claim in claims:
        assert claim.result(timeout=10).status_code in {204, 503}
    for listing in lists:
        answer = listing.result(timeout=10)
        assert answer.status_code in {200, 503}
        if answer.status_code == 200:
            assert answer.json() == {"messages": [], "links": []}
    server.wait_until_ended()
    assert time.monotonic() - started < 10
