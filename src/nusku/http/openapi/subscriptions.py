"""Subscriptions to a queue or topic: who is told of its messages, and how that goes."""

from nusku.broker.rules import PAGE_DEFAULT
from nusku.config import Settings
from nusku.errors import (
    Conflict,
    Invalid,
    InvalidBody,
    InvalidParameter,
    NotFound,
    NothingToUpdate,
    NuskuError,
    QuotaExceeded,
    StoreFull,
    TrustFailed,
)
from nusku.http.openapi import examples
from nusku.http.openapi.examples import FAILED_ID, SUBSCRIPTION_ID, next_link
from nusku.http.openapi.parts import (
    STORED,
    Node,
    Noun,
    Refusals,
    answer,
    array,
    body,
    closed,
    integer,
    link,
    open_object,
    operation,
    query,
    ref,
    schema,
    string,
)


def paths(noun: Noun, settings: Settings) -> Node:
    named = [
        ref("parameters", f"{noun.schema}Name"),
        ref("parameters", "ClientId"),
        ref("parameters", "OwnerId"),
    ]
    one = f"{noun.path}/subscriptions/{{subscription_id}}"
    of_one = [*named, ref("parameters", "SubscriptionId")]
    return {
        f"{noun.path}/subscriptions": {
            "parameters": named,
            "post": _create(noun, settings),
            "get": _list(noun, settings),
        },
        one: {
            "parameters": of_one,
            "get": _show(noun, settings),
            "patch": _change(noun, settings),
            "delete": _delete(noun),
        },
        f"{one}/confirm": {"parameters": of_one, "put": _confirm(noun, settings)},
        f"{one}/status": {"parameters": of_one, "get": _status(noun)},
        f"{one}/pause": {"parameters": of_one, "post": _pause(noun)},
        f"{one}/resume": {"parameters": of_one, "post": _resume(noun)},
        f"{one}/failed": {"parameters": of_one, "get": _failed(noun, settings)},
        f"{one}/replay": {"parameters": of_one, "post": _replay(noun, settings)},
        f"{one}/ping": {"parameters": of_one, "post": _ping(noun, settings)},
        f"{one}/secret": {"parameters": of_one, "post": _secret(noun)},
    }


def _named(noun: Noun, *more: type[NuskuError]) -> Refusals:
    return (*STORED, noun.invalid_name, *more)


def _create(noun: Noun, settings: Settings) -> Node:
    return operation(
        f"subscription:create{noun.suffix}",
        noun.subscriptions_tag,
        "Subscribe",
        f"From now on the subscriber is told of every message that is posted to the {noun.one}, "
        "until the subscription expires or is deleted. Messages are told as JSON objects with "
        f"`body`, `ttl`, `delay` if there is one, `queue_name` (of the {noun.one}) and "
        "`Message_Type`, one at a time, in no promised order, and at least once: now and then one "
        "may be told twice.\n\n"
        f"The {noun.one} is created if it is missing, even if the subscription is refused then. "
        "Subscribing the same subscriber again changes nothing and answers with the same id, or "
        "with 409 once the subscription is confirmed."
        + (
            "\n\nThe subscriber is first asked whether it agrees, by a signed request that it has "
            "to send back; until then it is told nothing else."
            if settings.require_confirmation
            else ""
        ),
        body=body(
            schema("SubscriptionDraft"),
            f"The subscription: at most {settings.max_queue_metadata} bytes.",
            example=_draft(settings),
            required=True,
        ),
        answers={
            201: answer(
                "Subscribed. `Location` is the path of all subscriptions.",
                schema("Subscribed"),
                example={"subscription_id": SUBSCRIPTION_ID},
                headers=("Location",),
                links=_made(noun),
            )
        },
        refusals=_named(
            noun, Invalid, InvalidBody, Conflict, QuotaExceeded, StoreFull, TrustFailed
        ),
    )


def _list(noun: Noun, settings: Settings) -> Node:
    top = settings.max_subscriptions_per_page
    href = f"{noun.example_path}/subscriptions?limit=1&marker={SUBSCRIPTION_ID}"
    return operation(
        f"subscription:get_all{noun.suffix}",
        noun.subscriptions_tag,
        "List subscriptions",
        f"Those to the {noun.one}, oldest first.",
        parameters=[
            query(
                "marker",
                string(),
                "Begin after this subscription: the id of the last one of the page before. It "
                "need not exist any more. Anything that is no id gives an empty page.",
            ),
            query("limit", integer(1, top), f"How many at most. {PAGE_DEFAULT} if not given."),
        ],
        answers={
            200: answer(
                "A page, perhaps an empty one.",
                schema("SubscriptionPage"),
                example={
                    "subscriptions": [examples.subscription(noun, settings)],
                    "links": next_link(href),
                },
                links={
                    "show": link(
                        f"subscription:get{noun.suffix}",
                        "The first subscription of the page.",
                        noun,
                        subscription_id="$response.body#/subscriptions/0/id",
                    )
                },
            )
        },
        refusals=_named(noun, Invalid, InvalidParameter),
    )


def _show(noun: Noun, settings: Settings) -> Node:
    return operation(
        f"subscription:get{noun.suffix}",
        noun.subscriptions_tag,
        "Show a subscription",
        "As it was made, but for secrets: they are never shown.",
        answers={
            200: answer(
                "The subscription.",
                schema("Subscription"),
                example=examples.subscription(noun, settings),
            )
        },
        refusals=_named(noun, NotFound),
    )


def _change(noun: Noun, settings: Settings) -> Node:
    return operation(
        f"subscription:update{noun.suffix}",
        noun.subscriptions_tag,
        "Change a subscription",
        "Takes at least one of the members. A `ttl` begins a new lifetime, `options` replace all "
        "that there were."
        + (
            " A new subscriber is asked whether it agrees, like that of a new subscription."
            if settings.require_confirmation
            else ""
        ),
        body=body(
            schema("SubscriptionChange"),
            f"What to change: at most {settings.max_queue_metadata} bytes.",
            example={"ttl": examples.subscription_ttl_s(settings)},
            required=True,
        ),
        answers={
            204: answer("Changed. `Location` is the subscription's path.", headers=("Location",))
        },
        refusals=_named(
            noun, Invalid, InvalidBody, NothingToUpdate, NotFound, Conflict, StoreFull, TrustFailed
        ),
    )


def _delete(noun: Noun) -> Node:
    return operation(
        f"subscription:delete{noun.suffix}",
        noun.subscriptions_tag,
        "Unsubscribe",
        "Nothing more is told, not even what was still to be delivered or was kept for replay.",
        answers={204: answer("Deleted, or there is no such subscription any more.")},
        refusals=_named(noun),
    )


def _confirm(noun: Noun, settings: Settings) -> Node:
    meaning = (
        "With `true`, messages are told from now on. With `false`, none are, and the subscriber is "
        "told how to come back."
        if settings.require_confirmation
        else "On this server subscriptions count without being confirmed, so this is only noted."
    )
    return operation(
        f"subscription:confirm{noun.suffix}",
        noun.subscriptions_tag,
        "Confirm a subscription, or take that back",
        "What a subscriber sends who was asked to, with the headers `URL-Signature`, "
        "`URL-Methods`, `URL-Paths`, `URL-Expires` and `X-Project-ID` as they came with the "
        f"question. {meaning}",
        body=body(
            open_object({"confirmed": {"type": "boolean"}}, required=("confirmed",)),
            "Whether it is wanted.",
            example={"confirmed": True},
            required=True,
        ),
        answers={204: answer("Noted. `Location` is this path.", headers=("Location",))},
        refusals=_named(noun, Invalid, InvalidBody, NotFound, StoreFull),
    )


def _status(noun: Noun) -> Node:
    return operation(
        f"subscription:get:status{noun.suffix}",
        noun.subscriptions_tag,
        "See how deliveries go",
        "Whether anything is delivered, how much waits or was given up, and the latest attempts.",
        answers={
            200: answer("How it goes.", schema("SubscriptionStatus"), example=examples.status())
        },
        refusals=_named(noun, NotFound),
    )


def _pause(noun: Noun) -> Node:
    return operation(
        f"subscription:update:pause{noun.suffix}",
        noun.subscriptions_tag,
        "Pause deliveries",
        "Messages are still collected for the subscriber, but nothing is sent until you resume. "
        "A subscriber that answers with 410 is paused by the server.",
        answers={204: answer("Paused; perhaps it was already.")},
        refusals=_named(noun, NotFound, StoreFull),
    )


def _resume(noun: Noun) -> Node:
    return operation(
        f"subscription:update:resume{noun.suffix}",
        noun.subscriptions_tag,
        "Resume deliveries",
        "What has been collected is sent now.",
        answers={204: answer("Resumed, or it was not paused.")},
        refusals=_named(noun, NotFound, StoreFull),
    )


def _failed(noun: Noun, settings: Settings) -> Node:
    top = settings.max_messages_per_page
    href = f"{noun.example_path}/subscriptions/{SUBSCRIPTION_ID}/failed?limit=1&marker={FAILED_ID}"
    return operation(
        f"subscription:get:failed{noun.suffix}",
        noun.subscriptions_tag,
        "List deliveries that were given up",
        "Those that the subscriber refused or that were tried as often as the retry policy says, "
        f"oldest first. Each is kept for {settings.delivery_keep} seconds.",
        parameters=[
            query(
                "marker",
                string(),
                "Begin after this delivery: the id of the last one of the page before. Anything "
                "that is no id gives an empty page.",
            ),
            query("limit", integer(1, top), f"How many at most. {PAGE_DEFAULT} if not given."),
        ],
        answers={
            200: answer(
                "A page, perhaps an empty one.",
                schema("FailedPage"),
                example={
                    "failed": [examples.failed(noun, ttl_s=settings.default_message_ttl)],
                    "links": next_link(href),
                },
            )
        },
        refusals=_named(noun, Invalid, InvalidParameter, NotFound),
    )


def _replay(noun: Noun, settings: Settings) -> Node:
    ids = array(
        string(), "Ids as they were listed. Unknown ones are passed over.",
        maxItems=settings.max_messages_per_page,
    )  # fmt: skip
    return operation(
        f"subscription:update:replay{noun.suffix}",
        noun.subscriptions_tag,
        "Send again what was given up",
        "The deliveries start anew, with all the attempts that the retry policy grants.",
        body=body(
            open_object({"ids": ids}, required=("ids",)),
            "Which ones. Without a body: all.",
            example={"ids": [FAILED_ID]},
            required=False,
        ),
        answers={
            200: answer(
                "They are on their way.",
                closed({"replayed": integer(0, None, "How many there are.")}),
                example={"replayed": 1},
            )
        },
        refusals=_named(noun, Invalid, InvalidBody, NotFound, StoreFull),
    )


def _ping(noun: Noun, settings: Settings) -> Node:
    return operation(
        f"subscription:update:ping{noun.suffix}",
        noun.subscriptions_tag,
        "Send a test",
        "Sends a test document to the subscriber, once, in the form of a message, and answers with "
        f"what became of it, after {settings.delivery_timeout:g} seconds at most. Works on a "
        "paused subscription too, but not on one that has still to be confirmed.",
        answers={
            200: answer(
                "It was tried; `outcome` says how that went.",
                schema("PingOutcome"),
                example=examples.outcome(),
            )
        },
        refusals=_named(noun, NotFound, Conflict),
    )


def _secret(noun: Noun) -> Node:
    return operation(
        f"subscription:update:secret{noun.suffix}",
        noun.subscriptions_tag,
        "Make a new signing secret",
        "From now on deliveries are signed with the new secret and with the newest of those there "
        "were, so that the subscriber has time to learn the new one. Of a subscription that was "
        "not signed, deliveries are from now on.",
        answers={
            200: answer(
                "The new secret. It is not shown again.",
                closed({"signing_secret": schema("SigningSecret")}),
                example={"signing_secret": examples.SIGNED_WITH},
            )
        },
        refusals=_named(noun, NotFound, StoreFull),
    )


def _made(noun: Noun) -> Node:
    """Links to the new subscription and what can be done about it."""
    text, id_ = "The subscription.", "$response.body#/subscription_id"
    return {
        verb: link(f"subscription:{name}{noun.suffix}", text, noun, subscription_id=id_)
        for verb, name in {
            "show": "get",
            "change": "update",
            "delete": "delete",
            "confirm": "confirm",
            "status": "get:status",
            "pause": "update:pause",
            "resume": "update:resume",
            "failed": "get:failed",
            "replay": "update:replay",
        }.items()
    }


def _draft(settings: Settings) -> Node:
    return {
        "subscriber": examples.SUBSCRIBER,
        "ttl": examples.subscription_ttl_s(settings),
        "options": {"post_headers": {"X-Shop": "berlin"}},
    }
