"""What a browser is told of documents that it may be led to: nothing runs, loads or frames them."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256

from tests.live import Api


def test_the_page_may_only_look_as_it_does(api: Api) -> None:
    answer = api.get("/docs")
    [style] = re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    digest = b64encode(sha256(style.encode()).digest()).decode()
    assert answer.headers["content-security-policy"].split("; ") == [
        "default-src 'none'",
        f"style-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    # What the policy would stop is not there, either.
    for wanted in ("<script", " style=", " src=", "<link", "<form", " onclick="):
        assert wanted not in answer.text


def test_documents_are_what_they_say_they_are(api: Api) -> None:
    for path in ("/docs", "/openapi.json", "/metrics"):
        assert api.get(path).headers["x-content-type-options"] == "nosniff"


def test_answers_of_the_api_have_no_headers_that_others_lack(api: Api) -> None:
    ours = {"x-content-type-options", "content-security-policy", "x-frame-options"}
    for path in ("/v2/", "/v2/queues", "/v2/queues/q", "/nothing"):
        assert ours.isdisjoint(api.get(path).headers)
