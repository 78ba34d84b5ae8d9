"""Claims: take messages for a while, keep them longer, give them back."""

from nusku.broker.rules import PAGE_DEFAULT
from nusku.config import Settings
from nusku.errors import Invalid, InvalidBody, InvalidParameter, NotFound
from nusku.http.openapi.examples import CLAIM_ID, message
from nusku.http.openapi.messages import first_message, wait
from nusku.http.openapi.parts import (
    QUEUE,
    STORED,
    Node,
    answer,
    body,
    integer,
    operation,
    query,
    ref,
    schema,
)

_TAG = "Claims"
_BASE = f"{QUEUE.path}/claims"


def paths(settings: Settings) -> Node:
    named = [
        ref("parameters", "QueueName"),
        ref("parameters", "ClientId"),
        ref("parameters", "OwnerId"),
        ref("parameters", "QueueProjectId"),
    ]
    return {
        _BASE: {"parameters": named, "post": _create(settings)},
        f"{_BASE}/{{claim_id}}": {
            "parameters": [*named, ref("parameters", "ClaimId")],
            "get": _show(settings),
            "patch": _renew(settings),
            "delete": _release(),
        },
    }


def _create(settings: Settings) -> Node:
    top = settings.max_messages_per_claim_or_pop
    return operation(
        "claims:create",
        _TAG,
        "Claim messages",
        "Takes the oldest free messages for yourself: until the claim ends, nobody else can claim "
        "them. Work on them, delete each one by its `href` when it is done, and renew the claim "
        "if that takes longer. If you crash, the claim lapses and others get the messages.\n\n"
        "A message that was already claimed `_max_claim_count` times is moved to the "
        "`_dead_letter_queue` instead, if the queue has both.",
        parameters=[
            query(
                "limit",
                integer(1, top),
                f"How many at most. {PAGE_DEFAULT} if not given.",
                example=min(5, top),
            ),
            wait(settings),
        ],
        body=body(
            schema("ClaimRequest"),
            "How long the claim lasts. Without a body: the defaults.",
            example=_terms(settings),
            required=False,
        ),
        answers={
            201: answer(
                "Claimed. `Location` is the path of the claim.",
                schema("Claimed"),
                example={"messages": [_message(settings)]},
                headers=("Location",),
                links=first_message(QUEUE),
            ),
            204: answer("There is nothing to claim."),
        },
        refusals=(*STORED, QUEUE.invalid_name, Invalid, InvalidBody, InvalidParameter),
    )


def _show(settings: Settings) -> Node:
    ttl_s = _terms(settings)["ttl"]
    return operation(
        "claims:get",
        _TAG,
        "Show a claim",
        "How long it lasts, and what it still holds.",
        answers={
            200: answer(
                "The claim.",
                schema("Claim"),
                example={
                    "age": 19,
                    "ttl": ttl_s,
                    "href": f"{QUEUE.example_path}/claims/{CLAIM_ID}",
                    "messages": [_message(settings)],
                },
            )
        },
        refusals=(*STORED, QUEUE.invalid_name, NotFound),
    )


def _renew(settings: Settings) -> Node:
    return operation(
        "claims:update",
        _TAG,
        "Renew a claim",
        "The claim starts anew with these terms; what is not given is the default, not what it "
        "was. Only a claim that has not ended can be renewed.",
        body=body(
            schema("Terms"), "How long it lasts from now.", example=_terms(settings), required=True
        ),
        answers={204: answer("Renewed.")},
        refusals=(*STORED, QUEUE.invalid_name, Invalid, InvalidBody, NotFound),
    )


def _release() -> Node:
    return operation(
        "claims:delete",
        _TAG,
        "Release a claim",
        "Gives back what it still holds: others can claim these messages at once.",
        answers={204: answer("Released, or there is no such claim any more.")},
        refusals=(*STORED, QUEUE.invalid_name),
    )


def _terms(settings: Settings) -> Node:
    """Terms for the examples that are within the limits."""
    return {
        "ttl": min(max(300, settings.min_claim_ttl), settings.max_claim_ttl),
        "grace": min(max(60, settings.min_claim_grace), settings.max_claim_grace),
    }


def _message(settings: Settings) -> Node:
    ttl_s = min(max(300, settings.min_message_ttl), settings.max_message_ttl)
    return message(QUEUE, ttl_s=ttl_s, claim=CLAIM_ID)
