"""What all transports have in common on the wire: how documents are checked that come, and what
looks the same wherever it goes. Shapes only; what values are allowed is the broker's.
"""

from typing import Any

import msgspec

from nusku.broker import Subscription, View, codec
from nusku.errors import InvalidBody
from nusku.model import Message

encode = msgspec.json.Encoder().encode
_decode_any = msgspec.json.Decoder().decode

# Every digit becomes a 0, so that a run of digits is found by a plain search.
_DIGITS = bytes(0x30 if chr(byte).isdigit() and byte < 0x80 else 0x20 for byte in range(256))
_MAYBE_BIG = b"0" * 19
INT_MIN, INT_MAX = -(1 << 63), (1 << 63) - 1


class Documents:
    """Checks JSON documents (contract http-v2.md section 1.6)."""

    def __init__(self, depth_max: int) -> None:
        self.depth_max = depth_max

    def check(self, data: bytes | None) -> Any:
        """The document, an object or array. Raises InvalidBody and says what is wrong with it."""
        if not data:
            raise InvalidBody("The body is missing: the body could not be parsed.")
        try:
            document = self.decode(data)
        except ValueError as error:
            raise InvalidBody(f"The body could not be parsed: {error}.") from None
        if not isinstance(document, dict | list):
            raise InvalidBody("The body could not be parsed: it must be a JSON object or array.")
        return document

    def decode(self, data: bytes) -> Any:
        """What the JSON says, whatever it is. Raises ValueError."""
        try:
            document = _decode_any(data)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ValueError(str(error)) from None
        if data.count(b"[") + data.count(b"{") > self.depth_max:
            self._check_depth(document)
        if _MAYBE_BIG in data.translate(_DIGITS):
            _check_integers(document)
        return document

    def _check_depth(self, document: Any) -> None:
        level, depth = [document], 0
        while level:
            depth += 1
            if depth > self.depth_max:
                raise ValueError(f"it is nested deeper than {self.depth_max} levels")
            level = [
                inner
                for outer in level
                for inner in (outer.values() if isinstance(outer, dict) else outer)
                if isinstance(inner, dict | list)
            ]


def _check_integers(value: Any) -> None:
    """Raise ValueError if an integer does not fit in 64 bits."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
        elif isinstance(one, int) and not INT_MIN <= one <= INT_MAX:
            raise ValueError("integer too large")


class _Popped(msgspec.Struct, gc=False):
    id: str
    age: int
    ttl: int
    body: msgspec.Raw
    claim_id: None
    claim_count: int


class _PoppedWithChecksum(_Popped, gc=False):
    checksum: str


class _Subscription(msgspec.Struct):
    id: str
    source: str
    subscriber: str
    ttl: int
    age: int
    options: dict[str, Any]
    confirmed: bool


def popped(view: View, m: Message) -> _Popped:
    """Contract http-v2.md section 4.7: no href."""
    checksum = None if m.attributes is None else codec.attributes(m).checksum
    basic = (view.id_of(m), view.age_s(m), m.ttl_s, msgspec.Raw(m.body), None, m.count)
    return _Popped(*basic) if checksum is None else _PoppedWithChecksum(*basic, checksum)


def subscription(one: Subscription) -> _Subscription:
    """Contract http-v2.md section 6: clients want all seven members."""
    return _Subscription(
        one.id,
        one.key.name,
        one.subscriber,
        one.ttl_s,
        one.age_s,
        one.options,
        one.confirmed,
    )
