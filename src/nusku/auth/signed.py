"""Pre-signed requests: a signature instead of a token (contract http-v2.md section 7.2)."""

import time
from collections.abc import Callable, Mapping

from nusku import signing
from nusku.auth.headers import project_of

_FIELDS = (b"url-signature", b"url-methods", b"url-paths", b"url-expires")


class Signatures:
    """Those made with one key; without a key none is right. ``now_s`` is the wall clock."""

    def __init__(self, secret: str, now_s: Callable[[], float] = time.time) -> None:
        self._secret = secret
        self._now_s = now_s

    def allow(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> bool:
        """Whether the signature in the headers (lower-case names) allows this very request.

        ``path`` is the one that is served: decoded, without the query. The project is the one
        that the context will have. Whoever is let in so has no roles and is no user.
        """
        sent = (project_of(headers), *(headers.get(name) for name in _FIELDS))
        texts = [field.decode("latin-1") for field in sent if field]
        if len(texts) < len(sent):
            return False
        project, signature, methods, paths, expires = texts
        try:
            # Others write the time with a zone or fractions; what is signed has neither.
            expires = signing.expiry_text(signing.expiry_s(expires))
        except ValueError:
            return False
        return signing.verify(
            self._secret,
            method,
            path,
            project,
            signature,
            methods.split(","),
            paths.split(","),
            expires,
            self._now_s(),
        )
