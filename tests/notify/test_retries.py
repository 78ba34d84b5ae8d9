"""When a delivery is tried again, and when it is given up (contract notifications.md section 6).

The cases with delays all wait at the same time: they begin together, and each test then looks at
one of them.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest

from tests.live import Api, LiveServer, eventually, expect
from tests.notify.live import GENTLE, OPEN, Subscribed, count, subscribe
from tests.notify.receivers import Farm

ONCE = {
    **GENTLE,
    "retries_with_no_delay": 1,
    "minimum_delay_retries": 0,
    "maximum_delay_retries": 0,
}
"""One retry at once, one after a second, and one six seconds later: the linear back-off."""
FOUR_TIMES = {**ONCE, "retries_with_no_delay": 4}
CURVED = {**ONCE, "retries_with_no_delay": 0}
FORCED = {"ignore_subscription_override": True}

LATE_S = 4.0
"""How much later than it has to be an attempt may come, on a machine that is busy."""


@pytest.fixture
def server(shared_server: Callable[..., LiveServer]) -> LiveServer:
    return shared_server(**OPEN)


@pytest.fixture
def api(server: LiveServer) -> Api:
    return server.api()


# -- cases with delays -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What is set, and the least seconds before each retry. With `over` there are no more."""

    gaps: tuple[float, ...]
    subscription: Mapping[str, Any] | None = None
    queue: Mapping[str, Any] | None = None
    over: bool = True
    path: str = "/status/500"
    query: Mapping[str, str] | None = None
    changed: Mapping[str, Any] | None = None
    """The queue's policy as it is made after the post."""


CASES = {
    "all-four-phases": Case(
        (0, 0, 1, 1, 6, 11),
        {
            **GENTLE,
            "retries_with_no_delay": 2,
            "minimum_delay_retries": 1,
            "maximum_delay_retries": 1,
        },
    ),
    "arithmetic": Case((1, 11), {**CURVED, "retry_backoff_function": "arithmetic"}),
    "geometric": Case((1, 10), {**CURVED, "retry_backoff_function": "geometric"}),
    "exponential": Case((1, 10), {**CURVED, "retry_backoff_function": "exponential"}),
    "the-queue-s": Case((0, 1, 6), queue=ONCE),
    "the-subscription-s": Case((0, 0, 0, 0, 1, 6), FOUR_TIMES, ONCE),
    "an-empty-one-leaves-the-queue-s": Case((0, 1, 6), {}, ONCE),
    "forced-by-the-queue": Case((0, 1, 6), FOUR_TIMES, {**ONCE, **FORCED}),
    "forced-by-the-subscription": Case((0, 1, 6), {**FOUR_TIMES, **FORCED}, ONCE),
    "forced-with-no-other": Case((0, 0, 0, 5), {**FOUR_TIMES, **FORCED}, over=False),
    "defaults": Case((0, 0, 0, 5, 5), queue={}, over=False),
    "the-queue-s-at-the-time-of-the-post": Case((0, 1, 6), queue=ONCE, changed=FOUR_TIMES),
    "our-own": Case((4.4, 8.9), over=False),
    "retry-after": Case((3, 3), FOUR_TIMES, over=False, path="/retry-after/503", query={"value": "3"}),
    "retry-after-beyond-the-longest": Case(
        (11,), FOUR_TIMES, over=False, path="/retry-after/429", query={"value": "99999"}
    ),
    "retry-after-below-the-policy-s": Case(
        (1, 6), CURVED, path="/retry-after/503", query={"value": "0"}
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Running:
    """The cases, all of which have begun."""

    farm: Farm
    subscribed: Mapping[str, Subscribed]


@pytest.fixture(scope="module")
def running(shared_server: Callable[..., LiveServer]) -> Iterator[Running]:
    api = shared_server(**OPEN).api()
    with Farm() as farm:
        subscribed = {}
        for name, case in CASES.items():
            expect(
                api.create(name, {} if case.queue is None else {"_retry_policy": case.queue}), 201
            )
            url = farm.url(f"{case.path}/{name}/", **case.query or {})
            options: dict[str, Any] = (
                {} if case.subscription is None else {"_retry_policy": case.subscription}
            )
            subscribed[name] = subscribe(api, name, url, **options)
        for name in CASES:
            api.post_bodies(name, name)
        for name, case in CASES.items():
            if case.changed is not None:
                change = {"op": "replace", "path": "/metadata/_retry_policy", "value": case.changed}
                expect(api.patch(name, [change]), 200)
        yield Running(farm, subscribed)


@pytest.mark.slow
def test_the_first_try_comes_at_once(running: Running) -> None:
    """And the others while the next tests run; the last one here looks at them."""
    for name, case in CASES.items():
        running.farm.wait_for(1, path=f"{case.path}/{name}/")


# -- how many --------------------------------------------------------------------------------------


def test_a_delivery_is_tried_a_hundred_times_at_most(api: Api, farm: Farm) -> None:
    policy = {**GENTLE, "retries_with_no_delay": 10_000}
    one = subscribe(api, "q", farm.url("/status/500"), _retry_policy=policy)
    api.post_bodies("q", 1)
    one.until(failed=1, pending=0)
    assert len(farm.requests) == 100
    assert [entry["attempts"] for entry in one.failed()] == [100]


def test_the_first_success_ends_it(private_server: Callable[..., LiveServer], farm: Farm) -> None:
    server = private_server(**OPEN)  # its counters are for this test alone
    api = server.api()
    one = subscribe(api, "q", farm.url("/fail/2"), _retry_policy=FOUR_TIMES)
    api.post_bodies("q", 1)
    status = one.until(delivered=1, pending=0)
    assert status["failed"] == 0
    assert [a["outcome"] for a in status["attempts"]] == ["delivered", "failed", "failed"]
    assert len(farm.requests) == 3
    assert count(server, 'nusku_deliveries_total{event="retried"}') == 2


def test_each_message_has_its_own_tries(api: Api, farm: Farm) -> None:
    one = subscribe(api, "q", farm.url("/status/500"), _retry_policy=FOUR_TIMES)
    api.post_bodies("q", 1, 2, 3)
    farm.wait_for(15)
    one.do("pause")
    bodies = [request.json()["body"] for request in farm.requests]
    assert {bodies.count(n) for n in (1, 2, 3)} <= {5, 6}


# -- which answers ---------------------------------------------------------------------------------

AGAIN = (300, 301, 302, 303, 304, 307, 308, 408, 425, 429, 500, 501, 502, 503, 504, 507, 599)
FINAL = (
    400,
    401,
    402,
    403,
    404,
    405,
    406,
    407,
    409,
    410,
    411,
    413,
    415,
    418,
    421,
    422,
    426,
    451,
    499,
)
SUCCESS = (200, 201, 202, 203, 204, 205, 206, 226, 299)


def test_what_is_tried_again(api: Api, farm: Farm) -> None:
    subscribers = {
        status: subscribe(api, "q", farm.url(f"/fail/1/{status}"), _retry_policy=FOUR_TIMES)
        for status in AGAIN
    }
    api.post_bodies("q", 1)
    for status, one in subscribers.items():
        shown = one.until(delivered=1, pending=0)
        assert [a["status"] for a in shown["attempts"]] == [200, status]
    assert len(farm.requests) == 2 * len(AGAIN)


def test_what_is_final(api: Api, farm: Farm) -> None:
    subscribers = {
        status: subscribe(api, "q", farm.url(f"/status/{status}"), _retry_policy=FOUR_TIMES)
        for status in FINAL
    }
    api.post_bodies("q", 1)
    for status, one in subscribers.items():
        shown = one.until(failed=1, pending=0)
        assert [(a["outcome"], a["status"]) for a in shown["attempts"]] == [("refused", status)]
        assert shown["state"] == ("paused" if status == 410 else "active")
    assert len(farm.requests) == len(FINAL)


def test_what_is_success(api: Api, farm: Farm) -> None:
    subscribers = [subscribe(api, "q", farm.url(f"/status/{status}")) for status in SUCCESS]
    api.post_bodies("q", 1)
    for one in subscribers:
        one.until(delivered=1, pending=0, failed=0)
    assert len(farm.requests) == len(SUCCESS)


def test_a_final_answer_with_retry_after_is_final(api: Api, farm: Farm) -> None:
    url = farm.url("/retry-after/400", value="1")
    one = subscribe(api, "q", url, _retry_policy=FOUR_TIMES)
    api.post_bodies("q", 1)
    one.until(failed=1, pending=0)
    assert len(farm.requests) == 1


def test_redirects_are_not_followed(api: Api, farm: Farm) -> None:
    url = farm.url("/redirect/307", to=farm.url("/ok/elsewhere"))
    one = subscribe(api, "q", url, _retry_policy=FOUR_TIMES)
    api.post_bodies("q", 1)
    farm.wait_for(5, path="/redirect")
    eventually(lambda: one.status()["attempts"])
    assert farm.to("/ok") == []


@pytest.mark.parametrize("path", ["/reset", "/half", "/garbage"])
def test_broken_answers_are_tried_again(api: Api, farm: Farm, path: str) -> None:
    one = subscribe(api, "q", farm.url(path), _retry_policy=FOUR_TIMES)
    api.post_bodies("q", 1)
    farm.wait_for(5)
    attempts = eventually(lambda: len(s := one.status()["attempts"]) >= 5 and s)
    assert {(a["outcome"], a["reason"], a["status"]) for a in attempts} == {
        ("failed", "connection", None)
    }


def test_who_does_not_listen_yet_is_tried_again(api: Api) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        policy = {**GENTLE, "retries_with_no_delay": 0, "minimum_delay_retries": 5}
        one = subscribe(api, "q", f"http://127.0.0.1:{port}/ok", _retry_policy=policy)
        api.post_bodies("q", 1)
        (attempt,) = eventually(lambda: one.status()["attempts"])
        assert (attempt["outcome"], attempt["reason"]) == ("failed", "connection")
    with Farm(port=port) as farm:
        farm.wait_for(1)
        one.until(delivered=1, pending=0)


@pytest.mark.slow
def test_who_takes_too_long_is_tried_again(
    shared_server: Callable[..., LiveServer], farm: Farm
) -> None:
    api = shared_server(**OPEN, delivery_timeout=0.4).api()
    policy = {**GENTLE, "retries_with_no_delay": 2}
    subscribers = [
        subscribe(api, "q", farm.url(path), _retry_policy=policy)
        for path in ("/hang", "/drip", "/slow/30", "/endless-headers")
    ]
    api.post_bodies("q", 1)
    farm.wait_for(12)
    for one in subscribers:
        attempts = one.attempts(1)
        assert {a["outcome"] for a in attempts} == {"failed"}
        assert all(a["reason"] in {"timeout", "connection"} for a in attempts)
        assert all(a["duration_ms"] < 5000 for a in attempts)


# -- the delays ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_delays_are_those_of_the_policy(running: Running, name: str) -> None:
    case, one = CASES[name], running.subscribed[name]
    path = f"{case.path}/{name}/"
    requests = running.farm.wait_for(len(case.gaps) + 1, timeout=40, path=path)
    if case.over:
        one.until(failed=1, pending=0)
        assert [entry["attempts"] for entry in one.failed()] == [len(case.gaps) + 1]
        requests = running.farm.to(path)
        assert len(requests) == len(case.gaps) + 1
        assert len(one.status()["attempts"]) == len(requests)
    else:
        assert one.status()["failed"] == 0
    assert len({request.body for request in requests}) == 1
    came = [b.time - a.time for a, b in pairwise(requests)]
    for gap, least in zip(came, case.gaps, strict=False):
        assert least - 0.01 <= gap <= least + LATE_S, came
