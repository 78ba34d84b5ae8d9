"""Webhooks: one POST an attempt, to whatever a stranger named.

Redirects are never followed, cookies not kept, proxies of the environment not asked; whom a
connection may go to, and how much is read from it, is the connector's business.
"""

import asyncio
import io
import math
import re
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import NamedTuple, Protocol

import aiohttp
import structlog
from yarl import URL

from nusku.addresses import Addresses
from nusku.broker.deliveries import Parcel, Recipient
from nusku.broker.subscribers import target
from nusku.config import Settings
from nusku.errors import NuskuError, TrustFailed
from nusku.notify import forms
from nusku.notify.connector import Attempt, Connector, Outbound, current
from nusku.notify.outcome import Outcome

# For the rest of an answer whose status is known: all that can be won is to keep the connection.
REST_PATIENCE_S = 1.0
RETRY_AFTER_MAX_S = 604_800
DATE_LENGTH_MAX = 64
AGAIN = frozenset({408, 425, 429})
# Above this aiohttp wants bytes to come in pieces.
PIECE_BYTES = 1_048_576

_SECONDS = re.compile(r"[0-9]{1,9}")


class Tokens(Protocol):
    """Where tokens come from: :class:`nusku.auth.trusts.Trusts`."""

    async def token(self, trust_id: str) -> str:
        """A token to act under this trust. Raises TrustFailed."""
        ...

    def forget(self, trust_id: str) -> None:
        """The token that was given for this trust is not accepted."""


class _Place(NamedTuple):
    url: URL
    trust: bool


@lru_cache(maxsize=4096)
def _place(subscriber: str) -> _Place:
    found = target(subscriber)
    return _Place(URL(found.url, encoded=True), found.trust)


class WebhookSender:
    """Sends to ``http`` and ``https``, and with a token to ``trust+http`` and ``trust+https``.

    To be made inside the event loop that it is used in. ``now`` is the wall clock, in seconds.
    """

    def __init__(
        self,
        settings: Settings,
        addresses: Addresses,
        tokens: Tokens | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._public_url = settings.public_url
        self._connect_s = settings.delivery_connect_timeout
        self._total_s = settings.delivery_timeout
        self._tokens = tokens
        self._now = now
        # Bound once: finding out that DEBUG is off must not cost more than that.
        self._log = structlog.get_logger("nusku.webhook").bind()
        self._outbound = Outbound(settings, addresses)
        self._kept = self._session(reuse=True)
        # For what a kept connection turned out to be too old for.
        self._fresh = self._session(reuse=False)

    def _session(self, *, reuse: bool) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=Connector(self._outbound, reuse=reuse),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(connect=self._connect_s),  # send() bounds the whole
            trust_env=False,
            auto_decompress=False,
            skip_auto_headers=("Accept-Encoding",),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._kept.close()
        await self._fresh.close()
        await self._outbound.resolver.close()

    async def send(self, to: Recipient, parcel: Parcel) -> Outcome:
        """Try once; see :class:`nusku.notify.outcome.Sender`."""
        self._log.debug("notifying subscriber", subscription=to.id)
        attempt = Attempt()
        current.set(attempt)
        try:
            async with asyncio.timeout(self._total_s):
                place = _place(to.subscriber)
                post = forms.compose(to, parcel, int(self._now()), self._public_url)
                if place.trust:
                    post = await self._with_token(to, post)
                answer = await self._post(place.url, post, attempt)
            # A status that has come counts, whatever happens to the rest.
            if not answer.closed:
                await _rest(answer)
        except Exception as error:  # noqa: BLE001 - promised: whatever happens is an outcome
            return self._failure(error, attempt)
        if answer.status == 401 and place.trust and self._tokens is not None:
            self._tokens.forget(to.options["trust_id"])
            return Outcome("failed", "token", 401, "The subscriber did not accept the token.")
        return judged(answer.status, answer.headers, self._now())

    async def _with_token(self, to: Recipient, post: forms.Post) -> forms.Post:
        trust_id = to.options.get("trust_id")
        if self._tokens is None or not trust_id:
            raise _NoToken("There is no trust that a token could be had from.")
        try:
            # The rest of the time is the subscriber's.
            async with asyncio.timeout(self._total_s / 2):
                token = await self._tokens.token(trust_id)
        except TrustFailed as error:
            raise _NoToken(error.detail) from error
        except TimeoutError:
            raise _NoToken("Keystone does not answer.") from None
        return post._replace(headers=forms.over(post.headers, {"X-Auth-Token": token}))

    async def _post(self, url: URL, post: forms.Post, attempt: Attempt) -> aiohttp.ClientResponse:
        """Send, and wait for the head of the answer."""
        try:
            return await self._kept.post(
                url, data=_data(post.body), headers=post.headers, allow_redirects=False
            )
        except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError):
            raise
        except aiohttp.ClientConnectionError:
            if attempt.opened or attempt.answered:
                raise
        # Nothing was connected anew and nothing came back: the other end had just hung up on a
        # connection that was kept, which is no failure yet.
        return await self._fresh.post(
            url, data=_data(post.body), headers=post.headers, allow_redirects=False
        )

    def _failure(self, error: Exception, attempt: Attempt) -> Outcome:
        """What an exception says. None of its own words are used: they may hold URLs."""
        match error:
            case _NoToken():
                return Outcome("failed", "token", None, str(error))
            case aiohttp.ClientConnectorDNSError():
                return Outcome("failed", "dns", None, "The name of the host cannot be resolved.")
            case aiohttp.ConnectionTimeoutError() if not attempt.opened and not attempt.refusal:
                detail = f"The name of the host was not resolved within {self._connect_s:g} s."
                return Outcome("failed", "dns", None, detail)
            case aiohttp.ConnectionTimeoutError():
                detail = f"There was no connection within {self._connect_s:g} s."
                return Outcome("failed", "timeout", None, detail)
            case TimeoutError():
                detail = f"There was no answer within {self._total_s:g} s."
                return Outcome("failed", "timeout", None, detail)
            case aiohttp.ClientConnectorCertificateError():
                why = getattr(error.certificate_error, "verify_message", "") or "it is not valid"
                return Outcome("failed", "tls", None, f"The certificate is refused: {why}.")
            case aiohttp.ClientSSLError():
                return Outcome("failed", "tls", None, "No TLS connection could be made.")
            case aiohttp.ClientConnectorError() if attempt.refusal and not attempt.opened:
                return Outcome("failed", "blocked", None, attempt.refusal)
            case aiohttp.ClientConnectorError():
                return Outcome("failed", "connection", None, "The host cannot be connected to.")
            case aiohttp.ClientResponseError():
                return Outcome("failed", "connection", None, "The answer is not HTTP, or too long.")
            case aiohttp.ClientConnectionError() | aiohttp.ClientPayloadError() | OSError():
                return Outcome("failed", "connection", None, "The connection broke.")
            case aiohttp.InvalidURL() | NuskuError():
                return Outcome("refused", "internal", None, "The subscriber is not a usable URL.")
        where = traceback.extract_tb(error.__traceback__)[-1]
        self._log.error(
            "an attempt failed in a way that nobody foresaw",
            error=type(error).__name__,
            where=f"{where.filename}:{where.lineno}",
        )
        return Outcome("failed", "internal", None, "The attempt failed inside the service.")


class _NoToken(Exception):
    """No token could be had for a trust; the argument says why, without secrets."""


def _data(body: bytes) -> bytes | io.BytesIO:
    """What aiohttp takes for a body: large ones it wants to read in pieces."""
    return body if len(body) <= PIECE_BYTES else io.BytesIO(body)


async def _rest(answer: aiohttp.ClientResponse) -> None:
    """Read what is left, so that the connection can be used again; or else close it."""
    try:
        with suppress(TimeoutError, aiohttp.ClientError, OSError):
            async with asyncio.timeout(REST_PATIENCE_S):
                await answer.content.read()
    finally:
        if not answer.closed:
            answer.close()


def judged(status: int, headers: Mapping[str, str], now_s: float) -> Outcome:
    """What a status means for a delivery (contract/README.md, "Our delivery rules")."""
    if 200 <= status < 300:
        return Outcome("delivered", status=status)
    detail = f"The subscriber answered {status}."
    if 400 <= status < 500 and status not in AGAIN:
        return Outcome("refused", "status", status, detail, gone=status == 410)
    wait_s = retry_after(headers.get("Retry-After", ""), now_s)
    if 300 <= status < 400:
        detail = f"The subscriber answered {status}; redirects are not followed."
        return Outcome("failed", "redirect", status, detail, wait_s)
    return Outcome("failed", "status", status, detail, wait_s)


def retry_after(text: str, now_s: float) -> int | None:
    """The seconds that ``Retry-After`` asks for, in either of its forms; None if in neither."""
    text = text.strip()
    if _SECONDS.fullmatch(text):
        return min(int(text), RETRY_AFTER_MAX_S)
    if len(text) > DATE_LENGTH_MAX:
        return None
    try:
        seconds = parsedate_to_datetime(text).timestamp() - now_s
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(max(math.ceil(seconds), 0), RETRY_AFTER_MAX_S)
