"""Queues as streams of events (server-sent events)."""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import httpx
import pytest

from tests.conftest import SharedServers
from tests.live import Api, LiveServer, RawConnection, eventually, expect, raw_request
from tests.security.test_api_keys import Keys

EVENTS = {"Accept": "text/event-stream"}
PATIENCE_S = 10.0


class Event(NamedTuple):
    id: str
    message: dict[str, Any]


class Stream:
    """A stream that is read in a thread of its own, by the rules of the HTML standard."""

    def __init__(self, api: Api, path: str, headers: dict[str, str], *, bare: bool) -> None:
        self._client = httpx.Client(base_url=api.server.url, timeout=None)
        sent = {**({} if bare else api.headers), **EVENTS, **headers}
        self._context = self._client.stream("GET", path, headers=sent)
        self.response = self._context.__enter__()
        self.comments = 0
        self.ended = threading.Event()
        self._events: queue.Queue[Event] = queue.Queue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        if self.response.status_code == 200:
            self._thread.start()
        else:
            self.response.read()

    def _read(self) -> None:
        id_, data = "", ""
        try:
            for line in self.response.iter_lines():
                field, _, value = line.partition(": ")
                if field == "id":
                    id_ = value
                elif field == "data":
                    data += value
                elif line.startswith(":"):
                    self.comments += 1
                elif not line and data:
                    self._events.put(Event(id_, json.loads(data)))
                    data = ""
        except (httpx.HTTPError, httpx.StreamError):
            pass
        self.ended.set()

    def next(self) -> Event:
        return self._events.get(timeout=PATIENCE_S)

    def bodies(self, number: int) -> list[Any]:
        return [self.next().message["body"] for _ in range(number)]

    @property
    def waiting(self) -> int:
        """Events that were not asked for yet."""
        return self._events.qsize()

    def close(self) -> None:
        with suppress(OSError):  # it may be over; the thread must not wait for the next comment
            stream = self.response.extensions["network_stream"]
            stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        self._context.__exit__(None, None, None)
        self._client.close()
        if self._thread.is_alive():
            self._thread.join()


Follow = Callable[..., Stream]


@pytest.fixture
def follow() -> Iterator[Follow]:
    """Call it with a client and a queue for its stream."""
    made: list[Stream] = []

    def one(
        api: Api,
        name: str = "q",
        query: str = "",
        headers: dict[str, str] | None = None,
        *,
        bare: bool = False,
    ) -> Stream:
        path = api.path(name, "messages") + query
        made.append(Stream(api, path, headers or {}, bare=bare))
        return made[-1]

    yield one
    for stream in made:
        stream.close()


def test_it_sends_what_is_there_and_what_comes(api: Api, follow: Follow) -> None:
    ids = api.post_bodies("q", "a", {"b": [1, "ü\n"]}, ttl=300)
    stream = follow(api.somebody_else())
    assert stream.response.headers["Content-Type"] == "text/event-stream"
    assert stream.response.headers["Cache-Control"] == "no-store"
    events = [stream.next(), stream.next()]
    assert [event.id for event in events] == ids
    assert [event.message["body"] for event in events] == ["a", {"b": [1, "ü\n"]}]
    listed = expect(api.list_messages("q", "?echo=true"), 200)["messages"]
    assert [{**event.message, "age": 0} for event in events] == [{**m, "age": 0} for m in listed]
    for number in range(30):
        api.post_bodies("q", number)
    assert stream.bodies(30) == list(range(30))


def test_claimed_and_delayed_messages_are_sent_in_their_place(api: Api, follow: Follow) -> None:
    api.post_bodies("q", "claimed")
    api.claimed("q")
    api.post_bodies("q", "delayed", delay=100)
    api.post_bodies("q", "free")
    stream = follow(api.somebody_else())
    assert stream.bodies(3) == ["claimed", "delayed", "free"]
    api.post_bodies("q", "later", delay=100)
    assert stream.bodies(1) == ["later"]


def test_it_goes_on_where_it_was_cut_off(api: Api, follow: Follow) -> None:
    ids = api.post_bodies("q", *range(5))
    reader = api.somebody_else()
    assert follow(reader, query=f"?marker={ids[1]}").bodies(3) == [2, 3, 4]
    resumed = follow(reader, query=f"?marker={ids[0]}", headers={"Last-Event-ID": ids[3]})
    assert resumed.bodies(1) == [4]
    # What was deleted is still a place in the queue.
    expect(api.delete_message("q", ids[3]), 204)
    assert follow(reader, headers={"Last-Event-ID": ids[3]}).bodies(1) == [4]


def test_a_marker_of_a_queue_that_was_made_anew_is_before_everything(
    api: Api, follow: Follow
) -> None:
    (old,) = api.post_bodies("q", "old")
    expect(api.drop("q"), 204)
    api.post_bodies("q", "new")
    assert follow(api.somebody_else(), query=f"?marker={old}").bodies(1) == ["new"]


def test_a_marker_that_is_none_is_refused(api: Api, follow: Follow) -> None:
    for query in ("?marker=x", "?echo=perhaps"):
        assert follow(api, query=query).response.status_code == 400
    assert follow(api, headers={"Last-Event-ID": "x" * 29}).response.status_code == 400


def test_it_waits_for_a_queue_and_follows_it_through_its_lives(api: Api, follow: Follow) -> None:
    stream = follow(api.somebody_else())
    for life in range(3):
        api.post_bodies("q", life)
        assert stream.bodies(1) == [life]
        expect(api.drop("q"), 204)
    api.post_bodies("q", "purged")
    assert stream.bodies(1) == ["purged"]
    expect(api.purge("q", "messages"), 204)
    api.post_bodies("q", "after")
    assert stream.bodies(1) == ["after"]


def test_own_messages_are_left_out_unless_asked_for(api: Api, follow: Follow) -> None:
    api.post_bodies("q", "mine")
    api.somebody_else().post_bodies("q", "yours")
    assert follow(api).bodies(1) == ["yours"]
    assert follow(api, query="?echo=true").bodies(2) == ["mine", "yours"]


def test_an_encrypted_queue_is_sent_in_clear(api: Api, follow: Follow) -> None:
    expect(api.create("q", {"_enable_encrypt_messages": True}), 201)
    api.post_bodies("q", {"a": 1})
    stream = follow(api.somebody_else())
    api.post_bodies("q", "later")
    assert stream.bodies(2) == [{"a": 1}, "later"]


def test_topics_are_followed_too(api: Api, follow: Follow) -> None:
    from tests.live import TOPICS

    topic = api.but(kind=TOPICS)
    topic.post_bodies("news", 1)
    assert follow(topic.somebody_else(), "news").bodies(1) == [1]


def test_many_follow_one_queue_from_wherever_they_are(api: Api, follow: Follow) -> None:
    ids = api.post_bodies("q", *range(20))
    reader = api.somebody_else()
    streams = {at: follow(reader, query=f"?marker={ids[at]}") for at in (0, 5, 15, 19)}
    api.post_bodies("q", *range(20, 60))
    for at, stream in streams.items():
        assert stream.bodies(59 - at) == list(range(at + 1, 60))
        assert stream.waiting == 0


def test_a_long_queue_is_read_to_its_end(api: Api, follow: Follow) -> None:
    for start in range(0, 500, 100):
        api.post_bodies("q", *range(start, start + 100))
    stream = follow(api.somebody_else())
    assert stream.bodies(500) == list(range(500))


def test_browsers_say_who_they_are_in_the_query(api: Api, follow: Follow) -> None:
    api.post_bodies("q", 1)
    query = f"?client_id={uuid.uuid4()}&project_id={api.project}"
    assert follow(api, query=query, bare=True).bodies(1) == [1]
    assert follow(api, bare=True).response.status_code == 400
    # Headers count more.
    assert follow(api, query=f"?project_id=other&client_id={uuid.uuid4()}&echo=true").bodies(1) == [
        1
    ]


def test_projects_in_the_query_are_those_of_headers(api: Api, follow: Follow) -> None:
    project = f"caf\xe9-{uuid.uuid4().hex}"
    headers: dict[str, Any] = {**api.headers, "X-Project-ID": project.encode("latin-1")}
    sent = {"messages": [{"body": 1}]}
    expect(api.request("POST", api.path("q", "messages"), json=sent, headers=headers), 201)
    query = httpx.QueryParams({"client_id": str(uuid.uuid4()), "project_id": project})
    assert follow(api, query=f"?{query}", bare=True).bodies(1) == [1]
    beyond = query.set("project_id", "\u540d")
    assert follow(api, query=f"?{beyond}", bare=True).response.status_code == 400


def test_only_a_stream_takes_them_from_the_query(api: Api, server: LiveServer) -> None:
    query = f"client_id={uuid.uuid4()}&project_id={api.project}"
    bare = server.client
    for method, path, headers in (
        ("GET", "/v2/queues/q/messages", {}),
        ("GET", "/v2/queues/q/messages", {"Accept": "*/*"}),
        ("POST", "/v2/queues/q/messages", EVENTS),
        ("GET", "/v2/queues", EVENTS),
        ("GET", "/v2/queues/q/messages/x", EVENTS),
        ("DELETE", "/v2/queues/q", EVENTS),
    ):
        assert bare.request(method, f"{path}?{query}", headers=headers).status_code in {400, 406}


def test_elsewhere_a_stream_is_not_acceptable(api: Api) -> None:
    for path in ("/v2/queues", "/v2/queues/q", "/v2/queues/q/stats", "/v2/queues/q/messages/x"):
        assert api.get(path, headers={**api.headers, **EVENTS}).status_code == 406
    sent = {**api.headers, **EVENTS}
    posted = api.request("POST", "/v2/queues/q/messages", headers=sent, json={"messages": []})
    assert posted.status_code == 406


def test_a_pre_signed_url_opens_it(shared_server: SharedServers, follow: Follow) -> None:
    server = shared_server(auth="key", secret_key="a key that signs, and is long enough for it",
                           header_timeout=2.0)  # fmt: skip
    project = "streams-by-signature"
    key = Keys(server).make(project).text
    api = server.api(project=project).but(extra={"X-Auth-Token": key})
    eventually(lambda: api.create("q").status_code == 201)
    made = expect(api.request("POST", "/v2/queues/q/share", json={"methods": ["GET"]}), 200)
    api.post_bodies("q", 1)
    query = httpx.QueryParams(
        {
            "client_id": str(uuid.uuid4()),
            "project_id": made["project"],
            "signature": made["signature"],
            "methods": ",".join(made["methods"]),
            "paths": ",".join(made["paths"]),
            "expires": made["expires"],
        }
    )
    assert follow(api, query=f"?{query}", bare=True).bodies(1) == [1]
    for name in ("project_id", "signature", "methods", "paths", "expires"):
        wrong = query.set(name, "other")
        assert follow(api, query=f"?{wrong}", bare=True).response.status_code == 404
    assert follow(api, "r", query=f"?{query}", bare=True).response.status_code == 404
    assert follow(api, bare=True).response.status_code == 401


def test_it_ends_with_the_signature(shared_server: SharedServers, follow: Follow) -> None:
    from nusku import signing

    server = shared_server(secret_key="a key that signs, and is long enough for it")
    api = server.api()
    expires = signing.expiry_text(int(time.time()) + 2)
    paths, methods = ["/v2/queues/q/messages"], ["GET"]
    headers = {
        "URL-Signature": signing.sign(
            "a key that signs, and is long enough for it", paths, methods, api.project, expires
        ),
        "URL-Methods": "GET",
        "URL-Paths": paths[0],
        "URL-Expires": expires,
    }
    stream = follow(api, headers=headers)
    assert stream.response.status_code == 200
    assert stream.ended.wait(PATIENCE_S)


def test_it_ends_when_the_server_stops(
    private_server: Callable[..., LiveServer], follow: Follow
) -> None:
    server = private_server()
    stream = follow(server.api())
    server.terminate()
    assert stream.ended.wait(PATIENCE_S)
    server.wait_until_ended()


def gauge(server: LiveServer, name: str) -> int:
    lines = server.client.get("/metrics").text.splitlines()
    return int(float(next(x for x in lines if x.startswith(f"{name} ")).split()[1]))


def test_who_hangs_up_is_forgotten(api: Api, server: LiveServer, follow: Follow) -> None:
    before = gauge(server, "nusku_event_streams")
    streams = [follow(api) for _ in range(3)]
    assert gauge(server, "nusku_event_streams") == before + 3
    for stream in streams:
        stream.close()
    eventually(lambda: gauge(server, "nusku_event_streams") == before)


def test_who_reads_slowly_misses_nothing(api: Api, server: LiveServer) -> None:
    """What is not read is not kept for the reader, but read again later."""
    reader = api.somebody_else()
    with RawConnection(server) as connection:
        path = "/v2/queues/q/messages"
        connection.send(raw_request("GET", path, {**reader.headers, **EVENTS}))
        for start in range(0, 200, 2):
            api.post_bodies("q", *(f"{n:03}{'x' * 50_000}" for n in range(start, start + 2)))
        data = b""
        while data.count(b"\ndata: ") < 200:
            data += connection.socket.recv(1 << 20)
    # Chunks may begin anywhere, but not within a number of three digits right behind "body".
    numbers = [part[:3] for part in data.split(b'"body":"')[1:]]
    assert numbers == [b"%03d" % n for n in range(200)]


@pytest.mark.slow
def test_silence_is_filled_with_comments(api: Api, follow: Follow) -> None:
    from nusku.http import events

    assert events.KEEP_ALIVE_S < 30  # that proxies have patience for
    stream = follow(api)
    eventually(lambda: stream.comments, within_s=events.KEEP_ALIVE_S + 5)


def test_a_server_that_dies_leaves_no_gap(
    private_server: Callable[..., LiveServer], follow: Follow
) -> None:
    server = private_server()
    api = server.api()
    stream = follow(api.somebody_else())
    acknowledged = []
    for number in range(40):
        api.post_bodies("q", number)
        acknowledged.append(number)
    seen = [stream.next() for _ in range(25)]
    server.kill()
    assert stream.ended.wait(PATIENCE_S)
    while stream.waiting:
        seen.append(stream.next())
    again = private_server()
    reader = again.api(project=api.project)
    resumed = follow(reader, headers={"Last-Event-ID": seen[-1].id})
    seen += [resumed.next() for _ in range(40 - len(seen))]
    assert [event.message["body"] for event in seen] == acknowledged
    assert resumed.waiting == 0


@pytest.mark.only("postgresql", "redis", "redis-cluster")
def test_what_is_posted_on_another_node_is_sent(
    private_server: Callable[..., LiveServer], follow: Follow
) -> None:
    here, there = private_server(), private_server()
    api = there.api()
    stream = follow(here.api(project=api.project))
    for number in range(50):
        api.post_bodies("q", number)
    assert stream.bodies(50) == list(range(50))
