"""A real `nusku serve` in a process of its own, and small helpers that talk to it over sockets.

`LiveServer` starts and stops the program; `Api` sends well-formed requests as one client of one
project; `raw_exchange` and `RawConnection` send whatever bytes a test likes.
"""

from __future__ import annotations

import http.client
import os
import re
import select
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx

from tests import canaries, forking
from tests.servers.stores import store_in

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
PATCH_TYPE = "application/openstack-messaging-v2.0-json-patch"

# Nodes that share a store need the same keys, so none makes any.
SHARED_KEY = "0123456789abcdef" * 4

SettingValue = str | int | float | bool | Sequence[str]


class ServerDidNotStart(Exception):
    """The process ended, or printed something else, instead of telling its address."""


def settings_environment(settings: Mapping[str, SettingValue]) -> dict[str, str]:
    """The environment for a server: this one's without NUSKU_*, plus the given settings.

    Many servers run beside one another, so none of them has the default port for WebSocket.
    """
    settings = {"websocket_port": 0} | dict(settings)
    environment = {k: v for k, v in os.environ.items() if not k.upper().startswith("NUSKU_")}
    if environment.pop("PYTHONDONTWRITEBYTECODE", None):
        # Many servers are started: compiling the program each time would take most of the time.
        environment["PYTHONPYCACHEPREFIX"] = str(Path(tempfile.gettempdir()) / "nusku-bytecode")
    for name, value in settings.items():
        if isinstance(value, bool):
            text = "true" if value else "false"
        elif isinstance(value, (str, int, float)):
            text = str(value)
        else:
            text = ",".join(value)
        environment[f"NUSKU_{name.upper()}"] = text
    return environment


class LiveServer:
    """One running server. `folder` names its store, and holds it if it is an embedded one, and
    what it wrote to stderr.
    """

    kind = "sqlite"
    """That of all stores of a run."""

    def __init__(self, folder: Path, **settings: SettingValue) -> None:
        self.folder = folder
        self.store = store_in(self.kind, folder)
        self.settings = {"log_level": "debug", **canaries.SETTINGS, **settings}
        if self.kind != "sqlite":
            shared = {"secret_key": SHARED_KEY, "encryption_keys": SHARED_KEY[::-1]}
            self.settings = {**shared, **self.settings}
        if self.kind == "redis-cluster":
            self.settings = {"redis_replicas": 1, **self.settings}
        self.database = folder / "nusku.db"
        self.log_file = folder / f"stderr-{uuid.uuid4().hex[:8]}.log"
        self._watch = canaries.Watch(self.settings)
        self._process: forking.Process | None = None
        self._client: httpx.Client | None = None
        self.url = ""

    def start(self, *, afresh: bool = False) -> Self:
        """Start the process and wait for the line with its address; raises ServerDidNotStart.

        ``afresh`` is for tests of the start: see `forking.start`.
        """
        arguments = ["serve", "--port", "0", "--store", self.store]
        environment = settings_environment(self.settings)
        with self.log_file.open("ab") as log:
            self._process = forking.start(arguments, environment, self.folder, log, afresh=afresh)
        line = self._first_line()
        said = re.fullmatch(r"nusku listening on (https?://\S+)\n", line)
        if said is None:
            self.kill()
            raise ServerDidNotStart(f"stdout: {line!r}; stderr: {self.log()[-4000:]}")
        self.url = said[1]
        self._client = httpx.Client(
            base_url=self.url, timeout=30.0, verify=False, event_hooks=self._watch.hooks()
        )
        return self

    def _first_line(self) -> str:
        stdout = self.process.stdout
        assert stdout is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        text = b""
        while not text.endswith(b"\n") and (left := deadline - time.monotonic()) > 0:
            if select.select([stdout], [], [], left)[0]:
                chunk = os.read(stdout.fileno(), 1)
                if not chunk:
                    break
                text += chunk
        return text.decode()

    @property
    def process(self) -> forking.Process:
        assert self._process is not None, "the server was not started"
        return self._process

    @property
    def client(self) -> httpx.Client:
        """Connections shared by every `Api` of this server."""
        assert self._client is not None, "the server was not started"
        return self._client

    def log(self) -> str:
        """What the process has written to stderr."""
        return self.log_file.read_text(errors="replace")

    def terminate(self) -> None:
        """Ask for a clean stop and return at once."""
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Stop cleanly, and check that it was clean: exit code 0, one line on stdout, no traceback."""
        if self.process.returncode is not None:
            return
        self.terminate()
        self.wait_until_ended()

    def wait_until_ended(self) -> None:
        """Wait for the end of an asked-for stop and check that it was clean."""
        try:
            more, _ = self.process.communicate(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"no end {STOP_TIMEOUT_S} s after SIGTERM: {self.log()[-4000:]}"
            ) from None
        self._forget()
        assert self.process.returncode == 0, self.log()[-4000:]
        assert more == b"", "stdout holds nothing but the line with the address"
        trace = self.log().find("Traceback (most recent call last)")
        assert trace < 0, self.log()[max(trace - 500, 0) : trace + 4000]

    def kill(self) -> None:
        """End the process with no chance to tidy up."""
        self.process.kill()
        self.process.communicate()
        self._forget()

    def _forget(self) -> None:
        if self._client is not None:
            self._client.close()
        keys = self.folder.glob("*.key") if self.kind == "sqlite" else ()
        self._watch.insist_on_log(self.log_file, *keys)

    def insist_on_metrics(self) -> None:
        """No secret is in what it tells of itself."""
        self._watch.insist(self.client.get("/metrics").text, "the metrics")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.stop()
        elif self.process.returncode is None:
            self.kill()

    def api(self, project: str | None = None, client_id: str | None = None) -> Api:
        """A client of this server, in a project of its own unless one is named."""
        return Api(
            self,
            project=project or f"project-{uuid.uuid4().hex}",
            client_id=client_id or str(uuid.uuid4()),
        )


@dataclass(frozen=True)
class Kind:
    """Queues or topics: the same behaviour under another noun."""

    noun: str
    """`queues` or `topics`: the path segment and the key of listings."""
    defaults: Mapping[str, Any]
    """What GET shows for reserved keys that are not stored."""

    @property
    def bad_name_title(self) -> str:
        return f"Invalid {self.noun.removesuffix('s')} identification"


QUEUES = Kind(
    "queues",
    {
        "_max_messages_post_size": 262144,
        "_default_message_ttl": 3600,
        "_default_message_delay": 0,
        "_dead_letter_queue": None,
        "_dead_letter_queue_messages_ttl": None,
        "_max_claim_count": None,
        "_enable_encrypt_messages": False,
    },
)
TOPICS = Kind(
    "topics",
    {
        "_max_messages_post_size": 262144,
        "_default_message_ttl": 3600,
        "_default_message_delay": 0,
    },
)


@dataclass(frozen=True)
class Api:
    """Requests of one client in one project; every method returns the answer, whatever it is."""

    server: LiveServer
    project: str
    client_id: str
    kind: Kind = QUEUES
    extra: Mapping[str, str] = field(default_factory=dict)

    def but(
        self,
        *,
        project: str | None = None,
        client_id: str | None = None,
        kind: Kind | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> Api:
        """The same with something changed."""
        return Api(
            self.server,
            project or self.project,
            client_id or self.client_id,
            kind or self.kind,
            self.extra if extra is None else extra,
        )

    def somebody_else(self) -> Api:
        """Another client of the same project."""
        return self.but(client_id=str(uuid.uuid4()))

    def stranger(self) -> Api:
        """The same client in another project."""
        return self.but(project=f"project-{uuid.uuid4().hex}")

    @property
    def headers(self) -> dict[str, str]:
        return {"Client-ID": self.client_id, "X-Project-ID": self.project, **self.extra}

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        **rest: Any,
    ) -> httpx.Response:
        """Send one request. `json=…` and `content=…` as in httpx; paths start with a slash."""
        sent: dict[str, str] | Mapping[str, str] = self.headers if headers is None else headers
        return self.server.client.request(method, path, headers={**sent}, **rest)

    def get(self, path: str, **rest: Any) -> httpx.Response:
        return self.request("GET", path, **rest)

    def put(self, path: str, **rest: Any) -> httpx.Response:
        return self.request("PUT", path, **rest)

    def delete(self, path: str, **rest: Any) -> httpx.Response:
        return self.request("DELETE", path, **rest)

    def send(
        self, method: str, path: str, document: str | bytes, content_type: str = "application/json"
    ) -> httpx.Response:
        """Send these very bytes as a body."""
        content = document.encode() if isinstance(document, str) else document
        headers = {**self.headers, "Content-Type": content_type}
        return self.request(method, path, headers=headers, content=content)

    # -- queues and topics ---------------------------------------------------------------------

    def path(self, queue: str, *rest: str) -> str:
        """The path of a queue, or of something below it."""
        return "/".join([f"/v2/{self.kind.noun}/{quote(queue, safe='')}", *rest])

    def create(self, queue: str, metadata: Any = None) -> httpx.Response:
        if metadata is None:
            return self.put(self.path(queue))
        return self.put(self.path(queue), json=metadata)

    def show(self, queue: str) -> httpx.Response:
        return self.get(self.path(queue))

    def drop(self, queue: str) -> httpx.Response:
        return self.delete(self.path(queue))

    def patch(self, queue: str, operations: Any, content_type: str = PATCH_TYPE) -> httpx.Response:
        headers = {**self.headers, "Content-Type": content_type}
        return self.request("PATCH", self.path(queue), headers=headers, json=operations)

    def list_queues(self, query: str = "") -> httpx.Response:
        return self.get(f"/v2/{self.kind.noun}{query}")

    def names(self, query: str = "") -> list[str]:
        """The names on one page of the listing."""
        return [entry["name"] for entry in expect(self.list_queues(query), 200)[self.kind.noun]]

    def stats(self, queue: str) -> dict[str, Any]:
        """The inside of the statistics of a queue."""
        inside: dict[str, Any] = expect(self.get(self.path(queue, "stats")), 200)["messages"]
        return inside

    def purge(self, queue: str, *resource_types: str) -> httpx.Response:
        if not resource_types:
            return self.request("POST", self.path(queue, "purge"))
        return self.request(
            "POST", self.path(queue, "purge"), json={"resource_types": resource_types}
        )

    # -- messages ------------------------------------------------------------------------------

    def post(self, queue: str, *messages: Any) -> httpx.Response:
        return self.request("POST", self.path(queue, "messages"), json={"messages": messages})

    def post_bodies(self, queue: str, *bodies: Any, **fields: Any) -> list[str]:
        """Post one message per body, all with these fields; return their ids."""
        answer = self.post(queue, *({"body": body, **fields} for body in bodies))
        return ids_of(answer)

    def list_messages(self, queue: str, query: str = "") -> httpx.Response:
        return self.get(self.path(queue, "messages") + query)

    def listed(self, queue: str, query: str = "?echo=true") -> list[Any]:
        """The bodies on one page of the listing; own messages too, unless asked otherwise."""
        page = expect(self.list_messages(queue, query), 200)
        return [message["body"] for message in page["messages"]]

    def message(self, queue: str, message_id: str) -> httpx.Response:
        return self.get(self.path(queue, "messages", quote(message_id, safe="")))

    def messages(self, queue: str, ids: Sequence[str]) -> httpx.Response:
        return self.get(self.path(queue, "messages") + "?ids=" + ",".join(ids))

    def delete_message(
        self, queue: str, message_id: str, claim_id: str | None = None
    ) -> httpx.Response:
        query = "" if claim_id is None else f"?claim_id={quote(claim_id, safe='')}"
        return self.delete(self.path(queue, "messages", quote(message_id, safe="")) + query)

    def delete_messages(self, queue: str, ids: Sequence[str]) -> httpx.Response:
        return self.delete(self.path(queue, "messages") + "?ids=" + ",".join(ids))

    def pop(self, queue: str, count: int | str = 1) -> httpx.Response:
        return self.delete(self.path(queue, "messages") + f"?pop={count}")

    def popped(self, queue: str, count: int = 20) -> list[Any]:
        """The bodies of up to `count` popped messages."""
        return [message["body"] for message in expect(self.pop(queue, count), 200)["messages"]]

    # -- claims --------------------------------------------------------------------------------

    def claim(self, queue: str, query: str = "", **fields: Any) -> httpx.Response:
        """Claim with the given body fields; without any there is no body."""
        path = self.path(queue, "claims") + query
        return self.request("POST", path, json=fields) if fields else self.request("POST", path)

    def claimed(self, queue: str, query: str = "", **fields: Any) -> ClaimAnswer:
        """Claim, and insist on getting something."""
        answer = self.claim(queue, query, **fields)
        messages = expect(answer, 201)["messages"]
        location = answer.headers["Location"]
        return ClaimAnswer(location, location.rsplit("/", 1)[1], messages)

    def show_claim(self, queue: str, claim_id: str) -> httpx.Response:
        return self.get(self.path(queue, "claims", quote(claim_id, safe="")))

    def renew(self, queue: str, claim_id: str, **fields: Any) -> httpx.Response:
        return self.request(
            "PATCH", self.path(queue, "claims", quote(claim_id, safe="")), json=fields
        )

    def release(self, queue: str, claim_id: str) -> httpx.Response:
        return self.delete(self.path(queue, "claims", quote(claim_id, safe="")))


@dataclass(frozen=True)
class ClaimAnswer:
    """A claim that got messages."""

    location: str
    claim_id: str
    messages: list[dict[str, Any]]

    @property
    def ids(self) -> list[str]:
        return [message["id"] for message in self.messages]

    @property
    def bodies(self) -> list[Any]:
        return [message["body"] for message in self.messages]


def expect(answer: httpx.Response, status: int, title: str | None = None) -> Any:
    """Insist on a status, and on the title of an error; return the parsed body, or None without one."""
    request = answer.request
    told = f"{request.method} {request.url} answered {answer.status_code}: {answer.text[:500]}"
    assert answer.status_code == status, told
    parsed = answer.json() if answer.content else None
    if title is not None:
        assert isinstance(parsed, dict), told
        assert parsed.get("title") == title, told
    return parsed


def ids_of(answer: httpx.Response) -> list[str]:
    """The ids of posted messages, in order."""
    resources: list[str] = expect(answer, 201)["resources"]
    return [resource.rsplit("/", 1)[1] for resource in resources]


def next_link(page: Mapping[str, Any]) -> str | None:
    """Where the next page is; None after the last one."""
    links = page["links"]
    if not links:
        return None
    assert len(links) == 1, links
    assert set(links[0]) == {"rel", "href"}, links
    assert links[0]["rel"] == "next", links
    href: str = links[0]["href"]
    assert href.startswith("/v2/"), links
    return href


def pages(api: Api, path: str, most: int = 200) -> Iterator[dict[str, Any]]:
    """Follow the links from `path` up to and including the first empty page."""
    href: str | None = path
    for _ in range(most):
        if href is None:
            return
        page: dict[str, Any] = expect(api.get(href), 200)
        yield page
        href = next_link(page)
    raise AssertionError(f"no end of pages after {most}")


def eventually(happened: Callable[[], Any], within_s: float = 10.0, every_s: float = 0.05) -> Any:
    """Ask again and again until the answer is true; return it. Raises AssertionError when time is up."""
    deadline = time.monotonic() + within_s
    while True:
        result = happened()
        if result:
            return result
        assert time.monotonic() < deadline, f"not seen within {within_s} s"
        time.sleep(every_s)


@dataclass(frozen=True)
class RawAnswer:
    """An answer read from a socket: header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def title(self) -> Any:
        parsed = httpx.Response(self.status, content=self.body).json()
        return parsed.get("title")


class RawConnection:
    """One TCP connection on which a test writes what it likes."""

    def __init__(self, server: LiveServer, timeout_s: float = 15.0) -> None:
        address = urlsplit(server.url)
        assert address.hostname is not None
        assert address.port is not None
        self.socket = socket.create_connection((address.hostname, address.port), timeout=timeout_s)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self, method: str = "GET") -> RawAnswer:
        """Read one answer; raises http.client errors where there is none."""
        response = http.client.HTTPResponse(self.socket, method=method)
        response.begin()
        body = response.read()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return RawAnswer(response.status, headers, body)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def raw_request(
    method: str,
    target: str,
    headers: Sequence[tuple[str, str]] | Mapping[str, str] = (),
    body: bytes = b"",
) -> bytes:
    """The bytes of a request with exactly these header fields, beside Host."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    head = [f"{method} {target} HTTP/1.1", "Host: nusku"]
    head += [f"{name}: {value}" for name, value in pairs]
    return "\r\n".join([*head, "", ""]).encode() + body


def raw_exchange(
    server: LiveServer,
    method: str,
    target: str,
    headers: Sequence[tuple[str, str]] | Mapping[str, str] = (),
    body: bytes = b"",
) -> RawAnswer:
    """Send one request with exactly these header fields and read its answer."""
    with RawConnection(server) as connection:
        connection.send(raw_request(method, target, headers, body))
        return connection.answer(method)


def chunked(*parts: bytes) -> bytes:
    """These parts as the chunks of a body."""
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
