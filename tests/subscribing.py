"""Subscriptions as one client sees them, and a web server that is told of messages."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote

import httpx

from tests.live import Api, expect

HOOK = "http://hooks.example/orders"
"""Names that end in .example belong to nobody; what is subscribed there is never posted to."""

LOCAL = ("127.0.0.0/8",)
"""For the setting `subscriber_allow`, so that receivers on this machine may be subscribed."""

# In one go, without a retry that a test would wait for.
NO_RETRIES = {"retries_with_no_delay": 0, "minimum_delay_retries": 0, "maximum_delay_retries": 0}


@dataclass(frozen=True)
class Subscriptions:
    """The subscriptions to one queue or topic; every method but two returns the answer."""

    api: Api
    queue: str = "q"

    def path(self, *rest: str) -> str:
        return self.api.path(self.queue, "subscriptions", *(quote(each, safe="") for each in rest))

    def post(self, document: Any) -> httpx.Response:
        return self.api.request("POST", self.path(), json=document)

    def create(self, subscriber: str = HOOK, **fields: Any) -> httpx.Response:
        return self.post({"subscriber": subscriber, **fields})

    def made(self, subscriber: str = HOOK, **fields: Any) -> str:
        """The id of a new subscription."""
        id_: str = expect(self.create(subscriber, **fields), 201)["subscription_id"]
        return id_

    def page(self, query: str = "") -> httpx.Response:
        return self.api.get(self.path() + query)

    def ids(self, query: str = "?limit=20") -> list[str]:
        """The ids on one page."""
        return [each["id"] for each in expect(self.page(query), 200)["subscriptions"]]

    def get(self, id_: str, *rest: str) -> httpx.Response:
        return self.api.get(self.path(id_, *rest))

    def shown(self, id_: str) -> dict[str, Any]:
        found: dict[str, Any] = expect(self.get(id_), 200)
        return found

    def patch(self, id_: str, document: Any) -> httpx.Response:
        return self.api.request("PATCH", self.path(id_), json=document)

    def delete(self, id_: str) -> httpx.Response:
        return self.api.delete(self.path(id_))

    def confirm(self, id_: str, document: Any = None) -> httpx.Response:
        sent = {"confirmed": True} if document is None else document
        return self.api.put(self.path(id_, "confirm"), json=sent)

    def act(self, id_: str, action: str, **rest: Any) -> httpx.Response:
        """POST to what is below a subscription."""
        return self.api.request("POST", self.path(id_, action), **rest)

    def status(self, id_: str) -> dict[str, Any]:
        found: dict[str, Any] = expect(self.get(id_, "status"), 200)
        return found


@dataclass(frozen=True)
class Heard:
    """A request that a receiver got; names of headers in lower case."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


class Receiver:
    """A web server on loopback. Answers with `status`, or first with those in `first`."""

    def __init__(self) -> None:
        self.status = 200
        self.first: list[int] = []
        self.heard: list[Heard] = []
        self._changed = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                headers = {name.lower(): value for name, value in self.headers.items()}
                status = receiver.hear(Heard(self.path, headers, body))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/hook"

    def hear(self, request: Heard) -> int:
        with self._changed:
            self.heard.append(request)
            self._changed.notify_all()
            return self.first.pop(0) if self.first else self.status

    def wait_for(self, number: int, within_s: float = 15.0) -> Sequence[Heard]:
        """All requests so far, once there are that many."""
        with self._changed:
            enough = self._changed.wait_for(lambda: len(self.heard) >= number, within_s)
            assert enough, f"{len(self.heard)} of {number} requests within {within_s} s"
            return list(self.heard)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A receiver for as long as the block lasts."""
    one = Receiver()
    try:
        yield one
    finally:
        one.close()
