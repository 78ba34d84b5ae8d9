"""``auth = oidc``: tokens that an OpenID Connect provider has signed (JWT, RFC 7519 and 9068)."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jwt
import msgspec

from nusku.auth.cache import Callers
from nusku.auth.jwks import ProviderKeys
from nusku.auth.names import legal_name, legal_project
from nusku.auth.scheme import Refused
from nusku.config import Settings
from nusku.model import Caller

# For how long a token that was looked at is believed.
KEEP_S = 60.0
# Clocks may differ by so much. A token's end is its end, though.
LEEWAY_S = 30
ROLES_MAX = 200


class _Head(msgspec.Struct):
    alg: str
    kid: str | None = None
    crit: list[str] | None = None


class _Issued(msgspec.Struct):
    """The one claim that is looked at before the signature."""

    iss: str = ""


_decode_head = msgspec.json.Decoder(_Head).decode
_decode_issued = msgspec.json.Decoder(_Issued).decode


class Oidc:
    """One provider. See :class:`nusku.auth.scheme.Scheme`. ``now_s`` is the wall clock."""

    challenge = 'Bearer realm="nusku"'

    def __init__(
        self,
        settings: Settings,
        now_s: Callable[[], float] = time.time,
        steady_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuer = settings.oidc_issuer
        self._audience = settings.oidc_audience
        self._algorithms = frozenset(settings.oidc_algorithms)
        self._project_claim = settings.oidc_project_claim
        self._roles_claim = settings.oidc_roles_claim
        self._projects = _mapping(settings.oidc_projects)
        self._roles = _mapping(settings.oidc_roles)
        self._keys = ProviderKeys(settings, steady_s)
        self._callers = Callers(KEEP_S, now_s)

    def known(self, token: str) -> Caller | None:
        return self._callers.known(token)

    async def caller(self, token: str) -> Caller | None:
        if not self._issued(token):
            return None
        return await self._callers.ask(token, self._verified)

    async def aclose(self) -> None:
        await self._callers.close()
        await self._keys.aclose()

    def _issued(self, token: str) -> bool:
        """Whether it says that this provider issued it. Other services' tokens may be JWTs too."""
        parts = token.split(".")
        if len(parts) != 3:
            return False
        try:
            return _decode_issued(_decoded(parts[1])).iss == self._issuer
        except (
            ValueError,
            RecursionError,
        ):  # msgspec.DecodeError and binascii.Error are the former
            return False

    async def _verified(self, token: str) -> Caller:
        try:
            head = _decode_head(_decoded(token.partition(".")[0]))
        except (ValueError, RecursionError):
            raise Refused("the head of the token is not one") from None
        if head.alg not in self._algorithms:
            raise Refused("the token's algorithm is not taken")
        if head.crit is not None:
            raise Refused("the token demands extensions")
        for key in await self._keys.find(head.alg, head.kid):
            try:
                claims = jwt.decode(
                    token,
                    key,
                    algorithms=[head.alg],
                    issuer=self._issuer,
                    audience=self._audience,
                    leeway=LEEWAY_S,
                    options={"require": ["exp", "iss", "aud", "sub"]},
                )
            except jwt.InvalidSignatureError:
                continue
            except jwt.PyJWTError as error:
                # Not its text, which may repeat what is in the token.
                raise Refused(f"the token is not accepted ({type(error).__name__})") from None
            except (ValueError, TypeError, OverflowError, RecursionError):
                raise Refused("the token's claims make no sense") from None
            return self._named(claims)
        raise Refused("no key of the provider fits the token's signature")

    def _named(self, claims: Mapping[str, Any]) -> Caller:
        """Whom the claims name."""
        user, name = claims["sub"], claims.get("preferred_username")
        if not legal_name(user):
            raise Refused("the token's subject is no name of a user")
        projects = _mapped(claims, self._project_claim, self._projects)
        if len(projects) > 1:
            raise Refused("the token names several projects")
        if not all(map(legal_project, projects)):
            raise Refused("what the token names is no project")
        roles = _mapped(claims, self._roles_claim, self._roles)
        return Caller(
            projects[0] if projects else "",
            frozenset(filter(legal_name, roles[:ROLES_MAX])),
            "oidc",
            user=user,
            user_name=name if isinstance(name, str) and legal_name(name) else user,
            expires_s=math.floor(float(claims["exp"])),
        )


def _decoded(part: str) -> bytes:
    """A part of a token. Raises ValueError."""
    return jwt.utils.base64url_decode(part.encode("ascii"))


def _mapping(pairs: Sequence[str]) -> dict[str, str]:
    """``theirs=ours``; the last sign parts them, since what is theirs may be anything."""
    return {theirs: ours for theirs, _, ours in (pair.rpartition("=") for pair in pairs)}


def _mapped(claims: Mapping[str, Any], claim: str, mapping: Mapping[str, str]) -> list[str]:
    """The values of a claim, in our words where there are any: then others do not count."""
    values = dict.fromkeys(_values(_claim(claims, claim)))
    if not mapping:
        return list(values)
    return list(dict.fromkeys(mapping[one] for one in values if one in mapping))


def _claim(claims: Mapping[str, Any], name: str) -> object:
    """A claim; one inside others is named by all of them, apart by dots."""
    if name in claims:
        return claims[name]
    found: object = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _values(claim: object) -> list[str]:
    """A list of texts, or one text with blanks between, as scopes are written."""
    if isinstance(claim, str):
        return claim.split()
    return [one for one in claim if isinstance(one, str)] if isinstance(claim, list) else []
