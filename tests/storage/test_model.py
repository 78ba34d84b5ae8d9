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

from nusku.model import Draft, QueueKey, QueueRef
from nusku.storage import Removal, Stale, StoreOptions
from tests.storage.harness import BACKENDS, House
from tests.storage.model import Model

T = TypeVar("T")

KEYS = [
    QueueKey("queue", "a", "x"),
    QueueKey("delivery", "a", "x"),
    QueueKey("topic", "a", "x"),
    QueueKey("delivery", "b", "x"),
]

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
    ),
    max_size=6,
)


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
        self.model = Model(self.house.clock)
        self.refs = {key: QueueRef(key, self.house.generation(), 1) for key in KEYS}
        self.claims: list[str] = ["deadbeef"]

    def teardown(self) -> None:
        try:
            for key in KEYS:
                self.list_all(key)
        finally:
            self.run(self.house.close())
            self.runner.close()
            self.directory.cleanup()

    def run(self, answer: Awaitable[T]) -> T:
        async def wait() -> T:
            return await answer

        return self.runner.run(wait())

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
        for key in KEYS[:2]:
            self.admit(key)

    def admit(self, key: QueueKey) -> None:
        self.run(self.house.messages.admit(self.refs[key]))
        self.model.admit(self.refs[key])

    @rule(key=keys)
    def recreate(self, key: QueueKey) -> None:
        self.refs[key] = QueueRef(key, self.house.generation(), 1)
        self.admit(key)

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
        self.run(self.house.messages.drop(key))
        self.model.drop(key)
        with pytest.raises(Stale):
            self.run(self.house.messages.claim(self.refs[key], 1, 1, 1))
        self.refs[key] = QueueRef(key, self.house.generation(), 1)

    def there(self, key: QueueKey) -> bool:
        return key in self.model.lanes

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

    @rule(batches=st.fixed_dictionaries(dict.fromkeys(KEYS[:2], drafts)))
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
        name = None if claim is None else self.claim_id(claim)
        given = self.run(self.house.messages.move(ref, positions, target, ttl_s, attributes, name))
        self.model.move(ref, positions, target, ttl_s, attributes, name, given)

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
            counts = self.run(self.house.messages.count(lane.ref))
            assert counts == self.model.count(lane.ref)
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


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_random_operations_are_answered_as_by_the_model(backend: str) -> None:
    play(backend, examples=20, steps=30)


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
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_many_more_random_operations_are_answered_as_by_the_model(backend: str) -> None:
    play(backend, examples=150, steps=60)
