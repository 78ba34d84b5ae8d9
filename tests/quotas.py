"""What tests of quotas and rates share."""

from __future__ import annotations

import os

import httpx
from click.testing import CliRunner

from nusku.cli import main
from tests.live import LiveServer, settings_environment


def refused(answer: httpx.Response) -> str:
    """What is said of a request that a quota refuses."""
    assert answer.status_code == 403, answer.text
    assert answer.json()["title"] == "Quota exceeded"
    return str(answer.json()["description"])


def command(server: LiveServer, *arguments: str, status: int = 0) -> str:
    """`nusku quota …` beside a running server: what it prints."""
    names = (name for name in os.environ if name.upper().startswith("NUSKU_"))
    environment = {**dict.fromkeys(names), **settings_environment(server.settings)}
    done = CliRunner().invoke(main, ["quota", *arguments, "--store", server.store], env=environment)
    assert done.exit_code == status, done.output
    return done.stdout
