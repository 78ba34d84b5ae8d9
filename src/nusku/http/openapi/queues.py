"""Queues and topics themselves: list, create, show, change, delete, count, empty."""

from nusku.broker.rules import PAGE_DEFAULT
from nusku.config import Settings
from nusku.errors import (
    Conflict,
    Invalid,
    InvalidBody,
    InvalidParameter,
    NotFound,
    QuotaExceeded,
    StoreFull,
    UnsupportedMediaType,
)
from nusku.http.openapi.examples import MESSAGE_IDS, next_link
from nusku.http.openapi.parts import (
    QUEUE,
    STORED,
    Node,
    Noun,
    answer,
    array,
    body,
    flag,
    integer,
    link,
    open_object,
    operation,
    query,
    ref,
    schema,
    string,
)

PATCH_MEDIA_TYPE = "application/openstack-messaging-v2.0-json-patch"


def paths(noun: Noun, settings: Settings) -> Node:
    client = ref("parameters", "ClientId")
    identity = [client, ref("parameters", "ProjectId")]
    named = [ref("parameters", f"{noun.schema}Name"), client, ref("parameters", "OwnerId")]
    return {
        f"/v2/{noun.many}": {"parameters": identity, "get": _list(noun, settings)},
        noun.path: {
            "parameters": named,
            "put": _create(noun, settings),
            "get": _show(noun, settings),
            "patch": _change(noun, settings),
            "delete": _delete(noun),
        },
        f"{noun.path}/stats": {
            "parameters": [*named, ref("parameters", "QueueProjectId")],
            "get": _stats(noun),
        },
        f"{noun.path}/purge": {"parameters": named, "post": _purge(noun)},
    }


def _list(noun: Noun, settings: Settings) -> Node:
    top = settings.max_queues_per_page
    parameters = [
        query(
            "marker",
            string(),
            f"Begin after this name: that of the last {noun.one} of the page before. It need not "
            "exist any more.",
        ),
        query("limit", integer(1, top), f"How many to list at most. {PAGE_DEFAULT} if not given."),
        flag("detailed", "Show the metadata too."),
        query("name", string(), "Only names that contain this text."),
    ]
    shown: Node = {
        noun.many: [{"name": noun.example, "href": noun.example_path}],
        "links": next_link(f"/v2/{noun.many}?limit=1&marker={noun.example}"),
    }
    if noun is QUEUE:
        parameters.append(flag("with_count", "Count all queues of the project too."))
    parameters.append(
        query(
            "metadata",
            {"type": "object", "additionalProperties": {"type": "string"}},
            "Any other parameter is a filter, such as `?color=red`: only those whose metadata "
            "has that key with that value. A value that looks like an integer is one.",
            style="form",
            explode=True,
        )
    )
    return operation(
        f"{noun.many}:get_all",
        noun.tag,
        f"List {noun.many}",
        f"The {noun.many} of your project in the order of their names, page by page.",
        parameters=parameters,
        answers={
            200: answer(
                "A page, perhaps an empty one.",
                schema(f"{noun.schema}Page"),
                example=shown,
                links={
                    "show": link(
                        f"{noun.many}:get",
                        f"The first {noun.one} of the page.",
                        noun,
                        **{noun.parameter: f"$response.body#/{noun.many}/0/name"},
                    )
                },
            )
        },
        refusals=(*STORED, Invalid, InvalidParameter),
    )


def _create(noun: Noun, settings: Settings) -> Node:
    ttl_s = min(max(600, settings.min_message_ttl), settings.max_message_ttl)
    text = (
        f"Posting to a {noun.one} creates it, so this is only needed to give it metadata. "
        f"If the {noun.one} is already there, nothing changes and the metadata sent is "
        "discarded; use PATCH to change it."
    )
    location = ("Location",)
    return operation(
        f"{noun.many}:create",
        noun.tag,
        f"Create a {noun.one}",
        text,
        body=body(
            schema("Metadata"),
            f"Metadata of the new {noun.one}: at most {settings.max_queue_metadata} bytes.",
            example={"color": "red", "_default_message_ttl": ttl_s},
            required=False,
        ),
        answers={
            201: answer("Created.", headers=location),
            204: answer("It was there already. Nothing was changed.", headers=location),
        },
        refusals=(*STORED, noun.invalid_name, Invalid, InvalidBody, QuotaExceeded, StoreFull),
    )


def _show(noun: Noun, settings: Settings) -> Node:
    return operation(
        f"{noun.many}:get",
        noun.tag,
        f"Show the metadata of a {noun.one}",
        f"What is noted about the {noun.one}, and the defaults of what is not. A {noun.one} that "
        "does not exist has just the defaults.",
        answers={
            200: answer(
                "The metadata.",
                schema(f"{noun.schema}Metadata"),
                example={"color": "red", **_defaults(noun, settings)},
            )
        },
        refusals=(*STORED, noun.invalid_name),
    )


def _change(noun: Noun, settings: Settings) -> Node:
    step = open_object(
        {
            "op": {
                "enum": ["add", "replace", "remove"],
                "description": "`add` sets a key, `replace` changes one that is there, "
                "`remove` takes one away.",
            },
            "path": string(
                "`/metadata/` and the key; in the key `~1` stands for `/` and `~0` for `~`.",
                pattern=r"^/metadata/([^/~\s]|~[01])+$",
            ),
            "value": schema("Any"),
        },
        required=("op", "path"),
    )
    needs_value: Node = {
        "if": {"properties": {"op": {"enum": ["add", "replace"]}}},
        "then": {"required": ["value"]},
    }
    return operation(
        f"{noun.many}:update",
        noun.tag,
        f"Change the metadata of a {noun.one}",
        "Takes a list of steps that are done in order, all of them or none. "
        f"Needs `Content-Type: {PATCH_MEDIA_TYPE}`.",
        body=body(
            array(step | needs_value),
            f"The steps: at most {settings.max_queue_metadata} bytes.",
            example=[{"op": "add", "path": "/metadata/color", "value": "blue"}],
            required=True,
            media_type=PATCH_MEDIA_TYPE,
        ),
        answers={
            200: answer(
                "The metadata as it is now.",
                schema(f"{noun.schema}Metadata"),
                example={"color": "blue", **_defaults(noun, settings)},
            )
        },
        refusals=(
            *STORED,
            noun.invalid_name,
            Invalid,
            InvalidBody,
            NotFound,
            Conflict,
            UnsupportedMediaType,
            StoreFull,
        ),
    )


def _delete(noun: Noun) -> Node:
    return operation(
        f"{noun.many}:delete",
        noun.tag,
        f"Delete a {noun.one}",
        f"Removes the {noun.one}, its metadata and its messages"
        f"{' and claims' if noun is QUEUE else ''}.",
        answers={204: answer(f"Deleted, or there was no such {noun.one}.")},
        refusals=(*STORED, noun.invalid_name),
    )


def _stats(noun: Noun) -> Node:
    def mark(age_s: int, created: str, message_id: str) -> Node:
        href = f"{noun.example_path}/messages/{message_id}"
        return {"age": age_s, "created": created, "href": href}

    return operation(
        f"{noun.many}:stats",
        noun.tag,
        f"Count the messages of a {noun.one}",
        "Exact numbers at this moment, and the oldest and newest message.",
        answers={
            200: answer(
                f"The numbers; all are 0 if there is no such {noun.one}.",
                schema(f"{noun.schema}Stats"),
                example={
                    "messages": {
                        "claimed": 1,
                        "free": 2,
                        "total": 3,
                        "oldest": mark(63, "2026-01-02T03:04:05Z", MESSAGE_IDS[0]),
                        "newest": mark(12, "2026-01-02T03:04:56Z", MESSAGE_IDS[1]),
                    }
                },
            )
        },
        refusals=(*STORED, noun.invalid_name),
    )


def _purge(noun: Noun) -> Node:
    kinds = array({"enum": ["messages", "subscriptions"]})
    return operation(
        f"{noun.many}:purge",
        noun.tag,
        f"Empty a {noun.one}",
        "Removes all messages, claimed and delayed ones too, or all subscriptions, or both. "
        f"The {noun.one} and its metadata stay.",
        body=body(
            open_object({"resource_types": kinds}, required=("resource_types",)),
            "What to remove. Without a body: everything.",
            example={"resource_types": ["messages"]},
            required=False,
        ),
        answers={204: answer(f"Removed, or there was no such {noun.one}.")},
        refusals=(*STORED, noun.invalid_name, Invalid, InvalidBody),
    )


def _defaults(noun: Noun, settings: Settings) -> Node:
    shown: Node = {
        "_max_messages_post_size": settings.max_messages_post_size,
        "_default_message_ttl": settings.default_message_ttl,
        "_default_message_delay": settings.default_message_delay,
    }
    if noun is QUEUE:
        shown |= {
            "_dead_letter_queue": None,
            "_dead_letter_queue_messages_ttl": None,
            "_max_claim_count": None,
            "_enable_encrypt_messages": False,
        }
    return shown
