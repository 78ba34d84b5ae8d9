"""Encryption at rest (SEC-32): what is in the store, what becomes of what was altered there, and keys
that come and go.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeVar

import pytest
from msgspec.structs import replace

from nusku import encryption, keys
from nusku.broker.notices import make, notice
from nusku.config import Settings
from nusku.errors import StoreRefused
from nusku.keyring import is_encrypted
from nusku.metrics import Metrics
from nusku.model import QueueKey, Stored
from nusku.storage import Store, StoreOptions, open_store
from tests import canaries
from tests.live import PATCH_TYPE, LiveServer, eventually, expect, settings_environment
from tests.notify.live import NEVER, OPEN, count, subscribe
from tests.notify.receivers import Farm
from tests.pooling import Admin
from tests.servers.stores import KINDS

T = TypeVar("T")

ENCRYPT = "_enable_encrypt_messages"
CANARY = canaries.canary("sealed")
AWAY = "Service temporarily unavailable"
DAMAGE = re.compile(r"Message ([0-9a-f]{29}) cannot be decrypted\..*")


@dataclass
class House:
    """A server of one kind of store that ends and starts again, always on the same."""

    folder: Path
    kind: str
    running: LiveServer

    def start(self, **settings: Any) -> LiveServer:
        self.running.stop()
        self.running = live(self.folder, self.kind, **settings)
        return self.running

    def look(self, do: Callable[[Store], Awaitable[T]]) -> T:
        """Do something with the store while no server uses it."""
        self.running.stop()

        async def run() -> T:
            store = await open_store(self.running.store, None, StoreOptions(), Metrics())
            try:
                return await do(store)
            finally:
                await store.close()

        return asyncio.run(run())


def live(folder: Path, kind: str, **settings: Any) -> LiveServer:
    of_kind = type("LiveServer", (LiveServer,), {"kind": kind})
    server: LiveServer = of_kind(folder, **OPEN, **settings)
    return server.start()


@pytest.fixture
def house(backend: str, tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path, backend, live(tmp_path, backend))
    yield house
    house.running.stop()


every_store = pytest.mark.parametrize("backend", KINDS)
embedded_and_shared = pytest.mark.parametrize(
    "backend", [kind for kind in KINDS if kind in {"sqlite", "postgresql"}]
)
embedded = pytest.mark.parametrize("backend", ["sqlite"])


async def everything(store: Store) -> list[tuple[QueueKey, Stored]]:
    found = []
    for holding in await store.messages.queues(None, 1000):
        found += [(holding.ref.key, m) for m in await store.messages.dump(holding.ref, 0, 1000)]
    return found


# -- what is in the store


@every_store
def test_nothing_is_there_in_clear(house: House) -> None:
    """Neither messages nor what is made of them: dead letters, deliveries that wait, those that were
    given up and copied elsewhere, and what a queue in a pool holds.
    """
    api = house.running.api()
    options = {"_max_claim_count": 1, "_dead_letter_queue": "dead", "_retry_policy": NEVER}
    expect(api.create("q", {ENCRYPT: True, **options}), 201)
    with Farm() as farm:
        waits = subscribe(api, "q", farm.url("/status/503"))
        gone = subscribe(api, "q", farm.url("/status/404"), _dead_letter_queue="lost")
        api.post_bodies("q", {"event": CANARY, "n": 1})
        eventually(lambda: waits.status()["attempts"] and gone.status()["failed"] == 1)
        eventually(lambda: api.listed("lost"))
    expect(api.release("q", api.claimed("q").claim_id), 204)
    expect(api.claim("q"), 204)
    api.post_bodies("q", CANARY, delay=300)
    assert gone.failed()[0]["body"]["body"] == {"event": CANARY, "n": 1}

    async def look(store: Store) -> list[tuple[QueueKey, Stored]]:
        records = await store.records.dump(("", "", ""), 1000)
        assert not any(CANARY.encode() in record.doc for record in records)
        return await everything(store)

    found = house.look(look)
    where = {(key.kind, key.name) for key, _ in found}
    assert {("queue", "q"), ("queue", "dead"), ("queue", "lost")} < where
    assert {"delivery", "failed"} < {kind for kind, _ in where}
    for _, message in found:
        assert is_encrypted(message.body or b"")
        assert CANARY.encode() not in (message.attributes or b"") + (message.body or b"")
    if house.kind == "sqlite":
        for file in house.folder.iterdir():
            assert CANARY.encode() not in file.read_bytes(), file
    back = house.start().api(api.project)
    assert back.listed("dead") == back.listed("lost") == [{"event": CANARY, "n": 1}]
    assert back.listed("q", "?echo=true&include_delayed=true") == [CANARY]
    assert gone.through(house.running).failed()[0]["body"]["body"]["n"] == 1


def test_deliveries_are_in_clear_again_when_they_are_sent(
    shared_server: Callable[..., LiveServer],
) -> None:
    api = shared_server(**OPEN).api()
    expect(api.create("q", {ENCRYPT: True, "_retry_policy": NEVER}), 201)
    with Farm() as farm:
        subscribe(api, "q", farm.url("/fail/1"))
        api.post_bodies("q", {"event": CANARY}, "")
        told = [request.json() for request in farm.wait_for(3)]
    assert [each["body"] for each in told] == [{"event": CANARY}, "", {"event": CANARY}]


def test_what_was_given_up_is_sent_when_it_is_replayed(
    shared_server: Callable[..., LiveServer],
) -> None:
    api = shared_server(**OPEN).api()
    expect(api.create("q", {ENCRYPT: True}), 201)
    with Farm() as farm:
        one = subscribe(api, "q", farm.url("/status/404"))
        api.post_bodies("q", CANARY)
        eventually(lambda: one.status()["failed"] == 1)
        one.patch(subscriber=farm.url("/ok"))
        assert one.replay() == 1
        told = farm.wait_for(2)[-1]
    assert told.json()["body"] == CANARY


@embedded
def test_a_queue_keeps_its_messages_when_it_goes_to_another_pool(house: House) -> None:
    with Admin(house.running) as admin:
        admin.add("one", flavor="gold")
        admin.add("two", flavor="silver")
        expect(admin.api.put("/v2/flavors/gold", json={"pool_list": ["one"]}), 201)
        expect(admin.api.put("/v2/flavors/silver", json={"pool_list": ["two"]}), 201)
        api = admin.user
        options = {"_max_claim_count": 1, "_dead_letter_queue": "dead"}
        expect(api.create("q", {ENCRYPT: True, "_flavor": "gold", **options}), 201)
        posted = api.post_bodies("q", CANARY, "", None)
        operation = {"op": "replace", "path": "/metadata/_flavor", "value": "silver"}
        expect(api.patch("q", [operation], PATCH_TYPE), 200)
        assert [m["id"] for m in expect(api.list_messages("q", "?echo=true"), 200)["messages"]] == (
            posted
        )
        claim = api.claimed("q")
        assert claim.bodies == [CANARY, "", None]
        expect(api.release("q", claim.claim_id), 204)
        expect(api.claim("q"), 204)  # the dead letters go from the pool to the own store
        assert api.listed("dead") == [CANARY, "", None]
        for queue in ("q", "dead"):
            expect(api.drop(queue), 204)


# -- what was altered


def alter(
    house: House, change: Callable[[dict[QueueKey, list[Stored]]], dict[QueueKey, Stored]]
) -> None:
    """Put other messages in the place of some."""

    async def put(store: Store) -> None:
        found: dict[QueueKey, list[Stored]] = {}
        refs = {}
        for holding in await store.messages.queues(None, 1000):
            found[holding.ref.key] = await store.messages.dump(holding.ref, 0, 1000)
            refs[holding.ref.key] = holding
        for key, one in change(found).items():
            ref, end, at = refs[key].ref, refs[key].next_position, one.position
            await store.messages.load(ref, end, at - 1, at, [])  # what is equal would stay
            await store.messages.load(ref, end, at - 1, at, [one])

    house.look(put)


def flipped(one: Stored, at: int) -> Stored:
    body = bytearray(one.body or b"")
    body[at] ^= 0x7A
    return replace(one, body=bytes(body))


@every_store
def test_what_was_altered_is_never_shown(house: House) -> None:
    api = house.running.api()
    for queue in ("q", "other", "third"):
        expect(api.create(queue, {ENCRYPT: True}), 201)
    first, second, _ = api.post_bodies("q", 1, 2, 3)
    [elsewhere] = api.post_bodies("other", "other")
    api.post_bodies("third", "other")
    mine = QueueKey("queue", api.project, "q")

    def change(found: dict[QueueKey, list[Stored]]) -> dict[QueueKey, Stored]:
        changed = {mine: flipped(found[mine][1], -3)}
        for key in (mine._replace(name="other"), mine._replace(name="third")):
            changed[key] = replace(found[key][0], body=found[mine][0].body)
        return changed

    alter(house, change)
    server = house.start()
    api = server.api(api.project, api.client_id)
    named = []
    for answer in (
        api.message("q", second),
        api.messages("q", [first, second]),
        api.list_messages("q", "?echo=true"),
        api.message("other", elsewhere),
        api.list_messages("other", "?echo=true"),
        api.claim("other"),
        api.pop("third"),
    ):
        told = DAMAGE.fullmatch(expect(answer, 503, AWAY)["description"])
        assert told is not None
        named.append(told[1])
    assert named[:5] == [second] * 3 + [elsewhere] * 2
    assert expect(api.message("q", first), 200)["body"] == 1
    # It does not stand before the others, and is not lost.
    claim = api.claimed("q")
    assert claim.bodies == [1, 3]
    assert [m["body"] for m in expect(api.show_claim("q", claim.claim_id), 200)["messages"]] == [
        1,
        3,
    ]
    assert (api.stats("q")["claimed"], api.stats("q")["total"]) == (2, 3)
    expect(api.claim("q"), 204)
    expect(api.release("q", claim.claim_id), 204)
    assert api.popped("q") == [1, 3]
    assert api.stats("q")["total"] == 1
    assert api.stats("other")["total"] == api.stats("third")["total"] == 1
    # Whoever knows which one it is can delete it.
    expect(api.delete_message("q", second), 204)
    assert api.stats("q")["total"] == 0
    log = server.log()
    assert "a message cannot be decrypted" in log
    assert "tampered" in log
    assert count(server, 'nusku_unreadable_messages_total{reason="tampered"}') >= 7


@embedded
def test_a_spent_message_that_cannot_be_read_stays_where_it_is(house: House) -> None:
    api = house.running.api()
    options = {"_max_claim_count": 1, "_dead_letter_queue": "dead"}
    expect(api.create("q", {ENCRYPT: True, **options}), 201)
    api.post_bodies("q", 1, 2)
    expect(api.release("q", api.claimed("q").claim_id), 204)
    mine = QueueKey("queue", api.project, "q")
    alter(house, lambda found: {mine: flipped(found[mine][0], -1)})
    api = house.start().api(api.project)
    expect(api.claim("q"), 204)
    assert api.listed("dead") == [2]
    api.post_bodies("q", 3)
    assert api.claimed("q").bodies == [3]
    assert api.stats("q")["total"] == 2
    assert "a message cannot be decrypted" in house.running.log()


@every_store
def test_nothing_is_popped_before_it_was_decrypted(house: House) -> None:
    """What cannot be keeps its place and its id, and comes to the one who has the key."""
    one, other = "one-key-of-two-" * 3, "another-key-of-two-" * 3
    api = house.start(encryption_keys=one).api()
    expect(api.create("q", {ENCRYPT: True}), 201)
    kept = api.post_bodies("q", "kept")
    server = house.start(encryption_keys=other)
    api = server.api(api.project, api.client_id)
    api.post_bodies("q", "new")
    assert api.popped("q") == ["new"]
    assert api.popped("q") == []
    assert api.stats("q")["total"] == 1
    assert count(server, 'nusku_messages_total{event="popped"}') == 1
    api = house.start(encryption_keys=(other, one)).api(api.project, api.client_id)
    assert expect(api.message("q", kept[0]), 200)["body"] == "kept"


@embedded
def test_what_is_left_in_a_queue_that_encrypts_no_more_is_written_back_once(house: House) -> None:
    one, other = "one-key-of-two-" * 3, "another-key-of-two-" * 3
    api = house.start(encryption_keys=one).api()
    expect(api.create("q", {ENCRYPT: True}), 201)
    api.post_bodies("q", "kept")
    api = house.start(encryption_keys=other).api(api.project, api.client_id)
    operation = {"op": "replace", "path": f"/metadata/{ENCRYPT}", "value": False}
    expect(api.patch("q", [operation], PATCH_TYPE), 200)
    expect(api.pop("q"), 503, AWAY)

    def kept() -> str:
        told = api.list_messages("q", "?echo=true&include_delayed=true")
        found = DAMAGE.fullmatch(expect(told, 503, AWAY)["description"])
        assert found is not None
        return found[1]

    id_ = kept()
    api.post_bodies("q", "new")
    assert api.popped("q") == ["new"]
    eventually(lambda: api.pop("q").status_code == 503, within_s=20, every_s=0.5)
    assert kept() == id_


@embedded_and_shared
def test_a_claim_does_not_count_where_the_message_cannot_be_read(house: House) -> None:
    """So none goes to the dead letters that nobody was given."""
    one, other = "one-key-of-two-" * 3, "another-key-of-two-" * 3
    api = house.start(encryption_keys=one).api()
    options = {"_max_claim_count": 1, "_dead_letter_queue": "dead"}
    expect(api.create("q", {ENCRYPT: True, **options}), 201)
    api.post_bodies("q", "kept")
    api = house.start(encryption_keys=other).api(api.project, api.client_id)
    expect(api.claim("q"), 503, AWAY)
    expect(api.claim("q"), 204)
    api.post_bodies("q", "new")
    assert api.claimed("q").bodies == ["new"]
    api = house.start(encryption_keys=(other, one)).api(api.project, api.client_id)
    eventually(lambda: api.claim("q").status_code == 201, within_s=20, every_s=0.5)
    assert api.listed("q", "?echo=true&include_claimed=true")[0] == "kept"
    expect(api.claim("dead"), 204)


@embedded
def test_spent_messages_that_cannot_be_read_do_not_hold_up_those_behind(house: House) -> None:
    one, other = "one-key-of-two-" * 3, "another-key-of-two-" * 3
    api = house.start(encryption_keys=one).api()
    options = {"_max_claim_count": 1, "_dead_letter_queue": "dead"}
    expect(api.create("q", {ENCRYPT: True, **options}), 201)
    for _ in range(6):
        api.post_bodies("q", *["bad"] * 20)
    for claim in [api.claimed("q", "?limit=20").claim_id for _ in range(6)]:
        expect(api.release("q", claim), 204)
    api = house.start(encryption_keys=other).api(api.project, api.client_id)
    api.post_bodies("q", "good")
    expect(api.release("q", api.claimed("q").claim_id), 204)
    expect(api.claim("q"), 204)
    assert api.listed("dead") == ["good"]
    assert api.stats("q")["total"] == 120


def test_a_key_is_not_retired_while_a_queue_is_on_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes to a store that was counted from one that is still to be would be missed."""
    settings = Settings(store=f"sqlite:///{tmp_path}/my.db")
    old, new = (keys.rotate(tmp_path / "my.db.key") for _ in range(2))
    os.utime(tmp_path / "my.db.key", (0, 0))
    place = QueueKey("queue", "p", "q")
    ways: list[tuple[list[tuple[str | None, bool, int]], str]] = [
        ([(None, False, 0), ("pool", False, 0)], "between pools"),
        ([(None, True, 0), (None, False, 0)], "between pools"),
        ([(None, False, 0), (None, True, 0)], "between pools"),
        ([(None, False, 0), (None, False, 1)], "1 messages need"),
    ]
    for looks, refusal in ways:
        left = iter(looks)

        async def look(_: Settings, left: Iterator[tuple[str | None, bool, int]] = left) -> Any:
            pool, moving, needed = next(left)
            use = encryption.Use(old, None, place, needed)
            return encryption._Seen([use], {place: pool}, int(moving))

        with monkeypatch.context() as patched:
            patched.setattr(encryption, "_look", look)
            with pytest.raises(StoreRefused, match=refusal):
                asyncio.run(encryption.retire(settings, old))
        assert keys.known(settings) == (new, old)


@embedded
def test_a_delivery_that_cannot_be_read_is_tried_like_one_that_fails(house: House) -> None:
    api = house.running.api()
    expect(api.create("q", {ENCRYPT: True, "_retry_policy": NEVER}), 201)
    with Farm() as farm:
        one = subscribe(api, "q", farm.url("/ok"))
        gone = subscribe(api, "q", farm.url("/status/404"))
        one.do("pause")
        api.post_bodies("q", "bad", "good")
        eventually(lambda: one.status()["pending"] == gone.status()["failed"] == 2)
        waits = QueueKey("delivery", api.project, one.id)
        failed = QueueKey("failed", api.project, gone.id)
        farm.forget()
        alter(house, lambda all_: {key: flipped(all_[key][0], 40) for key in (waits, failed)})
        server = house.start()
        one, gone = one.through(server), gone.through(server)
        one.do("resume")
        assert [request.json()["body"] for request in farm.wait_for(1)] == ["good"]
        eventually(lambda: count(server, 'nusku_deliveries_total{event="retried"}'))
        eventually(lambda: one.status()["pending"] == 1)
        expect(gone.api.get(gone.path("failed")), 503, AWAY)
    assert count(server, 'nusku_unreadable_messages_total{reason="tampered"}') >= 2


@embedded
def test_a_notice_that_cannot_be_read_holds_no_other_up(house: House) -> None:
    """A node died between a post and its fan-out; what is left is found by the next start."""
    api = house.running.api()
    expect(api.create("q", {ENCRYPT: True}), 201)
    key = QueueKey("queue", api.project, "q")
    with Farm() as farm:
        one = subscribe(api, "q", farm.url("/ok"))
        ring = keys.ring(Settings(store=house.running.store))

        async def leave(store: Store) -> None:
            ref, [good] = notice(key, None, [(300, None, b'"good"')], ring.encrypt)
            ref, [bad] = notice(key, None, [(300, None, b'"bad"')], ring.encrypt)
            await make(store.messages, ref)
            await store.messages.add([(ref, [replace(bad, body=bad.body[:-1] + b"!"), good])])

        house.look(leave)
        server = house.start()
        assert [request.json()["body"] for request in farm.wait_for(1)] == ["good"]
        eventually(lambda: one.through(server).status()["pending"] == 0)
    assert "tampered" in server.log()
    found = house.look(everything)
    assert [k.kind for k, _ in found] == ["notice"]  # the bad one is kept


# -- keys that come and go


def nusku(server: LiveServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nusku", *arguments, "--store", server.store],
        capture_output=True,
        text=True,
        cwd=server.folder,
        env=settings_environment(server.settings),
        timeout=60,
        check=False,
    )


def shown(server: LiveServer, *arguments: str) -> dict[str, tuple[str, int]]:
    """What `nusku encryption show` says of each key: its state, and how many messages need it."""
    told = nusku(server, "encryption", "show", *arguments)
    rows = [line.split() for line in told.stdout.splitlines()[1:]]
    return {row[0]: (row[1], int(row[2])) for row in rows if len(row) == 3}


@embedded
def test_keys_are_rotated_while_clients_work(house: House) -> None:
    server, api = house.running, house.running.api()
    expect(api.create("q", {ENCRYPT: True}), 201)
    kept = api.post_bodies("q", "kept")
    [old] = shown(server)
    stop, failures, done = Event(), [], 0

    def work() -> None:
        nonlocal done
        mine = server.api(api.project)
        expect(mine.create("busy", {ENCRYPT: True}), 201)
        while not stop.is_set():
            mine.post_bodies("busy", done)
            if mine.popped("busy") != [done]:
                failures.append(done)
            done += 1

    worker = Thread(target=work)
    worker.start()
    try:
        audit_log = server.folder / "audit.log"
        server.settings = {**server.settings, "audit_log": str(audit_log)}
        rotated = nusku(server, "encryption", "rotate")
        assert rotated.returncode == 0, rotated.stderr
        eventually(lambda: "the keys that encrypt were changed" in server.log())
        before = done
        eventually(lambda: done > before + 5)
    finally:
        stop.set()
        worker.join()
    assert not failures
    api.post_bodies("q", "new", "newer")
    assert api.listed("q") == ["kept", "new", "newer"]
    states = shown(server)
    [new] = set(states) - {old}
    assert new in rotated.stdout
    assert states == {new: ("encrypts", 2), old: ("decrypts", 1)}
    told = nusku(server, "encryption", "show", "--queues").stdout.splitlines()[-1].split()
    assert told == [old, "-", "queue", api.project, "q", "1"]

    key_file = server.folder / "nusku.db.key"
    refused = nusku(server, "encryption", "retire", old)
    assert "the keys were changed just now" in refused.stderr
    os.utime(key_file, (0, 0))
    refused = nusku(server, "encryption", "retire", old)
    assert (refused.returncode, refused.stderr) == (2, f"nusku: 1 messages need the key {old}\n")
    expect(api.delete_message("q", kept[0]), 204)
    os.utime(key_file, (0, 0))
    assert "removed the key" in nusku(server, "encryption", "retire", old).stdout
    assert shown(server) == {new: ("encrypts", 2)}
    assert api.listed("q") == ["new", "newer"]
    for key in (new, old):
        assert nusku(server, "encryption", "retire", key).returncode == 2
    entries = [json.loads(line) for line in audit_log.read_text().splitlines()]
    assert [(entry["operation"], entry["target"]) for entry in entries] == [
        ("encryption:rotate", new),
        ("encryption:retire", old),
    ]


@embedded_and_shared
def test_a_key_that_is_missing_is_told_of_and_can_come_back(house: House) -> None:
    one, other = "one key of two " * 3, "another key of two " * 3
    one, other = one.replace(" ", "-"), other.replace(" ", "-")
    api = house.start(encryption_keys=one).api()
    expect(api.create("q", {ENCRYPT: True}), 201)
    posted = api.post_bodies("q", "a", "b")
    server = house.start(encryption_keys=other)
    api = server.api(api.project, api.client_id)
    expect(api.message("q", posted[0]), 503, AWAY)
    expect(api.pop("q", 20), 503, AWAY)
    api.post_bodies("q", "c")
    assert "unknown_key" in server.log()
    assert count(server, 'nusku_unreadable_messages_total{reason="unknown_key"}') == 3
    told = nusku(server, "encryption", "show")
    states = {row[0]: (row[1], int(row[2])) for row in map(str.split, told.stdout.splitlines()[1:])}
    assert sorted(states.values()) == [("encrypts", 1), ("missing", 2)]
    missing = max(states, key=lambda key: states[key])
    assert (told.returncode, told.stderr) == (
        2,
        f"nusku: 2 messages need the key {missing}, which is missing\n",
    )
    server = house.start(encryption_keys=(other, one))
    api = server.api(api.project)
    assert sorted(api.listed("q", "?echo=true&include_delayed=true")) == ["a", "b", "c"]
    assert sorted(shown(server).values()) == [("decrypts", 2), ("encrypts", 1)]
    told = nusku(server, "encryption", "retire", missing)
    assert "messages need the key" in told.stderr
    told = nusku(server, "encryption", "rotate")
    assert "put another key in front" in told.stderr


@pytest.mark.parametrize("backend", [kind for kind in KINDS if kind == "redis"])
def test_without_keys_it_is_refused_and_says_what_to_set(house: House) -> None:
    api = house.running.api()
    expect(api.create("before", {ENCRYPT: True}), 201)
    api.post_bodies("before", 1)
    server = house.start(encryption_keys="")
    api = server.api(api.project)
    refusal = expect(api.create("q", {ENCRYPT: True}), 400)
    assert "set encryption_keys or key_file" in refusal["description"]
    expect(api.create("q"), 201)
    operation = {"op": "add", "path": f"/metadata/{ENCRYPT}", "value": True}
    refusal = expect(api.patch("q", [operation], PATCH_TYPE), 400)
    assert "set encryption_keys or key_file" in refusal["description"]
    # One that was made with keys is not opened to the world, nor is what is in it lost.
    refusal = expect(api.post("before", {"body": 2}), 400)
    assert "set encryption_keys or key_file" in refusal["description"]
    for answer in (
        api.pop("before"),
        api.list_messages("before", "?echo=true"),
    ):
        expect(answer, 503, AWAY)
    operation = {"op": "add", "path": "/metadata/a", "value": 1}
    expect(api.patch("before", [operation], PATCH_TYPE), 200)
    told = nusku(server, "encryption", "rotate")
    assert "there is no file beside a shared store" in told.stderr
    file = server.folder / "keys"
    server.settings = {**server.settings, "key_file": str(file)}
    assert nusku(server, "encryption", "rotate").returncode == 0
    api = house.start(encryption_keys="", key_file=str(file), secret_key="").api(api.project)
    expect(api.create("r", {ENCRYPT: True}), 201)
    api.post_bodies("r", 3)
    assert api.popped("r") == [3]
