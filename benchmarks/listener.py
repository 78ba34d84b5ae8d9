"""A fast webhook receiver in a process of its own: it verifies what it hears, and notes when.

`/NAME/7` is heard and answered at once, as the seventh subscriber of NAME; `/hang/7` is never
answered. `python -m benchmarks.listener` is the process, `Listener` is how a scenario talks to it.
"""

import asyncio
import contextlib
import resource
import sys
import time
from collections import defaultdict
from typing import Self, cast

import msgspec
import uvloop

from benchmarks.messages import Body, Message, verified_number
from benchmarks.wire import WrongAnswerError

HANG = "hang"
FILES = 8192  # open ones, where so many are allowed
ERRORS_KEPT = 10
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
_LINE_BYTES_MAX = 1 << 28  # one sighting takes some 40 bytes

Heard = tuple[int, int, float]
"""Subscriber, number of the message, and the moment (perf_counter seconds, one clock for all
processes of a machine)."""


class Notification(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What a webhook is told."""

    ttl: int
    body: Body
    queue_name: str
    Message_Type: str


class Question(msgspec.Struct):
    """Wait until `count` different notifications of `name` were heard, `seconds` at most."""

    name: str
    count: int
    seconds: float
    take: bool = False
    """Hand over what was heard, and forget it."""


class Reply(msgspec.Struct):
    """How many were heard, different ones and repeated ones; CPU of the process until now."""

    count: int
    repeated: int
    cpu_s: float
    errors: list[str]
    heard: list[Heard] = []


class Listener:
    """The process, seen from the scenario. Raises WrongAnswerError for what was wrong with a notification."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._port = 0

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.listener"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES_MAX,
        )
        assert self._process.stdout is not None
        self._port = int(await self._process.stdout.readline())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    def url(self, name: str, number: int = 0) -> str:
        """A subscriber."""
        return f"http://127.0.0.1:{self._port}/{name}/{number}"

    async def wait(self, name: str, count: int, seconds: float) -> Reply:
        """Wait until so many were heard, or until the time is over; say how many it were."""
        return await self._ask(Question(name, count, seconds))

    async def take(self, name: str, count: int, seconds: float) -> list[Heard]:
        """Wait until so many were heard, and fetch them; fewer are an error."""
        reply = await self._ask(Question(name, count, seconds, take=True))
        if reply.count < count:
            raise WrongAnswerError(
                f"{name}: {reply.count} of {count} notifications within {seconds:g} s"
            )
        return reply.heard

    async def _ask(self, question: Question) -> Reply:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(question) + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise WrongAnswerError("the listener has ended")
        reply = msgspec.json.decode(line, type=Reply)
        if reply.errors:
            raise WrongAnswerError(f"{question.name}: {reply.errors[0]}")
        return reply


# ---- the process


class _Ear:
    """What was heard under one name."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self.distinct: set[tuple[int, int]] = set()
        self.errors: list[str] = []
        self.wanted = 0
        self.enough = asyncio.Event()

    def hear(self, subscriber: int, body: bytes) -> None:
        moment = time.perf_counter()
        try:
            told = _decode(body)
            message = Message("", "", told.ttl, 0, told.body)
            number = verified_number(message)
        except (msgspec.MsgspecError, WrongAnswerError) as error:
            if len(self.errors) < ERRORS_KEPT:
                self.errors.append(f"{error}: {body[:200]!r}")
            self.enough.set()
            return
        self.heard.append((subscriber, number, moment))
        self.distinct.add((subscriber, number))
        if len(self.distinct) >= self.wanted:
            self.enough.set()

    async def answer(self, question: Question) -> Reply:
        self.wanted = question.count
        self.enough.clear()
        if len(self.distinct) < self.wanted and not self.errors:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.enough.wait(), question.seconds)
        count = len(self.distinct)
        reply = Reply(count, len(self.heard) - count, time.process_time(), self.errors)
        if question.take:
            reply.heard, self.heard, self.distinct = self.heard, [], set()
        return reply


_decode = msgspec.json.Decoder(Notification).decode


class _Connection(asyncio.Protocol):
    """HTTP/1.1 with the least parsing that does; what is no such POST ends the connection."""

    def __init__(self, ears: "defaultdict[str, _Ear]") -> None:
        self._ears = ears
        self._partial = b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody wants to tell us something."""
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        """Take in what is whole."""
        assert self._transport is not None
        if self._partial:
            data = self._partial + data
        while (head_end := data.find(b"\r\n\r\n")) >= 0:
            head = data[:head_end]
            try:
                method, path, _ = head[: head.index(b"\r\n")].split(b" ")
                _, name, number = path.decode().split("/")
                at = head.lower().index(b"\r\ncontent-length:") + 17
                body_end = head_end + 4 + int(head[at:].partition(b"\r\n")[0])
                subscriber = int(number)
            except ValueError:
                self._transport.abort()
                return
            if len(data) < body_end:
                break
            if name != HANG:
                if method != b"POST" or b"application/json" not in head:
                    self._ears[name].errors.append(f"no JSON was posted: {head!r}")
                self._ears[name].hear(subscriber, data[head_end + 4 : body_end])
                self._transport.write(_ANSWER)
            data = data[body_end:]
        self._partial = data


async def _main() -> None:
    ears: defaultdict[str, _Ear] = defaultdict(_Ear)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(ears), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    questions = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(questions), sys.stdin)
    while line := await questions.readline():
        question = msgspec.json.decode(line, type=Question)
        reply = await ears[question.name].answer(question)
        print(msgspec.json.encode(reply).decode(), flush=True)


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, hard), hard))
    uvloop.run(_main())
