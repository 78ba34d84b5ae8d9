"""`nusku pool drain`: asks a server, step by step, to bring the queues of a pool elsewhere."""

import asyncio
from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import quote

import aiohttp
import msgspec

STEP_TIMEOUT_S = 120.0
AGAIN_S = 1.0  # after a server that could not answer just now
ATTEMPTS = 30  # of one step, while servers come and go


class Progress(msgspec.Struct, frozen=True):
    """What a server says after a step."""

    queues_left: int
    messages_left: int
    moved_queues: int
    moved_messages: int


class Refused(Exception):
    """The server will not do it; says why."""


class Moved(NamedTuple):
    """What was moved by all steps together."""

    queues: int
    messages: int


async def drain(
    url: str, pool: str, headers: Mapping[str, str], progress: Callable[[Progress], None]
) -> Moved:
    """Drain a pool; ``progress`` is told after each step. Raises Refused."""
    path = f"{url.rstrip('/')}/v2/pools/{quote(pool, safe='')}/drain"
    timeout = aiohttp.ClientTimeout(total=STEP_TIMEOUT_S)
    queues = messages = 0
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        while True:
            step = await _step(session, path)
            queues += step.moved_queues
            messages += step.moved_messages
            progress(step)
            if not (step.queues_left or step.messages_left):
                return Moved(queues, messages)
            if not step.moved_queues:
                await asyncio.sleep(AGAIN_S)  # notices that are still to be worked off, say


async def _step(session: aiohttp.ClientSession, path: str) -> Progress:
    """One step. A repeated one does no harm, so it is repeated while servers come and go."""
    why = ""
    for _ in range(ATTEMPTS):
        try:
            async with session.post(path) as answer:
                body = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            why = f"{path} cannot be reached: {error}"
        else:
            if answer.status == 200:
                return msgspec.json.decode(body, type=Progress)
            why = f"the server answered {answer.status}: {_detail(body)}"
            if answer.status < 500:
                break
        await asyncio.sleep(AGAIN_S)
    raise Refused(why)


def _detail(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body)["description"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
