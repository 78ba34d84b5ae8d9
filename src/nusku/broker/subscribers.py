"""What may be asked of a subscription, and what a subscriber URI means.

Contract http-v2.md sections 6.1 and 6.4, notifications.md sections 3 to 5, and the address rules
of contract/README.md. The texts of some refusals are looked for by clients: `Missing parameter`,
`must be supported in the list`, `must be a dict`, `must be an integer`.

Names of hosts are not resolved here, only addresses in place of names are judged: see
:mod:`nusku.addresses`.
"""

import base64
import binascii
import re
import time
import unicodedata
from collections.abc import Mapping
from email.utils import parseaddr
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Any
from urllib.parse import quote, unquote

import idna
import msgspec

from nusku.addresses import Addresses, literal
from nusku.broker import rules
from nusku.config import Settings
from nusku.errors import Invalid, NothingToUpdate

URI_CHARACTERS_MAX = 2048
OPTIONS_BYTES_MAX = 65_536
CALENDAR_END_S = 253_402_300_799  # the last second of the year 9999
HEADERS_MAX, HEADERS_CHARACTERS_MAX = 32, 8192
LINE_CHARACTERS_MAX = 200  # of a subject and a sender
SECRETS_MAX, SECRET_BYTES = 2, (24, 64)  # two, while receivers change from one to the next

HTTP_PORTS = {"http": 80, "https": 443}
CLOUDEVENTS = ("structured", "binary")

Signing = bool | tuple[str, ...] | None


class Wanted(msgspec.Struct, frozen=True):
    """A subscription that may be made. ``signing``: True for "with a secret of yours", or the
    secrets, newest first, or None for unsigned. ``options`` hold no secret.
    """

    subscriber: str
    ttl_s: int
    options: dict[str, Any]
    signing: Signing = None


class Changes(msgspec.Struct, frozen=True):
    """What is to become different; None stays. ``signing`` belongs to ``options``, which replace
    all there were: True means "keep the secrets that there are", None "unsigned from now on".
    """

    subscriber: str | None = None
    ttl_s: int | None = None
    options: dict[str, Any] | None = None
    signing: Signing = None


class Target(msgspec.Struct, frozen=True):
    """Where a webhook goes: ``url`` has no `trust+`, is ASCII, and names ``host`` and ``port`` in
    no other way than they are here. ``host`` is in lower case, and an IPv6 address has no brackets.
    """

    scheme: str
    host: str
    port: int
    url: str
    trust: bool


class Mail(msgspec.Struct, frozen=True):
    """A mail without its text: one address, and lines free of control characters, or empty."""

    address: str
    subject: str
    sender: str


def parse(
    document: Mapping[str, Any], settings: Settings, addresses: Addresses, *, live: bool = False
) -> Wanted:
    """The body of a POST. Raises Invalid. Nothing is sent to the URI of a ``live`` subscriber."""
    given = _given(document)
    if given.subscriber is None:
        raise Invalid("Missing parameter: a subscription needs a subscriber.")
    ttl_s = settings.default_subscription_ttl if given.ttl is None else _ttl(given.ttl, settings)
    options, signing = _options({} if given.options is None else given.options)
    if not live:
        _subscriber(given.subscriber, settings, addresses)
    return Wanted(given.subscriber, ttl_s, options, signing)


def changes(document: Mapping[str, Any], settings: Settings, addresses: Addresses) -> Changes:
    """The body of a PATCH. Raises Invalid, also where it changes nothing."""
    given = _given(document)
    if given.subscriber is None and given.ttl is None and given.options is None:
        raise NothingToUpdate("Give at least one of subscriber, ttl and options.")
    ttl_s = None if given.ttl is None else _ttl(given.ttl, settings)
    options, signing = (None, None) if given.options is None else _options(given.options)
    if given.subscriber is not None:
        _subscriber(given.subscriber, settings, addresses)
    return Changes(given.subscriber, ttl_s, options, signing)


def scheme(subscriber: str) -> str:
    """What kind of subscriber it is: one of the setting ``subscriber_types``."""
    return subscriber.partition(":")[0].lower()


def target(subscriber: str) -> Target:
    """Where the deliveries of an `http`, `https` or `trust+` subscriber go. Raises Invalid."""
    scheme, rest = _split_scheme(subscriber)
    return _target(scheme, rest)


def mail(subscriber: str, options: Mapping[str, Any]) -> Mail:
    """Whom a `mailto` subscriber means, and the lines of its mails. Raises Invalid.

    The first subject of the URI counts, then that of the options (notifications.md section 5).
    """
    scheme, rest = _split_scheme(subscriber)
    if scheme != "mailto":
        raise Invalid("subscriber is no mailto URI.")
    to, _, query = rest.partition("?")
    subject = _subject(query) or options.get("subject") or ""
    return Mail(_mail_address(unquote(to)), subject, options.get("from") or "")


@lru_cache(maxsize=4096)
def addressee(subscriber: str) -> str:
    """Whom a subscriber means: a URL or a mail address, without what comes behind it."""
    if scheme(subscriber) == "mailto":
        return mail(subscriber, {}).address.lower()
    return target(subscriber).url.partition("?")[0]


# -- the document ---------------------------------------------------------------------------------


class _Given(msgspec.Struct, frozen=True):
    """The members that count; null is the same as absent, as older clients expect."""

    subscriber: str | None
    ttl: Any
    options: Any


def _given(document: Mapping[str, Any]) -> _Given:
    subscriber = document.get("subscriber")
    if subscriber is not None and not isinstance(subscriber, str):
        raise Invalid("subscriber must be a string.")
    if subscriber == "":
        raise Invalid("Missing parameter: subscriber is empty.")
    return _Given(subscriber, document.get("ttl"), document.get("options"))


def _ttl(value: Any, settings: Settings) -> int:
    """True counts as 1, as it always did on this wire."""
    if not isinstance(value, int):
        raise Invalid("ttl must be an integer.")
    most = CALENDAR_END_S - int(time.time())
    return rules.in_range("ttl", int(value), settings.min_subscription_ttl, most, " s")


# -- the options ----------------------------------------------------------------------------------

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_TRUST_ID = re.compile(r"[A-Za-z0-9_-]{1,255}")

# Those that say where a message ends or who is asked, that proxies consume, and ours.
_REFUSED_HEADERS = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-auth-token",
        "x-service-token",
    }
)
_REFUSED_PREFIXES = ("ce-", "proxy-", "webhook-")


def _options(document: Any) -> tuple[dict[str, Any], Signing]:
    """The options to be stored, and the signing that they ask for.

    The known ones are checked, and left out where they are null; all others stay as they are.
    """
    if not isinstance(document, dict):
        raise Invalid("options must be a dict.")
    size = len(msgspec.json.encode(document))
    if size > OPTIONS_BYTES_MAX:
        raise Invalid(
            f"options take {size} bytes as JSON; {OPTIONS_BYTES_MAX} is the most they may."
        )
    options = dict(document)
    for name, check in _CHECKS.items():
        if options.get(name) is None:
            options.pop(name, None)
        else:
            check(options[name])
    if "_cloudevents" in options and "post_data" in options:
        raise Invalid("options: _cloudevents and post_data cannot be used together.")
    return options, _signing(options.pop("_signing", None))


def _post_headers(value: Any) -> None:
    if not isinstance(value, dict):
        raise Invalid("options: post_headers must be an object of strings.")
    if len(value) > HEADERS_MAX:
        raise Invalid(f"options: post_headers may hold up to {HEADERS_MAX} headers.")
    names: set[str] = set()
    for name, text in value.items():
        if not isinstance(text, str):
            raise Invalid("options: post_headers must be an object of strings.")
        if not _TOKEN.fullmatch(name):
            raise Invalid("options: post_headers has a name that is none of a header.")
        if not _HEADER_VALUE.fullmatch(text):
            raise Invalid(
                f"options: post_headers has a value for {name} with characters that headers cannot"
                " have: control characters, or any beyond Latin-1."
            )
        # Many receivers cannot tell X_Auth_Token from X-Auth-Token.
        plain = name.lower().replace("_", "-")
        if plain in _REFUSED_HEADERS or plain.startswith(_REFUSED_PREFIXES):
            raise Invalid(f"options: post_headers may not set {name}.")
        if plain in names:
            raise Invalid(f"options: post_headers has {name} more than once.")
        names.add(plain)
    if sum(len(name) + len(text) for name, text in value.items()) > HEADERS_CHARACTERS_MAX:
        raise Invalid(f"options: post_headers may take {HEADERS_CHARACTERS_MAX} characters in all.")


def _post_data(value: Any) -> None:
    if not isinstance(value, str):
        raise Invalid("options: post_data must be a string.")


def _retry_policy(value: Any) -> None:
    if not isinstance(value, dict):
        raise Invalid("options: _retry_policy must be an object.")
    rules.retry_policy(value)


def _from(value: Any) -> None:
    _check_line("options: from", value)
    if value.count("@") > 1:
        raise Invalid("options: from may name one sender.")
    address = parseaddr(value)[1]
    if not value.isascii() and not ("@" in address and address.isascii()):
        raise Invalid("options: from must have an ASCII address beside a name that is not ASCII.")


def _subject_option(value: Any) -> None:
    _check_line("options: subject", value)


def _trust_id(value: Any) -> None:
    if not isinstance(value, str) or not _TRUST_ID.fullmatch(value):
        raise Invalid("options: trust_id must be the id of a trust.")


def _dead_letter_queue(value: Any) -> None:
    if not isinstance(value, str) or not rules.legal_name(value):
        raise Invalid("options: _dead_letter_queue must be the name of a queue.")


def _cloudevents(value: Any) -> None:
    if value not in CLOUDEVENTS:
        raise Invalid(f"options: _cloudevents must be one of {', '.join(CLOUDEVENTS)}.")


_CHECKS = {
    "post_headers": _post_headers,
    "post_data": _post_data,
    "_retry_policy": _retry_policy,
    "from": _from,
    "subject": _subject_option,
    "trust_id": _trust_id,
    "_dead_letter_queue": _dead_letter_queue,
    "_cloudevents": _cloudevents,
}


def _signing(value: Any) -> Signing:
    """No secret is repeated in a refusal, not even a malformed one."""
    if value is None or value is False:
        return None
    if value is True:
        return True
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not 1 <= len(given) <= SECRETS_MAX:
        raise Invalid("options: _signing must be true, a secret, or a list of one or two secrets.")
    if not all(isinstance(one, str) and _is_secret(one) for one in given):
        least, most = SECRET_BYTES
        raise Invalid(
            "options: a secret of _signing must be whsec_ and then, in base64,"
            f" {least} to {most} bytes."
        )
    return tuple(given)


def _is_secret(text: str) -> bool:
    try:
        decoded = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        return False
    least, most = SECRET_BYTES
    return text.startswith("whsec_") and least <= len(decoded) <= most


# -- the subscriber -------------------------------------------------------------------------------


def _subscriber(uri: str, settings: Settings, addresses: Addresses) -> None:
    """Whether this may be subscribed; raises Invalid and says why not."""
    scheme, rest = _split_scheme(uri)
    if scheme not in {known.lower() for known in settings.subscriber_types}:
        raise Invalid(
            "The scheme of subscriber must be supported in the list"
            f" {', '.join(settings.subscriber_types)}."
        )
    if scheme == "mailto":
        mail(uri, {})
        return
    to = _target(scheme, rest)
    is_name = literal(to.host) is None
    refusal = addresses.port_refusal(to.port) if is_name else addresses.refusal(to.host, to.port)
    if refusal is not None:
        raise Invalid(f"subscriber cannot be connected to: {refusal}")


def _split_scheme(uri: str) -> tuple[str, str]:
    """The scheme in lower case, and what follows its colon, of a URI without oddities."""
    if len(uri) > URI_CHARACTERS_MAX:
        raise Invalid(f"subscriber is longer than {URI_CHARACTERS_MAX} characters.")
    scheme, colon, rest = uri.partition(":")
    scheme = scheme.lower() if colon else ""
    # A subject is often written with its blanks.
    blank = " " in (rest.partition("?")[0] if scheme == "mailto" else uri)
    if blank or "\\" in uri or not uri.isprintable():
        raise Invalid("subscriber has blanks, backslashes or control characters in it.")
    if "#" in rest:
        raise Invalid("subscriber has a fragment, which no request could carry; write # as %23.")
    return scheme, rest


# What a URL may hold stays as it is; anything else is written by people, but by no request.
_URL_CHARACTERS = "/?%!$&'()*+,;=:@~[]"


@lru_cache(maxsize=4096)
def _target(scheme: str, rest: str) -> Target:
    plain = scheme.removeprefix("trust+")
    if plain not in HTTP_PORTS or not rest.startswith("//"):
        raise Invalid("subscriber must be a URI such as https://example.com/hook.")
    authority = re.split("[/?]", rest[2:], maxsplit=1)[0]
    path = rest[2 + len(authority) :]
    if "@" in authority:
        raise Invalid("subscriber names a user before the host; options: post_headers can do that.")
    host, port_text = _split_authority(authority)
    port = _port(port_text) if port_text else HTTP_PORTS[plain]
    shown = f"[{host}]" if ":" in host else host
    if port != HTTP_PORTS[plain]:
        shown = f"{shown}:{port}"
    slash = "" if path.startswith("/") else "/"
    path = quote(path, safe=_URL_CHARACTERS)
    url = f"{plain}://{shown}{slash}{path}"
    return Target(plain, host, port, url, scheme != plain)


def _split_authority(authority: str) -> tuple[str, str]:
    """Host and port of ``host``, ``host:port``, ``[::1]`` or ``[::1]:port``; "" for no port."""
    if authority.startswith("["):
        inside, bracket, port = authority[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise Invalid("subscriber has a host with brackets that do not match.")
        try:
            address = IPv6Address(inside)
        except ValueError:
            raise Invalid("subscriber has brackets round what is no IPv6 address.") from None
        if address.scope_id is not None:
            raise Invalid("subscriber has an address with a zone.")
        return str(address), port[1:]
    host, _, port = authority.partition(":")
    if ":" in port:
        raise Invalid("subscriber has more than one colon in its host; IPv6 takes brackets.")
    return _host(host), port


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65_535:
        raise Invalid("subscriber has a port that is no number from 1 to 65535.")
    return int(text)


_LABEL = re.compile(r"[a-z0-9_-]{1,63}")
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")


def _host(text: str) -> str:
    """A host as resolvers are asked for it; an address in its usual spelling. Raises Invalid."""
    if not text:
        raise Invalid("subscriber names no host.")
    if "%" in text:
        raise Invalid("subscriber has a percent sign in its host.")
    if (address := literal(text)) is not None:
        return address
    name = text.lower()
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True).decode()
        except UnicodeError:
            raise Invalid("subscriber has a host that is no international domain name.") from None
        if (address := literal(name)) is not None:
            return address
    labels = name.removesuffix(".").split(".")
    if len(name) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise Invalid("subscriber has a host that is neither a domain name nor an address.")
    # No top-level domain is a number: some parsers would make an address of it all the same.
    if _NUMERIC.fullmatch(labels[-1]):
        raise Invalid("subscriber has a host that ends in a number but is no IPv4 address.")
    return name


# -- mail -----------------------------------------------------------------------------------------

# Not at the start what mail programs take for options, files and commands.
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LOCAL_PART = re.compile(rf"(?![-/|]){_ATOM}(\.{_ATOM})*")
# Lines end at these for some of those who handle mail, whatever the standard says.
_LINE_BREAKERS = frozenset({"Cc", "Zl", "Zp", "Cs"})


def _mail_address(text: str) -> str:
    """The one address, with its domain as name servers know it. Raises Invalid."""
    local, at, domain = text.rpartition("@")
    if not at or len(local) > 64 or not _LOCAL_PART.fullmatch(local):
        raise Invalid("subscriber must name one mail address, such as mailto:user@example.com.")
    try:
        host = _host(domain)
    except Invalid:
        host = ""
    if not host or literal(domain) is not None or len(host) + len(local) + 1 > 254:
        raise Invalid("subscriber has a mail address whose domain is none.")
    # Upper case in a domain means nothing, but a receiver may like to see what was written.
    return f"{local}@{domain if domain.isascii() else host}"


def _subject(query: str) -> str:
    """The first `subject` of a mailto query, in any case; other fields are ignored."""
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if value and unquote(name).lower() == "subject":
            subject = unquote(value)
            _check_line("The subject of subscriber", subject)
            return subject
    return ""


def _check_line(what: str, value: Any) -> None:
    """A line of a mail's head. Raises Invalid."""
    if not isinstance(value, str):
        raise Invalid(f"{what} must be a string.")
    if len(value) > LINE_CHARACTERS_MAX:
        raise Invalid(f"{what} is longer than {LINE_CHARACTERS_MAX} characters.")
    if any(unicodedata.category(c) in _LINE_BREAKERS for c in value):
        raise Invalid(f"{what} has line breaks or other control characters in it.")
