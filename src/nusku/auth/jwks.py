"""The keys with which an OpenID Connect provider signs: fetched, and followed as they change.

What is used of the provider: its configuration (OpenID Connect Discovery 1.0, section 4), unless a
setting says where the keys are, and the keys themselves (RFC 7517).
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import aiohttp
import jwt
import msgspec
import structlog

from nusku.config import ConfigError, Settings
from nusku.errors import Unavailable

log = structlog.get_logger("nusku.auth")

T = TypeVar("T")

TIMEOUT_S = 10.0
ANSWER_BYTES_MAX = 1_048_576
KEYS_MAX = 100
TRIED_MAX = 8  # keys that one token is tried with; only those without a key id fit more than one

# A key that the provider withdraws is taken for so long yet, and for what tokens are remembered.
REFRESH_S = 120.0
# Between two looks for a key that is not known: anybody can name one.
LOOK_AGAIN_S = 5.0
# Without an answer of the provider its keys are believed for so long.
BELIEVED_S = 86_400.0

# The kind of key, and the curve, that each algorithm takes (RFC 7518 section 3.1, RFC 8037).
_FORMS: dict[str, tuple[str, frozenset[str]]] = {
    **{
        f"{name}{size}": ("RSA", frozenset())
        for name in ("RS", "PS")
        for size in ("256", "384", "512")
    },
    "ES256": ("EC", frozenset({"P-256"})),
    "ES384": ("EC", frozenset({"P-384"})),
    "ES512": ("EC", frozenset({"P-521"})),
    "EdDSA": ("OKP", frozenset({"Ed25519", "Ed448"})),
}


class _Configuration(msgspec.Struct):
    issuer: str
    jwks_uri: str


class _Set(msgspec.Struct):
    keys: list[dict[str, Any]]


class _About(msgspec.Struct):
    """What is said of a key beside the key itself (RFC 7517 section 4)."""

    kty: str
    crv: str = ""
    use: str = "sig"
    key_ops: tuple[str, ...] = ("verify",)
    alg: str | None = None
    kid: str | None = None


class _Key(NamedTuple):
    id: str | None
    jwk: jwt.PyJWK


class _Failed(Exception):
    """The provider gave no keys; says why."""


class ProviderKeys:
    """The keys of one provider. To be used from one event loop.

    ``steady_s`` is a clock that nobody sets. Raises ConfigError when the file of authorities cannot
    be used.
    """

    def __init__(self, settings: Settings, steady_s: Callable[[], float] = time.monotonic) -> None:
        self._issuer = settings.oidc_issuer
        self._url = settings.oidc_jwks_url
        self._algorithms = settings.oidc_algorithms
        self._steady_s = steady_s
        self._ssl = _trust(settings.oidc_ca_file)
        self._http: aiohttp.ClientSession | None = None
        self._keys: tuple[_Key, ...] = ()
        self._fetched_s = self._tried_s = -float("inf")
        self._fetching: asyncio.Task[None] | None = None

    async def find(self, algorithm: str, key_id: str | None) -> Sequence[jwt.PyJWK]:
        """Keys that a token of this algorithm may be signed with; none if there is no such key.

        Raises Unavailable as long as it is not known which keys there are.
        """
        now_s = self._steady_s()
        if now_s - self._fetched_s >= BELIEVED_S:
            if now_s - self._tried_s >= LOOK_AGAIN_S or self._fetching is not None:
                await self._fetch()
            if self._steady_s() - self._fetched_s >= BELIEVED_S:
                raise Unavailable("The provider of tokens does not say which keys it has.")
        found = self._fitting(algorithm, key_id)
        if not found and (
            self._fetching is not None or self._steady_s() - self._tried_s >= LOOK_AGAIN_S
        ):
            await self._fetch()
            found = self._fitting(algorithm, key_id)
        elif self._steady_s() - max(self._fetched_s, self._tried_s) >= REFRESH_S:
            self._begin()  # and go on with those there are
        return found

    async def aclose(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)
        if self._http is not None:
            await self._http.close()

    def _fitting(self, algorithm: str, key_id: str | None) -> list[jwt.PyJWK]:
        return [
            one.jwk
            for one in self._keys
            if one.jwk.algorithm_name == algorithm and key_id in {None, one.id}
        ][:TRIED_MAX]

    async def _fetch(self) -> None:
        """Ask the provider, or wait for the answer to somebody else's question."""
        await asyncio.shield(self._begin())

    def _begin(self) -> asyncio.Task[None]:
        if self._fetching is None:
            self._tried_s = self._steady_s()
            self._fetching = asyncio.create_task(self._refresh())
            self._fetching.add_done_callback(self._ended)
        return self._fetching

    def _ended(self, _: asyncio.Task[None]) -> None:
        self._fetching = None

    async def _refresh(self) -> None:
        try:
            url = self._url or await self._discover()
            keys = _decoded(await self._get(url), _Set).keys
        except _Failed as failed:
            log.warning("the provider's keys cannot be fetched", reason=str(failed))
            return
        self._keys = tuple(one for jwk in keys[:KEYS_MAX] for one in _usable(jwk, self._algorithms))
        self._fetched_s = self._steady_s()
        if not self._keys:
            log.warning("the provider has no key for any algorithm of oidc_algorithms")

    async def _discover(self) -> str:
        """Where the keys are."""
        base = self._issuer.removesuffix("/")
        body = await self._get(f"{base}/.well-known/openid-configuration")
        configuration = _decoded(body, _Configuration)
        if configuration.issuer != self._issuer:
            raise _Failed("it calls itself otherwise than oidc_issuer does")
        # Over a line that is not encrypted anybody in between could give us keys of their own.
        if self._issuer.startswith("https:") and not configuration.jwks_uri.startswith("https:"):
            raise _Failed("its keys are not at an https address")
        return configuration.jwks_uri

    async def _get(self, url: str) -> bytes:
        if self._http is None:
            # No cookies, no proxies from the environment, no second host.
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._ssl),
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept": "application/json"},
            )
        try:
            async with self._http.get(url, allow_redirects=False) as answer:
                if answer.status != 200:
                    raise _Failed(f"it answered {answer.status}")
                body = bytearray()
                async for chunk in answer.content.iter_chunked(65_536):
                    body += chunk
                    if len(body) > ANSWER_BYTES_MAX:
                        raise _Failed("its answer is too long")
                return bytes(body)
        except TimeoutError:
            raise _Failed(f"it did not answer within {TIMEOUT_S:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
            # RuntimeError: the session was closed.
            raise _Failed(f"it could not be asked ({type(error).__name__})") from None


def _trust(ca_file: str) -> ssl.SSLContext | bool:
    """Whom to trust, as aiohttp takes it."""
    if not ca_file:
        return True
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError([f"oidc_ca_file {ca_file} cannot be used: {error}"]) from None


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _Failed("its answer is not what the standard says") from None


def _usable(jwk: dict[str, Any], algorithms: Sequence[str]) -> list[_Key]:
    """The key as it is used with each algorithm that it is for."""
    try:
        about = msgspec.convert(jwk, _About)
    except msgspec.ValidationError:
        return []
    if about.use != "sig" or "verify" not in about.key_ops:
        return []
    found = []
    for algorithm in algorithms:
        kty, curves = _FORMS[algorithm]
        if (
            about.alg not in {None, algorithm}
            or about.kty != kty
            or (curves and about.crv not in curves)
        ):
            continue
        try:
            key = jwt.PyJWK(jwk, algorithm)
            too_short = key.Algorithm.check_key_length(key.Algorithm.prepare_key(key.key))
        except (jwt.PyJWTError, ValueError, TypeError, KeyError):
            continue
        if not too_short:
            found.append(_Key(about.kid, key))
    return found
