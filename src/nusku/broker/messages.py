"""Messages: post, page, get, delete, pop."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from nusku.broker import codec, ids, rules
from nusku.broker.deliveries import Parcel, Recipient
from nusku.broker.notices import Notices, Place, notice
from nusku.broker.operation import operation
from nusku.broker.queues import Queue, Queues
from nusku.broker.view import View
from nusku.broker.waiting import Waiting
from nusku.config import Settings
from nusku.errors import ClaimMismatch, Invalid, MessageClaimed, NotFound
from nusku.metrics import Metrics
from nusku.model import Context, Draft, Found, QueueKey
from nusku.storage import Removal, Removed


class NewMessage(msgspec.Struct, frozen=True, gc=False):
    """A message as its poster wrote it: ``body`` is valid JSON; None means the queue's default."""

    body: bytes
    ttl_s: int | None = None
    delay_s: int | None = None


class _Told(msgspec.Struct):
    """What of a notification (contract notifications.md section 2) is the message's own."""

    ttl: int
    body: msgspec.Raw


class Messages:
    """What can be done with the messages of queues and topics."""

    def __init__(
        self,
        queues: Queues,
        waiting: Waiting,
        notices: Notices,
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        self._queues = queues
        self._waiting = waiting
        self._notices = notices
        self._settings = settings
        self._counts = metrics.messages

    @operation("messages:create")
    async def post(
        self,
        ctx: Context,
        key: QueueKey,
        read: Callable[[int], Awaitable[Sequence[NewMessage]]],
    ) -> list[str]:
        """Append messages, all or nothing; return their ids. Creates a missing queue.

        ``read`` is given the number of bytes that the queue takes at once and returns the
        messages, since a transport must not read more than that.
        """
        new: Sequence[NewMessage] | None = None

        async def add(queue: Queue) -> list[str]:
            nonlocal new
            if new is None:
                new = await read(queue.post_bytes_max)
            drafts = self._drafts(ctx, queue, new)
            if not drafts:
                raise Invalid("A post holds at least one message.")
            posts = [(queue.ref, drafts)]
            if queue.has_subscriptions:
                told = [
                    (d.ttl_s, d.delay_s or n.delay_s, d.body)
                    for d, n in zip(drafts, new, strict=True)
                ]
                posts.append(notice(key, queue.retry_policy, told))
            positions = (await queue.store.messages.add(posts))[0]
            if queue.has_subscriptions:
                self._notices.told(Place(queue.pool, posts[1][0].key))
            self._counts["posted"] += len(drafts)
            self._call(key, drafts)
            queue.store.tell(key)
            return [ids.message_id(queue.ref.generation, p) for p in positions]

        posted = await self._queues.use(key, add, create=True)
        assert posted is not None  # noqa: S101 - a missing queue was created
        return posted

    def _drafts(self, ctx: Context, queue: Queue, new: Sequence[NewMessage]) -> list[Draft]:
        limits, client, drafts = self._settings, ctx.client, []
        shortest, longest = limits.min_message_ttl, limits.max_message_ttl
        with_checksum, attributes = limits.enable_checksum, None
        for message in new:
            ttl_s, delay_s = message.ttl_s, message.delay_s
            if ttl_s is None:
                ttl_s = queue.message_ttl_s
            elif not shortest <= ttl_s <= longest:
                rules.in_range("ttl", ttl_s, shortest, longest, " seconds")
            if delay_s is None:
                delay_s = queue.message_delay_s
            elif delay_s:
                rules.in_range("delay", delay_s, 0, limits.max_message_delay, " seconds")
            if with_checksum:
                attributes = codec.pack(codec.Attributes(codec.checksum(message.body)))
            drafts.append(Draft(message.body, ttl_s, delay_s, client, None, attributes))
        return drafts

    def _call(self, key: QueueKey, drafts: Sequence[Draft]) -> None:
        free = 0
        for draft in drafts:
            if draft.delay_s:
                self._waiting.call_in(key, draft.delay_s + 0.1)
            else:
                free += 1
        self._waiting.call(key, free)

    async def dead_letter(self, to: Recipient, parcel: Parcel, name: str) -> None:
        """Copy what a subscriber could not be told to another queue of its project, once."""
        told = msgspec.json.decode(parcel.body, type=_Told)
        target = to.key._replace(kind="queue", name=name)
        origin = codec.Origin(to.key.name, parcel.id, "delivery_given_up")
        checksum = codec.checksum(told.body) if self._settings.enable_checksum else None
        draft = Draft(
            bytes(told.body), told.ttl, 0, "", f"given up: {to.id} {parcel.id}",
            codec.pack(codec.Attributes(checksum, origin)),
        )  # fmt: skip

        async def add(queue: Queue) -> None:
            await queue.store.messages.add([(queue.ref, [draft])])
            queue.store.tell(target)

        await self._queues.use(target, add, create=True)
        self._waiting.call(target, 1)

    @operation("messages:get_all")
    async def page(
        self,
        ctx: Context,
        key: QueueKey,
        marker: str,
        limit: int,
        *,
        echo: bool = False,
        held: bool = False,
        delayed: bool = False,
        wait_s: int = 0,
    ) -> View | None:
        """Up to ``limit`` messages behind the marker; None when the queue does not exist.

        Waits up to ``wait_s`` for there to be one. A marker that is none gives an empty page.
        """

        async def look(queue: Queue) -> tuple[View, Found]:
            after = ids.position_of(queue.ref.generation, marker) if marker else 0
            if marker and not after:
                found = Found((), 0)
            else:
                found = await queue.store.messages.page(
                    queue.ref,
                    after,
                    limit,
                    held=held,
                    delayed=delayed,
                    without_client=None if echo else ctx.client,
                )
            return View.of(queue.ref, found.messages, found.now_ms), found

        if not wait_s:
            looked = await self._queues.use(key, look)
            return looked[0] if looked else None
        until = asyncio.get_running_loop().time() + wait_s
        with self._waiting.room(key) as room:
            while True:
                calls = room.calls
                looked = await self._queues.use(key, look)
                over = self._waiting.closed or asyncio.get_running_loop().time() >= until
                if over or (looked and looked[0].messages):
                    return looked[0] if looked else None
                if looked and looked[1].due_ms is not None:
                    room.call_in((looked[1].due_ms - looked[1].now_ms) / 1000)
                await room.wait(until, calls, claiming=False)

    @operation("messages:get_all")
    async def get_several(self, ctx: Context, key: QueueKey, ids_: Sequence[str]) -> View | None:
        """Those of these that exist, in the order asked for; None when the queue does not."""

        async def get(queue: Queue) -> View:
            positions = [ids.position_of(queue.ref.generation, id_) for id_ in ids_]
            found = await queue.store.messages.get(queue.ref, positions)
            return View.of(queue.ref, found.messages, found.now_ms)

        return await self._queues.use(key, get)

    @operation("messages:get")
    async def get(self, ctx: Context, key: QueueKey, id_: str) -> View:
        """One message. Raises NotFound."""

        async def get(queue: Queue) -> View:
            position = ids.position_of(queue.ref.generation, id_)
            found = await queue.store.messages.get(queue.ref, (position,))
            return View.of(queue.ref, found.messages, found.now_ms)

        found = await self._queues.use(key, get)
        if not found or not found.messages:
            raise NotFound(f"There is no message {id_} in {key.kind} {key.name}.")
        return found

    @operation("messages:delete")
    async def delete(self, ctx: Context, key: QueueKey, id_: str, claim: str | None) -> None:
        """Delete a message: an unclaimed one, or with ``claim`` one that this claim holds.

        Nothing happens when it does not exist. Raises MessageClaimed, ClaimMismatch.
        """

        async def remove(queue: Queue) -> Removed:
            position = ids.position_of(queue.ref.generation, id_)
            if claim is None:
                (removed,) = await queue.store.messages.remove(
                    queue.ref, (position,), Removal.UNCLAIMED
                )
            else:
                (removed,) = await queue.store.messages.remove(
                    queue.ref, (position,), Removal.HELD, (claim,)
                )
            return removed

        removed = await self._queues.use(key, remove)
        if removed is Removed.GONE:
            self._counts["deleted"] += 1
        elif removed is Removed.HELD_BY_OTHER:
            raise MessageClaimed(f"Message {id_} is claimed; only its holder can delete it.")
        elif removed is not None:
            raise ClaimMismatch(f"Message {id_} is not held by claim {claim}.")

    @operation("messages:delete_all")
    async def delete_several(
        self, ctx: Context, key: QueueKey, ids_: Sequence[str], claims: Sequence[str]
    ) -> None:
        """Delete messages, claimed ones too; those that don't exist are passed over.

        With ``message_delete_with_claim_id`` claimed ones only by their claims, all or nothing.
        Raises MessageClaimed.
        """
        together = self._settings.message_delete_with_claim_id
        if together and not claims:
            raise Invalid("claim_ids must be given with ids (message_delete_with_claim_id is on).")

        async def remove(queue: Queue) -> list[Removed]:
            positions = [ids.position_of(queue.ref.generation, id_) for id_ in ids_]
            if together:
                return await queue.store.messages.remove(
                    queue.ref, positions, Removal.HELD, claims, together=True
                )
            return await queue.store.messages.remove(queue.ref, positions, Removal.ANY)

        removed = await self._queues.use(key, remove) or ()
        if Removed.HELD_BY_OTHER in removed:
            raise MessageClaimed("A message is claimed by another, or a claim holds none of them.")
        self._counts["deleted"] += len(removed)

    @operation("messages:delete_all")
    async def pop(self, ctx: Context, key: QueueKey, limit: int) -> View | None:
        """Take up to ``limit`` free messages for good; None when the queue does not exist."""

        async def pop(queue: Queue) -> View:
            found = await queue.store.messages.pop(queue.ref, limit)
            return View.of(queue.ref, found.messages, found.now_ms)

        popped = await self._queues.use(key, pop)
        self._counts["popped"] += len(popped.messages) if popped else 0
        return popped
