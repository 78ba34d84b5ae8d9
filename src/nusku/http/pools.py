"""Pools over HTTP (contract http-v2.md section 9), and the draining of one, which is ours."""

from typing import Any
from urllib.parse import quote

from falcon.asgi import Response

from nusku.broker import Broker, pooldocs
from nusku.broker.pooldocs import Pool
from nusku.config import Settings
from nusku.errors import InvalidBody
from nusku.http import wire
from nusku.http.request import Request
from nusku.http.wire import Json
from nusku.shapes import encode

PATH = "/v2/pools"
_FIELDS = ("uri", "weight", "flavor", "options")


class PoolHandlers:
    """Of pools, which belong to the service and not to a project."""

    def __init__(self, broker: Broker, settings: Settings, json: Json) -> None:
        self._pools = broker.pools
        self._settings = settings
        self._json = json

    async def _body(self, req: Request) -> dict[str, Any]:
        return self._json.object(await req.body(self._settings.max_queue_metadata, "The body"))

    async def page(self, req: Request, resp: Response) -> None:
        limit, detailed = req.integer("limit"), req.boolean("detailed")
        size = req.page_size(limit, self._settings.max_pools_per_page)
        found = await self._pools.page(req.ctx, req.string("marker") or "", size)
        links = []
        if found:
            given = [("limit", limit), ("detailed", detailed), ("marker", found[-1].name)]
            links = wire.links(PATH, given)
        resp.set_header("Content-Location", req.relative_uri)
        items = [_shown(one, detailed=bool(detailed)) for one in found]
        resp.data = encode({"pools": items, "links": links})

    async def get(self, req: Request, resp: Response, pool: str) -> None:
        detailed = bool(req.boolean("detailed"))
        resp.data = encode(_shown(await self._pools.get(req.ctx, pool), detailed=detailed))

    async def put(self, req: Request, resp: Response, pool: str) -> None:
        fields = _fields(await self._body(req))
        for name in ("uri", "weight"):
            if name not in fields:
                raise InvalidBody(f"The body must have the member '{name}'.")
        await self._pools.put(
            req.ctx,
            pool,
            fields["uri"],
            fields["weight"],
            fields.get("flavor") or None,
            fields.get("options", {}),
        )
        resp.status = 201
        resp.set_header("Location", _path(pool))

    async def patch(self, req: Request, resp: Response, pool: str) -> None:
        document = await self._body(req)
        fields = _fields({name: document[name] for name in _FIELDS if name in document})
        if not fields:
            raise InvalidBody(f"There is nothing to change: give one of {', '.join(_FIELDS)}.")
        if "flavor" in fields:
            fields["flavor"] = fields["flavor"] or None
        abandon = bool(req.boolean("abandon"))
        changed = await self._pools.patch(req.ctx, pool, fields, abandon=abandon)
        resp.data = encode(_shown(changed, detailed=False))

    async def delete(self, req: Request, resp: Response, pool: str) -> None:
        await self._pools.delete(req.ctx, pool)
        resp.status = 204

    async def drain(self, req: Request, resp: Response, pool: str) -> None:
        progress = await self._pools.drain(req.ctx, pool)
        resp.data = encode(progress._asdict())


def _path(name: str) -> str:
    return f"{PATH}/{quote(name, safe='')}"


def _shown(pool: Pool, *, detailed: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": pool.name,
        "href": _path(pool.name),
        "weight": pool.weight,
        "uri": pool.uri,
        "flavor": pool.flavor,
    }
    if detailed:
        shown["options"] = pool.options
    return shown


def _fields(document: dict[str, Any]) -> dict[str, Any]:
    """What a pool is described by. Raises InvalidBody for other members, types and sizes."""
    for name in document:
        if name not in _FIELDS:
            raise InvalidBody(f"{name!r} is no member that a pool has.")
    for name, most in (("uri", pooldocs.URI_MAX), ("flavor", pooldocs.FLAVOR_MAX)):
        text = document.get(name, "")
        if not isinstance(text, str) or len(text) > most:
            raise InvalidBody(f"'{name}' must be a string of at most {most} characters.")
    weight = document.get("weight", 0)
    if not isinstance(weight, int) or not 0 <= weight <= pooldocs.WEIGHT_MAX:
        raise InvalidBody(f"'weight' must be an integer from 0 to {pooldocs.WEIGHT_MAX}.")
    if not isinstance(document.get("options", {}), dict):
        raise InvalidBody("'options' must be an object.")
    return {n: int(v) if n == "weight" else v for n, v in document.items()}
