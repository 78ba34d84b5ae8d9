"""HTTP/1.1 by hand: requests as ready-made bytes, answers with the least parsing that is still safe."""

from dataclasses import dataclass

PRODUCER = "11111111-1111-4111-8111-111111111111"
CONSUMER = "22222222-2222-4222-8222-222222222222"

Answer = tuple[int, bytes]
"""Status and body of one answer."""


class WrongAnswerError(Exception):
    """The server said something that it must not say; the text tells what was expected."""


@dataclass(frozen=True, slots=True)
class Target:
    """The server under load. Paths are root-relative, as the server's own links are."""

    host: str
    port: int
    hangs_up: bool = False
    """It closes connections behind an answer without having said so: each request needs a new one."""
    token: str = ""
    """What says who asks, where it wants to know."""
    project: str = "bench"

    def tail(self, client: str = CONSUMER) -> bytes:
        """Everything after the path of a request without a body."""
        return f" HTTP/1.1\r\n{self._headers(client)}\r\n".encode()

    def head(self, method: str, path: str, body_bytes: int, client: str = CONSUMER) -> bytes:
        """Everything before a JSON body of `body_bytes` bytes."""
        return (
            f"{method} {path} HTTP/1.1\r\n{self._headers(client)}"
            f"Content-Type: application/json\r\nContent-Length: {body_bytes}\r\n\r\n"
        ).encode()

    def request(self, method: str, path: str, body: bytes = b"", client: str = CONSUMER) -> bytes:
        """A whole request."""
        if body or method in ("POST", "PUT"):
            return self.head(method, path, len(body), client) + body
        return f"{method} {path}".encode() + self.tail(client)

    def _headers(self, client: str) -> str:
        credentials = f"X-Auth-Token: {self.token}\r\n" if self.token else ""
        return (
            f"Host: {self.host}:{self.port}\r\nClient-ID: {client}\r\n"
            f"X-Project-Id: {self.project}\r\nAccept: application/json\r\n{credentials}"
        )


def parse_answer(data: bytes) -> tuple[int, bytes, bool] | None:
    """Status, body, and whether the connection ends with this answer; None while bytes are missing.

    Only one request is under way on a connection, so bytes behind the answer are an error.
    """
    head_end = data.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    try:
        status = int(data[9:12])
    except ValueError:
        raise WrongAnswerError(f"no HTTP answer: {data[:80]!r}") from None
    body_start = head_end + 4
    closing = data.find(b"onnection: close", 0, head_end) >= 0 or data.startswith(b"HTTP/1.0")
    if status == 204:
        body_end = body_start
    else:
        length = _content_length(data, head_end)
        if length is None:
            body = _dechunk(data, body_start, head_end)
            return None if body is None else (status, body, closing)
        body_end = body_start + length
    if len(data) < body_end:
        return None
    if len(data) > body_end:
        raise WrongAnswerError(f"bytes behind the answer: {data[body_end : body_end + 80]!r}")
    return status, data[body_start:body_end], closing


def _content_length(data: bytes, head_end: int) -> int | None:
    at = data.find(b"content-length:", 0, head_end)
    if at < 0:
        at = data[:head_end].lower().find(b"content-length:")
    if at < 0:
        return None
    return int(data[at + 15 : data.find(b"\r\n", at)])


def _dechunk(data: bytes, at: int, head_end: int) -> bytes | None:
    """The body of a chunked answer, None while the last chunk is missing; trailers are not expected."""
    if b"chunked" not in data[:head_end].lower():
        raise WrongAnswerError(f"neither Content-Length nor chunks: {data[:head_end]!r}")
    if not data.endswith(b"0\r\n\r\n"):
        return None
    parts: list[bytes] = []
    while True:
        line_end = data.find(b"\r\n", at)
        if line_end < 0:
            return None
        size = int(data[at:line_end], 16)
        at = line_end + 2
        if size == 0:
            return b"".join(parts)
        if len(data) < at + size + 2:
            return None
        parts.append(data[at : at + size])
        at += size + 2
