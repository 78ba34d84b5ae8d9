"""Telling subscribers by mail (contract notifications.md sections 5 and 7.3).

A mail has one recipient, who stands in the envelope. What the mail server says is told by its
codes only: its words may repeat anything, the password included.
"""

import asyncio
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import cast

import aiosmtplib
import structlog

from nusku.broker import subscribers
from nusku.broker.deliveries import Parcel, Recipient
from nusku.config import Settings
from nusku.errors import NuskuError
from nusku.notify import letters
from nusku.notify.outcome import Outcome, Reason

log = structlog.get_logger("nusku.mail")

CONNECTIONS_MAX = 4
# A connection that was not used for so long is closed, before the server does it.
IDLE_S = 10.0
MAILS_MAX = 100  # through one connection
QUIT_S = 1.0
_PORTS = {"starttls": 587, "tls": 465, "none": 25}
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

_ENHANCED_CODE = re.compile(r"[245]\.\d{1,3}\.\d{1,3}(?!\S)")
_HOST_NAME = re.compile(r"(?=.{3,253}$)[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")
_NOT_LOGGED_IN, _TOO_LARGE = 530, 552


class _Failure(Exception):
    """An attempt ends here, with this outcome."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.detail)
        self.outcome = outcome


class _Connection:
    """A connection to the mail server, and what is known of its age."""

    __slots__ = ("_transport", "idle_since_s", "mails", "smtp")

    def __init__(self, smtp: aiosmtplib.SMTP) -> None:
        self.smtp = smtp
        self._transport: asyncio.WriteTransport | None = None
        self.mails = 0
        self.idle_since_s = 0.0

    def connected(self) -> None:
        """Remember the transport, which the library forgets when it closes it by itself."""
        # The one of uvloop is no subclass of asyncio's.
        self._transport = cast("asyncio.WriteTransport", self.smtp.transport)

    def drop(self) -> None:
        """Close it now, without the farewells of TLS: a server that hangs would not answer them."""
        self.smtp.close()
        if self._transport is not None:
            self._transport.abort()


class _Cancellation:
    """Knows whether the task was cancelled, also where the exception was lost on its way.

    ``asyncio.wait_for``, which the SMTP library uses, drops it before Python 3.12 if what is waited
    for comes at the same time. Nobody would then keep the time, or end at a stop.
    """

    def __init__(self) -> None:
        self._before = self._requests()

    @staticmethod
    def _requests() -> int:
        task = asyncio.current_task()
        return task.cancelling() if task else 0

    def check(self) -> None:
        """Raise CancelledError if it should have been raised."""
        if self._requests() > self._before:
            raise asyncio.CancelledError


class MailSender:
    """Sends mails through the one mail server that the settings name.

    ``tls`` replaces the certificate authorities of the system. Raises ConfigError if the file with
    templates is not right.
    """

    def __init__(self, settings: Settings, *, tls: ssl.SSLContext | None = None) -> None:
        self._settings = settings
        self._templates = letters.templates(settings.mail_templates)
        self._slots = asyncio.Semaphore(min(CONNECTIONS_MAX, settings.max_deliveries))
        self._idle: list[_Connection] = []
        self._told: set[str] = set()
        self._closed = False
        self._tls = tls
        if tls is None and settings.smtp_host and settings.smtp_security != "none":
            self._tls = ssl.create_default_context()
        if (
            settings.smtp_user_name
            and settings.smtp_security == "none"
            and settings.smtp_host not in _LOOPBACK
        ):
            log.warning("the login to the mail server is not encrypted", smtp_security="none")

    async def send(self, to: Recipient, parcel: Parcel) -> Outcome:
        """Try once to send one mail. Raises nothing but CancelledError."""
        cancellation = _Cancellation()
        outcome = await self._attempt(to, parcel, cancellation)
        cancellation.check()
        return outcome

    async def _attempt(self, to: Recipient, parcel: Parcel, cancellation: _Cancellation) -> Outcome:
        try:
            letter = self._letter(to, parcel)
            chosen = parcel.kind != "confirmation" and bool(to.options.get("from"))
            async with asyncio.timeout(self._settings.delivery_timeout):
                await self._deliver(letter, cancellation, chosen=chosen)
        except _Failure as failure:
            return failure.outcome
        except letters.Unsendable as error:
            return Outcome("refused", "internal", None, error.detail)
        except TimeoutError:
            return _failed("timeout", "The mail was not sent within delivery_timeout.")
        except Exception as error:  # noqa: BLE001 - an attempt always has an outcome
            # Without its text, which may repeat what was sent.
            log.error("a mail could not be sent", subscription=to.id, error=type(error).__name__)
            return _failed("internal", "The mail could not be sent; the log names the error.")
        return Outcome("delivered")

    async def close(self) -> None:
        """Close idle connections. One in use is closed when its mail is sent."""
        self._closed = True
        while self._idle:
            await _quit(self._idle.pop())

    def _letter(self, to: Recipient, parcel: Parcel) -> letters.Letter:
        settings = self._settings
        try:
            mail = subscribers.mail(to.subscriber, to.options)
        except NuskuError as error:
            raise letters.Unsendable(error.detail) from None
        if parcel.kind != "confirmation":
            return letters.notification(mail, parcel, settings.smtp_from)
        if not settings.external_confirmation_url:
            self._tell("mails for confirmation need external_confirmation_url, which is not set")
            what = "mails for confirmation (external_confirmation_url)"
            raise _Failure(_failed("smtp", f"The service is not set up for {what}."))
        return letters.confirmation(
            mail, parcel, self._templates, settings.external_confirmation_url
        )

    def _tell(self, what: str) -> None:
        """Log, once, what is wrong with the set-up: every mail would say the same."""
        if what not in self._told:
            self._told.add(what)
            log.error(what)

    async def _deliver(
        self, letter: letters.Letter, cancellation: _Cancellation, *, chosen: bool
    ) -> None:
        """Hand the mail to the server; ``chosen``: its sender is the subscription's."""
        if not self._settings.smtp_host:
            self._tell("mail cannot be sent: smtp_host is not set")
            raise _Failure(_failed("smtp", "The service has no mail server (smtp_host)."))
        sender = letters.address(self._settings.smtp_from)
        async with self._connection() as smtp:
            options = []
            if smtp.supports_extension("size"):
                options.append(f"SIZE={len(letter.content)}")
            cancellation.check()
            with _step("the sender", final=chosen and not sender):
                await smtp.mail(sender or letter.sender, options=options)
            cancellation.check()
            with _step("the recipient", final=True):
                await smtp.rcpt(letter.recipient)
            cancellation.check()
            with _step("the mail", final=True):
                await smtp.data(letter.content)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[aiosmtplib.SMTP]:
        """A connection that is ready for a mail, and is kept for another if it stays so."""
        async with self._slots:
            connection = await self._kept() or await self._open()
            usable = False
            try:
                yield connection.smtp
                usable = True
            except _Failure as failure:
                # A server that says no has kept its side of the protocol.
                usable = failure.outcome.status is not None
                raise
            finally:
                connection.mails += 1
                usable = usable and connection.smtp.is_connected and not self._closed
                if usable and connection.mails < MAILS_MAX:
                    connection.idle_since_s = time.monotonic()
                    self._idle.append(connection)
                    asyncio.get_running_loop().call_later(IDLE_S + 0.1, self._close_idle)
                else:
                    connection.drop()

    def _close_idle(self) -> None:
        latest_s = time.monotonic() - IDLE_S
        while self._idle and self._idle[0].idle_since_s <= latest_s:
            self._idle.pop(0).drop()

    async def _kept(self) -> _Connection | None:
        """An idle connection, if the server still answers on it and has forgotten the last mail."""
        if not self._idle:
            return None
        connection = self._idle.pop()
        try:
            await connection.smtp.rset(timeout=self._settings.delivery_connect_timeout)
        except (aiosmtplib.SMTPException, OSError):
            connection.drop()
            # Whatever happened to it has probably happened to the others.
            while self._idle:
                self._idle.pop().drop()
            return None
        except BaseException:
            connection.drop()
            raise
        return connection

    async def _open(self) -> _Connection:
        """A new connection, encrypted and logged in as the settings say."""
        settings = self._settings
        connect_s = settings.delivery_connect_timeout
        smtp = aiosmtplib.SMTP(
            hostname=settings.smtp_host,
            port=settings.smtp_port or _PORTS[settings.smtp_security],
            timeout=settings.delivery_timeout,
            use_tls=settings.smtp_security == "tls",
            start_tls=False,  # below, where its failures can be told from others
            tls_context=self._tls,
            local_hostname="localhost",  # until our own address is known
        )
        connection = _Connection(smtp)
        try:
            with _step("the connection", final=False):
                await smtp.connect(timeout=connect_s)
                connection.connected()
                smtp.local_hostname = _own_name(smtp)
                await smtp.ehlo(timeout=connect_s)
            if settings.smtp_security == "starttls":
                with _step("STARTTLS", final=False, reason="tls"):
                    await smtp.starttls(timeout=connect_s)
                    connection.connected()
                    await smtp.ehlo(timeout=connect_s)
            if settings.smtp_user_name:
                await self._log_in(smtp)
        except BaseException:
            connection.drop()
            raise
        return connection

    async def _log_in(self, smtp: aiosmtplib.SMTP) -> None:
        settings = self._settings
        try:
            with _step("the login", final=False):
                await smtp.login(settings.smtp_user_name, settings.smtp_user_password)
        except _Failure as failure:
            status = failure.outcome.status
            log.error("login to the mail server failed", host=settings.smtp_host, status=status)
            raise


@contextmanager
def _step(name: str, *, final: bool, reason: Reason = "smtp") -> Iterator[None]:
    """Turn what goes wrong in a step of the exchange into the outcome of the attempt.

    ``final``: a 5xx is about this very mail, so another attempt would get the same.
    """
    try:
        yield
    except TimeoutError:
        raise _Failure(_failed("timeout", f"The mail server took too long ({name}).")) from None
    except aiosmtplib.SMTPResponseException as error:
        raise _Failure(_reply(error, name, final, reason)) from None
    except (aiosmtplib.SMTPException, OSError) as error:
        raise _Failure(_broken(error, name, reason)) from None


def _reply(
    error: aiosmtplib.SMTPResponseException, step: str, final: bool, reason: Reason
) -> Outcome:
    code = error.code
    if not 100 <= code < 600:
        return _failed("connection", f"The mail server does not speak SMTP ({step}).")
    enhanced = _ENHANCED_CODE.match(error.message)
    told = f"{code} {enhanced[0]}" if enhanced else f"{code}"
    detail = f"The mail server refused {step}: {told}."
    if code == _TOO_LARGE or (final and code >= 500 and code != _NOT_LOGGED_IN):
        return Outcome("refused", reason, code, detail)
    return _failed(reason, detail, code)


def _broken(error: Exception, step: str, reason: Reason) -> Outcome:
    """The outcome of an error that is no reply."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _failed("tls", "The mail server's certificate is not trusted.")
        if isinstance(cause, ssl.SSLError):
            return _failed("tls", "The mail server does not speak TLS as it should.")
        if isinstance(cause, socket.gaierror):
            return _failed("dns", "The mail server's name cannot be resolved (smtp_host).")
        cause = cause.__cause__
    if isinstance(error, OSError):
        # Some servers just hang up on a version of TLS that they do not like.
        why: Reason = "tls" if reason == "tls" else "connection"
        return _failed(why, f"The connection to the mail server failed ({step}).")
    return _failed(reason, f"The mail server does not offer what is needed ({step}).")


def _failed(reason: Reason, detail: str, status: int | None = None) -> Outcome:
    return Outcome("failed", reason, status, detail)


def _own_name(smtp: aiosmtplib.SMTP) -> str:
    """What we call ourselves: our name if it is a full one, else our address.

    Looking the name up could take long, and would tell the server no more.
    """
    name = socket.gethostname()
    if _HOST_NAME.fullmatch(name):
        return name
    address = ipaddress.ip_address(smtp.get_transport_info("sockname")[0].partition("%")[0])
    return f"[IPv6:{address}]" if address.version == 6 else f"[{address}]"


async def _quit(connection: _Connection) -> None:
    try:
        await connection.smtp.quit(timeout=QUIT_S)
    except (aiosmtplib.SMTPException, OSError):
        pass  # it is closed anyway
    finally:
        connection.drop()
