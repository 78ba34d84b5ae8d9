"""The settings: every default and limit, with its unit and the reason for it."""

from typing import Annotated, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

TEN_YEARS_S = 315_360_000


def _s(description: str, ge: float, le: float) -> Meta:
    """A number of seconds."""
    return Meta(description=description, ge=ge, le=le, extra={"unit": "s"})


def _bytes(description: str, ge: int, le: int) -> Meta:
    """A number of bytes."""
    return Meta(description=description, ge=ge, le=le, extra={"unit": "bytes"})


def _count(description: str, ge: int, le: int) -> Meta:
    return Meta(description=description, ge=ge, le=le)


def _about(description: str, allowed: str = "") -> Meta:
    """A text, list or choice; ``allowed`` says in words what the type does not say."""
    return Meta(description=description, extra={"allowed": allowed} if allowed else None)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a server was told, checked by :func:`load`. The order is that of the documentation."""

    # -- where it listens
    host: Annotated[
        str,
        _about(
            "Address to listen on, or the name of one. Anything but loopback needs authentication "
            "or `allow_open`.",
            "an IP address or a host name, without a port",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int, _count("TCP port to listen on; 0 takes a free one and says which.", 0, 65_535)
    ] = 8888

    workers: Annotated[
        int, _count("Processes that serve; an SQLite store is owned by one.", 1, 1)
    ] = 1

    # -- where messages are kept
    store: Annotated[
        str,
        _about(
            "URI of the store: `sqlite:///relative.db` or `sqlite:////absolute/path.db` (four "
            "slashes). One server owns the file; a second one is refused.",
            "a URI, such as sqlite:///nusku.db or sqlite:////var/lib/nusku/nusku.db",
        ),
    ] = "sqlite:///nusku.db"
    sqlite_synchronous: Annotated[
        Literal["full", "normal"],
        _about(
            "`full`: an answer is given when the change is on disk. `normal`: faster on slow "
            "disks, but a power cut may take back the last moments that were already answered."
        ),
    ] = "full"
    disk_watermark: Annotated[
        int,
        _bytes(
            "Below this much free disk space new messages and queues are refused with 503, so "
            "that reading, claiming, deleting and cleaning up still have room. 0 turns it off.",
            0,
            1 << 50,
        ),
    ] = 67_108_864

    # -- who may do what
    auth: Annotated[
        Literal["none"],
        _about("How requests are authenticated. `none`: identity headers are believed as sent."),
    ] = "none"
    allow_open: Annotated[
        bool,
        _about(
            "Listen beyond loopback although `auth = none` believes everybody. Only for networks "
            "where everybody may do everything."
        ),
    ] = False
    metrics_allow: Annotated[
        tuple[str, ...],
        _about(
            "Who may read `/metrics`, which needs no other permission.",
            "networks such as 127.0.0.0/8 or ::1/128",
        ),
    ] = ("127.0.0.0/8", "::1/128")

    # -- messages
    default_message_ttl: Annotated[
        int, _s("Lifetime of a message posted without a `ttl`.", 1, TEN_YEARS_S)
    ] = 3600
    min_message_ttl: Annotated[
        int,
        _s(
            "Shortest lifetime a message may be given. The API promises 60; tests go lower.",
            1,
            TEN_YEARS_S,
        ),
    ] = 60
    max_message_ttl: Annotated[
        int,
        _s("Longest lifetime a message may be given; bounds what a store holds.", 1, TEN_YEARS_S),
    ] = 1_209_600
    default_message_delay: Annotated[
        int, _s("Delay of a message posted without a `delay`.", 0, TEN_YEARS_S)
    ] = 0
    max_message_delay: Annotated[
        int, _s("Longest delay before a message can be read or claimed.", 0, TEN_YEARS_S)
    ] = 900
    max_messages_post_size: Annotated[
        int,
        _bytes(
            "Largest body of a request that posts messages; a queue may lower it for itself. "
            "Bodies are held in memory, so connections times this bounds what posts can take.",
            1,
            268_435_456,
        ),
    ] = 262_144
    enable_checksum: Annotated[
        bool,
        _about("Store a checksum with each message body and show it when messages are read."),
    ] = False
    message_delete_with_claim_id: Annotated[
        bool,
        _about(
            "Refuse to delete several messages by id when one of them is claimed and its claim "
            "is not named. Without it they are deleted, as older clients expect."
        ),
    ] = False

    # -- claims
    default_claim_ttl: Annotated[
        int, _s("Time a claim holds its messages when it asks for none.", 1, TEN_YEARS_S)
    ] = 300
    min_claim_ttl: Annotated[
        int,
        _s(
            "Shortest time a claim may ask for. The API promises 60; tests go lower.",
            1,
            TEN_YEARS_S,
        ),
    ] = 60
    max_claim_ttl: Annotated[
        int,
        _s(
            "Longest time a claim may ask for; a worker that dies blocks its messages that long.",
            1,
            TEN_YEARS_S,
        ),
    ] = 43_200
    default_claim_grace: Annotated[
        int,
        _s(
            "How long claimed messages outlive their claim, if they would otherwise expire in it, "
            "when the claim asks for nothing else.",
            0,
            TEN_YEARS_S,
        ),
    ] = 60
    min_claim_grace: Annotated[
        int,
        _s(
            "Shortest grace a claim may ask for. The API promises 60; tests go lower.",
            0,
            TEN_YEARS_S,
        ),
    ] = 60
    max_claim_grace: Annotated[int, _s("Longest grace a claim may ask for.", 0, TEN_YEARS_S)] = (
        43_200
    )

    # -- pages, queues, clients
    max_queues_per_page: Annotated[
        int, _count("Most queues (or topics) one list may ask for with `limit`.", 1, 1000)
    ] = 20
    max_messages_per_page: Annotated[
        int, _count("Most messages one list may ask for with `limit`, or name by id.", 1, 1000)
    ] = 20
    max_messages_per_claim_or_pop: Annotated[
        int, _count("Most messages one claim or pop may take.", 1, 1000)
    ] = 20
    max_queue_metadata: Annotated[
        int,
        _bytes(
            "Largest metadata document of a queue or topic; it is kept in memory.", 1, 16_777_216
        ),
    ] = 65_536
    client_id_uuid_safe: Annotated[
        Literal["strict", "off"],
        _about(
            "`strict`: Client-ID is a UUID. `off`: any text of a length between the next two, for "
            "clients that name themselves otherwise."
        ),
    ] = "strict"
    min_length_client_id: Annotated[
        int, _count("Shortest Client-ID, in characters, where it need not be a UUID.", 1, 255)
    ] = 10
    max_length_client_id: Annotated[
        int, _count("Longest Client-ID, in characters, where it need not be a UUID.", 1, 255)
    ] = 36

    # -- waiting
    max_wait: Annotated[
        int,
        _s(
            "Longest a claim or a list may wait for messages (`wait`); 0 turns waiting off. "
            "Proxies in between often give up after 30 or 60.",
            0,
            300,
        ),
    ] = 20

    # -- what one request or connection may take
    max_json_depth: Annotated[
        int, _count("Deepest nesting of a JSON body; deeper ones are refused.", 1, 512)
    ] = 64
    max_connections: Annotated[
        int,
        _count(
            "Most connections at a time; further ones are turned away. Each takes a file "
            "descriptor, so the limit of open files must be higher.",
            1,
            1_000_000,
        ),
    ] = 10_000
    max_header_size: Annotated[
        int, _bytes("Largest request line and headers of one request, together.", 1024, 1_048_576)
    ] = 32_768
    max_headers: Annotated[int, _count("Most headers of one request.", 16, 1000)] = 100
    max_url_size: Annotated[
        int,
        _bytes("Longest path and query; bulk operations name their ids there.", 256, 65_536),
    ] = 8192
    header_timeout: Annotated[
        float,
        _s("A connection that takes longer to send a request's headers is closed.", 0.1, 3600),
    ] = 10.0
    body_timeout: Annotated[
        float, _s("A connection that takes longer to send a request's body is closed.", 0.1, 3600)
    ] = 30.0
    write_timeout: Annotated[
        float,
        _s("A connection whose client does not read its answer for so long is closed.", 0.1, 3600),
    ] = 30.0
    keep_alive_timeout: Annotated[
        int,
        _s(
            "An idle connection is closed after this long. Above the 60 that proxies commonly "
            "use, so that it is the proxy that closes.",
            1,
            3600,
        ),
    ] = 75
    shutdown_timeout: Annotated[
        int,
        _s("Longest a stopping server waits for the requests that it is answering.", 0, 600),
    ] = 10

    # -- logs
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        _about("Least severe thing that is logged. Requests are `info`, failed ones `error`."),
    ] = "info"
    log_format: Annotated[
        Literal["auto", "text", "json"],
        _about("`text` for people, `json` for programs, `auto`: text on a terminal, else JSON."),
    ] = "auto"


# Names that later versions give a meaning: taken, so that one file can serve several versions, and
# told to be without effect.
LATER = frozenset(
    {
        "default_subscription_ttl",
        "delivery_keep",
        "enable_virtual_pool",
        "encryption_keys",
        "listen_store",
        "max_flavors_per_page",
        "max_pools_per_page",
        "max_subscriptions_per_page",
        "require_confirmation",
        "secret_key",
        "subscriber_allow",
        "subscriber_private",
        "subscriber_types",
        "trusted_proxies",
        "websocket_port",
    }
)
FIELDS = {field.name: field for field in msgspec.structs.fields(Settings)}


def allowed_values(name: str) -> str:
    """What a setting may be, in words."""
    kind, meta = get_args(FIELDS[name].type)
    extra = meta.extra or {}
    if kind is bool:
        return "true or false"
    if get_origin(kind) is Literal:
        *others, last = get_args(kind)
        return f"{', '.join(others)} or {last}" if others else str(last)
    if kind in {int, float}:
        number = "a whole number" if kind is int else "a number"
        text = f"{number} from {meta.ge:.16g} to {meta.le:.16g}"
        return f"{text} {extra['unit']}" if "unit" in extra else text
    return str(extra["allowed"])
