"""What is over its project's rate is turned away here, before anything else is done for it.

The refusals of a project that asks ten times as often as it may would otherwise cost the others more
than what it is served. They are late, too: who waits for an answer asks nothing meanwhile, so each
connection costs no more than a few refusals a second.
"""

import random
from collections.abc import Mapping
from typing import Any, NamedTuple

from nusku.auth import Authentication, project_of
from nusku.broker import Rates
from nusku.errors import RateExceeded
from nusku.http import wire

REFUSED_AFTER_S = 0.1
COUNTED = "nusku.counted"  # in the scope of a request that was counted


class Refusal(NamedTuple):
    """The status line and headers of an answer, as they are sent, and its body."""

    head: bytes
    body: bytes


class Pacing:
    """Stands before the application. Where no rate is limited there is nothing to ask.

    Whoever is not known by what came with the request alone (a signature, a token that has to be asked
    about, a web page that needs headers of its own) is left for the pipeline to count.
    """

    def __init__(
        self,
        authentication: Authentication,
        rates: Rates,
        open_paths: frozenset[str],
        rng: random.Random,
    ) -> None:
        self._authentication = authentication
        self.rates = rates
        self._open_paths = open_paths
        self._bits = rng.getrandbits

    def refusal(self, scope: Any) -> Refusal | None:
        """Count the request; what is answered if it is one too many."""
        if scope["path"] in self._open_paths:
            return None
        project = self._project(dict(scope["headers"]))
        if not project:
            return None
        scope[COUNTED] = True
        try:
            self.rates.take(project)
        except RateExceeded as error:
            body = wire.error(error)
            id_ = wire.request_id(self._bits).encode()
            return Refusal(_HEAD % (len(body), error.retry_after_s, id_), body)
        return None

    def _project(self, head: Mapping[bytes, bytes]) -> str:
        """Whose request it is; empty where that is not known yet."""
        if head.get(b"url-signature") or b"origin" in head:
            return ""
        if self._authentication.required:
            caller = self._authentication.known(head)
            return caller.project if caller else ""
        return (project_of(head) or b"").decode("latin-1")


_HEAD = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\nretry-after: %d\r\nvary: Accept\r\n"
    b"x-openstack-request-id: %b\r\n"
)
