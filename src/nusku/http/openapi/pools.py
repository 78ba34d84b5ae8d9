"""Pools and flavors: the stores that queues are spread over, and names to choose among them."""

from typing import Literal, get_args, get_origin

from nusku.broker import pooldocs
from nusku.broker.flavors import ALL_CAPABILITIES
from nusku.broker.pools import DRAIN_S
from nusku.broker.rules import PAGE_DEFAULT
from nusku.config import Settings
from nusku.config.settings import FIELDS, allowed_values
from nusku.errors import (
    Conflict,
    Invalid,
    InvalidBody,
    InvalidFlavor,
    InvalidFlavorUpdate,
    InvalidParameter,
    InvalidPool,
    NotFound,
    PoolInUse,
    StoreFull,
)
from nusku.http.openapi.examples import next_link
from nusku.http.openapi.parts import (
    STORED,
    Node,
    answer,
    array,
    body,
    closed,
    flag,
    integer,
    open_object,
    operation,
    query,
    ref,
    schema,
    string,
)

POOLS, FLAVORS = "Pools", "Flavors"
_POOL, _FLAVOR = "berlin", "fast"


def paths(settings: Settings) -> Node:
    identity = [ref("parameters", name) for name in ("ClientId", "ProjectId", "Roles")]
    pool = [ref("parameters", "PoolName"), *identity]
    flavor = [ref("parameters", "FlavorName"), *identity]
    return {
        "/v2/pools": {"parameters": identity, "get": _list_pools(settings)},
        "/v2/pools/{pool_name}": {
            "parameters": pool,
            "get": _show_pool(settings),
            "put": _put_pool(settings),
            "patch": _change_pool(settings),
            "delete": _delete_pool(),
        },
        "/v2/pools/{pool_name}/drain": {"parameters": pool, "post": _drain()},
        "/v2/flavors": {"parameters": identity, "get": _list_flavors(settings)},
        "/v2/flavors/{flavor_name}": {
            "parameters": flavor,
            "get": _show_flavor(),
            "put": _put_flavor(settings),
            "patch": _change_flavor(settings),
            "delete": _delete_flavor(),
        },
    }


def parameters() -> Node:
    """The names in paths, as components."""

    def named(name: str, text: str, example: str) -> Node:
        return {
            "name": name,
            "in": "path",
            "required": True,
            "description": text,
            "schema": string(pattern=pooldocs.NAME),
            "example": example,
        }

    return {
        "PoolName": named("pool_name", "The name of a pool.", _POOL),
        "FlavorName": named("flavor_name", "The name of a flavor.", _FLAVOR),
    }


def _uri(settings: Settings) -> str:
    """One of the same kind as the service's own store."""
    if settings.store.startswith("sqlite:"):
        return f"sqlite:///{_POOL}.db"
    return "postgresql://nusku@db.example/nusku"


def _pool(settings: Settings) -> Node:
    return {
        "name": _POOL,
        "href": f"/v2/pools/{_POOL}",
        "weight": 100,
        "uri": _uri(settings),
        "flavor": None,
    }


def _flavor() -> Node:
    return {"name": _FLAVOR, "href": f"/v2/flavors/{_FLAVOR}", "pool_list": [_POOL]}


def _flavor_in_full() -> Node:
    return {**_flavor(), "capabilities": list(ALL_CAPABILITIES)}


def _paging(what: str, top: int) -> list[Node]:
    return [
        query(
            "marker",
            string(),
            f"Begin after this {what}: the name of the last one of the page before. It need not "
            "exist any more.",
        ),
        query("limit", integer(1, top), f"How many at most. {PAGE_DEFAULT} if not given."),
    ]


# Pools


def _list_pools(settings: Settings) -> Node:
    return operation(
        "pools:get_all",
        POOLS,
        "List pools",
        "By name. Needs the role `admin`.",
        parameters=[
            *_paging("pool", settings.max_pools_per_page),
            flag("detailed", "Show the options, too."),
        ],
        answers={
            200: answer(
                "A page, perhaps an empty one.",
                schema("PoolPage"),
                example={
                    "pools": [_pool(settings)],
                    "links": next_link(f"/v2/pools?limit=1&marker={_POOL}"),
                },
                headers=("Content-Location",),
            )
        },
        refusals=(*STORED, Invalid, InvalidParameter),
    )


def _show_pool(settings: Settings) -> Node:
    return operation(
        "pools:get",
        POOLS,
        "Show a pool",
        f"Passwords are shown as `{pooldocs.HIDDEN}`. Needs the role `admin`.",
        parameters=[flag("detailed", "Show the options, too.")],
        answers={200: answer("The pool.", schema("Pool"), example=_pool(settings))},
        refusals=(*STORED, InvalidParameter, NotFound),
    )


def _put_pool(settings: Settings) -> Node:
    return operation(
        "pools:create",
        POOLS,
        "Add a pool, or describe one anew",
        "New queues are spread over the pools by weight: those without `_flavor` in their metadata "
        "over the pools without a flavor, the others over the pools of theirs. The server connects "
        "to the store before it answers. A pool that is there is described anew: what is said "
        "below of changing one goes for that, too. Needs the role `admin`.",
        body=body(
            schema("PoolDraft"),
            f"The pool: at most {settings.max_queue_metadata} bytes.",
            example={"uri": _uri(settings), "weight": 100, "options": {"store_connections": 8}},
            required=True,
        ),
        answers={
            201: answer("Added, or described anew. `Location` is its path.", headers=("Location",))
        },
        refusals=(*STORED, Invalid, InvalidBody, InvalidPool, Conflict, StoreFull),
    )


def _change_pool(settings: Settings) -> Node:
    return operation(
        "pools:update",
        POOLS,
        "Change a pool",
        "Takes at least one of the members. Weight and flavor are for queues that are placed from "
        "now on; an empty `flavor` is none. A `uri` that leads to another store is refused with "
        "409 while messages are in the pool: nothing would bring them there. Needs the role "
        "`admin`.",
        parameters=[
            flag(
                "abandon",
                "The store is lost, and the messages in it are given up: take the new one.",
            )
        ],
        body=body(
            schema("PoolChange"),
            f"What to change: at most {settings.max_queue_metadata} bytes.",
            example={"weight": 50},
            required=True,
        ),
        answers={200: answer("The pool as it is now.", schema("Pool"), example=_pool(settings))},
        refusals=(
            *STORED,
            Invalid,
            InvalidBody,
            InvalidParameter,
            InvalidPool,
            NotFound,
            Conflict,
            StoreFull,
        ),
    )


def _delete_pool() -> Node:
    return operation(
        "pools:delete",
        POOLS,
        "Delete a pool",
        "Refused while queues with messages are in it: drain it first. Empty queues are placed "
        "anew when they are used next. The store is left as it is. Needs the role `admin`.",
        answers={204: answer("Deleted, or there is no such pool.")},
        refusals=(*STORED, PoolInUse, StoreFull),
    )


def _drain() -> Node:
    return operation(
        "pools:update:drain",
        POOLS,
        "Drain a pool",
        f"Sets its weight to 0, and brings queues to other pools for about {DRAIN_S:g} seconds, "
        "while they are in use. Call it until nothing is left; `nusku pool drain` does. Needs the "
        "role `admin`.",
        answers={
            200: answer(
                "How far it is.",
                schema("Drained"),
                example={
                    "queues_left": 12,
                    "messages_left": 340,
                    "moved_queues": 3,
                    "moved_messages": 5120,
                },
            )
        },
        refusals=(*STORED, NotFound, StoreFull),
    )


# Flavors


def _list_flavors(settings: Settings) -> Node:
    return operation(
        "flavors:get_all",
        FLAVORS,
        "List flavors",
        "Those of the project, by name.",
        parameters=[
            *_paging("flavor", settings.max_flavors_per_page),
            flag("detailed", "Show the capabilities, too."),
        ],
        answers={
            200: answer(
                "A page, perhaps an empty one.",
                schema("FlavorPage"),
                example={
                    "flavors": [_flavor()],
                    "links": next_link(f"/v2/flavors?limit=1&marker={_FLAVOR}"),
                },
            )
        },
        refusals=(*STORED, Invalid, InvalidParameter),
    )


def _show_flavor() -> Node:
    return operation(
        "flavors:get",
        FLAVORS,
        "Show a flavor",
        "Its pools, and what they promise.",
        answers={200: answer("The flavor.", schema("Flavor"), example=_flavor_in_full())},
        refusals=(*STORED, NotFound),
    )


def _put_flavor(settings: Settings) -> Node:
    return operation(
        "flavors:create",
        FLAVORS,
        "Create a flavor, or make it of other pools",
        "A pool has one flavor, so those listed are taken from the ones that they had; those that "
        "are not listed any more have none. Needs the role `admin`.",
        body=body(
            schema("FlavorDraft"),
            f"The flavor: at most {settings.max_queue_metadata} bytes.",
            example={"pool_list": [_POOL]},
            required=True,
        ),
        answers={
            201: answer("Created, or changed. `Location` is its path.", headers=("Location",))
        },
        refusals=(*STORED, Invalid, InvalidBody, InvalidFlavor, StoreFull),
    )


def _change_flavor(settings: Settings) -> Node:
    return operation(
        "flavors:update",
        FLAVORS,
        "Make a flavor of other pools",
        "As when it is created. Queues stay where they are. Needs the role `admin`.",
        body=body(
            schema("FlavorChange"),
            f"Its pools: at most {settings.max_queue_metadata} bytes.",
            example={"pool_list": [_POOL]},
            required=True,
        ),
        answers={
            200: answer("The flavor as it is now.", schema("Flavor"), example=_flavor_in_full())
        },
        refusals=(
            *STORED,
            Invalid,
            InvalidBody,
            InvalidFlavorUpdate,
            NotFound,
            StoreFull,
        ),
    )


def _delete_flavor() -> Node:
    return operation(
        "flavors:delete",
        FLAVORS,
        "Delete a flavor",
        "Its pools have none then. Queues stay where they are, but no more can be created with it. "
        "Needs the role `admin`.",
        answers={204: answer("Deleted, or there is no such flavor.")},
        refusals=(*STORED, StoreFull),
    )


# Schemas


def schemas() -> Node:
    """The shapes of pools and flavors."""
    weight = integer(
        0,
        pooldocs.WEIGHT_MAX,
        "Its share of new queues is this in proportion to the weights of the others; with 0 it "
        "gets none.",
    )
    uri = string("Of the store, as in the setting `store`.", maxLength=pooldocs.URI_MAX)
    flavor = string(maxLength=pooldocs.FLAVOR_MAX)
    options = open_object(
        {name: _option(name) for name in pooldocs.OPTIONS},
        "These stand for the settings of the same names; others are only kept.",
    )
    draft = {"uri": uri, "weight": weight, "flavor": flavor, "options": options}
    pools = array(string(), "Names of pools.", minItems=1)
    capabilities = array(
        {"enum": list(ALL_CAPABILITIES)}, "What the stores of its pools promise.", uniqueItems=True
    )
    shown = {
        "name": string(),
        "href": string(pattern="^/v2/flavors/"),
        "pool_list": array(string()),
    }
    number = integer(0, None)
    return {
        "Pool": closed(
            {
                "name": string(),
                "href": string(pattern="^/v2/pools/"),
                "weight": weight,
                "uri": string(f"With `{pooldocs.HIDDEN}` for a password."),
                "flavor": {**flavor, "type": ["string", "null"]},
                "options": {"type": "object", "description": "With `detailed` only."},
            },
            optional=("options",),
        ),
        "PoolDraft": closed(draft, optional=("flavor", "options")),
        "PoolChange": {**open_object(draft), "anyOf": [{"required": [name]} for name in draft]},
        "PoolPage": closed({"pools": array(schema("Pool")), "links": schema("Links")}),
        "Drained": closed(
            {
                "queues_left": number,
                "messages_left": number,
                "moved_queues": number,
                "moved_messages": number,
            },
            "What is left in the pool, and what was brought away just now.",
        ),
        "Flavor": closed({**shown, "capabilities": capabilities}, optional=("capabilities",)),
        "FlavorDraft": closed(
            {
                "pool_list": pools,
                "capabilities": {"type": "object", "description": "Taken, and ignored."},
            },
            optional=("capabilities",),
        ),
        "FlavorChange": open_object({"pool_list": pools}, required=("pool_list",)),
        "FlavorPage": closed({"flavors": array(schema("Flavor")), "links": schema("Links")}),
    }


def _option(name: str) -> Node:
    """As the type of the setting of that name has it."""
    kind, meta = get_args(FIELDS[name].type)
    text = f"{allowed_values(name)[0].upper()}{allowed_values(name)[1:]}."
    if kind is bool:
        return {"type": "boolean", "description": text}
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind)), "description": text}
    if kind is str:
        return string(text, pattern="^(postgres(ql)?://[!-~]*)?$")
    number = "integer" if kind is int else "number"
    return {"type": number, "minimum": meta.ge, "maximum": meta.le, "description": text}
