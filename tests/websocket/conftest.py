"""Connections that tests need not close."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.live import LiveServer
from tests.websocket.peer import Peer

Connect = Callable[..., Peer]


@pytest.fixture
def connect(server: LiveServer) -> Iterator[Connect]:
    """Call it for a connection to the default server, or to the one that is given."""
    made: list[Peer] = []

    def one(to: LiveServer | None = None, **options: Any) -> Peer:
        made.append(Peer(to or server, **options))
        return made[-1]

    yield one
    for peer in made:
        peer.close()


@pytest.fixture(params=["json", "messagepack"])
def peer(connect: Connect, request: pytest.FixtureRequest) -> Peer:
    """A connection that speaks JSON, then one that speaks MessagePack."""
    return connect(binary=request.param == "messagepack")
