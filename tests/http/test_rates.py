"""How many requests a second a project may make."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

import pytest

from nusku.http.pacing import REFUSED_AFTER_S
from tests.live import Api, LiveServer, RawConnection, eventually, expect, raw_request
from tests.quotas import command
from tests.security.test_api_keys import Keys

RATE = 8


@pytest.fixture
def paced(shared_server: Callable[..., LiveServer]) -> Api:
    """A client of a server where each project may make 8 requests a second."""
    return shared_server(quota_requests=RATE).api()


def exhaust(api: Api) -> int:
    """Ask until that is too much; say how many requests were served."""
    for served in range(10 * RATE):
        answer = api.show("a")
        if answer.status_code == 503:
            assert answer.json() == {
                "title": "Service temporarily unavailable",
                "description": f"The project may make {RATE} requests a second. "
                "Please try again in a few seconds.",
            }
            assert answer.headers["Retry-After"] == "1"
            return served
        expect(answer, 200)
    raise AssertionError("nothing was refused")


def test_who_asks_more_often_is_told_when_to_come_again(paced: Api) -> None:
    began_s = time.monotonic()
    served = exhaust(paced)
    assert RATE <= served <= RATE * (1 + time.monotonic() - began_s)
    time.sleep(1)
    assert paced.show("a").status_code == 200


def test_others_are_served(paced: Api) -> None:
    other = paced.stranger()
    exhaust(paced)
    assert other.show("a").status_code == 200
    for path in ("/livez", "/readyz", "/openapi.json", "/"):
        assert paced.get(path).status_code in {200, 300}
    assert paced.server.client.get("/metrics").status_code == 200


def test_a_refused_request_has_no_effect(paced: Api) -> None:
    expect(paced.create("a"), 201)
    answers: list[int] = []
    while 503 not in answers:
        answers.append(paced.post("a", {"body": len(answers)}).status_code)
    time.sleep(1)
    assert paced.stats("a")["total"] == answers.count(201) == len(answers) - 1


def test_it_is_refused_before_its_body_comes(paced: Api) -> None:
    head = (
        "POST /v2/queues/a/messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Client-ID: {uuid.uuid4()}\r\nX-Project-ID: {paced.project}\r\n"
        "Content-Length: 1000\r\n\r\n"
    )
    command(paced.server, "set", paced.project, "--requests", "1")
    eventually(lambda: {paced.show("a").status_code for _ in range(3)} == {503})

    def refused() -> bool:
        """One that comes just in time for the next second is served, if its body ever comes."""
        with RawConnection(paced.server, timeout_s=0.5) as connection:
            connection.send(head.encode())
            try:
                return connection.answer().status == 503
            except TimeoutError:
                return False

    eventually(refused)


def test_refusals_come_late_in_order_and_on_the_same_connection(paced: Api) -> None:
    command(paced.server, "set", paced.project, "--requests", "1")
    eventually(lambda: {paced.show("a").status_code for _ in range(3)} == {503})
    eventually(lambda: paced.show("a").status_code == 200)  # so there is no other for a second
    mine = {"Client-ID": paced.client_id, "X-Project-ID": paced.project}
    body = {"Content-Type": "application/json", "Content-Length": "100000"}
    began_s = time.monotonic()
    with RawConnection(paced.server) as connection:
        connection.send(
            raw_request("POST", "/v2/queues/a/messages", mine | body, b" " * 100_000)
            + raw_request("HEAD", "/v2/queues/a", mine)
            + raw_request("GET", "/v2/queues/a", mine | {"Connection": "close"})
        )
        answers = b"".join(iter(lambda: connection.socket.recv(65536), b""))
    assert time.monotonic() - began_s >= 3 * REFUSED_AFTER_S
    post, head, get = answers.split(b"HTTP/1.1 503 Service Unavailable\r\n")[1:]
    assert [b"connection: close" in one for one in (post, head, get)] == [False, False, True]
    for one in (post, head, get):
        headers, _, text = one.partition(b"\r\n\r\n")
        for name in (b"date", b"retry-after", b"vary", b"x-openstack-request-id"):
            assert b"\r\n%b: " % name in headers
        if one is head:
            assert not text
        else:
            assert b"\r\ncontent-length: %d\r\n" % len(text) in headers
            assert b"may make 1 requests a second" in text


def test_who_hangs_up_before_the_refusal_comes_does_no_harm(paced: Api) -> None:
    exhaust(paced)
    mine = {"Client-ID": paced.client_id, "X-Project-ID": paced.project}
    for _ in range(5):
        with RawConnection(paced.server) as connection:
            connection.send(3 * raw_request("GET", "/v2/queues/a", mine))
    time.sleep(2 * REFUSED_AFTER_S)
    assert paced.stranger().show("a").status_code == 200


def test_what_is_refused_is_counted(paced: Api) -> None:
    def refused() -> float:
        text = paced.server.client.get("/metrics").text
        lines = [
            line
            for line in text.splitlines()
            if line.startswith('nusku_limited_total{limit="rate"')
        ]
        return float(lines[0].split()[-1]) if lines else 0

    before = refused()
    exhaust(paced)
    assert refused() == before + 1


def test_a_rate_is_changed_live(paced: Api) -> None:
    command(paced.server, "set", paced.project, "--requests", "none")
    eventually(lambda: all(paced.show("a").status_code == 200 for _ in range(3 * RATE)))
    command(paced.server, "set", paced.project, "--requests", "1")
    eventually(lambda: {paced.show("a").status_code for _ in range(3)} == {503})
    command(paced.server, "unset", paced.project)
    eventually(lambda: all(paced.show("a").status_code == 200 for _ in range(RATE // 2)))


def test_requests_count_for_the_project_of_the_key(
    shared_server: Callable[..., LiveServer],
) -> None:
    """Whatever they say of themselves; and so do those of who has a signed URL of it."""
    keys = Keys(shared_server(auth="key", quota_requests=2, secret_key="k" * 32))
    mine, theirs = f"mine-{uuid.uuid4()}", f"theirs-{uuid.uuid4()}"
    api = keys.api(keys.make(mine).text)
    other = keys.api(keys.make(theirs).text).but(project=mine)
    eventually(lambda: {api.show("a").status_code, other.show("a").status_code} == {200})
    time.sleep(1)
    path = api.path("a", "messages")
    signed = expect(api.request("POST", api.path("a", "share"), json={"paths": ["messages"]}), 200)
    headers = {
        "Client-ID": api.client_id,
        "X-Project-ID": mine,
        "URL-Signature": signed["signature"],
        "URL-Expires": signed["expires"],
        "URL-Methods": ",".join(signed["methods"]),
        "URL-Paths": ",".join(signed["paths"]),
    }
    eventually(lambda: api.get(path, headers=headers).status_code == 503, every_s=0)
    assert api.show("a").status_code == 503
    assert other.show("a").status_code == 200
    # Who is let in by nothing costs nobody anything.
    stranger = {"Client-ID": api.client_id, "X-Project-ID": theirs}
    assert {api.get(path, headers=stranger).status_code for _ in range(2 * RATE)} == {401}
    assert other.show("a").status_code == 200
