"""Pools: the stores that queues are spread over, and which queue goes to which.

What pools there are is kept in the service's own store, the catalogue. Nodes look there again when
they use a pool and have not looked for a second. That is often enough where a queue is used, since a
store is never taken from a queue behind its back: its queues are taken out of a pool first, which
every store tells to those who come too late. A store that never had the queue cannot tell them. So
who opens a queue in a store, moves it or deletes it has asked the catalogue in that moment, after the
queue's record was read: see :meth:`Pools.present`.
"""

import asyncio
import math
import random
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from nusku.broker.operation import operation
from nusku.broker.placements import Placed, Placements
from nusku.broker.pooldocs import (
    Document,
    Pool,
    check,
    check_name,
    options_of,
    shown,
    told,
    uri_of,
)
from nusku.broker.poolstores import Open, PoolStores
from nusku.config import Settings, masked
from nusku.errors import (
    Conflict,
    Invalid,
    InvalidPool,
    NotFound,
    NuskuError,
    PoolInUse,
    Unavailable,
)
from nusku.model import Context, Kind, QueueKey, Record
from nusku.storage import SERVED, Stale, Store, Taken
from nusku.storage.identity import identity_of

POOL, FLAVOR = "pool", "flavor"  # kinds of records
LOOK_S = 1.0
SURVEY_PATIENCE_S = 1.0  # for each store, where all are asked for
AT_ONCE = 500  # records read by one step
TOGETHER = 16  # queues taken out of a pool at the same time
ATTEMPTS = 10  # times that a change by somebody else in the meantime is put up with
DRAIN_S = 2.0  # how long one step of draining goes on

Unplace = Callable[[Kind, str, str, str], Awaitable[bool]]


class Survey(NamedTuple):
    """The service's own store, which has no name, and those of all pools by name; and the names of
    pools whose stores cannot be reached now.
    """

    stores: Sequence[tuple[str | None, Store]]
    away: Sequence[str]


class Present(NamedTuple):
    """What the catalogue says of a pool now: its store, and whether queues may come to be there."""

    store: Store
    takes: bool


class Progress(NamedTuple):
    """How far the draining of a pool is: what is left in it, and what this step took out."""

    queues_left: int
    messages_left: int
    moved_queues: int
    moved_messages: int


class _Where(msgspec.Struct, frozen=True):
    """The part of a queue's record that says where the queue is."""

    pool: str | None = None


class Pools:
    """The catalogue of pools, their stores, and what may be done to them.

    ``own`` is the service's own store; ``open_`` opens that of a pool by its URI and options.
    """

    def __init__(self, own: Store, open_: Open, settings: Settings, rng: random.Random) -> None:
        self.own = own
        self._records = own.records
        self._settings = settings
        self._rng = rng
        self.placements = Placements(own.records)
        self._stores = PoolStores(open_, self._opened)
        # For the rest of the broker to say: what is to be done with each store that is opened; how
        # an empty queue (kind, project, name) is taken out of a pool, False if it is not empty;
        # how a pool is emptied for about so many seconds.
        self.on_open: Callable[[Store], None] = lambda store: None  # noqa: ARG005
        self.unplace: Unplace | None = None
        self.drain_step: Callable[[str, float], Awaitable[Progress]] | None = None
        self._known: dict[str, Document] = {}
        self._looked_s = -math.inf  # when the look that was taken in began, or the last one failed
        # Looks are numbered as they begin: the newest, that which was taken in, and the last one
        # that began before this node changed a pool.
        self._look_number = self._look_taken = self._look_before = 0
        self._looking = asyncio.Lock()
        self._changing = asyncio.Lock()

    def _opened(self, store: Store) -> None:
        self.on_open(store)

    # For the rest of the broker

    async def store(self, name: str | None) -> Store:
        """The store of a pool, or the service's own.

        Since a second at most the pool may have got another one. Raises Unavailable when there is
        no such pool or its store cannot be reached.
        """
        if name is None:
            return self.own
        pool = (await self._look()).get(name)
        if pool is None:
            return (await self.present(name)).store  # added by another node just now
        return await self._stores.get(name, pool)

    async def present(self, name: str | None) -> Present:
        """The store that a pool has now, or the service's own, and whether queues may come there.

        Whoever takes the queues out of a pool, to give it another store or to delete it, looks for
        them after the pool says that it takes none. So if this is asked after the record of a queue
        was read which says that it is in the pool, the store is the right one for as long as the
        record has the version that was read. One that comes to be while the pool takes none may be
        overlooked: it is opened by nobody until the pool takes queues again, as :meth:`taking` sees
        to. Raises Unavailable as :meth:`store` does.
        """
        if name is None:
            return Present(self.own, takes=True)
        pool = (await self._newest()).get(name)
        if pool is None:
            raise Unavailable(f"There is no pool {name}.")
        return Present(await self._stores.get(name, pool), pool.state == "open")

    async def taking(self, name: str | None) -> Store:
        """The store that a pool has now, for a queue that stays there and is to be opened again.

        If the queues are being taken out of the pool, that comes to nothing: this one may be one of
        those that were overlooked. Raises Unavailable as :meth:`store` does.
        """
        for _ in range(ATTEMPTS):
            store, takes = await self.present(name)
            if takes or name is None:
                return store
            await self._reopen(name)
        raise Unavailable(f"The queues of the pool {name} are being placed elsewhere.")

    async def known(self, name: str) -> bool:
        """Whether there is such a pool. One that is not was empty when it was deleted."""
        return name in await self._read()

    def opened(self) -> Mapping[str, Store]:
        """The stores that are open now, by the names of their pools."""
        return self._stores.opened()

    async def all(self) -> Survey:
        """The service's own store and those of all pools, opened where need be."""
        pools = await self._look()

        async def one(name: str, pool: Document) -> Store | None:
            try:
                return await self._stores.get(name, pool, SURVEY_PATIENCE_S)
            except Unavailable:
                return None

        found = await asyncio.gather(*(one(*item) for item in pools.items()))
        pairs = list(zip(pools, found, strict=True))
        return Survey(
            [(None, self.own), *((name, store) for name, store in pairs if store is not None)],
            [name for name, store in pairs if store is None],
        )

    async def place(self, project: str, flavor: object, present: str | None = None) -> str | None:
        """Choose where a queue goes: a pool, by weight, or None, the service's own store.

        ``flavor`` is what the queue's metadata say; where the queue is at ``present``, it stays if
        it may. Raises Invalid (no such flavor), Unavailable (no pool takes queues).
        """
        if flavor and not (
            isinstance(flavor, str) and await self._records.get(FLAVOR, project, flavor)
        ):
            raise Invalid(f"_flavor: there is no flavor {flavor!r}.")
        candidates = {
            name: pool.weight
            for name, pool in (await self._read()).items()
            if pool.weight and pool.flavor == (flavor or None) and pool.state == "open"
        }
        if present in candidates:
            return present
        # One that is away just now is passed over if others are not.
        up = {name: weight for name, weight in candidates.items() if not self._stores.down(name)}
        candidates = up or candidates
        if candidates:
            return self._rng.choices(list(candidates), list(candidates.values()))[0]
        if not flavor and self._settings.enable_virtual_pool:
            return None
        of = f" of the flavor {flavor}" if flavor else ""
        raise Unavailable(f"There is no pool{of} that takes queues.")

    async def placed(self, name: str, after: str = "", limit: int = AT_ONCE) -> list[Placed]:
        """Up to ``limit`` queues placed in a pool, by id behind ``after``."""
        return await self.placements.page(name, after, limit)

    async def described(self) -> dict[str, Document]:
        """All pools, by name, in order."""
        return await self._read()

    async def carriers(self, flavor: str) -> dict[str, Document]:
        """The pools of a flavor, by name, in order."""
        return {name: p for name, p in (await self._read()).items() if p.flavor == flavor}

    def capabilities(self, name: str, pool: Document) -> tuple[str, ...]:
        """Those of the pool's store; while that is not open, those that it was added with."""
        store = self._stores.opened().get(name)
        return store.capabilities if store else pool.capabilities

    async def flavored(self, name: str, flavor: str | None) -> None:
        """Give the pool this flavor, or none. Nothing happens when there is no such pool."""

        def change(pool: Document) -> Document:
            return msgspec.structs.replace(pool, flavor=flavor)

        async with self._changing:
            await self._change(name, change)

    async def close(self) -> None:
        """Close the stores of all pools; the service's own is not ours."""
        await self._stores.close()

    # The catalogue

    async def _look(self) -> dict[str, Document]:
        """The pools as they were a second ago, or later."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._looked_s < LOOK_S:
            return self._known
        async with self._looking:  # one looks, and the others take what it has found
            if now_s - self._looked_s < LOOK_S:
                return self._known
            try:
                return await self._newest()
            except Unavailable:
                if not self._known:
                    raise
                # Pools are of use without the catalogue. It is asked again in a second.
                self._looked_s = asyncio.get_running_loop().time()
                return self._known

    async def _newest(self) -> dict[str, Document]:
        """The pools as they are, or as somebody else here has seen them since."""
        before = self._look_number
        while self._look_taken <= before:
            await self._read()
        return self._known

    async def _read(self) -> dict[str, Document]:
        """The pools as they are, by name, in order."""
        began_s = asyncio.get_running_loop().time()
        self._look_number = number = self._look_number + 1
        records: list[Record] = []
        while True:
            after = records[-1].key if records else ""
            page = await self._records.page(POOL, "", after, AT_ONCE)
            records += page
            if len(page) < AT_ONCE:
                break
        pools = {r.key: pool for r in records if (pool := _document(r)).state != "gone"}
        if number > max(self._look_taken, self._look_before):
            self._look_taken, self._looked_s, self._known = number, began_s, pools
            await self._stores.retire(pools)
        return pools

    async def _get(self, name: str) -> tuple[Record | None, Document | None]:
        """The record, and the pool in it if it is not gone."""
        record = await self._records.get(POOL, "", name)
        if record is None:
            return None, None
        pool = _document(record)
        return record, None if pool.state == "gone" else pool

    async def _write(self, name: str, record: Record | None, pool: Document) -> Record | None:
        """Store the next version of a pool; None when somebody else was faster.

        Raises Conflict when another pool has the URI.
        """
        new = Record(
            POOL, "", name, msgspec.json.encode(pool),
            version=record.version + 1 if record else 1,
            unique=pool.uri or None,
        )  # fmt: skip
        try:
            done = await (self._records.update(new) if record else self._records.insert(new))
        except Taken:
            raise _uri_taken(pool) from None
        if not done and record is None and await self._records.find(POOL, "", pool.uri):
            raise _uri_taken(pool)
        self._looked_s, self._look_before = -math.inf, self._look_number
        return new if done else None

    async def _must_write(self, name: str, record: Record | None, pool: Document) -> Record:
        written = await self._write(name, record, pool)
        if written is None:
            raise Unavailable("The pool is being changed.")
        return written

    async def _change(self, name: str, change: Callable[[Document], Document]) -> Document | None:
        """Change what takes no connection; None when there is no such pool."""
        for _ in range(ATTEMPTS):
            record, old = await self._get(name)
            if old is None:
                return None
            new = change(old)
            if new == old or await self._write(name, record, new):
                return new
        raise Unavailable("The pool is being changed.")

    # Operations

    @operation("pools:get_all")
    async def page(self, ctx: Context, after: str, limit: int) -> list[Pool]:
        """Up to ``limit`` whose names are greater than ``after``, by name."""
        records = await self._records.page(
            POOL, "", after, limit, lambda record: _document(record).state != "gone"
        )
        return [shown(record.key, _document(record)) for record in records]

    @operation("pools:get")
    async def get(self, ctx: Context, name: str) -> Pool:
        """One pool. Raises NotFound."""
        _, pool = await self._get(name)
        if pool is None:
            raise _unknown(name)
        return shown(name, pool)

    @operation("pools:create")
    async def put(
        self,
        ctx: Context,
        name: str,
        uri: str,
        weight: int,
        flavor: str | None,
        options: Mapping[str, Any],
    ) -> None:
        """Add a pool, or describe one anew. Raises as :meth:`patch` does, but for NotFound."""
        check_name("pool", name)

        def change(old: Document | None) -> Document:
            base = old or Document("", 0)
            return msgspec.structs.replace(
                base, uri=uri_of(uri, old), weight=weight, flavor=flavor,
                options=options_of(options, old), state="open",
            )  # fmt: skip

        async with self._changing:
            await self._describe(name, change, connect=True)

    @operation("pools:update")
    async def patch(
        self, ctx: Context, name: str, changes: Mapping[str, Any], *, abandon: bool = False
    ) -> Pool:
        """Change ``uri``, ``weight``, ``flavor`` (None: none) or ``options``.

        A URI that leads to another store is taken only if no message is in the pool, unless these
        are given up with ``abandon``: also those that are posted before this returns, as other
        nodes may look only then what store there is. Raises NotFound, Conflict (the store is in use, or messages
        are in the pool), Invalid, InvalidBody, InvalidPool (it does not fit its flavor).
        """

        def change(old: Document | None) -> Document:
            if old is None:
                raise _unknown(name)
            new = dict(changes)
            if "uri" in new:
                new["uri"] = uri_of(new["uri"], old)
            if "options" in new:
                new["options"] = options_of(new["options"], old)
            return msgspec.structs.replace(old, **new, state="open")

        connect = "uri" in changes or "options" in changes
        async with self._changing:
            new = await self._describe(name, change, connect=connect, abandon=abandon)
        return shown(name, new)

    async def _describe(
        self,
        name: str,
        change: Callable[[Document | None], Document],
        *,
        connect: bool,
        abandon: bool = False,
    ) -> Document:
        record, old = await self._get(name)
        new = change(old)
        own = self._settings.store
        check(new, own, self._settings, own_shared=self.own.shared)
        others = {other: pool for other, pool in (await self._read()).items() if other != name}
        for other, pool in others.items():
            if pool.uri == new.uri:
                raise Conflict(f"The pool {other} has this uri.")
        if new.uri == own:
            raise Conflict("This is the uri of the service's own store, which needs no pool.")
        fresh = await self._connect(name, old, new) if connect else None
        vacated = False
        try:
            if fresh is not None:
                new = await self._identified(fresh, new, old, others)
            elif connect or name in self._stores.opened():
                new = msgspec.structs.replace(new, capabilities=self.capabilities(name, new))
            self._fit(new, others)
            if old is not None and old.identity != new.identity and not abandon:
                try:
                    record = await self._vacate(name, record, old)
                    vacated = True
                except PoolInUse as error:
                    raise Conflict(
                        f"uri leads to another store, and {error.detail[0].lower()}"
                        f"{error.detail[1:]} Drain the pool first; or copy its store, of which "
                        "the copy is recognised."
                    ) from None
            if fresh is not None and (old is None or old.identity != new.identity):
                await _seal_all(fresh)
                since = record.version + 1 if record else 1
                new = msgspec.structs.replace(new, since=since)
            await self._must_write(name, record, new)
        except BaseException:
            if fresh is not None:
                await fresh.close()
            if vacated:
                await self._reopen(name)
            raise
        if fresh is not None:
            await self._stores.keep(name, new, fresh)
        else:
            self._stores.renew(name, new)
        if old is not None and old.identity != new.identity and not vacated:
            # Nothing tells other nodes which post to the queues in the store that is given up.
            await asyncio.sleep(LOOK_S)
        return new

    async def _connect(self, name: str, old: Document | None, new: Document) -> Store | None:
        """The store that is meant, newly opened; None when it is the one that is there."""
        if old is not None and old.uri == new.uri:
            if told(old) == told(new):
                try:
                    await self._stores.get(name, old)
                except Unavailable as error:
                    raise Invalid(f"{masked(new.uri)}: {error.detail}") from None
                return None
            if new.uri.startswith("sqlite:"):  # which can be opened once only
                await self._stores.forget(name)
        return await self._stores.probe(new)

    async def _identified(
        self, store: Store, new: Document, old: Document | None, others: Mapping[str, Document]
    ) -> Document:
        """With what is known of its store, which no other pool may have, by whatever name."""
        identity = await identity_of(store.records, uuid.uuid4().hex)
        if identity == await identity_of(self.own.records, uuid.uuid4().hex):
            raise Conflict("This is the service's own store, which needs no pool.")
        for other, pool in others.items():
            if pool.identity == identity:
                raise Conflict(f"This is the store of the pool {other}, or a copy of it.")
        if old is not None and old.uri == new.uri and old.identity != identity:
            raise Invalid("This is another store than the one that was added as this pool.")
        return msgspec.structs.replace(new, identity=identity, capabilities=store.capabilities)

    def _fit(self, new: Document, others: Mapping[str, Document]) -> None:
        """Raise InvalidPool unless its flavor's other pools promise the same."""
        if new.flavor is None:
            return
        for other, pool in others.items():
            promised = set(self.capabilities(other, pool))
            if pool.flavor == new.flavor and promised != set(new.capabilities):
                raise InvalidPool(
                    f"The pool {other} of the flavor {new.flavor} has the capabilities"
                    f" {', '.join(sorted(promised))}; this one has"
                    f" {', '.join(sorted(new.capabilities))}."
                )

    @operation("pools:delete")
    async def delete(self, ctx: Context, name: str) -> None:
        """Delete it; nothing happens when there is none. Raises PoolInUse."""
        async with self._changing:
            record, pool = await self._get(name)
            if pool is None:
                return
            if pool.flavor is not None and list(await self.carriers(pool.flavor)) == [name]:
                raise PoolInUse(f"The pool {name} is the last one of the flavor {pool.flavor}.")
            record = await self._vacate(name, record, pool)
            # The record stays as a number: were it deleted, a pool that somebody adds under this
            # name at the same time could be deleted with it.
            try:
                await self._must_write(name, record, Document("", 0, state="gone"))
            except BaseException:
                await self._reopen(name)
                raise
            await self._stores.forget(name)

    @operation("pools:update")
    async def drain(self, ctx: Context, name: str) -> Progress:
        """Let no new queue come here, and bring some of those that are here to other pools.

        To be called until nothing is left. Raises NotFound; Unavailable where there is no other.
        """

        def change(pool: Document) -> Document:
            return msgspec.structs.replace(pool, weight=0)

        async with self._changing:
            if await self._change(name, change) is None:
                raise _unknown(name)
        if self.drain_step is None:
            raise Unavailable("Nothing can be moved yet.")
        return await self.drain_step(name, DRAIN_S)

    # Taking all queues out

    async def _vacate(self, name: str, record: Record | None, pool: Document) -> Record | None:
        """Take all queues out of a pool, none of which may hold messages, and let none in.

        Returns the record as it is then: *closing*. Raises PoolInUse, with (almost) no effect,
        and Unavailable where the pool's store cannot be asked.
        """
        closing = msgspec.structs.replace(pool, state="closing")
        if await self.placements.page(name, "", 1):
            await self._survey(name, await self._stores.get(name, pool))
        record = await self._must_write(name, record, closing)
        try:
            # From here on nobody places a queue here; who did just before is seen now, as queues
            # are noted before they are made.
            await self._take_out(name, pool)
        except BaseException:
            await self._reopen(name)
            raise
        return record

    async def _reopen(self, name: str) -> None:
        """Let queues in again, however else the pool was changed meanwhile.

        Another node that is taking them out finds that the pool has another version in the end.
        """

        def change(pool: Document) -> Document:
            return msgspec.structs.replace(pool, state="open")

        with suppress(NuskuError):
            await self._change(name, change)

    async def _take_out(self, name: str, pool: Document) -> None:
        placed = await self.placements.page(name, "", TOGETHER)
        try:
            store = await self._stores.get(name, pool)
        except Unavailable:
            if placed:
                raise
            return
        while placed:
            await asyncio.gather(*(self._take_out_one(name, one.key) for one in placed))
            placed = await self.placements.page(name, placed[-1].id, TOGETHER)
        await self._survey(name, store)

    async def _take_out_one(self, name: str, key: QueueKey) -> None:
        if self.unplace is None or not await self.unplace(*key, name):
            raise _holds(key)

    async def _survey(self, name: str, store: Store) -> None:
        """Raise PoolInUse when a queue that is placed here holds messages, or notifications of
        posts to one are still to be made.
        """
        if await store.messages.occupied("notice"):
            raise PoolInUse("Notifications of posts to queues in this pool are still to be made.")
        if not (await store.messages.volume()).total:
            return
        after = None
        while holdings := await store.messages.queues(after, AT_ONCE):
            for held in holdings:
                if held.messages and await self._is_here(held.ref.key, name):
                    raise _holds(held.ref.key)
            after = holdings[-1].ref.key

    async def _is_here(self, key: QueueKey, name: str) -> bool:
        """Whether the record of a queue says that it is in this pool. Others are not ours."""
        record = await self._records.get(*key)
        return record is not None and msgspec.json.decode(record.doc, type=_Where).pool == name


async def _seal_all(store: Store) -> None:
    """Seal the queues of a store that is to become a pool's.

    Where it was given up before, some still stand open. Nodes that know them from then would go on
    using them as soon as they know the store again, though the queues have been moved since. One
    that is in the pool is opened by its first user.
    """
    after = None
    while holdings := await store.messages.queues(after, AT_ONCE):
        for held in holdings:
            if held.ref.key.kind in SERVED and not held.sealed:
                with suppress(Stale):
                    await store.messages.seal(held.ref)
        after = holdings[-1].ref.key


def _document(record: Record) -> Document:
    return msgspec.json.decode(record.doc, type=Document)


def _unknown(name: str) -> NotFound:
    return NotFound(f"There is no pool {name}.")


def _uri_taken(pool: Document) -> Conflict:
    return Conflict(f"Another pool has the uri {masked(pool.uri)}.")


def _holds(key: QueueKey) -> PoolInUse:
    return PoolInUse(f"The {key.kind} {key.name} of the project {key.project} holds messages.")
