"""Moving in from Zaqar: `nusku import-zaqar`. Like a transport that asks instead of being asked."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from nusku import keys
from nusku.addresses import Addresses
from nusku.auth import Trusts
from nusku.broker import Broker, Pools
from nusku.broker.arrivals import Arrivals
from nusku.config import Settings
from nusku.metrics import Metrics
from nusku.storage import Store, StoreOptions, open_store
from nusku.zaqar.importing import Importer, Origin, Summary
from nusku.zaqar.source import ZaqarError

__all__ = ["Origin", "Summary", "ZaqarError", "bring", "forget"]


class _Here(NamedTuple):
    """Where things are brought to."""

    broker: Broker
    arrivals: Arrivals


async def bring(
    settings: Settings,
    origin: Origin,
    progress: Callable[[int, int], None] = lambda seen, whole: None,  # noqa: ARG005
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Summary:
    """Bring over to the store of the settings what a Zaqar shows, and has not been brought before.

    Raises ZaqarError, StoreRefused and NuskuError; what has come until then need not come again.
    """
    if origin.token and len(origin.projects) > 1:
        raise ZaqarError(
            "a token is for one project, whatever --project says: bring one after the other"
        )
    async with _opened(settings) as here:
        importer = Importer(here.broker, here.arrivals, progress, pause)
        await importer.run(origin)
        return importer.summary


async def forget(settings: Settings, projects: Sequence[str]) -> int:
    """Forget what was brought to these projects; say how many things that were."""
    async with _opened(settings) as here:
        return sum([await here.arrivals.forget(project) for project in projects])


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[_Here]:
    """The store, and the broker on it as a server would have it."""

    async def open_pool(uri: str, given: Mapping[str, Any]) -> Store:
        return await open_store(uri, None, StoreOptions.of(settings, given), Metrics())

    own = await open_store(settings.store, None, StoreOptions.of(settings), Metrics())
    rng = random.SystemRandom()
    pools, trusts = Pools(own, open_pool, settings, rng), Trusts(settings)
    try:
        addresses = Addresses(settings, own=[(settings.host, settings.port)])
        broker = Broker(
            pools,
            settings,
            Metrics(),
            rng,
            signing_key="",
            trusts=trusts,
            addresses=addresses,
            ring=keys.ring(settings),
        )
        yield _Here(broker, Arrivals(pools, broker.queues, broker.codec, settings, addresses, rng))
    finally:
        await trusts.close()
        await pools.close()
        await own.close()
