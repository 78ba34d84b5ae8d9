"""What is remembered of what strangers send is small."""

from __future__ import annotations

import pytest

from nusku.auth import Identity, identity
from nusku.broker import rules
from nusku.config import Settings
from nusku.errors import WrongClient

LONG = "x" * 100_000


def test_long_names_of_queues_are_not_remembered() -> None:
    before = rules._is_legal.cache_info().misses
    assert not rules.legal_name(LONG)
    assert rules._is_legal.cache_info().misses == before
    assert rules.legal_name("x" * 64)
    assert not rules.legal_name("x" * 65)


def test_long_names_of_clients_are_not_remembered() -> None:
    before = identity._uuid.cache_info().misses
    with pytest.raises(WrongClient):
        Identity(Settings()).context({b"client-id": LONG.encode()}, None)
    assert identity._uuid.cache_info().misses == before
