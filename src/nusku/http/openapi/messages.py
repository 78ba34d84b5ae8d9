"""Messages of a queue or topic: post, list, show, delete, pop."""

from typing import cast

from nusku.broker.rules import PAGE_DEFAULT
from nusku.config import Settings
from nusku.errors import (
    ClaimMismatch,
    Invalid,
    InvalidBody,
    InvalidParameter,
    MessageClaimed,
    NotFound,
    QuotaExceeded,
    StoreFull,
)
from nusku.http.openapi.examples import BODY, CLAIM_ID, MESSAGE_IDS, message, next_link, popped
from nusku.http.openapi.parts import (
    QUEUE,
    STORED,
    Node,
    Noun,
    Refusals,
    answer,
    array,
    body,
    flag,
    header,
    integer,
    link,
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
        ref("parameters", "QueueProjectId"),
    ]
    return {
        f"{noun.path}/messages": {
            "parameters": named,
            "post": _post(noun, settings),
            "get": _list(noun, settings),
            "delete": _delete_several(noun, settings),
        },
        f"{noun.path}/messages/{{message_id}}": {
            "parameters": [*named, ref("parameters", "MessageId")],
            "get": _show(noun, settings),
            "delete": _delete(noun),
        },
    }


def wait(settings: Settings) -> Node:
    """Long polling, which listings and claims offer."""
    return query(
        "wait",
        integer(0, settings.max_wait),
        "If there is nothing, wait up to this many seconds for something to come, and answer at "
        "once when it does. 0 if not given.",
    )


_IN_QUERY = (
    ("client_id", "in the place of `Client-ID`."),
    ("project_id", "in the place of `X-Project-ID`."),
    ("signature", "in the place of `URL-Signature`."),
    ("methods", "in the place of `URL-Methods`."),
    ("paths", "in the place of `URL-Paths`."),
    ("expires", "in the place of `URL-Expires`."),
)


def _post(noun: Noun, settings: Settings) -> Node:
    base = f"{noun.example_path}/messages/"
    return operation(
        f"messages:create{noun.suffix}",
        noun.messages_tag,
        "Post messages",
        f"Appends messages to the {noun.one}, in the order given, and creates the {noun.one} if "
        "it is missing, even if the post is refused then. There is no protection against posting "
        "twice: after an answer of 503 the messages may have been stored or not.",
        body=body(
            schema("Post"),
            f"The messages. The whole body may have {settings.max_messages_post_size} bytes, or "
            f"what `_max_messages_post_size` of the {noun.one} says.",
            example={"messages": [{"body": BODY, "ttl": _ttl_s(settings)}, {"body": "ping"}]},
            required=True,
        ),
        answers={
            201: answer(
                "Stored.",
                schema("Posted"),
                example={"resources": [base + one for one in MESSAGE_IDS]},
                headers=("Location",),
                links=_readers(noun),
            )
        },
        refusals=(*STORED, noun.invalid_name, Invalid, InvalidBody, QuotaExceeded, StoreFull),
    )


def _list(noun: Noun, settings: Settings) -> Node:
    node = _page(noun, settings)
    responses = cast("dict[str, dict[str, dict[str, Node]]]", node["responses"])
    events = "id: {}\ndata: {}\n\n".format(MESSAGE_IDS[0], '{"id":"…","href":"…","ttl":300,…}')
    responses["200"]["content"]["text/event-stream"] = {
        "schema": string("Events, each with a message as its data and the message's id as its id."),
        "example": events,
    }
    return node


def _page(noun: Noun, settings: Settings) -> Node:
    top = settings.max_messages_per_page
    href = f"{noun.example_path}/messages?limit=1&marker={MESSAGE_IDS[0]}"
    return operation(
        f"messages:get_all{noun.suffix}",
        noun.messages_tag,
        "List messages, or get several",
        "Without `ids`: the messages after `marker`, oldest first. Nothing is taken away, so any "
        "number of readers can follow, each with a marker of its own. What you have posted "
        "yourself, and what is claimed or delayed, is left out unless you ask for it.\n\n"
        "With `ids`: just these messages, whatever their state, in the order asked for; other "
        "parameters play no role.\n\n"
        "With `Accept: text/event-stream`: the messages after `marker`, claimed and delayed ones "
        "too, and then each new one as it comes, as server-sent events. `Last-Event-ID` goes on "
        "behind that message. Browsers cannot send headers with such a request, so "
        "`client_id`, `project_id` and the members `signature`, `methods`, `paths` and `expires` of "
        "a pre-signed URL may be in the query.",
        parameters=[
            query(
                "marker",
                string(),
                "Begin after this message: the marker of the `next` link, or the id of the last "
                "message seen. An unknown one gives an empty page.",
            ),
            query("limit", integer(1, top), f"How many at most. {PAGE_DEFAULT} if not given."),
            header(
                "Last-Event-ID",
                string(),
                "For a stream of events: begin after this message, whatever `marker` says.",
            ),
            *(query(name, string(), f"For a stream of events: {text}") for name, text in _IN_QUERY),
            flag("echo", "List what this `Client-ID` has posted, too.", example="true"),
            flag("include_claimed", "List what somebody has claimed, too."),
            flag("include_delayed", "List what is still delayed, too."),
            wait(settings),
            _ids(top, f"Get these messages: at most {top} ids, separated by commas or repeated."),
        ],
        answers={
            200: answer(
                "A page, perhaps an empty one, or the messages with these ids that exist.",
                schema("MessagePage"),
                example={
                    "messages": [message(noun, ttl_s=_ttl_s(settings))],
                    "links": next_link(href),
                },
                links=first_message(noun),
            )
        },
        refusals=(*STORED, noun.invalid_name, Invalid, InvalidParameter, NotFound),
    )


def _show(noun: Noun, settings: Settings) -> Node:
    return operation(
        f"messages:get{noun.suffix}",
        noun.messages_tag,
        "Get a message",
        "One message by its id, whether it is free, claimed or delayed.",
        answers={
            200: answer(
                "The message.", schema("Message"), example=message(noun, ttl_s=_ttl_s(settings))
            )
        },
        refusals=(*STORED, noun.invalid_name, NotFound),
    )


def _delete(noun: Noun) -> Node:
    return operation(
        f"messages:delete{noun.suffix}",
        noun.messages_tag,
        "Delete a message",
        "While a claim holds the message, only the holder may delete it, by giving the id of the "
        "claim; the `href` of a claimed message has it already. If the claim has ended in the "
        "meantime, the message stays: somebody else may be working on it.",
        parameters=[
            query("claim_id", string(), "The claim that holds the message.", example=CLAIM_ID)
        ],
        answers={204: answer("Deleted, or there is no such message any more.")},
        refusals=(*STORED, noun.invalid_name, ClaimMismatch, MessageClaimed),
    )


def _delete_several(noun: Noun, settings: Settings) -> Node:
    top = settings.max_messages_per_page
    taken = settings.max_messages_per_claim_or_pop
    guarded = settings.message_delete_with_claim_id
    parameters = [
        _ids(top, f"Delete these: at most {top} ids, separated by commas or repeated."),
        query(
            "pop",
            integer(1, taken),
            "Take up to this many of the oldest messages that nobody holds, delete them and "
            "answer with them.",
        ),
    ]
    refusals: Refusals = (*STORED, noun.invalid_name, Invalid, InvalidParameter)
    claimed = "Claimed ones are deleted too."
    if guarded:
        claimed = "For claimed ones the ids of their claims are needed in `claim_ids`."
        refusals = (*refusals, MessageClaimed)
        parameters.append(
            query(
                "claim_ids",
                array(string()),
                "With `ids`: the claims that hold these messages, separated by commas or repeated.",
                style="form",
                explode=False,
            )
        )
    return operation(
        f"messages:delete_all{noun.suffix}",
        noun.messages_tag,
        "Delete several messages, or pop",
        f"Needs either `ids` or `pop`.\n\nWith `ids`: deletes these messages. {claimed} Unknown "
        "ids are passed over.\n\nWith `pop`: hands out messages and forgets them at once. If the "
        "answer gets lost, so do they; claim and delete where that matters.",
        parameters=parameters,
        answers={
            200: answer(
                "What was popped; perhaps nothing.",
                schema("Popped"),
                example={"messages": [popped(ttl_s=_ttl_s(settings))]},
            ),
            204: answer("The messages with these ids are gone."),
        },
        refusals=refusals,
    )


def _ids(top: int, text: str) -> Node:
    ids = array(string(pattern="^[^,]+$"), minItems=1, maxItems=top)
    return query("ids", ids, text, example=list(MESSAGE_IDS), style="form", explode=False)


def _readers(noun: Noun) -> Node:
    """Links to where posted messages are read."""
    links: Node = {
        "list": link(f"messages:get_all{noun.suffix}", "The messages.", noun, echo="true")
    }
    if noun is QUEUE:
        links["claim"] = link("claims:create", "Take some of them.", noun)
    return links


def first_message(noun: Noun) -> Node:
    """Links to the first message of an answer."""
    id_ = "$response.body#/messages/0/id"
    text = "The first message."
    return {
        "show": link(f"messages:get{noun.suffix}", text, noun, message_id=id_),
        "delete": link(f"messages:delete{noun.suffix}", text, noun, message_id=id_),
    }


def _ttl_s(settings: Settings) -> int:
    """A lifetime for the examples that is within the limits."""
    return min(max(300, settings.min_message_ttl), settings.max_message_ttl)
