"""What a sender is, and what it says of an attempt."""

from typing import Literal, Protocol

import msgspec

from nusku.broker.deliveries import Parcel, Recipient

Result = Literal["delivered", "refused", "failed"]
Reason = Literal[
    "",
    "status",
    "timeout",
    "connection",
    "tls",
    "blocked",
    "dns",
    "smtp",
    "token",
    "redirect",
    "internal",
]


class Outcome(msgspec.Struct, frozen=True):
    """What became of one attempt.

    ``delivered`` and ``refused`` are final, ``failed`` asks for another attempt. ``status`` is
    that of HTTP or SMTP. ``detail`` is a sentence for the owner of the subscription and for the
    operator; it holds no secret, header, body or resolved address. ``gone``: nobody will ever
    listen there again.
    """

    result: Result
    reason: Reason = ""
    status: int | None = None
    detail: str = ""
    retry_after_s: int | None = None
    gone: bool = False


class Sender(Protocol):
    """Knows one way to tell a subscriber."""

    async def send(self, to: Recipient, parcel: Parcel) -> Outcome:
        """Try once, within a time that the settings bound. Raises nothing but CancelledError."""
        ...

    async def close(self) -> None:
        """Let go of connections. May be called twice."""
        ...
