"""All masters of a store: who they are, what they keep, and what becomes of operations.

Each master has a line for what may change something and, where answers wait for replicas, another
for what only reads, so that reading goes on while there are too few.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any

import structlog
from hiredis import ReplyError

from nusku.clock import Clock
from nusku.errors import Unavailable
from nusku.metrics import Metrics
from nusku.model import QueueKey
from nusku.storage import StoreOptions
from nusku.storage.redis.calls import ENCODE, LANES, RECORDS, Operation, unspeakable
from nusku.storage.redis.keys import LANES as LANE_KEYS
from nusku.storage.redis.keys import SLOTS, Place, command, key_of
from nusku.storage.redis.lines import Line
from nusku.storage.redis.promise import QUESTIONS, Broken, Facts, Promise, facts, promise
from nusku.storage.redis.scripts import Script
from nusku.storage.redis.servers import ALL_SLOTS, Masters, Servers, login_commands
from nusku.storage.redis.uri import Address, Target
from nusku.storage.redis.wire import Lost, Wire

log = structlog.get_logger("nusku.storage")

BACKLOG = 20_000  # operations that wait; more are refused, so that a stuck server can't eat memory
PROBE_S = 0.2  # between looks for new masters while one is away
WATCH_S = 30.0  # between checks of what servers are set up to keep
WATCH_ROLE_S = 2.0  # between checks that the master of a service is one
WAIT_SHARE = 0.8  # of the time that an answer may take, what is waited for replicas


class Node:
    """A master. ``trouble`` says why nothing may be changed there."""

    def __init__(self, engine: "Engine", address: Address) -> None:
        self.address = address
        self.run_id = b"0" * 8
        self.trouble = ""
        self.writer = Line(engine, self)
        self.reader = Line(engine, self) if engine.options.replicas else self.writer

    def line(self, operation: Operation) -> Line:
        return self.writer if operation.writes else self.reader

    @property
    def lines(self) -> set[Line]:
        return {self.writer, self.reader}

    @property
    def away(self) -> bool:
        return any(line.away for line in self.lines)

    @property
    def late(self) -> bool:
        return any(line.late for line in self.lines)

    def close(self) -> None:
        for line in self.lines:
            line.close()


class Engine:
    """All masters of a store, and the way of an operation to the one that it is for."""

    def __init__(
        self, target: Target, clock: Clock | None, options: StoreOptions, metrics: Metrics
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.target = target
        self.options = options
        self.metrics = metrics
        self.clustered = target.form == "cluster"
        self.wait = command(
            "WAIT", options.replicas, max(1, int(options.timeout_s * WAIT_SHARE * 1000))
        )
        self.promise = Promise("unknown", "", ())
        self._clock = clock
        self._servers = Servers(target, options.timeout_s)
        self._login = login_commands(target.login, target.database)
        self._nodes: dict[Address, Node] = {}
        self._slots: list[Node | None] = [None] * SLOTS
        self._closed = False
        self._looking: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    # Operations

    def run(
        self,
        script: Script,
        places: Sequence[Place],
        what: Sequence[Any],
        weight: int = 1,
        *,
        writes: bool = True,
        adds: bool = False,
        more: bool = False,
    ) -> "asyncio.Future[list[Any]]":
        """Do it in the next call; the answer is OK or REGISTER and what follows.

        Raises what the answer stands for: Stale, Taken, StoreFull, Unavailable. ``more``: it goes on
        with something that has begun, so it is done in a store that is being closed too.
        """
        try:
            data = ENCODE(what)
        except (ValueError, OverflowError) as error:
            raise unspeakable(error) from error
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        one = Operation(script, places, data, weight, places[0].slot, future, writes, adds)
        self._begin(one, more)
        return future

    def command(
        self,
        *words: bytes | str | int,
        slot: int = 0,
        writes: bool = False,
        more: bool = False,
        at: Address | None = None,
    ) -> "asyncio.Future[Any]":
        """A command for the master of a slot, or the one at an address."""
        future: asyncio.Future[Any] = self._loop.create_future()
        one = Operation(None, (), command(*words), 1, slot, future, writes, False)
        if at is None:
            self._begin(one, more)
        else:
            self.node(at).line(one).submit(one)
        return future

    def unasked(self, data: bytes) -> Operation:
        """A command that nobody waits for."""
        future: asyncio.Future[Any] = self._loop.create_future()
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        return Operation(None, (), data, 1, 0, future, False, False)

    def _begin(self, one: Operation, more: bool) -> None:
        if self._closed and not more:
            raise Unavailable("The storage is closed.")
        self.dispatch(one)

    def dispatch(self, one: Operation) -> None:
        """Let it wait for the master that it is for."""
        node = self._slots[one.slot]
        if node is None:
            one.fail(Unavailable("No server has this part of the storage."))
            self.doubt()
        else:
            line = node.line(one)
            if len(line.waiting) >= BACKLOG:
                one.fail(Unavailable("The storage is overloaded."))
            else:
                line.submit(one)

    async def lanes(self, step: int) -> AsyncIterator[list[QueueKey]]:
        """All lanes that there are, a few at a time and in no order, some perhaps twice."""
        for master in self.masters():
            cursor = b"0"
            while True:
                cursor, names = await self.command(
                    "SCAN", cursor, "MATCH", LANE_KEYS, "COUNT", step, at=master
                )
                found = (key_of(name.decode(errors="replace").removesuffix(":h")) for name in names)
                yield [key for key in found if key is not None]
                if cursor == b"0":
                    break

    def clock_argument(self) -> bytes:
        """Now, or 0: by the server's clock."""
        return b"0" if self._clock is None else b"%d" % self._clock()

    @property
    def by_own_clock(self) -> bool:
        """Whether it goes by a clock of ours and not by the server's."""
        return self._clock is not None

    def now_ms(self) -> int:
        """Roughly now, for what needs no better."""
        return self._clock() if self._clock else time.time_ns() // 1_000_000

    def count_expired(self, numbers: dict[Place, int], pairs: list[int]) -> None:
        served = {number for place, number in numbers.items() if place.served}
        for number, expired in zip(pairs[::2], pairs[1::2], strict=True):
            if number in served:
                self.metrics.messages["expired"] += expired

    # Servers

    async def open(self) -> None:
        """Raises Lost or Broken."""
        self._arrange(await self._servers.find())
        for node in list(self._nodes.values()):
            node.writer.use(await self.connect(node, strict=True))
        self._watching = self._loop.create_task(self._watch())

    async def connect(self, node: Node, *, strict: bool = False) -> Wire:
        """A connection to a master that is one. ``strict``: and keeps what it should."""
        timeout_s = self.options.timeout_s
        wire = await Wire.connect(*node.address, self.target.tls, timeout_s)
        try:
            # Redis hangs up on those who are not logged in and have much to say.
            login = await wire.ask(*self._login, *QUESTIONS, timeout_s=timeout_s)
            _require(login[: len(self._login)], "refuses the login")
            found = facts(login[len(self._login) :])
            self._check(node, found, strict=strict)
            loads = await wire.ask(LANES.load, RECORDS.load, timeout_s=timeout_s)
            _require(loads, "takes no scripts")
        except BaseException:
            wire.close()
            raise
        node.run_id = found.run_id
        return wire

    def _check(self, node: Node, found: Facts, *, strict: bool) -> None:
        if found.loading:
            raise Broken("Redis is loading its data")
        if found.cluster and not self.clustered:
            raise Broken("it belongs to a cluster: use redis+cluster://")
        if self.clustered and not found.cluster:
            raise Broken("it belongs to no cluster: use redis://")
        if found.role != "master":
            raise Broken("it is no master but a replica")
        try:
            kept = promise(found, self.options)
        except Broken as error:
            if strict:
                raise
            if not node.trouble:
                log.error("store does not keep what it should", why=str(error))
            node.trouble = str(error)
        else:
            node.trouble = ""
            if strict:
                self.promise = kept

    def node(self, address: Address) -> Node:
        """The server there, known or not."""
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = Node(self, address)
        return node

    def masters(self) -> list[Address]:
        """Those that have slots."""
        return list(dict.fromkeys(node.address for node in self._slots if node is not None))

    def moved(self, slot: int, address: Address) -> None:
        self._slots[slot] = self.node(address)
        self.doubt()

    def _arrange(self, masters: Masters) -> None:
        """Have these masters and no others."""
        slots: list[Node | None] = [None] * SLOTS
        for address, ranges in masters.items():
            node = self.node(address)
            if ranges == ALL_SLOTS:
                slots = [node] * SLOTS
                break
            for part in ranges:
                slots[part.start : part.stop] = [node] * len(part)
        self._slots = slots
        for address in set(self._nodes) - set(masters):
            node = self._nodes[address]
            for line in node.lines:
                waiting, line.waiting = line.waiting, deque()
                for one in waiting:
                    self.dispatch(one)
            # One that answers may be a master that gets its first slots. A replica says that it is
            # one in a cluster, but elsewhere it would answer.
            if node.away or node.late or not self.clustered:
                del self._nodes[address]
                node.close()

    def doubt(self) -> None:
        """Something is not as it was: look whether there are other masters now."""
        if not self._closed and (self._looking is None or self._looking.done()):
            self._looking = self._loop.create_task(self._look())

    async def _look(self) -> None:
        """Look once, and as long as a master is away."""
        while not self._closed:
            try:
                masters = await self._servers.find()
            except (Lost, Broken) as error:
                log.debug("no masters were found", error=str(error))
            else:
                self._arrange(masters)
            await asyncio.sleep(PROBE_S)
            away = [node for node in self._nodes.values() if node.away]
            if not away:
                return
            for node in away:
                await self._probe(node)

    async def _probe(self, node: Node) -> None:
        """Connect anew what is away."""
        for line in node.lines:
            if line.away:
                ping = self.unasked(command("PING"))
                line.submit(ping)
                await asyncio.wait((ping.future,))

    async def _watch(self) -> None:
        """Ask the servers from time to time what they are and what they keep."""
        service = self.target.form == "sentinel"
        asked = self._loop.time()
        while True:
            await asyncio.sleep(WATCH_ROLE_S if service else WATCH_S)
            if service:
                await self._check_role()
            if self._loop.time() - asked >= WATCH_S:
                asked = self._loop.time()
                await self._check_all()

    async def _check_role(self) -> None:
        try:
            masters = await self._servers.find()
        except (Lost, Broken):
            return
        if set(masters) != set(self._nodes):
            self._arrange(masters)

    async def _check_all(self) -> None:
        for address in self.masters():
            try:
                found = facts(
                    [await self.command("INFO", at=address),
                     await self.command("CONFIG", "GET", "appendfsync", at=address)]
                )  # fmt: skip
                self._check(self.node(address), found, strict=False)
            except (Unavailable, Broken):
                self.node(address).close()
                self.doubt()

    # The end

    async def close(self) -> None:
        """Finish what waits, for as long as an answer may take."""
        self._closed = True
        tasks = [task for task in (self._watching, self._looking) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        lines = [line for node in self._nodes.values() for line in node.lines]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.options.timeout_s):
                while busy := [line for line in lines if not line.idle.is_set()]:
                    await busy[0].idle.wait()
        self._slots = [None] * SLOTS
        for line in lines:
            await line.end()


def _require(replies: Sequence[Any], what: str) -> None:
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise Broken(f"Redis {what}: {reply}")
