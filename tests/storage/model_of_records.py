"""What a record store must answer, in memory and without regard to cost."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from msgspec.structs import replace

from nusku.model import Record
from tests.storage.harness import TurnedClock

Place = tuple[str, str, str]
"""Kind, project and key."""


@dataclass(slots=True)
class Records:
    """All records of a store, by their place; the ended ones among them have lost their names."""

    clock: TurnedClock
    rows: dict[Place, Record] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Record]:
        """As they are read now, by key."""
        for _, row in sorted(self.rows.items(), key=lambda item: item[0][2]):
            yield self.read(row)

    def read(self, row: Record) -> Record:
        return replace(
            row, read_ms=self.clock(), unique=None if self.has_ended(row) else row.unique
        )

    def has_ended(self, row: Record) -> bool:
        return row.ends_ms is not None and row.ends_ms <= self.clock()

    def end(self, ttl_s: int | None) -> int | None:
        return None if ttl_s is None else self.clock() + ttl_s * 1000

    def get(self, place: Place, *, ended: bool = False) -> Record | None:
        row = self.rows.get(place)
        return None if row is None or (self.has_ended(row) and not ended) else self.read(row)

    def find(self, kind: str, project: str, unique: str) -> Record | None:
        return next((one for one in self.all(kind, project) if one.unique == unique), None)

    def all(
        self, kind: str, project: str, parent: str | None = None, *, ended: bool = False
    ) -> list[Record]:
        return [
            one
            for one in self
            if (one.kind, one.project) == (kind, project)
            and parent in {None, one.parent}
            and (ended or not self.has_ended(one))
        ]

    def taken(self, record: Record) -> bool:
        """Whether another live one has its name."""
        if record.unique is None:
            return False
        other = self.find(record.kind, record.project, record.unique)
        return other is not None and other.key != record.key

    def insert(self, record: Record, ttl_s: int | None) -> bool:
        place = (record.kind, record.project, record.key)
        if place in self.rows or self.taken(record):
            return False
        self.rows[place] = replace(record, created_ms=self.clock(), ends_ms=self.end(ttl_s))
        return True

    def update(self, record: Record, ttl_s: int | None) -> bool:
        """False when there is no such version; that the name is taken is the caller's to see."""
        place = (record.kind, record.project, record.key)
        old = self.get(place)
        if old is None or old.version != record.version - 1:
            return False
        end = old.ends_ms if ttl_s is None else self.end(ttl_s)
        self.rows[place] = replace(
            old, doc=record.doc, version=record.version, unique=record.unique, ends_ms=end
        )
        return True

    def delete(self, place: Place, doc: bytes | None = None) -> Record | None:
        row = self.rows.get(place)
        if row is None or doc not in {None, row.doc}:
            return None
        del self.rows[place]
        return self.read(row)

    def dump(self, after: Place, limit: int) -> list[Record]:
        rows = [row for place, row in sorted(self.rows.items()) if place > after]
        return [self.read(row) for row in rows[:limit]]

    def load(self, records: Iterable[Record]) -> None:
        """Who comes with a name takes it from whoever has it."""
        for record in records:
            place = (record.kind, record.project, record.key)
            other = record.unique and self.find(record.kind, record.project, record.unique)
            if other and not self.has_ended(record):
                self.rows[other.kind, other.project, other.key] = replace(other, unique=None)
            self.rows[place] = record

    def ended(self, kind: str, after: tuple[int, str]) -> list[Record]:
        """By (ends_ms, key); those that share both are in no order."""
        found = [one for one in self if one.kind == kind and self.has_ended(one)]
        ranks = [((one.ends_ms or 0, one.key), one) for one in found]
        return [one for rank, one in sorted(ranks, key=lambda pair: pair[0]) if rank > after]
