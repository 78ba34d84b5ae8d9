"""What a webhook is sent: the forms, and the reference libraries that read them."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

import nusku
from nusku.broker.deliveries import Parcel, Recipient
from nusku.model import Kind, QueueKey
from nusku.notify.forms import Post, compose

POSTED_MS = 1_767_225_600_123  # 2026-01-01T00:00:00.123Z
DOCUMENT = {"ttl": 300, "body": {"event": "x"}, "queue_name": "q", "Message_Type": "Notification"}
BODY = json.dumps(DOCUMENT).encode()
ONE, OTHER = ("whsec_" + base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))


def composed(
    options: Mapping[str, Any] | None = None,
    body: bytes = BODY,
    *,
    kind: str = "notification",
    name: str = "q",
    noun: Kind = "queue",
    secrets: tuple[str, ...] = (),
    now_s: int = 1000,
    public_url: str = "",
) -> Post:
    to = Recipient(
        "0123456789abcdef01234567", QueueKey(noun, "p", name), "http://h/", dict(options or {}),
        secrets,
    )  # fmt: skip
    return compose(to, Parcel("00ff-1", kind, body, POSTED_MS), now_s, public_url)


# -- the document ----------------------------------------------------------------------------------


def test_the_document_as_it_is() -> None:
    assert composed() == Post(
        BODY,
        {"Content-Type": "application/json", "User-Agent": f"nusku/{nusku.__version__}"},
    )


@pytest.mark.parametrize("name", ["Content-Type", "content-type", "CONTENT-TYPE"])
def test_headers_of_the_subscription_win(name: str) -> None:
    headers = composed({"post_headers": {name: "text/plain", "X-Own": "1"}}).headers
    assert headers == {
        name: "text/plain", "X-Own": "1", "User-Agent": f"nusku/{nusku.__version__}",
    }  # fmt: skip


def test_headers_of_one_subscription_are_not_anothers() -> None:
    composed({"post_headers": {"X-Own": "1"}}).headers["X-More"] = "2"
    composed().headers["X-More"] = "2"
    assert set(composed().headers) == {"Content-Type", "User-Agent"}


@pytest.mark.parametrize("name", ["Host", "content-length", "Transfer-Encoding", "CONNECTION"])
def test_no_header_can_change_what_a_request_is(name: str) -> None:
    assert composed({"post_headers": {name: "1"}}) == composed()


@pytest.mark.parametrize("kind", ["notification", "ping"])
def test_the_template_gets_the_document_in_place_of_the_placeholder(kind: str) -> None:
    template = '{"messages": [{"body": "$zaqar_message$", "ttl": 60}, "$zaqar_message$"]}'
    assert json.loads(composed({"post_data": template}, kind=kind).body) == {
        "messages": [{"body": DOCUMENT, "ttl": 60}, DOCUMENT]
    }


@pytest.mark.parametrize(
    "template", ["", "hello", "$zaqar_message$", "{0} %s ${x} {body}", '"$zaqar_message"', "é"]
)
def test_without_a_placeholder_a_template_is_sent_as_it_is(template: str) -> None:
    assert composed({"post_data": template}).body == template.encode()


@given(st.text())
def test_no_message_can_reach_the_template(text: str) -> None:
    body = json.dumps({"body": ["$zaqar_message$", "\\1", text]}, ensure_ascii=False)
    sent = composed({"post_data": '["$zaqar_message$", 1]'}, body.encode("utf-8", "replace")).body
    assert sent == b"[" + body.encode("utf-8", "replace") + b", 1]"


def test_confirmations_are_the_same_for_all() -> None:
    plain = composed(kind="confirmation")
    assert plain.body == BODY
    assert composed({"post_data": "never"}, kind="confirmation") == plain
    assert composed({"_cloudevents": "binary"}, kind="confirmation") == plain
    headers = composed({"post_headers": {"A": "b"}}, kind="confirmation").headers
    assert headers == {**plain.headers, "A": "b"}


# -- Standard Webhooks -----------------------------------------------------------------------------


def now_s() -> int:
    return int(datetime.now(UTC).timestamp())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"post_data": 'not JSON: "$zaqar_message$"'},
        {"_cloudevents": "structured"},
        {"_cloudevents": "binary"},
        {"post_headers": {"Webhook-Signature": "v1,mine", "WEBHOOK-ID": "mine"}},
    ],
    ids=str,
)
@pytest.mark.parametrize("secrets", [(ONE,), (ONE, OTHER)], ids=["one", "two"])
def test_signatures_are_what_the_reference_library_verifies(
    options: dict[str, Any], secrets: tuple[str, ...]
) -> None:
    post = composed(options, secrets=secrets, now_s=now_s())
    for secret in secrets:
        Webhook(secret).verify(post.body, lowered(post.headers), json_parse=False)
    assert post.headers["webhook-signature"].count("v1,") == len(secrets)


def lowered(headers: Mapping[str, str]) -> dict[str, str]:
    small = {name.lower(): value for name, value in headers.items()}
    assert len(small) == len(headers), "no header is there twice"
    return small


def test_another_secret_body_or_time_does_not_verify() -> None:
    post = composed(secrets=(ONE,), now_s=now_s())
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER).verify(post.body, post.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(ONE).verify(post.body + b" ", post.headers)
    old = composed(secrets=(ONE,), now_s=now_s() - 301)
    with pytest.raises(WebhookVerificationError):
        Webhook(ONE).verify(old.body, old.headers)


def test_the_id_is_the_same_at_every_attempt_and_no_other() -> None:
    first, again = (composed(secrets=(ONE,), now_s=at).headers for at in (1000, 2000))
    assert first["webhook-id"] == again["webhook-id"] == "0123456789abcdef01234567-00ff-1"
    assert (first["webhook-timestamp"], again["webhook-timestamp"]) == ("1000", "2000")
    assert first["webhook-signature"] != again["webhook-signature"]


def test_nothing_is_signed_without_a_secret() -> None:
    assert not any(name.startswith("webhook-") for name in composed().headers)


# -- CloudEvents -----------------------------------------------------------------------------------


def test_binary_has_the_attributes_in_headers_and_the_message_as_its_body() -> None:
    post = composed({"_cloudevents": "binary"}, public_url="https://queues.example.com/")
    assert json.loads(post.body) == {"event": "x"}
    assert post.headers == {
        "Content-Type": "application/json",
        "User-Agent": f"nusku/{nusku.__version__}",
        "ce-specversion": "1.0",
        "ce-id": "00ff-1",
        "ce-source": "https://queues.example.com/v2/queues/q",
        "ce-type": "nusku.message.posted",
        "ce-time": "2026-01-01T00:00:00.123Z",
        "ce-expirytime": "2026-01-01T00:05:00.123Z",
    }


def test_structured_has_all_in_the_body() -> None:
    post = composed({"_cloudevents": "structured"}, name="a b/ü", noun="topic")
    assert json.loads(post.body) == {
        "specversion": "1.0",
        "id": "00ff-1",
        "source": "/v2/topics/a%20b%2F%C3%BC",
        "type": "nusku.message.posted",
        "time": "2026-01-01T00:00:00.123Z",
        "expirytime": "2026-01-01T00:05:00.123Z",
        "datacontenttype": "application/json",
        "data": {"event": "x"},
    }
    assert post.headers["Content-Type"] == "application/cloudevents+json; charset=utf-8"


def test_a_structured_event_keeps_its_content_type() -> None:
    options = {"_cloudevents": "structured", "post_headers": {"content-type": "text/plain"}}
    assert lowered(composed(options).headers)["content-type"].startswith("application/cloudevents")


def test_a_ping_has_a_type_of_its_own() -> None:
    headers = composed({"_cloudevents": "binary"}, kind="ping").headers
    assert headers["ce-type"] == "nusku.subscription.pinged"


@pytest.mark.parametrize("mode", ["binary", "structured"])
@pytest.mark.parametrize(
    "data", [{"event": "x"}, "text", "", 0, None, [1, 2.5], True, {"é": "\u2028"}], ids=repr
)
@pytest.mark.parametrize("name", ["q", "a.b-c_d"])
def test_the_reference_library_reads_both(mode: str, data: Any, name: str) -> None:
    body = json.dumps({"body": data, "ttl": 60}, ensure_ascii=False).encode()
    post = composed({"_cloudevents": mode}, body, name=name)
    event = from_http_event(HTTPMessage(lowered(post.headers), post.body))
    assert event.get_specversion() == "1.0"
    assert event.get_id() == "00ff-1"
    assert event.get_source() == f"/v2/queues/{name}"
    assert event.get_type() == "nusku.message.posted"
    assert event.get_time() == datetime.fromtimestamp(POSTED_MS / 1000, UTC)
    assert event.get_extension("expirytime") == "2026-01-01T00:01:00.123Z"
    assert event.get_datacontenttype() == "application/json"
    assert event.get_data() == data
