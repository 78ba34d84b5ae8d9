"""The steady load: who posts, works, reads, and looks what has expired. It stays as large as it is.

Everything is due at a moment of its own, whether or not what came before has been answered.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from benchmarks.listener import Listener
from benchmarks.messages import (
    Message,
    decode_claimed,
    decode_message,
    decode_page,
    decode_posted,
    decode_stats,
    encode_post,
    verified_number,
)
from benchmarks.soak.accounts import CLAIMS_MAX, Accounts, Fate
from benchmarks.soak.door import Door, NoAnswerError
from benchmarks.soak.timings import Timings
from benchmarks.wire import PRODUCER, Answer, Target, WrongAnswerError
from benchmarks.work_queue import WorkQueue, expect

LONG_TTL_S = 86_400
CONNECTIONS = 16
CLAIM_LIMIT = 5
CLAIMS_SHARE = 0.5
"""Claims for each post: with their limit, more than twice of what is posted could be taken."""
DEAD_CLAIMS_PER_S = 2.0
READ_LIMIT = 20
READ_WAIT_S = 5
GONE_AFTER_S = 2.0
"""Behind its end, when it must be gone."""
NAMES = ("jobs", "dead", "brief", "news")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much, and how long."""

    seconds: float = 7200.0
    rate: float = 40.0
    """Posts/s, of one message each."""
    sample_s: float = 10.0
    claim_ttl_s: int = 60
    brief_ttl_s: int = 60
    present_at: float = 0.8
    """Part of a brief life after which the message must still be there."""
    control_s: float = 0.5
    """Between two pings, and two writes to the disk."""
    late_s: float = 60.0
    """What is not there so long after it should be is lost."""

    @property
    def settings(self) -> dict[str, str]:
        """What the server must allow; at ordinary lengths nothing but the defaults."""
        floor = {"min_claim_ttl": self.claim_ttl_s, "min_message_ttl": self.brief_ttl_s}
        return {name: str(value) for name, value in floor.items() if value < 60}

    @property
    def patience_s(self) -> float:
        """After the last post: until every claim that was left has lapsed, as often as it may happen."""
        return (CLAIMS_MAX + 1) * self.claim_ttl_s + self.brief_ttl_s + self.late_s


class Load:
    """Agents on four queues of one server. `errors` are wrong and missing answers since the last look."""

    def __init__(self, plan: Plan, target: Target, listener: Listener, name: str = "soak") -> None:
        self.plan = plan
        self.accounts = Accounts()
        self.timings = Timings()
        self.errors: list[str] = []
        self.posting_over = asyncio.Event()
        self._over = asyncio.Event()
        self._asking = asyncio.Lock()
        self._target = target
        self._listener = listener
        self._subscriber = name
        self._door = Door(self.timings)
        self._reading = Door(self.timings)
        self.queues = {each: WorkQueue(target, f"{name}-{each}") for each in NAMES}

    # ---- life

    async def prepare(self) -> None:
        """Connect, create the queues, subscribe."""
        await self._door.open(self._target, CONNECTIONS)
        await self._reading.open(self._target, 1)
        dead = self.queues["dead"].path.rpartition("/")[2]
        limits = {"_max_claim_count": CLAIMS_MAX, "_dead_letter_queue": dead}
        for name in reversed(NAMES):
            metadata = msgspec.json.encode(limits if name == "jobs" else {})
            request = self._target.request("PUT", self.queues[name].path, metadata, PRODUCER)
            status, body = await self._door.ask("create queue", request)
            expect(status, 201, "create queue", body)
        request = self._target.request(
            "POST",
            f"{self.queues['news'].path}/subscriptions",
            msgspec.json.encode(
                {"subscriber": self._listener.url(self._subscriber), "ttl": LONG_TTL_S}
            ),
        )
        status, body = await self._door.ask("subscribe", request)
        expect(status, 201, "subscribe", body)

    def close(self) -> None:
        """Disconnect."""
        self._door.close()
        self._reading.close()

    async def run(self) -> None:
        """Post for as long as planned or until `posting_over`, then go on until the accounts are even."""
        async with asyncio.TaskGroup() as agents:
            self._agents = agents
            agents.create_task(self._post())
            agents.create_task(self._pace(self._work, self.plan.rate * CLAIMS_SHARE, self._over))
            agents.create_task(self._pace(self._bury, DEAD_CLAIMS_PER_S, self._over))
            agents.create_task(self._pace(self._ping, 1 / self.plan.control_s, self._over))
            agents.create_task(self._read())
            agents.create_task(self._finish())

    async def _finish(self) -> None:
        try:
            await asyncio.wait_for(self.posting_over.wait(), self.plan.seconds)
        except TimeoutError:
            self.posting_over.set()
        deadline = time.perf_counter() + self.plan.patience_s
        while not self.accounts.even and time.perf_counter() < deadline:
            await asyncio.sleep(0.2)
            await self.hear()
        self._over.set()

    async def check(self) -> None:
        """At the end, all queues must be empty, unless the accounts know of what is left in them."""
        for queue in self.queues.values():
            request = self._target.request("GET", f"{queue.path}/stats")
            status, body = await self._door.ask("stats", request)
            expect(status, 200, "stats", body)
            total = decode_stats(body).messages.total
            if total and not self.accounts.open:
                self.accounts.fault(f"{queue.path} holds {total} messages, but none is open")

    async def drop(self) -> None:
        """Delete the queues."""
        for queue in self.queues.values():
            status, body = await self._door.ask(
                "delete queue", self._target.request("DELETE", queue.path)
            )
            expect(status, 204, "delete queue", body)

    async def server_counts(self) -> dict[str, float]:
        """The server's own count of messages, by event."""
        _, body = await self._door.ask("metrics", self._target.request("GET", "/metrics"))
        found = {}
        for line in body.decode().splitlines():
            if line.startswith("nusku_messages_total{"):
                name, _, value = line.rpartition(" ")
                found[name.partition('event="')[2].partition('"')[0]] = float(value)
        return found

    # ---- pace

    async def _pace(
        self, operation: Callable[[float], Awaitable[None]], rate: float, over: asyncio.Event
    ) -> None:
        """Begin one at each moment when it is due, until it is over."""
        async for due in self._ticks(rate, over):
            self._start(self._guarded(operation(due)))

    async def _ticks(self, rate: float, over: asyncio.Event) -> AsyncIterator[float]:
        due = time.perf_counter()
        while not over.is_set():
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            yield due
            due += 1 / rate

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._agents.create_task(work)

    async def _guarded(self, work: Awaitable[None]) -> None:
        """An operation without an answer, or with a wrong one, is written down, and the rest goes on."""
        try:
            await work
        except (NoAnswerError, WrongAnswerError, msgspec.MsgspecError) as error:
            self.errors.append(str(error))

    # ---- posting

    async def _post(self) -> None:
        count = 0
        async for due in self._ticks(self.plan.rate, self.posting_over):
            # How late it is begins to tell of this process, not of the server.
            self.timings.note("begin", due)
            self._start(self._guarded(self._post_one(_fate(count), due)))
            count += 1

    async def _post_one(self, fate: Fate, due: float) -> None:
        number = self.accounts.begin(fate, due)
        name = {Fate.BRIEF: "brief", Fate.NEWS: "news"}.get(fate, "jobs")
        ttl_s = self.plan.brief_ttl_s if fate is Fate.BRIEF else LONG_TTL_S
        path = f"{self.queues[name].path}/messages"
        request = self._target.request("POST", path, encode_post([number], ttl_s), PRODUCER)
        sent = time.perf_counter()
        try:
            status, body = await self._door.ask("post", request, due)
        except NoAnswerError:
            self.accounts.doubt(number, "post")
            raise
        if status != 201:
            self.accounts.refuse(number)
        expect(status, 201, "post", body)
        self.accounts.acknowledge(number)
        [href] = decode_posted(body).resources
        if fate is Fate.BRIEF:
            self._start(self._guarded(self._watch(number, href, sent)))

    async def _watch(self, number: int, href: str, sent: float) -> None:
        """A brief message is there shortly before its end, and is not there after it.

        Its life began at some moment between the sending of the post and its answer.
        """
        answered, life_s = time.perf_counter(), float(self.plan.brief_ttl_s)
        due = sent + life_s * self.plan.present_at
        status, body = await self._look(number, href, due)
        if not (status == 404 and time.perf_counter() > sent + life_s):  # told in time
            expect(status, 200, f"get of message {number} before its end", body)
            if verified_number(decode_message(body)) != number:
                raise WrongAnswerError(f"get: {href} is not message {number}")
        status, body = await self._look(number, href, answered + life_s + GONE_AFTER_S)
        expect(status, 404, f"get of message {number} after its end", body)
        self.accounts.expire(number)

    async def _look(self, number: int, href: str, due: float) -> Answer:
        await asyncio.sleep(due - time.perf_counter())
        try:
            return await self._door.ask("get", self._target.request("GET", href), due)
        except NoAnswerError:
            self.accounts.doubt(number, "get")
            raise

    # ---- working

    async def _work(self, due: float) -> None:
        """Claim jobs; do them, give the bad ones back, leave some as a worker does that has died."""
        messages, until = await self._claim("jobs", due)
        done, bad, left = [], False, False
        for message in messages:
            account = self.accounts.hand_out(verified_number(message), "a claim")
            if account is None:
                continue
            if account.fate is Fate.BAD:
                bad = True
            elif account.fate is Fate.LEFT and account.handed_out == 1:
                left = True
            else:
                done.append(message)
        await self._delete("jobs", done, until)
        if bad and not left:
            await self._release("jobs", _claim_of(messages[0]))

    async def _bury(self, due: float) -> None:
        """Claim dead letters and delete them."""
        messages, until = await self._claim("dead", due)
        for message in messages:
            self.accounts.hand_out(verified_number(message), "a claim of dead letters", dead=True)
        await self._delete("dead", messages, until)

    async def _claim(self, name: str, due: float) -> tuple[list[Message], float]:
        """The messages, and until when they are certainly held."""
        body = b'{"ttl":%d,"grace":60}' % self.plan.claim_ttl_s
        path = f"{self.queues[name].path}/claims?limit={CLAIM_LIMIT}"
        until = time.perf_counter() + self.plan.claim_ttl_s
        try:
            status, answer = await self._door.ask(
                "claim", self._target.request("POST", path, body), due
            )
        except NoAnswerError:
            self.accounts.lost_claims += 1
            raise
        if status == 204:
            return [], until
        expect(status, 201, "claim", answer)
        return decode_claimed(answer).messages, until

    async def _delete(
        self, name: str, messages: Sequence[Message], until: float = math.inf
    ) -> None:
        """With their claim, if they have one. After `until` it may have lapsed, and be refused."""
        if not messages:
            return
        numbers = [message.body.number for message in messages]
        if len(messages) == 1:
            path = messages[0].href
        else:
            claim = _claim_of(messages[0])
            path = f"{self.queues[name].path}/messages?ids={','.join(m.id for m in messages)}"
            path += f"&claim_ids={claim}" if claim else ""
        started = time.perf_counter()
        try:
            status, body = await self._door.ask(
                "delete", self._target.request("DELETE", path), started
            )
            if status != 204 and time.perf_counter() > until:
                for number in numbers:
                    self.accounts.doubt(number, "delete under a claim that had lapsed")
                return
            expect(status, 204, "delete", body)
        except (NoAnswerError, WrongAnswerError):
            for number in numbers:
                self.accounts.doubt(number, "delete")
            raise
        for number in numbers:
            self.accounts.delete(number)

    async def _release(self, name: str, claim: str) -> None:
        path = f"{self.queues[name].path}/claims/{claim}"
        started = time.perf_counter()
        status, body = await self._door.ask(
            "release", self._target.request("DELETE", path), started
        )
        expect(status, 204, "release", body)

    # ---- reading, hearing

    async def _read(self) -> None:
        """Follow the news by marker; delete what was read."""
        first = f"{self.queues['news'].path}/messages?echo=true&limit={READ_LIMIT}"
        path = first
        while not self._over.is_set():
            try:
                path = await self._read_page(path)
            except (NoAnswerError, WrongAnswerError, msgspec.MsgspecError) as error:
                self.errors.append(f"read: {error}")
                await asyncio.sleep(1)

    async def _read_page(self, path: str) -> str:
        """Where the next page is; an empty one does not say, as it is the same."""
        request = self._target.request("GET", f"{path}&wait={READ_WAIT_S}")
        status, body = await self._reading.ask("read", request)
        expect(status, 200, "list", body)
        page = decode_page(body)
        for message in page.messages:
            account = self.accounts.hand_out(verified_number(message), "the reader")
            if account is not None:
                self.timings.note("read", account.sent)
                if account.handed_out > 1:
                    self.accounts.fault(f"message {message.body.number} was read twice")
        await self._delete("news", page.messages)
        return next((link.href for link in page.links if link.rel == "next"), path)

    async def hear(self) -> None:
        """Fetch what the subscriber was told."""
        try:
            async with self._asking:  # one question at a time
                heard = await self._listener.take(self._subscriber, 0, 0)
        except WrongAnswerError as error:
            self.errors.append(f"notification: {error}")
            return
        for _, number, moment in heard:
            sent = self.accounts.hear(number)
            if sent is not None:
                self.timings.note_ms("notify", (moment - sent) * 1000)

    # ---- what the machine does to everybody

    async def _ping(self, due: float) -> None:
        status, body = await self._door.ask("ping", self._target.request("GET", "/v2/ping"), due)
        expect(status, 204, "ping", body)


def _fate(count: int) -> Fate:
    """Of 40 messages 4 are brief, 4 are news, 2 are bad, 1 is left."""
    if count % 10 == 0:
        return Fate.BRIEF
    if count % 10 == 5:
        return Fate.NEWS
    if count % 20 == 1:
        return Fate.BAD
    return Fate.LEFT if count % 40 == 2 else Fate.DONE


def _claim_of(message: Message) -> str:
    return message.href.partition("?claim_id=")[2]
