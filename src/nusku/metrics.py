"""What is measured, and its Prometheus text.

Recording is plain arithmetic on the event loop, since it happens on every request; the client
library turns it into samples when somebody asks.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

MESSAGE_EVENTS = ("posted", "claimed", "deleted", "popped", "dead_lettered", "expired")


class Histogram:
    """Counts of values up to each bound, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulated, as Prometheus wants them."""
        seen, result = 0, []
        for bound, n in zip((*self.bounds, float("inf")), self.counts, strict=True):
            seen += n
            result.append(("+Inf" if bound == float("inf") else str(bound), float(seen)))
        return result


class Metrics(Collector):
    """All figures of one server. Label values come from closed sets, never from callers."""

    def __init__(self) -> None:
        self.operations: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.durations: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(SECONDS))
        self.served = 0
        self.serving_s = 0.0
        self.messages = dict.fromkeys(MESSAGE_EVENTS, 0)
        self.deliveries: defaultdict[str, int] = defaultdict(int)
        self.unreadable: defaultdict[str, int] = defaultdict(int)
        self.limited: defaultdict[str, int] = defaultdict(int)
        self.attempts: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.attempt_durations = Histogram(SECONDS)
        self.batches = Histogram(SIZES)
        self.commits = Histogram(SECONDS)
        self.gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def operation(self, name: str, status: int, seconds: float, *, waited: bool = False) -> None:
        """An operation was answered; ``waited``: it took its time for something to come."""
        self.served += 1
        if not waited:
            self.serving_s += seconds
        self.operations[name, OUTCOMES.get(status // 100, "failed")] += 1
        self.durations[name].add(seconds)

    def attempt(self, outcome: str, reason: str, seconds: float) -> None:
        """An attempt at a delivery came to an end."""
        self.attempts[outcome, reason] += 1
        self.attempt_durations.add(seconds)

    def gauge(self, name: str, help_: str, read: Callable[[], float]) -> None:
        """A figure that is read when somebody asks."""
        self.gauges[name] = (help_, read)

    def text(self) -> bytes:
        """The exposition in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        operations = CounterMetricFamily(
            "nusku_operations", "Operations answered.", labels=["operation", "outcome"]
        )
        for (name, outcome), n in self.operations.items():
            operations.add_metric([name, outcome], n)
        yield operations
        durations = HistogramMetricFamily(
            "nusku_operation_duration_seconds",
            "Time from the request's head to its answer, waiting included.",
            labels=["operation"],
        )
        for name, histogram in self.durations.items():
            durations.add_metric([name], histogram.buckets(), histogram.total)
        yield durations
        messages = CounterMetricFamily(
            "nusku_messages",
            "Messages by what happened to them: posted, claimed, deleted, popped, dead_lettered, expired.",
            labels=["event"],
        )
        for event, n in self.messages.items():
            messages.add_metric([event], n)
        yield messages
        unreadable = CounterMetricFamily(
            "nusku_unreadable_messages",
            "Encrypted messages that could not be decrypted, each time: unknown_key, tampered.",
            labels=["reason"],
        )
        for why, n in self.unreadable.items():
            unreadable.add_metric([why], n)
        yield unreadable
        limited = CounterMetricFamily(
            "nusku_limited", "What was refused by a limit of its project: quota, rate.",
            labels=["limit"],
        )  # fmt: skip
        for limit, n in self.limited.items():
            limited.add_metric([limit], n)
        yield limited
        deliveries = CounterMetricFamily(
            "nusku_deliveries",
            "Deliveries to subscribers by what happened to them: queued, delivered, retried, given_up.",
            labels=["event"],
        )
        for event, n in self.deliveries.items():
            deliveries.add_metric([event], n)
        yield deliveries
        attempts = CounterMetricFamily(
            "nusku_delivery_attempts",
            "Attempts at deliveries by outcome (delivered, failed, refused) and reason.",
            labels=["outcome", "reason"],
        )
        for (outcome, reason), n in self.attempts.items():
            attempts.add_metric([outcome, reason], n)
        yield attempts
        yield HistogramMetricFamily(
            "nusku_delivery_attempt_duration_seconds",
            "Time that an attempt at a delivery took.",
            buckets=self.attempt_durations.buckets(),
            sum_value=self.attempt_durations.total,
        )
        yield HistogramMetricFamily(
            "nusku_store_batch_operations",
            "Operations that shared one transaction.",
            buckets=self.batches.buckets(),
            sum_value=self.batches.total,
        )
        yield HistogramMetricFamily(
            "nusku_store_commit_duration_seconds",
            "Time to make a transaction durable.",
            buckets=self.commits.buckets(),
            sum_value=self.commits.total,
        )
        for gauge, (help_, read) in self.gauges.items():
            yield GaugeMetricFamily(gauge, help_, value=read())


OUTCOMES = {2: "ok", 3: "ok", 4: "refused", 5: "failed"}
