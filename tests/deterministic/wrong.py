"""Brokers with a fault of ours in them, each of which some seed has to catch: see `bugs.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import msgspec

from nusku.broker import Broker
from nusku.broker.codec import Packed, pack
from nusku.broker.notices import Taken, internal
from nusku.broker.subscriptions import paused
from nusku.errors import Unavailable
from nusku.model import Message, Record
from nusku.storage import Removal


class Planted(Protocol):
    """What is planted in one run."""

    slipped: bool

    def slips(self, share: float = ...) -> bool:
        """Whether it strikes now."""


def move_not_undone(broker: Broker, planted: Planted) -> None:
    """Nobody brings a queue back whose mover has died."""

    async def rescue(record: Record) -> None:
        planted.slipped = True

    broker.queues.rescue = broker.moving.rescue = rescue  # type: ignore[method-assign] # planted


def shown_as_stored(broker: Broker, planted: Planted) -> None:
    """What is encrypted is now and then handed out as it lies there."""
    codec: Any = broker.codec
    decrypt = codec.decrypt

    def decrypted(key: Any, message: Message, *name: str) -> bytes:
        if planted.slips(0.03):
            return message.body
        return decrypt(key, message, *name)  # type: ignore[no-any-return] # it is Any

    codec.decrypt = decrypted


def stored_in_clear(broker: Broker, planted: Planted) -> None:
    """Now and then something is not encrypted."""
    codec: Any = broker.codec
    packed = codec.pack

    def packed_in_clear(key: Any, body: bytes, beside: Any, *, encrypted: bool) -> Packed:
        if encrypted and planted.slips(0.1):
            return Packed(body, pack(beside))
        return packed(key, body, beside, encrypted=encrypted)  # type: ignore[no-any-return] # as above

    codec.pack = packed_in_clear


def keys_never_read(broker: Broker, planted: Planted) -> None:
    """Some nodes have the keys of their start for as long as they live."""
    ring: Any = broker.codec._ring
    if not planted.slips(0.5):
        return

    ring.refresh = lambda: None


def popped_late(broker: Broker, planted: Planted) -> None:
    """Who pops does not ask how long that took."""
    messages: Any = broker.messages
    check = messages._check_held

    def unchecked(began_s: float) -> None:
        try:
            check(began_s)
        except Unavailable:
            planted.slipped = True

    messages._check_held = unchecked


def left_behind(broker: Broker, planted: Planted) -> None:
    """What was still to be told to one who has left is not forgotten."""
    deliveries: Any = broker.deliveries
    forget = deliveries.forget

    async def forgotten(project: str, subscription: str) -> None:
        if not planted.slips(0.9):
            await forget(project, subscription)

    deliveries.forget = forgotten


def paused_untold(broker: Broker, planted: Planted) -> None:
    """What is posted while a subscription is paused is not kept for it."""
    fanout: Any = broker.fanout
    drafts = fanout._drafts

    def without_paused(spread: Any, records: list[Record], posts: Any) -> Iterator[Any]:
        awake = [record for record in records if not paused(record)]
        planted.slipped |= len(awake) < len(records)
        return drafts(spread, awake, posts)  # type: ignore[no-any-return] # as above

    fanout._drafts = without_paused


def told_whenever(broker: Broker, planted: Planted) -> None:
    """Who is subscribed when a post is spread is told of it, whenever that was posted."""
    fanout: Any = broker.fanout
    drafts = fanout._drafts

    def at_any_time(spread: Any, records: list[Record], posts: Any) -> Iterator[Any]:
        planted.slipped = True
        records = [
            msgspec.structs.replace(record, created_ms=0, ends_ms=1 << 62) for record in records
        ]
        return drafts(spread, records, posts)  # type: ignore[no-any-return] # as above

    fanout._drafts = at_any_time


def notice_gone(broker: Broker, planted: Planted) -> None:
    """Notices are removed first, and then worked off."""
    fanout: Any = broker.fanout
    work_off = fanout._work_off

    async def removed_first(spread: Any) -> int:
        planted.slipped = True
        taken: Taken = spread.taken
        positions: Sequence[int] = [m.position for m in taken.notices]
        await taken.store.remove(internal(taken.place.key), positions, Removal.ANY)
        await asyncio.sleep(0)
        return await work_off(spread)  # type: ignore[no-any-return] # as above

    fanout._work_off = removed_first
