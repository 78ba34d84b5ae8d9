"""Subscriptions over HTTP (contract http-v2.md section 6), and below each what is ours: its state
and what can be done about it.
"""

from falcon.asgi import Response

from nusku import shapes
from nusku.broker import Broker
from nusku.config import Settings
from nusku.errors import Conflict
from nusku.http import wire
from nusku.http.request import Request
from nusku.http.waiting import while_connected
from nusku.http.wire import Json
from nusku.model import Kind, QueueKey
from nusku.shapes import encode


class SubscriptionHandlers:
    """For the subscriptions of one kind: to queues, or to topics."""

    def __init__(self, broker: Broker, settings: Settings, json: Json, kind: Kind) -> None:
        self._subscriptions = broker.subscriptions
        self._settings = settings
        self._json = json
        self._kind = kind

    def _key(self, req: Request, name: str) -> QueueKey:
        return QueueKey(self._kind, req.ctx.project, name)

    def _path(self, name: str) -> str:
        return f"/v2/{self._kind}s/{name}/subscriptions"

    async def _body(self, req: Request) -> bytes | None:
        return await req.body(self._settings.max_queue_metadata, "The body")

    async def create(self, req: Request, resp: Response, name: str) -> None:
        document = self._json.subscription(await self._body(req))
        location = self._path(name)  # the collection, as clients know it
        try:
            created = await self._subscriptions.create(req.ctx, self._key(req, name), document)
        except Conflict:
            resp.set_header("Location", location)
            raise
        answer = {"subscription_id": created.id}
        if created.signing_secret:
            answer["signing_secret"] = created.signing_secret
        resp.status = 201
        resp.set_header("Location", location)
        resp.data = encode(answer)

    async def page(self, req: Request, resp: Response, name: str) -> None:
        limit = req.integer("limit")
        size = req.page_size(limit, self._settings.max_subscriptions_per_page)
        marker = req.string("marker") or ""
        found = await self._subscriptions.page(req.ctx, self._key(req, name), marker, size)
        links = []
        if found:
            links = wire.links(self._path(name), [("limit", limit), ("marker", found[-1].id)])
        shown = [shapes.subscription(one) for one in found]
        resp.data = encode({"subscriptions": shown, "links": links})

    async def get(self, req: Request, resp: Response, name: str, id_: str) -> None:
        found = await self._subscriptions.get(req.ctx, self._key(req, name), id_)
        resp.data = encode(shapes.subscription(found))

    async def update(self, req: Request, resp: Response, name: str, id_: str) -> None:
        document = self._json.subscription_change(await self._body(req))
        await self._subscriptions.update(req.ctx, self._key(req, name), id_, document)
        resp.status = 204
        resp.set_header("Location", f"{self._path(name)}/{id_}")

    async def delete(self, req: Request, resp: Response, name: str, id_: str) -> None:
        await self._subscriptions.delete(req.ctx, self._key(req, name), id_)
        resp.status = 204

    async def confirm(self, req: Request, resp: Response, name: str, id_: str) -> None:
        confirmed = self._json.confirmed(await self._body(req))
        await self._subscriptions.confirm(req.ctx, self._key(req, name), id_, confirmed)
        resp.status = 204
        resp.set_header("Location", f"{self._path(name)}/{id_}/confirm")

    # To see and repair

    async def status(self, req: Request, resp: Response, name: str, id_: str) -> None:
        found = await self._subscriptions.status(req.ctx, self._key(req, name), id_)
        resp.data = encode(wire.status(found))

    async def pause(self, req: Request, resp: Response, name: str, id_: str) -> None:
        await self._subscriptions.pause(req.ctx, self._key(req, name), id_)
        resp.status = 204

    async def resume(self, req: Request, resp: Response, name: str, id_: str) -> None:
        await self._subscriptions.resume(req.ctx, self._key(req, name), id_)
        resp.status = 204

    async def failed(self, req: Request, resp: Response, name: str, id_: str) -> None:
        limit = req.integer("limit")
        size = req.page_size(limit, self._settings.max_messages_per_page)
        found = await self._subscriptions.failed(
            req.ctx, self._key(req, name), id_, req.string("marker") or "", size
        )
        links = []
        if found:
            path = f"{self._path(name)}/{id_}/failed"
            links = wire.links(path, [("limit", limit), ("marker", found[-1].id)])
        resp.data = encode({"failed": [wire.failed(one) for one in found], "links": links})

    async def replay(self, req: Request, resp: Response, name: str, id_: str) -> None:
        ids = self._json.ids(await self._body(req), self._settings.max_messages_per_page)
        number = await self._subscriptions.replay(req.ctx, self._key(req, name), id_, ids)
        resp.data = encode({"replayed": number})

    async def ping(self, req: Request, resp: Response, name: str, id_: str) -> None:
        work = self._subscriptions.ping(req.ctx, self._key(req, name), id_)
        resp.data = encode(wire.ping(await while_connected(req, work)))

    async def rotate(self, req: Request, resp: Response, name: str, id_: str) -> None:
        secret = await self._subscriptions.rotate(req.ctx, self._key(req, name), id_)
        resp.data = encode({"signing_secret": secret})
