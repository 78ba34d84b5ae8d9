"""The file with the keys that encrypt, which all nodes read, and those who change it.

As `nusku encryption` does it: a new key goes first; an old one is taken away when nothing in any
store needs it, and not before every node has noticed that there is a newer one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from nusku.encryption import NOTICED_S
from nusku.keyring import Ring, is_encrypted, key_id, key_id_of
from nusku.keys import LOOK_S
from tests.deterministic.loop import Loop
from tests.deterministic.store import Disk


class KeyFile:
    """``keys``: those in it, the one in use first. ``careless``: none is counted before it goes."""

    def __init__(self, loop: Loop, seed: int, keys: int) -> None:
        self.keys: tuple[str, ...] = ()
        self.careless = False
        self.retired = 0
        self._loop = loop
        self._seed = seed
        self._made = 0
        for _ in range(keys):
            self.rotate()

    def rotate(self) -> None:
        """Another one encrypts from now on."""
        self._made += 1
        self.keys = (f"key {self._made} of seed {self._seed}".ljust(64, "."), *self.keys)
        self._changed_s = self._loop.now_s

    async def retire(self, disks: Iterable[Disk]) -> bool:
        """Take away the oldest that nothing needs; False where there is none yet."""
        for key in self.keys[:0:-1]:
            if await self._is_needless(key, disks):
                self.keys = tuple(one for one in self.keys if one != key)
                self._changed_s = self._loop.now_s
                self.retired += 1
                return True
        return False

    async def _is_needless(self, key: str, disks: Iterable[Disk]) -> bool:
        if self._loop.now_s - self._changed_s < NOTICED_S:
            return False
        if self.careless:
            return True
        if any(_needs(disk, key_id(key)) for disk in disks):
            return False
        await asyncio.sleep(0.1)
        return not any(_needs(disk, key_id(key)) for disk in disks)

    def ring(self) -> Ring:
        """The keys as a node has them that starts now."""
        known = self.keys

        def changed() -> Sequence[str] | None:
            nonlocal known
            if self.keys == known:
                return None
            known = self.keys
            return known

        return Ring(known, changed)

    async def watch(self, ring: Ring) -> None:
        """What a node does all the time: look whether there are others."""
        while True:
            await asyncio.sleep(LOOK_S)
            ring.refresh()


def _needs(disk: Disk, id_: str) -> bool:
    return any(is_encrypted(body) and key_id_of(body) == id_ for body in disk.bodies())
