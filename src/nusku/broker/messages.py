"""Messages: post, page, get, delete, pop."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import msgspec
import structlog

from nusku.broker import ids, rules
from nusku.broker.amounts import Amounts
from nusku.broker.codec import UNREADABLE_PAUSE_S, Attributes, Codec, Origin, Sorted, checksum
from nusku.broker.deliveries import Parcel, Recipient
from nusku.broker.notices import Notices, Place, notice
from nusku.broker.operation import operation
from nusku.broker.queues import Queue, Queues
from nusku.broker.quotas import Quotas
from nusku.broker.view import View
from nusku.broker.waiting import Waiting
from nusku.config import Settings
from nusku.errors import (
    ClaimMismatch,
    Invalid,
    MessageClaimed,
    NotFound,
    NuskuError,
    Unavailable,
)
from nusku.metrics import Metrics
from nusku.model import Context, Draft, Found, Message, QueueKey, QueueRef
from nusku.storage import Removal, Removed

log = structlog.get_logger("nusku.messages")

POP_S = 60  # that what is being popped is held until it is decrypted and removed
CAREFUL_MAX = 10_000  # queues that are known to hold what they should not


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
        codec: Codec,
        quotas: Quotas,
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        self._queues = queues
        self._waiting = waiting
        self._notices = notices
        self._codec = codec
        self._quotas = quotas
        self._settings = settings
        self._counts = metrics.messages
        # Queues that do not encrypt, of which something was popped that could not be decrypted.
        self._careful: set[QueueKey] = set()

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
            if queue.encrypted:
                self._codec.check(Invalid)  # as for who wants such a queue (contract, choice 8)
            drafts = self._drafts(ctx, queue, new)
            if not drafts:
                raise Invalid("A post holds at least one message.")
            posts = [(queue.ref, drafts)]
            if queue.has_subscriptions:
                told = [
                    (d.ttl_s, d.delay_s or n.delay_s, n.body)
                    for d, n in zip(drafts, new, strict=True)
                ]
                encrypt = self._codec.encrypt if queue.encrypted else None
                posts.append(notice(key, queue.retry_policy, told, encrypt))
            positions = (await self._add(queue, posts))[0]
            if queue.has_subscriptions:
                self._notices.told(Place(queue.pool, posts[1][0].key))
            self._counts["posted"] += len(drafts)
            self._call(key, drafts)
            queue.store.tell(key)
            return [ids.message_id(queue.ref.generation, p) for p in positions]

        posted = await self._queues.use(key, add, create=True)
        assert posted is not None  # noqa: S101 - a missing queue was created
        return posted

    def _add(
        self, queue: Queue, posts: Sequence[tuple[QueueRef, Sequence[Draft]]]
    ) -> Awaitable[list[list[int]]]:
        """Append to the queue, and to what is written in one step with it, if its project may have
        so much.
        """
        add, project = partial(queue.store.messages.add, posts), queue.ref.key.project
        if not self._quotas.limited(project):
            return add()
        drafts = posts[0][1]
        size = sum(len(draft.body) for draft in drafts)
        return self._quotas.within(project, Amounts(messages=len(drafts), bytes=size), add)

    def _drafts(self, ctx: Context, queue: Queue, new: Sequence[NewMessage]) -> list[Draft]:
        limits, client, drafts = self._settings, ctx.client, []
        shortest, longest = limits.min_message_ttl, limits.max_message_ttl
        with_checksum, attributes = limits.enable_checksum, None
        for message in new:
            ttl_s, delay_s, body = message.ttl_s, message.delay_s, message.body
            if ttl_s is None:
                ttl_s = queue.message_ttl_s
            elif not shortest <= ttl_s <= longest:
                rules.in_range("ttl", ttl_s, shortest, longest, " seconds")
            if delay_s is None:
                delay_s = queue.message_delay_s
            elif delay_s:
                rules.in_range("delay", delay_s, 0, limits.max_message_delay, " seconds")
            if with_checksum or queue.encrypted:
                beside = Attributes(checksum(body) if with_checksum else None)
                body, attributes = self._codec.pack(
                    queue.ref.key, body, beside, encrypted=queue.encrypted
                )
            drafts.append(Draft(body, ttl_s, delay_s, client, None, attributes))
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
        """Copy what a subscriber could not be told to another queue of its project, once.

        What came from an encrypted queue stays encrypted. Raises QuotaExceeded.
        """
        told = msgspec.json.decode(parcel.body, type=_Told)
        target = to.key._replace(kind="queue", name=name)
        origin = Origin(to.key.name, parcel.id, "delivery_given_up")
        sum_ = checksum(told.body) if self._settings.enable_checksum else None
        beside, dedup = Attributes(sum_, origin), f"given up: {to.id} {parcel.id}"

        async def add(queue: Queue) -> None:
            body, attributes = self._codec.pack(
                target, bytes(told.body), beside, encrypted=parcel.encrypted or queue.encrypted
            )
            draft = Draft(body, told.ttl, 0, "", dedup, attributes)
            await self._add(queue, [(queue.ref, [draft])])
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
            return self._codec.view(queue.ref, found.messages, found.now_ms), found

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

    # For those who follow a queue

    async def behind(
        self, key: QueueKey, point: ids.Point, limit: int
    ) -> tuple[View | None, ids.Point]:
        """Up to ``limit`` messages behind the point, whatever their state, and how far they lead.

        All, if the queue was made anew since; None when it does not exist. What cannot be read is
        passed over.
        """

        async def look(queue: Queue) -> tuple[View, ids.Point]:
            generation = queue.ref.generation
            position = point.position if point.generation == generation else 0
            found = await queue.store.messages.page(
                queue.ref, position, limit, held=True, delayed=True
            )
            if found.messages:
                position = found.messages[-1].position
            readable = self._codec.sort(queue.ref, found.messages).readable
            return View.of(queue.ref, readable, found.now_ms), ids.Point(generation, position)

        return await self._queues.use(key, look) or (None, ids.Point("", 0))

    async def end(self, key: QueueKey) -> ids.Point:
        """Behind all that there is."""

        async def look(queue: Queue) -> ids.Point:
            newest = (await queue.store.messages.count(queue.ref)).newest
            return ids.Point(queue.ref.generation, newest.position if newest else 0)

        return await self._queues.use(key, look) or ids.Point("", 0)

    @operation("messages:get_all")
    async def get_several(self, ctx: Context, key: QueueKey, ids_: Sequence[str]) -> View | None:
        """Those of these that exist, in the order asked for; None when the queue does not."""

        async def get(queue: Queue) -> View:
            positions = [ids.position_of(queue.ref.generation, id_) for id_ in ids_]
            found = await queue.store.messages.get(queue.ref, positions)
            return self._codec.view(queue.ref, found.messages, found.now_ms)

        return await self._queues.use(key, get)

    @operation("messages:get")
    async def get(self, ctx: Context, key: QueueKey, id_: str) -> View:
        """One message. Raises NotFound."""

        async def get(queue: Queue) -> View:
            position = ids.position_of(queue.ref.generation, id_)
            found = await queue.store.messages.get(queue.ref, (position,))
            return self._codec.view(queue.ref, found.messages, found.now_ms)

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

        async def pop(queue: Queue) -> tuple[View, Sorted]:
            if queue.encrypted:
                self._codec.check()  # what could not be shown had better stay where it is
            if queue.encrypted or key in self._careful:
                return await self._pop_readable(queue, limit)
            found = await queue.store.messages.pop(queue.ref, limit)
            sorted_ = self._codec.sort(queue.ref, found.messages)
            return View.of(queue.ref, sorted_.readable, found.now_ms), sorted_

        popped = await self._queues.use(key, pop)
        if popped is None:
            return None
        view, (readable, unreadable, why) = popped
        self._counts["popped"] += len(readable)
        if unreadable:
            await asyncio.shield(self._put_back(key, unreadable, view.now_ms))
        if why is not None and not readable:
            raise why
        return view

    async def _pop_readable(self, queue: Queue, limit: int) -> tuple[View, Sorted]:
        """Remove nothing before it is decrypted: held first, by a claim that does not count."""
        began_s = asyncio.get_running_loop().time()
        held = await queue.store.messages.claim(queue.ref, limit, POP_S, 0)
        if held.claim is None:
            return View.of(queue.ref, (), held.now_ms), Sorted((), (), None)
        readable, unreadable, why = self._codec.sort(queue.ref, held.messages)
        if unreadable:
            positions = [message.position for message in unreadable]
            await queue.store.messages.release(queue.ref, held.claim, UNREADABLE_PAUSE_S, positions)
        if readable:
            positions = [message.position for message in readable]
            removed = await queue.store.messages.remove(
                queue.ref, positions, Removal.HELD, (held.claim,)
            )
            self._check_held(began_s)
            done = zip(readable, removed, strict=True)
            readable = [message for message, became in done if became is Removed.GONE]
        return View.of(queue.ref, readable, held.now_ms), Sorted(readable, (), why)

    @staticmethod
    def _check_held(began_s: float) -> None:
        """Raise Unavailable if what was held since then may have become free meanwhile: what is gone
        now may have been popped by somebody else.
        """
        if asyncio.get_running_loop().time() - began_s >= POP_S:
            raise Unavailable("The messages were held for too long.")

    async def _put_back(self, key: QueueKey, messages: Sequence[Message], now_ms: int) -> None:
        """Messages that were popped and cannot be shown, at the end of their queue. It encrypts
        nothing itself, so this is about dead letters of others, and what came before it was patched.

        Where that fails the readable ones are answered all the same, being gone too.
        """
        drafts = [
            Draft(
                m.body,
                -(-max(m.expires_ms - now_ms, 1) // 1000),  # rounded up
                UNREADABLE_PAUSE_S,
                m.client,
                None,
                m.attributes,
                m.posted_ms,
                m.count,
            )
            for m in messages
        ]

        async def add(queue: Queue) -> None:
            await queue.store.messages.add([(queue.ref, drafts)])

        if len(self._careful) >= CAREFUL_MAX:
            self._careful.clear()
        self._careful.add(key)
        try:
            await self._queues.use(key, add)
        except NuskuError as error:
            log.error(
                "messages that cannot be decrypted are lost",
                queue=key.name,
                project=key.project,
                messages=len(messages),
                reason=str(error),
            )
