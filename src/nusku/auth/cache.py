"""Answers to the question whose token this is: kept for a while, and asked for once at a time."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from hashlib import sha256
from typing import NamedTuple, TypeVar

from nusku.auth.scheme import Refused
from nusku.errors import Unavailable
from nusku.model import Caller

K = TypeVar("K")
V = TypeVar("V")

KEPT_MAX = 20_000  # callers, and as many refusals
PENDING_MAX = 1000  # questions at a time, from where on only those seen before are asked for
TOO_MANY = "Too many tokens are being looked at."
REFUSED_S = 10.0  # for which a refusal is kept: somebody may try the same wrong token all the time


class _Known(NamedTuple):
    caller: Caller
    since_s: float
    until_s: float


class _Void(NamedTuple):
    why: str
    since_s: float
    until_s: float


class Callers:
    """Whose tokens are known, by hashes of the tokens.

    What is known holds for ``keep_s``, but never longer than the token itself. A clock that is set
    back makes it forget. To be used from one event loop. ``now_s`` is the wall clock.
    """

    def __init__(self, keep_s: float, now_s: Callable[[], float] = time.time) -> None:
        self._keep_s = keep_s
        self._now_s = now_s
        self._known: dict[bytes, _Known] = {}
        self._void: dict[bytes, _Void] = {}
        self._pending: dict[bytes, asyncio.Task[Caller]] = {}

    def known(self, token: str) -> Caller | None:
        """Whose token this is, as far as it was asked before."""
        found = self._known.get(sha256(token.encode()).digest())
        if found is not None and found.since_s <= self._now_s() < found.until_s:
            return found.caller
        return None

    def seen(self, token: str) -> bool:
        """Whether this was somebody's token when it was last asked for, however long ago."""
        return sha256(token.encode()).digest() in self._known

    async def ask(self, token: str, question: Callable[[str], Awaitable[Caller]]) -> Caller:
        """Whose token this is, by asking, even if it is known. Who asks at the same time shares
        the answer.

        Raises what the question does; Refused also from memory; Unavailable when there are too many
        questions.
        """
        key = sha256(token.encode()).digest()
        void = self._void.get(key)
        if void is not None and void.since_s <= self._now_s() < void.until_s:
            raise Refused(void.why)
        task = self._pending.get(key)
        if task is None:
            if len(self._pending) >= PENDING_MAX and key not in self._known:
                raise Unavailable(TOO_MANY)
            # A task of its own: whoever asked first may be cancelled while others wait.
            task = asyncio.create_task(self._answer(key, token, question))
            self._pending[key] = task
            task.add_done_callback(lambda done: self._done(key, done))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise Unavailable("The service is stopping.") from None
            raise

    async def _answer(
        self, key: bytes, token: str, question: Callable[[str], Awaitable[Caller]]
    ) -> Caller:
        since_s = self._now_s()
        try:
            caller = await question(token)
        except Refused as refused:
            why = str(refused)
        else:
            if self._now_s() < caller.expires_s:
                until_s = min(since_s + self._keep_s, caller.expires_s)
                _put(self._known, key, _Known(caller, since_s, until_s))
                return caller
            why = "expired"
        self._known.pop(key, None)
        _put(self._void, key, _Void(why, since_s, since_s + REFUSED_S))
        raise Refused(why)

    def _done(self, key: bytes, task: asyncio.Task[Caller]) -> None:
        del self._pending[key]
        if not task.cancelled():
            task.exception()  # nobody else may be there to look at it

    async def close(self) -> None:
        """End the questions that are under way."""
        for task in list(self._pending.values()):
            task.cancel()
            with suppress(asyncio.CancelledError, Refused, Unavailable):
                await task
        self._known.clear()


def _put(kept: dict[K, V], key: K, value: V) -> None:
    """Add it; of too many the oldest goes."""
    kept.pop(key, None)
    kept[key] = value
    if len(kept) > KEPT_MAX:
        del kept[next(iter(kept))]
