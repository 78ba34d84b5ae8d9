"""Queues and topics over HTTP (contract http-v2.md sections 3 and 8)."""

import re
import time
from typing import Any

from falcon.asgi import Response

from nusku.broker import Broker
from nusku.config import Settings
from nusku.errors import InvalidBody, UnsupportedMediaType
from nusku.http import wire
from nusku.http.request import Request
from nusku.http.wire import Json
from nusku.model import Kind, Message, QueueKey
from nusku.shapes import encode

_INTEGER = re.compile(r"[+-]?[0-9]{1,4000}")
PATCH_TYPE = "application/openstack-messaging-v2.0-json-patch"


class QueueHandlers:
    """For one kind: queues, or topics."""

    def __init__(self, broker: Broker, settings: Settings, json: Json, kind: Kind) -> None:
        self._queues = broker.queues
        self._purge = broker.purge
        self._settings = settings
        self._json = json
        self._kind = kind

    def _key(self, req: Request, name: str) -> QueueKey:
        return QueueKey(self._kind, req.ctx.project, name)

    async def _body(self, req: Request) -> bytes | None:
        return await req.body(self._settings.max_queue_metadata, "Metadata")

    async def page(self, req: Request, resp: Response) -> None:
        known = {"marker", "limit", "detailed", "name"}
        if self._kind == "queue":
            known.add("with_count")
        limit, detailed = req.integer("limit"), req.boolean("detailed")
        name, with_count = req.string("name"), None
        if self._kind == "queue":
            with_count = req.boolean("with_count")
        filters = {k: req.string(k) for k in req.params if k not in known}
        where = {k: _number_or_text(v) for k, v in filters.items() if v is not None}
        found = await self._queues.page(
            req.ctx,
            self._kind,
            req.string("marker") or "",
            req.page_size(limit, self._settings.max_queues_per_page),
            name_part=name or "",
            where=where,
        )
        items = []
        for queue, data in found:
            item: dict[str, Any] = {"name": queue, "href": f"/v2/{self._kind}s/{queue}"}
            if detailed:
                item["metadata"] = self._queues.shown(self._kind, data)
            items.append(item)
        answer: dict[str, Any] = {f"{self._kind}s": items, "links": []}
        if found:
            answer["links"] = wire.links(
                f"/v2/{self._kind}s",
                [("limit", limit), ("detailed", detailed), ("name", name),
                 ("with_count", with_count), *filters.items(), ("marker", found[-1][0])],
            )  # fmt: skip
        if with_count:
            count = await self._queues.count(req.ctx, self._kind)
            if count:
                answer["count"] = count
        resp.data = encode(answer)

    async def create(self, req: Request, resp: Response, name: str) -> None:
        body = await self._body(req)
        data = self._json.object(body) if body else {}
        created = await self._queues.create(req.ctx, self._key(req, name), data)
        resp.status = 201 if created else 204
        resp.set_header("Location", f"/v2/{self._kind}s/{name}")

    async def get(self, req: Request, resp: Response, name: str) -> None:
        resp.data = encode(await self._queues.get(req.ctx, self._key(req, name)))

    async def update(self, req: Request, resp: Response, name: str) -> None:
        body = await self._body(req)
        if req.content_type != PATCH_TYPE:
            raise UnsupportedMediaType(f"A patch is sent as {PATCH_TYPE}.")
        if not body:
            raise InvalidBody("The body is missing: a patch is an array of operations.")
        changes = self._json.changes(body)
        resp.data = encode(await self._queues.update(req.ctx, self._key(req, name), changes))

    async def delete(self, req: Request, resp: Response, name: str) -> None:
        await self._queues.delete(req.ctx, self._key(req, name))
        resp.status = 204

    async def stats(self, req: Request, resp: Response, name: str) -> None:
        found = await self._queues.stats(req.ctx, self._key(req, name))
        if found is None:
            resp.data = encode({"messages": {"claimed": 0, "free": 0, "total": 0}})
            return
        view, counts = found

        def entry(message: Message) -> dict[str, Any]:
            created = time.gmtime(message.posted_ms // 1000)
            return {
                "age": view.age_s(message),
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", created),
                "href": f"{wire.path_of(view.key)}/messages/{view.id_of(message)}",
            }

        numbers: dict[str, Any] = {
            "claimed": counts.held,
            "free": counts.free + counts.delayed,
            "total": counts.total,
        }
        if counts.oldest and counts.newest:
            numbers |= {"oldest": entry(counts.oldest), "newest": entry(counts.newest)}
        resp.data = encode({"messages": numbers})

    async def purge(self, req: Request, resp: Response, name: str) -> None:
        types = self._json.resource_types(await self._body(req))
        await self._purge(req.ctx, self._key(req, name), types)
        resp.status = 204


def _number_or_text(text: str) -> int | str:
    return int(text) if _INTEGER.fullmatch(text) else text
