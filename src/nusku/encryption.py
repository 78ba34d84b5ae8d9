"""Which keys encrypt, and which messages need them: `nusku encryption`."""

import time
from collections import Counter
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from nusku import keys
from nusku.broker import queues
from nusku.broker.pooldocs import Document
from nusku.broker.pools import POOL
from nusku.config import Settings
from nusku.errors import StoreRefused
from nusku.keyring import MARKED, is_encrypted, key_id_of
from nusku.model import QueueKey
from nusku.storage import StoreOptions
from nusku.storage.census import Beginning, census

# Servers notice another file within two seconds; until then they go on to encrypt with the old key.
NOTICED_S = 10


class Use(NamedTuple):
    """Messages of one queue that need a key; ``pool`` is None for the service's own store."""

    key: str
    pool: str | None
    queue: QueueKey
    messages: int


class Key(NamedTuple):
    """A key, by its id. ``encrypts``: what comes; ``decrypts``: only what is there; ``missing``:
    messages need it, and nobody has it.
    """

    id: str
    state: Literal["encrypts", "decrypts", "missing"]
    messages: int


def states(settings: Settings, uses: list[Use]) -> list[Key]:
    """All keys that there are or ought to be; those that there are first, in their order."""
    needed: Counter[str] = Counter()
    for use in uses:
        needed[use.key] += use.messages
    first, *others = keys.known(settings) or ("",)
    found = [Key(first, "encrypts", needed[first])] if first else []
    found += [Key(id_, "decrypts", needed[id_]) for id_ in others]
    present = {one.id for one in found}
    return found + [Key(id_, "missing", n) for id_, n in needed.items() if id_ not in present]


async def uses(settings: Settings) -> list[Use]:
    """Which keys are needed for what, in the service's own store and in all pools.

    Changes nothing, and may be asked beside a server. Reads all messages. Raises StoreRefused,
    Unavailable.
    """
    return (await _look(settings)).uses


class _Seen(NamedTuple):
    """``places``: the pools of queues, by their records; ``moving``: queues on their way."""

    uses: list[Use]
    places: dict[tuple[str, str, str], str | None]
    moving: int


async def _look(settings: Settings) -> _Seen:
    """At one store after the other: what goes from one to another meanwhile may be missed."""
    kinds = (POOL, "queue", "topic")
    own = await census(settings.store, StoreOptions.of(settings), MARKED, kinds)
    found = _uses(own.beginnings, None)
    places, moving = {}, 0
    for record, doc in own.records.items():
        if record[0] != POOL:
            queue = msgspec.json.decode(doc, type=queues.Document)
            places[record] = queue.pool
            moving += queue.moving is not None
            continue
        pool = msgspec.json.decode(doc, type=Document)
        if pool.state != "gone":
            options = StoreOptions.of(settings, pool.options)
            there = await census(pool.uri, options, MARKED, ())
            found += _uses(there.beginnings, record[2])
    return _Seen(found, places, moving)


async def retire(settings: Settings, id_: str) -> str:
    """Remove a key that no message needs from the key file; say what was done.

    Raises StoreRefused if one does, or the key is not there, or encrypts what comes, or a queue goes
    to another pool meanwhile. All is counted twice, since messages may be replayed from where they
    are still to be counted to where they were.
    """
    known = keys.known(settings)
    if id_ not in known:
        raise StoreRefused(f"there is no key {id_}")
    if id_ == known[0]:
        raise StoreRefused(f"key {id_} encrypts what comes; rotate first")
    path = None if settings.encryption_keys else keys.key_file(settings)
    if path is not None and _age_s(path) < NOTICED_S:
        raise StoreRefused(
            f"the keys were changed just now; a server may not know yet, so wait {NOTICED_S} seconds"
        )
    first = await _look(settings)
    _refuse_if_needed(first, id_)
    second = await _look(settings)
    _refuse_if_needed(second, id_)
    there = first.places.keys() & second.places.keys()
    moved = any(first.places[queue] != second.places[queue] for queue in there)
    if first.moving or second.moving or moved:
        raise StoreRefused("queues are on their way between pools; try again when they are there")
    if path is None:
        return f"no message needs the key {id_}: remove it from encryption_keys"
    keys.retire(path, id_)
    return f"removed the key {id_}, which no message needed"


def _refuse_if_needed(seen: _Seen, id_: str) -> None:
    if needed := sum(use.messages for use in seen.uses if use.key == id_):
        raise StoreRefused(f"{needed} messages need the key {id_}")


def _uses(beginnings: list[Beginning], pool: str | None) -> list[Use]:
    return [
        Use(key_id_of(one.bytes), pool, one.key, one.messages)
        for one in beginnings
        if is_encrypted(one.bytes)
    ]


def _age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime
