"""Four quarters of a soak side by side, from its file: what grew."""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.soak.timings import percentile_ms

Sample = dict[str, Any]
Figure = Callable[[Sequence[Sample]], float | None]

SAMPLES = "samples.jsonl"
"""The name of the file."""
GROWTH_MAX = 1.1
"""Last quarter against the second: the first is not counted, as everything fills up there."""
MEMORY = "server's memory, MiB"
"""Resident. The proportional one also grows when others end that had shared pages with it."""
P99 = "p99 of all operations, ms"
SIZE = "size of the store, MiB"
OPEN_FILES = "server's open files"
GOALS = (MEMORY, P99, SIZE, OPEN_FILES)


@dataclass(slots=True)
class Record:
    """The file of a soak: what was meant, what was seen, and how it ended."""

    head: dict[str, Any]
    samples: list[Sample]
    end: dict[str, Any] | None
    """None if it was stopped before it came to one."""


def read(file: Path) -> Record:
    """The lines of a file, of which the last may be cut off."""
    record = Record({}, [], None)
    for line in file.read_text().splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            break
        if "plan" in found:
            record.head = found
        elif "end" in found:
            record.end = found
        else:
            record.samples.append(found)
    return record


def quarters(samples: Sequence[Sample]) -> list[list[Sample]]:
    """The samples taken while the load was on, in four parts of the same time."""
    loaded = [sample for sample in samples if sample["sample"] == "load"]
    if not loaded:
        return [[], [], [], []]
    whole_s = loaded[-1]["at_s"]
    parts: list[list[Sample]] = [[], [], [], []]
    for sample in loaded:
        parts[min(int(4 * sample["at_s"] / whole_s), 3)].append(sample)
    return parts


def table(record: Record) -> list[str]:
    """A table in Markdown: a row for each figure, with the last quarter against the second."""
    parts = quarters(record.samples)
    lines = [
        "| | 1st quarter | 2nd | 3rd | 4th | 4th / 2nd | goal |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, values in figures(parts).items():
        ratio = growth(values)
        goal = ""
        if name in GOALS:
            goal = f"≤ {GROWTH_MAX:g}: {_verdict(ratio)}"
        cells = [*map(_number, values), "–" if ratio is None else f"{ratio:.2f}", goal]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def figures(parts: Sequence[Sequence[Sample]]) -> dict[str, list[float | None]]:
    """Each figure in each quarter."""
    samples = [sample for part in parts for sample in part]
    kinds = sorted({kind for sample in samples for kind in sample["operations"]})
    rows: dict[str, Figure] = {
        MEMORY: _mean("server", "resident_mib"),
        SIZE: _mean_of(store_size_mib),
        P99: _p99(kinds),
        OPEN_FILES: _mean("server", "open_files"),
        "server's threads": _mean("server", "threads"),
        "server's CPU, part of a core": _cpu("server"),
    }
    if any(sample["store"]["processes"] for sample in samples):
        rows["memory of the store's server, MiB"] = _mean("store", "proportional_mib")
        rows["its open files"] = _mean("store", "open_files")
        rows["its CPU, part of a core"] = _cpu("store")
    for name in sorted({name for sample in samples for name in sample["space"]}):
        rows[name] = _mean("space", name)
    for kind in kinds:
        rows[f"{kind}: p50, ms"] = _percentile("operations", [kind], 0.5)
        rows[f"{kind}: p99, ms"] = _p99([kind])
    for kind in ("ping", "fsync", "begin"):
        rows[f"control, {CONTROL_NAMES[kind]}: p99, ms"] = _percentile("controls", [kind], 0.99)
    rows["p99 of all operations against that of the controls ping and fsync together"] = _against
    rows["messages open"] = _mean("counts", "open")
    rows["operations/s"] = _rate
    rows["machine busy, part of all cores"] = _mean("machine", "busy")
    return {name: [figure(part) for part in parts] for name, figure in rows.items()}


CONTROL_NAMES = {
    "ping": "a ping of the server",
    "fsync": "a flush of 4 KiB beside the store",
    "begin": "how late posts were begun",
}


def growth(values: Sequence[float | None]) -> float | None:
    """The last quarter against the second."""
    second, last = values[1], values[3]
    return last / second if last is not None and second else None


def store_size_mib(sample: Sample) -> float:
    """File and log, or tables and indexes, or what else the store says that it takes."""
    space = sample["space"]
    if "tables, MiB" in space:
        return float(space["tables, MiB"] + space["indexes, MiB"])
    return float(sum(value for name, value in space.items() if name.endswith(", MiB")))


def summary(record: Record) -> list[str]:
    """What was run, what became of the messages, and whether anything was wrong."""
    plan, samples = record.head["plan"], record.samples
    counts = record.end["counts"] if record.end else samples[-1]["counts"] if samples else {}
    lines = [
        f"{record.head['mode']}.",
        f"{plan['rate']:g} posts/s for {_duration(samples)}; one sample every {plan['sample_s']:g} s.",
        "",
        "| " + " | ".join(name for name in counts if name != "the server's") + " |",
        "|" + "---|" * sum(name != "the server's" for name in counts),
        "| " + " | ".join(f"{n:,}" for name, n in counts.items() if name != "the server's") + " |",
        "",
    ]
    if record.end is None:
        return [*lines, "It was stopped before its accounts were closed."]
    faults = record.end["faults"]
    if not faults:
        return [*lines, "Every message is accounted for, and no answer was wrong or missing."]
    return [*lines, f"**{len(faults)} faults:**", "", *(f"- {fault}" for fault in faults[:50])]


def _duration(samples: Sequence[Sample]) -> str:
    loaded = [sample["at_s"] for sample in samples if sample["sample"] == "load"]
    seconds = loaded[-1] if loaded else 0
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def _mean(group: str, name: str) -> Figure:
    return _mean_of(lambda sample: sample[group].get(name, 0.0))


def _mean_of(value: Callable[[Sample], float]) -> Figure:
    return lambda samples: statistics.fmean(map(value, samples)) if samples else None


def _cpu(group: str) -> Figure:
    def cpu(samples: Sequence[Sample]) -> float | None:
        if len(samples) < 2:
            return None
        first, last = samples[0], samples[-1]
        return float(last[group]["cpu_s"] - first[group]["cpu_s"]) / float(
            last["at_s"] - first["at_s"]
        )

    return cpu


def _percentile(group: str, kinds: Sequence[str], share: float) -> Figure:
    return lambda samples: percentile_ms(
        (
            sample[group][kind]["histogram"]
            for sample in samples
            for kind in kinds
            if kind in sample[group]
        ),
        share,
    )


def _p99(kinds: Sequence[str]) -> Figure:
    return _percentile("operations", kinds, 0.99)


def _against(samples: Sequence[Sample]) -> float | None:
    kinds = {kind for sample in samples for kind in sample["operations"]}
    all_ms = _p99(sorted(kinds))(samples)
    controls = [_percentile("controls", [kind], 0.99)(samples) for kind in ("ping", "fsync")]
    if all_ms is None or None in controls:
        return None
    return all_ms / sum(filter(None, controls))


def _rate(samples: Sequence[Sample]) -> float | None:
    if len(samples) < 2:
        return None
    done = sum(each["count"] for sample in samples[1:] for each in sample["operations"].values())
    return float(done) / float(samples[-1]["at_s"] - samples[0]["at_s"])


def _verdict(ratio: float | None) -> str:
    if ratio is None:
        return "not measured"
    return "reached" if ratio <= GROWTH_MAX else "NOT REACHED"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
