"""The rules that join settings, and those that a type and a range cannot say."""

import math
import re
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address, ip_address, ip_network

from nusku.config.settings import SECRETS, Settings, allowed_values

_AUTH = ("keystone", "key", "oidc")
# Never those with a secret that both sides know: whoever verifies could sign as well.
_JWT_ALGORITHMS = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
# Each in the middle is at least the first and at most the last, where there are such.
ORDERED = (
    ("min_message_ttl", "default_message_ttl", "max_message_ttl"),
    ("min_claim_ttl", "default_claim_ttl", "max_claim_ttl"),
    ("min_claim_grace", "default_claim_grace", "max_claim_grace"),
    ("", "default_message_delay", "max_message_delay"),
    ("min_subscription_ttl", "default_subscription_ttl", ""),
    ("", "min_length_client_id", "max_length_client_id"),
)


def broken_rules(settings: Settings) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """What types and ranges cannot say: (setting, what is allowed, other settings involved)."""
    for low, name, high in ORDERED:
        least = getattr(settings, low) if low else 0
        most = getattr(settings, high) if high else math.inf
        if not least <= getattr(settings, name) <= most:
            least_text = f"{low} ({least})" if low else "0"
            most_text = f" to {high} ({most})" if high else " on"
            yield name, f"from {least_text}{most_text}", (low, high)
    if not _is_host(settings.host):
        yield "host", allowed_values("host"), ()
    elif "none" in settings.auth and not settings.allow_open and not _is_loopback(settings.host):
        allowed = (
            "a loopback address while auth = none, which believes everybody; "
            "allow_open = true opens it to all who can reach it"
        )
        yield "host", allowed, ("auth", "allow_open")
    if settings.auth != ("none",) and not (
        settings.auth
        and set(settings.auth).issubset(_AUTH)
        and len(set(settings.auth)) == len(settings.auth)
    ):
        yield "auth", allowed_values("auth"), ()
    if "keystone" in settings.auth:
        for name in ("keystone_url", "keystone_user_name", "keystone_user_password"):
            if not getattr(settings, name):
                yield name, "not empty while keystone is in auth", ("auth",)
    if not (re.match(r"[a-z][a-z0-9+.-]*://", settings.store) and settings.store.isprintable()):
        yield "store", allowed_values("store"), ()
    if settings.workers > 1 and settings.store.startswith("sqlite:"):
        yield "workers", "1 on SQLite, where one process owns the file", ("store",)
    if "oidc" in settings.auth:
        for name in ("oidc_issuer", "oidc_audience", "oidc_algorithms"):
            if not getattr(settings, name):
                yield name, "not empty while oidc is in auth", ("auth",)
    for name in ("tls_key", "tls_client_ca"):
        if getattr(settings, name) and not settings.tls_certificate:
            yield name, "empty without tls_certificate", ("tls_certificate",)
    for name, fine in _FORMS.items():
        value = getattr(settings, name)
        if not all(map(fine, value if isinstance(value, tuple) else [value] if value else [])):
            yield name, allowed_values(name), ()


def _is_host(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        # Digits and dots alone are a mistyped address, not a name.
        return bool(re.fullmatch(r"[A-Za-z0-9_.-]{1,253}", host)) and not re.fullmatch(
            r"[0-9.]+", host
        )
    return True


def _is_loopback(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return host.lower() == "localhost"
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def _is_postgres(text: str) -> bool:
    return text.isprintable() and text.startswith(("postgresql://", "postgres://"))


def _is_network(text: str) -> bool:
    try:
        ip_network(text)
    except ValueError:
        return False
    return True


def _is_subscriber_type(text: str) -> bool:
    return text in {"http", "https", "mailto", "trust+http", "trust+https"}


def _is_port(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,5}", text) is not None and 1 <= int(text) <= 65_535


def _is_port_range(text: str) -> bool:
    low, dash, high = text.partition("-")
    return _is_port(low) and (not dash or (_is_port(high) and int(low) <= int(high)))


def _is_nameserver(text: str) -> bool:
    with_port = re.fullmatch(r"(?:\[(.*:.*)\]|([0-9.]+)):([0-9]+)", text)
    try:
        ip_address(text if with_port is None else with_port[1] or with_port[2])
    except ValueError:
        return False
    return with_port is None or _is_port(with_port[3])


_URL = re.compile(r"https?://(?:\[([0-9A-Fa-f:.]+)\]|([^/:\[\]]+))(?::([0-9]+))?(?:/[!-~]*)?")


def _is_url(text: str) -> bool:
    """An absolute one to which a path or a query can be appended."""
    found = _URL.fullmatch(text)
    if found is None or not {"@", "?", "#", "\\"}.isdisjoint(text):
        return False
    address, name, port = found.groups()
    if address and ":" not in address:
        return False
    return _is_host(address or name) and (port is None or _is_port(port))


def _is_safe_url(text: str) -> bool:
    """One whose answers can be believed."""
    found = _URL.fullmatch(text)
    if found is None or not _is_url(text):
        return False
    return text.startswith("https:") or _is_loopback(found[1] or found[2])


def _is_pair(text: str) -> bool:
    """``theirs=ours``."""
    theirs, equals, ours = text.rpartition("=")
    return bool(theirs and equals and ours) and text.isprintable()


_ORIGIN = re.compile(r"https?://(?:\[([0-9a-f:.]+)\]|([a-z0-9_.-]+))(?::([1-9][0-9]*))?")


def _is_origin(text: str) -> bool:
    """One as browsers write it, or `*`."""
    found = _ORIGIN.fullmatch(text)
    if found is None:
        return text == "*"
    address, name, port = found.groups()
    return _is_host(address or name) and (port is None or _is_port(port))


def _is_sender(text: str) -> bool:
    """A mail address, also as ``Name <address>``."""
    named = re.fullmatch(r"""[^<>()@,;:\\"]* <([^<>]*)>""", text)
    local, _, domain = (text if named is None else named[1]).partition("@")
    return text.isprintable() and (
        re.fullmatch(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}", local) is not None
        and re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", domain) is not None
        and len(domain) <= 253
    )


def _is_encodable(text: str) -> bool:
    """Not so where a variable of the environment holds what is no UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _is_encryption_key(text: str) -> bool:
    """One that cannot be guessed, as far as its length tells."""
    return re.fullmatch(r"[!-+\--~]{32,1024}", text) is not None


# What a setting, or each one of its list, has to be unless it is empty.
_FORMS: dict[str, Callable[[str], bool]] = {
    "listen_store": _is_postgres,
    "tls_certificate": str.isprintable,
    "tls_key": str.isprintable,
    "tls_client_ca": str.isprintable,
    "cors_origins": _is_origin,
    "keystone_url": _is_url,
    "keystone_public_url": _is_url,
    "keystone_user_name": str.isprintable,
    "keystone_user_domain_name": str.isprintable,
    "keystone_project_name": str.isprintable,
    "keystone_project_domain_name": str.isprintable,
    "keystone_ca_file": str.isprintable,
    "policy_file": str.isprintable,
    "audit_log": str.isprintable,
    "metrics_allow": _is_network,
    "subscriber_types": _is_subscriber_type,
    "subscriber_allow": _is_network,
    "subscriber_ports": _is_port_range,
    "nameservers": _is_nameserver,
    "public_url": _is_url,
    "external_confirmation_url": _is_url,
    "smtp_host": _is_host,
    "smtp_user_name": str.isprintable,
    "smtp_from": _is_sender,
    "mail_templates": str.isprintable,
    "trustee_auth_url": _is_url,
    "trustee_user_name": str.isprintable,
    "trustee_user_domain_name": str.isprintable,
    "oidc_issuer": _is_safe_url,
    "oidc_audience": str.isprintable,
    "oidc_jwks_url": _is_safe_url,
    "oidc_algorithms": _JWT_ALGORITHMS.__contains__,
    "oidc_project_claim": str.isprintable,
    "oidc_projects": _is_pair,
    "oidc_roles_claim": str.isprintable,
    "oidc_roles": _is_pair,
    "oidc_ca_file": str.isprintable,
    "key_file": str.isprintable,
    **dict.fromkeys(SECRETS, _is_encodable),
    "encryption_keys": _is_encryption_key,
}
