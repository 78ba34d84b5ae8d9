"""Messages as ``lanes.lua`` keeps them, to and from those that the rest of nusku hands around.

A message is a *state*, which the script reads and changes, and a *body* that it only hands on. The
body has its CRC-32 in front: Redis's files have no checksums that are looked at again.
"""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from struct import Struct
from typing import Any
from zlib import crc32

from msgspec import Raw

from nusku.errors import Unavailable
from nusku.model import Draft, Message, Stored
from nusku.storage.redis.keys import text

TIMES = Struct(">QQI")  # how a state begins
STATE = Struct(">QQIIB")  # posted, expires, ttl, count, flags
HOLD = Struct(">QQI32s")  # hidden until, claimed at, for how long, by which claim
HIDDEN, ATTRIBUTES, DEDUP = 1, 2, 4
NOBODY = bytes(32)
SUM_BYTES = 4  # of the checksum in front of a body


def packed(body: bytes) -> Raw:
    """A body as the scripts keep it."""
    return text(crc32(body).to_bytes(4), body)


def checked(stored: bytes) -> bytes:
    """The body; raises Unavailable when it is not what was stored."""
    body = stored[SUM_BYTES:]
    # Of nothing at all, as where the body's field is gone, the checksum would be right.
    if len(stored) < SUM_BYTES or crc32(body) != int.from_bytes(stored[:SUM_BYTES]):
        raise Unavailable("A stored message is damaged.")
    return body


def _rest(
    count: int, flags: int, client: str, dedup: str | None, attributes: bytes | None
) -> bytes:
    """A state from the count on, but for what stands in for HOLD."""
    name = client.encode()
    parts = [len(name).to_bytes(2), name]
    if dedup is not None:
        flags |= DEDUP
        key = dedup.encode()
        parts += (len(key).to_bytes(2), key)
    if attributes is not None:
        flags |= ATTRIBUTES
        parts.append(attributes)
    return b"".join((count.to_bytes(4), bytes((flags,)), *parts))


def drafted(draft: Draft) -> tuple[Any, ...]:
    """What ``post`` and ``add`` take."""
    flags = HIDDEN if draft.delay_s else 0
    rest = _rest(draft.count, flags, draft.client, draft.dedup, draft.attributes)
    dedup = False if draft.dedup is None else draft.dedup
    return (draft.ttl_s, draft.delay_s, text(rest), packed(draft.body), dedup, draft.posted_ms)


def loaded(one: Stored) -> tuple[Any, ...]:
    """What ``load`` takes."""
    if one.body is None:
        raise ValueError("a message comes without its body")
    flags, hold = 0, b""
    if one.hidden_ms:
        # A claim extends the lives of what it holds. Where rounding made an end in the other store a
        # little later than that of the message, the message's counts.
        hidden = one.hidden_ms if one.claim is None else min(one.hidden_ms, one.expires_ms)
        claim = NOBODY if one.claim is None else one.claim.encode()
        hold = HOLD.pack(hidden, one.claim_started_ms, one.claim_ttl_s, claim)
        flags = HIDDEN
    rest = _rest(one.count, flags, one.client, one.dedup, one.attributes)
    times = TIMES.pack(one.posted_ms, one.expires_ms, one.ttl_s)
    return (one.position, text(times, rest[:5], hold, rest[5:]), packed(one.body), one.dedup)


@contextmanager
def _damage_told() -> Iterator[None]:
    """A state that is none is damage, too."""
    try:
        yield
    except (struct.error, UnicodeDecodeError) as error:
        raise Unavailable("A stored message is damaged.") from error


def messages(answer: Sequence[Any], start: int) -> list[Message]:
    """Those in an answer, whose second element is the time."""
    now = answer[1]
    with _damage_told():
        return [
            _message(answer[at], answer[at + 1], answer[at + 2], now)
            for at in range(start, len(answer), 3)
        ]


def _message(position: int, state: bytes, stored: bytes, now: int) -> Message:
    posted, expires, ttl, count, flags = STATE.unpack_from(state)
    at, claim = 25, None
    if flags & HIDDEN:
        hidden, _, _, holder = HOLD.unpack_from(state, 25)
        at = 77
        if hidden > now and holder != NOBODY:
            claim = holder.decode()
    end = at + 2 + int.from_bytes(state[at : at + 2])
    client = state[at + 2 : end].decode()
    attributes = None
    if flags & ATTRIBUTES:
        if flags & DEDUP:
            end += 2 + int.from_bytes(state[end : end + 2])
        attributes = state[end:]
    return Message(
        position, posted, ttl, expires, count, client, checked(stored), claim, attributes
    )


def terms(answer: Sequence[Any], start: int) -> Iterator[tuple[int, int]]:
    """When each of the held messages in an answer was claimed, and for how long."""
    for at in range(start + 1, len(answer), 3):
        _, started, ttl, _ = HOLD.unpack_from(answer[at], 25)
        yield started, ttl


def dumped(answer: Sequence[Any], start: int, bodies: bool) -> list[Stored]:
    """The messages in an answer to ``dump``."""
    with _damage_told():
        return [
            _stored(answer[at], answer[at + 1], answer[at + 2], answer[1], bodies)
            for at in range(start, len(answer), 3)
        ]


def _stored(position: int, state: bytes, stored: bytes, now: int, bodies: bool) -> Stored:
    posted, expires, ttl, count, flags = STATE.unpack_from(state)
    at, hold = 25, (0, 0, 0, NOBODY)
    if flags & HIDDEN:
        hold = HOLD.unpack_from(state, 25)
        at = 77
        if hold[0] <= now:
            hold = (0, 0, 0, NOBODY)
    hidden, started, claim_ttl, holder = hold
    end = at + 2 + int.from_bytes(state[at : at + 2])
    client, dedup = state[at + 2 : end].decode(), None
    if flags & DEDUP:
        length = int.from_bytes(state[end : end + 2])
        dedup = state[end + 2 : end + 2 + length].decode()
        end += 2 + length
    return Stored(
        position,
        posted,
        ttl,
        expires,
        count,
        client,
        checked(stored) if bodies else None,
        state[end:] if flags & ATTRIBUTES else None,
        dedup,
        hidden,
        None if holder == NOBODY else holder.decode(),
        claim_ttl,
        started,
    )
