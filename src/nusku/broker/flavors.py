"""Flavors: names by which a project chooses the pools that its queues go to.

A pool carries the name of one flavor, so what a flavor consists of is read from the pools. They do
not know of projects: those that have flavors of one name share its pools.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from nusku.broker.operation import operation
from nusku.broker.pooldocs import Document, check_name
from nusku.broker.pools import FLAVOR, Pools
from nusku.errors import InvalidFlavor, InvalidFlavorUpdate, NotFound
from nusku.model import Context, Record
from nusku.storage import CAPABILITIES

ALL_CAPABILITIES = CAPABILITIES


class Flavor(msgspec.Struct, frozen=True):
    """A flavor as it is shown. ``capabilities`` are those of each of its pools."""

    name: str
    pools: list[str]
    capabilities: tuple[str, ...]


class Flavors:
    """What can be done with flavors."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools
        self._records = pools.own.records

    @operation("flavors:get_all")
    async def page(self, ctx: Context, after: str, limit: int) -> list[Flavor]:
        """Up to ``limit`` of the project whose names are greater than ``after``, by name."""
        records = await self._records.page(FLAVOR, ctx.project, after, limit)
        if not records:
            return []
        pools = await self._pools.described()
        return [_shown(record.key, pools, self._pools.capabilities) for record in records]

    @operation("flavors:get")
    async def get(self, ctx: Context, name: str) -> Flavor:
        """One flavor. Raises NotFound."""
        if await self._records.get(FLAVOR, ctx.project, name) is None:
            raise _unknown(name)
        return await self._one(name)

    async def _one(self, name: str) -> Flavor:
        return _shown(name, await self._pools.described(), self._pools.capabilities)

    @operation("flavors:create")
    async def put(self, ctx: Context, name: str, pools: Sequence[str]) -> None:
        """Create it of these pools, or make it consist of these. Raises InvalidFlavor."""
        check_name("flavor", name)
        if not pools:
            raise InvalidFlavor("A flavor takes at least one pool.")
        await self._check(name, pools, InvalidFlavor)
        await self._consist(name, pools)
        await self._records.insert(Record(FLAVOR, ctx.project, name, b"{}"))

    @operation("flavors:update")
    async def patch(self, ctx: Context, name: str, pools: Sequence[str]) -> Flavor:
        """Make it consist of these pools. Raises NotFound, InvalidFlavorUpdate."""
        if not pools:
            raise InvalidFlavorUpdate("A flavor takes at least one pool.")
        if await self._records.get(FLAVOR, ctx.project, name) is None:
            raise _unknown(name)
        await self._check(name, pools, InvalidFlavorUpdate)
        await self._consist(name, pools)
        return await self._one(name)

    @operation("flavors:delete")
    async def delete(self, ctx: Context, name: str) -> None:
        """Delete it; its pools have no flavor then. Nothing happens when there is none.

        Queues stay where they are.
        """
        if await self._records.get(FLAVOR, ctx.project, name) is None:
            return
        # The record last, so that what was left half-done can be done again.
        await self._consist(name, ())
        await self._records.delete(FLAVOR, ctx.project, name)

    async def _check(self, name: str, pools: Sequence[str], refused: type[InvalidFlavor]) -> None:
        there = await self._pools.described()
        promised: dict[str, tuple[str, ...]] = {}
        for pool in pools:
            if pool not in there:
                # Clients know this text.
                raise refused(
                    f"Flavor {name} could not be created, error:Pool {pool} does not exist"
                )
            promised[pool] = _ordered(self._pools.capabilities(pool, there[pool]))
        if len(set(promised.values())) > 1:
            sets = "; ".join(f"{pool} has {', '.join(of)}" for pool, of in promised.items())
            raise refused(f"The pools of a flavor must have the same capabilities: {sets}.")

    async def _consist(self, name: str, pools: Sequence[str]) -> None:
        for pool in dict.fromkeys(pools):
            await self._pools.flavored(pool, name)
        for pool in await self._pools.carriers(name):
            if pool not in pools:
                await self._pools.flavored(pool, None)


def _shown(
    name: str,
    pools: Mapping[str, Document],
    capabilities: Callable[[str, Document], tuple[str, ...]],
) -> Flavor:
    names = [pool for pool, described in pools.items() if described.flavor == name]
    promised = capabilities(names[0], pools[names[0]]) if names else ()
    return Flavor(name, names, _ordered(promised))


def _ordered(capabilities: Iterable[str]) -> tuple[str, ...]:
    """In the order in which they are always listed."""
    found = set(capabilities)
    return tuple(name for name in CAPABILITIES if name in found)


def _unknown(name: str) -> NotFound:
    return NotFound(f"There is no flavor {name}.")
