"""The names of keys, and the slots that they fall into.

Keys of what is written in one step share a hash tag, made of the project and the queue's home.
Names in it are percent-encoded, so that no name ends its part, or the tag, early: two queues never
have a key in common, and a key says which queue it belongs to.
"""

from binascii import crc_hqx
from urllib.parse import quote, unquote

from msgspec import Raw

from nusku.model import Kind, QueueKey, home

PREFIX = "nusku:"
SLOTS = 16384

SCHEMA = f"{PREFIX}schema"
RECORDS = f"{PREFIX}{{records}}"
LANES = f"{PREFIX}{{*:*}}:*:h"
"""Matches the hashes of all lanes, and perhaps more."""

KINDS: tuple[Kind, ...] = ("queue", "topic", "notice", "delivery", "failed")


class Place:
    """Where a lane (or all records) is: its two keys, as they are sent, and their slot.

    Those with one ``tag`` are in one slot, and can be worked on in one step.
    """

    __slots__ = ("name", "packed", "served", "slot", "tag")

    def __init__(self, name: str, served: bool = False) -> None:
        self.name = name
        self.tag = name[name.index("{") + 1 : name.index("}")]
        self.slot = slot_of(name.encode())
        self.packed = packed(f"{name}:h".encode(), f"{name}:z".encode())
        self.served = served


def lane_name(key: QueueKey) -> str:
    """What the keys of a queue begin with."""
    kind, project, name = key
    home_name = quote(home(key), safe="/")
    return f"{project_prefix(project)}{home_name}}}:{kind}/{quote(name, safe='/')}"


def project_prefix(project: str) -> str:
    """What the keys of all queues of a project begin with, and of no other's."""
    return f"{PREFIX}{{{quote(project, safe='')}:"


def key_of(name: str) -> QueueKey | None:
    """The queue whose keys begin so; None for what is none of our lanes."""
    tag, _, lane = name.removeprefix(f"{PREFIX}{{").partition("}:")
    for kind in KINDS:
        if lane.startswith(f"{kind}/"):
            project = unquote(tag.partition(":")[0])
            key = QueueKey(kind, project, unquote(lane.removeprefix(f"{kind}/")))
            return key if lane_name(key) == name else None
    return None


def busy_set(kind: Kind) -> bytes:
    """The key of the list of lanes of a kind that may hold messages; see ``busy.py``."""
    return f"{PREFIX}{{busy}}:{kind}".encode()


def slot_of(key: bytes) -> int:
    """The slot of a cluster that a key falls into."""
    start = key.find(b"{") + 1
    end = key.find(b"}", start) if start else -1
    return crc_hqx(key[start:end] if end > start else key, 0) % SLOTS


def packed(*words: bytes) -> bytes:
    """Arguments of a command as they are sent."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


def command(*words: bytes | str | int) -> bytes:
    """A command as it is sent."""
    encoded = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n%b" % (len(encoded), packed(*encoded))


def text(*parts: bytes) -> Raw:
    """Bytes in MessagePack as scripts read it: they know strings only, not the type for bytes."""
    data = b"".join(parts)
    length = len(data)
    if length < 32:
        return Raw(bytes((0xA0 + length,)) + data)
    return Raw(b"\xdb" + length.to_bytes(4) + data)
