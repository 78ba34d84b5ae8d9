"""Nobody makes this service connect to what only it can reach.

Canaries listen on every address of this machine, and must never hear a connection. Beside them, on
the same port, one receiver may be posted to: on 127.0.0.3, which `subscriber_allow` names. So an
address decides, and nothing but it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop

from nusku.addresses import Addresses
from nusku.broker.deliveries import Parcel, Recipient
from nusku.config import Settings
from nusku.model import QueueKey
from nusku.notify.outcome import Outcome
from nusku.notify.webhook import WebhookSender
from tests.live import Api, LiveServer, eventually, expect
from tests.security.dns import A, FakeDns

T = TypeVar("T")

OPEN = "127.0.0.3"
ALLOW = (f"{OPEN}/32",)
ATTEMPTS = 10_000
AT_ONCE = 32
QUEUE = QueueKey("queue", "p", "q")
PARCEL = Parcel("1-0", "notification", b'{"ttl": 60, "body": 1}', 1_767_225_600_000)
# Somewhere in between sit proxies and load balancers of all kinds: these are what they answer.
REDIRECTS = (300, 301, 302, 303, 304, 305, 306, 307, 308)


# -- what listens ---------------------------------------------------------------------------------


@dataclass
class Trap:
    """Canaries and the receiver, on one port."""

    port: int
    heard: Counter[str] = field(default_factory=Counter)
    """Connections to canaries, by the address that was connected to."""
    answered: int = 0
    """Requests to the receiver."""
    answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

    def redirect(self, status: int, location: str) -> None:
        """From now on the receiver sends everybody there, in all the ways there are."""
        self.answer = (
            f"HTTP/1.1 {status} Elsewhere\r\nLocation: {location}\r\nRefresh: 0; url={location}\r\n"
            f"Content-Location: {location}\r\nLink: <{location}>; rel=preload\r\n"
            f'Alt-Svc: http/1.1="127.0.0.1:{self.port}"\r\n'
            "Content-Length: 0\r\nConnection: close\r\n\r\n"
        ).encode()

    async def hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heard[writer.get_extra_info("sockname")[0]] += 1
        writer.close()

    async def receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(len(PARCEL.body))
            self.answered += 1
            writer.write(self.answer)
            await writer.drain()
        writer.close()


def listener(family: socket.AddressFamily, ip: str, port: int) -> socket.socket:
    """A socket that may share its port: whoever is bound to the exact address gets what is for it."""
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind((ip, port))
    made.listen(512)
    return made


@contextlib.asynccontextmanager
async def trap() -> AsyncIterator[Trap]:
    every = listener(socket.AF_INET, "0.0.0.0", 0)
    set_up = Trap(every.getsockname()[1])
    sockets = [(set_up.hear, every)]
    sockets.append((set_up.receive, listener(socket.AF_INET, OPEN, set_up.port)))
    with contextlib.suppress(OSError):  # not everywhere is there IPv6
        sockets.append((set_up.hear, listener(socket.AF_INET6, "::", set_up.port)))
    servers = [await asyncio.start_server(serve, sock=sock) for serve, sock in sockets]
    try:
        yield set_up
        # Whoever has connected at the last moment is waiting to be accepted.
        await asyncio.sleep(0.05)
    finally:
        for server in servers:
            server.close()
            await server.wait_closed()


@dataclass
class Bait:
    """A sender with its name server, and a trap."""

    trap: Trap
    dns: FakeDns
    sender: WebhookSender

    async def send(self, host: str, rest: str = "/") -> Outcome:
        """One attempt at a host, with the port that all of them listen on."""
        uri = f"http://{host}:{self.trap.port}{rest}"
        return await self.sender.send(Recipient("0" * 24, QUEUE, uri, {}), PARCEL)

    async def send_all(self, hosts: Iterable[str]) -> Counter[tuple[str, str]]:
        """Attempts at all these hosts, some at a time; how they came out."""
        outcomes: Counter[tuple[str, str]] = Counter()
        left = iter(hosts)

        async def some() -> None:
            for host in left:
                outcome = await self.send(host)
                outcomes[outcome.result, outcome.reason] += 1

        await asyncio.gather(*(some() for _ in range(AT_ONCE)))
        return outcomes


def with_bait(
    action: Callable[[Bait], Awaitable[T]], own: Iterable[str] = (), **settings: Any
) -> Trap:
    """Do something with a sender, in a loop as the server has it; return what the trap caught.

    ``own``: hosts that are held to be ours, on the port of the trap.
    """

    async def run() -> Trap:
        async with trap() as set_up, FakeDns() as dns:
            given = {"subscriber_allow": ALLOW, "nameservers": (dns.address,), **settings}
            chosen = Settings(**given)
            ours = [(host, set_up.port) for host in own]
            sender = WebhookSender(chosen, Addresses(chosen, ours))
            try:
                await action(Bait(set_up, dns, sender))
            finally:
                await sender.close()
        return set_up

    return uvloop.run(run())


# -- forbidden addresses --------------------------------------------------------------------------

LOOPBACK = [f"127.0.0.{last}" for last in (1, 2, 4, 5, 53, 254, 255)] + ["127.1.2.3", "0.0.0.0"]
FORBIDDEN = [
    *LOOPBACK,
    "10.0.0.1",
    "169.254.169.254",
    "192.168.0.1",
    "100.100.100.200",
    "224.0.0.1",
]
FORBIDDEN_6 = [
    "::1", "::", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "::127.0.0.1", "::ffff:0:7f00:1",
    "64:ff9b::7f00:1", "64:ff9b:1::7f00:1", "2002:7f00:1::1", "fe80::1", "fd00:ec2::254", "fc00::1",
    "ff02::1", "2001:0:808:808::80ff:fffe", "2606:4700::5efe:7f00:1", "64:ff9b::7f00:3", "::7f00:3",
]  # fmt: skip


def spellings(ip: str) -> list[str]:
    """Ways of writing an IPv4 address that some resolver or library takes."""
    number = int(IPv4Address(ip))
    a, b, c, d = IPv4Address(ip).packed
    # Larger numbers would be others with a zero before them.
    padded = ".".join(f"{byte:03}" if byte < 8 else str(byte) for byte in (a, b, c, d))
    wide = str.maketrans("0123456789.", "０１２３４５６７８９。")
    circled = str.maketrans("0123456789", "⓪①②③④⑤⑥⑦⑧⑨")
    return [
        ip, f"{ip}.", str(number), hex(number), f"0X{number:08X}", f"0{number:o}",
        f"{a}.{number & 0xFFFFFF}", f"{a}.{b}.{c << 8 | d}", f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}", f"0{a:o}.{b}.0x{c:x}.{d}", f"0x{a:x}.{number & 0xFFFFFF}",
        padded, f"00000{a:o}.{b}.{c}.{d}", ip.translate(wide),
        ip.translate(circled), hex(number).translate(wide),
    ]  # fmt: skip


def inside_of_others(ip: str) -> list[str]:
    """IPv6 addresses that lead to an IPv4 address, in brackets."""
    v4 = int(IPv4Address(ip))
    numbers = [
        0xFFFF << 32 | v4, v4, 0xFFFF << 48 | v4, 0x64_FF9B << 96 | v4, 0x64_FF9B_0001 << 80 | v4,
        0x2002 << 112 | v4 << 80, 0x2001_0000 << 96 | 0x0808_0808 << 64 | v4 ^ 0xFFFF_FFFF,
    ]  # fmt: skip
    return [f"[{IPv6Address(number)}]" for number in numbers] + [f"[::ffff:{ip}]"]


# -- at creation ----------------------------------------------------------------------------------

CREATION = list(
    dict.fromkeys(
        [
            *spellings("127.0.0.1"),
            *spellings("169.254.169.254"),
            *inside_of_others("127.0.0.1"),
            *inside_of_others("169.254.169.254"),
            *FORBIDDEN,
            *(f"[{ip}]" for ip in FORBIDDEN_6),
            *("[::1%25lo]", "[fe80::1%25eth0]", "[fe80::1%eth0]", "0", "127.1", "127.0.0.\u00ad1"),
            *("127.0.0.1%00.example.com", "%31%32%37.0.0.1", "127%2e0%2e0%2e1", "user@127.0.0.1"),
            *("127.0.0.1\\@example.com", "example.com@127.0.0.1", "[127.0.0.1]", "127.0.0.1#.x"),
            *("127。0。0。1", "127．0．0．1", "𝟏𝟐𝟕.𝟎.𝟎.𝟏", "127.0.0.1\u200b", "256.256.256.256"),
            *("1.2.3.4.5", "0x7f.0.0.0x", "999999999999", "127.0.0.0x1", "a.0x7f000001"),
        ]
    )
)


def test_there_are_enough_tricks() -> None:
    assert len(CREATION) >= 60


@pytest.fixture(scope="module")
def strict(shared_server: Callable[..., LiveServer]) -> LiveServer:
    return shared_server(subscriber_private="refuse")


@pytest.mark.parametrize("scheme", ["http", "https", "trust+http", "TRUST+HTTPS"])
def test_addresses_are_judged_at_creation(strict: LiveServer, scheme: str) -> None:
    api = strict.api()
    taken = []
    for host in CREATION:
        document = {"subscriber": f"{scheme}://{host}:8080/latest/meta-data/"}
        answer = api.request("POST", api.path("q", "subscriptions"), json=document)
        if answer.status_code != 400 or answer.json()["title"] != "Invalid API request":
            taken.append((host, answer.status_code, answer.text))
    assert not taken
    assert expect(api.get(api.path("q", "subscriptions")), 200)["subscriptions"] == []


def test_a_subscription_cannot_be_pointed_there_later(strict: LiveServer) -> None:
    api = strict.api()
    document = {"subscriber": "http://hook.example/"}
    made = expect(api.request("POST", api.path("q", "subscriptions"), json=document), 201)
    path = api.path("q", "subscriptions", made["subscription_id"])
    for host in CREATION:
        answer = api.request("PATCH", path, json={"subscriber": f"http://{host}/"})
        assert answer.status_code == 400, host
    assert expect(api.get(path), 200)["subscriber"] == document["subscriber"]


@pytest.mark.parametrize(
    ("host", "setting"),
    [
        ("127.0.0.1", "subscriber_allow"),
        ("2130706433", "subscriber_allow"),
        ("10.0.0.1", "subscriber_private"),
        ("[fc00::1]", "subscriber_private"),
        ("8.8.8.8:22", "subscriber_ports"),
        ("hook.example:22", "subscriber_ports"),
    ],
)
def test_the_refusal_names_the_setting(strict: LiveServer, host: str, setting: str) -> None:
    api = strict.api()
    document = {"subscriber": f"http://{host}/"}
    answer = api.request("POST", api.path("q", "subscriptions"), json=document)
    assert answer.status_code == 400
    assert setting in answer.json()["description"]


# -- at every attempt -----------------------------------------------------------------------------


def test_the_trap_would_spring() -> None:
    """Without the rules the canaries do hear us, by each of the ways that the tests below try."""

    async def walk_in(bait: Bait) -> None:
        bait.dns.tell("hook.test", ["127.0.0.1"])
        bait.dns.tell("alias.test", ["hook.test"])
        bait.dns.tell("mapped.test", ["::ffff:127.0.0.1"])
        for host in (
            "127.0.0.1",
            "2130706433",
            "hook.test",
            "alias.test",
            "mapped.test",
            "localhost",
        ):
            before = bait.trap.heard.total()
            await bait.send(host)
            assert bait.trap.heard.total() > before, host

    with_bait(walk_in, subscriber_allow=("0.0.0.0/0", "::/0"))


def test_the_receiver_would_be_reached() -> None:
    async def send(bait: Bait) -> None:
        bait.dns.tell("hook.test", [OPEN])
        bait.dns.tell("alias.test", ["other.test"])
        bait.dns.tell("other.test", ["hook.test"])
        bait.dns.tell("mapped.test", [f"::ffff:{OPEN}"])
        for host in (
            OPEN,
            "hook.test",
            "HOOK.test.",
            "alias.test",
            "mapped.test",
            f"[::ffff:{OPEN}]",
        ):
            assert (await bait.send(host)).result == "delivered", host

    caught = with_bait(send)
    assert caught.answered == 6
    assert not caught.heard


@pytest.mark.parametrize("ip", [*FORBIDDEN, *FORBIDDEN_6])
def test_a_name_for_a_forbidden_address_is_blocked(ip: str) -> None:
    async def send(bait: Bait) -> None:
        bait.dns.tell("hook.test", [ip])
        bait.dns.tell("alias.test", ["hook.test"])
        for host in ("hook.test", "alias.test"):
            outcome = await bait.send(host)
            assert (outcome.result, outcome.reason) == ("failed", "blocked")
            assert ip not in outcome.detail

    assert not with_bait(send).heard


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost.", socket.gethostname()])
def test_names_of_this_machine_are_blocked(host: str) -> None:
    async def send(bait: Bait) -> None:
        assert (await bait.send(host)).reason in {"blocked", "dns"}

    assert not with_bait(send).heard


def test_a_mixed_answer_leads_only_to_what_is_allowed() -> None:
    async def send(bait: Bait) -> None:
        bait.dns.tell("mixed.test", ["127.0.0.1", "::1", OPEN, "127.0.0.2", "::ffff:127.0.0.1"])
        for _ in range(20):
            assert (await bait.send("mixed.test")).result == "delivered"

    caught = with_bait(send)
    assert caught.answered == 20
    assert not caught.heard


def test_a_name_is_resolved_once_an_attempt_and_that_address_is_used() -> None:
    async def send(bait: Bait) -> None:
        bait.dns.tell("hook.test", [OPEN], ["127.0.0.1"])
        outcomes = [(await bait.send("hook.test")).result for _ in range(20)]
        assert outcomes == ["delivered", "failed"] * 10
        assert bait.dns.asked["hook.test", A] == 20

    caught = with_bait(send)
    assert caught.answered == 10
    assert not caught.heard


@pytest.mark.parametrize("status", REDIRECTS)
def test_a_redirect_is_a_failure_and_followed_by_nobody(status: int) -> None:
    async def send(bait: Bait) -> None:
        port = bait.trap.port
        for location in (f"http://127.0.0.1:{port}/", f"//127.0.0.1:{port}/", "http://localhost/"):
            bait.trap.redirect(status, location)
            outcome = await bait.send(OPEN)
            assert (outcome.result, outcome.reason, outcome.status) == (
                "failed",
                "redirect",
                status,
            )

    caught = with_bait(send)
    assert caught.answered == 3
    assert not caught.heard


def test_this_service_itself_is_blocked_on_every_address_of_the_machine() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("203.0.113.1", 9))  # sends nothing, but tells where from it would
        except OSError:
            pytest.skip("this machine has no address but loopback")
        here = probe.getsockname()[0]

    async def send(bait: Bait) -> None:
        bait.dns.tell("hook.test", [here])
        bait.dns.tell("mapped.test", [f"::ffff:{here}"])
        for host in (here, "hook.test", "mapped.test"):
            assert (await bait.send(host)).reason == "blocked"

    for own in ("", "0.0.0.0", "127.0.0.1", here):
        assert not with_bait(send, own=[own], subscriber_private="allow").heard


# -- many times -----------------------------------------------------------------------------------


def literals() -> Iterator[str]:
    for ip in FORBIDDEN:
        yield from spellings(ip)
        yield from inside_of_others(ip)
    yield from (f"[{ip}]" for ip in FORBIDDEN_6)


def tell_everything(dns: FakeDns) -> tuple[list[str], list[str]]:
    """Names that lead to nothing but forbidden addresses, and those that lead elsewhere too."""
    bad, mixed = [], []
    for at, ip in enumerate([*FORBIDDEN, *FORBIDDEN_6]):
        dns.tell(f"bad{at}.test", [ip])
        dns.tell(f"alias{at}.test", [f"bad{at}.test"])
        dns.tell(f"chain{at}.test", [f"alias{at}.test"])
        bad += [f"bad{at}.test", f"alias{at}.test", f"chain{at}.test"]
        dns.tell(f"turns{at}.test", [OPEN], [ip])
        dns.tell(
            f"late{at}.test", [OPEN], [OPEN], [OPEN], [ip], [f"::ffff:{OPEN}"], [f"bad{at}.test"]
        )
        dns.tell(f"both{at}.test", [OPEN, ip])
        dns.tell(f"first{at}.test", [ip, OPEN])
        dns.tell(f"many{at}.test", [*LOOPBACK, OPEN, ip, "::1", *FORBIDDEN_6])
        dns.tell(f"away{at}.test", [f"turns{at}.test"], [f"bad{at}.test"], [f"both{at}.test"])
        mixed += [f"{what}{at}.test" for what in ("turns", "late", "both", "first", "many", "away")]
    return bad, mixed


def taking(number: int, hosts: Sequence[str]) -> Iterator[str]:
    return itertools.islice(itertools.cycle(hosts), number)


@pytest.mark.slow
def test_ten_thousand_attempts_and_no_canary_hears_a_connection() -> None:
    counted: Counter[str] = Counter()

    async def send(bait: Bait) -> None:
        bad, mixed = tell_everything(bait.dns)
        share = ATTEMPTS // 4

        outcomes = await bait.send_all(taking(share, list(literals())))
        assert set(outcomes) == {("failed", "blocked")}
        counted["literals"] = outcomes.total()

        outcomes = await bait.send_all(taking(share, bad))
        # On a busy machine a name server's answer may come too late.
        assert set(outcomes) <= {("failed", "blocked"), ("failed", "dns")}
        assert outcomes["failed", "blocked"] > share * 0.9
        counted["names"] = outcomes.total()
        assert bait.trap.answered == 0

        outcomes = await bait.send_all(taking(share, mixed))
        # The two families take turns by themselves, so at times a name has no address at all.
        assert set(outcomes) <= {("failed", "blocked"), ("failed", "dns"), ("delivered", "")}
        assert outcomes["failed", "blocked"] > share // 10
        assert outcomes["delivered", ""] == bait.trap.answered > share // 4
        counted["rebinding"] = outcomes.total()

        port = bait.trap.port
        to = [
            f"{host}:{port}"
            for host in ("127.0.0.1", "2130706433", "[::1]", "localhost", "bad0.test")
        ]
        places = [f"{scheme}//{host}/" for scheme in ("http:", "", "HTTP:") for host in to]
        ways = list(itertools.product(REDIRECTS, places))
        for status, location in ways:
            bait.trap.redirect(status, location)
            outcomes = await bait.send_all(taking(-(-share // len(ways)), [OPEN, "both0.test"]))
            assert set(outcomes) <= {("failed", "redirect"), ("failed", "dns")}
            assert outcomes["failed", "redirect"] > outcomes.total() * 0.4  # literals at the least
            counted["redirects"] += outcomes.total()

    caught = with_bait(send)
    assert counted.total() >= ATTEMPTS
    assert not caught.heard, f"canaries heard {dict(caught.heard)}"


# -- with the whole server ------------------------------------------------------------------------

ONCE = {"retries_with_no_delay": 1, "minimum_delay_retries": 0, "maximum_delay_retries": 0}
HOSTS = {
    # What an attempt may come to.
    "bad.test": {"blocked"},
    "alias.test": {"blocked"},
    "mapped.test": {"blocked"},
    "metadata.test": {"blocked"},
    "localhost": {"blocked", "dns"},
    "turns.test": {"blocked", "redirect"},
    "mixed.test": {"redirect"},
    OPEN: {"redirect"},
}


def test_a_running_server_keeps_away_from_canaries(tmp_path: Path) -> None:
    def talk(api: Api, port: int) -> None:
        ids = {}
        for host in HOSTS:
            uri = f"http://{host}:{port}/{'a' * 20}"
            document = {"subscriber": uri, "options": {"_retry_policy": ONCE}}
            made = expect(api.request("POST", api.path("q", "subscriptions"), json=document), 201)
            ids[host] = made["subscription_id"]
        api.post_bodies("q", 1, 2, 3)
        for host, id_ in ids.items():
            path = api.path("q", "subscriptions", id_, "status")

            def tried(path: str = path) -> list[dict[str, Any]]:
                attempts: list[dict[str, Any]] = expect(api.get(path), 200)["attempts"]
                return attempts if len(attempts) >= 6 else []

            attempts = eventually(tried)
            assert {each["outcome"] for each in attempts} == {"failed"}
            assert {each["reason"] for each in attempts} <= HOSTS[host], host

    async def run() -> Trap:
        async with trap() as set_up, FakeDns() as dns:
            set_up.redirect(307, f"http://127.0.0.1:{set_up.port}/")
            dns.tell("bad.test", ["127.0.0.1", "::1"])
            dns.tell("alias.test", ["bad.test"])
            dns.tell("mapped.test", ["::ffff:127.0.0.1"])
            dns.tell("metadata.test", ["169.254.169.254", "fd00:ec2::254"])
            dns.tell("turns.test", [OPEN], ["127.0.0.2"])
            dns.tell("mixed.test", ["127.0.0.1", OPEN, "::1"])
            server = LiveServer(tmp_path, subscriber_allow=ALLOW, nameservers=(dns.address,))
            await asyncio.to_thread(server.start)
            try:
                await asyncio.to_thread(talk, server.api(), set_up.port)
            finally:
                await asyncio.to_thread(server.stop)
        return set_up

    caught = asyncio.run(run())
    assert caught.answered > 0
    assert not caught.heard
