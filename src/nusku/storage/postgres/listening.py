"""Telling the other nodes that a queue has messages, and hearing it from them.

NOTIFY takes a lock of the whole server until its commit, so it is no part of a post: what there is
to tell is gathered for some milliseconds and goes over a connection of its own, which does not
wait for the disk. A word that is lost costs a waiter the time until it looks again.
"""

import asyncio
import secrets
from typing import Any

import msgspec
import structlog

from nusku.errors import StoreRefused
from nusku.model import QueueKey
from nusku.storage import Hint
from nusku.storage.postgres.address import Address
from nusku.storage.postgres.connections import Connections
from nusku.storage.postgres.link import UNREACHABLE, Link, Warned, connect_to_primary, reason

log = structlog.get_logger("nusku.storage")

GATHER_S = 0.005
PAYLOAD_MAX = 7_500  # bytes; PostgreSQL takes 8,000
PATIENCE_S = 10.0  # with an answer
CHECK_S = 15.0  # between two questions whether the server is still there, and still the primary
RECONNECT_S, RECONNECT_MAX_S = 0.1, 2.0


class Word(msgspec.Struct, array_like=True):
    """What is told: by which node, of which queues."""

    node: str
    keys: list[QueueKey]


class Listening:
    """One connection that tells and hears."""

    def __init__(self, address: Address, schema: str, connections: Connections) -> None:
        self._servers = address.servers
        self._shown = address.shown
        self._channel = schema
        self._connections = connections
        self._node = secrets.token_hex(4)
        self._hear: Hint | None = None
        self._told: dict[QueueKey, None] = {}
        self._words = asyncio.Event()
        self._link: Link | None = None
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Raises StoreRefused where nothing can be heard."""
        try:
            link = await self._connect()
        except (*UNREACHABLE, ValueError) as error:
            raise StoreRefused(
                f"listen_store {self._shown} cannot be reached: {reason(error)}"
            ) from None
        if link.identity.pooled:
            await link.close()
            raise StoreRefused(
                f"listen_store {self._shown} goes through a pooler; LISTEN needs a direct way"
            )
        self._task = asyncio.create_task(self._run(link))

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._link is not None:
            await self._link.close()

    def hear(self, function: Hint) -> None:
        self._hear = function

    def tell(self, key: QueueKey) -> None:
        if not self._told:
            self._connections.loop.call_later(GATHER_S, self._words.set)
        self._told[key] = None

    async def _connect(self) -> Link:
        link = await connect_to_primary(self._servers, self._connections.timeline)
        try:
            if not link.identity.pooled:
                await link.connection.add_listener(self._channel, self._heard)
        except BaseException:
            link.cut()
            raise
        return link

    def _heard(self, _connection: Any, _pid: int, _channel: str, payload: object) -> None:
        try:
            word = msgspec.json.decode(str(payload), type=Word)
        except msgspec.DecodeError:
            return  # somebody else's
        if word.node != self._node and self._hear is not None:
            for key in word.keys:
                self._hear(key)

    async def _run(self, link: Link | None) -> None:
        pause_s = RECONNECT_S
        while True:
            try:
                self._link = link = link or await self._connect()
                pause_s = RECONNECT_S
                await self._talk(link)
            except (*UNREACHABLE, ValueError, Warned) as error:
                log.warning("the way to other nodes was lost", why=reason(error))
            if link is not None:
                link.cut()
            link = self._link = None
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RECONNECT_MAX_S)

    async def _talk(self, link: Link) -> None:
        """Tell what there is to tell, for as long as the connection is good."""
        lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def terminated(_: Any) -> None:
            if not lost.done():
                lost.set_result(None)

        link.connection.add_termination_listener(terminated)
        words: asyncio.Task[Any] | None = None
        try:
            while link.open:
                words = words or asyncio.create_task(self._words.wait())
                await asyncio.wait(
                    (words, lost), timeout=CHECK_S, return_when=asyncio.FIRST_COMPLETED
                )
                if lost.done():
                    raise OSError("the server closed the connection")
                if words.done():
                    words = None
                    await self._tell(link)
                else:
                    await link.call(
                        f'SELECT "{self._channel}".enter($1, false)',
                        (self._connections.env(),),
                        PATIENCE_S,
                    )
        finally:
            if words is not None:
                words.cancel()

    async def _tell(self, link: Link) -> None:
        self._words.clear()
        keys, self._told = list(self._told), {}
        payloads, size = [Word(self._node, [])], 0
        for key in keys:
            size += len(msgspec.json.encode(key)) + 1
            if size > PAYLOAD_MAX and payloads[-1].keys:
                payloads.append(Word(self._node, []))
                size = 0
            payloads[-1].keys.append(key)
        await link.call(
            f'SELECT "{self._channel}".tell($1, $2)',
            (self._channel, [msgspec.json.encode(word).decode() for word in payloads]),
            PATIENCE_S,
        )
