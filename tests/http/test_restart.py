"""What was answered survives: a clean stop, and `kill -9` (issue: durability; reliability, F-01, F-02)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.live import (
    TOPICS,
    Api,
    LiveServer,
    expect,
    ids_of,
    next_link,
    settings_environment,
)

Starter = Callable[..., LiveServer]
Restart = Callable[[Api], Api]


@pytest.fixture(params=["stop", "kill"])
def restart(request: pytest.FixtureRequest, private_server: Starter) -> Restart:
    """End the server of a client, cleanly or not, start it again, and give the same client of the new one."""

    def end_and_start(api: Api) -> Api:
        if request.param == "stop":
            api.server.stop()
        else:
            api.server.kill()
        again = private_server(**api.server.settings)
        return Api(again, api.project, api.client_id, api.kind)

    return end_and_start


@pytest.fixture
def own(private_server: Starter) -> Api:
    """A client of a server that the test may end."""
    return private_server(min_message_ttl=1, min_claim_ttl=1, min_claim_grace=0).api()


def everything(api: Api, queue: str = "q") -> list[tuple[Any, ...]]:
    """All messages of a queue but for their ages."""
    query = "?echo=true&include_claimed=true&include_delayed=true&limit=20"
    messages = expect(api.list_messages(queue, query), 200)["messages"]
    return [(m["id"], m["href"], m["ttl"], m["body"]) for m in messages]


def test_queues_and_topics_survive_with_their_metadata(own: Api, restart: Restart) -> None:
    for client in (own, own.but(kind=TOPICS)):
        expect(client.create("q", {"colour": "é", "_default_message_ttl": 90}), 201)
        expect(client.create("gone"), 201)
        expect(client.drop("gone"), 204)
        add = {"op": "add", "path": "/metadata/late", "value": [1, None]}
        expect(client.patch("q", [add]), 200)
    before = [expect(c.show("q"), 200) for c in (own, own.but(kind=TOPICS))]
    again = restart(own)
    assert [expect(c.show("q"), 200) for c in (again, again.but(kind=TOPICS))] == before
    assert again.names() == again.but(kind=TOPICS).names() == ["q"]
    assert expect(again.list_queues("?with_count=true"), 200)["count"] == 1
    expect(again.create("q"), 204)
    [message_id] = again.post_bodies("q", 1)
    assert expect(again.message("q", message_id), 200)["ttl"] == 90


def test_messages_claims_and_delays_survive(own: Api, restart: Restart) -> None:
    own.post_bodies("q", {"a": "é"}, None, [1, 2.5], "text")
    claim = own.claimed("q", "?limit=2", ttl=3000, grace=60)
    own.post_bodies("q", "delayed", delay=900)
    own.but(kind=TOPICS).post_bodies("q", "topic")
    before, stats = everything(own), own.stats("q")
    again = restart(own)
    assert everything(again) == before
    for key in ("claimed", "free", "total"):
        assert again.stats("q")[key] == stats[key]
    assert again.listed("q") == [[1, 2.5], "text"]
    assert again.somebody_else().listed("q", "") == [[1, 2.5], "text"]
    assert again.listed("q", "") == []
    shown = expect(again.show_claim("q", claim.claim_id), 200)
    assert shown["ttl"] == 3000
    assert [message["id"] for message in shown["messages"]] == claim.ids
    expect(again.delete_message("q", claim.ids[0]), 403)
    expect(again.delete_message("q", claim.ids[0], claim.claim_id), 204)
    expect(again.renew("q", claim.claim_id, ttl=60), 204)
    expect(again.release("q", claim.claim_id), 204)
    assert again.claimed("q").bodies == [None, [1, 2.5], "text"]
    assert again.but(kind=TOPICS).listed("q") == ["topic"]


def test_what_was_deleted_stays_deleted(own: Api, restart: Restart) -> None:
    ids = own.post_bodies("q", *range(8))
    expect(own.delete_message("q", ids[0]), 204)
    expect(own.delete_messages("q", ids[1:3]), 204)
    assert own.popped("q", 1) == [3]
    claim = own.claimed("q", "?limit=1")
    expect(own.delete_message("q", claim.ids[0], claim.claim_id), 204)
    own.post_bodies("purged", 1)
    expect(own.purge("purged"), 204)
    own.post_bodies("dropped", 1)
    expect(own.drop("dropped"), 204)
    again = restart(own)
    assert again.listed("q") == [5, 6, 7]
    assert again.names() == ["purged", "q"]
    assert again.stats("purged")["total"] == 0
    expect(again.show_claim("q", claim.claim_id), 404)
    for message_id in ids[:5]:
        expect(again.message("q", message_id), 404)


def test_markers_and_positions_survive_even_a_purge(own: Api, restart: Restart) -> None:
    ids = own.post_bodies("q", 1, 2, 3)
    link = next_link(expect(own.list_messages("q", "?echo=true&limit=2"), 200))
    end = next_link(expect(own.list_messages("q", "?echo=true"), 200))
    assert link is not None
    assert end is not None
    again = restart(own)
    assert [m["body"] for m in expect(again.get(link), 200)["messages"]] == [3]
    assert again.listed("q", f"?echo=true&marker={ids[0]}") == [2, 3]
    expect(again.purge("q"), 204)
    third = restart(again)
    new = third.post_bodies("q", 4)
    assert not set(new) & set(ids)
    for position in (link, end):
        assert [m["body"] for m in expect(third.get(position), 200)["messages"]] == [4]


def test_a_new_queue_is_told_from_its_predecessor(own: Api, restart: Restart) -> None:
    [old] = own.post_bodies("q", "old")
    claim = own.claimed("q")
    expect(own.drop("q"), 204)
    again = restart(own)
    [new] = again.post_bodies("q", "new")
    assert new != old
    expect(again.message("q", old), 404)
    expect(again.show_claim("q", claim.claim_id), 404)
    assert again.listed("q", f"?echo=true&marker={old}") == []
    assert again.listed("q") == ["new"]


def test_the_claim_counter_survives(own: Api, restart: Restart) -> None:
    expect(own.create("q", {"_max_claim_count": 2, "_dead_letter_queue": "dead"}), 201)
    own.post_bodies("q", 1)
    expect(own.release("q", own.claimed("q").claim_id), 204)
    again = restart(own)
    expect(again.release("q", again.claimed("q").claim_id), 204)
    third = restart(again)
    expect(third.claim("q"), 204)
    assert third.listed("dead") == [1]


@pytest.mark.slow
def test_time_goes_on_while_the_server_is_down(own: Api, restart: Restart) -> None:
    own.post_bodies("q", "claimed")
    claim = own.claimed("q", ttl=1, grace=0)
    own.post_bodies("q", "delayed", delay=1)
    own.post_bodies("q", "passing", ttl=1)
    own.post_bodies("clock", 1, ttl=1)
    while own.stats("clock")["total"]:
        pass
    again = restart(own)
    assert again.listed("q") == ["claimed", "delayed"]
    expect(again.show_claim("q", claim.claim_id), 404)
    assert again.stats("q")["total"] == 2


@pytest.mark.slow
def test_every_acknowledged_post_is_there_after_an_end_under_load(
    own: Api, restart: Restart
) -> None:
    acknowledged: list[tuple[str, int]] = []

    def produce(producer: int) -> None:
        for n in range(100_000):
            try:
                answer = own.post("q", {"body": [producer, n]})
            except (httpx.HTTPError, RuntimeError):
                return  # the server has gone, the outcome is unknown
            if answer.status_code != 201:
                assert answer.status_code == 503
                return
            acknowledged.append((ids_of(answer)[0], n))

    with ThreadPoolExecutor(8) as threads:
        working = [threads.submit(produce, producer) for producer in range(8)]
        while len(acknowledged) < 400:
            assert not all(work.done() for work in working)
        again = restart(own)
        for work in working:
            work.result(timeout=30)
    ids = [message_id for message_id, _ in acknowledged]
    assert len(set(ids)) == len(ids)
    for start in range(0, len(ids), 20):
        part = ids[start : start + 20]
        found = expect(again.messages("q", part), 200)["messages"]
        assert [message["id"] for message in found] == part
    assert again.stats("q")["total"] >= len(ids)


def test_a_second_server_on_the_same_file_is_refused(own: Api) -> None:
    command = [sys.executable, "-m", "nusku", "serve", "--port", "0"]
    command += ["--store", f"sqlite:///{own.server.database}"]
    second = subprocess.run(
        command,
        env=settings_environment({}),
        cwd=own.server.folder,
        capture_output=True,
        timeout=30,
        text=True,
        check=False,
    )
    assert second.returncode == 2
    assert second.stdout == ""
    assert second.stderr.startswith("nusku: ")
    assert second.stderr.count("\n") == 1
    expect(own.create("still-served"), 201)


def test_an_ended_server_frees_its_file_and_can_be_started_again_at_once(
    own: Api, restart: Restart
) -> None:
    api = own
    for n in range(3):
        api.post_bodies("q", n)
        api = restart(api)
    assert api.listed("q") == [0, 1, 2]
