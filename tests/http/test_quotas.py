"""How much a project may have: queues, messages, bytes, subscriptions."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from tests.live import TOPICS, Api, LiveServer, eventually, expect
from tests.pooling import Admin
from tests.quotas import command, refused

QUEUES, MESSAGES, BYTES, SUBSCRIPTIONS = 4, 12, 1000, 3


@pytest.fixture
def bounded(shared_server: Callable[..., LiveServer]) -> Api:
    """A client of a server where every project has small quotas; messages and claims may be short."""
    return shared_server(
        quota_queues=QUEUES,
        quota_messages=MESSAGES,
        quota_bytes=BYTES,
        quota_subscriptions=SUBSCRIPTIONS,
        subscriber_allow=("127.0.0.0/8",),
        min_message_ttl=1,
        min_claim_ttl=1,
        min_claim_grace=0,
    ).api()


def test_queues_and_topics_share_a_quota(bounded: Api) -> None:
    for name in "abc":
        expect(bounded.create(name), 201)
    topics = bounded.but(kind=TOPICS)
    expect(topics.create("a"), 201)
    assert refused(topics.create("b")) == (
        "The project may have 4 queues. It has 4, and this would be 1 more."
    )
    refused(bounded.post("d", {"body": 1}))
    expect(bounded.create("a"), 204)
    expect(bounded.post("a", {"body": 1}), 201)
    expect(bounded.drop("b"), 204)
    expect(topics.create("b"), 201)
    refused(bounded.create("b"))
    assert bounded.names() == ["a", "c"]
    expect(bounded.stranger().create("a"), 201)


def test_a_project_may_have_so_many_messages(bounded: Api) -> None:
    bounded.post_bodies("a", *range(8))
    assert refused(bounded.post("b", *({"body": n} for n in range(5)))) == (
        "The project may have 12 messages. It has 8, and this would be 5 more."
    )
    assert bounded.stats("a")["total"] == 8
    assert bounded.list_messages("b").json()["messages"] == []
    bounded.post_bodies("b", *range(3))
    ids = bounded.post_bodies("a", "the last")
    refused(bounded.post("a", {"body": 1}))
    expect(bounded.delete_message("a", ids[0]), 204)
    bounded.post_bodies("b", 1)
    refused(bounded.post("b", {"body": 1}))
    expect(bounded.purge("a"), 204)
    bounded.post_bodies("a", *range(8))
    refused(bounded.post("a", {"body": 1}))
    expect(bounded.drop("b"), 204)
    bounded.post_bodies("a", *range(4))
    bounded.stranger().post_bodies("a", *range(12))


def test_messages_that_expire_make_room(bounded: Api) -> None:
    bounded.post_bodies("a", *range(6), ttl=1)
    bounded.post_bodies("a", *range(6), delay=100)
    refused(bounded.post("a", {"body": 1}))
    eventually(lambda: bounded.post("a", {"body": 1}).status_code == 201)


def test_claimed_and_delayed_messages_count_popped_ones_do_not(bounded: Api) -> None:
    bounded.post_bodies("a", *range(6))
    bounded.post_bodies("a", *range(6), delay=100)
    bounded.claimed("a", limit=3)
    refused(bounded.post("a", {"body": 1}))
    assert len(bounded.popped("a", 3)) == 3
    bounded.post_bodies("a", *range(3))
    refused(bounded.post("a", {"body": 1}))


def test_a_project_may_have_so_many_bytes(bounded: Api) -> None:
    ids = bounded.post_bodies("a", "x" * 298, "y" * 298)  # with two quotation marks each
    bounded.post_bodies("b", "z" * 198)
    assert refused(bounded.post("b", {"body": "x" * 199})) == (
        "The project may have 1000 bytes of messages. It has 800, and this would be 201 more."
    )
    bounded.post_bodies("b", "z" * 198)
    refused(bounded.post("b", {"body": 1}))
    expect(bounded.delete_message("a", ids[0]), 204)
    refused(bounded.post("b", {"body": "x" * 299}))
    bounded.post_bodies("b", "x" * 298)
    refused(bounded.post("b", {"body": 1}))


def test_a_post_that_can_never_fit_is_refused(bounded: Api) -> None:
    refused(bounded.post("a", {"body": "x" * 1000}))
    refused(bounded.post("a", *({"body": n} for n in range(13))))
    bounded.post_bodies("a", *range(12))


def test_a_project_may_have_so_many_subscriptions(bounded: Api) -> None:
    def subscribe(queue: str, number: int) -> int:
        document = {"subscriber": f"http://127.0.0.1:9/{number}", "ttl": 600}
        path = bounded.path(queue, "subscriptions")
        answer = bounded.request("POST", path, json=document)
        if answer.status_code == 403:
            assert "may have 3 subscriptions" in refused(answer)
        return answer.status_code

    assert [subscribe("a", 1), subscribe("a", 2), subscribe("b", 1)] == [201, 201, 201]
    assert subscribe("b", 2) == 403
    assert subscribe("a", 1) == 201  # it is there
    id_ = bounded.get(bounded.path("a", "subscriptions")).json()["subscriptions"][0]["id"]
    expect(bounded.delete(bounded.path("a", "subscriptions", id_)), 204)
    assert [subscribe("b", 2), subscribe("a", 1)] == [201, 403]


def test_many_posts_at_once_fill_it_exactly(bounded: Api) -> None:
    for name in "abcd":
        expect(bounded.create(name), 201)

    def post(n: int) -> int:
        return bounded.post("abcd"[n % 4], {"body": n}).status_code

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(post, range(40)))
    assert (answers.count(201), answers.count(403)) == (MESSAGES, 40 - MESSAGES)
    assert sum(bounded.stats(name)["total"] for name in "abcd") == MESSAGES


def test_dead_letters_wait_where_there_may_be_no_queue_for_them(bounded: Api) -> None:
    metadata = {"_dead_letter_queue": "dead", "_max_claim_count": 1}
    expect(bounded.create("a", metadata), 201)
    for name in "bcd":
        expect(bounded.create(name), 201)
    bounded.post_bodies("a", "poison", ttl=600)
    claim = bounded.claimed("a")
    expect(bounded.delete(bounded.path("a", "claims", claim.claim_id)), 204)
    assert bounded.claim("a").status_code == 204
    assert bounded.stats("a")["total"] == 1
    expect(bounded.drop("d"), 204)
    assert bounded.claim("a").status_code == 204
    assert bounded.listed("dead") == ["poison"]


def test_a_live_change_counts_for_one_project(bounded: Api) -> None:
    server, other = bounded.server, bounded.stranger()
    bounded.post_bodies("a", *range(MESSAGES))
    refused(bounded.post("a", {"body": 1}))
    command(server, "set", bounded.project, "--messages", "14", "--bytes", "none")
    eventually(lambda: bounded.post("a", {"body": "x" * 2000}).status_code == 201)
    bounded.post_bodies("a", 1)
    assert "may have 14 messages" in refused(bounded.post("a", {"body": 1}))
    other.post_bodies("a", *range(MESSAGES))
    refused(other.post("a", {"body": 1}))
    command(server, "set", bounded.project, "--messages", "3")
    eventually(lambda: "may have 3 messages" in refused(bounded.post("a", {"body": 1})))
    assert len(bounded.popped("a", 14)) == 14
    bounded.post_bodies("a", *range(3))
    refused(bounded.post("a", {"body": 1}))
    command(server, "unset", bounded.project)
    eventually(lambda: bounded.post("a", {"body": 1}).status_code == 201)


def test_what_is_in_force_is_shown(bounded: Api) -> None:
    server, project = bounded.server, f"ünïcode {uuid.uuid4().hex}"
    command(server, "set", project, "--queues", "7", "--requests", "100", "--messages", "none")
    assert command(server, "show", project).split("\n")[1].split()[-5:] == [
        "7", "none", "1000", "3", "100",
    ]  # fmt: skip
    lines = command(server, "show").split("\n")
    assert lines[0].split() == [
        "PROJECT",
        "QUEUES",
        "MESSAGES",
        "BYTES",
        "SUBSCRIPTIONS",
        "REQUESTS",
    ]
    assert lines[1].split() == ["*", "4", "12", "1000", "3", "none"]
    assert any(line.startswith(project) for line in lines)
    command(server, "set", project, "--queues", "default", "--requests", "default")
    assert '"messages": 0' in command(server, "show", project, "--json")
    command(server, "set", project, "--messages", "default")
    assert project not in command(server, "show")


@pytest.mark.parametrize(
    "arguments",
    [
        ("set", "p"),
        ("set", "p", "--queues", "many"),
        ("set", "p", "--queues", "-1"),
        ("set", "p", "--queues", "1" * 30),
        ("set", " p", "--queues", "1"),
        ("set",),
    ],
)
def test_what_makes_no_sense_is_refused_by_the_command(
    arguments: tuple[str, ...], bounded: Api
) -> None:
    command(bounded.server, *arguments, status=2)


# -- over several stores, and on several servers ------------------------------------------------------


def fill(apis: Sequence[Api], queues: Sequence[str], posts: int) -> Counter[int]:
    """Post everywhere at once: how often there was which answer."""

    def post(n: int) -> int:
        return apis[n % len(apis)].post(queues[n % len(queues)], {"body": n}).status_code

    with ThreadPoolExecutor(12) as threads:
        return Counter(threads.map(post, range(posts)))


def posted(api: Api, queue: str) -> bool:
    return api.post(queue, {"body": 1}).status_code == 201


def total(api: Api, queues: Sequence[str]) -> int:
    return sum(int(api.stats(name)["total"]) for name in queues)


def test_a_quota_holds_over_all_pools_and_while_they_are_emptied(
    shared_server: Callable[..., LiveServer],
) -> None:
    server = shared_server(quota_messages=50, quota_bytes=100_000)
    with Admin(server) as admin:
        admin.add("one", "two")
        api, names = admin.user, [f"q{n}" for n in range(6)]
        assert fill([api], names, 60) == {201: 50, 403: 10}
        assert total(api, names) == 50
        # Dead letters and queues on their way are neither counted twice nor forgotten.
        with ThreadPoolExecutor(2) as threads:
            drained = threads.submit(admin.drain, "one")
            answers = fill([api], names, 60)
            assert drained.result().status_code == 200
        assert set(answers) <= {403, 503}, answers
        assert total(api, names) == 50
        popped = sum(len(api.popped(name, 2)) for name in names)
        assert eventually(lambda: fill([api], names, popped + 5)[201] or None) == popped
        assert total(api, names) == 50
        for name in names:
            expect(api.drop(name), 204)
        eventually(lambda: not admin.drain("one").json().get("queues_left"))


@pytest.mark.only("postgresql", "redis", "redis-cluster")
def test_a_quota_holds_on_several_servers(private_server: Callable[..., LiveServer]) -> None:
    settings: dict[str, int] = {"quota_messages": 40, "quota_queues": 5, "quota_bytes": 10_000}
    servers = [private_server(**settings) for _ in range(2)]
    here = servers[0].api()
    apis = [here, servers[1].api(here.project)]
    names = ["a", "b", "c"]
    with ThreadPoolExecutor(8) as threads:
        made = Counter(threads.map(lambda n: apis[n % 2].create(f"q{n}").status_code, range(12)))
    assert made == {201: 5, 403: 7}
    for name in here.names("?limit=20"):
        expect(here.drop(name), 204)
    answers = fill(apis, names, 60)
    while answers[503]:  # told to come again, as the other one was about to use what was left
        answers += fill(apis, names, answers.pop(503))
    assert answers == {201: 40, 403: 20}
    assert total(here, names) == 40
    for n in range(6):
        assert len(apis[n % 2].popped("a", 1)) == 1
        poster = apis[(n + 1) % 2 if n < 4 else n % 2]
        eventually(partial(posted, poster, "b"))
        refused(apis[n % 2].post("b", {"body": 1}))
    assert total(here, names) == 40
    command(servers[0], "set", here.project, "--messages", "42")
    for api in apis:
        eventually(partial(posted, api, "c"))
    for api in apis:
        assert "may have 42 messages" in refused(api.post("c", {"body": 1}))
