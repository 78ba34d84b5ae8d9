"""What is written down every few seconds: processes, room, times, counts, errors, and the machine's mood."""

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import asking, process
from benchmarks.soak.load import Load

CONTROLS = ("begin", "fsync", "ping")
"""Kinds of operations that tell of the machine: how late the load was, a flush of a file beside the
store, a request that needs no store."""
ERRORS_KEPT = 20
_BLOCK = bytes(4096)


class Sampler:
    """Takes samples of one server and its store."""

    def __init__(
        self, load: Load, server: Sequence[int], store: Sequence[int], uri: str, home: Path
    ) -> None:
        self._load = load
        self._server = server
        self._store = store
        self._uri = uri
        self._file = home / "control"
        self._began = time.perf_counter()
        self._busy = _machine_ticks()
        self._errors = 0

    async def sample(self, phase: str) -> dict[str, Any]:
        """Everything since the one before."""
        await self._load.hear()
        times = self._load.timings.take()
        errors = self._load.errors[:]
        self._load.errors.clear()
        self._errors += len(errors)
        return {
            "sample": phase,
            "at_s": round(time.perf_counter() - self._began, 3),
            "server": _figures(self._server),
            "store": _figures(self._store),
            "space": {
                name: round(value, 3) for name, value in (await asking.space_of(self._uri)).items()
            },
            "operations": {kind: times[kind] for kind in times if kind not in CONTROLS},
            "controls": {kind: times[kind] for kind in times if kind in CONTROLS},
            "counts": self._load.accounts.counts() | {"errors": self._errors},
            "errors": errors[:ERRORS_KEPT],
            "machine": {"load": os.getloadavg()[0], "busy": self._busy_share()},
        }

    async def flush(self) -> None:
        """Write a block beside the store, and note how long the disk takes."""
        self._load.timings.note_ms("fsync", await asyncio.to_thread(self._flush))

    def _flush(self) -> float:
        started = time.perf_counter()
        with self._file.open("wb") as file:
            file.write(_BLOCK)
            file.flush()
            os.fsync(file.fileno())
        return (time.perf_counter() - started) * 1000

    def _busy_share(self) -> float:
        """Of all cores, since the last sample."""
        before, self._busy = self._busy, _machine_ticks()
        busy, all_ = (now - then for now, then in zip(self._busy, before, strict=True))
        return round(busy / max(all_, 1), 3)


def _figures(roots: Sequence[int]) -> dict[str, float]:
    pids = [member for root in roots for member in process.family(root)]
    return {
        "processes": len(pids),
        "resident_mib": round(process.memory_mib(pids), 3),
        "proportional_mib": round(process.proportional_mib(pids), 3),
        "threads": process.threads(pids),
        "open_files": process.open_files(pids),
        "cpu_s": process.cpu_s(pids),
    }


def _machine_ticks() -> tuple[int, int]:
    """Busy ones and all, of all cores since the start of the machine."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)
