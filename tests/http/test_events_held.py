"""How much a stream of events holds for a client that reads slowly, and for how long it is open to
one about whom nobody can be asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

from nusku.broker import Broker, View
from nusku.errors import Unavailable
from nusku.http import events
from nusku.http.events import Stream
from nusku.http.request import Request
from nusku.model import Caller, Message, QueueKey

KEY = QueueKey("queue", "project", "q")
MINE, OTHERS = "mine", "somebody else's"


class Follower:
    def __init__(self) -> None:
        self.starts = 0

    def start(self) -> None:
        self.starts += 1

    def stop(self) -> None:
        """It is over."""


@asynccontextmanager
async def opened(
    authentication: Any = None, caller: Caller | None = None
) -> AsyncIterator[tuple[Stream, Follower]]:
    async def gone() -> None:
        await asyncio.Event().wait()

    req = SimpleNamespace(head={}, ctx=SimpleNamespace(caller=caller, client=MINE), gone=gone)
    broker = SimpleNamespace(grants=None, waiting=SimpleNamespace(at_close=set()))
    stream = Stream(cast(Request, req), cast(Broker, broker), authentication, KEY, echo=False)
    follower = Follower()
    stream.begin(cast(Any, follower))
    assert (await anext(stream)).startswith(b"retry: ")
    yield stream, follower
    stream.discard()


def view(bodies: Sequence[bytes], client: str = OTHERS) -> View:
    messages = [
        Message(position, 0, 60, 60_000, 0, client, body) for position, body in enumerate(bodies)
    ]
    return View(KEY, "0" * 16, messages, 0)


def test_small_messages_are_not_held_without_bound() -> None:
    async def scenario() -> None:
        async with opened() as (stream, _):
            taken = 1
            while stream.take(view([b"1"] * 20)):
                taken += 1
            assert taken * 20 * events.MESSAGE_BYTES <= 2 * events.BUFFERED_MAX

    asyncio.run(scenario())


def test_nothing_is_held_of_messages_that_are_left_out() -> None:
    async def scenario() -> None:
        async with opened() as (stream, _):
            for _ in range(1000):
                assert stream.take(view([b"1"] * 20, MINE))
            assert not cast(Any, stream)._views
            stream.take(view([b"2"]))
            assert (await anext(stream)).count(b"data: ") == 1

    asyncio.run(scenario())


def test_what_is_held_is_written_in_pieces_and_then_more_is_taken() -> None:
    async def scenario() -> None:
        async with opened() as (stream, follower):
            number = 20
            while stream.take(view([b'"%s"' % (b"x" * 1000)] * 20)):
                number += 20
            sent = 0
            while sent < number:
                assert follower.starts == 1
                piece = await anext(stream)
                assert len(piece) < events.PIECE_BYTES + 30_000
                sent += piece.count(b"data: ")
            assert follower.starts == 2
            assert stream.take(view([b"1"]))
            assert (await anext(stream)).count(b"data: ") == 1
            assert follower.starts == 2

    asyncio.run(scenario())


def test_a_stream_ends_when_nobody_can_say_for_long_who_reads_it() -> None:
    async def scenario(unsure_max_s: float) -> bool:
        async def nobody(_: object) -> Caller:
            raise Unavailable("Keystone is down.")

        authentication = SimpleNamespace(
            known=lambda _: None, caller=nobody, unsure_max_s=unsure_max_s
        )
        caller = Caller("project", frozenset(), "keystone", expires_s=time.time() + 1000)
        async with opened(authentication, caller) as (stream, _):
            stream.take(view([b"1"]))
            cast(Any, stream)._welcome_until_s = 0.0  # time for a look
            return await anext(stream, b"") != b""

    assert asyncio.run(scenario(60.0))
    assert not asyncio.run(scenario(-1.0))
