"""What may be asked of a subscription, and what a subscriber URI means."""

from __future__ import annotations

import base64
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from nusku.addresses import Addresses
from nusku.broker.subscribers import Changes, Mail, Target, Wanted, changes, mail, parse, target
from nusku.config import Settings
from nusku.errors import Invalid

HOOK = "https://example.com/hook"


def wanted(document: dict[str, Any], **settings: Any) -> Wanted:
    known = Settings(**settings)
    return parse(document, known, Addresses(known))


def changed(document: dict[str, Any], **settings: Any) -> Changes:
    known = Settings(**settings)
    return changes(document, known, Addresses(known))


def options_of(options: Any, **settings: Any) -> dict[str, Any]:
    return wanted({"subscriber": HOOK, "options": options}, **settings).options


def secret(size: int = 32) -> str:
    return f"whsec_{base64.b64encode(bytes(size)).decode()}"


# -- the document ---------------------------------------------------------------------------------


def test_a_subscriber_is_all_that_is_needed() -> None:
    assert wanted({"subscriber": HOOK}) == Wanted(HOOK, 3600, {})


def test_what_is_given_is_kept_as_it_is() -> None:
    document = {"subscriber": HOOK, "ttl": 60, "options": {"mine": [1]}, "unknown": 1}
    assert wanted(document) == Wanted(HOOK, 60, {"mine": [1]})


def test_null_counts_as_absent() -> None:
    document = {"subscriber": HOOK, "ttl": None, "options": None}
    assert wanted(document, default_subscription_ttl=77) == Wanted(HOOK, 77, {})


@pytest.mark.parametrize(
    ("document", "fragment"),
    [
        ({}, "Missing parameter"),
        ({"ttl": 60}, "Missing parameter"),
        ({"subscriber": None}, "Missing parameter"),
        ({"subscriber": ""}, "Missing parameter"),
        ({"subscriber": 5}, "string"),
        ({"subscriber": [HOOK]}, "string"),
        ({"subscriber": HOOK, "ttl": "60"}, "must be an integer"),
        ({"subscriber": HOOK, "ttl": 60.0}, "must be an integer"),
        ({"subscriber": HOOK, "ttl": []}, "must be an integer"),
        ({"subscriber": HOOK, "ttl": 59}, "from 60"),
        ({"subscriber": HOOK, "ttl": 0}, "from 60"),
        ({"subscriber": HOOK, "ttl": -1}, "from 60"),
        ({"subscriber": HOOK, "ttl": True}, "ttl is 1 s"),
        ({"subscriber": HOOK, "ttl": False}, "ttl is 0 s"),
        ({"subscriber": HOOK, "ttl": 10**12}, "from 60 to"),
        ({"subscriber": HOOK, "ttl": (1 << 63) - 1}, "from 60 to"),
        ({"subscriber": HOOK, "options": "x"}, "must be a dict"),
        ({"subscriber": HOOK, "options": ""}, "must be a dict"),
        ({"subscriber": HOOK, "options": []}, "must be a dict"),
        ({"subscriber": HOOK, "options": 0}, "must be a dict"),
        ({"subscriber": HOOK, "options": False}, "must be a dict"),
    ],
)
def test_a_document_that_will_not_do(document: dict[str, Any], fragment: str) -> None:
    with pytest.raises(Invalid, match=fragment):
        wanted(document)


def test_a_subscription_may_last_to_the_end_of_the_calendar() -> None:
    left = 253_402_300_799 - int(time.time())
    assert wanted({"subscriber": HOOK, "ttl": left - 60}).ttl_s == left - 60
    with pytest.raises(Invalid):
        wanted({"subscriber": HOOK, "ttl": left + 60})


def test_the_shortest_ttl_is_a_setting() -> None:
    assert wanted({"subscriber": HOOK, "ttl": 1}, min_subscription_ttl=1).ttl_s == 1


# -- changes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "result"),
    [
        ({"ttl": 60}, Changes(ttl_s=60)),
        ({"subscriber": HOOK}, Changes(subscriber=HOOK)),
        ({"options": {}}, Changes(options={})),
        ({"options": {"a": 1}, "subscriber": None, "ttl": None}, Changes(options={"a": 1})),
        ({"options": {"_signing": True}}, Changes(options={}, signing=True)),
        ({"ttl": 60, "confirmed": True, "queue": "q", "project": 1}, Changes(ttl_s=60)),
    ],
)
def test_a_change_says_what_becomes_different(document: dict[str, Any], result: Changes) -> None:
    assert changed(document) == result


@pytest.mark.parametrize(
    ("document", "fragment"),
    [
        ({}, "at least one of"),
        ({"ttl": None, "subscriber": None, "options": None}, "at least one of"),
        ({"confirmed": True}, "at least one of"),
        ({"subscriber": ""}, "Missing parameter"),
        ({"subscriber": 1}, "string"),
        ({"subscriber": "ftp://x"}, "must be supported in the list"),
        ({"options": []}, "must be a dict"),
        ({"options": ""}, "must be a dict"),
        ({"ttl": "1"}, "must be an integer"),
        ({"ttl": 1}, "from 60"),
        ({"ttl": 60, "options": {"post_data": 1}}, "post_data"),
    ],
)
def test_a_change_that_will_not_do(document: dict[str, Any], fragment: str) -> None:
    with pytest.raises(Invalid, match=fragment):
        changed(document)


# -- subscribers ----------------------------------------------------------------------------------

TAKEN = {
    "http://trigger.me": Target("http", "trigger.me", 80, "http://trigger.me/", False),
    "http://CCC.me": Target("http", "ccc.me", 80, "http://ccc.me/", False),
    "http://fake:8080/x?y=z": Target("http", "fake", 8080, "http://fake:8080/x?y=z", False),
    "HTTPS://Example.com": Target("https", "example.com", 443, "https://example.com/", False),
    "https://example.com:443/": Target("https", "example.com", 443, "https://example.com/", False),
    "http://example.com:443/": Target("http", "example.com", 443, "http://example.com:443/", False),
    "http://x:/y": Target("http", "x", 80, "http://x/y", False),
    "http://x?y": Target("http", "x", 80, "http://x/?y", False),
    "http://example.com./": Target("http", "example.com.", 80, "http://example.com./", False),
    "http://my_service.local/": Target("http", "my_service.local", 80, "http://my_service.local/", False),
    "http://x/a@b:c/../d//e": Target("http", "x", 80, "http://x/a@b:c/../d//e", False),
    "http://x/%7Ea%2f?b=%zz": Target("http", "x", 80, "http://x/%7Ea%2f?b=%zz", False),
    "http://x/é?ü={}|": Target("http", "x", 80, "http://x/%C3%A9?%C3%BC=%7B%7D%7C", False),
    "http://bücher.example/": Target("http", "xn--bcher-kva.example", 80, "http://xn--bcher-kva.example/", False),
    "http://straße.example": Target("http", "xn--strae-oqa.example", 80, "http://xn--strae-oqa.example/", False),
    "http://ｅｘａｍｐｌｅ.com": Target("http", "example.com", 80, "http://example.com/", False),
    "http://8.8.8.8": Target("http", "8.8.8.8", 80, "http://8.8.8.8/", False),
    "http://134744072:1024/": Target("http", "8.8.8.8", 1024, "http://8.8.8.8:1024/", False),
    "http://[2606:4700::1111]:8080/": Target("http", "2606:4700::1111", 8080, "http://[2606:4700::1111]:8080/", False),
    "trust+http://trigger.me": Target("http", "trigger.me", 80, "http://trigger.me/", True),
    "Trust+HTTPS://trigger.me/a": Target("https", "trigger.me", 443, "https://trigger.me/a", True),
}  # fmt: skip


@pytest.mark.parametrize(("uri", "result"), TAKEN.items())
def test_a_subscriber_is_kept_as_it_was_written_and_understood(uri: str, result: Target) -> None:
    assert wanted({"subscriber": uri}).subscriber == uri
    assert target(uri) == result
    seen = URL(result.url, encoded=True)
    assert (seen.scheme, seen.raw_host, seen.port) == (result.scheme, result.host, result.port)
    assert str(seen) == result.url


@pytest.mark.parametrize(
    "uri",
    ["ftp://example.com", "file:///etc/passwd", "gopher://x", "trust+ftp://x", "trust+mailto:a@b.c",
     "javascript:1", "http", "example.com", "//example.com", "/x", ":", "://x", "httpx://x", "ttp://x",
     "trust+trust+http://x", "http+unix://x", "ｈttp://x"],
)  # fmt: skip
def test_other_schemes_are_refused(uri: str) -> None:
    with pytest.raises(Invalid, match="must be supported in the list"):
        wanted({"subscriber": uri})


def test_which_schemes_there_are_is_a_setting() -> None:
    assert (
        wanted({"subscriber": "HTTPS://x"}, subscriber_types=("https",)).subscriber == "HTTPS://x"
    )
    with pytest.raises(Invalid, match="must be supported in the list https"):
        wanted({"subscriber": "http://x"}, subscriber_types=("https",))


REFUSED = [
    "http:", "http:/", "http://", "http:///", "http:///x", "http:x", "http:/x", "http://?x", "http://:80",
    "http:\\\\x", "http:/\\x", "http://x\\@y", "http://x/\\y", "http://a@b", "http://@b", "http://a:b@c/",
    "http://user%40x@y", "http://x#", "http://x/#y", "http://x?y#z", "http://good.com#@127.0.0.1/",
    "http://x y/", "http://x/a b", " http://x", "http://x ", "ht tp://x", "http://x\t", "http://x\r\nHost: y",
    "http://x/\n", "http://x/\x00", "http://\x00x", "http://x/\x7f", "http://x/\x85", "http://x/\u2028",
    "http://x/\u200b", "http://x/\u202e", "http://\ufeffx", "http://x/\u3000", "http://x/\ud800", "http://x/\xa0",
    "http://x:0", "http://x:65536", "http://x:99999999999", "http://x:-1", "http://x:+80", "http://x:8o",
    "http://x:80:80", "http://x:８０", "http://x: 80",
    "http://::1", "http://[::1", "http://::1]", "http://[]", "http://[::1]x", "http://[::1]80", "http://[x]",
    "http://[::1%25eth0]", "http://[::1%eth0]", "http://[fe80::1%25lo]/", "http://[2606:4700::1%251]/",
    "http://[v1.x]/", "http://[127.0.0.1]/", "http://[[::1]]/",
    "http://%31%32%37.0.0.1", "http://exa%6dple.com", "http://x%00", "http://1.2.3.4.5", "http://256.1.1.1",
    "http://x.1", "http://x.0x7f", "http://08.8.8.8", "http://99999999999", "http://..", "http://.", "http://a..b",
    "http://.a", "http://a..", f"http://{'a' * 64}", f"http://{'a.' * 130}b", "http://a!b", "http://a,b",
    "http://a;b", "http://a&b", "http://a$b", "http://a*b", "http://*", "http://a'b", 'http://a"b', "http://<x>",
    "http://a|b", "http://a^b", "http://a`b", "http://{a}", "http://a~b", "http://a=b", "http://☃️.", "http://\u0378.com",
    "http://xn--é.com", "http://a／b", "http://a？b", "http://a＃b", "http://a＠b", "http://a：80",
    f"http://x/{'a' * 2048}", f"http://x/{'é' * 2048}",
]  # fmt: skip


@pytest.mark.parametrize("uri", REFUSED)
def test_odd_uris_are_refused(uri: str) -> None:
    with pytest.raises(Invalid):
        wanted({"subscriber": uri}, subscriber_allow=("0.0.0.0/0", "::/0"))
    with pytest.raises(Invalid):
        wanted({"subscriber": f"trust+{uri}"}, subscriber_allow=("0.0.0.0/0", "::/0"))


def test_the_longest_uri() -> None:
    uri = "http://x/" + "a" * (2048 - 9)
    assert wanted({"subscriber": uri}).subscriber == uri


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "①②⑦.⓪.⓪.①", "127.0.0.1.", "１２７.0.0.1",
     "127。0。0。1", "0", "169.254.169.254", "0xa9fea9fe", "192.168.0.1", "10.0.0.1", "[::1]", "[::]",
     "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
     "[2001:0:808:808:0:0:80ff:fffe]", "[fe80::1]", "[fd00:ec2::254]", "[ff02::1]", "224.0.0.1"],
)  # fmt: skip
def test_an_address_in_place_of_a_name_is_judged(host: str) -> None:
    with pytest.raises(Invalid, match="subscriber_allow"):
        wanted({"subscriber": f"http://{host}/"})
    wanted({"subscriber": f"http://{host}/"}, subscriber_allow=("0.0.0.0/0", "::/0"))


def test_a_name_is_not() -> None:
    for host in (
        "localhost",
        "does-not.exist",
        "127.0.0.1.example.com",
        "metadata.google.internal",
    ):
        wanted({"subscriber": f"http://{host}/"})


def test_the_port_of_a_name_is() -> None:
    with pytest.raises(Invalid, match="subscriber_ports"):
        wanted({"subscriber": "http://example.com:25/"})
    wanted({"subscriber": "http://example.com:25/"}, subscriber_ports=("25",))


@given(st.text(max_size=60))
def test_whatever_is_taken_is_understood(text: str) -> None:
    uri = f"http://{text}"
    try:
        wanted({"subscriber": uri})
    except Invalid:
        return
    found = target(uri)
    seen = URL(found.url, encoded=True)
    assert (seen.scheme, seen.raw_host, seen.port) == ("http", found.host, found.port)
    assert found.url.isascii()
    assert found.url.isprintable()
    assert (seen.raw_user, seen.raw_password, seen.raw_fragment) == (None, None, "")


# -- mail -----------------------------------------------------------------------------------------

MAILS = {
    "mailto:aaa@example.com": Mail("aaa@example.com", "", ""),
    "MAILTO:Aaa@Example.com": Mail("Aaa@Example.com", "", ""),
    "mailto:a.b+c@example.com": Mail("a.b+c@example.com", "", ""),
    "mailto:a%2Bb@example.com": Mail("a+b@example.com", "", ""),
    "mailto:a%40example.com": Mail("a@example.com", "", ""),
    "mailto:root@localhost": Mail("root@localhost", "", ""),
    "mailto:a@bücher.example": Mail("a@xn--bcher-kva.example", "", ""),
    "mailto:a@b.c?subject=Hello": Mail("a@b.c", "Hello", ""),
    "mailto:a@b.c?subject=Hello World": Mail("a@b.c", "Hello World", ""),
    "mailto:a@b.c?SubJect=Hello%20World+1": Mail("a@b.c", "Hello World+1", ""),
    "mailto:a@b.c?subject=1&subject=2": Mail("a@b.c", "1", ""),
    "mailto:a@b.c?subject=&subject=2": Mail("a@b.c", "2", ""),
    "mailto:a@b.c?subject=gr%C3%BC%C3%9Fe": Mail("a@b.c", "grüße", ""),
    "mailto:a@b.c?cc=x@y.z&bcc=x@y.z&to=x@y.z&body=x&subject=s%26t%3Du": Mail("a@b.c", "s&t=u", ""),
}


@pytest.mark.parametrize(("uri", "result"), MAILS.items())
def test_a_mailto_subscriber_is_one_address_and_a_subject(uri: str, result: Mail) -> None:
    assert wanted({"subscriber": uri}).subscriber == uri
    assert mail(uri, {}) == result


def test_subject_and_sender_come_from_the_options_otherwise() -> None:
    options = {"from": "Jack <jack@example.com>", "subject": "From the options"}
    assert wanted({"subscriber": "mailto:a@b.c", "options": options}).options == options
    assert mail("mailto:a@b.c", options) == Mail("a@b.c", options["subject"], options["from"])
    assert mail("mailto:a@b.c?subject=mine", options).subject == "mine"
    assert mail("mailto:a@b.c?subject=", options).subject == options["subject"]


@pytest.mark.parametrize(
    "uri",
    ["mailto:", "mailto:a", "mailto:@b.c", "mailto:a@", "mailto:?to=a@b.c", "mailto:a@b.c,d@e.f",
     "mailto:a@b.c%2Cd@e.f", "mailto:a@b.c;d@e.f", "mailto:a@b.c%3Bd@e.f", "mailto:a@b.c%20d@e.f",
     "mailto:a@b.c%0D%0ABcc:%20d@e.f", "mailto:a@b.c%0ABcc:d@e.f", "mailto:a%0A@b.c", "mailto:a%00@b.c",
     "mailto:a@b.c%00", "mailto:a@b.c\r\nBcc: d@e.f", "mailto:a@b.c\n", "mailto: a@b.c", "mailto:a b@c.d",
     "mailto:a@@b.c", "mailto:a@b@c.d", "mailto:Jack <a@b.c>", "mailto:Jack%20%3Ca@b.c%3E", "mailto:<a@b.c>",
     'mailto:"a b"@c.d', "mailto:a@[127.0.0.1]", "mailto:a@127.0.0.1", "mailto:a@b..c", "mailto:a..b@c.d",
     "mailto:.a@b.c", "mailto:a.@b.c", "mailto:a@b.c(x)", "mailto://a@b.c", "mailto:|a@b.c", "mailto:-oQ@b.c", "mailto:a@b.c/x", "mailto:a@b_c:25",
     "mailto:é@b.c", f"mailto:{'a' * 65}@b.c", f"mailto:a@{'b.' * 126}c",
     "mailto:a@b.c?subject=x%0D%0ABcc:%20d@e.f", "mailto:a@b.c?subject=x%0A", "mailto:a@b.c?subject=%00",
     "mailto:a@b.c?subject=x%C2%85y", "mailto:a@b.c?subject=x%E2%80%A8y", "mailto:a@b.c?subject=x\ty",
     "mailto:a@b.c?subject=%0D%0A%0D%0Abody", f"mailto:a@b.c?subject={'x' * 201}", "mailto:a@b.c#x",
     "mailto:a@b.c?sub%6Aect=%0A"],
)  # fmt: skip
def test_anything_else_is_refused(uri: str) -> None:
    with pytest.raises(Invalid):
        wanted({"subscriber": uri})


def test_what_is_no_mailto_is_no_mail() -> None:
    with pytest.raises(Invalid):
        mail(HOOK, {})
    with pytest.raises(Invalid):
        target("mailto:a@b.c")


# -- options --------------------------------------------------------------------------------------

GOOD_OPTIONS: list[dict[str, Any]] = [
    {"post_headers": {}},
    {"post_headers": {"X-Project-ID": "p", "Client-ID": "c", "Authorization": "Bearer x"}},
    {"post_headers": {"Content-Type": "text/plain; charset=é", "X-Tab": "a\tb", "X-Empty": ""}},
    {"post_headers": {"URL-Signature": "ab", "X-Te": "1", "Cookie": "a=b"}},
    {"post_data": ""},
    {"post_data": '{"messages": [{"body": "$zaqar_message$", "ttl": 60}]}'},
    {"_retry_policy": {}},
    {"_retry_policy": {"retries_with_no_delay": 5, "unknown": 1}},
    {"from": "Jack"},
    {"from": "grün <a@b.c>", "subject": "👩‍🚀 " + "x" * 190},
    {"trust_id": "0123456789abcdef"},
    {"_dead_letter_queue": "dead.letters"},
    {"_cloudevents": "structured"},
    {"_cloudevents": "binary", "post_headers": {"X-A": "b"}},
    {"_unknown": {"a": [None]}, "mine": None},
]

BAD_NAMES = [
    "", " ", "a b", "a:", "a\r\nb", "a\0", "é", "(a)", "Host", "HOST", "host", "Content-Length",
    "Transfer-Encoding", "TE", "Trailer", "Upgrade", "Expect", "Connection", "Keep-Alive",
    "Proxy-Authorization", "proxy-connection", "X-Auth-Token", "x-auth-token", "X_Auth_Token",
    "x_auth-token", "X-Service-Token", "webhook-id", "Webhook-Signature", "webhook_timestamp",
    "ce-id", "CE-Type", "ce_source", "Content-Encoding", "Content_Length", "HTTP2-Settings",
]  # fmt: skip
BAD_TEXTS = ["a\r\nX-B: c", "a\nb", "a\rb", "a\0", "\x7f", "\x01", "\u2028", "Ā", "日本", "\x1b[0m"]
BAD_LINES = [1, {}, ["a"], "a\r\nBcc: b", "a\nb", "\0", "x" * 201, "\x85", "\u2029", "a\u2028b"]
BAD_VALUES: dict[str, list[Any]] = {
    "post_headers": [
        *("", [], 1, True, {"a": 1}, {"a": None}, {"a": ["b"]}),
        *({name: "x"} for name in BAD_NAMES),
        *({"X-A": text} for text in BAD_TEXTS),
        {"X-A": "1", "x-a": "2"},
        {"X-A": "1", "X_A": "2"},
        {f"X-{n}": "" for n in range(33)},
        {"X-A": "x" * 8190},
    ],
    "post_data": [1, {}, [], True, {"a": 1}],
    "_retry_policy": [1, "linear", [], True, {"minimum_delay": "5"}, {"maximum_delay": 6}],
    "from": [*BAD_LINES, "a@b.c, d@e.f", "grün"],
    "subject": BAD_LINES,
    "trust_id": [1, "", "a/b", "../x", "a b", "a\n", "x" * 256],
    "_dead_letter_queue": [1, "", "a/b", "..", "x" * 65, "é", ["q"]],
    "_cloudevents": [1, True, "", "batch", "Binary", ["binary"]],
}
BAD_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((name, {name: value}) for name, values in BAD_VALUES.items() for value in values),
    ("together", {"_cloudevents": "binary", "post_data": "x"}),
    ("65536", {"mine": "x" * 65_536}),
]


@pytest.mark.parametrize("options", GOOD_OPTIONS)
def test_good_options_are_kept_as_they_are(options: dict[str, Any]) -> None:
    assert options_of(options) == options
    assert changed({"options": options}).options == options


@pytest.mark.parametrize(("fragment", "options"), BAD_OPTIONS)
def test_bad_options_are_refused_by_name(fragment: str, options: dict[str, Any]) -> None:
    with pytest.raises(Invalid, match=fragment):
        options_of(options)
    with pytest.raises(Invalid, match=fragment):
        changed({"options": options})


def test_null_options_that_are_known_are_left_out() -> None:
    known = ["post_headers", "post_data", "_retry_policy", "from", "subject", "trust_id"]
    known += ["_dead_letter_queue", "_cloudevents", "_signing"]
    assert options_of(dict.fromkeys([*known, "mine"])) == {"mine": None}


def test_the_document_is_left_alone() -> None:
    options = {"_signing": secret(), "post_data": None}
    options_of(options)
    assert options == {"_signing": secret(), "post_data": None}


@pytest.mark.parametrize(
    ("asked", "signing"),
    [
        (None, None),
        (False, None),
        (True, True),
        (secret(), (secret(),)),
        (secret(24), (secret(24),)),
        ([secret(64)], (secret(64),)),
        ([secret(30), secret(31)], (secret(30), secret(31))),
    ],
)
def test_secrets_are_taken_out_of_the_options(asked: Any, signing: Any) -> None:
    found = wanted({"subscriber": HOOK, "options": {"_signing": asked, "a": 1}})
    assert found.options == {"a": 1}
    assert found.signing == signing


@pytest.mark.parametrize(
    "asked",
    [0, 1, "", [], {}, "whsec_", "secret", secret(23), secret(65), secret()[6:], [secret()] * 3,
     [True], [secret(), None], "whsec_" + "é" * 40, "WHSEC_" + secret()[6:], secret() + "=", secret() + "\n",
     secret().replace("A", "-"), f"whsec_{secret()}"],
)  # fmt: skip
def test_a_malformed_secret_is_refused_and_not_repeated(asked: Any) -> None:
    with pytest.raises(Invalid, match="_signing") as refusal:
        options_of({"_signing": asked})
    assert str(asked) == "" or len(str(asked)) < 10 or str(asked) not in refusal.value.detail
