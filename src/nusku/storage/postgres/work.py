"""Changes to messages: which of them share a transaction, and what ``work`` in work.sql is told.

One connection at a time works on a queue; what comes meanwhile gathers and is its next batch.
"""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from os import urandom
from re import compile as pattern
from time import time_ns
from typing import Any
from zlib import crc32

import msgspec

from nusku.errors import Unavailable
from nusku.model import Claimed, Draft, Found, Message, QueueKey, QueueRef
from nusku.storage import Removed, Stale
from nusku.storage.postgres.connections import Batch, Connections
from nusku.storage.postgres.operations import Operation, Queue

BATCH_WEIGHT = 600  # rows changed by one transaction, roughly
ANY, FAR_MS = -1, (1 << 63) - 1
NOBODY = "0" * 32

_CLAIM = pattern("[0-9a-f]{32}")


def new_claim() -> str:
    """An id that nobody can guess. It begins with the time, so that ids of the same time are
    neighbours in the index.
    """
    return f"{time_ns() // 1_000_000 & 0xFFFFFFFFFFFF:012x}{urandom(10).hex()}"


def claim_id(text: str) -> str:
    """What to look for: an id that no claim has for what is none."""
    return text if _CLAIM.fullmatch(text) else NOBODY


def crc(body: bytes) -> int:
    """Checksum of a body, as a signed integer of 32 bits."""
    return crc32(body) - 0x80000000


def message_of(row: Any) -> Message:
    """The message in a row of ``work`` or ``read``. Raises Unavailable when it is damaged."""
    _, _, position, posted, ttl, expires, count, client, sum_, body, claim, attributes, _ = row
    if crc32(body) - 0x80000000 != sum_:
        raise Unavailable("A stored message is damaged.")
    return Message(
        position, posted, ttl, expires, count, client, body, claim and claim.hex, attributes
    )


def due(at_ms: int | None) -> int | None:
    return None if at_ms is None or at_ms >= FAR_MS else at_ms


class Add(Operation):
    """Messages for one or several queues. ``plain``: ``post`` can do it."""

    __slots__ = ("places", "plain", "posts")

    def __init__(self, posts: Sequence[tuple[QueueRef, Sequence[Draft]]]) -> None:
        super().__init__(sum(len(drafts) for _, drafts in posts))
        self.posts = posts
        self.plain = not any(
            draft.delay_s or draft.dedup is not None or draft.posted_ms or draft.count
            for _, drafts in posts
            for draft in drafts
        )
        # Of each part: number of the queue, first offset, number of its first message in a batch.
        self.places: list[tuple[int, int, int]] = []

    @property
    def key(self) -> QueueKey:
        return self.posts[0][0].key


class Remove(Operation):
    """``mode`` as in work.sql; ``claim`` for mode 1."""

    __slots__ = ("claim", "mode", "positions", "ref")

    def __init__(self, ref: QueueRef, positions: Sequence[int], mode: int, claim: str) -> None:
        super().__init__(len(positions))
        self.ref = ref
        self.positions = positions
        self.mode = mode
        self.claim = claim

    @property
    def key(self) -> QueueKey:
        return self.ref.key


class Take(Operation):
    """A claim, or a pop, whose ``ttl_s`` is -1."""

    __slots__ = ("claim", "grace_s", "limit", "max_count", "ref", "ttl_s")

    def __init__(
        self, ref: QueueRef, limit: int, ttl_s: int, grace_s: int, max_count: int | None
    ) -> None:
        super().__init__(limit)
        self.ref = ref
        self.limit = limit
        self.ttl_s = ttl_s
        self.grace_s = grace_s
        self.max_count = max_count
        self.claim = new_claim() if ttl_s >= 0 else None

    @property
    def key(self) -> QueueKey:
        return self.ref.key


class Turn(Operation):
    """A release, with a delay of ``seconds``, or a renewal."""

    __slots__ = ("attributes", "claim", "grace_s", "positions", "ref", "renew", "seconds")

    def __init__(
        self,
        ref: QueueRef,
        claim: str,
        *,
        renew: bool,
        seconds: int,
        grace_s: int = 0,
        positions: Sequence[int] | None = None,
        attributes: Mapping[int, bytes] | None = None,
    ) -> None:
        super().__init__(20)
        self.ref = ref
        self.claim = claim
        self.renew = renew
        self.seconds = seconds
        self.grace_s = grace_s
        self.positions = positions
        self.attributes = attributes

    @property
    def key(self) -> QueueKey:
        return self.ref.key

    def told(self, number: int, ref: int) -> dict[str, Any]:
        attributes = self.attributes
        return {
            "op": number,
            "ref": ref,
            "claim": self.claim,
            "renew": self.renew,
            "seconds": self.seconds,
            "grace": self.grace_s,
            "positions": None if self.positions is None else list(self.positions),
            "attributes": attributes and {str(p): value.hex() for p, value in attributes.items()},
        }


class Tidy(Operation):
    """Put back what has ended in a queue, remove up to so many expired messages; answered with
    the two numbers.
    """

    __slots__ = ("key", "limit")

    def __init__(self, key: QueueKey, limit: int) -> None:
        super().__init__(500 + limit)
        self.key = key
        self.limit = limit


class _Lane:
    """What waits for one queue. ``busy``: a batch for it is under way."""

    __slots__ = ("busy", "listed", "queue")

    def __init__(self, connections: Connections) -> None:
        self.queue = Queue(connections)
        self.busy = False
        self.listed = False


class Work:
    """The source of batches of changes."""

    writes = True

    def __init__(self, connections: Connections, work: str, post: str) -> None:
        self.work, self.post = work, post  # statements
        self.connections = connections
        self._lanes: dict[QueueKey, _Lane] = {}
        self._listed: deque[QueueKey] = deque()
        self._tidying: dict[QueueKey, asyncio.Future[Any]] = {}
        connections.attach(self)

    def put(self, operation: Any) -> "asyncio.Future[Any]":
        key = operation.key
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(self.connections)
        if lane.queue.put(operation) and not lane.busy:
            self._list(key, lane)
            self.connections.wake()
        elif not lane.busy and not len(lane.queue):
            del self._lanes[key]
        future: asyncio.Future[Any] = operation.future
        return future

    def tidy(self, key: QueueKey) -> "asyncio.Future[Any]":
        """Put back what has ended; whoever asks meanwhile shares the answer."""
        future = self._tidying.get(key)
        if future is None:
            future = self._tidying[key] = self.put(Tidy(key, 0))
            future.add_done_callback(lambda _: self._tidying.pop(key))
        return future

    def _list(self, key: QueueKey, lane: _Lane) -> None:
        if not lane.listed:
            lane.listed = True
            self._listed.append(key)

    @property
    def ready(self) -> bool:
        return bool(self._listed)

    def take(self) -> Batch | None:
        operations: list[Any] = []
        keys: list[QueueKey] = []
        weight = 0
        while self._listed and weight < BATCH_WEIGHT:
            key = self._listed.popleft()
            lane = self._lanes[key]
            lane.listed = False
            number = len(operations)
            removed: set[int] = set()
            while (one := lane.queue.peek()) is not None and (
                not operations or weight + one.weight <= BATCH_WEIGHT
            ):
                if type(one) is Remove:
                    # All removals of a batch are judged together, as if each were the first.
                    if not removed.isdisjoint(one.positions):
                        break
                    removed.update(one.positions)
                weight += one.weight
                operations.append(lane.queue.pop())
            if len(operations) > number:
                lane.busy = True
                keys.append(key)
            elif one is None:
                del self._lanes[key]
            else:
                self._list(key, lane)
                break
        return WorkBatch(self, operations, keys) if operations else None

    def free(self, keys: Sequence[QueueKey]) -> None:
        """The batch with these queues is over."""
        for key in keys:
            lane = self._lanes[key]
            lane.busy = False
            if len(lane.queue):
                self._list(key, lane)
            else:
                del self._lanes[key]

    def refuse(self, error: Exception) -> None:
        for key, lane in list(self._lanes.items()):
            lane.queue.refuse(error)
            if not lane.busy:
                del self._lanes[key]
        self._listed.clear()


class WorkBatch:
    """See :class:`nusku.storage.postgres.connections.Batch`."""

    writes = True

    def __init__(self, work: Work, operations: Sequence[Any], keys: Sequence[QueueKey]) -> None:
        self._work = work
        self._operations = operations
        self._keys = keys
        self._plain = all(type(one) is Add and one.plain for one in operations)
        self.statement = work.post if self._plain else work.work
        self.size = len(operations)
        self._told = _Told()

    def args(self, env: list[int]) -> Sequence[Any]:
        self._told = told = _Told()
        for number, one in enumerate(self._operations, 1):
            told.add(number, one)
        return told.plain_args(env) if self._plain else told.args(env)

    def done(self, rows: list[Any]) -> None:
        if self._plain:
            self._posted(rows)
        else:
            self._worked(rows)

    def _posted(self, rows: list[Any]) -> None:
        for now, timeline, firsts in rows:
            self._work.connections.saw(now, timeline)
            for one in self._operations:
                one.answer(_positions(one, firsts, {}))
        if not rows:
            for one in self._operations:
                one.plain = False  # ``work`` knows which of them are wrong about their queue
                self._work.put(one)

    def _worked(self, rows: list[Any]) -> None:
        told, operations = self._told, self._operations
        firsts: list[int] = []
        dues: list[int | None] = []
        stale: frozenset[int] = frozenset()
        where: dict[int, int] = {}
        failed: dict[int, dict[int, int]] = {}
        messages: dict[int, list[Message]] = {}
        spent: dict[int, list[int]] = {}
        again: set[int] = set()
        turned: set[int] = set()
        tidied: dict[int, tuple[int, int]] = {}
        damaged: set[int] = set()
        now = 0
        for row in rows:
            match row[0]:
                case 6:
                    try:
                        message = message_of(row)
                    except Unavailable:
                        damaged.add(row[1])
                    else:
                        messages.setdefault(row[1], []).append(message)
                case 0:
                    now, firsts = row[2], row[12]
                    self._work.connections.saw(now, row[5])
                case 1:
                    dues = row[12]
                case 2:
                    stale = frozenset(row[12])
                case 3:
                    where[row[1]] = row[2]
                case 4:
                    failed.setdefault(row[1], {})[row[2]] = row[4]
                case 5:
                    again.add(row[1])
                case 7:
                    spent[row[1]] = row[12]
                case 8:
                    turned.add(row[1])
                case 9:
                    tidied[row[1]] = row[2], row[5]
        for number, one in enumerate(operations, 1):
            if stale and not stale.isdisjoint(told.refs_of[number]):
                one.fail(Stale())
                continue
            match one:
                case Add():
                    one.answer(_positions(one, firsts, where))
                case Remove():
                    why = failed.get(number)
                    one.answer(
                        [Removed.GONE] * len(one.positions)
                        if why is None
                        else [_REMOVED[why.get(p, 0)] for p in one.positions]
                    )
                case Take() if number in again:
                    self._work.put(one)
                case Take() if number in damaged:
                    one.fail(Unavailable("A stored message is damaged."))
                case Take():
                    found = messages.get(number, [])
                    at = due(dues[told.queue_of[number] - 1])
                    if one.claim is None:
                        one.answer(Found(found, now, at))
                    else:
                        claim = one.claim if found else None
                        one.answer(Claimed(claim, found, spent.get(number, []), now, at))
                case Turn():
                    one.answer(number in turned)
                case Tidy():
                    one.answer(tidied.get(told.queue_of[number], (0, 0)))

    def fail(self, error: Exception) -> None:
        for one in self._operations:
            one.fail(error)

    def split(self) -> Sequence[Batch]:
        return [WorkBatch(self._work, (one,), ()) for one in self._operations]

    def over(self) -> None:
        self._work.free(self._keys)


_REMOVED = tuple(Removed)  # as work.sql numbers them


def _positions(one: Add, firsts: Sequence[int], where: Mapping[int, int]) -> list[list[int]]:
    result = []
    for (_, drafts), (queue, offset, message) in zip(one.posts, one.places, strict=True):
        first = firsts[queue - 1] + offset
        positions = list(range(first, first + len(drafts)))
        if where:
            positions = [where.get(message + n, p) for n, p in enumerate(positions)]
        result.append(positions)
    return result


class _Told:
    """The arguments of ``work``, put together one operation after the other."""

    def __init__(self) -> None:
        self.refs_of: dict[int, Sequence[int]] = {}
        self.queue_of: dict[int, int] = {}
        self._queues: dict[QueueKey, int] = {}
        self._added: list[int] = []
        self._refs: dict[tuple[QueueKey, str, int], int] = {}
        self._ref_queues: list[int] = []
        self._removals: tuple[list[Any], ...] = ([], [], [], [], [])
        self._parts: tuple[list[int], list[int]] = ([], [])
        self._messages: tuple[list[Any], ...] = ([], [], [], [], [], [], [])
        # Delay, attributes, dedup, time of post, count: mostly nobody has any.
        self._rare: tuple[list[Any], ...] = ([], [], [], [], [])
        self._groups: dict[tuple[int, int, int], int] = {}  # by queue, ttl and delay: how many
        self._takes: dict[tuple[int, int, int, int | None], list[tuple[int, Take]]] = {}
        self._tidied: tuple[list[int], list[int]] = ([], [])
        self._turns: list[dict[str, Any]] = []

    def add(self, number: int, one: Any) -> None:
        match one:
            case Add():
                self._add(number, one)
            case Remove():
                ref = self._ref(one.ref, ANY)
                self.refs_of[number] = (ref,)
                n = len(one.positions)
                claim = one.claim if one.mode == 1 else None
                refs, ops, positions, modes, claims = self._removals
                refs.extend([ref] * n)
                ops.extend([number] * n)
                positions.extend(one.positions)
                modes.extend([one.mode] * n)
                claims.extend([claim] * n)
            case Take():
                ref = self._ref(one.ref, one.ref.version if one.claim is not None else ANY)
                self.refs_of[number] = (ref,)
                self.queue_of[number] = self._ref_queues[ref - 1]
                terms = (ref, one.ttl_s, one.grace_s, one.max_count)
                self._takes.setdefault(terms, []).append((number, one))
            case Turn():
                ref = self._ref(one.ref, ANY)
                self.refs_of[number] = (ref,)
                self._turns.append(one.told(number, ref))
            case Tidy():
                self.refs_of[number] = ()
                queue = self.queue_of[number] = self._queue(one.key)
                self._tidied[0].append(queue)
                self._tidied[1].append(one.limit)

    def _queue(self, key: QueueKey) -> int:
        number = self._queues.get(key)
        if number is None:
            number = self._queues[key] = len(self._queues) + 1
            self._added.append(0)
        return number

    def _ref(self, ref: QueueRef, version: int) -> int:
        belief = (ref.key, ref.generation, version)
        number = self._refs.get(belief)
        if number is None:
            number = self._refs[belief] = len(self._refs) + 1
            self._ref_queues.append(self._queue(ref.key))
        return number

    def _add(self, number: int, one: Add) -> None:
        refs = []
        ops, queues, offsets, ttls, clients, sums, bodies = self._messages
        one.places.clear()
        for ref, drafts in one.posts:
            belief = self._ref(ref, ref.version)
            refs.append(belief)
            queue = self._ref_queues[belief - 1]
            offset = self._added[queue - 1]
            self._added[queue - 1] += len(drafts)
            one.places.append((queue, offset, len(ops) + 1))
            for draft in drafts:
                body = draft.body
                ops.append(number)
                queues.append(queue)
                offsets.append(offset)
                offset += 1
                ttls.append(draft.ttl_s)
                group = (queue, draft.ttl_s, draft.delay_s)
                self._groups[group] = self._groups.get(group, 0) + 1
                clients.append(draft.client)
                sums.append(crc32(body) - 0x80000000)
                bodies.append(body)
                if (
                    draft.delay_s
                    or draft.attributes is not None
                    or draft.dedup is not None
                    or draft.posted_ms
                    or draft.count
                ):
                    self._rarely(len(ops), draft)
        self.refs_of[number] = refs
        self._parts[0].extend([number] * len(refs))
        self._parts[1].extend(refs)

    def _rarely(self, n: int, draft: Draft) -> None:
        """Columns of the n-th message, where it has something in them that most have not."""
        values = (
            draft.delay_s or None,
            draft.attributes,
            draft.dedup,
            draft.posted_ms or None,
            draft.count or None,
        )
        for column, value in zip(self._rare, values, strict=True):
            if value is not None:
                column.extend([None] * (n - 1 - len(column)))
                column.append(value)

    def _beliefs(self, env: list[int]) -> tuple[Any, ...]:
        """The first columns of both functions: the queues, and what callers take them to be."""
        kinds, projects, names = (
            map(list, zip(*self._queues, strict=True)) if self._queues else ([], [], [])
        )
        return (
            env,
            kinds,
            projects,
            names,
            self._added,
            self._ref_queues,
            [generation for _, generation, _ in self._refs],
            [version for _, _, version in self._refs],
        )

    def plain_args(self, env: list[int]) -> Sequence[Any]:
        """The arguments of ``post`` for the same."""
        _, *columns = self._messages
        return (
            *self._beliefs(env),
            *columns,
            self._rare[1],
            [queue for queue, _, _ in self._groups],
            [ttl_s for _, ttl_s, _ in self._groups],
            list(self._groups.values()),
        )

    def args(self, env: list[int]) -> Sequence[Any]:
        groups: tuple[list[Any], ...] = ([], [], [], [], [], [], [])
        takers: tuple[list[Any], ...] = ([], [], [])
        for (ref, ttl_s, grace_s, max_count), group in self._takes.items():
            first, wanted = len(takers[0]) + 1, 0
            for number, one in group:
                for column, value in zip(takers, (number, wanted, one.claim), strict=True):
                    column.append(value)
                wanted += one.limit
            values = (ref, first, len(takers[0]), wanted, ttl_s, grace_s, max_count)
            for column, value in zip(groups, values, strict=True):
                column.append(value)
        return (
            *self._beliefs(env),
            *self._removals,
            *self._parts,
            *self._messages,
            *self._rare,
            [queue for queue, _, _ in self._groups],
            [ttl_s for _, ttl_s, _ in self._groups],
            [delay_s for _, _, delay_s in self._groups],
            list(self._groups.values()),
            *groups,
            *takers,
            *self._tidied,
            msgspec.json.encode(self._turns).decode() if self._turns else None,
        )
