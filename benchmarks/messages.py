"""What is posted, and the check that it comes back: known, unaltered, and once.

Every message carries a number and a pad that follows from the number, so that a body can be
verified wherever it turns up; the ledger knows how far each number has come.
"""

import random
from collections.abc import Iterable

import msgspec

from benchmarks.wire import WrongAnswerError

BODY_BYTES = 200
FIRST_NUMBER = 100_000_000
"""Numbers have nine digits, so that all posts of one size are equally long."""

_EMPTY_BODY = b'{"event":"bench","number":%d,"pad":"%s"}'
_PAD_CHARS = BODY_BYTES - len(_EMPTY_BODY % (FIRST_NUMBER, b""))
# Reproducible filler, the same in every run.
_POOL = random.Random(7).randbytes(1 << 16).hex()
_POOL_BYTES = _POOL.encode()
_POOL_MASK = (1 << 16) - 1

_POSTED, _CLAIMED, _DELETED = 1, 2, 3


class Body(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The body of every message."""

    event: str
    number: int
    pad: str


class Message(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The wire form of a message: these keys and no others."""

    id: str
    href: str
    ttl: int
    age: int
    body: Body
    checksum: str | None = None


class Claimed(msgspec.Struct, forbid_unknown_fields=True):
    """The answer to a claim."""

    messages: list[Message]


class Link(msgspec.Struct):
    """Where to go from a page."""

    rel: str
    href: str


class Page(msgspec.Struct, forbid_unknown_fields=True):
    """The answer to a listing."""

    messages: list[Message]
    links: list[Link]


class Posted(msgspec.Struct):
    """The answer to a post: the hrefs, in order."""

    resources: list[str]


class Counts(msgspec.Struct):
    """How many messages a queue holds."""

    claimed: int
    free: int
    total: int


class Stats(msgspec.Struct):
    """The answer to stats, as far as it is used."""

    messages: Counts


class Waiting(msgspec.Struct):
    """The answer to the status of a subscription, as far as it is used."""

    pending: int


decode_claimed = msgspec.json.Decoder(Claimed).decode
decode_message = msgspec.json.Decoder(Message).decode
decode_page = msgspec.json.Decoder(Page).decode
decode_posted = msgspec.json.Decoder(Posted).decode
decode_stats = msgspec.json.Decoder(Stats).decode
decode_waiting = msgspec.json.Decoder(Waiting).decode


def encode_body(number: int) -> bytes:
    """The body of one message."""
    start = number * 40503 & _POOL_MASK
    return _EMPTY_BODY % (number, _POOL_BYTES[start : start + _PAD_CHARS])


def encode_post(numbers: Iterable[int], ttl_s: int) -> bytes:
    """The body of a post of these messages."""
    entry = b'{"ttl":%d,"body":%s}' % (ttl_s, _EMPTY_BODY)
    parts = []
    for number in numbers:
        start = number * 40503 & _POOL_MASK
        parts.append(entry % (number, _POOL_BYTES[start : start + _PAD_CHARS]))
    return b'{"messages":[' + b",".join(parts) + b"]}"


def post_bytes(count: int, ttl_s: int) -> int:
    """Length of the body of a post of `count` messages."""
    return len(encode_post(range(FIRST_NUMBER, FIRST_NUMBER + count), ttl_s))


def verified_number(message: Message) -> int:
    """The number of a message whose body is as posted."""
    body = message.body
    number = body.number
    start = number * 40503 & _POOL_MASK
    if body.pad != _POOL[start : start + _PAD_CHARS] or body.event != "bench":
        raise WrongAnswerError(f"the body of message {number} came back altered: {body}")
    return number


class Ledger:
    """How far every number has come. Raises WrongAnswerError at anything unknown or repeated."""

    def __init__(self, first: int = FIRST_NUMBER) -> None:
        self.first = first
        self._states = bytearray()
        self.posted = 0
        """Messages whose post was answered with success."""
        self.claimed = 0
        self.deleted = 0

    def take(self, count: int) -> range:
        """Fresh numbers, about to be posted."""
        first = self.end
        self._states += bytes([_POSTED]) * count
        return range(first, first + count)

    @property
    def end(self) -> int:
        """The next fresh number."""
        return self.first + len(self._states)

    def claim(self, message: Message) -> int:
        """Note that a claim handed out this message; its number."""
        number = verified_number(message)
        index = number - self.first
        if not 0 <= index < len(self._states):
            raise WrongAnswerError(f"message {number} was never posted")
        if self._states[index] != _POSTED:
            raise WrongAnswerError(f"message {number} was handed out twice")
        self._states[index] = _CLAIMED
        self.claimed += 1
        return number

    def delete(self, number: int) -> None:
        """Note that a claimed message was deleted."""
        self._states[number - self.first] = _DELETED
        self.deleted += 1

    def check_no_gap(self) -> None:
        """Where messages were posted in the order of their numbers, none may have been passed over."""
        left = self._states.find(_POSTED)
        taken = max(self._states.rfind(_CLAIMED), self._states.rfind(_DELETED))
        if 0 <= left < taken:
            raise WrongAnswerError(
                f"message {self.first + left} was passed over, up to {self.first + taken}"
            )
