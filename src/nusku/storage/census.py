"""What the bodies in a store begin with: to be asked of a store that a server uses meanwhile.

An embedded store is one process's, so its file is read beside it; a shared one is opened like by
any other node.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from nusku.metrics import Metrics
from nusku.model import QueueKey
from nusku.storage import SHARED, Stale, Store, StoreOptions, open_store, sqlite_path
from nusku.storage.uri import split

PAGE = 500  # queues, messages and records that are read in one step


class Beginning(NamedTuple):
    """How many messages of a queue have a body that begins so."""

    key: QueueKey
    bytes: bytes
    messages: int


class Census(NamedTuple):
    """All beginnings, and the documents of some records by (kind, project, key)."""

    beginnings: list[Beginning]
    records: dict[tuple[str, str, str], bytes]


async def census(uri: str, options: StoreOptions, length: int, kinds: Sequence[str]) -> Census:
    """Look at the first ``length`` bytes of every body, and at the records of these kinds.

    Of a store in use it is the truth of some moment for each queue. Raises StoreRefused, Unavailable.
    """
    if split(uri).scheme not in SHARED:
        from nusku.storage import sqlite

        return await asyncio.to_thread(sqlite.census, sqlite_path(uri), length, kinds)
    store = await open_store(uri, None, options, Metrics())
    try:
        return Census(await _beginnings(store, length), await _records(store, kinds))
    finally:
        await store.close()


async def _beginnings(store: Store, length: int) -> list[Beginning]:
    found: Counter[tuple[QueueKey, bytes]] = Counter()
    after_queue: QueueKey | None = None
    while holdings := await store.messages.queues(after_queue, PAGE):
        for holding in holdings:
            after = 0
            try:
                while page := await store.messages.dump(holding.ref, after, PAGE):
                    found.update((holding.ref.key, (m.body or b"")[:length]) for m in page)
                    after = page[-1].position
            except Stale:
                continue  # deleted meanwhile, and perhaps made anew
        after_queue = holdings[-1].ref.key
    return [Beginning(key, begin, n) for (key, begin), n in found.items()]


async def _records(store: Store, kinds: Sequence[str]) -> dict[tuple[str, str, str], bytes]:
    found: dict[tuple[str, str, str], bytes] = {}
    for kind in kinds:
        after = (kind, "", "")
        while page := await store.records.dump(after, PAGE):
            found |= {(r.kind, r.project, r.key): r.doc for r in page if r.kind == kind}
            last = page[-1]
            if last.kind != kind:
                break
            after = (last.kind, last.project, last.key)
    return found
