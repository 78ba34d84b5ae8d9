"""The settings: every default and limit, with its unit and the reason for it."""

from typing import Annotated, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

TEN_YEARS_S = 315_360_000
QUOTA_MAX = 1 << 60


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


def _secret(description: str, allowed: str = "a text") -> Meta:
    """A text, or several, never shown."""
    return Meta(description=description, extra={"allowed": allowed, "secret": True})


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a server was told, checked by :func:`load`. The order is that of the documentation."""

    def __repr__(self) -> str:
        """Without secrets, lest they come into a log by way of an exception."""
        return "Settings(…)"

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

    tls_certificate: Annotated[
        str,
        _about(
            "Certificate for HTTPS, and those between it and its authority. Without one "
            "connections are not encrypted. Read again when it changes.",
            "empty, or the path of a PEM file",
        ),
    ] = ""
    tls_key: Annotated[
        str,
        _about(
            "Its private key, where that is in another file.",
            "empty, or the path of a PEM file that is not encrypted",
        ),
    ] = ""
    tls_client_ca: Annotated[
        str,
        _about(
            "Clients have to show a certificate of one of these authorities.",
            "empty, or the path of a PEM file",
        ),
    ] = ""
    tls_min_version: Annotated[
        Literal["1.2", "1.3"], _about("Oldest version of TLS that is spoken.")
    ] = "1.2"
    cors_origins: Annotated[
        tuple[str, ...],
        _about(
            "Web pages of these origins may use the service from browsers (CORS); `*` for all.",
            "origins such as https://console.example.com, or *",
        ),
    ] = ()

    websocket_port: Annotated[
        int,
        _count(
            "A further TCP port on which WebSocket is spoken, whatever the path, for clients that "
            "expect it there; 0 for none. Where the default one is taken, the server goes on "
            "without it, and says so. On `port` WebSocket is spoken at `/v2/websocket`.",
            0,
            65_535,
        ),
    ] = 9000

    workers: Annotated[
        int,
        _count(
            "Processes that serve, on PostgreSQL or Redis; an SQLite store is owned by one.", 1, 64
        ),
    ] = 1

    # -- where messages are kept
    store: Annotated[
        str,
        _about(
            "URI of the store: `sqlite:///relative.db` or `sqlite:////absolute/path.db` (four "
            "slashes), of which one server owns the file and a second one is refused; or one that "
            "many servers share: `postgresql://`, `redis://`, `rediss://`, `redis+sentinel://`, "
            "`redis+cluster://`.",
            "a URI, such as sqlite:////var/lib/nusku/nusku.db or postgresql://user@host/nusku",
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

    listen_store: Annotated[
        str,
        _about(
            "A direct `postgresql://` URI for LISTEN, where `store` goes through a pooler such as "
            "PgBouncer. Without it, waiting requests there look at the store several times a "
            "second.",
            "a postgresql:// URI",
        ),
    ] = ""
    store_connections: Annotated[
        int, _count("Connections of one process to a shared store.", 1, 64)
    ] = 4
    store_timeout: Annotated[
        float,
        _s(
            "After this long without an answer from a shared store the connection is closed and "
            "what waited for it is answered with 503.",
            0.1,
            600,
        ),
    ] = 10.0
    synchronous_standby: Annotated[
        bool,
        _about(
            "PostgreSQL: refuse to work unless the primary waits for a standby with each commit "
            "(`synchronous_standby_names`)."
        ),
    ] = False
    redis_replicas: Annotated[
        int,
        _count(
            "Redis: replicas that must have received a change (WAIT) before it is answered. 0 "
            "protects against a crash only, with `appendfsync always`.",
            0,
            16,
        ),
    ] = 0
    unreliable: Annotated[
        bool,
        _about("Accept a Redis that may lose what was already answered when it crashes."),
    ] = False
    enable_virtual_pool: Annotated[
        bool,
        _about(
            "Queues without a flavor go to the service's own store where no pool without a flavor "
            "has a weight. Off: they are refused with 503 there."
        ),
    ] = True

    # -- who may do what
    auth: Annotated[
        tuple[str, ...],
        _about(
            "How requests are authenticated: by one or several of `keystone` (tokens of an "
            "OpenStack Keystone), `key` (keys made by `nusku key create`) and `oidc` (tokens of an "
            "OpenID Connect provider). `none`: identity headers are believed as sent.",
            "none, or some of keystone, key and oidc",
        ),
    ] = ("none",)
    allow_open: Annotated[
        bool,
        _about(
            "Listen beyond loopback although `auth = none` believes everybody. Only for networks "
            "where everybody may do everything."
        ),
    ] = False
    keystone_url: Annotated[
        str,
        _about(
            "Keystone that knows whose a token is, for `auth = keystone`.",
            "empty, or a URL such as https://keystone.example.com/v3",
        ),
    ] = ""
    keystone_public_url: Annotated[
        str,
        _about(
            "Where clients reach it, if elsewhere; told to those who come without a token.",
            "empty, or a URL",
        ),
    ] = ""
    keystone_user_name: Annotated[
        str, _about("The service's own user there, who may look at tokens.", "empty, or a name")
    ] = ""
    keystone_user_password: Annotated[str, _secret("Password of that user.")] = ""
    keystone_user_domain_name: Annotated[str, _about("Domain of that user.", "a name")] = "Default"
    keystone_project_name: Annotated[
        str, _about("Project in which that user has the role to look at tokens.", "a name")
    ] = "service"
    keystone_project_domain_name: Annotated[str, _about("Domain of that project.", "a name")] = (
        "Default"
    )
    keystone_ca_file: Annotated[
        str,
        _about(
            "Certificates of the authorities that may have signed Keystone's, also for trusts; "
            "those that are known to everybody if empty.",
            "empty, or the path of a PEM file",
        ),
    ] = ""
    keystone_cache: Annotated[
        int,
        _s(
            "For how long a token that was looked at is believed; a revoked one still works that "
            "long, and on a WebSocket or event stream as long again while Keystone cannot be asked.",
            0,
            60,
        ),
    ] = 60
    keystone_timeout: Annotated[
        float,
        _s(
            "After this long without an answer from Keystone requests are answered with 503.",
            0.1,
            60,
        ),
    ] = 5.0
    oidc_issuer: Annotated[
        str,
        _about(
            "OpenID Connect provider whose tokens are taken, for `auth = oidc`; exactly as its "
            "tokens name it (`iss`).",
            "empty, or a URL such as https://login.example.com/realms/main; https except on "
            "loopback",
        ),
    ] = ""
    oidc_audience: Annotated[
        tuple[str, ...],
        _about("What a token has to be meant for (`aud`): one of these.", "a list of names"),
    ] = ()
    oidc_jwks_url: Annotated[
        str,
        _about(
            "Where the provider's keys are; if empty, where its own configuration says.",
            "empty, or a URL; https except on loopback",
        ),
    ] = ""
    oidc_algorithms: Annotated[
        tuple[str, ...],
        _about(
            "How tokens may be signed.",
            "some of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512 and EdDSA",
        ),
    ] = ("RS256", "ES256")
    oidc_project_claim: Annotated[
        str,
        _about(
            "Claim that names the project. Dots lead into claims inside of others.",
            "the name of a claim, such as project or resource.project",
        ),
    ] = "project"
    oidc_projects: Annotated[
        tuple[str, ...],
        _about(
            "Which projects the values of that claim mean. If there are any, others mean none.",
            "a list of pairs such as /tenants/blue=blue",
        ),
    ] = ()
    oidc_roles_claim: Annotated[
        str,
        _about(
            "Claim that names the roles, in a list or apart by blanks.",
            "the name of a claim, such as roles or realm_access.roles",
        ),
    ] = "roles"
    oidc_roles: Annotated[
        tuple[str, ...],
        _about(
            "Which roles the values of that claim mean. If there are any, others mean none.",
            "a list of pairs such as queue-operators=admin",
        ),
    ] = ()
    oidc_ca_file: Annotated[
        str,
        _about(
            "Certificates of the authorities that may have signed the provider's; those that are "
            "known to everybody if empty.",
            "empty, or the path of a PEM file",
        ),
    ] = ""
    policy_file: Annotated[
        str,
        _about(
            "YAML file with other rules than the defaults for who may do what, in the language of "
            "oslo.policy. Read again when it changes.",
            "empty, or the path of a file",
        ),
    ] = ""
    audit_log: Annotated[
        str,
        _about(
            "Where lines are written about who changed what, and who was refused: a file, to which "
            "they are appended, or `stderr`.",
            "empty, stderr, or the path of a file",
        ),
    ] = ""
    metrics_allow: Annotated[
        tuple[str, ...],
        _about(
            "Who may read `/metrics`, which needs no other permission.",
            "networks such as 127.0.0.0/8 or ::1/128",
        ),
    ] = ("127.0.0.0/8", "::1/128")

    # -- how much a project may have and do
    quota_queues: Annotated[
        int,
        _count(
            "Most queues and topics of one project; 0 is no limit. This and the next four are for "
            "all projects for which `nusku quota set` says nothing else.",
            0,
            QUOTA_MAX,
        ),
    ] = 0
    quota_messages: Annotated[
        int, _count("Most messages that a project may have at a time; 0 is no limit.", 0, QUOTA_MAX)
    ] = 0
    quota_bytes: Annotated[
        int,
        _bytes(
            "Most that the bodies of a project's messages may take, as they are stored; 0 is no "
            "limit.",
            0,
            QUOTA_MAX,
        ),
    ] = 0
    quota_subscriptions: Annotated[
        int, _count("Most subscriptions of one project; 0 is no limit.", 0, QUOTA_MAX)
    ] = 0
    quota_requests: Annotated[
        int,
        _count("Most requests that a project may make in a second; 0 is no limit.", 0, QUOTA_MAX),
    ] = 0

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

    # -- pre-signed URLs
    secret_key: Annotated[
        str,
        _secret(
            "Key that signs URLs. Left empty, an SQLite store makes one in a file beside it; nodes "
            "that share a store need the same one. At least 32 random characters."
        ),
    ] = ""
    max_signature_ttl: Annotated[
        int, _s("Longest that a pre-signed URL may stay valid.", 60, TEN_YEARS_S)
    ] = 604_800

    # -- encryption at rest
    encryption_keys: Annotated[
        tuple[str, ...],
        _secret(
            "Keys for the messages of encrypted queues: the first one encrypts, all of them decrypt. "
            "Nodes that share a store need the same ones. Left empty, those of `key_file` are used.",
            "texts of at least 32 characters without blanks and commas, such as "
            "`openssl rand -hex 32` prints",
        ),
    ] = ()
    key_file: Annotated[
        str,
        _about(
            "File with the keys that sign and encrypt, where they are not settings; a change of its "
            "encryption keys is noticed while the server runs. Left empty, an SQLite store makes "
            "one beside it.",
            "empty, or the path of a file as `nusku encryption rotate` writes it",
        ),
    ] = ""

    # -- subscriptions
    default_subscription_ttl: Annotated[
        int, _s("Lifetime of a subscription made without a `ttl`.", 1, TEN_YEARS_S)
    ] = 3600
    min_subscription_ttl: Annotated[
        int,
        _s(
            "Shortest lifetime a subscription may be given. The API promises 60; tests go lower.",
            1,
            TEN_YEARS_S,
        ),
    ] = 60
    max_subscriptions_per_page: Annotated[
        int, _count("Most subscriptions one list may ask for with `limit`.", 1, 1000)
    ] = 20
    max_pools_per_page: Annotated[
        int, _count("Most pools one list may ask for with `limit`.", 1, 1000)
    ] = 20
    max_flavors_per_page: Annotated[
        int, _count("Most flavors one list may ask for with `limit`.", 1, 1000)
    ] = 20
    subscriber_types: Annotated[
        tuple[str, ...],
        _about(
            "Kinds of subscribers that may be subscribed.",
            "some of http, https, mailto, trust+http and trust+https",
        ),
    ] = ("http", "https", "mailto", "trust+http", "trust+https")
    subscriber_private: Annotated[
        Literal["refuse", "allow"],
        _about(
            "Whether subscribers may be in private networks (10.0.0.0/8, fc00::/7 and the like). "
            "Loopback, link-local and other special addresses are refused either way."
        ),
    ] = "refuse"
    subscriber_allow: Annotated[
        tuple[str, ...],
        _about(
            "Networks that subscribers may be in, whatever else is refused.",
            "networks such as 10.1.0.0/16 or 127.0.0.1/32",
        ),
    ] = ()
    subscriber_ports: Annotated[
        tuple[str, ...],
        _about(
            "Ports that subscribers may listen on, outside of `subscriber_allow`.",
            "ports and ranges such as 443 or 1024-65535",
        ),
    ] = ("80", "443", "1024-65535")
    nameservers: Annotated[
        tuple[str, ...],
        _about(
            "Name servers that resolve the names of subscribers; those of the system if empty.",
            "IP addresses, with a port where it is not 53: 192.0.2.1, 192.0.2.1:5353 or [::1]:5353",
        ),
    ] = ()
    require_confirmation: Annotated[
        bool,
        _about(
            "Send nothing to a subscriber who has not confirmed the subscription by the signed "
            "request that was sent to it."
        ),
    ] = False
    public_url: Annotated[
        str,
        _about(
            "Where the outside reaches this service; confirmations and CloudEvents name it.",
            "empty, or a URL such as https://queues.example.com",
        ),
    ] = ""
    external_confirmation_url: Annotated[
        str,
        _about(
            "The page that mails link to for confirming a subscription; it sends the signed "
            "request. Needed to confirm `mailto` subscriptions.",
            "empty, or a URL such as https://example.com/confirm",
        ),
    ] = ""

    # -- deliveries
    delivery_connect_timeout: Annotated[
        float, _s("Longest that connecting to a subscriber may take.", 0.1, 60)
    ] = 5.0
    delivery_timeout: Annotated[
        float, _s("Longest that one attempt at a delivery may take as a whole.", 0.1, 300)
    ] = 15.0
    delivery_keep: Annotated[
        int, _s("How long a delivery that was given up is kept for replay.", 1, TEN_YEARS_S)
    ] = 604_800
    max_deliveries: Annotated[
        int,
        _count(
            "Most attempts at a time. Each takes a connection, and a quarter of the open files "
            "that the process may have is the most they get.",
            8,
            100_000,
        ),
    ] = 2000

    # -- mail
    smtp_host: Annotated[
        str, _about("Mail server; without one `mailto` deliveries wait.", "empty, or a host name")
    ] = ""
    smtp_port: Annotated[
        int,
        _count("Its port; 0 is the usual one: 587 for starttls, 465 for tls, else 25.", 0, 65_535),
    ] = 0
    smtp_security: Annotated[
        Literal["starttls", "tls", "none"],
        _about("`starttls` and `tls` verify the server's certificate; `none` is for loopback."),
    ] = "starttls"
    smtp_user_name: Annotated[
        str, _about("Name to log in with.", "empty (no login), or a name")
    ] = ""
    smtp_user_password: Annotated[str, _secret("Password to log in with.")] = ""
    smtp_from: Annotated[
        str,
        _about(
            "Sender of mails whose subscription names none, and the address that bounces go to.",
            "empty, or a mail address",
        ),
    ] = ""
    mail_templates: Annotated[
        str,
        _about(
            "TOML file with other texts for confirmation mails.",
            "empty, or the path of a file with `topic`, `sender` and `body` under `[subscription]` "
            "and `[unsubscribe]`",
        ),
    ] = ""

    # -- trusts
    trustee_auth_url: Annotated[
        str,
        _about(
            "Keystone that makes trusts for `trust+http` subscribers, and tokens from them.",
            "empty, or a URL such as https://keystone.example.com/v3",
        ),
    ] = ""
    trustee_user_name: Annotated[
        str, _about("The service's own user there, to whom trust is given.", "empty, or a name")
    ] = ""
    trustee_user_password: Annotated[str, _secret("Password of the service's own user.")] = ""
    trustee_user_domain_name: Annotated[
        str, _about("Domain of the service's own user.", "a name")
    ] = "Default"

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
    max_connections_per_address: Annotated[
        int,
        _count(
            "Most connections of one address (of IPv6: of one /64 network); 0 is no limit but "
            "`max_connections`. Behind a proxy all of them have its address.",
            0,
            1_000_000,
        ),
    ] = 0
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
    max_websockets_per_project: Annotated[
        int,
        _count(
            "Most WebSockets of one project at a time, of each process, where `auth` is not `none`; "
            "0 is no limit. Who comes later is not let in.",
            0,
            1_000_000,
        ),
    ] = 100
    websocket_idle_timeout: Annotated[
        float,
        _s(
            "A WebSocket whose client sends nothing for so long, not even an answer to a ping, is "
            "closed.",
            1,
            604_800,
        ),
    ] = 3600.0
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
        "trusted_proxies",
    }
)
FIELDS = {field.name: field for field in msgspec.structs.fields(Settings)}

SECRETS = frozenset(
    name for name, field in FIELDS.items() if (get_args(field.type)[1].extra or {}).get("secret")
)


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
