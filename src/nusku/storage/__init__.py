"""The keeping: three interfaces that every backend implements, and how one is opened.

A backend is a folder beside this file, named in :func:`_backend`, and done when
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

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, Self
from urllib.parse import unquote

from nusku.clock import Clock
from nusku.config import Settings, masked
from nusku.errors import StoreRefused
from nusku.metrics import Metrics
from nusku.model import (
    Claim,
    Claimed,
    Counts,
    Draft,
    Found,
    Holding,
    Kind,
    Occupied,
    QueueKey,
    QueueRef,
    Record,
    Stored,
    Weight,
)
from nusku.storage.uri import split

TICK_MS = 100
POSITIONS_MAX = 1 << 43  # every position is below
NO_BODIES: Mapping[int, bytes] = MappingProxyType({})
SERVED = ("queue", "topic")  # kinds of queues that the service offers; the others are internal

POSTGRES = frozenset({"postgresql", "postgres"})
REDIS = frozenset({"redis", "rediss", "redis+sentinel", "redis+cluster"})
SHARED = POSTGRES | REDIS  # schemes of stores that many processes may use at a time


class Stale(Exception):
    """The queue was deleted, re-created, or its options changed: read it again."""


class Apart(Exception):
    """The two queues are not kept together, so nothing can be moved between them in one step."""


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


class Admitted(NamedTuple):
    """What :meth:`MessageStore.admit` found: another generation, or the seal on this one (empty
    where it is open).
    """

    other: str | None
    seal: str


class MessageStore(Protocol):
    """The data plane: messages and claims.

    Positions that don't exist are passed over by every operation that takes positions.
    """

    def admit(self, ref: QueueRef) -> Awaitable[Admitted]:
        """Make this version of the queue the current one.

        A queue that the store does not have comes to be, empty and sealed: its record may have been
        deleted just before, so the caller looks once more and then calls :meth:`open`. Otherwise
        neither messages nor seal are touched. An older version than the one that is there changes
        nothing, since it may come from a node that read too early. Nor is anything changed where
        there is another generation: that one is returned, for the caller to find out which of the
        two is to go.
        """

    def open(self, ref: QueueRef, seal: str) -> Awaitable[None]:
        """Break this seal, of a queue that is of exactly this generation and version; else nothing.

        Each seal is another one. So who admitted a queue does not open one of the same name that
        somebody else has admitted since.
        """

    def seal(self, ref: QueueRef) -> Awaitable[None]:
        """From now on everything but ``admit``, ``open``, ``dump``, ``load``, ``queues`` and
        ``drop`` raises Stale for this queue, on every node. ``ref.version`` becomes its version.
        One that is sealed gets a new seal. Raises Stale, and changes nothing, where there is
        another generation or a later version.
        """

    def add(self, posts: Sequence[tuple[QueueRef, Sequence[Draft]]]) -> Awaitable[list[list[int]]]:
        """Append to one or several queues of one :func:`nusku.model.home`, all or nothing.

        Returns the positions. A draft whose ``dedup`` key is present in its queue is not added
        again: its position is that of the message already there. Raises Stale, StoreFull.
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
        bodies: Mapping[int, bytes] = NO_BODIES,
    ) -> Awaitable[list[int]]:
        """Move messages to the end of another queue of this store; return their new positions.

        Free ones, and those that ``claim`` holds. Age, count, attributes and bodies go with them,
        save for those given here by position; with ``ttl_s`` they live that long from now, else as long as they had
        left. Raises Stale for the target, and Apart where the two are of different homes and the
        store keeps those in different places; a source that is gone has nothing to move.
        """

    def pop(self, ref: QueueRef, limit: int) -> Awaitable[Found]:
        """Take up to ``limit`` free messages, oldest first, for good."""

    def count(self, ref: QueueRef) -> Awaitable[Counts]:
        """How many there are of each kind, and the oldest and newest of all."""

    def volume(self) -> Awaitable[Counts]:
        """The same over all queues and topics of the store, without oldest and newest."""

    def occupied(self, kind: Kind) -> Awaitable[list[Occupied]]:
        """All internal queues of a kind that hold messages, in no order."""

    def holdings(self, project: str) -> Awaitable[list[Holding]]:
        """The queues and topics of a project that hold messages, sealed or not, in no order."""

    def weigh(self, ref: QueueRef, after: int, through: int) -> Awaitable[Weight]:
        """The messages behind position ``after``, up to ``through`` or as far as one step looks.

        Sealed or not. Raises Stale for another generation.
        """

    def clear(self, ref: QueueRef) -> Awaitable[None]:
        """Remove all messages; positions go on from where they were."""

    def drop(
        self, ref: QueueRef, *, empty: bool = False, unless_later: bool = False
    ) -> Awaitable[None]:
        """Forget the queue and its messages, if it is of this generation (the version does not
        matter), sealed or not; with ``empty`` only if it holds no messages, with ``unless_later``
        only if it has no later version than this.
        """

    def expire(self, limit: int) -> Awaitable[int]:
        """Housekeeping: delete up to ``limit`` dead rows; say how many there were."""

    # From one store to another

    def queues(self, after: QueueKey | None, limit: int) -> Awaitable[list[Holding]]:
        """Up to ``limit`` queues of all kinds and projects behind ``after``, by key."""

    def dump(
        self, ref: QueueRef, after: int, limit: int, *, bodies: bool = True
    ) -> Awaitable[list[Stored]]:
        """Up to ``limit`` live messages behind position ``after`` as they are, sealed or not.

        Raises Stale for another generation.
        """

    def load(
        self,
        ref: QueueRef,
        next_position: int,
        after: int,
        through: int,
        messages: Sequence[Stored],
    ) -> Awaitable[None]:
        """Between ``after`` (exclusive) and ``through`` (inclusive) the queue holds exactly these.

        A queue that is not there comes to be first, empty and sealed. It goes on with
        ``next_position``, or later if it was further; ``ref.version`` becomes its version. Claims
        keep their ids. Of two messages with one dedup key the one that is loaded keeps it. Messages
        come with bodies. Raises Stale, and changes nothing, where there is another generation or a
        later version: so what a mover that was overtaken still has under way does no harm.
        """


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

    def delete(
        self, kind: str, project: str, key: str, *, doc: bytes | None = None
    ) -> Awaitable[Record | None]:
        """Remove it, ended or not, with ``doc`` only if that is its document; return what was
        removed, None when nothing was.
        """

    def ended(self, kind: str, after: tuple[int, str], limit: int) -> Awaitable[list[Record]]:
        """Housekeeping: those of all projects that have ended, by (ends_ms, key) behind ``after``."""

    # From one store to another

    def dump(self, after: tuple[str, str, str], limit: int) -> Awaitable[list[Record]]:
        """Up to ``limit`` records, ended ones too, by (kind, project, key) behind ``after``."""

    def load(self, records: Sequence[Record]) -> Awaitable[None]:
        """Store these as they are, in place of what has their keys."""


class Entry(NamedTuple):
    """What a registry holds under a name of a table."""

    table: str
    name: str
    value: bytes


class Registry(Protocol):
    """What operators say beside a running service: small values by table and name.

    Several processes may use it at the same time, on an embedded store too. Every operation is
    atomic, a write durable when it returns. All raise Unavailable, and StoreRefused for a file that
    is not a registry.
    """

    def revision(self) -> Awaitable[str]:
        """A text that is another one after each write."""

    def read(self, table: str, name: str) -> Awaitable[bytes | None]:
        """The value; None where there is none."""

    def all(self, table: str) -> Awaitable[dict[str, bytes]]:
        """All values of a table by their names."""

    def write(self, table: str, name: str, value: bytes | None) -> Awaitable[None]:
        """Keep this value, in place of what is there; None removes it."""

    def dump(self) -> Awaitable[list[Entry]]:
        """All there is."""


Hint = Callable[[QueueKey], None]


class Store(NamedTuple):
    """An open store.

    ``failed`` resolves to a sentence when the store is beyond use; a connection that is lost, or
    a database that is away for a while, is no such thing. ``shared`` is true where other processes
    may use the store at the same time. ``tell`` passes on to them, soon and without waiting, that
    a queue has messages to be had; what others say is given to the one function handed to ``hear``.
    As such a word may be lost, those who wait look again every ``look_s`` seconds (None: need
    not). ``guarantee`` says in a sentence what a success answer is worth, ``capabilities``
    are those of contract semantics.md section 7.
    """

    messages: MessageStore
    records: RecordStore
    registry: Registry
    ping: Callable[[], Awaitable[None]]
    close: Callable[[], Awaitable[None]]
    failed: Awaitable[str]
    guarantee: str
    capabilities: tuple[str, ...]
    shared: bool = False
    tell: Hint = lambda key: None  # noqa: ARG005
    hear: Callable[[Hint], None] = lambda told: None  # noqa: ARG005
    look_s: float | None = None


CAPABILITIES = ("FIFO", "CLAIMS", "DURABILITY", "AOD", "HIGH_THROUGHPUT")


class StoreOptions(NamedTuple):
    """What a backend may be told by the settings of the same names."""

    synchronous: str = "full"
    disk_watermark_bytes: int = 0
    listen_uri: str = ""
    connections: int = 4
    timeout_s: float = 10.0
    synchronous_standby: bool = False
    replicas: int = 0
    unreliable: bool = False

    @classmethod
    def of(cls, settings: Settings, instead: Mapping[str, Any] = MappingProxyType({})) -> Self:
        """What the settings say, or ``instead``, by the names of settings.

        No store may take longer than the settings say: leases of quotas go by that.
        """

        def option(name: str) -> Any:
            return instead.get(name, getattr(settings, name))

        return cls(
            option("sqlite_synchronous"),
            option("disk_watermark"),
            option("listen_store"),
            option("store_connections"),
            min(option("store_timeout"), settings.store_timeout),
            option("synchronous_standby"),
            option("redis_replicas"),
            option("unreliable"),
        )


def sqlite_path(uri: str) -> Path:
    """The file that a ``sqlite:///relative`` or ``sqlite:////absolute`` URI names."""
    parts = split(uri)
    if (
        parts.scheme != "sqlite"
        or parts.login
        or parts.hosts
        or parts.query
        or parts.fragment
        or len(parts.path) < 2
    ):
        raise StoreRefused(
            f"store {masked(uri)!r} is not one that nusku knows: use sqlite:///relative.db,"
            " sqlite:////absolute/path.db, postgresql://, redis://, rediss://, redis+sentinel:// or"
            " redis+cluster://"
        )
    return Path(unquote(parts.path[1:]))


def endpoints(uri: str) -> list[tuple[str, int]]:
    """Hosts and ports that the URI of a shared store names; none for an embedded one."""
    parts = split(uri)
    if parts.scheme not in SHARED:
        return []
    usual = 5432 if parts.scheme in POSTGRES else 26379 if "sentinel" in parts.scheme else 6379
    found = []
    for each in parts.hosts.split(","):
        host, colon, port = each.rpartition(":")
        if not colon or not port.isdecimal():
            host, port = each, ""
        found.append((unquote(host).strip("[]"), int(port or usual)))
    return found


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """What imports a library that a plain installation does not have."""
    try:
        yield
    except ModuleNotFoundError as missing:
        raise StoreRefused(
            f"this kind of store takes the library {missing.name}: install nusku[{name}]"
        ) from None


class _Backend(Protocol):
    """What the folder of each kind of store offers."""

    async def open_store(
        self, uri: str, clock: Clock | None, options: StoreOptions, metrics: Metrics
    ) -> Store: ...

    def inspect(self, uri: str) -> str: ...

    def migrate(self, uri: str) -> str: ...


def _backend(uri: str) -> _Backend:
    scheme = split(uri).scheme
    if scheme in POSTGRES:
        with _extra("postgresql"):
            from nusku.storage import postgres

        return postgres
    if scheme in REDIS:
        with _extra("redis"):
            from nusku.storage import redis

        return redis
    from nusku.storage import sqlite

    return sqlite


async def open_store(
    uri: str, clock: Clock | None, options: StoreOptions, metrics: Metrics
) -> Store:
    """Open (creating or migrating where needed) the store that the URI names.

    Without a clock the store goes by its own, which for a shared one is that of its server, so
    that all nodes agree. Raises StoreRefused with a sentence for the operator.
    """
    return await _backend(uri).open_store(uri, clock, options, metrics)


def inspect_store(uri: str) -> str:
    """A line about the store, read only, also beside a running server. Raises StoreRefused."""
    return _backend(uri).inspect(uri)


def migrate_store(uri: str) -> str:
    """Create or bring up to date what the store needs, and say what was done.

    For those whose servers may not do it at their start. Raises StoreRefused.
    """
    return _backend(uri).migrate(uri)


def backup_store(uri: str, target: Path) -> None:
    """Write a consistent copy to a new file, also beside a running server.

    Only of an embedded store: the others have tools of their own. Raises StoreRefused.
    """
    from nusku.storage import sqlite

    if split(uri).scheme in SHARED:
        raise StoreRefused("only an SQLite store is one file; docs/backup.md tells of the others")
    sqlite.backup(sqlite_path(uri), target)
