"""F-29: a hot backup has everything that was acknowledged before it began; a wrong copy is noticed."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from tests.chaos.harness.checker import check
from tests.chaos.harness.generator import PROFILES, Cast
from tests.chaos.harness.history import INFO, OK, History, Op, Run
from tests.chaos.harness.places import Place
from tests.chaos.harness.play import drain, drive, prepare
from tests.chaos.harness.report import judge
from tests.chaos.harness.servers import RefusedError, Server
from tests.chaos.harness.stage import Plan, Stage

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

PLAN = Plan(seed=101)


def test_a_hot_backup_is_complete(tmp_path: Path) -> None:
    cast = Cast(PROFILES[PLAN.profile], PLAN.seed)
    run = Run(seed=PLAN.seed, profile=PLAN.profile, dead_letters=cast.dead_letters)
    copy = tmp_path / "copy.db"
    with (
        History(tmp_path / "before", run) as before,
        Server(tmp_path / "nusku.db", tmp_path) as server,
    ):
        server.start()
        begin, end = asyncio.run(_load_and_back_up(_stage(server, before), cast, copy))
        assert server.stop() == 0
    with History(tmp_path / "restored", run) as restored, Server(copy, tmp_path) as server:
        for op in _as_of(before.ops, begin, end):
            restored.add(op)
        server.start()
        time.sleep(cast.profile.claim_ttl[1] + run.slack)
        asyncio.run(drain(_stage(server, restored), cast))
    verdict = judge(run, restored.ops, check(run, restored.ops))
    print(verdict.render())
    assert not verdict.violations
    assert verdict.outcomes[OK] > 300


def test_a_copy_without_its_log_is_refused(tmp_path: Path) -> None:
    with Server(tmp_path / "nusku.db", tmp_path) as server:
        server.start()
        server.kill()
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "nusku.db", tmp_path / "copy")
    with pytest.raises(RefusedError) as refused:
        Server(tmp_path / "copy" / "nusku.db", tmp_path).start()
    assert refused.value.code == 2
    assert "-wal" in refused.value.stderr


def _stage(server: Server, history: History) -> Stage:
    return Stage(PLAN, [server], Place(server.uri), history)


async def _load_and_back_up(stage: Stage, cast: Cast, copy: Path) -> tuple[float, float]:
    """Between which times the backup was taken."""
    await prepare(stage, cast)
    stop = asyncio.Event()
    load = [asyncio.create_task(drive(stage, *agent, stop)) for agent in cast.load().items()]
    await asyncio.sleep(3)
    begin = time.monotonic()
    command = [sys.executable, "-m", "nusku", "backup", "--store"]
    command += [f"sqlite:///{stage.server.store}", str(copy)]
    await asyncio.to_thread(subprocess.run, command, check=True)
    end = time.monotonic()
    await asyncio.sleep(1)
    stop.set()
    await asyncio.gather(*load)
    return begin, end


def _as_of(ops: list[Op], begin: float, end: float) -> list[Op]:
    """The history that the copy must fit: what happened during the backup may be in it or not."""
    known = [op for op in ops if op.t1 < begin]
    unknown = [
        msgspec.structs.replace(
            op, out=INFO, got=[], cid="" if op.f == "claim" else op.cid, t1=op.t0 + PLAN.deadline
        )
        for op in ops
        if op.t0 < end and op.t1 >= begin
    ]
    # No client waited for an answer from the copy, so this is no time of calm.
    events = [Op("fault", "backup", t0=begin, t1=end, out=OK), Op("dead", t0=end, t1=end, out=OK)]
    return [*known, *unknown, *events]
