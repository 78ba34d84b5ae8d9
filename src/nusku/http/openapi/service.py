"""Finding out what is here and how it is: versions, home, ping, health, and what watchers ask."""

from nusku.errors import Forbidden, Unavailable
from nusku.http.openapi.parts import (
    ACCEPTED,
    ANYWHERE,
    IDENTIFIED,
    JSON,
    STORED,
    Node,
    answer,
    array,
    closed,
    integer,
    open_object,
    operation,
    ref,
    schema,
    string,
)

HOME_MEDIA_TYPE = "application/json-home"
METRICS_MEDIA_TYPE = "text/plain"

_PROBES = (
    "create_queue",
    "post_messages",
    "list_messages",
    "claim_messages",
    "delete_messages",
    "delete_claim",
    "bulk_delete_messages",
    "delete_queue",
)

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
    return operation(
        "ping:get:head",
        _DISCOVERY,
        "Ping, without a body whatever comes",
        "Like GET, and the answer has no body even if it is an error.",
        answers={
            204: answer("It does."),
            400: answer("The request is refused; GET says why."),
            406: answer("The `Accept` header does not admit JSON."),
        },
    )


def _health() -> Node:
    probe: Node = {"seconds": 0.0012, "ref": None, "succeeded": True}
    store: Node = {
        "storage_reachable": True,
        "operation_status": dict.fromkeys(_PROBES, probe),
        "message_volume": {"free": 2, "claimed": 1, "total": 3},
    }
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
                example={"catalog_reachable": True, "default": store},
            )
        },
        refusals=STORED,
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


def schemas() -> Node:
    """The shapes of these answers."""
    links = array(closed({"href": {"const": "/v2/"}, "rel": {"const": "self"}}))
    version = closed(
        {
            "id": {"const": "2"},
            "status": {"const": "CURRENT"},
            "updated": string(),
            "media-types": array(closed({"base": string(), "type": string()})),
            "links": links,
        }
    )
    hints = open_object(
        {"allow": array(string(), "Methods."), "formats": {"type": "object"}},
        required=("allow", "formats"),
    )
    resource = open_object(
        {
            "href-template": string("A URI template."),
            "href": string(),
            "href-vars": {"type": "object", "additionalProperties": {"type": "string"}},
            "hints": hints,
        },
        required=("hints",),
    )
    probe = closed(
        {
            "seconds": {"type": "number", "minimum": 0, "description": "How long it took."},
            "succeeded": {"type": "boolean"},
            "ref": {
                "type": ["string", "null"],
                "description": "On failure, what to look for in the server's log.",
            },
        },
        "One operation that was tried.",
    )
    return {
        "Versions": closed({"versions": array(version, minItems=1, maxItems=1)}),
        "Home": closed({"resources": {"type": "object", "additionalProperties": resource}}),
        "Probe": probe,
        "Health": {
            **open_object(
                {"catalog_reachable": {"type": "boolean"}},
                "How the service's own store is, and then each of the stores that keep messages.",
                required=("catalog_reachable", "default"),
            ),
            "additionalProperties": schema("StoreHealth"),
        },
        "StoreHealth": closed(
            {
                "storage_reachable": {"type": "boolean"},
                "operation_status": closed(
                    {name: schema("Probe") for name in _PROBES},
                    "Each of these was tried on a queue made for it.",
                ),
                "message_volume": closed(
                    {name: integer(0, None) for name in ("free", "claimed", "total")},
                    "Messages of all projects.",
                ),
            },
            "Of a store that cannot be reached nothing else is known.",
            optional=("operation_status", "message_volume"),
        ),
    }
