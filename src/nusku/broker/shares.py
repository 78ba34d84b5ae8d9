"""Pre-signed URLs for a queue, made for whoever is to use it without an account."""

from collections.abc import Callable
from typing import Any

from nusku import signing
from nusku.broker.operation import operation
from nusku.config import Settings
from nusku.errors import Invalid
from nusku.model import Context, QueueKey

PATHS = ("claims", "messages", "subscriptions")
DEFAULT_TTL_S = 86_400

_KNOWN = frozenset({"paths", "methods", "expires"})


class Shares:
    """``secret`` signs; empty, nothing can be shared. ``now`` is the wall clock, in seconds."""

    def __init__(self, secret: str, settings: Settings, now: Callable[[], float]) -> None:
        self._secret = secret
        self._ttl_max_s = settings.max_signature_ttl
        self._now = now

    @operation("queues:share")
    async def share(self, ctx: Context, key: QueueKey, document: Any) -> dict[str, Any]:
        """Sign access to parts of a queue, which need not exist (contract http-v2.md section 7.1).

        The document is ``{"paths", "methods", "expires"}``, all optional; the answer adds
        ``project`` and ``signature``. Raises Invalid.
        """
        if not self._secret:
            raise Invalid("This server has no key to sign with: secret_key must be set.")
        if not isinstance(document, dict):
            raise Invalid("The body must be a JSON object.")
        if not _KNOWN.issuperset(document):
            raise Invalid("The body has other keys than paths, methods and expires.")
        names = _some_of(document, "paths", PATHS) or ["messages"]
        methods = _some_of(document, "methods", signing.METHODS) or ["GET"]
        paths = [f"/v2/{key.kind}s/{key.name}/{name}" for name in names]
        expires = self._expires(document.get("expires"))
        return {
            "paths": paths,
            "methods": methods,
            "project": ctx.project,
            "expires": expires,
            "signature": signing.sign(self._secret, paths, methods, ctx.project, expires),
        }

    def _expires(self, given: Any) -> str:
        now_s = self._now()
        if given is None:
            return signing.expiry_text(int(now_s) + min(DEFAULT_TTL_S, self._ttl_max_s))
        try:
            at_s = signing.expiry_s(given)
        except (TypeError, ValueError):
            raise Invalid(
                "expires must be an ISO 8601 date or time, such as 2030-01-31T12:00:00."
            ) from None
        if at_s <= now_s:
            raise Invalid("expires must be in the future.")
        if at_s > now_s + self._ttl_max_s:
            raise Invalid(
                f"expires must be at most {self._ttl_max_s} seconds from now (max_signature_ttl)."
            )
        return signing.expiry_text(at_s)


def _some_of(document: dict[str, Any], what: str, known: tuple[str, ...]) -> list[str]:
    """A list of some of these, sorted, each once. Null is as good as an empty one."""
    given = document.get(what)
    if given is None:
        return []
    if not isinstance(given, list) or any(one not in known for one in given):
        raise Invalid(f"{what} must be a list with some of {', '.join(known)}.")
    return [one for one in known if one in given]
