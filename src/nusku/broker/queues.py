"""Queues and topics: a name, free-form metadata, and the options among it."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from nusku.broker import grants, ids, rules
from nusku.broker.amounts import Amounts
from nusku.broker.codec import Codec
from nusku.broker.notices import make, notices_of
from nusku.broker.operation import operation
from nusku.broker.placements import Placements
from nusku.broker.pools import Pools
from nusku.broker.quotas import Quotas
from nusku.broker.view import View
from nusku.config import Settings
from nusku.errors import Conflict, Invalid, InvalidBody, NotFound, NuskuError, Unavailable
from nusku.model import Context, Counts, Kind, QueueKey, QueueRef, Record
from nusku.storage import RecordStore, Stale, Store

T = TypeVar("T")

SUBSCRIPTION = "subscription"  # the kind of record that says who is told
CACHED_MAX = 10_000
ATTEMPTS = 10  # times that a change by somebody else in the meantime is put up with
# Between two looks whether a queue has arrived in its new pool: each longer than the one before,
# some ten seconds in all.
MOVING_PAUSE_S, MOVING_PAUSE_MAX_S = 0.005, 0.3


class Moving(msgspec.Struct, frozen=True):
    """The queue is on its way to another pool (None: the service's own store), since a time on
    the clock of the records.
    """

    to: str | None
    since_ms: int


class Document(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is stored of a queue: also the pool that it is in (None: the service's own store), and
    whether it ever was ``moved`` from one store to another.

    One that is ``deleted`` is there no more. Whoever meets it goes on with :func:`end`.
    """

    generation: str
    metadata: dict[str, Any]
    pool: str | None = None
    moving: Moving | None = None
    moved: bool = False
    deleted: bool = False


def document_of(record: Record) -> Document:
    """What a queue's record says."""
    return msgspec.json.decode(record.doc, type=Document)


def ref_of(record: Record, document: Document) -> QueueRef:
    """The queue as its record says that it is."""
    key = QueueKey("topic" if record.kind == "topic" else "queue", record.project, record.key)
    return QueueRef(key, document.generation, record.version)


def changed(record: Record, document: Document) -> Record:
    """The next version of a queue's record, with this in it."""
    return msgspec.structs.replace(
        record, doc=msgspec.json.encode(document), version=record.version + 1
    )


async def end(pools: Pools, records: RecordStore, record: Record) -> None:
    """Go to the end with the deletion of a queue whose record says that it is deleted.

    Whoever has the queue in memory uses it until its messages are dropped. So nobody may say that
    there is no such queue before, nor make one, which would take them for those of an earlier one.
    Several may do this at once, and a late one harms nothing that was made since.
    """
    document = document_of(record)
    ref = ref_of(record, document)
    if store := await _store_of(pools, document):
        await store.messages.drop(ref)
    if document.pool is not None:
        entries = await pools.placements.of(document.pool, ref.key)
        await pools.placements.forget(
            one for one in entries if one.generation == document.generation
        )
    await records.delete(*ref.key, doc=record.doc)


async def _store_of(pools: Pools, document: Document) -> Store | None:
    """The store that a queue is in now; None if its pool is gone, which was empty then."""
    try:
        return (await pools.present(document.pool)).store
    except Unavailable:
        if document.pool is None or await pools.known(document.pool):
            raise
        return None


class Queue(msgspec.Struct, frozen=True):
    """A queue as read, where it is, whether it ever was elsewhere, and its options (None: not set)."""

    ref: QueueRef
    pool: str | None
    store: Store
    moved: bool
    post_bytes_max: int
    message_ttl_s: int
    message_delay_s: int
    dead_letter_queue: str | None = None
    dead_letter_ttl_s: int | None = None
    max_claim_count: int | None = None
    retry_policy: dict[str, Any] | None = None
    has_subscriptions: bool = False
    encrypted: bool = False


class _Subscription(msgspec.Struct):
    """What of a subscription's record matters to a post."""

    live: bool = False


def _is_delivered_to(subscription: Record) -> bool:
    """Whether there is somebody to make deliveries for; live subscribers follow the queue."""
    return not msgspec.json.decode(subscription.doc, type=_Subscription).live


def subscriptions_of(key: QueueKey) -> str:
    """What the subscriptions of a queue or topic have as their parent."""
    return f"{key.kind}/{key.name}"


class Change(NamedTuple):
    """One operation of a metadata patch."""

    op: Literal["add", "remove", "replace"]
    name: str
    value: Any = None


class Queues:
    """What can be done to queues, and to topics, which differ in their defaults only."""

    def __init__(
        self,
        pools: Pools,
        records: RecordStore,
        codec: Codec,
        quotas: Quotas,
        settings: Settings,
        rng: random.Random,
    ) -> None:
        self._pools = pools
        self._records = records
        self._placements = Placements(records)
        self._codec = codec
        self._quotas = quotas
        self._settings = settings
        self._rng = rng
        # What was read may have been changed by another node since. Stores refuse what is done to
        # messages by somebody who does not know of that.
        self._cache: dict[QueueKey, Queue] = {}
        self._patching = asyncio.Lock()
        # Brings a queue to another pool, and back where whoever did so has died: ``moving.py``.
        self.move: Callable[[QueueKey, str | None], Awaitable[None]]
        self.rescue: Callable[[Record], Awaitable[None]]
        shown = {
            "_max_messages_post_size": settings.max_messages_post_size,
            "_default_message_ttl": settings.default_message_ttl,
            "_default_message_delay": settings.default_message_delay,
        }
        self._defaults: dict[Kind, dict[str, Any]] = {
            "topic": shown,
            "queue": shown
            | {
                "_dead_letter_queue": None,
                "_dead_letter_queue_messages_ttl": None,
                "_max_claim_count": None,
                rules.ENCRYPT: False,
            },
        }

    # For the rest of the broker

    async def use(
        self, key: QueueKey, action: Callable[[Queue], Awaitable[T]], *, create: bool = False
    ) -> T | None:
        """Do something with a queue as it is now; None when there is none (and none is made).

        The action is tried again when the store says that the queue was changed meanwhile.
        """
        queue = self._cache.get(key) or await self._read(key, create=create)
        for _ in range(ATTEMPTS):
            if queue is None:
                return None
            if queue.pool is not None:
                # The pool may have another store by now, or the same one opened anew.
                try:
                    store = await self._pools.store(queue.pool)
                except Unavailable:
                    self._cache.pop(key, None)
                    queue = await self._read(key, create=create)  # perhaps it is elsewhere by now
                    continue
                if store is not queue.store:
                    queue = self._cache[key] = msgspec.structs.replace(queue, store=store)
            try:
                return await action(queue)
            except Stale:
                self._cache.pop(key, None)
                before, queue = queue, await self._read(key, create=create)
                if queue is not None and (queue.ref, queue.pool) == (before.ref, before.pool):
                    # Created or patched just now, or by a server that died half-way.
                    await self._admit(queue)
        raise Unavailable("The queue is being changed.")

    async def _admit(self, queue: Queue) -> None:
        """Tell the queue's store what its record says, unless that is no longer true.

        A store cannot look into the records. So a queue that it did not know is opened only after
        one more look, and only if it is the store that the pool has now: a record that is deleted
        or changed later takes what it names with it.
        """
        messages, ref = queue.store.messages, queue.ref
        present = await self._pools.present(queue.pool)
        if present.store is not queue.store:
            return  # the next round takes the right one
        admitted = await messages.admit(ref)
        record = await self._records.get(*ref.key)
        document = document_of(record) if record else None
        if document is None or document.generation != ref.generation or document.deleted:
            if admitted.other is None:
                await messages.drop(ref)
        elif record is not None and record.version == ref.version:
            if admitted.other is not None:
                # Whoever deleted its record died before it came to this. The next round admits.
                await messages.drop(ref._replace(generation=admitted.other))
                return
            if admitted.seal:
                if not present.takes:
                    raise Unavailable("The queues of this pool are being placed elsewhere.")
                await messages.open(ref, admitted.seal)
            if queue.has_subscriptions:
                await make(messages, notices_of(ref.key))

    async def _read(self, key: QueueKey, *, create: bool = False) -> Queue | None:
        for _ in range(ATTEMPTS):
            record = await self._arrived(key)
            if record is not None:
                return await self._remember(key, record)
            if not create:
                return None
            await self._create(key, {})
        raise Unavailable("The queue is being deleted.")

    async def _get(self, key: QueueKey) -> Record | None:
        """The record, if there is a queue. One that is deleted is so to the end afterwards."""
        for _ in range(ATTEMPTS):
            record = await self._records.get(*key)
            if record is None or not document_of(record).deleted:
                return record
            await end(self._pools, self._records, record)
        raise Unavailable("The queue is being deleted.")

    async def _arrived(self, key: QueueKey) -> Record | None:
        """The record once the queue is not on its way to another pool; None if there is none."""
        pause_s, record = 0.0, await self._get(key)
        while record is not None and document_of(record).moving is not None:
            if pause_s > MOVING_PAUSE_MAX_S:
                raise Unavailable("The queue is being moved to another pool.")
            await self.rescue(record)
            await asyncio.sleep(pause_s := pause_s + MOVING_PAUSE_S)
            record = await self._get(key)
        return record

    async def _remember(self, key: QueueKey, record: Record) -> Queue:
        document = document_of(record)
        try:
            store = await self._pools.store(document.pool)
        except Unavailable:
            if document.pool is None or await self._pools.known(document.pool):
                raise
            return await self._remember(key, await self._placed_anew(key, record, document))
        # Read after the queue: a subscription that comes later makes a new version of it.
        subscriptions = await self._records.page(
            SUBSCRIPTION, key.project, "", 1, _is_delivered_to, parent=subscriptions_of(key)
        )
        queue = self._queue(record, document, store, has_subscriptions=bool(subscriptions))
        if len(self._cache) >= CACHED_MAX:
            del self._cache[next(iter(self._cache))]
        self._cache[key] = queue
        return queue

    def _queue(
        self, record: Record, document: Document, store: Store, *, has_subscriptions: bool
    ) -> Queue:
        ref, data, settings = ref_of(record, document), document.metadata, self._settings
        target, count = data.get("_dead_letter_queue"), data.get("_max_claim_count")
        active = ref.key.kind == "queue" and target is not None and count is not None
        return Queue(
            ref,
            document.pool,
            store,
            document.moved,
            min(data.get("_max_messages_post_size") or settings.max_messages_post_size,
                settings.max_messages_post_size),
            data.get("_default_message_ttl") or settings.default_message_ttl,
            data.get("_default_message_delay") or settings.default_message_delay,
            target if active else None,
            data.get("_dead_letter_queue_messages_ttl"),
            count if active else None,
            data.get("_retry_policy"),
            has_subscriptions,
            bool(data.get(rules.ENCRYPT)),
        )  # fmt: skip

    async def _create(self, key: QueueKey, data: dict[str, Any]) -> bool:
        """Create it in a pool of its flavor; False when it exists.

        Raises Invalid, QuotaExceeded, Unavailable.
        """
        pool = await self._pools.place(key.project, data.get("_flavor"))
        document = Document(ids.new_generation(self._rng), data, pool)
        version = ids.first_version(document.generation)
        record = Record(*key, msgspec.json.encode(document), version)

        async def insert() -> bool:
            if pool is not None:
                await self._placements.note(pool, ref_of(record, document))
            return await self._records.insert(record)

        if not await self._quotas.within(key.project, Amounts(queues=1), insert):
            return False
        await self._admit(await self._remember(key, record))
        return True

    async def _placed_anew(self, key: QueueKey, record: Record, document: Document) -> Record:
        """Place a queue whose pool was deleted just when it was created there.

        A pool of that name may be added again, and the queue be used there. So it is first marked
        as moving, from when on nobody opens it, and then the pool is looked for once more.
        """
        pool = await self._pools.place(key.project, document.metadata.get("_flavor"))
        read = await self._records.get(*key)
        moving = Moving(pool, read.read_ms if read else 0)
        marked = changed(record, msgspec.structs.replace(document, moving=moving))
        if not await self._records.update(marked):
            raise Unavailable("The queue is being changed.")
        if document.pool is not None and await self._pools.known(document.pool):
            await self._records.update(changed(marked, document))
            raise Unavailable("The queue is being changed.")
        new = changed(marked, msgspec.structs.replace(document, pool=pool))
        if pool is not None:
            await self._placements.note(pool, ref_of(new, document))
        if not await self._records.update(new):
            raise Unavailable("The queue is being changed.")
        return new

    async def ensure(self, key: QueueKey) -> None:
        """Create it if it is not there."""
        if key not in self._cache:
            await self._read(key, create=True)

    async def touch(self, key: QueueKey) -> None:
        """Make a new version of it, so that every node reads anew whether it has subscriptions."""
        async with self._patching:
            await self._change(key, lambda document: document)

    async def _change(
        self, key: QueueKey, change: Callable[[Document], Document]
    ) -> Document | None:
        """Replace what is stored of it, and let every node know; None when there is none."""
        for _ in range(ATTEMPTS):
            record = await self._arrived(key)
            if record is None:
                return None
            document = change(document_of(record))
            if await self._records.update(new := changed(record, document)):
                self._cache.pop(key, None)
                queue = await self._remember(key, new)
                # Where it is now, as it is there that other nodes come to know of the change.
                store = (await self._pools.present(queue.pool)).store
                await store.messages.admit(queue.ref)
                return document
        raise Unavailable(f"The {key.kind} is being changed.")

    async def metadata(self, key: QueueKey) -> dict[str, Any]:
        """What is stored of it; {} when there is none."""
        # Not from memory: nobody would say that another node has changed it.
        record = await self._get(key)
        return document_of(record).metadata if record else {}

    def check(self, data: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> None:
        """Raise Invalid unless this may be a queue's metadata. What was so ``before`` may be so."""
        rules.metadata(data, self._settings)
        if (
            data.get(rules.ENCRYPT)
            and self._codec.refusal
            and not (before or {}).get(rules.ENCRYPT)
        ):
            raise Invalid(f"{rules.ENCRYPT}: {self._codec.refusal}.")

    def forget(self, key: QueueKey) -> None:
        """Read it anew when it is used next."""
        self._cache.pop(key, None)

    # Operations

    @operation("*:create")
    async def create(self, ctx: Context, key: QueueKey, data: dict[str, Any]) -> bool:
        """Create it; False, and no effect, when it exists. Raises Invalid, Forbidden (grants)."""
        self.check(data)
        grants.give(ctx, {}, data)
        return not await self._get(key) and await self._create(key, data)

    @operation("*:get")
    async def stored(self, ctx: Context, key: QueueKey) -> dict[str, Any]:
        """The metadata without the defaults; {} for one that does not exist."""
        return await self.metadata(key)

    @operation("*:get")
    async def get(self, ctx: Context, key: QueueKey) -> dict[str, Any]:
        """The metadata, with the defaults; those alone for one that does not exist."""
        return self.shown(key.kind, await self.metadata(key))

    def shown(self, kind: Kind, data: Mapping[str, Any]) -> dict[str, Any]:
        """Metadata with each default whose key is missing or holds nothing."""
        return {**data, **{k: v for k, v in self._defaults[kind].items() if not data.get(k)}}

    @operation("*:update")
    async def update(
        self, ctx: Context, key: QueueKey, changes: Sequence[Change]
    ) -> dict[str, Any]:
        """Apply a patch, all or nothing; return the new metadata with the defaults.

        With another ``_flavor`` it is brought to a pool of that, with its messages. Raises
        NotFound, Conflict (a key that is not there), InvalidBody, Invalid (no such flavor),
        Forbidden (grants).
        """
        async with self._patching:  # one after the other here; other nodes are told by versions
            return await self._update(ctx, key, changes)

    async def _update(
        self, ctx: Context, key: QueueKey, changes: Sequence[Change]
    ) -> dict[str, Any]:
        def patched(document: Document) -> Document:
            data = self._patched(key.kind, document.metadata, changes)
            grants.give(ctx, document.metadata, data)
            return msgspec.structs.replace(document, metadata=data)

        if any(change.name == "_flavor" for change in changes):
            await self._reflavor(key, patched)
        document = await self._change(key, patched)
        if document is None:
            raise NotFound(f"There is no {key.kind} {key.name}.")
        return self.shown(key.kind, document.metadata)

    async def _reflavor(self, key: QueueKey, patched: Callable[[Document], Document]) -> None:
        """Bring it to a pool of the flavor that it is to have, if that is another."""
        record = await self._get(key)
        if record is None:
            return
        document = document_of(record)
        flavor = patched(document).metadata.get("_flavor")
        if flavor == document.metadata.get("_flavor"):
            return
        pool = await self._pools.place(key.project, flavor, document.pool)
        if pool != document.pool:
            await self.move(key, pool)

    def _patched(
        self, kind: Kind, data: Mapping[str, Any], changes: Sequence[Change]
    ) -> dict[str, Any]:
        result, defaults = dict(data), self._defaults[kind]
        for op, name, value in changes:
            if op != "add" and name not in result and name not in defaults:
                raise Conflict(f"The metadata has no key {name!r} to {op}.")
            if op == "remove":
                result.pop(name, None)
            else:
                result[name] = value
        limit = self._settings.max_queue_metadata
        try:
            self.check(result, data)
        except Invalid as error:
            raise InvalidBody(error.detail) from None
        if len(msgspec.json.encode(result)) > limit:
            raise InvalidBody(f"The metadata would exceed max_queue_metadata, {limit} bytes.")
        return result

    @operation("*:delete")
    async def delete(self, ctx: Context, key: QueueKey) -> None:
        """Delete it with its messages and claims; nothing happens when it does not exist."""
        async with self._patching:
            for _ in range(ATTEMPTS):
                record = await self._arrived(key)
                if record is None:
                    break
                document = document_of(record)
                await _store_of(self._pools, document)  # is there, before there is no way back
                deleted = changed(record, msgspec.structs.replace(document, deleted=True))
                if await self._records.update(deleted):
                    await end(self._pools, self._records, deleted)
                    break
            else:
                raise Unavailable(f"The {key.kind} is being changed.")
            self._cache.pop(key, None)  # last: somebody may have read it before

    @operation("*:get_all")
    async def page(
        self,
        ctx: Context,
        kind: Kind,
        after: str,
        limit: int,
        *,
        name_part: str = "",
        where: Mapping[str, int | str] | None = None,
    ) -> list[tuple[str, dict[str, Any]]]:
        """Names and metadata of up to ``limit`` of the project whose name is greater than
        ``after``: those that contain ``name_part`` and have these values in their metadata.
        """

        def wanted(record: Record) -> bool:
            if name_part not in record.key:
                return False
            if not where:
                return True
            data = document_of(record).metadata
            return all(type(data.get(k)) is type(v) and data.get(k) == v for k, v in where.items())

        def there(record: Record) -> bool:
            return wanted(record) and not document_of(record).deleted

        what = kind, ctx.project, after, limit
        records = await self._records.page(*what, wanted if name_part or where else None)
        found = [(record, document_of(record)) for record in records]
        if deleted := [record for record, document in found if document.deleted]:
            for record in deleted:
                with suppress(NuskuError):  # of a pool that is away: it need not be listed
                    await end(self._pools, self._records, record)
            found = [(r, document_of(r)) for r in await self._records.page(*what, there)]
        return [(record.key, document.metadata) for record, document in found]

    @operation("*:get_all")
    async def count(self, ctx: Context, kind: Kind) -> int:
        """How many the project has."""
        return await self._records.count(kind, ctx.project)

    @operation("*:stats")
    async def stats(self, ctx: Context, key: QueueKey) -> tuple[View, Counts] | None:
        """The numbers of its messages; None when it does not exist."""

        async def count(queue: Queue) -> tuple[View, Counts]:
            counts = await queue.store.messages.count(queue.ref)
            return View.of(queue.ref, (), counts.now_ms), counts

        return await self.use(key, count)

    async def clear(self, key: QueueKey) -> None:
        """Remove all messages, claimed and delayed ones too; the metadata stays."""
        await self.use(key, lambda queue: queue.store.messages.clear(queue.ref))
