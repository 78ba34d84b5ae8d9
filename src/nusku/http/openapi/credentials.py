"""What the document says of credentials, where a server asks for them."""

from typing import Any

from nusku.config import Settings
from nusku.errors import Unauthorized, Unavailable
from nusku.http.openapi.parts import Node, answer, closed, ref, refused, schema, string

_KINDS = {
    "key": "a key of this service (`nsk_…`)",
    "oidc": "a token of the identity provider (JWT)",
    "keystone": "a token of Keystone",
}


def with_credentials(document: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The document for a server that lets in only those who prove who they are."""
    kinds = " or ".join(_KINDS[name] for name in settings.auth)
    components = document["components"]
    components["securitySchemes"] = {
        "token": {
            "type": "apiKey",
            "in": "header",
            "name": "X-Auth-Token",
            "description": f"Says who asks: {kinds}.",
        },
        "bearer": {"type": "http", "scheme": "bearer", "description": "The same, sent otherwise."},
        "signature": {
            "type": "apiKey",
            "in": "header",
            "name": "URL-Signature",
            "description": "Instead of them, what `share` answers, with `URL-Methods`, `URL-Paths`, "
            "`URL-Expires` and `X-Project-ID`.",
        },
    }
    components["schemas"]["Unauthorized"] = _SCHEMA
    components["headers"]["WWW-Authenticate"] = {
        "description": "Which credentials are taken.",
        "required": True,
        "schema": string(),
    }
    parameters = components["parameters"]
    del parameters["Roles"]
    for name in ("ProjectId", "OwnerId"):
        parameters[name] = {
            "name": "X-Project-ID",
            "in": "header",
            "required": False,
            "description": "Needed with a `URL-Signature` only, and the project that it is for. "
            "With other credentials their project counts.",
            "schema": parameters[name]["schema"],
        }
    document["security"] = [{"token": []}, {"bearer": []}]
    for path, item in document["paths"].items():
        item_parameters = item.get("parameters", [])
        item["parameters"] = [each for each in item_parameters if each != _ROLES]
        for node in item.values():
            if isinstance(node, dict):
                _guard(path, node)
    return document


_ROLES = ref("parameters", "Roles")
_SCHEMA = closed(
    {
        "error": closed(
            {
                "code": {"const": 401},
                "title": {"const": Unauthorized.title},
                "message": string("What is asked for, for people to read."),
            }
        )
    },
    "Who has not proved who they are is answered with this.",
)


def _guard(path: str, operation: dict[str, Any]) -> None:
    """Whose credentials an operation takes, and how it refuses others."""
    if not path.startswith("/v2/"):
        operation["security"] = []
        return
    if path.startswith(("/v2/queues/{", "/v2/topics/{")):
        operation["security"] = [{"token": []}, {"bearer": []}, {"signature": []}]
    answers: Node = {
        **refused((Unavailable,)),
        **operation["responses"],
        "401": answer(
            f"- `{Unauthorized.title}`: {' '.join((Unauthorized.__doc__ or '').split())}",
            schema("Unauthorized"),
            headers=("Vary", "WWW-Authenticate"),
        ),
    }
    operation["responses"] = dict(sorted(answers.items()))
