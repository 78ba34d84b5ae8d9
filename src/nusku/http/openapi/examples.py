"""The one story that all examples of the document tell, so that they fit together."""

from nusku.http.openapi.parts import Node, Noun

CLIENT_ID = "3381af92-2b9e-11e3-b191-71861300734c"
PROJECT_ID = "demo"
MESSAGE_IDS = ("18c9a0f2b4d1e3a70000000000001", "18c9a0f2b4d1e3a70000000000002")
CLAIM_ID = "51db7067821e727dc24df754c6a09b1e"
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


def next_link(href: str) -> list[Node]:
    return [{"rel": "next", "href": href}]
