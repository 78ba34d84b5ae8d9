"""What more than one kind of authentication reads from the headers."""

from collections.abc import Mapping


def project_of(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The project that a request names: the first of the three headers that is there, even empty."""
    project = headers.get(b"x-project-id")
    return headers.get(b"x-tenant-id", headers.get(b"x-tenant")) if project is None else project
