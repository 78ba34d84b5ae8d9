"""Operations as they wait and as they are sent: many to one call of a script."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import structlog

from nusku.errors import Unavailable
from nusku.storage.redis.keys import Place, command, packed
from nusku.storage.redis.scripts import Script, lanes, records

log = structlog.get_logger("nusku.storage")

# What an answer of a script begins with; see lanes/constants.lua.
OK, STALE, FULL, REGISTER, AGAIN, TAKEN, USED_UP = range(7)

LANES, RECORDS = lanes(), records()

ENCODE = msgspec.msgpack.Encoder().encode
NUMBERS = [ENCODE(n) for n in range(1024)]


def unspeakable(error: Exception) -> Unavailable:
    """Something can't be put in bytes: half a surrogate pair, a number that is too large."""
    log.error("operation failed", exc_info=error)
    return Unavailable("The storage could not do this.")


@contextlib.contextmanager
def speakable() -> Iterator[None]:
    """Raise Unavailable for what can't be put in bytes."""
    try:
        yield
    except (ValueError, OverflowError) as error:
        raise unspeakable(error) from error


class Operation:
    """What waits, and the future of its caller.

    With a script ``data`` is the operation in MessagePack, else a command. ``writes``: it may
    change something; ``adds``: it is refused with StoreFull where memory is used up.
    """

    __slots__ = ("adds", "asking", "data", "deadline", "future", "moves", "places", "script",
                 "slot", "weight", "writes")  # fmt: skip

    def __init__(
        self,
        script: Script | None,
        places: Sequence[Place],
        data: bytes,
        weight: int,
        slot: int,
        future: "asyncio.Future[Any]",
        writes: bool,
        adds: bool,
    ) -> None:
        self.script = script
        self.places = places
        self.data = data
        self.weight = weight
        self.slot = slot
        self.future = future
        self.writes = writes
        self.adds = adds
        self.asking = False
        self.moves = 0
        self.deadline = 0.0

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Call:
    """Operations that one call of a script does, in their order."""

    __slots__ = ("asking", "numbers", "operations", "script")

    def __init__(self, script: Script | None, asking: bool) -> None:
        self.script = script
        self.asking = asking
        self.operations: list[Operation] = []
        self.numbers: dict[Place, int] = {}

    def add(self, operation: Operation) -> None:
        self.operations.append(operation)
        for place in operation.places:
            if place not in self.numbers:
                self.numbers[place] = len(self.numbers) + 1

    def sent(self, clock: bytes, server: bytes) -> bytes:
        """The call as it is sent."""
        asking = _ASKING if self.asking else b""
        if self.script is None:
            return asking + self.operations[0].data
        numbers = self.numbers
        parts = [_array(2 * len(self.operations))]
        for one in self.operations:
            parts.append(bytes((0x90 + len(one.places),)) if len(one.places) < 16
                         else _array(len(one.places)))  # fmt: skip
            parts += [_number(numbers[place]) for place in one.places]
            parts.append(one.data)
        batch = b"".join(parts)
        return b"%b*%d\r\n%b%b%b%b%b" % (
            asking,
            6 + 2 * len(numbers),
            self.script.sha,
            packed(b"%d" % (2 * len(numbers))),
            b"".join([place.packed for place in numbers]),
            packed(clock, server),
            packed(batch),
        )


_ASKING = command("ASKING")


def _array(length: int) -> bytes:
    return b"\xdd" + length.to_bytes(4)


def _number(n: int) -> bytes:
    return NUMBERS[n] if n < len(NUMBERS) else ENCODE(n)
