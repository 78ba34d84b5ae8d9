"""The one story that all examples of the document tell, so that they fit together."""

from nusku.config import Settings
from nusku.http.openapi.parts import Node, Noun

CLIENT_ID = "3381af92-2b9e-11e3-b191-71861300734c"
PROJECT_ID = "demo"
MESSAGE_IDS = ("18c9a0f2b4d1e3a70000000000001", "18c9a0f2b4d1e3a70000000000002")
CLAIM_ID = "51db7067821e727dc24df754c6a09b1e"
SUBSCRIPTION_ID = "57692ab13990b48c644bb7e6"
FAILED_ID = f"{SUBSCRIPTION_ID}-17"
# Names that end in .example belong to nobody.
SUBSCRIBER = "https://shop.example/hooks/orders"
SIGNED_WITH = "whsec_cGxlYXNlIGRvIG5vdCB1c2UgdGhpcyBvbmUhISE="
BODY: Node = {"event": "order placed", "number": 4711}


def message(noun: Noun, *, ttl_s: int, age_s: int = 17, claim: str | None = None) -> Node:
    href = f"{noun.example_path}/messages/{MESSAGE_IDS[0]}"
    return {
        "id": MESSAGE_IDS[0],
        "href": f"{href}?claim_id={claim}" if claim else href,
        "ttl": ttl_s,
        "age": age_s,
        "body": BODY,
    }


def popped(*, ttl_s: int) -> Node:
    return {
        "id": MESSAGE_IDS[0],
        "age": 3,
        "ttl": ttl_s,
        "body": BODY,
        "claim_id": None,
        "claim_count": 0,
    }


def subscription(noun: Noun, settings: Settings) -> Node:
    return {
        "id": SUBSCRIPTION_ID,
        "source": noun.example,
        "subscriber": SUBSCRIBER,
        "ttl": subscription_ttl_s(settings),
        "age": 12,
        "options": {},
        "confirmed": False,
    }


def subscription_ttl_s(settings: Settings) -> int:
    """A lifetime that is within the limits."""
    return max(86_400, settings.min_subscription_ttl)


def outcome(*, ok: bool = True) -> Node:
    """What became of an attempt."""
    if ok:
        return {
            "outcome": "delivered",
            "reason": "",
            "status": 200,
            "duration_ms": 41.7,
            "detail": "",
        }
    return {
        "outcome": "failed",
        "reason": "status",
        "status": 503,
        "duration_ms": 38.2,
        "detail": "The subscriber answered 503.",
    }


def status() -> Node:
    return {
        "state": "active",
        "reason": "",
        "pending": 1,
        "failed": 0,
        "delivered": 4710,
        "oldest_pending_age": 6,
        "attempts": [
            {"time": "2026-01-02T03:04:56.789Z", **outcome(ok=False)},
            {"time": "2026-01-02T03:04:05.678Z", **outcome()},
        ],
    }


def failed(noun: Noun, *, ttl_s: int) -> Node:
    return {
        "id": FAILED_ID,
        "age": 97_201,
        "attempts": 19,
        "reason": "The subscriber answered 503.",
        "body": {
            "body": BODY,
            "ttl": ttl_s,
            "queue_name": noun.example,
            "Message_Type": "Notification",
        },
    }


def next_link(href: str) -> list[Node]:
    return [{"rel": "next", "href": href}]
