"""The stores of pools: each opened when it is first asked for, and kept open."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

import structlog

from nusku.broker.pooldocs import HIDDEN, Document, told
from nusku.config import masked
from nusku.errors import Invalid, NuskuError, StoreRefused, Unavailable
from nusku.storage import Store
from nusku.storage.identity import identity, identity_of

log = structlog.get_logger("nusku.pools")

Open = Callable[[str, Mapping[str, Any]], Awaitable[Store]]

PATIENCE_S = 5.0  # longest that anybody waits for a store to be opened
BACKOFF_S = (0.5, 1.0, 2.0, 5.0)  # until it is tried again, after so many failures
LINGER_S = 5.0  # for what is under way on a store that is not in use any more


class _Door:
    """The way to the store of one pool, as its record was read."""

    def __init__(self, pool: Document) -> None:
        self.pool = pool
        self.store: Store | None = None
        self.attempt: asyncio.Task[None] | None = None
        self.watch: asyncio.Task[None] | None = None
        self.started_s = 0.0
        self.failures = 0
        self.closed_until_s = 0.0
        self.reason = ""

    def leads_to(self, pool: Document) -> bool:
        """Whether the pool's store is still the one behind this door."""
        return _way(self.pool) == _way(pool)


def _way(pool: Document) -> tuple[object, ...]:
    return pool.uri, told(pool), pool.identity, pool.since


class PoolStores:
    """``on_open`` is told of each store before anybody gets it."""

    def __init__(self, open_: Open, on_open: Callable[[Store], None]) -> None:
        self._open = open_
        self._on_open = on_open
        self._doors: dict[str, _Door] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()

    def opened(self) -> Mapping[str, Store]:
        """Those that are open now, by the names of their pools."""
        return {name: door.store for name, door in self._doors.items() if door.store is not None}

    def down(self, name: str) -> bool:
        """Whether its store could not be opened lately."""
        door = self._doors.get(name)
        return door is not None and door.store is None and bool(door.failures)

    async def get(self, name: str, pool: Document, patience_s: float | None = None) -> Store:
        """The store of the pool. Raises Unavailable when it cannot be had within that time."""
        door = self._doors.setdefault(name, _Door(pool))
        while not door.leads_to(pool):
            # While it is closed, somebody may have made one that leads where the pool was before.
            await self.forget(name, pool)
            door = self._doors.setdefault(name, _Door(pool))
        if door.store is not None:
            return door.store
        now_s = asyncio.get_running_loop().time()
        if door.attempt is None:
            if self._stopped.is_set() or now_s < door.closed_until_s:
                raise _away(name)
            door.started_s = now_s
            door.attempt = asyncio.create_task(self._attempt(name, door))
        patience_s = PATIENCE_S if patience_s is None else patience_s
        left_s = door.started_s + patience_s - now_s
        if left_s > 0:
            await asyncio.wait({door.attempt}, timeout=left_s)
        return self._behind(name, door)

    def _behind(self, name: str, door: _Door) -> Store:
        if door.store is None:
            raise _away(name)
        return door.store

    async def _attempt(self, name: str, door: _Door) -> None:
        """Open the store behind the door; whatever goes wrong is noted there."""
        store = None
        try:
            store = await self._open(door.pool.uri, told(door.pool))
            await _recognise(store, door.pool)
        except Exception as error:  # noqa: BLE001 - whatever it is, others may not suffer from it
            self._failed(name, door, _said(error, door.pool))
        else:
            if self._doors.get(name) is door and not self._stopped.is_set():
                self._use(name, door, store)
                store = None
        finally:
            if store is not None:
                await self._close(store)
            door.attempt = None

    def _failed(self, name: str, door: _Door, reason: str) -> None:
        pause_s = BACKOFF_S[min(door.failures, len(BACKOFF_S) - 1)]
        door.closed_until_s = asyncio.get_running_loop().time() + pause_s
        door.failures += 1
        if reason != door.reason:  # once is enough
            log.warning(
                "the store of a pool cannot be used",
                pool=name, store=masked(door.pool.uri), reason=reason,
            )  # fmt: skip
        door.reason = reason

    def _use(self, name: str, door: _Door, store: Store) -> None:
        self._on_open(store)
        door.store, door.failures, door.reason = store, 0, ""
        door.watch = asyncio.create_task(self._watch(name, door, store))
        log.info("pool opened", pool=name, store=masked(door.pool.uri))

    async def _watch(self, name: str, door: _Door, store: Store) -> None:
        """A store that failed is opened anew, as a server that is started again would."""
        why = await asyncio.shield(store.failed)
        log.error("the store of a pool failed", pool=name, reason=why)
        door.store = door.watch = None
        self._failed(name, door, why)
        self._later(self._close(store))

    async def probe(self, pool: Document) -> Store:
        """Open a store that is to become a pool's. Raises Invalid, within a bounded time."""
        task = asyncio.ensure_future(self._open(pool.uri, told(pool)))
        try:
            await asyncio.wait({task}, timeout=PATIENCE_S)
        finally:
            if not task.done():  # it may still come, and nobody wants it any more
                self._later(self._close_when_open(task))
        if not task.done():
            raise Invalid(f"{masked(pool.uri)} did not answer within {PATIENCE_S:g} s.")
        try:
            return task.result()
        except Exception as error:  # noqa: BLE001 - what drivers raise for a strange URI, too
            raise Invalid(f"{masked(pool.uri)} cannot be used: {_said(error, pool)}") from None

    async def keep(self, name: str, pool: Document, store: Store) -> None:
        """Use a store that :meth:`probe` opened."""
        await self.forget(name, pool)
        door = self._doors[name] = _Door(pool)
        self._use(name, door, store)

    def renew(self, name: str, pool: Document) -> None:
        """The pool is described otherwise now, and its store is the same."""
        door = self._doors.get(name)
        if door is not None:
            door.pool = pool

    async def forget(self, name: str, pool: Document | None = None) -> None:
        """Close the store of this pool, if it is open; ``pool`` is what it is from now on.

        What is under way on it may end before, if it is the same store that has got another URI.
        Else nothing is: it is empty, or to be opened anew, which some stores allow only once.
        """
        door = self._doors.pop(name, None)
        if door is None:
            return
        if door.watch is not None:
            door.watch.cancel()
        if door.store is not None:
            old = door.pool
            if pool is not None and old.identity == pool.identity and old.uri != pool.uri:
                self._later(self._linger(door.store))
            else:
                await self._close(door.store)

    async def retire(self, pools: Mapping[str, Document]) -> None:
        """Close the stores of pools that are not among these, or lead elsewhere now."""
        for name, door in list(self._doors.items()):
            pool = pools.get(name)
            if pool is None or not door.leads_to(pool):
                await self.forget(name, pool)

    async def close(self) -> None:
        """Close all."""
        self._stopped.set()
        attempts = [door.attempt for door in self._doors.values() if door.attempt is not None]
        for name in list(self._doors):
            await self.forget(name)
        while waiting := [*attempts, *self._tasks]:
            attempts = []
            await asyncio.wait(waiting, timeout=PATIENCE_S)
            if not any(task.done() for task in waiting):
                return  # one hangs while it is being opened; the process ends anyway

    def _later(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _linger(self, store: Store) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), LINGER_S)
        await self._close(store)

    async def _close_when_open(self, task: "asyncio.Future[Store]") -> None:
        with suppress(StoreRefused, NuskuError, OSError):
            await self._close(await task)

    async def _close(self, store: Store) -> None:
        try:
            await store.close()
        except Exception:
            log.exception("the store of a pool could not be closed")


async def _recognise(store: Store, pool: Document) -> None:
    """Raise StoreRefused when this is not the store that was added as the pool.

    It may be an empty one, on a disk that is not mounted, say: its queues would seem to have lost
    their messages. A store that may lose everything is recognised even if it has.
    """
    found = await identity(store.records)
    if found is None and "DURABILITY" not in store.capabilities:
        found = await identity_of(store.records, pool.identity)
    if found != pool.identity:
        raise StoreRefused(
            "this is another store than the one that was added as this pool"
            + (", or it has lost what it held" if found is None else "")
        )


def _said(error: Exception, pool: Document) -> str:
    """What went wrong, on one line, without the pool's passwords."""
    match error:
        case NuskuError():
            detail = error.detail
        case StoreRefused() | OSError():
            detail = str(error)
        case _:
            detail = f"{type(error).__name__}: {error}"
    for text in (pool.uri, *(v for v in told(pool).values() if isinstance(v, str) and v)):
        detail = detail.replace(text, masked(text))
        for password in _passwords(text):
            detail = detail.replace(password, HIDDEN)
    return " ".join(detail.split())


def _passwords(uri: str) -> set[str]:
    """The password in a URI as it stands there, and as it is; none that is a word of its own."""
    user, at, _ = uri.partition("://")[2].rpartition("@")
    password = user.partition(":")[2] if at else ""
    return {text for text in (password, unquote(password)) if len(text) > 3}


def _away(name: str) -> Unavailable:
    return Unavailable(f"The pool {name} cannot be reached.")
