"""What became of the latest attempts at each subscription: for people to look at.

Written behind, once a second at most: a crash loses the last second of it, never a delivery.
"""

import asyncio
from collections import deque

import msgspec

from nusku.model import Record
from nusku.storage import RecordStore

KIND = "attempts"
KEPT = 20  # attempts of a subscription
KEPT_S = 30 * 86_400  # after the last attempt


class Attempt(msgspec.Struct, frozen=True, omit_defaults=True):
    """One attempt at a delivery. ``outcome`` is delivered, failed (tried again) or refused."""

    time_ms: int
    outcome: str
    reason: str = ""
    status: int | None = None
    duration_ms: float = 0.0
    detail: str = ""


class History(msgspec.Struct, frozen=True):
    """How many deliveries succeeded, and the latest attempts, newest first."""

    delivered: int = 0
    attempts: list[Attempt] = []


class _Unwritten:
    """What happened since the last time that it was written."""

    def __init__(self) -> None:
        self.delivered = 0
        self.attempts: deque[Attempt] = deque(maxlen=KEPT)

    def on(self, history: History) -> History:
        # Attempts that are under way together are noted as they end, not as they began.
        attempts = sorted([*self.attempts, *history.attempts], key=lambda a: -a.time_ms)
        return History(history.delivered + self.delivered, attempts[:KEPT])

    def before(self, newer: "_Unwritten") -> "_Unwritten":
        """Both together."""
        both = _Unwritten()
        both.delivered = self.delivered + newer.delivered
        both.attempts.extend([*newer.attempts, *self.attempts][:KEPT])
        return both


class Journal:
    """Histories by project and subscription."""

    def __init__(self, records: RecordStore) -> None:
        self._records = records
        self._unwritten: dict[tuple[str, str], _Unwritten] = {}
        self._lock = asyncio.Lock()  # lest a reader count what is just being written twice

    def note(self, project: str, subscription: str, attempt: Attempt, *, counts: bool) -> None:
        """An attempt was made; ``counts``: it is a delivery if it succeeded."""
        entry = self._unwritten.get((project, subscription))
        if entry is None:
            entry = self._unwritten[project, subscription] = _Unwritten()
        entry.attempts.appendleft(attempt)
        entry.delivered += counts and attempt.outcome == "delivered"

    async def read(self, project: str, subscription: str) -> History:
        """What is known."""
        async with self._lock:
            record = await self._records.get(KIND, project, subscription)
            history = msgspec.json.decode(record.doc, type=History) if record else History()
            entry = self._unwritten.get((project, subscription))
            return entry.on(history) if entry else history

    async def write(self) -> None:
        """Write what is unwritten. What cannot be written stays so."""
        for key in list(self._unwritten):
            async with self._lock:
                entry = self._unwritten.pop(key, None)
                if entry is None:
                    continue
                try:
                    await self._write(*key, entry)
                except BaseException:
                    newer = self._unwritten.get(key)
                    self._unwritten[key] = entry.before(newer) if newer else entry
                    raise

    async def _write(self, project: str, subscription: str, entry: _Unwritten) -> None:
        while True:  # until no other node wrote in between
            found = await self._records.get(KIND, project, subscription, ended=True)
            history = msgspec.json.decode(found.doc, type=History) if found else History()
            doc = msgspec.json.encode(entry.on(history))
            if found is None:
                if await self._records.insert(Record(KIND, project, subscription, doc), KEPT_S):
                    return
            elif found.ends_ms is not None and found.ends_ms <= found.read_ms:
                await self._records.delete(KIND, project, subscription)
            elif await self._records.update(
                msgspec.structs.replace(found, doc=doc, version=found.version + 1), KEPT_S
            ):
                return

    async def forget(self, project: str, subscription: str) -> None:
        """The subscription is no more."""
        async with self._lock:  # or what is just being written would come after this
            self._unwritten.pop((project, subscription), None)
            await self._records.delete(KIND, project, subscription)

    async def sweep(self, limit: int) -> int:
        """Housekeeping: drop histories that are too old; say how many there were."""
        async with self._lock:
            ended = await self._records.ended(KIND, (0, ""), limit)
            for record in ended:
                await self._records.delete(KIND, record.project, record.key)
        return len(ended)
