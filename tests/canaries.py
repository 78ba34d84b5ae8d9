"""Secrets that are looked for wherever a server of the tests has written (SEC-29).

Each is a text that occurs once in the world. Every server is given some, and whatever the tests
themselves send as bodies, tokens and signatures is remembered: when a server has ended, none of
that may be in its log, and no error that it answered with may hold a credential.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import httpx

from nusku.config.settings import SECRETS


def canary(kind: str) -> str:
    """A text that nobody else ever writes, which says what it stood for."""
    return f"canary{kind}{uuid.uuid4().hex}"


SETTINGS = {name: canary("setting") for name in ("smtp_user_password", "trustee_user_password")}
"""For every server; without further settings they have no effect."""

BODY = canary("body")
"""A part of each message that is posted to servers under faults."""

# What others can be taken for by chance is not looked for.
_LEAST, _MOST = 16, 160
_WORD = re.compile(rb"[A-Za-z0-9_.+/=-]{%d,%d}" % (_LEAST, _MOST))
_QUOTED = re.compile(rb'"(%b)"' % _WORD.pattern)
_CREDENTIALS = ("x-auth-token", "x-service-token", "authorization", "cookie", "url-signature")


class Watch:
    """What one server was told in confidence."""

    def __init__(self, settings: Mapping[str, object]) -> None:
        given = (settings[name] for name in SECRETS.intersection(settings))
        self._secrets = {one for value in given for one in _texts(value) if len(one) >= _LEAST}
        self._words: set[bytes] = set()

    def hooks(self) -> dict[str, list[Callable[..., Any]]]:
        """For a client of this server."""
        return {"request": [self._asked], "response": [self._answered]}

    def _asked(self, request: httpx.Request) -> None:
        for name in _CREDENTIALS:
            if name in request.headers:
                self._words.update(_WORD.findall(request.headers[name].encode()))
        if request.method == "POST" and request.url.path.endswith("/messages"):
            self._words.update(_QUOTED.findall(request.read()))

    def _answered(self, answer: httpx.Response) -> None:
        if answer.status_code < 400:
            return
        answer.read()
        sent = (answer.request.headers.get(name, "") for name in _CREDENTIALS)
        credentials = {one for value in sent for one in value.split() if len(one) >= _LEAST}
        insist_absent(answer.text, {*self._secrets, *credentials}, "an error")

    def insist(self, written: str, where: str, *keys: Path) -> None:
        """No secret of the settings, and no key of these files, is in what the server wrote."""
        made = (re.findall("[0-9a-zA-Z_=-]{32,}", path.read_text()) for path in keys)
        insist_absent(written, {*self._secrets, *(key for found in made for key in found)}, where)

    def insist_on_log(self, file: Path, *keys: Path) -> None:
        """Nothing that was said in confidence is in the log."""
        written = file.read_bytes()
        self.insist(written.decode(errors="replace"), "the log", *keys)
        found = self._words.intersection(_WORD.findall(written)) if self._words else ()
        assert not found, f"in the log: {found}"


def insist_absent(text: str, secrets: Iterable[str], where: str) -> None:
    found = [secret for secret in secrets if secret in text]
    assert not found, f"in {where}: {found}"


def _texts(value: Any) -> Iterable[str]:
    return value.split(",") if isinstance(value, str) else map(str, value)
