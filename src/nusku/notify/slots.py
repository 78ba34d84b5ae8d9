"""How many attempts may be under way at once, so that no endpoint takes what others need.

An endpoint gets few at a time, and one only while it is *new* or *bad*, that is, unless its last
attempt went well and fast. Bad ones share a quarter of the whole, and new and bad ones together
three quarters, so that good ones always find room. No project gets more than three fifths, and of
what a project gets, its bad ones share a quarter again, and its new and bad ones leave a little.
Where projects wait for the same, they take turns.
"""

import asyncio
from collections import OrderedDict, deque
from typing import Literal

FAST_S = 2.0
REMEMBERED = 20_000  # endpoints whose standing is kept while nothing is sent to them

Standing = Literal["new", "good", "bad"]


class _Limited:
    """So many at a time; those who wait get their turn project by project."""

    __slots__ = ("_waiting", "limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def take(self, project: str) -> None:
        if self.used < self.limit and not self._waiting:
            self.used += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(project, deque()).append(turn)
        try:
            await turn  # who gives wakes us and has kept its place for us
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give()
            raise

    def give(self) -> None:
        self.used -= 1
        while self._waiting and self.used < self.limit:
            project, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[project] = turns
            if not turn.done():
                self.used += 1
                turn.set_result(None)


class _Shares:
    """A whole, the part of it that all may have who are not good, and that for the bad."""

    __slots__ = ("bad", "not_good", "users", "whole")

    def __init__(self, total: int, for_good: int) -> None:
        self.whole = _Limited(total)
        self.not_good = _Limited(max(total - for_good, 1))
        self.bad = _Limited(max(total // 4, 1))
        self.users = 0  # those who are in, and those who wait

    def of(self, standing: Standing) -> tuple[_Limited, ...]:
        """What is to be taken, in this order: whoever waits for the next has the one before."""
        match standing:
            case "good":
                return (self.whole,)
            case "new":
                return (self.not_good, self.whole)
            case "bad":
                return (self.bad, self.not_good, self.whole)


class _Endpoint:
    """How an endpoint stands, and who sends to it."""

    __slots__ = ("name", "places", "standing", "users")

    def __init__(self, name: str) -> None:
        self.name = name
        self.standing: Standing = "new"
        self.places = _Limited(1)
        self.users = 0  # those who are in, and those who wait


class Slot:
    """Leave for one attempt. To be given back by :meth:`Slots.leave`."""

    __slots__ = ("endpoint", "project", "shares", "taken")

    def __init__(self, endpoint: _Endpoint, project: str, shares: _Shares) -> None:
        self.endpoint = endpoint
        self.project = project
        self.shares = shares
        self.taken: list[_Limited] = []


class Slots:
    """``total`` attempts at a time, ``each`` at a good endpoint."""

    def __init__(self, total: int, each: int) -> None:
        self._each = each
        self._all = _Shares(total, total // 4)
        self._of_project = max(total * 3 // 5, 1)
        self._projects: dict[str, _Shares] = {}
        self._endpoints: OrderedDict[str, _Endpoint] = OrderedDict()

    @property
    def in_flight(self) -> int:
        """Attempts under way."""
        return self._all.whole.used

    def places(self, endpoint: str) -> int:
        """How many may be under way to this endpoint."""
        known = self._endpoints.get(endpoint)
        return self._each if known is not None and known.standing == "good" else 1

    async def enter(self, project: str, endpoint: str) -> Slot:
        """Wait for leave to make an attempt."""
        known = self._endpoints.get(endpoint)
        if known is None:
            known = self._endpoints[endpoint] = _Endpoint(endpoint)
            self._forget_idle()
        shares = self._projects.get(project)
        if shares is None:
            # What is left for good ones is little, lest a thousand new ones wait for one another.
            left = max(self._of_project // 16, 1)
            shares = self._projects[project] = _Shares(self._of_project, left)
        known.users += 1
        shares.users += 1
        slot = Slot(known, project, shares)
        try:
            await self._take(slot, known.places)
            # What is the project's own comes first: nobody waits for it with what others need.
            for limited in (*shares.of(known.standing), *self._all.of(known.standing)):
                await self._take(slot, limited)
        except asyncio.CancelledError:
            self.leave(slot)
            raise
        return slot

    async def _take(self, slot: Slot, limited: _Limited) -> None:
        await limited.take(slot.project)
        slot.taken.append(limited)

    def leave(self, slot: Slot, standing: Standing | None = None) -> None:
        """Give leave back, and say how the endpoint stands now, if an attempt was made."""
        endpoint = slot.endpoint
        if standing is not None:
            endpoint.standing = standing
            endpoint.places.limit = self._each if standing == "good" else 1
        for limited in reversed(slot.taken):
            limited.give()
        endpoint.users -= 1
        slot.shares.users -= 1
        if not slot.shares.users:
            del self._projects[slot.project]

    def _forget_idle(self) -> None:
        """Of the endpoints that nobody sends to, forget the one known longest."""
        while len(self._endpoints) > REMEMBERED:
            name, oldest = self._endpoints.popitem(last=False)
            if oldest.users:
                self._endpoints[name] = oldest
                return
