"""The webhook sender against receivers that behave, and all kinds of those that do not."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop
from structlog.testing import capture_logs

from nusku.addresses import Addresses
from nusku.broker.deliveries import Parcel, Recipient
from nusku.config import Settings
from nusku.errors import TrustFailed
from nusku.model import QueueKey
from nusku.notify.outcome import Outcome
from nusku.notify.webhook import RETRY_AFTER_MAX_S, Tokens, WebhookSender, judged, retry_after
from tests.notify.receivers import Exchange, Farm
from tests.security.dns import FakeDns

T = TypeVar("T")

BODY = b'{"ttl":300,"body":{"event":"x"},"queue_name":"q","Message_Type":"Notification"}'
PARCEL = Parcel("00000000000000010000000000000001", "notification", BODY, 1_767_225_600_000)
LOOPBACK = ("127.0.0.0/8", "::1/128")
# What no test should have to wait for.
LONG_S = 10.0


def recipient(url: str, options: Mapping[str, Any] | None = None, **rest: Any) -> Recipient:
    return Recipient(
        "0123456789abcdef01234567", QueueKey("queue", "p", "q"), url, dict(options or {}), **rest
    )


def with_sender(
    action: Callable[[WebhookSender], Awaitable[T]], tokens: Tokens | None = None, **settings: Any
) -> T:
    """Run something with a sender, in a loop as the server has it."""

    async def run() -> T:
        given = {"subscriber_allow": LOOPBACK, "delivery_timeout": LONG_S, **settings}
        chosen = Settings(**given)
        sender = WebhookSender(chosen, Addresses(chosen), tokens)
        try:
            return await action(sender)
        finally:
            await sender.close()

    return uvloop.run(run())


def attempt(url: str, options: Mapping[str, Any] | None = None, **settings: Any) -> Outcome:
    """One attempt at a delivery."""
    return with_sender(lambda sender: sender.send(recipient(url, options), PARCEL), **settings)


def said(outcome: Outcome) -> tuple[str, str, int | None]:
    return outcome.result, outcome.reason, outcome.status


# -- what is sent ----------------------------------------------------------------------------------


def test_the_document_is_posted_as_json(farm: Farm) -> None:
    assert attempt(farm.url("/ok", a="b c")) == Outcome("delivered", status=200)
    (request,) = farm.wait_for(1)
    assert (request.method, request.path) == ("POST", "/ok?a=b+c")
    assert request.body == BODY
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("nusku/")
    assert request.headers["host"] == f"127.0.0.1:{farm.port}"
    assert set(request.headers) == {
        "accept", "content-length", "content-type", "host", "user-agent",
    }  # fmt: skip


@pytest.mark.parametrize("path", ["/a%2Fb/..%2f", "/a/./b/../c", "/%7Euser", "/é", "/a//b"])
def test_the_path_is_the_subscribers(farm: Farm, path: str) -> None:
    attempt(farm.url(path, signature="a+b/c=="))
    (request,) = farm.wait_for(1)
    shown = path.replace("é", "%C3%A9")
    assert request.path == f"{shown}?signature=a%2Bb%2Fc%3D%3D"


def test_a_large_document_is_sent_whole(farm: Farm) -> None:
    parcel = Parcel("1", "notification", b'"' + b"x" * 3_000_000 + b'"', 0)
    outcome = with_sender(lambda sender: sender.send(recipient(farm.url("/ok")), parcel))
    assert outcome.result == "delivered"
    assert farm.wait_for(1)[0].body == parcel.body


def test_headers_of_the_subscription_are_sent(farm: Farm) -> None:
    attempt(farm.url("/ok"), {"post_headers": {"content-type": "text/x-own", "X-Own": "Grüße"}})
    (request,) = farm.wait_for(1)
    assert request.headers["content-type"] == "text/x-own"
    assert request.headers["x-own"].encode("latin-1").decode() == "Grüße"


# -- what the status means -------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 204, 226, 299])
def test_2xx_is_success(farm: Farm, status: int) -> None:
    assert attempt(farm.url(f"/status/{status}")) == Outcome("delivered", status=status)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
def test_it_is_tried_again(farm: Farm, status: int) -> None:
    assert said(attempt(farm.url(f"/status/{status}"))) == ("failed", "status", status)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 415, 422, 451, 499])
def test_other_4xx_is_final(farm: Farm, status: int) -> None:
    outcome = attempt(farm.url(f"/status/{status}"))
    assert said(outcome) == ("refused", "status", status)
    assert not outcome.gone
    assert outcome.detail == f"The subscriber answered {status}."


def test_410_is_final_for_good(farm: Farm) -> None:
    outcome = attempt(farm.url("/status/410"))
    assert said(outcome) == ("refused", "status", 410)
    assert outcome.gone


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
def test_redirects_are_not_followed(farm: Farm, status: int) -> None:
    with Farm() as canary:
        outcome = attempt(farm.url(f"/redirect/{status}", to=canary.url("/ok")))
        assert said(outcome) == ("failed", "redirect", status)
        assert canary.connections == []
    assert len(farm.requests) == 1


def test_a_status_that_means_nothing_is_no_success() -> None:
    assert said(judged(101, {}, 0)) == ("failed", "status", 101)
    assert said(judged(999, {}, 0)) == ("failed", "status", 999)


@pytest.mark.parametrize("status", [301, 429, 503])
def test_retry_after_is_passed_on(farm: Farm, status: int) -> None:
    assert attempt(farm.url(f"/retry-after/{status}", value="120")).retry_after_s == 120
    in_an_hour = formatdate(time.time() + 3600, usegmt=True)
    seconds = attempt(farm.url(f"/retry-after/{status}", value=in_an_hour)).retry_after_s
    assert seconds is not None
    assert 3590 <= seconds <= 3600


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        (" 7 ", 7),
        ("999999999", RETRY_AFTER_MAX_S),
        ("Thu, 01 Jan 1970 00:16:41 GMT", 1),
        ("Thu, 01 Jan 1970 00:16:39 GMT", 0),
        ("Thursday, 01-Jan-70 00:17:00 GMT", 20),
        ("Fri, 31 Dec 9999 23:59:59 GMT", RETRY_AFTER_MAX_S),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("1e3", None),
        ("٣", None),
        ("9" * 5000, None),
        ("Thu, 99 Foo 1970 99:99:99 GMT", None),
        ("Thu, 01 Jan 99999999999999 00:00:00 GMT", None),
        (", , ,", None),
        ("\x00", None),
    ],
)
def test_retry_after_in_both_forms_and_none(text: str, seconds: int | None) -> None:
    assert retry_after(text, 1000.0) == seconds


# -- receivers that misbehave ----------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/hang", "/drip", "/slow/30"])
def test_an_answer_has_its_time(farm: Farm, path: str) -> None:
    started = time.monotonic()
    outcome = attempt(farm.url(path), delivery_timeout=0.4)
    assert said(outcome) == ("failed", "timeout", None)
    assert outcome.detail == "There was no answer within 0.4 s."
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("path", ["/huge", "/drip-body", "/cut", "/large/70000"])
def test_the_status_counts_whatever_becomes_of_the_body(farm: Farm, path: str) -> None:
    started = time.monotonic()
    assert attempt(farm.url(path)) == Outcome("delivered", status=200)
    assert time.monotonic() - started < LONG_S / 2
    farm.wait_until(lambda: farm.open == 0, what="end of the connection")


@pytest.mark.parametrize("path", ["/endless-headers", "/continue", "/half", "/garbage", "/reset"])
def test_what_is_no_answer_is_a_broken_connection(farm: Farm, path: str) -> None:
    started = time.monotonic()
    assert said(attempt(farm.url(path))) == ("failed", "connection", None)
    assert time.monotonic() - started < LONG_S / 2
    farm.wait_until(lambda: farm.open == 0, what="end of the connection")
    assert len(farm.requests) == 1, "it is not sent twice"


def test_a_listener_that_hangs_up_at_once(farm: Farm) -> None:
    assert said(attempt(farm.url(door="reset"))) == ("failed", "connection", None)


def test_nobody_listens() -> None:
    with Farm() as gone:
        url = gone.url("/ok")
    outcome = attempt(url)
    assert said(outcome) == ("failed", "connection", None)
    assert outcome.detail == "The host cannot be connected to."


def test_an_early_answer_counts(farm: Farm) -> None:
    parcel = Parcel("1", "notification", b'"' + b"x" * 200_000 + b'"', 0)
    outcome = with_sender(lambda sender: sender.send(recipient(farm.url("/early")), parcel))
    assert said(outcome) == ("refused", "status", 413)


def test_who_reads_nothing_keeps_nothing_open(farm: Farm) -> None:
    """The end that reads nothing could otherwise keep our end of the connection open for ever."""
    parcel = Parcel("1", "notification", b'"' + b"x" * 30_000_000 + b'"', 0)
    url = farm.url(door="deaf")

    async def action(sender: WebhookSender) -> None:
        before = sockets_of_this_process()
        assert said(await sender.send(recipient(url), parcel)) == ("failed", "timeout", None)
        await asyncio.sleep(0)  # the loop closes what was aborted
        assert len(farm.connections) == 1
        assert sockets_of_this_process() - before == 1, "the farm's end, but not ours"

    with_sender(action, delivery_timeout=0.5)


def sockets_of_this_process() -> int:
    links = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            links.append(str(link.readlink()))
    return sum(link.startswith("socket:") for link in links)


def test_no_cookie_is_kept(farm: Farm) -> None:
    async def action(sender: WebhookSender) -> None:
        for _ in range(2):
            await sender.send(recipient(farm.url("/cookie")), PARCEL)

    with_sender(action)
    assert all("cookie" not in request.headers for request in farm.wait_for(2))


def test_nothing_is_decompressed(farm: Farm) -> None:
    assert attempt(farm.url("/gzip")).result == "delivered"


def test_proxies_of_the_environment_are_not_used(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Farm() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url(""))
        assert attempt(farm.url("/ok")).result == "delivered"
        assert proxy.connections == []


# -- connections -----------------------------------------------------------------------------------


def test_connections_are_used_again(farm: Farm) -> None:
    async def action(sender: WebhookSender) -> None:
        for _ in range(10):
            assert (await sender.send(recipient(farm.url("/ok")), PARCEL)).result == "delivered"

    with_sender(action)
    assert len(farm.requests) == 10
    assert len(farm.connections) == 1


def test_a_kept_connection_that_was_closed_is_no_failure(farm: Farm) -> None:
    async def action(sender: WebhookSender) -> list[Outcome]:
        return [await sender.send(recipient(farm.url("/stale")), PARCEL) for _ in range(2)]

    assert with_sender(action) == [Outcome("delivered", status=200)] * 2
    assert [request.connection for request in farm.requests] == [1, 1, 2]


def test_that_is_tried_once_only(farm: Farm) -> None:
    async def first_good(to: Exchange) -> None:
        if to.seen:
            to.keep = False
        else:
            to.answer()

    farm.on("/once", first_good)

    async def action(sender: WebhookSender) -> list[Outcome]:
        return [await sender.send(recipient(farm.url("/once")), PARCEL) for _ in range(2)]

    assert [said(each) for each in with_sender(action)] == [
        ("delivered", "", 200), ("failed", "connection", None),
    ]  # fmt: skip
    assert len(farm.requests) == 3


def test_what_comes_unasked_ends_the_connection(farm: Farm) -> None:
    """Otherwise it would be parsed and kept, as an answer to what is sent next."""

    async def action(sender: WebhookSender) -> None:
        await sender.send(recipient(farm.url("/chatter")), PARCEL)
        await asyncio.to_thread(farm.wait_until, lambda: farm.open == 0)
        assert sender._outbound.open == 0

    with_sender(action)


def test_what_comes_unasked_answers_nothing(farm: Farm) -> None:
    said_more = threading.Event()

    async def one_too_many(to: Exchange) -> None:
        to.answer()
        await asyncio.sleep(0.05)
        to.answer(299)
        await to.writer.drain()
        said_more.set()

    farm.on("/more", one_too_many)

    async def action(sender: WebhookSender) -> list[Outcome]:
        first = await sender.send(recipient(farm.url("/more")), PARCEL)
        await asyncio.to_thread(said_more.wait)
        await asyncio.sleep(0)
        return [first, await sender.send(recipient(farm.url("/ok")), PARCEL)]

    assert with_sender(action) == [Outcome("delivered", status=200)] * 2
    assert [request.connection for request in farm.requests] == [1, 2]


def test_only_so_many_connections_are_kept() -> None:
    with Farm() as one, Farm() as other:

        async def action(sender: WebhookSender) -> int:
            sender._outbound.kept_max = 10
            hosts = [farm.url(f"/slow/0.3/{n}") for farm in (one, other) for n in range(10)]
            await asyncio.gather(*(sender.send(recipient(url), PARCEL) for url in hosts))
            return sender._outbound.open

        assert with_sender(action) == 10


def test_all_is_closed_at_the_end(farm: Farm) -> None:
    async def action(sender: WebhookSender) -> None:
        await sender.send(recipient(farm.url("/ok")), PARCEL)
        await sender.close()

    with_sender(action)  # closes once more
    farm.wait_until(lambda: farm.open == 0)


def test_cancelling_an_attempt_closes_its_connection(farm: Farm) -> None:
    async def action(sender: WebhookSender) -> None:
        task = asyncio.create_task(sender.send(recipient(farm.url("/hang")), PARCEL))
        await asyncio.to_thread(farm.wait_for, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(farm.wait_until, lambda: farm.open == 0)

    with_sender(action)


# -- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "[::1]"]
)
def test_forbidden_addresses_are_not_connected_to(farm: Farm, host: str) -> None:
    outcome = attempt(farm.url("/ok", host=host), subscriber_allow=())
    assert said(outcome) == ("failed", "blocked", None)
    assert "loopback" in outcome.detail
    assert "subscriber_allow" in outcome.detail
    assert farm.connections == []


def test_what_a_name_means_is_not_told(farm: Farm) -> None:
    outcome = attempt(farm.url("/ok", host="localhost"), subscriber_allow=())
    assert "127.0.0.1" not in outcome.detail
    assert "::1" not in outcome.detail


def test_of_several_addresses_only_allowed_ones_are_tried(farm: Farm) -> None:
    """localhost means both here; the farm listens on one of them."""
    outcome = attempt(farm.url("/ok", host="localhost"), subscriber_allow=("127.0.0.1/32",))
    assert outcome.result == "delivered"
    with Farm("::1") as six:
        outcome = attempt(six.url("/ok", host="localhost"), subscriber_allow=("127.0.0.1/32",))
        assert outcome.result == "failed"
        assert six.connections == []


def test_ports_are_judged_too(farm: Farm) -> None:
    outcome = attempt("http://192.0.2.1:22/", subscriber_allow=())
    assert said(outcome) == ("failed", "blocked", None)


def test_a_subscriber_that_is_none_is_final() -> None:
    for url in ("http://", "http://a b/", "ftp://example.com/", "http://u@h/", ""):
        assert said(attempt(url)) == ("refused", "internal", None), url


async def with_dns(url: str, **told: Sequence[str]) -> list[Outcome]:
    """Two attempts, with a name server that was told what `name.test` means."""
    async with FakeDns() as dns:
        for name, addresses in told.items():
            dns.tell(f"{name}.test", addresses)
        chosen = Settings(subscriber_allow=LOOPBACK, nameservers=(dns.address,))
        sender = WebhookSender(chosen, Addresses(chosen))
        try:
            return [await sender.send(recipient(url), PARCEL) for _ in range(2)]
        finally:
            await sender.close()


def test_a_name_is_resolved_for_each_connection(farm: Farm) -> None:
    url = farm.url("/close", host="hook.test")
    assert uvloop.run(with_dns(url, hook=["127.0.0.1"])) == [Outcome("delivered", status=200)] * 2
    assert [request.connection for request in farm.requests] == [1, 2]
    assert farm.requests[0].headers["host"] == f"hook.test:{farm.port}"


def test_no_such_name(farm: Farm) -> None:
    outcomes = uvloop.run(with_dns(farm.url("/ok", host="none.test"), hook=["127.0.0.1"]))
    assert [said(outcome) for outcome in outcomes] == [("failed", "dns", None)] * 2
    assert farm.connections == []


def test_a_name_with_many_addresses_costs_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    judged_ips: list[str] = []

    def refusal(self: Addresses, ip: str, port: int) -> str:
        judged_ips.append(ip)
        return f"{ip} is refused"

    monkeypatch.setattr(Addresses, "refusal", refusal)
    addresses = [f"192.0.2.{n}" for n in range(40)]
    outcome = uvloop.run(with_dns("http://many.test/", many=addresses))[0]
    assert said(outcome) == ("failed", "blocked", None)
    assert set(judged_ips) < set(addresses)
    assert len(judged_ips) < 100


def test_a_name_server_that_says_nothing_has_its_time() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*silent.getsockname())
        started = time.monotonic()
        outcome = attempt("http://name.test/", nameservers=(address,), delivery_connect_timeout=0.5)
    assert said(outcome) == ("failed", "dns", None)
    assert outcome.detail == "The name of the host was not resolved within 0.5 s."
    assert time.monotonic() - started < 5


def test_slow_name_servers_hold_up_nobody(farm: Farm) -> None:
    async def action(sender: WebhookSender) -> float:
        names = [f"http://name-{n}.test/" for n in range(500)]
        slow = [asyncio.create_task(sender.send(recipient(name), PARCEL)) for name in names]
        await asyncio.sleep(0)
        started = time.monotonic()
        assert (await sender.send(recipient(farm.url("/ok")), PARCEL)).result == "delivered"
        took_s = time.monotonic() - started
        assert {each.reason for each in await asyncio.gather(*slow)} == {"dns"}
        return took_s

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*silent.getsockname())
        took_s = with_sender(action, nameservers=(address,), delivery_connect_timeout=1.0)
    assert took_s < 0.8


# -- what is logged --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/ok", "/status/404", "/garbage", "/redirect/302", "/hang"])
def test_logs_name_the_subscription_and_nothing_else(farm: Farm, path: str) -> None:
    options = {"post_headers": {"Authorization": "CANARY"}, "trust_id": "CANARY"}
    with capture_logs() as lines:
        attempt(farm.url(path, to="/CANARY", key="CANARY"), options, delivery_timeout=0.3)
    assert lines == [
        {
            "event": "notifying subscriber",
            "subscription": "0123456789abcdef01234567",
            "log_level": "debug",
        }
    ]


def test_what_nobody_foresaw_is_an_outcome_and_a_line(farm: Farm) -> None:
    with capture_logs() as lines:
        outcome = attempt(farm.url("/ok", key="CANARY"), {"post_data": 5})
    assert said(outcome) == ("failed", "internal", None)
    assert lines[-1]["log_level"] == "error"
    assert lines[-1]["error"] == "AttributeError"
    assert "forms.py:" in lines[-1]["where"]
    assert "CANARY" not in str(lines) + outcome.detail


# -- TLS -------------------------------------------------------------------------------------------


def test_a_good_certificate(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(farm.ca_file))
    assert attempt(farm.url("/ok", door="tls")).result == "delivered"
    assert attempt(farm.url("/ok", door="tls", host="localhost")).result == "delivered"


@pytest.mark.parametrize("door", ["wrong-host", "expired", "self-signed"])
def test_bad_certificates_are_refused(
    farm: Farm, monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(farm.ca_file))
    outcome = attempt(farm.url("/ok", door=door))
    assert said(outcome) == ("failed", "tls", None)
    assert outcome.detail.startswith("The certificate is refused: ")
    assert farm.requests == []


def test_a_ca_that_nobody_knows(farm: Farm) -> None:
    assert said(attempt(farm.url("/ok", door="tls"))) == ("failed", "tls", None)
    assert farm.requests == []


def test_tls_where_there_is_none(farm: Farm) -> None:
    outcome = attempt(farm.url("/ok").replace("http:", "https:"))
    assert said(outcome) == ("failed", "tls", None)


def test_a_handshake_has_its_time(farm: Farm) -> None:
    url = farm.url("/ok", door="deaf").replace("http:", "https:")
    assert said(attempt(url, delivery_connect_timeout=0.3)) == ("failed", "timeout", None)


def test_who_reads_nothing_keeps_no_tls_open(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(farm.ca_file))

    async def action(sender: WebhookSender) -> None:
        outcome = await sender.send(recipient(farm.url("/hang", door="tls")), PARCEL)
        assert said(outcome) == ("failed", "timeout", None)
        await asyncio.to_thread(farm.wait_until, lambda: farm.open == 0)
        assert sender._outbound.open == 0

    with_sender(action, delivery_timeout=0.5)


# -- trusts ----------------------------------------------------------------------------------------


class Keystone:
    """Gives numbered tokens; can be told to fail or to hang."""

    def __init__(self, trouble: str = "") -> None:
        self.trouble = trouble
        self.asked: list[str] = []
        self.forgotten: list[str] = []

    async def token(self, trust_id: str) -> str:
        self.asked.append(trust_id)
        if self.trouble == "hang":
            await asyncio.Event().wait()
        if self.trouble:
            raise TrustFailed(self.trouble)
        return f"token-{len(self.asked)}"

    def forget(self, trust_id: str) -> None:
        self.forgotten.append(trust_id)


def by_trust(
    url: str, keystone: Keystone | None, options: Mapping[str, Any] | None = None, **settings: Any
) -> Outcome:
    given = {"trust_id": "abc"} if options is None else options
    return with_sender(
        lambda sender: sender.send(recipient(f"trust+{url}", given), PARCEL), keystone, **settings
    )


def test_a_trust_gives_a_token(farm: Farm) -> None:
    keystone = Keystone()
    options = {"trust_id": "abc", "post_headers": {"x-auth-token": "mine", "A": "b"}}
    assert by_trust(farm.url("/ok"), keystone, options) == Outcome("delivered", status=200)
    (request,) = farm.wait_for(1)
    assert request.headers["x-auth-token"] == "token-1"
    assert request.headers["a"] == "b"
    assert keystone.asked == ["abc"]


def test_a_token_goes_to_the_subscribed_host_only(farm: Farm) -> None:
    with Farm() as other:
        outcome = by_trust(farm.url("/redirect/307", to=other.url("/ok")), Keystone())
        assert said(outcome) == ("failed", "redirect", 307)
        assert other.connections == []


def test_without_a_token_it_is_tried_again(farm: Farm) -> None:
    outcome = by_trust(farm.url("/ok"), Keystone("It is on fire."))
    assert said(outcome) == ("failed", "token", None)
    assert outcome.detail.startswith("It is on fire.")
    assert said(by_trust(farm.url("/ok"), None)) == ("failed", "token", None)
    assert farm.connections == []


def test_without_a_trust_id_there_is_no_token(farm: Farm) -> None:
    assert said(by_trust(farm.url("/ok"), Keystone(), {})) == ("failed", "token", None)


def test_a_token_has_its_time(farm: Farm) -> None:
    outcome = by_trust(farm.url("/ok"), Keystone("hang"), delivery_timeout=0.3)
    assert said(outcome) == ("failed", "token", None)
    assert farm.connections == []


def test_a_token_that_is_not_accepted_is_asked_for_anew(farm: Farm) -> None:
    keystone = Keystone()
    assert said(by_trust(farm.url("/status/401"), keystone)) == ("failed", "token", 401)
    assert keystone.forgotten == ["abc"]


# -- many ------------------------------------------------------------------------------------------


def test_who_hangs_does_not_hold_up_others(farm: Farm) -> None:
    async def action(sender: WebhookSender) -> float:
        hanging = [
            asyncio.create_task(sender.send(recipient(farm.url(f"/hang/{n}")), PARCEL))
            for n in range(200)
        ]
        await asyncio.to_thread(farm.wait_for, 200)
        started = time.monotonic()
        outcome = await sender.send(recipient(farm.url("/ok")), PARCEL)
        took_s = time.monotonic() - started
        assert outcome.result == "delivered"
        farm.release()
        assert {each.result for each in await asyncio.gather(*hanging)} == {"delivered"}
        return took_s

    assert with_sender(action) < 1
