"""A master that Sentinels name, and replace."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from nusku.errors import StoreRefused, Unavailable
from nusku.metrics import Metrics
from nusku.model import QueueRef
from nusku.storage import StoreOptions, open_store
from tests.servers.sentinel import Sentinels
from tests.storage.harness import House

pytestmark = [pytest.mark.only("redis"), pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture
def sentinels() -> Iterator[Sentinels]:
    with Sentinels() as sentinels:
        yield sentinels


async def opened(sentinels: Sentinels) -> House:
    house = House(sentinels.uri, StoreOptions(replicas=1, timeout_s=3.0))
    started = time.monotonic()
    while True:
        try:
            house._store = await open_store(house.uri, None, house.options, house.metrics)
        except StoreRefused:  # the replica acknowledges nothing yet
            assert time.monotonic() - started < 20
        else:
            return house


async def until_it_works(house: House, ref: QueueRef, within_s: float = 20) -> None:
    started = time.monotonic()
    while True:
        with suppress(Unavailable):
            await house.post(ref, "after")
            return
        assert time.monotonic() - started < within_s
        await asyncio.sleep(0.02)


async def test_the_new_master_is_gone_on_with_and_has_all_that_was_answered(
    sentinels: Sentinels,
) -> None:
    house = await opened(sentinels)
    try:
        ref = await house.queue()
        given = [p for n in range(20) for p in await house.post(ref, str(n))]
        claim, _ = await house.hold(ref, 5)
        master = sentinels.master()
        await asyncio.to_thread(master.kill)
        with pytest.raises(Unavailable):
            await house.post(ref, "x")
        await asyncio.to_thread(sentinels.wait_for_another, master)
        started = time.monotonic()
        while True:  # nothing can be changed until there is a replica again, but looked at
            with suppress(Unavailable):
                found = await house.messages.get(ref, given)
                break
            assert time.monotonic() - started < 3
            await asyncio.sleep(0.02)
        assert len(found.messages) == 20
        assert found.messages[0].claim == claim
        await asyncio.to_thread(master.start)
        await until_it_works(house, ref)
        assert (await house.numbers(ref))[1] == 5
    finally:
        await house.close()


async def test_a_planned_failover_is_followed(sentinels: Sentinels) -> None:
    house = await opened(sentinels)
    try:
        ref = await house.queue()
        await house.post(ref, "a")
        await asyncio.to_thread(sentinels.failover)
        await until_it_works(house, ref)
        assert (await house.free(ref))[0] == "a"
    finally:
        await house.close()


async def test_a_service_that_they_do_not_know_is_refused(sentinels: Sentinels) -> None:
    uri = sentinels.uri.rsplit("/", 1)[0] + "/other"
    with pytest.raises(StoreRefused, match="no service 'other'"):
        await open_store(uri, None, StoreOptions(), Metrics())
