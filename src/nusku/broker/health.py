"""Is it well? Real operations, tried on a queue of its own."""

import asyncio
import random
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from nusku.broker import ids
from nusku.broker.notices import make
from nusku.broker.operation import operation
from nusku.broker.pools import Pools
from nusku.errors import NuskuError, Unavailable
from nusku.model import Context, Draft, QueueKey, QueueRef, Record
from nusku.storage import Removal, Store

log = structlog.get_logger("nusku.health")

# Clients cannot name it: their projects are never empty.
NOBODYS_PROJECT = ""
OWN = "default"  # what the service's own store is called here
_AWAY = {"storage_reachable": False}


class Health:
    """The operator's report on the stores."""

    def __init__(self, pools: Pools, rng: random.Random) -> None:
        self._pools = pools
        self._rng = rng

    @operation("ping:get")
    async def ping(self, ctx: Context) -> None:
        """Raise Unavailable unless the service can answer. No I/O: see :meth:`ready`."""

    async def ready(self) -> None:
        """Raise Unavailable unless the service's own store answers."""
        await self._pools.own.ping()

    @operation("health:get")
    async def report(self, ctx: Context) -> dict[str, Any]:
        """By store, contract http-v2.md section 11. An operation that fails is part of it, and so
        is a pool that cannot be reached. Raises Unavailable for the service's own store.
        """
        stores, away = await self._pools.all()
        answer: dict[str, Any] = {"catalog_reachable": True, OWN: {}}
        found = await asyncio.gather(
            *(self._of(store) if name is None else self._of_pool(store) for name, store in stores)
        )
        for name, status in (
            *((name, status) for (name, _), status in zip(stores, found, strict=True)),
            *((name, _AWAY) for name in away),
        ):
            if name is None:
                answer[OWN] = status
            else:
                answer[f"{name} (pool)" if name in answer else name] = status
        return answer

    async def _of_pool(self, store: Store) -> dict[str, Any]:
        try:
            await store.ping()
            return await self._of(store)
        except Unavailable:
            return _AWAY

    async def _of(self, store: Store) -> dict[str, Any]:
        status = await self._probe(store)
        volume = await store.messages.volume()
        return {
            "storage_reachable": True,
            "operation_status": status,
            "message_volume": {
                "free": volume.free + volume.delayed,
                "claimed": volume.held,
                "total": volume.total,
            },
        }

    async def _probe(self, store: Store) -> dict[str, Any]:
        messages, records = store.messages, store.records
        key = QueueKey("queue", NOBODYS_PROJECT, f"health-{uuid.uuid4().hex}")
        ref = QueueRef(key, ids.new_generation(self._rng), 1)
        draft = Draft(b"{}", 60)
        claims: list[str] = []

        async def create() -> None:
            await make(messages, ref)  # first: what follows is tried on a full disk, too
            await records.insert(Record(*key, b"{}"))

        async def claim() -> None:
            claimed = await messages.claim(ref, 2, 60, 60)
            claims.append(claimed.claim or "")

        async def delete_queue() -> None:
            await records.delete(*key)
            await messages.drop(ref)

        steps: dict[str, Callable[[], Awaitable[object]]] = {
            "create_queue": create,
            "post_messages": lambda: messages.add([(ref, [draft] * 4)]),
            "list_messages": lambda: messages.page(ref, 0, 10),
            "claim_messages": claim,
            "delete_messages": lambda: messages.remove(ref, (1,), Removal.HELD, claims),
            "delete_claim": lambda: messages.release(ref, claims[0]),
            "bulk_delete_messages": lambda: messages.remove(ref, (2, 3, 4), Removal.ANY),
            "delete_queue": delete_queue,
        }
        return {name: await self._try(name, step) for name, step in steps.items()}

    async def _try(self, name: str, step: Callable[[], Awaitable[object]]) -> dict[str, Any]:
        started, ref = time.perf_counter(), None
        try:
            await step()
        except NuskuError as error:
            ref = str(uuid.uuid4())
            log.warning("health probe failed", operation=name, ref=ref, reason=error.detail)
        except Exception:
            ref = str(uuid.uuid4())
            log.exception("health probe failed", operation=name, ref=ref)
        return {
            "seconds": time.perf_counter() - started,
            "ref": ref,
            "succeeded": ref is None,
        }
