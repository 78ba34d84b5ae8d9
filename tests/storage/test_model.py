"""Random operations against the model: every answer must be the same.

The clock turns in whole seconds, so a rounded deadline never makes a difference.
"""

import asyncio
import tempfile
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from nusku.model import Draft, QueueKey, QueueRef, Stored, home
from nusku.storage import Apart, Removal, Stale, StoreOptions
from tests.storage.harness import BACKENDS, START_MS, House
from tests.storage.model import Model

T = TypeVar("T")

KEYS = [
    QueueKey("queue", "a", "x"),
    QueueKey("delivery", "a", "x"),
    QueueKey("topic", "a", "x"),
    QueueKey("delivery", "b", "x"),
    QueueKey("notice", "a", "queue/x"),
]
TOGETHER = (KEYS[0], KEYS[-1])  # a queue and its notices, which are of one home


def place_of(key: QueueKey) -> tuple[str, str]:
    """Queues of one place can be written in one step, whatever the store."""
    return key.project, home(key)


FOREIGN = "f0" * 16  # a claim that another store made

keys = st.sampled_from(KEYS)
limits = st.integers(1, 6)
ttls = st.sampled_from([1, 2, 3, 5, 8, 20, 100])
graces = st.sampled_from([0, 1, 5])
delays = st.sampled_from([0, 0, 0, 1, 3, 10])
clients = st.sampled_from(["", "me", "you"])
picks = st.lists(st.integers(0, 30), max_size=5)
drafts = st.lists(
    st.builds(
        Draft,
        body=st.binary(max_size=3),
        ttl_s=ttls,
        delay_s=delays,
        client=clients,
        dedup=st.sampled_from([None, None, None, "j", "k"]),
        attributes=st.sampled_from([None, b"", b"a"]),
        posted_ms=st.sampled_from([0, 0, START_MS - 5000]),
        count=st.sampled_from([0, 0, 2]),
    ),
    max_size=6,
)


def plain(one: Stored) -> Stored:
    """Without the term of its claim."""
    return replace(one, claim_started_ms=0, claim_ttl_s=0)


async def carry(source: House, target: House, ref: QueueRef, next_position: int, step: int) -> None:
    """Copy a queue, so many messages at a time."""
    after = 0
    while True:
        some = await source.messages.dump(ref, after, step)
        through = some[-1].position if len(some) == step else next_position
        await target.messages.load(ref, next_position, after, through, some)
        if len(some) < step:
            return
        after = through


class Storage(RuleBasedStateMachine):
    """A store and the model side by side."""

    backend: str

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        uri = BACKENDS[self.backend](Path(self.directory.name))
        self.house = House(uri, StoreOptions(synchronous="normal"))
        self.run(self.house.open())
        self.elsewhere: House | None = None
        self.model = Model(self.house.clock)
        self.refs = {key: QueueRef(key, self.house.generation(), 1) for key in KEYS}
        self.claims: list[str] = [FOREIGN, "deadbeef"]

    def teardown(self) -> None:
        try:
            for key in KEYS:
                self.list_all(key)
        finally:
            self.run(self.house.close())
            if self.elsewhere is not None:
                self.run(self.elsewhere.close())
            self.runner.close()
            self.directory.cleanup()

    def run(self, answer: Awaitable[T]) -> T:
        # By the runner each would bring its handler of SIGINT, a fifth of what a test costs.
        return self.runner.get_loop().run_until_complete(answer)

    def now(self) -> int:
        return self.house.clock()

    def positions(self, key: QueueKey, picked: Sequence[int]) -> list[int]:
        """Positions near the newest, among them some that are gone or not yet there; each once."""
        lane = self.model.lanes.get(key)
        top = lane.top if lane else 0
        return list(dict.fromkeys(max(0, top + 2 - n) for n in picked))

    def claim_id(self, picked: int) -> str:
        """A claim that was made lately, or one that never was."""
        return self.claims[-1 - picked % min(len(self.claims), 8)]

    # Queues

    @initialize()
    def admit_all(self) -> None:
        for key in dict.fromkeys((*KEYS[:2], *TOGETHER)):
            self.admit(key)

    def admit(self, key: QueueKey) -> None:
        self.run(self.house.admit(self.refs[key]))
        if other := self.model.admit(self.refs[key]):
            self.model.drop(self.refs[key]._replace(generation=other))
            self.model.admit(self.refs[key])
        self.model.open(self.refs[key])

    @rule(key=keys)
    def recreate(self, key: QueueKey) -> None:
        self.refs[key] = QueueRef(key, self.house.generation(), 1)
        self.admit(key)

    @rule(key=keys, generation=st.booleans(), version=st.integers(-1, 1))
    def admit_any(self, key: QueueKey, generation: bool, version: int) -> None:
        ref = self.refs[key]
        ref = ref._replace(version=max(ref.version + version, 1))
        if generation:
            ref = ref._replace(generation=self.house.generation())
        known = key in self.model.lanes
        assert self.run(self.house.messages.admit(ref)).other == self.model.admit(ref)
        if not known or (version > 0 and not generation):
            self.refs[key] = ref
        self.open_any(key, 0)

    @rule(key=keys, version=st.sampled_from([0, 0, -1, 1]))
    def open_any(self, key: QueueKey, version: int) -> None:
        """Who comes with the seal opens, if the version is right, too."""
        ref = self.refs[key]
        if key in self.model.lanes:
            seal = self.run(self.house.messages.admit(ref)).seal
            assert bool(seal) == self.model.lanes[key].sealed
            ref = ref._replace(version=ref.version + version)
            self.run(self.house.messages.open(ref, seal))
            self.model.open(ref)

    @rule(key=keys, version=st.sampled_from([0, 1, 1, -1]))
    def seal(self, key: QueueKey, version: int) -> None:
        ref = self.refs[key]
        ref = ref._replace(version=ref.version + version)
        try:
            self.model.seal(ref)
        except Stale:
            with pytest.raises(Stale):
                self.run(self.house.messages.seal(ref))
        else:
            self.run(self.house.messages.seal(ref))
            self.refs[key] = ref
            with pytest.raises(Stale):
                self.run(self.house.messages.page(ref, 0, 1))
            with pytest.raises(Stale):
                self.run(self.house.messages.claim(ref, 1, 1, 1))

    @rule(key=keys)
    def change_options(self, key: QueueKey) -> None:
        ref = self.refs[key]
        self.refs[key] = ref._replace(version=ref.version + 1)
        self.admit(key)
        for attempt in (
            self.house.messages.add([(ref, [Draft(b"x", 60)])]),
            self.house.messages.claim(ref, 1, 1, 1),
        ):
            with pytest.raises(Stale):
                self.run(attempt)

    @rule(key=keys)
    def drop(self, key: QueueKey) -> None:
        self.run(self.house.messages.drop(self.refs[key]))
        self.model.drop(self.refs[key])
        with pytest.raises(Stale):
            self.run(self.house.messages.claim(self.refs[key], 1, 1, 1))
        self.refs[key] = QueueRef(key, self.house.generation(), 1)

    @rule(
        key=keys, empty=st.booleans(), unless_later=st.booleans(), version=st.sampled_from([0, -1])
    )
    def drop_perhaps(self, key: QueueKey, empty: bool, unless_later: bool, version: int) -> None:
        ref = self.refs[key]
        ref = ref._replace(version=ref.version + version)
        self.run(self.house.messages.drop(ref, empty=empty, unless_later=unless_later))
        self.model.drop(ref, empty=empty, unless_later=unless_later)

    def there(self, key: QueueKey) -> bool:
        return key in self.model.lanes and not self.model.lanes[key].sealed

    @rule(key=keys)
    def clear(self, key: QueueKey) -> None:
        if self.there(key):
            self.run(self.house.messages.clear(self.refs[key]))
            self.model.clear(self.refs[key])

    # Messages

    @rule(key=keys, batch=drafts)
    def add(self, key: QueueKey, batch: list[Draft]) -> None:
        if not self.there(key):
            self.admit(key)
        given = self.run(self.house.messages.add([(self.refs[key], batch)]))
        self.model.add([(self.refs[key], batch)], given)

    @rule(batches=st.fixed_dictionaries(dict.fromkeys(TOGETHER, drafts)))
    def add_to_several(self, batches: dict[QueueKey, list[Draft]]) -> None:
        posts = [(self.refs[key], batch) for key, batch in batches.items()]
        if all(map(self.there, batches)):
            self.model.add(posts, self.run(self.house.messages.add(posts)))
        else:
            with pytest.raises(Stale):
                self.run(self.house.messages.add(posts))

    @rule(
        key=keys,
        after=st.integers(0, 30),
        limit=limits,
        held=st.booleans(),
        delayed=st.booleans(),
        without_client=st.none() | clients,
    )
    def page(
        self,
        key: QueueKey,
        after: int,
        limit: int,
        held: bool,
        delayed: bool,
        without_client: str | None,
    ) -> None:
        if not self.there(key):
            return
        ref = self.refs[key]
        found = self.run(
            self.house.messages.page(
                ref, after, limit, held=held, delayed=delayed, without_client=without_client
            )
        )
        expected = self.model.page(
            ref, after, limit, held=held, delayed=delayed, without_client=without_client
        )
        assert list(found.messages) == expected
        if not expected:
            self.check_due(ref, found.due_ms)

    def check_due(self, ref: QueueRef, due_ms: int | None) -> None:
        """Who waits until then misses nothing, and does not spin."""
        expected = self.model.due_ms(ref)
        if expected is not None:
            assert due_ms is not None
            assert self.now() < due_ms <= expected

    @rule(key=keys, picked=picks)
    def get(self, key: QueueKey, picked: list[int]) -> None:
        if self.there(key):
            positions = self.positions(key, picked)
            found = self.run(self.house.messages.get(self.refs[key], positions))
            assert list(found.messages) == self.model.get(self.refs[key], positions)

    @rule(key=keys, limit=limits)
    def pop(self, key: QueueKey, limit: int) -> None:
        if self.there(key):
            found = self.run(self.house.messages.pop(self.refs[key], limit))
            assert list(found.messages) == self.model.pop(self.refs[key], limit)

    @rule(
        key=keys,
        picked=picks,
        removal=st.sampled_from(Removal),
        claims=st.lists(st.integers(0, 7), max_size=2),
        together=st.booleans(),
    )
    def remove(
        self,
        key: QueueKey,
        picked: list[int],
        removal: Removal,
        claims: list[int],
        together: bool,
    ) -> None:
        if not self.there(key):
            return
        ref, positions = self.refs[key], self.positions(key, picked)
        names = list(dict.fromkeys(self.claim_id(n) for n in claims))
        together = together and removal is Removal.HELD
        answers = self.run(
            self.house.messages.remove(ref, positions, removal, names, together=together)
        )
        assert answers == self.model.remove(ref, positions, removal, names, together=together)

    @rule(
        key=keys,
        goal=keys,
        picked=picks,
        ttl_s=st.none() | ttls,
        marked=st.booleans(),
        claim=st.none() | st.integers(0, 7),
    )
    def move(
        self,
        key: QueueKey,
        goal: QueueKey,
        picked: list[int],
        ttl_s: int | None,
        marked: bool,
        claim: int | None,
    ) -> None:
        if key == goal or not self.there(goal):
            return
        ref, target, positions = self.refs[key], self.refs[goal], self.positions(key, picked)
        attributes = dict.fromkeys(positions, b"moved") if marked else {}
        bodies = {position: b"%d" % position for position in positions[:2]} if marked else {}
        name = None if claim is None else self.claim_id(claim)
        move = self.house.messages.move(
            ref, positions, target, ttl_s, attributes, name, bodies=bodies
        )
        if self.backend == "redis-cluster" and place_of(key) != place_of(goal):
            with pytest.raises(Apart):
                self.run(move)
            return
        if key in self.model.lanes and self.model.lanes[key].sealed:
            with pytest.raises(Stale):
                self.run(move)
            return
        given = self.run(move)
        self.model.move(ref, positions, target, ttl_s, attributes, name, given, bodies)

    # Claims

    @rule(
        key=keys,
        limit=limits,
        ttl_s=ttls,
        grace_s=graces,
        max_count=st.sampled_from([None, None, 1, 2, 5]),
    )
    def claim(
        self, key: QueueKey, limit: int, ttl_s: int, grace_s: int, max_count: int | None
    ) -> None:
        if not self.there(key):
            return
        ref = self.refs[key]
        got = self.run(self.house.messages.claim(ref, limit, ttl_s, grace_s, max_count))
        expected = self.model.claim(ref, limit, ttl_s, grace_s, max_count, got.claim)
        assert (list(got.messages), list(got.spent)) == expected
        if got.claim is None:
            self.check_due(ref, got.due_ms)
        else:
            assert got.claim not in self.claims
            self.claims.append(got.claim)

    @rule(key=keys, picked=st.integers(0, 7))
    def claimed(self, key: QueueKey, picked: int) -> None:
        if not self.there(key):
            return
        claim = self.claim_id(picked)
        found = self.run(self.house.messages.claimed(self.refs[key], claim))
        messages, terms = self.model.claimed(self.refs[key], claim)
        if found is None:
            assert not messages
        else:
            assert found.id == claim
            assert list(found.messages) == messages
            assert (found.started_ms, found.ttl_s) in terms

    @rule(key=keys, claim=st.integers(0, 7), ttl_s=ttls, grace_s=graces, some=st.none() | picks)
    def renew(
        self, key: QueueKey, claim: int, ttl_s: int, grace_s: int, some: list[int] | None
    ) -> None:
        if self.there(key):
            ref, name = self.refs[key], self.claim_id(claim)
            positions = None if some is None else self.positions(key, some)
            answer = self.run(self.house.messages.renew(ref, name, ttl_s, grace_s, positions))
            assert answer == self.model.renew(ref, name, ttl_s, grace_s, positions)

    @rule(
        key=keys,
        claim=st.integers(0, 7),
        delay_s=delays,
        some=st.none() | picks,
        marked=st.none() | picks,
    )
    def release(
        self,
        key: QueueKey,
        claim: int,
        delay_s: int,
        some: list[int] | None,
        marked: list[int] | None,
    ) -> None:
        if self.there(key):
            ref, name = self.refs[key], self.claim_id(claim)
            positions = None if some is None else self.positions(key, some)
            attributes = (
                None if marked is None else dict.fromkeys(self.positions(key, marked), b"released")
            )
            answer = self.run(
                self.house.messages.release(ref, name, delay_s, positions, attributes)
            )
            assert answer == self.model.release(ref, name, delay_s, positions, attributes)

    # From one store to another

    @rule(key=keys, after=st.integers(0, 10), limit=limits, bodies=st.booleans())
    def dump(self, key: QueueKey, after: int, limit: int, bodies: bool) -> None:
        ref = self.refs[key]
        if key not in self.model.lanes:
            with pytest.raises(Stale):
                self.run(self.house.messages.dump(ref, after, limit, bodies=bodies))
            return
        found = self.run(self.house.messages.dump(ref, after, limit, bodies=bodies))
        self.check_dump(found, self.model.dump(ref, after, limit, bodies=bodies))

    def check_dump(self, found: list[Stored], expected: list[Stored]) -> None:
        """The same, but for the terms of claims that were renewed in parts to end together."""
        assert [plain(one) for one in found] == [plain(one) for one in expected]
        terms = {(one.claim_started_ms, one.claim_ttl_s) for one in expected}
        assert {(one.claim_started_ms, one.claim_ttl_s) for one in found} <= terms

    @rule(key=keys, bounds=st.tuples(st.integers(0, 30), st.integers(0, 30)), data=st.data())
    def load(self, key: QueueKey, bounds: tuple[int, int], data: st.DataObject) -> None:
        """What is in a range is replaced by some of it, changed in one thing or another."""
        ref, (after, through) = self.refs[key], sorted(bounds)
        there = self.model.dump(ref, after, 100, bodies=True) if key in self.model.lanes else []
        there = [one for one in there if one.position <= through]
        changes = data.draw(st.lists(st.integers(0, 12), min_size=len(there), max_size=len(there)))
        messages = [
            changed
            for n, one in zip(changes, there, strict=True)
            if (changed := self.changed(one, n)) is not None
        ]
        keyed = {one.dedup: one for one in messages if one.dedup is not None}
        messages = [one for one in messages if one.dedup is None or keyed[one.dedup] is one]
        top = self.model.lanes[key].top if key in self.model.lanes else 0
        version = data.draw(st.integers(0, 1))
        ref = ref._replace(version=ref.version + version)
        args = (ref, top + 1, after, through, messages)
        self.run(self.house.messages.load(*args))
        self.model.load(*args)
        self.refs[key] = ref

    def changed(self, one: Stored, how: int) -> Stored | None:
        now = self.now()
        free = replace(one, hidden_ms=0, claim=None, claim_ttl_s=0, claim_started_ms=0)
        held = {"claim": FOREIGN, "claim_ttl_s": 20, "claim_started_ms": now - 10_000}
        variants: dict[int, Stored | None] = {
            0: None,
            1: free,
            2: replace(free, hidden_ms=now + 3000),
            3: replace(free, hidden_ms=min(now + 10_000, one.expires_ms), **held),
            4: replace(one, expires_ms=max(now + 5000, one.hidden_ms), ttl_s=9),
            5: replace(one, attributes=b"changed", count=one.count + 1),
            6: replace(one, dedup=None if one.dedup else "j"),
        }
        return variants.get(how, one)

    @rule(key=keys, dropped=st.booleans(), step=st.integers(1, 5))
    def to_and_fro(self, key: QueueKey, dropped: bool, step: int) -> None:
        """The queue goes to another store and comes back; nobody sees a difference."""
        if key not in self.model.lanes:
            return
        if self.elsewhere is None:
            folder = Path(self.directory.name, "elsewhere")
            folder.mkdir()
            uri = BACKENDS[self.backend](folder)
            self.elsewhere = House(uri, StoreOptions(synchronous="normal"))
            self.elsewhere.clock = self.house.clock
            self.run(self.elsewhere.open())
        ref, lane = self.refs[key], self.model.lanes[key]
        self.refs[key] = ref = ref._replace(version=ref.version + 1)
        self.run(self.house.messages.seal(ref))
        self.model.seal(ref)
        self.run(carry(self.house, self.elsewhere, ref, lane.top + 1, step))
        if dropped:
            self.run(self.house.messages.drop(ref))
        self.run(carry(self.elsewhere, self.house, ref, lane.top + 1, step))
        self.run(self.elsewhere.messages.drop(ref))
        self.run(self.house.unseal(ref))
        self.model.open(ref)

    # Time, housekeeping, restarts

    @rule(seconds=st.sampled_from([1, 1, 1, 2, 5, 30]))
    def turn(self, seconds: int) -> None:
        self.house.clock.turn(seconds)

    @rule(limit=st.integers(1, 5))
    def expire(self, limit: int) -> None:
        assert 0 <= self.run(self.house.messages.expire(limit)) <= limit

    @rule()
    def expire_all(self) -> None:
        while self.run(self.house.messages.expire(100)):
            pass

    @precondition(lambda self: len(self.claims) % 3 == 0)
    @rule()
    def reopen(self) -> None:
        self.run(self.house.reopen())

    @rule(key=keys)
    def list_all(self, key: QueueKey) -> None:
        if self.there(key):
            listed = self.run(self.house.all(self.refs[key]))
            assert list(listed) == self.model.messages(self.model.alive(self.refs[key]))

    # What holds after every step. Listing is no part of it: it may tidy up, and then states that
    # only time has changed would never be met by the other operations.

    @invariant()
    def counts_are_those_of_the_model(self) -> None:
        for lane in self.model.lanes.values():
            if not lane.sealed:
                counts = self.run(self.house.messages.count(lane.ref))
                assert counts == self.model.count(lane.ref)
        holdings = self.run(self.house.messages.queues(None, 10))
        assert [one._replace(next_position=0) for one in holdings] == [
            one._replace(next_position=0) for one in self.model.holdings()
        ]
        assert self.run(self.house.messages.volume()) == self.model.volume()
        occupied = self.run(self.house.messages.occupied("delivery"))
        assert set(occupied) == self.model.occupied("delivery")
        assert len(occupied) == len(set(occupied))


def play(backend: str, examples: int, steps: int) -> None:
    machine = type("Storage", (Storage,), {"backend": backend})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_random_operations_are_answered_as_by_the_model(backend: str) -> None:
    play(backend, examples=20, steps=30)


@pytest.mark.embedded
def test_answers_do_not_depend_on_the_size_of_sqlites_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nusku.storage.sqlite.scan.WINDOW", 2)
    monkeypatch.setattr("nusku.storage.sqlite.scan.BUDGET", 4)
    monkeypatch.setattr("nusku.storage.sqlite.messages.BUDGET", 4)
    monkeypatch.setattr("nusku.storage.sqlite.ledger.LANES_CACHED", 1)
    play("sqlite", examples=15, steps=30)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_more_random_operations_are_answered_as_by_the_model(backend: str) -> None:
    play(backend, examples=80 if backend == "sqlite" else 25, steps=60)
