"""What operations refer to by name: parameters, response headers, errors, and the schemas."""

from nusku.config import Settings
from nusku.http.openapi import (
    examples,
    pools,
    schemas,
    service,
    shares,
    subscription_schemas,
)
from nusku.http.openapi.parts import QUEUE, TOPIC, Node, Noun, answer, array, closed, string
from nusku.http.openapi.schemas import NAME
from nusku.model import PROJECT_MAX

_TRUE = ("true", "True", "t", "yes", "y", "1", "on")
_FALSE = ("false", "False", "f", "no", "n", "0", "off")
_UUID = r"^(urn:uuid:)?\{?[0-9A-Fa-f]{8}(-?[0-9A-Fa-f]{4}){3}-?[0-9A-Fa-f]{12}\}?$"


def components(settings: Settings) -> Node:
    """What the operations refer to by name."""
    return {
        "schemas": {
            **_errors(),
            **_shared(),
            **schemas.metadata(settings),
            **schemas.queues(QUEUE, settings),
            **schemas.queues(TOPIC, settings),
            **schemas.messages(settings),
            **schemas.claims(settings),
            **shares.schemas(settings),
            **subscription_schemas.schemas(settings),
            **pools.schemas(),
            **service.schemas(),
        },
        "parameters": {
            **_identity(settings),
            **_in_path(QUEUE),
            **_in_path(TOPIC),
            **pools.parameters(),
        },
        "headers": _headers(),
        "responses": _outside(),
    }


def _errors() -> Node:
    return {
        "Error": closed(
            {
                "title": string(
                    "What kind of error it is. Programs may rely on it, together with the status."
                ),
                "description": string("What was wrong with this very request, for people to read."),
                "link": closed(
                    {name: string() for name in ("text", "href", "rel")},
                    "Where to read on; with status 406 only.",
                ),
            },
            "Every refusal and failure is answered with this.",
            optional=("description", "link"),
        )
    }


def _outside() -> Node:
    """Answers that belong to no operation: each is for requests that none takes."""

    def title(text: str) -> Node:
        return closed({"title": {"const": text}})

    return {
        "NoSuchPath": answer("404: nothing is there.", title("404 Not Found"), headers=("Vary",)),
        "NoSuchMethod": answer(
            "405: the path does not take this method.",
            title("405 Method Not Allowed"),
            headers=("Vary", "Allow"),
        ),
    }


def _shared() -> Node:
    return {
        "Flag": {
            "description": "True or false, in one of the spellings that clients use.",
            "anyOf": [{"type": "boolean"}, {"enum": [*_TRUE, *_FALSE]}],
            "default": False,
        },
        "Any": {
            "description": "Any JSON value: object, array, string, number, boolean or null. "
            "Integers have at most 64 bits."
        },
        "Links": array(
            closed(
                {
                    "rel": {"const": "next"},
                    "href": string("Where the next page is, as a path on this server."),
                }
            ),
            "Where to go on. Empty if the page is empty, else one link to the next page, even if "
            "there is nothing on it yet: page until a page is empty.",
            maxItems=1,
        ),
    }


def _headers() -> Node:
    def header(text: str, of: Node) -> Node:
        return {"description": text, "required": True, "schema": of}

    return {
        "x-openstack-request-id": header(
            "The number of this request, which is in the server's log as well.",
            string(pattern=r"^req-[0-9a-f-]{36}$"),
        ),
        "Location": header(
            "Where the new thing is, as a path on this server.", string(pattern="^/v2/")
        ),
        "Content-Location": header(
            "The path of this page, with its query.", string(pattern="^/v2/")
        ),
        "Vary": header("Errors depend on the `Accept` header.", string()),
        "Cache-Control": header("How long the answer may be kept.", string()),
        "Allow": header("The methods that this path does take.", string()),
    }


def _identity(settings: Settings) -> Node:
    if settings.client_id_uuid_safe == "strict":
        client = string(pattern=_UUID)
        form = "A UUID in any usual spelling."
    else:
        client = string(
            minLength=settings.min_length_client_id, maxLength=settings.max_length_client_id
        )
        form = "Any string of that length."
    project: Node = {
        "name": "X-Project-ID",
        "in": "header",
        "required": True,
        "description": "The project this is about; those of others cannot be seen. "
        "`X-Tenant-ID` and `X-Tenant` are older names of this header.",
        "example": examples.PROJECT_ID,
    }
    return {
        "ClientId": {
            "name": "Client-ID",
            "in": "header",
            "required": True,
            "description": f"Who sends this: make one up for each program and keep it. {form}",
            "schema": client,
            "example": examples.CLIENT_ID,
        },
        # Only where the path holds a name is the length of the project's looked at.
        "ProjectId": {**project, "schema": string(minLength=1)},
        "OwnerId": {**project, "schema": string(minLength=1, maxLength=PROJECT_MAX)},
        "QueueProjectId": {
            "name": "Queue-Project-ID",
            "in": "header",
            "required": False,
            "description": "Another project, whose queue or topic this is about; its `_grants` "
            "must allow it to you.",
            "schema": string(minLength=1, maxLength=PROJECT_MAX),
        },
        "Roles": {
            "name": "X-Roles",
            "in": "header",
            "required": False,
            "description": "The roles of the caller, separated by commas. `admin` is needed here.",
            "schema": string(),
            "example": "admin",
        },
    }


def _in_path(noun: Noun) -> Node:
    def parameter(name: str, text: str, of: Node, example: str) -> Node:
        return {
            "name": name,
            "in": "path",
            "required": True,
            "description": text,
            "schema": of,
            "example": example,
        }

    # An id that this server cannot have given out is just an unknown one.
    anything = string(pattern="^[^/]+$")
    return {
        f"{noun.schema}Name": parameter(
            noun.parameter,
            f"The name of the {noun.one}: 1 to 64 letters, digits, `_`, `-` and `.`; neither `.` "
            "nor `..`.",
            string(pattern=NAME),
            noun.example,
        ),
        "MessageId": parameter(
            "message_id", "The id of a message.", anything, examples.MESSAGE_IDS[0]
        ),
        "ClaimId": parameter("claim_id", "The id of a claim.", anything, examples.CLAIM_ID),
        "SubscriptionId": parameter(
            "subscription_id", "The id of a subscription.", anything, examples.SUBSCRIPTION_ID
        ),
    }
