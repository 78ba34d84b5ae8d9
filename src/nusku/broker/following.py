"""Following a queue live: each message once, in the order of the queue, whatever its state.

For each queue that anybody here follows there is one reader, a *feed*. It looks when somebody calls,
as those do who wait (``waiting.py``), and hands what it finds to all who follow. Who is behind, at the
start or for having been too slow, reads alone until there is nothing more, and then joins the feed.
A message that is deleted before it was looked for is not seen.
"""

import asyncio
import math
from collections.abc import Callable

import structlog

from nusku.broker.ids import Point
from nusku.broker.messages import Messages
from nusku.broker.operation import operation
from nusku.broker.view import View
from nusku.broker.waiting import Room, Waiting
from nusku.errors import NuskuError
from nusku.model import Context, QueueKey

log = structlog.get_logger("nusku.following")

AT_ONCE = 20  # messages
RECOVER_S = 1.0  # after the store failed
APART_S = 0.01  # for which a feed and somebody behind may disagree on which queue it is

# Takes what comes next, and says whether more can be taken now.
Take = Callable[[View], bool]


class Follower:
    """One who follows a queue from a point on."""

    def __init__(self, following: "Following", key: QueueKey, point: Point, take: Take) -> None:
        self.point = point
        self._following = following
        self._key = key
        self._take = take
        self._feed: _Feed | None = None
        self._catching_up: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Go on from where it stopped; nothing happens if it goes on already."""
        if self._feed is None and self._catching_up is None:
            self._catching_up = asyncio.create_task(self._catch_up())

    def stop(self) -> None:
        """Take nothing more, until it is started again."""
        if self._feed is not None:
            self._feed.leave(self)
            self._feed = None
        if self._catching_up is not None:
            self._catching_up.cancel()
            self._catching_up = None

    def offer(self, view: View, point: Point) -> None:
        """What the feed has found. Some of it may be known already."""
        messages = view.messages
        if view.generation == self.point.generation:
            position = self.point.position
            messages = [m for m in messages if m.position > position]
        if len(messages) < len(view.messages):
            view = View(view.key, view.generation, messages, view.now_ms)
        self.point = point
        if messages and not self._take(view):
            self.stop()

    async def _catch_up(self) -> None:
        while True:
            view, point = await self._following.look(self._key, self.point)
            at_end = point == self.point
            self.point = point
            if view is not None and view.messages and not self._take(view):
                break
            self._feed = self._following.join(self._key, self, make=at_end)
            if self._feed is not None:
                break
            if at_end:
                await asyncio.sleep(APART_S)
        self._catching_up = None


class _Feed:
    """The reader of one queue, and who has caught up with it."""

    def __init__(self, following: "Following", key: QueueKey, point: Point) -> None:
        self.point = point
        self._following = following
        self._key = key
        self._followers: dict[Follower, None] = {}
        self._room: Room | None = None
        self._task = asyncio.create_task(self._run())

    def enter(self, follower: Follower) -> bool:
        """Whether it can go on from here: it must not have missed anything that was handed out."""
        if follower.point.generation != self.point.generation:
            if self._room is not None:
                self._room.call(0)  # the queue was made anew: one of the two has not seen it yet
            return False
        if follower.point.position < self.point.position:
            return False
        self._followers[follower] = None
        return True

    def leave(self, follower: Follower) -> None:
        self._followers.pop(follower, None)
        if not self._followers:
            self._following.close(self._key)
            self._task.cancel()

    async def _run(self) -> None:
        waiting = self._following.waiting
        with waiting.room(self._key) as self._room:
            while not waiting.closed:
                calls = self._room.calls
                view, point = await self._following.look(self._key, self.point)
                if point == self.point:
                    await self._room.wait(math.inf, calls, claiming=False)
                    continue
                self.point = point
                if view is not None:
                    for follower in list(self._followers):
                        follower.offer(view, point)


class Following:
    """The feeds of this node."""

    def __init__(self, messages: Messages, waiting: Waiting) -> None:
        self.waiting = waiting
        self._messages = messages
        self._feeds: dict[QueueKey, _Feed] = {}

    @operation("messages:get_all")
    async def follow(self, ctx: Context, key: QueueKey, marker: str, take: Take) -> Follower:
        """Hand over the messages behind the marker and all that come later, once it is started.

        A marker of a queue that was made anew since is before all that are there now. Raises
        Invalid for what cannot be a marker.
        """
        return Follower(self, key, Point.behind(marker), take)

    async def follow_new(self, key: QueueKey, take: Take) -> Follower:
        """Hand over all that is posted from now on."""
        return Follower(self, key, await self._messages.end(key), take)

    async def look(self, key: QueueKey, point: Point) -> tuple[View | None, Point]:
        """What comes next, and how far that leads; waits for a store that is out of order."""
        while True:
            try:
                return await self._messages.behind(key, point, AT_ONCE)
            except NuskuError as error:
                log.warning("followers have to wait", queue=key.name, reason=error.detail)
            except Exception as error:
                log.error("followers have to wait", queue=key.name, exc_info=error)
            await asyncio.sleep(RECOVER_S)

    def join(self, key: QueueKey, follower: Follower, *, make: bool) -> _Feed | None:
        """The feed, if the follower has caught up with it; without one perhaps a new one."""
        feed = self._feeds.get(key)
        if feed is None:
            if not make:
                return None
            feed = self._feeds[key] = _Feed(self, key, follower.point)
        return feed if feed.enter(follower) else None

    def close(self, key: QueueKey) -> None:
        """Nobody follows the queue any more."""
        self._feeds.pop(key, None)
