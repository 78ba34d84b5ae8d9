"""The shapes of bodies: of queues and topics, messages, and claims."""

from nusku.broker.grants import GRANTS_MAX, NAME_MAX, RIGHTS
from nusku.broker.rules import PAGE_DEFAULT, RETRY_FUNCTIONS, RETRY_NUMBERS
from nusku.config import Settings
from nusku.http.openapi.parts import (
    QUEUE,
    Node,
    Noun,
    array,
    closed,
    described,
    integer,
    open_object,
    schema,
    string,
)

NAME = r"^(?!\.{1,2}$)[A-Za-z0-9_.-]{1,64}$"
_NAMED = {"minLength": 1, "maxLength": NAME_MAX}
_CREATED = r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z$"


def metadata(settings: Settings) -> Node:
    texts = {
        "retries_with_no_delay": "How often it is tried again at once. 3 if not given.",
        "minimum_delay_retries": "How often then, with the shortest delay. 3 if not given.",
        "minimum_delay": "Seconds. 5 if not given.",
        "maximum_delay": "Seconds. 30 if not given.",
        "maximum_delay_retries": "How often at last, with the longest delay. 3 if not given.",
    }
    return {
        "RetryPolicy": open_object(
            {
                **{
                    name: integer(least, most, texts[name], null=True)
                    for name, (least, most, _) in RETRY_NUMBERS.items()
                },
                "retry_backoff_function": {"enum": [*RETRY_FUNCTIONS, None]},
                "ignore_subscription_override": {"type": ["boolean", "null"]},
            },
            "How deliveries to subscribers are tried again, a hundred times at most. "
            "`maximum_delay` must be at least 10 more than `minimum_delay`; in between the delays "
            "grow by the `retry_backoff_function`, `linear` if not given.",
        ),
        "Grant": {
            **closed(
                {
                    "may": array({"enum": [*RIGHTS]}, "What they may do.", minItems=1),
                    "project": string(
                        "Whose callers; the project of the queue if not given.", **_NAMED
                    ),
                    "user": string("The id of a user, the only one then.", **_NAMED),
                    "role": string("A role that they must have in their project.", **_NAMED),
                },
                "Somebody who may do something. At least one of `project`, `user` and `role`.",
                optional=("project", "user", "role"),
            ),
            "minProperties": 2,
        },
        "Metadata": open_object(
            _reserved(settings),
            "Any JSON object: what you want to note about it. Keys that begin with `_` are "
            "reserved; those listed here have a meaning. `null` stands for the default.",
        ),
    }


def _reserved(settings: Settings) -> dict[str, Node]:
    ttl = (settings.min_message_ttl, settings.max_message_ttl)
    return {
        "_max_messages_post_size": integer(
            1,
            settings.max_messages_post_size,
            "How many bytes one request that posts messages may have.",
            null=True,
        ),
        "_default_message_ttl": integer(
            *ttl, "Lifetime of messages posted without one, in seconds.", null=True
        ),
        "_default_message_delay": integer(
            0,
            settings.max_message_delay,
            "Delay of messages posted without one, in seconds.",
            null=True,
        ),
        "_dead_letter_queue": {
            "type": ["string", "null"],
            "pattern": NAME,
            "description": "The queue that takes messages which were claimed too often.",
        },
        "_dead_letter_queue_messages_ttl": integer(
            *ttl, "New lifetime, in seconds, of a message moved there.", null=True
        ),
        "_max_claim_count": integer(
            None, None, "How often a message may be claimed before it is moved.", null=True
        ),
        "_enable_encrypt_messages": {
            "type": ["boolean", "null"],
            "description": "Whether bodies are encrypted where they are stored. Takes keys that the "
            "server knows; what was posted before stays as it is.",
        },
        "_retry_policy": {"anyOf": [schema("RetryPolicy"), {"type": "null"}]},
        "_grants": {
            "anyOf": [array(schema("Grant"), maxItems=GRANTS_MAX), {"type": "null"}],
            "description": "Who else may use it. Making a grant takes leave to share the queue, "
            "and to do oneself what is granted.",
        },
    }


def _shown(noun: Noun) -> dict[str, Node]:
    """The keys that are always shown, with the default where nothing is stored."""
    shown: dict[str, Node] = {
        "_max_messages_post_size": {"type": "integer"},
        "_default_message_ttl": {"type": "integer"},
        "_default_message_delay": {"type": "integer"},
    }
    if noun is QUEUE:
        shown |= {
            "_dead_letter_queue": {"type": ["string", "null"]},
            "_dead_letter_queue_messages_ttl": {"type": ["integer", "null"]},
            "_max_claim_count": {"type": ["integer", "null"]},
            "_enable_encrypt_messages": {"type": "boolean"},
        }
    return shown


def queues(noun: Noun, settings: Settings) -> Node:
    """Listing, metadata as shown and stats of queues or topics."""
    shown = _shown(noun)
    item = closed(
        {
            "name": string(),
            "href": string(f"Path of the {noun.one}."),
            "metadata": described(
                schema(f"{noun.schema}Metadata"), "Only if `detailed` was asked for."
            ),
        },
        optional=("metadata",),
    )
    page = {
        noun.many: array(
            item, "In order of their names.", maxItems=_page_max(settings.max_queues_per_page)
        ),
        "links": schema("Links"),
    }
    if noun is QUEUE:
        page["count"] = integer(
            1,
            None,
            "How many queues the project has; only if `with_count` was asked for, and not 0.",
        )
    mark = f"{noun.schema}Mark"
    return {
        f"{noun.schema}Page": closed(page, optional=("count",)),
        f"{noun.schema}Metadata": open_object(
            shown,
            f"What is noted about the {noun.one}, and the defaults of what is not.",
            required=tuple(shown),
        ),
        mark: closed(
            {
                "age": integer(0, None, "Seconds since it was posted."),
                "created": string("UTC.", format="date-time", pattern=_CREATED),
                "href": string("Path of the message."),
            }
        ),
        f"{noun.schema}Stats": closed(
            {
                "messages": closed(
                    {
                        "claimed": integer(0, None, "Messages that a claim holds."),
                        "free": integer(0, None, "All others, delayed ones too."),
                        "total": integer(0, None, "Both together."),
                        "oldest": schema(mark),
                        "newest": schema(mark),
                    },
                    "`oldest` and `newest` are there if there is a message.",
                    optional=("oldest", "newest"),
                )
            }
        ),
    }


def messages(settings: Settings) -> Node:
    seen: dict[str, Node] = {
        "id": string(pattern="^[A-Za-z0-9_-]+$"),
        "href": string(
            "Path of the message. While a claim holds it, the id of that claim follows as "
            "`?claim_id=`.",
            pattern="^/v2/",
        ),
        "ttl": integer(0, None, "Lifetime in seconds, as posted or as a claim has extended it."),
        "age": integer(0, None, "Whole seconds since it was posted."),
        "body": schema("Any"),
        "checksum": string(
            "MD5 of the body as JSON text, if the server was told to make checksums.",
            pattern="^MD5:[0-9a-f]{32}$",
        ),
    }
    popped = {name: node for name, node in seen.items() if name != "href"}
    popped["claim_id"] = {"type": ["string", "null"]}
    popped["claim_count"] = integer(0, None, "How often it had been claimed.")
    page = array(schema("Message"), maxItems=_page_max(settings.max_messages_per_page))
    taken = settings.max_messages_per_claim_or_pop
    return {
        "Draft": open_object(
            {
                "body": schema("Any"),
                "ttl": integer(
                    settings.min_message_ttl,
                    settings.max_message_ttl,
                    "Seconds until it expires. If not given, the `_default_message_ttl` of where "
                    f"it is posted, and without that {settings.default_message_ttl}.",
                ),
                "delay": integer(
                    0,
                    settings.max_message_delay,
                    "Seconds during which it is hidden. If not given, the "
                    "`_default_message_delay` of where it is posted.",
                ),
            },
            "A message to be posted.",
            required=("body",),
        ),
        "Post": open_object(
            {
                "messages": array(
                    schema("Draft"),
                    "As many as the size limit allows; all are stored, or none.",
                    minItems=1,
                )
            },
            required=("messages",),
        ),
        "Posted": closed(
            {
                "resources": array(
                    string(pattern="^/v2/"),
                    "A path for each message, in the order sent.",
                    minItems=1,
                )
            }
        ),
        "Message": closed(seen, optional=("checksum",)),
        "MessagePage": closed(
            {
                "messages": described(page, "Oldest first; if `ids` were given, in their order."),
                "links": described(schema("Links"), "Not there if `ids` were given."),
            },
            optional=("links",),
        ),
        "Popped": closed(
            {
                "messages": array(
                    closed(popped, optional=("checksum",)), "Oldest first.", maxItems=taken
                )
            }
        ),
    }


def claims(settings: Settings) -> Node:
    taken = array(
        schema("Message"),
        "Oldest first.",
        minItems=1,
        maxItems=_page_max(settings.max_messages_per_claim_or_pop),
    )
    terms: dict[str, Node] = {
        "ttl": integer(
            settings.min_claim_ttl,
            settings.max_claim_ttl,
            "Seconds until the claim lapses and its messages can be claimed by others. "
            f"{settings.default_claim_ttl} if not given.",
            null=True,
        ),
        "grace": integer(
            settings.min_claim_grace,
            settings.max_claim_grace,
            "A message that would expire before the claim ends is kept until this many seconds "
            f"after that end. {settings.default_claim_grace} if not given.",
            null=True,
        ),
    }
    limit: Node = {
        "description": "How many at most, if the query has no `limit`. Ignored if it is none of "
        "the numbers allowed there."
    }
    return {
        "Terms": open_object(terms, "How long a claim lasts."),
        "ClaimRequest": open_object({**terms, "limit": limit}, "How long it lasts, for how many."),
        "Claimed": closed({"messages": taken}),
        "Claim": closed(
            {
                "age": integer(0, None, "Seconds since the claim was made or last renewed."),
                "ttl": integer(0, None, "Seconds from then until it lapses."),
                "href": string("Path of the claim.", pattern="^/v2/"),
                "messages": described(taken, "What it still holds, oldest first."),
            }
        ),
    }


def _page_max(limit_max: int) -> int:
    """How long a page can be: without a limit it has the default length, whatever the maximum."""
    return max(limit_max, PAGE_DEFAULT)
