"""Flavors over HTTP (contract http-v2.md section 10)."""

from typing import Any
from urllib.parse import quote

from falcon.asgi import Response

from nusku.broker import Broker
from nusku.broker.flavors import Flavor
from nusku.config import Settings
from nusku.errors import InvalidBody
from nusku.http import wire
from nusku.http.request import Request
from nusku.http.wire import Json
from nusku.shapes import encode

PATH = "/v2/flavors"


class FlavorHandlers:
    """Of the flavors of the caller's project."""

    def __init__(self, broker: Broker, settings: Settings, json: Json) -> None:
        self._flavors = broker.flavors
        self._settings = settings
        self._json = json

    async def _body(self, req: Request) -> dict[str, Any]:
        return self._json.object(await req.body(self._settings.max_queue_metadata, "The body"))

    async def page(self, req: Request, resp: Response) -> None:
        limit, detailed = req.integer("limit"), req.boolean("detailed")
        size = req.page_size(limit, self._settings.max_flavors_per_page)
        found = await self._flavors.page(req.ctx, req.string("marker") or "", size)
        links = []
        if found:
            given = [("limit", limit), ("detailed", detailed), ("marker", found[-1].name)]
            links = wire.links(PATH, given)
        items = [_shown(one, detailed=bool(detailed)) for one in found]
        resp.data = encode({"flavors": items, "links": links})

    async def get(self, req: Request, resp: Response, flavor: str) -> None:
        resp.data = encode(_shown(await self._flavors.get(req.ctx, flavor), detailed=True))

    async def put(self, req: Request, resp: Response, flavor: str) -> None:
        document = await self._body(req)
        for name in document:
            if name not in ("pool_list", "capabilities"):
                raise InvalidBody(f"{name!r} is no member that a flavor has.")
        if not isinstance(document.get("capabilities", {}), dict):
            raise InvalidBody("'capabilities' must be an object, which is then ignored.")
        await self._flavors.put(req.ctx, flavor, _pool_list(document))
        resp.status = 201
        resp.set_header("Location", _path(flavor))

    async def patch(self, req: Request, resp: Response, flavor: str) -> None:
        pools = _pool_list(await self._body(req))
        resp.data = encode(_shown(await self._flavors.patch(req.ctx, flavor, pools), detailed=True))

    async def delete(self, req: Request, resp: Response, flavor: str) -> None:
        await self._flavors.delete(req.ctx, flavor)
        resp.status = 204


def _path(name: str) -> str:
    return f"{PATH}/{quote(name, safe='')}"


def _shown(flavor: Flavor, *, detailed: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": flavor.name,
        "href": _path(flavor.name),
        "pool_list": flavor.pools,
    }
    if detailed:
        shown["capabilities"] = flavor.capabilities
    return shown


def _pool_list(document: dict[str, Any]) -> list[str]:
    pools = document.get("pool_list")
    if not isinstance(pools, list) or any(not isinstance(name, str) for name in pools):
        raise InvalidBody("The body must have a 'pool_list', an array of names of pools.")
    return pools
