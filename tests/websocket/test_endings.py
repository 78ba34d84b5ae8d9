"""What becomes of requests that are being carried out when their connection ends."""

from __future__ import annotations

import asyncio
import time
import uuid
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from nusku.errors import Unavailable
from nusku.model import Caller, Context, QueueKey
from nusku.websocket.actions import Answer, Call
from nusku.websocket.connection import Connection, Limits
from nusku.websocket.frames import Request
from nusku.websocket.session import CHECK_S, Parts, Session, Todo
from tests.live import LiveServer
from tests.websocket.conftest import Connect
from tests.websocket.peer import frame_bytes

LIMITS = Limits(1_000_000, 10.0, 10.0, 10.0)
KEY = QueueKey("queue", "mine", "q")


def caller(project: str) -> Caller:
    return Caller(project, frozenset(), "keystone", expires_s=time.time() + 1000)


class Wire:
    """A connection, as far as a session looks at it."""

    def __init__(self) -> None:
        self.closing = False
        self.drained: asyncio.Future[None] | None = None
        self.replies: list[Any] = []
        self.closed: list[int] = []

    def reply(self, data: bytes, binary: bool) -> None:
        self.replies.append((msgspec.msgpack if binary else msgspec.json).decode(data))

    def tell(self, data: bytes, binary: bool) -> bool:
        del data, binary
        return not self.closing

    def close(self, code: int, reason: str) -> None:
        del reason
        self.closed.append(code)
        self.closing = True


class Broker:
    """Makes a subscription when it is let, and remembers what it ended."""

    def __init__(self) -> None:
        self.listening = self
        self.begun, self.let = asyncio.Event(), asyncio.Event()
        self.ended: list[str] = []

    async def begin(self, *_: object) -> Any:
        self.begun.set()
        await self.let.wait()
        return SimpleNamespace(id="made", follower=SimpleNamespace(stop=lambda: None))

    async def end(self, listener: Any) -> None:
        self.ended.append(listener.id)


def session(wire: Wire, broker: Any = None, authentication: Any = None) -> Session:
    parts = SimpleNamespace(
        broker=broker,
        authentication=authentication or SimpleNamespace(required=True),
        metrics=SimpleNamespace(operation=lambda *_: None),
        log=SimpleNamespace(line=lambda *_: None),
        settings=SimpleNamespace(max_websockets_per_project=0),
        audit=None,
        base_url="",
        crowds={},
    )
    return Session(cast(Parts, parts), "", wire)


def subscribing(project: str) -> Todo:
    who = Context(project, "client", frozenset(), caller=caller(project))
    body = {"queue_name": "q"}
    request = Request(False, 10, "subscription_create", {}, body)
    return Todo(request, request.action, 0.0, call=Call(who, KEY, "q", body, 10))


def test_a_subscription_that_is_being_made_ends_with_the_connection() -> None:
    async def scenario() -> None:
        wire, broker = Wire(), Broker()
        mine = session(wire, broker)
        mine.trusted = True
        work = asyncio.create_task(mine.answer([subscribing("mine")]))
        await broker.begun.wait()
        wire.closing = True
        await mine.close()
        broker.let.set()
        await work
        assert broker.ended == ["made"]
        assert not mine.listens

    asyncio.run(scenario())


def test_it_ends_when_the_connection_belongs_to_another_project_by_then() -> None:
    async def scenario() -> None:
        wire, broker = Wire(), Broker()
        authentication = SimpleNamespace(required=True, known=lambda _: caller("other"))
        mine = session(wire, broker, authentication)
        mine.trusted = True
        work = asyncio.create_task(mine.answer([subscribing("mine")]))
        await broker.begun.wait()
        headers = {"X-Auth-Token": "t", "X-Project-ID": "other"}
        await mine.answer(
            [Todo(Request(False, 10, "authenticate", headers, None), "authenticate", 0.0)]
        )
        broker.let.set()
        await work
        assert broker.ended == ["made"]
        assert [reply["headers"]["status"] for reply in wire.replies] == [200, 403]
        assert not mine.listens

    asyncio.run(scenario())


class _Transport:
    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        """It goes nowhere."""


def test_what_is_under_way_is_finished_and_nothing_else_is_begun() -> None:
    async def scenario() -> None:
        begun, let, carried_out = asyncio.Event(), asyncio.Event(), list[str]()

        async def carry_out(name: str, _: Call) -> Answer:
            begun.set()
            await let.wait()
            carried_out.append(name)
            return Answer(200, {})

        def serving(line: Any) -> Session:
            made = session(line, authentication=SimpleNamespace(required=False))
            parts = cast(Any, made)._parts
            parts.actions = SimpleNamespace(carry_out=carry_out)
            cast(Any, made).read = lambda *_, **__: Todo(
                Request(False, 10), "queue_get", 0.0, call=cast(Call, SimpleNamespace())
            )
            return made

        connection = Connection(LIMITS, serving, "")
        left = asyncio.Event()
        connection.left = left.set
        connection.connection_made(cast(asyncio.Transport, _Transport()))
        connection.data_received(frame_bytes(1, b"{}") * 2)
        await begun.wait()
        connection.connection_lost(None)
        await asyncio.sleep(0)
        assert not left.is_set()  # the server waits for it, too, before it closes the store
        let.set()
        await left.wait()
        assert carried_out == ["queue_get"]

    asyncio.run(scenario())


def test_credentials_that_nobody_can_confirm_end_the_connection() -> None:
    async def scenario() -> None:
        asked = 0

        async def nobody(_: object) -> Caller:
            nonlocal asked
            asked += 1
            raise Unavailable("Keystone is down.")

        known: list[Caller | None] = [caller("mine")]
        authentication = SimpleNamespace(
            required=True, known=lambda _: known[0], caller=nobody, unsure_max_s=60.0
        )
        mine = session(Wire(), authentication=authentication)
        headers = {"X-Auth-Token": "t", "X-Project-ID": "mine"}
        authenticate = Todo(Request(False, 10, "authenticate", headers), "authenticate", 0.0)
        await mine.answer([authenticate])
        now = asyncio.get_running_loop().time()
        known[0] = None
        for seconds, welcome in ((CHECK_S, True), (2 * CHECK_S, True)):
            assert mine.look(now + seconds) is welcome
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert asked == 2
        assert mine.look(now + 2 * CHECK_S)
        authentication.unsure_max_s = -1.0  # as if so much time had passed
        assert mine.look(now + 3 * CHECK_S)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not mine.look(now + 3 * CHECK_S)

    asyncio.run(scenario())


def test_replies_that_are_read_late_are_all_there(connect: Connect) -> None:
    """More than a connection may hold for a slow reader of notifications."""
    peer = connect(timeout_s=30.0)
    for start in range(0, 120, 2):
        peer.post("q", *("x" * 100_000 + str(n) for n in range(start, start + 2)))
    pops = 6
    for _ in range(pops):
        peer.send(peer.request("message_delete_many", {"queue_name": "q", "pop": 20}))
    time.sleep(0.5)  # nobody reads; what could be thrown away would be by now
    popped = [m["body"].strip("x") for _ in range(pops) for m in peer.reply().body["messages"]]
    assert popped == [str(n) for n in range(120)]


def test_a_name_that_an_action_does_not_have_does_not_matter(connect: Connect) -> None:
    peer = connect()
    names: tuple[Any, ...] = (5, [1], {}, None)
    for name in names:
        assert peer.ask("queue_list", queue_name=name).status == 200


def test_projects_are_spelled_as_over_http(connect: Connect, server: LiveServer) -> None:
    peer = connect(project=f"caf\xe9-{uuid.uuid4().hex}")
    peer.done("queue_create", 201, queue_name="q")
    headers = {"Client-ID": peer.client_id, "X-Project-ID": peer.project.encode("latin-1")}
    found = server.client.get("/v2/queues", headers=list(headers.items())).json()["queues"]  # type: ignore[arg-type]
    assert [queue["name"] for queue in found] == ["q"]
    peer.project = "\u540d"
    assert peer.ask("queue_list").status == 400
