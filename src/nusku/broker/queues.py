"""Queues and topics: a name, free-form metadata, and the options among it."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from nusku.broker import ids, rules
from nusku.broker.operation import operation
from nusku.broker.view import View
from nusku.config import Settings
from nusku.errors import Conflict, Invalid, InvalidBody, NotFound, Unavailable
from nusku.model import Context, Counts, Kind, QueueKey, QueueRef, Record
from nusku.storage import MessageStore, RecordStore, Stale

T = TypeVar("T")

SUBSCRIPTION = "subscription"  # the kind of record that says who is told
CACHED_MAX = 10_000
ATTEMPTS = 10  # times that a change by somebody else in the meantime is put up with


class _Document(msgspec.Struct, frozen=True):
    """What is stored of a queue."""

    generation: str
    metadata: dict[str, Any]


class Queue(msgspec.Struct, frozen=True):
    """A queue as read, and its options (None: not set)."""

    ref: QueueRef
    metadata: dict[str, Any]
    post_bytes_max: int
    message_ttl_s: int
    message_delay_s: int
    dead_letter_queue: str | None = None
    dead_letter_ttl_s: int | None = None
    max_claim_count: int | None = None
    retry_policy: dict[str, Any] | None = None
    has_subscriptions: bool = False


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
        messages: MessageStore,
        records: RecordStore,
        settings: Settings,
        rng: random.Random,
    ) -> None:
        self._messages = messages
        self._records = records
        self._settings = settings
        self._rng = rng
        # One process owns the embedded store, so what was read stays true until changed here.
        self._cache: dict[QueueKey, Queue] = {}
        self._patching = asyncio.Lock()
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
                "_enable_encrypt_messages": False,
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
            try:
                return await action(queue)
            except Stale:
                self._cache.pop(key, None)
                before, queue = queue, await self._read(key, create=create)
                if queue is not None and queue.ref == before.ref:
                    # Created or patched just now, or by a server that died half-way.
                    await self._messages.admit(queue.ref)
        raise Unavailable("The queue is being changed.")

    async def _read(self, key: QueueKey, *, create: bool = False) -> Queue | None:
        record = await self._records.get(*key)
        if record is None:
            if not create:
                return None
            await self._create(key, {})
            record = await self._records.get(*key)
            if record is None:
                raise Unavailable("The queue is being deleted.")
        return await self._remember(key, record)

    async def _remember(self, key: QueueKey, record: Record) -> Queue:
        # Read after the queue: a subscription that comes later makes a new version of it.
        subscriptions = await self._records.page(
            SUBSCRIPTION, key.project, "", 1, parent=subscriptions_of(key)
        )
        queue = self._queue(key, record, has_subscriptions=bool(subscriptions))
        if len(self._cache) >= CACHED_MAX:
            del self._cache[next(iter(self._cache))]
        self._cache[key] = queue
        return queue

    def _queue(self, key: QueueKey, record: Record, *, has_subscriptions: bool) -> Queue:
        document = msgspec.json.decode(record.doc, type=_Document)
        data, settings = document.metadata, self._settings
        target, count = data.get("_dead_letter_queue"), data.get("_max_claim_count")
        active = key.kind == "queue" and target is not None and count is not None
        return Queue(
            QueueRef(key, document.generation, record.version),
            data,
            min(data.get("_max_messages_post_size") or settings.max_messages_post_size,
                settings.max_messages_post_size),
            data.get("_default_message_ttl") or settings.default_message_ttl,
            data.get("_default_message_delay") or settings.default_message_delay,
            target if active else None,
            data.get("_dead_letter_queue_messages_ttl"),
            count if active else None,
            data.get("_retry_policy"),
            has_subscriptions,
        )  # fmt: skip

    async def _create(self, key: QueueKey, data: dict[str, Any]) -> bool:
        document = _Document(ids.new_generation(self._rng), data)
        record = Record(*key, msgspec.json.encode(document))
        if not await self._records.insert(record):
            return False
        await self._messages.admit(QueueRef(key, document.generation, record.version))
        return True

    async def ensure(self, key: QueueKey) -> None:
        """Create it if it is not there."""
        if key not in self._cache:
            await self._read(key, create=True)

    async def touch(self, key: QueueKey) -> None:
        """Make a new version of it, so that every node reads anew whether it has subscriptions."""
        async with self._patching:
            for _ in range(ATTEMPTS):
                record = await self._records.get(*key)
                if record is None:
                    return  # whoever creates it will read
                new = msgspec.structs.replace(record, version=record.version + 1)
                if await self._records.update(new):
                    self._cache.pop(key, None)
                    document = msgspec.json.decode(new.doc, type=_Document)
                    await self._messages.admit(QueueRef(key, document.generation, new.version))
                    await self._remember(key, new)
                    return
        raise Unavailable(f"The {key.kind} is being changed.")

    def forget(self, key: QueueKey) -> None:
        """Read it anew when it is used next."""
        self._cache.pop(key, None)

    # Operations

    @operation("*:create")
    async def create(self, ctx: Context, key: QueueKey, data: dict[str, Any]) -> bool:
        """Create it; False, and no effect, when it exists. Raises Invalid."""
        rules.metadata(data, self._settings)
        return await self._create(key, data)

    @operation("*:get")
    async def get(self, ctx: Context, key: QueueKey) -> dict[str, Any]:
        """The metadata, with the defaults; those alone for one that does not exist."""
        queue = self._cache.get(key) or await self._read(key)
        return self.shown(key.kind, queue.metadata if queue else {})

    def shown(self, kind: Kind, data: Mapping[str, Any]) -> dict[str, Any]:
        """Metadata with each default whose key is missing or holds nothing."""
        return {**data, **{k: v for k, v in self._defaults[kind].items() if not data.get(k)}}

    @operation("*:update")
    async def update(
        self, ctx: Context, key: QueueKey, changes: Sequence[Change]
    ) -> dict[str, Any]:
        """Apply a patch, all or nothing; return the new metadata with the defaults.

        Raises NotFound, Conflict (a key that is not there), InvalidBody.
        """
        async with self._patching:  # one after the other here; other nodes are told by versions
            return await self._update(key, changes)

    async def _update(self, key: QueueKey, changes: Sequence[Change]) -> dict[str, Any]:
        for _ in range(ATTEMPTS):
            record = await self._records.get(*key)
            if record is None:
                raise NotFound(f"There is no {key.kind} {key.name}.")
            document = msgspec.json.decode(record.doc, type=_Document)
            data = self._patched(key.kind, document.metadata, changes)
            encoded = msgspec.json.encode(msgspec.structs.replace(document, metadata=data))
            if len(encoded) > self._settings.max_queue_metadata + 64:
                raise InvalidBody(
                    "The metadata would exceed"
                    f" max_queue_metadata, {self._settings.max_queue_metadata} bytes."
                )
            new = msgspec.structs.replace(record, doc=encoded, version=record.version + 1)
            if await self._records.update(new):
                await self._messages.admit(QueueRef(key, document.generation, new.version))
                await self._remember(key, new)
                return self.shown(key.kind, data)
        raise Unavailable(f"The {key.kind} is being changed.")

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
        try:
            rules.metadata(result, self._settings)
        except Invalid as error:
            raise InvalidBody(error.detail) from None
        return result

    @operation("*:delete")
    async def delete(self, ctx: Context, key: QueueKey) -> None:
        """Delete it with its messages and claims; nothing happens when it does not exist."""
        async with self._patching:  # lest what was dropped be admitted again
            await self._records.delete(*key)
            await self._messages.drop(key)
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
            data = msgspec.json.decode(record.doc, type=_Document).metadata
            return all(type(data.get(k)) is type(v) and data.get(k) == v for k, v in where.items())

        records = await self._records.page(
            kind, ctx.project, after, limit, wanted if name_part or where else None
        )
        return [(r.key, msgspec.json.decode(r.doc, type=_Document).metadata) for r in records]

    @operation("*:get_all")
    async def count(self, ctx: Context, kind: Kind) -> int:
        """How many the project has."""
        return await self._records.count(kind, ctx.project)

    @operation("*:stats")
    async def stats(self, ctx: Context, key: QueueKey) -> tuple[View, Counts] | None:
        """The numbers of its messages; None when it does not exist."""

        async def count(queue: Queue) -> tuple[View, Counts]:
            counts = await self._messages.count(queue.ref)
            return View.of(queue.ref, (), counts.now_ms), counts

        return await self.use(key, count)

    async def clear(self, key: QueueKey) -> None:
        """Remove all messages, claimed and delayed ones too; the metadata stays."""
        await self.use(key, lambda queue: self._messages.clear(queue.ref))
