"""Mail to subscribers, through a real mail server: layout, refusals, encryption, failures."""

from __future__ import annotations

import asyncio
import email
import email.policy
import itertools
import json
import ssl
import uuid
from collections.abc import Callable, Iterator, Sequence
from email.message import EmailMessage
from pathlib import Path
from typing import Any, TypeVar

import aiosmtplib
import httpx
import pytest
import structlog
import uvloop

from nusku.broker import subscribers
from nusku.broker.deliveries import Parcel, Recipient
from nusku.config import ConfigError, Settings
from nusku.errors import Invalid
from nusku.model import QueueKey
from nusku.notify import letters
from nusku.notify.mailto import MailSender
from nusku.notify.outcome import Outcome
from tests.live import LiveServer, ServerDidNotStart, SettingValue
from tests.notify.live import OPEN, subscribe
from tests.notify.receivers import certificates
from tests.notify.smtp import HOST, Fault, Received, SmtpServer

T = TypeVar("T")

DOCUMENT = b'{"ttl":300,"body":{"event":"x"},"queue_name":"q","Message_Type":"Notification"}'
ON_ONE_LINE = (
    '{"ttl": 300, "body": {"event": "x"}, "queue_name": "q", "Message_Type": "Notification"}'
)
PASSWORD = "canary-of-the-mail-password"
HEADERS = ["Content-Type", "MIME-Version", "Content-Transfer-Encoding", "to", "from", "subject"]

_numbers = itertools.count()


@pytest.fixture
def server() -> Iterator[SmtpServer]:
    with SmtpServer() as running:
        yield running


@pytest.fixture(scope="module")
def trusting() -> ssl.SSLContext:
    """What a client uses that trusts the authority of the tests."""
    return ssl.create_default_context(cafile=certificates().ca_file)


def settings_for(server: SmtpServer, **others: Any) -> Settings:
    settings: dict[str, Any] = {
        "smtp_host": HOST,
        "smtp_port": server.port,
        "smtp_security": "none",
        "smtp_from": "nusku@example.com",
        "delivery_timeout": 10.0,
        **others,
    }
    return Settings(**settings)


def recipient(subscriber: str = "mailto:ann@example.com", **options: Any) -> Recipient:
    return Recipient("5" * 24, QueueKey("queue", "p", "q"), subscriber, options)


def parcel(body: bytes = DOCUMENT, kind: str = "notification") -> Parcel:
    return Parcel(f"{next(_numbers):x}", kind, body, 0)


def confirmation(kind: str = "SubscriptionConfirmation", **others: Any) -> Parcel:
    path = f"/v2/queues/q/subscriptions/{'5' * 24}/confirm"
    document = {
        "Message_Type": kind,
        "Message": "You have chosen to subscribe to the queue: q",
        "queue_name": "q",
        "URL-Signature": "5195",
        "URL-Methods": "PUT",
        "URL-Paths": path,
        "URL-Expires": "2030-01-01T00:00:00",
        "X-Project-ID": "p",
        "SubscribeBody": {"confirmed": True},
        "UnsubscribeBody": {"confirmed": False},
        **others,
    }
    return parcel(json.dumps(document).encode(), "confirmation")


def send_all(
    settings: Settings,
    mails: Sequence[tuple[Recipient, Parcel]],
    tls: ssl.SSLContext | None = None,
) -> list[Outcome]:
    """Send these one after the other, by one sender."""

    async def run() -> list[Outcome]:
        sender = MailSender(settings, tls=tls)
        try:
            return [await sender.send(to, what) for to, what in mails]
        finally:
            await sender.close()

    return uvloop.run(run())


def send(
    settings: Settings,
    to: Recipient | None = None,
    what: Parcel | None = None,
    tls: ssl.SSLContext | None = None,
) -> Outcome:
    (outcome,) = send_all(settings, [(to or recipient(), what or parcel())], tls)
    return outcome


def told(mail: Received) -> EmailMessage:
    """The mail as a reader's program sees it."""
    message = email.message_from_bytes(mail.content, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


def text(mail: Received) -> str:
    """What a reader sees below the headers."""
    return str(told(mail).get_content()).replace("\r\n", "\n")


def header(mail: Received, name: str) -> str:
    return str(told(mail)[name])


# Layout


def test_layout_is_that_of_the_contract_to_the_letter(server: SmtpServer) -> None:
    to = recipient(**{"from": "alarms@example.com", "subject": "It happened"})
    assert send(settings_for(server), to) == Outcome("delivered")
    (mail,) = server.mails
    assert mail.content == (
        b'Content-Type: text/plain; charset="us-ascii"\r\n'
        b"MIME-Version: 1.0\r\n"
        b"Content-Transfer-Encoding: 7bit\r\n"
        b"to: ann@example.com\r\n"
        b"from: alarms@example.com\r\n"
        b"subject: It happened\r\n"
        b"\r\n" + ON_ONE_LINE.encode() + b"\r\n"
    )
    assert mail.recipients == ["ann@example.com"]
    assert mail.sender == "nusku@example.com"


def test_two_subscribers_and_two_messages_make_four_mails(server: SmtpServer) -> None:
    people = [recipient("mailto:ann@example.com"), recipient("mailto:bob@example.com")]
    documents = [DOCUMENT, DOCUMENT.replace(b"x", b"y")]
    outcomes = send_all(
        settings_for(server), [(to, parcel(body)) for to in people for body in documents]
    )
    assert outcomes == [Outcome("delivered")] * 4
    assert sorted(mail.recipients for mail in server.mails) == [
        ["ann@example.com"],
        ["ann@example.com"],
        ["bob@example.com"],
        ["bob@example.com"],
    ]


@pytest.mark.parametrize("kind", ["notification", "ping"])
def test_what_is_sent_is_the_document(server: SmtpServer, kind: str) -> None:
    assert send(settings_for(server), None, parcel(kind=kind)) == Outcome("delivered")
    assert text(server.mails[0]) == ON_ONE_LINE + "\n"


def test_the_document_is_one_line_of_ascii(server: SmtpServer) -> None:
    body = '{"body" :\n{"é": "\\n😀\x7f",\r\n"n": 12345678901234567890.10, "d": {}}}'.encode()
    send(settings_for(server), None, parcel(body))
    content = text(server.mails[0])
    assert content == (
        '{"body": {"\\u00e9": "\\n\\ud83d\\ude00\\u007f", "n": 12345678901234567890.10, "d": {}}}\n'
    )
    assert json.loads(content) == json.loads(body)


def test_a_document_longer_than_a_line_of_mail_arrives_whole(server: SmtpServer) -> None:
    document = {"body": "é. =\n." * 40_000, "queue_name": "q"}
    assert send(settings_for(server), None, parcel(json.dumps(document).encode())).result == (
        "delivered"
    )
    (mail,) = server.mails
    assert max(map(len, mail.content.split(b"\r\n"))) <= 998
    assert told(mail)["Content-Transfer-Encoding"] == "quoted-printable"
    assert text(mail).count("\n") == 1
    assert json.loads(text(mail)) == document
    assert told(mail).keys() == HEADERS


@pytest.mark.parametrize(
    ("subscriber", "options", "subject"),
    [
        ("mailto:ann@example.com", {}, ""),
        ("mailto:ann@example.com", {"subject": "from options"}, "from options"),
        ("mailto:ann@example.com?subject=uri", {"subject": "from options"}, "uri"),
        ("mailto:ann@example.com?SUBJECT=A%20b&subject=c", {}, "A b"),
        ("mailto:ann@example.com?subject=Gr%C3%BC%C3%9Fe", {}, "Grüße"),
        ("mailto:ann@example.com", {"subject": "å" * 200}, "å" * 200),
        ("mailto:ann@example.com", {"subject": "=?utf-8?q?=41?="}, "=?utf-8?q?=41?="),
        ("mailto:ann@example.com", {"subject": "100 {0} %s $x"}, "100 {0} %s $x"),
    ],
)
def test_subject(
    server: SmtpServer, subscriber: str, options: dict[str, str], subject: str
) -> None:
    send(settings_for(server), recipient(subscriber, **options))
    (mail,) = server.mails
    assert header(mail, "subject") == subject
    mail.content.decode("ascii")
    assert max(map(len, mail.content.partition(b"\r\n\r\n")[0].split(b"\r\n"))) <= 210


@pytest.mark.parametrize(
    ("given", "default", "shown", "envelope"),
    [
        ("", "nusku@example.com", "nusku@example.com", "nusku@example.com"),
        ("ops@example.org", "nusku@example.com", "ops@example.org", "nusku@example.com"),
        ("Ops <ops@example.org>", "", "Ops <ops@example.org>", "ops@example.org"),
        ("Ørsted <ops@example.org>", "", "Ørsted <ops@example.org>", "ops@example.org"),
        ("", "The Queue <q@example.com>", "The Queue <q@example.com>", "q@example.com"),
        ("ops", "", "ops", ""),
        ("", "", "", ""),
    ],
)
def test_sender(server: SmtpServer, given: str, default: str, shown: str, envelope: str) -> None:
    to = recipient(**{"from": given}) if given else recipient()
    assert send(settings_for(server, smtp_from=default), to).result == "delivered"
    assert header(server.mails[0], "from") == shown
    assert server.mails[0].sender == envelope


# Confirmation

PAGE = "https://example.com/confirm"
LINK = (
    f"{PAGE}?Signature=5195&Methods=PUT&Paths=/v2/queues/q/subscriptions/{'5' * 24}/confirm"
    "&Project=p&Expires=2030-01-01T00:00:00&Url=&Queue=q"
)


@pytest.mark.parametrize(
    ("kind", "subject"),
    [
        ("SubscriptionConfirmation", "Zaqar Notification - Subscription Confirmation"),
        ("UnsubscribeConfirmation", "Zaqar Notification - Unsubscribe Confirmation"),
    ],
)
def test_confirmation(server: SmtpServer, kind: str, subject: str) -> None:
    settings = settings_for(server, external_confirmation_url=PAGE)
    to = recipient(subject="not used", **{"from": "not-used@example.com"})
    assert send(settings, to, confirmation(kind)) == Outcome("delivered")
    (mail,) = server.mails
    head, _, body = mail.content.decode("ascii").partition("\r\n\r\n")
    assert head.split("\r\n") == [
        'Content-Type: text/plain; charset="us-ascii"',
        "MIME-Version: 1.0",
        "Content-Transfer-Encoding: 7bit",
        "to: ann@example.com",
        "from: Zaqar Notifications <no-reply@openstack.org>",
        f"subject: {subject}",
    ]
    lines = body.split("\r\n")
    assert LINK in lines
    assert "the queue q of the project p" in body.replace("\r\n", " ")
    assert mail.sender == "nusku@example.com"


def test_link_has_the_address_of_the_request_where_there_is_one(server: SmtpServer) -> None:
    settings = settings_for(server, external_confirmation_url=PAGE)
    url = "https://q.example.com/v2/queues/q/subscriptions/5/confirm"
    send(settings, None, confirmation(WSGISubscribeURL=url))
    assert f"&Url={url}&Queue=q\r\n".encode() in server.mails[0].content


def test_own_texts(server: SmtpServer, tmp_path: Path) -> None:
    file = tmp_path / "texts.toml"
    file.write_text(
        '[subscription]\ntopic = "Bestätigen: {0}"\nsender = "Ops <ops@example.org>"\n'
        'body = """\n.Größe {0} {{1}} {3} {} %s {2}\n..\n"""\n'
    )
    settings = settings_for(server, external_confirmation_url=PAGE, mail_templates=str(file))
    send_all(
        settings,
        [
            (recipient(), confirmation(**{"X-Project-ID": "{2}{0}"})),
            (recipient(), confirmation("UnsubscribeConfirmation")),
        ],
    )
    subscribe, unsubscribe = server.mails
    assert header(subscribe, "subject") == "Bestätigen: q"
    assert header(subscribe, "from") == "Ops <ops@example.org>"
    link = LINK.replace("Project=p", "Project={2}{0}")
    assert text(subscribe) == f".Größe q {{{{2}}{{0}}}} {{3}} {{}} %s {link}\n..\n"
    assert told(subscribe).keys() == HEADERS
    assert header(unsubscribe, "subject") == "Zaqar Notification - Unsubscribe Confirmation"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read"),
        (b"[subscription", "is not valid TOML"),
        (b"\xff", "is not UTF-8 text"),
        (b"[other]\n", "[other] is unknown"),
        (b"subscription = 5\n", "[subscription] is not right"),
        (b"[subscription]\nbody = 5\n", "[subscription] is not right"),
        (b'[unsubscribe]\nsubject = "x"\n', "[unsubscribe] is not right"),
        (b'[unsubscribe]\ntopic = "x\\ny"\n', "topic of [unsubscribe] has to be one line"),
        (b'[subscription]\nsender = "x\\r\\ny"\n', "sender of [subscription] has to be one line"),
        (b"x = " + b"[" * 5000, "nested too deeply"),
        (b"#" * 1_100_000, "is larger than"),
    ],
)
def test_a_broken_file_of_texts_stops_the_start(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    file = tmp_path / "texts.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        MailSender(Settings(mail_templates=str(file)))
    (line,) = raised.value.problems
    assert line.startswith(f"setting mail_templates: file {file}")
    assert problem in line


# What is missing in the settings is told once, and the mails wait


def told_twice(settings: Settings, what: Parcel) -> list[dict[str, Any]]:
    with structlog.testing.capture_logs() as lines:
        outcomes = send_all(settings, [(recipient(), what)] * 2)
    assert [outcome.result for outcome in outcomes] == ["failed", "failed"]
    return [{**line} for line in lines if line["log_level"] == "error"]


def test_without_a_page_confirmations_wait(server: SmtpServer) -> None:
    (line,) = told_twice(settings_for(server), confirmation())
    assert "external_confirmation_url" in line["event"]
    assert server.commands == []


def test_without_a_mail_server_mails_wait(server: SmtpServer) -> None:
    (line,) = told_twice(settings_for(server, smtp_host=""), parcel())
    assert "smtp_host" in line["event"]


# Injection

ENDS = ["\r\n", "\n", "\r", "%0d%0a", "%0A", "\x0b", "\x85", "\u2028", "\0"]
EVIL = "Bcc: eve@example.org"
INJECTIONS: list[tuple[str, dict[str, Any]]] = [
    *(("mailto:ann@example.com?subject=x" + end + EVIL, {}) for end in ENDS),
    *(("mailto:ann@example.com", {"subject": "x" + end + EVIL}) for end in ENDS),
    *(("mailto:ann@example.com", {"from": "a@b.example" + end + EVIL}) for end in ENDS),
    ("mailto:ann@example.com%0d%0a" + EVIL, {}),
    ("mailto:ann@example.com\r\n" + EVIL, {}),
    ("mailto:ann@example.com,eve@example.org", {}),
    ("mailto:ann@example.com;eve@example.org", {}),
    ("mailto:ann@example.com%20eve@example.org", {}),
    ("mailto:ann@example.com%3E%0d%0aRCPT%20TO:%3Ceve@example.org", {}),
    ("mailto:%22ann%0d%0a%22@example.com", {}),
    ("mailto:<ann@example.com> SIZE=1 <eve@example.org>", {}),
    ("mailto:ann@example.com?cc=eve@example.org&bcc=eve@example.org&to=eve@example.org", {}),
    ("mailto:ann@example.com?body=x%0d%0a.%0d%0aMAIL", {}),
    ("mailto:ann@example.com", {"from": "ann@example.com, eve@example.org"}),
    ("mailto:ann@example.com", {"from": "=?utf-8?q?x=0d=0aBcc:_eve@example.org?= <a@b.example>"}),
    ("mailto:ann@example.com", {"subject": "=?utf-8?q?x=0d=0aBcc:_eve@example.org?="}),
    ("mailto:ann@example.com", {"subject": "x\r\n\r\n.\r\nMAIL FROM:<eve@example.org>\r\n"}),
    ("mailto:ann@example.com", {"from": "a@b.example> SIZE=1\r\nRCPT TO:<eve@example.org"}),
]
BODIES = [
    b'{"body": "x\\r\\n.\\r\\nMAIL FROM:<eve@example.org>\\r\\n"}',
    b'{"body": "\\u2028Bcc: eve@example.org", "queue_name": "q\\r\\nBcc: eve@example.org"}',
    '{"body": "\u2028\u0085\nBcc: eve@example.org"}'.replace("\n", "\\n").encode(),
    b'{"a":1,\r\n.\r\n"b":"\\r\\n.\\r\\n"}'.replace(b"\r\n.\r\n", b"\r\n\r\n"),
]


def unchecked(subscriber: str, options: dict[str, Any]) -> subscribers.Mail:
    """As if nobody had looked at a subscription: everything is believed and decoded."""
    from urllib.parse import unquote

    to, _, query = subscriber.removeprefix("mailto:").partition("?")
    subject = unquote(query.removeprefix("subject=")) if query.startswith("subject=") else ""
    return subscribers.Mail(
        unquote(to), subject or options.get("subject", ""), options.get("from", "")
    )


@pytest.fixture(scope="module")
def sink() -> Iterator[SmtpServer]:
    with SmtpServer() as running:
        yield running


def assert_untouched(sink: SmtpServer, outcome: Outcome, before: int) -> None:
    """Nothing arrived, or one mail of the usual shape for the one who subscribed."""
    arrived = sink.mails[before:]
    assert len(arrived) == (outcome.result == "delivered")
    for mail in arrived:
        assert mail.recipients == ["ann@example.com"]
        head = mail.content.partition(b"\r\n\r\n")[0]
        names = [line.partition(b":")[0] for line in head.split(b"\r\n") if line[:1] != b" "]
        assert [name.decode() for name in names] == HEADERS
        assert told(mail).keys() == HEADERS
        assert "eve@example.org" not in mail.sender


@pytest.mark.parametrize(("subscriber", "options"), INJECTIONS)
@pytest.mark.parametrize("checked", [True, False])
def test_nothing_gets_into_headers_or_envelope(
    sink: SmtpServer,
    monkeypatch: pytest.MonkeyPatch,
    subscriber: str,
    options: dict[str, Any],
    checked: bool,
) -> None:
    """Subscriptions are checked when they are made; a mail does not rely on it."""
    if not checked:
        monkeypatch.setattr(subscribers, "mail", unchecked)
    before = len(sink.mails)
    outcome = send(settings_for(sink), recipient(subscriber, **options))
    assert outcome.result in {"delivered", "refused"}
    assert_untouched(sink, outcome, before)


@pytest.mark.parametrize("body", BODIES)
def test_nothing_gets_out_of_a_body(sink: SmtpServer, body: bytes) -> None:
    before = len(sink.mails)
    outcome = send(settings_for(sink), None, parcel(body))
    assert outcome.result == "delivered"
    assert_untouched(sink, outcome, before)
    assert json.loads(text(sink.mails[-1])) == json.loads(body)


@pytest.mark.parametrize(
    "others",
    [
        {"X-Project-ID": f"p\r\n{EVIL}"},
        {"X-Project-ID": f"p\n.\n{EVIL}"},
        {"queue_name": f"q\r\n{EVIL}"},
        {"WSGISubscribeURL": f"https://x\r\n\r\n{EVIL}"},
        {"X-Project-ID": "{0}{1}{2}%s${x}"},
    ],
)
def test_nothing_gets_out_of_a_confirmation(
    sink: SmtpServer, tmp_path: Path, others: dict[str, str]
) -> None:
    file = tmp_path / "texts.toml"
    file.write_text('[subscription]\ntopic = "{0} {1} {2}"\n')
    settings = settings_for(sink, external_confirmation_url=PAGE, mail_templates=str(file))
    before = len(sink.mails)
    outcome = send(settings, None, confirmation(**others))
    assert_untouched(sink, outcome, before)
    assert not any(EVIL.encode() in mail.content for mail in sink.mails[before:])


def test_there_are_enough_injections() -> None:
    assert len(INJECTIONS) >= 30


def test_a_checked_subscription_is_refused_with_a_sentence() -> None:
    with pytest.raises(Invalid):
        subscribers.mail("mailto:ann@example.com%0d%0a", {})
    with pytest.raises(letters.Unsendable):
        letters.notification(
            subscribers.Mail("ann@example.com", "x\r\ny", ""), parcel(), "nusku@example.com"
        )


# What mail servers say and do


@pytest.mark.parametrize(
    ("command", "reply", "result"),
    [
        ("CONNECT", "421 4.3.2 not now", "failed"),
        ("CONNECT", "554 no", "failed"),
        ("EHLO", "451 4.3.0 not now", "failed"),
        ("EHLO", "550 no", "failed"),
        ("MAIL", "450 4.1.8 not now", "failed"),
        ("MAIL", "550 5.7.1 no such sender", "failed"),  # the operator's to mend
        ("MAIL", "552 5.3.4 too large", "refused"),
        ("MAIL", "530 5.7.0 log in first", "failed"),
        ("RCPT", "450 4.2.1 greylisted", "failed"),
        ("RCPT", "421 4.3.2 closing", "failed"),
        ("RCPT", "530 5.7.0 log in first", "failed"),
        ("RCPT", "550 5.1.1 nobody", "refused"),
        ("RCPT", "554", "refused"),
        ("DATA", "451 4.3.0 not now", "failed"),
        ("DATA", "552 5.3.4 too large", "refused"),
        ("DATA", "554 5.6.0 no", "refused"),
    ],
)
def test_replies(server: SmtpServer, command: str, reply: str, result: str) -> None:
    server.faults[command] = Fault(reply)
    outcome = send(settings_for(server))
    assert (outcome.result, outcome.reason) == (result, "smtp")
    assert outcome.status == int(reply[:3])
    code = " ".join(part for part in reply.split()[:2] if part[0] in "245")
    assert outcome.detail.endswith(f": {code}.")
    assert server.mails == []


def test_a_sender_of_the_subscription_may_be_refused_for_good(server: SmtpServer) -> None:
    server.faults["MAIL"] = Fault("550 5.7.1 not yours")
    to = recipient(**{"from": "ops@example.org"})
    assert send(settings_for(server, smtp_from=""), to).result == "refused"
    assert send(settings_for(server), to).result == "failed"


@pytest.mark.parametrize("command", ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA"])
def test_a_server_that_hangs(server: SmtpServer, command: str) -> None:
    server.faults[command] = Fault(hang=True)
    outcome = send(settings_for(server, delivery_timeout=0.5, delivery_connect_timeout=0.3))
    assert (outcome.result, outcome.reason, outcome.status) == ("failed", "timeout", None)


@pytest.mark.parametrize("command", ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA"])
def test_a_connection_that_is_cut(server: SmtpServer, command: str) -> None:
    server.faults[command] = Fault(cut=True)
    outcome = send(settings_for(server))
    assert (outcome.result, outcome.reason, outcome.status) == ("failed", "connection", None)


def test_a_slow_server_is_waited_for(server: SmtpServer) -> None:
    server.faults = {name: Fault(delay_s=0.1) for name in ("CONNECT", "EHLO", "MAIL", "RCPT")}
    assert send(settings_for(server, delivery_timeout=8.0)).result == "delivered"


def test_a_server_that_is_slow_at_every_step_is_not_waited_for(server: SmtpServer) -> None:
    """Each step is in time; together they are not."""
    server.faults = {name: Fault(delay_s=0.2) for name in ("CONNECT", "EHLO", "MAIL", "RCPT")}
    outcome = send(settings_for(server, delivery_timeout=0.5))
    assert (outcome.result, outcome.reason) == ("failed", "timeout")
    assert server.mails == []


def test_nobody_listens() -> None:
    with SmtpServer() as gone:
        settings = settings_for(gone)
    outcome = send(settings)
    assert (outcome.result, outcome.reason) == ("failed", "connection")


def test_a_server_whose_name_is_unknown(server: SmtpServer) -> None:
    outcome = send(settings_for(server, smtp_host="mail.invalid"))
    assert (outcome.result, outcome.reason) == ("failed", "dns")


def test_a_server_that_speaks_something_else(server: SmtpServer) -> None:
    server.faults["RCPT"] = Fault("HTTP/1.1 400 Bad Request")
    outcome = send(settings_for(server))
    assert (outcome.result, outcome.status) == ("failed", None)


def test_what_the_server_says_is_not_repeated(server: SmtpServer) -> None:
    server.faults["DATA"] = Fault("554 5.6.0 I do not like canary-of-the-body")
    with structlog.testing.capture_logs() as lines:
        outcome = send(settings_for(server))
    assert "canary" not in repr(outcome) + repr(lines)


# Encryption


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_encrypted(trusting: ssl.SSLContext, security: str) -> None:
    with SmtpServer(tls=certificates().context("tls"), implicit=security == "tls") as server:
        settings = settings_for(server, smtp_security=security)
        assert send(settings, tls=trusting) == Outcome("delivered")
        assert server.mails[0].encrypted


def test_authorities_of_the_system_count(monkeypatch: pytest.MonkeyPatch) -> None:
    with SmtpServer(tls=certificates().context("tls")) as server:
        settings = settings_for(server, smtp_security="starttls")
        assert send(settings).reason == "tls"
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates().ca_file))
        assert send(settings) == Outcome("delivered")


def old_tls(context: ssl.SSLContext) -> ssl.SSLContext:
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


@pytest.mark.parametrize("security", ["starttls", "tls"])
@pytest.mark.parametrize("wrong", ["self-signed", "wrong-host", "expired"])
def test_a_certificate_that_is_not_right(
    trusting: ssl.SSLContext, wrong: str, security: str
) -> None:
    with SmtpServer(tls=certificates().context(wrong), implicit=security == "tls") as server:
        settings = settings_for(
            server,
            smtp_security=security,
            smtp_user_name="nusku",
            smtp_user_password=PASSWORD,
        )
        outcome = send(settings, tls=trusting)
        assert (outcome.result, outcome.reason) == ("failed", "tls")
        assert "MAIL" not in server.commands


def test_old_versions_of_tls_are_refused(trusting: ssl.SSLContext) -> None:
    with pytest.warns(DeprecationWarning, match="is deprecated"):
        context = old_tls(certificates().context("tls"))
    with SmtpServer(tls=context) as server:
        outcome = send(settings_for(server, smtp_security="starttls"), tls=trusting)
        assert (outcome.result, outcome.reason) == ("failed", "tls")


def test_nothing_is_sent_in_the_clear_where_encryption_is_wanted(server: SmtpServer) -> None:
    outcome = send(
        settings_for(
            server,
            smtp_security="starttls",
            smtp_user_name="nusku",
            smtp_user_password=PASSWORD,
        )
    )
    assert (outcome.result, outcome.reason) == ("failed", "tls")
    assert server.commands == ["CONNECT", "EHLO"]


def test_starttls_refused(trusting: ssl.SSLContext) -> None:
    with SmtpServer(tls=certificates().context("tls")) as server:
        server.faults["STARTTLS"] = Fault("454 4.7.0 not now")
        outcome = send(settings_for(server, smtp_security="starttls"), tls=trusting)
        assert (outcome.result, outcome.reason, outcome.status) == ("failed", "tls", 454)
        assert "MAIL" not in server.commands


# Login


@pytest.fixture(scope="module")
def guarded() -> Iterator[SmtpServer]:
    with SmtpServer(tls=certificates().context("tls"), users={"nusku": PASSWORD}) as running:
        yield running


def guarded_settings(server: SmtpServer, password: str) -> Settings:
    return settings_for(
        server, smtp_security="starttls", smtp_user_name="nusku", smtp_user_password=password
    )


def test_login(guarded: SmtpServer, trusting: ssl.SSLContext) -> None:
    settings = guarded_settings(guarded, PASSWORD)
    assert send(settings, tls=trusting) == Outcome("delivered")
    assert guarded.mails[-1].user == "nusku"


def test_wrong_password(
    guarded: SmtpServer, trusting: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="asyncio")
    wrong = "canary-of-another-password"
    with structlog.testing.capture_logs() as lines:
        outcome = send(guarded_settings(guarded, wrong), tls=trusting)
    assert (outcome.result, outcome.reason, outcome.status) == ("failed", "smtp", 535)
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("login to the mail server failed", "error")
    ]
    assert "canary" not in repr(outcome) + repr(lines)
    assert not [r for r in caplog.records if r.name == "asyncio" and "canary" in r.getMessage()]


def test_a_server_that_wants_a_login_and_gets_none(
    guarded: SmtpServer, trusting: ssl.SSLContext
) -> None:
    outcome = send(settings_for(guarded, smtp_security="starttls"), tls=trusting)
    assert (outcome.result, outcome.status) == ("failed", 530)


def test_a_server_that_knows_no_login(trusting: ssl.SSLContext) -> None:
    with SmtpServer(tls=certificates().context("tls")) as server:
        server.auth = False
        with structlog.testing.capture_logs() as lines:
            outcome = send(guarded_settings(server, PASSWORD), tls=trusting)
    assert outcome.result == "failed"
    assert len(lines) == 1
    assert "canary" not in repr(outcome) + repr(lines)


@pytest.mark.parametrize(("host", "warned"), [("mail.example.com", True), ("127.0.0.1", False)])
def test_a_password_without_encryption_is_warned_of(host: str, warned: bool) -> None:
    with structlog.testing.capture_logs() as lines:
        MailSender(
            Settings(
                smtp_host=host,
                smtp_security="none",
                smtp_user_name="nusku",
                smtp_user_password=PASSWORD,
            )
        )
    assert [line["log_level"] for line in lines] == ["warning"] * warned
    assert PASSWORD not in repr(lines)


# Connections


def test_a_connection_serves_many_mails(server: SmtpServer) -> None:
    outcomes = send_all(settings_for(server), [(recipient(), parcel()) for _ in range(5)])
    assert outcomes == [Outcome("delivered")] * 5
    assert server.connections == 1
    assert server.commands[-1] == "QUIT"


def test_a_refused_recipient_does_not_spoil_the_next_mail(server: SmtpServer) -> None:
    async def run() -> list[Outcome]:
        sender = MailSender(settings_for(server))
        server.faults["RCPT"] = Fault("550 5.1.1 nobody")
        first = await sender.send(recipient("mailto:nobody@example.com"), parcel())
        server.faults.clear()
        second = await sender.send(recipient(), parcel())
        await sender.close()
        return [first, second]

    refused, delivered = uvloop.run(run())
    assert (refused.result, delivered.result) == ("refused", "delivered")
    assert [mail.recipients for mail in server.mails] == [["ann@example.com"]]
    assert server.connections == 1


@pytest.mark.parametrize("fault", [Fault(cut=True), Fault("421 bye"), Fault("500 what?")])
def test_a_kept_connection_that_broke_costs_no_attempt(server: SmtpServer, fault: Fault) -> None:
    server.faults["RSET"] = fault
    outcomes = send_all(settings_for(server), [(recipient(), parcel()) for _ in range(3)])
    assert outcomes == [Outcome("delivered")] * 3
    assert server.connections == 3


def test_the_server_sees_few_connections_at_a_time(server: SmtpServer) -> None:
    server.faults["DATA"] = Fault(delay_s=0.02)

    async def run() -> list[Outcome]:
        sender = MailSender(settings_for(server))
        outcomes = await asyncio.gather(*(sender.send(recipient(), parcel()) for _ in range(40)))
        await sender.close()
        await sender.close()
        return list(outcomes)

    assert uvloop.run(run()) == [Outcome("delivered")] * 40
    assert server.most_open <= 4


def test_time_runs_out_even_if_nobody_raises_it(
    server: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if what is waited for came at the very moment at which the time is up."""
    rcpt = aiosmtplib.SMTP.rcpt

    async def losing(self: aiosmtplib.SMTP, *arguments: Any, **named: Any) -> Any:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return await rcpt(self, *arguments, **named)

    monkeypatch.setattr(aiosmtplib.SMTP, "rcpt", losing)
    outcome = send(settings_for(server, delivery_timeout=0.3))
    assert (outcome.result, outcome.reason) == ("failed", "timeout")
    assert server.mails == []


def test_an_attempt_can_be_cancelled(server: SmtpServer) -> None:
    server.faults["RCPT"] = Fault(hang=True)

    async def run() -> Outcome:
        sender = MailSender(settings_for(server))
        attempt = asyncio.create_task(sender.send(recipient(), parcel()))
        await asyncio.to_thread(server.wait_for, "RCPT")
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
        server.faults.clear()
        again = await sender.send(recipient(), parcel())
        await sender.close()
        return again

    assert uvloop.run(run()) == Outcome("delivered")
    assert server.connections == 2


def test_an_error_that_nobody_foresaw_is_an_outcome(
    server: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("canary")

    monkeypatch.setattr(letters, "notification", broken)
    with structlog.testing.capture_logs() as lines:
        outcome = send(settings_for(server))
    assert (outcome.result, outcome.reason) == ("failed", "internal")
    assert "canary" not in repr(outcome) + repr(lines)
    assert lines[0]["error"] == "RuntimeError"


# The whole way


def mailing(mails: SmtpServer, **others: SettingValue) -> dict[str, SettingValue]:
    return {
        **OPEN,
        "smtp_host": HOST,
        "smtp_port": mails.port,
        "smtp_security": "none",
        "smtp_from": "nusku@example.com",
        **others,
    }


def follow(server: LiveServer, mail: Received, *, confirmed: bool) -> None:
    """What the page does that a mail links to: it knows no more than the link."""
    link = next(line for line in text(mail).split("\n") if line.startswith(PAGE))
    fields = dict(part.split("=", 1) for part in link.partition("?")[2].split("&"))
    assert list(fields) == ["Signature", "Methods", "Paths", "Project", "Expires", "Url", "Queue"]
    assert fields["Url"] == f"https://queues.example.com{fields['Paths']}"
    answer = httpx.put(
        server.url + fields["Paths"],
        headers={
            "Client-ID": str(uuid.uuid4()),
            "X-Project-ID": fields["Project"],
            "URL-Signature": fields["Signature"],
            "URL-Methods": fields["Methods"],
            "URL-Paths": fields["Paths"],
            "URL-Expires": fields["Expires"],
        },
        json={"confirmed": confirmed},
    )
    assert answer.status_code == 204


def test_confirming_by_mail(private_server: Callable[..., LiveServer]) -> None:
    with SmtpServer() as mails:
        server = private_server(
            **mailing(
                mails,
                require_confirmation=True,
                public_url="https://queues.example.com",
                external_confirmation_url=PAGE,
            )
        )
        api = server.api()
        subscribe(api, "q", "mailto:ann@example.com")
        (question,) = mails.wait(1)
        assert header(question, "subject") == "Zaqar Notification - Subscription Confirmation"
        api.post_bodies("q", "before")
        follow(server, question, confirmed=True)
        api.post_bodies("q", "after")
        assert json.loads(text(mails.wait(2)[1]))["body"] == "after"
        follow(server, question, confirmed=False)
        farewell = mails.wait(3)[2]
        assert header(farewell, "subject") == "Zaqar Notification - Unsubscribe Confirmation"
        api.post_bodies("q", "meanwhile")
        follow(server, farewell, confirmed=True)
        api.post_bodies("q", "again")
        assert json.loads(text(mails.wait(4)[3]))["body"] == "again"
        server.stop()
        assert len(mails.mails) == 4


@pytest.mark.slow
def test_a_mail_waits_for_the_mail_server_and_for_ours(
    private_server: Callable[..., LiveServer],
) -> None:
    with SmtpServer() as mails:
        mails.faults["RCPT"] = Fault("450 4.2.1 not now")
        server = private_server(**mailing(mails))
        one = subscribe(server.api(), "q", "mailto:ann@example.com")
        one.api.post_bodies("q", "patience")
        (attempt, *_) = one.attempts(1)
        assert (attempt["outcome"], attempt["reason"], attempt["status"]) == ("failed", "smtp", 450)
        server.kill()
        mails.faults.clear()
        server = private_server(**mailing(mails))
        assert json.loads(text(mails.wait(1)[0]))["body"] == "patience"
        one.through(server).until(pending=0, failed=0)


def test_a_mail_that_is_refused_for_good_can_be_replayed(
    private_server: Callable[..., LiveServer],
) -> None:
    with SmtpServer() as mails:
        mails.faults["RCPT"] = Fault("550 5.1.1 nobody")
        server = private_server(**mailing(mails, smtp_user_password=PASSWORD))
        one = subscribe(server.api(), "q", "mailto:ann@example.com")
        one.api.post_bodies("q", "please")
        one.until(pending=0, failed=1)
        mails.faults.clear()
        assert one.replay() == 1
        assert json.loads(text(mails.wait(1)[0]))["body"] == "please"
        assert PASSWORD not in server.log()


def test_a_broken_file_of_texts_is_told_at_the_start(tmp_path: Path) -> None:
    file = tmp_path / "texts.toml"
    file.write_text("[subscription]\nbody = 5\n")
    with pytest.raises(ServerDidNotStart) as raised:
        LiveServer(tmp_path, mail_templates=str(file)).start()
    assert f"setting mail_templates: file {file}" in str(raised.value)
    assert "Traceback" not in str(raised.value)
