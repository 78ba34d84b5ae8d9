"""The shapes of bodies: of subscriptions, and of how their deliveries go."""

from nusku.broker.rules import PAGE_DEFAULT
from nusku.broker.subscribers import (
    CLOUDEVENTS,
    HEADERS_MAX,
    LINE_CHARACTERS_MAX,
    URI_CHARACTERS_MAX,
)
from nusku.config import Settings
from nusku.http.openapi.parts import (
    Node,
    array,
    closed,
    described,
    integer,
    open_object,
    schema,
    string,
)
from nusku.http.openapi.schemas import NAME

_ID = "^[0-9a-f]{24}$"
_MOMENT = r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z$"


# Without control characters and what else ends a line.
_LINE = rf"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]{{0,{LINE_CHARACTERS_MAX}}}$"

# A message has one form at a time; and a change changes something.
_ONE_FORM: Node = {
    "not": {
        "required": ["post_data", "_cloudevents"],
        "properties": {"post_data": {"type": "string"}, "_cloudevents": {"type": "string"}},
    }
}
_AT_LEAST_ONE: Node = {
    "anyOf": [
        {"required": [name], "properties": {name: {"not": {"type": "null"}}}}
        for name in ("subscriber", "ttl", "options")
    ]
}


def schemas(settings: Settings) -> Node:
    """All that the operations on subscriptions refer to."""
    return {**_options(), **_requests(settings), **_shown(settings), **_deliveries(settings)}


def _options() -> Node:
    return {
        "SigningSecret": string(
            "`whsec_` and 24 to 64 bytes in Base64.",
            pattern="^whsec_([A-Za-z0-9+/]{4}){8,20}([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}="
            "|[A-Za-z0-9+/]{4}([A-Za-z0-9+/]{2}==)?)?$",
        ),
        "SubscriptionOptions": _ONE_FORM
        | open_object(
            {
                "post_headers": {
                    "type": ["object", "null"],
                    "maxProperties": HEADERS_MAX,
                    "propertyNames": {"pattern": r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"},
                    "additionalProperties": string(pattern=r"^[\t\x20-\x7e\x80-\xff]*$"),
                    "description": "Headers to send along, by name. Those that say where a request goes or "
                    "ends, such as `Host`, and those that are the server's to set are refused.",
                },
                "post_data": _text(
                    "Of webhooks: a text to send instead of the document. In it every "
                    '`"$zaqar_message$"`, quotes included, stands for the document.'
                ),
                "_retry_policy": {
                    "anyOf": [schema("RetryPolicy"), {"type": "null"}],
                    "description": "Instead of the one of the queue or topic. Without any, what "
                    "fails is tried again for 27 hours.",
                },
                "from": _text("Of mails: the sender.", pattern=_LINE),
                "subject": _text("Of mails: the subject.", pattern=_LINE),
                "trust_id": _text(
                    "Of `trust+http` and `trust+https`: a trust to use. One is made if not given.",
                    pattern="^[A-Za-z0-9_-]{1,255}$",
                ),
                "_dead_letter_queue": _text(
                    "A queue that gets a copy of every delivery that is given up.", pattern=NAME
                ),
                "_signing": {
                    "description": "Sign what is sent, as the Standard Webhooks specification "
                    "says. `true` makes a secret, which the answer shows this once; or give one, "
                    "or two while you change from one to the other, the newer first. Shown as "
                    "`true` ever after; `true` in a change keeps what there is.",
                    "anyOf": [
                        {"type": ["boolean", "null"]},
                        schema("SigningSecret"),
                        array(schema("SigningSecret"), minItems=1, maxItems=2),
                    ],
                },
                "_cloudevents": {
                    "enum": [*CLOUDEVENTS, None],
                    "description": "Send CloudEvents 1.0, in this mode. Not together with "
                    "`post_data`.",
                },
            },
            "How to tell the subscriber. Members that are not listed here are kept as they are; "
            "`null` for one that is counts as not given.",
        ),
    }


def _text(text: str, **more: object) -> Node:
    return {**string(text, **more), "type": ["string", "null"]}


def _requests(settings: Settings) -> Node:
    kinds = ", ".join(f"`{kind}`" for kind in settings.subscriber_types)
    subscriber = string(
        f"Who is told: a URI with one of the schemes {kinds}. Addresses that are not public may be "
        "refused.",
        format="uri",
        maxLength=URI_CHARACTERS_MAX,
    )
    ttl = integer(
        settings.min_subscription_ttl,
        None,
        "Seconds until the subscription expires, before the year 10000. "
        f"{settings.default_subscription_ttl} if not given.",
        null=True,
    )
    options: Node = {
        "anyOf": [schema("SubscriptionOptions"), {"type": "null"}],
        "description": "How the subscriber is told.",
    }
    return {
        "SubscriptionDraft": open_object(
            {"subscriber": subscriber, "ttl": ttl, "options": options},
            "A new subscription.",
            required=("subscriber",),
        ),
        "SubscriptionChange": _AT_LEAST_ONE
        | open_object(
            {
                "subscriber": {**subscriber, "type": ["string", "null"]},
                "ttl": described(ttl, "Seconds until it expires, from now."),
                "options": described(options, "Instead of all that there were."),
            },
            "What to change: at least one of these. `null` leaves a member as it is.",
        ),
        "Subscribed": closed(
            {
                "subscription_id": string(pattern=_ID),
                "signing_secret": described(
                    schema("SigningSecret"),
                    "Only if `_signing` asked for one to be made. It is not shown again.",
                ),
            },
            optional=("signing_secret",),
        ),
    }


def _shown(settings: Settings) -> Node:
    return {
        "Subscription": closed(
            {
                "id": string(pattern=_ID),
                "source": string("The name of the queue or topic."),
                "subscriber": string("As it was given."),
                "ttl": integer(0, None, "Lifetime in seconds, from its beginning or last change."),
                "age": integer(0, None, "Whole seconds since it was made."),
                "options": {"type": "object", "description": "As they were given, save secrets."},
                "confirmed": {
                    "type": "boolean",
                    "description": "Whether the subscriber has confirmed it.",
                },
            }
        ),
        "SubscriptionPage": closed(
            {
                "subscriptions": array(
                    schema("Subscription"),
                    "Oldest first.",
                    maxItems=max(settings.max_subscriptions_per_page, PAGE_DEFAULT),
                ),
                "links": schema("Links"),
            }
        ),
    }


def _deliveries(settings: Settings) -> Node:
    outcome: dict[str, Node] = {
        "outcome": {
            "enum": ["delivered", "failed", "refused"],
            "description": "`failed` ones are tried again, `refused` ones are not.",
        },
        "reason": string("In a word, why not. Empty if delivered."),
        "status": {
            "type": ["integer", "null"],
            "description": "What the subscriber answered: the status of HTTP, the code of SMTP.",
        },
        "duration_ms": {"type": "number", "minimum": 0, "description": "Milliseconds."},
        "detail": string("What happened, for people to read."),
    }
    return {
        "PingOutcome": closed(outcome, "What became of one attempt."),
        "Attempt": closed(
            {"time": string("UTC.", format="date-time", pattern=_MOMENT), **outcome},
            "One attempt at a delivery.",
        ),
        "SubscriptionStatus": closed(
            {
                "state": {"enum": ["active", "paused"]},
                "reason": string("Of a paused one: `requested`, or `gone` after a 410."),
                "pending": integer(0, None, "Deliveries that are still to be made."),
                "failed": integer(0, None, "Deliveries that were given up and are kept."),
                "delivered": integer(0, None, "Deliveries that were made."),
                "oldest_pending_age": integer(
                    0, None, "Seconds since the oldest pending one was posted.", null=True
                ),
                "attempts": array(schema("Attempt"), "The latest, newest first.", maxItems=20),
            }
        ),
        "Failed": closed(
            {
                "id": string(pattern="^[A-Za-z0-9_-]+$"),
                "age": integer(0, None, "Seconds since it was posted."),
                "attempts": integer(0, None, "How often it was tried."),
                "reason": string("Why the last attempt failed, for people to read."),
                "body": {"type": "object", "description": "The document that was sent."},
            },
            "A delivery that was given up.",
        ),
        "FailedPage": closed(
            {
                "failed": array(
                    schema("Failed"),
                    "Oldest first.",
                    maxItems=max(settings.max_messages_per_page, PAGE_DEFAULT),
                ),
                "links": schema("Links"),
            }
        ),
    }
