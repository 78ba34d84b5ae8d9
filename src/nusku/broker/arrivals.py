"""What comes from another service, as that shows it: queues, their messages and subscriptions.

Everything arrives once, however often its coming is interrupted and begun anew, and also if it was
claimed, deleted or changed here in between. For that, records of the kind ``import`` keep the ids
that things had where they come from.

Messages are first loaded into a queue of their own beside the one that they are for, its *ante-room*,
which no client can see, and are moved from there in one step. Nobody else writes to it, so its next
position says whether what was recorded as coming has come. Where a store cannot move (a cluster, or
a queue that went to another pool meanwhile), and for delayed messages, they are copied under a dedup
key and then removed. Only there one may come twice: if the import was interrupted between these two,
and the copy was removed here before it goes on.
"""

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from nusku.addresses import Addresses
from nusku.broker import ids, subscribers
from nusku.broker.codec import Attributes, Codec, checksum
from nusku.broker.notices import make
from nusku.broker.pools import Pools
from nusku.broker.queues import SUBSCRIPTION, Queue, Queues, subscriptions_of
from nusku.broker.subscriptions import Document, unique_name
from nusku.config import Settings
from nusku.errors import Conflict, Invalid, Unavailable
from nusku.model import Context, Draft, QueueKey, QueueRef, Record, Stored
from nusku.storage import Apart, RecordStore, Removal, Store
from nusku.storage.copying import holding_of

KIND = "import"
AT_ONCE = 500  # records read, or messages moved, by one step
ATTEMPTS = 10  # times that a change by somebody else in the meantime is put up with


class Arrival(NamedTuple):
    """A message, as it was at ``seen_s`` on the clock of the event loop."""

    id: str
    body: bytes
    ttl_s: int
    age_s: int
    left_s: int
    delay_s: int
    seen_s: float


class Subscribed(NamedTuple):
    """A subscription, as it was at ``seen_s`` on the clock of the event loop."""

    id: str
    subscriber: str
    ttl_s: int
    age_s: int
    left_s: int
    options: dict[str, Any]
    confirmed: bool
    seen_s: float


class _State(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where the ante-room of a queue is: the generation is empty when all has come."""

    generation: str = ""
    pool: str | None = None


class _Batch(msgspec.Struct, frozen=True, omit_defaults=True):
    """Ids of what came together. Messages: from the position ``first`` on in the ante-room of that
    generation, and ``marker``, by which the other service goes on behind them.
    """

    ids: list[str]
    generation: str = ""
    first: int = 0
    marker: str = ""


class Arrivals:
    """Where things come in. Not for servers: they are brought by a command beside them."""

    def __init__(
        self,
        pools: Pools,
        queues: Queues,
        codec: Codec,
        settings: Settings,
        addresses: Addresses,
        rng: random.Random,
    ) -> None:
        self._pools = pools
        self._records = pools.own.records
        self._queues = queues
        self._codec = codec
        self._settings = settings
        self._addresses = addresses
        self._rng = rng

    async def queue(
        self, ctx: Context, key: QueueKey, metadata: Mapping[str, Any]
    ) -> tuple[bool, list[str]]:
        """Create it, unless it is there; then it stays as it is.

        Returns whether it was created, and what was left out of its metadata, and why. Those that
        say the same as the defaults are left to the defaults.
        """
        defaults = self._queues.shown(key.kind, {})
        data = {k: v for k, v in metadata.items() if k not in defaults or defaults[k] != v}
        left_out = []
        for name in [name for name in data if name.startswith("_")]:
            try:
                self._queues.check({name: data[name]})
                if name == "_flavor":
                    await self._pools.place(key.project, data[name])
            except (Invalid, Unavailable) as error:
                del data[name]
                left_out.append(f"{name}: {error.detail}")
        return await self._queues.create(ctx, key, data), left_out

    async def messages(self, key: QueueKey) -> "Arriving":
        """Take messages for a queue, going on where this was interrupted."""
        arriving = Arriving(key, self._pools, self._queues, self._codec, self._settings, self._rng)
        await arriving.open()
        return arriving

    async def known(self, key: QueueKey) -> "Known":
        """Which subscriptions of a queue have come."""
        known = Known(self._records, key, "subscriptions")
        await known.read()
        return known

    async def subscriptions(
        self, key: QueueKey, coming: Sequence[Subscribed], known: "Known"
    ) -> tuple[int, list[str]]:
        """Take those that have not come before; say how many, and what was refused, and why."""
        came, refused = [], []
        for one in coming:
            if one.id in known.ids or one.id in came:
                continue
            options = {k: v for k, v in one.options.items() if k != "_signing"}
            document = {"subscriber": one.subscriber, "ttl": one.ttl_s, "options": options}
            try:
                wanted = subscribers.parse(document, self._settings, self._addresses)
            except Invalid as error:
                refused.append(f"{one.subscriber}: {error.detail}")
                continue
            if "_signing" in one.options:
                refused.append(f"{one.subscriber}: came unsigned; a secret is not shown")
            await self._subscribe(key, one._replace(options=wanted.options))
            came.append(one.id)
        if came:
            await self._queues.touch(key)
            await known.note(_Batch(came))
        return len(came), refused

    async def _subscribe(self, key: QueueKey, one: Subscribed) -> None:
        # No two of a queue have one subscriber, so this also finds what came before a crash.
        unique = unique_name(key, one.subscriber)
        if await self._records.find(SUBSCRIPTION, key.project, unique):
            return
        await self._queues.ensure(key)
        queue = await self._records.get(*key)
        if queue is None:
            raise Unavailable(f"The {key.kind} {key.name} is being deleted.")
        then_ms = queue.read_ms - _ago_ms(one.seen_s)
        created_ms = then_ms - one.age_s * 1000
        document = Document(one.subscriber, one.ttl_s, one.options, one.confirmed)
        record = Record(
            SUBSCRIPTION, key.project, ids.SubscriptionIds(self._rng).new(created_ms),
            msgspec.json.encode(document), parent=subscriptions_of(key), unique=unique,
        )  # fmt: skip
        # Only this way the name is found to be free, or not; then it gets its age.
        if await self._records.insert(record, one.left_s):
            ends_ms = then_ms + one.left_s * 1000
            aged = msgspec.structs.replace(record, created_ms=created_ms, ends_ms=ends_ms)
            await self._records.load([aged])

    async def forget(self, project: str) -> int:
        """Remember nothing of what came to a project, so that it would come again; say how much
        that was.
        """
        forgotten = 0
        while records := await self._records.page(KIND, project, "", AT_ONCE):
            for record in records:
                if not record.parent:
                    await self._close(record)
                else:
                    forgotten += len(msgspec.json.decode(record.doc, type=_Batch).ids)
                await self._records.delete(record.kind, record.project, record.key)
        return forgotten

    async def _close(self, record: Record) -> None:
        """Drop the ante-room of an import that was interrupted."""
        state = msgspec.json.decode(record.doc, type=_State)
        if state.generation:
            kind, _, name = record.key.partition("/")
            key = QueueKey("topic" if kind == "topic" else "queue", record.project, name)
            store = await self._pools.store(state.pool)
            await store.messages.drop(_ante_room(key, state.generation))


class Known:
    """The ids of what has come to a queue, of one sort."""

    def __init__(self, records: RecordStore, key: QueueKey, sort: str) -> None:
        self._records = records
        self._project = key.project
        self._parent = f"{key.kind}/{key.name}/{sort}"
        self._batches = 0
        self.ids: set[str] = set()
        self.last: _Batch | None = None

    async def read(self) -> None:
        """To be called first."""
        after = ""
        while True:
            records = await self._records.page(
                KIND, self._project, after, AT_ONCE, parent=self._parent
            )
            for record in records:
                self.last = msgspec.json.decode(record.doc, type=_Batch)
                self.ids.update(self.last.ids)
                self._batches = int(record.key.rpartition("/")[2])
            if len(records) < AT_ONCE:
                return
            after = records[-1].key

    async def note(self, batch: _Batch) -> None:
        """These come. Raises Conflict when somebody else brings the same."""
        self._batches += 1
        doc = msgspec.json.encode(batch)
        if not await self._records.insert(
            Record(KIND, self._project, self._name(), doc, parent=self._parent)
        ):
            raise Conflict("Another import brings the same project.")
        self.ids.update(batch.ids)
        self.last = batch

    async def retract(self) -> None:
        """The last ones did not come after all."""
        if self.last is not None:
            await self._records.delete(KIND, self._project, self._name())
            self.ids.difference_update(self.last.ids)
            # Those before it came from before this marker, or were led back behind it.
            self.last = None

    def _name(self) -> str:
        return f"{self._parent}/{self._batches:010}"


class Arriving:
    """Messages on their way into a queue."""

    def __init__(
        self,
        key: QueueKey,
        pools: Pools,
        queues: Queues,
        codec: Codec,
        settings: Settings,
        rng: random.Random,
    ) -> None:
        self._key = key
        self._pools = pools
        self._records = pools.own.records
        self._queues = queues
        self._codec = codec
        self._checksums = settings.enable_checksum
        self._rng = rng
        self._known = Known(self._records, key, "messages")
        self._store: Store | None = None  # that of the ante-room, once there is one
        self._room: QueueRef
        self._next = 1
        self._ahead_ms = 0  # the store's clock before that of the event loop
        self.marker = ""
        """Behind what has come, if it was interrupted; else empty, to begin at the beginning."""

    async def open(self) -> None:
        """To be called first: finish what was begun."""
        await self._known.read()
        record = await self._records.get(KIND, self._key.project, _state_name(self._key))
        state = _State() if record is None else msgspec.json.decode(record.doc, type=_State)
        if not state.generation:
            return
        await self._enter(state)
        last = self._known.last
        if last is not None and last.generation == state.generation:
            if last.first >= self._next:
                await self._known.retract()
            else:
                self.marker = last.marker
        await self._clear_out()

    async def _begin(self) -> Store:
        """Have an ante-room, beside the queue."""
        generation = ids.new_generation(self._rng)

        async def where(queue: Queue) -> _State:
            return _State(generation, queue.pool)

        state = await self._queues.use(self._key, where, create=True)
        assert state is not None  # noqa: S101 - a missing queue was created
        await self._remember(state)
        return await self._enter(state)

    async def _enter(self, state: _State) -> Store:
        self._store = store = await self._pools.store(state.pool)
        self._room = _ante_room(self._key, state.generation)
        other = (await store.messages.admit(self._room)).other
        if other is not None:  # of an import that came to its end, and then was interrupted
            await store.messages.drop(self._room._replace(generation=other))
        await make(store.messages, self._room)
        holding = await holding_of(store.messages, self._room.key)
        if holding is None:
            raise Unavailable("Somebody else brings the same.")
        self._next = holding.next_position
        self._ahead_ms = holding.now_ms - _loop_ms()
        return store

    async def _clear_out(self) -> None:
        if self._store is not None:
            while rest := await self._store.messages.dump(self._room, 0, AT_ONCE):
                await self._hand_over(self._store, rest)

    async def _remember(self, state: _State) -> None:
        project, name = self._key.project, _state_name(self._key)
        doc = msgspec.json.encode(state)
        for _ in range(ATTEMPTS):
            record = await self._records.get(KIND, project, name)
            if record is None:
                done = await self._records.insert(Record(KIND, project, name, doc))
            else:
                new = msgspec.structs.replace(record, doc=doc, version=record.version + 1)
                done = await self._records.update(new)
            if done:
                return
        raise Conflict("Another import brings the same project.")

    def has(self, id_: str) -> bool:
        """Whether the message has come already."""
        return id_ in self._known.ids

    async def add(self, coming: Sequence[Arrival], marker: str) -> int:
        """Take those that have not come before, which are in their order; say how many."""
        new = list({one.id: one for one in coming if not self.has(one.id)}.values())
        if not new:
            return 0
        store = self._store or await self._begin()
        first, encrypted = self._next, await self._encrypted()
        stored = [self._stored(one, first + n, encrypted=encrypted) for n, one in enumerate(new)]
        await self._known.note(
            _Batch([one.id for one in new], self._room.generation, first, marker)
        )
        self._next += len(new)
        await store.messages.load(self._room, self._next, first - 1, self._next - 1, stored)
        await self._hand_over(store, stored)
        return len(new)

    async def _encrypted(self) -> bool:
        """Whether the queue that these are for encrypts what comes."""

        async def look(queue: Queue) -> bool:
            return queue.encrypted

        return bool(await self._queues.use(self._key, look, create=True))

    def _stored(self, one: Arrival, position: int, *, encrypted: bool) -> Stored:
        seen_ms = int(one.seen_s * 1000) + self._ahead_ms
        posted_ms = seen_ms - one.age_s * 1000
        beside = Attributes(checksum(one.body) if self._checksums else None)
        # For the queue, not the ante-room, so that they can go there in one step.
        body, attributes = self._codec.pack(self._key, one.body, beside, encrypted=encrypted)
        return Stored(
            position,
            posted_ms,
            one.ttl_s,
            seen_ms + one.left_s * 1000,
            0,
            "",
            body,
            attributes,
            f"import {one.id}",
            seen_ms + one.delay_s * 1000 if one.delay_s > 0 else 0,
        )

    async def _hand_over(self, store: Store, stored: Sequence[Stored]) -> None:
        """From the ante-room into the queue."""

        async def into(queue: Queue) -> None:
            rest = stored
            if queue.store is store:
                free = [m.position for m in stored if not m.hidden_ms]
                try:
                    await store.messages.move(self._room, free, queue.ref, None, {})
                    rest = [m for m in stored if m.hidden_ms]
                except Apart:
                    pass
            if rest:
                await queue.store.messages.add([(queue.ref, list(map(self._draft, rest)))])
                positions = [m.position for m in rest]
                await store.messages.remove(self._room, positions, Removal.ANY)
            queue.store.tell(self._key)

        await self._queues.use(self._key, into, create=True)

    def _draft(self, one: Stored) -> Draft:
        now_ms = _loop_ms() + self._ahead_ms
        return Draft(
            one.body or b"null",
            max(-(-(one.expires_ms - now_ms) // 1000), 1),
            max(-(-(one.hidden_ms - now_ms) // 1000), 0),
            one.client,
            one.dedup,
            one.attributes,
            one.posted_ms,
            one.count,
        )

    async def close(self) -> None:
        """All has come."""
        if self._store is not None:
            await self._clear_out()
            await self._remember(_State())
            await self._store.messages.drop(self._room)


def _ante_room(key: QueueKey, generation: str) -> QueueRef:
    """No queue of a client can have a name with a slash in it."""
    return QueueRef(key._replace(name=f"import/{key.name}"), generation, 1)


def _state_name(key: QueueKey) -> str:
    return f"{key.kind}/{key.name}"


def _loop_ms() -> int:
    return int(asyncio.get_running_loop().time() * 1000)


def _ago_ms(seen_s: float) -> int:
    return max(_loop_ms() - int(seen_s * 1000), 0)
