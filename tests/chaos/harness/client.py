"""A raw HTTP/1.1 client that never tries anything twice.

Every call ends by its deadline, with one of the three outcomes of `history`. After anything but a
complete answer the connection is thrown away: a late answer must never be taken for another's.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from tests.chaos.harness.history import FAIL, INFO, OK, Op, Sighting, make_body, read_body


class Target(Protocol):
    """Where to connect now; None while the server is known to be down."""

    @property
    def address(self) -> tuple[str, int] | None: ...


class NotSentError(Exception):
    """Not one byte reached the server."""


class UnknownError(Exception):
    """Sent, at least in part, and no complete answer came."""


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """One keep-alive connection, opened when needed. One request at a time."""

    def __init__(self, target: Target, deadline: float = 10.0) -> None:
        self._target = target
        self._deadline = deadline
        self._address: tuple[str, int] | None = None
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> Reply:
        """Send one request and read its answer; NotSentError or UnknownError if that fails."""
        sent = False
        try:
            async with asyncio.timeout(self._deadline):
                reader, writer = await self._connect()
                lines = [f"{method} {path} HTTP/1.1", "Host: chaos"]
                lines += [f"{name}: {value}" for name, value in headers.items()]
                if body is not None:
                    lines.append(f"Content-Length: {len(body)}")
                sent = True
                writer.write("\r\n".join([*lines, "", ""]).encode() + (body or b""))
                await writer.drain()
                reply = await _read_reply(reader)
        except (
            OSError,
            TimeoutError,
            EOFError,
            ValueError,
            LookupError,
            asyncio.LimitOverrunError,
        ) as error:
            self.close()
            raise (UnknownError if sent else NotSentError)(repr(error)) from error
        except BaseException:
            self.close()
            raise
        if reply.headers.get("connection", "").lower() == "close":
            self.close()
        return reply

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = self._target.address
        if address is None:
            raise ConnectionRefusedError
        # The server closed the connection while we had nothing to say: better to know it now.
        if self._streams and (self._address != address or self._streams[0].at_eof()):
            self.close()
        if not self._streams:
            self._streams = await asyncio.open_connection(*address)
            self._address = address
        return self._streams

    def close(self) -> None:
        if self._streams:
            self._streams[1].transport.abort()
            self._streams = None


async def _read_reply(reader: asyncio.StreamReader) -> Reply:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = int(head[0].split(" ", 2)[1])
    headers: dict[str, str] = {}
    for line in head[1:-2]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    if status in {204, 304}:
        return Reply(status, headers, b"")
    # No length: the answer's end cannot be known, so it is not a complete one.
    length = int(headers.get("content-length", "unknown"))
    return Reply(status, headers, await reader.readexactly(length))


class Client:
    """One agent's view of the service: carries out operations and says what came of them."""

    def __init__(self, target: Target, who: str, run: int, deadline: float = 10.0) -> None:
        self.who = who
        self._run = run
        self._connection = Connection(target, deadline)
        self._id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{run}/{who}"))

    async def perform(self, op: Op) -> Op:
        """Fill in times, outcome and what was seen; returns the same object."""
        return await self._perform(op, *_request_of(op, self._run))

    async def subscribe(self, op: Op, subscriber: str, options: Mapping[str, Any]) -> Op:
        """Carry out a `subscribe`."""
        body = {"subscriber": subscriber, "ttl": op.ttl, "options": options}
        path = f"/v2/queues/{op.q.partition('/')[2]}/subscriptions"
        return await self._perform(op, "POST", path, body)

    async def _perform(self, op: Op, method: str, path: str, body: Mapping[str, Any] | None) -> Op:
        headers = {"Client-ID": self._id, "X-Project-ID": op.q.partition("/")[0]}
        encoded = None if body is None else json.dumps(body).encode()
        op.who = self.who
        op.t0 = time.monotonic()
        try:
            reply = await self._connection.request(method, path, headers, encoded)
        except NotSentError as error:
            op.out, op.note = FAIL, str(error)
        except UnknownError as error:
            op.out, op.note = INFO, str(error)
        else:
            op.status = reply.status
            op.out = OK if reply.status < 300 else FAIL if 400 <= reply.status < 500 else INFO
            try:
                _read_answer(op, reply, self._run)
            except (ValueError, KeyError, TypeError) as error:
                op.out, op.note = INFO, f"unreadable answer: {error!r} {reply.body[:200]!r}"
        op.t1 = time.monotonic()
        return op

    async def configure(self, q: str, dead_letter_queue: str, most_claims: int) -> None:
        """Create a queue with dead letters; ValueError if it was not created."""
        metadata = {"_dead_letter_queue": dead_letter_queue, "_max_claim_count": most_claims}
        project, _, queue = q.partition("/")
        headers = {"Client-ID": self._id, "X-Project-ID": project}
        body = json.dumps(metadata).encode()
        reply = await self._connection.request("PUT", f"/v2/queues/{queue}", headers, body)
        if reply.status != 201:
            raise ValueError(f"{q} was not created: {reply}")

    def close(self) -> None:
        self._connection.close()


def _request_of(op: Op, run: int) -> tuple[str, str, dict[str, Any] | None]:
    """(method, path, JSON body) of an operation."""
    base = f"/v2/queues/{op.q.partition('/')[2]}"
    match op.f:
        case "post":
            extra = {"delay": op.delay} if op.delay else {}
            messages = [
                {"body": make_body(run, op.q, op.p, op.n + i), "ttl": op.ttl} | extra
                for i in range(op.size)
            ]
            return "POST", f"{base}/messages", {"messages": messages}
        case "claim":
            body = {"ttl": op.ttl, "grace": op.grace}
            return "POST", f"{base}/claims?limit={op.limit}", body
        case "renew":
            return "PATCH", f"{base}/claims/{op.cid}", {"ttl": op.ttl, "grace": op.grace}
        case "release":
            return "DELETE", f"{base}/claims/{op.cid}", None
        case "delete":
            query = f"?claim_id={op.cid}" if op.cid else ""
            return "DELETE", f"{base}/messages/{op.id}{query}", None
        case "bulk":
            return "DELETE", f"{base}/messages?ids={','.join(op.ids)}", None
        case "pop":
            return "DELETE", f"{base}/messages?pop={op.limit}", None
        case "list":
            query = f"?limit={op.limit}&echo=true"
            if op.every:
                query += "&include_claimed=true&include_delayed=true"
            if op.marker:
                query += f"&marker={op.marker}"
            return "GET", f"{base}/messages{query}", None
        case "get":
            return "GET", f"{base}/messages/{op.id}", None
        case "stats":
            return "GET", f"{base}/stats", None
        case "waiting":
            return "GET", f"{base}/subscriptions/{op.id}/status", None
        case "failed":
            query = f"?limit={op.limit}" + (f"&marker={op.marker}" if op.marker else "")
            return "GET", f"{base}/subscriptions/{op.id}/failed{query}", None
        case "replay" | "pause" | "resume":
            return "POST", f"{base}/subscriptions/{op.id}/{op.f}", None
    raise ValueError(op.f)


def _read_answer(op: Op, reply: Reply, run: int) -> None:
    if op.out != OK:
        op.note = reply.body[:200].decode("utf-8", "replace")
        return
    match op.f:
        case "post":
            op.ids = [path.rsplit("/", 1)[1] for path in reply.json()["resources"]]
            if len(op.ids) != op.size:
                raise ValueError("wrong number of resources")
        case "claim" if reply.status == 201:
            op.cid = reply.headers["location"].rsplit("/", 1)[1]
            op.got = _sightings(reply.json()["messages"], run)
        case "pop" | "list":
            op.got = _sightings(reply.json()["messages"], run)
        case "get":
            op.got = _sightings([reply.json()], run)
        case "stats":
            counts = reply.json()["messages"]
            op.counts = (counts["total"], counts["claimed"], counts["free"])
        case "subscribe":
            op.id = reply.json()["subscription_id"]
        case "waiting":
            status = reply.json()
            op.counts = (status["pending"], status["failed"], status["delivered"])
        case "failed":
            shown = [one | {"body": one["body"]["body"]} for one in reply.json()["failed"]]
            op.got = _sightings(shown, run)


def _sightings(messages: list[dict[str, Any]], run: int) -> list[Sighting]:
    return [(message["id"], *read_body(run, message["body"])) for message in messages]
