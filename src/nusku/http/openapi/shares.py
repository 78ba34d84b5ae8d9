"""Pre-signed URLs: letting somebody without an account use a part of a queue."""

from collections.abc import Sequence

from nusku import signing
from nusku.config import Settings
from nusku.errors import Invalid
from nusku.http.openapi.parts import (
    QUEUE,
    STORED,
    Node,
    answer,
    array,
    body,
    closed,
    operation,
    ref,
    schema,
    string,
)

PATHS = ("claims", "messages", "subscriptions")
_SIGNATURE = "21a967117a23b73acbb1db4239390c192d8c4ce77a771ca3b1c2b2b4e8056a3a"


def paths(settings: Settings) -> Node:
    named = [
        ref("parameters", "QueueName"),
        ref("parameters", "ClientId"),
        ref("parameters", "OwnerId"),
    ]
    return {f"{QUEUE.path}/share": {"parameters": named, "post": _share(settings)}}


def _share(settings: Settings) -> Node:
    base = QUEUE.example_path
    return operation(
        "queues:share",
        QUEUE.tag,
        "Share a queue by a pre-signed URL",
        "Signs a permission that anybody can use who is given it: these methods on these paths, "
        "and on what is below them, until it expires. It cannot be called back. The queue need "
        "not exist.\n\n"
        "To use it, send `X-Project-ID` and, instead of a token, the headers `URL-Signature`, "
        "`URL-Expires`, `URL-Methods` and `URL-Paths`, with lists joined by commas. Whatever is "
        "wrong with them, the answer is 404.",
        body=body(
            schema("Share"),
            f"What to permit: at most {settings.max_queue_metadata} bytes. `{{}}` is a permission "
            "to read messages.",
            example={"paths": ["messages"], "methods": ["GET", "POST"]},
            required=True,
        ),
        answers={
            200: answer(
                "The permission.",
                schema("Shared"),
                example={
                    "paths": [f"{base}/messages"],
                    "methods": ["GET", "POST"],
                    "project": "demo",
                    "expires": "2030-01-01T00:00:00",
                    "signature": _SIGNATURE,
                },
            )
        },
        refusals=(*STORED, QUEUE.invalid_name, Invalid),
    )


def schemas(settings: Settings) -> Node:
    methods: Node = {"enum": list(signing.METHODS)}
    return {
        "Share": closed(
            {
                "paths": {
                    **array({"enum": list(PATHS)}, _some_of(PATHS, "`messages`")),
                    "type": ["array", "null"],
                },
                "methods": {
                    **array(methods, _some_of(signing.METHODS, "`GET`")),
                    "type": ["array", "null"],
                },
                "expires": {
                    **string(
                        "ISO 8601; without a zone it is UTC. At most "
                        f"{settings.max_signature_ttl} seconds from now. In a day if not given."
                    ),
                    "type": ["string", "null"],
                },
            },
            "What to permit. An empty list, or `null`, counts as not given.",
            optional=("paths", "methods", "expires"),
        ),
        "Shared": closed(
            {
                "paths": array(string(pattern="^/v2/queues/"), minItems=1),
                "methods": array(methods, minItems=1),
                "project": string("Whose queue it is.", minLength=1),
                "expires": string("UTC.", pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}$"),
                "signature": string(pattern="^[0-9a-f]{64}$"),
            },
            "The permission, as it is sent in headers.",
        ),
    }


def _some_of(words: Sequence[str], default: str) -> str:
    listed = ", ".join(f"`{word}`" for word in words)
    return f"Some of {listed}. {default} if not given."
