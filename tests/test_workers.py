"""`nusku serve --workers`, and several servers on one store: they behave as one."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from nusku.auth import api_keys
from nusku.config import Settings
from nusku.storage.registry import opened_registry
from tests.live import Api, LiveServer, ServerDidNotStart, SettingValue, eventually, expect
from tests.servers.stores import store_in

SHARED = ("postgresql", "redis")

pytestmark = [pytest.mark.slow]

Start = Callable[..., LiveServer]


@pytest.fixture(params=SHARED)
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    """Call it for one more server on a store of the test's own."""
    uri = store_in(request.param, tmp_path)
    started: list[LiveServer] = []

    def start(**settings: SettingValue) -> LiveServer:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        server = LiveServer(folder, secret_key="k" * 40, **settings)
        server.store = uri
        started.append(server.start(afresh=True))
        return server

    yield start
    for server in started:
        server.stop()


def apis(*servers: LiveServer) -> list[Api]:
    """One client of each, all in one project."""
    project = f"project-{uuid.uuid4().hex}"
    return [server.api(project) for server in servers]


def workers_of(server: LiveServer) -> list[int]:
    """The processes of the workers."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
    return [int(child) for child in children.split()]


def seen_by(server: LiveServer, name: str) -> dict[str, float]:
    """A figure by worker; of several series their sum."""
    text = httpx.get(f"{server.url}/metrics", verify=False).text
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith(name + "{"):
            labels, _, value = line.rpartition(" ")
            worker = labels.partition('worker="')[2].partition('"')[0]
            found[worker] = found.get(worker, 0.0) + float(value)
    return found


def seen_alone(server: LiveServer, name: str) -> float:
    """A figure of a server without workers."""
    text = httpx.get(f"{server.url}/metrics", verify=False).text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


def test_workers_share_the_work_and_their_figures_are_told_together(start: Start) -> None:
    server = start(workers=2)
    assert len(workers_of(server)) == 2

    def post(n: int) -> None:
        api = server.api()
        for i in range(20):
            # A connection each; nor are the system's authorities read each time, which is slow.
            with httpx.Client(base_url=server.url, verify=False) as client:
                message = {"messages": [{"body": [n, i]}]}
                path = api.path("q", "messages")
                assert client.post(path, headers=api.headers, json=message).status_code == 201

    callers = [threading.Thread(target=post, args=(n,)) for n in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    posted = seen_by(server, "nusku_messages_total")
    assert set(posted) == {"0", "1"}
    assert sum(posted.values()) == 160
    assert set(seen_by(server, "process_resident_memory_bytes")) == {"0", "1"}


def test_a_worker_that_dies_is_followed_by_another(start: Start) -> None:
    server = start(workers=2)
    api = server.api()
    api.post_bodies("q", "before")
    first, second = workers_of(server)
    os.kill(first, signal.SIGKILL)
    eventually(lambda: len(workers_of(server)) == 2 and first not in workers_of(server))
    eventually(lambda: set(seen_by(server, "process_resident_memory_bytes")) == {"0", "1"})
    assert second in workers_of(server)
    assert api.listed("q") == ["before"]


def test_workers_end_with_their_parent(start: Start) -> None:
    server = start(workers=2)
    workers = workers_of(server)
    server.kill()
    eventually(lambda: not any(alive(worker) for worker in workers))


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_start_that_is_refused_starts_no_worker_again(tmp_path: Path) -> None:
    server = LiveServer(tmp_path, workers=2)
    server.store = "redis://127.0.0.1:1"
    with pytest.raises(ServerDidNotStart, match=r"127\.0\.0\.1:1"):
        server.start(afresh=True)


def test_what_one_server_answers_is_true_on_the_other(start: Start) -> None:
    one, other = start(), start()
    here, there = apis(one, other)
    expect(here.create("q", {"_default_message_ttl": 500}), 201)
    assert expect(there.show("q"), 200)["_default_message_ttl"] == 500
    there.post_bodies("q", "first")
    change = [{"op": "replace", "path": "/metadata/_default_message_ttl", "value": 700}]
    expect(here.patch("q", change), 200)
    there.post_bodies("q", "second")
    page = expect(here.list_messages("q", "?echo=true"), 200)
    assert [m["ttl"] for m in page["messages"]] == [500, 700]
    claim = here.claimed("q", "?limit=1")
    assert there.claimed("q").bodies == ["second"]
    expect(there.delete_message("q", claim.ids[0], claim.claim_id), 204)
    expect(here.drop("q"), 204)
    assert there.listed("q") == []
    there.post_bodies("q", "third")
    assert here.listed("q") == ["third"]


def test_a_post_here_wakes_who_waits_there(start: Start) -> None:
    one, other = start(), start()
    here, there = apis(one, other)
    got: list[object] = []

    def wait() -> None:
        got.extend(there.claimed("q", "?wait=15").bodies)

    waiter = threading.Thread(target=wait)
    waiter.start()
    eventually(lambda: seen_alone(other, "nusku_waiters") == 1)
    here.post_bodies("q", "x")
    waiter.join()
    assert got == ["x"]


def test_a_key_is_taken_by_all_servers_of_a_store_until_it_is_revoked(start: Start) -> None:
    first, second = start(auth="key"), start(auth="key")
    settings = Settings(store=first.store)

    async def make() -> api_keys.NewKey:
        async with opened_registry(settings) as registry:
            return await api_keys.create(registry, "p", ())

    async def revoke(key: str) -> None:
        async with opened_registry(settings) as registry:
            await api_keys.revoke(registry, key)

    key = asyncio.run(make())
    headers = {"Client-ID": str(uuid.uuid4()), "X-Auth-Token": key.text}

    def answers() -> set[int]:
        return {
            server.client.get("/v2/queues", headers=headers).status_code
            for server in (first, second)
        }

    eventually(
        lambda: answers() == {200}, 4.0
    )  # it takes two seconds at most, on a machine at rest
    asyncio.run(revoke(key.id))
    eventually(lambda: answers() == {401}, 4.0)
