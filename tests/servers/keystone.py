"""A real Keystone, of the packages in requirements/keystone.txt, with what tests need of it."""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.servers.process import Process, free_port
from tests.servers.programs import keystone_python

PROGRAM = Path(__file__).with_name("run_keystone.py")


class Keystone(Process):
    """``password`` is that of ``admin``, whose project is ``admin``; the domain is ``Default``.

    What the methods return are ids.
    """

    patience_s = 120.0  # for what takes seconds of processor time

    def __init__(self, place: Path | None = None) -> None:
        self.program = keystone_python()
        super().__init__("keystone", place)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v3"
        self.password = secrets.token_hex(16)
        self._http = httpx.Client(timeout=30.0)
        self._roles: dict[str, str] = {}

    def command(self) -> Sequence[str | Path]:
        # -P: what lies beside that program is not what it imports.
        return [self.program, "-P", PROGRAM, self.folder, str(self.port), self.password]

    def answers(self) -> bool:
        try:
            return httpx.get(self.url).status_code == 200
        except httpx.TransportError:
            return False

    def wait_until_it_answers(self) -> None:
        super().wait_until_it_answers()
        token = self.token("admin", self.password, "admin")
        self._http.headers["X-Auth-Token"] = token

    def ask(self, method: str, path: str, **document: Any) -> Any:
        """As the admin. Raises where Keystone does not do it."""
        answer = self._http.request(method, self.url + path, json=document or None)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def token(self, user: str, password: str, project: str | None = None) -> str:
        """By name; for no project unless one is named."""
        domain = {"name": "Default"}
        told = {"name": user, "domain": domain, "password": password}
        auth: dict[str, Any] = {
            "identity": {"methods": ["password"], "password": {"user": told}},
            "scope": {"project": {"name": project, "domain": domain}} if project else "unscoped",
        }
        answer = httpx.post(f"{self.url}/auth/tokens", json={"auth": auth})
        answer.raise_for_status()
        return answer.headers["X-Subject-Token"]

    def revoke(self, token: str) -> None:
        headers = {"X-Subject-Token": token}
        self._http.delete(f"{self.url}/auth/tokens", headers=headers).raise_for_status()

    def add_project(self, name: str) -> str:
        project = {"name": name, "domain_id": "default"}
        made: str = self.ask("POST", "/projects", project=project)["project"]["id"]
        return made

    def add_user(self, name: str, password: str) -> str:
        user = {"name": name, "password": password, "domain_id": "default"}
        made: str = self.ask("POST", "/users", user=user)["user"]["id"]
        return made

    def role(self, name: str) -> str:
        """Of admin, manager, member, reader and service."""
        if not self._roles:
            roles = self.ask("GET", "/roles")["roles"]
            self._roles = {role["name"]: role["id"] for role in roles}
        return self._roles[name]

    def assign(self, user: str, project: str, role: str) -> None:
        """Give a user a role in a project; by ids, and the name of the role."""
        self.ask("PUT", f"/projects/{project}/users/{user}/roles/{self.role(role)}")

    def unassign(self, user: str, project: str, role: str) -> None:
        self.ask("DELETE", f"/projects/{project}/users/{user}/roles/{self.role(role)}")

    def add_endpoint(self, kind: str, url: str) -> None:
        """Where a service is, for those who look into the catalog."""
        service = self.ask("POST", "/services", service={"type": kind, "name": kind})["service"]
        endpoint = {
            "service_id": service["id"],
            "interface": "public",
            "url": url,
            "region_id": "here",
        }
        self.ask("POST", "/endpoints", endpoint=endpoint)

    def remove(self) -> None:
        self._http.close()
        super().remove()
