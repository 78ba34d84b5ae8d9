"""A name server that says what a test tells it to, and something else the next time.

    async with FakeDns() as dns:
        dns.tell("hook.test", ["127.0.0.3"])                      # always this
        dns.tell("rebinding.test", ["127.0.0.3"], ["127.0.0.1"])  # one after the other, and again
        dns.tell("mixed.test", ["127.0.0.3", "::1"])              # both at once
        dns.tell("alias.test", ["hook.test"])                     # a CNAME, with what it leads to
        Settings(nameservers=(dns.address,), ...)

Speaks UDP on 127.0.0.1 (RFC 1035), as a resolver that has looked everything up: an answer follows
aliases to their end. Nothing may be cached (TTL 0). Other names do not exist.
"""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from collections.abc import Sequence
from ipaddress import ip_address
from types import TracebackType
from typing import Self

A, CNAME, AAAA = 1, 5, 28
_IN = 1
_ANSWER, _ASKED_FOR_RECURSION, _HAVE_RECURSION, _NO_SUCH_NAME = 0x8000, 0x0100, 0x0080, 3
_HEAD = struct.Struct("!6H")
_QUESTION_END = struct.Struct("!2H")
_RECORD = struct.Struct("!2HIH")
_ALIASES_MAX = 16

Answer = tuple[str, int, bytes]
"""Owner, type and data of a record."""


class FakeDns(asyncio.DatagramProtocol):
    """The server; `asked` counts the questions by name and type."""

    def __init__(self) -> None:
        self.asked: Counter[tuple[str, int]] = Counter()
        self._told: dict[str, Sequence[Sequence[str]]] = {}
        self._transport: asyncio.DatagramTransport | None = None

    def tell(self, name: str, *sets: Sequence[str]) -> None:
        """What the name means: one set after the other, addresses of both families and names.

        Each type of question goes through the sets for itself.
        """
        self._told[name.lower()] = sets

    @property
    def address(self) -> str:
        """As the setting `nameservers` takes it."""
        assert self._transport is not None, "not running"
        host, port = self._transport.get_extra_info("sockname")
        return f"{host}:{port}"

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(
            lambda: self, local_addr=("127.0.0.1", 0)
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._transport is not None:
            self._transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self._transport is not None
        self._transport.sendto(self._reply(data), addr)

    def _reply(self, query: bytes) -> bytes:
        id_, flags, *_ = _HEAD.unpack_from(query)
        name, end = _read_name(query, _HEAD.size)
        kind, _ = _QUESTION_END.unpack_from(query, end)
        question = query[_HEAD.size : end + _QUESTION_END.size]
        answers = self._look_up(name, kind)
        flags = _ANSWER | flags & _ASKED_FOR_RECURSION | _HAVE_RECURSION
        if name not in self._told:
            flags |= _NO_SUCH_NAME
        head = _HEAD.pack(id_, flags, 1, len(answers), 0, 0)
        return head + question + b"".join(_record(*answer) for answer in answers)

    def _look_up(self, name: str, kind: int) -> list[Answer]:
        """The records for a question, aliases first. Counts as a question for every name."""
        answers: list[Answer] = []
        for _ in range(_ALIASES_MAX):
            number = self.asked[name, kind]
            self.asked[name, kind] += 1
            sets = self._told.get(name)
            if not sets:
                break
            alias = ""
            for value in sets[number % len(sets)]:
                try:
                    ip = ip_address(value)
                except ValueError:
                    alias = value.lower()
                    continue
                if kind == (A if ip.version == 4 else AAAA):
                    answers.append((name, kind, ip.packed))
            if not alias:
                break
            answers.append((name, CNAME, _name(alias)))
            name = alias
        return answers


def _read_name(data: bytes, at: int) -> tuple[str, int]:
    """A name in lower case, and where it ends; questions are not compressed."""
    labels = []
    while length := data[at]:
        labels.append(data[at + 1 : at + 1 + length].decode("ascii", "replace"))
        at += 1 + length
    return ".".join(labels).lower(), at + 1


def _name(text: str) -> bytes:
    labels = text.encode().split(b".")
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def _record(name: str, kind: int, data: bytes) -> bytes:
    return _name(name) + _RECORD.pack(kind, _IN, 0, len(data)) + data
