"""Three nodes on one store, of which one is killed: how long clients are without an answer that go to another."""

import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.generator import Connection
from benchmarks.messages import Message, decode_claimed, verified_number
from benchmarks.nodes import ALONE, NODES
from benchmarks.report import FAILOVER, Result
from benchmarks.rig import Rig
from benchmarks.wire import Answer, Target, WrongAnswerError
from benchmarks.work_queue import WorkQueue, expect

CLIENTS = 12
"""Half of them post, half work."""
PATIENCE_S = 1.0
"""A client that has no answer after so long asks another node."""
PAUSE_S = 0.02
"""Between two requests of a client, and before the next node is tried."""
CALM_S = 1.0
"""Before each kill: the control, as clients wait for other reasons too."""
WATCHED_S = 3.0
"""After each kill."""


@dataclass(slots=True)
class Notes:
    """What all clients know of the messages."""

    acknowledged: set[int] = field(default_factory=set)
    deleted: set[int] = field(default_factory=set)
    perhaps_deleted: set[int] = field(default_factory=set)
    """Their deletion got no answer."""


class Client:
    """Asks one node until that does not answer, then the next. Nothing is asked twice."""

    def __init__(self, rig: Rig, queue: WorkQueue, first: int) -> None:
        self._rig = rig
        self._queue = queue
        self._node = first
        self._connection: Connection | None = None
        self._at: Target | None = None
        self.answered: list[float] = []
        """When answers with success came (perf_counter seconds)."""
        self.unanswered = 0

    async def ask(self, method: str, path: str, body: bytes = b"") -> Answer | None:
        """None if there was no answer, or none of success."""
        target = self._rig.targets[self._node]
        if self._connection is None or self._at != target:
            self.close()
            self._connection, self._at = Connection(target), target
        try:
            answer = await asyncio.wait_for(
                self._connection.ask(target.request(method, path, body)), PATIENCE_S
            )
        except (OSError, TimeoutError, WrongAnswerError):
            self._give_up()
            return None
        if answer[0] >= 500:
            self._give_up()
            return None
        self.answered.append(time.perf_counter())
        return answer

    def _give_up(self) -> None:
        self.unanswered += 1
        self.close()
        self._node = (self._node + 1) % len(self._rig.targets)

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def post(self, notes: Notes) -> None:
        """One message, posted once."""
        [number] = self._queue.ledger.take(1)
        answer = await self.ask("POST", f"{self._queue.path}/messages", self._queue.body(number))
        if answer is not None:
            expect(answer[0], 201, "post", answer[1])
            notes.acknowledged.add(number)

    async def work(self, notes: Notes) -> None:
        """Claim, and delete what came."""
        claim = f"{self._queue.path}/claims?limit=5"
        answer = await self.ask("POST", claim, b'{"ttl":60,"grace":60}')
        if answer is None or answer[0] == 204:
            return
        expect(answer[0], 201, "claim", answer[1])
        for message in decode_claimed(answer[1]).messages:
            await self._delete(message, notes)

    async def _delete(self, message: Message, notes: Notes) -> None:
        number = verified_number(message)
        if number in notes.deleted:
            raise WrongAnswerError(f"claim: message {number} came again")
        answer = await self.ask("DELETE", message.href)
        if answer is None:
            notes.perhaps_deleted.add(number)
        else:
            expect(answer[0], 204, "delete", answer[1])
            notes.deleted.add(number)


def longest_s(answered: Sequence[float], since: float, until: float) -> float:
    """The longest time without an answer that touches these moments, from the moments of all answers."""
    before = max((moment for moment in answered if moment <= since), default=since)
    after = min((moment for moment in answered if moment >= until), default=until)
    within = [moment for moment in answered if since < moment < until]
    points = [before, *within, after]
    return max(later - earlier for earlier, later in itertools.pairwise(points))


async def failover(rig: Rig) -> Result:
    """Kill each node in turn, and start it again when what clients feel of it is over."""
    if rig.store is None or not rig.stores.shared:
        return Result("failover", skipped=ALONE)
    worst_s: list[float] = []
    calm_s: list[float] = []
    async with rig.another(nodes=NODES, connections=NODES) as three:
        queue = await three.new_queue()
        notes = Notes()
        clients = [Client(three, queue, number % NODES) for number in range(CLIENTS)]
        over = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                for number, client in enumerate(clients):
                    group.create_task(_go_on(client, notes, over, works=bool(number % 2)))
                for kill in range(rig.sizes.kills):
                    calm, after = await _strike(three, kill % NODES, clients)
                    calm_s.append(calm)
                    worst_s.append(after)
                over.set()
        except* WrongAnswerError as wrong:
            rig.errors += [str(error) for error in wrong.exceptions]
            over.set()
        await _check(three, queue, notes)
        await three.do(queue.drop())
    facts = {
        "kills": float(len(worst_s)),
        "requests without an answer": float(sum(client.unanswered for client in clients)),
        "a client without an answer after a kill, median of kills, s": statistics.median(worst_s),
        "the same before the kills, median, s": statistics.median(calm_s),
        "the same before the kills, the longest, s": max(calm_s),
        FAILOVER: max(worst_s),
    }
    return Result("failover", facts=facts)


async def _strike(rig: Rig, node: int, clients: Sequence[Client]) -> tuple[float, float]:
    """Kill this node and start it again: the longest that a client had no answer before, and then."""
    begun = time.perf_counter()
    await asyncio.sleep(CALM_S)
    killed = time.perf_counter()
    await rig.servers[node].kill()
    await asyncio.sleep(WATCHED_S)
    seen = time.perf_counter()
    rig.targets[node] = await rig.servers[node].start()
    return (
        max(longest_s(client.answered, begun, killed) for client in clients),
        max(longest_s(client.answered, killed, seen) for client in clients),
    )


async def _go_on(client: Client, notes: Notes, over: asyncio.Event, *, works: bool) -> None:
    while not over.is_set():
        await (client.work(notes) if works else client.post(notes))
        await asyncio.sleep(PAUSE_S)
    client.close()


async def _check(rig: Rig, queue: WorkQueue, notes: Notes) -> None:
    """What was acknowledged is there, unless it was deleted, or perhaps so."""
    queue.aim_at(rig.target)
    rig.disconnect()
    await rig.connect()
    left: set[int] = set()
    path = f"{queue.path}/messages?echo=true&include_claimed=true&limit=20"
    while (page := await rig.do(queue.page(path))).messages:
        left |= {verified_number(message) for message in page.messages}
        path = page.links[0].href
    if lost := notes.acknowledged - notes.deleted - notes.perhaps_deleted - left:
        raise WrongAnswerError(f"{len(lost)} messages were acknowledged and are lost: {min(lost)}…")
