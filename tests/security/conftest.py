"""Fixtures of the security tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.live import QUEUES, TOPICS, Api, Kind, LiveServer


@pytest.fixture(
    params=[
        pytest.param(QUEUES, id="queues"),
        pytest.param(TOPICS, id="topics", marks=pytest.mark.slow),
    ]
)
def either(request: pytest.FixtureRequest, api: Api) -> Api:
    """A client that speaks of queues, then one that speaks of topics."""
    kind: Kind = request.param
    return api.but(kind=kind)


@pytest.fixture
def impatient(shared_server: Callable[..., LiveServer]) -> LiveServer:
    """A server that gives clients two seconds for whatever they have to do."""
    return shared_server(header_timeout=2, body_timeout=2, write_timeout=2)
