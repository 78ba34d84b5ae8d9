"""Builds everything once, runs it, and takes it down in order."""

import asyncio
import gc
import logging
import random
import resource
import signal
import socket
import sys
from types import FrameType
from typing import Any

import structlog
import uvicorn
import uvloop

import nusku
from nusku import http, keys, notify
from nusku.addresses import Addresses
from nusku.auth import Trusts
from nusku.broker import Broker
from nusku.clock import steady_clock
from nusku.config import ConfigError, Settings, masked
from nusku.errors import StoreRefused, Unavailable
from nusku.logs import RequestLog, configure
from nusku.metrics import Metrics
from nusku.storage import MessageStore, Store, StoreOptions, open_store

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
    request_log = configure(settings.log_level, settings.log_format)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # we say ourselves that we start
    # The commit thread must not wait long for the loop's thread to let go of the interpreter.
    sys.setswitchinterval(0.0002)
    try:
        return uvloop.run(_serve(settings, request_log))
    finally:
        request_log.close()


class Server(uvicorn.Server):
    """uvicorn's, stopping when told, with a status."""

    def __init__(self, config: uvicorn.Config, broker: Broker) -> None:
        super().__init__(config)
        self.status = 0
        self._broker = broker

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
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        print(f"nusku listening on {url}", flush=True)  # noqa: T201 - the one line on stdout

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


async def _serve(settings: Settings, request_log: RequestLog) -> int:
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as error:
        return _refuse(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}")
    metrics = Metrics()
    options = StoreOptions(settings.sqlite_synchronous, settings.disk_watermark)
    try:
        store = await open_store(settings.store, steady_clock(), options, metrics)
    except StoreRefused as error:
        listener.close()
        return _refuse(str(error))
    try:
        signing_key = keys.signing_key(settings)
    except StoreRefused as error:
        listener.close()
        await store.close()
        return _refuse(str(error))
    log.info(
        "starting",
        version=nusku.__version__,
        store=masked(settings.store),
        synchronous=settings.sqlite_synchronous,
        auth=settings.auth,
    )
    trusts = Trusts(settings)
    addresses = Addresses(settings, own=[(settings.host, listener.getsockname()[1])])
    broker = Broker(
        store,
        settings,
        metrics,
        random.SystemRandom(),
        signing_key=signing_key,
        trusts=trusts,
        addresses=addresses,
    )
    try:
        senders = notify.build(settings, addresses, trusts)
        await broker.open()
        notifier = notify.Notifier(broker, senders, settings, metrics, _attempts_max(settings))
        server = _build(settings, broker, signing_key, metrics, request_log)
        return await _run(server, store, notifier, listener, settings.shutdown_timeout)
    except ConfigError as error:
        return _refuse(*error.problems)
    finally:
        await trusts.close()
        await store.close()


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
    signing_key: str,
    metrics: Metrics,
    request_log: RequestLog,
) -> Server:
    openapi: dict[str, Any] = {}

    def document() -> dict[str, Any]:
        if not openapi:
            openapi.update(http.document(settings, nusku.__version__))
        return openapi

    system = http.SystemHandlers(broker, settings, metrics, document, http.page)
    # Request ids only have to differ; asking the system for randomness each time would cost more.
    app = http.build(broker, settings, metrics, request_log, system, random.Random(), signing_key)  # noqa: S311
    config = uvicorn.Config(
        app,
        http=http.protocol(settings),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=4096,
        timeout_graceful_shutdown=int(settings.shutdown_timeout),
    )
    server = Server(config, broker)
    connections = server.server_state.connections
    metrics.gauge("nusku_waiters", "Requests that wait for messages.", lambda: len(broker.waiting))
    metrics.gauge("nusku_connections", "Open connections.", lambda: len(connections))
    return server


async def _run(
    server: Server,
    store: Store,
    notifier: notify.Notifier,
    listener: socket.socket,
    shutdown_timeout_s: int,
) -> int:
    duties = [
        asyncio.create_task(_housekeeping(store.messages)),
        asyncio.create_task(http.sweep_for_ever(server.server_state.connections)),
        asyncio.create_task(_watch(store, server)),
    ]
    notifier.start()
    # What lives from here on is made by requests; the rest need not be looked at again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
    try:
        await server.serve(sockets=[listener])
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


async def _housekeeping(messages: MessageStore) -> None:
    while True:
        try:
            done = await messages.expire(EXPIRED_AT_ONCE)
        except Unavailable as error:
            log.warning("housekeeping has to wait", reason=error.detail)
            done = 0
        await asyncio.sleep(HOUSEKEEPING_PAUSE_S if done else HOUSEKEEPING_REST_S)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(4096)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _refuse(*problems: str) -> int:
    for problem in problems:
        print(f"nusku: {problem}", file=sys.stderr, flush=True)  # noqa: T201
    return REFUSED
