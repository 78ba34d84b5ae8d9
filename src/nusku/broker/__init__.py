"""The rules of the service, the same for every transport and every store."""

import random

from nusku.broker.claims import Claims, ClaimTerms, ClaimView
from nusku.broker.health import Health
from nusku.broker.messages import Messages, NewMessage
from nusku.broker.operation import OPERATIONS, permit
from nusku.broker.queues import Change, Queues
from nusku.broker.view import View
from nusku.broker.waiting import Waiting
from nusku.config import Settings
from nusku.metrics import Metrics
from nusku.storage import Store

__all__ = [
    "OPERATIONS",
    "Broker",
    "Change",
    "ClaimTerms",
    "ClaimView",
    "NewMessage",
    "View",
    "permit",
]


class Broker:
    """All that a transport may call, by noun."""

    def __init__(
        self, store: Store, settings: Settings, metrics: Metrics, rng: random.Random
    ) -> None:
        self.waiting = Waiting()
        self.queues = Queues(store.messages, store.records, settings, rng)
        parts = (store.messages, self.queues, self.waiting, settings, metrics)
        self.messages = Messages(*parts)
        self.claims = Claims(*parts)
        self.health = Health(store, rng)
