"""The forms of a webhook: body and headers of one POST. No clock and no network in here."""

import base64
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec

import nusku
from nusku.broker.deliveries import Parcel, Recipient

JSON = "application/json"
CLOUDEVENT_JSON = "application/cloudevents+json; charset=utf-8"
PLACEHOLDER = b'"$zaqar_message$"'
SECRET_PREFIX = "whsec_"  # noqa: S105 - says that what follows is one

_DEFAULTS = {"Content-Type": JSON, "User-Agent": f"nusku/{nusku.__version__}"}
# Who subscribes is not let set these; if one slipped in, it could make one request look like two.
_FRAMING = frozenset({"connection", "content-length", "host", "transfer-encoding"})
_EVENT_TYPES = {
    "notification": "nusku.message.posted",
    "ping": "nusku.subscription.pinged",
}
_encode = msgspec.json.Encoder().encode


class Post(NamedTuple):
    """What is sent, byte for byte."""

    body: bytes
    headers: dict[str, str]


class _Document(msgspec.Struct):
    """The part of a notification that other forms are made of; ``ttl`` in seconds."""

    body: msgspec.Raw
    ttl: int | None = None


_decode = msgspec.json.Decoder(_Document).decode


def compose(to: Recipient, parcel: Parcel, now_s: int, public_url: str = "") -> Post:
    """Make the POST for one attempt at ``now_s``, seconds since the epoch.

    A confirmation has the same form for everybody, whatever was made of the options, so that
    tools which confirm need to know but one.
    """
    options = to.options
    body = parcel.body
    own: dict[str, str] = {}  # what nobody may override
    if parcel.kind != "confirmation":
        template, event = options.get("post_data"), options.get("_cloudevents")
        if event:
            body, own = _cloudevent(to.key.kind, to.key.name, parcel, public_url, event)
        elif template is not None:
            # One pass: what looks like a placeholder inside the message stays as it is.
            body = template.encode().replace(PLACEHOLDER, parcel.body)
    if to.secrets:
        own |= _signed(to, parcel, body, now_s)
    headers = _DEFAULTS
    if given := options.get("post_headers"):
        headers = over(headers, {k: v for k, v in given.items() if k.lower() not in _FRAMING})
    return Post(body, over(headers, own) if own else headers.copy())


def over(headers: Mapping[str, str], others: Mapping[str, str]) -> dict[str, str]:
    """Both, the others winning. Names that differ in case only are the same name."""
    taken = {name.lower() for name in others}
    return {k: v for k, v in headers.items() if k.lower() not in taken} | dict(others)


def _signed(to: Recipient, parcel: Parcel, body: bytes, now_s: int) -> dict[str, str]:
    """The headers of Standard Webhooks: one signature for each secret."""
    event_id = f"{to.id}-{parcel.id}"
    signed = f"{event_id}.{now_s}.".encode() + body
    signatures = [
        "v1," + base64.b64encode(hmac.digest(_key(secret), signed, "sha256")).decode()
        for secret in to.secrets
    ]
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(now_s),
        "webhook-signature": " ".join(signatures),
    }


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(SECRET_PREFIX))


def _cloudevent(
    noun: str, name: str, parcel: Parcel, public_url: str, mode: str
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a CloudEvent 1.0 whose data is the body of the message.

    ``expirytime`` is the documented extension of that name: when the message will be gone.
    """
    document = _decode(parcel.body)
    attributes: dict[str, Any] = {
        "specversion": "1.0",
        "id": parcel.id,
        "source": f"{public_url.rstrip('/')}/v2/{noun}s/{quote(name, safe='')}",
        "type": _EVENT_TYPES[parcel.kind],
        "time": _utc(parcel.posted_ms),
    }
    if document.ttl is not None:
        attributes["expirytime"] = _utc(parcel.posted_ms + document.ttl * 1000)
    if mode == "binary":
        return bytes(document.body), {f"ce-{key}": value for key, value in attributes.items()}
    attributes |= {"datacontenttype": JSON, "data": document.body}
    return _encode(attributes), {"Content-Type": CLOUDEVENT_JSON}


def _utc(time_ms: int) -> str:
    """A time as RFC 3339 writes it."""
    moment = datetime.fromtimestamp(time_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
