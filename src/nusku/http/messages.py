"""Messages of queues and topics over HTTP (contract http-v2.md section 4)."""

from collections.abc import Sequence

from falcon.asgi import Response

from nusku import shapes
from nusku.auth import Authentication
from nusku.broker import Broker, NewMessage
from nusku.config import Settings
from nusku.errors import Invalid, NotFound
from nusku.http import events, wire
from nusku.http.request import Request
from nusku.http.waiting import while_connected
from nusku.http.wire import Json
from nusku.model import Kind, QueueKey
from nusku.shapes import encode


class MessageHandlers:
    """For the messages of one kind: of queues, or of topics."""

    def __init__(
        self,
        broker: Broker,
        settings: Settings,
        json: Json,
        kind: Kind,
        authentication: Authentication,
    ) -> None:
        self._broker = broker
        self._authentication = authentication
        self._messages = broker.messages
        self._settings = settings
        self._json = json
        self._kind = kind

    def _key(self, req: Request, name: str) -> QueueKey:
        return QueueKey(self._kind, req.ctx.project, name)

    async def post(self, req: Request, resp: Response, name: str) -> None:
        async def read(bytes_max: int) -> Sequence[NewMessage]:
            return self._json.post(await req.body(bytes_max, "A post of messages"))

        ids = await self._messages.post(req.ctx, self._key(req, name), read)
        path = f"/v2/{self._kind}s/{name}/messages"
        resp.status = 201
        resp.set_header("Location", f"{path}?ids={','.join(ids)}")
        resp.data = encode({"resources": [f"{path}/{id_}" for id_ in ids]})

    async def page(self, req: Request, resp: Response, name: str) -> None:
        if events.wanted(req):
            await events.follow(req, resp, self._broker, self._authentication, self._key(req, name))
            return
        ids, key = req.strings("ids"), self._key(req, name)
        if ids:
            self._check_number(ids)
            found = await self._messages.get_several(req.ctx, key, ids)
            if not found or not found.messages:
                raise NotFound("None of these messages exists.")
            resp.data = encode({"messages": wire.messages(found)})
            return
        limit, echo = req.integer("limit"), req.boolean("echo")
        held, delayed = req.boolean("include_claimed"), req.boolean("include_delayed")
        size = req.page_size(limit, self._settings.max_messages_per_page)
        wait_s = req.wait_s(self._settings.max_wait)
        work = self._messages.page(
            req.ctx,
            key,
            req.string("marker") or "",
            size,
            echo=bool(echo),
            held=bool(held),
            delayed=bool(delayed),
            wait_s=wait_s,
        )
        page = await (while_connected(req, work) if wait_s else work)
        shown = wire.messages(page)
        links = []
        if shown:
            links = wire.links(
                f"/v2/{self._kind}s/{name}/messages",
                [("limit", limit), ("echo", echo), ("include_claimed", held),
                 ("include_delayed", delayed), ("marker", shown[-1].id)],
            )  # fmt: skip
        resp.data = encode({"messages": shown, "links": links})

    async def get(self, req: Request, resp: Response, name: str, id_: str) -> None:
        found = await self._messages.get(req.ctx, self._key(req, name), id_)
        resp.data = encode(wire.message(found, found.messages[0]))

    async def delete(self, req: Request, resp: Response, name: str, id_: str) -> None:
        await self._messages.delete(req.ctx, self._key(req, name), id_, req.string("claim_id"))
        resp.status = 204

    async def delete_several(self, req: Request, resp: Response, name: str) -> None:
        ids, claims, pop = req.strings("ids"), req.strings("claim_ids"), req.integer("pop")
        if bool(ids) == (pop is not None):
            raise Invalid("Give either ids or pop.")
        key = self._key(req, name)
        if ids:
            self._check_number(ids)
            await self._messages.delete_several(req.ctx, key, ids, claims)
            resp.status = 204
            return
        if claims and self._settings.message_delete_with_claim_id:
            raise Invalid("claim_ids cannot be given with pop.")
        limit = req.page_size(pop, self._settings.max_messages_per_claim_or_pop, "pop")
        found = await self._messages.pop(req.ctx, key, limit)
        popped = [shapes.popped(found, m) for m in found.messages] if found else []
        resp.data = encode({"messages": popped})

    def _check_number(self, ids: Sequence[str]) -> None:
        most = self._settings.max_messages_per_page
        if len(ids) > most:
            raise Invalid(f"At most {most} ids can be given at once; these are {len(ids)}.")
