"""The messages of a queue as a stream of events (server-sent events, as the HTML standard has them).

Every message is sent once, in order, whatever its state; ids of events are those of messages, so
whoever was cut off goes on behind the last one that was seen.
"""

import asyncio
import math
import re
import time
from collections import deque
from collections.abc import Mapping
from typing import Self

import structlog
from falcon.asgi import Response

from nusku.auth import Authentication
from nusku.broker import Broker, Follower, View, permit
from nusku.errors import Forbidden, Invalid, NuskuError, Unauthorized
from nusku.http import wire
from nusku.http.request import Request
from nusku.model import Caller, QueueKey
from nusku.shapes import encode

log = structlog.get_logger("nusku.http")

MEDIA_TYPE = "text/event-stream"
ACCEPT = MEDIA_TYPE.encode()
OPERATION = "messages:get_all"
KEEP_ALIVE_S = 15.0  # between two comments while nothing comes
RECONNECT_MS = 2000  # that a browser waits before it connects again
BUFFERED_MAX = 262_144  # bytes, beyond what the connection holds
MESSAGE_BYTES = 512  # that a message takes beside its body
PIECE_BYTES = 65_536  # of events that are written at once, or a little more

_PATH = re.compile(r"/v2/(?:queues|topics)/[^/]+/messages")
# What browsers cannot send as headers here, by the names that pre-signed URLs have in answers.
_PARAMETERS = {
    "client_id": b"client-id",
    "project_id": b"x-project-id",
    "signature": b"url-signature",
    "methods": b"url-methods",
    "paths": b"url-paths",
    "expires": b"url-expires",
}


def wanted(req: Request) -> bool:
    """Whether a stream is asked for."""
    return req.head.get(b"accept") == ACCEPT and req.method == "GET"


def completed(req: Request) -> Mapping[bytes, bytes]:
    """The headers of a request, with those that may be in the query instead."""
    if not (wanted(req) and _PATH.fullmatch(req.path)):
        return req.head
    given = {
        header: _header(",".join(req.strings(name)))
        for name, header in _PARAMETERS.items()
        if name in req.params
    }
    return {**given, **req.head}


def _header(text: str) -> bytes:
    """What would be sent as a header. Raises Invalid for what could not be."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise Invalid("A parameter has characters in it that are not in Latin-1.") from None


class Stream:
    """An answer without an end: it ends when the client hangs up, when what let the client in is no
    longer valid, and when the server stops.

    Falcon asks for one part after the other, and not for the next one while the client does not read.
    What comes meanwhile is kept up to a bound; then the queue is read again from there.
    """

    def __init__(
        self,
        req: Request,
        broker: Broker,
        authentication: Authentication,
        key: QueueKey,
        *,
        echo: bool,
    ) -> None:
        self._head = req.head
        self._caller = req.ctx.caller
        self._key = key
        self._grants = broker.grants
        self._without = None if echo else req.ctx.client
        self._at_close = broker.waiting.at_close
        self._authentication = authentication
        self._follower: Follower | None = None
        self._views: deque[View] = deque()
        self._bytes = 0
        self._full = False  # nothing more is taken before all is sent
        self._woken: asyncio.Future[None] | None = None
        self._over = False
        self._begun = False
        self._welcome_until_s = self._next_check_s()
        self._confirmed_s = time.monotonic()
        self._gone = asyncio.ensure_future(req.gone())
        self._gone.add_done_callback(lambda _: self.end())
        self._at_close.add(self.end)

    def begin(self, follower: Follower) -> None:
        self._follower = follower
        follower.start()

    def take(self, view: View) -> bool:
        """Messages to be sent; False when no more can be taken now."""
        if self._without is not None:
            others = [m for m in view.messages if m.client != self._without]
            if len(others) < len(view.messages):
                view = View(view.key, view.generation, others, view.now_ms)
        if view.messages:
            self._views.append(view)
            self._bytes += sum(MESSAGE_BYTES + len(m.body) for m in view.messages)
            self._wake()
        self._full = self._bytes >= BUFFERED_MAX
        return not self._full

    def end(self) -> None:
        self._over = True
        self._wake()

    def _wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._begun:
            self._begun = True
            return b"retry: %d\n\n" % RECONNECT_MS
        while not self._over:
            if time.time() >= self._welcome_until_s:
                await self._check()
                continue
            if self._views:
                return self._events()
            if not await self._something():
                return b":\n\n"
        raise StopAsyncIteration

    def _events(self) -> bytes:
        events = bytearray()
        while self._views and len(events) < PIECE_BYTES:
            view = self._views.popleft()
            for m in view.messages:
                document = encode(wire.message(view, m))
                events += b"id: %b\ndata: %b\n\n" % (view.id_of(m).encode(), document)
                self._bytes -= MESSAGE_BYTES + len(m.body)
        if self._full and not self._views and self._follower is not None:
            self._full = False
            self._follower.start()
        return bytes(events)

    async def _something(self) -> bool:
        """Wait for something to come, or the time to say that there is nothing."""
        loop = asyncio.get_running_loop()
        self._woken = woken = loop.create_future()
        patience_s = min(KEEP_ALIVE_S, max(self._welcome_until_s - time.time(), 0.0))
        timer = loop.call_later(patience_s, self._wake)
        try:
            await woken
        finally:
            timer.cancel()
            self._woken = None
        return bool(self._views) or self._over or time.time() >= self._welcome_until_s

    def _next_check_s(self) -> float:
        if self._caller is None:
            return math.inf
        if self._caller.scheme == "signature":
            return self._caller.expires_s
        return min(time.time() + KEEP_ALIVE_S, self._caller.expires_s)

    async def _check(self) -> None:
        """End when the credentials have expired, were revoked, or do not allow this any more."""
        if self._caller is None or time.time() >= self._caller.expires_s:
            self.end()
            return
        try:
            caller = self._authentication.known(self._head)
            if caller is None:
                caller = await self._authentication.caller(self._head)
            await self._permit(caller)
        except (Unauthorized, Forbidden):
            self.end()
            return
        except NuskuError as error:  # nobody can say; it was fine a moment ago
            log.warning("credentials of a stream could not be checked", reason=error.detail)
            if time.monotonic() - self._confirmed_s > self._authentication.unsure_max_s:
                self.end()
                return
            caller = self._caller
        else:
            self._confirmed_s = time.monotonic()
        self._caller = caller
        self._welcome_until_s = self._next_check_s()

    async def _permit(self, caller: Caller) -> None:
        """As for a new request. Raises Forbidden."""
        ctx = self._authentication.context(self._head, caller)
        owner = self._head.get(b"queue-project-id", b"").decode("latin-1")
        if owner or not permit.policy(ctx, OPERATION):
            key = self._key._replace(project=ctx.project)
            ctx = await self._grants.enter(ctx, OPERATION, key, owner)
        if ctx.project != self._key.project:
            raise Forbidden("The credentials are for another project by now.")

    def discard(self) -> None:
        """Let go of everything."""
        self._at_close.discard(self.end)
        self._gone.cancel()
        if self._follower is not None:
            self._follower.stop()

    async def close(self) -> None:
        """Falcon is done with it."""
        self.discard()


async def follow(
    req: Request, resp: Response, broker: Broker, authentication: Authentication, key: QueueKey
) -> None:
    """Answer with the messages behind the last one that was seen, and all that come."""
    marker = req.head.get(b"last-event-id", b"").decode("latin-1") or req.string("marker") or ""
    stream = Stream(req, broker, authentication, key, echo=bool(req.boolean("echo")))
    try:
        stream.begin(await broker.following.follow(req.ctx, key, marker, stream.take))
    except BaseException:
        stream.discard()
        raise
    resp.content_type = MEDIA_TYPE
    resp.set_header("Cache-Control", "no-store")
    resp.set_header("X-Accel-Buffering", "no")  # for nginx, which would wait for more
    resp.stream = stream
