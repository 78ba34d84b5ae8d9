"""To see how deliveries go, and what can be done about it: the resources below a subscription."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from tests.live import QUEUES, TOPICS, Api, Kind, LiveServer, eventually, expect, next_link
from tests.notify import receivers
from tests.notify.live import GENTLE, OPEN, Subscribed, count, subscribe, told
from tests.notify.receivers import Exchange, Farm, Received

MEMBERS = {"state", "reason", "pending", "failed", "delivered", "oldest_pending_age", "attempts"}
PUT_OFF = {**GENTLE, "maximum_delay": 3600, "minimum_delay": 3000, "retries_with_no_delay": 0}
"""A policy under which what failed once does not come again while a test looks."""


@pytest.fixture
def server(shared_server: Callable[..., LiveServer]) -> LiveServer:
    return shared_server(**OPEN)


@pytest.fixture(params=[QUEUES, TOPICS], ids=lambda kind: kind.noun)
def api(request: pytest.FixtureRequest, server: LiveServer) -> Api:
    """A client that speaks of queues, then one that speaks of topics."""
    kind: Kind = request.param
    return server.api().but(kind=kind)


@pytest.fixture
def queues(server: LiveServer) -> Api:
    """A client that speaks of queues: for what takes its time."""
    return server.api()


class Moody:
    """A receiver that answers as it is told to; `status` may be changed at any time."""

    def __init__(self, farm: Farm, path: str = "/moody", status: int = 418) -> None:
        self.status = status
        self.url = farm.url(path)
        farm.on(path, self)

    async def __call__(self, to: Exchange) -> None:
        to.answer(self.status)


def given_up(api: Api, farm: Farm, *bodies: Any, **options: Any) -> tuple[Subscribed, Moody]:
    """A subscription that has given up these, in this order."""
    receiver = Moody(farm)
    one = subscribe(api, "q", receiver.url, **options)
    for n, body in enumerate(bodies, 1):
        api.post_bodies("q", body)
        one.until(failed=n, pending=0)
    return one, receiver


# -- status ----------------------------------------------------------------------------------------


def test_a_new_subscription_has_nothing_to_show(api: Api, farm: Farm) -> None:
    one = subscribe(api, "q", farm.url())
    assert one.status() == {
        "state": "active",
        "reason": "",
        "pending": 0,
        "failed": 0,
        "delivered": 0,
        "oldest_pending_age": None,
        "attempts": [],
    }
    assert one.failed() == []


def test_attempts_are_shown_newest_first(api: Api, farm: Farm) -> None:
    began = datetime.now(UTC)
    receiver = Moody(farm, status=200)
    one = subscribe(api, "q", receiver.url, _retry_policy=PUT_OFF)
    for n, status in enumerate((204, 500, 307, 404), 1):
        receiver.status = status
        api.post_bodies("q", status)
        one.attempts(n)
    shown = one.until(pending=2)
    assert set(shown) == MEMBERS
    attempts = shown.pop("attempts")
    assert [(a["outcome"], a["reason"], a["status"]) for a in attempts] == [
        ("refused", "status", 404),
        ("failed", "redirect", 307),
        ("failed", "status", 500),
        ("delivered", "", 204),
    ]
    times = []
    for attempt in attempts:
        assert set(attempt) == {"time", "outcome", "reason", "status", "duration_ms", "detail"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", attempt["time"])
        times.append(datetime.fromisoformat(attempt["time"]))
        assert 0 < attempt["duration_ms"] < 20_000
        assert bool(attempt["detail"]) == (attempt["outcome"] != "delivered")
    assert times == sorted(times, reverse=True)
    assert began.timestamp() - 1 < times[-1].timestamp() <= times[0].timestamp() < time.time() + 1
    shown.pop("oldest_pending_age")
    assert shown == {"state": "active", "reason": "", "pending": 2, "failed": 1, "delivered": 1}


def test_the_age_is_that_of_the_oldest(queues: Api, farm: Farm) -> None:
    one = subscribe(queues, "q", farm.url())
    one.do("pause")
    queues.post_bodies("q", 1)
    posted = time.time()
    eventually(lambda: one.status()["oldest_pending_age"])
    assert time.time() - posted > 0.9
    queues.post_bodies("q", 2)
    assert one.until(pending=2)["oldest_pending_age"] >= 1
    one.do("resume")
    one.until(pending=0, oldest_pending_age=None)


def test_twenty_attempts_are_kept(queues: Api, farm: Farm) -> None:
    one = subscribe(queues, "q", farm.url())
    for n in range(30):
        queues.post_bodies("q", n)
        farm.wait_for(n + 1)
        if n == 15:  # some are written by then, others not
            time.sleep(1.2)
    assert len(one.until(delivered=30, pending=0)["attempts"]) == 20


def test_what_is_in_an_answer_is_not_shown(queues: Api, farm: Farm) -> None:
    """Nor headers that are sent, which may hold a password."""

    async def leak(to: Exchange) -> None:
        to.answer(500, b"hidden-body", X_Leak="hidden-header")

    farm.on("/leak", leak)
    one = subscribe(
        queues, "q", farm.url("/leak"), post_headers={"X-Key": "hidden-key"}, _retry_policy=PUT_OFF
    )
    queues.post_bodies("q", 1)
    farm.wait_for(1)
    eventually(lambda: one.status()["attempts"])
    shown = queues.get(one.path("status")).text
    assert "hidden" not in shown
    assert "hidden" not in queues.server.log()


# -- given up --------------------------------------------------------------------------------------


def test_what_was_given_up_is_listed_oldest_first(api: Api, farm: Farm) -> None:
    one, _ = given_up(api, farm, "a", {"b": 1}, "c")
    listed = one.failed()
    assert [entry["body"] for entry in listed] == [
        {"ttl": 3600, "body": body, "queue_name": "q", "Message_Type": "Notification"}
        for body in ("a", {"b": 1}, "c")
    ]
    assert len({entry["id"] for entry in listed}) == 3
    for entry in listed:
        assert set(entry) == {"id", "age", "attempts", "reason", "body"}
        assert entry["attempts"] == 1
        assert entry["reason"]
        assert 0 <= entry["age"] < 20


def test_given_up_deliveries_come_in_pages(queues: Api, farm: Farm) -> None:
    one, _ = given_up(queues, farm, *range(5))
    href: str | None = one.path("failed") + "?limit=2"
    seen: list[list[Any]] = []
    while href is not None:
        page = expect(queues.get(href), 200)
        seen.append([entry["body"]["body"] for entry in page["failed"]])
        href = next_link(page)
    assert seen == [[0, 1], [2, 3], [4], []]
    assert one.failed("?marker=nonsense") == []
    expect(queues.get(one.path("failed") + "?limit=1000"), 400)


def test_given_up_deliveries_are_counted_and_logged(queues: Api, farm: Farm) -> None:
    server = queues.server
    before = count(server, 'nusku_deliveries_total{event="given_up"}')
    one, _ = given_up(queues, farm, 1, 2)
    assert count(server, 'nusku_deliveries_total{event="given_up"}') == before + 2
    lines = [line for line in server.log().splitlines() if one.id in line]
    assert len([line for line in lines if "a delivery was given up" in line]) == 2


@pytest.mark.slow
def test_given_up_deliveries_are_kept_for_as_long_as_set(
    private_server: Callable[..., LiveServer], farm: Farm
) -> None:
    """But for one that is replayed in time: it does not end with the time it was kept for."""
    api = private_server(**OPEN, delivery_keep=2).api()
    one, receiver = given_up(api, farm, 1, 2)
    first, second = one.failed()
    one.do("pause")
    assert one.replay([second["id"]]) == 1
    eventually(lambda: one.status()["failed"] == 0)
    assert one.failed() == []
    assert one.replay() == 0
    assert one.replay([first["id"]]) == 0
    receiver.status = 200
    one.do("resume")
    one.until(pending=0, failed=0, delivered=1)
    assert told(farm.requests) == [1, 2, 2]


def test_a_dead_letter_queue_gets_copies(api: Api, farm: Farm) -> None:
    one, receiver = given_up(api, farm, {"a": 1}, _dead_letter_queue="dead")
    queues = api.but(kind=QUEUES)
    (copy,) = expect(queues.list_messages("dead"), 200)["messages"]
    assert copy["body"] == {"a": 1}
    assert copy["ttl"] == 3600
    assert one.status()["failed"] == 1  # it is kept for replay as well
    # Given up once more, it is not copied once more.
    assert one.replay() == 1
    eventually(lambda: len(farm.requests) == 2)
    one.until(failed=1, pending=0)
    assert queues.listed("dead") == [{"a": 1}]
    receiver.status = 200
    assert one.replay() == 1
    one.until(failed=0, pending=0, delivered=1)
    assert queues.listed("dead") == [{"a": 1}]


def test_each_subscription_copies_to_its_own_dead_letter_queue(api: Api, farm: Farm) -> None:
    subscribers = [
        subscribe(api, "q", farm.url(f"/status/400/{n}"), _dead_letter_queue=f"dead-{n}")
        for n in range(2)
    ]
    api.post_bodies("q", "x", "y", ttl=77)
    for n, one in enumerate(subscribers):
        one.until(failed=2)
        queues = api.but(kind=QUEUES)
        assert sorted(queues.listed(f"dead-{n}")) == ["x", "y"]


def test_copies_in_a_dead_letter_queue_tell_nobody(queues: Api, farm: Farm) -> None:
    """Or else a queue that is its own dead-letter queue would never come to rest."""
    one = subscribe(queues, "q", farm.url("/status/400"), _dead_letter_queue="q")
    queues.post_bodies("q", "x")
    one.until(failed=1, pending=0)
    subscribe(queues, "q", farm.url("/ok"))
    queues.post_bodies("q", "y")
    farm.wait_for(1, path="/ok")
    one.until(failed=2, pending=0)
    assert told(farm.to("/status")) == ["x", "y"]


# -- replay ----------------------------------------------------------------------------------------


def test_all_that_was_given_up_can_be_replayed(api: Api, farm: Farm) -> None:
    one, receiver = given_up(api, farm, 1, 2, 3)
    ids = {r.headers.get("webhook-id") for r in farm.requests}
    receiver.status = 200
    assert one.replay() == 3
    farm.wait_for(6)
    status = one.until(pending=0, failed=0, delivered=3)
    assert len(status["attempts"]) == 6
    assert sorted(told(farm.requests[3:])) == [1, 2, 3]
    assert one.failed() == []
    assert one.replay() == 0
    assert ids == {None}


def test_a_replayed_delivery_is_the_same_delivery(api: Api, farm: Farm) -> None:
    """Its id for the receiver is the one that it had, so that duplicates can be told."""
    one, receiver = given_up(api, farm, 1, _signing=True)
    receiver.status = 200
    one.replay()
    first, second = farm.wait_for(2)
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body


def test_some_can_be_replayed_by_id(api: Api, farm: Farm) -> None:
    one, receiver = given_up(api, farm, *range(5))
    ids = [entry["id"] for entry in one.failed()]
    receiver.status = 200
    assert one.replay([ids[3], ids[1], ids[3]]) == 2
    one.until(pending=0, failed=3, delivered=2)
    assert sorted(told(farm.requests[5:])) == [1, 3]
    assert [entry["body"]["body"] for entry in one.failed()] == [0, 2, 4]
    assert one.replay([ids[1]]) == 0  # no longer given up


def test_unknown_ids_are_passed_over(queues: Api, farm: Farm) -> None:
    one, _ = given_up(queues, farm, 1)
    strange = ["", "0", "-1", "zz", "ffffffff", "f" * 400, "1e5", "٣", "../1", one.id]
    assert one.replay(strange) == 0
    assert one.replay([]) == 0
    assert one.status()["failed"] == 1
    assert len(farm.requests) == 1


def test_ids_of_another_subscription_are_unknown(api: Api, farm: Farm) -> None:
    one, _ = given_up(api, farm, "mine")
    other = subscribe(api, "q", farm.url("/status/400"))
    api.post_bodies("q", "others")
    other.until(failed=1)
    (id_,) = [entry["id"] for entry in other.failed()]
    assert one.replay([id_]) == 0
    assert [entry["body"]["body"] for entry in one.failed()] == ["mine", "others"]


def test_a_replayed_delivery_has_all_its_tries_again(queues: Api, farm: Farm) -> None:
    """With a policy of two tries, it is given up after two more."""
    policy = {**GENTLE, "retries_with_no_delay": 1, "minimum_delay_retries": 0}
    receiver = Moody(farm)
    one = subscribe(queues, "q", receiver.url, _retry_policy=policy)
    queues.post_bodies("q", 1)
    one.until(failed=1)
    receiver.status = 500
    one.replay()
    farm.wait_for(3)
    receiver.status = 418
    one.until(failed=1, pending=0, within_s=5)
    assert one.failed()[0]["attempts"] == len(farm.requests) - 1


@pytest.mark.parametrize("body", ["[]", '"x"', '{"ids": "1"}', '{"ids": [1]}', "{", "{}"])
def test_nonsense_is_not_replayed(queues: Api, farm: Farm, body: str) -> None:
    one = subscribe(queues, "q", farm.url())
    expect(queues.send("POST", one.path("replay"), body), 400)


# -- pause and resume ------------------------------------------------------------------------------


def test_a_paused_subscription_waits(api: Api, farm: Farm) -> None:
    one = subscribe(api, "q", farm.url("/ok/one"))
    other = subscribe(api, "q", farm.url("/ok/other"))
    one.do("pause")
    one.do("pause")
    status = one.status()
    assert (status["state"], status["reason"]) == ("paused", "requested")
    api.post_bodies("q", 1, 2)
    farm.wait_for(2, path="/ok/other")
    other.until(pending=0)
    one.until(pending=2, delivered=0, attempts=[])
    assert farm.to("/ok/one") == []
    one.do("resume")
    farm.wait_for(2, path="/ok/one")
    one.until(state="active", reason="", pending=0, delivered=2)


def test_a_pause_stops_what_is_under_way(api: Api, farm: Farm) -> None:
    """Not even what was taken ahead is sent; at most four attempts are under way."""
    one = subscribe(api, "q", farm.url("/slow/0.05", to="one"))
    api.post_bodies("q", *range(100))
    farm.wait_for(10)
    one.do("pause")
    heard = len(farm.requests)
    subscribe(api, "other", farm.url("/slow/0.05", to="two"))
    api.post_bodies("other", "a", "b", "c", "d", "e")
    farm.wait_for(5, path="/slow/0.05?to=two")
    heard_later = len(farm.to("/slow/0.05?to=one"))
    assert heard_later <= heard + 4
    status = one.until(pending=100 - heard_later)
    assert status["state"] == "paused"
    farm.on("/slow/0.05", receivers.ok)
    one.do("resume")
    one.until(pending=0, delivered=100)
    assert sorted(told(farm.to("/slow/0.05?to=one"))) == list(range(100))


def test_pings_go_to_the_paused_as_well(api: Api, farm: Farm) -> None:
    one = subscribe(api, "q", farm.url())
    one.do("pause")
    assert one.do("ping")["outcome"] == "delivered"
    assert one.status()["state"] == "paused"


def test_who_answers_410_is_paused(api: Api, farm: Farm) -> None:
    receiver = Moody(farm, status=410)
    one = subscribe(api, "q", receiver.url)
    api.post_bodies("q", 1)
    status = one.until(failed=1)
    assert (status["state"], status["reason"], status["pending"]) == ("paused", "gone", 0)
    assert [(a["outcome"], a["status"]) for a in status["attempts"]] == [("refused", 410)]
    other = subscribe(api, "q", farm.url())
    api.post_bodies("q", 2, 3)
    other.until(delivered=2)
    one.until(pending=2)
    assert len(farm.to("/moody")) == 1
    receiver.status = 200
    one.do("resume")
    one.until(state="active", reason="", pending=0, failed=1, delivered=2)
    one.replay()
    one.until(failed=0, delivered=3)


def test_another_subscriber_is_not_paused_for_the_old_one(api: Api, farm: Farm) -> None:
    receiver = Moody(farm, status=410)
    one = subscribe(api, "q", receiver.url)
    api.post_bodies("q", 1)
    one.until(state="paused", failed=1)
    api.post_bodies("q", 2)
    one.until(pending=1)
    one.patch(subscriber=farm.url("/ok"))
    one.until(state="active", reason="", pending=0, delivered=1)


# -- ping ------------------------------------------------------------------------------------------


def test_a_ping_is_one_attempt(api: Api, farm: Farm) -> None:
    one = subscribe(api, "q", farm.url(), post_headers={"X-Mine": "yes"})
    answer = one.do("ping")
    assert 0 < answer.pop("duration_ms") < 20_000
    assert answer == {"outcome": "delivered", "reason": "", "status": 200, "detail": ""}
    (request,) = farm.requests
    assert request.headers["x-mine"] == "yes"
    document = request.json()
    assert set(document) == {"ttl", "body", "queue_name", "Message_Type"}
    assert (document["queue_name"], document["Message_Type"]) == ("q", "Notification")
    status = one.status()
    assert (status["delivered"], status["pending"], len(status["attempts"])) == (0, 0, 1)


@pytest.mark.parametrize(
    ("path", "outcome", "reason", "status"),
    [
        ("/status/503", "failed", "status", 503),
        ("/status/404", "refused", "status", 404),
        ("/status/410", "refused", "status", 410),
        ("/reset", "failed", "connection", None),
        ("/garbage", "failed", "connection", None),
    ],
)
def test_a_ping_is_not_tried_again(
    queues: Api, farm: Farm, path: str, outcome: str, reason: str, status: int | None
) -> None:
    one = subscribe(queues, "q", farm.url(path))
    answer = one.do("ping")
    assert (answer["outcome"], answer["reason"], answer["status"]) == (outcome, reason, status)
    assert answer["detail"]
    shown = one.status()
    assert (shown["failed"], shown["pending"], shown["state"]) == (0, 0, "active")
    assert len(farm.requests) == 1


# -- secrets ---------------------------------------------------------------------------------------


def verifies(secret: str, request: Received) -> bool:
    try:
        Webhook(secret).verify(request.body, dict(request.headers))
    except WebhookVerificationError:
        return False
    return True


def test_secrets_are_changed_without_a_gap(api: Api, farm: Farm) -> None:
    """The newest old secret goes on to count beside the new one."""
    one = subscribe(api, "q", farm.url(), _signing=True)
    secrets = [one.secret]
    for n in range(3):
        api.post_bodies("q", n)
        request = farm.wait_for(n + 1)[n]
        counting = secrets[-2:]
        assert [verifies(secret, request) for secret in secrets] == [
            secret in counting for secret in secrets
        ]
        assert len(request.headers["webhook-signature"].split()) == len(counting)
        made = one.do("secret")
        assert list(made) == ["signing_secret"]
        secrets.append(made["signing_secret"])
    assert len(set(secrets)) == 4
    assert one.show()["options"] == {"_signing": True}
    shown = api.get(api.path("q", "subscriptions")).text + api.get(one.path("status")).text
    for secret in secrets:
        assert secret not in shown
        assert secret.removeprefix("whsec_") not in api.server.log()


def test_an_unsigned_subscription_is_signed_from_then_on(api: Api, farm: Farm) -> None:
    one = subscribe(api, "q", farm.url())
    secret = one.do("secret")["signing_secret"]
    api.post_bodies("q", 1)
    (request,) = farm.wait_for(1)
    assert verifies(secret, request)
    one.patch(options={"_signing": True})  # keeps what there is
    assert one.do("ping")["outcome"] == "delivered"
    assert verifies(secret, farm.requests[1])
    one.patch(options={})
    one.do("ping")
    assert "webhook-signature" not in farm.requests[2].headers


def test_a_new_secret_counts_for_what_is_pending(api: Api, farm: Farm) -> None:
    one = subscribe(api, "q", farm.url(), _signing=True)
    one.do("pause")
    api.post_bodies("q", 1)
    secret = one.do("secret")["signing_secret"]
    one.do("resume")
    (request,) = farm.wait_for(1)
    assert verifies(secret, request)
    assert verifies(one.secret, request)


# -- changes ---------------------------------------------------------------------------------------


def test_what_is_pending_goes_to_the_new_subscriber(queues: Api, farm: Farm) -> None:
    policy = {**GENTLE, "retries_with_no_delay": 0}
    old, new = Moody(farm, "/old", 500), Moody(farm, "/new", 200)
    one = subscribe(queues, "q", old.url, _retry_policy=policy)
    queues.post_bodies("q", 1, 2)
    farm.wait_for(2)
    one.patch(subscriber=new.url)
    asked = len(farm.to("/old"))
    one.until(pending=0, delivered=2)
    assert sorted(told(farm.to("/new"))) == [1, 2]
    assert len(farm.to("/old")) == asked


def test_a_backlog_changes_its_way_at_once(api: Api, farm: Farm) -> None:
    one = subscribe(api, "q", farm.url("/slow/0.05"))
    api.post_bodies("q", *range(100))
    farm.wait_for(10)
    one.patch(subscriber=farm.url("/ok"))
    heard = len(farm.to("/slow"))
    one.until(pending=0, delivered=100)
    assert len(farm.to("/slow")) <= heard + 4
    assert sorted(told(farm.requests)) == list(range(100))


def test_new_options_count_for_what_is_pending(api: Api, farm: Farm) -> None:
    one = subscribe(api, "q", farm.url(), post_headers={"X-Mine": "old"})
    one.do("pause")
    api.post_bodies("q", 1)
    one.patch(options={"post_headers": {"X-Mine": "new"}, "post_data": "fixed"})
    one.do("resume")
    (request,) = farm.wait_for(1)
    assert request.headers["x-mine"] == "new"
    assert request.body == b"fixed"


# -- who may ask -----------------------------------------------------------------------------------


def test_only_of_ones_own(api: Api, farm: Farm) -> None:
    """Not by another project, nor through another queue, nor once it is gone."""
    one = subscribe(api, "q", farm.url())
    subscribe(api, "r", farm.url())
    gone = subscribe(api, "gone", farm.url())
    gone.delete()
    other_kind = QUEUES if api.kind is TOPICS else TOPICS
    for wrong in (
        Subscribed(api.stranger(), "q", one.id),
        Subscribed(api, "r", one.id),
        Subscribed(api.but(kind=other_kind), "q", one.id),
        Subscribed(api, "q", "0" * 24),
        gone,
    ):
        for what in ("status", "failed"):
            expect(api.request("GET", wrong.path(what), headers=wrong.api.headers), 404)
        for what in ("pause", "resume", "replay", "ping", "secret"):
            expect(api.request("POST", wrong.path(what), headers=wrong.api.headers), 404)
    assert one.status()["state"] == "active"
    assert farm.requests == []
