"""What the tests of stores share: a clock to turn and a house with one open store in it.

A backend joins the suite with one line in :mod:`tests.servers.stores`. The suite runs on all of
them, or on some::

    pytest tests/storage --store=postgresql            # or redis, redis-cluster, sqlite
    pytest tests/storage --store=redis,redis-cluster

The servers are started for the run, each test gets an empty store. A test that is about one
kind of store says so: ``pytestmark = pytest.mark.only("sqlite")``; one that needs servers of its
own (to kill them, say) starts them by :mod:`tests.servers`. A test may have several stores at a
time: ``BACKENDS[name](folder)`` is the URI of the one of that folder, empty when it is first asked
for, and taken back when the test ends or the folder is gone.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from nusku.metrics import Metrics
from nusku.model import Claimed, Draft, Found, Kind, Message, QueueKey, QueueRef, home
from nusku.storage import MessageStore, RecordStore, Store, StoreOptions, open_store
from tests.servers.stores import KINDS, store_in

BACKENDS: dict[str, Callable[[Path], str]] = {kind: partial(store_in, kind) for kind in KINDS}
"""The URI of a fresh store by the name of its backend, given a directory of its own."""

START_MS = 1_700_000_000_000
"""Where clocks start: a whole second, so that a turn in seconds never meets a rounded deadline."""

LONG_S = 100_000


class TurnedClock:
    """A clock that stands still until it is turned."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms

    def turn(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)


class House:
    """One store that can be closed and opened again, and the clock that it goes by."""

    def __init__(self, uri: str, options: StoreOptions | None = None) -> None:
        self.uri = uri
        self.options = options or StoreOptions()
        self.clock = TurnedClock()
        self.metrics = Metrics()
        self._store: Store | None = None
        self._generations = 0

    @property
    def store(self) -> Store:
        assert self._store is not None, "the store is closed"
        return self._store

    @property
    def messages(self) -> MessageStore:
        return self.store.messages

    @property
    def records(self) -> RecordStore:
        return self.store.records

    async def open(self) -> None:
        assert self._store is None
        self.metrics = Metrics()
        self._store = await open_store(self.uri, self.clock, self.options, self.metrics)

    async def close(self) -> None:
        if self._store is not None:
            store, self._store = self._store, None
            await store.close()

    async def reopen(self) -> None:
        await self.close()
        await self.open()

    def generation(self) -> str:
        """One that no queue of this house has had."""
        self._generations += 1
        return f"{self._generations:016x}"

    async def queue(
        self, name: str = "orders", project: str = "p1", kind: Kind = "queue"
    ) -> QueueRef:
        """A queue of a new generation, admitted to the store and open, in place of any other."""
        ref = QueueRef(QueueKey(kind, project, name), self.generation(), 1)
        await self.admit(ref)
        return ref

    async def admit(self, ref: QueueRef) -> None:
        """Make this generation and version the current and open one."""
        admitted = await self.messages.admit(ref)
        if admitted.other is not None:
            await self.messages.drop(ref._replace(generation=admitted.other))
            admitted = await self.messages.admit(ref)
        await self.messages.open(ref, admitted.seal)

    async def unseal(self, ref: QueueRef) -> None:
        """Break whatever seal there is, if the queue is of this generation and version."""
        name = ref.key.name
        # The greatest name before it is the one behind which to look.
        before = ref.key._replace(name=f"{name[:-1]}{chr(ord(name[-1]) - 1)}\U0010ffff")
        held = await self.messages.queues(before, 1)
        if any(one.ref.key == ref.key and one.sealed for one in held):
            # An older version changes nothing, but says which seal there is.
            admitted = await self.messages.admit(ref._replace(version=0))
            await self.messages.open(ref, admitted.seal)

    async def beside(self, ref: QueueRef) -> QueueRef:
        """A new queue of the same home: the notices of one that is nobody's inside."""
        return await self.queue(home(ref.key), ref.key.project, "notice")

    async def post(
        self,
        ref: QueueRef,
        *bodies: str,
        ttl_s: int = LONG_S,
        delay_s: int = 0,
        client: str = "",
        dedup: str | None = None,
        attributes: bytes | None = None,
    ) -> list[int]:
        """Add messages in one batch that differ in their bodies only; return the positions."""
        drafts = [
            Draft(body.encode(), ttl_s, delay_s, client, dedup, attributes) for body in bodies
        ]
        [positions] = await self.messages.add([(ref, drafts)])
        return positions

    async def fill(
        self, ref: QueueRef, number: int, *, ttl_s: int = LONG_S, delay_s: int = 0
    ) -> None:
        """Add that many messages, in batches of a thousand."""
        draft = Draft(b"x", ttl_s, delay_s)
        for start in range(0, number, 1000):
            await self.messages.add([(ref, [draft] * min(1000, number - start))])

    async def all(self, ref: QueueRef) -> Sequence[Message]:
        """Every live message of the queue, free or not."""
        found = await self.messages.page(ref, 0, 1_000_000, held=True, delayed=True)
        return found.messages

    async def free(self, ref: QueueRef) -> list[str]:
        """The bodies of what a plain page shows."""
        return bodies(await self.messages.page(ref, 0, 1_000_000))

    async def hold(
        self, ref: QueueRef, limit: int = 20, ttl_s: int = 60, grace_s: int = 60
    ) -> tuple[str, list[int]]:
        """Claim something that is known to be there; return the claim's id and the positions."""
        got = await self.messages.claim(ref, limit, ttl_s, grace_s)
        assert got.claim is not None, "there was nothing to claim"
        return got.claim, positions(got)

    async def numbers(self, ref: QueueRef) -> tuple[int, int, int]:
        """How many are free, held and delayed."""
        counts = await self.messages.count(ref)
        return counts.free, counts.held, counts.delayed


def bodies(found: Found | Claimed | Iterable[Message]) -> list[str]:
    """The bodies, as text."""
    messages = found.messages if isinstance(found, Found | Claimed) else found
    return [message.body.decode() for message in messages]


def positions(found: Found | Claimed | Iterable[Message]) -> list[int]:
    messages = found.messages if isinstance(found, Found | Claimed) else found
    return [message.position for message in messages]
