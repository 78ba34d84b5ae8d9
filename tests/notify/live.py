"""What the tests of deliveries by a running server share: settings, and a subscription to talk to."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.live import Api, LiveServer, SettingValue, eventually, expect
from tests.notify.receivers import Received

OPEN: dict[str, SettingValue] = {
    "subscriber_allow": ("127.0.0.0/8",),
    "min_subscription_ttl": 1,
    "min_message_ttl": 1,
    "min_claim_ttl": 1,
    "min_claim_grace": 0,
    "max_subscriptions_per_page": 1000,
}
"""Receivers may be on this machine, and things may live for a second."""

NEVER: dict[str, Any] = {
    "minimum_delay": 1,
    "maximum_delay": 3600,
    "retries_with_no_delay": 0,
    "minimum_delay_retries": 0,
    "maximum_delay_retries": 1,
    "retry_backoff_function": "exponential",
}
"""A retry policy under which what failed comes again after a second, and then not for seconds."""

GENTLE: dict[str, Any] = {"minimum_delay": 1, "maximum_delay": 11}
"""The shortest delays that a retry policy may have; other members as each test likes."""


@dataclass(frozen=True)
class Subscribed:
    """A subscription. `secret` is there if the server made one."""

    api: Api
    queue: str
    id: str
    secret: str = ""

    def path(self, *rest: str) -> str:
        return self.api.path(self.queue, "subscriptions", self.id, *rest)

    def through(self, server: LiveServer) -> Subscribed:
        """The same at another life of the server."""
        api = Api(server, self.api.project, self.api.client_id, self.api.kind)
        return Subscribed(api, self.queue, self.id, self.secret)

    def show(self) -> dict[str, Any]:
        shown: dict[str, Any] = expect(self.api.get(self.path()), 200)
        return shown

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = expect(self.api.get(self.path("status")), 200)
        return status

    def failed(self, query: str = "") -> list[dict[str, Any]]:
        """One page of what was given up."""
        page = expect(self.api.get(self.path("failed") + query), 200)
        failed: list[dict[str, Any]] = page["failed"]
        return failed

    def do(self, what: str) -> Any:
        """POST one of `pause`, `resume`, `ping` and `secret`; return the answer's body, if any."""
        answer = self.api.request("POST", self.path(what))
        return expect(answer, 204 if what in {"pause", "resume"} else 200)

    def replay(self, ids: Iterable[str] | None = None) -> int:
        body: dict[str, Any] = {} if ids is None else {"json": {"ids": list(ids)}}
        answer = expect(self.api.request("POST", self.path("replay"), **body), 200)
        assert list(answer) == ["replayed"]
        number: int = answer["replayed"]
        return number

    def patch(self, **members: Any) -> None:
        expect(self.api.request("PATCH", self.path(), json=members), 204)

    def delete(self) -> None:
        expect(self.api.delete(self.path()), 204)

    def confirm(self, confirmed: bool) -> None:
        answer = self.api.put(self.path("confirm"), json={"confirmed": confirmed})
        expect(answer, 204)

    def attempts(self, least: int) -> list[dict[str, Any]]:
        """The last attempts, newest first, when there were so many."""

        def look() -> list[dict[str, Any]] | None:
            attempts: list[dict[str, Any]] = self.status()["attempts"]
            return attempts if len(attempts) >= least else None

        found: list[dict[str, Any]] = eventually(look)
        return found

    def until(self, within_s: float = 10.0, **members: Any) -> dict[str, Any]:
        """Wait until the status has these members; return it."""

        def look() -> dict[str, Any] | None:
            status = self.status()
            return status if members.items() <= status.items() else None

        found: dict[str, Any] = eventually(look, within_s, every_s=0.02)
        return found


def subscribe(
    api: Api, queue: str, url: str, *, ttl: int | None = None, **options: Any
) -> Subscribed:
    """Subscribe; keywords are options."""
    document: dict[str, Any] = {"subscriber": url, "options": options}
    if ttl is not None:
        document["ttl"] = ttl
    answer = api.request("POST", api.path(queue, "subscriptions"), json=document)
    made = expect(answer, 201)
    return Subscribed(api, queue, made["subscription_id"], made.get("signing_secret", ""))


def told(requests: Iterable[Received]) -> list[Any]:
    """The bodies of the messages that these requests told of, in the order they came."""
    return [request.json()["body"] for request in requests]


def count(server: LiveServer, sample: str) -> float:
    """One figure of the metrics, 0 while there is none; with its labels, as it is written there."""
    text = server.client.get("/metrics").text
    found = re.search(rf"^{re.escape(sample)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0
