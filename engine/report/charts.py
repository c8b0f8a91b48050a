"""report.png: six panels of one run, drawn without a display."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from engine.report.summary import Summary
from engine.telemetry import engine_metrics as keys

_TRAIN, _HELDOUT, _VALIDATION, _MUTED = "#4878a8", "#c44e52", "#55915f", "#8c8c8c"
_PARTS = {"F": "#c44e52", "N": "#4878a8", "I": "#dd9933"}


def draw_figure(summary: Summary) -> Figure:
    """The whole figure."""
    figure = Figure(figsize=(13, 7.6), layout="constrained", facecolor="white")
    panels: list[Callable[[Axes, Summary], None]] = [_reward, _parts, _staleness, _throughput, _length, _waits]
    for axes, panel in zip(figure.subplots(2, 3).flat, panels, strict=True):
        panel(axes, summary)
        axes.grid(alpha=0.25, linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.suptitle(_title(summary), fontsize=11, x=0.01, ha="left")
    return figure


def png(figure: Figure, path: Path) -> None:
    """Write the figure as PNG."""
    figure.savefig(path, format="png", dpi=110)


def svg(figure: Figure) -> str:
    """The figure as an <svg> element, for a page that contains everything."""
    content = io.BytesIO()
    figure.savefig(content, format="svg")
    text = content.getvalue().decode()
    return text[text.index("<svg") :]


def _title(summary: Summary) -> str:
    values = summary.values
    before, after = values["heldout_before"], values["heldout_after"]
    heldout = f"held-out reward {before['mean']:.2f} → {after['mean']:.2f}   " if before and after else ""
    return f"{values['run_id']}   {heldout}{values['bottleneck'].split(' (')[0]}"


def _reward(axes: Axes, summary: Summary) -> None:
    points = summary.curves.points()
    versions, rewards = [point.version for point in points], [point.reward for point in points]
    low = [point.reward - point.ci95 for point in points]
    high = [point.reward + point.ci95 for point in points]
    axes.fill_between(versions, low, high, color=_TRAIN, alpha=0.2, linewidth=0)
    axes.plot(versions, rewards, color=_TRAIN, label="training tasks")
    series = (("heldout", "held-out tasks", _HELDOUT), ("validation", "validation tasks", _VALIDATION))
    for prefix, label, color in series:
        rows = sorted(
            (row for row in summary.evaluations if row["name"].startswith(prefix)), key=lambda row: row["version"]
        )
        if rows:
            at, mean = [row["version"] for row in rows], [row["mean"] for row in rows]
            error = [row["ci95"] for row in rows]
            axes.errorbar(at, mean, yerr=error, color=color, marker="o", markersize=4, capsize=3, label=label, lw=1)
    axes.set(title="reward (95 % bands)", xlabel="adapter version", ylim=(0, 1.02))
    axes.legend(loc="lower right", fontsize=8, frameon=False)


def _parts(axes: Axes, summary: Summary) -> None:
    points = summary.curves.points()
    versions = [point.version for point in points]
    names = {"F": "F: no forbidden act", "N": "N: subgoals", "I": "I: asked the user"}
    for part, values in {
        "F": [point.F for point in points],
        "N": [point.N for point in points],
        "I": [point.I for point in points],
    }.items():
        axes.plot(versions, values, color=_PARTS[part], label=names[part])
    axes.set(title="R = F (N + I) / 2, training tasks", xlabel="adapter version", ylim=(0, 1.02))
    axes.legend(loc="lower right", fontsize=8, frameon=False)


def _staleness(axes: Axes, summary: Summary) -> None:
    shares = summary.values["staleness"]
    axes.bar(list(shares), list(shares.values()), color=_TRAIN, width=0.6)
    bound = summary.recorded.config.schedule.max_staleness
    axes.set(title=f"staleness of trained tokens (bound {bound})", xlabel="versions behind", ylim=(0, 1.02))


def _throughput(axes: Axes, summary: Summary) -> None:
    rows = summary.recorded.rows
    window = 10
    at, episodes, tokens = [], [], []
    for early, late in zip(rows, rows[window:], strict=False):
        seconds = late[keys.RUN_S] - early[keys.RUN_S]
        if seconds > 0 and late[keys.EPISODES_FINISHED] >= early[keys.EPISODES_FINISHED]:
            at.append(late[keys.RUN_S])
            episodes.append((late[keys.EPISODES_FINISHED] - early[keys.EPISODES_FINISHED]) / seconds)
            tokens.append((late[keys.TOKENS_SAMPLED] - early[keys.TOKENS_SAMPLED]) / seconds)
    axes.plot(at, episodes, color=_TRAIN)
    axes.set(title="throughput, over 10 s", xlabel="seconds of the run", ylabel="episodes / s")
    axes.yaxis.label.set_color(_TRAIN)
    axes.set_ylim(bottom=0)
    right = axes.twinx()
    right.plot(at, tokens, color=_MUTED, linewidth=1)
    right.set_ylabel("sampled tokens / s", color=_MUTED)
    right.set_ylim(bottom=0)


def _length(axes: Axes, summary: Summary) -> None:
    points = summary.curves.points()
    versions = [point.version for point in points]
    axes.plot(versions, [point.turns for point in points], color=_TRAIN)
    axes.set(title="episode length, training tasks", xlabel="adapter version", ylabel="turns")
    axes.yaxis.label.set_color(_TRAIN)
    axes.set_ylim(0, 1.15 * (max((point.turns for point in points), default=0) or 1))
    right = axes.twinx()
    right.plot(versions, [point.tokens for point in points], color=_MUTED, linewidth=1)
    right.set_ylabel("policy tokens", color=_MUTED)
    right.set_ylim(0, 1.3 * (max((point.tokens for point in points), default=0) or 1))


def _waits(axes: Axes, summary: Summary) -> None:
    values = summary.values
    names = ["learner waited\nfor groups", "admission waited\nfor the learner", "training"]
    seconds = [values["learner_waited_s"], values["admission_waited_s"], values["train_wall_s"]]
    axes.barh(names, seconds, color=[_VALIDATION, _HELDOUT, _MUTED], height=0.55)
    axes.invert_yaxis()
    axes.set(title=values["bottleneck"].split(";")[0], xlabel="seconds")
