"""Which stores the tests run on, and servers for those that speak HTTP.

Each of these uses a project of its own, so servers can be shared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cloud import Cloud
from tests.governed import RULES, Governed
from tests.live import Api, LiveServer, SettingValue
from tests.servers import stores
from tests.servers.keystone import Keystone
from tests.servers.programs import EVERYTHING, Missing

# -- which stores ----------------------------------------------------------------------------------

_left_out: Counter[str] = Counter()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--store",
        default="",
        metavar="KINDS",
        help=(
            f"run on these stores only, of {', '.join(stores.KINDS)}; without it the tests of the"
            " stores run on all of them, and those that start the service on SQLite"
        ),
    )
    parser.addoption(
        "--variants",
        type=int,
        metavar="N",
        help="of each parametrised test run so many variants at most, spread over all that it has",
    )


def pytest_configure(config: pytest.Config) -> None:
    chosen = chosen_kinds(config)
    if unknown := set(chosen) - set(stores.KINDS):
        raise pytest.UsageError(f"--store: there is no {', '.join(sorted(unknown))}")
    LiveServer.kind = chosen[0] if chosen else "sqlite"


def chosen_kinds(config: pytest.Config) -> Sequence[str]:
    """Those that were asked for; empty for no wish."""
    return [kind for kind in config.getoption("--store").split(",") if kind]


def allowed_kinds(item: Any) -> Sequence[str]:
    """The kinds of stores that a test is about, by its marks."""
    if item.get_closest_marker("embedded") or "probe" in item.fixturenames:
        return ("sqlite",)
    if only := item.get_closest_marker("only"):
        return [kind for kind in only.args if kind in stores.KINDS]
    return stores.KINDS


def _runs(item: pytest.Item, chosen: Sequence[str]) -> bool:
    """Whether it is a test of a store that was chosen."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    kind = params.get("backend")
    if kind is not None:
        return kind in allowed_kinds(item) and (not chosen or kind in chosen)
    if "storage" in item.path.parts:
        return not chosen or not set(chosen).isdisjoint(allowed_kinds(item))
    return LiveServer.kind in allowed_kinds(item)


def _spread(items: Sequence[pytest.Item], number: int) -> Iterator[pytest.Item]:
    """Not more variants of any test than that: the first, the last, and some between them."""
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for variants in tests.values():
        if len(variants) > number:
            steps = max(number - 1, 1)
            yield from (variants[n * (len(variants) - 1) // steps] for n in range(number))
        else:
            yield from variants


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None]:
    """Leave out what was not asked for, after marks and names have had their say."""
    yield
    chosen = chosen_kinds(config)
    kept = [item for item in items if _runs(item, chosen)]
    if number := config.getoption("--variants"):
        spread = {*_spread(kept, number)}
        kept = [item for item in kept if item in spread]
    if left_out := {*items}.difference(kept):
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


def _leave_out(missing: Missing) -> None:
    """Skip the test, or let it fail where everything has to be tested."""
    if EVERYTHING:
        pytest.fail(f"{missing} (TEST_STORES=all)", pytrace=False)
    _left_out[str(missing)] += 1
    pytest.skip(str(missing))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    try:
        return (yield)
    except Missing as missing:
        _leave_out(missing)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    try:
        return (yield)
    except Missing as missing:
        _leave_out(missing)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    """Take back what the test had in its folder, after its own tidying up."""
    try:
        return (yield)
    finally:
        folder = item.funcargs.get("tmp_path") if isinstance(item, pytest.Function) else None
        if isinstance(folder, Path):
            stores.release(folder)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _left_out:
        terminalreporter.section("stores that could not be tested", yellow=True)
        for why, number in _left_out.items():
            terminalreporter.line(f"{why} ({number} tests were left out)")


def pytest_unconfigure() -> None:
    stores.end()


# -- servers ---------------------------------------------------------------------------------------


class SharedServers:
    """Servers started when first asked for, one per combination of settings, kept for the whole run."""

    def __init__(self, folder: Callable[[], Path]) -> None:
        self._folder = folder
        self._running: dict[frozenset[tuple[str, SettingValue]], LiveServer] = {}

    def __call__(self, **settings: SettingValue) -> LiveServer:
        key = frozenset(settings.items())
        if key not in self._running:
            self._running[key] = LiveServer(self._folder(), **settings).start()
        return self._running[key]

    def stop(self) -> None:
        """Stop all, then report the first that did not stop cleanly."""
        failures: list[AssertionError] = []
        for server in self._running.values():
            try:
                if server.process.poll() is None:
                    server.insist_on_metrics()
                server.stop()
            except AssertionError as failure:
                failures.append(failure)
        if failures:
            raise failures[0]


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServers]:
    """Call it with settings for a server that runs with them; equal settings share one server."""
    servers = SharedServers(lambda: tmp_path_factory.mktemp("server"))
    yield servers
    servers.stop()


@pytest.fixture(scope="session")
def server(shared_server: SharedServers) -> LiveServer:
    """The server with default settings that most tests share."""
    return shared_server()


@pytest.fixture
def api(server: LiveServer) -> Api:
    """A client of the default server, in a project of its own."""
    return server.api()


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """A Keystone, and a server that believes its tokens."""
    with Keystone() as keystone, Cloud(keystone, tmp_path_factory.mktemp("cloud")) as running:
        yield running


@pytest.fixture(scope="session")
def governed(shared_server: SharedServers, tmp_path_factory: pytest.TempPathFactory) -> Governed:
    """A server with a policy file and an audit log. Tests that change the file put it back."""
    folder = tmp_path_factory.mktemp("governed")
    policy, audit = folder / "policy.yaml", folder / "audit.log"
    policy.write_text(RULES)
    server = shared_server(policy_file=str(policy), audit_log=str(audit))
    return Governed(server, policy, audit)


@pytest.fixture(scope="session")
def keyed(shared_server: SharedServers, tmp_path_factory: pytest.TempPathFactory) -> LiveServer:
    """A server that lets in by keys, with an audit log."""
    audit = tmp_path_factory.mktemp("keyed") / "audit.log"
    return shared_server(auth="key", audit_log=str(audit))


@pytest.fixture
def private_server(tmp_path: Path) -> Iterator[Callable[..., LiveServer]]:
    """Call it for a server of the test's own, always on the same file: the test may end and start it again."""
    started: list[LiveServer] = []

    def start(**settings: SettingValue) -> LiveServer:
        started.append(LiveServer(tmp_path, **settings).start())
        return started[-1]

    yield start
    for one in started:
        one.stop()
