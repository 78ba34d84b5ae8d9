"""Nobody reaches into another project, queue or generation (contract, 4.4; semantics, 1, 6; SEC-03)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.live import TOPICS, Api, expect, next_link


@dataclass
class Victim:
    """A queue with a free, a claimed and a delayed message."""

    api: Api
    free: str
    held: str
    delayed: str
    claim: str
    link: str

    @classmethod
    def of(cls, api: Api, queue: str = "q") -> Victim:
        expect(api.create(queue, {"colour": "red"}), 201)
        [held, free] = api.post_bodies(queue, "held", "free")
        link = next_link(expect(api.list_messages(queue, "?echo=true&limit=1"), 200))
        assert link is not None
        claim = api.claimed(queue, "?limit=1", ttl=3000, grace=60)
        [delayed] = api.post_bodies(queue, "delayed", delay=900)
        return cls(api, free, held, delayed, claim.claim_id, link)

    def state(self) -> Any:
        """All that can be seen of it, but for ages."""
        everything = "?echo=true&include_claimed=true&include_delayed=true"
        messages = expect(self.api.list_messages("q", everything), 200)["messages"]
        claim = expect(self.api.show_claim("q", self.claim), 200)
        stats = self.api.stats("q")
        return (
            expect(self.api.show("q"), 200),
            [(m["id"], m["href"], m["ttl"], m["body"]) for m in messages],
            (claim["ttl"], [message["id"] for message in claim["messages"]]),
            (stats["claimed"], stats["free"], stats["total"]),
        )


Attack = Callable[[Api, Victim], httpx.Response]

# What one does with ids that are not one's own, and the answer if these ids did not exist at all.
ATTACKS: dict[str, tuple[int, Attack]] = {
    "get": (404, lambda a, v: a.message("q", v.free)),
    "get claimed": (404, lambda a, v: a.message("q", v.held)),
    "get several": (404, lambda a, v: a.messages("q", [v.free, v.held, v.delayed])),
    "list after": (200, lambda a, v: a.list_messages("q", f"?echo=true&marker={v.held}")),
    "delete": (204, lambda a, v: a.delete_message("q", v.free)),
    "delete claimed": (204, lambda a, v: a.delete_message("q", v.held)),
    "delete with claim": (204, lambda a, v: a.delete_message("q", v.held, v.claim)),
    "delete several": (204, lambda a, v: a.delete_messages("q", [v.free, v.held, v.delayed])),
    "show claim": (404, lambda a, v: a.show_claim("q", v.claim)),
    "renew": (404, lambda a, v: a.renew("q", v.claim, ttl=60, grace=60)),
    "release": (204, lambda a, v: a.release("q", v.claim)),
    "pop": (200, lambda a, v: a.pop("q", 20)),
    "claim": (204, lambda a, v: a.claim("q", "?limit=20")),
    "purge": (204, lambda a, v: a.purge("q")),
    "drop": (204, lambda a, v: a.drop("q")),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_ids_of_another_project_are_unknown_and_their_owner_is_not_touched(
    attack: str, api: Api
) -> None:
    victim = Victim.of(api)
    before = victim.state()
    status, strike = ATTACKS[attack]
    stranger = api.stranger()
    for queue_exists in (False, True):
        if queue_exists:
            expect(stranger.create("q"), 201)
        document = expect(strike(stranger, victim), status)
        if status == 200:
            assert document["messages"] == []
        assert victim.state() == before


@pytest.mark.parametrize("attack", [name for name in ATTACKS if name not in {"purge", "drop"}])
def test_ids_of_another_queue_are_unknown_and_that_queue_is_not_touched(
    attack: str, api: Api
) -> None:
    victim = Victim.of(api)
    before = victim.state()
    status, strike = ATTACKS[attack]

    @dataclass(frozen=True)
    class ElsewhereApi(Api):
        """Goes to queue p whenever it is asked for q."""

        def path(self, queue: str, *rest: str) -> str:
            return super().path("p", *rest)

    elsewhere = ElsewhereApi(api.server, api.project, api.client_id)
    expect(elsewhere.create("p"), 201)
    document = expect(strike(elsewhere, victim), status)
    if status == 200:
        assert document["messages"] == []
    assert victim.state() == before


@pytest.mark.parametrize(
    "attack", [name for name in ATTACKS if "claim" not in name and name not in {"renew", "release"}]
)
def test_ids_of_a_queue_are_unknown_to_the_topic_of_the_same_name(attack: str, api: Api) -> None:
    victim = Victim.of(api)
    before = victim.state()
    status, strike = ATTACKS[attack]
    document = expect(strike(api.but(kind=TOPICS), victim), status)
    if status == 200:
        assert document["messages"] == []
    assert victim.state() == before


@pytest.mark.parametrize(
    "attack", [name for name in ATTACKS if name not in {"pop", "claim", "purge", "drop"}]
)
def test_ids_of_a_deleted_queue_are_unknown_to_its_successor(attack: str, api: Api) -> None:
    old = Victim.of(api)
    expect(api.drop("q"), 204)
    new = Victim.of(api)
    assert {old.free, old.held, old.delayed, old.claim}.isdisjoint(
        {new.free, new.held, new.delayed, new.claim}
    )
    before = new.state()
    status, strike = ATTACKS[attack]
    document = expect(strike(api, old), status)
    if status == 200:
        assert document["messages"] == []
    assert new.state() == before
    assert expect(api.get(old.link), 200)["messages"] == []


def test_a_claim_id_of_a_deleted_queue_does_not_delete_from_its_successor(api: Api) -> None:
    old = Victim.of(api)
    expect(api.drop("q"), 204)
    new = Victim.of(api)
    expect(api.delete_message("q", new.held, old.claim), 400, "Unable to delete")
    expect(api.delete_message("q", new.free, old.claim), 400, "Unable to delete")
    expect(api.message("q", new.held), 200)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", "b.c"), ("a.b", "c")),
        (("a", "b-c"), ("a-b", "c")),
        (("a/b", "c"), ("a", "b-c")),
        (("1", "1q"), ("11", "q")),
        (("p", "q"), ("P", "q")),
        (("p", "q"), ("p%00", "q")),
        (("{p}", "q"), ("p", "q")),
    ],
    ids=str,
)
def test_pairs_of_project_and_queue_never_collide(
    one: tuple[str, str], other: tuple[str, str], api: Api
) -> None:
    suffix = api.project
    first = api.but(project=f"{suffix}{one[0]}")
    second = api.but(project=f"{suffix}{other[0]}")
    first.post_bodies(one[1], 1)
    second.post_bodies(other[1], 2)
    assert first.listed(one[1]) == [1]
    assert second.listed(other[1]) == [2]
    assert first.names() == [one[1]]
    assert second.names() == [other[1]]


def test_clients_of_one_project_share_its_queues(api: Api) -> None:
    victim = Victim.of(api)
    other = api.somebody_else()
    expect(other.message("q", victim.free), 200)
    expect(other.show_claim("q", victim.claim), 200)
    assert other.names() == ["q"]
