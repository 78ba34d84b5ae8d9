"""Who is asking: the credentials of a request become a Context, the same for every transport."""

from nusku.auth.authentication import Authentication, check, opened
from nusku.auth.headers import project_of
from nusku.auth.hosts import Hosts
from nusku.auth.identity import Identity
from nusku.auth.scheme import Refused, Scheme
from nusku.auth.signed import Signatures
from nusku.auth.trusts import Trusts

__all__ = [
    "Authentication",
    "Hosts",
    "Identity",
    "Refused",
    "Scheme",
    "Signatures",
    "Trusts",
    "check",
    "opened",
    "project_of",
]
