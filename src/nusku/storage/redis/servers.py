"""Which servers are the masters, by asking those that know."""

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

from hiredis import ReplyError

from nusku.storage.redis.keys import SLOTS, command
from nusku.storage.redis.promise import Broken
from nusku.storage.redis.uri import Address, Login, Target
from nusku.storage.redis.wire import Lost, Wire

Masters = dict[Address, Sequence[range]]
"""The slots of each master; a server that is alone has all."""

ALL_SLOTS = (range(SLOTS),)


def login_commands(login: Login, database: int = 0) -> list[bytes]:
    """What a new connection says first."""
    commands = []
    if login.user:
        commands.append(command("AUTH", login.user, login.password))
    elif login.password:
        commands.append(command("AUTH", login.password))
    if database:
        commands.append(command("SELECT", database))
    return commands


class Servers:
    """Finds the masters of what a URI names."""

    def __init__(self, target: Target, timeout_s: float) -> None:
        self.target = target
        self._timeout_s = min(timeout_s, 3.0)  # there may be others to ask
        self._known: list[Address] = []

    async def find(self) -> Masters:
        """Raises Lost or Broken with why there is none."""
        if self.target.form == "single":
            return {self.target.hosts[0]: ALL_SLOTS}
        reasons = []
        for address in dict.fromkeys((*self._known, *self.target.hosts)):
            try:
                if self.target.form == "sentinel":
                    return await self._by_sentinel(address)
                return await self._by_node(address)
            except (Lost, Broken) as error:
                reasons.append(f"{address[0]}:{address[1]}: {error}")
        raise Lost("; ".join(reasons))

    async def _ask(self, address: Address, login: Login, *commands: bytes) -> list[Any]:
        """Replies of a server that is asked just once."""
        first = login_commands(login)
        wire = await Wire.connect(*address, self.target.tls, self._timeout_s)
        try:
            replies = await wire.ask(*first, *commands, timeout_s=self._timeout_s)
        finally:
            wire.close()
            await wire.gone.wait()
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise Broken(f"it says: {reply}")
        return replies[len(first) :]

    async def _by_sentinel(self, address: Address) -> Masters:
        target = self.target
        [found] = await self._ask(
            address,
            target.sentinel_login,
            command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", target.service),
        )
        if not found:
            raise Broken(f"no service {target.service!r} is known there")
        return {(found[0].decode(), int(found[1])): ALL_SLOTS}

    async def _by_node(self, address: Address) -> Masters:
        [slots] = await self._ask(address, self.target.login, command("CLUSTER", "SLOTS"))
        masters: dict[Address, list[range]] = {}
        nodes: list[Address] = []
        for first, last, *holders in slots:
            here = [_address(holder, address) for holder in holders]
            nodes += here
            masters.setdefault(here[0], []).append(range(first, last + 1))
        if not masters:
            raise Broken("the cluster has no slots there")
        self._known = list(dict.fromkeys(nodes))
        return {at: tuple(slots) for at, slots in masters.items()}


def _address(holder: Sequence[Any], asked: Address) -> Address:
    """A node's address; one that does not know its own is where it was asked."""
    host = holder[0].decode() if holder[0] else ""
    return (host if host not in {"", "?"} else asked[0], int(holder[1]))


def redirection(text: str, asked: Address) -> tuple[int, Address] | None:
    """The slot and address in an error MOVED or ASK."""
    with contextlib.suppress(ValueError, IndexError):
        _, slot, place = text.split(" ", 2)
        host, _, port = place.rpartition(":")
        return int(slot), (host or asked[0], int(port))
    return None


def addresses(masters: Iterable[Address]) -> str:
    return ", ".join(f"{host}:{port}" for host, port in masters)
