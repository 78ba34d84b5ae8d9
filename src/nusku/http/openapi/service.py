"""Finding out what is here and how it is: versions, home, ping, health, and what watchers ask."""

from nusku.errors import Forbidden, Unavailable
from nusku.http.openapi.parts import (
    ACCEPTED,
    ANYWHERE,
    IDENTIFIED,
    JSON,
    Node,
    answer,
    closed,
    operation,
    ref,
    schema,
    string,
)

HOME_MEDIA_TYPE = "application/json-home"
METRICS_MEDIA_TYPE = "text/plain"

_DISCOVERY = "Discovery"
_WATCHING = "Watching"


def discovery() -> Node:
    """The paths of the contract that are about the service as a whole."""
    identity = [ref("parameters", "ClientId"), ref("parameters", "ProjectId")]
    return {
        "/": {"get": _versions()},
        "/v2/": {"parameters": identity, "get": _home()},
        "/v2/ping": {"parameters": identity, "get": _ping(), "head": _ping_head()},
        "/v2/health": {"parameters": [*identity, ref("parameters", "Roles")], "get": _health()},
    }


def watching() -> Node:
    """Our own paths beside the contract; they need no headers."""
    return {
        "/livez": {"get": _livez()},
        "/readyz": {"get": _readyz()},
        "/metrics": {"get": _metrics()},
        "/openapi.json": {"get": _openapi()},
        "/docs": {"get": _docs()},
    }


def _versions() -> Node:
    version: Node = {
        "id": "2",
        "status": "CURRENT",
        "updated": "2014-9-24T04:06:47Z",
        "media-types": [
            {"base": JSON, "type": "application/vnd.openstack.messaging-v2+json"},
        ],
        "links": [{"href": "/v2/", "rel": "self"}],
    }
    return operation(
        "versions:get",
        _DISCOVERY,
        "List the versions of the API",
        "There is one. Needs neither a client nor a project. The answer is a list of choices, "
        "hence its status.",
        answers={300: answer("The versions.", schema("Versions"), example={"versions": [version]})},
        refusals=ACCEPTED,
    )


def _home() -> Node:
    queue: Node = {
        "href-template": "/v2/queues/{queue_name}",
        "href-vars": {"queue_name": "param/queue_name"},
        "hints": {"allow": ["GET", "PUT", "DELETE", "PATCH"], "formats": {JSON: {}}},
    }
    return operation(
        "home:get",
        _DISCOVERY,
        "Show where everything is",
        "A JSON Home document with a template for each kind of resource. This page tells more.",
        answers={
            200: answer(
                "The home document.",
                schema("Home"),
                example={"resources": {"rel/queue": queue}},
                media_type=HOME_MEDIA_TYPE,
                headers=("Cache-Control",),
            )
        },
        refusals=IDENTIFIED,
    )


def _ping() -> Node:
    return operation(
        "ping:get",
        _DISCOVERY,
        "Ping",
        "Whether the server answers. The cheapest request there is.",
        answers={204: answer("It does.")},
        refusals=IDENTIFIED,
    )


def _ping_head() -> Node:
    node = operation(
        "ping:get:head",
        _DISCOVERY,
        "Ping, without a body whatever comes",
        "Like GET, and the answer has no body even if it is an error.",
        answers={204: answer("It does.")},
    )
    refusals = {
        "400": answer("The request is refused; GET says why."),
        "406": answer("The `Accept` header does not admit JSON."),
    }
    node["responses"] = {"204": answer("It does."), **refusals}
    return node


def _health() -> Node:
    operations = (
        "create_queue",
        "post_messages",
        "list_messages",
        "claim_messages",
        "delete_messages",
        "delete_claim",
        "bulk_delete_messages",
        "delete_queue",
    )
    probe: Node = {"seconds": 0.0012, "ref": None, "succeeded": True}
    return operation(
        "health:get",
        _DISCOVERY,
        "Try whether everything works",
        "Runs each kind of operation on a queue made for that, and counts all messages. Needs "
        "the role `admin`.",
        answers={
            200: answer(
                "What was tried, and how it went. A failed operation is reported here; the "
                "others are tried nevertheless.",
                schema("Health"),
                example={
                    "storage_reachable": True,
                    "operation_status": dict.fromkeys(operations, probe),
                    "message_volume": {"free": 2, "claimed": 1, "total": 3},
                },
            )
        },
        refusals=(*IDENTIFIED, Forbidden),
    )


def _livez() -> Node:
    return operation(
        "live:get",
        _WATCHING,
        "Is the process alive?",
        "For whoever restarts hung processes. Says nothing about the store.",
        answers={200: _status("live")},
        refusals=ANYWHERE,
    )


def _readyz() -> Node:
    return operation(
        "ready:get",
        _WATCHING,
        "Should it get requests?",
        "For load balancers.",
        answers={200: _status("ready")},
        refusals=(*ANYWHERE, Unavailable),
    )


def _status(word: str) -> Node:
    return answer("Yes.", closed({"status": {"const": word}}), example={"status": word})


def _metrics() -> Node:
    sample = 'nusku_operations_total{operation="messages:create",outcome="ok"} 42.0'
    return operation(
        "metrics:get",
        _WATCHING,
        "Figures for Prometheus",
        "Only for addresses in `metrics_allow`.",
        answers={
            200: answer(
                "The figures, in Prometheus's text format.",
                string(),
                example=sample,
                media_type=METRICS_MEDIA_TYPE,
            ),
        },
        refusals=(*ANYWHERE, Forbidden),
    )


def _openapi() -> Node:
    return operation(
        "openapi:get",
        _WATCHING,
        "This description, for programs",
        "The OpenAPI 3.1 document.",
        answers={
            200: answer(
                "The document.",
                {"type": "object", "required": ["openapi", "info", "paths"]},
            )
        },
        refusals=ANYWHERE,
    )


def _docs() -> Node:
    return operation(
        "docs:get",
        _WATCHING,
        "This description, for people",
        "One page, without scripts.",
        answers={200: answer("The page.", string(), media_type="text/html")},
        refusals=ANYWHERE,
    )
