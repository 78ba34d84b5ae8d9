"""Grants: what `_grants` in the metadata of a queue lets others do, and that it is nothing more."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nusku.broker import OPERATIONS, Grants, permit
from nusku.broker.grants import RIGHTS, read
from nusku.config import Settings
from nusku.errors import Forbidden, Invalid
from nusku.http import document
from nusku.model import Caller, Context, Granted, QueueKey
from tests.governed import Governed, key_for
from tests.live import QUEUES, TOPICS, Api, LiveServer, expect

OWNER = "Queue-Project-ID"


def guest_of(owner: Api, guest: Api | None = None) -> Api:
    """Somebody of another project who wants to use what is the owner's."""
    guest = guest or owner.stranger()
    return guest.but(kind=owner.kind, extra={**guest.extra, OWNER: owner.project})


def grant(owner: Api, queue: str, *grants: Mapping[str, Any] | None) -> None:
    """Make these the grants of a queue, which is made if it is not there."""
    owner.create(queue)
    expect(owner.patch(queue, [{"op": "add", "path": "/metadata/_grants", "value": grants}]), 200)


def forbidden(answer: httpx.Response) -> bool:
    if answer.status_code != 403:
        return False
    assert answer.request.method == "HEAD" or answer.json()["title"] == "Not authorized"
    return True


# -- each right opens what belongs to it, and nothing else -----------------------------------------


def operations() -> list[tuple[str, str, str]]:
    """Method, path and name of each operation that has a rule, from the description of the API."""
    paths = cast("dict[str, dict[str, Any]]", document(Settings(), "0")["paths"])
    found = []
    for path, methods in paths.items():
        for method, node in methods.items():
            name = ":".join(node["operationId"].split(":")[:2]) if method != "parameters" else ""
            if name in OPERATIONS:
                found.append((method.upper(), path, name))
    return found


@pytest.fixture(scope="module", params=[*RIGHTS, "all", "none"])
def right(request: pytest.FixtureRequest, server: LiveServer) -> tuple[set[str], Api]:
    """The operations that a guest was granted, and the guest."""
    owner = server.api()
    rights = {"all": [*RIGHTS], "none": []}.get(request.param, [request.param])
    guest = guest_of(owner)
    for api in (owner, owner.but(kind=TOPICS)):
        expect(api.create("q"), 201)
        if rights:
            grant(api, "q", {"project": guest.project, "may": rights})
    return {action for one in rights for action in RIGHTS[one]}, guest


def test_a_right_opens_its_operations_and_no_others(right: tuple[set[str], Api]) -> None:
    opened, guest = right
    wrong = []
    for method, path, name in operations():
        filled = path.replace("{queue_name}", "q").replace("{topic_name}", "q")
        should_open = filled != path and name in opened
        filled = filled.replace("{", "").replace("}", "")
        answer = guest.request(method, filled, params={"ids": "x"} if filled.endswith("s") else {})
        if answer.status_code >= 500 or forbidden(answer) is should_open:
            wrong.append((method, filled, answer.status_code))
    assert wrong == []


def test_somebody_else_is_granted_nothing(right: tuple[set[str], Api]) -> None:
    _, guest = right
    other = guest.stranger()
    assert forbidden(other.post("q", {"body": 1}))
    assert forbidden(other.claim("q"))
    assert forbidden(other.list_messages("q"))


# -- who is meant ----------------------------------------------------------------------------------


def as_user(api: Api, user: str = "", *roles: str) -> Api:
    who = {"X-User-Id": user, "X-Roles": ",".join(roles)}
    return api.but(extra={**api.extra, **{name: value for name, value in who.items() if value}})


@pytest.mark.parametrize(
    ("named", "let_in"),
    [
        ({"project": "guests"}, {"ann", "bob"}),
        ({"project": "guests", "user": "ann"}, {"ann"}),
        ({"project": "guests", "role": "worker"}, {"bob"}),
        ({"project": "guests", "role": "WORKER"}, {"bob"}),
        ({"project": "guests", "user": "ann", "role": "worker"}, set()),
        ({"user": "ann"}, set()),
        ({"role": "worker"}, set()),
        ({"project": "guest"}, set()),
    ],
)
def test_all_that_a_grant_names_must_be_so(
    named: dict[str, str], let_in: set[str], server: LiveServer
) -> None:
    """A user or role without a project is one of the queue's project."""
    owner = server.api()
    grant(owner, "q", {**named, "may": ["post"]})
    guests = guest_of(owner, server.api("guests"))
    people = {"ann": as_user(guests, "ann"), "bob": as_user(guests, "bob", "worker", "x")}
    assert {n for n, one in people.items() if one.post("q", {"body": 1}).is_success} == let_in


def test_of_several_grants_each_counts(server: LiveServer) -> None:
    owner = server.api()
    one, other = guest_of(owner), guest_of(owner)
    grant(
        owner,
        "q",
        {"project": one.project, "may": ["post"]},
        {"project": other.project, "may": ["claim"]},
        {"project": one.project, "may": ["read"]},
    )
    expect(one.post("q", {"body": 1}), 201)
    assert one.listed("q") == [1]
    assert forbidden(one.claim("q"))
    assert forbidden(other.post("q", {"body": 1}))
    assert other.claimed("q").bodies == [1]


def test_guests_work_as_the_owner_would(server: LiveServer) -> None:
    owner = server.api()
    producer, worker = guest_of(owner), guest_of(owner)
    grant(
        owner,
        "jobs",
        {"project": producer.project, "may": ["post"]},
        {"project": worker.project, "may": ["claim"]},
    )
    ids = producer.post_bodies("jobs", 1, 2, 3)
    assert owner.listed("jobs") == [1, 2, 3]
    claim = worker.claimed("jobs", "?limit=2")
    assert claim.ids == ids[:2]
    expect(worker.renew("jobs", claim.claim_id, ttl=100), 204)
    assert expect(worker.show_claim("jobs", claim.claim_id), 200)["ttl"] == 100
    expect(worker.delete_message("jobs", ids[0], claim.claim_id), 204)
    expect(worker.release("jobs", claim.claim_id), 204)
    assert worker.popped("jobs") == [2, 3]
    assert worker.stats("jobs")["total"] == owner.stats("jobs")["total"] == 0


def test_the_queues_of_ones_own_are_meant_without_the_header(server: LiveServer) -> None:
    owner = server.api()
    guest = guest_of(owner)
    grant(owner, "q", {"project": guest.project, "may": ["post", "read"]})
    expect(guest.but(extra={}).post("q", {"body": "own"}), 201)
    expect(guest.post("q", {"body": "theirs"}), 201)
    assert owner.listed("q") == ["theirs"]
    assert guest.but(extra={}).listed("q") == ["own"]
    own = guest.but(extra={OWNER: guest.project})
    assert own.listed("q") == ["own"]
    assert own.names() == ["q"]


def test_a_queue_that_is_not_there_is_like_one_that_is_not_granted(server: LiveServer) -> None:
    owner = server.api()
    guest = guest_of(owner)
    owner.create("there")
    answers = [guest.post(name, {"body": 1}) for name in ("there", "missing")]
    assert [answer.status_code for answer in answers] == [403, 403]
    assert answers[0].json() == answers[1].json()
    assert owner.names() == ["there"]
    grant(owner, "there", {"project": guest.project, "may": ["post"]})
    expect(owner.drop("there"), 204)
    assert forbidden(guest.post("there", {"body": 1}))
    assert owner.names() == []


def test_of_a_queue_and_a_topic_of_one_name_one_is_granted(server: LiveServer) -> None:
    owner = server.api()
    guest = guest_of(owner)
    grant(owner.but(kind=TOPICS), "news", {"project": guest.project, "may": ["post"]})
    expect(guest.but(kind=TOPICS).post("news", {"body": 1}), 201)
    assert forbidden(guest.post("news", {"body": 1}))


def test_it_is_over_at_once_when_it_is_taken_back(server: LiveServer) -> None:
    owner = server.api()
    guest = guest_of(owner)
    for take_back in (
        {"op": "remove"},
        {"op": "replace", "value": []},
        {"op": "add", "value": None},
    ):
        grant(owner, "q", {"project": guest.project, "may": ["post"]})
        expect(guest.post("q", {"body": 1}), 201)
        expect(owner.patch("q", [{**take_back, "path": "/metadata/_grants"}]), 200)
        assert forbidden(guest.post("q", {"body": 1}))


def test_a_project_that_could_not_be_one_has_no_queues(server: LiveServer) -> None:
    api = server.api()
    assert forbidden(api.but(extra={OWNER: "p" * 257}).post("q", {"body": 1}))
    expect(api.but(extra={OWNER: ""}).post("q", {"body": 1}), 201)


def test_a_signature_is_not_for_what_others_grant_its_project(server: LiveServer) -> None:
    owner = server.api()
    guest = guest_of(owner)
    grant(owner, "q", {"project": guest.project, "may": ["post", "read", "claim"]})
    own = guest.but(extra={})
    signed = expect(
        own.request("POST", own.path("q", "share"), json={"methods": ["GET", "POST"]}), 200
    )
    signature = {
        "URL-Signature": signed["signature"],
        "URL-Methods": ",".join(signed["methods"]),
        "URL-Paths": ",".join(signed["paths"]),
        "URL-Expires": signed["expires"],
    }
    expect(own.but(extra=signature).list_messages("q"), 200)
    assert forbidden(guest.but(extra={**guest.extra, **signature}).list_messages("q"))


def test_grants_are_for_who_one_is_proved_to_be(keyed: LiveServer) -> None:
    """Whatever other headers say."""
    owner = keyed.api("owner").but(extra={"X-Auth-Token": key_for(keyed, "owner")})
    guest = keyed.api("guest").but(
        extra={"X-Auth-Token": key_for(keyed, "guest", "worker", user="ann"), OWNER: "owner"}
    )
    grant(owner, "a", {"project": "guest", "user": "ann", "role": "worker", "may": ["post"]})
    expect(guest.post("a", {"body": 1}), 201)
    assert owner.listed("a") == [1]
    grant(owner, "b", {"project": "friend", "may": ["post"]}, {"user": "root", "may": ["post"]})
    for lie in (
        {"X-Project-ID": "friend"},
        {"X-Project-ID": "owner", "X-User-Id": "root"},
        {"X-Tenant-ID": "owner", "X-Roles": "admin"},
    ):
        assert forbidden(guest.but(extra={**guest.extra, **lie}).post("b", {"body": 1}))
    assert owner.listed("b") == []


# -- who may grant ---------------------------------------------------------------------------------


def test_within_a_project_a_grant_gives_what_the_policy_does_not(governed: Governed) -> None:
    """The file lets writers post, and nobody claim."""
    boss = governed.api("sharer", "writer")
    ann, bob = (as_user(governed.api(project=boss.project), name, "member") for name in ("a", "b"))
    assert forbidden(ann.post("q", {"body": 1}))
    grant(boss, "q", {"user": "a", "may": ["post"]})
    expect(ann.post("q", {"body": 1}), 201)
    assert forbidden(bob.post("q", {"body": 1}))
    assert forbidden(ann.post("other", {"body": 1}))
    assert forbidden(as_user(governed.api(), "a").post("q", {"body": 1}))


@pytest.mark.parametrize(
    ("roles", "rights", "allowed"),
    [
        (("sharer", "writer"), ["post"], True),
        (("sharer",), ["post"], False),
        (("writer",), ["post"], False),
        (("sharer",), ["read"], False),
        (("sharer", "staff"), ["read"], True),
        (("sharer", "staff", "writer", "admin"), ["claim"], False),
    ],
)
def test_nobody_grants_what_they_may_not_do_or_share(
    roles: tuple[str, ...], rights: list[str], allowed: bool, governed: Governed
) -> None:
    api = governed.api(*roles)
    grants = [{"project": "x", "may": rights}]
    assert forbidden(api.create("q", {"_grants": grants})) is not allowed
    api.create("p")
    patched = api.patch("p", [{"op": "add", "path": "/metadata/_grants", "value": grants}])
    assert forbidden(patched) is not allowed
    assert expect(api.show("p"), 200).get("_grants", []) == (grants if allowed else [])


def test_others_may_change_the_rest_and_take_grants_away(governed: Governed) -> None:
    boss, member = governed.api("sharer", "writer"), governed.api("member")
    member = member.but(project=boss.project)
    one, two = {"project": "x", "may": ["post"]}, {"project": "y", "may": ["post"]}
    grant(boss, "q", one, two)
    expect(member.patch("q", [{"op": "add", "path": "/metadata/color", "value": "red"}]), 200)
    only = [{"op": "replace", "path": "/metadata/_grants", "value": [two]}]
    assert expect(member.patch("q", only), 200)["_grants"] == [two]
    back = [{"op": "replace", "path": "/metadata/_grants", "value": [one, two]}]
    assert forbidden(member.patch("q", back))


def test_a_context_that_was_granted_is_for_nothing_else() -> None:
    """Whatever a transport does with it."""
    key = QueueKey("queue", "p", "q")
    ctx = Context("p", "c", frozenset({"admin"}), grant=Granted("messages:create", key, "x"))
    permit(ctx, "messages:create", key)
    for action, other in (
        ("messages:get", key),
        ("messages:create", key._replace(name="r")),
        ("messages:create", key._replace(project="x")),
        ("messages:create", key._replace(kind="topic")),
        ("messages:create", None),
        ("queues:get_all", None),
    ):
        with pytest.raises(Forbidden):
            permit(ctx, action, other)


def test_metadata_that_is_older_than_the_rules_grants_nothing() -> None:
    async def stored(key: QueueKey) -> dict[str, Any]:
        return {"_grants": [{"project": "x", "may": ["post"]}, "anybody"]}

    entered = Grants(stored).enter(
        Context("x", "c", frozenset()), "messages:create", QueueKey("queue", "x", "q"), "p"
    )
    with pytest.raises(Forbidden):
        asyncio.run(entered)


def test_roles_of_another_project_do_not_come_along() -> None:
    async def stored(key: QueueKey) -> dict[str, Any]:
        return {"_grants": [{"project": "x", "may": ["post"]}]}

    caller = Caller("x", frozenset({"admin"}), "key", "ann")
    ctx = Context("x", "c", caller.roles, caller.user, "", caller)
    key = QueueKey("queue", "x", "q")
    entered = asyncio.run(Grants(stored).enter(ctx, "messages:create", key, "p"))
    assert (entered.project, entered.roles, entered.user) == ("p", frozenset(), "ann")
    assert entered.grant == ("messages:create", key._replace(project="p"), "x")


# -- their form ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "grants",
    [
        {},
        "x",
        0,
        False,
        [1],
        [{}],
        [{"project": "x"}],
        [{"may": ["post"]}],
        [{"project": "x", "may": []}],
        [{"project": "x", "may": "post"}],
        [{"project": "x", "may": ["write"]}],
        [{"project": "x", "may": ["post"], "until": 1}],
        [{"project": "", "may": ["post"]}],
        [{"project": None, "may": ["post"]}],
        [{"user": 1, "may": ["post"]}],
        [{"role": "r" * 257, "may": ["post"]}],
        [{"project": "x", "may": ["post"]}] * 101,
    ],
)
def test_grants_of_another_form_are_refused(grants: Any, api: Api) -> None:
    expect(api.create("q", {"_grants": grants}), 400, "Invalid API request")
    api.create("p")
    patch = [{"op": "add", "path": "/metadata/_grants", "value": grants}]
    expect(api.patch("p", patch), 400, "Invalid request body")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["may", "project", "user", "role", "x"]), inner, max_size=4
        )
        | st.sampled_from([*RIGHTS])
    ),
    max_leaves=8,
)


@given(JSON)
def test_whatever_is_sent_is_refused_or_grants_to_somebody(grants: Any) -> None:
    try:
        found = read({"_grants": grants})
    except Invalid:
        return
    for one in found:
        nobody = Context("nobody", "c", frozenset(), "nobody")
        assert not one.covers(nobody, "messages:create", "owner") or one.project == "nobody"


def test_grants_are_shown_where_there_are_any(api: Api) -> None:
    grants = [{"project": "x", "role": "r", "user": "u", "may": ["post", "claim", "read"]}] * 100
    expect(api.create("q", {"_grants": grants}), 201)
    assert expect(api.show("q"), 200) == {**QUEUES.defaults, "_grants": grants}
    expect(api.create("p", {"_grants": None}), 201)
    assert expect(api.show("p"), 200)["_grants"] is None
