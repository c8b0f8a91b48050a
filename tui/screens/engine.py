"""Engine: where the time goes, what waits where, and every figure that it keeps."""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Grid

from engine.telemetry import METRICS
from engine.telemetry import engine_metrics as keys
from tui.numbers import latest, live, rate, rates, series, untrained
from tui.snapshot import Snapshot
from tui.text import count, plain
from tui.view import View
from tui.widgets.chart import Chart
from tui.widgets.facts import Facts
from tui.widgets.lines import Cell
from tui.widgets.table import Column, Table

_COLUMNS = (
    Column("key", "figure", 38, 0, right=False),
    Column("value", "now", 10, 0, right=True),
    Column("rate", "per s", 9, 1, right=True),
    Column("unit", "unit", 5, 3, right=False),
    Column("meaning", "meaning", 0, 2, right=False),
)


class EngineView(View):
    """The pipeline, four curves, and the table of all figures."""

    def body(self) -> ComposeResult:
        """From top to bottom."""
        yield Facts("pipeline", id="pipeline")
        with Grid(id="gauges"):
            yield Chart("loop lag p99, ms", id="lag")
            yield Chart("engine CPU, share of a core", id="cpu")
            yield Chart("requests waiting at the servers", id="queue")
            yield Chart("resident memory, MB", id="memory")
        yield Table(_COLUMNS, id="figures")

    def on_mount(self) -> None:
        """The figures have the keys."""
        self.query_one(Table).focus()

    def draw(self, snapshot: Snapshot) -> None:
        """Everything."""
        rows = snapshot.engine
        self.query_one("#pipeline", Facts).show(_pipeline(snapshot))
        lag = [(x, 1e3 * y) for x, y in series(rows, keys.RUN_S, keys.LAG_P99)]
        self.query_one("#lag", Chart).show(lag)
        self.query_one("#cpu", Chart).show(rates(rows, keys.CPU_S))
        self.query_one("#queue", Chart).show(series(rows, keys.RUN_S, keys.POLICY_QUEUE))
        self.query_one("#memory", Chart).show([(x, y / 1e6) for x, y in series(rows, keys.RUN_S, keys.RSS)])
        newest = latest(snapshot)
        self.query_one("#figures", Table).show(
            [_figure(snapshot, key, value) for key, value in newest.items()],
            top=0,
            total=len(newest),
            ids=list(newest),
        )


def _pipeline(snapshot: Snapshot) -> list[Text]:
    """What waits where, from the tasks to the learner."""
    row, run = latest(snapshot), snapshot.run
    admitted = row.get(keys.GROUPS_ADMITTED, 0)
    trained, dropped = row.get(keys.GROUPS_TRAINED, 0), row.get(keys.GROUPS_DROPPED, 0)
    budget = (run.max_staleness + 1) * run.groups_per_step
    stages = {
        "admitted": f"{admitted - trained - dropped:.0f} of {budget} groups",
        "live": f"{live(snapshot):,} of {row.get(keys.LIVE_SLOTS, run.live_most):,.0f} episodes",
        "stream": f"{count(row.get(keys.STREAM_BYTES, 0))}B",
        "to the learner": f"{untrained(row)} groups",
        "trained": f"{trained:.0f}, dropped {dropped:.0f}",
    }
    line = Text(" ▸ ").join(Text.assemble((f"{name} ", "dim"), (value, "bold")) for name, value in stages.items())
    return [line, *_alarms(row)]


def _alarms(row: Mapping[str, float]) -> list[Text]:
    down = row.get(keys.SERVERS_DOWN, 0)
    return [Text(f"{down:.0f} policy servers get no traffic", "bold red")] if down else []


def _figure(snapshot: Snapshot, key: str, value: float) -> list[Cell]:
    metric = METRICS.get(key)
    grows = key.endswith(("_count", "_money")) or key == keys.CPU_S
    return [
        plain(key),
        count(value) if abs(value) >= 1_000 else f"{value:.4g}",
        f"{rate(snapshot.engine, key):,.2f}" if grows else "",
        metric.unit if metric else "",
        metric.meaning if metric else "",
    ]
