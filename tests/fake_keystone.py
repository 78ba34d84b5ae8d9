"""A Keystone for tests: the few routes of the Identity API v3 that nusku uses, and strict.

Whatever is not as the API reference has it, is answered with 400 and remembered in `complaints`.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

Headers = Message
FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"


@dataclass
class User:
    name: str
    password: str
    domain: str = "Default"
    roles: dict[str, list[str]] = field(default_factory=dict)
    """Names of roles by project."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass
class Token:
    user: str
    project: str | None
    trust: str | None
    expires_s: float
    scope: Mapping[str, Any] = field(default_factory=dict)
    """Members of the shown token that a test makes up."""


class Refused(Exception):
    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Keystone:
    """`asked` lists the requests; `answer` may be set to answer something else instead, and
    `hang` to answer nothing until it is set again.
    """

    def __init__(self) -> None:
        self.users: dict[str, User] = {}
        self.tokens: dict[str, Token] = {}
        self.trusts: dict[str, dict[str, Any]] = {}
        self.lifetime_s = 3600.0
        self.skew_s = 0.0
        """How far its clock is ahead."""
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.answer: tuple[int, Mapping[str, str], bytes] | None = None
        self.go_on = threading.Event()
        self.go_on.set()
        self.arrived = threading.Event()
        keystone = self

        class Handler(_Handler):
            server_keystone = keystone

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v3"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def user(self, name: str, password: str, **roles: list[str]) -> User:
        """A user with roles by project."""
        made = User(name, password, roles=dict(roles))
        self.users[made.id] = made
        return made

    def token_of(self, user: User, project: str | None, trust: str | None = None) -> str:
        token = f"canary-token-{uuid.uuid4().hex}"
        self.tokens[token] = Token(user.id, project, trust, time.time() + self.lifetime_s)
        return token

    def trust(self, trustor: User, trustee: User, project: str, roles: list[str]) -> str:
        """A trust that somebody made elsewhere."""
        made = uuid.uuid4().hex
        self.trusts[made] = {
            "id": made,
            "trustor_user_id": trustor.id,
            "trustee_user_id": trustee.id,
            "project_id": project,
            "impersonation": True,
            "expires_at": None,
            "roles": [{"id": uuid.uuid4().hex, "name": name} for name in roles],
        }
        return made

    def count(self, request: str) -> int:
        return self.asked.count(request)

    # Requests

    def who(self, headers: Headers) -> Token:
        token = self.tokens.get(headers.get("X-Auth-Token", ""))
        if token is None or token.expires_s <= time.time():
            raise Refused(401, "unknown token")
        return token

    def log_in(self, document: Any) -> tuple[str, dict[str, Any]]:
        """`POST /auth/tokens`."""
        auth = members(document, "auth")["auth"]
        members(auth, "identity", "scope")
        identity = members(auth["identity"], "methods", "password")
        demand(identity["methods"] == ["password"], "methods")
        user = members(members(identity["password"], "user")["user"], "name", "domain", "password")
        domain = members(user["domain"], "name")["name"]
        found = next(
            (
                known
                for known in self.users.values()
                if (known.name, known.domain, known.password)
                == (user["name"], domain, user["password"])
            ),
            None,
        )
        if found is None:
            raise Refused(401, "wrong password")
        if auth["scope"] == "unscoped":
            return self._issue(found, None, None)
        if "project" in auth["scope"]:
            project = members(members(auth["scope"], "project")["project"], "name", "domain")
            members(project["domain"], "name")
            if project["name"] not in found.roles:
                raise Refused(401, "no role there")
            return self._issue(found, project["name"], None)
        wanted = members(members(auth["scope"], "OS-TRUST:trust")["OS-TRUST:trust"], "id")["id"]
        trust = self.trusts.get(wanted)
        if trust is None:
            raise Refused(404, "no such trust")
        if trust["trustee_user_id"] != found.id:
            raise Refused(403, "not the trustee")
        ends = trust["expires_at"]
        if ends is not None and parsed(ends) <= time.time():
            raise Refused(401, "the trust is over")
        trustor = self.users[trust["trustor_user_id"]]
        return self._issue(trustor, trust["project_id"], wanted)

    def _issue(
        self, user: User, project: str | None, trust: str | None
    ) -> tuple[str, dict[str, Any]]:
        token = self.token_of(user, project, trust)
        return token, self._shown(self.tokens[token])

    def _shown(self, token: Token) -> dict[str, Any]:
        user = self.users[token.user]
        domain = {"id": user.domain.lower(), "name": user.domain}
        shown: dict[str, Any] = {
            "methods": ["password"],
            "user": {"id": user.id, "name": user.name, "domain": domain},
            "issued_at": written(time.time() + self.skew_s),
            "expires_at": written(token.expires_s + self.skew_s),
            "audit_ids": [uuid.uuid4().hex],
        }
        if token.project is not None:
            shown["project"] = {"id": token.project, "name": token.project, "domain": domain}
            names = user.roles.get(token.project, [])
            shown["roles"] = [{"id": uuid.uuid4().hex, "name": name} for name in names]
        if token.trust is not None:
            shown["OS-TRUST:trust"] = {"id": token.trust, "impersonation": True}
        return {"token": {**shown, **token.scope}}

    def show_token(self, headers: Headers) -> dict[str, Any]:
        """`GET /auth/tokens`: for services."""
        asking = self.who(headers)
        if "service" not in self.users[asking.user].roles.get(asking.project or "", []):
            raise Refused(403, "not a service")
        token = self.tokens.get(headers.get("X-Subject-Token", ""))
        if token is None or token.expires_s <= time.time():
            raise Refused(404, "unknown token")
        return self._shown(token)

    def make_trust(self, headers: Headers, document: Any) -> dict[str, Any]:
        """`POST /OS-TRUST/trusts`: by the trustor only, with roles that they have."""
        token = self.who(headers)
        trust = members(members(document, "trust")["trust"], *TRUST)
        demand(isinstance(trust["impersonation"], bool), "impersonation")
        demand(trust["roles"] != [], "roles")
        for role in trust["roles"]:
            members(role, "name")
        demand(parsed(trust["expires_at"]) > time.time(), "expires_at")
        if trust["trustor_user_id"] != token.user:
            raise Refused(403, "not the trustor")
        if trust["trustee_user_id"] not in self.users:
            raise Refused(404, "no such trustee")
        held = self.users[token.user].roles.get(trust["project_id"], [])
        if any(role["name"] not in held for role in trust["roles"]):
            raise Refused(404, "no such role")
        made = uuid.uuid4().hex
        self.trusts[made] = {**trust, "id": made}
        return {"trust": self.trusts[made]}

    def show_trust(self, headers: Headers, wanted: str) -> dict[str, Any]:
        """`GET /OS-TRUST/trusts/{id}`: for trustor and trustee."""
        token = self.who(headers)
        trust = self.trusts.get(wanted)
        if trust is None:
            raise Refused(404, "no such trust")
        if token.user not in {trust["trustor_user_id"], trust["trustee_user_id"]}:
            raise Refused(403, "somebody else's")
        return {"trust": {**trust, "links": {}, "roles_links": {}, "redelegation_count": 0}}


TRUST = (
    "trustor_user_id",
    "trustee_user_id",
    "project_id",
    "impersonation",
    "roles",
    "expires_at",
)


def written(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime(FORMAT)


def parsed(text: str) -> float:
    try:
        return datetime.strptime(text, FORMAT).replace(tzinfo=UTC).timestamp()
    except (TypeError, ValueError):
        raise Refused(400, f"not a time: {text!r}") from None


def demand(right: bool, what: str) -> None:
    if not right:
        raise Refused(400, what)


def members(value: Any, *names: str) -> dict[str, Any]:
    """The value, if it is an object with these members and no others."""
    if not isinstance(value, dict) or set(value) != set(names):
        raise Refused(400, f"not an object of {names}: {value!r}")
    return value


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who asked may hang up at any time."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_keystone: Keystone

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's
        pass

    def do_GET(self) -> None:
        self._do(self._get)

    def do_POST(self) -> None:
        self._do(self._post)

    def _do(
        self, action: Callable[[Keystone, Any], tuple[int, dict[str, str], dict[str, Any]]]
    ) -> None:
        keystone = self.server_keystone
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        keystone.asked.append(f"{self.command} {self.path}")
        keystone.arrived.set()
        keystone.go_on.wait()
        if keystone.answer is not None:
            status, headers, content = keystone.answer
            self._answer(status, headers, content)
            return
        try:
            demand(self.headers.get("Accept") == "application/json", "Accept")
            document = None
            if body:
                demand(self.headers.get("Content-Type") == "application/json", "Content-Type")
                document = json.loads(body)
            status, headers, shown = action(keystone, document)
        except Refused as refused:
            if refused.status == 400:
                keystone.complaints.append(str(refused))
            status, headers = refused.status, {}
            shown = {"error": {"code": refused.status, "message": str(refused)}}
        self._answer(status, headers, json.dumps(shown).encode())

    def _get(self, keystone: Keystone, document: Any) -> tuple[int, dict[str, str], dict[str, Any]]:
        demand(document is None, "a body")
        if self.path == "/v3/auth/tokens?nocatalog":
            return 200, {}, keystone.show_token(self.headers)
        path = re.fullmatch(r"/v3/OS-TRUST/trusts/([0-9a-zA-Z-]+)", self.path)
        if path is None:
            raise Refused(400, f"GET {self.path}")
        return 200, {}, keystone.show_trust(self.headers, path[1])

    def _post(
        self, keystone: Keystone, document: Any
    ) -> tuple[int, dict[str, str], dict[str, Any]]:
        if self.path == "/v3/OS-TRUST/trusts":
            return 201, {}, keystone.make_trust(self.headers, document)
        demand(self.path == "/v3/auth/tokens?nocatalog", f"POST {self.path}")
        demand("X-Auth-Token" not in self.headers, "a token to log in")
        token, shown = keystone.log_in(document)
        return 201, {"X-Subject-Token": token}, shown

    def _answer(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except ConnectionError:
            self.close_connection = True  # who asked has gone
