"""The application: which path is served by what, and what every request goes through."""

import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import falcon
import falcon.asgi
import structlog
from falcon.asgi import Response

from nusku.auth import Identity, Signatures
from nusku.broker import OPERATIONS, Broker, permit, rules
from nusku.config import Settings
from nusku.errors import (
    Invalid,
    InvalidContentType,
    InvalidQueueName,
    InvalidTopicName,
    NotAcceptable,
    NuskuError,
)
from nusku.http import wire
from nusku.http.claims import ClaimHandlers
from nusku.http.flavors import FlavorHandlers
from nusku.http.messages import MessageHandlers
from nusku.http.pools import PoolHandlers
from nusku.http.queues import QueueHandlers
from nusku.http.request import ClientGone, Request
from nusku.http.shares import ShareHandlers
from nusku.http.subscriptions import SubscriptionHandlers
from nusku.http.system import SystemHandlers
from nusku.logs import RequestLog
from nusku.metrics import Metrics

log = structlog.get_logger("nusku.http")

Handler = Callable[..., Awaitable[None]]
Methods = dict[str, tuple[str, Handler]]


class Route(NamedTuple):
    """A path template, and for each method the operation's name and who serves it.

    ``checked`` paths take the headers of contract http-v2.md section 1.3, ``open`` ones none,
    and ``accept`` ones only that check. Paths that are not ``signable`` are below others that are,
    but a signature for those was not meant for these.
    """

    template: str
    methods: Methods
    checks: str = "checked"
    signable: bool = True


def routes(
    queues: dict[str, Any],
    system: SystemHandlers,
    claims: ClaimHandlers,
    shares: ShareHandlers,
    pools: PoolHandlers,
    flavors: FlavorHandlers,
) -> list[Route]:
    """All paths (contract http-v2.md section 1.1).

    ``queues``: by kind, the handlers of themselves, their messages and their subscriptions.
    """
    table = [
        Route("/", {"GET": ("versions:get", system.versions)}, "accept"),
        Route("/livez", {"GET": ("live:get", system.live)}, "open"),
        Route("/readyz", {"GET": ("ready:get", system.ready)}, "open"),
        Route("/metrics", {"GET": ("metrics:get", system.metrics)}, "open"),
        Route("/openapi.json", {"GET": ("openapi:get", system.openapi)}, "open"),
        Route("/docs", {"GET": ("docs:get", system.docs)}, "open"),
        Route("/v2/", {"GET": ("home:get", system.home)}),
        Route(
            "/v2/ping",
            {"GET": ("ping:get", system.ping), "HEAD": ("ping:get", system.ping)},
        ),
        Route("/v2/health", {"GET": ("health:get", system.health)}),
        Route("/v2/queues/{name}/share", {"POST": ("queues:share", shares.share)}),
        Route("/v2/queues/{name}/claims", {"POST": ("claims:create", claims.create)}),
        Route(
            "/v2/queues/{name}/claims/{id_}",
            {
                "GET": ("claims:get", claims.get),
                "PATCH": ("claims:update", claims.renew),
                "DELETE": ("claims:delete", claims.release),
            },
        ),
    ]
    for kinds, (queue, messages, subscriptions) in queues.items():
        one = f"/v2/{kinds}/{{name}}"
        table += [
            Route(f"/v2/{kinds}", {"GET": (f"{kinds}:get_all", queue.page)}),
            Route(
                one,
                {
                    "GET": (f"{kinds}:get", queue.get),
                    "PUT": (f"{kinds}:create", queue.create),
                    "PATCH": (f"{kinds}:update", queue.update),
                    "DELETE": (f"{kinds}:delete", queue.delete),
                },
            ),
            Route(f"{one}/stats", {"GET": (f"{kinds}:stats", queue.stats)}),
            Route(f"{one}/purge", {"POST": (f"{kinds}:purge", queue.purge)}),
            Route(
                f"{one}/messages",
                {
                    "GET": ("messages:get_all", messages.page),
                    "POST": ("messages:create", messages.post),
                    "DELETE": ("messages:delete_all", messages.delete_several),
                },
            ),
            Route(
                f"{one}/messages/{{id_}}",
                {
                    "GET": ("messages:get", messages.get),
                    "DELETE": ("messages:delete", messages.delete),
                },
            ),
            *subscription_routes(f"{one}/subscriptions", subscriptions),
        ]
    return [*table, *admin_routes(pools, flavors)]


def subscription_routes(base: str, subscriptions: SubscriptionHandlers) -> list[Route]:
    """The subscriptions to queues, or to topics; their operations are named in the singular."""
    one = f"{base}/{{id_}}"
    return [
        Route(
            base,
            {
                "GET": ("subscription:get_all", subscriptions.page),
                "POST": ("subscription:create", subscriptions.create),
            },
        ),
        Route(
            one,
            {
                "GET": ("subscription:get", subscriptions.get),
                "PATCH": ("subscription:update", subscriptions.update),
                "DELETE": ("subscription:delete", subscriptions.delete),
            },
        ),
        Route(f"{one}/confirm", {"PUT": ("subscription:confirm", subscriptions.confirm)}),
        *(
            Route(f"{one}/{name}", {method: (operation, handler)}, signable=False)
            for name, method, operation, handler in (
                ("status", "GET", "subscription:get", subscriptions.status),
                ("failed", "GET", "subscription:get", subscriptions.failed),
                ("pause", "POST", "subscription:update", subscriptions.pause),
                ("resume", "POST", "subscription:update", subscriptions.resume),
                ("replay", "POST", "subscription:update", subscriptions.replay),
                ("ping", "POST", "subscription:update", subscriptions.ping),
                ("secret", "POST", "subscription:update", subscriptions.rotate),
            )
        ),
    ]


def admin_routes(pools: PoolHandlers, flavors: FlavorHandlers) -> list[Route]:
    """What is not below a queue or topic, so that no signature is for it."""
    return [
        Route("/v2/pools", {"GET": ("pools:get_all", pools.page)}),
        Route(
            "/v2/pools/{pool}",
            {
                "GET": ("pools:get", pools.get),
                "PUT": ("pools:create", pools.put),
                "PATCH": ("pools:update", pools.patch),
                "DELETE": ("pools:delete", pools.delete),
            },
        ),
        Route("/v2/pools/{pool}/drain", {"POST": ("pools:update", pools.drain)}),
        Route("/v2/flavors", {"GET": ("flavors:get_all", flavors.page)}),
        Route(
            "/v2/flavors/{flavor}",
            {
                "GET": ("flavors:get", flavors.get),
                "PUT": ("flavors:create", flavors.put),
                "PATCH": ("flavors:update", flavors.patch),
                "DELETE": ("flavors:delete", flavors.delete),
            },
        ),
    ]


class Resource:
    """A route in the shape that Falcon takes: a method ``on_get`` and so on for each."""

    def __init__(self, route: Route) -> None:
        self.route = route
        for method, (_, handler) in route.methods.items():
            setattr(self, f"on_{method.lower()}", handler)


class Pipeline:
    """What every request goes through, in the order of contract http-v2.md section 1.2."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        request_log: RequestLog,
        rng: random.Random,
        signing_key: str,
    ) -> None:
        self._identity = Identity(settings)
        self._signatures = Signatures(signing_key)
        self._url_max = settings.max_url_size
        self._headers_max = settings.max_headers
        self._metrics = metrics
        self._log = request_log
        self._bits = rng.getrandbits

    async def process_request(self, req: Request, resp: Response) -> None:
        bits = f"{self._bits(128):032x}"
        req.id = f"req-{bits[:8]}-{bits[8:12]}-4{bits[13:16]}-a{bits[17:20]}-{bits[20:]}"
        resp.set_header("X-Openstack-Request-Id", req.id)
        scope = req.scope
        if req.path.startswith("//"):
            raise falcon.HTTPNotFound  # the router would overlook the empty segment
        if len(scope["headers"]) > self._headers_max:
            raise Invalid(f"At most {self._headers_max} headers can be sent.")
        if len(scope["raw_path"]) + len(scope["query_string"]) > self._url_max:
            raise Invalid(f"The URL is limited to {self._url_max} bytes.")

    async def process_resource(
        self, req: Request, resp: Response, resource: Resource, params: dict[str, str]
    ) -> None:
        route = resource.route
        served = route.methods.get(req.method)
        req.operation = served[0] if served else "method:unsupported"
        if route.checks == "open":
            return
        head = req.head
        signed = bool(head.get(b"url-signature"))
        if signed and not (route.signable and self._signatures.allow(req.method, req.path, head)):
            raise falcon.HTTPNotFound  # whatever is wrong with it
        if (
            req.content_type is not None
            and req.content_type.lower() == "application/x-www-form-urlencoded"
            and b"content-length" in head
        ):
            raise InvalidContentType("Send the body as JSON, not as a form.")
        accept = head.get(b"accept")
        if accept and accept not in _ACCEPTED and not req.client_accepts("application/json"):
            raise NotAcceptable("Answers are application/json only.")
        if route.checks == "accept":
            return
        req.ctx = self._identity.context(head, signed=signed)
        name = params.get("name")
        if name is not None and not (
            rules.legal_name(name) and len(req.ctx.project) <= rules.PROJECT_MAX
        ):
            kind, refused = (
                ("topic", InvalidTopicName)
                if route.template.startswith("/v2/topics")
                else ("queue", InvalidQueueName)
            )
            raise refused(
                f"The name of a {kind} has 1 to 64 letters, digits, underscores, hyphens and"
                f" dots; that of a project at most {rules.PROJECT_MAX} characters."
            )
        extra = head.get(b"extra-spec")
        if extra and extra[0] != 0x3A and extra.partition(b":")[0] != b"messagecode":
            raise Invalid("EXTRA-SPEC names a scheme that is not known: use messagecode.")
        if req.operation in OPERATIONS:
            # The broker asks again; here it comes before the body is read (section 1.2).
            permit(req.ctx, req.operation)

    async def process_response(
        self, req: Request, resp: Response, resource: Resource | None, succeeded: bool
    ) -> None:
        if req.method == "OPTIONS":  # always fine (section 1.1), whatever came before
            resp.status, resp.data = 200, b""
        if req.must_close:
            resp.set_header("Connection", "close")
        seconds = time.perf_counter() - req.started
        status = resp.status_code
        operation = req.operation or "unrouted"
        self._metrics.operation(operation, status, seconds, waited=req.waited)
        ctx = getattr(req, "ctx", None)
        self._log.line(
            req.id,
            ctx.project[: rules.PROJECT_MAX] if ctx else "",
            operation,
            status,
            seconds * 1000,
        )


_ACCEPTED = frozenset((b"*/*", b"application/json", b"application/*"))


def build(
    broker: Broker,
    settings: Settings,
    metrics: Metrics,
    request_log: RequestLog,
    system: SystemHandlers,
    rng: random.Random,
    signing_key: str,
) -> falcon.asgi.App[Any, Any]:
    """The ASGI application. ``signing_key`` verifies signed requests; empty, none is."""
    json = wire.Json(settings.max_json_depth)
    app = falcon.asgi.App(
        request_type=Request,
        middleware=[Pipeline(settings, metrics, request_log, rng, signing_key)],
    )
    kinds = {
        f"{kind}s": (
            QueueHandlers(broker, settings, json, kind),
            MessageHandlers(broker, settings, json, kind),
            SubscriptionHandlers(broker, settings, json, kind),
        )
        for kind in ("queue", "topic")
    }
    claims, shares = ClaimHandlers(broker, settings, json), ShareHandlers(broker, settings, json)
    pools, flavors = PoolHandlers(broker, settings, json), FlavorHandlers(broker, settings, json)
    for route in routes(kinds, system, claims, shares, pools, flavors):
        app.add_route(route.template, Resource(route))
    app.set_error_serializer(_serialize)
    app.add_error_handler(NuskuError, _refused)
    app.add_error_handler(ClientGone, _gone)
    app.add_error_handler(Exception, _failed)
    return app


def _answer(resp: Response, problem: NuskuError) -> None:
    resp.status = problem.status
    resp.data = wire.error(problem)
    resp.set_header("Vary", "Accept")
    if problem.status == 503:
        resp.set_header("Retry-After", "1")


async def _refused(req: Request, resp: Response, problem: NuskuError, params: object) -> None:
    _answer(resp, problem)


async def _failed(req: Request, resp: Response, problem: Exception, params: object) -> None:
    if isinstance(problem, falcon.HTTPError):
        raise problem
    log.error("unexpected error", request_id=req.id, exc_info=problem)
    _answer(resp, NuskuError("The request id is in the server's log."))


async def _gone(req: Request, resp: Response, problem: ClientGone, params: object) -> None:
    """Nobody reads this answer; the status is for the log."""
    resp.status = 499


def _serialize(req: Request, resp: Response, error: falcon.HTTPError) -> None:
    resp.data = wire.encode({"title": error.title})
    resp.content_type = "application/json"
    resp.append_header("Vary", "Accept")
