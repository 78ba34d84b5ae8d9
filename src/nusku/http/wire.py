"""JSON to what the broker takes, and back. Shapes only; what values are allowed is the broker's."""

import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal
from urllib.parse import quote, urlencode

import msgspec

from nusku.broker import (
    Attempt,
    Change,
    ClaimTerms,
    Failed,
    NewMessage,
    Status,
    View,
    codec,
)
from nusku.errors import Invalid, InvalidBody, NuskuError
from nusku.model import Message, QueueKey
from nusku.shapes import Documents, encode


class _Error(msgspec.Struct, omit_defaults=True):
    title: str
    description: str = ""
    link: dict[str, str] | None = None


_HELP = {"text": "Documentation of the API", "href": "/docs", "rel": "help"}


class _Message(msgspec.Struct, omit_defaults=True, gc=False):
    id: str
    href: str
    ttl: int
    age: int
    body: msgspec.Raw
    checksum: str | None = None


class _Ping(msgspec.Struct):
    outcome: str
    reason: str
    status: int | None
    duration_ms: float
    detail: str


class _Attempt(_Ping):
    time: str


class _Status(msgspec.Struct):
    state: str
    reason: str
    pending: int
    failed: int
    delivered: int
    oldest_pending_age: int | None
    attempts: list[_Attempt]


class _Failed(msgspec.Struct):
    id: str
    age: int
    attempts: int
    reason: str
    body: msgspec.Raw


class Json(Documents):
    """Reads the bodies of requests (contract http-v2.md section 1.6)."""

    def object(self, data: bytes | None) -> dict[str, Any]:
        """The document, which must be an object."""
        document = self.check(data)
        if not isinstance(document, dict):
            raise InvalidBody("The body must be a JSON object.")
        return document

    def post(self, data: bytes | None) -> list[NewMessage]:
        """``{"messages": [{"body", "ttl", "delay"}, ...]}``."""
        document = self.check(data)
        if not isinstance(document, dict) or "messages" not in document:
            raise Invalid("The body has no key 'messages'.")
        new = document["messages"]
        if not isinstance(new, list):
            raise InvalidBody("'messages' must be an array.")
        return [_new_message(one, at) for at, one in enumerate(new)]

    def claim(self, data: bytes | None) -> tuple[ClaimTerms, int | None]:
        """``{"ttl", "grace", "limit"}``, all optional; a limit that makes no sense is ignored."""
        document = self.object(data)
        limit = document.get("limit")
        ttl_s, grace_s = document.get("ttl"), document.get("grace")
        terms = ClaimTerms(
            None if ttl_s is None else _integer(ttl_s, "ttl"),
            None if grace_s is None else _integer(grace_s, "grace"),
        )
        return terms, limit if type(limit) is int else None

    def changes(self, data: bytes | None) -> list[Change]:
        """A metadata patch (contract http-v2.md section 3.5)."""
        document = self.check(data)
        if not isinstance(document, list):
            raise InvalidBody("A patch is an array of operations.")
        return [_change(operation) for operation in document]

    def resource_types(self, data: bytes | None) -> list[str]:
        """What to purge; everything when there is no body."""
        known = ["messages", "subscriptions"]
        if data is None or data == b"":
            return known
        document = self.check(data)
        if not isinstance(document, dict) or "resource_types" not in document:
            raise Invalid("The body has no key 'resource_types'.")
        types = document["resource_types"]
        if not isinstance(types, list) or any(t not in known for t in types):
            raise Invalid("resource_types must be an array of 'messages' and 'subscriptions'.")
        return types

    def subscription(self, data: bytes | None) -> dict[str, Any]:
        """A new subscription. Without a body nothing is given, which is for the broker to judge."""
        return self.object(data) if data else {}

    def subscription_change(self, data: bytes | None) -> dict[str, Any]:
        """What to change of a subscription (contract http-v2.md section 6.4)."""
        document = self.check(data) if data else {}
        if not isinstance(document, dict):
            raise Invalid("Subscriptions must be a dict.")  # clients know this text
        if not document:
            raise Invalid("There is nothing to change: give subscriber, ttl or options.")
        return document

    def confirmed(self, data: bytes | None) -> bool:
        """``{"confirmed": true | false}``."""
        document = self.check(data) if data else {}
        confirmed = document.get("confirmed") if isinstance(document, dict) else None
        if not isinstance(confirmed, bool):
            raise Invalid("The 'confirmed' should be boolean.")  # clients know this text
        return confirmed

    def ids(self, data: bytes | None, most: int) -> list[str] | None:
        """``{"ids": [...]}``; None, which stands for all, when there is no body."""
        if not data:
            return None
        ids = self.object(data).get("ids")
        if not isinstance(ids, list) or any(not isinstance(one, str) for one in ids):
            raise InvalidBody("'ids' must be an array of strings; for all of them send no body.")
        if len(ids) > most:
            raise Invalid(f"At most {most} ids can be given at once; these are {len(ids)}.")
        return ids


def _integer(value: Any, what: str, at: int | None = None) -> int:
    """True counts as 1, as it always did on this wire."""
    if not isinstance(value, int):
        path = what if at is None else f"messages[{at}].{what}"
        raise InvalidBody(f"'{path}' must be an integer.")
    return int(value)


def _new_message(one: Any, at: int) -> NewMessage:
    if not isinstance(one, dict):
        raise InvalidBody(f"'messages[{at}]' must be an object.")
    if "body" not in one:
        raise InvalidBody(f"'messages[{at}]' must have the member 'body'.")
    return NewMessage(
        encode(one["body"]),
        _integer(one["ttl"], "ttl", at) if "ttl" in one else None,
        _integer(one["delay"], "delay", at) if "delay" in one else None,
    )


_ESCAPE = re.compile(r"~(?![01])")
_OPS: tuple[Literal["add", "remove", "replace"], ...] = ("add", "remove", "replace")


def _change(operation: Any) -> Change:
    if not isinstance(operation, dict):
        raise InvalidBody("An operation of a patch must be an object.")
    for key in ("op", "path"):
        if key not in operation:
            raise InvalidBody(f"An operation of a patch must have the member '{key}'.")
    op, path = operation["op"], operation["path"]
    if op not in _OPS:
        raise InvalidBody(f"'op' must be one of {', '.join(_OPS)}.")
    if not isinstance(path, str) or not path.startswith("/"):
        raise InvalidBody("'path' must be a string of the form /metadata/<key>.")
    if _ESCAPE.search(path):
        raise InvalidBody("In 'path', ~ stands only in ~0 and ~1.")
    tokens = [token.replace("~1", "/").replace("~0", "~").strip() for token in path[1:].split("/")]
    if len(tokens) != 2 or tokens[0].lower() != "metadata" or not tokens[1]:
        raise InvalidBody("'path' must be of the form /metadata/<key>.")
    if op != "remove" and "value" not in operation:
        raise InvalidBody(f"An operation '{op}' must have the member 'value'.")
    return Change(op, tokens[1], operation.get("value"))


def request_id(bits: Callable[[int], int]) -> str:
    """A new one, as OpenStack's services write them. ``bits`` makes a number of so many."""
    text = f"{bits(128):032x}"
    return f"req-{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"


def error(problem: NuskuError) -> bytes:
    """The error document. One of them has the form that Keystone gave it."""
    if problem.status == 401:
        return encode(
            {"error": {"code": 401, "title": problem.title, "message": problem.detail}},
        )
    link = _HELP if problem.status == 406 else None
    return encode(_Error(problem.title, problem.detail, link))


def path_of(key: QueueKey) -> str:
    """The path of a queue or topic. Legal names need no escaping."""
    return f"/v2/{key.kind}s/{key.name}"


def message(view: View, m: Message) -> _Message:
    """Contract http-v2.md section 4."""
    id_ = view.id_of(m)
    href = f"{path_of(view.key)}/messages/{id_}"
    if m.claim is not None:
        href = f"{href}?claim_id={m.claim}"
    checksum = None if m.attributes is None else codec.attributes(m).checksum
    return _Message(id_, href, m.ttl_s, view.age_s(m), msgspec.Raw(m.body), checksum)


def messages(view: View | None) -> list[_Message]:
    return [] if view is None else [message(view, m) for m in view.messages]


def ping(one: Attempt) -> _Ping:
    return _Ping(*_outcome(one))


def status(one: Status) -> _Status:
    """Of a subscription; the newest attempt is the first."""
    return _Status(
        one.state,
        one.reason,
        one.pending,
        one.failed,
        one.delivered,
        one.oldest_pending_age_s,
        [_Attempt(*_outcome(each), _moment(each.time_ms)) for each in one.attempts],
    )


def failed(one: Failed) -> _Failed:
    return _Failed(one.id, one.age_s, one.attempts, one.reason, msgspec.Raw(one.body))


def _outcome(one: Attempt) -> tuple[str, str, int | None, float, str]:
    return one.outcome, one.reason, one.status, round(one.duration_ms, 1), one.detail


def _moment(time_ms: int) -> str:
    seconds, ms = divmod(time_ms, 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{ms:03}Z"


def links(path: str, given: Sequence[tuple[str, object]]) -> list[dict[str, str]]:
    """The link to the next page: the parameters that were given, and the marker."""
    query = [
        (name, str(value).lower() if isinstance(value, bool) else value)
        for name, value in given
        if value is not None
    ]
    return [{"rel": "next", "href": f"{path}?{urlencode(query, quote_via=quote)}"}]
