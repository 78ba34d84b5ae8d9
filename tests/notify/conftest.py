"""What the tests of notifications share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.notify.receivers import Farm


@pytest.fixture
def farm() -> Iterator[Farm]:
    """A receiver farm of the test's own, on 127.0.0.1."""
    with Farm() as running:
        yield running
