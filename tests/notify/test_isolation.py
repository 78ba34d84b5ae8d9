"""Endpoints that hang, and what the others notice of it: nothing."""

from __future__ import annotations

import re
import resource
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.live import Api, LiveServer, eventually
from tests.notify import receivers
from tests.notify.live import GENTLE, OPEN, count, subscribe, told
from tests.notify.receivers import Behaviour, Exchange, Farm

SOON_S = 6.0
"""Much longer than a healthy delivery takes, and much shorter than the fifteen of an attempt."""
FILES = 8000


class Counting:
    """A behaviour that counts how many requests for each path it is busy with."""

    def __init__(self, inner: Behaviour) -> None:
        self.inner = inner
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    async def __call__(self, to: Exchange) -> None:
        path = to.request.path.partition("?")[0]
        self.now[path] += 1
        self.most[path] = max(self.most[path], self.now[path])
        try:
            await self.inner(to)
        finally:
            self.now[path] -= 1


@contextmanager
def deaf(number: int) -> Iterator[list[str]]:
    """URLs at ports of their own where connections are taken, and nothing ever said."""
    listeners = [socket.create_server(("127.0.0.1", 0), backlog=8) for _ in range(number)]
    try:
        yield [f"http://127.0.0.1:{one.getsockname()[1]}/hook" for one in listeners]
    finally:
        for one in listeners:
            one.close()


@pytest.fixture
def files() -> None:
    """Leave to open many files, for us and the servers that we start."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES:
        if hard < FILES:
            pytest.skip(f"needs {FILES} open files, and {hard} are allowed")
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))


def subscribe_all(api: Api, queue: str, urls: Sequence[str], **options: Any) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda url: subscribe(api, queue, url, **options), urls))


def resident_mb(server: LiveServer) -> float:
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def in_flight(server: LiveServer) -> float:
    return count(server, "nusku_deliveries_in_flight")


@pytest.mark.slow
def test_a_thousand_hanging_endpoints_are_not_noticed(
    files: None, private_server: Callable[..., LiveServer], farm: Farm
) -> None:
    server = private_server(**OPEN, shutdown_timeout=1)
    ours, others = server.api(), server.api()
    hang, slow = Counting(receivers.hang), Counting(receivers.slow)
    paths = [f"/hang/{n}" for n in range(500)]
    for path in paths:
        farm.on(path, hang)
    farm.on("/slow/0.1", slow)
    before = resident_mb(server)
    with deaf(500) as ports:
        subscribe_all(ours, "q", [*map(farm.url, paths), *ports])
        subscribe_all(ours, "q", [farm.url(f"/ok/ours/{n}") for n in range(5)])
        subscribe_all(others, "q", [farm.url(f"/ok/others/{n}") for n in range(5)])
        ours.post_bodies("q", 1, 2)
        farm.wait_for(500, path="/hang")
        eventually(lambda: in_flight(server) >= 1000, within_s=20)

        worst = 0.0
        for n in range(5):
            began = time.monotonic()
            ours.post_bodies("q", n)
            others.post_bodies("q", n)
            farm.wait_for(5 * (2 + n + 1), SOON_S, "/ok/ours")
            farm.wait_for(5 * (n + 1), SOON_S, "/ok/others")
            worst = max(worst, time.monotonic() - began)
        assert worst < SOON_S

        # Nor by those who come only now.
        for api in (ours, others):
            subscribe(api, "late", farm.url(f"/ok/late/{api.project}"))
            subscribe(api, "late", farm.url("/slow/0.1"))
            api.post_bodies("late", *range(10))
            farm.wait_for(10, SOON_S, f"/ok/late/{api.project}")
        farm.wait_for(20, SOON_S, "/slow/0.1")

        assert set(hang.most.values()) == {1}
        assert slow.most == {"/slow/0.1": 4}
        assert resident_mb(server) - before < 150
    farm.release()


@pytest.mark.slow
def test_hanging_endpoints_of_a_project_leave_room_for_its_healthy_ones(
    private_server: Callable[..., LiveServer], farm: Farm
) -> None:
    """Also when there are more of them than attempts may be under way, and one round after another.

    And for another project's that have failed and are well again, in spite of all who hang still.
    """
    server = private_server(**OPEN, max_deliveries=40, delivery_timeout=4, shutdown_timeout=1)
    ours, others = server.api(), server.api()
    subscribe(ours, "good", farm.url("/ok/ours"))
    subscribe(others, "good", farm.url("/ok/others"))
    for api in (ours, others):
        api.post_bodies("good", 0)
    farm.wait_for(2)
    subscribe_all(ours, "q", [farm.url(f"/hang/{n}") for n in range(100)], _retry_policy=GENTLE)
    ours.post_bodies("q", *range(3))
    eventually(lambda: in_flight(server) >= 10)
    worst = 0.0
    for n in range(1, 28):
        began = time.monotonic()
        ours.post_bodies("good", n)
        others.post_bodies("good", n)
        farm.wait_for(n + 1, path="/ok/ours")
        farm.wait_for(n + 1, path="/ok/others")
        worst = max(worst, time.monotonic() - began)
        time.sleep(max(0.2 - (time.monotonic() - began), 0))  # past the first round of time-outs
    assert worst < 3, "who waits for those who hang waits for four seconds"

    farm.on("/again", receivers.reset_after)
    one = subscribe(others, "q", farm.url("/again"), _retry_policy=GENTLE)
    others.post_bodies("q", 1)
    farm.wait_for(1, path="/again")
    farm.on("/again", receivers.ok)
    began = time.monotonic()
    one.until(delivered=1, pending=0)
    assert time.monotonic() - began < SOON_S


def test_one_hanging_endpoint_holds_up_no_other(
    shared_server: Callable[..., LiveServer], farm: Farm
) -> None:
    """Neither of the same queue, nor of the same host."""
    api = shared_server(**OPEN).api()
    hang = Counting(receivers.hang)
    farm.on("/hang", hang)
    one = subscribe(api, "q", farm.url("/hang"))
    for n in range(3):
        subscribe(api, "q", farm.url(f"/ok/{n}"))
    api.post_bodies("q", *range(50))
    farm.wait_for(150, SOON_S, "/ok")
    assert hang.most == {"/hang": 1}
    assert one.status()["pending"] == 50
    farm.release()
    one.until(pending=0, delivered=50)
    assert 1 < hang.most["/hang"] <= 4  # once it answers


def test_an_endpoint_is_never_asked_more_than_four_times_at_once(
    shared_server: Callable[..., LiveServer], farm: Farm
) -> None:
    """However many subscriptions of however many projects lead there."""
    server = shared_server(**OPEN)
    slow = Counting(receivers.slow)
    farm.on("/slow/0.03", slow)
    apis = [server.api() for _ in range(3)]
    for api in apis:
        for n in range(3):
            subscribe(api, f"q{n}", farm.url("/slow/0.03", subscription=str(n)))
            api.post_bodies(f"q{n}", *range(10))
    requests = farm.wait_for(90)
    eventually(lambda: not slow.now["/slow/0.03"])
    assert slow.most == {"/slow/0.03": 4}
    assert sorted(told(requests)) == sorted([*range(10)] * 9)


def test_pings_count_as_well(shared_server: Callable[..., LiveServer], farm: Farm) -> None:
    """Whoever pings a busy endpoint waits for its turn."""
    api = shared_server(**OPEN).api()
    slow = Counting(receivers.slow)
    farm.on("/slow/0.2", slow)
    one = subscribe(api, "q", farm.url("/slow/0.2"))
    assert one.do("ping")["outcome"] == "delivered"
    pings = [threading.Thread(target=one.do, args=("ping",)) for _ in range(8)]
    for ping in pings:
        ping.start()
    for ping in pings:
        ping.join()
    assert slow.most == {"/slow/0.2": 4}
