"""One soak: a server on a store, the load on it, samples into a file, and the verdict behind them."""

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from benchmarks import asking
from benchmarks.listener import Listener
from benchmarks.server import Server, ServerFailedError
from benchmarks.soak.door import NoAnswerError
from benchmarks.soak.load import Load, Plan
from benchmarks.soak.sampler import Sampler
from benchmarks.stores import Stores
from benchmarks.wire import WrongAnswerError


class Soak:
    """`store` is a URI or a kind; files of a private one lie in `home`, samples go to `file`."""

    def __init__(
        self, plan: Plan, store: str, home: Path, file: TextIO, say: Callable[[str], None] = print
    ) -> None:
        self.plan = plan
        self.faults: list[str] = []
        """What must not be. Known at the end."""
        self.counts: dict[str, Any] = {}
        self._store = store
        self._home = home
        self._file = file
        self._say = say

    async def run(self) -> None:
        """From the start of the server to its clean stop."""
        stores = Stores(self._store, self._home)
        try:
            store = await stores.new()
            settings = {**store.settings, **self.plan.settings}
            server = Server(store.uri, self._home / "server.log", settings, store.environment)
            mode = await asking.mode_of(store.uri, settings)
            self._say(f"on {mode}")
            self._write({"plan": asdict(self.plan), "mode": mode, "began": time.time()})
            async with Listener() as listener:
                try:
                    name = f"soak-{time.time_ns() // 1_000_000}"
                    load = Load(self.plan, await server.start(), listener, name)
                    await load.prepare()
                    sampler = Sampler(load, server.pids()[:1], store.pids, store.uri, self._home)
                    try:
                        await self._loaded(load, sampler, server)
                        await self._settle(load, sampler)
                    finally:
                        load.close()
                    await server.stop()
                except (ServerFailedError, NoAnswerError, WrongAnswerError) as error:
                    self.faults.append(str(error))
                finally:
                    await server.kill()
        finally:
            stores.close()
        self._write({"end": time.time(), "counts": self.counts, "faults": self.faults})

    async def _loaded(self, load: Load, sampler: Sampler, server: Server) -> None:
        """The load with somebody who looks on. SIGINT and SIGTERM end the posting early."""
        with contextlib.ExitStack() as stack:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, load.posting_over.set)
                stack.callback(loop.remove_signal_handler, number)
            async with _aside(self._watch(load, sampler, server), self._flush(sampler)):
                await load.run()

    async def _watch(self, load: Load, sampler: Sampler, server: Server) -> None:
        due = time.perf_counter()
        while True:
            due += self.plan.sample_s
            await asyncio.sleep(due - time.perf_counter())
            if not server.pids():
                load.posting_over.set()
            await self._sample(load, sampler)

    async def _sample(self, load: Load, sampler: Sampler) -> None:
        sample = await sampler.sample("end" if load.posting_over.is_set() else "load")
        self._write(sample)
        if errors := sample["errors"]:
            self.faults += errors
            self._say(
                f"at {sample['at_s']:.0f} s: {sample['counts']['errors']} errors: {errors[0]}"
            )

    async def _flush(self, sampler: Sampler) -> None:
        while True:
            await sampler.flush()
            await asyncio.sleep(self.plan.control_s)

    async def _settle(self, load: Load, sampler: Sampler) -> None:
        """Close the accounts, and compare them with the server's own."""
        accounts = load.accounts
        try:
            await load.check()
            server_says = await self._server_counts(load)
            await load.drop()
        finally:
            accounts.close()
            await self._sample(load, sampler)
            self.counts = dict(accounts.counts())
            self.faults += accounts.faults
        self.counts["the server's"] = server_says
        if accounts.certain:
            self.faults += [
                f"the server counts {server_says.get(event, 0):g} {event}, and we {ours}"
                for event, ours in accounts.as_the_server_counts().items()
                if server_says.get(event, 0) != ours
            ]

    async def _server_counts(self, load: Load) -> dict[str, float]:
        """When they are as ours, or after a while: what has expired is counted when it is removed."""
        deadline = time.perf_counter() + self.plan.late_s
        while True:
            says = await load.server_counts()
            ours = load.accounts.as_the_server_counts()
            if says.items() >= ours.items() or time.perf_counter() > deadline:
                return says
            await asyncio.sleep(0.2)

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


@asynccontextmanager
async def _aside(*works: Any) -> AsyncIterator[None]:
    """Let these go on as long as the block takes; one that fails ends it."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
        yield
        for task in tasks:
            task.cancel()
