"""Pools and flavors of the service under load: a flavor for each pool, so that queues can be placed."""

from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from benchmarks.rig import Rig
from benchmarks.stores import Store
from benchmarks.wire import Answer
from benchmarks.work_queue import WorkQueue, expect

ROOM = 1_000_000
"""Messages that may be posted to one of the queues."""

IMPOSSIBLE = "the server knows no pools"


async def possible(rig: Rig) -> bool:
    """Whether the server has pools."""
    status, _ = await rig.connections[0].ask(_request(rig, "GET", "/v2/pools"))
    return status == 200


@asynccontextmanager
async def pools(rig: Rig, stores: Sequence[Store]) -> AsyncIterator[list[str]]:
    """Each store a pool; the names of their flavors, which have the pools' names too."""
    names = [f"bench-pool-{number}" for number in range(len(stores))]
    for name, store in zip(names, stores, strict=True):
        await _put(rig, f"/v2/pools/{name}", {"uri": store.uri, "weight": 100})
        await _put(rig, f"/v2/flavors/{name}", {"pool_list": [name]})
    rig.pools += stores
    yield names
    rig.pools = [store for store in rig.pools if store not in stores]
    for name in names:
        for path in (f"/v2/flavors/{name}", f"/v2/pools/{name}"):
            await rig.do(_asked(rig, "DELETE", path, b"", 204))


async def new_queue(rig: Rig, flavor: str) -> WorkQueue:
    """A fresh queue that is kept in a pool of the flavor."""
    metadata = msgspec.json.encode({"_flavor": flavor})
    return await rig.new_queue(metadata=metadata, room=ROOM)


async def _put(rig: Rig, path: str, document: Mapping[str, Any]) -> None:
    await rig.do(_asked(rig, "PUT", path, msgspec.json.encode(document), 201))


def _asked(
    rig: Rig, method: str, path: str, body: bytes, expected: int
) -> Generator[bytes, Answer, None]:
    status, answer = yield _request(rig, method, path, body)
    expect(status, expected, f"{method} {path}", answer)


def _request(rig: Rig, method: str, path: str, body: bytes = b"") -> bytes:
    """By somebody who may do this."""
    plain = rig.target.request(method, path, body)
    return plain.replace(b"\r\n", b"\r\nX-Roles: admin\r\n", 1)
