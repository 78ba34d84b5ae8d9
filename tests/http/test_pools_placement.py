"""Which queue goes to which pool, and what becomes of it when that changes (semantics, section 7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live import PATCH_TYPE, QUEUES, TOPICS, Api, LiveServer, eventually, expect, ids_of
from tests.pooling import Admin
from tests.subscribing import HOOK

OWN = "default"
IN_USE = "Unable to delete"
CONFLICT = "Resource conflict"
AWAY = "Service temporarily unavailable"


@pytest.fixture(scope="module")
def pool_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def admin(pool_server: LiveServer) -> Iterator[Admin]:
    with Admin(pool_server) as admin:
        yield admin


@pytest.fixture(scope="module")
def strict_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("strict"), enable_virtual_pool=False) as server:
        yield server


@pytest.fixture
def strict(strict_server: LiveServer) -> Iterator[Admin]:
    """An administrator of a server that puts no queue into its own store."""
    with Admin(strict_server) as admin:
        yield admin


@pytest.fixture
def api(admin: Admin) -> Api:
    return admin.user


def set_flavor(api: Api, queue: str, flavor: str | None) -> int:
    operation = (
        {"op": "remove", "path": "/metadata/_flavor"}
        if flavor is None
        else {"op": "add", "path": "/metadata/_flavor", "value": flavor}
    )
    return api.patch(queue, [operation], PATCH_TYPE).status_code


def ageless(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """On a slow machine they may be a second older."""
    return [{**message, "age": 0} for message in messages]


# -- where new queues go ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [QUEUES, TOPICS], ids=lambda kind: kind.noun)
def test_without_pools_queues_are_in_the_own_store(kind: object, admin: Admin, api: Api) -> None:
    expect(api.create("q"), 201)
    assert admin.where("q") == OWN


def test_queues_without_flavor_go_to_pools_without_flavor(admin: Admin, api: Api) -> None:
    admin.add("plain")
    admin.add("rich", weight=1000)
    admin.flavor("gold", "rich")
    for name in ("q1", "q2", "q3", "q4"):
        expect(api.create(name, {"color": "red"}), 201)
        assert admin.where(name) == "plain"
    expect(api.create("q5", {"_flavor": None}), 201)
    assert admin.where("q5") == "plain"


def test_queues_with_a_flavor_go_to_its_pools(admin: Admin, api: Api) -> None:
    admin.add("plain", weight=1000)
    admin.add("rich")
    admin.flavor("gold", "rich")
    expect(api.create("q", {"_flavor": "gold"}), 201)
    assert admin.where("q") == "rich"
    assert expect(api.show("q"), 200)["_flavor"] == "gold"


def test_topics_are_placed_in_the_same_way(admin: Admin, api: Api) -> None:
    admin.add("plain")
    admin.add("rich")
    admin.flavor("gold", "rich")
    topics = api.but(kind=TOPICS)
    expect(topics.create("t", {"_flavor": "gold"}), 201)
    assert admin.where("t", topics) == "rich"
    topics.post_bodies("lazy", 1)
    assert admin.volumes() == {"plain": 1}


def test_queues_that_come_by_being_used_are_placed_too(admin: Admin, api: Api) -> None:
    admin.add("plain")
    api.post_bodies("by-post", 1)
    assert admin.volumes() == {"plain": 1}
    path = api.path("by-subscription", "subscriptions")
    expect(api.request("POST", path, json={"subscriber": HOOK}), 201)
    expect(api.request("PATCH", path), 405)
    assert api.names() == ["by-post", "by-subscription"]
    (one,) = expect(api.get(path), 200)["subscriptions"]
    expect(api.delete(f"{path}/{one['id']}"), 204)
    assert admin.where("by-subscription") == "plain"


def test_weight_decides(admin: Admin, api: Api) -> None:
    admin.add("light", weight=1)
    admin.add("heavy", weight=9)
    for n in range(80):
        api.post_bodies(f"q{n}", 1)
    volumes = admin.volumes()
    assert sum(volumes.values()) == 80
    assert 55 <= volumes["heavy"] <= 79  # 72 are to be expected, give or take 2.7


def test_a_pool_of_weight_zero_is_never_chosen(admin: Admin, api: Api) -> None:
    admin.add("closed", weight=0)
    admin.add("open", weight=1)
    for n in range(10):
        api.post_bodies(f"q{n}", 1)
    assert admin.volumes() == {"open": 10}
    expect(admin.patch("open", weight=0), 200)
    api.post_bodies("last", 1)
    assert admin.volumes() == {"open": 10, OWN: 1}


def test_without_any_pool_queues_are_refused_if_so_set(strict: Admin) -> None:
    api = strict.user
    answer = api.create("q")
    expect(answer, 503, AWAY)
    assert "Location" not in answer.headers
    expect(api.post("q", {"body": 1}), 503, AWAY)
    path = api.path("q", "subscriptions")
    expect(api.request("POST", path, json={"subscriber": HOOK}), 503, AWAY)
    strict.add("closed", weight=0)
    expect(api.create("q"), 503, AWAY)
    strict.add("rich")
    strict.flavor("gold", "rich")
    expect(api.create("q"), 503, AWAY)
    strict.add("plain")
    expect(api.create("q"), 201)
    assert strict.where("q") == "plain"


def test_reading_what_is_nowhere(strict: Admin) -> None:
    """Just as if there were pools."""
    api = strict.user
    assert api.names() == []
    assert api.listed("q") == []
    assert api.stats("q") == {"claimed": 0, "free": 0, "total": 0}
    expect(api.message("q", "x"), 404)
    expect(api.delete_message("q", "x"), 204)
    expect(api.claim("q"), 204)
    expect(api.drop("q"), 204)
    expect(api.show("q"), 200)


def test_an_unknown_flavor_is_refused(admin: Admin, api: Api) -> None:
    admin.add("plain", flavor="named-by-the-pool-only")
    for flavor in ("gold", "named-by-the-pool-only", 5, ["gold"], True):
        answer = api.create("q", {"_flavor": flavor})
        expect(answer, 400, "Invalid API request")
        assert "Location" not in answer.headers
    assert api.names() == []


def test_a_flavor_without_a_pool_that_takes_queues(admin: Admin, api: Api) -> None:
    admin.add("plain")
    admin.add("rich", weight=0)
    admin.flavor("gold", "rich")
    answer = api.create("q", {"_flavor": "gold"})
    expect(answer, 503, AWAY)
    assert "Location" not in answer.headers
    assert api.names() == []
    expect(admin.patch("rich", weight=1), 200)
    expect(api.create("q", {"_flavor": "gold"}), 201)
    assert admin.where("q") == "rich"


# -- what changes nothing --------------------------------------------------------------------------


def test_putting_a_queue_again_never_places_it_anew(admin: Admin, api: Api) -> None:
    admin.add("plain", weight=1000)
    admin.add("rich")
    admin.flavor("gold", "rich")
    expect(api.create("q", {"_flavor": "gold"}), 201)
    api.post_bodies("q", 1, 2)
    for metadata in (None, {}, {"_flavor": None}, {"_flavor": "gold"}, {"_flavor": "unknown"}):
        expect(api.create("q", metadata), 204)
        assert api.listed("q") == [1, 2]
    assert admin.volumes() == {"rich": 2}
    assert expect(api.show("q"), 200)["_flavor"] == "gold"


def test_a_new_weight_is_for_new_queues(admin: Admin, api: Api) -> None:
    admin.add("a", weight=1)
    api.post_bodies("q1", 1)
    admin.add("b", weight=1)
    expect(admin.patch("a", weight=0), 200)
    api.post_bodies("q1", 2)
    api.post_bodies("q2", 1)
    assert admin.volumes() == {"a": 2, "b": 1}
    assert api.listed("q1") == [1, 2]


def test_a_new_flavor_is_for_new_queues(admin: Admin, api: Api) -> None:
    admin.add("a")
    api.post_bodies("q1", 1)
    admin.flavor("gold", "a")
    api.post_bodies("q1", 2)
    api.post_bodies("q2", 1)
    assert admin.volumes() == {"a": 2, OWN: 1}
    assert api.listed("q1") == [1, 2]


def test_a_deleted_flavor_leaves_queues_where_they_are(admin: Admin, api: Api) -> None:
    admin.add("a")
    admin.flavor("gold", "a")
    expect(api.create("q", {"_flavor": "gold"}), 201)
    api.post_bodies("q", 1)
    expect(admin.delete_flavor("gold"), 204)
    assert api.listed("q") == [1]
    assert expect(api.show("q"), 200)["_flavor"] == "gold"
    expect(api.create("q", {"_flavor": "gold"}), 204)
    api.post_bodies("q", 2)
    assert api.listed("q") == [1, 2]
    expect(api.drop("q"), 204)
    expect(api.create("q", {"_flavor": "gold"}), 400)


# -- another flavor --------------------------------------------------------------------------------


def test_another_flavor_takes_the_messages_along(admin: Admin, api: Api) -> None:
    admin.add("plain")
    admin.add("rich")
    admin.flavor("gold", "rich")
    expect(api.create("q"), 201)
    ids = api.post_bodies("q", *range(30))
    claim = api.claimed("q", "?limit=3")
    assert set_flavor(api, "q", "gold") == 200
    assert admin.volumes() == {"rich": 30}
    assert expect(api.show("q"), 200)["_flavor"] == "gold"
    page = expect(api.list_messages("q", "?echo=true&include_claimed=true&limit=20"), 200)
    assert [message["body"] for message in page["messages"]] == list(range(20))
    assert [message["id"] for message in page["messages"]] == ids[:20]
    assert ageless(expect(api.show_claim("q", claim.claim_id), 200)["messages"]) == ageless(
        claim.messages
    )
    assert set_flavor(api, "q", None) == 200
    assert admin.volumes() == {"plain": 30}


def test_the_same_flavor_changes_nothing(admin: Admin, api: Api) -> None:
    admin.add("r1", "r2", "r3")
    admin.flavor("gold", "r1", "r2", "r3")
    expect(api.create("q", {"_flavor": "gold"}), 201)
    place = admin.where("q")
    api.post_bodies("q", 1)
    for _ in range(5):
        assert set_flavor(api, "q", "gold") == 200
        assert admin.volumes() == {place: 1}


def test_an_unknown_flavor_cannot_be_set(admin: Admin, api: Api) -> None:
    admin.add("plain")
    api.post_bodies("q", 1)
    assert set_flavor(api, "q", "unknown") == 400
    assert "_flavor" not in expect(api.show("q"), 200)
    assert admin.volumes() == {"plain": 1}
    assert api.listed("q") == [1]


def test_a_flavor_that_takes_no_queues_cannot_be_set(admin: Admin, api: Api) -> None:
    admin.add("plain")
    admin.add("rich", weight=0)
    admin.flavor("gold", "rich")
    api.post_bodies("q", 1)
    assert set_flavor(api, "q", "gold") == 503
    assert admin.volumes() == {"plain": 1}
    assert api.listed("q") == [1]


# -- deleting a pool -------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["free", "claimed", "delayed"])
def test_a_pool_with_messages_stays(state: str, admin: Admin, api: Api) -> None:
    admin.add("a")
    api.post_bodies("q", 1, delay=300 if state == "delayed" else 0)
    if state == "claimed":
        api.claimed("q")
    error = expect(admin.delete("a"), 403, IN_USE)
    assert "queue q" in error["description"]
    assert admin.show("a")["weight"] == 1
    assert api.stats("q")["total"] == 1
    api.post_bodies("q2", 2)  # nor was it closed to others
    assert admin.volumes() == {"a": 2}


def test_empty_queues_do_not_hold_a_pool(admin: Admin, api: Api) -> None:
    """They keep their metadata, and are placed anew when they are used next."""
    admin.add("a")
    expect(api.create("never-used", {"color": "red"}), 201)
    (id_,) = api.post_bodies("emptied", 1)
    expect(api.delete_message("emptied", id_), 204)
    topics = api.but(kind=TOPICS)
    expect(topics.create("t"), 201)
    expect(admin.delete("a"), 204)
    assert api.names() == ["emptied", "never-used"]
    assert expect(api.show("never-used"), 200)["color"] == "red"
    assert api.listed("emptied") == []
    assert api.stats("never-used")["total"] == 0
    admin.add("b")
    for one, name in ((api, "never-used"), (topics, "t")):
        one.post_bodies(name, 1)
        assert one.listed(name) == [1]
    api.post_bodies("emptied", 2)
    assert api.listed("emptied") == [2]
    assert sum(admin.volumes().values()) == 3
    expect(api.message("emptied", id_), 404)


def test_a_pool_that_comes_back_is_empty(admin: Admin, api: Api) -> None:
    admin.add("a")
    expect(api.create("q"), 201)
    expect(admin.delete("a"), 204)
    admin.add("a")
    assert api.listed("q") == []
    api.post_bodies("q", 1)
    assert api.listed("q") == [1]


def test_a_queue_whose_pool_and_flavor_are_gone_can_be_used(admin: Admin, api: Api) -> None:
    admin.add("a")
    admin.flavor("gold", "a")
    expect(api.create("q", {"_flavor": "gold"}), 201)
    expect(admin.delete_flavor("gold"), 204)
    expect(admin.delete("a"), 204)
    assert api.listed("q") == []
    api.post_bodies("q", 1)
    assert api.listed("q") == [1]
    assert expect(api.show("q"), 200)["_flavor"] == "gold"


# -- another uri -----------------------------------------------------------------------------------


def test_a_pool_with_messages_keeps_its_store(admin: Admin, api: Api) -> None:
    admin.add("a")
    api.post_bodies("q", 1)
    for answer in (
        admin.patch("a", uri=admin.uri("other")),
        admin.put("a", uri=admin.uri("other")),
    ):
        error = expect(answer, 409, CONFLICT)
        assert "queue q" in error["description"]
    assert admin.show("a")["uri"] == admin.uri("a")
    assert api.listed("q") == [1]


def test_an_empty_pool_may_get_another_store(admin: Admin, api: Api) -> None:
    admin.add("a")
    (id_,) = api.post_bodies("q", 1)
    expect(api.delete_message("q", id_), 204)
    expect(admin.patch("a", uri=admin.uri("other")), 200)
    api.post_bodies("q", 2)  # which has been placed anew
    assert api.listed("q") == [2]
    api.post_bodies("new", 3)
    assert admin.where("new") == "a"


def test_what_a_lost_store_held_can_be_given_up(admin: Admin, api: Api) -> None:
    admin.add("a")
    api.post_bodies("q", 1)
    expect(admin.patch("a", "?abandon=true", uri=admin.uri("other")), 200)
    assert api.listed("q") == []
    api.post_bodies("q", 2)
    assert api.listed("q") == [2]


# -- stores that are away --------------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path: Path, private_server: Callable[..., LiveServer]) -> Callable[[], Admin]:
    """Call it for an administrator of a server of the test's own."""
    return lambda: Admin(private_server())


def test_pools_outlive_the_server(alone: Callable[[], Admin]) -> None:
    admin = alone()
    admin.add("a", options={"x": 1})
    admin.add("b")
    admin.flavor("gold", "b")
    expect(admin.user.create("q", {"_flavor": "gold"}), 201)
    ids = ids_of(admin.user.post("q", {"body": 1}, {"body": 2}))
    before = admin.pools("?detailed=true")
    user = admin.user
    admin.server.stop()
    again = alone()
    user = again.server.api(user.project)
    assert again.pools("?detailed=true") == before
    assert [m["id"] for m in expect(user.messages("q", ids), 200)["messages"]] == ids
    user.post_bodies("q", 3)
    assert user.listed("q") == [1, 2, 3]


@pytest.mark.embedded
def test_a_store_that_was_lost_is_not_taken_for_an_empty_one(alone: Callable[[], Admin]) -> None:
    """The disk is not mounted, say. No message may seem to be gone."""
    admin = alone()
    api = admin.user
    api.post_bodies("mine", 0)
    admin.add("a")
    api.post_bodies("q", 1)
    admin.server.stop()
    folder = admin.server.folder / "pool-a"
    folder.rename(folder.with_name("elsewhere"))
    folder.mkdir()
    admin = alone()
    api = admin.server.api(api.project)
    assert api.listed("mine") == [0]
    for answer in (
        api.list_messages("q"),
        api.claim("q"),
        api.pop("q"),
        api.post("q", {"body": 2}),
    ):
        expect(answer, 503, AWAY)
        assert "Location" not in answer.headers
    health = admin.health()
    assert health["a"] == {"storage_reachable": False}
    assert health[OWN]["storage_reachable"] is True
    expect(admin.delete("a"), 503, AWAY)
    assert "another store" in admin.server.log()
    admin.server.stop()
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    folder.with_name("elsewhere").rename(folder)
    admin = alone()
    assert admin.server.api(api.project).listed("q") == [1]


@pytest.mark.embedded
def test_a_store_that_comes_back_is_used_again(alone: Callable[[], Admin]) -> None:
    admin = alone()
    api = admin.user
    admin.add("a", "b")
    for n in range(8):
        api.post_bodies(f"q{n}", n)
    admin.server.stop()
    file = admin.server.folder / "pool-a" / "nusku.db"
    file.rename(file.with_suffix(".away"))
    file.mkdir()
    admin = alone()
    api = admin.server.api(api.project)
    answers = {f"q{n}": api.list_messages(f"q{n}") for n in range(8)}
    away = [name for name, answer in answers.items() if answer.status_code == 503]
    assert away
    expect(api.get("/v2/ping"), 204)
    file.rmdir()
    file.with_suffix(".away").rename(file)
    eventually(lambda: api.list_messages(away[0]).status_code == 200)
    for n in range(8):
        assert api.listed(f"q{n}") == [n]


# -- health ----------------------------------------------------------------------------------------


def test_health_is_told_by_pool(admin: Admin, api: Api) -> None:
    admin.add("a", "b", "default", "catalog_reachable")
    health = admin.health()
    assert health.pop("catalog_reachable") is True
    assert set(health) == {OWN, "a", "b", "default (pool)", "catalog_reachable (pool)"}
    for store in health.values():
        assert store["storage_reachable"] is True
        assert all(each["succeeded"] for each in store["operation_status"].values())
        assert len(store["operation_status"]) == 8
        assert set(store["message_volume"]) == {"free", "claimed", "total"}


# -- draining --------------------------------------------------------------------------------------


def test_draining_takes_everything_elsewhere(admin: Admin, api: Api) -> None:
    admin.add("a")
    posted: dict[str, list[int]] = {}
    for n in range(6):
        posted[f"q{n}"] = list(range(n * 7))
        expect(api.create(f"q{n}"), 201)
        for start in range(0, n * 7, 10):
            api.post_bodies(f"q{n}", *posted[f"q{n}"][start : start + 10])
    claim = api.claimed("q5", "?limit=4")
    admin.add("b")
    moved, step = 0, {"queues_left": -1, "messages_left": -1}
    for _ in range(100):
        step = expect(admin.drain("a"), 200)
        assert set(step) == {"queues_left", "messages_left", "moved_queues", "moved_messages"}
        assert all(type(number) is int and number >= 0 for number in step.values())
        moved += step["moved_messages"]
        if not step["queues_left"]:
            break
    assert step["messages_left"] == 0
    assert moved == sum(map(len, posted.values()))
    assert admin.show("a")["weight"] == 0
    assert admin.volumes() == {"b": moved}
    for name, bodies in posted.items():
        query = "?echo=true&include_claimed=true&limit=20"
        assert api.listed(name, query) == bodies[:20]
        assert api.stats(name)["total"] == len(bodies)
    assert ageless(expect(api.show_claim("q5", claim.claim_id), 200)["messages"]) == ageless(
        claim.messages
    )
    expect(admin.delete("a"), 204)
    assert api.listed("q1") == posted["q1"]


def test_draining_an_empty_pool(admin: Admin) -> None:
    admin.add("a", "b")
    assert expect(admin.drain("a"), 200)["queues_left"] == 0
    assert admin.show("a")["weight"] == 0


def test_an_unknown_pool_cannot_be_drained(admin: Admin) -> None:
    expect(admin.drain("unknown"), 404, "Not found")


def test_nowhere_to_drain_to(strict: Admin) -> None:
    strict.add("a")
    strict.user.post_bodies("q", 1)
    expect(strict.drain("a"), 503, AWAY)
    assert strict.user.listed("q") == [1]
