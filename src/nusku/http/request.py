"""A request, with what the handlers need of it."""

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import falcon.asgi

from nusku.broker import rules
from nusku.errors import Invalid, InvalidBody, InvalidParameter
from nusku.model import Caller, Context

DRAINED_BYTES_MAX = 1 << 20  # a body that is this much too large is read and dropped, else cut off

_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")
_BOOLEANS = {
    **dict.fromkeys(("true", "True", "t", "yes", "y", "1", "on"), True),
    **dict.fromkeys(("false", "False", "f", "no", "n", "0", "off"), False),
}


class ClientGone(Exception):
    """The client hung up before it had sent the whole request."""


class Request(falcon.asgi.Request):
    """``ctx`` is there once the checks of contract http-v2.md section 1.3 are passed.

    ``caller`` is None where nobody had to prove who they are.
    """

    __slots__ = (
        "_first",
        "_more",
        "caller",
        "ctx",
        "head",
        "id",
        "must_close",
        "operation",
        "refusal",
        "started",
        "waited",
    )

    ctx: Context
    id: str
    operation: str

    def __init__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        first_event: Any = None,
        options: Any = None,
    ) -> None:
        super().__init__(scope, receive, first_event=first_event, options=options)
        self.started = time.perf_counter()
        self.operation = ""
        self.caller: Caller | None = None
        self.refusal = ""  # why it was, if who asks may not do that
        self.must_close = False
        self.waited = False  # for something to come, so its time says nothing about the load
        self.head: Mapping[bytes, bytes] = dict(scope["headers"])
        self._first = first_event
        self._more = receive

    async def body(self, limit: int, what: str) -> bytes | None:
        """The whole body; None when none was announced.

        Counted while it is read, so that chunks cannot pass the limit unseen. Raises Invalid,
        which names ``what`` is limited.
        """
        head = self.head
        declared = int(head.get(b"content-length", b"-1"))
        if declared > limit:
            self.must_close = declared > limit + DRAINED_BYTES_MAX
            raise Invalid(f"{what} is limited to {limit} bytes; this one has {declared}.")
        if declared < 0 and b"transfer-encoding" not in head:
            return None
        if head.get(b"content-encoding", b"identity") != b"identity":
            raise InvalidBody("Content-Encoding is not supported: send the body as it is.")
        event = self._first or await self._more()
        self._first = None
        if event["type"] != "http.request":
            raise ClientGone
        data: bytes = event["body"]
        if not event["more_body"]:
            if len(data) > limit:
                raise Invalid(f"{what} is limited to {limit} bytes.")
            return data
        parts, size = [data], len(data)
        while event["more_body"]:
            event = await self._more()
            if event["type"] != "http.request":
                raise ClientGone
            parts.append(event["body"])
            size += len(event["body"])
            if size > limit:
                self.must_close = True
                raise Invalid(f"{what} is limited to {limit} bytes.")
        return b"".join(parts)

    async def gone(self) -> None:
        """Return when the client hangs up."""
        event = self._first or await self._more()
        self._first = None
        while event["type"] != "http.disconnect":
            event = await self._more()

    # Query parameters (contract http-v2.md section 1.7). Empty ones count as absent.

    def string(self, name: str) -> str | None:
        """The last element of a parameter that is a single string."""
        value = self.params.get(name)
        if value is None:
            return None
        last = value[-1] if isinstance(value, list) else value
        return last.rpartition(",")[2] or None

    def strings(self, name: str) -> list[str]:
        """The elements of a list: comma-separated, repeated, or both."""
        value = self.params.get(name, ())
        values = (value,) if isinstance(value, str) else value
        return [element for part in values for element in part.split(",") if element]

    def integer(self, name: str) -> int | None:
        """Raises InvalidParameter."""
        text = self.string(name)
        if text is None:
            return None
        if not _INTEGER.fullmatch(text):
            raise InvalidParameter(f"The query parameter {name} must be an integer.")
        return int(text)

    def boolean(self, name: str) -> bool | None:
        """Raises InvalidParameter."""
        text = self.string(name)
        if text is None:
            return None
        if text not in _BOOLEANS:
            raise InvalidParameter(f"The query parameter {name} must be true or false.")
        return _BOOLEANS[text]

    def page_size(self, given: int | None, most: int, what: str = "limit") -> int:
        """How many are asked for. Raises Invalid."""
        return rules.PAGE_DEFAULT if given is None else rules.in_range(what, given, 1, most)

    def wait_s(self, most: int) -> int:
        """For how long the client would wait for something to come. Raises Invalid."""
        given = self.integer("wait")
        return 0 if given is None else rules.in_range("wait", given, 0, most, " seconds")
