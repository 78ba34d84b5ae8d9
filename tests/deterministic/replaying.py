"""Ways through the small model, walked by the embedded store: do both say the same?"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from nusku.metrics import Metrics
from nusku.model import Claimed, Draft, QueueKey, QueueRef
from nusku.storage import Removal, Removed
from nusku.storage.sqlite.connection import Connection, _Waiting
from nusku.storage.sqlite.file import File
from nusku.storage.sqlite.messages import SqliteMessages
from tests.deterministic.loop import EPOCH_S, Loop
from tests.deterministic.small import CLAIM, DELETE, MESSAGE_TTLS, POST, RENEW, Asked, Step
from tests.deterministic.store import Disk, Engine
from tests.deterministic.weather import CALM, Weather

QUEUE = QueueRef(QueueKey("queue", "p", "q"), "0" * 16, 1)


class _Stepped(Engine):
    """Carries out, commits and answers a batch when it is told to."""

    job: Callable[[], None] | None = None
    unanswered: Sequence[_Waiting] = ()

    def carry_out(self) -> None:
        self._jobs = cast("Any", self)
        Connection._cycle(self)

    def put(self, job: Callable[[], None] | None) -> None:
        self.job = job

    def commit(self) -> None:
        """Where nothing was changed there is nothing to do."""
        job, self.job = self.job, None
        if job is not None:
            job()

    def answer(self) -> None:
        self.commit()  # of what only tidied up
        batch, self.unanswered = list(self.unanswered), ()
        Connection._answer(self, batch)

    def _cycle(self) -> None:
        pass

    def _finish(self, batch: list[_Waiting]) -> None:
        self._commit(batch)
        self.unanswered = batch

    def _answer(self, batch: list[_Waiting]) -> None:
        self.unanswered = batch


class Walker:
    """Walks ways on one disk."""

    def __init__(self, claim_ttl_s: int) -> None:
        self._disk = Disk()
        self._claim_ttl_s = claim_ttl_s
        self._now_s = 0

    def disagreements(self, ways: Iterable[Sequence[Step]]) -> list[str]:
        """What the store answers otherwise than the model; the first of each way."""

        async def walk() -> list[str]:
            return [told for way in ways if (told := self._walk(way))]

        return Loop(random.Random(0)).run(walk())

    def _walk(self, way: Sequence[Step]) -> str:
        self._now_s = EPOCH_S
        self._disk.wipe(random.Random(0))
        self._claims: dict[int, str] = {}
        self._waiting: list[asyncio.Future[Any]] = []
        self._batch: list[asyncio.Future[Any]] = []
        self._open()
        self._ready()
        for step in way:
            if told := self._take(step):
                return f"{told}, after {[one.name for one in way]}"
        return ""

    def _open(self) -> None:
        disk, metrics, rng = self._disk, Metrics(), random.Random(0)
        disk.open()
        self._engine = _Stepped(
            disk.db, lambda: self._now_s * 1000, metrics, disk.last_ms, rng, Weather(rng, CALM)
        )
        self._messages = SqliteMessages(self._engine, cast("File", disk), metrics, 0)

    def _ready(self) -> None:
        """The queue is there, and open."""
        for make in (lambda: self._messages.admit(QUEUE), self._unseal):
            self._admitted = cast("asyncio.Future[Any]", make())
            self._engine.carry_out()
            self._engine.commit()
            self._engine.answer()

    def _unseal(self) -> Any:
        return self._messages.open(QUEUE, self._admitted.result().seal)

    def _take(self, step: Step) -> str:
        match step.name:
            case "ask":
                assert step.asked is not None
                self._waiting.append(cast("asyncio.Future[Any]", self._ask(step.asked)))
            case "carry out":
                self._batch, self._waiting = self._waiting, []
                self._engine.carry_out()
            case "commit":
                self._engine.commit()
            case "answer":
                self._engine.answer()
                return self._compare(step)
            case "tick":
                self._now_s += 1
            case "crash":
                self._engine.cut()
                self._waiting = []
                self._open()
        return ""

    def _ask(self, asked: Asked) -> Any:
        claim, positions = self._claims.get(asked.claim, ""), (asked.about + 1,)
        if asked.what == POST:
            drafts = [Draft(b"x", ttl) for ttl in MESSAGE_TTLS]
            return self._messages.add([(QUEUE, drafts)])
        if asked.what == CLAIM:
            return self._messages.claim(QUEUE, 2, self._claim_ttl_s, 0)
        if asked.what == RENEW:
            return self._messages.renew(QUEUE, claim, self._claim_ttl_s, 0)
        if asked.what == DELETE:
            return self._messages.remove(QUEUE, positions, Removal.HELD, (claim,))
        return self._messages.release(QUEUE, claim)

    def _compare(self, step: Step) -> str:
        for (asked, bits), future in zip(step.answers, self._batch, strict=True):
            said = self._bits(asked, future.result())
            if said != bits if asked.what in {POST, CLAIM} else bool(said) != bool(bits):
                return f"{asked}: the model says {bits:02b}, the store {said:02b}"
        return ""

    def _bits(self, asked: Asked, result: Any) -> int:
        """An answer of the store in the model's words."""
        if asked.what == POST:
            return sum(1 << position - 1 for position in result[0])
        if asked.what == CLAIM:
            got = cast("Claimed", result)
            if got.claim is not None:
                self._claims[asked.claim] = got.claim
            return sum(1 << message.position - 1 for message in got.messages)
        if asked.what == DELETE:
            return int(result == [Removed.GONE])
        return int(result)
