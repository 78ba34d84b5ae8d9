"""Pre-signed URLs over HTTP (contract http-v2.md section 7.1)."""

from falcon.asgi import Response

from nusku.broker import Broker
from nusku.config import Settings
from nusku.errors import Invalid, InvalidBody
from nusku.http.request import Request
from nusku.http.wire import Json
from nusku.model import QueueKey
from nusku.shapes import encode


class ShareHandlers:
    """Of queues; topics are not shared."""

    def __init__(self, broker: Broker, settings: Settings, json: Json) -> None:
        self._shares = broker.shares
        self._settings = settings
        self._json = json

    async def share(self, req: Request, resp: Response, name: str) -> None:
        body = await req.body(self._settings.max_queue_metadata, "The body")
        key = QueueKey("queue", req.ctx.project, name)
        try:
            document = self._json.check(body)
        except InvalidBody as error:  # all refusals here have the one title
            raise Invalid(error.detail) from None
        resp.data = encode(await self._shares.share(req.ctx, key, document))
