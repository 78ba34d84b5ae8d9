"""A few examples for everything that parses what strangers send; `make fuzz` tries more."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings

from tests.fuzz.line import Line
from tests.fuzz.targets import TARGETS, Target
from tests.live import LiveServer
from tests.security.support import address_of, still_serves


@pytest.mark.parametrize(
    "target", [t for t in TARGETS if not t.over_http], ids=lambda target: target.name
)
def test_what_strangers_send_is_taken_or_refused(target: Target) -> None:
    line = Line(None)

    @settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
    @given(target.tries)
    def check(value: Any) -> None:
        note(repr(value))
        target.check(value, line)

    check()


@pytest.mark.slow
@pytest.mark.parametrize(
    "target", [t for t in TARGETS if t.over_http], ids=lambda target: target.name
)
def test_no_request_breaks_the_service(
    target: Target, shared_server: Callable[..., LiveServer]
) -> None:
    server = shared_server(encryption_keys=("fuzz-0123456789abcdef-0123456789abcdef",))
    with closing(Line(address_of(server))) as line:

        @settings(deadline=None, max_examples=80, suppress_health_check=list(HealthCheck))
        @given(target.tries)
        def check(value: Any) -> None:
            note(repr(value))
            target.check(value, line)

        check()
    still_serves(server)
