"""Which addresses the service may connect to for a subscriber whom a stranger named.

The rules are those of contract/README.md ("Our delivery rules", addresses). They judge addresses,
never names: a name is resolved at every attempt, all that it means is judged here, and the
connection goes to the very address that was judged. Only an address in place of a name can be
judged before that, in whatever spelling: see :func:`literal`.

Python's ``is_global`` is no help: it says yes to multicast, and to several ways of writing an IPv4
address inside of an IPv6 one.
"""

import errno
import re
import socket
import stringprep
import unicodedata
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import unquote

from nusku.config import Settings

Address = IPv4Address | IPv6Address

_PRIVATE = "a private address"
_METADATA = "an address of a cloud's metadata service"
_RESERVED = "a reserved address"
_DOCUMENTATION = "an address for documentation"

# The first network that holds an address says what it is. Metadata services come before the ranges
# that they borrow from, because `subscriber_private = allow` must not open them.
_SPECIAL = tuple(
    (ip_network(network), what)
    for network, what in (
        ("100.100.100.200/32", _METADATA),
        ("168.63.129.16/32", _METADATA),
        ("0.0.0.0/8", "an unspecified address"),
        ("10.0.0.0/8", _PRIVATE),
        ("100.64.0.0/10", _PRIVATE),
        ("127.0.0.0/8", "a loopback address"),
        ("169.254.0.0/16", "a link-local address"),
        ("172.16.0.0/12", _PRIVATE),
        ("192.0.0.0/24", _RESERVED),
        ("192.0.2.0/24", _DOCUMENTATION),
        ("192.88.99.0/24", _RESERVED),
        ("192.168.0.0/16", _PRIVATE),
        ("198.18.0.0/15", _RESERVED),
        ("198.51.100.0/24", _DOCUMENTATION),
        ("203.0.113.0/24", _DOCUMENTATION),
        ("224.0.0.0/4", "a multicast address"),
        ("240.0.0.0/4", _RESERVED),
        ("fd00:ec2::/32", _METADATA),
        ("fd20:ce::254/128", _METADATA),
        ("fd00:42::42/128", _METADATA),
        ("::/128", "an unspecified address"),
        ("::1/128", "a loopback address"),
        ("64:ff9b::/96", ""),
        ("2001::/32", ""),
        ("2001::/23", _RESERVED),
        ("2001:db8::/32", _DOCUMENTATION),
        ("3fff::/20", _DOCUMENTATION),
        ("2000::/3", ""),
        ("fc00::/7", _PRIVATE),
        ("fe80::/10", "a link-local address"),
        ("fec0::/10", "a site-local address"),
        ("ff00::/8", "a multicast address"),
        ("::/0", _RESERVED),
    )
)
_NAT64 = ip_network("64:ff9b::/96")
_ISATAP = frozenset({0x0000_5EFE, 0x0200_5EFE})


def of_this_machine(ip: str) -> bool:
    """Whether the address is one of this machine's: then a socket can be bound to it."""
    try:
        with socket.socket(
            socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM
        ) as probe:
            probe.bind((ip, 0))
    except OSError as error:
        # Whoever has run out of files learns nothing, and then the safe answer is yes.
        return error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL}
    return True


class Addresses:
    """What may be connected to, by the settings ``subscriber_allow``, ``subscriber_private`` and
    ``subscriber_ports``.

    ``own``: host and port of our listeners and of what we keep our data in. It is read anew each
    time, so whoever made it may add a listener later. A host that is not an IP address, or is an
    unspecified one, means all of this machine, and so does any host of this machine: which of
    its addresses a port is reached by makes no difference.
    """

    def __init__(
        self,
        settings: Settings,
        own: Collection[tuple[str, int]] = (),
        local: Callable[[str], bool] = of_this_machine,
    ) -> None:
        self._allow = tuple(ip_network(network) for network in settings.subscriber_allow)
        self._private = settings.subscriber_private == "allow"
        self._ports = tuple(_port_range(text) for text in settings.subscriber_ports)
        self._own = own
        self._local = local

    def refusal(self, ip: str, port: int) -> str | None:
        """A sentence that says why this may not be connected to, or None if it may."""
        try:
            given = ip_address(ip)
        except ValueError:
            return "That is not an IP address."
        if not 1 <= port <= 65_535:
            return "A port is a number from 1 to 65535."
        zone = isinstance(given, IPv6Address) and given.scope_id is not None
        address = _plain(given)
        # An IPv4 address written as an IPv6 one is connected to as the former.
        address = getattr(address, "ipv4_mapped", None) or address
        if any(address in network for network in self._allow):
            return None
        if zone:
            return (
                f"{ip} is given with a zone, which no address of the internet has;"
                " the setting subscriber_allow could permit it."
            )
        for each in (address, *_inside(address)):
            what = _special(each)
            private = what == _PRIVATE
            if what and not (private and self._private):
                by_private = "subscriber_private = allow or " if private else ""
                verb = "is" if each is address else "stands for"
                return (
                    f"{ip} {verb} {what}; the setting {by_private}subscriber_allow could permit it."
                )
            if self._is_own(each, port):
                return (
                    f"{ip} with port {port} is this service itself;"
                    " the setting subscriber_allow could permit it."
                )
        return self._port_refusal(port)

    def port_refusal(self, port: int) -> str | None:
        """The same for a port as long as nobody knows the address: only what no address can mend."""
        return None if self._allow else self._port_refusal(port)

    def _port_refusal(self, port: int) -> str | None:
        if any(least <= port <= most for least, most in self._ports):
            return None
        return f"Port {port} is not among those of the setting subscriber_ports."

    def _is_own(self, address: Address, port: int) -> bool:
        hosts = [host for host, own_port in self._own if own_port == port]
        return str(address) in hosts or (bool(hosts) and self._local(str(address)))


def _port_range(text: str) -> tuple[int, int]:
    """``"443"`` or ``"1024-65535"``."""
    least, _, most = text.partition("-")
    return int(least), int(most or least)


def _plain(address: Address) -> Address:
    """Without the zone: ``fe80::1%eth0`` is in no network for Python."""
    return IPv6Address(int(address)) if isinstance(address, IPv6Address) else address


@lru_cache(maxsize=4096)
def _special(address: Address) -> str:
    """What is special about the address; empty if it is one of the public internet."""
    # Versions never mix in a network, so an IPv4 address that is in none of the list is public.
    return next((what for network, what in _SPECIAL if address in network), "")


def _inside(address: Address) -> Iterator[IPv4Address]:
    """The IPv4 addresses that a relay on the way would make of an IPv6 address."""
    if not isinstance(address, IPv6Address):
        return
    last = int(address) & 0xFFFF_FFFF
    if address in _NAT64 or int(address) >> 32 & 0xFFFF_FFFF in _ISATAP:
        yield IPv4Address(last)
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo


# -- addresses in place of names ------------------------------------------------------------------

_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")
# What international names may have in place of the full stop.
_STOPS = str.maketrans({"\u3002": ".", "\uff0e": ".", "\uff61": "."})


def literal(host: str) -> str | None:
    """The address that the host part of a URL means, if it is not a name; its usual spelling.

    Takes every spelling that some resolver takes: ``2130706433``, ``0x7f.1``, ``127.1``,
    ``0177.0.0.1``, digits that Unicode holds to be the same as ours, percent-encoded ones,
    final stops, brackets. A zone is kept: ``fe80::1%eth0``.
    """
    once = unquote(host)
    for spelling in (host, once, unquote(once)):
        found = _literal(_folded(spelling))
        if found is not None:
            return found
    return None


def _folded(text: str) -> str:
    """As name resolution sees it: one way of writing each character, and none that is invisible."""
    if not text.isascii():
        visible = (
            c for c in text if not stringprep.in_table_b1(c) and unicodedata.category(c) != "Cf"
        )
        text = unicodedata.normalize("NFKC", "".join(visible)).translate(_STOPS)
    # Some resolvers stop reading at a blank, so what stands before it counts.
    words = text.lower().replace("\0", " ").split()
    return words[0].rstrip(".").removeprefix("[").removesuffix("]").rstrip(".") if words else ""


def _literal(text: str) -> str | None:
    if ":" in text:
        try:
            return str(IPv6Address(text))
        except ValueError:
            return None
    return _dotted(text)


def _dotted(text: str) -> str | None:
    """One to four numbers; each is a byte but the last, which fills what the others left."""
    parts = text.split(".")
    if len(parts) > 4 or not all(map(_NUMBER.fullmatch, parts)):
        return None
    try:
        *leading, last = map(_number, parts)
    except ValueError:
        return None
    left = 4 - len(leading)
    if any(byte > 0xFF for byte in leading) or last >= 1 << 8 * left:
        return None
    return str(IPv4Address(int.from_bytes(bytes(leading) + last.to_bytes(left))))


def _number(text: str) -> int:
    """Hexadecimal after 0x, octal after 0. Raises ValueError for octal digits that are none."""
    if text.startswith("0x"):
        return int(text[2:] or "0", 16)
    return int(text, 8 if text.startswith("0") else 10)
