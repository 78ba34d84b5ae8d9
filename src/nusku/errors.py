"""Everything a caller can be told went wrong.

The docstring of a class is its entry in the catalogue (``docs/errors.md``, printed by
``python -m nusku.errors``): what happened and what to do about it. ``status`` and ``title`` are
the wire's (contract http-v2.md section 1.8); the text given when raising is the description.
"""

from typing import ClassVar


class NuskuError(Exception):
    """Anything that is answered with an error document."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal server error"

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail)
        self.detail = detail


class Invalid(NuskuError):
    """A value is out of its range, or the request makes no sense. The text names the limit."""

    status = 400
    title = "Invalid API request"


class NothingToUpdate(Invalid):
    """A subscription is changed by its `subscriber`, `ttl` or `options`, and none was given."""

    title = "Unable to update subscription"


class InvalidBody(NuskuError):
    """The body is missing, not JSON, or not of the shape that the operation takes."""

    status = 400
    title = "Invalid request body"


class InvalidPool(NuskuError):
    """The pool's store offers other capabilities than the pools that share its flavor, or cannot
    be connected to.
    """

    status = 400
    title = "Unable to create pool"


class InvalidFlavor(NuskuError):
    """A flavor is made of pools that exist, at least one, all of the same capabilities."""

    status = 400
    title = "Unable to create"


class InvalidFlavorUpdate(InvalidFlavor):
    """A flavor is made of pools that exist, at least one, all of the same capabilities."""

    title = "updatefail"


class InvalidParameter(NuskuError):
    """A query parameter is not the integer or boolean that it has to be."""

    status = 400
    title = "Invalid parameter"


class InvalidContentType(NuskuError):
    """A form was sent. Bodies are JSON."""

    status = 400
    title = "Invalid Content-Type"


class MissingClient(NuskuError):
    """Every request under /v2 names its client in the Client-ID header."""

    status = 400
    title = "Missing header value"


class WrongClient(NuskuError):
    """Client-ID is not a UUID (or, with ``client_id_uuid_safe = off``, not of a legal length)."""

    status = 400
    title = "Wrong UUID value"


class MissingProject(NuskuError):
    """Every request under /v2 names its project in the X-Project-ID header."""

    status = 400
    title = "Project-Id Missing"


class EmptyProject(NuskuError):
    """The project header is there, but empty."""

    status = 400
    title = "Empty project header not allowed"


class InvalidQueueName(NuskuError):
    """The name of the queue in the path, or the project's, is not a legal one."""

    status = 400
    title = "Invalid queue identification"


class InvalidTopicName(NuskuError):
    """The name of the topic in the path, or the project's, is not a legal one."""

    status = 400
    title = "Invalid topic identification"


class ClaimMismatch(NuskuError):
    """The message is not held by the claim that was given: it lapsed, was released, or never
    was. Somebody else may be working on the message.
    """

    status = 400
    title = "Unable to delete"


class MessageClaimed(NuskuError):
    """The message is held by a claim that was not given. Only its holder may delete it."""

    status = 403
    title = "Unable to delete"


class PoolInUse(NuskuError):
    """The pool holds messages, or notifications that are still to be made, or it is the last one
    of its flavor. Drain it, or take the flavor away, first.
    """

    status = 403
    title = "Unable to delete"


class Unauthorized(NuskuError):
    """No credentials came with the request, or they are wrong, have expired or were withdrawn.

    `WWW-Authenticate` says which are taken. The body has the form that clients of OpenStack know:
    `{"error": {"code": 401, "title": "Unauthorized", "message": "..."}}`.
    """

    status = 401
    title = "Unauthorized"

    def __init__(self, why: str, challenge: str) -> None:
        """``why`` is for logs, and not told to the caller; ``challenge`` for the header."""
        super().__init__("The request you have made requires authentication.")
        self.why = why
        self.challenge = challenge


class Forbidden(NuskuError):
    """The policy does not let this caller do that."""

    status = 403
    title = "Not authorized"


class QuotaExceeded(NuskuError):
    """The project may not have more of this: queues, messages, bytes of messages, or subscriptions.
    The text says how many it may have, and has. Nothing was added. Remove some, or ask the operator.
    """

    status = 403
    title = "Quota exceeded"


class NotFound(NuskuError):
    """There is no such thing here (any more)."""

    status = 404
    title = "Not found"


class NotAcceptable(NuskuError):
    """The Accept header admits none of the media types that can be answered."""

    status = 406
    title = "406 Not Acceptable"


class Conflict(NuskuError):
    """The change does not fit what is stored."""

    status = 409
    title = "Resource conflict"


class UnsupportedMediaType(NuskuError):
    """The body's media type is not the one that this operation takes."""

    status = 415
    title = "415 Unsupported Media Type"


class Unavailable(NuskuError):
    """The service cannot do this now. A write that got this answer may or may not have taken
    effect, but wholly or not at all.
    """

    status = 503
    title = "Service temporarily unavailable"

    def __init__(self, detail: str = "The storage did not answer.") -> None:
        super().__init__(f"{detail} Please try again in a few seconds.")
        self.retry_after_s = 1


class RateExceeded(Unavailable):
    """The project makes more requests than it may. `Retry-After` says when there is room for one
    again. The request had no effect.
    """

    def __init__(self, detail: str, retry_after_s: int) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Unreadable(Unavailable):
    """A message of an encrypted queue cannot be decrypted: it was altered in the store, or the key
    that it needs is not among those that the server knows. The text says which message, the log
    also why. It can be deleted.
    """


class StoreFull(Unavailable):
    """The disk has less room than ``disk_watermark``. New messages and queues are refused, with
    no effect; reading, claiming and deleting go on.
    """


class TrustFailed(Unavailable):
    """Keystone, which makes the trusts of `trust+http` subscriptions, refuses or does not answer.
    The text says which settings are missing where none is configured.
    """


class StoreRefused(Exception):
    """A store that cannot be opened: damaged, foreign, newer than this program, read-only or in
    use by another server. Raised at the start only; its text is for the operator.
    """


def _tree(base: type[NuskuError]) -> list[type[NuskuError]]:
    public = (c for c in base.__subclasses__() if not c.__name__.startswith("_"))
    return [c for child in public for c in (child, *_tree(child))]


def catalogue() -> str:
    """``docs/errors.md``: every error that a client can get."""
    rows = [
        f"| {c.status} | `{c.title}` | {' '.join((c.__doc__ or '').split())} |"
        for c in sorted(_tree(NuskuError), key=lambda c: (c.status, c.title))
    ]
    return "\n".join(
        [
            "# Errors",
            "",
            "An error is a JSON object with `title` and, mostly, `description`. The title and the",
            "status are stable; the description says what was wrong with this very request.",
            "",
            "| status | title | meaning |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    print(catalogue(), end="")  # noqa: T201 - printing is its purpose
