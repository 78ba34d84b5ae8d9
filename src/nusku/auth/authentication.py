"""Who is asking: decided in one place, for every transport, path and kind of credentials."""

import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager

from nusku import signing
from nusku.auth.api_keys import ApiKeys
from nusku.auth.headers import project_of, token_of
from nusku.auth.identity import Identity
from nusku.auth.scheme import Refused, Scheme
from nusku.auth.signed import Signatures
from nusku.config import ConfigError, Settings
from nusku.errors import Unauthorized
from nusku.model import Caller, Context
from nusku.storage.registry import Mirror

_NO_ROLES: frozenset[str] = frozenset()


class Authentication:
    """Without schemes (``auth = none``) nobody has to prove anything: the headers are believed.

    Headers are given as a mapping with lower-case names. Those that name a project, a user or roles
    mean nothing where there is a caller.
    """

    def __init__(
        self,
        settings: Settings,
        signing_key: str,
        schemes: Sequence[Scheme] = (),
        now_s: Callable[[], float] = time.time,
    ) -> None:
        """``signing_key`` verifies signed requests; empty, none is."""
        self.required = bool(schemes)
        # How long who is connected is believed when nobody can be asked about them any more.
        self.unsure_max_s = settings.keystone_cache
        self._schemes = tuple(schemes)
        self._signatures = Signatures(signing_key, now_s)
        self._identity = Identity(settings)

    def signed(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> Caller | None:
        """Whoever was given the signature in these headers; None unless it allows this request.

        ``path`` is the one that is served: decoded, without the query. Such a caller has no roles
        and is no user, whatever else was sent.
        """
        if not self._signatures.allow(method, path, headers):
            return None
        project = (project_of(headers) or b"").decode("latin-1")
        expires_s = signing.expiry_s(headers[b"url-expires"].decode("latin-1"))
        return Caller(project, _NO_ROLES, "signature", expires_s=expires_s)

    def known(self, headers: Mapping[bytes, bytes]) -> Caller | None:
        """Who asks, if that is known without asking anybody; never waits."""
        token = token_of(headers)
        for scheme in self._schemes:
            caller = scheme.known(token)
            if caller is not None:
                return caller
        return None

    def context(self, headers: Mapping[bytes, bytes], caller: Caller | None) -> Context:
        """What a request is served as, once it is known who asks: see :meth:`Identity.context`.

        A caller may be missing only where nobody has to prove anything; else raises Unauthorized.
        """
        if caller is None and self.required:
            raise self._unauthorized("nobody was asked who they are")
        return self._identity.context(headers, caller)

    async def caller(self, headers: Mapping[bytes, bytes]) -> Caller:
        """Who asks. Raises Unauthorized, and Unavailable where that cannot be found out now."""
        token = token_of(headers)
        if not token:
            raise self._unauthorized("no credentials")
        try:
            for scheme in self._schemes:
                caller = await scheme.caller(token)
                if caller is not None:
                    return caller
        except Refused as refused:
            raise self._unauthorized(str(refused)) from None
        raise self._unauthorized("credentials of no kind that is taken")

    def _unauthorized(self, why: str) -> Unauthorized:
        return Unauthorized(why, ", ".join(dict.fromkeys(s.challenge for s in self._schemes)))


@contextmanager
def _needs(extra: str) -> Iterator[None]:
    """Say what to install where what is imported here is not there."""
    try:
        yield
    except ModuleNotFoundError as missing:
        raise ConfigError(
            [f"{extra} in auth needs the package {missing.name}: install nusku[{extra}]"]
        ) from None


def check(settings: Settings) -> None:
    """Raise ConfigError if a start would for want of what the schemes need. Asks nobody."""
    if "oidc" in settings.auth:
        with _needs("oidc"):
            from nusku.auth.oidc import Oidc
        Oidc(settings)
    if "keystone" in settings.auth:
        with _needs("keystone"):
            from nusku.auth.keystone import Keystone
        Keystone(settings)


@asynccontextmanager
async def opened(
    settings: Settings, signing_key: str, registry: Mirror
) -> AsyncIterator[Authentication]:
    """With the schemes that are set. Raises ConfigError where one lacks what it needs.

    Of two schemes that could take a token, the first is asked first.
    """
    async with AsyncExitStack() as stack:
        schemes: list[Scheme] = []
        if "key" in settings.auth:
            schemes.append(ApiKeys(registry))
        if "oidc" in settings.auth:
            with _needs("oidc"):
                from nusku.auth.oidc import Oidc
            schemes.append(await stack.enter_async_context(aclosing(Oidc(settings))))
        if "keystone" in settings.auth:
            with _needs("keystone"):
                from nusku.auth.keystone import Keystone
            schemes.append(await stack.enter_async_context(aclosing(Keystone(settings))))
        yield Authentication(settings, signing_key, schemes)
