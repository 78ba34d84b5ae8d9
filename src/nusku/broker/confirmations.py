"""The question whether a subscriber agrees to be told (contract notifications.md section 7)."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable

import msgspec
import structlog

from nusku import signing
from nusku.broker import subscribers
from nusku.broker.deliveries import Deliveries, Progress, delivery_key, draft
from nusku.config import Settings
from nusku.model import QueueKey

log = structlog.get_logger("nusku.subscriptions")

_MESSAGES = {
    "SubscriptionConfirmation": "You have chosen to subscribe to the {}: {}",
    "UnsubscribeConfirmation": (
        "You have unsubscribed from the {}: {}. To subscribe again, send the request below with"
        " confirmed = True."
    ),
}

ASKED_AN_HOUR = 20  # confirmations that a project may have sent to one subscriber
REMEMBERED = 10_000  # subscribers of whom that is known
_POLICY: dict[str, object] = {}  # all defaults of section 6, whatever the queue's deliveries get


class Confirmations:
    """Asks subscribers, as deliveries of their own. Does nothing where no question is asked."""

    def __init__(
        self,
        deliveries: Deliveries,
        settings: Settings,
        secret: str,
        now: Callable[[], float],
    ) -> None:
        self._deliveries = deliveries
        self._required = settings.require_confirmation
        self._again_s = settings.default_subscription_ttl
        self._public_url = settings.public_url.rstrip("/")
        self._secret = secret
        self._now = now
        self._asked: OrderedDict[tuple[str, str, str], deque[float]] = OrderedDict()

    async def subscribed(
        self, key: QueueKey, subscription: str, subscriber: str, ttl_s: int
    ) -> None:
        """Ask whether the subscription is wanted; the answer counts for as long as it lives."""
        await self._ask("SubscriptionConfirmation", key, subscription, subscriber, ttl_s)

    async def unsubscribed(self, key: QueueKey, subscription: str, subscriber: str) -> None:
        """Tell that it is over, and how to come back."""
        await self._ask("UnsubscribeConfirmation", key, subscription, subscriber, self._again_s)

    async def _ask(
        self, type_: str, key: QueueKey, subscription: str, subscriber: str, ttl_s: int
    ) -> None:
        if not self._required:
            return
        if self._often("asked", key.project, subscriber):
            log.warning("a subscriber was asked often enough", subscription=subscription)
            return
        if not self._secret:
            log.error("a confirmation cannot be sent: secret_key is not set", queue=key.name)
            return
        now_s = self._now()
        body = msgspec.json.encode(self._document(type_, key, subscription, now_s + ttl_s))
        now_ms = int(now_s * 1000)
        id_ = f"{now_ms:x}-{type_[0].lower()}"
        progress = Progress(id_, now_ms, "confirmation", _POLICY)
        target = delivery_key(key.project, subscription)
        await self._deliveries.add({target: [draft(body, progress)]})

    def pesters(self, project: str, subscriber: str) -> bool:
        """Whether to send one more question would be too much, be it a replayed one, or one that
        was made for whoever had the subscription before.
        """
        return self._often("sent", project, subscriber)

    def _often(self, what: str, project: str, subscriber: str) -> bool:
        """Whether once more would be too often. Anybody can be made a subscriber."""
        now_s = self._now()
        one = (what, project, subscribers.addressee(subscriber))
        asked = self._asked.setdefault(one, deque())
        self._asked.move_to_end(one)
        if len(self._asked) > REMEMBERED:
            self._asked.popitem(last=False)
        while asked and asked[0] <= now_s - 3600:
            asked.popleft()
        if len(asked) >= ASKED_AN_HOUR:
            return True
        asked.append(now_s)
        return False

    def _document(
        self, type_: str, key: QueueKey, subscription: str, until_s: float
    ) -> dict[str, object]:
        path = f"/v2/{key.kind}s/{key.name}/subscriptions/{subscription}/confirm"
        expires = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(until_s))
        document: dict[str, object] = {
            "Message_Type": type_,
            "Message": _MESSAGES[type_].format(key.kind, key.name),
            "queue_name": key.name,
            "URL-Signature": signing.sign(self._secret, [path], ["PUT"], key.project, expires),
            "URL-Methods": "PUT",
            "URL-Paths": path,
            "URL-Expires": expires,
            "X-Project-ID": key.project,
            "SubscribeBody": {"confirmed": True},
            "UnsubscribeBody": {"confirmed": False},
        }
        if self._public_url:
            document["WSGISubscribeURL"] = f"{self._public_url}{path}"
        return document


def unsigned(document: bytes) -> bytes:
    """A confirmation without what only its addressee may use."""
    members = msgspec.json.decode(document)
    return msgspec.json.encode({k: v for k, v in members.items() if not k.startswith("URL-")})
