"""A seed that nobody has tried: another one in each run of the tests, the same in all its processes."""

import os
import random

import pytest

SEED = random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID")).randrange(10**6)
FRESH = pytest.param(SEED, id=f"fresh-{SEED}")
