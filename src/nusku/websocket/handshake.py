"""How a connection that speaks HTTP comes to speak WebSocket (RFC 6455), and for whom."""

import base64
import binascii
import hashlib
import weakref
from collections.abc import Mapping
from functools import partial

from nusku.audit import Audit
from nusku.auth import Authentication, Hosts
from nusku.broker import Broker
from nusku.config import Settings
from nusku.logs import RequestLog
from nusku.metrics import Metrics
from nusku.websocket.actions import Actions
from nusku.websocket.connection import Connection, Limits
from nusku.websocket.frames import ENVELOPE_BYTES, Frames
from nusku.websocket.session import Parts, Session

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455


class Sockets:
    """Takes connections over from HTTP."""

    def __init__(
        self,
        broker: Broker,
        settings: Settings,
        authentication: Authentication,
        metrics: Metrics,
        request_log: RequestLog,
        audit: Audit | None,
        base_url: str,
    ) -> None:
        self._parts = Parts(
            broker,
            settings,
            authentication,
            metrics,
            request_log,
            audit,
            Frames(settings.max_json_depth),
            Actions(broker, settings),
            base_url,
            {},
        )
        document_max = max(settings.max_messages_post_size, settings.max_queue_metadata)
        self._limits = Limits(
            2 * document_max + ENVELOPE_BYTES,
            settings.header_timeout,
            settings.websocket_idle_timeout,
            settings.write_timeout,
        )
        self._open: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._origins = frozenset(settings.cors_origins)
        self._hosts = Hosts(settings)

    def __len__(self) -> int:
        return sum(not connection.lost for connection in self._open)

    def open(
        self, head: Mapping[bytes, bytes], address: str, place: str
    ) -> tuple[bytes, Connection | None]:
        """The answer to a handshake, and the connection that it leads to; None where it is refused.

        ``head`` has its names in lower case. Who asks is not looked at: that comes over the
        connection (contract websocket.md section 1).
        """
        if head.get(b"sec-websocket-version") != b"13":
            return _refusal(b"426 Upgrade Required", b"sec-websocket-version: 13\r\n"), None
        key = head.get(b"sec-websocket-key", b"")
        if not _is_key(key):
            return _refusal(b"400 Bad Request"), None
        if not self._welcome(head):
            return _refusal(b"403 Forbidden"), None
        connection = Connection(self._limits, partial(Session, self._parts, address), place)
        self._open.add(connection)
        accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
        return _ANSWER % accept, connection

    def _welcome(self, head: Mapping[bytes, bytes]) -> bool:
        """Whether a browser may let a page of this origin in; other clients mostly say none.

        Browsers ask nobody before they open a connection, and where everybody is believed a page
        from anywhere could do as it likes. A name in the place of an address may be such a page's
        own: it can lead its name here.
        """
        origin = head.get(b"origin", b"").decode("latin-1")
        if not origin or origin in self._origins or "*" in self._origins:
            return True
        field = head.get(b"host", b"")
        host = field.decode("latin-1").lower()
        if origin.lower() not in (f"http://{host}", f"https://{host}"):
            return False
        return self._parts.authentication.required or self._hosts.ours(field)


def _is_key(key: bytes) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        return False


_ANSWER = (
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
    b"sec-websocket-accept: %b\r\n\r\n"
)


def _refusal(status: bytes, more: bytes = b"") -> bytes:
    body = b'{"title":"%b"}' % status
    return (
        b"HTTP/1.1 %b\r\ncontent-type: application/json\r\nconnection: close\r\n%b"
        b"content-length: %d\r\n\r\n%b" % (status, more, len(body), body)
    )
