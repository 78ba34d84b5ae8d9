"""A small model of a store with group commit, all of whose states can be visited.

A producer posts two messages at once, two workers claim, renew, delete and release them, and may
die. What is asked for waits for a batch; a batch is carried out at one time, then committed, then
answered; in between the store may crash at any step, and the clock tick. In every state must hold

* R1: what was acknowledged is stored, until somebody asked for its deletion or it expires;
* R4: who asks after a deletion was answered does not get the message;
* R5: as long as a claim is certainly live, its holder has the message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

MESSAGE_TTLS = (100, 3)  # ticks, as all times here

POST, CLAIM, RENEW, DELETE, RELEASE = "post", "claim", "renew", "delete", "release"
PRODUCER = 2  # workers are 0 and 1


class Stored(NamedTuple):
    """A message: the claim that holds it until ``end``, and when it expires."""

    claim: int
    end: int
    expires: int


class Asked(NamedTuple):
    """An operation. ``about``: a message; ``seen``: bits of those that were deleted for certain, or,
    for what a wrong store makes of it, that were free, or held. ``until``: the holder's certain end.
    """

    who: int
    what: str
    claim: int
    about: int
    at: int
    seen: int
    until: int


class Worker(NamedTuple):
    """``certain``: until when it holds each message for certain; ``got``: bits of those that its claim
    returned, and that it has not deleted.
    """

    left: int  # operations
    waits: bool
    claim: int
    got: int
    certain: tuple[int, int]


class Batch(NamedTuple):
    """What a transaction made of the messages, and what it will answer. ``done``: committed."""

    messages: tuple[Stored | None, Stored | None]
    answers: tuple[tuple[Asked, int], ...]
    done: bool


class State(NamedTuple):
    """Everything. ``acknowledged``: until when each message has to be there."""

    now: int
    stored: tuple[Stored | None, Stored | None]
    batch: Batch | None
    waiting: tuple[Asked, ...]
    workers: tuple[Worker, Worker]
    posted: bool
    acknowledged: tuple[int, int]
    deleting: int  # bits: somebody asked for it
    deleted: int  # bits: answered
    crashes: int
    deaths: int


class Bounds(NamedTuple):
    """How much may happen."""

    operations: int = 2  # of each worker
    ticks: int = 3
    crashes: int = 1
    deaths: int = 0
    claim_ttl: int = 2
    limit: int = 2  # messages of a claim


VARIANTS = {
    "answers before the commit": Bounds(),
    "claims without a second look": Bounds(),
    "time read outside": Bounds(),
    "anybody deletes": Bounds(),
    "renewal brings back": Bounds(3, 1, 0, claim_ttl=1, limit=1),
}
"""Wrong stores, and the bounds within which each breaks a rule."""


class Step(NamedTuple):
    """What happened, and, where operations were answered, what the answers were."""

    name: str
    asked: Asked | None = None
    answers: tuple[tuple[Asked, int], ...] = ()


class Broken(NamedTuple):
    """A rule is broken in a state that these steps lead to."""

    rule: str
    steps: list[Step]


class Model:
    """``variant``: what is wrong with the store."""

    def __init__(self, bounds: Bounds, variant: str = "") -> None:
        self._bounds = bounds
        self._claim_ttl = bounds.claim_ttl
        self._limit = bounds.limit
        self._early = variant == "answers before the commit"
        self._blind = variant == "claims without a second look"
        self._stale = variant == "time read outside"
        self._anybody = variant == "anybody deletes"
        self._revives = variant == "renewal brings back"

    def begin(self) -> State:
        worker = Worker(self._bounds.operations, False, 0, 0, (0, 0))
        return State(
            0, (None, None), None, (), (worker, worker), False, (0, 0), 0, 0,
            self._bounds.crashes, self._bounds.deaths,
        )  # fmt: skip

    # What may happen next

    def steps(self, state: State) -> Iterator[tuple[Step, State, str]]:
        """Everything that may happen, what comes of it, and the rule that is broken by it."""
        for step, after, rule in self._next(state):
            yield step, after, rule or self._broken(after)

    def _next(self, state: State) -> Iterator[tuple[Step, State, str]]:
        if not state.posted:
            post = Asked(PRODUCER, POST, 0, 0, state.now, 0, 0)
            yield (
                Step("ask", post),
                state._replace(posted=True, waiting=(*state.waiting, post)),
                "",
            )
        for who in (0, 1):
            yield from self._asks(state, who)
        if state.waiting and state.batch is None:
            yield Step("carry out"), self._carried_out(state), ""
        if state.batch is not None:
            if not state.batch.done:
                yield Step("commit"), self._committed(state), ""
            if state.batch.done or (self._early and state.batch.answers):
                yield self._answered(state)
        if state.now < self._bounds.ticks:
            yield Step("tick"), state._replace(now=state.now + 1), ""
        if state.crashes and (state.waiting or state.batch):
            yield Step("crash"), self._crashed(state), ""

    def _asks(self, state: State, who: int) -> Iterator[tuple[Step, State, str]]:
        worker = state.workers[who]
        if state.deaths and (worker.waits or worker.claim):
            dead = worker._replace(waits=False, claim=0, got=0, certain=(0, 0))
            yield (
                Step(f"worker {who} dies"),
                _with(state, who, dead)._replace(deaths=state.deaths - 1),
                "",
            )
        if worker.waits or not worker.left:
            return
        busy = worker._replace(waits=True, left=worker.left - 1)
        if not worker.claim:
            claim = 1 + who + 2 * worker.left
            seen = self._free(state) if self._blind else state.deleted
            asked = Asked(who, CLAIM, claim, 0, state.now, seen, 0)
            yield Step("ask", asked), self._asked(state, who, busy, asked), ""
            return
        until = max(worker.certain)
        seen = worker.got if self._revives else 0
        asked = Asked(who, RENEW, worker.claim, 0, state.now, seen, until)
        yield Step("ask", asked), self._asked(state, who, busy, asked), ""
        asked = Asked(who, RELEASE, worker.claim, 0, state.now, 0, 0)
        idle = busy._replace(claim=0, got=0, certain=(0, 0))
        yield Step("ask", asked), self._asked(state, who, idle, asked), ""
        for message in (0, 1):
            if worker.got >> message & 1:
                asked = Asked(
                    who, DELETE, worker.claim, message, state.now, 0, worker.certain[message]
                )
                left = busy._replace(certain=_without(worker.certain, message))
                after = self._asked(state, who, left, asked)
                yield (
                    Step("ask", asked),
                    after._replace(deleting=state.deleting | 1 << message),
                    "",
                )

    def _asked(self, state: State, who: int, worker: Worker, asked: Asked) -> State:
        return _with(state, who, worker)._replace(waiting=(*state.waiting, asked))

    def _free(self, state: State) -> int:
        return sum(
            1 << i
            for i, m in enumerate(state.stored)
            if m is not None and m.expires > state.now and m.end <= state.now
        )

    # The store

    def _carried_out(self, state: State) -> State:
        """Everything that waits, in order, at one time."""
        now = min(asked.at for asked in state.waiting) if self._stale else state.now
        messages = list(state.stored)
        answers = tuple((asked, self._do(messages, asked, now)) for asked in state.waiting)
        changed = (messages[0], messages[1])
        # What changed nothing need not be committed.
        batch = Batch(changed, answers, done=changed == state.stored)
        return state._replace(waiting=(), batch=batch)

    def _do(self, messages: list[Stored | None], asked: Asked, now: int) -> int:
        """Returns bits of the messages that it was about, or 0 if it was refused."""
        for i, m in enumerate(messages):
            if m is not None and m.expires <= now:
                messages[i] = None
        if asked.what == RENEW and self._revives:
            for i, m in enumerate(messages):
                if m is None and asked.seen >> i & 1:
                    messages[i] = Stored(asked.claim, now + self._claim_ttl, MESSAGE_TTLS[i])
        bits = 0
        if asked.what == POST:
            messages[:] = [Stored(0, 0, now + ttl) for ttl in MESSAGE_TTLS]
            return 0b11
        if asked.what == DELETE:
            m = messages[asked.about]
            if m is None:
                return 1 << asked.about  # there is none, so that is what was wanted
            if self._anybody or (m.claim == asked.claim and m.end > now):
                messages[asked.about] = None
                return 1 << asked.about
            return 0
        for i, m in enumerate(messages):
            if m is None:
                continue
            held = m.claim == asked.claim and m.end > now
            if asked.what == CLAIM:
                if m.end > now if not self._blind else not asked.seen >> i & 1:
                    continue
            elif not held:
                continue
            bits |= 1 << i
            if asked.what == RELEASE:
                messages[i] = m._replace(claim=0, end=0)
            else:
                end = now + self._claim_ttl
                messages[i] = Stored(asked.claim, end, max(m.expires, end))
            if asked.what == CLAIM and bits.bit_count() == self._limit:
                break
        return bits

    def _committed(self, state: State) -> State:
        assert state.batch is not None
        if not state.batch.answers:  # that came before
            return state._replace(stored=state.batch.messages, batch=None)
        return state._replace(batch=state.batch._replace(done=True), stored=state.batch.messages)

    def _crashed(self, state: State) -> State:
        """What is not committed is gone, and nobody who waits hears anything."""
        one, two = (worker._replace(waits=False) for worker in state.workers)
        return state._replace(
            batch=None, waiting=(), workers=(one, two), crashes=state.crashes - 1
        )  # fmt: skip

    # What those who asked make of it

    def _answered(self, state: State) -> tuple[Step, State, str]:
        batch = state.batch
        assert batch is not None
        step = Step("answer", None, batch.answers)
        left = None if batch.done else batch._replace(answers=())
        after, rule = state._replace(batch=left), ""
        for asked, bits in batch.answers:
            after, broken = self._learned(after, asked, bits)
            rule = rule or broken
        return step, after, rule

    def _learned(self, state: State, asked: Asked, bits: int) -> tuple[State, str]:
        if asked.what == POST:
            one, two = (asked.at + ttl for ttl in MESSAGE_TTLS)
            return state._replace(acknowledged=(one, two)), ""
        rule = ""
        if asked.what == CLAIM and not self._blind and bits & asked.seen:
            rule = "R4"
        if asked.what == DELETE and bits:
            state = state._replace(deleted=state.deleted | bits)
        worker = state.workers[asked.who]
        if not worker.waits or (asked.what == CLAIM and worker.claim):
            return state, rule  # who asked is dead
        if not bits and asked.until > state.now:
            rule = rule or "R5"  # the holder is told that it does not hold it
        worker = worker._replace(waits=False)
        if asked.what == CLAIM and bits:
            worker = worker._replace(claim=asked.claim, got=bits)
        if asked.what in {CLAIM, RENEW}:
            end = asked.at + self._claim_ttl
            certain = tuple(
                max(was, end) if bits >> i & 1 and worker.got >> i & 1 else was
                for i, was in enumerate(worker.certain)
            )
            worker = worker._replace(certain=(certain[0], certain[1]))
        if asked.what == DELETE:
            got = worker.got & ~(1 << asked.about)
            worker = worker._replace(got=got, claim=worker.claim if got else 0)
        return _with(state, asked.who, worker), rule

    # The rules

    def settled(self, state: State) -> State:
        """Without what is over and makes no difference any more."""
        if self._stale or self._revives:
            return state
        now = state.now
        stored = _fresh(state.stored, now)
        batch = state.batch
        if batch is not None:
            messages = stored if batch.done else _fresh(batch.messages, now)
            answers = tuple((self._young(asked, now), bits) for asked, bits in batch.answers)
            batch = Batch(messages, answers, batch.done)
        one, two = state.workers
        return State(
            now, stored, batch, tuple([self._young(asked, now) for asked in state.waiting]),
            (_awake(one, now), _awake(two, now)), state.posted,
            (_later(state.acknowledged[0], now), _later(state.acknowledged[1], now)),
            *state[7:],
        )  # fmt: skip

    def _young(self, asked: Asked, now: int) -> Asked:
        """How long ago it was asked for matters only as far as a claim made then may be live."""
        at = asked.at
        if asked.what in {DELETE, RELEASE}:
            at = 0
        elif asked.what in {CLAIM, RENEW} and at < now - self._claim_ttl:
            at = now - self._claim_ttl
        until = _later(asked.until, now)
        if at == asked.at and until == asked.until:
            return asked
        return asked._replace(at=at, until=until)

    def _broken(self, state: State) -> str:
        now = state.now
        for i in (0, 1):
            if state.acknowledged[i] > now and not state.deleting >> i & 1:
                m = state.stored[i]
                if m is None or m.expires <= now:
                    return "R1"
        messages = state.batch.messages if state.batch is not None else state.stored
        for worker in state.workers:
            for i in (0, 1):
                if worker.certain[i] > now:
                    m = messages[i]
                    if m is None or m.claim != worker.claim or m.end <= now:
                        return "R5"
        return ""


def _with(state: State, who: int, worker: Worker) -> State:
    workers = (worker, state.workers[1]) if who == 0 else (state.workers[0], worker)
    return state._replace(workers=workers)


def _without(certain: tuple[int, int], message: int) -> tuple[int, int]:
    return (0, certain[1]) if message == 0 else (certain[0], 0)


class Search:
    """Visits every state, those that take fewer steps first. ``states``: how many there are. It ends
    with the first rule that is broken, unless it is to ``go_on``.
    """

    def __init__(self, model: Model, *, go_on: bool = False) -> None:
        self._model = model
        self._go_on = go_on
        begin = model.begin()
        self._number = {begin: 0}
        self._came: list[tuple[int, Step | None]] = [(0, None)]

    @property
    def states(self) -> int:
        return len(self._came)

    def run(self) -> Broken | None:
        """The first rule that is broken, by the shortest way."""
        number, came, steps = self._number, self._came, self._model.steps
        settled = self._model.settled
        line = deque(number)
        at = 0
        while line:
            for step, after, rule in steps(line.popleft()):
                if rule and not self._go_on:
                    came.append((at, step))
                    return Broken(rule, self.way(len(came) - 1))
                state = settled(after)
                if state not in number:
                    number[state] = len(came)
                    came.append((at, step))
                    line.append(state)
            at += 1
        return None

    def way(self, number: int) -> list[Step]:
        """The steps that led to a state."""
        steps: list[Step] = []
        while True:
            number, step = self._came[number]
            if step is None:
                return steps[::-1]
            steps.append(step)


def _later(until: int, now: int) -> int:
    return until if until > now else 0


def _fresh(
    messages: tuple[Stored | None, Stored | None], now: int
) -> tuple[Stored | None, Stored | None]:
    one, two = messages
    return _alive(one, now), _alive(two, now)


def _alive(message: Stored | None, now: int) -> Stored | None:
    if message is None or message.expires <= now:
        return None
    if message.claim and message.end <= now:
        return Stored(0, 0, message.expires)
    return message


def _awake(worker: Worker, now: int) -> Worker:
    one, two = worker.certain
    if 0 < one <= now or 0 < two <= now:
        return worker._replace(certain=(_later(one, now), _later(two, now)))
    return worker
