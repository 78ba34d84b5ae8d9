"""Redis and Valkey as a store that many nodes share: one server, one behind sentinels, a cluster.

What an answer is worth is said by :mod:`nusku.storage.redis.promise`, which looks at how the
servers are set up; a store that would lose what it has answered is refused unless that is wanted.

In *replicated* mode an answer is given when the master and so many replicas have the change, so
nothing answered is lost when any one of the servers fails. What two failures at a time may cost:

* The master is lost, and of its replicas one takes its place that has not the last changes: they
  are lost. Sentinel and Redis Cluster prefer the replica that has most, but don't insist on it. It
  can't happen if the setting ``redis_replicas`` is the number of replicas.
* WAIT means that a replica has a change in memory, not on its disk. When the master is lost, or loses
  its power, together with these replicas, what their ``appendfsync`` had not yet written is lost:
  about a second with ``everysec``; nothing with ``always``, unless a replica has just joined and is
  still writing its log anew. (WAITAOF, which Redis 7.2 has, would wait for those disks as well. It is
  not used: with ``everysec`` an answer then takes up to a second.) With ``everysec`` a master that
  loses its power alone, and is back before a replica takes its place, forgets as much.
* A master that is cut off from the others, and does not know yet, can't have its changes replicated,
  so nothing is answered with success there, above all no claim: a message is never held by two. It
  may still answer reads with what it has, until it steps down. With ``min-replicas-to-write 1``
  changes fail at once instead of waiting. (Where so many replicas as are waited for are cut off
  along with it, it goes on, and what it answered is lost when it comes back; but the other side
  answers nothing meanwhile, if it has not as many besides the one that became its master.)

Positions are not given twice: a server that goes on with a lane leaves a gap, so a reader that has
seen a message which was lost before it was answered misses none that come later.
"""

import asyncio

from nusku.clock import Clock
from nusku.config import masked
from nusku.errors import StoreRefused, Unavailable
from nusku.metrics import Metrics
from nusku.storage import Store, StoreOptions
from nusku.storage.redis.engine import Engine
from nusku.storage.redis.keys import SCHEMA, slot_of
from nusku.storage.redis.messages import RedisMessages
from nusku.storage.redis.promise import Broken
from nusku.storage.redis.records import RedisRecords
from nusku.storage.redis.uri import parse
from nusku.storage.redis.wire import Lost
from nusku.storage.redis.words import Words
from nusku.storage.registry import RecordsRegistry

__all__ = ["inspect", "migrate", "open_store"]

VERSION = 1
LOOK_S = 2.0


async def open_store(
    uri: str, clock: Clock | None, options: StoreOptions, metrics: Metrics
) -> Store:
    """See :func:`nusku.storage.open_store`."""
    engine = await _opened(uri, clock, options, metrics)
    try:
        await _mark(uri, engine)
    except BaseException:
        await engine.close()
        raise
    messages, words = RedisMessages(engine), Words(engine)
    comparing = asyncio.ensure_future(messages.busy.keep_comparing())

    async def ping() -> None:
        await asyncio.gather(*(engine.command("PING", at=at) for at in engine.masters()))

    async def close() -> None:
        comparing.cancel()
        await words.close()
        await engine.close()

    records = RedisRecords(engine)
    return Store(
        messages,
        records,
        RecordsRegistry(records),
        ping,
        close,
        asyncio.get_running_loop().create_future(),  # there is nothing that it does not outlive
        engine.promise.guarantee,
        engine.promise.capabilities,
        shared=True,
        tell=words.tell,
        hear=words.hear,
        look_s=LOOK_S,
    )


async def _opened(uri: str, clock: Clock | None, options: StoreOptions, metrics: Metrics) -> Engine:
    engine = Engine(parse(uri), clock, options, metrics)
    try:
        await engine.open()
    except (Lost, Broken) as error:
        await engine.close()
        raise StoreRefused(f"store {masked(uri)}: {error}") from error
    except BaseException:
        await engine.close()
        raise
    return engine


async def _mark(uri: str, engine: Engine) -> bool:
    """Note the version of the layout, and refuse another; whether it was noted just now."""
    slot = slot_of(SCHEMA.encode())
    try:
        found = await engine.command("GET", SCHEMA, slot=slot)
        if found is None:
            await engine.command("SET", SCHEMA, VERSION, slot=slot, writes=True)
    except Unavailable as error:
        raise StoreRefused(f"store {masked(uri)}: {error.detail}") from error
    _compare(uri, found)
    return found is None


def _compare(uri: str, found: bytes | None) -> None:
    if found is not None and found != b"%d" % VERSION:
        raise StoreRefused(
            f"store {masked(uri)}: its layout is of version {found.decode(errors='replace')}, and"
            f" this program knows {VERSION}"
        )


def inspect(uri: str) -> str:
    """A line about the store. It only reads, and keeps no promise of the server's against it."""

    async def look() -> str:
        engine = await _opened(uri, None, StoreOptions(unreliable=True), Metrics())
        try:
            found = await engine.command("GET", SCHEMA, slot=slot_of(SCHEMA.encode()))
            _compare(uri, found)
            counts = await RedisMessages(engine).volume()
            what = "new" if found is None else f"version {VERSION}, {counts.total} messages"
            masters = len(engine.masters())
            return f"{masked(uri)}: {what}, {masters} master(s), {engine.promise.mode}"
        finally:
            await engine.close()

    return asyncio.run(look())


def migrate(uri: str) -> str:
    """Note the version of the layout, if it is not noted yet; say what was done."""

    async def mark() -> str:
        engine = await _opened(uri, None, StoreOptions(unreliable=True), Metrics())
        try:
            new = await _mark(uri, engine)
        finally:
            await engine.close()
        done = "is ready for use" if new else "is up to date"
        return f"{masked(uri)} {done} (version {VERSION})"

    return asyncio.run(mark())
