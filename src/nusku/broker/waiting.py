"""Long polling: who waits on which queue, and what wakes them.

Nothing here asks the store. A post, a release and a dead letter wake waiters of their queue, on
other nodes too; for what lapses or becomes due by itself there is one timer a queue, set to the
time that the store named. Where word from other nodes may be lost, waiters look anyway now and
then.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nusku.model import QueueKey


class Room:
    """Those who wait on one queue. Claimers are woken one a message, observers all at once."""

    def __init__(self, look_s: float | None) -> None:
        self.users = 0
        self._look_s = look_s
        self.calls = 0  # grows with each call, so that none is missed between a look and a wait
        self._claimers: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._observers: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def call(self, messages: int) -> None:
        """So many messages may have become free."""
        self.calls += 1
        for _ in range(min(messages, len(self._claimers))):
            _resolve(self._claimers.popitem(last=False)[0])
        for observer in self._observers:
            _resolve(observer)
        self._observers.clear()

    def call_all(self) -> None:
        self.call(len(self._claimers))

    def call_in(self, seconds: float) -> None:
        """Something becomes visible by itself at that time."""
        loop = asyncio.get_running_loop()
        when = loop.time() + max(seconds, 0.0)
        if self._timer is None or when < self._timer.when():
            self.forget_timer()
            self._timer = loop.call_at(when, self._due)

    def _due(self) -> None:
        self._timer = None
        self.call(1)

    def forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def wait(self, until: float, seen_calls: int, *, claiming: bool) -> None:
        """Until somebody calls, or the loop's time is ``until``, or it is time to look anyway."""
        if self.calls != seen_calls:
            return
        loop = asyncio.get_running_loop()
        if self._look_s is not None:
            until = min(until, loop.time() + self._look_s)
        called: asyncio.Future[None] = loop.create_future()
        waiters = self._claimers if claiming else self._observers
        waiters[called] = None
        timer = loop.call_at(until, _resolve, called)
        try:
            await called
        except asyncio.CancelledError:
            if called.done() and not called.cancelled() and claiming:
                self.call(1)  # the message is for somebody else now
            raise
        finally:
            timer.cancel()
            waiters.pop(called, None)


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


class Waiting:
    """The rooms that are in use."""

    def __init__(self) -> None:
        self._rooms: dict[QueueKey, Room] = {}
        self._look_s: float | None = None
        self.closed = False
        self.at_close: set[Callable[[], None]] = set()  # of those who wait for longer

    def __len__(self) -> int:
        return sum(room.users for room in self._rooms.values())

    @contextmanager
    def room(self, key: QueueKey) -> Iterator[Room]:
        """The queue's room, kept while anybody is in it."""
        room = self._rooms.setdefault(key, Room(self._look_s))
        room.users += 1
        try:
            yield room
        finally:
            room.users -= 1
            if not room.users:
                room.forget_timer()
                self._rooms.pop(key, None)

    def call(self, key: QueueKey, messages: int) -> None:
        """See :meth:`Room.call`; costs nothing when nobody waits."""
        room = self._rooms.get(key)
        if room is not None:
            room.call(messages)

    def call_in(self, key: QueueKey, seconds: float) -> None:
        """See :meth:`Room.call_in`."""
        room = self._rooms.get(key)
        if room is not None:
            room.call_in(seconds)

    def look_every(self, seconds: float | None) -> None:
        """Word may be lost, so that those who wait have to look that often."""
        if seconds is not None:
            self._look_s = min(seconds, self._look_s or seconds)

    def call_all(self, key: QueueKey) -> None:
        """Something was done on another node: everybody is to look."""
        room = self._rooms.get(key)
        if room is not None:
            room.call_all()

    def close(self) -> None:
        """The server stops: everybody's time is over."""
        self.closed = True
        for room in self._rooms.values():
            room.call_all()
        for end in list(self.at_close):
            end()
