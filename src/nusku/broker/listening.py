"""Subscribers that are connected to this node: what is posted is told to them directly, at most once.

A live subscription is a record like others, to be seen by all and to be changed or deleted from
anywhere, but there are no deliveries for it: this node follows the queue in its name.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import structlog

from nusku.broker.deliveries import delivery_key
from nusku.broker.following import Follower, Following, Take
from nusku.broker.subscriptions import Subscriptions, is_live, paused
from nusku.broker.view import View
from nusku.errors import NuskuError
from nusku.model import Context, QueueKey

log = structlog.get_logger("nusku.subscriptions")


class Listener:
    """A live subscription, on the node of its subscriber."""

    def __init__(self, key: QueueKey, id_: str, take: Take) -> None:
        self.key = key
        self.id = id_
        self.follower: Follower
        self.until_s = 0.0  # by the loop's clock
        self._take = take

    def take(self, view: View) -> bool:
        """Tell the subscriber, as long as the subscription lives."""
        return asyncio.get_running_loop().time() < self.until_s and self._take(view)


class Listening:
    """The live subscriptions of this node."""

    def __init__(self, subscriptions: Subscriptions, following: Following) -> None:
        self._subscriptions = subscriptions
        self._following = following
        self._listeners: dict[QueueKey, Listener] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._listeners)

    async def begin(
        self, ctx: Context, key: QueueKey, document: Mapping[str, Any], take: Take
    ) -> Listener:
        """Subscribe, and tell what is posted from now on. Raises what making a subscription does.

        Nothing is told before the caller has had the time to answer.
        """
        created = await self._subscriptions.create(ctx, key, document, live=True)
        listener = Listener(key, created.id, take)
        listener.follower = await self._following.follow_new(key, listener.take)
        self._listeners[delivery_key(key.project, created.id)] = listener
        await self._look(listener)
        return listener

    async def end(self, listener: Listener) -> None:
        """Whoever subscribed has gone. If the store is out of order, the subscription stays as long
        as it was to live, and nobody is told.
        """
        self._forget(listener)
        with suppress(NuskuError):
            await self._subscriptions.hang_up(listener.key, listener.id)

    def _forget(self, listener: Listener) -> None:
        listener.follower.stop()
        self._listeners.pop(delivery_key(listener.key.project, listener.id), None)

    def changed(self, key: QueueKey) -> None:
        """Somebody has changed or deleted the subscription whose deliveries would be here."""
        listener = self._listeners.get(key)
        if listener is not None:
            task = asyncio.create_task(self._look(listener))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _look(self, listener: Listener) -> None:
        """Do as the record says."""
        try:
            record = await self._subscriptions.record(listener.key.project, listener.id)
        except NuskuError as error:
            log.warning("a change of a subscription was not seen", reason=error.detail)
            return
        if record is None or not is_live(record):
            self._forget(listener)
            return
        left_ms = (record.ends_ms or record.read_ms) - record.read_ms
        listener.until_s = asyncio.get_running_loop().time() + left_ms / 1000
        if paused(record):
            listener.follower.stop()
        else:
            listener.follower.start()
