"""The soak as a picture: everything over the same time. Needs matplotlib, which only `make soak` installs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")  # before pyplot is imported, which else looks for a screen

from matplotlib import pyplot as plt

from benchmarks.soak.report import Record, Sample, store_size_mib

Lines = dict[str, Callable[[Sample], float | None]]


def draw(record: Record, file: Path) -> None:
    """Write the picture; the name's suffix says in which format."""
    samples = [sample for sample in record.samples if sample["sample"] == "load"]
    kinds = sorted({kind for sample in samples for kind in sample["operations"]})
    panels: list[tuple[str, Lines]] = [
        ("memory, MiB", _memory(samples)),
        ("store, MiB", _store(samples)),
        ("p99, ms", {kind: _p99("operations", kind) for kind in kinds}),
        (
            "p99 of controls, ms",
            {
                "ping": _p99("controls", "ping"),
                "flush beside the store": _p99("controls", "fsync"),
                "late begin": _p99("controls", "begin"),
            },
        ),
        (
            "count",
            {
                "open files": _figure("server", "open_files"),
                "threads": _figure("server", "threads"),
                "messages open / 10": lambda sample: sample["counts"]["open"] / 10,
            },
        ),
        (
            "machine",
            {
                "busy, part of all cores": _figure("machine", "busy"),
                "load / 10": lambda sample: sample["machine"]["load"] / 10,
            },
        ),
    ]
    figure, axes = plt.subplots(len(panels), sharex=True, figsize=(10, 15), layout="constrained")
    minutes = [sample["at_s"] / 60 for sample in samples]
    for axis, (label, lines) in zip(axes, panels, strict=True):
        _panel(axis, label, lines, minutes, samples)
    axes[-1].set_xlabel("minutes")
    figure.suptitle(record.head["mode"], wrap=True, fontsize="medium")
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _panel(
    axis: Any, label: str, lines: Lines, minutes: Sequence[float], samples: Sequence[Sample]
) -> None:
    for name, value in lines.items():
        axis.plot(minutes, [value(sample) for sample in samples], label=name, linewidth=0.8)
    if label.startswith("p99"):
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
    axis.set_ylabel(label)
    axis.grid(alpha=0.3)
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="small", frameon=False)


def _memory(samples: Sequence[Sample]) -> Lines:
    lines: Lines = {"server": _figure("server", "resident_mib")}
    if any(sample["store"]["processes"] for sample in samples):
        lines["the store's server"] = _figure("store", "proportional_mib")
    return lines


def _store(samples: Sequence[Sample]) -> Lines:
    names = sorted({name for sample in samples for name in sample["space"] if "MiB" in name})
    lines: Lines = {
        name.removesuffix(", MiB"): _figure("space", name)
        for name in names
        if name != "database, MiB"
    }
    lines["together"] = store_size_mib
    if any("dead rows" in sample["space"] for sample in samples):
        lines["dead rows / 1000"] = lambda sample: sample["space"]["dead rows"] / 1000
    return lines


def _figure(group: str, name: str) -> Callable[[Sample], float | None]:
    return lambda sample: sample[group].get(name)


def _p99(group: str, kind: str) -> Callable[[Sample], float | None]:
    return lambda sample: sample[group].get(kind, {}).get("p99_ms")
