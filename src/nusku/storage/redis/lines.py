"""One connection to a master, and what waits for it.

What waits while a batch is under way goes together in the next. A batch is a few calls of a script,
sent at once: one for each hash tag in a cluster, else one for all. The replicas are waited for once
a batch (WAIT). Callers are answered in one turn of the event loop.

What is tried again is only what a server said that it did not do: a slot that is elsewhere (MOVED,
ASK, TRYAGAIN), a script that it does not know (NOSCRIPT), and an operation that asks for more
(AGAIN). Everything else that goes wrong after sending has an unknown outcome, and is answered with
Unavailable; what was not sent yet waits until the connection stands again or fails to.
"""

import asyncio
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
from hiredis import ReplyError

from nusku.errors import StoreFull, Unavailable
from nusku.storage import Stale, Taken
from nusku.storage.redis.calls import (
    AGAIN,
    LANES,
    OK,
    REGISTER,
    STALE,
    TAKEN,
    USED_UP,
    Call,
    Operation,
)
from nusku.storage.redis.promise import Broken
from nusku.storage.redis.servers import redirection
from nusku.storage.redis.wire import Lost, Wire

if TYPE_CHECKING:
    from nusku.storage.redis.engine import Engine, Node

log = structlog.get_logger("nusku.storage")

BATCH_WEIGHT = 512  # rows touched by the calls of one batch, roughly: Redis does nothing else then
BATCH_BYTES = 4 << 20
HEAVY = 256  # the weight of an operation that was not done at once
REDIRECTIONS = 8
TRY_AGAIN_S = 0.02  # a slot is being moved
PAUSE_S, PAUSE_MAX_S = 0.05, 0.5  # between attempts to connect
LATE_S = 1.0  # without an answer for so long, it may be that there is another master by now


class Line:
    """One connection to a master, and what waits for it. ``_busy`` from the first to the last;
    ``late`` while an answer takes suspiciously long.
    """

    def __init__(self, engine: "Engine", node: "Node") -> None:
        self._engine = engine
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._wire: Wire | None = None
        self._busy = False
        self._pause_s = 0.0
        self._retry_at = 0.0
        self._connecting: asyncio.Task[None] | None = None
        self._asking: asyncio.TimerHandle | None = None
        self.late = False
        self.waiting: deque[Operation] = deque()
        self.idle = asyncio.Event()
        self.idle.set()

    def submit(self, operation: Operation) -> None:
        self.waiting.append(operation)
        if not self._busy:
            self._busy = True
            self.idle.clear()
            self._loop.call_soon(self._cycle)

    @property
    def away(self) -> bool:
        """Whether the last attempt to connect failed."""
        return self._pause_s > 0

    def _ask_whether(self) -> None:
        """Look for other masters, again and again, while there is no answer."""
        self.late = True
        self._engine.doubt()
        self._asking = self._loop.call_later(LATE_S, self._ask_whether)

    def close(self) -> None:
        """Go on with a new connection; what was sent has an unknown outcome."""
        if self._wire is not None:
            self._wire.close()

    async def end(self) -> None:
        """Nothing more is sent, and nobody goes unanswered."""
        self.close()
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait((self._connecting,))
        if self._wire is not None:
            self._wire.close()
            await self._wire.gone.wait()
        for one in self.waiting:
            one.fail(Unavailable("The storage is closed."))

    def use(self, wire: Wire) -> None:
        """Go on with a connection that is made already."""
        self._wire = wire

    def _cycle(self) -> None:
        if not self.waiting:
            self._busy = False
            self.idle.set()
        elif self._wire is None or self._wire.closed.done():
            self._connecting = self._loop.create_task(self._connect())
        else:
            self._send(self._wire, self._take())

    async def _connect(self) -> None:
        if self._loop.time() >= self._retry_at:
            try:
                self._wire = await self._engine.connect(self._node)
                self._pause_s = 0.0
            except (Lost, Broken) as error:
                self._pause_s = min(max(2 * self._pause_s, PAUSE_S), PAUSE_MAX_S)
                self._retry_at = self._loop.time() + self._pause_s
                log.debug("connecting failed", address=self._node.address, error=str(error))
        if self.away:
            waiting, self.waiting = self.waiting, deque()
            for one in waiting:
                one.fail(Unavailable("The storage can't be reached."))
            self._engine.doubt()
        self._cycle()

    def _take(self) -> list[Operation]:
        batch: list[Operation] = []
        weight = size = 0
        waiting = self.waiting
        while waiting and (
            not batch
            or (
                weight + waiting[0].weight <= BATCH_WEIGHT
                and size + len(waiting[0].data) <= BATCH_BYTES
            )
        ):
            one = waiting.popleft()
            if one.writes and self._node.trouble:
                one.fail(_kept_too_little(self._node))
            elif not one.future.done():
                batch.append(one)
                weight += one.weight
                size += len(one.data)
        return batch

    def _send(self, wire: Wire, batch: list[Operation]) -> None:
        if not batch:
            self._loop.call_soon(self._cycle)
            return
        engine = self._engine
        calls: dict[Any, Call] = {}
        writes = False
        for one in batch:
            script = one.script
            # In a cluster a call has one tag.
            what = (
                id(one)
                if script is None
                else (script, one.asking, one.places[0].tag if engine.clustered else "")
            )
            call = calls.get(what)
            if call is None:
                call = calls[what] = Call(script, one.asking)
            call.add(one)
            writes = writes or one.writes
        clock = engine.clock_argument()
        parts = [call.sent(clock, self._node.run_id) for call in calls.values()]
        replies = len(parts) + sum(call.asking for call in calls.values())
        waits = writes and engine.options.replicas > 0
        if waits:
            parts.append(engine.wait)
            replies += 1
        self._asking = self._loop.call_later(LATE_S, self._ask_whether)
        wire.send(
            b"".join(parts),
            replies,
            engine.options.timeout_s,
            partial(
                self._replied, list(calls.values()), len(batch), writes, waits, time.perf_counter()
            ),
        )

    def _replied(
        self,
        calls: list[Call],
        size: int,
        writes: bool,
        waits: bool,
        started: float,
        replies: list[Any] | None,
    ) -> None:
        engine = self._engine
        if self._asking is not None:
            self._asking.cancel()
        self.late = False
        engine.metrics.batches.add(size)
        if writes:
            engine.metrics.commits.add(time.perf_counter() - started)
        if replies is None:
            for call in calls:
                for one in call.operations:
                    one.fail(Unavailable())
            engine.doubt()
        else:
            short = waits and not self._enough(replies[-1])
            if short:
                engine.doubt()
            at = 0
            for call in calls:
                at += call.asking
                reply = replies[at]
                at += 1
                if isinstance(reply, ReplyError):
                    self._refused(call, str(reply))
                elif call.script is None:
                    self._answer(call.operations[0], reply, short)
                else:
                    if reply[0] and call.script is LANES:
                        engine.count_expired(call.numbers, reply[0])
                    for one, answer in zip(call.operations, reply[1:], strict=True):
                        self._answered(one, answer, short)
        # By then those who were just answered have asked for the next thing.
        self._loop.call_soon(self._cycle)

    def _enough(self, replicas: Any) -> bool:
        return isinstance(replicas, int) and replicas >= self._engine.options.replicas

    def _answered(self, one: Operation, answer: list[Any], short: bool) -> None:
        """What a script answered."""
        match answer[0]:
            case code if code in {OK, REGISTER}:
                self._answer(one, answer, short)
            case code if code == AGAIN:
                one.weight = max(one.weight, HEAVY)
                self.waiting.append(one)
            case code if code == STALE:
                one.fail(Stale())
            case code if code == TAKEN:
                one.fail(Taken())
            case code if code == USED_UP:
                one.fail(Unavailable("The queue has used up its positions."))
            case _:
                one.fail(StoreFull("The storage's memory is used up, so nothing new is stored."))

    def _answer(self, one: Operation, answer: Any, short: bool) -> None:
        if short and one.writes:
            one.fail(Unavailable("Too few replicas have the change."))
        elif not one.future.done():
            one.future.set_result(answer)

    def _refused(self, call: Call, text: str) -> None:
        """A call was answered with an error."""
        engine, word = self._engine, text.split(" ", 1)[0]
        if word in {"MOVED", "ASK"} and (to := redirection(text, self._node.address)):
            if word == "MOVED":
                engine.moved(*to)
            for one in call.operations:
                one.moves += 1
                one.asking = word == "ASK"
                if one.moves > REDIRECTIONS:
                    one.fail(Unavailable("The storage is being rearranged."))
                else:
                    engine.node(to[1]).line(one).submit(one)
        elif word == "TRYAGAIN":
            for one in call.operations:
                one.deadline = one.deadline or self._loop.time() + engine.options.timeout_s
                one.asking, one.moves = False, 0
                if self._loop.time() > one.deadline:
                    one.fail(Unavailable("The storage is being rearranged."))
                else:
                    self._loop.call_later(TRY_AGAIN_S, engine.dispatch, one)
        elif word == "NOSCRIPT" and all(one.moves <= REDIRECTIONS for one in call.operations):
            for one in call.operations:
                one.moves += 1
            load = engine.unasked(call.script.load if call.script else b"")
            self.waiting.extendleft((*reversed(call.operations), load))
        else:
            for one in call.operations:
                one.fail(_told(text, one))
            if any(sign in text for sign in _DOUBTFUL):
                engine.doubt()
            elif not _full(text):
                log.error("operation failed", error=text)


# A server that says so is not the one that has the data now, or not yet.
_DOUBTFUL = ("READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS", "MISCONF", "UNBLOCKED",
             "NOAUTH", "BUSY")  # fmt: skip


def _full(text: str) -> bool:
    return text.startswith("OOM") or "-OOM " in text or "No space left" in text


def _told(text: str, one: Operation) -> Unavailable:
    if _full(text) and one.adds:
        return StoreFull("The storage's memory is used up, so nothing new is stored.")
    return Unavailable("The storage could not do this.")


def _kept_too_little(node: "Node") -> Unavailable:
    return Unavailable(f"The storage does not keep what it should: {node.trouble}.")
