"""Pools and flavors through python-zaqarclient, unmodified, against a live server (clients.md, 1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from zaqarclient.queues.v2 import client as v2
from zaqarclient.transport import errors

from tests.live import LiveServer
from tests.pooling import Admin

pytestmark = [
    pytest.mark.clients,
    # What the library and those below it do is not ours to mend.
    pytest.mark.filterwarnings("ignore"),
]

ALL = ["FIFO", "CLAIMS", "DURABILITY", "AOD", "HIGH_THROUGHPUT"]


class AdminClient(v2.Client):  # type: ignore[misc]  # the library has no types
    """Sends the role that a token would bring along."""

    def _request_and_transport(self) -> Any:
        request, transport = super()._request_and_transport()
        request.headers["X-Roles"] = "admin"
        return request, transport


@pytest.fixture(scope="module")
def pool_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def admin(pool_server: LiveServer) -> Iterator[Admin]:
    with Admin(pool_server) as admin:
        yield admin


@pytest.fixture
def client(admin: Admin) -> Any:
    options = {"os_project_id": admin.api.project}
    conf = {"auth_opts": {"backend": "noauth", "options": options}}
    return AdminClient(admin.server.url, version=2, conf=conf)


def make(client: Any, admin: Admin, *names: str, **fields: Any) -> Any:
    """Pools as the client makes them; the last one."""
    pool = None
    for name in names:
        pool = client.pool(name, uri=admin.uri(name), weight=10, **fields)
    return pool


def test_a_pool_is_made_and_read(client: Any, admin: Admin) -> None:
    pool = make(client, admin, "a", flavor="gold", options={"max_retry_sleep": 1})
    assert pool.get() == {
        "name": "a",
        "href": "/v2/pools/a",
        "uri": admin.uri("a"),
        "weight": 10,
        "flavor": "gold",
    }
    again = client.pool("a", auto_create=False)
    assert again.get() == pool.get()


def test_a_pool_that_is_made_again_is_overwritten(client: Any, admin: Admin) -> None:
    make(client, admin, "a", flavor="gold", options={"x": 1})
    pool = client.pool("a", uri=admin.uri("a"), weight=20)
    assert (pool.get()["weight"], pool.get()["flavor"]) == (20, None)
    assert admin.show("a", "?detailed=true")["options"] == {}


def test_a_pool_is_changed(client: Any, admin: Admin) -> None:
    pool = make(client, admin, "a")
    changes = {"weight": 5, "flavor": "gold", "options": {"x": 2}, "uri": admin.uri("b")}
    pool.update(changes)
    assert (pool.weight, pool.flavor, pool.uri) == (5, "gold", admin.uri("b"))
    assert admin.show("a", "?detailed=true")["options"] == {"x": 2}
    assert pool.get()["uri"] == admin.uri("b")


def test_pools_are_listed(client: Any, admin: Admin) -> None:
    assert list(client.pools()) == []
    make(client, admin, "a", "b", "c", options={"x": 1})
    assert [pool.name for pool in client.pools()] == ["a", "b", "c"]
    assert [pool.options for pool in client.pools()] == [{}] * 3
    detailed = list(client.pools(detailed=True, limit=2))
    assert [(pool.name, pool.options) for pool in detailed] == [("a", {"x": 1}), ("b", {"x": 1})]
    assert [pool.name for pool in client.pools(marker="b")] == ["c"]


def test_pools_are_streamed_page_by_page(client: Any, admin: Admin) -> None:
    names = [f"p{n:02}" for n in range(7)]
    make(client, admin, *names)
    assert [pool.name for pool in client.pools(limit=3).stream()] == names


def test_a_pool_is_deleted(client: Any, admin: Admin) -> None:
    pool = make(client, admin, "a")
    pool.delete()
    pool.delete()
    with pytest.raises(errors.ResourceNotFound):
        pool.get()


def test_what_is_refused_is_an_error_there_too(client: Any, admin: Admin) -> None:
    with pytest.raises(errors.MalformedRequest):
        client.pool("a", uri="localhost:27017", weight=1)
    with pytest.raises(errors.MalformedRequest):
        client.pool("a", uri=admin.uri("a"))  # without a weight
    make(client, admin, "a", flavor="gold")
    with pytest.raises(errors.ConflictError):
        client.pool("b", uri=admin.uri("a"), weight=1)
    with pytest.raises(errors.ForbiddenError, match="last one of the flavor"):
        client.pool("a", auto_create=False).delete()
    with pytest.raises(errors.ResourceNotFound):
        client.pool("c", auto_create=False).update({"weight": 1})
    with pytest.raises(errors.MalformedRequest):
        client.pool("a", auto_create=False).update({})


def test_without_the_role_everything_is_forbidden(admin: Admin) -> None:
    options = {"os_project_id": admin.api.project}
    conf = {"auth_opts": {"backend": "noauth", "options": options}}
    user = v2.Client(admin.server.url, version=2, conf=conf)
    with pytest.raises(errors.ForbiddenError):
        list(user.pools())
    with pytest.raises(errors.ForbiddenError):
        user.flavor("gold", pool_list=["a"])
    assert list(user.flavors()) == []


def test_a_flavor_is_made_and_read(client: Any, admin: Admin) -> None:
    make(client, admin, "a", "b")
    flavor = client.flavor("gold", pool_list=["a", "b"])
    assert flavor.get() == {
        "name": "gold",
        "href": "/v2/flavors/gold",
        "pool_list": ["a", "b"],
        "capabilities": ALL,
    }
    client.flavor("gold", pool_list=["b"])
    assert flavor.get()["pool_list"] == ["b"]


def test_a_flavor_is_changed_and_deleted(client: Any, admin: Admin) -> None:
    make(client, admin, "a", "b")
    flavor = client.flavor("gold", pool_list=["a"])
    flavor.update({"pool_list": ["b"]})
    assert flavor.get()["pool_list"] == ["b"]
    flavor.delete()
    flavor.delete()
    with pytest.raises(errors.ResourceNotFound):
        flavor.get()
    with pytest.raises(errors.ResourceNotFound):
        flavor.update({"pool_list": ["a"]})


def test_flavors_are_listed(client: Any, admin: Admin) -> None:
    make(client, admin, "a", "b", "c")
    for name, pool in (("f1", "a"), ("f2", "b"), ("f3", "c")):
        client.flavor(name, pool_list=[pool])
    assert [flavor.name for flavor in client.flavors()] == ["f1", "f2", "f3"]
    found = list(client.flavors(limit=2, detailed=True))
    assert [(one.pool_list, one.capabilities) for one in found] == [(["a"], ALL), (["b"], ALL)]
    assert [one.name for one in client.flavors(limit=1).stream()] == ["f1", "f2", "f3"]


def test_a_flavor_of_an_unknown_pool(client: Any, admin: Admin) -> None:
    told = "Flavor gold could not be created, error:Pool missing does not exist"
    with pytest.raises(errors.MalformedRequest, match=told):
        client.flavor("gold", pool_list=["missing"])
    with pytest.raises(errors.MalformedRequest):
        client.flavor("gold")  # without pools


def test_queues_go_where_their_flavor_says(client: Any, admin: Admin) -> None:
    make(client, admin, "plain", "rich")
    client.flavor("gold", pool_list=["rich"])
    queue = client.queue("q", force_create=True)
    queue.metadata({"_flavor": "gold"})
    queue.post([{"body": n, "ttl": 300} for n in range(3)])
    assert admin.volumes() == {"rich": 3}
    client.queue("q", force_create=True)  # creates nothing, and moves nothing
    assert [message.body for message in queue.messages(echo=True)] == [0, 1, 2]
    assert set(client.health()) == {"catalog_reachable", "default", "plain", "rich"}
