r"""Pre-signed URLs: what is signed, and what a signature allows (contract http-v2.md section 7).

Whoever holds a signature may use its methods on its paths, and on what is below them, in its project
until it expires. The text that is signed joins the four by the two characters ``\n``. Each field
has a form that is insisted on, here and by whoever signs: paths and methods cannot hold a separator,
and the time has one length, so whatever the project is called, a text can be taken apart in one way
only, and no two grants have the same.
"""

import hmac
import re
from collections.abc import Sequence
from datetime import UTC, datetime

METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")

_SEPARATOR = "\\n"  # a backslash and an n
_PATH = re.compile(r"/v2/(?:queues|topics)(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9_.-]{1,128})+")
_ISO = re.compile(
    r"[0-9]{4}-?[0-9]{2}-?[0-9]{2}(?:[T ][0-9:]{2,8}(?:[.,][0-9]+)?(?:Z|[+-][0-9:]{2,8})?)?"
)


def expiry_s(iso: str) -> int:
    """The seconds since the epoch that an ISO 8601 date or time names.

    Without a zone it is UTC; fractions of a second are dropped. Raises ValueError.
    """
    # Digits alone could be a number of seconds, or a date: nobody should have to guess.
    if not _ISO.fullmatch(iso) or iso.isdigit():
        raise ValueError("not an ISO 8601 date or time")
    moment = datetime.fromisoformat(iso).replace(microsecond=0)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def expiry_text(at_s: int) -> str:
    """A time as it is signed: ``YYYY-MM-DDTHH:MM:SS``, UTC. Raises ValueError after year 9999."""
    try:
        return datetime.fromtimestamp(at_s, UTC).replace(tzinfo=None).isoformat()
    except (OverflowError, OSError):
        raise ValueError("a time that no calendar has") from None


def text(paths: Sequence[str], methods: Sequence[str], project: str, expires: str) -> str:
    """What is signed. The order of paths and methods does not matter.

    Raises ValueError unless there are paths of queues or topics, methods of ``METHODS``, none of
    them twice, a project, and an expiry as :func:`expiry_text` writes it.
    """
    if not paths or len(set(paths)) < len(paths) or not all(map(_PATH.fullmatch, paths)):
        raise ValueError("paths are paths of queues or topics, each once")
    if not methods or len(set(methods)) < len(methods) or not set(methods).issubset(METHODS):
        raise ValueError("methods are those of HTTP, each once")
    if not project:  # elsewhere the text then has None, which may also be what a project is called
        raise ValueError("a signature is for a project")
    if expiry_text(expiry_s(expires)) != expires:
        raise ValueError("expires has the form YYYY-MM-DDTHH:MM:SS")
    return _SEPARATOR.join((",".join(sorted(paths)), ",".join(sorted(methods)), project, expires))


def sign(
    secret: str, paths: Sequence[str], methods: Sequence[str], project: str, expires: str
) -> str:
    """The signature: 64 hex digits. Raises ValueError as :func:`text` does, and without a secret."""
    if not secret:
        raise ValueError("there is no key to sign with")
    signed = text(paths, methods, project, expires)
    return hmac.digest(secret.encode(), signed.encode(), "sha256").hex()


def verify(
    secret: str,
    method: str,
    path: str,
    project: str,
    signature: str,
    methods: Sequence[str],
    paths: Sequence[str],
    expires: str,
    now_s: float,
) -> bool:
    """Whether this signature of these fields allows the request: a method on a (decoded) path.

    Nothing of what was sent is acted upon before the signature is found to be right.
    """
    try:
        right = sign(secret, paths, methods, project, expires)
    except ValueError:
        return False
    if not (signature.isascii() and hmac.compare_digest(right, signature)):
        return False
    return method in methods and _covers(paths, path) and now_s < expiry_s(expires)


def _covers(paths: Sequence[str], path: str) -> bool:
    """Whether the path is one of these, or below one, to the letter."""
    # Something in between may read these segments as another path.
    if not {"", ".", ".."}.isdisjoint(path.split("/")[1:]):
        return False
    return any(path == each or path.startswith(f"{each}/") for each in paths)
