"""Unmodified clients of OpenStack with an API key in the place of a token, and no Keystone."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any, cast

import pytest
from keystoneauth1 import session, token_endpoint
from openstack.config import cloud_region
from openstack.connection import Connection
from zaqarclient.queues import client as client_module
from zaqarclient.transport import errors

from nusku.auth import api_keys
from nusku.config import Settings
from nusku.storage.registry import opened_registry
from tests.live import LiveServer, eventually

pytestmark = [
    pytest.mark.clients,
    # What the libraries and those below them do is not ours to mend.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def server(shared_server: Callable[..., LiveServer]) -> LiveServer:
    return shared_server(auth="key")


@pytest.fixture(scope="module")
def key(server: LiveServer) -> str:
    replicas = cast(int, server.settings.get("redis_replicas", 0))

    async def make() -> str:
        async with opened_registry(Settings(store=server.store, redis_replicas=replicas)) as found:
            return (await api_keys.create(found, f"project-{uuid.uuid4().hex}", ["member"])).text

    key = asyncio.run(make())
    headers = {"Client-ID": str(uuid.uuid4()), "X-Auth-Token": key}
    eventually(lambda: server.client.get("/v2/queues", headers=headers).status_code == 200)
    return key


def zaqarclient(server: LiveServer, key: str) -> Any:
    conf = {"auth_opts": {"backend": "keystone", "options": {"auth_token": key}}}
    return client_module.Client(server.url, version=2, conf=conf)


def test_python_zaqarclient(server: LiveServer, key: str) -> None:
    queue = zaqarclient(server, key).queue("work", force_create=True)
    queue.post([{"body": 1, "ttl": 60}])
    assert [message.body for message in queue.messages(echo=True)] == [1]
    claim = queue.claim(ttl=60, grace=60)
    for message in claim:
        message.delete()
    with pytest.raises(errors.UnauthorizedError):
        zaqarclient(server, f"{key}x").queue("work", force_create=True)


def test_openstacksdk(server: LiveServer, key: str) -> None:
    auth = token_endpoint.Token(f"{server.url}/v2", key)
    region = cloud_region.from_session(
        session.Session(auth=auth), app_name="tests", region_name="here"
    )
    with Connection(config=region) as cloud:
        cloud.message.create_queue(name="jobs")
        assert "jobs" in [queue.name for queue in cloud.message.queues(project_id="any")]
