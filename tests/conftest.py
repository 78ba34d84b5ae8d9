"""Servers for the tests that speak HTTP. Each test uses a project of its own, so servers can be shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.live import Api, LiveServer, SettingValue


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
