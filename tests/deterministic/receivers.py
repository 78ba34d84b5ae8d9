"""Who is told: a sender that goes no further than this process, and writes down what it hears."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping

import msgspec

from nusku.broker.deliveries import Parcel, Recipient
from nusku.notify import Outcome
from nusku.notify.webhook import judged
from tests.chaos.harness.history import OK, Op
from tests.deterministic.clients import Bodies
from tests.deterministic.loop import Loop

FINE = (200,)
AWKWARD = (*(200,) * 6, 500, 503, 429, 307, 0)
QUITTING = (*AWKWARD, 400, 410)
TIMEOUT_S = 2.0


class _Named(msgspec.Struct):
    queue_name: str


class Receivers:
    """All endpoints; those whose name ends in ``.1`` give up now and then."""

    def __init__(self, loop: Loop, bodies: Bodies, rng: random.Random) -> None:
        self.ops: list[Op] = []
        self.fine = False
        self.queues: Mapping[str, str] = {}  # of the endpoints
        self._loop = loop
        self._bodies = bodies
        self._rng = rng

    async def send(self, to: Recipient, parcel: Parcel) -> Outcome:
        rng, loop = self._rng, self._loop
        await asyncio.sleep(rng.random() * 0.005)
        endpoint = to.subscriber.rpartition("/")[2]
        op = Op("hear", "receiver", t0=loop.tick(), out=OK, to=endpoint, id=parcel.id)
        op.p, op.n = self._bodies.read_told(parcel.body)
        try:
            name = msgspec.json.decode(parcel.body, type=_Named).queue_name
        except msgspec.DecodeError:
            name = "nothing that can be read"
        op.q = f"{to.key.project}/{name}"
        if op.q != self.queues.get(endpoint):
            op.note = f"this is about {op.q}"
        moods = FINE if self.fine else QUITTING if endpoint.endswith(".1") else AWKWARD
        op.status = rng.choice(moods)
        op.t1 = op.t0 + (TIMEOUT_S if op.status == 0 else rng.random() ** 3 * 0.3)
        self.ops.append(op)  # whoever asked may be dead by then; it was answered all the same
        await asyncio.sleep(op.t1 - op.t0)
        if op.status == 0:
            return Outcome("failed", "timeout", None, "There was no answer.")
        headers = {"Retry-After": "1"} if op.status in {429, 503} else {}
        return judged(op.status, headers, loop.now_s)

    async def close(self) -> None:
        pass
