"""Who is connected, by address: none may take the room of all others."""

from ipaddress import IPv6Address
from typing import Protocol

NETWORK_BITS = 64  # of an IPv6 address; the rest is for each client to choose


class Connected(Protocol):
    """A connection, as seen from here."""

    place: str

    def leisure(self) -> float | None:
        """The less, the sooner it may be closed for another; None while something is answered."""

    def make_room(self) -> None:
        """Be closed for another."""


class Crowd:
    """The open connections of one server: ``most`` of them, and of one address ``most_each`` (0 for
    no limit of its own).

    When all places are taken, whoever has the most gives one to a newcomer that has fewer: one that is
    idle, that has not sent its request yet, or that does not read its answer. Whoever has none of
    these is passed over for the one with the next most, down to those who have what is their share.
    """

    def __init__(self, most: int, most_each: int) -> None:
        self._most = most
        self._most_each = most_each or most
        self._size = 0
        self._places: dict[str, set[Connected]] = {}

    def enter(self, connection: Connected) -> bool:
        """Whether there is room. It has to leave again either way."""
        there = self._places.setdefault(connection.place, set())
        there.add(connection)
        self._size += 1
        if len(there) > self._most_each:
            return False
        return self._size <= self._most or self._room_for(len(there))

    def leave(self, connection: Connected) -> None:
        """It is closed. Those that never entered are ignored."""
        there = self._places.get(connection.place)
        if there is None or connection not in there:
            return
        self._size -= 1
        there.remove(connection)
        if not there:
            del self._places[connection.place]

    def _room_for(self, few: int) -> bool:
        """Close a connection of one who has many, for one who has so few with the new one."""
        if few * len(self._places) >= self._size:  # no fewer than others have on average
            return False
        for there in sorted(self._places.values(), key=len, reverse=True):
            if len(there) * len(self._places) <= self._size:
                break
            at_leisure = {each: free for each in there if (free := each.leisure()) is not None}
            if at_leisure:
                min(at_leisure, key=at_leisure.__getitem__).make_room()
                return True
        return False


def place(address: str) -> str:
    """What counts as one client."""
    if ":" not in address:
        return address
    full = IPv6Address(address)
    return str(full.ipv4_mapped or (int(full) >> NETWORK_BITS))
