"""Messages on their way to a client."""

from collections.abc import Sequence
from typing import Self

import msgspec

from nusku.broker import ids
from nusku.model import Message, QueueKey, QueueRef


class View(msgspec.Struct, frozen=True):
    """Messages of a queue as they were at ``now_ms``."""

    key: QueueKey
    generation: str
    messages: Sequence[Message]
    now_ms: int

    @classmethod
    def of(cls, ref: QueueRef, messages: Sequence[Message], now_ms: int) -> Self:
        return cls(ref.key, ref.generation, messages, now_ms)

    def id_of(self, message: Message) -> str:
        return ids.message_id(self.generation, message.position)

    def age_s(self, message: Message) -> int:
        """Whole seconds since it was posted."""
        return max(self.now_ms - message.posted_ms, 0) // 1000
