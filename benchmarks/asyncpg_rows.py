"""What PostgreSQL gives to those who write one row a commit themselves, against posts through nusku."""

import asyncio
import itertools
import os
import time
import zlib
from typing import TYPE_CHECKING

from benchmarks.generator import Run
from benchmarks.loads import Posting
from benchmarks.messages import FIRST_NUMBER, encode_body
from benchmarks.report import POST1_ASYNCPG, Result, Row, row_of
from benchmarks.rig import Rig
from benchmarks.stores import Store
from benchmarks.turns import Side, against, in_turns
from benchmarks.wire import PRODUCER

if TYPE_CHECKING:
    import asyncpg

TABLE = "bench_rows"
COLUMNS = """
    lane bigint NOT NULL, position bigint NOT NULL, posted_ms bigint NOT NULL,
    expires_ms bigint NOT NULL, visible_ms bigint NOT NULL, ready bigint, started_ms bigint,
    claim uuid, ttl_s integer NOT NULL, count integer NOT NULL, crc integer NOT NULL,
    claim_ttl_s integer, client text NOT NULL, attributes bytea, dedup text, body bytea NOT NULL,
    PRIMARY KEY (lane, position)
"""
INSERT = f"""
    INSERT INTO {TABLE} (
        lane, position, posted_ms, expires_ms, visible_ms, ready, ttl_s, count, crc, client, body
    ) VALUES (1, $1, $2, $3, $2, $1, $4, 0, $5, $6, $7)
"""
TTL_S = 3600
SLOW_MS = 5


class Rows:
    """A connection for each of the load's, every one committing rows as fast as they are answered.

    The row has what nusku keeps of a message, and one index, the primary key.
    """

    def __init__(self, name: str, store: Store, connections: int) -> None:
        self._name = name
        self.rates: list[float] = []
        self._store = store
        self._count = connections
        self._connections: list[asyncpg.Connection[asyncpg.Record]] = []
        self._positions = itertools.count(1)
        self._committed = 0
        self._run = Run()
        self._store_cpu_s = 0.0

    async def open(self) -> None:
        """Connect and create the table."""
        import asyncpg

        self._connections = [await asyncpg.connect(self._store.uri) for _ in range(self._count)]
        await self._connections[0].execute(
            f"DROP TABLE IF EXISTS {TABLE}; CREATE TABLE {TABLE} ({COLUMNS})"
        )

    async def slice(self, seconds: float) -> None:
        """Commit rows for so long."""
        run, cpu_s = Run(), self._store.cpu_s()
        started, cpu_started = time.perf_counter(), time.process_time()
        asyncio.get_running_loop().call_later(seconds, run.stop)
        await asyncio.gather(*(self._write(connection, run) for connection in self._connections))
        run.duration_s = time.perf_counter() - started
        run.generator_cpu_s = time.process_time() - cpu_started
        self._store_cpu_s += self._store.cpu_s() - cpu_s
        self._run.add(run)
        self._committed += run.messages
        self.rates.append(run.messages / run.duration_s)

    async def _write(self, connection: "asyncpg.Connection[asyncpg.Record]", run: Run) -> None:
        insert = await connection.prepare(INSERT)
        while not run.over:
            position = next(self._positions)
            body = encode_body(FIRST_NUMBER + position)
            began = time.perf_counter()
            now_ms = int(time.time() * 1000)
            ends_ms = now_ms + TTL_S * 1000
            crc = zlib.crc32(body) - (1 << 31)
            await insert.fetch(position, now_ms, ends_ms, TTL_S, crc, PRODUCER, body)
            run.requests += 1
            run.done(began, 1)

    def reset(self) -> None:
        """Forget what was measured."""
        self.rates, self._run, self._store_cpu_s = [], Run(), 0.0

    async def finish(self) -> None:
        """All that were acknowledged must be there."""
        first = self._connections[0]
        count = await first.fetchval(f"SELECT count(*) FROM {TABLE}")
        assert count == self._committed, f"{count} rows, {self._committed} were committed"
        await first.execute(f"DROP TABLE {TABLE}")

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()

    def row(self) -> Row:
        """The figures of all slices."""
        row = row_of(self._name, self._run)
        if self._store.pids:
            row.store_cpu_us = self._store_cpu_s / max(self._run.requests, 1) * 1e6
        return row


async def rows(rig: Rig) -> Result:
    """Posts of one message, and commits of one row by as many connections, on the same server in turns.

    The posts go through one process, and through as many as there are cores, as the rows have a
    process of PostgreSQL for each connection. The same again on a slower disk.
    """
    if rig.store is None or not rig.stores.is_postgresql:
        return Result("asyncpg", skipped="the store is not a PostgreSQL of ours to look at")
    result = Result("asyncpg")
    result.ratios[POST1_ASYNCPG] = await _pair(rig, "", result)
    processes = os.cpu_count() or 1
    async with rig.another(settings={"workers": str(processes)}) as many:
        what = f"the same through {processes} processes"
        result.ratios[what] = await _pair(many, f"-w{processes}", result)
    if rig.stores.private:
        store = await rig.stores.new(slow_ms=SLOW_MS)
        async with rig.another(store) as slow:
            what = f"the same where each flush of the disk takes {SLOW_MS} ms longer"
            result.ratios[what] = await _pair(slow, "-slow", result)
    return result


async def _pair(rig: Rig, name: str, result: Result) -> list[float]:
    """Both on the store of the rig; posts against rows."""
    assert rig.store is not None
    theirs = Rows(f"rows{name}", rig.store, len(rig.connections))
    try:
        await theirs.open()
        mine = Side(f"post1{name or '-w1'}", Posting(rig, [await rig.new_queue()]))
        result.rows += await in_turns([mine, theirs], rig.sizes)
    finally:
        await theirs.close()
    return against(mine, theirs)
