"""A WebSocket client of the tests' own: it sends what a test likes, and shows what comes back."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import msgspec

from tests.live import LiveServer

PATH = "/v2/websocket"
TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Frame(NamedTuple):
    opcode: int
    payload: bytes


class Closed(Exception):
    """The server has closed; `code` is 0 where it did not say why."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


class Refused(Exception):
    """The handshake was answered with another status than 101."""

    def __init__(self, status: int, head: str) -> None:
        super().__init__(f"{status}: {head}")
        self.status = status
        self.head = head


@dataclass(frozen=True)
class Reply:
    """A reply, and in which kind of frame it came."""

    status: int
    body: Any
    request: Any
    opcode: int


def frame_bytes(opcode: int, payload: bytes, *, fin: bool = True, masked: bool = True) -> bytes:
    """A frame as a client sends it."""
    size, mask_bit = len(payload), 0x80 if masked else 0
    head = bytes([(0x80 if fin else 0) | opcode])
    if size < 126:
        head += bytes([mask_bit | size])
    elif size < 65_536:
        head += bytes([mask_bit | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([mask_bit | 127]) + size.to_bytes(8, "big")
    if not masked:
        return head + payload
    mask = os.urandom(4)
    whole = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return head + mask + (int.from_bytes(payload, "big") ^ whole).to_bytes(size, "big")


class Peer:
    """A connection, with requests as one client of one project."""

    def __init__(
        self,
        server: LiveServer,
        *,
        project: str | None = None,
        binary: bool = False,
        path: str = PATH,
        port: int | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        address = urlsplit(server.url)
        assert address.hostname is not None
        self.project = project or f"project-{uuid.uuid4().hex}"
        self.client_id = str(uuid.uuid4())
        self.binary = binary
        self.extra: dict[str, Any] = {}
        """More headers of requests."""
        self.host = f"{address.hostname}:{port or address.port}"
        self.socket = socket.create_connection(
            (address.hostname, port or address.port), timeout=timeout_s
        )
        self._buffer = b""
        self.notifications: list[Any] = []
        key = base64.b64encode(os.urandom(16)).decode()
        sent = {
            "Host": self.host,
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": key,
            "Sec-WebSocket-Version": "13",
            **(headers or {}),
        }
        lines = [f"GET {path} HTTP/1.1", *(f"{n}: {v}" for n, v in sent.items() if v), "", ""]
        self.socket.sendall("\r\n".join(lines).encode())
        head = self._until(b"\r\n\r\n").decode()
        status = int(head.split()[1])
        if status != 101:
            self.socket.close()
            raise Refused(status, head)
        digest = hashlib.sha1(key.encode() + _GUID).digest()
        assert f"sec-websocket-accept: {base64.b64encode(digest).decode()}" in head.splitlines()

    # -- frames

    def _until(self, end: bytes) -> bytes:
        while end not in self._buffer:
            self._more()
        found, _, self._buffer = self._buffer.partition(end)
        return found

    def _more(self) -> None:
        data = self.socket.recv(65_536)
        if not data:
            raise Closed(0, "the connection ended")
        self._buffer += data

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found

    def write(self, opcode: int, payload: bytes) -> None:
        self.socket.sendall(frame_bytes(opcode, payload))

    def frame(self) -> Frame:
        """The next frame, whatever it is."""
        first, second = self._exactly(2)
        assert first & 0x80, "the server does not fragment"
        assert not second & 0x80, "nor does it mask"
        size = second
        if size == 126:
            size = int.from_bytes(self._exactly(2), "big")
        elif size == 127:
            size = int.from_bytes(self._exactly(8), "big")
        return Frame(first & 0x0F, self._exactly(size))

    def message(self) -> Frame:
        """The next message. Raises Closed for a close frame, which it answers."""
        while True:
            frame = self.frame()
            if frame.opcode == CLOSE:
                self.write(CLOSE, frame.payload[:2])
                code = int.from_bytes(frame.payload[:2], "big")
                raise Closed(code, frame.payload[2:].decode())
            if frame.opcode in {TEXT, BINARY}:
                return frame

    # -- documents

    def send(self, document: Any, *, binary: bool | None = None) -> None:
        if self.binary if binary is None else binary:
            self.write(BINARY, msgspec.msgpack.encode(document))
        else:
            self.write(TEXT, json.dumps(document).encode())

    def receive(self) -> tuple[Any, int]:
        """The next document, and the kind of its frame."""
        opcode, payload = self.message()
        decode = json.loads if opcode == TEXT else msgspec.msgpack.decode
        return decode(payload), opcode

    def request(self, action: Any, body: Any = None, **headers: Any) -> dict[str, Any]:
        """What is sent to ask for something."""
        document: dict[str, Any] = {
            "action": action,
            "headers": {
                "Client-ID": self.client_id,
                "X-Project-ID": self.project,
                **self.extra,
                **headers,
            },
        }
        if body is not None:
            document["body"] = body
        return document

    def reply(self) -> Reply:
        """The next reply; notifications that come before it are put aside."""
        while True:
            document, opcode = self.receive()
            if "headers" in document:
                assert set(document) == {"request", "body", "headers"}
                assert set(document["headers"]) == {"status"}
                status = document["headers"]["status"]
                return Reply(status, document["body"], document["request"], opcode)
            self.notifications.append(document)

    def ask(self, action: Any, **body: Any) -> Reply:
        """Ask and wait for the reply."""
        self.send(self.request(action, body))
        return self.reply()

    def done(self, action: str, status: int, **body: Any) -> Any:
        """Ask, insist on a status, return the body of the reply."""
        reply = self.ask(action, **body)
        assert reply.status == status, reply
        return reply.body

    def post(self, queue: str, *bodies: Any, **fields: Any) -> list[str]:
        """Post messages; their ids."""
        messages = [{"body": body, **fields} for body in bodies]
        ids: list[str] = self.done("message_post", 201, queue_name=queue, messages=messages)[
            "message_ids"
        ]
        return ids

    def authenticate(self, token: str, **headers: Any) -> Reply:
        sent = {"X-Auth-Token": token, "X-Project-ID": self.project, **headers}
        self.send({"action": "authenticate", "headers": sent})
        return self.reply()

    def notification(self) -> Any:
        """The next one."""
        if not self.notifications:
            document, _ = self.receive()
            assert "Message_Type" in document, document
            return document
        return self.notifications.pop(0)

    def told(self, number: int) -> Sequence[Any]:
        """The bodies of the next notifications."""
        return [self.notification()["body"] for _ in range(number)]

    def quiet(self) -> bool:
        """Whether everything that was sent to us has been read: a ping goes there and back."""
        self.write(PING, b"quiet?")
        frame = self.frame()
        return frame == Frame(PONG, b"quiet?") and not self.notifications

    def end(self) -> Closed:
        """Wait for the server to close, and say how it did."""
        try:
            while True:
                self.message()
        except Closed as closed:
            return closed

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
