"""The home document (contract http-v2.md section 2.2, JSON Home draft 03)."""

from typing import Any

_QUEUE = "/v2/queues/{queue_name}"
_NAME = {"queue_name": "param/queue_name"}
_MESSAGE = _NAME | {"message_id": "param/message_id"}
_CLAIM = _NAME | {"claim_id": "param/claim_id"}
_ONE = f"{_QUEUE}/subscriptions/{{subscriptions_id}}"
_SUBSCRIPTION = _NAME | {"subscriptions_id": "param/subscriptions_id"}

# Relation: path template, methods, variables, whether it takes JSON by POST. The variable names
# are what clients know, slips included.
_RELATIONS: dict[str, tuple[str, tuple[str, ...], dict[str, str], bool]] = {
    "queues": (
        "/v2/queues{?marker,limit,detailed}",
        ("GET",),
        {
            "marker": "param/marker",
            "limit": "param/queue_limit",
            "detailed": "param/detailed",
        },
        False,
    ),
    "queue": (_QUEUE, ("GET", "PUT", "DELETE", "PATCH"), _NAME, False),
    "queue_stats": (f"{_QUEUE}/stats", ("GET",), _NAME, False),
    "queue_share": (f"{_QUEUE}/share", ("POST",), _NAME, True),
    "queue_purge": (f"{_QUEUE}/purge", ("POST",), _NAME, True),
    "messages": (
        f"{_QUEUE}/messages{{?marker,limit,echo,include_claimed}}",
        ("GET",),
        _NAME
        | {
            "marker": "param/marker",
            "limit": "param/messages_limit",
            "echo": "param/echo",
            "include_claimed": "param/include_claimed",
        },
        False,
    ),
    "post_messages": (f"{_QUEUE}/messages", ("POST",), _NAME, True),
    "messages_delete": (
        f"{_QUEUE}/messages{{?ids,pop}}",
        ("DELETE",),
        _NAME | {"ids": "param/ids", "pop": "param/pop"},
        False,
    ),
    "message_delete": (
        f"{_QUEUE}/messages/{{message_id}}{{?claim}}",
        ("DELETE",),
        _MESSAGE | {"claim": "param/claim_id"},
        False,
    ),
    "message_get": (f"{_QUEUE}/messages/{{message_id}}", ("GET",), _MESSAGE, False),
    "claim": (f"{_QUEUE}/claims/{{claim_id}}", ("GET",), _CLAIM, False),
    "post_claim": (
        f"{_QUEUE}/claims{{?limit}}",
        ("POST",),
        _NAME | {"limit": "param/claim_limit"},
        True,
    ),
    "patch_claim": (f"{_QUEUE}/claims/{{claim_id}}", ("PATCH",), _CLAIM, True),
    "delete_claim": (f"{_QUEUE}/claims/{{claim_id}}", ("DELETE",), _CLAIM, False),
    "subscriptions_get": (
        f"{_QUEUE}/subscriptions{{?marker,limit}}",
        ("GET",),
        _NAME | {"marker": "param/marker", "limit": "param/subscription_limit"},
        False,
    ),
    "subscriptions_post": (
        f"{_QUEUE}/subscriptions",
        ("POST",),
        _NAME | {"limit": "param/subscription_limit"},
        True,
    ),
    "subscription": (_ONE, ("GET", "DELETE"), _SUBSCRIPTION, False),
    "subscription_patch": (_ONE, ("PATCH",), _SUBSCRIPTION, True),
    **{
        relation: entry
        for one in ("pool", "flavor")
        for relation, entry in {
            f"{one}s": (
                f"/v2/{one}s{{?detailed,limit,marker}}",
                ("GET",),
                {
                    "detailed": "param/detailed",
                    "limit": f"param/{one}_limit",
                    "marker": "param/marker",
                },
                False,
            ),
            one: (
                f"/v2/{one}s/{{{one}_name}}",
                ("GET", "PUT", "PATCH", "DELETE"),
                {f"{one}_name": f"param/{one}_name"},
                False,
            ),
        }.items()
    },
}


def document() -> dict[str, Any]:
    """What is served below ``/v2/``, for clients that discover it."""
    formats: dict[str, Any] = {"application/json": {}}
    resources: dict[str, Any] = {}
    for relation, (template, methods, variables, takes_post) in _RELATIONS.items():
        hints: dict[str, Any] = {"allow": list(methods), "formats": formats}
        if takes_post:
            hints["accept-post"] = ["application/json"]
        resources[f"rel/{relation}"] = {
            "href-template": template,
            "href-vars": variables,
            "hints": hints,
        }
    for relation, path in (("ping", "/v2/ping"), ("health", "/v2/health")):
        key = "href-template" if relation == "ping" else "href"
        resources[f"rel/{relation}"] = {
            key: path,
            "hints": {"allow": ["GET"], "formats": formats},
        }
    return {"resources": resources}
