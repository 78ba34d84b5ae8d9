"""F-21: the reply is lost after the commit. A proxy in between cuts the way back."""

from __future__ import annotations

import asyncio
import contextlib
import random

from tests.chaos.harness.client import Target
from tests.chaos.harness.nemesis.base import Nemesis
from tests.chaos.harness.stage import Stage

SHARE = 0.1  # of replies that are lost while it strikes
LASTS = 1.5  # s


class Proxy:
    """Forwards connections to `target`; drops a reply, and its connection, with odds `loss`."""

    def __init__(self, target: Target, rng: random.Random) -> None:
        self.address: tuple[str, int] | None = None
        self.loss = 0.0
        self.lost = 0
        self._target = target
        self._rng = rng
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.WriteTransport] = set()
        self._pumps: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = self._server.sockets[0].getsockname()[:2]

    async def close(self) -> None:
        """Cut every connection."""
        if self._server is not None:
            self._server.close()
        for end in self._ends:
            end.abort()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._ends.add(writer.transport)
        try:
            if self._target.address is None:
                raise ConnectionRefusedError
            upstream, downstream = await asyncio.open_connection(*self._target.address)
        except OSError:
            writer.transport.abort()
            return
        self._ends.add(downstream.transport)
        ends = (writer.transport, downstream.transport)
        for pump in (
            self._pump(reader, downstream, ends, replies=False),
            self._pump(upstream, writer, ends, replies=True),
        ):
            task = asyncio.create_task(pump)
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        ends: tuple[asyncio.WriteTransport, ...],
        replies: bool,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if replies and self._rng.random() < self.loss:
                    self.lost += 1
                    break
                sink.write(data)
                await sink.drain()
        for end in ends:
            end.abort()


class Replies(Nemesis):
    name = "replies"
    proxy: Proxy

    async def begin(self, stage: Stage) -> None:
        self.proxy = Proxy(stage.server, stage.rng)
        await self.proxy.open()
        stage.target = self.proxy

    async def strike(self, stage: Stage) -> str:
        before = self.proxy.lost
        self.proxy.loss = SHARE
        await asyncio.sleep(LASTS)
        self.proxy.loss = 0.0
        lost = self.proxy.lost - before
        return f"{lost} replies lost" if lost else ""

    async def end(self, stage: Stage) -> None:
        await self.proxy.close()
        stage.target = None
