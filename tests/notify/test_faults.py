"""Deliveries while the store fails, and through lives that end, at any moment: none is lost.

The store is the real one, the sender a stub. Time is a stub, too: see `Timeless`.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import msgspec
import pytest

from nusku.addresses import Addresses
from nusku.broker import Broker, Change, NewMessage, Pools
from nusku.broker.deliveries import Deliveries, Parcel, Recipient
from nusku.broker.subscriptions import Trusts
from nusku.config import Settings
from nusku.errors import Unavailable
from nusku.metrics import Metrics
from nusku.model import Context, QueueKey
from nusku.notify import Notifier, Outcome
from nusku.storage import Store, StoreOptions, open_store

pytestmark = pytest.mark.embedded

T = TypeVar("T")

Behave = Callable[[Recipient, Parcel], Awaitable[Outcome]]
Go = Callable[[], Awaitable[Any]]
Meddle = Callable[[str, tuple[Any, ...], Go], Awaitable[Any]]
"""Is told the name and arguments of each call of the store, and makes it, or does not."""

DAY_S = 86_400.0
EPOCH_S = 1_800_000_000
DELIVERED = Outcome("delivered", status=200)
FAILED = Outcome("failed", "status", 500)
REFUSED = Outcome("refused", "status", 400)
QUEUE = QueueKey("queue", "p", "q")
ANN = Context("p", "c", frozenset({"member"}), "ann", "the token of ann")


# -- time ------------------------------------------------------------------------------------------


class Timeless(asyncio.SelectorEventLoop):
    """A loop whose clock stands still while there is something to do, and then leaps to what is due.

    So claims lapse, retries come and subscriptions end as they do in a server, but nobody waits,
    and however slow the machine is, nothing is late. ``working``: calls of the store under way,
    whose threads have a time of their own.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self.working = 0
        self.rigs: list[Rig] = []
        super().__init__(_Leaping(self))

    def time(self) -> float:
        return self.now_s

    @contextmanager
    def work(self) -> Iterator[None]:
        self.working += 1
        try:
            yield
        finally:
            self.working -= 1


class _Leaping(selectors.DefaultSelector):
    def __init__(self, loop: Timeless) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        if self._loop.working:
            return super().select(None)  # the thread will call
        found = super().select(0)
        if not found:
            self._loop.now_s += timeout
        return found


def run(test: Coroutine[Any, Any, T]) -> T:
    """Run it where time is a stub, for a day of that at most; stop the rigs that it leaves."""

    async def to_the_end() -> T:
        try:
            return await asyncio.wait_for(test, DAY_S)
        finally:
            for rig in list(timeless().rigs):
                rig.meddle = leave_alone
                await rig.stop()

    with asyncio.Runner(loop_factory=Timeless) as runner:
        return runner.run(to_the_end())


def timeless() -> Timeless:
    return cast("Timeless", asyncio.get_running_loop())


async def no_pools(uri: str, options: Mapping[str, Any]) -> Store:
    raise AssertionError(f"nobody added a pool at {uri}")


# -- a server without its transports ---------------------------------------------------------------


async def takes(to: Recipient, parcel: Parcel) -> Outcome:
    return DELIVERED


async def refuses(to: Recipient, parcel: Parcel) -> Outcome:
    return REFUSED


async def leave_alone(name: str, args: tuple[Any, ...], go: Go) -> Any:
    return await go()


@dataclass(frozen=True)
class Sent:
    """An attempt that came to its end."""

    to: Recipient
    parcel: Parcel
    result: str

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = msgspec.json.decode(self.parcel.body)
        return document


class StubSender:
    """Behaves as it is told, and writes down what it sent.

    ``twice`` counts attempts at what was being sent already, ``broken_off`` those that were
    cancelled.
    """

    def __init__(self, behave: Behave) -> None:
        self.behave = behave
        self.sent: list[Sent] = []
        self.twice = self.broken_off = 0
        self._now: Counter[tuple[str, str]] = Counter()

    async def send(self, to: Recipient, parcel: Parcel) -> Outcome:
        one = to.id, parcel.id
        self._now[one] += 1
        self.twice += self._now[one] > 1
        try:
            outcome = await self.behave(to, parcel)
        except asyncio.CancelledError:
            self.broken_off += 1
            raise
        finally:
            self._now[one] -= 1
        self.sent.append(Sent(to, parcel, outcome.result))
        return outcome

    async def close(self) -> None:
        pass

    def to(self, subscriber: str) -> list[Sent]:
        """What was sent to a URL, well or badly."""
        return [one for one in self.sent if one.to.subscriber == subscriber]


class _Part:
    """The messages or records of a store: every call passes by the one who meddles."""

    def __init__(self, part: Any, rig: Rig) -> None:
        self._part = part
        self._rig = rig

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        call = getattr(self._part, name)

        async def meddled(*args: Any, **options: Any) -> Any:
            async def go() -> Any:
                with timeless().work():
                    return await call(*args, **options)

            return await self._rig.meddle(name, args, go)

        return meddled


class Rig:
    """Broker and notifier on a store; may be stopped and started again. ``meddle`` may be changed.

    URLs of subscribers lead nowhere: what is sent goes to the stub.
    """

    def __init__(
        self,
        folder: Path,
        behave: Behave = takes,
        *,
        trusts: Trusts | None = None,
        **settings: Any,
    ) -> None:
        self.settings = Settings(
            store=f"sqlite:///{folder / 'nusku.db'}",
            subscriber_allow=("127.0.0.0/8",),
            min_subscription_ttl=1,
            min_message_ttl=1,
            **settings,
        )
        self.sender = StubSender(behave)
        self.meddle: Meddle = leave_alone
        self._trusts = trusts

    async def start(self, *, sending: bool = True) -> Self:
        """Without ``sending`` the notifier is there, but its duties have not begun."""
        loop, metrics = timeless(), Metrics()

        def now_ms() -> int:
            return EPOCH_S * 1000 + int(loop.time() * 1000)

        options = StoreOptions("normal")
        with loop.work():
            store = await open_store(self.settings.store, now_ms, options, metrics)
        self.store = store._replace(
            messages=cast("Any", _Part(store.messages, self)),
            records=cast("Any", _Part(store.records, self)),
        )
        rng = random.SystemRandom()
        self.broker = Broker(
            Pools(self.store, no_pools, self.settings, rng),
            self.settings,
            metrics,
            rng,
            signing_key="k" * 40,
            trusts=cast("Trusts", self._trusts),
            addresses=Addresses(self.settings),
            now=lambda: EPOCH_S + loop.time(),
        )
        self.subscriptions, self.queues = self.broker.subscriptions, self.broker.queues
        self.notifier = Notifier(self.broker, {"http": self.sender}, self.settings, metrics, 100)
        if sending:
            self.notifier.start()
        self._unmeddled = Deliveries(store.messages, self.broker.codec)
        self._plain: Store = store
        loop.rigs.append(self)
        return self

    async def stop(self, patience_s: float = 1.0) -> None:
        timeless().rigs.remove(self)
        await self.notifier.stop(patience_s)
        with timeless().work():
            await self.store.close()

    async def subscribe(
        self, path: str, *, ttl: int = 3600, key: QueueKey = QUEUE, **options: Any
    ) -> str:
        """Subscribe; keywords are options. Returns the id."""
        document = {"subscriber": url(path), "ttl": ttl, "options": options}
        return (await self.subscriptions.create(ANN, key, document)).id

    async def post(self, *bodies: Any, key: QueueKey = QUEUE) -> None:
        async def read(most: int) -> list[NewMessage]:
            return [NewMessage(msgspec.json.encode(body)) for body in bodies]

        await self.broker.messages.post(ANN, key, read)

    # As it is in the store, whoever meddles.

    async def pending(self, id_: str) -> int:
        with timeless().work():
            return (await self._unmeddled.counts("p", id_))[0]

    async def given_up(self, id_: str) -> list[Any]:
        """Bodies of the messages that are kept for replay."""
        with timeless().work():
            found = await self._unmeddled.failed("p", id_, 0, 1000)
        return [msgspec.json.decode(message.body).get("body") for message in found.messages]

    async def unspread(self) -> int:
        with timeless().work():
            return sum(one.messages for one in await self._plain.messages.occupied("notice"))

    async def settled(self, *ids: str, within_s: float = 1800.0) -> bool:
        """Wait until all notices are spread and these have nothing pending."""
        end = timeless().time() + within_s
        while await self.unspread() or any([await self.pending(one) for one in ids]):
            if timeless().time() > end:
                return False
            await asyncio.sleep(1)
        return True


def url(path: str) -> str:
    return f"http://127.0.0.1:9/{path}"


# -- what is to hold -------------------------------------------------------------------------------

PATHS = ("ok", "flaky", "no")
AT_ONCE: dict[str, Any] = {"retries_with_no_delay": 3}


class Moods:
    """What subscribers say: ``flaky`` fails twice at each delivery, ``no`` refuses."""

    def __init__(self, rng: random.Random, *durations_s: float) -> None:
        self._rng = rng
        self._durations_s = durations_s
        self._tries: Counter[tuple[str, str]] = Counter()

    async def __call__(self, to: Recipient, parcel: Parcel) -> Outcome:
        await asyncio.sleep(self._rng.choice(self._durations_s))
        self._tries[to.id, parcel.id] += 1
        if to.subscriber == url("flaky") and self._tries[to.id, parcel.id] <= 2:
            return FAILED
        return REFUSED if to.subscriber == url("no") else DELIVERED


class Promises:
    """What was acknowledged, and so has to be told."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._posted: list[int] = []
        self._number = 0
        self.ids: list[str] = []

    async def subscribe(self) -> None:
        self.ids = [await self._rig.subscribe(path, _retry_policy=AT_ONCE) for path in PATHS]

    async def post(self, number: int) -> None:
        bodies = list(range(self._number, self._number + number))
        self._number += number
        with suppress(Unavailable):
            await self._rig.post(*bodies)
            self._posted += bodies

    async def broken(self) -> list[str]:
        """What is wrong after all."""
        rig, wrong = self._rig, []
        if not await rig.settled(*self.ids):
            wrong.append("something waits for ever")
        for path, id_ in zip(PATHS, self.ids, strict=True):
            told = [s.document["body"] for s in rig.sender.to(url(path)) if s.result == "delivered"]
            kept = await rig.given_up(id_)
            if lost := set(self._posted) - {*told, *kept}:
                wrong.append(f"{path}: {sorted(lost)} lost")
        if rig.sender.twice:
            wrong.append(f"{rig.sender.twice} sent by two at once")
        await asyncio.sleep(1)
        if left := rig.notifier.slots.in_flight + len(rig.notifier.slots._projects):
            wrong.append(f"{left} slots not given back")
        return wrong


# -- a store that fails once -----------------------------------------------------------------------

CALLS = 60  # of the store, at each of which it fails


async def with_a_fault(folder: Path, at: int, *, after: bool) -> list[str]:
    """What is wrong when one call of the store is not answered, though it may have had its effect."""
    rig = Rig(folder, Moods(random.Random(at), 0.002, 4.5), delivery_timeout=5)
    calls = 0

    async def fail(name: str, args: tuple[Any, ...], go: Go) -> Any:
        nonlocal calls
        calls += 1
        if calls - 1 != at:
            return await go()
        if after:
            await go()
        raise Unavailable(f"{name} fails")

    await rig.start()
    promises = Promises(rig)
    await promises.subscribe()
    rig.meddle = fail
    for _ in range(2):
        await promises.post(4)
    broken = await promises.broken()
    return broken if calls > at else [*broken, "there were fewer calls"]


@pytest.mark.parametrize("half", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_call_of_the_store_that_fails_loses_nothing(tmp_path: Path, half: int) -> None:
    """Every other call before its effect, and those in between after it; then the other way round."""
    broken = {}
    for at in range(CALLS):
        after = (at + half) % 2 == 1
        (folder := tmp_path / str(at)).mkdir()
        if wrong := run(with_a_fault(folder, at, after=after)):
            broken[at, "after" if after else "before"] = wrong
    assert broken == {}


# -- several lives ---------------------------------------------------------------------------------

LIVES = 4


class Weather:
    """A store that now and then is slow, and fails as often as it is told to."""

    def __init__(self, rng: random.Random) -> None:
        self.fails = 0.0
        self._rng = rng

    async def __call__(self, name: str, args: tuple[Any, ...], go: Go) -> Any:
        rng = self._rng
        if rng.random() < self.fails:
            if rng.random() < 0.5:
                await go()
            raise Unavailable(f"{name} fails")
        if rng.random() < 0.1:
            await asyncio.sleep(rng.random() * 0.02)
        return await go()


async def something_else(rig: Rig, rng: random.Random, id_: str) -> None:
    """What others may do meanwhile."""
    match rng.randrange(20):
        case 0 | 1 | 2:
            await rig.subscriptions.pause(ANN, QUEUE, id_)
        case 3 | 4 | 5 | 6 | 7:
            await rig.subscriptions.resume(ANN, QUEUE, id_)
        case 8 | 9:
            await rig.subscriptions.rotate(ANN, QUEUE, id_)
        case 10:
            await rig.queues.delete(ANN, QUEUE)
        case 11:
            await rig.queues.clear(QUEUE)
        case 12:
            await rig.queues.create(ANN, QUEUE, {})
            await rig.queues.update(ANN, QUEUE, [Change("add", "x", rng.random())])
        case 13:
            other = QUEUE._replace(name="other")
            one = await rig.subscribe("ok", key=other)
            await rig.post("x", key=other)
            await rig.subscriptions.delete(ANN, other, one)
        case 14:
            await rig.subscriptions.replay(ANN, QUEUE, id_, None)


async def lives(folder: Path, seed: int) -> list[str]:
    """What is wrong after several lives, each of which ends while things are under way."""
    rng = random.Random(seed)
    rig = Rig(folder, Moods(rng, 0, 0.001, 0.01, 0.05, 4.5), delivery_timeout=5)
    promises, weather = Promises(rig), Weather(rng)
    await rig.start()
    await promises.subscribe()
    for life in range(LIVES):
        rig.meddle, weather.fails = weather, 0.03
        for _ in range(8):
            await promises.post(5)
            with suppress(Unavailable):
                await something_else(rig, rng, rng.choice(promises.ids))
            await asyncio.sleep(rng.choice((0, 0.01, 0.05)))
        if life + 1 < LIVES:
            weather.fails = rng.choice((0, 0, 0.2))
            await rig.stop(rng.choice((0.001, 0.001, 0.02, 1)))
            rig.meddle = leave_alone
            await rig.start()
    rig.meddle = leave_alone
    for one in promises.ids:
        await rig.subscriptions.resume(ANN, QUEUE, one)
    return await promises.broken()


QUICK, SLOW = range(5), range(5, 12)


@pytest.mark.parametrize("seeds", [QUICK, pytest.param(SLOW, marks=pytest.mark.slow)], ids=str)
def test_lives_that_end_at_any_moment_lose_nothing(tmp_path: Path, seeds: range) -> None:
    broken = {}
    for seed in seeds:
        (folder := tmp_path / str(seed)).mkdir()
        if wrong := run(lives(folder, seed)):
            broken[seed] = wrong
    assert broken == {}
