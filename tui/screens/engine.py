"""Engine: where the time goes, what waits where, and every figure that it keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Grid, Horizontal

from engine.telemetry import engine_metrics as keys
from engine.telemetry.looplag import LAG_EDGES_S
from engine.telemetry.metrics import meant
from engine.telemetry.stages import ToolRow
from engine.types import Phase
from tui.messages import Filtered
from tui.numbers import batches, live, newest_row, rate, rates, series, share_points, untrained
from tui.snapshot import Snapshot, SnapshotQuery
from tui.text import count, plain, took
from tui.view import View
from tui.widgets.chart import Bars, Chart
from tui.widgets.facts import Facts
from tui.widgets.lines import Cell
from tui.widgets.table import Column, Table

_STAGES = (
    Column("stage", "stage", 7, 0),
    Column("now", "now", 6, 0, right=True),
    Column("rate", "per s", 7, 1, right=True),
    Column("p50", "p50", 6, 1, right=True),
    Column("p95", "p95", 6, 2, right=True),
    Column("p99", "p99", 6, 0, right=True),
)
_TOOLS = (
    Column("tool", "tool", 0, 0),
    Column("calls", "calls", 6, 1, right=True),
    Column("refused", "error", 6, 0, right=True),
    Column("broken", "broken", 6, 0, right=True),
    Column("p50", "p50", 6, 2, right=True),
    Column("p95", "p95", 6, 1, right=True),
)
_FIGURES = (
    Column("key", "figure", 38, 0, right=False),
    Column("value", "now", 10, 0, right=True),
    Column("rate", "per s", 9, 1, right=True),
    Column("unit", "unit", 5, 3, right=False),
    Column("meaning", "meaning", 0, 2, right=False),
)


class EngineView(View):
    """The pipeline, its curves, the stages and tools of episodes, and the table of all figures."""

    def body(self) -> ComposeResult:
        """From top to bottom."""
        yield Facts("pipeline", id="pipeline")
        with Grid(id="gauges"):
            yield Chart("loop lag p99, ms", id="lag")
            yield Chart("requests running at the servers", id="running")
            yield Chart("requests waiting there", id="queue")
            yield Chart("engine CPU, share of a core", id="cpu")
            yield Chart("resident memory, MB", id="memory")
            yield Chart("prompt tokens from the cache, %", id="cached")
        with Horizontal(id="stages"):
            yield Table(_STAGES, id="stage")
            yield Table(_TOOLS, id="tools", opens=False)
            yield Bars("loop lag, ms", id="lags")
            yield Bars("batch sizes", id="batches")
        yield Table(_FIGURES, id="figures", opens=False)

    def on_mount(self) -> None:
        """The figures have the keys."""
        self.query_one("#stage", Table).title = "stages of an episode"
        self.query_one("#tools", Table).title = "tools"
        self.query_one("#figures", Table).focus()

    @on(Table.Opened)
    def _waiting_there(self, message: Table.Opened) -> None:
        self.post_message(Filtered(f"phase={message.id}"))

    def question(self) -> SnapshotQuery:
        """The tools are told only to who asks."""
        return SnapshotQuery(stages=True)

    def draw(self, snapshot: Snapshot) -> None:
        """Everything."""
        self.query_one("#pipeline", Facts).show(_pipeline(snapshot))
        for name, points in _curves(snapshot.engine):
            self.query_one(f"#{name}", Chart).show(points)
        newest = newest_row(snapshot)
        self._tabled("#stage", {stage: _stage(snapshot, newest, stage) for stage in keys.STAGES})
        self._tabled("#tools", {tool.name: _tool(tool) for tool in snapshot.tools})
        self._tabled("#figures", {key: _figure(snapshot, key, value) for key, value in newest.items()})
        sizes = batches(newest)
        self.query_one("#lags", Bars).show(_bars(_lag_labels(), snapshot.lags))
        self.query_one("#batches", Bars).show(_bars([f"≤{size}" for size in sizes], list(sizes.values())))
        self.query_one("#batches").set_class(not sizes, "-empty")

    def _tabled(self, table: str, rows: Mapping[str, Sequence[Cell]]) -> None:
        self.query_one(table, Table).show(list(rows.values()), top=0, total=len(rows), ids=list(rows))


def _pipeline(snapshot: Snapshot) -> list[Text]:
    """What waits where, from the tasks to the learner."""
    row, run = newest_row(snapshot), snapshot.run
    admitted = row.get(keys.GROUPS_ADMITTED, 0)
    trained, dropped = row.get(keys.GROUPS_TRAINED, 0), row.get(keys.GROUPS_DROPPED, 0)
    budget = (run.max_staleness + 1) * run.groups_per_step
    stages = {
        "admitted": f"{admitted - trained - dropped:.0f} of {budget} groups",
        "live": f"{live(snapshot):,} of {row.get(keys.LIVE_SLOTS, run.live_most):,.0f} episodes",
        "scoring": f"{snapshot.phases.get('scoring', 0):,}",
        "stream": f"{count(row.get(keys.STREAM_BYTES, 0))}B",
        "to the learner": f"{untrained(row)} groups",
        "trained": f"{trained:.0f}, dropped {dropped:.0f}",
    }
    line = Text(" ▸ ").join(Text.assemble((f"{name} ", "dim"), (value, "bold")) for name, value in stages.items())
    return [line, *_alarms(row)]


def _alarms(row: Mapping[str, float]) -> Iterator[Text]:
    """What went wrong, in the order in which it should be looked at."""
    if down := row.get(keys.SERVERS_DOWN, 0):
        yield Text(f"{down:.0f} policy servers get no traffic", "bold red")
    masked = {outcome: row.get(key, 0) for outcome, key in keys.OUTCOMES.items() if not outcome.scored}
    if any(masked.values()):
        ended = ", ".join(f"{number:,.0f} {outcome}" for outcome, number in masked.items() if number)
        yield Text(f"not scored: {ended}", "bold yellow")


def _curves(rows: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    def scaled(key: str, factor: float) -> list[tuple[float, float]]:
        return [(x, factor * y) for x, y in series(rows, keys.RUN_S, key)]

    yield "lag", scaled(keys.LAG_P99, 1e3)
    yield "running", scaled(keys.POLICY_RUNNING, 1)
    yield "queue", scaled(keys.POLICY_QUEUE, 1)
    yield "cpu", rates(rows, keys.CPU_S)
    yield "memory", scaled(keys.RSS, 1e-6)
    yield "cached", [(x, 100 * y) for x, y in share_points(rows, keys.CACHED_TOKENS, keys.PROMPT_TOKENS)]


def _stage(snapshot: Snapshot, row: Mapping[str, float], stage: Phase) -> list[Cell]:
    names = keys.STAGES[stage]
    times = [took(row.get(key, 0.0)) for key in (names.p50_s, names.p95_s, names.p99_s)]
    return [stage, f"{snapshot.phases.get(stage, 0):,}", f"{rate(snapshot.engine, names.ended):,.1f}", *times]


def _tool(tool: ToolRow) -> list[Cell]:
    broken = Text(count(tool.broken), "bold red") if tool.broken else "0"
    times = [took(tool.p50_s), took(tool.p95_s)]
    return [plain(tool.name), count(tool.calls), count(tool.refused), broken, *times]


def _lag_labels() -> list[str]:
    edges = [f"{1e3 * edge:.0f}" for edge in LAG_EDGES_S]
    return [f"<{edges[0]}", *(f"{low}-{high}" for low, high in pairwise(edges)), f">{edges[-1]}"]


def _bars(labels: Sequence[str], counts: Sequence[int]) -> list[tuple[str, float, str]]:
    """Each label's share of all that was counted."""
    whole = sum(counts)
    shares = ((label, n / whole) for label, n in zip(labels, counts, strict=False) if whole)
    return [(label, share, "<1%" if 0 < share < 0.01 else f"{share:.0%}") for label, share in shares]


def _figure(snapshot: Snapshot, key: str, value: float) -> list[Cell]:
    found = meant(key)
    metric = found.metric if found else None
    grows = metric is not None and metric.kind != "gauge"
    return [
        plain(key),
        count(value) if abs(value) >= 1_000 else f"{value:.4g}",
        f"{rate(snapshot.engine, key):,.2f}" if grows else "",
        metric.unit if metric else "",
        metric.meaning if metric else "",
    ]
