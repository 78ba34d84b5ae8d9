"""Requests and replies as JSON in text frames and as MessagePack in binary ones (contract
websocket.md sections 2 and 3). MessagePack is another spelling of the same documents.
"""

import math
from typing import Any

import msgspec

from nusku.shapes import INT_MAX, INT_MIN, Documents, encode

ENVELOPE_BYTES = 65_536  # of a request, beside what it is about

# What is not sent back to whoever sent it.
_SECRETS = ("X-Auth-Token", "URL-Signature")


# Codes of close frames (RFC 6455 section 7.4, and our own).
NORMAL, GOING_AWAY, TOO_BIG, POLICY, TRY_AGAIN = 1000, 1001, 1009, 1008, 1013
INTERNAL, UNAUTHENTICATED, EXPIRED = 1011, 4401, 4003


class Undecodable(Exception):
    """A frame that is no request. The text is for its sender."""


class Request(msgspec.Struct):
    """One frame, as it was sent: nothing but that it is an object was looked at.

    ``size`` is how many bytes it had. The body of a large one is a ``msgspec.Raw`` until it is known
    who asks (:meth:`Frames.body`).
    """

    binary: bool
    size: int
    action: Any = None
    headers: Any = None
    body: Any = None


class _Envelope(msgspec.Struct):
    action: msgspec.Raw = msgspec.Raw(b"")
    headers: msgspec.Raw = msgspec.Raw(b"")
    body: msgspec.Raw = msgspec.Raw(b"")


class _Named(msgspec.Struct):
    queue_name: str = ""


class _Echo(msgspec.Struct):
    action: Any
    body: Any
    headers: Any
    api: str = "v2"


class _Headers(msgspec.Struct):
    status: int


class _Reply(msgspec.Struct):
    request: _Echo
    body: Any
    headers: _Headers


class Frames:
    """Reads and writes frames."""

    def __init__(self, json_depth_max: int) -> None:
        # A request has its document one level below itself.
        self._documents = Documents(json_depth_max + 1)

    def read(self, data: bytes, *, binary: bool) -> Request:
        """A request. Raises Undecodable."""
        if len(data) > ENVELOPE_BYTES:
            return self._open(data, binary=binary)
        document = self._decode(data, binary=binary)
        if not isinstance(document, dict):
            raise Undecodable("Unexpected body type. Expected dict, found a value of another kind.")
        return Request(
            binary,
            len(data),
            document.get("action"),
            document.get("headers"),
            document.get("body"),
        )

    def body(self, request: Request) -> Any:
        """What a request is about, looked at. Raises Undecodable."""
        if isinstance(request.body, msgspec.Raw):
            request.body = self._decode(bytes(request.body), binary=request.binary)
        return request.body

    def _open(self, data: bytes, *, binary: bool) -> Request:
        """A large request without its body: looking at all of that takes a while."""
        decode = msgspec.msgpack.decode if binary else msgspec.json.decode
        try:
            envelope = decode(data, type=_Envelope)
        except (ValueError, msgspec.MsgspecError, RecursionError) as error:
            raise _undecodable(error, binary=binary) from None
        if len(data) - len(bytes(envelope.body)) > ENVELOPE_BYTES:
            raise Undecodable(f"All but the body is limited to {ENVELOPE_BYTES} bytes.")
        action, headers = (
            self._decode(part, binary=binary) if (part := bytes(raw)) else None
            for raw in (envelope.action, envelope.headers)
        )
        return Request(binary, len(data), action, headers, envelope.body)

    def _decode(self, data: bytes, *, binary: bool) -> Any:
        try:
            return self._unpack(data) if binary else self._documents.decode(data)
        except ValueError as error:
            raise _undecodable(error, binary=binary) from None

    def _unpack(self, data: bytes) -> Any:
        """What MessagePack says, if JSON could say it too. Raises ValueError."""
        try:
            document = msgspec.msgpack.decode(data)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ValueError(str(error)) from None
        level, depth = [document], 0
        while level:
            depth += 1
            if depth > self._documents.depth_max + 1:  # single values count here
                raise ValueError(f"it is nested deeper than {self._documents.depth_max} levels")
            inner: list[Any] = []
            for value in level:
                _check(value)
                if isinstance(value, dict):
                    inner += value.values()
                elif isinstance(value, list):
                    inner += value
            level = inner
        return document


def _undecodable(error: Exception, *, binary: bool) -> Undecodable:
    kind = "binary (MessagePack)" if binary else "text (JSON)"
    return Undecodable(f"Can't decode {kind} request. ValueError: {error}")


def queue_name(request: Request) -> str:
    """The queue that a request names, whose body need not have been looked at; else empty."""
    body = request.body
    if isinstance(body, msgspec.Raw):
        decode = msgspec.msgpack.decode if request.binary else msgspec.json.decode
        try:
            return decode(body, type=_Named).queue_name
        except (ValueError, msgspec.MsgspecError, RecursionError):
            return ""
    name = body.get("queue_name") if isinstance(body, dict) else None
    return name if isinstance(name, str) else ""


def _check(value: Any) -> None:
    """Raise ValueError for what JSON has no word for; what a list or a map holds comes later."""
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("a key of a map is not a string")
    elif isinstance(value, int):
        if not INT_MIN <= value <= INT_MAX:
            raise ValueError("integer too large")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a number is not finite")
    elif not (value is None or isinstance(value, str | list)):
        raise ValueError("bytes, times and extensions have no equal in JSON")


def reply(request: Request, status: int, body: Any) -> bytes:
    """The answer to a request, in its spelling."""
    headers, about = request.headers, request.body
    if isinstance(about, msgspec.Raw):
        about = None  # nobody has looked at it, so it is not sent on either
    if isinstance(headers, dict) and not headers.keys().isdisjoint(_SECRETS):
        headers = {name: value for name, value in headers.items() if name not in _SECRETS}
    echo = _Echo(
        request.action,
        {} if about is None else about,
        {} if headers is None else headers,
    )
    return spelled(encode(_Reply(echo, body, _Headers(status))), binary=request.binary)


def spelled(json: bytes, *, binary: bool) -> bytes:
    """A JSON document in one of the two spellings."""
    return msgspec.msgpack.encode(msgspec.json.decode(json)) if binary else json
