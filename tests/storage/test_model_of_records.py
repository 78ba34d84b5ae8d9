"""Random operations on records against the model: every answer must be the same."""

import asyncio
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from nusku.model import Record
from nusku.storage import StoreOptions, Taken
from tests.storage.harness import BACKENDS, START_MS, House
from tests.storage.model_of_records import Place, Records

T = TypeVar("T")

KINDS, PROJECTS, KEYS, PARENTS, NAMES = ["sub", "queue"], ["p", "q"], "abcdef", ["x", "y"], "ijk"

kinds = st.sampled_from(["sub", "sub", "sub", "queue"])
projects = st.sampled_from(["p", "p", "q"])
keys = st.sampled_from(KEYS)
places = st.tuples(kinds, projects, keys)
parents = st.sampled_from(["", *PARENTS])
names = st.none() | st.sampled_from(NAMES)
docs = st.binary(max_size=2)
ttls = st.none() | st.sampled_from([1, 2, 3, 5, 20])


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
        self.model = Records(self.house.clock)

    def teardown(self) -> None:
        self.run(self.house.close())
        self.runner.close()
        self.directory.cleanup()

    def run(self, answer: Awaitable[T]) -> T:
        # By the runner each would bring its handler of SIGINT, a fifth of what a test costs.
        return self.runner.get_loop().run_until_complete(answer)

    def shown(self, record: Record | None) -> Record | None:
        """An ended one keeps its name or not: nobody may rely on it."""
        if record is None or not self.model.has_ended(record):
            return record
        return replace(record, unique=None)

    @rule(place=places, parent=parents, unique=names, doc=docs, ttl_s=ttls)
    def insert(
        self, place: Place, parent: str, unique: str | None, doc: bytes, ttl_s: int | None
    ) -> None:
        record = Record(*place, doc, parent=parent, unique=unique)
        answer = self.run(self.house.records.insert(record, ttl_s))
        assert answer == self.model.insert(record, ttl_s)

    @rule(
        place=places,
        unique=names,
        doc=docs,
        ttl_s=ttls,
        ahead=st.sampled_from([1, 1, 1, 1, 0, 2]),
    )
    def update(
        self, place: Place, unique: str | None, doc: bytes, ttl_s: int | None, ahead: int
    ) -> None:
        known = self.model.get(place, ended=True)
        version = ahead + (known.version if known else 1)
        record = Record(*place, doc, version, unique=unique)
        try:
            answer = self.run(self.house.records.update(record, ttl_s))
        except Taken:
            assert self.model.taken(record)
            return
        assert not (answer and self.model.taken(record))
        if not self.model.taken(record):
            assert answer == self.model.update(record, ttl_s)

    @rule(place=places, doc=st.none() | docs)
    def delete(self, place: Place, doc: bytes | None) -> None:
        removed = self.run(self.house.records.delete(*place, doc=doc))
        assert self.shown(removed) == self.model.delete(place, doc)

    @rule(after=places, limit=st.integers(1, 8))
    def dump(self, after: Place, limit: int) -> None:
        found = self.run(self.house.records.dump(after, limit))
        assert [self.shown(one) for one in found] == self.model.dump(after, limit)

    @rule(
        place=places,
        unique=names,
        doc=docs,
        version=st.integers(1, 5),
        since_s=st.integers(-100, 0),
        ends_s=st.none() | st.sampled_from([-5, 0, 1, 10]),
    )
    def load(
        self,
        place: Place,
        unique: str | None,
        doc: bytes,
        version: int,
        since_s: int,
        ends_s: int | None,
    ) -> None:
        now = self.house.clock()
        ends_ms = None if ends_s is None else now + 1000 * ends_s
        record = Record(
            *place, doc, version, "", unique, created_ms=now + 1000 * since_s, ends_ms=ends_ms
        )
        self.run(self.house.records.load([record]))
        self.model.load([record])

    @rule()
    def load_what_is_there(self) -> None:
        """That changes nothing."""
        self.run(self.house.records.load(self.run(self.house.records.dump(("", "", ""), 100))))

    @rule(place=places, ended=st.booleans())
    def get(self, place: Place, ended: bool) -> None:
        found = self.run(self.house.records.get(*place, ended=ended))
        assert self.shown(found) == self.model.get(place, ended=ended)

    @rule(
        kind=kinds,
        project=projects,
        parent=st.none() | st.sampled_from(PARENTS),
        after=st.sampled_from(["", *KEYS]),
        limit=st.integers(1, 8),
        ended=st.booleans(),
        odd=st.booleans(),
    )
    def page(
        self,
        kind: str,
        project: str,
        parent: str | None,
        after: str,
        limit: int,
        ended: bool,
        odd: bool,
    ) -> None:
        def where(record: Record) -> bool:
            return record.key in "ace"

        found = self.run(
            self.house.records.page(
                kind, project, after, limit, where if odd else None, parent=parent, ended=ended
            )
        )
        expected = [
            one
            for one in self.model.all(kind, project, parent, ended=ended)
            if one.key > after and (not odd or where(one))
        ]
        assert list(map(self.shown, found)) == expected[:limit]

    @rule(kind=kinds, ends_s=st.integers(0, 30), key=st.sampled_from(["", *KEYS]))
    def ended(self, kind: str, ends_s: int, key: str) -> None:
        after = (START_MS + ends_s * 1000, key)
        found = self.run(self.house.records.ended(kind, after, 99))
        assert [(one.ends_ms, one.key) for one in found] == [
            (one.ends_ms, one.key) for one in self.model.ended(kind, after)
        ]
        rows = {(one.kind, one.project, one.key): self.shown(one) for one in found}
        assert len(rows) == len(found)
        assert rows == {
            (one.kind, one.project, one.key): one for one in self.model.ended(kind, after)
        }

    @rule(kind=kinds, limit=st.integers(1, 3))
    def tidy_up(self, kind: str, limit: int) -> None:
        for one in self.run(self.house.records.ended(kind, (0, ""), limit)):
            place = (one.kind, one.project, one.key)
            assert self.run(self.house.records.delete(*place))
            assert self.model.delete(place)

    @rule(seconds=st.sampled_from([1, 1, 2, 5]))
    def turn(self, seconds: int) -> None:
        self.house.clock.turn(seconds)

    @precondition(lambda self: len(self.model.rows) % 4 == 3)
    @rule()
    def reopen(self) -> None:
        self.run(self.house.reopen())

    @invariant()
    def names_and_numbers_are_those_of_the_model(self) -> None:
        for kind in KINDS:
            for project in PROJECTS:
                count = self.run(self.house.records.count(kind, project))
                assert count == len(self.model.all(kind, project))
        for name in NAMES:
            found = self.run(self.house.records.find("sub", "p", name))
            assert found == self.model.find("sub", "p", name)


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


def test_random_operations_on_records_are_answered_as_by_the_model(backend: str) -> None:
    play(backend, examples=20, steps=30)


@pytest.mark.embedded
def test_answers_do_not_depend_on_the_size_of_sqlites_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nusku.storage.sqlite.records.CHUNK", 2)
    play("sqlite", examples=10, steps=30)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_more_random_operations_on_records_are_answered_as_by_the_model(
    backend: str,
) -> None:
    play(backend, examples=80 if backend == "sqlite" else 25, steps=60)
