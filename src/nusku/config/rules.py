"""The rules that join settings, and those that a type and a range cannot say."""

import re
from collections.abc import Iterator
from ipaddress import IPv6Address, ip_address, ip_network

from nusku.config.settings import Settings, allowed_values

_BELIEVES_EVERYBODY = frozenset({"none"})
# Each is at least the first, if there is one, and at most the last.
ORDERED = (
    ("min_message_ttl", "default_message_ttl", "max_message_ttl"),
    ("min_claim_ttl", "default_claim_ttl", "max_claim_ttl"),
    ("min_claim_grace", "default_claim_grace", "max_claim_grace"),
    ("", "default_message_delay", "max_message_delay"),
    ("", "min_length_client_id", "max_length_client_id"),
)


def broken_rules(settings: Settings) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """What types and ranges cannot say: (setting, what is allowed, other settings involved)."""
    for low, name, high in ORDERED:
        least = getattr(settings, low) if low else 0
        most = getattr(settings, high)
        if not least <= getattr(settings, name) <= most:
            least_text = f"from {low} ({least})" if low else "from 0"
            yield name, f"{least_text} to {high} ({most})", (low, high)
    if not _is_host(settings.host):
        yield "host", allowed_values("host"), ()
    elif (
        settings.auth in _BELIEVES_EVERYBODY
        and not settings.allow_open
        and not _is_loopback(settings.host)
    ):
        allowed = (
            "a loopback address while auth = none, which believes everybody; "
            "allow_open = true opens it to all who can reach it"
        )
        yield "host", allowed, ("auth", "allow_open")
    if not (re.match(r"[a-z][a-z0-9+.-]*://", settings.store) and settings.store.isprintable()):
        yield "store", allowed_values("store"), ()
    if not all(map(_is_network, settings.metrics_allow)):
        yield "metrics_allow", allowed_values("metrics_allow"), ()


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


def _is_network(text: str) -> bool:
    try:
        ip_network(text)
    except ValueError:
        return False
    return True
