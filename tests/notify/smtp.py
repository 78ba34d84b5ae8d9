"""A real mail server for tests, with every way of misbehaving."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

HOST = "127.0.0.1"
PATIENCE_S = 20.0


@dataclass(frozen=True)
class Received:
    """A mail that arrived."""

    sender: str
    recipients: list[str]
    content: bytes
    encrypted: bool
    user: str | None


@dataclass(frozen=True)
class Fault:
    """What happens in place of a command, after `delay_s`; without anything else it is obeyed."""

    reply: str = ""
    hang: bool = False
    cut: bool = False
    delay_s: float = 0.0


class SmtpServer:
    """`faults` is read anew at each command: CONNECT, EHLO, MAIL, RCPT, DATA, RSET, QUIT.

    `tls` offers STARTTLS, or encrypts from the first byte on with `implicit`; `users` are those
    who may log in, and then everybody has to.
    """

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        implicit: bool = False,
        users: Mapping[str, str] | None = None,
    ) -> None:
        self.tls = tls
        self.implicit = implicit
        self.users = users
        self.auth = True
        self.faults: dict[str, Fault] = {}
        self.port = 0
        self.mails: list[Received] = []
        self.commands: list[str] = []
        self.connections = 0
        self.open = 0
        self.most_open = 0
        self._arrived = threading.Condition()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self.transports: set[asyncio.BaseTransport] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE_S), "the mail server did not start"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE_S)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await self._loop.create_server(
            lambda: _Protocol(self), HOST, 0, ssl=self.tls if self.implicit else None
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for transport in list(self.transports):
            assert isinstance(transport, asyncio.WriteTransport)
            with suppress(AttributeError):  # Python 3.11's of TLS, when it is gone already
                transport.abort()
        # What is left: connections that were turned away in the middle of a handshake.
        for _ in range(200):
            if not getattr(server, "_active_count", 0):
                break
            await asyncio.sleep(0.01)

    def arrived(self, mail: Received) -> None:
        with self._arrived:
            self.mails.append(mail)
            self._arrived.notify_all()

    def said(self, command: str) -> None:
        with self._arrived:
            self.commands.append(command)
            self._arrived.notify_all()

    def wait_for(self, command: str) -> None:
        """Wait until somebody has sent this command."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: command in self.commands, PATIENCE_S)

    def wait(self, count: int, timeout_s: float = PATIENCE_S) -> list[Received]:
        """Wait until so many mails are there, and return all."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.mails) >= count, timeout_s), (
                f"{len(self.mails)} of {count} mails arrived"
            )
            return list(self.mails)


class _Protocol(SMTP):
    def __init__(self, server: SmtpServer) -> None:
        super().__init__(
            _Handler(server),
            hostname="mail.test",
            tls_context=None if server.implicit else server.tls,
            auth_required=server.users is not None,
            auth_require_tls=server.users is not None and server.tls is not None,
            auth_exclude_mechanism=() if server.auth else ("LOGIN", "PLAIN"),
            authenticator=self._authenticate_user,
            timeout=60,
        )
        self._server = server

    def _authenticate_user(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
    ) -> AuthResult:
        assert isinstance(data, LoginPassword)
        known = (self._server.users or {}).get(data.login.decode())
        right = known is not None and known.encode() == data.password
        return AuthResult(success=right, handled=False, auth_data=data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self.transport is None:  # else STARTTLS
            server = self._server
            server.transports.add(transport)
            server.connections += 1
            server.open += 1
            server.most_open = max(server.most_open, server.open)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._server.open -= 1
        super().connection_lost(error)

    async def _handle_client(self) -> None:
        reply = await self.fault("CONNECT")
        if reply:
            await self.push(reply)
            assert self.transport is not None
            self.transport.close()
            return
        await super()._handle_client()

    async def smtp_EHLO(self, hostname: str) -> None:  # noqa: N802 - aiosmtpd's
        if reply := await self.fault("EHLO"):
            await self.push(reply)
        else:
            await super().smtp_EHLO(hostname)

    async def smtp_STARTTLS(self, arg: str) -> None:  # noqa: N802 - aiosmtpd's
        if reply := await self.fault("STARTTLS"):
            await self.push(reply)
        else:
            await super().smtp_STARTTLS(arg)

    async def smtp_RSET(self, arg: str) -> None:  # noqa: N802 - aiosmtpd's
        if reply := await self.fault("RSET"):
            await self.push(reply)
        else:
            await super().smtp_RSET(arg)

    async def smtp_QUIT(self, arg: str) -> None:  # noqa: N802 - aiosmtpd's
        if reply := await self.fault("QUIT"):
            await self.push(reply)
        else:
            await super().smtp_QUIT(arg)

    async def fault(self, command: str) -> str:
        """What to answer instead; nothing if the command is to be obeyed."""
        self._server.said(command)
        fault = self._server.faults.get(command)
        if fault is None:
            return ""
        if fault.delay_s:
            await asyncio.sleep(fault.delay_s)
        if fault.cut:
            assert isinstance(self.transport, asyncio.WriteTransport)
            self.transport.abort()
        if fault.cut or fault.hang:
            await asyncio.Event().wait()  # until the connection is lost
        return fault.reply


class _Handler:
    def __init__(self, server: SmtpServer) -> None:
        self._server = server

    async def handle_MAIL(  # noqa: N802 - aiosmtpd's
        self, server: _Protocol, session: Session, envelope: Envelope, address: str, options: Any
    ) -> str:
        if reply := await server.fault("MAIL"):
            return reply
        envelope.mail_from = address
        return "250 OK"

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's
        self, server: _Protocol, session: Session, envelope: Envelope, address: str, options: Any
    ) -> str:
        if reply := await server.fault("RCPT"):
            return reply
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(  # noqa: N802 - aiosmtpd's
        self, server: _Protocol, session: Session, envelope: Envelope
    ) -> str:
        if reply := await server.fault("DATA"):
            return reply
        assert isinstance(envelope.content, bytes)
        login: bytes = getattr(session.auth_data, "login", b"")
        self._server.arrived(
            Received(
                (envelope.mail_from or "").removeprefix("<>"),
                list(envelope.rcpt_tos),
                envelope.content,
                session.ssl is not None or self._server.implicit,
                login.decode() or None,
            )
        )
        return "250 OK"
