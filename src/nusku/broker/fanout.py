"""From a notice to deliveries: one for each message and subscription."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import structlog

from nusku.broker.codec import Codec
from nusku.broker.deliveries import Deliveries, Progress, delivery_key, draft
from nusku.broker.notices import (
    CLOCKS_APART_MS,
    HOLD_AGAIN_S,
    Notice,
    Notices,
    Place,
    Taken,
    decode_notice,
)
from nusku.broker.queues import Queues
from nusku.broker.subscriptions import Subscriptions, is_live, recipient_since_ms
from nusku.errors import NuskuError, Unreadable
from nusku.model import Draft, Message, QueueKey, Record

log = structlog.get_logger("nusku.subscriptions")

SUBSCRIPTIONS_AT_ONCE = 200
# In one transaction, so that others are not held up.
DELIVERIES_AT_ONCE, BYTES_AT_ONCE = 400, 2_000_000
BYTES_IN_ONE_GO = 262_144  # made ready on the event loop
PLACES_AT_ONCE = 16  # queues whose notices are worked off at a time


class _Post(NamedTuple):
    """A notice, and its messages as they are told."""

    message: Message
    policy: dict[str, Any] | None
    documents: list[bytes]
    encrypted: bool


class _Spread:
    """Notices on their way. ``held_s``: when they were last claimed; ``forlorn``: nobody is told;
    ``unreadable``: the positions of those that cannot be decrypted.
    """

    def __init__(self, taken: Taken) -> None:
        self.taken = taken
        self.held_s = time.monotonic()
        self.forlorn = False
        self.unreadable: set[int] = set()


class Fanout:
    """Spreads what was posted over those who are to be told."""

    def __init__(
        self,
        notices: Notices,
        deliveries: Deliveries,
        subscriptions: Subscriptions,
        queues: Queues,
        codec: Codec,
        *,
        confirmation: bool,
    ) -> None:
        self._notices = notices
        self._deliveries = deliveries
        self._subscriptions = subscriptions
        self._queues = queues
        self._codec = codec
        self._confirmation = confirmation

    async def spread(self, limit: int) -> tuple[int, int]:
        """Work off notices of up to ``limit`` queues, up to ``limit`` of each; return how many, and
        how many deliveries they made.

        A crash half-way leaves the notice, and the deliveries made by then are not made again
        while they are pending.
        """
        places = self._notices.next(min(limit, PLACES_AT_ONCE))
        done = await asyncio.gather(
            *(self._spread(place, limit) for place in places), return_exceptions=True
        )
        notices = made = 0
        for place, result in zip(places, done, strict=True):
            if isinstance(result, NuskuError):  # the others need not wait; a survey finds it again
                log.warning("notices have to wait", pool=place.pool, reason=result.detail)
            elif isinstance(result, BaseException):
                raise result
            else:
                notices, made = notices + result[0], made + result[1]
        return notices, made

    async def _spread(self, place: Place, limit: int) -> tuple[int, int]:
        taken = await self._notices.take(place, limit)
        if taken is None:
            return 0, 0
        spread = _Spread(taken)
        try:
            made = await self._work_off(spread)
        except BaseException:
            # Nobody need wait for the claim's end.
            with suppress(NuskuError):
                await taken.let_go()
            raise
        await taken.done(spread.unreadable)
        if spread.forlorn:
            await taken.drop()
        return len(taken.notices) - len(spread.unreadable), made

    async def _work_off(self, spread: "_Spread") -> int:
        by_queue: defaultdict[QueueKey, list[_Post]] = defaultdict(list)
        size = 0
        for message in spread.taken.notices:
            try:
                body = self._codec.decrypt(spread.taken.place.key, message)
            except Unreadable:  # the others need not wait; its claim ends, and it is tried again
                spread.unreadable.add(message.position)
                continue
            notice, encrypted = decode_notice(body), body is not message.body
            by_queue[notice.key].append(
                _Post(message, notice.policy, _documents(notice), encrypted)
            )
            size += len(message.body)
            if size > BYTES_IN_ONE_GO:
                size = 0
                await asyncio.sleep(0)  # others are to be served, too
        made = 0
        for key, posts in by_queue.items():
            made += await self._tell(spread, key, posts)
        return made

    async def _tell(self, spread: "_Spread", key: QueueKey, posts: list[_Post]) -> int:
        after, made, seen = "", 0, 0
        while page := await self._subscriptions.of_queue(key, after, SUBSCRIPTIONS_AT_ONCE):
            batch: dict[QueueKey, list[Draft]] = {}
            rows = size = 0
            for target, one in self._drafts(spread, page, posts):
                batch.setdefault(target, []).append(one)
                rows += 1
                size += len(one.body)
                if rows >= DELIVERIES_AT_ONCE or size >= BYTES_AT_ONCE:
                    await self._add(spread, batch)
                    made, rows, size, batch = made + rows, 0, 0, {}
            if batch:
                await self._add(spread, batch)
                made += rows
            seen += len(page)
            after = page[-1].key
        if not seen:
            self._queues.forget(key)  # the last one has ended
            spread.forlorn = True
        return made

    async def _add(self, spread: "_Spread", batch: dict[QueueKey, list[Draft]]) -> None:
        await self._deliveries.add(batch)
        if time.monotonic() - spread.held_s > HOLD_AGAIN_S:
            await spread.taken.hold()
            spread.held_s = time.monotonic()

    def _drafts(
        self, spread: "_Spread", records: list[Record], posts: list[_Post]
    ) -> Iterator[tuple[QueueKey, Draft]]:
        # The clock of a pool is not that of the records. Who subscribes at the same moment is told.
        slack_ms = 0 if spread.taken.place.pool is None else CLOCKS_APART_MS
        for record in records:
            if is_live(record):
                continue
            since_ms = recipient_since_ms(record, confirmation=self._confirmation)
            if since_ms is None:
                log.info("subscriber is not confirmed", subscription=record.key)
                continue
            target = delivery_key(record.project, record.key)
            until_ms = record.ends_ms or 0
            for post in posts:
                posted_ms = post.message.posted_ms
                if since_ms - slack_ms <= posted_ms < until_ms + slack_ms:
                    for at, body in enumerate(self._bodies(target, post)):
                        # With the time, since a restored store counts from where it was.
                        id_ = f"{posted_ms:x}-{post.message.position:x}-{at:x}"
                        yield target, draft(body, Progress(id_, posted_ms, policy=post.policy))

    def _bodies(self, target: QueueKey, post: _Post) -> list[bytes]:
        """What is to be told as it is stored; of encrypted queues nothing is, in clear."""
        if not post.encrypted:
            return post.documents
        return [self._codec.encrypt(target, document) for document in post.documents]


def _documents(notice: Notice) -> list[bytes]:
    """Contract notifications.md section 2. Names of queues need no escaping."""
    name = notice.key.name.encode()
    return [
        b'{"ttl": %d, %b"body": %b, "queue_name": "%b", "Message_Type": "Notification"}'
        % (ttl_s, b"" if delay_s is None else b'"delay": %d, ' % delay_s, body, name)
        for ttl_s, delay_s, body in notice.messages
    ]
