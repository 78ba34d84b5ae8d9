"""WebSocket beside HTTP, and many who watch one queue: over WebSockets, and as event streams."""

import asyncio
import base64
import resource
import statistics
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import msgspec

from benchmarks.generator import NO_ANSWER, PATIENCE_S, START, Run, Script
from benchmarks.loads import Cycling, Posting
from benchmarks.messages import Body as MessageBody
from benchmarks.messages import Message as HttpMessage
from benchmarks.messages import encode_post, verified_number
from benchmarks.report import FAN_OUT, SOCKET_MEMORY, SOCKET_POST, Result, Row, percentile_ms
from benchmarks.rig import Rig
from benchmarks.turns import WARM_RATE, Side, against, in_turns
from benchmarks.wire import CONSUMER, PRODUCER, Answer, Target, WrongAnswerError
from benchmarks.work_queue import WorkQueue

Told = Callable[[bytes], None]
"""What is called with a message."""
DEPTHS = (1, 16)
"""Requests in flight on one socket."""
FAN_OUTS = 20
"""Posts that everybody is to hear of."""
SETTLE_S = 1.0
OPENED_AT_ONCE = 50

_HANDSHAKE = (
    "GET /v2/websocket HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
)
_STREAM = (
    "GET {path}/messages?echo=true HTTP/1.1\r\nHost: {host}:{port}\r\nClient-ID: {client}\r\n"
    "X-Project-Id: {project}\r\nAccept: text/event-stream\r\n\r\n"
)


class _Headers(msgspec.Struct):
    status: int


class _Reply(msgspec.Struct):
    body: msgspec.Raw
    headers: _Headers


class _Posted(msgspec.Struct):
    message_ids: list[str]


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    claim_id: str | None
    ttl: int
    age: int
    body: MessageBody


class _Claimed(msgspec.Struct):
    claim_id: str | None
    messages: list[_Message] = []


_decode_reply = msgspec.json.Decoder(_Reply).decode
_decode_posted = msgspec.json.Decoder(_Posted).decode
_decode_claimed = msgspec.json.Decoder(_Claimed).decode


def _frame(text: bytes) -> bytes:
    """A masked text frame; the mask is of zeros, which change nothing."""
    size = len(text)
    if size < 126:
        return bytes((0x81, 0x80 | size, 0, 0, 0, 0)) + text
    return b"\x81\xfe" + size.to_bytes(2, "big") + bytes(4) + text


class Socket(asyncio.Protocol):
    """A WebSocket with several scripts, each with a request in flight. Replies come in order.

    What comes beside replies is given to ``told``.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.told: Told = lambda _: None
        self._transport: asyncio.Transport | None = None
        self._switched: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._partial = b""
        self._waiting: deque[Script] = deque()
        self._run = Run()
        self._left = 0
        self._finished: asyncio.Future[None] | None = None

    async def open(self) -> None:
        """Connect and shake hands, or raise OSError or WrongAnswerError."""
        host, port = self.target.host, self.target.port
        await asyncio.get_running_loop().create_connection(lambda: self, host, port)
        assert self._transport is not None
        key = base64.b64encode(bytes(16)).decode()
        self._transport.write(_HANDSHAKE.format(host=host, port=port, key=key).encode())
        await asyncio.wait_for(self._switched, PATIENCE_S)

    def close(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    def request(self, action: str, body: bytes, client: str = PRODUCER) -> bytes:
        """A frame that asks for something."""
        project = self.target.project
        return _frame(
            b'{"action":"%b","headers":{"Client-ID":"%b","X-Project-ID":"%b"},"body":%b}'
            % (action.encode(), client.encode(), project.encode(), body)
        )

    async def ask(self, action: str, body: bytes) -> Answer:
        """One request outside a run."""
        answers: list[Answer] = []

        def script() -> Script:
            answers.append((yield self.request(action, body)))

        run = Run()
        await asyncio.wait_for(self.begin(run, [script()]), PATIENCE_S)
        if run.errors:
            raise WrongAnswerError(run.errors[0])
        return answers[0]

    def begin(self, run: Run, scripts: Sequence[Script]) -> "asyncio.Future[None]":
        """Start the scripts; the future is done when all have ended."""
        self._finished = asyncio.get_running_loop().create_future()
        self._run, self._left = run, len(scripts)
        for script in scripts:
            self._step(script, START)
        return self._finished

    def _step(self, script: Script, answer: Answer) -> None:
        try:
            wish = script.send(answer)
            if type(wish) is bytes:
                assert self._transport is not None
                self._waiting.append(script)
                self._transport.write(wish)
            else:
                loop = asyncio.get_running_loop()
                loop.call_later(cast(float, wish), self._step, script, NO_ANSWER)
            return
        except StopIteration:
            pass
        except (WrongAnswerError, msgspec.MsgspecError) as error:
            self._run.errors.append(str(error))
            self._run.stop()
        self._left -= 1
        if not self._left and self._finished is not None and not self._finished.done():
            self._finished.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Nothing can be sent before the handshake."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Frames, or the answer to the handshake before them."""
        data = self._partial + data
        if not self._switched.done():
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self._partial = head
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                self._switched.set_exception(WrongAnswerError(f"no handshake: {head[:200]!r}"))
                return
            self._switched.set_result(None)
        at = 0
        while len(data) - at >= 2:
            size, start = data[at + 1], at + 2
            if size >= 126:
                width = 2 if size == 126 else 8
                if len(data) < start + width:
                    break
                size = int.from_bytes(data[start : start + width], "big")
                start += width
            if len(data) < start + size:
                break
            if data[at] == 0x81:
                self._message(data[start : start + size])
            at = start + size
        self._partial = data[at:]

    def _message(self, text: bytes) -> None:
        if not text.startswith(b'{"request"'):
            self.told(text)
            return
        reply = _decode_reply(text)
        self._run.requests += 1
        self._step(self._waiting.popleft(), (reply.headers.status, bytes(reply.body)))

    def connection_lost(self, exc: Exception | None) -> None:
        """An error where anything is under way."""
        if self._waiting:
            self._run.errors.append(f"a WebSocket was lost: {exc or 'closed by the server'}")
            self._run.stop()
            if self._finished is not None and not self._finished.done():
                self._finished.set_result(None)


@dataclass(slots=True)
class Sockets:
    """Sockets that post, or claim and delete, one message a request: a contender like ``Side``."""

    name: str
    rig: Rig
    queue: WorkQueue
    sockets: Sequence[Socket]
    depth: int
    cycling: bool = False
    rates: list[float] = field(default_factory=list)
    _need: float = WARM_RATE
    _run: Run = field(default_factory=Run)
    _cpu_s: float = 0.0
    _store_cpu_s: float = 0.0

    async def slice(self, seconds: float) -> None:
        """Run once."""
        if self.cycling:
            ready = self.queue.ledger.posted - self.queue.ledger.claimed
            needed = int(self._need * seconds) + len(self.sockets) * self.depth
            if ready < needed:
                await self.rig.fill([self.queue], needed - ready)
        cpu_s, store_cpu_s = self.rig.server_cpu_s(), self.rig.store_cpu_s()
        run = Run()
        started, generator = time.perf_counter(), time.process_time()
        timer = asyncio.get_running_loop().call_later(seconds, run.stop)
        script = self._cycle if self.cycling else self._post
        ends = [
            socket.begin(run, [script(socket, run) for _ in range(self.depth)])
            for socket in self.sockets
        ]
        await asyncio.wait_for(asyncio.gather(*ends), seconds + PATIENCE_S)
        timer.cancel()
        run.duration_s = time.perf_counter() - started
        run.generator_cpu_s = time.process_time() - generator
        if run.errors:
            raise WrongAnswerError(run.errors[0])
        self._cpu_s += self.rig.server_cpu_s() - cpu_s
        self._store_cpu_s += self.rig.store_cpu_s() - store_cpu_s
        self._run.add(run)
        self.rates.append(run.messages / run.duration_s)
        self._need = 2 * self.rates[-1]

    def _post(self, socket: Socket, run: Run) -> Script:
        queue, name = self.queue, self.queue.path.rpartition("/")[2].encode()
        while not run.over:
            started = time.perf_counter()
            numbers = queue.ledger.take(1)
            post = encode_post(numbers, 3600)
            status, body = yield socket.request(
                "message_post", b'{"queue_name":"%b",%b' % (name, post[1:])
            )
            if status != 201 or len(_decode_posted(body).message_ids) != 1:
                raise WrongAnswerError(f"message_post: {status} {body[:200]!r}")
            queue.ledger.posted += 1
            run.done(started, 1)

    def _cycle(self, socket: Socket, run: Run) -> Script:
        queue, name = self.queue, self.queue.path.rpartition("/")[2].encode()
        claim = socket.request(
            "claim_create", b'{"queue_name":"%b","limit":1,"ttl":300,"grace":60}' % name, CONSUMER
        )
        while not run.over:
            started = time.perf_counter()
            status, body = yield claim
            if status == 204:
                return
            claimed = _decode_claimed(body)
            if status != 201 or len(claimed.messages) != 1:
                raise WrongAnswerError(f"claim_create: {status} {body[:200]!r}")
            (message,) = claimed.messages
            queue.ledger.claim(HttpMessage(message.id, "", message.ttl, message.age, message.body))
            status, body = yield socket.request(
                "message_delete",
                b'{"queue_name":"%b","message_id":"%b","claim_id":"%b"}'
                % (name, message.id.encode(), (claimed.claim_id or "").encode()),
                CONSUMER,
            )
            if status != 204:
                raise WrongAnswerError(f"message_delete: {status} {body[:200]!r}")
            queue.ledger.delete(message.body.number)
            run.done(started, 1)

    def reset(self) -> None:
        """Forget what was measured."""
        self.rates, self._run, self._cpu_s, self._store_cpu_s = [], Run(), 0.0, 0.0

    async def finish(self) -> None:
        """Nothing may be lost."""
        await self.rig.check_counts(self.queue, claimed=0)
        await self.rig.do(self.queue.drop())

    def row(self) -> Row:
        """The figures of all slices."""
        return self.rig.row(self.name, self._run, self._cpu_s, [], [], self._store_cpu_s)


async def _opened(targets: Sequence[Target], count: int) -> list[Socket]:
    sockets = [Socket(targets[number % len(targets)]) for number in range(count)]
    for first in range(0, count, OPENED_AT_ONCE):
        await asyncio.gather(*(socket.open() for socket in sockets[first : first + OPENED_AT_ONCE]))
    return sockets


async def sockets(rig: Rig) -> Result:
    """As many sockets as connections, with one and with many requests in flight on each, in turns."""
    result = Result("sockets")
    opened = await _opened(rig.targets, len(rig.connections))
    try:
        for load, kind in (("post1", Posting), ("cycle1", Cycling)):
            over_http = Side(f"{load}-http", kind(rig, [await rig.new_queue()]))
            over_sockets = {
                depth: Sockets(
                    f"{load}-ws{depth}", rig, await rig.new_queue(), opened, depth, load == "cycle1"
                )
                for depth in DEPTHS
            }
            result.rows += await in_turns([over_http, *over_sockets.values()], rig.sizes)
            for depth, side in over_sockets.items():
                ratios = against(side, over_http)
                name = f"{load} over WebSocket, {depth} in flight, against HTTP"
                wanted = load == "post1" and depth == DEPTHS[-1]
                result.ratios[SOCKET_POST if wanted else name] = ratios
    finally:
        for socket in opened:
            socket.close()
    return result


class Watcher(asyncio.Protocol):
    """An event stream: counts its events."""

    def __init__(self, target: Target, queue: WorkQueue, told: Told) -> None:
        self._target = target
        self._queue = queue
        self._told = told
        self._transport: asyncio.Transport | None = None
        self._begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._partial = b""

    async def open(self) -> None:
        """Connect and wait for the stream to begin."""
        host, port = self._target.host, self._target.port
        await asyncio.get_running_loop().create_connection(lambda: self, host, port)
        await asyncio.wait_for(self._begun, PATIENCE_S)

    def close(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the stream."""
        self._transport = cast(asyncio.Transport, transport)
        target = self._target
        request = _STREAM.format(
            path=self._queue.path, host=target.host, port=target.port, client=CONSUMER,
            project=target.project,
        )  # fmt: skip
        self._transport.write(request.encode())

    def data_received(self, data: bytes) -> None:
        """Lines; only those with data count."""
        lines = (self._partial + data).split(b"\n")
        self._partial = lines.pop()
        for line in lines:
            if line.startswith(b"data: "):
                self._told(line[6:])
            elif line.startswith(b"retry: ") and not self._begun.done():
                self._begun.set_result(None)


class _Hearing:
    """Who has heard of the post that is under way."""

    def __init__(self, listeners: int) -> None:
        self._listeners = listeners
        self._number = 0
        self._left = 0
        self._all: asyncio.Future[None]
        self.run = Run()
        self.last_s: list[float] = []
        self._started = 0.0

    async def post(self, rig: Rig, queue: WorkQueue) -> None:
        """Post one message, and wait until everybody has been told."""
        numbers = queue.ledger.take(1)
        self._number, self._left = numbers[0], self._listeners
        self._all = asyncio.get_running_loop().create_future()
        self._started = time.perf_counter()
        await rig.do(queue.post(1, numbers))
        await asyncio.wait_for(self._all, PATIENCE_S)
        self.last_s.append(time.perf_counter() - self._started)

    def told(self, text: bytes) -> None:
        """Somebody was told something."""
        body = msgspec.json.decode(text, type=_Notification).body
        message = HttpMessage("", "", 0, 0, body)
        if verified_number(message) != self._number:
            self.run.errors.append(f"told of {body.number} instead of {self._number}")
            return
        self.run.done(self._started, 1)
        self._left -= 1
        if not self._left:
            self._all.set_result(None)


class _Notification(msgspec.Struct):
    body: MessageBody


async def watchers(rig: Rig) -> Result:
    """As many event streams as there are waiters elsewhere, then as many sockets that subscribe.

    Then twice as many of both at once. Each on a new server, since one that had many connections has
    room for more.
    """
    result = Result("watchers")
    if rig.store is None or not rig.stores.private:
        result.skipped = "needs stores of ours"
        return result
    number = rig.sizes.waiters
    _raise_file_limit(4 * number + 200)
    async with rig.another(await rig.stores.new()) as other:
        result.facts[FAN_OUT] = await _watch(other, result, "streams", number, _open_streams)
    async with rig.another(await rig.stores.new()) as other:
        await _watch(other, result, "sockets", number, _open_subscribed)
    async with rig.another(await rig.stores.new()) as other:
        await _watch(other, result, "streams and sockets", 4 * number, _open_both)
    async with rig.another(await rig.stores.new()) as other:
        result.facts[SOCKET_MEMORY] = await _memory_of_idle_sockets(other, 2 * number)
    return result


async def _open_streams(
    rig: Rig, queue: WorkQueue, told: Told, number: int
) -> Sequence[Socket | Watcher]:
    targets = rig.targets
    streams = [Watcher(targets[at % len(targets)], queue, told) for at in range(number)]
    for first in range(0, len(streams), OPENED_AT_ONCE):
        await asyncio.gather(*(one.open() for one in streams[first : first + OPENED_AT_ONCE]))
    return streams


async def _open_subscribed(
    rig: Rig, queue: WorkQueue, told: Told, number: int
) -> Sequence[Socket | Watcher]:
    opened = await _opened(rig.targets, number)
    name = queue.path.rpartition("/")[2].encode()
    for socket in opened:
        socket.told = told
        status, body = await socket.ask("subscription_create", b'{"queue_name":"%b"}' % name)
        if status != 201:
            raise WrongAnswerError(f"subscription_create: {status} {body[:200]!r}")
    return opened


async def _open_both(
    rig: Rig, queue: WorkQueue, told: Told, number: int
) -> Sequence[Socket | Watcher]:
    streams = await _open_streams(rig, queue, told, number // 2)
    return [*streams, *await _open_subscribed(rig, queue, told, number - number // 2)]


async def _watch(
    rig: Rig,
    result: Result,
    name: str,
    number: int,
    open_all: Callable[[Rig, WorkQueue, Told, int], Awaitable[Sequence[Socket | Watcher]]],
) -> float:
    """Post to a queue that all of these watch; the milliseconds until the last has heard."""
    queue = await rig.new_queue()
    hearing = _Hearing(number)
    before_mib = rig.server.memory_mib() if rig.server is not None else 0.0
    opened = await open_all(rig, queue, hearing.told, number)
    await asyncio.sleep(SETTLE_S)
    if rig.server is not None:
        more = (rig.server.memory_mib() - before_mib) * 1024 / number
        result.facts[f"memory of one of {number} {name} that watch, KiB"] = more
    cpu_s = rig.server_cpu_s()
    started = time.perf_counter()
    for _ in range(FAN_OUTS):
        await hearing.post(rig, queue)
    hearing.run.duration_s = time.perf_counter() - started
    hearing.run.requests = FAN_OUTS
    cpu_s = rig.server_cpu_s() - cpu_s
    for one in opened:
        one.close()
    if hearing.run.errors:
        raise WrongAnswerError(hearing.run.errors[0])
    result.rows.append(rig.row(f"fan-{name}", hearing.run, cpu_s, [], []))
    last_ms = statistics.median(hearing.last_s) * 1000
    result.facts[f"the last of {number} {name}, median of posts, ms"] = last_ms
    result.facts[f"the last of {number} {name}, worst post, ms"] = max(hearing.last_s) * 1000
    result.facts[f"one of {number} {name}, p99, ms"] = percentile_ms(hearing.run, 0.99)
    return last_ms


async def _memory_of_idle_sockets(rig: Rig, number: int) -> float:
    """What an open socket takes that is not used, in KiB."""
    assert rig.server is not None
    before_mib = rig.server.memory_mib()
    opened = await _opened(rig.targets, number)
    await asyncio.sleep(SETTLE_S)
    more_kib = (rig.server.memory_mib() - before_mib) * 1024 / number
    for socket in opened:
        socket.close()
    return more_kib


def _raise_file_limit(needed: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
