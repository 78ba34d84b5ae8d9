"""Connections to subscribers: nobody is trusted at the other end.

The rules are put into aiohttp where no path leads around them. Whatever the URL said and whatever
its name resolved to, a socket is made for an address that was judged, and for that address only.
Whatever is sent to us, a connection takes so many bytes an answer and no more.
"""

import asyncio
import resource
import socket
import ssl
from contextvars import ContextVar
from functools import cached_property, partial
from typing import Any

import aiohttp
from aiohttp.abc import ResolveResult
from aiohttp.client_proto import ResponseHandler

from nusku.addresses import Addresses
from nusku.config import Settings

ANSWER_BYTES_MAX = 65_536
ADDRESSES_MAX = 8
KEPT_S = 15.0  # below what receivers and proxies commonly keep, so that few find theirs closed
# c-ares doubles the time for the second try. Whoever waits has given up by then or soon after.
DNS_TIMEOUT_S, DNS_TRIES = 2.0, 2


class Attempt:
    """What the connector notes down about one attempt."""

    __slots__ = ("answered", "opened", "refusal")

    def __init__(self) -> None:
        self.opened = False  # a socket was made
        self.answered = False  # something came back
        self.refusal = ""  # why an address was not connected to


current: ContextVar[Attempt] = ContextVar("attempt")
"""The attempt that the running task makes. The tasks that race for a connection inherit it."""


class Refused(OSError):
    """The address may not be connected to."""


class Outbound:
    """What all connections share: rules, resolver, trust in certificates, and their number."""

    def __init__(self, settings: Settings, addresses: Addresses) -> None:
        """To be made inside the loop that it is for."""
        self.addresses = addresses
        self.open = 0
        self._deliveries_max = settings.max_deliveries
        # c-ares waits for slow name servers without a thread for each name.
        self.resolver = _Resolver(
            nameservers=list(settings.nameservers) or None,
            timeout=DNS_TIMEOUT_S,
            tries=DNS_TRIES,
        )
        # Made now and not when aiohttp was imported: SSL_CERT_FILE counts as it is at the start.
        self.tls = ssl.create_default_context()
        self.tls.set_alpn_protocols(["http/1.1"])

    @cached_property
    def kept_max(self) -> int:
        """Idle connections are kept while there are no more than this, idle or not: they may
        double the files that deliveries take. The limit counts as it is at the first delivery.
        """
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return min(self._deliveries_max, soft // 4)

    def socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """A socket for this address, if it may be connected to. Raises Refused."""
        family, kind, protocol, _, sockaddr = address
        ip, port = str(sockaddr[0]), int(sockaddr[1])
        attempt = current.get()
        refusal = self.addresses.refusal(ip, port)
        if refusal is not None:
            # What a name means inside is nobody's business outside.
            attempt.refusal = refusal.replace(ip, "Its address")
            raise Refused(refusal)
        attempt.opened = True
        return socket.socket(family, kind, protocol)


class _Resolver(aiohttp.AsyncResolver):
    """aiohttp's, which would pass on the thousands of addresses that a name may have.

    All of them would be tried, and after each failure all but one again.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return (await super().resolve(host, port, family))[:ADDRESSES_MAX]


class Connector(aiohttp.TCPConnector):
    """aiohttp's, with sockets and protocols of ours. Every new connection resolves anew."""

    def __init__(self, outbound: Outbound, *, reuse: bool) -> None:
        super().__init__(
            limit=0,  # the worker bounds what is in flight
            use_dns_cache=False,
            resolver=outbound.resolver,
            socket_factory=outbound.socket,
            ssl=outbound.tls,
            **({"keepalive_timeout": KEPT_S} if reuse else {"force_close": True}),
        )
        self._factory = partial(_connection, asyncio.get_running_loop(), outbound)


class _Connection(ResponseHandler):
    """aiohttp's, which would parse whatever comes, also while nobody waits for an answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, outbound: Outbound) -> None:
        super().__init__(loop)
        self._outbound = outbound
        self._attempt = Attempt()
        self._left = 0
        self._counted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._count(is_open=True)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._count(is_open=False)
        super().connection_lost(exc)

    def _count(self, *, is_open: bool) -> None:
        self._outbound.open += is_open - self._counted
        self._counted = is_open

    def set_response_params(self, **params: Any) -> None:
        """A request is about to be sent."""
        self._attempt = current.get()
        self._left = ANSWER_BYTES_MAX
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        left = self._left
        self._left = left - len(data)
        self._attempt.answered = True
        if self._left >= 0:
            super().data_received(data)
            return
        if left > 0:
            super().data_received(data[:left])  # the status may be in there
        if self.transport is not None:
            self.transport.abort()

    def is_connected(self) -> bool:
        # What came unasked must not become the answer to the next request.
        return super().is_connected() and not self._buffer

    @property
    def should_close(self) -> bool:
        return super().should_close or self._outbound.open > self._outbound.kept_max

    def close(self) -> None:
        # Not politely: a peer that reads nothing could otherwise keep the file open for ever.
        self._count(is_open=False)
        self.abort()


def _connection(loop: asyncio.AbstractEventLoop, outbound: Outbound) -> ResponseHandler:
    return _Connection(loop, outbound)
