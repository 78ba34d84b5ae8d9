"""The faults, by the names under which they are asked for."""

from __future__ import annotations

from tests.chaos.harness.nemesis.base import Nemesis
from tests.chaos.harness.nemesis.diskfull import DiskFull
from tests.chaos.harness.nemesis.ioerr import IOErrors
from tests.chaos.harness.nemesis.kill import Kill
from tests.chaos.harness.nemesis.power import Power
from tests.chaos.harness.nemesis.replies import Replies
from tests.chaos.harness.nemesis.slowdisk import SlowDisk
from tests.chaos.harness.nemesis.term import Term

__all__ = ["NEMESES", "Nemesis"]

NEMESES: dict[str, type[Nemesis]] = {
    kind.name: kind for kind in (Nemesis, Kill, Power, IOErrors, DiskFull, SlowDisk, Term, Replies)
}
