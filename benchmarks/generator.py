"""The load generator: keep-alive connections that each follow a script, and the timing of a run.

A script is a generator. It yields the bytes of a request and is resumed with the answer, or
yields a number and is resumed after that many seconds. It therefore reads as a client would,
at the cost of one `send` into it per answer: no task, no future, no wake-up of the loop.
"""

import asyncio
import gc
import time
from array import array
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import msgspec

from benchmarks.wire import Answer, Target, WrongAnswerError, parse_answer

Script = Generator[bytes | float, Answer, None]
MakeScript = Callable[["Run"], Script]
"""Makes the script of one connection; called once for each."""

PATIENCE_S = 60.0
"""How long a run may overstay its time before unanswered requests become an error."""
HANGS_UP_WITHIN_S = 0.3
UNTIMED_S = 900.0
"""The time of a run that ends when its work is done."""

NO_ANSWER: Answer = (0, b"")
START = cast(Answer, None)
"""What a generator must be sent first."""


@dataclass(slots=True)
class Run:
    """What happened between the first request and the last answer of one timed run."""

    latencies_s: "array[float]" = field(default_factory=lambda: array("d"))
    requests: int = 0
    messages: int = 0
    errors: list[str] = field(default_factory=list)
    over: bool = False
    """Set when time is up: scripts finish the operation in hand and return."""
    duration_s: float = 0.0
    generator_cpu_s: float = 0.0

    def done(self, started: float, messages: int = 0) -> None:
        """Record one operation that began at `started` (perf_counter seconds)."""
        self.latencies_s.append(time.perf_counter() - started)
        self.messages += messages

    def stop(self) -> None:
        """Let the scripts finish the operation in hand."""
        self.over = True

    def add(self, other: "Run") -> None:
        """Take in another run of the same kind, as if one had followed the other."""
        self.latencies_s.extend(other.latencies_s)
        self.requests += other.requests
        self.messages += other.messages
        self.errors += other.errors
        self.duration_s += other.duration_s
        self.generator_cpu_s += other.generator_cpu_s


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way; it reopens when the server closed it."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._transport: asyncio.Transport | None = None
        self._retired = 0  # transports that we closed and whose connection_lost is still to come
        self._partial = b""
        self._under_way = False
        self._run = Run()
        self._script: Script | None = None
        self._finished: asyncio.Future[None] | None = None
        self._reopening: asyncio.Future[None] | None = None

    # ---- life

    async def open(self) -> None:
        """Connect, or raise OSError."""
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self, self._target.host, self._target.port)

    def close(self) -> None:
        """Cut the connection, whatever is under way; its script ends without an error."""
        script, self._script, self._under_way = self._script, None, False
        if script is not None:
            script.close()
        if self._transport is not None:
            self._transport.abort()
            self._retire()
        self._resolve()

    def _retire(self) -> None:
        self._transport = None
        self._retired += 1

    def begin(self, run: Run, script: Script) -> "asyncio.Future[None]":
        """Start the script; the future is done when the script has ended."""
        self._finished = asyncio.get_running_loop().create_future()
        self._run, self._script = run, script
        self._step(START)
        return self._finished

    async def ask(self, request: bytes) -> Answer:
        """One request outside a run."""
        answers: list[Answer] = []

        def script() -> Script:
            answers.append((yield request))

        run = Run()
        await asyncio.wait_for(self.begin(run, script()), PATIENCE_S)
        if run.errors:
            raise WrongAnswerError(run.errors[0])
        return answers[0]

    @property
    def is_open(self) -> bool:
        """Whether nobody has hung up."""
        return self._transport is not None

    # ---- the script

    def _step(self, answer: Answer) -> None:
        script = self._script
        if script is None:  # closed during a pause
            return
        try:
            wish = script.send(answer)
            if type(wish) is bytes:
                self._under_way = True
                if self._transport is None:
                    self._reopening = asyncio.ensure_future(self._reopen(wish))
                else:
                    self._transport.write(wish)
            else:
                asyncio.get_running_loop().call_later(cast(float, wish), self._step, NO_ANSWER)
        except StopIteration:
            self._end()
        except (WrongAnswerError, msgspec.MsgspecError) as error:
            self._end(str(error))

    def _end(self, error: str = "") -> None:
        if error:
            self._run.errors.append(error)
            self._run.stop()  # one wrong answer spoils the run
        self._script, self._under_way = None, False
        self._resolve()

    def _resolve(self) -> None:
        if self._finished is not None and not self._finished.done():
            self._finished.set_result(None)

    async def _reopen(self, request: bytes) -> None:
        try:
            await self.open()
        except OSError as error:
            self._end(f"cannot connect: {error}")
            return
        if self._transport is not None and self._under_way:
            self._transport.write(request)

    # ---- the protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands, for the first time or again."""
        self._transport = cast(asyncio.Transport, transport)
        self._partial = b""

    def data_received(self, data: bytes) -> None:
        """Bytes of the answer; a whole one resumes the script."""
        if self._partial:
            data = self._partial + data
        try:
            parsed = parse_answer(data)
        except (WrongAnswerError, ValueError) as error:
            self._end(str(error))
            return
        if parsed is None:
            self._partial = data
            return
        if not self._under_way:
            self._end(f"an answer that nobody asked for: {data[:80]!r}")
            return
        self._partial, self._under_way = b"", False
        status, body, closing = parsed
        if (closing or self._target.hangs_up) and self._transport is not None:
            self._transport.close()
            self._retire()
        self._run.requests += 1
        self._step((status, body))

    def connection_lost(self, exc: Exception | None) -> None:
        """An error where a request was under way; otherwise the next request reopens."""
        if self._retired:
            self._retired -= 1
            return
        self._transport = None
        if self._under_way:
            self._end(f"connection lost with a request under way: {exc or 'closed by the server'}")


async def open_connections(targets: Sequence[Target], count: int) -> list[Connection]:
    """`count` open connections, to the targets in turns.

    They are opened a hundred at a time, as a listen backlog is finite.
    """
    connections = [Connection(targets[number % len(targets)]) for number in range(count)]
    for first in range(0, count, 100):
        await asyncio.gather(
            *(connection.open() for connection in connections[first : first + 100])
        )
    return connections


async def observed(target: Target) -> Target:
    """The target, with what is to be known of its connections."""
    connection = Connection(target)
    await connection.open()
    await connection.ask(target.request("GET", "/v2/ping"))
    await asyncio.sleep(HANGS_UP_WITHIN_S)
    hung_up = not connection.is_open
    connection.close()
    return replace(target, hangs_up=hung_up)


async def drive(
    connections: Sequence[Connection], make_script: MakeScript, seconds: float | None = None
) -> Run:
    """Let every connection follow its script, for `seconds` or until all scripts have ended."""
    run = Run()
    gc.disable()  # a collection in mid-run would show up as somebody's p99
    started, cpu_started = time.perf_counter(), time.process_time()
    timer = None
    if seconds is not None:
        timer = asyncio.get_running_loop().call_later(seconds, run.stop)
    try:
        ends = [connection.begin(run, make_script(run)) for connection in connections]
        limit_s = (UNTIMED_S if seconds is None else seconds) + PATIENCE_S
        _, unfinished = await asyncio.wait(ends, timeout=limit_s)
        if unfinished:
            run.errors.append(f"{len(unfinished)} connections not done after {limit_s:g} s")
            for connection in connections:
                connection.close()
    finally:
        run.duration_s = time.perf_counter() - started
        run.generator_cpu_s = time.process_time() - cpu_started
        if timer is not None:
            timer.cancel()
        gc.enable()
    return run
