"""F-21: the reply is lost after the commit. A proxy in between cuts the way back."""

from __future__ import annotations

import asyncio
import contextlib
import random

from tests.chaos.harness.client import Target
from tests.chaos.harness.nemesis.base import Nemesis
from tests.chaos.harness.report import Verdict
from tests.chaos.harness.stage import Stage

SHARE = 0.1  # of replies that are lost while it strikes
LASTS = 1.5  # s


class Proxy:
    """Forwards connections to `target`; drops a reply, and its connection, with odds `loss`.

    If it `repeats`, it then asks once more: what nobody between client and server may do.
    """

    def __init__(self, target: Target, rng: random.Random, *, repeats: bool = False) -> None:
        self._address: tuple[str, int] | None = None
        self.loss = 0.0
        self.lost = 0
        self._repeats = repeats
        self._asked = b""
        self._target = target
        self._rng = rng
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.WriteTransport] = set()
        self._pumps: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> tuple[str, int] | None:
        """None while nobody is there to forward to."""
        return self._address if self._target.address is not None else None

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._address = self._server.sockets[0].getsockname()[:2]

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
                    if self._repeats:
                        await self._ask_again()
                    break
                if not replies:
                    self._asked = data
                sink.write(data)
                await sink.drain()
        for end in ends:
            end.abort()

    async def _ask_again(self) -> None:
        if self._target.address is not None:
            again, writer = await asyncio.open_connection(*self._target.address)
            writer.write(self._asked)
            await again.read(65536)
            writer.transport.abort()


class Replies(Nemesis):
    name = "replies"
    proxy: Proxy

    async def begin(self, stage: Stage) -> None:
        self.proxy = Proxy(stage.server, stage.rng, repeats=not stage.plan.safe)
        await self.proxy.open()
        stage.target = self.proxy

    @classmethod
    def shown(cls, verdict: Verdict) -> bool:
        """Something was done twice."""
        return "R3" in verdict.violations

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
