"""What came of a request is classed as the checker needs it, by one rule: never claim to know."""

from __future__ import annotations

import asyncio

import pytest

from tests.chaos.harness.client import Client
from tests.chaos.harness.history import FAIL, INFO, OK, Op

NOTHING = b"HTTP/1.1 204 No Content\r\n\r\n"
LISTED = b'{"messages": [], "links": []}'


class _Address:
    def __init__(self, address: tuple[str, int] | None) -> None:
        self.address = address


def _ask(answer: bytes | None, op: Op, deadline: float = 2.0) -> Op:
    """Carry out `op` against a server that always says `answer`; None: it says nothing."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def ask() -> Op:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            client = Client(_Address(server.sockets[0].getsockname()), "agent", 1, deadline)
            done = await client.perform(op)
            client.close()
            await asyncio.sleep(0.01)  # the server sees it
        return done

    return asyncio.run(ask())


def _answer(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("answer", "out"),
    [
        (_answer("200 OK", LISTED), OK),
        (_answer("404 Not Found", b"{}"), FAIL),
        (_answer("503 Service Unavailable", b"{}"), INFO),
        (_answer("500 Internal Server Error", b"{}"), INFO),
        (_answer("302 Found", b""), INFO),
        (_answer("200 OK", LISTED)[:-1], INFO),
        (_answer("200 OK", b"[]"), INFO),
        (b"HTTP/1.1 200 OK\r\n\r\n" + LISTED, INFO),
        (b"", INFO),
        (b"nonsense\r\n\r\n", INFO),
        (None, INFO),
    ],
)
def test_the_outcome_is_what_the_answer_allows(answer: bytes | None, out: str) -> None:
    assert _ask(answer, Op("list", q="a/q", limit=5), deadline=0.3).out == out


def test_an_answer_without_a_body_is_complete() -> None:
    assert _ask(NOTHING, Op("delete", q="a/q", id="x")).out == OK


@pytest.mark.parametrize("address", [None, ("127.0.0.1", 1)])
def test_what_was_never_sent_has_failed(address: tuple[str, int] | None) -> None:
    op = Op("post", q="a/q", p="p", ttl=60)
    assert asyncio.run(Client(_Address(address), "agent", 1).perform(op)).out == FAIL


def test_a_post_that_tells_of_too_few_messages_is_unknown() -> None:
    short = _answer("201 Created", b'{"resources": ["/v2/queues/q/messages/1"]}')
    assert _ask(short, Op("post", q="a/q", p="p", size=2, ttl=60)).out == INFO
