"""Connections to the server that is tried."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import time
import uuid
from collections.abc import Mapping, Sequence

from tests.security.support import Answer, split_answers

QUIET_S = 0.05  # after which nothing more is expected of a request that may not be complete
PATIENCE_S = 20.0


class Line:
    """To one address; the connection for whole requests is kept."""

    def __init__(self, address: tuple[str, int] | None) -> None:
        self._address = address
        self._kept: http.client.HTTPConnection | None = None

    @property
    def address(self) -> tuple[str, int]:
        assert self._address is not None, "this target needs a server"
        return self._address

    def exchange(self, data: bytes) -> Sequence[Answer]:
        """Send bytes on a connection of their own; the answers, and AssertionError if what comes
        back is no HTTP or is not the end of it.
        """
        with socket.create_connection(self.address, timeout=PATIENCE_S) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(data)
            received = b""
            deadline = time.monotonic() + PATIENCE_S
            # Whatever belongs together comes together.
            while select.select([connection], [], [], QUIET_S / 5 if received else QUIET_S)[0]:
                try:
                    got = connection.recv(65_536)
                except ConnectionError:
                    break
                if not got:
                    break
                received += got
                assert time.monotonic() < deadline, "there is no end of answers"
        answers, _, rest = split_answers(received, heads_only=data.startswith(b"HEAD"))
        assert not rest, rest
        return answers

    def ask(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, bytes]:
        """One whole request of a client that knows how; status and body."""
        if self._kept is None:
            self._kept = http.client.HTTPConnection(*self.address, timeout=PATIENCE_S)
        identity = {"Client-ID": str(uuid.UUID(int=7)), "X-Project-ID": "fuzz"}
        try:
            self._kept.request(method, path, body, {**identity, **headers})
            answer = self._kept.getresponse()
            return answer.status, answer.read()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None
