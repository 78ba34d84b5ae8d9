"""How long operations took, in one window after the other."""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

STEP = 1.05
"""Each bucket of a histogram is so much wider than the one before: what is read from it is 5 % off
at most."""
_LOG_STEP = math.log(STEP)


class Timings:
    """Durations by kind of operation since the last `take`."""

    def __init__(self) -> None:
        self._durations_ms: defaultdict[str, list[float]] = defaultdict(list)

    def note(self, kind: str, since: float) -> None:
        """One that was due at `since` (perf_counter seconds) is done now."""
        self.note_ms(kind, (time.perf_counter() - since) * 1000)

    def note_ms(self, kind: str, duration_ms: float) -> None:
        self._durations_ms[kind].append(duration_ms)

    def take(self) -> dict[str, dict[str, Any]]:
        """Count, p50, p99, max and histogram of each kind, and a new beginning."""
        taken = {kind: _summary(values) for kind, values in sorted(self._durations_ms.items())}
        self._durations_ms.clear()
        return taken


def percentile_ms(histograms: Iterable[Mapping[str, int]], share: float) -> float | None:
    """The duration that `share` of all in these histograms did not exceed; None where there are none."""
    merged: Counter[int] = Counter()
    for histogram in histograms:
        merged.update({int(bucket): histogram[bucket] for bucket in histogram})
    rank = share * merged.total()
    for bucket in sorted(merged):
        rank -= merged[bucket]
        if rank <= 0:
            return float(STEP ** (bucket + 0.5))
    return None


def _summary(durations_ms: list[float]) -> dict[str, Any]:
    durations_ms.sort()
    count = len(durations_ms)
    histogram = Counter(
        math.floor(math.log(max(value, 1e-3)) / _LOG_STEP) for value in durations_ms
    )
    return {
        "count": count,
        "p50_ms": round(durations_ms[count // 2], 3),
        "p99_ms": round(durations_ms[min(int(count * 0.99), count - 1)], 3),
        "max_ms": round(durations_ms[-1], 3),
        "histogram": {str(bucket): histogram[bucket] for bucket in sorted(histogram)},
    }
