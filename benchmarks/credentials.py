"""What it costs to know who asks: servers that believe everybody, that take keys, and that ask a Keystone."""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field

from benchmarks.generator import Run, Script
from benchmarks.loads import Posting
from benchmarks.report import CREDENTIALS, Result, Row
from benchmarks.rig import Rig
from benchmarks.server import ServerFailedError
from benchmarks.turns import Side, against, in_turns
from tests.fake_keystone import Keystone


@dataclass(slots=True)
class Pings:
    """Requests that do nothing, so that all else about them weighs most."""

    name: str
    rig: Rig
    rates: list[float] = field(default_factory=list)
    _run: Run = field(default_factory=Run)
    _cpu_s: float = 0.0

    async def slice(self, seconds: float) -> None:
        """Run once."""
        cpu_s = self.rig.server_cpu_s()
        run = await self.rig.drive(self._script, seconds)
        self._cpu_s += self.rig.server_cpu_s() - cpu_s
        self._run.add(run)
        self.rates.append(run.requests / run.duration_s)

    def _script(self, run: Run) -> Script:
        return self.rig.ping_script(run)

    def reset(self) -> None:
        """Forget what was measured."""
        self.rates, self._run, self._cpu_s = [], Run(), 0.0

    async def finish(self) -> None:
        """There is nothing to clean up."""

    def row(self) -> Row:
        """The figures of all slices."""
        return self.rig.row(self.name, self._run, self._cpu_s, [], [])


async def credentials(rig: Rig) -> Result:
    """Three servers on stores of their own, in turns, all tokens known after the first request."""
    if rig.store is None or not rig.stores.private:
        return Result("credentials", skipped="needs stores of ours")
    result = Result("credentials")
    async with AsyncExitStack() as started:
        rigs = {
            "none": rig,
            "key": await started.enter_async_context(_with_key(rig)),
            "keystone": await started.enter_async_context(_with_keystone(rig)),
        }
        for load in ("ping", "post1"):
            sides = {
                kind: Pings(f"{load}-{kind}", one)
                if load == "ping"
                else Side(f"{load}-{kind}", Posting(one, [await one.new_queue()]))
                for kind, one in rigs.items()
            }
            result.rows += await in_turns(list(sides.values()), rig.sizes)
            for kind in ("key", "keystone"):
                ratios = against(sides[kind], sides["none"])
                result.ratios[f"{load} with {kind}, {CREDENTIALS}"] = ratios
    return result


@asynccontextmanager
async def _with_key(rig: Rig) -> AsyncIterator[Rig]:
    store = await rig.stores.new()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nusku", "key", "create", "--project", "bench"),
        *("--store", store.uri),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    if process.returncode:
        raise ServerFailedError(f"no key was made: {err.decode()}")
    settings = {"auth": "key"}
    async with rig.another(store, settings=settings, token=out.decode().strip()) as other:
        yield other


@asynccontextmanager
async def _with_keystone(rig: Rig) -> AsyncIterator[Rig]:
    """It is asked once a minute, so it may as well be one that keeps nothing."""
    store = await rig.stores.new()
    with ExitStack() as stack:
        keystone = stack.enter_context(Keystone())
        keystone.user("nusku", "secret", service=["service"])
        token = keystone.token_of(keystone.user("bench", "x", bench=["member"]), "bench")
        settings: Mapping[str, str] = {
            "auth": "keystone",
            "keystone_url": keystone.url,
            "keystone_user_name": "nusku",
            "keystone_user_password": "secret",
        }
        # Fernet tokens have about 180 characters.
        keystone.tokens[token.ljust(180, "x")] = keystone.tokens.pop(token)
        async with rig.another(store, settings=settings, token=token.ljust(180, "x")) as other:
            yield other
