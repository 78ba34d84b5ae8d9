"""The receiver among the examples, driven by the sender and by those who only pretend to be it."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from nusku.broker.deliveries import Parcel, Recipient
from nusku.model import QueueKey
from nusku.notify.forms import Post, compose
from tests.live import LiveServer
from tests.notify.receivers import Exchange, Farm

EXAMPLE = Path(__file__).parents[2] / "examples/webhook_receiver.py"
SECRET, OTHER = ("whsec_" + base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))


class Example:
    """The program, and what it prints."""

    def __init__(self, server: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, EXAMPLE, "--port", "0"],
            env={**os.environ, "WEBHOOK_SECRET": SECRET, "NUSKU": server},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        listening = re.fullmatch(r"listening on port (\d+)\n", self.line())
        assert listening
        self._printed: list[str] = []
        self.url = f"http://127.0.0.1:{listening[1]}/"

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def post(self, post: Post) -> int:
        return httpx.post(self.url, content=post.body, headers=post.headers).status_code

    def stop(self) -> list[str]:
        """End it; all that it has printed."""
        self._process.kill()
        if self._process.returncode is None:
            self._printed = self._process.communicate()[0].splitlines()
        return self._printed


@pytest.fixture
def example(farm: Farm) -> Iterator[Example]:
    running = Example(farm.url("").removesuffix("/"))
    yield running
    running.stop()


def signed(
    document: dict[str, Any], *, number: int = 1, secret: str = SECRET, age_s: int = 0
) -> Post:
    key = QueueKey("queue", "p", "q")
    to = Recipient("0" * 24, key, "http://h/", {}, (secret,))
    parcel = Parcel(f"{number:x}-0", "notification", json.dumps(document).encode(), 0)
    return compose(to, parcel, int(time.time()) - age_s)


def notification(body: Any) -> dict[str, Any]:
    return {"ttl": 60, "body": body, "queue_name": "q", "Message_Type": "Notification"}


def test_what_is_signed_is_handled_once(example: Example) -> None:
    assert example.post(signed(notification("one"), number=1)) == 204
    assert example.post(signed(notification("two"), number=2)) == 204
    assert example.post(signed(notification("one"), number=1)) == 204
    assert example.stop() == ["one", "two"]


def test_nothing_else_is_believed(example: Example) -> None:
    good = signed(notification("bad"))
    assert example.post(signed(notification("bad"), secret=OTHER)) == 401
    assert example.post(good._replace(body=good.body + b" ")) == 401
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        headers = {key: value for key, value in good.headers.items() if key != name}
        assert example.post(good._replace(headers=headers)) == 401
    for age_s in (310, -310, 10**9):
        assert example.post(signed(notification("bad"), age_s=age_s)) == 401
    assert example.post(signed(notification("good"), age_s=290)) == 204
    assert example.stop() == ["good"]


def test_a_subscription_is_confirmed(example: Example, farm: Farm) -> None:
    path = f"/v2/queues/q/subscriptions/{'0' * 24}/confirm"
    document = {
        "Message_Type": "SubscriptionConfirmation",
        "Message": "You have chosen to subscribe to the queue: q",
        "queue_name": "q",
        "URL-Signature": "abc",
        "URL-Methods": "PUT",
        "URL-Paths": path,
        "URL-Expires": "2099-07-06T04:35:56",
        "X-Project-ID": "p",
        "SubscribeBody": {"confirmed": True},
        "UnsubscribeBody": {"confirmed": False},
    }

    async def no_content(to: Exchange) -> None:
        to.answer(204)

    farm.on(path, no_content)
    assert example.post(signed(document)) == 204
    (request,) = farm.wait_for(1)
    assert (request.method, request.path, request.json()) == ("PUT", path, {"confirmed": True})
    for name in ("URL-Signature", "URL-Methods", "URL-Paths", "URL-Expires", "X-Project-ID"):
        assert request.headers[name.lower()] == document[name]
    assert example.stop() == ["You have chosen to subscribe to the queue: q"]


def test_what_could_not_be_confirmed_may_come_again(example: Example, farm: Farm) -> None:
    document = {
        "Message_Type": "SubscriptionConfirmation",
        **dict.fromkeys(("URL-Signature", "URL-Methods", "URL-Expires", "X-Project-ID"), "x"),
        "URL-Paths": "/fail/1/503",
        "SubscribeBody": {"confirmed": True},
    }
    with pytest.raises(httpx.HTTPError):
        example.post(signed(document))
    assert example.post(signed(document)) == 204
    assert len(farm.requests) == 2


def test_it_confirms_at_a_real_server_and_is_told(
    private_server: Callable[..., LiveServer],
) -> None:
    server = private_server(subscriber_allow=("127.0.0.0/8",), require_confirmation=True)
    running = Example(server.url)
    try:
        api = server.api()
        options = {"_signing": SECRET}
        subscription = {"subscriber": running.url, "ttl": 3600, "options": options}
        made = api.request("POST", api.path("q", "subscriptions"), json=subscription)
        assert made.status_code == 201
        assert running.line() == "You have chosen to subscribe to the queue: q\n"
        api.post_bodies("q", "hello")
        assert running.line() == "hello\n"
    finally:
        running.stop()
