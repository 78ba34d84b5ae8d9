"""TLS: the certificate that this server shows, and whose certificates it asks for.

The files are looked at every few seconds. New connections get what was read last; those that are
open keep what they began with.
"""

import asyncio
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import structlog
from uvloop.loop import SSLProtocol  # type: ignore[attr-defined] # its stubs leave it out

from nusku.config import ConfigError, Settings

log = structlog.get_logger("nusku.tls")

LOOKED_AT_S = 2.0
HANDSHAKES_AT_LEAST = 100  # at a time, beside the connections that there may be

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
# A file's state: a change of any of these may be a change of what is in it.
_State = tuple[tuple[int, int, int] | None, ...]


class Certificates:
    """What the files of the settings hold, for connections.

    It also bounds how many connections there are before anybody has counted them: those in
    handshakes. Raises ConfigError when the files cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._seen = self._state()
        self._newest = read(settings)
        self._open: set[_Side] = set()
        self._handshakes: dict[_Side, None] = {}  # the oldest first; some may be over
        self._open_max = settings.max_connections + max(
            HANDSHAKES_AT_LEAST, settings.max_connections // 10
        )

    def over_tls(self, serve: Callable[[], Any]) -> Callable[[], asyncio.BaseProtocol]:
        """What an event loop's ``create_server`` takes, for what ``serve`` makes.

        That has its ``transport`` from the end of the handshake on, and None before.
        """
        return lambda: _Side(self, self._settings, self._newest, serve())

    def enter(self, side: "_Side") -> None:
        """Have one more connection; of too many the oldest that is in its handshake is cut off.

        The newcomer is that one only when there are no others: who says nothing, and there may be
        many of them, does not keep out those who do.
        """
        self._open.add(side)
        self._handshakes[side] = None
        while len(self._open) > self._open_max:
            oldest = next(iter(self._handshakes))
            del self._handshakes[oldest]
            if oldest.served.transport is None:
                self._open.remove(oldest)
                oldest.connection.abort()

    def leave(self, side: "_Side") -> None:
        """It is closed."""
        self._open.discard(side)
        self._handshakes.pop(side, None)

    async def watch_for_ever(self) -> None:
        """Read the files again whenever they change, until cancelled."""
        while True:
            await asyncio.sleep(LOOKED_AT_S)
            self.look()

    def look(self) -> None:
        """Read the files if they have changed; what cannot be used is told, and not used."""
        state = self._state()
        if state == self._seen:
            return
        # Looked at before it is read: what changes meanwhile is another change.
        self._seen = state
        try:
            self._newest = read(self._settings)
        except ConfigError as error:
            # Also in the middle of a renewal, when the one file is new and the other is not yet.
            log.error(
                "the changed certificate cannot be used; going on with the old one", why=str(error)
            )
        else:
            log.info("certificate read again", file=self._settings.tls_certificate)

    def _state(self) -> _State:
        return tuple(_state_of(path) for _, path in _files(self._settings))


class _Side(SSLProtocol):  # type: ignore[misc] # see above
    """The server's side of one connection.

    The loop would make it for a listener with TLS, too, but show it to nobody before the end of
    the handshake; and that listener would keep its context while the certificate changes.
    """

    connection: asyncio.Transport

    def __init__(
        self, certificates: Certificates, settings: Settings, context: ssl.SSLContext, served: Any
    ) -> None:
        super().__init__(
            asyncio.get_running_loop(),
            served,
            context,
            None,
            server_side=True,
            ssl_handshake_timeout=settings.header_timeout,
            # Of which the most is the sending of what is left.
            ssl_shutdown_timeout=settings.write_timeout,
        )
        self.served = served
        self._certificates = certificates

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.connection = transport
        super().connection_made(transport)
        self._certificates.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._certificates.leave(self)
        super().connection_lost(exc)


def certificates(settings: Settings) -> Certificates | None:
    """Those of these settings; None where connections are not encrypted. Raises ConfigError."""
    return Certificates(settings) if settings.tls_certificate else None


def check(settings: Settings) -> None:
    """Raise ConfigError if a start would for want of a certificate."""
    if settings.tls_certificate:
        read(settings)


def read(settings: Settings) -> ssl.SSLContext:
    """A context of what the files hold now. Raises ConfigError."""
    for name, path in _files(settings):
        try:
            with Path(path).open("rb"):
                pass
        except OSError as error:
            raise ConfigError([f"{name}: {path} cannot be read: {error.strerror}"]) from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[settings.tls_min_version]
    # Renegotiation is work that a client could ask for again and again.
    context.options |= (
        ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    )
    context.set_alpn_protocols(["http/1.1"])
    certificate, key = settings.tls_certificate, settings.tls_key or settings.tls_certificate
    try:
        context.load_cert_chain(certificate, key, _no_password)
    except _EncryptedError:
        raise ConfigError(
            [f"tls_key: {key} is encrypted; nobody is there at a start to say the password"]
        ) from None
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            [
                f"tls_certificate: {certificate} with the key in {key} cannot be used:"
                f" {_reason(error)}"
            ]
        ) from None
    if settings.tls_client_ca:
        try:
            context.load_verify_locations(settings.tls_client_ca)
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError(
                [f"tls_client_ca: {settings.tls_client_ca} cannot be used: {_reason(error)}"]
            ) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class _EncryptedError(Exception):
    """A key asked for its password."""


def _no_password() -> NoReturn:
    """In the place of a question on a terminal."""
    raise _EncryptedError


def _files(settings: Settings) -> Iterator[tuple[str, str]]:
    """The files that are set, by setting."""
    for name in ("tls_certificate", "tls_key", "tls_client_ca"):
        path = getattr(settings, name)
        if path:
            yield name, path


def _state_of(path: str) -> tuple[int, int, int] | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


_REASONS = {
    "KEY_VALUES_MISMATCH": "the key is that of another certificate",
    "NO_START_LINE": "there is no PEM in it",
    "PEM_LIB": "the PEM in it cannot be read",
    "EE_KEY_TOO_SMALL": "the key is too short",
    "CA_MD_TOO_WEAK": "it was signed with a weak digest",
}


def _reason(error: ssl.SSLError | ValueError) -> str:
    reason = getattr(error, "reason", None) or "PEM_LIB"
    return _REASONS.get(reason, reason.replace("_", " ").lower())
