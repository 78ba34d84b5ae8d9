"""Claims over HTTP (contract http-v2.md section 5)."""

from falcon.asgi import Response

from nusku.broker import Broker, ClaimTerms
from nusku.config import Settings
from nusku.http import wire
from nusku.http.request import Request
from nusku.http.waiting import while_connected
from nusku.http.wire import Json
from nusku.model import QueueKey
from nusku.shapes import encode


class ClaimHandlers:
    """Claims on queues; topics have none."""

    def __init__(self, broker: Broker, settings: Settings, json: Json) -> None:
        self._claims = broker.claims
        self._settings = settings
        self._json = json

    @staticmethod
    def _key(req: Request, name: str) -> QueueKey:
        return QueueKey("queue", req.ctx.project, name)

    async def _body(self, req: Request) -> bytes | None:
        return await req.body(self._settings.max_messages_post_size, "The body")

    async def create(self, req: Request, resp: Response, name: str) -> None:
        limit, most = req.integer("limit"), self._settings.max_messages_per_claim_or_pop
        size = req.page_size(limit, most)
        wait_s = req.wait_s(self._settings.max_wait)
        body, terms = await self._body(req), ClaimTerms()
        if body:
            terms, wanted = self._json.claim(body)
            if limit is None and wanted is not None and 1 <= wanted <= most:
                size = wanted
        work = self._claims.create(req.ctx, self._key(req, name), terms, size, wait_s)
        claimed = await (while_connected(req, work) if wait_s else work)
        if claimed is None:
            resp.status = 204
            return
        id_, view = claimed
        resp.status = 201
        resp.set_header("Location", f"/v2/queues/{name}/claims/{id_}")
        resp.data = encode({"messages": wire.messages(view)})

    async def get(self, req: Request, resp: Response, name: str, id_: str) -> None:
        claim = await self._claims.get(req.ctx, self._key(req, name), id_)
        resp.data = encode(
            {
                "age": claim.age_s,
                "ttl": claim.ttl_s,
                "href": f"/v2/queues/{name}/claims/{claim.id}",
                "messages": wire.messages(claim.view),
            }
        )

    async def renew(self, req: Request, resp: Response, name: str, id_: str) -> None:
        terms, _ = self._json.claim(await self._body(req))
        await self._claims.renew(req.ctx, self._key(req, name), id_, terms)
        resp.status = 204

    async def release(self, req: Request, resp: Response, name: str, id_: str) -> None:
        await self._claims.release(req.ctx, self._key(req, name), id_)
        resp.status = 204
