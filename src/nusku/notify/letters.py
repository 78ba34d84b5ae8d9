"""The forms of a mail: its layout and the texts of confirmations. No clock and no network in here.

A mail is put together by hand, since contract notifications.md section 5 promises its layout to the
letter. Nothing that a user wrote reaches a header unless it is printable and on one line.
"""

import quopri
import re
import tomllib
from collections.abc import Mapping
from email.header import Header
from email.utils import parseaddr
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from nusku.broker.deliveries import Parcel
from nusku.broker.subscribers import Mail
from nusku.config import ConfigError

LINE_BYTES_MAX = 998  # RFC 5321 section 4.5.3.1.6, without the end of the line
HEADER_CHARS_MAX = 900
ADDRESS_CHARS_MAX = 254
TEMPLATE_BYTES_MAX = 1_048_576

# Also what only Unicode takes for the end of a line.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_PLAIN = re.compile(r"[\t\n -~]*")
# Without the quoted and bracketed forms, which hardly anybody has and much can hide in.
_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9.-]+")
_PLACEHOLDER = re.compile(r"\{([012])\}")


class Unsendable(Exception):
    """There is no mail that says this. ``detail`` is a sentence for the owner."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class Letter(NamedTuple):
    """A mail. ``sender`` is the address in its From header, empty if there is none."""

    recipient: str
    sender: str
    content: bytes


class Template(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The texts of a confirmation. ``{0}`` is the queue, ``{1}`` the project, ``{2}`` the link, in
    ``topic`` (the subject) and ``body``.
    """

    topic: str
    sender: str
    body: str


_SENDER = "Zaqar Notifications <no-reply@openstack.org>"
TEMPLATES = {
    "subscription": Template(
        "Zaqar Notification - Subscription Confirmation",
        _SENDER,
        "Somebody, probably you, asked for this address to be told of what is posted to the"
        " queue {0} of the project {1}.\n\n"
        "To confirm the subscription, visit this link:\n\n{2}\n\n"
        "If you do not want it, do nothing.\n",
    ),
    "unsubscribe": Template(
        "Zaqar Notification - Unsubscribe Confirmation",
        _SENDER,
        "This address will no longer be told of what is posted to the queue {0} of the project"
        " {1}.\n\n"
        "If that was a mistake, visit this link to subscribe again:\n\n{2}\n",
    ),
}


def templates(path: str) -> Mapping[str, Template]:
    """The texts of confirmations, from a TOML file if there is one.

    Raises ConfigError with every problem of the file.
    """
    if not path:
        return TEMPLATES
    start = f"setting mail_templates: file {path}"
    tables = _tables(path, start)
    problems = [f"{start}: [{name}] is unknown" for name in tables if name not in TEMPLATES]
    merged = dict(TEMPLATES)
    for name, usual in TEMPLATES.items():
        try:
            texts = {**msgspec.structs.asdict(usual), **tables.get(name, {})}
            merged[name] = msgspec.convert(texts, Template)
        except (msgspec.ValidationError, TypeError) as error:
            problems.append(f"{start}: [{name}] is not right: {error}")
        problems += [
            f"{start}: {field} of [{name}] has to be one line of text"
            for field in ("topic", "sender")
            if _UNPRINTABLE.search(getattr(merged[name], field))
        ]
    if problems:
        raise ConfigError(problems)
    return merged


def _tables(path: str, start: str) -> dict[str, Any]:
    try:
        with Path(path).open("rb") as file:
            raw = file.read(TEMPLATE_BYTES_MAX + 1)
        if len(raw) > TEMPLATE_BYTES_MAX:
            raise ConfigError([f"{start} is larger than {TEMPLATE_BYTES_MAX} bytes"])
        return tomllib.loads(raw.decode())
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 text (byte {error.start})"
    except tomllib.TOMLDecodeError as error:
        problem = f"is not valid TOML: {error}"
    except RecursionError:
        problem = "is nested too deeply"
    raise ConfigError([f"{start} {problem}"])


def notification(to: Mail, parcel: Parcel, default_sender: str) -> Letter:
    """The mail that tells of a message, or that is sent to try the subscription out."""
    return _letter(
        to.address, to.sender or default_sender, to.subject, _one_line(parcel.body) + "\n"
    )


def confirmation(
    to: Mail, parcel: Parcel, texts: Mapping[str, Template], confirmation_url: str
) -> Letter:
    """The mail for the document of section 7.1, with a link to the page that confirms."""
    fields: Mapping[str, Any] = msgspec.json.decode(parcel.body)
    unsubscribed = fields["Message_Type"] == "UnsubscribeConfirmation"
    template = texts["unsubscribe" if unsubscribed else "subscription"]
    queue, project = str(fields["queue_name"]), str(fields["X-Project-ID"])
    link = (
        f"{confirmation_url}?Signature={fields['URL-Signature']}&Methods={fields['URL-Methods']}"
        f"&Paths={fields['URL-Paths']}&Project={project}&Expires={fields['URL-Expires']}"
        f"&Url={fields.get('WSGISubscribeURL', '')}&Queue={queue}"
    )
    if _UNPRINTABLE.search(project + link):
        raise Unsendable("The confirmation has characters that are not printable.")
    values = (queue, project, link)

    def filled(text: str) -> str:
        # In one pass, so that a value which looks like a placeholder stays as it is.
        return _PLACEHOLDER.sub(lambda found: values[int(found[1])], text)

    return _letter(to.address, template.sender, filled(template.topic), filled(template.body))


def address(sender: str) -> str:
    """The address in a From header, for the envelope; empty if there is none."""
    found = parseaddr(sender)[1]
    return found if _ADDRESS.fullmatch(found) else ""


def _letter(recipient: str, sender: str, subject: str, text: str) -> Letter:
    """The whole mail. A reader sees the same text, however it has to be written down for the way."""
    if len(recipient) > ADDRESS_CHARS_MAX or not _ADDRESS.fullmatch(recipient):
        raise Unsendable("This is not an address that mail can be sent to.")
    lines = text.splitlines()
    body = "\n".join([*lines, ""]).encode()
    encoding = "7bit"
    if not _PLAIN.fullmatch(text) or any(len(line) > LINE_BYTES_MAX for line in lines):
        encoding, body = "quoted-printable", quopri.encodestring(body)
    head = (
        f'Content-Type: text/plain; charset="{"us-ascii" if text.isascii() else "utf-8"}"\n'
        "MIME-Version: 1.0\n"
        f"Content-Transfer-Encoding: {encoding}\n"
        f"to: {recipient}\n"
        f"from: {_from(sender)}\n"
        f"subject: {_words(subject)}\n"
        "\n"
    )
    return Letter(recipient, address(sender), (head.encode() + body).replace(b"\n", b"\r\n"))


def _one_line(body: bytes) -> str:
    """A JSON document on one line, in ASCII; numbers stay as they were written."""
    text = msgspec.json.format(body, indent=0).decode()
    # Outside of strings JSON has ASCII only, so that whatever is not may be escaped.
    return re.sub("[\x7f-\U0010ffff]", _escaped, text)


def _escaped(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _words(text: str) -> str:
    """A text for a header: as it is, or encoded by RFC 2047 if that would not do."""
    if _UNPRINTABLE.search(text):
        raise Unsendable("Sender and subject have to be one line of printable text.")
    # What looks encoded already would not be shown as it was written.
    if text.isascii() and "=?" not in text and len(text) <= HEADER_CHARS_MAX:
        return text
    return Header(text, "utf-8", header_name="subject").encode()


def _from(sender: str) -> str:
    """A sender for the header: only what is shown beside the address may be encoded."""
    if _words(sender) == sender:
        return sender
    name, found = parseaddr(sender)
    if not _ADDRESS.fullmatch(found):
        raise Unsendable("The sender is not a mail address.")
    return f"{_words(name)} <{found}>" if name else found
