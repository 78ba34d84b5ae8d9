"""Cross-origin requests: which web pages a browser lets at the service (contract http-v2.md 1.2)."""

from collections.abc import Sequence

from falcon.asgi import Response

from nusku.http.request import Request

METHODS = ("GET", "PUT", "POST", "DELETE", "PATCH", "HEAD")
MAX_AGE_S = 3600  # that a browser may remember what it was told of a resource

# What every browser lets through, and may ask for nevertheless.
_SIMPLE_REQUEST = (
    "Accept",
    "Accept-Language",
    "Cache-Control",
    "Content-Language",
    "Content-Type",
    "Expires",
    "Last-Modified",
    "Pragma",
)
# As in Zaqar.
_REQUEST = (
    "X-Auth-Token",
    "X-Identity-Status",
    "X-Roles",
    "X-Service-Catalog",
    "X-User-Id",
    "X-Tenant-Id",
    "X-OpenStack-Request-ID",
    "X-Trace-Info",
    "X-Trace-HMAC",
    "Client-id",
)
# Without these a page could use neither pre-signed URLs nor API keys nor what it was granted.
_REQUEST_OF_OURS = (
    "Authorization",
    "X-Project-Id",
    "Queue-Project-Id",
    "URL-Signature",
    "URL-Expires",
    "URL-Methods",
    "URL-Paths",
)
_ALLOWED = frozenset(name.lower() for name in (*_SIMPLE_REQUEST, *_REQUEST, *_REQUEST_OF_OURS))
_EXPOSED = (
    "X-Auth-Token,X-Subject-Token,X-Service-Token,X-OpenStack-Request-ID"
    # Beyond Zaqar: where a claim or a subscription is, and when to come again.
    ",Location,Retry-After"
)


class Origins:
    """Those that are allowed, as in the setting ``cors_origins``."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._named = frozenset(allowed)
        self._all = "*" in self._named

    def told(self, origin: str | None) -> str | None:
        """What a page of this origin is told that it is; None if it is not allowed."""
        if origin is None:
            return None
        if origin in self._named:
            return origin
        return "*" if self._all else None


class Cors:
    """Falcon's middleware that adds the headers of CORS. It goes round everything else: a page may
    read what an error says, and asks with OPTIONS before it has any credentials.
    """

    def __init__(self, origins: Origins) -> None:
        self._origins = origins

    async def process_response(
        self, req: Request, resp: Response, resource: object, succeeded: bool
    ) -> None:
        # What is kept on the way must not be given to a page of another origin.
        resp.append_header("Vary", "Origin")
        origin = self._origins.told(req.get_header("Origin"))
        if origin is None:
            return
        if req.method != "OPTIONS":
            resp.set_header("Access-Control-Expose-Headers", _EXPOSED)
        elif not _preflight(req, resp):
            return
        resp.set_header("Access-Control-Allow-Origin", origin)
        if origin != "*":  # browsers take the two together for a mistake
            resp.set_header("Access-Control-Allow-Credentials", "true")


def _preflight(req: Request, resp: Response) -> bool:
    """Answer whether a request may be sent; without an answer a browser does not send it."""
    method = req.get_header("Access-Control-Request-Method")
    asked = req.get_header("Access-Control-Request-Headers") or ""
    names = [name.strip() for name in asked.split(",") if name.strip()]
    if method not in METHODS or not _ALLOWED.issuperset(name.lower() for name in names):
        return False
    resp.set_header("Access-Control-Allow-Methods", method)
    resp.set_header("Access-Control-Max-Age", str(MAX_AGE_S))
    if names:
        resp.set_header("Access-Control-Allow-Headers", ",".join(names))
    return True
