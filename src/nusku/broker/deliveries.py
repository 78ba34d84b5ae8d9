"""What is still to be told to subscribers: internal queues beside those of the projects.

A post to a queue that has subscribers leaves a *notice* beside it, in the transaction of the post
(``notices.py``). ``fanout.py`` makes *deliveries* of it, each a message on the queue of its
subscription, in the service's own store. Who claims one sends it, and then removes it, releases it
with a delay, or gives it up, which moves it to the subscription's queue of *failed* ones. Claims
see to it that nothing is lost when a sender dies, and that no two send the same thing at once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from nusku.broker.codec import Codec
from nusku.broker.notices import FOREVER_S, internal, make
from nusku.errors import Unavailable, Unreadable
from nusku.keyring import is_encrypted
from nusku.model import Draft, Found, Message, Occupied, QueueKey, QueueRef
from nusku.storage import Hint, MessageStore, Removal, Stale

T = TypeVar("T")

MOVED_AT_ONCE = 500
ENDED = "The subscription ended while it was paused."
ATTEMPTS = 10  # times that a deletion in the meantime is put up with


class Parcel(msgspec.Struct, frozen=True):
    """What is to be told to one subscriber.

    ``id`` is the same at every attempt, and no other delivery has it. ``kind`` is
    ``notification``, ``confirmation`` or ``ping``; ``body`` the JSON document of contract
    notifications.md section 2 or 7.1. ``encrypted``: it comes from an encrypted queue.
    """

    id: str
    kind: str
    body: bytes
    posted_ms: int
    encrypted: bool = False


class Recipient(msgspec.Struct, frozen=True):
    """Who is to be told: ``id`` is the subscription's. Without ``secrets`` nothing is signed."""

    id: str
    key: QueueKey
    subscriber: str
    options: dict[str, Any]
    secrets: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Without secrets, and headers that may be."""
        return f"Recipient({self.id!r})"


class Progress(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is kept beside a delivery. ``policy`` is the queue's, as it was at the post."""

    id: str
    posted_ms: int
    kind: str = "notification"
    policy: dict[str, Any] | None = None
    attempts: int = 0
    reason: str = ""


class Delivery(NamedTuple):
    """A claimed delivery. One that is not ``readable`` has nothing in its parcel."""

    position: int
    parcel: Parcel
    progress: Progress
    readable: bool = True


class Claimed(NamedTuple):
    """What a sender holds. ``due_in_s``: when the next one becomes free by itself, if any does."""

    claim: str | None
    deliveries: list[Delivery]
    due_in_s: float | None


encode_progress = msgspec.json.Encoder().encode
_decode_progress = msgspec.json.Decoder(Progress).decode


def delivery_key(project: str, subscription: str) -> QueueKey:
    """The queue of what a subscription is still to be told."""
    return QueueKey("delivery", project, subscription)


def failed_key(project: str, subscription: str) -> QueueKey:
    """The queue of what a subscription could not be told."""
    return QueueKey("failed", project, subscription)


def scope(key: QueueKey) -> QueueKey:
    """What the body of a delivery is encrypted for: its subscription, whether or not it was given up."""
    return delivery_key(key.project, key.name)


def draft(body: bytes, progress: Progress) -> Draft:
    """A delivery. Its id is its dedup key, so that a fan-out may be done twice."""
    return Draft(body, FOREVER_S, 0, "", progress.id, encode_progress(progress))


def progress_of(message: Message) -> Progress:
    """What is kept beside a delivery."""
    return _decode_progress(message.attributes or b"{}")


class Deliveries:
    """The queues of subscriptions. Their owner is told by ``on_pending`` to look, and by
    ``on_changed`` that a subscription is not what it was, as is, by ``on_live_changed``, whoever
    tells live subscribers.
    """

    def __init__(
        self,
        store: MessageStore,
        codec: Codec,
        tell: Hint = lambda key: None,  # noqa: ARG005
    ) -> None:
        self._store = store
        self._codec = codec
        self._tell = tell
        self.on_pending: Callable[[QueueKey], None] = lambda key: None  # noqa: ARG005
        self.on_changed: Callable[[QueueKey], None] = lambda key: None  # noqa: ARG005
        self.on_live_changed: Callable[[QueueKey], None] = lambda key: None  # noqa: ARG005

    def changed(self, key: QueueKey) -> None:
        """The subscription is not what it was: for this node and all others to know."""
        self.heard(key)
        self._tell(key)

    def heard(self, key: QueueKey) -> None:
        """The same, of those who are to know on this node."""
        self.on_changed(key)
        self.on_live_changed(key)

    async def _use(self, key: QueueKey, action: Callable[[QueueRef], Awaitable[T]]) -> T | None:
        """Do something with an internal queue, if there is one."""
        try:
            return await action(internal(key))
        except Stale:
            return None

    async def add(self, posts: Mapping[QueueKey, Sequence[Draft]]) -> None:
        """Queue deliveries. If it fails some may be queued; their dedup keys let it be repeated."""
        await asyncio.gather(*(self._add(internal(key), drafts) for key, drafts in posts.items()))
        for key in posts:
            self.on_pending(key)

    async def _add(self, ref: QueueRef, drafts: Sequence[Draft]) -> None:
        for _ in range(ATTEMPTS):
            try:
                await self._store.add([(ref, drafts)])
                return
            except Stale:
                await make(self._store, ref)
        raise Unavailable("The subscription is being deleted.")

    async def claim(self, key: QueueKey, limit: int, ttl_s: int) -> Claimed:
        """Hold up to ``limit`` deliveries for ``ttl_s``; no longer, if the sender dies."""
        got = await self._use(key, lambda ref: self._store.claim(ref, limit, ttl_s, 0))
        if got is None:
            return Claimed(None, [], None)
        due = None if got.due_ms is None else max(got.due_ms - got.now_ms, 0) / 1000
        return Claimed(got.claim, [self._delivery(key, m) for m in got.messages], due)

    def _delivery(self, key: QueueKey, message: Message) -> Delivery:
        progress, body, readable = progress_of(message), message.body, True
        encrypted = is_encrypted(body)
        if encrypted:
            try:
                body = self._codec.decrypt(scope(key), message)
            except Unreadable:
                body, readable = b"", False
        parcel = Parcel(progress.id, progress.kind, body, progress.posted_ms, encrypted)
        return Delivery(message.position, parcel, progress, readable)

    async def delivered(self, key: QueueKey, claim: str, positions: Sequence[int]) -> None:
        """These need not be sent again."""
        await self._use(key, lambda ref: self._store.remove(ref, positions, Removal.HELD, (claim,)))

    async def later(
        self, key: QueueKey, claim: str, position: int, delay_s: int, progress: Progress
    ) -> None:
        """Try this one again after ``delay_s``."""
        attributes = {position: encode_progress(progress)}
        await self._use(
            key, lambda ref: self._store.release(ref, claim, delay_s, (position,), attributes)
        )

    async def put_back(self, key: QueueKey, claim: str, positions: Sequence[int]) -> None:
        """These were not tried after all."""
        await self._use(key, lambda ref: self._store.release(ref, claim, 0, positions))

    async def give_up(
        self, key: QueueKey, claim: str, position: int, keep_s: int, progress: Progress
    ) -> None:
        """Keep this one for replay."""
        await self._move(
            key, failed_key(key.project, key.name), (position,), keep_s,
            {position: encode_progress(progress)}, claim,
        )  # fmt: skip

    async def _move(
        self,
        source: QueueKey,
        target: QueueKey,
        positions: Sequence[int],
        ttl_s: int,
        attributes: Mapping[int, bytes],
        claim: str | None = None,
    ) -> int:
        move = (internal(source), positions, internal(target), ttl_s, attributes, claim)
        made = False
        for _ in range(ATTEMPTS):
            try:
                moved = len(await self._store.move(*move))
            except Stale:
                await make(self._store, internal(target))
                made = True
            else:
                if made and not moved:  # the subscription has been deleted, and nobody looks again
                    await self._store.drop(internal(target), empty=True)
                return moved
        raise Unavailable("The subscription is being deleted.")

    async def failed(self, project: str, subscription: str, after: int, limit: int) -> Found:
        """What was given up, oldest first, in clear. Raises Unreadable."""
        key = failed_key(project, subscription)
        found = await self._use(key, lambda ref: self._store.page(ref, after, limit))
        if found is None:
            return Found((), 0)
        clear = [
            msgspec.structs.replace(m, body=self._codec.decrypt(scope(key), m))
            for m in found.messages
        ]
        return found._replace(messages=clear)

    async def replay(self, project: str, subscription: str, positions: Sequence[int] | None) -> int:
        """Try given-up deliveries anew: these, or all there are; say how many."""
        source, target = failed_key(project, subscription), delivery_key(project, subscription)
        attributes: dict[int, bytes] = {}
        done = after = 0
        # What is given up again meanwhile comes behind all that there is now.
        counts = await self._use(source, self._store.count)
        last = counts.newest.position if counts and counts.newest else 0
        try:
            while found := await self._given_up(source, positions, after, last):
                for m in found:
                    anew = msgspec.structs.replace(progress_of(m), attempts=0, reason="")
                    attributes[m.position] = encode_progress(anew)
                after = max(attributes)
                done += await self._move(source, target, list(attributes), FOREVER_S, attributes)
                attributes.clear()
        finally:
            self.on_pending(target)
        return done

    async def abandon(self, project: str, subscription: str, keep_s: int) -> None:
        """Give up what is pending and due."""
        source, target = delivery_key(project, subscription), failed_key(project, subscription)
        while found := await self._use(source, lambda ref: self._store.page(ref, 0, MOVED_AT_ONCE)):
            if not found.messages:
                break
            attributes = {}
            for m in found.messages:
                progress = msgspec.structs.replace(progress_of(m), reason=ENDED)
                attributes[m.position] = encode_progress(progress)
            await self._move(source, target, list(attributes), keep_s, attributes)

    async def _given_up(
        self, key: QueueKey, positions: Sequence[int] | None, after: int, last: int
    ) -> Sequence[Message]:
        """The next that are to be replayed, up to the last."""
        if positions is None:
            found = await self._use(key, lambda ref: self._store.page(ref, after, MOVED_AT_ONCE))
        else:
            next_ = sorted({p for p in positions if p > after})[:MOVED_AT_ONCE]
            found = await self._use(key, lambda ref: self._store.get(ref, next_))
        return [m for m in found.messages if m.position <= last] if found else ()

    async def counts(self, project: str, subscription: str) -> tuple[int, int, int | None]:
        """How many are pending and failed, and the age of the oldest pending one in seconds."""
        pending = await self._use(delivery_key(project, subscription), self._store.count)
        failed = await self._use(failed_key(project, subscription), self._store.count)
        age_s = None
        if pending and pending.oldest:
            age_s = max(pending.now_ms - progress_of(pending.oldest).posted_ms, 0) // 1000
        return pending.total if pending else 0, failed.total if failed else 0, age_s

    async def forget(self, project: str, subscription: str) -> None:
        """The subscription is no more, nor is what it was to be told."""
        await self._store.drop(internal(delivery_key(project, subscription)))
        await self._store.drop(internal(failed_key(project, subscription)))

    async def occupied(self, *, failed: bool = False) -> list[Occupied]:
        """All queues with something pending, or failed, on them."""
        return await self._store.occupied("failed" if failed else "delivery")
