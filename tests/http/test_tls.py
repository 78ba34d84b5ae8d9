"""HTTPS: what is spoken, whose certificates are asked for, and a certificate that changes."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from nusku import tls
from nusku.config import ConfigError, Settings
from tests.live import LiveServer, SettingValue, eventually, expect, raw_request
from tests.notify.certificates import Certificates
from tests.security.support import address_of, open_files
from tests.websocket.peer import TEXT, frame_bytes

pytestmark = pytest.mark.embedded  # about no store at all

AGAIN_S = tls.LOOKED_AT_S + 5


@pytest.fixture(scope="module")
def authority() -> Iterator[Certificates]:
    with closing(Certificates()) as one:
        yield one


@pytest.fixture(scope="module")
def other_authority() -> Iterator[Certificates]:
    with closing(Certificates()) as other:
        yield other


def put(folder: Path, name: str, pair: tuple[bytes, bytes]) -> tuple[str, str]:
    """Write a certificate and its key; their paths."""
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    for path, content in zip(paths, pair, strict=True):
        path.write_bytes(content)
    return str(paths[0]), str(paths[1])


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., LiveServer]]:
    """Call it with settings for a server that runs until the end of this module."""
    started: list[LiveServer] = []

    def call(**settings: SettingValue) -> LiveServer:
        started.append(LiveServer(tmp_path_factory.mktemp("tls"), **settings).start())
        return started[-1]

    yield call
    for server in started:
        server.stop()


@pytest.fixture(scope="module")
def secured(
    start: Callable[..., LiveServer],
    authority: Certificates,
    tmp_path_factory: pytest.TempPathFactory,
) -> LiveServer:
    """One that has little patience, and room for four."""
    certificate, key = put(tmp_path_factory.mktemp("pair"), "server", authority.issue("server"))
    return start(
        tls_certificate=certificate,
        tls_key=key,
        max_connections=4,
        header_timeout=1,
        write_timeout=1,
    )


@pytest.fixture(scope="module")
def strict(
    start: Callable[..., LiveServer],
    authority: Certificates,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[LiveServer, Path]:
    """One that asks for certificates and speaks TLS 1.3 only, and the folder of its files."""
    folder = tmp_path_factory.mktemp("strict")
    (folder / "both.pem").write_bytes(b"".join(authority.issue("server")))
    (folder / "clients.pem").write_bytes(authority.ca_file.read_bytes())
    server = start(
        tls_certificate=str(folder / "both.pem"),
        tls_client_ca=str(folder / "clients.pem"),
        tls_min_version="1.3",
        log_format="json",
    )
    return server, folder


def client_context(authority: Certificates) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority.ca_file))


def connected(
    server: LiveServer, context: ssl.SSLContext, receive_buffer: int = 0
) -> ssl.SSLSocket:
    plain = socket.socket()
    if receive_buffer:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    plain.settimeout(10)
    plain.connect(address_of(server))
    return context.wrap_socket(plain, server_hostname="localhost")


def serial(server: LiveServer, context: ssl.SSLContext) -> int:
    """The number of the certificate that a new connection is shown."""
    with connected(server, context) as connection:
        shown = connection.getpeercert()
        assert shown is not None
        return int(str(shown["serialNumber"]), 16)


def number(pair: tuple[bytes, bytes]) -> int:
    return x509.load_pem_x509_certificate(pair[0]).serial_number


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


# -- what is spoken --------------------------------------------------------------------------------


def test_a_client_that_knows_the_authority_is_served(
    secured: LiveServer, authority: Certificates
) -> None:
    assert secured.url.startswith("https://")
    headers = secured.api().headers
    with httpx.Client(
        base_url=secured.url, verify=client_context(authority), headers=headers
    ) as client:
        path = "/v2/queues/q/messages"
        expect(client.post(path, json={"messages": [{"body": "x" * 200_000}]}), 201)
        [message] = expect(client.get(f"{path}?echo=true"), 200)["messages"]
        assert message["body"] == "x" * 200_000
        expect(client.get("/v2/queues/q/messages?wait=1&echo=false"), 200)


def test_a_client_that_does_not_know_the_authority_is_not(
    secured: LiveServer, other_authority: Certificates
) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        connected(secured, client_context(other_authority))


def only(version: ssl.TLSVersion) -> ssl.SSLContext:
    """A client that speaks this version and would take any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version, context.maximum_version = version, version
    return context


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
def test_versions_that_are_too_old_are_refused(
    secured: LiveServer, strict: tuple[LiveServer, Path], authority: Certificates
) -> None:
    with connected(secured, only(ssl.TLSVersion.TLSv1_2)) as connection:
        assert connection.version() == "TLSv1.2"
    for server, version in (
        (secured, ssl.TLSVersion.TLSv1_1),
        (strict[0], ssl.TLSVersion.TLSv1_2),
    ):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            connected(server, only(version))
    # The first client could have spoken it.
    lenient = authority.context("tls")
    lenient.set_ciphers("ALL:@SECLEVEL=0")
    lenient.minimum_version = ssl.TLSVersion.TLSv1_1
    assert agreed(only(ssl.TLSVersion.TLSv1_1), lenient) == "TLSv1.1"


def agreed(client: ssl.SSLContext, server: ssl.SSLContext) -> str | None:
    """The version that these two speak with one another."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(back, there)
    other = server.wrap_bio(there, back, server_side=True)
    for side in (one, other, one, other, one):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return one.version()


def test_a_request_that_is_not_encrypted_is_not_answered(secured: LiveServer) -> None:
    with socket.create_connection(address_of(secured), timeout=10) as connection:
        connection.sendall(raw_request("GET", "/v2/ping"))
        assert is_closed(connection)
    assert "Traceback" not in secured.log()


def test_a_socket_is_encrypted_too(secured: LiveServer, authority: Certificates) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg==",
    }
    asked = {"action": "queue_list", "headers": secured.api().headers, "body": {}}
    with connected(secured, client_context(authority)) as connection:
        connection.sendall(raw_request("GET", "/v2/websocket", upgrade))
        assert connection.recv(1000).startswith(b"HTTP/1.1 101 ")
        connection.sendall(frame_bytes(TEXT, json.dumps(asked).encode()))
        assert b'"status":200' in connection.recv(1000).replace(b" ", b"")


def test_an_answer_that_is_read_slowly_is_whole_although_it_is_the_last(
    secured: LiveServer, authority: Certificates
) -> None:
    """The connection is closed behind it, and nobody waits longer than the client reads."""
    api = secured.api()
    for _ in range(10):
        api.post_bodies("q", "x" * 200_000)
    with connected(secured, client_context(authority), receive_buffer=16_384) as connection:
        headers = {**api.headers, "Connection": "close"}
        connection.sendall(raw_request("GET", "/v2/queues/q/messages?echo=true&limit=10", headers))
        received = 0
        while got := connection.recv(65_536):
            received += len(got)
            time.sleep(0.02)  # all in all for longer than the sweeps take to come by
    assert received > 10 * 200_000


# -- limits ----------------------------------------------------------------------------------------


def test_a_handshake_has_a_deadline_and_its_beginners_keep_nobody_out(
    secured: LiveServer, authority: Certificates
) -> None:
    files, started = open_files(secured), time.monotonic()
    room = 4 + tls.HANDSHAKES_AT_LEAST
    silent = [socket.create_connection(address_of(secured), timeout=10) for _ in range(room)]
    try:
        with connected(secured, client_context(authority)) as late:
            assert is_closed(silent[0]), "the oldest goes"
            late.sendall(raw_request("GET", "/livez"))
            assert late.recv(1000).startswith(b"HTTP/1.1 200 ")
            silent[-1].setblocking(False)
            with pytest.raises(BlockingIOError):  # and not all
                silent[-1].recv(1)
            silent[-1].settimeout(10)
            assert time.monotonic() - started < 0.9, "the deadline was not over"
        assert all(is_closed(each) for each in silent)
        assert time.monotonic() - started < 5
    finally:
        for each in silent:
            each.close()
    eventually(lambda: open_files(secured) <= files)
    serial(secured, client_context(authority))


def test_connections_over_the_limit_are_told(secured: LiveServer, authority: Certificates) -> None:
    context = client_context(authority)
    open_ones = [connected(secured, context) for _ in range(4)]
    with connected(secured, context) as late:
        assert late.recv(1000).startswith(b"HTTP/1.1 503 ")
    for each in open_ones:
        each.close()
    eventually(lambda: secured.api().get("/v2/ping").status_code == 204)


def test_a_client_that_does_not_read_is_hung_up_on(
    secured: LiveServer, authority: Certificates
) -> None:
    api = secured.api()
    for _ in range(10):
        api.post_bodies("q", "x" * 200_000)
    with connected(secured, client_context(authority), receive_buffer=4096) as connection:
        request = raw_request("GET", "/v2/queues/q/messages?echo=true&limit=10", api.headers)
        connection.sendall(request * 20)
        files = open_files(secured)
        eventually(lambda: open_files(secured) < files)


# -- certificates of clients -----------------------------------------------------------------------


def ping(server: LiveServer, context: ssl.SSLContext) -> int:
    with httpx.Client(verify=context, headers=server.api().headers) as client:
        return client.get(f"{server.url}/v2/ping").status_code


def test_clients_have_to_show_a_certificate_where_an_authority_is_set(
    strict: tuple[LiveServer, Path],
    authority: Certificates,
    other_authority: Certificates,
    tmp_path: Path,
) -> None:
    server, folder = strict
    nobody, known, stranger = (client_context(authority) for _ in range(3))
    known.load_cert_chain(*put(tmp_path, "known", authority.issue("known")))
    stranger.load_cert_chain(*put(tmp_path, "stranger", other_authority.issue("stranger")))
    for context in (nobody, stranger):
        with pytest.raises(httpx.HTTPError):
            ping(server, context)
    with httpx.Client(verify=known, headers=server.api().headers) as client:
        assert client.get(f"{server.url}/v2/ping").status_code == 204

        # Whom to believe changes as a whole, and for new connections.
        (folder / "clients.pem").write_bytes(other_authority.ca_file.read_bytes())

        def believed() -> bool:
            try:
                return ping(server, stranger) == 204
            except httpx.HTTPError:
                return False

        eventually(believed, within_s=AGAIN_S)
        with pytest.raises(httpx.HTTPError):
            ping(server, known)
        assert client.get(f"{server.url}/v2/ping").status_code == 204, "it is connected already"
    (folder / "clients.pem").write_bytes(authority.ca_file.read_bytes())


# -- a certificate that changes --------------------------------------------------------------------


def test_a_new_certificate_is_for_new_connections(
    start: Callable[..., LiveServer], authority: Certificates, tmp_path: Path
) -> None:
    first, second, third = (authority.issue("server") for _ in range(3))
    certificate, key = put(tmp_path, "server", first)
    server = start(tls_certificate=certificate, tls_key=key, log_format="json")
    context, api = client_context(authority), server.api()
    assert serial(server, context) == number(first)
    with connected(server, context) as before:
        before.sendall(raw_request("GET", "/v2/queues/q/messages?wait=20&echo=true", api.headers))
        put(tmp_path, "server", second)
        eventually(lambda: serial(server, context) == number(second), within_s=AGAIN_S)
        shown = before.getpeercert()
        assert shown is not None
        assert int(str(shown["serialNumber"]), 16) == number(first)
        with httpx.Client(verify=context, headers=api.headers) as client:
            expect(
                client.post(f"{server.url}/v2/queues/q/messages", json={"messages": [{"body": 1}]}),
                201,
            )
        assert before.recv(10_000).startswith(b"HTTP/1.1 200 "), "it waited all the time"

    # Half a renewal: the key is that of the certificate to come.
    Path(key).write_bytes(third[1])
    eventually(lambda: "cannot be used" in server.log(), within_s=AGAIN_S)
    assert "the key is that of another certificate" in server.log()
    assert serial(server, context) == number(second)
    Path(certificate).write_bytes(third[0])
    eventually(lambda: serial(server, context) == number(third), within_s=AGAIN_S)
    assert server.log().count("going on with the old one") == 1, "told once"
    assert server.log().count("certificate read again") == 2


# -- what is refused at the start ------------------------------------------------------------------


def refusal(**settings: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        tls.check(Settings(**settings))
    [problem] = refused.value.problems
    return problem


def test_files_that_cannot_be_used_are_named(authority: Certificates, tmp_path: Path) -> None:
    certificate, key = put(tmp_path, "one", authority.issue("one"))
    _, other = put(tmp_path, "other", authority.issue("other"))
    nothing, missing = tmp_path / "nothing.pem", str(tmp_path / "missing.pem")
    nothing.write_text("not a certificate")
    loaded = serialization.load_pem_private_key(Path(key).read_bytes(), None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    assert refusal(tls_certificate=missing) == (
        f"tls_certificate: {missing} cannot be read: No such file or directory"
    )
    assert "tls_key" in refusal(tls_certificate=certificate, tls_key=missing)
    assert "the key is that of another certificate" in refusal(
        tls_certificate=certificate, tls_key=other
    )
    assert "PEM" in refusal(tls_certificate=str(nothing), tls_key=key)
    assert "PEM" in refusal(tls_certificate=certificate)
    assert "is encrypted" in refusal(tls_certificate=certificate, tls_key=str(locked))
    pair: dict[str, Any] = {"tls_certificate": certificate, "tls_key": key}
    assert "tls_client_ca" in refusal(**pair, tls_client_ca=missing)
    assert "tls_client_ca" in refusal(**pair, tls_client_ca=str(nothing))
    tls.check(Settings(**pair, tls_client_ca=str(authority.ca_file)))
    tls.check(Settings())
