"""Figures and goals: what a scenario hands back, and how it is printed."""

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.generator import Run


@dataclass(slots=True)
class Row:
    """One timed run."""

    name: str
    requests_per_s: float
    messages_per_s: float
    p50_ms: float
    p99_ms: float
    generator_share: float
    """CPU of the generator, as a part of one core."""
    pings: list[float] = field(default_factory=list)
    """`GET /v2/ping` requests/s before, between and after the slices of the run."""
    ratios: list[float] = field(default_factory=list)
    """Requests/s of each slice against the mean of the pings around it."""
    server_cpu_us: float | None = None
    """User and system CPU of the server for one request."""
    server_peak_mib: float | None = None
    store_cpu_us: float | None = None
    """The same of the servers of the store."""

    @property
    def ratio(self) -> float | None:
        """Requests/s against ping's: the median of the slices."""
        return statistics.median(self.ratios) if self.ratios else None


@dataclass(slots=True)
class Result:
    """What one scenario found out."""

    scenario: str
    rows: list[Row] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)
    """Further figures, name and unit to value."""
    ratios: dict[str, list[float]] = field(default_factory=dict)
    """What was compared, to one value for each turn: their median is the figure."""
    states: list[dict[str, float]] = field(default_factory=list)
    """The same figures at several moments, name and unit to value."""
    modes: dict[str, str] = field(default_factory=dict)
    """How durable the stores are that it ran on, where they are not those of the whole run."""
    errors: list[str] = field(default_factory=list)
    skipped: str = ""
    """Why it did not run."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should reach; `name` is also that of the fact or ratio that measures it."""

    name: str
    bound: float
    at_least: bool
    aim: float | None = None
    unit: str = ""
    kinds: tuple[str, ...] = ()
    """The kinds of store that it is meant for; empty for all."""


POST1_ASYNCPG = "post1 against one-row commits of asyncpg"
POST1_SQLITE = "post1 against the same on SQLite"
POST1_ZAQAR = "post1 against Zaqar"
CYCLE1_ZAQAR = "claim + delete against Zaqar"
CREDENTIALS = "against auth = none, requests/s"
ENCRYPTED = "encrypted against clear, messages/s"
FAIR = "p99 beside a project at 10 × its rate, to quiet"
SOCKET_POST = "post1 over WebSocket, 16 in flight, against HTTP"
SOCKET_MEMORY = "memory of an idle WebSocket"
FAN_OUT = "one post to all event streams, the last"
FAILOVER = "a client without an answer, one of three nodes killed"
TWO_POOLS = "two pools against one, slow commits"

GOALS = (
    Goal("post1 against ping, requests/s", 0.5, True, 0.6, kinds=("sqlite",)),
    Goal("cycle1 against ping, requests/s", 0.45, True, 0.55, kinds=("sqlite",)),
    Goal("post10 against post1, messages/s", 5, True, kinds=("sqlite",)),
    Goal("claim p50, all in flight against none", 1.5, False, 1.3),
    Goal("wake-up p99", 50, False, unit="ms"),
    Goal("notifications/s to one fast receiver", 2000, True, kinds=("sqlite",)),
    Goal("post1 with 1 subscription against none, requests/s", 0.8, True, kinds=("sqlite",)),
    *(
        Goal(f"{load} with {kind}, {CREDENTIALS}", 0.9, True)
        for load in ("ping", "post1")
        for kind in ("key", "keystone")
    ),
    Goal(f"post1, {ENCRYPTED}", 0.85, True),
    Goal(FAIR, 1.2, False),
    Goal(SOCKET_POST, 1.5, True),
    Goal(FAN_OUT, 200, False, unit="ms"),
    Goal(SOCKET_MEMORY, 40, False, unit="KiB"),
    Goal("p99 delivery beside hanging endpoints, more", 2, False, unit="s"),
    Goal("memory, stored messages against an empty store", 64, False, unit="MiB"),
    Goal("first answer, stored messages", 2, False, unit="s"),
    Goal(FAILOVER, 2, False, unit="s"),
    Goal(TWO_POOLS, 1.7, True),
    Goal(POST1_ASYNCPG, 0.7, True, kinds=("postgresql", "postgres")),
    Goal(POST1_SQLITE, 1, True, kinds=("redis",)),
    Goal(POST1_ZAQAR, 8, True, kinds=("redis",)),
    Goal(CYCLE1_ZAQAR, 8, True, kinds=("redis",)),
)


def percentile_ms(run: Run, share: float) -> float:
    """The latency that `share` of the operations did not exceed."""
    latencies = sorted(run.latencies_s)
    return (
        latencies[min(int(len(latencies) * share), len(latencies) - 1)] * 1000 if latencies else 0.0
    )


def row_of(name: str, run: Run) -> Row:
    """The figures of a run; what was measured around it is added by the caller."""
    duration = run.duration_s or 1e-9
    return Row(
        name=name,
        requests_per_s=run.requests / duration,
        messages_per_s=run.messages / duration,
        p50_ms=percentile_ms(run, 0.50),
        p99_ms=percentile_ms(run, 0.99),
        generator_share=run.generator_cpu_s / duration,
    )


HEADING = (
    f"{'scenario':<16}{'requests/s':>11}{'messages/s':>11}{'p50 ms':>9}{'p99 ms':>9}"
    f"{'CPU µs/req':>11}{'store':>7}{'peak MiB':>9}{'generator':>10}{'ping/s':>9}{'ping ±':>8}{'ratio':>7}"
    "  (its range)"
)


def lines_of(result: Result) -> list[str]:
    """The printed form of one scenario."""
    if result.skipped:
        return [f"{result.scenario:<16}skipped: {result.skipped}"]
    lines = [f"{result.scenario:<16}{name}: {mode}" for name, mode in result.modes.items()]
    lines += [_row_line(row) for row in result.rows]
    lines += [
        f"{result.scenario:<16}{', '.join(f'{name} {value:,.0f}' for name, value in state.items())}"
        for state in result.states
    ]
    in_table = {goal.name for goal in GOALS}
    facts = {name: value for name, value in result.facts.items() if name not in in_table}
    width = max(map(len, (*facts, *result.ratios)), default=0)
    lines += [
        f"{result.scenario:<16}{name:<{width}}  {value:,.2f}" for name, value in facts.items()
    ]
    lines += [
        f"{result.scenario:<16}{name:<{width}}  {statistics.median(values):,.2f}"
        f"  ({min(values):.2f}–{max(values):.2f})"
        for name, values in result.ratios.items()
    ]
    lines += [f"{result.scenario:<16}ERROR {error}" for error in result.errors[:5]]
    if len(result.errors) > 5:
        lines.append(f"{result.scenario:<16}ERROR and {len(result.errors) - 5} more")
    return lines


def _row_line(row: Row) -> str:
    cpu = f"{row.server_cpu_us:.0f}" if row.server_cpu_us is not None else "–"
    store = f"{row.store_cpu_us:.0f}" if row.store_cpu_us is not None else "–"
    peak = f"{row.server_peak_mib:.0f}" if row.server_peak_mib is not None else "–"
    line = (
        f"{row.name:<16}{row.requests_per_s:>11,.0f}{row.messages_per_s:>11,.0f}{row.p50_ms:>9.2f}{row.p99_ms:>9.2f}"
        f"{cpu:>11}{store:>7}{peak:>9}{row.generator_share:>10.0%}"
    )
    if row.ratio is not None:
        mean = statistics.mean(row.pings)
        spread = (max(row.pings) - min(row.pings)) / 2 / mean
        line += f"{mean:>9,.0f}{spread:>8.0%}{row.ratio:>7.2f}"
        line += f"  ({min(row.ratios):.2f}–{max(row.ratios):.2f})"
    return line


def measured_goals(results: list[Result]) -> dict[str, float]:
    """The measured value of every goal whose scenarios ran, by the goal's name."""
    rows = {row.name: row for result in results for row in result.rows}
    measured: dict[str, float] = {}
    for name in ("post1", "cycle1"):
        if name in rows and (ratio := rows[name].ratio) is not None:
            measured[f"{name} against ping, requests/s"] = ratio
    if "post1" in rows and "post10" in rows and rows["post1"].messages_per_s:
        measured["post10 against post1, messages/s"] = (
            rows["post10"].messages_per_s / rows["post1"].messages_per_s
        )
    figures: dict[str, float] = {}
    for result in results:
        figures |= result.facts
        figures |= {name: statistics.median(values) for name, values in result.ratios.items()}
    return measured | {goal.name: figures[goal.name] for goal in GOALS if goal.name in figures}


def goal_lines(results: list[Result], scale: str, kind: str) -> list[str]:
    """The table of goals, reached or not, for a kind of store.

    `scale` says at which size and on what they were measured.
    """
    measured = measured_goals(results)
    lines = [f"{'goal':<52}{'bound':>12}{'aim':>8}{'measured':>12}  {scale}"]
    for goal in GOALS:
        bound = f"{'≥' if goal.at_least else '≤'} {goal.bound:g} {goal.unit}".rstrip()
        aim = f"{goal.aim:g}" if goal.aim is not None else ""
        value = measured.get(goal.name)
        if value is None:
            lines.append(f"{goal.name:<52}{bound:>12}{aim:>8}{'–':>12}  not measured")
            continue
        if goal.kinds and kind not in goal.kinds:
            verdict = f"no goal here, but on {goal.kinds[0]}"
            lines.append(f"{goal.name:<52}{bound:>12}{aim:>8}{value:>12.2f}  {verdict}")
            continue
        reached = value >= goal.bound if goal.at_least else value <= goal.bound
        beyond = goal.aim is not None and (
            value >= goal.aim if goal.at_least else value <= goal.aim
        )
        verdict = "reached, aim too" if beyond else "reached" if reached else "NOT REACHED"
        lines.append(f"{goal.name:<52}{bound:>12}{aim:>8}{value:>12.2f}  {verdict}")
    return lines


def as_json(results: list[Result], machine: dict[str, Any]) -> dict[str, Any]:
    """Everything, for a file."""
    return {
        "machine": machine,
        "results": [
            asdict(result) | {"rows": [asdict(row) | {"ratio": row.ratio} for row in result.rows]}
            for result in results
        ],
        "goals": [
            asdict(goal) | {"measured": measured}
            for goal in GOALS
            for measured in [measured_goals(results).get(goal.name)]
        ],
    }
