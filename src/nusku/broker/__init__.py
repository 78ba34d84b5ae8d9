"""The rules of the service, the same for every transport and every store."""

import random
import time
from collections.abc import Callable, Sequence

from nusku.addresses import Addresses
from nusku.broker.claims import Claims, ClaimTerms, ClaimView
from nusku.broker.codec import Codec
from nusku.broker.confirmations import Confirmations
from nusku.broker.deliveries import Deliveries
from nusku.broker.fanout import Fanout
from nusku.broker.flavors import Flavors
from nusku.broker.following import Follower, Following
from nusku.broker.grants import Grants
from nusku.broker.health import Health
from nusku.broker.ids import SubscriptionIds
from nusku.broker.journal import Attempt, Journal
from nusku.broker.limits import Limits
from nusku.broker.listening import Listener, Listening
from nusku.broker.messages import Messages, NewMessage
from nusku.broker.moving import Moving
from nusku.broker.notices import Notices
from nusku.broker.operation import OPERATIONS, operation, permit
from nusku.broker.pools import Pools
from nusku.broker.queues import Change, Queues
from nusku.broker.quotas import Quotas
from nusku.broker.rates import Rates
from nusku.broker.shares import Shares
from nusku.broker.subscriptions import Created, Failed, Status, Subscription, Subscriptions, Trusts
from nusku.broker.usage import Usage
from nusku.broker.view import View
from nusku.broker.waiting import Waiting
from nusku.config import Settings
from nusku.keyring import Ring
from nusku.metrics import Metrics
from nusku.model import Context, QueueKey
from nusku.storage import Store
from nusku.storage.registry import Mirror

__all__ = [
    "OPERATIONS",
    "Attempt",
    "Broker",
    "Change",
    "ClaimTerms",
    "ClaimView",
    "Created",
    "Failed",
    "Follower",
    "Grants",
    "Listener",
    "NewMessage",
    "Pools",
    "Rates",
    "Status",
    "Subscription",
    "View",
    "permit",
]


class Broker:
    """All that a transport may call, by noun; and what the notifier works with.

    ``signing_key`` signs URLs, the empty one none; ``ring`` encrypts. Without a ``registry``, as in
    what operators do beside a server, no project is limited.
    """

    def __init__(
        self,
        pools: Pools,
        settings: Settings,
        metrics: Metrics,
        rng: random.Random,
        *,
        signing_key: str,
        trusts: Trusts,
        addresses: Addresses,
        ring: Ring | None = None,
        registry: Mirror | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        records = pools.own.records
        self.pools = pools
        self.flavors = Flavors(pools)
        self.waiting = Waiting()
        pools.on_open = self._join
        self._join(pools.own)
        self.codec = Codec(ring or Ring(), metrics)
        limits = Limits(settings, registry)
        self.quotas = Quotas(
            limits,
            pools.own,
            Usage(pools, records).of,
            rng,
            metrics,
            flight_s=settings.store_timeout,
        )
        self.rates = Rates(limits, pools.own, rng, metrics, time.monotonic)
        self.queues = Queues(pools, records, self.codec, self.quotas, settings, rng)
        self.grants = Grants(self.queues.metadata)
        self.moving = Moving(pools, records)
        self.queues.move, self.queues.rescue = self.moving.move, self.moving.rescue
        pools.unplace, pools.drain_step = self.moving.unplace, self.moving.drain_step
        self.notices = Notices(pools)
        self.deliveries = Deliveries(pools.own.messages, self.codec, pools.own.tell)
        self.journal = Journal(records)
        self.messages = Messages(
            self.queues, self.waiting, self.notices, self.codec, self.quotas, settings, metrics
        )
        self.claims = Claims(self.queues, self.waiting, self.codec, settings, metrics)
        self.confirmations = Confirmations(self.deliveries, settings, signing_key, now)
        self.subscriptions = Subscriptions(
            records,
            self.queues,
            self.notices,
            self.deliveries,
            self.journal,
            self.confirmations,
            trusts,
            addresses,
            self.quotas,
            settings,
            SubscriptionIds(rng),
            now,
        )
        self.fanout = Fanout(
            self.notices,
            self.deliveries,
            self.subscriptions,
            self.queues,
            self.codec,
            confirmation=settings.require_confirmation,
        )
        self.following = Following(self.messages, self.waiting)
        self.listening = Listening(self.subscriptions, self.following)
        self.deliveries.on_live_changed = self.listening.changed
        self.shares = Shares(signing_key, settings, now)
        self.health = Health(pools, rng)

    def _join(self, store: Store) -> None:
        """Hear what other nodes have to say about the queues of this store."""
        store.hear(self._heard)
        self.waiting.look_every(store.look_s)

    def _heard(self, key: QueueKey) -> None:
        if key.kind == "delivery":
            self.deliveries.heard(key)
        else:
            self.waiting.call_all(key)

    @operation("*:purge")
    async def purge(self, ctx: Context, key: QueueKey, resource_types: Sequence[str]) -> None:
        """Remove all messages of a queue or topic, all its subscriptions, or both."""
        if "messages" in resource_types:
            await self.queues.clear(key)
        if "subscriptions" in resource_types:
            await self.subscriptions.clear(key)
