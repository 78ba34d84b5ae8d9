"""Real clients that log in to a real Keystone with a password, unmodified."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openstack
import pytest
from zaqarclient.queues import client as zaqar
from zaqarclient.transport import errors

from tests.cloud import PASSWORD, ROLES, Cloud
from tests.live import eventually, expect
from tests.pooling import pool_uri
from tests.subscribing import HOOK

pytestmark = [
    pytest.mark.clients,
    pytest.mark.slow,
    # What the libraries and those below them do is not ours to mend.
    pytest.mark.filterwarnings("ignore"),
]


def name() -> str:
    return f"q-{uuid.uuid4().hex[:8]}"


# -- python-zaqarclient


def connect(cloud: Cloud, user: str, **others: Any) -> Any:
    options = {f"os_{option}": value for option, value in cloud.login(user).items()} | others
    conf = {"auth_opts": {"backend": "keystone", "options": options}}
    return zaqar.Client(version=2, conf=conf)


def test_zaqarclient_logs_in_and_finds_the_service(cloud: Cloud) -> None:
    queue = connect(cloud, "ann").queue(name(), force_create=True)
    queue.post([{"body": {"hello": "world"}, "ttl": 60}])
    (claimed,) = queue.claim(ttl=60, grace=60)
    assert claimed.body == {"hello": "world"}
    claimed.delete()
    assert queue.stats["messages"]["total"] == 0


def test_zaqarclient_sees_its_own_project_only(cloud: Cloud) -> None:
    ann, bob, common = connect(cloud, "ann"), connect(cloud, "bob"), name()
    ann.queue(common, force_create=True).post([{"body": "of ann", "ttl": 60}])
    bob.queue(common, force_create=True).post([{"body": "of bob", "ttl": 60}])
    for client, body in ((ann, "of ann"), (bob, "of bob")):
        assert [one.body for one in client.queue(common).messages(echo=True)] == [body]
    ann.queue(common).delete()
    assert [one.body for one in bob.queue(common).messages(echo=True)] == ["of bob"]


def test_zaqarclient_naming_another_project_changes_nothing(cloud: Cloud) -> None:
    mine, theirs = name(), name()
    connect(cloud, "ann", os_project_id=cloud.projects["alpha"]).queue(mine, force_create=True)
    connect(cloud, "bob").queue(theirs, force_create=True)
    with pytest.raises(Exception, match=r"401|[Nn]ot authorized|requires authentication"):
        # Keystone gives Bob no token for Ann's project.
        connect(cloud, "bob", os_project_name="alpha").queues()
    listed, _ = connect(cloud, "bob").queues(limit=20)
    names = [queue.name for queue in listed]
    assert theirs in names
    assert mine not in names


def test_zaqarclient_and_roles(cloud: Cloud) -> None:
    with pytest.raises(errors.ForbiddenError):
        connect(cloud, "ann").health()
    assert connect(cloud, "root").health()


def test_zaqarclient_without_a_valid_token(cloud: Cloud) -> None:
    options = {"os_auth_token": "wrong", "os_auth_url": cloud.keystone.url}
    conf = {"auth_opts": {"backend": "keystone", "options": options}}
    client = zaqar.Client(cloud.server.url, version=2, conf=conf)
    with pytest.raises(errors.UnauthorizedError):
        client.queue("q").stats  # noqa: B018 - it asks the service


def test_zaqarclient_with_a_signed_url(cloud: Cloud) -> None:
    common = name()
    owner = connect(cloud, "ann").queue(common, force_create=True)
    owner.post([{"body": "shared", "ttl": 60}])
    signed = owner.signed_url(methods=["GET"])
    opts = {
        "paths": signed["paths"],
        "expires": signed["expires"],
        "methods": signed["methods"],
        "signature": signed["signature"],
        "os_project_id": signed["project"],
    }
    conf = {"auth_opts": {"backend": "signed-url", "options": opts}}
    guest = zaqar.Client(cloud.server.url, version=2, conf=conf).queue(common, auto_create=False)
    assert [message.body for message in guest.messages(echo=True)] == ["shared"]
    with pytest.raises(errors.ResourceNotFound):
        guest.post([{"body": "no", "ttl": 60}])


# -- openstacksdk


@pytest.fixture
def people(cloud: Cloud) -> Iterator[dict[str, Any]]:
    """Connections of each, who logs in with a password."""
    connections = {
        user: openstack.connect(
            load_yaml_config=False,
            load_envvars=False,
            **cloud.login(user),
        )
        for user, _ in ROLES
        if user != "nusku"
    }
    yield connections
    for connection in connections.values():
        connection.close()


def test_openstacksdk_logs_in_and_finds_the_service(people: dict[str, Any]) -> None:
    messages, common = people["ann"].message, name()
    messages.create_queue(name=common)
    messages.post_message(common, [{"body": "hello", "ttl": 60}])
    assert [one.body for one in messages.messages(common, echo=True)] == ["hello"]
    assert common not in [queue.name for queue in people["bob"].message.queues()]
    messages.delete_queue(common)


def test_openstacksdk_ends_when_the_role_is_taken_away(
    cloud: Cloud, people: dict[str, Any]
) -> None:
    user = cloud.keystone.add_user("temp", PASSWORD)
    cloud.keystone.assign(user, cloud.projects["beta"], "member")
    token = cloud.keystone.token("temp", PASSWORD, "beta")

    def status() -> int:
        headers = {"X-Auth-Token": token, "Client-ID": str(uuid.uuid4())}
        return httpx.get(f"{cloud.server.url}/v2/ping", headers=headers).status_code

    assert status() == 204
    cloud.keystone.unassign(user, cloud.projects["beta"], "member")
    eventually(lambda: status() == 401)  # keystone_cache is a second


def test_a_revoked_token_ends(cloud: Cloud) -> None:
    api, token = cloud.api("ann"), cloud.token("ann")
    api = api.but(extra={"X-Auth-Token": token})
    expect(api.get("/v2/ping"), 204)
    cloud.keystone.revoke(token)
    eventually(lambda: api.get("/v2/ping").status_code == 401)


def test_tokens_for_other_things_than_a_project(cloud: Cloud) -> None:
    token = cloud.keystone.token("ann", PASSWORD)
    api = cloud.api("ann").but(extra={"X-Auth-Token": token})
    expect(api.get("/v2/queues"), 400, "Project-Id Missing")


def test_an_application_credential(cloud: Cloud) -> None:
    """One without rules is as good as a password; one with rules is refused by Keystone."""
    keystone, user = cloud.keystone, cloud.users["ann"]
    for rules, status in (([], 204), ([{"service": "messaging", "path": "/v2/ping"}], 401)):
        asked: dict[str, Any] = {"name": name()}
        if rules:
            asked["access_rules"] = [{**rule, "method": "GET"} for rule in rules]
        made = httpx.post(
            f"{keystone.url}/users/{user}/application_credentials",
            json={"application_credential": asked},
            headers={"X-Auth-Token": cloud.token("ann")},
        )
        credential = expect(made, 201)["application_credential"]
        identity = {
            "methods": ["application_credential"],
            "application_credential": {"id": credential["id"], "secret": credential["secret"]},
        }
        login = httpx.post(f"{keystone.url}/auth/tokens", json={"auth": {"identity": identity}})
        headers = {"X-Auth-Token": login.headers["X-Subject-Token"]}
        assert cloud.api("ann").but(extra=headers).get("/v2/ping").status_code == status


# -- the `openstack` command


class Shell:
    """The command as each of them runs it, in a process each: it keeps the first login it was given."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._processes: dict[str, subprocess.Popen[str]] = {}

    def _start(self, user: str) -> subprocess.Popen[str]:
        login = {f"OS_{name.upper()}": value for name, value in self._cloud.login(user).items()}
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", Path(__file__).with_name("openstack_shell.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", **login},
        )

    def ask(self, user: str, *words: str) -> tuple[int, str, str]:
        """Exit status, stdout and stderr of ``openstack messaging …``."""
        if user not in self._processes:
            self._processes[user] = self._start(user)
        stdin, stdout = self._processes[user].stdin, self._processes[user].stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(["messaging", *words]) + "\n")
        stdin.flush()
        status, out, err = json.loads(stdout.readline())
        return status, out, err

    def __call__(self, user: str, *words: str) -> str:
        status, out, err = self.ask(user, *words)
        assert status == 0, (words, out, err)
        return out

    def json(self, user: str, *words: str) -> Any:
        return json.loads(self(user, *words, "-f", "json"))

    def end(self) -> None:
        for process in self._processes.values():
            process.communicate()


@pytest.fixture(scope="module")
def shell(cloud: Cloud) -> Iterator[Shell]:
    running = Shell(cloud)
    yield running
    running.end()


def test_commands_of_the_service(shell: Shell) -> None:
    assert "True" in shell("ann", "ping") or "Pingable" in shell("ann", "ping")
    assert "rel/queues" in shell("ann", "homedoc")
    status, out, err = shell.ask("ann", "health")
    assert (status, "health:get" in out + err) == (1, True)
    assert shell("root", "health")


def test_commands_of_queues(shell: Shell) -> None:
    queue = name()
    shell("ann", "queue", "create", queue)
    assert queue in [row["Name"] for row in shell.json("ann", "queue", "list", "--limit", "20")]
    assert queue not in shell("bob", "queue", "list", "--limit", "20")
    shell("ann", "queue", "set", "metadata", queue, '{"colour": "blue"}')
    assert "blue" in shell("ann", "queue", "get", "metadata", queue)
    assert "claimed" in shell("ann", "queue", "stats", queue).lower()
    assert "signature" in shell("ann", "queue", "signed", "url", queue).lower()
    shell("ann", "queue", "purge", queue)
    shell("ann", "queue", "delete", queue)


def test_commands_of_messages_and_claims(shell: Shell) -> None:
    queue = name()
    shell("ann", "queue", "create", queue)
    client = ("--client-id", str(uuid.uuid4()))
    two = '[{"body": "one", "ttl": 60}, {"body": "two"}]'
    shell("ann", "message", "post", queue, two, *client)
    assert len(shell.json("ann", "message", "list", queue, "--echo", *client)) == 2
    assert "one" not in shell("bob", "message", "list", queue, "--echo", *client)
    claimed = shell.json("ann", "claim", "create", queue, "--ttl", "60", "--limit", "1")
    (claim,) = {row["Claim_ID"] for row in claimed}
    assert shell.json("ann", "claim", "query", queue, claim)
    shell("ann", "claim", "renew", queue, claim, "--ttl", "90", "--grace", "60")
    shell("ann", "claim", "release", queue, claim)


def test_commands_of_subscriptions(shell: Shell) -> None:
    queue = name()
    shell("ann", "queue", "create", queue)
    made = shell.json("ann", "subscription", "create", queue, HOOK, "600")
    (id_,) = [value for key, value in made.items() if key.lower() == "id"]
    shell("ann", "subscription", "update", queue, id_, "--ttl", "700")
    assert "700" in shell("ann", "subscription", "show", queue, id_)
    assert id_ in shell("ann", "subscription", "list", queue)
    shell("ann", "subscription", "delete", queue, id_)


def test_commands_of_pools_and_flavors(cloud: Cloud, shell: Shell) -> None:
    pool, flavor = name(), name()
    uri = pool_uri(cloud.server, pool)
    assert shell.ask("ann", "pool", "create", pool, uri, "10")[0] == 1
    shell("root", "pool", "create", pool, uri, "10")
    assert shell.json("root", "pool", "show", pool)["Weight"] == 10
    shell("root", "pool", "update", pool, "--pool_weight", "20")
    assert pool in shell("root", "pool", "list")
    shell("root", "flavor", "create", flavor, "--pool_list", pool)
    assert flavor in shell("ann", "flavor", "list")
    assert pool in shell("ann", "flavor", "show", flavor)
    shell("root", "flavor", "update", flavor, "--pool_list", pool)
    shell("root", "flavor", "delete", flavor)
    shell("root", "pool", "delete", pool)
