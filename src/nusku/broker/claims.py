"""Claims: create, get, renew, release; and where messages go that were claimed too often."""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import structlog

from nusku.broker import ids, rules
from nusku.broker.codec import UNREADABLE_PAUSE_S, Attributes, Codec, Origin, Packed, attributes
from nusku.broker.operation import operation
from nusku.broker.queues import Queue, Queues
from nusku.broker.view import View
from nusku.broker.waiting import Waiting
from nusku.config import Settings
from nusku.errors import NotFound, NuskuError, QuotaExceeded, Unreadable
from nusku.keyring import is_encrypted
from nusku.metrics import Metrics
from nusku.model import Claimed, Context, Draft, Found, Message, QueueKey, QueueRef
from nusku.storage import Apart, Removal, Stale

log = structlog.get_logger("nusku.claims")

ROUNDS = 10  # times that one request looks on after everything found went to the dead letters
ASIDE_S = 10  # that messages are held while it is seen which of them cannot be decrypted


class ClaimTerms(NamedTuple):
    """What a client asks for; None means the default. Seconds."""

    ttl_s: int | None = None
    grace_s: int | None = None


class ClaimView(NamedTuple):
    """A claim, ready to be shown."""

    id: str
    ttl_s: int
    age_s: int
    view: View


class Claims:
    """What can be done with claims. Topics have none."""

    def __init__(
        self,
        queues: Queues,
        waiting: Waiting,
        codec: Codec,
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        self._queues = queues
        self._waiting = waiting
        self._codec = codec
        self._settings = settings
        self._counts = metrics.messages
        self._releases: set[asyncio.Future[None]] = set()

    def _seconds(self, terms: ClaimTerms) -> tuple[int, int]:
        limits, (ttl_s, grace_s) = self._settings, terms
        if ttl_s is None:
            ttl_s = limits.default_claim_ttl
        else:
            rules.in_range("ttl", ttl_s, limits.min_claim_ttl, limits.max_claim_ttl, " seconds")
        if grace_s is None:
            grace_s = limits.default_claim_grace
        else:
            rules.in_range(
                "grace", grace_s, limits.min_claim_grace, limits.max_claim_grace, " seconds"
            )
        return ttl_s, grace_s

    @operation("claims:create")
    async def create(
        self, ctx: Context, key: QueueKey, terms: ClaimTerms, limit: int, wait_s: int = 0
    ) -> tuple[str, View] | None:
        """Claim up to ``limit`` messages: the claim's id and them; None when there is nothing.

        Waits up to ``wait_s`` for there to be something. When cancelled meanwhile it holds
        nothing.
        """
        ttl_s, grace_s = self._seconds(terms)
        if not wait_s:
            result = await self._attempt(key, limit, ttl_s, grace_s)
            return result and result[0]
        until = asyncio.get_running_loop().time() + wait_s
        with self._waiting.room(key) as room:
            while True:
                calls = room.calls
                attempt = asyncio.ensure_future(self._attempt(key, limit, ttl_s, grace_s))
                try:
                    result = await asyncio.shield(attempt)
                except asyncio.CancelledError:
                    attempt.add_done_callback(lambda a: self._give_back(key, a))
                    raise
                if result and result[0]:
                    if len(result[0][1].messages) == limit:
                        room.call(1)  # there may be more than one claim's worth
                    return result[0]
                if self._waiting.closed or asyncio.get_running_loop().time() >= until:
                    return None
                if result and result[1].due_ms is not None:
                    room.call_in((result[1].due_ms - result[1].now_ms) / 1000)
                await room.wait(until, calls, claiming=True)

    def _attempt(
        self, key: QueueKey, limit: int, ttl_s: int, grace_s: int
    ) -> Awaitable[tuple[tuple[str, View] | None, Claimed] | None]:
        async def claim(queue: Queue) -> tuple[tuple[str, View] | None, Claimed]:
            rounds, got, why = ROUNDS, None, None
            while got is None or (got.spent and not got.claim and rounds):
                rounds -= 1
                if queue.encrypted and queue.max_claim_count is not None:
                    why = await self._look_out(queue, limit) or why
                got = await queue.store.messages.claim(
                    queue.ref, limit, ttl_s, grace_s, queue.max_claim_count
                )
                if got.spent and not await self._dead_letter_if(queue, got):
                    break
            if got.claim is None:
                if why is not None:
                    raise why
                return None, got
            readable, unreadable, why = self._codec.sort(queue.ref, got.messages)
            if why is not None:
                positions = [message.position for message in unreadable]
                await queue.store.messages.release(
                    queue.ref, got.claim, UNREADABLE_PAUSE_S, positions
                )
                if not readable:
                    raise why
            self._counts["claimed"] += len(readable)
            self._waiting.call_in(key, ttl_s + 0.1)
            return (got.claim, View.of(queue.ref, readable, got.now_ms)), got

        return self._queues.use(key, claim)

    async def _look_out(self, queue: Queue, limit: int) -> Unreadable | None:
        """See to it that claims do not count which nobody gets: set aside beforehand what cannot be
        decrypted. Say why it cannot, if there were any that are not spent.
        """
        spent, why = queue.max_claim_count or 0, None
        for _ in range(ROUNDS):
            found = await queue.store.messages.page(queue.ref, 0, limit)
            _, unreadable, reason = self._codec.sort(queue.ref, found.messages)
            if not unreadable:
                break
            if any(message.count < spent for message in unreadable):
                why = reason
            await self._set_aside(queue, limit)
        return why

    async def _set_aside(self, queue: Queue, limit: int) -> None:
        """Keep what cannot be decrypted among the oldest free messages from those behind it, by a
        claim that does not count.
        """
        messages = queue.store.messages
        held = await messages.claim(queue.ref, limit, ASIDE_S, 0)
        if held.claim is None:
            return
        readable, unreadable, _ = self._codec.sort(queue.ref, held.messages)
        if unreadable:
            positions = [message.position for message in unreadable]
            await messages.release(queue.ref, held.claim, UNREADABLE_PAUSE_S, positions)
        if readable:
            await messages.release(queue.ref, held.claim)
            self._call(queue, queue.ref.key, len(readable))

    def _give_back(
        self,
        key: QueueKey,
        attempt: "asyncio.Future[tuple[tuple[str, View] | None, Claimed] | None]",
    ) -> None:
        """The one who asked has gone: let go of what was claimed in its name."""
        if attempt.cancelled() or attempt.exception() or not (result := attempt.result()):
            return
        if result[0]:
            self._releases.add(task := asyncio.ensure_future(self._release(key, result[0][0])))
            task.add_done_callback(self._releases.discard)

    async def _dead_letter_if(self, queue: Queue, got: Claimed) -> bool:
        """Move the spent ones away; say whether that was done. Where something was claimed as well,
        that is the answer, whatever becomes of them: the next claim meets them again. So it is where
        the project may have no queue for them. Where none of them can be decrypted they are set
        aside, so that those behind them are reached.
        """
        try:
            await self._dead_letter(queue, got.spent)
        except (Stale, NuskuError) as error:
            if got.claim is None and isinstance(error, Unreadable):
                await self._set_aside(queue, len(got.spent))
                return True
            if got.claim is None and not isinstance(error, QuotaExceeded):
                raise
            log.warning("dead letters have to wait", queue=queue.ref.key.name, reason=str(error))
            return False
        return True

    async def _dead_letter(self, queue: Queue, spent: Sequence[int]) -> None:
        """Move messages to the queue's dead-letter queue, creating it where needed."""
        key = queue.ref.key
        target_key = key._replace(name=queue.dead_letter_queue or "")
        found = await queue.store.messages.get(queue.ref, spent)
        # What cannot be decrypted could be nowhere else either, so it stays.
        readable, _, why = self._codec.sort(queue.ref, found.messages)
        if why is not None and not readable:
            raise why
        was_encrypted = {m.position for m in found.messages if is_encrypted(m.body)}
        ttl_s = queue.dead_letter_ttl_s

        async def move(target: Queue) -> int:
            packed = {
                m.position: self._packed(
                    queue.ref,
                    m,
                    target_key,
                    encrypted=target.encrypted or m.position in was_encrypted,
                )
                for m in readable
            }
            moved = await self._move(
                queue, found._replace(messages=readable), target, ttl_s, packed
            )
            self._call(target, target_key, moved)
            return moved

        moved = await self._queues.use(target_key, move, create=True) or 0
        self._counts["dead_lettered"] += moved

    def _packed(
        self, source: QueueRef, message: Message, target: QueueKey, *, encrypted: bool
    ) -> Packed:
        """A message of one queue as it is stored in another, with where it came from."""
        id_ = ids.message_id(source.generation, message.position)
        origin = Origin(source.key.name, id_, "max_claim_count")
        beside = Attributes(attributes(message).checksum, origin)
        return self._codec.pack(target, message.body, beside, encrypted=encrypted)

    async def _move(
        self,
        source: Queue,
        found: Found,
        target: Queue,
        ttl_s: int | None,
        packed: Mapping[int, Packed],
    ) -> int:
        """In one step where the two are kept together, and always were. Elsewhere they are copied,
        then removed; the dedup key sees to it that none is copied twice if the removal fails. That
        of a copy which was made while one of the two was elsewhere may have failed, so what was
        moved is copied from then on.
        """
        if source.pool is None and target.pool is None and not (source.moved or target.moved):
            beside, bodies = {}, {}
            for m in found.messages:
                body, kept = packed[m.position]
                if kept is not None:
                    beside[m.position] = kept
                if body is not m.body:
                    bodies[m.position] = body
            with suppress(Apart):
                moved = await source.store.messages.move(
                    source.ref, list(packed), target.ref, ttl_s, beside, bodies=bodies
                )
                return len(moved)
        drafts = [
            Draft(
                packed[m.position].body,
                ttl_s or -(-max(m.expires_ms - found.now_ms, 1) // 1000),  # rounded up
                0,
                m.client,
                f"dead {ids.message_id(source.ref.generation, m.position)}",
                packed[m.position].attributes,
                m.posted_ms,
                m.count,
            )
            for m in found.messages
            if m.claim is None
        ]
        if drafts:
            await target.store.messages.add([(target.ref, drafts)])
            positions = [m.position for m in found.messages if m.claim is None]
            await self._remove(source, positions)
        return len(drafts)

    async def _remove(self, source: Queue, positions: Sequence[int]) -> None:
        """Wherever the queue is by now: positions are the same in every store."""

        async def remove(queue: Queue) -> None:
            if queue.ref.generation == source.ref.generation:
                await queue.store.messages.remove(queue.ref, positions, Removal.UNCLAIMED)

        await self._queues.use(source.ref.key, remove)

    def _call(self, queue: Queue, key: QueueKey, messages: int) -> None:
        """So many messages are free there now: here, and on every other node."""
        self._waiting.call(key, messages)
        queue.store.tell(key)

    @operation("claims:get")
    async def get(self, ctx: Context, key: QueueKey, claim: str) -> ClaimView:
        """A live claim and what it still holds. Raises NotFound."""

        async def get(queue: Queue) -> ClaimView | None:
            found = await queue.store.messages.claimed(queue.ref, claim)
            if found is None:
                return None
            return ClaimView(
                found.id,
                found.ttl_s,
                max(found.now_ms - found.started_ms, 0) // 1000,
                self._codec.view(queue.ref, found.messages, found.now_ms),
            )

        shown = await self._queues.use(key, get)
        if shown is None:
            raise self._unknown(key, claim)
        return shown

    @operation("claims:update")
    async def renew(self, ctx: Context, key: QueueKey, claim: str, terms: ClaimTerms) -> None:
        """Start its time anew, with a new ttl. Raises NotFound."""
        ttl_s, grace_s = self._seconds(terms)
        if not await self._queues.use(
            key, lambda queue: queue.store.messages.renew(queue.ref, claim, ttl_s, grace_s)
        ):
            raise self._unknown(key, claim)
        self._waiting.call_in(key, ttl_s + 0.1)  # perhaps sooner than it was to lapse

    @operation("claims:delete")
    async def release(self, ctx: Context, key: QueueKey, claim: str) -> None:
        """Give back what it holds; nothing happens when it is over."""
        await self._release(key, claim)

    async def _release(self, key: QueueKey, claim: str) -> None:
        async def release(queue: Queue) -> None:
            if await queue.store.messages.release(queue.ref, claim):
                self._call(queue, key, self._settings.max_messages_per_claim_or_pop)

        await self._queues.use(key, release)

    @staticmethod
    def _unknown(key: QueueKey, claim: str) -> NotFound:
        return NotFound(f"There is no live claim {claim} in queue {key.name}.")
