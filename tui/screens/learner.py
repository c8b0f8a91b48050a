"""Learner: whether it learns, where the time of a step goes, and how adapters reach the servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Grid

from tui.numbers import finite, series
from tui.snapshot import Snapshot
from tui.text import clock, count, duration
from tui.view import View
from tui.widgets.chart import Chart
from tui.widgets.facts import Facts
from tui.widgets.lines import Cell
from tui.widgets.table import Column, Table

_STEP = "learner/step_count"
_CHARTS = {
    "reward": "learner/reward_mean",
    "loss": "learner/loss_mean",
    "drift k3, nats": "learner/drift_k3_nats",
    "entropy, nats": "learner/entropy_nats",
    "gradient norm": "learner/grad_norm",
    "clipped above, share": "learner/clip_high_share",
}
_PARTS = {
    "wait": "learner/wait_s",
    "read": "learner/read_s",
    "probe": "learner/probe_s",
    "forward": "learner/forward_s",
    "backward": "learner/backward_s",
    "optimizer": "learner/optimizer_s",
    "publish": "learner/publish_s",
}
_COLUMNS = (
    Column("version", "v", 6, 0, right=True),
    Column("event", "event", 7, 0, right=False),
    Column("at", "at", 9, 0, right=True),
    Column("took", "took", 8, 1, right=True),
    Column("ok", "", 6, 2, right=False),
    Column("server", "server", 0, 3, right=False),
)


class LearnerView(View):
    """Six curves, the newest step, the newest swaps."""

    def body(self) -> ComposeResult:
        """From top to bottom."""
        with Grid(id="curves"):
            for number, title in enumerate(_CHARTS):
                yield Chart(title, id=f"curve{number}")
        yield Facts("step", id="step")
        swaps = Table(_COLUMNS, id="swaps", opens=False)
        swaps.title = "adapter swaps"
        yield swaps

    def on_mount(self) -> None:
        """The swaps have the keys."""
        self.query_one(Table).focus()

    def draw(self, snapshot: Snapshot) -> None:
        """Everything."""
        for number, key in enumerate(_CHARTS.values()):
            self.query_one(f"#curve{number}", Chart).show(series(snapshot.learner, _STEP, key))
        self.query_one("#step", Facts).show(_step(snapshot.learner))
        newest = snapshot.swaps[::-1]
        self.query_one("#swaps", Table).show(
            [_swap(swap) for swap in newest],
            top=0,
            total=len(newest),
            ids=[f"{swap.get('start_s')} {swap.get('server')} {swap.get('event')}" for swap in newest],
        )


def _step(rows: Sequence[Mapping[str, Any]]) -> list[Text]:
    if not rows:
        return [Text("learner/metrics.jsonl has no row yet; a simulated learner writes none")]
    row = finite(rows[-1])
    whole = sum(row.get(key, 0.0) for key in _PARTS.values()) or 1.0
    line = Text()
    for name, key in _PARTS.items():
        seconds = row.get(key, 0.0)
        line.append(
            f" {name} {duration(seconds)} {seconds / whole:.0%} ", "reverse" if name in ("forward", "backward") else ""
        )
    trained = (
        f"step {row.get(_STEP, 0):.0f}: {count(row.get('learner/policy_tokens', 0))} tokens of "
        f"{row.get('learner/episodes_count', 0):.0f} episodes, {count(row.get('learner/tokens_per_s', 0))} tokens/s, "
        f"learning rate {row.get('learner/lr_rate', 0):.2g}, effective sample size "
        f"{row.get('learner/effective_sample_size', 0):.0%}"
    )
    return [line, Text(trained)]


def _swap(swap: Mapping[str, Any]) -> list[Cell]:
    start_s, end_s = swap.get("start_s", 0.0), swap.get("end_s", 0.0)
    return [
        f"v{swap.get('version', '')}",
        f"{swap.get('event', '')}",
        clock(start_s),
        f"{1e3 * (end_s - start_s):,.0f} ms" if end_s > start_s else "",
        "" if swap.get("ok", True) else Text("failed", "bold red"),
        f"{swap.get('server', '')}",
    ]
