"""Every test of a store runs once for each backend, on a store of its own."""

import asyncio
import inspect
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nusku.storage import StoreOptions
from tests.storage.harness import BACKENDS, House, TurnedClock
from tests.storage.probe import Probe


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """The event loop of one test: its fixtures and, if it is a coroutine, the test itself."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run coroutine tests, on the loop of the ``runner`` fixture where there is one."""
    if not inspect.iscoroutinefunction(pyfuncitem.function):
        return None
    runner = pyfuncitem.funcargs.get("runner")
    run = runner.run if isinstance(runner, asyncio.Runner) else asyncio.run
    names = inspect.signature(pyfuncitem.function).parameters
    run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks for ``backend``, or for a fixture that does, once for each of them."""
    own = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "backend" in metafunc.fixturenames and "backend" not in own:
        metafunc.parametrize("backend", sorted(BACKENDS))


@pytest.fixture
def uri(backend: str, tmp_path: Path) -> str:
    """Where a store of this backend may be made; there is none yet."""
    return BACKENDS[backend](tmp_path)


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    """Sees the connection that was opened last."""
    probe, connect = Probe(), sqlite3.connect

    def watched(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **options)
        probe.connections = [connection]
        return connection

    monkeypatch.setattr(sqlite3, "connect", watched)
    return probe


@pytest.fixture
def house(request: pytest.FixtureRequest, uri: str, runner: asyncio.Runner) -> Iterator[House]:
    """A fresh open store. No test here cuts the power, so none waits for the disk."""
    if "probe" in request.fixturenames:
        request.getfixturevalue("probe")  # which has to be there first
    replicas = 1 if uri.startswith("redis+cluster:") else 0
    house = House(uri, StoreOptions(synchronous="normal", replicas=replicas))
    runner.run(house.open())
    yield house
    runner.run(house.close())


@pytest.fixture
def clock(house: House) -> TurnedClock:
    """The clock of the open store."""
    return house.clock
