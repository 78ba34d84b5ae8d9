"""A check of the check that every server of the tests undergoes: what leaks is found (SEC-29)."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.canaries import SETTINGS, Watch, canary

TOKEN, WORD = canary("token"), canary("body")


@pytest.fixture
def watch() -> Watch:
    """Of a server that has been asked for something."""
    watch = Watch(SETTINGS)
    [asked] = watch.hooks()["request"]
    body = {"messages": [{"body": {"here": [WORD]}}]}
    asked(
        httpx.Request(
            "POST", "http://x/v2/queues/q/messages", json=body, headers={"X-Auth-Token": TOKEN}
        )
    )
    return watch


@pytest.mark.parametrize(
    ("line", "leaks"),
    [
        ("nothing of it", False),
        (f'{{"event":"request","token":"{TOKEN}"}}', True),
        (f"posted {WORD}, as asked", True),
        (f"password={SETTINGS['smtp_user_password']}", True),
        ("ab" * 32, True),
    ],
)
def test_what_is_in_the_log_is_found(line: str, leaks: bool, watch: Watch, tmp_path: Path) -> None:
    log, key = tmp_path / "log", tmp_path / "nusku.db.key"
    log.write_text(f"before\n{line}\nafter\n")
    key.write_text(f"signing = {'ab' * 32}\n")
    try:
        watch.insist_on_log(log, key)
    except AssertionError:
        assert leaks
    else:
        assert not leaks


@pytest.mark.parametrize("secret", [TOKEN, SETTINGS["trustee_user_password"]])
def test_what_is_in_an_error_is_found(secret: str, watch: Watch) -> None:
    request = httpx.Request("GET", "http://x/v2/queues", headers={"X-Auth-Token": TOKEN})
    [answered] = watch.hooks()["response"]
    answered(httpx.Response(400, request=request, text="The queue is not there."))
    answered(httpx.Response(200, request=request, text=secret))
    with pytest.raises(AssertionError, match="in an error"):
        answered(httpx.Response(403, request=request, text=f"Not with {secret}."))
