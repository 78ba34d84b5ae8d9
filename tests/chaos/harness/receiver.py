"""A receiver of notifications, in a process of its own, that writes down all that it hears.

Each endpoint has a path, and *moods*: for every request one of them is chosen by the seed.

    200, 400, 410, 429, 500, …    that status (429 and 503 with Retry-After: 1, 3xx to `/canary`)
    slow:0.3     200 after so many seconds
    hang         no answer
    drip         a byte of an answer, now and then
    huge         200, and a body without end
    close        the connection is cut without an answer

Every signature is verified by the reference library of Standard Webhooks. It outlives the servers
under test, and lies outside every file system that gets cut.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Self, cast

import msgspec
import uvloop
from standardwebhooks import Webhook, WebhookVerificationError

from tests.chaos.harness.history import HEARD, OK, Op, read_body, read_ops

FINE = ("200",)
AWKWARD = (
    *("200",) * 6, "500", "500", "503", "429", "307", "301", "408",
    "slow:0.2", "hang", "drip", "huge", "close",
)  # fmt: skip
"""What makes a server try again, among what does not (F-22)."""
QUITTING = (*AWKWARD, "400", "404", "410")
"""And what makes it give up, and pause the subscription."""
DRIP_S = 0.2
HUGE_BYTES = 1 << 30
CHUNK = b"10000\r\n" + b"." * 0x10000 + b"\r\n"


def secret(run: int, to: str) -> str:
    """What notifications to an endpoint are signed with."""
    key = hashlib.sha256(f"{run}/{to}".encode()).digest()
    return f"whsec_{base64.b64encode(key).decode()}"


class Counts(msgspec.Struct):
    """What was heard until now."""

    attempts: int
    taken: int  # answered with 2xx


class Receiver:
    """The process, seen from the run; it lives as long as the context does."""

    def __init__(self, folder: Path, run: int) -> None:
        self._file = folder / HEARD
        self._run = run
        self._process: asyncio.subprocess.Process | None = None
        self._port = 0

    async def __aenter__(self) -> Self:
        arguments = ("--run", str(self._run), "--file", str(self._file))
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.chaos.harness.receiver", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self._port = int(await self._process.stdout.readline())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    def url(self, to: str) -> str:
        """The subscriber that an endpoint is."""
        return f"http://127.0.0.1:{self._port}/{to}"

    async def moods(self, default: Sequence[str], **others: Sequence[str]) -> Counts:
        """From now on behave so; endpoints whose names begin like a key of `others` as it says."""
        return await self._ask({"default": default, "others": others})

    async def counts(self) -> Counts:
        return await self._ask({})

    def heard(self) -> list[Op]:
        """All that was written down."""
        return read_ops(self._file)

    async def _ask(self, question: Mapping[str, Any]) -> Counts:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        return msgspec.json.decode(await self._process.stdout.readline(), type=Counts)


# -- the process -----------------------------------------------------------------------------------


class _Book:
    """Moods, and what was heard."""

    def __init__(self, run: int, file: Path) -> None:
        self.run = run
        self.rng = random.Random(f"{run}/receiver")
        self.counts = Counts(0, 0)
        self._default: Sequence[str] = FINE
        self._others: dict[str, Sequence[str]] = {}
        self._fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def ask(self, question: Mapping[str, Any]) -> Counts:
        if "default" in question:
            self._default, self._others = question["default"], question["others"]
        return self.counts

    def mood(self, to: str) -> str:
        for name, moods in self._others.items():
            if to.startswith(name):
                return self.rng.choice(moods)
        return self.rng.choice(self._default)

    def note(self, op: Op, status: int) -> None:
        """An attempt is over, as far as we are concerned."""
        op.t1, op.status, op.out = time.monotonic(), status, OK
        self.counts.attempts += 1
        self.counts.taken += 200 <= status < 300
        os.write(self._fd, msgspec.json.encode(op) + b"\n")

    def read(self, to: str, method: str, headers: Mapping[str, str], body: bytes) -> Op:
        """What is said in a request, verified."""
        op = Op("hear", "receiver", t0=time.monotonic(), to=to, id=headers.get("webhook-id", ""))
        if method != "POST" or headers.get("content-type") != "application/json":
            op.note = f"it was a {method} of {headers.get('content-type')}"
        try:
            _verifier(self.run, to).verify(body, dict(headers), json_parse=False)
        except WebhookVerificationError as error:
            op.note = f"the signature is wrong: {error}"
        try:
            told = json.loads(body)
            op.p, op.n = read_body(self.run, told["body"])
            op.q = told["body"]["q"]
            if told["Message_Type"] != "Notification" or told["queue_name"] != op.q.split("/")[1]:
                op.note = f"not a notification as it should be: {body[:200]!r}"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            op.note = f"not readable: {error!r}"
        return op


@cache
def _verifier(run: int, to: str) -> Webhook:
    return Webhook(secret(run, to))


class _Connection(asyncio.Protocol):
    """One connection; requests come one after the other."""

    def __init__(self, book: _Book) -> None:
        self._book = book
        self._partial = b""
        self._under_way: Op | None = None  # not answered yet
        self._timer: asyncio.TimerHandle | None = None
        self._huge = 0  # bytes that are left of a huge answer
        self._writing = True
        self._transport = cast(asyncio.Transport, None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._huge = 0
        if self._timer is not None:
            self._timer.cancel()
        if self._under_way is not None:
            self._book.note(self._under_way, 0)
            self._under_way = None

    def data_received(self, data: bytes) -> None:
        self._partial += data
        head_end = self._partial.find(b"\r\n\r\n")
        if head_end < 0:
            return
        first, *lines = self._partial[:head_end].decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        body_end = head_end + 4 + int(headers.get("content-length", "0"))
        if len(self._partial) < body_end:
            return
        body, self._partial = self._partial[head_end + 4 : body_end], self._partial[body_end:]
        op = self._book.read(path.removeprefix("/"), method, headers, body)
        self._behave(op, self._book.mood(op.to))

    def _behave(self, op: Op, mood: str) -> None:
        loop = asyncio.get_running_loop()
        kind, _, argument = mood.partition(":")
        self._under_way = op
        if kind.isdigit():
            self._answer(int(kind))
        elif kind == "slow":
            self._timer = loop.call_later(float(argument), self._answer, 200)
        elif kind == "drip":
            self._drip(b"HTTP/1.1 200 OK\r\n")
        elif kind == "huge":
            self._transport.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            self._done(200)
            self._huge = HUGE_BYTES
            self.resume_writing()
        elif kind == "close":
            self._done(0)
            self._transport.abort()

    def _answer(self, status: int) -> None:
        more = "Retry-After: 1\r\n" if status in {429, 503} else ""
        if 300 <= status < 400:
            more = "Location: /canary\r\n"
        self._transport.write(f"HTTP/1.1 {status} Said\r\n{more}Content-Length: 0\r\n\r\n".encode())
        self._done(status)

    def _done(self, status: int) -> None:
        if self._under_way is not None:
            self._book.note(self._under_way, status)
            self._under_way = None

    def _drip(self, left: bytes) -> None:
        self._transport.write(left[:1] or b"X")
        self._timer = asyncio.get_running_loop().call_later(DRIP_S, self._drip, left[1:])

    def resume_writing(self) -> None:
        """There is room for more of a huge answer."""
        self._writing = True
        while self._huge > 0 and self._writing and not self._transport.is_closing():
            self._huge -= len(CHUNK)
            self._transport.write(CHUNK)

    def pause_writing(self) -> None:
        self._writing = False


async def _main(run: int, file: Path) -> None:
    book = _Book(run, file)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(book), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    questions = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(questions), sys.stdin)
    while line := await questions.readline():
        print(msgspec.json.encode(book.ask(json.loads(line))).decode(), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=int, required=True)
    parser.add_argument("--file", type=Path, required=True)
    arguments = parser.parse_args()
    uvloop.run(_main(arguments.run, arguments.file))
