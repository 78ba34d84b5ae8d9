"""Notices: word for the fan-out that something was posted which subscribers are to be told.

Each queue that has subscribers has a queue of notices beside it, in the same store, so that a post
and its notice are written in one step. Who posts says here that there is one; what nobody said,
since the one who would have has died, is found by a survey.
"""

from collections.abc import Callable, Container, Sequence
from typing import Any, NamedTuple

import msgspec
import structlog

from nusku.broker.pools import Pools
from nusku.errors import NuskuError
from nusku.model import Draft, Message, QueueKey, QueueRef, home
from nusku.storage import MessageStore, Removal, Stale

log = structlog.get_logger("nusku.subscriptions")

HELD_S = 15  # a node that dies in a fan-out holds its notices for no longer
HOLD_AGAIN_S = HELD_S / 3  # one that lives says so, lest a long fan-out begin anew for ever
CLOCKS_APART_MS = 2_000  # that the clocks of two stores may differ
# What is worked off ends notices, and the retry policy deliveries; not the clock: ten years.
FOREVER_S = 315_360_000
# Internal queues are never deleted and made anew under one name, so one generation will do.
_GENERATION, _VERSION = "0" * 16, 1


class Notice(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a post leaves for the fan-out: its messages as (ttl_s, delay_s, body)."""

    key: QueueKey
    policy: dict[str, Any] | None
    messages: list[tuple[int, int | None, bytes]]


_encode = msgspec.msgpack.Encoder().encode
decode_notice = msgspec.msgpack.Decoder(Notice).decode


def internal(key: QueueKey) -> QueueRef:
    """An internal queue, as it always is."""
    return QueueRef(key, _GENERATION, _VERSION)


async def make(store: MessageStore, ref: QueueRef) -> None:
    """See to it that an internal queue is there."""
    admitted = await store.admit(ref)
    if admitted.seal:
        await store.open(ref, admitted.seal)


def notices_of(key: QueueKey) -> QueueRef:
    """The queue of notices of a queue or topic."""
    return internal(QueueKey("notice", key.project, home(key)))


def notice(
    key: QueueKey,
    policy: dict[str, Any] | None,
    messages: list[tuple[int, int | None, bytes]],
    encrypt: Callable[[QueueKey, bytes], bytes] | None = None,
) -> tuple[QueueRef, list[Draft]]:
    """What is to be added together with the messages, encrypted by ``encrypt``."""
    ref, body = notices_of(key), _encode(Notice(key, policy, messages))
    if encrypt is not None:
        body = encrypt(ref.key, body)
    return ref, [Draft(body, FOREVER_S)]


class Place(NamedTuple):
    """A queue of notices, and the pool that it is in."""

    pool: str | None
    key: QueueKey


class Taken(NamedTuple):
    """Notices held for the fan-out, oldest first."""

    place: Place
    store: MessageStore
    claim: str
    notices: Sequence[Message]

    async def hold(self) -> None:
        """Hold these longer: as long from now on as when they were claimed."""
        await self.store.renew(internal(self.place.key), self.claim, HELD_S, 0)

    async def let_go(self) -> None:
        """These were not worked off after all."""
        await self.store.release(internal(self.place.key), self.claim)

    async def done(self, but: Container[int] = ()) -> None:
        """All deliveries of these are queued, whoever holds them; not so those at ``but``."""
        positions = [m.position for m in self.notices if m.position not in but]
        await self.store.remove(internal(self.place.key), positions, Removal.ANY)

    async def drop(self) -> None:
        """Nobody is to be told any more; forget the queue of notices, if it is empty."""
        await self.store.drop(internal(self.place.key), empty=True)


class Notices:
    """The queues of notices of all stores. ``on_notice`` is called when there may be something."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools
        self._noticed: dict[Place, None] = {}
        self.on_notice: Callable[[], None] = lambda: None

    def told(self, place: Place) -> None:
        """There may be something here."""
        self._noticed[place] = None
        self.on_notice()

    def __len__(self) -> int:
        """How many places were told of."""
        return len(self._noticed)

    def next(self, limit: int) -> list[Place]:
        """Up to ``limit`` places that were told of, each of them once."""
        places = list(self._noticed)[:limit]
        for place in places:
            del self._noticed[place]
        return places

    async def take(self, place: Place, limit: int) -> Taken | None:
        """Hold some notices of a place; None when there are none that nobody holds."""
        store = (await self._pools.store(place.pool)).messages
        try:
            got = await store.claim(internal(place.key), limit, HELD_S, 0)
        except Stale:
            return None
        if got.claim is None:
            return None
        if len(got.messages) == limit:
            self.told(place)  # there may be more
        return Taken(place, store, got.claim, got.messages)

    async def survey(self) -> int:
        """Look for notices in all stores, return since when the oldest waits.

        In milliseconds since the epoch, by the clock of the service's own store; 0 when a store cannot be asked, a time in the far future
        when there are none.
        """
        surveyed = await self._pools.all()
        oldest_ms = 0 if surveyed.away else 1 << 62
        for pool, store in surveyed.stores:
            try:
                found = await store.messages.occupied("notice")
            except NuskuError as error:
                log.warning("notices have to wait", pool=pool, reason=error.detail)
                oldest_ms = 0
                continue
            slack_ms = 0 if pool is None else CLOCKS_APART_MS
            for one in found:
                oldest_ms = min(oldest_ms, one.oldest_ms - slack_ms)
                self.told(Place(pool, one.key))
        return oldest_ms
