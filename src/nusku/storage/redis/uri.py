"""URIs of Redis stores.

========================================================  ========================================
``redis://[user:password@]host[:port][/db]``              one server
``rediss://…``                                            the same by TLS
``redis+sentinel://[user:password@]host[:port][,…]/service[/db]``   the master that sentinels name
``redis+cluster://[user:password@]host[:port][,…]``       a cluster; any of its nodes
========================================================  ========================================

Options behind a ``?``: ``tls=true`` for the latter two; ``ca`` (a file of certificates to trust
instead of the system's), ``cert`` and ``key`` (files, our own certificate), ``hostname=off`` (the
certificate need not be for the host's name, as where nodes are known by address only);
``sentinel_user`` and ``sentinel_password``.
"""

import ssl
from typing import Literal, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from nusku.config import masked
from nusku.errors import StoreRefused
from nusku.storage.uri import StoreUri, split

PORT, SENTINEL_PORT = 6379, 26379
OPTIONS = {"tls", "ca", "cert", "key", "hostname", "sentinel_user", "sentinel_password"}

Address = tuple[str, int]


class Login(NamedTuple):
    """A user (empty: the default one) and a password (empty: none)."""

    user: str
    password: str

    def __repr__(self) -> str:
        """Without the password."""
        return f"Login({self.user!r})"


class Target(NamedTuple):
    """What a URI names."""

    form: Literal["single", "sentinel", "cluster"]
    hosts: tuple[Address, ...]
    login: Login
    database: int
    tls: ssl.SSLContext | None
    service: str = ""
    sentinel_login: Login = Login("", "")

    def __repr__(self) -> str:
        """Without passwords."""
        return f"Target({self.form}, {self.hosts})"


def parse(uri: str) -> Target:
    """Raises StoreRefused with a sentence that has no password in it."""
    parts = split(uri)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(set(options) - OPTIONS)
    if unknown:
        raise _refused(uri, f"it has no option {unknown[0]!r}")
    form: Literal["single", "sentinel", "cluster"] = "single"
    path = [unquote(part) for part in parts.path.split("/")[1:] if part]
    service = ""
    if parts.scheme == "redis+sentinel":
        form = "sentinel"
        if not path:
            raise _refused(uri, "the name of the service follows the sentinels: …:26379/mymaster")
        service = path.pop(0)
    elif parts.scheme == "redis+cluster":
        form = "cluster"
    if len(path) > 1 or (form == "cluster" and path not in ([], ["0"])) or parts.fragment:
        raise _refused(uri, "there is too much behind the hosts")
    if path and not path[0].isdecimal():
        raise _refused(uri, f"{path[0]!r} is not the number of a database")
    hosts = _hosts(uri, parts, SENTINEL_PORT if form == "sentinel" else PORT)
    if form == "single" and len(hosts) > 1:
        raise _refused(uri, "several hosts need redis+sentinel:// or redis+cluster://")
    user, _, password = parts.login.partition(":")
    return Target(
        form,
        hosts,
        Login(unquote(user), unquote(password)),
        int(path[0]) if path else 0,
        _tls(uri, parts.scheme, options),
        service,
        Login(options.get("sentinel_user", ""), options.get("sentinel_password", "")),
    )


def _hosts(uri: str, parts: StoreUri, port: int) -> tuple[Address, ...]:
    found = []
    for one in parts.hosts.split(","):
        try:
            split = urlsplit(f"//{one}")
            found.append((unquote(split.hostname or ""), split.port or port))
        except ValueError:
            raise _refused(uri, f"{one!r} is not host:port") from None
    if not all(host for host, _ in found):
        raise _refused(uri, "a host is missing")
    return tuple(found)


def _tls(uri: str, scheme: str, options: dict[str, str]) -> ssl.SSLContext | None:
    wanted = scheme == "rediss" or options.get("tls", "").lower() in {"true", "on", "yes", "1"}
    if not wanted:
        if {"ca", "cert", "key", "hostname"} & set(options):
            raise _refused(uri, "certificates are for rediss:// or tls=true")
        return None
    try:
        context = ssl.create_default_context(cafile=options.get("ca"))
        if "cert" in options:
            context.load_cert_chain(options["cert"], options.get("key"))
    except (OSError, ssl.SSLError) as error:
        raise _refused(uri, f"its certificates can't be read ({error})") from error
    if options.get("hostname", "").lower() in {"off", "false", "no", "0"}:
        context.check_hostname = False
    return context


def _refused(uri: str, why: str) -> StoreRefused:
    return StoreRefused(f"store {masked(uri)!r} can't be opened: {why}")
