"""What more than one kind of authentication reads from the headers."""

import re
from collections.abc import Mapping

# What may stand in a header without changing the request.
TOKEN = re.compile(r"[\x21-\x7e]{1,16384}")


def project_of(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The project that a request names: the first of the three headers that is there, even empty."""
    project = headers.get(b"x-project-id")
    return headers.get(b"x-tenant-id", headers.get(b"x-tenant")) if project is None else project


def token_of(headers: Mapping[bytes, bytes]) -> str:
    """The token or key that a request brings, in ``X-Auth-Token`` or as a bearer; else empty.

    One in the first header counts, whatever is in the other one.
    """
    token = headers.get(b"x-auth-token")
    if token:
        return token.decode("latin-1")
    kind, _, bearer = headers.get(b"authorization", b"").partition(b" ")
    return bearer.strip().decode("latin-1") if kind.lower() == b"bearer" else ""
