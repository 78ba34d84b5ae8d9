"""What is not about messages: discovery, health, metrics, documentation."""

from base64 import b64encode
from collections.abc import Awaitable, Callable
from hashlib import sha256
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
from falcon.asgi import Response

from nusku.broker import Broker
from nusku.config import Settings
from nusku.errors import Forbidden
from nusku.http.home import document as home_document
from nusku.http.page_style import STYLE
from nusku.http.request import Request
from nusku.shapes import encode

VERSIONS = encode(
    {
        "versions": [
            {
                "id": "2",
                "status": "CURRENT",
                "updated": "2014-9-24T04:06:47Z",
                "media-types": [
                    {
                        "base": "application/json",
                        "type": "application/vnd.openstack.messaging-v2+json",
                    }
                ],
                "links": [{"href": "/v2/", "rel": "self"}],
            }
        ]
    }
)


# What a browser may make of a document that it is led to: nothing but what it is.
_NO_GUESSING = ("X-Content-Type-Options", "nosniff")
_STYLE_DIGEST = b64encode(sha256(STYLE.encode()).digest()).decode()
_PAGE_HEADERS = (
    _NO_GUESSING,
    (
        "Content-Security-Policy",
        f"default-src 'none'; style-src 'sha256-{_STYLE_DIGEST}'; base-uri 'none';"
        " form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Frame-Options", "DENY"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
)


class SystemHandlers:
    """``figures`` are the metrics; ``openapi`` is made when first asked for, ``page`` from it."""

    def __init__(
        self,
        broker: Broker,
        settings: Settings,
        figures: Callable[[], Awaitable[bytes]],
        openapi: Callable[[], dict[str, Any]],
        page: Callable[[dict[str, Any]], str],
    ) -> None:
        self._health = broker.health
        self._figures = figures
        self._metrics_allow = [ip_network(cidr) for cidr in settings.metrics_allow]
        self._home = msgspec.json.format(encode(home_document()), indent=4)
        self._openapi = openapi
        self._page = page

    async def versions(self, req: Request, resp: Response) -> None:
        resp.status = 300
        resp.data = VERSIONS

    async def home(self, req: Request, resp: Response) -> None:
        resp.content_type = "application/json-home"
        resp.set_header("Cache-Control", "max-age=86400")
        resp.data = self._home

    async def ping(self, req: Request, resp: Response) -> None:
        await self._health.ping(req.ctx)
        resp.status = 204

    async def health(self, req: Request, resp: Response) -> None:
        resp.data = encode(await self._health.report(req.ctx))

    async def live(self, req: Request, resp: Response) -> None:
        resp.data = b'{"status":"live"}'

    async def ready(self, req: Request, resp: Response) -> None:
        await self._health.ready()
        resp.data = b'{"status":"ready"}'

    async def metrics(self, req: Request, resp: Response) -> None:
        client = req.scope.get("client")
        address = ip_address(client[0]) if client else None
        if address is None or not any(address in network for network in self._metrics_allow):
            raise Forbidden("Metrics are for the addresses in metrics_allow only.")
        resp.content_type = "text/plain; version=0.0.4; charset=utf-8"
        resp.set_header(*_NO_GUESSING)
        resp.data = await self._figures()

    async def openapi(self, req: Request, resp: Response) -> None:
        resp.set_header(*_NO_GUESSING)
        resp.data = encode(self._openapi())

    async def docs(self, req: Request, resp: Response) -> None:
        resp.content_type = "text/html; charset=utf-8"
        resp.set_headers(_PAGE_HEADERS)
        resp.data = self._page(self._openapi()).encode()
