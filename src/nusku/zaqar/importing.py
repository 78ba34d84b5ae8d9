"""From what a Zaqar shows to what arrives here: what comes in which order, and what cannot come."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, get_args

import aiohttp

from nusku.broker import Broker
from nusku.broker.arrivals import Arrival, Arrivals, Arriving, Subscribed
from nusku.errors import NuskuError, Unavailable
from nusku.model import Context, QueueKey
from nusku.zaqar.source import (
    AT_ONCE,
    Kind,
    Message,
    NotShown,
    Queue,
    Source,
    Subscription,
    ZaqarError,
)

T = TypeVar("T")
R = TypeVar("R")

NOTES_SHOWN = 40
ATTEMPTS = 5  # at one queue, while our own store is away
PAUSE_S = 2.0
CUT = (
    "more than one queue is listed by this name, since it cuts names at a dot; bring those by"
    " their whole names with --queue"
)


class Origin(NamedTuple):
    """Where to bring what from: all queues and topics of these projects, or these queues of them.

    ``token`` is for Keystone, where it says by itself what the project is. Without Keystone
    ``roles`` are believed.
    """

    url: str
    projects: Sequence[str]
    queues: Sequence[str] = ()
    token: str = ""
    roles: str = "admin"
    pools: bool = True


@dataclass
class Summary:
    """What was brought, and in words what was not, or not as it was."""

    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("queues", "topics", "messages", "subscriptions", "pools", "flavors"), 0
        )
    )
    notes: list[str] = field(default_factory=list)

    def note(self, where: str, what: str) -> None:
        """About something that was not brought, or not as it was."""
        self.notes.append(f"{where}: {what}")

    def __str__(self) -> str:
        lines = ["brought " + ", ".join(f"{n} {what}" for what, n in self.counts.items())]
        lines += [f"note: {note}" for note in self.notes[:NOTES_SHOWN]]
        if len(self.notes) > NOTES_SHOWN:
            lines.append(f"and {len(self.notes) - NOTES_SHOWN} more notes like these")
        return "\n".join(lines)


class _Listed(NamedTuple):
    """A queue or topic that is to be brought, and how many messages it has, or had."""

    source: Source
    kind: Kind
    key: QueueKey
    metadata: dict[str, Any]
    total: int | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.key.name} of {self.key.project}"


class Importer:
    """Brings everything, once. ``progress`` is told how many messages of how many were seen."""

    def __init__(
        self,
        broker: Broker,
        arrivals: Arrivals,
        progress: Callable[[int, int], None],
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._broker = broker
        self._arrivals = arrivals
        self._progress = progress
        self._pause = pause
        self._seen = self._whole = 0
        self.summary = Summary()

    async def run(self, origin: Origin) -> None:
        """Raises ZaqarError; and NuskuError when our own store has to be given up on. What has
        come until then does not come again.
        """
        gate = asyncio.Semaphore(AT_ONCE)
        identity = {"X-Auth-Token": origin.token} if origin.token else {"X-Roles": origin.roles}
        async with aiohttp.ClientSession() as session:
            sources = {
                project: Source(
                    session, origin.url, {"X-Project-ID": project, **identity}, gate, self._pause
                )
                for project in origin.projects
            }
            for source in sources.values():
                await source.check()
            if origin.pools:
                await self._pools(next(iter(sources.values())))
                for project, source in sources.items():
                    await self._flavors(project, source)
            found = []
            for project, source in sources.items():
                if origin.queues:
                    found += await self._named(project, source, origin.queues)
                else:
                    found += await self._listed(project, source)
            listed = await _each(found, self._with_total)
            self._whole = sum(one.total or 0 for one in listed)
            self._progress(0, self._whole)
            await _each(listed, self._patiently)

    # Pools and flavors

    async def _pools(self, source: Source) -> None:
        ctx = _context("")
        there = {pool.name for pool in await self._broker.pools.page(ctx, "", 1 << 20)}
        try:
            async for page in source.pools():
                for pool in page:
                    if pool.name in there:
                        continue
                    there.add(pool.name)
                    put = self._broker.pools.put(
                        ctx, pool.name, pool.uri, pool.weight, pool.flavor, pool.options or {}
                    )
                    await self._try("pools", f"pool {pool.name}", put)
        except NotShown as error:
            self.summary.note("pools", f"not shown ({error})")

    async def _flavors(self, project: str, source: Source) -> None:
        ctx = _context(project)
        there = {flavor.name for flavor in await self._broker.flavors.page(ctx, "", 1 << 20)}
        try:
            async for page in source.flavors():
                for flavor in page:
                    if flavor.name in there:
                        continue
                    there.add(flavor.name)
                    put = self._broker.flavors.put(ctx, flavor.name, flavor.pool_list)
                    await self._try("flavors", f"flavor {flavor.name} of {project}", put)
        except NotShown as error:
            self.summary.note(f"flavors of {project}", f"not shown ({error})")

    async def _try(self, what: str, which: str, put: Awaitable[None]) -> None:
        try:
            await put
        except NuskuError as error:
            self.summary.note(which, f"not brought: {error.detail}")
        else:
            self.summary.counts[what] += 1

    # Queues and topics

    async def _listed(self, project: str, source: Source) -> list[_Listed]:
        listed = []
        for kind in get_args(Kind):
            try:
                found = await source.queues(kind)
            except ZaqarError as error:
                if kind == "queue":
                    raise
                self.summary.note(f"topics of {project}", f"not shown ({error})")
                continue
            for name in found.twice:
                self.summary.note(f"{kind} {name} of {project}", CUT)
            listed += [
                _Listed(source, kind, QueueKey(kind, project, queue.name), queue.metadata)
                for queue in found.queues
            ]
        return listed

    async def _named(self, project: str, source: Source, names: Iterable[str]) -> list[_Listed]:
        return [
            _Listed(
                source, "queue", QueueKey("queue", project, name),
                await source.metadata("queue", name),
            )
            for name in names
        ]  # fmt: skip

    async def _with_total(self, one: _Listed) -> _Listed:
        return one._replace(total=await one.source.total(one.kind, one.key.name))

    async def _patiently(self, one: _Listed) -> None:
        for attempt in range(ATTEMPTS):
            try:
                return await self._bring(one)
            except Unavailable:  # it goes on where it was
                if attempt == ATTEMPTS - 1:
                    raise
            await self._pause(PAUSE_S)
        return None

    async def _bring(self, one: _Listed) -> None:
        """One queue or topic. Subscriptions first, so that they hear of what is posted here."""
        if (
            one.total == 0
            and one.kind == "queue"
            and await one.source.is_cut(Queue(one.key.name, one.metadata))
        ):
            return self.summary.note(
                str(one), "not brought: it is empty and has no metadata, or its name is cut at a dot."
                " Bring the latter by its whole name with --queue",
            )  # fmt: skip
        ctx = _context(one.key.project)
        created, left_out = await self._arrivals.queue(ctx, one.key, one.metadata)
        self.summary.counts[f"{one.kind}s"] += created
        for what in left_out:
            self.summary.note(str(one), f"came without {what}")
        try:
            await self._subscriptions(one)
        except NotShown as error:
            self.summary.note(str(one), f"subscriptions are not shown ({error})")
        try:
            await self._messages(one)
        except NotShown as error:
            self.summary.note(str(one), f"messages are not shown ({error})")
        return None

    async def _subscriptions(self, one: _Listed) -> None:
        known = await self._arrivals.known(one.key)
        seen_s = asyncio.get_running_loop().time()
        async for page in one.source.subscriptions(one.kind, one.key.name):
            coming = [_subscribed(shown, seen_s) for shown in page]
            came, refused = await self._arrivals.subscriptions(one.key, coming, known)
            self.summary.counts["subscriptions"] += came
            for what in refused:
                self.summary.note(str(one), f"subscription of {what}")
            seen_s = asyncio.get_running_loop().time()

    async def _messages(self, one: _Listed) -> None:
        arriving = await self._arrivals.messages(one.key)
        marker = arriving.marker
        seen = await self._pass(one, arriving, marker)
        if marker and not seen:  # it may have led out of a queue that was made anew there
            marker, seen = "", await self._pass(one, arriving, "")
        await arriving.close()
        total = await one.source.total(one.kind, one.key.name)
        if not marker and total is not None and total > seen:
            self.summary.note(
                str(one), f"its statistics count {total - seen} messages more than it shows: expired ones,"
                " or posted just now. Run zaqar-gc there and then this again to be sure",
            )  # fmt: skip

    async def _pass(self, one: _Listed, arriving: Arriving, marker: str) -> int:
        """Take all messages behind a marker; say how many there are."""
        delay_s = one.metadata.get("_default_message_delay")
        seen: set[str] = set()
        unsure = mended = 0
        async for page in one.source.messages(one.kind, one.key.name, marker):
            new = [m for m in page.messages if not arriving.has(m.id)]
            unsure += sum(m.unsure for m in new)
            mended += sum(m.mended for m in new)
            coming = [_arrival(m, delay_s if isinstance(delay_s, int) else 0) for m in new]
            came = await arriving.add(coming, page.marker)
            self.summary.counts["messages"] += came
            before = len(seen)
            seen.update(m.id for m in page.messages)
            self._seen += len(seen) - before
            self._whole = max(self._whole, self._seen)
            self._progress(self._seen, self._whole)
        if unsure:
            self.summary.note(
                str(one), f"{unsure} messages were older than their ttl, as claims prolonged them;"
                " for how long is not shown, so they got their ttl once more",
            )  # fmt: skip
        if mended:
            self.summary.note(
                str(one), f"{mended} messages held NaN, Infinity or half a surrogate pair, which"
                " JSON has not; null or U+FFFD stands there now",
            )  # fmt: skip
        return len(seen)


async def _each(items: Sequence[T], function: Callable[[T], Awaitable[R]]) -> list[R]:
    """Do it to all, some at a time; the results in the order of the items."""
    results: dict[int, R] = {}
    waiting = iter(enumerate(items))

    async def work() -> None:
        for number, item in waiting:
            results[number] = await function(item)

    tasks = [asyncio.create_task(work()) for _ in range(AT_ONCE)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [results[number] for number in range(len(items))]


def _context(project: str) -> Context:
    return Context(project, "", frozenset({"admin"}))


def _arrival(shown: Message, delay_s: int) -> Arrival:
    """A delay is not shown. One that was claimed had none any more; others have the queue's."""
    left_s = 0 if shown.claimed else max(delay_s - shown.age_s, 0)
    return Arrival(
        shown.id, shown.body, shown.ttl_s, shown.age_s, shown.left_s, left_s, shown.seen_s
    )


def _subscribed(shown: Subscription, seen_s: float) -> Subscribed:
    """One that is older than its ttl was given another later; from when on is not shown."""
    left_s = shown.ttl - shown.age if shown.age < shown.ttl else shown.ttl
    return Subscribed(
        shown.id, shown.subscriber, shown.ttl, shown.age, left_s, shown.options or {},
        shown.confirmed, seen_s,
    )  # fmt: skip
