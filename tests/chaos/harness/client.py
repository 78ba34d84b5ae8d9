"""A raw HTTP/1.1 client that never tries anything twice.

Every call ends by its deadline, with one of the three outcomes of `history`. After anything but a
complete answer the connection is thrown away: a late answer must never be taken for another's.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, cast

import msgspec

from tests.chaos.harness.history import (
    FAIL,
    INFO,
    OK,
    Op,
    Sighting,
    make_body,
    read_body,
    read_encoded,
)


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
    head: bytes  # status line and headers
    body: bytes

    @property
    def headers(self) -> Mapping[str, str]:
        """By names in lower case."""
        lines = (line.partition(":") for line in self.head.decode("latin-1").split("\r\n")[1:])
        return {name.lower(): value.strip() for name, _, value in lines}


class Connection:
    """One keep-alive connection, opened when needed. One request at a time."""

    def __init__(self, target: Target, deadline: float = 10.0) -> None:
        self._target = target
        self._deadline = deadline
        self._address: tuple[str, int] | None = None
        self._line: _Line | None = None

    async def request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> Reply:
        """Send one request and read its answer; NotSentError or UnknownError if that fails."""
        lines = [f"{method} {path} HTTP/1.1", "Host: chaos"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        return await self.send("\r\n".join([*lines, "", ""]).encode() + (body or b""))

    async def send(self, request: bytes) -> Reply:
        """The same with all that is to be sent."""
        end = time.monotonic() + self._deadline
        try:
            line = await self._connect()
        except (OSError, TimeoutError) as error:
            self.close()
            raise NotSentError(repr(error)) from error
        except BaseException:
            self.close()
            raise
        try:
            reply = await line.ask(request, end - time.monotonic())
        except (OSError, EOFError, ValueError) as error:
            self.close()
            raise UnknownError(repr(error)) from error
        except BaseException:
            self.close()
            raise
        if _CLOSING.search(reply.head):
            self.close()
        return reply

    async def _connect(self) -> _Line:
        address = self._target.address
        if address is None:
            raise ConnectionRefusedError
        line = self._line
        if line is not None:
            if self._address == address and not line.over:
                return line
            # The server hung up while we had nothing to say: better to know it now.
            self.close()
        async with asyncio.timeout(self._deadline):
            loop = asyncio.get_running_loop()
            _, line = await loop.create_connection(lambda: _Line(loop), *address)
        self._line, self._address = line, address
        return line

    def close(self) -> None:
        if self._line is not None:
            self._line.abort()
            self._line = None


class _Line(asyncio.Protocol):
    """What a connection consists of while it is open."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._answer: asyncio.Future[Reply] | None = None
        self.over = False

    async def ask(self, request: bytes, patience: float) -> Reply:
        """Raises EOFError, OSError, TimeoutError, or ValueError for what is no HTTP."""
        assert self._transport is not None
        if self.over:
            raise EOFError
        answer: asyncio.Future[Reply] = self._loop.create_future()
        self._answer = answer
        self._transport.write(request)
        late = self._loop.call_later(patience, self._fail, TimeoutError())
        try:
            return await answer
        finally:
            late.cancel()
            self._answer = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received = data = self._received + data if self._received else data
        answer = self._answer
        if answer is None or answer.done():
            self.abort()  # nobody has asked
            return
        try:
            reply = _read_reply(data)
        except ValueError as error:
            self._fail(error)
            return
        if reply is not None:
            self._received = b""
            answer.set_result(reply)

    def eof_received(self) -> None:
        self._fail(EOFError())

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(error if isinstance(error, OSError) else EOFError())

    def _fail(self, error: Exception) -> None:
        self.over = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    def abort(self) -> None:
        self.over = True
        if self._transport is not None:
            self._transport.abort()


_CLOSING = re.compile(rb"\r\nconnection: *close *(?:\r|$)", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+) *(?:\r|$)", re.IGNORECASE)
_LOCATION = re.compile(rb"\r\nlocation: *([^\r]*?) *(?:\r|$)", re.IGNORECASE)


def _read_reply(data: bytes) -> Reply | None:
    """The answer that these bytes are; None if it goes on; ValueError if they are none."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    head, start = data[:end], end + 4
    if not head.startswith(b"HTTP/1.1 "):
        raise ValueError(f"no HTTP: {head[:80]!r}")
    status = int(head[9:12])
    length = 0
    if status not in {204, 304}:
        found = _LENGTH.search(head)
        if found is None:
            raise ValueError("no length: where it ends cannot be known, so it is not complete")
        length = int(found[1])
    missing = start + length - len(data)
    if missing < 0:
        raise ValueError(f"more than one answer: {data[start + length :][:80]!r}")
    return Reply(status, head, data[start:]) if not missing else None


class Client:
    """One agent's view of the service: carries out operations and says what came of them."""

    def __init__(self, target: Target, who: str, run: int, deadline: float = 10.0) -> None:
        self.who = who
        self._run = run
        self._connection = Connection(target, deadline)
        self._id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{run}/{who}"))
        self._heads: dict[str, bytes] = {}  # what follows the path, by queue

    async def perform(self, op: Op) -> Op:
        """Fill in times, outcome and what was seen; returns the same object."""
        return await self._perform(op, *_request_of(op, self._run))

    async def subscribe(self, op: Op, subscriber: str, options: Mapping[str, Any]) -> Op:
        """Carry out a `subscribe`."""
        body = {"subscriber": subscriber, "ttl": op.ttl, "options": options}
        path = f"/v2/queues/{op.q.partition('/')[2]}/subscriptions"
        return await self._perform(op, "POST", path, body)

    async def _perform(self, op: Op, method: str, path: str, body: object) -> Op:
        head = self._heads.get(op.q) or self._head(op.q)
        request = f"{method} {path}".encode() + head
        if body is None:
            request += b"\r\n"
        else:
            encoded = _encode(body)
            request += b"Content-Length: %d\r\n\r\n%b" % (len(encoded), encoded)
        op.who = self.who
        op.t0 = time.monotonic()
        try:
            reply = await self._connection.send(request)
        except NotSentError as error:
            op.out, op.note = FAIL, str(error)
        except UnknownError as error:
            op.out, op.note = INFO, str(error)
        else:
            op.t1 = time.monotonic()
            op.status = status = reply.status
            op.out = OK if status < 300 else FAIL if 400 <= status < 500 else INFO
            try:
                _read_answer(op, reply, self._run)
            except (ValueError, KeyError, TypeError) as error:
                op.out, op.note = INFO, f"unreadable answer: {error!r} {reply.body[:200]!r}"
            return op
        op.t1 = time.monotonic()
        return op

    def _head(self, q: str) -> bytes:
        lines = ("", f"Client-ID: {self._id}", f"X-Project-ID: {q.partition('/')[0]}", "")
        head = self._heads[q] = b" HTTP/1.1\r\nHost: chaos" + "\r\n".join(lines).encode()
        return head

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


_encode = msgspec.json.Encoder().encode


def _request_of(op: Op, run: int) -> tuple[str, str, object]:
    """(method, path, body to be JSON) of an operation."""
    base = f"/v2/queues/{op.q.partition('/')[2]}"
    match op.f:
        case "post":
            extra = {"delay": op.delay} if op.delay else {}
            messages = [
                {"body": make_body(run, op.q, op.p, n), "ttl": op.ttl} | extra
                for n in range(op.n, op.n + op.size)
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
        case "purge":
            return "POST", f"{base}/purge", {"resource_types": ["messages"]}
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


class _Shown(msgspec.Struct):
    """What answers show of a message."""

    id: str
    body: msgspec.Raw


class _Messages(msgspec.Struct):
    messages: list[_Shown]


class _Posted(msgspec.Struct):
    resources: list[str]


class _Counts(msgspec.Struct):
    total: int
    claimed: int
    free: int


class _Stats(msgspec.Struct):
    messages: _Counts


_messages = msgspec.json.Decoder(_Messages).decode
_posted = msgspec.json.Decoder(_Posted).decode
_stats = msgspec.json.Decoder(_Stats).decode
_shown = msgspec.json.Decoder(_Shown).decode


def _read_answer(op: Op, reply: Reply, run: int) -> None:
    if op.out != OK:
        op.note = reply.body[:200].decode("utf-8", "replace")
        return
    match op.f:
        case "post":
            op.ids = [path.rsplit("/", 1)[1] for path in _posted(reply.body).resources]
            if len(op.ids) != op.size:
                raise ValueError("wrong number of resources")
        case "claim" if reply.status == 201:
            found = _LOCATION.search(reply.head)
            if found is None:
                raise ValueError("no location")
            op.cid = found[1].rpartition(b"/")[2].decode()
            op.got = _sightings(_messages(reply.body).messages, run)
        case "pop" | "list":
            op.got = _sightings(_messages(reply.body).messages, run)
        case "get":
            op.got = _sightings([_shown(reply.body)], run)
        case "stats":
            counts = _stats(reply.body).messages
            op.counts = (counts.total, counts.claimed, counts.free)
        case "subscribe":
            op.id = json.loads(reply.body)["subscription_id"]
        case "waiting":
            status = json.loads(reply.body)
            op.counts = (status["pending"], status["failed"], status["delivered"])
        case "failed":
            for one in json.loads(reply.body)["failed"]:
                op.got.append((one["id"], *read_body(run, one["body"]["body"])))


def _sightings(messages: list[_Shown], run: int) -> list[Sighting]:
    return [(message.id, *read_encoded(run, message.body)) for message in messages]
