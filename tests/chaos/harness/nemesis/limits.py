"""F-11: a server runs out of descriptors, of memory, or of room for a file."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.harness.client import Connection, NotSentError, UnknownError
from tests.chaos.harness.nemesis.base import Nemesis
from tests.chaos.harness.places import STORES
from tests.chaos.harness.report import Verdict
from tests.chaos.harness.servers import Server
from tests.chaos.harness.stage import Stage

SPARE = 3  # descriptors that are left
CALLERS = 40  # who all want one
LASTS_S = 1.0
PATIENCE_S = 5.0
HEADERS = {"Client-ID": "9f8c1e52-7a0b-4d8e-9b57-1d3a5a0c4a11", "X-Project-ID": "project-0"}

CGROUP = Path("/sys/fs/cgroup/memory")
LEFT_BYTES = 4 << 20  # memory that it still gets
BODY_BYTES = 200_000  # of each caller who does not come to the end of his post


class Limits(Nemesis):
    """Each in turn, of several nodes each in turn."""

    name = "limits"
    stores = STORES
    most_unknown = 0.3
    planted = "goes-deaf"

    def __init__(self) -> None:
        self._ways = itertools.cycle((no_descriptors, no_memory, no_room))

    async def strike(self, stage: Stage) -> str:
        node = stage.nodes[stage.strikes % len(stage.nodes)]
        return await next(self._ways)(stage, node)

    @classmethod
    def shown(cls, verdict: Verdict) -> bool:
        """It never listened again."""
        return any("takes no connections" in text for text in verdict.complaints)


async def no_descriptors(stage: Stage, node: Server) -> str:
    """More connect than it can take. It goes on for those it has, and takes others afterwards."""
    pid, (host, port) = node.pid, node.address or ("", 0)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    highest = max(int(one.name) for one in Path(f"/proc/{pid}/fd").iterdir())
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1 + SPARE, before[1]))
    callers = []
    try:
        for _ in range(CALLERS):
            with contextlib.suppress(OSError):
                callers.append(await asyncio.open_connection(host, port))
        await asyncio.sleep(LASTS_S)
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        for _, writer in callers:
            writer.transport.abort()
    if not node.running() or node.pid != pid:
        stage.complaints.append(f"{node.name} did not survive that it had no descriptors left")
        await _start_again(stage, node)
    elif not await _takes_connections(node):
        stage.complaints.append(f"{node.name} takes no connections any more")
        await stage.kill(node)
        await stage.start(node)
    return f"{len(callers)} callers of {node.name}, for {SPARE} descriptors"


async def _takes_connections(node: Server) -> bool:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        connection = Connection(node, deadline=1)
        try:
            if (await connection.request("GET", "/v2/ping", HEADERS)).status == 204:
                return True
        except (NotSentError, UnknownError):
            await asyncio.sleep(0.1)
        finally:
            connection.close()
    return False


async def no_memory(stage: Stage, node: Server) -> str:
    """The kernel kills it, as a cgroup has no memory left."""
    if not os.access(CGROUP, os.W_OK) or not (CGROUP / "memory.limit_in_bytes").exists():
        return ""
    pid, (host, port) = node.pid, node.address or ("", 0)
    with _group(pid) as group:
        (group / "memory.limit_in_bytes").write_text(str(LEFT_BYTES))
        (group / "cgroup.procs").write_text(str(pid))
        callers = [
            asyncio.create_task(_post_half(host, port)) for _ in range(LEFT_BYTES // BODY_BYTES * 3)
        ]
        code = await asyncio.to_thread(node.wait, PATIENCE_S)
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        if code is None:
            (CGROUP / "cgroup.procs").write_text(str(pid))
            return ""
    if code != -9:
        stage.complaints.append(f"{node.name} ended with {code} as there was no memory")
    await _start_again(stage, node)
    return f"{node.name}: pid {pid} killed for its memory, {node.pid} started"


@contextlib.contextmanager
def _group(pid: int) -> Iterator[Path]:
    group = CGROUP / f"nusku-{os.getpid()}-{pid}"
    group.mkdir()
    try:
        yield group
    finally:
        for _ in range(100):  # until the kernel has noticed that it is empty
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.01)


async def _post_half(host: str, port: int) -> None:
    """A post that never comes to its end, and so has no effect."""
    lines = ["POST /v2/queues/none/messages HTTP/1.1", "Host: chaos"]
    lines += [f"{name}: {value}" for name, value in HEADERS.items()]
    head = "\r\n".join([*lines, f"Content-Length: {BODY_BYTES + 1}", "", ""]).encode()
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(head + b" " * BODY_BYTES)
            await asyncio.sleep(PATIENCE_S)
        finally:
            writer.transport.abort()


async def no_room(stage: Stage, node: Server) -> str:
    """Its files may not grow (`ulimit -f`): on SQLite that is a write that fails, and its end."""
    if not node.uri.startswith("sqlite"):
        return ""
    log = Path(f"{node.store}-wal")
    limit = log.stat().st_size if log.exists() else 0
    before = resource.prlimit(node.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (limit, before[1]))
    code = await asyncio.to_thread(node.wait, PATIENCE_S)
    if code is None:
        resource.prlimit(node.pid, resource.RLIMIT_FSIZE, before)
        return ""
    if code != 1:
        stage.complaints.append(f"{node.name} ended with {code} as a write had failed")
    await _start_again(stage, node)
    return f"{node.name} ended as its files were not to grow"


async def _start_again(stage: Stage, node: Server) -> None:
    if len(stage.nodes) == 1:
        await stage.place.still()
        stage.dead()
    await stage.start(node)
