"""A server with a fault of ours: `python -m tests.chaos.harness.planted FAULT serve …`.

Each fault breaks one promise, and only while something else goes wrong. A nemesis under which such
a server passes proves nothing: that is its control. Nothing of nusku is changed but in memory.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import stat
import sys
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import nusku.storage.sqlite
from nusku.broker.messages import Messages, NewMessage
from nusku.clock import Clock, steady_clock
from nusku.errors import Unavailable
from nusku.server import Server
from nusku.storage.postgres import work
from nusku.storage.redis import rows
from nusku.storage.sqlite.connection import Connection

LATE_S = 0.05  # between the answer and the commit
GAP_MS = 2000  # longer than a server rests
TOGETHER = 20  # transactions that go by an old time
LOOK_S = 0.01  # between two looks for a free descriptor

Post = Callable[..., Awaitable[list[str]]]
Read = Callable[[int], Awaitable[Sequence[NewMessage]]]


def answer_early() -> None:
    """SQLite: success is told before it is true."""
    commit = Connection._finish

    def finish(self: Connection, batch: list[Any]) -> None:
        told = [one for one in batch if one.error is None]
        for one in told:
            self._loop.call_soon_threadsafe(_tell, one.future, one.result)
        time.sleep(LATE_S)
        commit(self, batch)

    def answer(self: Connection, batch: list[Any]) -> None:
        answered(self, [one for one in batch if one.error or not one.future.done()])

    answered = Connection._answer
    _replace(Connection, "_finish", finish)
    _replace(Connection, "_answer", answer)


def _tell(future: Any, result: object) -> None:
    if not future.done():
        future.set_result(result)


def stale_clock() -> None:
    """SQLite: when it has stood still, some transactions go by the time of before."""

    def make() -> Clock:
        clock = steady_clock()
        now, late = clock(), 0

        def then() -> int:
            nonlocal now, late
            read = clock()
            if read - now > GAP_MS and not late:
                late = TOGETHER
            late = max(late - 1, 0)
            now = now if late else read
            return now

        return then

    _replace(nusku.storage.sqlite, "steady_clock", make)


def wall_clock() -> None:
    """SQLite: lives and claims are read off the wall."""
    _replace(nusku.storage.sqlite, "steady_clock", lambda: lambda: time.time_ns() // 1_000_000)


def post_again() -> None:
    """What had no answer from the store is posted once more."""

    async def post(original: Post, self: Messages, ctx: Any, key: Any, read: Read) -> list[str]:
        once = _remembered(read)
        try:
            return await original(self, ctx, key, once)
        except Unavailable:
            return await original(self, ctx, key, once)

    _wrap_post(post)


def be_optimistic() -> None:
    """What the store did not take is answered as if it had."""

    async def post(original: Post, self: Messages, ctx: Any, key: Any, read: Read) -> list[str]:
        once = _remembered(read)
        try:
            return await original(self, ctx, key, once)
        except Unavailable:
            return [uuid.uuid4().hex for _ in await once(1 << 20)]

    _wrap_post(post)


def _wrap_post(wrapper: Callable[..., Awaitable[list[str]]]) -> None:
    original = Messages.post

    @functools.wraps(original)
    async def post(self: Messages, *rest: Any) -> list[str]:
        return await wrapper(original, self, *rest)

    _replace(Messages, "post", post)


def _remembered(read: Read) -> Read:
    """Reads once, and returns the same again."""
    found: list[Sequence[NewMessage]] = []

    async def once(most: int) -> Sequence[NewMessage]:
        if not found:
            found.append(await read(most))
        return found[0]

    return once


def end_abruptly() -> None:
    """SIGTERM ends it at once, whoever waits for an answer."""
    _replace(Server, "handle_exit", lambda *_: os._exit(0))


def go_deaf() -> None:
    """It stops listening for ever when it once has no descriptor left."""

    def look() -> None:
        while True:
            time.sleep(LOOK_S)
            try:
                os.close(os.dup(0))
            except OSError as error:
                if error.errno == errno.EMFILE:
                    _stop_listening()
                    return

    threading.Thread(target=look, daemon=True).start()


def _stop_listening() -> None:
    for number in range(256):
        try:
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
        except OSError:
            continue
        one = socket.socket(fileno=number)
        if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            one.shutdown(socket.SHUT_RDWR)
        one.detach()


def trust_the_disk() -> None:
    """PostgreSQL, Redis: nobody compares a body with its checksum."""
    _replace(work, "crc32", lambda body: _Anything())
    _replace(rows, "crc32", lambda body: _Anything())


class _Anything(int):
    """Equal to every checksum."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    def __sub__(self, other: int) -> _Anything:
        return self

    __hash__ = int.__hash__


def _replace(where: Any, name: str, what: object) -> None:
    assert hasattr(where, name), f"{where} has no {name} any more"
    setattr(where, name, what)


FAULTS: dict[str, Callable[[], None]] = {
    "answers-early": answer_early,
    "stale-clock": stale_clock,
    "wall-clock": wall_clock,
    "posts-again": post_again,
    "optimist": be_optimistic,
    "ends-abruptly": end_abruptly,
    "goes-deaf": go_deaf,
    "trusts-the-disk": trust_the_disk,
}


if __name__ == "__main__":
    FAULTS[sys.argv.pop(1)]()
    from nusku.cli import main

    main()
