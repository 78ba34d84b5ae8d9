"""Secrets sent to the server, or told to it, are nowhere but where they belong.

Every secret is a text that occurs once in the world. After a broad set of operations, good and bad,
with the most talkative logs, none of them may be found in what the server wrote.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
import tempfile
import textwrap
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nusku.config.settings import SECRETS
from tests import forking
from tests.canaries import canary
from tests.live import PATCH_TYPE, QUEUES, TOPICS, Api, LiveServer, expect, settings_environment
from tests.security.support import (
    LAST_CHUNK,
    address_of,
    chunk,
    connect,
    converse,
    cpu_seconds,
    fields_of,
    head,
)

LOG_KEYS = {"time", "level", "event", "request_id", "project", "operation", "status", "duration_ms"}


@dataclass
class Cage:
    """The canaries that were let loose, by kind."""

    birds: dict[str, list[str]] = field(default_factory=dict)

    def one(self, kind: str) -> str:
        bird = canary(kind)
        self.birds.setdefault(kind, []).append(bird)
        return bird

    def seen_in(self, text: str, *kinds: str) -> list[str]:
        """Which of these kinds (of all, without any) are in a text, also in part or respelt."""
        flat = text.lower()
        return sorted(
            {
                kind
                for kind, birds in self.birds.items()
                if not kinds or kind in kinds
                for bird in birds
                if bird.lower() in flat or bird[-24:].lower() in flat
            }
        )


def chunk_body(body: bytes) -> bytes:
    return chunk(body) + LAST_CHUNK


class Tour:
    """Everything that can be asked of a server, with canaries wherever a secret can be."""

    def __init__(self, server: LiveServer, cage: Cage) -> None:
        self.cage = cage
        self.said = ""
        self.answers: list[tuple[str, int, str]] = []
        client = uuid.uuid4()
        self.cage.birds["client"] = [client.hex, str(client)]
        self.api = Api(server, f"project-{uuid.uuid4().hex}", str(client), extra=self._secrets())

    def _secrets(self) -> dict[str, str]:
        """Header fields that a client or a proxy in front may send along."""
        token = self.cage.one
        return {
            "X-Auth-Token": token("token"),
            "X-Service-Token": token("token"),
            "X-Subject-Token": token("token"),
            "Authorization": f"Bearer {token('token')}",
            "Proxy-Authorization": f"Basic {token('token')}",
            "Cookie": f"session={token('token')}",
            "X-Service-Catalog": json.dumps([{"url": token("token")}]),
            "X-User-Id": token("user"),
            "User-Agent": token("agent"),
            "Referer": f"http://x/{token('agent')}",
            "EXTRA-SPEC": f"messagecode:{token('token')}",
        }

    def keep(self, answer: Any, *, refused: bool = False) -> Any:
        """Note an answer: what an error says must not hold any secret."""
        what = f"{answer.request.method} {answer.request.url.path}"
        told = answer.text if answer.status_code >= 400 else ""
        self.said += f"{answer.headers}{answer.text}"
        self.answers.append((what, answer.status_code, told))
        if refused:
            assert 400 <= answer.status_code < 500, (what, answer.status_code, answer.text)
        return answer

    def run(self) -> None:
        for kind in (QUEUES, TOPICS):
            api = self.api.but(kind=kind)
            self.well_behaved(api)
            self.misbehaved(api)
            self.rude(api)
        self.signed(self.api)

    def signed(self, api: Api) -> None:
        """URLs that somebody was given: who has the signature has what it allows."""
        keep, one = self.keep, self.cage.one
        path = api.path("q", "share")
        wanted = {"paths": ["messages", "claims"], "methods": ["GET", "POST"]}
        shared = expect(keep(api.request("POST", path, json=wanted)), 200)
        self.cage.birds["signature"] = [shared["signature"]]
        sent = {
            **api.headers,
            "URL-Signature": shared["signature"],
            "URL-Expires": shared["expires"],
            "URL-Methods": ",".join(shared["methods"]),
            "URL-Paths": ",".join(shared["paths"]),
        }
        posts = api.path("q", "messages")
        document: dict[str, Any] = {"messages": [{"body": one("body")}]}
        expect(keep(api.request("POST", posts, headers=sent, json=document)), 201)
        expect(keep(api.get(posts, headers=sent)), 200)
        keep(api.get(f"{posts}/{one('filter')}", headers=sent), refused=True)
        keep(api.request("POST", posts, headers=sent, content=one("body")), refused=True)
        keep(api.get(posts, headers={**sent, "Client-ID": one("user")}), refused=True)
        keep(api.delete(posts, headers=sent), refused=True)
        keep(api.get(api.path("other", "messages"), headers=sent), refused=True)
        for name in sent:
            if name.startswith("URL-"):
                keep(api.get(posts, headers={**sent, name: one("token")}), refused=True)
        wrong: list[dict[str, Any]] = [
            {one("body"): 1},
            {"paths": [one("body")]},
            {"paths": one("body")},
            {"methods": [one("body")]},
            {"methods": {one("body"): 1}},
            {"expires": one("body")},
            {"expires": [one("body")]},
        ]
        for document in wrong:
            keep(api.request("POST", path, json=document), refused=True)
        keep(api.send("POST", path, f'{{"{one("body")}'), refused=True)

    def well_behaved(self, api: Api) -> None:
        keep = self.keep

        def body() -> str:
            return self.cage.one("body")

        def meta() -> str:
            return self.cage.one("metadata")

        keep(api.create("q", {"a": meta(), self.cage.one("key"): [meta()]}))
        keep(api.create("q", {"a": meta()}))
        keep(api.show("q"))
        keep(api.patch("q", [{"op": "add", "path": "/metadata/b", "value": meta()}]))
        ids = api.post_bodies("q", body(), {body(): [body()]}, body(), body())
        keep(api.list_messages("q", "?echo=true"))
        keep(api.message("q", ids[0]))
        keep(api.messages("q", ids))
        keep(api.get(api.path("q", "stats")))
        keep(api.list_queues(f"?detailed=true&with_count=true&a={self.cage.one('filter')}"))
        if api.kind is QUEUES:
            claim = api.claimed("q", "?limit=2")
            self.cage.birds.setdefault("claim", []).append(claim.claim_id)
            keep(api.show_claim("q", claim.claim_id))
            keep(api.renew("q", claim.claim_id, ttl=100))
            keep(api.delete_message("q", claim.ids[0], claim.claim_id))
            keep(api.delete_message("q", ids[2], claim.claim_id), refused=True)
            keep(api.delete_message("q", claim.ids[1]), refused=True)
            keep(api.release("q", claim.claim_id))
            keep(api.delete_message("q", claim.ids[1], claim.claim_id), refused=True)
            keep(api.claim("empty", "?wait=1"))
        keep(api.pop("q", 1))
        keep(api.delete_messages("q", ids))
        keep(api.purge("q"))
        for path in (
            "/",
            "/v2/",
            "/v2/ping",
            "/livez",
            "/readyz",
            "/metrics",
            "/openapi.json",
            "/docs",
        ):
            keep(api.get(path))
        keep(api.get("/v2/health"))
        keep(api.get("/v2/health", headers={**api.headers, "X-Roles": "admin"}))
        keep(api.drop("q"))

    def misbehaved(self, api: Api) -> None:
        def refused(method: str, path: str, document: Any, kind: str = "application/json") -> None:
            text = document if isinstance(document, str) else json.dumps(document)
            self.keep(api.send(method, path, text, kind), refused=True)

        def body() -> str:
            return self.cage.one("body")

        expect(api.create("q"), 201)
        posts, queue = api.path("q", "messages"), api.path("q")
        for text in (
            f'{{"messages": [{{"body": "{body()}"',
            f'{{"messages": [{{"body": "{body()}\\ud800"}}]}}',
            f'{{"messages": [{{"body": "{body()}\x01"}}]}}',
            f'{{"messages": [{{"body": {body()}}}]}}',
            f'{{"messages": [{{"body": ["{body()}", NaN]}}]}}',
            f'{{"{body()}": 1e999}}',
            f'"{body()}"',
            f'["{body()}"]',
            f'{{"{body()}": "{body()}"}}',
            body(),
            '{"messages": [{"body": ' + f'["{body()}",' * 70 + "1" + "]" * 70 + "}]}",
            '{"messages": [{"body": "' + body() + "x" * 300_000 + '"}]}',
        ):
            refused("POST", posts, text)
        for messages in (
            body(),
            {body(): body()},
            [body()],
            [[body()]],
            [{body(): 1}],
            [{"body": body(), "ttl": body()}],
            [{"body": body(), "ttl": [body()]}],
            [{"body": body(), "delay": {body(): 1}}],
            [{"body": body(), "ttl": 1}],
            [{"body": body()}, {"body": body(), "delay": 10**9}],
        ):
            refused("POST", posts, {"messages": messages})
        meta = self.cage.one
        for metadata in (
            {"_default_message_ttl": meta("metadata")},
            {"_max_messages_post_size": [meta("metadata")]},
            {"_dead_letter_queue": f"{meta('metadata')}@"},
            {"_dead_letter_queue": {meta("metadata"): 1}},
            {"_enable_encrypt_messages": meta("metadata")},
            {"_retry_policy": meta("metadata")},
            {"_retry_policy": {"minimum_delay": meta("metadata")}},
            {"_retry_policy": {"retry_backoff_function": meta("metadata")}},
            {"_retry_policy": {"ignore_subscription_override": meta("metadata")}},
            [meta("metadata")],
            meta("metadata"),
            {"big": meta("metadata") * 2_000},
        ):
            refused("PUT", queue, metadata)
        for change in (
            {"op": "replace", "path": "/metadata/absent", "value": meta("metadata")},
            {"op": meta("metadata"), "path": "/metadata/a", "value": 1},
            {"op": "add", "path": meta("metadata"), "value": 1},
            {"op": "add", "path": ["/metadata/a"], "value": meta("metadata")},
            {"op": "add", "path": f"/{meta('metadata')}/a", "value": 1},
            {"op": "add", "path": f"/metadata/~{meta('metadata')}", "value": 1},
            {"op": "add", meta("metadata"): 1},
            {"op": "add", "path": "/metadata/_default_message_ttl", "value": meta("metadata")},
            {"op": "add", "path": "/metadata/_dead_letter_queue", "value": meta("metadata") + "@"},
            meta("metadata"),
        ):
            refused("PATCH", queue, [change], PATCH_TYPE)
        refused("PATCH", queue, {meta("metadata"): 1}, PATCH_TYPE)
        refused("PATCH", queue, [], meta("agent"))
        refused("POST", api.path("q", "purge"), {"resource_types": [body()]})
        refused("POST", api.path("q", "purge"), {"resource_types": body()})
        if api.kind is QUEUES:
            for terms in (
                {"ttl": body()},
                {"grace": [body()]},
                [body()],
                body(),
                {"ttl": 1, "x": body()},
            ):
                refused("POST", api.path("q", "claims"), terms)
                refused("PATCH", api.path("q", "claims", self.cage.one("claim")), terms)
            keep = self.keep
            keep(api.show_claim("q", self.cage.one("claim")), refused=True)
            keep(api.release("q", self.cage.one("claim")))
        for headers in (
            {"Client-ID": self.cage.one("user")},
            {"X-Project-ID": "p" * 300, "X-Tenant-ID": self.cage.one("user")},
            {"Accept": f"text/{self.cage.one('agent')}"},
            {"Content-Encoding": self.cage.one("agent")},
            {"EXTRA-SPEC": f"{self.cage.one('token')}:x"},
            {"URL-Signature": self.cage.one("token"), "URL-Expires": self.cage.one("token")},
        ):
            sent = {**api.headers, **headers}
            self.keep(api.request("POST", posts, headers=sent, content=b"{}"), refused=True)
        self.keep(api.get(f"/{self.cage.one('filter')}"), refused=True)
        self.keep(api.get(f"{queue}/{self.cage.one('filter')}"), refused=True)
        self.keep(api.get(f"{posts}?limit={self.cage.one('filter')}"), refused=True)
        self.keep(api.get(f"{posts}?echo={self.cage.one('filter')}"), refused=True)
        self.keep(api.get(f"{queue}@{self.cage.one('filter')}"), refused=True)
        self.keep(api.request("POST", queue, json={body(): body()}), refused=True)
        self.keep(api.request("TRACE", queue), refused=True)
        expect(api.drop("q"), 204)

    def rude(self, api: Api) -> None:
        """Requests that break off, or are none."""
        one = self.cage.one
        own = [*fields_of(api), (b"X-More", one("token").encode())]
        posts = api.path("q", "messages").encode()
        document = b'{"messages": [{"body": "' + one("body").encode() + b'"}]}'
        whole = head(b"POST", posts, [*own, (b"Content-Length", b"%d" % len(document))]) + document
        chunked = head(b"POST", posts, [*own, (b"Transfer-Encoding", b"chunked")])
        for data in (
            whole[:-5],
            whole[: len(whole) // 2],
            whole + one("body").encode() + b"\r\n\r\n",
            one("body").encode() + b"\r\n\r\n",
            one("body").encode() + b" / HTTP/1.1\r\n\r\n",
            b"GET /" + one("filter").encode() + b"\xff HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + one("token").encode() + b"\x00: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nX-Auth-Token: " + one("token").encode() + b"\x00\r\n\r\n",
            b"GET / HTTP/1.1\r\nX-Auth-Token: " + one("token").encode() * 1_000 + b"\r\n\r\n",
            chunked + chunk_body(document),
            chunked + chunk(document)[:-4],
            chunked + one("body").encode() + b"\r\n",
            chunked + chunk(document, b";" + one("token").encode()) + b"0\r\n\r\n",
            chunked
            + chunk(document)
            + b"0\r\nX-Auth-Token: "
            + one("token").encode()
            + b"\r\n\r\n",
        ):
            exchange = converse(api.server, data, patience_s=0.1)
            for answer in exchange.answers:
                if answer.status >= 400:
                    self.answers.append((ascii(data[:40]), answer.status, answer.body.decode()))
        with connect(api.server) as connection:
            connection.sendall(head(b"POST", api.path("q", "claims").encode() + b"?wait=20", own))
            time.sleep(0.1)


def settled(server: LiveServer) -> str:
    """What the server has logged, once it has nothing more to say."""
    text, calm_since = server.log(), time.monotonic()
    while time.monotonic() - calm_since < 0.4:
        time.sleep(0.05)
        now = server.log()
        if now != text:
            text, calm_since = now, time.monotonic()
    return text


FORMATS = ["json", pytest.param("text", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=FORMATS)
def talkative(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("talkative")
    with LiveServer(folder, log_level="debug", log_format=request.param) as server:
        yield server


@dataclass(frozen=True)
class Toured:
    """A server that has been shown everything, and all that it wrote until its end."""

    tour: Tour
    metrics: str
    log: str
    in_json: bool


@pytest.fixture(scope="module", params=FORMATS)
def toured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Toured:
    folder = tmp_path_factory.mktemp("toured")
    cage = Cage()
    secrets = {name: cage.one("setting") for name in SECRETS}
    # Leaving the block checks that stdout holds nothing but the one line.
    with LiveServer(folder, log_level="debug", log_format=request.param, **secrets) as server:
        tour = Tour(server, cage)
        tour.run()
        metrics = tour.api.get("/metrics").text
    return Toured(tour, metrics, server.log(), request.param == "json")


def test_the_tour_was_a_broad_one(toured: Toured) -> None:
    assert sum(map(len, toured.tour.cage.birds.values())) > 150
    statuses = {status for _, status, _ in toured.tour.answers}
    assert {200, 201, 204, 300, 400, 403, 404, 405, 406, 409, 415} <= statuses
    assert not [status for status in statuses if status >= 500]
    assert toured.log.count(toured.tour.api.project) > 50, "the requests are in the log"


def test_no_secret_is_in_what_an_error_says(toured: Toured) -> None:
    for what, status, told in toured.tour.answers:
        # An id or a filter of the request at hand may be named; what is in it may not.
        hits = toured.tour.cage.seen_in(
            told, "body", "metadata", "token", "user", "client", "setting", "signature"
        )
        assert not hits, f"{what} → {status}: {told}"
        assert "Traceback" not in told
        assert not re.search(r"\b(nusku|falcon|msgspec|sqlite3|uvicorn)\b|\.py\b", told), told


def test_no_key_is_in_any_answer(toured: Toured) -> None:
    assert "/v2/queues" in toured.tour.said
    assert not toured.tour.cage.seen_in(toured.tour.said, "setting")


@pytest.mark.embedded
def test_a_key_that_was_made_is_in_its_file_only(talkative: LiveServer) -> None:
    keys = re.findall("[0-9A-Za-z_=-]{32,}", (talkative.folder / "nusku.db.key").read_text())
    api = talkative.api()
    answers = [api.request("POST", api.path("q", "share"), json={}), api.get("/metrics")]
    said = "".join(answer.text for answer in answers) + settled(talkative)
    assert "made " in said
    assert keys
    for key in keys:
        assert key not in said
        assert key[:32] not in said
        files = [path for path in talkative.folder.iterdir() if path.is_file()]
        held = [path.name for path in files if key.encode() in path.read_bytes()]
        assert held == ["nusku.db.key"]


def test_no_secret_is_in_the_metrics(toured: Toured) -> None:
    assert not toured.tour.cage.seen_in(toured.metrics)
    assert toured.tour.api.project not in toured.metrics


def test_no_secret_is_in_the_log(toured: Toured) -> None:
    assert not toured.tour.cage.seen_in(toured.log)


def test_a_line_of_the_log_has_the_fields_it_should_have_and_no_others(toured: Toured) -> None:
    if not toured.in_json:
        pytest.skip("fields are told apart in JSON")
    requests = 0
    for line in toured.log.splitlines():
        entry = json.loads(line)
        if entry["event"] == "request":
            requests += 1
            assert set(entry) == LOG_KEYS, entry
            assert isinstance(entry["status"], int)
            assert re.fullmatch(r"req-[0-9a-f-]{36}", entry["request_id"])
            assert re.fullmatch(r"[a-z]+(:[a-z_]+)?", entry["operation"])
    assert requests > 100


def test_a_log_line_cannot_be_forged(talkative: LiveServer) -> None:
    """Text from outside stays on its line, whatever it holds."""
    forged = b'x","level":"error","event":"forged\xc2\x85\xe2\x80\xa8\xff\x9b2J'
    fields = [(b"Client-ID", uuid.uuid4().hex.encode()), (b"X-Project-ID", forged)]
    converse(talkative, head(b"GET", b"/v2/queues", fields), finals=1)
    lines = [line for line in settled(talkative).split("\n") if "forged" in line]
    assert len(lines) == 1
    if talkative.settings["log_format"] == "json":
        assert json.loads(lines[0])["event"] == "request"
        assert json.loads(lines[0])["project"] == forged.decode("latin-1")
    else:
        assert lines[0].isprintable()


def test_what_is_logged_is_bounded(talkative: LiveServer) -> None:
    """A request logs one short line, however long what it holds is."""
    api = talkative.api(project="p" * 5_000)
    before = len(settled(talkative))
    for _ in range(10):
        api.get("/v2/queues/" + "x" * 5_000 + "?" + "y" * 2_000)
        api.get("/" + "x" * 5_000)
    assert len(settled(talkative)) - before < 10 * 2 * 8_000


# -- failures that nobody thought of ---------------------------------------------------------------

SABOTAGE = """
    import nusku.broker.messages, nusku.broker.queues

    SECRET = "{secret}"

    def inner(secret):
        local = secret
        raise KeyError(local)

    async def failing(self, *arguments, **more):
        secret_local = "{local}"
        try:
            inner(SECRET)
        except KeyError as error:
            raise RuntimeError(f"could not do it with {{SECRET}} in /etc/{{SECRET}}.conf") from error

    nusku.broker.queues.Queues.stats = failing
    nusku.broker.messages.Messages.post = failing
"""


@pytest.mark.parametrize("log_format", FORMATS)
def test_an_unexpected_failure_tells_the_client_nothing_but_a_request_id(
    log_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cage = Cage()
    secret, local = cage.one("secret"), cage.one("local")
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(
        textwrap.dedent(SABOTAGE).format(secret=secret, local=local)
    )
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(hooks), os.environ.get("PYTHONPATH", "")])
    )
    server = LiveServer(tmp_path, log_level="debug", log_format=log_format)
    server.start()
    try:
        token = cage.one("token")
        api = server.api().but(extra={"X-Auth-Token": token})
        failed = [
            api.get(api.path("q", "stats")),
            api.post("q", {"body": cage.one("body")}),
            api.but(kind=TOPICS).get("/v2/topics/q/stats"),
        ]
        for answer in failed:
            assert answer.status_code == 500
            assert answer.json()["title"] == "Internal server error"
            assert not cage.seen_in(str(answer.headers) + answer.text)
            for word in (
                "RuntimeError",
                "KeyError",
                "Traceback",
                ".py",
                "/etc/",
                "could not do it",
            ):
                assert word not in answer.text
        expect(api.get("/v2/queues"), 200)
        assert not cage.seen_in(api.get("/metrics").text)
        log = settled(server)
        for answer in failed:
            assert answer.headers["x-openstack-request-id"] in log
        assert "RuntimeError" in log, "the operator is told"
        # Neither the request nor the variables of the functions that failed.
        assert not cage.seen_in(log, "body", "token", "local")
    finally:
        server.kill()


# -- settings --------------------------------------------------------------------------------------


def run_nusku(folder: Path, *arguments: str, **settings: str) -> tuple[int, str, float]:
    """Run the program; its status, everything it printed, and how long it took."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as stderr:
        process = forking.start(arguments, settings_environment(settings), folder, stderr)
        try:
            stdout, _ = process.communicate(timeout=30)
        finally:
            process.kill()
        stderr.seek(0)
        printed = (stdout + stderr.read()).decode()
    assert process.returncode is not None
    return process.returncode, printed, time.monotonic() - started


STORES = [
    "postgresql://user:{}@host/db",
    "redis://:{}@host:6379/0",
    "sqlite://user:{}@host/file.db",
    "sqlite:///file.db?password={}",
    "mysql://user:{}@[::1]:3306/db",
    "nosuch://user:pass%2F{}@host",
    "postgresql://host/db?sslpassword={}&x=1",
]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["serve", "check"])
@pytest.mark.parametrize("uri", STORES)
@pytest.mark.parametrize("way", ["option", "environment", "file"])
def test_a_refused_store_does_not_show_its_password(
    way: str, uri: str, command: str, tmp_path: Path
) -> None:
    secret = canary("password")
    store = uri.format(secret)
    if way == "option":
        outcome = run_nusku(tmp_path, command, "--store", store)
    elif way == "environment":
        outcome = run_nusku(tmp_path, command, store=store)
    else:
        (tmp_path / "nusku.toml").write_text(f"store = {json.dumps(store)}\n")
        outcome = run_nusku(tmp_path, command, "--config", "nusku.toml")
    status, printed, _ = outcome
    assert status == 2, printed
    assert secret not in printed
    assert "nusku: " in printed
    assert "Traceback" not in printed
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".toml"] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ('secret_key = "{}"\nlog_level = "loud"\n', {}),
        ('[signed_url]\nsecret_key = "{}"\n', {}),
        ('store = "postgresql://user:{}@host/db"\nport = "x"\n', {}),
        ('store = ["postgresql://user:{}@host/db"]\n', {}),
        ('store = "postgresql://user:{}@host/db\n', {}),
        ('store = {{password = "{}"}}\n', {}),
        ('log_level = "loud"\nstore = "redis://:{}@host"\n', {}),
        ("", {"secret_key": "{}", "log_level": "loud"}),
        ("", {"smtp_user_password": "{}", "log_level": "loud"}),
        ("", {"trustee_user_password": "{}\x85", "log_level": "loud"}),
        ('secret_key = ["{}"]\n', {}),
        ('secret_key = {{key = "{}"}}\n', {}),
        ('smtp_user_password = "{}\n', {}),
        ('trustee_user_password = ["{}"]\n', {}),
        ('secret_kye = "{}"\n', {}),
        ('trustee_auth_url = "https://me:{}@keystone"\n', {}),
        ('public_url = "https://:{}@queues/"\n', {}),
        ("", {"store_password": "{}"}),
        ("", {"store": "postgresql://user:{}@host/db", "port": "x"}),
    ],
)
def test_a_wrong_setting_does_not_show_a_secret_beside_it(
    file: str, settings: dict[str, str], tmp_path: Path
) -> None:
    secret = canary("secret")
    (tmp_path / "nusku.toml").write_text(file.format(secret))
    given = {name: value.format(secret) for name, value in settings.items()}
    for command in ("serve", "check"):
        status, printed, seconds = run_nusku(
            tmp_path, command, "--config", "nusku.toml", "--port", "0", **given
        )
        assert status == 2, printed
        assert secret not in printed
        assert "Traceback" not in printed
        assert seconds < 10
    assert [path.name for path in tmp_path.iterdir()] == ["nusku.toml"]


# -- who may see the figures -----------------------------------------------------------------------


def test_metrics_are_for_the_networks_that_are_allowed(tmp_path: Path) -> None:
    with LiveServer(tmp_path, metrics_allow="192.0.2.0/24") as server:
        api = server.api()
        for claimed in ({}, {"X-Forwarded-For": "192.0.2.1"}, {"Forwarded": "for=192.0.2.1"}):
            answer = api.get("/metrics", headers={**api.headers, **claimed})
            assert answer.status_code == 403, claimed
            assert "nusku_" not in answer.text


def test_metrics_do_not_grow_with_what_is_asked(api: Api) -> None:
    """The number of series depends on the API, not on what callers make up."""

    def series() -> set[str]:
        lines = api.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}

    def ask() -> None:
        for n in range(30):
            name = f"n{n}{uuid.uuid4().hex[:8]}"
            api.get(f"/v2/queues/{name}")
            api.get(f"/{name}")
            api.get(f"/v2/queues/q/messages/{name}")
            api.stranger().get(f"/v2/queues/{name}")
            api.request(f"X{n}", "/v2/queues")

    ask()
    series()  # asking for them is an operation, too
    before = series()
    ask()
    assert series() == before


def test_answers_do_not_tell_what_the_server_is_made_of(api: Api) -> None:
    answers = [
        api.get("/v2/queues"),
        api.get("/nosuchpath"),
        api.get("/v2/queues/bad@name"),
        api.send("POST", api.path("q", "messages"), "{"),
        api.get("/v2/ping"),
    ]
    for answer in answers:
        told = str(answer.headers) + answer.text
        assert "server" not in answer.headers
        for word in ("uvicorn", "falcon", "msgspec", "python", "sqlite", "Traceback"):
            assert word not in told.lower()


def test_known_and_unknown_ids_of_others_look_alike(api: Api) -> None:
    """From a refusal nobody learns whether something exists elsewhere."""
    [real] = api.post_bodies("q", 1)
    claim = api.claimed("q")
    stranger = api.stranger()
    unknown = "0" * len(real)

    def told(answer: Any) -> tuple[int, str]:
        text = answer.text.replace(real, "ID").replace(claim.claim_id, "ID")
        return answer.status_code, re.sub("0{9,}", "ID", text)

    assert told(stranger.message("q", real)) == told(stranger.message("q", unknown))
    assert told(stranger.show_claim("q", claim.claim_id)) == told(
        stranger.show_claim("q", "0" * len(claim.claim_id))
    )
    assert told(stranger.delete_message("q", real)) == told(stranger.delete_message("q", unknown))
    stranger.post_bodies("q", "mine")
    assert told(stranger.message("q", real)) == told(stranger.message("q", unknown))
    assert told(stranger.renew("q", claim.claim_id, ttl=60)) == told(
        stranger.renew("q", "0" * len(claim.claim_id), ttl=60)
    )


def test_ids_cannot_be_guessed_from_others(api: Api) -> None:
    """Claim ids, which are keys to messages, share nothing that one could count up."""
    api.post_bodies("q", *range(40))
    claims = [api.claimed("q", "?limit=1").claim_id for _ in range(40)]
    assert len(set(claims)) == 40
    for length in (8, 12):
        assert len({claim[-length:] for claim in claims}) == 40
    numbers = [int(claim, 16) for claim in claims]
    gaps = {b - a for a, b in itertools.pairwise(numbers)}
    assert len(gaps) > 30
    guesses = 0
    for number in numbers[:5]:
        for step in (-2, -1, 1, 2):
            guess = f"{number + step:0{len(claims[0])}x}"
            guesses += api.show_claim("q", guess).status_code == 200
    assert guesses == 0


def test_a_message_id_tells_nothing_of_other_projects(api: Api) -> None:
    """Ids of two projects made one after the other have no common counter."""
    mine = api.post_bodies("q", 1, 2)
    other = api.stranger().post_bodies("q", 1, 2)
    assert mine[0][:8] != other[0][:8]


def test_it_costs_the_same_to_be_refused(api: Api) -> None:
    """Refusals are cheap: nobody can keep the server busy by being refused."""
    before = cpu_seconds(api.server)
    line = http.client.HTTPConnection(*address_of(api.server))
    for _ in range(200):
        line.request("GET", "/v2/queues", headers={"Client-ID": "not-a-uuid"})
        line.getresponse().read()
    line.close()
    assert cpu_seconds(api.server) - before < 0.4
