"""A run with thousands of deliveries pending, and a server that dies in the midst of everything.

Receivers are slow at first, some fail in every way there is, some refuse, and the mail server takes
nobody. The server is killed while it fans out, retries, gives up, replays, and drains fast. In the
end all are fine, and nothing may be missing.
"""

from __future__ import annotations

import asyncio
import email
import email.policy
import json
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.harness.checker import check
from tests.chaos.harness.client import Client
from tests.chaos.harness.generator import BAD_TTL, LONG_TTL, Cast, Profile
from tests.chaos.harness.history import HEARD, OK, History, Op, Run, read_body, read_ops
from tests.chaos.harness.nemesis import NEMESES, Nemesis
from tests.chaos.harness.play import TELLING, drive, nodes_on, strike, subscribe
from tests.chaos.harness.receiver import AWKWARD, FINE, Receiver
from tests.chaos.harness.report import Verdict, judge, keep
from tests.chaos.harness.stage import Plan, Stage
from tests.notify.smtp import HOST, Fault, Received, SmtpServer

PROFILE = Profile(projects=2, queues=("feed",), subscribers=5)
BATCH = 20  # messages a post
LETTERS = "project-0/letters"  # a queue with one subscriber, by mail
MAILS = 100
SLOW = ("slow:0.8",)
ROLES = {".0": SLOW, ".1": SLOW, ".2": AWKWARD, ".3": SLOW, ".4": ("500",)}
"""Moods at first, by the end of the endpoint's name. Those of `.3` refuse later."""
LEAST = 100  # operations; it is the deliveries that are many here
GIVEN_UP = 100  # at least, before they are replayed
MEMORY_MIB = 300  # that the server may take


@dataclass(frozen=True)
class Wave:
    """How much waits, and how often the server dies in each part of the run."""

    deliveries: int = 10_000
    strikes: int = 1


class _Mailbox(SmtpServer):
    """A mail server that writes down what it was told."""

    def __init__(self, run: int) -> None:
        super().__init__()
        self.heard: list[Op] = []
        self._run = run

    def arrived(self, mail: Received) -> None:
        super().arrived(mail)
        (recipient,) = mail.recipients
        op = Op("hear", "mailbox", to=recipient.partition("@")[0], out=OK, status=250)
        op.t0 = op.t1 = time.monotonic()
        try:
            text = email.message_from_bytes(mail.content, policy=email.policy.default).get_content()
            told = json.loads(text)
            op.p, op.n = read_body(self._run, told["body"])
            op.q = told["body"]["q"]
        except (ValueError, KeyError, TypeError) as error:
            op.note = f"not readable: {error!r}"
        self.heard.append(op)


class _SubscriptionLostError(Exception):
    """There is no point in going on."""


def play_pending(plan: Plan, wave: Wave, folder: Path) -> Verdict:
    """Everything is left in `folder`, as `play` does."""
    folder.mkdir(parents=True, exist_ok=True)
    nemesis = NEMESES[plan.nemesis]()
    cast = Cast(PROFILE, plan.seed)
    cast.endpoints["letters"] = LETTERS
    cast.letters.add("letters")
    run = Run(seed=plan.seed, profile="pending", nemesis=plan.nemesis, deadline=plan.deadline)
    mailbox = _Mailbox(plan.seed)
    with mailbox, nemesis.store(folder, plan) as place, History(folder, run) as history:
        run.settings = dict(place.settings) | dict(nemesis.settings) | TELLING
        run.settings |= _mail(mailbox) | plan.settings
        with nodes_on(place, folder, plan, run.settings) as nodes:
            stage = Stage(plan, nodes, place, history)
            asyncio.run(_Script(stage, nemesis, cast, wave, mailbox).play())
            for node in nodes:
                if node.stop() != 0:
                    stage.complaints.append(f"the last stop of {node.name} was not clean")
        stage.complaints += nemesis.inspect(place)
        for op in mailbox.heard:
            history.add(op)
    ops = history.ops + read_ops(folder / HEARD)
    verdict = judge(run, ops, check(run, ops), stage.strikes, stage.complaints, least=LEAST)
    verdict.phases = stage.phases
    if verdict.notifications["told"] < wave.deliveries:
        verdict.invalid.append(f"fewer than {wave.deliveries} were told")
    keep(folder, verdict)
    return verdict


def _mail(mailbox: SmtpServer) -> dict[str, str]:
    return {
        "NUSKU_SMTP_HOST": HOST,
        "NUSKU_SMTP_PORT": str(mailbox.port),
        "NUSKU_SMTP_SECURITY": "none",
        "NUSKU_SMTP_FROM": "nusku@example.com",
    }


class _Script:
    """What happens, one part after the other."""

    def __init__(
        self, stage: Stage, nemesis: Nemesis, cast: Cast, wave: Wave, mailbox: _Mailbox
    ) -> None:
        self._stage = stage
        self._nemesis = nemesis
        self._cast = cast
        self._wave = wave
        self._mailbox = mailbox
        self._rng = random.Random(f"{stage.plan.seed}/pending")
        self._client = Client(stage.way("admin"), "admin", stage.plan.seed, stage.plan.deadline)
        self._posted = 0

    async def play(self) -> None:
        stage = self._stage
        self._mailbox.faults["CONNECT"] = Fault("421 come back later")
        await self._nemesis.begin(stage)
        async with Receiver(stage.history.folder, stage.plan.seed) as receiver:
            try:
                await self._play(receiver)
            except _SubscriptionLostError as lost:
                stage.complaints.append(str(lost))
        await self._nemesis.end(stage)
        self._client.close()

    async def _play(self, receiver: Receiver) -> None:
        stage = self._stage
        await subscribe(stage, self._cast, receiver)
        await receiver.moods(FINE, **self._moods(ROLES))
        await self._struck("fan-out", self._post_all(), lambda: self._rng.uniform(0.2, 1.0))
        stage.phase("posts")
        await self._pile_up()
        stage.phase("pile")
        await self._struck("retries", asyncio.sleep(1.0), lambda: self._rng.uniform(0.2, 1.0))
        self._mailbox.faults.clear()
        await receiver.moods(FINE, **self._moods(ROLES | {".3": ("400",)}))
        await self._struck("giving up", asyncio.sleep(0.5), lambda: self._rng.uniform(0.1, 0.6))
        await self._given_up()
        stage.phase("bad receivers")
        await receiver.moods(FINE)
        await self._struck("replay", self._replay(), lambda: self._rng.uniform(0.0, 0.1))
        await self._struck("draining", asyncio.sleep(1.0), lambda: self._rng.uniform(0.2, 1.0))
        stage.phase("good receivers")
        if stage.server.memory() > MEMORY_MIB << 20:
            stage.complaints.append(f"the server took {stage.server.memory() >> 20} MiB")
        looks = self._cast.last_looks(replay_all=True)
        await asyncio.gather(*(drive(stage, who, look, None) for who, look in looks.items()))
        stage.phase("the rest")

    def _moods(self, roles: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        return {
            to: moods
            for to in self._cast.endpoints
            for end, moods in roles.items()
            if to.endswith(end)
        }

    async def _struck(
        self, what: str, work: Coroutine[Any, Any, None], pause: Callable[[], float]
    ) -> None:
        """Do the work, and let the nemesis strike meanwhile, `strikes` times."""
        task = asyncio.create_task(work)
        for _ in range(self._wave.strikes):
            await asyncio.sleep(pause())
            await strike(self._stage, self._nemesis, what)
        await task

    async def _post_all(self) -> None:
        messages = self._wave.deliveries // PROFILE.subscribers
        feeds = [self._post(q, messages // len(self._cast.work)) for q in self._cast.work]
        await asyncio.gather(*feeds, self._post(LETTERS, MAILS))

    async def _post(self, q: str, count: int) -> None:
        """Post until so many messages are acknowledged. A refused post is in between."""
        way = self._stage.way(f"producer {q}")
        client = Client(way, f"producer {q}", self._stage.plan.seed)
        done = number = epoch = 0
        while done < count:
            p, ttl = f"{q}.{self._posted}.{epoch}", LONG_TTL
            if self._rng.random() < 0.03:
                p, ttl = f"{p}.refused", BAD_TTL
            op = await client.perform(Op("post", q=q, p=p, n=number, size=BATCH, ttl=ttl))
            self._stage.history.add(op)
            number += BATCH
            if op.out == OK:
                done += BATCH
            else:
                epoch, number = epoch + 1, 0
                if not op.status:
                    way.leave()
                await asyncio.sleep(0.02 if op.status else 0.1)
        client.close()

    async def _pile_up(self) -> None:
        """Post what is missing until so many are pending at once."""
        pending = 0
        for self._posted in range(1, 100):
            pending = await self._ask(0)
            if pending >= self._wave.deliveries:
                return
            missing = self._wave.deliveries - pending
            q = self._rng.choice(self._cast.work)
            await self._post(q, max(missing // PROFILE.subscribers, BATCH))
            await asyncio.sleep(0.3)
        self._stage.complaints.append(f"only {pending} deliveries were pending")

    async def _given_up(self) -> None:
        """Wait until some are given up."""
        for _ in range(100):
            if await self._ask(1) > GIVEN_UP:
                return
            await asyncio.sleep(0.2)
        self._stage.complaints.append("hardly anything was given up")

    async def _ask(self, which: int) -> int:
        """The sum over all subscriptions of one of the counts of `waiting`."""
        found = 0
        for to in self._cast.endpoints:
            op = self._of("waiting", to)
            self._stage.history.add(await self._client.perform(op))
            if op.status == 404:
                raise _SubscriptionLostError(f"the subscription of {to} is gone")
            found += op.counts[which]
        return found

    async def _replay(self) -> None:
        """Ask for all that was given up, until each subscription has answered."""
        left = sorted(self._cast.endpoints)
        self._rng.shuffle(left)
        while left:
            op = self._of("replay", left[-1])
            self._stage.history.add(await self._client.perform(op))
            if op.out == OK:
                left.pop()
            else:
                await asyncio.sleep(0.05)

    def _of(self, f: str, to: str) -> Op:
        """An operation on the subscription of an endpoint."""
        return Op(f, q=self._cast.endpoints[to], to=to, id=self._cast.board.subscriptions[to])
