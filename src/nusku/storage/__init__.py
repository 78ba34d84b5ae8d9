"""The keeping: two interfaces that every backend implements, and how one is opened.

A backend is a folder beside this file, a line in :func:`open_store`, and done when
``tests/storage`` passes on it. Promises that hold for every operation:

* It is atomic, and durable when it returns (as the backend is configured to be).
* It reads the store's clock once, inside.
* A message at ``expires_ms`` or later does not exist, whether or not :meth:`MessageStore.expire`
  has run.
* Order: once a reader has seen position n, no smaller one appears later in that queue.
* It raises :class:`Stale` instead of acting for a queue that was changed since the caller read it,
  and :class:`nusku.errors.Unavailable` when the outcome is unknown or the store is out of order.

A deadline (the end of a message, claim or delay) may be rounded up by a backend, by at most
``TICK_MS``.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from nusku.clock import Clock
from nusku.config import masked
from nusku.errors import StoreRefused
from nusku.metrics import Metrics
from nusku.model import (
    Claim,
    Claimed,
    Counts,
    Draft,
    Found,
    Kind,
    Occupied,
    QueueKey,
    QueueRef,
    Record,
)

TICK_MS = 100


class Stale(Exception):
    """The queue was deleted, re-created, or its options changed: read it again."""


class Taken(Exception):
    """Another record has the name that has to be unique."""


class Removal(Enum):
    """Which messages :meth:`MessageStore.remove` may remove."""

    UNCLAIMED = "unclaimed"
    HELD = "held"
    ANY = "any"


class Removed(Enum):
    """What became of one message that was to be removed."""

    GONE = "gone"  # removed, or it was not there
    UNCLAIMED = "unclaimed"  # nobody holds it, though a claim was named
    HELD_BY_OTHER = "held by other"  # a live claim that was not named
    CLAIM_UNKNOWN = "claim unknown"  # held by another, and the claim that was named is not live


class MessageStore(Protocol):
    """The data plane: messages and claims.

    Positions that don't exist are passed over by every operation that takes positions.
    """

    def admit(self, ref: QueueRef) -> Awaitable[None]:
        """Make this generation and version of the queue the current one.

        A new generation starts empty; a new version of the same keeps its messages.
        """

    def add(self, posts: Sequence[tuple[QueueRef, Sequence[Draft]]]) -> Awaitable[list[list[int]]]:
        """Append to one or several queues, all or nothing; return the positions.

        A draft whose ``dedup`` key is present in its queue is not added again: its position is
        that of the message already there. Raises Stale, StoreFull.
        """

    def page(
        self,
        ref: QueueRef,
        after: int,
        limit: int,
        *,
        held: bool = False,
        delayed: bool = False,
        without_client: str | None = None,
    ) -> Awaitable[Found]:
        """Up to ``limit`` messages behind position ``after``, oldest first.

        Free ones; with ``held`` and ``delayed`` those too; without those of one client.
        """

    def get(self, ref: QueueRef, positions: Sequence[int]) -> Awaitable[Found]:
        """Those of these that are alive, in the order asked for."""

    def claim(
        self,
        ref: QueueRef,
        limit: int,
        ttl_s: int,
        grace_s: int,
        max_count: int | None = None,
    ) -> Awaitable[Claimed]:
        """Hold up to ``limit`` free messages, oldest first, for ``ttl_s``.

        (Just after very many lapsed at once, only roughly the oldest: they come back in steps.)

        A message that would expire before the claim ends gets the ttl ``ttl_s + grace_s`` from
        now; others keep theirs. With ``max_count`` claims are counted, and messages already
        claimed that often are not held but reported as spent. Raises Stale.
        """

    def claimed(self, ref: QueueRef, claim: str) -> Awaitable[Claim | None]:
        """The live claim and what it holds; None when it is over or holds nothing any more."""

    def renew(
        self,
        ref: QueueRef,
        claim: str,
        ttl_s: int,
        grace_s: int,
        positions: Sequence[int] | None = None,
    ) -> Awaitable[bool]:
        """Restart a live claim with a new ttl (and the rule of :meth:`claim` for lifetimes).

        With ``positions`` only for those it holds among them, under the same claim id. False
        when it is over or holds none (of them).
        """

    def release(
        self,
        ref: QueueRef,
        claim: str,
        delay_s: int = 0,
        positions: Sequence[int] | None = None,
        attributes: Mapping[int, bytes] | None = None,
    ) -> Awaitable[bool]:
        """End a live claim, for all it holds or for some; they are free after the delay.

        Those released that are in ``attributes`` get these.
        """

    def remove(
        self,
        ref: QueueRef,
        positions: Sequence[int],
        removal: Removal,
        claims: Sequence[str] = (),
        *,
        together: bool = False,
    ) -> Awaitable[list[Removed]]:
        """Delete messages and say of each what became of it.

        ``HELD`` removes those held by one of ``claims``. With ``together`` it also removes
        unclaimed ones, but nothing at all when one of the messages is held by a claim not
        named, or a named claim holds none of them (every message that exists is then reported
        as HELD_BY_OTHER).
        """

    def move(
        self,
        ref: QueueRef,
        positions: Sequence[int],
        target: QueueRef,
        ttl_s: int | None,
        attributes: Mapping[int, bytes],
        claim: str | None = None,
    ) -> Awaitable[list[int]]:
        """Move messages to the end of another queue of this store; return their new positions.

        Free ones, and those that ``claim`` holds. Age, count and attributes go with them, save for
        those given here; with ``ttl_s`` they live that long from now, else as long as they had
        left. Raises Stale for the target; a source that is gone has nothing to move.
        """

    def pop(self, ref: QueueRef, limit: int) -> Awaitable[Found]:
        """Take up to ``limit`` free messages, oldest first, for good."""

    def count(self, ref: QueueRef) -> Awaitable[Counts]:
        """How many there are of each kind, and the oldest and newest of all."""

    def volume(self) -> Awaitable[Counts]:
        """The same over all queues and topics of the store, without oldest and newest."""

    def occupied(self, kind: Kind) -> Awaitable[list[Occupied]]:
        """All internal queues of a kind that hold messages, in no order."""

    def clear(self, ref: QueueRef) -> Awaitable[None]:
        """Remove all messages; positions go on from where they were."""

    def drop(self, key: QueueKey) -> Awaitable[None]:
        """Forget the queue, its messages and its generation."""

    def expire(self, limit: int) -> Awaitable[int]:
        """Housekeeping: delete up to ``limit`` dead rows; say how many there were."""


class RecordStore(Protocol):
    """The control plane: small documents by (kind, project, key).

    An ended record counts as absent everywhere, except where ``ended`` ones are asked for.
    """

    def insert(self, record: Record, ttl_s: int | None = None) -> Awaitable[bool]:
        """Store it, to end after ``ttl_s`` if given, unless the key or the unique name is taken.

        Key and name of an ended record: the name is free again, the key is not. Raises StoreFull.
        """

    def update(self, record: Record, ttl_s: int | None = None) -> Awaitable[bool]:
        """Replace the document whose version is the one before ``record.version``.

        The unique name becomes the record's; with ``ttl_s`` its life starts anew, else its end
        stays. Raises Taken.
        """

    def get(
        self, kind: str, project: str, key: str, *, ended: bool = False
    ) -> Awaitable[Record | None]:
        """The record, if there is one."""

    def find(self, kind: str, project: str, unique: str) -> Awaitable[Record | None]:
        """The live record with that unique name."""

    def page(
        self,
        kind: str,
        project: str,
        after: str,
        limit: int,
        where: Callable[[Record], bool] | None = None,
        *,
        parent: str | None = None,
        ended: bool = False,
    ) -> Awaitable[list[Record]]:
        """Up to ``limit`` of a project, or of one parent in it, whose key is greater than
        ``after``, by key; with ``ended`` those too that have ended.
        """

    def count(self, kind: str, project: str) -> Awaitable[int]:
        """How many of a kind a project has."""

    def delete(self, kind: str, project: str, key: str) -> Awaitable[bool]:
        """Remove it, ended or not; False when there was none."""

    def ended(self, kind: str, after: tuple[int, str], limit: int) -> Awaitable[list[Record]]:
        """Housekeeping: those of all projects that have ended, by (ends_ms, key) behind ``after``."""


class Store(NamedTuple):
    """An open store. ``failed`` resolves to a sentence when the store is beyond use."""

    messages: MessageStore
    records: RecordStore
    ping: Callable[[], Awaitable[None]]
    close: Callable[[], Awaitable[None]]
    failed: Awaitable[str]


class StoreOptions(NamedTuple):
    """What a backend may be told by the settings."""

    synchronous: str = "full"
    disk_watermark_bytes: int = 0


def sqlite_path(uri: str) -> Path:
    """The file that a ``sqlite:///relative`` or ``sqlite:////absolute`` URI names."""
    parts = urlsplit(uri)
    if (
        parts.scheme != "sqlite"
        or parts.netloc
        or parts.query
        or parts.fragment
        or len(parts.path) < 2
    ):
        raise StoreRefused(
            f"store {masked(uri)!r} is not one that nusku knows: use sqlite:///relative.db"
            " or sqlite:////absolute/path.db"
        )
    return Path(unquote(parts.path[1:]))


async def open_store(uri: str, clock: Clock, options: StoreOptions, metrics: Metrics) -> Store:
    """Open (creating or migrating where needed) the store that the URI names.

    Raises StoreRefused with a sentence for the operator.
    """
    from nusku.storage import sqlite

    return await sqlite.open_store(sqlite_path(uri), clock, options, metrics)


def inspect_store(uri: str) -> str:
    """A line about the store, read only, also beside a running server. Raises StoreRefused."""
    from nusku.storage import sqlite

    return sqlite.inspect(sqlite_path(uri))


def backup_store(uri: str, target: Path) -> None:
    """Write a consistent copy to a new file, also beside a running server. Raises StoreRefused."""
    from nusku.storage import sqlite

    sqlite.backup(sqlite_path(uri), target)
