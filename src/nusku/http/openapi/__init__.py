"""The OpenAPI 3.1 document of everything that is served, with the limits of this server."""

from nusku.config import Settings
from nusku.http.openapi import claims, messages, pools, queues, service, shares, subscriptions
from nusku.http.openapi.components import components
from nusku.http.openapi.credentials import with_credentials
from nusku.http.openapi.parts import QUEUE, TOPIC

_ABOUT = """\
nusku keeps messages in queues. Programs post them, others claim them and delete them when the \
work is done; or they just read along. {kept}

What people do with it:

- **Share out work.** Producers post jobs. Each worker *claims* a few, does them and deletes them. \
While a claim lasts nobody else gets its messages; if a worker dies, its claim lapses and others do.
- **Tell everybody.** A publisher posts events. Any number of readers *list* the messages, each \
with a marker of its own. Nobody deletes anything: messages expire after their `ttl`.
- **Be told.** A program *subscribes* an address of its own, and is sent every message by HTTP or \
mail. What it does not accept is sent again, for as long as you say.
- **Talk in both directions.** A program and its agent use one queue. A listing leaves out what the \
same `Client-ID` posted, so neither hears itself.

With one producer, messages come out in the order in which they were posted.

**Every request** under `/v2` needs two headers: `Client-ID` and {identity}. Bodies are JSON in \
UTF-8. All durations are whole seconds.

**Errors** are JSON objects with a `title` and, mostly, a `description`. A 4xx answer says what \
was wrong with the request, which had no effect. After a 503 a write may or may not have taken \
effect, but wholly or not at all: try again in a few seconds. An unknown path is answered with 404 \
and the title `404 Not Found`, a method that a path does not take with 405 and the header `Allow`, \
which OPTIONS tells too.

**Lists** come in pages. Follow the `next` link until a page is empty. Query parameters with an \
empty value count as not given.

**Limits.** A URL may have {settings.max_url_size} bytes; the headers {settings.max_headers} fields \
and, with the URL, {settings.max_header_size} bytes. JSON may be nested {settings.max_json_depth} \
levels deep. The other limits are said where they apply.

**Every answer** has the header `x-openstack-request-id`. It stands in the server's log too: name \
it when you report a problem.

The API is that of Zaqar, version 2, so its clients work here.
"""

_BELIEVED = "`X-Project-ID`"
_PROVED = (
    "`X-Auth-Token`, with a token or key that says who asks and for which project (or "
    "`Authorization: Bearer`, or a signature)"
)
_KEPT = {
    "full": "What was answered with success is on disk.",
    "normal": "What was answered with success survives the end of the program, but of the last "
    "moments before a power cut it may be lost: that is how this server is set.",
}

_TAGS = {
    "Queues": "A queue is a name with messages. Posting creates it; you may note things about it "
    "as *metadata*, some of which have a meaning.",
    "Messages": "A message has a body, which is any JSON value, and a lifetime. Its place in the "
    "queue never changes.",
    "Claims": "A claim holds messages for whoever made it, for a limited time: the way to share "
    "out work.",
    "Subscriptions": "A subscription sends every new message to a *subscriber*: a URL that takes "
    "POST requests, or a mail address. Deliveries are kept on disk until the subscriber has "
    "accepted them; below a subscription you see how that goes, and can pause, replay and test it.",
    "Topics": "A topic is like a queue that cannot be claimed from. Topics and queues do not share "
    "names: the queue `a` and the topic `a` have nothing to do with one another.",
    "Topic messages": "As for queues, but for claims.",
    "Topic subscriptions": "As for queues.",
    "Pools": "The stores that queues are spread over, for those who run the server.",
    "Flavors": "A flavor is a name for some of the pools. A queue whose metadata have `_flavor` is "
    "put into one of those.",
    "Discovery": "What is served here, and whether it works.",
    "Watching": "For those who run the server. These paths need no headers.",
}


def document(settings: Settings, version: str) -> dict[str, object]:
    """The document, ready for JSON; ``version`` is that of nusku."""
    whole = _document(settings, version)
    return whole if settings.auth == ("none",) else with_credentials(whole, settings)


def _document(settings: Settings, version: str) -> dict[str, object]:
    identity = _BELIEVED if settings.auth == ("none",) else _PROVED
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "nusku",
            "version": version,
            "summary": "Message queues over HTTP",
            "description": _ABOUT.format(
                settings=settings, kept=_KEPT[settings.sqlite_synchronous], identity=identity
            ),
        },
        "servers": [{"url": "/", "description": "This server"}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": {
            **queues.paths(QUEUE, settings),
            **messages.paths(QUEUE, settings),
            **claims.paths(settings),
            **shares.paths(settings),
            **subscriptions.paths(QUEUE, settings),
            **queues.paths(TOPIC, settings),
            **messages.paths(TOPIC, settings),
            **subscriptions.paths(TOPIC, settings),
            **pools.paths(settings),
            **service.discovery(),
            **service.watching(),
        },
        "components": components(settings),
    }
