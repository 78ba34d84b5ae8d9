"""Pools and flavors for tests: an administrator who tidies up, since pools belong to everybody."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from tests.live import QUEUES, TOPICS, Api, LiveServer, expect
from tests.servers.stores import release, store_in

ADMIN = {"X-Roles": "admin"}


CLUSTERS_MAX = 5  # of six processes each


def pool_uri(server: LiveServer, name: str) -> str:
    """The URI of an empty store of the same kind as the server's, for a pool of this name.

    Beside several Redis Clusters, which take long to start, it is a PostgreSQL one.
    """
    folder = server.folder / f"pool-{name}"
    clusters = len([*server.folder.glob("pool-*")]) if server.kind == "redis-cluster" else 0
    if clusters >= CLUSTERS_MAX and not folder.exists():
        return store_in("postgresql", server.folder / f"other-{name}")
    folder.mkdir(exist_ok=True)
    return store_in(server.kind, folder)


class Admin:
    """Requests about pools and flavors; on leaving, nothing of it is left."""

    def __init__(self, server: LiveServer) -> None:
        self.server = server
        self.api = server.api().but(extra=ADMIN)
        self.user = server.api(self.api.project)
        """Without a role, in the same project."""

    def uri(self, name: str) -> str:
        return pool_uri(self.server, name)

    # -- pools ---------------------------------------------------------------------------------

    def path(self, name: str, what: str = "pools") -> str:
        return f"/v2/{what}/{quote(name, safe='')}"

    def put(self, name: str, /, **fields: Any) -> httpx.Response:
        """Add a pool of weight 1 with a store of its own, unless told otherwise."""
        body = {"weight": 1, **fields}
        if "uri" not in body:
            body["uri"] = self.uri(name)
        return self.api.put(self.path(name), json=body)

    def add(self, *names: str, **fields: Any) -> None:
        for name in names:
            expect(self.put(name, **fields), 201)

    def patch(self, name: str, query: str = "", /, **fields: Any) -> httpx.Response:
        return self.api.request("PATCH", self.path(name) + query, json=fields)

    def show(self, name: str, query: str = "") -> dict[str, Any]:
        shown: dict[str, Any] = expect(self.api.get(self.path(name) + query), 200)
        return shown

    def delete(self, name: str) -> httpx.Response:
        return self.api.delete(self.path(name))

    def pools(self, query: str = "") -> list[dict[str, Any]]:
        """One page."""
        pools: list[dict[str, Any]] = expect(self.api.get(f"/v2/pools{query}"), 200)["pools"]
        return pools

    def drain(self, name: str) -> httpx.Response:
        return self.api.request("POST", f"{self.path(name)}/drain")

    # -- flavors -------------------------------------------------------------------------------

    def put_flavor(self, name: str, *pools: str) -> httpx.Response:
        return self.api.put(self.path(name, "flavors"), json={"pool_list": pools})

    def flavor(self, name: str, *pools: str) -> None:
        """Create it."""
        expect(self.put_flavor(name, *pools), 201)

    def patch_flavor(self, name: str, *pools: str) -> httpx.Response:
        path = self.path(name, "flavors")
        return self.api.request("PATCH", path, json={"pool_list": pools})

    def show_flavor(self, name: str) -> dict[str, Any]:
        shown: dict[str, Any] = expect(self.api.get(self.path(name, "flavors")), 200)
        return shown

    def delete_flavor(self, name: str) -> httpx.Response:
        return self.api.delete(self.path(name, "flavors"))

    # -- where things are ----------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        health: dict[str, Any] = expect(self.api.get("/v2/health"), 200)
        return health

    def volumes(self) -> dict[str, int]:
        """How many messages each store holds, by the name of its pool; those that hold any."""
        return {
            name: store["message_volume"]["total"]
            for name, store in self.health().items()
            if name != "catalog_reachable"
            and store["storage_reachable"]
            and store["message_volume"]["total"]
        }

    def where(self, queue: str, api: Api | None = None) -> str:
        """The pool that a queue is in: the one that a message posted to it is in."""
        api = api or self.user
        before = self.volumes()
        (id_,) = api.post_bodies(queue, "where?")
        after = self.volumes()
        expect(api.delete_message(queue, id_), 204)
        (place,) = [name for name in after if after[name] != before.get(name, 0)]
        return place

    # -- tidying up ----------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and self.server.process.poll() is not None:
            return
        for api in (self.user.but(kind=QUEUES), self.user.but(kind=TOPICS)):
            while names := api.names("?limit=20"):
                for name in names:
                    expect(api.drop(name), 204)
        while pools := self.pools("?limit=20"):
            for pool in pools:
                expect(self.patch(pool["name"], flavor=""), 200)
                expect(self.delete(pool["name"]), 204)
        while flavors := expect(self.api.get("/v2/flavors?limit=20"), 200)["flavors"]:
            for flavor in flavors:
                expect(self.delete_flavor(flavor["name"]), 204)
        for folder in self.server.folder.glob("pool-*"):
            _forget(folder)


def _forget(folder: Path) -> None:
    """The next pool of this name begins with an empty store."""
    release(folder)
    folder.rename(folder.with_name(f"old-{len(list(folder.parent.glob('old-*')))}"))
