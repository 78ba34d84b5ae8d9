"""What operators say of projects, as servers understand it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from nusku.broker import limits
from nusku.broker.amounts import NO_LIMIT, Amounts
from nusku.broker.limits import Limits
from nusku.config import Settings
from nusku.errors import StoreRefused
from nusku.storage.registry import Mirror
from nusku.storage.sqlite.registry import SqliteRegistry

SETTINGS = Settings(quota_messages=10, quota_requests=5)
DEFAULT = Amounts(NO_LIMIT, 10, NO_LIMIT, NO_LIMIT)


def test_what_is_said_of_a_project_lies_over_what_is_said_of_all(tmp_path: Path) -> None:
    async def test() -> None:
        registry = SqliteRegistry(tmp_path / "nusku.db")
        mirror = Mirror(registry)
        said, changes = Limits(SETTINGS, mirror), []
        said.on_change.append(lambda: changes.append(1))
        await mirror.look()
        assert (said.quota("p"), said.rate("p"), said.any_rate) == (DEFAULT, 5, True)
        await limits.say(registry, "p", {"queues": 3, "messages": 0, "requests": 0})
        await limits.say(registry, "q", {"messages": 0})
        await mirror.look()
        assert said.quota("p") == Amounts(3, NO_LIMIT, NO_LIMIT, NO_LIMIT)
        assert (said.quota("q"), said.rate("q")) == (None, 5)
        assert said.rate("p") == 0
        await limits.say(registry, "p", {"queues": -1, "messages": 7})
        await mirror.look()
        assert said.quota("p") == DEFAULT._replace(messages=7)
        await limits.unsay(registry, "p")
        await mirror.look()
        assert (said.quota("p"), said.rate("p")) == (DEFAULT, 5)
        assert len(changes) == 4

    asyncio.run(test())


@pytest.mark.parametrize("doc", [b"", b"{", b"[]", b'{"queues": "3"}', b'{"later": 1}'])
def test_what_cannot_be_read_is_as_if_nothing_was_said(tmp_path: Path, doc: bytes) -> None:
    async def test() -> None:
        registry = SqliteRegistry(tmp_path / "nusku.db")
        mirror = Mirror(registry)
        said = Limits(SETTINGS, mirror)
        await registry.write("quotas", "p", doc)
        await limits.say(registry, "q", {"messages": 7})
        await mirror.look()
        assert said.quota("p") == DEFAULT
        assert said.quota("q") == DEFAULT._replace(messages=7)
        with pytest.raises(StoreRefused, match="cannot be read"):
            await limits.say(registry, "p", {"messages": 7})
        await limits.unsay(registry, "p")
        await limits.say(registry, "p", {"messages": 7})

    asyncio.run(test())


def test_without_a_registry_nothing_is_limited() -> None:
    said = Limits(SETTINGS, None)
    assert (said.quota("p"), said.rate("p"), said.any_rate) == (None, 0, False)


def test_what_is_in_force_is_shown(tmp_path: Path) -> None:
    async def test() -> Mapping[str, Mapping[str, int]]:
        registry = SqliteRegistry(tmp_path / "nusku.db")
        await limits.say(registry, "p", {"queues": 3})
        one = await limits.in_force(registry, SETTINGS, "q")
        assert one == {
            "q": {"queues": 0, "messages": 10, "bytes": 0, "subscriptions": 0, "requests": 5}
        }
        return await limits.in_force(registry, SETTINGS, None)

    shown = asyncio.run(test())
    assert list(shown) == ["*", "p"]
    assert (shown["*"]["queues"], shown["p"]["queues"], shown["p"]["messages"]) == (0, 3, 10)
