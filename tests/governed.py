"""A server with a policy file and an audit log, and keys, for the tests of those and of grants."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from nusku.auth import api_keys
from nusku.config import Settings
from nusku.storage.registry import opened_registry
from tests.live import Api, LiveServer, eventually

RULES = """\
"context_is_admin": "role:admin or role:operator"
"staff": "role:Staff and not role:guest"

"queues:stats": "rule:staff or user_id:auditor"
"queues:share": "role:sharer"
"messages:create": "role:writer"
"messages:get_all": "@"
"claims:create": "!"
"topics:delete": "rule:admin_or_owner"
"pools:get_all": "is_admin:True"
"""


@dataclass(frozen=True)
class Governed:
    """`policy` is the file with the rules, `audit` the audit log."""

    server: LiveServer
    policy: Path
    audit: Path

    def api(self, *roles: str, project: str | None = None, user: str = "") -> Api:
        """Somebody with these roles."""
        who = {"X-Roles": ",".join(roles)} if roles else {}
        return self.server.api(project).but(extra={**who, **({"X-User-Id": user} if user else {})})

    def noted(self, project: str) -> list[dict[str, Any]]:
        """What the audit log holds of somebody in this project."""
        lines = [json.loads(line) for line in self.audit.read_text().splitlines()]
        return [line for line in lines if line.get("project") == project]


def key_for(server: LiveServer, project: str, *roles: str, user: str = "") -> str:
    """A key of a server with `auth = key`, once it is known there."""
    settings = Settings(
        store=server.store, redis_replicas=cast(int, server.settings.get("redis_replicas", 0))
    )

    async def make() -> str:
        async with opened_registry(settings) as registry:
            return (await api_keys.create(registry, project, roles, user=user)).text

    key = asyncio.run(make())
    api = server.api().but(extra={"X-Auth-Token": key})
    eventually(lambda: api.get("/v2/ping").is_success)
    return key
