"""Bodies on their way to the store and back. Every read and write of a body passes here.

Those of encrypted queues are encrypted (:mod:`nusku.keyring`) with their checksums inside, which
would otherwise tell of bodies that can be guessed. An encrypted body says so itself, so queues may
hold both kinds, and readers need not know how a queue was set when something was posted.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import structlog

from nusku.broker import ids
from nusku.broker.view import View
from nusku.errors import NuskuError, Unavailable, Unreadable
from nusku.keyring import Ring, Undecryptable, is_encrypted
from nusku.metrics import Metrics
from nusku.model import Message, QueueKey, QueueRef

log = structlog.get_logger("nusku.encryption")

UNREADABLE_PAUSE_S = 10  # that a message which cannot be decrypted is kept from others behind it


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


class Packed(NamedTuple):
    """A body and what is kept beside it, as they are stored."""

    body: bytes
    attributes: bytes | None


class Sorted(NamedTuple):
    """Messages that can be shown; those that cannot, as they are stored; and why the first of these
    cannot.
    """

    readable: Sequence[Message]
    unreadable: Sequence[Message]
    why: Unreadable | None


_CHECKSUM = len("MD5:") + 32  # bytes


def _all_clear(messages: Sequence[Message]) -> bool:
    """Whether none is encrypted. All messages come by here, and nearly all are clear."""
    for message in messages:
        body = message.body
        if body[:1] == b"\x01" or body[1:2] == b"\xff":  # is_encrypted
            return False
    return True


class Codec:
    """Encrypts and decrypts. ``refusal`` says why nothing can be encrypted; empty if it can."""

    def __init__(self, ring: Ring, metrics: Metrics) -> None:
        self._ring = ring
        self._unreadable = metrics.unreadable

    @property
    def refusal(self) -> str:
        return self._ring.refusal

    def pack(self, key: QueueKey, body: bytes, beside: Attributes, *, encrypted: bool) -> Packed:
        """What is stored in this queue. Raises Unavailable where it cannot be encrypted."""
        if not encrypted:
            return Packed(body, pack(beside))
        if beside.checksum is not None:  # no JSON begins like one
            body = beside.checksum.encode() + body
        return Packed(self.encrypt(key, body), pack(Attributes(origin=beside.origin)))

    def unpack(self, ref: QueueRef, message: Message) -> Message:
        """The message in clear. Raises Unreadable."""
        if not is_encrypted(message.body):
            return message
        name = f"Message {ids.message_id(ref.generation, message.position)}"
        body, beside = self.decrypt(ref.key, message, name), message.attributes
        if body.startswith(b"MD5:"):
            checksum, body = body[:_CHECKSUM].decode(), body[_CHECKSUM:]
            beside = pack(Attributes(checksum, attributes(message).origin))
        return msgspec.structs.replace(message, body=body, attributes=beside)

    def sort(self, ref: QueueRef, messages: Sequence[Message]) -> Sorted:
        """Take those out that are unreadable, so that they don't stand before others."""
        if _all_clear(messages):
            return Sorted(messages, (), None)
        readable, unreadable, why = [], [], None
        for message in messages:
            try:
                readable.append(self.unpack(ref, message))
            except Unreadable as error:
                unreadable.append(message)
                why = why or error
        return Sorted(readable, unreadable, why)

    def view(self, ref: QueueRef, messages: Sequence[Message], now_ms: int) -> View:
        """Messages as a client sees them. Raises Unreadable."""
        if not _all_clear(messages):
            messages = [self.unpack(ref, message) for message in messages]
        return View.of(ref, messages, now_ms)

    def check(self, error: type[NuskuError] = Unavailable) -> None:
        """Raise this where nothing can be encrypted or decrypted."""
        if self._ring.refusal:
            raise error(f"The queue is encrypted, and {self._ring.refusal}.")

    def encrypt(self, key: QueueKey, body: bytes) -> bytes:
        """What can be decrypted for this queue only. Raises Unavailable."""
        self.check()
        return self._ring.encrypt(key, body)

    def decrypt(self, key: QueueKey, message: Message, name: str = "A stored message") -> bytes:
        """What is in the body of a message, encrypted for this queue or clear.

        Raises Unreadable, which is logged and counted, and calls the message by the name.
        """
        if not is_encrypted(message.body):
            return message.body
        try:
            return self._ring.decrypt(key, message.body)
        except Undecryptable as why:
            self._unreadable[why.reason] += 1
            log.error(
                "a message cannot be decrypted",
                reason=why.reason,
                key=why.key_id,
                kind=key.kind,
                queue=key.name,
                project=key.project,
                position=message.position,
            )
            raise Unreadable(f"{name} cannot be decrypted.") from None
