"""``auth = keystone``: tokens that an OpenStack Keystone has issued.

Each is shown to Keystone (``GET /v3/auth/tokens``) by the service's own user and believed for
``keystone_cache`` seconds. Tokens of application credentials with access rules are refused by
Keystone itself, since a service that enforces the rules has to say so, and this one does not.
"""

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import msgspec
import requests
import structlog
from keystoneauth1 import exceptions, session
from keystoneauth1.identity import v3
from requests.adapters import HTTPAdapter

from nusku.auth.cache import TOO_MANY, Callers
from nusku.auth.headers import TOKEN
from nusku.auth.scheme import Refused
from nusku.config import ConfigError, Settings
from nusku.errors import Unavailable
from nusku.model import Caller

log = structlog.get_logger("nusku.auth")

THREADS = 8
THREADS_FOR_SEEN = 4  # beside those: strangers may send any number of tokens that are none
FAILURES_MAX = 5  # in a row; then Keystone is left alone for a while
REST_S = 2.0
# What Keystone says of a token that is none, or is too long to be one.
_NO_TOKEN = frozenset({400, 404, 413, 414, 431})


class _Domain(msgspec.Struct):
    id: str


class _User(msgspec.Struct):
    id: str
    name: str
    domain: _Domain


class _Project(msgspec.Struct):
    id: str
    name: str
    domain: _Domain


class _Role(msgspec.Struct):
    name: str


class _Token(msgspec.Struct):
    user: _User
    expires_at: str
    roles: list[_Role] = []
    project: _Project | None = None
    domain: _Domain | None = None
    system: dict[str, bool] = {}
    is_admin_project: bool = False


class _Answer(msgspec.Struct):
    token: _Token


_decode = msgspec.json.Decoder(_Answer).decode


class _Trouble(Exception):
    """Keystone is not to be had, or of no use. The text is for the operator."""


class Keystone:
    """One Keystone. ``now_s`` is the wall clock. Raises ConfigError."""

    def __init__(self, settings: Settings, now_s: Callable[[], float] = time.time) -> None:
        self.challenge = f'Keystone uri="{settings.keystone_public_url or settings.keystone_url}"'
        base = settings.keystone_url.rstrip("/")
        base = base if base.endswith("/v3") else f"{base}/v3"
        self._url = f"{base}/auth/tokens?nocatalog"
        self._timeout_s = settings.keystone_timeout
        self._callers = Callers(settings.keystone_cache, now_s)
        self._threads = ThreadPoolExecutor(THREADS, "keystone")
        self._threads_for_seen = ThreadPoolExecutor(THREADS_FOR_SEEN, "keystone-seen")
        self._failures = 0
        self._rests_until_s = 0.0
        # It would log addresses, and in some versions headers.
        logging.getLogger("keystoneauth").setLevel(logging.WARNING)
        http = requests.Session()
        http.trust_env = False  # no proxy or password that was meant for other programs
        connections = THREADS + THREADS_FOR_SEEN
        for scheme in ("http://", "https://"):
            http.mount(scheme, HTTPAdapter(pool_maxsize=connections, pool_block=True))
        self._session = session.Session(
            auth=v3.Password(
                auth_url=base,
                username=settings.keystone_user_name,
                password=settings.keystone_user_password,
                user_domain_name=settings.keystone_user_domain_name,
                project_name=settings.keystone_project_name,
                project_domain_name=settings.keystone_project_domain_name,
                include_catalog=False,
            ),
            session=http,
            verify=_authorities(settings.keystone_ca_file),
            timeout=self._timeout_s,
            user_agent="nusku",
            redirect=False,
        )

    def known(self, token: str) -> Caller | None:
        return self._callers.known(token)

    async def caller(self, token: str) -> Caller | None:
        if not TOKEN.fullmatch(token):
            raise Refused("no Keystone token looks like this")
        return await self._callers.ask(token, self._ask)

    async def aclose(self) -> None:
        await self._callers.close()
        for threads in (self._threads, self._threads_for_seen):
            threads.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, token: str) -> Caller:
        loop = asyncio.get_running_loop()
        if loop.time() < self._rests_until_s:
            raise Unavailable(_UNAVAILABLE)
        started = asyncio.Event()

        def show() -> tuple[int, bytes]:
            loop.call_soon_threadsafe(started.set)
            return self._show(token)

        threads = self._threads_for_seen if self._callers.seen(token) else self._threads
        answer = loop.run_in_executor(threads, show)
        # Waiting for one's turn says nothing of Keystone.
        try:
            async with asyncio.timeout(self._timeout_s):
                await started.wait()
        except TimeoutError:
            raise Unavailable(TOO_MANY) from None
        finally:
            if not started.is_set():
                answer.cancel()
        try:
            # Twice the time: it may have to log in first, or again.
            async with asyncio.timeout(2 * self._timeout_s):
                status, body = await answer
            caller = _caller(status, body)
        except (TimeoutError, _Trouble) as trouble:
            self._failures += 1
            if self._failures >= FAILURES_MAX:
                self._rests_until_s = loop.time() + REST_S
            reason = str(trouble) or "Keystone does not answer."
            log.warning("a token could not be looked at", reason=reason)
            raise Unavailable(_UNAVAILABLE) from None
        except Refused:
            self._failures = 0
            raise
        self._failures = 0
        return caller

    def _show(self, token: str) -> tuple[int, bytes]:
        """Show a token to Keystone; status and body of its answer. Runs in a thread.

        Raises _Trouble.
        """
        try:
            headers = {"Accept": "application/json", "X-Subject-Token": token}
            answer = self._session.get(self._url, headers=headers, raise_exc=False, log=False)
        # Their texts are left out: nobody knows what they repeat of the request.
        except exceptions.ClientException as error:
            raise _Trouble(f"Keystone cannot be asked ({type(error).__name__}).") from None
        return answer.status_code, answer.content


def _authorities(ca_file: str) -> str | bool:
    """The file, else those of the system, which requests alone would not look at."""
    if ca_file:
        try:
            ssl.create_default_context(cafile=ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError([f"keystone_ca_file {ca_file} cannot be used: {error}"]) from None
        return ca_file
    paths = ssl.get_default_verify_paths()
    return paths.cafile or paths.capath or True


_UNAVAILABLE = "Whether the token is valid cannot be found out."


def _caller(status: int, body: bytes) -> Caller:
    """Whom Keystone's answer names. Raises Refused and _Trouble."""
    if status in _NO_TOKEN:
        raise Refused("Keystone does not know the token, or it has expired or was revoked")
    if status != 200:
        raise _Trouble(
            f"Keystone does not let keystone_user_name look at tokens ({status})."
            if status in {401, 403}
            else f"Keystone answers {status}."
        )
    try:
        token = _decode(body).token
        expires_s = datetime.fromisoformat(token.expires_at).timestamp()
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
        raise _Trouble("Keystone's answer is not what the Identity API says.") from None
    project = token.project
    return Caller(
        project.id if project else "",
        frozenset(role.name for role in token.roles),
        "keystone",
        token.user.id,
        token.user.name,
        token.user.domain.id,
        project.name if project else "",
        project.domain.id if project else "",
        token.domain.id if token.domain else "",
        "all" if token.system.get("all") else "",
        token.is_admin_project,
        expires_s,
    )
