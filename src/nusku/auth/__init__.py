"""Who is asking: the headers of a request become a Context, the same for every transport."""

import re
from collections.abc import Mapping
from functools import lru_cache

from nusku.auth.headers import project_of
from nusku.auth.signed import Signatures
from nusku.auth.trusts import Trusts
from nusku.config import Settings
from nusku.errors import EmptyProject, MissingClient, MissingProject, WrongClient
from nusku.model import Context

__all__ = ["Identity", "Signatures", "Trusts"]

_HEX32 = re.compile(r"[0-9a-f]{32}")
_NOBODY: frozenset[str] = frozenset()


@lru_cache(maxsize=4096)
def _uuid(text: str) -> str | None:
    """The 32 digits of a UUID in any usual spelling; None if it is none."""
    bare = text.lower().removeprefix("urn:uuid:").strip("{}").replace("-", "")
    return bare if _HEX32.fullmatch(bare) else None


class Identity:
    """``auth = none``: the identity headers are believed as sent."""

    def __init__(self, settings: Settings) -> None:
        self._uuids = settings.client_id_uuid_safe == "strict"
        self._lengths = (settings.min_length_client_id, settings.max_length_client_id)

    def context(self, headers: Mapping[bytes, bytes], *, signed: bool = False) -> Context:
        """The caller, from headers with lower-case names. Who comes with a signature (which has
        been found to allow the request) has no roles and is no user, whatever was sent.

        Raises MissingClient, WrongClient, MissingProject, EmptyProject, in this order
        (contract http-v2.md sections 1.3 and 1.4).
        """
        given = headers.get(b"client-id")
        if given is None:
            raise MissingClient("The Client-Id header is missing; send a UUID of your own.")
        client = self._client(given.decode("latin-1"))
        sent = project_of(headers)
        if sent is None:
            raise MissingProject("The X-Project-Id header is missing.")
        if not sent:
            raise EmptyProject("The X-Project-Id header is empty.")
        project = sent.decode("latin-1")
        if signed:
            return Context(project, client, _NOBODY)
        roles = headers.get(b"x-roles")
        return Context(
            project,
            client,
            _NOBODY
            if roles is None
            else frozenset(r.strip() for r in roles.decode("latin-1").split(",")),
            headers.get(b"x-user-id", b"").decode("latin-1"),
            headers.get(b"x-auth-token", b"").decode("latin-1"),
        )

    def _client(self, text: str) -> str:
        if self._uuids:
            client = _uuid(text)
            if client is None:
                raise WrongClient("The Client-Id header must be a UUID.")
            return client
        least, most = self._lengths
        if not least <= len(text) <= most:
            raise WrongClient(f"The Client-Id header must have {least} to {most} characters.")
        return text
