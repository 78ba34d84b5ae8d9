"""Who is at the other end of a connection, and what they ask: requests in, replies out, in order."""

import asyncio
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec
import structlog

from nusku.audit import MANAGEMENT, Audit
from nusku.auth import Authentication
from nusku.broker import Broker, Listener, View, permit, rules
from nusku.config import Settings
from nusku.errors import (
    Conflict,
    Forbidden,
    Invalid,
    NuskuError,
    Unauthorized,
    Unavailable,
)
from nusku.logs import RequestLog
from nusku.metrics import Metrics
from nusku.model import PROJECT_MAX, Caller, Context, QueueKey
from nusku.shapes import encode
from nusku.websocket import frames
from nusku.websocket.actions import (
    ACTIONS,
    NOT_ALLOWED,
    Action,
    Actions,
    Answer,
    Call,
    fits,
    not_subscribed,
    refusal,
    subscribed,
    subscription_of,
)
from nusku.websocket.frames import (
    ENVELOPE_BYTES,
    POLICY,
    TOO_BIG,
    Frames,
    Request,
    Undecodable,
    queue_name,
)

log = structlog.get_logger("nusku.websocket")

CHECK_S = 2.0  # between two looks whether credentials still hold
TOGETHER_MAX = 16  # requests that are carried out at the same time, or as one
TOGETHER_BYTES_MAX = 262_144
REFUSED_MAX = 100  # requests of somebody who has not proved who they are

AUTHENTICATE = "authenticate"
_INVALID = Answer(400, {"error": "Schema validation failed."})
_STRANGER = Answer(403, NOT_ALLOWED)
_CROWDED = "There are too many WebSockets of the project."
_FAILED = Answer(
    500, {"exception": "The request id is in the server's log.", "error": "Unexpected error."}
)
_AUTHENTICATED = {"message": "Authentified."}
_SIGNATURE = "URL-Signature"
# What a request may say of who asks, where everybody is believed, beside client and project.
_IDENTITY = ("X-Roles", "X-User-Id", "X-USER-ID", "X-ROLES", "X-Auth-Token")


class Line(Protocol):
    """A connection, as its session sees it. ``drained`` is there while the client has to read."""

    closing: bool
    drained: asyncio.Future[None] | None

    def reply(self, data: bytes, binary: bool) -> None:
        """Send a reply; nothing happens when the connection is closing."""

    def tell(self, data: bytes, binary: bool) -> bool:
        """Send a notification; False when no more is taken."""
        ...

    def close(self, code: int, reason: str) -> None:
        """End the connection."""


class Parts(NamedTuple):
    """What all sessions of a server share."""

    broker: Broker
    settings: Settings
    authentication: Authentication
    metrics: Metrics
    log: RequestLog
    audit: Audit | None
    frames: Frames
    actions: Actions
    base_url: str  # by which a connection calls itself as a subscriber
    crowds: dict[str, int]  # connections by the project that was proved on them


class Todo(msgspec.Struct):
    """A request on its way: what it is answered, or what is to be done."""

    request: Request
    name: str
    started_s: float
    operation: str = "websocket:unknown"
    answer: Answer | None = None
    call: Call | None = None
    alike: bool = False
    refusal: str = ""  # why it was refused for what the caller is
    ctx: Context | None = None
    queue: str = ""


class Session:
    """One connection.

    ``stranger``: nobody has proved yet who they are, and that is needed. ``trusted``: they have, if
    only for single requests.
    """

    def __init__(
        self,
        parts: Parts,
        address: str,
        line: Line,
    ) -> None:
        self.id = str(uuid.uuid4())
        self.stranger = parts.authentication.required
        self.trusted = not self.stranger
        self.expires_s = math.inf  # since the epoch
        self._parts = parts
        self._address = address
        self._line = line
        self._project: str | None = None  # that it counts for
        self._refused = 0
        self._caller: Caller | None = None
        self._token = b""
        self._authenticating: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._checking: asyncio.Task[None] | None = None
        self._checked_s = 0.0  # by the loop's clock
        self._confirmed_s = 0.0  # when the credentials were last known to be valid
        self._count = 0
        self._seen: tuple[Any, Context] | None = None
        self._listeners: dict[str, Listener] = {}
        self._binary = False  # how notifications are spelled

    # -- requests

    def read(self, data: bytes, *, binary: bool) -> Todo:
        """What a frame asks for; its answer, if that can be said already."""
        started_s = time.perf_counter()
        try:
            request = self._parts.frames.read(data, binary=binary)
        except Undecodable as error:
            request = Request(binary, len(data))
            answer = Answer(400, {"error": str(error)})
            return Todo(request, "", started_s, answer=answer)
        name = request.action
        todo = Todo(request, name if isinstance(name, str) else "", started_s)
        headers = request.headers
        if name == AUTHENTICATE:
            todo.operation = "websocket:authenticate"
            if not _are_strings(headers, "X-Auth-Token", "X-Project-ID", missing=self._believed()):
                todo.answer = _INVALID
            return todo
        action = ACTIONS.get(todo.name)
        if action is None:
            todo.answer = Answer(400, {"error": f"{name} is not a valid action"})
            return todo
        todo.operation, todo.alike = action.operation, action.alike
        if not _are_strings(headers, "Client-ID", "X-Project-ID") or not (
            isinstance(request.body, msgspec.Raw) or fits(action, _members(request.body))
        ):
            todo.answer = _INVALID
        return todo

    def _welcome(self, todo: Todo) -> bool:
        """Whether so large a frame is taken of whoever sent it."""
        headers = todo.request.headers
        return (
            todo.request.size <= ENVELOPE_BYTES
            or self.trusted
            or (isinstance(headers, dict) and bool(headers.get(_SIGNATURE)))
        )

    def _believed(self) -> bool:
        return not self._parts.authentication.required

    async def answer(self, todos: Sequence[Todo]) -> None:
        """Carry out requests that came together, and answer them in their order.

        Posts to one queue that follow each other are one post; others that are alike and follow
        each other are done at the same time; the rest one after the other. None is begun before
        the client has read what it was sent, nor when the connection is over.
        """
        at = 0
        while at < len(todos):
            if self._line.drained is not None:
                await self._line.drained
            if self._line.closing:
                return
            todo = todos[at]
            if not self._welcome(todo):
                self._line.close(TOO_BIG, "The message is too big for who is not authenticated.")
                return
            if todo.name == AUTHENTICATE and todo.answer is None:
                self._authenticate(todo)
                at += 1
                continue
            await self._prepare(todo)
            run = [todo]
            while todo.call is not None and at + len(run) < len(todos):
                following = todos[at + len(run)]
                if not await self._goes_with(todo, following):
                    break
                run.append(following)
            if len(run) == 1:
                await self._carry_out(todo)
            elif todo.name == "message_post":
                await self._post_together(run)
            else:
                await asyncio.gather(*map(self._carry_out, run))
            for one in run:
                self._reply(one)
            at += len(run)

    async def _goes_with(self, first: Todo, other: Todo) -> bool:
        if other.name != first.name or not (first.alike or first.name == "message_post"):
            return False
        if other.answer is not None:
            return False
        if other.call is None:
            await self._prepare(other)
        if other.call is None or first.call is None:
            return False
        return first.alike or (
            other.call.key == first.call.key and other.call.ctx is first.call.ctx
        )

    async def _prepare(self, todo: Todo) -> None:
        """See who asks, and whether they may; then there is a call, else an answer."""
        if todo.answer is not None or todo.call is not None:
            return
        try:
            todo.call = await self._call(todo, ACTIONS[todo.name])
        except Undecodable as error:
            todo.request = Request(todo.request.binary, todo.request.size)
            todo.answer = Answer(400, {"error": str(error)})
        except NuskuError as problem:
            self._refuse(todo, problem)
        except Exception as error:
            log.error("unexpected error", request_id=self._request_id(1), exc_info=error)
            todo.answer = _FAILED

    async def _call(self, todo: Todo, action: Action) -> Call | None:
        """What is to be done; None if it is answered. Raises Undecodable, too."""
        headers = todo.request.headers
        name = queue_name(todo.request) if "queue_name" in action.required else ""
        ctx = self._context(action, headers, name)
        todo.ctx, todo.queue = ctx, name
        rates = self._parts.broker.rates
        if rates.limited:
            rates.take(ctx.caller.project if ctx.caller else ctx.project)
        body = _members(todo.request.body)
        if isinstance(body, msgspec.Raw):
            body = _members(self._parts.frames.body(todo.request))
            if not fits(action, body) or (name and body["queue_name"] != name):
                todo.answer = _INVALID
                return None
        key = QueueKey("queue", ctx.project, name)
        if action.creates:
            rules.check_key(key)
        elif not rules.legal_key(key):
            key = key._replace(name="")  # there is none, as of what nobody could have created
        owner = headers.get("Queue-Project-ID", "")
        if owner or not permit.policy(ctx, action.operation):
            ctx = await self._parts.broker.grants.enter(
                ctx, action.operation, key if name else None, str(owner)
            )
            todo.ctx, key = ctx, key._replace(project=ctx.project)
        return Call(ctx, key, name, body, todo.request.size)

    def _context(self, action: Action, headers: Mapping[str, Any], queue: str) -> Context:
        """Who asks. Raises Forbidden, and what HTTP says of the headers that it also has."""
        client, project = headers["Client-ID"], headers["X-Project-ID"]
        signed = bool(headers.get(_SIGNATURE))
        if not signed:
            if self.stranger or time.time() >= self.expires_s:
                raise Forbidden("The connection is not authenticated.")
            if self._caller is not None and project != self._caller.project:
                raise Forbidden("The credentials are for another project.")
        who = (client, project, *map(headers.get, _IDENTITY)) if not signed else None
        if who is not None and self._seen is not None and self._seen[0] == who:
            return self._seen[1]
        head = {b"client-id": _header(client), b"x-project-id": _header(project)}
        if signed:
            caller = self._signed(action, headers, queue, head)
            if caller is None:
                raise Forbidden("The signature does not allow this request.")
            if self.stranger and self._project is None and not self._enter(caller.project):
                raise Unavailable(_CROWDED)
            self.trusted = True
            return self._parts.authentication.context(head, caller)
        if self._caller is not None:
            head[b"x-auth-token"] = self._token
        else:
            for name in _IDENTITY:
                if isinstance(headers.get(name), str):
                    head[name.lower().encode()] = _header(headers[name])
        ctx = self._parts.authentication.context(head, self._caller)
        self._seen = (who, ctx)
        return ctx

    def _signed(
        self,
        action: Action,
        headers: Mapping[str, Any],
        queue: str,
        head: dict[bytes, bytes],
    ) -> Caller | None:
        """Who was given the signature (contract websocket.md section 4), if it allows this."""
        fields: dict[str, Any] = {
            _SIGNATURE: [headers[_SIGNATURE]],
            "URL-Expires": [headers.get("URL-Expires")],
            "URL-Methods": headers.get("URL-Methods"),
            "URL-Paths": headers.get("URL-Paths"),
        }
        for name, values in fields.items():
            if not isinstance(values, list):
                return None
            if not all(isinstance(one, str) and "," not in one for one in values):
                return None
            head[name.lower().encode()] = _header(",".join(values))
        if not action.method:
            return None
        path = f"/v2/queues/{queue}/messages"
        return self._parts.authentication.signed(action.method, path, head)

    async def _carry_out(self, todo: Todo) -> None:
        if todo.call is None or todo.answer is not None:
            return
        try:
            if todo.name == "subscription_create":
                todo.answer = await self._subscribe(todo.call, binary=todo.request.binary)
            else:
                todo.answer = await self._parts.actions.carry_out(todo.name, todo.call)
        except NuskuError as problem:
            self._refuse(todo, problem)
        except Exception as error:
            log.error("unexpected error", request_id=self._request_id(1), exc_info=error)
            todo.answer = _FAILED

    async def _post_together(self, run: Sequence[Todo]) -> None:
        calls = [todo.call for todo in run if todo.call is not None]
        try:
            answers = await self._parts.actions.post_together(calls)
        except NuskuError as problem:
            if problem.status >= 500:
                for todo in run:  # some may have been stored, by what is known here
                    self._refuse(todo, problem)
                return
            # Nothing was stored, and not all of them need be wrong.
            for todo in run:
                await self._carry_out(todo)
            return
        except Exception as error:
            log.error("unexpected error", request_id=self._request_id(1), exc_info=error)
            for todo in run:
                todo.answer = _FAILED
            return
        for todo, answer in zip(run, answers, strict=True):
            todo.answer = answer

    def _refuse(self, todo: Todo, problem: NuskuError) -> None:
        if isinstance(problem, Forbidden):
            todo.refusal = problem.detail
        todo.answer = refusal(problem)

    def _reply(self, todo: Todo, request: Request | None = None) -> None:
        assert todo.answer is not None  # noqa: S101 - nothing is left without an answer
        status, body = todo.answer
        self._note(todo, status)
        self._line.reply(frames.reply(request or todo.request, status, body), todo.request.binary)
        if status >= 400 and not self.trusted:
            self._refused += 1
            if self._refused >= REFUSED_MAX:
                self._line.close(POLICY, "Too many requests were refused.")

    def _note(self, todo: Todo, status: int) -> None:
        parts, ctx = self._parts, todo.ctx
        seconds = time.perf_counter() - todo.started_s
        parts.metrics.operation(todo.operation, status, seconds)
        self._count += 1
        parts.log.line(
            self._request_id(),
            ctx.project[:PROJECT_MAX] if ctx else "",
            todo.operation,
            status,
            seconds * 1000,
        )
        if parts.audit is not None and (todo.refusal or todo.operation in MANAGEMENT):
            parts.audit.request(
                todo.operation,
                f"/v2/queues/{todo.queue}" if todo.queue else "/v2/websocket",
                status,
                refusal=todo.refusal,
                ctx=ctx,
                caller=ctx.caller if ctx else self._caller,
                method="websocket",
                address=self._address,
                request_id=self._request_id(),
            )

    def _request_id(self, ahead: int = 0) -> str:
        """Names a request in the log; connections are not told, since replies have no place for it."""
        return f"ws-{self.id}-{self._count + ahead}"

    # -- who asks

    def _authenticate(self, todo: Todo) -> None:
        """Answered when it is known, while other requests go on as they would have before."""
        if self._believed():
            self._let_in(todo)
            return
        if self._authenticating is not None:
            todo.answer = _STRANGER
            self._reply(todo)
            return
        token = todo.request.headers["X-Auth-Token"]
        head = {b"x-auth-token": token.encode("latin-1", "replace")}
        known = self._parts.authentication.known(head)
        if known is not None:
            self._let_in(todo, known, head)
        else:
            self._authenticating = asyncio.create_task(self._find_out(todo, head))

    async def _find_out(self, todo: Todo, head: Mapping[bytes, bytes]) -> None:
        try:
            self._let_in(todo, await self._parts.authentication.caller(head), head)
        except Unauthorized as problem:
            todo.refusal = problem.why
            self._keep_out(todo, problem.status)
        except NuskuError as problem:
            self._keep_out(todo, problem.status)
        except Exception as error:
            log.error("unexpected error", request_id=self._request_id(1), exc_info=error)
            self._keep_out(todo, 500)
        finally:
            self._authenticating = None

    def _let_in(
        self, todo: Todo, caller: Caller | None = None, head: Mapping[bytes, bytes] | None = None
    ) -> None:
        if caller is not None and head is not None:
            if caller.project != todo.request.headers["X-Project-ID"]:
                todo.refusal = "the credentials are for another project"
                self._keep_out(todo, 403)
                return
            if not self._enter(caller.project):
                self._keep_out(todo, 503, _CROWDED)
                return
            if self._caller is not None and self._caller.project != caller.project:
                self._ending = asyncio.create_task(self._end_listeners())
            self.stranger, self.trusted, self._caller, self._seen = False, True, caller, None
            self._token, self.expires_s = head[b"x-auth-token"], caller.expires_s
            self._confirmed_s = asyncio.get_running_loop().time()
        todo.answer = Answer(200, _AUTHENTICATED)
        self._reply_bare(todo)

    def _keep_out(self, todo: Todo, status: int, why: str = "Authentication failed.") -> None:
        todo.answer = Answer(status, {"error": why})
        self._reply_bare(todo)

    def _enter(self, project: str) -> bool:
        """Count for a project, and no other one any more; False if that has too many already."""
        crowds, most = self._parts.crowds, self._parts.settings.max_websockets_per_project
        if project == self._project:
            return True
        if self._line.closing or (most and crowds.get(project, 0) >= most):
            return False
        self._leave()
        self._project = project
        crowds[project] = crowds.get(project, 0) + 1
        return True

    def _leave(self) -> None:
        project, self._project = self._project, None
        if project is not None:
            crowds = self._parts.crowds
            crowds[project] -= 1
            if not crowds[project]:
                del crowds[project]

    def _reply_bare(self, todo: Todo) -> None:
        request = Request(todo.request.binary, todo.request.size, AUTHENTICATE)
        self._reply(todo, request)

    def look(self, now: float) -> bool:
        """Whether whoever is connected is still welcome; asks again now and then."""
        if time.time() >= self.expires_s:
            return False
        if self._caller is not None and now - self._checked_s >= CHECK_S:
            self._checked_s = now
            head = {b"x-auth-token": self._token}
            caller = self._parts.authentication.known(head)
            if caller is not None:
                self._renew(caller)
            elif self._checking is None:
                self._checking = asyncio.create_task(self._check(head))
        return True

    async def _check(self, head: Mapping[bytes, bytes]) -> None:
        before = self._caller
        try:
            caller = await self._parts.authentication.caller(head)
            if self._caller is before:
                self._renew(caller)
        except Unauthorized:
            if self._caller is before:
                self.expires_s = 0.0
        except NuskuError as error:  # nobody can say; they were valid a moment ago
            log.warning("credentials could not be checked", reason=error.detail)
            unsure_s = asyncio.get_running_loop().time() - self._confirmed_s
            if self._caller is before and unsure_s > self._parts.authentication.unsure_max_s:
                self.expires_s = 0.0
        finally:
            self._checking = None

    def _renew(self, caller: Caller) -> None:
        """The same credentials, which may mean something else by now."""
        self._confirmed_s = asyncio.get_running_loop().time()
        if caller is not self._caller:
            same = self._caller is not None and self._caller.project == caller.project
            self._caller, self._seen = caller, None
            self.expires_s = caller.expires_s if same else 0.0

    # -- subscriptions

    async def _subscribe(self, call: Call, *, binary: bool) -> Answer:
        """Without a subscriber it is the connection itself that is told."""
        if "subscriber" in call.body:
            return await self._parts.actions.subscribe(call)
        document = {**subscription_of(call), "subscriber": f"{self._parts.base_url}/{self.id}"}
        try:
            listener = await self._parts.broker.listening.begin(
                call.ctx, call.key, document, self._told
            )
        except Conflict:
            return not_subscribed(call)
        asked, caller = call.ctx.caller, self._caller
        if self._line.closing or (asked and caller and asked.project != caller.project):
            # Meanwhile the connection has ended, or belongs to another project.
            await self._parts.broker.listening.end(listener)
            raise Forbidden("The credentials are for another project.")
        self._listeners[listener.id] = listener
        self._binary = binary
        return subscribed(call, listener.id)

    def _told(self, view: View) -> bool:
        """Notifications (contract notifications.md section 2), one a message."""
        for message in view.messages:
            document = {
                "body": msgspec.Raw(message.body),
                "ttl": message.ttl_s,
                "queue_name": view.key.name,
                "Message_Type": "Notification",
            }
            if not self._line.tell(
                frames.spelled(encode(document), binary=self._binary), self._binary
            ):
                return False
        return True

    @property
    def listens(self) -> bool:
        return bool(self._listeners)

    async def close(self) -> None:
        """The connection is over: so are its own subscriptions."""
        self._leave()
        for task in (self._authenticating, self._checking):
            if task is not None:
                task.cancel()
        await self._end_listeners()

    async def _end_listeners(self) -> None:
        listeners, self._listeners = list(self._listeners.values()), {}
        for listener in listeners:
            listener.follower.stop()
        for listener in listeners:
            await self._parts.broker.listening.end(listener)


def _are_strings(headers: Any, *names: str, missing: bool = False) -> bool:
    """Whether these are there, as strings. ``missing``: they may be missing or null instead."""
    if not isinstance(headers, dict):
        return False
    return all(
        isinstance(value := headers.get(name), str) or (missing and value is None) for name in names
    )


def _header(text: str) -> bytes:
    """A value as HTTP has it. Raises Invalid for one that it could not have."""
    if not text.isprintable():
        raise Invalid("A header has control characters in it.")
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise Invalid("A header has characters in it that are not in Latin-1.") from None


def _members(body: Any) -> Any:
    """A body, which may be missing."""
    return {} if body is None else body
