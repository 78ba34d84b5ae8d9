"""Fixtures of the HTTP contract tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.live import QUEUES, TOPICS, Api, Kind, LiveServer


@pytest.fixture(params=[QUEUES, TOPICS], ids=lambda kind: kind.noun)
def either(request: pytest.FixtureRequest, api: Api) -> Api:
    """A client that speaks of queues, then one that speaks of topics: the contract is the same."""
    kind: Kind = request.param
    return api.but(kind=kind)


@pytest.fixture
def brief(shared_server: Callable[..., LiveServer]) -> Api:
    """A client of a server whose messages and claims may live for a second only."""
    server = shared_server(min_message_ttl=1, min_claim_ttl=1, min_claim_grace=0)
    return server.api()


@pytest.fixture
def narrow(shared_server: Callable[..., LiveServer]) -> Api:
    """A client of a server with small limits: 64 bytes of metadata, 256 bytes of post, pages of 5."""
    server = shared_server(
        max_queue_metadata=64,
        max_messages_post_size=256,
        max_queues_per_page=5,
        max_messages_per_page=5,
        max_messages_per_claim_or_pop=5,
        max_message_ttl=7200,
        max_message_delay=30,
        max_claim_ttl=600,
        max_claim_grace=700,
        max_wait=3,
    )
    return server.api()
