"""What was answered survives a clean stop and `kill -9` (reliability, F-01, F-02, F-30)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.live import (
    TOPICS,
    Api,
    LiveServer,
    eventually,
    expect,
    ids_of,
    next_link,
    settings_environment,
)

Starter = Callable[..., LiveServer]
SETTINGS: dict[str, Any] = {"min_message_ttl": 1, "min_claim_ttl": 1, "min_claim_grace": 0}

Story = Callable[[Api], Generator[None, Api, None]]
"""What happens to one project in three lives of a server: each `yield` is an end and a start."""

STORIES: dict[str, Story] = {}


def story(function: Story) -> Story:
    """List a story; all of them are lived through together, for starting a server takes its time."""
    STORIES[function.__name__] = function
    return function


def live_through(folder: Path, end: Callable[[LiveServer], None]) -> dict[str, Exception | None]:
    """Live through all stories, with two ends in between; what went wrong in each of them."""
    outcomes: dict[str, Exception | None] = dict.fromkeys(STORIES)
    running: dict[str, Generator[None, Api, None]] = {}
    projects: dict[str, Api] = {}
    for life in range(3):
        server = LiveServer(folder, **SETTINGS).start()
        names = list(STORIES) if life == 0 else list(running)
        for name in names:
            try:
                if life == 0:
                    projects[name] = server.api()
                    running[name] = STORIES[name](projects[name])
                    next(running[name])
                else:
                    old = projects[name]
                    running[name].send(Api(server, old.project, old.client_id))
            except StopIteration:
                del running[name]
            except Exception as failure:  # noqa: BLE001 - it is the outcome, its test raises it
                outcomes[name] = failure
                del running[name]
        end(server)
    return outcomes


@pytest.fixture(scope="module", params=["stop", "kill"])
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Exception | None]:
    """What went wrong in each story: once with clean stops, once with `kill -9`."""
    end = LiveServer.stop if request.param == "stop" else LiveServer.kill
    return live_through(tmp_path_factory.mktemp("lives"), end)


def everything(api: Api, queue: str = "q") -> list[tuple[Any, ...]]:
    """All messages of a queue but for their ages."""
    query = "?echo=true&include_claimed=true&include_delayed=true&limit=20"
    messages = expect(api.list_messages(queue, query), 200)["messages"]
    return [(m["id"], m["href"], m["ttl"], m["body"]) for m in messages]


@story
def queues_and_topics_survive_with_their_metadata(api: Api) -> Generator[None, Api, None]:
    for client in (api, api.but(kind=TOPICS)):
        expect(client.create("q", {"colour": "é", "_default_message_ttl": 90}), 201)
        expect(client.create("gone"), 201)
        expect(client.drop("gone"), 204)
        add = {"op": "add", "path": "/metadata/late", "value": [1, None]}
        expect(client.patch("q", [add]), 200)
    before = [expect(c.show("q"), 200) for c in (api, api.but(kind=TOPICS))]
    api = yield
    assert [expect(c.show("q"), 200) for c in (api, api.but(kind=TOPICS))] == before
    assert api.names() == api.but(kind=TOPICS).names() == ["q"]
    assert expect(api.list_queues("?with_count=true"), 200)["count"] == 1
    expect(api.create("q"), 204)
    [message_id] = api.post_bodies("q", 1)
    assert expect(api.message("q", message_id), 200)["ttl"] == 90


@story
def messages_claims_and_delays_survive(api: Api) -> Generator[None, Api, None]:
    api.post_bodies("q", {"a": "é"}, None, [1, 2.5], "text")
    claim = api.claimed("q", "?limit=2", ttl=3000, grace=60)
    api.post_bodies("q", "delayed", delay=900)
    api.but(kind=TOPICS).post_bodies("q", "topic")
    before, stats = everything(api), api.stats("q")
    api = yield
    assert everything(api) == before
    for key in ("claimed", "free", "total"):
        assert api.stats("q")[key] == stats[key]
    assert api.listed("q") == [[1, 2.5], "text"]
    assert api.somebody_else().listed("q", "") == [[1, 2.5], "text"]
    assert api.listed("q", "") == []
    shown = expect(api.show_claim("q", claim.claim_id), 200)
    assert shown["ttl"] == 3000
    assert [message["id"] for message in shown["messages"]] == claim.ids
    expect(api.delete_message("q", claim.ids[0]), 403)
    expect(api.delete_message("q", claim.ids[0], claim.claim_id), 204)
    expect(api.renew("q", claim.claim_id, ttl=60), 204)
    expect(api.release("q", claim.claim_id), 204)
    assert api.claimed("q").bodies == [None, [1, 2.5], "text"]
    assert api.but(kind=TOPICS).listed("q") == ["topic"]


@story
def what_was_deleted_stays_deleted(api: Api) -> Generator[None, Api, None]:
    ids = api.post_bodies("q", *range(8))
    expect(api.delete_message("q", ids[0]), 204)
    expect(api.delete_messages("q", ids[1:3]), 204)
    assert api.popped("q", 1) == [3]
    claim = api.claimed("q", "?limit=1")
    expect(api.delete_message("q", claim.ids[0], claim.claim_id), 204)
    api.post_bodies("purged", 1)
    expect(api.purge("purged"), 204)
    api.post_bodies("dropped", 1)
    expect(api.drop("dropped"), 204)
    for _ in range(2):
        api = yield
        assert api.listed("q") == [5, 6, 7]
        assert api.names() == ["purged", "q"]
        assert api.stats("purged")["total"] == 0
        expect(api.show_claim("q", claim.claim_id), 404)
        for message_id in ids[:5]:
            expect(api.message("q", message_id), 404)


@story
def markers_and_positions_survive_even_a_purge(api: Api) -> Generator[None, Api, None]:
    ids = api.post_bodies("q", 1, 2, 3)
    link = next_link(expect(api.list_messages("q", "?echo=true&limit=2"), 200))
    end = next_link(expect(api.list_messages("q", "?echo=true"), 200))
    assert link is not None
    assert end is not None
    api = yield
    assert [m["body"] for m in expect(api.get(link), 200)["messages"]] == [3]
    assert api.listed("q", f"?echo=true&marker={ids[0]}") == [2, 3]
    expect(api.purge("q"), 204)
    api = yield
    new = api.post_bodies("q", 4)
    assert not set(new) & set(ids)
    for position in (link, end):
        assert [m["body"] for m in expect(api.get(position), 200)["messages"]] == [4]


@story
def a_new_queue_is_told_from_its_predecessor(api: Api) -> Generator[None, Api, None]:
    [old] = api.post_bodies("q", "old")
    claim = api.claimed("q")
    expect(api.drop("q"), 204)
    api = yield
    [new] = api.post_bodies("q", "new")
    assert new != old
    expect(api.message("q", old), 404)
    expect(api.show_claim("q", claim.claim_id), 404)
    assert api.listed("q", f"?echo=true&marker={old}") == []
    assert api.listed("q") == ["new"]


@story
def the_claim_counter_survives(api: Api) -> Generator[None, Api, None]:
    expect(api.create("q", {"_max_claim_count": 2, "_dead_letter_queue": "dead"}), 201)
    api.post_bodies("q", 1)
    for _ in range(2):
        expect(api.release("q", api.claimed("q").claim_id), 204)
        api = yield
    expect(api.claim("q"), 204)
    assert api.listed("dead") == [1]


@story
def time_goes_on_while_the_server_is_down(api: Api) -> Generator[None, Api, None]:
    api.post_bodies("q", "claimed")
    claim = api.claimed("q", ttl=1, grace=0)
    api.post_bodies("q", "delayed", delay=1)
    api.post_bodies("q", "passing", ttl=1)
    api = yield
    eventually(lambda: api.listed("q") == ["claimed", "delayed"])
    expect(api.show_claim("q", claim.claim_id), 404)
    assert api.stats("q")["total"] == 2


@story
def a_server_can_be_ended_again_and_again(api: Api) -> Generator[None, Api, None]:
    for n in range(2):
        api.post_bodies("q", n)
        api = yield
        assert api.listed("q") == list(range(n + 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", STORIES)
def test_what_was_answered_survives(name: str, outcomes: dict[str, Exception | None]) -> None:
    failure = outcomes[name]
    if failure is not None:
        raise failure


@pytest.mark.slow
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_every_acknowledged_post_is_there_after_an_end_under_load(
    end: str, private_server: Starter
) -> None:
    own = private_server().api()
    acknowledged: list[str] = []

    def produce(producer: int) -> None:
        for n in range(100_000):
            try:
                answer = own.post("q", {"body": [producer, n]})
            except (httpx.HTTPError, RuntimeError):
                return  # the server has gone, the outcome is unknown
            if answer.status_code != 201:
                assert answer.status_code == 503
                return
            acknowledged.extend(ids_of(answer))

    with ThreadPoolExecutor(8) as threads:
        working = [threads.submit(produce, producer) for producer in range(8)]
        eventually(lambda: len(acknowledged) >= 400, within_s=30)
        (own.server.stop if end == "stop" else own.server.kill)()
        for work in working:
            work.result(timeout=30)
    again = Api(private_server(), own.project, own.client_id)
    assert len(set(acknowledged)) == len(acknowledged)
    for start in range(0, len(acknowledged), 20):
        part = acknowledged[start : start + 20]
        found = expect(again.messages("q", part), 200)["messages"]
        assert [message["id"] for message in found] == part
    assert again.stats("q")["total"] >= len(acknowledged)


@pytest.mark.embedded
@pytest.mark.slow
def test_a_second_server_on_the_same_file_is_refused(private_server: Starter) -> None:
    own = private_server().api()
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
