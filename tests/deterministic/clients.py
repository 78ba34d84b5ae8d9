"""Clients without a network: what an operation is to the broker, and what its outcome is.

As over HTTP nothing is ever tried twice, and an outcome is one of `history`'s: what the broker
answers is ok, what it refuses is fail, and whatever else happens is info.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import msgspec

from nusku.broker import Broker, ClaimTerms, NewMessage, View
from nusku.errors import NuskuError
from nusku.model import Context, QueueKey
from tests.chaos.harness.history import FAIL, INFO, OK, Op, Sighting, make_body, read_body
from tests.deterministic.nodes import Cluster, Node, NodeDied

ADMIN = Context("", "administrator", frozenset({"admin"}))
WAITS = 0.2  # the share of claims and lists that wait for something to come
GONE = 0.05  # s; who finds nobody there comes again


class Answer(NamedTuple):
    """What of an operation's record its answer says."""

    status: int = 204
    id: str = ""
    ids: Sequence[str] = ()
    cid: str = ""
    got: Sequence[Sighting] = ()
    counts: tuple[int, int, int] = (0, 0, 0)


class Bodies:
    """The bodies of one run, and whose they are."""

    def __init__(self, run: int) -> None:
        self._run = run
        self._known: dict[bytes, tuple[str, int]] = {}

    def make(self, q: str, p: str, n: int) -> bytes:
        body = json.dumps(make_body(self._run, q, p, n)).encode()
        self._known[body] = (p, n)
        return body

    def read(self, body: bytes) -> tuple[str, int]:
        """Producer and number; ("", 0) of what was changed, or is not ours."""
        known = self._known.get(body)
        if known is not None:
            return known
        try:
            return read_body(self._run, msgspec.json.decode(body))
        except msgspec.DecodeError:
            return "", 0

    def read_told(self, document: bytes) -> tuple[str, int]:
        """The same of the message in what subscribers are told."""
        try:
            return self.read(told(document))
        except msgspec.DecodeError:
            return "", 0


class Client:
    """One agent. It keeps to a node, and goes to another now and then, and when it got no answer."""

    def __init__(
        self, cluster: Cluster, who: str, bodies: Bodies, rng: random.Random, patience_s: float
    ) -> None:
        self.who = who
        self._patience_s = patience_s
        self._cluster = cluster
        self._bodies = bodies
        self._rng = rng
        self._node: Node = rng.choice(cluster.nodes)

    async def perform(self, op: Op) -> Op:
        """Fill in times, outcome and what was seen; returns the same object."""
        cluster, loop, rng = self._cluster, self._cluster.loop, self._rng
        if rng.random() < 0.05:
            self._node = rng.choice(cluster.nodes)
        node = self._node
        op.who, op.node = self.who, node.name
        op.t0 = loop.tick()
        if node.broker is None:
            op.out, op.note, op.t1 = FAIL, "nobody is there", loop.tick()
            self._node = rng.choice(cluster.nodes)
            await asyncio.sleep(GONE)
            return op
        weather = cluster.weather
        wait_s = 0
        if op.f in {"claim", "list"} and not op.final and rng.random() < WAITS:
            wait_s = rng.randint(1, 2)
        patience_s = self._patience_s
        if weather.strikes(weather.now.hang_ups):
            patience_s = rng.random() * 2.0 if wait_s else rng.random() * 0.02
        cluster.say(f"{self.who} asks {node.name}: {op.f} {op.q} {op.id or op.cid}")
        try:
            answer = await node.ask(self._request(op, wait_s), patience_s)
            if weather.strikes(weather.now.replies_lost):
                raise NodeDied("the reply was lost")
        except NuskuError as error:
            op.status, op.note = error.status, str(error)
            op.out = FAIL if error.status < 500 else INFO
        except (NodeDied, TimeoutError) as error:
            op.out, op.note = INFO, repr(error)
            self._node = rng.choice(cluster.nodes)
        else:
            op.out = OK
            _take(op, answer)
        op.t1 = loop.tick()
        cluster.say(f"{self.who} hears: {op.f} {op.q} {op.out} {op.status} {op.note or op.got}")
        return op

    def _request(self, op: Op, wait_s: int) -> Callable[[Broker], Awaitable[Answer]]:
        project, _, name = op.q.partition("/")
        ctx, key = Context(project, self.who, frozenset()), QueueKey("queue", project, name)

        async def request(broker: Broker) -> Answer:
            return await self._ask(broker, ctx, key, op, wait_s)

        return request

    async def _ask(
        self, broker: Broker, ctx: Context, key: QueueKey, op: Op, wait_s: int
    ) -> Answer:
        messages, claims, of = broker.messages, broker.claims, broker.subscriptions
        match op.f:
            case "post":
                bodies = [self._bodies.make(op.q, op.p, op.n + i) for i in range(op.size)]
                new = [NewMessage(body, op.ttl, op.delay or None) for body in bodies]

                async def read(bytes_max: int) -> list[NewMessage]:
                    return new

                return Answer(201, ids=await messages.post(ctx, key, read))
            case "claim":
                terms = ClaimTerms(op.ttl, op.grace)
                got = await claims.create(ctx, key, terms, op.limit, wait_s)
                if got is None:
                    return Answer(204)
                return Answer(201, cid=got[0], got=self._sightings(got[1]))
            case "renew":
                await claims.renew(ctx, key, op.cid, ClaimTerms(op.ttl, op.grace))
            case "release":
                await claims.release(ctx, key, op.cid)
            case "delete":
                await messages.delete(ctx, key, op.id, op.cid or None)
            case "bulk":
                await messages.delete_several(ctx, key, op.ids, ())
            case "pop":
                return Answer(200, got=self._sightings(await messages.pop(ctx, key, op.limit)))
            case "list":
                view = await messages.page(
                    ctx, key, op.marker, op.limit, echo=True, held=op.every, delayed=op.every,
                    wait_s=wait_s,
                )  # fmt: skip
                return Answer(200, got=self._sightings(view))
            case "get":
                return Answer(200, got=self._sightings(await messages.get(ctx, key, op.id)))
            case "stats":
                counted = await broker.queues.stats(ctx, key)
                if counted is None:
                    return Answer(200)
                counts = counted[1]
                return Answer(200, counts=(counts.total, counts.held, counts.free + counts.delayed))
            case "purge":
                await broker.purge(ctx, key, ["messages"])
            case "drop":
                await broker.queues.delete(ctx, key)
            case "make":
                metadata = msgspec.json.decode(op.note) if op.note else {}
                return Answer(201 if await broker.queues.create(ctx, key, metadata) else 204)
            case "subscribe":
                document = {"subscriber": f"http://127.0.0.1:9/{op.to}", "ttl": op.ttl}
                document["options"] = msgspec.json.decode(op.note)
                return Answer(201, id=(await of.create(ctx, key, document)).id)
            case "waiting":
                status = await of.status(ctx, key, op.id)
                return Answer(200, counts=(status.pending, status.failed, status.delivered))
            case "failed":
                failed = await of.failed(ctx, key, op.id, op.marker, op.limit)
                seen = [(one.id, *self._bodies.read_told(one.body)) for one in failed]
                return Answer(200, got=seen)
            case "replay":
                await of.replay(ctx, key, op.id, None)
            case "pause":
                await of.pause(ctx, key, op.id)
            case "resume":
                await of.resume(ctx, key, op.id)
            case "leave":
                await of.delete(ctx, key, op.id)
            case "pool":
                await broker.pools.put(ADMIN, op.to, op.note, op.limit, None, {})
            case "unpool":
                await broker.pools.delete(ADMIN, op.to)
            case "weigh":
                shown = await broker.pools.patch(ADMIN, op.to, {"weight": op.limit})
                return Answer(200, id=shown.uri)
            case "drain":
                left = await broker.pools.drain(ADMIN, op.to)
                return Answer(200, counts=(left.queues_left, left.messages_left, 0))
            case "move":
                await broker.moving.move(key, op.to or None)
            case other:
                raise ValueError(other)
        return Answer()

    def _sightings(self, view: View | None) -> list[Sighting]:
        if view is None:
            return []
        read = self._bodies.read
        return [(view.id_of(message), *read(message.body)) for message in view.messages]


class _Told(msgspec.Struct):
    body: msgspec.Raw


def told(document: bytes) -> bytes:
    """The message in what subscribers are told."""
    return bytes(msgspec.json.decode(document, type=_Told).body)


def _take(op: Op, answer: Answer) -> None:
    op.status, op.got, op.counts = answer.status, list(answer.got), answer.counts
    if answer.ids:
        op.ids = list(answer.ids)
    if answer.cid:
        op.cid = answer.cid
    if answer.id:
        op.id = answer.id
