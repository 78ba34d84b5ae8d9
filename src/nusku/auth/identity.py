"""From who asks to the context that the broker takes."""

import re
from collections.abc import Mapping
from functools import lru_cache

from nusku.auth.headers import project_of, token_of
from nusku.config import Settings
from nusku.errors import EmptyProject, MissingClient, MissingProject, WrongClient
from nusku.model import Caller, Context

_HEX32 = re.compile(r"[0-9a-f]{32}")
_NOBODY: frozenset[str] = frozenset()


_SPELLING_MAX = 64  # characters of a UUID; longer texts are not worth remembering


@lru_cache(maxsize=4096)
def _uuid(text: str) -> str | None:
    """The 32 digits of a UUID in any usual spelling; None if it is none."""
    bare = text.lower().removeprefix("urn:uuid:").strip("{}").replace("-", "")
    return bare if _HEX32.fullmatch(bare) else None


class Identity:
    """What headers say of the client; and of the rest where nobody has to prove anything."""

    def __init__(self, settings: Settings) -> None:
        self._uuids = settings.client_id_uuid_safe == "strict"
        self._lengths = (settings.min_length_client_id, settings.max_length_client_id)

    def context(self, headers: Mapping[bytes, bytes], caller: Caller | None) -> Context:
        """What a request is served as, from headers with lower-case names.

        Of a caller who has proved who they are, nothing but the client is read from them; without
        one, they are believed.

        Raises MissingClient, WrongClient, MissingProject, EmptyProject, in this order
        (contract http-v2.md sections 1.3 and 1.4).
        """
        given = headers.get(b"client-id")
        if given is None:
            raise MissingClient("The Client-Id header is missing; send a UUID of your own.")
        client = self._client(given.decode("latin-1"))
        if caller is not None:
            if not caller.project:
                raise MissingProject("The credentials are not for a project.")
            # Only Keystone's can be used for more than to say who one is.
            token = token_of(headers) if caller.scheme == "keystone" else ""
            return Context(caller.project, client, caller.roles, caller.user, token, caller)
        sent = project_of(headers)
        if sent is None:
            raise MissingProject("The X-Project-Id header is missing.")
        if not sent:
            raise EmptyProject("The X-Project-Id header is empty.")
        roles = headers.get(b"x-roles")
        return Context(
            sent.decode("latin-1"),
            client,
            _NOBODY
            if roles is None
            else frozenset(r.strip() for r in roles.decode("latin-1").split(",")),
            headers.get(b"x-user-id", b"").decode("latin-1"),
            headers.get(b"x-auth-token", b"").decode("latin-1"),
        )

    def _client(self, text: str) -> str:
        if self._uuids:
            client = _uuid(text) if len(text) <= _SPELLING_MAX else None
            if client is None:
                raise WrongClient("The Client-Id header must be a UUID.")
            return client
        least, most = self._lengths
        if not least <= len(text) <= most:
            raise WrongClient(f"The Client-Id header must have {least} to {most} characters.")
        return text
