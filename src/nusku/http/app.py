"""The application: which path is served by what, and what every request goes through."""

import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple

import falcon
import falcon.asgi
import structlog
from falcon.asgi import Response

from nusku.audit import MANAGEMENT, Audit
from nusku.auth import Authentication, Hosts, project_of
from nusku.broker import OPERATIONS, Broker, Grants, Rates, permit, rules
from nusku.config import Settings
from nusku.errors import (
    Forbidden,
    Invalid,
    InvalidContentType,
    NotAcceptable,
    NuskuError,
    RateExceeded,
    Unauthorized,
    Unavailable,
)
from nusku.http import events, wire
from nusku.http.claims import ClaimHandlers
from nusku.http.cors import Cors, Origins
from nusku.http.flavors import FlavorHandlers
from nusku.http.messages import MessageHandlers
from nusku.http.pacing import COUNTED, Pacing
from nusku.http.pools import PoolHandlers
from nusku.http.queues import QueueHandlers
from nusku.http.request import ClientGone, Request
from nusku.http.shares import ShareHandlers
from nusku.http.subscriptions import SubscriptionHandlers
from nusku.http.system import SystemHandlers
from nusku.logs import RequestLog
from nusku.metrics import Metrics
from nusku.model import PROJECT_MAX, Kind, QueueKey
from nusku.shapes import encode

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

    @property
    def kind(self) -> Kind:
        """What a name in the path is the name of."""
        return "topic" if self.template.startswith("/v2/topics") else "queue"


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
        authentication: Authentication,
        open_paths: frozenset[str],
        grants: Grants,
        rates: Rates,
        audit: Audit | None,
    ) -> None:
        self._authentication = authentication
        self._authenticate = authentication.required
        # Where others can reach this service, pages can do no more than they.
        self._hosts = None if authentication.required or settings.allow_open else Hosts(settings)
        self._origins = Origins(settings.cors_origins)
        self._open_paths = open_paths
        self._grants = grants
        self._rates = rates
        self._audit = audit
        self._url_max = settings.max_url_size
        self._headers_max = settings.max_headers
        self._metrics = metrics
        self._log = request_log
        self._bits = rng.getrandbits

    async def process_request(self, req: Request, resp: Response) -> None:
        req.id = wire.request_id(self._bits)
        resp.set_header("X-Openstack-Request-Id", req.id)
        scope = req.scope
        if len(scope["headers"]) > self._headers_max:
            raise Invalid(f"At most {self._headers_max} headers can be sent.")
        if len(scope["raw_path"]) + len(scope["query_string"]) > self._url_max:
            raise Invalid(f"The URL is limited to {self._url_max} bytes.")
        head = req.head
        if len(head) != len(scope["headers"]):
            _refuse_twice(scope["headers"])
        if head.get(b"accept") == events.ACCEPT:
            head = req.head = events.completed(req)
        if head.get(b"url-signature") or self._authenticate:
            await self._identify(req, head)
        elif self._hosts is not None and (
            # A page can change the first, but not leave it out; the others are not always there.
            b"accept-language" in head or b"origin" in head or b"sec-fetch-site" in head
        ):
            self._look_at_page(self._hosts, head)
        if self._rates.limited and COUNTED not in scope:
            self._count(req, head)
        if req.path.startswith("//"):
            raise falcon.HTTPNotFound  # the router would overlook the empty segment

    def _look_at_page(self, hosts: Hosts, head: Mapping[bytes, bytes]) -> None:
        """Raise Forbidden if a page from anywhere may ask this: see ``nusku.auth.hosts``."""
        origin = head.get(b"origin")
        if origin is not None and self._origins.told(origin.decode("latin-1")):
            return
        if not hosts.ours(head.get(b"host", b"")):
            raise Forbidden(
                "With auth = none, browsers are served at localhost, at an address, or at the host"
                " of public_url only."
            )

    def _count(self, req: Request, head: Mapping[bytes, bytes]) -> None:
        """Count the request as one of its project's, if it was not yet. Raises RateExceeded."""
        if req.path in self._open_paths or req.path == "/":
            return
        if req.caller is not None:
            self._rates.take(req.caller.project)
        elif project := project_of(head):
            self._rates.take(project.decode("latin-1"))

    async def _identify(self, req: Request, head: Mapping[bytes, bytes]) -> None:
        """Who asks: nothing but a signature that is right goes round the other credentials.

        Comes before routing, so that those who are not let in do not learn which paths there are.
        """
        path = req.path
        if path in self._open_paths:
            return
        if head.get(b"url-signature"):
            req.caller = self._authentication.signed(req.method, path, head)
            if req.caller is None:
                req.refusal = "the signature does not allow this request"
                raise falcon.HTTPNotFound  # whatever is wrong with it
        elif path != "/":
            req.caller = self._authentication.known(head)
            if req.caller is None:
                req.caller = await self._authentication.caller(head)

    async def process_resource(
        self, req: Request, resp: Response, resource: Resource, params: dict[str, str]
    ) -> None:
        route = resource.route
        served = route.methods.get(req.method)
        req.operation = served[0] if served else "method:unsupported"
        if route.checks == "open":
            return
        head = req.head
        caller = req.caller
        if caller is not None and not route.signable and caller.scheme == "signature":
            req.refusal = "the signature was not given for this path"
            raise falcon.HTTPNotFound
        if (
            req.content_type is not None
            and req.content_type.lower() == "application/x-www-form-urlencoded"
            and b"content-length" in head
        ):
            raise InvalidContentType("Send the body as JSON, not as a form.")
        accept = head.get(b"accept")
        if (
            accept
            and accept not in _ACCEPTED
            and not req.client_accepts("application/json")
            and not (req.operation == "messages:get_all" and events.wanted(req))
        ):
            raise NotAcceptable("Answers are application/json only.")
        if route.checks == "accept":
            return
        req.ctx = self._authentication.context(head, caller)
        name = params.get("name")
        key = None if name is None else QueueKey(route.kind, req.ctx.project, name)
        if key is not None:
            rules.check_key(key)
        extra = head.get(b"extra-spec")
        if extra and extra[0] != 0x3A and extra.partition(b":")[0] != b"messagecode":
            raise Invalid("EXTRA-SPEC names a scheme that is not known: use messagecode.")
        if req.operation in OPERATIONS:
            # The broker asks again; here it comes before the body is read (section 1.2).
            owner = head.get(b"queue-project-id")
            if owner or not permit.policy(req.ctx, req.operation):
                req.ctx = await self._grants.enter(
                    req.ctx, req.operation, key, (owner or b"").decode("latin-1")
                )

    async def process_response(
        self, req: Request, resp: Response, resource: Resource | None, succeeded: bool
    ) -> None:
        if req.method == "OPTIONS":  # always fine (section 1.1), whatever came before
            resp.status, resp.data, req.refusal = 200, b"", ""
        if req.must_close:
            resp.set_header("Connection", "close")
        if req.operation == OVER_THE_RATE:
            return  # counted and logged apart: whoever makes too many requests is to cost little
        seconds = time.perf_counter() - req.started
        status = resp.status_code
        operation = req.operation or "unrouted"
        self._metrics.operation(operation, status, seconds, waited=req.waited)
        ctx = getattr(req, "ctx", None)
        self._log.line(
            req.id,
            ctx.project[:PROJECT_MAX] if ctx else "",
            operation,
            status,
            seconds * 1000,
        )
        if self._audit is not None and (req.refusal or operation in MANAGEMENT):
            self._audit.request(
                operation,
                req.path,
                status,
                refusal=req.refusal,
                ctx=ctx,
                caller=req.caller,
                method=req.method,
                address=req.remote_addr,
                request_id=req.id,
            )


# Of two of these, what stands before this service may have looked at the other one.
_ONCE = frozenset(
    {
        b"authorization",
        b"client-id",
        b"queue-project-id",
        b"url-expires",
        b"url-methods",
        b"url-paths",
        b"url-signature",
        b"x-auth-token",
        b"x-project-id",
        b"x-roles",
        b"x-tenant",
        b"x-tenant-id",
        b"x-user-id",
    }
)


def _refuse_twice(headers: Iterable[tuple[bytes, bytes]]) -> None:
    seen = set()
    for name, _ in headers:
        if name in _ONCE and name in seen:
            raise Invalid(f"The header {name.decode()} can be sent once.")
        seen.add(name)


OVER_THE_RATE = "rate:exceeded"  # in place of an operation
_ACCEPTED = frozenset((b"*/*", b"application/json", b"application/*"))


def build(
    broker: Broker,
    settings: Settings,
    metrics: Metrics,
    request_log: RequestLog,
    system: SystemHandlers,
    rng: random.Random,
    authentication: Authentication,
    audit: Audit | None,
) -> tuple[falcon.asgi.App[Request, Response], Pacing]:
    """The ASGI application, and who is asked before it is."""
    json = wire.Json(settings.max_json_depth)
    kinds = {
        f"{kind}s": (
            QueueHandlers(broker, settings, json, kind),
            MessageHandlers(broker, settings, json, kind, authentication),
            SubscriptionHandlers(broker, settings, json, kind),
        )
        for kind in ("queue", "topic")
    }
    claims, shares = ClaimHandlers(broker, settings, json), ShareHandlers(broker, settings, json)
    pools, flavors = PoolHandlers(broker, settings, json), FlavorHandlers(broker, settings, json)
    table = routes(kinds, system, claims, shares, pools, flavors)
    open_paths = frozenset(route.template for route in table if route.checks == "open")
    middleware: list[Any] = [
        Pipeline(
            settings,
            metrics,
            request_log,
            rng,
            authentication,
            open_paths,
            broker.grants,
            broker.rates,
            audit,
        )
    ]
    if settings.cors_origins:
        middleware.insert(0, Cors(Origins(settings.cors_origins)))
    app = falcon.asgi.App(request_type=Request, middleware=middleware)
    for route in table:
        app.add_route(route.template, Resource(route))
    app.set_error_serializer(_serialize)
    app.add_error_handler(NuskuError, _refused)
    app.add_error_handler(ClientGone, _gone)
    app.add_error_handler(Exception, _failed)
    return app, Pacing(authentication, broker.rates, open_paths | {"/"}, rng)


def _answer(resp: Response, problem: NuskuError) -> None:
    resp.status = problem.status
    resp.data = wire.error(problem)
    resp.set_header("Vary", "Accept")
    if isinstance(problem, Unavailable):
        resp.set_header("Retry-After", str(problem.retry_after_s))
    elif isinstance(problem, Unauthorized):
        resp.set_header("WWW-Authenticate", problem.challenge)


async def _refused(req: Request, resp: Response, problem: NuskuError, params: object) -> None:
    if isinstance(problem, RateExceeded):
        req.operation = OVER_THE_RATE
    elif isinstance(problem, Unauthorized):
        req.refusal = problem.why
    elif isinstance(problem, Forbidden):
        req.refusal = problem.detail
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
    resp.data = encode({"title": error.title})
    resp.content_type = "application/json"
    resp.append_header("Vary", "Accept")
