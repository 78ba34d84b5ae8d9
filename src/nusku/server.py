"""Builds everything once, runs it, and takes it down in order."""

import asyncio
import gc
import logging
import random
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from types import FrameType
from typing import Any

import structlog
import uvicorn
import uvloop

import nusku
from nusku import audit, auth, http, keys, notify, tls, workers
from nusku.addresses import Addresses
from nusku.auth import Authentication, Trusts
from nusku.broker import Broker, Pools, policy
from nusku.config import ConfigError, Settings, masked
from nusku.errors import StoreRefused, Unavailable
from nusku.logs import RequestLog, configure
from nusku.metrics import Metrics
from nusku.storage import (
    MessageStore,
    Store,
    StoreOptions,
    copying,
    endpoints,
    open_store,
)
from nusku.storage.registry import Mirror
from nusku.websocket import Sockets

log = structlog.get_logger("nusku.server")

REFUSED, FAILED = 2, 1
EXPIRED_AT_ONCE = 200  # rows; a step of housekeeping takes a millisecond or two
HOUSEKEEPING_PAUSE_S = 0.01  # between two steps while there is more to do
HOUSEKEEPING_REST_S = 1.0
ATTEMPTS_PATIENCE_S = 5  # with attempts under way, when the server stops; they are made again


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status.

    0 after a clean stop, 1 when the store failed, 2 when the start was refused.
    """
    try:
        tls.check(settings)
        policy.check(settings)
        listeners = [_listen(settings.host, settings.port), *_for_websocket(settings)]
    except ConfigError as error:
        return _refuse(*error.problems)
    if settings.workers == 1:
        return _run_one(settings, listeners, None)
    # Of one listener for all, whoever wakes first takes all that come at once; and connections stay
    # where they are. The parent's hold the ports and do not listen.
    reserved = [_another(listener) for listener in listeners]
    return workers.supervise(
        settings.workers,
        reserved[0],
        lambda worker: _run_one(settings, [_another(each, 4096) for each in reserved], worker),
        partial(_announce, encrypted=bool(settings.tls_certificate)),
    )


def _run_one(
    settings: Settings, listeners: list[socket.socket], worker: workers.Worker | None
) -> int:
    request_log = configure(settings.log_level, settings.log_format)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # we say ourselves that we start
    # The commit thread must not wait long for the loop's thread to let go of the interpreter.
    sys.setswitchinterval(0.0002)
    try:
        return uvloop.run(_serve(settings, listeners, worker, request_log))
    finally:
        request_log.close()


class Server(uvicorn.Server):
    """uvicorn's, stopping when told, with a status."""

    def __init__(
        self,
        config: uvicorn.Config,
        broker: Broker,
        worker: workers.Worker | None,
        certificates: tls.Certificates | None,
    ) -> None:
        super().__init__(config)
        self.status = 0
        self.certificates = certificates
        self._broker = broker
        self._worker = worker

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not remembered, unlike uvicorn does, lest the process die of the signal after all.
        if self.should_exit:
            self.force_exit = sig == signal.SIGINT
        self.stop(0)

    def stop(self, status: int) -> None:
        """Take no new requests, end the waits, answer what is in flight."""
        self.status = max(self.status, status)
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn's, which leaves TLS to the loop; `nusku.tls` says why we don't.
        protocol: Any = self.config.http_protocol_class
        serve = partial(
            protocol,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        begin = self.certificates.over_tls(serve) if self.certificates else serve
        loop, backlog = asyncio.get_running_loop(), self.config.backlog
        self.servers = [
            await loop.create_server(begin, sock=each, backlog=backlog) for each in sockets or ()
        ]
        self.started = True
        if self._worker is not None:
            self._worker.watch(lambda: self.stop(0))
            self._worker.listening()
            return
        _announce(self.servers[0].sockets[0], encrypted=self.certificates is not None)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._broker.waiting.close()
        # Those who still send, or don't read, are hung up on before uvicorn cancels their tasks.
        patience_s = 0.8 * (self.config.timeout_graceful_shutdown or 0)
        last_call = asyncio.get_running_loop().call_later(patience_s, self._hang_up)
        try:
            await super().shutdown(sockets)
        finally:
            last_call.cancel()

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()


async def _serve(
    settings: Settings,
    listeners: list[socket.socket],
    worker: workers.Worker | None,
    request_log: RequestLog,
) -> int:
    metrics = Metrics()
    ports = [listener.getsockname()[1] for listener in listeners]
    ours = [*((settings.host, port) for port in ports), *endpoints(settings.store)]

    async def open_pool(uri: str, options: Mapping[str, Any]) -> Store:
        ours.extend(one for one in endpoints(uri) if one not in ours)
        # Figures of pools would be taken for those of the service's own store.
        return await open_store(uri, None, StoreOptions.of(settings, options), Metrics())

    try:
        own = await open_store(settings.store, None, StoreOptions.of(settings), metrics)
    except StoreRefused as error:
        _close(listeners)
        return _refuse(str(error))
    try:
        await copying.refuse_unfinished(own)
        signing_key, ring = keys.signing_key(settings), keys.ring(settings)
    except (StoreRefused, Unavailable) as error:
        _close(listeners)
        await own.close()
        return _refuse(str(error))
    log.info(
        "starting",
        version=nusku.__version__,
        store=masked(settings.store),
        guarantee=own.guarantee,
        auth=",".join(settings.auth),
    )
    if settings.websocket_port and len(listeners) == 1:
        log.warning(
            "websocket_port is taken; WebSocket is on port only", port=settings.websocket_port
        )
    registry = Mirror(own.registry)
    trusts = Trusts(settings)
    addresses = Addresses(settings, own=ours)
    rng = random.SystemRandom()
    pools = Pools(own, open_pool, settings, rng)
    broker = Broker(
        pools,
        settings,
        metrics,
        rng,
        signing_key=signing_key,
        trusts=trusts,
        addresses=addresses,
        ring=ring,
        registry=registry,
    )
    try:
        senders = notify.build(settings, addresses, trusts)
        notifier = notify.Notifier(broker, senders, settings, metrics, _attempts_max(settings))
        with audit.opened(settings, request_log.sink) as trail:
            async with (
                auth.opened(settings, signing_key, registry) as authentication,
                _figures(worker, metrics),
                registry.kept(),
                broker.quotas.kept(),
                broker.rates.kept(),
                policy.kept(settings),
                keys.kept(ring),
            ):
                certificates = tls.certificates(settings)
                server = _build(
                    settings,
                    broker,
                    authentication,
                    metrics,
                    request_log,
                    trail,
                    worker,
                    certificates,
                    ports[0],
                )
                return await _run(server, pools, notifier, listeners, settings.shutdown_timeout)
    except ConfigError as error:
        return _refuse(*error.problems)
    except StoreRefused as error:
        return _refuse(str(error))
    finally:
        await broker.moving.close()
        await trusts.close()
        await pools.close()
        await own.close()


@asynccontextmanager
async def _figures(worker: workers.Worker | None, metrics: Metrics) -> AsyncIterator[None]:
    """Tell the other workers the figures of this one."""
    if worker is None:
        yield
        return
    telling = await worker.tell(metrics)
    try:
        yield
    finally:
        telling.close()


def _attempts_max(settings: Settings) -> int:
    """As many as are set, but not so many that no open file is left for those who call."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        soft = hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(settings.max_deliveries, max(soft // 4, 8))


def _build(
    settings: Settings,
    broker: Broker,
    authentication: Authentication,
    metrics: Metrics,
    request_log: RequestLog,
    trail: audit.Audit | None,
    worker: workers.Worker | None,
    certificates: tls.Certificates | None,
    port: int,
) -> Server:
    openapi: dict[str, Any] = {}

    def document() -> dict[str, Any]:
        if not openapi:
            openapi.update(http.document(settings, nusku.__version__))
        return openapi

    async def figures() -> bytes:
        return metrics.text() if worker is None else await worker.all_metrics(metrics)

    system = http.SystemHandlers(broker, settings, figures, document, http.page)
    # Request ids only have to differ; asking the system for randomness each time would cost more.
    rng = random.Random()  # noqa: S311
    app, pacing = http.build(
        broker, settings, metrics, request_log, system, rng, authentication, trail
    )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    sockets = Sockets(
        broker,
        settings,
        authentication,
        metrics,
        request_log,
        trail,
        settings.public_url.rstrip("/") or f"http://{host}:{port}",
    )
    config = uvicorn.Config(
        app,
        interface="asgi3",
        http=http.protocol(settings, pacing, sockets),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=4096,
        timeout_graceful_shutdown=int(settings.shutdown_timeout),
    )
    server = Server(config, broker, worker, certificates)
    connections = server.server_state.connections
    metrics.gauge("nusku_waiters", "Requests that wait for messages.", lambda: len(broker.waiting))
    metrics.gauge("nusku_websockets", "Open WebSockets.", lambda: len(sockets))
    metrics.gauge(
        "nusku_event_streams",
        "Queues that are followed as event streams.",
        lambda: len(broker.waiting.at_close),
    )
    metrics.gauge("nusku_connections", "Open connections.", lambda: len(connections))
    return server


async def _run(
    server: Server,
    pools: Pools,
    notifier: notify.Notifier,
    listeners: list[socket.socket],
    shutdown_timeout_s: int,
) -> int:
    duties = [
        asyncio.create_task(_housekeeping(pools)),
        asyncio.create_task(http.sweep_for_ever(server.server_state.connections)),
        asyncio.create_task(_watch(pools.own, server)),
    ]
    if server.certificates is not None:
        duties.append(asyncio.create_task(server.certificates.watch_for_ever()))
    notifier.start()
    # What lives from here on is made by requests; the rest need not be looked at again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
    try:
        await server.serve(sockets=listeners)
    finally:
        await notifier.stop(min(shutdown_timeout_s, ATTEMPTS_PATIENCE_S))
        for duty in duties:
            duty.cancel()
        await asyncio.gather(*duties, return_exceptions=True)
    return server.status


async def _watch(store: Store, server: Server) -> None:
    why = await asyncio.shield(store.failed)  # cancelling the watch must not look like a failure
    log.critical("the store failed; stopping, so that nothing is promised in vain", reason=why)
    server.stop(FAILED)


async def _housekeeping(pools: Pools) -> None:
    while True:
        stores = (pools.own, *pools.opened().values())
        done = sum(await asyncio.gather(*(_tidy(store.messages) for store in stores)))
        await asyncio.sleep(HOUSEKEEPING_PAUSE_S if done else HOUSEKEEPING_REST_S)


async def _tidy(messages: MessageStore) -> int:
    try:
        return await messages.expire(EXPIRED_AT_ONCE)
    except Unavailable as error:
        log.warning("housekeeping has to wait", reason=error.detail)
        return 0


def _for_websocket(settings: Settings) -> list[socket.socket]:
    """What listens on `websocket_port`; nothing where the default port is somebody else's."""
    port = settings.websocket_port
    try:
        return [_listen(settings.host, port)] if port else []
    except ConfigError:
        if port != Settings().websocket_port:
            raise
        return []


def _listen(host: str, port: int) -> socket.socket:
    """Listen; ConfigError where that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(4096)
    except OSError as error:
        listener.close()
        raise ConfigError([f"cannot listen on {host}:{port}: {error.strerror}"]) from None
    listener.setblocking(False)
    return listener


def _close(listeners: list[socket.socket]) -> None:
    for listener in listeners:
        listener.close()


def _another(listener: socket.socket, backlog: int = 0) -> socket.socket:
    """A socket on the same port that the kernel shares with its like; the first one is closed.

    With a backlog it listens, and connections are spread over those that do.
    """
    address = listener.getsockname()
    listener.close()
    another = socket.socket(listener.family, socket.SOCK_STREAM)
    another.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    another.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    another.bind(address)
    if backlog:
        another.listen(backlog)
    another.setblocking(False)
    return another


def _announce(listener: socket.socket, *, encrypted: bool) -> None:
    host, port = listener.getsockname()[:2]
    url = f"http{'s' if encrypted else ''}://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"nusku listening on {url}", flush=True)  # noqa: T201 - the one line on stdout


def _refuse(*problems: str) -> int:
    for problem in problems:
        print(f"nusku: {problem}", file=sys.stderr, flush=True)  # noqa: T201
    return REFUSED
