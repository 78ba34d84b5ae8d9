"""Plays one run: a server, a cast of clients and a nemesis; then calm, a drain, and the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import uvloop

from nusku.broker.notices import HELD_S
from nusku.notify.worker import LOOK_S
from tests.chaos.harness.checker import check
from tests.chaos.harness.client import Client
from tests.chaos.harness.forgotten import forgive
from tests.chaos.harness.generator import (
    IDLE,
    LONG_TTL,
    PROFILES,
    RETRY_POLICY,
    Cast,
    Script,
)
from tests.chaos.harness.history import HEARD, OK, History, Op, Run, read_ops
from tests.chaos.harness.nemesis import NEMESES, Nemesis
from tests.chaos.harness.places import Place
from tests.chaos.harness.receiver import AWKWARD, FINE, QUITTING, Receiver, secret
from tests.chaos.harness.report import Verdict, judge, keep, too_little
from tests.chaos.harness.servers import Server
from tests.chaos.harness.stage import NEVER, Plan, Stage

PATIENCE_S = 40.0  # with the end of a run
SURELY = 0.8  # of the share of unknown outcomes that is allowed
ENOUGH_S = 120.0  # until a run proves something
# Posts that a server was spreading when it died are nobody's until its claim ends, and are then found.
UNSPREAD_S = HELD_S + LOOK_S + 3.0
TELLING = {
    "NUSKU_SUBSCRIBER_ALLOW": "127.0.0.0/8",
    "NUSKU_DELIVERY_CONNECT_TIMEOUT": "1",
    "NUSKU_DELIVERY_TIMEOUT": "2",
}
"""Settings where there are receivers on loopback, some of which hang."""


def play(plan: Plan, folder: Path) -> Verdict:
    """Everything is left in `folder`: run.json, history.jsonl, server.log, verdict.json."""
    folder.mkdir(parents=True, exist_ok=True)
    nemesis = NEMESES[plan.nemesis]()
    cast = Cast(PROFILES[plan.profile], plan.seed)
    settings = dict(nemesis.settings) | (TELLING if cast.endpoints else {}) | plan.settings
    with nemesis.store(folder, plan) as place:
        nemesis.plant(plan, place)
        run = Run(
            seed=plan.seed,
            profile=plan.profile,
            nemesis=plan.nemesis,
            deadline=plan.deadline,
            store=plan.store,
            nodes=plan.nodes,
            reads_ahead=place.reads_ahead,
            apart=place.apart,
            dead_letters=cast.dead_letters,
            settings=dict(place.settings) | settings,
        )
        with History(folder, run) as history, nodes_on(place, folder, plan, run.settings) as nodes:
            stage = Stage(plan, nodes, place, history)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_play_heard(stage, nemesis, cast))
            for node in nodes:
                if node.stop() != 0:
                    stage.complaints.append(f"the last stop of {node.name} was not clean")
        stage.complaints += nemesis.inspect(place)
    ops = history.ops + read_ops(folder / HEARD)
    forgotten, violations = forgive(ops, check(run, ops))
    verdict = judge(run, ops, violations, stage.strikes, stage.complaints, nemesis.most_unknown)
    verdict.phases = stage.phases
    verdict.forgotten = forgotten
    if plan.strikes < NEVER and stage.strikes < plan.strikes:
        verdict.invalid.append(f"only {stage.strikes} of {plan.strikes} faults happened")
    keep(folder, verdict)
    return verdict


@contextlib.contextmanager
def nodes_on(
    place: Place, folder: Path, plan: Plan, settings: Mapping[str, str]
) -> Iterator[list[Server]]:
    """As many servers as planned, started; killed in the end, if they still run."""
    names = [f"node-{number}" for number in range(plan.nodes)] if plan.nodes > 1 else ["server"]
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(Server(place.uri, folder, settings, name)) for name in names]
        with ThreadPoolExecutor() as pool:
            list(pool.map(Server.start, nodes))  # at once: they make their tables together
        yield nodes


async def _play_heard(stage: Stage, nemesis: Nemesis, cast: Cast) -> None:
    """With a receiver, where the profile has subscribers."""
    if not cast.endpoints:
        await _play(stage, nemesis, cast, None)
        return
    async with Receiver(stage.history.folder, stage.plan.seed) as receiver:
        await _play(stage, nemesis, cast, receiver)


async def _play(stage: Stage, nemesis: Nemesis, cast: Cast, receiver: Receiver | None) -> None:
    await nemesis.begin(stage)
    await prepare(stage, cast)
    if receiver is not None:
        await subscribe(stage, cast, receiver)
        quitters = {to: QUITTING for to in cast.endpoints if to.endswith(".1")}
        await receiver.moods(AWKWARD, **quitters)
    stop = asyncio.Event()
    agents = [drive(stage, who, script, stop) for who, script in cast.load().items()]
    walks = [drive(stage, who, script, None) for who, script in cast.readers().items()]
    load = [asyncio.create_task(agent) for agent in agents]
    readers = [asyncio.create_task(walk) for walk in walks]
    try:
        await _strikes(stage, nemesis)
        await asyncio.sleep(stage.plan.quiet)
        await _until_enough(stage, nemesis)
        stop.set()
        await asyncio.gather(*load)
        await nemesis.end(stage)
        stage.phase("load")
        # From here on nothing that was sent before can still happen.
        await stage.restart()
        restarted = time.monotonic()
        stage.phase("restart")
        profile = cast.profile
        await asyncio.sleep(profile.claim_ttl[1] + stage.history.run.slack + 0.2)
        stage.phase("claims lapse")
        cast.board.finishing = True
        await _in_time(stage, asyncio.gather(*readers), "readers did not come to the end")
        stage.phase("walks")
        await drain(stage, cast)
        stage.phase("drain")
        if receiver is not None:
            await receiver.moods(FINE)
            await asyncio.sleep(restarted + UNSPREAD_S - time.monotonic())
            looks = (drive(stage, who, script, None) for who, script in cast.last_looks().items())
            await asyncio.gather(*looks)
            stage.phase("notifications")
    finally:
        for task in (*load, *readers):
            task.cancel()
        await asyncio.gather(*load, *readers, return_exceptions=True)


async def prepare(stage: Stage, cast: Cast) -> None:
    """Tell the service where dead letters go."""
    for source, (dead, most) in cast.dead_letters.items():
        client = Client(stage.way("admin"), "admin", stage.plan.seed)
        await client.configure(source, dead.partition("/")[2], most)
        client.close()


async def subscribe(stage: Stage, cast: Cast, receiver: Receiver) -> None:
    """Subscribe all endpoints."""
    client = Client(stage.way("admin"), "admin", stage.plan.seed)
    for to, q in cast.endpoints.items():
        op = Op("subscribe", q=q, to=to, ttl=LONG_TTL)
        options = {"_signing": secret(stage.plan.seed, to), "_retry_policy": RETRY_POLICY}
        subscriber = receiver.url(to)
        if to in cast.letters:
            options, subscriber = {}, f"mailto:{to}@example.com"
        await client.subscribe(op, subscriber, options)
        if op.out != OK:
            raise ValueError(f"{to} could not subscribe: {op}")
        stage.history.add(op)
        cast.board.subscriptions[to] = op.id
    client.close()


async def drain(stage: Stage, cast: Cast) -> None:
    """Count, walk and empty every queue, once all claims have lapsed."""
    for closers in cast.closers():
        runs = (drive(stage, who, script, None) for who, script in closers.items())
        await _in_time(stage, asyncio.gather(*runs), "the queues were not emptied")


async def _in_time(stage: Stage, work: Awaitable[Any], otherwise: str) -> None:
    """Wait for it, but not for ever."""
    try:
        await asyncio.wait_for(work, PATIENCE_S)
    except TimeoutError:
        stage.complaints.append(f"{otherwise} within {PATIENCE_S} s")


async def _strikes(stage: Stage, nemesis: Nemesis) -> None:
    end = time.monotonic() + stage.plan.seconds
    while stage.strikes < stage.plan.strikes:
        pause = stage.rng.uniform(*stage.plan.pause)
        if time.monotonic() + pause >= end:
            await asyncio.sleep(max(0.0, end - time.monotonic()))
            return
        await asyncio.sleep(pause)
        await strike(stage, nemesis)


async def _until_enough(stage: Stage, nemesis: Nemesis) -> None:
    """Go on until the run proves something: where the machine is slow, that takes longer."""
    end = time.monotonic() + ENOUGH_S
    while too_little(stage.history.ops, nemesis.most_unknown * SURELY):
        if time.monotonic() > end:
            return  # the verdict says why
        await asyncio.sleep(0.2)


async def strike(stage: Stage, nemesis: Nemesis, when: str = "") -> None:
    """Let it strike once, and write that down; `when` says what was going on."""
    begin = time.monotonic()
    note = await nemesis.strike(stage)
    if note:
        stage.strikes += 1
        fault = Op("fault", nemesis.name, t0=begin, t1=time.monotonic(), out=OK)
        fault.note = f"{when}: {note}" if when else note
        stage.history.add(fault)


async def drive(stage: Stage, who: str, script: Script, stop: asyncio.Event | None) -> None:
    """Carry out a script, until it ends or `stop` is set."""
    way = stage.way(who)
    client = Client(way, who, stage.plan.seed, stage.plan.deadline)
    try:
        step = next(script)
        while stop is None or not stop.is_set():
            if isinstance(step, Op):
                done = await client.perform(step)
                done.node = way.node
                stage.history.add(done)
                if done.out != OK and not done.status:
                    way.leave()
                    await asyncio.sleep(0.1)  # nobody there: do not spin
            else:
                await asyncio.sleep(step)
                done = IDLE
            step = script.send(done)
    except StopIteration:
        return
    finally:
        client.close()
