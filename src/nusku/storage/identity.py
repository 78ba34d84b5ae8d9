"""What a store is recognised by, wherever it is found. A copy of it has the same."""

import msgspec

from nusku.model import Record
from nusku.storage import RecordStore

IDENTITY = "identity"  # the kind and the key of the record


async def identity(records: RecordStore) -> str | None:
    """The store's identity; None if it has none yet."""
    record = await records.get(IDENTITY, "", IDENTITY)
    return None if record is None else msgspec.json.decode(record.doc, type=str)


async def identity_of(records: RecordStore, new: str) -> str:
    """The store's identity; ``new`` becomes it if there is none yet."""
    found = await identity(records)
    if found is None:
        await records.insert(Record(IDENTITY, "", IDENTITY, msgspec.json.encode(new)))
        found = await identity(records)
    return found or new
