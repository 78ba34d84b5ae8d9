"""A Keystone and a server that believes its tokens, with two projects and people in them."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.live import Api, LiveServer
from tests.servers.keystone import Keystone

SERVICE = "canary-password-of-the-service"
PASSWORD = "canary-password-of-a-user"
ROLES = {
    ("ann", "alpha"): "member",
    ("bob", "beta"): "member",
    ("root", "alpha"): "admin",
    ("nusku", "service"): "service",
}
"""Who has which role where; all but nusku have the one password."""


class Cloud:
    """``users`` and ``projects`` are ids by name. The server may tell subscribers on loopback."""

    def __init__(self, keystone: Keystone, folder: Path) -> None:
        self.keystone = keystone
        self.projects = {name: keystone.add_project(name) for name in ("alpha", "beta", "service")}
        self.users = {
            name: keystone.add_user(name, SERVICE if name == "nusku" else PASSWORD)
            for name, _ in ROLES
        }
        for (user, project), role in ROLES.items():
            keystone.assign(self.users[user], self.projects[project], role)
        self.server = LiveServer(
            folder,
            auth="keystone",
            keystone_url=keystone.url,
            keystone_user_name="nusku",
            keystone_user_password=SERVICE,
            keystone_cache=1,
            trustee_auth_url=keystone.url,
            trustee_user_name="nusku",
            trustee_user_password=SERVICE,
            subscriber_allow="127.0.0.0/8",
        )

    def __enter__(self) -> Self:
        self.server.start()
        self.keystone.add_endpoint("messaging", self.server.url)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.server.__exit__(kind, error, trace)

    def token(self, user: str, project: str = "") -> str:
        """A new one, for the project that the user has a role in unless another is named."""
        project = project or next(where for who, where in ROLES if who == user)
        return self.keystone.token(user, PASSWORD, project)

    def api(self, user: str) -> Api:
        """Requests with a token, and with headers that claim all sorts of things."""
        extra = {"X-Auth-Token": self.token(user), "X-Roles": "admin", "X-User-ID": "other"}
        return self.server.api(self.projects["beta"]).but(extra=extra)

    def login(self, user: str) -> dict[str, Any]:
        """What clients want to know of somebody who works with the cloud."""
        return {
            "auth_url": self.keystone.url,
            "username": user,
            "password": PASSWORD,
            "project_name": next(where for who, where in ROLES if who == user),
            "user_domain_name": "Default",
            "project_domain_name": "Default",
            "region_name": "here",
        }
