"""The policy: the defaults of the contract, and the file that lays other rules over them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from nusku.broker import OPERATIONS, permit, policy
from nusku.broker.policy import Policy
from nusku.cli import main
from nusku.config import ConfigError, Settings
from nusku.errors import Forbidden
from nusku.model import Caller, Context
from tests.governed import RULES, Governed
from tests.live import Api, eventually, expect

NOTICED_S = 5.0


def somebody(*roles: str, user: str = "", project: str = "p") -> Context:
    return Context(project, "c", frozenset(roles), user)


# -- the defaults ----------------------------------------------------------------------------------


@pytest.mark.parametrize("action", OPERATIONS)
def test_by_default_operators_alone_may_what_concerns_all_projects(action: str) -> None:
    noun, _, verb = action.partition(":")
    for_admins = noun == "pools" or action == "health:get"
    for_admins |= noun == "flavors" and verb in {"create", "update", "delete"}
    permit(somebody("admin"), action)
    if for_admins:
        with pytest.raises(Forbidden, match="takes the role 'admin'"):
            permit(somebody("member", "administrator", ""), action)
    else:
        permit(somebody(), action)


def test_roles_are_the_same_in_any_case() -> None:
    permit(somebody("Admin"), "pools:create")


def test_an_empty_file_says_the_same_as_none() -> None:
    rules = Policy(b"")
    for action, role in OPERATIONS.items():
        assert rules(somebody(), action) is not bool(role)
        assert rules(somebody("Admin"), action)


# -- over HTTP -------------------------------------------------------------------------------------


def refused(api: Api, method: str, path: str, **rest: Any) -> bool:
    answer = api.request(method, path, **rest)
    if answer.status_code != 403:
        return False
    assert answer.json()["title"] == "Not authorized"
    return True


def test_a_rule_takes_the_place_of_the_default(governed: Governed) -> None:
    post = {"messages": [{"body": 1}]}
    member, writer = governed.api("member"), governed.api("member", "Writer")
    assert refused(member, "POST", "/v2/queues/q/messages", json=post)
    assert refused(member, "POST", "/v2/topics/t/messages", json=post)
    expect(writer.post("q", {"body": 1}), 201)


def test_what_the_file_does_not_name_stays_as_it_was(governed: Governed) -> None:
    member = governed.api("member")
    expect(member.create("q"), 201)
    expect(member.list_messages("q"), 200)
    assert refused(member, "PUT", "/v2/pools/p", json={"uri": "sqlite:///p.db", "weight": 1})


def test_rules_may_join_refer_and_ask_for_the_user(governed: Governed) -> None:
    path = "/v2/queues/q/stats"
    assert refused(governed.api("member"), "GET", path)
    assert not refused(governed.api("staff"), "GET", path)
    assert refused(governed.api("staff", "guest"), "GET", path)
    assert not refused(governed.api("guest", user="auditor"), "GET", path)


def test_what_an_admin_is_can_be_said_anew(governed: Governed) -> None:
    assert not refused(governed.api("operator"), "GET", "/v2/pools")
    assert not refused(governed.api("admin"), "GET", "/v2/pools")
    assert refused(governed.api("staff"), "GET", "/v2/pools")


def test_what_nobody_may_an_admin_may_not_either(governed: Governed) -> None:
    assert refused(governed.api("admin", "writer"), "POST", "/v2/queues/q/claims")


def test_the_target_is_empty_so_that_nothing_of_it_can_be_asked_for(governed: Governed) -> None:
    assert refused(governed.api("staff"), "DELETE", "/v2/topics/t")


def test_it_is_asked_before_the_body_is_looked_at(governed: Governed) -> None:
    assert refused(governed.api(), "POST", "/v2/queues/q/messages", content=b"{")
    assert refused(governed.api(), "POST", "/v2/queues/q/messages", content=b"x" * 300_000)


def test_a_signed_request_has_no_roles(governed: Governed) -> None:
    api = governed.api("writer", "sharer")
    share = {"paths": ["messages"], "methods": ["GET", "POST"]}
    signed = expect(api.request("POST", api.path("q", "share"), json=share), 200)
    headers = {
        **api.headers,
        "URL-Signature": signed["signature"],
        "URL-Methods": ",".join(signed["methods"]),
        "URL-Paths": ",".join(signed["paths"]),
        "URL-Expires": signed["expires"],
    }
    path = api.path("q", "messages")
    assert api.request("GET", path, headers=headers).status_code == 200
    assert refused(api, "POST", path, headers=headers, json={"messages": [{"body": 1}]})


# -- the file changes ------------------------------------------------------------------------------


@pytest.fixture
def restored(governed: Governed) -> Iterator[Governed]:
    """The rules may be changed, and are brought back behind the test."""
    yield governed
    governed.policy.write_text(RULES)
    assert eventually(lambda: refused(governed.api(), "GET", "/v2/queues/q/stats"), NOTICED_S)


def test_the_file_is_read_again_when_it_changes(restored: Governed) -> None:
    member, path = restored.api("member"), "/v2/queues/q/stats"
    assert refused(member, "GET", path)
    restored.policy.write_text(RULES + '"queues:stats": "role:member"\n')
    eventually(lambda: not refused(member, "GET", path), NOTICED_S)
    # One that is wrong is not used, nor is the lack of one; and both are told.
    restored.policy.write_text('"queues:stats": "role:nobody or"\n')
    eventually(lambda: "cannot be understood: role:nobody or" in restored.server.log(), NOTICED_S)
    restored.policy.unlink()
    eventually(lambda: "No such file" in restored.server.log(), NOTICED_S)
    assert not refused(member, "GET", path)
    assert refused(member, "POST", "/v2/queues/q/messages")


def test_a_file_that_is_being_written_is_left_until_it_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half of it would allow more than the whole."""
    looks = iter([(1,), (2,), (3,), (3,), (3,), (4,), (4,)])
    loaded: list[tuple[int, ...]] = []
    now: list[tuple[int, ...]] = [(0,)]

    def state(path: str) -> tuple[int, ...]:
        try:
            now[0] = next(looks)
        except StopIteration:
            raise asyncio.CancelledError from None
        return now[0]

    def load(path: str) -> Callable[[Context, str], bool]:
        loaded.append(now[0])
        return permit.policy

    monkeypatch.setattr(policy, "LOOK_S", 0)
    monkeypatch.setattr(policy, "_state", state)
    monkeypatch.setattr(policy, "load", load)
    with suppress(asyncio.CancelledError):
        asyncio.run(policy._watch("rules.yaml", (0,)))
    assert loaded == [(3,), (4,)]


# -- files that are wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- 1", 'must have lines of the form "name": "rule"'),
        ("just text", 'must have lines of the form "name": "rule"'),
        ('"queues:get": 3', 'must have lines of the form "name": "rule"'),
        ('"queues:get": [["role:a"]]', 'must have lines of the form "name": "rule"'),
        ('"queues:get": [', "is not YAML"),
        ('"queues:get": !!python/object/apply:os.getcwd []', "is not YAML"),
        ('"queue:get": "role:a"', "no operation 'queue:get'; did you mean queues:get?"),
        ('"queues:get": "role:a and"', "cannot be understood"),
        ('"queues:get": "role:a or (role:b"', "cannot be understood"),
        ('"queues:get": "anybody"', "cannot be understood"),
        ('"queues:get": "user_id:%(user_id"', "cannot be understood"),
        ('"queues:get": "role:100%"', "cannot be understood"),
        ('"queues:get": "[:a"', "cannot be understood"),
        ('"queues:get": "roles.name:a"', "cannot be understood"),
        ('"queues:get": "rule:writers"', "refers to 'writers', which there is not"),
        ('"queues:get": "not rule:writers"', "refers to 'writers', which there is not"),
        ('"a": "rule:b"\n"b": "role:x or not rule:a"', "refers to itself"),
        ('"queues:get": "http://example.com/%(a)s"', "asks another server"),
        ('"queues:get": "role:a and https://example.com/"', "asks another server"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        policy.load(str(path))
    assert any(problem in line for line in caught.value.problems), caught.value.problems
    assert all(line.startswith(f"policy file {path}: ") for line in caught.value.problems)


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text('"queues:gets": ""\n"queues:get": "a"\n"queues:create": "rule:b"\n')
    with pytest.raises(ConfigError) as caught:
        policy.load(str(path))
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff", "is not UTF-8 text (byte 0)"),
        (b"#" * 1_048_577, "is larger than 1048576 bytes"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(
    data: bytes | None, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "rules.yaml"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=f"policy file {path}: it"):
        policy.load(str(path))
    with pytest.raises(ConfigError) as caught:
        policy.load(str(path))
    assert problem in str(caught.value)


def test_the_extra_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("")
    monkeypatch.setitem(sys.modules, "oslo_policy", None)
    with pytest.raises(ConfigError, match=r"install nusku\[policy\]"):
        policy.load(str(path))


def test_neither_check_nor_serve_goes_on_with_a_file_that_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text('"queues:get": "role:a and"')
    env = {"NUSKU_POLICY_FILE": str(path), "NUSKU_STORE": f"sqlite:///{tmp_path}/n.db"}
    checked = CliRunner().invoke(main, ["check"], env=env)
    assert checked.exit_code == 2
    assert "cannot be understood" in checked.output

    async def start() -> None:
        async with policy.kept(Settings(policy_file=str(path))):
            pass

    with pytest.raises(ConfigError, match="cannot be understood"):
        asyncio.run(start())


def test_the_default_rules_are_back_when_the_server_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text('"queues:get": "!"')

    async def run() -> None:
        async with policy.kept(Settings(policy_file=str(path))):
            with pytest.raises(Forbidden):
                permit(somebody("admin"), "queues:get")

    asyncio.run(run())
    permit(somebody(), "queues:get")


# -- what rules can ask ----------------------------------------------------------------------------

ALICE = Caller(
    "p", frozenset({"member"}), "keystone", "alice", "Alice", "d1", "P", "d2", "d3", "all", True
)


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        ("user_id:alice", True),
        ("user_id:Alice", False),
        ("project_id:p", True),
        ("user_domain_id:d1", True),
        ("project_domain_id:d2", True),
        ("domain_id:d3", True),
        ("system_scope:all", True),
        ("system:all", True),
        ("is_admin_project:True", True),
        ("is_admin:True", False),
        ("'member':%(role)s", False),
        ("", True),
        ("@", True),
        ("!", False),
        ("not !", True),
        ("not (role:member and user_id:bob) and role:MEMBER", True),
    ],
)
def test_rules_are_asked_of_all_that_is_known_of_the_caller(rule: str, holds: bool) -> None:
    ctx = Context("p", "c", ALICE.roles, ALICE.user, "", ALICE)
    rules = Policy(f'"queues:get": "{rule}"'.encode())
    assert rules(ctx, "queues:get") is holds
    assert rules(ctx, "queues:get") is holds, "it is remembered as it was"


@pytest.mark.parametrize("rule", ["user_id:", "domain_id:", "user_domain_id:%(x)s"])
def test_what_is_not_known_of_a_caller_equals_nothing(rule: str) -> None:
    assert not Policy(f'"queues:get": "{rule}"'.encode())(somebody(), "queues:get")


def test_no_more_is_remembered_than_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "REMEMBERED_MAX", 10)
    rules = Policy(b'"queues:get": "role:a"')
    for number in range(25):
        assert not rules(somebody(user=str(number)), "queues:get")
        assert rules(somebody("a", user=str(number)), "queues:get")
    assert len(rules._remembered) <= 10


PARTS = st.sampled_from(
    ["role:a", "user_id:%(user_id)s", "rule:b", "not", "and", "or", "(", ")", "!", "@", "%", "'x':%(y)s",
     "[:", "{}.a:b", "a.b:c", '"x"', "1:1", "(((", "http:x", "\\"]
)  # fmt: skip


@given(st.one_of(st.text(max_size=30), st.lists(PARTS, max_size=8).map(" ".join)))
def test_a_rule_is_refused_or_can_be_asked(rule: str) -> None:
    data = structlog.processors.JSONRenderer()(None, "", {"queues:get": rule, "b": "role:b"})
    try:
        rules = Policy(str(data).encode())
    except ConfigError:
        return
    for ctx in (somebody(), somebody("a", user="u"), Context("p", "c", ALICE.roles, "", "", ALICE)):
        assert rules(ctx, "queues:get") in {True, False}
