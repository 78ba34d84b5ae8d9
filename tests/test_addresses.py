"""Which addresses may be connected to, and which hosts are addresses."""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nusku.addresses import Addresses, literal, of_this_machine
from nusku.config import Settings

STRICT = Addresses(Settings())
PRIVATE_TOO = Addresses(Settings(subscriber_private="allow"))

PRIVATE = ["10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1"]
PRIVATE += ["100.64.0.1", "100.127.255.255", "fc00::1", "fdff:ffff::1"]
NEVER = [
    "0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.254", "169.254.0.1", "169.254.169.254",
    "169.254.170.2", "192.0.0.8", "192.0.0.192", "192.0.2.1", "192.88.99.1", "198.18.0.1",
    "198.19.255.255", "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.250", "240.0.0.1",
    "255.255.255.255", "100.100.100.200", "168.63.129.16",
    "::", "::1", "::7f00:1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:0.0.0.0",
    "::ffff:169.254.169.254", "::ffff:0:7f00:1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1", "64:ff9b:1::808:808", "100::1", "100:0:0:1::1", "2001::1", "2001:2::1",
    "2001:10::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::", "2002:a9fe:a9fe::1",
    "3fff::1", "3fff:fff:ffff::1", "5f00::1", "4000::1", "fe80::1", "fe80::1%eth0", "fe80::1%1",
    "febf::1", "fec0::1", "feff::1", "ff02::1", "ff0e::1", "fd00:ec2::254", "fd20:ce::254",
    "fd00:42::42", "fe80::a9fe:a9fe", "2606:4700::5efe:7f00:1", "2606:4700::200:5efe:7f00:1",
    "2606:4700::1%lo",
]  # fmt: skip
PUBLIC = [
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0",
    "126.255.255.255", "128.0.0.0", "169.253.255.255", "169.255.0.0", "172.15.255.255",
    "172.32.0.0", "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0",
    "223.255.255.255", "::ffff:8.8.8.8", "2606:4700::1111", "2a00:1450::1", "2001:200::1",
    "64:ff9b::808:808", "2002:808:808::1", "2001:0:808:808::f6f6:f6f6", "2001:db7::1", "2001:db9::1", "3ffe:ffff::1",
]  # fmt: skip

BLOCKED_V4 = [ip_network(n) for n in (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
    "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
    "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
)]  # fmt: skip


def teredo(server: int, client: int) -> IPv6Address:
    return IPv6Address(0x2001_0000 << 96 | server << 64 | client ^ 0xFFFF_FFFF)


EMBEDDINGS: dict[str, Callable[[int], IPv6Address]] = {
    "mapped": lambda v4: IPv6Address(0xFFFF << 32 | v4),
    "compatible": IPv6Address,
    "translated": lambda v4: IPv6Address(0xFFFF << 48 | v4),
    "NAT64": lambda v4: IPv6Address(0x64_FF9B << 96 | v4),
    "local NAT64": lambda v4: IPv6Address(0x64_FF9B_0001 << 80 | v4),
    "6to4": lambda v4: IPv6Address(0x2002 << 112 | v4 << 80 | 1),
    "Teredo client": lambda v4: teredo(0x0808_0808, v4),
    "Teredo server": lambda v4: teredo(v4, 0x0808_0808),
    "ISATAP": lambda v4: IPv6Address(0x2606_4700 << 96 | 0x5EFE << 32 | v4),
}


@pytest.mark.parametrize("ip", PRIVATE + NEVER)
def test_a_special_address_is_refused_and_the_setting_named(ip: str) -> None:
    refusal = STRICT.refusal(ip, 80)
    assert refusal is not None
    assert "subscriber_allow" in refusal


@pytest.mark.parametrize(
    ("ip", "what"),
    [
        ("0.0.0.0", "is an unspecified"),
        ("::", "is an unspecified"),
        ("127.0.0.1", "is a loopback"),
        ("::1", "is a loopback"),
        ("::ffff:127.0.0.1", "is a loopback"),
        ("64:ff9b::7f00:1", "stands for a loopback"),
        ("fe80::1", "is a link-local"),
        ("169.254.0.1", "is a link-local"),
        ("fec0::1", "is a site-local"),
        ("ff02::1", "is a multicast"),
        ("fd00:ec2::254", "metadata"),
        ("fc00::1", "is a private"),
    ],
)
def test_the_refusal_says_what_the_address_is(ip: str, what: str) -> None:
    assert what in (STRICT.refusal(ip, 80) or "")


@pytest.mark.parametrize("ip", PUBLIC)
def test_a_public_address_is_not(ip: str) -> None:
    assert STRICT.refusal(ip, 443) is None
    assert PRIVATE_TOO.refusal(ip, 443) is None


@pytest.mark.parametrize("ip", PRIVATE)
def test_private_addresses_are_a_matter_of_a_setting(ip: str) -> None:
    assert "subscriber_private = allow" in (STRICT.refusal(ip, 80) or "")
    assert PRIVATE_TOO.refusal(ip, 80) is None


@pytest.mark.parametrize("ip", NEVER)
def test_the_rest_is_refused_either_way(ip: str) -> None:
    assert "subscriber_private" not in (STRICT.refusal(ip, 80) or "subscriber_private")
    assert PRIVATE_TOO.refusal(ip, 80) is not None


@given(
    network=st.sampled_from(BLOCKED_V4),
    within=st.integers(0, 2**32 - 1),
    embed=st.sampled_from(sorted(EMBEDDINGS)),
)
def test_a_refused_address_is_refused_inside_of_another(
    network: IPv4Network, within: int, embed: str
) -> None:
    v4 = int(network.network_address) + within % network.num_addresses
    assert STRICT.refusal(str(IPv4Address(v4)), 80) is not None
    assert STRICT.refusal(str(EMBEDDINGS[embed](v4)), 80) is not None


@given(st.integers(0, 2**128 - 1))
def test_outside_of_global_unicast_and_its_translation_nothing_is_permitted(number: int) -> None:
    ip = IPv6Address(number)
    known = ip in ip_network("2000::/3") or ip in ip_network("64:ff9b::/96") or ip.ipv4_mapped
    if not known:
        assert STRICT.refusal(str(ip), 80) is not None


@given(st.text(max_size=20), st.integers())
def test_nothing_that_is_no_address_or_port_is_permitted(text: str, port: int) -> None:
    refusal = STRICT.refusal(text, port)
    if refusal is None:
        assert 1 <= port <= 65535
        assert literal(text) is not None


@pytest.mark.parametrize(
    "ip", ["", "localhost", "127.1", "0x7f.1", "[::1]", "1.1.1.1 ", "01.1.1.1"]
)
def test_only_plain_addresses_are_taken(ip: str) -> None:
    assert STRICT.refusal(ip, 80) is not None


# -- settings -------------------------------------------------------------------------------------


def test_allowed_networks_may_be_connected_to_whatever_else_holds() -> None:
    settings = Settings(
        subscriber_allow=("127.0.0.3/32", "10.1.0.0/16", "fe80::/64", "fd00:ec2::/32")
    )
    addresses = Addresses(settings, own={("", 22)}, local=lambda _: True)
    for ip in (
        "127.0.0.3",
        "10.1.2.3",
        "::ffff:127.0.0.3",
        "fe80::1",
        "fe80::1%lo",
        "fd00:ec2::254",
    ):
        assert addresses.refusal(ip, 22) is None
    for ip in ("127.0.0.1", "127.0.0.2", "127.0.0.4", "10.0.0.1", "10.2.0.0", "::1", "fe80:1::1"):
        assert addresses.refusal(ip, 8080) is not None


def test_what_stands_for_an_allowed_address_elsewhere_is_not_allowed() -> None:
    addresses = Addresses(Settings(subscriber_allow=("127.0.0.3/32",)))
    for ip in ("64:ff9b::7f00:3", "2002:7f00:3::1", "::7f00:3"):
        assert addresses.refusal(ip, 80) is not None


@pytest.mark.parametrize("port", [1, 22, 25, 79, 81, 442, 444, 1023])
def test_other_ports_are_refused(port: int) -> None:
    assert "subscriber_ports" in (STRICT.refusal("1.1.1.1", port) or "")
    assert "subscriber_ports" in (STRICT.port_refusal(port) or "")


@pytest.mark.parametrize("port", [80, 443, 1024, 8080, 65535])
def test_usual_ports_are_not(port: int) -> None:
    assert STRICT.refusal("1.1.1.1", port) is None
    assert STRICT.port_refusal(port) is None


@pytest.mark.parametrize("port", [-1, 0, 65536])
def test_what_is_no_port_is_refused_everywhere(port: int) -> None:
    addresses = Addresses(Settings(subscriber_allow=("0.0.0.0/0",)))
    assert addresses.refusal("1.1.1.1", port) is not None


def test_a_port_is_left_to_the_attempt_where_the_address_may_make_it_legal() -> None:
    addresses = Addresses(Settings(subscriber_allow=("10.0.0.0/8",), subscriber_ports=("443",)))
    assert addresses.port_refusal(25) is None
    assert addresses.refusal("10.0.0.1", 25) is None
    assert addresses.refusal("1.1.1.1", 25) is not None
    assert addresses.refusal("1.1.1.1", 443) is None


# -- the service itself ---------------------------------------------------------------------------


def test_our_listeners_are_refused_on_every_address_of_this_machine() -> None:
    ours = {"9.9.9.9", "2606:4700::5"}
    addresses = Addresses(Settings(), own=[("127.0.0.1", 8888)], local=ours.__contains__)
    for ip in ("9.9.9.9", "2606:4700::5", "::ffff:9.9.9.9", "2002:909:909::1", "64:ff9b::909:909"):
        assert "this service itself" in (addresses.refusal(ip, 8888) or "")
        assert addresses.refusal(ip, 8889) is None
    assert addresses.refusal("9.9.9.8", 8888) is None


def test_an_endpoint_elsewhere_that_is_ours_is_refused_there() -> None:
    addresses = Addresses(Settings(), own={("9.9.9.9", 5432)}, local=lambda _: False)
    assert addresses.refusal("9.9.9.9", 5432) is not None
    assert addresses.refusal("9.9.9.9", 5433) is None
    assert addresses.refusal("9.9.9.8", 5432) is None


def test_a_listener_may_come_later() -> None:
    own: set[tuple[str, int]] = set()
    addresses = Addresses(Settings(), own, local=lambda _: True)
    assert addresses.refusal("9.9.9.9", 8888) is None
    own.add(("0.0.0.0", 8888))
    assert addresses.refusal("9.9.9.9", 8888) is not None


def test_this_machine_knows_its_addresses() -> None:
    assert of_this_machine("127.0.0.1")
    assert of_this_machine("127.1.2.3")
    assert not of_this_machine("203.0.113.77")
    assert not of_this_machine("2001:db8::1")


def test_who_cannot_look_answers_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> socket.socket:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "socket", fail)
    assert of_this_machine("203.0.113.77")


# -- addresses in place of names ------------------------------------------------------------------

SPELLINGS = {
    "127.0.0.1": [
        "127.0.0.1", "127.0.0.1.", "127.0.0.1..", "127.1", "127.0.1", "2130706433", "0x7f000001",
        "0X7F000001", "0x7f.1", "0x7f.0.0.0x1", "0177.0.0.1", "0177.0.1", "017700000001",
        "0x7F.0000000000000.0.01", "000000177.0.0.1", "127.0x0.00.1", "①②⑦.⓪.⓪.①", "127。0。0。1",
        "127．0．0．1", "127｡0｡0｡1", "１２７.0.0.1", "１２７．０．０．１", "𝟏𝟐𝟕.𝟎.𝟎.𝟏", "𝟙𝟚𝟟.𝟘.𝟘.𝟙",
        "¹²⁷.⁰.⁰.¹", "127.0.0.\u00ad1", "127.0.0\u200b.1", "127.0.0.1\u2060", "\ufeff127.0.0.1",
        "12\u200d7.0.0.1", "127.0.0\ufe0f.1", "127.0.0.\u20611", "%31%32%37.0.0.1", "127%2e0%2e0%2e1", "%2531%32%37.0.0.1", " 127.0.0.1",
        "127.0.0.1 x", "127.0.0.1\x00.example.com", "127.0.0.1\tx", "0x7f.⒈",
        "[127.0.0.1]", "０ｘ７ｆ.1", "0ⅹ7f.1",
    ],
    "0.0.0.0": ["0", "0x0", "0x", "00", "0.0", "0.0.0.0", "000.000.000.000", "⓪"],
    "169.254.169.254": ["2852039166", "0xa9fea9fe", "0xA9.0xFE.0xA9.0xFE", "0251.0376.0251.0376",
                        "169.254.43518", "169.16689662"],
    "255.255.255.255": ["4294967295", "0xffffffff", "255.16777215"],
    "::1": ["::1", "[::1]", "0:0:0:0:0:0:0:1", "[0000::0001]", "::0.0.0.1", "[::1].",
            "%5B::1%5D", "［::1］"],
    "::ffff:7f00:1": ["::ffff:127.0.0.1", "::FFFF:7F00:1", "[0:0:0:0:0:ffff:127.0.0.1]"],
    "fe80::1%eth0": ["fe80::1%eth0", "[fe80::1%eth0]"],
    "fe80::1%25eth0": ["fe80::1%25eth0"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("means", "host"), [(m, h) for m, hosts in SPELLINGS.items() for h in hosts]
)
def test_an_address_is_known_in_every_spelling(means: str, host: str) -> None:
    found = literal(host)
    assert found is not None
    assert found == means or IPv6Address(found) == IPv6Address(means)


@pytest.mark.parametrize(
    "host",
    ["", ".", "example.com", "localhost", "a.b.c.d", "1.2.3.4.5", "1.2.3.4.0", "256.0.0.1", "1.256.1", "4294967296",
     "0x1ffffffff", "08.0.0.1", "0400.0.0.1", "127..0.1", "0xg", "127.0.0.1.example.com", "١٢٧.0.0.1",
     "1e3", "-1", "+1", "1_0", "gggg::1", ":::", "12345::", "x" * 5000, "9" * 5000, "dead.beef"],
)  # fmt: skip
def test_a_name_is_no_address(host: str) -> None:
    assert literal(host) is None


@given(st.text(max_size=40))
def test_whatever_is_asked_the_answer_is_an_address_or_none(host: str) -> None:
    found = literal(host)
    assert found is None or literal(found) == found


WAYS: list[Callable[[int], str]] = [str, hex, lambda n: f"0{n:o}", lambda n: f"0X{n:06X}"]


@given(st.integers(0, 2**32 - 1), st.data())
def test_every_way_of_writing_an_ipv4_address_is_that_address(
    number: int, data: st.DataObject
) -> None:
    octets = number.to_bytes(4)
    leading = data.draw(st.integers(0, 3))
    values = [*octets[:leading], int.from_bytes(octets[leading:])]
    spell = st.sampled_from(WAYS)
    host = ".".join(data.draw(spell)(value) for value in values)
    assert literal(host) == str(IPv4Address(number))
