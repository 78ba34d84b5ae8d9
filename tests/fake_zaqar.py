"""A Zaqar as it answers: over MongoDB as the contract has it, over Redis as version 23 was seen to."""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote, unquote, urlencode

from aiohttp import web

Driver = Literal["mongo", "redis"]
Answer = tuple[int, Any]

DEFAULTS = {
    "_max_messages_post_size": 262144,
    "_default_message_ttl": 3600,
    "_default_message_delay": 0,
    "_dead_letter_queue": None,
    "_dead_letter_queue_messages_ttl": None,
    "_max_claim_count": None,
    "_enable_encrypt_messages": False,
}
TOPIC_DEFAULTS = dict(list(DEFAULTS.items())[:3])
UNAVAILABLE = 503, {"title": "Service temporarily unavailable", "description": "Please try again."}
BROKEN = 500, {"title": "Internal server error", "description": "unexpected keyword argument"}
UNROUTED = 404, {"title": "404 Not Found"}
NOT_FOUND = 404, {"title": "Not found", "description": "There is no such thing."}


@dataclass
class FakeMessage:
    """Times are seconds on the clock of the service."""

    id: str
    counter: int
    body: Any
    ttl: int
    posted: int
    expires: int
    due: int = 0
    claim: str = ""


@dataclass
class FakeClaim:
    ttl: int
    started: int

    @property
    def ends(self) -> int:
        return self.started + self.ttl


@dataclass
class FakeSubscription:
    id: str
    subscriber: str
    ttl: int
    created: int
    options: Any
    confirmed: bool | None


@dataclass
class FakeQueue:
    """``metadata`` as they were given; messages that ended stay until they are collected."""

    metadata: dict[str, Any] = field(default_factory=dict)
    messages: list[FakeMessage] = field(default_factory=list)
    claims: dict[str, FakeClaim] = field(default_factory=dict)
    subscriptions: list[FakeSubscription] = field(default_factory=list)
    posted: int = 0


class FakeZaqar(AbstractAsyncContextManager["FakeZaqar"]):
    """``now`` is its clock. ``before`` is asked before each answer, and may give another one."""

    def __init__(self, driver: Driver = "redis") -> None:
        self.driver = driver
        self.now = 1_700_000_000
        self.queues: dict[str, dict[str, FakeQueue]] = {}
        self.topics: dict[str, dict[str, FakeQueue]] = {}
        self.pools: list[dict[str, Any]] | None = None
        self.flavors: list[dict[str, Any]] = []
        self.token = ""
        self.asked: list[str] = []
        self.before: Callable[[str], Awaitable[Answer | None]] | None = None
        self.url = ""
        self._runner: web.AppRunner | None = None

    # What there is

    def queue(self, name: str, project: str = "p", **metadata: Any) -> FakeQueue:
        return self.queues.setdefault(project, {}).setdefault(name, FakeQueue(metadata))

    def topic(self, name: str, project: str = "p", **metadata: Any) -> FakeQueue:
        return self.topics.setdefault(project, {}).setdefault(name, FakeQueue(metadata))

    def post(
        self, queue: FakeQueue, *bodies: Any, ttl: int = 3600, age: int = 0, delay: int = 0
    ) -> list[FakeMessage]:
        """Delays count where the queue has one."""
        delay = delay or queue.metadata.get("_default_message_delay", 0)
        posted = self.now - age
        for body in bodies:
            queue.posted += 1
            new = FakeMessage(self._id(), queue.posted, body, ttl, posted, posted + ttl)
            if queue.metadata.get("_default_message_delay"):
                new.due = posted + delay
            queue.messages.append(new)
        return queue.messages[-len(bodies) :]

    def claim(
        self, queue: FakeQueue, *messages: FakeMessage, ttl: int = 300, grace: int = 60
    ) -> str:
        """Prolongs the lives of those that would end before the claim."""
        id_ = self._id()
        claim = queue.claims[id_] = FakeClaim(ttl, self.now)
        for one in messages:
            one.claim = id_
            if one.expires < claim.ends:
                one.ttl, one.expires = ttl + grace, self.now + ttl + grace
        return id_

    def subscribe(
        self,
        queue: FakeQueue,
        subscriber: str,
        *,
        ttl: int = 3600,
        age: int = 0,
        options: Any = None,
        confirmed: bool | None = False,
    ) -> FakeSubscription:
        new = FakeSubscription(
            self._id(), subscriber, ttl, self.now - age, options or {}, confirmed
        )
        queue.subscriptions.append(new)
        return new

    def _id(self) -> str:
        return str(uuid.uuid4()) if self.driver == "redis" else uuid.uuid4().hex[:24]

    # Serving

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.Response:
        assert request.method == "GET", "a source is read only"
        assert request.headers.get("Client-ID"), "clients have names"
        path = request.raw_path
        self.asked.append(path)
        status, document = (await self.before(path) if self.before else None) or self._answer(
            request
        )
        # As Zaqar does: what Python takes for JSON, NaN included.
        return web.Response(
            status=status, body=json.dumps(document).encode(), content_type="application/json"
        )

    def _answer(self, request: web.Request) -> Answer:
        if self.token and request.headers.get("X-Auth-Token") != self.token:
            return 401, {"error": {"code": 401, "title": "Unauthorized"}}
        query = dict(request.query)
        project = request.headers["X-Project-ID"]
        parts = [unquote(part) for part in request.path.split("/")[1:]]
        match parts:
            case ["v2", "queues"]:
                return self._list_queues(project, query)
            case ["v2", "topics"]:
                return self._list_topics(project, query)
            case ["v2", "queues", name]:
                queue = self.queues.get(project, {}).get(name, FakeQueue())
                return 200, self._metadata(queue)
            case ["v2", "topics", _, "messages" | "subscriptions"]:
                return BROKEN
            case ["v2", "topics", name, "stats"]:
                return self._stats(self.topics.get(project, {}).get(name, FakeQueue()))
            case ["v2", "queues", name, *rest]:
                queue = self.queues.get(project, {}).get(name, FakeQueue())
                return self._in_queue(queue, f"/v2/queues/{quote(name)}", rest, query)
            case ["v2", "pools"]:
                return self._page(self.pools, "pools", query)
            case ["v2", "flavors"]:
                return self._page(None if self.pools is None else self.flavors, "flavors", query)
        return UNROUTED

    def _in_queue(
        self, queue: FakeQueue, path: str, rest: Sequence[str], query: dict[str, str]
    ) -> Answer:
        match rest:
            case ["stats"]:
                return self._stats(queue)
            case ["messages"]:
                return self._list_messages(queue, f"{path}/messages", query)
            case ["subscriptions"]:
                return self._list_subscriptions(queue, query)
            case ["claims", id_]:
                claim = queue.claims.get(id_)
                if claim is None or claim.ends <= self.now:
                    return UNAVAILABLE if claim and self.driver == "redis" else NOT_FOUND
                return 200, {"age": self.now - claim.started, "ttl": claim.ttl, "messages": []}
        return UNROUTED

    def _metadata(self, queue: FakeQueue) -> dict[str, Any]:
        return {
            **queue.metadata,
            **{k: v for k, v in DEFAULTS.items() if not queue.metadata.get(k)},
        }

    def _list_queues(self, project: str, query: dict[str, str]) -> Answer:
        names = sorted(self.queues.get(project, {}))
        limit, marker = int(query["limit"]), query.get("marker")
        if self.driver == "redis":
            rank = names.index(marker) if marker in names else 0
            names = names[rank + 1 if rank else 0 :]
        elif marker:
            names = [name for name in names if name > marker]
        shown = [
            {
                "name": name.partition(".")[0] if self.driver == "redis" else name,
                "metadata": self._metadata(
                    self.queues[project].get(name.partition(".")[0], FakeQueue())
                    if self.driver == "redis"
                    else self.queues[project][name]
                ),
            }
            for name in names[:limit]
        ]
        return 200, {"queues": shown, "links": self._link("/v2/queues", query, shown)}

    def _list_topics(self, project: str, query: dict[str, str]) -> Answer:
        if self.driver == "redis":
            return UNAVAILABLE
        names = [n for n in sorted(self.topics.get(project, {})) if n > query.get("marker", "")]
        shown = [
            {"name": n, "metadata": TOPIC_DEFAULTS | self.topics[project][n].metadata}
            for n in names[: int(query["limit"])]
        ]
        return 200, {"topics": shown, "links": self._link("/v2/topics", query, shown)}

    def _page(
        self, things: Sequence[dict[str, Any]] | None, what: str, query: dict[str, str]
    ) -> Answer:
        if things is None:
            return UNROUTED
        shown = [t for t in things if t["name"] > query.get("marker", "")][: int(query["limit"])]
        return 200, {what: shown, "links": self._link(f"/v2/{what}", query, shown)}

    def _link(
        self, path: str, query: dict[str, str], shown: Sequence[dict[str, Any]], marker: str = ""
    ) -> list[dict[str, str]]:
        if not shown:
            return []
        following = urlencode(query | {"marker": marker or shown[-1]["name"]})
        return [{"rel": "next", "href": f"{path}?{following}"}]

    def _stats(self, queue: FakeQueue) -> Answer:
        if self.driver == "redis" and any(c.ends <= self.now for c in queue.claims.values()):
            return UNAVAILABLE
        counted = [m for m in queue.messages if self.driver == "redis" or m.expires + 60 > self.now]
        return 200, {"messages": {"claimed": 0, "free": len(counted), "total": len(counted)}}

    def _list_messages(self, queue: FakeQueue, path: str, query: dict[str, str]) -> Answer:
        limit, marker = int(query["limit"]), query.get("marker")
        claimed, delayed = "include_claimed" in query, "include_delayed" in query

        def held(m: FakeMessage) -> bool:
            return bool(m.claim) and queue.claims[m.claim].ends > self.now

        if self.driver == "redis":
            if claimed and not marker:
                return UNAVAILABLE
            ids = [m.id for m in queue.messages]
            if not marker:
                free = [m.id for m in queue.messages if m.expires > self.now and not held(m)]
                start = ids.index(free[0]) if free else 0
            else:
                rank = ids.index(marker) if marker in ids else 0
                start = rank + 1 if rank else 0
            found = [m for m in queue.messages[start : start + limit] if m.expires > self.now]
        else:
            after = int(marker) if marker and marker.isdecimal() else 0 if not marker else 1 << 60
            found = [m for m in queue.messages if m.counter > after and m.expires + 60 > self.now][
                :limit
            ]
        found = [m for m in found if (claimed or not held(m)) and (delayed or m.due <= self.now)]
        shown = [
            {
                "id": m.id,
                "href": f"{path}/{m.id}"
                + (f"?claim_id={m.claim}" if m.claim else ""),  # over or not
                "ttl": m.ttl,
                "age": self.now - m.posted,
                "body": m.body,
            }
            for m in found
        ]
        last = (
            "" if not found else found[-1].id if self.driver == "redis" else str(found[-1].counter)
        )
        return 200, {"messages": shown, "links": self._link(path, query, shown, last)}

    def _list_subscriptions(self, queue: FakeQueue, query: dict[str, str]) -> Answer:
        ordered = sorted(queue.subscriptions, key=lambda s: s.id)
        ids, marker = [s.id for s in ordered], query.get("marker")
        start = ids.index(marker) + 1 if marker in ids else 0
        shown = [
            {
                "id": s.id,
                "source": "q",
                "subscriber": s.subscriber,
                "ttl": s.ttl,
                "age": self.now - s.created,
                "options": s.options,
            }
            | ({} if s.confirmed is None else {"confirmed": s.confirmed})
            for s in ordered[start : start + int(query["limit"])]
        ]
        return 200, {"subscriptions": shown, "links": []}
