"""What a process and all that it started cost: CPU and memory, as the kernel counts them."""

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """The process and its descendants that live now; empty when it is gone."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid] if Path(f"/proc/{pid}").exists() else []
    for member in found:
        found += children.get(member, [])
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """User and system time of all their threads, and of the children they have waited for.

    Counted in ticks of usually 10 ms.
    """
    ticks = 0
    for pid in pids:
        if fields := _stat(pid):
            ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS


def memory_mib(pids: Iterable[int]) -> float:
    """Resident memory now; what several share counts for each."""
    return sum(_status_mib(pid, "VmRSS") for pid in pids)


def proportional_mib(pids: Iterable[int]) -> float:
    """Memory now, in which a page that n processes share counts as the nth part for each."""
    return sum(
        _mib(Path(f"/proc/{pid}/smaps_rollup"), "Pss") or _status_mib(pid, "VmRSS") for pid in pids
    )


def threads(pids: Iterable[int]) -> int:
    """How many they have."""
    return sum(int(fields[17]) for pid in pids if (fields := _stat(pid)))


def open_files(pids: Iterable[int]) -> int:
    """Descriptors that they hold, sockets included."""
    count = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            count += sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return count


def peak_memory_mib(pids: Iterable[int]) -> float:
    """The most resident memory of each since its start or the last reset, added up."""
    return sum(_status_mib(pid, "VmHWM") for pid in pids)


def reset_peak_memory(pids: Iterable[int]) -> None:
    """Begin a new peak; where that is not allowed the peak counts from the start of the process."""
    for pid in pids:
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _status_mib(pid: int, name: str) -> float:
    return _mib(Path(f"/proc/{pid}/status"), name)


def _mib(table: Path, name: str) -> float:
    """The line of this name; 0 where it cannot be read."""
    try:
        text = table.read_text()
    except OSError:
        return 0.0
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0
