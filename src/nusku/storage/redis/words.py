"""What nodes tell one another by PUBLISH: that a queue has messages to be had."""

import asyncio
import secrets
from typing import Any

import msgspec
import structlog
from hiredis import ReplyError

from nusku.errors import Unavailable
from nusku.model import Kind, QueueKey
from nusku.storage import Hint
from nusku.storage.redis.engine import Engine
from nusku.storage.redis.keys import PREFIX, command
from nusku.storage.redis.servers import login_commands
from nusku.storage.redis.wire import Lost, Wire

log = structlog.get_logger("nusku.storage")

GATHER_S = 0.005  # what is told within this time goes together
PAUSE_S = 0.5  # between attempts to listen
SILENCE_S = 20.0  # between questions to a server from which nothing is heard

_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE = msgspec.msgpack.Decoder(tuple[str, list[tuple[Kind, str, str]]]).decode


class Words:
    """Tells others and hears them; what is said while nobody listens is lost."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._name = secrets.token_hex(8)
        self._channel = f"{PREFIX}told:{engine.target.database}"
        self._told: set[QueueKey] = set()
        self._hint: Hint | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def tell(self, key: QueueKey) -> None:
        if not self._told and not self._closed:
            self._loop.call_later(GATHER_S, self._publish)
        self._told.add(key)

    def _publish(self) -> None:
        told, self._told = self._told, set()
        if self._closed:
            return
        try:
            words = _ENCODE((self._name, list(told)))
            sent = self._engine.command("PUBLISH", self._channel, words)
        except (Unavailable, ValueError):
            return  # those who wait look again anyway
        sent.add_done_callback(lambda done: done.cancelled() or done.exception())

    def hear(self, hint: Hint) -> None:
        self._hint = hint
        if self._task is None:
            self._task = self._loop.create_task(self._listen())

    def _heard(self, reply: Any) -> None:
        if isinstance(reply, list) and len(reply) == 3 and reply[0] == b"message" and self._hint:
            try:
                name, told = _DECODE(reply[2])
            except msgspec.DecodeError:
                return
            if name != self._name:
                for one in told:
                    self._hint(QueueKey(*one))

    async def _listen(self) -> None:
        while True:
            wire = None
            try:
                wire = await self._subscribed()
                await self._until_closed(wire)
            except Lost as error:
                log.debug("not listening", error=str(error))
            finally:
                if wire is not None:
                    wire.close()
                    await wire.gone.wait()
            await asyncio.sleep(PAUSE_S)

    async def _subscribed(self) -> Wire:
        """A connection that hears what is told, to any server that has slots."""
        engine = self._engine
        masters = engine.masters()
        if not masters:
            raise Lost("there is no server")
        wire = await Wire.connect(
            *masters[0], engine.target.tls, engine.options.timeout_s, self._heard
        )
        commands = [*login_commands(engine.target.login), command("SUBSCRIBE", self._channel)]
        for reply in await wire.ask(*commands, timeout_s=engine.options.timeout_s):
            if isinstance(reply, ReplyError):
                wire.close()
                await wire.gone.wait()
                raise Lost(str(reply))
        return wire

    async def _until_closed(self, wire: Wire) -> None:
        """Ask from time to time whether anybody is there, as long as somebody is."""
        while True:
            done, _ = await asyncio.wait((wire.closed,), timeout=SILENCE_S)
            if done:
                raise Lost(wire.closed.result())
            if self._engine.masters()[:1] and wire.address not in self._engine.masters():
                raise Lost("it is no master any more")
            await wire.ask(command("PING"), timeout_s=self._engine.options.timeout_s)

    async def close(self) -> None:
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
