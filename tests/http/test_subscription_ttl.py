"""How long subscriptions live (contract, 6; notifications, 8). They live for a second here."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.live import QUEUES, TOPICS, Api, Kind, LiveServer, eventually, expect
from tests.subscribing import Subscriptions

# Lives are a second long at least.
pytestmark = pytest.mark.slow


@pytest.fixture(params=[QUEUES, TOPICS], ids=lambda kind: kind.noun)
def subscriptions(
    request: pytest.FixtureRequest, shared_server: Callable[..., LiveServer]
) -> Subscriptions:
    kind: Kind = request.param
    return Subscriptions(shared_server(min_subscription_ttl=1).api().but(kind=kind))


def gone(subscriptions: Subscriptions, id_: str) -> bool:
    return subscriptions.get(id_).status_code == 404


def test_what_has_expired_is_not_there_any_more(subscriptions: Subscriptions) -> None:
    kept = subscriptions.made("http://hooks.example/kept")
    id_ = subscriptions.made("http://hooks.example/brief", ttl=1)
    begun = time.monotonic()
    assert subscriptions.ids() == [kept, id_]
    eventually(lambda: gone(subscriptions, id_))
    assert time.monotonic() - begun > 0.8
    assert subscriptions.ids() == [kept]
    expect(subscriptions.patch(id_, {"ttl": 60}), 404)
    expect(subscriptions.confirm(id_), 404)
    expect(subscriptions.get(id_, "status"), 404)
    expect(subscriptions.act(id_, "ping"), 404)
    expect(subscriptions.delete(id_), 204)


def test_who_has_expired_may_subscribe_again(subscriptions: Subscriptions) -> None:
    old = subscriptions.made(ttl=1)
    expect(subscriptions.confirm(old), 204)
    expect(subscriptions.create(), 409)
    eventually(lambda: gone(subscriptions, old))
    new = subscriptions.made(ttl=60)
    assert new != old
    assert subscriptions.shown(new)["confirmed"] is False
    assert subscriptions.ids() == [new]


def test_the_subscriber_of_an_expired_one_can_be_taken(subscriptions: Subscriptions) -> None:
    brief = subscriptions.made("http://hooks.example/1", ttl=1)
    id_ = subscriptions.made("http://hooks.example/2")
    eventually(lambda: gone(subscriptions, brief))
    expect(subscriptions.patch(id_, {"subscriber": "http://hooks.example/1"}), 204)


def test_a_shorter_ttl_ends_it_sooner(subscriptions: Subscriptions) -> None:
    id_ = subscriptions.made(ttl=3600)
    expect(subscriptions.patch(id_, {"ttl": 1}), 204)
    eventually(lambda: gone(subscriptions, id_))
    assert subscriptions.ids() == []


def test_a_new_ttl_begins_a_new_lifetime(subscriptions: Subscriptions) -> None:
    brief = subscriptions.made("http://hooks.example/brief", ttl=1)
    id_ = subscriptions.made("http://hooks.example/renewed", ttl=1)
    expect(subscriptions.patch(id_, {"ttl": 3600}), 204)
    eventually(lambda: gone(subscriptions, brief))
    assert subscriptions.shown(id_)["ttl"] == 3600


def test_age_counts_from_the_beginning_whatever_is_changed(subscriptions: Subscriptions) -> None:
    id_ = subscriptions.made(ttl=3600)
    eventually(lambda: subscriptions.shown(id_)["age"] >= 1)
    expect(subscriptions.patch(id_, {"ttl": 60}), 204)
    assert subscriptions.shown(id_)["age"] >= 1
    assert subscriptions.shown(id_)["ttl"] == 60


def test_neither_a_confirmation_nor_another_change_extends_it(
    subscriptions: Subscriptions,
) -> None:
    id_ = subscriptions.made(ttl=1)
    begun = time.monotonic()

    def used_and_gone() -> bool:
        answer = subscriptions.confirm(id_)
        other = subscriptions.patch(id_, {"options": {"a": 1}})
        again = subscriptions.act(id_, "pause")
        return {answer.status_code, other.status_code, again.status_code} == {404}

    eventually(used_and_gone)
    assert time.monotonic() - begun < 5


def test_subscribing_again_does_not_extend_it(subscriptions: Subscriptions) -> None:
    id_ = subscriptions.made(ttl=1)
    eventually(lambda: subscriptions.made(ttl=1) != id_)


def test_an_expired_one_is_no_marker_less(subscriptions: Subscriptions) -> None:
    brief = subscriptions.made("http://hooks.example/1", ttl=1)
    id_ = subscriptions.made("http://hooks.example/2")
    eventually(lambda: gone(subscriptions, brief))
    assert subscriptions.ids(f"?marker={brief}") == [id_]


def test_they_end_while_the_server_is_down(private_server: Callable[..., LiveServer]) -> None:
    server = private_server(min_subscription_ttl=1)
    api: Api = server.api()
    subscriptions = Subscriptions(api)
    kept = subscriptions.made("http://hooks.example/kept")
    subscriptions.made("http://hooks.example/brief", ttl=1)
    begun = time.monotonic()
    server.stop()
    again = Subscriptions(private_server(min_subscription_ttl=1).api(api.project))
    eventually(lambda: time.monotonic() - begun > 1.2)
    assert again.ids() == [kept]
