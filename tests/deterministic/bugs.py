"""Planted bugs: a store that now and then does not do what it says. Some seed has to catch each."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from nusku.model import Claimed, Draft, Found, QueueKey, QueueRef
from nusku.storage import Apart, Removal, Removed
from nusku.storage.sqlite.connection import _Waiting
from tests.deterministic.scripts import SCENES, Scene
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
        engine, messages, *_ = BUGS[self._bug]
        if engine is not None:
            ground.engine = type("Planted", (engine,), {"planted": self})
        if messages is not None:
            ground.messages = lambda real: messages(real, self)


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


class Bug(NamedTuple):
    """``rules``: of these one has to be broken. ``scenes`` in which it can strike."""

    engine: type[Engine] | None
    messages: type[_Wrong] | None
    rules: frozenset[str]
    scenes: tuple[str, ...]
    climate: Climate | None = None


_CUTS = Climate((0.0,) * 7, cuts_s=0.7, slow_commits=1.0)
_CRASHES = Climate((0.0, 0.0, 0.1, 0.0, 0.0, 0.0, 0.02))


def _bug(wrong: type[_Wrong], rules: str, *scenes: str, climate: Climate | None = None) -> Bug:
    return Bug(None, wrong, frozenset(rules.split()), scenes, climate)


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
}  # fmt: skip


def scene(bug: str, seed: int) -> Scene:
    """Where the bug is looked for."""
    names = BUGS[bug].scenes
    return next(one for one in SCENES if one.name == names[seed % len(names)])


def climate(bug: str, seed: int) -> Climate:
    """In which weather."""
    return BUGS[bug].climate or CLIMATES[seed % len(CLIMATES)]
