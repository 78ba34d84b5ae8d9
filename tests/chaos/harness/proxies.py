"""TCP proxies between nodes and their store, and between a store and its replica.

They reset connections, lose requests or replies, swallow everything in silence, leave one side open
that the other has left, or hold back what goes to a replica. A thread of its own carries them, so
that they work before and after the event loop of a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

Address = tuple[str, int]
Result = TypeVar("Result")

PIECE = 65536  # bytes read at once


class Switchboard:
    """A context manager; every proxy opened on it is closed with it."""

    def __init__(self, seed: int = 1) -> None:
        self.rng = random.Random(f"{seed}/proxies")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._proxies: list[Proxy] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for proxy in self._proxies:
            self._run(proxy.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def open(self, target: Address) -> Proxy:
        """A proxy that forwards to `target`, at an address of its own."""
        proxy = Proxy(target, self.rng, self._loop)
        self._run(proxy.listen())
        self._proxies.append(proxy)
        return proxy

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


class Link:
    """One connection through a proxy: `near` is who connected, `far` is the target."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.near = near
        self.far = far
        self.silent = False  # what comes is swallowed, ends included
        self.replicates = False  # a Redis replica is at the near end

    def abort(self) -> None:
        """Reset both ends."""
        _reset(self.near)
        _reset(self.far)


class Proxy:
    """Forwards connections to `target`. All methods may be called from any thread."""

    def __init__(
        self, target: Address, rng: random.Random, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.address: Address = ("", 0)
        self.target = target
        self.lose_request = 0.0  # odds that a piece is lost on its way there, and its connection
        self.lose_reply = 0.0  # the same on its way back: what was asked for has been done
        self.lost = 0  # pieces
        self.passed = 0  # connections
        self._rng = rng
        self._loop = loop
        self._server: asyncio.Server | None = None
        self._links: set[Link] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._held: Callable[[Link], bool] = _none  # whose replies are held back
        self._change = asyncio.Event()
        self._open = True

    @property
    def port(self) -> int:
        return self.address[1]

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = self._server.sockets[0].getsockname()[:2]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for link in list(self._links):
            link.abort()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def links(self) -> int:
        """How many connections there are."""
        return len(self._links)

    def refuse(self) -> None:
        """Nobody gets through any more: connections are reset, and new ones at once."""
        self._open = False
        self.cut()

    def accept(self) -> None:
        """Undo `refuse`."""
        self._open = True

    def cut(self, share: float = 1.0) -> None:
        """Reset this share of the connections, chosen at random."""
        self._each(share, Link.abort)

    def silence(self, share: float = 1.0) -> None:
        """Swallow whatever comes from either end, and that an end was closed."""
        self._each(share, _silence)

    def abandon(self, share: float = 1.0) -> None:
        """Reset the near ends; the target is not told."""
        self._each(share, _abandon)

    def hang_up(self) -> None:
        """End what was silenced or abandoned."""
        self._each(1.0, lambda link: link.abort() if link.silent else None)

    def hold(self, whose: Callable[[Link], bool] | None = None) -> None:
        """From now on nothing comes back from the target, for these links; but nothing is lost."""
        self._held = whose or _all

    def flow(self) -> None:
        """Undo `hold`, and forward what was held back."""
        self._held = _none
        self._loop.call_soon_threadsafe(self._tell)

    def drop(self) -> None:
        """Undo `hold`, and lose what was held back."""
        held = self._held
        self._each(1.0, lambda link: link.abort() if held(link) else None)
        self.flow()

    def _each(self, share: float, do: Callable[[Link], None]) -> None:
        def carry_out() -> None:
            for link in list(self._links):
                if share >= 1 or self._rng.random() < share:
                    do(link)
            self._tell()

        self._loop.call_soon_threadsafe(carry_out)

    def _tell(self) -> None:
        """Wake those who hold something back, so that they look again."""
        self._change.set()
        self._change = asyncio.Event()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not self._open:
                raise ConnectionRefusedError
            back, far = await asyncio.open_connection(*self.target)
        except OSError:
            _reset(writer)
            return
        link = Link(writer, far)
        self._links.add(link)
        self.passed += 1
        for pump in (self._there(link, reader), self._back(link, back)):
            task = asyncio.create_task(pump)
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _there(self, link: Link, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(PIECE):
                if link.silent:
                    continue
                if b"PSYNC" in data:
                    link.replicates = True
                if self._rng.random() < self.lose_request:
                    self.lost += 1
                    break
                link.far.write(data)
                await link.far.drain()
        self._ended(link)

    async def _back(self, link: Link, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(PIECE):
                while self._held(link) and not link.near.is_closing():
                    await self._change.wait()
                if link.silent:
                    continue
                if self._rng.random() < self.lose_reply:
                    self.lost += 1
                    break
                link.near.write(data)
                await link.near.drain()
        self._ended(link)

    def _ended(self, link: Link) -> None:
        """One end has closed."""
        if not link.silent or (link.near.is_closing() and link.far.is_closing()):
            link.abort()
            self._links.discard(link)


def _reset(end: asyncio.StreamWriter) -> None:
    """Close it so that its peer gets an error, not merely an end."""
    if not end.is_closing():
        raw: socket.socket = end.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.transport.abort()


def _silence(link: Link) -> None:
    link.silent = True


def _abandon(link: Link) -> None:
    link.silent = True
    _reset(link.near)


def _all(link: Link) -> bool:
    return True


def _none(link: Link) -> bool:
    return False
