"""A request that may take long, and a client that may hang up meanwhile."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from nusku.http.request import ClientGone, Request

T = TypeVar("T")


async def while_connected(req: Request, answer: Awaitable[T]) -> T:
    """The answer; when the client hangs up first, cancel the work. Raises ClientGone."""
    req.waited = True
    work = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(req.gone())
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientGone
        return work.result()
    finally:
        work.cancel()
        gone.cancel()
