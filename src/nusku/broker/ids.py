"""Ids. Those of messages are the queue's generation and the position in it, as one opaque string.

An id needs no look-up to be used as a marker, stays valid when its message is gone, and sorts as
its queue does. One of another project, queue or generation is simply unknown.
"""

import random
import re
from typing import NamedTuple, Self

from nusku.errors import Invalid

_GENERATION, _POSITION = 16, 13
_MESSAGE = re.compile(r"[0-9a-f]{29}")
_SUBSCRIPTION = re.compile(r"[0-9a-f]{24}")


def new_generation(rng: random.Random) -> str:
    """A generation that no queue had before."""
    return f"{rng.getrandbits(64):016x}"


def first_version(generation: str) -> int:
    """The version that the record of a queue begins with: some number below 2**40.

    Changes go from one version to the next. Did all queues begin with the same, one that was meant
    for an earlier queue of that name, and comes late, would bring that back in place of this.
    """
    return 1 + int(generation[:10], 16)


def message_id(generation: str, position: int) -> str:
    """The id of a message: 29 hexadecimal digits."""
    return f"{generation}{position:013x}"


def position_of(generation: str, id_: str) -> int:
    """The position in an id; 0, which no message has, if it is none of this generation's."""
    if len(id_) != _GENERATION + _POSITION or not id_.startswith(generation):
        return 0
    try:
        position = int(id_[_GENERATION:], 16)
    except ValueError:
        return 0
    return position if message_id(generation, position) == id_ else 0


class Point(NamedTuple):
    """How far a queue was read: to this position in this generation of it; "" and 0 for not at all."""

    generation: str
    position: int

    @classmethod
    def behind(cls, marker: str) -> Self:
        """Behind the message with this id, or before all others. Raises Invalid."""
        if not marker:
            return cls("", 0)
        if not _MESSAGE.fullmatch(marker):
            raise Invalid("The marker is not the id of a message.")
        return cls(marker[:_GENERATION], int(marker[_GENERATION:], 16))


def is_subscription_id(text: str) -> bool:
    """Whether it looks like one; any other text would sort among them."""
    return _SUBSCRIPTION.fullmatch(text) is not None


class SubscriptionIds:
    """24 hexadecimal digits that sort by the time they were made at, and cannot be guessed."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._last_ms = 0

    def new(self, now_ms: int) -> str:
        """One greater than all that were made here before."""
        self._last_ms = max(now_ms, self._last_ms + 1)
        return f"{self._last_ms:012x}{self._rng.getrandbits(48):012x}"
