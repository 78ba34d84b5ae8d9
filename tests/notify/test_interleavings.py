"""What comes between two steps of something else, and what somebody might make of it.

Each test has a rig of its own, see `test_faults.py`: there time is a stub, and a sleep takes none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from structlog.testing import capture_logs

from nusku.broker.confirmations import ASKED_AN_HOUR
from nusku.broker.deliveries import Parcel, Recipient, delivery_key, draft, failed_key
from nusku.broker.deliveries import Progress as DeliveryProgress
from nusku.broker.fanout import BYTES_AT_ONCE, BYTES_IN_ONE_GO
from nusku.broker.subscriptions import Trusts
from nusku.errors import Invalid, NotFound, Unavailable
from nusku.model import Context, Draft, QueueKey
from nusku.notify import Outcome
from nusku.notify.worker import AHEAD_MAX, EACH, LOOK_S, SURVEY_S
from tests.notify.test_faults import (
    ANN,
    DELIVERED,
    QUEUE,
    Go,
    Rig,
    refuses,
    run,
    takes,
    timeless,
    url,
)

pytestmark = pytest.mark.embedded

NOBODY = Context("p", "c", frozenset())
BOB = Context("p", "c", frozenset({"member"}), "bob", "the token of bob")


# -- stopping --------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["notice", "timeout"])
def test_a_stop_ends_whatever_comes_in_the_same_tick(tmp_path: Path, what: str) -> None:
    """A notice, or the end of the wait for one."""

    async def test() -> None:
        rig = await Rig(tmp_path).start()
        await asyncio.sleep(LOOK_S if what == "timeout" else 1)
        if what == "notice":
            rig.broker.notices.on_notice()
        await asyncio.wait_for(rig.stop(), 60)

    run(test())


# -- ends of subscriptions -------------------------------------------------------------------------


async def sweep(rig: Rig) -> None:
    await rig.notifier._sweep_once()


def test_who_has_ended_is_told_of_what_was_posted_before(tmp_path: Path) -> None:
    """The post is acknowledged, so it does not matter when it is spread."""

    async def test() -> None:
        rig = await Rig(tmp_path).start(sending=False)
        over = await rig.subscribe("over", ttl=1)
        await asyncio.sleep(1.5)
        one = await rig.subscribe("one", ttl=2)
        await rig.post("x")
        await asyncio.sleep(3)
        await sweep(rig)
        assert await rig.subscriptions.record("p", over) is None
        assert await rig.subscriptions.record("p", one) is not None
        rig.notifier.start()
        assert await rig.settled(one, within_s=LOOK_S)
        assert [sent.document["body"] for sent in rig.sender.sent] == ["x"]
        await sweep(rig)
        assert await rig.subscriptions.record("p", one) is None

    run(test())


def test_what_was_given_up_can_be_seen_and_replayed_after_the_end(tmp_path: Path) -> None:
    async def test() -> None:
        rig = await Rig(tmp_path, refuses).start()
        one = await rig.subscribe("one", ttl=2)
        await rig.post("x", "y")
        await asyncio.sleep(3)
        await sweep(rig)
        with pytest.raises(NotFound):
            await rig.subscriptions.get(ANN, QUEUE, one)
        assert await rig.subscriptions.page(ANN, QUEUE, "", 10) == []
        status = await rig.subscriptions.status(ANN, QUEUE, one)
        assert (status.pending, status.failed, len(status.attempts)) == (0, 2, 2)
        failed = await rig.subscriptions.failed(ANN, QUEUE, one, "", 10)
        assert [msgspec.json.decode(entry.body)["body"] for entry in failed] == ["x", "y"]
        for action in (rig.subscriptions.pause, rig.subscriptions.ping):
            with pytest.raises(NotFound):
                await action(ANN, QUEUE, one)
        rig.sender.behave = takes
        assert await rig.subscriptions.replay(ANN, QUEUE, one, [failed[1].id]) == 1
        assert await rig.settled(one, within_s=1)
        assert await rig.given_up(one) == ["x"]
        assert await rig.subscriptions.replay(ANN, QUEUE, one, None) == 1
        assert await rig.settled(one, within_s=1)
        assert [sent.document["body"] for sent in rig.sender.sent[2:]] == ["y", "x"]
        await sweep(rig)
        with pytest.raises(NotFound):
            await rig.subscriptions.status(ANN, QUEUE, one)

    run(test())


def test_a_paused_subscription_that_ends_gives_up_what_waits(tmp_path: Path) -> None:
    """Nobody can resume it. It can be deleted all the same, and so can what it has given up."""

    async def test() -> None:
        rig = await Rig(tmp_path).start()
        one = await rig.subscribe("one", ttl=2)
        await rig.subscriptions.pause(ANN, QUEUE, one)
        await rig.post(*range(5))
        await asyncio.sleep(3)
        with pytest.raises(NotFound):
            await rig.subscriptions.resume(ANN, QUEUE, one)
        assert await rig.pending(one) == 5
        await sweep(rig)
        status = await rig.subscriptions.status(ANN, QUEUE, one)
        assert (status.state, status.pending, status.failed) == ("paused", 0, 5)
        assert await rig.given_up(one) == list(range(5))
        assert rig.sender.sent == []
        await rig.subscriptions.delete(ANN, QUEUE, one)
        assert await rig.subscriptions.record("p", one) is None
        assert await rig.given_up(one) == []

    run(test())


def test_purging_takes_those_that_have_ended_as_well(tmp_path: Path) -> None:
    async def test() -> None:
        rig = await Rig(tmp_path, refuses).start()
        one = await rig.subscribe("one", ttl=2)
        await rig.post("x")
        await asyncio.sleep(3)
        await rig.subscriptions.clear(QUEUE)
        assert await rig.subscriptions.record("p", one) is None
        assert await rig.given_up(one) == []

    run(test())


# -- queues that are deleted -----------------------------------------------------------------------


async def after(ticks: int, action: Awaitable[Any]) -> Any:
    for _ in range(ticks):
        await asyncio.sleep(0)
    return await action


def test_a_get_beside_a_delete_remembers_nothing(tmp_path: Path) -> None:
    """Whichever of the two is ahead, and however far."""

    async def test() -> None:
        rig = await Rig(tmp_path).start()
        for n in range(20):
            key = QUEUE._replace(name=f"q{n}")
            await rig.queues.create(ANN, key, {"x": "old"})
            await asyncio.gather(
                after(max(n - 10, 0), rig.queues.get(ANN, key)),
                after(max(10 - n, 0), rig.queues.delete(ANN, key)),
            )
            assert "x" not in await rig.queues.get(ANN, key)
            await rig.queues.create(ANN, key, {"x": "new"})
            assert (await rig.queues.get(ANN, key))["x"] == "new"

    run(test())


@pytest.mark.parametrize("step", ["get", "update", "admit", "page"])
def test_a_queue_may_be_deleted_while_somebody_subscribes(tmp_path: Path, step: str) -> None:
    """What is posted to it afterwards is in a queue that is listed, and there after a restart."""

    async def test() -> None:
        rig = await Rig(tmp_path).start(sending=False)
        await rig.queues.create(ANN, QUEUE, {})
        deleting: list[asyncio.Future[None]] = []

        async def meddle(name: str, args: tuple[Any, ...], go: Go) -> Any:
            if name == step and not deleting:
                deleting.append(asyncio.ensure_future(rig.queues.delete(ANN, QUEUE)))
                await asyncio.sleep(0.5)
            return await go()

        rig.meddle = meddle
        await rig.subscribe("one")
        await asyncio.gather(*deleting)
        await rig.post("x")
        assert await rig.queues.count(ANN, "queue") == len(deleting) == 1
        await rig.stop()
        await rig.start(sending=False)
        view = await rig.broker.messages.page(ANN, QUEUE, "", 10, echo=True)
        assert view is not None
        assert [message.body for message in view.messages] == [b'"x"']

    run(test())


# -- trusts ----------------------------------------------------------------------------------------


class StubTrusts:
    """Every user has made one trust."""

    async def create(
        self, token: str, user_id: str, project_id: str, roles: Sequence[str], expires_in_s: int
    ) -> str:
        return f"trust-of-{user_id}"

    async def check(self, trust_id: str, user_id: str, project_id: str) -> bool:
        return trust_id == f"trust-of-{user_id}"


def test_what_is_sent_under_a_trust_is_for_its_owner_to_say(tmp_path: Path) -> None:
    template = {"post_data": '{"delete": "everything"}'}
    elsewhere = f"trust+{url('elsewhere')}"
    changes: list[dict[str, Any]] = [
        {"options": template},
        {"options": {}},
        {"options": {**template, "trust_id": "trust-of-ann"}},
        {"subscriber": elsewhere},
        {"subscriber": elsewhere, "options": template},
    ]

    async def test() -> None:
        rig = await Rig(tmp_path, trusts=cast("Trusts", StubTrusts())).start()
        document: dict[str, Any] = {"subscriber": f"trust+{url('nova')}"}
        one = (await rig.subscriptions.create(ANN, QUEUE, document)).id
        before = await rig.subscriptions.get(ANN, QUEUE, one)
        assert before.options == {"trust_id": "trust-of-ann"}
        for who in (NOBODY, BOB):
            for change in changes:
                with pytest.raises(Invalid) as refused:
                    await rig.subscriptions.update(who, QUEUE, one, change)
                assert refused.value.status == 400
            stolen = {"subscriber": f"trust+{url('own')}", "options": before.options}
            with pytest.raises(Invalid):
                await rig.subscriptions.create(who, QUEUE, stolen)
        after_all = await rig.subscriptions.get(ANN, QUEUE, one)
        assert (after_all.subscriber, after_all.options) == (
            before.subscriber,
            before.options,
        )
        await rig.subscriptions.update(ANN, QUEUE, one, {"options": template})
        shown = await rig.subscriptions.get(ANN, QUEUE, one)
        assert shown.options == {**template, "trust_id": "trust-of-ann"}
        # Without a trust of ann's it may be changed by all of the project.
        own = {**template, "trust_id": "trust-of-bob"}
        await rig.subscriptions.update(BOB, QUEUE, one, {"options": own})
        assert (await rig.subscriptions.get(ANN, QUEUE, one)).options == own

    run(test())


# -- confirmations ---------------------------------------------------------------------------------


async def ask_again(rig: Rig) -> None:
    for _ in range(50):
        await rig.subscribe("one")
        await asyncio.sleep(0.1)


async def ask_anew(rig: Rig) -> None:
    for _ in range(50):
        one = await rig.subscribe("one")
        await asyncio.sleep(0.1)
        await rig.subscriptions.delete(ANN, QUEUE, one)


async def ask_elsewhere(rig: Rig) -> None:
    for n in range(50):
        await rig.subscribe("one", key=QUEUE._replace(name=f"q{n}"))


async def ask_by_patches(rig: Rig) -> None:
    one = await rig.subscribe("one")
    for n in range(50):
        for path in (f"other{n}", "one"):
            await rig.subscriptions.update(ANN, QUEUE, one, {"subscriber": url(path)})
            await asyncio.sleep(0.1)


async def ask_by_leaving(rig: Rig) -> None:
    one = await rig.subscribe("one")
    for _ in range(50):
        for confirmed in (True, False):
            await rig.subscriptions.confirm(ANN, QUEUE, one, confirmed)
        await asyncio.sleep(0.1)


async def ask_by_replays(rig: Rig) -> None:
    rig.sender.behave = refuses
    one = await rig.subscribe("one")
    for _ in range(50):
        await rig.settled(one)
        await rig.subscriptions.replay(ANN, QUEUE, one, None)


async def ask_others_in_its_place(rig: Rig) -> None:
    """What others were to be asked waits, and then it is they who are to be asked."""
    for n in range(3):
        key = QUEUE._replace(name=f"q{n}")
        one = await rig.subscribe(f"other{n}", key=key)
        await rig.subscriptions.pause(ANN, key, one)
        for _ in range(15):
            await rig.subscribe(f"other{n}", key=key)
            await asyncio.sleep(0.1)
        await rig.subscriptions.update(ANN, key, one, {"subscriber": url("one")})


@pytest.mark.parametrize(
    "ask",
    [
        ask_again,
        ask_anew,
        ask_elsewhere,
        ask_by_patches,
        ask_by_leaving,
        ask_by_replays,
        ask_others_in_its_place,
    ],
    ids=lambda ask: ask.__name__,
)
def test_nobody_is_asked_all_the_time(
    tmp_path: Path, ask: Callable[[Rig], Awaitable[None]]
) -> None:
    """Subscribers are named by strangers."""

    async def test() -> None:
        rig = await Rig(tmp_path, require_confirmation=True).start()
        await ask(rig)
        await asyncio.sleep(10)
        assert 0 < len(rig.sender.to(url("one"))) <= ASKED_AN_HOUR

    run(test())


def test_an_hour_later_questions_are_asked_again(tmp_path: Path) -> None:
    async def test() -> None:
        rig = await Rig(tmp_path, require_confirmation=True).start()
        for hour in (1, 2):
            for _ in range(ASKED_AN_HOUR + 10):
                await rig.subscribe("one")
                await asyncio.sleep(1)
            assert len(rig.sender.to(url("one"))) == ASKED_AN_HOUR * hour
            await asyncio.sleep(3600)

    run(test())


def test_who_has_not_agreed_cannot_leave(tmp_path: Path) -> None:
    async def test() -> None:
        rig = await Rig(tmp_path, require_confirmation=True).start()
        one = await rig.subscribe("one")
        for _ in range(5):
            await rig.subscriptions.confirm(ANN, QUEUE, one, False)
            await asyncio.sleep(0.1)
        kinds = [sent.document["Message_Type"] for sent in rig.sender.sent]
        assert kinds == ["SubscriptionConfirmation"]

    run(test())


def test_a_question_that_was_given_up_is_shown_without_its_signature(tmp_path: Path) -> None:
    """Or else whoever subscribes somebody could agree in their place."""

    async def test() -> None:
        rig = await Rig(tmp_path, refuses, require_confirmation=True).start()
        one = await rig.subscribe("one")
        assert await rig.settled(one)
        (entry,) = await rig.subscriptions.failed(ANN, QUEUE, one, "", 10)
        shown = msgspec.json.decode(entry.body)
        assert shown["Message_Type"] == "SubscriptionConfirmation"
        assert [name for name in shown if name.upper().startswith("URL-")] == []
        (sent,) = rig.sender.sent
        assert sent.document["URL-Signature"] not in entry.body.decode()
        # The subscriber is told all of it, also later.
        assert await rig.subscriptions.replay(ANN, QUEUE, one, None) == 1
        assert await rig.settled(one)
        assert rig.sender.sent[1].document == sent.document

    run(test())


# -- changes while something is under way ----------------------------------------------------------


@pytest.mark.parametrize("what", ["pause", "patch", "delete"])
@pytest.mark.parametrize("claim", range(1, 7))
def test_a_change_while_a_claim_is_made(tmp_path: Path, claim: int, what: str) -> None:
    before = 0

    async def slow(to: Recipient, parcel: Parcel) -> Outcome:
        await asyncio.sleep(0.02 if len(rig.sender.sent) < 8 else 0.3)
        return DELIVERED

    rig = Rig(tmp_path, slow)

    async def change(one: str) -> None:
        nonlocal before
        before = len(rig.sender.sent)
        match what:
            case "pause":
                await rig.subscriptions.pause(ANN, QUEUE, one)
            case "patch":
                await rig.subscriptions.update(ANN, QUEUE, one, {"subscriber": url("new")})
            case "delete":
                await rig.subscriptions.delete(ANN, QUEUE, one)

    async def test() -> None:
        await rig.start()
        one = await rig.subscribe("old")
        claims = 0

        async def meddle(name: str, args: tuple[Any, ...], go: Go) -> Any:
            nonlocal claims
            if name != "claim" or args[0].key != delivery_key("p", one):
                return await go()
            claims += 1
            got = await go()
            if claims == claim:
                await change(one)
                await asyncio.sleep(0.7)  # others look at the subscription meanwhile
            return got

        rig.meddle = meddle
        with capture_logs() as lines:
            await rig.post(*range(60))
            await asyncio.sleep(SURVEY_S)  # no claim has ended by itself by then
        assert claims >= claim
        assert [line for line in lines if line["log_level"] in {"error", "critical"}] == []
        assert rig.sender.broken_off == 0
        told = sorted(sent.document["body"] for sent in rig.sender.sent)
        assert len(set(told)) == len(told)
        assert len(rig.sender.to(url("old"))) <= before + EACH
        match what:
            case "pause":
                assert len(told) + await rig.pending(one) == 60
                await rig.subscriptions.resume(ANN, QUEUE, one)
                assert await rig.settled(one, within_s=60)
                assert len(rig.sender.sent) == 60
            case "patch":
                assert told == list(range(60))
            case "delete":
                assert await rig.pending(one) == 0
                assert await rig.given_up(one) == []

    run(test())


def test_a_late_410_does_not_pause_whoever_took_the_place(tmp_path: Path) -> None:
    async def gone(to: Recipient, parcel: Parcel) -> Outcome:
        if to.subscriber != url("old"):
            return DELIVERED
        await asyncio.sleep(0.5)
        return Outcome("refused", "status", 410, gone=True)

    async def test() -> None:
        rig = await Rig(tmp_path, gone).start()
        one = await rig.subscribe("old")
        await rig.post(1)
        await asyncio.sleep(0.2)
        await rig.subscriptions.update(ANN, QUEUE, one, {"subscriber": url("new")})
        await asyncio.sleep(1)
        assert [sent.to.subscriber for sent in rig.sender.sent] == [url("old")]
        await rig.post(2)
        assert await rig.settled(one, within_s=LOOK_S)
        status = await rig.subscriptions.status(ANN, QUEUE, one)
        assert (status.state, status.reason) == ("active", "")
        assert [sent.document["body"] for sent in rig.sender.to(url("new"))] == [2]

    run(test())


def test_what_was_claimed_for_a_fast_one_is_not_sent_twice_when_it_slows_down(
    tmp_path: Path,
) -> None:
    """Its claim ends meanwhile, and it is claimed anew."""

    async def tires(to: Recipient, parcel: Parcel) -> Outcome:
        if len(rig.sender.sent) > 200:
            await asyncio.sleep(1.9)
        return DELIVERED

    rig = Rig(tmp_path, tires, delivery_timeout=2)

    async def test() -> None:
        await rig.start()
        one = await rig.subscribe("one")
        most = 0

        async def meddle(name: str, args: tuple[Any, ...], go: Go) -> Any:
            nonlocal most
            if name == "claim":
                most = max(most, args[1])
            return await go()

        rig.meddle = meddle
        await rig.post(*range(400))
        assert await rig.settled(one)
        assert most == AHEAD_MAX
        assert rig.sender.twice == 0
        assert sorted(sent.document["body"] for sent in rig.sender.sent) == list(range(400))

    run(test())


# -- the fan-out -----------------------------------------------------------------------------------


def test_a_fan_out_beside_deletes(tmp_path: Path) -> None:
    async def test() -> None:
        rig = await Rig(tmp_path).start(sending=False)
        ids = [await rig.subscribe(f"{n}") for n in range(40)]
        await rig.post("x")

        async def delete() -> None:
            for one in ids[20:]:
                await rig.subscriptions.delete(ANN, QUEUE, one)

        spreading = asyncio.create_task(rig.broker.fanout.spread(10))
        await delete()
        with suppress(Unavailable):  # then it is done once more
            await spreading
        rig.notifier.start()
        assert await rig.settled(*ids, within_s=60)
        for n, one in enumerate(ids):
            assert n >= 20 or len(rig.sender.to(url(f"{n}"))) == 1
            assert await rig.given_up(one) == []

    run(test())


@pytest.mark.parametrize("drops", [1, 5, 1000])
def test_deliveries_are_added_however_often_their_queue_is_dropped(
    tmp_path: Path, drops: int
) -> None:
    """Or it is said that this has to wait, when it does not end."""

    async def test() -> None:
        rig = await Rig(tmp_path).start()
        one, key = await rig.subscribe("one"), delivery_key("p", "0" * 24)
        left = drops

        async def meddle(name: str, args: tuple[Any, ...], go: Go) -> Any:
            nonlocal left
            if name == "add" and left:
                left -= 1
                for dropped, _ in args[0]:
                    await rig.store.messages.drop(dropped)
            return await go()

        rig.meddle = meddle
        posts = {
            target: [draft(b'{"body": 1}', DeliveryProgress(f"{n}", 0))]
            for n, target in enumerate((key, delivery_key("p", one)))
        }
        if drops == 1000:
            with pytest.raises(Unavailable):
                await rig.broker.deliveries.add(posts)
            return
        await rig.broker.deliveries.add(posts)
        assert await rig.settled(one, within_s=1)
        assert len(rig.sender.to(url("one"))) == 1

    run(test())


def test_a_fan_out_adds_so_many_bytes_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        rig = await Rig(tmp_path).start(sending=False)
        ids = [await rig.subscribe(f"{n}") for n in range(20)]
        body = "x" * (BYTES_AT_ONCE // 8)
        await rig.post(body)
        await rig.post(1)
        sizes: list[int] = []

        deliveries = rig.broker.deliveries
        add = deliveries.add

        async def seen(posts: Mapping[QueueKey, Sequence[Draft]]) -> None:
            sizes.append(sum(len(one.body) for drafts in posts.values() for one in drafts))
            await add(posts)

        deliveries.add = seen  # type: ignore[method-assign]
        assert await rig.broker.fanout.spread(10) == (2, 40)
        assert len(sizes) == 3
        assert max(sizes) < BYTES_AT_ONCE + 2 * len(body)
        assert [await rig.pending(one) for one in ids] == [2] * 20

    run(test())


def test_a_fan_out_lets_others_run_between_its_notices(tmp_path: Path) -> None:
    async def test() -> None:
        rig = await Rig(tmp_path).start(sending=False)
        await rig.subscribe("one")
        for _ in range(8):
            await rig.post("x" * BYTES_IN_ONE_GO)
        ticks, between = 0, []

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        async def meddle(name: str, args: tuple[Any, ...], go: Go) -> Any:
            nonlocal ticks
            if name == "page":
                between.append(ticks)
            got = await go()
            ticks = 0
            return got

        ticking = asyncio.create_task(tick())
        rig.meddle = meddle
        assert await rig.broker.fanout.spread(10) == (8, 8)
        ticking.cancel()
        assert between[0] >= 7

    run(test())


# -- given up --------------------------------------------------------------------------------------


def test_a_replay_that_fails_half_way_sends_what_was_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nusku.broker.deliveries.MOVED_AT_ONCE", 20)

    async def test() -> None:
        rig = await Rig(tmp_path, refuses).start()
        one = await rig.subscribe("one")
        await rig.post(*range(50))
        assert await rig.settled(one)
        moves = 0

        async def meddle(name: str, args: tuple[Any, ...], go: Go) -> Any:
            nonlocal moves
            if name == "move" and args[0].key == failed_key("p", one):
                moves += 1
                if moves == 2:
                    raise Unavailable("out of order")
            return await go()

        rig.sender.behave = takes
        rig.sender.sent.clear()
        await asyncio.sleep(SURVEY_S - timeless().time() % SURVEY_S + 1)  # none comes now
        rig.meddle = meddle
        with pytest.raises(Unavailable):
            await rig.subscriptions.replay(ANN, QUEUE, one, None)
        assert await rig.settled(one, within_s=SURVEY_S / 2)
        assert sorted(sent.document["body"] for sent in rig.sender.sent) == list(range(20))
        assert await rig.subscriptions.replay(ANN, QUEUE, one, None) == 30
        assert await rig.settled(one, within_s=SURVEY_S / 2)
        assert len(rig.sender.sent) == 50

    run(test())


def test_a_replay_ends_though_all_of_it_is_given_up_again_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nusku.broker.deliveries.MOVED_AT_ONCE", 5)

    async def test() -> None:
        rig = await Rig(tmp_path, refuses).start()
        one = await rig.subscribe("one")
        await rig.post(*range(50))
        assert await rig.settled(one)
        rig.sender.sent.clear()
        moves = 0

        async def meddle(name: str, args: tuple[Any, ...], go: Go) -> Any:
            nonlocal moves
            got = await go()
            if name == "move" and args[0].key == failed_key("p", one):
                moves += 1
                assert moves <= 10
                rig.broker.deliveries.on_pending(delivery_key("p", one))
                await rig.settled(one)
            return got

        rig.meddle = meddle
        assert await rig.subscriptions.replay(ANN, QUEUE, one, None) == 50
        assert await rig.settled(one)
        assert len(rig.sender.sent) == 50

    run(test())


def test_two_subscribers_with_one_dead_letter_queue_leave_two_copies(tmp_path: Path) -> None:
    """And no more, though they are given up more than once."""

    async def test() -> None:
        rig = await Rig(tmp_path, refuses).start()
        ids = [await rig.subscribe(f"{n}", _dead_letter_queue="dead") for n in range(2)]
        await rig.post("x")
        dead = QUEUE._replace(name="dead")
        for _ in range(2):
            assert await rig.settled(*ids)
            view = await rig.broker.messages.page(ANN, dead, "", 10, echo=True)
            assert view is not None
            assert [message.body for message in view.messages] == [b'"x"'] * 2
            for one in ids:
                assert await rig.subscriptions.replay(ANN, QUEUE, one, None) == 1

    run(test())
