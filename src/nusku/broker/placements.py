"""Which queues are placed in a pool: an index beside the records of the queues.

A queue's own record says where it is. The index is written before and cleaned up after it, so it
names every queue of a pool, and for a moment, or after a crash, one that is no longer there. Each
time that a queue comes to a pool it gets an entry of its own, so that who tidies up late does not
remove that of a queue which has come back.
"""

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from nusku.model import Kind, QueueKey, QueueRef, Record
from nusku.storage import RecordStore

KIND = "placement"
_Key = tuple[Kind, str, str]
ENTRIES_MAX = 100  # of one queue in one pool that are looked at in one step


class Placed(NamedTuple):
    """A queue that may be in a pool; ``id`` is the place of the entry among those of the pool."""

    id: str
    key: QueueKey


class Entry(NamedTuple):
    """One time that a queue came to a pool."""

    id: str
    generation: str
    age_ms: int


class Placements:
    """The index."""

    def __init__(self, records: RecordStore) -> None:
        self._records = records

    async def note(self, pool: str, ref: QueueRef) -> None:
        """The queue is about to be in this pool, under this version or a later one."""
        doc = msgspec.json.encode(ref.key)
        id_ = f"{_prefix(pool, ref.key)}{ref.generation}.{ref.version}"
        await self._records.insert(Record(KIND, "", id_, doc, parent=pool))

    async def of(self, pool: str, key: QueueKey) -> list[Entry]:
        """The entries of a queue in a pool."""
        prefix = _prefix(pool, key)
        records = await self._records.page(KIND, "", prefix, ENTRIES_MAX, parent=pool)
        return [
            Entry(r.key, r.key.removeprefix(prefix).partition(".")[0], r.read_ms - r.created_ms)
            for r in records
            if r.key.startswith(prefix) and _key(r.doc) == key
        ]

    async def forget(self, entries: Iterable[Entry]) -> None:
        """Remove these. To be seen before, and not after, it is known that the queue is gone."""
        for entry in entries:
            await self._records.delete(KIND, "", entry.id)

    async def page(self, pool: str, after: str, limit: int) -> list[Placed]:
        """Up to ``limit`` entries of a pool whose id is greater than ``after``."""
        records = await self._records.page(KIND, "", after, limit, parent=pool)
        return [Placed(r.key, _key(r.doc)) for r in records]


def _prefix(pool: str, key: QueueKey) -> str:
    return f"{pool}/{key.kind}/{key.name}/{key.project}/"


def _key(doc: bytes) -> QueueKey:
    kind, project, name = msgspec.json.decode(doc, type=_Key)
    return QueueKey(kind, project, name)
