"""The rules of the service, the same for every transport and every store."""

import random
import time
from collections.abc import Callable, Sequence

from nusku.addresses import Addresses
from nusku.broker.claims import Claims, ClaimTerms, ClaimView
from nusku.broker.confirmations import Confirmations
from nusku.broker.deliveries import Deliveries
from nusku.broker.fanout import Fanout
from nusku.broker.health import Health
from nusku.broker.ids import SubscriptionIds
from nusku.broker.journal import Attempt, Journal
from nusku.broker.messages import Messages, NewMessage
from nusku.broker.operation import OPERATIONS, operation, permit
from nusku.broker.queues import Change, Queues
from nusku.broker.shares import Shares
from nusku.broker.subscriptions import Created, Failed, Status, Subscription, Subscriptions, Trusts
from nusku.broker.view import View
from nusku.broker.waiting import Waiting
from nusku.config import Settings
from nusku.metrics import Metrics
from nusku.model import Context, QueueKey
from nusku.storage import Store

__all__ = [
    "OPERATIONS",
    "Attempt",
    "Broker",
    "Change",
    "ClaimTerms",
    "ClaimView",
    "Created",
    "Failed",
    "NewMessage",
    "Status",
    "Subscription",
    "View",
    "permit",
]


class Broker:
    """All that a transport may call, by noun; and what the notifier works with.

    ``signing_key`` signs URLs, the empty one none.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        metrics: Metrics,
        rng: random.Random,
        *,
        signing_key: str,
        trusts: Trusts,
        addresses: Addresses,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.waiting = Waiting()
        self.queues = Queues(store.messages, store.records, settings, rng)
        self.deliveries = Deliveries(store.messages)
        self.journal = Journal(store.records)
        self.messages = Messages(
            store.messages, self.queues, self.waiting, self.deliveries, settings, metrics
        )
        self.claims = Claims(store.messages, self.queues, self.waiting, settings, metrics)
        self.confirmations = Confirmations(self.deliveries, settings, signing_key, now)
        self.subscriptions = Subscriptions(
            store.records,
            self.queues,
            self.deliveries,
            self.journal,
            self.confirmations,
            trusts,
            addresses,
            settings,
            SubscriptionIds(rng),
            now,
        )
        self.fanout = Fanout(
            self.deliveries,
            self.subscriptions,
            self.queues,
            confirmation=settings.require_confirmation,
        )
        self.shares = Shares(signing_key, settings, now)
        self.health = Health(store, rng)

    async def open(self) -> None:
        """To be called once, before anything else."""
        await self.deliveries.open()

    @operation("*:purge")
    async def purge(self, ctx: Context, key: QueueKey, resource_types: Sequence[str]) -> None:
        """Remove all messages of a queue or topic, all its subscriptions, or both."""
        if "messages" in resource_types:
            await self.queues.clear(key)
        if "subscriptions" in resource_types:
            await self.subscriptions.clear(key)
