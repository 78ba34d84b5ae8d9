"""Quotas: whatever adds something to a project passes here."""

import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from nusku.broker.amounts import Amounts
from nusku.broker.leases import Leases, Measure
from nusku.broker.limits import Limits
from nusku.errors import QuotaExceeded, StoreFull, Unavailable
from nusku.metrics import Metrics
from nusku.storage import Store

T = TypeVar("T")


class Quotas:
    """Whether a project may have more. Where nothing is limited that costs a look-up."""

    def __init__(
        self,
        limits: Limits,
        own: Store,
        measure: Measure,
        rng: random.Random,
        metrics: Metrics,
        *,
        flight_s: float,
    ) -> None:
        self._limit = limits.quota
        self._leases = Leases(
            own.records, measure, limits.quota, rng, shared=own.shared, flight_s=flight_s
        )
        self._refused = metrics.limited
        limits.on_change.append(self._leases.changed)

    def limited(self, project: str) -> bool:
        """Whether anything that the project may have is."""
        return self._limit(project) is not None

    async def within(self, project: str, amounts: Amounts, action: Callable[[], Awaitable[T]]) -> T:
        """Do what adds so much to a project, or nothing. Raises QuotaExceeded, and Unavailable where
        it is not known whether it may have more.
        """
        if self._limit(project) is None:
            return await action()
        leases = self._leases
        if not leases.take(project, amounts):
            try:
                await leases.obtain(project, amounts)
            except QuotaExceeded:
                self._refused["quota"] += 1
                raise
        try:
            done = await action()
        except StoreFull:
            leases.failed(project, amounts)
            raise
        except Unavailable:
            leases.doubtful(project, amounts)
            raise
        except Exception:
            leases.failed(project, amounts)
            raise
        except BaseException:  # cancelled, which does not stop what a store is doing
            leases.doubtful(project, amounts)
            raise
        leases.arrived(project, amounts)
        return done

    def kept(self) -> AbstractAsyncContextManager[None]:
        """Keep what has to be renewed in the meantime."""
        return self._leases.kept()
