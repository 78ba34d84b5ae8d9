"""Keystone trusts: a user lets this service act for them when it tells one of their subscribers.

What is used of the Identity API v3: ``POST /auth/tokens`` with the password of the service's own
user, with and without the scope of a trust, ``POST /OS-TRUST/trusts`` with the token of the user
who subscribes, and ``GET /OS-TRUST/trusts/{id}``. No token, password or answer of Keystone is ever
part of an error or a log line.
"""

import asyncio
import re
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import aiohttp
import msgspec

from nusku.auth.headers import TOKEN
from nusku.config import Settings
from nusku.errors import TrustFailed

T = TypeVar("T")

TIMEOUT_S = 10.0
# A token is asked for anew so long before its end, so that it outlives the attempt it is used for.
EARLY_S = 60
TOKENS_MAX = 1000
ANSWER_BYTES_MAX = 1_048_576
EXPIRES_IN_S_MAX = 3_153_600_000  # a hundred years: dates end with the year 9999

_ID = re.compile(r"[0-9a-zA-Z-]{1,64}")


class _User(msgspec.Struct):
    id: str


class _Token(msgspec.Struct):
    user: _User
    expires_at: str


class _TokenAnswer(msgspec.Struct):
    token: _Token


class _Trust(msgspec.Struct):
    id: str
    trustor_user_id: str
    trustee_user_id: str
    project_id: str | None = None


class _TrustAnswer(msgspec.Struct):
    trust: _Trust


class _Login:
    """A token and whose it is. Shows neither when it is printed."""

    __slots__ = ("fresh_until_s", "token", "user_id")

    def __init__(self, token: str, user_id: str, fresh_until_s: float) -> None:
        self.token = token
        self.user_id = user_id
        self.fresh_until_s = fresh_until_s


class Trusts:
    """Makes and checks trusts, and gets tokens from them. All methods raise TrustFailed.

    To be used from one event loop. ``now`` is the wall clock, in seconds.
    """

    def __init__(self, settings: Settings, *, now: Callable[[], float] = time.time) -> None:
        self._url = _api(settings.trustee_auth_url)
        self._user = settings.trustee_user_name
        self._password = settings.trustee_user_password
        self._domain = settings.trustee_user_domain_name
        self._now = now
        self._ca_file = settings.keystone_ca_file
        self._http: aiohttp.ClientSession | None = None
        self._logins: OrderedDict[str, _Login] = OrderedDict()
        self._pending: dict[str, asyncio.Task[_Login]] = {}

    async def create(
        self, token: str, user_id: str, project_id: str, roles: Sequence[str], expires_in_s: int
    ) -> str:
        """Let the user whose ``token`` this is trust the service; return the id of the trust.

        Args:
            token: the user's own, for the project.
            user_id: whose it is.
            project_id: where the service may act for the user.
            roles: names of the roles that it has then; at least one.
            expires_in_s: how long.
        """
        names = list(dict.fromkeys(name for role in roles if (name := role.strip())))
        if not (user_id and project_id and names and TOKEN.fullmatch(token)):
            raise TrustFailed(
                "A trust needs a user who is logged in to a project with at least one role."
            )
        trustee = (await self._login("")).user_id
        until_s = self._now() + min(expires_in_s, EXPIRES_IN_S_MAX)
        trust = {
            "trustor_user_id": user_id,
            "trustee_user_id": trustee,
            "project_id": project_id,
            "impersonation": True,
            "roles": [{"name": name} for name in names],
            "expires_at": datetime.fromtimestamp(until_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        status, _, body = await self._ask(
            "POST", "/OS-TRUST/trusts", {"X-Auth-Token": token}, {"trust": trust}
        )
        if status != 201:
            raise _refused(status, "to make the trust")
        made = _decoded(body, _TrustAnswer).trust.id
        if not _ID.fullmatch(made):
            raise TrustFailed("Keystone gave the trust an id that cannot be used.")
        return made

    async def check(self, trust_id: str, user_id: str, project_id: str) -> bool:
        """Whether there is such a trust, given to this service by this user for this project."""
        self._require_settings()
        if not (_ID.fullmatch(trust_id) and user_id and project_id):
            return False
        login = await self._login("")
        status, body = await self._look_up(trust_id, login)
        if status == 401:
            # Revoked before its time.
            self._forget("", login)
            login = await self._login("")
            status, body = await self._look_up(trust_id, login)
        if status in {403, 404}:
            return False
        if status != 200:
            raise _refused(status, "to show the trust")
        trust = _decoded(body, _TrustAnswer).trust
        return (
            trust.id == trust_id
            and trust.trustee_user_id == login.user_id
            and trust.trustor_user_id == user_id
            and trust.project_id == project_id
        )

    async def token(self, trust_id: str) -> str:
        """A token to act under this trust. It is kept until shortly before it expires."""
        self._require_settings()
        if not _ID.fullmatch(trust_id):
            raise TrustFailed("This is not the id of a trust.")
        return (await self._login(trust_id)).token

    def forget(self, trust_id: str) -> None:
        """The token of this trust is no longer accepted: the next one is asked for anew."""
        self._logins.pop(trust_id, None)

    async def close(self) -> None:
        """End what is under way and close the connections."""
        pending = list(self._pending.values())
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        self._logins.clear()
        if self._http is not None:
            await self._http.close()

    def _require_settings(self) -> None:
        if not self._url:
            raise TrustFailed(
                "Trusts need a Keystone: set trustee_auth_url, trustee_user_name and"
                " trustee_user_password."
            )

    async def _login(self, trust_id: str) -> _Login:
        """Log in under a trust, or as ourselves if it is empty; or take the login there is."""
        self._require_settings()
        login = self._logins.get(trust_id)
        if login is not None:
            if self._now() < login.fresh_until_s:
                self._logins.move_to_end(trust_id)
                return login
            self._forget(trust_id, login)
        task = self._pending.get(trust_id)
        if task is None:
            # A task of its own: whoever asked first may be cancelled while others wait.
            task = asyncio.create_task(self._log_in(trust_id))
            self._pending[trust_id] = task
            task.add_done_callback(lambda done: self._finished(trust_id, done))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise TrustFailed("The service is stopping.") from None
            raise

    def _finished(self, trust_id: str, task: asyncio.Task[_Login]) -> None:
        self._pending.pop(trust_id, None)
        # Also looks at the exception, which nobody else may be there to do.
        if task.cancelled() or task.exception() is not None:
            return
        login = task.result()
        if self._now() < login.fresh_until_s:
            self._logins[trust_id] = login
            if len(self._logins) > TOKENS_MAX:
                self._logins.popitem(last=False)

    def _forget(self, trust_id: str, login: _Login) -> None:
        """Drop this login, but not one that somebody else has fetched meanwhile."""
        if self._logins.get(trust_id) is login:
            del self._logins[trust_id]

    async def _log_in(self, trust_id: str) -> _Login:
        user = {
            "name": self._user,
            "domain": {"name": self._domain},
            "password": self._password,
        }
        auth: dict[str, Any] = {
            "identity": {"methods": ["password"], "password": {"user": user}},
            # Without this, a user who has a default project would get a token for that.
            "scope": {"OS-TRUST:trust": {"id": trust_id}} if trust_id else "unscoped",
        }
        status, headers, body = await self._ask(
            "POST", "/auth/tokens?nocatalog", {}, {"auth": auth}
        )
        if status != 201:
            raise _refused(status, "a token for the trust" if trust_id else "to log the service in")
        given = _decoded(body, _TokenAnswer).token
        token = headers.get("X-Subject-Token", "")
        try:
            expires_s = datetime.fromisoformat(given.expires_at).timestamp()
        except ValueError:
            expires_s = 0.0
        if not TOKEN.fullmatch(token):
            raise TrustFailed("Keystone gave no token that can be used.")
        return _Login(token, given.user.id, expires_s - EARLY_S)

    async def _look_up(self, trust_id: str, login: _Login) -> tuple[int, bytes]:
        status, _, body = await self._ask(
            "GET", f"/OS-TRUST/trusts/{trust_id}", {"X-Auth-Token": login.token}
        )
        return status, body

    async def _ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        document: Mapping[str, object] | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Send one request; return status, headers and body of the answer."""
        if self._http is None:
            try:
                authorities = ssl.create_default_context(cafile=self._ca_file or None)
            except OSError:  # ssl.SSLError is one
                raise TrustFailed("keystone_ca_file cannot be used.") from None
            # No cookies, no proxies from the environment, no second host.
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=authorities),
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        sent = {"Accept": "application/json", **headers}
        data = None
        if document is not None:
            sent["Content-Type"] = "application/json"
            data = msgspec.json.encode(document)
        try:
            async with self._http.request(
                method, self._url + path, headers=sent, data=data, allow_redirects=False
            ) as answer:
                body = bytearray()
                async for chunk in answer.content.iter_chunked(65_536):
                    body += chunk
                    if len(body) > ANSWER_BYTES_MAX:
                        raise TrustFailed("Keystone's answer is too long.")
                return answer.status, answer.headers, bytes(body)
        # Their texts are left out: nobody knows what they repeat of the request.
        except TimeoutError:
            raise TrustFailed(f"Keystone did not answer within {TIMEOUT_S:g} s.") from None
        except aiohttp.InvalidURL:
            raise TrustFailed("trustee_auth_url is not a URL.") from None
        except aiohttp.ClientSSLError:
            raise TrustFailed("Keystone's certificate is not trusted.") from None
        except aiohttp.ClientConnectorError:
            raise TrustFailed("Keystone cannot be reached.") from None
        except (aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
            # RuntimeError: the session was closed.
            kind = type(error).__name__
            raise TrustFailed(f"The exchange with Keystone failed ({kind}).") from None


def _api(url: str) -> str:
    """Where version 3 of the API is: often only the service's address is at hand."""
    base = url.strip().rstrip("/")
    return base if not base or base.endswith("/v3") else f"{base}/v3"


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise TrustFailed("Keystone's answer is not what the Identity API says.") from None


def _refused(status: int, what: str) -> TrustFailed:
    """What to tell of a status that is not the one hoped for."""
    if status >= 500 or status == 429:
        return TrustFailed(f"Keystone is not able to answer now ({status}).")
    if 300 <= status < 400:
        return TrustFailed(f"Keystone redirects ({status}); trustee_auth_url has to be exact.")
    return TrustFailed(f"Keystone refuses {what} ({status}).")
