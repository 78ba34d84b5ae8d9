"""Bodies on their way to the store and back. Every read and write of a body passes here."""

import hashlib
import json

import msgspec

from nusku.model import Message


class Origin(msgspec.Struct, frozen=True):
    """Where a dead letter came from."""

    queue: str
    id: str
    reason: str


class Attributes(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is kept beside a body."""

    checksum: str | None = None
    origin: Origin | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Attributes).decode


def checksum(body: bytes) -> str | None:
    """``MD5:<hex>`` of the body as Python's default encoder writes it; None for null
    (contract http-v2.md section 4.8).
    """
    value = msgspec.json.decode(body)
    if value is None:
        return None
    text = json.dumps(value).encode()
    return "MD5:" + hashlib.md5(text, usedforsecurity=False).hexdigest()


def pack(attributes: Attributes) -> bytes | None:
    """The stored form; None when there is nothing to keep."""
    return None if attributes == Attributes() else _encode(attributes)


def attributes(message: Message) -> Attributes:
    """What was kept beside the body of a message."""
    return Attributes() if message.attributes is None else _decode(message.attributes)
