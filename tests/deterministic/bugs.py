"""Planted bugs: a store that now and then does not do what it says, or a broker that is wrong. Some
seed has to catch each.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from nusku.broker import Broker
from nusku.model import Claimed, Draft, Found, QueueKey, QueueRef, Record, Stored
from nusku.storage import Apart, Removal, Removed
from nusku.storage.copying import holding_of
from nusku.storage.sqlite.connection import _Waiting
from tests.deterministic import wrong
from tests.deterministic.keyfile import KeyFile
from tests.deterministic.scripts import BY_NAME, Scene
from tests.deterministic.store import Engine, Ground
from tests.deterministic.weather import CLIMATES, Climate

Posts = Sequence[tuple[QueueRef, Sequence[Draft]]]


class Planted:
    """What is planted in one run, or nothing. ``slipped``: it has had an effect."""

    def __init__(self, bug: str, rng: random.Random) -> None:
        self._bug = bug
        self._rng = rng
        self.slipped = False

    def slips(self, share: float = 0.05) -> bool:
        struck = self._rng.random() < share
        self.slipped |= struck
        return struck

    def in_(self, ground: Ground) -> None:
        """To be called before it is opened."""
        if not self._bug:
            return
        bug = BUGS[self._bug]
        if bug.engine is not None:
            ground.engine = type("Planted", (bug.engine,), {"planted": self})
        if (messages := bug.messages) is not None:
            ground.messages = lambda real: messages(real, self)
        if (records := bug.records) is not None:
            ground.records = lambda real: records(real, self)

    def in_broker(self, broker: Broker) -> None:
        """To be called when it is made."""
        if self._bug and (change := BUGS[self._bug].broker) is not None:
            change(broker, self)

    def in_keys(self, keys: KeyFile) -> None:
        """To be called when there is a file with keys."""
        if self._bug and BUGS[self._bug].careless:
            keys.careless = self.slipped = True


class _Wrong:
    """A message store that is right, but for what a subclass does."""

    def __init__(self, real: Any, planted: Planted) -> None:
        self.real = real
        self.planted = planted

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class _ClaimedTwice(_Wrong):
    """A claim takes what another one holds."""

    def __init__(self, real: Any, planted: Planted) -> None:
        super().__init__(real, planted)
        self._last: dict[QueueKey, str] = {}

    async def claim(self, ref: QueueRef, *args: Any) -> Claimed:
        last = self._last.get(ref.key)
        if last and self.planted.slips():
            await self.real.release(ref, last)
        got: Claimed = await self.real.claim(ref, *args)
        if got.claim is not None:
            self._last[ref.key] = got.claim
        return got


class _AcknowledgedTooEarly(_Wrong):
    """A post is answered before it is stored, and the store may refuse it yet."""

    async def add(self, posts: Posts) -> list[list[int]]:
        if not self.planted.slips():
            return await self.real.add(posts)  # type: ignore[no-any-return] # it is Any
        positions = []
        for ref, drafts in posts:
            first = self.real._ledger.lane(ref).next_position
            positions.append(list(range(first, first + len(drafts))))
        asyncio.get_running_loop().call_later(0.2, self._store, posts)
        return positions

    def _store(self, posts: Posts) -> None:
        self.real.add(posts).add_done_callback(lambda done: done.exception())


class _DeletionIgnored(_Wrong):
    async def remove(
        self, ref: QueueRef, positions: Sequence[int], *args: Any, **options: Any
    ) -> list[Removed]:
        if ref.key.kind == "queue" and self.planted.slips():
            return [Removed.GONE] * len(positions)
        return await self.real.remove(ref, positions, *args, **options)  # type: ignore[no-any-return] # as above


class _RenewalIgnored(_Wrong):
    async def renew(self, ref: QueueRef, claim: str, *args: Any) -> bool:
        if self.planted.slips(0.5):
            return await self.real.claimed(ref, claim) is not None
        return await self.real.renew(ref, claim, *args)  # type: ignore[no-any-return] # as above


class _OrderSwapped(_Wrong):
    async def add(self, posts: Posts) -> list[list[int]]:
        (ref, drafts), *rest = posts
        if len(drafts) < 2 or not self.planted.slips(0.2):
            return await self.real.add(posts)  # type: ignore[no-any-return] # as above
        first, *others = await self.real.add([(ref, drafts[::-1]), *rest])
        return [first[::-1], *others]


class _AnsweredBeforeCommit(Engine):
    """Answers leave before the transaction is durable."""

    planted: Planted

    def _execute(self, batch: list[_Waiting]) -> bool:
        wrote = super()._execute(batch)
        if wrote:
            for one in batch:
                if one.error is None and not one.future.done():
                    one.future.set_result(one.result)
        return wrote

    def _answer(self, batch: list[_Waiting]) -> None:
        super()._answer([one for one in batch if not one.future.done()])

    def cut(self) -> None:
        self.planted.slipped |= self.db.in_transaction
        super().cut()


class _CopiedTwice(_Wrong):
    """Dead letters are copied, and no key says that one is there already."""

    async def move(self, ref: QueueRef, positions: Any, target: QueueRef, *args: Any, **options: Any) -> list[int]:  # fmt: skip
        if target.key.kind == "queue":
            raise Apart
        return await self.real.move(ref, positions, target, *args, **options)  # type: ignore[no-any-return] # as above

    async def add(self, posts: Posts) -> list[list[int]]:
        if any(draft.dedup for _, drafts in posts for draft in drafts):
            self.planted.slipped = True
            posts = [
                (ref, [msgspec.structs.replace(draft, dedup=None) for draft in drafts])
                for ref, drafts in posts
            ]
        return await self.real.add(posts)  # type: ignore[no-any-return] # as above


class _NoticeForgotten(_Wrong):
    async def add(self, posts: Posts) -> list[list[int]]:
        if len(posts) > 1 and self.planted.slips():
            return [*await self.real.add(posts[:1]), [1]]
        return await self.real.add(posts)  # type: ignore[no-any-return] # as above


class _PurgeIgnored(_Wrong):
    async def clear(self, ref: QueueRef) -> None:
        if not self.planted.slips(0.3):
            await self.real.clear(ref)


class _StuckClaim(_Wrong):
    """A claim does not end."""

    async def claim(self, ref: QueueRef, limit: int, ttl_s: int, *args: Any) -> Claimed:
        if ref.key.kind == "queue" and self.planted.slips():
            ttl_s += 10_000
        return await self.real.claim(ref, limit, ttl_s, *args)  # type: ignore[no-any-return] # as above


class _EarlyExpiry(_Wrong):
    async def add(self, posts: Posts) -> list[list[int]]:
        (ref, drafts), *rest = posts
        if ref.key.kind == "queue" and self.planted.slips():
            drafts = [msgspec.structs.replace(draft, ttl_s=1) for draft in drafts]
        return await self.real.add([(ref, drafts), *rest])  # type: ignore[no-any-return] # as above


class _DelayIgnored(_Wrong):
    async def add(self, posts: Posts) -> list[list[int]]:
        (ref, drafts), *rest = posts
        if drafts[0].delay_s and self.planted.slips(0.7):
            drafts = [msgspec.structs.replace(draft, delay_s=0) for draft in drafts]
        return await self.real.add([(ref, drafts), *rest])  # type: ignore[no-any-return] # as above


class _PopKeeps(_Wrong):
    """What is popped is not removed."""

    async def pop(self, ref: QueueRef, limit: int) -> Found:
        if self.planted.slips(0.2):
            return await self.real.page(ref, 0, limit)  # type: ignore[no-any-return] # as above
        return await self.real.pop(ref, limit)  # type: ignore[no-any-return] # as above


class _HeldByAnybody(_Wrong):
    """A claim that is over, or another, deletes what somebody else holds."""

    async def remove(
        self, ref: QueueRef, positions: Sequence[int], removal: Removal, *args: Any, **options: Any
    ) -> list[Removed]:
        if removal is Removal.HELD and ref.key.kind == "queue" and self.planted.slips(0.3):
            # The holder of the message next to it loses that.
            positions = [position + 1 for position in positions]
            removal, args = Removal.ANY, ()
        return await self.real.remove(ref, positions, removal, *args, **options)  # type: ignore[no-any-return] # as above


class _SealIgnored(_Wrong):
    """A queue that leaves goes on taking messages, which nobody copies."""

    async def seal(self, ref: QueueRef) -> None:
        held = await holding_of(self.real, ref.key)
        if held is None or held.sealed or not self.planted.slips(0.5):
            await self.real.seal(ref)


class _CopyIncomplete(_Wrong):
    """Of what is loaded into the other store one is missing."""

    async def load(
        self,
        ref: QueueRef,
        next_position: int,
        after: int,
        through: int,
        messages: Sequence[Stored],
    ) -> None:
        if messages and self.planted.slips(0.3):
            messages = messages[:-1]
        await self.real.load(ref, next_position, after, through, messages)


class _DroppedTooLate(_Wrong):
    """A queue is dropped by who means an earlier version of it."""

    async def drop(self, ref: QueueRef, **options: Any) -> None:
        held = await holding_of(self.real, ref.key)
        if held is not None and options.get("unless_later") and held.ref.version > ref.version:
            self.planted.slipped = True
            options.pop("unless_later")
        await self.real.drop(ref, **options)


class _RenewedTooLate(_Wrong):
    """Who asks for a claim that is over is told that it goes on."""

    async def renew(self, ref: QueueRef, claim: str, *args: Any) -> bool:
        return await self.real.renew(ref, claim, *args) or self.planted.slips(0.5)


class _VersionIgnored(_Wrong):
    """Records in which the last to write is right, whatever was written since it read."""

    async def update(self, record: Record, ttl_s: int | None = None) -> bool:
        if await self.real.update(record, ttl_s):
            return True
        now = await self.real.get(record.kind, record.project, record.key)
        if now is None or record.kind != "queue" or not self.planted.slips(1.0):
            return False
        later = msgspec.structs.replace(record, version=now.version + 1)
        return await self.real.update(later, ttl_s)  # type: ignore[no-any-return] # as above


class _TimeOfBefore(Engine):
    """When nothing was asked of it for a while, it goes by the time of before for a moment."""

    planted: Planted
    seen_ms = until_ms = before_ms = 0

    def _execute(self, batch: list[_Waiting]) -> bool:
        clock = self._clock
        now_ms = clock()
        if self.seen_ms and now_ms - self.seen_ms > STOOD_STILL_MS and self.planted.slips(0.8):
            self.before_ms, self.until_ms = self.seen_ms, now_ms + MOMENT_MS
        self.seen_ms = now_ms
        if now_ms < self.until_ms:
            self._clock = lambda: self.before_ms
        try:
            return super()._execute(batch)
        finally:
            self._clock = clock


STOOD_STILL_MS, MOMENT_MS = 1_600, 50


class Bug(NamedTuple):
    """``rules``: of these one has to be broken. ``scenes`` in which it can strike."""

    engine: type[Engine] | None
    messages: type[_Wrong] | None
    rules: frozenset[str]
    scenes: tuple[str, ...]
    climate: Climate | None = None
    records: type[_Wrong] | None = None
    broker: Callable[[Broker, Planted], None] | None = None
    careless: bool = False  # who takes keys away


_CUTS = Climate((0.0,) * 7, cuts_s=0.7, slow_commits=1.0)
_SLOW = Climate((0.4,) + (0.0,) * 6, slow_commits=0.5)
_CRASHES = Climate((0.0, 0.0, 0.1, 0.0, 0.0, 0.0, 0.02))


def _bug(wrong: type[_Wrong], rules: str, *scenes: str, climate: Climate | None = None) -> Bug:
    return Bug(None, wrong, frozenset(rules.split()), scenes, climate)


def _in_broker(
    change: Callable[[Broker, Planted], None], rules: str, *scenes: str,
    climate: Climate | None = None,
) -> Bug:  # fmt: skip
    return Bug(None, None, frozenset(rules.split()), scenes, climate, broker=change)


BUGS: dict[str, Bug] = {
    "claimed twice": _bug(_ClaimedTwice, "R5 R6", "claims", "mixed"),
    "acknowledged too early": _bug(_AcknowledgedTooEarly, "R1 R3 R9", "fifo", "claims"),
    "deletion ignored": _bug(_DeletionIgnored, "R4", "claims", "mixed"),
    "renewal ignored": _bug(_RenewalIgnored, "R5 R6", "claims"),
    "order swapped": _bug(_OrderSwapped, "R8 R3", "fifo"),
    "answered before the commit": Bug(
        _AnsweredBeforeCommit, None, frozenset({"R1", "R4", "R5", "R6", "R9"}), ("claims",), _CUTS
    ),
    "dead letter copied twice": _bug(_CopiedTwice, "R3", "letters", climate=_CRASHES),
    "notice forgotten": _bug(_NoticeForgotten, "R10", "webhooks"),
    "purge ignored": _bug(_PurgeIgnored, "R4", "churn"),
    "claim does not end": _bug(_StuckClaim, "R7 R12", "claims"),
    "early expiry": _bug(_EarlyExpiry, "R1 R9", "fifo"),
    "delay ignored": _bug(_DelayIgnored, "R6", "fifo"),
    "pop keeps": _bug(_PopKeeps, "R4", "mixed"),
    "another's message deleted": _bug(_HeldByAnybody, "R1 R5 R9", "claims"),
    "seal ignored": _bug(_SealIgnored, "R1 R9", "pools", climate=_SLOW),
    "copy incomplete": _bug(_CopyIncomplete, "R1 R9", "pools"),
    "move not undone": _in_broker(wrong.move_not_undone, "R15 D3", "pools", climate=_CRASHES),
    "version ignored": Bug(
        None, None, frozenset({"R1", "R4", "R9", "R15", "D3"}), ("sleepers",), _SLOW, records=_VersionIgnored
    ),
    "dropped too late": _bug(_DroppedTooLate, "R1 R9", "sleepers", climate=_SLOW),
    "shown as it is stored": _in_broker(wrong.shown_as_stored, "R2 R10", "secrets"),
    "stored in clear": _in_broker(wrong.stored_in_clear, "D1", "secrets"),
    "key taken away too early": Bug(
        None, None, frozenset({"R1", "R15", "D5"}), ("secrets",), careless=True
    ),
    "keys never read anew": _in_broker(wrong.keys_never_read, "D5", "secrets", climate=_CRASHES),
    "popped and not removed": _bug(_DeletionIgnored, "R4 D4", "dozers"),
    "popped too late": _in_broker(wrong.popped_late, "D4", "dozers", climate=_SLOW),
    "deliveries left behind": _in_broker(wrong.left_behind, "D2", "guests", climate=_SLOW),
    "paused is not told": _in_broker(wrong.paused_untold, "R10", "guests"),
    "told before and after": _in_broker(wrong.told_whenever, "R10", "guests"),
    "notice gone too early": _in_broker(wrong.notice_gone, "R10", "guests", climate=_CRASHES),
    "renewed too late": _bug(_RenewedTooLate, "R5 R6", "still"),
    "time of before": Bug(
        _TimeOfBefore, None, frozenset({"R5", "R6", "R9", "R11"}), ("still",), _SLOW
    ),
}  # fmt: skip


def scene(bug: str, seed: int) -> Scene:
    """Where the bug is looked for."""
    names = BUGS[bug].scenes
    return BY_NAME[names[seed % len(names)]]


def climate(bug: str, seed: int) -> Climate:
    """In which weather."""
    return BUGS[bug].climate or CLIMATES[seed % len(CLIMATES)]
