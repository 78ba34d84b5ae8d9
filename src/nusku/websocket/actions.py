"""The actions (contract websocket.md section 5): shapes on both sides of the broker, no rules."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from nusku import shapes
from nusku.broker import Broker, ClaimTerms, NewMessage, View, rules
from nusku.config import Settings
from nusku.errors import (
    ClaimMismatch,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    NuskuError,
)
from nusku.model import Context, Message, QueueKey
from nusku.shapes import encode

T = TypeVar("T")

# A JSON document is never so much longer than another one that says the same.
LONGER_AT_MOST = 8
NOT_ALLOWED = {"error": "Not authentified."}  # clients know this text


class Answer(NamedTuple):
    """A status as HTTP has them, and what the reply has as its body."""

    status: int
    body: Any


class Call(msgspec.Struct):
    """A request that may be carried out. ``size``: bytes that it had on the wire."""

    ctx: Context
    key: QueueKey
    name: str
    body: dict[str, Any]
    size: int


class Action(NamedTuple):
    """What an action is called in policies and metrics, and what its body may have in it.

    ``method`` is that of HTTP by which a pre-signed URL allows it, empty where none does.
    ``creates``: a queue with the name that is given, so it has to be a legal one. ``alike``: those
    that come together may be carried out at the same time.
    """

    operation: str
    fields: Mapping[str, type]
    required: Sequence[str] = ("queue_name",)
    method: str = ""
    creates: bool = False
    alike: bool = False


_QUEUE: dict[str, type] = {"queue_name": str}
_PAGE: dict[str, type] = {"marker": str, "limit": int}
_MESSAGE = _QUEUE | {"message_id": str}
_CLAIM = _QUEUE | {"claim_id": str}
_SUBSCRIPTION = _QUEUE | {"subscription_id": str}

ACTIONS: Mapping[str, Action] = {
    "queue_list": Action("queues:get_all", _PAGE | {"detailed": bool}, ()),
    "queue_create": Action("queues:create", _QUEUE | {"metadata": dict}, creates=True),
    "queue_get": Action("queues:get", _QUEUE),
    "queue_delete": Action("queues:delete", _QUEUE),
    "queue_get_stats": Action("queues:stats", _QUEUE),
    "queue_purge": Action("queues:purge", _QUEUE | {"resource_types": list}),
    "message_post": Action(
        "messages:create",
        _QUEUE | {"messages": list},
        ("queue_name", "messages"),
        method="POST",
        creates=True,
    ),
    "message_list": Action(
        "messages:get_all",
        _QUEUE | _PAGE | {"echo": bool, "include_claimed": bool, "include_delayed": bool},
        method="GET",
    ),
    "message_get": Action("messages:get", _MESSAGE, ("queue_name", "message_id"), method="GET"),
    "message_get_many": Action(
        "messages:get_all",
        _QUEUE | {"message_ids": list},
        ("queue_name", "message_ids"),
        method="GET",
    ),
    "message_delete": Action(
        "messages:delete",
        _MESSAGE | {"claim_id": str},
        ("queue_name", "message_id"),
        method="DELETE",
        alike=True,
    ),
    "message_delete_many": Action(
        "messages:delete_all",
        _QUEUE | {"message_ids": list, "pop": int, "claim_ids": list},
        method="DELETE",
    ),
    "claim_create": Action("claims:create", _QUEUE | {"ttl": int, "grace": int, "limit": int}),
    "claim_get": Action("claims:get", _CLAIM, ("queue_name", "claim_id")),
    "claim_update": Action(
        "claims:update", _CLAIM | {"ttl": int, "grace": int}, ("queue_name", "claim_id")
    ),
    "claim_delete": Action("claims:delete", _CLAIM, ("queue_name", "claim_id")),
    "subscription_create": Action(
        "subscription:create",
        _QUEUE | {"subscriber": str, "ttl": int, "options": dict},
        creates=True,
    ),
    "subscription_list": Action("subscription:get_all", _QUEUE | _PAGE),
    "subscription_get": Action(
        "subscription:get", _SUBSCRIPTION, ("queue_name", "subscription_id")
    ),
    "subscription_delete": Action(
        "subscription:delete", _SUBSCRIPTION, ("queue_name", "subscription_id")
    ),
}


def fits(action: Action, body: Any) -> bool:
    """Whether a body has what is required, and nothing of another type than it should have."""
    if not isinstance(body, dict):
        return False
    for name in action.required:
        if name not in body:
            return False
    fields = action.fields
    for name, value in body.items():
        wanted = fields.get(name)
        if wanted is not None and type(value) is not wanted:
            return False
    return True


def refusal(problem: NuskuError) -> Answer:
    """How a request is told that it was not carried out."""
    if type(problem) is Forbidden:  # by the policy; others have a reason of their own
        return Answer(403, NOT_ALLOWED)
    text = problem.detail
    known = None if problem.status == 400 and not isinstance(problem, ClaimMismatch) else text
    return Answer(problem.status, {"exception": text, "error": known})


class _Raw(msgspec.Struct, gc=False):
    id: str
    claim_id: str | None
    ttl: int
    age: int
    body: msgspec.Raw


def _raw(view: View, m: Message, claim: str | None = None) -> _Raw:
    return _Raw(view.id_of(m), claim, m.ttl_s, view.age_s(m), msgspec.Raw(m.body))


def _raws(view: View | None, claim: str | None = None) -> list[_Raw]:
    return [] if view is None else [_raw(view, m, claim) for m in view.messages]


class Actions:
    """What is done for each action. Raises NuskuError for what is not done."""

    def __init__(self, broker: Broker, settings: Settings) -> None:
        self._broker = broker
        self._settings = settings
        self._table: dict[str, Callable[[Call], Awaitable[Answer]]] = {
            name: getattr(self, name) for name in ACTIONS if name != "subscription_create"
        }

    async def carry_out(self, name: str, call: Call) -> Answer:
        return await self._table[name](call)

    # -- queues

    async def queue_list(self, call: Call) -> Answer:
        found = await self._broker.queues.page(
            call.ctx,
            "queue",
            call.body.get("marker", ""),
            self._size(call, self._settings.max_queues_per_page),
        )
        if call.body.get("detailed"):
            queues = [{"name": name, "metadata": metadata} for name, metadata in found]
        else:
            queues = [{"name": name} for name, _ in found]
        return Answer(200, {"queues": queues})

    async def queue_create(self, call: Call) -> Answer:
        metadata = call.body.get("metadata", {})
        limit = self._settings.max_queue_metadata
        if call.size > limit // LONGER_AT_MOST and len(encode(metadata)) > limit:
            raise Invalid(f"Metadata is limited to {limit} bytes.")
        created = await self._broker.queues.create(call.ctx, call.key, metadata)
        return Answer(201 if created else 204, f"Queue {call.name} created.")

    async def queue_get(self, call: Call) -> Answer:
        return Answer(200, await self._broker.queues.stored(call.ctx, call.key))

    async def queue_delete(self, call: Call) -> Answer:
        await self._broker.queues.delete(call.ctx, call.key)
        return Answer(204, f"Queue {call.name} removed.")

    async def queue_get_stats(self, call: Call) -> Answer:
        found = await self._broker.queues.stats(call.ctx, call.key)
        if found is None:
            return Answer(404, {"messages": {"claimed": 0, "free": 0, "total": 0}})
        view, counts = found

        def entry(message: Message) -> dict[str, Any]:
            created = time.gmtime(message.posted_ms // 1000)
            return {
                "id": view.id_of(message),
                "age": view.age_s(message),
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", created),
            }

        numbers: dict[str, Any] = {
            "claimed": counts.held,
            "free": counts.free + counts.delayed,
            "total": counts.total,
        }
        if counts.oldest and counts.newest:
            numbers |= {"oldest": entry(counts.oldest), "newest": entry(counts.newest)}
        return Answer(200, {"messages": numbers})

    async def queue_purge(self, call: Call) -> Answer:
        known = ["messages", "subscriptions"]
        types = call.body.get("resource_types", known)
        if any(one not in known for one in types):
            raise Invalid("resource_types must be an array of 'messages' and 'subscriptions'.")
        await self._broker.purge(call.ctx, call.key, types)
        return Answer(204, {})

    # -- messages

    async def message_post(self, call: Call) -> Answer:
        async def read(bytes_max: int) -> Sequence[NewMessage]:
            return self._new(call, bytes_max)

        ids = await self._broker.messages.post(call.ctx, call.key, read)
        return Answer(201, {"message_ids": ids})

    async def post_together(self, calls: Sequence[Call]) -> list[Answer]:
        """Several posts to one queue by one client, as one: all are carried out, or none."""

        async def read(bytes_max: int) -> Sequence[NewMessage]:
            return [new for call in calls for new in self._new(call, bytes_max)]

        ids = await self._broker.messages.post(calls[0].ctx, calls[0].key, read)
        answers, at = [], 0
        for call in calls:
            number = len(call.body["messages"])
            answers.append(Answer(201, {"message_ids": ids[at : at + number]}))
            at += number
        return answers

    @staticmethod
    def _new(call: Call, bytes_max: int) -> list[NewMessage]:
        messages = call.body["messages"]
        if call.size > bytes_max // LONGER_AT_MOST and len(encode(messages)) > bytes_max:
            raise Invalid(f"A post of messages is limited to {bytes_max} bytes.")
        if not messages:
            raise Invalid("A post holds at least one message.")
        return [_new_message(one) for one in messages]

    async def message_list(self, call: Call) -> Answer:
        body = call.body
        found = await self._broker.messages.page(
            call.ctx,
            call.key,
            body.get("marker", ""),
            self._size(call, self._settings.max_messages_per_page),
            echo=body.get("echo", False),
            held=body.get("include_claimed", False),
            delayed=body.get("include_delayed", False),
        )
        return Answer(200, {"messages": _raws(found)})

    async def message_get(self, call: Call) -> Answer:
        found = await self._broker.messages.get(call.ctx, call.key, call.body["message_id"])
        return Answer(200, {"messages": _raw(found, found.messages[0])})

    async def message_get_many(self, call: Call) -> Answer:
        ids = self._ids(call.body["message_ids"], "message_ids")
        found = await self._broker.messages.get_several(call.ctx, call.key, ids)
        return Answer(200, {"messages": _raws(found)})

    async def message_delete(self, call: Call) -> Answer:
        await self._broker.messages.delete(
            call.ctx, call.key, call.body["message_id"], call.body.get("claim_id")
        )
        return Answer(204, {})

    async def message_delete_many(self, call: Call) -> Answer:
        ids = self._ids(call.body.get("message_ids", []), "message_ids")
        claims = self._ids(call.body.get("claim_ids", []), "claim_ids")
        pop, most = call.body.get("pop"), self._settings.max_messages_per_claim_or_pop
        if bool(ids) == (pop is not None):
            raise Invalid("Give either message_ids or pop.")
        if pop is None:
            await self._broker.messages.delete_several(call.ctx, call.key, ids, claims)
            return Answer(204, {})
        if claims and self._settings.message_delete_with_claim_id:
            raise Invalid("claim_ids cannot be given with pop.")
        number = rules.in_range("pop", pop, 1, most)
        found = await self._broker.messages.pop(call.ctx, call.key, number)
        popped = [shapes.popped(found, m) for m in found.messages] if found else []
        return Answer(200, {"messages": popped})

    # -- claims

    async def claim_create(self, call: Call) -> Answer:
        limit = self._size(call, self._settings.max_messages_per_claim_or_pop)
        claimed = await self._broker.claims.create(call.ctx, call.key, _terms(call), limit)
        if claimed is None:
            return Answer(204, {"claim_id": None})
        claim, view = claimed
        return Answer(201, {"claim_id": claim, "messages": _raws(view, claim)})

    async def claim_get(self, call: Call) -> Answer:
        claim = await self._found(
            self._broker.claims.get(call.ctx, call.key, call.body["claim_id"]),
            f"Claim {call.body['claim_id']} does not exist.",
        )
        messages = _raws(claim.view, claim.id)
        return Answer(200, {"age": claim.age_s, "ttl": claim.ttl_s, "messages": messages})

    async def claim_update(self, call: Call) -> Answer:
        claim = call.body["claim_id"]
        await self._found(
            self._broker.claims.renew(call.ctx, call.key, claim, _terms(call)),
            f"Claim {claim} does not exist.",
        )
        return Answer(204, f"Claim {claim} updated.")

    async def claim_delete(self, call: Call) -> Answer:
        await self._broker.claims.release(call.ctx, call.key, call.body["claim_id"])
        return Answer(204, f"Claim {call.body['claim_id']} deleted.")

    # -- subscriptions: making one for the connection itself is the session's business

    async def subscribe(self, call: Call) -> Answer:
        """For somebody else, who is reached as over HTTP."""
        try:
            created = await self._broker.subscriptions.create(
                call.ctx, call.key, subscription_of(call)
            )
        except Conflict:
            return not_subscribed(call)
        if created.again:
            return not_subscribed(call)
        return subscribed(call, created.id, created.signing_secret)

    async def subscription_list(self, call: Call) -> Answer:
        found = await self._broker.subscriptions.page(
            call.ctx,
            call.key,
            call.body.get("marker", ""),
            self._size(call, self._settings.max_subscriptions_per_page),
        )
        return Answer(200, {"subscriptions": [shapes.subscription(one) for one in found]})

    async def subscription_get(self, call: Call) -> Answer:
        id_ = call.body["subscription_id"]
        found = await self._found(
            self._broker.subscriptions.get(call.ctx, call.key, id_),
            f"Subscription {id_} for queue {call.name} does not exist.",
        )
        return Answer(200, shapes.subscription(found))

    async def subscription_delete(self, call: Call) -> Answer:
        id_ = call.body["subscription_id"]
        await self._broker.subscriptions.delete(call.ctx, call.key, id_)
        return Answer(204, f"Subscription {id_} removed.")

    # -- parts

    @staticmethod
    def _size(call: Call, most: int) -> int:
        limit = call.body.get("limit")
        return rules.PAGE_DEFAULT if limit is None else rules.in_range("limit", limit, 1, most)

    def _ids(self, ids: Sequence[Any], what: str) -> Sequence[str]:
        most = self._settings.max_messages_per_page
        if len(ids) > most:
            raise Invalid(f"At most {most} {what} can be given at once; these are {len(ids)}.")
        if not all(isinstance(one, str) for one in ids):
            raise Invalid(f"{what} must be an array of strings.")
        return ids

    @staticmethod
    async def _found(work: Awaitable[T], text: str) -> T:
        """The result; where there is nothing, with a text that clients of this transport know."""
        try:
            return await work
        except NotFound:
            raise NotFound(text) from None


def _new_message(one: Any) -> NewMessage:
    if not isinstance(one, dict):
        raise Invalid("Bad request. A message must be an object.")
    if "body" not in one:
        raise Invalid('Bad request. Missing "body" field.')
    return NewMessage(encode(one["body"]), _integer(one, "ttl"), _integer(one, "delay"))


def _integer(one: Mapping[str, Any], name: str) -> int | None:
    if name not in one:
        return None
    value = one[name]
    if type(value) is not int:
        raise Invalid(f'Bad request. The value of the "{name}" field must be a int.')
    return value


def _terms(call: Call) -> ClaimTerms:
    return ClaimTerms(call.body.get("ttl"), call.body.get("grace"))


def subscription_of(call: Call) -> dict[str, Any]:
    """What of a body is about the subscription."""
    return {n: call.body[n] for n in ("subscriber", "ttl", "options") if n in call.body}


def subscribed(call: Call, id_: str, signing_secret: str | None = None) -> Answer:
    body = {"subscription_id": id_, "message": f"Subscription {call.name} created."}
    if signing_secret:
        body["signing_secret"] = signing_secret
    return Answer(201, body)


def not_subscribed(call: Call) -> Answer:
    return Answer(409, f"Subscription {call.name} not created.")
